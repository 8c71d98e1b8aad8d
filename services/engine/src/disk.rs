//! The store on a disk: one key-value-separated LSM tree per shard in a directory, without a journal.
//!
//! Writes go to one memtable; a flush writes immutable tables and blob files and then switches the version atomically.
//! The position is an ordinary key of the same tree, so data and position cannot disagree after any crash. What the
//! library leaves undone for a power cut is done here: it syncs blob files but not their directory entries, so the
//! flush and a compaction filter sync `blobs/` before each version switch. When it opens a store it
//! deletes what the version it finds does not need, so that version's name is synced before: a
//! killed process may have left it in the page cache only.
//!
//! One flusher and one compactor, started by [`Shared`], serve all shards of a process.
//!
//! # Layout
//! * `store`: one shard: batches and views
//! * `flush`: from memtables to files
//! * `compaction`: compaction, garbage collection of blobs, and the sync before their version switch
//! * `library`: opening and filling a tree
//! * `files`: the directory: lock, leftovers, checkpoint, replacement
//! * `pool`: what all shards share: caches, the memory budget, the threads

mod compaction;
mod files;
mod flush;
mod library;
mod pool;
mod store;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

pub use self::pool::Shared;
use self::store::Store;
use crate::{Engine, EngineError, Pair, Snapshot, Write};

/// Limits and thresholds, the same for all shards of a [`Shared`].
#[derive(Clone, Debug)]
pub struct Options {
    /// Memory for blocks and values read from the disk, all shards together.
    pub cache_bytes_max: u64,
    /// Open files of all shards together.
    pub descriptors_max: usize,
    /// Unflushed bytes of all shards together: above it the largest shard is flushed, at twice it writers stall.
    pub memtable_bytes_max: u64,
    /// The longest that a commit waits for a background flush: bounds what a restart must replay.
    pub memtable_age_max: Duration,
    /// Memtables of one shard that wait for the flusher before its writer stalls.
    pub sealed_memtables_max: usize,
    /// Level-0 runs of one shard before its writer stalls. The library's format breaks above 255.
    pub level0_runs_max: usize,
    /// Values at least this long are kept apart from the keys, in blob files.
    pub separated_bytes_min: u32,
    /// A blob file ends here.
    pub blob_file_bytes_max: u64,
    /// Garbage is collected when this many percent of a shard's blob bytes are stale ...
    pub gc_stale_percent_min: u64,
    /// ... and they are at least this many bytes ...
    pub gc_stale_bytes_min: u64,
    /// ... and the shard was not collected for this long.
    pub gc_interval: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cache_bytes_max: 64 << 20,
            descriptors_max: 512,
            memtable_bytes_max: 32 << 20,
            memtable_age_max: Duration::from_secs(60),
            sealed_memtables_max: 2,
            level0_runs_max: 24,
            separated_bytes_min: 2048,
            blob_file_bytes_max: 64 << 20,
            gc_stale_percent_min: 30,
            gc_stale_bytes_min: 16 << 20,
            gc_interval: Duration::from_secs(600),
        }
    }
}

/// A shard's store in a directory. Dropping it is a crash that loses what was not flushed, and waits for a flush or
/// compaction under way.
pub struct DiskEngine {
    store: Arc<Store>,
}

impl DiskEngine {
    /// Opens or creates the store in `dir` and waits a few seconds for another holder of the directory (an engine or a
    /// snapshot of one) to let go.
    pub fn open(dir: &Path, shared: &Shared) -> Result<Arc<Self>, EngineError> {
        let store = Arc::new(Store::open(dir, shared.pool())?);
        shared.pool().enter(&store);
        Ok(Arc::new(Self { store }))
    }

    /// Replaces the store in `dir` by `pairs`, in ascending key order, at `position`: after a crash it is the old store
    /// or the new one. No engine may have it open. Returns when the new one is durable.
    pub fn replace(
        dir: &Path,
        shared: &Shared,
        pairs: impl IntoIterator<Item = Result<Pair, EngineError>>,
        position: Bytes,
    ) -> Result<(), EngineError> {
        library::replace(dir, shared.pool(), pairs, &position)
    }

    /// Makes an exact, durable copy of the last flushed state in `dir`, which must not exist, by hard links.
    /// Returns the position of the copy.
    pub fn checkpoint(&self, dir: &Path) -> Result<Bytes, EngineError> {
        self.store.checkpoint(dir)
    }

    /// Collects stale blobs and rewrites the index now, whatever the thresholds say. Blocking, for seconds.
    pub fn collect_garbage(&self) -> Result<(), EngineError> {
        self.store.collect_garbage()
    }

    /// What the shard occupies on the disk.
    pub fn disk_usage(&self) -> DiskUsage {
        self.store.disk_usage()
    }
}

/// What a shard occupies on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskUsage {
    /// Bytes of tables and blob files together.
    pub bytes: u64,
    /// Bytes of values known to be stale, not yet collected.
    pub stale_bytes: u64,
    /// Table files.
    pub tables: usize,
    /// Blob files.
    pub blob_files: usize,
    /// Runs in level 0.
    pub level0_runs: usize,
}

impl Drop for DiskEngine {
    fn drop(&mut self) {
        self.store.close();
    }
}

impl Engine for DiskEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.store.get(key)
    }

    fn scan(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<Pair>, EngineError> {
        self.store.scan(prefix, from, limit)
    }

    fn write(&self, writes: Vec<Write>) -> Result<(), EngineError> {
        self.store.write(writes)
    }

    fn commit(&self, position: Bytes) -> Result<(), EngineError> {
        self.store.commit(position)
    }

    fn position(&self) -> Bytes {
        self.store.position()
    }

    fn durable(&self) -> Bytes {
        self.store.durable()
    }

    fn snapshot(&self) -> Box<dyn Snapshot> {
        Box::new(store::View::new(self.store.clone()))
    }

    fn flush(&self) -> Result<(), EngineError> {
        self.store.flush()
    }

    fn request_flush(&self) {
        self.store.request_flush();
    }

    fn unflushed_bytes(&self) -> u64 {
        self.store.unflushed_bytes()
    }

    fn stalled(&self) -> bool {
        self.store.stalled()
    }
}

#[cfg(test)]
mod tests;

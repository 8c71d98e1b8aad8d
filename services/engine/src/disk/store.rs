//! One shard's store: batches, views and flushes over the LSM tree.
//!
//! Lock order: `flushing`, `compacting`, `writer`, `state`, the library's own. Only the writer's lock holder adds to the
//! tree, and it adds whole batches, so a memtable may be sealed whenever the lock is free.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use lsm_tree::{AbstractTree, BlobTree, Guard, Memtable, SeqNo, SequenceNumberCounter};

use super::library::{
    POSITION_KEY, contained, io_error, library_error, open_tree, panic_text, to_bytes,
};
use super::pool::{Pool, lock};
use super::{DiskUsage, files};
use crate::overlay::{Bounds, Overlay, RESERVED, merge};
use crate::{EngineError, Pair, Snapshot, Write};

/// Reads everything: the writer's own view.
const LATEST: SeqNo = SeqNo::MAX;

pub(super) struct Store {
    dir: PathBuf,
    pub(super) tree: BlobTree,
    sequence: SequenceNumberCounter,
    pub(super) flushing: Mutex<()>,
    pub(super) compacting: Mutex<()>,
    pub(super) writer: Mutex<Overlay>,
    pub(super) state: Mutex<State>,
    pub(super) known_files: Mutex<files::Known>,
    /// Why the store is unusable, once it is.
    pub(super) failed: OnceLock<String>,
    pub(super) full: AtomicBool,
    pub(super) flush_requested: AtomicBool,
    /// The handle is gone: no more flushes.
    pub(super) closing: AtomicBool,
    /// Gives up the compaction under way.
    pub(super) abort: Arc<AtomicBool>,
    level0_runs: AtomicUsize,
    compaction_wished: AtomicBool,
    pub(super) flush_paused_until: AtomicU64,
    compaction_paused_until: AtomicU64,
    /// The tick of the last garbage collection, plus one; 0 when there was none.
    collected: AtomicU64,
    pub(super) pool: Arc<Pool>,
    /// Last, so that the directory is free only when the tree is gone.
    _lock: File,
}

pub(super) struct State {
    /// Snapshots read below this sequence number. The library's own counter runs ahead of batches in progress.
    pub(super) visible: SeqNo,
    pub(super) position: Bytes,
    pub(super) durable: Bytes,
    /// Sequence numbers of snapshots, and how many read at each.
    pub(super) snapshots: BTreeMap<SeqNo, usize>,
    /// Memtables to flush, oldest first.
    pub(super) sealed: VecDeque<Sealed>,
    pub(super) active_bytes: u64,
    /// The tick of the oldest commit in the active memtable.
    pub(super) active_since: u64,
}

#[derive(Clone)]
pub(super) struct Sealed {
    pub(super) memtable: Arc<Memtable>,
    /// The last commit it holds.
    pub(super) position: Bytes,
    pub(super) bytes: u64,
}

impl Store {
    pub(super) fn open(dir: &Path, pool: &Arc<Pool>) -> Result<Self, EngineError> {
        files::create_dir(dir).map_err(io_error)?;
        let directory_lock = files::lock_dir(dir).map_err(io_error)?;
        // A process killed in a version switch may have renamed the pointer to the version and not
        // synced it. The version found must be durable before the library deletes what only older
        // ones need, and before the log is cut below its position.
        files::sync_dir(dir).map_err(io_error)?;
        files::remove_leftovers(dir).map_err(io_error)?;
        let abort = Arc::new(AtomicBool::new(false));
        let (tree, sequence) = contained(|| open_tree(dir, pool, &abort))?;
        let position = contained(|| {
            tree.get(POSITION_KEY, LATEST)
                .map_err(|error| library_error(&error))
        })?;
        let position = position.map(to_bytes).unwrap_or_default();
        let state = State {
            visible: sequence.get(),
            position: position.clone(),
            durable: position,
            snapshots: BTreeMap::new(),
            sealed: VecDeque::new(),
            active_bytes: 0,
            active_since: 0,
        };
        let store = Self {
            dir: dir.to_owned(),
            tree,
            sequence,
            flushing: Mutex::default(),
            compacting: Mutex::default(),
            writer: Mutex::default(),
            state: Mutex::new(state),
            known_files: Mutex::default(),
            failed: OnceLock::new(),
            full: AtomicBool::new(false),
            flush_requested: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            abort,
            level0_runs: AtomicUsize::new(0),
            compaction_wished: AtomicBool::new(true),
            flush_paused_until: AtomicU64::new(0),
            compaction_paused_until: AtomicU64::new(0),
            collected: AtomicU64::new(0),
            pool: pool.clone(),
            _lock: directory_lock,
        };
        store.note_switch();
        Ok(store)
    }

    /// Ends background work on this store and waits for it.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.abort.store(true, Ordering::Release);
        drop(lock(&self.flushing));
        drop(lock(&self.compacting));
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Gives up a compaction under way, until [`Store::resume`].
    pub(super) fn interrupt(&self) {
        self.abort.store(true, Ordering::Release);
    }

    pub(super) fn resume(&self) {
        self.abort
            .store(self.closing.load(Ordering::Acquire), Ordering::Release);
    }

    /// The threads should leave this store alone.
    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire) || self.pool.stopping()
    }

    // ---- the writer ----

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        if key.first() == Some(&RESERVED) {
            return Ok(None);
        }
        if let Some(value) = lock(&self.writer).find(key) {
            return Ok(value.clone());
        }
        self.read(key, LATEST)
    }

    pub(super) fn scan(
        &self,
        prefix: &[u8],
        from: &[u8],
        limit: usize,
    ) -> Result<Vec<Pair>, EngineError> {
        let Some(bounds) = Bounds::new(prefix, from) else {
            return Ok(Vec::new());
        };
        let over = lock(&self.writer).within(&bounds);
        self.guard(|| merge(self.range(&bounds, LATEST), over, limit))
    }

    pub(super) fn write(&self, writes: Vec<Write>) -> Result<(), EngineError> {
        self.check()?;
        lock(&self.writer).put(writes)
    }

    pub(super) fn commit(&self, position: Bytes) -> Result<(), EngineError> {
        self.guard(|| {
            let mut writer = lock(&self.writer);
            let sequence = self.sequence.next();
            let mut bytes = 0;
            for (key, value) in writer.take() {
                let (added, _) = match value {
                    Some(value) => self.tree.insert(&key[..], &value[..], sequence),
                    // never the library's weak deletion: it brings old values of rewritten keys back
                    None => self.tree.remove(&key[..], sequence),
                };
                bytes += added;
            }
            bytes += self.tree.insert(POSITION_KEY, &position[..], sequence).0;
            // before the state shows them: whoever takes them back sees them counted
            self.pool.added(bytes);
            let mut state = lock(&self.state);
            state.visible = sequence + 1;
            state.position = position;
            if state.active_bytes == 0 {
                state.active_since = self.pool.tick();
            }
            state.active_bytes += bytes;
            Ok(())
        })
    }

    pub(super) fn position(&self) -> Bytes {
        lock(&self.state).position.clone()
    }

    pub(super) fn durable(&self) -> Bytes {
        lock(&self.state).durable.clone()
    }

    pub(super) fn unflushed_bytes(&self) -> u64 {
        lock(&self.writer).bytes() + self.memtable_bytes()
    }

    /// Bytes in memtables, sealed ones included.
    pub(super) fn memtable_bytes(&self) -> u64 {
        let state = lock(&self.state);
        state.active_bytes + state.sealed.iter().map(|sealed| sealed.bytes).sum::<u64>()
    }

    pub(super) fn stalled(&self) -> bool {
        if self.failed.get().is_some() {
            // nothing it waits for will ever come: let the writer go on and hear why
            return false;
        }
        let options = &self.pool.options;
        self.full.load(Ordering::Acquire)
            || self.level0_runs() >= options.level0_runs_max
            || lock(&self.state).sealed.len() >= options.sealed_memtables_max
            || self.pool.memory_exhausted()
    }

    // ---- versions ----

    /// Nobody reads below this sequence number.
    pub(super) fn watermark(&self) -> SeqNo {
        let state = lock(&self.state);
        state
            .snapshots
            .keys()
            .next()
            .copied()
            .unwrap_or(state.visible)
    }

    /// Drops versions that nobody reads, and with them memtables and deleted files.
    pub(super) fn reap(&self) {
        if self.failed.get().is_some() || self.tree.version_free_list_len() == 0 {
            return;
        }
        // Between batches all there is has been committed, so that an idle shard's readers can move to its last version.
        // A busy writer moves them itself.
        if let Ok(_between_batches) = self.writer.try_lock() {
            let mut state = lock(&self.state);
            state.visible = state.visible.max(self.sequence.get());
        }
        let watermark = self.watermark();
        if let Err(error) = self
            .tree
            .get_version_history_lock()
            .maintenance(&self.dir, watermark)
        {
            tracing::warn!(dir = %self.dir.display(), %error, "old versions not reaped");
        }
    }

    /// Takes note of the files and runs of the current version.
    pub(super) fn note_switch(&self) {
        self.level0_runs
            .store(self.tree.l0_run_count(), Ordering::Release);
        let version = self.tree.current_version();
        let mut known = lock(&self.known_files);
        known.add(
            version.iter_tables().map(|table| table.id()),
            version.blob_files.list_ids().copied(),
        );
        known.trim(&self.dir);
    }

    pub(super) fn level0_runs(&self) -> usize {
        self.level0_runs.load(Ordering::Acquire)
    }

    pub(super) fn disk_usage(&self) -> DiskUsage {
        DiskUsage {
            bytes: self.tree.disk_space(),
            stale_bytes: self.tree.stale_blob_bytes(),
            tables: self.tree.table_count(),
            blob_files: self.tree.blob_file_count(),
            level0_runs: self.level0_runs(),
        }
    }

    /// Links the current version into the new directory `target`.
    pub(super) fn checkpoint(&self, target: &Path) -> Result<Bytes, EngineError> {
        self.guard(|| {
            std::fs::create_dir(target).map_err(io_error)?;
            let _flushing = lock(&self.flushing);
            let durable = self.durable();
            let no_switch = self.tree.get_version_history_lock();
            let linked = files::link_current(&self.dir, target);
            drop(no_switch);
            let Err(error) = linked else {
                return Ok(durable);
            };
            if let Err(error) = files::remove_tree(target) {
                tracing::warn!(dir = %target.display(), %error, "half a checkpoint not removed");
            }
            Err(io_error(error))
        })
    }

    // ---- compaction's turn ----

    pub(super) fn wish_compaction(&self) {
        self.compaction_wished.store(true, Ordering::Release);
    }

    pub(super) fn take_compaction_wish(&self) -> bool {
        self.compaction_wished.swap(false, Ordering::AcqRel)
    }

    pub(super) fn may_compact(&self) -> bool {
        self.failed.get().is_none()
            && !self.is_closing()
            && self.pool.tick() >= self.compaction_paused_until.load(Ordering::Acquire)
    }

    pub(super) fn pause_compaction(&self, until: u64) {
        self.wish_compaction();
        self.compaction_paused_until.store(until, Ordering::Release);
    }

    pub(super) fn note_collection(&self) {
        self.collected
            .store(self.pool.tick() + 1, Ordering::Release);
    }

    /// The last garbage collection, if any, was at least `interval` ticks ago.
    pub(super) fn collected_before(&self, interval: u64) -> bool {
        match self.collected.load(Ordering::Acquire) {
            0 => true,
            tick => self.pool.tick() + 1 >= tick + interval,
        }
    }

    // ---- failure ----

    pub(super) fn check(&self) -> Result<(), EngineError> {
        match self.failed.get() {
            Some(reason) => Err(EngineError::Failed(reason.clone())),
            None => Ok(()),
        }
    }

    /// Declares the store unusable: what memory holds may no longer be what the disk will say.
    pub(super) fn fail(&self, reason: String) -> EngineError {
        let mut is_first = false;
        let reason = self.failed.get_or_init(|| {
            tracing::error!(dir = %self.dir.display(), reason, "store failed");
            is_first = true;
            reason
        });
        if is_first {
            self.leave_budget();
        }
        EngineError::Failed(reason.clone())
    }

    /// What a failed store holds is never flushed: the writers of other shards must not wait for that.
    fn leave_budget(&self) {
        let mut state = lock(&self.state);
        let sealed: u64 = state.sealed.drain(..).map(|sealed| sealed.bytes).sum();
        let bytes = sealed + std::mem::take(&mut state.active_bytes);
        drop(state);
        self.pool.removed(bytes);
    }

    /// Runs `work` unless the store has failed; a panic in it fails the store.
    pub(super) fn guard<T>(
        &self,
        work: impl FnOnce() -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        self.check()?;
        catch_unwind(AssertUnwindSafe(work))
            .unwrap_or_else(|panic| Err(self.fail(panic_text(&*panic))))
    }

    // ---- reading ----

    fn read(&self, key: &[u8], sequence: SeqNo) -> Result<Option<Bytes>, EngineError> {
        self.guard(|| {
            let value = self
                .tree
                .get(key, sequence)
                .map_err(|error| library_error(&error))?;
            Ok(value.map(to_bytes))
        })
    }

    fn range(
        &self,
        bounds: &Bounds,
        sequence: SeqNo,
    ) -> impl Iterator<Item = Result<Pair, EngineError>> + use<> {
        let range = &bounds.lower[..]..&bounds.upper[..];
        self.tree.range(range, sequence, None).map(|entry| {
            let (key, value) = entry.into_inner().map_err(|error| library_error(&error))?;
            Ok((Bytes::copy_from_slice(&key), to_bytes(value)))
        })
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.pool.removed(self.memtable_bytes());
    }
}

/// A registered sequence number.
pub(super) struct View {
    store: Arc<Store>,
    sequence: SeqNo,
    position: Bytes,
}

impl View {
    pub(super) fn new(store: Arc<Store>) -> Self {
        let mut state = lock(&store.state);
        let (sequence, position) = (state.visible, state.position.clone());
        *state.snapshots.entry(sequence).or_default() += 1;
        drop(state);
        Self {
            store,
            sequence,
            position,
        }
    }
}

impl Snapshot for View {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        if key.first() == Some(&RESERVED) {
            return Ok(None);
        }
        self.store.read(key, self.sequence)
    }

    fn scan(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<Pair>, EngineError> {
        let Some(bounds) = Bounds::new(prefix, from) else {
            return Ok(Vec::new());
        };
        self.store.guard(|| {
            self.store
                .range(&bounds, self.sequence)
                .take(limit)
                .collect()
        })
    }

    fn position(&self) -> Bytes {
        self.position.clone()
    }
}

impl Drop for View {
    fn drop(&mut self) {
        let mut state = lock(&self.store.state);
        if let Some(count) = state.snapshots.get_mut(&self.sequence) {
            *count -= 1;
            if *count == 0 {
                state.snapshots.remove(&self.sequence);
            }
        }
    }
}

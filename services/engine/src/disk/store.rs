//! One shard's store: batches, views and flushes over the LSM tree.
//!
//! Lock order: `flushing`, `compacting`, `writer`, `state`, the library's own. Only the writer's lock holder adds to the
//! tree, and it adds whole batches, so a memtable may be sealed whenever the lock is free.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use lsm_tree::{
    AbstractTree, AnyTree, BlobTree, CompressionType, Config, Guard, InternalValue,
    KvSeparationOptions, Memtable, SeqNo, SequenceNumberCounter, Slice,
};

use super::compaction::{BlobsSync, blobs_dir};
use super::files;
use super::pool::{Pool, lock};
use super::{DiskUsage, Options};
use crate::overlay::{Bounds, Overlay, RESERVED, merge};
use crate::{EngineError, Pair, Snapshot, Write};

/// Where the position is kept: after all keys of callers.
const POSITION_KEY: &[u8] = &[RESERVED, b'p'];
/// A flush compacts first when level 0 has this many runs; above 255 the library writes a wrong manifest.
const LEVEL0_RUNS_LIMIT: usize = 128;
/// A flush that would come this near to the library's limit is refused.
const LEVEL0_RUNS_MAX: usize = 250;
/// Values at least this long are handed out without a copy.
const SHARED_BYTES_MIN: usize = 2048;
/// Reads everything: the writer's own view.
const LATEST: SeqNo = SeqNo::MAX;

pub(super) struct Store {
    dir: PathBuf,
    pub(super) tree: BlobTree,
    sequence: SequenceNumberCounter,
    flushing: Mutex<()>,
    pub(super) compacting: Mutex<()>,
    writer: Mutex<Overlay>,
    state: Mutex<State>,
    known_files: Mutex<files::Known>,
    /// Why the store is unusable, once it is.
    failed: OnceLock<String>,
    full: AtomicBool,
    flush_requested: AtomicBool,
    /// The handle is gone: no more flushes.
    closing: AtomicBool,
    /// Gives up the compaction under way.
    pub(super) abort: Arc<AtomicBool>,
    level0_runs: AtomicUsize,
    compaction_wished: AtomicBool,
    flush_paused_until: AtomicU64,
    compaction_paused_until: AtomicU64,
    /// The tick of the last garbage collection, plus one; 0 when there was none.
    collected: AtomicU64,
    pub(super) pool: Arc<Pool>,
    /// Last, so that the directory is free only when the tree is gone.
    _lock: File,
}

struct State {
    /// Snapshots read below this sequence number. The library's own counter runs ahead of batches in progress.
    visible: SeqNo,
    position: Bytes,
    durable: Bytes,
    /// Sequence numbers of snapshots, and how many read at each.
    snapshots: BTreeMap<SeqNo, usize>,
    /// Memtables to flush, oldest first.
    sealed: VecDeque<Sealed>,
    active_bytes: u64,
    /// The tick of the oldest commit in the active memtable.
    active_since: u64,
}

#[derive(Clone)]
struct Sealed {
    memtable: Arc<Memtable>,
    /// The last commit it holds.
    position: Bytes,
    bytes: u64,
}

impl Store {
    pub(super) fn open(dir: &Path, pool: &Arc<Pool>) -> Result<Self, EngineError> {
        files::create_dir(dir).map_err(io_error)?;
        let directory_lock = files::lock_dir(dir).map_err(io_error)?;
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
    fn is_closing(&self) -> bool {
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
            let mut state = lock(&self.state);
            state.visible = sequence + 1;
            state.position = position;
            if state.active_bytes == 0 {
                state.active_since = self.pool.tick();
            }
            state.active_bytes += bytes;
            drop(state);
            self.pool.added(bytes);
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
        let options = &self.pool.options;
        self.full.load(Ordering::Acquire)
            || self.level0_runs() >= options.level0_runs_max
            || lock(&self.state).sealed.len() >= options.sealed_memtables_max
            || self.pool.memory_exhausted()
    }

    // ---- flush ----

    pub(super) fn flush(&self) -> Result<(), EngineError> {
        self.guard(|| {
            self.seal();
            self.flush_sealed()
        })
    }

    pub(super) fn request_flush(&self) {
        self.flush_requested.store(true, Ordering::Release);
        self.pool.wake_flusher();
    }

    /// A flush was asked for, a memtable waits for the flusher or is older than `age_max` ticks.
    pub(super) fn flush_waits(&self, age_max: u64) -> bool {
        if !self.may_flush() {
            return false;
        }
        if self.flush_requested.load(Ordering::Acquire) {
            return true;
        }
        let state = lock(&self.state);
        let old = state.active_bytes > 0 && self.pool.tick() >= state.active_since + age_max;
        old || !state.sealed.is_empty()
    }

    /// Nothing speaks against a background flush.
    pub(super) fn may_flush(&self) -> bool {
        self.failed.get().is_none()
            && !self.is_closing()
            && self.pool.tick() >= self.flush_paused_until.load(Ordering::Acquire)
    }

    pub(super) fn pause_flush(&self, until: u64) {
        self.flush_paused_until.store(until, Ordering::Release);
    }

    pub(super) fn flush_in_background(&self) -> Result<(), EngineError> {
        self.flush_requested.store(false, Ordering::Release);
        self.guard(|| {
            if lock(&self.state).sealed.len() < self.pool.options.sealed_memtables_max {
                self.seal();
            }
            self.flush_sealed()
        })
    }

    /// Puts the active memtable, which holds whole batches only, in the line of those to flush.
    fn seal(&self) {
        let _between_batches = lock(&self.writer);
        if lock(&self.state).active_bytes == 0 {
            return;
        }
        // without the state's lock: the library may be syncing a version, and readers need the state
        let Some(memtable) = self.tree.rotate_memtable() else {
            return;
        };
        let mut state = lock(&self.state);
        let (position, bytes) = (
            state.position.clone(),
            std::mem::take(&mut state.active_bytes),
        );
        state.sealed.push_back(Sealed {
            memtable,
            position,
            bytes,
        });
    }

    fn flush_sealed(&self) -> Result<(), EngineError> {
        let _flushing = lock(&self.flushing);
        loop {
            let Some(sealed) = lock(&self.state).sealed.front().cloned() else {
                return Ok(());
            };
            if self.closing.load(Ordering::Acquire) {
                return Err(EngineError::Failed("the store is closing".to_owned()));
            }
            if self.level0_runs() >= LEVEL0_RUNS_LIMIT {
                self.compact_level0()?;
                if self.level0_runs() >= LEVEL0_RUNS_MAX {
                    return Err(EngineError::Failed("level 0 is full".to_owned()));
                }
            }
            let flushed = self.flush_one(&sealed);
            if let Err(EngineError::Full) = flushed {
                self.sweep_while_flushing();
            }
            flushed?;
            self.full.store(false, Ordering::Release);
            self.reap();
            self.wish_compaction();
            self.pool.flushed();
        }
    }

    /// Writes one memtable to files and switches to the version that holds them.
    fn flush_one(&self, sealed: &Sealed) -> Result<(), EngineError> {
        let watermark = self.watermark();
        let entries = Unshadowed {
            entries: sealed.memtable.iter(),
            watermark,
            newer: None,
        };
        let written = self.tree.flush_to_tables(entries.map(Ok));
        let Some((tables, blobs)) = written.map_err(|error| self.write_failed(&error))? else {
            return Err(self.fail("a flush wrote nothing".to_owned()));
        };
        let blobs = blobs.unwrap_or_default();
        if !blobs.is_empty() {
            // the library synced the files but not their names
            files::sync_dir(&blobs_dir(&self.dir))
                .map_err(|error| self.write_failed(&error.into()))?;
        }
        let table_ids = || tables.iter().map(|table| table.id());
        let blob_ids = || blobs.iter().map(|blob| blob.id());
        lock(&self.known_files).add(table_ids(), blob_ids());
        let switched = self.tree.register_tables(
            &tables,
            Some(&blobs),
            None,
            &[sealed.memtable.id()],
            watermark,
        );
        self.note_switch();
        if let Err(error) = switched {
            let error = self.write_failed(&error);
            if matches!(error, EngineError::Full) {
                lock(&self.known_files).remove(table_ids(), blob_ids());
            }
            return Err(error);
        }
        let mut state = lock(&self.state);
        state.sealed.pop_front();
        state.durable = sealed.position.clone();
        drop(state);
        self.pool.removed(sealed.bytes);
        Ok(())
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

    /// Removes the files of a failed compaction.
    pub(super) fn sweep(&self) {
        let _flushing = lock(&self.flushing);
        self.sweep_while_flushing();
    }

    fn sweep_while_flushing(&self) {
        let _compacting = lock(&self.compacting);
        if let Err(error) = lock(&self.known_files).sweep(&self.dir) {
            tracing::warn!(dir = %self.dir.display(), %error, "leftovers not removed");
        }
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

    pub(super) fn checkpoint(&self, target: &Path) -> Result<Bytes, EngineError> {
        self.guard(|| {
            let _flushing = lock(&self.flushing);
            let durable = self.durable();
            let no_switch = self.tree.get_version_history_lock();
            let linked = files::link_current(&self.dir, target);
            drop(no_switch);
            match linked {
                Ok(()) => Ok(durable),
                Err(error) => {
                    if let Err(error) = files::remove_tree(target) {
                        tracing::warn!(dir = %target.display(), %error, "half a checkpoint not removed");
                    }
                    Err(io_error(error))
                }
            }
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

    fn check(&self) -> Result<(), EngineError> {
        match self.failed.get() {
            Some(reason) => Err(EngineError::Failed(reason.clone())),
            None => Ok(()),
        }
    }

    /// Declares the store unusable: what memory holds may no longer be what the disk will say.
    fn fail(&self, reason: String) -> EngineError {
        let reason = self.failed.get_or_init(|| {
            tracing::error!(dir = %self.dir.display(), reason, "store failed");
            reason
        });
        EngineError::Failed(reason.clone())
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

    /// A flush or compaction failed. Want of space before the version switch leaves everything as it was.
    pub(super) fn write_failed(&self, error: &lsm_tree::Error) -> EngineError {
        let no_space = matches!(error, lsm_tree::Error::Io(error)
            if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded));
        let unswitched = files::current_version(&self.dir)
            .is_ok_and(|id| id == self.tree.current_version().id());
        if no_space && unswitched {
            self.full.store(true, Ordering::Release);
            return EngineError::Full;
        }
        self.fail(error.to_string())
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

/// A memtable's entries without those that a newer entry of the same key hides from every reader.
///
/// Entries come by key, newest first. Without this a key rewritten by every batch would be written to the disk as often.
struct Unshadowed<I> {
    entries: I,
    watermark: SeqNo,
    /// The last entry's key and sequence number.
    newer: Option<(Slice, SeqNo)>,
}

impl<I: Iterator<Item = InternalValue>> Iterator for Unshadowed<I> {
    type Item = InternalValue;

    fn next(&mut self) -> Option<InternalValue> {
        loop {
            let entry = self.entries.next()?;
            let hidden = self.newer.as_ref().is_some_and(|(key, sequence)| {
                *key == entry.key.user_key && *sequence < self.watermark
            });
            if !hidden {
                self.newer = Some((entry.key.user_key.clone(), entry.key.seqno));
                return Some(entry);
            }
        }
    }
}

/// Builds a store of `pairs` beside `dir` and puts it in its place.
pub(super) fn replace(
    dir: &Path,
    pool: &Arc<Pool>,
    pairs: impl IntoIterator<Item = Result<Pair, EngineError>>,
    position: &[u8],
) -> Result<(), EngineError> {
    files::create_dir(dir).map_err(io_error)?;
    let _lock = files::lock_dir(dir).map_err(io_error)?;
    let fresh = files::fresh_name(dir).map_err(io_error)?;
    files::remove_tree(&fresh).map_err(io_error)?;
    let built = contained(|| ingest(&fresh, pool, pairs, position));
    if let Err(error) = built {
        files::remove_tree(&fresh).map_err(io_error)?;
        return Err(error);
    }
    files::exchange(&fresh, dir).map_err(io_error)
}

fn ingest(
    dir: &Path,
    pool: &Arc<Pool>,
    pairs: impl IntoIterator<Item = Result<Pair, EngineError>>,
    position: &[u8],
) -> Result<(), EngineError> {
    let (tree, _) = open_tree(dir, pool, &Arc::default())?;
    let tree = AnyTree::Blob(tree);
    let mut ingestion = tree.ingestion().map_err(|error| library_error(&error))?;
    let mut last = Bytes::new();
    for pair in pairs {
        let (key, value) = pair?;
        if key <= last || key.first() == Some(&RESERVED) {
            return Err(EngineError::Failed(
                "keys not in ascending order".to_owned(),
            ));
        }
        ingestion
            .write(&key[..], &value[..])
            .map_err(|error| library_error(&error))?;
        last = key;
    }
    ingestion
        .write(POSITION_KEY, position)
        .map_err(|error| library_error(&error))?;
    ingestion.finish().map_err(|error| library_error(&error))
}

fn open_tree(
    dir: &Path,
    pool: &Arc<Pool>,
    abort: &Arc<AtomicBool>,
) -> Result<(BlobTree, SequenceNumberCounter), EngineError> {
    let sequence = SequenceNumberCounter::default();
    let library_visible = SequenceNumberCounter::default();
    let filter = BlobsSync {
        blobs: blobs_dir(dir),
        abort: abort.clone(),
    };
    let tree = Config::new(dir, sequence.clone(), library_visible.clone())
        .use_cache(pool.cache.clone())
        .use_descriptor_table(Some(pool.descriptors.clone()))
        .with_kv_separation(Some(separation(&pool.options)))
        .with_compaction_filter_factory(Some(Arc::new(filter)))
        .open()
        .map_err(|error| library_error(&error))?;
    let AnyTree::Blob(tree) = tree else {
        return Err(EngineError::Failed(
            "not a key-value-separated tree".to_owned(),
        ));
    };
    // The library does not restore its counter; without this, later writes lose against what is on the disk.
    let next = tree
        .get_highest_persisted_seqno()
        .map_or(1, |highest| highest + 1);
    sequence.fetch_max(next);
    library_visible.fetch_max(next);
    Ok((tree, sequence))
}

fn separation(options: &Options) -> KvSeparationOptions {
    KvSeparationOptions::default()
        // bodies are compressed already
        .compression(CompressionType::None)
        .separation_threshold(options.separated_bytes_min)
        .file_target_size(options.blob_file_bytes_max)
        .staleness_threshold(0.25)
        // the default relocates nothing while fewer than four files are stale
        .age_cutoff(1.0)
}

fn to_bytes(slice: Slice) -> Bytes {
    if slice.len() < SHARED_BYTES_MIN {
        return Bytes::copy_from_slice(&slice);
    }
    Bytes::from_owner(slice)
}

fn contained<T>(work: impl FnOnce() -> Result<T, EngineError>) -> Result<T, EngineError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(EngineError::Failed(panic_text(&*panic))))
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("panic")
        .to_owned()
}

fn library_error(error: &lsm_tree::Error) -> EngineError {
    match error {
        lsm_tree::Error::Io(error) if error.kind() == ErrorKind::StorageFull => EngineError::Full,
        error => EngineError::Failed(error.to_string()),
    }
}

fn io_error(error: std::io::Error) -> EngineError {
    library_error(&lsm_tree::Error::Io(error))
}

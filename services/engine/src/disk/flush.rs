//! The flush of one shard's memtables, and what happens when it fails.
//!
//! A memtable is sealed between batches, written to tables and blob files, and becomes part of the tree by one version
//! switch; then its last commit is durable.

use std::io::ErrorKind;
use std::sync::atomic::Ordering;

use lsm_tree::{AbstractTree, InternalValue, SeqNo, Slice};

use super::compaction::blobs_dir;
use super::files;
use super::pool::lock;
use super::store::{Sealed, Store};
use crate::EngineError;

/// A flush compacts first when level 0 has this many runs; above 255 the library writes a wrong manifest.
const LEVEL0_RUNS_LIMIT: usize = 128;
/// A flush that would come this near to the library's limit is refused.
const LEVEL0_RUNS_MAX: usize = 250;

impl Store {
    pub(super) fn flush(&self) -> Result<(), EngineError> {
        self.guard(|| {
            self.seal()?;
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
            if lock(&self.state).sealed.len() >= self.pool.options.sealed_memtables_max {
                self.flush_sealed()?;
            }
            self.seal()?;
            self.flush_sealed()
        })
    }

    /// Puts the active memtable, which holds whole batches only, in the line of those to flush.
    fn seal(&self) -> Result<(), EngineError> {
        // a commit that panicked left half a batch behind
        let Ok(_between_batches) = self.writer.lock() else {
            return Err(self.fail("a commit panicked".to_owned()));
        };
        if lock(&self.state).active_bytes == 0 {
            return Ok(());
        }
        // without the state's lock: the library may be syncing a version, and readers need the state
        let Some(memtable) = self.tree.rotate_memtable() else {
            return Ok(());
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
        Ok(())
    }

    fn flush_sealed(&self) -> Result<(), EngineError> {
        let _flushing = lock(&self.flushing);
        loop {
            let Some(sealed) = lock(&self.state).sealed.front().cloned() else {
                // a store that failed meanwhile has nothing to flush any more, and flushed nothing
                return self.check();
            };
            if self.closing.load(Ordering::Acquire) {
                return Err(EngineError::Failed("the store is closing".to_owned()));
            }
            let flushed = self
                .make_room_in_level0()
                .and_then(|()| self.flush_one(&sealed));
            if let Err(EngineError::Full) = flushed {
                // what waits here is tried again, and then the writer may go on; a compaction alone makes nobody wait
                self.full.store(true, Ordering::Release);
                self.sweep_while_flushing();
            }
            flushed?;
            self.full.store(false, Ordering::Release);
            self.reap();
            self.wish_compaction();
            self.pool.flushed();
        }
    }

    fn make_room_in_level0(&self) -> Result<(), EngineError> {
        if self.level0_runs() >= LEVEL0_RUNS_LIMIT {
            self.compact_level0()?;
        }
        if self.level0_runs() >= LEVEL0_RUNS_MAX {
            return Err(EngineError::Failed("level 0 is full".to_owned()));
        }
        Ok(())
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
        let Some((tables, blobs)) = written.map_err(|error| self.write_failed(&error, false))?
        else {
            return Err(self.fail("a flush wrote nothing".to_owned()));
        };
        let blobs = blobs.unwrap_or_default();
        if !blobs.is_empty() {
            // the library synced the files but not their names
            files::sync_dir(&blobs_dir(self.dir()))
                .map_err(|error| self.write_failed(&error.into(), false))?;
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
            let error = self.write_failed(&error, true);
            if matches!(error, EngineError::Full) {
                lock(&self.known_files).remove(table_ids(), blob_ids());
            }
            return Err(error);
        }
        let mut state = lock(&self.state);
        // nothing is in the line when the store has failed meanwhile: its bytes are not counted any more
        let done = state.sealed.pop_front();
        state.durable = sealed.position.clone();
        drop(state);
        self.pool.removed(done.map_or(0, |done| done.bytes));
        Ok(())
    }

    /// A flush or compaction failed. Want of space before the version switch leaves everything as it was; where it may
    /// have come in the switch, the disk's idea of the version tells.
    pub(super) fn write_failed(&self, error: &lsm_tree::Error, in_switch: bool) -> EngineError {
        let no_space = matches!(error, lsm_tree::Error::Io(error)
            if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded));
        let unswitched = !in_switch
            || files::current_version(self.dir())
                .is_ok_and(|id| id == self.tree.current_version().id());
        if no_space && unswitched {
            return EngineError::Full;
        }
        self.fail(error.to_string())
    }

    /// Removes the files of a failed compaction.
    pub(super) fn sweep(&self) {
        let _flushing = lock(&self.flushing);
        self.sweep_while_flushing();
    }

    fn sweep_while_flushing(&self) {
        let _compacting = lock(&self.compacting);
        if let Err(error) = lock(&self.known_files).sweep(self.dir()) {
            tracing::warn!(dir = %self.dir().display(), %error, "leftovers not removed");
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

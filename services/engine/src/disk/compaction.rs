//! Compaction and garbage collection of one shard's tree, and the sync before their version switch.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lsm_tree::AbstractTree;
use lsm_tree::compaction::filter::Context;
use lsm_tree::compaction::{CompactionFilter, Factory, ItemAccessor, Leveled, Verdict};

use super::files;
use super::pool::{lock, ticks};
use super::store::Store;
use crate::EngineError;

/// Level-0 runs that are merged into the next level at once. Twice the library's default: the index is rewritten half as
/// often (1.11 instead of 1.25 bytes written per byte stored at 2 GB), and filters keep lookups in eight runs cheap.
const LEVEL0_RUNS: u8 = 8;
/// Compaction steps of one shard before the next shard has its turn.
const STEPS_MAX: usize = 8;
/// Tables of a major compaction end here.
const TABLE_BYTES_MAX: u64 = 64 << 20;

/// Syncs the names of relocated blob files before the version that refers to them is written.
///
/// The library syncs the files but not their directory. Its compactions call `finish` of a filter after the last blob
/// file was created and before the version switch, which is the place.
pub(super) struct BlobsSync {
    pub(super) blobs: PathBuf,
    /// Gives a compaction up.
    pub(super) abort: Arc<AtomicBool>,
}

impl Factory for BlobsSync {
    fn name(&self) -> &str {
        "sync-blobs-directory"
    }

    fn make_filter(&self, _: &Context) -> Box<dyn CompactionFilter> {
        Box::new(BlobsSync {
            blobs: self.blobs.clone(),
            abort: self.abort.clone(),
        })
    }
}

impl CompactionFilter for BlobsSync {
    fn filter_item(&mut self, _: ItemAccessor<'_>, _: &Context) -> lsm_tree::Result<Verdict> {
        if self.abort.load(Ordering::Acquire) {
            return Err(io::Error::from(ErrorKind::Interrupted).into());
        }
        Ok(Verdict::Keep)
    }

    fn finish(self: Box<Self>) {
        if let Err(error) = files::sync_dir(&self.blobs) {
            // The interface has no way to fail, and going on would switch to a version whose files a power cut may take.
            // No lock of the library is held here that a later open needs; the store is declared failed by the catcher.
            std::panic::panic_any(format!("sync of {}: {error}", self.blobs.display()));
        }
    }
}

impl Store {
    /// Compacts while there is something to do, then collects garbage if it is due.
    pub(super) fn compact_in_background(&self) -> Result<(), EngineError> {
        if !self.may_compact() {
            return Ok(());
        }
        if self.take_compaction_wish() {
            let mut steps = 0;
            while self.swept(self.compact_step())? {
                steps += 1;
                if steps == STEPS_MAX {
                    self.wish_compaction();
                    break;
                }
            }
        }
        if self.garbage_is_due() {
            self.collect_garbage()?;
        }
        Ok(())
    }

    /// Brings level 0 down before the format's limit is reached, for a writer that does not heed the stall. The caller
    /// holds the flush's lock and sweeps.
    pub(super) fn compact_level0(&self) -> Result<(), EngineError> {
        while self.level0_runs() > usize::from(LEVEL0_RUNS) && self.compact_step()? {}
        Ok(())
    }

    /// One step of levelled compaction; false when there was nothing to do.
    fn compact_step(&self) -> Result<bool, EngineError> {
        let strategy = Arc::new(Leveled::default().with_l0_threshold(LEVEL0_RUNS));
        self.switching(|tree, watermark| tree.compact(strategy, watermark))
    }

    /// Rewrites the index twice: the first pass finds which blobs are stale, the second relocates the live ones out of
    /// stale files and drops those.
    pub(super) fn collect_garbage(&self) -> Result<(), EngineError> {
        self.note_collection();
        for _ in 0..2 {
            if self.tree.table_count() > 0 {
                self.swept(
                    self.switching(|tree, watermark| {
                        tree.major_compact(TABLE_BYTES_MAX, watermark)
                    }),
                )?;
            }
        }
        let usage = self.disk_usage();
        tracing::info!(dir = %self.dir().display(), bytes = usage.bytes, stale = usage.stale_bytes, "store collected");
        Ok(())
    }

    fn garbage_is_due(&self) -> bool {
        let options = &self.pool.options;
        let stale = self.tree.stale_blob_bytes();
        if stale < options.gc_stale_bytes_min.max(1) {
            return false;
        }
        let blob_bytes = self.tree.current_version().blob_files.on_disk_size();
        stale.saturating_mul(100) >= blob_bytes.saturating_mul(options.gc_stale_percent_min)
            && self.collected_before(ticks(options.gc_interval))
    }

    /// Runs a compaction; true when it switched the version.
    fn switching(
        &self,
        compact: impl FnOnce(&lsm_tree::BlobTree, u64) -> lsm_tree::Result<()>,
    ) -> Result<bool, EngineError> {
        self.guard(|| {
            let _compacting = lock(&self.compacting);
            if self.abort.load(Ordering::Acquire) {
                return Ok(false);
            }
            // Files that this compaction makes obsolete are unlinked when the last holder lets go: held here so that it is
            // not the reaping below, which blocks the writer.
            let before = self.tree.current_version();
            let done = compact(&self.tree, self.watermark());
            self.note_switch();
            match done {
                Ok(()) => {}
                // the filter gave up on request
                Err(lsm_tree::Error::Io(error)) if error.kind() == ErrorKind::Interrupted => {
                    return Ok(false);
                }
                Err(error) => return Err(self.write_failed(&error, true)),
            }
            self.reap();
            Ok(self.tree.current_version().id() != before.id())
        })
    }

    /// Removes the files that a compaction without space left behind.
    fn swept<T>(&self, done: Result<T, EngineError>) -> Result<T, EngineError> {
        if let Err(EngineError::Full) = done {
            self.sweep();
        }
        done
    }
}

/// The library's folder of blob files in a store's directory.
pub(super) fn blobs_dir(dir: &Path) -> PathBuf {
    dir.join(files::BLOBS)
}

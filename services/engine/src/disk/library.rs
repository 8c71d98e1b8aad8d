//! The LSM library: how a tree is opened, filled at once, and its errors and values told apart.

use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use lsm_tree::{
    AbstractTree, AnyTree, BlobTree, CompressionType, Config, KvSeparationOptions,
    SequenceNumberCounter, Slice,
};

use super::compaction::{BlobsSync, blobs_dir};
use super::pool::Pool;
use super::{Options, files};
use crate::overlay::RESERVED;
use crate::{EngineError, Pair};

/// Where the position is kept: after all keys of callers.
pub(super) const POSITION_KEY: &[u8] = &[RESERVED, b'p'];
/// Values at least this long are handed out without a copy.
const SHARED_BYTES_MIN: usize = 2048;

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

/// Opens or creates the tree in `dir`, with its counter of sequence numbers restored.
pub(super) fn open_tree(
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

/// A value as callers take it.
pub(super) fn to_bytes(slice: Slice) -> Bytes {
    if slice.len() < SHARED_BYTES_MIN {
        return Bytes::copy_from_slice(&slice);
    }
    Bytes::from_owner(slice)
}

/// Runs the library where there is no store yet to be declared failed by a panic of it.
pub(super) fn contained<T>(
    work: impl FnOnce() -> Result<T, EngineError>,
) -> Result<T, EngineError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(EngineError::Failed(panic_text(&*panic))))
}

pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("panic")
        .to_owned()
}

pub(super) fn library_error(error: &lsm_tree::Error) -> EngineError {
    match error {
        lsm_tree::Error::Io(error) if error.kind() == ErrorKind::StorageFull => EngineError::Full,
        error => EngineError::Failed(error.to_string()),
    }
}

pub(super) fn io_error(error: std::io::Error) -> EngineError {
    library_error(&lsm_tree::Error::Io(error))
}

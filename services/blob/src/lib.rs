//! Large bodies, and bodies as streams.
//!
//! A body up to [`body::INLINE_MAX`] travels inside log records as one zstd frame. A larger one is put here first, as is, under
//! its message's id, and is durable before the record that names it is appended. Blobs are never changed.
//!
//! # Layout
//! * [`body`]: writing a body of unknown size, reading any body as chunks
//! * [`files`]: blobs as files: write, fsync, rename, fsync the directory
//! * [`memory`]: blobs in memory, for simulation
//! * [`contract`]: the tests every implementation runs

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

use bytes::Bytes;
use futures_util::future::BoxFuture;
use hikyaku_mail::id::MessageId;

pub mod body;
pub mod contract;
pub mod files;
pub mod memory;

/// Why a blob cannot be had or kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlobError {
    /// No space. Trying later may help.
    #[error("no space for blobs")]
    Full,
    /// There is no blob under this id.
    #[error("no such blob")]
    Missing,
    /// The store does not answer, or answers with something else than was put.
    #[error("blob store: {0}")]
    Unavailable(String),
}

/// A store of immutable blobs named by message ids.
pub trait Blobs: Send + Sync + 'static {
    /// Begins a blob. Nothing exists under `id` until [`BlobWriter::commit`]; dropping the writer leaves nothing.
    fn create(&self, id: MessageId) -> BoxFuture<'_, Result<Box<dyn BlobWriter>, BlobError>>;

    /// Opens a blob for reading from its beginning.
    fn open(&self, id: MessageId) -> BoxFuture<'_, Result<Box<dyn BlobReader>, BlobError>>;

    /// Removes a blob; removing what is not there is fine.
    fn delete(&self, id: MessageId) -> BoxFuture<'_, Result<(), BlobError>>;

    /// All committed blobs, for the sweep.
    fn list(&self) -> BoxFuture<'_, Result<Vec<MessageId>, BlobError>>;
}

/// A blob being written.
pub trait BlobWriter: Send {
    /// Appends `chunk`.
    fn write(&mut self, chunk: Bytes) -> BoxFuture<'_, Result<(), BlobError>>;

    /// Makes the blob durable under its id. `Ok` survives any crash.
    fn commit(self: Box<Self>) -> BoxFuture<'static, Result<(), BlobError>>;
}

/// A blob being read.
pub trait BlobReader: Send {
    /// The next chunk, at most 64 KiB; `None` at the end.
    fn read(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, BlobError>>;
}

//! The journal-less ordered store under a shard: after any crash it is exactly the state of one log prefix.
//!
//! The shard's own log is the write-ahead log. Writes go to memory; [`Engine::flush`] makes a whole-batch prefix durable
//! at once, and [`Engine::durable`] says which. What was written after that is gone after a crash and comes back by replay.
//! Nothing above this room knows the LSM library.
//!
//! # Layout
//! * [`memory`]: in memory, for the simulator: a crash goes back to the last flush
//! * [`disk`]: one LSM tree per shard in a directory
//! * [`contract`]: the tests both implementations run

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod contract;
pub mod disk;
pub mod memory;
mod overlay;

use bytes::Bytes;

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 512;
/// The longest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 256 << 20;

/// One change: a value under a key, or no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The key, at most 512 bytes, never empty, never starting with 0xff (reserved).
    pub key: Vec<u8>,
    /// The new value; `None` deletes.
    pub value: Option<Bytes>,
}

/// The store cannot go on. The shard must stop and be reopened (replay restores what memory held).
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The disk is full: nothing was lost, flushing later may succeed.
    #[error("no space for the store")]
    Full,
    /// Reading or writing failed, or what was read is not what was written.
    #[error("store failed: {0}")]
    Failed(String),
}

/// A key and its value.
pub type Pair = (Bytes, Bytes);

/// A consistent view at one committed batch. Holding it keeps old data alive, so hold it for seconds, not hours.
pub trait Snapshot: Send + Sync {
    /// The value under `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError>;
    /// Up to `limit` pairs with `from <= key`, `key` starting with `prefix`, in key order.
    fn scan(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<Pair>, EngineError>;
    /// The opaque position given to the `commit` this view shows; empty before the first.
    fn position(&self) -> Bytes;
}

/// An ordered key-value store with one writer and many readers.
///
/// The writer calls `write` once per log record, then `commit` at the end of a batch. Its own `get` and `scan` see its
/// uncommitted writes; snapshots see committed batches only. A flush makes committed batches durable, never half of one.
pub trait Engine: Send + Sync + 'static {
    /// Writer's view: the latest value, uncommitted writes included.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError>;
    /// Writer's view of [`Snapshot::scan`].
    fn scan(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<Pair>, EngineError>;
    /// The writes of one log record; the same key at most once takes effect (the last wins).
    fn write(&self, writes: Vec<Write>) -> Result<(), EngineError>;
    /// Ends a batch: everything written so far belongs to `position` (opaque to the engine) and becomes visible.
    fn commit(&self, position: Bytes) -> Result<(), EngineError>;
    /// The position of the last commit, durable or not; empty before the first.
    fn position(&self) -> Bytes;
    /// The position of the last commit that a crash cannot take back; empty before the first flush.
    fn durable(&self) -> Bytes;
    /// A consistent view of the last commit.
    fn snapshot(&self) -> Box<dyn Snapshot>;
    /// Makes the last commit durable before returning. Blocking I/O: call it from a blocking thread.
    fn flush(&self) -> Result<(), EngineError>;
    /// Asks for a flush soon, without waiting: the log under the shard is filling up.
    fn request_flush(&self);
    /// Bytes held in memory that no flush has written yet.
    fn unflushed_bytes(&self) -> u64;
    /// True when the writer must wait for flushes or compactions before the next batch (back-pressure).
    fn stalled(&self) -> bool;
}

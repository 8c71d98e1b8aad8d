//! Ordered durable logs, one per shard: the only storage of the queue, the write-ahead log of everything else.
//!
//! A [`Log`] appends opaque payloads to shards and yields them back in order. It promises:
//!
//! * an append that returned `Ok` survives any crash and power cut, and is yielded by every later tail;
//! * a tail yields only durable records, in position order, without gaps or repeats, each exactly as appended;
//! * an append that ended in [`AppendError::Unknown`] may still appear later, once; any other error means it never will;
//! * positions of one shard are dense and start at 1; position 0 is "before the first record";
//! * [`Log::truncate`] only ever forgets what it was told to forget, and only as a whole prefix.
//!
//! It knows nothing of what a payload means. Only this room will know Kafka.
//!
//! # Layout
//! * [`wal`]: the local write-ahead log, one stream of segment files for all shards, group commit
//! * [`sim`]: the simulated log: late and lost acknowledgements, torn tails, seeded
//! * [`contract`]: the tests every implementation runs

pub mod contract;
pub mod sim;
pub mod wal;

use std::fmt;

use bytes::Bytes;
use futures_util::future::BoxFuture;
pub use hikyaku_mail::id::{Class, ShardId};

/// Where a record is in its shard's log: 1, 2, 3, ...; 0 is before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position(pub u64);

impl Position {
    /// Before the first record.
    pub const ZERO: Position = Position(0);

    /// The position after this one.
    pub fn next(self) -> Position {
        Position(self.0 + 1)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What an append became: its position and the CRC-32C of its payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// Where the record is.
    pub position: Position,
    /// CRC-32C of the payload.
    pub crc: u32,
}

/// How far a state has applied a log, exactly enough to notice that the log under it is another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Applied {
    /// Which log: a number drawn when the log was created.
    pub incarnation: u64,
    /// The last record applied and its checksum.
    pub stamp: Stamp,
}

/// One durable record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRecord {
    /// Position and checksum.
    pub stamp: Stamp,
    /// What was appended.
    pub payload: Bytes,
}

/// The retained part of a shard's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The first position that can still be read (equal to `end` when nothing is retained).
    pub start: Position,
    /// One past the last durable record.
    pub end: Position,
}

/// What a shard costs the physical log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pinned {
    /// Physical bytes that only this shard's log start keeps from being freed, or shares in keeping.
    pub bytes: u64,
    /// True when the log is filling up and this shard is among those holding its oldest part: flush the store or carry
    /// live messages forward, then truncate, even when idle.
    pub pressed: bool,
    /// True when the log is so full that [`Share::Delivery`] no longer fits: only carrying and truncating go on.
    pub tight: bool,
}

/// How much of a filling log a record may use. What empties the log must always find room, so what fills it stops earlier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Share {
    /// New mail: stops first.
    Mail,
    /// A mail on its way from the queue into a mailbox.
    Delivery,
    /// A live mail logged again so that older records can go.
    Carry,
    /// Facts, orders and everything else that is small or ends something: all there is.
    #[default]
    Rest,
}

/// Why an append did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// No space: the configured maximum or the disk. Not written. Trying later may help.
    #[error("log full")]
    Full,
    /// The payload exceeds the log's record limit. Not written, and never will be.
    #[error("record too large for the log")]
    TooLarge,
    /// The log takes no appends now. Not written.
    #[error("log unavailable")]
    Unavailable,
    /// It may or may not have been written, and may still appear.
    #[error("outcome of the append is unknown")]
    Unknown,
}

/// Why a read did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The position was truncated away; the log now starts at `start`.
    #[error("position is below the log start {start}")]
    Truncated {
        /// The first position that can be read.
        start: Position,
    },
    /// A durable record does not read back as written.
    #[error("log is corrupt: {0}")]
    Corrupt(String),
    /// The log cannot be read now.
    #[error("log unavailable: {0}")]
    Unavailable(String),
}

/// An ordered durable log for each shard. See the module's promises.
pub trait Log: Send + Sync + 'static {
    /// The number drawn when this log was created; it differs after a restore or a rebuild.
    fn incarnation(&self) -> u64;

    /// Appends `payload`; `Ok` only when it is durable. The append proceeds even when the future is dropped.
    fn append(
        &self,
        shard: ShardId,
        payload: Bytes,
    ) -> BoxFuture<'static, Result<Stamp, AppendError>>;

    /// [`Log::append`] that is refused as [`AppendError::Full`] once the log is fuller than `share` may make it. A log that is not
    /// bounded by itself takes everything.
    fn append_within(
        &self,
        shard: ShardId,
        payload: Bytes,
        share: Share,
    ) -> BoxFuture<'static, Result<Stamp, AppendError>> {
        let _ = share;
        self.append(shard, payload)
    }

    /// A reader of the durable records of `shard` from position `from` (at least 1) on.
    ///
    /// # Errors
    /// [`ReadError::Truncated`] when `from` lies below the log start.
    fn tail(&self, shard: ShardId, from: Position) -> Result<Box<dyn Tail>, ReadError>;

    /// The durable record at `position`.
    fn read_at(
        &self,
        shard: ShardId,
        position: Position,
    ) -> BoxFuture<'static, Result<LogRecord, ReadError>>;

    /// What is retained of `shard`. A shard never written to has `start == end == 1`.
    fn bounds(&self, shard: ShardId) -> Bounds;

    /// Forgets all records of `shard` below `start`. Lower than the present start does nothing.
    fn truncate(
        &self,
        shard: ShardId,
        start: Position,
    ) -> BoxFuture<'static, Result<(), ReadError>>;

    /// What `shard` costs, and whether it must let go.
    fn pinned(&self, shard: ShardId) -> Pinned;
}

/// A reader that follows one shard.
pub trait Tail: Send {
    /// The next records, at least one and at most a bounded batch; waits for them. Cancel safe.
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<LogRecord>, ReadError>>;
}

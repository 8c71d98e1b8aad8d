//! The local write-ahead log: one stream of segment files for all shards, group commit, one sync for all of a batch.
//!
//! [`Log::append`] puts a request into a bounded queue; the committer thread ([`committer`]) writes and syncs whatever has
//! gathered, makes it known ([`index`]) and answers. Tails and reads ([`reader`]) see durable records only: the newest in
//! memory, the others in their segment ([`frame`] gives the bytes). Opening ([`recovery`]) rewrites what a crash left
//! before anybody sees it ([`segment`] makes the files). Files are reached through a small seam ([`disk`]).
//!
//! Space: at 80 % the shards that hold the oldest segments are told to let go ([`crate::Pinned::pressed`]); at the
//! maximum, and on a full disk, appends are refused with [`AppendError::Full`] until truncation or the administrator
//! makes room, while truncation goes on in a reserve. A segment no shard needs is removed, wherever it stands.
//!
//! It refuses to open what it cannot trust: see [`OpenError`]. It does not lock its directory: the process does.

pub mod disk;

mod committer;
mod frame;
mod index;
mod reader;
mod recovery;
mod segment;

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use committer::{Committer, Request};
use disk::{Disk, OsDisk};
use frame::{SEGMENT_HEADER, frame_bytes};
use index::Index;
use reader::WalTail;

use crate::{
    AppendError, Bounds, Log, LogRecord, Pinned, Position, ReadError, ShardId, Share, Stamp, Tail,
};

/// Largest segment that may be configured; offsets in a segment are 32 bits and recovery reads a segment at once.
const SEGMENT_BYTES_LARGEST: u64 = 1 << 30;

/// Fewest segments the log may have room for. Each [`Share`] leaves one to the next and two are kept for truncations and for
/// opening: with fewer, new mail stops after a segment or two, and deliveries may find no room when the queue is to be emptied.
pub const SEGMENTS_LEAST: u64 = 8;

/// So many bytes waiting are written at once, however short ago the last batch was.
const GATHERED_BYTES_MAX: usize = 1 << 20;

/// How a write-ahead log is laid out and bounded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalOptions {
    /// The incarnation of a log that is made anew: a random number. An existing log keeps its own.
    pub incarnation: u64,
    /// Size of a segment file.
    pub segment_bytes: u64,
    /// Bytes the log may take on the disk, two segments of it kept for truncations and for opening on a full disk.
    pub wal_bytes_max: u64,
    /// Largest payload.
    pub record_bytes_max: usize,
    /// Bytes of appends waiting for the disk; more are refused as [`AppendError::Unavailable`].
    pub pending_bytes_max: usize,
    /// Bytes of the newest records, of all shards together, kept in memory.
    pub recent_bytes_max: u64,
    /// Shards the log will keep; appends to more are refused as [`AppendError::Unavailable`].
    pub shards_max: usize,
    /// Between the beginnings of two batches at least, so that on a fast disk too a sync serves many appends. One that
    /// comes after a pause is written at once.
    pub gather: Duration,
}

impl WalOptions {
    /// The defaults, for a log whose incarnation, if it is new, shall be `incarnation`.
    pub fn new(incarnation: u64) -> WalOptions {
        WalOptions {
            incarnation,
            segment_bytes: 64 << 20,
            wal_bytes_max: 2 << 30,
            record_bytes_max: 1 << 20,
            pending_bytes_max: 32 << 20,
            recent_bytes_max: 64 << 20,
            shards_max: 1024,
            gather: Duration::ZERO,
        }
    }

    /// What appends leave free at a segment's end for truncations and the seal.
    fn reserve_bytes(&self) -> u64 {
        (self.segment_bytes / 8).min(64 << 10)
    }

    /// What appends may bring the segments to.
    fn data_bytes_max(&self) -> u64 {
        self.wal_bytes_max - 2 * self.segment_bytes
    }

    /// What appends of this share may bring the segments to: each kind leaves a segment to the next.
    fn share_bytes_max(&self, share: Share) -> u64 {
        let data = self.data_bytes_max();
        let left = |segments: u64| {
            data.saturating_sub(segments * self.segment_bytes)
                .max(self.segment_bytes)
        };
        match share {
            Share::Rest => data,
            Share::Carry => left(1),
            Share::Delivery => left(2),
            Share::Mail => left(3).min((data / 5 * 4).max(self.segment_bytes)),
        }
    }

    /// From here on the log counts as filling up: new mail has no further segment.
    fn pressed_bytes(&self) -> u64 {
        (self.share_bytes_max(Share::Mail) - self.segment_bytes).max(self.segment_bytes)
    }

    fn check(&self) -> Result<(), OpenError> {
        let least = (SEGMENT_HEADER
            + self.shards_max * frame_bytes(8)
            + frame_bytes(self.record_bytes_max)) as u64
            + self.reserve_bytes();
        if self.segment_bytes < least || self.segment_bytes > SEGMENT_BYTES_LARGEST {
            return Err(OpenError::Options(format!(
                "segment_bytes must be {least} to {SEGMENT_BYTES_LARGEST}"
            )));
        }
        if self.wal_bytes_max / SEGMENTS_LEAST < self.segment_bytes {
            return Err(OpenError::Options(format!(
                "wal_bytes_max must be at least {SEGMENTS_LEAST} times segment_bytes"
            )));
        }
        if self.pending_bytes_max < frame_bytes(self.record_bytes_max) {
            let least = frame_bytes(self.record_bytes_max);
            return Err(OpenError::Options(format!(
                "pending_bytes_max must be at least {least}"
            )));
        }
        Ok(())
    }
}

/// Why a log was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The options contradict each other.
    #[error("log options: {0}")]
    Options(String),
    /// The disk failed.
    #[error("cannot {what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A segment holds what was never written there.
    #[error("log is corrupt: {file} at offset {offset}: {what}")]
    Corrupt {
        /// The segment.
        file: String,
        /// Where.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// Records that were never truncated are gone with their segment.
    #[error("log is corrupt: records {from} up to {to} of shard {} are missing", shard_name(*shard))]
    Missing {
        /// Number of the shard.
        shard: u32,
        /// The first one missing.
        from: u64,
        /// The first one found.
        to: u64,
    },
    /// A segment is of another version of the format.
    #[error(
        "{file} has format version {version}, this program knows {}",
        frame::VERSION
    )]
    Version {
        /// The segment.
        file: String,
        /// Its version.
        version: u32,
    },
}

fn shard_name(number: u32) -> String {
    ShardId::from_number(number).map_or_else(|| number.to_string(), |shard| shard.to_string())
}

/// What the log has done since it was opened, and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalCounts {
    /// Appends asked for.
    pub appends: u64,
    /// Batches synced.
    pub syncs: u64,
    /// Bytes of frames made durable.
    pub frame_bytes: u64,
    /// Bytes all segments take on the disk, the spare not counted.
    pub physical_bytes: u64,
}

/// What the log's users and its committer share.
struct Shared {
    options: WalOptions,
    disk: Arc<dyn Disk>,
    incarnation: u64,
    index: Mutex<Index>,
    queue: Mutex<Queue>,
    work: Condvar,
    failure: watch::Sender<Option<String>>,
    appends: AtomicU64,
    syncs: AtomicU64,
    frame_bytes: AtomicU64,
}

/// Requests that wait for the committer.
#[derive(Default)]
struct Queue {
    waiting: VecDeque<Request>,
    /// Of those waiting and those being written.
    bytes: usize,
    /// No more requests are taken.
    ended: bool,
    /// The committer lets requests gather: a new one need not wake it.
    gathering: bool,
}

impl Queue {
    /// There is something for a committer that is not gathering any more.
    fn is_ready(&self) -> bool {
        self.ended || self.bytes >= GATHERED_BYTES_MAX
    }
}

impl Shared {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a request, or says why not. Truncations are never refused for want of room.
    fn put(&self, request: Request) -> Result<(), Request> {
        let bytes = request.bytes();
        let mut queue = self.queue();
        let is_full = queue.bytes + bytes > self.options.pending_bytes_max;
        if queue.ended || (is_full && matches!(request, Request::Append { .. })) {
            return Err(request);
        }
        queue.bytes += bytes;
        queue.waiting.push_back(request);
        let wake = if queue.gathering {
            queue.is_ready()
        } else {
            queue.waiting.len() == 1
        };
        drop(queue);
        if wake {
            self.work.notify_one();
        }
        Ok(())
    }

    /// What has gathered, and its size; waits for it. `begun` is when the last batch began. `None` when the log is closed
    /// and all is done.
    fn take(&self, begun: Option<Instant>) -> Option<(VecDeque<Request>, usize)> {
        let since = begun.map_or(self.options.gather, |begun| begun.elapsed());
        let rest = self.options.gather.saturating_sub(since);
        let mut queue = self.queue();
        if !rest.is_zero() {
            queue.gathering = true;
            queue = self
                .work
                .wait_timeout_while(queue, rest, |queue| !queue.is_ready())
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            queue.gathering = false;
        }
        while queue.waiting.is_empty() {
            if queue.ended {
                return None;
            }
            queue = self
                .work
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let batch = std::mem::take(&mut queue.waiting);
        let bytes = batch.iter().map(Request::bytes).sum();
        Some((batch, bytes))
    }

    /// Says that a batch of that size is done.
    fn taken(&self, bytes: usize) {
        let mut queue = self.queue();
        queue.bytes = queue.bytes.saturating_sub(bytes);
    }

    /// Takes no more requests and refuses those nobody will write.
    fn end(&self) {
        let mut queue = self.queue();
        queue.ended = true;
        let rest = std::mem::take(&mut queue.waiting);
        drop(queue);
        for request in rest {
            request.refuse(AppendError::Unavailable);
        }
    }

    fn has_failed(&self) -> bool {
        self.failure.borrow().is_some()
    }

    fn fail(&self, reason: String) {
        tracing::error!(reason, "log has failed and takes no more appends");
        self.failure.send_replace(Some(reason));
        for wake in self.index().wakes() {
            wake.notify_waiters();
        }
    }

    fn count_sync(&self, bytes: u64) {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.frame_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The write-ahead log. Dropping it writes what is queued, then ends its thread.
pub struct Wal {
    shared: Arc<Shared>,
    committer: Option<JoinHandle<()>>,
}

impl Wal {
    /// Opens the log in `directory`, or makes it there. Blocks: it reads the whole log.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(directory: &Path, options: WalOptions) -> Result<Wal, OpenError> {
        let disk = OsDisk::open(directory);
        let disk = disk.map_err(|source| OpenError::Io {
            what: "make the log directory",
            source,
        })?;
        Wal::open_on(Arc::new(disk), options)
    }

    /// Opens the log on `disk`, or makes it there.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_on(disk: Arc<dyn Disk>, options: WalOptions) -> Result<Wal, OpenError> {
        options.check()?;
        let recovered = recovery::recover(disk.as_ref(), &options)?;
        let shared = Arc::new(Shared {
            options,
            disk,
            incarnation: recovered.incarnation,
            index: Mutex::new(recovered.index),
            queue: Mutex::default(),
            work: Condvar::new(),
            failure: watch::Sender::new(None),
            appends: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
            frame_bytes: AtomicU64::new(0),
        });
        let committer = Committer::new(shared.clone(), recovered.active);
        let committer = std::thread::Builder::new()
            .name("log-committer".to_owned())
            .spawn(move || committer.run());
        let committer = committer.map_err(|source| OpenError::Io {
            what: "start the committer",
            source,
        })?;
        Ok(Wal {
            shared,
            committer: Some(committer),
        })
    }

    /// Waits until the log has failed for good, and says why. The process should then end with an error.
    pub fn failed(&self) -> impl Future<Output = String> + Send + use<> {
        let mut failure = self.shared.failure.subscribe();
        async move {
            let reason = failure
                .wait_for(Option::is_some)
                .await
                .ok()
                .and_then(|reason| reason.clone());
            match reason {
                Some(reason) => reason,
                // The log was closed in good order.
                None => std::future::pending().await,
            }
        }
    }

    /// What it has done and holds.
    pub fn counts(&self) -> WalCounts {
        WalCounts {
            appends: self.shared.appends.load(Ordering::Relaxed),
            syncs: self.shared.syncs.load(Ordering::Relaxed),
            frame_bytes: self.shared.frame_bytes.load(Ordering::Relaxed),
            physical_bytes: self.shared.index().physical(),
        }
    }

    /// Queues an append, or says why not.
    fn submit(
        &self,
        shard: ShardId,
        payload: Bytes,
        share: Share,
    ) -> Result<oneshot::Receiver<Result<Stamp, AppendError>>, AppendError> {
        if payload.len() > self.shared.options.record_bytes_max {
            return Err(AppendError::TooLarge);
        }
        let shard = shard.number();
        {
            let mut index = self.shared.index();
            if !index.knows(shard) && index.shard_count() >= self.shared.options.shards_max {
                return Err(AppendError::Unavailable);
            }
            index.shard_mut(shard);
        }
        self.shared.appends.fetch_add(1, Ordering::Relaxed);
        let crc = crc32c::crc32c(&payload);
        let (reply, outcome) = oneshot::channel();
        let request = Request::Append {
            shard,
            payload,
            crc,
            share,
            reply,
        };
        self.shared
            .put(request)
            .map_err(|_| AppendError::Unavailable)?;
        Ok(outcome)
    }
}

impl Log for Wal {
    fn incarnation(&self) -> u64 {
        self.shared.incarnation
    }

    fn append(
        &self,
        shard: ShardId,
        payload: Bytes,
    ) -> BoxFuture<'static, Result<Stamp, AppendError>> {
        self.append_within(shard, payload, Share::Rest)
    }

    fn append_within(
        &self,
        shard: ShardId,
        payload: Bytes,
        share: Share,
    ) -> BoxFuture<'static, Result<Stamp, AppendError>> {
        match self.submit(shard, payload, share) {
            Ok(outcome) => async { outcome.await.unwrap_or(Err(AppendError::Unknown)) }.boxed(),
            Err(error) => std::future::ready(Err(error)).boxed(),
        }
    }

    fn tail(&self, shard: ShardId, from: Position) -> Result<Box<dyn Tail>, ReadError> {
        let start = self.bounds(shard).start;
        if from < start {
            return Err(ReadError::Truncated { start });
        }
        Ok(Box::new(WalTail::new(self.shared.clone(), shard, from.0)))
    }

    fn read_at(
        &self,
        shard: ShardId,
        position: Position,
    ) -> BoxFuture<'static, Result<LogRecord, ReadError>> {
        reader::read_at(self.shared.clone(), shard, position).boxed()
    }

    fn bounds(&self, shard: ShardId) -> Bounds {
        self.shared.index().bounds(shard.number())
    }

    fn truncate(
        &self,
        shard: ShardId,
        start: Position,
    ) -> BoxFuture<'static, Result<(), ReadError>> {
        if start <= self.bounds(shard).start {
            return std::future::ready(Ok(())).boxed();
        }
        let (reply, outcome) = oneshot::channel();
        let unavailable = || ReadError::Unavailable("the log takes no truncation now".to_owned());
        let request = Request::Truncate {
            shard: shard.number(),
            start: start.0,
            reply,
        };
        match self.shared.put(request) {
            Ok(()) => async move { outcome.await.unwrap_or_else(|_| Err(unavailable())) }.boxed(),
            Err(_) => std::future::ready(Err(unavailable())).boxed(),
        }
    }

    fn pinned(&self, shard: ShardId) -> Pinned {
        let options = &self.shared.options;
        let index = self.shared.index();
        let pinned = index.pinned(shard.number(), options.pressed_bytes());
        let next = index.physical() + options.segment_bytes;
        let tight = next > options.share_bytes_max(Share::Delivery);
        Pinned { tight, ..pinned }
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        self.shared.queue().ended = true;
        self.shared.work.notify_one();
        if let Some(committer) = self.committer.take() {
            // It has reported a panic of its own already.
            let _ = committer.join();
        }
    }
}

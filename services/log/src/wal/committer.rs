//! The thread that writes: it takes whatever has gathered, writes it in one piece, syncs once, makes it known and then
//! answers, in order. While it syncs the next batch gathers, so under load one sync serves many appends.
//!
//! After a failed sync nothing is appended ever again by this process: the kernel may have marked the pages clean
//! without writing them, and a second sync would then succeed about nothing. A failed write is undone by cutting the
//! file back to its last durable length; only when that fails too is it as bad as a failed sync.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Shared;
use super::frame::{self, Frame, Kind, SegmentHeader, encode_bounds, encode_seal, frame_bytes};
use super::index::Fresh;
use super::segment::{Active, Room, is_full, keep_spare, prepare, segment_name};
use crate::{AppendError, Position, ReadError, Share, Stamp};

/// A batch is written in pieces of about this size.
const WRITE_BYTES_MAX: usize = 4 << 20;

/// Something to be written.
pub enum Request {
    /// A record.
    Append {
        /// Shard number.
        shard: u32,
        /// What to append.
        payload: Bytes,
        /// Its CRC-32C.
        crc: u32,
        /// How full it may make the log.
        share: Share,
        /// Where the outcome goes.
        reply: oneshot::Sender<Result<Stamp, AppendError>>,
    },
    /// A new start.
    Truncate {
        /// Shard number.
        shard: u32,
        /// The start.
        start: u64,
        /// Where the outcome goes.
        reply: oneshot::Sender<Result<(), ReadError>>,
    },
}

impl Request {
    /// What it counts for in the bounded queue.
    pub fn bytes(&self) -> usize {
        match self {
            Request::Append { payload, .. } => frame_bytes(payload.len()),
            Request::Truncate { .. } => frame_bytes(8),
        }
    }

    /// Answers that nothing was written.
    pub fn refuse(self, error: AppendError) {
        match self {
            Request::Append { reply, .. } => drop(reply.send(Err(error))),
            Request::Truncate { reply, .. } => {
                drop(reply.send(Err(ReadError::Unavailable(error.to_string()))))
            }
        }
    }
}

/// A request whose frame is encoded, and perhaps written, but not yet synced.
enum Staged {
    Append {
        fresh: Fresh,
        reply: oneshot::Sender<Result<Stamp, AppendError>>,
    },
    Truncate {
        shard: u32,
        start: u64,
        reply: oneshot::Sender<Result<(), ReadError>>,
    },
}

/// Why a batch could not be finished.
enum Trouble {
    /// It was undone; nothing of it is in the file.
    Refused(AppendError),
    /// The log has failed for good; it may or may not be in the file.
    Failed,
}

/// The writing side of the log.
pub struct Committer {
    shared: Arc<Shared>,
    active: Active,
    /// Next position of each shard, staged ones included.
    ends: BTreeMap<u32, u64>,
    /// Frames not written yet.
    buffer: Vec<u8>,
    /// Where `buffer` goes.
    written: u64,
    staged: VecDeque<Staged>,
}

impl Committer {
    /// A committer that goes on after `active`.
    pub fn new(shared: Arc<Shared>, active: Active) -> Committer {
        let ends = shared
            .index()
            .shards()
            .map(|(number, _, end)| (number, end))
            .collect();
        let written = active.filled;
        Committer {
            shared,
            active,
            ends,
            buffer: Vec::new(),
            written,
            staged: VecDeque::new(),
        }
    }

    /// Works until the log is closed or has failed.
    pub fn run(mut self) {
        // Whatever ends this thread, nobody waits for it any more.
        let _guard = Guard(self.shared.clone());
        let mut begun = None;
        while let Some((batch, bytes)) = self.shared.take(begun) {
            begun = Some(Instant::now());
            self.commit(batch);
            self.shared.taken(bytes);
            if self.shared.has_failed() {
                return;
            }
        }
    }

    fn commit(&mut self, batch: VecDeque<Request>) {
        for request in batch {
            if self.shared.has_failed() {
                request.refuse(AppendError::Unavailable);
                continue;
            }
            match self.make_room(&request) {
                Ok(()) => self.stage(request),
                Err(Trouble::Refused(error)) => request.refuse(error),
                Err(Trouble::Failed) => request.refuse(AppendError::Unavailable),
            }
            if self.buffer.len() >= WRITE_BYTES_MAX {
                self.write();
            }
        }
        self.flush();
    }

    /// Sees to it that the request's frame fits into the active segment.
    fn make_room(&mut self, request: &Request) -> Result<(), Trouble> {
        let shared = self.shared.clone();
        let options = &shared.options;
        let bytes_max = match request {
            Request::Append { share, .. } => Some(options.share_bytes_max(*share)),
            Request::Truncate { .. } => None,
        };
        let is_append = bytes_max.is_some();
        // Appends leave a reserve so that truncations, which make room, always find some; the seal's place is kept from both.
        let seal = frame_bytes(0) as u64;
        let room = options.segment_bytes
            - if is_append {
                options.reserve_bytes()
            } else {
                seal
            };
        let over = |physical: u64| bytes_max.is_some_and(|max| physical > max);
        if self.written + (self.buffer.len() + request.bytes()) as u64 <= room
            && !over(shared.index().physical())
        {
            return Ok(());
        }
        self.flush();
        if shared.has_failed() {
            return Err(Trouble::Failed);
        }
        let physical = shared.index().physical();
        if over(physical + options.segment_bytes) {
            return Err(Trouble::Refused(AppendError::Full));
        }
        // Only truncations, which make room, may use up the spare.
        self.roll(if is_append { Room::Free } else { Room::Spare })
    }

    /// Encodes the request's frame.
    fn stage(&mut self, request: Request) {
        let offset = (self.written + self.buffer.len() as u64) as u32;
        let synced = self.active.filled as u32;
        match request {
            Request::Append {
                shard,
                payload,
                crc,
                reply,
                ..
            } => {
                let end = self.ends.entry(shard).or_insert(1);
                let position = *end;
                *end += 1;
                let length = payload.len() as u32;
                let frame = Frame {
                    kind: Kind::Record,
                    length,
                    shard,
                    position,
                    crc,
                    synced,
                };
                frame.encode(self.active.seed, &payload, &mut self.buffer);
                let stamp = Stamp {
                    position: Position(position),
                    crc,
                };
                self.staged.push_back(Staged::Append {
                    fresh: Fresh {
                        shard,
                        offset,
                        stamp,
                        payload,
                    },
                    reply,
                });
            }
            Request::Truncate {
                shard,
                start,
                reply,
            } => {
                let end = self.ends.get(&shard).copied().unwrap_or(1);
                let start = start.min(end);
                encode_bounds(
                    self.active.seed,
                    shard,
                    start,
                    end,
                    synced,
                    &mut self.buffer,
                );
                self.staged.push_back(Staged::Truncate {
                    shard,
                    start,
                    reply,
                });
            }
        }
    }

    /// Writes the encoded frames, not syncing them.
    fn write(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        let result = self.active.file.write_all_at(&self.buffer, self.written);
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        self.buffer.shrink_to(WRITE_BYTES_MAX * 2);
        if let Err(error) = result {
            self.undo(&error);
        }
    }

    /// Writes, syncs, makes known and answers everything staged.
    fn flush(&mut self) {
        self.write();
        if self.staged.is_empty() || self.shared.has_failed() {
            return;
        }
        if let Err(error) = self.active.file.sync() {
            self.fail("sync", &error);
            return;
        }
        self.shared.count_sync(self.written - self.active.filled);
        self.active.filled = self.written;
        self.publish();
    }

    /// Makes the staged requests known, then answers them in order.
    fn publish(&mut self) {
        let mut replies = Vec::with_capacity(self.staged.len());
        let mut wakes = BTreeMap::new();
        let mut index = self.shared.index();
        index.set_filled(self.active.filled);
        for staged in self.staged.drain(..) {
            match staged {
                Staged::Append { fresh, reply } => {
                    let stamp = fresh.stamp;
                    wakes
                        .entry(fresh.shard)
                        .or_insert_with(|| index.shard_mut(fresh.shard).wake.clone());
                    index.publish(fresh);
                    replies.push((reply, stamp));
                }
                Staged::Truncate {
                    shard,
                    start,
                    reply,
                } => {
                    wakes
                        .entry(shard)
                        .or_insert_with(|| index.shard_mut(shard).wake.clone());
                    index.truncate(shard, start);
                    let _ = reply.send(Ok(()));
                }
            }
        }
        let freed = index.free();
        drop(index);
        // tails first: a proposer that hears of its append after it was applied need not be woken twice
        for wake in wakes.values() {
            wake.notify_waiters();
        }
        for (reply, stamp) in replies {
            let _ = reply.send(Ok(stamp));
        }
        self.remove(&freed);
    }

    fn remove(&self, freed: &[u32]) {
        for sequence in freed {
            // A name that stays costs space until the next start, no more.
            if let Err(error) = self.shared.disk.remove(&segment_name(*sequence)) {
                tracing::warn!(segment = %segment_name(*sequence), %error, "cannot remove a free log segment");
            }
        }
    }

    /// Takes a failed write back.
    fn undo(&mut self, error: &io::Error) {
        let file = &self.active.file;
        let undone = file
            .set_length(self.active.filled)
            .and_then(|()| file.sync());
        if let Err(worse) = undone {
            tracing::error!(%error, "log write failed and cannot be undone");
            self.fail("undo a failed write", &worse);
            return;
        }
        tracing::warn!(%error, "log write failed and was undone");
        self.written = self.active.filled;
        let answer = if is_full(error) {
            AppendError::Full
        } else {
            AppendError::Unavailable
        };
        for staged in self.staged.drain(..).rev() {
            match staged {
                Staged::Append { fresh, reply } => {
                    self.ends.insert(fresh.shard, fresh.stamp.position.0);
                    let _ = reply.send(Err(answer));
                }
                Staged::Truncate { reply, .. } => {
                    let _ = reply.send(Err(ReadError::Unavailable(answer.to_string())));
                }
            }
        }
    }

    /// Stops for good; what is staged may or may not be in the file.
    fn fail(&mut self, what: &str, error: &io::Error) {
        self.shared.fail(format!(
            "cannot {what} the log in {}: {error}",
            self.shared.disk.place()
        ));
        for staged in self.staged.drain(..) {
            match staged {
                Staged::Append { reply, .. } => drop(reply.send(Err(AppendError::Unknown))),
                Staged::Truncate { reply, .. } => {
                    drop(reply.send(Err(ReadError::Unavailable("the log has failed".to_owned()))));
                }
            }
        }
    }

    /// Seals the active segment, which has nothing staged, and goes on in a new one.
    fn roll(&mut self, room: Room) -> Result<(), Trouble> {
        let shared = self.shared.clone();
        let sequence = u64::from(self.active.sequence) + 1;
        let header = SegmentHeader {
            incarnation: shared.incarnation,
            sequence,
            replaces_from: sequence,
        };
        let shards: Vec<(u32, u64, u64)> = shared
            .index()
            .shards()
            .filter(|(_, _, end)| *end > 1)
            .collect();
        let prepared = prepare(
            shared.disk.as_ref(),
            &header,
            shared.options.segment_bytes,
            room,
            |seed, buffer| {
                for (number, start, end) in &shards {
                    encode_bounds(seed, *number, *start, *end, 0, buffer);
                }
            },
        );
        let next = match prepared {
            Ok(next) => next,
            Err(error) => {
                tracing::warn!(%error, "cannot make a new log segment");
                return Err(Trouble::Refused(if is_full(&error) {
                    AppendError::Full
                } else {
                    AppendError::Unavailable
                }));
            }
        };
        let mut seal = Vec::new();
        encode_seal(self.active.seed, self.active.filled as u32, &mut seal);
        if let Err(error) = self.active.file.write_all_at(&seal, self.active.filled) {
            self.undo(&error);
            if let Err(error) = next.discard(shared.disk.as_ref()) {
                tracing::warn!(%error, "cannot remove an unused log segment");
            }
            return Err(if shared.has_failed() {
                Trouble::Failed
            } else {
                Trouble::Refused(AppendError::Full)
            });
        }
        let filled = self.active.filled + seal.len() as u64;
        // From the seal's sync on no frame may follow in the old segment: what fails now is final.
        let sealed = self
            .active
            .file
            .set_length(filled)
            .and_then(|()| self.active.file.sync());
        match sealed.and_then(|()| next.install(shared.disk.as_ref())) {
            Ok((active, segment)) => {
                let mut index = shared.index();
                index.set_filled(filled);
                index.roll(active.sequence, segment);
                let freed = index.free();
                drop(index);
                self.remove(&freed);
                self.written = active.filled;
                self.active = active;
                if let Err(error) = keep_spare(shared.disk.as_ref(), shared.options.segment_bytes) {
                    tracing::warn!(%error, "cannot make the spare log segment");
                }
                Ok(())
            }
            Err(error) => {
                self.fail("change the segment of", &error);
                Err(Trouble::Failed)
            }
        }
    }
}

/// Ends the queue when the committer ends.
struct Guard(Arc<Shared>);

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail("the log's committer has panicked".to_owned());
        }
        self.0.end();
    }
}

const _: () =
    assert!(frame::FRAME_HEADER.is_multiple_of(8) && frame::SEGMENT_HEADER.is_multiple_of(8));

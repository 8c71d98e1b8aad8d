//! Reading records back: the newest from memory, older ones from their segment, on the blocking pool.
//!
//! Everything read from a segment is checked anew; what does not match is [`ReadError::Corrupt`] with file and offset.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::Shared;
use super::disk::read_full_at;
use super::frame::{FRAME_HEADER, Frame, Kind};
use super::index::{Found, OnDisk};
use super::segment::segment_name;
use crate::{LogRecord, Position, ReadError, ShardId, Stamp, Tail};

/// Most records a tail yields at once.
const BATCH_RECORDS_MAX: usize = 512;
/// Payload bytes from which on a tail ends its batch.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// How much of a segment is read at a time.
const CHUNK_BYTES: usize = 128 << 10;

/// A tail of the write-ahead log.
pub struct WalTail {
    shared: Arc<Shared>,
    shard: ShardId,
    next: u64,
}

impl WalTail {
    /// A tail of `shard` from `next` on.
    pub fn new(shared: Arc<Shared>, shard: ShardId, next: u64) -> WalTail {
        WalTail {
            shared,
            shard,
            next,
        }
    }
}

impl Tail for WalTail {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<LogRecord>, ReadError>> {
        async move {
            let number = self.shard.number();
            loop {
                let wake = self.shared.index().shard_mut(number).wake.clone();
                let mut woken = std::pin::pin!(wake.notified());
                woken.as_mut().enable();
                let has_failed = self.shared.has_failed();
                let found =
                    self.shared
                        .index()
                        .find(number, self.next, BATCH_RECORDS_MAX, BATCH_BYTES_MAX);
                if let Found::NotYet = found {
                    if has_failed {
                        return Err(ReadError::Unavailable("the log has failed".to_owned()));
                    }
                    woken.await;
                    continue;
                }
                let records = fetch(found, number, self.next).await?;
                self.next += records.len() as u64;
                return Ok(records);
            }
        }
        .boxed()
    }
}

/// The record at `position`.
pub async fn read_at(
    shared: Arc<Shared>,
    shard: ShardId,
    position: Position,
) -> Result<LogRecord, ReadError> {
    let number = shard.number();
    let found = shared.index().find(number, position.0, 1, 0);
    let records = fetch(found, number, position.0).await?;
    records
        .into_iter()
        .next()
        .ok_or_else(|| ReadError::Corrupt(format!("{shard} has no record {position}")))
}

async fn fetch(found: Found, number: u32, first: u64) -> Result<Vec<LogRecord>, ReadError> {
    match found {
        Found::Truncated(start) => Err(ReadError::Truncated {
            start: Position(start),
        }),
        Found::NotYet => Err(ReadError::Unavailable(format!(
            "nothing is durable at position {first} yet"
        ))),
        Found::Lost => Err(ReadError::Corrupt(format!(
            "the index has no place for position {first}"
        ))),
        Found::Recent(records) => Ok(records),
        Found::OnDisk(place) => tokio::task::spawn_blocking(move || read(&place, number, first))
            .await
            .unwrap_or_else(|error| Err(ReadError::Unavailable(error.to_string()))),
    }
}

/// Reads consecutive records of one shard from a segment, until the batch is full.
fn read(place: &OnDisk, number: u32, first: u64) -> Result<Vec<LogRecord>, ReadError> {
    let mut window = Window {
        place,
        bytes: Vec::new(),
        at: 0,
    };
    let ahead = if place.offsets.len() > 1 {
        CHUNK_BYTES
    } else {
        CHUNK_BYTES / 8
    };
    let mut records: Vec<LogRecord> = Vec::new();
    let mut batch_bytes = 0;
    for (position, offset) in (first..).zip(&place.offsets) {
        let corrupt = || {
            ReadError::Corrupt(format!(
                "{} at offset {offset}",
                segment_name(place.segment)
            ))
        };
        let head = window.read(*offset, FRAME_HEADER, ahead)?;
        let frame = Frame::decode(place.seed, head).ok_or_else(corrupt)?;
        if (frame.kind, frame.shard, frame.position) != (Kind::Record, number, position) {
            return Err(corrupt());
        }
        batch_bytes += frame.length as usize;
        if batch_bytes > BATCH_BYTES_MAX && !records.is_empty() {
            break;
        }
        let whole = window.read(*offset, frame.bytes(), ahead)?;
        // A copy, so that a small record does not keep the whole window in memory.
        let payload = Bytes::copy_from_slice(frame.payload(whole).ok_or_else(corrupt)?);
        let stamp = Stamp {
            position: Position(position),
            crc: frame.crc,
        };
        records.push(LogRecord { stamp, payload });
    }
    Ok(records)
}

/// The part of a segment read last.
struct Window<'a> {
    place: &'a OnDisk,
    bytes: Vec<u8>,
    at: u64,
}

impl Window<'_> {
    /// The `length` bytes at `offset`, fewer at the end; reads `ahead` bytes when it must read.
    fn read(&mut self, offset: u32, length: usize, ahead: usize) -> Result<&[u8], ReadError> {
        let offset = u64::from(offset);
        let inside = offset
            .checked_sub(self.at)
            .and_then(|skip| usize::try_from(skip).ok());
        if let Some(skip) = inside.filter(|skip| skip + length <= self.bytes.len()) {
            return Ok(&self.bytes[skip..skip + length]);
        }
        let left = usize::try_from(self.place.filled.saturating_sub(offset)).unwrap_or(usize::MAX);
        self.bytes.resize(length.max(ahead).min(left), 0);
        self.at = offset;
        let read = read_full_at(self.place.file.as_ref(), &mut self.bytes, offset);
        let read = read.map_err(|error| ReadError::Unavailable(error.to_string()))?;
        self.bytes.truncate(read);
        Ok(&self.bytes[..length.min(read)])
    }
}

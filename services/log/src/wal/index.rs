//! What the write-ahead log knows in memory: where each shard starts and ends, which segment holds which records, and the
//! newest records themselves.
//!
//! Memory: 4 bytes for each record in a segment its shard still needs (a segment of 64 MiB full of 200-byte records:
//! about 1.2 MB), the recent records up to `recent_bytes_max`, and about 100 bytes for each (shard, segment) pair.
//!
//! A segment is held by the shards that have a record in it at or above their start; held by none it is freed, whether
//! it is the oldest or not.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Notify;

use super::disk::DiskFile;
use crate::{Bounds, LogRecord, Pinned, Position, Stamp};

/// What a recent record costs beyond its payload.
const RECENT_OVERHEAD: u64 = 64;

/// The records of one shard in one segment, which are consecutive.
#[derive(Debug)]
pub struct Run {
    /// The segment.
    pub segment: u32,
    /// Position of the first.
    pub first: u64,
    /// Offset of each one's frame.
    pub offsets: Vec<u32>,
}

impl Run {
    /// One past the last position.
    pub fn end(&self) -> u64 {
        self.first + self.offsets.len() as u64
    }
}

/// What is known of one shard.
pub struct Shard {
    /// First position retained.
    pub start: u64,
    /// One past the last durable record.
    pub end: u64,
    /// Where its records are, oldest first.
    pub runs: VecDeque<Run>,
    /// The newest durable records, consecutive up to `end`.
    recent: VecDeque<LogRecord>,
    /// Woken when `end` or `start` moves, or the log fails.
    pub wake: Arc<Notify>,
}

impl Shard {
    /// A shard never written to.
    pub fn new() -> Shard {
        Shard {
            start: 1,
            end: 1,
            runs: VecDeque::new(),
            recent: VecDeque::new(),
            wake: Arc::new(Notify::new()),
        }
    }

    /// Notes where the record `position` lies; false when it does not follow the one before.
    pub fn place(&mut self, position: u64, segment: u32, offset: u32) -> bool {
        match self.runs.back_mut() {
            Some(run) if run.segment == segment && run.end() == position => {
                run.offsets.push(offset)
            }
            Some(run) if run.segment == segment || run.end() != position => return false,
            _ => self.runs.push_back(Run {
                segment,
                first: position,
                offsets: vec![offset],
            }),
        }
        self.end = position + 1;
        true
    }
}

/// What is known of one segment.
pub struct Segment {
    /// Its file.
    pub file: Arc<dyn DiskFile>,
    /// Seed of its frames.
    pub seed: u32,
    /// Bytes that frames fill.
    pub filled: u64,
    /// Bytes it takes on the disk.
    pub physical: u64,
    /// How many shards hold it.
    pub holders: u32,
}

/// Where to find a record that is not among the recent ones.
pub struct OnDisk {
    /// The segment's file.
    pub file: Arc<dyn DiskFile>,
    /// Its sequence, for messages.
    pub segment: u32,
    /// Seed of its frames.
    pub seed: u32,
    /// Bytes that frames fill.
    pub filled: u64,
    /// Offsets of the records wanted, consecutive positions.
    pub offsets: Vec<u32>,
}

/// The answer to "what comes at this position".
pub enum Found {
    /// It is below the start.
    Truncated(u64),
    /// Nothing is durable there yet.
    NotYet,
    /// These, from memory.
    Recent(Vec<LogRecord>),
    /// They are on the disk.
    OnDisk(OnDisk),
    /// The index has no place for a record it should have.
    Lost,
}

/// A durable record to publish.
pub struct Fresh {
    /// Shard number.
    pub shard: u32,
    /// Offset of its frame in the active segment.
    pub offset: u32,
    /// Position and checksum.
    pub stamp: Stamp,
    /// What was appended.
    pub payload: Bytes,
}

/// All of it. Only the committer changes it once the log is open.
pub struct Index {
    shards: BTreeMap<u32, Shard>,
    segments: BTreeMap<u32, Segment>,
    active: u32,
    recent_order: VecDeque<u32>,
    recent_bytes: u64,
    recent_bytes_max: u64,
    physical: u64,
}

impl Index {
    /// The index recovery found; `segments` come without holders.
    pub fn new(
        mut shards: BTreeMap<u32, Shard>,
        mut segments: BTreeMap<u32, Segment>,
        active: u32,
        recent_bytes_max: u64,
    ) -> Index {
        for shard in shards.values_mut() {
            while shard
                .runs
                .front()
                .is_some_and(|run| run.end() <= shard.start)
            {
                shard.runs.pop_front();
            }
            for run in &shard.runs {
                if let Some(segment) = segments.get_mut(&run.segment) {
                    segment.holders += 1;
                }
            }
        }
        let physical = segments.values().map(|segment| segment.physical).sum();
        let recent_order = VecDeque::new();
        Index {
            shards,
            segments,
            active,
            recent_order,
            recent_bytes: 0,
            recent_bytes_max,
            physical,
        }
    }

    /// Bytes all segments take on the disk.
    pub fn physical(&self) -> u64 {
        self.physical
    }

    /// Number, start and end of every shard.
    pub fn shards(&self) -> impl Iterator<Item = (u32, u64, u64)> + '_ {
        self.shards
            .iter()
            .map(|(number, shard)| (*number, shard.start, shard.end))
    }

    /// How many shards there are.
    pub fn shard_count(&self) -> usize {
        self.shards.len()
    }

    /// The shard, made when it is new.
    pub fn shard_mut(&mut self, number: u32) -> &mut Shard {
        self.shards.entry(number).or_insert_with(Shard::new)
    }

    /// True when the shard has been written to or followed.
    pub fn knows(&self, number: u32) -> bool {
        self.shards.contains_key(&number)
    }

    /// Everyone's wake, after a failure.
    pub fn wakes(&self) -> Vec<Arc<Notify>> {
        self.shards
            .values()
            .map(|shard| shard.wake.clone())
            .collect()
    }

    /// What is retained of a shard.
    pub fn bounds(&self, number: u32) -> Bounds {
        let (start, end) = self
            .shards
            .get(&number)
            .map_or((1, 1), |shard| (shard.start, shard.end));
        Bounds {
            start: Position(start),
            end: Position(end),
        }
    }

    /// Makes a durable record of the active segment known.
    pub fn publish(&mut self, fresh: Fresh) {
        let active = self.active;
        let shard = self.shards.entry(fresh.shard).or_insert_with(Shard::new);
        let new_run = shard.runs.back().is_none_or(|run| run.segment != active);
        shard.place(fresh.stamp.position.0, active, fresh.offset);
        if new_run && let Some(segment) = self.segments.get_mut(&active) {
            segment.holders += 1;
        }
        self.recent_bytes += fresh.payload.len() as u64 + RECENT_OVERHEAD;
        shard.recent.push_back(LogRecord {
            stamp: fresh.stamp,
            payload: fresh.payload,
        });
        self.recent_order.push_back(fresh.shard);
        while self.recent_bytes > self.recent_bytes_max {
            let Some(oldest) = self.recent_order.pop_front() else {
                break;
            };
            if let Some(record) = self
                .shards
                .get_mut(&oldest)
                .and_then(|shard| shard.recent.pop_front())
            {
                self.recent_bytes -= record.payload.len() as u64 + RECENT_OVERHEAD;
            }
        }
    }

    /// Moves a shard's start up.
    pub fn truncate(&mut self, number: u32, start: u64) {
        let Some(shard) = self.shards.get_mut(&number) else {
            return;
        };
        shard.start = shard.start.max(start.min(shard.end));
        while shard
            .runs
            .front()
            .is_some_and(|run| run.end() <= shard.start)
        {
            let Some(run) = shard.runs.pop_front() else {
                break;
            };
            if let Some(segment) = self.segments.get_mut(&run.segment) {
                segment.holders = segment.holders.saturating_sub(1);
            }
        }
    }

    /// Notes how far frames fill the active segment.
    pub fn set_filled(&mut self, filled: u64) {
        if let Some(segment) = self.segments.get_mut(&self.active) {
            segment.filled = filled;
            self.physical += filled.saturating_sub(segment.physical);
            segment.physical = segment.physical.max(filled);
        }
    }

    /// Makes `segment` the active one; the one before keeps only the bytes it fills.
    pub fn roll(&mut self, sequence: u32, segment: Segment) {
        if let Some(sealed) = self.segments.get_mut(&self.active) {
            self.physical = self.physical - sealed.physical + sealed.filled;
            sealed.physical = sealed.filled;
        }
        self.physical += segment.physical;
        self.segments.insert(sequence, segment);
        self.active = sequence;
    }

    /// Forgets the segments nobody holds and names them, to be removed.
    pub fn free(&mut self) -> Vec<u32> {
        let free = |(sequence, segment): (&u32, &Segment)| {
            (*sequence != self.active && segment.holders == 0).then_some(*sequence)
        };
        let freed: Vec<u32> = self.segments.iter().filter_map(free).collect();
        for sequence in &freed {
            if let Some(segment) = self.segments.remove(sequence) {
                self.physical -= segment.physical;
            }
        }
        freed
    }

    /// What a shard holds, and whether it must let go given that the log counts as filling up from `pressed_at` bytes on.
    pub fn pinned(&self, number: u32, pressed_at: u64) -> Pinned {
        let Some(shard) = self.shards.get(&number) else {
            return Pinned::default();
        };
        let held = |run: &Run| {
            self.segments
                .get(&run.segment)
                .map_or(0, |segment| segment.filled)
        };
        let bytes = shard.runs.iter().map(held).sum();
        let Some(oldest) = shard.runs.front().map(|run| run.segment) else {
            return Pinned {
                bytes,
                ..Pinned::default()
            };
        };
        // Pressed are the holders of the oldest quarter, and whoever holds a quarter of everything.
        let quarter = self.segments.len().div_ceil(4);
        let among_oldest = self
            .segments
            .keys()
            .take(quarter)
            .any(|sequence| *sequence >= oldest);
        let pressed = self.physical >= pressed_at && (among_oldest || bytes >= self.physical / 4);
        Pinned {
            bytes,
            pressed,
            tight: false,
        }
    }

    /// The records of a shard from `position` on, as many as the limits allow and one place holds, at least one.
    pub fn find(&self, number: u32, position: u64, records_max: usize, bytes_max: usize) -> Found {
        let Some(shard) = self.shards.get(&number) else {
            return Found::NotYet;
        };
        if position < shard.start {
            return Found::Truncated(shard.start);
        }
        if position >= shard.end {
            return Found::NotYet;
        }
        if let Some(front) = shard.recent.front()
            && let Some(skip) = position.checked_sub(front.stamp.position.0)
        {
            let mut bytes = 0;
            let mut records = Vec::new();
            for record in shard
                .recent
                .iter()
                .skip(usize::try_from(skip).unwrap_or(usize::MAX))
            {
                bytes += record.payload.len();
                if !records.is_empty() && (bytes > bytes_max || records.len() >= records_max) {
                    break;
                }
                records.push(record.clone());
            }
            return if records.is_empty() {
                Found::Lost
            } else {
                Found::Recent(records)
            };
        }
        let after = shard.runs.partition_point(|run| run.first <= position);
        let Some(run) = after.checked_sub(1).and_then(|at| shard.runs.get(at)) else {
            return Found::Lost;
        };
        let skip = usize::try_from(position - run.first).unwrap_or(usize::MAX);
        let offsets: Vec<u32> = run
            .offsets
            .iter()
            .skip(skip)
            .take(records_max)
            .copied()
            .collect();
        let Some(segment) = self
            .segments
            .get(&run.segment)
            .filter(|_| !offsets.is_empty())
        else {
            return Found::Lost;
        };
        let (file, seed, filled) = (segment.file.clone(), segment.seed, segment.filled);
        Found::OnDisk(OnDisk {
            file,
            segment: run.segment,
            seed,
            filled,
            offsets,
        })
    }
}

//! Opening a write-ahead log: reading what a crash left, and making it durable before anyone sees it.
//!
//! After a kill the page cache may still show records that no sync has covered and that a later power cut would take
//! away; after a failed sync it may even claim they are clean. So nothing of the last segment is believed to be on the
//! disk: what survives of it is written anew to a fresh segment, which is synced under a temporary name, renamed, and
//! its name synced, and only then is the log served. The fresh segment says in its header which ones it replaces; a
//! crash in between leaves both or one, and either reads the same.
//!
//! Refused: a bad frame in any segment but the last, a bad frame in the last one that had been durable
//! ([`frame::was_durable`]), a hole in the retained positions of a shard, a foreign incarnation.

use std::collections::BTreeMap;

use super::disk::{Disk, read_full_at};
use super::frame::{self, BadHeader, FRAME_HEADER, Frame, Kind, SEGMENT_HEADER, SegmentHeader};
use super::index::{Index, Segment, Shard};
use super::segment::{Active, Room, TEMPORARY, keep_spare, prepare, segment_name, sequence_of};
use super::{OpenError, WalOptions};

/// What opening yields.
pub struct Recovered {
    /// The log's incarnation.
    pub incarnation: u64,
    /// What it holds.
    pub index: Index,
    /// Where to append.
    pub active: Active,
}

/// Opens the log on `disk`, or makes it.
pub fn recover(disk: &dyn Disk, options: &WalOptions) -> Result<Recovered, OpenError> {
    let io = |what: &'static str| move |source| OpenError::Io { what, source };
    let names = disk.list().map_err(io("list the log directory"))?;
    if names.iter().any(|name| name == TEMPORARY) {
        disk.remove(TEMPORARY)
            .map_err(io("remove an unfinished segment"))?;
    }
    let mut present: Vec<u32> = names.iter().filter_map(|name| sequence_of(name)).collect();
    present.sort_unstable();
    let Some(last) = present.last().copied() else {
        let created = create(disk, options)?;
        keep_spare(disk, options.segment_bytes).map_err(io("make the spare segment"))?;
        return Ok(created);
    };

    let mut scan = Scan::default();
    let (header, _) = read_header(disk, last)?;
    let (kept, replaced): (Vec<u32>, Vec<u32>) = present
        .iter()
        .partition(|sequence| **sequence == last || u64::from(**sequence) < header.replaces_from);
    let mut bytes = Vec::new();
    for sequence in kept {
        scan.segment(
            disk,
            sequence,
            header.incarnation,
            sequence == last,
            &mut bytes,
        )?;
    }
    scan.check_dense()?;
    let oldest_dropped = replaced.first().copied().unwrap_or(last);
    let recovered = rewrite(
        disk,
        options,
        header.incarnation,
        scan,
        last,
        oldest_dropped,
        &bytes,
    )?;
    for sequence in replaced.into_iter().chain([last]) {
        disk.remove(&segment_name(sequence))
            .map_err(io("remove a replaced segment"))?;
    }
    disk.sync_names().map_err(io("sync the log directory"))?;
    keep_spare(disk, options.segment_bytes).map_err(io("make the spare segment"))?;
    Ok(recovered)
}

fn create(disk: &dyn Disk, options: &WalOptions) -> Result<Recovered, OpenError> {
    let header = SegmentHeader {
        incarnation: options.incarnation,
        sequence: 1,
        replaces_from: 1,
    };
    let fresh = prepare(disk, &header, options.segment_bytes, Room::Free, |_, _| {})
        .and_then(|fresh| fresh.install(disk))
        .map_err(|source| OpenError::Io {
            what: "make the first segment",
            source,
        })?;
    let (active, segment) = fresh;
    let index = Index::new(
        BTreeMap::new(),
        BTreeMap::from([(1, segment)]),
        1,
        options.recent_bytes_max,
    );
    Ok(Recovered {
        incarnation: options.incarnation,
        index,
        active,
    })
}

/// What reading the segments has found so far.
#[derive(Default)]
struct Scan {
    shards: BTreeMap<u32, Shard>,
    segments: BTreeMap<u32, Segment>,
    /// Position and offset of the records of the last segment, in file order.
    tail: Vec<(u32, u64, u32)>,
    /// Seed of the last segment.
    tail_seed: u32,
}

impl Scan {
    /// Reads one segment; `bytes` holds its content afterwards.
    fn segment(
        &mut self,
        disk: &dyn Disk,
        sequence: u32,
        incarnation: u64,
        last: bool,
        bytes: &mut Vec<u8>,
    ) -> Result<(), OpenError> {
        let name = segment_name(sequence);
        let io = |source| OpenError::Io {
            what: "read a segment",
            source,
        };
        let corrupt = |offset: usize, what| OpenError::Corrupt {
            file: name.clone(),
            offset: offset as u64,
            what,
        };
        let file = disk.open(&name).map_err(io)?;
        let length = file.length().map_err(io)?;
        bytes.resize(
            usize::try_from(length).map_err(|_| corrupt(0, "segment is too long"))?,
            0,
        );
        let read = read_full_at(file.as_ref(), bytes, 0).map_err(io)?;
        bytes.truncate(read);
        let (header, seed) = header_of(&name, sequence, bytes)?;
        if header.incarnation != incarnation {
            return Err(corrupt(0, "segment is of another log"));
        }
        let mut offset = SEGMENT_HEADER;
        let mut sealed = false;
        while !sealed {
            let at = bytes.get(offset..).unwrap_or_default();
            let whole = Frame::decode(seed, at).and_then(|frame| Some((frame, frame.payload(at)?)));
            let Some((frame, payload)) = whole else { break };
            match frame.kind {
                Kind::Seal => sealed = true,
                Kind::Bounds => self
                    .bounds(frame.shard, payload, frame.position)
                    .map_err(|what| corrupt(offset, what))?,
                Kind::Record => {
                    let place = u32::try_from(offset)
                        .map_err(|_| corrupt(offset, "segment is too long"))?;
                    self.record(frame.shard, frame.position, sequence, place)
                        .map_err(|what| corrupt(offset, what))?;
                    if last {
                        self.tail.push((frame.shard, frame.position, place));
                    }
                }
            }
            offset += frame.bytes();
        }
        if !sealed && !last {
            return Err(corrupt(
                offset,
                "bad frame in a segment that is not the last",
            ));
        }
        if !sealed && frame::was_durable(seed, bytes, offset) {
            return Err(corrupt(offset, "bad frame that had been durable"));
        }
        if last {
            self.tail_seed = seed;
        } else {
            let filled = offset as u64;
            self.segments.insert(
                sequence,
                Segment {
                    file,
                    seed,
                    filled,
                    physical: length,
                    holders: 0,
                },
            );
        }
        Ok(())
    }

    fn bounds(&mut self, number: u32, payload: &[u8], end: u64) -> Result<(), &'static str> {
        if payload.len() != 8 || end == 0 {
            return Err("malformed bounds");
        }
        let start = frame::u64_at(payload, 0);
        let shard = self.shards.entry(number).or_insert_with(Shard::new);
        if end < shard.end || start > end {
            return Err("bounds go backwards");
        }
        if end > shard.end {
            // The records in between were freed with their segments; whether they might be is seen at the end.
            shard.runs.clear();
            shard.end = end;
        }
        shard.start = shard.start.max(start);
        Ok(())
    }

    fn record(
        &mut self,
        number: u32,
        position: u64,
        segment: u32,
        offset: u32,
    ) -> Result<(), &'static str> {
        let shard = self.shards.entry(number).or_insert_with(Shard::new);
        if position < shard.end {
            return Err("record repeats a position");
        }
        if position > shard.end {
            shard.runs.clear();
        }
        if shard.place(position, segment, offset) {
            Ok(())
        } else {
            Err("record is out of order")
        }
    }

    /// Every retained position must have its record.
    fn check_dense(&self) -> Result<(), OpenError> {
        for (number, shard) in &self.shards {
            let first = shard.runs.front().map_or(shard.end, |run| run.first);
            if first > shard.start {
                return Err(OpenError::Missing {
                    shard: *number,
                    from: shard.start,
                    to: first,
                });
            }
        }
        Ok(())
    }
}

/// Writes what survives of the last segment into a new one and makes it the active one.
fn rewrite(
    disk: &dyn Disk,
    options: &WalOptions,
    incarnation: u64,
    mut scan: Scan,
    last: u32,
    replaces_from: u32,
    bytes: &[u8],
) -> Result<Recovered, OpenError> {
    let header = SegmentHeader {
        incarnation,
        sequence: u64::from(last) + 1,
        replaces_from: u64::from(replaces_from),
    };
    let live = |number: u32, position: u64| {
        scan.shards
            .get(&number)
            .is_some_and(|shard| position >= shard.start)
    };
    let tail: Vec<(u32, u64, u32)> = scan
        .tail
        .iter()
        .copied()
        .filter(|(number, position, _)| live(*number, *position))
        .collect();
    let mut ends: BTreeMap<u32, u64> = scan
        .shards
        .iter()
        .map(|(number, shard)| (*number, shard.end))
        .collect();
    for (number, position, _) in tail.iter().rev() {
        ends.insert(*number, *position);
    }
    let mut places = Vec::with_capacity(tail.len());
    let head = |places: &mut Vec<(u32, u64, u32)>, seed: u32, buffer: &mut Vec<u8>| {
        for (number, shard) in &scan.shards {
            let end = ends.get(number).copied().unwrap_or(shard.end);
            frame::encode_bounds(seed, *number, shard.start, end, 0, buffer);
        }
        places.clear();
        for (number, position, offset) in &tail {
            let at = bytes.get(*offset as usize..).unwrap_or_default();
            let Some(old) = Frame::decode(scan.tail_seed, at) else {
                continue;
            };
            let payload = at
                .get(FRAME_HEADER..FRAME_HEADER + old.length as usize)
                .unwrap_or_default();
            places.push((*number, *position, buffer.len() as u32));
            Frame { synced: 0, ..old }.encode(seed, payload, buffer);
        }
    };
    let prepared = prepare(
        disk,
        &header,
        options.segment_bytes,
        Room::Spare,
        |seed, buffer| head(&mut places, seed, buffer),
    );
    let (active, segment) = prepared
        .and_then(|prepared| prepared.install(disk))
        .map_err(|source| OpenError::Io {
            what: "rewrite the last segment",
            source,
        })?;
    for shard in scan.shards.values_mut() {
        let start = shard.start;
        shard
            .runs
            .retain(|run| run.segment != last && run.end() > start);
    }
    for (number, position, place) in places {
        if let Some(shard) = scan.shards.get_mut(&number) {
            shard.place(position, active.sequence, place);
        }
    }
    scan.segments.insert(active.sequence, segment);
    let index = Index::new(
        scan.shards,
        scan.segments,
        active.sequence,
        options.recent_bytes_max,
    );
    Ok(Recovered {
        incarnation,
        index,
        active,
    })
}

fn read_header(disk: &dyn Disk, sequence: u32) -> Result<(SegmentHeader, u32), OpenError> {
    let name = segment_name(sequence);
    let io = |source| OpenError::Io {
        what: "read a segment",
        source,
    };
    let file = disk.open(&name).map_err(io)?;
    let mut bytes = [0; SEGMENT_HEADER];
    let read = read_full_at(file.as_ref(), &mut bytes, 0).map_err(io)?;
    header_of(&name, sequence, &bytes[..read])
}

fn header_of(name: &str, sequence: u32, bytes: &[u8]) -> Result<(SegmentHeader, u32), OpenError> {
    match SegmentHeader::decode(bytes) {
        Ok((header, seed)) if header.sequence == u64::from(sequence) => Ok((header, seed)),
        Err(BadHeader::Version(version)) => Err(OpenError::Version {
            file: name.to_owned(),
            version,
        }),
        Ok(_) | Err(BadHeader::Damaged) => Err(OpenError::Corrupt {
            file: name.to_owned(),
            offset: 0,
            what: "bad segment header",
        }),
    }
}

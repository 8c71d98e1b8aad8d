//! Where the records of the write-ahead log are, at every limit: a truncation in, before and after each record, memory and
//! disk, the ends of segments.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hikyaku_log::wal::{Wal, WalOptions};
use hikyaku_log::{Bounds, Class, Log, Position, ReadError, ShardId};

use crate::crash::options;
use crate::memory_disk::MemoryDisk;

const SHARD: ShardId = ShardId::new(Class::Incoming, 0);
/// Has one record, in the second segment.
const OTHER: ShardId = ShardId::new(Class::Mbox, 1);
const RECORDS: u64 = 60;

fn payload(number: u64) -> Bytes {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.resize(1000 + (number * 37 % 90) as usize, number as u8);
    Bytes::from(bytes)
}

fn open(disk: &MemoryDisk, recent_bytes_max: u64) -> Wal {
    let options = WalOptions {
        recent_bytes_max,
        ..options()
    };
    Wal::open_on(Arc::new(disk.clone()), options).unwrap()
}

fn segments(disk: &MemoryDisk) -> BTreeSet<String> {
    let names = disk.files().into_keys();
    names.filter(|name| name.ends_with(".wal")).collect()
}

/// A log of several segments, and the segment of each record of [`SHARD`].
async fn filled(disk: &MemoryDisk, recent_bytes_max: u64) -> (Wal, Vec<String>) {
    let wal = open(disk, recent_bytes_max);
    let mut places = Vec::new();
    for number in 1..=RECORDS {
        wal.append(SHARD, payload(number)).await.unwrap();
        let all = segments(disk);
        if all.len() == 2 && wal.bounds(OTHER).end == Position(1) {
            wal.append(OTHER, payload(0)).await.unwrap();
        }
        places.extend(all.last().cloned());
    }
    assert!(segments(disk).len() > 3);
    (wal, places)
}

/// Waits until these segments are left: a free one goes after the truncation was answered.
async fn until_segments(disk: &MemoryDisk, expected: &BTreeSet<String>, context: &str) {
    let mut left = segments(disk);
    for _ in 0..5_000 {
        if left == *expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
        left = segments(disk);
    }
    assert_eq!(left, *expected, "{context}");
}

/// Exactly the records from `start` on are there, one by one and in a row.
async fn holds(wal: &Wal, start: u64, context: &str) {
    let (first, end) = (Position(start), Position(RECORDS + 1));
    let expected = Bounds { start: first, end };
    assert_eq!(wal.bounds(SHARD), expected, "{context}");
    for number in 1..=RECORDS {
        let read = wal.read_at(SHARD, Position(number)).await;
        if number < start {
            let truncated = ReadError::Truncated { start: first };
            assert_eq!(read, Err(truncated), "{context}: {number}");
        } else {
            let record = read.unwrap_or_else(|error| panic!("{context}: {number}: {error}"));
            assert_eq!(record.payload, payload(number), "{context}: {number}");
        }
    }
    assert!(wal.read_at(SHARD, end).await.is_err(), "{context}");
    if start <= RECORDS {
        let mut tail = wal.tail(SHARD, first).unwrap();
        let mut next = start;
        while next <= RECORDS {
            for record in tail.next().await.unwrap() {
                assert_eq!(record.stamp.position, Position(next), "{context}");
                assert_eq!(record.payload, payload(next), "{context}: {next}");
                next += 1;
            }
        }
    }
    let other = wal.read_at(OTHER, Position(1)).await.unwrap();
    assert_eq!(other.payload, payload(0), "{context}");
}

#[tokio::test]
async fn every_truncation_keeps_its_record_and_frees_what_lies_below() {
    for recent_bytes_max in [0, 8 << 10, 1 << 20] {
        let disk = MemoryDisk::default();
        let (wal, places) = filled(&disk, recent_bytes_max).await;
        let second = segments(&disk).into_iter().nth(1).unwrap();
        for start in 1..=RECORDS + 1 {
            let context = format!("cut at {start}, {recent_bytes_max} bytes in memory");
            wal.truncate(SHARD, Position(start)).await.unwrap();
            holds(&wal, start, &context).await;
            let mut held: BTreeSet<String> = places[start as usize - 1..].iter().cloned().collect();
            held.insert(second.clone());
            held.extend(places.last().cloned());
            until_segments(&disk, &held, &context).await;
            let again_on = disk.copy();
            let again = open(&again_on, recent_bytes_max);
            let context = format!("{context}, opened again");
            holds(&again, start, &context).await;
            assert_eq!(segments(&again_on).len(), held.len(), "{context}");
        }
    }
}

#[tokio::test]
async fn only_the_newest_records_are_kept_in_memory() {
    let disk = MemoryDisk::default();
    let (wal, places) = filled(&disk, 8 << 10).await;
    for segment in segments(&disk) {
        let length = disk.files()[&segment].len();
        // no record is shorter, so that each is hit
        for at in (0..length).step_by(500) {
            disk.damage(&segment, at);
        }
    }
    let mut kept = 0;
    for number in 1..=RECORDS {
        match wal.read_at(SHARD, Position(number)).await {
            Ok(record) => {
                assert_eq!(record.payload, payload(number));
                kept += 1;
            }
            Err(ReadError::Corrupt(text)) => {
                assert_eq!(kept, 0, "{number} is older than one that is kept");
                assert!(text.contains(&places[number as usize - 1]), "{text}");
            }
            other => panic!("{number}: {other:?}"),
        }
    }
    assert!((4..=8).contains(&kept), "{kept} records of 8 KiB are kept");
    // a tail that begins on the disk does not go around it by way of memory
    let mut tail = wal.tail(SHARD, Position(RECORDS - kept)).unwrap();
    assert!(matches!(tail.next().await, Err(ReadError::Corrupt(_))));
    let mut tail = wal.tail(SHARD, Position(RECORDS - kept + 1)).unwrap();
    assert_eq!(tail.next().await.unwrap().len() as u64, kept);
}

#[tokio::test]
async fn no_segment_outgrows_its_size_whatever_fills_it() {
    let segment_bytes = options().segment_bytes as usize;
    for length in (0..4_096).step_by(61) {
        let disk = MemoryDisk::default();
        let wal = open(&disk, 0);
        let record = Bytes::from(vec![7; length]);
        let fits = |context: &str| {
            for (name, content) in disk.files() {
                let size = content.len();
                assert!(size <= segment_bytes, "{context}: {name} has {size} bytes");
            }
        };
        let mut count = 0;
        while segments(&disk).len() < 3 {
            wal.append(SHARD, record.clone()).await.unwrap();
            count += 1;
        }
        fits(&format!("records of {length}"));
        // truncations may use what appends leave, and no more; the held record keeps the segments
        wal.append(OTHER, record.clone()).await.unwrap();
        for start in 2..=count {
            wal.truncate(SHARD, Position(start)).await.unwrap();
        }
        fits(&format!("records of {length}, and truncations"));
        drop(wal);
        let wal = open(&disk, 0);
        let bounds = wal.bounds(SHARD);
        assert_eq!((bounds.start.0, bounds.end.0), (count, count + 1));
        assert_eq!(
            wal.read_at(SHARD, Position(count)).await.unwrap().payload,
            record
        );
    }
}

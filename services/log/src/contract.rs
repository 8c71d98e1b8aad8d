//! What every log must do, as one suite that each implementation runs: [`all`].
//!
//! A [`Place`] is where a log lives: it opens the log again and again over the same storage, and starts over empty.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test suite: it fails by panicking"
)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::join_all;

use crate::{AppendError, Bounds, Class, Log, LogRecord, Position, ReadError, ShardId, Tail};

/// Where a log lives.
pub trait Place {
    /// The log on what is stored there. Every log opened before has been dropped.
    fn open(&mut self) -> Arc<dyn Log>;

    /// Forgets what is stored.
    fn clear(&mut self);

    /// The largest payload the log takes.
    fn record_bytes_max(&self) -> usize;
}

const A: ShardId = ShardId::new(Class::Incoming, 0);
const B: ShardId = ShardId::new(Class::Mbox, 3);

/// Runs every test, each on an empty log.
pub async fn all(place: &mut impl Place) {
    positions_are_dense_and_kept(place).await;
    place.clear();
    tail_follows(place).await;
    place.clear();
    tail_is_cancel_safe_and_bounded(place).await;
    place.clear();
    truncation_forgets_a_prefix(place).await;
    place.clear();
    emptied_shard_keeps_its_end(place).await;
    place.clear();
    shards_do_not_disturb_each_other(place).await;
    place.clear();
    dropped_append_still_happens(place).await;
    place.clear();
    too_large_is_refused(place).await;
    place.clear();
    concurrent_appends_get_positions_of_their_own(place).await;
    place.clear();
}

fn payload(number: usize) -> Bytes {
    Bytes::from(format!("record {number} {}", "x".repeat(number % 300)))
}

fn bounds(start: u64, end: u64) -> Bounds {
    Bounds {
        start: Position(start),
        end: Position(end),
    }
}

async fn append(log: &Arc<dyn Log>, shard: ShardId, numbers: std::ops::Range<usize>) {
    for number in numbers {
        log.append(shard, payload(number)).await.unwrap();
    }
}

/// The next `count` records, however they are batched.
async fn take(tail: &mut Box<dyn Tail>, count: usize) -> Vec<LogRecord> {
    let mut records = Vec::new();
    while records.len() < count {
        let batch = tokio::time::timeout(Duration::from_secs(60), tail.next())
            .await
            .unwrap()
            .unwrap();
        assert!(!batch.is_empty(), "a tail yields at least one record");
        records.extend(batch);
    }
    assert_eq!(records.len(), count);
    records
}

fn check(records: &[LogRecord], first: u64, numbers: std::ops::Range<usize>) {
    assert_eq!(records.len(), numbers.len());
    for (record, (position, number)) in records.iter().zip((first..).zip(numbers)) {
        assert_eq!(record.stamp.position, Position(position));
        assert_eq!(record.payload, payload(number));
        assert_eq!(record.stamp.crc, crc32c::crc32c(&record.payload));
    }
}

async fn positions_are_dense_and_kept(place: &mut impl Place) {
    let mut log = place.open();
    let incarnation = log.incarnation();
    assert_eq!(log.bounds(A), bounds(1, 1));
    for round in 0..4 {
        for number in round * 50..round * 50 + 50 {
            let stamp = log.append(A, payload(number)).await.unwrap();
            assert_eq!(stamp.position, Position(number as u64 + 1));
            assert_eq!(stamp.crc, crc32c::crc32c(&payload(number)));
            assert_eq!(
                log.bounds(A),
                bounds(1, number as u64 + 2),
                "known as soon as it is acknowledged"
            );
        }
        drop(log);
        log = place.open();
        assert_eq!(log.incarnation(), incarnation);
        assert_eq!(log.bounds(A), bounds(1, round as u64 * 50 + 51));
        let mut tail = log.tail(A, Position(1)).unwrap();
        check(
            &take(&mut tail, round * 50 + 50).await,
            1,
            0..round * 50 + 50,
        );
    }
    for number in [0, 99, 199] {
        let record = log.read_at(A, Position(number as u64 + 1)).await.unwrap();
        check(&[record], number as u64 + 1, number..number + 1);
    }
    assert!(matches!(
        log.read_at(A, Position(201)).await,
        Err(ReadError::Unavailable(_))
    ));
    let empty = log.append(A, Bytes::new()).await.unwrap();
    assert_eq!(
        log.read_at(A, empty.position).await.unwrap().payload,
        Bytes::new()
    );
}

async fn tail_follows(place: &mut impl Place) {
    let log = place.open();
    let mut early = log.tail(A, Position(1)).unwrap();
    assert!(
        early.next().now_or_never().is_none(),
        "waits for the first record"
    );
    append(&log, A, 0..20).await;
    check(&take(&mut early, 20).await, 1, 0..20);
    let mut middle = log.tail(A, Position(11)).unwrap();
    check(&take(&mut middle, 10).await, 11, 10..20);
    let mut ahead = log.tail(A, Position(23)).unwrap();
    let writer = append(&log, A, 20..25);
    let reader = take(&mut middle, 5);
    let (_, records, later) = tokio::join!(writer, reader, take(&mut ahead, 3));
    check(&records, 21, 20..25);
    check(&later, 23, 22..25);
}

async fn tail_is_cancel_safe_and_bounded(place: &mut impl Place) {
    let mut log = place.open();
    append(&log, A, 0..1500).await;
    drop(log);
    log = place.open();
    let mut tail = log.tail(A, Position(1)).unwrap();
    let mut records = Vec::new();
    let mut turn = 0;
    while records.len() < 1500 {
        turn += 1;
        // Every other call is dropped after a first poll.
        let polled = if turn % 2 == 0 {
            tail.next().now_or_never()
        } else {
            Some(tail.next().await)
        };
        if let Some(batch) = polled {
            let batch = batch.unwrap();
            assert!(batch.len() < 1500, "a batch is bounded");
            records.extend(batch);
        }
    }
    check(&records, 1, 0..1500);
    for _ in 0..3 {
        assert!(tail.next().now_or_never().is_none());
    }
    append(&log, A, 1500..1501).await;
    check(&take(&mut tail, 1).await, 1501, 1500..1501);
}

async fn truncation_forgets_a_prefix(place: &mut impl Place) {
    let mut log = place.open();
    append(&log, A, 0..30).await;
    let mut behind = log.tail(A, Position(1)).unwrap();
    log.truncate(A, Position(11)).await.unwrap();
    let truncated = ReadError::Truncated {
        start: Position(11),
    };
    assert_eq!(
        behind.next().await.err(),
        Some(truncated.clone()),
        "a tail that was left behind hears of it"
    );
    drop(behind);
    for _ in 0..3 {
        assert_eq!(log.bounds(A), bounds(11, 31));
        assert_eq!(log.tail(A, Position(10)).err(), Some(truncated.clone()));
        assert_eq!(
            log.read_at(A, Position(10)).await.err(),
            Some(truncated.clone())
        );
        let mut tail = log.tail(A, Position(11)).unwrap();
        check(&take(&mut tail, 20).await, 11, 10..30);
        log.truncate(A, Position(5)).await.unwrap();
        drop(tail);
        drop(log);
        log = place.open();
    }
}

async fn emptied_shard_keeps_its_end(place: &mut impl Place) {
    let mut log = place.open();
    append(&log, A, 0..10).await;
    append(&log, B, 0..1).await;
    log.truncate(A, Position(99)).await.unwrap();
    assert_eq!(
        log.bounds(A),
        bounds(11, 11),
        "nothing is forgotten that was not there"
    );
    for _ in 0..3 {
        drop(log);
        log = place.open();
        assert_eq!(log.bounds(A), bounds(11, 11));
        assert_eq!(log.bounds(B), bounds(1, 2));
    }
    let stamp = log.append(A, payload(10)).await.unwrap();
    assert_eq!(
        stamp.position,
        Position(11),
        "a position is never given twice"
    );
    drop(log);
    log = place.open();
    assert_eq!(log.bounds(A), bounds(11, 12));
    let mut tail = log.tail(A, Position(11)).unwrap();
    check(&take(&mut tail, 1).await, 11, 10..11);
}

async fn shards_do_not_disturb_each_other(place: &mut impl Place) {
    let shards: Vec<ShardId> = (0..8)
        .map(|index| ShardId::new(Class::Mbox, index))
        .collect();
    let mut log = place.open();
    join_all(shards.iter().map(|shard| append(&log, *shard, 0..40))).await;
    log.truncate(ShardId::new(Class::Mbox, 2), Position(31))
        .await
        .unwrap();
    for _ in 0..2 {
        for shard in &shards {
            let first = if shard.index == 2 { 31 } else { 1 };
            assert_eq!(log.bounds(*shard), bounds(first, 41));
            let mut tail = log.tail(*shard, Position(first)).unwrap();
            check(
                &take(&mut tail, 41 - first as usize).await,
                first,
                first as usize - 1..40,
            );
        }
        assert_eq!(log.bounds(A), bounds(1, 1));
        drop(log);
        log = place.open();
    }
}

async fn dropped_append_still_happens(place: &mut impl Place) {
    let log = place.open();
    // Not even polled, and polled once.
    drop(log.append(A, payload(0)));
    assert!(
        log.append(A, payload(1))
            .now_or_never()
            .is_none_or(|outcome| outcome.is_ok())
    );
    let mut tail = log.tail(A, Position(1)).unwrap();
    check(&take(&mut tail, 2).await, 1, 0..2);
}

async fn too_large_is_refused(place: &mut impl Place) {
    let log = place.open();
    let largest = Bytes::from(vec![7; place.record_bytes_max()]);
    log.append(A, largest.clone()).await.unwrap();
    let larger = Bytes::from(vec![7; place.record_bytes_max() + 1]);
    assert_eq!(log.append(A, larger).await, Err(AppendError::TooLarge));
    assert_eq!(log.bounds(A), bounds(1, 2));
    assert_eq!(log.read_at(A, Position(1)).await.unwrap().payload, largest);
}

async fn concurrent_appends_get_positions_of_their_own(place: &mut impl Place) {
    let log = place.open();
    let stamps = join_all((0..200).map(|number| log.append(A, payload(number)))).await;
    let mut seen = BTreeSet::new();
    for (number, stamp) in stamps.into_iter().enumerate() {
        let stamp = stamp.unwrap();
        assert!(seen.insert(stamp.position));
        let record = log.read_at(A, stamp.position).await.unwrap();
        assert_eq!((record.stamp, record.payload), (stamp, payload(number)));
    }
    assert_eq!(log.bounds(A), bounds(1, 201));
}

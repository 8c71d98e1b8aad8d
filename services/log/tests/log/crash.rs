//! Every crash of the write-ahead log: a recorded workload is cut after each of its disk operations, the pending part
//! survives in many ways, and what opens must hold. Then again during recovery, and once more after it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use hikyaku_log::wal::{OpenError, Wal, WalOptions};
use hikyaku_log::{Class, Log, LogRecord, Position, ShardId};

use crate::memory_disk::{MemoryDisk, Op, SECTOR, Survives, draw};

const SHARDS: [ShardId; 3] = [
    ShardId::new(Class::Incoming, 0),
    ShardId::new(Class::Home, 0),
    ShardId::new(Class::Mbox, 5),
];

pub fn options() -> WalOptions {
    WalOptions {
        segment_bytes: 16 << 10,
        wal_bytes_max: 4 << 20,
        record_bytes_max: 4 << 10,
        recent_bytes_max: 8 << 10,
        shards_max: 8,
        ..WalOptions::new(0xfeed)
    }
}

/// The payload of the record at `position` of `shard`; it says which it is.
fn payload(shard: ShardId, position: u64) -> Bytes {
    let mut random = u64::from(shard.number()) << 32 | position;
    let length = draw(&mut random, 2500);
    let mut text = format!("{shard} {position} ").into_bytes();
    text.resize(text.len() + length, b'a' + (position % 26) as u8);
    Bytes::from(text)
}

/// What has been promised or asked for at some moment.
#[derive(Clone, Debug, Default)]
struct Promise {
    /// Of each shard: start acknowledged, start asked for, end acknowledged, end asked for.
    shards: BTreeMap<ShardId, (u64, u64, u64, u64)>,
}

impl Promise {
    fn of(&mut self, shard: ShardId) -> &mut (u64, u64, u64, u64) {
        self.shards.entry(shard).or_insert((1, 1, 1, 1))
    }
}

/// The recorded workload: every disk operation, and what was promised after how many of them.
struct Recording {
    log: Vec<Op>,
    promises: Vec<(usize, Promise)>,
}

impl Recording {
    /// What the user knew for certain when `changes` had been done, and the most it had asked for.
    fn promise_at(&self, changes: usize) -> Promise {
        let known = self
            .promises
            .iter()
            .rev()
            .find(|(at, _)| *at <= changes)
            .map(|(_, promise)| promise);
        let mut promise = known.cloned().unwrap_or_default();
        let asked = self
            .promises
            .iter()
            .find(|(at, _)| *at > changes)
            .map_or(&promise, |(_, promise)| promise)
            .clone();
        for (shard, (_, start, _, end)) in asked.shards {
            let held = promise.of(shard);
            held.1 = held.1.max(start);
            held.3 = held.3.max(end);
        }
        promise
    }
}

async fn record(rounds: usize) -> Recording {
    let disk = MemoryDisk::default();
    let wal = Wal::open_on(Arc::new(disk.clone()), options()).unwrap();
    let mut promises = vec![(0, Promise::default())];
    let mut promise = Promise::default();
    let mut random = 42;
    for round in 0..rounds {
        let mut appends = Vec::new();
        for _ in 0..1 + draw(&mut random, 4) {
            let shard = SHARDS[draw(&mut random, SHARDS.len())];
            let end = &mut promise.of(shard).3;
            appends.push(wal.append(shard, payload(shard, *end)));
            *end += 1;
        }
        for outcome in join_all(appends).await {
            outcome.unwrap();
        }
        for shard in SHARDS {
            let held = promise.of(shard);
            held.2 = held.3;
        }
        promises.push((disk.changes(), promise.clone()));
        if round % 5 == 4 {
            // The first shard is held at its first record for half of the time.
            let shard = SHARDS[draw(&mut random, SHARDS.len())];
            if shard == SHARDS[0] && round < rounds / 2 {
                continue;
            }
            let held = promise.of(shard);
            let start = held.3 - draw(&mut random, (held.3 - held.1 + 1) as usize) as u64;
            held.1 = held.1.max(start);
            wal.truncate(shard, Position(start)).await.unwrap();
            held.0 = held.1;
            promises.push((disk.changes(), promise.clone()));
        }
    }
    drop(wal);
    Recording {
        log: disk.log(),
        promises,
    }
}

/// Everything a log shows: of each shard its start and its records.
type Seen = BTreeMap<ShardId, (u64, Vec<LogRecord>)>;

async fn look(wal: &Wal) -> Seen {
    let mut seen = Seen::new();
    for shard in SHARDS {
        let bounds = wal.bounds(shard);
        let mut records = Vec::new();
        if bounds.start < bounds.end {
            let mut tail = wal.tail(shard, bounds.start).unwrap();
            while records.len() < (bounds.end.0 - bounds.start.0) as usize {
                records.extend(tail.next().await.unwrap());
            }
        }
        seen.insert(shard, (bounds.start.0, records));
    }
    seen
}

/// Every promise is kept and nothing else is there.
fn check(seen: &Seen, promise: &Promise, context: &str) {
    for shard in SHARDS {
        let (start, records) = &seen[&shard];
        let held = promise.shards.get(&shard).copied().unwrap_or((1, 1, 1, 1));
        let end = start + records.len() as u64;
        assert!(
            (held.0..=held.1).contains(start),
            "{context}: {shard} starts at {start}, promised {held:?}"
        );
        assert!(
            (held.2..=held.3).contains(&end),
            "{context}: {shard} ends at {end}, promised {held:?}"
        );
        for (record, position) in records.iter().zip(*start..) {
            assert_eq!(record.stamp.position.0, position, "{context}: {shard}");
            assert_eq!(
                record.payload,
                payload(shard, position),
                "{context}: {shard} {position}"
            );
            assert_eq!(
                record.stamp.crc,
                crc32c::crc32c(&record.payload),
                "{context}: {shard} {position}"
            );
        }
    }
}

fn open(disk: &MemoryDisk) -> Result<Wal, OpenError> {
    Wal::open_on(Arc::new(disk.clone()), options())
}

/// Opens what a crash left; whatever it shows must outlast a power loss at that instant, and appends go on.
async fn recover_and_go_on(disk: &MemoryDisk, promise: &Promise, context: &str) {
    let wal = open(disk).unwrap_or_else(|error| panic!("{context}: {error}"));
    let seen = look(&wal).await;
    check(&seen, promise, context);
    // Recovered records are durable from the moment they can be seen.
    let after = disk.copy();
    after.power_loss(Survives::Nothing);
    let again = open(&after)
        .unwrap_or_else(|error| panic!("{context}, power loss after recovery: {error}"));
    assert_eq!(
        look(&again).await,
        seen,
        "{context}: seen after recovery, gone after a power loss"
    );
    drop(again);
    let shard = SHARDS[2];
    let next = wal.bounds(shard).end;
    let stamp = wal.append(shard, payload(shard, next.0)).await.unwrap();
    assert_eq!(stamp.position, next, "{context}");
    disk.power_loss(Survives::Nothing);
    drop(wal);
    let wal = open(disk).unwrap_or_else(|error| panic!("{context}, after going on: {error}"));
    assert_eq!(
        wal.bounds(shard).end,
        next.next(),
        "{context}: an acknowledged append after recovery is gone"
    );
}

/// The ways in which the pending part may survive after the last of `log`.
fn variants(log: &[Op], random: &mut u64) -> Vec<Option<Survives>> {
    let mut variants = vec![None, Some(Survives::Nothing)];
    for _ in 0..6 {
        variants.push(Some(Survives::Some(draw(random, 1 << 30) as u64)));
    }
    for _ in 0..2 {
        variants.push(Some(Survives::AllButOnePage(draw(random, 1 << 30) as u64)));
    }
    if let Some(Op::Write { bytes, .. }) = log.last() {
        variants
            .extend((0..=bytes.len() / SECTOR + 1).map(|sectors| Some(Survives::TornAt(sectors))));
    }
    variants
}

#[tokio::test]
async fn every_crash_keeps_every_promise() {
    let recording = record(120).await;
    let removed = recording
        .log
        .iter()
        .filter(|op| matches!(op, Op::Remove { .. }))
        .count();
    let renamed = recording
        .log
        .iter()
        .filter(|op| matches!(op, Op::Rename { .. }))
        .count();
    assert!(
        recording.log.len() > 300 && renamed > 10 && removed > 5,
        "the workload is worth its name"
    );
    let disk = MemoryDisk::default();
    let mut random = 7;
    let mut states = 0;
    for changes in 0..=recording.log.len() {
        if changes > 0 {
            disk.replay(&recording.log[changes - 1]);
        }
        let promise = recording.promise_at(changes);
        for survives in variants(&recording.log[..changes], &mut random) {
            let context = format!("after {changes} changes, {survives:?} survives");
            let crashed = disk.copy();
            if let Some(survives) = survives {
                crashed.power_loss(survives);
            }
            // Recovery itself is cut short, twice, before it may end.
            let mut nested = context.clone();
            for _ in 0..2 {
                let cut = draw(&mut random, 12);
                crashed.dies_after(cut);
                let opened = open(&crashed);
                drop(opened);
                crashed.kill();
                let seed = draw(&mut random, 1 << 30) as u64;
                nested = format!("{nested}, recovery cut after {cut}");
                if seed.is_multiple_of(3) {
                    crashed.power_loss(Survives::Some(seed));
                    nested = format!("{nested} with power loss {seed}");
                }
                states += 1;
            }
            recover_and_go_on(&crashed, &promise, &nested).await;
            states += 3;
            if survives.is_none() {
                recover_and_go_on(&disk.copy(), &promise, &context).await;
                states += 3;
            }
        }
    }
    println!("{states} crash states over {} changes", recording.log.len());
    assert!(states > 10_000, "only {states} crash states");
}

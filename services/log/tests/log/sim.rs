//! The simulated log: that each fault happens, does what it says, and repeats exactly.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use hikyaku_log::sim::{SimDisk, SimFaults, SimLog};
use hikyaku_log::{AppendError, Class, Log, Position, ReadError, ShardId};

const SHARDS: [ShardId; 2] = [
    ShardId::new(Class::Incoming, 0),
    ShardId::new(Class::Mbox, 0),
];

/// What one life under rough faults came to: of each payload the outcome its caller saw, and what is in the log.
struct Life {
    outcomes: BTreeMap<String, Result<u64, AppendError>>,
    logs: Vec<Vec<String>>,
    counts: BTreeMap<&'static str, u64>,
}

async fn live(seed: u64) -> Life {
    let disk = SimDisk::new(seed);
    let mut outcomes = BTreeMap::new();
    let mut acknowledged: BTreeMap<(ShardId, u64), String> = BTreeMap::new();
    for round in 0..12 {
        let nodes = [
            SimLog::open(&disk, SimFaults::rough()),
            SimLog::open(&disk, SimFaults::rough()),
        ];
        let mut waits = Vec::new();
        for number in 0..60 {
            let name = format!("{round}.{number}");
            let shard = SHARDS[number % 2];
            let append = nodes[number / 2 % 2].append(shard, Bytes::from(name.clone()));
            waits.push(async move { (shard, name, append.await) });
            if number % 10 == 9 {
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        }
        let all = tokio::spawn(join_all(waits));
        if round % 2 == 1 {
            tokio::time::sleep(Duration::from_millis(2)).await;
            match round % 3 {
                0 => disk.crash(),
                1 => disk.power_loss(),
                _ => nodes[0].crash(),
            }
        }
        for (shard, name, outcome) in all.await.unwrap() {
            if let Ok(stamp) = outcome {
                acknowledged.insert((shard, stamp.position.0), name.clone());
            }
            outcomes.insert(name, outcome.map(|stamp| stamp.position.0));
        }
    }
    // The last zombies land.
    tokio::time::sleep(Duration::from_secs(60)).await;
    let reader = SimLog::open(&disk, SimFaults::rough());
    let mut logs = Vec::new();
    for shard in SHARDS {
        let end = reader.bounds(shard).end.0;
        let mut tail = reader.tail(shard, Position(1)).unwrap();
        let mut names = Vec::new();
        while (names.len() as u64) + 1 < end {
            for record in tail.next().await.unwrap() {
                assert_eq!(record.stamp.position.0, names.len() as u64 + 1, "dense");
                names.push(String::from_utf8(record.payload.to_vec()).unwrap());
            }
        }
        for ((_, position), name) in acknowledged.iter().filter(|((of, _), _)| *of == shard) {
            assert_eq!(
                &names[*position as usize - 1],
                name,
                "an acknowledged record is where it was said to be"
            );
        }
        logs.push(names);
    }
    Life {
        outcomes,
        logs,
        counts: disk.counts(),
    }
}

#[tokio::test(start_paused = true)]
async fn faults_keep_the_promises_and_all_happen() {
    let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
    let (mut unknown_present, mut unknown_absent) = (0, 0);
    for seed in 0..40 {
        let life = live(seed).await;
        let mut times: BTreeMap<&str, usize> = BTreeMap::new();
        for name in life.logs.iter().flatten() {
            *times.entry(name).or_default() += 1;
        }
        for (name, outcome) in &life.outcomes {
            let times = times.get(name.as_str()).copied().unwrap_or(0);
            match outcome {
                Ok(_) => assert_eq!(times, 1, "seed {seed}: {name}"),
                Err(AppendError::Unknown) => {
                    assert!(times <= 1, "seed {seed}: {name}");
                    unknown_present += times;
                    unknown_absent += 1 - times;
                }
                Err(_) => assert_eq!(times, 0, "seed {seed}: {name} was refused and yet appended"),
            }
        }
        for (what, count) in life.counts {
            *counts.entry(what).or_default() += count;
        }
    }
    let expected = [
        "ack_late",
        "ack_lost",
        "append_late",
        "append_lost",
        "crash",
        "full",
        "power_loss",
        "refused_full",
        "refused_unavailable",
        "reordered",
        "survived",
        "tail_slow",
        "torn",
        "unavailable",
        "zombie",
    ];
    assert_eq!(
        counts.keys().copied().collect::<Vec<_>>(),
        expected,
        "every fault fires"
    );
    assert!(
        unknown_present > 20 && unknown_absent > 20,
        "{unknown_present} {unknown_absent}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_seed_repeats_exactly_and_another_differs() {
    let (one, same, other) = (live(5).await, live(5).await, live(6).await);
    assert_eq!(
        (&one.outcomes, &one.logs, &one.counts),
        (&same.outcomes, &same.logs, &same.counts)
    );
    assert_ne!(one.outcomes, other.outcomes);
}

#[tokio::test(start_paused = true)]
async fn two_handles_see_each_others_records_and_one_outlives_the_other() {
    let disk = SimDisk::new(3);
    let one = SimLog::open(&disk, SimFaults::none());
    let two = SimLog::open(&disk, SimFaults::none());
    assert_eq!(one.incarnation(), two.incarnation());
    let mut tail = two.tail(SHARDS[0], Position(1)).unwrap();
    let mut dying = one.tail(SHARDS[0], Position(1)).unwrap();
    one.append(SHARDS[0], Bytes::from_static(b"a"))
        .await
        .unwrap();
    assert_eq!(tail.next().await.unwrap()[0].payload, "a");
    assert_eq!(dying.next().await.unwrap().len(), 1);
    let pending = one.append(SHARDS[0], Bytes::from_static(b"b"));
    assert!(
        tail.next().now_or_never().is_none(),
        "what is in flight is not shown"
    );
    one.crash();
    assert_eq!(pending.await, Err(AppendError::Unknown));
    assert!(matches!(dying.next().await, Err(ReadError::Unavailable(_))));
    assert_eq!(
        one.append(SHARDS[0], Bytes::new()).await,
        Err(AppendError::Unavailable)
    );
    assert!(one.truncate(SHARDS[0], Position(2)).await.is_err());
    let stamp = two
        .append(SHARDS[0], Bytes::from_static(b"c"))
        .await
        .unwrap();
    assert_eq!(two.bounds(SHARDS[0]).end, stamp.position.next());
}

#[tokio::test(start_paused = true)]
async fn pressure_and_outages() {
    let disk = SimDisk::new(4);
    let log = SimLog::open(
        &disk,
        SimFaults {
            bytes_max: 1000,
            ..SimFaults::none()
        },
    );
    log.append(SHARDS[1], Bytes::from(vec![0; 10]))
        .await
        .unwrap();
    for _ in 0..8 {
        assert!(!log.pinned(SHARDS[1]).pressed);
        log.append(SHARDS[0], Bytes::from(vec![0; 100]))
            .await
            .unwrap();
    }
    assert!(log.pinned(SHARDS[1]).pressed && log.pinned(SHARDS[0]).pressed);
    log.append(SHARDS[0], Bytes::from(vec![0; 100]))
        .await
        .unwrap();
    assert_eq!(
        log.append(SHARDS[0], Bytes::from(vec![0; 100])).await,
        Err(AppendError::Full)
    );
    log.truncate(SHARDS[0], Position(6)).await.unwrap();
    assert_eq!(log.pinned(SHARDS[0]).bytes, 400);
    log.append(SHARDS[0], Bytes::from(vec![0; 100]))
        .await
        .unwrap();
    disk.unavailable_for(Duration::from_secs(1));
    assert_eq!(
        log.append(SHARDS[0], Bytes::new()).await,
        Err(AppendError::Unavailable)
    );
    tokio::time::sleep(Duration::from_secs(2)).await;
    log.append(SHARDS[0], Bytes::new()).await.unwrap();
    disk.full_for(Duration::from_secs(1));
    assert_eq!(
        log.append(SHARDS[0], Bytes::new()).await,
        Err(AppendError::Full)
    );
}

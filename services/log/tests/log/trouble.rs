//! The write-ahead log in trouble: full, on a failing disk, damaged; and that one batch is one sync.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use hikyaku_log::wal::{OpenError, Wal, WalOptions};
use hikyaku_log::{AppendError, Bounds, Class, Log, Position, ReadError, ShardId, Share};

use crate::crash::options;
use crate::memory_disk::MemoryDisk;

const BUSY: ShardId = ShardId::new(Class::Incoming, 0);
const IDLE: ShardId = ShardId::new(Class::Mbox, 1);

fn kilobyte(number: u64) -> Bytes {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.resize(1024, number as u8);
    Bytes::from(bytes)
}

fn small() -> WalOptions {
    WalOptions {
        wal_bytes_max: 128 << 10,
        ..options()
    }
}

fn open(disk: &MemoryDisk, options: WalOptions) -> Wal {
    Wal::open_on(Arc::new(disk.clone()), options).unwrap()
}

/// Appends until the log refuses, and says how and after how many.
async fn fill(wal: &Wal, shard: ShardId) -> (u64, AppendError) {
    for number in 0..10_000 {
        if let Err(error) = wal.append(shard, kilobyte(number)).await {
            return (number, error);
        }
    }
    panic!("the log never refuses");
}

fn total(disk: &MemoryDisk) -> usize {
    disk.files().values().map(Vec::len).sum()
}

#[tokio::test]
async fn full_log_presses_refuses_and_recovers_by_truncation() {
    let disk = MemoryDisk::default();
    let wal = open(&disk, small());
    wal.append(IDLE, kilobyte(0)).await.unwrap();
    let mut pressed_at = None;
    for number in 0..12 {
        wal.append(BUSY, kilobyte(number)).await.unwrap();
    }
    assert!(!wal.pinned(IDLE).pressed && !wal.pinned(BUSY).pressed);
    for number in 12..10_000 {
        if wal.append(BUSY, kilobyte(number)).await.is_err() {
            break;
        }
        if wal.pinned(IDLE).pressed {
            pressed_at.get_or_insert(number);
        }
    }
    assert!(
        pressed_at.is_some(),
        "the idle holder of the oldest segment is told before the log is full"
    );
    assert!(wal.pinned(BUSY).bytes > wal.pinned(IDLE).bytes && wal.pinned(IDLE).bytes > 0);
    assert_eq!(wal.append(IDLE, kilobyte(1)).await, Err(AppendError::Full));
    assert!(
        total(&disk) <= 112 << 10,
        "the last segment's worth is kept"
    );
    let end = wal.bounds(BUSY).end;
    assert!(end.0 > 70, "it was filled before it refused");
    // Truncations go on however many there are, and the log stays within its maximum.
    for start in 2..=end.0 {
        wal.truncate(BUSY, Position(start)).await.unwrap();
        assert!(total(&disk) <= 128 << 10);
    }
    wal.append(IDLE, kilobyte(1)).await.unwrap();
    assert!(
        !wal.pinned(BUSY).pressed,
        "room was made though the idle shard still holds the oldest segment"
    );
    drop(wal);
    let wal = open(&disk, small());
    assert_eq!(wal.bounds(BUSY), Bounds { start: end, end });
    assert_eq!(
        wal.read_at(IDLE, Position(1)).await.unwrap().payload,
        kilobyte(0)
    );
    assert_eq!(
        wal.read_at(IDLE, Position(2)).await.unwrap().payload,
        kilobyte(1)
    );
}

#[tokio::test]
async fn what_fills_the_log_stops_before_what_empties_it() {
    let disk = MemoryDisk::default();
    let wal = open(&disk, small());
    let shares = [Share::Mail, Share::Delivery, Share::Carry, Share::Rest];
    let mut fitted = Vec::new();
    for (turn, share) in shares.into_iter().enumerate() {
        let mut count = 0;
        while wal
            .append_within(BUSY, kilobyte(count), share)
            .await
            .is_ok()
        {
            count += 1;
        }
        fitted.push(count);
        assert_eq!(
            wal.pinned(BUSY).tight,
            share >= Share::Delivery,
            "{share:?}"
        );
        // whoever stopped earlier stays out
        for earlier in &shares[..turn] {
            let refused = wal.append_within(BUSY, kilobyte(0), *earlier).await;
            assert_eq!(
                refused,
                Err(AppendError::Full),
                "{earlier:?} after {share:?}"
            );
        }
    }
    assert!(
        fitted.iter().all(|&count| count >= 10),
        "each finds a segment's worth: {fitted:?}"
    );
    wal.truncate(BUSY, wal.bounds(BUSY).end).await.unwrap();
    wal.append_within(BUSY, kilobyte(0), Share::Mail)
        .await
        .unwrap();
    assert!(!wal.pinned(BUSY).tight);
}

#[tokio::test]
async fn truncations_alone_never_exceed_the_maximum() {
    let disk = MemoryDisk::default();
    let wal = open(&disk, small());
    let (count, error) = fill(&wal, BUSY).await;
    assert_eq!(error, AppendError::Full);
    // One record of every segment stays held, so that truncating frees nothing; the frames themselves need room.
    let shards: Vec<ShardId> = (0..6)
        .map(|index| ShardId::new(Class::Mbox, index))
        .collect();
    for shard in &shards {
        assert_eq!(
            wal.append(*shard, kilobyte(0)).await,
            Err(AppendError::Full)
        );
    }
    let first_segment = 12;
    for start in 2..first_segment {
        for _ in 0..3 {
            wal.truncate(BUSY, Position(start)).await.unwrap();
        }
    }
    assert!(total(&disk) <= 128 << 10);
    assert_eq!(
        wal.append(BUSY, kilobyte(0)).await,
        Err(AppendError::Full),
        "nothing was freed"
    );
    wal.truncate(BUSY, Position(count)).await.unwrap();
    wal.append(BUSY, kilobyte(0)).await.unwrap();
}

#[tokio::test]
async fn a_held_record_and_a_forgotten_shard_cost_one_segment_and_keep_their_ends() {
    let disk = MemoryDisk::default();
    let wal = open(&disk, small());
    let forgotten = ShardId::new(Class::Home, 0);
    for number in 0..5 {
        wal.append(forgotten, kilobyte(number)).await.unwrap();
    }
    wal.truncate(forgotten, Position(6)).await.unwrap();
    // The held record lies in another segment than the forgotten shard's, which will be gone.
    for number in 0..20 {
        wal.append(BUSY, kilobyte(number)).await.unwrap();
    }
    wal.append(IDLE, kilobyte(0)).await.unwrap();
    for number in 0..3000 {
        wal.append(BUSY, kilobyte(number)).await.unwrap();
        if number > 8 {
            wal.truncate(BUSY, Position(number + 12)).await.unwrap();
        }
        assert!(
            total(&disk) <= 80 << 10,
            "3 MB went through, one old record is held"
        );
    }
    drop(wal);
    let wal = open(&disk, small());
    assert_eq!(
        wal.bounds(forgotten),
        Bounds {
            start: Position(6),
            end: Position(6)
        }
    );
    assert_eq!(
        wal.read_at(IDLE, Position(1)).await.unwrap().payload,
        kilobyte(0)
    );
    assert_eq!(
        wal.append(forgotten, kilobyte(6)).await.unwrap().position,
        Position(6)
    );
}

#[tokio::test]
async fn disk_full_is_refused_and_passes_without_restart() {
    let disk = MemoryDisk::default();
    let wal = open(&disk, options());
    disk.set_capacity(Some(50 << 10));
    let (count, error) = fill(&wal, BUSY).await;
    assert_eq!(error, AppendError::Full);
    assert_eq!(wal.append(IDLE, kilobyte(0)).await, Err(AppendError::Full));
    wal.truncate(BUSY, Position(2)).await.unwrap();
    // Restarting on the full disk works too.
    drop(wal);
    let wal = open(&disk, options());
    assert_eq!(
        wal.bounds(BUSY),
        Bounds {
            start: Position(2),
            end: Position(count + 1)
        }
    );
    wal.truncate(BUSY, Position(count)).await.unwrap();
    wal.append(BUSY, kilobyte(count)).await.unwrap();
    disk.set_capacity(None);
    wal.append(IDLE, kilobyte(0)).await.unwrap();
    drop(wal);
    disk.power_loss(crate::memory_disk::Survives::Nothing);
    let wal = open(&disk, options());
    assert_eq!(
        wal.bounds(BUSY),
        Bounds {
            start: Position(count),
            end: Position(count + 2)
        }
    );
}

/// A disk that can take no preallocation fails in the middle of a write.
#[tokio::test]
async fn write_that_fails_half_way_leaves_no_trace() {
    let disk = MemoryDisk::default();
    let wal = open(&disk, options());
    wal.append(BUSY, kilobyte(0)).await.unwrap();
    drop(wal);
    // Recovery on a disk with no room to preallocate: the next write grows the file, and fails.
    disk.set_capacity(Some(20 << 10));
    let wal = open(&disk, options());
    disk.set_capacity(Some(total(&disk) as u64 + 2000));
    // The first goes alone; the others gather, and the part of their batch that is written holds one of them whole.
    disk.hold_syncs(true);
    let first = wal.append(BUSY, kilobyte(1));
    disk.wait_for_held_sync();
    let refused = [
        wal.append(BUSY, Bytes::from(vec![1; 900])),
        wal.append(BUSY, Bytes::from(vec![1; 4000])),
    ];
    disk.hold_syncs(false);
    assert_eq!(first.await.unwrap().position, Position(2));
    assert_eq!(
        join_all(refused).await,
        [Err(AppendError::Full), Err(AppendError::Full)]
    );
    for seed in 0..40 {
        let after = disk.copy();
        after.set_capacity(None);
        after.power_loss(crate::memory_disk::Survives::Some(seed));
        let wal = open(&after, options());
        assert_eq!(
            wal.bounds(BUSY).end,
            Position(3),
            "a refused append has come back"
        );
    }
    disk.set_capacity(None);
    let stamp = wal.append(BUSY, kilobyte(2)).await.unwrap();
    assert_eq!(
        stamp.position,
        Position(3),
        "the positions of the refused appends were not used"
    );
    drop(wal);
    disk.power_loss(crate::memory_disk::Survives::Nothing);
    let wal = open(&disk, options());
    assert_eq!(
        wal.read_at(BUSY, Position(3)).await.unwrap().payload,
        kilobyte(2)
    );
    assert_eq!(wal.bounds(BUSY).end, Position(4));
}

#[tokio::test]
async fn failed_sync_stops_the_log_for_good() {
    let disk = MemoryDisk::default();
    let wal = open(&disk, options());
    wal.append(BUSY, kilobyte(0)).await.unwrap();
    let mut failed = Box::pin(wal.failed());
    assert!((&mut failed).now_or_never().is_none());
    let mut tail = wal.tail(BUSY, Position(1)).unwrap();
    assert_eq!(tail.next().await.unwrap().len(), 1);
    disk.set_sync_fails(true);
    assert_eq!(
        wal.append(BUSY, kilobyte(1)).await,
        Err(AppendError::Unknown)
    );
    disk.set_sync_fails(false);
    assert!(failed.await.contains("the disk has failed"));
    assert_eq!(
        wal.append(BUSY, kilobyte(2)).await,
        Err(AppendError::Unavailable),
        "a later sync proves nothing"
    );
    assert!(matches!(
        wal.truncate(BUSY, Position(2)).await,
        Err(ReadError::Unavailable(_))
    ));
    assert_eq!(
        wal.bounds(BUSY).end,
        Position(2),
        "what is not known to be durable is not shown"
    );
    assert_eq!(
        wal.read_at(BUSY, Position(1)).await.unwrap().payload,
        kilobyte(0),
        "readers drain"
    );
    assert!(matches!(tail.next().await, Err(ReadError::Unavailable(_))));
}

#[tokio::test]
async fn write_that_cannot_be_undone_stops_the_log() {
    let disk = MemoryDisk::default();
    let wal = open(&disk, options());
    drop(wal);
    disk.set_capacity(Some(20 << 10));
    let wal = open(&disk, options());
    disk.set_capacity(Some(total(&disk) as u64 + 200));
    disk.set_length_fails(true);
    assert_eq!(
        wal.append(BUSY, kilobyte(0)).await,
        Err(AppendError::Unknown)
    );
    assert_eq!(
        wal.append(BUSY, kilobyte(0)).await,
        Err(AppendError::Unavailable)
    );
    wal.failed().await;
}

/// A log of several segments.
async fn several_segments() -> (MemoryDisk, Vec<String>) {
    let disk = MemoryDisk::default();
    let wal = open(&disk, options());
    for number in 0..60 {
        wal.append(BUSY, kilobyte(number)).await.unwrap();
    }
    drop(wal);
    let names: Vec<String> = disk
        .files()
        .into_keys()
        .filter(|name| name.ends_with(".wal"))
        .collect();
    assert!(names.len() > 3);
    (disk, names)
}

fn refusal(disk: &MemoryDisk) -> OpenError {
    Wal::open_on(Arc::new(disk.copy()), options())
        .err()
        .unwrap()
}

#[tokio::test]
async fn damage_that_is_no_torn_tail_is_refused_with_its_place() {
    let (disk, names) = several_segments().await;
    let lengths = disk.files();
    for name in &names[..names.len() - 1] {
        for at in (0..lengths[name].len()).step_by(101) {
            let damaged = disk.copy();
            damaged.damage(name, at);
            match refusal(&damaged) {
                OpenError::Corrupt { file, offset, .. } => {
                    assert_eq!(file, *name);
                    assert!(
                        offset <= at as u64 && at as u64 - offset < 1100,
                        "{at} reported as {offset}"
                    );
                }
                // The version is read only after the checksum has passed.
                other => panic!("{other}"),
            }
        }
    }
    // In the last segment: a record that a later one vouches for.
    let last = names.last().unwrap();
    let damaged = disk.copy();
    damaged.damage(last, 300);
    match refusal(&damaged) {
        OpenError::Corrupt { file, offset, .. } => assert!(file == *last && offset <= 300),
        other => panic!("{other}"),
    }
    let text = refusal(&damaged).to_string();
    assert!(
        text.contains(last.as_str()) && text.contains("offset"),
        "{text}"
    );
}

#[tokio::test]
async fn lost_segment_is_refused() {
    let (disk, names) = several_segments().await;
    for name in &names[..names.len() - 1] {
        let damaged = disk.copy();
        damaged.lose(name);
        let error = refusal(&damaged);
        assert!(
            matches!(error, OpenError::Missing { .. }),
            "{name}: {error}"
        );
    }
}

#[tokio::test]
async fn record_damaged_under_an_open_log_is_reported_with_its_place() {
    let (disk, _) = several_segments().await;
    let wal = open(
        &disk,
        WalOptions {
            recent_bytes_max: 0,
            ..options()
        },
    );
    let first = disk.files().into_keys().next().unwrap();
    disk.damage(&first, 600);
    match wal.read_at(BUSY, Position(1)).await {
        Err(ReadError::Corrupt(text)) => assert!(text.contains(&first), "{text}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(
        wal.read_at(BUSY, Position(2)).await.unwrap().payload,
        kilobyte(1)
    );
    let mut tail = wal.tail(BUSY, Position(1)).unwrap();
    assert!(matches!(tail.next().await, Err(ReadError::Corrupt(_))));
}

#[tokio::test]
async fn options_that_contradict_each_other_are_refused() {
    let disk = MemoryDisk::default();
    let bad = [
        WalOptions {
            segment_bytes: 4 << 10,
            ..options()
        },
        WalOptions {
            segment_bytes: 2 << 30,
            wal_bytes_max: 1 << 40,
            ..options()
        },
        WalOptions {
            wal_bytes_max: 127 << 10,
            ..options()
        },
        WalOptions {
            pending_bytes_max: 100,
            ..options()
        },
    ];
    for options in bad {
        let error = Wal::open_on(Arc::new(disk.clone()), options).err().unwrap();
        assert!(matches!(error, OpenError::Options(_)), "{error}");
    }
    assert!(disk.files().is_empty(), "nothing was made");
}

#[tokio::test]
async fn waiting_appends_are_bounded() {
    let disk = MemoryDisk::default();
    let wal = open(
        &disk,
        WalOptions {
            pending_bytes_max: 64 << 10,
            ..options()
        },
    );
    let outcomes = join_all((0..4000).map(|number| wal.append(BUSY, kilobyte(number)))).await;
    let refused = outcomes
        .iter()
        .filter(|outcome| **outcome == Err(AppendError::Unavailable))
        .count();
    let done = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert!(
        refused > 0 && done >= 60 && refused + done == 4000,
        "{refused} refused, {done} done"
    );
    assert_eq!(wal.bounds(BUSY).end.0 as usize, done + 1);
}

#[tokio::test]
async fn shards_are_bounded() {
    let disk = MemoryDisk::default();
    let wal = open(&disk, options());
    for index in 0..8 {
        wal.append(ShardId::new(Class::Mbox, index), kilobyte(0))
            .await
            .unwrap();
    }
    assert_eq!(
        wal.append(ShardId::new(Class::Mbox, 8), kilobyte(0)).await,
        Err(AppendError::Unavailable)
    );
    wal.append(ShardId::new(Class::Mbox, 7), kilobyte(0))
        .await
        .unwrap();
}

#[tokio::test]
async fn appends_that_gather_during_a_sync_share_the_next_one() {
    let disk = MemoryDisk::default();
    let wal = open(&disk, options());
    disk.hold_syncs(true);
    let first = wal.append(BUSY, kilobyte(0));
    disk.wait_for_held_sync();
    let rest: Vec<_> = (1..8)
        .map(|number| wal.append(ShardId::new(Class::Mbox, number), kilobyte(0)))
        .collect();
    assert_eq!(
        wal.bounds(BUSY).end,
        Position(1),
        "written, not synced, not shown"
    );
    let mut tail = wal.tail(BUSY, Position(1)).unwrap();
    assert!(tail.next().now_or_never().is_none());
    disk.hold_syncs(false);
    first.await.unwrap();
    for outcome in join_all(rest).await {
        outcome.unwrap();
    }
    assert_eq!(wal.counts().syncs, 2);
    assert_eq!(wal.counts().appends, 8);
    assert_eq!(tail.next().await.unwrap().len(), 1);
}

/// Gathers longer than any test runs.
fn gathering() -> WalOptions {
    WalOptions {
        segment_bytes: 4 << 20,
        wal_bytes_max: 32 << 20,
        gather: Duration::from_secs(3600),
        ..WalOptions::new(1)
    }
}

#[tokio::test]
async fn appends_after_a_batch_gather_until_the_log_is_closed() {
    let disk = MemoryDisk::default();
    let wal = open(&disk, gathering());
    // after a pause nothing is waited for
    wal.append(BUSY, kilobyte(0)).await.unwrap();
    let waiting = join_all((1..8).map(|number| wal.append(BUSY, kilobyte(number))));
    assert_eq!(wal.counts().syncs, 1);
    drop(wal);
    for outcome in waiting.await {
        outcome.unwrap();
    }
    let wal = open(&disk, gathering());
    assert_eq!(wal.bounds(BUSY).end, Position(9));
}

#[tokio::test]
async fn gathering_ends_when_much_has_gathered() {
    let disk = MemoryDisk::default();
    let wal = open(&disk, gathering());
    wal.append(BUSY, kilobyte(0)).await.unwrap();
    let large = Bytes::from(vec![7; 600 << 10]);
    let two = join_all([wal.append(BUSY, large.clone()), wal.append(BUSY, large)]);
    for outcome in two.await {
        outcome.unwrap();
    }
    assert_eq!(wal.counts().syncs, 2);
}

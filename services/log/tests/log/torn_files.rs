//! The write-ahead log's real files, torn in every place: the last segment is cut at every byte of its last frames, or
//! loses or garbles a page that no sync had covered, and is opened.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use bytes::Bytes;
use hikyaku_log::wal::{Wal, WalOptions};
use hikyaku_log::{Class, Log, Position, ShardId};
use proptest::prelude::{ProptestConfig, any, prop_assert_eq, proptest};
use proptest::test_runner::TestCaseError;

const SHARD: ShardId = ShardId::new(Class::Incoming, 0);
const OTHER: ShardId = ShardId::new(Class::Mbox, 0);

fn options() -> WalOptions {
    WalOptions {
        segment_bytes: 32 << 10,
        record_bytes_max: 8 << 10,
        recent_bytes_max: 0,
        shards_max: 8,
        ..WalOptions::new(9)
    }
}

fn payload(shard: ShardId, position: u64) -> Bytes {
    let length = if position > 40 {
        30
    } else {
        100 + position as usize * 37 % 900
    };
    Bytes::from(format!("{shard} {position} {}", "y".repeat(length)))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
}

fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
    }
    to
}

fn last_segment(directory: &Path) -> PathBuf {
    let paths = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "wal"))
        .max()
        .unwrap()
}

/// A log in which positions up to 40 of both shards were synced one by one, then up to `batch` more, in as many batches
/// as it came to; and the offset in the last segment before which everything had been synced when its last frame was
/// written.
fn workload(batch: u64) -> (tempfile::TempDir, usize) {
    let directory = tempfile::tempdir().unwrap();
    let wal = Wal::open(directory.path(), options()).unwrap();
    runtime().block_on(async {
        for position in 1..=40 {
            for shard in [SHARD, OTHER] {
                wal.append(shard, payload(shard, position)).await.unwrap();
            }
        }
        let waits: Vec<_> = (41..41 + batch)
            .flat_map(|position| {
                [SHARD, OTHER].map(|shard| wal.append(shard, payload(shard, position)))
            })
            .collect();
        for wait in waits {
            wait.await.unwrap();
        }
    });
    drop(wal);
    let content = fs::read(last_segment(directory.path())).unwrap();
    // The frame header's length and the offset it vouches for.
    let number = |at: usize| u32::from_le_bytes(content[at..at + 4].try_into().unwrap()) as usize;
    let mut frame = 64;
    let mut synced = 64;
    while frame < content.len() && number(frame + 4) != 0 {
        synced = synced.max(number(frame + 28));
        frame += (32 + number(frame + 8)).next_multiple_of(8);
    }
    (directory, synced)
}

/// Opens, demands positions 1..=40 and a prefix of the rest, appends, and opens again.
fn opens_to_a_prefix(directory: &Path, context: &str) -> Result<u64, TestCaseError> {
    runtime().block_on(async {
        let wal =
            Wal::open(directory, options()).unwrap_or_else(|error| panic!("{context}: {error}"));
        let mut ends = Vec::new();
        for shard in [SHARD, OTHER] {
            let end = wal.bounds(shard).end.0;
            assert!(
                end >= 41,
                "{context}: an acknowledged record of {shard} is gone, it ends at {end}"
            );
            let mut tail = wal.tail(shard, Position(1)).unwrap();
            let mut position = 1;
            while position < end {
                for record in tail.next().await.unwrap() {
                    prop_assert_eq!(record.stamp.position, Position(position), "{}", context);
                    prop_assert_eq!(record.payload, payload(shard, position), "{}", context);
                    position += 1;
                }
            }
            prop_assert_eq!(position, end);
            ends.push(end);
        }
        wal.append(SHARD, payload(SHARD, ends[0])).await.unwrap();
        drop(wal);
        let wal = Wal::open(directory, options())
            .unwrap_or_else(|error| panic!("{context}, again: {error}"));
        prop_assert_eq!(wal.bounds(SHARD).end.0, ends[0] + 1, "{}", context);
        prop_assert_eq!(wal.bounds(OTHER).end.0, ends[1], "{}", context);
        Ok(ends[0] + ends[1])
    })
}

#[test]
fn cut_at_every_byte_of_the_last_frames() {
    let (directory, _) = workload(1);
    let content = fs::read(last_segment(directory.path())).unwrap();
    let filled = content.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    // The last two frames, whose appends count as not acknowledged: small, so that every byte can be tried.
    let synced = filled
        - 32
        - payload(OTHER, 41).len()
        - (32 + payload(SHARD, 41).len()).next_multiple_of(8);
    let mut outcomes = std::collections::BTreeSet::new();
    for cut in synced..=filled {
        let torn = copy(directory.path());
        let is_zeroed = cut % 2 == 0;
        let mut bytes = content[..cut].to_vec();
        if is_zeroed {
            bytes.resize(content.len(), 0);
        }
        fs::write(last_segment(torn.path()), bytes).unwrap();
        outcomes.insert(opens_to_a_prefix(torn.path(), &format!("cut at {cut}")).unwrap());
    }
    assert_eq!(
        outcomes,
        [82, 83, 84].into(),
        "none, one and both of the last two survive somewhere"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Sectors are lost or garbled in any pattern, but only behind what was synced.
    #[test]
    fn sectors_lost_or_garbled_behind_the_sync(pattern in any::<u64>(), garbage in any::<u8>()) {
        static WORKLOAD: OnceLock<(tempfile::TempDir, usize)> = OnceLock::new();
        let (directory, synced) = WORKLOAD.get_or_init(|| workload(40));
        let torn = copy(directory.path());
        let path = last_segment(torn.path());
        let mut content = fs::read(&path).unwrap();
        // Of the first sector only the part behind the sync is at risk, which is the hardest case.
        for (number, sector) in content[*synced..].chunks_mut(512).enumerate() {
            if pattern >> (number % 64) & 1 == 1 {
                sector.fill(garbage);
            }
        }
        fs::write(path, content).unwrap();
        opens_to_a_prefix(torn.path(), "sectors")?;
    }
}

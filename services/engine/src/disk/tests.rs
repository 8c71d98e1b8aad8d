//! The disk engine beyond the contract: background work, budget, checkpoint, garbage, failure.

use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::contract::{self, Dice, delete, everything, put};

struct Disk {
    dir: TempDir,
    shared: Shared,
}

impl Disk {
    fn new(options: Options) -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            shared: Shared::start(options).unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn open(&self, name: &str) -> Arc<DiskEngine> {
        DiskEngine::open(&self.path(name), &self.shared).unwrap()
    }
}

impl contract::Machine for Disk {
    fn open(&self, name: &str) -> Arc<dyn Engine> {
        Disk::open(self, name)
    }

    fn replace(&self, name: &str, pairs: Vec<Pair>, position: Bytes) -> Result<(), EngineError> {
        DiskEngine::replace(
            &self.path(name),
            &self.shared,
            pairs.into_iter().map(Ok),
            position,
        )
    }
}

/// Waits for background work; the deadline only bounds a failing test.
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..6_000 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("never happened: {what}");
}

fn commit(engine: &DiskEngine, writes: Vec<Write>, position: u32) {
    engine.write(writes).unwrap();
    engine
        .commit(Bytes::copy_from_slice(&position.to_be_bytes()))
        .unwrap();
}

fn body(seed: u32, bytes: usize) -> Vec<u8> {
    let mut dice = Dice::new(u64::from(seed));
    (0..bytes).map(|_| dice.below(256) as u8).collect()
}

fn small_memtables() -> Options {
    Options {
        memtable_bytes_max: 64 << 10,
        gc_stale_bytes_min: 64 << 10,
        ..Options::default()
    }
}

#[test]
fn keeps_the_contract() {
    contract::all(&Disk::new(Options::default()));
}

#[test]
fn keeps_the_contract_while_flushes_and_compactions_run() {
    let options = Options {
        memtable_bytes_max: 2 << 10,
        gc_stale_bytes_min: 1,
        gc_interval: Duration::ZERO,
        ..Options::default()
    };
    contract::all(
        &Disk::new(Options {
            memtable_age_max: Duration::from_millis(250),
            ..options
        })
        .sloppy(),
    );
}

impl Disk {
    /// A machine whose flushes may come by themselves, so that a crash may lose less than the contract's fixed histories
    /// expect; they are given a store that only flushes when asked to.
    fn sloppy(self) -> Sloppy {
        Sloppy {
            eager: self,
            quiet: Disk::new(Options::default()),
        }
    }
}

struct Sloppy {
    eager: Disk,
    quiet: Disk,
}

impl Sloppy {
    fn machine(&self, name: &str) -> &Disk {
        if name.starts_with("random") || name == "overwrites" || name == "large" {
            &self.eager
        } else {
            &self.quiet
        }
    }
}

impl contract::Machine for Sloppy {
    fn open(&self, name: &str) -> Arc<dyn Engine> {
        contract::Machine::open(self.machine(name), name)
    }

    fn replace(&self, name: &str, pairs: Vec<Pair>, position: Bytes) -> Result<(), EngineError> {
        contract::Machine::replace(self.machine(name), name, pairs, position)
    }
}

#[test]
fn the_budget_flushes_the_largest_shard() {
    let disk = Disk::new(Options {
        memtable_bytes_max: 256 << 10,
        ..Options::default()
    });
    let (small, large) = (disk.open("small"), disk.open("large"));
    commit(&small, vec![put(b"a", b"1")], 1);
    for n in 0..64 {
        commit(
            &large,
            vec![put(&[b'b', n], &body(u32::from(n), 8 << 10))],
            u32::from(n),
        );
    }
    eventually("the large shard is flushed", || !large.durable().is_empty());
    assert!(small.durable().is_empty());
    eventually("writers go on", || !large.stalled() && !small.stalled());
    // what the budget counts is given back when a shard goes away
    drop((small, large));
    let again = disk.open("small");
    commit(&again, vec![put(b"a", b"1")], 1);
    assert!(again.unflushed_bytes() < 1024);
}

#[test]
fn age_and_request_flush_in_the_background() {
    let disk = Disk::new(Options {
        memtable_age_max: Duration::from_millis(500),
        ..Options::default()
    });
    let engine = disk.open("a");
    commit(&engine, vec![put(b"a", b"1")], 1);
    eventually("flushed for age", || engine.durable() == engine.position());
    commit(&engine, vec![put(b"a", b"2")], 2);
    engine.request_flush();
    eventually("flushed on request", || {
        engine.durable() == engine.position()
    });
}

#[test]
fn writers_stall_without_a_flusher_and_go_on_after_a_flush() {
    let disk = Disk::new(Options {
        memtable_bytes_max: 32 << 10,
        ..Options::default()
    });
    disk.shared.shutdown();
    let engine = disk.open("a");
    for n in 0..10 {
        commit(
            &engine,
            vec![put(&[b'b', n], &body(1, 8 << 10))],
            u32::from(n),
        );
    }
    assert!(engine.stalled());
    engine.flush().unwrap();
    assert!(!engine.stalled());
}

#[test]
fn level0_is_compacted_and_never_reaches_the_format_limit() {
    let disk = Disk::new(Options::default());
    let engine = disk.open("a");
    for n in 0..60_u32 {
        commit(
            &engine,
            vec![put(&n.to_be_bytes(), b"v"), put(b"same", &n.to_be_bytes())],
            n,
        );
        engine.flush().unwrap();
    }
    eventually("level 0 is small", || engine.disk_usage().level0_runs <= 8);
    // and without the compactor, the flush itself sees to it
    disk.shared.shutdown();
    drop(engine);
    let disk = Disk {
        dir: disk.dir,
        shared: Shared::start(Options::default()).unwrap(),
    };
    disk.shared.shutdown();
    let engine = disk.open("b");
    for n in 0..300_u32 {
        commit(
            &engine,
            vec![put(&n.to_be_bytes(), b"v"), put(b"same", &n.to_be_bytes())],
            n,
        );
        engine.flush().unwrap();
        assert!(engine.disk_usage().level0_runs < 200);
    }
    assert!(engine.stalled());
    drop(engine);
    let engine = disk.open("b");
    assert_eq!(everything(&*engine.snapshot()).len(), 301);
}

#[test]
fn garbage_is_collected_in_the_background_under_a_snapshot() {
    let disk = Disk::new(Options {
        gc_interval: Duration::from_millis(250),
        ..small_memtables()
    });
    let engine = disk.open("a");
    for n in 0..40_u8 {
        commit(
            &engine,
            vec![put(&[b'b', n], &body(u32::from(n), 8 << 10))],
            u32::from(n),
        );
    }
    engine.flush().unwrap();
    let before = engine.snapshot();
    for n in 0..40_u8 {
        if n % 4 != 0 {
            commit(&engine, vec![delete(&[b'b', n])], 100 + u32::from(n));
        }
    }
    engine.flush().unwrap();
    engine.collect_garbage().unwrap();
    assert_eq!(everything(&*before).len(), 40);
    drop(before);
    commit(&engine, vec![put(b"c", b"1")], 200);
    engine.flush().unwrap();
    engine.collect_garbage().unwrap();
    let live = everything(&*engine.snapshot());
    assert_eq!(live.len(), 11);
    for (key, value) in &live[..10] {
        assert!(*value == body(u32::from(key[1]), 8 << 10));
    }
    eventually("the space is given back", || {
        let sizes = std::fs::read_dir(disk.path("a").join(files::BLOBS)).unwrap();
        sizes
            .map(|entry| entry.unwrap().metadata().map_or(0, |meta| meta.len()))
            .sum::<u64>()
            < 120 << 10
    });
}

#[test]
fn stale_bytes_start_a_collection_by_themselves() {
    let disk = Disk::new(Options {
        gc_interval: Duration::from_millis(250),
        ..small_memtables()
    });
    let engine = disk.open("a");
    for round in 0..60_u32 {
        for n in 0..10_u8 {
            commit(
                &engine,
                vec![put(&[b'b', n], &body(round, 8 << 10))],
                round * 10 + u32::from(n),
            );
        }
        engine.flush().unwrap();
    }
    // 4.8 MB were written; what level 0 holds may be stale unnoticed
    eventually("stale blobs are found and collected", || {
        engine.disk_usage().bytes < 1 << 20
    });
    for n in 0..10_u8 {
        assert!(engine.get(&[b'b', n]).unwrap().unwrap() == body(59, 8 << 10));
    }
}

#[test]
fn an_idle_shard_lets_old_versions_go() {
    let disk = Disk::new(Options::default());
    let engine = disk.open("a");
    commit(&engine, vec![put(b"a", &body(1, 8 << 10))], 1);
    engine.flush().unwrap();
    eventually("one version is left", || {
        lsm_tree::AbstractTree::version_free_list_len(&engine.store.tree) == 0
    });
    assert_eq!(everything(&*engine.snapshot()).len(), 1);
}

#[test]
fn a_checkpoint_is_the_last_flush() {
    let disk = Disk::new(Options::default());
    let engine = disk.open("a");
    commit(
        &engine,
        vec![put(b"a", b"1"), put(b"b", &body(1, 8 << 10))],
        1,
    );
    engine.flush().unwrap();
    commit(&engine, vec![put(b"a", b"2")], 2);
    let position = engine.checkpoint(&disk.path("copy")).unwrap();
    assert_eq!(position, engine.durable());
    commit(&engine, vec![delete(b"a"), delete(b"b")], 3);
    engine.flush().unwrap();
    engine.collect_garbage().unwrap();
    let copy = disk.open("copy");
    assert_eq!(copy.position(), position);
    assert_eq!(copy.get(b"a").unwrap().unwrap(), "1");
    assert!(copy.get(b"b").unwrap().unwrap() == body(1, 8 << 10));
    assert!(
        engine.checkpoint(&disk.path("copy")).is_err(),
        "an existing directory is left alone"
    );
    assert!(disk.path("copy").join(files::TABLES).exists());
}

#[test]
fn leftovers_of_a_crash_are_removed() {
    let disk = Disk::new(Options::default());
    drop(disk.open("a"));
    std::fs::write(disk.path("a").join(".tmpX1y2"), "half").unwrap();
    std::fs::create_dir(disk.path("a.new")).unwrap();
    drop(disk.open("a"));
    assert!(!disk.path("a").join(".tmpX1y2").exists());
    assert!(!disk.path("a.new").exists());
}

#[test]
fn a_replacement_out_of_order_leaves_the_old_store() {
    let disk = Disk::new(Options::default());
    let engine = disk.open("a");
    commit(&engine, vec![put(b"a", b"1")], 1);
    engine.flush().unwrap();
    drop(engine);
    let pair = |key: &'static [u8]| Ok((Bytes::from_static(key), Bytes::from_static(b"v")));
    for keys in [
        vec![pair(b"b"), pair(b"a")],
        vec![pair(b"\xffp")],
        vec![pair(b"a"), Err(EngineError::Full)],
    ] {
        assert!(DiskEngine::replace(&disk.path("a"), &disk.shared, keys, Bytes::new()).is_err());
        assert!(!disk.path("a.new").exists());
    }
    assert_eq!(disk.open("a").get(b"a").unwrap().unwrap(), "1");
}

#[test]
fn damage_fails_the_store_and_nothing_else() {
    let disk = Disk::new(Options::default());
    let (engine, healthy) = (disk.open("a"), disk.open("b"));
    commit(&engine, vec![put(b"a", b"1")], 1);
    std::fs::remove_dir_all(disk.path("a").join(files::TABLES)).unwrap();
    assert!(matches!(engine.flush(), Err(EngineError::Failed(_))));
    assert!(engine.durable().is_empty());
    assert!(matches!(engine.get(b"a"), Err(EngineError::Failed(_))));
    assert!(matches!(engine.write(vec![]), Err(EngineError::Failed(_))));
    assert!(matches!(
        engine.snapshot().get(b"a"),
        Err(EngineError::Failed(_))
    ));
    assert!(matches!(engine.flush(), Err(EngineError::Failed(_))));
    commit(&healthy, vec![put(b"a", b"1")], 1);
    healthy.flush().unwrap();
}

#[test]
fn a_blobs_directory_that_cannot_be_synced_stops_the_flush() {
    let disk = Disk::new(Options::default());
    let engine = disk.open("a");
    commit(&engine, vec![put(b"b", &body(1, 8 << 10))], 1);
    std::fs::remove_dir_all(disk.path("a").join(files::BLOBS)).unwrap();
    assert!(matches!(engine.flush(), Err(EngineError::Failed(_))));
    drop(engine);
    assert!(disk.open("a").position().is_empty());
}

#[test]
fn a_failed_store_makes_no_writer_wait() {
    let disk = Disk::new(Options {
        memtable_bytes_max: 64 << 10,
        ..Options::default()
    });
    disk.shared.shutdown();
    let (failing, healthy) = (disk.open("a"), disk.open("b"));
    commit(&failing, vec![put(b"b", &body(1, 256 << 10))], 1);
    assert!(failing.stalled() && healthy.stalled());
    std::fs::remove_dir_all(disk.path("a").join(files::BLOBS)).unwrap();
    assert!(matches!(failing.flush(), Err(EngineError::Failed(_))));
    // its own writer is to hear of it, and what it holds will never be flushed: the others must not wait for that
    assert!(!failing.stalled() && !healthy.stalled());
    assert_eq!(failing.unflushed_bytes(), 0);
    drop(failing);
    commit(&healthy, vec![put(b"b", &body(1, 128 << 10))], 1);
    assert!(healthy.stalled());
    healthy.flush().unwrap();
    assert!(!healthy.stalled());
}

#[test]
fn no_space_before_a_failure_makes_no_writer_wait_either() {
    let disk = Disk::new(Options::default());
    disk.shared.shutdown();
    let engine = disk.open("a");
    commit(&engine, vec![put(b"b", &body(1, 64 << 10))], 1);
    fill(disk.path("a").join(files::BLOBS).join("0"));
    assert!(matches!(engine.flush(), Err(EngineError::Full)));
    assert!(engine.stalled());
    std::fs::remove_dir_all(disk.path("a").join(files::BLOBS)).unwrap();
    assert!(matches!(engine.flush(), Err(EngineError::Failed(_))));
    assert!(!engine.stalled());
    let written = engine.write(vec![put(b"c", b"1")]);
    assert!(matches!(written, Err(EngineError::Failed(_))));
}

#[test]
fn bit_rot_is_an_error_not_a_wrong_value() {
    let disk = Disk::new(Options::default());
    let engine = disk.open("a");
    commit(&engine, vec![put(b"b", &body(1, 8 << 10))], 1);
    engine.flush().unwrap();
    drop(engine);
    let blobs: Vec<_> = std::fs::read_dir(disk.path("a").join(files::BLOBS))
        .unwrap()
        .collect();
    let path = blobs[0].as_ref().unwrap().path();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4_000] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let engine = disk.open("a");
    assert!(matches!(
        engine.snapshot().get(b"b"),
        Err(EngineError::Failed(_))
    ));
}

/// The kernel's own "no space": a file that the library is about to create leads to the device that is always full.
fn fill(path: PathBuf) {
    std::os::unix::fs::symlink("/dev/full", path).unwrap();
}

#[test]
fn no_space_for_a_flush_loses_nothing_and_passes() {
    let disk = Disk::new(Options::default());
    disk.shared.shutdown();
    let engine = disk.open("a");
    commit(
        &engine,
        vec![put(b"a", b"1"), put(b"b", &body(1, 64 << 10))],
        1,
    );
    let (tables, blobs) = (
        disk.path("a").join(files::TABLES),
        disk.path("a").join(files::BLOBS),
    );
    fill(blobs.join("0"));
    assert!(matches!(engine.flush(), Err(EngineError::Full)));
    assert!(engine.durable().is_empty() && engine.stalled());
    assert_eq!(engine.get(b"a").unwrap().unwrap(), "1");
    for folder in [&tables, &blobs] {
        assert_eq!(
            std::fs::read_dir(folder).unwrap().count(),
            0,
            "half-made files keep the disk full"
        );
    }
    // now the tables fit, but not the version
    let next = files::current_version(&disk.path("a")).unwrap() + 1;
    let version = disk.path("a").join(format!("v{next}"));
    fill(version.clone());
    assert!(matches!(engine.flush(), Err(EngineError::Full)));
    assert!(engine.durable().is_empty());
    assert_eq!(std::fs::read_dir(&tables).unwrap().count(), 0);
    std::fs::remove_file(version).unwrap();
    commit(&engine, vec![put(b"a", b"2")], 2);
    engine.flush().unwrap();
    assert!(!engine.stalled());
    drop(engine);
    let engine = disk.open("a");
    assert_eq!(engine.get(b"a").unwrap().unwrap(), "2");
    assert!(engine.get(b"b").unwrap().unwrap() == body(1, 64 << 10));
}

#[test]
fn no_space_for_a_compaction_loses_nothing_and_passes() {
    let disk = Disk::new(Options::default());
    disk.shared.shutdown();
    let engine = disk.open("a");
    for n in 0..8 {
        commit(
            &engine,
            vec![
                put(b"b", &body(n, 64 << 10)),
                put(&[b'k', n as u8], &body(n, 64 << 10)),
            ],
            n,
        );
        engine.flush().unwrap();
    }
    // the second pass relocates, into the next blob file
    let (tables, blobs) = (
        disk.path("a").join(files::TABLES),
        disk.path("a").join(files::BLOBS),
    );
    fill(blobs.join("8"));
    assert!(matches!(engine.collect_garbage(), Err(EngineError::Full)));
    // nothing waits for a flush, so no flush would ever tell a waiting writer that there is room again
    assert!(!engine.stalled());
    assert!(!blobs.join("8").is_symlink());
    assert_eq!(std::fs::read_dir(&tables).unwrap().count(), 1);
    assert!(engine.get(b"b").unwrap().unwrap() == body(7, 64 << 10));
    engine.collect_garbage().unwrap();
    assert_eq!(engine.disk_usage().tables, 1);
    assert_eq!(everything(&*engine.snapshot()).len(), 9);
}

#[test]
fn a_shutdown_gives_up_a_compaction_and_the_engine_goes_on() {
    let disk = Disk::new(Options::default());
    let engine = disk.open("a");
    for n in 0..4 {
        commit(
            &engine,
            (0..200_u8).map(|k| put(&[k], &n_bytes(n))).collect(),
            n,
        );
        engine.flush().unwrap();
    }
    engine.store.interrupt();
    engine.collect_garbage().unwrap();
    assert!(engine.disk_usage().tables > 1);
    disk.shared.shutdown();
    engine.store.resume();
    engine.collect_garbage().unwrap();
    assert_eq!(engine.disk_usage().tables, 1);
    assert_eq!(engine.get(&[7]).unwrap().unwrap(), n_bytes(3));
}

fn n_bytes(n: u32) -> Vec<u8> {
    n.to_be_bytes().to_vec()
}

#[test]
fn no_space_for_the_compaction_a_flush_needs_first() {
    let disk = Disk::new(Options::default());
    disk.shared.shutdown();
    let engine = disk.open("a");
    for n in 0..128 {
        commit(&engine, vec![put(b"a", &n_bytes(n))], n);
        engine.flush().unwrap();
    }
    let next = files::current_version(&disk.path("a")).unwrap() + 1;
    let version = disk.path("a").join(format!("v{next}"));
    fill(version.clone());
    commit(&engine, vec![put(b"a", &n_bytes(128))], 128);
    assert!(matches!(engine.flush(), Err(EngineError::Full)));
    assert_eq!(engine.durable(), n_bytes(127));
    std::fs::remove_file(version).unwrap();
    engine.flush().unwrap();
    assert!(engine.disk_usage().level0_runs < 20);
    assert_eq!(engine.durable(), n_bytes(128));
}

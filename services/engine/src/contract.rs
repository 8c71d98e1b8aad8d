//! The contract of [`Engine`]: every implementation runs [`all`] in its tests.
//!
//! Each check works on a store of its own name. A check that fails panics.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::{Engine, EngineError, KEY_BYTES_MAX, Pair, Snapshot, Write};

/// A machine with a disk: what the contract needs from an implementation.
pub trait Machine {
    /// Opens the store `name`. Called again after every handle was dropped, it is a restart after a crash.
    fn open(&self, name: &str) -> Arc<dyn Engine>;
    /// Replaces the closed store `name` by `pairs`, in key order, at `position`.
    fn replace(&self, name: &str, pairs: Vec<Pair>, position: Bytes) -> Result<(), EngineError>;
}

/// Runs every check.
pub fn all(machine: &dyn Machine) {
    starts_empty(machine);
    writer_sees_its_own_writes(machine);
    snapshots_see_one_commit(machine);
    scan_keeps_its_bounds(machine);
    deletes(machine);
    last_write_of_a_batch_wins(machine);
    refuses_keys_it_cannot_keep(machine);
    large_values(machine);
    positions_are_opaque(machine);
    flush_within_a_batch_keeps_the_batch_whole(machine);
    crash_goes_back_to_the_last_flush(machine);
    replay_is_idempotent(machine);
    thousands_of_overwrites(machine);
    random_histories(machine);
    replaced_whole(machine);
    names_are_apart(machine);
}

/// A write of `value` under `key`.
pub fn put(key: &[u8], value: &[u8]) -> Write {
    Write {
        key: key.to_vec(),
        value: Some(Bytes::copy_from_slice(value)),
    }
}

/// A deletion of `key`.
pub fn delete(key: &[u8]) -> Write {
    Write {
        key: key.to_vec(),
        value: None,
    }
}

fn batch(engine: &dyn Engine, writes: Vec<Write>, position: &'static str) {
    engine.write(writes).unwrap();
    engine
        .commit(Bytes::from_static(position.as_bytes()))
        .unwrap();
}

fn pair(key: &[u8], value: &[u8]) -> Pair {
    (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value))
}

/// Everything in the store, read in small chunks: how a snapshot is exported.
pub fn everything(snapshot: &dyn Snapshot) -> Vec<Pair> {
    let mut pairs: Vec<Pair> = Vec::new();
    let mut from = Vec::new();
    loop {
        let chunk = snapshot.scan(b"", &from, 7).unwrap();
        let Some((last, _)) = chunk.last() else {
            return pairs;
        };
        from = last.to_vec();
        from.push(0);
        pairs.extend(chunk);
    }
}

fn starts_empty(machine: &dyn Machine) {
    let engine = machine.open("empty");
    assert_eq!(
        (engine.position(), engine.durable()),
        (Bytes::new(), Bytes::new())
    );
    assert_eq!(engine.get(b"a").unwrap(), None);
    assert!(engine.scan(b"", b"", 10).unwrap().is_empty());
    assert!(engine.snapshot().position().is_empty());
    assert!(everything(&*engine.snapshot()).is_empty());
    engine.flush().unwrap();
    assert_eq!(
        (engine.durable(), engine.unflushed_bytes()),
        (Bytes::new(), 0)
    );
    assert!(!engine.stalled());
}

fn writer_sees_its_own_writes(machine: &dyn Machine) {
    let engine = machine.open("own-writes");
    batch(
        &*engine,
        vec![put(b"a", b"1"), put(b"b", b"1"), put(b"d", b"1")],
        "1",
    );
    engine
        .write(vec![put(b"b", b"2"), put(b"c", b"2")])
        .unwrap();
    engine.write(vec![delete(b"d"), put(b"e", b"")]).unwrap();
    assert_eq!(engine.get(b"a").unwrap().unwrap(), "1");
    assert_eq!(engine.get(b"b").unwrap().unwrap(), "2");
    assert_eq!(engine.get(b"d").unwrap(), None);
    let seen = engine.scan(b"", b"", 10).unwrap();
    assert_eq!(
        seen,
        [
            pair(b"a", b"1"),
            pair(b"b", b"2"),
            pair(b"c", b"2"),
            pair(b"e", b"")
        ]
    );
    assert_eq!(engine.position(), "1");
    assert!(engine.unflushed_bytes() > 0);
}

fn snapshots_see_one_commit(machine: &dyn Machine) {
    let engine = machine.open("snapshots");
    let empty = engine.snapshot();
    batch(&*engine, vec![put(b"a", b"1"), put(b"b", b"1")], "1");
    let one = engine.snapshot();
    engine.write(vec![put(b"a", b"2")]).unwrap();
    let still_one = engine.snapshot();
    engine.write(vec![delete(b"b")]).unwrap();
    engine.commit(Bytes::from_static(b"2")).unwrap();
    let two = engine.snapshot();
    engine.flush().unwrap();
    batch(&*engine, vec![delete(b"a"), put(b"c", b"3")], "3");
    engine.flush().unwrap();
    assert!(everything(&*empty).is_empty());
    for view in [one, still_one] {
        assert_eq!(view.position(), "1");
        assert_eq!(everything(&*view), [pair(b"a", b"1"), pair(b"b", b"1")]);
        assert_eq!(view.get(b"a").unwrap().unwrap(), "1");
    }
    assert_eq!(
        (two.position(), everything(&*two)),
        (Bytes::from("2"), vec![pair(b"a", b"2")])
    );
    assert_eq!(two.get(b"b").unwrap(), None);
    let three = engine.snapshot();
    assert_eq!(everything(&*three), [pair(b"c", b"3")]);
}

/// A scan of the writer or of a snapshot.
type Scan<'a> = dyn Fn(&[u8], &[u8], usize) -> Vec<Pair> + 'a;

fn scan_keeps_its_bounds(machine: &dyn Machine) {
    let engine = machine.open("scan");
    let keys: [&[u8]; 7] = [
        b"a",
        b"a\x00",
        b"a\xff",
        b"a\xff\xff",
        b"b",
        b"b/1",
        b"\xfe\xff",
    ];
    batch(
        &*engine,
        keys.iter().map(|key| put(key, b"v")).collect(),
        "1",
    );
    let check = |scan: &Scan| {
        let found = |p: &[u8], f: &[u8], n| {
            scan(p, f, n)
                .into_iter()
                .map(|(k, _)| k)
                .collect::<Vec<_>>()
        };
        assert_eq!(found(b"", b"", 100), keys);
        assert_eq!(found(b"", b"", 2), keys[..2]);
        assert_eq!(found(b"a", b"", 100), keys[..4]);
        assert_eq!(found(b"a", b"a\x00", 100), keys[1..4]);
        assert_eq!(found(b"a\xff", b"a", 100), keys[2..4]);
        assert_eq!(found(b"b", b"a", 100), keys[4..6]);
        assert_eq!(found(b"", b"b\x00", 100), keys[5..]);
        assert!(found(b"a", b"b", 100).is_empty());
        assert!(found(b"", b"", 0).is_empty());
        assert!(
            found(b"\xff", b"", 100).is_empty(),
            "the engine's own keys stay hidden"
        );
    };
    // once from memory, once from the disk
    for _ in 0..2 {
        check(&|p, f, n| engine.scan(p, f, n).unwrap());
        check(&|p, f, n| engine.snapshot().scan(p, f, n).unwrap());
        engine.flush().unwrap();
    }
}

fn deletes(machine: &dyn Machine) {
    let engine = machine.open("deletes");
    batch(
        &*engine,
        vec![put(b"a", b"1"), put(b"b", b"1"), delete(b"never")],
        "1",
    );
    engine.flush().unwrap();
    batch(&*engine, vec![delete(b"a")], "2");
    assert_eq!(engine.get(b"a").unwrap(), None);
    engine.flush().unwrap();
    assert_eq!(everything(&*engine.snapshot()), [pair(b"b", b"1")]);
    batch(&*engine, vec![put(b"a", b"3")], "3");
    engine.flush().unwrap();
    drop(engine);
    let engine = machine.open("deletes");
    assert_eq!(
        everything(&*engine.snapshot()),
        [pair(b"a", b"3"), pair(b"b", b"1")]
    );
    batch(&*engine, vec![delete(b"a"), delete(b"b")], "4");
    engine.flush().unwrap();
    drop(engine);
    let engine = machine.open("deletes");
    assert_eq!(
        (engine.position(), engine.durable()),
        (Bytes::from("4"), Bytes::from("4"))
    );
    assert!(everything(&*engine.snapshot()).is_empty());
}

fn last_write_of_a_batch_wins(machine: &dyn Machine) {
    let engine = machine.open("last-wins");
    batch(
        &*engine,
        vec![
            put(b"a", b"1"),
            delete(b"a"),
            put(b"a", b"2"),
            put(b"b", b"1"),
            delete(b"b"),
        ],
        "1",
    );
    engine.flush().unwrap();
    assert_eq!(everything(&*engine.snapshot()), [pair(b"a", b"2")]);
}

fn refuses_keys_it_cannot_keep(machine: &dyn Machine) {
    let engine = machine.open("keys");
    let longest = vec![b'k'; KEY_BYTES_MAX];
    for refused in [&b""[..], b"\xff", b"\xffp", &[b'k'; KEY_BYTES_MAX + 1]] {
        assert!(
            engine
                .write(vec![put(b"a", b"1"), put(refused, b"1")])
                .is_err()
        );
    }
    batch(&*engine, vec![put(&longest, b"1")], "1");
    engine.flush().unwrap();
    assert_eq!(everything(&*engine.snapshot()), [pair(&longest, b"1")]);
}

fn large_values(machine: &dyn Machine) {
    let body = |size: usize| {
        (0..size)
            .map(|at| (at * 31 + size) as u8)
            .collect::<Vec<_>>()
    };
    let sizes = [2047, 2048, 2049, 10 << 10, 128 << 10, 256 << 10];
    let engine = machine.open("large");
    let writes = sizes
        .iter()
        .map(|size| put(format!("b/{size:08}").as_bytes(), &body(*size)))
        .collect();
    batch(&*engine, writes, "1");
    engine.flush().unwrap();
    drop(engine);
    let engine = machine.open("large");
    let view = engine.snapshot();
    for size in sizes {
        let key = format!("b/{size:08}");
        assert!(view.get(key.as_bytes()).unwrap().unwrap() == body(size));
        assert!(engine.get(key.as_bytes()).unwrap().unwrap() == body(size));
    }
    assert_eq!(view.scan(b"b/", b"", 100).unwrap().len(), sizes.len());
}

fn positions_are_opaque(machine: &dyn Machine) {
    let name = "positions";
    for position in [
        &b"\x00"[..],
        b"\xff\xff\x00",
        b"a longer position than any number",
        b"0",
    ] {
        let position = Bytes::copy_from_slice(position);
        let engine = machine.open(name);
        // nothing written: a record without effect still moves the position
        engine.commit(position.clone()).unwrap();
        assert_eq!(engine.position(), position);
        assert_eq!(engine.snapshot().position(), position);
        engine.flush().unwrap();
        assert_eq!(engine.durable(), position);
        drop(engine);
        let engine = machine.open(name);
        assert_eq!(
            (engine.position(), engine.durable()),
            (position.clone(), position)
        );
        assert!(engine.scan(b"", b"", 1).unwrap().is_empty());
    }
}

fn flush_within_a_batch_keeps_the_batch_whole(machine: &dyn Machine) {
    let engine = machine.open("half");
    batch(&*engine, vec![put(b"a", b"1")], "1");
    engine.write(vec![put(b"a", b"2")]).unwrap();
    engine.flush().unwrap();
    engine.write(vec![put(b"b", b"2")]).unwrap();
    assert_eq!(engine.durable(), "1");
    drop(engine);
    let engine = machine.open("half");
    assert_eq!(engine.position(), "1");
    assert_eq!(everything(&*engine.snapshot()), [pair(b"a", b"1")]);
}

fn crash_goes_back_to_the_last_flush(machine: &dyn Machine) {
    let engine = machine.open("crash");
    batch(&*engine, vec![put(b"a", b"1"), put(b"gone", b"1")], "1");
    engine.flush().unwrap();
    batch(
        &*engine,
        vec![put(b"a", b"2"), delete(b"gone"), put(b"new", b"2")],
        "2",
    );
    assert_eq!(
        (engine.position(), engine.durable()),
        (Bytes::from("2"), Bytes::from("1"))
    );
    drop(engine);
    let engine = machine.open("crash");
    assert_eq!(
        (engine.position(), engine.durable()),
        (Bytes::from("1"), Bytes::from("1"))
    );
    assert_eq!(engine.snapshot().position(), "1");
    assert_eq!(
        everything(&*engine.snapshot()),
        [pair(b"a", b"1"), pair(b"gone", b"1")]
    );
    // later writes win over what was there before the crash
    batch(&*engine, vec![put(b"a", b"3")], "3");
    assert_eq!(engine.get(b"a").unwrap().unwrap(), "3");
    engine.flush().unwrap();
    assert_eq!(engine.unflushed_bytes(), 0);
    drop(engine);
    let engine = machine.open("crash");
    assert_eq!(
        everything(&*engine.snapshot()),
        [pair(b"a", b"3"), pair(b"gone", b"1")]
    );
}

fn replay_is_idempotent(machine: &dyn Machine) {
    let name = "replay";
    let record = |n: u8| vec![put(&[b'k', n % 5], &[n]), delete(&[b'k', (n + 1) % 5])];
    let mut model = BTreeMap::new();
    for n in 0..40 {
        apply(&mut model, &record(n));
    }
    for crash_at in [3, 17, 29, 40] {
        let engine = machine.open(name);
        let done = engine.position().first().map_or(0, |last| last + 1);
        for n in done..crash_at {
            engine.write(record(n)).unwrap();
            engine.commit(Bytes::from(vec![n])).unwrap();
            if n % 7 == 0 {
                engine.flush().unwrap();
            }
        }
    }
    let engine = machine.open(name);
    for n in engine.position().first().map_or(0, |last| last + 1)..40 {
        engine.write(record(n)).unwrap();
        engine.commit(Bytes::from(vec![n])).unwrap();
    }
    assert_eq!(everything(&*engine.snapshot()), pairs(&model));
}

fn thousands_of_overwrites(machine: &dyn Machine) {
    let name = "overwrites";
    let engine = machine.open(name);
    for n in 0..5_000_u32 {
        let value = n.to_be_bytes();
        let writes = vec![
            put(b"counter", &value),
            put(&[b'k', (n % 50) as u8], &value),
        ];
        engine.write(writes).unwrap();
        engine.commit(Bytes::copy_from_slice(&value)).unwrap();
        if n % 500 == 499 {
            engine.flush().unwrap();
        }
    }
    drop(engine);
    let engine = machine.open(name);
    let last = 4_999_u32.to_be_bytes();
    assert_eq!(engine.position(), last.as_slice());
    assert_eq!(engine.get(b"counter").unwrap().unwrap(), last.as_slice());
    let found = engine.snapshot().scan(b"k", b"", 100).unwrap();
    let expected: Vec<_> = (0..50_u8)
        .map(|k| pair(&[b'k', k], &(4_950 + u32::from(k)).to_be_bytes()))
        .collect();
    assert_eq!(found, expected);
}

fn replaced_whole(machine: &dyn Machine) {
    let name = "replaced";
    let body = vec![7; 5_000];
    for round in ["first", "again"] {
        let engine = machine.open(name);
        batch(&*engine, vec![put(b"old", b"1"), put(b"a", b"old")], "1");
        engine.flush().unwrap();
        drop(engine);
        let fresh = vec![pair(b"a", round.as_bytes()), pair(b"b", &body)];
        machine
            .replace(name, fresh.clone(), Bytes::from_static(b"9"))
            .unwrap();
        let engine = machine.open(name);
        assert_eq!(
            (engine.position(), engine.durable()),
            (Bytes::from("9"), Bytes::from("9"))
        );
        assert_eq!(everything(&*engine.snapshot()), fresh);
        batch(&*engine, vec![put(b"a", b"later"), delete(b"b")], "10");
        assert_eq!(everything(&*engine.snapshot()), [pair(b"a", b"later")]);
        engine.flush().unwrap();
        drop(engine);
        let engine = machine.open(name);
        assert_eq!(everything(&*engine.snapshot()), [pair(b"a", b"later")]);
    }
    machine
        .replace(name, Vec::new(), Bytes::from_static(b"11"))
        .unwrap();
    let engine = machine.open(name);
    assert_eq!(engine.position(), "11");
    assert!(everything(&*engine.snapshot()).is_empty());
}

fn names_are_apart(machine: &dyn Machine) {
    let (one, two) = (machine.open("apart-1"), machine.open("apart-2"));
    batch(&*one, vec![put(b"a", b"1")], "1");
    batch(&*two, vec![put(b"a", b"2")], "2");
    one.flush().unwrap();
    assert!(two.durable().is_empty());
    assert_eq!(two.get(b"a").unwrap().unwrap(), "2");
    drop((one, two));
    assert_eq!(machine.open("apart-1").get(b"a").unwrap().unwrap(), "1");
}

/// A state as the contract thinks of it.
pub type Model = BTreeMap<Vec<u8>, Bytes>;

/// Applies a record to a model.
pub fn apply(model: &mut Model, writes: &[Write]) {
    for write in writes {
        match &write.value {
            Some(value) => {
                model.insert(write.key.clone(), value.clone());
            }
            None => {
                model.remove(&write.key);
            }
        }
    }
}

/// A model as a scan shows it.
pub fn pairs(model: &Model) -> Vec<Pair> {
    model
        .iter()
        .map(|(key, value)| (Bytes::copy_from_slice(key), value.clone()))
        .collect()
}

/// Small numbers from a seed (xorshift64*), the same everywhere.
pub struct Dice(u64);

impl Dice {
    /// Dice that always fall the same way for a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `sides`.
    pub fn below(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }
}

fn random_histories(machine: &dyn Machine) {
    for seed in 0..6 {
        random_history(machine, seed);
    }
}

/// Random writes, commits, flushes, snapshots and crashes against a model.
fn random_history(machine: &dyn Machine, seed: u64) {
    let name = format!("random-{seed}");
    let mut dice = Dice::new(seed + 1);
    let mut engine = machine.open(&name);
    // the state after each commit; a crash truncates it
    let mut history: Vec<Model> = vec![Model::new()];
    let mut working = Model::new();
    let mut views: Vec<(usize, Box<dyn Snapshot>)> = Vec::new();
    let mut flushed = 0;
    for _ in 0..400 {
        match dice.below(20) {
            0..=9 => {
                let writes = random_record(&mut dice);
                apply(&mut working, &writes);
                engine.write(writes).unwrap();
            }
            10..=13 => {
                history.push(working.clone());
                engine
                    .commit(Bytes::copy_from_slice(
                        &(history.len() as u64 - 1).to_be_bytes(),
                    ))
                    .unwrap();
            }
            14 => {
                engine.flush().unwrap();
                flushed = history.len() - 1;
            }
            15 | 16 => views.push((history.len() - 1, engine.snapshot())),
            17 if !views.is_empty() => {
                views.remove(dice.below(views.len() as u64) as usize);
            }
            18 if dice.below(4) == 0 => {
                views.clear();
                drop(engine);
                engine = machine.open(&name);
                let at = engine
                    .position()
                    .first_chunk::<8>()
                    .map_or(0, |at| u64::from_be_bytes(*at)) as usize;
                assert!(at >= flushed, "a crash took back what was durable");
                history.truncate(at + 1);
                working = history[at].clone();
            }
            _ => {
                let prefix = [b'a' + dice.below(3) as u8];
                let expected: Vec<_> = pairs(&working)
                    .into_iter()
                    .filter(|(k, _)| k.starts_with(&prefix))
                    .take(5)
                    .collect();
                assert_eq!(engine.scan(&prefix, b"", 5).unwrap(), expected);
            }
        }
        if let Some((at, view)) = views.first() {
            let key = random_key(&mut dice);
            assert_eq!(view.get(&key).unwrap(), history[*at].get(&key).cloned());
        }
    }
    for (at, view) in &views {
        assert_eq!(everything(&**view), pairs(&history[*at]));
    }
}

fn random_key(dice: &mut Dice) -> Vec<u8> {
    vec![b'a' + dice.below(3) as u8, dice.below(12) as u8]
}

fn random_record(dice: &mut Dice) -> Vec<Write> {
    let writes = dice.below(5);
    (0..writes)
        .map(|_| {
            let key = random_key(dice);
            let size = [0, 3, 100, 3_000][dice.below(4) as usize];
            let value = (dice.below(4) > 0).then(|| Bytes::from(vec![dice.below(256) as u8; size]));
            Write { key, value }
        })
        .collect()
}

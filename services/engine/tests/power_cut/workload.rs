//! The recorded workload: overwrites and deletions of small and separated values, flushes from the writer and from the
//! budget, compactions, garbage collections that relocate, a restart, and the replacement of the whole store.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hikyaku_engine::contract::{Dice, Model, apply, delete, pairs, put};
use hikyaku_engine::disk::{DiskEngine, Options, Shared};
use hikyaku_engine::{Engine, Write};

use hikyaku_power::record::{Op, Record};

/// The recorded directory.
pub const DISK: &str = "disk";
/// The store in it.
pub const STORE: &str = "store";
/// The file that tells the recorder what the workload knows.
pub const MARKS: &str = "marks";
pub const GC_BEGINS: &str = "gc begins";
pub const GC_ENDS: &str = "gc ends";

const RESTART_AT: usize = 90;
/// This batch is not written but is the store replaced by an earlier state, as a replica is from a peer's snapshot.
const IMPORT: usize = 150;
const IMPORTED: usize = 120;
const BATCHES: usize = 175;
/// Batches of a process that is killed, or recovers what one had left.
const LIFE: usize = 20;

/// The writes of batch `n`, 1 and up.
pub fn batch(n: usize) -> Vec<Write> {
    let mut dice = Dice::new(n as u64);
    let mut writes = vec![put(b"last", n.to_string().as_bytes())];
    for _ in 0..4 {
        let key = format!("b/{:02}", dice.below(24));
        if dice.below(5) == 0 {
            writes.push(delete(key.as_bytes()));
            continue;
        }
        let size = [40, 700, 1_500, 3_000][dice.below(4) as usize];
        let body: Vec<u8> = (0..size).map(|_| dice.below(256) as u8).collect();
        writes.push(put(key.as_bytes(), &body));
        writes.push(put(format!("m/{key}").as_bytes(), &n.to_be_bytes()));
    }
    writes
}

/// The state after each batch, the empty one first.
pub fn states() -> Vec<Model> {
    let mut states = vec![Model::new()];
    for n in 1..=BATCHES {
        if n == IMPORT {
            states.push(states[IMPORTED].clone());
            continue;
        }
        let mut next = states[n - 1].clone();
        apply(&mut next, &batch(n));
        states.push(next);
    }
    states
}

pub fn position(batch: usize) -> Bytes {
    Bytes::copy_from_slice(&(batch as u64).to_be_bytes())
}

pub fn batch_of(position: &[u8]) -> usize {
    position
        .first_chunk::<8>()
        .map_or(0, |at| u64::from_be_bytes(*at) as usize)
}

fn options() -> Options {
    Options {
        memtable_bytes_max: 40 << 10,
        separated_bytes_min: 512,
        blob_file_bytes_max: 24 << 10,
        gc_stale_bytes_min: 48 << 10,
        gc_interval: Duration::from_millis(500),
        ..Options::default()
    }
}

/// Runs the workload in `dir`; the result must be the last of `states`.
pub fn run(dir: &Path, states: &[Model]) {
    std::fs::create_dir(dir.join(DISK)).unwrap();
    let mut marks = File::create(dir.join(MARKS)).unwrap();
    let mut mark = |text: String| marks.write_all(text.as_bytes()).unwrap();
    let store = dir.join(DISK).join(STORE);
    for (batches, import) in [
        (1..=RESTART_AT, false),
        (RESTART_AT + 1..=IMPORT - 1, true),
        (IMPORT + 1..=BATCHES, false),
    ] {
        let shared = Shared::start(options()).unwrap();
        let engine = DiskEngine::open(&store, &shared).unwrap();
        // the last handle was dropped without a flush: what it lost comes back first
        let (first, last) = (batch_of(&engine.position()) + 1, *batches.end());
        for n in first..=last {
            step(&engine, n, &mut mark);
        }
        if last == BATCHES {
            engine.flush().unwrap();
        }
        drop(engine);
        if import {
            mark(format!("begun {IMPORT}"));
            let pairs = pairs(&states[IMPORTED]).into_iter().map(Ok);
            DiskEngine::replace(&store, &shared, pairs, position(IMPORT)).unwrap();
            mark(format!("durable {IMPORT}"));
        }
    }
    let shared = Shared::start(options()).unwrap();
    let engine = DiskEngine::open(&store, &shared).unwrap();
    let found = engine.snapshot().scan(b"", b"", usize::MAX).unwrap();
    assert!(found == pairs(&states[BATCHES]));
}

/// A life of a process: opens the store in `dir`, or makes it there, goes on with the next batches,
/// and replaces the whole store by the state it then has. No thread works beside it, so that its
/// record is always the same.
pub fn live(dir: &Path, states: &[Model]) {
    let mut marks = File::create(dir.join(MARKS)).unwrap();
    let mut mark = |text: String| marks.write_all(text.as_bytes()).unwrap();
    let shared = Shared::start(options()).unwrap();
    shared.shutdown();
    let store = dir.join(DISK).join(STORE);
    let engine = DiskEngine::open(&store, &shared).unwrap();
    let opened = batch_of(&engine.position());
    // the log may be cut up to here
    assert_eq!(engine.durable(), engine.position());
    mark(format!("durable {opened}"));
    for n in opened + 1..=opened + LIFE {
        engine.write(batch(n)).unwrap();
        mark(format!("begun {n}"));
        engine.commit(position(n)).unwrap();
        if n.is_multiple_of(3) {
            engine.flush().unwrap();
            mark(format!("durable {n}"));
        }
        if n.is_multiple_of(9) {
            engine.collect_garbage().unwrap();
        }
    }
    drop(engine);
    let last = opened + LIFE;
    let pairs = pairs(&states[last]).into_iter().map(Ok);
    DiskEngine::replace(&store, &shared, pairs, position(last)).unwrap();
    mark(format!("durable {last}"));
}

fn step(engine: &Arc<DiskEngine>, n: usize, mark: &mut impl FnMut(String)) {
    while engine.stalled() {
        std::thread::sleep(Duration::from_millis(1));
    }
    engine.write(batch(n)).unwrap();
    mark(format!("begun {n}"));
    engine.commit(position(n)).unwrap();
    if n.is_multiple_of(7) {
        engine.flush().unwrap();
        mark(format!("durable {n}"));
    }
    if n.is_multiple_of(20) {
        mark(GC_BEGINS.to_owned());
        engine.collect_garbage().unwrap();
        mark(GC_ENDS.to_owned());
    }
}

/// What the workload had said by some moment.
#[derive(Default)]
pub struct Marks {
    /// The last batch whose commit had begun.
    pub begun: usize,
    /// The last batch that a flush had reported durable.
    pub durable: usize,
}

impl Marks {
    pub fn until(record: &Record, cut: usize) -> Self {
        let mut marks = Self::default();
        for event in record.events.iter().take_while(|event| event.end <= cut) {
            let Op::Mark(text) = &event.op else {
                continue;
            };
            if let Some(n) = text.strip_prefix("begun ") {
                marks.begun = marks.begun.max(n.parse().unwrap());
            } else if let Some(n) = text.strip_prefix("durable ") {
                marks.durable = marks.durable.max(n.parse().unwrap());
            }
        }
        marks
    }
}

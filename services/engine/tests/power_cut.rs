//! Power cuts, recorded and rebuilt.
//!
//! A child process runs a workload on a disk engine under strace. From the record, images of the directory are rebuilt
//! as a power cut could have left it at many moments, before and after each version switch and at random, under four
//! models of what a disk may forget. Each image must open and be exactly one committed batch, no older than the last
//! flush that had been reported durable. It guards the syncs that the LSM library leaves to us, also when the library is
//! updated. The same is done over crashes: a process is killed, another one recovers, and then the
//! power is cut.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "power_cut/recoveries.rs"]
mod recoveries;
#[path = "power_cut/workload.rs"]
mod workload;

use std::path::Path;
use std::process::Command;

use hikyaku_engine::contract::{self, Dice, apply, pairs};
use hikyaku_engine::disk::{DiskEngine, Options, Shared};
use hikyaku_engine::{Engine, Snapshot};
use hikyaku_power::rebuild::{self, Model};
use hikyaku_power::record::{self, Life, Op, Record};
use tempfile::TempDir;

use self::workload::Marks;

const CHILD_DIR: &str = "POWER_CUT_CHILD_DIR";
const RANDOM_CUTS: u64 = 60;
const IMAGES_MIN: usize = 150;
const RELOCATIONS_MIN: usize = 3;

/// A directory in memory where there is one: thousands of images are synced again and again.
fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

/// The child's half; on its own it is the same workload without a recorder.
#[test]
#[ignore = "run under strace by `power_cuts`"]
fn workload() {
    let own = scratch();
    let dir = std::env::var_os(CHILD_DIR).map_or_else(|| own.path().to_owned(), Into::into);
    let states = workload::states();
    workload::run(&dir, &states);
}

#[test]
fn power_cuts() {
    let dir = scratch();
    let record = record_workload(dir.path());
    let states = workload::states();
    let relocations = relocations(&record);
    assert!(
        relocations >= RELOCATIONS_MIN,
        "only {relocations} relocating compactions"
    );
    let replaced = record
        .events
        .iter()
        .any(|event| matches!(event.op, Op::Exchange { .. }));
    assert!(replaced, "the store was never replaced");

    let shared = Shared::start(Options::default()).unwrap();
    let mut dice = Dice::new(11);
    let (mut images, mut red) = (0, Vec::new());
    for (cut, aim) in cuts(&record, &mut dice) {
        for model in [Model::Strict, Model::Ordered, Model::Random, Model::Kill] {
            images += 1;
            let image = scratch();
            let mut below = |sides| dice.below(sides as u64) as usize;
            rebuild::write(&record, cut, model, &mut below, image.path());
            let marks = Marks::until(&record, cut);
            if let Err(fault) = examine(image.path(), &shared, &states, &marks, images % 8 == 0) {
                red.push(format!("{model:?} at {cut} ({aim}): {fault}"));
            }
        }
    }
    assert!(images >= IMAGES_MIN, "only {images} images");
    println!(
        "{images} images, {relocations} relocations, {} red",
        red.len()
    );
    assert!(
        red.is_empty(),
        "{} of {images} images are wrong:\n{}",
        red.len(),
        red.join("\n")
    );
}

fn record_workload(dir: &Path) -> Record {
    let trace = trace_child("workload", dir);
    Record::parse_lives(&[Life {
        trace: &trace,
        root: &dir.join(workload::DISK),
        marks: Some(&dir.join(workload::MARKS)),
        killed_at: None,
    }])
}

/// Runs the ignored test `name` of this program in `dir` under strace; answers the trace.
fn trace_child(name: &str, dir: &Path) -> String {
    let trace = dir.join("trace");
    let run = Command::new("strace")
        .args([
            "-f",
            "--seccomp-bpf",
            "-qq",
            "-xx",
            "-ttt",
            "-s",
            "4194304",
            "-e",
            "signal=none",
            "-e",
        ])
        .arg(format!("trace={}", record::SYSCALLS))
        .arg("-o")
        .arg(&trace)
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            name,
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(CHILD_DIR, dir)
        .output()
        .expect("this test needs strace: install the package `strace`");
    let (out, err) = (
        String::from_utf8_lossy(&run.stdout),
        String::from_utf8_lossy(&run.stderr),
    );
    assert!(
        run.status.success() && out.contains("1 passed"),
        "{name} under strace failed:\n{out}\n{err}"
    );
    std::fs::read_to_string(&trace).unwrap()
}

/// The moments to cut the power: around each version switch, and at random.
fn cuts(record: &Record, dice: &mut Dice) -> Vec<(usize, &'static str)> {
    let mut cuts = Vec::new();
    for (at, event) in record.events.iter().enumerate() {
        match &event.op {
            Op::Rename { to, .. } if to == "current" => {}
            Op::Exchange { .. } => {}
            _ => continue,
        }
        cuts.push((event.end - 1, "before the switch"));
        cuts.push((event.end, "at the switch"));
        let synced = record.events[at..]
            .iter()
            .filter(|later| later.pid == event.pid);
        let synced: Vec<_> = synced
            .filter(|later| matches!(later.op, Op::Sync { .. }))
            .take(2)
            .collect();
        if let Some(last) = synced.last() {
            cuts.push((last.end, "after the switch"));
        }
    }
    let last = record.events.last().map_or(0, |event| event.end);
    cuts.extend((0..RANDOM_CUTS).map(|_| (dice.below(last as u64 + 1) as usize, "random")));
    cuts
}

/// Blob files that compactions wrote.
fn relocations(record: &Record) -> usize {
    let mut collecting = None;
    let mut relocations = 0;
    for event in &record.events {
        match &event.op {
            Op::Mark(mark) if mark == workload::GC_BEGINS => collecting = Some(event.pid),
            Op::Mark(mark) if mark == workload::GC_ENDS => collecting = None,
            Op::Create { dir, .. }
                if Some(event.pid) == collecting && record.is_named(*dir, "blobs") =>
            {
                relocations += 1;
            }
            _ => {}
        }
    }
    relocations
}

/// Opens an image and demands one committed batch; then, if `go_on`, that the store works and keeps what is added.
fn examine(
    image: &Path,
    shared: &Shared,
    states: &[contract::Model],
    marks: &Marks,
    go_on: bool,
) -> Result<(), String> {
    let dir = image.join(workload::STORE);
    let engine =
        DiskEngine::open(&dir, shared).map_err(|error| format!("does not open: {error}"))?;
    let at = workload::batch_of(&engine.position());
    if at < marks.durable || at > marks.begun {
        return Err(format!(
            "batch {at}, but {} was durable and {} begun",
            marks.durable, marks.begun
        ));
    }
    same(&*engine.snapshot(), &states[at])?;
    if !go_on {
        return Ok(());
    }
    let mut next = states[at].clone();
    apply(&mut next, &workload::batch(at + 1));
    engine
        .write(workload::batch(at + 1))
        .map_err(|error| error.to_string())?;
    engine
        .commit(workload::position(at + 1))
        .map_err(|error| error.to_string())?;
    engine
        .flush()
        .map_err(|error| format!("does not flush: {error}"))?;
    engine
        .collect_garbage()
        .map_err(|error| format!("does not compact: {error}"))?;
    drop(engine);
    let engine =
        DiskEngine::open(&dir, shared).map_err(|error| format!("does not open again: {error}"))?;
    same(&*engine.snapshot(), &next)
}

fn same(view: &dyn Snapshot, expected: &contract::Model) -> Result<(), String> {
    let found = view
        .scan(b"", b"", usize::MAX)
        .map_err(|error| format!("does not read: {error}"))?;
    if found == pairs(expected) {
        Ok(())
    } else {
        Err("the state is no batch's".to_owned())
    }
}

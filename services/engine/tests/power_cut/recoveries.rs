//! Power cuts after a crash and a recovery, and after two of each.
//!
//! A process is killed in the middle of a version switch or of a replacement, while the new name is
//! not yet durable, or anywhere. The next one opens what the page cache shows, cleans up, and goes
//! on. Then the power is cut at each change of a name up to its second version switch, with all at
//! stake that neither of them has synced.

use std::path::PathBuf;
use std::sync::Arc;

use hikyaku_engine::contract::{self, Dice};
use hikyaku_engine::disk::{Options, Shared};
use hikyaku_power::rebuild::{self, Model};
use hikyaku_power::record::{Life, Op, Record};
use tempfile::TempDir;

use super::workload::{self, Marks};
use super::{CHILD_DIR, examine, scratch, trace_child};

/// Of the switches of the first process it is killed in one of so many.
const KILL_EVERY: usize = 2;
/// Kills of the first process at any moment.
const KILLS_ANYWHERE: usize = 4;
/// Version switches of a recovered process that cuts are aimed at.
const SWITCHES: usize = 2;
const IMAGES_MIN: usize = 1_000;
/// Removals are the surest to betray a name that is not durable.
const MODELS: [Model; 3] = [Model::Removals, Model::Random, Model::Strict];

/// The child's half; on its own it is the same life without a recorder.
#[test]
#[ignore = "run under strace by `power_cuts_after_recoveries`"]
fn life() {
    let own = scratch();
    let dir = std::env::var_os(CHILD_DIR).map_or_else(|| own.path().to_owned(), PathBuf::from);
    std::fs::create_dir_all(dir.join(workload::DISK)).unwrap();
    workload::live(&dir, &workload::states());
}

#[test]
fn power_cuts_after_recoveries() {
    let states = workload::states();
    let mut cutter = Cutter {
        states: &states,
        shared: Shared::start(Options::default()).unwrap(),
        dice: Dice::new(12),
        images: 0,
        red: Vec::new(),
    };
    let first = Lives::first();
    let record = first.record();
    let all = switches(&record, 0);
    // the first one makes the store, the last one replaces it
    let mut kills = vec![all[0]];
    kills.extend(all.iter().rev().step_by(KILL_EVERY));
    for _ in 0..KILLS_ANYWHERE {
        kills.push(cutter.dice.below(record.lines() as u64) as usize);
    }
    for (number, kill) in kills.into_iter().enumerate() {
        let second = first.go_on(kill);
        cutter.cut(&second);
        let again = switches(&second.record(), second.began())[number % SWITCHES];
        cutter.cut(&second.go_on(again));
    }
    println!("{} images, {} red", cutter.images, cutter.red.len());
    assert!(
        cutter.red.is_empty(),
        "{} of {} images are wrong:\n{}",
        cutter.red.len(),
        cutter.images,
        cutter.red.join("\n")
    );
    assert!(cutter.images >= IMAGES_MIN, "only {} images", cutter.images);
}

/// Processes that used one directory, one after the other; all but the last were killed.
#[derive(Clone, Default)]
struct Lives {
    lives: Vec<Lived>,
}

#[derive(Clone)]
struct Lived {
    home: Arc<TempDir>,
    trace: Arc<String>,
    killed_at: Option<usize>,
}

impl Lives {
    fn first() -> Lives {
        let mut lives = Lives::default();
        lives.live(scratch());
        lives
    }

    /// Kills the last process at the line `killed_at`; the next one recovers what the page cache
    /// shows.
    fn go_on(&self, killed_at: usize) -> Lives {
        let record = self.record();
        let mut lives = self.clone();
        if let Some(last) = lives.lives.last_mut() {
            last.killed_at = Some(killed_at);
        }
        let home = scratch();
        let disk = home.path().join(workload::DISK);
        std::fs::create_dir(&disk).unwrap();
        rebuild::write(&record, killed_at, Model::Kill, &mut |_| 0, &disk);
        lives.live(home);
        lives
    }

    fn live(&mut self, home: TempDir) {
        let trace = trace_child("recoveries::life", home.path());
        self.lives.push(Lived {
            home: home.into(),
            trace: trace.into(),
            killed_at: None,
        });
    }

    /// The first line of the last life.
    fn began(&self) -> usize {
        let killed = self.lives.iter().rev().find_map(|life| life.killed_at);
        killed.map_or(0, |line| line + 1)
    }

    fn record(&self) -> Record {
        let paths = self.lives.iter().map(|life| {
            let home = life.home.path();
            (home.join(workload::DISK), home.join(workload::MARKS))
        });
        let paths: Vec<(PathBuf, PathBuf)> = paths.collect();
        let lives = self.lives.iter().zip(&paths);
        let lives = lives.map(|(life, (root, marks))| Life {
            trace: &life.trace,
            root,
            marks: Some(marks),
            killed_at: life.killed_at,
        });
        Record::parse_lives(&lives.collect::<Vec<_>>())
    }
}

/// The lines from `began` on at which a version's name, or the whole store, has just been switched.
fn switches(record: &Record, began: usize) -> Vec<usize> {
    let switched = |op: &Op| match op {
        Op::Rename { to, .. } => to == "current",
        op => matches!(op, Op::Exchange { .. }),
    };
    let later = record.events.iter().filter(|event| event.start >= began);
    later
        .filter(|event| switched(&event.op))
        .map(|event| event.end)
        .collect()
}

struct Cutter<'a> {
    states: &'a [contract::Model],
    shared: Shared,
    dice: Dice,
    images: usize,
    red: Vec<String>,
}

impl Cutter<'_> {
    /// Cuts the power at each change of a name in the last of `lives`, up to its third switch.
    fn cut(&mut self, lives: &Lives) {
        let (record, began) = (lives.record(), lives.began());
        let until = switches(&record, began)[SWITCHES];
        let changes = record.events.iter().filter(|event| {
            (began..until).contains(&event.start)
                && !matches!(event.op, Op::Write { .. } | Op::Mark(_))
        });
        let changes: Vec<usize> = changes.map(|event| event.end).collect();
        for cut in changes {
            for model in MODELS {
                self.examine(&record, cut, model, lives.lives.len());
            }
        }
    }

    fn examine(&mut self, record: &Record, cut: usize, model: Model, lives: usize) {
        self.images += 1;
        let image = scratch();
        let mut below = |sides| self.dice.below(sides as u64) as usize;
        rebuild::write(record, cut, model, &mut below, image.path());
        let marks = Marks::until(record, cut);
        let go_on = self.images.is_multiple_of(16);
        if let Err(fault) = examine(image.path(), &self.shared, self.states, &marks, go_on) {
            self.red
                .push(format!("{model:?} at {cut}, life {lives}: {fault}"));
        }
    }
}

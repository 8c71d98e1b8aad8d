//! The home shard over both engines, crashing now and then.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use hikyaku_engine::disk::{DiskEngine, Options, Shared};
use hikyaku_engine::memory::{MemoryDisk, MemoryEngine};
use hikyaku_engine::{Engine, Write};
use hikyaku_home::machine::{Answer, HomeMachine, Owner};
use hikyaku_home::read;
use hikyaku_log::{Applied, Bounds, Position, Stamp};
use hikyaku_proto::v1::record::Command;
use hikyaku_proto::v1::{Claim, Record, Tick};
use hikyaku_shard::machine::{Machine, Trouble};

const GOLDEN: &str = "7b26087a76e55ec84dac772273ef41a06bcb4fa072573abc630582b85e2d0d86";

fn stamp(position: u64) -> Stamp {
    Stamp {
        position: Position(position),
        crc: position as u32,
    }
}

fn claim(account: &str, shard: u32) -> Command {
    Command::Claim(Claim {
        account: account.into(),
        shard,
    })
}

fn apply(machine: &mut HomeMachine, position: u64, command: Command) -> Answer {
    let record = Record {
        version: 1,
        cmd_id: Bytes::new(),
        time_ms: 1,
        command: Some(command),
    };
    let answer = machine.apply(stamp(position), record).unwrap();
    machine
        .batch_end(Applied {
            incarnation: 9,
            stamp: stamp(position),
        })
        .unwrap();
    answer
}

fn owner(shard: u16) -> Answer {
    Answer::Owner(Owner {
        shard,
        generation: 1,
    })
}

#[test]
fn what_a_newer_program_wrote_is_not_opened() {
    let engine = MemoryEngine::open(&MemoryDisk::new(), "home-0");
    let write = |key: &[u8], value: Option<Bytes>| {
        let key = key.to_vec();
        engine.write(vec![Write { key, value }]).unwrap();
        engine.commit(Bytes::new()).unwrap();
    };
    write(&[2, b'v'], Some(Bytes::from_static(b"2")));
    let opened = HomeMachine::open(engine.clone()).err();
    assert!(
        matches!(&opened, Some(Trouble::Store(why)) if why.contains("newer program")),
        "{opened:?}"
    );
    write(&[2, b'v'], None);
    assert!(HomeMachine::open(engine.clone()).is_ok());
}

#[test]
fn the_first_claim_wins_for_ever() {
    let engine = MemoryEngine::open(&MemoryDisk::new(), "home-0");
    let mut machine = HomeMachine::open(engine.clone()).unwrap();
    assert_eq!(apply(&mut machine, 1, claim("alice", 3)), owner(3));
    assert_eq!(apply(&mut machine, 2, claim("alice", 4)), owner(3));
    assert_eq!(apply(&mut machine, 3, claim("bob", 4)), owner(4));
    for bad in [
        claim("", 1),
        claim("a b", 1),
        claim("carol", 1 << 14),
        claim("carol", u32::MAX),
    ] {
        assert_eq!(apply(&mut machine, 4, bad), Answer::Malformed);
    }
    let tick = Command::Tick(Tick { log_time_ms: 5 });
    assert_eq!(apply(&mut machine, 5, tick), Answer::Done);
    let snapshot = engine.snapshot();
    let claims = read::claims(&*snapshot, "", 10).unwrap();
    let claims: Vec<_> = claims
        .iter()
        .map(|c| (c.account.as_str(), c.shard))
        .collect();
    assert_eq!(claims, [("alice", 3), ("bob", 4)]);
    assert_eq!(read::claims(&*snapshot, "alice", 10).unwrap().len(), 1);
    assert_eq!(read::owner(&*snapshot, "carol").unwrap(), None);
    assert_eq!(read::audit(&*snapshot).unwrap(), Vec::<String>::new());
    let hash: String = machine
        .state_hash()
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    assert_eq!(hash, GOLDEN, "the format on the disk has changed");
}

#[test]
fn another_log_is_refused() {
    let engine = MemoryEngine::open(&MemoryDisk::new(), "home-0");
    let mut machine = HomeMachine::open(engine.clone()).unwrap();
    apply(&mut machine, 1, claim("alice", 3));
    let bounds = |start, end| Bounds {
        start: Position(start),
        end: Position(end),
    };
    let mut reopened = HomeMachine::open(engine).unwrap();
    assert_eq!(reopened.resume(9, bounds(1, 2)), Ok(Position(2)));
    for (incarnation, bounds) in [(8, bounds(1, 2)), (9, bounds(1, 1)), (9, bounds(3, 9))] {
        let resumed = reopened.resume(incarnation, bounds);
        assert!(
            matches!(resumed, Err(Trouble::LogMismatch(_))),
            "{resumed:?}"
        );
    }
}

fn crashes(mut open: impl FnMut() -> Arc<dyn Engine>, crash_every: u64) {
    let command =
        |position: u64| claim(&format!("account{}", position % 97), (position % 7) as u32);
    let mut engine = open();
    let mut machine = HomeMachine::open(engine.clone()).unwrap();
    let mut owners = BTreeMap::new();
    let mut position = 0;
    let mut high = 0;
    while position < 1_000 {
        position += 1;
        let answer = apply(&mut machine, position, command(position));
        let account = position % 97;
        // also over a replay: whoever was first stays
        assert_eq!(*owners.entry(account).or_insert(answer), answer);
        if position % 40 == 0 {
            engine.flush().unwrap();
        }
        if position > high && position % crash_every == 0 {
            high = position;
            let keep_from = machine.keep_from();
            drop(machine);
            drop(engine);
            engine = open();
            machine = HomeMachine::open(engine.clone()).unwrap();
            let bounds = Bounds {
                start: Position(1),
                end: Position(position + 1),
            };
            let next = machine.resume(9, bounds).unwrap();
            assert!(next >= keep_from);
            position = next.0 - 1;
        }
    }
    assert_eq!(
        read::audit(&*engine.snapshot()).unwrap(),
        Vec::<String>::new()
    );
}

#[test]
fn owners_survive_crashes() {
    let disk = MemoryDisk::new();
    crashes(|| MemoryEngine::open(&disk, "home-0"), 33);
}

#[test]
fn owners_survive_crashes_on_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let shared = Shared::start(Options::default()).unwrap();
    crashes(|| DiskEngine::open(dir.path(), &shared).unwrap(), 250);
}

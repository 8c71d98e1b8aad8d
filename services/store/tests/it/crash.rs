//! Random commands, random crashes: the state is a function of the log prefix, and no UID is ever given twice.

use std::collections::BTreeMap;
use std::sync::Arc;

use hikyaku_engine::Engine;
use hikyaku_engine::disk::{DiskEngine, Options, Shared};
use hikyaku_engine::memory::{MemoryDisk, MemoryEngine};
use hikyaku_log::{Bounds, Position};
use hikyaku_proto::v1::ingest::Piece;
use hikyaku_proto::v1::record::Command;
use hikyaku_proto::v1::{
    AccountState, CreateMailbox, Expunge, Ingest, IngestAccount, OpenAccount, SetAccount,
    StoreFlags, Tick, Void,
};
use hikyaku_shard::machine::Machine;
use hikyaku_store::machine::{Answer, MailboxMachine};

use crate::bench::{Bench, DAY_MS, INCARNATION, Random, delivery, delivery_id};

const ACCOUNTS: [&str; 4] = ["alice", "bob", "carol", "dave"];

/// Where the machine under test lives, and how it crashes.
trait Place {
    fn open(&mut self) -> Arc<dyn Engine>;
}

struct Memory(MemoryDisk);

impl Place for Memory {
    fn open(&mut self) -> Arc<dyn Engine> {
        MemoryEngine::open(&self.0, "mbox-0")
    }
}

/// A clean stop of the process without a flush: memory is lost as in a crash.
struct Disk {
    dir: tempfile::TempDir,
    shared: Shared,
}

impl Place for Disk {
    fn open(&mut self) -> Arc<dyn Engine> {
        DiskEngine::open(&self.dir.path().join("mbox-0"), &self.shared).unwrap()
    }
}

fn random_command(
    random: &mut Random,
    now_ms: &mut u64,
    validity: &BTreeMap<&str, u32>,
) -> Command {
    let account = ACCOUNTS[random.below(4) as usize];
    let name = account.to_owned();
    let uid_validity = validity.get(account).copied().unwrap_or(0);
    let uids = (0..=random.below(4))
        .map(|_| random.below(12) as u32)
        .collect();
    *now_ms += random.below(60_000);
    match random.below(100) {
        0..50 => {
            let mut deliver = delivery(account, random.below(60));
            deliver.quota_bytes = random.below(3) * 700;
            Command::Deliver(deliver)
        }
        50..66 => Command::Expunge(Expunge {
            account: name,
            mailbox_id: 0,
            uid_validity,
            uids,
        }),
        66..76 => Command::StoreFlags(StoreFlags {
            account: name,
            mailbox_id: 0,
            uid_validity,
            uids,
            how: (1 + random.below(3)) as i32,
            flags: vec!["\\Seen".into(), format!("k{}", random.below(4))],
            unchanged_since: random.below(2) * random.below(20),
        }),
        76..82 => Command::OpenAccount(OpenAccount {
            account: name,
            generation: 1,
            tenant: format!("tenant{}", random.below(2)),
        }),
        82..86 => Command::Void(Void {
            delivery_id: delivery_id(random.below(60)),
            account: name,
        }),
        86..89 => Command::CreateMailbox(CreateMailbox {
            account: name,
            name: format!("box{}", random.below(5)),
            special_use: String::new(),
        }),
        89..93 => {
            let state = 1 + random.below(4) as i32;
            Command::SetAccount(SetAccount {
                account: name,
                state: Some(state),
                quota_bytes: None,
                purge_at_ms: *now_ms + random.below(3) * DAY_MS,
            })
        }
        93..95 => Command::Ingest(Ingest {
            account: name,
            generation: 1,
            piece: Some(Piece::Begin(IngestAccount {
                state: AccountState::Active.into(),
                ..IngestAccount::default()
            })),
        }),
        _ => {
            *now_ms += random.below(4 * DAY_MS);
            Command::Tick(Tick {
                log_time_ms: *now_ms,
            })
        }
    }
}

/// Runs `records` random commands on a steady machine and on one that crashes; returns what happened, by name.
fn run(seed: u64, records: usize, place: &mut dyn Place) -> BTreeMap<&'static str, u64> {
    let mut random = Random(seed);
    let mut steady = Bench::new();
    let mut shaky = Bench::over(place.open());
    let mut answers = Vec::new();
    let mut validity = BTreeMap::new();
    let mut given: BTreeMap<(String, Name), u64> = BTreeMap::new();
    let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut now_ms = steady.now_ms;
    for _ in 0..records {
        let command = random_command(&mut random, &mut now_ms, &validity);
        steady.now_ms = now_ms;
        let answer = steady.run(command.clone());
        if let (Command::Deliver(deliver), Answer::Delivered(at)) = (&command, &answer) {
            // M2: (mailbox, UIDVALIDITY, UID) names one message for all time
            let account = ACCOUNTS
                .iter()
                .find(|name| **name == deliver.account)
                .unwrap();
            validity.insert(*account, at.uid_validity);
            let name = (deliver.account.clone(), Name(at.uid_validity, at.uid));
            let position = steady.log.len() as u64;
            assert_eq!(given.insert(name, position), None, "a UID was given twice");
        }
        *counts.entry(word(&answer)).or_default() += 1;
        answers.push(answer);
    }
    shaky.log = steady.log.clone();
    let mut position = 0;
    while position < records as u64 {
        let batch = 1 + random.below(7).min(records as u64 - position - 1);
        for _ in 0..batch {
            position += 1;
            // M1: whatever crashed before, the same record gives the same answer
            assert_eq!(
                shaky.apply(position),
                answers[position as usize - 1],
                "seed {seed}"
            );
            if random.below(60) == 0 {
                position = crash(&mut shaky, place);
                *counts.entry("crash").or_default() += 1;
                break;
            }
        }
        if shaky.machine.applied().stamp.position.0 < position {
            shaky.commit(position);
        }
        if random.below(20) == 0 {
            shaky.engine.flush().unwrap();
        }
    }
    assert_eq!(
        shaky.machine.state_hash(),
        steady.machine.state_hash(),
        "seed {seed}"
    );
    steady.assert_clean();
    shaky.assert_clean();
    counts
}

/// Everything not flushed is gone; where the machine goes on.
fn crash(bench: &mut Bench, place: &mut dyn Place) -> u64 {
    let durable = bench.machine.keep_from();
    // the old one first: it holds the directory
    bench.engine = MemoryEngine::open(&MemoryDisk::new(), "nothing");
    bench.machine = MailboxMachine::open(bench.engine.clone()).unwrap();
    bench.engine = place.open();
    bench.machine = MailboxMachine::open(bench.engine.clone()).unwrap();
    let bounds = Bounds {
        start: Position(1),
        end: Position(bench.log.len() as u64 + 1),
    };
    let next = bench.machine.resume(INCARNATION, bounds).unwrap();
    assert!(
        next >= durable,
        "the log was needed further back than it was kept"
    );
    bench.assert_clean();
    next.0 - 1
}

/// UIDVALIDITY and UID.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Name(u32, u32);

fn word(answer: &Answer) -> &'static str {
    match answer {
        Answer::Done => "done",
        Answer::Opened { .. } => "opened",
        Answer::Delivered(_) => "delivered",
        Answer::AlreadyDelivered(_) => "already delivered",
        Answer::OverQuota => "over quota",
        Answer::Disabled => "disabled",
        Answer::NotOwner => "not owner",
        Answer::Busy => "busy",
        Answer::Voided => "voided",
        Answer::Expunged(0) => "nothing expunged",
        Answer::Expunged(_) => "expunged",
        Answer::Flagged(_) => "flagged",
        Answer::Created { .. } => "created",
        Answer::Ingested => "ingested",
        Answer::Discarding => "discarding",
        Answer::Exists => "exists",
        Answer::Refused(_) => "refused",
    }
}

#[test]
fn state_is_a_function_of_the_log_prefix_over_crashes() {
    let mut total: BTreeMap<&'static str, u64> = BTreeMap::new();
    for seed in 0..60 {
        for (word, count) in run(seed, 400, &mut Memory(MemoryDisk::new())) {
            *total.entry(word).or_default() += count;
        }
    }
    // what never happened was not tested
    for expected in [
        "delivered",
        "already delivered",
        "over quota",
        "disabled",
        "not owner",
        "busy",
        "voided",
        "expunged",
        "flagged",
        "created",
        "ingested",
        "exists",
        "refused",
        "crash",
    ] {
        assert!(
            total.get(expected).is_some_and(|count| *count >= 10),
            "{expected}: {total:?}"
        );
    }
}

#[test]
fn the_same_over_the_disk_engine() {
    for seed in 1_000..1_004 {
        let mut place = Disk {
            dir: tempfile::tempdir().unwrap(),
            shared: Shared::start(Options::default()).unwrap(),
        };
        let counts = run(seed, 300, &mut place);
        assert!(counts.contains_key("delivered"));
    }
}

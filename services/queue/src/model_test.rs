//! The queue against its history: replicas that begin anywhere, with Carry records of deposed leaders arriving late, must hold
//! what the whole history says. The oracle applies every record but the Carry ones, which change nothing.

use std::collections::BTreeMap;

use bytes::Bytes;
use hikyaku_log::{Applied, Bounds, Position, Stamp};
use hikyaku_mail::id::MessageId;
use hikyaku_proto::v1::operate::Order;
use hikyaku_proto::v1::outcome::Result as Attempt;
use hikyaku_proto::v1::recipient_state::State;
use hikyaku_proto::v1::{
    Accept, Attempted, Bounce, BouncedRecipient, Cancel, Delayed, Held, Operate, Outcome, Record,
    Routed, Tick, record::Command,
};
use hikyaku_shard::machine::Machine;
use prost::Message as _;

use crate::bodies::body_in;
use crate::held::{GROUP_TOO_LARGE, HeldFor};
use crate::index::{Index, Tally};
use crate::machine::{Answer, QueueMachine, QueueOptions};
use crate::recipient::Stand;
use crate::testing::{
    accept, deferred_outcome, delivered_outcome, expand, id, local, outcome, remote,
};

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        let n = from.len() as u64;
        (n > 0).then(|| &from[self.below(n) as usize])
    }
}

struct Replica {
    machine: QueueMachine,
    next: Position,
    /// Where it has replayed what was there when it began, and may lead.
    leads_from: Position,
}

impl Replica {
    fn at(start: Position) -> Replica {
        Replica::within(start, start)
    }

    fn within(start: Position, end: Position) -> Replica {
        let options = QueueOptions {
            cancel_window_ms: u64::MAX / 4,
            ..QueueOptions::default()
        };
        let mut machine = QueueMachine::new(options);
        let bounds = Bounds { start, end };
        machine.resume(1, bounds).unwrap();
        Replica {
            machine,
            next: start,
            leads_from: end,
        }
    }

    fn apply(&mut self, record: &Record) -> Answer {
        let stamp = Stamp {
            position: self.next,
            crc: 0,
        };
        // through its bytes, as the log would give it
        let payload = Bytes::from(record.encode_to_vec());
        let answer = self.machine.apply(stamp, Record::decode(payload).unwrap());
        self.machine
            .batch_end(Applied {
                incarnation: 1,
                stamp,
            })
            .unwrap();
        self.next = self.next.next();
        answer.unwrap()
    }

    fn skip(&mut self) {
        self.next = self.next.next();
    }
}

struct World {
    random: Random,
    history: Vec<Record>,
    start: Position,
    /// Applies everything and never hears of truncation.
    deaf: Replica,
    /// Applies everything and hears of every truncation at once.
    hearing: Replica,
    /// Applies everything but Carry.
    oracle: Replica,
    leaders: Vec<Replica>,
    in_flight: Vec<Command>,
    made: u64,
    restored: u64,
    records: BTreeMap<&'static str, u64>,
}

impl World {
    fn new(seed: u64) -> World {
        World {
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            history: Vec::new(),
            start: Position(1),
            deaf: Replica::at(Position(1)),
            hearing: Replica::at(Position(1)),
            oracle: Replica::at(Position(1)),
            leaders: vec![Replica::at(Position(1)), Replica::at(Position(1))],
            in_flight: Vec::new(),
            made: 0,
            restored: 0,
            records: Default::default(),
        }
    }

    fn append(&mut self, command: Command) {
        let word = match &command {
            Command::Accept(_) => "accept",
            Command::Cancel(_) => "cancel",
            Command::Attempted(attempted) => {
                match (&attempted.report, &attempted.outcomes[0].result) {
                    (None, _) => "attempted",
                    (Some(_), Some(Attempt::Delayed(_))) => "report of a delay",
                    (Some(_), _) => "report of a delivery",
                }
            }
            Command::Routed(routed) if routed.report.is_some() => "report of an expansion",
            Command::Routed(_) => "routed",
            Command::Bounce(_) => "bounce",
            Command::Operate(_) => "operate",
            Command::Carry(_) => "carry",
            _ => "tick",
        };
        let record = Record {
            version: 1,
            cmd_id: self.random.next().to_be_bytes().to_vec().into(),
            time_ms: self.history.len() as u64,
            command: Some(command),
        };
        self.history.push(record);
        let record = &self.history[self.history.len() - 1];
        let known = self.hearing.machine.index().messages().len();
        self.deaf.apply(record);
        let answer = self.hearing.apply(record);
        *self.records.entry(word).or_default() += u64::from(answer != Answer::Void);
        if word == "carry" {
            self.oracle.skip();
            let now = self.hearing.machine.index().messages().len();
            assert_eq!(known, now, "a Carry changed what the hearing replica knows");
        } else {
            self.oracle.apply(record);
        }
    }

    fn new_id(&mut self) -> MessageId {
        self.made += 1;
        id(self.made)
    }

    fn step(&mut self) {
        match self.random.below(22) {
            0..3 => {
                let recipients = match self.random.below(4) {
                    0 => vec![local("a")],
                    1 => vec![local("a"), local("b"), local("a")],
                    2 => vec![expand("team"), local("b")],
                    _ => vec![local("c"), expand("team"), expand("other")],
                };
                let id = self.new_id();
                self.in_flight.push(Command::Accept(accept(id, recipients)));
                if self.random.below(8) == 0 {
                    self.in_flight.push(Command::Cancel(Cancel {
                        message_id: id.to_bytes().to_vec().into(),
                    }));
                }
            }
            3..9 if !self.in_flight.is_empty() => {
                let n = self.random.below(self.in_flight.len() as u64) as usize;
                let command = self.in_flight.swap_remove(n);
                let once = matches!(command, Command::Accept(_) | Command::Operate(_));
                if !once && self.random.below(10) == 0 {
                    self.in_flight.push(command.clone());
                }
                self.append(command);
            }
            9..13 => {
                let who = self.random.below(2) as usize;
                self.advance(who);
            }
            13..19 => self.leader_acts(),
            19 => self.truncate(),
            20 => self.append(Command::Tick(Tick {
                log_time_ms: self.history.len() as u64 * 1000,
            })),
            _ => self.check(),
        }
    }

    fn advance(&mut self, who: usize) {
        let leader = &mut self.leaders[who];
        if leader.next < self.start || self.random.below(12) == 0 {
            let end = Position(self.history.len() as u64 + 1);
            *leader = Replica::within(self.start, end);
        }
        if self.random.below(3) == 0 {
            leader.machine.log_start(self.start);
        }
        for _ in 0..self.random.below(24) {
            let index = usize::try_from(leader.next.0 - 1).unwrap();
            let Some(record) = self.history.get(index) else {
                break;
            };
            leader.apply(record);
        }
    }

    /// A leader does something about a message as it sees it; the record reaches the log some time later, or never.
    fn leader_acts(&mut self) {
        let who = self.random.below(2) as usize;
        if self.leaders[who].next < self.leaders[who].leads_from {
            return;
        }
        let index = self.leaders[who].machine.index();
        let ids: Vec<MessageId> = index.messages().keys().collect();
        let Some(&message_id) = self.random.pick(&ids) else {
            return;
        };
        let Some(message) = index.message(message_id) else {
            return;
        };
        let states = QueueMachine::states(message);
        let bytes = Bytes::from(message_id.to_bytes().to_vec());
        let live: Vec<u32> = (0..)
            .zip(&states)
            .filter(|(_, state)| !matches!(state.state, Some(State::Terminal(_))))
            .map(|(number, _)| number)
            .collect();
        let Some(&recipient) = self.random.pick(&live) else {
            return;
        };
        let due_ms = self.random.below(1000);
        let report = match self.random.below(3) {
            0 => Some(accept(self.new_id(), vec![local("sender")])),
            _ => None,
        };
        let command = match self.random.below(14) {
            0..4 => Command::Attempted(Attempted {
                message_id: bytes,
                outcomes: vec![delivered_outcome(recipient, 1)],
                report,
            }),
            12 => Command::Attempted(Attempted {
                message_id: bytes,
                outcomes: match self.random.below(2) {
                    0 => vec![delayed_outcome(recipient)],
                    _ => live.iter().map(|number| delayed_outcome(*number)).collect(),
                },
                report: Some(accept(self.new_id(), vec![local("sender")])),
            }),
            13 => Command::Attempted(Attempted {
                message_id: bytes,
                outcomes: vec![held_outcome(recipient)],
                report: None,
            }),
            4 => Command::Attempted(Attempted {
                message_id: bytes,
                outcomes: live
                    .iter()
                    .map(|number| deferred_outcome(*number, due_ms))
                    .collect(),
                report: None,
            }),
            5 => Command::Routed(Routed {
                message_id: bytes,
                recipient,
                children: vec![local("b"), local("d"), remote("x")],
                report,
                ..Routed::default()
            }),
            6 => {
                let dsn = accept(self.new_id(), vec![local("sender")]);
                self.bounce(bytes, recipient, Some(dsn))
            }
            7 => {
                let order = *self
                    .random
                    .pick(&[Order::Hold, Order::Release, Order::Delete, Order::Retry])
                    .unwrap();
                let recipients = if self.random.below(2) == 0 {
                    vec![]
                } else {
                    vec![recipient]
                };
                Command::Operate(Operate {
                    order: order.into(),
                    message_id: bytes,
                    recipients,
                    reason: "model".into(),
                    operator: "test".into(),
                })
            }
            _ => {
                let draft = self.leaders[who].machine.draft_of(message_id).unwrap();
                Command::Carry(draft.carry)
            }
        };
        self.in_flight.push(command);
    }

    fn bounce(&mut self, message_id: Bytes, recipient: u32, dsn: Option<Accept>) -> Command {
        let recipients = vec![BouncedRecipient {
            recipient,
            status: None,
        }];
        Command::Bounce(Bounce {
            message_id,
            recipients,
            dsn,
        })
    }

    fn truncate(&mut self) {
        let who = self.random.below(2) as usize;
        let leader = &mut self.leaders[who];
        if leader.next < self.start {
            return;
        }
        self.start = self.start.max(leader.machine.keep_from());
        leader.machine.log_start(self.start);
        self.hearing.machine.log_start(self.start);
    }

    /// A replica that begins now, at the log start, and those that saw everything.
    fn check(&mut self) {
        let mut young = Replica::at(self.start);
        for record in &self.history[usize::try_from(self.start.0 - 1).unwrap()..] {
            young.apply(record);
        }
        self.restored += young.machine.counters().restored;
        let want = self.oracle.machine.state_hash();
        let names = ["deaf", "hearing", "young"];
        for (name, replica) in names.iter().zip([&self.deaf, &self.hearing, &young]) {
            let index = replica.machine.index();
            assert_eq!(
                index.messages().keys().collect::<Vec<_>>(),
                self.oracle
                    .machine
                    .index()
                    .messages()
                    .keys()
                    .collect::<Vec<_>>(),
                "{name} replica, log start {}",
                self.start
            );
            assert_eq!(replica.machine.state_hash(), want, "{name} replica");
            assert_counted(index);
            for (id, message) in index.messages().iter() {
                assert!(message.body_at >= self.start, "{name}: content cut away");
                let record = &self.history[usize::try_from(message.body_at.0 - 1).unwrap()];
                assert!(body_in(record.clone(), id).is_some(), "{name}: no content");
            }
        }
        assert_eq!(
            young.machine.index().oldest(),
            self.hearing.machine.index().oldest(),
            "what pins the log, log start {}",
            self.start
        );
    }
}

#[test]
fn every_replica_holds_what_the_history_says() {
    let mut records = BTreeMap::new();
    let (mut truncated, mut restored) = (0, 0);
    for seed in 0..120 {
        let mut world = World::new(seed);
        for _ in 0..400 {
            world.step();
        }
        world.check();
        truncated += u64::from(world.start > Position(1));
        restored += world.restored;
        for (word, count) in world.records {
            *records.entry(word).or_insert(0) += count;
        }
    }
    println!(
        "effective records {records:?}, seeds with truncation {truncated}, restored {restored}"
    );
    for word in [
        "accept",
        "cancel",
        "attempted",
        "routed",
        "bounce",
        "operate",
        "carry",
        "report of a delivery",
        "report of a delay",
        "report of an expansion",
    ] {
        assert!(records[word] > 100, "{word} hardly occurred: {records:?}");
    }
    assert!(truncated > 60 && restored > 1000, "{truncated} {restored}");
}

#[test]
fn a_repeated_accept_and_a_repeated_order_have_no_effect() {
    let mut replica = Replica::at(Position(1));
    let record = |cmd: u8, command| Record {
        version: 1,
        cmd_id: vec![cmd; 16].into(),
        time_ms: 5,
        command: Some(command),
    };
    let bytes = Bytes::from(id(1).to_bytes().to_vec());
    let operate = |order: Order| {
        Command::Operate(Operate {
            order: order.into(),
            message_id: bytes.clone(),
            reason: "test".into(),
            ..Operate::default()
        })
    };
    let accepted = record(1, Command::Accept(accept(id(1), vec![local("a")])));
    assert_eq!(replica.apply(&accepted), Answer::Changed(1));
    assert_eq!(
        replica.apply(&record(2, operate(Order::Hold))),
        Answer::Changed(1)
    );
    assert_eq!(replica.machine.take_due(u64::MAX, u64::MAX, 9), []);
    replica.apply(&record(3, operate(Order::Release)));
    assert_eq!(
        replica.apply(&record(2, operate(Order::Hold))),
        Answer::Void
    );
    assert_eq!(
        replica.machine.take_due(0, u64::MAX, 9),
        [(id(1), 0)],
        "still released"
    );
    let attempted = Command::Attempted(Attempted {
        message_id: bytes,
        outcomes: vec![delivered_outcome(0, 1)],
        report: None,
    });
    replica.apply(&record(4, attempted));
    assert!(replica.machine.index().messages().is_empty());
    assert_eq!(replica.apply(&accepted), Answer::Void);
    assert_eq!(replica.machine.state_hash(), [0; 32]);
    assert_eq!(replica.machine.keep_from(), Position(7));
}

#[test]
fn a_cancel_that_comes_first_waits_for_its_accept() {
    let mut replica = Replica::at(Position(1));
    let cancel = Record {
        version: 1,
        command: Some(Command::Cancel(Cancel {
            message_id: id(1).to_bytes().to_vec().into(),
        })),
        ..Record::default()
    };
    replica.apply(&cancel);
    assert_eq!(replica.machine.keep_from(), Position(1));
    let late = Record {
        version: 1,
        command: Some(Command::Accept(accept(id(1), vec![local("a"), local("b")]))),
        ..Record::default()
    };
    replica.apply(&late);
    assert!(replica.machine.index().messages().is_empty());
    assert_eq!(replica.machine.keep_from(), Position(3));
}

#[test]
fn garbage_is_counted_from_the_log_start() {
    let mut replica = Replica::at(Position(1));
    for n in 1..2000 {
        let record = Record {
            version: 1,
            command: Some(Command::Accept(accept(id(n), vec![local("a")]))),
            ..Record::default()
        };
        replica.apply(&record);
        if n > 1 {
            let attempted = Attempted {
                message_id: id(n).to_bytes().to_vec().into(),
                outcomes: vec![delivered_outcome(0, 1)],
                report: None,
            };
            replica.apply(&Record {
                version: 1,
                command: Some(Command::Attempted(attempted)),
                ..Record::default()
            });
        }
    }
    assert!(replica.machine.should_carry(100_000));
    assert_eq!(replica.machine.keep_from(), Position(1));
    let draft = replica.machine.draft(replica.next).unwrap();
    assert_eq!(draft.id, id(1));
    replica.apply(&Record {
        version: 1,
        command: Some(Command::Carry(draft.carry)),
        ..Record::default()
    });
    let keep_from = replica.machine.keep_from();
    assert!(keep_from.0 > 3990);
    replica.machine.log_start(keep_from);
    assert!(!replica.machine.should_carry(100_000));
    assert!(replica.machine.kept_len() < 5);
}

/// What is counted of the messages is what counting them comes to.
fn assert_counted(index: &Index) {
    let (mut tallies, mut held_for) = (BTreeMap::new(), HeldFor::default());
    let (mut bytes, mut memory) = (0, 0);
    for message in index.messages().iter().map(|(_, message)| message) {
        bytes += message.log_bytes;
        memory += message.memory_bytes();
        let tally: &mut Tally = tallies.entry(message.tenant.clone()).or_default();
        tally.messages += 1;
        tally.bytes += message.log_bytes;
        for slot in &message.slots {
            held_for.moved(None, slot.stand());
            match slot.stand() {
                Stand::Terminal(_) => {}
                Stand::Pending(_) if message.held.is_empty() => match slot.attempts() {
                    0 => tally.incoming += 1,
                    _ => tally.deferred += 1,
                },
                Stand::Pending(_) | Stand::Held(_) => tally.hold += 1,
            }
        }
    }
    assert_eq!(*index.tallies(), tallies);
    assert_eq!(index.held_for(), held_for);
    assert_eq!((index.bytes(), index.memory_bytes()), (bytes, memory));
}

fn held_outcome(number: u32) -> Outcome {
    let reason = GROUP_TOO_LARGE.to_owned();
    outcome(number, Attempt::Held(Held { reason }))
}

fn delayed_outcome(number: u32) -> Outcome {
    outcome(number, Attempt::Delayed(Delayed {}))
}

#[test]
fn there_is_one_report_of_one_event_and_none_of_what_did_not_happen() {
    let mut replica = Replica::at(Position(1));
    let mut asking = local("a");
    asking.notify = "SUCCESS,DELAY".into();
    let mut made = 10;
    let mut apply = |command: &dyn Fn(Accept) -> Command| {
        made += 1;
        let report = accept(id(made), vec![local("sender")]);
        let answer = replica.apply(&Record {
            version: 1,
            command: Some(command(report)),
            ..Record::default()
        });
        let known = replica.machine.index().message(id(made)).is_some();
        assert_eq!(known, answer != Answer::Void && made > 11, "{answer:?}");
        (answer, replica.machine.index().messages().len())
    };
    let attempted = |outcome, report| {
        Command::Attempted(Attempted {
            message_id: id(1).to_bytes().to_vec().into(),
            outcomes: vec![outcome],
            report: Some(report),
        })
    };
    let to = [asking.clone(), expand("team"), asking.clone(), expand("b")];
    let first = accept(id(1), to.to_vec());
    apply(&|_| Command::Accept(first.clone()));
    let delays = |numbers: &'static [u32]| {
        move |report| {
            Command::Attempted(Attempted {
                message_id: id(1).to_bytes().to_vec().into(),
                outcomes: numbers
                    .iter()
                    .map(|number| delayed_outcome(*number))
                    .collect(),
                report: Some(report),
            })
        }
    };
    let delayed = delays(&[0]);
    assert_eq!(apply(&delayed), (Answer::Changed(1), 2));
    assert_eq!(apply(&delayed), (Answer::Void, 2), "told once");
    // one report tells of several, or of none: the third one collapsed into the first
    assert_eq!(apply(&delays(&[0, 1])), (Answer::Void, 2));
    assert_eq!(apply(&delays(&[1, 2])), (Answer::Void, 2));
    assert_eq!(apply(&delays(&[1, 9])), (Answer::Void, 2));
    assert_eq!(apply(&delays(&[1, 3])), (Answer::Changed(2), 3));
    assert_eq!(apply(&delays(&[3])), (Answer::Void, 3));
    let delivered = |report| attempted(delivered_outcome(0, 1), report);
    assert_eq!(apply(&delivered), (Answer::Changed(1), 4));
    assert_eq!(apply(&delivered), (Answer::Void, 4));
    assert_eq!(apply(&delayed), (Answer::Void, 4), "too late");
    let routed = |report| {
        Command::Routed(Routed {
            message_id: id(1).to_bytes().to_vec().into(),
            recipient: 1,
            children: vec![local("b")],
            report: Some(report),
            ..Routed::default()
        })
    };
    assert_eq!(apply(&routed), (Answer::Changed(1), 5));
    assert_eq!(apply(&routed), (Answer::Void, 5));
    // what cannot be one event is nothing
    let two = |report| {
        Command::Attempted(Attempted {
            message_id: id(1).to_bytes().to_vec().into(),
            outcomes: vec![delivered_outcome(2, 1), delivered_outcome(0, 1)],
            report: Some(report),
        })
    };
    assert_eq!(apply(&two), (Answer::Void, 5));
    assert_eq!(apply(&delays(&[])), (Answer::Void, 5));
    assert_eq!(replica.machine.quarantined().len(), 2);
    assert_eq!(replica.machine.counters().reports, 4);
}

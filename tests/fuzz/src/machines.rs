//! The state machines on any records, sensible or not: apply is total, two replicas that batch, flush and crash differently have the
//! same state, and what the mailbox machine keeps running agrees with what is there.

use std::sync::Arc;

use bytes::Bytes;
use hikyaku_engine::Engine;
use hikyaku_engine::memory::{MemoryDisk, MemoryEngine};
use hikyaku_home::machine::HomeMachine;
use hikyaku_log::{Applied, Bounds, Position, Stamp};
use hikyaku_mail::id::{Class, DeliveryId, MessageId, ShardId};
use hikyaku_proto::v1::record::Command;
use hikyaku_proto::v1::{self, Record, body, ingest, outcome, recipient, recipient_state};
use hikyaku_queue::machine::{QueueMachine, QueueOptions};
use hikyaku_shard::machine::Machine;
use hikyaku_store::audit::audit;
use hikyaku_store::machine::MailboxMachine;
use prost::Message;

use crate::input::Script;

/// 2026-11-24.
const START_MS: u64 = 1_795_478_400_000;
const RECORDS_MAX: usize = 60;

/// The first octet says which machine; the rest, what is logged.
pub fn run(data: &[u8]) {
    let [which, rest @ ..] = data else { return };
    let log = Logged::new(which % 3, rest);
    match which % 3 {
        0 => log.compare(|_| {
            let mut machine = QueueMachine::new(QueueOptions::default());
            let bounds = Bounds {
                start: Position(1),
                end: Position(1),
            };
            assert_eq!(machine.resume(1, bounds), Ok(Position(1)));
            machine
        }),
        1 => log.compare(|engine| {
            HomeMachine::open(engine).unwrap_or_else(|trouble| panic!("{trouble}"))
        }),
        _ => {
            let engine = log.compare_stored(|engine| {
                MailboxMachine::open(engine).unwrap_or_else(|trouble| panic!("{trouble}"))
            });
            let audit = audit(&*engine.snapshot()).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(audit.faults, Vec::<String>::new());
        }
    }
}

/// A log, and where one replica ends its batches and crashes.
struct Logged {
    records: Vec<Bytes>,
    /// After this many records the second replica ends a batch (bit 0), flushes (bit 1), crashes (bit 2).
    ends: Vec<u8>,
}

impl Logged {
    fn new(which: u8, data: &[u8]) -> Logged {
        let mut script = Script::new(data);
        let (mut records, mut ends, mut now_ms) = (Vec::new(), Vec::new(), START_MS);
        while !script.is_over() && records.len() < RECORDS_MAX {
            let how = script.octet();
            ends.push(how & 7);
            if how & 0x80 != 0 {
                // octets as they are
                records.push(Bytes::copy_from_slice(script.some()));
                continue;
            }
            now_ms = now_ms.saturating_add(script.number());
            let command = match which {
                0 => queue_command(&mut script, now_ms),
                1 => home_command(&mut script, now_ms),
                _ => mbox_command(&mut script, now_ms),
            };
            let record = Record {
                version: 1,
                cmd_id: vec![script.octet() % 4; 16].into(),
                time_ms: now_ms,
                command,
            };
            records.push(record.encode_to_vec().into());
        }
        Logged { records, ends }
    }

    fn compare<M: Machine>(&self, open: impl Fn(Arc<dyn Engine>) -> M) {
        self.compare_stored(open);
    }

    /// Applies everything on two replicas; answers the store of the first.
    fn compare_stored<M: Machine>(&self, open: impl Fn(Arc<dyn Engine>) -> M) -> Arc<dyn Engine> {
        let engine: Arc<dyn Engine> = MemoryEngine::open(&MemoryDisk::new(), "a");
        let mut first = open(engine.clone());
        for index in 0..self.records.len() {
            self.apply(&mut first, index);
            end_batch(&mut first, index);
        }
        let disk = MemoryDisk::new();
        let mut second_engine: Arc<dyn Engine> = MemoryEngine::open(&disk, "b");
        let mut second = open(second_engine.clone());
        let (mut crashed, mut index) = (false, 0);
        while index < self.records.len() {
            self.apply(&mut second, index);
            let how = self.ends[index];
            if how & 1 != 0 || index + 1 == self.records.len() {
                end_batch(&mut second, index);
                if how & 2 != 0 {
                    assert!(second_engine.flush().is_ok());
                }
            }
            index += 1;
            if how & 4 != 0 && !crashed {
                crashed = true;
                second_engine = MemoryEngine::open(&disk, "b");
                second = open(second_engine.clone());
                // a machine without a store has applied nothing
                index = second.applied().stamp.position.0 as usize;
            }
        }
        assert_eq!(first.state_hash(), second.state_hash());
        engine
    }

    /// As the runtime does: what does not decode is quarantined.
    fn apply<M: Machine>(&self, machine: &mut M, index: usize) {
        let stamp = stamp(index);
        let applied = match Record::decode(self.records[index].clone()) {
            Ok(record) if record.command.is_some() => machine.apply(stamp, record).map(drop),
            _ => machine.quarantine(stamp),
        };
        if let Err(trouble) = applied {
            panic!("record {index}: {trouble}");
        }
    }
}

fn stamp(index: usize) -> Stamp {
    Stamp {
        position: Position(index as u64 + 1),
        crc: index as u32,
    }
}

fn end_batch<M: Machine>(machine: &mut M, index: usize) {
    let applied = Applied {
        incarnation: 1,
        stamp: stamp(index),
    };
    assert_eq!(machine.batch_end(applied), Ok(()));
}

// ---- words of all machines ---------------------------------------------------------------------------------------------

fn message_id(script: &mut Script<'_>) -> Bytes {
    match script.octet() {
        octet @ ..=200 => {
            let shard = ShardId::new(Class::Incoming, 0);
            let id = MessageId::new(shard, START_MS, u64::from(octet % 5));
            id.to_bytes().to_vec().into()
        }
        _ => Bytes::copy_from_slice(script.some()),
    }
}

fn delivery_id(script: &mut Script<'_>) -> Bytes {
    let message = message_id(script);
    match MessageId::from_bytes(&message) {
        Some(message) => {
            let recipient = script.octet() as u32 % 3;
            DeliveryId { message, recipient }.to_bytes().to_vec().into()
        }
        None => message,
    }
}

fn account(script: &mut Script<'_>) -> String {
    match script.octet() {
        octet @ ..=230 => ["a", "b", "c"][usize::from(octet) % 3].to_owned(),
        231..=240 => "x".repeat(65),
        _ => script.text(),
    }
}

fn tick(script: &mut Script<'_>, now_ms: u64) -> Option<Command> {
    let days = script.number() % 40;
    Some(Command::Tick(v1::Tick {
        log_time_ms: now_ms.saturating_add(days * 24 * 3_600_000),
    }))
}

fn content(script: &mut Script<'_>) -> Option<v1::Body> {
    let content = match script.below(5) {
        0 => return None,
        1 => None,
        2 => Some(body::Content::Blob(v1::BlobRef {
            id: message_id(script),
        })),
        _ => Some(body::Content::Zstd(Bytes::copy_from_slice(script.some()))),
    };
    Some(v1::Body {
        content,
        size: script.number(),
        blake3: vec![script.octet(); script.pick(&[32, 32, 32, 0, 31])].into(),
    })
}

fn numbers(script: &mut Script<'_>) -> Vec<u32> {
    (0..script.below(6))
        .map(|_| script.number() as u32)
        .collect()
}

// ---- home --------------------------------------------------------------------------------------------------------------

fn home_command(script: &mut Script<'_>, now_ms: u64) -> Option<Command> {
    match script.below(6) {
        0 => tick(script, now_ms),
        1 => queue_command(script, now_ms),
        _ => Some(Command::Claim(v1::Claim {
            account: account(script),
            shard: script.number() as u32,
        })),
    }
}

// ---- queue -------------------------------------------------------------------------------------------------------------

fn recipient(script: &mut Script<'_>) -> v1::Recipient {
    let name = script
        .pick(&["a@x.jp", "b@x.jp", "A@x.jp", "", "\0"])
        .to_owned();
    let target = match script.below(5) {
        0 => None,
        1 => Some(recipient::Target::Remote(v1::RemoteTarget {
            domain: account(script),
        })),
        2 => Some(recipient::Target::Expand(v1::ExpandTarget {
            seen: vec![account(script)],
        })),
        _ => Some(recipient::Target::Local(v1::LocalTarget {
            account: account(script),
            tenant: "t".into(),
            mbox: script.pick(&["m", "n", ""]).to_owned(),
        })),
    };
    v1::Recipient {
        address: name,
        notify: script.pick(&["", "NEVER", "SUCCESS", "?"]).to_owned(),
        target,
        ..v1::Recipient::default()
    }
}

fn recipients(script: &mut Script<'_>) -> Vec<v1::Recipient> {
    (0..script.below(5)).map(|_| recipient(script)).collect()
}

fn accept(script: &mut Script<'_>) -> v1::Accept {
    v1::Accept {
        message_id: message_id(script),
        envelope: (script.below(8) != 0).then(|| v1::Envelope {
            reverse_path: script.pick(&["", "s@x.jp", "?"]).to_owned(),
            received_ms: START_MS,
            ..v1::Envelope::default()
        }),
        recipients: recipients(script),
        body: content(script),
        tenant: "t".into(),
        traceparent: String::new(),
        reports_on: if script.below(4) == 0 {
            message_id(script)
        } else {
            Bytes::new()
        },
    }
}

fn report(script: &mut Script<'_>) -> Option<v1::Accept> {
    (script.below(4) == 0).then(|| accept(script))
}

fn status(script: &mut Script<'_>) -> Option<v1::Status> {
    (script.below(4) != 0).then(|| v1::Status {
        code: script.number() as u32,
        enhanced: script.pick(&["4.2.2", "5.1.1", "", "x"]).to_owned(),
        text: script.text(),
    })
}

fn result(script: &mut Script<'_>) -> v1::Outcome {
    let result = match script.below(6) {
        0 => None,
        5 => Some(outcome::Result::Delayed(v1::Delayed {})),
        1 => Some(outcome::Result::Held(v1::Held {
            reason: account(script),
        })),
        2 => Some(outcome::Result::Deferred(v1::Deferred {
            status: status(script),
            due_ms: script.number(),
        })),
        _ => Some(outcome::Result::Delivered(v1::Delivered {
            shard: 0,
            uid_validity: 1,
            uid: script.number() as u32,
        })),
    };
    v1::Outcome {
        recipient: script.number() as u32,
        result,
    }
}

fn state(script: &mut Script<'_>) -> v1::RecipientState {
    let state = match script.below(5) {
        0 => None,
        1 => Some(recipient_state::State::Held(v1::Held {
            reason: account(script),
        })),
        2 => Some(recipient_state::State::Terminal(v1::Terminal {
            how: i32::from(script.octet() % 9),
            delivered: None,
            dsn_id: message_id(script),
        })),
        _ => Some(recipient_state::State::Pending(v1::Pending {
            due_ms: script.number(),
        })),
    };
    v1::RecipientState {
        recipient: (script.below(4) != 0).then(|| recipient(script)),
        state,
        attempts: script.number() as u32,
        history: vec![v1::AttemptRecord::default(); script.below(12)],
        parent: (script.below(2) != 0).then(|| script.number() as u32),
        errors_to: None,
        ..v1::RecipientState::default()
    }
}

fn queue_command(script: &mut Script<'_>, now_ms: u64) -> Option<Command> {
    Some(match script.below(12) {
        0 => return tick(script, now_ms),
        1 => Command::Cancel(v1::Cancel {
            message_id: message_id(script),
        }),
        2 => Command::Routed(v1::Routed {
            message_id: message_id(script),
            recipient: script.number() as u32,
            children: recipients(script),
            failure: status(script),
            errors_to: (script.below(3) == 0).then(|| script.text()),
            reason: String::new(),
            report: report(script),
        }),
        3 | 4 => Command::Attempted(v1::Attempted {
            message_id: message_id(script),
            outcomes: (0..script.below(5)).map(|_| result(script)).collect(),
            report: report(script),
        }),
        5 => Command::Bounce(v1::Bounce {
            message_id: message_id(script),
            recipients: (0..script.below(4))
                .map(|_| v1::BouncedRecipient {
                    recipient: script.number() as u32,
                    status: status(script),
                })
                .collect(),
            dsn: (script.below(3) != 0).then(|| accept(script)),
        }),
        6 => Command::Carry(v1::Carry {
            as_of: script.number(),
            accept: (script.below(5) != 0).then(|| accept(script)),
            states: (0..script.below(5)).map(|_| state(script)).collect(),
            held: script.pick(&["", "operator"]).to_owned(),
        }),
        7 => Command::Operate(v1::Operate {
            order: i32::from(script.octet() % 7),
            message_id: message_id(script),
            recipients: numbers(script),
            reason: script.text(),
            operator: String::new(),
        }),
        8 => return mbox_command(script, now_ms),
        _ => Command::Accept(accept(script)),
    })
}

// ---- mailboxes ---------------------------------------------------------------------------------------------------------

/// What mailboxes get here: the seconds of the first record, and on from there.
fn uid_validity(script: &mut Script<'_>) -> u32 {
    match script.octet() {
        octet @ ..=220 => (START_MS / 1000) as u32 + u32::from(octet % 16),
        _ => script.number() as u32,
    }
}

fn mailbox_name(script: &mut Script<'_>) -> String {
    match script.octet() {
        octet @ ..=200 => {
            ["", "INBOX", "Sent", "x", "x/y", "Trash"][usize::from(octet) % 6].to_owned()
        }
        201..=220 => "n".repeat(300),
        _ => script.text(),
    }
}

fn flags(script: &mut Script<'_>) -> Vec<String> {
    let names = [
        "\\Seen",
        "\\Deleted",
        "\\Flagged",
        "\\seen",
        "k",
        "l",
        "\\x",
        "",
        "a b",
    ];
    (0..script.below(5))
        .map(|_| match script.octet() {
            octet @ ..=230 => names[usize::from(octet) % names.len()].to_owned(),
            _ => script.text(),
        })
        .collect()
}

fn piece(script: &mut Script<'_>) -> Option<ingest::Piece> {
    Some(match script.below(8) {
        0 => return None,
        1 | 2 => ingest::Piece::Begin(v1::IngestAccount {
            tenant: "t".into(),
            state: i32::from(script.octet() % 6),
            quota_bytes: script.number(),
            next_mailbox: script.number(),
            last_uid_validity: uid_validity(script),
        }),
        3 => ingest::Piece::Mailbox(v1::IngestMailbox {
            mailbox_id: script.number(),
            name: mailbox_name(script),
            uid_validity: uid_validity(script),
            uid_next: script.number() as u32,
            highest_modseq: script.number(),
            special_use: script.pick(&["", "\\Sent", "?"]).to_owned(),
            keywords: flags(script),
        }),
        4 | 5 => ingest::Piece::Message(v1::IngestMessage {
            mailbox_id: script.number(),
            uid: script.number() as u32,
            modseq: script.number(),
            flags: flags(script),
            received_ms: script.number(),
            email_id: vec![script.octet() % 3; script.pick(&[16, 16, 20, 0])].into(),
            prefix: Bytes::copy_from_slice(script.some()),
            body: content(script),
            delivery_id: delivery_id(script),
            saved_ms: script.number(),
        }),
        6 => ingest::Piece::Tombstone(v1::IngestTombstone {
            delivery_id: delivery_id(script),
            voided: script.below(2) == 0,
            uid_validity: uid_validity(script),
            uid: script.number() as u32,
        }),
        _ => ingest::Piece::End(v1::IngestEnd {
            messages: script.number(),
            purge_at_ms: script.number(),
        }),
    })
}

fn mbox_command(script: &mut Script<'_>, now_ms: u64) -> Option<Command> {
    Some(match script.below(14) {
        0 => return tick(script, now_ms),
        1 | 2 => Command::OpenAccount(v1::OpenAccount {
            account: account(script),
            generation: script.number() % 4,
            tenant: script.pick(&["t", "u", ""]).to_owned(),
        }),
        3 => Command::Void(v1::Void {
            delivery_id: delivery_id(script),
            account: account(script),
        }),
        4 => Command::Expunge(v1::Expunge {
            account: account(script),
            mailbox_id: script.number() % 9,
            uid_validity: uid_validity(script),
            uids: numbers(script),
        }),
        5 | 6 => Command::StoreFlags(v1::StoreFlags {
            account: account(script),
            mailbox_id: script.number() % 9,
            uid_validity: uid_validity(script),
            uids: numbers(script),
            how: i32::from(script.octet() % 5),
            flags: flags(script),
            unchanged_since: script.number(),
        }),
        7 => Command::CreateMailbox(v1::CreateMailbox {
            account: account(script),
            name: mailbox_name(script),
            special_use: script.pick(&["", "\\Archive", "?"]).to_owned(),
        }),
        8 => Command::SetAccount(v1::SetAccount {
            account: account(script),
            state: (script.below(3) != 0).then(|| i32::from(script.octet() % 6)),
            quota_bytes: (script.below(3) != 0).then(|| script.number()),
            purge_at_ms: now_ms.saturating_add(script.number().saturating_mul(3_600_000)),
        }),
        9 => Command::Ingest(v1::Ingest {
            account: account(script),
            generation: script.number() % 4,
            piece: piece(script),
        }),
        _ => Command::Deliver(v1::Deliver {
            delivery_id: delivery_id(script),
            account: account(script),
            generation: script.number() % 4,
            prefix: Bytes::copy_from_slice(script.some()),
            body: content(script),
            received_ms: now_ms,
            mailbox: mailbox_name(script),
            quota_bytes: script.number(),
        }),
    })
}

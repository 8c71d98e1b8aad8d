//! What a mail on its way takes in memory: `queue.messages_max` times this is a budget that operators rely on.

use std::alloc::System;

use bytes::Bytes;
use cap::Cap;
use hikyaku_log::{Applied, Bounds, Position, Stamp};
use hikyaku_mail::id::{Class, MessageId, ShardId};
use hikyaku_proto::v1::outcome::Result as Attempt;
use hikyaku_proto::v1::recipient::Target;
use hikyaku_proto::v1::{
    Accept, Attempted, BlobRef, Body, Deferred, Delivered, Envelope, LocalTarget, Outcome,
    Recipient, Record, Status, body::Content, record::Command,
};
use hikyaku_queue::machine::{QueueMachine, QueueOptions};
use hikyaku_shard::machine::Machine;
use prost::Message as _;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

const MESSAGES: u64 = 20_000;

/// A queue that applies records through their bytes, as from the log.
struct Queue {
    machine: QueueMachine,
    next: Position,
    random: u64,
}

impl Queue {
    fn new() -> Queue {
        let mut machine = QueueMachine::new(QueueOptions {
            // bodies have a budget of their own
            body_cache_bytes_max: 0,
            ..QueueOptions::default()
        });
        let (start, end) = (Position(1), Position(1));
        machine.resume(1, Bounds { start, end }).unwrap();
        Queue {
            machine,
            next: Position(1),
            random: 0x9e37_79b9_7f4a_7c15,
        }
    }

    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn apply(&mut self, time_ms: u64, command: Command) {
        let record = Record {
            version: 1,
            cmd_id: vec![7; 16].into(),
            time_ms,
            command: Some(command),
        };
        let stamp = Stamp {
            position: self.next,
            crc: 0,
        };
        // a record is cut from a block of many
        let mut block = record.encode_to_vec();
        let length = block.len();
        block.resize(64 << 10, 0);
        let payload = Bytes::from(block).slice(..length);
        self.machine
            .apply(stamp, Record::decode(payload).unwrap())
            .unwrap();
        let applied = Applied {
            incarnation: 1,
            stamp,
        };
        self.machine.batch_end(applied).unwrap();
        self.next = self.next.next();
    }

    fn accept(&mut self, n: u64, recipients: u64) -> MessageId {
        let time_ms = 1_790_000_000_000 + n * 3;
        let id = MessageId::new(ShardId::new(Class::Incoming, 0), time_ms, self.random());
        let recipients = (0..recipients).map(|_| {
            let user = self.random();
            recipient(user)
        });
        let accept = Accept {
            recipients: recipients.collect(),
            message_id: id.to_bytes().to_vec().into(),
            envelope: Some(Envelope {
                reverse_path: format!("newsletter-{}@lists.example.net", n % 1000),
                received_ms: time_ms,
                client: format!("192.0.2.{}:{}", n % 250, 30_000 + n % 30_000),
                helo: "mail.lists.example.net".into(),
                ..Envelope::default()
            }),
            body: Some(Body {
                content: Some(Content::Blob(BlobRef {
                    id: id.to_bytes().to_vec().into(),
                })),
                size: 10_240,
                blake3: vec![9; 32].into(),
            }),
            tenant: "example".into(),
            ..Accept::default()
        };
        self.apply(time_ms, Command::Accept(accept));
        id
    }

    fn attempted(&mut self, id: MessageId, number: u32, time_ms: u64, result: Attempt) {
        let attempted = Attempted {
            message_id: id.to_bytes().to_vec().into(),
            outcomes: vec![Outcome {
                recipient: number,
                result: Some(result),
            }],
            ..Attempted::default()
        };
        self.apply(time_ms, Command::Attempted(attempted));
    }

    fn defer(&mut self, id: MessageId, recipients: u32, attempt: u64) {
        for number in 0..recipients {
            let time_ms = 1_790_001_000_000 + attempt * 600_000 + self.random() % 600_000;
            let result = Attempt::Deferred(Deferred {
                status: Some(Status {
                    code: 452,
                    enhanced: "4.2.2".into(),
                    text: "the mailbox is full: 1073741824 of 1073741824 octets used".into(),
                }),
                due_ms: time_ms + 3_600_000 * attempt,
            });
            self.attempted(id, number, time_ms, result);
        }
    }

    /// What a leader does: where much of the log is garbage, live messages go to its end, and it is cut before them.
    fn carry(&mut self) {
        if !self.machine.should_carry(32 << 20) {
            return;
        }
        let below = self.next;
        while let Some(draft) = self.machine.draft(below) {
            let mut carry = draft.carry;
            let body = carry
                .accept
                .as_mut()
                .and_then(|accept| accept.body.as_mut());
            let id = draft.id.to_bytes().to_vec().into();
            body.unwrap().content = Some(Content::Blob(BlobRef { id }));
            self.apply(1_790_000_000_000, Command::Carry(carry));
        }
        self.machine.log_start(self.machine.keep_from());
        println!("carried, log starts at {}", self.machine.keep_from());
    }
}

fn recipient(user: u64) -> Recipient {
    Recipient {
        address: format!("some.user{:05}@example.jp", user % 100_000),
        target: Some(Target::Local(LocalTarget {
            account: format!(
                "{:08x}-7b1a-103e-8f5c-{:012x}",
                user >> 32,
                user & 0xffff_ffff
            ),
            tenant: "example".into(),
            mbox: "mbox1".into(),
        })),
        ..Recipient::default()
    }
}

/// Octets that `fill` leaves allocated, for each of `recipients` in all.
fn octets(name: &str, recipients: u64, max: u64, fill: impl FnOnce(&mut Queue)) -> Queue {
    let before = ALLOCATOR.allocated();
    let mut queue = Queue::new();
    fill(&mut queue);
    let each = (ALLOCATOR.allocated() - before) as u64 / recipients;
    println!("{name}: {each} octets a recipient");
    // and the queue's own count, by which it takes no more, is about that
    let counted = queue.machine.memory_bytes() / recipients;
    assert!(
        (each * 9 / 10..=each * 13 / 10).contains(&counted),
        "{name}: {each} octets a recipient, {counted} counted"
    );
    assert!(
        each <= max,
        "{name}: {each} octets a recipient, at most {max}"
    );
    queue
}

// one test, for the allocator counts the whole process
#[test]
fn a_recipient_takes_as_little_memory_as_the_budgets_say() {
    let fresh = octets("fresh, one recipient", MESSAGES, 460, |queue| {
        (0..MESSAGES).for_each(|n| _ = queue.accept(n, 1));
    });
    assert_eq!(fresh.machine.index().messages().len() as u64, MESSAGES);
    drop(fresh);
    let deferred = |attempts: u64, recipients: u32| {
        move |queue: &mut Queue| {
            let ids: Vec<MessageId> = (0..MESSAGES / u64::from(recipients))
                .map(|n| queue.accept(n, recipients.into()))
                .collect();
            for attempt in 1..=attempts {
                for id in &ids {
                    queue.defer(*id, recipients, attempt);
                }
                queue.carry();
            }
        }
    };
    octets(
        "deferred once, one recipient",
        MESSAGES,
        500,
        deferred(1, 1),
    );
    octets(
        "deferred once, ten recipients",
        MESSAGES,
        250,
        deferred(1, 10),
    );
    octets(
        "deferred twelve times, one recipient",
        MESSAGES,
        800,
        deferred(12, 1),
    );
    octets("fresh, ten recipients", MESSAGES, 190, |queue| {
        (0..MESSAGES / 10).for_each(|n| _ = queue.accept(n, 10));
    });
    octets("delivered, still in the log", MESSAGES, 64, |queue| {
        for n in 0..MESSAGES {
            let id = queue.accept(n, 1);
            let delivered = Delivered {
                shard: 2,
                uid_validity: 1_790_000_000,
                uid: 77,
            };
            queue.attempted(id, 0, 1_790_001_000_000, Attempt::Delivered(delivered));
        }
    });
}

//! A machine, its log as a vector, and short ways to say commands.

use std::sync::Arc;

use bytes::Bytes;
use hikyaku_engine::memory::{MemoryDisk, MemoryEngine};
use hikyaku_engine::{Engine, Snapshot};
use hikyaku_log::{Applied, Position, Stamp};
use hikyaku_mail::id::{Class, DeliveryId, MessageId, ShardId};
use hikyaku_proto::v1::record::Command;
use hikyaku_proto::v1::{self, Body, Deliver, Expunge, OpenAccount, Record, Void, body};
use hikyaku_shard::machine::Machine;
use hikyaku_store::audit::audit;
use hikyaku_store::machine::{Answer, MailboxMachine, StoredAt};
use hikyaku_store::read;

pub const INCARNATION: u64 = 77;
pub const DAY_MS: u64 = 24 * 3_600 * 1_000;
/// When tests begin: 2026-11-24.
pub const START_MS: u64 = 1_795_478_400_000;

pub struct Bench {
    pub engine: Arc<dyn Engine>,
    pub machine: MailboxMachine,
    pub log: Vec<Record>,
    pub now_ms: u64,
}

impl Bench {
    pub fn new() -> Bench {
        Bench::over(MemoryEngine::open(&MemoryDisk::new(), "mbox-0"))
    }

    pub fn over(engine: Arc<dyn Engine>) -> Bench {
        Bench {
            machine: MailboxMachine::open(engine.clone()).unwrap(),
            engine,
            log: Vec::new(),
            now_ms: START_MS,
        }
    }

    /// One record, one batch.
    pub fn run(&mut self, command: Command) -> Answer {
        self.log.push(Record {
            version: 1,
            cmd_id: Bytes::new(),
            time_ms: self.now_ms,
            command: Some(command),
        });
        let position = self.log.len() as u64;
        let answer = self.apply(position);
        self.commit(position);
        answer
    }

    pub fn apply(&mut self, position: u64) -> Answer {
        let record = self.log[position as usize - 1].clone();
        self.machine.apply(stamp(position), record).unwrap()
    }

    pub fn commit(&mut self, position: u64) {
        let applied = Applied {
            incarnation: INCARNATION,
            stamp: stamp(position),
        };
        self.machine.batch_end(applied).unwrap();
    }

    pub fn open(&mut self, account: &str) -> Answer {
        self.run(Command::OpenAccount(OpenAccount {
            account: account.into(),
            generation: 1,
            tenant: "example.jp".into(),
        }))
    }

    pub fn deliver(&mut self, account: &str, number: u64) -> Answer {
        self.run(Command::Deliver(delivery(account, number)))
    }

    pub fn stored(&mut self, account: &str, number: u64) -> StoredAt {
        match self.deliver(account, number) {
            Answer::Delivered(at) => at,
            other => panic!("not delivered: {other:?}"),
        }
    }

    pub fn void(&mut self, account: &str, number: u64) -> Answer {
        self.run(Command::Void(Void {
            delivery_id: delivery_id(number),
            account: account.into(),
        }))
    }

    pub fn expunge(&mut self, account: &str, at: StoredAt, uids: &[u32]) -> Answer {
        self.run(Command::Expunge(Expunge {
            account: account.into(),
            mailbox_id: 0,
            uid_validity: at.uid_validity,
            uids: uids.to_vec(),
        }))
    }

    /// Log time moves to `now_ms`.
    pub fn tick(&mut self) {
        let log_time_ms = self.now_ms;
        self.run(Command::Tick(v1::Tick { log_time_ms }));
    }

    pub fn snapshot(&self) -> Box<dyn Snapshot> {
        self.engine.snapshot()
    }

    pub fn account(&self, account: &str) -> v1::StoredAccount {
        match read::account(&*self.snapshot(), account).unwrap() {
            read::Account::Open(stored) => stored,
            other => panic!("{account} is {other:?}"),
        }
    }

    pub fn inbox(&self, account: &str) -> v1::StoredMailbox {
        let inbox = self.account(account).inbox;
        read::mailbox(&*self.snapshot(), account, inbox)
            .unwrap()
            .unwrap()
    }

    pub fn uids(&self, account: &str) -> Vec<u32> {
        let inbox = self.account(account).inbox;
        read::messages(&*self.snapshot(), account, inbox, 0, 100_000)
            .unwrap()
            .into_iter()
            .map(|(uid, _)| uid)
            .collect()
    }

    pub fn assert_clean(&self) {
        let audit = audit(&*self.snapshot()).unwrap();
        assert_eq!(audit.faults, Vec::<String>::new());
    }

    /// How many keys begin with `prefix`.
    pub fn keys(&self, prefix: &[u8]) -> usize {
        self.snapshot()
            .scan(prefix, prefix, 1_000_000)
            .unwrap()
            .len()
    }
}

pub fn stamp(position: u64) -> Stamp {
    Stamp {
        position: Position(position),
        crc: position as u32 ^ 0x5555,
    }
}

pub fn delivery_id(number: u64) -> Bytes {
    let message = MessageId::new(ShardId::new(Class::Incoming, 1), START_MS, number);
    let id = DeliveryId {
        message,
        recipient: 0,
    };
    Bytes::copy_from_slice(&id.to_bytes())
}

pub fn body(number: u64) -> Body {
    let content = format!("Subject: {number}\r\n\r\nHello {number}\r\n").into_bytes();
    Body {
        size: content.len() as u64,
        blake3: blake3::hash(&content).as_bytes().to_vec().into(),
        // the machine never looks inside
        content: Some(body::Content::Zstd(content.into())),
    }
}

pub fn delivery(account: &str, number: u64) -> Deliver {
    Deliver {
        delivery_id: delivery_id(number),
        account: account.into(),
        generation: 1,
        prefix: Bytes::from(format!("Delivered-To: {account}\r\n")),
        body: Some(body(number)),
        received_ms: START_MS + number,
        mailbox: String::new(),
        quota_bytes: 0,
    }
}

/// A small random number generator: the same seed, the same test.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

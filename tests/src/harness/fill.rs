//! Mailboxes with very many mails, without sending them: the mailbox machine itself stores them, in
//! the store of a server that is not running. Its log is not asked, so the store must be flushed,
//! as a stop leaves it.

use std::path::Path;

use bytes::Bytes;
use hikyaku_blob::body::inline_body;
use hikyaku_engine::Engine;
use hikyaku_engine::disk::{DiskEngine, Options, Shared};
use hikyaku_log::{Position, Stamp};
use hikyaku_mail::id::{Class, DeliveryId, MessageId, ShardId};
use hikyaku_proto::v1::record::Command;
use hikyaku_proto::v1::{Body, Deliver, Record};
use hikyaku_shard::machine::Machine;
use hikyaku_store::machine::{Answer, MailboxMachine};
use hikyaku_store::read;

/// Bodies lie under positions that no log of a test reaches.
const FIRST_POSITION: u64 = 1 << 40;
/// Mails stored before the store is told that they belong together.
const BATCH: u64 = 1_000;
/// Every such mail's content.
const CONTENT: &[u8] = b"Subject: one of many\r\n\r\n";

/// Puts `mails` more mails into the INBOX of `account` in the mailbox store in `directory`, and
/// says how many it has then.
///
/// # Panics
/// When the store does not open, or the account is not there.
pub fn fill(directory: &Path, account: &str, mails: u64) -> u64 {
    let shared = Shared::start(Options::default()).expect("threads of the store");
    let engine = DiskEngine::open(directory, &shared).expect("the store");
    let mut machine = MailboxMachine::open(engine.clone()).expect("the machine");
    let applied = machine.applied();
    let body = inline_body(CONTENT).expect("a body");
    for number in 0..mails {
        let position = Position(FIRST_POSITION + number);
        let stamp = Stamp { position, crc: 0 };
        let answer = machine.apply(stamp, delivery(account, number, &body));
        assert!(matches!(answer, Ok(Answer::Delivered(_))), "{answer:?}");
        if number % BATCH == BATCH - 1 || number == mails - 1 {
            // the log has not gone on
            machine.batch_end(applied).expect("a batch");
        }
    }
    engine.flush().expect("a flush");
    exists(&*engine, account)
}

fn exists(engine: &dyn Engine, account: &str) -> u64 {
    let snapshot = engine.snapshot();
    let read::Account::Open(stored) = read::account(&*snapshot, account).expect("the store") else {
        return 0;
    };
    let inbox = read::mailbox(&*snapshot, account, stored.inbox).expect("the store");
    inbox.map_or(0, |inbox| inbox.exists)
}

fn delivery(account: &str, number: u64, body: &Body) -> Record {
    // a shard that no site has
    let message = MessageId::new(ShardId::new(Class::Incoming, 99), 1, number);
    let id = DeliveryId {
        message,
        recipient: 0,
    };
    Record {
        version: 1,
        time_ms: 1_795_478_400_000,
        command: Some(Command::Deliver(Deliver {
            delivery_id: Bytes::copy_from_slice(&id.to_bytes()),
            account: account.to_owned(),
            body: Some(body.clone()),
            ..Deliver::default()
        })),
        ..Record::default()
    }
}

//! What each command does, and refuses.

use bytes::Bytes;
use hikyaku_engine::Write;
use hikyaku_log::Position;
use hikyaku_proto::v1::record::Command;
use hikyaku_proto::v1::{
    AccountState, Barrier, CreateMailbox, SetAccount, StoreFlags, store_flags::How,
};
use hikyaku_shard::machine::{Machine, Trouble};
use hikyaku_store::flag::{self, Flags};
use hikyaku_store::machine::{Answer, Flagged, MailboxMachine, StoredAt};
use hikyaku_store::{key, read};

use crate::bench::{Bench, DAY_MS, START_MS, delivery, delivery_id, stamp};

fn set_state(bench: &mut Bench, account: &str, state: AccountState, purge_at_ms: u64) -> Answer {
    bench.run(Command::SetAccount(SetAccount {
        account: account.into(),
        state: Some(state.into()),
        quota_bytes: None,
        purge_at_ms,
    }))
}

fn flags(uids: &[u32], at: StoredAt, how: How, names: &[&str]) -> StoreFlags {
    StoreFlags {
        account: "alice".into(),
        mailbox_id: 0,
        uid_validity: at.uid_validity,
        uids: uids.to_vec(),
        how: how.into(),
        flags: names.iter().map(|name| (*name).to_owned()).collect(),
        unchanged_since: 0,
    }
}

#[test]
fn mail_is_stored_once_with_its_bytes() {
    let mut bench = Bench::new();
    assert_eq!(bench.deliver("alice", 1), Answer::NotOwner);
    assert_eq!(bench.open("alice"), Answer::Opened { generation: 1 });
    assert_eq!(bench.open("alice"), Answer::Opened { generation: 1 });
    let first = bench.stored("alice", 1);
    assert_eq!(first.uid, 1);
    assert_eq!(u64::from(first.uid_validity), START_MS / 1_000);
    assert_eq!(bench.stored("alice", 2).uid, 2);
    assert_eq!(bench.deliver("alice", 1), Answer::AlreadyDelivered(first));

    let snapshot = bench.snapshot();
    let message = read::message(&*snapshot, "alice", 0, first.uid_validity, 1)
        .unwrap()
        .unwrap();
    let stored = read::body(&*snapshot, &message).unwrap();
    assert_eq!(stored.prefix, "Delivered-To: alice\r\n");
    assert_eq!(stored.body, delivery("alice", 1).body);
    assert_eq!(message.internal_ms, START_MS + 1);
    assert_eq!(
        read::message(&*snapshot, "alice", 0, first.uid_validity + 1, 1).unwrap(),
        None
    );
    let totals = read::totals(&*snapshot).unwrap();
    assert_eq!((totals.accounts, totals.messages), (1, 2));
    assert_eq!(totals.used_bytes, bench.account("alice").used_bytes);
    bench.assert_clean();
}

#[test]
fn what_a_newer_program_wrote_is_not_opened() {
    let mut bench = Bench::new();
    bench.open("alice");
    let newer = Write {
        key: vec![2, b'v'],
        value: Some(Bytes::from_static(b"2")),
    };
    bench.engine.write(vec![newer]).unwrap();
    bench.engine.commit(bench.engine.position()).unwrap();
    let opened = MailboxMachine::open(bench.engine.clone()).err();
    assert!(
        matches!(&opened, Some(Trouble::Store(why)) if why.contains("newer program")),
        "{opened:?}"
    );
}

#[test]
fn an_account_has_its_mailboxes_from_the_first_use() {
    let mut bench = Bench::new();
    bench.open("alice");
    let mailboxes = read::mailboxes(&*bench.snapshot(), "alice").unwrap();
    let names: Vec<_> = mailboxes
        .iter()
        .map(|(id, mailbox)| (*id, mailbox.name.as_str(), mailbox.special_use.as_str()))
        .collect();
    assert_eq!(
        names,
        [
            (1, "INBOX", ""),
            (2, "Sent", "\\Sent"),
            (3, "Drafts", "\\Drafts"),
            (4, "Junk", "\\Junk"),
            (5, "Trash", "\\Trash"),
            (6, "Archive", "\\Archive"),
        ]
    );
    let mut validities: Vec<_> = mailboxes.iter().map(|(_, m)| m.uid_validity).collect();
    validities.dedup();
    assert_eq!(validities.len(), 6, "no two mailboxes share a UIDVALIDITY");
    let create = |name: &str, special_use: &str| {
        Command::CreateMailbox(CreateMailbox {
            account: "alice".into(),
            name: name.into(),
            special_use: special_use.into(),
        })
    };
    assert_eq!(
        bench.run(create("Work", "")),
        Answer::Created { mailbox_id: 7 }
    );
    for (name, special_use) in [
        ("work", "\\Sent"),
        ("Inbox", ""),
        ("Work", ""),
        ("a//b", ""),
        ("x", "\\No"),
    ] {
        let answer = bench.run(create(name, special_use));
        assert!(matches!(answer, Answer::Refused(_)), "{name}: {answer:?}");
    }
    let mut to_work = delivery("alice", 9);
    to_work.mailbox = "Work".into();
    assert!(matches!(
        bench.run(Command::Deliver(to_work)),
        Answer::Delivered(_)
    ));
    let mut to_nowhere = delivery("alice", 10);
    to_nowhere.mailbox = "no such".into();
    assert!(matches!(
        bench.run(Command::Deliver(to_nowhere)),
        Answer::Delivered(_)
    ));
    assert_eq!(
        bench.uids("alice").len(),
        1,
        "what names no mailbox is in INBOX"
    );
    bench.assert_clean();
}

#[test]
fn quota_is_judged_when_applied_and_not_remembered() {
    let mut bench = Bench::new();
    bench.open("alice");
    let mut first = delivery("alice", 1);
    let size = first.prefix.len() as u64 + first.body.as_ref().unwrap().size;
    first.quota_bytes = size;
    assert!(matches!(
        bench.run(Command::Deliver(first.clone())),
        Answer::Delivered(_)
    ));
    let mut second = delivery("alice", 2);
    second.quota_bytes = 2 * size - 1;
    assert_eq!(
        bench.run(Command::Deliver(second.clone())),
        Answer::OverQuota
    );
    // over quota now, but this one is stored already
    assert!(matches!(
        bench.run(Command::Deliver(first)),
        Answer::AlreadyDelivered(_)
    ));
    second.quota_bytes = 0;
    let quota = SetAccount {
        account: "alice".into(),
        state: None,
        quota_bytes: Some(2 * size - 1),
        purge_at_ms: 0,
    };
    bench.run(Command::SetAccount(quota.clone()));
    assert_eq!(
        bench.run(Command::Deliver(second.clone())),
        Answer::OverQuota
    );
    let more = SetAccount {
        quota_bytes: Some(2 * size),
        ..quota
    };
    bench.run(Command::SetAccount(more));
    assert!(matches!(
        bench.run(Command::Deliver(second)),
        Answer::Delivered(_)
    ));
    assert_eq!(bench.account("alice").used_bytes, 2 * size);
    bench.assert_clean();
}

#[test]
fn a_restart_does_not_forget_who_is_full() {
    fn names(machine: &MailboxMachine) -> Vec<&str> {
        machine.nearly_full().accounts().collect()
    }
    let mut bench = Bench::new();
    bench.open("alice");
    bench.open("bob");
    bench.open("carol");
    bench.stored("alice", 1);
    let at = bench.stored("bob", 2);
    let mut refused = delivery("alice", 3);
    refused.quota_bytes = 1;
    assert_eq!(
        bench.run(Command::Deliver(refused.clone())),
        Answer::OverQuota
    );
    assert_eq!(names(&bench.machine), ["alice"]);

    // the store does not know what the directory allows: whoever holds most is named until a delivery tells
    bench.machine = MailboxMachine::open(bench.engine.clone()).unwrap();
    assert_eq!(names(&bench.machine), ["alice", "bob"]);
    assert_eq!(bench.run(Command::Deliver(refused)), Answer::OverQuota);
    bench.stored("bob", 4);
    assert_eq!(names(&bench.machine), ["alice"]);

    // an operator's quota is known at once, and an emptied account is not full
    bench.run(Command::SetAccount(SetAccount {
        account: "bob".into(),
        state: None,
        quota_bytes: Some(1),
        purge_at_ms: 0,
    }));
    assert_eq!(names(&bench.machine), ["alice", "bob"]);
    bench.expunge("bob", at, &[1, 2]);
    let due_ms = bench.now_ms;
    set_state(&mut bench, "alice", AccountState::Deleted, due_ms);
    bench.tick();
    assert_eq!(names(&bench.machine), Vec::<&str>::new());
    bench.assert_clean();
}

#[test]
fn account_states_take_or_refuse_mail() {
    let mut bench = Bench::new();
    bench.open("alice");
    let at = bench.stored("alice", 1);
    set_state(&mut bench, "alice", AccountState::Suspended, 0);
    assert!(matches!(bench.deliver("alice", 2), Answer::Delivered(_)));
    let seen = read::account(&*bench.snapshot(), "alice").unwrap();
    assert!(!seen.takes_logins());
    for state in [AccountState::Disabled, AccountState::Deleted] {
        set_state(&mut bench, "alice", state, START_MS + DAY_MS);
        assert_eq!(bench.deliver("alice", 3), Answer::Disabled);
        assert_eq!(bench.deliver("alice", 1), Answer::AlreadyDelivered(at));
    }
    set_state(&mut bench, "alice", AccountState::Active, 0);
    bench.now_ms += 2 * DAY_MS;
    bench.tick();
    assert!(
        matches!(bench.deliver("alice", 3), Answer::Delivered(_)),
        "undeleted in time"
    );
    bench.assert_clean();
}

#[test]
fn other_generations_are_not_here() {
    let mut bench = Bench::new();
    bench.open("alice");
    let mut other = delivery("alice", 1);
    other.generation = 2;
    assert_eq!(bench.run(Command::Deliver(other.clone())), Answer::NotOwner);
    other.generation = 0;
    assert!(matches!(
        bench.run(Command::Deliver(other)),
        Answer::Delivered(_)
    ));
}

#[test]
fn expunge_is_idempotent_and_remembers_deliveries_for_ten_days() {
    let mut bench = Bench::new();
    bench.open("alice");
    let at = bench.stored("alice", 1);
    bench.stored("alice", 2);
    let other = StoredAt {
        uid_validity: at.uid_validity + 1,
        uid: 1,
    };
    assert_eq!(bench.expunge("alice", other, &[1]), Answer::Expunged(0));
    assert_eq!(bench.expunge("alice", at, &[1, 1, 99]), Answer::Expunged(1));
    assert_eq!(bench.expunge("alice", at, &[1]), Answer::Expunged(0));
    assert_eq!(bench.uids("alice"), [2]);
    let inbox = bench.inbox("alice");
    assert_eq!(
        (inbox.exists, inbox.unseen, inbox.vanished, inbox.uid_next),
        (1, 1, 1, 3)
    );
    assert_eq!(bench.keys(&key::table(b'b')), 1, "the body went too");

    assert_eq!(bench.deliver("alice", 1), Answer::AlreadyDelivered(at));
    bench.now_ms += 10 * DAY_MS - 1;
    bench.tick();
    assert_eq!(bench.deliver("alice", 1), Answer::AlreadyDelivered(at));
    bench.now_ms += 1;
    // a proposer's clock alone forgets nothing
    assert_eq!(bench.deliver("alice", 1), Answer::AlreadyDelivered(at));
    bench.tick();
    assert_eq!(bench.stored("alice", 1).uid, 3);
    // what is stored dedupes as long as it is there
    bench.now_ms += 100 * DAY_MS;
    bench.tick();
    assert!(matches!(
        bench.deliver("alice", 2),
        Answer::AlreadyDelivered(_)
    ));
    bench.expunge("alice", at, &[2]);
    assert_eq!(
        bench.inbox("alice").vanished,
        1,
        "ninety days later the vanished log is short"
    );
    assert!(bench.inbox("alice").low_modseq > 1);
    bench.assert_clean();
}

#[test]
fn expired_delivery_ids_go_a_few_at_a_time() {
    let mut bench = Bench::new();
    bench.open("alice");
    for number in 0..1_100 {
        bench.void("alice", number);
    }
    bench.now_ms += 11 * DAY_MS;
    bench.tick();
    let left = bench.keys(&key::table(b'd'));
    assert!((1..=100).contains(&left), "{left}");
    for _ in 0..30 {
        bench.run(Command::Barrier(Barrier {}));
    }
    assert_eq!(bench.keys(&key::table(b'd')), 0);
    assert_eq!(bench.keys(&key::table(b'q')), 0);
    bench.assert_clean();
}

#[test]
fn a_voided_delivery_stores_nothing_whenever_it_comes() {
    let mut bench = Bench::new();
    assert_eq!(
        bench.void("alice", 1),
        Answer::Voided,
        "before the account is here"
    );
    bench.open("alice");
    assert_eq!(bench.deliver("alice", 1), Answer::Voided);
    let at = bench.stored("alice", 2);
    assert_eq!(bench.void("alice", 2), Answer::AlreadyDelivered(at));
    bench.expunge("alice", at, &[at.uid]);
    assert_eq!(bench.void("alice", 2), Answer::AlreadyDelivered(at));
    assert_eq!(bench.void("alice", 1), Answer::Voided);
    bench.assert_clean();
}

#[test]
fn flags_change_under_one_modseq_and_conditions_are_judged() {
    let mut bench = Bench::new();
    bench.open("alice");
    let at = bench.stored("alice", 1);
    bench.stored("alice", 2);
    let add = flags(&[1, 2, 7], at, How::Add, &["\\Seen", "$Label"]);
    let answer = bench.run(Command::StoreFlags(add.clone()));
    let modseq = 4;
    assert_eq!(
        answer,
        Answer::Flagged(Flagged {
            modseq,
            changed: vec![1, 2],
            refused: vec![]
        })
    );
    assert_eq!(bench.inbox("alice").unseen, 0);
    // nothing new: nothing changes
    let answer = bench.run(Command::StoreFlags(add));
    assert_eq!(
        answer,
        Answer::Flagged(Flagged {
            modseq,
            changed: vec![],
            refused: vec![]
        })
    );
    let one = flags(&[1], at, How::Remove, &["\\seen", "$unknown"]);
    bench.run(Command::StoreFlags(one));
    let mut both = flags(&[1, 2], at, How::Replace, &["\\Flagged"]);
    both.unchanged_since = modseq;
    let answer = bench.run(Command::StoreFlags(both));
    assert_eq!(
        answer,
        Answer::Flagged(Flagged {
            modseq: 6,
            changed: vec![2],
            refused: vec![1]
        })
    );
    let inbox = bench.inbox("alice");
    assert_eq!(inbox.unseen, 2);
    let message = read::message(&*bench.snapshot(), "alice", 0, at.uid_validity, 1);
    let message = message.unwrap().unwrap();
    let seen = Flags {
        system: message.flags,
        keywords: message.keywords,
    };
    assert_eq!(flag::names(seen, &inbox.keywords), ["$Label"]);
    let bad = flags(&[1], at, How::Add, &["\\Recent"]);
    assert!(matches!(
        bench.run(Command::StoreFlags(bad)),
        Answer::Refused(_)
    ));
    bench.assert_clean();
}

/// RFC 9051 section 2.3.1.1: a UID names a message under its UIDVALIDITY only, whether that is an
/// older or a newer one.
#[test]
fn commands_under_another_uid_validity_touch_nothing() {
    let mut bench = Bench::new();
    bench.open("alice");
    let at = bench.stored("alice", 1);
    bench.stored("alice", 2);
    let before = bench.machine.state_hash();
    for uid_validity in [0, at.uid_validity - 1, at.uid_validity + 1, u32::MAX] {
        let other = StoredAt {
            uid_validity,
            uid: 1,
        };
        let answer = bench.expunge("alice", other, &[1, 2]);
        assert_eq!(answer, Answer::Expunged(0), "{uid_validity}");
        let flagged = flags(&[1, 2], other, How::Add, &["\\Seen"]);
        let answer = bench.run(Command::StoreFlags(flagged));
        assert_eq!(answer, Answer::Refused("another UIDVALIDITY"));
        let found = read::message(&*bench.snapshot(), "alice", 0, uid_validity, 1).unwrap();
        assert_eq!(found, None, "{uid_validity}");
    }
    assert_eq!(bench.uids("alice"), [1, 2]);
    assert_eq!(bench.machine.state_hash(), before, "nothing has changed");
    assert_eq!(bench.expunge("alice", at, &[1, 2]), Answer::Expunged(2));
    bench.assert_clean();
}

#[test]
fn a_deleted_account_is_emptied_by_log_time_and_keeps_its_numbers() {
    let mut bench = Bench::new();
    bench.open("alice");
    bench.open("bob");
    bench.stored("bob", 10_000);
    let at = bench.stored("alice", 0);
    for number in 1..1_000 {
        bench.deliver("alice", number);
    }
    set_state(
        &mut bench,
        "alice",
        AccountState::Deleted,
        START_MS + DAY_MS,
    );
    bench.tick();
    assert_eq!(bench.uids("alice").len(), 1_000);
    bench.now_ms += DAY_MS;
    bench.tick();
    let seen = read::account(&*bench.snapshot(), "alice").unwrap();
    assert_eq!(seen, read::Account::Busy);
    assert_eq!(bench.deliver("alice", 5_000), Answer::Busy);
    bench.assert_clean();
    bench.tick();
    let seen = read::account(&*bench.snapshot(), "alice").unwrap();
    assert_eq!(seen, read::Account::Absent);
    assert_eq!(read::totals(&*bench.snapshot()).unwrap().messages, 1);
    assert_eq!(bench.keys(&key::table(b'b')), 1);
    assert_eq!(bench.keys(&key::table(b'p')), 0);
    bench.assert_clean();
    // the same id again: another account, other numbers
    bench.now_ms = START_MS;
    bench.open("alice");
    assert!(bench.stored("alice", 0).uid_validity > at.uid_validity + 5);
    bench.assert_clean();
}

#[test]
fn what_makes_no_sense_changes_nothing() {
    let mut bench = Bench::new();
    bench.open("alice");
    bench.stored("alice", 1);
    let before = bench.machine.state_hash();
    let mut no_body = delivery("alice", 2);
    no_body.body = None;
    let mut no_id = delivery("alice", 2);
    no_id.delivery_id = Bytes::from_static(b"short");
    let no_account = delivery("no account", 2);
    for deliver in [no_body, no_id, no_account] {
        let answer = bench.run(Command::Deliver(deliver));
        assert!(matches!(answer, Answer::Refused(_)), "{answer:?}");
    }
    bench.run(Command::Barrier(Barrier {}));
    assert_eq!(bench.machine.state_hash(), before);
    bench.machine.quarantine(stamp(5)).unwrap();
    assert_ne!(
        bench.machine.state_hash(),
        before,
        "quarantine is part of the state"
    );
}

#[test]
fn the_log_is_kept_from_what_is_not_durable_yet() {
    let mut bench = Bench::new();
    assert_eq!(bench.machine.keep_from(), Position(1));
    bench.open("alice");
    bench.stored("alice", 1);
    assert_eq!(bench.machine.keep_from(), Position(1));
    bench.engine.flush().unwrap();
    assert_eq!(bench.machine.keep_from(), Position(3));
    let hash = bench.machine.state_hash();
    let reopened = MailboxMachine::open(bench.engine.clone()).unwrap();
    assert_eq!(reopened.state_hash(), hash);
    assert_eq!(reopened.applied(), bench.machine.applied());
    assert_eq!(delivery_id(1).len(), key::DELIVERY_ID_BYTES);
}

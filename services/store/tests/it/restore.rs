//! Backups: what goes out comes back the same, under higher UIDVALIDITYs, and never over mail.

use hikyaku_proto::v1::ingest::Piece;
use hikyaku_proto::v1::record::Command;
use hikyaku_proto::v1::shard_piece;
use hikyaku_proto::v1::{
    AccountState, CreateMailbox, Ingest, SetAccount, ShardHeader, ShardPiece, StoreFlags,
    StoredMessage, store_flags::How,
};
use hikyaku_store::export::{Export, FORMAT, PieceError, Verifier};
use hikyaku_store::machine::Answer;
use hikyaku_store::{key, read};

use crate::bench::{Bench, DAY_MS, START_MS, delivery};

/// A shard with something of everything.
fn full() -> Bench {
    let mut bench = Bench::new();
    for account in ["alice", "bob", "carol"] {
        bench.open(account);
    }
    for number in 0..100 {
        bench.deliver("alice", number);
    }
    let at = bench.stored("bob", 1_000);
    bench.expunge("bob", at, &[1]);
    bench.void("bob", 1_001);
    bench.stored("bob", 1_002);
    bench.run(Command::StoreFlags(StoreFlags {
        account: "alice".into(),
        mailbox_id: 0,
        uid_validity: bench.inbox("alice").uid_validity,
        uids: (1..50).collect(),
        how: How::Add.into(),
        flags: vec!["\\Seen".into(), "$Work".into()],
        unchanged_since: 0,
    }));
    bench.run(Command::SetAccount(SetAccount {
        account: "carol".into(),
        state: Some(AccountState::Deleted.into()),
        quota_bytes: Some(123_456),
        purge_at_ms: START_MS + 30 * DAY_MS,
    }));
    bench
}

fn pieces(bench: &Bench) -> Vec<ShardPiece> {
    let header = ShardHeader {
        shard: "mbox-0".into(),
        format: FORMAT,
        ..ShardHeader::default()
    };
    let mut export = Export::new(bench.snapshot(), header);
    std::iter::from_fn(|| export.next_piece().unwrap()).collect()
}

fn verify(pieces: &[ShardPiece]) -> Result<(), PieceError> {
    let mut verifier = Verifier::default();
    for piece in pieces {
        verifier.piece(piece)?;
    }
    verifier.end()
}

fn ingests(pieces: &[ShardPiece]) -> Vec<Ingest> {
    pieces
        .iter()
        .filter_map(|piece| match &piece.piece {
            Some(shard_piece::Piece::Ingest(ingest)) => Some(ingest.clone()),
            _ => None,
        })
        .collect()
}

/// Everything of a mailbox but what a restore changes.
fn contents(bench: &Bench, account: &str) -> Vec<(u32, StoredMessage, bytes::Bytes, bytes::Bytes)> {
    let snapshot = bench.snapshot();
    let inbox = bench.account(account).inbox;
    read::messages(&*snapshot, account, inbox, 0, 1_000)
        .unwrap()
        .into_iter()
        .map(|(uid, mut message)| {
            let body = read::body(&*snapshot, &message).unwrap();
            message.body_position = 0;
            (uid, message, body.prefix, body.body.unwrap().blake3)
        })
        .collect()
}

#[test]
fn a_backup_comes_back_the_same() {
    let old = full();
    let pieces = pieces(&old);
    verify(&pieces).unwrap();
    let mut new = Bench::new();
    for ingest in ingests(&pieces) {
        assert_eq!(new.run(Command::Ingest(ingest.clone())), Answer::Ingested);
        // a repeat of an unanswered piece does nothing (but for the first, which begins anew)
        if !matches!(ingest.piece, Some(Piece::Begin(_))) {
            assert_eq!(new.run(Command::Ingest(ingest)), Answer::Ingested);
        }
    }
    for account in ["alice", "bob", "carol"] {
        assert_eq!(
            contents(&old, account),
            contents(&new, account),
            "{account}"
        );
        let (before, after) = (old.inbox(account), new.inbox(account));
        assert!(after.uid_validity > before.uid_validity);
        assert!(after.uid_next >= before.uid_next);
        assert_eq!(before.keywords, after.keywords);
        assert_eq!(before.unseen, after.unseen);
        let (before, after) = (old.account(account), new.account(account));
        assert_eq!(before.state, after.state);
        assert_eq!(before.quota_bytes, after.quota_bytes);
        assert_eq!(before.used_bytes, after.used_bytes);
        assert_eq!(before.purge_at_ms, after.purge_at_ms);
        assert!(after.last_uid_validity > before.last_uid_validity);
    }
    new.assert_clean();
    assert_eq!(
        read::totals(&*old.snapshot()).unwrap(),
        read::totals(&*new.snapshot()).unwrap()
    );
    // deliveries the old shard answered are not stored again by the new one
    assert!(matches!(
        new.deliver("alice", 5),
        Answer::AlreadyDelivered(_)
    ));
    assert!(matches!(
        new.deliver("bob", 1_000),
        Answer::AlreadyDelivered(_)
    ));
    assert_eq!(new.deliver("bob", 1_001), Answer::Voided);
}

/// The numbers that a backup names for each mailbox of an account, by name.
fn numbers(ingests: &[Ingest], account: &str) -> Vec<(String, u32)> {
    let mailboxes = ingests.iter().filter(|ingest| ingest.account == account);
    mailboxes
        .filter_map(|ingest| match &ingest.piece {
            Some(Piece::Mailbox(mailbox)) => Some((mailbox.name.clone(), mailbox.uid_next)),
            _ => None,
        })
        .collect()
}

#[test]
fn a_uid_given_before_the_backup_is_not_given_again_after_the_restore() {
    let mut old = Bench::new();
    for account in ["alice", "bob"] {
        old.open(account);
    }
    // alice's last mails are expunged, and all of bob's
    let at = old.stored("alice", 1);
    old.stored("alice", 2);
    old.stored("alice", 3);
    old.expunge("alice", at, &[2, 3]);
    let at = old.stored("bob", 4);
    old.stored("bob", 5);
    old.expunge("bob", at, &[1, 2]);
    let mut to_work = delivery("bob", 6);
    to_work.mailbox = "Work".into();
    old.run(Command::CreateMailbox(CreateMailbox {
        account: "bob".into(),
        name: "Work".into(),
        special_use: String::new(),
    }));
    old.run(Command::Deliver(to_work));

    let ingests = ingests(&pieces(&old));
    let of = |account: &str, name: &str| {
        let all = numbers(&ingests, account);
        let found = all.into_iter().find(|(mailbox, _)| mailbox == name);
        found.map(|(_, uid_next)| uid_next)
    };
    assert_eq!(of("alice", "INBOX"), Some(4));
    assert_eq!(of("bob", "INBOX"), Some(3));
    assert_eq!(of("bob", "Work"), Some(2));
    assert_eq!(of("bob", "Sent"), Some(1), "nothing was ever in it");

    let mut new = Bench::new();
    for ingest in &ingests {
        let answer = new.run(Command::Ingest(ingest.clone()));
        assert_eq!(answer, Answer::Ingested);
    }
    for (account, number, uid) in [("alice", 10, 4), ("bob", 11, 3)] {
        assert_eq!(new.inbox(account).uid_next, uid, "{account}");
        assert_eq!(new.stored(account, number).uid, uid, "{account}");
    }
    new.assert_clean();
}

/// UIDs that were given between the backup and the loss are given again. So everything about them
/// must be of no effect, which UIDVALIDITY says: it is above all that the account had when it was
/// lost, not only above what the backup knows.
#[test]
fn what_was_given_after_the_backup_means_nothing_after_the_restore() {
    let mut old = Bench::new();
    old.open("alice");
    let at = old.stored("alice", 1);
    let ingests = ingests(&pieces(&old));
    // life went on: another mail under UID 2, another mailbox under the next UIDVALIDITY
    old.now_ms += DAY_MS;
    let lost = old.stored("alice", 2);
    assert_eq!((lost.uid_validity, lost.uid), (at.uid_validity, 2));
    let create = CreateMailbox {
        account: "alice".into(),
        name: "Work".into(),
        special_use: String::new(),
    };
    old.run(Command::CreateMailbox(create));
    let given = old.account("alice").last_uid_validity;
    assert!(given > at.uid_validity + 6);

    let mut new = Bench::new();
    new.now_ms = old.now_ms + DAY_MS;
    for ingest in ingests {
        assert_eq!(new.run(Command::Ingest(ingest)), Answer::Ingested);
    }
    for (_, mailbox) in read::mailboxes(&*new.snapshot(), "alice").unwrap() {
        assert!(mailbox.uid_validity > given, "{mailbox:?}");
    }
    // another mail under UID 2
    let other = new.stored("alice", 3);
    assert_eq!(other.uid, 2);
    let snapshot = new.snapshot();
    for uid in [1, 2] {
        let seen = read::message(&*snapshot, "alice", 0, lost.uid_validity, uid).unwrap();
        assert_eq!(seen, None, "UID {uid} of the old UIDVALIDITY");
    }
    assert_eq!(new.expunge("alice", lost, &[1, 2]), Answer::Expunged(0));
    assert_eq!(new.uids("alice"), [1, 2]);
    new.assert_clean();
}

#[test]
fn damage_is_noticed() {
    let whole = pieces(&full());
    let mut short = whole.clone();
    short.pop();
    assert_eq!(verify(&short), Err(PieceError::Trailer));
    let mut without_one = whole.clone();
    without_one.remove(whole.len() / 2);
    assert_eq!(verify(&without_one), Err(PieceError::Seal));
    let mut swapped = whole.clone();
    swapped.swap(20, 21);
    assert_eq!(verify(&swapped), Err(PieceError::Seal));
    assert_eq!(verify(&whole[1..]), Err(PieceError::Header));
    let mut longer = whole.clone();
    longer.push(whole[1].clone());
    assert_eq!(verify(&longer), Err(PieceError::Trailer));
}

#[test]
fn mail_is_never_restored_over() {
    let ingests = ingests(&pieces(&full()));
    let mut new = Bench::new();
    new.open("alice");
    let at = new.stored("alice", 7_777);
    for ingest in ingests.iter().filter(|ingest| ingest.account == "alice") {
        let answer = new.run(Command::Ingest(ingest.clone()));
        assert!(
            matches!(answer, Answer::Exists | Answer::Refused(_)),
            "{answer:?}"
        );
    }
    assert_eq!(new.uids("alice"), [at.uid]);
    new.assert_clean();
}

#[test]
fn an_open_account_without_mail_is_replaced_and_its_numbers_stay_given() {
    let ingests = ingests(&pieces(&full()));
    let mut new = Bench::new();
    // clocks ahead of ours made high UIDVALIDITYs here, and a mail was fetched and deleted
    new.now_ms += 365 * DAY_MS;
    new.open("alice");
    let at = new.stored("alice", 3);
    new.expunge("alice", at, &[at.uid]);
    let given = new.account("alice").last_uid_validity;
    new.now_ms = START_MS;
    for ingest in ingests.iter().filter(|ingest| ingest.account == "alice") {
        assert_eq!(new.run(Command::Ingest(ingest.clone())), Answer::Ingested);
    }
    assert!(new.inbox("alice").uid_validity > given);
    assert_eq!(new.uids("alice").len(), 100);
    new.assert_clean();
}

#[test]
fn what_is_not_whole_is_not_shown_and_goes_in_time() {
    let ingests = ingests(&pieces(&full()));
    let alice: Vec<_> = ingests.iter().filter(|i| i.account == "alice").collect();
    let mut new = Bench::new();
    for (index, ingest) in alice.iter().enumerate() {
        // one message is lost on the way
        if index != 20 {
            let answer = new.run(Command::Ingest((*ingest).clone()));
            let last = index == alice.len() - 1;
            assert_eq!(matches!(answer, Answer::Refused(_)), last, "{answer:?}");
        }
    }
    assert_eq!(
        read::account(&*new.snapshot(), "alice").unwrap(),
        read::Account::Busy
    );
    assert_eq!(new.deliver("alice", 9_000), Answer::Busy);
    new.assert_clean();
    // a new attempt removes the remains of the first
    for ingest in &alice {
        assert_eq!(
            new.run(Command::Ingest((*ingest).clone())),
            Answer::Ingested
        );
    }
    assert_eq!(new.uids("alice").len(), 100);
    new.assert_clean();

    // given up for good
    let mut new = Bench::new();
    for ingest in &alice[..50] {
        new.run(Command::Ingest((*ingest).clone()));
        // slow, but going on
        new.now_ms += DAY_MS / 48;
        new.tick();
        new.assert_clean();
    }
    assert_eq!(
        read::account(&*new.snapshot(), "alice").unwrap(),
        read::Account::Busy
    );
    new.now_ms += DAY_MS / 24;
    new.tick();
    assert_eq!(
        read::account(&*new.snapshot(), "alice").unwrap(),
        read::Account::Absent
    );
    assert_eq!(new.keys(&key::table(b'b')), 0);
    new.assert_clean();
}

#[test]
fn remains_are_removed_some_at_a_time() {
    let mut old = Bench::new();
    old.open("alice");
    for number in 0..2_000 {
        old.deliver("alice", number);
    }
    let ingests = ingests(&pieces(&old));
    let mut new = Bench::new();
    for ingest in &ingests[..ingests.len() - 1] {
        assert_eq!(new.run(Command::Ingest(ingest.clone())), Answer::Ingested);
    }
    let mut steps = 0;
    while new.run(Command::Ingest(ingests[0].clone())) == Answer::Discarding {
        steps += 1;
        new.assert_clean();
    }
    assert!(steps >= 2, "{steps}");
    assert_eq!(new.keys(&key::table(b'e')), 0);
    new.assert_clean();
}

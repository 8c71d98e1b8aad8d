//! Maildrops with many mails: all of them, in a memory that has a limit, and deleted whatever their
//! number.

use hikyaku_access::mailboxes::MailboxesOptions;
use hikyaku_access::memory::{MAIL_BYTES, SMALL_MAILS_MAX};

use crate::support::{Mail, Site};

/// An email id as the shards make them: 15 octets in base 32, here those of a number.
fn email_id(number: u32) -> String {
    const DIGITS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let digits = (0..24).rev().map(|place| {
        let shifted = (u128::from(number) * 0x9e37_79b9_7f4a_7c15 + 1) >> (5 * place);
        char::from(DIGITS[shifted as usize % 32])
    });
    std::iter::once('M').chain(digits).collect()
}

fn give(site: &Site, account: &str, mails: usize) {
    let mail = Mail::new(1, "", "", "x\r\n");
    let mails = (1..=mails as u32).map(|uid| Mail {
        uid,
        email_id: email_id(uid),
        ..mail.clone()
    });
    let mut state = site.peers.state();
    state.owners.insert(account.into(), 1);
    state.inboxes.insert((1, account.into()), mails.collect());
}

/// A site whose accounts may have so many mails shown.
fn site(mails_max: usize) -> Site {
    let mut site = Site::new();
    site.mailboxes = MailboxesOptions {
        memory_bytes_max: (mails_max * MAIL_BYTES).div_ceil(3) * 4,
        ..MailboxesOptions::default()
    };
    site
}

const LOG_IN_CAROL: &str = "S: +OK*\nC: USER carol\nS: +OK*\nC: PASS secret carol\n";

#[tokio::test(start_paused = true)]
async fn more_than_a_hundred_thousand_mails_are_all_there() {
    let site = Site::new();
    give(&site, "id-alice", 120_000);
    let mut client = site.connect();
    client
        .play(
            "
            S: +OK*
            C: USER alice
            S: +OK*
            C: PASS secret alice
            S: +OK maildrop has 120000 messages (360000 octets)
            C: LIST 120000
            S: +OK 120000 3
            ",
        )
        .await;
    client
        .play(&format!(
            "C: UIDL 120000\nS: +OK 120000 {}",
            email_id(120_000)
        ))
        .await;
    client.send(b"UIDL\r\n").await;
    let (_, ids) = client.multiline().await.unwrap();
    let ids = String::from_utf8(ids).unwrap();
    assert_eq!(ids.lines().count(), 120_000);
    for (line, number) in ids.lines().zip(1..) {
        assert_eq!(line, format!("{number} {}", email_id(number)));
    }
}

#[tokio::test(start_paused = true)]
async fn who_finds_no_memory_comes_again_later_and_small_maildrops_always_open() {
    let site = site(3 * SMALL_MAILS_MAX);
    give(&site, "id-alice", 3 * SMALL_MAILS_MAX);
    give(&site, "id-carol", 2 * SMALL_MAILS_MAX);
    let alice = site.log_in().await;
    // a second session of the same account, then another account
    site.play(
        "
        S: +OK*
        C: USER alice
        S: +OK*
        C: PASS secret alice
        S: -ERR [SYS/TEMP] not available now, try again later
        C: QUIT
        S: +OK*
        S: ~
        ",
    )
    .await;
    let refused = format!("{LOG_IN_CAROL}S: -ERR [SYS/TEMP] not available now, try again later");
    site.play(&refused).await;
    give(&site, "id-carol", SMALL_MAILS_MAX);
    site.play(&format!("{LOG_IN_CAROL}S: +OK maildrop has 1000 messages*"))
        .await;
    give(&site, "id-carol", 2 * SMALL_MAILS_MAX);
    site.play(&refused).await;
    alice.hang_up().await;
    site.play(&format!("{LOG_IN_CAROL}S: +OK maildrop has 2000 messages*"))
        .await;
}

#[tokio::test(start_paused = true)]
async fn all_of_many_mails_are_deleted_in_calls_that_are_answered_in_time() {
    let site = Site::new();
    give(&site, "id-alice", 12_001);
    let mut client = site.log_in().await;
    for hundreds in 0..120 {
        let marks = (1..=100).map(|number| format!("DELE {}\r\n", 100 * hundreds + number));
        client.send(marks.collect::<String>().as_bytes()).await;
        for _ in 0..100 {
            assert!(client.line().await.unwrap().starts_with(b"+OK"));
        }
    }
    // one answer is lost: that call comes again, under the same id
    site.peers.state().expunge_answers_lost = 1;
    client
        .play("C: QUIT\nS: +OK 12000 messages deleted, goodbye\nS: ~")
        .await;
    assert_eq!(site.mails(), [12_001]);
    let state = site.peers.state();
    let calls = state
        .expunges
        .iter()
        .map(|call| call.expunge.as_ref().unwrap().uids.len());
    assert_eq!(calls.collect::<Vec<_>>(), [10_000, 10_000, 2_000]);
    assert_eq!(state.expunges[0].cmd_id, state.expunges[1].cmd_id);
    assert_eq!(state.applied.len(), 2, "each call has an id of its own");
}

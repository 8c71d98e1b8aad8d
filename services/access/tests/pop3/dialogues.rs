//! What is said when nothing is wrong, or the client is.

use hikyaku_access::mailboxes::MailboxesOptions;
use hikyaku_access::memory::MAIL_BYTES;

use crate::support::{Mail, Site};

#[tokio::test(start_paused = true)]
async fn a_whole_session() {
    let site = Site::new();
    site.play(
        "
        S: +OK POP3 server ready
        C: USER alice
        S: +OK*
        C: PASS secret alice
        S: +OK maildrop has 2 messages (71 octets)
        C: STAT
        S: +OK 2 71
        C: LIST
        S: +OK 2 messages (71 octets)
        S: 1 42
        S: 2 29
        S: .
        C: LIST 2
        S: +OK 2 29
        C: LIST 3
        S: -ERR no such message
        C: UIDL
        S: +OK*
        S: 1 Ma
        S: 2 Mb
        S: .
        C: UIDL 1
        S: +OK 1 Ma
        C: RETR 1
        S: +OK 42 octets
        S: Return-Path: <>
        S: Subject: a
        S: 
        S: ..dot
        S: end
        S: .
        C: TOP 2 1
        S: +OK 29 octets
        S: Subject: b
        S: 
        S: one
        S: .
        C: TOP 2 4294967295
        S: +OK 29 octets
        S: Subject: b
        S: 
        S: one
        S: two
        S: three
        S: .
        C: NOOP
        S: +OK*
        C: DELE 1
        S: +OK*
        C: DELE 1
        S: -ERR message is marked as deleted
        C: RETR 1
        S: -ERR message is marked as deleted
        C: STAT
        S: +OK 1 29
        C: UIDL
        S: +OK*
        S: 2 Mb
        S: .
        C: RSET
        S: +OK 2 messages (71 octets)
        C: STAT
        S: +OK 2 71
        C: DELE 2
        S: +OK*
        C: QUIT
        S: +OK 1 messages deleted*
        S: ~
        ",
    )
    .await;
    assert_eq!(site.mails(), [3]);
    // one call for each message sent
    assert_eq!(site.peers.state().fetches, 3);
}

#[tokio::test(start_paused = true)]
async fn capabilities_before_and_after_login() {
    let site = Site::new();
    site.play(
        "
        S: +OK*
        C: CAPA
        S: +OK*
        S: TOP
        S: UIDL
        S: RESP-CODES
        S: AUTH-RESP-CODE
        S: PIPELINING
        S: EXPIRE NEVER
        S: UTF8 USER
        S: USER
        S: SASL PLAIN
        S: IMPLEMENTATION Hikyaku
        S: .
        C: USER alice
        S: +OK*
        C: PASS secret alice
        S: +OK*
        C: CAPA
        S: +OK*
        S: TOP
        S: UIDL
        S: RESP-CODES
        S: AUTH-RESP-CODE
        S: PIPELINING
        S: EXPIRE NEVER
        S: UTF8 USER
        S: USER
        S: SASL PLAIN
        S: IMPLEMENTATION Hikyaku
        S: .
        C: QUIT
        S: +OK*
        S: ~
        ",
    )
    .await;
    assert!(site.peers.state().expunges.is_empty());
}

#[tokio::test(start_paused = true)]
async fn commands_out_of_their_state() {
    Site::new()
        .play(
            "
            S: +OK*
            C: STAT
            S: -ERR log in first
            C: RETR 1
            S: -ERR log in first
            C: PASS secret alice
            S: -ERR USER comes first
            C: STLS
            S: -ERR TLS is not offered here
            C: USER alice
            S: +OK*
            C: NOOP
            S: -ERR log in first
            C: PASS secret alice
            S: -ERR USER comes first
            C: USER alice
            S: +OK*
            C: PASS secret alice
            S: +OK*
            C: USER alice
            S: -ERR you are logged in already
            C: STLS
            S: -ERR you are logged in already
            C: HELO
            S: -ERR unknown command
            C: RETR
            S: -ERR these arguments*
            C: RETR 0
            S: -ERR no such message
            C: RETR 4294967296
            S: -ERR no such message
            C: QUIT
            S: +OK*
            S: ~
            ",
        )
        .await;
}

#[tokio::test(start_paused = true)]
async fn b223_a_line_over_255_octets_is_an_error_and_the_session_goes_on() {
    let site = Site::new();
    let mut client = site.log_in().await;
    for octets in [256, 4096, 60_000] {
        let mut line = vec![b'x'; octets - 2];
        line.extend_from_slice(b"\r\nNOOP\r\n");
        client.send(&line).await;
        client.play("S: -ERR line is too long\nS: +OK*").await;
    }
}

#[tokio::test(start_paused = true)]
async fn b223_a_line_without_end_is_given_up() {
    let mut client = Site::new().log_in().await;
    client.send(&vec![b'x'; 64 << 10]).await;
    client.send(&[b'x'; 2 << 10]).await;
    client.play("S: -ERR this is no line of POP3\nS: ~").await;
}

#[tokio::test(start_paused = true)]
async fn a_lone_line_feed_ends_no_command() {
    for nonsense in [
        &b"NOOP\nQUIT\r\n"[..],
        b"NOOP\rQUIT\r\n",
        b"\x16\x03\x01\x02\n\r\n",
    ] {
        let site = Site::new();
        let mut client = site.log_in().await;
        client.send(b"DELE 1\r\n").await;
        client.send(nonsense).await;
        client
            .play("S: +OK*\nS: -ERR this is no line of POP3\nS: ~")
            .await;
        assert_eq!(site.mails(), [3, 8]);
    }
}

#[tokio::test(start_paused = true)]
async fn too_much_nonsense_ends_the_connection() {
    let mut client = Site::new().connect();
    client.play("S: +OK*").await;
    client.send(&b"GET / HTTP/1.1\r\n".repeat(25)).await;
    for _ in 0..20 {
        client.play("S: -ERR unknown command").await;
    }
    client.play("S: ~").await;
}

#[tokio::test(start_paused = true)]
async fn b223_pipelined_commands_are_answered_in_order() {
    let site = Site::new();
    let mut client = site.connect();
    client
        .send(b"USER alice\r\nPASS secret alice\r\nSTAT\r\nRETR 2\r\nDELE 1\r\nDELE 9\r\nQUIT\r\n")
        .await;
    client
        .play(
            "
            S: +OK*
            S: +OK*
            S: +OK maildrop has 2*
            S: +OK 2 71
            S: +OK 29 octets
            S: Subject: b
            S: 
            S: one
            S: two
            S: three
            S: .
            S: +OK*
            S: -ERR no such message
            S: +OK 1 messages deleted*
            S: ~
            ",
        )
        .await;
    assert_eq!(site.mails(), [8]);
}

#[tokio::test(start_paused = true)]
async fn b224_unique_ids_stay_over_sessions_and_a_move() {
    let site = Site::new();
    let mut client = site.log_in().await;
    client.send(b"UIDL\r\n").await;
    let before = client.multiline().await;
    client.play("C: QUIT\nS: +OK*\nS: ~").await;
    {
        let mut state = site.peers.state();
        let mut inbox = state.inboxes.remove(&(1, "id-alice".into())).unwrap();
        inbox.iter_mut().for_each(|mail| mail.uid += 100);
        state.inboxes.insert((2, "id-alice".into()), inbox);
        state.owners.insert("id-alice".into(), 2);
    }
    let mut client = site.log_in().await;
    client.send(b"UIDL\r\n").await;
    assert_eq!(client.multiline().await, before);
}

#[tokio::test(start_paused = true)]
async fn b224_two_sessions_are_two_snapshots() {
    let site = Site::new();
    let (mut one, mut two) = (site.log_in().await, site.log_in().await);
    one.play("C: DELE 1\nS: +OK*\nC: QUIT\nS: +OK 1 messages deleted*\nS: ~")
        .await;
    let late = Mail::new(9, "Mc", "", "Subject: c\r\n\r\n");
    site.peers
        .state()
        .inboxes
        .get_mut(&(1, "id-alice".into()))
        .unwrap()
        .push(late);
    two.play(
        "
        C: STAT
        S: +OK 2 71
        C: RETR 1
        S: -ERR message was deleted meanwhile
        C: TOP 1 0
        S: -ERR message was deleted meanwhile
        C: RETR 3
        S: -ERR no such message
        C: DELE 1
        S: +OK*
        C: QUIT
        S: +OK 1 messages deleted*
        S: ~
        ",
    )
    .await;
    assert_eq!(site.mails(), [8, 9]);
}

#[tokio::test(start_paused = true)]
async fn a_large_maildrop_is_listed_whole_and_shown_up_to_the_limit() {
    let mut site = Site::new();
    site.mailboxes = MailboxesOptions {
        // one account has three quarters of it
        memory_bytes_max: (5000 * MAIL_BYTES).div_ceil(3) * 4,
        ..MailboxesOptions::default()
    };
    let mail = Mail::new(1, "", "", "x\r\n");
    let mails = (1..=5001)
        .map(|uid| Mail {
            uid,
            email_id: format!("M{uid:030}"),
            ..mail.clone()
        })
        .collect();
    site.peers
        .state()
        .inboxes
        .insert((1, "id-alice".into()), mails);
    let mut client = site.log_in().await;
    client.send(b"UIDL\r\nLIST\r\n").await;
    let (_, ids) = client.multiline().await.unwrap();
    let ids = String::from_utf8(ids).unwrap();
    assert_eq!(ids.lines().count(), 5000);
    assert!(
        ids.lines()
            .zip(1..)
            .all(|(line, n)| line == format!("{n} M{n:030}"))
    );
    let (_, sizes) = client.multiline().await.unwrap();
    assert_eq!(
        String::from_utf8(sizes).unwrap().lines().last(),
        Some("5000 3")
    );
}

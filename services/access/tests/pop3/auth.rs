//! AUTH PLAIN (RFC 5034) and UTF8 (RFC 6856).

use std::sync::atomic::Ordering;

use crate::support::Site;

/// `alice`, `secret alice`.
const ALICE: &str = "AGFsaWNlAHNlY3JldCBhbGljZQ==";

#[tokio::test(start_paused = true)]
async fn with_an_initial_response_and_with_a_challenge() {
    let site = Site::new();
    site.play(&format!(
        "
        S: +OK*
        C: AUTH
        S: +OK*
        S: PLAIN
        S: .
        C: AUTH PLAIN {ALICE}
        S: +OK maildrop has 2 messages (71 octets)
        C: STAT
        S: +OK 2 71
        C: AUTH PLAIN {ALICE}
        S: -ERR you are logged in already
        C: QUIT
        S: +OK*
        S: ~
        "
    ))
    .await;
    // authorization identity: alice herself
    site.play(
        "
        S: +OK*
        C: auth plain
        S: + 
        C: YWxpY2UAYWxpY2UAc2VjcmV0IGFsaWNl
        S: +OK maildrop has 2 messages (71 octets)
        C: QUIT
        S: +OK*
        S: ~
        ",
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_leaves_the_session_as_it_was() {
    let site = Site::new();
    let long = "A".repeat(3000);
    site.play(&format!(
        "
        S: +OK*
        C: AUTH CRAM-MD5
        S: -ERR only PLAIN is offered
        C: AUTH PLAIN
        S: + 
        C: *
        S: -ERR authentication is cancelled
        C: AUTH PLAIN =
        S: -ERR this is no response of PLAIN
        C: AUTH PLAIN
        S: + 
        C: NOOP NOOP
        S: -ERR this is no base64
        C: AUTH PLAIN
        S: + 
        C: {long}
        S: -ERR this is no response of PLAIN
        C: AUTH PLAIN Y2Fyb2wAYWxpY2UAc2VjcmV0IGFsaWNl
        S: -ERR [AUTH] logging in for somebody else is not possible
        C: AUTH PLAIN {long}
        S: -ERR line is too long
        C: USER alice
        S: +OK*
        C: AUTH PLAIN
        S: + 
        C: *
        S: -ERR authentication is cancelled
        C: PASS secret alice
        S: -ERR USER comes first
        "
    ))
    .await;
    assert_eq!(site.staff.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_wrong_password_is_as_wrong_as_by_pass() {
    let site = Site::new();
    let mut client = site.connect();
    client.play("S: +OK*").await;
    for _ in 0..4 {
        client
            .play("C: AUTH PLAIN AGFsaWNlAHdyb25n\nS: -ERR [AUTH] wrong login or password")
            .await;
    }
    client.play("S: ~").await;
}

#[tokio::test(start_paused = true)]
async fn a_long_password_fits_the_response_and_pipelined_commands_follow_it() {
    let site = Site::new();
    let mut client = site.connect();
    // nobody has this one; that it is looked at at all is the point
    let mut decoded = b"\0alice\0".to_vec();
    decoded.resize(1500, b'p');
    let response = base64(&decoded);
    client
        .send(format!("AUTH PLAIN\r\n{response}\r\nAUTH PLAIN {ALICE}\r\nSTAT\r\n").as_bytes())
        .await;
    client
        .play("S: +OK*\nS: + \nS: -ERR [AUTH] wrong*\nS: +OK maildrop*\nS: +OK 2 71")
        .await;
    assert_eq!(site.staff.asked.load(Ordering::SeqCst), 2);
}

fn base64(octets: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(octets)
}

#[tokio::test(start_paused = true)]
async fn utf8_is_said_before_the_login_and_changes_no_octet() {
    let site = Site::new();
    let mail = crate::support::Mail::new(9, "Mc", "", "Subject: 飛脚\r\n\r\nこんにちは\r\n");
    let key = (1, "id-alice".to_owned());
    site.peers.state().inboxes.insert(key, vec![mail]);
    for utf8 in ["C: UTF8\nS: +OK*\n", ""] {
        site.play(&format!(
            "S: +OK*
            {utf8}C: USER alice
            S: +OK*
            C: PASS secret alice
            S: +OK*
            C: UTF8
            S: -ERR you are logged in already
            C: RETR 1
            S: +OK*
            S: Subject: 飛脚
            S: 
            S: こんにちは
            S: .
            C: QUIT
            S: +OK*
            S: ~
            "
        ))
        .await;
    }
}

//! Who gets in, and what is said to those who do not.

use std::sync::atomic::Ordering;
use std::time::Duration;

use hikyaku_access::pop3::options::Login;
use tokio::time::Instant;

use crate::support::Site;

/// Logs in as `login` with that password and expects `answer`.
async fn refused(site: &Site, login: &str, answer: &str) {
    site.play(&format!("S: +OK*\nC: USER {login}\nS: +OK*\nC: PASS secret {login}\nS: {answer}\nC: QUIT\nS: +OK*\nS: ~")).await;
}

#[tokio::test(start_paused = true)]
async fn b45_no_password_without_tls() {
    let mut site = Site::new();
    site.options.login = Login::TlsOnly;
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
        S: IMPLEMENTATION Hikyaku
        S: .
        C: USER alice
        S: -ERR [AUTH] passwords are taken only under TLS
        C: PASS secret alice
        S: -ERR [AUTH] passwords are taken only under TLS
        C: AUTH
        S: +OK*
        S: .
        C: AUTH PLAIN
        S: -ERR [AUTH] passwords are taken only under TLS
        C: AUTH PLAIN AGFsaWNlAHNlY3JldCBhbGljZQ==
        S: -ERR [AUTH] passwords are taken only under TLS
        C: QUIT
        S: +OK*
        S: ~
        ",
    )
    .await;
    assert_eq!(site.staff.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn wrong_logins_look_alike_are_slowed_down_and_end_the_connection() {
    let site = Site::new();
    let mut client = site.connect();
    client.play("S: +OK*").await;
    for (login, delay) in [("alice", 1), ("nobody", 2), ("alice", 4), ("nobody", 8)] {
        let begun = Instant::now();
        client
            .play(&format!(
                "C: USER {login}\nS: +OK*\nC: PASS wrong\nS: -ERR [AUTH] wrong login or password"
            ))
            .await;
        assert_eq!(begun.elapsed().as_secs(), delay);
    }
    client.play("S: ~").await;
}

#[tokio::test(start_paused = true)]
async fn a_name_is_good_for_one_password() {
    Site::new()
        .play(
            "
            S: +OK*
            C: USER alice
            S: +OK*
            C: PASS wrong
            S: -ERR [AUTH] wrong*
            C: PASS secret alice
            S: -ERR USER comes first
            C: USER alice
            S: +OK*
            C: PASS secret alice
            S: +OK*
            ",
        )
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_is_down_is_never_a_wrong_password() {
    let site = Site::new();
    let mut client = site.connect();
    client.play("S: +OK*").await;
    // more often than wrong passwords would be heard
    for login in ["ill", "ill", "ill", "slow", "ill", "ill"] {
        client
            .play(&format!(
                "C: USER {login}\nS: +OK*\nC: PASS x\nS: -ERR [SYS/TEMP]*"
            ))
            .await;
    }
    client
        .play("C: USER alice\nS: +OK*\nC: PASS secret alice\nS: +OK*")
        .await;
}

#[tokio::test(start_paused = true)]
async fn who_may_not_log_in_is_told_so_after_the_right_password() {
    let site = Site::new();
    refused(&site, "disabled", "-ERR [AUTH] this account may not log in").await;
    site.peers.state().closed.insert("id-alice".into());
    refused(&site, "alice", "-ERR [AUTH] this account may not log in").await;
}

#[tokio::test(start_paused = true)]
async fn peers_that_are_down_are_temporary() {
    let site = Site::new();
    site.peers.state().home_down = true;
    refused(&site, "alice", "-ERR [SYS/TEMP]*").await;
    site.peers.state().home_down = false;
    site.peers.state().shards_down = true;
    refused(&site, "alice", "-ERR [SYS/TEMP]*").await;
    site.peers.state().shards_down = false;
    site.log_in().await;
}

#[tokio::test(start_paused = true)]
async fn an_account_without_mail_has_an_empty_maildrop() {
    let site = Site::new();
    let empty = "
        S: +OK*
        C: USER carol
        S: +OK*
        C: PASS secret carol
        S: +OK maildrop has 0 messages (0 octets)
        C: LIST
        S: +OK*
        S: .
        C: UIDL
        S: +OK*
        S: .
        C: RETR 1
        S: -ERR no such message
        C: QUIT
        S: +OK*
        S: ~
    ";
    // no owner, then an owner that has not heard of it, then an INBOX without mail
    site.play(empty).await;
    site.peers.state().owners.insert("id-carol".into(), 4);
    site.play(empty).await;
    site.peers
        .state()
        .inboxes
        .insert((4, "id-carol".into()), Vec::new());
    site.play(empty).await;
    assert_eq!(site.peers.state().opened_at, [4, 4]);
}

#[tokio::test(start_paused = true)]
async fn a_wrong_shard_is_left_for_the_right_one() {
    let site = Site::new();
    site.peers.state().owners.insert("id-alice".into(), 6);
    site.peers.state().hints.insert(6, Some(7));
    site.peers.state().hints.insert(7, Some(1));
    site.log_in().await.play("C: STAT\nS: +OK 2 71").await;
    assert_eq!(site.peers.state().opened_at, [6, 7, 1]);
}

#[tokio::test(start_paused = true)]
async fn shards_that_never_agree_are_temporary() {
    let site = Site::new();
    site.peers.state().hints.insert(1, Some(7));
    site.peers.state().hints.insert(7, Some(1));
    refused(&site, "alice", "-ERR [SYS/TEMP]*").await;
    // a shard that names nobody: Home is asked, and insists
    site.peers.state().hints = [(1, None)].into();
    refused(&site, "alice", "-ERR [SYS/TEMP]*").await;
    assert!(site.peers.state().opened_at.len() <= 8);
}

#[tokio::test(start_paused = true)]
async fn an_empty_maildrop_is_believed_only_of_the_owner() {
    let site = Site::new();
    // shard 7 has never heard of alice, and is not where Home has her
    site.peers.state().hints.insert(1, Some(7));
    refused(&site, "alice", "-ERR [SYS/TEMP]*").await;
}

#[tokio::test(start_paused = true)]
async fn the_log_names_who_logged_in_and_never_a_password() {
    #[derive(Clone, Default)]
    struct Sink(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);
    impl std::io::Write for Sink {
        fn write(&mut self, octets: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(octets);
            Ok(octets.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let sink = Sink::default();
    let writer = sink.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    // for the whole program: a thread's own would miss what other tests' threads have already been told to pass over
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let site = Site::new();
    site.play(
        "
        S: +OK*
        C: USER alice\u{85}
        S: -ERR*
        C: USER alice
        S: +OK*
        C: PASS hunter2
        S: -ERR [AUTH]*
        C: PASS hunter2
        S: -ERR*
        C: AUTH PLAIN AGFsaWNlAGh1bnRlcjI=
        S: -ERR*
        C: AUTH PLAIN
        S: + 
        C: AGFsaWNlAGh1bnRlcjI=
        S: -ERR*
        C: USER alice
        S: +OK*
        C: PASS secret alice
        S: +OK*
        C: RETR 1
        S: +OK*
        S: Return-Path: <>
        S: Subject: a
        S: 
        S: ..dot
        S: end
        S: .
        C: DELE 1
        S: +OK*
        C: QUIT
        S: +OK*
        S: ~
        ",
    )
    .await;
    let log = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
    assert!(
        !log.contains("hunter2") && !log.contains("h1bnRlcjI") && !log.contains("secret alice"),
        "{log}"
    );
    for line in [
        "access: login failed login=\"alice\" peer=127.0.0.1:50000 tls=false reason=\"wrong\"",
        "access: login ok account=id-alice login=\"alice\" peer=127.0.0.1:50000 tls=false messages=2",
        "access: session ended account=id-alice peer=127.0.0.1:50000 tls=false ending=\"quit\" retrieved=1 octets=42 deleted=1",
    ] {
        assert!(log.contains(line), "{line} is not in {log}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_never_answers_is_given_up() {
    let mut site = Site::new();
    site.options.directory_timeout = Duration::from_secs(7);
    let begun = Instant::now();
    refused(&site, "slow", "-ERR [SYS/TEMP]*").await;
    assert_eq!(begun.elapsed().as_secs(), 7);
}

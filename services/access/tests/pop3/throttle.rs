//! Who guesses is not heard, and nobody else suffers.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, advance};

use crate::support::Site;

const THROTTLED: &str = "-ERR [LOGIN-DELAY] too many wrong passwords, try again later";

/// One connection that says one password.
async fn try_once(site: &Site, source: &str, login: &str, password: &str, answer: &str) {
    let mut client = site.connect_from(source);
    client
        .play(&format!(
            "S: +OK*\nC: USER {login}\nS: +OK*\nC: PASS {password}\nS: {answer}\nC: QUIT\nS: +OK*\nS: ~"
        ))
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_guesser_is_not_heard_while_the_user_logs_in_from_elsewhere() {
    let site = Site::new();
    for _ in 0..12 {
        try_once(&site, "192.0.2.66", "alice", "guess", "-ERR *").await;
    }
    let asked = site.staff.asked.load(Ordering::SeqCst);
    assert!((10..12).contains(&asked), "{asked}");
    // the right one is not heard either: it must not be told from the others
    try_once(&site, "192.0.2.66", "ALICE", "secret alice", THROTTLED).await;
    assert_eq!(site.staff.asked.load(Ordering::SeqCst), asked);
    try_once(&site, "192.0.2.1", "alice", "secret alice", "+OK*").await;
    try_once(&site, "192.0.2.66", "carol", "secret carol", "+OK*").await;
    advance(Duration::from_secs(90)).await;
    try_once(&site, "192.0.2.66", "alice", "secret alice", "+OK*").await;
}

#[tokio::test(start_paused = true)]
async fn what_is_not_a_wrong_password_is_never_counted() {
    let site = Site::new();
    for _ in 0..15 {
        try_once(&site, "192.0.2.66", "ill", "x", "-ERR [SYS/TEMP]*").await;
        let closed = "-ERR [AUTH] this account may not log in";
        try_once(&site, "192.0.2.66", "disabled", "secret disabled", closed).await;
    }
    site.peers.state().shards_down = true;
    for _ in 0..15 {
        try_once(
            &site,
            "192.0.2.66",
            "alice",
            "secret alice",
            "-ERR [SYS/TEMP]*",
        )
        .await;
    }
    site.peers.state().shards_down = false;
    try_once(&site, "192.0.2.66", "alice", "secret alice", "+OK*").await;
}

#[tokio::test(start_paused = true)]
async fn an_account_that_everybody_guesses_at_is_slow_for_its_user_and_open() {
    let site = Site::new();
    for number in 0..100 {
        let source = format!("198.51.100.{number}").parse().unwrap();
        site.throttle.wrong(source, "alice");
    }
    let begun = Instant::now();
    try_once(&site, "192.0.2.1", "alice", "secret alice", "+OK*").await;
    assert_eq!(begun.elapsed(), Duration::from_secs(5));
    let begun = Instant::now();
    try_once(&site, "192.0.2.1", "carol", "secret carol", "+OK*").await;
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_throttled_connection_ends_like_any_other_that_only_fails() {
    let site = Site::new();
    for _ in 0..10 {
        site.throttle.wrong("127.0.0.1".parse().unwrap(), "alice");
    }
    let mut client = site.connect();
    client.play("S: +OK*").await;
    for _ in 0..4 {
        client
            .play(&format!(
                "C: USER alice\nS: +OK*\nC: PASS x\nS: {THROTTLED}"
            ))
            .await;
    }
    client.play("S: ~").await;
}

#[tokio::test(start_paused = true)]
async fn a_stranger_has_three_minutes_whatever_it_says() {
    let site = Site::new();
    let begun = Instant::now();
    let mut client = site.connect();
    client.play("S: +OK*\nS: ~").await;
    assert_eq!(begun.elapsed(), Duration::from_secs(180));
    // a word now and then does not help
    let begun = Instant::now();
    let mut client = site.connect();
    client.play("S: +OK*").await;
    for _ in 0..3 {
        advance(Duration::from_secs(50)).await;
        client.play("C: USER alice\nS: +OK*").await;
    }
    client.play("C: AUTH PLAIN\nS: + \nS: ~").await;
    assert_eq!(begun.elapsed(), Duration::from_secs(180));
    // who has logged in has all of ten minutes
    let mut client = site.log_in().await;
    advance(Duration::from_secs(599)).await;
    client.play("C: NOOP\nS: +OK*").await;
}

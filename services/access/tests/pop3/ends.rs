//! How sessions end, and what that deletes.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::support::Site;

#[tokio::test(start_paused = true)]
async fn b223_a_connection_that_is_lost_deletes_nothing() {
    let site = Site::new();
    let mut client = site.log_in().await;
    client.play("C: DELE 1\nS: +OK*\nC: DELE 2\nS: +OK*").await;
    client.hang_up().await;
    let mut client = site.log_in().await;
    client.send(b"DELE 1\r\nQUI").await;
    client.play("S: +OK*").await;
    client.hang_up().await;
    assert_eq!(site.mails(), [3, 8]);
    assert!(site.peers.state().expunges.is_empty());
}

#[tokio::test(start_paused = true)]
async fn quit_repeats_one_command_until_it_is_applied() {
    let site = Site::new();
    site.peers.state().expunges_refused = 2;
    site.peers.state().expunge_answers_lost = 1;
    site.log_in()
        .await
        .play("C: DELE 1\nS: +OK*\nC: QUIT\nS: +OK 1 messages deleted*\nS: ~")
        .await;
    let state = site.peers.state();
    assert_eq!(state.expunges.len(), 4);
    assert!(state.expunges.windows(2).all(|pair| pair[0] == pair[1]));
    let expunge = state.expunges[0].expunge.clone().unwrap();
    assert_eq!(
        (expunge.mailbox_id, expunge.uid_validity, expunge.uids),
        (5, 77, vec![3])
    );
}

#[tokio::test(start_paused = true)]
async fn two_sessions_are_two_commands() {
    let site = Site::new();
    for _ in 0..2 {
        site.log_in()
            .await
            .play("C: DELE 1\nS: +OK*\nC: QUIT\nS: +OK*\nS: ~")
            .await;
    }
    let ids: BTreeSet<_> = site
        .peers
        .state()
        .expunges
        .iter()
        .map(|expunge| expunge.cmd_id.clone())
        .collect();
    assert_eq!(ids.len(), 2);
    assert!(site.mails().is_empty());
}

#[tokio::test(start_paused = true)]
async fn quit_never_claims_what_is_not_confirmed() {
    let site = Site::new();
    site.peers.state().expunges_refused = usize::MAX;
    let mut client = site.log_in().await;
    let begun = Instant::now();
    client
        .play("C: DELE 1\nS: +OK*\nC: QUIT\nS: -ERR [SYS/TEMP]*\nS: ~")
        .await;
    let expected = Duration::from_secs(10)..=site.mailboxes.expunge_timeout;
    assert!(expected.contains(&begun.elapsed()), "{:?}", begun.elapsed());
    assert_eq!(site.mails(), [3, 8]);
}

#[tokio::test(start_paused = true)]
async fn an_idle_session_ends_after_ten_minutes_without_a_word() {
    let site = Site::new();
    let mut client = site.log_in().await;
    client.play("C: DELE 1\nS: +OK*").await;
    sleep(Duration::from_secs(599)).await;
    let begun = Instant::now();
    client.play("C: NOOP\nS: +OK*\nS: ~").await;
    assert_eq!(begun.elapsed().as_secs(), 600);
    assert_eq!(site.mails(), [3, 8]);
}

#[tokio::test(start_paused = true)]
async fn octets_that_trickle_do_not_reset_the_idle_timer() {
    let site = Site::new();
    let mut client = site.log_in().await;
    let begun = Instant::now();
    for _ in 0..9 {
        sleep(Duration::from_secs(60)).await;
        client.send(b"N").await;
    }
    client.play("S: ~").await;
    assert_eq!(begun.elapsed().as_secs(), 600);
}

#[tokio::test(start_paused = true)]
async fn a_draining_node_lets_nobody_wait() {
    let site = Site::new();
    let (mut stranger, mut idle) = (site.connect(), site.log_in().await);
    stranger.play("S: +OK*").await;
    idle.play("C: DELE 1\nS: +OK*").await;
    let begun = Instant::now();
    site.drain.cancel();
    stranger
        .play("S: -ERR [SYS/TEMP] server is going down*\nS: ~")
        .await;
    assert_eq!(begun.elapsed(), Duration::ZERO);
    idle.play("S: -ERR [SYS/TEMP] server is going down*\nS: ~")
        .await;
    assert_eq!(begun.elapsed(), site.options.drain_patience);
    assert_eq!(site.mails(), [3, 8]);
}

#[tokio::test(start_paused = true)]
async fn a_client_at_work_may_finish_while_the_node_drains() {
    let site = Site::new();
    let mut client = site.log_in().await;
    site.drain.cancel();
    for _ in 0..5 {
        sleep(Duration::from_secs(1)).await;
        client.play("C: NOOP\nS: +OK*").await;
    }
    client
        .play("C: DELE 1\nS: +OK*\nC: QUIT\nS: +OK 1 messages deleted*\nS: ~")
        .await;
    assert_eq!(site.mails(), [8]);
}

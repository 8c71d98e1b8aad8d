//! The world's trouble is logged, scheduled and ends; ours waits, costs nothing, and ends nothing.

use std::time::Duration;

use hikyaku_log::sim::SimFaults;
use hikyaku_proto::v1::operate::Order;
use hikyaku_proto::v1::recipient_state::State;
use hikyaku_proto::v1::{QueueListRequest, QueueOperateRequest, Recipient};

use super::site::{Says, Site, expand, forward, local, people, user};
use crate::leader::DeliveryOptions;
use crate::schedule::Schedule;

fn hasty() -> DeliveryOptions {
    DeliveryOptions {
        schedule: Schedule {
            retry_first: Duration::from_secs(60),
            retry_max: Duration::from_secs(300),
            expiry: Duration::from_secs(1800),
            expiry_null: Duration::from_secs(600),
            ..Schedule::default()
        },
        ..DeliveryOptions::default()
    }
}

fn alice() -> Vec<hikyaku_proto::v1::Recipient> {
    vec![local("alice", "a-1", "mbox1")]
}

#[tokio::test(start_paused = true)]
async fn a_full_mailbox_is_tried_again_by_schedule() {
    let mut site = Site::new(&people(), DeliveryOptions::default());
    let full = [Says::OverQuota, Says::OverQuota];
    site.mailboxes
        .state()
        .script
        .insert("a-1".into(), full.into());
    let id = site.accept("bob@example.jp", alice()).await;
    let deferred = QueueListRequest {
        state: "deferred".into(),
        ..QueueListRequest::default()
    };
    site.until("it is deferred", |site| {
        site.node.control.list(&deferred).total == 1
    })
    .await;
    let message = site.node.control.show(id).message.unwrap();
    let state = &message.recipients[0];
    let status = state.history[0].status.as_ref().unwrap();
    assert_eq!((status.code, status.enhanced.as_str()), (452, "4.2.2"));
    let Some(State::Pending(pending)) = &state.state else {
        panic!("{state:?}");
    };
    let wait_ms = pending.due_ms - state.history[0].time_ms;
    assert!((299_000..=340_000).contains(&wait_ms), "{wait_ms}");
    let before = tokio::time::Instant::now();
    site.settle().await;
    assert!(before.elapsed() > Duration::from_secs(900));
    assert_eq!(site.mailboxes.copies(id), ["a-1"]);
    let state = site.mailboxes.state();
    assert!(state.calls[0].cmd_id != state.calls[1].cmd_id);
}

#[tokio::test(start_paused = true)]
async fn what_expires_is_voided_first_and_bounces_once() {
    let mut site = Site::new(&people(), hasty());
    site.mailboxes
        .state()
        .always
        .insert("a-1".into(), Says::OverQuota);
    let id = site.accept("bob@example.jp", alice()).await;
    let null = site.accept("", alice()).await;
    site.settle().await;
    let state = site.mailboxes.state();
    let last = state.calls.iter().rev().find(|call| call.account == "a-1");
    assert!(last.unwrap().void, "bounced without voiding");
    assert!(
        state
            .stored
            .keys()
            .all(|key| key.message != id && key.message != null)
    );
    let accounts: Vec<_> = state.stored.values().map(|(account, _)| account).collect();
    assert_eq!(accounts, ["b-1"], "exactly one report");
    let report = state
        .calls
        .iter()
        .find(|call| call.account == "b-1")
        .unwrap();
    assert!(report.prefix.starts_with("Return-Path: <>\r\n"));
    drop(state);
    let counters = site.node.shard.read(|machine| machine.counters());
    assert_eq!((counters.bounced, counters.double_bounces), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_dead_shard_stops_nobody_else_logs_nothing_and_expires_nothing() {
    let mut site = Site::new(&people(), hasty());
    site.mailboxes.state().dead.insert(0);
    let mut dead = Vec::new();
    for _ in 0..300 {
        dead.push(site.accept("bob@example.jp", alice()).await);
    }
    let began = tokio::time::Instant::now();
    for _ in 0..50 {
        site.accept("s@elsewhere.example", vec![local("carol", "c-1", "mbox2")])
            .await;
    }
    site.node.shard.barrier().await.unwrap();
    site.until("carol's are there", |site| site.live() == 300)
        .await;
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    tokio::time::sleep(Duration::from_secs(7200)).await;
    assert_eq!(site.live(), 300);
    assert_eq!(site.records().get("bounce"), None);
    let alarms = site.node.control.alarms();
    assert!(
        alarms[0].starts_with("mbox-0 has not answered for 7"),
        "{alarms:?}"
    );
    let calls = site.mailboxes.state().calls.len();
    tokio::time::sleep(Duration::from_secs(600)).await;
    let probes = site.mailboxes.state().calls.len() - calls;
    assert!((5..=25).contains(&probes), "{probes} probes in ten minutes");
    site.mailboxes.state().dead.clear();
    let began = tokio::time::Instant::now();
    site.settle().await;
    assert!(
        began.elapsed() < Duration::from_secs(45),
        "{:?}",
        began.elapsed()
    );
    for id in dead {
        assert_eq!(site.mailboxes.copies(id), ["a-1"]);
    }
    assert!(site.node.control.alarms().is_empty());
}

#[tokio::test(start_paused = true)]
async fn busy_and_failing_shards_are_no_result() {
    for says in [Says::Busy, Says::Error] {
        let mut site = Site::new(&people(), hasty());
        site.mailboxes.state().always.insert("a-1".into(), says);
        let id = site.accept("bob@example.jp", alice()).await;
        tokio::time::sleep(Duration::from_secs(7200)).await;
        let message = site.node.control.show(id).message.unwrap();
        assert_eq!(message.recipients[0].attempts, 0);
        assert_eq!(site.records().get("attempted"), None);
        let calls = site.mailboxes.state().calls.len();
        assert!((100..600).contains(&calls), "{calls} calls in two hours");
        site.mailboxes.state().always.clear();
        site.settle().await;
        assert_eq!(site.mailboxes.copies(id), ["a-1"]);
    }
}

#[tokio::test(start_paused = true)]
async fn home_away_is_waited_for() {
    let mut site = Site::new(&people(), hasty());
    site.mailboxes.state().home_dead = true;
    let id = site.accept("bob@example.jp", alice()).await;
    tokio::time::sleep(Duration::from_secs(7200)).await;
    assert_eq!(site.live(), 1);
    site.mailboxes.state().home_dead = false;
    site.settle().await;
    assert_eq!(site.mailboxes.copies(id), ["a-1"]);
}

#[tokio::test(start_paused = true)]
async fn an_address_that_changed_hands_is_routed_anew_after_voiding() {
    let mut site = Site::new(&people(), hasty());
    site.mailboxes
        .state()
        .always
        .insert("a-1".into(), Says::Disabled);
    let id = site.accept("bob@example.jp", alice()).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(site.live(), 1, "disabled waits");
    let mut entries = people();
    entries[0] = user("alice", "a-2", "mbox2");
    site.reload(&entries);
    site.settle().await;
    assert_eq!(site.mailboxes.copies(id), ["a-2"]);
    let state = site.mailboxes.state();
    let a1: Vec<bool> = state
        .calls
        .iter()
        .filter(|call| call.account == "a-1")
        .map(|call| call.void)
        .collect();
    assert_eq!(a1.last(), Some(&true));
    let a2 = state
        .calls
        .iter()
        .find(|call| call.account == "a-2")
        .unwrap();
    assert_eq!(a2.number, 1, "a new number");
}

#[tokio::test(start_paused = true)]
async fn an_unanswered_delivery_is_not_delivered_to_the_new_owner_of_the_address() {
    let mut site = Site::new(&people(), hasty());
    // stored, unanswered, and by the time of the repeat the account is disabled and the address somebody else's
    let says = [Says::StoredUnanswered, Says::Disabled];
    site.mailboxes
        .state()
        .script
        .insert("a-1".into(), says.into());
    let mut entries = people();
    entries[0] = user("alice", "a-2", "mbox2");
    site.reload(&entries);
    let id = site.accept("bob@example.jp", alice()).await;
    site.settle().await;
    assert_eq!(site.mailboxes.copies(id), ["a-1"]);
}

#[tokio::test(start_paused = true)]
async fn a_mail_that_panics_is_held_and_the_others_go_on() {
    let mut site = Site::new(&people(), hasty());
    site.mailboxes
        .state()
        .always
        .insert("a-1".into(), Says::Panic);
    let id = site.accept("bob@example.jp", alice()).await;
    site.accept("s@elsewhere.example", vec![local("bob", "b-1", "mbox1")])
        .await;
    site.until("it is held", |site| {
        site.held("poison") == ["alice@example.jp"]
    })
    .await;
    site.until("the other one is there", |site| site.live() == 1)
        .await;
    let alarms = site.node.control.alarms();
    assert!(
        alarms.len() == 1 && alarms[0].starts_with("incoming-0: 1 recipients are held, poison;"),
        "{alarms:?}"
    );
    assert_eq!(
        site.mailboxes
            .state()
            .calls
            .iter()
            .filter(|c| c.account == "a-1")
            .count(),
        3
    );
    site.mailboxes.state().always.clear();
    let release = QueueOperateRequest {
        order: Order::Release.into(),
        all: true,
        ..QueueOperateRequest::default()
    };
    site.node.control.operate(&release).await.unwrap();
    site.settle().await;
    assert_eq!(site.mailboxes.copies(id), ["a-1"]);
}

#[tokio::test(start_paused = true)]
async fn a_waiting_mail_is_carried_and_the_log_cut() {
    let options = DeliveryOptions {
        garbage_bytes_min: 64 * 1024,
        ..hasty()
    };
    let mut site = Site::new(&people(), options);
    site.mailboxes.state().dead.insert(0);
    let first = site.accept("bob@example.jp", alice()).await;
    let content = noise(8000);
    for _ in 0..100 {
        let carol = vec![local("carol", "c-1", "mbox2")];
        site.accept_content("s@elsewhere.example", carol, &content)
            .await;
    }
    site.node.shard.barrier().await.unwrap();
    site.until("carol's are there", |site| site.live() == 1)
        .await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let bounds = hikyaku_log::Log::bounds(&*site.node.log, super::site::QUEUE);
    assert!(bounds.start.0 > 50, "{bounds:?}");
    assert!(site.records()["carry"] < 5);
    site.crash().await;
    site.mailboxes.state().dead.clear();
    site.settle().await;
    assert_eq!(site.mailboxes.copies(first), ["a-1"]);
}

/// Content that does not compress.
fn noise(bytes: usize) -> Vec<u8> {
    let mut content = b"Subject: noise\r\n\r\n".to_vec();
    let mut x = 88172645463325252u64;
    while content.len() < bytes {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        content.push(b'0' + (x % 64) as u8);
    }
    content
}

#[tokio::test(start_paused = true)]
async fn draining_finishes_what_is_under_way_and_starts_nothing() {
    let mut site = Site::new(&people(), hasty());
    let id = site.accept("bob@example.jp", alice()).await;
    while site.mailboxes.state().calls.is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(site.mailboxes.copies(id).is_empty(), "under way");
    let tasks = site.node.tasks.clone();
    let drained = tasks.drain(Duration::from_secs(5));
    let (_, late) = tokio::join!(biased; drained, site.accept("bob@example.jp", alice()));
    assert_eq!(site.mailboxes.copies(id), ["a-1"]);
    assert!(site.mailboxes.copies(late).is_empty());
    let queued = site.node.control.list(&QueueListRequest::default());
    let ids: Vec<_> = queued
        .messages
        .iter()
        .map(|m| m.message_id.to_vec())
        .collect();
    assert_eq!(ids, [late.to_bytes().to_vec()]);
}

/// Two entries that claim one address: nobody knows whose it is.
fn in_doubt() -> Vec<String> {
    let mut entries = people();
    for number in 1..3 {
        let entry = user("twin", &format!("t-{number}"), "mbox1");
        entries.push(entry.replace("uid=twin,", &format!("uid=twin{number},")));
    }
    entries
}

fn known() -> Vec<String> {
    let mut entries = people();
    entries.push(user("twin", "t-1", "mbox1"));
    entries
}

#[tokio::test(start_paused = true)]
async fn an_address_in_doubt_holds_up_nobody_else_and_expires_nothing() {
    let mut entries = in_doubt();
    entries.push(forward("info", "carol@example.jp"));
    let mut site = Site::new(&entries, hasty());
    let mut doubtful = Vec::new();
    for _ in 0..40 {
        doubtful.push(site.accept("bob@example.jp", vec![expand("twin")]).await);
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    for _ in 0..20 {
        let began = tokio::time::Instant::now();
        site.accept("bob@example.jp", vec![expand("info")]).await;
        site.node.shard.barrier().await.unwrap();
        site.until("carol has hers", |site| site.live() == 40).await;
        assert!(
            began.elapsed() < Duration::from_secs(1),
            "{:?}",
            began.elapsed()
        );
        tokio::time::sleep(Duration::from_secs(7)).await;
    }
    tokio::time::sleep(Duration::from_secs(7200)).await;
    assert_eq!(site.live(), 40);
    assert_eq!(site.records().get("bounce"), None);
    assert!(site.node.control.alarms().is_empty());
    let message = site.node.control.show(doubtful[0]).message.unwrap();
    let last = message.recipients[0].history.last().unwrap();
    assert_eq!(last.status.as_ref().unwrap().enhanced, "4.4.3");
    let mut entries = known();
    entries.push(forward("info", "carol@example.jp"));
    site.reload(&entries);
    site.settle().await;
    for id in doubtful {
        assert_eq!(site.mailboxes.copies(id), ["t-1"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_sender_in_doubt_holds_up_no_outcome() {
    let mut site = Site::new(&in_doubt(), hasty());
    site.mailboxes
        .state()
        .always
        .insert("c-1".into(), Says::OverQuota);
    let asking = |mut recipient: Recipient| {
        recipient.notify = "SUCCESS,FAILURE".into();
        vec![recipient]
    };
    let recipients = asking(local("alice", "a-1", "mbox1"));
    let id = site.accept("twin@example.jp", recipients).await;
    // nobody knows whom to tell of success
    site.settle().await;
    assert_eq!(site.mailboxes.copies(id), ["a-1"]);
    let carol = local("carol", "c-1", "mbox2");
    site.accept("twin@example.jp", asking(carol)).await;
    site.accept("twin@example.jp", asking(expand("nobody")))
        .await;
    tokio::time::sleep(Duration::from_secs(7200)).await;
    // both have failed, and what says so waits
    assert_eq!(site.records().get("bounce"), Some(&2));
    assert_eq!(site.records().get("routed"), None);
    assert_eq!(site.live(), 2);
    site.reload(&known());
    site.settle().await;
    let state = site.mailboxes.state();
    let told = state
        .stored
        .values()
        .filter(|(account, _)| account == "t-1");
    assert_eq!(told.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_no_log_takes_is_held_and_not_tried_for_ever() {
    let faults = SimFaults {
        record_bytes_max: 512,
        ..SimFaults::none()
    };
    let mut site = Site::with_faults(&people(), hasty(), faults);
    // the bounce and its report are one record
    let id = site.accept("bob@example.jp", vec![expand("nobody")]).await;
    site.until("it is held", |site| {
        site.held("record-too-large") == ["nobody@example.jp"]
    })
    .await;
    assert_eq!(site.records().get("bounce"), None);
    let again = site.accept("bob@example.jp", alice()).await;
    site.until("the others go on", |site| {
        site.mailboxes.copies(again) == ["a-1"]
    })
    .await;
    assert!(site.mailboxes.copies(id).is_empty());
}

/// Recipients that have bounced with a report, and without.
fn ended(site: &Site) -> (u64, u64) {
    let counters = site.node.shard.read(|machine| machine.counters());
    (counters.bounced, counters.double_bounces)
}

#[tokio::test(start_paused = true)]
async fn an_expiry_shorter_than_the_first_retry_is_kept() {
    let mut options = hasty();
    options.schedule.retry_first = Duration::from_secs(3600);
    options.schedule.retry_max = Duration::from_secs(3600);
    options.schedule.expiry = Duration::from_secs(60);
    options.schedule.expiry_null = Duration::from_secs(300);
    let mut entries = people();
    entries.push(
        user("shut", "s-1", "mbox1").replace("uid: shut", "uid: shut\naccountStatus: disabled"),
    );
    let mut site = Site::new(&entries, options);
    {
        let mut state = site.mailboxes.state();
        state.always.insert("a-1".into(), Says::OverQuota);
        state.always.insert("c-1".into(), Says::Disabled);
    }
    site.accept("", alice()).await;
    let others = [local("carol", "c-1", "mbox2"), expand("shut")];
    for recipient in alice().into_iter().chain(others) {
        site.accept("bob@example.jp", vec![recipient]).await;
    }
    // log time passes within a minute, and the three reports arrive
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!((ended(&site), site.live()), ((3, 0), 1));
    tokio::time::sleep(Duration::from_secs(240)).await;
    assert_eq!((ended(&site), site.live()), ((3, 1), 0));
    // each was tried once more, and then given up
    let state = site.mailboxes.state();
    let tries = state.calls.iter().filter(|call| call.account == "c-1");
    assert_eq!(tries.filter(|call| !call.void).count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_jumps_expires_nothing_before_it_is_believed() {
    let mut site = Site::new(&people(), hasty());
    site.mailboxes
        .state()
        .always
        .insert("a-1".into(), Says::OverQuota);
    site.accept("bob@example.jp", alice()).await;
    tokio::time::sleep(Duration::from_secs(90)).await;
    site.jump(Duration::from_secs(10 * 86_400));
    let tries = |site: &Site| site.mailboxes.state().calls.len();
    let before = tries(&site);
    tokio::time::sleep(Duration::from_secs(500)).await;
    assert!(tries(&site) > before, "it was not tried");
    assert_eq!(ended(&site), (0, 0));
    // it has run level for ten minutes: now it counts
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(ended(&site), (1, 0));
    site.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_dead_shard_keeps_no_failure_from_being_reported() {
    let mut site = Site::new(&people(), hasty());
    site.mailboxes.state().dead.insert(1);
    let carol = local("carol", "c-1", "mbox2");
    let recipients = vec![carol, expand("nobody"), expand("nobody-either")];
    let id = site.accept("bob@example.jp", recipients).await;
    site.until("bob has the report", |site| {
        let state = site.mailboxes.state();
        state.stored.values().any(|(account, _)| account == "b-1")
    })
    .await;
    assert_eq!(site.records().get("bounce"), Some(&1));
    assert_eq!(site.live(), 1, "carol's waits");
    site.mailboxes.state().dead.clear();
    site.settle().await;
    assert_eq!(site.mailboxes.copies(id), ["c-1"]);
}

#[tokio::test(start_paused = true)]
async fn a_report_that_panics_holds_all_whom_it_should_tell_of() {
    let mut site = Site::new(&people(), hasty());
    site.mailboxes.state().poisonous = Some("elsewhere.example");
    let names = ["nobody1", "nobody2", "nobody3", "nobody4"];
    let recipients = names.map(expand).to_vec();
    site.accept("s@elsewhere.example", recipients).await;
    site.until("all are held", |site| site.held("poison").len() == 4)
        .await;
    assert_eq!(site.records().get("bounce"), None);
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_no_others_to_fail() {
    let mut site = Site::new(&people(), hasty());
    site.mailboxes.state().dead.insert(1);
    let carol = local("carol", "c-1", "mbox2");
    site.accept("bob@example.jp", vec![carol, expand("nobody")])
        .await;
    // carol's call hangs, and whoever has failed waits for that
    site.until("both are tried", |site| {
        let lanes = site.node.control.lanes.lock().unwrap();
        lanes.running() == 2
    })
    .await;
    site.mailboxes.state().dead.clear();
    site.node.tasks.drain(Duration::from_secs(60)).await;
    assert_eq!(ended(&site), (1, 0));
}

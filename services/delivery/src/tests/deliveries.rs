//! Mail that arrives: once, whatever is lost on the way.

use std::time::Duration;

use hikyaku_log::sim::SimFaults;
use hikyaku_proto::v1::operate::Order;
use hikyaku_proto::v1::{QueueListRequest, QueueOperateRequest};

use super::site::{START_MS, Says, Site, expand, local, people};
use crate::leader::DeliveryOptions;

fn to_all() -> Vec<hikyaku_proto::v1::Recipient> {
    vec![
        local("alice", "a-1", "mbox1"),
        local("bob", "b-1", "mbox1"),
        local("carol", "c-1", "mbox2"),
    ]
}

#[tokio::test(start_paused = true)]
async fn everybody_gets_one_copy_with_their_prefix() {
    let mut site = Site::new(&people(), DeliveryOptions::default());
    let id = site.accept("sender@elsewhere.example", to_all()).await;
    site.settle().await;
    assert_eq!(site.mailboxes.copies(id), ["a-1", "b-1", "c-1"]);
    let state = site.mailboxes.state();
    assert_eq!(state.calls.len(), 3);
    let bob = state
        .calls
        .iter()
        .find(|call| call.account == "b-1")
        .unwrap();
    assert_eq!(
        bob.prefix,
        "Return-Path: <sender@elsewhere.example>\r\nDelivered-To: bob@example.jp\r\n"
    );
    assert_eq!(bob.body.size, 45);
    assert_eq!(
        (bob.tenant.as_str(), bob.received_ms),
        ("example.jp", START_MS)
    );
    assert_eq!(state.owners["c-1"], (1, 1));
}

#[tokio::test(start_paused = true)]
async fn an_unanswered_call_is_repeated_as_the_same_command_at_the_same_owner() {
    let mut site = Site::new(&people(), DeliveryOptions::default());
    site.mailboxes.state().script.insert(
        "a-1".into(),
        [Says::StoredUnanswered, Says::Hang, Says::Busy, Says::Error].into(),
    );
    let id = site
        .accept("s@elsewhere.example", vec![local("alice", "a-1", "mbox1")])
        .await;
    site.settle().await;
    assert_eq!(site.mailboxes.copies(id), ["a-1"]);
    let state = site.mailboxes.state();
    let ids: Vec<_> = state.calls.iter().map(|call| &call.cmd_id).collect();
    assert_eq!(ids.len(), 5);
    assert!(ids[0] == ids[1] && ids[1] == ids[2]);
    // Busy is an answer: what follows is a new attempt
    assert!(ids[2] != ids[3] && ids[3] == ids[4]);
}

#[tokio::test(start_paused = true)]
async fn a_crash_between_the_mailbox_and_the_fact_makes_no_second_copy() {
    let mut site = Site::new(&people(), DeliveryOptions::default());
    let mut ids = Vec::new();
    for round in 0..40 {
        ids.push(site.accept("s@elsewhere.example", to_all()).await);
        tokio::time::sleep(Duration::from_millis(round % 11)).await;
        site.crash().await;
    }
    site.settle().await;
    for id in ids {
        assert_eq!(site.mailboxes.copies(id), ["a-1", "b-1", "c-1"]);
    }
    let state = site.mailboxes.state();
    assert!(
        state.calls.len() > state.stored.len(),
        "nothing was repeated"
    );
}

#[tokio::test(start_paused = true)]
async fn a_bad_log_loses_and_doubles_nothing() {
    let options = DeliveryOptions::default();
    let mut site = Site::with_faults(&people(), options, SimFaults::rough());
    let mut ids = Vec::new();
    for round in 0..60 {
        ids.push(site.accept("s@elsewhere.example", to_all()).await);
        if round % 20 == 19 {
            site.crash().await;
        }
    }
    site.disk.set_faults(SimFaults::none());
    site.settle().await;
    for id in ids {
        assert_eq!(site.mailboxes.copies(id), ["a-1", "b-1", "c-1"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_moved_account_is_followed_at_once() {
    let mut site = Site::new(&people(), DeliveryOptions::default());
    let alice = || vec![local("alice", "a-1", "mbox1")];
    site.accept("s@elsewhere.example", alice()).await;
    site.settle().await;
    site.mailboxes.state().owners.insert("a-1".into(), (5, 2));
    let id = site.accept("s@elsewhere.example", alice()).await;
    site.settle().await;
    assert_eq!(site.mailboxes.copies(id), ["a-1"]);
    let shards: Vec<u32> = site
        .mailboxes
        .state()
        .calls
        .iter()
        .map(|c| c.shard)
        .collect();
    assert_eq!(shards, [0, 0, 5]);
}

#[tokio::test(start_paused = true)]
async fn an_operator_holds_releases_and_deletes() {
    let mut site = Site::new(&people(), DeliveryOptions::default());
    site.mailboxes.state().dead.extend([0, 1]);
    let id = site.accept("s@elsewhere.example", to_all()).await;
    let other = site.accept("", vec![expand("nobody")]).await;
    site.until("it is under way", |site| {
        !site.node.control.show(id).activity.is_empty()
    })
    .await;
    let order = |order: Order, id: hikyaku_mail::id::MessageId| QueueOperateRequest {
        order: order.into(),
        message_ids: vec![id.to_bytes().to_vec().into(), vec![0; 16].into()],
        reason: "looks odd".into(),
        operator: "test".into(),
        all: false,
    };
    let control = site.node.control.clone();
    let reply = control.operate(&order(Order::Hold, id)).await.unwrap();
    assert_eq!((reply.changed, reply.unknown.len()), (1, 1));
    let hold = |state: &str| QueueListRequest {
        state: state.into(),
        ..QueueListRequest::default()
    };
    assert_eq!(control.list(&hold("hold")).total, 1);
    site.mailboxes.state().dead.clear();
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(site.mailboxes.copies(id).is_empty(), "held");
    assert!(site.live() == 1, "the other one was a double bounce");
    assert_eq!(control.show(other).message, None);
    control.operate(&order(Order::Release, id)).await.unwrap();
    site.settle().await;
    assert_eq!(site.mailboxes.copies(id).len(), 3);

    site.mailboxes.state().dead.extend([0, 1]);
    let id = site.accept("s@elsewhere.example", to_all()).await;
    site.until("it is queued", |site| site.live() == 1).await;
    control.operate(&order(Order::Delete, id)).await.unwrap();
    assert_eq!(site.live(), 0);
}

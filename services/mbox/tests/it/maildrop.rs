//! OpenMaildrop, Fetch, Expunge.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use hikyaku_log::sim::SimFaults;
use hikyaku_log::{Class, ShardId};
use hikyaku_mbox::options::MboxOptions;
use hikyaku_proto::v1::record::Command;
use hikyaku_proto::v1::{
    AccountState, Body, DeliverRequest, Expunge, ExpungeRequest, FetchReply, FetchRequest,
    MaildropPage, Record, SetAccount, body::Content,
};
use hikyaku_shard::machine::Machine;
use prost::Message;
use tonic::Code;

use crate::cluster::{Cluster, Node, cmd_id, delivery};

pub async fn fetch(node: &Node, page: &MaildropPage, uid: u32) -> FetchReply {
    let request = FetchRequest {
        shard: 0,
        account: "alice".into(),
        mailbox_id: page.mailbox_id,
        uid_validity: page.uid_validity,
        uid,
        ahead: Vec::new(),
    };
    node.client
        .clone()
        .fetch(request)
        .await
        .unwrap()
        .into_inner()
}

pub async fn expunge(node: &Node, page: &MaildropPage, uids: Vec<u32>, call: u64) -> u32 {
    let request = ExpungeRequest {
        shard: 0,
        cmd_id: cmd_id(call),
        expunge: Some(Expunge {
            account: "alice".into(),
            mailbox_id: page.mailbox_id,
            uid_validity: page.uid_validity,
            uids,
        }),
    };
    node.client
        .clone()
        .expunge(request)
        .await
        .unwrap()
        .into_inner()
        .expunged
}

#[tokio::test(start_paused = true)]
async fn a_maildrop_shows_what_was_delivered_and_not_what_was_deleted() {
    let node = Cluster::new(1).steady();
    for number in 0..5 {
        node.stored(0, "alice", number).await;
    }
    let pages = node.maildrop(0, "alice").await.unwrap();
    assert_eq!(pages.len(), 1);
    let page = &pages[0];
    let sent = delivery("alice", 3);
    let message = &page.messages[3];
    assert_eq!(message.uid, 4);
    let size = sent.prefix.len() as u64 + sent.body.as_ref().unwrap().size;
    assert_eq!(message.size, size);
    assert!(message.email_id.starts_with('M') && message.email_id.len() == 25);
    let found = fetch(&node, page, 4).await;
    assert_eq!(
        (found.found, found.prefix, found.body),
        (true, sent.prefix, sent.body)
    );

    assert_eq!(expunge(&node, page, vec![4, 5], 500).await, 2);
    assert_eq!(expunge(&node, page, vec![4, 5], 500).await, 0);
    assert_eq!(fetch(&node, page, 4).await, FetchReply::default());
    assert_eq!(node.uids(0, "alice").await, [1, 2, 3]);
    assert_eq!(node.stored(0, "alice", 9).await.uid, 6);
    node.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn what_is_wanted_next_comes_along_as_far_as_it_is_small_and_there() {
    let node = Cluster::new(8).steady();
    for number in 0..40 {
        node.stored(0, "alice", number).await;
    }
    let page = node.maildrop(0, "alice").await.unwrap().remove(0);
    assert_eq!(page.exists, 40);
    assert_eq!(expunge(&node, &page, vec![3], 500).await, 1);
    let ask = async |uid: u32, ahead: Vec<u32>, uid_validity: u32| {
        let request = FetchRequest {
            shard: 0,
            account: "alice".into(),
            mailbox_id: page.mailbox_id,
            uid_validity,
            uid,
            ahead,
        };
        let mut client = node.client.clone();
        client.fetch(request).await.unwrap().into_inner()
    };
    let found = ask(1, vec![5, 3, 2, 99], page.uid_validity).await;
    let uids: Vec<u32> = found.ahead.iter().map(|mail| mail.uid).collect();
    assert_eq!(uids, [5, 2], "in the order asked for, without what is gone");
    for mail in &found.ahead {
        let alone = fetch(&node, &page, mail.uid).await;
        assert_eq!((&mail.prefix, &mail.body), (&alone.prefix, &alone.body));
    }
    let many = ask(1, (2..=40).collect(), page.uid_validity).await;
    assert_eq!(many.ahead.len(), 31, "32 asked for, one of them is gone");
    let other = ask(1, vec![2], page.uid_validity + 1).await;
    assert_eq!(other, FetchReply::default());
    let gone = ask(3, vec![2], page.uid_validity).await;
    assert_eq!(gone, FetchReply::default());

    // mails of 30 KiB: two fit into 64 KiB
    for number in 100..103 {
        let mut large = delivery("alice", number);
        let content = vec![b'x'; 30 << 10];
        large.body = Some(Body {
            size: content.len() as u64,
            blake3: Bytes::copy_from_slice(blake3::hash(&content).as_bytes()),
            content: Some(Content::Zstd(content.into())),
        });
        let request = DeliverRequest {
            shard: 0,
            deliver: Some(large),
            cmd_id: cmd_id(number),
            tenant: "example.jp".into(),
            traceparent: String::new(),
        };
        node.client.clone().deliver(request).await.unwrap();
    }
    let large = ask(1, vec![41, 42, 43, 2], page.uid_validity).await;
    let uids: Vec<u32> = large.ahead.iter().map(|mail| mail.uid).collect();
    assert_eq!(uids, [41, 42], "what comes next keeps its order");
}

#[tokio::test(start_paused = true)]
async fn large_maildrops_come_in_pages() {
    let node = Cluster::new(2).steady();
    for chunk in 0..25 {
        let calls = (0..100).map(|number| node.deliver(0, "alice", chunk * 100 + number));
        for answer in join_all(calls).await {
            answer.unwrap();
        }
    }
    let pages = node.maildrop(0, "alice").await.unwrap();
    let sizes: Vec<_> = pages.iter().map(|page| page.messages.len()).collect();
    assert_eq!(sizes, [1_000, 1_000, 500]);
    let uids: Vec<u32> = pages
        .iter()
        .flat_map(|p| p.messages.iter().map(|m| m.uid))
        .collect();
    assert_eq!(uids, (1..=2_500).collect::<Vec<_>>());
    assert_eq!(expunge(&node, &pages[0], uids, 5_000).await, 2_500);
    let pages = node.maildrop(0, "alice").await.unwrap();
    assert_eq!((pages.len(), pages[0].messages.len()), (1, 0));
    node.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn who_is_not_here_is_absent_or_elsewhere_and_who_may_not_log_in_is_told() {
    let node = Cluster::new(3).steady();
    let page = &node.maildrop(0, "alice").await.unwrap()[0];
    assert!(page.absent && page.not_owner.is_none());
    node.stored(0, "alice", 1).await;
    let page = &node.maildrop(1, "alice").await.unwrap()[0];
    assert_eq!(page.not_owner.as_ref().unwrap().shard, Some(0));
    assert!(!page.absent);
    let local = node.mailboxes.local(0).unwrap();
    for state in [
        AccountState::Suspended,
        AccountState::Disabled,
        AccountState::Deleted,
    ] {
        let set = SetAccount {
            account: "alice".into(),
            state: Some(state.into()),
            quota_bytes: None,
            purge_at_ms: u64::MAX,
        };
        local.shard.propose(Command::SetAccount(set)).await.unwrap();
        let page = &node.maildrop(0, "alice").await.unwrap()[0];
        assert!(page.closed && page.messages.is_empty(), "{state:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn many_opens_share_few_barriers() {
    let cluster = Cluster::new(4);
    let node = cluster.steady();
    node.stored(0, "alice", 1).await;
    let opens = join_all((0..500).map(|_| node.maildrop(0, "alice"))).await;
    assert!(
        opens
            .iter()
            .all(|pages| pages.as_ref().unwrap()[0].messages.len() == 1)
    );
    let barriers = barriers(&cluster);
    assert!((1..=3).contains(&barriers), "{barriers}");
}

/// The barriers that mailbox shard 0's log holds.
fn barriers(cluster: &Cluster) -> usize {
    let records = cluster
        .log
        .records(ShardId::new(Class::Mbox, 0))
        .into_iter();
    records
        .filter(|record| {
            let command = Record::decode(record.payload.clone()).unwrap().command;
            matches!(command, Some(Command::Barrier(_)))
        })
        .count()
}

/// A barrier under way says nothing about what was answered since it began.
#[tokio::test(start_paused = true)]
async fn who_comes_while_a_barrier_is_under_way_has_the_next_one() {
    let cluster = Cluster::new(7);
    let node = cluster.steady();
    node.stored(0, "alice", 1).await;
    node.maildrop(0, "alice").await.unwrap();
    let before = barriers(&cluster);
    let (first, others) = tokio::join!(node.maildrop(0, "alice"), async {
        // an append takes a millisecond at least
        tokio::time::sleep(Duration::from_micros(500)).await;
        assert_eq!(barriers(&cluster), before, "the first one is under way");
        join_all((0..3).map(|_| node.maildrop(0, "alice"))).await
    });
    assert_eq!(first.unwrap().len(), 1);
    assert!(others.iter().all(Result::is_ok));
    assert_eq!(
        barriers(&cluster),
        before + 2,
        "one for the first caller, one for all that came later"
    );
}

#[tokio::test(start_paused = true)]
async fn without_the_log_nothing_is_opened_and_nothing_is_called_gone() {
    let cluster = Cluster::new(5);
    let node = cluster.steady();
    node.stored(0, "alice", 1).await;
    let page = node.maildrop(0, "alice").await.unwrap().remove(0);
    cluster.log.unavailable_for(Duration::from_secs(5));
    let error = node.maildrop(0, "alice").await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(fetch(&node, &page, 1).await.found, "reading needs no log");
    let request = FetchRequest {
        shard: 0,
        account: "alice".into(),
        mailbox_id: page.mailbox_id,
        uid_validity: page.uid_validity,
        uid: 2,
        ahead: Vec::new(),
    };
    let error = node.client.clone().fetch(request).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
}

/// M4: a maildrop opened anywhere after a delivery was answered has it, however slowly that replica follows the log.
#[tokio::test(start_paused = true)]
async fn every_replica_shows_what_any_has_answered() {
    for seed in 0..10 {
        let cluster = Cluster::new(seed);
        let faults = SimFaults {
            tail_slow: 500,
            lateness: (Duration::from_millis(5), Duration::from_millis(60)),
            ..SimFaults::none()
        };
        let writer = cluster.start(faults.clone(), MboxOptions::default());
        let reader = cluster.replica().start(faults, MboxOptions::default());
        let (answered, reading) = (AtomicUsize::new(0), AtomicBool::new(true));
        let writes = join_all((0..24).map(|part| {
            let (writer, answered, reading) = (&writer, &answered, &reading);
            async move {
                let mut number = part * 1_000;
                while reading.load(Ordering::Relaxed) {
                    writer.stored(0, "alice", number).await;
                    number += 1;
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            }
        }));
        let reads = async {
            join_all((0..8).map(|part| {
                let (reader, answered) = (&reader, &answered);
                async move {
                    for _ in 0..15 {
                        let before = answered.load(Ordering::Relaxed);
                        let seen = reader.uids(0, "alice").await.len();
                        assert!(seen >= before, "seed {seed}: {seen} of {before}");
                        // each at its own pace, so that some come while a barrier is under way
                        tokio::time::sleep(Duration::from_millis(1 + 5 * part)).await;
                    }
                }
            }))
            .await;
            reading.store(false, Ordering::Relaxed);
        };
        tokio::join!(writes, reads);
        let hash = |node: &Node| {
            let local = node.mailboxes.local(0).unwrap();
            local.shard.read(|machine| machine.state_hash())
        };
        reader.uids(0, "alice").await;
        writer.uids(0, "alice").await;
        reader.uids(0, "alice").await;
        assert_eq!(hash(&reader), hash(&writer), "seed {seed}");
    }
}

/// A replica that has just started must not say "expunged" about what it has not applied yet.
#[tokio::test(start_paused = true)]
async fn after_a_crash_a_session_finds_what_it_saw() {
    let cluster = Cluster::new(6);
    let node = cluster.steady();
    node.stored(0, "alice", 1).await;
    let page = node.maildrop(0, "alice").await.unwrap().remove(0);
    cluster.crash(node).await;
    let node = cluster.steady();
    assert!(fetch(&node, &page, 1).await.found);
    node.assert_clean();
}

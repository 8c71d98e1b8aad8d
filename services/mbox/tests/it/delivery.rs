//! Deliver, Void, Claim.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use hikyaku_log::sim::SimFaults;
use hikyaku_mbox::options::MboxOptions;
use hikyaku_proto::v1::deliver_reply::Answer;
use hikyaku_proto::v1::{ClaimRequest, LookupRequest, VoidRequest, void_reply};
use tonic::Code;

use crate::cluster::{Cluster, cmd_id, delivery_id, insist};

#[tokio::test(start_paused = true)]
async fn the_first_delivery_claims_and_opens_the_account() {
    let node = Cluster::new(1).steady();
    let stored = node.stored(1, "alice", 1).await;
    assert_eq!(stored.uid, 1);
    assert_eq!(node.stored(1, "alice", 2).await.uid, 2);
    let again = node.deliver_as(1, "alice", 1, 77).await.unwrap();
    assert_eq!(again, Answer::AlreadyDelivered(stored));
    let Answer::NotOwner(owner) = node.deliver(0, "alice", 3).await.unwrap() else {
        panic!("a second mailbox");
    };
    assert_eq!((owner.shard, owner.generation), (Some(1), 1));
    let request = LookupRequest {
        account: "alice".into(),
        linearizable: true,
    };
    let found = node
        .home_client
        .clone()
        .lookup(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(found.shard, Some(1));
    node.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn two_shards_racing_make_one_mailbox() {
    for seed in 0..20 {
        let node = Cluster::new(seed).steady();
        let calls = (0..10).map(|number| node.deliver((number % 2) as u32, "alice", number));
        let mut owners = BTreeMap::new();
        for (number, answer) in join_all(calls).await.into_iter().enumerate() {
            let shard = number % 2;
            match answer.unwrap() {
                Answer::Delivered(_) => *owners.entry(shard).or_insert(0) += 1,
                Answer::NotOwner(owner) => {
                    assert_eq!(owner.shard, Some(1 - shard as u32));
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(owners.len(), 1, "seed {seed}: one shard has it all");
        assert_eq!(owners.values().sum::<i32>(), 5);
        node.assert_clean();
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_made_without_home() {
    let cluster = Cluster::new(3);
    let node = cluster.steady();
    cluster.log.unavailable_for(Duration::from_secs(1));
    let error = node.deliver(0, "alice", 1).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(node.maildrop(0, "alice").await.unwrap()[0].absent);
    // a claim for the other shard, made meanwhile by somebody else, holds
    let request = ClaimRequest {
        account: "alice".into(),
        shard: 1,
    };
    node.home_client.clone().claim(request).await.unwrap();
    assert!(matches!(
        node.deliver(0, "alice", 1).await,
        Ok(Answer::NotOwner(_))
    ));
    node.stored(1, "alice", 1).await;
    let nonsense = ClaimRequest {
        account: "alice smith".into(),
        shard: 1,
    };
    let error = node.home_client.clone().claim(nonsense).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
}

#[tokio::test(start_paused = true)]
async fn a_voided_delivery_is_never_stored() {
    let node = Cluster::new(4).steady();
    let void = |number: u64| VoidRequest {
        shard: 0,
        account: "alice".into(),
        delivery_id: delivery_id(number),
        cmd_id: cmd_id(1_000 + number),
    };
    let reply = node
        .client
        .clone()
        .void(void(1))
        .await
        .unwrap()
        .into_inner();
    assert!(matches!(reply.answer, Some(void_reply::Answer::Voided(_))));
    assert!(matches!(
        node.deliver(0, "alice", 1).await,
        Ok(Answer::Voided(_))
    ));
    let stored = node.stored(0, "alice", 2).await;
    let reply = node
        .client
        .clone()
        .void(void(2))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        reply.answer,
        Some(void_reply::Answer::AlreadyDelivered(stored))
    );
}

#[tokio::test(start_paused = true)]
async fn what_makes_no_sense_is_refused_and_what_is_elsewhere_unavailable() {
    let node = Cluster::new(5).steady();
    let code = |answer: Result<Answer, tonic::Status>| answer.unwrap_err().code();
    assert_eq!(code(node.deliver(9, "alice", 1).await), Code::Unavailable);
    assert_eq!(
        code(node.deliver(u32::MAX, "alice", 1).await),
        Code::Unavailable
    );
    assert_eq!(
        code(node.deliver(0, "no such id", 1).await),
        Code::InvalidArgument
    );
}

#[tokio::test(start_paused = true)]
async fn a_shard_with_too_much_under_way_says_busy() {
    let options = MboxOptions {
        // room for four small deliveries
        in_flight_bytes_max: 32 << 10,
        ..MboxOptions::default()
    };
    let node = Cluster::new(6).start(SimFaults::none(), options);
    node.stored(0, "alice", 100).await;
    let answers = join_all((0..10).map(|number| node.deliver(0, "alice", number))).await;
    let busy = answers
        .iter()
        .filter(|answer| matches!(answer, Ok(Answer::Busy(_))))
        .count();
    assert_eq!(busy, 6);
    assert!(matches!(
        node.deliver(0, "alice", 9).await,
        Ok(Answer::Delivered(_))
    ));
}

/// Deliveries repeated until answered, over a log that does everything wrong and a node that dies: each is there once.
#[tokio::test(start_paused = true)]
async fn insisting_delivers_exactly_once_over_faults_and_crashes() {
    for seed in 0..15 {
        let cluster = Cluster::new(seed);
        let mut stored = BTreeMap::new();
        for life in 0..4u64 {
            let node = cluster.start(SimFaults::rough(), MboxOptions::default());
            // the last life asks about everything again
            let numbers = if life == 3 {
                0..45
            } else {
                life * 10..life * 10 + 15
            };
            let calls = numbers.map(|number| {
                let node = &node;
                let account = if number % 3 == 0 { "bob" } else { "alice" };
                async move {
                    let answer = insist(|| node.deliver(0, account, number)).await;
                    (number, answer)
                }
            });
            let patience = Duration::from_secs(if life == 3 { 3_600 } else { 2 });
            let calls = tokio::time::timeout(patience, join_all(calls)).await;
            for (number, answer) in calls.unwrap_or_default() {
                let (Answer::Delivered(at) | Answer::AlreadyDelivered(at)) = answer else {
                    panic!("{answer:?}");
                };
                let account = number % 3 == 0;
                let before = stored.insert(number, (account, at.uid_validity, at.uid));
                assert!(
                    before.is_none_or(|before| before == stored[&number]),
                    "seed {seed}"
                );
            }
            if seed % 2 == 0 {
                for local in (0..2).filter_map(|index| node.mailboxes.local(index)) {
                    local.engine.flush().unwrap();
                }
            }
            if life < 3 {
                cluster.crash(node).await;
                continue;
            }
            cluster.log.set_faults(SimFaults::none());
            tokio::time::sleep(Duration::from_secs(60)).await;
            let mut places: Vec<_> = stored.values().collect();
            places.sort();
            places.dedup();
            assert_eq!(
                places.len(),
                stored.len(),
                "seed {seed}: one place, two mails"
            );
            let alice = node.uids(0, "alice").await.len();
            let bob = node.uids(0, "bob").await.len();
            assert_eq!(alice + bob, 45, "seed {seed}");
            node.assert_clean();
        }
    }
}

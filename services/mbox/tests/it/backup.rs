//! Snapshot and restore of whole shards.

use futures_util::{StreamExt, TryStreamExt, stream};
use hikyaku_log::sim::SimFaults;
use hikyaku_mbox::backup::{
    restore_home, restore_mailboxes, snapshot_home, snapshot_mailboxes, totals,
};
use hikyaku_mbox::options::MboxOptions;
use hikyaku_proto::v1::{FetchReply, ShardPiece};
use tonic::{Code, Status};

use crate::cluster::Cluster;
use crate::maildrop::{expunge, fetch};

fn pieces(pieces: &[ShardPiece]) -> impl futures_util::Stream<Item = Result<ShardPiece, Status>> {
    stream::iter(pieces.to_vec()).map(Ok)
}

/// Backups of home and of mailbox shard 0 of a node with mail.
async fn backups() -> (Vec<ShardPiece>, Vec<ShardPiece>) {
    let node = Cluster::new(1).steady();
    for number in 0..60 {
        node.stored(0, ["alice", "bob", "carol"][number as usize % 3], number)
            .await;
    }
    node.stored(1, "dave", 100).await;
    let home = snapshot_home(&node.home).await.unwrap();
    let mailboxes = snapshot_mailboxes(&node.mailboxes, 0).await.unwrap();
    (
        home.try_collect().await.unwrap(),
        mailboxes.try_collect().await.unwrap(),
    )
}

#[tokio::test(start_paused = true)]
async fn a_cluster_comes_back_from_its_backups() {
    let (home, mailboxes) = backups().await;
    // over a log that loses acknowledgements, too
    for faults in [SimFaults::none(), SimFaults::rough()] {
        let node = Cluster::new(2).start(faults, MboxOptions::default());
        let reply = loop {
            if let Ok(reply) = restore_home(&node.home, pieces(&home)).await {
                break reply;
            }
        };
        assert_eq!(reply.accounts_restored, 4);
        let reply = loop {
            if let Ok(reply) = restore_mailboxes(&node.mailboxes, 0, pieces(&mailboxes)).await {
                break reply;
            }
        };
        assert_eq!(
            reply.accounts_restored + reply.accounts_skipped,
            3,
            "{reply:?}"
        );
        assert_eq!(node.uids(0, "bob").await.len(), 20);
        assert_eq!(totals(&node.mailboxes, 0).unwrap().messages, 60);
        node.assert_clean();
    }
}

#[tokio::test(start_paused = true)]
async fn what_exists_is_skipped_with_a_note() {
    let (home, mailboxes) = backups().await;
    let node = Cluster::new(3).steady();
    node.stored(0, "alice", 900).await;
    node.stored(1, "bob", 901).await;
    let reply = restore_home(&node.home, pieces(&home)).await.unwrap();
    assert_eq!((reply.accounts_restored, reply.accounts_skipped), (3, 1));
    let reply = restore_mailboxes(&node.mailboxes, 0, pieces(&mailboxes))
        .await
        .unwrap();
    assert_eq!((reply.accounts_restored, reply.accounts_skipped), (1, 2));
    assert_eq!(reply.messages_restored, 20);
    assert_eq!(
        reply.notes,
        ["bob: lives in mbox-1", "alice: exists and has mail"]
    );
    assert_eq!(node.uids(0, "alice").await.len(), 1);
    assert_eq!(node.uids(1, "bob").await.len(), 1);
    assert_eq!(node.uids(0, "carol").await.len(), 20);
    // again: nothing is doubled
    let reply = restore_mailboxes(&node.mailboxes, 0, pieces(&mailboxes))
        .await
        .unwrap();
    assert_eq!(reply.accounts_restored, 0);
    node.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn damage_and_the_wrong_shard_are_noticed() {
    let (home, mailboxes) = backups().await;
    let node = Cluster::new(4).steady();
    let error = restore_mailboxes(&node.mailboxes, 0, pieces(&home))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    let error = restore_home(&node.home, pieces(&mailboxes))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    let cut = &mailboxes[..mailboxes.len() - 1];
    let error = restore_mailboxes(&node.mailboxes, 0, pieces(cut))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::DataLoss);
    let mut lacking = mailboxes.clone();
    lacking.remove(10);
    let error = restore_mailboxes(&node.mailboxes, 0, pieces(&lacking))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::DataLoss);
    node.assert_clean();
}

/// What a session saw before the loss names other mails after it: its expunge and its RETR touch
/// none of them.
#[tokio::test(start_paused = true)]
async fn a_session_from_before_the_loss_touches_nothing_that_was_restored() {
    let old = Cluster::new(5).steady();
    for number in 0..3 {
        old.stored(0, "alice", number).await;
    }
    let session = old.maildrop(0, "alice").await.unwrap().remove(0);
    // the last mail is deleted, which the backup knows
    assert_eq!(expunge(&old, &session, vec![3], 500).await, 1);
    let backup = snapshot_mailboxes(&old.mailboxes, 0).await.unwrap();
    let backup: Vec<ShardPiece> = backup.try_collect().await.unwrap();

    let node = Cluster::new(6).steady();
    restore_mailboxes(&node.mailboxes, 0, pieces(&backup))
        .await
        .unwrap();
    assert_eq!(node.uids(0, "alice").await, [1, 2]);
    assert_eq!(node.stored(0, "alice", 9).await.uid, 4, "3 was given");
    let restored = node.maildrop(0, "alice").await.unwrap().remove(0);
    assert!(restored.uid_validity > session.uid_validity);
    assert_eq!(restored.mailbox_id, session.mailbox_id);
    assert_eq!(fetch(&node, &session, 1).await, FetchReply::default());
    let all = vec![1, 2, 3, 4];
    assert_eq!(expunge(&node, &session, all.clone(), 501).await, 0);
    assert_eq!(node.uids(0, "alice").await, [1, 2, 4]);
    assert_eq!(expunge(&node, &restored, all, 502).await, 3);
    node.assert_clean();
}

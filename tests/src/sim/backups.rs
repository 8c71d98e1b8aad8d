//! An operator takes a backup and restores it later, while mail goes on, and clients have not noticed: UIDs of before name
//! nothing after it, and no UID is given twice under one UIDVALIDITY.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::{TryStreamExt as _, stream};
use hikyaku_access::mailboxes::Mailboxes;
use hikyaku_access::pop3::maildrop::{MailboxRef, Maildrop};
use hikyaku_mbox::backup;
use hikyaku_proto::v1::ingest::Piece;
use hikyaku_proto::v1::record::Command;
use hikyaku_proto::v1::{
    IngestMailbox, ShardPiece, ShardRestoreReply, StoreFlags, shard_piece, store_flags::How,
};
use hikyaku_store::machine::StoredAt;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::clients::Clients;
use super::history::History;
use super::ledger::Place;
use super::network::Network;
use super::operator::{owner, propose};
use super::random::Random;
use super::run::Run;
use super::scenario::address;
use super::site::account_id;
use super::world::lock;

/// For a backup to be read.
const PATIENCE: Duration = Duration::from_secs(60);
/// Attempts at emptying the mailbox and restoring it before new mail comes.
const TRIES: usize = 8;

/// Whoever takes part.
struct Story {
    user: &'static str,
    random: Random,
    clients: Clients,
    network: Network,
    history: History,
}

/// A mailbox is backed up; more mail comes, and its owner deletes everything; the operator restores the backup; mail comes
/// again. A client that has had a session open all the while goes on with the UIDs it knows.
pub fn restored_meanwhile(run: &mut Run) -> bool {
    let user = *run.random.pick(&["u3", "u8"]);
    run.world
        .note(format_args!("{user} will be restored from a backup"));
    let story = Story {
        user,
        random: run.random.fork(),
        clients: run.cluster.clients.clone(),
        network: run.cluster.network.clone(),
        history: run.cluster.history.clone(),
    };
    let tasks = run.cluster.clients.tasks.clone();
    tasks.spawn("backup and restore", story.go());
    true
}

impl Story {
    async fn go(mut self) {
        self.mails(2).await;
        let Some(local) = owner(&self.network, self.user).await else {
            return;
        };
        let shard = local.shard.id().index;
        let Some(pieces) = self.back_up(shard).await else {
            return;
        };
        self.mails(2).await;
        let Some((access, old)) = self.session().await else {
            return;
        };
        if !self.restore(shard, &pieces).await {
            return;
        }
        let world = self.clients.world.clone();
        world.count("scenario/a backup is restored meanwhile");
        self.mails(2).await;
        self.go_on(&access, &old).await;
        for _ in 0..2 {
            sleep(self.random.millis(0, 5_000)).await;
            if let Some(front) = self.clients.front(&mut self.random) {
                self.clients.open(&front, self.user, &self.history).await;
            }
        }
    }

    /// Some mail comes.
    async fn mails(&mut self, count: usize) {
        for _ in 0..count {
            let addresses = vec![address(self.user)];
            self.clients.send(&mut self.random, addresses);
        }
        sleep(self.random.millis(2_000, 8_000)).await;
    }

    async fn session(&mut self) -> Option<(Mailboxes, Maildrop)> {
        let front = self.clients.front(&mut self.random)?;
        let old = self.clients.open(&front, self.user, &self.history).await?;
        Some((front.access, old))
    }

    /// A backup has all that anybody was told before it was taken, and nothing that was gone.
    async fn back_up(&self, shard: u16) -> Option<Vec<ShardPiece>> {
        let expected = self.clients.expected(self.user, &self.history);
        let gone = lock(&self.clients.ledger).expunged.clone();
        let peer = self.network.any_peer()?;
        let taking = async {
            let pieces = backup::snapshot_mailboxes(&peer.mailboxes, shard).await;
            pieces.ok()?.try_collect::<Vec<ShardPiece>>().await.ok()
        };
        let pieces = timeout(PATIENCE, taking).await.ok()??;
        let there = places(&pieces, account_id(self.user).as_str());
        let asked = lock(&self.clients.ledger).expunge_asked.clone();
        let missing = expected
            .difference(&there)
            .find(|place| !asked.contains(place));
        let back = there.intersection(&gone).next();
        if missing.is_some() || back.is_some() {
            self.clients.world.violate(format_args!(
                "a backup of {} lacks {missing:?} or has {back:?}",
                self.user
            ));
        }
        Some(pieces)
    }

    /// The owner deletes everything and the operator restores, until no new mail has come in between.
    async fn restore(&mut self, shard: u16, pieces: &[ShardPiece]) -> bool {
        let account = account_id(self.user).to_string();
        let times = |truth: &super::truth::Truth| truth.restorations.get(&account).copied();
        let before = self.history.look(times);
        for _ in 0..TRIES {
            let Some(front) = self.clients.front(&mut self.random) else {
                sleep(Duration::from_secs(5)).await;
                continue;
            };
            if !self.clients.empty(&front, self.user).await {
                continue;
            }
            // what began must end: an account that is half restored takes no mail
            while self.restore_once(shard, pieces).await.is_none() {
                sleep(Duration::from_secs(2)).await;
            }
            self.history.collect();
            if self.history.look(times) != before {
                return true;
            }
        }
        false
    }

    /// Among the tasks of a machine, whose death ends it.
    async fn restore_once(&self, shard: u16, pieces: &[ShardPiece]) -> Option<ShardRestoreReply> {
        let peer = self.network.any_peer()?;
        let pieces: Vec<ShardPiece> = pieces.to_vec();
        let (sender, reply) = oneshot::channel();
        let mailboxes = peer.mailboxes.clone();
        peer.tasks.spawn("restore", async move {
            let pieces = stream::iter(pieces.into_iter().map(Ok));
            let restored = backup::restore_mailboxes(&mailboxes, shard, pieces).await;
            let _ = sender.send(restored);
        });
        reply.await.ok()?.ok()
    }

    /// A client that knows the UIDs of before asks for them, flags them and deletes them: it gets nothing and does nothing.
    async fn go_on(&self, access: &Mailboxes, old: &Maildrop) {
        let Some(mailbox) = old.mailbox() else { return };
        let last = old.messages().map(|message| message.uid).max();
        let uids: Vec<u32> = (1..=last.unwrap_or_default() + 4).collect();
        for uid in uids.iter().rev().take(6) {
            self.stale_fetch(access, mailbox, *uid).await;
        }
        let flags = StoreFlags {
            account: mailbox.account.to_string(),
            mailbox_id: 0,
            uid_validity: mailbox.uid_validity,
            uids: uids.clone(),
            how: How::Add.into(),
            flags: vec!["\\Deleted".to_owned()],
            unchanged_since: 0,
        };
        propose(&self.network, self.user, Command::StoreFlags(flags)).await;
        if let Ok(expunged) = access.expunge(mailbox, uids).await
            && expunged != 0
        {
            self.clients.world.violate(format_args!(
                "M2: {} loses {expunged} mails to UIDs of before a restore",
                self.user
            ));
        }
    }

    /// A replica that is behind may still have the mail of before; nobody may take another one for it.
    async fn stale_fetch(&self, access: &Mailboxes, mailbox: &MailboxRef, uid: u32) {
        let Ok(Some(fetched)) = access.fetch(mailbox, uid).await else {
            return;
        };
        let at = StoredAt {
            uid_validity: mailbox.uid_validity,
            uid,
        };
        self.history.collect();
        let blake3 = self
            .history
            .look(|truth| truth.blake3_at(mailbox.account.as_str(), at));
        if blake3.is_none_or(|blake3| blake3 != fetched.body.blake3) {
            self.clients.world.violate(format_args!(
                "M2: {} shows {uid} of {} as another mail",
                self.user, mailbox.uid_validity
            ));
        }
    }
}

/// Where the mails of an account are, as a backup has them.
fn places(pieces: &[ShardPiece], account: &str) -> BTreeSet<Place> {
    let mut uid_validity = 0;
    let mut places = BTreeSet::new();
    for piece in pieces {
        let Some(shard_piece::Piece::Ingest(ingest)) = &piece.piece else {
            continue;
        };
        match &ingest.piece {
            Some(Piece::Mailbox(IngestMailbox {
                name,
                uid_validity: of_inbox,
                ..
            })) if name == "INBOX" && ingest.account == account => uid_validity = *of_inbox,
            Some(Piece::Message(message)) if ingest.account == account => {
                places.insert((account.to_owned(), uid_validity, message.uid));
            }
            _ => {}
        }
    }
    places
}

//! Deletes blobs that nobody names any more: mails that were expunged, deleted or never accepted.
//!
//! Mark and sweep, without counting references on the way of a mail. A blob is deleted only after it has been unnamed in every
//! look for a whole day by the monotonic clock: by then no transaction, delivery or backup that was under way can still
//! be about to name it. A look that could not see everything deletes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow};
use hikyaku_blob::Blobs;
use hikyaku_mail::id::MessageId;
use hikyaku_mbox::blobs::keep_named_blobs;
use hikyaku_mbox::mailbox::MailboxService;
use hikyaku_queue::machine::QueueMachine;
use hikyaku_serve::metrics;
use hikyaku_serve::tasks::Tasks;
use hikyaku_shard::runtime::Shard;
use tokio::time::{Instant, sleep};

/// What the sweep looks at.
pub struct Sweep {
    /// Where blobs are.
    pub blobs: Arc<dyn Blobs>,
    /// Mail on its way names some.
    pub incoming: Shard<QueueMachine>,
    /// Mail that arrived names some.
    pub mailboxes: MailboxService,
    /// Between two looks.
    pub interval: Duration,
    /// How long a blob must have been unnamed.
    pub keep_unnamed: Duration,
}

impl Sweep {
    /// Looks around until the node drains.
    pub fn start(self, tasks: &Tasks) {
        let draining = tasks.draining();
        tasks.spawn("blob sweep", async move {
            let mut unnamed_since = BTreeMap::new();
            match self.blobs.list().await {
                Ok(blobs) => metrics::BLOBS.set(blobs.len() as u64),
                Err(error) => tracing::warn!(%error, "the blobs could not be counted"),
            }
            loop {
                tokio::select! {
                    biased;
                    () = draining.cancelled() => return,
                    () = sleep(self.interval) => {}
                }
                match self.look(&mut unnamed_since).await {
                    Ok(0) => {}
                    Ok(deleted) => {
                        metrics::BLOBS_DELETED.add(deleted as u64);
                        tracing::info!(deleted, "blobs that nobody names deleted");
                    }
                    Err(error) => tracing::warn!(%error, "the blob sweep could not look everywhere; nothing deleted"),
                }
            }
        });
    }

    /// One look; answers how many were deleted.
    async fn look(&self, unnamed_since: &mut BTreeMap<MessageId, Instant>) -> Result<usize> {
        let mut unnamed: BTreeSet<MessageId> = self.blobs.list().await?.into_iter().collect();
        metrics::BLOBS.set(unnamed.len() as u64);
        if unnamed.is_empty() {
            unnamed_since.clear();
            return Ok(0);
        }
        // the queue first: what has left it by then is in a mailbox that is looked at afterwards
        self.incoming.barrier().await?;
        self.incoming
            .read(|machine| unnamed.retain(|id| machine.index().message(*id).is_none()));
        let shards: Vec<u16> = self.mailboxes.shards().map(|shard| shard.index).collect();
        for index in shards {
            let looked = keep_named_blobs(&self.mailboxes, index, &mut unnamed).await;
            looked.map_err(|status| anyhow!("mbox-{index}: {}", status.message()))?;
        }
        let now = Instant::now();
        unnamed_since.retain(|id, _| unnamed.contains(id));
        let mut deleted = 0;
        for id in unnamed {
            let since = *unnamed_since.entry(id).or_insert(now);
            if now.duration_since(since) >= self.keep_unnamed {
                self.blobs.delete(id).await?;
                unnamed_since.remove(&id);
                deleted += 1;
            }
        }
        Ok(deleted)
    }
}

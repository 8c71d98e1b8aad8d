//! Deletes blobs that nobody names any more: mails that were expunged, deleted or never accepted.
//!
//! Mark and sweep, without counting references on the way of a mail. A blob is deleted only after it has been unnamed in every
//! look for a whole day ([`crate::unnamed`] says by which clock): by then no transaction, delivery or backup that was under way
//! can still be about to name it. A look that could not see everything deletes nothing.

use std::collections::BTreeSet;
use std::path::PathBuf;
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
use hikyaku_shard::ambient::SharedAmbient;
use hikyaku_shard::runtime::Shard;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use crate::unnamed::{self, Unnamed};

/// From the start to the first look at most: a node that restarts before it never deletes anything.
const FIRST_LOOK_MAX: Duration = Duration::from_secs(10 * 60);

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
    /// The file that keeps how long blobs have been unnamed.
    pub ages: PathBuf,
    /// The wall clock.
    pub ambient: SharedAmbient,
}

impl Sweep {
    /// Looks around until the node drains.
    pub fn start(self, tasks: &Tasks) {
        let draining = tasks.draining();
        tasks.spawn("blob sweep", async move {
            match self.blobs.list().await {
                Ok(blobs) => metrics::BLOBS.set(blobs.len() as u64),
                Err(error) => tracing::warn!(%error, "the blobs could not be counted"),
            }
            let mut unnamed = None;
            let mut pause = self.interval.min(FIRST_LOOK_MAX);
            loop {
                tokio::select! {
                    biased;
                    () = draining.cancelled() => return,
                    () = sleep(pause) => {}
                }
                pause = self.interval;
                match self.look(&mut unnamed).await {
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
    async fn look(&self, known: &mut Option<Unnamed>) -> Result<usize> {
        let found = self.unnamed().await?;
        let mut unnamed = match known.take() {
            Some(unnamed) => unnamed,
            None => {
                let file = self.ages.clone();
                spawn_blocking(move || Unnamed::load(&file)).await?
            }
        };
        let now_ms = self.ambient.now_ms();
        unnamed.look(&found, Instant::now(), now_ms, self.interval);
        let unnamed = known.insert(unnamed);
        let deleted = self.delete(unnamed).await;
        self.save(unnamed.to_text(now_ms)).await;
        deleted
    }

    /// All blobs that no mail names.
    async fn unnamed(&self) -> Result<BTreeSet<MessageId>> {
        let mut unnamed: BTreeSet<MessageId> = self.blobs.list().await?.into_iter().collect();
        metrics::BLOBS.set(unnamed.len() as u64);
        if unnamed.is_empty() {
            return Ok(unnamed);
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
        Ok(unnamed)
    }

    async fn delete(&self, unnamed: &mut Unnamed) -> Result<usize> {
        let mut deleted = 0;
        for id in unnamed.older_than(self.keep_unnamed) {
            self.blobs.delete(id).await?;
            unnamed.forget(id);
            deleted += 1;
        }
        Ok(deleted)
    }

    /// Keeps the ages for the next process; without them, its blobs are deleted later.
    async fn save(&self, text: String) {
        let file = self.ages.clone();
        let saved = spawn_blocking(move || unnamed::save(&file, &text)).await;
        if let Ok(Err(error)) = saved {
            tracing::warn!(file = %self.ages.display(), %error, "ages of unnamed blobs could not be kept");
        }
    }
}

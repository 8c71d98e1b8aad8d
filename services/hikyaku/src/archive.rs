//! This machine's shards as the admin service sees them: queue, backups, health.

use futures_util::future::BoxFuture;
use hikyaku_control::archive::{Archive, Pieces};
use hikyaku_control::queue::LedQueue;
use hikyaku_delivery::control::QueueControl;
use hikyaku_log::{Class, ShardId};
use hikyaku_mail::id::MessageId;
use hikyaku_mbox::backup;
use hikyaku_mbox::home::HomeService;
use hikyaku_mbox::mailbox::MailboxService;
use hikyaku_proto::v1::shard_piece::Piece;
use hikyaku_proto::v1::{
    QueueListRequest, QueueOperateReply, QueueOperateRequest, QueueShowReply, ShardRestoreReply,
    ShardStatus,
};
use hikyaku_queue::inspect::Listed;
use hikyaku_shard::machine::Machine;
use hikyaku_shard::runtime::Shard;
use tokio_stream::StreamExt;
use tonic::Status;

/// The shards of this machine.
pub struct LocalArchive {
    /// Who owns an account.
    pub home: HomeService,
    /// The same, for its log and position.
    pub home_shard: Shard<hikyaku_home::machine::HomeMachine>,
    /// Mailboxes.
    pub mailboxes: MailboxService,
}

impl LocalArchive {
    async fn restore_pieces(&self, mut pieces: Pieces) -> Result<ShardRestoreReply, Status> {
        let first = pieces
            .next()
            .await
            .ok_or_else(|| Status::invalid_argument("an empty snapshot"))??;
        let Some(Piece::Header(header)) = &first.piece else {
            return Err(Status::invalid_argument(
                "a snapshot begins with its header",
            ));
        };
        let shard: ShardId = header
            .shard
            .parse()
            .map_err(|_| Status::invalid_argument("a snapshot of no shard"))?;
        let whole = tokio_stream::once(Ok(first)).chain(pieces);
        match shard.class {
            Class::Mbox => backup::restore_mailboxes(&self.mailboxes, shard.index, whole).await,
            Class::Home => backup::restore_home(&self.home, whole).await,
            _ => Err(Status::invalid_argument(
                "queue shards have no snapshots: their log is all there is",
            )),
        }
    }
}

impl Archive for LocalArchive {
    fn snapshot(&self, shard: ShardId) -> BoxFuture<'_, Result<Pieces, Status>> {
        Box::pin(async move {
            match shard.class {
                Class::Mbox => {
                    let pieces = backup::snapshot_mailboxes(&self.mailboxes, shard.index).await?;
                    Ok(Box::pin(pieces) as Pieces)
                }
                Class::Home => Ok(Box::pin(backup::snapshot_home(&self.home).await?) as Pieces),
                _ => Err(Status::invalid_argument(
                    "queue shards have no snapshots: their log is all there is",
                )),
            }
        })
    }

    fn restore(&self, pieces: Pieces) -> BoxFuture<'_, Result<ShardRestoreReply, Status>> {
        Box::pin(self.restore_pieces(pieces))
    }

    fn shards(&self) -> BoxFuture<'_, Vec<ShardStatus>> {
        let mailboxes = self.mailboxes.shards().filter_map(|id| {
            let shard = &self.mailboxes.local(id.index)?.shard;
            let messages =
                backup::totals(&self.mailboxes, id.index).map_or(0, |totals| totals.messages);
            Some(status(shard, messages))
        });
        let statuses = [status(&self.home_shard, 0)]
            .into_iter()
            .chain(mailboxes)
            .collect();
        Box::pin(async move { statuses })
    }
}

/// The incoming queue of this machine and its leader.
pub struct LocalQueue(pub QueueControl);

impl LedQueue for LocalQueue {
    fn id(&self) -> ShardId {
        self.0.shard().id()
    }

    fn is_whole(&self) -> bool {
        self.0.shard().read(Machine::is_whole)
    }

    fn list(&self, request: &QueueListRequest) -> Listed {
        self.0.list(request)
    }

    fn show(&self, id: MessageId) -> QueueShowReply {
        self.0.show(id)
    }

    fn operate(
        &self,
        request: QueueOperateRequest,
    ) -> BoxFuture<'_, Result<QueueOperateReply, Status>> {
        Box::pin(async move {
            self.0
                .operate(&request)
                .await
                .map_err(|error| Status::unavailable(error.to_string()))
        })
    }

    fn status(&self) -> ShardStatus {
        let shard = self.0.shard();
        status(
            shard,
            shard.read(|machine| machine.index().messages().len()) as u64,
        )
    }
}

fn status<M: Machine>(shard: &Shard<M>, messages: u64) -> ShardStatus {
    let bounds = shard.log().bounds(shard.id());
    let (keep_from, hash) = shard.read(|machine| (machine.keep_from(), machine.state_hash()));
    ShardStatus {
        shard: shard.id().to_string(),
        applied: shard.applied().borrow().0,
        log_start: bounds.start.0,
        log_end: bounds.end.0,
        durable: keep_from.0.saturating_sub(1),
        pinned_bytes: shard.log().pinned(shard.id()).bytes,
        messages,
        trouble: shard
            .trouble()
            .map(|trouble| trouble.to_string())
            .unwrap_or_default(),
        state_hash: hash.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

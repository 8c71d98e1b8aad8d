//! The seam to whoever keeps mailbox and home shards: backups and how the shards are.

use std::pin::Pin;

use futures_util::future::BoxFuture;
use hikyaku_mail::id::ShardId;
use hikyaku_proto::v1::{ShardPiece, ShardRestoreReply, ShardStatus};
use tokio_stream::Stream;
use tonic::Status;

/// Pieces of a backup, in order.
pub type Pieces = Pin<Box<dyn Stream<Item = Result<ShardPiece, Status>> + Send>>;

/// Backups and health of the shards on this node.
pub trait Archive: Send + Sync + 'static {
    /// What `shard` holds at one position.
    fn snapshot(&self, shard: ShardId) -> BoxFuture<'_, Result<Pieces, Status>>;

    /// Brings back the accounts in `pieces` that are not here.
    fn restore(&self, pieces: Pieces) -> BoxFuture<'_, Result<ShardRestoreReply, Status>>;

    /// How the shards are.
    fn shards(&self) -> BoxFuture<'_, Vec<ShardStatus>>;
}

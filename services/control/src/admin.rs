//! The gRPC admin service.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use hikyaku_directory::Directory;
use hikyaku_directory::explain::explain;
use hikyaku_mail::id::ShardId;
use hikyaku_mail::path::{ForwardPath, Mailbox};
use hikyaku_mail::reply::Reply;
use hikyaku_proto::v1::admin_server::Admin;
use hikyaku_proto::v1::{
    self, DirectoryAcceptReply, DirectoryAcceptRequest, QueueListPage, QueueListRequest,
    QueueOperateReply, QueueOperateRequest, QueueShowReply, QueueShowRequest, RouteExplainReply,
    RouteExplainRequest, ShardPiece, ShardRestoreReply, ShardSnapshotRequest, ShardStatus,
    StatusReply, StatusRequest,
};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use crate::archive::{Archive, Pieces};
use crate::queue::Queues;

/// What RCPT would answer now.
pub type Rcpt = Arc<dyn Fn(ForwardPath) -> BoxFuture<'static, Reply> + Send + Sync>;

/// Takes the directory file as it is.
pub type AcceptDirectory =
    Arc<dyn Fn() -> BoxFuture<'static, Result<DirectoryAcceptReply, Status>> + Send + Sync>;

/// What an operator must look at, one line each.
pub type NodeAlarms = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// The admin service of one node.
pub struct AdminService {
    /// The queue and its leaders.
    pub queues: Queues,
    /// Who users are.
    pub directory: Arc<dyn Directory>,
    /// Takes a directory file that has lost much.
    pub accept_directory: AcceptDirectory,
    /// The edge's answer.
    pub rcpt: Rcpt,
    /// Mailbox and home shards.
    pub archive: Arc<dyn Archive>,
    /// What this node listens on, `smtp 127.0.0.1:25` and so on.
    pub listeners: Vec<String>,
    /// What an operator must look at.
    pub alarms: NodeAlarms,
}

type Answer<T> = Result<Response<T>, Status>;
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Admin for AdminService {
    type QueueListStream = Answers<QueueListPage>;
    type ShardSnapshotStream = Answers<ShardPiece>;

    async fn queue_list(
        &self,
        request: Request<QueueListRequest>,
    ) -> Answer<Self::QueueListStream> {
        self.queues.whole().await?;
        let pages = self.queues.list(request.get_ref())?;
        Ok(Response::new(Box::pin(tokio_stream::iter(
            pages.into_iter().map(Ok),
        ))))
    }

    async fn queue_show(&self, request: Request<QueueShowRequest>) -> Answer<QueueShowReply> {
        self.queues.whole().await?;
        self.queues
            .show(&request.get_ref().message_id)
            .map(Response::new)
    }

    async fn queue_operate(
        &self,
        request: Request<QueueOperateRequest>,
    ) -> Answer<QueueOperateReply> {
        self.queues.whole().await?;
        self.queues
            .operate(request.into_inner())
            .await
            .map(Response::new)
    }

    async fn route_explain(
        &self,
        request: Request<RouteExplainRequest>,
    ) -> Answer<RouteExplainReply> {
        let address = request.into_inner().address;
        let mailbox: Mailbox = address.parse().map_err(|error| {
            Status::invalid_argument(format!("{address}: {error}; expected user@domain"))
        })?;
        let steps = explain(&*self.directory, &mailbox).await;
        let reply = (self.rcpt)(ForwardPath::Path(mailbox)).await;
        Ok(Response::new(RouteExplainReply {
            steps: steps.iter().map(ToString::to_string).collect(),
            reply: Some(v1::Status::from(&reply)),
        }))
    }

    async fn directory_accept(
        &self,
        _request: Request<DirectoryAcceptRequest>,
    ) -> Answer<DirectoryAcceptReply> {
        (self.accept_directory)().await.map(Response::new)
    }

    async fn shard_snapshot(
        &self,
        request: Request<ShardSnapshotRequest>,
    ) -> Answer<Self::ShardSnapshotStream> {
        let name = request.into_inner().shard;
        let shard: ShardId = name
            .parse()
            .map_err(|error| Status::invalid_argument(format!("{name}: {error}")))?;
        self.archive.snapshot(shard).await.map(Response::new)
    }

    async fn shard_restore(
        &self,
        request: Request<Streaming<ShardPiece>>,
    ) -> Answer<ShardRestoreReply> {
        let pieces: Pieces = Box::pin(request.into_inner().map(|piece| piece));
        self.archive.restore(pieces).await.map(Response::new)
    }

    async fn status(&self, _request: Request<StatusRequest>) -> Answer<StatusReply> {
        let mut shards: Vec<ShardStatus> =
            self.queues.shards().map(|shard| shard.status()).collect();
        shards.extend(self.archive.shards().await);
        Ok(Response::new(StatusReply {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            shards,
            listeners: self.listeners.clone(),
            alarms: (self.alarms)(),
        }))
    }
}

//! List, show and operate over the queue shards of this node.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use hikyaku_mail::id::{MessageId, ShardId};
use hikyaku_proto::convert::message_id;
use hikyaku_proto::v1::operate::Order;
use hikyaku_proto::v1::{
    QueueListPage, QueueListRequest, QueueOperateReply, QueueOperateRequest, QueueShowReply,
    QueuedMessage, ShardStatus,
};
use hikyaku_queue::inspect::{LIST_DEFAULT, LIST_MAX, Listed, STAGES};
use tokio::time::{Instant, sleep};
use tonic::Status;

/// Messages on one page.
const PAGE: usize = 200;
/// How long a list or an order waits for a shard that still reads its log after the start.
const WHOLE_WITHIN: Duration = Duration::from_secs(20);
/// How often it is looked whether it has.
const WHOLE_POLL: Duration = Duration::from_millis(50);
/// Ids of one order at most.
const ORDER_IDS_MAX: usize = 100_000;

/// One queue shard and its leader, wherever that runs.
pub trait LedQueue: Send + Sync + 'static {
    /// Which shard.
    fn id(&self) -> ShardId;

    /// Whether all of its log is applied that was there when it began; before that, lists are short.
    fn is_whole(&self) -> bool;

    /// The messages that match, oldest first.
    fn list(&self, request: &QueueListRequest) -> Listed;

    /// One message and what is being done about it.
    fn show(&self, id: MessageId) -> QueueShowReply;

    /// Carries an order out on messages of this shard.
    fn operate(
        &self,
        request: QueueOperateRequest,
    ) -> BoxFuture<'_, Result<QueueOperateReply, Status>>;

    /// How it is.
    fn status(&self) -> ShardStatus;
}

/// The queue shards of this node.
#[derive(Clone, Default)]
pub struct Queues {
    shards: BTreeMap<ShardId, Arc<dyn LedQueue>>,
}

impl Queues {
    /// These shards.
    pub fn new(shards: impl IntoIterator<Item = Arc<dyn LedQueue>>) -> Queues {
        Queues {
            shards: shards
                .into_iter()
                .map(|shard| (shard.id(), shard))
                .collect(),
        }
    }

    /// The shards.
    pub fn shards(&self) -> impl Iterator<Item = &Arc<dyn LedQueue>> {
        self.shards.values()
    }

    /// Waits until the shards know all that they knew before the process started.
    ///
    /// # Errors
    /// When one does not within [`WHOLE_WITHIN`].
    pub async fn whole(&self) -> Result<(), Status> {
        let deadline = Instant::now() + WHOLE_WITHIN;
        for (id, shard) in &self.shards {
            while !shard.is_whole() {
                if Instant::now() >= deadline {
                    return Err(Status::unavailable(format!(
                        "{id} still reads its log after the start; ask again"
                    )));
                }
                sleep(WHOLE_POLL).await;
            }
        }
        Ok(())
    }

    /// The pages of a list, oldest messages first, the last one with the total.
    ///
    /// # Errors
    /// When the request names no stage there is.
    pub fn list(&self, request: &QueueListRequest) -> Result<Vec<QueueListPage>, Status> {
        if !request.state.is_empty() && !STAGES.contains(&request.state.as_str()) {
            return Err(Status::invalid_argument(format!(
                "state must be one of {}",
                STAGES.join(", ")
            )));
        }
        let mut messages: Vec<QueuedMessage> = Vec::new();
        let mut total = 0;
        for shard in self.shards.values() {
            let listed = shard.list(request);
            total += listed.total;
            messages.extend(listed.messages);
        }
        messages.sort_by_key(|message| {
            (
                message
                    .envelope
                    .as_ref()
                    .map_or(0, |envelope| envelope.received_ms),
                message.message_id.clone(),
            )
        });
        let limit = if request.limit == 0 {
            LIST_DEFAULT
        } else {
            request.limit.min(LIST_MAX)
        };
        messages.truncate(limit as usize);
        let mut pages: Vec<QueueListPage> = Vec::new();
        while !messages.is_empty() {
            let rest = messages.split_off(messages.len().min(PAGE));
            pages.push(QueueListPage {
                messages,
                total: None,
            });
            messages = rest;
        }
        pages.push(QueueListPage {
            messages: Vec::new(),
            total: Some(total),
        });
        Ok(pages)
    }

    /// One message.
    ///
    /// # Errors
    /// When `id` is no queue id.
    pub fn show(&self, id: &[u8]) -> Result<QueueShowReply, Status> {
        let id = parse(id)?;
        Ok(self
            .shards
            .get(&id.shard())
            .map(|shard| shard.show(id))
            .unwrap_or_default())
    }

    /// Carries an order out, shard by shard.
    ///
    /// # Errors
    /// When the request is malformed or a log does not take the order; what was done before stays done.
    pub async fn operate(&self, request: QueueOperateRequest) -> Result<QueueOperateReply, Status> {
        if request.order() == Order::Unspecified {
            return Err(Status::invalid_argument("no order"));
        }
        if request.message_ids.len() > ORDER_IDS_MAX {
            return Err(Status::invalid_argument(format!(
                "more than {ORDER_IDS_MAX} ids"
            )));
        }
        let mut parts: BTreeMap<ShardId, QueueOperateRequest> = BTreeMap::new();
        let empty = QueueOperateRequest {
            message_ids: Vec::new(),
            ..request.clone()
        };
        if request.all {
            parts.extend(self.shards.keys().map(|&shard| (shard, empty.clone())));
        }
        let mut reply = QueueOperateReply::default();
        for bytes in request.message_ids {
            let shard = parse(&bytes)?.shard();
            if self.shards.contains_key(&shard) {
                parts
                    .entry(shard)
                    .or_insert_with(|| empty.clone())
                    .message_ids
                    .push(bytes);
            } else {
                reply.unknown.push(bytes);
            }
        }
        for (id, part) in parts {
            let Some(shard) = self.shards.get(&id) else {
                continue;
            };
            let answered = shard.operate(part).await?;
            reply.changed += answered.changed;
            reply.unknown.extend(answered.unknown);
        }
        Ok(reply)
    }
}

fn parse(bytes: &[u8]) -> Result<MessageId, Status> {
    message_id(bytes).map_err(|_| Status::invalid_argument("not a queue id"))
}

//! List, show and operate over the queue shards of this node.

use std::collections::BTreeMap;

use bytes::Bytes;
use hikyaku_mail::id::{MessageId, ShardId};
use hikyaku_proto::convert::message_id;
use hikyaku_proto::v1::operate::Order;
use hikyaku_proto::v1::record::Command;
use hikyaku_proto::v1::{
    Operate, QueueListPage, QueueListRequest, QueueOperateReply, QueueOperateRequest, QueuedMessage,
};
use hikyaku_queue::inspect::{LIST_DEFAULT, LIST_MAX, STAGES};
use hikyaku_queue::machine::{Answer, QueueMachine};
use hikyaku_shard::runtime::Shard;
use tonic::Status;

/// Messages on one page.
const PAGE: usize = 200;
/// Ids of one order at most.
const ORDER_IDS_MAX: usize = 100_000;

/// The queue shards of this node.
#[derive(Clone, Default)]
pub struct Queues {
    shards: BTreeMap<ShardId, Shard<QueueMachine>>,
}

impl Queues {
    /// These shards.
    pub fn new(shards: impl IntoIterator<Item = Shard<QueueMachine>>) -> Queues {
        Queues { shards: shards.into_iter().map(|shard| (shard.id(), shard)).collect() }
    }

    /// The shards.
    pub fn shards(&self) -> impl Iterator<Item = &Shard<QueueMachine>> {
        self.shards.values()
    }

    fn of(&self, id: MessageId) -> Option<&Shard<QueueMachine>> {
        self.shards.get(&id.shard())
    }

    /// The pages of a list, oldest messages first, the last one with the total.
    ///
    /// # Errors
    /// When the request names no stage there is.
    pub fn list(&self, request: &QueueListRequest) -> Result<Vec<QueueListPage>, Status> {
        if !request.state.is_empty() && !STAGES.contains(&request.state.as_str()) {
            return Err(Status::invalid_argument(format!("state must be one of {}", STAGES.join(", "))));
        }
        let mut messages: Vec<QueuedMessage> = Vec::new();
        let mut total = 0;
        for shard in self.shards.values() {
            let now_ms = shard.ambient().now_ms();
            let listed = shard.read(|machine| machine.list(request, now_ms));
            total += listed.total;
            messages.extend(listed.messages);
        }
        messages.sort_by_key(|message| {
            (message.envelope.as_ref().map_or(0, |envelope| envelope.received_ms), message.message_id.clone())
        });
        let limit = if request.limit == 0 { LIST_DEFAULT } else { request.limit.min(LIST_MAX) };
        messages.truncate(limit as usize);
        let mut pages: Vec<QueueListPage> = Vec::new();
        while !messages.is_empty() {
            let rest = messages.split_off(messages.len().min(PAGE));
            pages.push(QueueListPage { messages, total: None });
            messages = rest;
        }
        pages.push(QueueListPage { messages: Vec::new(), total: Some(total) });
        Ok(pages)
    }

    /// One message.
    ///
    /// # Errors
    /// When `id` is no queue id.
    pub fn show(&self, id: &[u8]) -> Result<Option<(MessageId, QueuedMessage)>, Status> {
        let id = parse(id)?;
        let shown = self.of(id).and_then(|shard| shard.read(|machine| machine.show(id)));
        Ok(shown.map(|message| (id, message)))
    }

    /// Carries an order out, message by message.
    ///
    /// # Errors
    /// When the request is malformed or the log does not take the order; what was done before stays done.
    pub async fn operate(&self, request: QueueOperateRequest) -> Result<QueueOperateReply, Status> {
        let order = match request.order() {
            Order::Unspecified => return Err(Status::invalid_argument("no order")),
            order => order,
        };
        if request.message_ids.len() > ORDER_IDS_MAX {
            return Err(Status::invalid_argument(format!("more than {ORDER_IDS_MAX} ids")));
        }
        let ids = if request.all { self.all() } else { request.message_ids.clone() };
        let mut reply = QueueOperateReply::default();
        for bytes in ids {
            let id = parse(&bytes)?;
            let command = Operate {
                order: order.into(),
                message_id: bytes.clone(),
                recipients: Vec::new(),
                reason: request.reason.clone(),
                operator: request.operator.clone(),
            };
            let Some(shard) = self.of(id) else {
                reply.unknown.push(bytes);
                continue;
            };
            let committed = shard.propose(Command::Operate(command)).await;
            match committed.map_err(|error| Status::unavailable(error.to_string()))?.answer {
                Answer::Changed(_) => {
                    tracing::info!(target: "maillog", queue_id = %id, order = order.as_str_name(), operator = request.operator, reason = request.reason, "operated");
                    reply.changed += 1;
                }
                Answer::Void if shard.read(|machine| machine.show(id).is_some()) => {}
                _ => reply.unknown.push(bytes),
            }
        }
        Ok(reply)
    }

    fn all(&self) -> Vec<Bytes> {
        let request = QueueListRequest { limit: LIST_MAX, ..QueueListRequest::default() };
        let listed = self.shards.values().flat_map(|shard| {
            let now_ms = shard.ambient().now_ms();
            shard.read(|machine| machine.list(&request, now_ms)).messages
        });
        listed.map(|message| message.message_id).collect()
    }
}

fn parse(bytes: &[u8]) -> Result<MessageId, Status> {
    message_id(bytes).map_err(|_| Status::invalid_argument("not a queue id"))
}

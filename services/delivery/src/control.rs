//! What an operator asks of a leader and orders it to do. Orders are records in the queue's log: audited, and ordered with
//! attempts.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use hikyaku_mail::id::MessageId;
use hikyaku_mail::maillog;
use hikyaku_proto::v1::operate::Order;
use hikyaku_proto::v1::{
    Operate, QueueListRequest, QueueOperateReply, QueueOperateRequest, QueueShowReply,
    record::Command,
};
use hikyaku_queue::held::NO_OUTBOUND;
use hikyaku_queue::inspect::Listed;
use hikyaku_queue::machine::{Answer, QueueMachine};
use hikyaku_serve::metrics;
use hikyaku_shard::runtime::{ProposeError, Shard};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::lanes::Lanes;

/// Orders of one request under way together.
const ORDERS_MAX: usize = 64;
/// How long something may not answer before it is an alarm.
const ALARM_PATIENCE: Duration = Duration::from_secs(30);

/// An operator's handle on one led queue shard. Clones share it.
#[derive(Clone)]
pub struct QueueControl {
    pub(crate) shard: Shard<QueueMachine>,
    pub(crate) lanes: Arc<Mutex<Lanes>>,
    pub(crate) nudge: Arc<Notify>,
}

impl QueueControl {
    /// The queue.
    pub fn shard(&self) -> &Shard<QueueMachine> {
        &self.shard
    }

    /// The messages that match.
    pub fn list(&self, request: &QueueListRequest) -> Listed {
        let now_ms = self.shard.ambient().now_ms();
        self.shard.read(|machine| machine.list(request, now_ms))
    }

    /// One message and what is being done about it.
    pub fn show(&self, id: MessageId) -> QueueShowReply {
        let message = self.shard.read(|machine| machine.show(id));
        let activity = match message {
            Some(_) => self.lanes().activity(id, Instant::now()),
            None => Vec::new(),
        };
        QueueShowReply { message, activity }
    }

    /// What has not answered for long, what cannot be read, and what is held for a reason that somebody must look at.
    pub fn alarms(&self) -> Vec<String> {
        let mut alarms = self.lanes().alarms(Instant::now(), ALARM_PATIENCE);
        let quarantined = self.shard.read(|machine| machine.quarantined().to_vec());
        if !quarantined.is_empty() {
            alarms.push(format!(
                "{}: records {quarantined:?} are quarantined",
                self.shard.id()
            ));
        }
        let held_for = self.shard.read(|machine| machine.index().held_for());
        // mail for other sites is held as a rule, and waits for no mending
        let held = held_for.counts();
        let held = held.filter(|(reason, count)| *count > 0 && *reason != NO_OUTBOUND);
        alarms.extend(held.map(|(reason, count)| {
            let shard = self.shard.id();
            format!("{shard}: {count} recipients are held, {reason}; see `hikyaku queue list --state hold`")
        }));
        alarms
    }

    /// Carries out an order on messages of this shard; ids of other shards count as unknown.
    ///
    /// # Errors
    /// When the log does not take an order; those before it are carried out.
    pub async fn operate(
        &self,
        request: &QueueOperateRequest,
    ) -> Result<QueueOperateReply, ProposeError> {
        let mut reply = QueueOperateReply::default();
        let mut ids = Vec::new();
        if request.message_ids.is_empty() && request.all {
            ids = self
                .shard
                .read(|machine| machine.index().messages().keys().collect());
        }
        for bytes in &request.message_ids {
            let known = MessageId::from_bytes(bytes).filter(|id| {
                self.shard
                    .read(|machine| machine.index().message(*id).is_some())
            });
            match known {
                Some(id) => ids.push(id),
                None => reply.unknown.push(bytes.clone()),
            }
        }
        let orders = ids.into_iter().map(|id| self.order(id, request));
        let mut answers = futures_util::stream::iter(orders).buffered(ORDERS_MAX);
        while let Some(answer) = answers.next().await {
            if matches!(answer?, Answer::Changed(changed) if changed > 0) {
                reply.changed += 1;
            }
        }
        if matches!(request.order(), Order::Retry | Order::Release) {
            self.nudge.notify_one();
        }
        Ok(reply)
    }

    async fn order(
        &self,
        id: MessageId,
        request: &QueueOperateRequest,
    ) -> Result<Answer, ProposeError> {
        let command = Command::Operate(Operate {
            order: request.order,
            message_id: Bytes::copy_from_slice(&id.to_bytes()),
            recipients: Vec::new(),
            reason: request.reason.clone(),
            operator: request.operator.clone(),
        });
        let live = self.shard.read(|machine| machine.live_recipients(id));
        let committed = self.shard.propose(command).await?;
        tracing::info!(
            queue_id = %id,
            order = word(request.order()),
            operator = request.operator,
            reason = request.reason,
            "operator's order"
        );
        if matches!(committed.answer, Answer::Changed(changed) if changed > 0) {
            self.settled(id, request, &live);
        }
        Ok(committed.answer)
    }

    /// Writes the postmaster's line about each recipient that an order has ended or stopped.
    fn settled(
        &self,
        id: MessageId,
        request: &QueueOperateRequest,
        live: &[(u32, String, String)],
    ) {
        let outcome = match request.order() {
            Order::Delete => "deleted",
            Order::Hold => "held",
            _ => return,
        };
        for (number, recipient, tenant) in live {
            // an attempt that ended between the look and the order has its own line
            if self.shard.read(|machine| machine.was_settled(id, *number)) {
                continue;
            }
            metrics::SETTLED.count_value(outcome);
            maillog::settled(maillog::Settled {
                queue_id: id,
                number: *number,
                recipient,
                tenant,
                outcome,
                at: "",
                reply: None,
                reason: &request.reason,
            });
        }
    }

    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An order as the operator wrote it.
fn word(order: Order) -> &'static str {
    match order {
        Order::Hold => "hold",
        Order::Release => "release",
        Order::Delete => "delete",
        Order::Retry => "retry",
        Order::Unspecified => "unspecified",
    }
}

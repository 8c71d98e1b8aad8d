//! Appends live messages again when more of the shard's log is garbage than live, or when the log asks, oldest first and
//! within a rate. Then the log can be cut before their older records, and no held message holds a disk.

use std::sync::Arc;
use std::time::Duration;

use hikyaku_log::Position;
use hikyaku_proto::v1::{Record, record::Command};
use hikyaku_queue::bodies::body_in;
use hikyaku_queue::work::Draft;
use prost::Message as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::job::{ANSWER_TIMEOUT, Context};

/// How often garbage is measured.
const INTERVAL: Duration = Duration::from_secs(1);
/// A round that did not move the log start is not followed by another one sooner than this.
const ROUND_INTERVAL: Duration = Duration::from_secs(60);

/// One pass over the messages that were live when it began.
#[derive(Clone, Copy)]
struct Round {
    below: Position,
    began: Instant,
    ended: bool,
}

/// Carries until the node drains.
pub async fn run(context: Arc<Context>, drain: CancellationToken) {
    let mut round: Option<Round> = None;
    loop {
        tokio::select! {
            biased;
            () = drain.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        if !is_wanted(&context) {
            continue;
        }
        let start = context.shard.log().bounds(context.shard.id()).start;
        let current = match round {
            Some(round)
                if round.ended && start < round.below && round.began.elapsed() < ROUND_INTERVAL =>
            {
                continue;
            }
            Some(round) if !round.ended => round,
            _ => Round {
                below: context.shard.applied().borrow().next(),
                began: Instant::now(),
                ended: false,
            },
        };
        let ended = carry_some(&context, current.below).await;
        round = Some(Round { ended, ..current });
    }
}

fn is_wanted(context: &Context) -> bool {
    let shard = &context.shard;
    let slack = context.options.garbage_bytes_min;
    let (garbage, live) = shard.read(|machine| {
        let garbage = machine.should_carry(slack);
        (garbage, machine.index().bytes())
    });
    if garbage {
        return true;
    }
    // a log that is full of live mail is turned over only when deliveries no longer fit: what holds its middle goes then
    let pinned = shard.log().pinned(shard.id());
    pinned.pressed && (pinned.tight || pinned.bytes / 2 > live)
}

/// Carries messages pinned below `below`, as many as one interval's budget allows; true when none is left.
async fn carry_some(context: &Context, below: Position) -> bool {
    let mut budget = context.options.carry_bytes_per_second;
    loop {
        let Some(draft) = context.shard.read(|machine| machine.draft(below)) else {
            return true;
        };
        let id = draft.id;
        let bytes = draft.log_bytes;
        let Some(command) = with_content(context, draft).await else {
            tracing::error!(queue_id = %id, "cannot be carried: its content cannot be read");
            return false;
        };
        if let Err(error) = context.shard.propose(command).await {
            tracing::warn!(queue_id = %id, %error, "carrying a message failed; trying again");
            return false;
        }
        match budget.checked_sub(bytes) {
            Some(left) => budget = left,
            None => return false,
        }
    }
}

/// The record, with the content read back from the log where it is not in memory.
async fn with_content(context: &Context, draft: Draft) -> Option<Command> {
    let mut carry = draft.carry;
    let accept = carry.accept.as_mut()?;
    let has_content = accept
        .body
        .as_ref()
        .is_some_and(|body| body.content.is_some());
    if !has_content {
        let shard = &context.shard;
        let reading = shard.log().read_at(shard.id(), draft.body_at);
        let record = tokio::time::timeout(ANSWER_TIMEOUT, reading)
            .await
            .ok()?
            .ok()?;
        let body = body_in(Record::decode(record.payload).ok()?, draft.id)?;
        accept.body = Some(body);
    }
    Some(Command::Carry(carry))
}

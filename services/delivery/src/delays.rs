//! Telling senders that it takes long: those who asked to hear of a delay (RFC 3461 section 4.1), once for each recipient,
//! whatever it waits for. Deliveries go on meanwhile; nothing about them changes.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use hikyaku_mail::dsn::Action;
use hikyaku_mail::reply::Reply;
use hikyaku_proto::v1::Delayed;
use hikyaku_proto::v1::outcome::Result as Attempt;
use hikyaku_queue::index::RecipientKey;
use hikyaku_queue::machine::QueueMachine;
use tokio_util::sync::CancellationToken;

use crate::job::{Context, Job, Step};
use crate::lanes::Entry;
use crate::report::{self, Event};

/// How often delays are looked for.
const INTERVAL: Duration = Duration::from_secs(5);
/// Recipients told of in one round.
const ROUND_MAX: usize = 64;

/// Reports delays until the node drains.
pub async fn run(context: Arc<Context>, drain: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = drain.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        for key in context.shard.read(|machine| delayed(machine, &context)) {
            if drain.is_cancelled() {
                return;
            }
            let telling = AssertUnwindSafe(tell(&context, key)).catch_unwind();
            match telling.await {
                Ok(Ok(())) => {}
                Ok(Err(step)) => {
                    // ours: the sender is told when it works again
                    tracing::warn!(queue_id = %key.0, ?step, "a delay cannot be reported now");
                    break;
                }
                Err(_) => tracing::error!(queue_id = %key.0, "reporting a delay panicked"),
            }
        }
    }
}

/// By log time, as for expiry: a clock that jumps makes nothing late.
fn delayed(machine: &QueueMachine, context: &Context) -> Vec<RecipientKey> {
    let after = context.options.schedule.delay_report_ms();
    match machine.log_time_ms().checked_sub(after) {
        Some(received_ms) => machine.index().delayed_since(received_ms, ROUND_MAX),
        None => Vec::new(),
    }
}

async fn tell(context: &Context, key: RecipientKey) -> Result<(), Step> {
    // settled or held since it was found
    let Some(work) = context.shard.read(|machine| machine.work(key)) else {
        return Ok(());
    };
    let reply = work
        .last_attempt
        .as_ref()
        .and_then(|last| last.status.as_ref())
        .map(Reply::from);
    let schedule = context.options.schedule;
    let event = Event {
        reply: reply.as_ref(),
        last_attempt_ms: work.last_attempt.as_ref().map(|last| last.time_ms),
        retry_until_ms: Some(schedule.expires_ms(work.envelope.received_ms, false)),
        ..Event::now(Action::Delayed)
    };
    let entry = Entry::new(key, &work.tenant);
    let mut job = Job {
        context,
        work,
        entry,
        answered: Vec::new(),
    };
    let report = report::compose(&mut job, event).await?;
    // nobody to tell is told once too
    job.record_with(Attempt::Delayed(Delayed {}), report).await;
    Ok(())
}

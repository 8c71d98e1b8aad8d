//! Telling senders that it takes long: those who asked to hear of a delay (RFC 3461 section 4.1), once for each recipient,
//! whatever it waits for, and in one report of all of a mail's. Deliveries go on meanwhile; nothing about them changes.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use hikyaku_mail::dsn::Action;
use hikyaku_mail::id::MessageId;
use hikyaku_mail::reply::Reply;
use hikyaku_proto::v1::outcome::Result as Attempt;
use hikyaku_proto::v1::{Attempted, Delayed, Outcome, record::Command};
use hikyaku_queue::delays::Aged;
use hikyaku_queue::machine::{Answer, QueueMachine};
use hikyaku_queue::work::Work;
use tokio_util::sync::CancellationToken;

use crate::job::{Context, Job, Step};
use crate::lanes::Entry;
use crate::report::{self, ADDRESSES_MAX, Event, Other};

/// How often delays are looked for.
const INTERVAL: Duration = Duration::from_secs(5);
/// Mails told of in one round.
const ROUND_MAX: usize = 64;
/// Mails looked at in one round.
const LOOKED_MAX: usize = 4096;

/// Reports delays until the node drains.
pub async fn run(context: Arc<Context>, drain: CancellationToken) {
    let mut last = None;
    loop {
        tokio::select! {
            biased;
            () = drain.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        last = round(&context, &drain, last).await;
    }
}

/// Tells of the mails after `last`, oldest first. Returns where the next round goes on, so that those that cannot be told of now
/// keep none of the others waiting; `None` when it came to the last mail.
async fn round(
    context: &Context,
    drain: &CancellationToken,
    mut last: Option<Aged>,
) -> Option<Aged> {
    // domains of senders whom the directory does not answer about now: one tenant's trouble
    let mut failing = BTreeSet::new();
    let mut asked = 0;
    for _ in 0..LOOKED_MAX {
        if asked == ROUND_MAX || drain.is_cancelled() {
            break;
        }
        let found = context
            .shard
            .read(|machine| delayed(machine, context, last));
        let (mail, numbers) = found?;
        last = Some(mail);
        let id = mail.1;
        let late = late(context, id, &numbers);
        let Some(domain) = late
            .first()
            .map(|work| domain_of(&work.envelope.reverse_path))
        else {
            // settled or held since it was found
            continue;
        };
        if failing.contains(&domain) {
            continue;
        }
        asked += 1;
        let telling = AssertUnwindSafe(tell(context, id, late)).catch_unwind();
        match telling.await {
            Ok(Ok(())) => {}
            Ok(Err(step)) => {
                // ours: the sender is told when it works again
                tracing::warn!(queue_id = %id, ?step, "a delay cannot be reported now");
                failing.insert(domain);
            }
            Err(_) => tracing::error!(queue_id = %id, "reporting a delay panicked"),
        }
    }
    last
}

/// By log time, as for expiry: a clock that jumps makes nothing late.
fn delayed(
    machine: &QueueMachine,
    context: &Context,
    last: Option<Aged>,
) -> Option<(Aged, Vec<u32>)> {
    let after = context.options.schedule.delay_report_ms();
    let received_ms = machine.log_time_ms().checked_sub(after)?;
    machine.index().next_delayed(received_ms, last)
}

fn domain_of(address: &str) -> String {
    let domain = address.rsplit_once('@').map_or("", |(_, domain)| domain);
    domain.to_ascii_lowercase()
}

/// What there is to say about those of these recipients that still wait.
fn late(context: &Context, id: MessageId, numbers: &[u32]) -> Vec<Work> {
    let work = |number: &u32| context.shard.read(|machine| machine.work((id, *number)));
    numbers.iter().filter_map(work).collect()
}

/// Tells the sender that `late` recipients of one mail take long, a report for so many addresses as fit into one.
async fn tell(context: &Context, id: MessageId, late: Vec<Work>) -> Result<(), Step> {
    // members of an alias are one address to whoever wrote to it
    let mut addresses: BTreeMap<(String, String), Vec<Work>> = BTreeMap::new();
    for work in late {
        let original_recipient = work.recipient.original_recipient.clone();
        let address = (work.original_address.clone(), original_recipient);
        addresses.entry(address).or_default().push(work);
    }
    let mut addresses = addresses.into_values();
    loop {
        let together: Vec<Vec<Work>> = addresses.by_ref().take(ADDRESSES_MAX).collect();
        let outcomes = together
            .iter()
            .map(|works| works.iter().map(told).collect());
        let outcomes: Vec<Vec<Outcome>> = outcomes.collect();
        let mut named = together.into_iter().filter_map(last_tried);
        let Some(first) = named.next() else {
            return Ok(());
        };
        let others = named.map(other).collect();
        tell_together(context, id, outcomes, first, others).await?;
    }
}

fn told(work: &Work) -> Outcome {
    Outcome {
        recipient: work.key.1,
        result: Some(Attempt::Delayed(Delayed {})),
    }
}

/// Of several that are one address, the one that was tried last.
fn last_tried(works: Vec<Work>) -> Option<Work> {
    let tried_ms = |work: &Work| work.last_attempt.as_ref().map(|last| last.time_ms);
    works.into_iter().max_by_key(tried_ms)
}

fn other(work: Work) -> Other {
    Other {
        reply: last_reply(&work),
        last_attempt_ms: work.last_attempt.as_ref().map(|last| last.time_ms),
        address: work.original_address,
        original_recipient: work.recipient.original_recipient,
    }
}

fn last_reply(work: &Work) -> Option<Reply> {
    let status = work.last_attempt.as_ref()?.status.as_ref()?;
    Some(Reply::from(status))
}

/// One record for all of them and the report; void when one of them has been settled or told of meanwhile, and then what is left
/// comes round again. So do those addresses that the report has no room for.
async fn tell_together(
    context: &Context,
    id: MessageId,
    outcomes: Vec<Vec<Outcome>>,
    first: Work,
    others: Vec<Other>,
) -> Result<(), Step> {
    let reply = last_reply(&first);
    let schedule = context.options.schedule;
    let event = Event {
        reply: reply.as_ref(),
        last_attempt_ms: first.last_attempt.as_ref().map(|last| last.time_ms),
        retry_until_ms: Some(schedule.expires_ms(first.envelope.received_ms, false)),
        with: others,
        ..Event::now(Action::Delayed)
    };
    let mut job = Job {
        context,
        entry: Entry::new(first.key, &first.tenant),
        work: first,
        answered: Vec::new(),
    };
    // nobody to tell is told once too
    let report = report::compose(&mut job, event).await?;
    let told = report.as_ref().map_or(outcomes.len(), |report| report.told);
    let command = Command::Attempted(Attempted {
        message_id: Bytes::copy_from_slice(&id.to_bytes()),
        outcomes: outcomes.into_iter().take(told).flatten().collect(),
        report: report.as_ref().map(|report| report.accept.clone()),
    });
    let answer = context.facts.commit(command).await;
    if let Some(report) = report
        && answer != Answer::Void
    {
        report.queued(id);
    }
    Ok(())
}

//! Into the queue's log, until it takes it: no outcome is ever forgotten while this node runs. If the node ends first, the
//! recipient is tried again and the mailbox recognises it by its delivery id.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use hikyaku_log::AppendError;
use hikyaku_mail::id::MessageId;
use hikyaku_proto::convert::message_id;
use hikyaku_proto::v1::outcome::Result as Attempt;
use hikyaku_proto::v1::{Accept, Attempted, Held, Outcome, record::Command};
use hikyaku_queue::held::RECORD_TOO_LARGE;
use hikyaku_queue::machine::{Answer, QueueMachine};
use hikyaku_serve::tasks::Tasks;
use hikyaku_shard::runtime::{ProposeError, Shard};
use tokio::sync::{mpsc, oneshot};

/// Facts waiting to be written.
const WAITING_MAX: usize = 1024;
/// Facts taken together.
const BATCH_MAX: usize = 256;
/// Between tries while the log takes nothing: first and longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

struct Fact {
    message: MessageId,
    outcome: Outcome,
    recorded: oneshot::Sender<()>,
}

/// Records what came of attempts; facts about one message that come together share a record. Clones share the writer.
#[derive(Clone)]
pub struct Facts {
    shard: Shard<QueueMachine>,
    waiting: mpsc::Sender<Fact>,
}

impl Facts {
    /// Starts the writer for `shard`. It ends with the last clone.
    pub fn start(tasks: &Tasks, shard: &Shard<QueueMachine>) -> Facts {
        let (waiting, facts) = mpsc::channel(WAITING_MAX);
        tasks.spawn("facts", write(tasks.clone(), shard.clone(), facts));
        Facts {
            shard: shard.clone(),
            waiting,
        }
    }

    /// Commit point C: returns when the outcome is in the log and applied.
    pub async fn record(&self, message: MessageId, recipient: u32, result: Attempt) {
        let outcome = Outcome {
            recipient,
            result: Some(result),
        };
        let (recorded, done) = oneshot::channel();
        let fact = Fact {
            message,
            outcome: outcome.clone(),
            recorded,
        };
        if self.waiting.send(fact).await.is_ok() && done.await.is_ok() {
            return;
        }
        // the writer is gone, which only a panic of its own can do
        self.commit(attempted(message, vec![outcome])).await;
    }

    /// [`Facts::record`] for the only recipient of a message: nothing could share its record.
    pub async fn record_alone(&self, message: MessageId, recipient: u32, result: Attempt) {
        let outcome = Outcome {
            recipient,
            result: Some(result),
        };
        self.commit(attempted(message, vec![outcome])).await;
    }

    /// Records an outcome and the report of it in one record, apart from other facts.
    pub async fn report(
        &self,
        message: MessageId,
        recipient: u32,
        result: Attempt,
        report: Accept,
    ) -> Answer {
        let outcome = Outcome {
            recipient,
            result: Some(result),
        };
        self.commit(Command::Attempted(Attempted {
            message_id: Bytes::copy_from_slice(&message.to_bytes()),
            outcomes: vec![outcome],
            report: Some(report),
        }))
        .await
    }

    /// Offers `command` to the log until it has been applied, and says what that did. A repeat after an unknown outcome can
    /// hear [`Answer::Void`] although the first one had its effect. One that is too large for the log is [`Answer::Void`], and
    /// what can be said more shortly is recorded in its place: an outcome without its report, or that an operator must look at the
    /// recipients it names (held, `record-too-large`).
    pub async fn commit(&self, command: Command) -> Answer {
        commit(&self.shard, command).await
    }
}

async fn write(tasks: Tasks, shard: Shard<QueueMachine>, mut facts: mpsc::Receiver<Fact>) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while facts.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let mut by_message: BTreeMap<MessageId, Vec<Fact>> = BTreeMap::new();
        for fact in batch.drain(..) {
            by_message.entry(fact.message).or_default().push(fact);
        }
        for (message, facts) in by_message {
            let shard = shard.clone();
            tasks.spawn("record facts", async move {
                let (outcomes, waiters): (Vec<_>, Vec<_>) = facts
                    .into_iter()
                    .map(|fact| (fact.outcome, fact.recorded))
                    .unzip();
                commit(&shard, attempted(message, outcomes)).await;
                for waiter in waiters {
                    let _ = waiter.send(());
                }
            });
        }
    }
}

fn attempted(message: MessageId, outcomes: Vec<Outcome>) -> Command {
    Command::Attempted(Attempted {
        message_id: Bytes::copy_from_slice(&message.to_bytes()),
        outcomes,
        report: None,
    })
}

async fn commit(shard: &Shard<QueueMachine>, command: Command) -> Answer {
    if let Some(answer) = offer(shard, &command).await {
        return answer;
    }
    let mut next = shorter(&command);
    while let Some(command) = next {
        if offer(shard, &command).await.is_some() {
            break;
        }
        next = shorter(&command);
    }
    // whatever was recorded, it was not this
    Answer::Void
}

/// What applying `command` did, once the log has taken it; `None` when it never will.
async fn offer(shard: &Shard<QueueMachine>, command: &Command) -> Option<Answer> {
    let cmd_id = shard.ambient().command_id();
    let (mut delay, longest) = RETRY;
    loop {
        match shard.propose_as(cmd_id, command.clone()).await {
            Ok(committed) => return Some(committed.answer),
            Err(ProposeError::Refused(error @ AppendError::TooLarge)) => {
                let queue_id = message_of(command).map(|id| id.to_string());
                tracing::error!(shard = %shard.id(), queue_id, %error, "a record fits no log; a shorter one takes its place");
                return None;
            }
            Err(error) => {
                tracing::warn!(shard = %shard.id(), %error, "the log did not take a record; trying again");
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(longest);
            }
        }
    }
}

fn message_of(command: &Command) -> Option<MessageId> {
    let id = match command {
        Command::Attempted(attempted) => &attempted.message_id,
        Command::Bounce(bounce) => &bounce.message_id,
        Command::Routed(routed) => &routed.message_id,
        _ => return None,
    };
    message_id(id).ok()
}

/// What is recorded in the place of `command`, which is too large; `None` when there is nothing shorter to say.
fn shorter(command: &Command) -> Option<Command> {
    let message = message_of(command)?;
    let recipients: Vec<u32> = match command {
        Command::Attempted(told) if told.report.is_some() => {
            return Some(attempted(message, told.outcomes.clone()));
        }
        Command::Attempted(told) if told.outcomes.iter().all(is_held_for_length) => return None,
        Command::Attempted(told) => told.outcomes.iter().map(|told| told.recipient).collect(),
        Command::Bounce(bounce) => bounce.recipients.iter().map(|one| one.recipient).collect(),
        Command::Routed(routed) => vec![routed.recipient],
        _ => return None,
    };
    let held = |recipient| Outcome {
        recipient,
        result: Some(Attempt::Held(Held {
            reason: RECORD_TOO_LARGE.to_owned(),
        })),
    };
    Some(attempted(
        message,
        recipients.into_iter().map(held).collect(),
    ))
}

fn is_held_for_length(outcome: &Outcome) -> bool {
    matches!(&outcome.result, Some(Attempt::Held(held)) if held.reason == RECORD_TOO_LARGE)
}

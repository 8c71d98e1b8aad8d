//! Recipients of one mail that fail together: the members of a group who are gone, the full mailboxes of a mail that expires. One
//! `Bounce` record fails them and makes the DSN a message of the same shard, so exactly one DSN tells of each.
//!
//! The first one to fail waits as long as others of its mail are being tried, for a few seconds at most, and records all that
//! have failed by then. Nobody waits where nobody else is tried.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hikyaku_mail::dsn::Action;
use hikyaku_mail::id::MessageId;
use hikyaku_mail::reply::Reply;
use hikyaku_proto::v1::{Bounce, BouncedRecipient, Status, record::Command};
use hikyaku_queue::machine::Answer;
use hikyaku_queue::work::Work;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use crate::job::{Context, Job, Step};
use crate::lanes::{Entry, LaneKey};
use crate::report::{self, ADDRESSES_MAX, Composed, Event, Other};

/// How long a failed recipient waits for others of its mail.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// How often it looks whether others are still tried.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Recipients of one record.
const RECIPIENTS_MAX: usize = 1000;

/// A recipient that has failed.
#[derive(Debug)]
pub struct Failed {
    /// The recipient.
    pub work: Work,
    /// Why.
    pub reply: Reply,
    /// Where to say what came of it.
    pub fate: oneshot::Sender<Fate>,
}

/// What came of a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is recorded, with this report unless nobody is told.
    Bounced(Option<MessageId>),
    /// The recipient was settled otherwise or held meanwhile.
    Void,
    /// It cannot be recorded now.
    Later(Step),
}

/// Failed recipients that wait for others of their mail.
#[derive(Debug, Default)]
pub struct Failures {
    by_mail: Mutex<BTreeMap<MessageId, Vec<Failed>>>,
}

impl Failures {
    /// Adds a failed recipient. The first one of a mail hears of [`Together`] and records them all.
    pub fn join(&self, failed: Failed) -> Option<Together<'_>> {
        let message = failed.work.key.0;
        let is_first = {
            let mut by_mail = self.by_mail();
            let together = by_mail.entry(message).or_default();
            together.push(failed);
            together.len() == 1
        };
        // made for the first one only: whoever drops it takes the others with it
        is_first.then(|| Together {
            failures: self,
            message,
            is_taken: false,
        })
    }

    fn numbers(&self, message: MessageId) -> BTreeSet<u32> {
        let by_mail = self.by_mail();
        let failed = by_mail.get(&message).into_iter().flatten();
        failed.map(|failed| failed.work.key.1).collect()
    }

    fn take(&self, message: MessageId) -> Vec<Failed> {
        self.by_mail().remove(&message).unwrap_or_default()
    }

    fn by_mail(&self) -> MutexGuard<'_, BTreeMap<MessageId, Vec<Failed>>> {
        self.by_mail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The failed recipients of one mail, in the hands of the one that records them. When it goes, they hear nothing and come round
/// again.
#[derive(Debug)]
pub struct Together<'a> {
    failures: &'a Failures,
    message: MessageId,
    is_taken: bool,
}

impl Together<'_> {
    /// Waits for others and records all. Adds the lanes whose service has answered.
    pub async fn record(mut self, context: &Context, answered: &mut Vec<LaneKey>) {
        self.wait(context).await;
        let all = self.failures.take(self.message);
        self.is_taken = true;
        // who is told of them, and whether
        let mut audiences: BTreeMap<_, Vec<Failed>> = BTreeMap::new();
        for failed in all {
            let is_told = report::wants(&failed.work, Action::Failed);
            let audience = (is_told, failed.work.errors_to.clone());
            audiences.entry(audience).or_default().push(failed);
        }
        for failed in audiences.into_values() {
            record(context, failed, answered).await;
        }
    }

    async fn wait(&self, context: &Context) {
        let began = Instant::now();
        loop {
            let failed = self.failures.numbers(self.message);
            let is_another_due = || {
                let (shard, now_ms) = (&context.shard, context.now_ms());
                shard.read(|machine| machine.is_another_due(self.message, now_ms, &failed))
            };
            let is_enough = failed.len() >= RECIPIENTS_MAX || began.elapsed() >= WAIT_MAX;
            if is_enough || context.drain.is_cancelled() || !is_another_due() {
                return;
            }
            sleep(LOOK_INTERVAL).await;
        }
    }
}

impl Drop for Together<'_> {
    fn drop(&mut self) {
        if !self.is_taken {
            self.failures.take(self.message);
        }
    }
}

/// Records those of one mail of whom the same one is told, in as few records as reports.
async fn record(context: &Context, mut failed: Vec<Failed>, answered: &mut Vec<LaneKey>) {
    failed.sort_by_key(|failed| failed.work.key.1);
    while !failed.is_empty() {
        let mut addresses = next(&mut failed);
        let report = match compose(context, &addresses, answered).await {
            Ok(report) => report,
            Err(step) => {
                let all = addresses.into_iter().flatten().chain(failed);
                return tell(all, &Fate::Later(step));
            }
        };
        if let Some(report) = &report {
            // the next report tells of those that this one has no room for
            let untold = addresses.split_off(report.told.min(addresses.len()));
            failed.extend(untold.into_iter().flatten());
        }
        let together: Vec<Failed> = addresses.into_iter().flatten().collect();
        let left = commit(context, together, report).await;
        failed.extend(left);
    }
}

/// The next recipients for one report, those together that are one address to whoever is told.
fn next(failed: &mut Vec<Failed>) -> Vec<Vec<Failed>> {
    let mut addresses: BTreeMap<_, Vec<Failed>> = BTreeMap::new();
    let mut left = Vec::new();
    for (count, one) in failed.drain(..).enumerate() {
        let (address, original_recipient) = report::named(&one.work, Action::Failed);
        let reply = one.reply.to_string();
        let name = (address.to_owned(), original_recipient.to_owned(), reply);
        let has_room = addresses.len() < ADDRESSES_MAX || addresses.contains_key(&name);
        if has_room && count - left.len() < RECIPIENTS_MAX {
            addresses.entry(name).or_default().push(one);
        } else {
            left.push(one);
        }
    }
    *failed = left;
    addresses.into_values().collect()
}

/// The report of one recipient of each address; `None` where nobody is told.
async fn compose(
    context: &Context,
    addresses: &[Vec<Failed>],
    answered: &mut Vec<LaneKey>,
) -> Result<Option<Composed>, Step> {
    let mut named = addresses.iter().filter_map(|together| together.first());
    let Some(first) = named.next() else {
        return Ok(None);
    };
    if !report::wants(&first.work, Action::Failed) {
        return Ok(None);
    }
    let mut job = Job {
        context,
        entry: Entry::new(first.work.key, &first.work.tenant),
        work: first.work.clone(),
        answered: Vec::new(),
    };
    let event = Event {
        with: named.map(other).collect(),
        ..Event::failed(&first.reply)
    };
    let report = report::compose(&mut job, event).await;
    answered.append(&mut job.answered);
    report
}

fn other(failed: &Failed) -> Other {
    let (address, original_recipient) = report::named(&failed.work, Action::Failed);
    Other {
        address: address.to_owned(),
        original_recipient: original_recipient.to_owned(),
        reply: Some(failed.reply.clone()),
        last_attempt_ms: None,
    }
}

/// One record of all of them. Returns those that are still to be recorded: the record is void when one of them was settled
/// otherwise meanwhile.
async fn commit(context: &Context, failed: Vec<Failed>, report: Option<Composed>) -> Vec<Failed> {
    let Some(message) = failed.first().map(|failed| failed.work.key.0) else {
        return Vec::new();
    };
    let recipients = failed.iter().map(|failed| BouncedRecipient {
        recipient: failed.work.key.1,
        status: Some(Status::from(&failed.reply)),
    });
    let bounce = Command::Bounce(Bounce {
        message_id: Bytes::copy_from_slice(&message.to_bytes()),
        recipients: recipients.collect(),
        dsn: report.as_ref().map(|report| report.accept.clone()),
    });
    if context.facts.commit(bounce).await != Answer::Void {
        if let Some(report) = &report {
            report.queued(message);
        }
        tell(failed, &Fate::Bounced(report.map(|report| report.id)));
        return Vec::new();
    }
    let waits = |failed: &Failed| {
        let key = failed.work.key;
        context.shard.read(|machine| machine.work(key)).is_some()
    };
    let (left, gone): (Vec<Failed>, Vec<Failed>) = failed.into_iter().partition(waits);
    if gone.is_empty() {
        // no reason to be void: they come round again
        tell(left, &Fate::Void);
        return Vec::new();
    }
    tell(gone, &Fate::Void);
    left
}

fn tell(failed: impl IntoIterator<Item = Failed>, fate: &Fate) {
    for one in failed {
        let _ = one.fate.send(fate.clone());
    }
}

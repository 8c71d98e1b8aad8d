//! One step for one recipient: what it needs, and what it can come to.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hikyaku_blob::Blobs;
use hikyaku_directory::{Directory, Resolution, Unavailable};
use hikyaku_mail::id::MessageId;
use hikyaku_mail::maillog;
use hikyaku_mail::path::Mailbox;
use hikyaku_mail::reply::Reply;
use hikyaku_proto::transport::Transport;
use hikyaku_proto::v1::home_client::HomeClient;
use hikyaku_proto::v1::mailbox_client::MailboxClient;
use hikyaku_proto::v1::outcome::Result as Attempt;
use hikyaku_proto::v1::recipient::Target;
use hikyaku_proto::v1::{Body, Deferred, Held, Record, Status};
use hikyaku_queue::bodies::body_in;
use hikyaku_queue::held;
use hikyaku_queue::index::RecipientKey;
use hikyaku_queue::machine::{Answer, QueueMachine};
use hikyaku_queue::work::Work;
use hikyaku_serve::metrics;
use hikyaku_shard::runtime::Shard;
use prost::Message as _;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::facts::Facts;
use crate::failures::Failures;
use crate::homes::Homes;
use crate::lanes::{Entry, LaneKey, Lanes};
use crate::leader::DeliveryOptions;
use crate::placement::Placement;
use crate::report::Composed;
use crate::{courier, expand};

/// Waiting for the directory, Home or the log to answer.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Locks for accounts that mail is being settled for.
const SETTLING: u64 = 64;
/// Times that the wait for an entry that somebody has to mend doubles: 40 minutes as the schedule is delivered.
const DOUBT_DOUBLINGS_MAX: u32 = 3;

/// A client for the node that serves a mailbox shard.
pub type MailboxRouter = Arc<dyn Fn(u32) -> MailboxClient<Transport> + Send + Sync>;

/// What all jobs of a leader share.
pub struct Context {
    /// The queue.
    pub shard: Shard<QueueMachine>,
    /// Who recipients are.
    pub directory: Arc<dyn Directory>,
    /// Large bodies, read for reports only.
    pub blobs: Arc<dyn Blobs>,
    /// Who owns accounts.
    pub home: HomeClient<Transport>,
    /// Mailbox shards.
    pub mailboxes: MailboxRouter,
    /// Where new accounts should live.
    pub placement: Placement,
    /// Limits and times.
    pub options: DeliveryOptions,
    settling: Vec<tokio::sync::Mutex<()>>,
    /// Results.
    pub facts: Facts,
    /// Recipients that have failed and wait for others of their mail.
    pub failures: Failures,
    /// Recipients under way, and who waits for what.
    pub lanes: Arc<Mutex<Lanes>>,
    /// A recipient under way has left its lane.
    pub left: Notify,
    /// The node drains: nothing new is started.
    pub drain: CancellationToken,
    homes: Mutex<Homes>,
}

impl Context {
    /// A context with no home learned yet.
    pub fn new(
        shard: Shard<QueueMachine>,
        deps: crate::leader::Deps,
        facts: Facts,
        options: DeliveryOptions,
        drain: CancellationToken,
    ) -> Context {
        Context {
            shard,
            directory: deps.directory,
            blobs: deps.blobs,
            home: deps.home,
            mailboxes: deps.mailboxes,
            placement: deps.placement,
            homes: Mutex::new(Homes::new(options.homes_max)),
            settling: (0..SETTLING)
                .map(|_| tokio::sync::Mutex::default())
                .collect(),
            options,
            facts,
            failures: Failures::default(),
            lanes: Arc::default(),
            left: Notify::new(),
            drain,
        }
    }

    /// Lanes and who is in them.
    pub fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A recipient under way needs its lane no longer: somebody else may have its place.
    pub fn leave_lane(&self, key: RecipientKey) {
        self.lanes().left(key);
        self.left.notify_one();
    }

    /// The owners learned so far.
    pub fn homes(&self) -> MutexGuard<'_, Homes> {
        self.homes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held while a delivery to `account`, or what makes another recipient one with it, is recorded: so one of the two sees the
    /// other, and the sender is told of both. `None` where nobody asked to be told.
    pub async fn settling(
        &self,
        message: MessageId,
        account: &str,
    ) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        let asks = |machine: &QueueMachine| machine.has_notify(message);
        if !self.shard.read(asks) {
            return None;
        }
        let mut hasher = DefaultHasher::new();
        account.hash(&mut hasher);
        let number = usize::try_from(hasher.finish() % SETTLING).ok()?;
        Some(self.settling.get(number)?.lock().await)
    }

    /// This node's clock.
    pub fn now_ms(&self) -> u64 {
        self.shard.ambient().now_ms()
    }
}

/// What a step came to. `Err` is the same: an early end, so that `?` works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The log says all there is to say; the recipient goes back to the index.
    Done,
    /// It goes on in this lane.
    Next(LaneKey),
    /// What this lane is for did not answer: it waits there.
    Failed(LaneKey, String),
}

/// One recipient under way.
pub struct Job<'a> {
    /// What it needs.
    pub context: &'a Context,
    /// What the log said when it started.
    pub work: Work,
    /// What must be remembered between steps.
    pub entry: Entry,
    /// Lanes whose service has answered.
    pub answered: Vec<LaneKey>,
}

/// How a job ended.
#[derive(Debug)]
pub struct Ended {
    /// To be queued again, unless done.
    pub entry: Entry,
    /// What it came to.
    pub step: Step,
    /// Lanes whose service has answered.
    pub answered: Vec<LaneKey>,
}

/// Does the next step for a recipient.
pub async fn run(context: &Context, work: Work, entry: Entry) -> Ended {
    let mut job = Job {
        context,
        work,
        entry,
        answered: Vec::new(),
    };
    let step = match job.step().await {
        Ok(step) | Err(step) => step,
    };
    Ended {
        entry: job.entry,
        step,
        answered: job.answered,
    }
}

impl Job<'_> {
    async fn step(&mut self) -> Result<Step, Step> {
        if self.entry.poison {
            return self.hold(held::POISON).await;
        }
        match self.work.recipient.target.clone() {
            Some(Target::Local(local)) => courier::step(self, &local).await,
            Some(Target::Expand(seen)) => expand::step(self, &seen.seen).await,
            Some(Target::Remote(_)) => self.hold(held::NO_OUTBOUND).await,
            None => self.hold(held::MALFORMED).await,
        }
    }

    /// Leaves the recipient to an operator.
    pub async fn hold(&mut self, reason: &str) -> Result<Step, Step> {
        let held = Held {
            reason: reason.to_owned(),
        };
        self.record(Attempt::Held(held)).await;
        self.settled("held", "", None, reason);
        Ok(Step::Done)
    }

    /// Commit point C for this recipient.
    pub async fn record(&self, result: Attempt) {
        let (message, recipient) = self.work.key;
        let facts = &self.context.facts;
        if self.work.alone {
            facts.record_alone(message, recipient, result).await;
        } else {
            facts.record(message, recipient, result).await;
        }
    }

    /// The same, with what tells the sender of it, which becomes a message with it.
    pub async fn record_with(&self, result: Attempt, report: Option<Composed>) {
        let Some(report) = report else {
            return self.record(result).await;
        };
        let (message, recipient) = self.work.key;
        let facts = &self.context.facts;
        let accept = report.accept.clone();
        if facts.report(message, recipient, result, accept).await != Answer::Void {
            report.queued(message);
        }
    }

    /// What the directory says about `address`. Without it nothing can be done for this recipient: if the address is in doubt
    /// there, it alone waits, by the schedule, and does not expire; for a directory that does not answer, its lane does.
    pub async fn resolve(&mut self, address: &Mailbox) -> Result<Resolution, Step> {
        match self.ask(address).await? {
            Ok(resolution) => Ok(resolution),
            Err(doubt) => Err(self.in_doubt(&doubt).await),
        }
    }

    /// What the directory says about `address`, or that it is in doubt there.
    pub async fn ask(
        &mut self,
        address: &Mailbox,
    ) -> Result<Result<Resolution, Unavailable>, Step> {
        let asked = self.context.directory.resolve(address);
        let failed = |reason: String| Step::Failed(LaneKey::Directory, reason);
        let answer = match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
            Ok(Err(unavailable)) if !unavailable.is_doubt() => {
                return Err(failed(unavailable.reason));
            }
            Ok(answer) => answer,
            Err(_) => return Err(failed("timeout".into())),
        };
        self.answered.push(LaneKey::Directory);
        Ok(answer)
    }

    /// Whether the mail has been tried long enough, by log time.
    pub fn has_expired(&self) -> bool {
        let log_time_ms = self.context.shard.read(|machine| machine.log_time_ms());
        let (envelope, schedule) = (&self.work.envelope, self.context.options.schedule);
        let null_path = envelope.reverse_path.is_empty();
        schedule.has_expired(envelope.received_ms, log_time_ms, null_path)
    }

    fn expires_ms(&self) -> u64 {
        let envelope = &self.work.envelope;
        let null_path = envelope.reverse_path.is_empty();
        let schedule = self.context.options.schedule;
        schedule.expires_ms(envelope.received_ms, null_path)
    }

    /// Tries again later, by the schedule: a trouble of the world's, answered by `at`.
    pub async fn put_off(&self, at: &str, reply: &Reply) -> Step {
        let schedule = self.context.options.schedule;
        let random = self.context.shard.ambient().random();
        let now_ms = self.context.now_ms();
        let due_ms = schedule.due_ms(now_ms, self.work.attempts, random, self.expires_ms());
        self.defer(at, reply, "", due_ms).await
    }

    async fn defer(&self, at: &str, reply: &Reply, reason: &str, due_ms: u64) -> Step {
        let deferred = Deferred {
            status: Some(Status::from(reply)),
            due_ms,
        };
        self.record(Attempt::Deferred(deferred)).await;
        self.attempted(at, reply, reason, due_ms);
        Step::Done
    }

    async fn in_doubt(&self, doubt: &Unavailable) -> Step {
        let attempts = self.work.attempts.min(DOUBT_DOUBLINGS_MAX);
        let random = self.context.shard.ambient().random();
        let schedule = self.context.options.schedule;
        let due_ms = self.context.now_ms() + schedule.delay_ms(attempts, random);
        let reply = doubt.reply();
        self.defer("directory", &reply, &doubt.reason, due_ms).await
    }

    /// The lane it waits in for its next step.
    pub fn lane(&self) -> LaneKey {
        match (&self.work.recipient.target, self.entry.owner) {
            (Some(Target::Local(_)), Some(owner)) => LaneKey::Mbox(owner.shard),
            (Some(Target::Local(_)), None) => LaneKey::Home,
            _ => LaneKey::Directory,
        }
    }

    /// The content, from memory or from the log.
    pub async fn body(&mut self) -> Result<Body, Step> {
        if let Some(body) = &self.work.body {
            return Ok(body.clone());
        }
        let failed = |reason: String| Step::Failed(LaneKey::Body, reason);
        let shard = &self.context.shard;
        let reading = shard.log().read_at(shard.id(), self.work.body_at);
        let record = tokio::time::timeout(ANSWER_TIMEOUT, reading)
            .await
            .map_err(|_| failed("timeout".into()))?
            .map_err(|error| failed(error.to_string()))?;
        let body = Record::decode(record.payload)
            .ok()
            .and_then(|record| body_in(record, self.work.key.0));
        self.answered.push(LaneKey::Body);
        body.ok_or_else(|| failed(format!("record {} holds no content", self.work.body_at)))
    }

    /// Writes the postmaster's line about an attempt that settles nothing.
    fn attempted(&self, at: &str, reply: &Reply, reason: &str, next_attempt_ms: u64) {
        metrics::DEFERRED.add(1);
        maillog::attempted(maillog::Attempted {
            queue_id: self.work.key.0,
            number: self.work.key.1,
            recipient: &self.work.recipient.address,
            tenant: &self.entry.tenant,
            at,
            reply,
            reason,
            next_attempt_ms: Some(next_attempt_ms),
        });
    }

    /// Writes the postmaster's line about how the recipient ended.
    pub fn settled(&self, outcome: &str, at: &str, reply: Option<&Reply>, reason: &str) {
        metrics::SETTLED.count_value(outcome);
        maillog::settled(maillog::Settled {
            queue_id: self.work.key.0,
            number: self.work.key.1,
            recipient: &self.work.recipient.address,
            tenant: &self.entry.tenant,
            outcome,
            at,
            reply,
            reason,
        });
    }
}

//! The leader of one queue shard: takes whoever is due, starts their jobs within limits, and puts them where they came to.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use futures_util::FutureExt as _;
use hikyaku_blob::Blobs;
use hikyaku_directory::Directory;
use hikyaku_mail::id::MessageId;
use hikyaku_proto::transport::Transport;
use hikyaku_proto::v1::home_client::HomeClient;
use hikyaku_queue::machine::QueueMachine;
use hikyaku_serve::tasks::Tasks;
use hikyaku_shard::lead;
use hikyaku_shard::runtime::Shard;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::carry;
use crate::control::QueueControl;
use crate::delays;
use crate::facts::Facts;
use crate::job::{self, Context, Ended, MailboxRouter, Step};
use crate::lanes::{Entry, LaneKey, Lanes, Started};
use crate::placement::Placement;
use crate::schedule::Schedule;

/// Recipients taken from the index at once.
const TAKE_MAX: usize = 1000;
/// Ended jobs looked at together.
const ENDED_MAX: usize = 256;
/// The index is looked at this often even when nothing says so: the wall clock may have jumped.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// Panics over one message before its recipients are held.
const PANICS_MAX: u32 = 3;
/// Messages whose panics are remembered.
const PANICKED_MAX: usize = 10_000;
/// Octets of content above which a body is a reference.
const INLINE_BYTES_MAX: u64 = 128 * 1024;

/// Limits and times of a leader.
#[derive(Clone, Debug)]
pub struct DeliveryOptions {
    /// Our name, for reports.
    pub host_name: String,
    /// Recipients under way at once.
    pub in_flight_max: usize,
    /// Octets of content under way at once.
    pub in_flight_bytes_max: u64,
    /// Recipients under way to one mailbox shard.
    pub mbox_concurrency_max: usize,
    /// Recipients waiting at once for Home, and as many for the directory.
    pub lookup_concurrency_max: usize,
    /// Waiting for the directory to say an account's quota.
    pub quota_timeout: Duration,
    /// When to try again and when to give up.
    pub schedule: Schedule,
    /// Owners of accounts remembered.
    pub homes_max: usize,
    /// Garbage in the shard's log that is never worth carrying for.
    pub garbage_bytes_min: u64,
    /// Octets carried per second.
    pub carry_bytes_per_second: u64,
}

impl Default for DeliveryOptions {
    fn default() -> DeliveryOptions {
        DeliveryOptions {
            host_name: "localhost".to_owned(),
            in_flight_max: 2000,
            in_flight_bytes_max: 64 << 20,
            mbox_concurrency_max: 64,
            lookup_concurrency_max: 64,
            quota_timeout: Duration::from_secs(1),
            schedule: Schedule::default(),
            homes_max: 100_000,
            garbage_bytes_min: 32 << 20,
            carry_bytes_per_second: 16 << 20,
        }
    }
}

/// What a leader asks others for.
#[derive(Clone)]
pub struct Deps {
    /// Who recipients are.
    pub directory: Arc<dyn Directory>,
    /// Large bodies.
    pub blobs: Arc<dyn Blobs>,
    /// Who owns accounts.
    pub home: HomeClient<Transport>,
    /// Mailbox shards, by index.
    pub mailboxes: MailboxRouter,
    /// Where new accounts should live.
    pub placement: Placement,
}

/// Leads queue shards.
pub struct Leader;

impl Leader {
    /// Leads `shard` until the node drains: then nothing new is started, and what is under way is finished and recorded.
    pub fn start(
        tasks: &Tasks,
        shard: Shard<QueueMachine>,
        deps: Deps,
        options: DeliveryOptions,
    ) -> QueueControl {
        let facts = Facts::start(tasks, &shard);
        let context = Context::new(shard.clone(), deps, facts, options, tasks.draining());
        let control = QueueControl {
            shard,
            lanes: context.lanes.clone(),
            nudge: Arc::new(Notify::new()),
        };
        let dispatcher = Dispatcher {
            tasks: tasks.clone(),
            context: Arc::new(context),
            panics: BTreeMap::new(),
        };
        let nudge = control.nudge.clone();
        tasks.spawn("queue leader", dispatcher.run(nudge));
        control
    }
}

/// A job's end as the dispatcher hears it.
struct Report {
    started: Started,
    /// `None`: it panicked.
    ended: Option<Ended>,
}

struct Dispatcher {
    tasks: Tasks,
    context: Arc<Context>,
    panics: BTreeMap<MessageId, u32>,
}

impl Dispatcher {
    async fn run(mut self, nudge: Arc<Notify>) {
        let drain = self.tasks.draining();
        tokio::select! {
            biased;
            () = drain.cancelled() => return,
            begun = lead::begin(&self.tasks, &self.context.shard) => if begun.is_err() {
                // parked: nothing can be recorded, so nothing is delivered
                return;
            }
        }
        let carrying = carry::run(self.context.clone(), drain.clone());
        self.tasks.spawn("carry", carrying);
        let telling = delays::run(self.context.clone(), drain.clone());
        self.tasks.spawn("delay reports", telling);
        let (sender, mut reports) = mpsc::channel(self.context.options.in_flight_max.max(1));
        let mut applied = self.context.shard.applied();
        let mut batch = Vec::with_capacity(ENDED_MAX);
        loop {
            let draining = drain.is_cancelled();
            applied.borrow_and_update();
            if !draining {
                self.take();
                self.start_jobs(&sender);
            } else if self.lanes().running() == 0 {
                return;
            }
            let look_at = self.look_at(draining);
            tokio::select! {
                biased;
                _ = reports.recv_many(&mut batch, ENDED_MAX) => {
                    for report in batch.drain(..) {
                        self.ended(report);
                    }
                }
                () = drain.cancelled(), if !draining => {}
                () = nudge.notified() => self.lanes().nudge(Instant::now()),
                // there is room for another one
                () = self.context.left.notified() => {}
                _ = applied.changed(), if !draining => {}
                () = tokio::time::sleep_until(look_at) => {}
            }
        }
    }

    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.context.lanes()
    }

    /// Moves whoever is due from the index into lanes.
    fn take(&self) {
        let now_ms = self.context.now_ms();
        let latest_ms = now_ms.saturating_add(self.context.options.schedule.delay_max_ms());
        loop {
            let due = self.context.shard.read_mut(|machine| {
                let keys = machine.take_due(now_ms, latest_ms, TAKE_MAX);
                let route = |key| {
                    let (tenant, account) = machine.route(key)?;
                    Some((Entry::new(key, tenant), account))
                };
                keys.into_iter().filter_map(route).collect::<Vec<_>>()
            });
            let last = due.len() < TAKE_MAX;
            let homes = self.context.homes();
            let mut lanes = self.lanes();
            for (mut entry, account) in due {
                entry.owner = account.as_deref().and_then(|account| homes.find(account));
                let lane = match (&account, entry.owner) {
                    (None, _) => LaneKey::Directory,
                    (Some(_), None) => LaneKey::Home,
                    (Some(_), Some(owner)) => LaneKey::Mbox(owner.shard),
                };
                lanes.push(lane, entry);
            }
            if last {
                return;
            }
        }
    }

    /// Starts jobs while limits allow.
    fn start_jobs(&self, sender: &mpsc::Sender<Report>) {
        let options = &self.context.options;
        let (in_flight_max, bytes_max) = (options.in_flight_max, options.in_flight_bytes_max);
        let (mbox, lookup) = (
            options.mbox_concurrency_max.max(1),
            options.lookup_concurrency_max.max(1),
        );
        let window = |lane| match lane {
            LaneKey::Mbox(_) => mbox,
            LaneKey::Body | LaneKey::Directory | LaneKey::Home => lookup,
        };
        loop {
            let started = {
                let mut lanes = self.lanes();
                if lanes.running() >= in_flight_max || lanes.bytes() >= bytes_max {
                    return;
                }
                lanes.pop(Instant::now(), window)
            };
            let Some(started) = started else {
                return;
            };
            let key = started.entry.key;
            let Some(work) = self.context.shard.read(|machine| machine.work(key)) else {
                // held, cancelled, deleted or settled since it was taken
                self.lanes().ended(&started);
                self.give_back(&started.entry);
                continue;
            };
            self.lanes().holds(key, work.size.min(INLINE_BYTES_MAX));
            let context = self.context.clone();
            let sender = sender.clone();
            self.tasks.spawn("courier", async move {
                // boxed here: a job is large, and moved several times on its way into a task
                let running = Box::pin(job::run(&context, work, started.entry.clone()));
                let ended = AssertUnwindSafe(running).catch_unwind().await.ok();
                let report = Report { started, ended };
                let _ = sender.send(report).await;
            });
        }
    }

    fn ended(&mut self, report: Report) {
        let started = report.started;
        let Some(ended) = report.ended else {
            let entry = self.panicked(started.entry.clone());
            let mut lanes = self.lanes();
            lanes.ended(&started);
            lanes.push(started.lane, entry);
            return;
        };
        let now = Instant::now();
        let done = ended.step == Step::Done;
        let mut lanes = self.lanes();
        lanes.ended(&started);
        for lane in ended.answered {
            lanes.succeeded(lane, now);
        }
        match ended.step {
            Step::Done => {}
            Step::Next(lane) => lanes.push(lane, ended.entry.clone()),
            Step::Failed(lane, reason) => {
                lanes.failed(lane, started.at, now, &reason);
                lanes.push(lane, ended.entry.clone());
            }
        }
        drop(lanes);
        if done {
            self.give_back(&ended.entry);
            self.panics.remove(&ended.entry.key.0);
        }
    }

    /// Counts a panic; a message that has caused several is left to an operator, never to a loop.
    fn panicked(&mut self, mut entry: Entry) -> Entry {
        let message = entry.key.0;
        let panics = self.panics.entry(message).or_default();
        *panics += 1;
        tracing::error!(queue_id = %message, panics = *panics, "a delivery panicked");
        entry.poison = *panics >= PANICS_MAX;
        if self.panics.len() > PANICKED_MAX {
            self.panics.pop_first();
        }
        entry
    }

    fn give_back(&self, entry: &Entry) {
        let key = entry.key;
        self.context
            .shard
            .read_mut(|machine| machine.give_back(key));
    }

    /// When to look again if nothing happens.
    fn look_at(&self, draining: bool) -> Instant {
        let now = Instant::now();
        let options = &self.context.options;
        // where nothing may start, the end of a job is waited for: a time that has come would be looked at for ever
        let is_full = {
            let lanes = self.lanes();
            let bytes_max = options.in_flight_bytes_max;
            lanes.running() >= options.in_flight_max || lanes.bytes() >= bytes_max
        };
        if draining || is_full {
            return now + LOOK_INTERVAL;
        }
        let next_due_ms = self
            .context
            .shard
            .read(|machine| machine.index().next_due());
        let due = next_due_ms.map(|due_ms| {
            now + Duration::from_millis(due_ms.saturating_sub(self.context.now_ms()))
                .min(LOOK_INTERVAL)
        });
        let probe = self.lanes().next_probe();
        let look = [Some(now + LOOK_INTERVAL), due, probe];
        look.into_iter().flatten().min().unwrap_or(now)
    }
}

//! Runs the load: each session takes the next message, sends it when it is due, and writes down what was said.
//!
//! Every attempt goes through the ledger. With `reconnect_on_error` a broken session is opened again and its message
//! replaced by a new attempt, until enough are acknowledged or the deadline has come.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::equation::Class;
use crate::ledger::{Event, Writer, classify};
use crate::letter::{Letter, Paper};
use crate::machine::{Machine, own_seconds};
use crate::progress::Progress;
use crate::random::Random;
use crate::report::{Conditions, RunReport};
use crate::run::{RunOptions, Senders, Watch};
use crate::schedule::{Job, Schedule};
use crate::smtp::{Reply, Session, Transaction};
use crate::tally::Tally;

/// The first and the longest pause before a session is opened again or a deferred message tried again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));
/// How long a session that waits for a message to be due may overlook that the run is to end.
const NAP: Duration = Duration::from_millis(50);
/// For starting one session's thread before the schedule begins.
const LEAD: Duration = Duration::from_micros(200);
/// A session thread's stack.
const STACK: usize = 1 << 20;

/// Runs the load to its end.
pub fn run(options: &RunOptions, watch: &Arc<Watch>) -> anyhow::Result<RunReport> {
    options.check()?;
    let mut machine = Machine::here();
    let own = own_seconds();
    let load = Load::new(options, watch)?;
    let bar = Progress {
        what: "acknowledged",
        total: options.messages,
    };
    let count = |number: &AtomicU64| number.load(Ordering::Relaxed);
    let now = || {
        let remark = format!(
            "{} attempts, {} connections",
            count(&watch.attempts),
            count(&watch.connections)
        );
        (count(&watch.acknowledged), remark)
    };
    let all = bar.during(options.progress, now, || load.run())?;
    machine.ended();
    let mut report = RunReport {
        conditions: load.conditions(machine, all.users_refused),
        seed: options.seed,
        messages: options.messages,
        attempts: count(&watch.attempts),
        acknowledged: count(&watch.acknowledged),
        connections: count(&watch.connections),
        ..RunReport::default()
    };
    all.fill(&mut report, load.began(), own_seconds() - own);
    Ok(report)
}

/// A run under way.
struct Load<'a> {
    options: &'a RunOptions,
    watch: &'a Watch,
    ledger: Writer,
    schedule: Mutex<Schedule>,
    /// Of each user, whether the server has accepted a RCPT.
    accepted: Vec<AtomicBool>,
    /// Whether all sessions so far pipelined.
    pipelining: AtomicBool,
    /// What the first session under TLS agreed on with the server.
    agreed: OnceLock<String>,
}

/// What one session works with.
#[derive(Default)]
struct Hand {
    tally: Tally,
    open: Option<Session>,
    /// Messages that the open session has carried.
    carried: u64,
    paper: Paper,
}

/// What is to become of the message after one attempt.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Acknowledged,
    Refused,
    Again,
}

/// How a message ended.
enum End {
    Acknowledged(Instant),
    Unanswered,
    /// For another session to send.
    GivenBack,
}

impl<'a> Load<'a> {
    fn new(options: &'a RunOptions, watch: &'a Watch) -> anyhow::Result<Load<'a>> {
        Ok(Load {
            options,
            watch,
            ledger: Writer::open(&options.ledger, options.seed)?,
            schedule: Mutex::new(Schedule::new(options.messages, options.rate, options.seed)),
            accepted: options
                .users
                .iter()
                .map(|_| AtomicBool::new(false))
                .collect(),
            pipelining: AtomicBool::new(true),
            agreed: OnceLock::new(),
        })
    }

    /// Sends everything.
    fn run(&self) -> anyhow::Result<Tally> {
        let mut all = self.sessions()?;
        let ended = Instant::now();
        self.leave_the_rest(&mut all, ended)?;
        all.end(ended);
        self.ledger.sync()?;
        Ok(all)
    }

    /// When the first message was, or was due, to be sent.
    fn began(&self) -> Instant {
        *self.watch.began.get_or_init(Instant::now)
    }

    /// All session threads.
    fn sessions(&self) -> anyhow::Result<Tally> {
        let mut hands: Vec<Hand> = (0..self.options.sessions)
            .map(|_| Hand::default())
            .collect();
        if self.options.rate.is_some() {
            // The schedule does not wait, so the connections stand before it begins; unless connecting is part of what
            // is measured.
            for hand in &mut hands {
                if self.options.messages_per_connection.is_none() {
                    self.connect(hand);
                }
            }
            let lead = LEAD.saturating_mul(u32::try_from(hands.len()).unwrap_or(u32::MAX));
            self.watch.began.get_or_init(|| Instant::now() + lead);
        } else {
            self.began();
        }
        std::thread::scope(|scope| {
            let mut threads = Vec::with_capacity(hands.len());
            for hand in hands {
                let builder = std::thread::Builder::new().stack_size(STACK);
                let thread = builder.spawn_scoped(scope, move || self.session(hand));
                if thread.is_err() {
                    self.watch.stop.store(true, Ordering::Relaxed);
                }
                threads.push(thread.context("session thread"));
            }
            let mut all = Tally::default();
            for thread in threads {
                let done = thread?.join();
                all.merge(done.map_err(|_| anyhow::anyhow!("a session panicked"))??);
            }
            Ok(all)
        })
    }

    /// One session: takes messages until none is left. An error here is the ledger's, and ends the run.
    fn session(&self, mut hand: Hand) -> anyhow::Result<Tally> {
        while let Some(job) = self.take() {
            match self.send(job, &mut hand) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    self.watch.stop.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
        if let Some(session) = hand.open {
            session.quit();
        }
        Ok(hand.tally)
    }

    /// Brings one message to its end. False when the session is not to go on.
    fn send(&self, job: Job, hand: &mut Hand) -> anyhow::Result<bool> {
        let picked = Instant::now();
        let due = job.due.map(|since| self.began() + since);
        let mut random = Random::new(self.options.seed ^ Random::new(job.number).bits());
        let letter = hand.paper.write(self.options, job.number, &mut random)?;
        let composing = picked.elapsed();
        match due {
            // A free session composes ahead and waits: only its own lateness is between due and sent.
            Some(due) if due > picked => {
                if !self.sleep_until(due) {
                    hand.tally.unanswered.push(due);
                    return Ok(false);
                }
                hand.tally.lag.record(due.elapsed());
            }
            Some(due) => {
                hand.tally.wait.record(picked - due);
                hand.tally.own += composing;
            }
            None => hand.tally.own += composing,
        }
        let busy_from = due.map_or(picked, |due| due.max(picked));
        let (end, go_on) = self.deliver(job, letter, &mut random, hand)?;
        hand.tally.busy += busy_from.elapsed();
        match (due, end) {
            (Some(due), End::Acknowledged(at)) => hand.tally.due.record(at - due),
            // Whatever the reason: a server that refuses quickly is not quick.
            (Some(due), End::Unanswered) => hand.tally.unanswered.push(due),
            (Some(_), End::GivenBack) | (None, _) => {}
        }
        Ok(go_on)
    }

    /// Attempts one message until it is done with. Also says whether the session is to go on.
    fn deliver<'l>(
        &'l self,
        job: Job,
        mut letter: Letter<'l>,
        random: &mut Random,
        hand: &mut Hand,
    ) -> anyhow::Result<(End, bool)> {
        let persistent = self.options.reconnect_on_error;
        let mut pause = PAUSE.0;
        loop {
            if hand.open.is_none() && !self.connect(hand) {
                if !persistent {
                    self.give_back(job);
                    return Ok((End::GivenBack, false));
                }
            } else {
                let (next, broken) = self.attempt(&letter, hand)?;
                let at = Instant::now();
                if broken {
                    hand.open = None;
                }
                self.part(hand);
                if next == Next::Acknowledged {
                    return Ok((End::Acknowledged(at), !broken || persistent));
                }
                if next == Next::Refused || !persistent {
                    return Ok((End::Unanswered, !broken || persistent));
                }
                // what was tried under one id is never sent again under it
                letter = hand.paper.write(self.options, job.number, random)?;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(PAUSE.1);
            if self.is_over() {
                return Ok((End::Unanswered, false));
            }
        }
    }

    /// Ends a session that has carried as many messages as one is to carry.
    fn part(&self, hand: &mut Hand) {
        hand.carried += 1;
        let most = self.options.messages_per_connection;
        if most.is_some_and(|most| hand.carried >= most)
            && let Some(session) = hand.open.take()
        {
            session.quit();
        }
    }

    fn connect(&self, hand: &mut Hand) -> bool {
        match Session::open(&self.options.smtp, self.options.timeout) {
            Ok(session) => {
                self.watch.connections.fetch_add(1, Ordering::Relaxed);
                if !session.pipelines() {
                    self.pipelining.store(false, Ordering::Relaxed);
                }
                if let Some(agreed) = session.agreed() {
                    self.agreed.get_or_init(|| agreed);
                }
                hand.open = Some(session);
                hand.carried = 0;
                true
            }
            Err(error) => {
                hand.tally.error(format!("{error:#}"));
                false
            }
        }
    }

    /// One transaction, to the outcome in the ledger. Also says whether the session broke.
    fn attempt(&self, letter: &Letter<'_>, hand: &mut Hand) -> anyhow::Result<(Next, bool)> {
        let Some(session) = hand.open.as_mut() else {
            return Ok((Next::Again, true));
        };
        let addresses: Vec<&str> = letter
            .rcpts
            .iter()
            .map(|at| self.options.users[*at].address.as_str())
            .collect();
        let writing = std::cell::Cell::new(Duration::ZERO);
        let written = std::cell::Cell::new(false);
        let write = |event: &Event| {
            let from = Instant::now();
            let result = self.ledger.append(event);
            writing.set(writing.get() + from.elapsed());
            result
        };
        let attempted = |replies: &[Option<Reply>]| {
            written.set(true);
            write(&Event::Attempt {
                id: letter.id,
                at_ms: crate::now_ms(),
                reverse_path: letter.reverse_path.to_owned(),
                rcpts: addresses.iter().map(|r| (*r).to_owned()).collect(),
                rcpt_replies: replies
                    .iter()
                    .map(|r| r.as_ref().map(|r| r.text.clone()))
                    .collect(),
                hash: letter.hash.clone(),
                size: letter.size,
            })
        };
        self.watch.attempts.fetch_add(1, Ordering::Relaxed);
        let done =
            session.transact(letter.reverse_path, &addresses, &hand.paper.wire, attempted)?;
        if !written.get() {
            attempted(&done.rcpt_replies)?;
        }
        let partial = done.broken.as_ref().map(|b| b.partial.clone());
        write(&Event::Outcome {
            id: letter.id,
            at_ms: crate::now_ms(),
            phase: done.phase,
            reply: done.reply.as_ref().map(|r| r.text.clone()),
            partial: partial.filter(|p| !p.is_empty()),
            error: done.broken.as_ref().map(|b| b.error.clone()),
        })?;
        hand.tally.own += writing.get();
        let next = self.settle(&done, letter, &mut hand.tally);
        Ok((next, done.broken.is_some()))
    }

    /// Counts an outcome and says whether the message is done with.
    fn settle(&self, done: &Transaction, letter: &Letter<'_>, tally: &mut Tally) -> Next {
        let final_reply = done.reply.as_ref().map(|r| r.text.as_str());
        let mut acknowledged = false;
        for (reply, at) in done.rcpt_replies.iter().zip(&letter.rcpts) {
            let text = reply.as_ref().map(|r| r.text.as_str());
            let class = classify(text, done.phase, final_reply);
            acknowledged |= class == Class::Ack;
            tally.recipients.count(class);
            match reply.as_ref().map(|r| r.code / 100) {
                Some(2) => self.accepted[*at].store(true, Ordering::Relaxed),
                Some(5) => tally.users_refused += 1,
                _ => {}
            }
        }
        if let Some(broken) = &done.broken {
            tally.error(format!("{:?}: {}", done.phase, broken.error));
        }
        if acknowledged {
            self.watch.acknowledged.fetch_add(1, Ordering::Relaxed);
            tally.bytes += letter.size;
            tally.last_ack = Some(Instant::now());
            if let Some(latency) = done.content_to_reply {
                tally.data.record(latency);
            }
            return Next::Acknowledged;
        }
        // The first refused recipient explains best why a message came no further.
        let refusal = done
            .rcpt_replies
            .iter()
            .flatten()
            .find(|r| r.code >= 400)
            .or(done.reply.as_ref());
        if let Some(reply) = refusal.filter(|r| r.code >= 400) {
            tally.error(format!("{:?}: {}", done.phase, reply.text));
        }
        match refusal {
            Some(reply) if reply.code / 100 == 5 && done.broken.is_none() => Next::Refused,
            _ => Next::Again,
        }
    }

    fn is_over(&self) -> bool {
        let deadline = self.options.deadline;
        deadline.is_some_and(|d| self.began().elapsed() >= d)
            || self.watch.stop.load(Ordering::Relaxed)
    }

    /// Sleeps, unless the run is to end.
    fn sleep_until(&self, due: Instant) -> bool {
        loop {
            if self.is_over() {
                return false;
            }
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            std::thread::sleep(left.min(NAP));
        }
    }

    /// Takes one of the messages that are left, unless the run is to end.
    fn take(&self) -> Option<Job> {
        if self.is_over() {
            return None;
        }
        self.schedule.lock().ok()?.take()
    }

    fn give_back(&self, job: Job) {
        if let Ok(mut schedule) = self.schedule.lock() {
            schedule.give_back(job);
        }
    }

    /// What was due and nobody got to has waited until the end: left out, it would be the stall that nobody sees.
    fn leave_the_rest(&self, all: &mut Tally, ended: Instant) -> anyhow::Result<()> {
        let mut schedule = self
            .schedule
            .lock()
            .map_err(|_| anyhow::anyhow!("a session died with the schedule"))?;
        while let Some(Job { due: Some(due), .. }) = schedule.take() {
            let due = self.began() + due;
            if due >= ended {
                break;
            }
            all.unanswered.push(due);
        }
        Ok(())
    }

    /// What the figures were taken under.
    fn conditions(&self, machine: Machine, users_refused: u64) -> Conditions {
        let options = self.options;
        Conditions {
            size_mix: options.mix.to_string(),
            sessions: options.sessions,
            users: options.users.len(),
            users_accepted: self
                .accepted
                .iter()
                .filter(|a| a.load(Ordering::Relaxed))
                .count(),
            users_refused,
            recipients_per_message: options.recipients_per_message,
            senders: match &options.senders {
                Senders::Users => "users".to_owned(),
                Senders::Null => "null".to_owned(),
                Senders::Fixed(address) => address.clone(),
            },
            tls: match self.agreed.get() {
                Some(agreed) => format!("{}, {agreed}", options.smtp.protection),
                None => options.smtp.protection.to_string(),
            },
            messages_per_connection: options.messages_per_connection,
            pipelining: self.pipelining.load(Ordering::Relaxed),
            rate: options.rate,
            machine,
            setting: options.setting.clone(),
        }
    }
}

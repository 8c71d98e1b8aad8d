//! The load: many sessions in a closed loop, each sending its next message when the last one was answered.
//!
//! Every attempt goes through the ledger. With `reconnect_on_error` a broken session is opened again and its message
//! replaced by a new attempt, until enough are acknowledged or the deadline has come.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::equation::Class;
use crate::histogram::Histogram;
use crate::ledger::{AttemptId, Event, Writer, classify};
use crate::message::{self, Draft};
use crate::random::Random;
use crate::report::{Classes, Conditions, RunReport};
use crate::size::SizeMix;
use crate::smtp::{Reply, Session, Transaction};
use crate::users::User;

/// The most sessions of one run; each is a thread.
pub const SESSIONS_MAX: usize = 4096;
/// The most recipients of one message (RFC 5321 section 4.5.3.1.8 guarantees 100).
pub const RECIPIENTS_MAX: usize = 100;
/// The first and the longest pause before a session is opened again or a deferred message tried again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));
/// How often the ledger is synced.
const SYNC_EVERY: Duration = Duration::from_millis(100);
/// How often progress is shown.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// The most different errors a report lists.
const ERRORS_MAX: usize = 20;
/// A session thread's stack.
const STACK: usize = 256 << 10;

/// Whose name stands in MAIL FROM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Senders {
    /// A random user, who then gets the DSNs.
    Users,
    /// The null reverse-path.
    Null,
    /// Always the same.
    Fixed(String),
}

/// What to do.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// The server; loopback.
    pub smtp: SocketAddr,
    /// Who gets mail.
    pub users: Vec<User>,
    /// How many messages must be acknowledged.
    pub messages: u64,
    /// How big they are.
    pub mix: SizeMix,
    /// How many sessions at once.
    pub sessions: usize,
    /// RCPTs of each message.
    pub recipients_per_message: usize,
    /// Go on when a connection breaks or a message is deferred.
    pub reconnect_on_error: bool,
    /// Stop then, done or not.
    pub deadline: Option<Duration>,
    /// Where the ledger is; appended to.
    pub ledger: PathBuf,
    /// Sizes, senders and recipients follow from it (attempt ids do not).
    pub seed: u64,
    /// MAIL FROM.
    pub senders: Senders,
    /// Longest wait for one reply.
    pub timeout: Duration,
    /// Show progress on stderr.
    pub progress: bool,
}

/// What is happening, for whoever watches a run from another thread.
#[derive(Debug, Default)]
pub struct Watch {
    /// Messages acknowledged so far.
    pub acknowledged: AtomicU64,
    /// Attempts begun so far.
    pub attempts: AtomicU64,
    /// Sessions opened so far.
    pub connections: AtomicU64,
    /// Set it to end the run after the transactions under way.
    pub stop: AtomicBool,
}

/// Runs the load to its end.
pub fn run(options: &RunOptions, watch: &Arc<Watch>) -> anyhow::Result<RunReport> {
    ensure!(
        options.smtp.ip().is_loopback(),
        "{} is not loopback: refused",
        options.smtp
    );
    ensure!(
        (1..=SESSIONS_MAX).contains(&options.sessions),
        "sessions must be 1..{SESSIONS_MAX}"
    );
    let rcpts = options.recipients_per_message;
    ensure!(
        (1..=RECIPIENTS_MAX).contains(&rcpts),
        "recipients per message must be 1..{RECIPIENTS_MAX}"
    );
    ensure!(
        rcpts <= options.users.len(),
        "fewer users than recipients per message"
    );
    let load = Load {
        options,
        watch,
        ledger: Writer::open(&options.ledger, options.seed)?,
        left: AtomicI64::new(i64::try_from(options.messages).context("messages")?),
        began: Instant::now(),
    };
    let tallies = load.sessions()?;
    load.ledger.sync()?;
    Ok(load.report(tallies))
}

/// A run under way.
struct Load<'a> {
    options: &'a RunOptions,
    watch: &'a Watch,
    ledger: Writer,
    /// Messages nobody works on yet.
    left: AtomicI64,
    began: Instant,
}

/// What one session counted.
#[derive(Debug, Default)]
struct Tally {
    bytes: u64,
    recipients: Classes,
    latency: Histogram,
    last_ack: Option<Instant>,
    errors: BTreeMap<String, u64>,
}

/// What is to become of the message after one attempt.
enum Next {
    Done,
    Again,
}

impl Load<'_> {
    /// All session threads, and the clerk who syncs the ledger and shows progress.
    fn sessions(&self) -> anyhow::Result<Vec<Tally>> {
        std::thread::scope(|scope| {
            let (working, done) = mpsc::channel::<()>();
            let clerk = scope.spawn(move || self.clerk(&done));
            let mut threads = Vec::with_capacity(self.options.sessions);
            for index in 0..self.options.sessions {
                let builder = std::thread::Builder::new().stack_size(STACK);
                threads.push(
                    builder
                        .spawn_scoped(scope, move || self.session(index))
                        .context("session thread"),
                );
            }
            let mut tallies = Vec::with_capacity(threads.len());
            for thread in threads {
                tallies.push(
                    thread?
                        .join()
                        .map_err(|_| anyhow::anyhow!("a session panicked"))?,
                );
            }
            drop(working);
            clerk
                .join()
                .map_err(|_| anyhow::anyhow!("the clerk panicked"))??;
            tallies.into_iter().collect()
        })
    }

    fn clerk(&self, done: &mpsc::Receiver<()>) -> anyhow::Result<()> {
        let mut shown = Instant::now();
        let mut before = 0;
        while done.recv_timeout(SYNC_EVERY) == Err(mpsc::RecvTimeoutError::Timeout) {
            if let Err(error) = self.ledger.sync() {
                self.watch.stop.store(true, Ordering::Relaxed);
                return Err(error);
            }
            let since = shown.elapsed();
            if self.options.progress && since >= PROGRESS_EVERY {
                let acknowledged = self.watch.acknowledged.load(Ordering::Relaxed);
                eprintln!(
                    "{acknowledged}/{} acknowledged, {} attempts, {} connections, {:.0}/s now",
                    self.options.messages,
                    self.watch.attempts.load(Ordering::Relaxed),
                    self.watch.connections.load(Ordering::Relaxed),
                    (acknowledged - before) as f64 / since.as_secs_f64(),
                );
                (shown, before) = (Instant::now(), acknowledged);
            }
        }
        Ok(())
    }

    /// One session: takes messages until none is left. An error here is the ledger's, and ends the run.
    fn session(&self, index: usize) -> anyhow::Result<Tally> {
        let worked = self.session_until_done(index);
        if worked.is_err() {
            self.watch.stop.store(true, Ordering::Relaxed);
        }
        worked
    }

    fn session_until_done(&self, index: usize) -> anyhow::Result<Tally> {
        let mut tally = Tally::default();
        let mut random = Random::new(self.options.seed ^ Random::new(index as u64).bits());
        let (mut content, mut wire) = (Vec::new(), Vec::new());
        let mut open: Option<Session> = None;
        let mut pause = PAUSE.0;
        while self.take() {
            let session = match open.as_mut() {
                Some(session) => session,
                None => match Session::open(self.options.smtp, self.options.timeout) {
                    Ok(session) => {
                        self.watch.connections.fetch_add(1, Ordering::Relaxed);
                        open.insert(session)
                    }
                    Err(error) => {
                        self.give_back();
                        tally.error(format!("{error:#}"));
                        if !self.options.reconnect_on_error {
                            return Ok(tally);
                        }
                        pause = self.rest(pause);
                        continue;
                    }
                },
            };
            let (next, broken) =
                self.attempt(session, &mut random, &mut content, &mut wire, &mut tally)?;
            if broken {
                open = None;
                if !self.options.reconnect_on_error {
                    return Ok(tally);
                }
            }
            match next {
                Next::Done => pause = PAUSE.0,
                Next::Again if self.options.reconnect_on_error => {
                    self.give_back();
                    pause = self.rest(pause);
                }
                Next::Again => {}
            }
        }
        if let Some(session) = open {
            session.quit();
        }
        Ok(tally)
    }

    /// One transaction, from drawing the message to the outcome in the ledger. Also says whether the session broke.
    fn attempt(
        &self,
        session: &mut Session,
        random: &mut Random,
        content: &mut Vec<u8>,
        wire: &mut Vec<u8>,
        tally: &mut Tally,
    ) -> anyhow::Result<(Next, bool)> {
        let id = AttemptId::random()?;
        let reverse_path = self.reverse_path(random);
        let rcpts = self.recipients(random);
        let rcpt = rcpts.first().copied().unwrap_or_default();
        let draft = Draft {
            id,
            size: self.options.mix.pick(random),
            reverse_path,
            rcpt,
            at_ms: crate::now_ms(),
        };
        message::compose(&draft, content);
        message::stuff(content, wire);
        let hash = blake3::hash(content).to_hex().to_string();
        let size = content.len() as u64;
        let written = std::cell::Cell::new(false);
        let write = |replies: &[Option<Reply>]| {
            written.set(true);
            self.ledger.append(&Event::Attempt {
                id,
                at_ms: crate::now_ms(),
                reverse_path: reverse_path.to_owned(),
                rcpts: rcpts.iter().map(|r| (*r).to_owned()).collect(),
                rcpt_replies: replies
                    .iter()
                    .map(|r| r.as_ref().map(|r| r.text.clone()))
                    .collect(),
                hash: hash.clone(),
                size,
            })
        };
        self.watch.attempts.fetch_add(1, Ordering::Relaxed);
        let done = session.transact(reverse_path, &rcpts, wire, write)?;
        if !written.get() {
            write(&done.rcpt_replies)?;
        }
        self.ledger.append(&Event::Outcome {
            id,
            at_ms: crate::now_ms(),
            phase: done.phase,
            reply: done.reply.as_ref().map(|r| r.text.clone()),
            partial: done
                .broken
                .as_ref()
                .map(|b| b.partial.clone())
                .filter(|p| !p.is_empty()),
            error: done.broken.as_ref().map(|b| b.error.clone()),
        })?;
        let next = self.settle(&done, size, tally);
        Ok((next, done.broken.is_some()))
    }

    /// Counts an outcome and says whether the message is done with.
    fn settle(&self, done: &Transaction, size: u64, tally: &mut Tally) -> Next {
        let final_reply = done.reply.as_ref().map(|r| r.text.as_str());
        let mut acknowledged = false;
        for reply in &done.rcpt_replies {
            let class = classify(
                reply.as_ref().map(|r| r.text.as_str()),
                done.phase,
                final_reply,
            );
            acknowledged |= class == Class::Ack;
            tally.recipients.count(class);
        }
        if let Some(broken) = &done.broken {
            tally.error(format!("{:?}: {}", done.phase, broken.error));
        }
        if acknowledged {
            self.watch.acknowledged.fetch_add(1, Ordering::Relaxed);
            tally.bytes += size;
            tally.last_ack = Some(Instant::now());
            if let Some(latency) = done.content_to_reply {
                tally.latency.record(latency);
            }
            return Next::Done;
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
            Some(reply) if reply.code / 100 == 5 && done.broken.is_none() => Next::Done,
            _ => Next::Again,
        }
    }

    fn reverse_path(&self, random: &mut Random) -> &str {
        match &self.options.senders {
            Senders::Null => "",
            Senders::Fixed(address) => address,
            Senders::Users => &self.options.users[random.below(self.options.users.len())].address,
        }
    }

    /// Different users, by a random start and step; cheap, and any pair can meet.
    fn recipients(&self, random: &mut Random) -> Vec<&str> {
        let users = &self.options.users;
        let mut chosen: Vec<usize> = Vec::with_capacity(self.options.recipients_per_message);
        while chosen.len() < self.options.recipients_per_message {
            let mut at = random.below(users.len());
            while chosen.contains(&at) {
                at = (at + 1) % users.len();
            }
            chosen.push(at);
        }
        chosen
            .into_iter()
            .map(|at| users[at].address.as_str())
            .collect()
    }

    /// Takes one of the messages that are left, unless the run is to end.
    fn take(&self) -> bool {
        let over = self
            .options
            .deadline
            .is_some_and(|d| self.began.elapsed() >= d);
        if over || self.watch.stop.load(Ordering::Relaxed) {
            return false;
        }
        let took = |left: i64| (left > 0).then_some(left - 1);
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, took)
            .is_ok()
    }

    /// Gives back a message that did not get through. Whoever gives back also takes again.
    fn give_back(&self) {
        self.left.fetch_add(1, Ordering::Relaxed);
    }

    fn rest(&self, pause: Duration) -> Duration {
        std::thread::sleep(pause);
        (pause * 2).min(PAUSE.1)
    }

    fn report(&self, tallies: Vec<Tally>) -> RunReport {
        let options = self.options;
        let mut all = Tally::default();
        for tally in tallies {
            all.bytes += tally.bytes;
            all.recipients.merge(tally.recipients);
            all.latency.merge(&tally.latency);
            all.last_ack = all.last_ack.max(tally.last_ack);
            for (error, times) in tally.errors {
                all.errors_add(error, times);
            }
        }
        let conditions = Conditions {
            size_mix: options.mix.to_string(),
            sessions: options.sessions,
            users: options.users.len(),
            recipients_per_message: options.recipients_per_message,
            tls: "none".to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
        };
        let acknowledged = self.watch.acknowledged.load(Ordering::Relaxed);
        let seconds = all
            .last_ack
            .map_or(0.0, |at| (at - self.began).as_secs_f64());
        let mut report = RunReport {
            seed: options.seed,
            messages: options.messages,
            attempts: self.watch.attempts.load(Ordering::Relaxed),
            acknowledged,
            acknowledged_bytes: all.bytes,
            recipients: all.recipients,
            connections: self.watch.connections.load(Ordering::Relaxed),
            seconds,
            data_to_reply: all.latency.percentiles(),
            errors: all.errors,
            ..RunReport::default()
        };
        match conditions.rate(acknowledged, seconds) {
            Ok(rate) => report.accept_rate = Some(rate),
            Err(why) => report.withheld.push(format!("accept rate: {why}")),
        }
        report.conditions = conditions;
        report
    }
}

impl Tally {
    fn error(&mut self, text: String) {
        self.errors_add(text, 1);
    }

    /// Errors that would be one too many are counted together.
    fn errors_add(&mut self, text: String, times: u64) {
        let full = self.errors.len() >= ERRORS_MAX && !self.errors.contains_key(&text);
        let text = if full { "other".to_owned() } else { text };
        *self.errors.entry(text).or_default() += times;
    }
}

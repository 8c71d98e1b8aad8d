//! Retrieve and delete, by POP3: each of K logins retrieves M mails, deletes each right after it, and quits.
//!
//! It talks to any POP3 server. Nothing is believed: a login with fewer mails, a mail that is not the size LIST gave,
//! an error, or a mail that is there again at the next login fails the drain. Mails over M in a maildrop stay.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use crate::histogram::{Histogram, Percentiles};
use crate::load::run;
use crate::machine::{Machine, own_seconds};
use crate::maildrops::{VerifyOptions, parallel};
use crate::net::Endpoint;
use crate::pop3::{Listed, Maildrop};
use crate::progress::Progress;
use crate::readable::wait_readable;
use crate::report::{Generator, Setting};
use crate::run::{RunOptions, SESSIONS_MAX, Watch};
use crate::server::Server;
use crate::users::User;

/// The most offences listed; all are counted.
const FAULTS_MAX: usize = 20;

/// What to do.
#[derive(Debug, Clone)]
pub struct DrainOptions {
    /// The server; loopback.
    pub pop3: Endpoint,
    /// Whose maildrops; each is logged into once.
    pub users: Vec<User>,
    /// Mails retrieved and deleted at each login.
    pub mails: usize,
    /// Logins at the same time.
    pub sessions: usize,
    /// Send commands ahead when the server offers PIPELINING (RFC 2449 section 6.8).
    pub pipelining: bool,
    /// Longest wait for one response.
    pub timeout: Duration,
    /// Whom to watch.
    pub server: Server,
    /// A server that did nothing for so long has done its work.
    pub idle: Duration,
    /// Longest wait for that.
    pub wait: Duration,
    /// What is known about the server and cannot be seen from here.
    pub setting: Setting,
    /// Show progress on stderr.
    pub progress: bool,
}

/// What a drain found.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct DrainReport {
    /// Logins asked for.
    pub logins: usize,
    /// Mails at each.
    pub mails_per_login: usize,
    /// Logins at the same time.
    pub sessions: usize,
    /// How they were protected.
    pub tls: String,
    /// Whether commands were sent ahead.
    pub pipelining: bool,
    /// The machine.
    pub machine: Machine,
    /// What was said about the server.
    pub setting: Setting,
    /// Mails retrieved, deleted, and gone at the next login.
    pub drained: u64,
    /// Bytes of them, as received, without the stuffing.
    pub bytes: u64,
    /// From the first connection to the answer to the last QUIT.
    pub seconds: f64,
    /// Mails per second in that time.
    pub rate: Option<f64>,
    /// From connecting to the answer to PASS.
    pub login: Percentiles,
    /// From RETR to the end of the mail; with pipelining from the end of the last response.
    pub retrieve: Percentiles,
    /// QUIT, which makes the deletions so.
    pub quit: Percentiles,
    /// From connecting to the answer to QUIT.
    pub session: Percentiles,
    /// CPU-seconds of the server for 1,000 mails, until it was idle.
    pub server_cpu_s_per_1000: Option<f64>,
    /// Whose.
    pub watched: String,
    /// What the client took.
    pub generator: Generator,
    /// What was wrong, the first of them.
    pub faults: Vec<String>,
    /// How often something was wrong.
    pub faults_count: u64,
    /// Figures that are not given, and why.
    pub withheld: Vec<String>,
}

impl DrainReport {
    /// Whether every mail asked for was retrieved and is gone.
    pub fn succeeded(&self) -> bool {
        self.faults_count == 0 && self.drained == (self.logins * self.mails_per_login) as u64
    }
}

/// What one login measured.
#[derive(Debug, Default)]
struct Tally {
    login: Histogram,
    retrieve: Histogram,
    quit: Histogram,
    session: Histogram,
    bytes: u64,
    pipelining: bool,
}

/// Sends the mails that are to be drained, and waits until the server shows all of them and is idle again.
pub fn fill(load: &RunOptions, options: &DrainOptions) -> anyhow::Result<()> {
    let watch = Arc::new(Watch::default());
    let sent = run(load, &watch).context("filling the maildrops")?;
    ensure!(
        sent.succeeded(),
        "filling the maildrops: {} of {} messages acknowledged: {:?}",
        sent.acknowledged,
        sent.messages,
        sent.errors
    );
    let reading = VerifyOptions {
        ledger: load.ledger.clone(),
        users: options.users.clone(),
        pop3: options.pop3.clone(),
        wait: options.wait,
        settle: Duration::ZERO,
        delete: false,
        sessions: options.sessions,
        timeout: options.timeout,
        progress: options.progress,
    };
    wait_readable(&reading, Instant::now())?.context("not all mails could be read in time")?;
    options
        .server
        .wait_idle(options.idle, Instant::now() + options.wait);
    Ok(())
}

/// Drains, then looks whether it is so.
pub fn drain(options: &DrainOptions) -> anyhow::Result<DrainReport> {
    options.pop3.ensure_loopback()?;
    ensure!(
        (1..=SESSIONS_MAX).contains(&options.sessions),
        "sessions must be 1..{SESSIONS_MAX}"
    );
    ensure!(options.mails > 0, "no mails to retrieve");
    options.server.check()?;
    options.server.check_listens(options.pop3.address)?;
    let mut report = DrainReport {
        logins: options.users.len(),
        mails_per_login: options.mails,
        sessions: options.sessions,
        tls: options.pop3.protection.to_string(),
        machine: Machine::here(),
        setting: options.setting.clone(),
        watched: options.server.to_string(),
        ..DrainReport::default()
    };
    let (own, before) = (own_seconds(), options.server.read());
    let began = Instant::now();
    let drained = AtomicU64::new(0);
    let bar = Progress {
        what: "mails drained",
        total: (report.logins * options.mails) as u64,
    };
    let ended = Mutex::new(began);
    let now = || (drained.load(Ordering::Relaxed), String::new());
    let done = bar.during(options.progress, now, || {
        parallel(options.sessions, &options.users, |user| {
            let login = Login {
                options,
                drained: &drained,
            };
            let outcome = login.run(user);
            if let Ok(mut last) = ended.lock() {
                *last = Instant::now();
            }
            outcome
        })
    });
    let seconds = ended
        .lock()
        .map_or(0.0, |last| (*last - began).as_secs_f64());
    let own = own_seconds() - own;
    options
        .server
        .wait_idle(options.idle, Instant::now() + options.wait);
    let after = options.server.read();
    report.machine.ended();
    report.seconds = seconds;
    report.generator.cpu_s = own;
    report.judge(options, done);
    report.rates(
        before
            .cpu_s
            .zip(after.cpu_s)
            .map(|(from, to)| to - from)
            .filter(|s| *s >= 0.0),
    );
    Ok(report)
}

/// What one login measured, and the unique ids that must not come back.
type Done = (Tally, BTreeSet<String>);

/// One login under way.
struct Login<'a> {
    options: &'a DrainOptions,
    drained: &'a AtomicU64,
}

impl Login<'_> {
    /// Retrieves and deletes.
    fn run(&self, user: &User) -> anyhow::Result<Done> {
        let options = self.options;
        let mut tally = Tally::default();
        let from = Instant::now();
        let mut maildrop = Maildrop::of(&options.pop3, user, options.timeout)?;
        tally.login.record(from.elapsed());
        if !options.pipelining {
            maildrop.in_lockstep();
        }
        tally.pipelining = maildrop.pipelines();
        let mut listed = maildrop.uidl()?;
        ensure!(
            listed.len() >= options.mails,
            "{} mails where {} are to be retrieved",
            listed.len(),
            options.mails
        );
        listed.truncate(options.mails);
        let numbers: Vec<u32> = listed.iter().map(|entry| entry.number).collect();
        let sizes = maildrop.sizes()?;
        let mut last = Instant::now();
        maildrop.retrieve_and_delete(&numbers, |number, bytes, ended| {
            let listed = sizes.get(&number).copied().unwrap_or(0);
            ensure!(
                bytes == listed,
                "message {number} has {bytes} octets, and LIST said {listed}"
            );
            tally.bytes += bytes;
            tally.retrieve.record(ended - last);
            last = Instant::now();
            self.drained.fetch_add(1, Ordering::Relaxed);
            Ok(())
        })?;
        let quitting = Instant::now();
        maildrop.quit()?;
        tally.quit.record(quitting.elapsed());
        tally.session.record(from.elapsed());
        let uids = listed.into_iter().map(|Listed { uid, .. }| uid).collect();
        Ok((tally, uids))
    }
}

/// A new login must not show what the last one deleted.
fn still_there(options: &DrainOptions, user: &User, uids: &BTreeSet<String>) -> anyhow::Result<()> {
    let look = || -> anyhow::Result<usize> {
        let mut maildrop = Maildrop::of(&options.pop3, user, options.timeout)?;
        let listed = maildrop.uidl()?;
        maildrop.quit()?;
        Ok(listed.iter().filter(|e| uids.contains(&e.uid)).count())
    };
    let left = look().with_context(|| user.address.clone())?;
    ensure!(
        left == 0,
        "{}: {left} deleted mails came back",
        user.address
    );
    Ok(())
}

impl Tally {
    fn merge(&mut self, other: &Tally) {
        self.login.merge(&other.login);
        self.retrieve.merge(&other.retrieve);
        self.quit.merge(&other.quit);
        self.session.merge(&other.session);
        self.bytes += other.bytes;
        self.pipelining &= other.pipelining;
    }

    fn fill(self, report: &mut DrainReport) {
        report.login = self.login.percentiles();
        report.retrieve = self.retrieve.percentiles();
        report.quit = self.quit.percentiles();
        report.session = self.session.percentiles();
        report.bytes = self.bytes;
        report.pipelining = self.pipelining;
    }
}

impl DrainReport {
    /// Sums up what the logins measured, and logs in again to see that what they deleted is gone.
    fn judge(&mut self, options: &DrainOptions, done: Vec<anyhow::Result<Done>>) {
        let mut gone = Vec::with_capacity(options.users.len());
        let mut all = Tally {
            pipelining: true,
            ..Tally::default()
        };
        for (outcome, user) in done.into_iter().zip(&options.users) {
            match outcome {
                Ok((tally, uids)) => {
                    all.merge(&tally);
                    gone.push((user, uids));
                }
                Err(error) => self.fault(format!("{}: {error:#}", user.address)),
            }
        }
        for outcome in parallel(options.sessions, &gone, |(user, uids)| {
            still_there(options, user, uids)
        }) {
            match outcome {
                Ok(()) => self.drained += options.mails as u64,
                Err(error) => self.fault(format!("{error:#}")),
            }
        }
        all.fill(self);
    }

    fn fault(&mut self, text: String) {
        self.faults_count += 1;
        if self.faults.len() < FAULTS_MAX {
            self.faults.push(text);
        }
    }

    fn rates(&mut self, server_cpu_s: Option<f64>) {
        let missing: Vec<&str> = self.setting.missing().collect();
        let why = if !missing.is_empty() {
            Some(format!("no rate without {}", missing.join(", ")))
        } else if !self.succeeded() {
            Some("not every mail was retrieved and deleted".to_owned())
        } else {
            None
        };
        if let Some(why) = why {
            self.withheld.push(format!("rate: {why}"));
            return;
        }
        let thousands = self.drained as f64 / 1000.0;
        self.rate = Some(self.drained as f64 / self.seconds);
        self.server_cpu_s_per_1000 = server_cpu_s.map(|s| s / thousands);
        self.generator.cpu_s_per_1000 = Some(self.generator.cpu_s / thousands);
    }
}

impl fmt::Display for DrainReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "conditions: logins={} mails-per-login={} sessions={} TLS={} pipelining={} (RETR and DELE in turn, UIDL and LIST before)",
            self.logins,
            self.mails_per_login,
            self.sessions,
            self.tls,
            if self.pipelining { "yes" } else { "no" },
        )?;
        writeln!(f, "machine: {}", self.machine)?;
        writeln!(f, "server: {}", self.setting)?;
        writeln!(f, "drained: {} mails, {} bytes", self.drained, self.bytes)?;
        if let Some(rate) = self.rate {
            writeln!(
                f,
                "rate: {rate:.1} mails/s, {:.1} MB/s in {:.2} s",
                self.bytes as f64 / self.seconds / 1e6,
                self.seconds
            )?;
        }
        for (name, times) in [
            ("login", &self.login),
            ("RETR", &self.retrieve),
            ("QUIT", &self.quit),
            ("session", &self.session),
        ] {
            if times.count > 0 {
                writeln!(f, "{name} ms: {times}")?;
            }
        }
        if let Some(cpu) = self.server_cpu_s_per_1000 {
            writeln!(
                f,
                "server CPU: {cpu:.3} s for 1,000 mails ({})",
                self.watched
            )?;
        }
        if let Some(cpu) = self.generator.cpu_s_per_1000 {
            writeln!(f, "generator: {cpu:.3} CPU-s for 1,000 mails")?;
        }
        for reason in &self.withheld {
            writeln!(f, "withheld: {reason}")?;
        }
        for fault in &self.faults {
            writeln!(f, "wrong: {fault}")?;
        }
        if self.faults_count > self.faults.len() as u64 {
            writeln!(f, "wrong: {} in all", self.faults_count)?;
        }
        Ok(())
    }
}

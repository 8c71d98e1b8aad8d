//! The sweep: reads all maildrops by POP3 and holds what is there against the ledger.
//!
//! It goes on until every acknowledged message is found or time is up, waits a little for copies that come late, reads
//! everything again over new logins (unique ids must be the same then), and only then judges. A mail is retrieved once;
//! later passes retrieve what is new.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use crate::equation::{Class, Verdict, judge};
use crate::inspect::{Inspector, Mail};
use crate::ledger::{AttemptId, Book, Event, Writer};
use crate::pop3::Maildrop;
use crate::report::{Classes, Readable};
use crate::users::User;

/// Between two passes over maildrops that lack something.
const PASS_EVERY: Duration = Duration::from_millis(100);
/// The most offences listed; all are counted.
const OFFENCES_MAX: usize = 1000;
/// How often a deletion is tried again.
const DELETE_TRIES: usize = 5;

/// What to do.
#[derive(Debug, Clone)]
pub struct VerifyOptions {
    /// The ledger of all that was ever sent to these users.
    pub ledger: PathBuf,
    /// Whose maildrops are read.
    pub users: Vec<User>,
    /// The server; loopback.
    pub pop3: SocketAddr,
    /// Longest wait for the last acknowledged message.
    pub wait: Duration,
    /// How long to wait for a copy too many, once nothing is missing.
    pub settle: Duration,
    /// Delete what was read, if the equation holds.
    pub delete: bool,
    /// How many maildrops are read at once.
    pub sessions: usize,
    /// Longest wait for one answer.
    pub timeout: Duration,
    /// Show progress on stderr.
    pub progress: bool,
}

/// In what way something is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Acknowledged, and nowhere.
    Lost,
    /// More than one copy or DSN.
    Doubled,
    /// A mail that the ledger does not know.
    Unknown,
    /// A copy whose bytes differ.
    Corrupted,
    /// Refused or never sent, and yet there.
    Ghost,
    /// In the maildrop of somebody it was not sent to.
    Misplaced,
    /// A unique id that is not unique, or not the same at the next login; or a deleted mail that came back.
    Uidl,
    /// A maildrop that could not be read.
    Unread,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offence {
    /// In what way.
    pub kind: Kind,
    /// Which attempt, where it is known.
    pub id: Option<AttemptId>,
    /// The recipient, or whose maildrop.
    pub who: String,
    /// More about it.
    pub detail: String,
}

/// What a sweep found.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct VerifyReport {
    /// How often each thing is wrong.
    pub counts: BTreeMap<Kind, u64>,
    /// The first thousand of them.
    pub offences: Vec<Offence>,
    /// The ledger's outcomes.
    pub recipients: Classes,
    /// Unknown ones that arrived.
    pub appeared: u64,
    /// Recipients whose message ended in a DSN.
    pub dsns: u64,
    /// Mails read.
    pub mails: u64,
    /// Maildrops read.
    pub maildrops: u64,
    /// Mails deleted.
    pub deleted: u64,
    /// How long it took.
    pub seconds: f64,
}

impl VerifyReport {
    /// Whether nothing is wrong.
    pub fn balanced(&self) -> bool {
        self.counts.values().all(|count| *count == 0)
    }

    /// How often that is wrong.
    pub fn count(&self, kind: Kind) -> u64 {
        self.counts.get(&kind).copied().unwrap_or(0)
    }

    fn offend(&mut self, kind: Kind, id: Option<AttemptId>, who: &str, detail: impl Into<String>) {
        *self.counts.entry(kind).or_default() += 1;
        if self.offences.len() < OFFENCES_MAX {
            self.offences.push(Offence {
                kind,
                id,
                who: who.to_owned(),
                detail: detail.into(),
            });
        }
    }
}

impl fmt::Display for VerifyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |kind| self.count(kind);
        let Classes {
            ack,
            nak,
            unk,
            none,
        } = self.recipients;
        writeln!(
            f,
            "lost={} doubled={} unknown={} corrupted={} ack={ack} unk={unk} (appeared {}) nak={nak} none={none} \
             ghost={} misplaced={} uidl={} unread={} dsn={} mails={} maildrops={}",
            count(Kind::Lost),
            count(Kind::Doubled),
            count(Kind::Unknown),
            count(Kind::Corrupted),
            self.appeared,
            count(Kind::Ghost),
            count(Kind::Misplaced),
            count(Kind::Uidl),
            count(Kind::Unread),
            self.dsns,
            self.mails,
            self.maildrops,
        )?;
        for Offence {
            kind,
            id,
            who,
            detail,
        } in &self.offences
        {
            let id = id.map_or_else(|| "-".to_owned(), |id| id.to_string());
            writeln!(
                f,
                "{}: attempt={id} who={who} {detail}",
                format!("{kind:?}").to_lowercase()
            )?;
        }
        Ok(())
    }
}

/// Reads, waits, judges, and deletes if asked to.
pub fn verify(options: &VerifyOptions) -> anyhow::Result<VerifyReport> {
    ensure!(
        options.pop3.ip().is_loopback(),
        "{} is not loopback: refused",
        options.pop3
    );
    let began = Instant::now();
    let deadline = began + options.wait;
    let book = Book::read(&options.ledger)?;
    let sweep = Sweep::new(options, &book);
    let mut report = loop {
        let mut todo: Vec<usize> = (0..options.users.len()).collect();
        loop {
            sweep.pass(&todo);
            let (_, pending) = sweep.judge();
            if pending.is_empty() || Instant::now() >= deadline {
                break;
            }
            std::thread::sleep(PASS_EVERY);
            todo = pending;
        }
        std::thread::sleep(options.settle);
        // The second login of each user: nothing new, nothing gone, the same unique ids.
        sweep.pass(&(0..options.users.len()).collect::<Vec<_>>());
        let (report, pending) = sweep.judge();
        if pending.is_empty() || Instant::now() >= deadline {
            break report;
        }
    };
    if options.delete && report.balanced() {
        sweep.delete(&mut report)?;
    }
    report.seconds = began.elapsed().as_secs_f64();
    Ok(report)
}

/// Polls until all that was acknowledged can be read, without reading it. `began` is when the first message was sent.
pub fn wait_readable(options: &VerifyOptions, began: Instant) -> anyhow::Result<Option<Readable>> {
    ensure!(
        options.pop3.ip().is_loopback(),
        "{} is not loopback: refused",
        options.pop3
    );
    let book = Book::read(&options.ledger)?;
    let places = places(&options.users);
    let mut expected: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
    for attempt in book.attempts.values() {
        for rcpt in attempt
            .rcpts
            .iter()
            .filter(|r| r.class == Class::Ack && r.copies_collected == 0)
        {
            let Some(place) = places.get(&rcpt.address.to_ascii_lowercase()) else {
                continue;
            };
            let (count, latest) = expected.entry(*place).or_default();
            *count += 1;
            *latest = attempt.order.max(*latest);
        }
    }
    // The maildrops that got mail last are asked first: they are the ones that may lack some.
    let mut todo: Vec<(u64, usize, u64)> = expected
        .into_iter()
        .map(|(p, (count, at))| (at, p, count))
        .collect();
    todo.sort_unstable_by(|a, b| b.cmp(a));
    let deadline = Instant::now() + options.wait;
    let (mut not_before, mut by) = (Duration::ZERO, Duration::ZERO);
    while !todo.is_empty() {
        if Instant::now() >= deadline {
            return Ok(None);
        }
        let asked = parallel(options.sessions, &todo, |(_, place, count)| {
            let user = &options.users[*place];
            let asked = began.elapsed();
            let complete =
                Maildrop::open(options.pop3, &user.login, &user.password, options.timeout)
                    .and_then(|mut maildrop| Ok((maildrop.count()?, maildrop.quit()?)))
                    .is_ok_and(|(found, ())| found >= *count);
            (complete, asked, began.elapsed())
        });
        let mut lacking = Vec::new();
        for (entry, (complete, asked, answered)) in todo.into_iter().zip(asked) {
            if complete {
                by = by.max(answered);
            } else {
                not_before = not_before.max(asked);
                lacking.push(entry);
            }
        }
        todo = lacking;
    }
    Ok(Some(Readable {
        not_before_s: not_before.as_secs_f64(),
        by_s: by.as_secs_f64(),
        rate: None,
    }))
}

/// What is known about one maildrop.
#[derive(Debug, Default)]
struct Seen {
    /// Unique ids in the order of the last login.
    order: Vec<String>,
    mails: BTreeMap<String, Mail>,
    faults: Vec<String>,
    /// Why the last login did not end well.
    trouble: Option<String>,
}

struct Sweep<'a> {
    options: &'a VerifyOptions,
    book: &'a Book,
    places: BTreeMap<String, usize>,
    seen: Vec<Mutex<Seen>>,
    mails: AtomicU64,
}

/// Copies and DSNs of one recipient of one attempt.
#[derive(Debug, Clone, Copy, Default)]
struct Found {
    copies: u32,
    dsns: u32,
}

fn places(users: &[User]) -> BTreeMap<String, usize> {
    users
        .iter()
        .enumerate()
        .map(|(place, user)| (user.address.to_ascii_lowercase(), place))
        .collect()
}

impl<'a> Sweep<'a> {
    fn new(options: &'a VerifyOptions, book: &'a Book) -> Sweep<'a> {
        let seen = options.users.iter().map(|_| Mutex::default()).collect();
        Sweep {
            options,
            book,
            places: places(&options.users),
            seen,
            mails: AtomicU64::new(0),
        }
    }

    /// Reads the maildrops of `todo`, several at a time.
    fn pass(&self, todo: &[usize]) {
        let began = Instant::now();
        parallel(self.options.sessions, todo, |place| {
            let Some(Ok(mut seen)) = self.seen.get(*place).map(Mutex::lock) else {
                return;
            };
            seen.trouble = self
                .read(&self.options.users[*place], &mut seen)
                .err()
                .map(|e| format!("{e:#}"));
        });
        if self.options.progress {
            let mails = self.mails.load(Ordering::Relaxed);
            eprintln!(
                "{} maildrops in {:.2} s, {mails} mails so far",
                todo.len(),
                began.elapsed().as_secs_f64()
            );
        }
    }

    /// One login: compares the unique ids, retrieves what is new.
    fn read(&self, user: &User, seen: &mut Seen) -> anyhow::Result<()> {
        let options = self.options;
        let mut maildrop =
            Maildrop::open(options.pop3, &user.login, &user.password, options.timeout)?;
        let listed = maildrop.uidl()?;
        let mut unique = BTreeSet::new();
        for entry in &listed {
            if !unique.insert(entry.uid.as_str()) {
                seen.faults
                    .push(format!("unique id {:?} is there twice", entry.uid));
            }
        }
        let mut later = listed.iter();
        for uid in &seen.order {
            if !later.any(|entry| entry.uid == *uid) {
                seen.faults.push(format!(
                    "unique id {uid:?} was there at the last login, and is gone or moved"
                ));
                break;
            }
        }
        seen.order = listed.iter().map(|entry| entry.uid.clone()).collect();
        let fresh: Vec<_> = listed
            .iter()
            .filter(|entry| !seen.mails.contains_key(&entry.uid))
            .collect();
        let numbers: Vec<u32> = fresh.iter().map(|entry| entry.number).collect();
        let mut state = (Inspector::default(), BTreeMap::new());
        maildrop.retrieve(
            &numbers,
            &mut state,
            |(inspector, _), _, line| inspector.line(line),
            |(inspector, mails), at| {
                let mail = std::mem::take(inspector).finish();
                mails.insert(fresh[at].uid.clone(), mail);
                self.mails.fetch_add(1, Ordering::Relaxed);
            },
        )?;
        maildrop.quit()?;
        // Only a session that ended in order is believed: out of step, it would take one mail for another.
        let (_, mut mails) = state;
        seen.mails.append(&mut mails);
        Ok(())
    }

    /// Holds what was seen against the ledger. Also names the maildrops worth reading again.
    fn judge(&self) -> (VerifyReport, Vec<usize>) {
        let mut report = VerifyReport {
            maildrops: self.options.users.len() as u64,
            ..VerifyReport::default()
        };
        let mut found: BTreeMap<(AttemptId, usize), Found> = BTreeMap::new();
        let mut pending = BTreeSet::new();
        for (place, user) in self.options.users.iter().enumerate() {
            let Some(Ok(seen)) = self.seen.get(place).map(Mutex::lock) else {
                continue;
            };
            if let Some(trouble) = &seen.trouble {
                report.offend(Kind::Unread, None, &user.address, trouble.clone());
                pending.insert(place);
            }
            for fault in &seen.faults {
                report.offend(Kind::Uidl, None, &user.address, fault.clone());
            }
            for (uid, mail) in &seen.mails {
                report.mails += 1;
                self.place(&mut report, &mut found, user, uid, mail);
            }
        }
        for (id, attempt) in &self.book.attempts {
            for (at, rcpt) in attempt.rcpts.iter().enumerate() {
                report.recipients.count(rcpt.class);
                let Found { copies, dsns } = found.get(&(*id, at)).copied().unwrap_or_default();
                let (copies, dsns) = (copies + rcpt.copies_collected, dsns + rcpt.dsns_collected);
                report.dsns += u64::from(dsns);
                let kind = match judge(rcpt.class, copies, dsns) {
                    Verdict::Balanced => continue,
                    Verdict::Appeared => {
                        report.appeared += 1;
                        continue;
                    }
                    Verdict::Lost => Kind::Lost,
                    Verdict::Doubled => Kind::Doubled,
                    Verdict::Ghost => Kind::Ghost,
                };
                let detail = format!("class={:?} copies={copies} dsns={dsns}", rcpt.class);
                report.offend(kind, Some(*id), &rcpt.address, detail);
                if kind == Kind::Lost {
                    // It may still come, or a DSN about it.
                    for address in [&rcpt.address, &attempt.reverse_path] {
                        pending.extend(self.places.get(&address.to_ascii_lowercase()));
                    }
                }
            }
        }
        (report, pending.into_iter().collect())
    }

    /// Finds the attempt and the recipient one mail belongs to.
    fn place(
        &self,
        report: &mut VerifyReport,
        found: &mut BTreeMap<(AttemptId, usize), Found>,
        user: &User,
        uid: &str,
        mail: &Mail,
    ) {
        let who = user.address.as_str();
        let known = |id: &AttemptId| self.book.attempts.get(id);
        match mail {
            Mail::Stranger => report.offend(
                Kind::Unknown,
                None,
                who,
                format!("unique id {uid:?} has no ledger mark"),
            ),
            Mail::Copy { id, .. } | Mail::Dsn { id, .. } if known(id).is_none() => {
                report.offend(
                    Kind::Unknown,
                    Some(*id),
                    who,
                    format!("unique id {uid:?}: attempt not in the ledger"),
                );
            }
            Mail::Copy {
                id,
                hash,
                return_paths,
            } => {
                let Some(attempt) = known(id) else { return };
                let Some(at) = attempt
                    .rcpts
                    .iter()
                    .position(|r| r.address.eq_ignore_ascii_case(who))
                else {
                    return report.offend(
                        Kind::Misplaced,
                        Some(*id),
                        who,
                        "was not sent to this user",
                    );
                };
                found.entry((*id, at)).or_default().copies += 1;
                if *hash != attempt.hash {
                    report.offend(
                        Kind::Corrupted,
                        Some(*id),
                        who,
                        "its bytes are not those that were sent",
                    );
                } else if return_paths.len() > 1
                    || return_paths.iter().any(|p| *p != attempt.reverse_path)
                {
                    report.offend(
                        Kind::Corrupted,
                        Some(*id),
                        who,
                        format!("Return-Path is {return_paths:?}"),
                    );
                }
            }
            Mail::Dsn { id, failed } => {
                let Some(attempt) = known(id) else { return };
                if !attempt.reverse_path.eq_ignore_ascii_case(who) {
                    return report.offend(
                        Kind::Misplaced,
                        Some(*id),
                        who,
                        "a DSN for another sender",
                    );
                }
                for address in failed {
                    match attempt
                        .rcpts
                        .iter()
                        .position(|r| r.address.eq_ignore_ascii_case(address))
                    {
                        Some(at) => found.entry((*id, at)).or_default().dsns += 1,
                        None => report.offend(
                            Kind::Unknown,
                            Some(*id),
                            who,
                            format!("a DSN about {address}"),
                        ),
                    }
                }
            }
        }
    }

    /// Empties the maildrops of what was read, and notes it in the ledger so that it can never come back unseen.
    fn delete(&self, report: &mut VerifyReport) -> anyhow::Result<()> {
        let all: Vec<usize> = (0..self.options.users.len()).collect();
        let ledger = Writer::open(&self.options.ledger, 0)?;
        let outcomes = parallel(self.options.sessions, &all, |place| {
            let user = &self.options.users[*place];
            let Some(Ok(seen)) = self.seen.get(*place).map(Mutex::lock) else {
                return Ok(0);
            };
            if seen.mails.is_empty() {
                return Ok(0);
            }
            self.delete_all(user, &seen.mails)?;
            for mail in seen.mails.values() {
                let (id, rcpts, dsn) = match mail {
                    Mail::Copy { id, .. } => (*id, vec![user.address.as_str()], false),
                    Mail::Dsn { id, failed } => {
                        (*id, failed.iter().map(String::as_str).collect(), true)
                    }
                    Mail::Stranger => continue,
                };
                let Some(attempt) = self.book.attempts.get(&id) else {
                    continue;
                };
                for rcpt in rcpts {
                    let as_sent = attempt
                        .rcpts
                        .iter()
                        .find(|r| r.address.eq_ignore_ascii_case(rcpt));
                    if let Some(as_sent) = as_sent {
                        ledger.append(&Event::Collected {
                            id,
                            rcpt: as_sent.address.clone(),
                            dsn,
                        })?;
                    }
                }
            }
            anyhow::Ok(seen.mails.len() as u64)
        });
        ledger.sync()?;
        for (outcome, user) in outcomes.into_iter().zip(&self.options.users) {
            match outcome {
                Ok(count) => report.deleted += count,
                Err(error) => report.offend(Kind::Uidl, None, &user.address, format!("{error:#}")),
            }
        }
        Ok(())
    }

    /// Deletes until a new login shows that it is so. A QUIT whose answer was lost may have done its work.
    fn delete_all(&self, user: &User, mails: &BTreeMap<String, Mail>) -> anyhow::Result<()> {
        let mut tried = 0;
        let mut quit_answered = false;
        loop {
            let once = || -> anyhow::Result<usize> {
                let options = self.options;
                let mut maildrop =
                    Maildrop::open(options.pop3, &user.login, &user.password, options.timeout)?;
                let mut listed = maildrop.uidl()?;
                listed.retain(|entry| mails.contains_key(&entry.uid));
                maildrop.delete(&listed.iter().map(|entry| entry.number).collect::<Vec<_>>())?;
                maildrop.quit()?;
                Ok(listed.len())
            };
            match once() {
                Ok(0) => return Ok(()),
                Ok(left) => {
                    ensure!(
                        !quit_answered,
                        "{left} mails came back after QUIT had confirmed their deletion"
                    );
                    quit_answered = true;
                }
                Err(error) if tried >= DELETE_TRIES => return Err(error.context("deleting")),
                Err(_) => {
                    tried += 1;
                    std::thread::sleep(PASS_EVERY);
                }
            }
        }
    }
}

/// Does `work` on each item, in `threads` threads; the results are in the order of the items.
fn parallel<I: Sync, O: Send>(
    threads: usize,
    items: &[I],
    work: impl Fn(&I) -> O + Sync,
) -> Vec<O> {
    let next = AtomicUsize::new(0);
    let results: Vec<Mutex<Option<O>>> = items.iter().map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, items.len().max(1)) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let (Some(item), Some(result)) = (items.get(at), results.get(at)) else {
                        return;
                    };
                    let output = work(item);
                    if let Ok(mut result) = result.lock() {
                        *result = Some(output);
                    }
                }
            });
        }
    });
    results
        .into_iter()
        .filter_map(|r| r.into_inner().ok().flatten())
        .collect()
}

/// Load, then wait, then sweep: what `run --pop3` does.
pub fn run_and_verify(
    run: &crate::run::RunOptions,
    watch: &std::sync::Arc<crate::run::Watch>,
    verify_options: &VerifyOptions,
) -> anyhow::Result<crate::report::RunReport> {
    let began = Instant::now();
    let mut report = crate::run::run(run, watch)?;
    let readable = wait_readable(verify_options, began)?;
    let sweep = verify(verify_options).context("verifying")?;
    let acknowledged = report.acknowledged;
    let copies = report.recipients.ack;
    let why = if !sweep.balanced() {
        Some("the ledger does not balance".to_owned())
    } else if report.recipients.unk > 0 || sweep.dsns > 0 {
        // A maildrop is seen complete by the number of its mails; these would be counted for others.
        Some(format!(
            "{} outcomes unknown, {} DSNs",
            report.recipients.unk, sweep.dsns
        ))
    } else {
        None
    };
    match (readable, why) {
        (_, Some(why)) => report.withheld.push(format!("end-to-end rate: {why}")),
        (None, None) => report.withheld.push(format!(
            "end-to-end rate: {copies} copies were not readable in time"
        )),
        (Some(mut readable), None) => {
            match report.conditions.rate(acknowledged, readable.by_s) {
                Ok(rate) => readable.rate = Some(rate),
                Err(why) => report.withheld.push(format!("end-to-end rate: {why}")),
            }
            report.readable = Some(readable);
        }
    }
    report.verify = Some(sweep);
    Ok(report)
}

//! The verdict: holds what is in the maildrops against the ledger.
//!
//! It goes on until every acknowledged message is found or time is up, waits a little for copies that come late, logs in
//! to every maildrop again (the same unique ids must be there, in the same order; what is new is read), and only then
//! judges.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Mutex;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::equation::{Classes, Verdict, judge};
use crate::inspect::Mail;
use crate::ledger::{Attempt, AttemptId, Book};
use crate::maildrops::{PASS_EVERY, Sweep, VerifyOptions};

/// The most offences kept; all are counted.
const OFFENCES_MAX: usize = 1000;
/// The most of them that the text names.
const SHOWN_MAX: usize = 50;

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
    /// Lines of the ledger that a killed writer left unfinished: a 250 in one of them proves nothing.
    pub torn: u64,
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
             ghost={} misplaced={} uidl={} unread={} dsn={} mails={} maildrops={} torn={}",
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
            self.torn,
        )?;
        for Offence {
            kind,
            id,
            who,
            detail,
        } in self.offences.iter().take(SHOWN_MAX)
        {
            let id = id.map_or_else(|| "-".to_owned(), |id| id.to_string());
            writeln!(
                f,
                "{}: attempt={id} who={who} {detail}",
                format!("{kind:?}").to_lowercase()
            )?;
        }
        let all: u64 = self.counts.values().sum();
        if all > SHOWN_MAX as u64 {
            writeln!(f, "and {} more", all - SHOWN_MAX as u64)?;
        }
        Ok(())
    }
}

/// Reads, waits, judges, and deletes if asked to.
pub fn verify(options: &VerifyOptions) -> anyhow::Result<VerifyReport> {
    options.pop3.ensure_loopback()?;
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
        for (user, outcome) in options.users.iter().zip(sweep.delete()?) {
            match outcome {
                Ok(count) => report.deleted += count,
                Err(error) => report.offend(Kind::Uidl, None, &user.address, format!("{error:#}")),
            }
        }
    }
    report.seconds = began.elapsed().as_secs_f64();
    Ok(report)
}

/// Copies and DSNs of one recipient of one attempt.
#[derive(Debug, Clone, Copy, Default)]
struct Found {
    copies: u32,
    dsns: u32,
}

impl Sweep<'_> {
    /// Holds what was seen against the ledger. Also names the maildrops worth reading again.
    fn judge(&self) -> (VerifyReport, Vec<usize>) {
        let mut count = Count::default();
        let mut pending = BTreeSet::new();
        for (place, user) in self.options.users.iter().enumerate() {
            let Some(Ok(seen)) = self.seen.get(place).map(Mutex::lock) else {
                continue;
            };
            if let Some(trouble) = &seen.trouble {
                let trouble = trouble.clone();
                count
                    .report
                    .offend(Kind::Unread, None, &user.address, trouble);
                pending.insert(place);
            }
            for fault in &seen.faults {
                let fault = fault.clone();
                count.report.offend(Kind::Uidl, None, &user.address, fault);
            }
            for (uid, mail) in &seen.mails {
                count.report.mails += 1;
                count.place(self.book, &user.address, uid, mail);
            }
        }
        let Count { mut report, found } = count;
        report.maildrops = self.options.users.len() as u64;
        report.torn = self.book.torn;
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
}

/// What is being counted up.
#[derive(Default)]
struct Count {
    report: VerifyReport,
    found: BTreeMap<(AttemptId, usize), Found>,
}

impl Count {
    /// Finds the attempt and the recipient one mail belongs to.
    fn place(&mut self, book: &Book, who: &str, uid: &str, mail: &Mail) {
        let id = match mail {
            Mail::Copy { id, .. } | Mail::Dsn { id, .. } => *id,
            Mail::Stranger => {
                let detail = format!("unique id {uid:?} has no ledger mark");
                return self.report.offend(Kind::Unknown, None, who, detail);
            }
        };
        let Some(attempt) = book.attempts.get(&id) else {
            let detail = format!("unique id {uid:?}: attempt not in the ledger");
            return self.report.offend(Kind::Unknown, Some(id), who, detail);
        };
        match mail {
            Mail::Copy {
                hash, return_paths, ..
            } => self.copy(id, attempt, who, hash, return_paths),
            Mail::Dsn { failed, .. } => self.dsn(id, attempt, who, failed),
            Mail::Stranger => {}
        }
    }

    fn copy(
        &mut self,
        id: AttemptId,
        attempt: &Attempt,
        who: &str,
        hash: &blake3::Hash,
        return_paths: &[String],
    ) {
        let Some(at) = attempt.place_of(who) else {
            let detail = "was not sent to this user";
            return self.report.offend(Kind::Misplaced, Some(id), who, detail);
        };
        self.found.entry((id, at)).or_default().copies += 1;
        if *hash != attempt.hash {
            let detail = "its bytes are not those that were sent";
            return self.report.offend(Kind::Corrupted, Some(id), who, detail);
        }
        if return_paths.len() > 1 || return_paths.iter().any(|p| *p != attempt.reverse_path) {
            let detail = format!("Return-Path is {return_paths:?}");
            self.report.offend(Kind::Corrupted, Some(id), who, detail);
        }
    }

    fn dsn(&mut self, id: AttemptId, attempt: &Attempt, who: &str, failed: &[String]) {
        if !attempt.reverse_path.eq_ignore_ascii_case(who) {
            let detail = "a DSN for another sender";
            return self.report.offend(Kind::Misplaced, Some(id), who, detail);
        }
        for address in failed {
            match attempt.place_of(address) {
                Some(at) => self.found.entry((id, at)).or_default().dsns += 1,
                None => {
                    let detail = format!("a DSN about {address}");
                    self.report.offend(Kind::Unknown, Some(id), who, detail);
                }
            }
        }
    }
}

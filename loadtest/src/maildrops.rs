//! Reads maildrops, many at a time, and remembers what was in them: a mail is retrieved once, later passes retrieve what
//! is new. Also empties them when all is proved.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::ensure;

use crate::inspect::{Inspector, Mail};
use crate::ledger::{Book, Event, Writer};
use crate::net::Endpoint;
use crate::pop3::Maildrop;
use crate::progress::Progress;
use crate::users::User;

/// Between two passes over maildrops that lack something.
pub(crate) const PASS_EVERY: Duration = Duration::from_millis(100);
/// How often a deletion is tried again.
const DELETE_TRIES: usize = 5;

/// Whose maildrops are read, and for what.
#[derive(Debug, Clone)]
pub struct VerifyOptions {
    /// The ledger of all that was ever sent to these users.
    pub ledger: PathBuf,
    /// Whose maildrops are read.
    pub users: Vec<User>,
    /// The server; loopback.
    pub pop3: Endpoint,
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

/// What is known about one maildrop.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Unique ids in the order of the last login.
    pub(crate) order: Vec<String>,
    pub(crate) mails: BTreeMap<String, Mail>,
    pub(crate) faults: Vec<String>,
    /// Why the last login did not end well.
    pub(crate) trouble: Option<String>,
}

/// All maildrops, and the ledger to hold them against.
pub(crate) struct Sweep<'a> {
    pub(crate) options: &'a VerifyOptions,
    pub(crate) book: &'a Book,
    pub(crate) places: BTreeMap<String, usize>,
    pub(crate) seen: Vec<Mutex<Seen>>,
    mails: AtomicU64,
}

/// Where in `users` an address is, in lower case.
pub(crate) fn places(users: &[User]) -> BTreeMap<String, usize> {
    users
        .iter()
        .enumerate()
        .map(|(place, user)| (user.address.to_ascii_lowercase(), place))
        .collect()
}

impl<'a> Sweep<'a> {
    pub(crate) fn new(options: &'a VerifyOptions, book: &'a Book) -> Sweep<'a> {
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
    pub(crate) fn pass(&self, todo: &[usize]) {
        let bar = Progress {
            what: "maildrops read",
            total: todo.len() as u64,
        };
        let read = AtomicU64::new(0);
        let now = || {
            let mails = self.mails.load(Ordering::Relaxed);
            (
                read.load(Ordering::Relaxed),
                format!("{mails} mails so far"),
            )
        };
        bar.during(self.options.progress, now, || {
            parallel(self.options.sessions, todo, |place| {
                let Some(Ok(mut seen)) = self.seen.get(*place).map(Mutex::lock) else {
                    return;
                };
                seen.trouble = self
                    .read(&self.options.users[*place], &mut seen)
                    .err()
                    .map(|e| format!("{e:#}"));
                read.fetch_add(1, Ordering::Relaxed);
            });
        });
    }

    /// One login: compares the unique ids, retrieves what is new.
    fn read(&self, user: &User, seen: &mut Seen) -> anyhow::Result<()> {
        let options = self.options;
        let mut maildrop = Maildrop::of(&options.pop3, user, options.timeout)?;
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

    /// Empties the maildrops of what was read, and notes it in the ledger so that it can never come back unseen. How
    /// many mails were deleted of each user, or why they would not go.
    pub(crate) fn delete(&self) -> anyhow::Result<Vec<anyhow::Result<u64>>> {
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
        Ok(outcomes)
    }

    /// Deletes until a new login shows that it is so. A QUIT whose answer was lost may have done its work.
    fn delete_all(&self, user: &User, mails: &BTreeMap<String, Mail>) -> anyhow::Result<()> {
        let mut tried = 0;
        let mut quit_answered = false;
        loop {
            let once = || -> anyhow::Result<usize> {
                let options = self.options;
                let mut maildrop = Maildrop::of(&options.pop3, user, options.timeout)?;
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
pub(crate) fn parallel<I: Sync, O: Send>(
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

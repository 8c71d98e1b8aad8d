//! The directory of one LDIF file: held in memory, answered at once, swapped whole when the file has changed.
//!
//! It reads no file and no clock itself: its owner hands over octets when [`Stillness`] says the file is at rest. A new file that
//! cannot be used, or that loses a tenth of the entries, changes nothing: the last good one goes on answering.

use std::sync::Arc;

use arc_swap::ArcSwap;
use futures_util::future::{BoxFuture, FutureExt, ready};
use hikyaku_mail::id::AccountId;
use hikyaku_mail::path::Mailbox;

use crate::finding::Finding;
use crate::load::load;
use crate::password::pool::{Pool, Verdict};
use crate::password::{PASSWORD_BYTES_MAX, PoolLimits};
use crate::settings::Settings;
use crate::table::{LoginAccount, Table};
use crate::{Account, Directory, LoginError, Resolution, Unavailable};

/// Octets of a login name that are looked at: an address has 254.
const LOGIN_BYTES_MAX: usize = 254;
/// A reload that loses more than one entry in this many waits for the operator.
const LOSS_DIVISOR: usize = 10;

/// See the module.
pub struct LdifDirectory {
    table: ArcSwap<Table>,
    settings: ArcSwap<Settings>,
    pool: Pool,
}

/// A file read with settings of its own: it answers when it is [adopted](LdifDirectory::adopt).
pub struct Prepared {
    table: Table,
    settings: Settings,
}

impl Prepared {
    /// What is wrong with single entries.
    pub fn findings(&self) -> &[Finding] {
        self.table.findings()
    }
}

/// Whether a reload may lose entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Up to 10 %.
    Few,
    /// Any number: the operator has accepted it.
    Accepted,
}

/// What became of a new file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reload {
    /// It answers from now on.
    Replaced {
        /// Usable entries.
        entries: usize,
        /// What is wrong with single entries.
        findings: Vec<Finding>,
    },
    /// It cannot be used; the last good one goes on.
    Refused {
        /// Why.
        findings: Vec<Finding>,
    },
    /// It loses more entries than may be an accident; the last good one goes on.
    TooMuchLost {
        /// Usable entries of the last good one that the new one has not.
        lost: usize,
        /// Usable entries of the last good one.
        of: usize,
    },
}

impl LdifDirectory {
    /// The directory in `input`, an LDIF file; an error refuses the file as a whole.
    pub fn load(
        input: &[u8],
        settings: Settings,
        pool: PoolLimits,
    ) -> Result<LdifDirectory, Vec<Finding>> {
        let table = load(input, &settings)?;
        Ok(LdifDirectory {
            table: ArcSwap::from_pointee(table),
            settings: ArcSwap::from_pointee(settings),
            pool: Pool::new(pool),
        })
    }

    /// Remembers right logins whose password is costly to verify, see [`Pool::with_recent`]. `key`: random, of this process.
    #[must_use]
    pub fn with_recent_logins(self, key: [u8; 32]) -> LdifDirectory {
        LdifDirectory {
            pool: self.pool.with_recent(key),
            ..self
        }
    }

    /// The table that answers now; its findings are what `hikyaku check` prints.
    pub fn table(&self) -> Arc<Table> {
        self.table.load_full()
    }

    /// Replaces everything by the directory in `input`, or nothing. Takes as long as the file is big: call it from a blocking
    /// thread.
    pub fn reload(&self, input: &[u8], loss: Loss) -> Reload {
        let settings = Settings::clone(&self.settings.load());
        match self.prepare(input, settings, loss) {
            Ok(prepared) => {
                let (entries, findings) =
                    (prepared.table.len(), prepared.table.findings().to_vec());
                self.adopt(prepared);
                Reload::Replaced { entries, findings }
            }
            Err(refused) => refused,
        }
    }

    /// Reads `input` with `settings`, which may be others than until now, and changes nothing yet. An error is
    /// [`Reload::Refused`] or [`Reload::TooMuchLost`]. Takes as long as [`LdifDirectory::reload`].
    pub fn prepare(
        &self,
        input: &[u8],
        settings: Settings,
        loss: Loss,
    ) -> Result<Prepared, Reload> {
        let table = load(input, &settings).map_err(|findings| Reload::Refused { findings })?;
        let last = self.table.load_full();
        let (lost, of) = (last.lost_in(&table), last.len());
        if loss == Loss::Few && lost > of / LOSS_DIVISOR {
            return Err(Reload::TooMuchLost { lost, of });
        }
        Ok(Prepared { table, settings })
    }

    /// From now on this answers.
    pub fn adopt(&self, prepared: Prepared) {
        self.settings.store(Arc::new(prepared.settings));
        self.table.store(Arc::new(prepared.table));
    }

    async fn log_in(&self, login: &str, password: &[u8]) -> Result<Account, LoginError> {
        // RFC 4513 section 5.1.2: an empty password must never succeed, whatever is stored.
        if login.len() > LOGIN_BYTES_MAX
            || password.is_empty()
            || password.len() > PASSWORD_BYTES_MAX
        {
            return Err(LoginError::Wrong);
        }
        let credentials = self.table.load().credentials(login)?;
        let verdict = self
            .pool
            .verify(credentials.stored, password.to_vec())
            .await?;
        match (credentials.account, verdict) {
            (Some(LoginAccount::Here(account)), Verdict::Right) if account.state.may_log_in() => {
                Ok(account)
            }
            (Some(_), Verdict::Right) => Err(LoginError::Disabled),
            (None, _) | (Some(_), Verdict::Wrong) => Err(LoginError::Wrong),
            (Some(_), Verdict::Unknown) => {
                Err(Unavailable::new("a stored password has a scheme that is not known").into())
            }
        }
    }
}

impl Directory for LdifDirectory {
    fn resolve<'a>(
        &'a self,
        address: &'a Mailbox,
    ) -> BoxFuture<'a, Result<Resolution, Unavailable>> {
        ready(self.table.load().resolve(address)).boxed()
    }

    fn authenticate<'a>(
        &'a self,
        login: &'a str,
        password: &'a [u8],
    ) -> BoxFuture<'a, Result<Account, LoginError>> {
        self.log_in(login, password).boxed()
    }

    fn account<'a>(
        &'a self,
        id: &'a AccountId,
    ) -> BoxFuture<'a, Result<Option<Account>, Unavailable>> {
        ready(self.table.load().account(id)).boxed()
    }

    fn postmaster(&self) -> Mailbox {
        self.table.load().postmaster.clone()
    }
}

/// Size and modification time of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Octets.
    pub size: u64,
    /// Nanoseconds since 1970.
    pub modified_ns: u128,
}

/// When a changed file is at rest: size and time have not changed for a while, so nobody is in the middle of writing it.
#[derive(Debug)]
pub struct Stillness {
    still_ms: u64,
    read: Stamp,
    seen: Stamp,
    since_ms: u64,
}

impl Stillness {
    /// Watches a file that was read when it had the stamp `read`; 2,000 ms of rest are usual.
    pub fn new(read: Stamp, still_ms: u64) -> Stillness {
        Stillness {
            still_ms,
            read,
            seen: read,
            since_ms: 0,
        }
    }

    /// True, once for each change, when the file should be read: looked at now, at `now_ms`, it has the stamp `stamp`.
    pub fn observe(&mut self, stamp: Stamp, now_ms: u64) -> bool {
        if stamp != self.seen {
            self.seen = stamp;
            self.since_ms = now_ms;
        }
        let is_due =
            self.seen != self.read && now_ms.saturating_sub(self.since_ms) >= self.still_ms;
        if is_due {
            self.read = self.seen;
        }
        is_due
    }
}

//! Full mailboxes at RCPT: 452 4.2.2 instead of a mail that waits for days and comes back (RFC 3463
//! X.2.2). A mail that is declared larger than the whole quota would not fit into the empty mailbox
//! either: 552 5.2.3, at once.
//!
//! Mailbox shards tell which accounts are nearly full (95 % of the quota, a mail did not fit, or it is among those that held most
//! when the shard began); this room asks them every second. For these alone RCPT asks what the account holds now, so a mailbox that was emptied takes mail again at once. It is
//! full when it cannot take what `SIZE=` declares, or 4 KiB where nothing is declared. Whatever is not known, not fresh or not answered in time
//! lets the mail in: then the mailbox decides at delivery. The null reverse-path and the role addresses that must reach
//! somebody are never refused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hikyaku_directory::Account;
use hikyaku_mail::path::ForwardPath;
use hikyaku_mail::reply::{Rejection, Reply};
use hikyaku_proto::transport::Transport;
use hikyaku_proto::v1::mailbox_client::MailboxClient;
use hikyaku_proto::v1::{NearlyFullRequest, UsageRequest};
use hikyaku_serve::tasks::Tasks;
use tokio::time::{Instant, timeout};

use crate::recipient::Accepted;

/// How often shards are asked.
const INTERVAL: Duration = Duration::from_secs(1);
/// What was heard longer ago than this does not count.
const FRESH: Duration = Duration::from_secs(10);
/// A shard that does not answer sooner is not waited for.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// Octets expected of a mail that declares none: hardly any is smaller.
const SIZE_UNDECLARED: u64 = 4096;
/// Accounts remembered, all shards together.
const ACCOUNTS_MAX: usize = 65_536;

/// A client for the node that serves a mailbox shard.
pub type MailboxRouter = Arc<dyn Fn(u32) -> MailboxClient<Transport> + Send + Sync>;

/// The mailbox that a recipient comes to, and its quota as the directory has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mailbox {
    /// The account.
    pub account: String,
    /// Octets; 0 is unlimited, `None` leaves it to the mailbox shard.
    pub quota_bytes: Option<u64>,
}

impl From<&Account> for Mailbox {
    fn from(account: &Account) -> Mailbox {
        Mailbox {
            account: account.id.to_string(),
            quota_bytes: account.quota_bytes,
        }
    }
}

/// What one shard has told.
struct Heard {
    at: Instant,
    accounts: BTreeSet<String>,
}

/// What is known of full mailboxes. Clones share it.
#[derive(Clone)]
pub struct Quotas {
    heard: Arc<Mutex<BTreeMap<u32, Heard>>>,
    mailboxes: Option<MailboxRouter>,
}

impl Quotas {
    /// Knows nothing: every mailbox takes mail.
    pub fn unknown() -> Quotas {
        Quotas {
            heard: Arc::default(),
            mailboxes: None,
        }
    }

    /// Asks these shards until the node drains.
    pub fn watch(
        tasks: &Tasks,
        mailboxes: MailboxRouter,
        shards: impl IntoIterator<Item = u32>,
    ) -> Quotas {
        let quotas = Quotas {
            heard: Arc::default(),
            mailboxes: Some(mailboxes.clone()),
        };
        // one task each: a shard that does not answer must not make old what the others say
        for shard in shards {
            let (heard, mailboxes) = (quotas.heard.clone(), mailboxes.clone());
            let drain = tasks.draining();
            tasks.spawn("quotas", async move {
                loop {
                    ask(&heard, &mailboxes, shard).await;
                    tokio::select! {
                        biased;
                        () = drain.cancelled() => return,
                        () = tokio::time::sleep(INTERVAL) => {}
                    }
                }
            });
        }
        quotas
    }

    /// What RCPT says of a recipient that would be accepted, for a mail of `size` octets, if that was declared.
    ///
    /// # Errors
    /// 452 4.2.2 when its mailbox is full, 552 5.2.3 when the mail never fits.
    pub async fn admit(
        &self,
        path: &ForwardPath,
        accepted: &Accepted,
        size: Option<u64>,
    ) -> Result<(), Rejection> {
        let Some(mailbox) = accepted.mailbox.as_ref().filter(|_| !is_role(path)) else {
            return Ok(());
        };
        let never_fits = mailbox.quota_bytes.and_then(|quota| too_large(size, quota));
        let rejection = match never_fits {
            Some(rejection) => Some(rejection),
            None => self.check(mailbox, size).await,
        };
        match rejection {
            Some(rejection) => Err(rejection.of_tenant(&accepted.tenant)),
            None => Ok(()),
        }
    }

    /// A refusal when `mailbox` cannot take a mail of `size` octets, if that was declared.
    async fn check(&self, mailbox: &Mailbox, size: Option<u64>) -> Option<Rejection> {
        let shard = self.shard_of(&mailbox.account)?;
        let mut client = self.mailboxes.as_ref()?(shard);
        let request = UsageRequest {
            shard,
            account: mailbox.account.clone(),
        };
        let usage = match timeout(ANSWER_TIMEOUT, client.usage(request)).await {
            Ok(Ok(reply)) => reply.into_inner(),
            _ => return None,
        };
        let quota_bytes = match mailbox.quota_bytes {
            // as at delivery: what the directory leaves open is what an operator has set there
            Some(0) | None => usage.quota_bytes,
            Some(quota_bytes) => quota_bytes,
        };
        let after = usage
            .used_bytes
            .saturating_add(size.unwrap_or(SIZE_UNDECLARED));
        if usage.found
            && let Some(rejection) = too_large(size, quota_bytes)
        {
            return Some(rejection);
        }
        let full = quota_bytes != 0 && after > quota_bytes;
        (usage.found && full).then(|| {
            Rejection::new(
                Reply::new(452, (4, 2, 2), "mailbox full"),
                format!("holds {} of {quota_bytes} octets", usage.used_bytes),
            )
        })
    }

    /// The shard that has said of the account, not long ago, that it is nearly full.
    fn shard_of(&self, account: &str) -> Option<u32> {
        let heard = lock(&self.heard);
        let found = heard
            .iter()
            .find(|(_, heard)| heard.accounts.contains(account) && heard.at.elapsed() < FRESH);
        found.map(|(shard, _)| *shard)
    }
}

/// A refusal when a mail of `size` octets exceeds a quota, if there is one, all by itself.
fn too_large(size: Option<u64>, quota_bytes: u64) -> Option<Rejection> {
    let size = size.filter(|&size| quota_bytes != 0 && size > quota_bytes)?;
    let reply = Reply::new(552, (5, 2, 3), "message too large for this mailbox");
    let reason = format!("{size} octets declared, the quota is {quota_bytes}");
    Some(Rejection::new(reply, reason))
}

/// Whether mail for `path` is taken whatever its mailbox holds (RFC 5321 section 4.5.1, RFC 2142).
fn is_role(path: &ForwardPath) -> bool {
    match path {
        ForwardPath::Postmaster => true,
        ForwardPath::Path(mailbox) => {
            let local_part = mailbox.local_part();
            ["postmaster", "abuse"]
                .iter()
                .any(|role| local_part.eq_ignore_ascii_case(role))
        }
    }
}

async fn ask(heard: &Mutex<BTreeMap<u32, Heard>>, mailboxes: &MailboxRouter, shard: u32) {
    let asked = Instant::now();
    let mut client = mailboxes(shard);
    let answer = client.nearly_full(NearlyFullRequest { shard });
    if let Ok(Ok(reply)) = timeout(ANSWER_TIMEOUT, answer).await {
        remember(heard, shard, asked, reply.into_inner().accounts);
    }
}

fn remember(heard: &Mutex<BTreeMap<u32, Heard>>, shard: u32, at: Instant, accounts: Vec<String>) {
    let mut heard = lock(heard);
    heard.remove(&shard);
    let others: usize = heard.values().map(|heard| heard.accounts.len()).sum();
    let room = ACCOUNTS_MAX.saturating_sub(others);
    let accounts = accounts.into_iter().take(room).collect();
    heard.insert(shard, Heard { at, accounts });
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! Recounts what the machine keeps running and names what does not agree (PROTOCOLS 3.4: M2, M5, M9).
//!
//! It reads the whole shard: for simulations, tests and operators, not for every minute. It holds the numbers of all bodies
//! and the mails of one account in memory.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use hikyaku_engine::Snapshot;
use hikyaku_proto::v1::stored_account::Phase;
use hikyaku_proto::v1::{StoredAccount, StoredBody, StoredEmail, StoredTenant, StoredTombstone};
use hikyaku_shard::stored::{StateHash, Stored};
use prost::Message;

use crate::deliver::prefix_hash;
use crate::id::EmailId;
use crate::key::{self, Parts};
use crate::{StoreError, flag, read};

/// Pairs read at once.
const PAGE: usize = 1_000;
/// Faults named; more are as good as these.
const FAULTS_MAX: usize = 100;

/// What was counted, and what did not agree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Open accounts.
    pub accounts: u64,
    /// Messages in open accounts.
    pub messages: u64,
    /// What is wrong, at most 100 lines; empty when all is well.
    pub faults: Vec<String>,
}

/// Checks everything `snapshot` shows.
///
/// # Errors
/// [`StoreError`] when it cannot be read at all; what can be read but is wrong is a fault.
pub fn audit(snapshot: &dyn Snapshot) -> Result<Audit, StoreError> {
    let mut auditor = Auditor {
        snapshot,
        audit: Audit::default(),
        bodies: BTreeSet::new(),
        tenants: BTreeMap::new(),
    };
    auditor.hash()?;
    auditor.accounts()?;
    auditor.bodies()?;
    auditor.tenants()?;
    auditor.queues()?;
    Ok(auditor.audit)
}

struct Auditor<'a> {
    snapshot: &'a dyn Snapshot,
    audit: Audit,
    /// Positions of all bodies that emails name.
    bodies: BTreeSet<u64>,
    tenants: BTreeMap<String, StoredTenant>,
}

impl Auditor<'_> {
    fn fault(&mut self, fault: String) {
        if self.audit.faults.len() < FAULTS_MAX {
            self.audit.faults.push(fault);
        }
    }

    fn pages(
        &mut self,
        prefix: &[u8],
        mut look: impl FnMut(&mut Self, Bytes, Bytes) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut from = prefix.to_vec();
        loop {
            let page = self.snapshot.scan(prefix, &from, PAGE)?;
            let Some((last, _)) = page.last() else {
                return Ok(());
            };
            from = [&last[..], &[0]].concat();
            for (found, value) in page {
                look(self, found, value)?;
            }
        }
    }

    /// M1's precondition: the hash that replicas compare is the hash of what is there.
    fn hash(&mut self) -> Result<(), StoreError> {
        let mut hash = StateHash::default();
        self.pages(&[], |_, found, value| {
            if Parts::letter(&found) != Some(b'b') {
                hash.add(&found, &value);
            }
            Ok(())
        })?;
        match Stored::decode(&self.snapshot.position()) {
            Some(stored) if stored.hash == hash => {}
            Some(_) => self.fault("the running hash is not the hash of the state".into()),
            None => self.fault("the position does not decode".into()),
        }
        Ok(())
    }

    fn accounts(&mut self) -> Result<(), StoreError> {
        self.pages(&key::table(b'a'), |auditor, found, value| {
            let id = Parts::of(&found, b'a').and_then(|mut parts| parts.account());
            let (Some(id), Ok(account)) = (id, StoredAccount::decode(value)) else {
                auditor.fault(format!("account {found:?} does not decode"));
                return Ok(());
            };
            auditor.account(id, &account)
        })
    }

    fn account(&mut self, id: &str, account: &StoredAccount) -> Result<(), StoreError> {
        if account.purge_at_ms != 0 {
            let due = key::purge_due(account.purge_at_ms, id);
            if self.snapshot.get(&due)?.is_none() {
                self.fault(format!("{id}: not in the purge queue"));
            }
        }
        let mut links = self.emails(id)?;
        // while an account is emptied its counters say nothing, but no message may be without its mail
        let counted = matches!(account.phase(), Phase::Open | Phase::Staging);
        let (mut messages, mut bytes, mut mailboxes) = (0, 0, 0);
        for (mailbox_id, mailbox) in read::mailboxes(self.snapshot, id)? {
            mailboxes += 1;
            let recount = self.mailbox(id, mailbox_id, &mut links, counted)?;
            messages += recount.exists;
            bytes += recount.bytes;
            let named = read::mailbox_id(self.snapshot, id, &mailbox.name)?;
            if !counted {
                continue;
            }
            if named != Some(mailbox_id) {
                self.fault(format!("{id}/{mailbox_id}: its name leads elsewhere"));
            }
            // M2: no UID at or above UIDNEXT, so none is given twice
            if mailbox.uid_next <= recount.uid_max || mailbox.highest_modseq < recount.modseq_max {
                self.fault(format!(
                    "{id}/{mailbox_id}: UIDNEXT or HIGHESTMODSEQ too low"
                ));
            }
            if mailbox.uid_validity == 0
                || mailbox.uid_validity > account.last_uid_validity
                || mailbox_id >= account.next_mailbox
            {
                self.fault(format!("{id}/{mailbox_id}: its numbers may be given again"));
            }
            // M9
            let same = mailbox.exists == recount.exists
                && mailbox.unseen == recount.unseen
                && mailbox.bytes == recount.bytes
                && mailbox.vanished == recount.vanished;
            if !same {
                self.fault(format!(
                    "{id}/{mailbox_id}: counters {mailbox:?} are not {recount:?}"
                ));
            }
        }
        if !counted {
            return Ok(());
        }
        if links.values().any(|(expected, found)| expected != found) {
            self.fault(format!("{id}: an email's links are not its messages"));
        }
        let same = account.messages == messages
            && account.used_bytes == bytes
            && account.mailboxes == mailboxes;
        if !same {
            self.fault(format!(
                "{id}: {account:?}, but {messages} messages, {bytes} octets, {mailboxes} mailboxes"
            ));
        }
        if account.phase() == Phase::Open {
            self.audit.accounts += 1;
            self.audit.messages += messages;
            let tenant = self.tenants.entry(account.tenant.clone()).or_default();
            tenant.accounts += 1;
            tenant.messages += messages;
            tenant.used_bytes += bytes;
        }
        Ok(())
    }

    /// The emails of an account, each with the links it says it has and none found yet.
    fn emails(&mut self, id: &str) -> Result<BTreeMap<EmailId, (u32, u32)>, StoreError> {
        let mut links = BTreeMap::new();
        let prefix = key::of_account(b'e', id);
        self.pages(&prefix, |auditor, found, value| {
            let email_id = EmailId::from_bytes(found.get(prefix.len()..).unwrap_or_default());
            let (Some(email_id), Ok(email)) = (email_id, StoredEmail::decode(value)) else {
                auditor.fault(format!("{id}: email {found:?} does not decode"));
                return Ok(());
            };
            if let Some(delivery_id) = crate::deliver::delivery_id(&email.delivery_id) {
                // M5: the delivery id leads to this email and to nothing else
                let buried = auditor.snapshot.get(&key::tombstone(id, &delivery_id))?;
                if EmailId::of_delivery(&delivery_id) != email_id || buried.is_some() {
                    auditor.fault(format!(
                        "{id}: {email_id} is not the only one of its delivery"
                    ));
                }
            }
            if !auditor.bodies.insert(email.body_position) {
                auditor.fault(format!("{id}: {email_id} shares its body"));
            }
            auditor.email_body(id, email_id, &email)?;
            links.insert(email_id, (email.links, 0));
            Ok(())
        })?;
        Ok(links)
    }

    fn email_body(
        &mut self,
        id: &str,
        email_id: EmailId,
        email: &StoredEmail,
    ) -> Result<(), StoreError> {
        let body: Option<StoredBody> =
            read::decoded(self.snapshot, &key::body(email.body_position), "a body")?;
        let same = body.is_some_and(|stored| {
            let prefix_bytes = stored.prefix.len() as u64;
            prefix_hash(&stored.prefix) == email.prefix_hash
                && stored.body.is_some_and(|body| {
                    body.blake3 == email.blake3 && body.size + prefix_bytes == email.size
                })
        });
        if !same {
            self.fault(format!(
                "{id}: the body of {email_id} is missing or another"
            ));
        }
        Ok(())
    }

    fn mailbox(
        &mut self,
        id: &str,
        mailbox_id: u64,
        links: &mut BTreeMap<EmailId, (u32, u32)>,
        counted: bool,
    ) -> Result<Recount, StoreError> {
        let mut recount = Recount::default();
        let mut uid = 0;
        loop {
            let page = read::messages(self.snapshot, id, mailbox_id, uid, PAGE)?;
            let Some((last, _)) = page.last() else {
                break;
            };
            uid = last.saturating_add(1);
            for (uid, message) in page {
                recount.exists += 1;
                recount.bytes += message.size;
                recount.unseen += u64::from(message.flags & flag::SEEN == 0);
                recount.uid_max = recount.uid_max.max(uid);
                recount.modseq_max = recount.modseq_max.max(message.modseq);
                let link = EmailId::from_bytes(&message.email_id).and_then(|id| links.get_mut(&id));
                match link {
                    Some((_, found)) => *found += 1,
                    None => self.fault(format!("{id}/{mailbox_id}/{uid}: no email")),
                }
                if !self.bodies.contains(&message.body_position) {
                    self.fault(format!("{id}/{mailbox_id}/{uid}: no body"));
                }
                let change = key::change(id, mailbox_id, message.modseq, uid);
                if counted && self.snapshot.get(&change)?.is_none() {
                    self.fault(format!("{id}/{mailbox_id}/{uid}: not in the change index"));
                }
            }
            if uid == u32::MAX {
                break;
            }
        }
        let mut changes = 0;
        self.pages(&key::of_mailbox(b'c', id, mailbox_id), |_, _, _| {
            changes += 1;
            Ok(())
        })?;
        if counted && changes != recount.exists {
            self.fault(format!(
                "{id}/{mailbox_id}: {changes} changes of {} messages",
                recount.exists
            ));
        }
        self.pages(&key::of_mailbox(b'v', id, mailbox_id), |_, _, _| {
            recount.vanished += 1;
            Ok(())
        })?;
        Ok(recount)
    }

    /// Every body belongs to an email.
    fn bodies(&mut self) -> Result<(), StoreError> {
        self.pages(&key::table(b'b'), |auditor, found, _| {
            let position = Parts::of(&found, b'b').and_then(|mut parts| parts.u64());
            match position {
                Some(position) if auditor.bodies.contains(&position) => {}
                _ => auditor.fault(format!("body {position:?} belongs to nobody")),
            }
            Ok(())
        })
    }

    fn tenants(&mut self) -> Result<(), StoreError> {
        let counted = std::mem::take(&mut self.tenants);
        let mut after: Option<String> = None;
        let mut named = 0;
        loop {
            let page = read::tenants(self.snapshot, after.as_deref(), PAGE)?;
            let Some((last, _)) = page.last() else {
                break;
            };
            after = Some(last.clone());
            for (name, tenant) in page {
                named += usize::from(counted.contains_key(&name));
                let recount = counted.get(&name).copied().unwrap_or_default();
                if recount != tenant {
                    self.fault(format!("tenant {name}: {tenant:?} is not {recount:?}"));
                }
            }
        }
        if named != counted.len() {
            self.fault("a tenant has accounts but no counters".into());
        }
        Ok(())
    }

    /// Every tombstone is in its queue, and the queues hold nothing else.
    fn queues(&mut self) -> Result<(), StoreError> {
        let (mut buried, mut queued) = (0u64, 0u64);
        self.pages(&key::table(b'd'), |auditor, found, value| {
            buried += 1;
            let mut parts = Parts::of(&found, b'd');
            let account = parts.as_mut().and_then(Parts::account);
            let delivery_id = parts.and_then(|parts| parts.rest().try_into().ok());
            let tombstone = StoredTombstone::decode(value).ok();
            let (Some(account), Some(delivery_id), Some(tombstone)) =
                (account, delivery_id, tombstone)
            else {
                auditor.fault(format!("tombstone {found:?} does not decode"));
                return Ok(());
            };
            let due = key::tombstone_due(tombstone.expires_ms, account, delivery_id);
            if auditor.snapshot.get(&due)?.is_none() {
                auditor.fault(format!("{account}: a tombstone will never go"));
            }
            Ok(())
        })?;
        self.pages(&key::table(b'q'), |_, _, _| {
            queued += 1;
            Ok(())
        })?;
        if buried != queued {
            self.fault(format!("{buried} tombstones, {queued} of them queued"));
        }
        self.pages(&key::table(b'p'), |auditor, found, _| {
            let mut parts = Parts::of(&found, b'p');
            let due_ms = parts.as_mut().and_then(Parts::u64);
            let account = parts.and_then(|mut parts| parts.account());
            let stored: Option<StoredAccount> = match account {
                Some(account) => {
                    read::decoded(auditor.snapshot, &key::account(account), "an account")?
                }
                None => None,
            };
            if stored.map(|stored| stored.purge_at_ms) != due_ms {
                auditor.fault(format!("purge entry {account:?} is not the account's"));
            }
            Ok(())
        })
    }
}

/// What a mailbox has.
#[derive(Debug, Default)]
struct Recount {
    exists: u64,
    unseen: u64,
    bytes: u64,
    vanished: u64,
    uid_max: u32,
    modseq_max: u64,
}

//! What services read of a mailbox shard, from a snapshot: never from a state half applied.

use hikyaku_engine::Snapshot;
use hikyaku_mail::id::MessageId;
use hikyaku_proto::INLINE_BYTES_MAX;
use hikyaku_proto::v1::body::Content;
use hikyaku_proto::v1::stored_account::Phase;
use hikyaku_proto::v1::{
    AccountState, StoredAccount, StoredBody, StoredEmail, StoredMailbox, StoredMessage,
    StoredTenant,
};
use prost::Message;

use crate::key::{self, Parts};
use crate::{StoreError, mailbox};

/// What an account is to somebody who wants its mail.
#[derive(Clone, Debug, PartialEq)]
pub enum Account {
    /// Never opened here, or emptied since.
    Absent,
    /// Being restored or purged: in a moment it is something else.
    Busy,
    /// Here.
    Open(StoredAccount),
}

impl Account {
    /// Whether its owner may log in.
    pub fn takes_logins(&self) -> bool {
        matches!(self, Account::Open(account) if account.state() == AccountState::Active)
    }
}

/// The account `id`.
///
/// # Errors
/// [`StoreError`]
pub fn account(snapshot: &dyn Snapshot, id: &str) -> Result<Account, StoreError> {
    let stored: Option<StoredAccount> = decoded(snapshot, &key::account(id), "an account")?;
    Ok(match stored {
        Some(stored) if stored.phase() == Phase::Open => Account::Open(stored),
        Some(stored) if matches!(stored.phase(), Phase::Staging | Phase::Purging) => Account::Busy,
        _ => Account::Absent,
    })
}

/// A mailbox of an account.
///
/// # Errors
/// [`StoreError`]
pub fn mailbox(
    snapshot: &dyn Snapshot,
    id: &str,
    mailbox_id: u64,
) -> Result<Option<StoredMailbox>, StoreError> {
    decoded(snapshot, &key::mailbox(id, mailbox_id), "a mailbox")
}

/// The id of the mailbox called `name`, if there is one.
///
/// # Errors
/// [`StoreError`]
pub fn mailbox_id(
    snapshot: &dyn Snapshot,
    id: &str,
    name: &str,
) -> Result<Option<u64>, StoreError> {
    let Some(name) = mailbox::canonical_name(name) else {
        return Ok(None);
    };
    match snapshot.get(&key::name(id, &name))? {
        Some(number) => mailbox::decode_id(&number).map(Some),
        None => Ok(None),
    }
}

/// All mailboxes of an account, by id.
///
/// # Errors
/// [`StoreError`]
pub fn mailboxes(
    snapshot: &dyn Snapshot,
    id: &str,
) -> Result<Vec<(u64, StoredMailbox)>, StoreError> {
    let prefix = key::of_account(b'x', id);
    let pairs = snapshot.scan(&prefix, &prefix, mailbox::MAILBOXES_MAX as usize)?;
    let mut mailboxes = Vec::with_capacity(pairs.len());
    for (found, value) in pairs {
        let mailbox = StoredMailbox::decode(value).map_err(|_| StoreError::Corrupt("a mailbox"))?;
        mailboxes.push((mailbox_of(&found, b'x')?, mailbox));
    }
    Ok(mailboxes)
}

/// Up to `limit` messages of a mailbox from `uid` on, in UID order.
///
/// # Errors
/// [`StoreError`]
pub fn messages(
    snapshot: &dyn Snapshot,
    id: &str,
    mailbox_id: u64,
    uid: u32,
    limit: usize,
) -> Result<Vec<(u32, StoredMessage)>, StoreError> {
    let prefix = key::of_mailbox(b'u', id, mailbox_id);
    let pairs = snapshot.scan(&prefix, &key::message(id, mailbox_id, uid), limit)?;
    let mut messages = Vec::with_capacity(pairs.len());
    for (found, value) in pairs {
        let message = StoredMessage::decode(value).map_err(|_| StoreError::Corrupt("a message"))?;
        let mut parts = Parts::of(&found, b'u').ok_or(StoreError::Corrupt("a key"))?;
        parts.account();
        parts.u64();
        let uid = parts.u32().ok_or(StoreError::Corrupt("a key"))?;
        messages.push((uid, message));
    }
    Ok(messages)
}

/// One message, if it is (still) there under this UIDVALIDITY. Mailbox 0 is INBOX.
///
/// # Errors
/// [`StoreError`]
pub fn message(
    snapshot: &dyn Snapshot,
    id: &str,
    mailbox_id: u64,
    uid_validity: u32,
    uid: u32,
) -> Result<Option<StoredMessage>, StoreError> {
    match mailbox_under(snapshot, id, mailbox_id, uid_validity)? {
        Some(mailbox_id) => message_in(snapshot, id, mailbox_id, uid),
        None => Ok(None),
    }
}

/// The id of a mailbox of an account, if it has this UIDVALIDITY. Mailbox 0 is INBOX.
///
/// # Errors
/// [`StoreError`]
pub fn mailbox_under(
    snapshot: &dyn Snapshot,
    id: &str,
    mailbox_id: u64,
    uid_validity: u32,
) -> Result<Option<u64>, StoreError> {
    let mailbox_id = match (mailbox_id, account(snapshot, id)?) {
        (0, Account::Open(account)) => account.inbox,
        (given, Account::Open(_)) => given,
        _ => return Ok(None),
    };
    let found = mailbox(snapshot, id, mailbox_id)?;
    let fits = found.is_some_and(|mailbox| mailbox.uid_validity == uid_validity);
    Ok(fits.then_some(mailbox_id))
}

/// One message of a mailbox that [`mailbox_under`] has found.
///
/// # Errors
/// [`StoreError`]
pub fn message_in(
    snapshot: &dyn Snapshot,
    id: &str,
    mailbox_id: u64,
    uid: u32,
) -> Result<Option<StoredMessage>, StoreError> {
    decoded(snapshot, &key::message(id, mailbox_id, uid), "a message")
}

/// Prefix and content of a message.
///
/// # Errors
/// [`StoreError`]
pub fn body(snapshot: &dyn Snapshot, message: &StoredMessage) -> Result<StoredBody, StoreError> {
    decoded(snapshot, &key::body(message.body_position), "a body")?
        .ok_or(StoreError::Corrupt("a message's body"))
}

/// The blobs that mails of this shard name, among mails from the key `from` on (empty: all); looks at up to `limit` mails and
/// says where to go on.
///
/// # Errors
/// [`StoreError`]
pub fn blobs(
    snapshot: &dyn Snapshot,
    from: &[u8],
    limit: usize,
) -> Result<(Vec<MessageId>, Option<Vec<u8>>), StoreError> {
    let table = key::table(b'e');
    let from = if from.is_empty() { &table } else { from };
    let pairs = snapshot.scan(&table, from, limit)?;
    let next = pairs.get(limit.saturating_sub(1)).map(|(last, _)| {
        let mut next = last.to_vec();
        next.push(0);
        next
    });
    let mut named = Vec::new();
    for (_, value) in pairs {
        let email = StoredEmail::decode(value).map_err(|_| StoreError::Corrupt("a mail"))?;
        // a smaller one is inside the store
        if email.size <= INLINE_BYTES_MAX as u64 {
            continue;
        }
        let stored: Option<StoredBody> =
            decoded(snapshot, &key::body(email.body_position), "a body")?;
        let content = stored
            .and_then(|stored| stored.body)
            .and_then(|body| body.content);
        if let Some(Content::Blob(blob)) = content {
            named.extend(MessageId::from_bytes(&blob.id));
        }
    }
    Ok((named, next))
}

/// What the open accounts of each tenant have here, from the tenant after `after` on, at most `limit`.
///
/// # Errors
/// [`StoreError`]
pub fn tenants(
    snapshot: &dyn Snapshot,
    after: Option<&str>,
    limit: usize,
) -> Result<Vec<(String, StoredTenant)>, StoreError> {
    let table = key::table(b't');
    let mut from = after.map_or_else(|| table.clone(), key::tenant);
    if after.is_some() {
        from.push(0);
    }
    let mut tenants = Vec::new();
    for (found, value) in snapshot.scan(&table, &from, limit)? {
        let tenant = StoredTenant::decode(value).map_err(|_| StoreError::Corrupt("a tenant"))?;
        let name = found.get(table.len()..).unwrap_or_default().to_vec();
        let name = String::from_utf8(name).map_err(|_| StoreError::Corrupt("a key"))?;
        tenants.push((name, tenant));
    }
    Ok(tenants)
}

/// What all open accounts have here.
///
/// # Errors
/// [`StoreError`]
pub fn totals(snapshot: &dyn Snapshot) -> Result<StoredTenant, StoreError> {
    const PAGE: usize = 1_000;
    let mut totals = StoredTenant::default();
    let mut after: Option<String> = None;
    loop {
        let page = tenants(snapshot, after.as_deref(), PAGE)?;
        for (_, tenant) in &page {
            totals.accounts += tenant.accounts;
            totals.messages += tenant.messages;
            totals.used_bytes += tenant.used_bytes;
        }
        match page.into_iter().nth(PAGE - 1) {
            Some((last, _)) => after = Some(last),
            None => return Ok(totals),
        }
    }
}

pub(crate) fn mailbox_of(found: &[u8], letter: u8) -> Result<u64, StoreError> {
    const CORRUPT: StoreError = StoreError::Corrupt("a key");
    let mut parts = Parts::of(found, letter).ok_or(CORRUPT)?;
    parts.account().ok_or(CORRUPT)?;
    parts.u64().ok_or(CORRUPT)
}

pub(crate) fn decoded<T: Message + Default>(
    snapshot: &dyn Snapshot,
    key: &[u8],
    what: &'static str,
) -> Result<Option<T>, StoreError> {
    match snapshot.get(key)? {
        Some(value) => T::decode(value)
            .map(Some)
            .map_err(|_| StoreError::Corrupt(what)),
        None => Ok(None),
    }
}

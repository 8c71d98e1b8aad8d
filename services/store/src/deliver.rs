//! Commit point B: one mail for one recipient, stored once per delivery id, and `Void`, which makes sure that it never is.

use bytes::Bytes;
use hikyaku_mail::id::DeliveryId;
use hikyaku_proto::v1::{
    AccountState, Body, Deliver, StoredAccount, StoredBody, StoredEmail, StoredMailbox,
    StoredMessage, StoredTombstone, Void,
};
use prost::Message;

use crate::id::EmailId;
use crate::key::DELIVERY_ID_BYTES;
use crate::machine::{Answer, At, MailboxMachine, StoredAt};
use crate::{StoreError, flag, key, mailbox};

/// The largest content a body may claim to have: a mailbox full of these cannot overflow a counter.
const BODY_BYTES_MAX: u64 = 1 << 31;
/// The longest prefix.
const PREFIX_BYTES_MAX: usize = 1 << 20;
/// MODSEQ is a 63-bit number (RFC 7162 section 7).
pub(crate) const MODSEQ_MAX: u64 = i64::MAX as u64;

/// The delivery id in `bytes`, if they are one.
pub(crate) fn delivery_id(bytes: &[u8]) -> Option<[u8; DELIVERY_ID_BYTES]> {
    DeliveryId::from_bytes(bytes).map(DeliveryId::to_bytes)
}

/// What the state hash sees of a prefix.
pub(crate) fn prefix_hash(prefix: &[u8]) -> u64 {
    let digest = blake3::hash(prefix);
    digest
        .as_bytes()
        .first_chunk()
        .map_or(0, |first| u64::from_le_bytes(*first))
}

/// The body, if it can be stored with this prefix.
pub(crate) fn storable(body: Option<Body>, prefix: &[u8]) -> Option<Body> {
    let body = body?;
    let fits = body.content.is_some()
        && body.blake3.len() == blake3::OUT_LEN
        && body.size <= BODY_BYTES_MAX
        && prefix.len() <= PREFIX_BYTES_MAX;
    fits.then_some(body)
}

/// Whether a mailbox can take one more message.
pub(crate) fn has_numbers_left(mailbox: &StoredMailbox) -> bool {
    mailbox.uid_next < u32::MAX && mailbox.highest_modseq < MODSEQ_MAX
}

impl MailboxMachine {
    pub(crate) fn deliver(&mut self, at: At, command: Deliver) -> Result<Answer, StoreError> {
        let Some(delivery_id) = delivery_id(&command.delivery_id) else {
            return Ok(Answer::Refused("not a delivery id"));
        };
        let Some(body) = storable(command.body, &command.prefix) else {
            return Ok(Answer::Refused("not a body"));
        };
        let id = command.account;
        let account = match self.opened(&id)? {
            Ok(account) => account,
            Err(answer) => return Ok(answer),
        };
        // 0: whatever generation lives here
        if command.generation != 0 && command.generation != account.generation {
            return Ok(Answer::NotOwner);
        }
        // before state and quota: what is stored is stored
        if let Some(answer) = self.seen_before(&id, &delivery_id)? {
            return Ok(answer);
        }
        if matches!(
            account.state(),
            AccountState::Disabled | AccountState::Deleted
        ) {
            return Ok(Answer::Disabled);
        }
        let size = body.size + command.prefix.len() as u64;
        let quota_bytes = match command.quota_bytes {
            0 => account.quota_bytes,
            given => given,
        };
        let fits = account.used_bytes.saturating_add(size) <= quota_bytes;
        if quota_bytes != 0 && !fits {
            self.nearly_full
                .delivery(&id, account.used_bytes, quota_bytes, true);
            return Ok(Answer::OverQuota);
        }
        self.nearly_full.delivery(
            &id,
            account.used_bytes.saturating_add(size),
            quota_bytes,
            false,
        );
        let mailbox_id = self.wanted_mailbox(&id, &account, &command.mailbox)?;
        let message = StoredMessage {
            email_id: EmailId::of_delivery(&delivery_id)
                .to_bytes()
                .to_vec()
                .into(),
            internal_ms: command.received_ms,
            saved_ms: at.time_ms,
            size,
            body_position: at.position,
            ..StoredMessage::default()
        };
        let arrival = Arrival {
            delivery_id,
            message,
            prefix: command.prefix,
            body,
        };
        self.store(&id, account, mailbox_id, arrival)
    }

    /// The mailbox called `name`; INBOX when there is none, so that no mail waits for a folder.
    fn wanted_mailbox(
        &mut self,
        id: &str,
        account: &StoredAccount,
        name: &str,
    ) -> Result<u64, StoreError> {
        if name.is_empty() {
            return Ok(account.inbox);
        }
        let Some(name) = mailbox::canonical_name(name) else {
            return Ok(account.inbox);
        };
        match self.writer.get(&key::name(id, &name))? {
            Some(number) => mailbox::decode_id(&number),
            None => Ok(account.inbox),
        }
    }

    fn store(
        &mut self,
        id: &str,
        mut account: StoredAccount,
        mailbox_id: u64,
        arrival: Arrival,
    ) -> Result<Answer, StoreError> {
        let mailbox_key = key::mailbox(id, mailbox_id);
        let Some(mut mailbox) = self.mailboxes.get(&self.writer, &mailbox_key)? else {
            return Err(StoreError::Corrupt("a mailbox's name"));
        };
        if !has_numbers_left(&mailbox) {
            return Ok(Answer::OverQuota);
        }
        let Arrival {
            delivery_id,
            mut message,
            prefix,
            body,
        } = arrival;
        let uid = mailbox.uid_next;
        let size = message.size;
        mailbox.uid_next += 1;
        mailbox.highest_modseq += 1;
        mailbox.exists += 1;
        mailbox.bytes += size;
        mailbox.unseen += u64::from(message.flags & flag::SEEN == 0);
        message.modseq = mailbox.highest_modseq;
        account.used_bytes += size;
        account.messages += 1;

        let email = StoredEmail {
            delivery_id: Bytes::copy_from_slice(&delivery_id),
            body_position: message.body_position,
            size,
            blake3: body.blake3.clone(),
            prefix_hash: prefix_hash(&prefix),
            links: 1,
            mailbox_id,
            uid_validity: mailbox.uid_validity,
            uid,
        };
        let stored_body = StoredBody {
            prefix,
            body: Some(body),
        };
        let stored_at = StoredAt {
            uid_validity: mailbox.uid_validity,
            uid,
        };
        self.writer.write_body(
            key::body(message.body_position),
            Some(stored_body.encode_to_vec().into()),
        )?;
        let change = key::change(id, mailbox_id, message.modseq, uid);
        self.writer.insert(change, Bytes::new())?;
        self.writer.insert(
            key::email(id, EmailId::of_delivery(&delivery_id)),
            email.encode_to_vec().into(),
        )?;
        self.writer.insert(
            key::message(id, mailbox_id, uid),
            message.encode_to_vec().into(),
        )?;
        self.mailboxes.put(&mut self.writer, mailbox_key, mailbox)?;
        self.charge(&account.tenant, |tenant| {
            tenant.messages += 1;
            tenant.used_bytes += size;
        })?;
        self.put_account(id, account)?;
        Ok(Answer::Delivered(stored_at))
    }

    /// What was decided about a delivery id before, while that is remembered.
    fn seen_before(
        &mut self,
        id: &str,
        delivery_id: &[u8; DELIVERY_ID_BYTES],
    ) -> Result<Option<Answer>, StoreError> {
        let email_key = key::email(id, EmailId::of_delivery(delivery_id));
        if let Some(value) = self.writer.get(&email_key)? {
            let email = StoredEmail::decode(value).map_err(|_| StoreError::Corrupt("an email"))?;
            return Ok(Some(Answer::AlreadyDelivered(StoredAt {
                uid_validity: email.uid_validity,
                uid: email.uid,
            })));
        }
        let Some(value) = self.writer.get(&key::tombstone(id, delivery_id))? else {
            return Ok(None);
        };
        let tombstone =
            StoredTombstone::decode(value).map_err(|_| StoreError::Corrupt("a tombstone"))?;
        Ok(Some(if tombstone.voided {
            Answer::Voided
        } else {
            Answer::AlreadyDelivered(StoredAt {
                uid_validity: tombstone.uid_validity,
                uid: tombstone.uid,
            })
        }))
    }

    /// Remembered for accounts that are not here as well: the delivery may still open them.
    pub(crate) fn void(&mut self, command: &Void) -> Result<Answer, StoreError> {
        let Some(delivery_id) = delivery_id(&command.delivery_id) else {
            return Ok(Answer::Refused("not a delivery id"));
        };
        match self.opened(&command.account)? {
            Ok(_) | Err(Answer::NotOwner) => {}
            Err(answer) => return Ok(answer),
        }
        if let Some(answer) = self.seen_before(&command.account, &delivery_id)? {
            return Ok(answer);
        }
        let tombstone = StoredTombstone {
            voided: true,
            ..StoredTombstone::default()
        };
        self.bury(&command.account, &delivery_id, tombstone)?;
        Ok(Answer::Voided)
    }
}

/// A mail about to be stored.
struct Arrival {
    delivery_id: [u8; DELIVERY_ID_BYTES],
    message: StoredMessage,
    prefix: Bytes,
    body: Body,
}

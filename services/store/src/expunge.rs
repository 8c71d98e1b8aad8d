//! Expunge: messages go, their UIDs never come again, and their delivery ids are remembered for a while.

use bytes::Bytes;
use hikyaku_proto::v1::{
    Expunge, StoredEmail, StoredMailbox, StoredMessage, StoredTombstone, StoredVanished,
};
use prost::Message;

use crate::deliver::{MODSEQ_MAX, delivery_id};
use crate::id::EmailId;
use crate::machine::{Answer, MailboxMachine};
use crate::{StoreError, flag, key};

/// UIDs in one command.
pub const UIDS_MAX: usize = 10_000;
/// Vanished entries kept per mailbox: clients that were away for longer synchronise anew.
const VANISHED_MAX: u64 = 100_000;
/// How long a vanished entry is kept, in log time.
const VANISHED_MS: u64 = 90 * 24 * 3_600 * 1_000;
/// Expired entries removed by a command beyond as many as it added.
const VANISHED_EXTRA: usize = 2;

impl MailboxMachine {
    pub(crate) fn expunge(&mut self, command: &Expunge) -> Result<Answer, StoreError> {
        if command.uids.len() > UIDS_MAX {
            return Ok(Answer::Refused("too many messages in one command"));
        }
        let id = &command.account;
        let mut account = match self.opened(id)? {
            Ok(account) => account,
            Err(answer) => return Ok(answer),
        };
        let mailbox_id = match command.mailbox_id {
            0 => account.inbox,
            given => given,
        };
        let mailbox_key = key::mailbox(id, mailbox_id);
        let Some(mut mailbox) = self.mailboxes.get(&self.writer, &mailbox_key)? else {
            return Ok(Answer::Expunged(0));
        };
        // RFC 9051 §2.3.1.1: other UIDVALIDITY, other messages
        if mailbox.uid_validity != command.uid_validity || mailbox.highest_modseq >= MODSEQ_MAX {
            return Ok(Answer::Expunged(0));
        }
        let modseq = mailbox.highest_modseq + 1;
        let mut uids = command.uids.clone();
        uids.sort_unstable();
        uids.dedup();
        let (mut expunged, mut bytes) = (0u32, 0u64);
        for uid in uids {
            let message_key = key::message(id, mailbox_id, uid);
            let Some(value) = self.writer.get(&message_key)? else {
                continue;
            };
            let message = StoredMessage::decode(value.clone())
                .map_err(|_| StoreError::Corrupt("a message"))?;
            expunged += 1;
            bytes += message.size;
            mailbox.exists = mailbox.exists.saturating_sub(1);
            mailbox.bytes = mailbox.bytes.saturating_sub(message.size);
            if message.flags & flag::SEEN == 0 {
                mailbox.unseen = mailbox.unseen.saturating_sub(1);
            }
            self.writer.remove(message_key, &value)?;
            let change = key::change(id, mailbox_id, message.modseq, uid);
            self.writer.remove(change, &[])?;
            self.vanish(id, mailbox_id, modseq, uid)?;
            self.unlink(id, mailbox.uid_validity, uid, &message)?;
        }
        if expunged == 0 {
            return Ok(Answer::Expunged(0));
        }
        mailbox.highest_modseq = modseq;
        mailbox.vanished += u64::from(expunged);
        self.forget_vanished(id, mailbox_id, &mut mailbox, expunged as usize)?;
        self.mailboxes.put(&mut self.writer, mailbox_key, mailbox)?;
        self.charge(&account.tenant, |tenant| {
            tenant.messages = tenant.messages.saturating_sub(u64::from(expunged));
            tenant.used_bytes = tenant.used_bytes.saturating_sub(bytes);
        })?;
        account.messages = account.messages.saturating_sub(u64::from(expunged));
        account.used_bytes = account.used_bytes.saturating_sub(bytes);
        self.nearly_full.changed(id, account.used_bytes);
        self.put_account(id, account)?;
        Ok(Answer::Expunged(expunged))
    }

    fn vanish(
        &mut self,
        id: &str,
        mailbox_id: u64,
        modseq: u64,
        uid: u32,
    ) -> Result<(), StoreError> {
        let vanished = StoredVanished {
            expunged_ms: self.shard.log_time_ms,
        };
        self.writer.insert(
            key::vanished(id, mailbox_id, modseq, uid),
            vanished.encode_to_vec().into(),
        )
    }

    /// One message less shows the mail. With the last one the body goes, and the delivery id is remembered for a while.
    fn unlink(
        &mut self,
        id: &str,
        uid_validity: u32,
        uid: u32,
        message: &StoredMessage,
    ) -> Result<(), StoreError> {
        let email_id =
            EmailId::from_bytes(&message.email_id).ok_or(StoreError::Corrupt("an email id"))?;
        let email_key = key::email(id, email_id);
        let Some(value) = self.writer.get(&email_key)? else {
            return Err(StoreError::Corrupt("an email of a message"));
        };
        let mut email =
            StoredEmail::decode(value.clone()).map_err(|_| StoreError::Corrupt("an email"))?;
        if email.links > 1 {
            email.links -= 1;
            return self
                .writer
                .replace(email_key, &value, email.encode_to_vec().into());
        }
        self.writer.remove(email_key, &value)?;
        self.writer
            .write_body(key::body(email.body_position), None)?;
        let Some(delivery_id) = delivery_id(&email.delivery_id) else {
            return Ok(());
        };
        let tombstone = StoredTombstone {
            uid_validity,
            uid,
            ..StoredTombstone::default()
        };
        self.bury(id, &delivery_id, tombstone)
    }

    /// Keeps the vanished log within its bounds, a few entries at a time.
    fn forget_vanished(
        &mut self,
        id: &str,
        mailbox_id: u64,
        mailbox: &mut StoredMailbox,
        added: usize,
    ) -> Result<(), StoreError> {
        let prefix = key::of_mailbox(b'v', id, mailbox_id);
        let oldest = self.writer.scan(&prefix, &prefix, added + VANISHED_EXTRA)?;
        for (found, value) in oldest {
            let vanished = StoredVanished::decode(Bytes::clone(&value))
                .map_err(|_| StoreError::Corrupt("a vanished entry"))?;
            let expired =
                vanished.expunged_ms.saturating_add(VANISHED_MS) <= self.shard.log_time_ms;
            if mailbox.vanished <= VANISHED_MAX && !expired {
                break;
            }
            let mut parts = key::Parts::of(&found, b'v').ok_or(StoreError::Corrupt("a key"))?;
            parts.account();
            parts.u64();
            let modseq = parts.u64().ok_or(StoreError::Corrupt("a key"))?;
            mailbox.low_modseq = mailbox.low_modseq.max(modseq);
            mailbox.vanished = mailbox.vanished.saturating_sub(1);
            self.writer.remove(found.to_vec(), &value)?;
        }
        Ok(())
    }
}

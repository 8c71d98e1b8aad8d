//! Ingest: an account comes back from a backup, piece by piece, and is shown when it is whole.
//!
//! Until then it is in phase STAGING: nobody sees it and its mail waits in the queue. An attempt that is given up is emptied
//! an hour of log time after its last piece. An account that is open here and has mail is never restored over. Every mailbox gets a new,
//! higher UIDVALIDITY, so that UIDs given after the backup was taken cannot be confused with those it brings.

use bytes::Bytes;
use hikyaku_mail::id::AccountId;
use hikyaku_proto::v1::ingest::Piece;
use hikyaku_proto::v1::stored_account::Phase;
use hikyaku_proto::v1::{
    AccountState, Ingest, IngestAccount, IngestEnd, IngestMailbox, IngestMessage, IngestTombstone,
    StoredAccount, StoredBody, StoredEmail, StoredMailbox, StoredMessage, StoredTombstone,
};
use prost::Message;

use crate::account::{next_uid_validity, numbers_of};
use crate::deliver::{MODSEQ_MAX, delivery_id, prefix_hash, storable};
use crate::flag::{self, KEYWORDS_MAX};
use crate::id::EmailId;
use crate::machine::{Answer, At, MailboxMachine};
use crate::mailbox::{MAILBOXES_MAX, canonical_name, special_use};
use crate::{StoreError, key};

/// Keys of old remains that one `IngestAccount` removes.
const DISCARDED_PER_PIECE: usize = 2_000;
/// Log time without a piece after which an attempt counts as given up, and how exactly that is kept.
const STAGING_MS: u64 = 3_600 * 1_000;
const STAGING_STEP_MS: u64 = 10 * 60 * 1_000;
/// Numbers a backup may bring, far from where counting on would end.
const MAILBOX_ID_MAX: u64 = 1 << 62;
const UID_VALIDITY_MAX: u32 = 0xf800_0000;

impl MailboxMachine {
    pub(crate) fn ingest(&mut self, at: At, command: Ingest) -> Result<Answer, StoreError> {
        let id = command.account;
        if id.parse::<AccountId>().is_err() || command.generation == 0 {
            return Ok(Answer::Refused("not an account id or not a generation"));
        }
        let stored = self.accounts.get(&self.writer, &key::account(&id))?;
        let piece = match command.piece {
            Some(Piece::Begin(begin)) => {
                return self.begin(&id, command.generation, begin, stored);
            }
            Some(piece) => piece,
            None => return Ok(Answer::Refused("not a piece of an account")),
        };
        let Some(mut account) = stored else {
            return Ok(Answer::Refused("the account is not being restored"));
        };
        if account.phase() == Phase::Staging && account.generation == command.generation {
            self.stay_staged(&id, &mut account)?;
        }
        match piece {
            Piece::End(end) if account.phase() == Phase::Open => Ok(ended_before(&account, &end)),
            _ if account.phase() != Phase::Staging || account.generation != command.generation => {
                Ok(Answer::Refused("the account is not being restored"))
            }
            Piece::Mailbox(mailbox) => self.ingest_mailbox(at, &id, account, mailbox),
            Piece::Message(message) => self.ingest_message(at, &id, account, message),
            Piece::Tombstone(tombstone) => self.ingest_tombstone(&id, &tombstone),
            Piece::End(end) => self.ingest_end(&id, account, &end),
            Piece::Begin(_) => Ok(Answer::Refused("not a piece of an account")),
        }
    }

    /// Moves the time at which the attempt counts as given up.
    fn stay_staged(&mut self, id: &str, account: &mut StoredAccount) -> Result<(), StoreError> {
        let abandoned_ms = self.shard.log_time_ms.saturating_add(STAGING_MS);
        if abandoned_ms.saturating_sub(account.purge_at_ms) < STAGING_STEP_MS {
            return Ok(());
        }
        self.schedule_purge(id, account, Some(abandoned_ms))?;
        self.put_account(id, account.clone())
    }

    fn begin(
        &mut self,
        id: &str,
        generation: u64,
        begin: IngestAccount,
        stored: Option<StoredAccount>,
    ) -> Result<Answer, StoreError> {
        let state = match AccountState::try_from(begin.state) {
            Ok(state) if state != AccountState::Unspecified => state,
            _ => return Ok(Answer::Refused("not an account state")),
        };
        if begin.tenant.len() > key::TENANT_BYTES_MAX {
            return Ok(Answer::Refused("not a tenant"));
        }
        if begin.next_mailbox > MAILBOX_ID_MAX || begin.last_uid_validity > UID_VALIDITY_MAX {
            return Ok(Answer::Refused("numbers that cannot be continued"));
        }
        if let Some(account) = &stored
            && account.phase() == Phase::Open
            && (account.messages != 0 || account.state() != AccountState::Active)
        {
            return Ok(Answer::Exists);
        }
        let mut old = stored.unwrap_or_default();
        let abandoned_ms = self.shard.log_time_ms.saturating_add(STAGING_MS);
        self.schedule_purge(id, &mut old, Some(abandoned_ms))?;
        if !matches!(old.phase(), Phase::Unspecified | Phase::Gone) {
            self.hide(id, &mut old)?;
            if self.discard(id, DISCARDED_PER_PIECE)? == DISCARDED_PER_PIECE {
                self.put_account(id, old)?;
                return Ok(Answer::Discarding);
            }
        }
        let numbers = numbers_of(Some(old));
        let mut account = StoredAccount {
            generation,
            tenant: begin.tenant,
            quota_bytes: begin.quota_bytes,
            next_mailbox: numbers.next_mailbox.max(begin.next_mailbox),
            last_uid_validity: numbers.last_uid_validity.max(begin.last_uid_validity),
            ..numbers
        };
        account.set_state(state);
        account.set_phase(Phase::Staging);
        self.put_account(id, account)?;
        Ok(Answer::Ingested)
    }

    fn ingest_mailbox(
        &mut self,
        at: At,
        id: &str,
        mut account: StoredAccount,
        piece: IngestMailbox,
    ) -> Result<Answer, StoreError> {
        let (Some(name), Some(special_use)) =
            (canonical_name(&piece.name), special_use(&piece.special_use))
        else {
            return Ok(Answer::Refused("not a mailbox name or special use"));
        };
        let numbers_fit = (1..MAILBOX_ID_MAX).contains(&piece.mailbox_id)
            && piece.uid_next != 0
            && piece.uid_validity <= UID_VALIDITY_MAX
            && (1..=MODSEQ_MAX).contains(&piece.highest_modseq);
        let keywords_fit = piece.keywords.len() <= KEYWORDS_MAX
            && piece.keywords.iter().all(|name| flag::is_keyword(name));
        if !numbers_fit || !keywords_fit || account.mailboxes >= MAILBOXES_MAX {
            return Ok(Answer::Refused("not a mailbox that can be kept here"));
        }
        let mailbox_key = key::mailbox(id, piece.mailbox_id);
        let name_key = key::name(id, &name);
        if let Some(there) = self.mailboxes.get(&self.writer, &mailbox_key)? {
            return Ok(if there.name == name {
                Answer::Ingested
            } else {
                Answer::Refused("two mailboxes with one id")
            });
        }
        if self.writer.get(&name_key)?.is_some() {
            return Ok(Answer::Refused("two mailboxes with one name"));
        }
        let last = account.last_uid_validity.max(piece.uid_validity);
        account.last_uid_validity = next_uid_validity(last, at.time_ms);
        account.next_mailbox = account.next_mailbox.max(piece.mailbox_id + 1);
        account.mailboxes += 1;
        if name == "INBOX" {
            account.inbox = piece.mailbox_id;
        }
        let mailbox = StoredMailbox {
            name,
            special_use: special_use.to_owned(),
            uid_validity: account.last_uid_validity,
            uid_next: piece.uid_next,
            highest_modseq: piece.highest_modseq,
            keywords: piece.keywords,
            // what vanished before is not known here
            low_modseq: piece.highest_modseq,
            ..StoredMailbox::default()
        };
        let number = piece.mailbox_id.to_be_bytes().to_vec();
        self.writer.insert(name_key, number.into())?;
        self.mailboxes.put(&mut self.writer, mailbox_key, mailbox)?;
        self.put_account(id, account)?;
        Ok(Answer::Ingested)
    }

    fn ingest_message(
        &mut self,
        at: At,
        id: &str,
        mut account: StoredAccount,
        piece: IngestMessage,
    ) -> Result<Answer, StoreError> {
        let Some(email_id) = EmailId::from_bytes(&piece.email_id) else {
            return Ok(Answer::Refused("not an email id"));
        };
        let delivered_as = delivery_id(&piece.delivery_id);
        let derived = delivered_as.as_ref().map(EmailId::of_delivery);
        let ids_fit = match derived {
            Some(derived) => derived == email_id,
            None => piece.delivery_id.is_empty(),
        };
        let Some(body) = storable(piece.body.clone(), &piece.prefix).filter(|_| ids_fit) else {
            return Ok(Answer::Refused("not a body, or not its email id"));
        };
        let mailbox_key = key::mailbox(id, piece.mailbox_id);
        let Some(mut mailbox) = self.mailboxes.get(&self.writer, &mailbox_key)? else {
            return Ok(Answer::Refused("no such mailbox"));
        };
        let numbers_fit = (1..mailbox.uid_next).contains(&piece.uid)
            && (1..=mailbox.highest_modseq).contains(&piece.modseq);
        let Ok(flags) = flag::parse(&piece.flags, &mut mailbox.keywords.clone(), false) else {
            return Ok(Answer::Refused("not a flag"));
        };
        if !numbers_fit {
            return Ok(Answer::Refused("not a UID or MODSEQ of its mailbox"));
        }
        let message_key = key::message(id, piece.mailbox_id, piece.uid);
        if let Some(value) = self.writer.get(&message_key)? {
            let there =
                StoredMessage::decode(value).map_err(|_| StoreError::Corrupt("a message"))?;
            return Ok(if there.email_id == piece.email_id {
                Answer::Ingested
            } else {
                Answer::Refused("two messages with one UID")
            });
        }
        let size = body.size + piece.prefix.len() as u64;
        if let Some(delivered_as) = &delivered_as {
            self.unbury(id, delivered_as)?;
        }
        let link = Link {
            email_id,
            size,
            uid_validity: mailbox.uid_validity,
        };
        let Some(body_position) = self.link(at, id, &piece, body, link)? else {
            return Ok(Answer::Refused("two mails with one email id"));
        };
        let message = StoredMessage {
            email_id: piece.email_id,
            modseq: piece.modseq,
            flags: flags.system,
            keywords: flags.keywords,
            internal_ms: piece.received_ms,
            saved_ms: piece.saved_ms,
            size,
            body_position,
        };
        mailbox.exists += 1;
        mailbox.bytes += size;
        mailbox.unseen += u64::from(message.flags & flag::SEEN == 0);
        account.messages += 1;
        account.used_bytes += size;
        let change = key::change(id, piece.mailbox_id, message.modseq, piece.uid);
        self.writer.insert(change, Bytes::new())?;
        self.writer
            .insert(message_key, message.encode_to_vec().into())?;
        self.mailboxes.put(&mut self.writer, mailbox_key, mailbox)?;
        self.put_account(id, account)?;
        Ok(Answer::Ingested)
    }

    /// The mail behind a message: its body is stored with the first message that shows it. `None` when another mail has its id.
    fn link(
        &mut self,
        at: At,
        id: &str,
        piece: &IngestMessage,
        body: hikyaku_proto::v1::Body,
        link: Link,
    ) -> Result<Option<u64>, StoreError> {
        let email_key = key::email(id, link.email_id);
        if let Some(value) = self.writer.get(&email_key)? {
            let mut email =
                StoredEmail::decode(value.clone()).map_err(|_| StoreError::Corrupt("an email"))?;
            if email.blake3 != body.blake3 || email.size != link.size {
                return Ok(None);
            }
            email.links += 1;
            let body_position = email.body_position;
            self.writer
                .replace(email_key, &value, email.encode_to_vec().into())?;
            return Ok(Some(body_position));
        }
        let email = StoredEmail {
            delivery_id: piece.delivery_id.clone(),
            body_position: at.position,
            size: link.size,
            blake3: body.blake3.clone(),
            prefix_hash: prefix_hash(&piece.prefix),
            links: 1,
            mailbox_id: piece.mailbox_id,
            uid_validity: link.uid_validity,
            uid: piece.uid,
        };
        let stored_body = StoredBody {
            prefix: piece.prefix.clone(),
            body: Some(body),
        };
        self.writer.write_body(
            key::body(at.position),
            Some(stored_body.encode_to_vec().into()),
        )?;
        self.writer
            .insert(email_key, email.encode_to_vec().into())?;
        Ok(Some(at.position))
    }

    fn ingest_tombstone(
        &mut self,
        id: &str,
        piece: &IngestTombstone,
    ) -> Result<Answer, StoreError> {
        let Some(delivery_id) = delivery_id(&piece.delivery_id) else {
            return Ok(Answer::Refused("not a delivery id"));
        };
        let email_key = key::email(id, EmailId::of_delivery(&delivery_id));
        let known = self.writer.get(&email_key)?.is_some()
            || self
                .writer
                .get(&key::tombstone(id, &delivery_id))?
                .is_some();
        if !known {
            let tombstone = StoredTombstone {
                expires_ms: 0,
                voided: piece.voided,
                uid_validity: piece.uid_validity,
                uid: piece.uid,
            };
            self.bury(id, &delivery_id, tombstone)?;
        }
        Ok(Answer::Ingested)
    }

    fn ingest_end(
        &mut self,
        id: &str,
        mut account: StoredAccount,
        end: &IngestEnd,
    ) -> Result<Answer, StoreError> {
        if account.messages != end.messages {
            return Ok(Answer::Refused("messages are missing"));
        }
        if account.inbox == 0 {
            return Ok(Answer::Refused("INBOX is missing"));
        }
        let purge_at_ms = (account.state() == AccountState::Deleted).then_some(end.purge_at_ms);
        self.schedule_purge(id, &mut account, purge_at_ms)?;
        account.set_phase(Phase::Open);
        let (messages, used_bytes) = (account.messages, account.used_bytes);
        self.nearly_full.told(id, used_bytes, account.quota_bytes);
        self.charge(&account.tenant, |tenant| {
            tenant.accounts += 1;
            tenant.messages += messages;
            tenant.used_bytes += used_bytes;
        })?;
        self.put_account(id, account)?;
        Ok(Answer::Ingested)
    }
}

/// The end came again: the first one may have stayed unanswered.
fn ended_before(account: &StoredAccount, end: &IngestEnd) -> Answer {
    if account.messages == end.messages {
        Answer::Ingested
    } else {
        Answer::Exists
    }
}

/// What a message says about the mail it shows.
struct Link {
    email_id: EmailId,
    size: u64,
    uid_validity: u32,
}

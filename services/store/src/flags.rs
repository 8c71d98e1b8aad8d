//! StoreFlags: flags and keywords, with UNCHANGEDSINCE judged here and nowhere earlier (RFC 7162).

use bytes::Bytes;
use hikyaku_proto::v1::{StoreFlags, StoredMessage, store_flags::How};
use prost::Message;

use crate::deliver::MODSEQ_MAX;
use crate::expunge::UIDS_MAX;
use crate::flag::{self, FlagError, Flags};
use crate::machine::{Answer, Flagged, MailboxMachine};
use crate::{StoreError, key};

impl MailboxMachine {
    pub(crate) fn store_flags(&mut self, command: &StoreFlags) -> Result<Answer, StoreError> {
        if command.uids.len() > UIDS_MAX {
            return Ok(Answer::Refused("too many messages in one command"));
        }
        let how = command.how();
        if how == How::Unspecified {
            return Ok(Answer::Refused("neither replace, add nor remove"));
        }
        let id = &command.account;
        let account = match self.opened(id)? {
            Ok(account) => account,
            Err(answer) => return Ok(answer),
        };
        let mailbox_id = match command.mailbox_id {
            0 => account.inbox,
            given => given,
        };
        let mailbox_key = key::mailbox(id, mailbox_id);
        let Some(mut mailbox) = self.mailboxes.get(&self.writer, &mailbox_key)? else {
            return Ok(Answer::Refused("no such mailbox"));
        };
        if mailbox.uid_validity != command.uid_validity {
            return Ok(Answer::Refused("another UIDVALIDITY"));
        }
        if mailbox.highest_modseq >= MODSEQ_MAX {
            return Ok(Answer::Refused("no MODSEQ left"));
        }
        let before = mailbox.clone();
        let given = match flag::parse(&command.flags, &mut mailbox.keywords, how != How::Remove) {
            Ok(given) => given,
            Err(FlagError::NotAFlag) => return Ok(Answer::Refused("not a flag")),
            Err(FlagError::TooManyKeywords) => {
                return Ok(Answer::Refused("too many keywords in the mailbox"));
            }
        };
        let modseq = mailbox.highest_modseq + 1;
        let mut done = Flagged::default();
        let mut uids = command.uids.clone();
        uids.sort_unstable();
        uids.dedup();
        for uid in uids {
            let message_key = key::message(id, mailbox_id, uid);
            let Some(value) = self.writer.get(&message_key)? else {
                continue;
            };
            let mut message = StoredMessage::decode(value.clone())
                .map_err(|_| StoreError::Corrupt("a message"))?;
            if command.unchanged_since != 0 && message.modseq > command.unchanged_since {
                done.refused.push(uid);
                continue;
            }
            let old = Flags {
                system: message.flags,
                keywords: message.keywords,
            };
            let new = combine(old, how, given);
            if new == old {
                continue;
            }
            let old_change = key::change(id, mailbox_id, message.modseq, uid);
            self.writer.remove(old_change, &[])?;
            let change = key::change(id, mailbox_id, modseq, uid);
            self.writer.insert(change, Bytes::new())?;
            match (old.system & flag::SEEN, new.system & flag::SEEN) {
                (0, flag::SEEN) => mailbox.unseen = mailbox.unseen.saturating_sub(1),
                (flag::SEEN, 0) => mailbox.unseen += 1,
                _ => {}
            }
            message.flags = new.system;
            message.keywords = new.keywords;
            message.modseq = modseq;
            self.writer
                .replace(message_key, &value, message.encode_to_vec().into())?;
            done.changed.push(uid);
        }
        if !done.changed.is_empty() {
            mailbox.highest_modseq = modseq;
        }
        done.modseq = mailbox.highest_modseq;
        if mailbox != before {
            self.mailboxes.put(&mut self.writer, mailbox_key, mailbox)?;
        }
        Ok(Answer::Flagged(done))
    }
}

fn combine(old: Flags, how: How, given: Flags) -> Flags {
    match how {
        How::Add => Flags {
            system: old.system | given.system,
            keywords: old.keywords | given.keywords,
        },
        How::Remove => Flags {
            system: old.system & !given.system,
            keywords: old.keywords & !given.keywords,
        },
        How::Replace => given,
        How::Unspecified => old,
    }
}

//! Accounts: opened after Home said so, set by operators, emptied when they are deleted.

use hikyaku_mail::id::AccountId;
use hikyaku_proto::v1::stored_account::Phase;
use hikyaku_proto::v1::{
    AccountState, OpenAccount, SetAccount, StoredAccount, StoredEmail, StoredMailbox, StoredTenant,
};
use prost::Message;

use crate::machine::{Answer, At, MailboxMachine};
use crate::{StoreError, key};

/// What an account has from its first use: name and RFC 6154 attribute.
const FIRST_MAILBOXES: [(&str, &str); 6] = [
    ("INBOX", ""),
    ("Sent", "\\Sent"),
    ("Drafts", "\\Drafts"),
    ("Junk", "\\Junk"),
    ("Trash", "\\Trash"),
    ("Archive", "\\Archive"),
];
/// Seconds from which on a clock is not believed (the year 2097): UIDVALIDITY then counts.
const CREDIBLE_SECONDS_MAX: u64 = 0xf000_0000;

/// A UIDVALIDITY above all before it, in an account that has given out `last`.
pub(crate) fn next_uid_validity(last: u32, time_ms: u64) -> u32 {
    let seconds = Some(time_ms / 1_000)
        .filter(|seconds| *seconds < CREDIBLE_SECONDS_MAX)
        .and_then(|seconds| u32::try_from(seconds).ok())
        .unwrap_or_default();
    seconds.max(last.saturating_add(1))
}

impl MailboxMachine {
    /// The account, if mail of it can be worked on; else what the proposer hears.
    pub(crate) fn opened(
        &mut self,
        account: &str,
    ) -> Result<Result<StoredAccount, Answer>, StoreError> {
        if account.parse::<AccountId>().is_err() {
            return Ok(Err(Answer::Refused("not an account id")));
        }
        let stored = self.accounts.get(&self.writer, &key::account(account))?;
        Ok(match stored {
            Some(stored) if stored.phase() == Phase::Open => Ok(stored),
            Some(stored) if matches!(stored.phase(), Phase::Staging | Phase::Purging) => {
                Err(Answer::Busy)
            }
            _ => Err(Answer::NotOwner),
        })
    }

    pub(crate) fn put_account(
        &mut self,
        account: &str,
        stored: StoredAccount,
    ) -> Result<(), StoreError> {
        self.accounts
            .put(&mut self.writer, key::account(account), stored)
    }

    pub(crate) fn open_account(
        &mut self,
        at: At,
        command: OpenAccount,
    ) -> Result<Answer, StoreError> {
        let id = command.account;
        match self.opened(&id)? {
            Ok(stored) => {
                let generation = stored.generation;
                return Ok(Answer::Opened { generation });
            }
            Err(Answer::NotOwner) => {}
            Err(answer) => return Ok(answer),
        }
        if command.generation == 0 || command.tenant.len() > key::TENANT_BYTES_MAX {
            return Ok(Answer::Refused("not a generation or not a tenant"));
        }
        let gone = self.accounts.get(&self.writer, &key::account(&id))?;
        let mut account = StoredAccount {
            generation: command.generation,
            state: AccountState::Active.into(),
            tenant: command.tenant,
            ..numbers_of(gone)
        };
        account.set_phase(Phase::Open);
        for (name, special_use) in FIRST_MAILBOXES {
            self.add_mailbox(at, &id, &mut account, name, special_use)?;
        }
        account.inbox = account.next_mailbox - FIRST_MAILBOXES.len() as u64;
        self.charge(&account.tenant, |tenant| tenant.accounts += 1)?;
        self.put_account(&id, account)?;
        Ok(Answer::Opened {
            generation: command.generation,
        })
    }

    /// A new, empty mailbox; the caller has seen that the name is free.
    pub(crate) fn add_mailbox(
        &mut self,
        at: At,
        id: &str,
        account: &mut StoredAccount,
        name: &str,
        special_use: &str,
    ) -> Result<u64, StoreError> {
        let mailbox_id = account.next_mailbox;
        account.next_mailbox += 1;
        account.mailboxes += 1;
        account.last_uid_validity = next_uid_validity(account.last_uid_validity, at.time_ms);
        let mailbox = StoredMailbox {
            name: name.to_owned(),
            special_use: special_use.to_owned(),
            uid_validity: account.last_uid_validity,
            uid_next: 1,
            // RFC 7162: a MODSEQ is at least 1
            highest_modseq: 1,
            low_modseq: 1,
            ..StoredMailbox::default()
        };
        self.mailboxes
            .put(&mut self.writer, key::mailbox(id, mailbox_id), mailbox)?;
        let number = mailbox_id.to_be_bytes().to_vec();
        self.writer.insert(key::name(id, name), number.into())?;
        Ok(mailbox_id)
    }

    pub(crate) fn set_account(&mut self, command: &SetAccount) -> Result<Answer, StoreError> {
        let mut account = match self.opened(&command.account)? {
            Ok(account) => account,
            Err(answer) => return Ok(answer),
        };
        if let Some(state) = command.state {
            let Ok(known) = AccountState::try_from(state) else {
                return Ok(Answer::Refused("not an account state"));
            };
            let purge_at_ms = match known {
                AccountState::Unspecified => return Ok(Answer::Refused("not an account state")),
                AccountState::Deleted => Some(command.purge_at_ms),
                _ => None,
            };
            account.set_state(known);
            self.schedule_purge(&command.account, &mut account, purge_at_ms)?;
        }
        if let Some(quota_bytes) = command.quota_bytes {
            account.quota_bytes = quota_bytes;
            self.nearly_full
                .told(&command.account, account.used_bytes, quota_bytes);
        }
        self.put_account(&command.account, account)?;
        Ok(Answer::Done)
    }

    /// Changes what a tenant has here.
    pub(crate) fn charge(
        &mut self,
        tenant: &str,
        change: impl FnOnce(&mut StoredTenant),
    ) -> Result<(), StoreError> {
        let key = key::tenant(tenant);
        let mut stored = self.tenants.get(&self.writer, &key)?.unwrap_or_default();
        change(&mut stored);
        self.tenants.put(&mut self.writer, key, stored)
    }

    /// The account is not shown any more: what its tenant has is less by it.
    pub(crate) fn hide(&mut self, id: &str, account: &mut StoredAccount) -> Result<(), StoreError> {
        self.nearly_full.changed(id, 0);
        if account.phase() == Phase::Open {
            let (messages, used_bytes) = (account.messages, account.used_bytes);
            self.charge(&account.tenant, |tenant| {
                tenant.accounts = tenant.accounts.saturating_sub(1);
                tenant.messages = tenant.messages.saturating_sub(messages);
                tenant.used_bytes = tenant.used_bytes.saturating_sub(used_bytes);
            })?;
        }
        account.set_phase(Phase::Purging);
        Ok(())
    }

    /// Moves the account's entry in the purge queue; `None` takes it out.
    pub(crate) fn schedule_purge(
        &mut self,
        id: &str,
        account: &mut StoredAccount,
        purge_at_ms: Option<u64>,
    ) -> Result<(), StoreError> {
        // 0 says that there is no entry
        let purge_at_ms = purge_at_ms.map_or(0, |at_ms| at_ms.max(1));
        if purge_at_ms == account.purge_at_ms {
            return Ok(());
        }
        if account.purge_at_ms != 0 {
            self.writer
                .remove(key::purge_due(account.purge_at_ms, id), &[])?;
        }
        if purge_at_ms != 0 {
            self.writer
                .insert(key::purge_due(purge_at_ms, id), bytes::Bytes::new())?;
            self.purge_due_ms = self.purge_due_ms.min(purge_at_ms);
        }
        account.purge_at_ms = purge_at_ms;
        Ok(())
    }

    /// Removes at most `keys_max` keys of the account's mail and mailboxes; how many it was. Fewer: nothing is left.
    pub(crate) fn discard(&mut self, id: &str, keys_max: usize) -> Result<usize, StoreError> {
        let mut removed = 0;
        // emails last: a message is never without its email and body
        for letter in *b"cvunxe" {
            let prefix = key::of_account(letter, id);
            let pairs = self
                .writer
                .scan(&prefix, &prefix, keys_max.saturating_sub(removed))?;
            for (found, value) in pairs {
                removed += 1;
                match letter {
                    b'x' => self.mailboxes.remove(&mut self.writer, found.to_vec())?,
                    b'e' => {
                        let email = StoredEmail::decode(value.clone())
                            .map_err(|_| StoreError::Corrupt("an email"))?;
                        self.writer
                            .write_body(key::body(email.body_position), None)?;
                        self.writer.remove(found.to_vec(), &value)?;
                    }
                    _ => self.writer.remove(found.to_vec(), &value)?,
                }
            }
        }
        Ok(removed)
    }
}

/// What outlives an account's mail: numbers that are never given twice.
pub(crate) fn numbers_of(gone: Option<StoredAccount>) -> StoredAccount {
    let gone = gone.unwrap_or_default();
    StoredAccount {
        next_mailbox: gone.next_mailbox.max(1),
        last_uid_validity: gone.last_uid_validity,
        purge_at_ms: gone.purge_at_ms,
        ..StoredAccount::default()
    }
}

#[cfg(test)]
mod tests {
    use super::next_uid_validity;

    #[test]
    fn uid_validity_always_grows() {
        assert_eq!(next_uid_validity(0, 1_700_000_000_999), 1_700_000_000);
        assert_eq!(
            next_uid_validity(1_700_000_000, 1_700_000_000_999),
            1_700_000_001
        );
        assert_eq!(next_uid_validity(5, 0), 6);
        assert_eq!(next_uid_validity(0, 0), 1);
        assert_eq!(next_uid_validity(7, u64::MAX), 8);
    }
}

//! What log time does: delivery ids are forgotten, deleted accounts are emptied. Always a few keys per command, so that no
//! command takes long, and never by a clock, so that every replica does the same at the same record.

use bytes::Bytes;
use hikyaku_proto::v1::StoredTombstone;
use hikyaku_proto::v1::stored_account::Phase;
use prost::Message;

use crate::account::numbers_of;
use crate::key::{DELIVERY_ID_BYTES, Parts};
use crate::machine::MailboxMachine;
use crate::{StoreError, key};

/// How long an expunged or voided delivery id is remembered, in log time.
pub const TOMBSTONE_MS: u64 = 10 * 24 * 3_600 * 1_000;
/// Expired delivery ids forgotten per command: more than one command can add on the average.
const FORGOTTEN_PER_COMMAND: usize = 4;
/// Expired delivery ids forgotten per tick.
const FORGOTTEN_PER_TICK: usize = 1_000;
/// Keys of deleted accounts removed per tick.
const PURGED_PER_TICK: usize = 2_000;
/// Accounts whose purge one tick looks at.
const ACCOUNTS_PER_TICK: usize = 16;

impl MailboxMachine {
    /// Remembers that `delivery_id` must not store anything (again).
    pub(crate) fn bury(
        &mut self,
        id: &str,
        delivery_id: &[u8; DELIVERY_ID_BYTES],
        tombstone: StoredTombstone,
    ) -> Result<(), StoreError> {
        let expires_ms = self.shard.log_time_ms.saturating_add(TOMBSTONE_MS);
        let tombstone = StoredTombstone {
            expires_ms,
            ..tombstone
        };
        self.writer.insert(
            key::tombstone(id, delivery_id),
            tombstone.encode_to_vec().into(),
        )?;
        self.writer.insert(
            key::tombstone_due(expires_ms, id, delivery_id),
            Bytes::new(),
        )?;
        self.tombstone_due_ms = self.tombstone_due_ms.min(expires_ms);
        Ok(())
    }

    /// Takes a tombstone away before its time.
    pub(crate) fn unbury(
        &mut self,
        id: &str,
        delivery_id: &[u8; DELIVERY_ID_BYTES],
    ) -> Result<(), StoreError> {
        let tombstone_key = key::tombstone(id, delivery_id);
        let Some(value) = self.writer.get(&tombstone_key)? else {
            return Ok(());
        };
        let tombstone = StoredTombstone::decode(value.clone())
            .map_err(|_| StoreError::Corrupt("a tombstone"))?;
        self.writer.remove(tombstone_key, &value)?;
        let due = key::tombstone_due(tombstone.expires_ms, id, delivery_id);
        self.writer.remove(due, &[])
    }

    pub(crate) fn expire_some(&mut self) -> Result<(), StoreError> {
        self.forget_tombstones(FORGOTTEN_PER_COMMAND)
    }

    pub(crate) fn tick(&mut self) -> Result<(), StoreError> {
        self.forget_tombstones(FORGOTTEN_PER_TICK)?;
        self.purge_accounts()
    }

    fn forget_tombstones(&mut self, count_max: usize) -> Result<(), StoreError> {
        let now_ms = self.shard.log_time_ms;
        if now_ms < self.tombstone_due_ms {
            return Ok(());
        }
        let table = key::table(b'q');
        let due = self.writer.scan(&table, &table, count_max + 1)?;
        self.tombstone_due_ms = u64::MAX;
        for (index, (found, _)) in due.into_iter().enumerate() {
            const CORRUPT: StoreError = StoreError::Corrupt("a key");
            let mut parts = Parts::of(&found, b'q').ok_or(CORRUPT)?;
            let expires_ms = parts.u64().ok_or(CORRUPT)?;
            if expires_ms > now_ms || index == count_max {
                self.tombstone_due_ms = expires_ms;
                break;
            }
            let account = parts.account().ok_or(CORRUPT)?;
            let delivery_id = parts.rest().try_into().map_err(|_| CORRUPT)?;
            self.unbury(account, delivery_id)?;
        }
        Ok(())
    }

    fn purge_accounts(&mut self) -> Result<(), StoreError> {
        let now_ms = self.shard.log_time_ms;
        if now_ms < self.purge_due_ms {
            return Ok(());
        }
        let table = key::table(b'p');
        let due = self.writer.scan(&table, &table, ACCOUNTS_PER_TICK + 1)?;
        self.purge_due_ms = u64::MAX;
        let mut keys_left = PURGED_PER_TICK;
        for (index, (found, _)) in due.into_iter().enumerate() {
            const CORRUPT: StoreError = StoreError::Corrupt("a key");
            let mut parts = Parts::of(&found, b'p').ok_or(CORRUPT)?;
            let due_ms = parts.u64().ok_or(CORRUPT)?;
            let id = parts.account().ok_or(CORRUPT)?.to_owned();
            if due_ms > now_ms || index == ACCOUNTS_PER_TICK || keys_left == 0 {
                self.purge_due_ms = due_ms;
                break;
            }
            let removed = self.purge(&id, keys_left)?;
            keys_left -= removed.min(keys_left);
        }
        if keys_left == 0 {
            // the account it stopped at is still due
            self.purge_due_ms = 0;
        }
        Ok(())
    }

    /// Empties an account that is due, within `keys_max`; when nothing is left only its numbers stay.
    fn purge(&mut self, id: &str, keys_max: usize) -> Result<usize, StoreError> {
        let Some(mut account) = self.accounts.get(&self.writer, &key::account(id))? else {
            return Err(StoreError::Corrupt("an account to purge"));
        };
        self.hide(id, &mut account)?;
        let removed = self.discard(id, keys_max)?;
        if removed < keys_max {
            self.schedule_purge(id, &mut account, None)?;
            let (generation, tenant) = (account.generation, account.tenant.clone());
            account = numbers_of(Some(account));
            account.generation = generation;
            account.tenant = tenant;
            account.set_phase(Phase::Gone);
        }
        self.put_account(id, account)?;
        Ok(removed)
    }
}

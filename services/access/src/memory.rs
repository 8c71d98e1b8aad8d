//! The memory that open maildrops take, all sessions together: reserved before a maildrop is read,
//! given back with it.
//!
//! A small maildrop is a part of its connection and not counted, so whoever has little mail can
//! always log in. One account has three quarters of the memory at most, so no single one shuts out
//! the others that have much.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hikyaku_mail::id::AccountId;

/// Octets for one mail of a maildrop; `tests/memory.rs` measures them.
pub const MAIL_BYTES: usize = 32;
/// Maildrops of so many mails are not counted.
pub const SMALL_MAILS_MAX: usize = 1_000;

/// The memory of all open maildrops. Clones share it.
#[derive(Clone, Debug)]
pub struct Memory(Arc<Budget>);

#[derive(Debug)]
struct Budget {
    bytes_max: usize,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    bytes: usize,
    accounts: BTreeMap<AccountId, usize>,
}

/// There is no memory left for this maildrop, now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no memory left for a maildrop of {mails} mails (pop3.memory_bytes_max)")]
pub struct NoMemory {
    mails: usize,
}

impl Memory {
    /// A budget of `bytes_max` octets.
    pub fn new(bytes_max: usize) -> Memory {
        Memory(Arc::new(Budget {
            bytes_max,
            used: Mutex::default(),
        }))
    }

    /// Octets that one account may have.
    fn account_bytes_max(&self) -> usize {
        self.0.bytes_max / 4 * 3
    }

    /// Mails that a maildrop may have, with the whole memory free.
    pub fn mails_max(&self) -> usize {
        (self.account_bytes_max() / MAIL_BYTES).max(SMALL_MAILS_MAX)
    }

    /// Reserves room for a maildrop of `mails` of `account`.
    ///
    /// # Errors
    /// When it must wait until others are closed.
    pub fn reserve(&self, account: &AccountId, mails: usize) -> Result<Reservation, NoMemory> {
        let bytes = match mails {
            0..=SMALL_MAILS_MAX => 0,
            mails => mails.saturating_mul(MAIL_BYTES),
        };
        let mut used = self.used();
        let all = used.bytes.saturating_add(bytes);
        let has = used.accounts.get(account).copied().unwrap_or_default();
        let of_account = has.saturating_add(bytes);
        if bytes > 0 && (all > self.0.bytes_max || of_account > self.account_bytes_max()) {
            return Err(NoMemory { mails });
        }
        used.bytes = all;
        if bytes > 0 {
            used.accounts.insert(account.clone(), of_account);
        }
        drop(used);
        Ok(Reservation {
            memory: self.clone(),
            account: account.clone(),
            bytes,
        })
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        self.0.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The memory of one maildrop, given back when it is dropped.
#[derive(Debug)]
pub struct Reservation {
    memory: Memory,
    account: AccountId,
    bytes: usize,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut used = self.memory.used();
        used.bytes = used.bytes.saturating_sub(self.bytes);
        if let Some(has) = used.accounts.get_mut(&self.account) {
            *has = has.saturating_sub(self.bytes);
            if *has == 0 {
                used.accounts.remove(&self.account);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use hikyaku_mail::id::AccountId;

    use super::{MAIL_BYTES, Memory, SMALL_MAILS_MAX};

    fn account(name: &str) -> AccountId {
        name.parse().unwrap()
    }

    #[test]
    fn what_is_reserved_is_given_back() {
        let memory = Memory::new(8_000 * MAIL_BYTES);
        assert_eq!(memory.mails_max(), 6_000);
        let (alice, bob) = (account("alice"), account("bob"));
        assert!(memory.reserve(&alice, 6_001).is_err(), "three quarters");
        let first = memory.reserve(&alice, 4_000).unwrap();
        assert!(
            memory.reserve(&alice, 2_001).is_err(),
            "in all her sessions"
        );
        let second = memory.reserve(&alice, 2_000).unwrap();
        assert!(memory.reserve(&bob, 2_001).is_err(), "all there is");
        let third = memory.reserve(&bob, 2_000).unwrap();
        // the small ones are always let in
        let small: Vec<_> = (0..100)
            .map(|_| memory.reserve(&alice, SMALL_MAILS_MAX).unwrap())
            .collect();
        drop((first, second, third, small));
        assert!(memory.used().accounts.is_empty());
        assert_eq!(memory.used().bytes, 0);
        drop(memory.reserve(&bob, 6_000).unwrap());
    }

    #[test]
    fn a_little_memory_shows_small_maildrops_whole() {
        let memory = Memory::new(0);
        assert_eq!(memory.mails_max(), SMALL_MAILS_MAX);
        assert!(memory.reserve(&account("alice"), SMALL_MAILS_MAX).is_ok());
        assert!(
            memory
                .reserve(&account("alice"), SMALL_MAILS_MAX + 1)
                .is_err()
        );
    }
}

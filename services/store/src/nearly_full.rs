//! Accounts that are nearly full, for edges that refuse mail for full mailboxes. It is outside hash and snapshot and decides
//! nothing in `apply`: an edge asks what an account here holds before it refuses anything.
//!
//! When a replica begins, the store says what accounts hold, but not what the directory allows them: the fullest ones are named
//! until a delivery tells their quota. Whoever is missing is found again by the next mail that does not fit.

use std::collections::{BTreeMap, BTreeSet};

use hikyaku_engine::Engine;
use hikyaku_proto::v1::stored_account::Phase;
use hikyaku_proto::v1::{AccountState, StoredAccount};
use prost::Message;

use crate::StoreError;
use crate::key::{self, Parts};

/// An account is nearly full from so many hundredths of its quota on.
const PERCENT: u128 = 95;
/// Accounts remembered per shard; mail for more of them is taken and waits.
pub const ACCOUNTS_MAX: usize = 16_384;
/// Accounts named at the start whose quota is not known yet.
const FULLEST_MAX: usize = 1_024;
/// Accounts looked at when a replica begins: a tenth of a second. Those beyond are found as they get mail.
const LOOKED_AT_MAX: usize = 65_536;
/// Accounts read at once.
const PAGE: usize = 1_000;

/// Accounts and the quota that their last delivery came with; `None` while that is not known.
#[derive(Debug, Default)]
pub struct NearlyFull {
    accounts: BTreeMap<String, Option<u64>>,
}

impl NearlyFull {
    /// What the accounts of `engine` say to a replica that begins.
    pub(crate) fn at_start(engine: &dyn Engine) -> Result<NearlyFull, StoreError> {
        Self::among_first(engine, LOOKED_AT_MAX)
    }

    fn among_first(engine: &dyn Engine, looked_at_max: usize) -> Result<NearlyFull, StoreError> {
        let mut nearly_full = NearlyFull::default();
        let mut fullest = BTreeSet::new();
        let table = key::table(b'a');
        let mut from = table.clone();
        let mut left = looked_at_max;
        while left > 0 {
            let page = engine.scan(&table, &from, PAGE.min(left))?;
            let Some((last, _)) = page.last() else {
                break;
            };
            from = [&last[..], &[0]].concat();
            left -= page.len();
            for (found, value) in page {
                let id = Parts::of(&found, b'a').and_then(|mut parts| parts.account());
                // a damaged row is told by whoever needs it: a hint must not keep the shard from starting
                let (Some(id), Ok(account)) = (id, StoredAccount::decode(value)) else {
                    continue;
                };
                if !takes_mail(&account) || account.used_bytes == 0 {
                    continue;
                }
                nearly_full.told(id, account.used_bytes, account.quota_bytes);
                fullest.insert((account.used_bytes, id.to_owned()));
                if fullest.len() > FULLEST_MAX {
                    fullest.pop_first();
                }
            }
        }
        for (_, id) in fullest {
            if nearly_full.has_room_for(&id) {
                nearly_full.accounts.entry(id).or_default();
            }
        }
        Ok(nearly_full)
    }

    fn has_room_for(&self, id: &str) -> bool {
        self.accounts.len() < ACCOUNTS_MAX || self.accounts.contains_key(id)
    }

    /// The accounts, in order.
    pub fn accounts(&self) -> impl Iterator<Item = &str> {
        self.accounts.keys().map(String::as_str)
    }

    /// A delivery with this quota came to an account that holds `used_bytes` now; `refused` says that it did not fit.
    pub(crate) fn delivery(&mut self, id: &str, used_bytes: u64, quota_bytes: u64, refused: bool) {
        if quota_bytes != 0 && (refused || is_near(used_bytes, quota_bytes)) {
            if self.has_room_for(id) {
                self.accounts.insert(id.to_owned(), Some(quota_bytes));
            }
        } else if !self.accounts.is_empty() {
            self.accounts.remove(id);
        }
    }

    /// The account holds `used_bytes` and has this quota of its own, which a delivery may override.
    pub(crate) fn told(&mut self, id: &str, used_bytes: u64, quota_bytes: u64) {
        let near = quota_bytes != 0 && is_near(used_bytes, quota_bytes);
        if near && self.has_room_for(id) {
            self.accounts.insert(id.to_owned(), Some(quota_bytes));
        }
    }

    /// The account holds `used_bytes` now.
    pub(crate) fn changed(&mut self, id: &str, used_bytes: u64) {
        if self.accounts.is_empty() {
            return;
        }
        let stays = match self.accounts.get(id) {
            Some(Some(quota_bytes)) => is_near(used_bytes, *quota_bytes),
            Some(None) => used_bytes != 0,
            None => return,
        };
        if !stays {
            self.accounts.remove(id);
        }
    }
}

/// Whether mail for the account is refused for nothing but its quota.
fn takes_mail(account: &StoredAccount) -> bool {
    account.phase() == Phase::Open
        && matches!(
            account.state(),
            AccountState::Active | AccountState::Suspended
        )
}

fn is_near(used_bytes: u64, quota_bytes: u64) -> bool {
    u128::from(used_bytes) * 100 >= u128::from(quota_bytes) * PERCENT
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use hikyaku_engine::memory::{MemoryDisk, MemoryEngine};
    use hikyaku_engine::{Engine, Write};
    use hikyaku_proto::v1::stored_account::Phase;
    use hikyaku_proto::v1::{AccountState, StoredAccount};
    use prost::Message;

    use super::{ACCOUNTS_MAX, FULLEST_MAX, NearlyFull};
    use crate::key;

    fn store(accounts: impl IntoIterator<Item = (String, StoredAccount)>) -> impl Engine {
        let engine = MemoryEngine::open(&MemoryDisk::new(), "mbox-0");
        let writes = accounts.into_iter().map(|(id, account)| Write {
            key: key::account(&id),
            value: Some(account.encode_to_vec().into()),
        });
        engine.write(writes.collect()).unwrap();
        engine.commit(Bytes::new()).unwrap();
        std::sync::Arc::into_inner(engine).unwrap()
    }

    fn account(used_bytes: u64, quota_bytes: u64) -> StoredAccount {
        StoredAccount {
            used_bytes,
            quota_bytes,
            phase: Phase::Open.into(),
            state: AccountState::Active.into(),
            ..StoredAccount::default()
        }
    }

    fn names(near: &NearlyFull) -> String {
        near.accounts().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn accounts_come_when_they_fill_and_go_when_they_are_emptied() {
        let mut near = NearlyFull::default();
        near.delivery("a", 94, 100, false);
        near.delivery("b", 95, 100, false);
        near.delivery("c", 10, 100, true);
        near.delivery("d", u64::MAX, 0, false);
        assert_eq!(names(&near), "b c");
        near.changed("b", 96);
        near.changed("a", 99);
        assert_eq!(names(&near), "b c");
        near.changed("b", 94);
        near.delivery("c", 11, 100, false);
        assert_eq!(names(&near), "");
        for number in 0..ACCOUNTS_MAX + 9 {
            near.delivery(&number.to_string(), 1, 1, false);
        }
        assert_eq!(near.accounts().count(), ACCOUNTS_MAX);
    }

    #[test]
    fn the_store_names_the_fullest_until_their_quota_is_known() {
        let gone = StoredAccount {
            phase: Phase::Gone.into(),
            ..account(9, 9)
        };
        let disabled = StoredAccount {
            state: AccountState::Disabled.into(),
            ..account(9, 9)
        };
        let named = [
            ("closed", disabled),
            ("empty", account(0, 0)),
            ("gone", gone),
            ("half", account(50, 100)),
            ("near", account(99, 100)),
            ("some", account(70, 0)),
        ];
        let named = named.map(|(id, account)| (id.to_owned(), account));
        let mut near = NearlyFull::at_start(&store(named)).unwrap();
        assert_eq!(names(&near), "half near some");
        // nobody knows what it may hold: it stays while it holds anything
        near.changed("some", 1);
        assert_eq!(names(&near), "half near some");
        near.changed("some", 0);
        near.changed("near", 94);
        near.delivery("half", 60, 100, false);
        assert_eq!(names(&near), "");
    }

    #[test]
    fn a_start_looks_at_so_many_accounts_and_names_the_fullest() {
        let count = FULLEST_MAX as u64 + 2_500;
        let many = (0..count).map(|number| (format!("{number:05}"), account(1 + number, 0)));
        let store = store(many);
        let near = NearlyFull::at_start(&store).unwrap();
        assert_eq!(near.accounts().count(), FULLEST_MAX);
        assert_eq!(near.accounts().next(), Some("02500"));
        let near = NearlyFull::among_first(&store, 2_001).unwrap();
        assert_eq!(near.accounts().last(), Some("02000"));
    }
}

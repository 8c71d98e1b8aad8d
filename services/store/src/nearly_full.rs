//! Accounts that are nearly full, for edges that refuse mail for full mailboxes. What is known of it came by since this replica
//! began: it is outside hash and snapshot, decides nothing in `apply`, and whoever is missing is found again by the next mail
//! that does not fit.

use std::collections::BTreeMap;

/// An account is nearly full from so many hundredths of its quota on.
const PERCENT: u128 = 95;
/// Accounts remembered per shard; mail for more of them is taken and waits.
pub const ACCOUNTS_MAX: usize = 16_384;

/// Accounts and the quota that their last delivery came with.
#[derive(Debug, Default)]
pub struct NearlyFull {
    accounts: BTreeMap<String, u64>,
}

impl NearlyFull {
    /// The accounts, in order.
    pub fn accounts(&self) -> impl Iterator<Item = &str> {
        self.accounts.keys().map(String::as_str)
    }

    /// A delivery with this quota came to an account that holds `used_bytes` now; `refused` says that it did not fit.
    pub(crate) fn delivery(&mut self, id: &str, used_bytes: u64, quota_bytes: u64, refused: bool) {
        if quota_bytes != 0 && (refused || is_near(used_bytes, quota_bytes)) {
            if self.accounts.len() < ACCOUNTS_MAX || self.accounts.contains_key(id) {
                self.accounts.insert(id.to_owned(), quota_bytes);
            }
        } else if !self.accounts.is_empty() {
            self.accounts.remove(id);
        }
    }

    /// The account holds `used_bytes` now.
    pub(crate) fn changed(&mut self, id: &str, used_bytes: u64) {
        if self.accounts.is_empty() {
            return;
        }
        let is_near = |quota_bytes: &u64| is_near(used_bytes, *quota_bytes);
        if !self.accounts.get(id).is_some_and(is_near) {
            self.accounts.remove(id);
        }
    }
}

fn is_near(used_bytes: u64, quota_bytes: u64) -> bool {
    u128::from(used_bytes) * 100 >= u128::from(quota_bytes) * PERCENT
}

#[cfg(test)]
mod tests {
    use super::{ACCOUNTS_MAX, NearlyFull};

    #[test]
    fn accounts_come_when_they_fill_and_go_when_they_are_emptied() {
        let mut near = NearlyFull::default();
        let names = |near: &NearlyFull| near.accounts().collect::<Vec<_>>().join(" ");
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
}

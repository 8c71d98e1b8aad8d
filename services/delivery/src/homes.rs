//! The owners of accounts as Home or a mailbox shard last said. Bounded; a wrong entry costs one `NotOwner`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Where an account lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Mailbox shard index.
    pub shard: u32,
    /// Counts the account's moves.
    pub generation: u64,
}

/// Owners by account, oldest out first.
#[derive(Debug)]
pub struct Homes {
    accounts_max: usize,
    owners: BTreeMap<String, Owner>,
    order: VecDeque<String>,
}

impl Homes {
    /// An empty map of at most `accounts_max` accounts.
    pub fn new(accounts_max: usize) -> Homes {
        Homes {
            accounts_max,
            owners: BTreeMap::new(),
            order: VecDeque::new(),
        }
    }

    /// The owner, if it is remembered.
    pub fn find(&self, account: &str) -> Option<Owner> {
        self.owners.get(account).copied()
    }

    /// Remembers an owner, unless a later generation is known.
    pub fn learn(&mut self, account: &str, owner: Owner) {
        match self.owners.get_mut(account) {
            Some(known) if known.generation > owner.generation => {}
            Some(known) => *known = owner,
            None => {
                self.owners.insert(account.to_owned(), owner);
                self.order.push_back(account.to_owned());
                while self.owners.len() > self.accounts_max {
                    let Some(oldest) = self.order.pop_front() else {
                        break;
                    };
                    self.owners.remove(&oldest);
                }
                if self.order.len() > 64 + 2 * self.owners.len() {
                    // accounts forgotten and learned again stand in it more than once
                    let mut kept = BTreeSet::new();
                    self.order.retain(|account| {
                        self.owners.contains_key(account) && kept.insert(account.clone())
                    });
                }
            }
        }
    }

    /// Forgets an owner that was wrong.
    pub fn forget(&mut self, account: &str) {
        self.owners.remove(account);
    }
}

#[cfg(test)]
mod tests {
    use super::{Homes, Owner};

    #[test]
    fn is_bounded_and_never_goes_back_a_generation() {
        let owner = |shard, generation| Owner { shard, generation };
        let mut homes = Homes::new(10);
        for n in 0..100 {
            homes.learn(&n.to_string(), owner(n, 1));
        }
        assert_eq!(homes.owners.len(), 10);
        assert_eq!(homes.find("99"), Some(owner(99, 1)));
        homes.learn("99", owner(3, 2));
        homes.learn("99", owner(4, 1));
        assert_eq!(homes.find("99"), Some(owner(3, 2)));
        homes.forget("99");
        assert_eq!(homes.find("99"), None);
        for _ in 0..1000 {
            homes.learn("99", owner(4, 1));
            homes.forget("99");
        }
        assert!(homes.order.len() < 200);
    }
}

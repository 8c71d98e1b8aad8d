//! Which mailbox shard a new account should live in: an mbox is a named, fixed set of shards, and the account's id picks one.
//!
//! Only the first delivery asks; from then on Home knows, and an edited directory changes nothing.

use std::collections::BTreeMap;

/// The mboxes of a site.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    mboxes: BTreeMap<String, Vec<u32>>,
    defaults: BTreeMap<String, String>,
}

impl Placement {
    /// No mboxes yet.
    pub fn new() -> Placement {
        Placement::default()
    }

    /// Adds the mbox `name` over these shards. An mbox without shards does not exist.
    pub fn with_mbox(mut self, name: &str, shards: impl IntoIterator<Item = u32>) -> Placement {
        let shards: Vec<u32> = shards.into_iter().collect();
        if !shards.is_empty() {
            self.mboxes.insert(name.to_owned(), shards);
        }
        self
    }

    /// Where accounts of `tenant` go whose mbox is not named or unknown.
    pub fn with_default(mut self, tenant: &str, mbox: &str) -> Placement {
        self.defaults.insert(tenant.to_owned(), mbox.to_owned());
        self
    }

    /// The shard wanted for an account; `None` when neither the mbox nor the tenant's default is known.
    pub fn shard(&self, tenant: &str, mbox: &str, account: &str) -> Option<u32> {
        let shards = self.mboxes.get(mbox).or_else(|| {
            let default = self.defaults.get(tenant)?;
            self.mboxes.get(default)
        })?;
        let hash = blake3::hash(account.as_bytes());
        let mut number = [0; 8];
        number.copy_from_slice(hash.as_bytes().first_chunk::<8>()?);
        let index = u64::from_be_bytes(number) % u64::try_from(shards.len()).ok()?;
        shards.get(usize::try_from(index).ok()?).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::Placement;

    #[test]
    fn spreads_by_account_and_falls_back_to_the_tenants_default() {
        let placement = Placement::new()
            .with_mbox("mbox1", 0..4)
            .with_mbox("mbox2", [9])
            .with_mbox("empty", [])
            .with_default("example", "mbox2");
        let mut counts = [0; 4];
        for n in 0..1000 {
            let shard = placement.shard("example", "mbox1", &format!("account-{n}"));
            counts[shard.unwrap() as usize] += 1;
        }
        assert!(counts.iter().all(|count| *count > 180), "{counts:?}");
        // fixed for ever: a change here would claim accounts elsewhere
        assert_eq!(placement.shard("example", "mbox1", "a"), Some(3));
        assert_eq!(placement.shard("example", "gone", "a"), Some(9));
        assert_eq!(placement.shard("other", "gone", "a"), None);
        assert_eq!(placement.shard("other", "empty", "a"), None);
    }
}

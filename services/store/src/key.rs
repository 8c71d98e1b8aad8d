//! The keys of the store. What is here lies on disks: a layout never changes, a new one gets a new first byte.
//!
//! Every key is layout (1), letter, then its parts; an account id is preceded by its length, numbers are big endian.
//!
//! | letter | parts | value |
//! |---|---|---|
//! | `a` | account | `StoredAccount` |
//! | `x` | account, mailbox | `StoredMailbox` |
//! | `n` | account, name | mailbox id |
//! | `u` | account, mailbox, uid | `StoredMessage` |
//! | `e` | account, email id | `StoredEmail`: deduplicates deliveries while the mail exists |
//! | `b` | log position | `StoredBody` |
//! | `c` | account, mailbox, modseq, uid | nothing: change index, the latest change of each message |
//! | `v` | account, mailbox, modseq, uid | `StoredVanished` |
//! | `d` | account, delivery id | `StoredTombstone`: deduplicates expunged and voided deliveries |
//! | `q` | log time, account, delivery id | nothing: when which tombstone goes |
//! | `p` | log time, account | nothing: when which account is purged |
//! | `t` | tenant | `StoredTenant` |
//! | `m` | | `StoredShard` |

use crate::id::EmailId;

/// The version of the layout: the first byte of every key.
const LAYOUT: u8 = 1;
/// Octets of a delivery id.
pub const DELIVERY_ID_BYTES: usize = 20;
/// The longest mailbox name, in octets.
pub const MAILBOX_NAME_BYTES_MAX: usize = 255;
/// The longest tenant name, in octets.
pub const TENANT_BYTES_MAX: usize = 255;

/// The key of what belongs to no account.
pub const SHARD: [u8; 2] = [LAYOUT, b'm'];
/// Keys from here on are of layouts that come after this program.
pub(crate) const NEWER: [u8; 1] = [LAYOUT + 1];

fn start(letter: u8) -> Vec<u8> {
    let mut key = Vec::with_capacity(104);
    key.extend_from_slice(&[LAYOUT, letter]);
    key
}

fn push_account(key: &mut Vec<u8>, account: &str) {
    // an account id has at most 64 bytes
    key.push(account.len() as u8);
    key.extend_from_slice(account.as_bytes());
}

/// What all keys of one letter begin with.
pub fn table(letter: u8) -> Vec<u8> {
    start(letter)
}

/// What all keys of one letter and account begin with.
pub fn of_account(letter: u8, account: &str) -> Vec<u8> {
    let mut key = start(letter);
    push_account(&mut key, account);
    key
}

/// What all keys of one letter, account and mailbox begin with.
pub fn of_mailbox(letter: u8, account: &str, mailbox: u64) -> Vec<u8> {
    let mut key = of_account(letter, account);
    key.extend_from_slice(&mailbox.to_be_bytes());
    key
}

/// `StoredAccount`.
pub fn account(account: &str) -> Vec<u8> {
    of_account(b'a', account)
}

/// `StoredMailbox`.
pub fn mailbox(account: &str, mailbox: u64) -> Vec<u8> {
    of_mailbox(b'x', account, mailbox)
}

/// The id of the mailbox called `name`.
pub fn name(account: &str, name: &str) -> Vec<u8> {
    let mut key = of_account(b'n', account);
    key.extend_from_slice(name.as_bytes());
    key
}

/// `StoredMessage`.
pub fn message(account: &str, mailbox: u64, uid: u32) -> Vec<u8> {
    let mut key = of_mailbox(b'u', account, mailbox);
    key.extend_from_slice(&uid.to_be_bytes());
    key
}

/// `StoredEmail`.
pub fn email(account: &str, email: EmailId) -> Vec<u8> {
    let mut key = of_account(b'e', account);
    key.extend_from_slice(&email.to_bytes());
    key
}

/// `StoredBody`.
pub fn body(position: u64) -> Vec<u8> {
    let mut key = start(b'b');
    key.extend_from_slice(&position.to_be_bytes());
    key
}

/// Change index.
pub fn change(account: &str, mailbox: u64, modseq: u64, uid: u32) -> Vec<u8> {
    with_modseq(b'c', account, mailbox, modseq, uid)
}

/// `StoredVanished`.
pub fn vanished(account: &str, mailbox: u64, modseq: u64, uid: u32) -> Vec<u8> {
    with_modseq(b'v', account, mailbox, modseq, uid)
}

fn with_modseq(letter: u8, account: &str, mailbox: u64, modseq: u64, uid: u32) -> Vec<u8> {
    let mut key = of_mailbox(letter, account, mailbox);
    key.extend_from_slice(&modseq.to_be_bytes());
    key.extend_from_slice(&uid.to_be_bytes());
    key
}

/// `StoredTombstone`.
pub fn tombstone(account: &str, delivery_id: &[u8; DELIVERY_ID_BYTES]) -> Vec<u8> {
    let mut key = of_account(b'd', account);
    key.extend_from_slice(delivery_id);
    key
}

/// When the tombstone goes.
pub fn tombstone_due(
    expires_ms: u64,
    account: &str,
    delivery_id: &[u8; DELIVERY_ID_BYTES],
) -> Vec<u8> {
    let mut key = start(b'q');
    key.extend_from_slice(&expires_ms.to_be_bytes());
    push_account(&mut key, account);
    key.extend_from_slice(delivery_id);
    key
}

/// When the account is purged.
pub fn purge_due(purge_at_ms: u64, account: &str) -> Vec<u8> {
    let mut key = start(b'p');
    key.extend_from_slice(&purge_at_ms.to_be_bytes());
    push_account(&mut key, account);
    key
}

/// `StoredTenant`.
pub fn tenant(tenant: &str) -> Vec<u8> {
    let mut key = start(b't');
    key.extend_from_slice(tenant.as_bytes());
    key
}

/// Takes a key apart again; each method takes the next part, `None` where the key has no such part.
pub struct Parts<'a>(&'a [u8]);

impl<'a> Parts<'a> {
    /// The parts of a key of table `letter`.
    pub fn of(key: &'a [u8], letter: u8) -> Option<Parts<'a>> {
        let rest = key.strip_prefix(&[LAYOUT, letter])?;
        Some(Parts(rest))
    }

    /// The table of a key.
    pub fn letter(key: &[u8]) -> Option<u8> {
        match key {
            [LAYOUT, letter, ..] => Some(*letter),
            _ => None,
        }
    }

    /// An account id.
    pub fn account(&mut self) -> Option<&'a str> {
        let (length, rest) = self.0.split_first()?;
        let (account, rest) = rest.split_at_checked(usize::from(*length))?;
        self.0 = rest;
        std::str::from_utf8(account).ok()
    }

    /// A mailbox id, a log time, a position, a MODSEQ.
    pub fn u64(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_be_bytes(*number))
    }

    /// A UID.
    pub fn u32(&mut self) -> Option<u32> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*number))
    }

    /// Whatever is left: a name, a delivery id, an email id, nothing.
    pub fn rest(self) -> &'a [u8] {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::{DELIVERY_ID_BYTES, Parts, name, tombstone, tombstone_due, vanished};
    use hikyaku_engine::KEY_BYTES_MAX;

    #[test]
    fn keys_come_apart_as_they_were_put_together() {
        let key = vanished("some-account", 7, 1 << 60, 9);
        let mut parts = Parts::of(&key, b'v').unwrap();
        assert_eq!(parts.account(), Some("some-account"));
        assert_eq!(parts.u64(), Some(7));
        assert_eq!(parts.u64(), Some(1 << 60));
        assert_eq!(parts.u32(), Some(9));
        assert!(parts.rest().is_empty());
        assert!(Parts::of(&key, b'u').is_none());
        assert_eq!(Parts::letter(&key), Some(b'v'));

        let id = [3; DELIVERY_ID_BYTES];
        let key = tombstone_due(5, "a", &id);
        let mut parts = Parts::of(&key, b'q').unwrap();
        assert_eq!((parts.u64(), parts.account()), (Some(5), Some("a")));
        assert_eq!(parts.rest(), id);
        // one account's keys never begin with another's
        assert!(!tombstone("ab", &id).starts_with(&tombstone("a", &id)[..5]));
    }

    #[test]
    fn the_longest_key_fits_the_engine() {
        let key = name(&"a".repeat(64), &"n".repeat(super::MAILBOX_NAME_BYTES_MAX));
        assert!(key.len() <= KEY_BYTES_MAX);
    }
}

//! EMAILID and MAILBOXID (RFC 8474): stable over moves, backups and replicas, because they are derived and not drawn.

use std::fmt;

use crate::key::DELIVERY_ID_BYTES;

/// Octets of an email id.
pub const EMAIL_ID_BYTES: usize = 15;

/// Names one mail of an account for all time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EmailId([u8; EMAIL_ID_BYTES]);

impl EmailId {
    /// The id of what was delivered under `delivery_id`: equal deliveries are equal mails.
    pub fn of_delivery(delivery_id: &[u8; DELIVERY_ID_BYTES]) -> EmailId {
        EmailId(derive("hikyaku 2026 EMAILID", delivery_id))
    }

    /// The id as stored.
    pub fn to_bytes(self) -> [u8; EMAIL_ID_BYTES] {
        self.0
    }

    /// The id in `bytes`, if they are one.
    pub fn from_bytes(bytes: &[u8]) -> Option<EmailId> {
        Some(EmailId(bytes.try_into().ok()?))
    }
}

impl fmt::Display for EmailId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("M")?;
        base32(f, &self.0)
    }
}

/// Names one mailbox of an account for all time, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MailboxObjectId([u8; EMAIL_ID_BYTES]);

impl MailboxObjectId {
    /// The id of mailbox `mailbox` of `account`, whose numbers are never given twice.
    pub fn of_mailbox(account: &str, mailbox: u64) -> MailboxObjectId {
        let name = [&mailbox.to_be_bytes()[..], account.as_bytes()].concat();
        MailboxObjectId(derive("hikyaku 2026 MAILBOXID", &name))
    }
}

impl fmt::Display for MailboxObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("F")?;
        base32(f, &self.0)
    }
}

fn derive(context: &str, name: &[u8]) -> [u8; EMAIL_ID_BYTES] {
    let digest = blake3::derive_key(context, name);
    let mut id = [0; EMAIL_ID_BYTES];
    id.copy_from_slice(&digest[..EMAIL_ID_BYTES]);
    id
}

/// 15 octets are exactly 24 digits of RFC 4648 base 32.
fn base32(f: &mut fmt::Formatter<'_>, bytes: &[u8; EMAIL_ID_BYTES]) -> fmt::Result {
    const DIGITS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    for group in bytes.as_chunks::<5>().0 {
        let bits = group
            .iter()
            .fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
        for digit in (0..8).rev() {
            let index = (bits >> (5 * digit)) as usize & 31;
            f.write_str(char::from(DIGITS[index]).encode_utf8(&mut [0; 4]))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{EmailId, MailboxObjectId};

    #[test]
    fn ids_are_object_ids_and_never_change() {
        // RFC 8474 section 7: 1 to 255 of A-Z a-z 0-9 _ -
        let digits = EmailId::from_bytes(b"foobarfoobarfoo").unwrap();
        assert_eq!(digits.to_string(), "MMZXW6YTBOJTG633CMFZGM33P");
        let email = EmailId::of_delivery(&[7; 20]);
        assert_eq!(email.to_string(), "MQRX6HPLQ3XEOU4NBDYH2NWRP");
        assert_eq!(EmailId::from_bytes(&email.to_bytes()), Some(email));
        assert_ne!(email, EmailId::of_delivery(&[8; 20]));
        let inbox = MailboxObjectId::of_mailbox("alice", 1);
        assert_eq!(inbox.to_string(), "FSQWURLHP7SXIDRW5FOGU4Z2D");
        assert_ne!(inbox, MailboxObjectId::of_mailbox("alice", 2));
    }
}

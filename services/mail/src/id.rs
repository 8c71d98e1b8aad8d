//! Names that live as long as a mail does: the shard, the message, one recipient of it, the account.
//!
//! A message id says by itself which queue shard holds the message, so `hikyaku queue show ID` asks nobody where to look.

use std::fmt;
use std::str::FromStr;

/// What a shard's log and state machine are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Class {
    /// Freshly accepted mail.
    Incoming = 0,
    /// Mail for other sites.
    Outgoing = 1,
    /// Mail that other sites have not taken for a while.
    Fallback = 2,
    /// Which mailbox shard owns an account.
    Home = 3,
    /// Mailboxes.
    Mbox = 4,
}

impl Class {
    /// The class with this number.
    pub fn from_number(number: u8) -> Option<Class> {
        match number {
            0 => Some(Class::Incoming),
            1 => Some(Class::Outgoing),
            2 => Some(Class::Fallback),
            3 => Some(Class::Home),
            4 => Some(Class::Mbox),
            _ => None,
        }
    }

    /// The word used in names, logs and on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Class::Incoming => "incoming",
            Class::Outgoing => "outgoing",
            Class::Fallback => "fallback",
            Class::Home => "home",
            Class::Mbox => "mbox",
        }
    }
}

/// One ordered log and the state machine that applies it, e.g. `mbox-3`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId {
    /// What the shard is for.
    pub class: Class,
    /// Number within the class, below 2^14.
    pub index: u16,
}

impl ShardId {
    /// The shard `index` of `class`.
    pub const fn new(class: Class, index: u16) -> ShardId {
        ShardId { class, index }
    }

    /// One number for the pair, for frames and maps.
    pub fn number(self) -> u32 {
        (self.class as u32) << 16 | u32::from(self.index)
    }

    /// The inverse of [`ShardId::number`].
    pub fn from_number(number: u32) -> Option<ShardId> {
        let class = Class::from_number(u8::try_from(number >> 16).ok()?)?;
        Some(ShardId {
            class,
            index: (number & 0xffff) as u16,
        })
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.class.word(), self.index)
    }
}

impl fmt::Debug for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that does not name what it should.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {0}")]
pub struct ParseIdError(&'static str);

impl FromStr for ShardId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<ShardId, ParseIdError> {
        const ERROR: ParseIdError = ParseIdError("shard (expected e.g. mbox-0)");
        let (word, digits) = text.rsplit_once('-').ok_or(ERROR)?;
        let index: u16 = digits.parse().map_err(|_| ERROR)?;
        // one shard has one name: no sign, no zeros in front
        if index.to_string() != digits {
            return Err(ERROR);
        }
        let class = (0..5)
            .filter_map(Class::from_number)
            .find(|class| class.word() == word);
        Ok(ShardId {
            class: class.ok_or(ERROR)?,
            index,
        })
    }
}

/// The queue id of an accepted message, 128 bits: class (2), shard (14), milliseconds (48), random (64).
///
/// It is made once by the edge, before the message is durable, and never changes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(u128);

impl MessageId {
    /// The id of a message accepted at `time_ms` (Unix milliseconds) into `shard`, a queue shard.
    pub fn new(shard: ShardId, time_ms: u64, random: u64) -> MessageId {
        let head =
            u128::from(shard.class as u8 & 3) << 126 | u128::from(shard.index & 0x3fff) << 112;
        MessageId(head | u128::from(time_ms & 0xffff_ffff_ffff) << 64 | u128::from(random))
    }

    /// The queue shard that accepted the message.
    pub fn shard(self) -> ShardId {
        let class = match self.0 >> 126 {
            0 => Class::Incoming,
            1 => Class::Outgoing,
            _ => Class::Fallback,
        };
        ShardId {
            class,
            index: (self.0 >> 112) as u16 & 0x3fff,
        }
    }

    /// When the edge made the id, Unix milliseconds.
    pub fn time_ms(self) -> u64 {
        (self.0 >> 64) as u64 & 0xffff_ffff_ffff
    }

    /// The id as bytes, big endian.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// The id in `bytes`, if there are exactly 16 that name a queue class.
    pub fn from_bytes(bytes: &[u8]) -> Option<MessageId> {
        let id = u128::from_be_bytes(bytes.try_into().ok()?);
        (id >> 126 < 3).then_some(MessageId(id))
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MessageId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<MessageId, ParseIdError> {
        const ERROR: ParseIdError = ParseIdError(
            "queue id (expected 32 hexadecimal digits, as the log and `hikyaku queue list` have them)",
        );
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(ERROR);
        }
        let id = u128::from_str_radix(text, 16).map_err(|_| ERROR)?;
        MessageId::from_bytes(&id.to_be_bytes()).ok_or(ERROR)
    }
}

/// One recipient of one message: what a mailbox deduplicates by. Never the Message-ID header, which a sender chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeliveryId {
    /// The message.
    pub message: MessageId,
    /// The recipient's number in it, as given by the queue.
    pub recipient: u32,
}

impl DeliveryId {
    /// The id as 20 bytes.
    pub fn to_bytes(self) -> [u8; 20] {
        let mut bytes = [0; 20];
        bytes[..16].copy_from_slice(&self.message.to_bytes());
        bytes[16..].copy_from_slice(&self.recipient.to_be_bytes());
        bytes
    }

    /// The id in `bytes`, if they are one.
    pub fn from_bytes(bytes: &[u8]) -> Option<DeliveryId> {
        let (message, recipient) = bytes.split_at_checked(16)?;
        let recipient = u32::from_be_bytes(recipient.try_into().ok()?);
        Some(DeliveryId {
            message: MessageId::from_bytes(message)?,
            recipient,
        })
    }
}

impl fmt::Display for DeliveryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.message, self.recipient)
    }
}

/// The directory's immutable id of an account (`entryUUID` and its like), never an address: 1 to 64 bytes of `[A-Za-z0-9._-]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccountId(String);

impl AccountId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AccountId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<AccountId, ParseIdError> {
        let fits = (1..=64).contains(&text.len())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if fits {
            Ok(AccountId(text.to_owned()))
        } else {
            Err(ParseIdError("account id"))
        }
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::{Class, DeliveryId, MessageId, ShardId};

    #[test]
    fn message_id_names_its_shard_and_time() {
        let shard = ShardId::new(Class::Outgoing, 0x2abc);
        let id = MessageId::new(shard, 1_795_000_000_123, u64::MAX);
        assert_eq!(id.shard(), shard);
        assert_eq!(id.time_ms(), 1_795_000_000_123);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(MessageId::from_bytes(&id.to_bytes()), Some(id));
        assert!("zz".parse::<MessageId>().is_err());
        assert!(
            "+0000000000000000000000000000000"
                .parse::<MessageId>()
                .is_err()
        );
    }

    #[test]
    fn shard_and_delivery_ids_round_trip() {
        let shard = ShardId::new(Class::Mbox, 7);
        assert_eq!(ShardId::from_number(shard.number()), Some(shard));
        assert_eq!("mbox-7".parse(), Ok(shard));
        for wrong in ["mbox", "mbox-07", "mbox-+7", "mbox-", "mbox-65536"] {
            assert!(wrong.parse::<ShardId>().is_err(), "{wrong}");
        }
        let id = DeliveryId {
            message: MessageId::new(ShardId::new(Class::Incoming, 0), 5, 6),
            recipient: 9,
        };
        assert_eq!(DeliveryId::from_bytes(&id.to_bytes()), Some(id));
        assert_eq!(DeliveryId::from_bytes(&[0; 19]), None);
    }
}

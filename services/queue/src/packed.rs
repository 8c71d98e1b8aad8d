//! Who a recipient is, in as few octets as that takes: it never changes, and is read when the recipient is tried or shown.

use hikyaku_proto::v1::recipient::Target;
use hikyaku_proto::v1::{ExpandTarget, LocalTarget, Recipient, RemoteTarget};

/// What is in the first octet: how the target is written, and which optional parts follow.
mod flag {
    pub const NO_TARGET: u8 = 0;
    pub const LOCAL: u8 = 1;
    pub const LOCAL_UUID: u8 = 2;
    pub const EXPAND: u8 = 3;
    pub const REMOTE: u8 = 4;
    pub const NO_RECIPIENT: u8 = 7;
    pub const TARGET: u8 = 7;
    pub const ORIGINAL_RECIPIENT: u8 = 8;
    pub const NOTIFY: u8 = 16;
    pub const PARENT: u8 = 32;
    pub const ERRORS_TO: u8 = 64;
}

/// What never changes about a recipient of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Who.
    pub recipient: Option<Recipient>,
    /// The recipient it was expanded from.
    pub parent: Option<u32>,
    /// Where its failure is reported instead of to the sender.
    pub errors_to: Option<String>,
}

/// An [`Origin`] as octets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedOrigin(Box<[u8]>);

impl PackedOrigin {
    /// Packs it.
    pub fn new(origin: &Origin) -> PackedOrigin {
        let mut bytes = vec![0];
        let mut flags = match &origin.recipient {
            None => flag::NO_RECIPIENT,
            Some(recipient) => put_recipient(&mut bytes, recipient),
        };
        if let Some(parent) = origin.parent {
            flags |= flag::PARENT;
            put_number(&mut bytes, parent.into());
        }
        if let Some(errors_to) = &origin.errors_to {
            flags |= flag::ERRORS_TO;
            put_text(&mut bytes, errors_to);
        }
        if let Some(first) = bytes.first_mut() {
            *first = flags;
        }
        PackedOrigin(bytes.into_boxed_slice())
    }

    /// Octets.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never: it begins with the flags.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The whole of it.
    pub fn unpack(&self) -> Origin {
        let (flags, mut reader) = self.reader();
        let recipient =
            (flags & flag::TARGET != flag::NO_RECIPIENT).then(|| reader.recipient(flags));
        let parent = (flags & flag::PARENT != 0).then(|| reader.number());
        Origin {
            recipient,
            parent: parent.map(|parent| u32::try_from(parent).unwrap_or(u32::MAX)),
            errors_to: (flags & flag::ERRORS_TO != 0).then(|| reader.text().to_owned()),
        }
    }

    /// The account it is resolved to, and that account's tenant.
    pub fn account(&self) -> Option<(String, &str)> {
        let (flags, mut reader) = self.reader();
        let is_local = matches!(flags & flag::TARGET, flag::LOCAL | flag::LOCAL_UUID);
        if !is_local {
            return None;
        }
        reader.head(flags);
        let account = reader.account(flags);
        Some((account, reader.text()))
    }

    /// Whether the sender has said when it wants to hear of this recipient.
    pub fn has_notify(&self) -> bool {
        self.reader().0 & flag::NOTIFY != 0
    }

    fn reader(&self) -> (u8, Reader<'_>) {
        match self.0.split_first() {
            Some((flags, rest)) => (*flags, Reader(rest)),
            None => (flag::NO_RECIPIENT, Reader(&[])),
        }
    }
}

/// Packs a recipient; the flags that say how.
fn put_recipient(bytes: &mut Vec<u8>, recipient: &Recipient) -> u8 {
    let mut flags = 0;
    put_text(bytes, &recipient.address);
    if !recipient.original_recipient.is_empty() {
        flags |= flag::ORIGINAL_RECIPIENT;
        put_text(bytes, &recipient.original_recipient);
    }
    if !recipient.notify.is_empty() {
        flags |= flag::NOTIFY;
        put_text(bytes, &recipient.notify);
    }
    flags |= match &recipient.target {
        None => flag::NO_TARGET,
        Some(Target::Local(local)) => {
            let uuid = uuid(&local.account);
            match &uuid {
                Some(uuid) => bytes.extend_from_slice(&uuid.to_be_bytes()),
                None => put_text(bytes, &local.account),
            }
            put_text(bytes, &local.tenant);
            put_text(bytes, &local.mbox);
            match uuid {
                Some(_) => flag::LOCAL_UUID,
                None => flag::LOCAL,
            }
        }
        Some(Target::Expand(expand)) => {
            put_number(bytes, expand.seen.len() as u64);
            for seen in &expand.seen {
                put_text(bytes, seen);
            }
            flag::EXPAND
        }
        Some(Target::Remote(remote)) => {
            put_text(bytes, &remote.domain);
            flag::REMOTE
        }
    };
    flags
}

/// Before these digits of a UUID there is a hyphen (RFC 9562 section 4).
const HYPHENS: [usize; 4] = [8, 12, 16, 20];

/// The number of a UUID that is written exactly as [`uuid_text`] writes it. Directories name their entries by such.
fn uuid(text: &str) -> Option<u128> {
    if text.len() != 36 {
        return None;
    }
    let mut number = 0u128;
    let mut octets = text.bytes();
    for digit in 0..32 {
        if HYPHENS.contains(&digit) && octets.next()? != b'-' {
            return None;
        }
        let value = match octets.next()? {
            octet @ b'0'..=b'9' => octet - b'0',
            octet @ b'a'..=b'f' => octet - b'a' + 10,
            _ => return None,
        };
        number = number << 4 | u128::from(value);
    }
    Some(number)
}

fn uuid_text(number: u128) -> String {
    let mut text = String::with_capacity(36);
    for digit in 0..32 {
        if HYPHENS.contains(&digit) {
            text.push('-');
        }
        let value = (number >> (124 - 4 * digit)) as u32 & 0xf;
        text.push(char::from_digit(value, 16).unwrap_or('0'));
    }
    text
}

/// A number in groups of seven bits, lowest first.
pub fn put_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// A text after its length.
pub fn put_text(bytes: &mut Vec<u8>, text: &str) {
    put_number(bytes, text.len() as u64);
    bytes.extend_from_slice(text.as_bytes());
}

/// Reads what was put. It never fails: what is not there reads as nothing.
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// One octet.
    pub fn octet(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    /// A number.
    pub fn number(&mut self) -> u64 {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let octet = self.octet();
            number |= u64::from(octet & 0x7f) << shift;
            if octet < 0x80 {
                break;
            }
        }
        number
    }

    /// So many octets.
    pub fn octets(&mut self, count: usize) -> &'a [u8] {
        let (octets, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        octets
    }

    /// A text.
    pub fn text(&mut self) -> &'a str {
        let count = usize::try_from(self.number()).unwrap_or(usize::MAX);
        std::str::from_utf8(self.octets(count)).unwrap_or_default()
    }

    /// An id or UUID.
    pub fn id(&mut self) -> u128 {
        self.octets(16).try_into().map_or(0, u128::from_be_bytes)
    }

    /// What comes before the target.
    fn head(&mut self, flags: u8) -> (&'a str, &'a str, &'a str) {
        let address = self.text();
        let original = if flags & flag::ORIGINAL_RECIPIENT != 0 {
            self.text()
        } else {
            ""
        };
        let notify = if flags & flag::NOTIFY != 0 {
            self.text()
        } else {
            ""
        };
        (address, original, notify)
    }

    fn account(&mut self, flags: u8) -> String {
        match flags & flag::TARGET {
            flag::LOCAL_UUID => uuid_text(self.id()),
            _ => self.text().to_owned(),
        }
    }

    fn recipient(&mut self, flags: u8) -> Recipient {
        let (address, original_recipient, notify) = self.head(flags);
        let target = match flags & flag::TARGET {
            flag::LOCAL | flag::LOCAL_UUID => Some(Target::Local(LocalTarget {
                account: self.account(flags),
                tenant: self.text().to_owned(),
                mbox: self.text().to_owned(),
            })),
            flag::EXPAND => {
                let count = self.number();
                let seen = (0..count).map(|_| self.text().to_owned()).collect();
                Some(Target::Expand(ExpandTarget { seen }))
            }
            flag::REMOTE => Some(Target::Remote(RemoteTarget {
                domain: self.text().to_owned(),
            })),
            _ => None,
        };
        Recipient {
            address: address.to_owned(),
            original_recipient: original_recipient.to_owned(),
            notify: notify.to_owned(),
            target,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Origin, PackedOrigin, Reader, put_number};
    use crate::testing::{expand, local, remote};
    use hikyaku_proto::v1::Recipient;
    use hikyaku_proto::v1::recipient::Target;

    #[test]
    fn what_was_packed_comes_back() {
        let mut asking = local("1f9a3c52-7b1a-103e-8f5c-0123456789ab");
        asking.original_recipient = "rfc822;a@example.jp".into();
        asking.notify = "DELAY".into();
        let mut seen = expand("team");
        if let Some(Target::Expand(expand)) = &mut seen.target {
            expand.seen = vec!["cn=a".into(), String::new(), "cn=日本".into()];
        }
        let recipients = [
            None,
            Some(Recipient::default()),
            Some(local("")),
            Some(local("a")),
            Some(local("1F9A3C52-7B1A-103E-8F5C-0123456789AB")),
            Some(local("1f9a3c527b1a-103e-8f5c-0123456789ab-")),
            Some(local("+f9a3c52-7b1a-103e-8f5c-0123456789ab")),
            Some(asking),
            Some(expand("x")),
            Some(seen),
            Some(remote("y")),
        ];
        for recipient in recipients {
            for parent in [None, Some(0), Some(4095)] {
                for errors_to in [None, Some(String::new()), Some("owner@example.jp".into())] {
                    let origin = Origin {
                        recipient: recipient.clone(),
                        parent,
                        errors_to,
                    };
                    let packed = PackedOrigin::new(&origin);
                    assert_eq!(packed.unpack(), origin);
                    let target = recipient.as_ref().and_then(|r| r.target.as_ref());
                    let account = match target {
                        Some(Target::Local(local)) => {
                            Some((local.account.clone(), local.tenant.as_str()))
                        }
                        _ => None,
                    };
                    assert_eq!(packed.account(), account);
                    let asked = recipient.as_ref().is_some_and(|r| !r.notify.is_empty());
                    assert_eq!(packed.has_notify(), asked);
                }
            }
        }
        let usual = PackedOrigin::new(&Origin {
            recipient: Some(local("1f9a3c52-7b1a-103e-8f5c-0123456789ab")),
            ..Origin::default()
        });
        // flags, address (48), the id as 16 octets, tenant, mbox
        assert_eq!(usual.0.len(), 1 + 48 + 16 + 8 + 6);
    }

    #[test]
    fn numbers_of_any_size_come_back_and_nothing_reads_as_nothing() {
        for number in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            let mut bytes = Vec::new();
            put_number(&mut bytes, number);
            assert_eq!(Reader(&bytes).number(), number);
        }
        let mut nothing = Reader(&[]);
        assert_eq!((nothing.number(), nothing.id(), nothing.text()), (0, 0, ""));
        assert_eq!(Reader(&[200, 1]).text(), "");
    }
}

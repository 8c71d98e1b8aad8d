//! The unique ids of a maildrop (RFC 1939 section 7, UIDL), kept small: nearly all of them are
//! EMAILIDs of ours, `M` and 24 digits of base 32, which are 15 octets.
//!
//! Copies of a message share its EMAILID (RFC 8474 section 4). The first of them has the bare id,
//! the others have their UID as a suffix. What cannot be a unique id is replaced by UIDVALIDITY and
//! UID, with a dot, which no EMAILID has.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// RFC 1939 section 7.
const UNIQUE_ID_BYTES_MAX: usize = 70;
/// Octets of an EMAILID, without its letter and packed.
const PACKED_BYTES: usize = 15;
/// Ids kept as text; further ones that are no EMAILIDs, or copies, are replaced.
const TEXTS_MAX: usize = 10_000;
/// Stands for an id that is not packed.
const NOT_PACKED: Packed = [0; PACKED_BYTES];
/// RFC 4648 section 6.
const DIGITS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

type Packed = [u8; PACKED_BYTES];

/// One unique id; it is what it is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UniqueId<'a> {
    /// An EMAILID.
    EmailId([u8; PACKED_BYTES]),
    /// Any other.
    Text(&'a str),
    /// That of a message which has none that can be used.
    Numbers {
        /// Of its mailbox.
        uid_validity: u32,
        /// Its own.
        uid: u32,
    },
}

impl fmt::Display for UniqueId<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UniqueId::EmailId(packed) => {
                let text = unpack(packed);
                f.write_str(std::str::from_utf8(&text).unwrap_or_default())
            }
            UniqueId::Text(text) => f.write_str(text),
            UniqueId::Numbers { uid_validity, uid } => write!(f, "{uid_validity}.{uid}"),
        }
    }
}

/// The unique ids of a maildrop, by index.
#[derive(Debug, Default)]
pub(crate) struct UniqueIds {
    packed: Vec<Packed>,
    texts: BTreeMap<usize, String>,
}

impl UniqueIds {
    /// The id of the message with this index and UID.
    pub(crate) fn get(&self, index: usize, uid_validity: u32, uid: u32) -> Option<UniqueId<'_>> {
        let packed = self.packed.get(index)?;
        Some(match (packed, self.texts.get(&index)) {
            (_, Some(text)) => UniqueId::Text(text),
            (&NOT_PACKED, None) => UniqueId::Numbers { uid_validity, uid },
            (packed, None) => UniqueId::EmailId(*packed),
        })
    }
}

/// Takes ids in the order of their messages, and sees which have come before.
#[derive(Debug)]
pub(crate) struct UniqueIdsBuilder {
    ids: UniqueIds,
    /// A hash table of what is packed: indices plus one, two slots for each.
    slots: Vec<u32>,
    texts: BTreeSet<String>,
}

impl UniqueIdsBuilder {
    /// For so many messages at most.
    pub(crate) fn new(messages_max: usize) -> UniqueIdsBuilder {
        UniqueIdsBuilder {
            ids: UniqueIds {
                packed: Vec::with_capacity(messages_max),
                texts: BTreeMap::new(),
            },
            slots: vec![0; messages_max.saturating_mul(2)],
            texts: BTreeSet::new(),
        }
    }

    /// Takes the EMAILID of the next message.
    pub(crate) fn push(&mut self, email_id: &str, uid: u32) {
        let index = self.ids.packed.len();
        let packed = pack(email_id).unwrap_or(NOT_PACKED);
        let is_first = match packed {
            NOT_PACKED => self.texts.len() < TEXTS_MAX && self.texts.insert(email_id.to_owned()),
            packed => self.is_new(&packed),
        };
        if is_first && packed != NOT_PACKED {
            self.ids.packed.push(packed);
            return;
        }
        self.ids.packed.push(NOT_PACKED);
        let text = match is_first {
            true => email_id.to_owned(),
            false => format!("{email_id}-{uid}"),
        };
        if is_unique_id(&text) && self.ids.texts.len() < TEXTS_MAX {
            self.ids.texts.insert(index, text);
        }
    }

    pub(crate) fn finish(self) -> UniqueIds {
        self.ids
    }

    /// Notes that the next id is `packed`; false if one before is the same.
    fn is_new(&mut self, packed: &Packed) -> bool {
        let slots = self.slots.len();
        if slots == 0 {
            return true;
        }
        let next = u32::try_from(self.ids.packed.len() + 1).unwrap_or(u32::MAX);
        // an EMAILID is a piece of a digest: any of its octets are a hash of it
        let [a, b, c, d, e, f, g, h, ..] = *packed;
        let mut at = u64::from_le_bytes([a, b, c, d, e, f, g, h]) as usize % slots;
        loop {
            let Some(slot) = self.slots.get_mut(at) else {
                return true;
            };
            let Some(before) = (*slot as usize).checked_sub(1) else {
                *slot = next;
                return true;
            };
            if self.ids.packed.get(before) == Some(packed) {
                return false;
            }
            at = (at + 1) % slots;
        }
    }
}

/// RFC 1939 section 7: 1 to 70 printable characters without space.
fn is_unique_id(text: &str) -> bool {
    (1..=UNIQUE_ID_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The octets of an EMAILID; `None` for any other text.
fn pack(text: &str) -> Option<Packed> {
    let digits = text.strip_prefix('M')?.as_bytes();
    let (groups, []) = digits.as_chunks::<8>() else {
        return None;
    };
    let groups: &[[u8; 8]; 3] = groups.try_into().ok()?;
    let mut packed = NOT_PACKED;
    for (group, octets) in groups.iter().zip(packed.as_chunks_mut::<5>().0) {
        let mut bits = 0u64;
        for digit in group {
            bits = bits << 5 | u64::from(value_of(*digit)?);
        }
        let [.., a, b, c, d, e] = bits.to_be_bytes();
        *octets = [a, b, c, d, e];
    }
    Some(packed)
}

fn value_of(digit: u8) -> Option<u8> {
    match digit {
        b'A'..=b'Z' => Some(digit - b'A'),
        b'2'..=b'7' => Some(digit - b'2' + 26),
        _ => None,
    }
}

fn unpack(packed: &Packed) -> [u8; 25] {
    let mut text = [b'M'; 25];
    let digits = text.get_mut(1..).unwrap_or_default();
    let groups = digits.as_chunks_mut::<8>().0;
    for (octets, group) in packed.as_chunks::<5>().0.iter().zip(groups) {
        let [a, b, c, d, e] = *octets;
        let bits = u64::from_be_bytes([0, 0, 0, a, b, c, d, e]);
        for (place, digit) in group.iter_mut().rev().enumerate() {
            let value = (bits >> (5 * place)) as usize & 31;
            *digit = DIGITS.get(value).copied().unwrap_or(b'A');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, proptest};

    use super::{TEXTS_MAX, UniqueId, UniqueIdsBuilder, pack};

    fn written(ids: &[&str]) -> Vec<String> {
        let mut builder = UniqueIdsBuilder::new(ids.len());
        for (uid, id) in (1u32..).zip(ids) {
            builder.push(id, uid);
        }
        let kept = builder.finish();
        (1u32..)
            .zip(0..ids.len())
            .map(|(uid, index)| kept.get(index, 77, uid).unwrap().to_string())
            .collect()
    }

    #[test]
    fn email_ids_are_written_as_they_came() {
        let first = "MMZXW6YTBOJTG633CMFZGM33P";
        let second = "MQRX6HPLQ3XEOU4NBDYH2NWRP";
        assert_eq!(pack(first).as_ref(), Some(b"foobarfoobarfoo"));
        assert_eq!(
            written(&[first, second, first, second, first]),
            [
                first,
                second,
                &format!("{first}-3"),
                &format!("{second}-4"),
                &format!("{first}-5")
            ]
        );
        // one digit too few, too many, or none of the alphabet; the octets that stand for none
        let zeros = format!("M{}", "A".repeat(24));
        for other in [
            &first[..24],
            &format!("{first}A"),
            &first.replace('Z', "z"),
            &zeros,
            "M",
        ] {
            assert_eq!(
                written(&[other, other]),
                [other.to_owned(), format!("{other}-2")]
            );
        }
    }

    #[test]
    fn texts_beyond_their_number_are_replaced() {
        let ids: Vec<String> = (0..TEXTS_MAX + 2)
            .map(|number| format!("x{number}"))
            .collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let written = written(&ids);
        assert_eq!(written[..TEXTS_MAX], ids[..TEXTS_MAX]);
        assert_eq!(written[TEXTS_MAX..], ["77.10001", "77.10002"]);
    }

    proptest! {
        #[test]
        fn any_octets_are_an_email_id(octets in any::<[u8; 15]>()) {
            let text = UniqueId::EmailId(octets).to_string();
            assert_eq!(pack(&text), Some(octets));
        }

        #[test]
        fn ids_are_unique_whatever_comes(numbers in prop::collection::vec(0u8..6, 0..40)) {
            let ids: Vec<String> = numbers
                .iter()
                .map(|number| UniqueId::EmailId([*number; 15]).to_string())
                .collect();
            let mut written = written(&ids.iter().map(String::as_str).collect::<Vec<_>>());
            written.sort_unstable();
            written.dedup();
            assert_eq!(written.len(), ids.len());
        }
    }
}

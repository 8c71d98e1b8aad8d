//! What a machine with a store keeps beside its keys, in one piece with them: what it has applied, and its running hash.
//!
//! The hash is a sum over all key-value pairs, so that a write costs two small digests whatever the state's size, and
//! reopening recomputes nothing. It notices divergence, it does not resist an attacker who chooses the pairs.

use bytes::Bytes;
use hikyaku_log::{Applied, Position, Stamp};

/// Incarnation, position, checksum, hash.
const STORED_BYTES: usize = 8 + 8 + 4 + 32;

/// Pairs up to this length are hashed without an allocation: all but a few are.
const PAIR_SHORT_BYTES: usize = 512;

/// The opaque position of a store under a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// The log prefix the state is made of.
    pub applied: Applied,
    /// The state's hash.
    pub hash: StateHash,
}

impl Stored {
    /// As the bytes a store keeps: incarnation (8), position (8), checksum (4), hash (32), big endian.
    pub fn encode(&self) -> Bytes {
        let mut bytes = Vec::with_capacity(STORED_BYTES);
        bytes.extend_from_slice(&self.applied.incarnation.to_be_bytes());
        bytes.extend_from_slice(&self.applied.stamp.position.0.to_be_bytes());
        bytes.extend_from_slice(&self.applied.stamp.crc.to_be_bytes());
        bytes.extend_from_slice(&self.hash.to_bytes());
        Bytes::from(bytes)
    }

    /// What `bytes` say; empty ones (a new store) are "nothing applied". `None` when they are not of this form.
    pub fn decode(bytes: &[u8]) -> Option<Stored> {
        if bytes.is_empty() {
            return Some(Stored::default());
        }
        let (incarnation, rest) = bytes.split_first_chunk()?;
        let (position, rest) = rest.split_first_chunk()?;
        let (crc, rest) = rest.split_first_chunk()?;
        Some(Stored {
            applied: Applied {
                incarnation: u64::from_be_bytes(*incarnation),
                stamp: Stamp {
                    position: Position(u64::from_be_bytes(*position)),
                    crc: u32::from_be_bytes(*crc),
                },
            },
            hash: StateHash::from_bytes(rest.try_into().ok()?),
        })
    }
}

/// A hash of a set of key-value pairs that is changed pair by pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateHash([u64; 4]);

impl StateHash {
    /// The pair is in the set now.
    pub fn add(&mut self, key: &[u8], value: &[u8]) {
        for (lane, digest) in self.0.iter_mut().zip(digest(key, value)) {
            *lane = lane.wrapping_add(digest);
        }
    }

    /// The pair is not in the set any more.
    pub fn remove(&mut self, key: &[u8], value: &[u8]) {
        for (lane, digest) in self.0.iter_mut().zip(digest(key, value)) {
            *lane = lane.wrapping_sub(digest);
        }
    }

    /// The hash.
    pub fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (chunk, lane) in bytes.chunks_exact_mut(8).zip(self.0) {
            chunk.copy_from_slice(&lane.to_le_bytes());
        }
        bytes
    }

    /// The inverse of [`StateHash::to_bytes`].
    pub fn from_bytes(bytes: [u8; 32]) -> StateHash {
        let mut hash = StateHash::default();
        for (lane, chunk) in hash.0.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *lane = u64::from_le_bytes(*chunk);
        }
        hash
    }
}

fn digest(key: &[u8], value: &[u8]) -> [u64; 4] {
    // the key's length in front: no two pairs run together to the same bytes
    let length = (key.len() as u32).to_le_bytes();
    let mut short = [0; PAIR_SHORT_BYTES];
    let parts = [&length[..], key, value];
    let digest = match join(&mut short, parts) {
        Some(pair) => blake3::hash(pair),
        None => blake3::hash(&parts.concat()),
    };
    StateHash::from_bytes(*digest.as_bytes()).0
}

/// The parts one after the other in `buffer`, if they fit.
fn join<'a>(buffer: &'a mut [u8], parts: [&[u8]; 3]) -> Option<&'a [u8]> {
    let mut end = 0;
    for part in parts {
        let next = end + part.len();
        buffer.get_mut(end..next)?.copy_from_slice(part);
        end = next;
    }
    buffer.get(..end)
}

#[cfg(test)]
mod tests {
    use super::{StateHash, Stored};
    use hikyaku_log::{Applied, Position, Stamp};

    #[test]
    fn stored_positions_come_back() {
        let mut hash = StateHash::default();
        hash.add(b"key", b"value");
        let stored = Stored {
            applied: Applied {
                incarnation: 7,
                stamp: Stamp {
                    position: Position(1 << 40),
                    crc: 9,
                },
            },
            hash,
        };
        assert_eq!(Stored::decode(&stored.encode()), Some(stored));
        assert_eq!(Stored::decode(&[]), Some(Stored::default()));
        assert_eq!(Stored::decode(&stored.encode()[1..]), None);
    }

    #[test]
    fn the_hash_is_of_the_set_not_of_its_history() {
        let (mut one, mut other) = (StateHash::default(), StateHash::default());
        one.add(b"a", b"1");
        one.add(b"b", b"2");
        other.add(b"b", b"2");
        other.add(b"c", b"3");
        other.add(b"a", b"1");
        assert_ne!(one, other);
        other.remove(b"c", b"3");
        assert_eq!(one, other);
        assert_eq!(StateHash::from_bytes(one.to_bytes()), one);
        let mut shifted = StateHash::default();
        shifted.add(b"ab", b"2");
        let mut plain = StateHash::default();
        plain.add(b"a", b"b2");
        assert_ne!(shifted, plain);
    }
}

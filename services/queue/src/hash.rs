//! A hash over a set that changes one element at a time: the sum of its elements' BLAKE3 hashes, in four 64-bit lanes.
//!
//! It guards against bugs and broken memory, not against somebody who chooses the elements.

/// The hash of one element.
pub type Element = [u64; 4];

/// The element for these parts, each preceded by its length so that no two lists of parts look alike.
pub fn element(parts: &[&[u8]]) -> Element {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    let hash = hasher.finalize();
    let mut lanes = [0; 4];
    for (lane, chunk) in lanes.iter_mut().zip(hash.as_bytes().chunks_exact(8)) {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(chunk);
        *lane = u64::from_be_bytes(bytes);
    }
    lanes
}

/// The sum of the elements present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetHash(Element);

impl SetHash {
    /// Adds an element.
    pub fn add(&mut self, element: Element) {
        for (sum, lane) in self.0.iter_mut().zip(element) {
            *sum = sum.wrapping_add(lane);
        }
    }

    /// Takes an element away.
    pub fn remove(&mut self, element: Element) {
        for (sum, lane) in self.0.iter_mut().zip(element) {
            *sum = sum.wrapping_sub(lane);
        }
    }

    /// The hash as bytes.
    pub fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (chunk, lane) in bytes.chunks_exact_mut(8).zip(self.0) {
            chunk.copy_from_slice(&lane.to_be_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::{SetHash, element};

    #[test]
    fn order_does_not_matter_and_removal_undoes() {
        let (a, b) = (element(&[b"a", b"bc"]), element(&[b"ab", b"c"]));
        assert_ne!(a, b);
        let (mut one, mut other) = (SetHash::default(), SetHash::default());
        one.add(a);
        one.add(b);
        other.add(b);
        other.add(a);
        assert_eq!(one, other);
        one.remove(b);
        other.remove(a);
        assert_ne!(one.to_bytes(), other.to_bytes());
        one.remove(a);
        assert_eq!(one, SetHash::default());
    }
}

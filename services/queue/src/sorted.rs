//! A sorted map for very many small entries: blocks of keys and blocks of values beside each other.
//!
//! The standard B-tree leaves its nodes half empty when keys come in ascending order, as ids, positions and times do. Here a
//! block is full before the next one begins, and neighbours that have become sparse are joined.

/// Entries of a block.
const BLOCK: usize = 128;
/// Two neighbours with as few together are joined.
const SPARSE: usize = 96;

/// A sorted map.
#[derive(Debug)]
pub struct Sorted<K, V = ()> {
    blocks: Vec<Block<K, V>>,
    len: usize,
}

/// Never empty, at most [`BLOCK`] entries.
#[derive(Debug)]
struct Block<K, V> {
    keys: Vec<K>,
    values: Vec<V>,
}

impl<K, V> Default for Sorted<K, V> {
    fn default() -> Sorted<K, V> {
        Sorted {
            blocks: Vec::new(),
            len: 0,
        }
    }
}

impl<K: Ord + Copy, V> Block<K, V> {
    fn new() -> Block<K, V> {
        Block {
            keys: Vec::with_capacity(BLOCK),
            values: Vec::with_capacity(BLOCK),
        }
    }

    fn split_off(&mut self, at: usize) -> Block<K, V> {
        let mut rest = Block::new();
        rest.keys.extend(self.keys.drain(at..));
        rest.values.extend(self.values.drain(at..));
        rest
    }
}

impl<K: Ord + Copy, V> Sorted<K, V> {
    /// Entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value of a key.
    pub fn get(&self, key: &K) -> Option<&V> {
        let (block, at) = self.find(key).ok()?;
        self.blocks.get(block)?.values.get(at)
    }

    /// The value of a key, to be changed.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let (block, at) = self.find(key).ok()?;
        self.blocks.get_mut(block)?.values.get_mut(at)
    }

    /// Whether the key is there.
    pub fn contains_key(&self, key: &K) -> bool {
        self.find(key).is_ok()
    }

    /// Puts a value under a key; the one that was there is given back.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let (number, at) = match self.find(&key) {
            Ok((number, at)) => {
                let old = self.blocks.get_mut(number)?.values.get_mut(at)?;
                return Some(std::mem::replace(old, value));
            }
            Err(place) => place,
        };
        self.len += 1;
        let (number, at) = self.make_room(number, at);
        if let Some(block) = self.blocks.get_mut(number) {
            block.keys.insert(at, key);
            block.values.insert(at, value);
        }
        None
    }

    /// Where there is room for an entry that belongs there.
    fn make_room(&mut self, number: usize, at: usize) -> (usize, usize) {
        let last = number + 1 == self.blocks.len();
        let Some(block) = self.blocks.get_mut(number) else {
            self.blocks.push(Block::new());
            return (self.blocks.len() - 1, 0);
        };
        if block.keys.len() < BLOCK {
            return (number, at);
        }
        // in ascending order, what is full stays full
        if last && at == BLOCK {
            self.blocks.push(Block::new());
            return (number + 1, 0);
        }
        let rest = block.split_off(BLOCK / 2);
        self.blocks.insert(number + 1, rest);
        if at <= BLOCK / 2 {
            (number, at)
        } else {
            (number + 1, at - BLOCK / 2)
        }
    }

    /// Takes an entry out.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let (number, at) = self.find(key).ok()?;
        let block = self.blocks.get_mut(number)?;
        block.keys.remove(at);
        let value = block.values.remove(at);
        let left = block.keys.len();
        self.len -= 1;
        if left == 0 {
            self.blocks.remove(number);
        } else if left < SPARSE {
            let after = self.blocks.get(number + 1).map(|next| next.keys.len());
            if after.is_some_and(|after| left + after <= SPARSE) {
                self.join(number);
            } else if let Some(before) = number.checked_sub(1)
                && let Some(block) = self.blocks.get(before)
                && left + block.keys.len() <= SPARSE
            {
                self.join(before);
            }
        }
        Some(value)
    }

    /// Keeps the entries that `wanted` says.
    pub fn retain(&mut self, mut wanted: impl FnMut(K, &V) -> bool) {
        let old = std::mem::take(self);
        for block in old.blocks {
            for (key, value) in block.keys.into_iter().zip(block.values) {
                if wanted(key, &value) {
                    self.insert(key, value);
                }
            }
        }
    }

    /// Joins a block with the next one.
    fn join(&mut self, number: usize) {
        let next = self.blocks.remove(number + 1);
        if let Some(block) = self.blocks.get_mut(number) {
            block.keys.extend(next.keys);
            block.values.extend(next.values);
        }
    }

    /// The lowest entry's key.
    pub fn first(&self) -> Option<K> {
        self.blocks.first()?.keys.first().copied()
    }

    /// The highest entry's key.
    pub fn last(&self) -> Option<K> {
        self.blocks.last()?.keys.last().copied()
    }

    /// All entries, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (K, &V)> {
        self.blocks
            .iter()
            .flat_map(|block| block.keys.iter().copied().zip(&block.values))
    }

    /// All keys, ascending.
    pub fn keys(&self) -> impl Iterator<Item = K> {
        self.blocks
            .iter()
            .flat_map(|block| block.keys.iter().copied())
    }

    /// The block and the place in it where the key is, or belongs.
    fn find(&self, key: &K) -> Result<(usize, usize), (usize, usize)> {
        // the last block that begins at or before it
        let after = self
            .blocks
            .partition_point(|block| block.keys.first().is_some_and(|first| first <= key));
        let number = after.saturating_sub(1);
        let Some(block) = self.blocks.get(number) else {
            return Err((0, 0));
        };
        match block.keys.binary_search(key) {
            Ok(at) => Ok((number, at)),
            Err(at) => Err((number, at)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, Sorted};
    use std::collections::BTreeMap;

    #[test]
    fn it_does_what_a_b_tree_does() {
        let mut random = 1u64;
        let mut next = |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        let (mut sorted, mut tree) = (Sorted::default(), BTreeMap::new());
        for round in 0..60_000u64 {
            // it grows, shrinks to nothing, and grows again
            let grows = (round / 10_000).is_multiple_of(2);
            let key = if next(3) == 0 { round } else { next(5000) };
            if (next(10) < 7) == grows {
                assert_eq!(sorted.insert(key, round), tree.insert(key, round));
            } else {
                let key = tree.range(key..).next().map_or(key, |(key, _)| *key);
                assert_eq!(sorted.remove(&key), tree.remove(&key));
            }
            assert_eq!(sorted.len(), tree.len());
            assert_eq!(sorted.first(), tree.keys().next().copied());
            assert_eq!(sorted.last(), tree.keys().last().copied());
            let asked = next(5000);
            assert_eq!(sorted.get(&asked), tree.get(&asked));
            assert_eq!(sorted.contains_key(&asked), tree.contains_key(&asked));
            if round % 1000 == 0 {
                assert!(
                    sorted
                        .iter()
                        .eq(tree.iter().map(|(key, value)| (*key, value)))
                );
                assert!(sorted.keys().eq(tree.keys().copied()));
            }
        }
        sorted.retain(|key, _| key % 3 == 0);
        tree.retain(|key, _| key % 3 == 0);
        assert!(sorted.keys().eq(tree.keys().copied()) && sorted.len() > 100);
        let keys: Vec<u64> = sorted.keys().collect();
        for key in keys {
            *sorted.get_mut(&key).unwrap() += 1;
            sorted.remove(&key);
        }
        assert!(sorted.is_empty() && sorted.first().is_none() && sorted.blocks.is_empty());
    }

    #[test]
    fn ascending_keys_fill_their_blocks() {
        let mut sorted = Sorted::default();
        for n in 0..100 * BLOCK {
            sorted.insert(n, ());
        }
        assert_eq!(sorted.blocks.len(), 100);
    }
}

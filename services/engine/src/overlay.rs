//! The writes of the batch in progress, laid over a committed view, and the bounds of a scan.
//!
//! A batch stays here until it is committed, so that neither engine ever holds half of one: a flush may come at any
//! moment, and the same key written twice by one batch is stored once.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{EngineError, KEY_BYTES_MAX, Pair, VALUE_BYTES_MAX, Write};

/// First byte of the engine's own keys; a caller never sees or writes one.
pub(crate) const RESERVED: u8 = 0xff;

/// The writes since the last commit.
#[derive(Default)]
pub(crate) struct Overlay {
    writes: BTreeMap<Vec<u8>, Option<Bytes>>,
    bytes: u64,
}

impl Overlay {
    /// Adds one record's writes, all or (when one of them is not allowed) none.
    pub(crate) fn put(&mut self, writes: Vec<Write>) -> Result<(), EngineError> {
        for write in &writes {
            check(write)?;
        }
        for write in writes {
            let key_bytes = write.key.len() as u64;
            self.bytes += key_bytes + value_bytes(&write.value);
            if let Some(old) = self.writes.insert(write.key, write.value) {
                self.bytes -= key_bytes + value_bytes(&old);
            }
        }
        Ok(())
    }

    /// What this batch says about `key`: nothing, deleted, or a value.
    pub(crate) fn find(&self, key: &[u8]) -> Option<&Option<Bytes>> {
        self.writes.get(key)
    }

    /// The batch's writes within `bounds`, in key order.
    pub(crate) fn within(&self, bounds: &Bounds) -> Vec<(Vec<u8>, Option<Bytes>)> {
        self.writes
            .range(bounds.lower.clone()..bounds.upper.clone())
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    }

    /// Ends the batch: its writes in key order; the overlay is empty afterwards.
    pub(crate) fn take(&mut self) -> BTreeMap<Vec<u8>, Option<Bytes>> {
        self.bytes = 0;
        std::mem::take(&mut self.writes)
    }

    /// Bytes of keys and values held.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

fn value_bytes(value: &Option<Bytes>) -> u64 {
    value.as_ref().map_or(0, |value| value.len() as u64)
}

fn check(write: &Write) -> Result<(), EngineError> {
    let key = &write.key;
    if key.is_empty() || key.len() > KEY_BYTES_MAX || key.first() == Some(&RESERVED) {
        return Err(EngineError::Failed(format!(
            "key of {} bytes not allowed",
            key.len()
        )));
    }
    match &write.value {
        Some(value) if value.len() > VALUE_BYTES_MAX => Err(EngineError::Failed(format!(
            "value of {} bytes not allowed",
            value.len()
        ))),
        _ => Ok(()),
    }
}

/// The keys of a scan: `lower <= key < upper`. Never empty the wrong way round, never the engine's own keys.
#[derive(Debug)]
pub(crate) struct Bounds {
    pub(crate) lower: Vec<u8>,
    pub(crate) upper: Vec<u8>,
}

impl Bounds {
    /// Keys starting with `prefix` and not before `from`; `None` when there can be none.
    pub(crate) fn new(prefix: &[u8], from: &[u8]) -> Option<Self> {
        let upper = if prefix.is_empty() {
            vec![RESERVED]
        } else {
            after_prefix(prefix)?
        };
        let lower = prefix.max(from).to_vec();
        (lower < upper).then_some(Self { lower, upper })
    }
}

/// The least key after all keys that start with `prefix`; `None` for the engine's own.
fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    if prefix.first() == Some(&RESERVED) {
        return None;
    }
    let mut upper = prefix.to_vec();
    while let Some(last) = upper.pop() {
        if let Some(next) = last.checked_add(1) {
            upper.push(next);
            return Some(upper);
        }
    }
    None
}

/// Merges `over` (newer, may delete) into `base`, both in key order, up to `limit` pairs.
pub(crate) fn merge(
    base: impl Iterator<Item = Result<Pair, EngineError>>,
    over: Vec<(Vec<u8>, Option<Bytes>)>,
    limit: usize,
) -> Result<Vec<Pair>, EngineError> {
    let mut pairs = Vec::new();
    let mut over = over.into_iter().peekable();
    let mut base = base;
    // one base pair is read ahead of the overlay's keys, and none once the limit is reached
    while pairs.len() < limit {
        let Some(next) = base.next().transpose()? else {
            break;
        };
        let mut shadowed = false;
        while let Some((key, value)) = over.next_if(|(key, _)| key.as_slice() <= &next.0[..]) {
            shadowed = key.as_slice() == &next.0[..];
            if let Some(value) = value
                && pairs.len() < limit
            {
                pairs.push((Bytes::from(key), value));
            }
        }
        if !shadowed && pairs.len() < limit {
            pairs.push(next);
        }
    }
    for (key, value) in over {
        if pairs.len() >= limit {
            break;
        }
        if let Some(value) = value {
            pairs.push((Bytes::from(key), value));
        }
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, Strategy, any, prop_assert_eq, proptest};

    use super::*;

    #[test]
    fn bounds_of_a_prefix_end_where_it_ends() {
        let bounds = Bounds::new(&[1, 0xff], b"").unwrap();
        assert_eq!((bounds.lower, bounds.upper), (vec![1, 0xff], vec![2]));
        assert!(Bounds::new(&[1], &[2]).is_none());
        assert!(Bounds::new(&[RESERVED], b"").is_none());
        assert!(Bounds::new(b"", &[RESERVED]).is_none());
    }

    #[test]
    fn a_refused_key_refuses_the_whole_record() {
        let mut overlay = Overlay::default();
        for key in [vec![], vec![RESERVED, 1], vec![1; KEY_BYTES_MAX + 1]] {
            let writes = vec![
                Write {
                    key: vec![1],
                    value: None,
                },
                Write { key, value: None },
            ];
            assert!(overlay.put(writes).is_err());
        }
        assert!(overlay.take().is_empty());
    }

    #[test]
    fn bytes_follow_replacement() {
        let mut overlay = Overlay::default();
        let write = |len| {
            vec![Write {
                key: vec![1, 2],
                value: Some(Bytes::from(vec![0; len])),
            }]
        };
        overlay.put(write(100)).unwrap();
        overlay.put(write(10)).unwrap();
        assert_eq!(overlay.bytes(), 12);
    }

    fn small_map<V: Strategy>(value: V) -> impl Strategy<Value = BTreeMap<u8, V::Value>> {
        proptest::collection::btree_map(0_u8..20, value, 0..12)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn merge_is_the_map_with_the_overlay_applied(
            base in small_map(any::<u8>()),
            over in small_map(any::<Option<u8>>()),
            limit in 0_usize..30,
        ) {
            let mut expected = base.clone();
            for (key, value) in &over {
                match value {
                    Some(value) => { expected.insert(*key, *value); }
                    None => { expected.remove(key); }
                }
            }
            let pair = |(key, value): (&u8, &u8)| (Bytes::from(vec![*key]), Bytes::from(vec![*value]));
            let merged = merge(
                base.iter().map(|entry| Ok(pair(entry))),
                over.iter().map(|(k, v)| (vec![*k], v.map(|v| Bytes::from(vec![v])))).collect(),
                limit,
            ).unwrap();
            prop_assert_eq!(merged, expected.iter().take(limit).map(pair).collect::<Vec<_>>());
        }
    }
}

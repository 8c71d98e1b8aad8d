//! Writes to the engine, each with its share of the running hash, and the heads that every command needs again.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use hikyaku_engine::{Engine, Pair, Write};
use hikyaku_shard::stored::StateHash;
use prost::Message;

use crate::StoreError;

/// Heads kept in memory. More would only save reads: the store has them all.
const HEADS_MAX: usize = 8_192;

/// The engine as the state machine's writer sees it. Whoever replaces or removes a value brings the old one, so that the
/// hash never costs a read; tests check what they bring.
pub(crate) struct Writer {
    engine: Arc<dyn Engine>,
    hash: StateHash,
}

impl Writer {
    pub(crate) fn new(engine: Arc<dyn Engine>, hash: StateHash) -> Writer {
        Writer { engine, hash }
    }

    pub(crate) fn engine(&self) -> &dyn Engine {
        &*self.engine
    }

    pub(crate) fn hash(&self) -> StateHash {
        self.hash
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.engine.get(key)?)
    }

    pub(crate) fn scan(
        &self,
        prefix: &[u8],
        from: &[u8],
        limit: usize,
    ) -> Result<Vec<Pair>, StoreError> {
        Ok(self.engine.scan(prefix, from, limit)?)
    }

    /// A key that is not there yet.
    pub(crate) fn insert(&mut self, key: Vec<u8>, value: Bytes) -> Result<(), StoreError> {
        debug_assert_eq!(self.engine.get(&key).ok(), Some(None));
        self.hash.add(&key, &value);
        self.write(key, Some(value))
    }

    /// A key that is there, with `old`.
    pub(crate) fn replace(
        &mut self,
        key: Vec<u8>,
        old: &[u8],
        value: Bytes,
    ) -> Result<(), StoreError> {
        debug_assert_eq!(self.engine.get(&key).ok().flatten().as_deref(), Some(old));
        self.hash.remove(&key, old);
        self.hash.add(&key, &value);
        self.write(key, Some(value))
    }

    /// A key that is there, with `old`, and goes.
    pub(crate) fn remove(&mut self, key: Vec<u8>, old: &[u8]) -> Result<(), StoreError> {
        debug_assert_eq!(self.engine.get(&key).ok().flatten().as_deref(), Some(old));
        self.hash.remove(&key, old);
        self.write(key, None)
    }

    /// A body comes or goes. The hash covers it through its row, so that hashing costs nothing per octet.
    pub(crate) fn write_body(
        &mut self,
        key: Vec<u8>,
        value: Option<Bytes>,
    ) -> Result<(), StoreError> {
        self.write(key, value)
    }

    fn write(&mut self, key: Vec<u8>, value: Option<Bytes>) -> Result<(), StoreError> {
        Ok(self.engine.write(vec![Write { key, value }])?)
    }
}

/// A bounded write-through cache of one kind of head: accounts, mailboxes, tenants. It never decides anything.
pub(crate) struct Heads<T> {
    what: &'static str,
    known: BTreeMap<Vec<u8>, (T, Bytes)>,
}

impl<T: Message + Default + Clone + PartialEq> Heads<T> {
    pub(crate) fn new(what: &'static str) -> Heads<T> {
        Heads {
            what,
            known: BTreeMap::new(),
        }
    }

    pub(crate) fn get(&mut self, writer: &Writer, key: &[u8]) -> Result<Option<T>, StoreError> {
        if let Some((head, _)) = self.known.get(key) {
            return Ok(Some(head.clone()));
        }
        let Some(encoded) = writer.get(key)? else {
            return Ok(None);
        };
        let head = T::decode(encoded.clone()).map_err(|_| StoreError::Corrupt(self.what))?;
        self.remember(key.to_vec(), head.clone(), encoded);
        Ok(Some(head))
    }

    pub(crate) fn put(
        &mut self,
        writer: &mut Writer,
        key: Vec<u8>,
        head: T,
    ) -> Result<(), StoreError> {
        let encoded = Bytes::from(head.encode_to_vec());
        let old = match self.known.get(&key) {
            Some((_, old)) => Some(old.clone()),
            None => writer.get(&key)?,
        };
        match old {
            Some(old) if old == encoded => {}
            Some(old) => writer.replace(key.clone(), &old, encoded.clone())?,
            None => writer.insert(key.clone(), encoded.clone())?,
        }
        self.remember(key, head, encoded);
        Ok(())
    }

    pub(crate) fn remove(&mut self, writer: &mut Writer, key: Vec<u8>) -> Result<(), StoreError> {
        self.known.remove(&key);
        match writer.get(&key)? {
            Some(old) => writer.remove(key, &old),
            None => Ok(()),
        }
    }

    fn remember(&mut self, key: Vec<u8>, head: T, encoded: Bytes) {
        if self.known.len() >= HEADS_MAX && !self.known.contains_key(&key) {
            self.known.clear();
        }
        self.known.insert(key, (head, encoded));
    }
}

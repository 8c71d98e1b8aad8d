//! The store in memory, for the simulator: a crash goes back to the last flush.
//!
//! A [`MemoryDisk`] is what survives; it holds stores by name. [`MemoryEngine::open`] is both the first start and the
//! crash: what was not flushed is gone, and handles opened before are dead. No threads, no clock, no randomness.
//!
//! Values are kept in versions: a view is one number, a write is one insertion, and versions that neither a view nor
//! the last flush can see are dropped as the key is written again and at each flush.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::overlay::{Bounds, Overlay, merge};
use crate::{Engine, EngineError, Pair, Snapshot, Write};

/// A simulated disk: stores by name. Clones are the same disk.
#[derive(Clone, Default)]
pub struct MemoryDisk {
    stores: Arc<Mutex<BTreeMap<String, Arc<Mutex<Store>>>>>,
}

impl MemoryDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// Loses one store, as a replaced disk does; handles to it are dead.
    pub fn wipe(&self, name: &str) {
        if let Some(store) = lock(&self.stores).remove(name) {
            lock(&store).generation += 1;
        }
    }

    /// While `full`, a flush of that store ends in [`EngineError::Full`].
    pub fn set_full(&self, name: &str, full: bool) {
        lock(&self.store(name)).full = full;
    }

    /// The names of the stores.
    pub fn names(&self) -> Vec<String> {
        lock(&self.stores).keys().cloned().collect()
    }

    fn store(&self, name: &str) -> Arc<Mutex<Store>> {
        lock(&self.stores)
            .entry(name.to_owned())
            .or_default()
            .clone()
    }
}

/// One value of one key: since which commit, and what.
type Version = (u64, Option<Bytes>);

#[derive(Default)]
struct Store {
    /// Versions of each key, oldest first.
    keys: BTreeMap<Vec<u8>, Vec<Version>>,
    /// Keys that may hold versions nobody can see.
    untidy: BTreeSet<Vec<u8>>,
    /// The last commit's number; never used twice, not even after a crash.
    commit: u64,
    position: Bytes,
    durable_commit: u64,
    durable: Bytes,
    unflushed_bytes: u64,
    /// Commits that snapshots look at, and how many of them.
    views: BTreeMap<u64, usize>,
    /// Counts openings: a handle of an older one is dead.
    generation: u64,
    full: bool,
}

impl Store {
    /// What a power cut does: everything after the last flush never was.
    fn crash(&mut self) {
        let durable = self.durable_commit;
        self.keys.retain(|_, versions| {
            versions.retain(|(since, _)| *since <= durable);
            !versions.is_empty()
        });
        self.position = self.durable.clone();
        self.unflushed_bytes = 0;
        self.views.clear();
        self.untidy = self.keys.keys().cloned().collect();
        self.generation += 1;
        self.tidy();
    }

    /// The oldest commit that somebody may still look at.
    fn horizon(&self) -> u64 {
        let oldest_view = self.views.keys().next().copied().unwrap_or(u64::MAX);
        oldest_view.min(self.durable_commit)
    }

    fn put(&mut self, key: Vec<u8>, value: Option<Bytes>) {
        let horizon = self.horizon();
        let newest_view = self
            .views
            .keys()
            .next_back()
            .copied()
            .unwrap_or(0)
            .max(self.durable_commit);
        let size = key.len() + value.as_ref().map_or(0, Bytes::len);
        self.unflushed_bytes += size as u64;
        let versions = self.keys.entry(key.clone()).or_default();
        // a key written over and over between two flushes keeps one version, not thousands
        while versions.pop_if(|(since, _)| *since > newest_view).is_some() {}
        versions.push((self.commit, value));
        prune(versions, horizon);
        self.untidy.insert(key);
    }

    fn tidy(&mut self) {
        let horizon = self.horizon();
        let mut still_untidy = BTreeSet::new();
        for key in std::mem::take(&mut self.untidy) {
            let Some(versions) = self.keys.get_mut(&key) else {
                continue;
            };
            prune(versions, horizon);
            match versions.as_slice() {
                [(since, None)] if *since <= horizon => {
                    self.keys.remove(&key);
                }
                [(_, Some(_))] => {}
                _ => {
                    still_untidy.insert(key);
                }
            }
        }
        self.untidy = still_untidy;
    }

    fn get(&self, key: &[u8], at: u64) -> Option<Bytes> {
        visible(self.keys.get(key)?, at)
    }

    fn range(&self, bounds: &Bounds, at: u64) -> impl Iterator<Item = Result<Pair, EngineError>> {
        let range = (
            Bound::Included(bounds.lower.as_slice()),
            Bound::Excluded(bounds.upper.as_slice()),
        );
        self.keys
            .range::<[u8], _>(range)
            .filter_map(move |(key, versions)| {
                let value = visible(versions, at)?;
                Some(Ok((Bytes::copy_from_slice(key), value)))
            })
    }
}

/// The value a view at commit `at` sees.
fn visible(versions: &[Version], at: u64) -> Option<Bytes> {
    let (_, value) = versions.iter().rev().find(|(since, _)| *since <= at)?;
    value.clone()
}

/// Drops the versions that no view at `horizon` or later can see.
fn prune(versions: &mut Vec<Version>, horizon: u64) {
    let seen_from = versions
        .iter()
        .rposition(|(since, _)| *since <= horizon)
        .unwrap_or(0);
    versions.drain(..seen_from);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn dead() -> EngineError {
    EngineError::Failed("the store was opened again or wiped".to_owned())
}

/// A store on a [`MemoryDisk`].
pub struct MemoryEngine {
    store: Arc<Mutex<Store>>,
    generation: u64,
    overlay: Mutex<Overlay>,
}

impl MemoryEngine {
    /// Opens the store `name`, as after a crash: it is what the last flush made durable.
    pub fn open(disk: &MemoryDisk, name: &str) -> Arc<Self> {
        let store = disk.store(name);
        let generation = {
            let mut store = lock(&store);
            store.crash();
            store.generation
        };
        Arc::new(Self {
            store,
            generation,
            overlay: Mutex::default(),
        })
    }

    /// Replaces the store `name` by `pairs` at `position`, all or nothing and durable; it must be opened afterwards.
    pub fn replace(
        disk: &MemoryDisk,
        name: &str,
        pairs: impl IntoIterator<Item = Result<Pair, EngineError>>,
        position: Bytes,
    ) -> Result<(), EngineError> {
        let mut fresh = Store {
            commit: 1,
            ..Store::default()
        };
        let mut overlay = Overlay::default();
        for pair in pairs {
            let (key, value) = pair?;
            overlay.put(vec![Write {
                key: key.to_vec(),
                value: Some(value),
            }])?;
        }
        for (key, value) in overlay.take() {
            fresh.put(key, value);
        }
        (fresh.durable_commit, fresh.durable, fresh.position) = (1, position.clone(), position);
        disk.wipe(name);
        lock(&disk.stores).insert(name.to_owned(), Arc::new(Mutex::new(fresh)));
        Ok(())
    }

    fn live(&self) -> Result<MutexGuard<'_, Store>, EngineError> {
        live(&self.store, self.generation)
    }
}

impl Engine for MemoryEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let overlay = lock(&self.overlay);
        let store = self.live()?;
        match overlay.find(key) {
            Some(value) => Ok(value.clone()),
            None => Ok(store.get(key, store.commit)),
        }
    }

    fn scan(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<Pair>, EngineError> {
        let overlay = lock(&self.overlay);
        let store = self.live()?;
        let Some(bounds) = Bounds::new(prefix, from) else {
            return Ok(Vec::new());
        };
        merge(
            store.range(&bounds, store.commit),
            overlay.within(&bounds),
            limit,
        )
    }

    fn write(&self, writes: Vec<Write>) -> Result<(), EngineError> {
        let mut overlay = lock(&self.overlay);
        drop(self.live()?);
        overlay.put(writes)
    }

    fn commit(&self, position: Bytes) -> Result<(), EngineError> {
        let mut overlay = lock(&self.overlay);
        let mut store = self.live()?;
        store.commit += 1;
        for (key, value) in overlay.take() {
            store.put(key, value);
        }
        store.position = position;
        Ok(())
    }

    fn position(&self) -> Bytes {
        self.live()
            .map(|store| store.position.clone())
            .unwrap_or_default()
    }

    fn durable(&self) -> Bytes {
        self.live()
            .map(|store| store.durable.clone())
            .unwrap_or_default()
    }

    fn snapshot(&self) -> Box<dyn Snapshot> {
        let mut store = lock(&self.store);
        let (at, position) = (store.commit, store.position.clone());
        if store.generation == self.generation {
            *store.views.entry(at).or_default() += 1;
        }
        drop(store);
        Box::new(MemorySnapshot {
            store: self.store.clone(),
            generation: self.generation,
            at,
            position,
        })
    }

    fn flush(&self) -> Result<(), EngineError> {
        let mut store = self.live()?;
        if store.full {
            return Err(EngineError::Full);
        }
        store.durable_commit = store.commit;
        store.durable = store.position.clone();
        store.unflushed_bytes = 0;
        store.tidy();
        Ok(())
    }

    /// There is nothing to wait for: flushes at once, and on a full disk not at all.
    fn request_flush(&self) {
        match self.flush() {
            Ok(()) | Err(EngineError::Full | EngineError::Failed(_)) => {}
        }
    }

    fn unflushed_bytes(&self) -> u64 {
        let overlay = lock(&self.overlay);
        self.live()
            .map(|store| store.unflushed_bytes + overlay.bytes())
            .unwrap_or(0)
    }

    fn stalled(&self) -> bool {
        false
    }
}

/// The store, if the handle that was given out for `generation` still stands.
fn live(store: &Mutex<Store>, generation: u64) -> Result<MutexGuard<'_, Store>, EngineError> {
    let store = lock(store);
    if store.generation == generation {
        Ok(store)
    } else {
        Err(dead())
    }
}

struct MemorySnapshot {
    store: Arc<Mutex<Store>>,
    generation: u64,
    at: u64,
    position: Bytes,
}

impl MemorySnapshot {
    fn live(&self) -> Result<MutexGuard<'_, Store>, EngineError> {
        live(&self.store, self.generation)
    }
}

impl Snapshot for MemorySnapshot {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.live()?.get(key, self.at))
    }

    fn scan(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<Pair>, EngineError> {
        let store = self.live()?;
        let Some(bounds) = Bounds::new(prefix, from) else {
            return Ok(Vec::new());
        };
        store.range(&bounds, self.at).take(limit).collect()
    }

    fn position(&self) -> Bytes {
        self.position.clone()
    }
}

impl Drop for MemorySnapshot {
    fn drop(&mut self) {
        let mut store = lock(&self.store);
        if store.generation != self.generation {
            return;
        }
        if let Some(count) = store.views.get_mut(&self.at) {
            *count -= 1;
            if *count == 0 {
                store.views.remove(&self.at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract;

    struct Memory(MemoryDisk);

    impl contract::Machine for Memory {
        fn open(&self, name: &str) -> Arc<dyn Engine> {
            MemoryEngine::open(&self.0, name)
        }

        fn replace(
            &self,
            name: &str,
            pairs: Vec<Pair>,
            position: Bytes,
        ) -> Result<(), EngineError> {
            MemoryEngine::replace(&self.0, name, pairs.into_iter().map(Ok), position)
        }
    }

    #[test]
    fn keeps_the_contract() {
        contract::all(&Memory(MemoryDisk::new()));
    }

    #[test]
    fn versions_nobody_sees_are_dropped() {
        let disk = MemoryDisk::new();
        let engine = MemoryEngine::open(&disk, "a");
        for n in 0..1_000_u32 {
            let value = (n % 2 == 0).then(|| Bytes::from_static(b"v"));
            engine
                .write(vec![Write {
                    key: vec![1],
                    value,
                }])
                .unwrap();
            engine
                .commit(Bytes::from(n.to_be_bytes().to_vec()))
                .unwrap();
            if n % 10 == 9 {
                engine.flush().unwrap();
                // the last write was a deletion
                assert!(lock(&engine.store).keys.is_empty());
            }
        }
        assert!(lock(&engine.store).untidy.is_empty());
    }

    #[test]
    fn a_dead_handle_touches_nothing() {
        let disk = MemoryDisk::new();
        let old = MemoryEngine::open(&disk, "a");
        let view = old.snapshot();
        let new = MemoryEngine::open(&disk, "a");
        assert!(
            old.write(vec![Write {
                key: vec![1],
                value: None
            }])
            .is_err()
        );
        assert!(old.commit(Bytes::from_static(b"x")).is_err());
        assert!(old.flush().is_err());
        assert!(view.get(&[1]).is_err());
        assert!(new.position().is_empty());
        disk.wipe("a");
        assert!(new.flush().is_err());
        assert!(disk.names().is_empty());
    }

    #[test]
    fn a_full_disk_loses_nothing() {
        let disk = MemoryDisk::new();
        let engine = MemoryEngine::open(&disk, "a");
        engine
            .write(vec![Write {
                key: vec![1],
                value: Some(Bytes::from_static(b"v")),
            }])
            .unwrap();
        engine.commit(Bytes::from_static(b"1")).unwrap();
        disk.set_full("a", true);
        assert!(matches!(engine.flush(), Err(EngineError::Full)));
        assert!(engine.durable().is_empty());
        disk.set_full("a", false);
        engine.flush().unwrap();
        assert_eq!(engine.durable(), "1");
    }
}

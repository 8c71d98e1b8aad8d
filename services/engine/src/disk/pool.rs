//! What all shards of a process share: caches, the memory budget, and three threads.
//!
//! The flusher writes the largest or the oldest memtable, the compactor works on one shard at a time, the timer counts
//! ticks for both (so that no code here reads a clock).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use lsm_tree::{Cache, DescriptorTable};

use super::Options;
use super::store::Store;
use crate::EngineError;

const TICK: Duration = Duration::from_millis(250);
/// How often old versions are reaped, in ticks.
const REAP_TICKS: u64 = 4;
/// How long a full disk is left alone, in ticks.
const FULL_TICKS: u64 = 20;

/// Ticks in `duration`, at least one.
pub(super) fn ticks(duration: Duration) -> u64 {
    let ticks = duration.as_millis() / TICK.as_millis();
    u64::try_from(ticks).unwrap_or(u64::MAX).max(1)
}

/// A lock whose holder panicked is taken over: the store it guards was declared failed by then.
pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Caches, memory budget and background threads for all shards of a process. Dropping it stops and joins the threads;
/// engines still open go on without background work.
pub struct Shared {
    pool: Arc<Pool>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Shared {
    /// Starts the threads.
    pub fn start(options: Options) -> Result<Self, EngineError> {
        let pool = Arc::new(Pool {
            cache: Arc::new(Cache::with_capacity_bytes(options.cache_bytes_max)),
            descriptors: Arc::new(DescriptorTable::new(options.descriptors_max)),
            options,
            unflushed_bytes: AtomicU64::new(0),
            tick: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            stores: Mutex::default(),
            flusher: Bell::default(),
            compactor: Bell::default(),
            timer: Bell::default(),
        });
        let shared = Self {
            pool,
            threads: Mutex::default(),
        };
        shared.spawn("engine-flush", Pool::flush_loop)?;
        shared.spawn("engine-compact", Pool::compact_loop)?;
        shared.spawn("engine-timer", Pool::timer_loop)?;
        Ok(shared)
    }

    fn spawn(&self, name: &str, run: fn(&Pool)) -> Result<(), EngineError> {
        let pool = self.pool.clone();
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run(&pool))
            .map_err(|error| EngineError::Failed(format!("thread {name}: {error}")))?;
        lock(&self.threads).push(thread);
        Ok(())
    }

    /// Stops the threads and waits for them; a compaction under way is given up.
    pub fn shutdown(&self) {
        self.pool.stopping.store(true, Ordering::Release);
        for bell in [&self.pool.flusher, &self.pool.compactor, &self.pool.timer] {
            bell.ring();
        }
        let stores = self.pool.stores();
        stores.iter().for_each(|store| store.interrupt());
        for thread in std::mem::take(&mut *lock(&self.threads)) {
            if thread.join().is_err() {
                tracing::error!("a thread of the store panicked");
            }
        }
        stores.iter().for_each(|store| store.resume());
    }

    pub(super) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// Wakes one thread; rings while it is busy are remembered as one.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Bell {
    fn ring(&self) {
        *lock(&self.rung) = true;
        self.changed.notify_one();
    }

    fn wait(&self) {
        let mut rung = lock(&self.rung);
        while !*rung {
            rung = self
                .changed
                .wait(rung)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *rung = false;
    }

    /// Waits for a ring or the timeout, whichever comes first.
    fn wait_for(&self, timeout: Duration) {
        let rung = lock(&self.rung);
        let waited = self
            .changed
            .wait_timeout_while(rung, timeout, |rung| !*rung);
        *waited.unwrap_or_else(PoisonError::into_inner).0 = false;
    }
}

pub(super) struct Pool {
    pub(super) options: Options,
    pub(super) cache: Arc<Cache>,
    pub(super) descriptors: Arc<DescriptorTable>,
    /// Memtable bytes of all shards.
    unflushed_bytes: AtomicU64,
    tick: AtomicU64,
    stopping: AtomicBool,
    stores: Mutex<Vec<Weak<Store>>>,
    flusher: Bell,
    compactor: Bell,
    timer: Bell,
}

impl Pool {
    /// Takes a shard into the care of the threads.
    pub(super) fn enter(&self, store: &Arc<Store>) {
        let mut stores = lock(&self.stores);
        stores.retain(|store| store.strong_count() > 0);
        stores.push(Arc::downgrade(store));
        drop(stores);
        self.compactor.ring();
    }

    /// A commit added bytes to a memtable.
    pub(super) fn added(&self, bytes: u64) {
        let before = self.unflushed_bytes.fetch_add(bytes, Ordering::AcqRel);
        if before + bytes >= self.options.memtable_bytes_max {
            self.flusher.ring();
        }
    }

    /// A memtable was flushed or given up.
    pub(super) fn removed(&self, bytes: u64) {
        self.unflushed_bytes.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// A shard asked for a flush.
    pub(super) fn wake_flusher(&self) {
        self.flusher.ring();
    }

    /// A flush made a new level-0 run.
    pub(super) fn flushed(&self) {
        self.compactor.ring();
    }

    /// The budget is used up twice over: one half is being flushed, the other is full.
    pub(super) fn memory_exhausted(&self) -> bool {
        self.unflushed_bytes.load(Ordering::Acquire)
            >= self.options.memtable_bytes_max.saturating_mul(2)
    }

    /// Ticks since the start.
    pub(super) fn tick(&self) -> u64 {
        self.tick.load(Ordering::Acquire)
    }

    fn over_budget(&self) -> bool {
        self.unflushed_bytes.load(Ordering::Acquire) >= self.options.memtable_bytes_max
    }

    /// The threads are about to end, or have.
    pub(super) fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    fn stores(&self) -> Vec<Arc<Store>> {
        lock(&self.stores)
            .iter()
            .filter_map(Weak::upgrade)
            .collect()
    }

    fn timer_loop(&self) {
        while !self.stopping() {
            self.timer.wait_for(TICK);
            self.tick.fetch_add(1, Ordering::AcqRel);
            self.flusher.ring();
            self.compactor.ring();
        }
    }

    fn flush_loop(&self) {
        let mut reaped = 0;
        loop {
            self.flusher.wait();
            if self.stopping() {
                return;
            }
            self.flush_due();
            if self.tick() >= reaped + REAP_TICKS {
                reaped = self.tick();
                self.stores().iter().for_each(|store| store.reap());
            }
        }
    }

    /// Flushes what waits or is too old, then the largest until the budget holds.
    fn flush_due(&self) {
        let age_max = ticks(self.options.memtable_age_max);
        let stores = self.stores();
        for store in &stores {
            if store.flush_waits(age_max) {
                self.flush(store);
            }
        }
        for _ in 0..stores.len() {
            if !self.over_budget() || self.stopping() {
                return;
            }
            let able = stores.iter().filter(|store| store.may_flush());
            let Some(largest) = able.max_by_key(|store| store.memtable_bytes()) else {
                return;
            };
            self.flush(largest);
        }
    }

    fn flush(&self, store: &Arc<Store>) {
        match store.flush_in_background() {
            Ok(()) => {}
            Err(EngineError::Full) => {
                tracing::warn!(dir = %store.dir().display(), "no space to flush the store");
                store.pause_flush(self.tick() + FULL_TICKS);
            }
            // already logged where the store was declared failed
            Err(EngineError::Failed(_)) => {}
        }
    }

    fn compact_loop(&self) {
        loop {
            self.compactor.wait();
            for store in self.stores() {
                if self.stopping() {
                    return;
                }
                if let Err(EngineError::Full) = store.compact_in_background() {
                    tracing::warn!(dir = %store.dir().display(), "no space to compact the store");
                    store.pause_compaction(self.tick() + FULL_TICKS);
                }
            }
            if self.stopping() {
                return;
            }
        }
    }
}

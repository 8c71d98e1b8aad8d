//! What every part of a run shares: its trace, its counters, and the first thing that was wrong.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Display;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hikyaku_shard::ambient::Ambient;
use tokio::time::Instant;

use super::random::Random;

/// When every simulation begins: 2026-11-24.
pub const START_MS: u64 = 1_795_478_400_000;
/// Lines of trace kept for the report of a failure.
const TRACE_LINES_MAX: usize = 120;

/// A lock that a panicking task does not take away.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How often what happened. Names are `kind/what`.
pub type Counts = BTreeMap<String, u64>;

/// A run's trace, counters and verdict. Clones share it.
#[derive(Clone)]
pub struct World {
    inner: Arc<Inner>,
}

struct Inner {
    started: Instant,
    verbose: bool,
    state: Mutex<State>,
}

struct State {
    digest: blake3::Hasher,
    lines: VecDeque<String>,
    counts: Counts,
    violation: Option<String>,
}

impl World {
    /// A run that begins now. `verbose` prints the trace as it grows.
    pub fn new(verbose: bool) -> World {
        World {
            inner: Arc::new(Inner {
                started: Instant::now(),
                verbose,
                state: Mutex::new(State {
                    digest: blake3::Hasher::new(),
                    lines: VecDeque::new(),
                    counts: Counts::new(),
                    violation: None,
                }),
            }),
        }
    }

    /// Milliseconds since the run began.
    pub fn elapsed_ms(&self) -> u64 {
        self.inner.started.elapsed().as_millis() as u64
    }

    /// Notes something that happened: it goes into the digest and the trace.
    pub fn note(&self, what: impl Display) {
        let line = format!("{:>9} {what}", self.elapsed_ms());
        if self.inner.verbose {
            println!("{line}");
        }
        let mut state = lock(&self.inner.state);
        state.digest.update(line.as_bytes());
        state.lines.push_back(line);
        if state.lines.len() > TRACE_LINES_MAX {
            state.lines.pop_front();
        }
    }

    /// Puts octets into the digest that are too many for the trace.
    pub fn digest(&self, octets: &[u8]) {
        lock(&self.inner.state).digest.update(octets);
    }

    /// Whether the trace is printed.
    pub fn is_verbose(&self) -> bool {
        self.inner.verbose
    }

    /// Counts something that must occur in some run.
    pub fn count(&self, what: impl Into<String>) {
        self.count_many(what, 1);
    }

    /// Counts something that happened so often.
    pub fn count_many(&self, what: impl Into<String>, times: u64) {
        *lock(&self.inner.state)
            .counts
            .entry(what.into())
            .or_default() += times;
    }

    /// Notes that an invariant does not hold; the first one counts.
    pub fn violate(&self, invariant: impl Display) {
        self.note(format_args!("VIOLATED {invariant}"));
        let mut state = lock(&self.inner.state);
        if state.violation.is_none() {
            state.violation = Some(invariant.to_string());
        }
    }

    /// The first invariant that did not hold.
    pub fn violation(&self) -> Option<String> {
        lock(&self.inner.state).violation.clone()
    }

    /// A hash over everything noted so far.
    pub fn digest_so_far(&self) -> String {
        let state = lock(&self.inner.state);
        state.digest.finalize().to_hex()[..16].to_owned()
    }

    /// The counters.
    pub fn counts(&self) -> Counts {
        lock(&self.inner.state).counts.clone()
    }

    /// The end of the trace.
    pub fn tail(&self) -> Vec<String> {
        lock(&self.inner.state).lines.iter().cloned().collect()
    }
}

/// One machine's wall clock and randomness.
pub struct SimAmbient {
    started: Instant,
    skew_ms: AtomicI64,
    random: Mutex<Random>,
}

impl SimAmbient {
    /// A clock that is right.
    pub fn new(random: Random) -> Arc<SimAmbient> {
        Arc::new(SimAmbient {
            started: Instant::now(),
            skew_ms: AtomicI64::new(0),
            random: Mutex::new(random),
        })
    }

    /// Sets the clock wrong by so much.
    pub fn set_skew(&self, skew_ms: i64) {
        self.skew_ms.store(skew_ms, Ordering::Relaxed);
    }

    /// By how much it is wrong.
    pub fn skew(&self) -> i64 {
        self.skew_ms.load(Ordering::Relaxed)
    }
}

impl Ambient for SimAmbient {
    fn now_ms(&self) -> u64 {
        let right = START_MS + self.started.elapsed().as_millis() as u64;
        right.saturating_add_signed(self.skew())
    }

    fn random(&self) -> u64 {
        lock(&self.random).draw()
    }
}

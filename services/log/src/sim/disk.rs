//! The state under all handles of a simulated log: what is durable, what is in flight, what goes wrong next.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::SimFaults;
use crate::{AppendError, Bounds, LogRecord, Pinned, Position, ReadError, ShardId, Stamp};

/// Most records a tail yields at once.
const BATCH_RECORDS_MAX: u64 = 64;
/// Answers kept for append futures that have not fetched theirs; older ones were dropped futures'.
const ANSWERS_MAX: usize = 1 << 16;

/// What will become of an append.
pub struct Fate {
    /// Its number.
    pub id: u64,
    /// When it becomes durable, if it does.
    pub durable_at: Instant,
    /// When the caller hears of it.
    pub answer_at: Instant,
    /// What the caller hears.
    pub verdict: Verdict,
}

/// What the caller of an append hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// That it is durable.
    Acknowledge,
    /// Nothing certain.
    Doubt,
}

/// What became of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is durable.
    Durable(Stamp),
    /// Lost, or not known.
    Gone,
}

/// An append on its way.
struct InFlight {
    handle: u64,
    shard: ShardId,
    payload: Bytes,
    is_lost: bool,
}

/// A shard's durable records.
struct Shard {
    start: u64,
    end: u64,
    records: VecDeque<LogRecord>,
    /// Number of the oldest retained record in the order of the whole log.
    order: VecDeque<u64>,
    bytes: u64,
    /// When the last append in order becomes durable.
    last_due: Option<Instant>,
}

impl Shard {
    fn new() -> Shard {
        Shard {
            start: 1,
            end: 1,
            records: VecDeque::new(),
            order: VecDeque::new(),
            bytes: 0,
            last_due: None,
        }
    }
}

/// Everything but the lock and the wake.
pub struct State {
    /// How to misbehave.
    pub faults: SimFaults,
    /// How often each fault has fired.
    pub counts: BTreeMap<&'static str, u64>,
    /// Appends are unavailable until then.
    pub unavailable_until: Option<Instant>,
    /// Appends are refused as full until then.
    pub full_until: Option<Instant>,
    random: u64,
    incarnation: u64,
    handles: u64,
    alive: BTreeSet<u64>,
    shards: BTreeMap<ShardId, Shard>,
    /// By due time, then number.
    in_flight: BTreeMap<(Instant, u64), InFlight>,
    answers: BTreeMap<u64, Answer>,
    appends: u64,
    order: u64,
}

/// The state, its lock, and what wakes tails.
pub struct Core {
    state: Mutex<State>,
    /// Woken whenever something becomes durable, is put in flight, or a handle dies.
    pub wake: Notify,
}

impl Core {
    /// An empty log.
    pub fn new(seed: u64) -> Core {
        let mut state = State {
            faults: SimFaults::none(),
            counts: BTreeMap::new(),
            unavailable_until: None,
            full_until: None,
            random: seed,
            incarnation: 0,
            handles: 0,
            alive: BTreeSet::new(),
            shards: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            answers: BTreeMap::new(),
            appends: 0,
            order: 0,
        };
        state.incarnation = state.draw();
        Core {
            state: Mutex::new(state),
            wake: Notify::new(),
        }
    }

    /// The state, locked.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes durable what has come due.
    pub fn settle(&self) {
        let mut state = self.state();
        // Nothing in flight needs no clock: the log may then be looked at outside a runtime.
        if state.in_flight.is_empty() {
            return;
        }
        if state.settle(Instant::now()) {
            drop(state);
            self.wake.notify_waiters();
        }
    }

    /// Takes an append and decides its fate.
    pub fn submit(&self, handle: u64, shard: ShardId, payload: Bytes) -> Result<Fate, AppendError> {
        self.settle();
        let fate = self
            .state()
            .submit(handle, shard, payload, Instant::now())?;
        self.wake.notify_waiters();
        Ok(fate)
    }

    /// What became of an append, once.
    pub fn answer(&self, id: u64) -> Answer {
        self.settle();
        self.state().answers.remove(&id).unwrap_or(Answer::Gone)
    }

    /// Whether a handle has not crashed.
    pub fn is_alive(&self, handle: u64) -> bool {
        self.state().alive.contains(&handle)
    }

    /// Kills one handle or all.
    pub fn crash(&self, handle: Option<u64>, lose_all: bool) {
        self.settle();
        self.state().crash(handle, lose_all);
        self.wake.notify_waiters();
    }

    /// Until when a tail that could yield something is to wait.
    pub fn tail_delay(&self, handle: u64, shard: ShardId, next: Position) -> Option<Instant> {
        let mut state = self.state();
        let has_records = state
            .shards
            .get(&shard)
            .is_some_and(|shard| next.0 < shard.end);
        let chance = state.faults.tail_slow;
        if !has_records || !state.alive.contains(&handle) || !state.happens("tail_slow", chance) {
            return None;
        }
        let lateness = state.faults.lateness;
        Some(Instant::now() + state.between(lateness))
    }

    /// How many records the next batch of a tail may hold.
    pub fn batch_records(&self) -> usize {
        let drawn = self.state().draw();
        (1 + drawn % BATCH_RECORDS_MAX) as usize
    }

    /// When the next append becomes durable.
    pub fn next_due(&self) -> Option<Instant> {
        self.state().in_flight.keys().next().map(|(due, _)| *due)
    }

    /// Up to `records_max` durable records from `position` on.
    pub fn find(
        &self,
        handle: u64,
        shard: ShardId,
        position: Position,
        records_max: usize,
    ) -> Result<Vec<LogRecord>, ReadError> {
        let state = self.state();
        if !state.alive.contains(&handle) {
            return Err(ReadError::Unavailable(
                "the process of this handle is gone".to_owned(),
            ));
        }
        let Some(shard) = state.shards.get(&shard) else {
            return Ok(Vec::new());
        };
        let Some(skip) = position.0.checked_sub(shard.start) else {
            return Err(ReadError::Truncated {
                start: Position(shard.start),
            });
        };
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        Ok(shard
            .records
            .iter()
            .skip(skip)
            .take(records_max)
            .cloned()
            .collect())
    }

    /// Forgets a prefix.
    pub fn truncate(&self, handle: u64, shard: ShardId, start: Position) -> Result<(), ReadError> {
        let mut state = self.state();
        if !state.alive.contains(&handle) {
            return Err(ReadError::Unavailable(
                "the process of this handle is gone".to_owned(),
            ));
        }
        let Some(shard) = state.shards.get_mut(&shard) else {
            return Ok(());
        };
        while shard.start < start.0.min(shard.end) {
            let Some(record) = shard.records.pop_front() else {
                break;
            };
            shard.order.pop_front();
            shard.bytes -= record.payload.len() as u64;
            shard.start += 1;
        }
        Ok(())
    }
}

impl State {
    /// A new handle, and the incarnation.
    pub fn open(&mut self) -> (u64, u64) {
        self.handles += 1;
        self.alive.insert(self.handles);
        (self.handles, self.incarnation)
    }

    /// All durable records retained of `shard`.
    pub fn records(&self, shard: ShardId) -> Vec<LogRecord> {
        self.shards
            .get(&shard)
            .map(|shard| shard.records.iter().cloned().collect())
            .unwrap_or_default()
    }

    /// What is retained of `shard`.
    pub fn bounds(&self, shard: ShardId) -> Bounds {
        let (start, end) = self
            .shards
            .get(&shard)
            .map_or((1, 1), |shard| (shard.start, shard.end));
        Bounds {
            start: Position(start),
            end: Position(end),
        }
    }

    /// What `shard` holds, and whether it must let go.
    pub fn pinned(&self, shard: ShardId) -> Pinned {
        let Some(held) = self.shards.get(&shard) else {
            return Pinned::default();
        };
        let total = self.retained_bytes();
        let is_filling = total >= self.faults.bytes_max / 5 * 4;
        let oldest = self
            .shards
            .values()
            .filter_map(|shard| shard.order.front())
            .min();
        let is_oldest = held.order.front().is_some() && held.order.front() == oldest;
        Pinned {
            bytes: held.bytes,
            pressed: is_filling && (is_oldest || held.bytes >= total / 4),
            tight: false,
        }
    }

    fn retained_bytes(&self) -> u64 {
        self.shards.values().map(|shard| shard.bytes).sum()
    }

    /// SplitMix64.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn between(&mut self, (from, to): (Duration, Duration)) -> Duration {
        let span = u64::try_from(to.saturating_sub(from).as_micros()).unwrap_or(u64::MAX - 1);
        from + Duration::from_micros(self.draw() % (span + 1))
    }

    /// Draws whether a fault fires, and counts it.
    fn happens(&mut self, what: &'static str, per_mille: u32) -> bool {
        // Drawn even when the chance is nil, so that changing one chance leaves the rest of a run alone.
        let fires = self.draw() % 1000 < u64::from(per_mille);
        if fires {
            self.count(what);
        }
        fires
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Makes durable what has come due; true when anything did.
    fn settle(&mut self, now: Instant) -> bool {
        let mut settled = false;
        while let Some(entry) = self.in_flight.first_entry() {
            let (due, id) = *entry.key();
            if due > now {
                break;
            }
            let append = entry.remove();
            self.land(id, append);
            settled = true;
        }
        settled
    }

    /// Ends an append's flight.
    fn land(&mut self, id: u64, append: InFlight) {
        let answer = if append.is_lost {
            Answer::Gone
        } else {
            self.write(append.shard, append.payload)
        };
        self.answers.insert(id, answer);
        if self.answers.len() > ANSWERS_MAX {
            self.answers.pop_first();
        }
    }

    fn write(&mut self, shard: ShardId, payload: Bytes) -> Answer {
        self.order += 1;
        let shard = self.shards.entry(shard).or_insert_with(Shard::new);
        let stamp = Stamp {
            position: Position(shard.end),
            crc: crc32c::crc32c(&payload),
        };
        shard.end += 1;
        shard.bytes += payload.len() as u64;
        shard.order.push_back(self.order);
        shard.records.push_back(LogRecord { stamp, payload });
        Answer::Durable(stamp)
    }

    fn submit(
        &mut self,
        handle: u64,
        shard: ShardId,
        payload: Bytes,
        now: Instant,
    ) -> Result<Fate, AppendError> {
        if payload.len() > self.faults.record_bytes_max {
            return Err(AppendError::TooLarge);
        }
        if !self.alive.contains(&handle) {
            return Err(AppendError::Unavailable);
        }
        self.refuse(&payload, now)?;
        let faults = self.faults.clone();
        let append_late = self.happens("append_late", faults.append_late);
        let ack_late = self.happens("ack_late", faults.ack_late);
        let is_lost = self.happens("append_lost", faults.append_lost);
        let ack_lost = !is_lost && self.happens("ack_lost", faults.ack_lost);
        let own_pace = self.between(faults.latency);
        let mut durable_at = now + own_pace;
        if append_late {
            durable_at += self.between(faults.lateness);
        }
        // The chance is drawn only where there is something to overtake, so that what is counted has happened.
        let last_due = self
            .shards
            .get(&shard)
            .and_then(|shard| shard.last_due)
            .filter(|due| *due > durable_at);
        if let Some(due) = last_due
            && !self.happens("reordered", faults.reordered)
        {
            durable_at = due;
        }
        let held = self.shards.entry(shard).or_insert_with(Shard::new);
        held.last_due = held.last_due.max(Some(durable_at));
        let answer_at = if ack_late {
            durable_at + self.between(faults.lateness)
        } else {
            durable_at
        };
        self.appends += 1;
        let id = self.appends;
        self.in_flight.insert(
            (durable_at, id),
            InFlight {
                handle,
                shard,
                payload,
                is_lost,
            },
        );
        let verdict = if is_lost || ack_lost {
            Verdict::Doubt
        } else {
            Verdict::Acknowledge
        };
        Ok(Fate {
            id,
            durable_at,
            answer_at,
            verdict,
        })
    }

    /// Refuses an append during an outage, or begins one.
    fn refuse(&mut self, payload: &Bytes, now: Instant) -> Result<(), AppendError> {
        let (unavailable, full, outage) = (
            self.faults.unavailable,
            self.faults.full,
            self.faults.outage,
        );
        if self.happens("unavailable", unavailable) {
            self.unavailable_until = Some(now + self.between(outage));
        }
        if self.happens("full", full) {
            self.full_until = Some(now + self.between(outage));
        }
        if self.unavailable_until.is_some_and(|until| now < until) {
            self.count("refused_unavailable");
            return Err(AppendError::Unavailable);
        }
        let on_the_way: u64 = self
            .in_flight
            .values()
            .map(|append| append.payload.len() as u64)
            .sum();
        let wanted = self
            .retained_bytes()
            .saturating_add(on_the_way)
            .saturating_add(payload.len() as u64);
        if wanted > self.faults.bytes_max || self.full_until.is_some_and(|until| now < until) {
            self.count("refused_full");
            return Err(AppendError::Full);
        }
        Ok(())
    }

    /// Kills one handle or all, and decides what of their appends in flight survives.
    fn crash(&mut self, handle: Option<u64>, lose_all: bool) {
        match handle {
            Some(handle) => drop(self.alive.remove(&handle)),
            None => self.alive.clear(),
        }
        self.count(if lose_all { "power_loss" } else { "crash" });
        let dead: Vec<(Instant, u64)> = self
            .in_flight
            .iter()
            .filter(|(_, append)| handle.is_none_or(|handle| append.handle == handle))
            .map(|(key, _)| *key)
            .collect();
        let mut torn: BTreeSet<ShardId> = BTreeSet::new();
        for key in dead {
            let Some(append) = self.in_flight.remove(&key) else {
                continue;
            };
            if lose_all {
                self.count("torn");
                continue;
            }
            let (zombie, reordered) = (self.faults.zombie, self.faults.reordered);
            if self.happens("zombie", zombie) {
                self.in_flight.insert(key, append);
                continue;
            }
            // What follows a torn append in its shard is torn too, unless appends may overtake each other.
            let is_torn =
                self.draw().is_multiple_of(2) || (reordered == 0 && torn.contains(&append.shard));
            if is_torn {
                torn.insert(append.shard);
                self.count("torn");
            } else {
                self.count("survived");
                self.land(key.1, append);
            }
        }
    }
}

//! Who waits for what. A lane is one thing that recipients wait for: a mailbox shard, Home, the directory, a body. Each has
//! its own queue, concurrency limit and back-off timer, so a slow or dead one holds up nobody else.
//!
//! Inside a lane tenants take turns, and a tenant's recipients go first come, first served. A lane that failed is probed by
//! one recipient at a time, at growing intervals; its first success wakes everybody in it.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use hikyaku_queue::index::RecipientKey;
use tokio::time::Instant;

use crate::homes::Owner;

/// After the first failure of a lane; doubles with each further one.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(200);
/// Between probes of a failed lane at most.
pub const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Between two alarms about the same lane.
const ALARM_INTERVAL: Duration = Duration::from_secs(60);

/// What recipients wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LaneKey {
    /// The content, to be read back.
    Body,
    /// The directory's answer.
    Directory,
    /// Home's answer.
    Home,
    /// A mailbox shard.
    Mbox(u32),
}

impl fmt::Display for LaneKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LaneKey::Body => f.write_str("content"),
            LaneKey::Directory => f.write_str("directory"),
            LaneKey::Home => f.write_str("home"),
            LaneKey::Mbox(shard) => write!(f, "mbox-{shard}"),
        }
    }
}

/// One recipient in a leader's hands, with what must not be forgotten between its steps.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Which.
    pub key: RecipientKey,
    /// Whose turn it takes.
    pub tenant: Arc<str>,
    /// Who owns the account, once known.
    pub owner: Option<Owner>,
    /// The command id of a `Deliver` that was not answered: its repeat carries the same.
    pub unanswered: Option<[u8; 16]>,
    /// Its delivery id is, or is to be, voided: it goes somewhere else.
    pub reroute: bool,
    /// Owners followed in a row.
    pub hops: u8,
    /// A step of it panicked too often.
    pub poison: bool,
}

impl Entry {
    /// A recipient just taken.
    pub fn new(key: RecipientKey, tenant: &str) -> Entry {
        Entry {
            key,
            tenant: tenant.into(),
            owner: None,
            unanswered: None,
            reroute: false,
            hops: 0,
            poison: false,
        }
    }
}

#[derive(Clone, Debug)]
struct Backoff {
    until: Instant,
    delay: Duration,
    failing_since: Instant,
    reason: String,
    alarmed_at: Instant,
}

#[derive(Debug, Default)]
struct Lane {
    tenants: BTreeMap<Arc<str>, VecDeque<Entry>>,
    /// Whose turn was last.
    last: Option<Arc<str>>,
    running: usize,
    backoff: Option<Backoff>,
}

impl Lane {
    /// The next recipient, if the lane takes one more now.
    fn pop(&mut self, now: Instant, window: usize) -> Option<Entry> {
        let window = match &self.backoff {
            Some(backoff) if backoff.until > now => return None,
            Some(_) => 1,
            None => window,
        };
        if self.running >= window {
            return None;
        }
        let after = match &self.last {
            Some(last) => Bound::Excluded(last.clone()),
            None => Bound::Unbounded,
        };
        let next = self.tenants.range((after, Bound::Unbounded)).next();
        let tenant = next.or_else(|| self.tenants.iter().next())?.0.clone();
        let queue = self.tenants.get_mut(&tenant)?;
        let entry = queue.pop_front();
        if queue.is_empty() {
            self.tenants.remove(&tenant);
        }
        self.last = Some(tenant);
        if entry.is_some() {
            self.running += 1;
        }
        entry
    }

    fn waiting(&self) -> usize {
        self.tenants.values().map(VecDeque::len).sum()
    }
}

/// All lanes of one leader.
#[derive(Debug, Default)]
pub struct Lanes {
    lanes: BTreeMap<LaneKey, Lane>,
    last: Option<LaneKey>,
    running: BTreeMap<RecipientKey, Running>,
    /// Octets of content of all that run.
    bytes: u64,
}

/// A recipient under way.
#[derive(Clone, Copy, Debug)]
struct Running {
    /// The lane it is counted in, until it leaves that.
    lane: Option<LaneKey>,
    /// Octets of content that it holds.
    bytes: u64,
}

/// A recipient that may start, in its lane.
#[derive(Clone, Debug)]
pub struct Started {
    /// The recipient.
    pub entry: Entry,
    /// The lane it came from and is counted in.
    pub lane: LaneKey,
    /// When it started.
    pub at: Instant,
}

impl Lanes {
    /// Queues a recipient.
    pub fn push(&mut self, lane: LaneKey, entry: Entry) {
        let lane = self.lanes.entry(lane).or_default();
        let queue = lane.tenants.entry(entry.tenant.clone()).or_default();
        queue.push_back(entry);
    }

    /// The next recipient that may start; lanes take turns. `window` limits how many of a lane run at once.
    pub fn pop(&mut self, now: Instant, window: impl Fn(LaneKey) -> usize) -> Option<Started> {
        let after = match self.last {
            Some(last) => Bound::Excluded(last),
            None => Bound::Unbounded,
        };
        let keys: Vec<LaneKey> = self
            .lanes
            .range((after, Bound::Unbounded))
            .chain(self.lanes.iter())
            .filter(|(_, lane)| !lane.tenants.is_empty())
            .map(|(key, _)| *key)
            .take(self.lanes.len())
            .collect();
        for key in keys {
            let lane = self.lanes.get_mut(&key)?;
            if let Some(entry) = lane.pop(now, window(key)) {
                self.last = Some(key);
                let running = Running {
                    lane: Some(key),
                    bytes: 0,
                };
                self.running.insert(entry.key, running);
                return Some(Started {
                    entry,
                    lane: key,
                    at: now,
                });
            }
        }
        None
    }

    /// What [`Lanes::pop`] started holds so many octets of content.
    pub fn holds(&mut self, key: RecipientKey, bytes: u64) {
        if let Some(running) = self.running.get_mut(&key) {
            self.bytes = self.bytes - running.bytes + bytes;
            running.bytes = bytes;
        }
    }

    /// What [`Lanes::pop`] started needs its lane no longer, nor the content: its place is another one's. It is still under way.
    pub fn left(&mut self, key: RecipientKey) {
        self.holds(key, 0);
        let lane = self.running.get_mut(&key);
        if let Some(lane) = lane.and_then(|running| running.lane.take()) {
            self.leave(lane);
        }
    }

    /// Ends what [`Lanes::pop`] started.
    pub fn ended(&mut self, started: &Started) {
        self.left(started.entry.key);
        self.running.remove(&started.entry.key);
    }

    fn leave(&mut self, key: LaneKey) {
        if let Some(lane) = self.lanes.get_mut(&key) {
            lane.running = lane.running.saturating_sub(1);
            self.drop_if_idle(key);
        }
    }

    fn drop_if_idle(&mut self, key: LaneKey) {
        let idle = self.lanes.get(&key).is_some_and(|lane| {
            lane.running == 0 && lane.tenants.is_empty() && lane.backoff.is_none()
        });
        if idle {
            self.lanes.remove(&key);
        }
    }

    /// What the lane is for has answered: whoever waits in it may go.
    pub fn succeeded(&mut self, key: LaneKey, now: Instant) {
        let backoff = self
            .lanes
            .get_mut(&key)
            .and_then(|lane| lane.backoff.take());
        if let Some(backoff) = backoff {
            let seconds = now.duration_since(backoff.failing_since).as_secs();
            tracing::info!(lane = %key, seconds, "answers again");
        }
        self.drop_if_idle(key);
    }

    /// What the lane is for did not answer something that started at `started_at`. Of those that failed together, one counts.
    pub fn failed(&mut self, key: LaneKey, started_at: Instant, now: Instant, reason: &str) {
        let lane = self.lanes.entry(key).or_default();
        let (delay, failing_since, alarmed_at) = match &lane.backoff {
            Some(backoff) if started_at < backoff.until => return,
            Some(backoff) => (
                (backoff.delay * 2).min(BACKOFF_MAX),
                backoff.failing_since,
                Some(backoff.alarmed_at),
            ),
            None => (BACKOFF_FIRST, now, None),
        };
        let alarm = alarmed_at.is_none_or(|at| now.duration_since(at) >= ALARM_INTERVAL);
        if alarm {
            let waiting = lane.waiting();
            tracing::error!(lane = %key, waiting, reason, "does not answer; mail waits for it");
        }
        lane.backoff = Some(Backoff {
            until: now + delay,
            delay,
            failing_since,
            reason: reason.to_owned(),
            alarmed_at: if alarm {
                now
            } else {
                alarmed_at.unwrap_or(now)
            },
        });
    }

    /// Lets every failed lane be probed at once.
    pub fn nudge(&mut self, now: Instant) {
        for lane in self.lanes.values_mut() {
            if let Some(backoff) = &mut lane.backoff {
                backoff.until = now;
            }
        }
    }

    /// When the next failed lane with somebody waiting may be probed.
    pub fn next_probe(&self) -> Option<Instant> {
        let waiting = self
            .lanes
            .values()
            .filter(|lane| !lane.tenants.is_empty() && lane.running == 0);
        waiting
            .filter_map(|lane| Some(lane.backoff.as_ref()?.until))
            .min()
    }

    /// Recipients under way.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Octets of content that those under way hold.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Recipients queued.
    pub fn waiting(&self) -> usize {
        self.lanes.values().map(Lane::waiting).sum()
    }

    /// One line about each recipient of a message that is here.
    pub fn activity(&self, message: hikyaku_mail::id::MessageId, now: Instant) -> Vec<String> {
        let mut lines: BTreeMap<u32, String> = BTreeMap::new();
        for (key, running) in self.running.range((message, 0)..=(message, u32::MAX)) {
            let line = match running.lane {
                Some(lane) => format!("recipient {}: under way, {lane}", key.1),
                None => format!("recipient {}: has failed, is being reported", key.1),
            };
            lines.insert(key.1, line);
        }
        for (key, lane) in &self.lanes {
            let entries = lane.tenants.values().flatten();
            for entry in entries.filter(|entry| entry.key.0 == message) {
                let number = entry.key.1;
                let line = match &lane.backoff {
                    Some(backoff) => format!(
                        "recipient {number}: waits for {key}, which does not answer ({}); next try in {} s",
                        backoff.reason,
                        backoff.until.saturating_duration_since(now).as_secs()
                    ),
                    None => format!("recipient {number}: waits for its turn, {key}"),
                };
                lines.insert(number, line);
            }
        }
        lines.into_values().collect()
    }

    /// One line about each lane that has not answered for `patience`.
    pub fn alarms(&self, now: Instant, patience: Duration) -> Vec<String> {
        let mut lines = Vec::new();
        for (key, lane) in &self.lanes {
            let Some(backoff) = &lane.backoff else {
                continue;
            };
            let failing = now.duration_since(backoff.failing_since);
            if failing >= patience {
                lines.push(format!(
                    "{key} has not answered for {} s ({}); {} recipients wait",
                    failing.as_secs(),
                    backoff.reason,
                    lane.waiting()
                ));
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::{BACKOFF_FIRST, BACKOFF_MAX, Entry, LaneKey, Lanes, Started};
    use hikyaku_mail::id::{Class, MessageId, ShardId};
    use std::time::Duration;
    use tokio::time::Instant;

    fn entry(tenant: &str, n: u64) -> Entry {
        let id = MessageId::new(ShardId::new(Class::Incoming, 0), 0, n);
        Entry::new((id, 0), tenant)
    }

    fn pop(lanes: &mut Lanes, now: Instant) -> Option<Started> {
        lanes.pop(now, |_| 2)
    }

    #[test]
    fn tenants_and_lanes_take_turns_within_their_windows() {
        let now = Instant::now();
        let mut lanes = Lanes::default();
        for n in 0..10 {
            lanes.push(LaneKey::Mbox(0), entry("big", n));
        }
        lanes.push(LaneKey::Mbox(0), entry("small", 100));
        lanes.push(LaneKey::Mbox(1), entry("big", 200));
        let started: Vec<_> = std::iter::from_fn(|| pop(&mut lanes, now)).collect();
        let order: Vec<_> = started
            .iter()
            .map(|started| (started.lane, &*started.entry.tenant))
            .collect();
        assert_eq!(
            order,
            [
                (LaneKey::Mbox(0), "big"),
                (LaneKey::Mbox(1), "big"),
                (LaneKey::Mbox(0), "small"),
            ]
        );
        lanes.ended(&started[0]);
        assert_eq!(pop(&mut lanes, now).unwrap().lane, LaneKey::Mbox(0));
        assert_eq!((lanes.running(), lanes.waiting()), (3, 8));
    }

    #[test]
    fn who_leaves_a_lane_makes_room_in_it_and_is_still_under_way() {
        let now = Instant::now();
        let mut lanes = Lanes::default();
        let lane = LaneKey::Directory;
        for n in 0..3 {
            lanes.push(lane, entry("t", n));
        }
        let first = pop(&mut lanes, now).unwrap();
        let second = pop(&mut lanes, now).unwrap();
        assert!(pop(&mut lanes, now).is_none());
        lanes.holds(first.entry.key, 700);
        lanes.holds(second.entry.key, 20);
        assert_eq!((lanes.running(), lanes.bytes()), (2, 720));
        lanes.left(first.entry.key);
        lanes.left(first.entry.key);
        assert_eq!((lanes.running(), lanes.bytes()), (2, 20));
        assert!(pop(&mut lanes, now).is_some() && pop(&mut lanes, now).is_none());
        let message = first.entry.key.0;
        assert!(lanes.activity(message, now)[0].contains("reported"));
        // it was counted in its lane once
        lanes.push(lane, entry("t", 9));
        lanes.ended(&first);
        assert!(pop(&mut lanes, now).is_none());
        lanes.ended(&second);
        assert_eq!((lanes.running(), lanes.bytes()), (1, 0));
        assert!(pop(&mut lanes, now).is_some());
    }

    #[test]
    fn a_failed_lane_is_probed_by_one_and_woken_by_a_success() {
        let mut now = Instant::now();
        let mut lanes = Lanes::default();
        let dead = LaneKey::Mbox(7);
        for n in 0..10 {
            lanes.push(dead, entry("t", n));
        }
        let both = [pop(&mut lanes, now).unwrap(), pop(&mut lanes, now).unwrap()];
        // both were under way together: one failure
        for started in &both {
            lanes.ended(started);
            lanes.push(dead, started.entry.clone());
            lanes.failed(dead, started.at, now, "timeout");
        }
        assert_eq!(lanes.next_probe(), Some(now + BACKOFF_FIRST));
        let mut delays = Vec::new();
        for _ in 0..12 {
            assert!(pop(&mut lanes, now).is_none());
            let probe_at = lanes.next_probe().unwrap();
            delays.push(probe_at - now);
            now = probe_at;
            let probe = pop(&mut lanes, now).unwrap();
            assert!(pop(&mut lanes, now).is_none(), "one probe at a time");
            lanes.ended(&probe);
            lanes.failed(dead, probe.at, now, "timeout");
            lanes.push(dead, probe.entry);
        }
        assert_eq!(delays[1], BACKOFF_FIRST * 2);
        assert_eq!(delays[11], BACKOFF_MAX);
        assert_eq!(lanes.alarms(now, Duration::from_secs(30)).len(), 1);
        // another lane goes on meanwhile
        lanes.push(LaneKey::Mbox(8), entry("t", 99));
        assert_eq!(pop(&mut lanes, now).unwrap().lane, LaneKey::Mbox(8));
        lanes.succeeded(dead, now);
        assert!(pop(&mut lanes, now).is_some() && pop(&mut lanes, now).is_some());
        assert!(lanes.alarms(now, Duration::ZERO).is_empty());
    }
}

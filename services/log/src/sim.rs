//! The simulated log: what Kafka and a disk may do to an append, drawn from a seed, at once and repeatably.
//!
//! A [`SimDisk`] is what survives; a [`SimLog`] is one process's handle on it. Several handles may be open at once (two
//! nodes that both believe they lead a shard): their appends interleave and every tail sees them all. [`SimLog::crash`]
//! kills one handle, [`SimDisk::crash`] all of them, [`SimDisk::power_loss`] all of them and everything not yet durable.
//! A dead handle's appends end as [`AppendError::Unknown`], its reads as [`ReadError::Unavailable`].
//!
//! What never happens, as in every log: a tail or read yields only durable records, positions are dense, an append
//! becomes durable at most once.
//!
//! Time is tokio's (pause it). No task is spawned: an append carries the moment it becomes durable, and whoever looks
//! next (a future, a tail, a call) first settles what has come due, in order.

mod disk;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use crate::{
    AppendError, Bounds, Log, LogRecord, Pinned, Position, ReadError, ShardId, Stamp, Tail,
};
use disk::{Answer, Core, Fate, Verdict};

/// How often and how badly the simulated log misbehaves. Chances are per mille of the appends (or reads) made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimFaults {
    /// An append's ordinary latency: from, to.
    pub latency: (Duration, Duration),
    /// What a late append or acknowledgement, or a slow tail, takes: from, to.
    pub lateness: (Duration, Duration),
    /// How long the log stays unavailable or full: from, to.
    pub outage: (Duration, Duration),
    /// The append becomes durable late.
    pub append_late: u32,
    /// It becomes durable in time, the acknowledgement comes late.
    pub ack_late: u32,
    /// It becomes durable, and the caller is told [`AppendError::Unknown`].
    pub ack_lost: u32,
    /// It never becomes durable, and the caller is told [`AppendError::Unknown`].
    pub append_lost: u32,
    /// It does not wait for the shard's earlier appends.
    pub reordered: u32,
    /// An outage begins: appends end in [`AppendError::Unavailable`].
    pub unavailable: u32,
    /// An outage begins: appends end in [`AppendError::Full`].
    pub full: u32,
    /// A tail waits before it yields.
    pub tail_slow: u32,
    /// At a crash, an append in flight is neither lost nor durable but becomes durable later, after its process is gone.
    pub zombie: u32,
    /// Payload bytes retained at which the log is full; shards are pressed from 80 % on.
    pub bytes_max: u64,
    /// Largest payload.
    pub record_bytes_max: usize,
}

impl SimFaults {
    /// A log that does nothing wrong.
    pub fn none() -> SimFaults {
        SimFaults {
            latency: (Duration::from_millis(1), Duration::from_millis(4)),
            lateness: (Duration::from_millis(50), Duration::from_secs(5)),
            outage: (Duration::from_millis(100), Duration::from_secs(3)),
            append_late: 0,
            ack_late: 0,
            ack_lost: 0,
            append_lost: 0,
            reordered: 0,
            unavailable: 0,
            full: 0,
            tail_slow: 0,
            zombie: 0,
            bytes_max: u64::MAX,
            record_bytes_max: 1 << 20,
        }
    }

    /// A log that does everything wrong, often.
    pub fn rough() -> SimFaults {
        SimFaults {
            append_late: 20,
            ack_late: 20,
            ack_lost: 20,
            append_lost: 20,
            reordered: 50,
            unavailable: 3,
            full: 3,
            tail_slow: 20,
            zombie: 200,
            ..SimFaults::none()
        }
    }
}

impl Default for SimFaults {
    fn default() -> SimFaults {
        SimFaults::none()
    }
}

/// What all handles share and what survives them.
#[derive(Clone)]
pub struct SimDisk {
    core: Arc<Core>,
}

impl SimDisk {
    /// An empty log; the incarnation and all misfortune follow from `seed`.
    pub fn new(seed: u64) -> SimDisk {
        SimDisk {
            core: Arc::new(Core::new(seed)),
        }
    }

    /// Changes how the log behaves from now on.
    pub fn set_faults(&self, faults: SimFaults) {
        self.core.state().faults = faults;
    }

    /// How the log behaves.
    pub fn faults(&self) -> SimFaults {
        self.core.state().faults.clone()
    }

    /// Kills every handle. Of the appends in flight some survive: of each shard a prefix, or with `reordered` any.
    pub fn crash(&self) {
        self.core.crash(None, false);
    }

    /// Kills every handle; nothing in flight survives.
    pub fn power_loss(&self) {
        self.core.crash(None, true);
    }

    /// Appends are refused as unavailable for `duration`.
    pub fn unavailable_for(&self, duration: Duration) {
        self.core.state().unavailable_until = Some(Instant::now() + duration);
    }

    /// Appends are refused as full for `duration`.
    pub fn full_for(&self, duration: Duration) {
        self.core.state().full_until = Some(Instant::now() + duration);
    }

    /// How often each fault has fired.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.core.state().counts.clone()
    }

    /// All durable records retained of `shard`, for a checker.
    pub fn records(&self, shard: ShardId) -> Vec<LogRecord> {
        self.core.settle();
        self.core.state().records(shard)
    }
}

/// One process's handle on a [`SimDisk`].
pub struct SimLog {
    core: Arc<Core>,
    handle: u64,
    incarnation: u64,
}

impl SimLog {
    /// Opens a handle; `faults` hold from now on, for all handles.
    pub fn open(disk: &SimDisk, faults: SimFaults) -> SimLog {
        disk.set_faults(faults);
        let (handle, incarnation) = disk.core.state().open();
        SimLog {
            core: disk.core.clone(),
            handle,
            incarnation,
        }
    }

    /// Kills this handle only, like [`SimDisk::crash`].
    pub fn crash(&self) {
        self.core.crash(Some(self.handle), false);
    }
}

impl Log for SimLog {
    fn incarnation(&self) -> u64 {
        self.incarnation
    }

    fn append(
        &self,
        shard: ShardId,
        payload: Bytes,
    ) -> BoxFuture<'static, Result<Stamp, AppendError>> {
        let submitted = self.core.submit(self.handle, shard, payload);
        let (core, handle) = (self.core.clone(), self.handle);
        async move {
            let Fate {
                id,
                durable_at,
                answer_at,
                verdict,
            } = submitted?;
            tokio::time::sleep_until(durable_at).await;
            // The answer is fetched when the record is durable: a crash after that must not lose what came before it.
            let answer = core.answer(id);
            tokio::time::sleep_until(answer_at).await;
            match (answer, verdict) {
                (Answer::Durable(stamp), Verdict::Acknowledge) if core.is_alive(handle) => {
                    Ok(stamp)
                }
                _ => Err(AppendError::Unknown),
            }
        }
        .boxed()
    }

    fn tail(&self, shard: ShardId, from: Position) -> Result<Box<dyn Tail>, ReadError> {
        let start = self.bounds(shard).start;
        if from < start {
            return Err(ReadError::Truncated { start });
        }
        Ok(Box::new(SimTail {
            core: self.core.clone(),
            handle: self.handle,
            shard,
            next: from,
            waits_until: None,
        }))
    }

    fn read_at(
        &self,
        shard: ShardId,
        position: Position,
    ) -> BoxFuture<'static, Result<LogRecord, ReadError>> {
        self.core.settle();
        let found = self.core.find(self.handle, shard, position, 1);
        async move {
            let none =
                || ReadError::Unavailable(format!("nothing is durable at position {position} yet"));
            found?.into_iter().next().ok_or_else(none)
        }
        .boxed()
    }

    fn bounds(&self, shard: ShardId) -> Bounds {
        self.core.settle();
        self.core.state().bounds(shard)
    }

    fn truncate(
        &self,
        shard: ShardId,
        start: Position,
    ) -> BoxFuture<'static, Result<(), ReadError>> {
        self.core.settle();
        let done = self.core.truncate(self.handle, shard, start);
        std::future::ready(done).boxed()
    }

    fn pinned(&self, shard: ShardId) -> Pinned {
        self.core.settle();
        self.core.state().pinned(shard)
    }
}

/// A tail of the simulated log.
struct SimTail {
    core: Arc<Core>,
    handle: u64,
    shard: ShardId,
    next: Position,
    /// Set while a slow tail waits, so that a dropped future does not draw again.
    waits_until: Option<Instant>,
}

impl Tail for SimTail {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<LogRecord>, ReadError>> {
        async move {
            loop {
                let mut woken = std::pin::pin!(self.core.wake.notified());
                woken.as_mut().enable();
                self.core.settle();
                if self.waits_until.is_none() {
                    self.waits_until = self.core.tail_delay(self.handle, self.shard, self.next);
                }
                if let Some(until) = self.waits_until {
                    tokio::time::sleep_until(until).await;
                    self.core.settle();
                }
                let batch = self.core.batch_records();
                let records = self.core.find(self.handle, self.shard, self.next, batch)?;
                if let Some(last) = records.last() {
                    self.waits_until = None;
                    self.next = last.stamp.position.next();
                    return Ok(records);
                }
                match self.core.next_due() {
                    Some(due) => {
                        tokio::select! {
                            biased;
                            () = woken => {}
                            () = tokio::time::sleep_until(due) => {}
                        }
                    }
                    None => woken.await,
                }
            }
        }
        .boxed()
    }
}

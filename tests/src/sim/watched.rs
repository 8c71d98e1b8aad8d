//! A machine's handle on the simulated log: it lets the history see what is about to be forgotten, and does what a log may do
//! and [`SimLog`] does too seldom, where it hurts most: a `Carry` that takes its time, and a recovery that does.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use hikyaku_log::sim::{SimDisk, SimLog};
use hikyaku_log::{
    AppendError, Bounds, Log, LogRecord, Pinned, Position, ReadError, ShardId, Share, Stamp, Tail,
};
use hikyaku_serve::tasks::Tasks;
use tokio::time::sleep;

use super::history::History;
use super::random::Random;
use super::world::lock;

/// A handle on the log.
pub struct WatchedLog {
    /// The simulated one.
    pub inner: Arc<SimLog>,
    /// Who watches.
    pub history: History,
    /// What survives: says whether the log behaves at the moment.
    pub disk: SimDisk,
    /// Where late appends live.
    pub tasks: Tasks,
    /// Decides what is late.
    pub random: Mutex<Random>,
}

impl WatchedLog {
    fn happens(&self, what: &str, per_mille: u32) -> bool {
        let happens = lock(&self.random).chance(per_mille) && self.disk.faults().append_late > 0;
        if happens {
            self.history.world.count(what);
        }
        happens
    }

    /// A `Carry` reaches the log after what it says is no longer so; its leader may think that it never will.
    fn append_late(
        &self,
        shard: ShardId,
        payload: Bytes,
    ) -> BoxFuture<'static, Result<Stamp, AppendError>> {
        let (gives_up, pause) = {
            let mut random = lock(&self.random);
            (random.chance(300), random.millis(0, 6_000))
        };
        let inner = self.inner.clone();
        let append = async move {
            sleep(pause).await;
            inner.append_within(shard, payload, Share::Carry).await
        };
        if !gives_up {
            return append.boxed();
        }
        self.tasks.spawn("late carry", append.map(|_| ()));
        std::future::ready(Err(AppendError::Unknown)).boxed()
    }
}

impl Log for WatchedLog {
    fn incarnation(&self) -> u64 {
        self.inner.incarnation()
    }

    fn append(
        &self,
        shard: ShardId,
        payload: Bytes,
    ) -> BoxFuture<'static, Result<Stamp, AppendError>> {
        self.inner.append(shard, payload)
    }

    fn append_within(
        &self,
        shard: ShardId,
        payload: Bytes,
        share: Share,
    ) -> BoxFuture<'static, Result<Stamp, AppendError>> {
        if share == Share::Carry && self.happens("fault/late carry", 250) {
            return self.append_late(shard, payload);
        }
        self.inner.append_within(shard, payload, share)
    }

    fn tail(&self, shard: ShardId, from: Position) -> Result<Box<dyn Tail>, ReadError> {
        let inner = self.inner.tail(shard, from)?;
        let replays = self.inner.bounds(shard).end > from;
        if !replays || !self.happens("fault/slow recovery", 100) {
            return Ok(inner);
        }
        let mut random = lock(&self.random);
        Ok(Box::new(SlowTail {
            inner,
            ready: VecDeque::new(),
            slow: 5 + random.below(30),
            random: random.fork(),
        }))
    }

    fn read_at(
        &self,
        shard: ShardId,
        position: Position,
    ) -> BoxFuture<'static, Result<LogRecord, ReadError>> {
        self.inner.read_at(shard, position)
    }

    fn bounds(&self, shard: ShardId) -> Bounds {
        self.inner.bounds(shard)
    }

    fn truncate(
        &self,
        shard: ShardId,
        start: Position,
    ) -> BoxFuture<'static, Result<(), ReadError>> {
        self.history.collect_before_truncation(shard);
        self.history.world.count("event/truncated");
        self.inner.truncate(shard, start)
    }

    fn pinned(&self, shard: ShardId) -> Pinned {
        self.inner.pinned(shard)
    }
}

/// A tail that yields its first records one by one, with pauses: whoever recovers is seen halfway.
struct SlowTail {
    inner: Box<dyn Tail>,
    ready: VecDeque<LogRecord>,
    /// Records to come one by one.
    slow: usize,
    random: Random,
}

impl Tail for SlowTail {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<LogRecord>, ReadError>> {
        async move {
            if self.ready.is_empty() {
                self.ready.extend(self.inner.next().await?);
            }
            if self.slow == 0 {
                return Ok(self.ready.drain(..).collect());
            }
            let pause = self.random.millis(0, 400);
            sleep(pause).await;
            self.slow -= 1;
            Ok(self.ready.pop_front().into_iter().collect())
        }
        .boxed()
    }
}

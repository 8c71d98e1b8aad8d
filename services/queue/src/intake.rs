//! Whether an edge may choose this shard for a message now.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hikyaku_log::Position;
use hikyaku_shard::runtime::Shard;
use tokio::time::Instant;

use crate::machine::{MESSAGE_MEMORY_BYTES, QueueMachine, QueueOptions};

/// Records a shard may lag behind its log and still be chosen.
const LAG_MAX: u64 = 20_000;
/// Octets of memory that any queue may take: a chunk of facts, its first blocks.
const MEMORY_BYTES_MIN: u64 = 256 << 10;
/// Time without progress, while there is something to apply, after which a shard is not chosen.
const STALL_MAX: Duration = Duration::from_secs(5);

/// Counts published at the end of every batch.
#[derive(Debug, Default)]
pub struct Gauges {
    messages: AtomicU64,
    bytes: AtomicU64,
    memory: AtomicU64,
    applied: AtomicU64,
}

impl Gauges {
    /// Publishes.
    pub(crate) fn store(&self, messages: u64, bytes: u64, memory: u64, applied: Position) {
        self.messages.store(messages, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
        self.memory.store(memory, Ordering::Relaxed);
        self.applied.store(applied.0, Ordering::Relaxed);
    }
}

/// A handle on one incoming shard that answers without touching its state. Clones share it.
#[derive(Clone)]
pub struct Intake {
    shard: Shard<QueueMachine>,
    gauges: Arc<Gauges>,
    options: QueueOptions,
    /// Since when the shard has stood at this position with something to apply.
    stalled: Arc<Mutex<Option<(u64, Instant)>>>,
}

/// Why a shard is not chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// It does not apply its log: parked, replaying, or stalled.
    NotApplying,
    /// It has as many messages, octets or memory as it may, or holds old records of a log that is filling up: which, for the
    /// operator.
    Full(&'static str),
}

impl Intake {
    /// The intake of `shard`.
    pub fn new(shard: &Shard<QueueMachine>) -> Intake {
        let (gauges, options) = shard.read(|machine| (machine.gauges(), machine.options()));
        Intake {
            shard: shard.clone(),
            gauges,
            options,
            stalled: Arc::default(),
        }
    }

    /// The shard behind it.
    pub fn shard(&self) -> &Shard<QueueMachine> {
        &self.shard
    }

    /// Whether the shard takes mail now.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<(), Closed> {
        if self.shard.trouble().is_some() || self.is_behind() {
            return Err(Closed::NotApplying);
        }
        match self.fullness() {
            Some(what) => Err(Closed::Full(what)),
            None => Ok(()),
        }
    }

    /// What it is that is full, for the operator; `None` while there is room.
    pub fn fullness(&self) -> Option<&'static str> {
        if self.messages() >= self.options.queue_messages_max {
            return Some("the queue has queue.messages_max mails");
        }
        if self.bytes() >= self.options.queue_bytes_max {
            return Some("the queue has queue.bytes_max octets");
        }
        if self.memory_bytes() >= self.memory_bytes_max() {
            return Some("the mails in the queue take the memory of queue.messages_max");
        }
        // what room the log has left is for the records that empty it: outcomes, deliveries, messages carried forward
        let pressed = self.shard.log().pinned(self.shard.id()).pressed;
        pressed
            .then_some("the log is filling up (log.bytes_max), and the queue holds old parts of it")
    }

    /// Live messages.
    pub fn messages(&self) -> u64 {
        self.gauges.messages.load(Ordering::Relaxed)
    }

    /// Octets of memory of what the queue knows about messages, without bodies.
    pub fn memory_bytes(&self) -> u64 {
        self.gauges.memory.load(Ordering::Relaxed)
    }

    fn memory_bytes_max(&self) -> u64 {
        let messages = self.options.queue_messages_max;
        // what a queue of few messages begins with does not count
        MEMORY_BYTES_MIN + messages.saturating_mul(MESSAGE_MEMORY_BYTES)
    }

    /// Octets of live messages' records.
    pub fn bytes(&self) -> u64 {
        self.gauges.bytes.load(Ordering::Relaxed)
    }

    fn is_behind(&self) -> bool {
        let bounds = self.shard.log().bounds(self.shard.id());
        let applied = self.shard.applied().borrow().0;
        let lag = bounds.end.0.saturating_sub(applied + 1);
        if lag == 0 {
            *self.stalled.lock().unwrap_or_else(PoisonError::into_inner) = None;
            return false;
        }
        let mut stalled = self.stalled.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let since = match *stalled {
            Some((position, since)) if position == applied => since,
            _ => now,
        };
        *stalled = Some((applied, since));
        lag > LAG_MAX || now.duration_since(since) > STALL_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::{Closed, Intake};
    use crate::machine::{QueueMachine, QueueOptions};
    use crate::testing::{accept, id, local};
    use hikyaku_log::sim::{SimDisk, SimFaults, SimLog};
    use hikyaku_log::{Class, ShardId};
    use hikyaku_proto::v1::record::Command;
    use hikyaku_serve::tasks::Tasks;
    use hikyaku_shard::ambient::Ambient;
    use hikyaku_shard::runtime::{Shard, ShardOptions};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    struct Counting(AtomicU64);

    impl Ambient for Counting {
        fn now_ms(&self) -> u64 {
            0
        }

        fn random(&self) -> u64 {
            self.0.fetch_add(1, Ordering::Relaxed)
        }
    }

    fn shard(tasks: &Tasks, queue_messages_max: u64) -> Shard<QueueMachine> {
        Shard::start(
            tasks,
            ShardId::new(Class::Incoming, 0),
            "test",
            Arc::new(SimLog::open(&SimDisk::new(1), SimFaults::none())),
            Arc::new(Counting(AtomicU64::new(1))),
            QueueMachine::new(QueueOptions {
                queue_messages_max,
                ..QueueOptions::default()
            }),
            ShardOptions::default(),
        )
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_or_standing_shard_is_not_chosen() {
        let tasks = Tasks::new();
        let shard = shard(&tasks, 3);
        let intake = Intake::new(&shard);
        for n in 1..=3 {
            assert_eq!(intake.check(), Ok(()));
            let command = Command::Accept(accept(id(n), vec![local("a")]));
            shard.propose(command).await.unwrap();
        }
        assert!(matches!(intake.check(), Err(Closed::Full(_))));
        assert_eq!(intake.messages(), 3);
        assert!(intake.bytes() > 1000);
        assert!(intake.memory_bytes() > 1000);
        assert!(
            intake
                .fullness()
                .is_some_and(|why| why.contains("messages_max mails"))
        );
        // nobody applies any more, and something is to be applied
        let log = shard.log().clone();
        tasks.kill().await;
        log.append(shard.id(), bytes::Bytes::new()).await.unwrap();
        assert!(matches!(intake.check(), Err(Closed::Full(_))));
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert_eq!(intake.check(), Err(Closed::NotApplying));
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_messages_to_very_many_fill_a_queue_too() {
        let tasks = Tasks::new();
        let shard = shard(&tasks, 1000);
        let intake = Intake::new(&shard);
        let mut taken = 0;
        while intake.check().is_ok() {
            taken += 1;
            let to = (0..1000).map(|n| local(&format!("user{n}"))).collect();
            let command = Command::Accept(accept(id(taken), to));
            shard.propose(command).await.unwrap();
        }
        // 750 KB, a recipient of theirs takes 180 octets
        assert!((3..10).contains(&taken), "{taken} messages taken");
        assert!(matches!(intake.check(), Err(Closed::Full(_))));
        tasks.kill().await;
    }
}

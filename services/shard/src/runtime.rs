//! One shard on one node: the apply loop, proposers waiting for their answers, truncation.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hikyaku_log::{
    AppendError, Applied, Log, LogRecord, Position, ReadError, ShardId, Share, Stamp,
};
use hikyaku_proto::VERSION;
use hikyaku_proto::v1::{HashReport, Record, record::Command};
use hikyaku_serve::tasks::Tasks;
use prost::Message;
use tokio::sync::{oneshot, watch};

use crate::ambient::SharedAmbient;
use crate::machine::{Machine, Trouble};

/// Hash marks remembered for comparison with other replicas.
const MARKS_MAX: usize = 16;

/// How a shard runs.
#[derive(Clone, Copy, Debug)]
pub struct ShardOptions {
    /// How often the log is truncated and asked whether it is filling up.
    pub maintenance_interval: Duration,
}

impl Default for ShardOptions {
    fn default() -> ShardOptions {
        ShardOptions {
            maintenance_interval: Duration::from_secs(1),
        }
    }
}

/// A proposer's answer and the position of its record.
#[derive(Clone, Copy, Debug)]
pub struct Committed<A> {
    /// Where the record is.
    pub position: Position,
    /// What applying it said.
    pub answer: A,
}

/// Why a proposal has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Not logged and never will be.
    #[error("not logged: {0}")]
    Refused(AppendError),
    /// Perhaps logged, perhaps applied, perhaps later: repeat with the same command id or find out.
    #[error("outcome unknown")]
    Unknown,
}

/// A handle on one shard of this node. Clones share it.
pub struct Shard<M: Machine> {
    inner: Arc<Inner<M>>,
}

impl<M: Machine> Clone for Shard<M> {
    fn clone(&self) -> Shard<M> {
        Shard {
            inner: self.inner.clone(),
        }
    }
}

struct Inner<M: Machine> {
    id: ShardId,
    replica: String,
    log: Arc<dyn Log>,
    ambient: SharedAmbient,
    machine: Mutex<M>,
    waiters: Mutex<Waiters<M::Answer>>,
    applied: watch::Sender<Position>,
    trouble: watch::Sender<Option<Trouble>>,
    marks: Mutex<BTreeMap<Position, [u8; 32]>>,
}

/// Who waits for which command. Ordered: a parked shard wakes them all, in the same order each time.
type Waiters<A> = BTreeMap<[u8; 16], Vec<oneshot::Sender<Committed<A>>>>;

/// A command's id and what its proposer hears.
type Answered<A> = ([u8; 16], Committed<A>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // a panic inside apply parks the shard before anybody relies on the state
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<M: Machine> Shard<M> {
    /// Starts applying `log`'s shard `id` with `machine` in tasks of `tasks`. `replica` names this node.
    pub fn start(
        tasks: &Tasks,
        id: ShardId,
        replica: &str,
        log: Arc<dyn Log>,
        ambient: SharedAmbient,
        machine: M,
        options: ShardOptions,
    ) -> Shard<M> {
        let shard = Shard {
            inner: Arc::new(Inner {
                id,
                replica: replica.to_owned(),
                log,
                ambient,
                machine: Mutex::new(machine),
                waiters: Mutex::default(),
                applied: watch::Sender::new(Position::ZERO),
                trouble: watch::Sender::new(None),
                marks: Mutex::default(),
            }),
        };
        let applying = shard.clone();
        tasks.spawn("shard apply", async move {
            let Err(trouble) = applying.apply_loop().await;
            tracing::error!(shard = %applying.id(), %trouble, "shard parked");
            applying.inner.trouble.send_replace(Some(trouble));
            // whoever waits learns now that no answer will come
            lock(&applying.inner.waiters).clear();
        });
        let maintaining = shard.clone();
        tasks.spawn("shard maintenance", async move {
            loop {
                tokio::time::sleep(options.maintenance_interval).await;
                maintaining.maintain().await;
            }
        });
        shard
    }

    /// Which shard this is.
    pub fn id(&self) -> ShardId {
        self.inner.id
    }

    /// The log under it.
    pub fn log(&self) -> &Arc<dyn Log> {
        &self.inner.log
    }

    /// The node's clock and randomness.
    pub fn ambient(&self) -> &SharedAmbient {
        &self.inner.ambient
    }

    /// The last position applied, as it moves.
    pub fn applied(&self) -> watch::Receiver<Position> {
        self.inner.applied.subscribe()
    }

    /// Why the shard stopped applying, once it has.
    pub fn trouble(&self) -> Option<Trouble> {
        self.inner.trouble.borrow().clone()
    }

    /// Looks at the state between two batches. Short and without I/O: applying waits meanwhile.
    pub fn read<R>(&self, look: impl FnOnce(&M) -> R) -> R {
        look(&lock(&self.inner.machine))
    }

    /// Like [`Shard::read`] for a leader's own bookkeeping inside the machine (never the replicated state).
    pub fn read_mut<R>(&self, look: impl FnOnce(&mut M) -> R) -> R {
        look(&mut lock(&self.inner.machine))
    }

    /// Appends `command` without waiting for it to be applied. For `Accept` only, which apply can never refuse.
    ///
    /// # Errors
    /// As [`Log::append`].
    pub async fn append(&self, command: Command) -> Result<Stamp, AppendError> {
        let share = share_of(&command);
        let payload = self.encode(self.inner.ambient.command_id(), command);
        self.inner
            .log
            .append_within(self.inner.id, payload, share)
            .await
    }

    /// Appends `command`, waits until it is applied here, and returns what applying it said.
    ///
    /// # Errors
    /// [`ProposeError::Unknown`] leaves open whether it was or will be applied.
    pub async fn propose(&self, command: Command) -> Result<Committed<M::Answer>, ProposeError> {
        self.propose_as(self.inner.ambient.command_id(), command)
            .await
    }

    /// [`Shard::propose`] under a given command id: a repeat of the same, unanswered command.
    ///
    /// # Errors
    /// As [`Shard::propose`].
    pub async fn propose_as(
        &self,
        cmd_id: [u8; 16],
        command: Command,
    ) -> Result<Committed<M::Answer>, ProposeError> {
        // declared first, so dropped last: it looks for receivers that are gone
        let _forget = Forget {
            shard: self,
            cmd_id,
        };
        let (sender, receiver) = oneshot::channel();
        lock(&self.inner.waiters)
            .entry(cmd_id)
            .or_default()
            .push(sender);
        if self.inner.trouble.borrow().is_some() {
            return Err(ProposeError::Refused(AppendError::Unavailable));
        }
        let share = share_of(&command);
        let payload = self.encode(cmd_id, command);
        match self
            .inner
            .log
            .append_within(self.inner.id, payload, share)
            .await
        {
            Ok(_) => {}
            Err(AppendError::Unknown) => return Err(ProposeError::Unknown),
            Err(error) => return Err(ProposeError::Refused(error)),
        }
        receiver.await.map_err(|_| ProposeError::Unknown)
    }

    /// Waits until everything logged before this call, by anybody, is applied here.
    ///
    /// # Errors
    /// As [`Shard::propose`].
    pub async fn barrier(&self) -> Result<Position, ProposeError> {
        let committed = self
            .propose(Command::Barrier(hikyaku_proto::v1::Barrier {}))
            .await?;
        Ok(committed.position)
    }

    /// Waits until `position` is applied here; false when the shard parked before.
    pub async fn wait_applied(&self, position: Position) -> bool {
        let mut applied = self.inner.applied.subscribe();
        let mut trouble = self.inner.trouble.subscribe();
        tokio::select! {
            biased;
            reached = applied.wait_for(|applied| *applied >= position) => reached.is_ok(),
            _ = trouble.wait_for(Option::is_some) => false,
        }
    }

    fn encode(&self, cmd_id: [u8; 16], command: Command) -> Bytes {
        let record = Record {
            version: VERSION,
            cmd_id: Bytes::copy_from_slice(&cmd_id),
            time_ms: self.inner.ambient.now_ms(),
            command: Some(command),
        };
        Bytes::from(record.encode_to_vec())
    }

    async fn apply_loop(&self) -> Result<std::convert::Infallible, Trouble> {
        let inner = &self.inner;
        let incarnation = inner.log.incarnation();
        let mut begun = false;
        loop {
            if begun {
                // the log was cut above what was applied here: records that somebody waits for may never be seen
                lock(&inner.waiters).clear();
            }
            begun = true;
            let next = lock(&inner.machine).resume(incarnation, inner.log.bounds(inner.id))?;
            self.check_last_applied().await?;
            inner
                .applied
                .send_replace(Position(next.0.saturating_sub(1)));
            let mut tail = match inner.log.tail(inner.id, next) {
                Ok(tail) => tail,
                Err(ReadError::Truncated { .. }) => continue,
                Err(error) => return Err(Trouble::Log(error.to_string())),
            };
            loop {
                let records = match tail.next().await {
                    Ok(records) => records,
                    Err(ReadError::Truncated { .. }) => break,
                    Err(error) => return Err(Trouble::Log(error.to_string())),
                };
                while !lock(&inner.machine).ready() {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                self.apply_batch(incarnation, records)?;
            }
        }
    }

    /// The record the state says it applied last must be the one the log has there, where the log still has it.
    async fn check_last_applied(&self) -> Result<(), Trouble> {
        let inner = &self.inner;
        let Stamp { position, crc } = lock(&inner.machine).applied().stamp;
        let bounds = inner.log.bounds(inner.id);
        if position < bounds.start || position >= bounds.end {
            return Ok(());
        }
        match inner.log.read_at(inner.id, position).await {
            Ok(record) if record.stamp.crc != crc => Err(Trouble::LogMismatch(format!(
                "record {position} is not the one applied"
            ))),
            Ok(_) | Err(ReadError::Truncated { .. }) => Ok(()),
            Err(error) => Err(Trouble::Log(error.to_string())),
        }
    }

    /// Applies a batch, makes it visible, then answers its proposers.
    fn apply_batch(&self, incarnation: u64, records: Vec<LogRecord>) -> Result<(), Trouble> {
        let inner = &self.inner;
        let Some(last) = records.last().map(|record| record.stamp) else {
            return Ok(());
        };
        let answers = {
            let mut machine = lock(&inner.machine);
            let applied = self.apply_all(&mut machine, records).and_then(|answers| {
                let applied = Applied {
                    incarnation,
                    stamp: last,
                };
                catch_unwind(AssertUnwindSafe(|| machine.batch_end(applied)))
                    .unwrap_or(Err(Trouble::Poison(last.position)))?;
                Ok(answers)
            });
            if let Err(trouble) = &applied {
                // while the lock is held: nobody may ask a machine that stopped halfway how far the log may be cut
                inner.trouble.send_replace(Some(trouble.clone()));
            }
            applied?
        };
        inner.applied.send_replace(last.position);
        let mut waiters = lock(&inner.waiters);
        for (cmd_id, committed) in answers {
            // a repeated command has several waiters and one answer: the others ask again
            if let Some(sender) = waiters
                .remove(&cmd_id)
                .and_then(|mut senders| senders.pop())
            {
                let _ = sender.send(committed);
            }
        }
        Ok(())
    }

    fn apply_all(
        &self,
        machine: &mut M,
        records: Vec<LogRecord>,
    ) -> Result<Vec<Answered<M::Answer>>, Trouble> {
        let mut answers = Vec::with_capacity(records.len());
        for record in records {
            let position = record.stamp.position;
            match catch_unwind(AssertUnwindSafe(|| self.apply_one(machine, record))) {
                Ok(answer) => answers.extend(answer?),
                Err(_) => return Err(Trouble::Poison(position)),
            }
        }
        Ok(answers)
    }

    fn apply_one(
        &self,
        machine: &mut M,
        record: LogRecord,
    ) -> Result<Option<Answered<M::Answer>>, Trouble> {
        let stamp = record.stamp;
        let decoded = match Record::decode(record.payload) {
            Ok(decoded) if decoded.version > VERSION => {
                let version = decoded.version;
                return Err(Trouble::NewerVersion {
                    position: stamp.position,
                    version,
                    known: VERSION,
                });
            }
            Ok(decoded) if decoded.command.is_some() => decoded,
            _ => {
                tracing::error!(shard = %self.inner.id, position = %stamp.position, "undecodable record quarantined");
                machine.quarantine(stamp)?;
                return Ok(None);
            }
        };
        let cmd_id: Option<[u8; 16]> = decoded.cmd_id.as_ref().try_into().ok();
        let mark = matches!(decoded.command, Some(Command::HashMark(_)));
        if let Some(Command::HashReport(report)) = &decoded.command {
            self.compare(report)?;
        }
        let answer = machine.apply(stamp, decoded)?;
        if mark && machine.is_whole() {
            self.remember_mark(stamp.position, machine.state_hash());
        }
        Ok(cmd_id.map(|cmd_id| {
            (
                cmd_id,
                Committed {
                    position: stamp.position,
                    answer,
                },
            )
        }))
    }

    /// The state hash this replica had at the hash mark `position`, if it is remembered.
    pub fn hash_at(&self, position: Position) -> Option<[u8; 32]> {
        lock(&self.inner.marks).get(&position).copied()
    }

    fn remember_mark(&self, position: Position, hash: [u8; 32]) {
        let mut marks = lock(&self.inner.marks);
        marks.insert(position, hash);
        if marks.len() > MARKS_MAX {
            marks.pop_first();
        }
    }

    fn compare(&self, report: &HashReport) -> Result<(), Trouble> {
        let position = Position(report.mark_position);
        match self.hash_at(position) {
            Some(own) if report.replica != self.inner.replica && own[..] != report.hash[..] => {
                Err(Trouble::Diverged {
                    position,
                    replica: report.replica.clone(),
                })
            }
            _ => Ok(()),
        }
    }

    /// This replica's name.
    pub fn replica(&self) -> &str {
        &self.inner.replica
    }

    /// Passes the log's pressure on, and answers what the machine still needs of the log; nothing once it has stopped.
    fn keep_from(&self) -> Option<Position> {
        let inner = &self.inner;
        let pressed = inner.log.pinned(inner.id).pressed;
        let mut machine = lock(&inner.machine);
        if inner.trouble.borrow().is_some() {
            return None;
        }
        if pressed {
            machine.pressed();
        }
        Some(machine.keep_from())
    }

    async fn maintain(&self) {
        let inner = &self.inner;
        let Some(keep_from) = self.keep_from() else {
            return;
        };
        if keep_from > inner.log.bounds(inner.id).start
            && let Err(error) = inner.log.truncate(inner.id, keep_from).await
        {
            tracing::warn!(shard = %inner.id, %error, "truncating the log failed");
            return;
        }
        let start = inner.log.bounds(inner.id).start;
        lock(&inner.machine).log_start(start);
    }
}

/// How much of a filling log a record may use: what empties it must find room when what fills it no longer does.
fn share_of(command: &Command) -> Share {
    match command {
        Command::Accept(_) => Share::Mail,
        Command::Deliver(_) | Command::Ingest(_) => Share::Delivery,
        Command::Carry(_) => Share::Carry,
        _ => Share::Rest,
    }
}

/// Takes a waiter back when its proposer stops waiting.
struct Forget<'a, M: Machine> {
    shard: &'a Shard<M>,
    cmd_id: [u8; 16],
}

impl<M: Machine> Drop for Forget<'_, M> {
    fn drop(&mut self) {
        let mut waiters = lock(&self.shard.inner.waiters);
        if let Some(senders) = waiters.get_mut(&self.cmd_id) {
            senders.retain(|sender| !sender.is_closed());
            if senders.is_empty() {
                waiters.remove(&self.cmd_id);
            }
        }
    }
}

//! What a state machine must be for the runtime to run it.

use hikyaku_log::{Applied, Bounds, Position, Stamp};
use hikyaku_proto::v1::Record;

/// Why a shard stops applying. It stays readable where it can; nothing is skipped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// Its store cannot go on; reopening and replaying may help.
    #[error("store: {0}")]
    Store(String),
    /// The log under it is not the one it has applied: another incarnation, shorter, or with other records.
    #[error("log does not match the state: {0}")]
    LogMismatch(String),
    /// A record needs a newer version of this program.
    #[error("record {position} needs version {version}; this program applies up to {known}")]
    NewerVersion {
        /// The record.
        position: Position,
        /// What it needs.
        version: u32,
        /// What this build has.
        known: u32,
    },
    /// Applying a record panicked. Restarting replays it; if that panics again an operator must look.
    #[error("applying record {0} panicked")]
    Poison(Position),
    /// The log cannot be read.
    #[error("log: {0}")]
    Log(String),
    /// Another replica has another state after the same records.
    #[error("state diverged from replica {replica} at record {position}")]
    Diverged {
        /// The mark compared.
        position: Position,
        /// The other replica.
        replica: String,
    },
}

/// A deterministic state machine over one shard's log.
pub trait Machine: Send + 'static {
    /// What a proposer hears about its record.
    type Answer: Send + 'static;

    /// Called before anything is applied, and again when the log was truncated past this replica: where to begin.
    ///
    /// A machine whose only storage is the log drops its state and begins at `bounds.start`; one with a store checks that
    /// the log continues what it has applied (see [`resume_after`]).
    fn resume(&mut self, incarnation: u64, bounds: Bounds) -> Result<Position, Trouble>;

    /// What this state has applied, batch ends only; the default for a machine whose only storage is the log.
    fn applied(&self) -> Applied;

    /// Applies one record and says what the proposer hears. Total: whatever the record holds, there is an answer.
    fn apply(&mut self, stamp: Stamp, record: Record) -> Result<Self::Answer, Trouble>;

    /// Notes a record that does not decode, the same way on every replica.
    fn quarantine(&mut self, stamp: Stamp) -> Result<(), Trouble>;

    /// Ends a batch: all of it becomes visible to readers, then proposers are answered.
    fn batch_end(&mut self, applied: Applied) -> Result<(), Trouble>;

    /// The lowest position this replica still needs from the log.
    fn keep_from(&self) -> Position;

    /// The log now starts at `start`.
    fn log_start(&mut self, start: Position);

    /// The log fills up and this shard holds its oldest part: let go of it soon.
    fn pressed(&mut self);

    /// False while the next batch must wait (the store is behind with its own writing).
    fn ready(&self) -> bool {
        true
    }

    /// A hash over the whole state: equal log prefix, equal hash, on every replica.
    fn state_hash(&self) -> [u8; 32];

    /// Whether the state is that of the whole log prefix applied, so that its hash may be compared. False while a machine
    /// whose only storage is the log replays what was there when it began.
    fn is_whole(&self) -> bool {
        true
    }
}

/// Where a machine that has applied up to `applied` goes on in a log with these `bounds`.
///
/// # Errors
/// [`Trouble::LogMismatch`] when the log is another one, or lacks records on either side of `applied`.
pub fn resume_after(
    applied: Applied,
    incarnation: u64,
    bounds: Bounds,
) -> Result<Position, Trouble> {
    let position = applied.stamp.position;
    if position != Position::ZERO && applied.incarnation != incarnation {
        return Err(Trouble::LogMismatch("it is another incarnation".into()));
    }
    if position >= bounds.end && position != Position::ZERO {
        return Err(Trouble::LogMismatch(format!(
            "it ends at {}, before the applied record {position}",
            bounds.end
        )));
    }
    let next = position.next();
    if next < bounds.start {
        return Err(Trouble::LogMismatch(format!(
            "it starts at {}, after the needed record {next}",
            bounds.start
        )));
    }
    Ok(next)
}

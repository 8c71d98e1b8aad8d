//! What a leader adds to a shard: it says that it begins, moves log time, and asks replicas to compare themselves.
//!
//! A leader exists for locality, push and timers only. Two of them merely interleave commands; a permission given under an
//! epoch is void when a newer [`LeaderBegin`] precedes it in the log.

use std::time::Duration;

use hikyaku_log::{Position, ShardId};
use hikyaku_proto::v1::{HashMark, HashReport, LeaderBegin, Tick, record::Command};
use hikyaku_serve::tasks::Tasks;
use tokio::time::Instant;

use crate::machine::{Machine, Trouble};
use crate::runtime::{ProposeError, Shard};

/// How often log time moves.
pub const TICK_INTERVAL: Duration = Duration::from_secs(60);
/// Hash marks are this many ticks apart.
const TICKS_PER_MARK: u32 = 5;
/// A wall clock that steps further than this is believed only after it has run level for as long.
const STEP_MAX_MS: u64 = 10 * 60 * 1000;
/// Wait between tries to begin leading while the log takes no appends.
const BEGIN_RETRY: Duration = Duration::from_millis(200);
/// One in so many failed tries to begin leading is told of, the first included: about two a minute.
const BEGIN_TRIES_PER_LINE: u32 = 150;
/// How often a start says how far a shard is.
const CATCH_UP_LINE_INTERVAL: Duration = Duration::from_secs(5);
/// A shard that applies nothing for so many of these intervals is not waited for any longer.
const CATCH_UP_STILL_MAX: u32 = 6;

/// Why a shard is not caught up with its log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Behind {
    /// It is parked and applies nothing any more.
    #[error("it is parked: {0}")]
    Parked(Trouble),
    /// It has stood still for half a minute; it may go on later.
    #[error("it stands still at record {applied} of {end}")]
    Still {
        /// Applied so far.
        applied: Position,
        /// To be applied.
        end: Position,
    },
}

/// Waits until `shard` has applied what its log holds now, as long as it moves, and says every few seconds how far it is.
///
/// # Errors
/// When it is parked or stands still: what needs it will be told so, and the rest of the node need not wait.
pub async fn catch_up<M: Machine>(shard: &Shard<M>) -> Result<(), Behind> {
    let id = shard.id();
    let end = Position(shard.log().bounds(id).end.0.saturating_sub(1));
    let mut applied = shard.applied();
    let (mut seen, mut still) = (*applied.borrow_and_update(), 0);
    while still < CATCH_UP_STILL_MAX {
        let waited = tokio::time::timeout(CATCH_UP_LINE_INTERVAL, shard.wait_applied(end)).await;
        if waited == Ok(true) {
            return Ok(());
        }
        if let Some(trouble) = shard.trouble() {
            return Err(Behind::Parked(trouble));
        }
        let now = *applied.borrow_and_update();
        still = if now == seen { still + 1 } else { 0 };
        seen = now;
        tracing::info!(shard = %id, applied = %now, %end, "waiting for the shard to apply its log");
    }
    Err(Behind::Still { applied: seen, end })
}

/// Leads `shard` until the node drains. Returns the epoch: the position of its `LeaderBegin` record. Tries for as long as the
/// log takes no record.
///
/// # Errors
/// When the shard is parked.
pub async fn begin<M: Machine>(tasks: &Tasks, shard: &Shard<M>) -> Result<Position, Trouble> {
    let command = || {
        Command::LeaderBegin(LeaderBegin {
            node: shard.replica().to_owned(),
        })
    };
    let mut tries = 0u32;
    let epoch = loop {
        let error = match shard.propose(command()).await {
            Ok(committed) => break committed.position,
            Err(error) => error,
        };
        if let Some(trouble) = shard.trouble() {
            return Err(trouble);
        }
        if tries.is_multiple_of(BEGIN_TRIES_PER_LINE) {
            tracing::warn!(shard = %shard.id(), %error, "cannot begin to lead the shard; trying again");
        }
        tries = tries.wrapping_add(1);
        tokio::time::sleep(BEGIN_RETRY).await;
    };
    let ticking = shard.clone();
    let draining = tasks.draining();
    tasks.spawn("shard clock", async move {
        tokio::select! {
            biased;
            () = draining.cancelled() => {}
            () = tick_loop(&ticking) => {}
        }
    });
    Ok(epoch)
}

async fn tick_loop<M: Machine>(shard: &Shard<M>) {
    let mut clock = LevelClock::new(shard.ambient().now_ms(), Instant::now());
    let mut ticks = 0u32;
    loop {
        tokio::time::sleep(TICK_INTERVAL).await;
        let Some(log_time_ms) = clock.read(shard.ambient().now_ms(), Instant::now(), shard.id())
        else {
            continue;
        };
        if shard
            .propose(Command::Tick(Tick { log_time_ms }))
            .await
            .is_err()
        {
            continue;
        }
        ticks += 1;
        if ticks.is_multiple_of(TICKS_PER_MARK) {
            let _ = mark(shard).await;
        }
    }
}

/// Logs a hash mark and this replica's hash at it.
///
/// # Errors
/// When the log does not take it.
pub async fn mark<M: Machine>(shard: &Shard<M>) -> Result<Position, ProposeError> {
    let position = shard
        .propose(Command::HashMark(HashMark {}))
        .await?
        .position;
    if let Some(hash) = shard.hash_at(position) {
        let report = HashReport {
            mark_position: position.0,
            replica: shard.replica().to_owned(),
            hash: hash.to_vec().into(),
        };
        shard.propose(Command::HashReport(report)).await?;
    }
    Ok(position)
}

/// A wall clock read against the monotonic one: after a step over ten minutes it must run level for ten minutes to count.
struct LevelClock {
    wall_ms: u64,
    at: Instant,
    level_since: Option<Instant>,
}

impl LevelClock {
    fn new(wall_ms: u64, at: Instant) -> LevelClock {
        LevelClock {
            wall_ms,
            at,
            level_since: None,
        }
    }

    /// The time to log, or `None` while the clock is under suspicion.
    fn read(&mut self, wall_ms: u64, now: Instant, shard: ShardId) -> Option<u64> {
        let elapsed_ms = u64::try_from(now.duration_since(self.at).as_millis()).unwrap_or(u64::MAX);
        let expected_ms = self.wall_ms.saturating_add(elapsed_ms);
        let stepped = wall_ms.abs_diff(expected_ms) > STEP_MAX_MS;
        self.wall_ms = wall_ms;
        self.at = now;
        if stepped {
            tracing::warn!(%shard, wall_ms, expected_ms, "the wall clock stepped; log time waits for it to run level");
            self.level_since = Some(now);
            return None;
        }
        match self.level_since {
            Some(since) if now.duration_since(since).as_millis() < u128::from(STEP_MAX_MS) => None,
            _ => {
                self.level_since = None;
                Some(wall_ms)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{LevelClock, STEP_MAX_MS};
    use hikyaku_log::{Class, ShardId};
    use std::time::Duration;
    use tokio::time::Instant;

    #[test]
    fn a_stepping_clock_counts_only_after_running_level() {
        let shard = ShardId::new(Class::Mbox, 0);
        let start = Instant::now();
        let minute = |n: u64| start + Duration::from_secs(60 * n);
        let mut clock = LevelClock::new(0, start);
        assert_eq!(clock.read(60_000, minute(1), shard), Some(60_000));
        let jump = 5 * 24 * 3600 * 1000;
        assert_eq!(clock.read(120_000 + jump, minute(2), shard), None);
        for n in 3..12 {
            assert_eq!(
                clock.read(60_000 * n + jump, minute(n), shard),
                None,
                "minute {n}"
            );
        }
        assert_eq!(
            clock.read(60_000 * 12 + jump, minute(12), shard),
            Some(60_000 * 12 + jump)
        );
        // the machine slept: monotonic time stood still, a small step is believed at once
        assert_eq!(
            clock.read(60_000 * 13 + jump + STEP_MAX_MS, minute(13), shard),
            Some(60_000 * 13 + jump + STEP_MAX_MS)
        );
    }
}

//! What a leader adds to a shard: it says that it begins, moves log time, and asks replicas to compare themselves.
//!
//! A leader exists for locality, push and timers only. Two of them merely interleave commands; a permission given under an
//! epoch is void when a newer [`LeaderBegin`] precedes it in the log.

use std::time::Duration;

use hikyaku_log::{Position, ShardId};
use hikyaku_proto::v1::{HashMark, HashReport, LeaderBegin, Tick, record::Command};
use hikyaku_serve::tasks::Tasks;
use tokio::time::Instant;

use crate::machine::Machine;
use crate::runtime::{ProposeError, Shard};

/// How often log time moves.
const TICK_INTERVAL: Duration = Duration::from_secs(60);
/// Hash marks are this many ticks apart.
const TICKS_PER_MARK: u32 = 5;
/// A wall clock that steps further than this is believed only after it has run level for as long.
const STEP_MAX_MS: u64 = 10 * 60 * 1000;
/// Wait between tries to begin leading while the log takes no appends.
const BEGIN_RETRY: Duration = Duration::from_millis(200);

/// Leads `shard` until the node drains. Returns the epoch: the position of its `LeaderBegin` record.
pub async fn begin<M: Machine>(tasks: &Tasks, shard: &Shard<M>) -> Position {
    let command = || {
        Command::LeaderBegin(LeaderBegin {
            node: shard.replica().to_owned(),
        })
    };
    let epoch = loop {
        match shard.propose(command()).await {
            Ok(committed) => break committed.position,
            Err(_) => tokio::time::sleep(BEGIN_RETRY).await,
        }
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
    epoch
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

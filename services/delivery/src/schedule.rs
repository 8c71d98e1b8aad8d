//! When to try again and when to give up, for trouble of the world's making. Ours waits in [`crate::lanes`] and never expires.

use std::time::Duration;

use hikyaku_shard::lead::TICK_INTERVAL;

/// Log time has passed an expiry so long after it at the latest: it moves with each tick, and a tick takes a moment.
const EXPIRY_SEEN: Duration = Duration::from_secs(TICK_INTERVAL.as_secs() + 5);

/// The times a message is tried at.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// Until the second attempt; doubles from then on.
    pub retry_first: Duration,
    /// Between attempts at most.
    pub retry_max: Duration,
    /// From acceptance until a message that cannot be delivered bounces.
    pub expiry: Duration,
    /// The same for a message with the null reverse-path, which cannot bounce.
    pub expiry_null: Duration,
    /// From acceptance until a sender who asked for it hears that it takes long.
    pub delay_report: Duration,
}

impl Default for Schedule {
    fn default() -> Schedule {
        Schedule {
            retry_first: Duration::from_secs(5 * 60),
            retry_max: Duration::from_secs(4 * 3600),
            expiry: Duration::from_secs(5 * 86400),
            expiry_null: Duration::from_secs(2 * 86400),
            delay_report: Duration::from_secs(4 * 3600),
        }
    }
}

impl Schedule {
    /// How long to wait after attempt number `attempts + 1`; `random` adds up to an eighth, so that what failed together does
    /// not come back together.
    pub fn delay_ms(&self, attempts: u32, random: u64) -> u64 {
        let first = millis(self.retry_first);
        let doubled = first.saturating_mul(1 << attempts.min(32));
        let delay = doubled.min(millis(self.retry_max));
        delay + random % (delay / 8 + 1)
    }

    /// When to try again what was tried at `now_ms`: after the delay, or, where that is past `expires_ms`, for the last time as
    /// soon as log time must have passed it. All recipients of a mail have that try at the same time, so that one report tells
    /// of them.
    pub fn due_ms(&self, now_ms: u64, attempts: u32, random: u64, expires_ms: u64) -> u64 {
        let due_ms = now_ms.saturating_add(self.delay_ms(attempts, random));
        if due_ms < expires_ms {
            return due_ms;
        }
        // a clock that ran ahead may be past both: log time is asked again with its next tick
        let soonest_ms = now_ms.saturating_add(millis(TICK_INTERVAL));
        let last_ms = expires_ms.saturating_add(millis(EXPIRY_SEEN));
        last_ms.max(soonest_ms)
    }

    /// The longest delay there is; a due time further away was written by a clock that ran ahead.
    pub fn delay_max_ms(&self) -> u64 {
        millis(self.retry_max).saturating_mul(2)
    }

    /// Whether a message received at `received_ms` has been tried long enough, by log time. Before the log's first tick
    /// nothing has.
    pub fn has_expired(&self, received_ms: u64, log_time_ms: u64, null_path: bool) -> bool {
        log_time_ms >= self.expires_ms(received_ms, null_path)
    }

    /// When a message received at `received_ms` has been tried long enough.
    pub fn expires_ms(&self, received_ms: u64, null_path: bool) -> u64 {
        let expiry = if null_path {
            self.expiry_null
        } else {
            self.expiry
        };
        received_ms.saturating_add(millis(expiry))
    }

    /// How old a message is when its delay is reported, milliseconds.
    pub fn delay_report_ms(&self) -> u64 {
        millis(self.delay_report)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::Schedule;

    #[test]
    fn doubles_to_the_maximum_and_expires_by_log_time() {
        let schedule = Schedule::default();
        let minutes = |attempts| schedule.delay_ms(attempts, 0) / 60_000;
        assert_eq!([0, 1, 2, 5, 6, 40].map(minutes), [5, 10, 20, 160, 240, 240]);
        assert!(schedule.delay_ms(0, u64::MAX) <= 337_500);
        let day = 86_400_000;
        assert!(!schedule.has_expired(day, 6 * day - 1, false));
        assert!(schedule.has_expired(day, 6 * day, false));
        assert!(schedule.has_expired(day, 3 * day, true));
        assert!(!schedule.has_expired(day, 0, true));
    }

    #[test]
    fn the_last_try_comes_as_soon_as_log_time_has_passed_the_expiry() {
        let schedule = Schedule::default();
        let (minute, now) = (60_000, 1_000_000);
        let due = |attempts, expires_ms| schedule.due_ms(now, attempts, 0, expires_ms) - now;
        assert_eq!(due(0, now + 6 * minute), 5 * minute);
        assert_eq!(due(0, now + 5 * minute), 6 * minute + 5000);
        assert_eq!(due(40, u64::MAX), 240 * minute);
        for attempts in [0, 1, 40] {
            assert_eq!(due(attempts, now + 2 * minute), 3 * minute + 5000);
            // the wall clock is past it, and log time may not be
            assert_eq!(due(attempts, now - minute), minute);
            assert_eq!(due(attempts, 0), minute);
        }
    }
}

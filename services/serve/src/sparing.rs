//! Log lines that strangers can cause as often as they like: a few a second are written, the others only counted.
//!
//! What is counted is said with the next line that is written, so nothing is hidden. Figures of all of them are in the metrics.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// One kind of line.
#[derive(Debug)]
pub struct Sparing {
    lines_max: u32,
    every: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// When the lines written were counted from.
    since: Option<Instant>,
    written: u32,
    left_out: u64,
}

impl Default for Sparing {
    /// Ten lines a second.
    fn default() -> Sparing {
        Sparing::new(10, Duration::from_secs(1))
    }
}

impl Sparing {
    /// At most `lines_max` lines in any `every` that begins with one of them.
    pub const fn new(lines_max: u32, every: Duration) -> Sparing {
        Sparing {
            lines_max,
            every,
            state: Mutex::new(State {
                since: None,
                written: 0,
                left_out: 0,
            }),
        }
    }

    /// Whether a line may be written now; if so, how many have been left out since the last one.
    pub fn line(&self) -> Option<u64> {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over = |since: Instant| now.saturating_duration_since(since) >= self.every;
        if state.since.is_none_or(is_over) {
            (state.since, state.written) = (Some(now), 0);
        }
        if state.written >= self.lines_max {
            state.left_out += 1;
            return None;
        }
        state.written += 1;
        Some(std::mem::take(&mut state.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::Sparing;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_a_few_lines_and_a_number() {
        let sparing = Sparing::new(2, Duration::from_secs(1));
        assert_eq!((sparing.line(), sparing.line()), (Some(0), Some(0)));
        for _ in 0..1000 {
            assert_eq!(sparing.line(), None);
        }
        tokio::time::advance(Duration::from_millis(999)).await;
        assert_eq!(sparing.line(), None);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!((sparing.line(), sparing.line()), (Some(1001), Some(0)));
        assert_eq!(sparing.line(), None);
    }
}

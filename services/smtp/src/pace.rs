//! The least pace of a content: whoever sends slower holds a session, and memory, for nothing.

use std::time::Duration;

use crate::options::Options;

/// Whether a content comes in fast enough. Only time spent waiting for the client counts, also that between two chunks.
#[derive(Debug)]
pub struct Pace {
    block_timeout: Duration,
    window: Duration,
    rate_min: u64,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// A content has begun.
    pub fn new(options: &Options) -> Pace {
        Pace {
            block_timeout: options.data_block_timeout,
            window: options.data_rate_window,
            rate_min: options.data_rate_min,
            waited: Duration::ZERO,
            bytes: 0,
        }
    }

    /// How long to wait for the next octets: not at all once a window has passed with too little in it.
    pub fn patience(&self) -> Duration {
        if self.rate_min == 0 {
            self.block_timeout
        } else {
            self.block_timeout
                .min(self.window.saturating_sub(self.waited))
        }
    }

    /// Counts octets that took `waited` to come.
    pub fn count(&mut self, waited: Duration, count: usize) {
        self.waited += waited;
        self.bytes += count as u64;
        if self.bytes >= self.rate_min.saturating_mul(self.window.as_secs()) {
            (self.waited, self.bytes) = (Duration::ZERO, 0);
        }
    }
}

//! Limits and deadlines of the role.

use std::time::Duration;

/// How the services run.
#[derive(Clone, Copy, Debug)]
pub struct MboxOptions {
    /// A record must be logged and applied within this; later its outcome is unknown to the caller.
    pub propose_timeout: Duration,
    /// Home must answer within this.
    pub home_timeout: Duration,
    /// A maildrop must be read within this: it holds a snapshot.
    pub maildrop_timeout: Duration,
    /// Octets of deliveries under way in one shard; more are told to come back.
    pub in_flight_bytes_max: usize,
    /// Maildrops read at the same time in one shard.
    pub maildrops_max: usize,
    /// Callers waiting for one shard's barrier.
    pub barrier_waiters_max: usize,
    /// A restore that meets an unavailable log tries again for this long.
    pub restore_patience: Duration,
}

impl Default for MboxOptions {
    fn default() -> MboxOptions {
        MboxOptions {
            propose_timeout: Duration::from_secs(30),
            home_timeout: Duration::from_secs(10),
            maildrop_timeout: Duration::from_secs(120),
            in_flight_bytes_max: 64 << 20,
            maildrops_max: 1_024,
            barrier_waiters_max: 16_384,
            restore_patience: Duration::from_secs(60),
        }
    }
}

//! The machine's wall clock and randomness.

use std::time::{SystemTime, UNIX_EPOCH};

use hikyaku_shard::ambient::Ambient;

/// The operating system's clock and randomness.
pub struct System;

impl Ambient for System {
    // the one place where the clock is read
    #[allow(clippy::disallowed_methods)]
    fn now_ms(&self) -> u64 {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    fn random(&self) -> u64 {
        match getrandom::u64() {
            Ok(number) => number,
            // ids that repeat would lose mail; no system this runs on fails here after its start
            Err(error) => {
                tracing::error!(%error, "the system has no randomness; stopping");
                std::process::abort()
            }
        }
    }
}

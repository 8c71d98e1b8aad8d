//! The machine's wall clock and randomness.

use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hikyaku_shard::ambient::Ambient;

/// Numbers asked of the system at once: a mail takes about ten.
const NUMBERS: usize = 64;

/// For the reason of an abort to be written.
const LAST_LINE_WAIT: Duration = Duration::from_millis(200);

thread_local! {
    static DRAWN: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

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
        DRAWN.with_borrow_mut(|drawn| {
            loop {
                match drawn.pop() {
                    Some(number) => return number,
                    None => draw(drawn),
                }
            }
        })
    }
}

/// Fills `drawn` with numbers, each to be used once.
fn draw(drawn: &mut Vec<u64>) {
    let mut bytes = [0; 8 * NUMBERS];
    match getrandom::fill(&mut bytes) {
        Ok(()) => {
            let numbers = bytes.as_chunks().0.iter();
            drawn.extend(numbers.map(|number| u64::from_le_bytes(*number)));
        }
        // ids that repeat would lose mail; no system this runs on fails here after its start
        Err(error) => {
            tracing::error!(%error, "the system has no randomness; stopping");
            // lines are written by a thread of their own
            std::thread::sleep(LAST_LINE_WAIT);
            std::process::abort()
        }
    }
}

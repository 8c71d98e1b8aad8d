//! Wall clock and randomness: the two things a node takes from the world besides log, network and disk.
//!
//! Monotonic time and timers are tokio's, which a simulation pauses and advances.

use std::sync::Arc;

/// Wall clock and randomness.
pub trait Ambient: Send + Sync + 'static {
    /// Unix milliseconds by this node's wall clock. It may jump.
    fn now_ms(&self) -> u64;

    /// A random number.
    fn random(&self) -> u64;

    /// A new command id.
    fn command_id(&self) -> [u8; 16] {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.random().to_be_bytes());
        id[8..].copy_from_slice(&self.random().to_be_bytes());
        id
    }
}

/// The node's clock and randomness, shared.
pub type SharedAmbient = Arc<dyn Ambient>;

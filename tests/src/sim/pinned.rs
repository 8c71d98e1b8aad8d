//! Seeds of runs that once failed, and what they found. They run before all others, for ever.

/// Seed, and the mistake it found.
pub const PINNED: &[(u64, &str)] = &[];

//! Seeds of runs that once failed, and what they found. They run before all others, for ever.

/// Seed, and the mistake it found.
pub const PINNED: &[(u64, &str)] = &[
    (
        1,
        "a leader that drained with a lane due for its probe spun and never rested",
    ),
    (
        34,
        "a recipient that had collapsed into an equal one was lost when that one was sent elsewhere",
    ),
    (
        726,
        "a leader whose log was cut above what it had applied waited for ever for a record that it skipped",
    ),
];

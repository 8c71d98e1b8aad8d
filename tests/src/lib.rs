//! Whole-product tests: the simulator, and the harness around the real binary.
//!
//! # Layout
//! * [`sim`]: the product's machines, runtime and roles under a seeded simulator
//! * [`harness`]: the real binary: start, kill, cut the power, look at what is left
//! * `tests/sim.rs`: a thousand seeds; `tests/it/`: the real binary; `planted/`: bugs that must be noticed
// outside the system under test: the machine's own clock is the one that counts
#![allow(clippy::disallowed_methods)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod harness;
pub mod sim;

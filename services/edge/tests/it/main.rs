//! The edge over the real session, the real directory and a real queue shard on a simulated log; time paused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

mod envelope;
mod relay;
mod support;

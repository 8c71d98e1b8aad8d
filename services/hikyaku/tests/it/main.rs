//! The real binary, started as an operator starts it: what it takes up while it runs, and what it tells.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod metrics;
mod reload;
mod running;
mod start;
mod taken_up;
mod talk;
#[cfg(feature = "otlp")]
mod traces;
mod unread;

//! Running a server: tasks that drain, listeners, lines, TLS material, what is counted and traced.
//!
//! # Layout
//! * [`tasks`]: every task a node runs, so that it can drain or die as a whole
//! * [`listen`]: accept loops with limits
//! * [`line`]: command lines out of a byte stream
//! * [`descriptors`]: as many as there may be
//! * [`sparing`]: log lines that strangers can cause as often as they like
//! * [`output`]: lines that nobody waits for
//! * [`file`]: whole files of a bounded size
//! * [`tls`]: certificates from files
//! * [`validity`]: from when to when a certificate is valid
//! * [`certificate`]: what a certificate and its key say of themselves
//! * [`metrics`]: counters and histograms
//! * [`trace`]: spans that belong to a mail's trace

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)
)]

pub mod certificate;
mod der;
pub mod descriptors;
pub mod file;
pub mod line;
pub mod listen;
pub mod metrics;
pub mod output;
pub mod sparing;
pub mod tasks;
pub mod tls;
pub mod trace;
pub mod validity;

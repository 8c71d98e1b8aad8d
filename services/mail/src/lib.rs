//! The trade's vocabulary: addresses, paths, envelopes, replies, message ids, trace headers, DSN text.
//!
//! This room does no I/O, reads no clock and knows no other room. Everybody else speaks its words.
//!
//! # Layout
//! * [`id`]: shards, message ids, delivery ids, account ids
//! * [`path`]: RFC 5321 section 4.1.2 mailboxes and paths
//! * [`reply`]: reply code, enhanced status code (RFC 3463), text
//! * [`date`]: RFC 5322 dates
//! * [`dsn`]: delivery status notifications (RFC 3464)
//! * [`maillog`]: the five lines a postmaster reads
//! * [`trace`]: the Received field
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod date;
pub mod dsn;
pub mod id;
pub mod maillog;
pub mod path;
pub mod reply;
pub mod trace;

//! Role: the admin service. Operators ask where a mail is and why, give orders, take backups.
//!
//! Every order is a record in the queue's log: audited, replicated, ordered with the attempts. The command line reaches this
//! over a Unix socket in the data directory that only the process's user may open; nothing here listens on a network.
//!
//! # Layout
//! * [`admin`]: the gRPC service
//! * [`queue`]: list, show, operate over the queue shards
//! * [`archive`]: the seam to whoever keeps mailbox shards

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod admin;
pub mod archive;
pub mod queue;

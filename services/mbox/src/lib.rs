//! Role: gRPC over this node's mailbox shards, and over the home shard.
//!
//! It is asked by delivery (store this mail), by access (what is in this maildrop) and by the control room (backups). It
//! never makes a mailbox without a `Claim` answered by Home, answers nothing before its record is applied, and says
//! "unavailable" or "unknown", never something definite, about what it does not know. It knows no directory, no SMTP, no POP3.
//!
//! # Layout
//! * [`options`]: its limits and deadlines
//! * [`home`]: the Home service
//! * [`mailbox`]: the Mailbox service: `deliver`, `maildrop`
//! * `quota`: what edges ask about full mailboxes
//! * [`backup`]: snapshots of shards as pieces, and back
//! * [`blobs`]: which blobs the mails of a shard name
//! * `barrier`: many linearizable reads, one record

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod home;
pub mod mailbox;
pub mod options;

mod barrier;
mod deliver;
mod maildrop;
mod quota;
mod status;

pub mod backup;
pub mod blobs;

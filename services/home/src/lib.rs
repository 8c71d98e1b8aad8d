//! Home: which mailbox shard owns an account.
//!
//! A mailbox comes to exist only by a `Claim` here, and the first one applied wins for ever, so that a stale directory, two
//! edges or an edited `mailHost` can never make two mailboxes for one account. It holds no mail and knows no mailbox.
//!
//! # Layout
//! * [`machine`]: the state machine
//! * [`read`]: what services and backups read from a snapshot

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod machine;
pub mod read;

//! The mailbox shard's state machine over the engines, without a runtime.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod bench;
mod commands;
mod crash;
mod golden;
mod restore;

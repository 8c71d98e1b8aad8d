//! MailboxShard: accounts, mailboxes, UIDs, flags and quota, as a state machine over an engine.
//!
//! A mail arrives here as a `Deliver` record, applied once per delivery id (commit point B); from here POP3 and later IMAP
//! read it through snapshots. Everything is counted per account and mailbox, never per shard, so that a user can move.
//! Nothing here does network I/O, reads a clock or knows the directory; bodies in the blob store are only named.
//!
//! # Layout
//! * [`key`]: the keys of the store, [`id`]: EMAILID and MAILBOXID, [`flag`]: flags and keywords
//! * [`machine`]: the state machine and what its proposers hear
//! * `account`, `deliver`, `expunge`, `flags`, `mailbox`, `expire`, `ingest`: its commands
//! * [`nearly_full`]: accounts that edges ask about before they take mail
//! * [`read`]: what services read from a snapshot
//! * [`export`]: an account as the pieces that `Ingest` takes, for backups
//! * [`audit`]: recounts everything and names what does not agree

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod flag;
pub mod id;
pub mod key;
pub mod machine;

mod account;
mod deliver;
mod expire;
pub mod expunge;
mod flags;
mod ingest;
pub mod mailbox;
pub mod nearly_full;
mod writer;

pub mod audit;
pub mod export;
pub mod read;

use hikyaku_engine::EngineError;

/// The store cannot answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The engine cannot go on.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// What the engine holds is not what was stored.
    #[error("{0} does not decode")]
    Corrupt(&'static str),
    /// The store has keys of a layout that this program does not know.
    #[error("a newer program has written to the store")]
    Newer,
}

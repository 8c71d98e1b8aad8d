//! The queue shard of class `incoming`: every accepted message from its 250 until each recipient is settled.
//!
//! The log is the queue's only storage. [`machine::QueueMachine`] is an index over it in memory: who still waits, since when,
//! until when, and where in the log the body is. It is a function of the log's retained part, so a restart replays it, and
//! equal prefixes give equal [state hashes](hikyaku_shard::machine::Machine::state_hash).
//!
//! What happens to a recipient (names as `hikyaku queue list` and Postfix say them):
//!
//! ```text
//! Accept, Routed ──> pending ──Delivered──> delivered        pending, never tried: incoming
//!                     │  ▲ └───Deferred──> pending (later)   in the leader's hands: active
//!                     │  └─────release──── held <──hold──    tried, due later:      deferred
//!                     ├─Routed──> expanded (its children go on)        held:        hold
//!                     ├─Bounce──> bounced (and the DSN is a message of this shard, in the same record)
//!                     └─Cancel, delete, equal to an earlier one──> cancelled, deleted, collapsed
//! ```
//! The right-hand states are terminal and absorbing. A message without a pending or held recipient is forgotten.
//!
//! It refuses: nothing that was accepted. It knows no clock, no network, no directory; those belong to the leader
//! (`delivery`), where the mail goes next.
//!
//! # Layout
//! * [`machine`]: the state machine: what each record does, and when the log may be cut
//! * [`index`]: live messages, what is due, what the log must keep, the state hash
//! * [`delays`]: who is to be told that a mail takes long
//! * [`held`]: how many recipients the leader holds, and why
//! * [`recipient`]: the transitions of one message's recipients
//! * [`statuses`]: results of attempts, equal ones once
//! * [`packed`]: who a recipient is, in few octets
//! * [`sorted`]: a sorted map for very many small entries
//! * [`kept`]: facts remembered down to the log start, so that a finished message never comes back
//! * [`bodies`]: fresh bodies in memory, and where a record holds one
//! * [`work`]: what a leader takes, carries and learns from the index
//! * [`inspect`]: what an operator sees
//! * [`intake`]: whether an edge may choose this shard now

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod bodies;
pub mod delays;
pub mod hash;
pub mod held;
pub mod index;
pub mod inspect;
pub mod intake;
pub mod kept;
pub mod machine;
pub mod packed;
pub mod recipient;
pub mod room;
pub mod sorted;
pub mod statuses;
pub mod work;

#[cfg(test)]
mod golden_test;
#[cfg(test)]
mod model_test;
#[cfg(test)]
mod testing;

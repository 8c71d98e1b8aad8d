//! The runtime under every state machine: append, apply, wait, lead, truncate.
//!
//! A shard is an ordered log plus a deterministic [`Machine`] that applies it. [`Shard`] appends commands, applies whatever
//! the log yields, in order, and answers a proposer only after its own record has been applied.
//!
//! The rules for a machine: `apply` does no I/O of its own choosing, reads no clock, no randomness, no hash map order, no
//! floats. Time and ids come inside the record. Conditions are evaluated in `apply`. `apply` is total.
//!
//! # Layout
//! * [`machine`]: what a state machine must be
//! * [`runtime`]: one shard on one node
//! * [`lead`]: what a leader adds: `LeaderBegin`, log time, hash marks
//! * [`stored`]: what a store keeps with its position: what it has applied, and its running hash
//! * [`ambient`]: clock and randomness, owned by the simulator in simulation

pub mod ambient;
pub mod lead;
pub mod machine;
pub mod runtime;
pub mod stored;

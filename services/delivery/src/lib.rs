//! The delivery role: it leads queue shards. Whoever is due is taken from the queue's index, delivered to their mailbox shard
//! or expanded into other recipients, and what came of it goes back into the queue's log as a fact.
//!
//! Two kinds of trouble are kept apart everywhere. *The world's* (mailbox full, account disabled, no such user) is a definite
//! answer: it is logged, tried again by a schedule and ends as a bounce. *Ours* (a mailbox shard, Home, the directory or a
//! body that cannot be had now) is no answer: it is never logged as a result, never expires a mail, and waits on one timer per
//! shard or service, so that a dead one costs nothing and its return wakes everybody who waited.
//!
//! A recipient whose `Deliver` has not been answered is asked about again at the same owner before anything else happens to it;
//! before it is routed elsewhere or bounced its delivery id is voided there. It refuses to forget an outcome: a fact is offered
//! to the log until the log takes it.
//!
//! From here a mail goes to `mbox` over gRPC (commit point B), its results to `queue` (commit point C).
//!
//! # Layout
//! * [`leader`]: what a leader is made of, and its loops
//! * [`lanes`]: who waits for what: fairness between tenants, limits and back-off per destination
//! * [`job`]: one step for one recipient, and what it can come to
//! * [`courier`]: the local courier: Deliver, Void, and their answers
//! * [`expand`]: aliases, forwards and groups, one step at a time
//! * [`bounce`]: failing a recipient
//! * [`failures`]: recipients of one mail that fail together, with their DSN
//! * [`report`]: who wants to hear of what, and the message that says it
//! * [`delays`]: telling senders that it takes long
//! * [`facts`]: into the log, until it takes it
//! * [`schedule`]: when to try again, when to give up
//! * [`placement`]: which mailbox shard a new account should live in
//! * [`homes`]: the owners learned from Home
//! * [`carry`]: appending live messages again, so that the log can be cut
//! * [`control`]: what an operator asks and orders

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod bounce;
pub mod carry;
pub mod control;
pub mod courier;
pub mod delays;
pub mod expand;
pub mod facts;
pub mod failures;
pub mod homes;
pub mod job;
pub mod lanes;
pub mod leader;
pub mod placement;
pub mod report;
pub mod schedule;

#[cfg(test)]
mod tests;

//! Role: SMTP in. It decides at RCPT, receives with bounded memory, and says 250 only after the one `Accept` record is durable.
//!
//! It keeps nothing: any edge can take any mail, and a crash loses only what had no 250 yet. It never answers 5yz for a fault
//! of ours, and "don't know" is never "no such user".
//!
//! # Layout, in the order a mail meets them
//! * [`backend`]: the SMTP room's seam: sessions, budgets, the postmaster's log lines
//! * [`recipient`]: RCPT: directory, then a recipient or a refusal
//! * [`quota`]: full mailboxes
//! * [`budget`]: the memory of a transaction
//! * [`header`]: what a content begins with, made fit to stand under our fields
//! * [`accept`]: content into a body, and commit point A
//! * `observed`: figures and traces

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod accept;
pub mod backend;
pub mod budget;
pub mod header;
mod observed;
pub mod quota;
pub mod recipient;

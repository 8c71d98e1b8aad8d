//! The real binary, seen from outside.
//!
//! # Layout
//! * [`dialogues`]: SMTP and POP3, line by line
//! * [`demo`]: the README's command, the operator's commands, backup and restore
//! * [`clients`]: real mail clients, with and without TLS
//! * [`trouble`]: wrong configurations, a second process, a damaged log, a full disk
//! * [`bounded`]: a held message, an idle mailbox and much traffic; no delivery for a while
//! * [`kills`]: SIGKILL at random and at every commit point
//! * [`power_loss`]: images of what a power cut could have left
// outside the system under test: the machine's own clock is the one that counts
#![allow(clippy::disallowed_methods)]

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bounded;
mod clients;
mod demo;
mod dialogues;
mod kills;
mod operator;
mod power_loss;
mod trouble;

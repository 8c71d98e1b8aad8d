//! The real binary, seen from outside.
//!
//! # Layout
//! * [`dialogues`]: SMTP and POP3, line by line
//! * [`demo`]: the README's command
//! * [`operator`]: the operator's commands, the log's lines
//! * [`backup`]: backup and restore, large bodies
//! * [`configuration`]: wrong configurations and directories
//! * [`modes`]: what others may look into
//! * [`golden`]: what earlier versions wrote
//! * [`clients`]: real mail clients, with and without TLS
//! * [`trouble`]: a full disk, a damaged log, garbage
//! * [`slow`]: peers that are slow on purpose, and a bystander
//! * [`hostile`]: forged ends of a mail, resets, corrupt TLS
//! * [`idle`]: ten thousand connections that do nothing
//! * [`bounded`]: a held message, an idle mailbox and much traffic; no delivery for a while
//! * [`maildrops`]: more mails than a person reads
//! * [`kills`]: SIGKILL at random and at every commit point
//! * [`reports`]: full mailboxes, loops, and reports to senders
//! * [`power_loss`]: images of what a power cut could have left

#![allow(clippy::unwrap_used, clippy::expect_used)]
// outside the system under test: the machine's own clock is the one that counts
#![allow(clippy::disallowed_methods)]

mod backup;
mod bounded;
mod clients;
mod configuration;
mod demo;
mod dialogues;
mod golden;
mod hostile;
mod idle;
mod kills;
mod maildrops;
mod modes;
mod operator;
mod power_loss;
mod reports;
mod slow;
mod trouble;

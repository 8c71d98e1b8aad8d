//! Fuzz targets: what must hold for any octets that strangers, files and logs may hold.
//!
//! Each target is a function over the octets that libFuzzer invents; it panics when something does not hold, and so it is its own
//! proof. Besides "no panic, no endless loop, no big allocation" each compares with something: a reference that reads slowly and
//! plainly, the same input in other pieces, or the value written and read again. `tests/fuzz/run` runs them with coverage;
//! `tests/seeds.rs` runs them over the seeds as ordinary tests. See docs/TESTING.md.
//!
//! # Layout
//! * [`input`]: what targets make of their octets
//! * [`memory`]: allocations, counted and limited
//! * the targets, by the bytes they are about: [`lines`], [`smtp_command`], [`smtp_parameters`], [`smtp_content`],
//!   [`smtp_session`], [`proxy`], [`mail_path`], [`mail_headers`], [`ldif`], [`configuration`],
//!   [`pop3`], [`wal`], [`convert`], [`machines`]

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod input;
pub mod memory;

pub mod configuration;
pub mod convert;
pub mod ldif;
pub mod lines;
pub mod machines;
pub mod mail_headers;
pub mod mail_path;
pub mod pop3;
pub mod proxy;
pub mod smtp_command;
pub mod smtp_content;
pub mod smtp_parameters;
pub mod smtp_session;
pub mod wal;

/// The binary's configuration, which is in no library.
#[allow(dead_code)]
#[path = "../../../services/hikyaku/src"]
mod hikyaku {
    pub(crate) mod config;
}
use hikyaku::config;

/// A target's name, which is that of its program and of its folder of seeds, and what it does with octets.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 14] = [
    ("configuration", configuration::run),
    ("convert", convert::run),
    ("ldif", ldif::run),
    ("lines", lines::run),
    ("machines", machines::run),
    ("mail_headers", mail_headers::run),
    ("mail_path", mail_path::run),
    ("pop3", pop3::run),
    ("proxy", proxy::run),
    ("smtp_command", smtp_command::run),
    ("smtp_content", smtp_content::run),
    ("smtp_parameters", smtp_parameters::run),
    ("smtp_session", smtp_session::run),
    ("wal", wal::run),
];

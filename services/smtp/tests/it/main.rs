//! Dialogues with the server over in-memory streams, time paused. The edge is played by [`support::Edge`].
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

mod chunks;
mod command;
mod content;
mod dialogue;
mod limits;
mod log;
mod model;
mod pipelining;
mod reports;
mod support;
mod tls;
mod waiting;

//! The role over the simulated log, the runtime and the memory engine, asked through its own gRPC clients.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod backup;
mod cluster;
mod delivery;
mod maildrop;

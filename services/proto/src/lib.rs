//! The wire: generated types, their conversions from and to the trade's vocabulary, and the in-process transport.
//!
//! Roles never import each other; they meet here and in the log. Strings and bytes become types in [`convert`] and nowhere
//! else, so a value that reaches a state machine is valid.
//!
//! # Layout
//! * [`v1`]: generated from `proto/hikyaku/v1/*.proto`
//! * [`convert`]: fallible conversions
//! * [`transport`]: one client type over the network and in the same process

pub mod convert;
pub mod transport;

/// Generated from `proto/hikyaku/v1/*.proto`; each message is documented there.
#[allow(
    missing_docs,
    clippy::all,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::wildcard_imports
)]
pub mod v1 {
    tonic::include_proto!("hikyaku.v1");
}

/// The newest record version this build writes and applies.
pub const VERSION: u32 = 1;

/// Octets of content up to which a body travels inside records; a larger one is in the blob store.
pub const INLINE_BYTES_MAX: usize = 128 * 1024;

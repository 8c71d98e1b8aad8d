//! Power cuts without cutting power: what happened to a directory is read from strace's output, and written again as a cut could
//! have left it. For tests only: the store's own and those of the whole product.
//!
//! # Layout
//! * [`record`]: all that happened to a directory, in order
//! * [`rebuild`]: the same directory after a cut at some moment, by what a disk may forget

#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod rebuild;
pub mod record;

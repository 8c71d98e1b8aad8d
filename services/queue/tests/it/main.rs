//! The queue's machine as others use it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod memory;

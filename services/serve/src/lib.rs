//! Running a server: tasks that drain, listeners, TLS material.
//!
//! # Layout
//! * [`tasks`]: every task a node runs, so that it can drain or die as a whole
//! * [`listen`]: accept loops with limits
//! * [`tls`]: certificates from files

pub mod listen;
pub mod tasks;
pub mod tls;

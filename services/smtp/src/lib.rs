//! SMTP (RFC 5321): what a client may say, in which order, and what we answer.
//!
//! This room knows the protocol and nothing else. Who a recipient is, whether there is room for a mail and when it is
//! durable is decided behind [`backend::Backend`], which the edge implements. A content that reaches a backend has only
//! CRLF line ends, no NUL, no dot stuffing; the mail goes from there to the log.
//!
//! # Layout, in the order a byte meets them
//! * [`backend`]: the seam to the edge, and what it learns about the peer
//! * [`options`]: limits and deadlines
//! * [`proxy`]: the client's address from a load balancer
//! * [`command`]: commands out of lines, which [`hikyaku_serve::line`] has cut out of bytes
//! * [`parameters`]: what MAIL and RCPT may ask for
//! * [`session`]: which command is legal now, without I/O
//! * [`content`]: the content between 354 and the final dot, without I/O
//! * `quoted`: what the log says of a line that was refused
//! * `wire`, `pace`: the stream's buffers, and how slow it may be
//! * [`server`]: the loop that ties them to a connection
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod backend;
pub mod command;
pub mod content;
pub mod options;
mod pace;
pub mod parameters;
pub mod proxy;
mod quoted;
pub mod server;
pub mod session;
mod wire;

//! POP3 dialogues against a peer double of Home and mailbox shards: RFC 1939, 2449, 2595, 3206, 5034, 6856.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    missing_docs
)]

mod auth;
mod client;
mod content;
mod dialogues;
mod ends;
mod large;
mod logins;
mod measure;
mod support;
mod throttle;
mod tls;

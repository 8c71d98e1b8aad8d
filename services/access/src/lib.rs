//! The access role: users read their mail. POP3 now; IMAP will be its neighbour here.
//!
//! Stateless: a session holds a list of UIDs and nothing else. Whose mail it is says the directory, which shard owns it says
//! Home, and the mail comes from that mailbox shard over gRPC. It refuses passwords in the clear unless a listener allows
//! them, and never reports "don't know" as "wrong" or "empty". The mail leaves from here to the user's program: the end of its way.
//!
//! # Layout
//! * [`pop3`]: RFC 1939 with CAPA (2449), STLS (2595), AUTH PLAIN (5034), UTF8 (6856), response codes (2449, 3206)
//! * [`mailboxes`]: the questions to Home and to mailbox shards, with deadlines, redirects and repeats
//! * [`memory`]: what all open maildrops may take of it
//! * `truncated`: INBOXes with more mails than are shown

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod mailboxes;
pub mod memory;
pub mod pop3;
mod truncated;

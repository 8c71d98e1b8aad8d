//! POP3: RFC 1939, with CAPA (RFC 2449), STLS (RFC 2595), AUTH PLAIN (RFC 5034), UTF8 (RFC 6856) and the response codes of
//! RFC 2449 and 3206.
//!
//! A session is a snapshot of the INBOX without a lock: two sessions may read at once, and a mail that the other one has
//! deleted meanwhile is an error at RETR. Deletions become one Expunge at QUIT, and `+OK` is said only when it is applied; a
//! connection that ends otherwise deletes nothing. APOP is refused: it needs passwords the server can read. Mail is sent as it was
//! received, in UTF-8 or not, whether or not the client has said UTF8. A source that guesses passwords is slowed down and then
//! not heard, see [`hikyaku_directory::throttle`].
//!
//! # Layout
//! * [`options`]: limits and deadlines
//! * [`server`]: one connection, TLS around it, what is logged about it
//! * `conversation`: what is said in it: lines in, actions done, replies out
//! * [`command`]: the grammar of command lines, which [`hikyaku_serve::line`] has cut out of the byte stream
//! * [`sasl`]: what an answer to AUTH PLAIN says
//! * `session`: the states and what each command means in them; no I/O
//! * [`maildrop`]: what a session sees: numbers, sizes, unique ids, deletion marks
//! * [`unique_id`]: what UIDL says, kept small
//! * [`reply`]: single-line replies and response codes
//! * [`multiline`]: message content as a multi-line reply: dot-stuffing, TOP
//! * `wire`: bounded buffers around the stream, with deadlines

pub mod options;
pub mod server;

pub mod command;
mod conversation;
pub mod maildrop;
pub mod multiline;
pub mod reply;
pub mod sasl;
mod session;
pub mod unique_id;
mod wire;

//! What a postmaster reads: five kinds of line, one function each, and nobody else writes them.
//!
//! `connected`, `rejected`, `queued`, `attempted`, `settled`. Every line about a mail carries its queue id, every line about a
//! recipient its address; fields that are not known are empty. The target is `maillog`, so that it can be kept apart.

use std::net::SocketAddr;

use crate::id::MessageId;
use crate::reply::Reply;

/// A peer has been greeted, or refused instead.
pub fn connected(session: u64, peer: SocketAddr, listener: &str, reply: Option<&Reply>) {
    let reply = reply.map(ToString::to_string).unwrap_or_default();
    tracing::info!(target: "maillog", session, %peer, listener, reply, "connected");
}

/// Foreign octets fit for a line: printable ASCII as it is but for the backslash, all others as
/// `\xHH`; at most `bytes_max` of them, and then how many there were.
pub fn escaped(octets: &[u8], bytes_max: usize) -> String {
    let mut text = String::new();
    for &octet in octets.iter().take(bytes_max) {
        match octet {
            b'\\' => text.push_str("\\\\"),
            b' '..=b'~' => text.push(char::from(octet)),
            _ => text.push_str(&format!("\\x{octet:02x}")),
        }
    }
    if octets.len() > bytes_max {
        text.push_str(&format!("... of {} octets", octets.len()));
    }
    text
}

/// A refusal, and why.
#[derive(Clone, Copy, Debug)]
pub struct Rejected<'a> {
    /// The SMTP session.
    pub session: u64,
    /// The client.
    pub peer: SocketAddr,
    /// `connect`, `command`, `mail`, `rcpt`, `data`.
    pub phase: &'a str,
    /// The queue id, where one was given out already.
    pub queue_id: Option<MessageId>,
    /// The reverse-path, if it came so far.
    pub reverse_path: &'a str,
    /// The recipient, if one was refused.
    pub recipient: &'a str,
    /// Whose customer that recipient is, if the directory said so.
    pub tenant: &'a str,
    /// What the peer heard.
    pub reply: &'a Reply,
    /// What the peer did not hear.
    pub reason: &'a str,
}

/// Something was refused.
pub fn rejected(line: Rejected<'_>) {
    tracing::info!(
        target: "maillog",
        session = line.session,
        peer = %line.peer,
        phase = line.phase,
        queue_id = line.queue_id.map(|id| id.to_string()).unwrap_or_default(),
        reverse_path = line.reverse_path,
        recipient = line.recipient,
        tenant = line.tenant,
        reply = %line.reply,
        reason = line.reason,
        "rejected"
    );
}

/// A mail that is durable now.
#[derive(Clone, Copy, Debug)]
pub struct Queued<'a> {
    /// Its queue id.
    pub queue_id: MessageId,
    /// The SMTP session; 0 for a mail of our own.
    pub session: u64,
    /// The tenant it counts for.
    pub tenant: &'a str,
    /// The reverse-path without brackets.
    pub reverse_path: &'a str,
    /// How many recipients.
    pub recipients: usize,
    /// Octets of content.
    pub size: u64,
    /// The mail it reports about, for a bounce.
    pub reports_on: Option<MessageId>,
}

/// A mail is durable.
pub fn queued(line: Queued<'_>) {
    tracing::info!(
        target: "maillog",
        queue_id = %line.queue_id,
        session = line.session,
        tenant = line.tenant,
        reverse_path = line.reverse_path,
        recipients = line.recipients,
        size = line.size,
        reports_on = line.reports_on.map(|id| id.to_string()).unwrap_or_default(),
        "queued"
    );
}

/// What came of trying a recipient.
#[derive(Clone, Copy, Debug)]
pub struct Attempted<'a> {
    /// The mail.
    pub queue_id: MessageId,
    /// The recipient's number in it.
    pub number: u32,
    /// The recipient's address.
    pub recipient: &'a str,
    /// The recipient's tenant.
    pub tenant: &'a str,
    /// Where it was tried: a mailbox shard, the directory.
    pub at: &'a str,
    /// What was answered.
    pub reply: &'a Reply,
    /// What is behind the answer.
    pub reason: &'a str,
    /// Unix milliseconds of the next attempt; `None` if there is none.
    pub next_attempt_ms: Option<u64>,
}

/// A recipient was tried and is not settled yet.
pub fn attempted(line: Attempted<'_>) {
    tracing::info!(
        target: "maillog",
        queue_id = %line.queue_id,
        number = line.number,
        recipient = line.recipient,
        tenant = line.tenant,
        at = line.at,
        reply = %line.reply,
        reason = line.reason,
        next_attempt = line.next_attempt_ms.map(crate::date::rfc5322).unwrap_or_default(),
        "attempted"
    );
}

/// How a recipient ended.
#[derive(Clone, Copy, Debug)]
pub struct Settled<'a> {
    /// The mail.
    pub queue_id: MessageId,
    /// The recipient's number in it.
    pub number: u32,
    /// The recipient's address.
    pub recipient: &'a str,
    /// The recipient's tenant.
    pub tenant: &'a str,
    /// `delivered`, `expanded`, `bounced`, `held`, `deleted`, ...
    pub outcome: &'a str,
    /// Where it is now: mailbox shard and account, or the DSN's queue id.
    pub at: &'a str,
    /// The reply behind it.
    pub reply: Option<&'a Reply>,
    /// What is behind the reply.
    pub reason: &'a str,
}

/// A recipient has ended, or waits for an operator.
pub fn settled(line: Settled<'_>) {
    tracing::info!(
        target: "maillog",
        queue_id = %line.queue_id,
        number = line.number,
        recipient = line.recipient,
        tenant = line.tenant,
        outcome = line.outcome,
        at = line.at,
        reply = line.reply.map(ToString::to_string).unwrap_or_default(),
        reason = line.reason,
        "settled"
    );
}

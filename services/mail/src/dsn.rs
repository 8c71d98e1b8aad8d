//! The text of a delivery status notification: multipart/report (RFC 6522) of some sentences for people, a
//! message/delivery-status part (RFC 3464) for programs, and the header of the mail it is about, or all of it (RFC 3461
//! section 4.3). For a mail that was sent with SMTPUTF8, or to an address that needs it, the parts are the ones of RFC 6533:
//! message/global-delivery-status and so on.
//!
//! Whatever a stranger wrote into an address, a reply or a header is cleaned, so that it cannot end a line.

use std::fmt::Write as _;

use crate::date;
use crate::id::MessageId;
use crate::reply::Reply;

mod quote;

use quote::{address_field, lines, original_recipient, quote};

/// Octets of the original header returned.
pub const HEADER_BYTES_MAX: usize = 64 * 1024;
/// Octets of a mail up to which all of it is returned where that was asked for; of a larger one only the header is.
pub const RETURNED_BYTES_MAX: usize = 64 * 1024;

/// What happened to recipients (RFC 3464 section 2.3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Given up.
    Failed,
    /// Not yet, and it goes on.
    Delayed,
    /// In a mailbox, or with a mailing list.
    Delivered,
    /// Sent on to several addresses, of which nothing more will be heard (RFC 3461 section 5.2.7.3).
    Expanded,
}

impl Action {
    /// The word of the Action field.
    pub fn word(self) -> &'static str {
        match self {
            Action::Failed => "failed",
            Action::Delayed => "delayed",
            Action::Delivered => "delivered",
            Action::Expanded => "expanded",
        }
    }

    /// The status of a recipient that no reply says more about.
    fn status(self) -> &'static str {
        match self {
            Action::Failed => "5.0.0",
            Action::Delayed => "4.0.0",
            Action::Delivered | Action::Expanded => "2.0.0",
        }
    }

    fn subject(self) -> &'static str {
        match self {
            Action::Failed => "Undelivered mail returned to sender",
            Action::Delayed => "Delayed mail, still being tried",
            Action::Delivered => "Mail delivered",
            Action::Expanded => "Mail sent on to several addresses",
        }
    }

    fn sentences(self) -> &'static str {
        match self {
            Action::Failed => {
                "A message you sent could not be delivered to the recipients below.\r\n\
                 It will not be tried again."
            }
            Action::Delayed => {
                "A message you sent could not be delivered yet to the recipients below.\r\n\
                 This is only a warning: it is still being tried, and you need not send it again."
            }
            Action::Delivered => {
                "A message you sent has been delivered to the recipients below, as you asked to be\r\ntold."
            }
            Action::Expanded => {
                "A message you sent has reached the recipients below, each of which stands for\r\n\
                 several addresses. It was sent on to all of them. You will hear of failures, if\r\n\
                 you asked for that, but of no further deliveries."
            }
        }
    }
}

/// A report about recipients of one mail to which the same happened.
#[derive(Clone, Debug)]
pub struct Report<'a> {
    /// What happened.
    pub action: Action,
    /// Our host name.
    pub reporting_mta: &'a str,
    /// Whom it goes to.
    pub to: &'a str,
    /// The report's own queue id.
    pub id: MessageId,
    /// The mail it is about.
    pub about: MessageId,
    /// Whether that mail was sent with SMTPUTF8 (RFC 6531), so that its sender understands reports outside ASCII.
    pub smtputf8: bool,
    /// ENVID of that mail (RFC 3461), decoded, or empty.
    pub envelope_id: &'a str,
    /// When that mail was accepted, Unix milliseconds.
    pub received_ms: u64,
    /// Now, Unix milliseconds.
    pub time_ms: u64,
    /// Until when it is tried, Unix milliseconds, for a delay.
    pub retry_until_ms: Option<u64>,
    /// To whom it happened.
    pub recipients: &'a [Recipient<'a>],
    /// What is returned of that mail.
    pub returned: Returned<'a>,
}

/// A recipient the report tells of.
#[derive(Clone, Debug)]
pub struct Recipient<'a> {
    /// The address to name.
    pub address: &'a str,
    /// ORCPT (RFC 3461) as given, decoded, with its address type, or empty.
    pub original_recipient: &'a str,
    /// Why, if there is a reply that says so.
    pub reply: Option<&'a Reply>,
    /// When it was last tried, Unix milliseconds.
    pub last_attempt_ms: Option<u64>,
}

/// What is returned of the mail that a report is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Returned<'a> {
    /// Its header, or what of it is at hand (see [`header_of`]); empty for nothing.
    Header(&'a [u8]),
    /// All of it.
    Message(&'a [u8]),
}

impl Report<'_> {
    /// The whole message, CRLF line ends.
    pub fn to_message(&self) -> Vec<u8> {
        let boundary = format!("=_{}", self.id);
        let people = self.notification();
        let status = self.delivery_status();
        let status_type = match self.is_international() {
            true => "message/global-delivery-status",
            false => "message/delivery-status",
        };
        let mut parts = format!(
            "--{boundary}\r\nContent-Type: text/plain; charset={}\r\n{}\r\n{people}",
            if people.is_ascii() {
                "us-ascii"
            } else {
                "utf-8"
            },
            encoding(people.as_bytes()),
        );
        let _ = write!(
            parts,
            "\r\n--{boundary}\r\nContent-Type: {status_type}\r\n{}\r\n{status}",
            encoding(status.as_bytes()),
        );
        let mut parts = parts.into_bytes();
        if let Some((returned_type, content)) = self.returned_part() {
            let head = format!(
                "\r\n--{boundary}\r\nContent-Type: {returned_type}\r\n{}\r\n",
                encoding(&content)
            );
            parts.extend_from_slice(head.as_bytes());
            parts.extend_from_slice(&content);
        }
        parts.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
        let mut message = self.header(&boundary, &parts).into_bytes();
        message.append(&mut parts);
        message
    }

    /// Whether it needs SMTPUTF8 to travel.
    pub fn is_international(&self) -> bool {
        self.smtputf8 || !self.to.is_ascii()
    }

    fn header(&self, boundary: &str, parts: &[u8]) -> String {
        let host = quote(self.reporting_mta, false);
        format!(
            "From: Mail Delivery System <MAILER-DAEMON@{host}>\r\n\
             To: {}\r\n\
             Subject: {}\r\n\
             Date: {}\r\n\
             Message-ID: <{}@{host}>\r\n\
             Auto-Submitted: auto-replied\r\n\
             MIME-Version: 1.0\r\n\
             Content-Type: multipart/report; report-type=delivery-status;\r\n\
             \tboundary=\"{boundary}\"\r\n\
             {}\r\n",
            quote(self.to, true),
            self.action.subject(),
            date::rfc5322(self.time_ms),
            self.id,
            encoding(parts),
        )
    }

    fn notification(&self) -> String {
        let international = self.is_international();
        let mut text = format!(
            "This is the mail system at {}.\r\n\r\n{}\r\nIts queue id was {}.\r\n",
            quote(self.reporting_mta, false),
            self.action.sentences(),
            self.about
        );
        if let Some(until_ms) = self.retry_until_ms {
            let _ = write!(text, "It is tried until {}.\r\n", date::rfc5322(until_ms));
        }
        for recipient in self.recipients {
            let address = quote(recipient.address, international);
            match recipient.reply {
                Some(reply) => {
                    let reply = quote(&reply.to_string(), international);
                    let _ = write!(text, "\r\n<{address}>:\r\n    {reply}\r\n");
                }
                None => {
                    let _ = write!(text, "\r\n<{address}>\r\n");
                }
            }
        }
        text
    }

    fn delivery_status(&self) -> String {
        let international = self.is_international();
        let mut text = String::new();
        if !self.envelope_id.is_empty() {
            let envelope_id = quote(self.envelope_id, false);
            let _ = write!(text, "Original-Envelope-Id: {envelope_id}\r\n");
        }
        let _ = write!(
            text,
            "Reporting-MTA: dns; {}\r\nArrival-Date: {}\r\n",
            quote(self.reporting_mta, false),
            date::rfc5322(self.received_ms)
        );
        for recipient in self.recipients {
            text.push_str("\r\n");
            if !recipient.original_recipient.is_empty() {
                let original = original_recipient(recipient.original_recipient, international);
                let _ = write!(text, "Original-Recipient: {original}\r\n");
            }
            // a class that is not permanent stays as it is: the mail expired on it
            let enhanced = recipient.reply.and_then(|reply| reply.enhanced);
            let status = match enhanced {
                Some(enhanced) => enhanced.to_string(),
                None => self.action.status().to_owned(),
            };
            let _ = write!(
                text,
                "Final-Recipient: {}\r\nAction: {}\r\nStatus: {status}\r\n",
                address_field(recipient.address, international),
                self.action.word(),
            );
            if let Some(reply) = recipient.reply {
                let reply = quote(&reply.to_string(), international);
                let _ = write!(text, "Diagnostic-Code: smtp; {reply}\r\n");
            }
            if let Some(at_ms) = recipient.last_attempt_ms {
                let _ = write!(text, "Last-Attempt-Date: {}\r\n", date::rfc5322(at_ms));
            }
            if let Some(until_ms) = self.retry_until_ms {
                let _ = write!(text, "Will-Retry-Until: {}\r\n", date::rfc5322(until_ms));
            }
        }
        text
    }

    /// The last part's type and content, if anything is returned.
    fn returned_part(&self) -> Option<(&'static str, Vec<u8>)> {
        let international = self.is_international();
        let (returned_type, content) = match self.returned {
            Returned::Header(header) => (
                match international {
                    true => "message/global-headers",
                    false => "text/rfc822-headers",
                },
                lines(header_of(header), false),
            ),
            Returned::Message(message) => (
                match international {
                    true => "message/global",
                    false => "message/rfc822",
                },
                lines(message, true),
            ),
        };
        (!content.is_empty()).then_some((returned_type, content))
    }
}

/// The Content-Transfer-Encoding field of what is not ASCII; RFC 2045 section 6.1 makes 7bit the default.
fn encoding(content: &[u8]) -> &'static str {
    match content.is_ascii() {
        true => "",
        false => "Content-Transfer-Encoding: 8bit\r\n",
    }
}

/// The header section at the beginning of `content`, whole lines only and at most [`HEADER_BYTES_MAX`] octets.
pub fn header_of(content: &[u8]) -> &[u8] {
    let end = match content.windows(4).position(|four| four == b"\r\n\r\n") {
        Some(blank) => blank + 2,
        None => content.len(),
    };
    if end <= HEADER_BYTES_MAX {
        return &content[..end];
    }
    let cut = &content[..HEADER_BYTES_MAX];
    let whole = cut.windows(2).rposition(|two| two == b"\r\n");
    &content[..whole.map_or(0, |at| at + 2)]
}

#[cfg(test)]
mod tests;

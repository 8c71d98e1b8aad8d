//! The text of a delivery status notification: multipart/report (RFC 6522) of a sentence for people, a
//! message/delivery-status part (RFC 3464) for programs, and the header of the mail it is about.
//!
//! Only failures are reported. Whatever a stranger wrote into an address or a reply is cleaned, so that it cannot end a line.

use std::fmt::Write as _;

use crate::date;
use crate::id::MessageId;
use crate::reply::Reply;

/// Octets of the original header returned.
pub const HEADER_BYTES_MAX: usize = 64 * 1024;
/// Octets of one address or reply quoted.
const QUOTE_BYTES_MAX: usize = 512;

/// A report about recipients that failed for good.
#[derive(Clone, Debug)]
pub struct Report<'a> {
    /// Our host name.
    pub reporting_mta: &'a str,
    /// Whom it goes to.
    pub to: &'a str,
    /// The report's own queue id.
    pub id: MessageId,
    /// The mail it is about.
    pub about: MessageId,
    /// ENVID of that mail (RFC 3461), or empty.
    pub envelope_id: &'a str,
    /// When that mail was accepted, Unix milliseconds.
    pub received_ms: u64,
    /// Now, Unix milliseconds.
    pub time_ms: u64,
    /// Who did not get it.
    pub failures: &'a [Failure<'a>],
    /// The header of that mail, or what of it is at hand; see [`header_of`].
    pub original_header: &'a [u8],
}

/// A recipient that failed.
#[derive(Clone, Debug)]
pub struct Failure<'a> {
    /// The address to name.
    pub address: &'a str,
    /// ORCPT (RFC 3461) as given, with its address type, or empty.
    pub original_recipient: &'a str,
    /// Why.
    pub reply: &'a Reply,
    /// When it was last tried, Unix milliseconds.
    pub last_attempt_ms: u64,
}

impl Report<'_> {
    /// The whole message, CRLF line ends.
    pub fn to_message(&self) -> Vec<u8> {
        let boundary = format!("=_{}", self.id);
        let mut text = self.header(&boundary);
        let _ = write!(
            text,
            "--{boundary}\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\n{}",
            self.notification()
        );
        let _ = write!(
            text,
            "\r\n--{boundary}\r\nContent-Type: message/delivery-status\r\n\r\n{}",
            self.delivery_status()
        );
        let header = returned(self.original_header);
        if !header.is_empty() {
            let encoding = if header.is_ascii() { "7bit" } else { "8bit" };
            let _ = write!(
                text,
                "\r\n--{boundary}\r\nContent-Type: text/rfc822-headers\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n"
            );
        }
        let mut message = text.into_bytes();
        message.extend_from_slice(&header);
        message.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
        message
    }

    fn header(&self, boundary: &str) -> String {
        let host = quote(self.reporting_mta);
        format!(
            "From: Mail Delivery System <MAILER-DAEMON@{host}>\r\n\
             To: {}\r\n\
             Subject: Undelivered mail returned to sender\r\n\
             Date: {}\r\n\
             Message-ID: <{}@{host}>\r\n\
             Auto-Submitted: auto-replied\r\n\
             MIME-Version: 1.0\r\n\
             Content-Type: multipart/report; report-type=delivery-status;\r\n\
             \tboundary=\"{boundary}\"\r\n\
             \r\n",
            quote(self.to),
            date::rfc5322(self.time_ms),
            self.id,
        )
    }

    fn notification(&self) -> String {
        let mut text = format!(
            "This is the mail system at {}.\r\n\r\n\
             A message you sent could not be delivered to the recipients below.\r\n\
             It will not be tried again. Its queue id was {}.\r\n",
            quote(self.reporting_mta),
            self.about
        );
        for failure in self.failures {
            let _ = write!(
                text,
                "\r\n<{}>:\r\n    {}\r\n",
                quote(failure.address),
                quote(&failure.reply.to_string())
            );
        }
        text
    }

    fn delivery_status(&self) -> String {
        let mut text = String::new();
        if !self.envelope_id.is_empty() {
            let _ = write!(
                text,
                "Original-Envelope-Id: {}\r\n",
                quote(self.envelope_id)
            );
        }
        let _ = write!(
            text,
            "Reporting-MTA: dns; {}\r\nArrival-Date: {}\r\n",
            quote(self.reporting_mta),
            date::rfc5322(self.received_ms)
        );
        for failure in self.failures {
            text.push_str("\r\n");
            if !failure.original_recipient.is_empty() {
                let _ = write!(
                    text,
                    "Original-Recipient: {}\r\n",
                    quote(failure.original_recipient)
                );
            }
            // a class that is not permanent stays as it is: the mail expired on it
            let status = match failure.reply.enhanced {
                Some(enhanced) => enhanced.to_string(),
                None => "5.0.0".to_owned(),
            };
            let _ = write!(
                text,
                "Final-Recipient: rfc822; {}\r\n\
                 Action: failed\r\n\
                 Status: {status}\r\n\
                 Diagnostic-Code: smtp; {}\r\n\
                 Last-Attempt-Date: {}\r\n",
                quote(failure.address),
                quote(&failure.reply.to_string()),
                date::rfc5322(failure.last_attempt_ms)
            );
        }
        text
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

/// A header ready to be a body part: every line ends in CRLF and in nothing else.
fn returned(header: &[u8]) -> Vec<u8> {
    let mut lines = Vec::with_capacity(header.len());
    for line in header_of(header).split(|byte| *byte == b'\n') {
        if line.is_empty() || line == b"\r" {
            continue;
        }
        lines.extend(line.iter().filter(|byte| !matches!(byte, b'\r' | 0)));
        lines.extend_from_slice(b"\r\n");
    }
    lines
}

/// Foreign text on one line of printable ASCII.
fn quote(text: &str) -> String {
    text.bytes()
        .take(QUOTE_BYTES_MAX)
        .map(|byte| {
            if (b' '..=b'~').contains(&byte) {
                char::from(byte)
            } else {
                '?'
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Failure, HEADER_BYTES_MAX, Report, header_of};
    use crate::id::{Class, MessageId, ShardId};
    use crate::reply::Reply;

    fn report(address: &str, header: &[u8]) -> String {
        let shard = ShardId::new(Class::Incoming, 0);
        let reply = Reply::new(550, (5, 1, 1), "no such user here");
        let failures = [Failure {
            address,
            original_recipient: "rfc822;list@example.jp",
            reply: &reply,
            last_attempt_ms: 1_795_498_390_123,
        }];
        let report = Report {
            reporting_mta: "mx.example.jp",
            to: "sender@example.com",
            id: MessageId::new(shard, 2, 0xd),
            about: MessageId::new(shard, 1, 0xa),
            envelope_id: "E+1",
            received_ms: 1_795_498_000_000,
            time_ms: 1_795_498_390_123,
            failures: &failures,
            original_header: header,
        };
        String::from_utf8(report.to_message()).unwrap()
    }

    #[test]
    fn reads_as_the_rfcs_have_it() {
        let text = report("bob@example.jp", b"Subject: hi\r\nFrom: a@b\r\n\r\nbody");
        let boundary = "=_0000000000000002000000000000000d";
        for part in [
            "From: Mail Delivery System <MAILER-DAEMON@mx.example.jp>\r\nTo: sender@example.com\r\n",
            "Content-Type: multipart/report; report-type=delivery-status;\r\n\tboundary=\"",
            "Auto-Submitted: auto-replied\r\n",
            "\r\n<bob@example.jp>:\r\n    550 5.1.1 no such user here\r\n",
            "Content-Type: message/delivery-status\r\n\r\nOriginal-Envelope-Id: E+1\r\nReporting-MTA: dns; mx.example.jp\r\n",
            "\r\n\r\nOriginal-Recipient: rfc822;list@example.jp\r\nFinal-Recipient: rfc822; bob@example.jp\r\nAction: failed\r\nStatus: 5.1.1\r\nDiagnostic-Code: smtp; 550 5.1.1 no such user here\r\n",
            "Content-Type: text/rfc822-headers\r\nContent-Transfer-Encoding: 7bit\r\n\r\nSubject: hi\r\nFrom: a@b\r\n\r\n--=_",
        ] {
            assert!(text.contains(part), "{part:?} not in {text}");
        }
        assert_eq!(text.matches(&format!("--{boundary}\r\n")).count(), 3);
        assert!(text.ends_with(&format!("\r\n--{boundary}--\r\n")));
        assert!(!text.contains("body"));
        assert_eq!(text.matches('\n').count(), text.matches("\r\n").count());
    }

    #[test]
    fn foreign_text_cannot_break_out() {
        let text = report("a\r\n\r\nX-Forged: 1@x", b"Subject: a\nX: b\rc\r\n\r\n");
        assert!(!text.contains("\nX-Forged"), "{text}");
        assert!(text.contains("Subject: a\r\nX: bc\r\n"));
        let without = report("bob@example.jp", b"");
        assert!(!without.contains("rfc822-headers"));
    }

    #[test]
    fn headers_are_cut_at_a_line() {
        let long = b"X-Filler: 0123456789\r\n".repeat(10_000);
        let cut = header_of(&long);
        assert!(cut.len() <= HEADER_BYTES_MAX && cut.ends_with(b"9\r\n"));
        assert_eq!(header_of(b"A: b\r\n\r\nbody"), b"A: b\r\n");
        assert_eq!(header_of(b"A: b"), b"A: b");
    }
}

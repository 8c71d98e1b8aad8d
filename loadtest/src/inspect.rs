//! What a retrieved mail is: a copy of an attempt, a DSN about one, or something this ledger did not send.
//!
//! It sees the mail line by line. Header fields that servers put in front (Return-Path, Delivered-To, Received) are set
//! aside; everything behind them must be, byte for byte, what was sent.

use crate::ledger::AttemptId;
use crate::message::{LEDGER_HEADER, LEDGER_LINE};

/// The header fields a server may put in front of a message.
const PREPENDED: [&str; 3] = ["return-path", "delivered-to", "received"];
/// The most final recipients read from one DSN.
const FAILED_MAX: usize = 1000;
/// The longest header field that is looked into.
const FIELD_MAX: usize = 8192;

/// A mail after its last line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mail {
    /// It carries an attempt's id.
    Copy {
        /// Which attempt.
        id: AttemptId,
        /// BLAKE3 of all behind the prepended fields.
        hash: blake3::Hash,
        /// What the Return-Path fields in front said, without angle brackets.
        return_paths: Vec<String>,
    },
    /// A delivery status notification that returns an attempt's header.
    Dsn {
        /// Which attempt.
        id: AttemptId,
        /// Final (or original) recipients with Action: failed.
        failed: Vec<String>,
    },
    /// Neither.
    Stranger,
}

/// Which part of the mail the next line belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Prepended,
    Header,
    Body,
}

/// Reads one mail.
#[derive(Debug)]
pub struct Inspector {
    part: Part,
    /// The field being read, folded lines joined.
    field: String,
    hasher: blake3::Hasher,
    return_paths: Vec<String>,
    id: Option<AttemptId>,
    is_report: bool,
    report: Report,
}

/// What a DSN's body says, as far as it was read.
#[derive(Debug, Default)]
struct Report {
    original: Option<String>,
    last: Option<String>,
    action_failed: bool,
    failed: Vec<String>,
    id: Option<AttemptId>,
}

impl Default for Inspector {
    fn default() -> Inspector {
        Inspector {
            part: Part::Prepended,
            field: String::new(),
            hasher: blake3::Hasher::new(),
            return_paths: Vec::new(),
            id: None,
            is_report: false,
            report: Report::default(),
        }
    }
}

impl Inspector {
    /// The next line, without CRLF.
    pub fn line(&mut self, line: &[u8]) {
        let folded = matches!(line.first(), Some(b' ' | b'\t'));
        if self.part == Part::Body {
            self.content(line);
            return self.body_line(line);
        }
        if folded {
            if self.part == Part::Header {
                self.content(line);
            }
            if self.field.len() < FIELD_MAX {
                self.field.push_str(&String::from_utf8_lossy(line));
            }
            return;
        }
        self.end_field();
        let text = String::from_utf8_lossy(line);
        let name = text
            .split(':')
            .next()
            .unwrap_or_default()
            .trim_end()
            .to_ascii_lowercase();
        if self.part == Part::Prepended && !PREPENDED.contains(&name.as_str()) {
            self.part = Part::Header;
        }
        if self.part == Part::Header {
            self.content(line);
        }
        if line.is_empty() {
            self.part = Part::Body;
            return;
        }
        self.field
            .push_str(&text[..text.floor_char_boundary(FIELD_MAX)]);
    }

    /// What it was.
    pub fn finish(mut self) -> Mail {
        self.end_field();
        if self.is_report {
            self.report.end_recipient();
            return match self.report.id {
                Some(id) => Mail::Dsn {
                    id,
                    failed: self.report.failed,
                },
                None => Mail::Stranger,
            };
        }
        match self.id {
            Some(id) => Mail::Copy {
                id,
                hash: self.hasher.finalize(),
                return_paths: self.return_paths,
            },
            None => Mail::Stranger,
        }
    }

    fn content(&mut self, line: &[u8]) {
        self.hasher.update(line);
        self.hasher.update(b"\r\n");
    }

    fn end_field(&mut self) {
        let field = std::mem::take(&mut self.field);
        let Some((name, value)) = field.split_once(':') else {
            return;
        };
        let value = value.trim();
        match name.trim_end().to_ascii_lowercase().as_str() {
            "return-path" if self.part == Part::Prepended => {
                self.return_paths
                    .push(value.trim_matches(['<', '>']).to_owned());
            }
            "content-type" => {
                let value = value.to_ascii_lowercase();
                self.is_report =
                    value.starts_with("multipart/report") && value.contains("delivery-status");
            }
            _ if name.eq_ignore_ascii_case(LEDGER_HEADER) => self.id = value.parse().ok(),
            _ => {}
        }
    }

    fn body_line(&mut self, line: &[u8]) {
        if !self.is_report {
            if self.id.is_none()
                && let Some(id) = line.strip_prefix(LEDGER_LINE.as_bytes())
            {
                self.id = std::str::from_utf8(id).ok().and_then(|id| id.parse().ok());
            }
            return;
        }
        if line.is_empty() {
            return self.report.end_recipient();
        }
        if line.len() <= FIELD_MAX
            && let Ok(text) = std::str::from_utf8(line)
            && let Some((name, value)) = text.split_once(':')
        {
            self.report.field(name.trim_end(), value.trim());
        }
    }
}

impl Report {
    /// A field of the delivery-status part (RFC 3464 section 2.3) or of the returned header.
    fn field(&mut self, name: &str, value: &str) {
        let address = || {
            value
                .split_once(';')
                .map_or(value, |(_, address)| address)
                .trim()
                .to_owned()
        };
        match name.to_ascii_lowercase().as_str() {
            "original-recipient" => self.original = Some(address()),
            "final-recipient" => self.last = Some(address()),
            "action" => self.action_failed = value.eq_ignore_ascii_case("failed"),
            _ if name.eq_ignore_ascii_case(LEDGER_HEADER) && self.id.is_none() => {
                self.id = value.parse().ok()
            }
            _ => {}
        }
    }

    fn end_recipient(&mut self) {
        let (original, last) = (self.original.take(), self.last.take());
        if let Some(address) = original.or(last)
            && self.action_failed
            && self.failed.len() < FAILED_MAX
        {
            self.failed.push(address);
        }
        self.action_failed = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "000102030405060708090a0b0c0d0e0f";

    fn read(text: &str) -> Mail {
        let mut inspector = Inspector::default();
        for line in text.split_terminator("\r\n") {
            inspector.line(line.as_bytes());
        }
        inspector.finish()
    }

    #[test]
    fn prepended_fields_are_set_aside_and_the_rest_is_hashed() {
        let sent = format!(
            "X-Ledger: {ID}\r\nSubject: a\r\n b\r\nReceived: inner\r\n\r\nLedger-Id: {ID}\r\n.\r\nx\r\n"
        );
        let front =
            "Return-Path: <a@b>\r\nDelivered-To: c@d\r\nReceived: from x\r\n\tby y;\r\n z\r\n";
        let expected = Mail::Copy {
            id: ID.parse().unwrap(),
            hash: blake3::hash(sent.as_bytes()),
            return_paths: vec!["a@b".to_owned()],
        };
        assert_eq!(read(&format!("{front}{sent}")), expected);
        let changed = sent.replace("\r\nx\r\n", "\r\ny\r\n");
        assert_ne!(read(&format!("{front}{changed}")), expected);
        let added = format!("{front}X-Spam: no\r\n{sent}");
        assert_ne!(
            read(&added),
            expected,
            "an unknown field in front is a change"
        );
    }

    #[test]
    fn the_id_in_the_body_serves_when_the_header_is_gone() {
        let mail = read(&format!("Subject: a\r\n\r\nLedger-Id: {ID}\r\n"));
        assert!(matches!(mail, Mail::Copy { id, .. } if id == ID.parse().unwrap()));
        assert_eq!(read("Subject: a\r\n\r\nhello\r\n"), Mail::Stranger);
        assert_eq!(read(""), Mail::Stranger);
    }

    #[test]
    fn a_dsn_counts_for_its_failed_recipients_only() {
        let dsn = format!(
            "Return-Path: <>\r\nContent-Type: multipart/report;\r\n report-type=delivery-status; boundary=b\r\n\r\n\
             --b\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; m\r\n\r\n\
             Final-Recipient: rfc822; one@d\r\nAction: failed\r\nStatus: 5.2.2\r\n\r\n\
             Original-Recipient: rfc822;two@d\r\nFinal-Recipient: rfc822; other@d\r\nAction: failed\r\n\r\n\
             Final-Recipient: rfc822; three@d\r\nAction: delayed\r\n\r\n\
             --b\r\nContent-Type: text/rfc822-headers\r\n\r\nX-Ledger: {ID}\r\n\r\n--b--\r\n"
        );
        let failed = vec!["one@d".to_owned(), "two@d".to_owned()];
        assert_eq!(
            read(&dsn),
            Mail::Dsn {
                id: ID.parse().unwrap(),
                failed
            }
        );
    }
}

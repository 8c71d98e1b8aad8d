//! What a server answers: a reply code (RFC 5321 section 4.2), an enhanced status code (RFC 3463), and text.

use std::fmt;

use crate::id::MessageId;

/// An enhanced status code, `class.subject.detail` (RFC 3463 section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EnhancedStatusCode {
    /// 2 success, 4 persistent transient failure, 5 permanent failure.
    pub class: u8,
    /// What the code is about: addressing, mailbox, system, network, protocol, content, policy.
    pub subject: u16,
    /// The condition.
    pub detail: u16,
}

impl EnhancedStatusCode {
    /// The code `class.subject.detail`.
    pub const fn new(class: u8, subject: u16, detail: u16) -> EnhancedStatusCode {
        EnhancedStatusCode {
            class,
            subject,
            detail,
        }
    }

    /// The code written in `text`, e.g. `4.2.2`. A number with a sign or a leading zero is none (RFC 3463 section 2), so that a
    /// code has one spelling.
    pub fn parse(text: &str) -> Option<EnhancedStatusCode> {
        let mut parts = text.split('.');
        let class = match parts.next()? {
            "2" => 2,
            "4" => 4,
            "5" => 5,
            _ => return None,
        };
        let subject = sub_code(parts.next()?)?;
        let detail = sub_code(parts.next()?)?;
        let ends = parts.next().is_none();
        ends.then_some(EnhancedStatusCode {
            class,
            subject,
            detail,
        })
    }
}

/// One to three digits without a leading zero.
fn sub_code(text: &str) -> Option<u16> {
    let digits = (1..=3).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    let leading_zero = text.len() > 1 && text.starts_with('0');
    if !digits || leading_zero {
        return None;
    }
    text.parse().ok()
}

impl fmt::Display for EnhancedStatusCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.class, self.subject, self.detail)
    }
}

/// One answer. The text is for the peer: generic, ASCII, one line, never a host name, a DN or a policy's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Three digits.
    pub code: u16,
    /// The RFC 3463 code; `None` where RFC 2034 asks for none (greeting, EHLO, 354).
    pub enhanced: Option<EnhancedStatusCode>,
    /// The text after the codes.
    pub text: String,
}

impl Reply {
    /// A reply with an enhanced status code `(class, subject, detail)`.
    pub fn new(
        code: u16,
        (class, subject, detail): (u8, u16, u16),
        text: impl Into<String>,
    ) -> Reply {
        Reply {
            code,
            enhanced: Some(EnhancedStatusCode::new(class, subject, detail)),
            text: text.into(),
        }
    }

    /// A reply without an enhanced status code.
    pub fn bare(code: u16, text: impl Into<String>) -> Reply {
        Reply {
            code,
            enhanced: None,
            text: text.into(),
        }
    }

    /// True for 2yz and 3yz.
    pub fn is_positive(&self) -> bool {
        self.code < 400
    }

    /// True for 5yz: trying again the same way will not help.
    pub fn is_permanent(&self) -> bool {
        self.code >= 500
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.enhanced {
            Some(enhanced) => write!(f, "{} {} {}", self.code, enhanced, self.text),
            None => write!(f, "{} {}", self.code, self.text),
        }
    }
}

/// A refusal: what the peer hears, and what only the log says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// For the peer.
    pub reply: Reply,
    /// For the log; empty where the reply says it all.
    pub reason: String,
    /// For the log: whose customer the refused recipient is; empty where that is not known.
    pub tenant: String,
    /// For the log: who sends, where the refusal is about a recipient or the content.
    pub reverse_path: String,
    /// For the log: the queue id that the mail would have had, where the refusal is about its content.
    pub queue_id: Option<MessageId>,
    /// For the log: whom the mail was for, where the refusal is about its content.
    pub recipients: String,
}

impl Rejection {
    /// `reply`, because of `reason`.
    pub fn new(reply: Reply, reason: impl Into<String>) -> Rejection {
        Rejection {
            reply,
            reason: reason.into(),
            tenant: String::new(),
            reverse_path: String::new(),
            queue_id: None,
            recipients: String::new(),
        }
    }

    /// The same, about a recipient of `tenant`.
    #[must_use]
    pub fn of_tenant(mut self, tenant: &str) -> Rejection {
        tenant.clone_into(&mut self.tenant);
        self
    }

    /// The same, about a mail from `reverse_path`.
    #[must_use]
    pub fn from_sender(mut self, reverse_path: &str) -> Rejection {
        reverse_path.clone_into(&mut self.reverse_path);
        self
    }

    /// The same, about the content of the mail `queue_id` for `recipients`.
    #[must_use]
    pub fn of_mail(mut self, queue_id: MessageId, recipients: String) -> Rejection {
        self.queue_id = Some(queue_id);
        self.recipients = recipients;
        self
    }
}

impl From<Reply> for Rejection {
    fn from(reply: Reply) -> Rejection {
        Rejection::new(reply, String::new())
    }
}

#[cfg(test)]
mod tests {
    use super::{EnhancedStatusCode, Reply};

    #[test]
    fn replies_read_as_they_go_on_the_wire() {
        assert_eq!(
            Reply::new(550, (5, 1, 1), "no such mailbox").to_string(),
            "550 5.1.1 no such mailbox"
        );
        assert_eq!(Reply::bare(354, "go on").to_string(), "354 go on");
        assert_eq!(
            EnhancedStatusCode::parse("4.2.2"),
            Some(EnhancedStatusCode::new(4, 2, 2))
        );
        for none in [
            "3.1.1", "5.1", "5.1.1.1", "5.07.1", "+5.1.1", "5.+1.1", "5.1.", "5.1.1000",
        ] {
            assert_eq!(EnhancedStatusCode::parse(none), None, "{none}");
        }
        assert_eq!(
            EnhancedStatusCode::parse("2.0.999"),
            Some(EnhancedStatusCode::new(2, 0, 999))
        );
    }
}

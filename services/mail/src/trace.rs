//! The Received field we put in front of a mail (RFC 5321 section 4.4).
//!
//! Everything in it that a client chose is cut to size and cleaned here, so that no name can break out of its place and
//! forge a field, whatever the caller has checked before.

use std::net::IpAddr;

use crate::date;
use crate::id::MessageId;
use crate::path::ForwardPath;

const CLIENT_TEXT_BYTES_MAX: usize = 255;

/// What a Received field says.
#[derive(Clone, Debug)]
pub struct Received<'a> {
    /// What the client called itself in EHLO or HELO.
    pub client_name: &'a str,
    /// Where it connected from.
    pub client_address: IpAddr,
    /// Our name.
    pub by: &'a str,
    /// The `with` protocol, e.g. `ESMTPS` (RFC 3848).
    pub protocol: &'a str,
    /// Protocol version and cipher suite of the TLS session.
    pub tls: Option<(&'a str, &'a str)>,
    /// The queue id.
    pub id: MessageId,
    /// The recipient, if there is only one: RFC 5321 section 7.2, several must not learn of each other.
    pub recipient: Option<&'a ForwardPath>,
    /// When, Unix milliseconds.
    pub time_ms: u64,
}

impl Received<'_> {
    /// The field, with its CRLF, ready to be put in front of the content.
    pub fn to_field(&self) -> String {
        let address = match self.client_address.to_canonical() {
            IpAddr::V4(address) => format!("[{address}]"),
            IpAddr::V6(address) => format!("[IPv6:{address}]"),
        };
        let mut field = format!(
            "Received: from {} ({address})\r\n\tby {} with {}",
            clean(self.client_name),
            clean(self.by),
            clean(self.protocol)
        );
        if let Some((version, cipher)) = self.tls {
            field.push_str(&format!(" ({} {})", clean(version), clean(cipher)));
        }
        field.push_str(&format!("\r\n\tid {}", self.id));
        if let Some(recipient) = self.recipient {
            field.push_str(&format!("\r\n\tfor {}", printable(&recipient.to_string())));
        }
        field.push_str(&format!(";\r\n\t{}\r\n", date::rfc5322(self.time_ms)));
        field
    }
}

/// `text` as one word that cannot end a comment, a field or a line.
fn clean(text: &str) -> String {
    let safe = |byte: u8| {
        if byte.is_ascii_graphic() && !b"()<>\"\\;,".contains(&byte) {
            char::from(byte)
        } else {
            '?'
        }
    };
    let word: String = text.bytes().take(CLIENT_TEXT_BYTES_MAX).map(safe).collect();
    if word.is_empty() {
        "unknown".to_owned()
    } else {
        word
    }
}

/// `text` without anything that could end a line.
fn printable(text: &str) -> String {
    text.bytes()
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
    use super::Received;
    use crate::id::{Class, MessageId, ShardId};
    use crate::path::ForwardPath;

    fn received() -> Received<'static> {
        Received {
            client_name: "client.example.com",
            client_address: "192.0.2.1".parse().unwrap(),
            by: "mx.example.jp",
            protocol: "ESMTP",
            tls: None,
            id: MessageId::new(ShardId::new(Class::Incoming, 0), 1_795_498_390_123, 7),
            recipient: None,
            time_ms: 1_795_498_390_123,
        }
    }

    #[test]
    fn reads_as_the_rfc_has_it() {
        let id = received().id;
        assert_eq!(
            received().to_field(),
            format!(
                "Received: from client.example.com ([192.0.2.1])\r\n\tby mx.example.jp with ESMTP\r\n\tid {id};\r\n\tTue, 24 Nov 2026 05:33:10 +0000\r\n"
            )
        );
        let recipient = ForwardPath::Path("\"a b\"@x.jp".parse().unwrap());
        let field = Received {
            client_address: "2001:db8::1".parse().unwrap(),
            protocol: "ESMTPS",
            tls: Some(("TLS1.3", "TLS_AES_256_GCM_SHA384")),
            recipient: Some(&recipient),
            ..received()
        };
        let field = field.to_field();
        assert!(field.contains(" ([IPv6:2001:db8::1])\r\n"), "{field}");
        assert!(
            field.contains(" with ESMTPS (TLS1.3 TLS_AES_256_GCM_SHA384)\r\n"),
            "{field}"
        );
        assert!(field.contains("\r\n\tfor <\"a b\"@x.jp>;\r\n"), "{field}");
    }

    #[test]
    fn no_name_breaks_out_of_its_place() {
        let long = "x".repeat(1000);
        for name in ["a\r\nX-Forged: 1", "a) (b", "a\0b", "ü", "", ";", &long] {
            let field = Received {
                client_name: name,
                tls: Some((name, name)),
                ..received()
            }
            .to_field();
            assert_eq!(field.matches("\r\n").count(), 4, "{field}");
            assert_eq!(
                field.matches('\n').count(),
                field.matches("\n\t").count() + 1,
                "{field}"
            );
            assert_eq!(
                (
                    field.matches('(').count(),
                    field.matches(')').count(),
                    field.matches(';').count()
                ),
                (2, 2, 1),
                "{field}"
            );
            assert!(field.is_ascii() && field.len() < 1000, "{field}");
        }
    }
}

//! Mailboxes and paths (RFC 5321 section 4.1.2). A value is valid or does not exist.
//!
//! ```text
//! Reverse-path = Path / "<>"
//! Forward-path = Path / "<postmaster>"
//! Path         = "<" [ A-d-l ":" ] Mailbox ">"       ; the source route (A-d-l) is parsed and ignored
//! Mailbox      = Local-part "@" ( Domain / address-literal )
//! Local-part   = Dot-string / Quoted-string
//! ```

use std::fmt;
use std::str::FromStr;

/// Why text is not a mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It breaks the grammar.
    #[error("not a mailbox address")]
    Syntax,
    /// A part exceeds RFC 5321 section 4.5.3.1: local part 64, domain 255, label 63, path 256 octets.
    #[error("mailbox address too long")]
    TooLong,
    /// It has octets outside ASCII and SMTPUTF8 was not asked for.
    #[error("mailbox address is not ASCII")]
    NotAscii,
}

/// `local-part@domain`. Equality and order are those of the normalised form: local part as given, domain in lower case
/// and without a trailing dot. Whether local parts fold case is the directory's business.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mailbox {
    text: String,
    at: usize,
}

impl Mailbox {
    /// The local part, as written (a quoted string keeps its quotes).
    pub fn local_part(&self) -> &str {
        &self.text[..self.at]
    }

    /// The domain in lower case, or the address literal with its brackets.
    pub fn domain(&self) -> &str {
        &self.text[self.at + 1..]
    }

    /// `local-part@domain`.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Mailbox {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Mailbox, PathError> {
        if text.len() > 254 {
            return Err(PathError::TooLong);
        }
        if !text.is_ascii() {
            return Err(PathError::NotAscii);
        }
        let at = if text.starts_with('"') {
            quoted_string_end(text)?
        } else {
            text.find('@').ok_or(PathError::Syntax)?
        };
        let (local, rest) = text.split_at(at);
        let domain = rest.strip_prefix('@').ok_or(PathError::Syntax)?;
        if local.len() > 64 {
            return Err(PathError::TooLong);
        }
        if !local.starts_with('"') && !is_dot_string(local) {
            return Err(PathError::Syntax);
        }
        let domain = normal_domain(domain)?;
        Ok(Mailbox {
            text: format!("{local}@{domain}"),
            at,
        })
    }
}

/// The index just past the closing quote of the quoted string that `text` starts with.
fn quoted_string_end(text: &str) -> Result<usize, PathError> {
    let bytes = text.as_bytes();
    let mut index = 1;
    while let Some(&byte) = bytes.get(index) {
        match byte {
            b'"' => return Ok(index + 1),
            // quoted-pairSMTP = "\" %d32-126
            b'\\' if matches!(bytes.get(index + 1), Some(32..=126)) => index += 2,
            // qtextSMTP = %d32-33 / %d35-91 / %d93-126
            32..=33 | 35..=91 | 93..=126 => index += 1,
            _ => break,
        }
    }
    Err(PathError::Syntax)
}

/// Dot-string = Atom *("." Atom)
fn is_dot_string(text: &str) -> bool {
    let is_atext =
        |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&byte);
    text.split('.')
        .all(|atom| !atom.is_empty() && atom.bytes().all(is_atext))
}

/// A domain in lower case without its final dot, or an address literal.
pub fn normal_domain(text: &str) -> Result<String, PathError> {
    if let Some(literal) = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        return if is_address_literal(literal) {
            Ok(text.to_ascii_lowercase())
        } else {
            Err(PathError::Syntax)
        };
    }
    let text = text.strip_suffix('.').unwrap_or(text);
    if text.len() > 253 {
        return Err(PathError::TooLong);
    }
    for label in text.split('.') {
        if label.len() > 63 {
            return Err(PathError::TooLong);
        }
        // sub-domain = Let-dig [Ldh-str]; underscores are seen in the wild and harmless
        let fits = label
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
        if label.is_empty() || label.starts_with('-') || label.ends_with('-') || !fits {
            return Err(PathError::Syntax);
        }
    }
    Ok(text.to_ascii_lowercase())
}

fn is_address_literal(literal: &str) -> bool {
    let lower = literal.to_ascii_lowercase();
    match lower.strip_prefix("ipv6:") {
        Some(rest) => rest.parse::<std::net::Ipv6Addr>().is_ok(),
        None => literal.parse::<std::net::Ipv4Addr>().is_ok(),
    }
}

/// Where bounces go: `<mailbox>` or the null reverse-path `<>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ReversePath {
    /// `<>`: a bounce or another report that must never itself bounce.
    Null,
    /// A mailbox.
    Path(Mailbox),
}

impl ReversePath {
    /// The path without angle brackets; empty for the null reverse-path.
    pub fn as_str(&self) -> &str {
        match self {
            ReversePath::Null => "",
            ReversePath::Path(mailbox) => mailbox.as_str(),
        }
    }

    /// The inverse of [`ReversePath::as_str`].
    pub fn parse(text: &str) -> Result<ReversePath, PathError> {
        if text.is_empty() {
            Ok(ReversePath::Null)
        } else {
            Ok(ReversePath::Path(text.parse()?))
        }
    }
}

impl fmt::Display for ReversePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}>", self.as_str())
    }
}

/// Where a mail goes: `<mailbox>` or `<postmaster>`, the only address that may lack a domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ForwardPath {
    /// A mailbox.
    Path(Mailbox),
    /// `<postmaster>` of whoever answers.
    Postmaster,
}

impl fmt::Display for ForwardPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ForwardPath::Path(mailbox) => write!(f, "<{mailbox}>"),
            ForwardPath::Postmaster => f.write_str("<postmaster>"),
        }
    }
}

/// Cuts a leading `<...>` off `text`: the inside without a source route, and what follows the `>`.
///
/// A `>` inside a quoted local part does not end the path.
pub fn cut_path(text: &str) -> Result<(&str, &str), PathError> {
    let rest = text.strip_prefix('<').ok_or(PathError::Syntax)?;
    let mut quoted = false;
    let mut escaped = false;
    for (index, byte) in rest.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'>' if !quoted => {
                if index > 254 {
                    return Err(PathError::TooLong);
                }
                return Ok((without_source_route(&rest[..index])?, &rest[index + 1..]));
            }
            _ => {}
        }
    }
    Err(PathError::Syntax)
}

/// RFC 5321 section 4.1.1.3 and appendix C: `@a,@b:` in front is accepted and ignored.
fn without_source_route(inside: &str) -> Result<&str, PathError> {
    if !inside.starts_with('@') {
        return Ok(inside);
    }
    let (route, mailbox) = inside.split_once(':').ok_or(PathError::Syntax)?;
    for hop in route.split(',') {
        normal_domain(hop.strip_prefix('@').ok_or(PathError::Syntax)?)?;
    }
    Ok(mailbox)
}

#[cfg(test)]
mod tests {
    use super::{Mailbox, PathError, cut_path};

    fn mailbox(text: &str) -> Result<String, PathError> {
        text.parse::<Mailbox>().map(|mailbox| mailbox.to_string())
    }

    #[test]
    fn mailboxes() {
        assert_eq!(mailbox("Alice@Example.JP."), Ok("Alice@example.jp".into()));
        assert_eq!(
            mailbox("\"a b\\\"@c\"@x.jp"),
            Ok("\"a b\\\"@c\"@x.jp".into())
        );
        assert_eq!(mailbox("u@[127.0.0.1]"), Ok("u@[127.0.0.1]".into()));
        assert_eq!(mailbox("u@[IPv6:::1]"), Ok("u@[ipv6:::1]".into()));
        assert_eq!(mailbox("a!b%c@x.jp"), Ok("a!b%c@x.jp".into()));
        for bad in [
            "",
            "u",
            "@x",
            "u@",
            "u@@x",
            "u@a@b",
            "u@-a",
            "u@a..b",
            ".u@a",
            "u.@a",
            "a b@c",
            "u@[1.2.3]",
            "u@x\0.y",
            "\"u@x",
            "u@.",
        ] {
            assert_eq!(mailbox(bad), Err(PathError::Syntax), "{bad:?}");
        }
        assert_eq!(
            mailbox(&format!("{}@x.jp", "u".repeat(65))),
            Err(PathError::TooLong)
        );
        assert_eq!(
            mailbox(&format!("u@{}.jp", "u".repeat(64))),
            Err(PathError::TooLong)
        );
        assert_eq!(mailbox("ü@x.jp"), Err(PathError::NotAscii));
    }

    #[test]
    fn paths() {
        assert_eq!(cut_path("<a@b> SIZE=3"), Ok(("a@b", " SIZE=3")));
        assert_eq!(cut_path("<@x.jp,@y.jp:a@b>"), Ok(("a@b", "")));
        assert_eq!(cut_path("<>"), Ok(("", "")));
        assert_eq!(cut_path("<\"a>b\"@c>"), Ok(("\"a>b\"@c", "")));
        assert_eq!(cut_path("a@b"), Err(PathError::Syntax));
        assert_eq!(cut_path("<a@b"), Err(PathError::Syntax));
    }
}

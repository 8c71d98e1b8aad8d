//! Mailboxes and paths (RFC 5321 section 4.1.2). A value is valid or does not exist.
//!
//! ```text
//! Reverse-path = Path / "<>"
//! Forward-path = Path / "<postmaster>"
//! Path         = "<" [ A-d-l ":" ] Mailbox ">"       ; the source route (A-d-l) is parsed and ignored
//! Mailbox      = Local-part "@" ( Domain / address-literal )
//! Local-part   = Dot-string / Quoted-string
//! ```
//! RFC 6531 section 3.3 adds characters outside ASCII to local parts and domains; whether a client may send them
//! (SMTPUTF8) is the session's business.
//!
//! Two things are wider than the RFC. A Dot-string may have dots at its ends and in a row: Japanese
//! carriers gave out `hana..ko@` and `hanako.@` until 2009. Such a local part means the same as its
//! quoted form and stays as it was written. A local part may be as long as the path (section
//! 4.5.3.1.3): VERP, SRS and forwarders exceed 64 octets.
//!
//! # The one normal form
//! A mailbox is kept and compared in it, and goes into envelopes and logs in it:
//! * local part: Unicode NFC, then the grammar again. Nothing is folded: the directory compares ASCII letters in any case
//!   and all others as they are. Characters nobody can see (controls, spaces, joiners, directional marks, variation
//!   selectors) are refused, so that no two mailboxes look the same without being the same to the eye of NFC.
//! * domain: lower case, without its final dot, U-labels as A-labels (UTS 46 as IDNA2008 reads it). An A-label that is not
//!   the form of any U-label is refused, for it may decode to anything.
//!
//! So canonically equivalent spellings are one mailbox, of which a directory sees a duplicate; different ones never meet.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use icu_normalizer::ComposingNormalizerBorrowed;
use idna::AsciiDenyList;
use idna::uts46::{DnsLength, Hyphens, Uts46};

/// Why text is not a mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It breaks the grammar.
    #[error("not a mailbox address")]
    Syntax,
    /// A part exceeds RFC 5321 section 4.5.3.1: domain 255, label 63, path 256 octets.
    #[error("mailbox address too long")]
    TooLong,
}

/// Octets of a whole mailbox.
const MAILBOX_BYTES_MAX: usize = 254;

/// `local-part@domain`. Equality and order are those of the normal form, see the module.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mailbox {
    text: String,
    at: usize,
}

impl Mailbox {
    /// The local part in NFC, otherwise as written (a quoted string keeps its quotes).
    pub fn local_part(&self) -> &str {
        &self.text[..self.at]
    }

    /// The domain in lower case and A-labels, or the address literal with its brackets.
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
        if text.len() > MAILBOX_BYTES_MAX {
            return Err(PathError::TooLong);
        }
        let at = if text.starts_with('"') {
            quoted_string_end(text)?
        } else {
            text.find('@').ok_or(PathError::Syntax)?
        };
        let (local, rest) = text.split_at(at);
        let domain = rest.strip_prefix('@').ok_or(PathError::Syntax)?;
        let local = normal_local_part(local)?;
        let domain = normal_domain(domain)?;
        let text = format!("{local}@{domain}");
        // A-labels are longer than their U-labels
        if text.len() > MAILBOX_BYTES_MAX {
            return Err(PathError::TooLong);
        }
        Ok(Mailbox {
            text,
            at: local.len(),
        })
    }
}

/// A local part in NFC. The grammar is asked of the outcome: NFC makes a semicolon of U+037E.
fn normal_local_part(text: &str) -> Result<Cow<'_, str>, PathError> {
    let local = if text.is_ascii() {
        Cow::Borrowed(text)
    } else {
        ComposingNormalizerBorrowed::new_nfc().normalize(text)
    };
    let fits = if local.starts_with('"') {
        quoted_string_end(&local) == Ok(local.len())
    } else {
        is_dot_string(&local)
    };
    if fits {
        Ok(local)
    } else {
        Err(PathError::Syntax)
    }
}

/// A character outside ASCII that may stand in a local part: one that can be seen.
pub fn is_visible(letter: char) -> bool {
    let code = u32::from(letter);
    let hidden = matches!(code,
        // C1 controls, no-break space, soft hyphen, joiners of several scripts, Mongolian selectors
        0x80..=0xa0 | 0xad | 0x34f | 0x61c | 0x115f | 0x1160 | 0x1680 | 0x17b4 | 0x17b5 | 0x180b..=0x180f
        // spaces, zero-width characters, directional marks, line and paragraph separators, invisible operators
        | 0x2000..=0x200f | 0x2028..=0x202f | 0x205f..=0x206f | 0x3000 | 0x3164
        // private use, variation selectors, byte order mark, specials
        | 0xe000..=0xf8ff | 0xfe00..=0xfe0f | 0xfeff | 0xffa0 | 0xfff0..=0xfffb
        // Arabic noncharacters, musical controls, tags, more variation selectors, private planes
        | 0xfdd0..=0xfdef | 0x1d173..=0x1d17a | 0xe0000..=0x10_ffff);
    code >= 0x80 && !hidden && code & 0xfffe != 0xfffe
}

/// The index just past the closing quote of the quoted string that `text` starts with.
fn quoted_string_end(text: &str) -> Result<usize, PathError> {
    let mut escaped = false;
    for (index, letter) in text.char_indices().skip(1) {
        match letter {
            // quoted-pairSMTP = "\" %d32-126
            ' '..='~' if escaped => escaped = false,
            _ if escaped => break,
            '"' => return Ok(index + 1),
            '\\' => escaped = true,
            // qtextSMTP = %d32-33 / %d35-91 / %d93-126 / UTF8-non-ascii
            ' '..='~' => {}
            _ if is_visible(letter) => {}
            _ => break,
        }
    }
    Err(PathError::Syntax)
}

/// Dot-string = Atom *("." Atom), and with dots anywhere else.
fn is_dot_string(text: &str) -> bool {
    let fits = |letter: char| {
        letter.is_ascii_alphanumeric()
            || ".!#$%&'*+-/=?^_`{|}~".contains(letter)
            || is_visible(letter)
    };
    !text.is_empty() && text.chars().all(fits)
}

/// A domain in lower case and A-labels without its final dot, or an address literal.
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
    let text = to_a_labels(text)?;
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

/// `text` with U-labels as A-labels (RFC 5891, by UTS 46 without transitional processing). What it lets through is still
/// to be checked for letters, digits and hyphens.
fn to_a_labels(text: &str) -> Result<Cow<'_, str>, PathError> {
    let is_a_label = |label: &str| {
        label
            .get(..4)
            .is_some_and(|prefix| prefix.eq_ignore_ascii_case("xn--"))
    };
    if text.is_ascii() && !text.split('.').any(is_a_label) {
        return Ok(Cow::Borrowed(text));
    }
    // a domain this long has no name in the DNS, and its labels need not be looked at
    if text.len() > 4 * 253 {
        return Err(PathError::TooLong);
    }
    Uts46::new()
        .to_ascii(
            text.as_bytes(),
            AsciiDenyList::EMPTY,
            Hyphens::Allow,
            DnsLength::Ignore,
        )
        .map_err(|_| PathError::Syntax)
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
            "a b@c",
            "u@[1.2.3]",
            "u@x\0.y",
            "\"u@x",
            "u@.",
        ] {
            assert_eq!(mailbox(bad), Err(PathError::Syntax), "{bad:?}");
        }
        // a local part has no limit of its own
        let long = |count| format!("{}@x.jp", "u".repeat(count));
        assert_eq!(mailbox(&long(249)), Ok(long(249)));
        assert_eq!(mailbox(&long(250)), Err(PathError::TooLong));
        assert_eq!(
            mailbox(&format!("u@{}.jp", "u".repeat(64))),
            Err(PathError::TooLong)
        );
    }

    #[test]
    fn dots_of_a_local_part_may_stand_anywhere() {
        for text in [
            "hana..ko@docomo.example",
            "hanako.@ezweb.example",
            ".hanako@x.jp",
            "..-hanako...@x.jp",
            ".@x.jp",
            "\u{e9}..\u{e9}.@x.jp",
        ] {
            assert_eq!(mailbox(text), Ok(text.into()));
            assert_eq!(cut_path(&format!("<{text}> SIZE=1")), Ok((text, " SIZE=1")));
        }
        for bad in ["hana..ko@docomo..example", "a..b", "a..@", "a. .b@x.jp"] {
            assert_eq!(mailbox(bad), Err(PathError::Syntax), "{bad:?}");
        }
    }

    #[test]
    fn mailboxes_outside_ascii_have_one_normal_form() {
        for (text, normal) in [
            // NFC and NFD, fullwidth and ideographic dots in a domain, U-label and A-label, a Kelvin sign
            ("ju\u{308}rgen@x.jp", "j\u{fc}rgen@x.jp"),
            ("j\u{fc}rgen@x.jp", "j\u{fc}rgen@x.jp"),
            ("\u{212a}@x.jp", "K@x.jp"),
            ("u@B\u{dc}CHER.example", "u@xn--bcher-kva.example"),
            ("u@bu\u{308}cher\u{3002}example", "u@xn--bcher-kva.example"),
            ("u@XN--bcher-KVA.example.", "u@xn--bcher-kva.example"),
            (
                "\u{7528}\u{6237}@\u{4f8b}\u{3048}.jp",
                "\u{7528}\u{6237}@xn--r8jz45g.jp",
            ),
            ("\"\u{e9} a\"@x.jp", "\"\u{e9} a\"@x.jp"),
            // nothing is folded: sharp s is not ss, and dotless i is not i
            ("stra\u{df}e@x.jp", "stra\u{df}e@x.jp"),
            ("\u{131}\u{130}@x.jp", "\u{131}\u{130}@x.jp"),
            ("u@stra\u{df}e.jp", "u@xn--strae-oqa.jp"),
            // a homograph (Cyrillic a) is a domain of its own
            ("u@ex\u{430}mple.jp", "u@xn--exmple-4nf.jp"),
        ] {
            assert_eq!(mailbox(text), Ok(normal.into()), "{text:?}");
            assert_eq!(mailbox(normal), Ok(normal.into()), "{normal:?}");
        }
        for bad in [
            // NFC makes a semicolon, a fullwidth at sign becomes one in the domain
            "a\u{37e}b@x.jp",
            "u@a\u{ff20}b.jp",
            "u@a\u{ff0f}b.jp",
            // joiners, marks, spaces, controls, noncharacters
            "a\u{200d}b@x.jp",
            "a\u{200f}b@x.jp",
            "a\u{202e}b@x.jp",
            "a\u{a0}b@x.jp",
            "a\u{85}b@x.jp",
            "a\u{ad}b@x.jp",
            "a\u{fe0f}@x.jp",
            "a\u{fffe}@x.jp",
            "\"a\u{2028}b\"@x.jp",
            "\"a\\\u{e9}\"@x.jp",
            // A-labels that decode to ASCII, to nothing, or to what no U-label may hold (RFC 3492 forms of <, ", comma)
            "u@xn--abc-.jp",
            "u@xn--.jp",
            "u@xn--a.jp",
            "u@xn--xn--9999999999.jp",
            "u@xn--<-iga.jp",
            "u@xn--a-ecp.ru\u{200b}.jp\u{202e}",
        ] {
            assert_eq!(mailbox(bad), Err(PathError::Syntax), "{bad:?}");
        }
        let long = |count| format!("{}@x.jp", "\u{e9}".repeat(count));
        assert!(mailbox(&long(124)).is_ok());
        assert_eq!(mailbox(&long(125)), Err(PathError::TooLong));
        assert!(mailbox(&format!("u@{}.jp", "\u{e9}".repeat(60))).is_err());
    }

    /// B-101: equal exactly where the normal forms are, whatever the spelling.
    #[test]
    fn a_mailbox_is_equal_to_its_spellings_only() {
        use icu_normalizer::{ComposingNormalizerBorrowed, DecomposingNormalizerBorrowed};
        const LETTERS: [&str; 22] = [
            "a",
            "A",
            "e\u{301}",
            "\u{e9}",
            "E\u{301}",
            "t\u{308}",
            "\u{1e97}",
            "T\u{308}",
            "\u{df}",
            "ss",
            "\u{130}",
            "i",
            "\u{131}",
            "\u{212a}",
            "K",
            "k",
            "\u{ac00}",
            "\u{1100}\u{1161}",
            "\u{3c3}",
            "\u{3c2}",
            "\u{430}",
            "\u{f900}",
        ];
        let (nfc, nfd) = (
            ComposingNormalizerBorrowed::new_nfc(),
            DecomposingNormalizerBorrowed::new_nfd(),
        );
        let mut spellings = vec![String::new()];
        for _ in 0..2 {
            let longer = spellings
                .iter()
                .flat_map(|head| LETTERS.iter().map(move |letter| format!("{head}{letter}")));
            spellings = spellings.iter().cloned().chain(longer).collect();
        }
        spellings.retain(|spelling| !spelling.is_empty());
        let parsed: Vec<Mailbox> = spellings
            .iter()
            .map(|local| format!("{local}@x.jp").parse().unwrap())
            .collect();
        let mut equal = 0;
        for (a, left) in spellings.iter().zip(&parsed) {
            for (b, right) in spellings.iter().zip(&parsed) {
                let equivalent = nfd.normalize(a) == nfd.normalize(b);
                assert_eq!(left == right, equivalent, "{a:?} {b:?}");
                equal += usize::from(equivalent && a != b);
            }
            assert_eq!(left.local_part(), nfc.normalize(a));
        }
        assert!(equal > 100, "{equal}");
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

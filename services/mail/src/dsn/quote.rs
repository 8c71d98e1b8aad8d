//! Foreign text made fit to stand in a report: one line each, in ASCII where the reader may know nothing else.

use std::fmt::Write as _;

/// Octets of one address or reply quoted.
const QUOTE_BYTES_MAX: usize = 512;

/// Foreign text on one line. Outside ASCII it stands as it is in an international report, else as `\x{HEX}` (RFC 6533
/// section 3).
pub(super) fn quote(text: &str, international: bool) -> String {
    let mut quoted = String::with_capacity(text.len().min(QUOTE_BYTES_MAX));
    for letter in text.chars() {
        if quoted.len() >= QUOTE_BYTES_MAX {
            break;
        }
        match letter {
            ' '..='~' => quoted.push(letter),
            _ if letter.is_ascii() || letter.is_control() => quoted.push('?'),
            _ if international => quoted.push(letter),
            _ => escape(&mut quoted, letter),
        }
    }
    quoted
}

fn escape(text: &mut String, letter: char) {
    // writing to a String does not fail
    let _ = write!(text, "\\x{{{:X}}}", u32::from(letter));
}

/// The value of a Final-Recipient field: address type and address (RFC 3464 section 2.3.2). Type `utf-8` is RFC 6533's; in a
/// report that must be ASCII its address is in the form utf-8-addr-xtext, where `+`, `=` and `\` are written as the rest is.
pub(super) fn address_field(address: &str, international: bool) -> String {
    if address.is_ascii() {
        return format!("rfc822; {}", quote(address, false));
    }
    if international {
        return format!("utf-8; {}", quote(address, true));
    }
    let mut text = String::from("utf-8; ");
    for letter in address.chars() {
        if text.len() >= QUOTE_BYTES_MAX {
            break;
        }
        match letter {
            '+' | '=' | '\\' | ' ' => escape(&mut text, letter),
            '!'..='~' => text.push(letter),
            _ if letter.is_control() => text.push('?'),
            _ => escape(&mut text, letter),
        }
    }
    text
}

/// The value of an Original-Recipient field from an ORCPT as it is kept: in ASCII, with `\x{HEX}` for the rest in type
/// `utf-8`, which an international report shows as what it stands for.
pub(super) fn original_recipient(orcpt: &str, international: bool) -> String {
    match orcpt.split_once(';') {
        Some(("utf-8", address)) if international => {
            format!("utf-8;{}", quote(&unescaped(address), true))
        }
        _ => quote(orcpt, false),
    }
}

/// Every `\x{HEX}` as its character; what is none stays.
fn unescaped(text: &str) -> String {
    let mut rest = text;
    let mut plain = String::with_capacity(text.len());
    while let Some((before, after)) = rest.split_once("\\x{") {
        plain.push_str(before);
        let letter = after.split_once('}').and_then(|(digits, behind)| {
            let number = u32::from_str_radix(digits, 16).ok()?;
            Some((char::from_u32(number)?, behind))
        });
        match letter {
            Some((letter, behind)) => {
                plain.push(letter);
                rest = behind;
            }
            None => {
                plain.push_str("\\x{");
                rest = after;
            }
        }
    }
    plain.push_str(rest);
    plain
}

/// Content ready to be a body part: every line ends in CRLF and in nothing else, and there is no NUL. A header has no `blank`
/// lines.
pub(super) fn lines(content: &[u8], blank: bool) -> Vec<u8> {
    let mut lines = Vec::with_capacity(content.len() + 2);
    let content = content.strip_suffix(b"\n").unwrap_or(content);
    if content.is_empty() {
        return lines;
    }
    for line in content.split(|byte| *byte == b'\n') {
        if !blank && (line.is_empty() || line == b"\r") {
            continue;
        }
        lines.extend(line.iter().filter(|byte| !matches!(byte, b'\r' | 0)));
        lines.extend_from_slice(b"\r\n");
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::{address_field, lines, original_recipient, quote};

    #[test]
    fn nothing_foreign_ends_a_line_or_is_lost() {
        assert_eq!(quote("a\r\nb\0\u{85}c", true), "a??b??c");
        assert_eq!(quote("j\u{fc}rgen", false), "j\\x{FC}rgen");
        assert_eq!(quote("j\u{fc}rgen", true), "j\u{fc}rgen");
        let long = "\u{fc}".repeat(2000);
        assert!(quote(&long, true).len() <= 514 && quote(&long, false).len() <= 520);
        assert_eq!(address_field("a+b@x.jp", false), "rfc822; a+b@x.jp");
        assert_eq!(
            address_field("\u{fc}+b@x.jp", false),
            "utf-8; \\x{FC}\\x{2B}b@x.jp"
        );
        assert_eq!(address_field("\u{fc}+b@x.jp", true), "utf-8; \u{fc}+b@x.jp");
    }

    #[test]
    fn an_original_recipient_is_shown_as_it_was_given() {
        let kept = "utf-8;\\x{FC}\\x{2B}b@x.jp";
        assert_eq!(original_recipient(kept, false), kept);
        assert_eq!(original_recipient(kept, true), "utf-8;\u{fc}+b@x.jp");
        for text in ["rfc822;a\\x{FC}", "utf-8;\\x{", "utf-8;\\x{110000}a\\x{zz}"] {
            assert_eq!(original_recipient(text, true), text);
        }
        // a character that would end the line does not
        assert_eq!(original_recipient("utf-8;\\x{A}X: y", true), "utf-8;?X: y");
    }

    #[test]
    fn lines_end_one_way() {
        assert_eq!(lines(b"a\nb\rc\r\n\r\n", false), b"a\r\nbc\r\n");
        assert_eq!(lines(b"a\n\n\0b", true), b"a\r\n\r\nb\r\n");
        assert_eq!(lines(b"", true), b"");
    }
}

//! ENVID and ORCPT (RFC 3461 section 4, RFC 6533 section 3) against a plain reading of the grammar.

use hikyaku_smtp::command::{Command, Refusal, parse};

use crate::memory::bounded;

/// The first octet chooses the parameter and how it begins; the rest is its value.
pub fn run(data: &[u8]) {
    let [which, value @ ..] = data else { return };
    let Ok(value) = std::str::from_utf8(value) else {
        return;
    };
    // what would end the value is no part of one
    if value.bytes().any(|octet| octet <= b' ' || octet == 127) {
        return;
    }
    let line = match which % 4 {
        0 => format!("MAIL FROM:<> SMTPUTF8 ENVID={value}"),
        1 => format!("RCPT TO:<a@b> ORCPT={value}"),
        2 => format!("RCPT TO:<a@b> ORCPT=rfc822;{value}"),
        _ => format!("RCPT TO:<a@b> ORCPT=utf-8;{value}"),
    };
    let (found, lost) = match bounded(line.len(), 64, || parse(line.as_bytes())) {
        Ok(Command::Mail(mail)) => (mail.envelope_id, mail.envelope_id_lost),
        Ok(Command::Rcpt(rcpt)) => (rcpt.original_recipient, rcpt.original_recipient_lost),
        // whatever the value, the mail and the recipient are taken
        Err(Refusal::TooLong) => return,
        other => panic!("{line} is {other:?}"),
    };
    assert_eq!(found.is_none(), lost);
    let (given, expected) = match which % 4 {
        0 => (value.to_owned(), envelope_id(value)),
        1 => (value.to_owned(), original_recipient(value)),
        2 => (
            format!("rfc822;{value}"),
            original_recipient(&format!("rfc822;{value}")),
        ),
        _ => (
            format!("utf-8;{value}"),
            original_recipient(&format!("utf-8;{value}")),
        ),
    };
    assert_eq!(found, expected, "{given}");
    if let Some(found) = found {
        assert!(
            found.bytes().all(|octet| (b' '..=b'~').contains(&octet)),
            "{found:?}"
        );
        // written again it says the same
        let again = xtext(&found);
        assert_eq!(decoded(&again), Some(found));
    }
}

/// `text` as xtext.
pub fn xtext(text: &str) -> String {
    let mut encoded = String::new();
    for octet in text.bytes() {
        match octet {
            b'!'..=b'*' | b','..=b'<' | b'>'..=b'~' => encoded.push(char::from(octet)),
            octet => encoded.push_str(&format!("+{octet:02X}")),
        }
    }
    encoded
}

fn envelope_id(value: &str) -> Option<String> {
    if value.is_empty() || value.len() > 100 {
        return None;
    }
    decoded(value)
}

fn original_recipient(value: &str) -> Option<String> {
    if value.len() > 500 {
        return None;
    }
    let (kind, address) = value.split_once(';')?;
    let is_kind = |octet: u8| octet.is_ascii_alphanumeric() || octet == b'-';
    if kind.is_empty() || address.is_empty() || !kind.bytes().all(is_kind) {
        return None;
    }
    let kind = kind.to_ascii_lowercase();
    let mut plain = String::new();
    for letter in address.chars() {
        match letter {
            letter if letter.is_ascii() => plain.push(letter),
            letter if kind == "utf-8" => plain.push_str(&format!("\\x{{{:X}}}", letter as u32)),
            _ => return None,
        }
    }
    Some(format!("{kind};{}", decoded(&plain)?))
}

/// Plain text of xtext: only printable ASCII may come of it.
fn decoded(text: &str) -> Option<String> {
    let mut plain = String::new();
    let mut rest = text;
    while let Some(letter) = rest.chars().next() {
        let (octet, taken) = match letter {
            '+' => {
                let digits = rest.get(1..3)?;
                let upper = |digit: u8| matches!(digit, b'0'..=b'9' | b'A'..=b'F');
                if !digits.bytes().all(upper) {
                    return None;
                }
                (u8::from_str_radix(digits, 16).ok()?, 3)
            }
            '!'..='<' | '>'..='~' => (letter as u8, 1),
            _ => return None,
        };
        if !(b' '..=b'~').contains(&octet) {
            return None;
        }
        plain.push(char::from(octet));
        rest = &rest[taken..];
    }
    Some(plain)
}

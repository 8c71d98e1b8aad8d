//! The parameters of MAIL and RCPT: `*( SP esmtp-keyword [ "=" esmtp-value ] )` (RFC 5321 section 4.1.2).
//!
//! | parameter | of | RFC |
//! |---|---|---|
//! | `SIZE=` 1*20DIGIT | MAIL | 1870 |
//! | `BODY=` 7BIT / 8BITMIME; BINARYMIME is not offered | MAIL | 6152, 3030 |
//! | `SMTPUTF8` | MAIL | 6531 |
//! | `RET=` FULL / HDRS | MAIL | 3461 section 4.3 |
//! | `ENVID=` xtext, at most 100 octets | MAIL | 3461 section 4.4 |
//! | `NOTIFY=` NEVER / 1#( SUCCESS / FAILURE / DELAY ) | RCPT | 3461 section 4.1 |
//! | `ORCPT=` addr-type ";" xtext, at most 500 octets | RCPT | 3461 section 4.2, 6533 section 3 |
//!
//! Each at most once. ENVID and ORCPT are kept decoded: printable ASCII, so that neither can end a
//! line in a report. One that breaks its syntax is lost, and the mail or the recipient is taken
//! without it: senders write `=` and raw addresses there. Characters outside ASCII that an ORCPT of
//! type `utf-8` may hold are kept as `\x{HEX}` (RFC 6533).

use std::fmt;
use std::fmt::Write as _;

use crate::command::Refusal;

/// RFC 3461 section 4.4.
const ENVELOPE_ID_BYTES_MAX: usize = 100;
/// RFC 3461 section 4.2.
const ORIGINAL_RECIPIENT_BYTES_MAX: usize = 500;

/// The BODY parameter of MAIL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyType {
    /// Octets up to 127.
    SevenBit,
    /// Any octets, in lines.
    EightBitMime,
}

/// The RET parameter of MAIL: how much of the mail a report of failure should return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Return {
    /// All of it.
    Full,
    /// Its header.
    Headers,
}

impl Return {
    /// The value as it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Return::Full => "FULL",
            Return::Headers => "HDRS",
        }
    }
}

/// The NOTIFY parameter of RCPT: what the sender wants to hear about. [`fmt::Display`] writes the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notify {
    /// Nothing, whatever happens.
    Never,
    /// At least one of these.
    On {
        /// That it was delivered.
        success: bool,
        /// That it failed.
        failure: bool,
        /// That it takes long.
        delay: bool,
    },
}

impl fmt::Display for Notify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (success, failure, delay) = match *self {
            Notify::Never => return f.write_str("NEVER"),
            Notify::On {
                success,
                failure,
                delay,
            } => (success, failure, delay),
        };
        let mut separator = "";
        for (wanted, word) in [(success, "SUCCESS"), (failure, "FAILURE"), (delay, "DELAY")] {
            if wanted {
                write!(f, "{separator}{word}")?;
                separator = ",";
            }
        }
        Ok(())
    }
}

/// Cuts the parameters behind a path, each as keyword in upper case and value.
pub(crate) fn cut(
    text: &str,
) -> impl Iterator<Item = Result<(String, Option<&str>), Refusal>> + '_ {
    text.split(' ')
        .filter(|parameter| !parameter.is_empty())
        .map(keyword_and_value)
}

/// Parameters that a command is taken without if their value is malformed.
const DISPENSABLE: [&str; 2] = ["ENVID", "ORCPT"];

/// esmtp-keyword ["=" esmtp-value]; RFC 6531 section 3.3 adds characters outside ASCII to esmtp-value.
fn keyword_and_value(parameter: &str) -> Result<(String, Option<&str>), Refusal> {
    let (keyword, value) = match parameter.split_once('=') {
        Some((keyword, value)) => (keyword, Some(value)),
        None => (parameter, None),
    };
    let is_keyword = keyword.starts_with(|first: char| first.is_ascii_alphanumeric())
        && keyword
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let is_value = |value: &str| {
        !value.is_empty()
            && value
                .bytes()
                .all(|byte| matches!(byte, 33..=60 | 62..=126 | 128..))
    };
    let keyword = keyword.to_ascii_uppercase();
    let is_dispensable = DISPENSABLE.contains(&keyword.as_str());
    if is_keyword && (is_dispensable || value.is_none_or(is_value)) {
        Ok((keyword, value))
    } else {
        Err(Refusal::Argument)
    }
}

/// Sets a parameter that may be given once and needs a value.
pub(crate) fn once<T>(
    slot: &mut Option<T>,
    value: Option<&str>,
    parse: impl FnOnce(&str) -> Result<T, Refusal>,
) -> Result<(), Refusal> {
    if slot.is_some() {
        return Err(Refusal::Argument);
    }
    *slot = Some(parse(value.ok_or(Refusal::Argument)?)?);
    Ok(())
}

/// Sets a parameter that may be given once; to nothing if its value is missing or malformed.
pub(crate) fn once_or_lost<T>(
    slot: &mut Option<Option<T>>,
    value: Option<&str>,
    parse: impl FnOnce(&str) -> Result<T, Refusal>,
) -> Result<(), Refusal> {
    if slot.is_some() {
        return Err(Refusal::Argument);
    }
    *slot = Some(value.and_then(|value| parse(value).ok()));
    Ok(())
}

/// What exceeds 64 bits exceeds every limit too.
pub(crate) fn size(value: &str) -> Result<u64, Refusal> {
    let fits = (1..=20).contains(&value.len()) && value.bytes().all(|byte| byte.is_ascii_digit());
    if fits {
        Ok(value.parse().unwrap_or(u64::MAX))
    } else {
        Err(Refusal::Argument)
    }
}

pub(crate) fn body_type(value: &str) -> Result<BodyType, Refusal> {
    match value.to_ascii_uppercase().as_str() {
        "7BIT" => Ok(BodyType::SevenBit),
        "8BITMIME" => Ok(BodyType::EightBitMime),
        // RFC 3030's, not offered
        "BINARYMIME" => Err(Refusal::Parameter),
        _ => Err(Refusal::Argument),
    }
}

pub(crate) fn ret(value: &str) -> Result<Return, Refusal> {
    match value.to_ascii_uppercase().as_str() {
        "FULL" => Ok(Return::Full),
        "HDRS" => Ok(Return::Headers),
        _ => Err(Refusal::Argument),
    }
}

pub(crate) fn envelope_id(value: &str) -> Result<String, Refusal> {
    if value.is_empty() || value.len() > ENVELOPE_ID_BYTES_MAX {
        return Err(Refusal::Argument);
    }
    xtext(value)
}

pub(crate) fn notify(value: &str) -> Result<Notify, Refusal> {
    if value.eq_ignore_ascii_case("NEVER") {
        return Ok(Notify::Never);
    }
    let (mut success, mut failure, mut delay) = (false, false, false);
    for word in value.split(',') {
        let slot = match word.to_ascii_uppercase().as_str() {
            "SUCCESS" => &mut success,
            "FAILURE" => &mut failure,
            "DELAY" => &mut delay,
            _ => return Err(Refusal::Argument),
        };
        if std::mem::replace(slot, true) {
            return Err(Refusal::Argument);
        }
    }
    Ok(Notify::On {
        success,
        failure,
        delay,
    })
}

pub(crate) fn original_recipient(value: &str) -> Result<String, Refusal> {
    let (kind, address) = value.split_once(';').ok_or(Refusal::Argument)?;
    let is_kind = !kind.is_empty()
        && kind
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if !is_kind || address.is_empty() || value.len() > ORIGINAL_RECIPIENT_BYTES_MAX {
        return Err(Refusal::Argument);
    }
    let kind = kind.to_ascii_lowercase();
    let decoded = if kind == "utf-8" && !address.is_ascii() {
        xtext(&escape(address))?
    } else {
        xtext(address)?
    };
    Ok(format!("{kind};{decoded}"))
}

/// utf-8-addr-unitext as utf-8-addr-xtext (RFC 6533 section 3).
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() * 2);
    for letter in text.chars() {
        if letter.is_ascii() {
            escaped.push(letter);
        } else {
            // writing to a String does not fail
            let _ = write!(escaped, "\\x{{{:X}}}", u32::from(letter));
        }
    }
    escaped
}

/// RFC 3461 section 4: `*( xchar / "+" 2HEXDIG )`, decoded; only printable ASCII may come of it.
fn xtext(value: &str) -> Result<String, Refusal> {
    let digit = |byte: Option<u8>| match byte {
        Some(byte @ b'0'..=b'9') => Ok(byte - b'0'),
        Some(byte @ b'A'..=b'F') => Ok(byte - b'A' + 10),
        _ => Err(Refusal::Argument),
    };
    let mut decoded = String::with_capacity(value.len());
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        let byte = match byte {
            b'+' => (digit(bytes.next())? << 4) | digit(bytes.next())?,
            b'=' | b' ' => return Err(Refusal::Argument),
            other => other,
        };
        if !(b' '..=b'~').contains(&byte) {
            return Err(Refusal::Argument);
        }
        decoded.push(char::from(byte));
    }
    Ok(decoded)
}

//! Distinguished names: one text for all spellings of one name.
//!
//! RFC 4514 says how a name is written, RFC 4517 section 4.2.15 which names are the same: those
//! with the same attribute types and values, in the same order, but in any order inside one
//! multi-valued RDN. Values are compared as RFC 4518 prepares them: without regard to case, Unicode
//! form and the number of spaces.
//!
//! Wider than RFC 4514 where RFC 2253 section 4 was: spaces around separators, `;` for `,`, `OID.`
//! before an object identifier, values in quotes.

use icu_normalizer::ComposingNormalizerBorrowed;

/// Short names of attribute types that stand in distinguished names, and what else they are called.
const TYPES: [(&str, &[&str]); 16] = [
    ("c", &["2.5.4.6", "countryname"]),
    ("cn", &["2.5.4.3", "commonname"]),
    ("dc", &["0.9.2342.19200300.100.1.25", "domaincomponent"]),
    (
        "email",
        &["1.2.840.113549.1.9.1", "emailaddress", "e", "pkcs9email"],
    ),
    ("entryuuid", &["1.3.6.1.1.16.4"]),
    ("givenname", &["2.5.4.42", "gn"]),
    ("l", &["2.5.4.7", "localityname"]),
    ("mail", &["0.9.2342.19200300.100.1.3", "rfc822mailbox"]),
    ("maillocaladdress", &["2.16.840.1.113730.3.1.13"]),
    ("o", &["2.5.4.10", "organizationname"]),
    ("ou", &["2.5.4.11", "organizationalunitname"]),
    ("serialnumber", &["2.5.4.5"]),
    ("sn", &["2.5.4.4", "surname"]),
    ("st", &["2.5.4.8", "stateorprovincename"]),
    ("street", &["2.5.4.9", "streetaddress"]),
    ("uid", &["0.9.2342.19200300.100.1.1", "userid"]),
];

/// Octets that a value is escaped for.
const SPECIAL: [char; 5] = ['\\', ',', '+', ';', '"'];

/// `name` in the one spelling that all equal names have. A text that is no distinguished name is equal to itself alone, in any
/// case. The `#...` of a name with an optional UID (RFC 4517 section 3.3.21, uniqueMember) is left
/// out.
pub fn normal_dn(name: &str) -> String {
    let name = match name.rsplit_once('#') {
        Some((name, bits)) if bits.starts_with('\'') && bits.ends_with("'B") => name,
        _ => name,
    };
    parse(name).unwrap_or_else(|| prepared(name))
}

/// `None` if `text` is no distinguished name.
fn parse(text: &str) -> Option<String> {
    let mut rest = text.trim_matches(' ');
    if rest.is_empty() {
        return Some(String::new());
    }
    let mut names: Vec<String> = Vec::new();
    let mut name = Vec::new();
    loop {
        let (pair, after) = pair(rest)?;
        name.push(pair);
        if !after.starts_with('+') {
            name.sort();
            names.push(name.join("+"));
            name.clear();
        }
        match after.get(1..) {
            Some(more) => rest = more,
            None => return Some(names.join(",")),
        }
    }
}

/// `type=value` at the beginning of `text`; what follows is nothing, or a separator and more.
fn pair(text: &str) -> Option<(String, &str)> {
    let (kind, value) = text.split_once('=')?;
    let kind = kind_of(kind.trim_matches(' '))?;
    let value = value.trim_start_matches(' ');
    let (value, rest) = match (value.strip_prefix('#'), value.strip_prefix('"')) {
        (Some(hex), _) => encoded(hex)?,
        (None, Some(quoted)) => in_quotes(quoted)?,
        (None, None) => plain(value)?,
    };
    Some((format!("{kind}={value}"), rest))
}

/// An attribute type in its usual name.
fn kind_of(text: &str) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    let name = lower.strip_prefix("oid.").unwrap_or(&lower);
    let is_name = |octet: u8| octet.is_ascii_alphanumeric() || b"-._".contains(&octet);
    if name.is_empty() || !name.bytes().all(is_name) {
        return None;
    }
    let usual = TYPES
        .iter()
        .find(|(_, others)| others.contains(&name))
        .map_or(name, |(usual, _)| usual);
    Some(usual.to_owned())
}

/// A value without quotes, up to a separator.
fn plain(text: &str) -> Option<(String, &str)> {
    let mut value = Vec::new();
    let mut rest = text;
    while let Some(letter) = rest.chars().next() {
        match letter {
            ',' | ';' | '+' => break,
            '\\' => rest = unescape(rest, &mut value)?,
            _ => rest = copy(rest, letter, &mut value),
        }
    }
    Some((written(&String::from_utf8(value).ok()?), rest))
}

/// A value up to its closing quote.
fn in_quotes(text: &str) -> Option<(String, &str)> {
    let mut value = Vec::new();
    let mut rest = text;
    loop {
        match rest.chars().next()? {
            '"' => break,
            '\\' => rest = unescape(rest, &mut value)?,
            letter => rest = copy(rest, letter, &mut value),
        }
    }
    let rest = rest.get(1..)?.trim_start_matches(' ');
    let is_whole = rest.is_empty() || rest.starts_with([',', ';', '+']);
    let value = String::from_utf8(value).ok()?;
    is_whole.then(|| (written(&value), rest))
}

/// Copies `letter`, which `rest` begins with; answers what follows it.
fn copy<'a>(rest: &'a str, letter: char, value: &mut Vec<u8>) -> &'a str {
    let (first, after) = rest.split_at(letter.len_utf8());
    value.extend_from_slice(first.as_bytes());
    after
}

/// Reads `\,` or `\2C` at the beginning of `rest`; answers what follows it.
fn unescape<'a>(rest: &'a str, value: &mut Vec<u8>) -> Option<&'a str> {
    let escaped = rest.get(1..)?;
    if let Some(octet) = escaped.get(..2).and_then(octet) {
        value.push(octet);
        return escaped.get(2..);
    }
    let letter = escaped.chars().next()?;
    let is_special = SPECIAL.contains(&letter) || "<>=# ".contains(letter);
    is_special.then(|| copy(escaped, letter, value))
}

/// Two hexadecimal digits.
fn octet(digits: &str) -> Option<u8> {
    let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_hex.then(|| u8::from_str_radix(digits, 16).ok())?
}

/// A value given as the hexadecimal digits of its BER encoding, without the `#`.
fn encoded(text: &str) -> Option<(String, &str)> {
    let end = text.find([',', ';', '+']).unwrap_or(text.len());
    let (hex, rest) = text.split_at(end);
    let hex = hex.trim_end_matches(' ');
    if hex.is_empty() || !hex.is_ascii() || hex.len() % 2 == 1 {
        return None;
    }
    let octets: Option<Vec<u8>> = (0..hex.len())
        .step_by(2)
        .map(|at| octet(hex.get(at..at + 2)?))
        .collect();
    let value = match text_of(&octets?) {
        Some(text) => written(&text),
        None => format!("#{}", hex.to_ascii_lowercase()),
    };
    Some((value, rest))
}

/// The text in a BER encoding: of an OCTET STRING, or a string of UTF-8 or of a part of ASCII.
fn text_of(ber: &[u8]) -> Option<String> {
    let (tag, rest) = ber.split_first()?;
    let (length, rest) = rest.split_first()?;
    let (length, content) = match length {
        0..=127 => (usize::from(*length), rest),
        0x81 => {
            let (length, content) = rest.split_first()?;
            (usize::from(*length), content)
        }
        0x82 => {
            let (length, content) = rest.split_first_chunk::<2>()?;
            (usize::from(u16::from_be_bytes(*length)), content)
        }
        _ => return None,
    };
    let is_text = matches!(tag, 0x04 | 0x0c | 0x12 | 0x13 | 0x16);
    let is_whole = is_text && content.len() == length;
    is_whole.then(|| String::from_utf8(content.to_vec()).ok())?
}

/// A prepared value as it stands in a name.
fn written(value: &str) -> String {
    let value = prepared(value);
    let mut text = String::with_capacity(value.len());
    for (at, letter) in value.char_indices() {
        if SPECIAL.contains(&letter) || (at == 0 && letter == '#') {
            text.push('\\');
        }
        text.push(letter);
    }
    text
}

/// `value` as it is compared (RFC 4518): case folded, in NFKC, invisible characters left out, one space for many.
fn prepared(value: &str) -> String {
    let mapped: String = value.chars().filter_map(mapped).collect();
    let normal = if mapped.is_ascii() {
        mapped.to_ascii_lowercase()
    } else {
        let form = ComposingNormalizerBorrowed::new_nfkc();
        let folded: String = form.normalize(&mapped).chars().flat_map(folded).collect();
        form.normalize(&folded).into_owned()
    };
    let words: Vec<&str> = normal.split(' ').filter(|word| !word.is_empty()).collect();
    words.join(" ")
}

/// RFC 4518 section 2.2: white space is a space, what cannot be seen is nothing.
fn mapped(letter: char) -> Option<char> {
    let is_hidden = matches!(letter,
        '\u{ad}' | '\u{34f}' | '\u{1806}' | '\u{180b}'..='\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{2064}' | '\u{206a}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{fff9}'..='\u{fffc}');
    if letter.is_whitespace() {
        Some(' ')
    } else {
        Some(letter).filter(|_| !is_hidden && !letter.is_control())
    }
}

/// Full case folding, made of the two mappings that there are: by the capital letter, except for
/// the dotless i, whose capital is another letter's too.
fn folded(letter: char) -> impl Iterator<Item = char> {
    let (kept, capital) = match letter {
        'ı' => (Some(letter), None),
        _ => (None, Some(letter.to_uppercase())),
    };
    let small = capital.into_iter().flatten().flat_map(char::to_lowercase);
    kept.into_iter().chain(small)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop, prop_assert_eq, proptest};

    use super::normal_dn;

    #[test]
    fn spellings_of_one_name_are_one_name() {
        for (normal, spellings) in [
            (
                "cn=tanaka\\, taro,o=example,dc=jp",
                &[
                    "cn=Tanaka\\, Taro,o=Example,dc=jp",
                    "cn=Tanaka\\2C Taro,o=Example,dc=jp",
                    "CN = Tanaka\\2c Taro , O=Example; DC=JP",
                    "2.5.4.3=Tanaka\\,  Taro,2.5.4.10=Example,OID.0.9.2342.19200300.100.1.25=jp",
                    "commonName=\"Tanaka, Taro\",organizationName=Example,domainComponent=jp",
                    "cn=#130c54616e616b612c205461726f,o=Example,dc=jp",
                    "cn=\\ Tanaka\\,\\ Taro\\ ,o=Example,dc=jp#'0101'B",
                ][..],
            ),
            (
                "cn=andré,dc=jp",
                &[
                    "cn=André,dc=jp",
                    "cn=ANDR\\C3\\89,dc=jp",
                    "cn=Andr\\c3\\a9,dc=jp",
                    "cn=Andre\u{301},dc=jp",
                    "cn=#0c06416e6472c3a9,dc=jp",
                ],
            ),
            (
                "cn=taro+uid=t1,dc=jp",
                &["uid=T1+cn=Taro,dc=jp", "cn=taro + userid=t1, dc=jp"],
            ),
            ("cn=strasse", &["cn=STRASSE", "cn=Straße"]),
            (
                "cn=foo bar,l=y+o=x,dc=jp",
                &[" CN = Foo  Bar , O=x + L=y,dc=JP "],
            ),
            ("cn=a#1,dc=jp", &["cn=a\\#1,dc=jp"]),
            ("cn=\\#a", &["cn=\\#A", "cn=\\23a"]),
            ("cn=,dc=jp", &["cn=\\ ,dc=jp", "cn=\"\",dc=jp"]),
            ("x-own=#0500", &["X-Own=#0500"]),
            ("", &["", " "]),
        ] {
            assert_eq!(normal_dn(normal), normal);
            for spelling in spellings {
                assert_eq!(normal_dn(spelling), normal, "{spelling}");
            }
        }
    }

    #[test]
    fn other_names_stay_others() {
        let names = [
            "cn=a,dc=jp",
            "cn=a\\,dc=jp",
            "cn=a+dc=jp",
            "cn=a\\+dc=jp",
            "dc=jp,cn=a",
            "cn=\\#0500",
            "cn=#0500",
            "cn=i",
            "cn=ı",
            "cn=a b",
            "cn=ab",
            "uid=a,dc=jp",
        ];
        let normal: std::collections::BTreeSet<String> =
            names.iter().map(|name| normal_dn(name)).collect();
        assert_eq!(normal.len(), names.len());
    }

    #[test]
    fn what_is_no_name_is_itself() {
        for text in [
            "Alice", "cn=a,", "cn=\\zz", "a b=c", "cn=\"a", "cn=#123", "=a", "cn=\\ff",
        ] {
            assert_eq!(normal_dn(text), text.to_lowercase(), "{text}");
        }
        assert_eq!(normal_dn(" Alice  B "), "alice b");
    }

    proptest! {
        #[test]
        fn a_normal_name_is_normal(text in "[acn=,+;\\\\\"# 2C1é]{0,24}") {
            let normal = normal_dn(&text);
            prop_assert_eq!(normal_dn(&normal), normal);
        }

        #[test]
        fn any_letter_may_be_escaped(value in "[a-zé,+;#<>=\" ]{1,12}", which in prop::collection::vec(0..3u8, 40)) {
            let special = |letter: char| ",+;\"<>#= \\".contains(letter);
            let hex = |letter: char| {
                let mut octets = [0; 4];
                letter.encode_utf8(&mut octets).bytes().map(|octet| format!("\\{octet:02X}")).collect::<String>()
            };
            let spelt: String = value.chars().zip(&which).map(|(letter, how)| match how {
                0 => hex(letter),
                _ if special(letter) => format!("\\{letter}"),
                _ => letter.to_string(),
            }).collect();
            let all_hex: String = value.chars().map(hex).collect();
            prop_assert_eq!(normal_dn(&format!("cn={spelt},dc=jp")), normal_dn(&format!("cn={all_hex},dc=jp")));
        }
    }
}

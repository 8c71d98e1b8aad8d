//! LDIF content records (RFC 2849): `dn:` lines and their attributes, one record at a time.
//!
//! ```text
//! ldif-attrval-record = dn-spec SEP 1*attrval-spec      ; records are separated by empty lines
//! attrval-spec        = AttributeDescription (":" FILL SAFE-STRING / "::" FILL BASE64-STRING) SEP
//! SEP                 = LF / CR LF                       ; a line that starts with one space continues the line before
//! ```
//! Wider than the RFC in one thing: values may be raw UTF-8. It refuses change records and `:<` (a value that is read from
//! another file or URL). Time is linear in the input, memory that of one record. Next: `entry` reads what a record says.

use std::borrow::Cow;
use std::fmt;
use std::io::BufRead;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Bounds on the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The whole file.
    pub file_bytes_max: usize,
    /// One line, unfolded.
    pub line_bytes_max: usize,
    /// A distinguished name.
    pub dn_bytes_max: usize,
    /// All lines of one record, folded or not.
    pub record_bytes_max: usize,
    /// Attribute values of one record: members of a group, mostly.
    pub values_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            file_bytes_max: 2 << 30,
            line_bytes_max: 1 << 20,
            dn_bytes_max: 1024,
            record_bytes_max: 8 << 20,
            values_max: 100_000,
        }
    }
}

/// One entry as it stands in the file.
#[derive(Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Line of its `dn:`, from 1.
    pub line: u32,
    /// The distinguished name, as written.
    pub dn: String,
    /// In the order of the file.
    pub attributes: Vec<Attribute<'a>>,
}

/// One attribute value.
#[derive(Debug, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// Line where it starts, from 1.
    pub line: u32,
    /// In lower case, without options (`userCertificate;binary` is `usercertificate`).
    pub name: String,
    /// The value, unfolded and decoded.
    pub value: Cow<'a, [u8]>,
}

/// What is wrong with the file, and in which line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct LdifError {
    /// From 1.
    pub line: u32,
    /// What is wrong.
    pub what: Problem,
}

/// What can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The file exceeds a limit.
    FileTooLong,
    /// A line exceeds a limit.
    LineTooLong,
    /// A DN exceeds a limit.
    DnTooLong,
    /// A record exceeds a limit of octets.
    RecordTooLong,
    /// A record exceeds a limit of values.
    TooManyValues,
    /// A first line that continues nothing.
    NothingToContinue,
    /// No colon.
    NoColon,
    /// An attribute name with other octets than letters, digits, `-`, `.`, `;`.
    BadName,
    /// A record whose first line is not `dn:`.
    NoDn,
    /// A second `dn:` without an empty line before.
    TwoDns,
    /// A record without attributes.
    NoAttributes,
    /// `::` without base64.
    BadBase64,
    /// Not UTF-8, or a control character, where text is due.
    NotText,
    /// `:<`.
    Url,
    /// `changetype:`, `control:` or `-`.
    ChangeRecord,
    /// `version:` other than 1.
    Version,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Problem::FileTooLong => "the file is too long",
            Problem::LineTooLong => "the line is too long",
            Problem::DnTooLong => "the distinguished name is too long",
            Problem::RecordTooLong => "the record is too long",
            Problem::TooManyValues => "the record has too many values",
            Problem::NothingToContinue => "a line starts with a space but continues no line",
            Problem::NoColon => "expected `attribute: value`",
            Problem::BadName => "not an attribute name",
            Problem::NoDn => "expected `dn: ...` at the start of a record",
            Problem::TwoDns => "a second `dn:` in a record; an empty line is missing",
            Problem::NoAttributes => "a record without attributes",
            Problem::BadBase64 => "not base64 after `::`",
            Problem::NotText => "not UTF-8 text, or with control characters; use `::` and base64",
            Problem::Url => "values from files or URLs (`:<`) are not read",
            Problem::ChangeRecord => "change records are not read, only content",
            Problem::Version => "expected `version: 1`",
        })
    }
}

/// Reads records one after another. After an error it yields nothing more.
pub struct Records<'a> {
    rest: &'a [u8],
    line: u32,
    limits: Limits,
    begun: bool,
    failed: bool,
    octets_handled: u64,
}

/// The records of `input`.
pub fn records(input: &[u8], limits: Limits) -> Records<'_> {
    let rest = input.strip_prefix(b"\xef\xbb\xbf").unwrap_or(input);
    Records {
        rest,
        line: 0,
        limits,
        begun: false,
        failed: false,
        octets_handled: 0,
    }
}

/// A logical line: unfolded, without its end.
struct Line<'a> {
    number: u32,
    text: Cow<'a, [u8]>,
}

impl<'a> Records<'a> {
    /// Octets scanned, copied and decoded so far: how much work was done, about twice the octets of the file at its end.
    pub fn octets_handled(&self) -> u64 {
        self.octets_handled
    }

    /// The next physical line without its end, and how many octets it took.
    fn peek(&mut self) -> Option<(&'a [u8], usize)> {
        if self.rest.is_empty() {
            return None;
        }
        let mut after = self.rest;
        // Reading from a slice in memory cannot fail.
        let taken = after.skip_until(b'\n').unwrap_or(self.rest.len());
        let line = self.rest.get(..taken).unwrap_or_default();
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        self.octets_handled += taken as u64;
        Some((text.strip_suffix(b"\r").unwrap_or(text), taken))
    }

    fn take(&mut self, taken: usize) {
        self.rest = self.rest.get(taken..).unwrap_or_default();
        self.line = self.line.saturating_add(1);
    }

    /// The next logical line; an empty one ends a record.
    fn next_line(&mut self) -> Result<Option<Line<'a>>, LdifError> {
        let Some((first, taken)) = self.peek() else {
            return Ok(None);
        };
        self.take(taken);
        let number = self.line;
        let too_long = LdifError {
            line: number,
            what: Problem::LineTooLong,
        };
        if first.len() > self.limits.line_bytes_max {
            return Err(too_long);
        }
        if first.starts_with(b" ") {
            return Err(LdifError {
                line: number,
                what: Problem::NothingToContinue,
            });
        }
        let mut text = Cow::Borrowed(first);
        // An empty line is a separator: nothing continues it.
        while !first.is_empty() && self.rest.starts_with(b" ") {
            let Some((more, taken)) = self.peek() else {
                break;
            };
            self.take(taken);
            let more = more.get(1..).unwrap_or_default();
            if text.len() + more.len() > self.limits.line_bytes_max {
                return Err(too_long);
            }
            self.octets_handled += more.len() as u64;
            text.to_mut().extend_from_slice(more);
        }
        Ok(Some(Line { number, text }))
    }

    fn next_record(&mut self) -> Result<Option<Record<'a>>, LdifError> {
        if !self.begun && self.rest.len() > self.limits.file_bytes_max {
            return Err(LdifError {
                line: 1,
                what: Problem::FileTooLong,
            });
        }
        let mut record: Option<Record<'a>> = None;
        let mut record_bytes = 0;
        while let Some(line) = self.next_line()? {
            if line.text.is_empty() {
                match record {
                    Some(_) => break,
                    None => continue,
                }
            }
            if line.text.starts_with(b"#") {
                continue;
            }
            record_bytes += line.text.len();
            let error = |what| LdifError {
                line: line.number,
                what,
            };
            if record_bytes > self.limits.record_bytes_max {
                return Err(error(Problem::RecordTooLong));
            }
            self.octets_handled += line.text.len() as u64;
            let attribute = attribute(&line).map_err(error)?;
            match &mut record {
                None if attribute.name == "version" && !self.begun => {
                    if &*attribute.value != b"1" {
                        return Err(error(Problem::Version));
                    }
                }
                None => record = Some(self.begin(attribute).map_err(error)?),
                Some(_) if attribute.name == "dn" => return Err(error(Problem::TwoDns)),
                Some(_) if matches!(attribute.name.as_str(), "changetype" | "control") => {
                    return Err(error(Problem::ChangeRecord));
                }
                Some(record) if record.attributes.len() >= self.limits.values_max => {
                    return Err(LdifError {
                        line: record.line,
                        what: Problem::TooManyValues,
                    });
                }
                Some(record) => record.attributes.push(attribute),
            }
            self.begun = true;
        }
        match record {
            Some(record) if record.attributes.is_empty() => Err(LdifError {
                line: record.line,
                what: Problem::NoAttributes,
            }),
            record => Ok(record),
        }
    }

    fn begin(&self, dn: Attribute<'a>) -> Result<Record<'a>, Problem> {
        if dn.name != "dn" {
            return Err(Problem::NoDn);
        }
        if dn.value.len() > self.limits.dn_bytes_max {
            return Err(Problem::DnTooLong);
        }
        let text = String::from_utf8(dn.value.into_owned()).map_err(|_| Problem::NotText)?;
        Ok(Record {
            line: dn.line,
            dn: text,
            attributes: Vec::new(),
        })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, LdifError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let record = self.next_record();
        self.failed = record.is_err();
        record.transpose()
    }
}

/// `attribute: value` or `attribute:: base64`.
fn attribute<'a>(line: &Line<'a>) -> Result<Attribute<'a>, Problem> {
    let text = &*line.text;
    if text == b"-" {
        return Err(Problem::ChangeRecord);
    }
    let colon = text
        .iter()
        .position(|&byte| byte == b':')
        .ok_or(Problem::NoColon)?;
    let (name, rest) = text.split_at(colon);
    // options may be anything that a name may be
    let in_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"-.;".contains(byte);
    let is_name = name.iter().all(in_name);
    let name = name.split(|&byte| byte == b';').next().unwrap_or_default();
    if name.is_empty() || !is_name {
        return Err(Problem::BadName);
    }
    let name = String::from_utf8_lossy(name).to_ascii_lowercase();
    let value = match rest.get(1) {
        Some(b'<') => return Err(Problem::Url),
        Some(b':') => {
            let encoded = rest.get(2..).unwrap_or_default().trim_ascii();
            Cow::Owned(STANDARD.decode(encoded).map_err(|_| Problem::BadBase64)?)
        }
        _ => plain_value(&line.text, colon + 1)?,
    };
    Ok(Attribute {
        line: line.number,
        name,
        value,
    })
}

/// The text from `start` on, without the spaces in front; borrowed from the file unless it was folded.
fn plain_value<'a>(text: &Cow<'a, [u8]>, start: usize) -> Result<Cow<'a, [u8]>, Problem> {
    let whole = text.get(start..).unwrap_or_default();
    let spaces = whole.iter().take_while(|&&byte| byte == b' ').count();
    let value = whole.get(spaces..).unwrap_or_default();
    let is_text = std::str::from_utf8(value).is_ok()
        && !value
            .iter()
            .any(|byte| matches!(byte, 0..=8 | 10..=31 | 127));
    if !is_text {
        return Err(Problem::NotText);
    }
    Ok(match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.get(start + spaces..).unwrap_or_default()),
        Cow::Owned(_) => Cow::Owned(value.to_vec()),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Strategy, any, prop, prop_assert, prop_assert_eq, proptest};

    use super::{Limits, Problem, records};

    type Simple = Vec<(u32, String, Vec<(u32, String, Vec<u8>)>)>;

    fn read(text: &[u8]) -> Result<Simple, (u32, Problem)> {
        let limits = Limits {
            line_bytes_max: 60,
            dn_bytes_max: 40,
            record_bytes_max: 200,
            values_max: 4,
            ..Limits::default()
        };
        records(text, limits)
            .map(|record| {
                let record = record.map_err(|error| (error.line, error.what))?;
                let attributes = record
                    .attributes
                    .into_iter()
                    .map(|a| (a.line, a.name, a.value.into_owned()));
                Ok((record.line, record.dn, attributes.collect()))
            })
            .collect()
    }

    #[test]
    fn records_are_read_with_their_lines() {
        let text = b"\xef\xbb\xbfversion: 1\n# a comment\n  folded: on\n\r\ndn: uid=a,\n dc=jp\nuid:a\r\nCN;lang-ja::   44GC\n\n\n\
            # lone comment\n\ndn:: dWlkPWI=\ndescription: caf\xc3\xa9: x\n  y \nempty:\n";
        assert_eq!(
            read(text).unwrap(),
            vec![
                (
                    5,
                    "uid=a,dc=jp".into(),
                    vec![
                        (7, "uid".into(), b"a".to_vec()),
                        (8, "cn".into(), "あ".into())
                    ]
                ),
                (
                    13,
                    "uid=b".into(),
                    vec![
                        (14, "description".into(), "café: x y ".into()),
                        (16, "empty".into(), vec![])
                    ]
                ),
            ]
        );
        assert_eq!(read(b"").unwrap(), vec![]);
        assert_eq!(read(b"\n\n# nothing\n").unwrap(), vec![]);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, line, what) in [
            (" x: y\n", 1, Problem::NothingToContinue),
            ("dn: a\nx: y\n\n z\n", 4, Problem::NothingToContinue),
            ("dn: a\nx\n", 2, Problem::NoColon),
            ("dn: a\nx y: z\n", 2, Problem::BadName),
            ("dn: a\nx;lang y: z\n", 2, Problem::BadName),
            ("dn: a\n: z\n", 2, Problem::BadName),
            ("x: y\n", 1, Problem::NoDn),
            ("dn: a\nversion: 1\n\nversion: 1\n", 4, Problem::NoDn),
            ("dn: a\nx: y\ndn: b\n", 3, Problem::TwoDns),
            ("dn: a\n\ndn: b\nx: y\n", 1, Problem::NoAttributes),
            ("dn: a\nx:: ***\n", 2, Problem::BadBase64),
            ("dn:: //8=\nx: y\n", 1, Problem::NotText),
            ("dn: a\nx: a\rb\n", 2, Problem::NotText),
            ("dn: a\nx: a\0b\n", 2, Problem::NotText),
            ("dn: a\nx:< file:///etc/passwd\n", 2, Problem::Url),
            ("dn: a\nchangetype: add\nx: y\n", 2, Problem::ChangeRecord),
            ("dn: a\nx: y\n-\n", 3, Problem::ChangeRecord),
            ("version: 2\n", 1, Problem::Version),
            (
                "dn: a\na: b\na: b\na: b\na: b\na: b\n",
                1,
                Problem::TooManyValues,
            ),
        ] {
            assert_eq!(read(text.as_bytes()), Err((line, what)), "{text:?}");
        }
        let long = format!("dn: a\nx: {}\n", "y".repeat(58));
        assert_eq!(read(long.as_bytes()), Err((2, Problem::LineTooLong)));
        let folded = format!("dn: a\nx: {}\n {}\n", "y".repeat(40), "y".repeat(40));
        assert_eq!(read(folded.as_bytes()), Err((2, Problem::LineTooLong)));
        let dn = format!("dn: {}\nx: y\n", "y".repeat(41));
        assert_eq!(read(dn.as_bytes()), Err((1, Problem::DnTooLong)));
        let record = format!("dn: a\n{}", format!("x: {}\n", "y".repeat(50)).repeat(4));
        assert_eq!(read(record.as_bytes()), Err((5, Problem::RecordTooLong)));
        assert_eq!(read(b"dn: a\nx: \xff\n"), Err((2, Problem::NotText)));
        let small = Limits {
            file_bytes_max: 3,
            ..Limits::default()
        };
        assert_eq!(
            records(b"dn: a\nx: y\n", small)
                .next()
                .unwrap()
                .unwrap_err()
                .what,
            Problem::FileTooLong
        );
    }

    #[test]
    fn work_grows_as_the_input_does() {
        let shapes: [fn(usize) -> String; 6] = [
            |n| format!("dn: a\nx: y{}\n", "\n z".repeat(n)),
            |n| format!("dn: a\n{}", "x: y\n".repeat(n)),
            |n| "dn: a\nx: y\n\n".repeat(n),
            |n| "\n".repeat(n),
            |n| format!("#{}", "\n #".repeat(n)),
            |n| format!("dn: a\nx:: {}\n", "QUFB\n ".repeat(n)),
        ];
        let limits = Limits {
            line_bytes_max: usize::MAX,
            record_bytes_max: usize::MAX,
            values_max: usize::MAX,
            ..Limits::default()
        };
        for (shape, make) in shapes.iter().enumerate() {
            for n in [10_000, 20_000, 40_000] {
                let text = make(n);
                let mut reader = records(text.as_bytes(), limits);
                assert!(
                    reader.by_ref().all(|record| record.is_ok()),
                    "shape {shape}"
                );
                let handled = reader.octets_handled();
                assert!(
                    handled >= text.len() as u64,
                    "shape {shape}: counts its work"
                );
                assert!(
                    handled <= 3 * text.len() as u64,
                    "shape {shape}: {handled} for {}",
                    text.len()
                );
            }
        }
    }

    fn noise() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop::sample::select(vec![
            "dn: a\n",
            "dn",
            ":",
            "::",
            ":<",
            " ",
            "\n",
            "\r\n",
            "#",
            "-",
            "x: y\n",
            "version: 1\n",
            "QUFB",
            "=",
            "\0",
            "é",
        ]);
        prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat().into_bytes())
    }

    proptest! {
        #[test]
        fn any_octets_end_in_records_or_one_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let results: Vec<_> = records(&bytes, Limits::default()).collect();
            prop_assert!(results.iter().rev().skip(1).all(Result::is_ok));
        }

        #[test]
        fn any_mix_of_its_own_words_ends_in_records_or_one_error(bytes in noise()) {
            let results: Vec<_> = records(&bytes, Limits::default()).collect();
            prop_assert!(results.iter().rev().skip(1).all(Result::is_ok));
            for result in results {
                let line = match result { Ok(record) => record.line, Err(error) => error.line };
                prop_assert!(line >= 1);
            }
        }

        #[test]
        fn folding_anywhere_changes_nothing(value in "[!-9;-~][ -~]{0,60}", cuts in prop::collection::vec(1usize..60, 0..6)) {
            let plain = format!("dn: a\nx: {value}\n");
            let mut line = format!("x: {value}");
            let mut cuts: Vec<_> = cuts.into_iter().filter(|&cut| cut < line.len()).collect();
            cuts.sort_unstable();
            cuts.dedup();
            for cut in cuts.into_iter().rev() {
                line.insert_str(cut, "\n ");
            }
            let folded = format!("dn: a\n{line}\n");
            let value_of = |text: &str| {
                let mut all: Vec<_> = records(text.as_bytes(), Limits::default()).collect::<Result<_, _>>().unwrap();
                all.remove(0).attributes.remove(0).value.into_owned()
            };
            prop_assert_eq!(value_of(&plain), value.into_bytes());
            prop_assert_eq!(value_of(&plain), value_of(&folded));
        }
    }
}

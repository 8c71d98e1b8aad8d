//! LDIF content records (RFC 2849): `dn:` lines and their attributes, one record at a time.
//!
//! ```text
//! ldif-attrval-record = dn-spec SEP 1*attrval-spec      ; records are separated by empty lines
//! attrval-spec        = AttributeDescription (":" FILL SAFE-STRING / "::" FILL BASE64-STRING) SEP
//! SEP                 = LF / CR LF                       ; a line that starts with one space continues the line before
//! ```
//! Wider than the RFC: values may be raw UTF-8, names may have `_`, `changetype: add` stands for
//! content, and what ldapsearch prints beside entries (`search:`, `result:`, `ref:`) is passed
//! over. It refuses other change records.
//!
//! Only attributes that the caller [wants](Records::wanting) are unfolded, decoded and limited; a
//! value of these that cannot be read is a [`Fault`] of its record. What leaves in doubt where
//! records begin and end refuses the file. Time is linear in the input, memory that of what is
//! wanted of one record. Next: `entry` reads what a record says.

use std::borrow::Cow;
use std::fmt;
use std::io::BufRead;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Octets of an attribute's name with its options, where its line is folded before the colon.
const NAME_BYTES_MAX: usize = 1024;
/// Faults that are kept of one record: each kind of each attribute that is read fits.
const FAULTS_MAX: usize = 64;

/// Bounds on the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The whole file.
    pub file_bytes_max: usize,
    /// One line that is wanted, unfolded.
    pub line_bytes_max: usize,
    /// A distinguished name.
    pub dn_bytes_max: usize,
    /// All lines of one record that are wanted, folded or not.
    pub record_bytes_max: usize,
    /// Attribute values of one record that are wanted: members of a group, mostly.
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
    /// The distinguished name, as written; as much of it as there is, if it has a fault.
    pub dn: String,
    /// Those that are wanted, in the order of the file.
    pub attributes: Vec<Attribute<'a>>,
    /// What is wanted and cannot be read: the first fault of each kind and attribute.
    pub faults: Vec<Fault>,
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

/// A value that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// From 1.
    pub line: u32,
    /// Of the attribute, in lower case; `dn` for the distinguished name.
    pub name: String,
    /// What is wrong.
    pub what: Problem,
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
    /// An attribute name with other octets than letters, digits, `-`, `.`, `_`, `;`.
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
    /// `;range=`: other values of the attribute are not there.
    Range,
    /// `changetype:` other than `add`, `control:` or `-`.
    ChangeRecord,
    /// `version:` other than 1.
    Version,
    /// `result:` other than 0.
    Incomplete,
    /// UTF-16, and broken or without a byte order mark.
    Utf16,
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
            Problem::Range => {
                "`;range=` has a part of the values only (Active Directory gives 1,500 at a time); export all of them"
            }
            Problem::ChangeRecord => {
                "change records are not read, only content and `changetype: add`"
            }
            Problem::Version => "expected `version: 1`",
            Problem::Incomplete => {
                "the search that made this file failed or stopped early (`result:` is not 0): entries are missing"
            }
            Problem::Utf16 => {
                "UTF-16 that is broken or has no byte order mark; write the file as UTF-8"
            }
        })
    }
}

/// `file` as UTF-8: one in UTF-16 with a byte order mark, as ldifde -u writes it, is converted.
///
/// # Errors
/// When it is UTF-16 and cannot be converted.
pub fn as_utf8(file: &[u8]) -> Result<Cow<'_, [u8]>, LdifError> {
    let (text, unit): (_, fn([u8; 2]) -> u16) = match file {
        [0xff, 0xfe, text @ ..] => (text, u16::from_le_bytes),
        [0xfe, 0xff, text @ ..] => (text, u16::from_be_bytes),
        [0, _, ..] | [_, 0, ..] => return Err(utf16(1)),
        _ => return Ok(Cow::Borrowed(file)),
    };
    let (pairs, odd) = text.as_chunks::<2>();
    let mut converted = String::with_capacity(text.len() / 2);
    let mut line = 1;
    for letter in char::decode_utf16(pairs.iter().map(|&pair| unit(pair))) {
        let letter = letter.map_err(|_| utf16(line))?;
        line += u32::from(letter == '\n');
        converted.push(letter);
    }
    match odd {
        [] => Ok(Cow::Owned(converted.into_bytes())),
        _ => Err(utf16(line)),
    }
}

fn utf16(line: u32) -> LdifError {
    let what = Problem::Utf16;
    LdifError { line, what }
}

/// Reads records one after another. After an error it yields nothing more.
pub struct Records<'a> {
    rest: &'a [u8],
    line: u32,
    limits: Limits,
    wanted: fn(&str) -> bool,
    begun: bool,
    failed: bool,
    octets_handled: u64,
}

/// The records of `input`, with all their attributes.
pub fn records(input: &[u8], limits: Limits) -> Records<'_> {
    let rest = input.strip_prefix(b"\xef\xbb\xbf").unwrap_or(input);
    Records {
        rest,
        line: 0,
        limits,
        wanted: |_| true,
        begun: false,
        failed: false,
        octets_handled: 0,
    }
}

/// The beginning of a logical line, as far as the colon at least, unfolded.
struct Head<'a> {
    number: u32,
    name: String,
    /// One part of a list of values.
    is_range: bool,
    text: Cow<'a, [u8]>,
    colon: usize,
}

/// A record being read.
struct Draft<'a> {
    record: Record<'a>,
    octets: usize,
    has_attributes: bool,
    /// Beyond a limit: the rest of it is not kept.
    is_full: bool,
}

impl Draft<'_> {
    fn fault(&mut self, line: u32, name: String, what: Problem) {
        let faults = &mut self.record.faults;
        let is_known = |fault: &Fault| fault.name == name && fault.what == what;
        if faults.len() < FAULTS_MAX && !faults.iter().any(is_known) {
            faults.push(Fault { line, name, what });
        }
    }
}

impl<'a> Records<'a> {
    /// Only attributes whose name, in lower case and without options, is `wanted`.
    #[must_use]
    pub fn wanting(self, wanted: fn(&str) -> bool) -> Records<'a> {
        Records { wanted, ..self }
    }

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

    fn error(&self, what: Problem) -> LdifError {
        let line = self.line;
        LdifError { line, what }
    }

    /// The next physical line, which begins a logical one; an empty one ends a record.
    fn first_line(&mut self) -> Result<Option<&'a [u8]>, LdifError> {
        let Some((first, taken)) = self.peek() else {
            return Ok(None);
        };
        self.take(taken);
        match first.first() {
            Some(b' ') => Err(self.error(Problem::NothingToContinue)),
            _ => Ok(Some(first)),
        }
    }

    /// What continues the logical line, without the space in front.
    fn more(&mut self) -> Option<&'a [u8]> {
        if !self.rest.starts_with(b" ") {
            return None;
        }
        let (more, taken) = self.peek()?;
        self.take(taken);
        more.get(1..)
    }

    /// Passes over what is left of the logical line.
    fn skip_line(&mut self) {
        while self.more().is_some() {}
    }

    /// The line that `first` begins, as far as its colon.
    fn head(&mut self, first: &'a [u8]) -> Result<Head<'a>, LdifError> {
        let number = self.line;
        let error = |what| LdifError { line: number, what };
        let mut text = Cow::Borrowed(first);
        let colon = loop {
            if let Some(colon) = text.iter().position(|&octet| octet == b':') {
                break colon;
            }
            if text.len() > NAME_BYTES_MAX {
                return Err(error(Problem::NoColon));
            }
            match self.more() {
                Some(more) => text.to_mut().extend_from_slice(more),
                None if first == b"-" => return Err(error(Problem::ChangeRecord)),
                None => return Err(error(Problem::NoColon)),
            }
        };
        self.octets_handled += colon as u64;
        let description = text.get(..colon).unwrap_or_default();
        let (name, is_range) = description_of(description).map_err(error)?;
        Ok(Head {
            number,
            name,
            is_range,
            text,
            colon,
        })
    }

    /// The rest of the line, decoded.
    fn value(&mut self, head: Head<'a>) -> Result<Cow<'a, [u8]>, Problem> {
        let mut text = head.text;
        if text.len() > self.limits.line_bytes_max {
            self.skip_line();
            return Err(Problem::LineTooLong);
        }
        while let Some(more) = self.more() {
            if text.len() + more.len() > self.limits.line_bytes_max {
                self.skip_line();
                return Err(Problem::LineTooLong);
            }
            self.octets_handled += more.len() as u64;
            text.to_mut().extend_from_slice(more);
        }
        self.octets_handled += (text.len() - head.colon) as u64;
        decoded(&text, head.colon)
    }

    fn next_record(&mut self) -> Result<Option<Record<'a>>, LdifError> {
        if !self.begun && self.rest.len() > self.limits.file_bytes_max {
            let what = Problem::FileTooLong;
            return Err(LdifError { line: 1, what });
        }
        let mut draft: Option<Draft<'a>> = None;
        while let Some(first) = self.first_line()? {
            match first.first() {
                None if draft.is_some() => break,
                None => continue,
                Some(b'#') => {
                    self.skip_line();
                    continue;
                }
                Some(_) => {}
            }
            let head = self.head(first)?;
            let error = LdifError {
                line: head.number,
                what: Problem::NoDn,
            };
            let error = |what| LdifError { what, ..error };
            match (&mut draft, head.name.as_str()) {
                (None, "version") if !self.begun => {
                    if self.value(head).map_err(error)?.as_ref() != b"1" {
                        return Err(error(Problem::Version));
                    }
                }
                (None, "search" | "result" | "ref") => self.trailer(first)?,
                (None, "dn") => draft = Some(self.begin(head)),
                (None, _) => return Err(error(Problem::NoDn)),
                (Some(_), "dn") => return Err(error(Problem::TwoDns)),
                (Some(_), "changetype") => {
                    let kind = self.value(head).map_err(error)?;
                    if !kind.trim_ascii().eq_ignore_ascii_case(b"add") {
                        return Err(error(Problem::ChangeRecord));
                    }
                }
                (Some(_), "control") => return Err(error(Problem::ChangeRecord)),
                (Some(draft), name) => {
                    draft.has_attributes = true;
                    match (self.wanted)(name) && !draft.is_full {
                        true => self.keep(draft, head),
                        false => self.skip_line(),
                    }
                }
            }
            self.begun = true;
        }
        match draft {
            Some(draft) if !draft.has_attributes => Err(LdifError {
                line: draft.record.line,
                what: Problem::NoAttributes,
            }),
            draft => Ok(draft.map(|draft| draft.record)),
        }
    }

    fn begin(&mut self, head: Head<'a>) -> Draft<'a> {
        let line = head.number;
        let mut draft = Draft {
            record: Record {
                line,
                dn: String::new(),
                attributes: Vec::new(),
                faults: Vec::new(),
            },
            octets: 0,
            has_attributes: false,
            is_full: false,
        };
        let fault = match self.value(head) {
            Ok(value) => {
                let kept = value.get(..self.limits.dn_bytes_max).unwrap_or(&value);
                draft.record.dn = String::from_utf8_lossy(kept).into_owned();
                if kept.len() < value.len() {
                    Some(Problem::DnTooLong)
                } else {
                    std::str::from_utf8(&value).err().map(|_| Problem::NotText)
                }
            }
            Err(what) => Some(what),
        };
        if let Some(what) = fault {
            draft.fault(line, "dn".to_owned(), what);
        }
        draft
    }

    /// Takes a value that is wanted into its record.
    fn keep(&mut self, draft: &mut Draft<'a>, head: Head<'a>) {
        let (line, name) = (head.number, head.name.clone());
        if draft.record.attributes.len() >= self.limits.values_max {
            self.skip_line();
            draft.is_full = true;
            draft.fault(draft.record.line, name, Problem::TooManyValues);
            return;
        }
        let colon = head.colon;
        let value = match head.is_range {
            true => {
                self.skip_line();
                Err(Problem::Range)
            }
            false => self.value(head),
        };
        match value {
            Ok(value) => {
                draft.octets += colon + 2 + value.len();
                if draft.octets > self.limits.record_bytes_max {
                    draft.is_full = true;
                    draft.fault(line, name, Problem::RecordTooLong);
                } else {
                    draft
                        .record
                        .attributes
                        .push(Attribute { line, name, value });
                }
            }
            Err(what) => draft.fault(line, name, what),
        }
    }

    /// Passes over what ldapsearch prints beside entries, a referral or the result, from the line
    /// `first` up to an empty one.
    fn trailer(&mut self, first: &'a [u8]) -> Result<(), LdifError> {
        let mut next = Some(first);
        while let Some(text) = next.filter(|text| !text.is_empty()) {
            let result = text.strip_prefix(b"result:").map(<[u8]>::trim_ascii);
            if result
                .is_some_and(|result| result.split(u8::is_ascii_whitespace).next() != Some(b"0"))
            {
                return Err(self.error(Problem::Incomplete));
            }
            self.skip_line();
            next = self.first_line()?;
        }
        Ok(())
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

/// The name in an attribute description, in lower case, and whether an option of it says that
/// values are missing.
fn description_of(description: &[u8]) -> Result<(String, bool), Problem> {
    let mut parts = description.split(|&octet| octet == b';');
    let name = parts.next().unwrap_or_default();
    let in_name = |octet: &u8| octet.is_ascii_alphanumeric() || b"-._".contains(octet);
    // ranges have more: `range=0-*`
    let in_option = |octet: &u8| in_name(octet) || b"=*".contains(octet);
    if name.is_empty() || !name.iter().all(in_name) {
        return Err(Problem::BadName);
    }
    let mut is_range = false;
    for option in parts {
        if !option.iter().all(in_option) {
            return Err(Problem::BadName);
        }
        let (kind, range) = option.split_at_checked(6).unwrap_or_default();
        is_range |= kind.eq_ignore_ascii_case(b"range=") && range != b"0-*";
    }
    Ok((String::from_utf8_lossy(name).to_ascii_lowercase(), is_range))
}

/// The value in `text` behind its colon: as it stands, or in base64. Borrowed from the file unless
/// it was folded.
fn decoded<'a>(text: &Cow<'a, [u8]>, colon: usize) -> Result<Cow<'a, [u8]>, Problem> {
    match text.get(colon + 1) {
        Some(b'<') => Err(Problem::Url),
        Some(b':') => {
            let encoded = text.get(colon + 2..).unwrap_or_default().trim_ascii();
            let octets = STANDARD.decode(encoded).map_err(|_| Problem::BadBase64)?;
            Ok(Cow::Owned(octets))
        }
        _ => plain_value(text, colon + 1),
    }
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

    use super::{Limits, Problem, as_utf8, records};

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
                if let Some(fault) = record.faults.first() {
                    return Err((fault.line, fault.what));
                }
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
            (
                "dn: a\nchangetype: modify\nx: y\n",
                2,
                Problem::ChangeRecord,
            ),
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
    fn what_is_not_wanted_is_neither_decoded_nor_limited() {
        let limits = Limits {
            line_bytes_max: 60,
            record_bytes_max: 200,
            values_max: 4,
            ..Limits::default()
        };
        let text = [
            "dn: uid=a\nchangeType: add\nuid: a\njpegPhoto:< file:///photo.jpg\ndescription: a\u{1}b\nbad:: ***\n",
            &format!("long: {}\n", "x".repeat(100)),
            &format!("photo:: {}", "QUFB\n ".repeat(100)),
            "\n",
            &"memberUid: x\n".repeat(100),
            "own_name: x\nlist;range=0-1499: x\nmail\n Name;lang-ja: z\n",
        ];
        let text = text.concat();
        let wanted = |name: &str| ["uid", "mailname"].contains(&name);
        let found: Vec<_> = records(text.as_bytes(), limits).wanting(wanted).collect();
        let [Ok(record)] = &found[..] else {
            panic!("{found:?}")
        };
        let values = record
            .attributes
            .iter()
            .map(|a| (a.name.as_str(), &*a.value));
        let values: Vec<_> = values.collect();
        assert_eq!(values, [("uid", &b"a"[..]), ("mailname", b"z")]);
        assert_eq!(record.faults, []);
    }

    #[test]
    fn a_value_that_cannot_be_read_is_a_fault_of_its_record_alone() {
        let long = format!("x: {}\n y\n", "y".repeat(58));
        let wide = "x: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\n".repeat(4);
        for (attributes, line, name, what) in [
            ("x:: ***\n", 2, "x", Problem::BadBase64),
            ("x: a\0b\n", 2, "x", Problem::NotText),
            ("y: z\nX:< file:///etc/passwd\n", 3, "x", Problem::Url),
            ("x;range=0-1499: y\n", 2, "x", Problem::Range),
            ("x;Range=1500-*: y\n", 2, "x", Problem::Range),
            (&long, 2, "x", Problem::LineTooLong),
            (&wide, 5, "x", Problem::RecordTooLong),
            (&"x: y\n".repeat(5), 1, "x", Problem::TooManyValues),
        ] {
            let limits = Limits {
                line_bytes_max: 60,
                record_bytes_max: 200,
                values_max: 4,
                ..Limits::default()
            };
            let text = format!("dn: a\n{attributes}\ndn: b\nx: y\n");
            let found: Result<Vec<_>, _> = records(text.as_bytes(), limits).collect();
            let found = found.unwrap();
            let faults: Vec<_> = found[0]
                .faults
                .iter()
                .map(|fault| (fault.line, fault.name.as_str(), fault.what))
                .collect();
            assert_eq!(faults, [(line, name, what)], "{attributes:?}");
            assert_eq!((found.len(), found[1].attributes.len()), (2, 1));
            assert_eq!(found[1].faults, []);
        }
        let whole = read(b"dn: a\nx;range=0-*: y\n").unwrap();
        assert_eq!(whole[0].2, [(2, "x".to_owned(), b"y".to_vec())]);
    }

    #[test]
    fn what_ldapsearch_prints_beside_entries_is_passed_over() {
        let text = b"# extended LDIF\n#\n\n# a\ndn: a\nx: y\n\n# search reference\nref: ldap://elsewhere/dc=x??sub\n\n\
            # search result\nsearch: 2\nresult: 0 Success\ncontrol: 1.2.840.113556.1.4.319 false MAUCAQAEAA==\n\n\
            # numResponses: 3\n# numEntries: 1\n# numReferences: 1\n";
        assert_eq!(read(text).unwrap().len(), 1);
        let cut = b"dn: a\nx: y\n\nsearch: 2\nresult: 4 Size limit exceeded\n";
        assert_eq!(read(cut), Err((5, Problem::Incomplete)));
        // beside a DN they are attributes like others
        assert_eq!(
            read(b"dn: a\nref: ldap://x\n").unwrap()[0].2,
            [(2, "ref".to_owned(), b"ldap://x".to_vec())]
        );
    }

    #[test]
    fn utf16_with_its_mark_is_read() {
        let text = "dn: cn=あ𝄞\r\nx: y\r\n";
        let units: Vec<u16> = text.encode_utf16().collect();
        let little = units.iter().flat_map(|unit| unit.to_le_bytes());
        let little: Vec<u8> = [0xff, 0xfe].into_iter().chain(little).collect();
        let big = units.iter().flat_map(|unit| unit.to_be_bytes());
        let big: Vec<u8> = [0xfe, 0xff].into_iter().chain(big).collect();
        for file in [&little, &big] {
            assert_eq!(as_utf8(file).unwrap(), text.as_bytes());
        }
        assert_eq!(as_utf8(text.as_bytes()).unwrap(), text.as_bytes());
        for broken in [&little[2..], &big[2..], &little[..little.len() - 1]] {
            assert_eq!(as_utf8(broken).unwrap_err().what, Problem::Utf16);
        }
        let lone = [0xff, 0xfe, b'\n', 0, 0x00, 0xd8, b'a', 0];
        assert_eq!(as_utf8(&lone).unwrap_err().line, 2);
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

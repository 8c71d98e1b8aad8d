//! LDIF (RFC 2849): records are what a plain reader makes of them, the same when they are written again, with other line ends, or
//! folded; and whatever a file says, the directory made of it answers.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hikyaku_directory::ldif::{LdifError, Limits, Problem, records};
use hikyaku_directory::load::load;
use hikyaku_directory::settings::Settings;
use hikyaku_mail::path::Mailbox;

use crate::memory::bounded;

/// A record without its line numbers: its DN, its attributes, the names of those that could not be
/// read.
type Record = (String, Vec<(String, Vec<u8>)>, Vec<(String, Problem)>);

/// Attribute values in one record.
const VALUES_MAX: usize = 20;
/// What could not be read of one record.
const FAULTS_MAX: usize = 64;
/// Octets that a line may have before its colon where it is folded.
const NAME_BYTES_MAX: usize = 1024;

/// `data` is a file.
pub fn run(data: &[u8]) {
    let found = read(data);
    assert_eq!(found.as_ref().ok(), reference(data).as_ref());
    if !data.contains(&b'\r') {
        let lines: Vec<&[u8]> = data.split(|&octet| octet == b'\n').collect();
        assert_eq!(read(&lines.join(&b"\r\n"[..])), found, "with CRLF");
    }
    if let Ok(found) = found
        && found.iter().all(|(_, _, faults)| faults.is_empty())
    {
        assert_eq!(read(&written(&found, usize::MAX)).as_ref(), Ok(&found));
        assert_eq!(read(&written(&found, 5)).as_ref(), Ok(&found), "folded");
    }
    wanted(data);
    directory(data);
}

fn read(data: &[u8]) -> Result<Vec<Record>, LdifError> {
    let limits = Limits {
        // so that they are met
        values_max: VALUES_MAX,
        ..Limits::default()
    };
    // an attribute of three octets is a structure of about 80, and a vector grows by doubling
    bounded(data.len(), 100, || {
        let mut records = records(data, limits);
        let mut found = Vec::new();
        for record in records.by_ref() {
            let record = record?;
            assert!(record.line > 0);
            found.push(plain(record));
        }
        let handled = records.octets_handled();
        assert!(handled <= 4 * data.len() as u64, "{handled} octets handled");
        assert!(records.next().is_none());
        Ok(found)
    })
}

fn plain(record: hikyaku_directory::ldif::Record<'_>) -> Record {
    let attributes = record.attributes.into_iter();
    let attributes = attributes.map(|a| (a.name, a.value.into_owned())).collect();
    let faults = record.faults.into_iter();
    let faults = faults.map(|fault| (fault.name, fault.what)).collect();
    (record.dn, attributes, faults)
}

/// Who wants some attributes gets these as if there were no others.
fn wanted(data: &[u8]) {
    let is_wanted = |name: &str| name.len().is_multiple_of(2);
    let limits = Limits::default();
    let all: Result<Vec<_>, _> = records(data, limits).collect();
    let some: Result<Vec<_>, _> = records(data, limits).wanting(is_wanted).collect();
    let (Ok(all), Ok(some)) = (&all, &some) else {
        assert_eq!(all.err(), some.err());
        return;
    };
    assert_eq!(all.len(), some.len());
    for (all, some) in all.iter().zip(some) {
        assert_eq!((&all.dn, all.line), (&some.dn, some.line));
        let wanted = all.attributes.iter().filter(|a| is_wanted(&a.name));
        assert!(wanted.eq(&some.attributes));
        let wanted = all
            .faults
            .iter()
            .filter(|fault| fault.name == "dn" || is_wanted(&fault.name));
        // beyond a number they are not kept
        assert!(all.faults.len() >= FAULTS_MAX || wanted.eq(&some.faults));
    }
}

/// Everything in base64, so that nothing depends on what is in it; lines folded after `width` octets.
fn written(records: &[Record], width: usize) -> Vec<u8> {
    let mut file = Vec::new();
    for (dn, attributes, _) in records {
        let dn = ("dn", dn.as_bytes());
        let attributes = attributes
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_slice()));
        for (name, value) in std::iter::once(dn).chain(attributes) {
            let text = format!("{name}:: {}", STANDARD.encode(value));
            let parts: Vec<&[u8]> = text.as_bytes().chunks(width).collect();
            file.extend(parts.join(&b"\n "[..]));
            file.push(b'\n');
        }
        file.push(b'\n');
    }
    file
}

/// A line, and where it was folded.
#[derive(Default)]
struct Line {
    text: Vec<u8>,
    folds: Vec<usize>,
}

impl Line {
    /// What stood before the first fold.
    fn first(&self) -> &[u8] {
        let end = self.folds.first().copied().unwrap_or(self.text.len());
        &self.text[..end]
    }

    /// Whether the line is too long before the fold behind which its colon is.
    fn has_late_colon(&self) -> bool {
        let colon = self.text.iter().position(|&octet| octet == b':');
        let colon = colon.unwrap_or(self.text.len());
        let last = self.folds.iter().filter(|&&fold| fold <= colon).max();
        last.is_some_and(|&fold| fold > NAME_BYTES_MAX)
    }
}

/// The lines of a file after all of them have been unfolded; `None` if one continues nothing.
fn unfolded(data: &[u8]) -> Option<Vec<Line>> {
    let mut lines: Vec<Line> = Vec::new();
    for line in data.split_inclusive(|&octet| octet == b'\n') {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match line.strip_prefix(b" ") {
            Some(more) => {
                let last = lines.last_mut().filter(|line| !line.text.is_empty())?;
                last.folds.push(last.text.len());
                last.text.extend(more);
            }
            None => lines.push(Line {
                text: line.to_vec(),
                folds: Vec::new(),
            }),
        }
    }
    Some(lines)
}

/// A record being read, and what is known of it.
struct Draft {
    record: Record,
    has_attributes: bool,
    is_full: bool,
}

impl Draft {
    fn fault(&mut self, name: String, what: Problem) {
        let faults = &mut self.record.2;
        let fault = (name, what);
        if faults.len() < FAULTS_MAX && !faults.contains(&fault) {
            faults.push(fault);
        }
    }

    fn begun(dn: Result<Vec<u8>, Problem>) -> Draft {
        let mut draft = Draft {
            record: Record::default(),
            has_attributes: false,
            is_full: false,
        };
        let fault = match &dn {
            Err(what) => Some(*what),
            Ok(dn) if dn.len() > 1024 => Some(Problem::DnTooLong),
            Ok(dn) => std::str::from_utf8(dn).err().map(|_| Problem::NotText),
        };
        if let Some(what) = fault {
            draft.fault("dn".to_owned(), what);
        }
        let dn = dn.unwrap_or_default();
        draft.record.0 = String::from_utf8_lossy(&dn[..dn.len().min(1024)]).into_owned();
        draft
    }

    fn keep(&mut self, name: String, is_part: bool, value: Result<Vec<u8>, Problem>) {
        self.has_attributes = true;
        if self.is_full {
            return;
        }
        if self.record.1.len() == VALUES_MAX {
            self.is_full = true;
            self.fault(name, Problem::TooManyValues);
            return;
        }
        match value {
            _ if is_part => self.fault(name, Problem::Range),
            Ok(value) => self.record.1.push((name, value)),
            Err(what) => self.fault(name, what),
        }
    }
}

/// The records by RFC 2849, read line by line after all of them have been unfolded; `None` if the
/// file is none.
fn reference(data: &[u8]) -> Option<Vec<Record>> {
    let data = data.strip_prefix(b"\xef\xbb\xbf").unwrap_or(data);
    let mut drafts: Vec<Draft> = Vec::new();
    let (mut open, mut begun, mut beside) = (false, false, false);
    for line in unfolded(data)? {
        if line.text.is_empty() {
            if open && !drafts.last()?.has_attributes {
                return None;
            }
            (open, beside) = (false, false);
            continue;
        }
        if !beside {
            if line.text.starts_with(b"#") {
                continue;
            }
            let (name, is_part, value) = attribute(&line)?;
            match name.as_str() {
                "version" if !open && !begun => {
                    if value.ok()? != b"1" {
                        return None;
                    }
                }
                "search" | "result" | "ref" if !open => beside = true,
                "dn" if !open => {
                    drafts.push(Draft::begun(value));
                    open = true;
                }
                "dn" | "control" => return None,
                _ if !open => return None,
                "changetype" => {
                    if !value.ok()?.trim_ascii().eq_ignore_ascii_case(b"add") {
                        return None;
                    }
                }
                _ => drafts.last_mut()?.keep(name, is_part, value),
            }
            begun = true;
        }
        if let (true, Some(result)) = (beside, line.first().strip_prefix(b"result:")) {
            let result = result.trim_ascii();
            if result.split(u8::is_ascii_whitespace).next() != Some(b"0") {
                return None;
            }
        }
    }
    if open && !drafts.last()?.has_attributes {
        return None;
    }
    Some(drafts.into_iter().map(|draft| draft.record).collect())
}

/// Name, whether other values are elsewhere, and the value, if it can be read.
fn attribute(line: &Line) -> Option<(String, bool, Result<Vec<u8>, Problem>)> {
    let text = &line.text;
    let colon = text.iter().position(|&octet| octet == b':')?;
    if line.has_late_colon() {
        return None;
    }
    let description = std::str::from_utf8(&text[..colon]).ok()?;
    let is_name = |text: &str, more: &[u8]| {
        let mut octets = text.bytes();
        octets.all(|it| it.is_ascii_alphanumeric() || b"-._".contains(&it) || more.contains(&it))
    };
    let (name, options) = description.split_once(';').unwrap_or((description, ""));
    if name.is_empty() || !is_name(name, b"") || !is_name(options, b";=*") {
        return None;
    }
    let is_part = options.to_ascii_lowercase().split(';').any(|option| {
        option
            .strip_prefix("range=")
            .is_some_and(|range| range != "0-*")
    });
    Some((name.to_ascii_lowercase(), is_part, value(text, colon)))
}

fn value(line: &[u8], colon: usize) -> Result<Vec<u8>, Problem> {
    match line.get(colon + 1) {
        Some(b'<') => Err(Problem::Url),
        Some(b':') => STANDARD
            .decode(line[colon + 2..].trim_ascii())
            .map_err(|_| Problem::BadBase64),
        _ => {
            let text = std::str::from_utf8(&line[colon + 1..]).map_err(|_| Problem::NotText)?;
            let text = text.trim_start_matches(' ');
            let is_text = text
                .chars()
                .all(|letter| !letter.is_ascii_control() || letter == '\t');
            match is_text {
                true => Ok(text.as_bytes().to_vec()),
                false => Err(Problem::NotText),
            }
        }
    }
}

/// The directory of a site whose file ends in `data`.
fn directory(data: &[u8]) {
    const SITE: &[u8] =
        b"dn: dc=x\nobjectClass: domainRelatedObject\nassociatedDomain: x.jp\nmailHost: m\n\n\
        dn: uid=u,dc=x\nuid: u\nmailLocalAddress: u@x.jp\nmailHost: m\nentryUUID: u\n\n";
    let file = [SITE, data].concat();
    let settings = Settings::new(&["m"], "x.jp");
    let table = match load(&file, &settings) {
        Ok(table) => table,
        Err(findings) => {
            assert!(!findings.is_empty(), "a file is refused for a reason");
            return;
        }
    };
    for finding in table.findings() {
        let line = finding.to_string();
        assert!(!line.chars().any(char::is_control), "{line:?}");
    }
    for address in [
        "u@x.jp",
        "u+a@x.jp",
        "postmaster@x.jp",
        "g@x.jp",
        "u@elsewhere.jp",
    ] {
        let Ok(address) = address.parse::<Mailbox>() else {
            panic!("{address} is an address");
        };
        let (first, second) = (table.resolve(&address), table.resolve(&address));
        assert_eq!(format!("{first:?}"), format!("{second:?}"));
    }
}

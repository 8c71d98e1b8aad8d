//! LDIF (RFC 2849): records are what a plain reader makes of them, the same when they are written again, with other line ends, or
//! folded; and whatever a file says, the directory made of it answers.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hikyaku_directory::ldif::{LdifError, Limits, records};
use hikyaku_directory::load::load;
use hikyaku_directory::settings::Settings;
use hikyaku_mail::path::Mailbox;

use crate::memory::bounded;

/// A record without its line numbers.
type Record = (String, Vec<(String, Vec<u8>)>);

/// Attribute values in one record.
const VALUES_MAX: usize = 20;

/// `data` is a file.
pub fn run(data: &[u8]) {
    let found = read(data);
    assert_eq!(found.as_ref().ok(), reference(data).as_ref());
    if !data.contains(&b'\r') {
        let lines: Vec<&[u8]> = data.split(|&octet| octet == b'\n').collect();
        assert_eq!(read(&lines.join(&b"\r\n"[..])), found, "with CRLF");
    }
    if let Ok(found) = found {
        assert_eq!(read(&written(&found, usize::MAX)).as_ref(), Ok(&found));
        assert_eq!(read(&written(&found, 5)).as_ref(), Ok(&found), "folded");
    }
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
            assert!(!record.attributes.is_empty() && record.line > 0);
            let attributes = record.attributes.into_iter();
            let attributes = attributes.map(|a| (a.name, a.value.into_owned())).collect();
            found.push((record.dn, attributes));
        }
        let handled = records.octets_handled();
        assert!(handled <= 4 * data.len() as u64, "{handled} octets handled");
        assert!(records.next().is_none());
        Ok(found)
    })
}

/// Everything in base64, so that nothing depends on what is in it; lines folded after `width` octets.
fn written(records: &[Record], width: usize) -> Vec<u8> {
    let mut file = Vec::new();
    for (dn, attributes) in records {
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

/// The records by RFC 2849, read line by line after all of them have been unfolded; `None` if the file is none.
fn reference(data: &[u8]) -> Option<Vec<Record>> {
    let data = data.strip_prefix(b"\xef\xbb\xbf").unwrap_or(data);
    let mut lines: Vec<Vec<u8>> = Vec::new();
    for line in data.split_inclusive(|&octet| octet == b'\n') {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match line.strip_prefix(b" ") {
            Some(more) => lines
                .last_mut()
                .filter(|line| !line.is_empty())?
                .extend(more),
            None => lines.push(line.to_vec()),
        }
    }
    let mut records: Vec<Record> = Vec::new();
    let (mut open, mut begun) = (false, false);
    for line in lines {
        if line.is_empty() {
            if open && records.last()?.1.is_empty() {
                return None;
            }
            open = false;
            continue;
        }
        if line.starts_with(b"#") {
            continue;
        }
        let (name, value) = attribute(&line)?;
        match name.as_str() {
            "version" if !begun => {
                if value != b"1" {
                    return None;
                }
            }
            "dn" if !open && value.len() <= 1024 => {
                records.push((String::from_utf8(value).ok()?, Vec::new()));
                open = true;
            }
            "dn" | "changetype" | "control" => return None,
            _ if !open || records.last()?.1.len() == VALUES_MAX => return None,
            _ => records.last_mut()?.1.push((name, value)),
        }
        begun = true;
    }
    if open && records.last()?.1.is_empty() {
        return None;
    }
    Some(records)
}

fn attribute(line: &[u8]) -> Option<(String, Vec<u8>)> {
    let colon = line.iter().position(|&octet| octet == b':')?;
    let name = std::str::from_utf8(&line[..colon]).ok()?;
    let is_name = |octet: u8| octet.is_ascii_alphanumeric() || b"-.;".contains(&octet);
    if !name.bytes().all(is_name) {
        return None;
    }
    let name = name.split(';').next()?.to_ascii_lowercase();
    if name.is_empty() {
        return None;
    }
    let value = match line.get(colon + 1) {
        Some(b'<') => return None,
        Some(b':') => STANDARD.decode(line[colon + 2..].trim_ascii()).ok()?,
        _ => {
            let text = std::str::from_utf8(&line[colon + 1..]).ok()?;
            let text = text.trim_start_matches(' ');
            if text
                .chars()
                .any(|letter| letter.is_ascii_control() && letter != '\t')
            {
                return None;
            }
            text.as_bytes().to_vec()
        }
    };
    Some((name, value))
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

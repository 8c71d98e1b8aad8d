//! LDIF (RFC 2849): records read are the same when they are written again, with other line ends, or folded; and whatever a file
//! says, the directory made of it answers.

use hikyaku_directory::ldif::{LdifError, Limits, records};
use hikyaku_directory::load::load;
use hikyaku_directory::settings::Settings;
use hikyaku_mail::path::Mailbox;

use crate::memory::bounded;

/// A record without its line numbers.
type Record = (String, Vec<(String, Vec<u8>)>);

/// `data` is a file.
pub fn run(data: &[u8]) {
    let found = read(data);
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
        values_max: 20,
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
            let text = format!("{name}:: {}", base64(value));
            let parts: Vec<&[u8]> = text.as_bytes().chunks(width).collect();
            file.extend(parts.join(&b"\n "[..]));
            file.push(b'\n');
        }
        file.push(b'\n');
    }
    file
}

fn base64(octets: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in octets.chunks(3) {
        let number = three
            .iter()
            .fold(0_u32, |number, &octet| number << 8 | u32::from(octet));
        let number = number << (8 * (3 - three.len()));
        for place in 0..4 {
            let six = (number >> (18 - 6 * place)) as usize & 63;
            text.push(if place > three.len() {
                '='
            } else {
                char::from(LETTERS[six])
            });
        }
    }
    text
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

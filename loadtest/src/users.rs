//! Who sends and who reads: the users file, and a directory to match it for tests.
//!
//! The users file has one line per user, `ADDRESS PASSWORD [LOGIN]`; the login is the address unless given.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

/// The most users of one file.
const USERS_MAX: usize = 10_000_000;

/// One line of the users file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Where mail goes.
    pub address: String,
    /// What USER says.
    pub login: String,
    /// What PASS says.
    pub password: String,
}

/// Reads a users file. Blank lines and lines that begin with `#` are skipped.
pub fn read(path: &Path) -> anyhow::Result<Vec<User>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("users file {}", path.display()))?;
    parse(&text).with_context(|| format!("users file {}", path.display()))
}

/// Parses the text of a users file.
pub fn parse(text: &str) -> anyhow::Result<Vec<User>> {
    let mut users = Vec::new();
    let mut known = std::collections::BTreeSet::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let mut words = line.split_whitespace();
        let (Some(address), Some(password)) = (words.next(), words.next()) else {
            bail!("line {}: not ADDRESS PASSWORD [LOGIN]", number + 1);
        };
        ensure!(
            address.contains('@') && !address.contains(['<', '>']),
            "line {}: no address",
            number + 1
        );
        // maildrops are found by addresses without regard to case
        ensure!(
            known.insert(address.to_ascii_lowercase()),
            "line {}: {address} is there twice",
            number + 1
        );
        let login = words.next().unwrap_or(address);
        let user = User {
            address: address.to_owned(),
            login: login.to_owned(),
            password: password.to_owned(),
        };
        ensure!(users.len() < USERS_MAX, "more than {USERS_MAX} users");
        users.push(user);
    }
    ensure!(!users.is_empty(), "no users");
    Ok(users)
}

/// A directory of `count` users in `domain`, spread over `mboxes`, as LDIF (RFC 2849, inetLocalMailRecipient) and as
/// users file. Each has a password of its own, stored as {SSHA256}.
pub fn generate(count: usize, domain: &str, mboxes: &[String]) -> anyhow::Result<(String, String)> {
    ensure!(
        count > 0 && count <= USERS_MAX,
        "count is outside 1..{USERS_MAX}"
    );
    ensure!(
        !mboxes.is_empty() && mboxes.iter().all(|m| !m.is_empty()),
        "at least one mbox is needed"
    );
    // the domain's own entry: whose it is, and where users without mailHost live
    let mut ldif = format!(
        "version: 1\n\ndn: o={domain}\nobjectClass: organization\nobjectClass: domainRelatedObject\n\
         objectClass: inetLocalMailRecipient\no: {domain}\n\
         associatedDomain: {domain}\nmailHost: {}\n",
        mboxes[0]
    );
    let mut lines = String::new();
    let width = count.to_string().len();
    for number in 1..=count {
        let uid = format!("user{number:0width$}");
        let mut random = [0; 40];
        getrandom::fill(&mut random).map_err(|e| anyhow::anyhow!("no randomness: {e}"))?;
        let (uuid, rest) = random.split_at(16);
        let (salt, secret) = rest.split_at(16);
        let password = hex(secret);
        let mbox = &mboxes[(number - 1) % mboxes.len()];
        write!(
            ldif,
            "\ndn: uid={uid},ou=people,o={domain}\nobjectClass: inetOrgPerson\nobjectClass: inetLocalMailRecipient\n\
             uid: {uid}\nentryUUID: {}\ncn: {uid}\nsn: {uid}\nmailLocalAddress: {uid}@{domain}\nmailHost: {mbox}\n\
             userPassword: {}\n",
            uuid_v4(uuid),
            ssha256(&password, salt),
        )?;
        writeln!(lines, "{uid}@{domain} {password}")?;
    }
    Ok((ldif, lines))
}

/// `{SSHA256}` + base64(SHA-256(password, salt), salt). Its base64 has no newline and no leading space, so LDIF takes
/// it as it is.
fn ssha256(password: &str, salt: &[u8]) -> String {
    let mut digest = Sha256::new();
    digest.update(password.as_bytes());
    digest.update(salt);
    let mut bytes = digest.finalize().to_vec();
    bytes.extend_from_slice(salt);
    format!("{{SSHA256}}{}", STANDARD.encode(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn uuid_v4(random: &[u8]) -> String {
    let mut bytes = random.to_vec();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let text = hex(&bytes);
    format!(
        "{}-{}-{}-{}-{}",
        &text[..8],
        &text[8..12],
        &text[12..16],
        &text[16..20],
        &text[20..]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_two_or_three_words() {
        let users = parse("# demo\nalice@example.jp hikyaku\n\nbob@example.jp pw bob\n").unwrap();
        assert_eq!(
            (users[0].login.as_str(), users[1].login.as_str()),
            ("alice@example.jp", "bob")
        );
        assert!(
            parse("alice@example.jp\n")
                .unwrap_err()
                .to_string()
                .contains("line 1")
        );
        assert!(
            parse("a@b x\nA@b y\n")
                .unwrap_err()
                .to_string()
                .contains("twice")
        );
        assert!(parse("# nobody\n").is_err());
    }

    #[test]
    fn generated_directory_and_users_file_belong_together() {
        let mboxes = ["mbox1".to_owned(), "mbox2".to_owned()];
        let (ldif, text) = generate(12, "example.jp", &mboxes).unwrap();
        let users = parse(&text).unwrap();
        assert_eq!(users.len(), 12);
        // after the version and the domain
        let entries: Vec<&str> = ldif.split("\n\n").skip(2).collect();
        assert_eq!(entries.len(), 12);
        for (user, entry) in users.iter().zip(entries) {
            assert!(entry.contains(&format!("mailLocalAddress: {}\n", user.address)));
            let stored = entry
                .lines()
                .find_map(|l| l.strip_prefix("userPassword: {SSHA256}"))
                .unwrap();
            let bytes = STANDARD.decode(stored).unwrap();
            assert_eq!(
                ssha256(&user.password, &bytes[32..]),
                format!("{{SSHA256}}{stored}")
            );
            let uuid = entry
                .lines()
                .find_map(|l| l.strip_prefix("entryUUID: "))
                .unwrap();
            assert_eq!((uuid.len(), uuid.as_bytes()[14]), (36, b'4'));
        }
        assert_eq!(ldif.matches("mailHost: mbox2\n").count(), 6);
    }
}

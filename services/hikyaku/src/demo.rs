//! `hikyaku demo`: a mail system in one directory, ready to be sent to and read from.
//!
//! It writes what is missing and never touches what is there, so starting again continues with the same mail.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The password of every sample user.
pub const PASSWORD: &str = "hikyaku";

/// `--port-base` of a first start, unless given.
const PORT_BASE: u16 = 2000;
/// Ports relative to it.
const SMTP: u16 = 525;
const POP3: u16 = 110;
const POP3S: u16 = 995;

/// Makes the demo directory `directory` complete; answers its configuration file.
///
/// # Errors
/// When files cannot be written, or ports do not fit.
pub fn prepare(directory: &Path, port_base: Option<u16>) -> Result<PathBuf> {
    let text = configuration_text(port_base.unwrap_or(PORT_BASE))?;
    let configuration = directory.join("hikyaku.toml");
    let (certificate, key) = (directory.join("certificate.pem"), directory.join("key.pem"));
    if certificate.exists() != key.exists() {
        bail!(
            "one of {} and {} is there without the other: move it away, or choose another --dir",
            certificate.display(),
            key.display()
        );
    }
    if port_base.is_some() && configuration.exists() {
        check_ports(&configuration, &text)?;
    }
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    write_new(&configuration, 0o644, || Ok(text))?;
    write_new(&directory.join("directory.ldif"), 0o640, ldif_text)?;
    if !certificate.exists() {
        let made =
            rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()])
                .context("making a self-signed certificate")?;
        write_over(&key, 0o600, &made.signing_key.serialize_pem())?;
        write_over(&certificate, 0o644, &made.cert.pem())?;
    }
    Ok(configuration)
}

/// What is there is never touched, so other ports than it has cannot be had.
fn check_ports(configuration: &Path, wanted: &str) -> Result<()> {
    let there =
        fs::read_to_string(configuration).with_context(|| configuration.display().to_string())?;
    let is_missing = |line: &&str| line.starts_with("listen") && !there.contains(line);
    match wanted.lines().find(is_missing) {
        None => Ok(()),
        Some(line) => bail!(
            "{} is there already and --port-base wants {line} in it: edit it, or leave --port-base out, or choose another --dir",
            configuration.display()
        ),
    }
}

fn write_new(path: &Path, mode: u32, text: impl FnOnce() -> Result<String>) -> Result<()> {
    if path.exists() {
        Ok(())
    } else {
        write_over(path, mode, &text()?)
    }
}

/// Writes beside and renames, so that an interrupted first start leaves no half file.
fn write_over(path: &Path, mode: u32, text: &str) -> Result<()> {
    let beside = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let _ = fs::remove_file(&beside);
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().with_context(|| format!("writing {}", path.display()))
}

fn configuration_text(port_base: u16) -> Result<String> {
    let port = |offset: u16| {
        port_base
            .checked_add(offset)
            .context("--port-base is over 64540")
    };
    Ok(format!(
        r#"# Hikyaku's demo: everything in this directory, listening on this machine only.
# docs/hikyaku.toml in the source explains every key and has its default.

[node]
hostname = "localhost"
data_dir = "data"

[directory]
# Domains, users, aliases, forwards and groups. Every user's password is "{PASSWORD}".
ldif = "directory.ldif"
postmaster = "alice@example.jp"

# Two mailbox servers; `mailHost` in the directory says which one holds a user.
[mbox.mbox1]
shards = [0, 1]

[mbox.mbox2]
shards = [2, 3]

[smtp]
listen = ["127.0.0.1:{smtp}"]

[pop3]
listen = ["127.0.0.1:{pop3}"]
listen_tls = ["127.0.0.1:{pop3s}"]
# For trying things out on this machine. Elsewhere leave it off.
cleartext_login = true

[tls]
certificate = "certificate.pem"
key = "key.pem"
"#,
        smtp = port(SMTP)?,
        pop3 = port(POP3)?,
        pop3s = port(POP3S)?,
    ))
}

/// Sample users: name, entryUUID's first digits, mbox.
const USERS: [(&str, &str, &str); 6] = [
    ("alice", "a11ce000", "mbox1"),
    ("bob", "b0b00000", "mbox2"),
    ("carol", "ca401000", "mbox1"),
    ("dave", "da7e0000", "mbox2"),
    ("erin", "e4100000", "mbox1"),
    ("frank", "f4a00000", "mbox2"),
];

fn ldif_text() -> Result<String> {
    // slapadd takes no `version: 1`, which is the only one there is
    let mut text = String::from(
        "# The demo's directory. Edit it while the demo runs: a changed file is read after two seconds.\n\
         # An OpenLDAP server takes it as it is: docs/DIRECTORY.md says how.\n\
         \n\
         dn: dc=example,dc=jp\n\
         objectClass: domain\n\
         objectClass: domainRelatedObject\n\
         objectClass: inetLocalMailRecipient\n\
         dc: example\n\
         o: example.jp\n\
         associatedDomain: example.jp\n\
         mailHost: mbox1\n\
         \n\
         dn: ou=people,dc=example,dc=jp\n\
         objectClass: organizationalUnit\n\
         ou: people\n",
    );
    for (name, id, mbox) in USERS {
        let mut salt = [0; 16];
        getrandom::fill(&mut salt).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
        let stored = hikyaku_directory::password::hash_ssha512(PASSWORD.as_bytes(), &salt);
        let capital = name[..1].to_uppercase() + &name[1..];
        text.push_str(&format!(
            "\n\
             dn: uid={name},ou=people,dc=example,dc=jp\n\
             objectClass: inetOrgPerson\n\
             objectClass: inetLocalMailRecipient\n\
             uid: {name}\n\
             cn: {capital}\n\
             sn: {capital}\n\
             entryUUID: {id}-0000-4000-8000-000000000001\n\
             mailLocalAddress: {name}@example.jp\n\
             mailHost: {mbox}\n\
             userPassword: {stored}\n"
        ));
    }
    text.push_str(
        "\n\
         # An alias: one more address for somebody.\n\
         dn: cn=sales,ou=people,dc=example,dc=jp\n\
         objectClass: organizationalRole\n\
         objectClass: inetLocalMailRecipient\n\
         cn: sales\n\
         mailLocalAddress: sales@example.jp\n\
         mailRoutingAddress: bob@example.jp\n\
         \n\
         # A forward that leaves this site.\n\
         dn: cn=old-friend,ou=people,dc=example,dc=jp\n\
         objectClass: organizationalRole\n\
         objectClass: inetLocalMailRecipient\n\
         cn: old-friend\n\
         mailLocalAddress: old-friend@example.jp\n\
         mailRoutingAddress: friend@elsewhere.example\n\
         \n\
         # A group.\n\
         dn: cn=team,ou=people,dc=example,dc=jp\n\
         objectClass: nisMailAlias\n\
         objectClass: inetLocalMailRecipient\n\
         cn: team\n\
         mailLocalAddress: team@example.jp\n\
         rfc822MailMember: alice@example.jp\n\
         rfc822MailMember: bob@example.jp\n\
         rfc822MailMember: carol@example.jp\n",
    );
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use hikyaku_directory::ldif::{Limits, records};
    use hikyaku_directory::load::load;
    use hikyaku_directory::settings::Settings;

    use super::ldif_text;

    /// A class as OpenLDAP's core, cosine, inetorgperson and misc schemas have it, as far as the sample needs it.
    struct Class {
        name: &'static str,
        structural: bool,
        must: &'static [&'static str],
        may: &'static [&'static str],
    }

    const CLASSES: [Class; 7] = [
        Class {
            name: "domain",
            structural: true,
            must: &["dc"],
            may: &["o"],
        },
        Class {
            name: "organizationalUnit",
            structural: true,
            must: &["ou"],
            may: &[],
        },
        Class {
            name: "inetOrgPerson",
            structural: true,
            must: &["cn", "sn"],
            may: &["uid", "userpassword"],
        },
        Class {
            name: "organizationalRole",
            structural: true,
            must: &["cn"],
            may: &[],
        },
        Class {
            name: "nisMailAlias",
            structural: true,
            must: &["cn"],
            may: &["rfc822mailmember"],
        },
        Class {
            name: "domainRelatedObject",
            structural: false,
            must: &["associateddomain"],
            may: &[],
        },
        Class {
            name: "inetLocalMailRecipient",
            structural: false,
            must: &[],
            may: &["maillocaladdress", "mailhost", "mailroutingaddress"],
        },
    ];

    #[test]
    fn the_sample_is_what_openldap_takes_with_the_schemas_it_has() {
        let text = ldif_text().unwrap();
        assert!(!text.contains("version:"), "slapadd has no such attribute");
        let mut dns: BTreeSet<String> = BTreeSet::new();
        for record in records(text.as_bytes(), Limits::default()) {
            let record = record.unwrap();
            let dn = record.dn;
            let parent = dn.split_once(',').unwrap().1;
            assert!(
                dns.is_empty() || dns.contains(parent),
                "{dn} before its parent"
            );
            let names: BTreeSet<&str> = record.attributes.iter().map(|a| a.name.as_str()).collect();
            let classes: Vec<&Class> = record
                .attributes
                .iter()
                .filter(|attribute| attribute.name == "objectclass")
                .map(|attribute| {
                    CLASSES
                        .iter()
                        .find(|class| class.name.as_bytes() == &*attribute.value)
                        .unwrap_or_else(|| panic!("{dn}: an object class of no shipped schema"))
                })
                .collect();
            let structural = classes.iter().filter(|class| class.structural).count();
            assert_eq!(structural, 1, "{dn}: structural classes");
            for needed in classes.iter().flat_map(|class| class.must) {
                assert!(names.contains(needed), "{dn}: {needed} is missing");
            }
            for name in names {
                let known = ["objectclass", "entryuuid"].contains(&name)
                    || classes
                        .iter()
                        .any(|class| class.must.contains(&name) || class.may.contains(&name));
                assert!(known, "{dn}: {name} is not allowed");
            }
            dns.insert(dn);
        }
        let settings = Settings {
            postmaster: Some("alice@example.jp".parse().unwrap()),
            ..Settings::new(&["mbox1", "mbox2"], "example.jp")
        };
        let table = load(text.as_bytes(), &settings);
        let table = table.unwrap_or_else(|findings| panic!("{findings:?}"));
        assert_eq!((table.len(), table.findings().len()), (9, 0));
    }
}

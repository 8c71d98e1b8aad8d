//! A configuration, a directory and users, in a directory of their own, on ports nobody uses.
//!
//! Small limits by default, so that segments roll, stores flush and logs are cut within seconds.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use loadtest::users::{self, User};
use tempfile::TempDir;

use super::binary::{Said, hikyaku};
use super::wait_for;

/// The hosted domain.
pub const DOMAIN: &str = "example.jp";
/// Ports are given out from here, below the ephemeral range: a client that waits for a restarting server could
/// otherwise connect to itself.
const PORTS: std::ops::Range<u16> = 10_000..31_000;
/// What `hikyaku queue list` says of a recipient that was not tried yet.
const UNTRIED: &str = "due now, ";
/// What it says of any.
const RECIPIENT_STATES: [&str; 10] = [
    UNTRIED,
    "held (",
    "deferred ",
    "delivered, ",
    "bounced, ",
    "expanded, ",
    "same as ",
    "deleted ",
    "cancelled, ",
    "done, ",
];
/// Longest wait for what was accepted to be tried.
const TRIED_TIMEOUT: Duration = Duration::from_secs(60);

static NEXT_PORT: AtomicU16 = AtomicU16::new(0);

/// A loopback address nobody listens on.
///
/// # Panics
/// When all ports are taken.
pub fn free_address() -> SocketAddr {
    let span = PORTS.end - PORTS.start;
    let first = own_place(span);
    for _ in 0..span {
        let port = PORTS.start + (first + NEXT_PORT.fetch_add(1, Ordering::Relaxed) % span) % span;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
    panic!("no free port in {PORTS:?}");
}

/// Where in a range of `span` ports this process begins: tests of other processes begin elsewhere, those of the next process too.
pub fn own_place(span: u16) -> u16 {
    (std::process::id().wrapping_mul(2_654_435_761) >> 8) as u16 % span
}

/// The password of every user of [`Plan::sample`].
pub const PASSWORD: &str = "hikyaku";

const SAMPLE_ENTRIES: &str = "
dn: cn=sales,o=example.jp
objectClass: inetLocalMailRecipient
cn: sales
mailLocalAddress: sales@example.jp
mailRoutingAddress: bob@example.jp

dn: cn=away,o=example.jp
objectClass: inetLocalMailRecipient
cn: away
mailLocalAddress: away@example.jp
mailRoutingAddress: friend@elsewhere.example

dn: cn=team,o=example.jp
objectClass: inetMailGroup
objectClass: inetLocalMailRecipient
cn: team
mailLocalAddress: team@example.jp
mgrpRFC822MailMember: alice@example.jp
mgrpRFC822MailMember: bob@example.jp
mgrpRFC822MailMember: carol@example.jp

dn: cn=stale,o=example.jp
objectClass: inetMailGroup
objectClass: inetLocalMailRecipient
cn: stale
mailLocalAddress: stale@example.jp
mgrpRFC822MailMember: bob@example.jp
mgrpRFC822MailMember: gone@example.jp

dn: cn=owned,o=example.jp
objectClass: inetMailGroup
objectClass: inetLocalMailRecipient
cn: owned
mailLocalAddress: owned@example.jp
mgrpRFC822MailMember: bob@example.jp
mgrpRFC822MailMember: gone@example.jp
mgrpErrorsTo: carol@example.jp

dn: cn=broken,o=example.jp
objectClass: inetLocalMailRecipient
cn: broken
uid: broken
mailLocalAddress: broken@example.jp
mailHost: mbox1
";

/// The account id of a [`person`].
pub fn account_of(name: &str) -> String {
    blake3::hash(name.as_bytes()).to_hex()[..32].to_owned()
}

/// The directory entry of a user whose password is [`PASSWORD`].
pub fn person(name: &str, mbox: &str) -> String {
    let id = account_of(name);
    let stored = hikyaku_directory::password::hash_ssha512(PASSWORD.as_bytes(), b"of a test");
    format!(
        "\ndn: uid={name},o={DOMAIN}\nobjectClass: inetOrgPerson\nobjectClass: inetLocalMailRecipient\nuid: {name}\n\
         cn: {name}\nsn: {name}\nentryUUID: {id}\nmailLocalAddress: {name}@{DOMAIN}\nmailHost: {mbox}\n\
         userPassword: {stored}\n"
    )
}

/// What a site is made from.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How many users.
    pub users: usize,
    /// Names and shards of the mboxes they are spread over.
    pub mboxes: Vec<(String, Vec<u16>)>,
    /// Entries added to the directory.
    pub ldif: String,
    /// Keys and their values as they stand in the configuration file, by section.
    pub settings: BTreeMap<String, BTreeMap<String, String>>,
}

impl Plan {
    /// `users` users on two mboxes of one shard each.
    pub fn new(users: usize) -> Plan {
        let mboxes = vec![("mbox1".to_owned(), vec![0]), ("mbox2".to_owned(), vec![1])];
        Plan {
            users,
            mboxes,
            ldif: String::new(),
            settings: BTreeMap::new(),
        }
        .set("node", "hostname", "\"mail.example.jp\"")
        .set("directory", "postmaster", "\"postmaster@example.jp\"")
        .set("log", "segment_bytes", "\"4 MiB\"")
        .set("log", "bytes_max", "\"64 MiB\"")
        .set("store", "memtable_bytes_max", "\"4 MiB\"")
        .set("store", "flush_interval", "\"1s\"")
        .set("pop3", "cleartext_login", "true")
    }

    /// Users alice, bob and carol with the password [`PASSWORD`], an alias, a forward that leaves, a group, groups with
    /// a member that does not exist, and a broken entry.
    pub fn sample() -> Plan {
        let mut ldif = String::new();
        for (name, mbox) in [("alice", "mbox1"), ("bob", "mbox2"), ("carol", "mbox1")] {
            ldif.push_str(&person(name, mbox));
        }
        ldif.push_str(SAMPLE_ENTRIES);
        Plan::new(1)
            .ldif(&ldif)
            .set("directory", "postmaster", "\"alice@example.jp\"")
    }

    /// With a self-signed certificate, and listeners under TLS from the first byte.
    #[must_use]
    pub fn certificate(self) -> Plan {
        self.set("tls", "certificate", "\"certificate.pem\"")
            .set("tls", "key", "\"key.pem\"")
            .set("smtp", "listen_tls", &format!("[\"{}\"]", free_address()))
            .set("pop3", "listen_tls", &format!("[\"{}\"]", free_address()))
    }

    /// With an SMTP listener more, for load balancers in `networks`, written as TOML.
    #[must_use]
    pub fn balancers(self, networks: &str) -> Plan {
        let proxied = format!("[\"{}\"]", free_address());
        self.set("smtp", "proxy_protocol", &proxied)
            .set("smtp", "proxy_networks", networks)
    }

    /// The listener for load balancers.
    fn proxied(&self) -> Option<SocketAddr> {
        let text = self.settings.get("smtp")?.get("proxy_protocol")?;
        text.trim_matches(['[', ']', '"']).parse().ok()
    }

    /// With `key` of `section` set to `value`, written as TOML.
    #[must_use]
    pub fn set(mut self, section: &str, key: &str, value: &str) -> Plan {
        let section = self.settings.entry(section.to_owned()).or_default();
        section.insert(key.to_owned(), value.to_owned());
        self
    }

    /// With more directory entries.
    #[must_use]
    pub fn ldif(mut self, entries: &str) -> Plan {
        self.ldif.push('\n');
        self.ldif.push_str(entries.trim());
        self.ldif.push('\n');
        self
    }
}

/// A place to run a server from. Removed with all it holds when dropped.
#[derive(Debug)]
pub struct Site {
    home: TempDir,
    /// The SMTP listener.
    pub smtp: SocketAddr,
    /// The SMTP listener for load balancers, if there is one.
    pub proxied: Option<SocketAddr>,
    /// The POP3 listener in the clear.
    pub pop3: SocketAddr,
    /// Its users.
    pub users: Vec<User>,
    plan: Plan,
    ldif: String,
    data: PathBuf,
}

impl Site {
    /// Makes the files of `plan`.
    ///
    /// # Panics
    /// When they cannot be written.
    pub fn new(plan: Plan) -> Site {
        Site::in_directory(plan, &std::env::temp_dir())
    }

    /// The same below `parent`.
    ///
    /// # Panics
    /// When the files cannot be written.
    pub fn in_directory(plan: Plan, parent: &Path) -> Site {
        let home = tempfile::Builder::new()
            .prefix("hikyaku-")
            .tempdir_in(parent)
            .expect("a directory");
        let names: Vec<String> = plan.mboxes.iter().map(|(name, _)| name.clone()).collect();
        let (mut ldif, accounts) = users::generate(plan.users, DOMAIN, &names).expect("users");
        ldif.push_str(&plan.ldif);
        let site = Site {
            smtp: free_address(),
            proxied: plan.proxied(),
            pop3: free_address(),
            users: users::parse(&accounts).expect("users"),
            data: home.path().join("data"),
            plan,
            ldif,
            home,
        };
        std::fs::write(site.accounts(), accounts).expect("users file");
        std::fs::write(site.ldif_file(), &site.ldif).expect("directory file");
        site.write_config();
        site
    }

    /// Another data directory for the same users, on ports of its own.
    ///
    /// # Panics
    /// When its files cannot be written.
    pub fn twin(&self, parent: &Path) -> Site {
        let home = tempfile::Builder::new()
            .prefix("hikyaku-")
            .tempdir_in(parent)
            .expect("a directory");
        let site = Site {
            smtp: free_address(),
            proxied: self.proxied,
            pop3: free_address(),
            users: self.users.clone(),
            data: home.path().join("data"),
            plan: self.plan.clone(),
            ldif: self.ldif.clone(),
            home,
        };
        std::fs::copy(self.accounts(), site.accounts()).expect("users file");
        std::fs::write(site.ldif_file(), &site.ldif).expect("directory file");
        site.write_config();
        site
    }

    /// Moves the data directory, before the first start.
    pub fn keep_data_in(&mut self, directory: &Path) {
        self.data = directory.to_owned();
        self.write_config();
    }

    /// Changes one key for the next start.
    pub fn configure(&mut self, section: &str, key: &str, value: &str) {
        self.plan = self.plan.clone().set(section, key, value);
        self.write_config();
    }

    /// Puts `text` in the place of the directory, at once, as an editor would.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write_ldif(&mut self, text: String) {
        let beside = self.home.path().join("directory.new");
        std::fs::write(&beside, &text).expect("directory file");
        std::fs::rename(&beside, self.ldif_file()).expect("directory file");
        self.ldif = text;
    }

    /// The directory's text.
    pub fn ldif(&self) -> &str {
        &self.ldif
    }

    /// Where everything of this site is.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.home.path().join("hikyaku.toml")
    }

    /// The users file of the load generator.
    pub fn accounts(&self) -> PathBuf {
        self.home.path().join("users.txt")
    }

    /// The ledger of the load generator.
    pub fn ledger(&self) -> PathBuf {
        self.home.path().join("ledger")
    }

    /// What the server wrote to its standard error.
    pub fn log_file(&self) -> PathBuf {
        self.home.path().join("server.log")
    }

    /// The directory's file.
    pub fn ldif_file(&self) -> PathBuf {
        self.home.path().join("directory.ldif")
    }

    /// A whole number of octets from the plan.
    ///
    /// # Panics
    /// When the key is not set in MiB.
    pub fn mib(&self, section: &str, key: &str) -> u64 {
        let text = &self.plan.settings[section][key];
        let number = text
            .trim_matches('"')
            .strip_suffix(" MiB")
            .expect("a size in MiB");
        number.parse::<u64>().expect("a size in MiB") << 20
    }

    /// Runs `hikyaku` with `arguments` and `--config`.
    pub fn ask(&self, arguments: &[&str]) -> Said {
        let config = self.config();
        let config = config.to_str().expect("UTF-8");
        hikyaku(arguments.iter().copied().chain(["--config", config]))
    }

    /// How many messages are on their way.
    ///
    /// # Panics
    /// When the process does not say.
    pub fn queued(&self) -> u64 {
        let out = self.ask(&["queue", "list", "--limit", "1"]).must();
        let last = out.lines().last().unwrap_or_default();
        let total = last
            .split(", ")
            .nth(1)
            .and_then(|text| text.strip_suffix(" in the queue"));
        total
            .and_then(|text| text.parse().ok())
            .unwrap_or_else(|| panic!("no total in {out:?}"))
    }

    /// Waits until everything accepted so far was tried: it is in its mailboxes, or deferred, held or failed. What is not there
    /// then will not come by itself.
    ///
    /// # Panics
    /// When something is tried for ever, or the process does not say.
    pub fn wait_until_tried(&self) {
        wait_for("all mail to be tried", TRIED_TIMEOUT, || {
            let out = self.ask(&["queue", "list"]).must();
            let mut held = false;
            !out.lines().any(|line| {
                if !line.starts_with(' ') {
                    held = line.contains(" held: ");
                    return false;
                }
                let state = line.split_once("> ").expect("a recipient").1;
                let known = RECIPIENT_STATES.iter().any(|word| state.starts_with(word));
                assert!(known, "no state of a recipient: {line}");
                !held && state.starts_with(UNTRIED)
            })
        });
    }

    fn write_config(&self) {
        let mut settings = self.plan.settings.clone();
        let mut set = |section: &str, key: &str, value: String| {
            settings
                .entry(section.to_owned())
                .or_default()
                .entry(key.to_owned())
                .or_insert(value);
        };
        set("node", "data_dir", format!("{:?}", self.data));
        set("directory", "ldif", format!("{:?}", self.ldif_file()));
        let smtp: Vec<SocketAddr> = [Some(self.smtp), self.proxied]
            .into_iter()
            .flatten()
            .collect();
        let smtp: Vec<String> = smtp
            .iter()
            .map(|address| format!("\"{address}\""))
            .collect();
        set("smtp", "listen", format!("[{}]", smtp.join(", ")));
        set("pop3", "listen", format!("[\"{}\"]", self.pop3));
        for (name, shards) in &self.plan.mboxes {
            set(&format!("mbox.{name}"), "shards", format!("{shards:?}"));
        }
        let mut text = String::new();
        for (section, keys) in settings {
            text.push_str(&format!("[{section}]\n"));
            for (key, value) in keys {
                text.push_str(&format!("{key} = {value}\n"));
            }
        }
        std::fs::write(self.config(), text).expect("configuration file");
        if self.plan.settings.contains_key("tls") && !self.home.path().join("key.pem").exists() {
            self.write_certificate();
        }
    }

    /// Puts a new self-signed certificate in the place of the one there is.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write_certificate(&self) {
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
        std::fs::write(
            self.home.path().join("key.pem"),
            made.signing_key.serialize_pem(),
        )
        .expect("key file");
        std::fs::write(self.certificate(), made.cert.pem()).expect("certificate file");
    }

    /// The certificate's file.
    pub fn certificate(&self) -> PathBuf {
        self.home.path().join("certificate.pem")
    }
}

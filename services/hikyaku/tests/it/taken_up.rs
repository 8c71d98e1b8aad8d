//! Every key of the configuration by itself: what a running node takes up counts from then on, and
//! everything else is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};

use rustix::process::Signal;

use crate::running::{Running, Site, hikyaku, pair};
use crate::talk::{Smtp, connect, served_certificate};

const CHANGES: &str = include_str!("../../src/changes.rs");

const ENTRIES: &str = "
dn: uid=carol,dc=example,dc=jp
objectClass: inetOrgPerson
objectClass: inetLocalMailRecipient
uid: carol
cn: Carol
sn: Carol
entryUUID: ca401000-0000-4000-8000-000000000001
mailLocalAddress: carol@example.jp
mailLocalAddress: bob-list@example.jp

dn: dc=two,dc=example
objectClass: domain
objectClass: domainRelatedObject
dc: two
o: second
associatedDomain: two.example
mailHost: mbox1
";

/// What every configuration here begins with: key, value.
const BASE: [(&str, &str); 20] = [
    ("node.hostname", "\"mail.example.jp\""),
    ("node.drain_timeout", "\"1h\""),
    ("directory.ldif", "\"directory.ldif\""),
    ("directory.postmaster", "\"bob@example.jp\""),
    ("directory.default_domain", "\"example.jp\""),
    ("directory.recipient_delimiter", "\"+\""),
    ("mbox.mbox1.shards", "[0]"),
    ("log.segment_bytes", "\"2 MiB\""),
    ("smtp.listen", "[\"127.0.0.1:0\", \"127.0.0.2:0\"]"),
    ("smtp.listen_tls", "[\"127.0.0.1:0\"]"),
    ("smtp.proxy_protocol", "[\"127.0.0.2:0\"]"),
    ("smtp.proxy_networks", "[\"192.0.2.0/24\"]"),
    ("pop3.listen", "[\"127.0.0.1:0\"]"),
    ("pop3.listen_tls", "[\"127.0.0.1:0\"]"),
    ("pop3.cleartext_login", "true"),
    ("tls.certificate", "\"certificate.pem\""),
    ("tls.key", "\"key.pem\""),
    ("telemetry.log_format", "\"logfmt\""),
    ("telemetry.log_filter", "\"info\""),
    ("telemetry.metrics_listen", "\"127.0.0.1:0\""),
];
const LISTENERS: usize = 6;

/// The base with `key` set to `value`; `also` are more lines of that kind.
fn text(changes: &[(&str, &str)]) -> String {
    let mut sections: BTreeMap<&str, BTreeMap<&str, &str>> = BTreeMap::new();
    for (path, value) in BASE.iter().chain(changes) {
        let (section, key) = path.rsplit_once('.').unwrap();
        sections.entry(section).or_default().insert(key, value);
    }
    let mut text = String::new();
    for (section, keys) in sections {
        text.push_str(&format!("[{section}]\n"));
        for (key, value) in keys {
            text.push_str(&format!("{key} = {value}\n"));
        }
    }
    text
}

/// The keys in `changes.rs` that are handled by `how`.
fn keys(how: &str) -> BTreeSet<&'static str> {
    let calls = CHANGES.split(how).skip(1);
    let named = calls.filter_map(|call| call.trim_start().strip_prefix('"')?.split('"').next());
    named.collect()
}

/// A node that runs, and its files.
struct Probe {
    site: Site,
    node: Running,
    /// A second certificate.
    other: Vec<u8>,
}

impl Probe {
    fn new() -> Probe {
        let site = Site::new();
        site.certificate(2099);
        let (certificate, key) = pair(2098);
        fs::write(site.path("other.pem"), certificate.pem()).unwrap();
        fs::write(site.path("other-key.pem"), key.serialize_pem()).unwrap();
        let ldif = fs::read_to_string(site.path("directory.ldif")).unwrap();
        fs::write(site.path("directory.ldif"), ldif + ENTRIES).unwrap();
        fs::write(site.path("hikyaku.toml"), text(&[])).unwrap();
        let log = fs::File::create(site.path("hikyaku.log")).unwrap();
        let config = site.path("hikyaku.toml");
        let node = Running::start_with(&config, LISTENERS, log.into());
        let other = certificate.der().to_vec();
        Probe { site, node, other }
    }

    /// Changes the configuration and says so; answers what the log says until it says `done`.
    fn change(&self, changes: &[(&str, &str)], done: &str) -> String {
        fs::write(self.site.path("hikyaku.toml"), text(changes)).unwrap();
        let before = self.node.log().len();
        self.node.signal(Signal::HUP);
        self.node.wait_for(done, || {
            let said = self.node.log()[before..].to_owned();
            (said.contains(done) && said.ends_with('\n')).then_some(said)
        })
    }

    fn smtp(&self) -> Smtp {
        Smtp::connect(self.node.address("smtp"))
    }

    /// The port for load balancers.
    fn proxied(&self) -> SocketAddr {
        let addresses = self.node.addresses("smtp");
        addresses
            .into_iter()
            .find(|address| address.ip().to_string() == "127.0.0.2")
            .unwrap()
    }

    fn pop3(&self) -> Pop3 {
        let mut pop3 = Pop3(BufReader::new(connect(self.node.address("pop3"))));
        assert!(pop3.line().starts_with("+OK"));
        pop3
    }

    fn wait_for_log(&self, part: &str) {
        self.node
            .wait_for(part, || self.node.log().contains(part).then_some(()));
    }

    fn explain(&self, address: &str) -> String {
        let asked = hikyaku()
            .args(["route", "explain", address, "--socket"])
            .arg(self.site.path("data").join("admin.sock"))
            .output()
            .unwrap();
        String::from_utf8(asked.stdout).unwrap()
    }
}

struct Pop3(BufReader<TcpStream>);

impl Pop3 {
    /// The next line; empty at the end.
    fn line(&mut self) -> String {
        let mut line = String::new();
        // a reset is an end, too
        let _ = self.0.read_line(&mut line);
        line
    }

    fn say(&mut self, line: &str) -> String {
        self.0
            .get_mut()
            .write_all(format!("{line}\r\n").as_bytes())
            .unwrap();
        self.line()
    }
}

/// Whether the server ends the connection, whatever it says before. It is given as long as it
/// likes, up to a minute.
fn is_ended(stream: &mut impl BufRead) -> bool {
    let mut line = String::new();
    loop {
        line.clear();
        match stream.read_line(&mut line) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

/// Key, value, and what is so with it and was not before.
type Case = (&'static str, &'static str, fn(&Probe));

const CASES: [Case; 20] = [
    ("smtp.message_bytes_max", "\"1 MiB\"", |probe| {
        assert_eq!(probe.smtp().size(), "1048576");
    }),
    ("smtp.recipients_max", "100", |probe| {
        assert!(probe.smtp().say("EHLO x.example").contains("RCPTMAX=100"));
    }),
    ("smtp.connections_max", "1", |probe| {
        let (_one, _two) = (probe.smtp(), connect(probe.proxied()));
        // both accept loops say it, each after its first connection
        probe.node.wait_for("two full gates", || {
            let log = probe.node.log();
            (log.matches("listener=smtp connections_max=1 ").count() == 2).then_some(())
        });
    }),
    ("smtp.connections_per_source_max", "1", |probe| {
        let _one = probe.smtp();
        let two = connect(probe.node.address("smtp"));
        assert!(is_ended(&mut BufReader::new(two)));
        probe.wait_for_log("closed: too many connections from this address");
    }),
    ("smtp.proxy_networks", "[\"127.0.0.0/8\"]", |probe| {
        let mut stream = connect(probe.proxied());
        stream
            .write_all(b"PROXY TCP4 192.0.2.1 192.0.2.2 4711 25\r\n")
            .unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        assert!(line.starts_with("220 "), "{line}");
    }),
    ("smtp.command_timeout", "\"1s\"", |probe| {
        assert!(is_ended(probe.smtp().stream()));
    }),
    ("smtp.data_timeout", "\"1s\"", |probe| {
        let mut smtp = probe.smtp();
        smtp.say("EHLO x.example");
        smtp.say("MAIL FROM:<x@y.example>");
        smtp.say("RCPT TO:<bob@example.jp>");
        assert!(smtp.say("DATA").starts_with("354 "));
        assert!(is_ended(smtp.stream()));
    }),
    ("smtp.greet_delay", "\"30s\"", |probe| {
        let mut stream = connect(probe.node.address("smtp"));
        stream.write_all(b"EHLO x.example\r\n").unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        assert!(line.starts_with("554 "), "{line}");
    }),
    ("smtp.bare_lf_in_chunks", "\"refuse\"", |probe| {
        let mut smtp = probe.smtp();
        smtp.say("EHLO x.example");
        smtp.say("MAIL FROM:<x@y.example>");
        smtp.say("RCPT TO:<bob@example.jp>");
        let said = smtp.say("BDAT 9 LAST\r\na: b\n\nc");
        assert!(said.starts_with("550 "), "{said}");
    }),
    ("pop3.cleartext_login", "false", |probe| {
        assert!(probe.pop3().say("USER bob").starts_with("-ERR"));
    }),
    ("pop3.connections_max", "1", |probe| {
        let _one = probe.pop3();
        probe.wait_for_log("listener=pop3 connections_max=1 ");
    }),
    ("pop3.connections_per_source_max", "1", |probe| {
        let _one = probe.pop3();
        let two = connect(probe.node.address("pop3"));
        assert!(is_ended(&mut BufReader::new(two)));
        probe.wait_for_log("listener=pop3 peer=");
    }),
    ("pop3.login_timeout", "\"1s\"", |probe| {
        assert!(is_ended(&mut probe.pop3().0));
    }),
    ("pop3.idle_timeout", "\"1s\"", |probe| {
        let mut pop3 = probe.pop3();
        pop3.say("USER bob");
        assert!(pop3.say("PASS hikyaku").starts_with("+OK"));
        assert!(is_ended(&mut pop3.0));
    }),
    ("tls", "", |probe| {
        for name in ["smtps", "pop3s"] {
            let served = served_certificate(probe.node.address(name)).unwrap();
            assert_eq!(served, probe.other, "{name}");
        }
    }),
    ("directory.default_domain", "\"two.example\"", |probe| {
        let mut smtp = probe.smtp();
        assert!(smtp.send_to("postmaster", "x").starts_with("250 "));
        probe.wait_for_log("recipient=postmaster@two.example ");
    }),
    ("directory.postmaster", "\"carol@example.jp\"", |probe| {
        assert!(probe.explain("abuse@example.jp").contains("carol"));
    }),
    ("directory.recipient_delimiter", "\"-\"", |probe| {
        assert!(probe.explain("bob-x@example.jp").contains("uid=bob,"));
    }),
    ("directory.quota_bytes_default", "\"1 MiB\"", |probe| {
        let content = "0123456789012345678901234567890123456789\r\n".repeat(30_000);
        probe.smtp().send_to("bob@example.jp", &content);
        probe.node.wait_for("a mail that finds no room", || {
            let log = probe.node.log();
            [".2.2 ", ".2.3 "]
                .iter()
                .any(|code| log.contains(code))
                .then_some(())
        });
    }),
    ("telemetry.log_filter", "\"info,h2=trace\"", |probe| {
        probe.node.status();
        probe.wait_for_log("target=h2::");
    }),
];

#[test]
fn every_key_that_is_taken_up_counts() {
    let probed: BTreeSet<&str> = CASES.iter().map(|(key, ..)| *key).collect();
    let with_drain: BTreeSet<&str> = probed.into_iter().chain(["node.drain_timeout"]).collect();
    assert_eq!(with_drain, keys(".live("), "every key has its probe");
    let probe = Probe::new();
    for (key, value, holds) in CASES {
        println!("{key}");
        let said = match key {
            "tls" => probe.change(
                &[
                    ("tls.certificate", "\"other.pem\""),
                    ("tls.key", "\"other-key.pem\""),
                ],
                "configuration read again",
            ),
            _ => probe.change(&[(key, value)], "configuration read again"),
        };
        assert!(said.contains(key), "{key}: {said}");
        holds(&probe);
    }
    // a transaction that is not finished, and no patience for it any more
    probe.change(
        &[("node.drain_timeout", "\"1s\"")],
        "configuration read again",
    );
    let mut smtp = probe.smtp();
    smtp.say("EHLO x.example");
    smtp.say("MAIL FROM:<x@y.example>");
    smtp.say("RCPT TO:<bob@example.jp>");
    assert!(smtp.say("DATA").starts_with("354 "));
    probe.node.stop();
}

#[test]
fn every_other_key_is_refused_without_a_restart() {
    let cases = [
        ("node.hostname", "\"other.example.jp\""),
        ("node.data_dir", "\"elsewhere\""),
        ("directory.ldif", "\"other.ldif\""),
        ("smtp.listen", "[\"127.0.0.2:0\"]"),
        ("smtp.listen_tls", "[]"),
        ("smtp.proxy_protocol", "[]"),
        ("smtp.memory_bytes_max", "\"64 MiB\""),
        ("pop3.memory_bytes_max", "\"9 MiB\""),
        ("pop3.listen", "[]"),
        ("pop3.listen_tls", "[]"),
        ("queue.messages_max", "5"),
        ("queue.bytes_max", "\"5 MiB\""),
        ("queue.body_cache_bytes_max", "\"5 MiB\""),
        ("queue.expire_after", "\"6d\""),
        ("queue.expire_bounces_after", "\"6d\""),
        ("queue.report_delay_after", "\"5h\""),
        ("log.bytes_max", "\"5 GiB\""),
        ("log.segment_bytes", "\"3 MiB\""),
        ("log.cache_bytes_max", "\"5 MiB\""),
        ("store.memtable_bytes_max", "\"5 MiB\""),
        ("store.cache_bytes_max", "\"5 MiB\""),
        ("store.flush_interval", "\"5s\""),
        ("blobs.sweep_interval", "\"5h\""),
        ("blobs.keep_unnamed", "\"5d\""),
        ("telemetry.log_format", "\"json\""),
        ("telemetry.metrics_listen", "\"127.0.0.2:0\""),
        ("telemetry.otlp_endpoint", "\"http://127.0.0.1:1\""),
        ("telemetry.otlp_ratio", "0.5"),
    ];
    let named: BTreeSet<&str> = cases.iter().map(|(key, _)| *key).collect();
    assert_eq!(named, keys(".restart("), "every key has its case");
    let probe = Probe::new();
    for (key, value) in cases {
        let why = format!("{key} cannot change without a restart");
        probe.change(&[(key, value)], &why);
    }
    probe.node.stop();
}

//! SIGHUP and changed certificates: as a whole or not at all (CATALOGUE B-44).

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::process::Signal;

use crate::running::{Site, pair};
use crate::talk::{Smtp, served_certificate};

const POP3S: &str = "[pop3]\nlisten_tls = [\"127.0.0.1:0\"]\n\
                     [tls]\ncertificate = \"certificate.pem\"\nkey = \"key.pem\"\n";

#[test]
fn what_can_change_changes_for_new_connections() {
    let site = Site::new();
    site.configure("message_bytes_max = \"1 MiB\"\n");
    let node = site.start();
    let smtp = node.address("smtp");
    let mut old = Smtp::connect(smtp);
    assert_eq!(old.size(), "1048576");
    assert!(old.say("MAIL FROM:<a@b.example>").starts_with("250 "));
    assert!(old.say("RCPT TO:<bob_mail@example.jp>").starts_with("550 "));

    let directory = fs::read_to_string(site.path("hikyaku.toml")).unwrap();
    site.configure("message_bytes_max = \"2 MiB\"\nconnections_per_source_max = 2\n[telemetry]\nlog_filter = \"info,maillog=off\"\n");
    let delimiter = fs::read_to_string(site.path("hikyaku.toml")).unwrap();
    let delimiter = delimiter.replace("postmaster =", "recipient_delimiter = \"_\"\npostmaster =");
    assert_ne!(directory, delimiter);
    fs::write(site.path("hikyaku.toml"), delimiter).unwrap();
    let said = node.hang_up();
    assert!(
        said.contains(
            "msg=\"configuration read again\" file="
        ) && said.contains(
            "changed=\"directory.recipient_delimiter smtp.message_bytes_max smtp.connections_per_source_max telemetry.log_filter\""
        ),
        "{said}"
    );
    let mut new = Smtp::connect(smtp);
    assert_eq!(new.size(), "2097152");
    assert_eq!(
        old.size(),
        "1048576",
        "who is there keeps what it began with"
    );
    assert!(old.say("MAIL FROM:<a@b.example>").starts_with("250 "));
    assert!(
        old.say("RCPT TO:<bob_mail@example.jp>").starts_with("250 "),
        "the directory answers everybody anew"
    );
    // the third connection from one address is told to come again, and closed
    let mut third = std::io::BufReader::new(crate::talk::connect(smtp));
    let mut line = String::new();
    let read = std::io::Read::read_to_string(&mut third, &mut line);
    assert!(read.is_ok() && line.starts_with("421 4.7.0 "), "{line}");
    let log = node.stop();
    assert_eq!(
        log.matches("msg=connected").count(),
        1,
        "no such line after the filter: {log}"
    );
}

#[test]
fn what_is_refused_changes_nothing() {
    let site = Site::new();
    site.certificate(2099);
    site.configure(&format!("message_bytes_max = \"1 MiB\"\n{POP3S}"));
    let node = site.start();
    let changed = format!("message_bytes_max = \"2 MiB\"\n{POP3S}");
    let configuration = |text: &str, add: &str| {
        site.configure(text);
        let file = site.path("hikyaku.toml");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text + add).unwrap();
    };
    let cases: [(&str, &str, &str); 6] = [
        ("not TOML", "[smtp", "hikyaku.toml:"),
        ("unknown key", "[queue]\nmessages = 1\n", "unknown field"),
        (
            "contradiction",
            "[queue]\nmessages_max = 0\n",
            "queue.messages_max: 0 is too small",
        ),
        (
            "restart",
            "[store]\nflush_interval = \"5s\"\n",
            "store.flush_interval cannot change without a restart",
        ),
        (
            "shards",
            "[mbox.mbox2]\nshards = [7]\n",
            "mbox.mbox2 cannot change without a restart",
        ),
        (
            "filter",
            "[telemetry]\nlog_filter = \"maillog=loud\"\n",
            "telemetry.log_filter",
        ),
    ];
    for (case, add, why) in cases {
        configuration(&changed, add);
        let said = node.hang_up();
        assert!(
            said.contains("level=error") && said.contains(why),
            "{case}: {said}"
        );
        let status = node.status();
        let alarm = status
            .lines()
            .find(|line| line.starts_with("ALARM "))
            .unwrap_or_default();
        assert!(
            alarm.contains("hikyaku.toml: refused") && alarm.contains(why),
            "{case}: {status}"
        );
        assert_eq!(
            Smtp::connect(node.address("smtp")).size(),
            "1048576",
            "{case}"
        );
    }
    // several things at once are said at once
    configuration(
        &changed.replace("key.pem", "no-such-key.pem"),
        "[store]\nflush_interval = \"5s\"\n",
    );
    fs::write(site.path("directory.ldif"), "this is no LDIF").unwrap();
    let said = node.hang_up();
    for why in [
        "flush_interval cannot",
        "no-such-key.pem",
        "directory.ldif: cannot be used",
    ] {
        assert!(said.contains(why), "{why}: {said}");
    }
    assert_eq!(Smtp::connect(node.address("smtp")).size(), "1048576");
    drop(node);

    // and it starts with what is good, and takes what is good
    let site = Site::new();
    site.configure("message_bytes_max = \"1 MiB\"\n[store]\n");
    let node = site.start();
    configuration_of(&site, "message_bytes_max = 5\n");
    assert!(node.hang_up().contains("at least 65536 is needed"));
    assert!(node.status().contains("ALARM "));
    configuration_of(&site, "message_bytes_max = \"3 MiB\"\n");
    assert!(node.hang_up().contains("configuration read again"));
    assert_eq!(Smtp::connect(node.address("smtp")).size(), "3145728");
    assert!(!node.status().contains("ALARM "), "{}", node.status());
    node.stop();
}

fn configuration_of(site: &Site, more: &str) {
    site.configure(more);
}

#[test]
fn changed_certificates_are_served_and_bad_ones_are_not() {
    let site = Site::new();
    let first = site.certificate(2099);
    site.configure(POP3S);
    let node = site.start();
    let pop3s = node.address("pop3s");
    assert_eq!(served_certificate(pop3s).unwrap(), first);
    let alarm = |part: &'static str| {
        node.wait_for(part, || {
            node.status()
                .lines()
                .any(|line| line.starts_with("ALARM ") && line.contains(part))
                .then_some(())
        });
    };

    let second = site.certificate(2098);
    node.wait_for("the new certificate", || {
        (served_certificate(pop3s).unwrap() == second).then_some(())
    });

    let bad: [(&str, &dyn Fn()); 4] = [
        ("certificate.pem: expired at", &|| {
            drop(site.certificate(2021))
        }),
        ("certificate.pem and ", &|| {
            fs::write(site.path("certificate.pem"), pair(2099).0.pem()).unwrap();
        }),
        ("certificate.pem: holds no certificate", &|| {
            fs::write(site.path("certificate.pem"), "garbage\n").unwrap();
        }),
        ("key.pem: ", &|| {
            site.certificate(2099);
            fs::remove_file(site.path("key.pem")).unwrap();
        }),
    ];
    for (why, spoil) in bad {
        spoil();
        alarm(why);
        assert_eq!(served_certificate(pop3s).unwrap(), second, "{why}");
    }
    let third = site.certificate(2097);
    node.wait_for("the mended certificate", || {
        (served_certificate(pop3s).unwrap() == third).then_some(())
    });
    assert!(!node.status().contains("ALARM "), "{}", node.status());
    node.stop();
}

#[test]
fn a_certificate_that_has_ended_is_an_alarm_from_the_start() {
    let site = Site::new();
    let ended = site.certificate(2021);
    site.configure(POP3S);
    let node = site.start();
    assert_eq!(
        served_certificate(node.address("pop3s")).unwrap(),
        ended,
        "better than none"
    );
    let status = node.status();
    assert!(status.contains("certificate.pem: expired at "), "{status}");
    // limits can still be changed while it is so
    site.configure(&format!("message_bytes_max = \"3 MiB\"\n{POP3S}"));
    let said = node.hang_up();
    assert!(said.contains("configuration read again"), "{said}");
    node.stop();
}

#[test]
fn b44_a_hundred_swaps_lose_no_handshake() {
    let site = Site::new();
    let mut good = vec![site.certificate(2099)];
    site.configure(POP3S);
    let node = site.start();
    let pop3s = node.address("pop3s");
    let done = Arc::new(AtomicBool::new(false));
    let handshakes = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..2)
        .map(|_| {
            let (done, handshakes) = (done.clone(), handshakes.clone());
            std::thread::spawn(move || {
                let mut seen = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    seen.push(served_certificate(pop3s));
                    handshakes.fetch_add(1, Ordering::Relaxed);
                }
                seen
            })
        })
        .collect();
    let mut round = 0;
    // on a slow machine more of them, so that there are handshakes among them
    while round < 100 || (round < 1000 && handshakes.load(Ordering::Relaxed) <= 50) {
        match round % 4 {
            0 | 1 => good.push(site.certificate(2098)),
            2 => drop(site.certificate(2021)),
            _ => fs::write(site.path("key.pem"), "garbage").unwrap(),
        }
        node.signal(Signal::HUP);
        std::thread::sleep(std::time::Duration::from_millis(10));
        round += 1;
    }
    let last = site.certificate(2097);
    good.push(last.clone());
    node.signal(Signal::HUP);
    node.wait_for("the last certificate", || {
        (served_certificate(pop3s).unwrap() == last).then_some(())
    });
    done.store(true, Ordering::Relaxed);
    let seen: Vec<_> = clients
        .into_iter()
        .flat_map(|client| client.join().unwrap())
        .collect();
    assert!(seen.len() > 50, "{} handshakes", seen.len());
    for certificate in seen {
        assert!(
            good.contains(&certificate.unwrap()),
            "a bad certificate was served"
        );
    }
    node.stop();
}

//! Wrong configurations and directories: what `hikyaku check` says, and that nothing starts; directories that change.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hikyaku_tests::harness::binary::{Said, hikyaku, run};
use hikyaku_tests::harness::server::Server;
use hikyaku_tests::harness::site::{PASSWORD, Plan, Site, free_address, person};
use hikyaku_tests::harness::talk::{read_mails, send_mail, wait_for_mails};
use hikyaku_tests::harness::wait_for;

/// Longest wait for what happens at once.
const AT_ONCE: Duration = Duration::from_secs(60);

fn check(site: &Site) -> Said {
    hikyaku([Path::new("check"), &site.config()])
}

/// `check` and the start say all of `parts`, and nothing was started.
#[track_caller]
fn assert_refused(site: &Site, parts: &[&str]) {
    let config = site.config();
    for said in [
        check(site),
        hikyaku([Path::new("all"), Path::new("--config"), &config]),
    ] {
        assert_eq!(said.code, Some(1), "{said:?}");
        assert_eq!(said.out, "", "nothing listens");
        for part in parts {
            assert!(said.err.contains(part), "no {part:?} in\n{}", said.err);
        }
    }
    assert!(!site.data().exists(), "nothing was started");
}

#[test]
fn configuration_errors_name_file_line_key_and_what_is_allowed() {
    let cases: [(&str, &str, &str, &[&str]); 16] = [
        (
            "smtp",
            "lisen",
            "[]",
            &["lisen", "unknown", "message_bytes_max"],
        ),
        (
            "smtp",
            "listen",
            "[\"everywhere\"]",
            &["listen", "127.0.0.1:25"],
        ),
        (
            "smtp",
            "message_bytes_max",
            "\"many\"",
            &["message_bytes_max", "\"64 MiB\""],
        ),
        (
            "smtp",
            "message_bytes_max",
            "\"1 KiB\"",
            &["smtp.message_bytes_max", "at least 65536"],
        ),
        (
            "smtp",
            "recipients_max",
            "3",
            &["smtp.recipients_max", "at least 100"],
        ),
        (
            "store",
            "flush_interval",
            "\"sometimes\"",
            &["flush_interval", "\"30s\""],
        ),
        (
            "log",
            "segment_bytes",
            "\"1 GiB\"",
            &["log.bytes_max", "at least"],
        ),
        (
            "pop3",
            "cleartext_login",
            "\"yes\"",
            &["cleartext_login", "boolean"],
        ),
        (
            "pop3",
            "listen_tls",
            "[\"127.0.0.1:995\"]",
            &["pop3.listen_tls", "needs [tls]"],
        ),
        (
            "directory",
            "postmaster",
            "\"nobody\"",
            &["postmaster", "\"postmaster@example.jp\""],
        ),
        (
            "directory",
            "recipient_delimiter",
            "\"++\"",
            &["directory.recipient_delimiter", "one character"],
        ),
        (
            "mbox.mbox2",
            "shards",
            "[0]",
            &["mbox.mbox2.shards", "belongs to mbox.mbox1"],
        ),
        ("node", "drain_timeout", "30", &["drain_timeout", "\"30s\""]),
        (
            "telemetry",
            "log_filter",
            "\"inof\"",
            &[
                "telemetry.log_filter",
                "inof",
                "off, error, warn, info, debug, trace",
                "maillog",
            ],
        ),
        (
            "telemetry",
            "log_filter",
            "\"info,maillog=loud\"",
            &[
                "telemetry.log_filter",
                "loud",
                "off, error, warn, info, debug, trace",
            ],
        ),
        (
            "smtp",
            "listen",
            "[\"0.0.0.0:9025\", \"127.0.0.1:9025\"]",
            &[
                "smtp.listen",
                "127.0.0.1:9025 overlaps with 0.0.0.0:9025",
                "write single addresses",
            ],
        ),
    ];
    for (section, key, value, parts) in cases {
        let mut site = Site::new(Plan::sample());
        site.configure(section, key, value);
        let text = std::fs::read_to_string(site.config()).unwrap();
        // the log is too small for its segments: the line of the limit, not of the segments
        let blamed = if key == "segment_bytes" {
            "bytes_max = ".to_owned()
        } else {
            format!("{key} = {value}")
        };
        let lines: Vec<&str> = text.lines().collect();
        let line = 1 + lines
            .iter()
            .rposition(|line| line.starts_with(&blamed))
            .unwrap();
        let mut parts = parts.to_vec();
        let place = format!("{}:{line}: ", site.config().display());
        parts.push(&place);
        assert_refused(&site, &parts);
    }
}

#[test]
fn a_file_that_is_no_configuration_is_refused() {
    let site = Site::new(Plan::sample());
    let mut text = std::fs::read_to_string(site.config()).unwrap();
    let lines = text.lines().count();
    text.push_str("[smtp\n");
    std::fs::write(site.config(), &text).unwrap();
    assert_refused(&site, &[&format!("hikyaku.toml:{}: ", lines + 1)]);
    std::fs::remove_file(site.config()).unwrap();
    assert_refused(&site, &["hikyaku.toml", "No such file"]);
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    let mut site = Site::new(Plan::sample());
    site.configure("smtp", "recipients_max", "3");
    site.configure("queue", "messages_max", "0");
    site.configure("pop3", "listen", &format!("[\"{}\"]", site.smtp));
    assert_refused(
        &site,
        &[
            "smtp.recipients_max",
            "queue.messages_max",
            "pop3.listen",
            "smtp.listen already",
        ],
    );
}

#[test]
fn both_families_listen_on_one_port() {
    let port = free_address().port();
    let mut site = Site::new(Plan::sample());
    site.configure(
        "smtp",
        "listen",
        &format!("[\"[::]:{port}\", \"0.0.0.0:{port}\"]"),
    );
    let server = Server::configured(&site.config(), &site.log_file(), 3);
    let server = server.unwrap_or_else(|why| panic!("{why}"));
    for address in [format!("127.0.0.1:{port}"), format!("[::1]:{port}")] {
        let reply = send_mail(
            address.parse().unwrap(),
            "",
            &["bob@example.jp"],
            "Subject: x\n",
        );
        assert!(reply.starts_with("250"), "{address}: {reply}");
    }
    drop(server);
    // alone, the wildcard of IPv6 takes both
    site.configure("smtp", "listen", &format!("[\"[::]:{port}\"]"));
    let server = Server::configured(&site.config(), &site.log_file(), 2);
    let mut server = server.unwrap_or_else(|why| panic!("{why}"));
    for address in [format!("127.0.0.1:{port}"), format!("[::1]:{port}")] {
        let reply = send_mail(
            address.parse().unwrap(),
            "",
            &["bob@example.jp"],
            "Subject: x\n",
        );
        assert!(reply.starts_with("250"), "{address}: {reply}");
    }
    // another process cannot have the port, and hears what to look at
    let mut second = Site::new(Plan::sample());
    second.configure("smtp", "listen", &format!("[\"[::]:{port}\"]"));
    let why = Server::try_start(&second).unwrap_err();
    assert!(
        why.contains(&format!("[::]:{port}")) && why.contains("ss -ltnp"),
        "{why}"
    );
    server.stop();
}

#[test]
fn check_warns_of_what_a_node_in_earnest_has() {
    let mut site = Site::new(Plan::sample().ldif(""));
    site.write_ldif(
        site.ldif()
            .split("\ndn: cn=broken")
            .next()
            .unwrap()
            .to_owned(),
    );
    std::fs::set_permissions(site.ldif_file(), Permissions::from_mode(0o640)).unwrap();
    let warnings = |site: &Site| {
        let out = check(site).must();
        let lines = out.lines().filter(|line| line.starts_with("warning: "));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(warnings(&site), Vec::<String>::new());
    site.configure("node", "hostname", "\"localhost\"");
    site.configure("smtp", "listen", "[]");
    site.configure("pop3", "listen", "[]");
    let said = warnings(&site).join("\n");
    for part in [
        "node.hostname: \"localhost\"",
        "smtp.listen: no address",
        "pop3.listen: no address",
    ] {
        assert!(said.contains(part), "no {part:?} in\n{said}");
    }
}

#[test]
fn check_warns_of_files_that_others_may_read_or_change() {
    let site = Site::new(Plan::sample().certificate());
    let files = [
        (site.config(), 0o644, 0o646, "change it (mode 0646)"),
        (site.ldif_file(), 0o640, 0o644, "read it (mode 0644)"),
        (site.certificate(), 0o644, 0o666, "change it (mode 0666)"),
        (
            site.home().join("key.pem"),
            0o600,
            0o604,
            "read it (mode 0604)",
        ),
    ];
    let set = |path: &Path, mode| {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    };
    for (path, good, _, _) in &files {
        set(path, *good);
    }
    assert!(!check(&site).out.contains("others may"));
    for (path, good, bad, why) in &files {
        set(path, *bad);
        let said = check(&site);
        let line = format!("warning: {}: others may {why}", path.display());
        assert!(said.out.contains(&line), "no {line:?} in\n{}", said.out);
        assert_eq!(said.out.matches("others may").count(), 1, "{}", said.out);
        set(path, *good);
    }
}

#[test]
fn keys_that_cannot_be_served_are_named_for_what_they_are() {
    let site = Site::new(Plan::sample().certificate());
    let encrypted =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIHs\n-----END ENCRYPTED PRIVATE KEY-----\n";
    std::fs::write(site.home().join("key.pem"), encrypted).unwrap();
    assert_refused(&site, &["key.pem", "the key is encrypted"]);
}

#[test]
fn missing_files_are_named() {
    let site = Site::new(Plan::sample().certificate());
    std::fs::remove_file(site.certificate()).unwrap();
    assert_refused(&site, &["certificate.pem", "No such file"]);
    std::fs::write(site.certificate(), "no certificate\n").unwrap();
    assert_refused(&site, &["certificate.pem"]);
    let site = Site::new(Plan::sample().certificate());
    // of another certificate
    let key = std::fs::read(site.home().join("key.pem")).unwrap();
    site.write_certificate();
    std::fs::write(site.home().join("key.pem"), key).unwrap();
    assert_refused(&site, &["key.pem"]);
    let site = Site::new(Plan::sample());
    std::fs::remove_file(site.ldif_file()).unwrap();
    assert_refused(&site, &["directory.ldif", "No such file"]);
}

#[test]
fn broken_directory_entries_are_errors_of_check_and_fail_alone_at_run_time() {
    let no_address = "dn: cn=lost,o=example.jp\nobjectClass: inetLocalMailRecipient\ncn: lost\n";
    let second = person("bob2", "mbox1").replace("bob2@example.jp", "bob@example.jp");
    let site = Site::new(Plan::sample().ldif(no_address).ldif(&second));
    let said = check(&site);
    assert_eq!(said.code, Some(1), "{said:?}");
    let line_of = |dn: &str| {
        let position = site
            .ldif()
            .lines()
            .position(|line| line == format!("dn: {dn}"));
        format!(
            "directory.ldif: line {}: error: {dn}: ",
            position.unwrap() + 1
        )
    };
    for dn in ["cn=broken,o=example.jp", "cn=lost,o=example.jp"] {
        assert!(
            said.out.contains(&line_of(dn)),
            "no {:?} in\n{}",
            line_of(dn),
            said.out
        );
    }
    assert!(said.out.contains("bob@example.jp"), "{}", said.out);
    assert!(
        !said.out.contains("alice@"),
        "what is right is not named:\n{}",
        said.out
    );
    let _server = Server::start(&site);
    let send = |user: &str| {
        send_mail(
            site.smtp,
            "",
            &[&format!("{user}@example.jp")],
            "Subject: x\n",
        )
    };
    for user in ["broken", "bob"] {
        assert!(
            send(user).starts_with("451 4.4.3"),
            "{user}: {}",
            send(user)
        );
    }
    for user in ["alice", "carol"] {
        assert!(send(user).starts_with("250"), "{user}: {}", send(user));
    }
    assert!(
        send("lost").starts_with("550 5.1.1"),
        "nobody has that address: {}",
        send("lost")
    );
}

#[test]
fn a_changed_directory_is_taken_up_and_a_broken_one_is_not() {
    let mut site = Site::new(Plan::sample());
    let server = Server::start(&site);
    let mail = |user: &str| {
        send_mail(
            site.smtp,
            "",
            &[&format!("{user}@example.jp")],
            "Subject: x\n",
        )
    };
    assert!(mail("dora").starts_with("550 5.1.1"));
    let good = format!("{}{}", site.ldif(), person("dora", "mbox2"));
    let (smtp, pop3) = (site.smtp, site.pop3);
    let mail = |user: &str| send_mail(smtp, "", &[&format!("{user}@example.jp")], "Subject: x\n");
    site.write_ldif(good.clone());
    wait_for("the new user", AT_ONCE, || mail("dora").starts_with("250"));
    wait_for_mails(pop3, "dora", PASSWORD, 1);

    let refusals = |server: &Server| server.log().matches("level=error").count();
    for bad in ["this is no LDIF\n", "", &good[..good.len() / 3]] {
        let before = refusals(&server);
        site.write_ldif(bad.to_owned());
        wait_for("a refusal in the log", AT_ONCE, || {
            refusals(&server) > before
        });
        assert!(
            mail("dora").starts_with("250"),
            "the last good directory goes on answering"
        );
    }
    let status = site.ask(&["status"]).must();
    assert!(
        status.contains("ALARM") && status.contains("directory.ldif"),
        "{status}"
    );
    site.write_ldif(good.replace("uid: dora\n", "uid: dora\nuid: dodo\n"));
    wait_for("the mended directory", AT_ONCE, || {
        read_mails(pop3, "dodo", PASSWORD).is_ok()
    });
    wait_for("the end of the alarm", AT_ONCE, || {
        !site.ask(&["status"]).must().contains("directory.ldif")
    });
}

#[test]
fn check_says_what_each_kind_of_error_does() {
    let second = person("bob2", "mbox1").replace("uid: bob2", "uid: bob");
    let mended = |entries: &str| {
        let mut site = Site::new(Plan::sample().ldif(entries));
        let broken = "uid: broken\n";
        let text = site
            .ldif()
            .replace(broken, "uid: broken\nentryUUID: mended\n");
        site.write_ldif(text);
        site
    };
    let said = check(&mended(&second));
    assert_eq!(said.code, Some(1), "{said:?}");
    let expected = "login names in doubt: 1 (a login is answered \"try again later\")";
    assert!(said.err.contains(expected), "{}", said.err);
    assert!(!said.err.contains("451"), "mail is in order: {}", said.err);
    let said = check(&Site::new(Plan::sample()));
    let expected = "broken entries: 1 (mail for it is answered 451";
    assert!(said.err.contains(expected), "{}", said.err);
    // the same name in another tenant is in order, and so is a locked password
    let tenant =
        "dn: o=other.jp\nobjectClass: domainRelatedObject\no: Other\nassociatedDomain: other.jp\n";
    let theirs = person("bob2", "mbox1")
        .replace("uid: bob2", "uid: bob")
        .replace("@example.jp", "@other.jp")
        .replace("userPassword: ", "userPassword: !");
    let said = check(&mended(&format!("{tenant}{theirs}")));
    assert_eq!(said.code, Some(0), "{said:?}");
    for part in [
        "1 uids of several tenants",
        "1 entries with a locked password",
        ": ok",
    ] {
        assert!(said.out.contains(part), "no {part:?} in {}", said.out);
    }
    assert!(!said.out.contains("error: "), "{}", said.out);
}

#[test]
fn a_directory_without_an_end_is_refused_and_waited_for_by_nobody() {
    let site = Site::new(Plan::sample());
    let ldif = site.ldif_file();
    let good = std::fs::read(&ldif).unwrap();
    let huge = std::fs::File::create(&ldif).unwrap();
    // holes only: were it read, it would take minutes and 3 GiB
    huge.set_len(3 << 30).unwrap();
    assert_refused(
        &site,
        &["directory.ldif", "has 3221225472 octets, and at most"],
    );
    std::fs::write(&ldif, good).unwrap();
    let mut server = Server::start(&site);
    let beside = site.home().join("pipe");
    assert!(run(Command::new("mkfifo").arg(&beside)).ok);
    std::fs::rename(&beside, &ldif).unwrap();
    wait_for("an alarm", AT_ONCE, || {
        site.ask(&["status"])
            .must()
            .contains("directory.ldif: is no regular file")
    });
    let sent = send_mail(site.smtp, "", &["alice@example.jp"], "Subject: x\n");
    assert!(sent.starts_with("250"), "{sent}");
    let (status, _) = server.stop();
    assert!(status.success(), "{status}");
    let said = check(&site);
    assert!(said.err.contains("is no regular file"), "{}", said.err);
}

#[test]
fn a_locked_login_hears_what_a_wrong_one_hears() {
    let locked =
        person("dora", "mbox1").replace("userPassword: {SSHA512}", "userPassword: {SSHA512}!");
    let site = Site::new(Plan::sample().ldif(&locked));
    let server = Server::start(&site);
    for login in ["dora", "dora@example.jp", "nobody"] {
        let refused = read_mails(site.pop3, login, PASSWORD).unwrap_err();
        let refused = format!("{refused:#}");
        let expected = "[AUTH] wrong login or password";
        assert!(refused.contains(expected), "{login}: {refused}");
    }
    let lines = "login failed";
    wait_for("the log's lines", AT_ONCE, || {
        server.log().matches(lines).count() >= 3
    });
    let log = server.log();
    let failed: Vec<&str> = log.lines().filter(|line| line.contains(lines)).collect();
    let reason = |line: &str| {
        let reason = line.split("reason=").nth(1).unwrap_or_default();
        reason.split(' ').next().unwrap_or_default().to_owned()
    };
    let reasons: std::collections::BTreeSet<String> =
        failed.iter().map(|line| reason(line)).collect();
    assert_eq!(reasons.len(), 1, "{failed:?}");
}

#[test]
fn a_catch_all_takes_what_nobody_has() {
    let rest = "dn: cn=rest,o=example.jp\nobjectClass: inetLocalMailRecipient\ncn: rest\n\
        mailLocalAddress: @example.jp\nmailRoutingAddress: carol@example.jp\n";
    let site = Site::new(Plan::sample().ldif(rest));
    let _server = Server::start(&site);
    for address in ["gone@example.jp", "bob+x@example.jp"] {
        let sent = send_mail(site.smtp, "", &[address], "Subject: x\n");
        assert!(sent.starts_with("250"), "{address}: {sent}");
    }
    wait_for_mails(site.pop3, "carol", PASSWORD, 1);
    wait_for_mails(site.pop3, "bob", PASSWORD, 1);
    let broken = send_mail(site.smtp, "", &["broken@example.jp"], "Subject: x\n");
    assert!(broken.starts_with("451"), "{broken}");
    let explained = site.ask(&["route", "explain", "gone@example.jp"]).must();
    assert!(explained.contains("catch-all of the domain"), "{explained}");
    assert!(
        explained.contains("carol@example.jp: mbox mbox1"),
        "{explained}"
    );
}

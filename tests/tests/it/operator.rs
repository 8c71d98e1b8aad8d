//! What an operator does and reads: the queue, routes, the log.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use hikyaku_tests::harness::binary::{program, tool};
use hikyaku_tests::harness::load::queue_id;
use hikyaku_tests::harness::server::Server;
use hikyaku_tests::harness::site::{PASSWORD, Plan, Site, free_address, person};
use hikyaku_tests::harness::talk::{Talk, read_mails, send_mail, wait_for_mails};
use hikyaku_tests::harness::wait_for;

/// Longest wait for what happens at once.
const AT_ONCE: Duration = Duration::from_secs(60);

/// A site with a user whose mailbox is too small for any mail, so that mail for it stays in the queue.
fn site_with_a_full_mailbox() -> Site {
    Site::new(Plan::sample().ldif(&tiny(100)))
}

/// The directory entry of tiny@example.jp with a quota of so many octets.
fn tiny(quota: u64) -> String {
    format!("{}mailQuotaSize: {quota}\n", person("tiny", "mbox1"))
}

/// Sends a mail; its queue id.
fn send(site: &Site, to: &[&str], subject: &str) -> String {
    let content = format!(
        "Subject: {subject}\n\n{}",
        "It does not fit into a hundred octets.\n".repeat(5)
    );
    let reply = send_mail(site.smtp, "alice@example.jp", to, &content);
    queue_id(&reply)
        .unwrap_or_else(|| panic!("{reply}"))
        .to_owned()
}

/// Waits until the first attempt at a mail has failed.
fn wait_until_deferred(site: &Site, id: &str) {
    // right after its 250 a mail may be in the log only, and not known yet
    wait_for("a first attempt", AT_ONCE, || {
        site.ask(&["queue", "show", id])
            .out
            .contains("deferred until")
    });
}

/// Waits until the queue knows that a mail has arrived, which its mailbox knew before.
fn wait_until_delivered(site: &Site, id: &str, recipient: &str) {
    wait_for("the queue to know of the delivery", AT_ONCE, || {
        site.ask(&["queue", "show", id])
            .out
            .contains(&format!("<{recipient}> delivered"))
    });
}

fn give_room(site: &mut Site, server: &Server) {
    let times = |log: &str| log.matches("directory read again").count();
    let before = times(&server.log());
    site.write_ldif(
        site.ldif()
            .replace("mailQuotaSize: 100\n", "mailQuotaSize: 1000000\n"),
    );
    wait_for("the new directory", AT_ONCE, || {
        times(&server.log()) > before
    });
}

#[test]
fn mail_over_quota_is_listed_shown_and_retried() {
    let mut site = site_with_a_full_mailbox();
    let server = Server::start(&site);
    let id = send(
        &site,
        &["tiny@example.jp", "bob@example.jp"],
        "two recipients",
    );
    wait_until_deferred(&site, &id);
    wait_for_mails(site.pop3, "bob", PASSWORD, 1);
    wait_until_delivered(&site, &id, "bob@example.jp");

    let listed = site.ask(&["queue", "list"]).must();
    assert!(
        listed.starts_with(&id) && listed.contains("<alice@example.jp>"),
        "{listed}"
    );
    assert!(
        listed.contains("<tiny@example.jp> deferred until"),
        "{listed}"
    );
    assert!(listed.ends_with("1 shown, 1 in the queue\n"), "{listed}");
    let only = |arguments: &[&str]| {
        let out = site.ask(&[&["queue", "list"], arguments].concat()).must();
        out.lines().last().unwrap().starts_with("1 shown")
    };
    assert!(only(&["--state", "deferred"]) && !only(&["--state", "hold"]));
    assert!(only(&["--address", "tiny@"]) && !only(&["--address", "carol@"]));
    assert!(only(&["--tenant", "example.jp"]) && !only(&["--tenant", "other.example"]));

    let shown = site.ask(&["queue", "show", &id]).must();
    for part in [
        "<bob@example.jp> delivered",
        "4.2.2",
        "tenant example.jp",
        "helo client.example",
        "127.0.0.1",
    ] {
        assert!(shown.contains(part), "no {part:?} in\n{shown}");
    }
    give_room(&mut site, &server);
    assert_eq!(
        site.ask(&["queue", "retry", &id]).must(),
        "1 to be tried now\n"
    );
    wait_for_mails(site.pop3, "tiny", PASSWORD, 1);
    wait_for("an empty queue", AT_ONCE, || site.queued() == 0);
    wait_for_mails(site.pop3, "bob", PASSWORD, 1);
}

#[test]
fn held_mail_waits_for_its_release_over_a_restart() {
    let mut site = site_with_a_full_mailbox();
    let mut server = Server::start(&site);
    let id = send(&site, &["tiny@example.jp"], "to be held");
    wait_until_deferred(&site, &id);
    assert_eq!(
        site.ask(&["queue", "hold", &id, "--reason", "a suspicion"])
            .must(),
        "1 held\n"
    );
    give_room(&mut site, &server);
    assert!(server.stop().0.success());
    let _server = Server::start(&site);

    let shown = site.ask(&["queue", "show", &id]).must();
    assert!(shown.contains("a suspicion"), "{shown}");
    // what may go goes, past the held one, and a retry does not free it
    site.ask(&["queue", "retry", &id]);
    send(&site, &["tiny@example.jp"], "not held");
    let mails = wait_for_mails(site.pop3, "tiny", PASSWORD, 1);
    assert!(mails[0].contains("Subject: not held"), "{}", mails[0]);
    site.wait_until_tried();
    std::thread::sleep(Duration::from_secs(1));
    wait_for_mails(site.pop3, "tiny", PASSWORD, 1);

    assert_eq!(
        site.ask(&["queue", "release", "--all"]).must(),
        "1 released\n"
    );
    wait_for_mails(site.pop3, "tiny", PASSWORD, 2);
    wait_for("an empty queue", AT_ONCE, || site.queued() == 0);
}

#[test]
fn deleted_mail_is_gone_and_nobody_is_told() {
    let mut site = site_with_a_full_mailbox();
    let server = Server::start(&site);
    let id = send(&site, &["tiny@example.jp"], "to be deleted");
    wait_until_deferred(&site, &id);
    assert_eq!(site.ask(&["queue", "delete", &id]).must(), "1 deleted\n");
    wait_for("an empty queue", AT_ONCE, || site.queued() == 0);
    give_room(&mut site, &server);
    send(&site, &["tiny@example.jp"], "later");
    let mails = wait_for_mails(site.pop3, "tiny", PASSWORD, 1);
    assert!(mails[0].contains("Subject: later"), "{}", mails[0]);
    wait_for("an empty queue", AT_ONCE, || site.queued() == 0);
    wait_for_mails(site.pop3, "alice", PASSWORD, 0);
    let log = server.log();
    let order = log
        .lines()
        .map(fields)
        .find(|line| line.get("order").is_some_and(|order| order == "delete"));
    assert_eq!(order.unwrap_or_else(|| panic!("{log}"))["queue_id"], id);
    let [settled] = &lines(&log, "settled", &id)[..] else {
        panic!("{log}")
    };
    assert_eq!(
        (settled["recipient"].as_str(), settled["outcome"].as_str()),
        ("tiny@example.jp", "deleted")
    );
    assert_eq!(settled["tenant"], "example.jp");
}

#[test]
fn the_whole_queue_is_not_deleted_by_a_slip() {
    let site = site_with_a_full_mailbox();
    let _server = Server::start(&site);
    let id = send(&site, &["tiny@example.jp"], "to be deleted");
    wait_until_deferred(&site, &id);
    let why = site.ask(&["queue", "delete", "--all"]).refusal();
    assert!(why.contains("add --yes"), "{why}");
    assert_eq!(site.queued(), 1);
    // on a terminal it asks
    let on_a_terminal = |answer: &str| {
        let order = format!(
            "{} queue delete --all --config {}",
            program("hikyaku").display(),
            site.config().display()
        );
        let mut script = tool("script", "bsdutils");
        script.args(["-qec", &order, "/dev/null"]);
        script.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut script = script.spawn().unwrap();
        let mut keyboard = script.stdin.take().unwrap();
        keyboard.write_all(answer.as_bytes()).unwrap();
        let said = script.wait_with_output().unwrap();
        String::from_utf8_lossy(&said.stdout).into_owned()
    };
    let said = on_a_terminal("n\n");
    assert!(
        said.contains("delete 1 mails and tell nobody? [y/N]"),
        "{said}"
    );
    assert!(said.contains("nothing is deleted"), "{said}");
    assert_eq!(site.queued(), 1);
    let said = on_a_terminal("y\n");
    assert!(said.contains("1 deleted"), "{said}");
    wait_for("an empty queue", AT_ONCE, || site.queued() == 0);
    let id = send(&site, &["tiny@example.jp"], "another one");
    wait_until_deferred(&site, &id);
    let said = site.ask(&["queue", "delete", "--all", "--yes"]).must();
    assert_eq!(said, "1 deleted\n");
}

#[test]
fn wrong_questions_fail_and_say_why() {
    let site = site_with_a_full_mailbox();
    let unknown = "000001a20c5c5f230f3aedc650681918";
    let fails = |arguments: &[&str], why: &str| {
        let said = site.ask(arguments);
        assert!(
            said.code == Some(1) && said.err.contains(why),
            "{arguments:?}: {said:?}"
        );
    };
    for arguments in [
        &["queue", "list"][..],
        &["status"],
        &["route", "explain", "bob@example.jp"],
    ] {
        fails(arguments, "no hikyaku process answers at");
        fails(arguments, "It does not run, or not with this configuration");
    }
    let mut server = Server::start(&site);
    fails(&["queue", "show", unknown], "is not in the queue");
    for verb in ["hold", "release", "delete", "retry"] {
        fails(&["queue", verb, unknown], unknown);
        fails(&["queue", verb, "nonsense"], "not a valid queue id");
    }
    fails(&["shard", "snapshot", "mbox-99", "x"], "not served");
    fails(
        &["shard", "snapshot", "nonsense", "x"],
        "expected e.g. mbox-0",
    );
    fails(&["route", "explain", "nonsense"], "");
    server.kill();
    // its socket is left, and nobody at it
    fails(&["status"], "no hikyaku process answers at");
    fails(&["status"], "It has ended without a farewell");
}

#[test]
fn routes_are_explained_and_status_tells_how_it_is() {
    let site = site_with_a_full_mailbox();
    let server = Server::start(&site);
    let explain = |address: &str, parts: &[&str]| {
        let out = site.ask(&["route", "explain", address]).must();
        for part in parts {
            assert!(out.contains(part), "no {part:?} in\n{out}");
        }
    };
    explain(
        "bob+x@example.jp",
        &["mbox mbox2", "uid=bob", "RCPT would hear: 250 2.1.5"],
    );
    explain(
        "team@example.jp",
        &["group of 3", "alice@example.jp: mbox mbox1", "250 2.1.5"],
    );
    explain(
        "away@example.jp",
        &["friend@elsewhere.example", "450 4.3.2"],
    );
    explain("nobody@example.jp", &["550 5.1.1"]);
    explain(
        "MAILER-DAEMON@mail.example.jp",
        &["forward to alice@example.jp", "mbox mbox1", "250 2.1.5"],
    );
    explain("someone@mail.example.jp", &["550 5.7.1"]);
    explain("someone@elsewhere.example", &["550 5.7.1"]);
    explain("broken@example.jp", &["451 4.4.3"]);
    send(&site, &["bob@example.jp"], "one");
    wait_for_mails(site.pop3, "bob", PASSWORD, 1);
    let status = site.ask(&["status"]).must();
    for part in [
        &format!("listener smtp {}", site.smtp),
        "incoming-0",
        "home-0",
        "mbox-0",
        "mbox-1",
    ] {
        assert!(status.contains(part), "no {part:?} in\n{status}");
    }
    let row = status
        .lines()
        .find(|line| line.starts_with("mbox-1"))
        .unwrap();
    assert_eq!(
        row.split_whitespace().nth(1),
        Some("1"),
        "bob's mail in\n{status}"
    );
    let alarms: Vec<&str> = status
        .lines()
        .filter(|line| line.starts_with("ALARM "))
        .collect();
    assert!(
        alarms.len() == 1 && alarms[0].starts_with("ALARM 1 broken directory entries"),
        "{status}"
    );
    // whoever does not ask is told by the log
    wait_for("the alarm in the log", AT_ONCE, || {
        server.log().contains("alarm=\"1 broken directory entries")
    });
}

#[test]
fn every_step_of_a_mail_is_one_line_of_the_log() {
    let site = site_with_a_full_mailbox();
    let server = Server::start(&site);
    let refused = send_mail(site.smtp, "alice@example.jp", &["nobody@example.jp"], "");
    assert!(refused.starts_with("550"), "{refused}");
    let id = send(&site, &["bob@example.jp", "tiny@example.jp"], "hello");
    wait_until_deferred(&site, &id);
    wait_for_mails(site.pop3, "bob", PASSWORD, 1);
    wait_for("the line on the delivery", AT_ONCE, || {
        !lines(&server.log(), "settled", &id).is_empty()
    });
    let log = server.log();

    let [connected, ..] = &lines(&log, "connected", "")[..] else {
        panic!("{log}")
    };
    assert_eq!(connected["listener"], "smtp");
    assert!(connected["peer"].starts_with("127.0.0.1:"));
    let [rejected] = &lines(&log, "rejected", "")[..] else {
        panic!("{log}")
    };
    assert_eq!(
        (rejected["phase"].as_str(), rejected["recipient"].as_str()),
        ("rcpt", "nobody@example.jp")
    );
    assert_eq!(rejected["reply"], "550 5.1.1 no such user here");
    assert_eq!(
        (
            rejected["reverse_path"].as_str(),
            rejected["tenant"].as_str()
        ),
        ("alice@example.jp", "example.jp")
    );
    let [queued] = &lines(&log, "queued", &id)[..] else {
        panic!("{log}")
    };
    assert_eq!(
        (queued["tenant"].as_str(), queued["recipients"].as_str()),
        ("example.jp", "2")
    );
    assert!(
        connected["session"] != queued["session"],
        "the second session"
    );
    let [attempted, ..] = &lines(&log, "attempted", &id)[..] else {
        panic!("{log}")
    };
    assert_eq!(
        (
            attempted["recipient"].as_str(),
            attempted["tenant"].as_str()
        ),
        ("tiny@example.jp", "example.jp")
    );
    assert!(attempted["reply"].starts_with("452 4.2.2"), "{attempted:?}");
    assert!(!attempted["next_attempt"].is_empty());
    let [settled] = &lines(&log, "settled", &id)[..] else {
        panic!("{log}")
    };
    assert_eq!(
        (settled["recipient"].as_str(), settled["outcome"].as_str()),
        ("bob@example.jp", "delivered")
    );
    assert_eq!(settled["tenant"], "example.jp");
    assert!(!log.contains("It does not fit"), "no body in the log");
    // a password that is right, and one that is not
    let user = &site.users[0];
    read_mails(site.pop3, &user.login, &user.password).unwrap();
    read_mails(site.pop3, &user.login, "sesame-4711").unwrap_err();
    wait_for("the lines on both logins", AT_ONCE, || {
        let log = server.log();
        log.contains("login ok") && log.contains("login failed")
    });
    let log = server.log();
    for secret in [user.password.as_str(), "sesame-4711", "{SSHA"] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

/// The figures that the node at `metrics` tells, each with its labels.
fn figures(metrics: SocketAddr) -> BTreeMap<String, String> {
    let mut stream = TcpStream::connect(metrics).unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    let samples = page.lines().filter_map(|line| line.rsplit_once(' '));
    samples
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// Waits until the node tells these figures, and says which it does not.
fn wait_for_figures(metrics: SocketAddr, wanted: &[(&str, u64)]) {
    let mut last = Vec::new();
    wait_for(&format!("{wanted:?}"), AT_ONCE, || {
        let told = figures(metrics);
        let wrong = wanted.iter().filter(|(name, value)| {
            let right = value.to_string();
            told.get(*name) != Some(&right)
        });
        let wrong: Vec<_> = wrong
            .map(|(name, _)| (*name, told.get(*name).cloned()))
            .collect();
        if wrong != last {
            println!("not yet: {wrong:?}");
            last = wrong;
        }
        last.is_empty()
    });
}

/// A group of nobody but these names.
fn group(name: &str, members: impl IntoIterator<Item = String>) -> String {
    let members = members
        .into_iter()
        .map(|member| format!("mgrpRFC822MailMember: {member}@example.jp\n"));
    format!(
        "\ndn: cn={name},o=example.jp\nobjectClass: inetMailGroup\ncn: {name}\nmailLocalAddress: {name}@example.jp\n{}",
        members.collect::<String>()
    )
}

#[test]
fn every_figure_of_the_queue_counts_what_it_says() {
    let metrics = free_address();
    let plan = Plan::sample()
        .set("telemetry", "metrics_listen", &format!("\"{metrics}\""))
        .ldif(&tiny(100))
        .ldif(&group("one", ["two", "alice"].map(str::to_owned)))
        .ldif(&group("two", ["one", "carol"].map(str::to_owned)))
        .ldif(&group("large", (0..1001).map(|n| format!("member{n}"))));
    let site = Site::new(plan);
    let _server = Server::start(&site);
    let go = |reverse_path: &str, to: &str| {
        let mut talk = Talk::connect(site.smtp).unwrap();
        talk.reply();
        talk.smtp("EHLO client.example");
        talk.smtp(&format!("MAIL FROM:<{reverse_path}>"));
        talk.smtp(&format!("RCPT TO:{to}"));
        talk.smtp("DATA");
        let reply = talk.smtp("Subject: counted\r\n\r\nIt does not fit into a hundred octets, this mail of ours.\r\n.");
        talk.smtp("QUIT");
        queue_id(&reply)
            .unwrap_or_else(|| panic!("{reply}"))
            .to_owned()
    };
    let waiting = go("alice@example.jp", "<tiny@example.jp>");
    wait_until_deferred(&site, &waiting);
    wait_for_figures(
        metrics,
        &[
            ("mail_queue_deferred", 1),
            ("mail_queue_messages", 1),
            ("hikyaku_recipients_deferred_total", 1),
            ("mail_queue_hold", 0),
        ],
    );
    site.ask(&["queue", "hold", &waiting]).must();
    wait_for_figures(
        metrics,
        &[("mail_queue_deferred", 0), ("mail_queue_hold", 1)],
    );
    site.ask(&["queue", "delete", &waiting]).must();
    go("alice@example.jp", "<large@example.jp>");
    // bob and one who is gone: reported, not to be reported, and reported as an expansion only
    go("alice@example.jp", "<stale@example.jp>");
    go("", "<stale@example.jp>");
    go("alice@example.jp", "<stale@example.jp> NOTIFY=SUCCESS");
    go("alice@example.jp", "<bob@example.jp> NOTIFY=SUCCESS");
    go("alice@example.jp", "<one@example.jp>");
    wait_for_figures(
        metrics,
        &[
            ("hikyaku_smtp_accepted_total", 7),
            // four for bob, three reports to alice, two members of a group
            ("hikyaku_recipients_settled_total{outcome=\"delivered\"}", 9),
            ("hikyaku_recipients_settled_total{outcome=\"bounced\"}", 3),
            ("hikyaku_recipients_settled_total{outcome=\"expanded\"}", 5),
            ("hikyaku_recipients_settled_total{outcome=\"collapsed\"}", 1),
            ("hikyaku_recipients_settled_total{outcome=\"held\"}", 2),
            ("hikyaku_recipients_settled_total{outcome=\"deleted\"}", 1),
            ("hikyaku_recipients_settled_total{outcome=\"other\"}", 0),
            ("hikyaku_recipients_deferred_total", 1),
            ("hikyaku_double_bounces_total", 1),
            ("hikyaku_reports_total{action=\"failed\"}", 1),
            ("hikyaku_reports_total{action=\"delayed\"}", 0),
            ("hikyaku_reports_total{action=\"delivered\"}", 1),
            ("hikyaku_reports_total{action=\"expanded\"}", 1),
            ("mail_queue_incoming", 0),
            ("mail_queue_active", 0),
            ("mail_queue_deferred", 0),
            ("mail_queue_hold", 1),
            ("mail_queue_messages", 1),
            ("mail_queue_held{reason=\"group-too-large\"}", 1),
            ("mail_queue_held{reason=\"poison\"}", 0),
            // a broken entry, and what is held
            ("hikyaku_alarms", 2),
        ],
    );
    let status = site.ask(&["status"]).must();
    let alarm = "ALARM incoming-0: 1 recipients are held, group-too-large;";
    assert!(status.contains(alarm), "{status}");
}

/// The fields of the log's lines of one kind, about one mail if its queue id is given.
fn lines(log: &str, kind: &str, id: &str) -> Vec<BTreeMap<String, String>> {
    let all = log.lines().map(fields);
    let of_kind = all.filter(|line| {
        line.get("target").is_some_and(|target| target == "maillog") && line["msg"] == kind
    });
    of_kind
        .filter(|line| id.is_empty() || line["queue_id"] == id)
        .collect()
}

/// `key=value` and `key="quoted value"`.
fn fields(line: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut rest = line;
    while let Some((key, after)) = rest.trim_start().split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(' ').unwrap_or((after, "")),
        };
        found.insert(key.to_owned(), value.to_owned());
        rest = after;
    }
    found
}

#[test]
fn a_process_that_hangs_is_told_from_one_that_takes_long() {
    let site = Site::new(Plan::sample());
    let server = Server::start(&site);
    let signal = |name: &str| {
        let pid = server.pid().to_string();
        let sent = std::process::Command::new("kill")
            .args([name, &pid])
            .status();
        assert!(sent.unwrap().success());
    };
    signal("-STOP");
    let why = site.ask(&["status"]).refusal();
    signal("-CONT");
    assert!(why.contains("does not answer"), "{why}");
    site.ask(&["status"]).must();
}

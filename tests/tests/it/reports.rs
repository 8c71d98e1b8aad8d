//! What senders hear: of a full mailbox at RCPT, of loops, and by reports (DSN) of what they asked for.

use std::time::Duration;

use hikyaku_tests::harness::server::Server;
use hikyaku_tests::harness::site::{PASSWORD, Plan, Site, person};
use hikyaku_tests::harness::talk::{Talk, read_mails, send_mail, wait_for_mails};
use hikyaku_tests::harness::wait_for;

/// Longest wait for what happens within seconds.
const SECONDS: Duration = Duration::from_secs(60);

/// Says all of `lines` and answers the last reply.
fn say(site: &Site, lines: &[&str]) -> String {
    let mut talk = Talk::connect(site.smtp).unwrap();
    talk.reply();
    let mut last = talk.smtp("EHLO client.example");
    for line in lines {
        last = talk.smtp(line);
    }
    talk.smtp("QUIT");
    last
}

#[test]
fn a_full_mailbox_is_refused_at_rcpt_until_its_user_deletes() {
    let entry = format!("{}mailQuotaSize: 20000\n", person("small", "mbox1"));
    let site = Site::new(Plan::sample().ldif(&entry));
    let server = Server::start(&site);
    let rcpt = |sender: &str, size: &str| {
        say(
            &site,
            &[
                &format!("MAIL FROM:<{sender}>{size}"),
                "RCPT TO:<small@example.jp>",
            ],
        )
    };
    assert!(rcpt("alice@example.jp", " SIZE=10000").starts_with("250"));
    let content = format!("Subject: large\n\n{}", "0123456789abcdef\n".repeat(1055));
    let sent = send_mail(
        site.smtp,
        "alice@example.jp",
        &["small@example.jp"],
        &content,
    );
    assert!(sent.starts_with("250"), "{sent}");
    wait_for_mails(site.pop3, "small", PASSWORD, 1);
    wait_for("a refusal", SECONDS, || {
        rcpt("alice@example.jp", " SIZE=10000").starts_with("452 4.2.2")
    });
    assert!(rcpt("alice@example.jp", "").starts_with("452 4.2.2"));
    // what fits is taken, and what must arrive is
    assert!(rcpt("alice@example.jp", " SIZE=10").starts_with("250"));
    assert!(rcpt("", " SIZE=10000").starts_with("250"));
    let explained = site.ask(&["route", "explain", "small@example.jp"]).must();
    assert!(explained.contains("452 4.2.2"), "{explained}");
    let log = server.log();
    assert!(log.contains("of 20000 octets"), "{log}");

    let mut talk = Talk::connect(site.pop3).unwrap();
    talk.send(format!("USER small\r\nPASS {PASSWORD}\r\nDELE 1\r\nQUIT\r\n").as_bytes())
        .unwrap();
    while talk.line().unwrap().is_some() {}
    wait_for("mail to be taken again", SECONDS, || {
        rcpt("alice@example.jp", " SIZE=10000").starts_with("250")
    });
    assert!(rcpt("alice@example.jp", "").starts_with("250"));
    // nothing had to wait: what is deferred is tried again after minutes
    wait_for("an empty queue", SECONDS, || site.queued() == 0);
}

#[test]
fn a_mail_that_goes_round_in_circles_is_refused() {
    let site = Site::new(Plan::sample());
    let _server = Server::start(&site);
    let send = |hops: usize| {
        let fields = "Received: from a by b; Tue, 24 Nov 2026 09:00:00 +0000\n".repeat(hops);
        let content = format!("{fields}Subject: round\n\nReceived: not me\n");
        send_mail(site.smtp, "alice@example.jp", &["bob@example.jp"], &content)
    };
    assert!(send(100).starts_with("250"));
    let refused = send(101);
    assert!(refused.starts_with("554 5.4.6"), "{refused}");
    wait_for_mails(site.pop3, "bob", PASSWORD, 1);
}

#[test]
fn senders_hear_what_they_asked_for_once_and_over_a_kill() {
    let site = Site::new(Plan::sample());
    let mut server = Server::start(&site);
    let go = |mail: &str, rcpts: &[&str]| {
        let mut lines = vec![mail];
        lines.extend(rcpts);
        lines.push("DATA");
        lines.push("Subject: asked\r\n\r\nthe whole of it\r\n.");
        let reply = say(&site, &lines);
        assert!(reply.starts_with("250"), "{reply}");
    };
    go(
        "MAIL FROM:<alice@example.jp> RET=FULL ENVID=QQ+2B1",
        &[
            "RCPT TO:<bob@example.jp> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;bobby@example.jp",
            "RCPT TO:<carol@example.jp> NOTIFY=NEVER",
        ],
    );
    let told = wait_for_mails(site.pop3, "alice", PASSWORD, 1);
    for part in [
        "Return-Path: <>",
        "Subject: Mail delivered",
        "Original-Envelope-Id: QQ+1",
        "Original-Recipient: rfc822;bobby@example.jp",
        "Final-Recipient: rfc822; bob@example.jp",
        "Action: delivered",
        "Status: 2.0.0",
    ] {
        assert!(told[0].contains(part), "no {part:?} in\n{}", told[0]);
    }
    assert!(!told[0].contains("the whole of it") && !told[0].contains("carol"));
    // a group with a member that is gone: expanded, failed with all of the mail, or neither
    go(
        "MAIL FROM:<alice@example.jp> RET=FULL",
        &["RCPT TO:<stale@example.jp> NOTIFY=SUCCESS,FAILURE"],
    );
    go(
        "MAIL FROM:<alice@example.jp> RET=HDRS",
        &["RCPT TO:<stale@example.jp> NOTIFY=FAILURE"],
    );
    go(
        "MAIL FROM:<alice@example.jp> RET=FULL",
        &["RCPT TO:<stale@example.jp> NOTIFY=NEVER"],
    );
    go(
        "MAIL FROM:<>",
        &["RCPT TO:<stale@example.jp> NOTIFY=SUCCESS,FAILURE"],
    );
    server.kill();
    let server = Server::start(&site);
    let told = wait_for_mails(site.pop3, "alice", PASSWORD, 4);
    let count = |parts: &[&str]| {
        let all = |mail: &&String| parts.iter().all(|part| mail.contains(part));
        told.iter().filter(all).count()
    };
    assert_eq!(count(&["Action: expanded", "stale@example.jp"]), 1);
    assert_eq!(count(&["Action: failed", "Status: 5.1.1"]), 2);
    assert_eq!(
        count(&["Action: failed", "message/rfc822", "the whole of it"]),
        1
    );
    assert_eq!(count(&["Action: failed", "text/rfc822-headers"]), 1);
    wait_for("an empty queue", SECONDS, || site.queued() == 0);
    assert_eq!(read_mails(site.pop3, "alice", PASSWORD).unwrap().len(), 4);
    // why nobody hears is logged; the lines on those before may have died with the process
    go(
        "MAIL FROM:<alice@example.jp>",
        &["RCPT TO:<stale@example.jp> NOTIFY=NEVER"],
    );
    go("MAIL FROM:<>", &["RCPT TO:<stale@example.jp>"]);
    wait_for("the reasons in the log", SECONDS, || {
        let log = server.log();
        log.contains("the sender wanted no report") && log.contains("double bounce")
    });
    wait_for("an empty queue", SECONDS, || site.queued() == 0);
    assert_eq!(read_mails(site.pop3, "alice", PASSWORD).unwrap().len(), 4);
}

//! What each kind of report looks like.

use super::{Action, HEADER_BYTES_MAX, Recipient, Report, Returned, header_of};
use crate::id::{Class, MessageId, ShardId};
use crate::reply::Reply;

const BOUNDARY: &str = "=_0000000000000002000000000000000d";

fn refused() -> Reply {
    Reply::new(550, (5, 1, 1), "no such user here")
}

fn failed<'a>(address: &'a str, reply: &'a Reply) -> Recipient<'a> {
    Recipient {
        address,
        original_recipient: "rfc822;list@example.jp",
        reply: Some(reply),
        last_attempt_ms: Some(1_795_498_390_123),
    }
}

fn report<'a>(action: Action, recipients: &'a [Recipient<'a>]) -> Report<'a> {
    let shard = ShardId::new(Class::Incoming, 0);
    Report {
        action,
        reporting_mta: "mx.example.jp",
        to: "sender@example.com",
        id: MessageId::new(shard, 2, 0xd),
        about: MessageId::new(shard, 1, 0xa),
        smtputf8: false,
        envelope_id: "E+1",
        received_ms: 1_795_498_000_000,
        time_ms: 1_795_498_390_123,
        retry_until_ms: None,
        recipients,
        returned: Returned::Header(b"Subject: hi\r\nFrom: a@b\r\n\r\nbody"),
    }
}

fn text(report: &Report<'_>) -> String {
    let text = String::from_utf8(report.to_message()).unwrap();
    assert_eq!(text.matches('\n').count(), text.matches("\r\n").count());
    assert!(text.ends_with(&format!("\r\n--{BOUNDARY}--\r\n")));
    text
}

#[track_caller]
fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} not in {text}");
    }
}

#[test]
fn a_failure_reads_as_the_rfcs_have_it() {
    let reply = refused();
    let recipients = [failed("bob@example.jp", &reply)];
    let text = text(&report(Action::Failed, &recipients));
    has(
        &text,
        &[
            "From: Mail Delivery System <MAILER-DAEMON@mx.example.jp>\r\nTo: sender@example.com\r\n",
            "Content-Type: multipart/report; report-type=delivery-status;\r\n\tboundary=\"",
            "Auto-Submitted: auto-replied\r\n",
            "\r\n<bob@example.jp>:\r\n    550 5.1.1 no such user here\r\n",
            "Content-Type: message/delivery-status\r\n\r\nOriginal-Envelope-Id: E+1\r\nReporting-MTA: dns; mx.example.jp\r\n",
            "\r\n\r\nOriginal-Recipient: rfc822;list@example.jp\r\nFinal-Recipient: rfc822; bob@example.jp\r\nAction: failed\r\nStatus: 5.1.1\r\nDiagnostic-Code: smtp; 550 5.1.1 no such user here\r\n",
            "Content-Type: text/rfc822-headers\r\n\r\nSubject: hi\r\nFrom: a@b\r\n\r\n--=_",
        ],
    );
    assert_eq!(text.matches(&format!("--{BOUNDARY}\r\n")).count(), 3);
    assert!(!text.contains("body") && !text.contains("8bit"));
}

#[test]
fn the_whole_mail_is_returned_where_asked_for() {
    let reply = refused();
    let recipients = [failed("bob@example.jp", &reply)];
    let mut report = report(Action::Failed, &recipients);
    report.returned = Returned::Message(b"Subject: hi\r\n\r\nbody\r\n\r\nmore \xff\r\n");
    let bytes = report.to_message();
    let text = String::from_utf8_lossy(&bytes);
    has(
        &text,
        &[
            "Content-Type: message/rfc822\r\nContent-Transfer-Encoding: 8bit\r\n\r\nSubject: hi\r\n\r\nbody\r\n\r\nmore ",
            // what holds an 8bit part is one itself
            "boundary=\"=_0000000000000002000000000000000d\"\r\nContent-Transfer-Encoding: 8bit\r\n\r\n",
        ],
    );
}

#[test]
fn delays_deliveries_and_expansions_say_what_they_are() {
    let reply = Reply::new(452, (4, 2, 2), "mailbox full");
    let mut recipients = [failed("bob@example.jp", &reply)];
    let mut delayed = report(Action::Delayed, &recipients);
    delayed.retry_until_ms = Some(1_795_930_000_000);
    let delayed = text(&delayed);
    has(
        &delayed,
        &[
            "Action: delayed\r\nStatus: 4.2.2\r\nDiagnostic-Code: smtp; 452 4.2.2 mailbox full\r\n",
            "Will-Retry-Until: ",
            "It is tried until ",
            "only a warning",
        ],
    );
    recipients[0].reply = None;
    for (action, word) in [
        (Action::Delivered, "delivered"),
        (Action::Expanded, "expanded"),
    ] {
        let text = text(&report(action, &recipients));
        let status = format!(
            "Final-Recipient: rfc822; bob@example.jp\r\nAction: {word}\r\nStatus: 2.0.0\r\nLast-Attempt-Date: "
        );
        has(&text, &[&status, "\r\n<bob@example.jp>\r\n"]);
        assert!(!text.contains("Diagnostic-Code") && !text.contains("Will-Retry"));
    }
}

#[test]
fn addresses_outside_ascii_are_whole_in_both_kinds_of_report() {
    let reply = refused();
    let mut recipients = [failed("j\u{fc}rgen@example.jp", &reply)];
    recipients[0].original_recipient = "utf-8;j\\x{FC}rgen@example.jp";
    let mut report = report(Action::Failed, &recipients);
    let ascii = text(&report);
    assert!(ascii.is_ascii(), "{ascii}");
    has(
        &ascii,
        &[
            "Content-Type: message/delivery-status\r\n",
            "Original-Recipient: utf-8;j\\x{FC}rgen@example.jp\r\nFinal-Recipient: utf-8; j\\x{FC}rgen@example.jp\r\n",
        ],
    );
    report.smtputf8 = true;
    report.to = "\u{7528}\u{6237}@example.com";
    report.returned = Returned::Header("Subject: \u{fc}\r\n".as_bytes());
    let global = text(&report);
    has(
        &global,
        &[
            "To: \u{7528}\u{6237}@example.com\r\n",
            "Content-Type: message/global-delivery-status\r\nContent-Transfer-Encoding: 8bit\r\n",
            "Original-Recipient: utf-8;j\u{fc}rgen@example.jp\r\nFinal-Recipient: utf-8; j\u{fc}rgen@example.jp\r\n",
            "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n",
            "Content-Type: message/global-headers\r\nContent-Transfer-Encoding: 8bit\r\n\r\nSubject: \u{fc}\r\n",
        ],
    );
    report.smtputf8 = false;
    assert!(report.is_international(), "its own address needs it");
    report.returned = Returned::Message("Subject: \u{fc}\r\n\r\n\u{fc}\r\n".as_bytes());
    has(&text(&report), &["Content-Type: message/global\r\n"]);
}

#[test]
fn foreign_text_cannot_break_out() {
    let reply = refused();
    let recipients = [failed("a\r\n\r\nX-Forged: 1@x", &reply)];
    let mut report = report(Action::Failed, &recipients);
    report.returned = Returned::Header(b"Subject: a\nX: b\rc\r\n\r\n");
    report.to = "a@b\r\nBcc: c@d";
    let forged = text(&report);
    assert!(
        !forged.contains("\nX-Forged") && !forged.contains("\nBcc"),
        "{forged}"
    );
    has(&forged, &["Subject: a\r\nX: bc\r\n"]);
    report.returned = Returned::Header(b"");
    assert!(!text(&report).contains("rfc822-headers"));
}

#[test]
fn headers_are_cut_at_a_line() {
    let long = b"X-Filler: 0123456789\r\n".repeat(10_000);
    let cut = header_of(&long);
    assert!(cut.len() <= HEADER_BYTES_MAX && cut.ends_with(b"9\r\n"));
    assert_eq!(header_of(b"A: b\r\n\r\nbody"), b"A: b\r\n");
    assert_eq!(header_of(b"A: b"), b"A: b");
}

//! What senders are told of, how often, and in which words (RFC 3461).

use std::time::Duration;

use hikyaku_log::sim::SimFaults;
use hikyaku_mail::date::rfc5322 as date;
use hikyaku_mail::id::MessageId;
use hikyaku_proto::v1::{Envelope, Recipient};
use prost::Message as _;

use super::expansion::read;
use super::site::{Says, Site, expand, forward, group, local, people, user};
use crate::leader::DeliveryOptions;
use crate::schedule::Schedule;

const CONTENT: &[u8] = b"Received: by test\r\nSubject: asked\r\n\r\nhello\r\n";

fn options() -> DeliveryOptions {
    DeliveryOptions {
        host_name: "mx.example.jp".into(),
        schedule: Schedule {
            retry_first: Duration::from_secs(60),
            retry_max: Duration::from_secs(300),
            expiry: Duration::from_secs(3 * 3600),
            expiry_null: Duration::from_secs(2 * 3600),
            delay_report: Duration::from_secs(3600),
        },
        ..DeliveryOptions::default()
    }
}

/// A mail from bob that names itself and wants all of it back.
fn envelope() -> Envelope {
    Envelope {
        reverse_path: "bob@example.jp".into(),
        envelope_id: "QQ314159".into(),
        ret: "FULL".into(),
        ..Envelope::default()
    }
}

fn asking(mut recipient: Recipient, notify: &str) -> Recipient {
    recipient.notify = notify.into();
    recipient.original_recipient = format!("rfc822;first-{}", recipient.address);
    recipient
}

fn alice() -> Recipient {
    local("alice", "a-1", "mbox1")
}

fn carol() -> Recipient {
    local("carol", "c-1", "mbox2")
}

/// The reports that `account` got, in the order they came.
async fn reports(site: &Site, account: &str, about: MessageId) -> Vec<String> {
    let calls = site.mailboxes.state().calls.clone();
    let mut texts: Vec<String> = Vec::new();
    for call in calls
        .iter()
        .filter(|call| call.account == account && !call.void)
    {
        let text = read(&call.body).await;
        let is_new = !texts.contains(&text);
        if is_new && text.contains(&format!("Its queue id was {about}.")) {
            texts.push(text);
        }
    }
    texts
}

#[track_caller]
fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} not in {text}");
    }
}

#[tokio::test(start_paused = true)]
async fn success_is_told_to_whoever_asked() {
    let mut site = Site::new(&people(), options());
    let recipients = vec![
        asking(alice(), "SUCCESS,FAILURE"),
        asking(carol(), "FAILURE"),
    ];
    let id = site.accept_envelope(envelope(), recipients, CONTENT).await;
    site.settle().await;
    assert_eq!(site.mailboxes.copies(id), ["a-1", "c-1"]);
    let told = reports(&site, "b-1", id).await;
    assert_eq!(told.len(), 1, "{told:?}");
    has(
        &told[0],
        &[
            "Subject: Mail delivered\r\n",
            "Original-Envelope-Id: QQ314159\r\nReporting-MTA: dns; mx.example.jp\r\n",
            "Original-Recipient: rfc822;first-alice@example.jp\r\nFinal-Recipient: rfc822; alice@example.jp\r\nAction: delivered\r\nStatus: 2.0.0\r\n",
            // all of a mail comes back with a failure only
            "Content-Type: text/rfc822-headers\r\n\r\nReceived: by test\r\nSubject: asked\r\n\r\n--",
        ],
    );
    assert!(!told[0].contains("carol"));
}

#[tokio::test(start_paused = true)]
async fn failure_is_told_unless_it_was_not_wanted_and_returns_what_was_asked_for() {
    for (notify, ret, reverse_path, part) in [
        (
            "",
            "",
            "bob@example.jp",
            Some("Content-Type: text/rfc822-headers\r\n"),
        ),
        (
            "FAILURE",
            "FULL",
            "bob@example.jp",
            Some(
                "Content-Type: message/rfc822\r\n\r\nReceived: by test\r\nSubject: asked\r\n\r\nhello\r\n",
            ),
        ),
        (
            "DELAY,FAILURE",
            "HDRS",
            "bob@example.jp",
            Some("Content-Type: text/rfc822-headers\r\n"),
        ),
        ("SUCCESS,DELAY", "FULL", "bob@example.jp", None),
        ("NEVER", "FULL", "bob@example.jp", None),
        ("FAILURE", "FULL", "", None),
        ("FAILURE", "FULL", "nobody-either@example.jp", None),
    ] {
        let mut site = Site::new(&people(), options());
        let envelope = Envelope {
            reverse_path: reverse_path.into(),
            ret: ret.into(),
            ..envelope()
        };
        let recipients = vec![asking(expand("nobody"), notify)];
        let id = site.accept_envelope(envelope, recipients, CONTENT).await;
        site.settle().await;
        let told = reports(&site, "b-1", id).await;
        assert_eq!(told.len(), usize::from(part.is_some()), "{notify} {told:?}");
        if let Some(part) = part {
            has(&told[0], &[part, "Action: failed\r\nStatus: 5.1.1\r\n"]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_large_mail_comes_back_as_its_header() {
    let mut site = Site::new(&people(), options());
    let content = [CONTENT, &b"a line of some length\r\n".repeat(4000)].concat();
    let recipients = vec![asking(expand("nobody"), "FAILURE")];
    let id = site.accept_envelope(envelope(), recipients, &content).await;
    site.settle().await;
    let told = reports(&site, "b-1", id).await;
    has(&told[0], &["Content-Type: text/rfc822-headers\r\n"]);
    assert!(told[0].len() < 4000);
}

#[tokio::test(start_paused = true)]
async fn a_delay_is_told_once_whether_the_world_or_we_are_slow() {
    let mut site = Site::new(&people(), options());
    site.mailboxes
        .state()
        .always
        .insert("a-1".into(), Says::OverQuota);
    let recipients = vec![
        asking(alice(), "DELAY,FAILURE"),
        asking(carol(), "DELAY"),
        asking(expand("nobody-asked-for"), "NEVER"),
    ];
    // carol's shard does not answer at all
    site.mailboxes.state().dead.insert(1);
    let id = site.accept_envelope(envelope(), recipients, CONTENT).await;
    tokio::time::sleep(Duration::from_secs(3300)).await;
    assert_eq!(reports(&site, "b-1", id).await.len(), 0, "too early");
    tokio::time::sleep(Duration::from_secs(600)).await;
    let told = reports(&site, "b-1", id).await;
    assert_eq!(told.len(), 1, "one report of all of a mail's: {told:?}");
    has(
        &told[0],
        &[
            "Final-Recipient: rfc822; alice@example.jp\r\nAction: delayed\r\nStatus: 4.2.2\r\nDiagnostic-Code: smtp; 452 4.2.2 mailbox full\r\nLast-Attempt-Date: ",
            "Will-Retry-Until: ",
            "Content-Type: text/rfc822-headers\r\n",
        ],
    );
    has(
        &told[0],
        &[
            "Final-Recipient: rfc822; carol@example.jp\r\nAction: delayed\r\nStatus: 4.0.0\r\nWill-Retry-Until: ",
        ],
    );
    // over a crash too, and then the failure as asked for
    site.crash().await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(reports(&site, "b-1", id).await.len(), 1);
    tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
    site.mailboxes.state().dead.clear();
    site.settle().await;
    let told = reports(&site, "b-1", id).await;
    assert_eq!(told.len(), 2, "{told:?}");
    has(&told[1], &["Action: failed\r\nStatus: 5.2.2\r\n", "hello"]);
    assert_eq!(site.mailboxes.copies(id), ["c-1"]);
}

#[tokio::test(start_paused = true)]
async fn a_delay_of_many_members_of_an_alias_is_one_report_of_the_alias() {
    let names: Vec<String> = (0..120).map(|n| format!("m{n}")).collect();
    let addresses: Vec<String> = names.iter().map(|n| format!("{n}@example.jp")).collect();
    let members: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let mut entries = people();
    entries.extend(names.iter().map(|name| user(name, name, "mbox1")));
    entries.push(group("all", &members, ""));
    let mut site = Site::new(&entries, options());
    for account in names.iter().map(String::as_str).chain(["c-1"]) {
        let mut state = site.mailboxes.state();
        state.always.insert(account.into(), Says::OverQuota);
    }
    let recipients = vec![asking(expand("all"), "DELAY"), asking(carol(), "DELAY")];
    let id = site.accept_envelope(envelope(), recipients, CONTENT).await;
    tokio::time::sleep(Duration::from_secs(3900)).await;
    site.crash().await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    let told = reports(&site, "b-1", id).await;
    assert_eq!(told.len(), 1, "{told:?}");
    for name in ["all", "carol"] {
        let part = format!(
            "Original-Recipient: rfc822;first-{name}@example.jp\r\nFinal-Recipient: rfc822; {name}@example.jp\r\nAction: delayed\r\nStatus: 4.2.2\r\n"
        );
        assert_eq!(told[0].matches(&part).count(), 1, "{name} in {}", told[0]);
    }
    assert_eq!(told[0].matches("Final-Recipient").count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_directory_silent_about_some_senders_keeps_no_other_from_hearing_of_a_delay() {
    let mut site = Site::new(&people(), options());
    {
        let mut state = site.mailboxes.state();
        state.always.insert("a-1".into(), Says::OverQuota);
        state.silent = Some("silent.example");
    }
    for _ in 0..70 {
        let envelope = Envelope {
            reverse_path: "s@silent.example".into(),
            ..envelope()
        };
        site.accept_envelope(envelope, vec![asking(alice(), "DELAY")], CONTENT)
            .await;
    }
    let recipients = vec![asking(alice(), "DELAY")];
    let id = site.accept_envelope(envelope(), recipients, CONTENT).await;
    tokio::time::sleep(Duration::from_secs(3900)).await;
    assert_eq!(reports(&site, "b-1", id).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn members_who_are_gone_are_one_report_to_the_sender_and_each_named_to_an_owner() {
    let gone: Vec<String> = (0..900).map(|n| format!("gone{n}@example.jp")).collect();
    let members: Vec<&str> = gone.iter().map(String::as_str).collect();
    let mut entries = people();
    entries.push(group("all", &members, ""));
    let owner = "mgrpErrorsTo: mailto:alice@example.jp\n";
    entries.push(group("list", &members, owner));
    let mut site = Site::new(&entries, options());
    // as much as comes back
    let content = [CONTENT, &b"a line of some length\r\n".repeat(2500)].concat();
    let recipients = vec![expand("all")];
    let id = site.accept_envelope(envelope(), recipients, &content).await;
    site.settle().await;
    let counters = site.node.shard.read(|machine| machine.counters());
    assert_eq!((counters.bounced, counters.reports), (900, 1));
    let told = reports(&site, "b-1", id).await;
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].matches("Final-Recipient: ").count(), 1);
    has(
        &told[0],
        &[
            "Final-Recipient: rfc822; all@example.jp\r\nAction: failed\r\nStatus: 5.1.1\r\n",
            "Content-Type: message/rfc822\r\n",
        ],
    );
    let recipients = vec![
        asking(expand("list"), "FAILURE"),
        asking(expand("all"), "NEVER"),
    ];
    let id = site.accept_envelope(envelope(), recipients, &content).await;
    site.settle().await;
    assert!(reports(&site, "b-1", id).await.is_empty());
    let told = reports(&site, "a-1", id).await;
    assert_eq!(told.len(), 9, "a hundred addresses each");
    let told = told.concat();
    for member in &members {
        let line = format!("Final-Recipient: rfc822; {member}\r\n");
        assert_eq!(told.matches(&line).count(), 1, "{member}");
    }
}

#[tokio::test(start_paused = true)]
async fn mailboxes_that_stay_full_are_one_report_at_the_end() {
    let names: Vec<String> = (0..120).map(|n| format!("m{n}")).collect();
    let addresses: Vec<String> = names.iter().map(|n| format!("{n}@example.jp")).collect();
    let members: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let mut entries = people();
    entries.extend(names.iter().map(|name| user(name, name, "mbox1")));
    entries.push(group("all", &members, ""));
    let mut site = Site::new(&entries, options());
    for account in names.iter().map(String::as_str).chain(["c-1"]) {
        let mut state = site.mailboxes.state();
        state.always.insert(account.into(), Says::OverQuota);
    }
    let recipients = vec![expand("all"), carol(), alice()];
    let id = site.accept_envelope(envelope(), recipients, CONTENT).await;
    tokio::time::sleep(Duration::from_secs(3 * 3600)).await;
    site.settle().await;
    assert_eq!(site.mailboxes.copies(id), ["a-1"]);
    let told = reports(&site, "b-1", id).await;
    assert_eq!(told.len(), 1, "{told:?}");
    for name in ["all", "carol"] {
        let part = format!(
            "Final-Recipient: rfc822; {name}@example.jp\r\nAction: failed\r\nStatus: 5.2.2\r\n"
        );
        assert_eq!(told[0].matches(&part).count(), 1, "{name} in {}", told[0]);
    }
    assert_eq!(told[0].matches("Final-Recipient").count(), 2);
}

#[tokio::test(start_paused = true)]
async fn failures_that_fit_no_single_report_are_all_told() {
    let mut site = Site::new(&people(), options());
    let name = |n: usize| format!("{n}-{}", "\u{3b1}".repeat(25));
    let recipients = (0..150).map(|n| {
        let mut recipient = expand(&name(n));
        // 490 octets, each of which is written as eight
        recipient.original_recipient = format!("utf-8;{}", "\u{3b1}".repeat(240));
        recipient
    });
    let recipients = recipients.collect();
    let id = site.accept_envelope(envelope(), recipients, CONTENT).await;
    site.settle().await;
    let told = reports(&site, "b-1", id).await;
    assert!((2..20).contains(&told.len()), "{} reports", told.len());
    for n in 0..150 {
        let address = format!("\r\nFinal-Recipient: utf-8; {n}-\\x");
        let count = told.iter().map(|text| text.matches(&address).count());
        assert_eq!(count.sum::<usize>(), 1, "{n}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_times_in_reports_are_those_of_the_mail() {
    let mut site = Site::new(&people(), options());
    {
        let mut state = site.mailboxes.state();
        state.always.insert("a-1".into(), Says::OverQuota);
        state.always.insert("c-1".into(), Says::OverQuota);
    }
    let recipients = vec![asking(alice(), "DELAY,FAILURE"), asking(carol(), "DELAY")];
    let id = site.accept_envelope(envelope(), recipients, CONTENT).await;
    site.until("the delay is told", |site| {
        site.node.control.show(id).message.is_some_and(|mail| {
            let mut recipients = mail.recipients.iter();
            recipients.all(|recipient| recipient.delay_reported)
        })
    })
    .await;
    let mail = site.node.control.show(id).message.unwrap();
    let received_ms = mail.envelope.unwrap().received_ms;
    let last_ms = |number: usize| mail.recipients[number].history.last().unwrap().time_ms;
    let (alices, carols) = (last_ms(0), last_ms(1));
    assert_ne!(date(alices), date(carols), "tried at the same time");
    let hour = 3_600_000;
    let lines = |address: &str, tried_ms: u64| {
        format!(
            "rfc822; {address}@example.jp\r\nAction: delayed\r\nStatus: 4.2.2\r\n\
             Diagnostic-Code: smtp; 452 4.2.2 mailbox full\r\n\
             Last-Attempt-Date: {}\r\nWill-Retry-Until: {}\r\n",
            date(tried_ms),
            date(received_ms + 3 * hour),
        )
    };
    let arrived = format!("Arrival-Date: {}\r\n", date(received_ms));
    site.until("the report is there", |site| {
        !site.mailboxes.copies_of("b-1").is_empty()
    })
    .await;
    let told = reports(&site, "b-1", id).await;
    has(
        &told[0],
        &[
            &arrived,
            &lines("alice", alices),
            &lines("carol", carols),
            &format!("It is tried until {}.", date(received_ms + 3 * hour)),
        ],
    );
    let report = site.mailboxes.copies_of("b-1")[0];
    has(
        &told[0],
        &[&format!("\r\nDate: {}\r\n", date(report.time_ms()))],
    );
    let late_ms = report.time_ms() - received_ms;
    assert!((hour..hour + 120_000).contains(&late_ms), "{late_ms}");
    tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
    site.settle().await;
    let told = reports(&site, "b-1", id).await;
    let failed = site.mailboxes.copies_of("b-1")[1];
    let tried = format!("Last-Attempt-Date: {}\r\n", date(failed.time_ms()));
    has(&told[1], &["Action: failed\r\n", &arrived, &tried]);
    assert!(!told[1].contains("Will-Retry-Until"));
    let given_up_ms = failed.time_ms() - received_ms;
    assert!(
        (3 * hour..3 * hour + 180_000).contains(&given_up_ms),
        "{given_up_ms}"
    );
    // nobody wanted to hear of carol's failure
    assert!(!told[1].contains("carol"));
}

#[tokio::test(start_paused = true)]
async fn nobody_is_told_of_delays_without_asking() {
    let mut site = Site::new(&people(), options());
    site.mailboxes
        .state()
        .always
        .insert("a-1".into(), Says::OverQuota);
    let id = site
        .accept_envelope(envelope(), vec![alice()], CONTENT)
        .await;
    tokio::time::sleep(Duration::from_secs(3 * 3600)).await;
    site.settle().await;
    let told = reports(&site, "b-1", id).await;
    assert_eq!(told.len(), 1, "only the failure: {told:?}");
}

#[tokio::test(start_paused = true)]
async fn expansions_are_told_as_what_they_are() {
    let members = ["alice@example.jp", "carol@example.jp", "gone@example.jp"];
    let mut entries = people();
    entries.push(group("team", &members, ""));
    entries.push(group(
        "list",
        &members,
        "mgrpErrorsTo: mailto:alice@example.jp\n",
    ));
    entries.push(group("solo", &["carol@example.jp"], ""));
    entries.push(forward("info", "solo@example.jp"));
    let mut site = Site::new(&entries, options());
    // an alias of several addresses: expanded, then failures only, under the address that was written
    let recipients = vec![asking(expand("team"), "SUCCESS,FAILURE")];
    let id = site.accept_envelope(envelope(), recipients, CONTENT).await;
    site.settle().await;
    let mut told = reports(&site, "b-1", id).await;
    told.sort_by_key(|text| text.contains("Action: failed"));
    assert_eq!(told.len(), 2, "{told:?}");
    has(
        &told[0],
        &[
            "Original-Recipient: rfc822;first-team@example.jp\r\nFinal-Recipient: rfc822; team@example.jp\r\nAction: expanded\r\nStatus: 2.0.0\r\n",
        ],
    );
    has(
        &told[1],
        &["Final-Recipient: rfc822; team@example.jp\r\nAction: failed\r\n"],
    );
    // only success: nothing but the expansion
    let recipients = vec![asking(expand("team"), "SUCCESS")];
    let id = site.accept_envelope(envelope(), recipients, CONTENT).await;
    site.settle().await;
    assert_eq!(reports(&site, "b-1", id).await.len(), 1);
    // a list: the mail has arrived, and its owner hears of members, without the sender's names for things
    let recipients = vec![asking(expand("list"), "SUCCESS")];
    let id = site.accept_envelope(envelope(), recipients, CONTENT).await;
    site.settle().await;
    let told = reports(&site, "b-1", id).await;
    assert_eq!(told.len(), 1, "{told:?}");
    has(
        &told[0],
        &["Final-Recipient: rfc822; list@example.jp\r\nAction: delivered\r\n"],
    );
    let owner = reports(&site, "a-1", id).await;
    assert_eq!(owner.len(), 1, "{owner:?}");
    has(
        &owner[0],
        &["Final-Recipient: rfc822; gone@example.jp\r\nAction: failed\r\n"],
    );
    assert!(!owner[0].contains("Original-") && !owner[0].contains("hello"));
    // one address after another: delivered at the end, under the address that was written
    let recipients = vec![asking(expand("info"), "SUCCESS")];
    let id = site.accept_envelope(envelope(), recipients, CONTENT).await;
    site.settle().await;
    let told = reports(&site, "b-1", id).await;
    assert_eq!(told.len(), 1, "{told:?}");
    has(
        &told[0],
        &[
            "Original-Recipient: rfc822;first-info@example.jp\r\nFinal-Recipient: rfc822; info@example.jp\r\nAction: delivered\r\n",
        ],
    );
}

#[tokio::test(start_paused = true)]
async fn two_addresses_of_one_mailbox_are_both_told_of() {
    let mut entries = people();
    entries.push(forward("info", "alice@example.jp"));
    let mut site = Site::new(&entries, options());
    let other = local("alice+x", "a-1", "mbox1");
    let recipients = vec![
        alice(),
        asking(other, "SUCCESS"),
        asking(expand("info"), "SUCCESS"),
    ];
    let id = site.accept_envelope(envelope(), recipients, CONTENT).await;
    site.settle().await;
    assert_eq!(site.mailboxes.copies(id), ["a-1"]);
    let told = reports(&site, "b-1", id).await.concat();
    for name in ["alice+x", "info"] {
        let line = format!("Final-Recipient: rfc822; {name}@example.jp\r\nAction: delivered\r\n");
        assert_eq!(told.matches(&line).count(), 1, "{name} in {told}");
    }
    assert!(!told.contains("rfc822; alice@"), "{told}");
}

#[tokio::test(start_paused = true)]
async fn an_address_that_turns_out_to_be_one_just_served_is_told_of() {
    let mut entries = people();
    entries.push(forward("info", "alice@example.jp"));
    let mut site = Site::new(&entries, options());
    for _ in 0..40 {
        let recipients = vec![alice(), asking(expand("info"), "SUCCESS")];
        let id = site.accept_envelope(envelope(), recipients, CONTENT).await;
        site.settle().await;
        assert_eq!(site.mailboxes.copies(id), ["a-1"]);
        let told = reports(&site, "b-1", id).await;
        assert_eq!(told.len(), 1, "{told:?}");
        has(&told[0], &["Final-Recipient: rfc822; info@example.jp\r\n"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_mailbox_named_a_thousand_times_gets_its_mail_and_the_sender_a_report() {
    let mut site = Site::new(&people(), options());
    let name = |number: u32| local(&format!("alice+{number}"), "a-1", "mbox1");
    let recipients = (0..1000).map(|number| {
        let mut recipient = asking(name(number), "SUCCESS");
        recipient.original_recipient.push_str(&"x".repeat(400));
        recipient
    });
    let id = site
        .accept_envelope(envelope(), recipients.collect(), CONTENT)
        .await;
    site.settle().await;
    assert_eq!(site.mailboxes.copies(id), ["a-1"]);
    let told = reports(&site, "b-1", id).await;
    assert_eq!(told.len(), 1);
    has(
        &told[0],
        &["Final-Recipient: rfc822; alice+0@example.jp\r\n"],
    );
}

#[tokio::test(start_paused = true)]
async fn a_long_name_that_a_sender_gave_a_large_group_does_not_stop_its_mail() {
    let mut members: Vec<String> = (0..700).map(|n| format!("gone{n}@example.jp")).collect();
    members.push("alice@example.jp".into());
    let members: Vec<&str> = members.iter().map(String::as_str).collect();
    let mut entries = people();
    entries.push(group("all", &members, ""));
    let mut site = Site::new(&entries, options());
    let mut recipient = asking(expand("all"), "NEVER");
    // 250 letters of two octets, as they are kept
    recipient.original_recipient = format!("utf-8;{}", "\\x{3B1}".repeat(245));
    let id = site
        .accept_envelope(envelope(), vec![recipient], CONTENT)
        .await;
    site.settle().await;
    assert_eq!(site.mailboxes.copies(id), ["a-1"]);
}

#[tokio::test(start_paused = true)]
async fn large_groups_in_one_mail_leave_room_for_carrying_it_on() {
    let mut entries = people();
    let mut recipients = Vec::new();
    for number in 0..5 {
        let name = format!("all{number}");
        // elsewhere, so that they stay; 2.3 MB in all with what the sender calls each of them
        let members: Vec<String> = (0..800)
            .map(|n| {
                format!(
                    "{n}.{}@g{number}.{}.{}.example.org",
                    "m".repeat(50),
                    "a".repeat(63),
                    "b".repeat(63)
                )
            })
            .collect();
        let members: Vec<&str> = members.iter().map(String::as_str).collect();
        entries.push(group(&name, &members, ""));
        let mut recipient = asking(expand(&name), "NEVER");
        recipient.original_recipient = format!("rfc822;{}", "x".repeat(400));
        recipients.push(recipient);
    }
    let mut site = Site::new(&entries, options());
    let id = site.accept_envelope(envelope(), recipients, CONTENT).await;
    site.until("every group is expanded or held", |site| {
        let members = site.held("no-outbound").len();
        members > 0 && members / 800 + site.held("group-too-large").len() == 5
    })
    .await;
    let draft = site.node.shard.read(|machine| machine.draft_of(id));
    let bytes = draft.unwrap().carry.encoded_len();
    assert!(bytes < (1 << 20) - (128 << 10), "{bytes}");
}

#[tokio::test(start_paused = true)]
async fn a_sender_elsewhere_who_asks_for_success_leaves_nothing_in_the_queue() {
    let mut site = Site::new(&people(), options());
    let envelope = Envelope {
        reverse_path: "s@elsewhere.example".into(),
        ..envelope()
    };
    let recipients = vec![asking(alice(), "SUCCESS,DELAY")];
    let id = site.accept_envelope(envelope, recipients, CONTENT).await;
    site.settle().await;
    assert_eq!(site.mailboxes.copies(id), ["a-1"]);
}

#[tokio::test(start_paused = true)]
async fn a_mail_outside_ascii_is_reported_as_it_is() {
    let mut site = Site::new(&people(), options());
    for (smtputf8, kind, line) in [
        (
            true,
            "message/global-delivery-status",
            "Final-Recipient: utf-8; j\u{fc}@example.jp\r\n",
        ),
        (
            false,
            "message/delivery-status",
            "Final-Recipient: utf-8; j\\x{FC}@example.jp\r\n",
        ),
    ] {
        let envelope = Envelope {
            smtputf8,
            ..envelope()
        };
        let recipients = vec![asking(expand("j\u{fc}"), "FAILURE")];
        let id = site.accept_envelope(envelope, recipients, CONTENT).await;
        site.settle().await;
        let told = reports(&site, "b-1", id).await;
        has(&told[0], &[&format!("Content-Type: {kind}\r\n"), line]);
        assert_eq!(told[0].is_ascii(), !smtputf8);
    }
}

#[tokio::test(start_paused = true)]
async fn there_is_one_report_of_each_event_whatever_crashes() {
    let mut repeated = 0;
    for seed in 0..12u64 {
        let mut entries = people();
        entries.push(group("team", &["alice@example.jp", "carol@example.jp"], ""));
        let mut site = Site::with_faults(&entries, options(), SimFaults::rough());
        let unanswered = [Says::StoredUnanswered, Says::Error];
        site.mailboxes
            .state()
            .script
            .insert("a-1".into(), unanswered.into());
        let recipients = vec![
            asking(alice(), "SUCCESS"),
            asking(carol(), "SUCCESS"),
            asking(expand("team"), "SUCCESS"),
            asking(expand("nobody"), "FAILURE"),
        ];
        let id = site.accept_envelope(envelope(), recipients, CONTENT).await;
        let rival = site.rival();
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(5 + 13 * (seed % 5))).await;
            site.crash().await;
        }
        site.settle().await;
        rival.log.crash();
        rival.tasks.kill().await;
        assert_eq!(site.mailboxes.copies(id), ["a-1", "c-1"]);
        let stored = site.mailboxes.state().stored.clone();
        let told = stored.values().filter(|(account, _)| account == "b-1");
        assert_eq!(told.count(), 4, "seed {seed}");
        let calls = site.mailboxes.state().calls.len();
        repeated += usize::from(calls > stored.len() + 1);
    }
    assert!(repeated > 3, "hardly any delivery was repeated: {repeated}");
}

//! Aliases, forwards, groups, and what comes of those that lead nowhere.

use super::site::{Site, expand, forward, group, local, people, user};
use crate::leader::DeliveryOptions;

fn site(more: &[String]) -> Site {
    let entries: Vec<String> = people().into_iter().chain(more.iter().cloned()).collect();
    Site::new(&entries, DeliveryOptions::default())
}

#[tokio::test(start_paused = true)]
async fn everybody_reached_by_several_ways_gets_one_copy() {
    let mut site = site(&[
        forward("info", "team@example.jp"),
        group(
            "team",
            &["alice@example.jp", "inner@example.jp", "info2@example.jp"],
            "",
        ),
        group(
            "inner",
            &["bob@example.jp", "alice@example.jp", "carol@example.jp"],
            "",
        ),
        forward("info2", "carol@example.jp"),
    ]);
    let recipients = vec![expand("info"), local("bob", "b-1", "mbox1"), expand("team")];
    let id = site.accept("s@elsewhere.example", recipients).await;
    site.settle().await;
    assert_eq!(site.mailboxes.copies(id), ["a-1", "b-1", "c-1"]);
}

#[tokio::test(start_paused = true)]
async fn crashes_during_expansion_change_no_number_and_make_no_second_copy() {
    let mut site = site(&[
        forward("info", "team@example.jp"),
        group(
            "team",
            &["alice@example.jp", "bob@example.jp", "carol@example.jp"],
            "",
        ),
    ]);
    for round in 0..30 {
        let id = site
            .accept("s@elsewhere.example", vec![expand("info")])
            .await;
        for pause in 0..4 {
            tokio::time::sleep(std::time::Duration::from_millis((round + pause) % 9)).await;
            site.crash().await;
        }
        site.settle().await;
        assert_eq!(site.mailboxes.copies(id), ["a-1", "b-1", "c-1"]);
    }
}

#[tokio::test(start_paused = true)]
async fn loops_bounce_to_the_sender() {
    let mut site = site(&[
        group("x", &["y@example.jp"], ""),
        group("y", &["x@example.jp", "bob@example.jp"], ""),
    ]);
    let id = site.accept("alice@example.jp", vec![expand("x")]).await;
    site.settle().await;
    assert_eq!(site.mailboxes.copies(id), ["b-1"]);
    let state = site.mailboxes.state();
    let reports = state
        .stored
        .values()
        .filter(|(account, _)| account == "a-1");
    assert_eq!(reports.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn unknown_members_are_reported_to_the_groups_owner() {
    let mut site = site(&[group(
        "team",
        &["gone@example.jp", "carol@example.jp"],
        "mgrpErrorsTo: mailto:bob@example.jp\n",
    )]);
    let id = site.accept("alice@example.jp", vec![expand("team")]).await;
    site.settle().await;
    assert_eq!(site.mailboxes.copies(id), ["c-1"]);
    let state = site.mailboxes.state();
    let carol = state
        .calls
        .iter()
        .find(|call| call.account == "c-1")
        .unwrap();
    assert!(carol.prefix.starts_with("Return-Path: <bob@example.jp>"));
    let reports: Vec<_> = state
        .stored
        .values()
        .filter(|(account, _)| account != "c-1")
        .map(|(account, _)| account.as_str())
        .collect();
    assert_eq!(reports, ["b-1"]);
}

#[tokio::test(start_paused = true)]
async fn what_leaves_the_site_is_held_and_the_rest_goes_on() {
    let mut site = site(&[group(
        "team",
        &["far@elsewhere.example", "carol@example.jp"],
        "",
    )]);
    let id = site.accept("alice@example.jp", vec![expand("team")]).await;
    site.until("carol has hers", |site| {
        site.mailboxes.copies(id) == ["c-1"]
    })
    .await;
    site.until("the far one is held", |site| {
        site.held("no-outbound") == ["far@elsewhere.example"]
    })
    .await;
    // a report to a sender elsewhere
    site.accept("far@elsewhere.example", vec![expand("nobody")])
        .await;
    site.until("the report is held", |site| {
        site.held("no-outbound").len() == 2
    })
    .await;
    tokio::time::sleep(std::time::Duration::from_secs(20_000)).await;
    assert_eq!(site.live(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_vanished_user_bounces_with_a_report() {
    let mut site = Site::new(&[user("alice", "a-1", "mbox1")], DeliveryOptions::default());
    site.accept("alice@example.jp", vec![expand("nobody")])
        .await;
    site.settle().await;
    let calls = site.mailboxes.state().calls.clone();
    assert_eq!(calls.len(), 1);
    assert!(
        calls[0]
            .prefix
            .starts_with("Return-Path: <>\r\nDelivered-To: alice@example.jp")
    );
    let text = read(&calls[0].body).await;
    for part in [
        "To: alice@example.jp\r\n",
        "Final-Recipient: rfc822; nobody@example.jp\r\n",
        "Status: 5.1.1\r\n",
        "550 5.1.1 no such user here\r\n",
        "\r\nReceived: by test\r\nSubject: mail 1\r\n",
    ] {
        assert!(text.contains(part), "{part:?} not in {text}");
    }
    assert!(!text.contains("hello"));
}

pub async fn read(body: &hikyaku_proto::v1::Body) -> String {
    let blobs = hikyaku_blob::memory::MemoryBlobs::new();
    let mut reader = hikyaku_blob::body::BodyReader::open(&blobs, body)
        .await
        .unwrap();
    let mut text = Vec::new();
    while let Some(chunk) = reader.read().await.unwrap() {
        text.extend_from_slice(&chunk);
    }
    String::from_utf8(text).unwrap()
}

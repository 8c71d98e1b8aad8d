//! Aliases, forwards, groups, and what comes of those that lead nowhere.

use hikyaku_proto::v1::QueueOperateRequest;
use hikyaku_proto::v1::operate::Order;

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

/// What the reports that `account` has got say, in the order they came: `Action` and `Status` of each recipient.
async fn told(site: &Site, account: &str) -> Vec<String> {
    let calls = site.mailboxes.state().calls.clone();
    let mut told = Vec::new();
    for call in calls.iter().filter(|call| call.account == account) {
        let text = read(&call.body).await;
        let actions = text.split("\r\n").filter(|line| {
            line.starts_with("Action: ") || (line.starts_with("Status: ") && line.len() == 13)
        });
        told.push(actions.collect::<Vec<_>>().join(" "));
    }
    told
}

#[tokio::test(start_paused = true)]
async fn a_group_met_again_has_been_served() {
    let mut site = site(&[
        group("one", &["two@example.jp", "alice@example.jp"], ""),
        group("two", &["one@example.jp", "carol@example.jp"], ""),
        group("x", &["y@example.jp"], ""),
        group("y", &["x@example.jp", "alice@example.jp"], ""),
        // through a forward, and by another address of the group
        group("all", &["info@example.jp", "carol@example.jp"], ""),
        forward("info", "all+x@example.jp"),
    ]);
    for (name, copies, heard) in [
        ("one", &["a-1", "c-1"][..], "Action: expanded Status: 2.0.0"),
        ("two", &["a-1", "c-1"], "Action: expanded Status: 2.0.0"),
        ("x", &["a-1"], "Action: expanded Status: 2.0.0"),
        ("all", &["c-1"], "Action: expanded Status: 2.0.0"),
        ("info", &["c-1"], "Action: expanded Status: 2.0.0"),
    ] {
        site.mailboxes.state().calls.clear();
        let mut recipient = expand(name);
        recipient.notify = "SUCCESS,FAILURE".into();
        let id = site.accept("bob@example.jp", vec![recipient]).await;
        site.settle().await;
        assert_eq!(site.mailboxes.copies(id), copies, "{name}");
        assert_eq!(told(&site, "b-1").await, [heard], "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_leads_to_itself_alone_bounces_to_the_sender() {
    let mut site = site(&[
        forward("a", "b@example.jp"),
        forward("b", "a@example.jp"),
        group("p", &["q@example.jp"], ""),
        group("q", &["p@example.jp"], ""),
        group("r", &["s@example.jp", "t@example.jp"], ""),
        group("s", &["r@example.jp"], ""),
        group("t", &["r@example.jp", "s@example.jp"], ""),
        // the rest of the mail is no excuse
        group("u", &["a@example.jp", "carol@example.jp"], ""),
    ]);
    for (name, copies) in [("a", &[][..]), ("p", &[]), ("r", &[]), ("u", &["c-1"])] {
        site.mailboxes.state().calls.clear();
        let id = site.accept("bob@example.jp", vec![expand(name)]).await;
        site.settle().await;
        assert_eq!(site.mailboxes.copies(id), copies, "{name}");
        let heard = ["Action: failed Status: 5.4.6"];
        assert_eq!(told(&site, "b-1").await, heard, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_over_the_limit_is_held_with_an_alarm() {
    let members: Vec<String> = (0..1001).map(|n| format!("m{n}@example.jp")).collect();
    let members: Vec<&str> = members.iter().map(String::as_str).collect();
    let mut site = site(&[
        group("large", &members, ""),
        group("fits", &members[1..], ""),
        group("far", &["x@elsewhere.example"], ""),
    ]);
    site.accept("alice@example.jp", vec![expand("far")]).await;
    site.accept("", vec![expand("fits")]).await;
    site.until("the smaller one is expanded", |site| {
        let counters = site.node.shard.read(|machine| machine.counters());
        counters.double_bounces == 1000 && site.held("no-outbound").len() == 1
    })
    .await;
    // what leaves the site is held as a rule
    assert_eq!(site.node.control.alarms(), Vec::<String>::new());
    let id = site.accept("alice@example.jp", vec![expand("large")]).await;
    site.until("it is held", |site| {
        site.held("group-too-large") == ["large@example.jp"]
    })
    .await;
    assert_eq!(
        site.node.control.alarms(),
        [
            "incoming-0: 1 recipients are held, group-too-large; see `hikyaku queue list --state hold`"
        ]
    );
    let delete = QueueOperateRequest {
        order: Order::Delete.into(),
        message_ids: vec![id.to_bytes().to_vec().into()],
        ..QueueOperateRequest::default()
    };
    site.node.control.operate(&delete).await.unwrap();
    assert_eq!(site.node.control.alarms(), Vec::<String>::new());
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

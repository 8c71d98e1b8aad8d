//! What goes into the Accept record: parameters, header changes, and nothing beyond the budget.

use crate::support::Site;
use hikyaku_proto::v1::recipient::Target;
use proptest::prelude::{ProptestConfig, prop_assert_eq, proptest};

#[tokio::test(start_paused = true)]
async fn what_the_sender_asked_for_is_kept() {
    let site = Site::new();
    let mut client = site.connect("198.51.100.7:5000").await;
    client
        .must(
            "MAIL FROM:<se\u{f1}or@b\u{fc}cher.example> SMTPUTF8 BODY=8BITMIME RET=HDRS ENVID=a+20b",
            "250 ",
        )
        .await;
    client
        .must(
            "RCPT TO:<alice@local.example> NOTIFY=NEVER ORCPT=rfc822;old+40ext.example",
            "250 ",
        )
        .await;
    client
        .must(
            "RCPT TO:<ju\u{308}rgen@local.example> NOTIFY=DELAY,FAILURE",
            "250 ",
        )
        .await;
    let reply = client.content("Subject: x\r\n\r\nbody\r\n").await;
    assert!(reply.starts_with("250 "), "{reply}");
    let accepted = site.accepted();
    let envelope = accepted[0].envelope.as_ref().unwrap();
    assert_eq!(envelope.reverse_path, "se\u{f1}or@xn--bcher-kva.example");
    assert_eq!(
        (envelope.ret.as_str(), envelope.envelope_id.as_str()),
        ("HDRS", "a b")
    );
    assert!(envelope.smtputf8 && envelope.body_8bit);
    let kept: Vec<_> = accepted[0]
        .recipients
        .iter()
        .map(|recipient| {
            let Some(Target::Local(local)) = &recipient.target else {
                panic!("{recipient:?}")
            };
            (
                recipient.address.as_str(),
                local.account.as_str(),
                recipient.notify.as_str(),
                recipient.original_recipient.as_str(),
            )
        })
        .collect();
    assert_eq!(
        kept,
        [
            (
                "alice@local.example",
                "id-alice",
                "NEVER",
                "rfc822;old@ext.example"
            ),
            (
                "j\u{fc}rgen@local.example",
                "id-jurgen",
                "FAILURE,DELAY",
                ""
            ),
        ]
    );
    let content = site.content(&accepted[0]).await;
    assert!(content.contains(" with UTF8SMTP\r\n"), "{content}");
}

#[tokio::test(start_paused = true)]
async fn return_path_goes_and_the_rest_stays() {
    let site = Site::new();
    let mut client = site.connect("198.51.100.7:5000").await;
    let sent = "Return-Path: <forged@ext.example>\r\nDelivered-To: x\r\nRETURN-PATH:\r\n <two@ext.example>\r\nFrom: a\r\n\r\nReturn-Path: body\r\n";
    let kept = "Delivered-To: x\r\nFrom: a\r\n\r\nReturn-Path: body\r\n";
    client.must("MAIL FROM:<a@ext.example>", "250 ").await;
    client.must("RCPT TO:<alice@local.example>", "250 ").await;
    client.content(sent).await;
    client.must("MAIL FROM:<a@ext.example>", "250 ").await;
    client.must("RCPT TO:<alice@local.example>", "250 ").await;
    // cut in the middle of the name
    client.send(format!("BDAT 9\r\n{}", &sent[..9])).await;
    client.reply().await;
    client
        .send(format!("BDAT {} LAST\r\n{}", sent.len() - 9, &sent[9..]))
        .await;
    assert!(client.reply().await.starts_with("250 2.0.0 queued"));
    for accept in &site.accepted() {
        let content = site.content(accept).await;
        let (received, rest) = content.split_at(content.len() - kept.len());
        assert!(received.starts_with("Received: from client.example.com"));
        assert_eq!(
            received.matches("\r\n\t").count() + 1,
            received.matches("\r\n").count()
        );
        assert_eq!(rest, kept);
    }
    assert_eq!(site.accepted().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn nothing_that_a_content_begins_with_reaches_our_fields() {
    let site = Site::new();
    let mut client = site.connect("198.51.100.7:5000").await;
    let contents = [
        (
            " folded: x\r\nReturn-Path: y\r\n",
            "\r\n folded: x\r\nReturn-Path: y\r\n",
        ),
        ("hello\r\n", "\r\nhello\r\n"),
        (
            "From a Mon\r\nTo: b\r\n\r\n",
            "X-Mailbox-Line: From a Mon\r\nTo: b\r\n\r\n",
        ),
        (
            "To: b\r\nodd\r\nReturn-Path: y\r\n\r\nz\r\n",
            "To: b\r\nodd\r\n\r\nz\r\n",
        ),
        ("", ""),
    ];
    for (sent, _) in contents {
        client.must("MAIL FROM:<a@ext.example>", "250 ").await;
        client.must("RCPT TO:<alice@local.example>", "250 ").await;
        let reply = client.content(sent).await;
        assert!(reply.starts_with("250 "), "{reply}");
    }
    for (accept, (sent, kept)) in site.accepted().iter().zip(contents) {
        let content = site.content(accept).await;
        let (received, rest) = content.split_at(content.len() - kept.len());
        assert!(received.starts_with("Received: ") && received.ends_with("+0000\r\n"));
        assert_eq!(rest, kept, "{sent:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_mail_that_no_mailbox_of_that_quota_holds_is_refused_at_once() {
    // hanako's quota is 100,000 octets, alice has none
    let site = Site::new();
    let mut client = site.connect("198.51.100.7:5000").await;
    for (sender, hanako) in [
        ("<a@ext.example> SIZE=100001", "552 5.2.3"),
        ("<a@ext.example> SIZE=100000", "250 2.1.5"),
        ("<a@ext.example>", "250 2.1.5"),
        // a report is taken always
        ("<> SIZE=100001", "250 2.1.5"),
    ] {
        client.must("RSET", "250 ").await;
        client.must(&format!("MAIL FROM:{sender}"), "250 ").await;
        client.must("RCPT TO:<alice@local.example>", "250 ").await;
        client
            .must("RCPT TO:<hana..ko@local.example>", hanako)
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_has_its_share_again_however_a_mail_ends() {
    // what SIZE=100000 takes is in the memory of all, and not in the share of one
    let site = Site::with_memory(450 << 10);
    let free = site.edge.memory.free();
    let source = "198.51.100.7:5000";
    for ending in [
        "full",
        "reset",
        "quit",
        "gone",
        "gone in content",
        "refused",
        "taken",
    ] {
        // so often that a remainder of each would be the whole share
        for _ in 0..40 {
            let mut client = site.connect(source).await;
            client.must("MAIL FROM:<a@ext.example>", "250 ").await;
            client.must("RCPT TO:<alice@local.example>", "250 ").await;
            match ending {
                "full" => {
                    let mut another = site.connect(source).await;
                    let huge = "MAIL FROM:<a@ext.example> SIZE=100000";
                    another.must(huge, "250 ").await;
                    another.must("RCPT TO:<alice@local.example>", "250 ").await;
                    another.must("DATA", "452 4.3.1").await;
                    another.must("QUIT", "221 ").await;
                    client.must("RSET", "250 ").await;
                }
                "reset" => drop(client.must("RSET", "250 ").await),
                "quit" => drop(client.must("QUIT", "221 ").await),
                "gone in content" => {
                    client.must("DATA", "354 ").await;
                    client.send("Subject: half").await;
                }
                "refused" => {
                    let reply = client.content("a\0\r\n").await;
                    assert!(reply.starts_with("550 "), "{reply}");
                }
                "taken" => {
                    let reply = client.content("a\r\n").await;
                    assert!(reply.starts_with("250 "), "{reply}");
                }
                _ => {}
            }
            drop(client);
            // the clock is paused: this returns once everybody else waits
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        assert_eq!(site.edge.memory.free(), free, "{ending}");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_held_beyond_the_budget() {
    let site = Site::with_memory(1 << 20);
    let free = site.edge.memory.free();
    // recipients and their reports
    let mut client = site.connect("198.51.100.7:5000").await;
    client.must("MAIL FROM:<a@ext.example>", "250 ").await;
    let original = "x".repeat(240);
    let mut taken = 0;
    let refused = loop {
        let path = format!("alice+{taken}@local.example");
        let reply = client
            .say(format!("RCPT TO:<{path}> ORCPT=rfc822;{original}"))
            .await;
        if !reply.starts_with("250") {
            break reply;
        }
        taken += 1;
    };
    assert!(refused.starts_with("452 4.3.1"), "{refused}");
    assert!((350..750).contains(&taken), "{taken}");
    // others have what one source may not have, and all is given back
    let mut other = site.connect("198.51.100.8:5000").await;
    for (size, expected) in [("128000", "452 4.3.1"), ("5000", "354 ")] {
        other
            .must(&format!("MAIL FROM:<a@ext.example> SIZE={size}"), "250 ")
            .await;
        other.must("RCPT TO:<alice@local.example>", "250 ").await;
        other.must("DATA", expected).await;
    }
    other.send(".\r\n").await;
    other.reply().await;
    client.must("RSET", "250 ").await;
    assert_eq!(site.edge.memory.free(), free);
    // content that was not declared
    let mut clients = Vec::new();
    for number in 10..18 {
        let mut client = site.connect(&format!("198.51.100.{number}:5000")).await;
        client
            .must("MAIL FROM:<a@ext.example> SIZE=10", "250 ")
            .await;
        client.must("RCPT TO:<alice@local.example>", "250 ").await;
        client.must("DATA", "354 ").await;
        clients.push(client);
    }
    let block = format!(
        "Subject: x\r\n\r\n{}",
        format!("{}\r\n", "x".repeat(998)).repeat(120)
    );
    let mut replies = Vec::new();
    for client in &mut clients {
        client.send(&block).await;
    }
    for client in &mut clients {
        client.send(".\r\n").await;
        replies.push(client.reply().await[..3].to_owned());
    }
    let kept = replies.iter().filter(|reply| *reply == "250").count();
    assert!((1..=3).contains(&kept), "{replies:?}");
    assert!(
        replies.iter().all(|reply| reply == "250" || reply == "452"),
        "{replies:?}"
    );
    assert_eq!(site.edge.memory.free(), free);
}

#[tokio::test(start_paused = true)]
async fn many_open_mails_of_one_source_leave_room_for_others() {
    let site = Site::new();
    let free = site.edge.memory.free();
    // as many connections as a source has, each with a large mail declared
    let (mut idle, mut refused) = (Vec::new(), 0);
    for _ in 0..200 {
        let mut client = site.connect("198.51.100.9:5000").await;
        client
            .must("MAIL FROM:<a@ext.example> SIZE=500000", "250 ")
            .await;
        client.must("RCPT TO:<alice@local.example>", "250 ").await;
        idle.push(client);
    }
    assert!(
        free - site.edge.memory.free() < 2 << 20,
        "held by envelopes"
    );
    for client in &mut idle {
        refused += usize::from(client.say("DATA").await.starts_with("452 4.3.1"));
    }
    assert!((50..150).contains(&refused), "{refused}");
    let mut bystander = site.connect("203.0.113.5:5000").await;
    bystander
        .must("MAIL FROM:<b@ext.example> SIZE=500000", "250 ")
        .await;
    bystander
        .must("RCPT TO:<alice@local.example>", "250 ")
        .await;
    let reply = bystander.content("Subject: x\r\n\r\nbody\r\n").await;
    assert!(reply.starts_with("250 2.0.0"), "{reply}");
}

#[tokio::test(start_paused = true)]
async fn a_header_has_its_limits() {
    // B-113, B-114
    let site = Site::new();
    let mut client = site.connect("198.51.100.7:5000").await;
    let line = format!("X: {}\r\n", "x".repeat(990));
    for (header, expected) in [
        ("To: a@b\r\n".repeat(2001), "554 5.6.0"),
        (line.repeat(300), "552 5.3.4"),
        (
            format!(
                "X: x\r\n{}",
                format!(" {}\r\n", "x".repeat(990)).repeat(120)
            ),
            "552 5.3.4",
        ),
        ("To: a@b\r\n".repeat(2000), "250 2.0.0"),
    ] {
        client.must("MAIL FROM:<a@ext.example>", "250 ").await;
        client.must("RCPT TO:<alice@local.example>", "250 ").await;
        let reply = client.content(&format!("{header}\r\nbody\r\n")).await;
        assert!(reply.starts_with(expected), "{reply}");
    }
    assert_eq!(site.accepted().len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// B-101: two addresses are one to the directory only if they are canonically equivalent but for ASCII case, so two
    /// accounts never collide unseen.
    #[test]
    fn two_accounts_never_collide(
        left in "[aAiItT\u{e9}\u{131}\u{130}\u{df}\u{1e97}\u{212a}kK\u{430}\u{301}\u{308}]{1,3}",
        right in "[aAiItT\u{e9}\u{131}\u{130}\u{df}\u{1e97}\u{212a}kK\u{430}\u{301}\u{308}]{1,3}",
    ) {
        use hikyaku_directory::ldif_directory::LdifDirectory;
        use hikyaku_directory::password::PoolLimits;
        use hikyaku_directory::settings::Settings;
        use hikyaku_mail::path::Mailbox;
        let (one, two): (Mailbox, Mailbox) =
            (format!("{left}@x.jp").parse().unwrap(), format!("{right}@x.jp").parse().unwrap());
        let entry = |name: &str, address: &str| format!(
            "\ndn: uid={name},dc=x,dc=jp\nobjectClass: inetLocalMailRecipient\nuid: {name}\nentryUUID: {name}\nmailLocalAddress: {address}\nmailHost: mbox1\n"
        );
        let ldif = format!(
            "version: 1\n\ndn: dc=x,dc=jp\nobjectClass: dcObject\nobjectClass: organization\nobjectClass: domainRelatedObject\ndc: x\no: x\nassociatedDomain: x.jp\n{}{}",
            entry("one", &format!("{left}@x.jp")),
            entry("two", &format!("{right}@x.jp")),
        );
        let directory =
            LdifDirectory::load(ldif.as_bytes(), Settings::new(&["mbox1"], "x.jp"), PoolLimits::default()).unwrap();
        let same = one.as_str().eq_ignore_ascii_case(two.as_str());
        for (address, account) in [(&one, "one"), (&two, "two")] {
            let found = directory.table().resolve(address);
            // an address of two entries is doubt, never one of them
            prop_assert_eq!(found.is_err(), same, "{:?} {:?}", left, right);
            if let Ok(resolution) = found {
                let hikyaku_directory::Decision::Local { account: is, .. } = resolution.decision else { panic!() };
                prop_assert_eq!(is.id.to_string(), account);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn recipients_take_no_more_of_the_log_than_a_record_has_room_for() {
    let site = Site::new();
    let mut client = site.connect("198.51.100.7:5000").await;
    client.must("MAIL FROM:<sender@ext.example>", "250 ").await;
    let orcpt = format!("rfc822;{}@ext.example", "x".repeat(470));
    let mut taken = 0;
    let refused = loop {
        let path = format!("alice+{taken}@local.example");
        let reply = client.say(format!("RCPT TO:<{path}> ORCPT={orcpt}")).await;
        if !reply.starts_with("250 ") {
            break reply;
        }
        taken += 1;
    };
    assert!(refused.starts_with("452 4.5.3 "), "{refused}");
    assert!((500..700).contains(&taken), "{taken}");
    let reply = client.content("Subject: x\r\n\r\nbody\r\n").await;
    assert!(reply.starts_with("250 "), "what was taken is kept: {reply}");
    assert_eq!(site.accepted()[0].recipients.len(), taken);
}

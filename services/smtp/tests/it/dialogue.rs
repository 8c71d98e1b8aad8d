//! Commands in and out of order, and what the edge gets to see.

use crate::support::Rig;
use hikyaku_mail::reply::Reply;
use hikyaku_smtp::backend::{Abort, End};

#[tokio::test(start_paused = true)]
async fn one_mail() {
    let rig = Rig::new();
    let mut client = rig.connect();
    client.hear("220 mx.example.jp ESMTP").await;
    let greeting = client
        .say("EHLO client.example.com", "250-mx.example.jp\r\n")
        .await;
    let keywords: Vec<&str> = greeting.lines().skip(1).map(|line| &line[4..]).collect();
    assert_eq!(
        keywords,
        [
            "PIPELINING",
            "SIZE 52428800",
            "ENHANCEDSTATUSCODES",
            "8BITMIME",
            "SMTPUTF8",
            "CHUNKING",
            "DSN",
            "LIMITS RCPTMAX=1000"
        ]
    );
    client
        .say(
            "MAIL FROM:<sender@example.com> SIZE=30 BODY=8BITMIME",
            "250 2.1.0",
        )
        .await;
    client.say("RCPT TO:<alice@example.jp>", "250 2.1.5").await;
    client.say("RCPT TO:<bad@example.jp>", "550 5.1.1").await;
    client.say("RCPT TO:<defer@example.jp>", "451 4.4.3").await;
    client.say("rcpt to:<PostMaster>", "250 2.1.5").await;
    client.say("DATA", "354 ").await;
    client
        .send(b"Subject: x\r\n\r\n..\r\n\xe3\x81\x82\r\n.\r\n")
        .await;
    client.hear("250 2.0.0 queued as 1").await;
    client.say("QUIT", "221 2.0.0").await;
    assert_eq!(client.reply().await, "closed");

    let stored = rig.edge.stored();
    assert_eq!(stored.len(), 1);
    assert_eq!(stored[0].reverse_path, "sender@example.com");
    assert_eq!(stored[0].recipients, ["<alice@example.jp>", "<postmaster>"]);
    assert_eq!(
        stored[0].content,
        b"Subject: x\r\n\r\n.\r\n\xe3\x81\x82\r\n"
    );
    assert_eq!(
        (stored[0].client.as_str(), stored[0].protocol),
        ("client.example.com", "ESMTP")
    );
    let rejected = rig.edge.rejected();
    assert_eq!(
        rejected,
        [
            "rcpt <bad@example.jp>: 550 5.1.1 no such mailbox",
            "rcpt <defer@example.jp>: 451 4.4.3 try again later"
        ]
    );
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(rig.edge.ended(), [End::Quit]);
}

#[tokio::test(start_paused = true)]
async fn commands_out_of_order_change_nothing() {
    let rig = Rig::new();
    let mut client = rig.connect();
    client.hear("220 ").await;
    for command in [
        "MAIL FROM:<a@example.com>",
        "RCPT TO:<a@example.jp>",
        "DATA",
    ] {
        client.say(command, "503 5.5.1").await;
    }
    client.say("STARTTLS", "502 5.5.1").await;
    client.say("HELO client", "250 mx.example.jp").await;
    client.say("RCPT TO:<a@example.jp>", "503 5.5.1").await;
    client.say("DATA", "503 5.5.1").await;
    client.say("MAIL FROM:<>", "250 2.1.0").await;
    client.say("MAIL FROM:<>", "503 5.5.1").await;
    client.say("DATA", "503 5.5.1").await;
    client.say("RCPT TO:<bad@example.jp>", "550 5.1.1").await;
    // B-54
    client.say("DATA", "554 5.5.1").await;
    client.say("VRFY alice", "252 2.0.0").await;
    client.say("RCPT TO:<a@example.jp>", "250 2.1.5").await;
    client.say("DATA", "354 ").await;
    // B-16
    client.send(".\r\n").await;
    client.hear("250 2.0.0").await;
    client.say("DATA", "503 5.5.1").await;
    let stored = rig.edge.stored();
    assert_eq!(
        (stored.len(), stored[0].content.len(), stored[0].protocol),
        (1, 0, "SMTP")
    );
}

#[tokio::test(start_paused = true)]
async fn a_refused_message_leaves_no_transaction() {
    // B-56
    let rig = Rig::new();
    let mut client = rig.connect();
    client.up_to_data().await;
    client.send("REJECT\r\n.\r\n").await;
    client.hear("550 5.7.1").await;
    client.say("RCPT TO:<alice@example.jp>", "503 5.5.1").await;
    client.say("DATA", "503 5.5.1").await;
    client.mail_up_to_data().await;
    client.send("DEFER\r\n.\r\n").await;
    client.hear("451 4.3.0").await;
    client.say("RCPT TO:<alice@example.jp>", "503 5.5.1").await;
    assert!(rig.edge.stored().is_empty());
    assert_eq!(rig.edge.rejected()[0], "data: 550 5.7.1 no");
}

#[tokio::test(start_paused = true)]
async fn refusals_of_the_edge_before_and_within_the_content() {
    let rig = Rig::new();
    let mut client = rig.connect();
    client.hear("220 ").await;
    client.say("EHLO client", "250-").await;
    client
        .say("MAIL FROM:<nospace@example.com>", "452 4.3.1")
        .await;
    client.say("RCPT TO:<alice@example.jp>", "503 5.5.1").await;
    client.say("MAIL FROM:<a@example.com>", "250 ").await;
    client.say("RCPT TO:<nodata@example.jp>", "250 ").await;
    client.say("DATA", "451 4.3.0").await;
    client.say("MAIL FROM:<a@example.com>", "250 ").await;
    client.say("RCPT TO:<full@example.jp>", "250 ").await;
    client.say("DATA", "354 ").await;
    client.send_apart(&[b"one\r\n", b"two\r\n", b".\r\n"]).await;
    client.hear("452 4.3.1").await;
    client.say("NOOP", "250 2.0.0").await;
    assert_eq!(rig.edge.aborted(), [Abort::Refused, Abort::Refused]);
    assert_eq!(
        rig.edge.0.lock().unwrap().bytes,
        5,
        "content went on after the edge refused it"
    );
    assert!(rig.edge.stored().is_empty());
}

#[tokio::test(start_paused = true)]
async fn rset_ehlo_and_quit_drop_the_transaction() {
    let rig = Rig::new();
    let mut client = rig.connect();
    client.hear("220 ").await;
    client.say("RSET", "250 2.0.0").await;
    client.say("MAIL FROM:<a@example.com>", "503 ").await;
    for command in ["EHLO client", "RSET", "EHLO again", "HELO again", "QUIT"] {
        client.send(format!("{command}\r\n")).await;
        let reply = client.reply().await;
        assert!(
            reply.starts_with(if command == "QUIT" { "221 " } else { "250" }),
            "{reply}"
        );
        if command != "QUIT" {
            client.say("RCPT TO:<alice@example.jp>", "503 ").await;
            client.say("MAIL FROM:<a@example.com>", "250 ").await;
            client.say("RCPT TO:<alice@example.jp>", "250 ").await;
        }
    }
    assert_eq!(rig.edge.aborted(), [Abort::Reset; 4]);
}

#[tokio::test(start_paused = true)]
async fn refused_commands_say_why() {
    let mut rig = Rig::new();
    rig.options.errors_max = 1000;
    let mut client = rig.connect();
    client.hear("220 ").await;
    // B-76
    client.say("EHLO", "501 5.5.2").await;
    client.say("EHLO [1.2.3", "501 5.5.2").await;
    client.say("EHLO a\x07b", "501 5.5.2").await;
    client.say("EHLO client", "250-").await;
    for (command, expected) in [
        // B-65, B-66, B-70, B-71, B-77, B-92 to B-98, B-102
        ("NO\0OP", "500 5.5.2"),
        ("XYZZY", "500 5.5.1"),
        ("EXPN list", "502 5.5.1"),
        ("XCLIENT ADDR=127.0.0.1", "502 5.5.1"),
        ("AUTH PLAIN AGEAYg==", "502 5.5.1"),
        ("MAIL FROM:<\u{fc}@example.com>", "553 5.6.7"),
        ("MAIL FROM:<a>", "501 5.1.7"),
        ("MAIL FROM:<a@example.com> SIZE=60000000", "552 5.3.4"),
        ("MAIL FROM:<a@example.com> SIZE=abc", "501 5.5.4"),
        ("MAIL FROM:<a@example.com> SIZE=1 SIZE=1", "501 5.5.4"),
        ("MAIL FROM:<a@example.com> RET=XX", "501 5.5.4"),
        ("MAIL FROM:<a@example.com> ENVID=a ENVID=b", "501 5.5.4"),
        ("MAIL FROM:<a@example.com> REQUIRETLS", "555 5.5.4"),
        ("MAIL FROM:<a@example.com> BODY=BINARYMIME", "555 5.5.4"),
        ("MAIL FROM:<a@example.com> SIZE=52428800", "250 2.1.0"),
        ("RCPT TO:<\"u@ext.example\">", "501 5.1.3"),
        ("RCPT TO:<u@ext.example@local.example>", "501 5.1.3"),
        ("RCPT TO:<u@local.example\0.ext>", "501 5.1.3"),
        ("RCPT TO:<\u{fc}@example.jp>", "553 5.6.7"),
        ("RCPT TO:<a@example.jp> NOTIFY=NEVER,DELAY", "501 5.5.4"),
        // B-57
        ("VRFY \u{fc}", "553 5.6.7"),
        ("DATA now", "501 5.5.4"),
        ("HELP", "214 2.0.0"),
        ("RCPT TO:<u@example.jp>", "250 2.1.5"),
    ] {
        client.say(command, expected).await;
    }
    assert!(
        rig.edge
            .rejected()
            .contains(&"command: 553 5.6.7 address must be ASCII".to_owned())
    );
}

#[tokio::test(start_paused = true)]
async fn the_edge_can_refuse_at_the_door() {
    let rig = Rig::new();
    rig.edge.0.lock().unwrap().banner =
        Some(Reply::new(421, (4, 3, 2), "not now\r\n250 forged \u{fc}"));
    let mut client = rig.connect();
    // whatever a reply is made from, it is one line
    client.hear("421 4.3.2 not now??250 forged ??").await;
    assert_eq!(client.reply().await, "closed");
    assert!(rig.edge.rejected()[0].starts_with("connect: 421"));
}

#[tokio::test(start_paused = true)]
async fn a_connection_lost_anywhere_stores_nothing() {
    // B-79
    let whole = "EHLO c\r\nMAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.jp>\r\nDATA\r\nSubject: x\r\n\r\nbody\r\n.\r\n";
    for at in 0..whole.len() {
        let rig = Rig::new();
        let (stream, task) = rig.start(hikyaku_smtp::server::Tls::Off);
        let mut client = crate::support::Client::new(stream);
        let sent = &whole[..at];
        for line in sent.split_inclusive("\r\n") {
            client.send_apart(&[line.as_bytes()]).await;
        }
        drop(client);
        task.await.unwrap();
        assert!(rig.edge.stored().is_empty(), "{sent:?}");
        assert_eq!(rig.edge.ended(), [End::Disconnected], "{sent:?}");
        let begun = usize::from(sent.contains("com>\r\n"));
        assert_eq!(
            rig.edge.aborted(),
            vec![Abort::Disconnected; begun],
            "{sent:?}"
        );
    }
}

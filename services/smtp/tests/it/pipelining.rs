//! RFC 2920: what may be sent ahead, and what may not.

use crate::support::Rig;
use std::time::Duration;

#[tokio::test(start_paused = true)]
async fn groups_are_answered_in_order() {
    // B-52
    let rig = Rig::new();
    let mut client = rig.connect();
    client.hear("220 ").await;
    client.say("EHLO client", "250-").await;
    let recipients: String = (0..100)
        .map(|number| format!("RCPT TO:<r{number}@example.jp>\r\n"))
        .collect();
    let group =
        format!("MAIL FROM:<a@example.com>\r\n{recipients}RCPT TO:<bad@example.jp>\r\nDATA\r\n");
    client.send(&group).await;
    client.hear("250 2.1.0").await;
    for _ in 0..100 {
        client.hear("250 2.1.5").await;
    }
    client.hear("550 5.1.1").await;
    client.hear("354 ").await;
    client.send(format!("one\r\n.\r\n{group}")).await;
    client.hear("250 2.0.0").await;
    client.hear("250 2.1.0").await;
    for _ in 0..100 {
        client.hear("250 2.1.5").await;
    }
    client.hear("550 5.1.1").await;
    client.hear("354 ").await;
    client.send("two\r\n.\r\nQUIT\r\n").await;
    client.hear("250 2.0.0").await;
    client.hear("221 2.0.0").await;
    assert_eq!(rig.edge.contents(), ["one\r\n", "two\r\n"]);
    assert!(
        rig.edge
            .stored()
            .iter()
            .all(|stored| stored.recipients.len() == 100)
    );
}

#[tokio::test(start_paused = true)]
async fn a_group_cut_anywhere_is_the_same_group() {
    let group = "MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.jp>\r\nDATA\r\n";
    for at in 0..group.len() {
        let rig = Rig::new();
        let mut client = rig.connect();
        client.hear("220 ").await;
        client.say("EHLO client", "250-").await;
        client
            .send_apart(&[&group.as_bytes()[..at], &group.as_bytes()[at..]])
            .await;
        for expected in ["250 2.1.0", "250 2.1.5", "354 "] {
            client.hear(expected).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn speaking_before_the_reply_closes() {
    // B-51, B-53
    let data = "MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.jp>\r\nDATA\r\nSubject: x\r\n\r\nbody\r\n.\r\n";
    for (opening, heard) in [
        ("EHLO x\r\nMAIL FROM:<a@example.com>\r\n", &[][..]),
        ("HELO x\r\nM", &[]),
        (data, &["250 2.1.0", "250 2.1.5"]),
        ("RSET\r\nDATA\r\nbody", &["250 2.0.0"]),
    ] {
        let rig = Rig::new();
        let mut client = rig.connect();
        client.hear("220 ").await;
        if !opening.contains("ELO") && !opening.contains("EHLO") {
            client.say("EHLO x", "250-").await;
        }
        client.send(opening).await;
        for reply in heard {
            client.hear(reply).await;
        }
        client.hear("554 5.5.0").await;
        assert_eq!(client.reply().await, "closed", "{opening:?}");
        assert!(rig.edge.stored().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn what_lies_unread_in_the_socket_counts_too() {
    // the command fills the server's read of 4 KiB exactly, so that the body is not in its buffer
    let rig = Rig::new();
    let mut client = rig.connect();
    client.hear("220 ").await;
    client.say("EHLO client", "250-").await;
    let mut group = "MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.jp>\r\n".to_owned();
    while group.len() < 4096 - 500 {
        group.push_str(&format!("VRFY {}\r\n", "x".repeat(300)));
    }
    let filler = 4096 - group.len() - "DATA\r\nNOOP \r\n".len();
    group.push_str(&format!("NOOP {}\r\nDATA\r\n", "x".repeat(filler)));
    assert_eq!(group.len(), 4096);
    client.send(format!("{group}body\r\n.\r\n")).await;
    let mut replies = Vec::new();
    loop {
        match client.reply().await.as_str() {
            "closed" => break,
            reply => replies.push(reply[..3].to_owned()),
        }
    }
    assert_eq!(replies.last().unwrap(), "554");
    assert!(!replies.contains(&"354".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn early_talkers() {
    // B-50
    let mut rig = Rig::new();
    rig.options.greet_delay = Duration::from_secs(3);
    let mut client = rig.connect();
    client.send("EHLO x\r\n").await;
    client.hear("554 5.5.0").await;
    assert_eq!(client.reply().await, "closed");
    assert!(rig.edge.rejected()[0].starts_with("connect: 554"));

    let began = tokio::time::Instant::now();
    let mut client = rig.connect();
    client.hear("220 ").await;
    assert_eq!(began.elapsed(), Duration::from_secs(3));
    client.say("EHLO x", "250-").await;
}

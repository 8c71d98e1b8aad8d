//! Clients that send too much of something.

use crate::support::Rig;
use hikyaku_smtp::backend::{Abort, End};

#[tokio::test(start_paused = true)]
async fn command_lines() {
    // B-63
    let rig = Rig::new();
    let mut client = rig.connect();
    client.hear("220 ").await;
    client
        .say(&format!("NOOP {}", "x".repeat(505)), "250 ")
        .await;
    client
        .say(&format!("NOOP {}", "x".repeat(506)), "500 5.5.2")
        .await;
    client
        .say(&format!("NOOP {}", "x".repeat(5000)), "500 5.5.2")
        .await;
    client
        .say(&format!("EHLO {}", "x".repeat(64_000)), "500 5.5.2")
        .await;
    client.say("NOOP", "250 ").await;
    client.send("x".repeat(80_000)).await;
    client.hear("421 4.7.0").await;
    assert_eq!(client.reply().await, "closed");
}

#[tokio::test(start_paused = true)]
async fn lone_line_ends_in_commands() {
    // B-18, B-19
    for text in [
        "EHLO x\nMAIL FROM:<a@example.com>\r\n",
        "EHLO x\n",
        "EHLO x\rNOOP\r\n",
        "NOOP\r\r\n",
        "\n",
    ] {
        for at in 1..=text.len() {
            let rig = Rig::new();
            let mut client = rig.connect();
            client.hear("220 ").await;
            client
                .send_apart(&[&text.as_bytes()[..at], &text.as_bytes()[at..]])
                .await;
            client.hear("500 5.5.2").await;
            assert_eq!(client.reply().await, "closed", "{text:?} at {at}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_recipients() {
    // B-72
    let rig = Rig::new();
    let mut client = rig.connect();
    client.hear("220 ").await;
    client.say("EHLO client", "250-").await;
    client.say("MAIL FROM:<a@example.com>", "250 ").await;
    for number in 1..=1000 {
        client
            .say(&format!("RCPT TO:<r{number}@example.jp>"), "250 ")
            .await;
    }
    for number in 1001..=1100 {
        client
            .say(&format!("RCPT TO:<r{number}@example.jp>"), "452 4.5.3")
            .await;
    }
    client.say("DATA", "354 ").await;
    client.send("x\r\n.\r\n").await;
    client.hear("250 ").await;
    assert_eq!(rig.edge.stored()[0].recipients.len(), 1000);
    // a client that goes on and on
    client.say("MAIL FROM:<a@example.com>", "250 ").await;
    for _ in 1..=2000 {
        client.send("RCPT TO:<defer@example.jp>\r\n").await;
        let reply = client.reply().await;
        assert!(reply.starts_with("45"), "{reply}");
    }
    client.say("RCPT TO:<defer@example.jp>", "421 4.7.0").await;
    assert_eq!(client.reply().await, "closed");
    assert_eq!(rig.edge.aborted(), [Abort::Disconnected]);
}

#[tokio::test(start_paused = true)]
async fn the_same_recipient_a_thousand_times() {
    // B-82
    let rig = Rig::new();
    let mut client = rig.connect();
    client.hear("220 ").await;
    client.say("EHLO client", "250-").await;
    client.say("MAIL FROM:<a@example.com>", "250 ").await;
    for number in 0..1000 {
        let domain = if number % 2 == 0 {
            "example.jp"
        } else {
            "EXAMPLE.JP."
        };
        client
            .say(&format!("RCPT TO:<b@{domain}>"), "250 2.1.5")
            .await;
    }
    client.say("DATA", "354 ").await;
    client.send("x\r\n.\r\n").await;
    client.hear("250 ").await;
    assert_eq!(rig.edge.stored()[0].recipients, ["<b@example.jp>"]);
    assert_eq!(rig.edge.0.lock().unwrap().asked, 1);
}

#[tokio::test(start_paused = true)]
async fn junk_commands() {
    // B-73
    for command in ["NOOP", "RSET", "VRFY x", "HELP", "EHLO x"] {
        let rig = Rig::new();
        let mut client = rig.connect();
        client.hear("220 ").await;
        client.say("EHLO x", "250-").await;
        for _ in 0..20 {
            client.say(command, "2").await;
        }
        client.say(command, "421 4.7.0").await;
        assert_eq!(client.reply().await, "closed");
    }
}

#[tokio::test(start_paused = true)]
async fn errors_are_slowed_then_ended_and_a_delivery_forgives() {
    let rig = Rig::new();
    let mut client = rig.connect();
    client.hear("220 ").await;
    client.say("EHLO x", "250-").await;
    for round in 0..2 {
        let began = tokio::time::Instant::now();
        for error in 1..=20 {
            client.say("XYZZY", "500 ").await;
            let slowed = began.elapsed().as_secs();
            assert_eq!(
                slowed,
                u64::try_from(error).unwrap().saturating_sub(10),
                "round {round}, error {error}"
            );
        }
        if round == 0 {
            client.mail_up_to_data().await;
            client.send(".\r\n").await;
            client.hear("250 ").await;
        }
    }
    client.say("XYZZY", "421 4.7.0").await;
    assert_eq!(client.reply().await, "closed");
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(rig.edge.ended(), [End::Refused]);
}

#[tokio::test(start_paused = true)]
async fn other_protocols_are_shown_the_door() {
    for (opening, expected) in [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "521 5.5.1"),
        ("CONNECT x:25 HTTP/1.0\r\n\r\n", "521 5.5.1"),
        // B-59
        ("BDAT 10 LAST x\r\n0123456789", "501 5.5.4"),
        ("BDAT -1\r\nDATA\r\n", "501 5.5.4"),
    ] {
        let rig = Rig::new();
        let mut client = rig.connect();
        client.hear("220 ").await;
        client.send(opening).await;
        client.hear(expected).await;
        assert_eq!(client.reply().await, "closed");
    }
}

#[tokio::test(start_paused = true)]
async fn failing_mail_commands_do_not_go_on_forever() {
    let rig = Rig::new();
    let mut client = rig.connect();
    client.hear("220 ").await;
    client.say("EHLO x", "250-").await;
    for _ in 0..20 {
        client
            .say("MAIL FROM:<nospace@example.com>", "452 4.3.1")
            .await;
    }
    client.send("MAIL FROM:<nospace@example.com>\r\n").await;
    client.hear("452 ").await;
    client.say("NOOP", "421 4.7.0").await;
}

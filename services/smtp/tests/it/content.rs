//! Smuggling: whatever looks like an end of data to somebody else is none here. Every sequence at every split.

use crate::support::{Client, Keys, Rig};

const FORGED: &str =
    "MAIL FROM:<forged@example.com>\r\nRCPT TO:<victim@example.jp>\r\nDATA\r\nforged\r\n.\r\n";

/// Sends a message with `sequence` and a second, forged one behind it, cut at every place in and around the sequence.
async fn refused(sequence: &str, expected: &str) {
    let head = "Subject: x\r\n\r\nbody";
    let message = format!("{head}{sequence}{FORGED}");
    for at in head.len() - 1..=head.len() + sequence.len() + 1 {
        let rig = Rig::new();
        let mut client = rig.connect();
        client.up_to_data().await;
        client
            .send_apart(&[&message.as_bytes()[..at], &message.as_bytes()[at..]])
            .await;
        client.hear(expected).await;
        assert_eq!(client.reply().await, "closed", "{sequence:?} at {at}");
        assert!(rig.edge.stored().is_empty(), "{sequence:?} at {at}");
    }
}

#[tokio::test(start_paused = true)]
async fn false_ends_are_refused_and_the_connection_closed() {
    // B-1 to B-8, B-11, B-12
    for sequence in [
        "\n.\n",
        "\n.\r\n",
        "\r\n.\n",
        "\r.\r",
        "\r.\n",
        "\n.\r",
        "\r.\r\n",
        "\r\n.\r",
        "\r\n.\r\r\n",
        "\r\r\n.\r\r\n",
    ] {
        refused(sequence, "550 5.5.2").await;
    }
    // B-9, B-10
    refused("\r\n\0.\r\n", "550 5.6.0").await;
    refused("\r\n.\0\r\n", "550 5.6.0").await;
}

#[tokio::test(start_paused = true)]
async fn dots_that_are_data() {
    // B-13, B-15
    for (sent, stored) in [
        ("\r\n..\r\n", "\r\n.\r\n"),
        ("\r\n. \r\n", "\r\n \r\n"),
        ("\r\n.\t\r\n", "\r\n\t\r\n"),
        ("\r\n.\x0b\r\n", "\r\n\x0b\r\n"),
        ("\r\n\u{ff0e}\r\n", "\r\n\u{ff0e}\r\n"),
        ("\r\n...\r\n", "\r\n..\r\n"),
    ] {
        let message = format!("body{sent}{FORGED}");
        for at in 0..=message.len() {
            let rig = Rig::new();
            let mut client = rig.connect();
            client.up_to_data().await;
            client
                .send_apart(&[&message.as_bytes()[..at], &message.as_bytes()[at..]])
                .await;
            client.hear("250 2.0.0").await;
            client.say("NOOP", "250 2.0.0").await;
            let expected = format!("body{stored}{}", FORGED.strip_suffix(".\r\n").unwrap());
            assert_eq!(rig.edge.contents(), [expected], "{sent:?} at {at}");
        }
    }
}

/// Sends the end of data in the given pieces.
async fn end_in_pieces(client: &mut Client, rig: &Rig, pieces: &[&[u8]]) {
    client.up_to_data().await;
    client.send_apart(&[b"body"]).await;
    client.send_apart(pieces).await;
    client.hear("250 2.0.0").await;
    client.say("NOOP", "250 2.0.0").await;
    assert_eq!(rig.edge.contents(), ["body\r\n"], "{pieces:?}");
}

#[tokio::test(start_paused = true)]
async fn the_end_is_the_same_at_every_split() {
    // B-14: segments and TLS records
    let keys = Keys::new();
    for cuts in 0..16_u32 {
        let mut pieces: Vec<Vec<u8>> = vec![Vec::new()];
        for (index, &byte) in b"\r\n.\r\n".iter().enumerate() {
            if index > 0 && cuts & 1 << (index - 1) != 0 {
                pieces.push(Vec::new());
            }
            pieces.last_mut().unwrap().push(byte);
        }
        let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
        let rig = Rig::new();
        end_in_pieces(&mut rig.connect(), &rig, &pieces).await;
        let rig = Rig::new();
        end_in_pieces(&mut rig.connect_tls(&keys).await, &rig, &pieces).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_nul_anywhere_is_refused() {
    // B-65
    refused("\0", "550 5.6.0").await;
    let rig = Rig::new();
    let mut client = rig.connect();
    client.up_to_data().await;
    client.send("Sub\0ject: x\r\n\r\n.\r\n").await;
    client.hear("550 5.6.0").await;
    assert_eq!(client.reply().await, "closed");
}

#[tokio::test(start_paused = true)]
async fn size_is_what_arrives_not_what_was_declared() {
    // B-69; the real limit is 50 MiB, the rule is the same
    let mut rig = Rig::new();
    rig.options.content_bytes_max = 100_000;
    let mut client = rig.connect();
    client.hear("220 ").await;
    client.say("EHLO client", "250-").await;
    for (lines, expected) in [
        (1000, "250 2.0.0"),
        (1001, "552 5.3.4"),
        (1900, "552 5.3.4"),
    ] {
        client
            .say("MAIL FROM:<a@example.com> SIZE=100", "250 ")
            .await;
        client.say("RCPT TO:<b@example.jp>", "250 ").await;
        client.say("DATA", "354 ").await;
        let line = format!("{}\r\n", "x".repeat(98));
        client.send(line.repeat(lines)).await;
        client.send(".\r\n").await;
        client.hear(expected).await;
    }
    assert_eq!(rig.edge.contents().len(), 1);
    assert_eq!(rig.edge.contents()[0].len(), 100_000);
    // what is held never exceeds the limit, for all three together
    assert!(rig.edge.0.lock().unwrap().bytes <= 300_000);
    assert!(rig.edge.0.lock().unwrap().chunk_bytes_max <= 64 << 10);
    // and we do not listen forever
    client.mail_up_to_data().await;
    client.send("x".repeat(500_000)).await;
    client.hear("552 5.3.4").await;
    assert_eq!(client.reply().await, "closed");
}

#[tokio::test(start_paused = true)]
async fn long_lines_up_to_the_limit() {
    // B-64
    let rig = Rig::new();
    let mut client = rig.connect();
    client.up_to_data().await;
    let mut first = true;
    for (length, expected) in [
        (999, "250 "),
        (1000, "250 "),
        (1001, "250 "),
        (65536, "250 "),
        (65537, "554 5.6.0"),
        (5 << 20, "554 5.6.0"),
    ] {
        if !std::mem::take(&mut first) {
            client.mail_up_to_data().await;
        }
        client
            .send(format!("{}\r\n.\r\n", "x".repeat(length)))
            .await;
        client.hear(expected).await;
    }
    let lengths: Vec<usize> = rig.edge.contents().iter().map(String::len).collect();
    assert_eq!(lengths, [1001, 1002, 1003, 65538]);
}

#[tokio::test(start_paused = true)]
async fn a_mail_that_has_been_everywhere_is_looping() {
    // B-121
    let rig = Rig::new();
    let mut client = rig.connect();
    client.up_to_data().await;
    client
        .send(format!(
            "{}\r\nReceived: in the body\r\n.\r\n",
            "RECEIVED: from x\r\n\tby y\r\n".repeat(100)
        ))
        .await;
    client.hear("250 ").await;
    client.mail_up_to_data().await;
    client
        .send(format!("{}\r\n.\r\n", "Received: from x\r\n".repeat(101)))
        .await;
    client.hear("554 5.4.6").await;
    client.say("NOOP", "250 ").await;
    assert_eq!(rig.edge.stored().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn bare_lf_made_whole_never_ends_a_message() {
    // B-17
    for (sequence, stored) in [
        ("\n", "\r\n"),
        ("\n.\n", "\r\n\r\n"),
        ("\n.\r\n", "\r\n\r\n"),
        ("\r\n.\n", "\r\n\r\n"),
        ("\n..\n", "\r\n.\r\n"),
    ] {
        let message = format!("body{sequence}{FORGED}");
        for at in 0..=message.len() {
            let mut rig = Rig::new();
            rig.options.bare_lf_normalized = true;
            let mut client = rig.connect();
            client.up_to_data().await;
            client
                .send_apart(&[&message.as_bytes()[..at], &message.as_bytes()[at..]])
                .await;
            client.hear("250 2.0.0").await;
            client.say("NOOP", "250 2.0.0").await;
            let expected = format!("body{stored}{}", FORGED.strip_suffix(".\r\n").unwrap());
            assert_eq!(rig.edge.contents(), [expected], "{sequence:?} at {at}");
        }
    }
}

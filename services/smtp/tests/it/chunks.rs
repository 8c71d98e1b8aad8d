//! BDAT (RFC 3030): counted octets under the rules of any content, and framing that is never lost.

use crate::support::{Client, Keys, Rig};
use hikyaku_smtp::backend::{Abort, End};
use hikyaku_smtp::server::Tls;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// From the banner to a recipient.
async fn up_to_recipient(client: &mut Client) {
    client.hear("220 ").await;
    client.say("EHLO client", "250-").await;
    mail(client).await;
}

async fn mail(client: &mut Client) {
    client.say("MAIL FROM:<a@example.com>", "250 ").await;
    client.say("RCPT TO:<b@example.jp>", "250 ").await;
}

#[tokio::test(start_paused = true)]
async fn chunks_make_one_mail() {
    // B-20: what ends a message in DATA means nothing here, and everything may be sent at once
    let body = "Subject: x\r\n\r\n.\r\nMAIL FROM:<forged@example.com>\r\n..\r\n";
    let whole = format!(
        "EHLO c\r\n|MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.jp>\r\nBDAT {}\r\n{body}BDAT 0\r\nBDAT 3 LAST\r\nendMAIL FROM:<c@example.com>\r\nRCPT TO:<d@example.jp>\r\nBDAT 0 LAST\r\nQUIT\r\n",
        body.len()
    );
    let (greeting, rest) = whole.split_once('|').unwrap();
    for at in 0..=rest.len() {
        let rig = Rig::new();
        let mut client = rig.connect();
        client.hear("220 ").await;
        client.send(greeting).await;
        client.hear("250-").await;
        let bytes = rest.as_bytes();
        client.send_apart(&[&bytes[..at], &bytes[at..]]).await;
        for expected in [
            "250 2.1.0",
            "250 2.1.5",
            "250 2.0.0 5",
            "250 2.0.0 0 octets received",
            "250 2.0.0 queued",
            "250 2.1.0",
            "250 2.1.5",
            "250 2.0.0 queued",
            "221 ",
        ] {
            client.hear(expected).await;
        }
        assert_eq!(
            rig.edge.contents(),
            [format!("{body}end\r\n"), String::new()],
            "{at}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn line_ends_across_chunks() {
    // B-21
    let rig = Rig::new();
    let mut client = rig.connect();
    up_to_recipient(&mut client).await;
    client.send("BDAT 5\r\nbody\r").await;
    client.hear("250 ").await;
    client.send("BDAT 1 LAST\r\n\n").await;
    client.hear("250 ").await;
    assert_eq!(rig.edge.contents(), ["body\r\n"]);
    for (first, second, expected) in [
        ("body\r", "x", "550 5.5.2"),
        ("body\r", "", "550 5.5.2"),
        ("body\n", "", "550 5.5.2"),
        ("body\0", "", "550 5.6.0"),
    ] {
        let mut rig = Rig::new();
        rig.options.chunk_bare_lf_normalized = false;
        let mut client = rig.connect();
        up_to_recipient(&mut client).await;
        client
            .send(format!("BDAT {}\r\n{first}", first.len()))
            .await;
        let reply = client.reply().await;
        if reply.starts_with("250") {
            client
                .send(format!("BDAT {} LAST\r\n{second}", second.len()))
                .await;
            client.hear(expected).await;
        } else {
            assert!(reply.starts_with(expected), "{reply}");
        }
        assert_eq!(client.reply().await, "closed");
        assert!(rig.edge.stored().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_bare_line_feed_in_a_chunk_ends_a_line_and_nothing_else() {
    let rig = Rig::new();
    let mut client = rig.connect();
    up_to_recipient(&mut client).await;
    let body = "Subject: x\n\r\none\n.\nMAIL FROM:<f@example.com>\r\n.\r\n";
    let (first, rest) = body.split_at(11);
    client.send(format!("BDAT 11\r\n{first}")).await;
    client.hear("250 ").await;
    client
        .send(format!("BDAT {} LAST\r\n{rest}", rest.len()))
        .await;
    client.hear("250 2.0.0 queued").await;
    let told = "bare LF in chunks, written as CRLF: ";
    assert_eq!(rig.edge.tolerated(), [told]);
    // DATA is where a second mail could hide behind it
    mail(&mut client).await;
    client.say("DATA", "354 ").await;
    client.send("one\n.\n\r\n.\r\n").await;
    client.hear("550 5.5.2").await;
    assert_eq!(client.reply().await, "closed");
    assert_eq!(
        rig.edge.contents(),
        ["Subject: x\r\n\r\none\r\n.\r\nMAIL FROM:<f@example.com>\r\n.\r\n"]
    );
    // a lone CR is refused all the same
    let rig = Rig::new();
    let mut client = rig.connect();
    up_to_recipient(&mut client).await;
    client.send("BDAT 5 LAST\r\na\rb\n\n").await;
    client.hear("550 5.5.2").await;
    assert!(rig.edge.stored().is_empty() && rig.edge.tolerated().is_empty());
}

#[tokio::test(start_paused = true)]
async fn unwanted_chunks_are_thrown_away_whole() {
    // B-55, B-56, B-61, B-81
    let rig = Rig::new();
    let mut client = rig.connect();
    let forged = "MAIL FROM:<f@example.com>\r\n";
    let chunk = format!("BDAT {}\r\n{forged}", forged.len());
    client.hear("220 ").await;
    for (command, expected) in [
        (chunk.as_str(), "503 5.5.1"),
        ("HELO c\r\n", "250 "),
        ("MAIL FROM:<a@example.com>\r\n", "250 "),
        ("RCPT TO:<b@example.jp>\r\n", "250 "),
        (&chunk, "503 5.5.1"),
        ("EHLO c\r\n", "250-"),
        (&chunk, "503 5.5.1"),
        ("MAIL FROM:<a@example.com>\r\n", "250 "),
        (&chunk, "503 5.5.1"),
        ("RCPT TO:<bad@example.jp>\r\n", "550 "),
        (&chunk, "554 5.5.1"),
        ("RCPT TO:<b@example.jp>\r\n", "250 "),
        (&chunk, "250 2.0.0"),
        ("RCPT TO:<c@example.jp>\r\n", "503 5.5.1"),
        ("MAIL FROM:<c@example.jp>\r\n", "503 5.5.1"),
        ("DATA\r\n", "503 5.5.1"),
        ("NOOP\r\n", "250 "),
        ("VRFY x\r\n", "252 "),
        (&chunk, "250 2.0.0"),
        ("RSET\r\n", "250 "),
        (&chunk, "503 5.5.1"),
        ("MAIL FROM:<a@example.com>\r\n", "250 "),
        ("RCPT TO:<b@example.jp>\r\n", "250 "),
        (&chunk, "250 2.0.0"),
        ("EHLO c\r\n", "250-"),
        ("BDAT 0 LAST\r\n", "503 5.5.1"),
        ("MAIL FROM:<a@example.com>\r\n", "250 "),
        ("RCPT TO:<nodata@example.jp>\r\n", "250 "),
        (&chunk, "451 4.3.0"),
        (&chunk, "503 5.5.1"),
        ("MAIL FROM:<a@example.com>\r\n", "250 "),
        ("RCPT TO:<full@example.jp>\r\n", "250 "),
        (&chunk, "452 4.3.1"),
        ("DATA\r\n", "503 5.5.1"),
        ("MAIL FROM:<a@example.com>\r\n", "250 "),
        ("RCPT TO:<b@example.jp>\r\n", "250 "),
        ("BDAT 6 LAST\r\nREJECT", "550 5.7.1"),
        ("RCPT TO:<b@example.jp>\r\n", "503 5.5.1"),
        ("QUIT\r\n", "221 "),
    ] {
        client.send(command).await;
        client.hear(expected).await;
    }
    assert!(rig.edge.stored().is_empty());
    assert_eq!(
        rig.edge.aborted(),
        [
            Abort::Reset,
            Abort::Reset,
            Abort::Reset,
            Abort::Refused,
            Abort::Refused
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn many_small_chunks_end() {
    // B-58: the number, the memory
    let mut rig = Rig::new();
    rig.options.chunks_max = 3000;
    let mut client = rig.connect();
    up_to_recipient(&mut client).await;
    for _ in 0..30 {
        client.send("BDAT 1\r\nx".repeat(100)).await;
        for _ in 0..100 {
            client.hear("250 2.0.0 1 octets received").await;
        }
    }
    client.send("BDAT 1\r\nx").await;
    client.hear("421 4.7.0").await;
    assert_eq!(client.reply().await, "closed");
    assert_eq!(rig.edge.aborted(), [Abort::Disconnected]);
    // B-59: none of them says anything
    let rig = Rig::new();
    let mut client = rig.connect();
    up_to_recipient(&mut client).await;
    for _ in 0..20 {
        client.say("BDAT 0", "250 2.0.0").await;
    }
    client.say("BDAT 0", "421 4.7.0").await;
    assert_eq!(client.reply().await, "closed");
}

#[tokio::test(start_paused = true)]
async fn size_is_the_sum_of_the_chunks() {
    // B-60
    let mut rig = Rig::new();
    rig.options.content_bytes_max = 100_000;
    let mut client = rig.connect();
    up_to_recipient(&mut client).await;
    let half = format!("{}\r\n", "x".repeat(98)).repeat(500);
    for _ in 0..2 {
        client.send(format!("BDAT 50000\r\n{half}")).await;
        client.hear("250 2.0.0").await;
    }
    client.send("BDAT 2 LAST\r\nxxNOOP\r\n").await;
    client.hear("552 5.3.4").await;
    client.hear("250 2.0.0 OK").await;
    assert_eq!(rig.edge.aborted(), [Abort::Refused]);
    // more than any message may have: said at once, and not read for ever
    mail(&mut client).await;
    client.send("BDAT 60000000 LAST\r\n").await;
    client.hear("552 5.3.4").await;
    let mut sent = 0;
    for _ in 0..2000 {
        if client
            .stream
            .write_all(&half.as_bytes()[..10_000])
            .await
            .is_err()
        {
            break;
        }
        sent += 10_000;
    }
    assert!((100_000..1_000_000).contains(&sent), "{sent}");
    assert_eq!(client.reply().await, "closed");
    assert!(rig.edge.stored().is_empty());
}

#[tokio::test(start_paused = true)]
async fn memory_does_not_grow_with_the_chunk() {
    let mut rig = Rig::new();
    rig.options.content_bytes_max = 20 << 20;
    let mut client = rig.connect();
    up_to_recipient(&mut client).await;
    let block = format!("{}\r\n", "x".repeat(1022)).repeat(16);
    client.send(format!("BDAT {} LAST\r\n", 1 << 24)).await;
    for _ in 0..1024 {
        client.send(&block).await;
    }
    client.hear("250 2.0.0 queued").await;
    let record = rig.edge.0.lock().unwrap();
    assert_eq!(record.bytes, 1 << 24);
    assert!(record.chunk_bytes_max <= 32 << 10);
}

#[tokio::test(start_paused = true)]
async fn chunks_have_a_least_pace_too() {
    let rig = Rig::new();
    let (stream, task) = rig.start(Tls::Off);
    let mut client = Client::new(stream);
    up_to_recipient(&mut client).await;
    let began = tokio::time::Instant::now();
    for _ in 0..3 {
        client.send("BDAT 1\r\nx").await;
        client.hear("250 ").await;
        tokio::time::sleep(Duration::from_secs(19)).await;
    }
    client.send("BDAT 1\r\nx").await;
    client.hear("250 ").await;
    client.hear("421 4.4.2").await;
    assert_eq!(began.elapsed(), Duration::from_secs(60));
    task.await.unwrap();
    assert_eq!(rig.edge.ended(), [End::TimedOut]);
    assert_eq!(rig.edge.aborted(), [Abort::Disconnected]);
}

#[tokio::test(start_paused = true)]
async fn tls_cut_short_in_a_chunk_stores_nothing() {
    // B-38, B-39: what comes in the clear after close_notify is never read as part of the chunk
    let keys = Keys::new();
    for polite in [true, false] {
        let rig = Rig::new();
        let (stream, task) = rig.start(Tls::Implicit(keys.acceptor.clone()));
        let mut client = Client::new(keys.handshake(stream).await);
        up_to_recipient(&mut client).await;
        client.send("BDAT 10 LAST\r\nfive.").await;
        if polite {
            client.stream.shutdown().await.unwrap();
        }
        drop(client);
        task.await.unwrap();
        assert!(rig.edge.stored().is_empty());
        assert_eq!(rig.edge.aborted(), [Abort::Disconnected]);
    }
}

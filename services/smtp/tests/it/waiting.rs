//! Peers that keep us waiting, and a server that is told to stop.

use crate::support::{Client, Keys, Rig};
use hikyaku_smtp::backend::{Abort, End, Peer};
use hikyaku_smtp::server::{Tls, serve_connection};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};

#[tokio::test(start_paused = true)]
async fn a_command_has_its_deadline_however_many_bytes_come() {
    // B-150
    let rig = Rig::new();
    let (stream, task) = rig.start(Tls::Off);
    let mut client = Client::new(stream);
    client.hear("220 ").await;
    let began = Instant::now();
    for _ in 0..29 {
        sleep(Duration::from_secs(10)).await;
        client.send("N").await;
    }
    client.hear("421 4.4.2").await;
    assert_eq!(began.elapsed(), Duration::from_secs(300));
    task.await.unwrap();
    assert_eq!(rig.edge.ended(), [End::TimedOut]);
}

#[tokio::test(start_paused = true)]
async fn an_envelope_has_its_time_however_often_a_command_comes() {
    // the same recipient over and over, a new one, one that is refused for now, a name that is looked up for nothing
    for line in ["alice@example.jp", "defer@example.jp", "u#@example.jp"] {
        let rig = Rig::new();
        let mut client = rig.connect();
        client.hear("220 ").await;
        client.say("EHLO x", "250-").await;
        // time before MAIL is not the envelope's
        sleep(Duration::from_secs(290)).await;
        client.say("MAIL FROM:<a@example.com>", "250 ").await;
        let began = Instant::now();
        let mut heard = String::new();
        for number in 0..10 {
            let patience = Duration::from_secs(290);
            if let Ok(reply) = timeout(patience, client.reply()).await {
                heard = reply;
                break;
            }
            let path = line.replace('#', &number.to_string());
            client.send(format!("RCPT TO:<{path}>\r\n")).await;
            client.reply().await;
        }
        assert!(heard.starts_with("421 4.4.2"), "{line}: {heard}");
        assert_eq!(began.elapsed(), Duration::from_secs(1800), "{line}");
        assert_eq!(client.reply().await, "closed");
        sleep(Duration::from_secs(2)).await;
        assert_eq!(rig.edge.ended(), [End::TimedOut]);
        assert_eq!(rig.edge.aborted(), [Abort::Disconnected]);
    }
    // each envelope has its own, and time that we take does not count
    let mut rig = Rig::new();
    rig.options = rig
        .options
        .with_deadlines(Duration::from_secs(10), Duration::from_secs(10));
    assert_eq!(rig.options.envelope_timeout, Duration::from_secs(300));
    let mut client = rig.connect();
    client.hear("220 ").await;
    client.say("EHLO x", "250-").await;
    for _ in 0..3 {
        client.say("MAIL FROM:<a@example.com>", "250 ").await;
        for number in 0..30 {
            sleep(Duration::from_secs(9)).await;
            let line = format!("RCPT TO:<u{number}@example.jp>");
            client.say(&line, "250 ").await;
        }
        client.say("DATA", "354 ").await;
        client.send("x\r\n.\r\n").await;
        client.hear("250 ").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_content_has_a_least_pace() {
    // B-151
    let rig = Rig::new();
    let mut client = rig.connect();
    client.up_to_data().await;
    let began = Instant::now();
    for _ in 0..59 {
        client.send("x").await;
        sleep(Duration::from_secs(1)).await;
    }
    assert!(rig.edge.aborted().is_empty());
    client.send("x").await;
    client.hear("421 4.4.2").await;
    assert_eq!(began.elapsed(), Duration::from_secs(60));
    assert_eq!(rig.edge.aborted(), [Abort::Disconnected]);

    // 600 octets a second are enough, for as long as it takes
    let mut client = rig.connect();
    client.up_to_data().await;
    for _ in 0..600 {
        client.send(format!("{}\r\n", "x".repeat(598))).await;
        sleep(Duration::from_secs(1)).await;
    }
    client.send(".\r\n").await;
    client.hear("250 ").await;
}

#[tokio::test(start_paused = true)]
async fn without_a_least_pace_each_block_has_its_deadline() {
    let mut rig = Rig::new();
    rig.options.data_rate_min = 0;
    let mut client = rig.connect();
    client.up_to_data().await;
    for _ in 0..10 {
        client.send("x").await;
        sleep(Duration::from_secs(179)).await;
    }
    let began = Instant::now();
    client.send("x").await;
    client.hear("421 4.4.2").await;
    assert_eq!(began.elapsed(), Duration::from_secs(180));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_left() {
    // B-152
    let mut rig = Rig::new();
    rig.options.junk_commands_max = u32::MAX;
    let (stream, task) = rig.start(Tls::Off);
    let (_reader, mut writer) = tokio::io::split(stream);
    let began = Instant::now();
    let pushing = tokio::spawn(async move {
        let lines = "NOOP\r\n".repeat(1000);
        while writer.write_all(lines.as_bytes()).await.is_ok() {}
    });
    task.await.unwrap();
    assert_eq!(rig.edge.ended(), [End::TimedOut]);
    assert!(
        began.elapsed() <= Duration::from_secs(62),
        "{:?}",
        began.elapsed()
    );
    pushing.abort();
}

#[tokio::test(start_paused = true)]
async fn draining_ends_the_idle_and_lets_a_content_finish() {
    // C-8
    let rig = Rig::new();
    let (mut idle, mut open, mut busy) = (rig.connect(), rig.connect(), rig.connect());
    idle.hear("220 ").await;
    open.hear("220 ").await;
    open.say("EHLO x", "250-").await;
    open.say("MAIL FROM:<a@example.com>", "250 ").await;
    busy.hear("220 ").await;
    busy.say("EHLO x", "250-").await;
    busy.say("MAIL FROM:<a@example.com>", "250 ").await;
    busy.say("RCPT TO:<slow@example.jp>", "250 ").await;
    busy.say("DATA", "354 ").await;
    busy.send("half\r\n").await;
    rig.drain.cancel();
    for client in [&mut idle, &mut open] {
        client.hear("421 4.3.2").await;
        assert_eq!(client.reply().await, "closed");
    }
    sleep(Duration::from_secs(10)).await;
    busy.send("the rest\r\n.\r\nMAIL FROM:<b@example.com>\r\n")
        .await;
    busy.hear("250 2.0.0").await;
    busy.hear("421 4.3.2").await;
    assert_eq!(busy.reply().await, "closed");
    assert_eq!(rig.edge.contents(), ["half\r\nthe rest\r\n"]);
    assert_eq!(rig.edge.aborted(), [Abort::Disconnected]);
    let mut late = rig.connect();
    late.hear("421 4.3.2").await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(rig.edge.ended(), [End::Drained; 4]);
}

#[tokio::test(start_paused = true)]
async fn draining_waits_for_no_handshake_and_for_no_banner() {
    let (mut rig, keys) = (Rig::new(), Keys::new());
    rig.options.greet_delay = Duration::from_secs(20);
    let (_silent, covered) = rig.start(Tls::Implicit(keys.acceptor.clone()));
    let (silent, clear) = rig.start(Tls::Off);
    sleep(Duration::from_secs(1)).await;
    let began = Instant::now();
    rig.drain.cancel();
    Client::new(silent).hear("421 4.3.2").await;
    covered.await.unwrap();
    clear.await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(2));
    assert_eq!(rig.edge.ended(), [End::Drained; 2]);
}

#[tokio::test]
async fn the_last_reply_is_not_lost_to_a_reset() {
    let rig = Rig::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut stream = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (accepted, address) = listener.accept().await.unwrap();
    let (edge, options, drain) = (rig.edge.clone(), rig.options.clone(), rig.drain.clone());
    let task = tokio::spawn(async move {
        serve_connection(
            accepted,
            Peer::new(1, address, "smtp".into()),
            &edge,
            &options,
            Tls::Off,
            &drain,
        )
        .await;
    });
    stream.write_all(b"POST / HTTP/1.1\r\n").await.unwrap();
    stream
        .write_all("x".repeat(100_000).as_bytes())
        .await
        .unwrap();
    stream.shutdown().await.unwrap();
    let mut heard = String::new();
    stream.read_to_string(&mut heard).await.unwrap();
    assert!(
        heard.ends_with("521 5.5.1 this is a mail server\r\n"),
        "{heard}"
    );
    task.await.unwrap();
}

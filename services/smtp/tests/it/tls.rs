//! STARTTLS forgets everything, carries nothing over, and TLS cut short is a connection lost.

use crate::support::{Client, Keys, Rig};
use hikyaku_smtp::backend::{Abort, End};
use hikyaku_smtp::server::Tls;
use tokio::io::AsyncWriteExt;

#[tokio::test(start_paused = true)]
async fn starttls_forgets_everything() {
    // B-35, B-36
    let (rig, keys) = (Rig::new(), Keys::new());
    let (stream, _task) = rig.start(Tls::StartTls(keys.acceptor.clone()));
    let mut client = Client::new(stream);
    client.hear("220 ").await;
    client.say("STARTTLS", "503 5.5.1").await;
    let greeting = client.say("EHLO before.example.com", "250-").await;
    assert!(greeting.contains("250-STARTTLS\r\n"), "{greeting}");
    // B-37
    client.say("MAIL FROM:<a@example.com>", "250 ").await;
    client.say("STARTTLS", "503 5.5.1").await;
    client.say("RSET", "250 ").await;
    client.say("STARTTLS now", "501 5.5.4").await;
    assert_eq!(
        rig.edge.0.lock().unwrap().rejected_client.as_deref(),
        Some("before.example.com")
    );
    client.say("STARTTLS", "220 2.0.0").await;
    let mut client = Client::new(keys.handshake(client.stream).await);
    client.say("MAIL FROM:<a@example.com>", "503 5.5.1").await;
    assert_eq!(rig.edge.0.lock().unwrap().rejected_client, None);
    let greeting = client.say("EHLO after.example.com", "250-").await;
    assert!(!greeting.contains("STARTTLS"), "{greeting}");
    client.say("STARTTLS", "554 5.5.1").await;
    client.mail_up_to_data().await;
    client.send("x\r\n.\r\n").await;
    client.hear("250 ").await;
    let stored = rig.edge.stored();
    assert_eq!(
        (stored[0].client.as_str(), stored[0].protocol),
        ("after.example.com", "ESMTPS")
    );
    let tls = rig.edge.0.lock().unwrap().tls.clone().unwrap();
    assert!(tls.starts_with("TLS1.3 TLS_AES_"), "{tls}");
}

#[tokio::test(start_paused = true)]
async fn commands_behind_starttls_are_never_answered_inside() {
    // B-30, B-31
    let keys = Keys::new();
    for injected in [
        "NOOP\r\n",
        "EHLO x\r\nMAIL FROM:<a@example.com>\r\n",
        "R",
        "\0",
    ] {
        let rig = Rig::new();
        let (stream, _task) = rig.start(Tls::StartTls(keys.acceptor.clone()));
        let mut client = Client::new(stream);
        client.hear("220 ").await;
        client.say("EHLO x", "250-").await;
        client.send(format!("STARTTLS\r\n{injected}")).await;
        client.hear("554 5.5.0").await;
        assert_eq!(client.reply().await, "closed");
    }
}

#[tokio::test(start_paused = true)]
async fn misdeeds_are_not_forgotten() {
    let (rig, keys) = (Rig::new(), Keys::new());
    let (stream, _task) = rig.start(Tls::StartTls(keys.acceptor.clone()));
    let mut client = Client::new(stream);
    client.hear("220 ").await;
    client.say("EHLO x", "250-").await;
    for _ in 0..20 {
        client.say("XYZZY", "500 ").await;
    }
    client.say("STARTTLS", "220 ").await;
    let mut client = Client::new(keys.handshake(client.stream).await);
    client.say("XYZZY", "421 4.7.0").await;
}

#[tokio::test(start_paused = true)]
async fn implicit_tls() {
    let (rig, keys) = (Rig::new(), Keys::new());
    let mut client = rig.connect_tls(&keys).await;
    client.up_to_data().await;
    client.send("x\r\n.\r\n").await;
    client.hear("250 ").await;
    assert_eq!(rig.edge.stored()[0].protocol, "ESMTPS");

    let (mut stream, task) = rig.start(Tls::Implicit(keys.acceptor.clone()));
    stream
        .write_all(b"EHLO x\r\nMAIL FROM:<a@example.com>\r\n")
        .await
        .unwrap();
    task.await.unwrap();
    assert_eq!(rig.edge.ended(), [End::HandshakeFailed]);
    let causes = rig.edge.handshakes_failed();
    assert!(
        causes.len() == 1 && causes[0].contains("corrupt"),
        "{causes:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_never_comes_is_given_up() {
    let (rig, keys) = (Rig::new(), Keys::new());
    let (_stream, task) = rig.start(Tls::Implicit(keys.acceptor.clone()));
    let began = tokio::time::Instant::now();
    task.await.unwrap();
    assert_eq!(began.elapsed(), rig.options.handshake_timeout);
    assert!(rig.edge.handshakes_failed()[0].starts_with("timed out"));
}

#[tokio::test(start_paused = true)]
async fn tls_cut_short_in_the_content_stores_nothing() {
    // B-39: with and without close_notify
    let keys = Keys::new();
    for polite in [true, false] {
        let rig = Rig::new();
        let (stream, task) = rig.start(Tls::Implicit(keys.acceptor.clone()));
        let mut client = Client::new(keys.handshake(stream).await);
        client.up_to_data().await;
        client.send("Subject: x\r\n\r\nall but the end\r\n").await;
        if polite {
            client.stream.shutdown().await.unwrap();
        }
        drop(client);
        task.await.unwrap();
        assert!(rig.edge.stored().is_empty());
        assert_eq!(rig.edge.aborted(), [Abort::Disconnected]);
    }
}

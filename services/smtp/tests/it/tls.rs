//! STARTTLS forgets everything, carries nothing over, and TLS cut short is a connection lost.

use std::sync::Arc;

use crate::support::{Client, Keys, Rig};
use hikyaku_smtp::backend::{Abort, End, Peer};
use hikyaku_smtp::server::{Tls, serve_connection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::version::TLS12;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore};

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

/// The first flight of a client of TLS 1.2, whose server sends its certificate in the clear, for the server called `name`.
fn hello(name: Option<&[u8]>) -> Vec<u8> {
    const PLACE: &[u8] = b"place.example";
    let provider = Arc::new(ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS12])
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.enable_sni = name.is_some();
    let place = ServerName::try_from("place.example").unwrap();
    let mut hello = Vec::new();
    ClientConnection::new(Arc::new(config), place)
        .unwrap()
        .write_tls(&mut hello)
        .unwrap();
    let Some(name) = name else { return hello };
    let is_place = |window: &[u8]| window == PLACE;
    let at = hello.windows(PLACE.len()).position(is_place).unwrap();
    // record, handshake, version, random; then session id, cipher suites and compression methods, each with its length
    let session = 5 + 4 + 2 + 32;
    let suites = session + 1 + usize::from(hello[session]);
    let methods = suites + 2 + usize::from(u16::from_be_bytes([hello[suites], hello[suites + 1]]));
    let extensions = methods + 1 + usize::from(hello[methods]);
    for length in [3, 7, extensions, at - 7, at - 5, at - 2] {
        let old = usize::from(u16::from_be_bytes([hello[length], hello[length + 1]]));
        let new = u16::try_from(old + name.len() - PLACE.len()).unwrap();
        hello[length..length + 2].copy_from_slice(&new.to_be_bytes());
    }
    hello.splice(at..at + PLACE.len(), name.iter().copied());
    hello
}

#[tokio::test]
async fn any_server_name_gets_the_only_certificate_or_an_alert() {
    // B-46
    let (rig, keys) = (Rig::new(), Keys::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let long = [b'x'; 300].as_slice();
    let dotted = ["abcdefgh."; 34].concat();
    for (name, served) in [
        (None, true),
        (Some(&b"nobody.example"[..]), true),
        (Some(b"MX.EXAMPLE.JP"), true),
        (Some(b"127.0.0.1"), true),
        (Some(b"a\0b.example"), false),
        (Some(b"\xff\xfe"), false),
        (Some(b""), false),
        (Some(long), false),
        (Some(dotted.as_bytes()), false),
    ] {
        let mut client = TcpStream::connect(address).await.unwrap();
        let (accepted, peer) = listener.accept().await.unwrap();
        let (edge, options, drain) = (rig.edge.clone(), rig.options.clone(), rig.drain.clone());
        let tls = Tls::Implicit(keys.acceptor.clone());
        let task = tokio::spawn(async move {
            let peer = Peer::new(1, peer, "smtps".into());
            serve_connection(accepted, peer, &edge, &options, tls, &drain).await;
        });
        client.write_all(&hello(name)).await.unwrap();
        client.shutdown().await.unwrap();
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).await.unwrap();
        let certificate = keys.certificate.as_ref();
        let found = heard
            .windows(certificate.len())
            .any(|window| window == certificate);
        let what = name.map(|name| name.escape_ascii().to_string());
        assert_eq!(found, served, "{what:?}: {}", heard.escape_ascii());
        assert!(served || heard[0] == 0x15, "no alert for {what:?}");
        task.await.unwrap();
    }
    assert_eq!(rig.edge.ended(), [End::HandshakeFailed; 9]);
    assert_eq!(rig.edge.handshakes_failed().len(), 9);
}

#[tokio::test(start_paused = true)]
async fn a_ticket_carries_nothing_but_keys() {
    // B-41: also from one listener to the other, and not beyond the certificate's replacement
    let (rig, keys, other) = (Rig::new(), Keys::new(), Keys::new());
    let name = ServerName::try_from("mx.example.jp").unwrap();
    let mut kinds = Vec::new();
    for tls in [
        Tls::Implicit(keys.acceptor.clone()),
        Tls::Implicit(keys.acceptor.clone()),
        Tls::StartTls(keys.acceptor.clone()),
    ] {
        let upgrades = matches!(tls, Tls::StartTls(_));
        let (stream, _task) = rig.start(tls);
        if upgrades {
            let mut clear = Client::new(stream);
            clear.hear("220 ").await;
            clear.say("EHLO x", "250-").await;
            clear.say("STARTTLS", "220 ").await;
            let covered = keys
                .connector
                .connect(name.clone(), clear.stream)
                .await
                .unwrap();
            kinds.push(covered.get_ref().1.handshake_kind());
            let mut client = Client::new(covered);
            client.say("MAIL FROM:<a@example.com>", "503 5.5.1").await;
            continue;
        }
        let covered = keys.connector.connect(name.clone(), stream).await.unwrap();
        kinds.push(covered.get_ref().1.handshake_kind());
        let mut client = Client::new(covered);
        client.hear("220 ").await;
        client.say("MAIL FROM:<a@example.com>", "503 5.5.1").await;
        client.say("EHLO x", "250-").await;
        client.say("MAIL FROM:<a@example.com>", "250 ").await;
    }
    let resumed = Some(HandshakeKind::Resumed);
    assert_eq!(kinds, [Some(HandshakeKind::Full), resumed, resumed]);
    // another certificate: the ticket is nobody's, and the client does not trust it
    let (stream, task) = rig.start(Tls::Implicit(other.acceptor.clone()));
    assert!(keys.connector.connect(name, stream).await.is_err());
    task.await.unwrap();
    let causes = rig.edge.handshakes_failed();
    assert!(
        causes.len() == 1 && causes[0].contains("alert"),
        "{causes:?}"
    );
}

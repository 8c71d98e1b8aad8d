//! STLS and TLS from the first octet (RFC 2595, 8314).

use std::sync::Arc;

use hikyaku_access::pop3::options::{Login, Tls};
use tokio::io::DuplexStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::client::{Client, LOG_IN};
use crate::support::Site;

fn keys() -> (TlsAcceptor, TlsConnector) {
    let certified = rcgen::generate_simple_self_signed(["mail.example.jp".to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
    std::fs::write(&certificate, certified.cert.pem()).unwrap();
    std::fs::write(&key, certified.signing_key.serialize_pem()).unwrap();
    let acceptor = hikyaku_serve::tls::acceptor(&certificate, &key).unwrap();
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from(certified.cert.der().to_vec()))
        .unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (acceptor, TlsConnector::from(Arc::new(config)))
}

async fn secure(
    client: Client<DuplexStream>,
    connector: TlsConnector,
) -> Client<TlsStream<DuplexStream>> {
    let name = ServerName::try_from("mail.example.jp").unwrap();
    client
        .around(|stream| async move { connector.connect(name, stream).await.unwrap() })
        .await
}

fn site(tls: Tls) -> Site {
    let mut site = Site::new();
    site.options.login = Login::TlsOnly;
    site.tls = tls;
    site
}

#[tokio::test(start_paused = true)]
async fn implicit_tls() {
    let (acceptor, connector) = keys();
    let site = site(Tls::Implicit(acceptor));
    let mut client = secure(site.connect(), connector).await;
    client.play(LOG_IN).await;
    client
        .play("C: DELE 1\nS: +OK*\nC: QUIT\nS: +OK*\nS: ~")
        .await;
    assert_eq!(site.mails(), [8]);
}

#[tokio::test(start_paused = true)]
async fn b35_stls_forgets_and_b36_is_said_once() {
    let (acceptor, connector) = keys();
    let mut site = site(Tls::StartTls(acceptor));
    site.options.login = Login::Cleartext;
    let mut client = site.connect();
    client
        .play(
            "
            S: +OK*
            C: CAPA
            S: +OK*
            S: TOP
            S: UIDL
            S: RESP-CODES
            S: AUTH-RESP-CODE
            S: PIPELINING
            S: EXPIRE NEVER
            S: UTF8 USER
            S: USER
            S: SASL PLAIN
            S: STLS
            S: IMPLEMENTATION Hikyaku
            S: .
            C: USER alice
            S: +OK*
            C: STLS
            S: +OK begin TLS
            ",
        )
        .await;
    let mut client = secure(client, connector).await;
    // no second banner, and the name is gone
    client
        .play(
            "
            C: PASS secret alice
            S: -ERR USER comes first
            C: STLS
            S: -ERR TLS is on already
            C: CAPA
            S: +OK*
            S: TOP
            S: UIDL
            S: RESP-CODES
            S: AUTH-RESP-CODE
            S: PIPELINING
            S: EXPIRE NEVER
            S: UTF8 USER
            S: USER
            S: SASL PLAIN
            S: IMPLEMENTATION Hikyaku
            S: .
            C: USER alice
            S: +OK*
            C: PASS secret alice
            S: +OK*
            C: QUIT
            S: +OK*
            S: ~
            ",
        )
        .await;
}

#[tokio::test(start_paused = true)]
async fn stls_makes_passwords_possible() {
    let (acceptor, connector) = keys();
    let site = site(Tls::StartTls(acceptor));
    let mut client = site.connect();
    client
        .play("S: +OK*\nC: USER alice\nS: -ERR [AUTH]*\nC: STLS\nS: +OK*")
        .await;
    let mut client = secure(client, connector).await;
    client
        .play("C: USER alice\nS: +OK*\nC: PASS secret alice\nS: +OK*\nC: QUIT\nS: +OK*\nS: ~")
        .await;
}

#[tokio::test(start_paused = true)]
async fn b30_b31_b32_what_travels_with_stls_ends_the_connection() {
    let (acceptor, _) = keys();
    for injected in [
        "STLS\r\nCAPA\r\n",
        "STLS\r\nNOOP\r\n",
        "STLS\r\nUSER alice\r\nPASS secret alice\r\n",
        "STLS\r\nQ",
    ] {
        let site = site(Tls::StartTls(acceptor.clone()));
        let mut client = site.connect();
        client.play("S: +OK*").await;
        client.send(injected.as_bytes()).await;
        client.play("S: -ERR STLS must come alone\nS: ~").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_fails_or_never_comes_ends_the_connection() {
    let (acceptor, _) = keys();
    for implicit in [true, false] {
        let tls = if implicit {
            Tls::Implicit(acceptor.clone())
        } else {
            Tls::StartTls(acceptor.clone())
        };
        let site = site(tls);
        for garbage in [&b"USER alice\r\nPASS secret alice\r\n"[..], b""] {
            let mut client = site.connect();
            if !implicit {
                client.play("S: +OK*\nC: STLS\nS: +OK*").await;
            }
            client.send(garbage).await;
            client.ended().await;
        }
    }
}

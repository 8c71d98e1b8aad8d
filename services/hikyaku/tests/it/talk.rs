//! Talking to it: lines, TLS, HTTP.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme};

use crate::running::PATIENCE;

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// An SMTP client that waits for every reply.
pub struct Smtp(BufReader<TcpStream>);

impl Smtp {
    pub fn connect(address: SocketAddr) -> Smtp {
        let mut smtp = Smtp(BufReader::new(connect(address)));
        assert!(smtp.reply().starts_with("220 "));
        smtp
    }

    /// Sends a line, answers the reply.
    pub fn say(&mut self, line: &str) -> String {
        self.0
            .get_mut()
            .write_all(format!("{line}\r\n").as_bytes())
            .unwrap();
        self.reply()
    }

    fn reply(&mut self) -> String {
        let mut reply = String::new();
        loop {
            let mut line = String::new();
            assert!(
                self.0.read_line(&mut line).unwrap() > 0,
                "closed after {reply}"
            );
            reply.push_str(&line);
            if line.as_bytes().get(3) != Some(&b'-') {
                return reply;
            }
        }
    }

    /// The size that EHLO announces.
    pub fn size(&mut self) -> String {
        let reply = self.say("EHLO client.example");
        let line = reply
            .lines()
            .find_map(|line| line.get(4..)?.strip_prefix("SIZE "));
        line.unwrap().to_owned()
    }

    /// Sends one mail to bob; answers the reply to its content.
    pub fn send(&mut self, subject: &str) -> String {
        self.send_to(
            "bob@example.jp",
            &format!("Subject: {subject}\r\n\r\nIt works."),
        )
    }

    /// Sends one mail; answers the reply to its content.
    pub fn send_to(&mut self, recipient: &str, content: &str) -> String {
        self.say("EHLO client.example");
        assert!(
            self.say("MAIL FROM:<alice@elsewhere.example>")
                .starts_with("250 ")
        );
        assert!(
            self.say(&format!("RCPT TO:<{recipient}>"))
                .starts_with("250 ")
        );
        assert!(self.say("DATA").starts_with("354 "));
        self.say(&format!("{content}\r\n."))
    }

    /// What the server says.
    pub fn stream(&mut self) -> &mut BufReader<TcpStream> {
        &mut self.0
    }
}

/// The certificate that is served on a port that speaks TLS from the first byte; an error if there is no handshake.
pub fn served_certificate(address: SocketAddr) -> Result<Vec<u8>, String> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    let name = ServerName::try_from("mail.example.jp").unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = connect(address);
    while connection.is_handshaking() {
        connection
            .complete_io(&mut stream)
            .map_err(|error| error.to_string())?;
    }
    let chain = connection.peer_certificates().ok_or("no certificate")?;
    Ok(chain[0].to_vec())
}

/// Whoever it is, the key must be that of the certificate.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Status and body of a GET.
pub fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = connect(address);
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (header, body) = answer.split_once("\r\n\r\n").unwrap();
    (
        header.split(' ').nth(1).unwrap().parse().unwrap(),
        body.to_owned(),
    )
}

//! A client that speaks raw bytes, and a recording stand-in for the edge whose answers depend on the addresses:
//!
//! * MAIL from `nospace@`: 452
//! * RCPT to `bad@`: 550, to `defer@`: 451; anyone else is welcome
//! * DATA with a recipient `nodata@`: 451 before 354; `full@`: 452 for the first chunk; `slow@`: finish takes 5 s
//! * content with `REJECT`: 550 at the end, with `DEFER`: 451

use std::sync::{Arc, Mutex};
use std::time::Duration;

use hikyaku_mail::reply::{Rejection, Reply};
use hikyaku_smtp::backend::{Abort, Backend, End, Peer, Phase, Transaction};
use hikyaku_smtp::command::{MailParameters, RcptParameters};
use hikyaku_smtp::options::Options;
use hikyaku_smtp::server::{Tls, serve_connection};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName,
};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

/// A mail the edge took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub reverse_path: String,
    pub recipients: Vec<String>,
    pub content: Vec<u8>,
    pub client: String,
    pub protocol: &'static str,
    /// SMTPUTF8, RET and ENVID as they came.
    pub parameters: String,
    /// NOTIFY and ORCPT of each recipient.
    pub reports: Vec<String>,
}

#[derive(Debug, Default)]
pub struct Record {
    pub stored: Vec<Stored>,
    pub aborted: Vec<Abort>,
    pub rejected: Vec<String>,
    pub rejected_client: Option<String>,
    pub ended: Vec<End>,
    pub handshakes_failed: Vec<String>,
    pub reasons: Vec<String>,
    pub tolerated: Vec<String>,
    pub asked: usize,
    pub chunk_bytes_max: usize,
    pub bytes: usize,
    pub banner: Option<Reply>,
    pub tls: Option<String>,
}

/// Plays the edge.
#[derive(Clone, Default)]
pub struct Edge(pub Arc<Mutex<Record>>);

impl Edge {
    pub fn stored(&self) -> Vec<Stored> {
        self.0.lock().unwrap().stored.clone()
    }

    pub fn contents(&self) -> Vec<String> {
        self.stored()
            .into_iter()
            .map(|stored| String::from_utf8(stored.content).unwrap())
            .collect()
    }

    pub fn aborted(&self) -> Vec<Abort> {
        self.0.lock().unwrap().aborted.clone()
    }

    pub fn rejected(&self) -> Vec<String> {
        self.0.lock().unwrap().rejected.clone()
    }

    /// What the log says of refused lines.
    pub fn reasons(&self) -> Vec<String> {
        self.0.lock().unwrap().reasons.clone()
    }

    pub fn tolerated(&self) -> Vec<String> {
        self.0.lock().unwrap().tolerated.clone()
    }

    pub fn handshakes_failed(&self) -> Vec<String> {
        self.0.lock().unwrap().handshakes_failed.clone()
    }

    pub fn ended(&self) -> Vec<End> {
        self.0.lock().unwrap().ended.clone()
    }
}

pub struct Mail {
    edge: Edge,
    stored: Stored,
    refuses: &'static str,
    done: bool,
}

impl Drop for Mail {
    fn drop(&mut self) {
        assert!(
            self.done || std::thread::panicking(),
            "a transaction was dropped without finish or abort"
        );
    }
}

impl Backend for Edge {
    type Transaction = Mail;

    async fn greet(&self, _: &Peer) -> Option<Rejection> {
        self.0.lock().unwrap().banner.clone().map(Rejection::from)
    }

    async fn mail(&self, peer: &Peer, mail: &MailParameters) -> Result<Mail, Rejection> {
        if mail.reverse_path.as_str().starts_with("nospace@") {
            return Err(Reply::new(452, (4, 3, 1), "no space").into());
        }
        self.0.lock().unwrap().tls = peer
            .tls
            .as_ref()
            .map(|tls| format!("{} {}", tls.version, tls.cipher));
        let stored = Stored {
            reverse_path: mail.reverse_path.as_str().to_owned(),
            recipients: Vec::new(),
            content: Vec::new(),
            client: peer.client.as_ref().unwrap().name.to_string(),
            protocol: peer.protocol(mail.smtputf8),
            parameters: format!(
                "{} {} {}",
                mail.smtputf8,
                mail.ret.map(|ret| ret.as_str()).unwrap_or_default(),
                mail.envelope_id.as_deref().unwrap_or_default()
            ),
            reports: Vec::new(),
        };
        Ok(Mail {
            edge: self.clone(),
            stored,
            refuses: "",
            done: false,
        })
    }

    fn rejected(&self, peer: &Peer, phase: Phase<'_>, rejection: &Rejection) {
        let reply = &rejection.reply;
        let phase = match phase {
            Phase::Connect => "connect".to_owned(),
            Phase::Command => "command".to_owned(),
            Phase::Mail(mail) => format!("mail {}", mail.reverse_path),
            Phase::Rcpt(path) => format!("rcpt {path}"),
            Phase::Data => "data".to_owned(),
        };
        let mut record = self.0.lock().unwrap();
        record.rejected_client = peer.client.as_ref().map(|client| client.name.to_string());
        record.rejected.push(format!("{phase}: {reply}"));
        record.reasons.push(rejection.reason.clone());
    }

    fn tolerated(&self, _: &Peer, what: &str, line: &str) {
        let mut record = self.0.lock().unwrap();
        record.tolerated.push(format!("{what}: {line}"));
    }

    fn handshake_failed(&self, _: &Peer, cause: &str) {
        let mut record = self.0.lock().unwrap();
        record.handshakes_failed.push(cause.to_owned());
    }

    fn ended(&self, _: &Peer, end: End) {
        self.0.lock().unwrap().ended.push(end);
    }
}

impl Transaction for Mail {
    async fn rcpt(&mut self, rcpt: &RcptParameters) -> Result<Reply, Rejection> {
        self.edge.0.lock().unwrap().asked += 1;
        let path = rcpt.forward_path.to_string();
        if path.starts_with("<bad@") {
            return Err(Reply::new(550, (5, 1, 1), "no such mailbox").into());
        }
        if path.starts_with("<defer@") {
            return Err(Reply::new(451, (4, 4, 3), "try again later").into());
        }
        for special in ["<nodata@", "<full@", "<slow@"] {
            if path.starts_with(special) {
                self.refuses = special;
            }
        }
        self.stored.recipients.push(path);
        let notify = rcpt.notify.map(|notify| notify.to_string());
        let original = rcpt.original_recipient.as_deref();
        self.stored.reports.push(format!(
            "{} {}",
            notify.unwrap_or_default(),
            original.unwrap_or_default()
        ));
        Ok(Reply::new(250, (2, 1, 5), "recipient OK"))
    }

    async fn data(&mut self) -> Result<(), Rejection> {
        if self.refuses == "<nodata@" {
            Err(Reply::new(451, (4, 3, 0), "not now").into())
        } else {
            Ok(())
        }
    }

    async fn chunk(&mut self, chunk: &[u8]) -> Result<(), Rejection> {
        let mut record = self.edge.0.lock().unwrap();
        record.chunk_bytes_max = record.chunk_bytes_max.max(chunk.len());
        record.bytes += chunk.len();
        self.stored.content.extend_from_slice(chunk);
        if self.refuses == "<full@" {
            Err(Reply::new(452, (4, 3, 1), "no space").into())
        } else {
            Ok(())
        }
    }

    async fn finish(mut self) -> Result<Reply, Rejection> {
        self.done = true;
        if self.refuses == "<slow@" {
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        let has = |word: &[u8]| {
            self.stored
                .content
                .windows(word.len())
                .any(|window| window == word)
        };
        if has(b"REJECT") {
            return Err(Reply::new(550, (5, 7, 1), "no").into());
        }
        if has(b"DEFER") {
            return Err(Reply::new(451, (4, 3, 0), "not now").into());
        }
        self.edge.0.lock().unwrap().stored.push(self.stored.clone());
        Ok(Reply::new(250, (2, 0, 0), "queued as 1"))
    }

    fn abort(mut self, reason: Abort) {
        self.done = true;
        self.edge.0.lock().unwrap().aborted.push(reason);
    }
}

/// Anything a client can talk over.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// The other end of the dialogue.
pub struct Client {
    pub stream: Box<dyn Stream>,
    heard: Vec<u8>,
}

impl Client {
    pub fn new(stream: impl Stream + 'static) -> Client {
        Client {
            stream: Box::new(stream),
            heard: Vec::new(),
        }
    }

    /// Sends `bytes`; how far they get is the server's choice.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref()).await;
        let _ = self.stream.flush().await;
    }

    /// Sends each piece by itself, the next when the server has digested the last.
    pub async fn send_apart(&mut self, pieces: &[&[u8]]) {
        for piece in pieces {
            self.send(piece).await;
            // the clock is paused: this returns once everybody else waits
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// One reply, all its lines; `closed` if there is none.
    pub async fn reply(&mut self) -> String {
        let mut reply = String::new();
        loop {
            while let Some(end) = self.heard.windows(2).position(|window| window == b"\r\n") {
                let line: Vec<u8> = self.heard.drain(..end + 2).collect();
                let line = String::from_utf8(line).unwrap();
                reply.push_str(&line);
                if line.as_bytes()[3] == b' ' {
                    return reply.trim_end().to_owned();
                }
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer).await {
                Ok(count) if count > 0 => self.heard.extend_from_slice(&buffer[..count]),
                _ => {
                    assert!(
                        self.heard.is_empty() && reply.is_empty(),
                        "half a reply: {reply}"
                    );
                    return "closed".to_owned();
                }
            }
        }
    }

    /// Demands a reply that begins with `expected`.
    pub async fn hear(&mut self, expected: &str) -> String {
        let reply = self.reply().await;
        assert!(
            reply.starts_with(expected),
            "expected {expected:?}, heard {reply:?}"
        );
        reply
    }

    /// A command and the reply it must have.
    pub async fn say(&mut self, command: &str, expected: &str) -> String {
        self.send(format!("{command}\r\n")).await;
        let reply = self.reply().await;
        assert!(
            reply.starts_with(expected),
            "{command:?}: expected {expected:?}, heard {reply:?}"
        );
        reply
    }

    /// From the banner to 354, for one recipient.
    pub async fn up_to_data(&mut self) {
        self.hear("220 mx.example.jp ESMTP").await;
        self.say("EHLO client.example.com", "250-").await;
        self.mail_up_to_data().await;
    }

    pub async fn mail_up_to_data(&mut self) {
        self.say("MAIL FROM:<sender@example.com>", "250 2.1.0")
            .await;
        self.say("RCPT TO:<alice@example.jp>", "250 2.1.5").await;
        self.say("DATA", "354 ").await;
    }
}

/// A server with one connection.
pub struct Rig {
    pub edge: Edge,
    pub options: Options,
    pub drain: CancellationToken,
}

impl Rig {
    pub fn new() -> Rig {
        Rig {
            edge: Edge::default(),
            options: Options::new("mx.example.jp"),
            drain: CancellationToken::new(),
        }
    }

    /// Starts a session; `tls` is how the server does TLS.
    pub fn start(&self, tls: Tls) -> (DuplexStream, JoinHandle<()>) {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let (edge, options, drain) = (self.edge.clone(), self.options.clone(), self.drain.clone());
        let peer = Peer::new(1, "192.0.2.1:40000".parse().unwrap(), "smtp".into());
        let task = tokio::spawn(async move {
            serve_connection(theirs, peer, &edge, &options, tls, &drain).await
        });
        (ours, task)
    }

    pub fn connect(&self) -> Client {
        Client::new(self.start(Tls::Off).0)
    }

    /// A client that has a TLS session from the first byte.
    pub async fn connect_tls(&self, keys: &Keys) -> Client {
        Client::new(
            keys.handshake(self.start(Tls::Implicit(keys.acceptor.clone())).0)
                .await,
        )
    }
}

/// A certificate, and who trusts it.
pub struct Keys {
    pub acceptor: TlsAcceptor,
    pub connector: TlsConnector,
    pub certificate: CertificateDer<'static>,
}

impl Keys {
    pub fn new() -> Keys {
        let made = rcgen::generate_simple_self_signed(["mx.example.jp".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(ring::default_provider());
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Keys {
            acceptor: TlsAcceptor::from(Arc::new(server)),
            connector: TlsConnector::from(Arc::new(client)),
            certificate: made.cert.der().clone(),
        }
    }

    pub async fn handshake(&self, stream: impl Stream + 'static) -> impl Stream + 'static {
        let name = ServerName::try_from("mx.example.jp").unwrap();
        self.connector.connect(name, stream).await.unwrap()
    }
}

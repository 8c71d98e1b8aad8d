//! A blocking connection to the server under test, in the clear or under TLS.
//!
//! Every TLS connection is a full handshake, no session is resumed: a generator that did so would measure less than
//! strangers cost. How many messages share a handshake is the load's choice. Certificates are verified against the roots of a file, or not at all when asked so, and the report says which.

use std::fmt;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
    StreamOwned,
};

/// How a TLS session is made.
#[derive(Debug, Clone)]
pub struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    trust: String,
}

impl Tls {
    /// For a server that has a certificate for `name`, issued by one of the certificates in `roots` (PEM); without
    /// `roots` any certificate is taken.
    pub fn new(name: &str, roots: Option<&Path>) -> anyhow::Result<Tls> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?;
        let (mut config, trust) = match roots {
            Some(path) => {
                let naming = || format!("certificates in {}", path.display());
                let mut store = RootCertStore::empty();
                for certificate in CertificateDer::pem_file_iter(path).with_context(naming)? {
                    store
                        .add(certificate.with_context(naming)?)
                        .with_context(naming)?;
                }
                ensure!(!store.is_empty(), "no {}", naming());
                let config = builder.with_root_certificates(store).with_no_client_auth();
                let trust = format!("certificate verified for {name}; no resumption");
                (config, trust)
            }
            None => {
                let anything = Arc::new(Anything(provider));
                let config = builder
                    .dangerous()
                    .with_custom_certificate_verifier(anything)
                    .with_no_client_auth();
                (config, "certificate not verified; no resumption".to_owned())
            }
        };
        config.resumption = Resumption::disabled();
        let name = ServerName::try_from(name.to_owned())
            .with_context(|| format!("{name:?} cannot be in a certificate"))?;
        Ok(Tls {
            config: Arc::new(config),
            name,
            trust,
        })
    }
}

/// How a connection is protected.
#[derive(Debug, Clone, Default)]
pub enum Protection {
    /// Not.
    #[default]
    None,
    /// TLS from the first byte (RFC 8314).
    Implicit(Tls),
    /// STARTTLS (RFC 3207) or STLS (RFC 2595) first.
    Upgrade(Tls),
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Protection::None => f.write_str("none"),
            Protection::Implicit(tls) => write!(f, "implicit ({})", tls.trust),
            Protection::Upgrade(tls) => write!(f, "upgraded ({})", tls.trust),
        }
    }
}

/// A listener, and how to talk to it.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Where; loopback.
    pub address: SocketAddr,
    /// Under what.
    pub protection: Protection,
}

impl Endpoint {
    /// Refuses what is not this machine.
    pub fn ensure_loopback(&self) -> anyhow::Result<()> {
        let Endpoint { address, .. } = self;
        ensure!(
            address.ip().is_loopback(),
            "{address} is not loopback: refused"
        );
        Ok(())
    }

    /// Connects, with TLS already if it is implicit; `timeout` is for every read and write.
    pub(crate) fn connect(&self, timeout: Duration) -> anyhow::Result<Stream> {
        let stream = tcp(self.address, timeout)?;
        match &self.protection {
            Protection::Implicit(tls) => Stream::Plain(stream).secure(tls),
            Protection::None | Protection::Upgrade(_) => Ok(Stream::Plain(stream)),
        }
    }
}

impl From<SocketAddr> for Endpoint {
    /// In the clear.
    fn from(address: SocketAddr) -> Endpoint {
        Endpoint {
            address,
            protection: Protection::None,
        }
    }
}

fn tcp(server: SocketAddr, timeout: Duration) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&server, timeout).context("connect")?;
    // While a server restarts, a port of the ephemeral range can be connected to itself; kept, it would even keep the
    // server from listening again.
    ensure!(
        stream.local_addr()? != server,
        "connect: nobody but ourselves"
    );
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    Ok(stream)
}

/// An open connection.
#[derive(Debug)]
pub(crate) enum Stream {
    Plain(TcpStream),
    Secure(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    /// The TLS handshake on a connection in the clear.
    pub(crate) fn secure(self, tls: &Tls) -> anyhow::Result<Stream> {
        let Stream::Plain(mut tcp) = self else {
            bail!("under TLS already");
        };
        let mut session = ClientConnection::new(tls.config.clone(), tls.name.clone())?;
        while session.is_handshaking() {
            session.complete_io(&mut tcp).context("TLS handshake")?;
        }
        Ok(Stream::Secure(Box::new(StreamOwned::new(session, tcp))))
    }

    /// The protocol, cipher suite and key exchange that were agreed on, if it is under TLS.
    pub(crate) fn agreed(&self) -> Option<String> {
        let Stream::Secure(stream) = self else {
            return None;
        };
        let session = &stream.conn;
        let suite = session.negotiated_cipher_suite()?.suite();
        let exchange = session.negotiated_key_exchange_group()?.name();
        Some(format!(
            "{:?} {suite:?} {exchange:?}",
            session.protocol_version()?
        ))
    }

    /// Writes all of it. When this returns, the kernel has the last byte; after an error it does not.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.write_all(bytes)?;
        self.flush()
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Stream::Plain(stream) => stream.read(buffer),
            Stream::Secure(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Stream::Plain(stream) => stream.write(bytes),
            Stream::Secure(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Stream::Plain(stream) => stream.flush(),
            Stream::Secure(stream) => stream.flush(),
        }
    }
}

/// Takes any certificate whose owner holds its key.
#[derive(Debug)]
struct Anything(Arc<CryptoProvider>);

impl ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

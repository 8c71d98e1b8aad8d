//! A client's connection, in the clear or under TLS, and the TLS that trusts one server's certificate and nothing else.

use std::io::{Read, Result, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// A connection.
#[derive(Debug)]
pub enum Wire {
    /// Octets as they are.
    Clear(TcpStream),
    /// Under TLS.
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Wire {
    /// The socket under it.
    pub fn socket(&self) -> &TcpStream {
        match self {
            Wire::Clear(socket) => socket,
            Wire::Tls(stream) => stream.get_ref(),
        }
    }

    /// Begins TLS with a server called `localhost`, and ends the handshake.
    ///
    /// # Errors
    /// When the handshake fails, or TLS has begun already.
    pub fn encrypt(self, config: Arc<ClientConfig>) -> Result<Wire> {
        let Wire::Clear(mut socket) = self else {
            return Err(std::io::Error::other("TLS within TLS"));
        };
        let name = ServerName::try_from("localhost").map_err(std::io::Error::other)?;
        let mut session = ClientConnection::new(config, name).map_err(std::io::Error::other)?;
        while session.is_handshaking() {
            session.complete_io(&mut socket)?;
        }
        Ok(Wire::Tls(Box::new(StreamOwned::new(session, socket))))
    }

    /// Says that nothing more will be sent: under TLS with close_notify first.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn finish(&mut self) -> Result<()> {
        if let Wire::Tls(stream) = self {
            stream.conn.send_close_notify();
            stream.flush()?;
        }
        self.socket().shutdown(Shutdown::Write)
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        match self {
            Wire::Clear(socket) => socket.read(buffer),
            Wire::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, buffer: &[u8]) -> Result<usize> {
        match self {
            Wire::Clear(socket) => socket.write(buffer),
            Wire::Tls(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> Result<()> {
        match self {
            Wire::Clear(socket) => socket.flush(),
            Wire::Tls(stream) => stream.flush(),
        }
    }
}

/// TLS for a client that trusts the certificate in `certificate` and nothing else.
///
/// # Panics
/// When the file holds none.
pub fn trusting(certificate: &Path) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let trusted = CertificateDer::from_pem_file(certificate).expect("a certificate");
    roots.add(trusted).expect("a certificate to trust");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

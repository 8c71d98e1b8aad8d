//! TLS material from files: a certificate chain and its key in PEM. TLS 1.2 and 1.3 only (RFC 8996).
//!
//! Nothing here is half done: material that cannot be used leaves the caller with what it had.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::validity;

/// Why TLS cannot be offered; says which file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is missing, unreadable or not PEM.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The certificate and the key do not go together.
    #[error("{certificate} and {key}: {reason}")]
    Pair {
        /// The certificate file.
        certificate: PathBuf,
        /// The key file.
        key: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// A certificate chain with its key, ready to be served.
#[derive(Clone)]
pub struct Material {
    /// For new connections.
    pub acceptor: TlsAcceptor,
    /// When the leaf's validity begins, in seconds since 1970.
    pub not_before_s: i64,
    /// When it ends.
    pub not_after_s: i64,
}

/// An acceptor for the PEM files `certificate` (chain, leaf first) and `key`.
///
/// # Errors
/// When a file cannot be used; the old acceptor, if any, stays good.
pub fn acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor, TlsError> {
    material(certificate, key).map(|material| material.acceptor)
}

/// What the PEM files `certificate` (chain, leaf first) and `key` hold. Whether it is valid now is the caller's to judge.
///
/// # Errors
/// When a file cannot be used; says which.
pub fn material(certificate: &Path, key: &Path) -> Result<Material, TlsError> {
    let in_file = |path: &Path| {
        let path = path.to_owned();
        move |error: rustls::pki_types::pem::Error| TlsError::File {
            path,
            reason: error.to_string(),
        }
    };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(|certificates| certificates.collect::<Result<Vec<_>, _>>())
        .map_err(in_file(certificate))?;
    let Some(leaf) = chain.first() else {
        return Err(TlsError::File {
            path: certificate.to_owned(),
            reason: "holds no certificate".into(),
        });
    };
    let Some((not_before_s, not_after_s)) = validity::of_certificate(leaf) else {
        return Err(TlsError::File {
            path: certificate.to_owned(),
            reason: "its first certificate is not one".into(),
        });
    };
    let secret = PrivateKeyDer::from_pem_file(key).map_err(in_file(key))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map(|builder| builder.with_no_client_auth())
        .and_then(|builder| builder.with_single_cert(chain, secret))
        .map_err(|error| TlsError::Pair {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            reason: error.to_string(),
        })?;
    Ok(Material {
        acceptor: TlsAcceptor::from(Arc::new(config)),
        not_before_s,
        not_after_s,
    })
}

//! TLS material from files: a certificate chain and its key in PEM. TLS 1.2 and 1.3 only (RFC 8996).
//!
//! Nothing here is half done: material that cannot be used leaves the caller with what it had.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;

use crate::certificate::{self, names_as_issuer};
use crate::{file, validity};

/// Octets of a chain or a key, a hundred times what they have.
const FILE_BYTES_MAX: u64 = 1 << 20;

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
    /// The number, from 1, of the first certificate of the chain that the next one has not issued.
    pub gap: Option<usize>,
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
/// When a file cannot be used; says which, and what to do where that is known.
pub fn material(certificate: &Path, key: &Path) -> Result<Material, TlsError> {
    let chain = chain(certificate)?;
    let leaf = chain.first().map(|leaf| &leaf[..]).unwrap_or_default();
    let Some((not_before_s, not_after_s)) = validity::of_certificate(leaf) else {
        return Err(wrong(certificate, "its first certificate is not one"));
    };
    let gap = gap(&chain);
    let secret = secret(key)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let signing = provider.key_provider.load_private_key(secret.clone_key());
    let signing = signing.map_err(|_| unusable(key, &secret))?;
    let served = CertifiedKey::new(chain, signing);
    if let Err(error) = served.keys_match() {
        return Err(not_a_pair(certificate, key, &served, &secret, &error));
    }
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map(|builder| builder.with_no_client_auth())
        .and_then(|builder| builder.with_single_cert(served.cert, secret))
        .map_err(|error| TlsError::Pair {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            reason: error.to_string(),
        })?;
    Ok(Material {
        acceptor: TlsAcceptor::from(Arc::new(config)),
        not_before_s,
        not_after_s,
        gap,
    })
}

fn wrong(path: &Path, reason: impl Into<String>) -> TlsError {
    TlsError::File {
        path: path.to_owned(),
        reason: reason.into(),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    file::read(path, FILE_BYTES_MAX).map_err(|error| wrong(path, error.to_string()))
}

/// The certificates of a file, at least one.
fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    let certificates = certificates.map_err(|error| wrong(path, error.to_string()))?;
    match certificates.is_empty() {
        true => Err(wrong(path, "holds no certificate in PEM")),
        false => Ok(certificates),
    }
}

/// The private key of a file.
fn secret(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let pem = read(path)?;
    if is_encrypted(&pem) {
        return Err(wrong(
            path,
            "the key is encrypted, and nobody types its passphrase at a start: keep it without one \
             (openssl pkey -in FILE -out NEW)",
        ));
    }
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| match error {
        pem::Error::NoItemsFound => wrong(path, "holds no private key in PEM"),
        error => wrong(path, error.to_string()),
    })
}

/// Whether the first private key in `pem` is under a passphrase, by PKCS #8 or as OpenSSL did
/// before.
fn is_encrypted(pem: &[u8]) -> bool {
    let text = String::from_utf8_lossy(pem);
    let mut lines = text.lines().map(str::trim);
    let begin = lines.find(|line| line.starts_with("-----BEGIN ") && line.contains("PRIVATE KEY"));
    let encrypted = begin.is_some_and(|line| line.contains("ENCRYPTED"));
    encrypted
        || lines
            .next()
            .is_some_and(|line| line.starts_with("Proc-Type:") && line.contains("ENCRYPTED"))
}

/// Where the chain is broken: the number, from 1, of the first certificate that the next one has
/// not issued.
fn gap(chain: &[CertificateDer<'_>]) -> Option<usize> {
    let mut pairs = chain.iter().zip(chain.iter().skip(1));
    let broken = pairs.position(|(this, next)| names_as_issuer(this, next) == Some(false))?;
    Some(broken + 1)
}

/// Why a key of this kind cannot be used.
fn unusable(path: &Path, secret: &PrivateKeyDer<'_>) -> TlsError {
    const USABLE: &str =
        "usable are ECDSA on P-256 or P-384, Ed25519, and RSA of 2048 to 4096 bits";
    match certificate::kind_of_key(secret) {
        Some(kind) => wrong(path, format!("its key is {kind}; {USABLE}")),
        None => wrong(path, format!("its key cannot be read; {USABLE}")),
    }
}

/// Why the key is not that of the first certificate.
fn not_a_pair(
    certificate: &Path,
    key: &Path,
    served: &CertifiedKey,
    secret: &PrivateKeyDer<'_>,
    error: &rustls::Error,
) -> TlsError {
    let of_key = |other: &CertificateDer<'static>| {
        CertifiedKey::new(vec![other.clone()], served.key.clone())
            .keys_match()
            .is_ok()
    };
    if let Some(at) = served.cert.iter().position(of_key) {
        let reason = format!(
            "its certificates are in the wrong order: the key is that of number {}, which must be the first one, \
             followed by its issuer's and so on",
            at + 1
        );
        return wrong(certificate, reason);
    }
    let leaf = served.cert.first().and_then(|leaf| certificate::kind(leaf));
    let reason = match (leaf, certificate::kind_of_key(secret)) {
        (Some(leaf), Some(own)) if leaf != own => {
            format!("the certificate is for a key that is {leaf}, and the key is {own}")
        }
        (Some(_), Some(_)) => "the certificate is for another key".into(),
        _ => error.to_string(),
    };
    TlsError::Pair {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rcgen::{CertificateParams, Issuer, KeyPair};

    use super::material;

    /// Of kinds that ring does not sign with.
    const P521: &str = "-----BEGIN EC PRIVATE KEY-----
MIHcAgEBBEIAufcc4PL1/azOyoYMIxKrvOPN/JhNvD1x7DgzdFVUBKoUPEsdkA/t
uSa0Adnrk+lJewM/6jIs96KZIOGQ4FJ6ltmgBwYFK4EEACOhgYkDgYYABAGmL2HF
c0adfj4u5lN/LAjvWFyFsQkaPETTOTZGHS4kZV6AFIrjmKwvLZGN+v1fur4QfdB2
34KcfzdaQhgboR9frgHzMYMYwXIXsd38KTFX0xthse9D/KZqi0l04J8fM3n+G0qj
jIOlWCztPp6rdWMHS7dvExsSNJ9KxHtqE8pHUCU0wA==
-----END EC PRIVATE KEY-----
";
    const RSA_1024: &str = "-----BEGIN RSA PRIVATE KEY-----
MIICXQIBAAKBgQDaD2KVhIZ3Xvf6IZGnp1p4w22FHlG+FrCoS2w7L9J6nFBEaUiy
ynTjmp0m6ZAjs+YNwByjRmVqePxXIRdm7yPtMk6vK/7+FzA6DTz8z0XU3Wrya/2A
aQ/Ihj02gwcm+um3oOM99byGEFIgeFfzWRFjZ7JkZrGX1r/7VXXRUDjS8QIDAQAB
AoGBAIe3bZ8rVVl0RRhrzjCvaxKgZ0ijvzJ1Aswr7RfFQtXG9fouIO4OLcP+1fKD
CY//Bp7mQ6ynQrWKyVsdIGiTTCLNafQp7PKEtEODbrvqg6EAtvY818WVoXfB023G
wyyePg0wU+hCx+UFqRxfGn/BRTh+C99uNZno335iqdUf41UxAkEA+AzlXqck/2kC
pBN/qsHX930HJVTSZOQ2jfmHoYpEZAXwG3AxufiRzkaiFD5+0Ay0/LubtfTwvytT
/1ag4JKgbQJBAOEMb9vPIXdI1mUpnlLHwudl8gfKRgkydYL61navnppc0csFP4sa
GKM8wWNcElupC0KP0eJug2PdiZ4bxrpSEhUCQQDi/7I8b8u87RWcn7d6xhBlDYcn
k7tC11JRlSSZIZa6znBQO9lV7nNIiX0z94lHzgknLG0wFCrpV7Zz+owZWDX1AkA9
PnA2hnDaEHVgBGp0pq5Q4Lp0CkTy/ctjALZaiEKGSZpCQMRhK5Hm4oLScl0AmslY
rOD2WRLim4h3AaIcVHddAkADZU0SyJ6vk9ihgd1LPIYayjQ8qTnpPeBPNs4wMyNE
dIJ+gBGyx0NZKcz+C+2w09+pq/bUjieoHnGdTbVycqfO
-----END RSA PRIVATE KEY-----
";
    /// Keys under a passphrase, as openssl writes them now and wrote them before.
    const ENCRYPTED: [&str; 2] = [
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIHsMFcGCSqG\n-----END ENCRYPTED PRIVATE KEY-----\n",
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,A1\n\nk8sNEQo0\n-----END RSA PRIVATE KEY-----\n",
    ];

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        params
    }

    /// What is said of a chain and a key: the broken link, or why they are refused.
    fn verdict(chain: &str, key: &str) -> Result<Option<usize>, String> {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, secret) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
        fs::write(&certificate, chain).unwrap();
        fs::write(&secret, key).unwrap();
        match material(&certificate, &secret) {
            Ok(material) => Ok(material.gap),
            Err(error) => {
                let folder = format!("{}/", folder.path().display());
                Err(error.to_string().replace(&folder, ""))
            }
        }
    }

    #[test]
    fn chains_and_keys_that_do_not_serve_are_named_for_what_they_are() {
        let root = KeyPair::generate().unwrap();
        let root_certificate = params("root").self_signed(&root).unwrap();
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::new(params("root"), &root);
        let leaf = params("mail.example.jp").signed_by(&key, &issuer).unwrap();
        let stranger = params("stranger").self_signed(&key).unwrap();
        let (leaf, root_pem, secret) = (leaf.pem(), root_certificate.pem(), key.serialize_pem());
        let chain = |parts: &[&str]| parts.concat();

        assert_eq!(verdict(&chain(&[&leaf, &root_pem]), &secret), Ok(None));
        assert_eq!(verdict(&leaf, &secret), Ok(None));
        let gap = verdict(&chain(&[&leaf, &stranger.pem(), &root_pem]), &secret);
        assert_eq!(gap, Ok(Some(1)), "the stranger has issued nothing");

        let why = |chain: &str, key: &str| verdict(chain, key).unwrap_err();
        assert_eq!(
            why(&chain(&[&root_pem, &leaf]), &secret),
            "c.pem: its certificates are in the wrong order: the key is that of number 2, which must be the first one, \
             followed by its issuer's and so on"
        );
        let other = KeyPair::generate().unwrap().serialize_pem();
        assert_eq!(
            why(&leaf, &other),
            "c.pem and k.pem: the certificate is for another key"
        );
        let other = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        assert_eq!(
            why(&leaf, &other.serialize_pem()),
            "c.pem and k.pem: the certificate is for a key that is ECDSA on P-256, and the key is ECDSA on P-384"
        );
        assert!(why(&leaf, P521).starts_with("k.pem: its key is ECDSA on P-521; usable are "));
        assert!(
            why(&leaf, RSA_1024).starts_with("k.pem: its key is RSA of 1024 bits; usable are ")
        );
        for encrypted in ENCRYPTED {
            let why = why(&leaf, encrypted);
            assert!(why.starts_with("k.pem: the key is encrypted, "), "{why}");
        }
        assert_eq!(why(&leaf, &leaf), "k.pem: holds no private key in PEM");
        assert_eq!(why(&secret, &secret), "c.pem: holds no certificate in PEM");
    }
}

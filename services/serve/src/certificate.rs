//! What a certificate and a key say of themselves, in the words of an operator: which kind of key
//! it is, and whose certificate is whose issuer's.

use rustls::pki_types::PrivateKeyDer;

use crate::der::{SEQUENCE, any, element, from_issuer, skip};

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OBJECT_IDENTIFIER: u8 = 0x06;

const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
/// Algorithms by their object identifiers (RFC 3279, RFC 8410, RFC 4055).
const ALGORITHMS: [(&[u8], &str); 5] = [
    (&[0x2b, 0x65, 0x70], "Ed25519"),
    (&[0x2b, 0x65, 0x71], "Ed448"),
    (
        &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a],
        "RSA for PSS only",
    ),
    (&[0x2a, 0x86, 0x48, 0xce, 0x38, 0x04, 0x01], "DSA"),
    (&[0x2b, 0x65, 0x6e], "X25519"),
];
/// Curves of ECDSA (RFC 5480, RFC 5639, SEC 2).
const CURVES: [(&[u8], &str); 8] = [
    (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07], "P-256"),
    (&[0x2b, 0x81, 0x04, 0x00, 0x22], "P-384"),
    (&[0x2b, 0x81, 0x04, 0x00, 0x23], "P-521"),
    (&[0x2b, 0x81, 0x04, 0x00, 0x21], "P-224"),
    (&[0x2b, 0x81, 0x04, 0x00, 0x0a], "secp256k1"),
    (
        &[0x2b, 0x24, 0x03, 0x03, 0x02, 0x08, 0x01, 0x01, 0x07],
        "brainpoolP256r1",
    ),
    (
        &[0x2b, 0x24, 0x03, 0x03, 0x02, 0x08, 0x01, 0x01, 0x0b],
        "brainpoolP384r1",
    ),
    (
        &[0x2b, 0x24, 0x03, 0x03, 0x02, 0x08, 0x01, 0x01, 0x0d],
        "brainpoolP512r1",
    ),
];

/// The kind of the key that the certificate `der` is for, e.g. `ECDSA on P-256`; `None` if it
/// cannot be told.
pub fn kind(der: &[u8]) -> Option<String> {
    // issuer, validity, subject
    let (public, _) = element(skip(skip(skip(from_issuer(der)?)?)?)?, SEQUENCE)?;
    let (algorithm, public) = element(public, SEQUENCE)?;
    let (bits, _) = element(public, BIT_STRING)?;
    kind_of(algorithm, bits.split_first()?.1)
}

/// The same for a private key.
pub fn kind_of_key(key: &PrivateKeyDer<'_>) -> Option<String> {
    let (fields, _) = element(key.secret_der(), SEQUENCE)?;
    // its version
    let fields = skip(fields)?;
    match key {
        PrivateKeyDer::Pkcs1(_) => rsa(fields),
        PrivateKeyDer::Sec1(_) => {
            const PARAMETERS: u8 = 0xa0;
            let (parameters, _) = element(skip(fields)?, PARAMETERS)?;
            curve(parameters)
        }
        PrivateKeyDer::Pkcs8(_) => {
            let (algorithm, fields) = element(fields, SEQUENCE)?;
            let (secret, _) = element(fields, OCTET_STRING)?;
            kind_of(algorithm, secret)
        }
        _ => None,
    }
}

/// Whether the certificate `issuer` carries the name that `der` gives for its issuer; `None` if one
/// of them is no certificate.
pub fn names_as_issuer(der: &[u8], issuer: &[u8]) -> Option<bool> {
    let named = from_issuer(der)?;
    let own = skip(skip(from_issuer(issuer)?)?)?;
    Some(any(named)?.1 == any(own)?.1)
}

/// `algorithm` is what an AlgorithmIdentifier holds; `key` is a PKCS #1 structure if that is RSA.
fn kind_of(algorithm: &[u8], key: &[u8]) -> Option<String> {
    let (name, parameters) = element(algorithm, OBJECT_IDENTIFIER)?;
    if name == EC {
        return curve(parameters);
    }
    if name == RSA {
        let (fields, _) = element(key, SEQUENCE)?;
        // a private key begins with its version, of one octet
        let (first, rest) = element(fields, INTEGER)?;
        return rsa(if first.len() == 1 { rest } else { fields });
    }
    let known = ALGORITHMS.iter().find(|(known, _)| *known == name)?;
    Some(known.1.to_owned())
}

fn curve(parameters: &[u8]) -> Option<String> {
    let (name, _) = element(parameters, OBJECT_IDENTIFIER)?;
    let known = CURVES.iter().find(|(known, _)| *known == name);
    Some(format!(
        "ECDSA on {}",
        known.map_or("an unknown curve", |(_, name)| name)
    ))
}

/// `fields` begin with the modulus.
fn rsa(fields: &[u8]) -> Option<String> {
    let (modulus, _) = element(fields, INTEGER)?;
    let significant = modulus.iter().position(|octet| *octet != 0)?;
    let digits = modulus.get(significant..)?;
    let bits = digits.len() * 8 - digits.first()?.leading_zeros() as usize;
    Some(format!("RSA of {bits} bits"))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};
    use rustls::pki_types::PrivateKeyDer;

    use super::{kind, kind_of_key, names_as_issuer};

    #[test]
    fn kinds_of_keys_are_named() {
        for (algorithm, name) in [
            (&rcgen::PKCS_ECDSA_P256_SHA256, "ECDSA on P-256"),
            (&rcgen::PKCS_ECDSA_P384_SHA384, "ECDSA on P-384"),
            (&rcgen::PKCS_ED25519, "Ed25519"),
        ] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let params = CertificateParams::new(["mail.example.jp".to_owned()]).unwrap();
            let certificate = params.self_signed(&key).unwrap();
            assert_eq!(kind(certificate.der()).as_deref(), Some(name));
            let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
            assert_eq!(kind_of_key(&key).as_deref(), Some(name));
            let der = certificate.der();
            assert_eq!(names_as_issuer(der, der), Some(true));
            for cut in 0..der.len() {
                assert_eq!(names_as_issuer(&der[..cut], der), None, "cut at {cut}");
                let _ = kind(&der[..cut]);
            }
        }
    }
}

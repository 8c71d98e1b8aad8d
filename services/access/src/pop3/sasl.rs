//! SASL PLAIN (RFC 4616) in POP3's clothes (RFC 5034): what a client's response says.
//!
//! It refuses: acting for somebody else (an authorization identity that is not the name itself), empty names and passwords,
//! control characters in names. From here name and password go the way that USER and PASS go.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::pop3::command::Password;
use crate::pop3::reply::{Reply, ResponseCode};

/// The longest line with a response, octets with its CRLF. RFC 5034 section 4: any length that the mechanism needs; a name, the
/// same name again and a password of the length that the directory looks at, in base64.
pub const RESPONSE_BYTES_MAX: usize = 2050;

/// Why a response is no login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaslError {
    /// `*`.
    Cancelled,
    /// Not base64.
    Encoding,
    /// Not `[authzid] NUL authcid NUL passwd`.
    Malformed,
    /// For somebody else.
    Identity,
}

impl From<SaslError> for Reply {
    fn from(error: SaslError) -> Reply {
        match error {
            SaslError::Cancelled => Reply::err("authentication is cancelled"),
            SaslError::Encoding => Reply::err("this is no base64"),
            SaslError::Malformed => Reply::err("this is no response of PLAIN"),
            SaslError::Identity => Reply::Err(
                Some(ResponseCode::Auth),
                "logging in for somebody else is not possible",
            ),
        }
    }
}

/// Name and password in a response line, which comes without its CRLF.
///
/// # Errors
/// When there are none, and why.
pub fn plain(response: &[u8]) -> Result<(String, Password), SaslError> {
    if response == b"*" {
        return Err(SaslError::Cancelled);
    }
    let decoded = STANDARD.decode(response).map_err(|_| SaslError::Encoding)?;
    let mut parts = decoded.split(|octet| *octet == 0);
    let (Some(authzid), Some(authcid), Some(password), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(SaslError::Malformed);
    };
    let name = std::str::from_utf8(authcid).map_err(|_| SaslError::Malformed)?;
    if name.is_empty() || password.is_empty() || name.chars().any(char::is_control) {
        return Err(SaslError::Malformed);
    }
    if !authzid.is_empty() && authzid != authcid {
        return Err(SaslError::Identity);
    }
    Ok((name.to_owned(), Password::new(password.to_vec())))
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::{any, prop, proptest};

    use super::{RESPONSE_BYTES_MAX, SaslError, plain};

    fn of(decoded: &[u8]) -> Result<(String, Vec<u8>), SaslError> {
        let (name, password) = plain(STANDARD.encode(decoded).as_bytes())?;
        Ok((name, password.as_bytes().to_vec()))
    }

    #[test]
    fn responses() {
        let alice = |password: &[u8]| Ok(("alice".to_owned(), password.to_vec()));
        for (decoded, expected) in [
            (&b"\0alice\0secret"[..], alice(b"secret")),
            (b"alice\0alice\0secret", alice(b"secret")),
            (b"\0alice\0 a\tb\xff", alice(b" a\tb\xff")),
            (b"bob\0alice\0secret", Err(SaslError::Identity)),
            (b"Alice\0alice\0secret", Err(SaslError::Identity)),
            (b"", Err(SaslError::Malformed)),
            (b"alice\0secret", Err(SaslError::Malformed)),
            (b"\0alice\0secret\0", Err(SaslError::Malformed)),
            (b"\0\0secret", Err(SaslError::Malformed)),
            (b"\0alice\0", Err(SaslError::Malformed)),
            (b"\0al\nice\0secret", Err(SaslError::Malformed)),
            (b"\0al\xffice\0secret", Err(SaslError::Malformed)),
        ] {
            assert_eq!(of(decoded), expected, "{decoded:?}");
        }
        for (response, expected) in [
            ("*", SaslError::Cancelled),
            ("=", SaslError::Encoding),
            ("AGFsaWNlAHNlY3JldA", SaslError::Encoding),
            ("AGFsaWNlAHNlY3JldA== ", SaslError::Encoding),
            ("* ", SaslError::Encoding),
            ("", SaslError::Malformed),
        ] {
            assert_eq!(
                plain(response.as_bytes()).map(drop),
                Err(expected),
                "{response}"
            );
        }
    }

    #[test]
    fn the_longest_response_fits() {
        let longest = [&[b'n'; 254][..], b"\0", &[b'n'; 254], b"\0", &[b'p'; 1024]].concat();
        assert_eq!(STANDARD.encode(&longest).len() + 2, RESPONSE_BYTES_MAX);
        assert!(of(&longest).is_ok());
    }

    proptest! {
        #[test]
        fn any_response_is_judged(response in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = plain(&response);
            if let Ok((name, password)) = of(&response) {
                assert!(!name.is_empty() && !password.is_empty());
            }
        }
    }
}

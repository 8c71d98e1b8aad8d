//! Stored passwords: verifying them in constant time and in a bounded pool, and making them.
//!
//! `{SSHA}`, `{SSHA256}`, `{SSHA512}` (base64 of digest and salt) and `{ARGON2}` (a PHC string). Cleartext is refused, and so is
//! what is not known here: such a login is unavailable, never wrong.

use std::sync::Arc;
use std::time::Duration;

use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};
use subtle::ConstantTimeEq;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::Unavailable;

/// Octets of a password that are looked at; a longer one is wrong.
pub const PASSWORD_BYTES_MAX: usize = 1024;
/// Salt of a salted digest.
const SALT_BYTES_MAX: usize = 64;
/// Memory of one Argon2 verification, KiB.
const ARGON2_MEMORY_KIB_MAX: u32 = 64 << 10;
/// Passes of one Argon2 verification.
const ARGON2_PASSES_MAX: u32 = 16;
const ARGON2_LANES_MAX: u32 = 16;

/// Why a stored password cannot be verified against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// The password itself is in the file.
    #[error("cleartext is refused, store a hash")]
    Cleartext,
    /// Another scheme.
    #[error("unknown scheme, expected {{SSHA}}, {{SSHA256}}, {{SSHA512}} or {{ARGON2}}")]
    Scheme,
    /// The scheme is known, what follows is not it.
    #[error("does not fit its scheme")]
    Malformed,
    /// It asks for more memory or time than a login may take.
    #[error("Argon2 parameters are over the limit (64 MiB, 16 passes, 16 lanes)")]
    TooCostly,
}

enum Stored<'a> {
    Salted { digest: fn(&[u8], &[u8]) -> Vec<u8>, expected: Vec<u8>, salt: Vec<u8> },
    Argon2(PasswordHash<'a>),
}

fn salted<D: Digest>(password: &[u8], salt: &[u8]) -> Vec<u8> {
    D::new().chain_update(password).chain_update(salt).finalize().to_vec()
}

fn parse(stored: &str) -> Result<Stored<'_>, Unusable> {
    let (scheme, value) = stored.strip_prefix('{').and_then(|rest| rest.split_once('}')).ok_or(Unusable::Cleartext)?;
    match scheme.to_ascii_uppercase().as_str() {
        "SSHA" => parse_salted(value, 20, salted::<Sha1>),
        "SSHA256" => parse_salted(value, 32, salted::<Sha256>),
        "SSHA512" => parse_salted(value, 64, salted::<Sha512>),
        "ARGON2" | "ARGON2I" | "ARGON2ID" => parse_argon2(value),
        "PLAIN" | "CLEAR" | "CLEARTEXT" => Err(Unusable::Cleartext),
        _ => Err(Unusable::Scheme),
    }
}

fn parse_salted(value: &str, length: usize, digest: fn(&[u8], &[u8]) -> Vec<u8>) -> Result<Stored<'_>, Unusable> {
    let mut expected = STANDARD.decode(value).map_err(|_| Unusable::Malformed)?;
    if expected.len() <= length || expected.len() > length + SALT_BYTES_MAX {
        return Err(Unusable::Malformed);
    }
    let salt = expected.split_off(length);
    Ok(Stored::Salted { digest, expected, salt })
}

fn parse_argon2(value: &str) -> Result<Stored<'_>, Unusable> {
    let hash = PasswordHash::new(value).map_err(|_| Unusable::Malformed)?;
    let params = Params::try_from(&hash).map_err(|_| Unusable::Malformed)?;
    if Algorithm::try_from(hash.algorithm).is_err() || hash.salt.is_none() || hash.hash.is_none() {
        return Err(Unusable::Malformed);
    }
    let fits = params.m_cost() <= ARGON2_MEMORY_KIB_MAX
        && params.t_cost() <= ARGON2_PASSES_MAX
        && params.p_cost() <= ARGON2_LANES_MAX;
    if fits { Ok(Stored::Argon2(hash)) } else { Err(Unusable::TooCostly) }
}

/// Whether `stored` can be verified against.
pub fn check(stored: &str) -> Result<(), Unusable> {
    parse(stored).map(drop)
}

/// Whether `password` is the one that `stored` was made from. Costs what the scheme costs: call it from a [`Pool`].
pub fn verify(stored: &str, password: &[u8]) -> Result<bool, Unusable> {
    match parse(stored)? {
        Stored::Salted { digest, expected, salt } => Ok(digest(password, &salt).ct_eq(&expected).into()),
        Stored::Argon2(hash) => Ok(Argon2::default().verify_password(password, &hash).is_ok()),
    }
}

fn store(scheme: &str, mut digest: Vec<u8>, salt: &[u8]) -> String {
    digest.extend_from_slice(salt);
    format!("{{{scheme}}}{}", STANDARD.encode(digest))
}

/// `password` as `{SSHA256}`. Salt: 1 to 64 random octets.
pub fn hash_ssha256(password: &[u8], salt: &[u8]) -> String {
    store("SSHA256", salted::<Sha256>(password, salt), salt)
}

/// `password` as `{SSHA512}`. Salt: 1 to 64 random octets.
pub fn hash_ssha512(password: &[u8], salt: &[u8]) -> String {
    store("SSHA512", salted::<Sha512>(password, salt), salt)
}

/// `password` as `{ARGON2}` (Argon2id, 19 MiB, 2 passes: the OWASP minimum).
pub fn hash_argon2(password: &[u8], salt: &[u8; 16]) -> Result<String, argon2::password_hash::Error> {
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::default());
    let salt = SaltString::encode_b64(salt)?;
    Ok(format!("{{ARGON2}}{}", argon2.hash_password(password, &salt)?))
}

/// How many logins may hash and wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolLimits {
    /// Hashing at once, each on a thread of its own: leave a core for the mail.
    pub hashing_max: usize,
    /// Waiting for a thread; one more is told to come later.
    pub waiting_max: usize,
    /// Waiting at most this long.
    pub wait_max: Duration,
}

impl Default for PoolLimits {
    fn default() -> PoolLimits {
        PoolLimits { hashing_max: 2, waiting_max: 256, wait_max: Duration::from_secs(10) }
    }
}

/// Verifies passwords off the async threads, a bounded number at once, so that a flood of logins starves nobody else.
pub struct Pool {
    admitted: Arc<Semaphore>,
    hashing: Arc<Semaphore>,
    wait_max: Duration,
}

/// What the stored passwords of one account say to a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// One of them is it.
    Right,
    /// None is.
    Wrong,
    /// None of those that could be verified is, and at least one could not be.
    Unknown,
}

impl Pool {
    /// A pool of at least one thread.
    pub fn new(limits: PoolLimits) -> Pool {
        let hashing = limits.hashing_max.clamp(1, Semaphore::MAX_PERMITS / 2);
        let waiting = limits.waiting_max.min(Semaphore::MAX_PERMITS / 2);
        Pool {
            admitted: Arc::new(Semaphore::new(hashing + waiting)),
            hashing: Arc::new(Semaphore::new(hashing)),
            wait_max: limits.wait_max,
        }
    }

    /// Tries `password` against each of `stored`.
    pub async fn verify(&self, stored: Vec<Box<str>>, password: Vec<u8>) -> Result<Verdict, Unavailable> {
        let permits = self.permits().await?;
        // The permits end with the hashing, not with a caller that has gone away: a hash under way cannot be cancelled.
        let verdict = tokio::task::spawn_blocking(move || {
            let _permits = permits;
            verdict(&stored, &password)
        });
        verdict.await.map_err(|_| Unavailable::new("password verification failed"))
    }

    async fn permits(&self) -> Result<(OwnedSemaphorePermit, OwnedSemaphorePermit), Unavailable> {
        let busy = || Unavailable::new("too many logins at once");
        let admitted = Arc::clone(&self.admitted).try_acquire_owned().map_err(|_| busy())?;
        let hashing = tokio::time::timeout(self.wait_max, Arc::clone(&self.hashing).acquire_owned()).await;
        Ok((admitted, hashing.map_err(|_| busy())?.map_err(|_| busy())?))
    }
}

fn verdict(stored: &[Box<str>], password: &[u8]) -> Verdict {
    let mut verdict = Verdict::Wrong;
    for stored in stored {
        // No early return: how long it takes must not say which of them it was.
        match (verify(stored, password), verdict) {
            (Ok(true), _) => verdict = Verdict::Right,
            (Err(_), Verdict::Wrong) => verdict = Verdict::Unknown,
            _ => {}
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::{any, prop, prop_assert, proptest};

    use super::{Pool, PoolLimits, Unusable, Verdict, check, hash_argon2, hash_ssha256, hash_ssha512, verify};

    // Made by Python's hashlib; the Argon2 one is the reference implementation's own test vector.
    const MADE_ELSEWHERE: [(&str, &[u8]); 4] = [
        ("{SSHA}JFjlsWA/s7OcD3F5VqA5dDwesFFzYWx0MTIzNA==", b"hikyaku"),
        ("{SSHA256}ce8qBmhwhA9g6QUEX3ON1sHRQLSwSjFin4CRCkX6V9VzYWx0MTIzNA==", b"hikyaku"),
        (
            "{SSHA512}IV9sh87uPNJkfD7DVnVk3yVmIH1wpEDrNk1qmiTqsyaII3BnqRXTcV4BfaFuSLOcxiDzOA5oN4iIWwyqJ583/HNhbHQxMjM0",
            b"hikyaku",
        ),
        ("{ARGON2}$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4", b"password"),
    ];

    #[test]
    fn what_others_made_is_verified() {
        for (stored, password) in MADE_ELSEWHERE {
            assert_eq!(verify(stored, password), Ok(true), "{stored}");
            assert_eq!(verify(stored, &password.to_ascii_uppercase()), Ok(false), "{stored}");
            assert_eq!(verify(stored, b""), Ok(false), "{stored}");
        }
    }

    #[test]
    fn what_is_made_here_is_verified() {
        let made = [
            hash_ssha256(b"pw", b"saltsalt"),
            hash_ssha512(b"pw", b"saltsalt").replace("SSHA", "ssha"),
            hash_argon2(b"pw", b"saltsaltsaltsalt").unwrap(),
        ];
        for stored in made {
            assert_eq!(verify(&stored, b"pw"), Ok(true), "{stored}");
            assert_eq!(verify(&stored, b"pW"), Ok(false), "{stored}");
        }
    }

    #[test]
    fn what_cannot_be_verified_says_why() {
        for (stored, why) in [
            ("hunter2", Unusable::Cleartext),
            ("{PLAIN}hunter2", Unusable::Cleartext),
            ("{cleartext}hunter2", Unusable::Cleartext),
            ("{CRYPT}$6$x$y", Unusable::Scheme),
            ("{MD5}x", Unusable::Scheme),
            ("{SSHA}*", Unusable::Malformed),
            // the digest alone, without salt
            ("{SSHA}AAAAAAAAAAAAAAAAAAAAAAAAAAA=", Unusable::Malformed),
            ("{ARGON2}$argon2id$v=19$m=1024,t=1,p=1$c29tZXNhbHQ", Unusable::Malformed),
            ("{ARGON2}$bcrypt$v=19$m=1024,t=1,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA", Unusable::Malformed),
            ("{ARGON2}$argon2id$v=19$m=1048576,t=1,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA", Unusable::TooCostly),
            ("{ARGON2}$argon2id$v=19$m=1024,t=4000,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA", Unusable::TooCostly),
        ] {
            assert_eq!(check(stored), Err(why), "{stored}");
        }
    }

    fn slow() -> Vec<Box<str>> {
        vec![hash_argon2(b"pw", b"saltsaltsaltsalt").unwrap().into()]
    }

    #[tokio::test]
    async fn one_of_several_passwords_is_enough_and_an_unknown_one_is_never_wrong() {
        let pool = Pool::new(PoolLimits::default());
        let good = hash_ssha256(b"pw", b"salt");
        let crypt = "{CRYPT}x";
        let verdict = |stored: &[&str], password: &[u8]| {
            pool.verify(stored.iter().map(|&s| s.into()).collect(), password.to_vec())
        };
        assert_eq!(verdict(&[crypt, &good], b"pw").await, Ok(Verdict::Right));
        assert_eq!(verdict(&[&good, crypt], b"pw").await, Ok(Verdict::Right));
        assert_eq!(verdict(&[&good, crypt], b"no").await, Ok(Verdict::Unknown));
        assert_eq!(verdict(&[&good], b"no").await, Ok(Verdict::Wrong));
        assert_eq!(verdict(&[], b"no").await, Ok(Verdict::Wrong));
    }

    #[tokio::test]
    async fn a_flood_is_bounded_and_told_to_come_later() {
        let limits = PoolLimits { hashing_max: 1, waiting_max: 2, wait_max: Duration::from_secs(60) };
        let pool = Pool::new(limits);
        let logins = (0..10).map(|_| pool.verify(slow(), b"pw".to_vec()));
        let results = futures_util::future::join_all(logins).await;
        assert_eq!(results.iter().filter(|result| **result == Ok(Verdict::Right)).count(), 3);
        assert_eq!(results.iter().filter(|result| result.is_err()).count(), 7);
        // and it recovers
        assert_eq!(pool.verify(slow(), b"pw".to_vec()).await, Ok(Verdict::Right));
    }

    #[tokio::test]
    async fn nobody_waits_for_ever() {
        let limits = PoolLimits { hashing_max: 1, waiting_max: 2, wait_max: Duration::ZERO };
        let pool = Pool::new(limits);
        let (first, second) = tokio::join!(pool.verify(slow(), b"pw".to_vec()), pool.verify(slow(), b"pw".to_vec()));
        assert_eq!(first, Ok(Verdict::Right));
        assert!(second.is_err());
    }

    proptest! {
        #[test]
        fn any_stored_text_is_survived(text in "\\{?(SSHA|ARGON2|SSHA512)?\\}?.{0,80}", password in prop::collection::vec(any::<u8>(), 0..40)) {
            prop_assert!(check(&text).is_err() || verify(&text, &password).is_ok());
        }
    }
}

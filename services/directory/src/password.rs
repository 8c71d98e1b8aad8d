//! Stored passwords: verifying them in constant time and in a bounded pool, and making them.
//!
//! `{SSHA}`, `{SSHA256}`, `{SSHA512}` (base64 of digest and salt), `{ARGON2}` (a PHC string) and `{CRYPT}` (see `crypt`).
//! Cleartext is refused, and so is what is not known here or would cost too much: such a login is
//! unavailable, never wrong. A locked password, made one that matches nothing by `passwd -l`,
//! `usermod -L` and the like, is simply never right.
//!
//! # Layout
//! * [`pool`]: verifying off the async threads, a bounded number at once
//! * `crypt`: `{CRYPT}`
//! * `recent`: costly passwords that were right a moment ago

use std::time::Duration;

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};
use subtle::ConstantTimeEq;

use crate::password::crypt::Crypt;

mod crypt;
pub mod pool;
mod recent;

/// Octets of a password that are looked at; a longer one is wrong.
pub const PASSWORD_BYTES_MAX: usize = 1024;
/// Salt of a salted digest.
const SALT_BYTES_MAX: usize = 64;
/// Memory of one Argon2 verification, KiB.
const ARGON2_MEMORY_KIB_MAX: u32 = 256 << 10;
/// Memory times passes of one Argon2 verification, KiB: about a second.
const ARGON2_WORK_KIB_MAX: u64 = 1 << 20;
const ARGON2_LANES_MAX: u32 = 16;

/// What costly verifications may take together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolLimits {
    /// Hashing at once, each on a thread of its own: leave a core for the mail.
    pub hashing_max: usize,
    /// Memory for hashing, MiB. One that needs more than all of it runs alone.
    pub memory_mib_max: u32,
    /// Waiting for a thread; one more is told to come later.
    pub waiting_max: usize,
    /// Waiting at most this long.
    pub wait_max: Duration,
}

impl Default for PoolLimits {
    fn default() -> PoolLimits {
        PoolLimits {
            hashing_max: 2,
            memory_mib_max: 128,
            waiting_max: 256,
            wait_max: Duration::from_secs(10),
        }
    }
}

/// Why a stored password cannot be verified against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// The password itself is in the file.
    #[error("cleartext is refused, store a hash")]
    Cleartext,
    /// Another scheme.
    #[error(
        "unknown scheme, expected {{SSHA}}, {{SSHA256}}, {{SSHA512}}, {{ARGON2}} or {{CRYPT}} with $y$, $2b$, $6$ or $5$"
    )]
    Scheme,
    /// Nothing matches it, and that was meant.
    #[error("locked: nothing matches it")]
    Locked,
    /// The scheme is known, what follows is not it.
    #[error("does not fit its scheme")]
    Malformed,
    /// It asks for more memory or time than a login may take.
    #[error(
        "costs a login too much: over 256 MiB, Argon2 memory times passes over 1 GiB, bcrypt over 14, or over 500000 rounds"
    )]
    TooCostly,
}

enum Stored<'a> {
    Salted {
        digest: fn(&[u8], &[u8]) -> Vec<u8>,
        expected: Vec<u8>,
        salt: Vec<u8>,
    },
    Argon2 {
        hash: Box<PasswordHash>,
        memory_kib: u32,
    },
    Crypt(Crypt<'a>),
}

fn salted<D: Digest>(password: &[u8], salt: &[u8]) -> Vec<u8> {
    D::new()
        .chain_update(password)
        .chain_update(salt)
        .finalize()
        .to_vec()
}

/// Whether `stored` is what tools make of a password to lock it: `!` or `*` where no hash has one.
fn is_locked(stored: &str) -> bool {
    let scheme = stored
        .strip_prefix('{')
        .and_then(|rest| rest.split_once('}'));
    match scheme {
        Some((scheme, _)) if is_cleartext(scheme) => false,
        // in front of a hash (passwd -l, usermod -L), or instead of one; Solaris has *LK* and NP,
        // others nologin
        Some((scheme, value)) => {
            let is_word = ["NP", "LK", "nologin"].contains(&value);
            value.starts_with(['!', '*']) || (is_word && scheme.eq_ignore_ascii_case("crypt"))
        }
        // in front of it all, as it stands in /etc/shadow, or of the scheme; else it may be
        // cleartext
        None => {
            let value = stored.trim_start_matches(['!', '*']);
            let is_marked = value.len() < stored.len();
            let is_des = value.len() == 13 && crypt::is_base64(value);
            let is_hash = value.is_empty() || value.starts_with(['{', '$']) || is_des;
            let is_word = ["*LK*", "*NP*", "*LOCKED*", "*nologin*"]
                .iter()
                .any(|word| stored.starts_with(word));
            (is_marked && is_hash) || is_word
        }
    }
}

fn is_cleartext(scheme: &str) -> bool {
    let names = ["PLAIN", "CLEAR", "CLEARTEXT"];
    names.iter().any(|name| scheme.eq_ignore_ascii_case(name))
}

fn parse(stored: &str) -> Result<Stored<'_>, Unusable> {
    if is_locked(stored) {
        return Err(Unusable::Locked);
    }
    let (scheme, value) = stored
        .strip_prefix('{')
        .and_then(|rest| rest.split_once('}'))
        .ok_or(Unusable::Cleartext)?;
    match scheme.to_ascii_uppercase().as_str() {
        "SSHA" => parse_salted(value, 20, salted::<Sha1>),
        "SSHA256" => parse_salted(value, 32, salted::<Sha256>),
        "SSHA512" => parse_salted(value, 64, salted::<Sha512>),
        "ARGON2" | "ARGON2I" | "ARGON2ID" => parse_argon2(value),
        "CRYPT" => Crypt::parse(value).map(Stored::Crypt),
        scheme if is_cleartext(scheme) => Err(Unusable::Cleartext),
        _ => Err(Unusable::Scheme),
    }
}

fn parse_salted(
    value: &str,
    length: usize,
    digest: fn(&[u8], &[u8]) -> Vec<u8>,
) -> Result<Stored<'_>, Unusable> {
    let mut expected = STANDARD.decode(value).map_err(|_| Unusable::Malformed)?;
    if expected.len() <= length || expected.len() > length + SALT_BYTES_MAX {
        return Err(Unusable::Malformed);
    }
    let salt = expected.split_off(length);
    Ok(Stored::Salted {
        digest,
        expected,
        salt,
    })
}

fn parse_argon2(value: &str) -> Result<Stored<'static>, Unusable> {
    let hash = Box::new(PasswordHash::new(value).map_err(|_| Unusable::Malformed)?);
    let params = Params::try_from(&*hash).map_err(|_| Unusable::Malformed)?;
    if Algorithm::try_from(hash.algorithm.as_str()).is_err()
        || hash.salt.is_none()
        || hash.hash.is_none()
    {
        return Err(Unusable::Malformed);
    }
    let work = u64::from(params.m_cost()) * u64::from(params.t_cost());
    let fits = params.m_cost() <= ARGON2_MEMORY_KIB_MAX
        && work <= ARGON2_WORK_KIB_MAX
        && params.p_cost() <= ARGON2_LANES_MAX;
    if fits {
        Ok(Stored::Argon2 {
            hash,
            memory_kib: params.m_cost(),
        })
    } else {
        Err(Unusable::TooCostly)
    }
}

/// Whether `stored` can be verified against.
pub fn check(stored: &str) -> Result<(), Unusable> {
    parse(stored).map(drop)
}

/// Scheme and cost of `stored`: two of one class take equally long. `None` if it cannot be verified against.
pub fn class(stored: &str) -> Option<String> {
    let (scheme, value) = stored.strip_prefix('{')?.split_once('}')?;
    let cost = match parse(stored).ok()? {
        Stored::Salted { .. } => "",
        // $argon2id$v=19$m=19456,t=2,p=1$salt$hash and $y$j9T$salt$hash: all but the last two; $2b$10$salthash: but the last
        Stored::Argon2 { .. } | Stored::Crypt(Crypt::Sha(_) | Crypt::Yescrypt { .. }) => {
            value.rsplitn(3, '$').nth(2).unwrap_or_default()
        }
        Stored::Crypt(Crypt::Bcrypt { .. }) => value.rsplit_once('$').map_or("", |(cost, _)| cost),
    };
    Some(format!("{}{cost}", scheme.to_ascii_uppercase()))
}

/// What one verification takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Cost {
    /// Microseconds, and no memory: not worth another thread.
    #[default]
    Cheap,
    /// So much memory, and milliseconds to a second.
    Costly { memory_bytes: u64 },
}

fn cost(stored: &str) -> Cost {
    match parse(stored) {
        Err(_) | Ok(Stored::Salted { .. }) => Cost::Cheap,
        Ok(Stored::Argon2 { memory_kib, .. }) => Cost::Costly {
            memory_bytes: u64::from(memory_kib) << 10,
        },
        Ok(Stored::Crypt(crypt)) => Cost::Costly {
            memory_bytes: crypt.memory_bytes(),
        },
    }
}

/// Whether `password` is the one that `stored` was made from. Costs what the scheme costs: call it from a [`pool::Pool`].
pub fn verify(stored: &str, password: &[u8]) -> Result<bool, Unusable> {
    match parse(stored)? {
        Stored::Salted {
            digest,
            expected,
            salt,
        } => Ok(digest(password, &salt).ct_eq(&expected).into()),
        Stored::Argon2 { hash, .. } => {
            Ok(Argon2::default().verify_password(password, &*hash).is_ok())
        }
        Stored::Crypt(crypt) => Ok(crypt.verify(password)),
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
pub fn hash_argon2(
    password: &[u8],
    salt: &[u8; 16],
) -> Result<String, argon2::password_hash::Error> {
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::default());
    Ok(format!(
        "{{ARGON2}}{}",
        argon2.hash_password_with_salt(password, salt)?
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, prop_assert, proptest};

    use super::{Unusable, check, class, hash_argon2, hash_ssha256, hash_ssha512, verify};

    // Made by Python's hashlib; the Argon2 one is the reference implementation's own test vector.
    const MADE_ELSEWHERE: [(&str, &[u8]); 4] = [
        ("{SSHA}JFjlsWA/s7OcD3F5VqA5dDwesFFzYWx0MTIzNA==", b"hikyaku"),
        (
            "{SSHA256}ce8qBmhwhA9g6QUEX3ON1sHRQLSwSjFin4CRCkX6V9VzYWx0MTIzNA==",
            b"hikyaku",
        ),
        (
            "{SSHA512}IV9sh87uPNJkfD7DVnVk3yVmIH1wpEDrNk1qmiTqsyaII3BnqRXTcV4BfaFuSLOcxiDzOA5oN4iIWwyqJ583/HNhbHQxMjM0",
            b"hikyaku",
        ),
        (
            "{ARGON2}$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4",
            b"password",
        ),
    ];

    #[test]
    fn what_others_made_is_verified() {
        for (stored, password) in MADE_ELSEWHERE {
            assert_eq!(verify(stored, password), Ok(true), "{stored}");
            assert_eq!(
                verify(stored, &password.to_ascii_uppercase()),
                Ok(false),
                "{stored}"
            );
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
            (
                "{CRYPT}$1$saltsalt$/mR7en0v138n0S4ilQ8EH0",
                Unusable::Scheme,
            ),
            ("{CRYPT}$6$x$y", Unusable::Malformed),
            ("{CRYPT}hunter2", Unusable::Scheme),
            ("{MD5}x", Unusable::Scheme),
            ("{SSHA}x", Unusable::Malformed),
            ("!hunter2", Unusable::Cleartext),
            ("{PLAIN}!hunter2", Unusable::Cleartext),
            ("*hunter2", Unusable::Cleartext),
            // the digest alone, without salt
            ("{SSHA}AAAAAAAAAAAAAAAAAAAAAAAAAAA=", Unusable::Malformed),
            (
                "{ARGON2}$argon2id$v=19$m=1024,t=1,p=1$c29tZXNhbHQ",
                Unusable::Malformed,
            ),
            (
                "{ARGON2}$bcrypt$v=19$m=1024,t=1,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA",
                Unusable::Malformed,
            ),
            (
                "{ARGON2}$argon2id$v=19$m=1048576,t=1,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA",
                Unusable::TooCostly,
            ),
            (
                "{ARGON2}$argon2id$v=19$m=1024,t=1025,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA",
                Unusable::TooCostly,
            ),
        ] {
            assert_eq!(check(stored), Err(why), "{stored}");
        }
    }

    #[test]
    fn what_locks_a_password_is_known() {
        for stored in [
            "!",
            "!!",
            "*",
            "*LK*",
            "*NP*",
            "*LOCKED*$6$salt$hash",
            "!$6$salt$hash",
            "!abJnggxhB/yWI",
            "!{SSHA}JFjlsWA/s7OcD3F5VqA5dDwesFFzYWx0MTIzNA==",
            "{CRYPT}!",
            "{CRYPT}*",
            "{crypt}!!",
            "{CRYPT}*0",
            "{CRYPT}*LK*",
            "{CRYPT}NP",
            "{CRYPT}nologin",
            "{CRYPT}!$y$j75$abcdefgh$uXd7PJV/WfPU1JnkNp7yClp78wTE1oEawafWC/7XMC/",
            "{CRYPT}!abJnggxhB/yWI",
            "{SSHA}*",
            "{SSHA}!JFjlsWA/s7OcD3F5VqA5dDwesFFzYWx0MTIzNA==",
            "{ARGON2}!$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4",
            "{MD5}!x",
        ] {
            assert_eq!(check(stored), Err(Unusable::Locked), "{stored}");
            assert_eq!(class(stored), None, "{stored}");
        }
    }

    #[test]
    fn a_class_is_scheme_and_cost() {
        for (stored, expected) in [
            (
                "{ssha}JFjlsWA/s7OcD3F5VqA5dDwesFFzYWx0MTIzNA==",
                Some("SSHA"),
            ),
            (
                MADE_ELSEWHERE[3].0,
                Some("ARGON2$argon2id$v=19$m=256,t=2,p=1"),
            ),
            (
                "{CRYPT}$y$j75$abcdefgh$uXd7PJV/WfPU1JnkNp7yClp78wTE1oEawafWC/7XMC/",
                Some("CRYPT$y$j75"),
            ),
            (
                "{CRYPT}$2b$05$abcdefghijklmnopqrstuuLfxTKLPlM1LC3VB8BF4Wu5EzVsrBYXC",
                Some("CRYPT$2b$05"),
            ),
            (
                "{crypt}$5$rounds=10000$saltstringsaltst$82Fbxa6P9VdB0fDpkXthXLML88V9WK7YbUKQ7f6ra82",
                Some("CRYPT$5$rounds=10000"),
            ),
            (
                "{CRYPT}$5$saltstring$r1pG8g27Ividy4EpqKGrcbHsN67PLCyIM3lERtlu7g0",
                Some("CRYPT$5"),
            ),
            ("hunter2", None),
        ] {
            assert_eq!(class(stored).as_deref(), expected, "{stored}");
        }
    }

    proptest! {
        #[test]
        fn any_stored_text_is_survived(text in "\\{?(SSHA|ARGON2|SSHA512|CRYPT)?\\}?(\\$(y|6|2b)\\$)?.{0,80}", password in prop::collection::vec(any::<u8>(), 0..40)) {
            prop_assert!(check(&text).is_err() || verify(&text, &password).is_ok());
        }
    }
}

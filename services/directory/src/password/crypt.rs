//! `{CRYPT}`: what crypt(3) of a Unix system makes. yescrypt (`$y$`), bcrypt (`$2b$`, `$2a$`, `$2y$`), SHA-512 (`$6$`) and
//! SHA-256 (`$5$`).
//!
//! Refused: DES and MD5 (`$1$`), which are broken; `$2x$`, which has a bug by definition; parameters that crypt(3) does not make
//! by itself; and costs that would let one login hold the machine up.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use sha_crypt::ShaCrypt;
use subtle::ConstantTimeEq;
use yescrypt::{Mode, PasswordVerifier, Yescrypt};

use crate::password::Unusable;

/// Octets of a password; crypt(3) takes no longer one.
const PHRASE_BYTES_MAX: usize = 512;
/// 2^14 rounds: over a second.
const BCRYPT_COST_MAX: u32 = 14;
/// Octets of a password that bcrypt sees.
const BCRYPT_BYTES_MAX: usize = 72;
/// The default is 5,000; half a second.
const SHA_ROUNDS_MAX: u32 = 500_000;
const SHA_ROUNDS_MIN: u32 = 1000;
const SHA_SALT_BYTES_MAX: usize = 16;
/// Memory of one yescrypt verification, octets; the default is 16 MiB.
const YESCRYPT_BYTES_MAX: u64 = 256 << 20;
/// crypt(3) goes no lower: 1 MiB.
const YESCRYPT_N_MIN: u64 = 1024;
const YESCRYPT_R_MIN: u32 = 8;
/// 32 octets in crypt's base64.
const YESCRYPT_HASH_CHARS: usize = 43;
const YESCRYPT_SALT_CHARS_MAX: usize = 86;

/// bcrypt's own base64. The last character of a salt has bits to spare, and not everybody leaves them 0.
const BCRYPT_BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::BCRYPT,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::RequireNone)
        .with_decode_allow_trailing_bits(true),
);

/// A stored password that can be verified against.
pub(super) enum Crypt<'a> {
    Bcrypt {
        cost: u32,
        salt: [u8; 16],
        expected: Vec<u8>,
    },
    Sha(&'a str),
    Yescrypt {
        text: &'a str,
        memory_bytes: u64,
    },
}

impl Crypt<'_> {
    /// What follows `{CRYPT}`.
    pub(super) fn parse(text: &str) -> Result<Crypt<'_>, Unusable> {
        let fields: Vec<&str> = text.split('$').collect();
        match fields.as_slice() {
            ["", "2a" | "2b" | "2y", cost, value] => parse_bcrypt(cost, value),
            ["", "5", rest @ ..] => parse_sha(text, rest, 43),
            ["", "6", rest @ ..] => parse_sha(text, rest, 86),
            ["", "y", params, salt, hash] => parse_yescrypt(text, params, salt, hash),
            ["", "2a" | "2b" | "2y" | "y", ..] => Err(Unusable::Malformed),
            _ => Err(Unusable::Scheme),
        }
    }

    /// Memory of one verification.
    pub(super) fn memory_bytes(&self) -> u64 {
        match self {
            Crypt::Bcrypt { .. } | Crypt::Sha(_) => 0,
            Crypt::Yescrypt { memory_bytes, .. } => *memory_bytes,
        }
    }

    /// Whether `password` is it.
    pub(super) fn verify(&self, password: &[u8]) -> bool {
        // C strings end at NUL: what would be cut off must not be ignored
        if password.is_empty() || password.len() > PHRASE_BYTES_MAX || password.contains(&0) {
            return false;
        }
        match self {
            Crypt::Bcrypt {
                cost,
                salt,
                expected,
            } => {
                let mut phrase = password.to_vec();
                phrase.push(0);
                phrase.truncate(BCRYPT_BYTES_MAX);
                let digest = bcrypt::bcrypt(*cost, *salt, &phrase);
                // the last of the 24 octets is never stored
                digest
                    .get(..expected.len())
                    .is_some_and(|digest| digest.ct_eq(expected).into())
            }
            Crypt::Sha(text) => ShaCrypt::default().verify_password(password, *text).is_ok(),
            Crypt::Yescrypt { text, .. } => {
                Yescrypt::default().verify_password(password, *text).is_ok()
            }
        }
    }
}

fn parse_bcrypt(cost: &str, value: &str) -> Result<Crypt<'static>, Unusable> {
    let (salt, digest) = value.split_at_checked(22).ok_or(Unusable::Malformed)?;
    if cost.len() != 2 || digest.len() != 31 {
        return Err(Unusable::Malformed);
    }
    let cost = number(cost)?;
    let decode = |text| BCRYPT_BASE64.decode(text).map_err(|_| Unusable::Malformed);
    let salt = decode(salt)?.try_into().map_err(|_| Unusable::Malformed)?;
    match cost {
        4..=BCRYPT_COST_MAX => Ok(Crypt::Bcrypt {
            cost,
            salt,
            expected: decode(digest)?,
        }),
        0..4 => Err(Unusable::Malformed),
        _ => Err(Unusable::TooCostly),
    }
}

fn parse_sha<'a>(text: &'a str, fields: &[&str], hash_chars: usize) -> Result<Crypt<'a>, Unusable> {
    let (rounds, salt, hash) = match *fields {
        [salt, hash] => (None, salt, hash),
        [rounds, salt, hash] => (Some(rounds), salt, hash),
        _ => return Err(Unusable::Malformed),
    };
    if salt.len() > SHA_SALT_BYTES_MAX
        || !is_base64(salt)
        || hash.len() != hash_chars
        || !is_base64(hash)
    {
        return Err(Unusable::Malformed);
    }
    if let Some(rounds) = rounds {
        match number(rounds.strip_prefix("rounds=").ok_or(Unusable::Malformed)?)? {
            SHA_ROUNDS_MIN..=SHA_ROUNDS_MAX => {}
            0..SHA_ROUNDS_MIN => return Err(Unusable::Malformed),
            _ => return Err(Unusable::TooCostly),
        }
    }
    Ok(Crypt::Sha(text))
}

fn parse_yescrypt<'a>(
    text: &'a str,
    params: &str,
    salt: &str,
    hash: &str,
) -> Result<Crypt<'a>, Unusable> {
    // an empty hash would be equal to the first 0 octets of any other
    if hash.len() != YESCRYPT_HASH_CHARS || !is_base64(hash) {
        return Err(Unusable::Malformed);
    }
    if salt.is_empty()
        || salt.len() > YESCRYPT_SALT_CHARS_MAX
        || salt.len() % 4 == 1
        || !is_base64(salt)
    {
        return Err(Unusable::Malformed);
    }
    let params: yescrypt::Params = params.parse().map_err(|_| Unusable::Malformed)?;
    if params.n() < YESCRYPT_N_MIN || params.r() < YESCRYPT_R_MIN {
        return Err(Unusable::Malformed);
    }
    // crypt(3) makes no others: one lane, no extra time, the usual mode
    let usual = yescrypt::Params::new(Mode::default(), params.n(), params.r(), 1)
        .map_err(|_| Unusable::Malformed)?;
    if params != usual {
        return Err(Unusable::TooCostly);
    }
    let memory_bytes = u64::from(params.r())
        .saturating_mul(128)
        .saturating_mul(params.n());
    if memory_bytes > YESCRYPT_BYTES_MAX {
        return Err(Unusable::TooCostly);
    }
    Ok(Crypt::Yescrypt { text, memory_bytes })
}

/// Decimal digits; more of them than fit are as many as there can be.
fn number(digits: &str) -> Result<u32, Unusable> {
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(Unusable::Malformed);
    }
    Ok(digits.parse().unwrap_or(u32::MAX))
}

/// crypt's own base64.
pub(super) fn is_base64(text: &str) -> bool {
    text.bytes()
        .all(|octet| octet.is_ascii_alphanumeric() || octet == b'.' || octet == b'/')
}

#[cfg(test)]
mod tests {
    use super::Crypt;
    use crate::password::Unusable;

    /// Made by crypt(3) of libxcrypt 4.4, by Perl's `crypt`: the stored password, and what it was made from.
    const MADE_BY_LIBXCRYPT: [(&str, &str); 15] = [
        (
            "$y$j9T$LdJMENpBABJJ3hIHjB1Bi.$hd8GXYCBuC3ll0sQLivK72PYWWiBRIZASfxGhCNxha3",
            "hikyaku",
        ),
        (
            "$y$j75$abcdefgh$uXd7PJV/WfPU1JnkNp7yClp78wTE1oEawafWC/7XMC/",
            "hikyaku",
        ),
        (
            "$y$j75$abcdefgh$UWvz.L2ZtmC/AyL.sqcRHO92SKWsiYTpG.igdZcqcj.",
            "päss wörd",
        ),
        (
            "$y$j75$abcdefgh$JGEqEiVnHbTvdr1bbBUB1QDBy3GSym.4hkAthnAJPxB",
            EIGHTY,
        ),
        (
            "$2b$05$abcdefghijklmnopqrstuuLfxTKLPlM1LC3VB8BF4Wu5EzVsrBYXC",
            "hikyaku",
        ),
        (
            "$2a$05$abcdefghijklmnopqrstuuLfxTKLPlM1LC3VB8BF4Wu5EzVsrBYXC",
            "hikyaku",
        ),
        (
            "$2y$05$abcdefghijklmnopqrstuucAlS3LCZL9LcVSWwMtNJG6yF5tEYLy2",
            "päss wörd",
        ),
        (
            "$2b$05$abcdefghijklmnopqrstuujf8SX2ahXLwp9w/B.Y5XdysS6yR576q",
            EIGHTY,
        ),
        (
            "$6$saltstring$E05wLjWK97hfq8heyt9uvGYjjX63Fv9nVdQwi4emM9HKn9hpp8uN21MlQB6LJp.MD1ybhCEGRciGzj7Q1ONh71",
            "hikyaku",
        ),
        (
            "$6$rounds=1400$anotherlongsalts$drMKIGdGyz0amxOMcQp6.li/7QJ3VDzSJ43P4CjBGJj2H9HayPIKr0kowTiJddCFZsxOdAhgeEz/vlLunBp9t0",
            "päss wörd",
        ),
        (
            "$6$saltstring$eKlwYdh2DQgzGVZNTRbDdwNSIU.yzEhS/nALlBafFhL/T/Kf8GRhO5otN52zAGQKa229QbUXUyFPbCMzMf2HX0",
            EIGHTY,
        ),
        (
            "$5$saltstring$r1pG8g27Ividy4EpqKGrcbHsN67PLCyIM3lERtlu7g0",
            "hikyaku",
        ),
        (
            "$5$saltstring$NSEY/G5yPE2VSoJm0XzkVaaqfQbv42P.1FFf6Ph3HgB",
            "päss wörd",
        ),
        (
            "$5$rounds=10000$saltstringsaltst$82Fbxa6P9VdB0fDpkXthXLML88V9WK7YbUKQ7f6ra82",
            "hikyaku",
        ),
        (
            "$5$saltstring$jZdy2gGq0OUSP01AhBb7yOgBitgAZa7g8axx/wgsXj5",
            EIGHTY,
        ),
    ];
    const EIGHTY: &str =
        "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";

    fn verify(stored: &str, password: &[u8]) -> bool {
        Crypt::parse(stored).unwrap().verify(password)
    }

    #[test]
    fn what_crypt_made_is_verified() {
        for (stored, password) in MADE_BY_LIBXCRYPT {
            assert!(verify(stored, password.as_bytes()), "{stored}");
            let mut other = password.as_bytes().to_vec();
            other[0] ^= 1;
            for wrong in [
                &other,
                &b"x"[..],
                b"",
                [password.as_bytes(), b"\0"].concat().as_slice(),
                &[b'x'; 513],
            ] {
                assert!(!verify(stored, wrong), "{stored} {wrong:?}");
            }
            // one bit of what is stored
            let (all, last) = stored.split_at(stored.len() - 2);
            let changed = format!(
                "{all}{}{}",
                if last.starts_with('A') { 'B' } else { 'A' },
                &last[1..]
            );
            assert!(!verify(&changed, password.as_bytes()), "{changed}");
        }
    }

    #[test]
    fn bcrypt_sees_72_octets() {
        let stored = "$2b$05$abcdefghijklmnopqrstuujf8SX2ahXLwp9w/B.Y5XdysS6yR576q";
        assert!(verify(stored, &[b'x'; 72]));
        assert!(!verify(stored, &[b'x'; 71]));
    }

    #[test]
    fn what_is_not_verified_against() {
        let hash43 = "A".repeat(43);
        let hash86 = "A".repeat(86);
        let bcrypt = format!("abcdefghijklmnopqrstuu{}", "A".repeat(31));
        for (stored, why) in [
            ("".to_owned(), Unusable::Scheme),
            ("rqXexS6ZhobKA".to_owned(), Unusable::Scheme),
            (
                "$1$saltsalt$/mR7en0v138n0S4ilQ8EH0".to_owned(),
                Unusable::Scheme,
            ),
            (format!("$2x$05${bcrypt}"), Unusable::Scheme),
            (format!("$gy$j9T$abcdefgh${hash43}"), Unusable::Scheme),
            ("$2b$05$short".to_owned(), Unusable::Malformed),
            (format!("$2b$05${bcrypt}A"), Unusable::Malformed),
            (format!("$2b$05${}é", &bcrypt[..51]), Unusable::Malformed),
            (format!("$2b$+5${bcrypt}"), Unusable::Malformed),
            (format!("$2b$03${bcrypt}"), Unusable::Malformed),
            (format!("$2b$15${bcrypt}"), Unusable::TooCostly),
            (format!("$2b$31${bcrypt}"), Unusable::TooCostly),
            ("$6$salt".to_owned(), Unusable::Malformed),
            ("$6$salt$".to_owned(), Unusable::Malformed),
            (format!("$6$salt${hash43}"), Unusable::Malformed),
            (
                format!("$6$saltsaltsaltsalts${hash86}"),
                Unusable::Malformed,
            ),
            (format!("$6$rounds=x$salt${hash86}"), Unusable::Malformed),
            (format!("$6$rounds=999$salt${hash86}"), Unusable::Malformed),
            (
                format!("$6$rounds=500001$salt${hash86}"),
                Unusable::TooCostly,
            ),
            (
                format!("$5$rounds=99999999999999$salt${hash43}"),
                Unusable::TooCostly,
            ),
            // nothing to compare with is equal to everything
            ("$y$j75$abcdefgh$".to_owned(), Unusable::Malformed),
            (format!("$y$j75${hash43}"), Unusable::Malformed),
            (format!("$y$j75$${hash43}"), Unusable::Malformed),
            (format!("$y$j75$abcde${hash43}"), Unusable::Malformed),
            (format!("$y$$abcdefgh${hash43}"), Unusable::Malformed),
            (
                format!("$y$zzzzzzzzzz$abcdefgh${hash43}"),
                Unusable::Malformed,
            ),
            // too little to be anybody's
            (format!("$y$j65$abcdefgh${hash43}"), Unusable::Malformed),
            (format!("$y$j74$abcdefgh${hash43}"), Unusable::Malformed),
            (format!("$y$j..$abcdefgh${hash43}"), Unusable::Malformed),
            // 512 MiB
            (format!("$y$jET$abcdefgh${hash43}"), Unusable::TooCostly),
            // two lanes
            (format!("$y$j95..$abcdefgh${hash43}"), Unusable::TooCostly),
            // more time
            (format!("$y$j95/.$abcdefgh${hash43}"), Unusable::TooCostly),
        ] {
            assert_eq!(Crypt::parse(&stored).map(drop), Err(why), "{stored}");
        }
        for fits in [
            format!("$2b$14${bcrypt}"),
            format!("$6$rounds=500000$salt${hash86}"),
            format!("$y$jDT$abcdefgh${hash43}"),
        ] {
            assert_eq!(Crypt::parse(&fits).map(drop), Ok(()), "{fits}");
        }
    }
}

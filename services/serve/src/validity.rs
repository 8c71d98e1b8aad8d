//! From when to when a certificate is valid (RFC 5280 section 4.1.2.5): the one thing an operator is to be warned of in time.
//!
//! Whether the certificate is any good otherwise is rustls' business.

use crate::der::{SEQUENCE, any, element, from_issuer, skip};

/// `notBefore` and `notAfter` of the certificate `der`, in seconds since 1970; `None` if this is no certificate.
pub fn of_certificate(der: &[u8]) -> Option<(i64, i64)> {
    let issuer = from_issuer(der)?;
    let (validity, _) = element(skip(issuer)?, SEQUENCE)?;
    let (not_before, rest) = time(validity)?;
    let (not_after, _) = time(rest)?;
    Some((not_before, not_after))
}

/// A `Time`: UTCTime `YYMMDDHHMMSSZ` up to 2049, GeneralizedTime `YYYYMMDDHHMMSSZ` beyond.
fn time(input: &[u8]) -> Option<(i64, &[u8])> {
    const UTC_TIME: u8 = 0x17;
    const GENERALIZED_TIME: u8 = 0x18;
    let (tag, contents, after) = any(input)?;
    let (digits, zone) = contents.split_at_checked(contents.len().checked_sub(1)?)?;
    if zone != b"Z" || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let pairs: Vec<i64> = digits
        .chunks(2)
        .map(|pair| {
            pair.iter()
                .fold(0, |n, digit| n * 10 + i64::from(digit - b'0'))
        })
        .collect();
    let (year, rest) = match (tag, pairs.as_slice()) {
        (UTC_TIME, [year, rest @ ..]) if *year >= 50 => (1900 + year, rest),
        (UTC_TIME, [year, rest @ ..]) => (2000 + year, rest),
        (GENERALIZED_TIME, [century, year, rest @ ..]) => (century * 100 + year, rest),
        _ => return None,
    };
    let &[month, day, hour, minute, second] = rest else {
        return None;
    };
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 {
        return None;
    }
    let seconds = days_since_1970(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second;
    Some((seconds, after))
}

/// Days from 1970-01-01 in the proleptic Gregorian calendar: years begin in March, so that the leap day is the last one.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // days before 1970-01-01 since 0000-03-01
    365 * year + leap_days + (153 * month + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::{days_since_1970, of_certificate};
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    fn certificate(from: (i32, u8, u8), to: (i32, u8, u8)) -> Vec<u8> {
        let mut params = CertificateParams::new(["mail.example.jp".to_owned()]).unwrap();
        params.not_before = date_time_ymd(from.0, from.1, from.2);
        params.not_after = date_time_ymd(to.0, to.1, to.2);
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn both_kinds_of_time_are_read() {
        // by `date -u -d ... +%s`
        let short = certificate((2024, 2, 29), (2026, 11, 24));
        assert_eq!(of_certificate(&short), Some((1_709_164_800, 1_795_478_400)));
        let long = certificate((1975, 1, 1), (4096, 1, 1));
        assert_eq!(of_certificate(&long), Some((157_766_400, 67_090_118_400)));
        assert_eq!(days_since_1970(1970, 1, 1), 0);
        assert_eq!(days_since_1970(2000, 3, 1), 11_017);
    }

    #[test]
    fn nothing_but_a_certificate_has_a_validity() {
        let whole = certificate((2024, 1, 1), (2025, 1, 1));
        for cut in 0..200 {
            assert_eq!(of_certificate(&whole[..cut]), None, "cut at {cut}");
        }
        for at in 0..120 {
            for bit in 0..8 {
                let mut damaged = whole.clone();
                damaged[at] ^= 1 << bit;
                // whatever it says, it says something
                let _ = of_certificate(&damaged);
            }
        }
        assert_eq!(of_certificate(b"-----BEGIN"), None);
    }
}

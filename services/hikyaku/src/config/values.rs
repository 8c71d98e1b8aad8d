//! The kinds of value that a configuration has, and how each is written. A value that is not valid does not exist: what is
//! allowed is said in its place.

use std::time::Duration;

use hikyaku_mail::path::{Mailbox, normal_domain};
use hikyaku_smtp::proxy::Network;
use serde::{Deserialize, Deserializer};

/// A number of octets: a whole number, or text such as `64 MiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl Bytes {
    /// As a size in memory.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// A span of time: text such as `30s`, `10m`, `4h`, `5d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interval(pub Duration);

/// A domain name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain(pub String);

/// A mailbox address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address(pub Mailbox);

#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(u64),
    Text(String),
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        const ALLOWED: &str = "expected a size such as 1048576, \"64 MiB\" or \"2 GiB\"";
        let text = match NumberOrText::deserialize(deserializer)
            .map_err(|_| serde::de::Error::custom(ALLOWED))?
        {
            NumberOrText::Number(number) => return Ok(Bytes(number)),
            NumberOrText::Text(text) => text,
        };
        let digits = text
            .find(|letter: char| !letter.is_ascii_digit())
            .unwrap_or(text.len());
        let unit = match text[digits..].trim() {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1u64 << 40,
            _ => return Err(serde::de::Error::custom(ALLOWED)),
        };
        let number = text[..digits]
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(unit));
        number
            .map(Bytes)
            .ok_or_else(|| serde::de::Error::custom(ALLOWED))
    }
}

impl<'de> Deserialize<'de> for Interval {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Interval, D::Error> {
        const ALLOWED: &str = "expected a time such as \"30s\", \"10m\", \"4h\" or \"5d\"";
        let error = || serde::de::Error::custom(ALLOWED);
        let text = String::deserialize(deserializer).map_err(|_| error())?;
        let digits = text
            .find(|letter: char| !letter.is_ascii_digit())
            .ok_or_else(error)?;
        let unit = match text[digits..].trim() {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86400,
            _ => return Err(error()),
        };
        let number = text[..digits].parse::<u32>().map_err(|_| error())?;
        Ok(Interval(Duration::from_secs(u64::from(number) * unit)))
    }
}

impl<'de> Deserialize<'de> for Domain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Domain, D::Error> {
        let error =
            || serde::de::Error::custom("expected a domain name such as \"mail.example.jp\"");
        let text = String::deserialize(deserializer).map_err(|_| error())?;
        normal_domain(&text).map(Domain).map_err(|_| error())
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Address, D::Error> {
        let error =
            || serde::de::Error::custom("expected an address such as \"postmaster@example.jp\"");
        let text = String::deserialize(deserializer).map_err(|_| error())?;
        text.parse().map(Address).map_err(|_| error())
    }
}

/// A network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Net(pub Network);

impl<'de> Deserialize<'de> for Net {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Net, D::Error> {
        let error = || serde::de::Error::custom("expected a network such as \"192.0.2.0/24\"");
        let text = String::deserialize(deserializer).map_err(|_| error())?;
        text.parse().map(Net).map_err(|_| error())
    }
}

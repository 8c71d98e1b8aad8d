//! Which addresses are listened on, and which of them go together.
//!
//! `[::]` takes IPv4 too, unless an IPv4 address has the same port: then it takes IPv6 alone, and
//! both are listened on.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use crate::config::Config;

/// Every address with the key that names it. An IPv4 address written as an IPv6 one is an IPv4
/// address.
pub fn listeners(config: &Config) -> impl Iterator<Item = (&'static str, SocketAddr)> {
    let (smtp, pop3) = (&config.smtp, &config.pop3);
    let lists: [(&str, &[SocketAddr]); 5] = [
        ("smtp.listen", &smtp.listen),
        ("smtp.listen_tls", smtp.listen_tls.get_ref()),
        ("pop3.listen", &pop3.listen),
        ("pop3.listen_tls", pop3.listen_tls.get_ref()),
        (
            "telemetry.metrics_listen",
            config.telemetry.metrics_listen.as_slice(),
        ),
    ];
    lists
        .into_iter()
        .flat_map(|(key, list)| list.iter().map(move |&address| (key, canonical(address))))
}

/// `address`, as an IPv4 one if it is one.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(ip.into(), address.port()),
        // with its zone
        IpAddr::V6(_) => address,
    }
}

/// Whether `address`, which is a wildcard of IPv6, must leave IPv4 to another listener.
pub fn leaves_ipv4(config: &Config, address: SocketAddr) -> bool {
    listeners(config).any(|(_, other)| other.is_ipv4() && other.port() == address.port())
}

/// What cannot be listened on at once, one line each.
pub fn conflicts(config: &Config) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut seen: BTreeMap<SocketAddr, &str> = BTreeMap::new();
    // by family and port
    let mut wildcards = BTreeMap::new();
    let mut single = BTreeMap::new();
    // port 0 is any free one
    for (key, listener) in listeners(config).filter(|(_, listener)| listener.port() != 0) {
        if let Some(other) = seen.insert(listener, key) {
            wrong.push(format!("{key}: {listener} is in {other} already"));
            continue;
        }
        let place = (listener.is_ipv4(), listener.port());
        let (own, others) = match listener.ip().is_unspecified() {
            true => (&mut wildcards, &mut single),
            false => (&mut single, &mut wildcards),
        };
        own.entry(place).or_insert((key, listener));
        if let Some((other_key, other)) = others.get(&place) {
            let wildcard = if listener.ip().is_unspecified() {
                listener
            } else {
                *other
            };
            wrong.push(format!(
                "{key}: {listener} overlaps with {other} in {other_key}; write single addresses in the place of {wildcard}"
            ));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{conflicts, leaves_ipv4};
    use crate::config::Config;

    fn config(smtp: &str, pop3: &str) -> Result<Config, String> {
        let text = format!(
            "[mbox.a]\nshards = [0]\n[smtp]\nlisten = [{smtp}]\n[pop3]\nlisten = [{pop3}]\n"
        );
        let config = Config::parse(Path::new("x.toml"), &text);
        config.map_err(|problems| problems[0].to_string())
    }

    #[test]
    fn both_families_share_a_port() {
        let both = config(r#""0.0.0.0:25", "[::]:25""#, r#""[::]:110""#).unwrap();
        assert!(conflicts(&both).is_empty());
        let wildcard = |port: u16| format!("[::]:{port}").parse().unwrap();
        assert!(leaves_ipv4(&both, wildcard(25)));
        assert!(!leaves_ipv4(&both, wildcard(110)), "alone it takes both");
        for (smtp, pop3) in [
            (r#""[::]:25""#, r#""127.0.0.1:25""#),
            (r#""[::1]:25", "0.0.0.0:25""#, ""),
            (r#""127.0.0.1:0", "127.0.0.1:0""#, r#""0.0.0.0:0""#),
            (r#""[fe80::1%1]:25", "[fe80::1%2]:25""#, ""),
        ] {
            assert_eq!(config(smtp, pop3).err(), None, "{smtp} {pop3}");
        }
    }

    #[test]
    fn what_cannot_be_is_said_with_both_keys_and_what_to_write() {
        let cases = [
            (
                r#""127.0.0.1:25", "127.0.0.1:25""#,
                "",
                "x.toml:4: smtp.listen: 127.0.0.1:25 is in smtp.listen already",
            ),
            (
                r#""127.0.0.1:25""#,
                r#""[::ffff:127.0.0.1]:25""#,
                "x.toml:6: pop3.listen: 127.0.0.1:25 is in smtp.listen already",
            ),
            (
                r#""0.0.0.0:25""#,
                r#""127.0.0.1:25""#,
                "x.toml:6: pop3.listen: 127.0.0.1:25 overlaps with 0.0.0.0:25 in smtp.listen; \
                 write single addresses in the place of 0.0.0.0:25",
            ),
            (
                r#""[::1]:25""#,
                r#""[::]:25""#,
                "x.toml:6: pop3.listen: [::]:25 overlaps with [::1]:25 in smtp.listen; \
                 write single addresses in the place of [::]:25",
            ),
        ];
        for (smtp, pop3, why) in cases {
            assert_eq!(config(smtp, pop3).err().as_deref(), Some(why));
        }
    }
}

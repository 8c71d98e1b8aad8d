//! The PROXY protocol, versions 1 and 2: what a load balancer says about the client before the client's own first octet.
//!
//! A listener either demands it or does not know it. Where it is demanded it counts only from the networks listed; anybody
//! else, and a header that is malformed, too long, too late or of another kind of socket, is disconnected without a word.
//! The address goes into limits, log lines and Received like any other. It is never a reason to trust: an address is what
//! somebody says. Next: TLS if the listener is an implicit one, then [`crate::server`].

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use proxy_header::{ParseConfig, Protocol, ProxyHeader};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

const V1_START: &[u8] = b"PROXY ";
const V1_BYTES_MAX: usize = 107;
const V2_START: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Start, version and command, family and transport, length.
const V2_FIXED_BYTES: usize = 16;
const V2_CHECKSUM: u8 = 0x03;

/// Who may say PROXY, and how.
#[derive(Clone, Debug)]
pub struct ProxyOptions {
    /// The load balancers.
    pub networks: Vec<Network>,
    /// For the whole header to arrive.
    pub header_timeout: Duration,
    /// Octets of a header of version 2 with everything attached to it.
    pub header_bytes_max: usize,
}

impl ProxyOptions {
    /// The documented defaults for the load balancers in `networks`.
    pub fn new(networks: Vec<Network>) -> ProxyOptions {
        ProxyOptions {
            networks,
            header_timeout: Duration::from_secs(3),
            header_bytes_max: 4096,
        }
    }
}

/// Addresses that begin with the same bits: `192.0.2.0/24`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u32,
}

impl Network {
    /// Whether `address` is in it. An IPv4 address mapped into IPv6 is the IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        fn same(left: u128, right: u128, width: u32, bits: u32) -> bool {
            let ignored = width - bits;
            (left ^ right).checked_shr(ignored).unwrap_or(0) == 0
        }
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => same(
                u128::from(ours.to_bits()),
                u128::from(theirs.to_bits()),
                32,
                self.bits,
            ),
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => {
                same(ours.to_bits(), theirs.to_bits(), 128, self.bits)
            }
            _ => false,
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// Text is no network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotANetwork;

impl FromStr for Network {
    type Err = NotANetwork;

    fn from_str(text: &str) -> Result<Network, NotANetwork> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) if bits.bytes().all(|byte| byte.is_ascii_digit()) => {
                (address, Some(bits.parse().map_err(|_| NotANetwork)?))
            }
            Some(_) => return Err(NotANetwork),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| NotANetwork)?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(width);
        if bits > width {
            return Err(NotANetwork);
        }
        Ok(Network { address, bits })
    }
}

/// Why a connection is closed without a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyError {
    /// It does not come from a load balancer.
    Untrusted,
    /// No header came, or not all of it.
    Missing,
    /// Something else came, or a header that makes no sense.
    Malformed,
}

impl fmt::Display for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ProxyError::Untrusted => "not from a network that may say PROXY",
            ProxyError::Missing => "no PROXY header came",
            ProxyError::Malformed => "malformed PROXY header",
        })
    }
}

/// Takes the header off the front of `stream`, which `balancer` has opened: the client's address, or the balancer's own where
/// it speaks for itself (its health checks).
///
/// # Errors
/// The connection must be closed.
pub async fn client_address<S: AsyncRead + Unpin>(
    stream: &mut S,
    balancer: SocketAddr,
    options: &ProxyOptions,
) -> Result<SocketAddr, ProxyError> {
    let is_trusted = |network: &Network| network.contains(balancer.ip());
    if !options.networks.iter().any(is_trusted) {
        return Err(ProxyError::Untrusted);
    }
    let read = read_header(stream, options.header_bytes_max);
    let header = match timeout(options.header_timeout, read).await {
        Ok(header) => header?,
        Err(_) => return Err(ProxyError::Missing),
    };
    match parse(&header)? {
        Some(client) => Ok(SocketAddr::new(client.ip().to_canonical(), client.port())),
        None => Ok(balancer),
    }
}

/// Exactly the header: what follows is the client's, or TLS.
async fn read_header<S: AsyncRead + Unpin>(
    stream: &mut S,
    bytes_max: usize,
) -> Result<Vec<u8>, ProxyError> {
    let mut header = vec![0; V2_START.len()];
    read(stream, &mut header).await?;
    if header == V2_START {
        header.resize(V2_FIXED_BYTES, 0);
        read(stream, header.split_at_mut(V2_START.len()).1).await?;
        let length = match header.as_slice() {
            [.., high, low] => usize::from(u16::from_be_bytes([*high, *low])),
            _ => return Err(ProxyError::Malformed),
        };
        if V2_FIXED_BYTES + length > bytes_max {
            return Err(ProxyError::Malformed);
        }
        header.resize(V2_FIXED_BYTES + length, 0);
        read(stream, header.split_at_mut(V2_FIXED_BYTES).1).await?;
        return Ok(header);
    }
    if !header.starts_with(V1_START) {
        return Err(ProxyError::Malformed);
    }
    // not one octet too many may be read
    while !header.ends_with(b"\r\n") {
        if header.len() == V1_BYTES_MAX {
            return Err(ProxyError::Malformed);
        }
        let mut octet = [0];
        read(stream, &mut octet).await?;
        header.extend_from_slice(&octet);
    }
    Ok(header)
}

async fn read<S: AsyncRead + Unpin>(stream: &mut S, into: &mut [u8]) -> Result<(), ProxyError> {
    match stream.read_exact(into).await {
        Ok(_) => Ok(()),
        Err(_) => Err(ProxyError::Missing),
    }
}

/// The client's address; `None` where the balancer speaks for itself or does not know.
fn parse(header: &[u8]) -> Result<Option<SocketAddr>, ProxyError> {
    const AF_UNIX: u8 = 0x30;
    let config = ParseConfig {
        include_tlvs: true,
        ..ParseConfig::default()
    };
    let (parsed, length) = ProxyHeader::parse(header, config).map_err(|_| ProxyError::Malformed)?;
    let is_v2 = header.starts_with(V2_START);
    let is_unix = is_v2
        && header
            .get(13)
            .is_some_and(|family| family & 0xf0 == AF_UNIX);
    // the parser takes any word that begins like this one
    let unknown = header.strip_prefix(b"PROXY UNKNOWN");
    let is_other_word = unknown.is_some_and(|rest| !rest.starts_with(b" ") && rest != b"\r\n");
    if length != header.len()
        || is_unix
        || is_other_word
        || (is_v2 && !checksum_holds(header, &parsed))
    {
        return Err(ProxyError::Malformed);
    }
    match parsed.proxied_address() {
        None => Ok(None),
        Some(address) if address.protocol == Protocol::Stream => Ok(Some(address.source)),
        Some(_) => Err(ProxyError::Malformed),
    }
}

/// The checksum of version 2 covers the header with the checksum's own value as zeros. Without one there is nothing to hold.
fn checksum_holds(header: &[u8], parsed: &ProxyHeader<'_>) -> bool {
    let mut rest = match header.get(13).map(|family| family & 0xf0) {
        Some(0x10) => V2_FIXED_BYTES + 12,
        Some(0x20) => V2_FIXED_BYTES + 36,
        _ => V2_FIXED_BYTES,
    };
    while let Some(&[kind, high, low]) = header.get(rest..rest + 3) {
        let value = rest + 3;
        let end = value + usize::from(u16::from_be_bytes([high, low]));
        let Some(bytes) = header.get(value..end) else {
            return false;
        };
        if kind == V2_CHECKSUM {
            let mut zeroed = header.to_vec();
            if let Some(own) = zeroed.get_mut(value..end) {
                own.fill(0);
            }
            return bytes == crc32c::crc32c(&zeroed).to_be_bytes().as_slice();
        }
        rest = end;
    }
    rest == header.len() && parsed.crc32c().is_none()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use proxy_header::{ProxiedAddress, ProxyHeader, Tlv};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::{Network, ProxyError, ProxyOptions, V2_START, client_address};

    const BALANCER: &str = "192.0.2.10:999";

    fn options() -> ProxyOptions {
        ProxyOptions::new(vec![
            "192.0.2.0/28".parse().unwrap(),
            "2001:db8::/32".parse().unwrap(),
        ])
    }

    async fn from(balancer: &str, sent: &[u8]) -> Result<String, ProxyError> {
        let (mut client, mut server) = tokio::io::duplex(100_000);
        client.write_all(sent).await.unwrap();
        client.write_all(b"EHLO").await.unwrap();
        client.shutdown().await.unwrap();
        let address = client_address(&mut server, balancer.parse().unwrap(), &options()).await?;
        let mut rest = String::new();
        server.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "EHLO", "octets of the client were taken");
        Ok(address.to_string())
    }

    fn v2(source: &str, destination: &str, more: &[Tlv<'_>]) -> Vec<u8> {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let proxied = ProxiedAddress::stream(address(source), address(destination));
        let mut header = ProxyHeader::with_address(proxied);
        for tlv in more {
            header.append_tlv(tlv.clone());
        }
        let mut bytes = Vec::new();
        header.encode_v2(&mut bytes).unwrap();
        bytes
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_balancer_says() {
        for (sent, address) in [
            (
                "PROXY TCP4 198.51.100.7 192.0.2.1 5000 25\r\n",
                "198.51.100.7:5000",
            ),
            (
                "PROXY TCP6 2001:db8::7 2001:db8::1 5000 25\r\n",
                "[2001:db8::7]:5000",
            ),
            (
                "PROXY TCP6 ::ffff:10.0.0.1 ::1 5000 25\r\n",
                "10.0.0.1:5000",
            ),
            ("PROXY UNKNOWN\r\n", BALANCER),
            ("PROXY UNKNOWN ff:: :: 1 2\r\n", BALANCER),
        ] {
            assert_eq!(
                from(BALANCER, sent.as_bytes()).await.as_deref(),
                Ok(address),
                "{sent:?}"
            );
        }
        let header = v2("198.51.100.7:5000", "192.0.2.1:25", &[]);
        assert_eq!(
            from(BALANCER, &header).await.as_deref(),
            Ok("198.51.100.7:5000")
        );
        assert_eq!(
            from("[2001:db8:1::1]:9", &header).await.as_deref(),
            Ok("198.51.100.7:5000")
        );
        assert_eq!(
            from("[::ffff:192.0.2.10]:9", &header).await.as_deref(),
            Ok("198.51.100.7:5000")
        );
        let mut local = v2("198.51.100.7:5000", "192.0.2.1:25", &[]);
        local[12] = 0x20;
        assert_eq!(from(BALANCER, &local).await.as_deref(), Ok(BALANCER));
    }

    #[tokio::test(start_paused = true)]
    async fn a_checksum_that_is_there_must_hold() {
        let plain = v2(
            "198.51.100.7:5000",
            "192.0.2.1:25",
            &[Tlv::Noop(2), Tlv::Crc32c(0)],
        );
        let sum = crc32c::crc32c(&plain);
        let right = v2(
            "198.51.100.7:5000",
            "192.0.2.1:25",
            &[Tlv::Noop(2), Tlv::Crc32c(sum)],
        );
        assert!(from(BALANCER, &right).await.is_ok());
        let wrong = v2(
            "198.51.100.7:5000",
            "192.0.2.1:25",
            &[Tlv::Noop(2), Tlv::Crc32c(sum ^ 1)],
        );
        assert_eq!(from(BALANCER, &wrong).await, Err(ProxyError::Malformed));
    }

    #[tokio::test(start_paused = true)]
    async fn anybody_else_and_anything_else_is_refused() {
        // B-230
        for stranger in [
            "192.0.2.16:999",
            "[2001:db9::1]:9",
            "127.0.0.1:9",
            "[::ffff:192.0.2.99]:9",
        ] {
            let sent = b"PROXY TCP4 198.51.100.7 192.0.2.1 5000 25\r\n";
            assert_eq!(
                from(stranger, sent).await,
                Err(ProxyError::Untrusted),
                "{stranger}"
            );
        }
        // B-231
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(100));
        for sent in [
            "EHLO client.example.com\r\n",
            "PROXY TCP4 198.51.100.7 192.0.2.1 5000\r\n",
            "PROXY TCP4 2001:db8::7 2001:db8::1 5000 25\r\n",
            "PROXY TCP4 198.51.100.7 192.0.2.1 70000 25\r\n",
            "PROXY TCP5 198.51.100.7 192.0.2.1 5000 25\r\n",
            "PROXY UNKNOWNS 198.51.100.7 192.0.2.1 5000 25\r\n",
            "PROXY\tTCP4 198.51.100.7 192.0.2.1 5000 25\r\n",
            "\x16\x03\x01\x02\0\x01\0\x01\x7c\x03\x03\0\0\0\0",
            &long,
        ] {
            assert_eq!(
                from(BALANCER, sent.as_bytes()).await,
                Err(ProxyError::Malformed),
                "{sent:?}"
            );
        }
        let whole = v2("198.51.100.7:5000", "192.0.2.1:25", &[]);
        // version, command, family, transport, length
        for (at, value) in [
            (12, 0x11),
            (12, 0x22),
            (13, 0x12),
            (13, 0x31),
            (13, 0x21),
            (13, 0x41),
            (14, 0xff),
            (15, 4),
        ] {
            let mut header = whole.clone();
            header[at] = value;
            // an AF_UNIX header has 216 octets of addresses
            if value == 0x31 {
                header[15] = 216;
                header.resize(16 + 216, 0);
            }
            let refused = from(BALANCER, &header).await;
            assert!(
                matches!(refused, Err(ProxyError::Malformed | ProxyError::Missing)),
                "{at} {value}: {refused:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_comes_soon_or_never() {
        for sent in [&b""[..], b"PROXY TCP4 198.51.100.7 ", V2_START] {
            let (mut client, mut server) = tokio::io::duplex(1000);
            client.write_all(sent).await.unwrap();
            let began = tokio::time::Instant::now();
            let address = client_address(&mut server, BALANCER.parse().unwrap(), &options()).await;
            assert_eq!(
                (address, began.elapsed()),
                (Err(ProxyError::Missing), Duration::from_secs(3))
            );
        }
    }

    #[test]
    fn networks() {
        let contains = |network: &str, address: &str| {
            network
                .parse::<Network>()
                .unwrap()
                .contains(address.parse().unwrap())
        };
        assert!(contains("0.0.0.0/0", "255.1.2.3"));
        assert!(contains("10.0.0.0/8", "10.255.0.1") && !contains("10.0.0.0/8", "11.0.0.1"));
        assert!(contains("10.1.2.3", "10.1.2.3") && !contains("10.1.2.3", "10.1.2.2"));
        assert!(contains("::/0", "2001:db8::1") && !contains("::/0", "10.0.0.1"));
        assert!(contains("10.0.0.0/8", "::ffff:10.0.0.1"));
        assert!(!contains("2001:db8::/127", "2001:db8::2"));
        for text in [
            "",
            "10.0.0.0/33",
            "10.0.0/8",
            "::/129",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "x/8",
        ] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
        assert_eq!(
            "10.0.0.0/8".parse::<Network>().unwrap().to_string(),
            "10.0.0.0/8"
        );
    }
}

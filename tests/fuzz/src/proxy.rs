//! The PROXY header in front of a connection: exactly its octets are taken, whatever comes after and in whatever pieces, and the
//! address is the one it names.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::FutureExt as _;
use hikyaku_smtp::proxy::{ProxyError, ProxyOptions, client_address};
use tokio::io::{AsyncRead, ReadBuf};

use crate::input::pieces;
use crate::memory::bounded;

/// A stream that gives its octets in pieces and then ends.
struct Peer<'a> {
    pieces: Vec<&'a [u8]>,
}

impl AsyncRead for Peer<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if let Some(piece) = self.pieces.first_mut() {
            let (given, left) = piece.split_at(piece.len().min(into.remaining()));
            into.put_slice(given);
            *piece = left;
            if left.is_empty() {
                self.pieces.remove(0);
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// The first octet chooses the pieces; the rest is what the balancer sends.
pub fn run(data: &[u8]) {
    let [how, stream @ ..] = data else { return };
    let (found, left) = read(0, stream);
    assert_eq!(read(*how, stream), (found, left));
    if let Ok(found) = found {
        let header = &stream[..stream.len() - left];
        assert_eq!(expected(header), Some(found), "{header:?}");
        // and nothing shorter is a header
        let shorter = &header[..header.len() - 1];
        assert_eq!(read(0, shorter).0, Err(ProxyError::Missing));
    }
}

fn balancer() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 40_000))
}

/// What comes of the stream, and how much is left of it.
fn read(how: u8, stream: &[u8]) -> (Result<SocketAddr, ProxyError>, usize) {
    let Ok(network) = "192.0.2.0/24".parse() else {
        panic!("it is a network");
    };
    let options = ProxyOptions::new(vec![network]);
    let mut peer = Peer {
        pieces: pieces(how, stream),
    };
    let found = bounded(options.header_bytes_max, 8, || {
        RUNTIME.with(|runtime| {
            let _entered = runtime.enter();
            client_address(&mut peer, balancer(), &options).now_or_never()
        })
    });
    let Some(found) = found else {
        panic!("a stream that always answers is not waited for");
    };
    (found, peer.pieces.iter().map(|piece| piece.len()).sum())
}

thread_local! {
    /// For the clock of the deadline, which never comes.
    static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap_or_else(|error| panic!("{error}"));
}

/// The address in a header that was taken, read by the specification's tables.
fn expected(header: &[u8]) -> Option<SocketAddr> {
    if let Some(text) = header.strip_prefix(b"PROXY ") {
        let text = text.strip_suffix(b"\r\n")?;
        // whatever follows is to be ignored
        if text == b"UNKNOWN" || text.starts_with(b"UNKNOWN ") {
            return Some(balancer());
        }
        let words: Vec<&str> = std::str::from_utf8(text).ok()?.split(' ').collect();
        let [kind, source, _, port, _] = words[..] else {
            return None;
        };
        let address: IpAddr = source.parse().ok()?;
        let fits = address.is_ipv4() == (kind == "TCP4") && address.is_ipv6() == (kind == "TCP6");
        return fits.then_some(SocketAddr::new(address.to_canonical(), port.parse().ok()?));
    }
    let (start, rest) = header.split_at_checked(12)?;
    let [version_and_command, family, high, low, addresses @ ..] = rest else {
        return None;
    };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    if start != b"\r\n\r\n\0\r\nQUIT\n" || addresses.len() != length {
        return None;
    }
    match (version_and_command, family) {
        (0x20, _) => Some(balancer()),
        (0x21, 0x00) => Some(balancer()),
        (0x21, 0x11) => {
            let ip: [u8; 4] = addresses.get(..4)?.try_into().ok()?;
            let port = u16::from_be_bytes(addresses.get(8..10)?.try_into().ok()?);
            Some(SocketAddr::from((ip, port)))
        }
        (0x21, 0x21) => {
            let ip: [u8; 16] = addresses.get(..16)?.try_into().ok()?;
            let port = u16::from_be_bytes(addresses.get(32..34)?.try_into().ok()?);
            Some(SocketAddr::new(IpAddr::from(ip).to_canonical(), port))
        }
        _ => None,
    }
}

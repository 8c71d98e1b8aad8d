//! Does the server that is watched hold the listener that is measured? Costs of another process, such as a shell around
//! the server or the server of yesterday, would be small and wrong. Linux only.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::ensure;

/// The state of a listening socket in `/proc/net/tcp` (`TCP_LISTEN`).
const LISTENING: &str = "0A";

/// Refuses processes none of which listens on `address`. Where that cannot be seen, because the sockets of some are not
/// shown to us or the listener is in another network namespace, nothing is refused.
pub(crate) fn check(processes: &[u32], address: SocketAddr) -> anyhow::Result<()> {
    let inodes = listening(address);
    let mut seen = !inodes.is_empty();
    for pid in processes {
        match holds(*pid, &inodes) {
            Some(true) => return Ok(()),
            Some(false) => {}
            None => seen = false,
        }
    }
    ensure!(
        !seen,
        "none of the processes watched listens on {address}: their costs would be somebody else's"
    );
    Ok(())
}

/// The inodes of the sockets that listen on `address`, or on its port of every address.
fn listening(address: SocketAddr) -> BTreeSet<u64> {
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .into_iter()
        .filter_map(|table| std::fs::read_to_string(table).ok())
        .flat_map(|table| inodes(&table, address))
        .collect()
}

/// proc(5): the columns are number, local address, remote address, state, ..., and as tenth the inode.
fn inodes(table: &str, address: SocketAddr) -> Vec<u64> {
    let listens = |line: &str| -> Option<u64> {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let local = socket(columns.get(1)?)?;
        let here = local.ip() == address.ip() || local.ip().is_unspecified();
        let listens = columns.get(3) == Some(&LISTENING);
        (listens && here && local.port() == address.port())
            .then(|| columns.get(9)?.parse().ok())
            .flatten()
    };
    table.lines().skip(1).filter_map(listens).collect()
}

/// `0100007F:1F90`, or four such words for IPv6: each word is in the machine's own order of bytes.
fn socket(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let bytes: Vec<u8> = (0..ip.len() / 8)
        .map(|word| u32::from_str_radix(ip.get(word * 8..word * 8 + 8)?, 16).ok())
        .collect::<Option<Vec<u32>>>()?
        .into_iter()
        .flat_map(u32::to_ne_bytes)
        .collect();
    let ip = match bytes.len() {
        4 => IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

/// Whether a process has one of these sockets open; nothing when it may not be asked. One that is gone has none.
fn holds(pid: u32, inodes: &BTreeSet<u64>) -> Option<bool> {
    let open = match std::fs::read_dir(format!("/proc/{pid}/fd")) {
        Ok(open) => open,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Some(false),
        Err(_) => return None,
    };
    let held = open.flatten().any(|entry| {
        let Ok(target) = std::fs::read_link(entry.path()) else {
            return false;
        };
        target
            .to_str()
            .and_then(|name| name.strip_prefix("socket:[")?.strip_suffix(']'))
            .and_then(|inode| inode.parse().ok())
            .is_some_and(|inode: u64| inodes.contains(&inode))
    });
    Some(held)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn only_who_holds_the_listener_is_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut sleeping = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let own = std::process::id();
        let other = check(&[sleeping.id()], address);
        let both = check(&[sleeping.id(), own], address);
        sleeping.kill().unwrap();
        sleeping.wait().unwrap();
        assert!(other.unwrap_err().to_string().contains("none of"));
        both.unwrap();
        check(&[own], address).unwrap();
        // a listener that nobody can see is no proof against anybody
        drop(listener);
        check(&[own], address).unwrap();
    }

    #[test]
    fn every_address_of_a_port_counts() {
        for bound in ["0.0.0.0:0", "[::]:0"] {
            let listener = TcpListener::bind(bound).unwrap();
            let port = listener.local_addr().unwrap().port();
            assert_eq!(
                listening(SocketAddr::from(([127, 0, 0, 1], port))).len(),
                1,
                "{bound}"
            );
        }
    }
}

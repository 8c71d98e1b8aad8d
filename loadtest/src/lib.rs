//! A mail client that keeps books: it sends by SMTP, reads by POP3, and proves that every acknowledged message is in
//! a mailbox exactly once.
//!
//! It stands outside the system under test: its own process, the two protocols, what the kernel says about the server's
//! processes, and no library shared with the server. That the server is killed and restarted under it is the normal
//! case, so what is known about an attempt is written to a ledger at the moment it becomes known. It refuses to talk to
//! anything but loopback.
//!
//! # Layout, in the order one message sees it
//! * [`users`]: who may send and read; makes a directory for tests
//! * [`size`]: how big messages are
//! * `schedule`: which message is next, and when it is due
//! * `letter`: what that message is like
//! * [`message`]: headers and body from an attempt id; dot-stuffing
//! * [`net`]: a connection, in the clear or under TLS
//! * [`smtp`]: one client session, which knows exactly how far a transaction came
//! * [`ledger`]: what was tried and what the server said, on disk
//! * [`run`], [`load`]: many sessions, closed or open loop
//! * [`pop3`]: reads a maildrop
//! * [`inspect`]: what a retrieved mail is: a copy, a DSN, or something nobody sent
//! * [`equation`]: how many copies each outcome allows
//! * [`maildrops`], [`verify`]: reads all mailboxes until the equation holds or time is up, and judges
//!
//! # What a run makes of it
//! * [`server`], `listener`, `strace`: what the server's processes take
//! * [`machine`]: what it was measured on
//! * [`watched`]: load, with the server watched until it is idle again
//! * [`readable`]: the same, then wait until all can be read, and verify
//! * [`drain`]: retrieve and delete, by POP3
//! * [`saturation`], `plot`, `axis`: one loop after the other at rising rates and with more sessions, and a picture of it
//! * [`report`], `tally`, [`histogram`]: figures, with the conditions they were taken under
// outside the system under test: the machine's own clock is the one that counts
#![allow(clippy::disallowed_methods)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

use std::net::{SocketAddr, ToSocketAddrs};

use anyhow::{Context, bail};

mod axis;
pub mod drain;
pub mod equation;
pub mod histogram;
pub mod inspect;
pub mod ledger;
mod letter;
mod listener;
pub mod load;
pub mod machine;
pub mod maildrops;
pub mod message;
pub mod net;
mod plot;
pub mod pop3;
mod progress;
pub mod random;
pub mod readable;
pub mod report;
pub mod run;
pub mod saturation;
mod schedule;
pub mod server;
pub mod size;
pub mod smtp;
mod strace;
mod tally;
pub mod users;
pub mod verify;
pub mod watched;

/// The address `host_port` names, if every address it resolves to is loopback. A load generator aimed at somebody
/// else's server by a typing error is an attack.
pub fn loopback(host_port: &str) -> anyhow::Result<SocketAddr> {
    let addresses: Vec<SocketAddr> = host_port
        .to_socket_addrs()
        .with_context(|| format!("{host_port} is not HOST:PORT"))?
        .collect();
    if let Some(foreign) = addresses.iter().find(|a| !a.ip().is_loopback()) {
        bail!(
            "{host_port} resolves to {}, which is not loopback: refused",
            foreign.ip()
        );
    }
    // The server's listeners are IPv4 by default and `localhost` often resolves to ::1 first.
    addresses
        .iter()
        .find(|a| a.is_ipv4())
        .or_else(|| addresses.first())
        .copied()
        .with_context(|| format!("{host_port} has no address"))
}

/// Unix milliseconds by the wall clock.
pub(crate) fn now_ms() -> u64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::loopback;

    #[test]
    fn only_loopback_is_accepted() {
        assert!(loopback("127.0.0.1:25").is_ok());
        assert!(loopback("127.9.9.9:25").is_ok());
        assert!(loopback("[::1]:25").is_ok());
        assert!(
            loopback("192.0.2.1:25")
                .unwrap_err()
                .to_string()
                .contains("not loopback")
        );
        assert!(loopback("[2001:db8::1]:25").is_err());
        assert!(loopback("0.0.0.0:25").is_err());
        assert!(loopback("127.0.0.1").is_err());
    }
}

//! Accept loops: a limit on connections in all and per source, which may change while they run; a
//! word to those over the limit of their source; a pause when the system is out of descriptors.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::metrics;
use crate::sparing::Sparing;
use crate::tasks::Tasks;

/// How often it is said that there is no room for connections.
const FULL_LINE_EVERY: Duration = Duration::from_secs(60);

/// How many connections the listeners of one service hold together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenLimits {
    /// Connections at once; the next ones wait in the system's backlog.
    pub connections_max: usize,
    /// Connections at once from one source, which is an IPv4 address or an IPv6 /64; more are told
    /// so and closed at once.
    pub connections_per_source_max: usize,
}

/// Counts the connections of one service and holds them to limits that may change. Clones share it.
#[derive(Clone, Debug)]
pub struct Gate(Arc<GateState>);

#[derive(Debug)]
struct GateState {
    counts: Mutex<Counts>,
    /// A place has become free, or there are more.
    room: Notify,
}

#[derive(Debug)]
struct Counts {
    limits: ListenLimits,
    open: usize,
    sources: BTreeMap<IpAddr, usize>,
}

impl From<ListenLimits> for Gate {
    fn from(limits: ListenLimits) -> Gate {
        Gate(Arc::new(GateState {
            counts: Mutex::new(Counts {
                limits,
                open: 0,
                sources: BTreeMap::new(),
            }),
            room: Notify::new(),
        }))
    }
}

impl Gate {
    /// Holds new connections to `limits`; those that are there stay.
    pub fn set_limits(&self, limits: ListenLimits) {
        self.counts().limits = limits;
        self.0.room.notify_waiters();
    }

    /// Connections there are.
    pub fn open(&self) -> usize {
        self.counts().open
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is room for one more. Calls `full` with the limit whenever there is none.
    async fn room(&self, full: impl Fn(usize)) {
        loop {
            let mut freed = pin!(self.0.room.notified());
            freed.as_mut().enable();
            let connections_max = {
                let counts = self.counts();
                if counts.open < counts.limits.connections_max {
                    return;
                }
                counts.limits.connections_max
            };
            full(connections_max);
            freed.await;
        }
    }

    /// A place for one more connection of `source`, unless it has too many: for whoever learns the source later than the
    /// accept loop, which waits for room in all.
    pub fn admit(&self, source: IpAddr) -> Option<Admission> {
        let source = source_of(source);
        let mut counts = self.counts();
        let max = counts.limits.connections_per_source_max;
        let count = counts.sources.get(&source).copied().unwrap_or(0);
        if count >= max {
            return None;
        }
        counts.sources.insert(source, count + 1);
        counts.open += 1;
        drop(counts);
        Some(Admission {
            gate: self.clone(),
            source,
        })
    }
}

/// What counts as one source: an IPv4 address, also one that came over a socket for both, or a /64, all of which whoever has
/// one IPv6 address usually has.
pub fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 => v4,
    }
}

/// One accepted connection and its place under the limits, given back when dropped.
#[derive(Debug)]
pub struct Admission {
    gate: Gate,
    source: IpAddr,
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut counts = self.gate.counts();
        counts.open = counts.open.saturating_sub(1);
        if let Some(count) = counts.sources.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                counts.sources.remove(&self.source);
            }
        }
        drop(counts);
        self.gate.0.room.notify_waiters();
    }
}

/// Accepts on `listener` until the node drains; each connection runs `serve` in a task of its own.
///
/// `serve` gets the stream, the peer's address and the admission to hold until the connection ends.
pub fn accept_loop<S, F>(
    tasks: &Tasks,
    name: &'static str,
    listener: TcpListener,
    limits: impl Into<Gate>,
    serve: S,
) where
    S: Fn(TcpStream, SocketAddr) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let connection_tasks = tasks.clone();
    let draining = tasks.draining();
    let (taken, refused) = labels(name);
    let gate = limits.into();
    let sparing = Sparing::default();
    let full_lines = Sparing::new(1, FULL_LINE_EVERY);
    let full = move |connections_max| {
        if let Some(left_out) = full_lines.line() {
            tracing::warn!(
                listener = name,
                connections_max,
                left_out,
                "as many connections as there may be: new ones wait"
            );
        }
    };
    tasks.spawn(name, async move {
        loop {
            let next = async {
                gate.room(&full).await;
                listener.accept().await
            };
            let accepted = tokio::select! {
                biased;
                () = draining.cancelled() => return,
                next = next => next,
            };
            let (stream, peer) = match accepted {
                // one spelling of an address, whatever socket it came over
                Ok((stream, peer)) => (stream, SocketAddr::new(peer.ip().to_canonical(), peer.port())),
                Err(error) => {
                    // out of descriptors or memory: spinning would not make any
                    tracing::warn!(listener = name, %error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Some(admission) = gate.admit(peer.ip()) else {
                metrics::CONNECTIONS.count(refused);
                turn_away(stream, name);
                if let Some(left_out) = sparing.line() {
                    tracing::info!(listener = name, %peer, left_out, "closed: too many connections from this address");
                }
                continue;
            };
            metrics::CONNECTIONS.count(taken);
            let _ = stream.set_nodelay(true);
            // once on the heap and as large as it is: a future that is moved into another one takes its room twice
            let session = Box::pin(serve(stream, peer));
            connection_tasks.spawn(name, async move {
                session.await;
                drop(admission);
            });
        }
    });
}

/// Closes a connection to the listener `name` whose source has too many, and says so where the
/// protocol has words for it before TLS. It waits for nobody: a few octets fit into the send buffer
/// of a new connection, or they are lost.
pub fn turn_away(stream: TcpStream, name: &str) {
    let words = match name {
        "smtp" | "submission" | "lmtp" => {
            "421 4.7.0 too many connections from your address, try again later\r\n"
        }
        "pop3" => "-ERR [SYS/TEMP] too many connections from your address, try again later\r\n",
        _ => return,
    };
    // it stays non-blocking
    let Ok(mut stream) = stream.into_std() else {
        return;
    };
    let _ = stream.write(words.as_bytes());
    // what has come and is not read would make the kernel reset the connection, and the words could
    // be lost
    let _ = stream.read(&mut [0; 512]);
    let _ = stream.shutdown(Shutdown::Write);
}

/// The label sets that connections of the listener `name` are counted under.
fn labels(name: &str) -> (&'static str, &'static str) {
    match name {
        "smtp" | "smtps" | "submission" | "lmtp" => (
            r#"service="smtp",result="taken""#,
            r#"service="smtp",result="refused""#,
        ),
        "pop3" | "pop3s" => (
            r#"service="pop3",result="taken""#,
            r#"service="pop3",result="refused""#,
        ),
        "metrics" => (
            r#"service="metrics",result="taken""#,
            r#"service="metrics",result="refused""#,
        ),
        _ => ("", ""),
    }
}

#[cfg(test)]
mod tests {
    use super::{Gate, ListenLimits, accept_loop};
    use crate::tasks::Tasks;
    use std::cell::Cell;
    use std::net::IpAddr;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    /// What a connection hears until it ends, if it ends by itself.
    async fn heard(stream: &mut TcpStream) -> String {
        let mut text = String::new();
        let ended = stream.read_to_string(&mut text);
        let ended = tokio::time::timeout(Duration::from_secs(60), ended).await;
        ended.expect("an end").expect("an end that is no reset");
        text
    }

    #[tokio::test]
    async fn who_is_over_the_limit_is_told_and_does_not_count() {
        for (name, words) in [
            (
                "smtp",
                "421 4.7.0 too many connections from your address, try again later\r\n",
            ),
            (
                "pop3",
                "-ERR [SYS/TEMP] too many connections from your address, try again later\r\n",
            ),
            ("smtps", ""),
            ("pop3s", ""),
            ("metrics", ""),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let gate = Gate::from(ListenLimits {
                connections_max: 10,
                connections_per_source_max: 2,
            });
            let tasks = Tasks::new();
            // greets and waits for the other side to leave
            accept_loop(
                &tasks,
                name,
                listener,
                gate.clone(),
                |mut stream, _| async move {
                    let _ = stream.write_all(b"welcome\r\n").await;
                    let _ = stream.read(&mut [0; 10]).await;
                },
            );
            for _ in 0..3 {
                let mut held = Vec::new();
                for _ in 0..2 {
                    let mut stream = TcpStream::connect(address).await.unwrap();
                    let mut greeting = [0; 9];
                    stream.read_exact(&mut greeting).await.unwrap();
                    held.push(stream);
                }
                for _ in 0..20 {
                    let mut stream = TcpStream::connect(address).await.unwrap();
                    assert_eq!(heard(&mut stream).await, words, "{name}");
                }
                assert_eq!(gate.open(), 2);
                drop(held);
                while gate.open() > 0 {
                    tokio::task::yield_now().await;
                }
                assert!(gate.counts().sources.is_empty(), "{name}");
            }
            assert!(tasks.drain(Duration::from_secs(60)).await);
        }
    }

    #[tokio::test]
    async fn a_place_is_given_back_however_its_session_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let gate = Gate::from(ListenLimits {
            connections_max: 2,
            connections_per_source_max: 1,
        });
        let tasks = Tasks::new();
        accept_loop(
            &tasks,
            "smtp",
            listener,
            gate.clone(),
            |mut stream, _| async move {
                let mut octet = [0];
                let _ = stream.read(&mut octet).await;
                assert_ne!(octet, *b"!", "as a session may end");
            },
        );
        for _ in 0..5 {
            for said in ["", "x", "!"] {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.write_all(said.as_bytes()).await.unwrap();
                stream.shutdown().await.unwrap();
                assert_eq!(heard(&mut stream).await, "", "after {said:?}");
                while gate.open() > 0 {
                    tokio::task::yield_now().await;
                }
            }
        }
        assert!(gate.counts().sources.is_empty());
        // nor is it taken from who is not let in
        gate.set_limits(ListenLimits {
            connections_max: 2,
            connections_per_source_max: 0,
        });
        assert!(gate.admit(address.ip()).is_none());
        assert!(gate.counts().sources.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn limits_change_for_those_who_come_next() {
        let limits = |connections_max, connections_per_source_max| ListenLimits {
            connections_max,
            connections_per_source_max,
        };
        let gate = Gate::from(limits(2, 1));
        let (one, two): (IpAddr, IpAddr) =
            ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let first = gate.admit(one).unwrap();
        assert!(gate.admit(one).is_none(), "one address, one connection");
        assert!(gate.admit("::ffff:192.0.2.1".parse().unwrap()).is_none());
        let second = gate.admit(two).unwrap();
        let v6 = |text: &str| gate.admit(text.parse().unwrap());
        let neighbour = v6("2001:db8:0:1::1").unwrap();
        assert!(v6("2001:db8:0:1:2:3:4:5").is_none(), "one /64, one source");
        drop((v6("2001:db8:0:2::1").unwrap(), neighbour));
        let patience = Duration::from_secs(1);
        let told = Cell::new(0);
        let waited = tokio::time::timeout(patience, gate.room(|max| told.set(max))).await;
        assert!(waited.is_err(), "two are all there may be");
        assert_eq!(told.get(), 2, "it was said");
        gate.set_limits(limits(3, 2));
        tokio::time::timeout(patience, gate.room(|_| {}))
            .await
            .unwrap();
        let third = gate.admit(one).unwrap();
        gate.set_limits(limits(1, 1));
        assert_eq!(gate.open(), 3, "those who are there stay");
        drop((first, second));
        assert!(
            tokio::time::timeout(patience, gate.room(|_| {}))
                .await
                .is_err()
        );
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.room(|_| {}).await }
        });
        tokio::task::yield_now().await;
        drop(third);
        tokio::time::timeout(patience, waiting)
            .await
            .unwrap()
            .unwrap();
    }
}

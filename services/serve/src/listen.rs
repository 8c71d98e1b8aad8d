//! Accept loops: a limit on connections in all and per source, a pause when the system is out of descriptors.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::tasks::Tasks;

/// How many connections one listener holds.
#[derive(Clone, Copy, Debug)]
pub struct ListenLimits {
    /// Connections at once; the next ones wait in the system's backlog.
    pub connections_max: usize,
    /// Connections at once from one address; more are closed at once.
    pub connections_per_source_max: usize,
}

/// One accepted connection and its place under the limits, given back when dropped.
#[derive(Debug)]
pub struct Admission {
    _permit: OwnedSemaphorePermit,
    source: IpAddr,
    sources: Sources,
}

type Sources = Arc<Mutex<BTreeMap<IpAddr, usize>>>;

impl Drop for Admission {
    fn drop(&mut self) {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = sources.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                sources.remove(&self.source);
            }
        }
    }
}

/// Accepts on `listener` until the node drains; each connection runs `serve` in a task of its own.
///
/// `serve` gets the stream, the peer's address and the admission to hold until the connection ends.
pub fn accept_loop<S, F>(
    tasks: &Tasks,
    name: &'static str,
    listener: TcpListener,
    limits: ListenLimits,
    serve: S,
) where
    S: Fn(TcpStream, SocketAddr) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let connection_tasks = tasks.clone();
    let draining = tasks.draining();
    let permits = Arc::new(Semaphore::new(limits.connections_max));
    let sources: Sources = Arc::default();
    tasks.spawn(name, async move {
        loop {
            let next = async {
                let permit = permits.clone().acquire_owned().await;
                (permit, listener.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                biased;
                () = draining.cancelled() => return,
                next = next => next,
            };
            let Ok(permit) = permit else { return };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // out of descriptors or memory: spinning would not make any
                    tracing::warn!(listener = name, %error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Some(admission) = admit(&sources, peer.ip(), permit, limits.connections_per_source_max) else {
                tracing::info!(listener = name, %peer, "closed: too many connections from this address");
                continue;
            };
            let _ = stream.set_nodelay(true);
            let session = serve(stream, peer);
            connection_tasks.spawn(name, async move {
                session.await;
                drop(admission);
            });
        }
    });
}

fn admit(
    sources: &Sources,
    source: IpAddr,
    permit: OwnedSemaphorePermit,
    max: usize,
) -> Option<Admission> {
    let mut counts = sources.lock().unwrap_or_else(PoisonError::into_inner);
    let count = counts.entry(source).or_insert(0);
    if *count >= max {
        return None;
    }
    *count += 1;
    Some(Admission {
        _permit: permit,
        source,
        sources: sources.clone(),
    })
}

//! The sockets of a node: SMTP, POP3, metrics, and the operator's. Each is open when its function returns, and answers with what
//! it listens on, `smtp 127.0.0.1:25`.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, anyhow};
use hikyaku_access::pop3::options::Tls as Pop3Tls;
use hikyaku_access::pop3::server::{Pop3Deps, serve_pop3};
use hikyaku_control::admin::AdminService;
use hikyaku_edge::backend::{Edge, EdgeBackend};
use hikyaku_proto::v1::admin_server::AdminServer;
use hikyaku_serve::listen::{Admission, accept_loop, turn_away};
use hikyaku_serve::sparing::Sparing;
use hikyaku_serve::tasks::Tasks;
use hikyaku_smtp::backend::Peer;
use hikyaku_smtp::proxy::{ProxyOptions, client_address};
use hikyaku_smtp::server::{Tls as SmtpTls, serve_connection};
use rustix::net::sockopt::set_ipv6_v6only;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::config::listeners::{canonical, leaves_ipv4};
use crate::live::Live;
use crate::observe::Observed;
use crate::operator::SOCKET;
use crate::services::GRPC_BYTES_MAX;

/// Connections that wait to be accepted at one address; the system may allow fewer.
const BACKLOG: u32 = 4096;

/// What every listener needs.
pub struct Listeners<'a> {
    /// Which addresses.
    pub config: &'a Config,
    /// Where connections are served.
    pub tasks: &'a Tasks,
    /// What they are served with.
    pub live: &'a Arc<Live>,
}

impl Listeners<'_> {
    /// SMTP: in the clear with STARTTLS, and under TLS from the first byte.
    ///
    /// # Errors
    /// When an address cannot be listened on; says which.
    pub fn smtp(&self, edge: Arc<Edge>) -> Result<Vec<String>> {
        let smtp = &self.config.smtp;
        let backend = Arc::new(EdgeBackend(edge));
        let sessions = Arc::new(AtomicU64::new(1));
        let clear = smtp.listen.iter().map(|&address| ("smtp", address));
        let covered = smtp.listen_tls.get_ref().iter();
        let covered = covered.map(|&address| ("smtps", address));
        let mut opened = Vec::new();
        for (name, address) in clear.chain(covered) {
            let (listener, line) = bind(self.config, name, address)?;
            opened.push(line);
            let proxied = smtp.proxy_protocol.get_ref().contains(&address);
            let gate = match proxied {
                true => self.live.balancers_gate.clone(),
                false => self.live.smtp_gate.clone(),
            };
            let port = Arc::new(SmtpPort {
                label: Arc::from(name),
                tls: match name {
                    "smtps" => SmtpTls::Implicit,
                    _ => SmtpTls::StartTls,
                },
                proxied,
                sparing: Sparing::default(),
                backend: backend.clone(),
                sessions: sessions.clone(),
                live: self.live.clone(),
                drain: self.tasks.draining(),
            });
            accept_loop(self.tasks, name, listener, gate, move |stream, address| {
                let port = port.clone();
                async move { port.serve(stream, address).await }
            });
        }
        Ok(opened)
    }

    /// POP3: in the clear with STLS, and under TLS from the first byte.
    ///
    /// # Errors
    /// When an address cannot be listened on; says which.
    pub fn pop3(&self, deps: Arc<Pop3Deps>) -> Result<Vec<String>> {
        let pop3 = &self.config.pop3;
        let start_tls: fn(TlsAcceptor) -> Pop3Tls = Pop3Tls::StartTls;
        let implicit: fn(TlsAcceptor) -> Pop3Tls = Pop3Tls::Implicit;
        let clear = pop3
            .listen
            .iter()
            .map(|&address| ("pop3", address, start_tls));
        let covered = pop3
            .listen_tls
            .get_ref()
            .iter()
            .map(|&address| ("pop3s", address, implicit));
        let mut opened = Vec::new();
        for (name, address, tls) in clear.chain(covered) {
            let (listener, line) = bind(self.config, name, address)?;
            opened.push(line);
            let (deps, live, drain) = (deps.clone(), self.live.clone(), self.tasks.draining());
            let gate = self.live.pop3_gate.clone();
            accept_loop(self.tasks, name, listener, gate, move |stream, peer| {
                let serving = live.serving();
                let tls = match &serving.tls {
                    Some(material) => tls(material.acceptor.clone()),
                    None => Pop3Tls::Off,
                };
                serve_pop3(
                    stream,
                    peer,
                    deps.clone(),
                    serving.pop3.clone(),
                    tls,
                    drain.clone(),
                )
            });
        }
        Ok(opened)
    }

    /// Metrics and health over HTTP, where the configuration wants them.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub fn metrics(&self, observed: Observed) -> Result<Option<String>> {
        let Some(address) = self.config.telemetry.metrics_listen else {
            return Ok(None);
        };
        let (listener, line) = bind(self.config, "metrics", address)?;
        Arc::new(observed).serve(listener);
        Ok(Some(line))
    }

    /// The operator's socket in the data directory; answers its path.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn admin(&self, service: AdminService) -> Result<PathBuf> {
        let path = self.config.node.data_dir.join(SOCKET);
        // the directory is locked, so a socket that is there is a dead process's
        let _ = std::fs::remove_file(&path);
        let failed = || format!("opening the admin socket {}", path.display());
        let listener = UnixListener::bind(&path).with_context(failed)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
            .with_context(failed)?;
        let service = AdminServer::new(service).max_decoding_message_size(GRPC_BYTES_MAX);
        let draining = self.tasks.draining();
        self.tasks.spawn("admin", async move {
            let served = tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming_shutdown(
                    UnixListenerStream::new(listener),
                    draining.cancelled(),
                )
                .await;
            if let Err(error) = served {
                tracing::error!(%error, "the admin socket failed");
            }
        });
        Ok(path)
    }
}

/// One address that takes mail.
struct SmtpPort {
    /// `smtp` or `smtps`, for log lines and counters.
    label: Arc<str>,
    /// What becomes of a certificate here.
    tls: fn(TlsAcceptor) -> SmtpTls,
    /// Whether load balancers connect to it.
    proxied: bool,
    sparing: Sparing,
    backend: Arc<EdgeBackend>,
    /// The number of the next session of all ports.
    sessions: Arc<AtomicU64>,
    live: Arc<Live>,
    drain: CancellationToken,
}

impl SmtpPort {
    async fn serve(&self, mut stream: TcpStream, address: SocketAddr) {
        let number = self.sessions.fetch_add(1, Ordering::Relaxed);
        let mut peer = Peer::new(number, address, Arc::clone(&self.label));
        // the client's own place among the connections, held until its session ends
        let mut _admission = None;
        if self.proxied {
            let Some(client) = self.client_behind(&mut stream, address).await else {
                return;
            };
            let Some(place) = self.place_of(client, address) else {
                return turn_away(stream, &self.label);
            };
            (peer.address, _admission) = (client, Some(place));
        }
        let serving = self.live.serving();
        let tls = match &serving.tls {
            Some(material) => (self.tls)(material.acceptor.clone()),
            None => SmtpTls::Off,
        };
        let options = serving.smtp.clone();
        // a long session must not keep a configuration that has been replaced
        drop(serving);
        serve_connection(stream, peer, &*self.backend, &options, tls, &self.drain).await;
    }

    /// The client that a load balancer has connected for; `None` closes.
    async fn client_behind(
        &self,
        stream: &mut TcpStream,
        balancer: SocketAddr,
    ) -> Option<SocketAddr> {
        let serving = self.live.serving();
        let networks = serving.config.smtp.proxy_networks.iter();
        let options = ProxyOptions::new(networks.map(|net| net.0).collect());
        drop(serving);
        match client_address(stream, balancer, &options).await {
            Ok(client) => Some(client),
            Err(reason) => {
                if let Some(left_out) = self.sparing.line() {
                    tracing::info!(%balancer, %reason, left_out, "closed: no client from a load balancer");
                }
                None
            }
        }
    }

    /// The client's place among its connections, unless it has too many.
    fn place_of(&self, client: SocketAddr, balancer: SocketAddr) -> Option<Admission> {
        let place = self.live.smtp_gate.admit(client.ip());
        if place.is_none()
            && let Some(left_out) = self.sparing.line()
        {
            tracing::info!(peer = %client, %balancer, left_out, "closed: too many connections from this address");
        }
        place
    }
}

/// Listens on `address`, and answers the line that says so.
fn bind(config: &Config, name: &str, address: SocketAddr) -> Result<(TcpListener, String)> {
    let listener = open(config, canonical(address)).map_err(|error| {
        let hint = match error.kind() {
            ErrorKind::AddrInUse => "; another program has it (`ss -ltnp` says which)",
            ErrorKind::PermissionDenied => "; ports below 1024 need CAP_NET_BIND_SERVICE",
            ErrorKind::AddrNotAvailable => "; this machine has no such address",
            _ if address.is_ipv6() => "; without IPv6 on this machine leave its addresses out",
            _ => "",
        };
        anyhow!("listening for {name} on {address}: {error}{hint}")
    })?;
    let bound = listener.local_addr()?;
    Ok((listener, format!("{name} {bound}")))
}

fn open(config: &Config, address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if address.is_ipv6() && address.ip().is_unspecified() {
        set_ipv6_v6only(&socket, leaves_ipv4(config, address))?;
    }
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

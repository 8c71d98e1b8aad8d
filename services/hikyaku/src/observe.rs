//! `/metrics` in Prometheus' text format, `/healthz` and `/readyz`, over plain HTTP on a port of its own.
//!
//! What is counted comes from [`hikyaku_serve::metrics`]; gauges are looked at when somebody asks. No label has a value that a
//! peer or a user can make up.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hikyaku_log::wal::Wal;
use hikyaku_mbox::home::LocalHome;
use hikyaku_mbox::mailbox::LocalMailbox;
use hikyaku_queue::intake::{Closed, Intake};
use hikyaku_serve::listen::{ListenLimits, accept_loop};
use hikyaku_serve::metrics::{self, head};
use hikyaku_serve::tasks::Tasks;
use hikyaku_shard::machine::Machine;
use hikyaku_shard::runtime::Shard;
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::live::Live;

/// For a request's head to arrive.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// For a whole answer to be taken.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Octets of a request's head.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Connections at once.
const LIMITS: ListenLimits = ListenLimits {
    connections_max: 64,
    connections_per_source_max: 16,
};
/// The part of the log's limit above which it is an alarm, in per cent.
const LOG_ALARM_PERCENT: u64 = 90;

/// Inodes left below which it is an alarm: each large body takes one, and so does each file of the log and of the stores.
const INODES_MIN: u64 = 1_000;

/// What is looked at.
pub struct Observed {
    /// Whether mail is taken.
    pub intake: Intake,
    /// The log under everything.
    pub wal: Arc<Wal>,
    /// Who owns an account.
    pub home: LocalHome,
    /// Mailboxes.
    pub mailboxes: Vec<LocalMailbox>,
    /// Connections, certificate, limits.
    pub live: Arc<Live>,
    /// What an operator must look at.
    pub alarms: Arc<dyn Fn() -> Vec<String> + Send + Sync>,
    /// The node.
    pub tasks: Tasks,
}

/// An alarm when the log is nearly full.
pub fn log_alarm(wal: &Wal, bytes_max: u64) -> Option<String> {
    let bytes = wal.counts().physical_bytes;
    (bytes > bytes_max / 100 * LOG_ALARM_PERCENT).then(|| {
        format!("the log has {bytes} of {bytes_max} octets (log.bytes_max); when it is full, senders hear 452")
    })
}

/// An alarm while no mail is taken, and what it is that is full.
pub fn full_alarm(intake: &Intake) -> Option<String> {
    let fullness = intake.fullness()?;
    Some(format!("no mail is taken, senders hear 452: {fullness}"))
}

/// An alarm when the next file of the log might find no room in the file system, or when that can hold few files more.
pub fn disk_alarms(directory: &Path, segment_bytes: u64) -> Vec<String> {
    let Ok(free) = rustix::fs::statvfs(directory) else {
        return Vec::new();
    };
    let bytes = free.f_bavail.saturating_mul(free.f_frsize);
    // a file system that makes inodes as it needs them says that it has none
    let has_inodes = free.f_files > 0;
    let few = [
        (bytes < segment_bytes, bytes, "octets"),
        (
            has_inodes && free.f_favail < INODES_MIN,
            free.f_favail,
            "inodes",
        ),
    ];
    let directory = directory.display();
    few.into_iter()
        .filter(|(is_few, _, _)| *is_few)
        .map(|(_, left, what)| {
            format!(
                "the disk of {directory} has {left} {what} left; when it is full, senders hear 452"
            )
        })
        .collect()
}

/// An alarm while a shard refuses work.
pub fn parked_alarm<M: Machine>(shard: &Shard<M>) -> Option<String> {
    let trouble = shard.trouble()?;
    Some(format!("{} is parked: {trouble}", shard.id()))
}

impl Observed {
    /// Answers on `listener` until the node drains.
    pub fn serve(self: Arc<Self>, listener: TcpListener) {
        let tasks = self.tasks.clone();
        accept_loop(&tasks, "metrics", listener, LIMITS, move |stream, peer| {
            converse(self.clone(), stream, peer)
        });
    }

    fn answer(&self, method: &Method, path: &str) -> Response<String> {
        let (status, text) = match (method, path) {
            (&Method::GET | &Method::HEAD, "/metrics") => (StatusCode::OK, self.page()),
            (&Method::GET | &Method::HEAD, "/healthz") => (StatusCode::OK, "alive\n".to_owned()),
            (&Method::GET | &Method::HEAD, "/readyz") => match self.ready() {
                Ok(()) => (StatusCode::OK, "accepting mail\n".to_owned()),
                Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
            },
            (&Method::GET | &Method::HEAD, _) => (
                StatusCode::NOT_FOUND,
                "/metrics, /healthz or /readyz\n".to_owned(),
            ),
            _ => (StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD\n".to_owned()),
        };
        let mut response = Response::new(text);
        *response.status_mut() = status;
        let kind =
            hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        response
    }

    fn ready(&self) -> Result<(), &'static str> {
        if self.tasks.draining().is_cancelled() {
            return Err("shutting down");
        }
        match self.intake.check() {
            Ok(()) => Ok(()),
            Err(Closed::NotApplying) => Err("the incoming shard does not apply its log"),
            Err(Closed::Full(what)) => Err(what),
        }
    }

    fn page(&self) -> String {
        let mut page = String::with_capacity(16 << 10);
        self.node(&mut page);
        self.queue(&mut page);
        self.log(&mut page);
        self.shards(&mut page);
        metrics::render(&mut page);
        process(&mut page);
        page
    }

    fn node(&self, page: &mut String) {
        head(page, "hikyaku_build_info", "The version, always 1", "gauge");
        let version = env!("CARGO_PKG_VERSION");
        let _ = writeln!(page, "hikyaku_build_info{{version=\"{version}\"}} 1");
        let ready = u64::from(self.ready().is_ok());
        gauge(page, "hikyaku_ready", "Whether mail is accepted", ready);
        let alarms = (self.alarms)().len() as u64;
        gauge(
            page,
            "hikyaku_alarms",
            "Alarms that `hikyaku status` lists",
            alarms,
        );
        let name = "hikyaku_connections";
        head(page, name, "Connections by service", "gauge");
        for (service, gate) in [
            ("smtp", &self.live.smtp_gate),
            ("pop3", &self.live.pop3_gate),
        ] {
            let open = gate.open();
            let _ = writeln!(page, "{name}{{service=\"{service}\"}} {open}");
        }
        if let Some(material) = &self.live.serving().tls {
            let name = "hikyaku_tls_certificate_not_after_seconds";
            head(page, name, "When the certificate ends, Unix time", "gauge");
            let _ = writeln!(page, "{name} {}", material.not_after_s);
        }
    }

    fn queue(&self, page: &mut String) {
        let (census, held_for) = self
            .intake
            .shard()
            .read(|machine| (machine.census(), machine.index().held_for()));
        let config = &self.live.serving().config.queue;
        for (name, help, value) in [
            (
                "mail_queue_incoming",
                "Recipients accepted and not tried yet",
                census.incoming,
            ),
            ("mail_queue_active", "Recipients being tried", census.active),
            (
                "mail_queue_deferred",
                "Recipients to be tried again",
                census.deferred,
            ),
            (
                "mail_queue_hold",
                "Recipients that wait for an operator",
                census.hold,
            ),
            (
                "mail_queue_messages",
                "Mails on their way",
                self.intake.messages(),
            ),
            (
                "mail_queue_messages_max",
                "queue.messages_max: beyond it senders hear 452",
                config.messages_max,
            ),
            (
                "mail_queue_bytes",
                "Octets of the mails on their way, as they are stored",
                self.intake.bytes(),
            ),
            (
                "mail_queue_bytes_max",
                "queue.bytes_max: beyond it senders hear 452",
                config.bytes_max.0,
            ),
        ] {
            gauge(page, name, help, value);
        }
        let name = "mail_queue_held";
        let help = "Recipients that the leader holds, by reason; operators' holds are not counted";
        head(page, name, help, "gauge");
        for (reason, count) in held_for.counts() {
            let _ = writeln!(page, "{name}{{reason=\"{reason}\"}} {count}");
        }
    }

    fn log(&self, page: &mut String) {
        let counts = self.wal.counts();
        let limit = self.live.serving().config.log.bytes_max.0;
        gauge(
            page,
            "hikyaku_log_bytes",
            "Octets of the log on disk",
            counts.physical_bytes,
        );
        gauge(page, "hikyaku_log_bytes_max", "log.bytes_max", limit);
        for (name, help, value) in [
            (
                "hikyaku_log_appends_total",
                "Records appended",
                counts.appends,
            ),
            (
                "hikyaku_log_syncs_total",
                "Syncs, each for all that had gathered",
                counts.syncs,
            ),
            (
                "hikyaku_log_written_bytes_total",
                "Octets made durable",
                counts.frame_bytes,
            ),
        ] {
            head(page, name, help, "counter");
            let _ = writeln!(page, "{name} {value}");
        }
    }

    fn shards(&self, page: &mut String) {
        let incoming = Figures::of(self.intake.shard(), None);
        let home = Figures::of(&self.home.shard, Some(self.home.engine.unflushed_bytes()));
        let mailboxes = self
            .mailboxes
            .iter()
            .map(|local| Figures::of(&local.shard, Some(local.engine.unflushed_bytes())));
        let all: Vec<Figures> = [incoming, home].into_iter().chain(mailboxes).collect();
        type Figure = fn(&Figures) -> Option<u64>;
        let families: [(&str, &str, Figure); 4] = [
            (
                "hikyaku_shard_lag_records",
                "Records of the log that the shard has not applied",
                |shard| Some(shard.lag),
            ),
            (
                "hikyaku_shard_trouble",
                "1: the shard is parked; `hikyaku status` says why",
                |shard| Some(u64::from(shard.trouble)),
            ),
            (
                "hikyaku_shard_pinned_bytes",
                "Octets of the log that the shard keeps from being freed",
                |shard| Some(shard.pinned),
            ),
            (
                "hikyaku_store_unflushed_bytes",
                "Octets that only memory and the log have",
                |shard| shard.unflushed,
            ),
        ];
        for (name, help, figure) in families {
            head(page, name, help, "gauge");
            for shard in &all {
                if let Some(value) = figure(shard) {
                    let _ = writeln!(page, "{name}{{shard=\"{}\"}} {value}", shard.name);
                }
            }
        }
    }
}

/// What there is to say of one shard.
struct Figures {
    name: String,
    lag: u64,
    trouble: bool,
    pinned: u64,
    unflushed: Option<u64>,
}

impl Figures {
    fn of<M: Machine>(shard: &Shard<M>, unflushed: Option<u64>) -> Figures {
        let end = shard.log().bounds(shard.id()).end.0;
        let applied = shard.applied().borrow().0;
        Figures {
            name: shard.id().to_string(),
            lag: end.saturating_sub(applied + 1),
            trouble: shard.trouble().is_some(),
            pinned: shard.log().pinned(shard.id()).bytes,
            unflushed,
        }
    }
}

fn gauge(page: &mut String, name: &str, help: &str, value: u64) {
    head(page, name, help, "gauge");
    let _ = writeln!(page, "{name} {value}");
}

/// What the system knows of this process; what it does not say is left out.
fn process(page: &mut String) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| {
        let kib = line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?;
        kib.parse::<u64>().ok()
    });
    if let Some(kib) = resident {
        let help = "Resident memory";
        gauge(page, "process_resident_memory_bytes", help, kib << 10);
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        let help = "Open file descriptors";
        gauge(page, "process_open_fds", help, open.count() as u64);
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if let Some(max) = limit.current {
        let help = "File descriptors there may be";
        gauge(page, "process_max_fds", help, max);
    }
}

async fn converse(observed: Arc<Observed>, stream: TcpStream, peer: SocketAddr) {
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let observed = observed.clone();
        async move { Ok::<_, Infallible>(observed.answer(request.method(), request.uri().path())) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        // one question each: nothing idles when the node drains
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(HEAD_TIMEOUT + ANSWER_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%peer, %error, "a metrics connection failed"),
        Err(_) => tracing::debug!(%peer, "a metrics connection took too long"),
    }
}

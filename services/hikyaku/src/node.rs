//! One machine with every role, wired top to bottom: log, shards, services, leaders, listeners.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, anyhow};
use hikyaku_access::mailboxes::{Mailboxes, MailboxesOptions};
use hikyaku_access::pop3::options::Tls as Pop3Tls;
use hikyaku_access::pop3::server::{Pop3Deps, serve_pop3};
use hikyaku_blob::Blobs;
use hikyaku_blob::files::FileBlobs;
use hikyaku_control::admin::{AdminService, NodeAlarms};
use hikyaku_control::queue::{LedQueue, Queues};
use hikyaku_delivery::control::QueueControl;
use hikyaku_delivery::leader::{DeliveryOptions, Deps, Leader};
use hikyaku_delivery::placement::Placement;
use hikyaku_delivery::schedule::Schedule;
use hikyaku_directory::Directory;
use hikyaku_directory::file::DirectoryFile;
use hikyaku_directory::ldif_directory::LdifDirectory;
use hikyaku_directory::throttle::{Throttle, ThrottleLimits};
use hikyaku_edge::backend::{Edge, EdgeBackend};
use hikyaku_edge::recipient;
use hikyaku_mail::path::ForwardPath;
use hikyaku_mail::reply::Reply;
use hikyaku_mbox::home::HomeService;
use hikyaku_mbox::mailbox::MailboxService;
use hikyaku_mbox::options::MboxOptions;
use hikyaku_proto::transport::{Transport, in_process};
use hikyaku_proto::v1::admin_server::AdminServer;
use hikyaku_proto::v1::home_client::HomeClient;
use hikyaku_proto::v1::home_server::HomeServer;
use hikyaku_proto::v1::mailbox_client::MailboxClient;
use hikyaku_proto::v1::mailbox_server::MailboxServer;
use hikyaku_queue::intake::Intake;
use hikyaku_serve::listen::{Admission, accept_loop};
use hikyaku_serve::tasks::Tasks;
use hikyaku_serve::tls::Material;
use hikyaku_shard::ambient::SharedAmbient;
use hikyaku_shard::lead;
use hikyaku_smtp::backend::Peer;
use hikyaku_smtp::proxy::{ProxyOptions, client_address};
use hikyaku_smtp::server::{Tls as SmtpTls, serve_connection};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::signal::unix::Signal;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::UnixListenerStream;

use crate::alarms::Alarms;
use crate::ambient::System;
use crate::archive::{LocalArchive, LocalQueue};
use crate::config::Config;
use crate::live::{Live, Serving};
use crate::lock::DirectoryLock;
use crate::observe::{Observed, log_alarm};
use crate::operator::SOCKET;
use crate::reload::Reloader;
use crate::shards::Shards;
use crate::sweep::Sweep;
use crate::telemetry::Logging;
use crate::{certificates, users};

/// Octets that one inline body needs over gRPC, and room to spare.
const GRPC_BYTES_MAX: usize = 4 << 20;

/// A running machine.
pub struct Node {
    /// What takes, moves and shows mail; it can finish.
    tasks: Tasks,
    /// What the others stand on: it goes on until they have finished.
    ground: Tasks,
    shards: Shards,
    listeners: Vec<String>,
    socket: PathBuf,
    live: Arc<Live>,
    _lock: DirectoryLock,
}

impl Node {
    /// Starts everything in `config`; listeners are open when this returns.
    ///
    /// # Errors
    /// When anything cannot start; nothing is left running then.
    pub async fn start(config: Config, source: Source) -> Result<Node> {
        let ambient: SharedAmbient = Arc::new(System);
        look_first(&config, &ambient)?;
        let lock = DirectoryLock::take(&config.node.data_dir)?;
        let (tasks, ground) = (Tasks::new(), Tasks::new());
        let started = Starting {
            config: &config,
            tasks: &tasks,
            ground: &ground,
            ambient,
        }
        .run(source)
        .await;
        match started {
            Ok(Started {
                shards,
                live,
                listeners,
                socket,
            }) => Ok(Node {
                tasks,
                ground,
                shards,
                listeners,
                socket,
                live,
                _lock: lock,
            }),
            Err(error) => {
                tasks.kill().await;
                ground.kill().await;
                Err(error)
            }
        }
    }

    /// What it listens on, `smtp 127.0.0.1:25` and so on.
    pub fn listeners(&self) -> &[String] {
        &self.listeners
    }

    /// Ends when the log has failed for good, with the reason: the process must end too.
    pub async fn failed(&self) -> String {
        self.shards.wal.failed().await
    }

    /// Finishes what is under way, then stops.
    pub async fn stop(self) {
        let _ = std::fs::remove_file(&self.socket);
        let patience = self.live.serving().config.node.drain_timeout.0;
        if !self.tasks.drain(patience).await {
            tracing::warn!(
                "some connections or deliveries did not finish in time and were cut off; nothing accepted is lost"
            );
        }
        self.ground.kill().await;
        let shards = self.shards;
        let flushed = tokio::task::spawn_blocking(move || {
            shards.flush();
            drop(shards);
        });
        let _ = flushed.await;
    }
}

/// Looks at the files that the configuration names before anything is made: where nothing is, no data directory is left by a
/// start that was refused.
fn look_first(config: &Config, ambient: &SharedAmbient) -> Result<()> {
    load_tls(config, ambient)?;
    // without a data directory there is no last good directory file either
    if !config.node.data_dir.exists() {
        users::load(config).context("reading the directory")?;
    }
    Ok(())
}

fn load_tls(config: &Config, ambient: &SharedAmbient) -> Result<Option<Material>> {
    let Some(files) = &config.tls else {
        return Ok(None);
    };
    let now_s = i64::try_from(ambient.now_ms() / 1000).unwrap_or(i64::MAX);
    // one that has expired is better than none: it is an alarm
    let material = certificates::load(files, None, now_s).map_err(|why| anyhow!("tls: {why}"))?;
    Ok(Some(material))
}

/// Where the configuration is from, and how it may change.
pub struct Source {
    /// The file.
    pub file: PathBuf,
    /// SIGHUP: the file is to be read again.
    pub hangup: Signal,
    /// The log, whose filter is in it.
    pub logging: Logging,
}

struct Started {
    shards: Shards,
    live: Arc<Live>,
    listeners: Vec<String>,
    socket: PathBuf,
}

struct Starting<'a> {
    config: &'a Config,
    tasks: &'a Tasks,
    ground: &'a Tasks,
    ambient: SharedAmbient,
}

/// The services that roles call each other by.
struct Services {
    home: HomeService,
    mailboxes: MailboxService,
}

impl Services {
    fn home_transport(&self) -> Transport {
        in_process(HomeServer::new(self.home.clone()))
    }

    fn mailbox_transport(&self) -> Transport {
        in_process(
            MailboxServer::new(self.mailboxes.clone())
                .max_decoding_message_size(GRPC_BYTES_MAX)
                .max_encoding_message_size(GRPC_BYTES_MAX),
        )
    }

    fn home_client(&self) -> HomeClient<Transport> {
        HomeClient::new(self.home_transport())
    }

    fn mailbox_client(&self) -> MailboxClient<Transport> {
        MailboxClient::new(self.mailbox_transport()).max_decoding_message_size(GRPC_BYTES_MAX)
    }
}

impl Starting<'_> {
    async fn run(self, source: Source) -> Result<Started> {
        let Starting {
            config,
            tasks,
            ground,
            ambient,
        } = &self;
        let (tasks, ground): (&Tasks, &Tasks) = (tasks, ground);
        let (file, read) =
            users::open(config, random_key(ambient)).context("reading the directory")?;
        let file = Arc::new(file);
        let directory = file.directory().clone();
        if let Some(alarm) = file.alarm() {
            tracing::error!(alarm, "directory");
        }
        for line in users::located(
            config.directory.ldif.get_ref(),
            directory.table().findings(),
        ) {
            tracing::warn!(line, "directory entry");
        }
        let certificate = Reloader::watch(config);
        let live = Arc::new(Live::new(Serving::new(
            Arc::new(Config::clone(config)),
            self.tls()?,
        )));
        let blobs: Arc<dyn Blobs> = Arc::new(
            FileBlobs::open(&config.node.data_dir.join("blobs"))
                .context("opening the blob store")?,
        );
        let shards = Shards::open(config, ground, ambient)?;
        let home = HomeService::new(ground, shards.home.clone(), MboxOptions::default());
        let home_transport = in_process(HomeServer::new(home.clone()));
        let mailboxes = MailboxService::new(
            ground,
            shards.mailboxes.iter().cloned(),
            home_transport,
            MboxOptions::default(),
        );
        let services = Services { home, mailboxes };
        let queue = self
            .lead(&shards, &services, directory.clone(), blobs.clone())
            .await;
        let edge = Arc::new(Edge {
            host_name: config.node.hostname.0.clone(),
            directory: directory.clone(),
            blobs: blobs.clone(),
            intakes: vec![Intake::new(&shards.incoming)],
            ambient: ambient.clone(),
            tasks: tasks.clone(),
            memory: Edge::memory_budget(config.smtp.memory_bytes_max.as_usize()),
        });
        let deps = Arc::new(Pop3Deps {
            directory: directory.clone(),
            throttle: Arc::new(Throttle::new(
                ThrottleLimits::default(),
                random_key(ambient),
            )),
            mailboxes: Mailboxes::new(
                services.home_client(),
                services.mailbox_client(),
                ambient.clone(),
                MailboxesOptions::default(),
            ),
            blobs: blobs.clone(),
        });
        let mut listeners = self.listen_smtp(edge, &live).await?;
        listeners.extend(self.listen_pop3(deps, &live).await?);
        let alarms = Alarms::default();
        let node_alarms = node_alarms(&alarms, &file, &shards, config.log.bytes_max.0);
        listeners.extend(
            self.listen_metrics(&shards, &live, node_alarms.clone())
                .await?,
        );
        let socket = self.listen_admin(
            &shards,
            &services,
            &file,
            queue,
            listeners.clone(),
            node_alarms,
        )?;
        Sweep {
            blobs: blobs.clone(),
            incoming: shards.incoming.clone(),
            mailboxes: services.mailboxes.clone(),
            interval: config.blobs.sweep_interval.0,
            keep_unnamed: config.blobs.keep_unnamed.0,
        }
        .start(tasks);
        users::watch(
            tasks,
            ambient.clone(),
            config.directory.ldif.get_ref().clone(),
            read,
            file.clone(),
        );
        Reloader {
            file: source.file,
            live: live.clone(),
            directory: file,
            logging: source.logging,
            alarms,
            ambient: ambient.clone(),
            hangup: source.hangup,
            certificate,
        }
        .start(tasks);
        Ok(Started {
            shards,
            live,
            listeners,
            socket,
        })
    }

    /// Leads every shard of this machine: there is nobody else.
    async fn lead(
        &self,
        shards: &Shards,
        services: &Services,
        directory: Arc<LdifDirectory>,
        blobs: Arc<dyn Blobs>,
    ) -> QueueControl {
        lead::begin(self.ground, &shards.home.shard).await;
        for mailbox in &shards.mailboxes {
            lead::begin(self.ground, &mailbox.shard).await;
        }
        let mut placement = Placement::new();
        for (name, mbox) in &self.config.mbox {
            placement = placement.with_mbox(
                name,
                mbox.shards.get_ref().iter().map(|&shard| u32::from(shard)),
            );
        }
        let mailboxes = services.mailbox_client();
        let deps = Deps {
            directory,
            blobs,
            home: services.home_client(),
            // one machine serves them all
            mailboxes: Arc::new(move |_shard| mailboxes.clone()),
            placement,
        };
        let queue = &self.config.queue;
        let options = DeliveryOptions {
            schedule: Schedule {
                expiry: queue.expire_after.0,
                expiry_null: queue.expire_bounces_after.0,
                ..Schedule::default()
            },
            host_name: self.config.node.hostname.0.clone(),
            ..DeliveryOptions::default()
        };
        Leader::start(self.tasks, shards.incoming.clone(), deps, options)
    }

    fn tls(&self) -> Result<Option<Material>> {
        load_tls(self.config, &self.ambient)
    }

    async fn listen_smtp(&self, edge: Arc<Edge>, live: &Arc<Live>) -> Result<Vec<String>> {
        let smtp = &self.config.smtp;
        let backend = Arc::new(EdgeBackend(edge));
        let sessions = Arc::new(AtomicU64::new(1));
        let start_tls: fn(TlsAcceptor) -> SmtpTls = SmtpTls::StartTls;
        let implicit: fn(TlsAcceptor) -> SmtpTls = SmtpTls::Implicit;
        let clear = smtp
            .listen
            .iter()
            .map(|&address| ("smtp", address, start_tls));
        let covered = smtp
            .listen_tls
            .get_ref()
            .iter()
            .map(|&address| ("smtps", address, implicit));
        let mut opened = Vec::new();
        for (name, address, tls) in clear.chain(covered) {
            let (listener, line) = bind(name, address).await?;
            opened.push(line);
            let proxied = smtp.proxy_protocol.get_ref().contains(&address);
            let gate = if proxied {
                live.balancers_gate.clone()
            } else {
                live.smtp_gate.clone()
            };
            let (backend, sessions, label) = (backend.clone(), sessions.clone(), Arc::from(name));
            let (live, drain) = (live.clone(), self.tasks.draining());
            accept_loop(
                self.tasks,
                name,
                listener,
                gate,
                move |mut stream, address| {
                    let number = sessions.fetch_add(1, Ordering::Relaxed);
                    let mut peer = Peer::new(number, address, Arc::clone(&label));
                    let (backend, live, drain) = (backend.clone(), live.clone(), drain.clone());
                    async move {
                        let mut admission = None;
                        if proxied {
                            let Some((client, place)) =
                                from_balancer(&mut stream, address, &live).await
                            else {
                                return;
                            };
                            (peer.address, admission) = (client, Some(place));
                        }
                        let serving = live.serving();
                        let tls = match &serving.tls {
                            Some(material) => tls(material.acceptor.clone()),
                            None => SmtpTls::Off,
                        };
                        let options = serving.smtp.clone();
                        drop(serving);
                        serve_connection(stream, peer, &*backend, &options, tls, &drain).await;
                        drop(admission);
                    }
                },
            );
        }
        Ok(opened)
    }

    async fn listen_pop3(&self, deps: Arc<Pop3Deps>, live: &Arc<Live>) -> Result<Vec<String>> {
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
            let (listener, line) = bind(name, address).await?;
            opened.push(line);
            let (deps, live, drain) = (deps.clone(), live.clone(), self.tasks.draining());
            let gate = live.pop3_gate.clone();
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

    async fn listen_metrics(
        &self,
        shards: &Shards,
        live: &Arc<Live>,
        alarms: NodeAlarms,
    ) -> Result<Option<String>> {
        let Some(address) = self.config.telemetry.metrics_listen else {
            return Ok(None);
        };
        let (listener, line) = bind("metrics", address).await?;
        let observed = Observed {
            intake: Intake::new(&shards.incoming),
            wal: shards.wal.clone(),
            home: shards.home.clone(),
            mailboxes: shards.mailboxes.clone(),
            live: live.clone(),
            alarms,
            tasks: self.tasks.clone(),
        };
        Arc::new(observed).serve(listener);
        Ok(Some(line))
    }

    fn listen_admin(
        &self,
        shards: &Shards,
        services: &Services,
        file: &Arc<DirectoryFile>,
        queue: QueueControl,
        listeners: Vec<String>,
        alarms: NodeAlarms,
    ) -> Result<PathBuf> {
        let path = self.config.node.data_dir.join(SOCKET);
        // the directory is locked, so a socket that is there is a dead process's
        let _ = std::fs::remove_file(&path);
        let failed = || format!("opening the admin socket {}", path.display());
        let listener = UnixListener::bind(&path).with_context(failed)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
            .with_context(failed)?;
        let (asked, accepted) = (file.directory().clone(), file.clone());
        let service = AdminService {
            queues: Queues::new([Arc::new(LocalQueue(queue)) as Arc<dyn LedQueue>]),
            rcpt: Arc::new(move |path: ForwardPath| {
                let directory = asked.clone();
                Box::pin(async move { rcpt_reply(&*directory, &path).await })
            }),
            accept_directory: Arc::new(move || users::accept(accepted.clone())),
            directory: file.directory().clone(),
            archive: Arc::new(LocalArchive {
                home: services.home.clone(),
                home_shard: shards.home.shard.clone(),
                mailboxes: services.mailboxes.clone(),
            }),
            listeners,
            alarms,
        };
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

/// A key of this process.
fn random_key(ambient: &SharedAmbient) -> [u8; 32] {
    let mut key = [0; 32];
    for part in key.chunks_exact_mut(8) {
        part.copy_from_slice(&ambient.random().to_le_bytes());
    }
    key
}

async fn rcpt_reply(directory: &dyn Directory, path: &ForwardPath) -> Reply {
    match recipient::decide(directory, path).await {
        Ok(_) => Reply::new(250, (2, 1, 5), "recipient ok"),
        Err(rejection) => rejection.reply,
    }
}

/// The client that a load balancer has connected for, and its place among the client's connections; `None` closes.
async fn from_balancer(
    stream: &mut TcpStream,
    balancer: SocketAddr,
    live: &Live,
) -> Option<(SocketAddr, Admission)> {
    let networks = live
        .serving()
        .config
        .smtp
        .proxy_networks
        .iter()
        .map(|net| net.0)
        .collect();
    let client = match client_address(stream, balancer, &ProxyOptions::new(networks)).await {
        Ok(client) => client,
        Err(reason) => {
            tracing::info!(%balancer, %reason, "closed: no client from a load balancer");
            return None;
        }
    };
    let place = live.smtp_gate.admit(client.ip());
    if place.is_none() {
        tracing::info!(peer = %client, %balancer, "closed: too many connections from this address");
    }
    Some((client, place?))
}

async fn bind(name: &str, address: SocketAddr) -> Result<(TcpListener, String)> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("listening for {name} on {address}"))?;
    let bound = listener.local_addr()?;
    Ok((listener, format!("{name} {bound}")))
}

/// Whatever is no shard's: configuration, certificate, directory, a log that fills up.
fn node_alarms(
    alarms: &Alarms,
    file: &Arc<DirectoryFile>,
    shards: &Shards,
    log_bytes_max: u64,
) -> NodeAlarms {
    let (alarms, file, wal) = (alarms.clone(), file.clone(), shards.wal.clone());
    Arc::new(move || {
        let mut lines = alarms.list();
        lines.extend(file.alarm());
        lines.extend(log_alarm(&wal, log_bytes_max));
        lines
    })
}

//! One machine with every role, wired top to bottom: log, shards, services, leaders, listeners.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use hikyaku_access::mailboxes::{Mailboxes, MailboxesOptions};
use hikyaku_access::pop3::options::{Login, Pop3Options, Tls as Pop3Tls};
use hikyaku_access::pop3::server::{Pop3Deps, serve_pop3};
use hikyaku_blob::Blobs;
use hikyaku_blob::files::FileBlobs;
use hikyaku_control::admin::AdminService;
use hikyaku_control::queue::{LedQueue, Queues};
use hikyaku_delivery::control::QueueControl;
use hikyaku_delivery::leader::{DeliveryOptions, Deps, Leader};
use hikyaku_delivery::placement::Placement;
use hikyaku_delivery::schedule::Schedule;
use hikyaku_directory::Directory;
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
use hikyaku_serve::listen::{ListenLimits, accept_loop};
use hikyaku_serve::tasks::Tasks;
use hikyaku_serve::tls;
use hikyaku_shard::ambient::SharedAmbient;
use hikyaku_shard::lead;
use hikyaku_smtp::backend::Peer;
use hikyaku_smtp::options::Options as SmtpOptions;
use hikyaku_smtp::server::{Tls as SmtpTls, serve_connection};
use tokio::net::{TcpListener, UnixListener};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::UnixListenerStream;

use crate::ambient::System;
use crate::archive::{LocalArchive, LocalQueue};
use crate::config::Config;
use crate::lock::DirectoryLock;
use crate::operator::SOCKET;
use crate::shards::Shards;
use crate::sweep::Sweep;
use crate::users;

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
    config: Config,
    _lock: DirectoryLock,
}

impl Node {
    /// Starts everything in `config`; listeners are open when this returns.
    ///
    /// # Errors
    /// When anything cannot start; nothing is left running then.
    pub async fn start(config: Config) -> Result<Node> {
        let lock = DirectoryLock::take(&config.node.data_dir)?;
        let (tasks, ground) = (Tasks::new(), Tasks::new());
        let started = Starting {
            config: &config,
            tasks: &tasks,
            ground: &ground,
            ambient: Arc::new(System),
        }
        .run()
        .await;
        match started {
            Ok((shards, listeners, socket)) => Ok(Node {
                tasks,
                ground,
                shards,
                listeners,
                socket,
                config,
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
        if !self.tasks.drain(self.config.node.drain_timeout.0).await {
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
    async fn run(self) -> Result<(Shards, Vec<String>, PathBuf)> {
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
        let tls = self.tls()?;
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
        let mut listeners = self.listen_smtp(edge, tls.as_ref()).await?;
        listeners.extend(self.listen_pop3(deps, tls).await?);
        let socket = self.listen_admin(
            &shards,
            &services,
            directory.clone(),
            queue,
            listeners.clone(),
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
            file,
        );
        Ok((shards, listeners, socket))
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

    fn tls(&self) -> Result<Option<TlsAcceptor>> {
        let Some(files) = &self.config.tls else {
            return Ok(None);
        };
        let acceptor =
            tls::acceptor(files.certificate.get_ref(), files.key.get_ref()).context("tls")?;
        Ok(Some(acceptor))
    }

    async fn listen_smtp(&self, edge: Arc<Edge>, tls: Option<&TlsAcceptor>) -> Result<Vec<String>> {
        let smtp = &self.config.smtp;
        let options = Arc::new(SmtpOptions {
            content_bytes_max: smtp.message_bytes_max.0,
            recipients_max: smtp.recipients_max,
            ..SmtpOptions::new(edge.host_name.clone())
        });
        let limits = limits(smtp.connections_max, smtp.connections_per_source_max);
        let backend = Arc::new(EdgeBackend(edge));
        let sessions = Arc::new(AtomicU64::new(1));
        let name: Arc<str> = "smtp".into();
        let mut opened = Vec::new();
        for &address in &smtp.listen {
            let (listener, line) = bind("smtp", address).await?;
            opened.push(line);
            let tls = tls.map_or(SmtpTls::Off, |acceptor| SmtpTls::StartTls(acceptor.clone()));
            let (backend, options, sessions, name) = (
                backend.clone(),
                options.clone(),
                sessions.clone(),
                name.clone(),
            );
            let drain = self.tasks.draining();
            accept_loop(
                self.tasks,
                "smtp",
                listener,
                limits,
                move |stream, address| {
                    let peer = Peer::new(
                        sessions.fetch_add(1, Ordering::Relaxed),
                        address,
                        name.clone(),
                    );
                    let (backend, options, tls, drain) =
                        (backend.clone(), options.clone(), tls.clone(), drain.clone());
                    async move { serve_connection(stream, peer, &*backend, &options, tls, &drain).await }
                },
            );
        }
        Ok(opened)
    }

    async fn listen_pop3(
        &self,
        deps: Arc<Pop3Deps>,
        tls: Option<TlsAcceptor>,
    ) -> Result<Vec<String>> {
        let pop3 = &self.config.pop3;
        let login = if pop3.cleartext_login {
            Login::Cleartext
        } else {
            Login::TlsOnly
        };
        let options = Arc::new(Pop3Options {
            login,
            ..Pop3Options::default()
        });
        let limits = limits(pop3.connections_max, pop3.connections_per_source_max);
        let start_tls = tls.clone().map_or(Pop3Tls::Off, Pop3Tls::StartTls);
        let implicit = tls.map_or(Pop3Tls::Off, Pop3Tls::Implicit);
        let clear = pop3
            .listen
            .iter()
            .map(|&address| ("pop3", address, start_tls.clone()));
        let covered = pop3
            .listen_tls
            .get_ref()
            .iter()
            .map(|&address| ("pop3s", address, implicit.clone()));
        let mut opened = Vec::new();
        for (name, address, tls) in clear.chain(covered) {
            let (listener, line) = bind(name, address).await?;
            opened.push(line);
            let (deps, options, drain) = (deps.clone(), options.clone(), self.tasks.draining());
            accept_loop(self.tasks, name, listener, limits, move |stream, peer| {
                serve_pop3(
                    stream,
                    peer,
                    deps.clone(),
                    options.clone(),
                    tls.clone(),
                    drain.clone(),
                )
            });
        }
        Ok(opened)
    }

    fn listen_admin(
        &self,
        shards: &Shards,
        services: &Services,
        directory: Arc<LdifDirectory>,
        queue: QueueControl,
        listeners: Vec<String>,
    ) -> Result<PathBuf> {
        let path = self.config.node.data_dir.join(SOCKET);
        // the directory is locked, so a socket that is there is a dead process's
        let _ = std::fs::remove_file(&path);
        let failed = || format!("opening the admin socket {}", path.display());
        let listener = UnixListener::bind(&path).with_context(failed)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
            .with_context(failed)?;
        let asked = directory.clone();
        let service = AdminService {
            queues: Queues::new([Arc::new(LocalQueue(queue)) as Arc<dyn LedQueue>]),
            rcpt: Arc::new(move |path: ForwardPath| {
                let directory = asked.clone();
                Box::pin(async move { rcpt_reply(&*directory, &path).await })
            }),
            directory,
            archive: Arc::new(LocalArchive {
                home: services.home.clone(),
                home_shard: shards.home.shard.clone(),
                mailboxes: services.mailboxes.clone(),
            }),
            listeners,
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

async fn bind(name: &str, address: SocketAddr) -> Result<(TcpListener, String)> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("listening for {name} on {address}"))?;
    let bound = listener.local_addr()?;
    Ok((listener, format!("{name} {bound}")))
}

fn limits(connections_max: u32, per_source_max: u32) -> ListenLimits {
    ListenLimits {
        connections_max: connections_max as usize,
        connections_per_source_max: per_source_max as usize,
    }
}

//! One machine with every role, wired top to bottom: log, shards, services, leaders, listeners.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use futures_util::future::join_all;
use hikyaku_access::mailboxes::{Mailboxes, MailboxesOptions};
use hikyaku_access::pop3::server::Pop3Deps;
use hikyaku_blob::Blobs;
use hikyaku_blob::files::FileBlobs;
use hikyaku_control::admin::{AcceptDirectory, AdminService, NodeAlarms, Rcpt};
use hikyaku_control::queue::{LedQueue, Queues};
use hikyaku_delivery::control::QueueControl;
use hikyaku_delivery::leader::{DeliveryOptions, Deps, Leader};
use hikyaku_delivery::placement::Placement;
use hikyaku_delivery::schedule::Schedule;
use hikyaku_directory::Directory;
use hikyaku_directory::file::DirectoryFile;
use hikyaku_directory::ldif_directory::{LdifDirectory, Stamp};
use hikyaku_directory::throttle::{Throttle, ThrottleLimits};
use hikyaku_edge::backend::Edge;
use hikyaku_edge::quota::Quotas;
use hikyaku_edge::recipient;
use hikyaku_mail::path::ForwardPath;
use hikyaku_mail::reply::Reply;
use hikyaku_queue::intake::Intake;
use hikyaku_serve::descriptors;
use hikyaku_serve::tasks::Tasks;
use hikyaku_serve::tls::Material;
use hikyaku_shard::ambient::SharedAmbient;
use hikyaku_shard::lead;
use hikyaku_shard::machine::Machine;
use hikyaku_shard::runtime::Shard;
use tokio::signal::unix::Signal;

use crate::alarms::{self, Alarms};
use crate::ambient::System;
use crate::archive::{LocalArchive, LocalQueue};
use crate::budget::IN_FLIGHT_BYTES_MAX;
use crate::config::Config;
use crate::listeners::Listeners;
use crate::live::{Live, Serving};
use crate::lock::DirectoryLock;
use crate::observe::{Observed, disk_alarms, full_alarm, log_alarm, parked_alarm};
use crate::reload::Reloader;
use crate::services::Services;
use crate::shards::Shards;
use crate::sweep::Sweep;
use crate::telemetry::Logging;
use crate::{certificates, users};

/// File descriptors for all that is no connection: stores, log, blobs.
const DESCRIPTORS_BESIDE: u64 = 1000;

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
        allow_descriptors(&config);
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

/// As many file descriptors as there may be, and a line where that is too few.
fn allow_descriptors(config: &Config) {
    let connections =
        u64::from(config.smtp.connections_max) + u64::from(config.pop3.connections_max);
    let needed = connections + DESCRIPTORS_BESIDE;
    if let Some(allowed) = descriptors::raise().filter(|allowed| *allowed < needed) {
        tracing::warn!(
            allowed,
            needed,
            "fewer file descriptors than connections there may be: connections will be kept waiting"
        );
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

impl Starting<'_> {
    async fn run(self, source: Source) -> Result<Started> {
        let config = self.config;
        let (file, read) = self.directory()?;
        let certificate = Reloader::watch(config);
        let live = Arc::new(Live::new(Serving::new(
            Arc::new(Config::clone(config)),
            load_tls(config, &self.ambient)?,
        )));
        let blobs: Arc<dyn Blobs> = Arc::new(
            FileBlobs::open(&config.node.data_dir.join("blobs"))
                .context("opening the blob store")?,
        );
        let shards = Shards::open(config, self.ground, &self.ambient)?;
        let services = Services::new(self.ground, &shards);
        let queue = self
            .lead(&shards, &services, file.directory().clone(), blobs.clone())
            .await;

        let open = Listeners {
            config,
            tasks: self.tasks,
            live: &live,
        };
        let quotas = self.quotas(&services);
        let edge = self.edge(&shards, &file, &blobs, quotas.clone());
        let mut listeners = open.smtp(edge)?;
        let maildrops = self.maildrops(&services, &file, &blobs);
        listeners.extend(open.pop3(maildrops.clone())?);
        let alarms = Alarms::default();
        let logging = source.logging.clone();
        let node_alarms = node_alarms(&alarms, logging, &file, &shards, &queue, &maildrops, config);
        alarms::watch(self.tasks, node_alarms.clone());
        let observed = self.observed(&shards, &live, node_alarms.clone());
        listeners.extend(open.metrics(observed)?);
        let socket = open.admin(AdminService {
            queues: Queues::new([Arc::new(LocalQueue(queue)) as Arc<dyn LedQueue>]),
            rcpt: rcpt_of(&file, quotas),
            accept_directory: accept_of(&file),
            directory: file.directory().clone(),
            archive: Arc::new(LocalArchive {
                home: services.home.clone(),
                home_shard: shards.home.shard.clone(),
                mailboxes: services.mailboxes.clone(),
            }),
            listeners: listeners.clone(),
            alarms: node_alarms,
        })?;

        self.sweep(&shards, &services, &blobs);
        let ldif = config.directory.ldif.get_ref().clone();
        users::watch(self.tasks, self.ambient.clone(), ldif, read, file.clone());
        Reloader {
            file: source.file,
            live: live.clone(),
            directory: file,
            logging: source.logging,
            alarms,
            ambient: self.ambient.clone(),
            hangup: source.hangup,
            certificate,
        }
        .start(self.tasks);
        Ok(Started {
            shards,
            live,
            listeners,
            socket,
        })
    }

    /// Who the users are; what is wrong with single entries is in the log.
    fn directory(&self) -> Result<(Arc<DirectoryFile>, Stamp)> {
        let (file, read) =
            users::open(self.config, random_key(&self.ambient)).context("reading the directory")?;
        for line in users::located(
            self.config.directory.ldif.get_ref(),
            file.directory().table().findings(),
        ) {
            tracing::warn!(line, "directory entry");
        }
        Ok((Arc::new(file), read))
    }

    /// Which mailboxes are full: asked of every shard, all of which are here.
    fn quotas(&self, services: &Services) -> Quotas {
        let shards = self.config.mbox.values().flat_map(|mbox| {
            let shards = mbox.shards.get_ref().iter();
            shards.map(|&shard| u32::from(shard))
        });
        let mailboxes = services.mailbox_client();
        Quotas::watch(self.tasks, Arc::new(move |_| mailboxes.clone()), shards)
    }

    /// What takes mail.
    fn edge(
        &self,
        shards: &Shards,
        file: &Arc<DirectoryFile>,
        blobs: &Arc<dyn Blobs>,
        quotas: Quotas,
    ) -> Arc<Edge> {
        Arc::new(Edge {
            host_name: self.config.node.hostname.0.clone(),
            directory: file.directory().clone(),
            blobs: blobs.clone(),
            intakes: vec![Intake::new(&shards.incoming)],
            ambient: self.ambient.clone(),
            tasks: self.tasks.clone(),
            memory: Edge::memory_budget(self.config.smtp.memory_bytes_max.as_usize()),
            quotas,
        })
    }

    /// What shows it to its readers.
    fn maildrops(
        &self,
        services: &Services,
        file: &Arc<DirectoryFile>,
        blobs: &Arc<dyn Blobs>,
    ) -> Arc<Pop3Deps> {
        Arc::new(Pop3Deps {
            directory: file.directory().clone(),
            throttle: Arc::new(Throttle::new(
                ThrottleLimits::default(),
                random_key(&self.ambient),
            )),
            mailboxes: Mailboxes::new(
                services.home_client(),
                services.mailbox_client(),
                self.ambient.clone(),
                MailboxesOptions {
                    memory_bytes_max: self.config.pop3.memory_bytes_max.as_usize(),
                    ..MailboxesOptions::default()
                },
            ),
            blobs: blobs.clone(),
        })
    }

    fn observed(&self, shards: &Shards, live: &Arc<Live>, alarms: NodeAlarms) -> Observed {
        Observed {
            intake: Intake::new(&shards.incoming),
            wal: shards.wal.clone(),
            home: shards.home.clone(),
            mailboxes: shards.mailboxes.clone(),
            live: live.clone(),
            alarms,
            tasks: self.tasks.clone(),
        }
    }

    fn sweep(&self, shards: &Shards, services: &Services, blobs: &Arc<dyn Blobs>) {
        Sweep {
            blobs: blobs.clone(),
            incoming: shards.incoming.clone(),
            mailboxes: services.mailboxes.clone(),
            interval: self.config.blobs.sweep_interval.0,
            keep_unnamed: self.config.blobs.keep_unnamed.0,
            ages: self.config.node.data_dir.join("unnamed-blobs"),
            ambient: self.ambient.clone(),
        }
        .start(self.tasks);
    }

    /// Leads `shard` as soon as its log takes records, and returns when it has applied what the log holds, or cannot now: mail for
    /// it waits then, and everything else goes on.
    async fn begin<M: Machine>(&self, shard: &Shard<M>) {
        let (tasks, led) = (self.ground.clone(), shard.clone());
        self.ground.spawn("begin to lead", async move {
            // the trouble itself is in the log already
            let _ = lead::begin(&tasks, &led).await;
        });
        if let Err(behind) = lead::catch_up(shard).await {
            tracing::error!(shard = %shard.id(), %behind, "starting without this shard; mail for it waits");
        }
    }

    /// Leads every shard of this machine: there is nobody else.
    async fn lead(
        &self,
        shards: &Shards,
        services: &Services,
        directory: Arc<LdifDirectory>,
        blobs: Arc<dyn Blobs>,
    ) -> QueueControl {
        let mailboxes = shards.mailboxes.iter();
        tokio::join!(
            self.begin(&shards.home.shard),
            join_all(mailboxes.map(|mailbox| self.begin(&mailbox.shard)))
        );
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
                delay_report: queue.report_delay_after.0,
                ..Schedule::default()
            },
            host_name: self.config.node.hostname.0.clone(),
            in_flight_bytes_max: IN_FLIGHT_BYTES_MAX as u64,
            ..DeliveryOptions::default()
        };
        Leader::start(self.tasks, shards.incoming.clone(), deps, options)
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

/// What RCPT would answer, for `hikyaku route explain`.
fn rcpt_of(file: &Arc<DirectoryFile>, quotas: Quotas) -> Rcpt {
    let directory = file.directory().clone();
    Arc::new(move |path: ForwardPath| {
        let (directory, quotas) = (directory.clone(), quotas.clone());
        Box::pin(async move { rcpt_reply(&*directory, &quotas, &path).await })
    })
}

/// `hikyaku directory accept`
fn accept_of(file: &Arc<DirectoryFile>) -> AcceptDirectory {
    let file = file.clone();
    Arc::new(move || users::accept(file.clone()))
}

async fn rcpt_reply(directory: &dyn Directory, quotas: &Quotas, path: &ForwardPath) -> Reply {
    let decided = async {
        let accepted = recipient::decide(directory, path).await?;
        quotas.admit(path, &accepted, None).await
    };
    match decided.await {
        Ok(()) => Reply::new(250, (2, 1, 5), "recipient ok"),
        Err(rejection) => rejection.reply,
    }
}

/// An alarm while directory entries cannot be used.
fn broken_entries_alarm(count: usize) -> Option<String> {
    (count > 0).then(|| {
        format!("{count} broken directory entries: mail for them waits, nobody logs in; `hikyaku check` names them")
    })
}

/// Configuration, certificate, directory; lines that nobody reads; a log, a queue or a disk that is
/// full or fills up; shards that are parked or do not answer; maildrops that are not shown whole.
fn node_alarms(
    alarms: &Alarms,
    logging: Logging,
    file: &Arc<DirectoryFile>,
    shards: &Shards,
    queue: &QueueControl,
    maildrops: &Arc<Pop3Deps>,
    config: &Config,
) -> NodeAlarms {
    let (alarms, file, wal) = (alarms.clone(), file.clone(), shards.wal.clone());
    let (queue, home, mailboxes) = (queue.clone(), shards.home.clone(), shards.mailboxes.clone());
    let maildrops = maildrops.clone();
    let intake = Intake::new(&shards.incoming);
    let log_bytes_max = config.log.bytes_max.0;
    let segment_bytes = config.log.segment_bytes.0;
    let data_dir = config.node.data_dir.clone();
    Arc::new(move || {
        let mut lines = alarms.list();
        lines.extend(logging.alarm());
        lines.extend(file.alarm());
        lines.extend(broken_entries_alarm(file.directory().table().broken()));
        lines.extend(full_alarm(&intake));
        lines.extend(log_alarm(&wal, log_bytes_max));
        lines.extend(disk_alarms(&data_dir, segment_bytes));
        lines.extend(parked_alarm(queue.shard()));
        lines.extend(parked_alarm(&home.shard));
        let parked = mailboxes.iter().map(|mailbox| parked_alarm(&mailbox.shard));
        lines.extend(parked.flatten());
        lines.extend(queue.alarms());
        lines.extend(maildrops.mailboxes.alarms());
        lines
    })
}

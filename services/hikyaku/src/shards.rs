//! The shards of one machine: home, mailboxes and the incoming queue over one write-ahead log.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use hikyaku_engine::Engine;
use hikyaku_engine::disk::{DiskEngine, Options, Shared};
use hikyaku_home::machine::HomeMachine;
use hikyaku_log::wal::{Wal, WalOptions};
use hikyaku_log::{Class, Log, ShardId};
use hikyaku_mbox::home::LocalHome;
use hikyaku_mbox::mailbox::LocalMailbox;
use hikyaku_queue::machine::{QueueMachine, QueueOptions};
use hikyaku_serve::tasks::Tasks;
use hikyaku_shard::ambient::SharedAmbient;
use hikyaku_shard::runtime::{Shard, ShardOptions};
use hikyaku_store::machine::MailboxMachine;

use crate::budget::PENDING_BYTES_MAX;
use crate::config::Config;

/// What this node's replicas call themselves.
const REPLICA: &str = "local";
/// Between two syncs of the log at least: some 330 a second, whatever the rate of mail. A lone mail does not wait.
const GATHER: Duration = Duration::from_millis(3);

/// Everything that is durable here.
pub struct Shards {
    /// The log under all shards.
    pub wal: Arc<Wal>,
    /// The one incoming queue.
    pub incoming: Shard<QueueMachine>,
    /// Who owns an account.
    pub home: LocalHome,
    /// Mailboxes.
    pub mailboxes: Vec<LocalMailbox>,
    /// Flushers and caches of the stores; declared last, so that it goes last.
    _engines: Shared,
}

impl Shards {
    /// Opens log and stores under `config`'s data directory and starts applying.
    ///
    /// # Errors
    /// When a file cannot be used or is damaged; says which.
    pub fn open(config: &Config, tasks: &Tasks, ambient: &SharedAmbient) -> Result<Shards> {
        let directory = &config.node.data_dir;
        let options = WalOptions {
            segment_bytes: config.log.segment_bytes.0,
            wal_bytes_max: config.log.bytes_max.0,
            pending_bytes_max: PENDING_BYTES_MAX,
            recent_bytes_max: config.log.cache_bytes_max.0,
            gather: GATHER,
            ..WalOptions::new(ambient.random())
        };
        let log = directory.join("log");
        // a large one on a slow disk takes a while
        tracing::info!(directory = %log.display(), "reading the log");
        let wal = Wal::open(&log, options)
            .with_context(|| format!("opening the log {}", log.display()))?;
        let wal = Arc::new(wal);
        let engines = Shared::start(Options {
            cache_bytes_max: config.store.cache_bytes_max.0,
            memtable_bytes_max: config.store.memtable_bytes_max.0,
            memtable_age_max: config.store.flush_interval.0,
            ..Options::default()
        })
        .context("starting the stores")?;
        let start = Start {
            directory,
            tasks,
            ambient,
            log: wal.clone(),
        };
        let (shard, engine) =
            start.stored(ShardId::new(Class::Home, 0), &engines, HomeMachine::open)?;
        let home = LocalHome { shard, engine };
        let numbers: BTreeMap<u16, ()> = config
            .mbox
            .values()
            .flat_map(|mbox| mbox.shards.get_ref())
            .map(|&number| (number, ()))
            .collect();
        let mut mailboxes = Vec::new();
        for &number in numbers.keys() {
            let id = ShardId::new(Class::Mbox, number);
            let (shard, engine) = start.stored(id, &engines, MailboxMachine::open)?;
            mailboxes.push(LocalMailbox { shard, engine });
        }
        let queue = QueueMachine::new(QueueOptions {
            queue_messages_max: config.queue.messages_max,
            queue_bytes_max: config.queue.bytes_max.0,
            body_cache_bytes_max: config.queue.body_cache_bytes_max.as_usize(),
            ..QueueOptions::default()
        });
        let incoming = start.shard(ShardId::new(Class::Incoming, 0), queue);
        Ok(Shards {
            wal,
            incoming,
            home,
            mailboxes,
            _engines: engines,
        })
    }

    /// Makes all stores durable, so that the next start replays nothing. Blocking.
    pub fn flush(&self) {
        let engines = self
            .mailboxes
            .iter()
            .map(|mailbox| &mailbox.engine)
            .chain([&self.home.engine]);
        for engine in engines {
            if let Err(error) = engine.flush() {
                tracing::warn!(%error, "flushing at the end failed; the next start replays the log instead");
            }
        }
    }
}

struct Start<'a> {
    directory: &'a Path,
    tasks: &'a Tasks,
    ambient: &'a SharedAmbient,
    log: Arc<dyn Log>,
}

impl Start<'_> {
    fn shard<M: hikyaku_shard::machine::Machine>(&self, id: ShardId, machine: M) -> Shard<M> {
        let options = ShardOptions::default();
        Shard::start(
            self.tasks,
            id,
            REPLICA,
            self.log.clone(),
            self.ambient.clone(),
            machine,
            options,
        )
    }

    fn stored<M, E>(
        &self,
        id: ShardId,
        engines: &Shared,
        open: impl FnOnce(Arc<dyn Engine>) -> Result<M, E>,
    ) -> Result<(Shard<M>, Arc<dyn Engine>)>
    where
        M: hikyaku_shard::machine::Machine,
        E: std::error::Error + Send + Sync + 'static,
    {
        let directory = self.directory.join("store").join(id.to_string());
        let failed = || format!("opening the store {}", directory.display());
        let engine: Arc<dyn Engine> = DiskEngine::open(&directory, engines).with_context(failed)?;
        let machine = open(engine.clone()).with_context(failed)?;
        Ok((self.shard(id, machine), engine))
    }
}

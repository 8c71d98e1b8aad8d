//! The machines: each runs every role over its own stores, a shared log, and the simulated network. A machine can die at any
//! await, start again from what its stores had flushed, join late from another one's snapshot, or lead while another leads.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use hikyaku_access::mailboxes::{Mailboxes, MailboxesOptions};
use hikyaku_delivery::control::QueueControl;
use hikyaku_delivery::leader::{DeliveryOptions, Deps, Leader};
use hikyaku_delivery::schedule::Schedule;
use hikyaku_edge::backend::{Edge, EdgeBackend};
use hikyaku_edge::quota::{MailboxRouter, Quotas};
use hikyaku_engine::memory::{MemoryDisk, MemoryEngine};
use hikyaku_engine::{Engine, Pair, Snapshot};
use hikyaku_home::machine::HomeMachine;
use hikyaku_log::sim::{SimDisk, SimLog};
use hikyaku_log::{Class, Log, Position, ShardId};
use hikyaku_mbox::home::{HomeService, LocalHome};
use hikyaku_mbox::mailbox::{LocalMailbox, MailboxService};
use hikyaku_mbox::options::MboxOptions;
use hikyaku_queue::intake::Intake;
use hikyaku_queue::machine::{QueueMachine, QueueOptions};
use hikyaku_serve::tasks::Tasks;
use hikyaku_shard::lead;
use hikyaku_shard::machine::{Machine as StateMachine, Trouble};
use hikyaku_shard::runtime::{Shard, ShardOptions};
use hikyaku_shard::stored::Stored;
use hikyaku_store::machine::MailboxMachine;

use super::clients::{Clients, Front};
use super::history::{HOME, History, INCOMING, mbox, shards};
use super::network::{Network, Peer};
use super::random::Random;
use super::site::{FULL_SHARD, SPARE_SHARD, SimDirectory, placement};
use super::watched::WatchedLog;
use super::world::{SimAmbient, World};

/// Machines of the cluster.
pub const MACHINES: usize = 2;

/// A machine, up or down.
pub struct Machine {
    /// Its number.
    pub index: usize,
    /// What its replicas call themselves.
    pub name: &'static str,
    /// Its stores.
    pub disk: MemoryDisk,
    /// Its clock.
    pub ambient: Arc<SimAmbient>,
    /// The directory as it sees it.
    pub directory: Arc<SimDirectory>,
    /// Set while it runs.
    pub life: Option<Life>,
}

/// A running machine.
pub struct Life {
    /// Its tasks.
    pub tasks: Tasks,
    /// Its handle on the log.
    pub log: Arc<SimLog>,
    /// The incoming queue.
    pub incoming: Shard<QueueMachine>,
    /// Set while it leads the queue.
    pub control: Option<QueueControl>,
    /// Home.
    pub home: LocalHome,
    /// Mailbox shards by index.
    pub mailboxes: Vec<LocalMailbox>,
    deps: Deps,
}

/// All machines and what they share.
pub struct Cluster {
    /// The run.
    pub world: World,
    /// The log under everything.
    pub log: SimDisk,
    /// What was ever in it.
    pub history: History,
    /// What connects the machines.
    pub network: Network,
    /// Those outside.
    pub clients: Clients,
    /// The machines.
    pub machines: Vec<Machine>,
    body_cache_bytes_max: usize,
    random: Random,
    /// Whether RCPT asks about full mailboxes; without, all mail for them comes in.
    pub asks_quotas: bool,
}

fn schedule() -> Schedule {
    Schedule {
        retry_first: Duration::from_secs(20),
        retry_max: Duration::from_secs(120),
        expiry: Duration::from_secs(40 * 60),
        expiry_null: Duration::from_secs(20 * 60),
        delay_report: Duration::from_secs(5 * 60),
    }
}

/// Shards with a store.
pub fn stored_shards() -> impl Iterator<Item = ShardId> {
    shards()
        .into_iter()
        .filter(|shard| shard.class != Class::Incoming)
}

fn applied_in(position: &[u8]) -> Position {
    Stored::decode(position).unwrap().applied.stamp.position
}

fn pairs(snapshot: &dyn Snapshot) -> Vec<Pair> {
    let mut pairs: Vec<Pair> = Vec::new();
    loop {
        let from = match pairs.last() {
            Some((last, _)) => [&last[..], &[0]].concat(),
            None => Vec::new(),
        };
        let page = snapshot.scan(&[], &from, 500).unwrap();
        if page.is_empty() {
            return pairs;
        }
        pairs.extend(page);
    }
}

impl Cluster {
    /// Machines that are all down.
    pub fn new(world: World, log: SimDisk, clients: Clients, random: &mut Random) -> Cluster {
        let history = History::new(world.clone(), log.clone());
        let network = Network::new(world.clone(), clients.tasks.clone(), random.fork());
        let machines = (0..MACHINES).map(|index| Machine {
            index,
            name: ["a", "b"][index],
            disk: MemoryDisk::new(),
            ambient: SimAmbient::new(random.fork()),
            directory: SimDirectory::new(random.fork()),
            life: None,
        });
        Cluster {
            history,
            network,
            machines: machines.collect(),
            body_cache_bytes_max: random.below(3) * 20_000,
            random: random.fork(),
            asks_quotas: false,
            log,
            clients,
            world,
        }
    }

    /// Machines that run.
    pub fn live(&self) -> Vec<usize> {
        let live = self
            .machines
            .iter()
            .filter(|machine| machine.life.is_some());
        live.map(|machine| machine.index).collect()
    }

    /// Starts machine `index`; a store that the log has left behind is first taken from the other machine.
    pub fn start(&mut self, index: usize, leads: bool) {
        self.world
            .note(format_args!("machine {index} starts, leads: {leads}"));
        let log = Arc::new(SimLog::open(&self.log, self.log.faults()));
        for shard in stored_shards() {
            let engine = MemoryEngine::open(&self.machines[index].disk, &shard.to_string());
            let next = applied_in(&engine.position()).next();
            if next < log.bounds(shard).start {
                self.bootstrap(index, shard, log.bounds(shard).start);
            }
        }
        let tasks = Tasks::new();
        let watched: Arc<dyn Log> = Arc::new(WatchedLog {
            inner: log.clone(),
            history: self.history.clone(),
            disk: self.log.clone(),
            tasks: self.clients.tasks.clone(),
            random: Mutex::new(self.random.fork()),
        });
        let starting = Starting {
            cluster: self,
            machine: &self.machines[index],
            tasks: &tasks,
            log: watched,
        };
        let (mut life, front, peer) = starting.run(log);
        self.network.connect(peer);
        super::world::lock(&self.clients.fronts).insert(index, front);
        if leads {
            Cluster::lead_with(&mut life);
        }
        self.machines[index].life = Some(life);
    }

    /// Whether the log was cut above what running machine `index` has applied.
    pub fn is_left_behind(&self, index: usize, shard: ShardId) -> bool {
        let life = self.machines[index].life.as_ref();
        life.is_some_and(|life| {
            let position = life.engine(shard).snapshot().position();
            applied_in(&position).next() < life.log.bounds(shard).start
        })
    }

    /// Machine `index` leads from now on, whoever else does.
    pub fn lead(&mut self, index: usize) -> bool {
        match &mut self.machines[index].life {
            Some(life) if life.control.is_none() => {
                Cluster::lead_with(life);
                true
            }
            _ => false,
        }
    }

    fn lead_with(life: &mut Life) {
        let options = DeliveryOptions {
            host_name: "mx.example.jp".to_owned(),
            schedule: schedule(),
            garbage_bytes_min: 24 * 1024,
            carry_bytes_per_second: 64 * 1024,
            ..DeliveryOptions::default()
        };
        let control = Leader::start(
            &life.tasks,
            life.incoming.clone(),
            life.deps.clone(),
            options,
        );
        life.control = Some(control);
        fn begin<M: StateMachine>(tasks: &Tasks, shard: &Shard<M>) {
            let (tasks, shard) = (tasks.clone(), shard.clone());
            tasks.clone().spawn("lead", async move {
                let _ = lead::begin(&tasks, &shard).await;
            });
        }
        begin(&life.tasks, &life.home.shard);
        for mailbox in &life.mailboxes {
            begin(&life.tasks, &mailbox.shard);
        }
    }

    /// Replaces a store by the other machine's: a snapshot of the running one, or what the stopped one had flushed.
    pub fn bootstrap(&self, index: usize, shard: ShardId, needed: Position) {
        let other = &self.machines[(index + 1) % MACHINES];
        let running = other.life.as_ref().map(|life| life.engine(shard));
        let source: Arc<dyn Engine> = match running {
            Some(engine) => engine,
            None => MemoryEngine::open(&other.disk, &shard.to_string()),
        };
        let snapshot = source.snapshot();
        let position = snapshot.position();
        if applied_in(&position).next() < needed {
            self.world.violate(format_args!(
                "M10: {shard} was cut below {needed}, and no replica has more than {}",
                applied_in(&position)
            ));
            return;
        }
        self.world.count("fault/snapshot bootstrap");
        self.world.note(format_args!(
            "machine {index} takes {shard} from a snapshot at {}",
            applied_in(&position)
        ));
        let pairs = pairs(&*snapshot);
        let disk = &self.machines[index].disk;
        MemoryEngine::replace(
            disk,
            &shard.to_string(),
            pairs.into_iter().map(Ok),
            position,
        )
        .unwrap();
    }

    /// Machine `index` dies where it stands; with `power` lost, so does everything in flight in its log.
    pub async fn crash(&mut self, index: usize) {
        let Some(life) = self.machines[index].life.take() else {
            return;
        };
        self.world.note(format_args!("machine {index} crashes"));
        self.disconnect(index);
        life.tasks.kill().await;
        life.log.crash();
        self.count_crossings();
    }

    /// All machines die at once.
    pub async fn crash_all(&mut self, power: bool) {
        self.world
            .note(format_args!("all machines crash, power lost: {power}"));
        for index in 0..MACHINES {
            if let Some(life) = self.machines[index].life.take() {
                self.disconnect(index);
                life.tasks.kill().await;
            }
        }
        if power {
            self.log.power_loss();
        } else {
            self.log.crash();
        }
        self.history.reopen();
        self.count_crossings();
    }

    /// Machine `index` finishes what it has begun, flushes, and stops.
    pub async fn stop(&mut self, index: usize) {
        let Some(life) = self.machines[index].life.take() else {
            return;
        };
        self.world.note(format_args!("machine {index} stops"));
        self.disconnect(index);
        life.tasks.drain(Duration::from_secs(20)).await;
        life.tasks.kill().await;
        for shard in stored_shards() {
            let _ = life.engine(shard).flush();
        }
        life.log.crash();
    }

    fn disconnect(&self, index: usize) {
        self.network.disconnect(index);
        super::world::lock(&self.clients.fronts).remove(&index);
    }

    fn count_crossings(&self) {
        self.history.collect();
        for crossing in self.history.look(|truth| truth.crossings()) {
            self.world.count(crossing);
        }
        let ledger = super::world::lock(&self.clients.ledger);
        let unanswered = ledger
            .attempts
            .iter()
            .any(|attempt| attempt.phase == super::ledger::Phase::DotSent);
        if unanswered {
            self.world.count("crossed/before A or its 250");
        }
    }

    /// M1 and Q10: every replica's state is what the records it has applied make. Answers machines whose stores the log has
    /// left behind.
    pub fn check_replicas(&self) -> Vec<usize> {
        self.history.collect();
        let mut left_behind = Vec::new();
        for machine in &self.machines {
            let Some(life) = &machine.life else { continue };
            let mut left = self.check_replica(machine.name, &life.home.shard, false);
            for mailbox in &life.mailboxes {
                left |= self.check_replica(machine.name, &mailbox.shard, false);
            }
            self.check_replica(machine.name, &life.incoming, true);
            if left {
                left_behind.push(machine.index);
            }
        }
        left_behind
    }

    /// True when the log was cut above what this replica has applied.
    fn check_replica<M: StateMachine>(&self, name: &str, shard: &Shard<M>, is_queue: bool) -> bool {
        match shard.trouble() {
            None => {}
            Some(Trouble::LogMismatch(_)) if !is_queue => return true,
            Some(trouble) => {
                let id = shard.id();
                self.world
                    .violate(format_args!("machine {name} parked {id}: {trouble}"));
            }
        }
        let applied = match is_queue {
            true => *shard.applied().borrow(),
            false => shard.read(|machine| machine.applied().stamp.position),
        };
        // a queue that is still replaying can miss a message whose Carry is yet to come
        if is_queue && applied.0 + 1 != self.history.end(shard.id()) {
            return false;
        }
        let hash = shard.read(StateMachine::state_hash);
        if self.history.hash_at(shard.id(), applied) != Some(hash) {
            let id = shard.id();
            self.world.violate(format_args!(
                "M1: {id} on machine {name} has another state at {applied} than the log makes"
            ));
        }
        false
    }

    /// Q8: a queue that begins with what the log still has knows the same mail, and no replica remembers less of what happened to
    /// it: an old `Carry` may yet come.
    pub fn check_replay(&self) {
        let (replayed, repeats) = self.history.replayed();
        let end = self.history.end(INCOMING);
        let world = &self.world;
        if self.history.hash_at(INCOMING, Position(end - 1)) != Some(replayed.state_hash()) {
            world.violate("Q8: the log does not make the queue's state any more");
        }
        for machine in &self.machines {
            let Some(life) = &machine.life else { continue };
            let kept = life.incoming.read(QueueMachine::kept_len) + repeats;
            if kept < replayed.kept_len() {
                let (name, logged) = (machine.name, replayed.kept_len());
                world.violate(format_args!(
                    "Q8: the queue on machine {name} remembers {kept} of {logged} facts"
                ));
            }
        }
    }

    /// M9 and the rest that a recount finds, on every mailbox shard and Home.
    pub fn audit(&self) {
        for machine in &self.machines {
            let Some(life) = &machine.life else { continue };
            for mailbox in &life.mailboxes {
                let audit = hikyaku_store::audit::audit(&*mailbox.engine.snapshot()).unwrap();
                for fault in audit.faults {
                    let (id, name) = (mailbox.shard.id(), machine.name);
                    self.world
                        .violate(format_args!("audit of {id} on {name}: {fault}"));
                }
            }
            for fault in hikyaku_home::read::audit(&*life.home.engine.snapshot()).unwrap() {
                let name = machine.name;
                self.world
                    .violate(format_args!("audit of home on {name}: {fault}"));
            }
        }
    }
}

impl Life {
    /// The store under a shard.
    pub fn engine(&self, shard: ShardId) -> Arc<dyn Engine> {
        match shard.class {
            Class::Home => self.home.engine.clone(),
            _ => self.mailboxes[usize::from(shard.index)].engine.clone(),
        }
    }
}

struct Starting<'a> {
    cluster: &'a Cluster,
    machine: &'a Machine,
    tasks: &'a Tasks,
    log: Arc<dyn Log>,
}

impl Starting<'_> {
    fn shard<M: StateMachine>(&self, id: ShardId, machine: M) -> Shard<M> {
        let options = ShardOptions {
            maintenance_interval: Duration::from_secs(2),
        };
        Shard::start(
            self.tasks,
            id,
            self.machine.name,
            self.log.clone(),
            self.machine.ambient.clone(),
            machine,
            options,
        )
    }

    fn engine(&self, id: ShardId) -> Arc<MemoryEngine> {
        MemoryEngine::open(&self.machine.disk, &id.to_string())
    }

    fn run(&self, log: Arc<SimLog>) -> (Life, Front, Peer) {
        let options = MboxOptions::default();
        let network = &self.cluster.network;
        let engine = self.engine(HOME);
        let home = LocalHome {
            shard: self.shard(HOME, HomeMachine::open(engine.clone()).unwrap()),
            engine,
        };
        let mailboxes: Vec<LocalMailbox> = (0..=SPARE_SHARD)
            .map(|index| {
                let engine = self.engine(mbox(index));
                LocalMailbox {
                    shard: self.shard(mbox(index), MailboxMachine::open(engine.clone()).unwrap()),
                    engine,
                }
            })
            .collect();
        let queue = QueueMachine::new(QueueOptions {
            body_cache_bytes_max: self.cluster.body_cache_bytes_max,
            ..QueueOptions::default()
        });
        let incoming = self.shard(INCOMING, queue);
        let peer = Peer {
            machine: self.machine.index,
            tasks: self.tasks.clone(),
            home: HomeService::new(self.tasks, home.clone(), options),
            mailboxes: MailboxService::new(
                self.tasks,
                mailboxes.clone(),
                network.home_transport(),
                options,
            ),
        };
        let client = network.mailbox_client();
        let router: MailboxRouter = Arc::new(move |_| client.clone());
        let quotas = match self.cluster.asks_quotas {
            // one shard: what is asked every second takes most of such a run
            true => Quotas::watch(self.tasks, router.clone(), [u32::from(FULL_SHARD)]),
            false => Quotas::unknown(),
        };
        let edge = Edge {
            host_name: "mx.example.jp".to_owned(),
            directory: self.machine.directory.clone(),
            blobs: Arc::new(self.cluster.clients.blobs.clone()),
            intakes: vec![Intake::new(&incoming)],
            ambient: self.machine.ambient.clone(),
            tasks: self.tasks.clone(),
            memory: Edge::memory_budget(64 << 20),
            quotas,
        };
        let front = Front {
            tasks: self.tasks.clone(),
            backend: EdgeBackend(Arc::new(edge)),
            access: Mailboxes::new(
                network.home_client(),
                network.mailbox_client(),
                self.machine.ambient.clone(),
                MailboxesOptions::default(),
            ),
        };
        let deps = Deps {
            directory: self.machine.directory.clone(),
            blobs: Arc::new(self.cluster.clients.blobs.clone()),
            home: network.home_client(),
            mailboxes: router,
            placement: placement(),
        };
        let life = Life {
            tasks: self.tasks.clone(),
            log,
            incoming,
            control: None,
            home,
            mailboxes,
            deps,
        };
        (life, front, peer)
    }
}

/// The retained payload octets of all shards.
pub fn retained_bytes(log: &dyn Log) -> u64 {
    shards()
        .into_iter()
        .map(|shard| log.pinned(shard).bytes)
        .sum()
}

//! One run: traffic, faults and checks from one seed, then healing, and the question what became of everything.

use std::collections::BTreeMap;
use std::time::Duration;

use hikyaku_log::sim::{SimDisk, SimFaults};
use hikyaku_mail::id::MessageId;
use hikyaku_proto::v1::operate::Order;
use tokio::time::{Instant, sleep};

use super::clients::Clients;
use super::cluster::{Cluster, MACHINES, stored_shards};
use super::ledger::number_in;
use super::network::NetFaults;
use super::random::Random;
use super::site::{ACCOUNTS, USUAL_ADDRESSES, Version, account_id};
use super::world::{World, lock};
use super::{backups, faults, operator, quota, scenario};

/// Mails sent in a run at least.
const MAILS_MIN: usize = 200;
/// Faults that the run itself causes at least; those of log and network come on top.
const FAULTS_MIN: usize = 30;
/// Simulated time in which everything that can settle must have settled after healing.
const SETTLE_MAX: Duration = Duration::from_secs(30 * 60);

/// Makes the plans' randomness another one than the run's.
const PLANS: u64 = 0x706c_616e_7300_0000;

/// What is planned for a run. See [`scenario`] and [`backups`].
#[derive(Clone, Copy, Debug)]
enum Plan {
    Newcomers,
    Crowd,
    Restore,
}

/// What a run has planned, and when.
fn plans(random: &mut Random) -> Vec<(usize, Plan)> {
    let mut plans = Vec::new();
    for plan in [Plan::Newcomers, Plan::Crowd, Plan::Restore] {
        if random.chance(400) {
            plans.push((20 + random.below(MAILS_MIN / 2), plan));
        }
    }
    plans
}

/// A run in progress.
pub struct Run {
    /// What everything shares.
    pub world: World,
    /// Decides what happens next.
    pub random: Random,
    /// The machines.
    pub cluster: Cluster,
    /// The directory's contents.
    pub version: Version,
    /// When machines that are down start again.
    pub restarts: BTreeMap<usize, Instant>,
    /// Faults caused so far.
    pub faults: usize,
    /// How the log behaves when nothing special is the matter.
    pub log_faults: SimFaults,
    /// Re-routing scenarios so far.
    pub scenarios: usize,
    /// What takes several things at the right moment and is yet to come: from how many mails on, and what.
    plans: Vec<(usize, Plan)>,
    /// Whether an operator has limited an account.
    pub limited: bool,
    /// Whether the quota that is checked in the end goes away; otherwise its mailbox is emptied.
    pub lifts_quota: bool,
}

impl Run {
    /// A run of `seed`: one machine is up.
    pub fn new(seed: u64, world: World) -> Run {
        let mut random = Random::new(seed);
        let log = SimDisk::new(random.draw());
        // some runs on a log that keeps the order of appends, some on one that does not
        let reordered = if random.chance(500) { 50 } else { 0 };
        let log_faults = SimFaults {
            append_late: 10,
            ack_late: 10,
            ack_lost: 10,
            append_lost: 10,
            reordered,
            unavailable: 1,
            full: 1,
            tail_slow: 15,
            ..SimFaults::rough()
        };
        log.set_faults(log_faults.clone());
        let blobs = hikyaku_blob::memory::MemoryBlobs::new();
        let clients = Clients::new(world.clone(), blobs);
        let mut cluster = Cluster::new(world.clone(), log, clients, &mut random);
        cluster.network.set_faults(NetFaults::rough());
        // not drawn, so that the other seeds go on to mean what they meant
        cluster.asks_quotas = seed % 4 == 3;
        cluster.start(0, true);
        Run {
            world,
            cluster,
            version: Version::first(),
            restarts: BTreeMap::new(),
            faults: 0,
            log_faults,
            scenarios: 0,
            plans: plans(&mut Random::new(seed ^ PLANS)),
            limited: false,
            lifts_quota: seed % 8 == 3,
            random,
        }
    }

    fn has_failed(&self) -> bool {
        self.world.violation().is_some()
    }

    fn mails(&self) -> usize {
        lock(&self.cluster.clients.ledger).attempts.len()
    }

    /// The whole run.
    pub async fn go(mut self) {
        while self.mails() < MAILS_MIN || self.faults < FAULTS_MIN {
            self.pause().await;
            self.supervise().await;
            self.act().await;
            if self.cluster.asks_quotas && !self.limited && self.mails() > MAILS_MIN / 4 {
                self.limited = true;
                scenario::operator_limits(&mut self);
            }
            self.carry_out();
            self.check();
            if self.has_failed() {
                return;
            }
        }
        self.world.count_many("run/mails", self.mails() as u64);
        self.world.count_many("run/faults", self.faults as u64);
        self.heal().await;
        if self.cluster.asks_quotas && !self.has_failed() {
            let lifts = self.lifts_quota;
            quota::check(&mut self, lifts).await;
        }
        self.settle().await;
        if self.has_failed() {
            return;
        }
        operator::restore(&self).await;
        if self.random.chance(300) {
            // nothing may depend on what only memory knows
            self.cluster.crash_all(true).await;
            for index in 0..MACHINES {
                self.cluster.start(index, index == 0);
            }
        }
        self.catch_up().await;
        if self.has_failed() {
            return;
        }
        self.cluster.audit();
        self.cluster.check_replay();
        self.sweep().await;
        for (what, count) in self.cluster.log.counts() {
            self.world.count_many(format!("log/{what}"), count);
        }
    }

    /// Begins what is planned for now; what cannot begin waits.
    fn carry_out(&mut self) {
        let mails = self.mails();
        let due = self.plans.iter().position(|(from, _)| *from <= mails);
        let Some(index) = due else { return };
        let begun = match self.plans[index].1 {
            Plan::Newcomers => scenario::newcomers(self),
            Plan::Crowd => scenario::crowd(self),
            Plan::Restore => backups::restored_meanwhile(self),
        };
        if begun {
            self.plans.remove(index);
        }
    }

    async fn pause(&mut self) {
        let pause = match self.random.below(100) {
            0..70 => self.random.millis(0, 400),
            70..95 => self.random.millis(400, 3_000),
            _ => self.random.millis(5_000, 40_000),
        };
        sleep(pause).await;
    }

    /// Starts what is to start again, and sees that somebody leads.
    pub async fn supervise(&mut self) {
        let now = Instant::now();
        let due: Vec<usize> = self
            .restarts
            .iter()
            .filter(|(_, at)| **at <= now)
            .map(|(index, _)| *index)
            .collect();
        for index in due {
            self.restarts.remove(&index);
            let leads = self.random.chance(500);
            self.cluster.start(index, leads);
        }
        for index in self.cluster.check_replicas() {
            self.world.count("event/left behind by the log");
            self.cluster.crash(index).await;
            self.cluster.start(index, false);
        }
        let live = self.cluster.live();
        let led = live.iter().any(|index| self.leads(*index));
        if let (false, Some(first)) = (led, live.first()) {
            self.cluster.lead(*first);
        }
    }

    /// Whether a machine leads.
    pub fn leads(&self, index: usize) -> bool {
        let life = self.cluster.machines[index].life.as_ref();
        life.is_some_and(|life| life.control.is_some())
    }

    async fn act(&mut self) {
        match self.random.below(1000) {
            0..640 => {
                for _ in 0..1 + self.random.below(3) {
                    let addresses = addresses(&mut self.random);
                    self.cluster.clients.send(&mut self.random, addresses);
                }
            }
            640..790 => {
                self.faults += 1;
                faults::cause(self).await;
            }
            790..870 => {
                let user = *self.random.pick(&ACCOUNTS);
                let history = self.cluster.history.clone();
                self.cluster.clients.read(&mut self.random, user, history);
            }
            870..910 => operator::order(self),
            910..945 => self.change_directory(),
            945..975 => operator::command(self),
            975..990 if self.scenarios < 2 => {
                self.scenarios += 1;
                scenario::desk_moves(self);
            }
            _ => {
                if self.random.chance(100) {
                    self.cluster.audit();
                }
            }
        }
    }

    fn change_directory(&mut self) {
        let what = match self.random.below(3) {
            0 => {
                self.version.alias = if self.version.alias == "u1" {
                    "u2"
                } else {
                    "u1"
                };
                "alias"
            }
            1 => {
                let mbox1 = self.version.mbox_of_u4 == "mbox1";
                self.version.mbox_of_u4 = if mbox1 { "mbox2" } else { "mbox1" };
                "mailHost"
            }
            _ => {
                self.version.u5_disabled = !self.version.u5_disabled;
                "account state"
            }
        };
        self.world.count(format!("directory/{what}"));
        self.publish();
    }

    /// Gives the directory's contents to the machines: to one at once, to the other perhaps later.
    pub fn publish(&mut self) {
        self.world
            .note(format_args!("directory: {:?}", self.version));
        let lag = match self.random.chance(500) {
            true => self.random.millis(0, 30_000),
            false => Duration::ZERO,
        };
        self.cluster.machines[0].directory.change(&self.version);
        let (other, version) = (
            self.cluster.machines[1].directory.clone(),
            self.version.clone(),
        );
        self.cluster
            .clients
            .tasks
            .spawn("directory lag", async move {
                sleep(lag).await;
                other.change(&version);
            });
    }

    fn check(&self) {
        self.cluster.check_replicas();
        let ledger = lock(&self.cluster.clients.ledger);
        self.cluster.history.look(|truth| ledger.check_acked(truth));
        for panic in super::take_panics() {
            self.world.violate(format_args!("a task panicked: {panic}"));
        }
    }

    /// Everything works again, everybody is up.
    async fn heal(&mut self) {
        self.world.note("healing");
        self.end_faults();
        for machine in &self.cluster.machines {
            machine.directory.heal();
            machine.ambient.set_skew(0);
            for shard in stored_shards() {
                machine.disk.set_full(&shard.to_string(), false);
            }
        }
        for index in 0..MACHINES {
            if self.cluster.machines[index].life.is_none() {
                self.cluster.start(index, index == 1);
            }
        }
        self.restarts.clear();
        self.supervise().await;
        self.cluster.clients.rest().await;
        // some faults have ended meanwhile, and with them what was usual came back
        self.end_faults();
        for machine in &self.cluster.machines {
            machine.directory.change(&self.version);
        }
        self.supervise().await;
        operator::activate_all(self).await;
        if self.limited {
            operator::end_limits(self).await;
        }
    }

    fn end_faults(&self) {
        self.cluster.log.set_faults(SimFaults::none());
        self.cluster.log.unavailable_for(Duration::ZERO);
        self.cluster.log.full_for(Duration::ZERO);
        self.cluster.network.heal();
    }

    /// Recipients that are not settled and should be: all, or those that only our own trouble can have kept.
    fn unsettled(&self, ours_only: bool) -> Vec<String> {
        let full = account_id("full");
        let u5 = account_id("u5");
        self.cluster.history.collect();
        self.cluster.history.look(|truth| {
            let mut waiting = Vec::new();
            for (id, fate) in &truth.messages {
                for (number, recipient) in fate.recipients.iter().enumerate() {
                    let account = recipient.account();
                    let is_limited = self.version.full_quota != 0;
                    let worlds = (is_limited && account == Some(full.as_str()))
                        || account == Some(u5.as_str())
                        || recipient.recipient.address.starts_with("u5@");
                    let held = recipient.held.as_deref() == Some("no-outbound");
                    if recipient.end.is_none() && !held && !(worlds && ours_only) {
                        let address = &recipient.recipient.address;
                        waiting.push(format!(
                            "{id} {number} <{address}> {:?} {:?}",
                            recipient.held, fate.held
                        ));
                    }
                }
            }
            waiting
        })
    }

    async fn settle(&mut self) {
        for ours_only in [true, false] {
            if !ours_only {
                if self.unsettled(false).is_empty() {
                    break;
                }
                // what waits for the world now expires, for all clocks say that days have passed
                self.world.count("run/waited for expiry");
                for machine in &self.cluster.machines {
                    machine.ambient.set_skew(6 * 86_400_000);
                }
            }
            let began = Instant::now();
            while !self.unsettled(ours_only).is_empty() {
                if began.elapsed() > SETTLE_MAX {
                    let waiting = self.unsettled(ours_only);
                    self.explain(&waiting);
                    self.world.violate(format_args!(
                        "liveness: not settled after healing: {waiting:?}"
                    ));
                }
                if self.has_failed() {
                    return;
                }
                self.release_all().await;
                sleep(Duration::from_secs(5)).await;
                self.supervise().await;
                self.check();
            }
        }
    }

    /// Says what each machine knows of those that wait.
    fn explain(&self, waiting: &[String]) {
        for machine in &self.cluster.machines {
            let Some(life) = &machine.life else { continue };
            for line in waiting.iter().take(5) {
                let Some(id) = line.split(' ').next().and_then(|id| id.parse().ok()) else {
                    continue;
                };
                let shown = life.control.as_ref().map(|control| control.show(id));
                let taken = life.incoming.read(|queue| {
                    let index = queue.index();
                    let numbers = (0..40).filter(|number| index.is_taken((id, *number)));
                    numbers.collect::<Vec<u32>>()
                });
                let activity = shown.as_ref().map(|shown| &shown.activity);
                let known = shown.as_ref().is_some_and(|shown| shown.message.is_some());
                self.world.note(format_args!(
                    "machine {}: {id} known: {known}, taken: {taken:?}, {activity:?}",
                    machine.name
                ));
            }
        }
    }

    async fn release_all(&mut self) {
        let held = self.cluster.history.look(|truth| {
            let held = truth
                .messages
                .iter()
                .filter(|(_, fate)| !fate.is_settled() && !fate.held.is_empty());
            held.map(|(id, _)| *id).collect::<Vec<MessageId>>()
        });
        for id in held {
            operator::give(self, Order::Release, id);
        }
    }

    /// Waits until every replica has applied everything.
    async fn catch_up(&mut self) {
        for _ in 0..600 {
            sleep(Duration::from_secs(1)).await;
            self.supervise().await;
            let behind = self.cluster.machines.iter().any(|machine| {
                let Some(life) = &machine.life else {
                    return true;
                };
                let is_behind =
                    |shard, applied: u64| applied + 1 != self.cluster.history.end(shard);
                let mailboxes = life.mailboxes.iter().any(|mailbox| {
                    is_behind(mailbox.shard.id(), mailbox.shard.applied().borrow().0)
                });
                mailboxes
                    || is_behind(life.home.shard.id(), life.home.shard.applied().borrow().0)
                    || is_behind(life.incoming.id(), life.incoming.applied().borrow().0)
            });
            self.check();
            if !behind || self.has_failed() {
                return;
            }
        }
        self.world.violate("liveness: replicas do not catch up");
    }

    /// Reads every mailbox by POP3's own path and closes the ledger.
    async fn sweep(&mut self) {
        let clients = self.cluster.clients.clone();
        let history = self.cluster.history.clone();
        let fronts = lock(&clients.fronts).clone();
        for (machine, front) in &fronts {
            for user in ACCOUNTS {
                let expected = clients.expected(user, &history);
                let gone = lock(&clients.ledger).expunged.clone();
                let maildrop = match front.access.open(&account_id(user)).await {
                    Ok(maildrop) => maildrop,
                    Err(error) => {
                        self.world.violate(format_args!(
                            "{user} cannot read on machine {machine}: {error}"
                        ));
                        continue;
                    }
                };
                clients.check_maildrop(user, &maildrop, &expected, &gone);
                let Some(mailbox) = maildrop.mailbox() else {
                    continue;
                };
                let account = account_id(user).to_string();
                for message in maildrop.messages() {
                    let place = (account.clone(), mailbox.uid_validity, message.uid);
                    let stored = history.look(|truth| {
                        truth.restored.contains_key(&place)
                            || truth.copies.values().flatten().any(|copy| {
                                copy.account == account
                                    && copy.at.uid_validity == mailbox.uid_validity
                                    && copy.at.uid == message.uid
                            })
                    });
                    let fetched = front.access.fetch(mailbox, message.uid).await;
                    match (stored, fetched) {
                        (true, Ok(Some(fetched))) => {
                            clients.check_content(&fetched.prefix, &fetched.body).await;
                        }
                        (stored, fetched) => self.world.violate(format_args!(
                            "{user} has {} stored: {stored}, fetched: {:?}",
                            message.uid,
                            fetched.map(|fetched| fetched.is_some())
                        )),
                    }
                }
            }
        }
        let bodies = history.look(|truth| {
            let bodies = truth
                .messages
                .iter()
                .map(|(id, fate)| (*id, fate.body.clone()));
            bodies.collect::<Vec<_>>()
        });
        let mut numbers = BTreeMap::new();
        for (id, body) in bodies {
            let content = clients.content_of(&body).await;
            numbers.insert(id, content.and_then(|content| number_in(&content)));
        }
        let ledger = lock(&clients.ledger);
        history.look(|truth| ledger.settle(truth, &numbers));
        self.world.note("the end");
    }
}

/// Whom the next mail is for: mostly one, sometimes many, sometimes one twice.
fn addresses(random: &mut Random) -> Vec<usize> {
    let count = match random.below(100) {
        0..55 => 1,
        55..80 => 2,
        _ => 3 + random.below(4),
    };
    (0..count).map(|_| random.below(USUAL_ADDRESSES)).collect()
}

//! Quotas: what every account holds, counted a second time from the records alone; and whether a full mailbox is refused at
//! RCPT, after a restart too, and takes mail again as soon as there is room.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use hikyaku_proto::v1::{Deliver, record::Command};
use hikyaku_store::machine::Answer;
use tokio::time::sleep;

use super::cluster::{MACHINES, stored_shards};
use super::ledger::{Phase, Place};
use super::run::Run;
use super::scenario::address;
use super::world::{World, lock};

/// Mails sent to a mailbox until it must be full.
const MAILS_MAX: usize = 60;
/// Mails sent until one of them gets an answer to its RCPT.
const PROBES_MAX: usize = 20;

/// What accounts of one shard hold and may hold.
#[derive(Default)]
pub struct Usage {
    sizes: BTreeMap<Place, u64>,
    used: BTreeMap<String, u64>,
    /// Set by an operator.
    quotas: BTreeMap<String, u64>,
    /// Deliveries that did not fit, and have not been stored since.
    waiting: BTreeSet<(String, Bytes)>,
}

impl Usage {
    /// Octets that `account` holds.
    pub fn of(&self, account: &str) -> u64 {
        self.used.get(account).copied().unwrap_or_default()
    }

    /// A restore begins: the account holds nothing, and may hold what its backup says.
    pub fn cleared(&mut self, account: &str, quota_bytes: u64) {
        self.sizes.retain(|place, _| place.0 != account);
        self.used.insert(account.to_owned(), 0);
        self.quotas.insert(account.to_owned(), quota_bytes);
    }

    /// A restore has brought a mail.
    pub fn restored(&mut self, place: Place, size: u64) {
        *self.used.entry(place.0.clone()).or_default() += size;
        self.sizes.insert(place, size);
    }

    /// What was answered to `command` is right, and counts.
    pub fn apply(&mut self, world: &World, command: &Command, answer: &Answer) {
        match (command, answer) {
            (Command::SetAccount(set), Answer::Done) => {
                if let Some(quota_bytes) = set.quota_bytes {
                    self.quotas.insert(set.account.clone(), quota_bytes);
                }
            }
            (Command::Deliver(deliver), Answer::OverQuota) => {
                if self.fits(deliver) {
                    let account = &deliver.account;
                    world.violate(format_args!("quota: {account} is not full"));
                }
                let delivery = (deliver.account.clone(), deliver.delivery_id.clone());
                self.waiting.insert(delivery);
            }
            (Command::Deliver(deliver), Answer::Delivered(at)) => {
                let account = &deliver.account;
                if !self.fits(deliver) {
                    world.violate(format_args!("quota: {account} holds more than it may"));
                }
                let delivery = (account.clone(), deliver.delivery_id.clone());
                if self.waiting.remove(&delivery) {
                    world.count("quota/delivered after all");
                }
                *self.used.entry(account.clone()).or_default() += size(deliver);
                let place = (account.clone(), at.uid_validity, at.uid);
                self.sizes.insert(place, size(deliver));
            }
            (Command::Expunge(expunge), Answer::Expunged(count)) => {
                let mut gone = 0;
                for uid in &expunge.uids {
                    let place = (expunge.account.clone(), expunge.uid_validity, *uid);
                    let Some(size) = self.sizes.remove(&place) else {
                        continue;
                    };
                    gone += 1;
                    *self.used.entry(place.0).or_default() -= size;
                }
                if gone != *count {
                    let account = &expunge.account;
                    world.violate(format_args!(
                        "M9: {account} has {count} messages less, not {gone}"
                    ));
                }
            }
            _ => {}
        }
    }

    fn fits(&self, deliver: &Deliver) -> bool {
        let of_account = || self.quotas.get(&deliver.account).copied();
        let quota_bytes = match deliver.quota_bytes {
            0 => of_account().unwrap_or_default(),
            given => given,
        };
        quota_bytes == 0 || self.of(&deliver.account) + size(deliver) <= quota_bytes
    }
}

fn size(deliver: &Deliver) -> u64 {
    let body = deliver.body.as_ref().map_or(0, |body| body.size);
    body + deliver.prefix.len() as u64
}

/// Fills the mailbox of `full` in a cluster that is well, restarts all of it, and makes room: either there is no quota any
/// more, which must deliver all that waits, or its owner deletes everything.
pub async fn check(run: &mut Run, lifts: bool) {
    let mut taken = 0;
    while taken < MAILS_MAX && probe(run).await {
        taken += 1;
        // stored or not, and its shard asked again
        sleep(Duration::from_secs(2)).await;
    }
    if taken == MAILS_MAX {
        run.world.violate("quota: a mailbox does not become full");
    }
    restart(run).await;
    if probe(run).await {
        run.world
            .violate("quota: after a restart RCPT takes mail for a full mailbox");
        return;
    }
    run.world.count("quota/refused after a restart");
    if lifts {
        run.world.count("quota/lifted");
        run.version.full_quota = 0;
        for machine in &run.cluster.machines {
            machine.directory.change(&run.version);
        }
        if !probe(run).await {
            run.world
                .violate("quota: RCPT goes on about a quota that is gone");
        }
        return;
    }
    for _ in 0..PROBES_MAX {
        let fronts = lock(&run.cluster.clients.fronts).clone();
        let Some(front) = fronts.values().next() else {
            return;
        };
        if run.cluster.clients.empty(front, "full").await {
            run.world.count("quota/emptied");
        }
        // what waited may have come first
        if probe(run).await {
            return;
        }
    }
    run.world
        .violate("quota: RCPT takes no mail for a mailbox that was emptied");
}

/// What only memory knows is gone, and no record that is applied again brings it back.
async fn restart(run: &mut Run) {
    for index in run.cluster.live() {
        let Some(life) = &run.cluster.machines[index].life else {
            continue;
        };
        for shard in stored_shards() {
            let _ = life.engine(shard).flush();
        }
    }
    run.cluster.crash_all(true).await;
    for index in 0..MACHINES {
        run.cluster.start(index, index == 0);
    }
    sleep(Duration::from_secs(3)).await;
}

/// Sends mail to `full` until RCPT has an answer; whether it was taken.
async fn probe(run: &mut Run) -> bool {
    let clients = run.cluster.clients.clone();
    let full = address("full");
    for _ in 0..PROBES_MAX {
        let number = clients.send_from(&mut run.random, "sender@example.jp", vec![full]);
        for _ in 0..10 {
            sleep(Duration::from_millis(500)).await;
            let attempt = lock(&clients.ledger).attempts[number].clone();
            if attempt.full {
                return false;
            }
            if matches!(attempt.phase, Phase::Acked(_)) {
                return true;
            }
        }
        run.supervise().await;
    }
    run.world.violate("liveness: nobody answers RCPT");
    false
}

//! Everything at once: a bad log, crashes, two leaders, mailboxes that refuse, forget to answer or answer late, addresses that
//! change hands, accounts that move. In the end every recipient was delivered once or reported once, never both.

use std::collections::BTreeMap;
use std::time::Duration;

use hikyaku_log::sim::SimFaults;
use hikyaku_mail::id::MessageId;

use super::site::{Says, Site, expand, forward, group, local, people, user};
use crate::leader::DeliveryOptions;
use crate::schedule::Schedule;

const SEEDS: u64 = 40;

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) % n
    }
}

fn entries(alice: &str) -> Vec<String> {
    let mut entries = people();
    entries[0] = user("alice", alice, "mbox1");
    entries.push(forward("info", "team@example.jp"));
    entries.push(group(
        "team",
        &["alice@example.jp", "carol@example.jp", "gone@example.jp"],
        // an owner hears of each member by its address
        "mgrpErrorsTo: mailto:bob@example.jp\n",
    ));
    entries
}

fn options() -> DeliveryOptions {
    DeliveryOptions {
        schedule: Schedule {
            retry_first: Duration::from_secs(20),
            retry_max: Duration::from_secs(60),
            expiry: Duration::from_secs(300),
            expiry_null: Duration::from_secs(86_400),
            ..Schedule::default()
        },
        garbage_bytes_min: 8 * 1024,
        ..DeliveryOptions::default()
    }
}

/// Runs one seed; returns how often each thing happened.
async fn run(seed: u64) -> BTreeMap<&'static str, u64> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut site = Site::with_faults(&entries("a-1"), options(), SimFaults::rough());
    let mut mails: Vec<(MessageId, usize)> = Vec::new();
    for _ in 0..60 {
        match random.below(10) {
            0..4 => {
                let one = local("alice", "a-1", "mbox1");
                let (recipients, ends) = match random.below(3) {
                    0 => (vec![one], 1),
                    1 => (vec![one, local("carol", "c-1", "mbox2")], 2),
                    // alice, carol, and the one who is gone
                    _ => (vec![expand("info")], 3),
                };
                mails.push((site.accept("bob@example.jp", recipients).await, ends));
            }
            4 | 5 => trouble(&site, &mut random),
            6 => {
                let alice = ["a-1", "a-2"][random.below(2) as usize];
                site.reload(&entries(alice));
            }
            7 => site.crash().await,
            8 => {
                let rival = site.rival();
                tokio::time::sleep(Duration::from_secs(random.below(30))).await;
                rival.log.crash();
                rival.tasks.kill().await;
            }
            _ => {
                let mut state = site.mailboxes.state();
                let shard = random.below(2) as u32;
                if let Some(owner) = state.owners.get_mut("c-1") {
                    *owner = (shard, owner.1 + 1);
                }
            }
        }
        let pause = [5, 100, 3_000, 20_000][random.below(4) as usize];
        tokio::time::sleep(Duration::from_millis(random.below(pause))).await;
    }
    site.disk.set_faults(SimFaults::none());
    {
        let mut state = site.mailboxes.state();
        state.script.clear();
        state.always.clear();
        state.dead.clear();
    }
    site.settle().await;
    // whatever was to land late has landed
    tokio::time::sleep(Duration::from_secs(60)).await;
    check(&site, &mails, seed).await
}

fn trouble(site: &Site, random: &mut Random) {
    const SAYS: [Says; 7] = [
        Says::OverQuota,
        Says::Disabled,
        Says::Busy,
        Says::Error,
        Says::Hang,
        Says::StoredUnanswered,
        Says::StoredLate,
    ];
    let account = ["a-1", "a-2", "c-1"][random.below(3) as usize].to_owned();
    let says = SAYS[random.below(7) as usize];
    let mut state = site.mailboxes.state();
    match random.below(4) {
        0 if matches!(says, Says::OverQuota | Says::Disabled) => {
            state.always.insert(account, says);
        }
        1 => {
            state.always.remove(&account);
        }
        2 => {
            let shard = random.below(2) as u32;
            if !state.dead.remove(&shard) {
                state.dead.insert(shard);
            }
        }
        _ => state.script.entry(account).or_default().push_back(says),
    }
}

/// Each recipient has ended once.
async fn check(
    site: &Site,
    mails: &[(MessageId, usize)],
    seed: u64,
) -> BTreeMap<&'static str, u64> {
    let reports = reports(site).await;
    let mut seen = BTreeMap::new();
    for (id, ends) in mails {
        let copies = site.mailboxes.copies(*id);
        let reported = reports.get(&id.to_string()).copied().unwrap_or(0);
        assert_eq!(
            copies.len() + reported,
            *ends,
            "seed {seed}, mail {id}: copies {copies:?}, {reported} reported"
        );
        *seen.entry("copies").or_default() += copies.len() as u64;
        *seen.entry("reports").or_default() += reported as u64;
    }
    let state = site.mailboxes.state();
    *seen.entry("voids").or_default() += state.voided.len() as u64;
    *seen.entry("repeats").or_default() += (state.calls.len() - state.stored.len()) as u64;
    let rerouted = state
        .stored
        .values()
        .filter(|(account, _)| account == "a-2");
    *seen.entry("rerouted").or_default() += rerouted.count() as u64;
    let (start, carried) = (
        hikyaku_log::Log::bounds(&*site.node.log, super::site::QUEUE).start,
        site.node.shard.read(|machine| machine.counters().carried),
    );
    *seen.entry("cut").or_default() += u64::from(start.0 > 1);
    *seen.entry("carried").or_default() += carried;
    seen
}

/// Of how many recipients of each mail bob's reports tell.
async fn reports(site: &Site) -> BTreeMap<String, usize> {
    let calls = site.mailboxes.state().calls.clone();
    let mut texts = BTreeMap::new();
    for call in calls.iter().filter(|call| call.account == "b-1") {
        let text = super::expansion::read(&call.body).await;
        let own = text
            .split("Message-ID: <")
            .nth(1)
            .and_then(|rest| rest.split('@').next());
        texts.insert(own.unwrap().to_owned(), text);
    }
    let mut reports = BTreeMap::new();
    for (own, text) in texts {
        let copies = site.mailboxes.copies(own.parse().unwrap());
        assert_eq!(copies, ["b-1"], "one copy of each report");
        let about = text
            .split("Its queue id was ")
            .nth(1)
            .and_then(|rest| rest.split('.').next());
        let told = text.matches("Final-Recipient: ").count();
        *reports.entry(about.unwrap().to_owned()).or_default() += told;
    }
    reports
}

#[test]
fn every_recipient_ends_once() {
    let mut seen: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in 0..SEEDS {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        for (what, count) in runtime.block_on(run(seed)) {
            *seen.entry(what).or_default() += count;
        }
    }
    println!("{seen:?}");
    for what in [
        "copies", "reports", "voids", "repeats", "rerouted", "cut", "carried",
    ] {
        assert!(seen[what] > 0, "{what} never happened: {seen:?}");
    }
}

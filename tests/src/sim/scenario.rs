//! Misfortune that takes several things at the right moment, which chance alone brings together too rarely.

use std::time::Duration;

use hikyaku_proto::v1::AccountState;
use tokio::time::sleep;

use super::cluster::MACHINES;
use super::faults::change_log;
use super::network::NetFaults;
use super::operator::{set_quota, set_state};
use super::run::Run;
use super::site::{ADDRESSES, NEWCOMERS};

/// The index of an address.
pub fn address(local_part: &str) -> usize {
    let mut addresses = ADDRESSES.iter();
    let found = addresses.position(|address| address.local_part == local_part);
    found.unwrap()
}

/// An account is closed, mail for it waits, requests for it are under way twice; then the address is given to somebody else,
/// and the account is opened again before the last request arrives. Whoever routes the mail to the new owner must first make
/// sure that nothing can be stored for the old one.
pub fn desk_moves(run: &mut Run) {
    run.world.count("scenario/an address moves");
    let old = run.version.desk;
    let new = if old == "u6" { "u7" } else { "u6" };
    run.world
        .note(format_args!("desk will move from {old} to {new}"));
    run.version.desk = new;
    let version = run.version.clone();
    let mut random = run.random.fork();
    let clients = run.cluster.clients.clone();
    let network = run.cluster.network.clone();
    let directories: Vec<_> = run
        .cluster
        .machines
        .iter()
        .map(|machine| machine.directory.clone())
        .collect();
    let desk = address("desk");
    run.cluster.clients.tasks.spawn("desk moves", async move {
        // the account must exist before it can be closed
        clients.send(&mut random, vec![desk]);
        sleep(Duration::from_secs(5)).await;
        if super::operator::owner(&network, old).await.is_none() {
            return directories
                .iter()
                .for_each(|directory| directory.change(&version));
        }
        set_state(&network, old, AccountState::Disabled).await;
        network.set_faults(NetFaults {
            duplicate: 700,
            duplicate_ms: 120_000,
            ..NetFaults::rough()
        });
        for _ in 0..5 {
            clients.send(&mut random, vec![desk]);
            sleep(random.millis(10, 2_000)).await;
        }
        sleep(random.millis(1_000, 10_000)).await;
        network.set_faults(NetFaults::rough());
        for directory in &directories {
            directory.change(&version);
        }
        // the next attempt finds the account closed and the address elsewhere
        sleep(random.millis(15_000, 45_000)).await;
        set_state(&network, old, AccountState::Active).await;
    });
}

/// An operator limits an account that the directory does not limit, while mail for it comes; and lifts the limit later.
pub fn operator_limits(run: &mut Run) {
    run.world.count("scenario/an operator limits an account");
    let mut random = run.random.fork();
    let (world, clients) = (run.world.clone(), run.cluster.clients.clone());
    let network = run.cluster.network.clone();
    let u8 = address("u8");
    clients.tasks.clone().spawn("operator limits", async move {
        clients.send(&mut random, vec![u8]);
        sleep(Duration::from_secs(5)).await;
        if super::operator::owner(&network, "u8").await.is_none() {
            return;
        }
        set_quota(&world, &network, "u8", 1).await;
        for _ in 0..5 {
            clients.send(&mut random, vec![u8]);
            sleep(random.millis(10, 2_000)).await;
        }
        sleep(random.millis(1_000, 60_000)).await;
        set_quota(&world, &network, "u8", 0).await;
    });
}

/// The first mail for accounts that nobody has claimed, while two machines lead and their directories disagree about where such
/// accounts belong: both claim them at once, and some answers are lost. False when only one machine is up.
pub fn newcomers(run: &mut Run) -> bool {
    let live = run.cluster.live();
    if live.len() < MACHINES {
        return false;
    }
    run.world.count("scenario/newcomers");
    run.world
        .note("newcomers: each machine has another mbox for them");
    for index in live {
        run.cluster.lead(index);
        let mut version = run.version.clone();
        version.mbox_of_newcomers = ["mbox1", "mbox2"][index % 2];
        run.cluster.machines[index].directory.change(&version);
    }
    let mut random = run.random.fork();
    let (clients, network) = (run.cluster.clients.clone(), run.cluster.network.clone());
    let history = run.cluster.history.clone();
    clients.tasks.clone().spawn("newcomers", async move {
        network.set_faults(NetFaults {
            reply_lost: 200,
            ..NetFaults::rough()
        });
        let all: Vec<usize> = NEWCOMERS.iter().map(|user| address(user)).collect();
        for _ in 0..2 {
            clients.send(&mut random, all.clone());
            sleep(random.millis(0, 20)).await;
        }
        for _ in 0..6 {
            sleep(random.millis(0, 4_000)).await;
            for user in NEWCOMERS {
                clients.read(&mut random, user, history.clone());
            }
        }
        network.set_faults(NetFaults::rough());
    });
    true
}

/// Many readers of one mailbox, on both machines, while mail comes into it, others delete it piece by piece, and the log takes
/// its time: each must see all that anybody was told before it came. False when only one machine is up.
pub fn crowd(run: &mut Run) -> bool {
    const WATCHERS: usize = 100;
    const DELETERS: usize = 3;
    if run.cluster.live().len() < MACHINES {
        return false;
    }
    let user = *run.random.pick(&["u0", "u1", "u2", "u3"]);
    run.world.count("scenario/a crowd of readers");
    run.world.note(format_args!("a crowd reads {user}"));
    change_log(run, 6_000, |faults| {
        faults.ack_late = 400;
        faults.tail_slow = 500;
        faults.lateness = (Duration::from_millis(20), Duration::from_millis(400));
    });
    let (clients, network) = (run.cluster.clients.clone(), run.cluster.network.clone());
    let history = run.cluster.history.clone();
    let mut random = run.random.fork();
    clients.tasks.clone().spawn("crowd", async move {
        network.set_faults(NetFaults {
            other_machine: 500,
            ..NetFaults::default()
        });
        for _ in 0..3 {
            clients.send(&mut random, vec![address(user)]);
        }
        for number in 0..WATCHERS + DELETERS {
            clients.look_in(&mut random, user, history.clone(), number < DELETERS);
            sleep(random.millis(0, 50)).await;
        }
        network.set_faults(NetFaults::rough());
    });
    true
}

//! Misfortune that takes several things at the right moment, which chance alone brings together too rarely.

use std::time::Duration;

use hikyaku_proto::v1::AccountState;
use tokio::time::sleep;

use super::network::NetFaults;
use super::operator::{set_quota, set_state};
use super::run::Run;
use super::site::ADDRESSES;

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

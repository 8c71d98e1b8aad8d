//! Misfortune that takes several things at the right moment, which chance alone brings together too rarely.

use std::time::Duration;

use hikyaku_proto::v1::AccountState;
use tokio::time::sleep;

use super::network::NetFaults;
use super::operator::set_state;
use super::run::Run;
use super::site::ADDRESSES;

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
    let desk = ADDRESSES
        .iter()
        .position(|address| address.local_part == "desk")
        .unwrap();
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

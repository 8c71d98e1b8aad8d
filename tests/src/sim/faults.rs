//! What goes wrong besides what log and network do by themselves.

use hikyaku_log::sim::SimFaults;
use tokio::time::{Instant, sleep};

use super::cluster::{MACHINES, retained_bytes, stored_shards};
use super::run::Run;
use super::site::SHARDS;

const HOUR_MS: i64 = 3_600_000;

/// Causes one fault.
pub async fn cause(run: &mut Run) {
    let kind = run.random.below(100);
    match kind {
        0..18 => crash(run).await,
        18..24 => crash_in_recovery(run).await,
        24..28 => crash_all(run).await,
        28..33 => stop(run).await,
        33..41 => outage(run),
        41..48 => small_log(run),
        48..58 => shard_trouble(run),
        58..64 => two_leaders(run),
        64..71 => clock(run),
        71..76 => bootstrap(run).await,
        76..84 => flush(run),
        84..90 => directory_away(run),
        90..94 => disk_full(run),
        94..97 => cut(run),
        _ => rough_log(run),
    }
}

fn live(run: &mut Run) -> Option<usize> {
    let live = run.cluster.live();
    (!live.is_empty()).then(|| *run.random.pick(&live))
}

fn restart_later(run: &mut Run, index: usize) {
    let after = match run.random.chance(500) {
        true => run.random.millis(0, 500),
        false => run.random.millis(500, 20_000),
    };
    run.restarts.insert(index, Instant::now() + after);
}

async fn crash(run: &mut Run) {
    let Some(index) = live(run) else { return };
    run.world.count("fault/crash");
    run.cluster.crash(index).await;
    restart_later(run, index);
}

async fn crash_in_recovery(run: &mut Run) {
    let Some(index) = live(run) else { return };
    run.world.count("fault/crash in recovery");
    run.cluster.crash(index).await;
    let leads = run.random.chance(500);
    run.cluster.start(index, leads);
    let life = run.random.millis(0, 40);
    sleep(life).await;
    run.cluster.crash(index).await;
    restart_later(run, index);
}

async fn crash_all(run: &mut Run) {
    let power = run.random.chance(500);
    run.world.count(if power {
        "fault/power loss"
    } else {
        "fault/crash of all"
    });
    run.cluster.crash_all(power).await;
    for index in 0..MACHINES {
        restart_later(run, index);
    }
}

async fn stop(run: &mut Run) {
    let Some(index) = live(run) else { return };
    run.world.count("fault/stopped and started");
    run.cluster.stop(index).await;
    restart_later(run, index);
}

fn outage(run: &mut Run) {
    let duration = run.random.millis(100, 75_000);
    if run.random.chance(600) {
        run.world.count("fault/log unavailable");
        run.world
            .note(format_args!("log unavailable for {duration:?}"));
        run.cluster.log.unavailable_for(duration);
    } else {
        run.world.count("fault/log full");
        run.world.note(format_args!("log full for {duration:?}"));
        run.cluster.log.full_for(duration);
    }
}

/// The log fills up: every shard is to let go of what it can.
fn small_log(run: &mut Run) {
    let Some(index) = live(run) else { return };
    let Some(life) = &run.cluster.machines[index].life else {
        return;
    };
    let retained = retained_bytes(&*life.log);
    run.world.count("fault/small log");
    run.world
        .note(format_args!("the log may hold little more than {retained}"));
    let bytes_max = retained + retained / 5 + 20_000;
    change_log(run, 30_000, |faults| faults.bytes_max = bytes_max);
}

/// A while in which the log is worse than usual.
fn rough_log(run: &mut Run) {
    run.world.count("fault/rough log");
    change_log(run, 20_000, |faults| {
        faults.append_late = 200;
        faults.ack_late = 100;
        faults.ack_lost = 100;
        faults.append_lost = 50;
        faults.tail_slow = 50;
    });
}

/// Changes how the log behaves, for a while.
pub fn change_log(run: &mut Run, millis_max: u64, change: impl FnOnce(&mut SimFaults)) {
    let mut faults = run.log_faults.clone();
    change(&mut faults);
    run.cluster.log.set_faults(faults);
    let duration = run.random.millis(1_000, millis_max);
    let (log, usual) = (run.cluster.log.clone(), run.log_faults.clone());
    run.cluster.clients.tasks.spawn("log recovers", async move {
        sleep(duration).await;
        log.set_faults(usual);
    });
}

fn shard_trouble(run: &mut Run) {
    let shard = match run.random.below(usize::from(SHARDS) + 1) {
        0 => None,
        index => Some(index as u16 - 1),
    };
    let duration = run.random.millis(500, 90_000);
    run.world
        .note(format_args!("shard {shard:?} in trouble for {duration:?}"));
    if run.random.chance(500) {
        run.world.count("fault/dead shard");
        run.cluster.network.dead_for(shard, duration);
    } else {
        run.world.count("fault/slow shard");
        run.cluster.network.slow_for(shard, duration);
    }
}

fn two_leaders(run: &mut Run) {
    for index in run.cluster.live() {
        run.cluster.lead(index);
    }
    if run.cluster.live().len() == MACHINES {
        run.world.count("fault/two leaders");
    } else if !run.restarts.contains_key(&1) && run.cluster.machines[1].life.is_none() {
        // the second machine joins, late
        run.world.count("event/second machine joins");
        run.cluster.start(1, true);
    }
}

fn clock(run: &mut Run) {
    let index = run.random.below(MACHINES);
    let skew_ms = *run
        .random
        .pick(&[0, HOUR_MS, -HOUR_MS, 120 * HOUR_MS, -120 * HOUR_MS]);
    run.world.count("fault/clock jump");
    run.world.note(format_args!(
        "clock of machine {index} is off by {skew_ms} ms"
    ));
    run.cluster.machines[index].ambient.set_skew(skew_ms);
}

/// A machine loses a store and takes it from the other one.
async fn bootstrap(run: &mut Run) {
    if run.cluster.live().len() < MACHINES {
        if run.cluster.machines[1].life.is_none() && !run.restarts.contains_key(&1) {
            run.world.count("event/second machine joins");
            run.cluster.start(1, false);
        }
        return;
    }
    let index = run.random.below(MACHINES);
    let shards: Vec<_> = stored_shards().collect();
    let shard = *run.random.pick(&shards);
    run.cluster.crash(index).await;
    // the only store that has what the log let go of is not lost: nobody survives that without a backup
    if run.cluster.is_left_behind((index + 1) % MACHINES, shard) {
        return restart_later(run, index);
    }
    run.world.count("fault/lost store");
    run.cluster.machines[index].disk.wipe(&shard.to_string());
    run.cluster
        .bootstrap(index, shard, hikyaku_log::Position::ZERO);
    restart_later(run, index);
}

fn flush(run: &mut Run) {
    run.world.count("fault/flush");
    for index in run.cluster.live() {
        let Some(life) = &run.cluster.machines[index].life else {
            continue;
        };
        for shard in stored_shards() {
            if run.random.chance(400) {
                let _ = life.engine(shard).flush();
            }
        }
    }
}

fn directory_away(run: &mut Run) {
    run.world.count("fault/directory away");
    let duration = run.random.millis(500, 60_000);
    for index in 0..MACHINES {
        if run.random.chance(700) {
            run.world
                .note(format_args!("directory away from {index} for {duration:?}"));
            run.cluster.machines[index].directory.away_for(duration);
        }
    }
}

fn disk_full(run: &mut Run) {
    run.world.count("fault/store's disk full");
    let shards: Vec<_> = stored_shards().collect();
    let name = run.random.pick(&shards).to_string();
    let disk = run.cluster.machines[run.random.below(MACHINES)]
        .disk
        .clone();
    disk.set_full(&name, true);
    let duration = run.random.millis(1_000, 60_000);
    run.cluster
        .clients
        .tasks
        .spawn("disk recovers", async move {
            sleep(duration).await;
            disk.set_full(&name, false);
        });
}

/// Nobody reaches a machine, but it goes on and may lead.
fn cut(run: &mut Run) {
    let Some(index) = live(run) else { return };
    run.world.count("fault/cut off");
    let duration = run.random.millis(1_000, 60_000);
    run.cluster.network.cut_for(index, duration);
}

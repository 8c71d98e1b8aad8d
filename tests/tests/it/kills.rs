//! Real crashes: the real binary under load, killed at random, on both sides of every commit point and while it recovers
//! from the death before; then the ledger of the load generator, a process of its own that reads by POP3 only, balances.
//!
//! A kill counts only if an acknowledged mail was unsettled at that instant: by the dead process's log (a copy of it,
//! replayed) a recipient had no outcome, and by the ledger the client had the message's 250. On which side of which
//! commit point a process died is read from the trace of its system calls: what the dying thread had written and not
//! synced, or synced and told nobody.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hikyaku_tests::harness::load::{Load, Loading, acknowledged, assert_balanced, verify};
use hikyaku_tests::harness::post_mortem::{CommitPoint, commit_points, examine};
use hikyaku_tests::harness::server::Server;
use hikyaku_tests::harness::site::{Plan, Site};
use hikyaku_tests::harness::strace::{Doomed, Moment, last_writes};
use hikyaku_tests::harness::wait_for;
use loadtest::random::Random;

/// Kills that must count.
const COUNTED_MIN: usize = 50;
/// Times that each side of each commit point must have been hit.
const HITS_MIN: usize = 2;
/// How long it goes on at most, several times what it takes; `HIKYAKU_KILLS` asks for another number of counted kills and lifts it.
const LONGEST: Duration = Duration::from_secs(900);
/// The n-th call at most that a process dies at.
const WHEN_MAX: usize = 160;
/// How long a start takes, until one was measured.
const START_FIRST: Duration = Duration::from_millis(200);
/// Longest wait for that call.
const MOMENT_TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Debug, Default)]
struct Tally {
    kills: usize,
    counted: usize,
    /// Of them, at random moments.
    random: usize,
    /// At a system call.
    aimed: usize,
    /// Processes that died while they recovered from the death before.
    in_recovery: usize,
    /// Deaths with a mail in a mailbox that the queue knew nothing of.
    between_b_and_c: usize,
    /// Deaths with a durable message whose client was never told.
    untold: usize,
    hits: BTreeMap<(CommitPoint, Moment), usize>,
}

impl Tally {
    fn covered(&self) -> bool {
        let points = [CommitPoint::A, CommitPoint::B, CommitPoint::C];
        let moments = [Moment::BeforeWrite, Moment::BeforeSync, Moment::AfterSync];
        let hit = |point, moment| self.hits.get(&(point, moment)).copied().unwrap_or(0);
        points
            .iter()
            .all(|&point| moments.iter().all(|&moment| hit(point, moment) >= HITS_MIN))
            && self.in_recovery >= HITS_MIN
            && self.between_b_and_c >= HITS_MIN
            && self.untold >= HITS_MIN
    }
}

#[test]
fn killed_at_random_and_at_every_commit_point_nothing_is_lost_or_doubled() {
    let wanted = std::env::var("HIKYAKU_KILLS")
        .ok()
        .map(|text| text.parse().expect("a number"));
    let longest = if wanted.is_some() {
        Duration::MAX
    } else {
        LONGEST
    };
    let wanted = wanted.unwrap_or(COUNTED_MIN);
    let plan = Plan::new(12).set("log", "segment_bytes", "\"2 MiB\"").set(
        "log",
        "bytes_max",
        "\"32 MiB\"",
    );
    let site = Site::new(plan);
    let load = Load {
        sessions: 12,
        size: "75:1K-10K,18:10K-100K,7:140K-400K".to_owned(),
        recipients: 2,
        deadline: Duration::from_secs(86_400),
        ..Load::default()
    };
    let began = Instant::now();
    let loading = load.start(&site);
    let mut dice = Random::new(began.elapsed().subsec_nanos().into());
    let mut tally = Tally::default();
    let mut start = START_FIRST;
    while (tally.counted < wanted || !tally.covered()) && began.elapsed() < longest {
        let turn = tally.kills;
        let random = turn % 6 < 2;
        match turn % 6 {
            0 | 1 => start = kill_at_random(&site, &mut dice),
            2 => kill_in_recovery(&site, start, &mut dice, &mut tally),
            _ => kill_at(&site, &mut dice, &mut tally),
        }
        tally.kills += 1;
        count(&site, random, &mut tally);
    }
    let mut server = Server::start(&site);
    end(loading);
    let report = verify(&site, Duration::from_secs(120));
    println!(
        "{} kills, {} counted ({} at random), {} during recovery, {} between B and C, {} with a 250 never sent, {:.0} s; \
         hits {:?}\n{report}",
        tally.kills,
        tally.counted,
        tally.random,
        tally.in_recovery,
        tally.between_b_and_c,
        tally.untold,
        began.elapsed().as_secs_f64(),
        tally.hits
    );
    assert_balanced(&report);
    assert!(
        tally.counted >= wanted,
        "only {} kills count",
        tally.counted
    );
    assert!(
        tally.covered(),
        "a side of a commit point was hardly hit: {tally:?}"
    );
    assert!(server.stop().0.success());
}

/// Says how long the start took.
fn kill_at_random(site: &Site, dice: &mut Random) -> Duration {
    let before = acknowledged(&site.ledger()).len();
    let mut server = Server::start(site);
    wait_for("mail to flow", Duration::from_secs(120), || {
        acknowledged(&site.ledger()).len() > before
    });
    std::thread::sleep(Duration::from_millis(dice.below(400) as u64));
    server.kill();
    server.started_in
}

/// Anywhere in the time that a start takes.
fn kill_in_recovery(site: &Site, start: Duration, dice: &mut Random, tally: &mut Tally) {
    let after = start.mul_f64(dice.below(1000) as f64 / 1000.0);
    let listened = Server::start_and_kill(site, after);
    tally.in_recovery += usize::from(!listened);
}

fn kill_at(site: &Site, dice: &mut Random, tally: &mut Tally) {
    let moment = Moment::ALL[tally.aimed % Moment::ALL.len()];
    tally.aimed += 1;
    let when = 1 + dice.below(WHEN_MAX) as u32;
    let (doomed, trace) = Doomed::start(site, moment, when);
    match doomed {
        None => tally.in_recovery += 1,
        Some(doomed) => {
            if !doomed.wait(MOMENT_TIMEOUT) {
                return;
            }
        }
    }
    for point in commit_points(&last_writes(&trace, moment)).into_keys() {
        *tally.hits.entry((point, moment)).or_default() += 1;
    }
}

/// Looks at what was left. The client's last replies reach its ledger while that is being copied.
fn count(site: &Site, random: bool, tally: &mut Tally) {
    let post_mortem = examine(site);
    let acknowledged = acknowledged(&site.ledger());
    if post_mortem
        .unsettled
        .iter()
        .any(|id| acknowledged.contains_key(id))
    {
        tally.counted += 1;
        tally.random += usize::from(random);
    }
    tally.between_b_and_c += usize::from(post_mortem.delivered_unknown > 0);
    tally.untold += usize::from(
        post_mortem
            .accepted
            .iter()
            .any(|id| !acknowledged.contains_key(id)),
    );
}

/// Lets the last transactions end in order.
fn end(mut loading: Loading) {
    assert!(loading.runs(), "the load generator ended by itself");
    loading.end();
}

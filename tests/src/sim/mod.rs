//! The product's machines, runtime and roles under a seeded simulator: a small cluster whose clock, randomness, log, stores,
//! network and directory are simulated, and whose everything else is what ships.
//!
//! A run is made of one number, its seed: the same seed gives the same run, record for record (single-threaded runtime,
//! paused clock, no other randomness). It sends at least 200 mails and causes at least 30 faults, checks what must always hold
//! after every step, heals, and then asks what became of every mail. A run that fails prints its seed, the invariant, and the
//! end of its trace; `HIKYAKU_SIM_SEED=n` runs it again and prints all of it.
//!
//! # Layout
//! * [`run`]: one run from seed to verdict; [`faults`], [`operator`], [`scenario`]: what happens in it
//! * [`cluster`], [`network`], [`site`]: the machines, what connects them, the users and their directory
//! * [`backups`]: accounts that are restored, and clients who have not noticed
//! * [`clients`], [`ledger`]: those outside, and what they were told
//! * [`history`], [`truth`]: what the log says, applied a second time without any misfortune
//! * [`watched`]: what the machines see of the log
//! * [`quota`]: what accounts hold, and full mailboxes
//! * [`coverage`]: what must occur in some run
//! * [`pinned`]: seeds that once failed
//! * [`world`], [`random`]: trace, counters, clock, numbers

pub mod backups;
pub mod clients;
pub mod cluster;
pub mod coverage;
pub mod faults;
pub mod history;
pub mod ledger;
pub mod network;
pub mod operator;
pub mod pinned;
pub mod quota;
pub mod random;
pub mod run;
pub mod scenario;
pub mod site;
pub mod truth;
pub mod watched;
pub mod world;

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use run::Run;
use world::{Counts, World};

/// Wall time for one run; an ordinary one takes a fraction of a second.
const WALL_MAX: Duration = Duration::from_secs(120);

thread_local! {
    /// Panics on this thread, which runs one seed at a time.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Makes panics part of the verdict instead of noise on the terminal.
fn catch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let is_ours = std::thread::current().name() == Some("simulation");
            if is_ours {
                PANICS.with_borrow_mut(|panics| panics.push(info.to_string()));
            } else {
                usual(info);
            }
        }));
    });
}

fn take_panics() -> Vec<String> {
    PANICS.with_borrow_mut(std::mem::take)
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The run's seed.
    pub seed: u64,
    /// The first invariant that did not hold.
    pub violation: Option<String>,
    /// A hash over everything that happened.
    pub digest: String,
    /// What occurred how often.
    pub counts: Counts,
    /// The end of the trace.
    pub tail: Vec<String>,
    /// Simulated milliseconds.
    pub simulated_ms: u64,
}

/// Runs one seed on a thread of its own.
pub fn run_seed(seed: u64, verbose: bool) -> Outcome {
    let thread = std::thread::Builder::new()
        .name("simulation".to_owned())
        .stack_size(8 << 20);
    let (sender, finished) = std::sync::mpsc::channel();
    let run = move || sender.send(run_here(seed, verbose));
    thread.spawn(run).unwrap();
    // time stands still while anything can run: what never rests never ends
    match finished.recv_timeout(WALL_MAX) {
        Ok(outcome) => outcome,
        Err(_) => Outcome {
            seed,
            violation: Some(format!("a task does not come to rest within {WALL_MAX:?}")),
            digest: String::new(),
            counts: Counts::new(),
            tail: Vec::new(),
            simulated_ms: 0,
        },
    }
}

fn run_here(seed: u64, verbose: bool) -> Outcome {
    catch_panics();
    take_panics();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let shared: RefCell<Option<World>> = RefCell::new(None);
    let finished = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async {
            let world = World::new(verbose);
            *shared.borrow_mut() = Some(world.clone());
            Run::new(seed, world).go().await;
        });
    }));
    let _entered = runtime.enter();
    let world = shared.into_inner().unwrap_or_else(|| World::new(verbose));
    for panic in take_panics() {
        world.violate(format_args!("panicked: {panic}"));
    }
    if finished.is_err() {
        world.violate("the run panicked");
    }
    Outcome {
        seed,
        violation: world.violation(),
        digest: world.digest_so_far(),
        counts: world.counts(),
        tail: world.tail(),
        simulated_ms: world.elapsed_ms(),
    }
}

/// What came of many runs.
#[derive(Debug, Default)]
pub struct Summary {
    /// Runs made.
    pub runs: u64,
    /// The failed run with the lowest seed.
    pub failed: Option<Outcome>,
    /// What occurred how often in all of them.
    pub counts: Counts,
    /// Simulated milliseconds of all of them.
    pub simulated_ms: u64,
}

/// Runs the seeds from `first` on, `count` of them, on `threads` threads, until one fails.
pub fn run_seeds(first: u64, count: u64, threads: usize) -> Summary {
    let next = AtomicU64::new(0);
    let summary = std::sync::Mutex::new(Summary::default());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let offset = next.fetch_add(1, Ordering::Relaxed);
                    if offset >= count {
                        return;
                    }
                    let outcome = run_seed(first + offset, false);
                    let mut summary = world::lock(&summary);
                    summary.runs += 1;
                    summary.simulated_ms += outcome.simulated_ms;
                    for (what, times) in &outcome.counts {
                        *summary.counts.entry(what.clone()).or_default() += times;
                    }
                    if outcome.violation.is_some() {
                        // nobody begins another one
                        next.fetch_max(count, Ordering::Relaxed);
                        let lower = |known: &Outcome| known.seed > outcome.seed;
                        if summary.failed.as_ref().is_none_or(lower) {
                            summary.failed = Some(outcome);
                        }
                    }
                }
            });
        }
    });
    summary.into_inner().unwrap()
}

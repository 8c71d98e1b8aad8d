//! The simulation: pinned seeds, a thousand more, and the same run twice.
//!
//! `HIKYAKU_SIM_SEEDS` (how many, 1000) and `HIKYAKU_SIM_FIRST` (the first one, 1) choose seeds; `HIKYAKU_SIM_SEED` runs one
//! and prints everything that happens.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]
// outside the system under test: the machine's own clock is the one that counts
#![allow(clippy::disallowed_methods)]

use hikyaku_tests::sim::coverage;
use hikyaku_tests::sim::pinned::PINNED;
use hikyaku_tests::sim::{Outcome, run_seed, run_seeds};

/// As in the binary. A run is made of small allocations: it is worth a little time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Threads that run seeds.
const THREADS: usize = 2;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is not a number: {text}")),
    )
}

fn check(outcome: &Outcome) {
    let Some(violation) = &outcome.violation else {
        return;
    };
    for line in &outcome.tail {
        println!("{line}");
    }
    panic!(
        "seed {} violates: {violation}\nHIKYAKU_SIM_SEED={} runs it again and prints everything",
        outcome.seed, outcome.seed
    );
}

#[test]
fn seeds() {
    if let Some(seed) = number("HIKYAKU_SIM_SEED") {
        let subscriber = tracing_subscriber::fmt()
            .without_time()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_ansi(false)
            .finish();
        let _ = tracing::subscriber::set_global_default(subscriber);
        let outcome = run_seed(seed, true);
        println!("digest {}", outcome.digest);
        return check(&outcome);
    }
    let count = number("HIKYAKU_SIM_SEEDS").unwrap_or(1000);
    let first = number("HIKYAKU_SIM_FIRST").unwrap_or(1);
    let began = std::time::Instant::now();
    let summary = run_seeds(first, count, THREADS);
    for (what, times) in &summary.counts {
        println!("{times:>10} {what}");
    }
    println!(
        "{} seeds in {:.1} s, {:.1} simulated hours",
        summary.runs,
        began.elapsed().as_secs_f64(),
        summary.simulated_ms as f64 / 3_600_000.0
    );
    if let Some(failed) = &summary.failed {
        println!("red after {} seeds", summary.runs);
        check(failed);
    }
    // a handful of seeds need not show everything
    if count >= 100 {
        let missing = coverage::missing(&summary.counts);
        assert!(missing.is_empty(), "never occurred: {missing:#?}");
    }
}

#[test]
fn pinned_seeds() {
    for (seed, _) in PINNED {
        check(&run_seed(*seed, false));
    }
}

#[test]
fn a_seed_is_one_run() {
    for seed in 1..=3 {
        let (one, other) = (run_seed(seed, false), run_seed(seed, false));
        assert_eq!(
            one.digest, other.digest,
            "seed {seed} gave two different runs"
        );
        assert_eq!(one.counts, other.counts);
    }
}

//! A database on a disk that forgets: random work, a crash at a random operation, recovery, an exact comparison
//! with what was acknowledged, again and again.
//!
//! Every seed is one disk and one history. A failure prints the seed and the history;
//! `HYPRSTREAM_SIMULATION_SEED=<seed>` repeats it, `HYPRSTREAM_SIMULATION_SECONDS=<n>` goes through new seeds for
//! so long. What a seed does not fix: the order in which Lance writes the files of one flush, and with which
//! other commits a commit shares a sync; both come from threads. The disk counts operations in the order they
//! arrive, so a seed that fails by such an order may need a few repetitions.

mod disk;
mod history;
mod objects;
mod random;

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use futures::FutureExt;

/// Seeds of an ordinary run.
const SEEDS: u64 = 5;
/// Crashes of one seed.
const CRASHES: u64 = 10;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

fn run(seed: u64) -> history::Counts {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let history = history::History::new(seed);
    let log = history.log();
    let outcome = runtime.block_on(AssertUnwindSafe(history.run(CRASHES)).catch_unwind());
    match outcome {
        Ok(counts) => counts,
        Err(panic) => {
            let steps = log.lock();
            println!("{}", steps[steps.len().saturating_sub(60)..].join("\n"));
            println!("repeat with HYPRSTREAM_SIMULATION_SEED={seed}");
            drop(steps);
            std::panic::resume_unwind(panic)
        }
    }
}

#[test]
fn what_was_acknowledged_survives_a_crash_at_any_operation() {
    if let Some(seed) = variable("HYPRSTREAM_SIMULATION_SEED") {
        println!("{:?}", run(seed));
        return;
    }
    let start = Instant::now();
    let seconds = variable("HYPRSTREAM_SIMULATION_SECONDS").map(Duration::from_secs);
    let first = if seconds.is_some() { u64::from(std::process::id()) << 20 } else { 1 };
    let mut counts = history::Counts::default();
    for seed in first.. {
        if seconds.map_or(seed >= first + SEEDS, |limit| start.elapsed() >= limit) {
            break;
        }
        counts.add(&run(seed));
    }
    println!("{counts:?}");
    assert!(counts.crashes >= SEEDS * CRASHES / 2, "{counts:?}");
    assert!(counts.crashes_in_flush > 0 && counts.crashes_in_recovery > 0 && counts.compactions > 0, "{counts:?}");
    assert!(counts.tables_created > 0 && counts.tables_dropped > 0 && counts.faults > 0, "{counts:?}");
}

//! Seeds: all that ever failed, and as many others as fit. `make sim` runs more of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use millstream_sim::settings::Runs;
use millstream_sim::{Outcome, many, of_seeds, run};
use std::time::Instant;

/// Simulated runs of this test; about a minute on two cores.
const SEEDS: u64 = 1_200;

fn jobs() -> usize {
    std::thread::available_parallelism().map_or(1, |count| count.get())
}

fn told(outcomes: &[Outcome]) -> String {
    let one = |outcome: &Outcome| {
        let what = outcome.failures.join("\n  ");
        format!("seed {}: {what}\n  replay: {}\n", outcome.seed, outcome.replay())
    };
    outcomes.iter().map(one).collect()
}

#[test]
fn every_seed_keeps_the_invariants_and_all_faults_and_steps_are_hit() {
    let begin = Instant::now();
    let (counts, failed) = many(of_seeds(0, SEEDS), jobs(), |_| ());
    println!("{}{SEEDS} seeds in {:.0} s", counts.table(), begin.elapsed().as_secs_f64());
    assert!(failed.is_empty(), "{}", told(&failed));
    assert_eq!(counts.missing(), [""; 0], "never hit");
}

#[test]
fn seeds_that_failed_once_do_not_fail_again() {
    let lines = include_str!("../seeds.txt").lines().filter(|line| !line.starts_with('#'));
    let again = lines.map(|line| {
        let seed = line.split_whitespace().next().unwrap();
        let (seed, runs) = seed.strip_suffix('f').map_or((seed, Runs::Usual), |seed| (seed, Runs::Forgetful));
        run(runs, seed.parse().unwrap(), false)
    });
    let failed: Vec<Outcome> = again.filter(|outcome| !outcome.failures.is_empty()).collect();
    assert!(failed.is_empty(), "{}", told(&failed));
}

#[test]
fn a_seed_is_one_run() {
    for seed in [1, 2, 3] {
        let (first, second) = (run(Runs::Usual, seed, false), run(Runs::Usual, seed, false));
        assert_eq!((first.fingerprint, first.counts), (second.fingerprint, second.counts));
    }
}

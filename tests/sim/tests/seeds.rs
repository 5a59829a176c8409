//! Seeds: all that ever failed, and as many others as fit. `make sim` runs more of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use millstream_sim::{Outcome, many, run};
use std::time::Instant;

/// Simulated runs of this test; about a minute on two cores.
const SEEDS: u64 = 1_200;

fn jobs() -> usize {
    std::thread::available_parallelism().map_or(1, |count| count.get())
}

fn told(outcomes: &[Outcome]) -> String {
    let one = |outcome: &Outcome| {
        let seed = outcome.seed;
        let what = outcome.failures.join("\n  ");
        format!("seed {seed}: {what}\n  replay: TRACE=1 cargo run --quiet -p millstream-sim -- --first {seed}\n")
    };
    outcomes.iter().map(one).collect()
}

#[test]
fn every_seed_keeps_the_invariants_and_all_faults_and_steps_are_hit() {
    let begin = Instant::now();
    let (counts, failed) = many(0, SEEDS, jobs(), |_| ());
    println!("{}{SEEDS} seeds in {:.0} s", counts.table(), begin.elapsed().as_secs_f64());
    assert!(failed.is_empty(), "{}", told(&failed));
    assert_eq!(counts.missing(), [""; 0], "never hit");
}

#[test]
fn seeds_that_failed_once_do_not_fail_again() {
    let lines = include_str!("../seeds.txt").lines().filter(|line| !line.starts_with('#'));
    let seeds = lines.map(|line| line.split_whitespace().next().unwrap().parse::<u64>().unwrap());
    let failed: Vec<Outcome> =
        seeds.map(|seed| run(seed, false)).filter(|outcome| !outcome.failures.is_empty()).collect();
    assert!(failed.is_empty(), "{}", told(&failed));
}

#[test]
fn a_seed_is_one_run() {
    for seed in [1, 2, 3] {
        let (first, second) = (run(seed, false), run(seed, false));
        assert_eq!((first.fingerprint, first.counts), (second.fingerprint, second.counts));
    }
}

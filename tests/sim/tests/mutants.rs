//! Each deliberate bug is found: `cargo test -p millstream-sim --features mutants --test mutants -- --nocapture` prints by which seed, and by what.
#![cfg(feature = "mutants")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use millstream_sim::mutants::{all, find};

/// Enough for each of them.
const SEEDS: u64 = 6_000;

#[test]
fn every_deliberate_bug_is_found() {
    let jobs = std::thread::available_parallelism().map_or(1, |count| count.get());
    let mut unfound = Vec::new();
    let only = std::env::var("MUTANT").ok();
    for bug in all().into_iter().filter(|bug| only.as_ref().is_none_or(|only| *only == bug.name)) {
        match find(&bug, SEEDS, jobs) {
            Some(outcome) => {
                let what: String = outcome.failures[0].chars().take(140).collect();
                println!("| `{}` | {} | {what} |", bug.name, outcome.seed + 1);
            }
            None => unfound.push(bug.name),
        }
    }
    assert_eq!(unfound, [""; 0], "not found within {SEEDS} seeds");
}

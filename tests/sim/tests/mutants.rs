//! Each deliberate bug is found: `cargo test -p millstream-sim --features mutants --test mutants -- --nocapture` prints by which seed, and by what.
#![cfg(feature = "mutants")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use millstream_sim::mutants::{Bug, all, find};

/// Enough for each of them.
const SEEDS: u64 = 6_000;

/// Seeds that have found what only one in hundreds finds. They are tried first; when one does not any more, all are. With `MILLSTREAM_MUTANTS=all` it is as if nobody knew them.
const KNOWN: [(&str, u64); 7] = [
    ("InitsSwapped", 509),
    ("LocalUnproven", 159),
    ("OwedOnce", 286),
    ("DoubtOfChangelogOnly", 3_612),
    ("HiddenWaitedFor", 3_710),
    ("NewerCollected", 2_058),
    ("SupersededGoesOn", 999),
];

fn known(bug: &Bug) -> Option<u64> {
    let (_, seed) = KNOWN.iter().find(|(name, _)| *name == bug.name)?;
    std::env::var("MILLSTREAM_MUTANTS").map_or(true, |which| which != "all").then_some(*seed)
}

#[test]
fn every_deliberate_bug_is_found() {
    let jobs = std::thread::available_parallelism().map_or(1, |count| count.get());
    let mut unfound = Vec::new();
    let only = std::env::var("MUTANT").ok();
    for bug in all().into_iter().filter(|bug| only.as_ref().is_none_or(|only| *only == bug.name)) {
        let at_once = known(&bug).and_then(|seed| find(&bug, seed..seed + 1, 1));
        match at_once.or_else(|| find(&bug, 0..SEEDS, jobs)) {
            Some(outcome) => {
                let what: String = outcome.failures[0].chars().take(140).collect();
                println!("| `{}` | {} | {what} |", bug.name, outcome.seed + 1);
            }
            None => unfound.push(bug.name),
        }
    }
    assert_eq!(unfound, [""; 0], "not found within {SEEDS} seeds");
}

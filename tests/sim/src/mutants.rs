//! Deliberate bugs, and how many seeds it takes to find each.
//!
//! Most are switched in `worker/shard` ([`millstream_shard::mutant`]). Those that are a property of the log's client are switched in our own client ([`Slips`]),
//! because the real one is code of `worker/stores/src/kafka`, which the simulation does not run.

use crate::log::Slips;
use crate::settings::Runs;
use crate::{Outcome, run_with};
use millstream_shard::mutant::{self, Mutant};
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// A deliberate bug.
#[derive(Clone, Debug)]
pub struct Bug {
    /// What it is called.
    pub name: String,
    /// In the code of the shard.
    pub mutant: Option<Mutant>,
    /// In the client of the log.
    pub slips: Slips,
    /// In which runs it is looked for.
    pub runs: Runs,
}

/// All of them.
pub fn all() -> Vec<Bug> {
    let client_kept = |mutant| matches!(mutant, Mutant::ClientKept | Mutant::OverlayLeaks);
    let only_forgetful =
        |mutant| matches!(mutant, Mutant::CheckpointUnproven | Mutant::HiddenWaitedFor | Mutant::UndecidedForgotten);
    let in_shard = Mutant::ALL.map(|mutant| Bug {
        name: format!("{mutant:?}"),
        mutant: Some(mutant),
        slips: Slips { client_kept: client_kept(mutant), ..Slips::default() },
        runs: if only_forgetful(mutant) { Runs::Forgetful } else { Runs::Usual },
    });
    let in_client = [
        ("SuccessTrusted", Slips { success_trusted: true, ..Slips::default() }),
        ("EndOfFollower", Slips { end_of_follower: true, ..Slips::default() }),
        ("ResetToEnd", Slips { reset_to_end: true, ..Slips::default() }),
    ];
    let in_client =
        in_client.map(|(name, slips)| Bug { name: name.to_owned(), mutant: None, slips, runs: Runs::Usual });
    in_shard.into_iter().chain(in_client).collect()
}

/// The first of these seeds that finds it.
pub fn find(bug: &Bug, seeds: Range<u64>, jobs: usize) -> Option<Outcome> {
    let (next, found) = (AtomicU64::new(seeds.start), Mutex::new(None::<Outcome>));
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                mutant::set(bug.mutant);
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let is_found = found.lock().unwrap().as_ref().is_some_and(|found| found.seed < seed);
                    if seed >= seeds.end || is_found {
                        return;
                    }
                    let outcome = run_with(bug.runs.draw(seed), bug.slips, false);
                    if !outcome.failures.is_empty() {
                        let mut found = found.lock().unwrap();
                        if found.as_ref().is_none_or(|found| found.seed > seed) {
                            *found = Some(outcome);
                        }
                        return;
                    }
                }
            });
        }
    });
    let found = found.into_inner().unwrap();
    // What fails without the bug, too, is another bug.
    if let Some(found) = &found {
        mutant::set(None);
        let without = run_with(bug.runs.draw(found.seed), Slips::default(), false);
        assert!(
            without.failures.is_empty(),
            "seed {} fails without {}, too: {:?}",
            found.seed,
            bug.name,
            without.failures
        );
    }
    found
}

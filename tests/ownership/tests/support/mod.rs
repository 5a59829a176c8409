//! What both tests need.

use millstream_ownership_model::Shard;
use millstream_ownership_model::explore::{Explored, Trace, explore};

/// More than any run here; a run that meets it has gone wrong.
const MOST: usize = 5_000_000;

/// The page that says what was found.
pub(crate) const PAGE: &str = include_str!("../../../../docs/src/design/ownership.md");

pub(crate) fn visit(shard: &Shard) -> Explored<'_, Shard> {
    explore(shard, MOST).expect("too many states")
}

pub(crate) fn text(trace: &Trace<Shard>) -> String {
    trace.iter().map(|(step, _)| format!("  {step}\n")).collect()
}

#[allow(dead_code, reason = "the mutants are not for it")]
/// Visits everything under rules that hold, and compares the figures with the page's table.
pub(crate) fn visit_all<'a>(shard: &'a Shard, row: &str) -> Explored<'a, Shard> {
    let explored = visit(shard);
    if let Some((what, trace)) = &explored.counterexample {
        panic!("{what}:\n{}", text(trace));
    }
    let figures = format!("{} | {} | {} |", explored.states(), explored.steps(), explored.depth);
    let log = shard.longest.map_or("any".to_owned(), |longest| longest.to_string());
    let row = format!("| {row} | {} | {log} | {figures}", shard.workers);
    println!("{row}");
    assert!(PAGE.contains(&row), "docs/src/design/ownership.md lacks the row: {row}");
    explored
}

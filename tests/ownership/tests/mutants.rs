//! Each rule broken once: the checker must find what is wrong, or it proves nothing about the rules that hold.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod support;

use millstream_ownership_model::Shard;
use millstream_ownership_model::rules::{Mutant, Rules};
use support::{PAGE, text, visit};

/// Enough for every counter-example.
const WORKERS: usize = 2;
const LONGEST: usize = 8;

/// Finds the shortest counter-example; its length is in the page's table.
fn refute(shard: &Shard, name: &str) {
    let explored = visit(shard);
    let Some((what, trace)) = &explored.counterexample else { panic!("{name} is not refuted") };
    println!("{name}: {what}\n{}", text(trace));
    let (start, end) = (format!("| `{name}` |"), format!("| {what} | {} |", trace.len()));
    let is_row = |line: &str| line.starts_with(&start) && line.ends_with(&end);
    assert!(PAGE.lines().any(is_row), "docs/src/design/ownership.md lacks the row: {start} … {end}");
}

#[test]
fn every_broken_rule_is_found() {
    for mutant in Mutant::ALL {
        let shard = Shard::bounded(Rules::breaking(mutant), WORKERS, LONGEST);
        // The one rule whose breach harms no log: see the next two tests.
        let judge_prepared = mutant == Mutant::PreparedUnchecked;
        refute(&Shard { judge_prepared, ..shard }, &format!("{mutant:?}"));
    }
}

#[test]
fn without_the_check_of_rule_2_the_log_is_still_right() {
    let rules = Rules::breaking(Mutant::PreparedUnchecked);
    let shard = Shard { rules, judge_prepared: false, ..Shard::unbounded(3) };
    let explored = visit(&shard);
    assert!(explored.counterexample.is_none());
    assert!(explored.hopeless().is_none());
}

#[test]
fn a_release_to_an_id_instead_of_a_client_needs_more() {
    let to_id = Rules { release_to_id: true, ..Rules::default() };
    refute(&Shard::bounded(to_id.clone(), WORKERS, LONGEST), "release_to_id");
    let unchecked = Rules { release_names: true, broken: vec![Mutant::PreparedUnchecked], ..to_id };
    refute(&Shard::bounded(unchecked, WORKERS, LONGEST), "release_to_id, release_names, PreparedUnchecked");
}

//! The rules as they are: all states, with up to four workers; with more in the test that does not run by default.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod support;

use millstream_ownership_model::Shard;
use millstream_ownership_model::explore::Model;
use millstream_ownership_model::rules::{Mutant, Rules};
use millstream_ownership_model::step::Act;
use std::collections::BTreeSet;
use support::{text, visit, visit_all};

fn the_rules() -> (Rules, &'static str) {
    (Rules::default(), "the rules")
}

fn release_names() -> (Rules, &'static str) {
    (Rules { release_names: true, ..Rules::default() }, "a release names the successor's id")
}

fn epochs_compared() -> (Rules, &'static str) {
    let rules = Rules { compare_epochs: true, ..Rules::breaking(Mutant::InitsParallel) };
    (rules, "inits in parallel, epochs compared")
}

/// Visits all states: nothing is left out by a bound, and whoever dies, the others can go on.
fn one_owner_and_never_none_for_good((rules, row): (Rules, &str), workers: usize) {
    let shard = Shard { judge_prepared: !rules.release_names, rules, ..Shard::unbounded(workers) };
    let explored = visit_all(&shard, row);
    let longest = explored.all().map(|state| state.log.len()).max().unwrap();
    assert!(longest <= 1, "the fold leaves {longest} entries: is something never folded?");
    if let Some(trace) = explored.hopeless() {
        panic!("nobody can become the owner any more after:\n{}", text(&trace));
    }
}

/// Every state without the fold is, folded, one that was visited with it.
fn the_fold_hides_nothing((rules, row): (Rules, &str), workers: usize, longest: usize) -> BTreeSet<Act> {
    let unbounded = Shard { rules: rules.clone(), ..Shard::unbounded(workers) };
    let bounded = Shard::bounded(rules, workers, longest);
    let (folded, plain) = (visit(&unbounded), visit_all(&bounded, row));
    let lost = plain.all().find(|state| !folded.has(state));
    assert_eq!(lost.map(|state| text(&plain.way(state).unwrap())), None);
    plain.kinds
}

#[test]
fn the_rules_hold() {
    for workers in 1..=4 {
        one_owner_and_never_none_for_good(the_rules(), workers);
    }
}

#[test]
fn other_rules_that_hold() {
    one_owner_and_never_none_for_good(release_names(), 3);
    one_owner_and_never_none_for_good(epochs_compared(), 3);
}

#[test]
fn states_that_were_folded_away_are_states_that_were_visited() {
    the_fold_hides_nothing(epochs_compared(), 2, 4);
    the_fold_hides_nothing(the_rules(), 2, 5);
    let kinds = the_fold_hides_nothing(the_rules(), 3, 3);
    // A step that never happens would be a hole in the model.
    let broken_only = [Act::PrepareUnchecked, Act::InitAgain, Act::WonAgain, Act::Revive];
    let never: Vec<_> = Act::ALL.iter().filter(|act| !kinds.contains(act) && !broken_only.contains(act)).collect();
    assert!(never.is_empty(), "never happens: {never:?}");
}

#[test]
fn ways_can_be_replayed_without_the_fold() {
    let shard = Shard::unbounded(2);
    let explored = visit(&shard);
    for state in explored.all().step_by(20) {
        let way = explored.way(state).unwrap();
        // The way to the initial state has no step.
        let last = way.last().map_or_else(|| shard.initial(), |(_, last)| last.clone());
        assert_eq!(shard.canonical(&last), *state);
    }
}

#[test]
#[ignore = "40 CPU-seconds: cargo test -p millstream-ownership-model -- --ignored"]
fn more_workers_and_longer_logs() {
    for workers in 5..=6 {
        one_owner_and_never_none_for_good(the_rules(), workers);
    }
    one_owner_and_never_none_for_good(release_names(), 4);
    one_owner_and_never_none_for_good(epochs_compared(), 4);
    the_fold_hides_nothing(the_rules(), 2, 7);
    the_fold_hides_nothing(the_rules(), 3, 4);
    the_fold_hides_nothing(epochs_compared(), 2, 5);
}

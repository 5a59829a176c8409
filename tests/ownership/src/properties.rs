//! What must hold of the log, whatever happens (I4). The log is judged, not what workers believe.

use crate::state::{Content, Entry, Fate, State, Worker};

/// Judges a state: the first thing that is wrong with its log.
#[must_use]
pub fn violation(state: &State) -> Option<&'static str> {
    let decided = || state.log.iter().filter(|entry| entry.fate != Fate::Open);
    if decided().any(|entry| !entry.asked) {
        return Some("a transaction is committed that its writer has not finished");
    }
    let mut newest = 0;
    (0..).zip(decided()).find_map(|(place, entry)| {
        let wrong = misplaced(entry, place).or_else(|| misowned(entry, newest));
        newest = newest.max(entry.epoch);
        wrong
    })
}

/// Batches form one chain: each is built on all that is before it, and on nothing else.
fn misplaced(entry: &Entry, place: i8) -> Option<&'static str> {
    match entry.sequence.cmp(&place) {
        std::cmp::Ordering::Less => Some("a batch is committed behind entries that its writer has not read"),
        std::cmp::Ordering::Equal => None,
        std::cmp::Ordering::Greater => Some("a batch is built on one that is not in the log"),
    }
}

/// Epochs ascend along the ownership records, and every batch is the newest owner's.
fn misowned(entry: &Entry, newest: i8) -> Option<&'static str> {
    let is_record = entry.content == Content::Ownership;
    match is_record {
        true if entry.epoch <= newest => Some("an ownership record's epoch is not higher than the one before"),
        false if entry.epoch != newest => Some("a batch is not of the newest owner"),
        _ => None,
    }
}

/// What rule 2 promises to the owner: a prepared client that is not fenced has the idle id, so that a release to it can be followed.
///
/// Not part of I4: without the check a handoff leads nowhere, but nobody writes who must not.
#[must_use]
pub fn useless_preparation(state: &State) -> Option<&'static str> {
    let (named, _) = state.view(state.end(), false);
    let holds_named = |(who, worker): (u8, &Worker)| *worker == Worker::Prepared(named) && state.holds(who, named);
    let found = (0..).zip(&state.workers).any(holds_named);
    found.then_some("a prepared client holds the id that the log names")
}

/// A worker whose ownership record is committed, and whose client is not fenced.
#[must_use]
pub fn has_owner(state: &State) -> bool {
    (0..).zip(&state.workers).any(|(who, worker)| match worker {
        Worker::Owner(lease) => lease.announced && state.holds(who, lease.slot),
        _ => false,
    })
}

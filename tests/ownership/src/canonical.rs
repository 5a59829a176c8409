//! One of all states that behave alike. It is what makes the number of states finite without a bound on batches, inits, or crashes.
//!
//! - Workers are alike: they are sorted.
//! - Numbers are only compared: what is committed and hands the shard to nobody is folded away, and the rest is counted from there. Who has not read it all
//!   is then below zero, and would still be found when it commits.
//! - A fenced owner can do nothing but notice it: it counts as idle. A release to a client that is gone is a batch.
//!
//! The last two are checked by a run without them (`the_fold_hides_nothing`), in which a state that folds to an unvisited one fails.

use crate::acquire::BEFORE;
use crate::rules::Rules;
use crate::state::{Content, Entry, Fate, Lease, Slot, State, Worker, WorkerId};

/// Sorts the workers.
pub(crate) fn sorted(state: &State) -> State {
    let mut order: Vec<WorkerId> = (0..).zip(&state.workers).map(|(who, _)| who).collect();
    order.sort_by_cached_key(|who| (state.worker(*who), relations(state, *who)));
    let renamed = |who: WorkerId| (0..).zip(&order).find(|(_, old)| **old == who).map_or(who, |(new, _)| new);
    let mut sorted = state.clone();
    sorted.workers = order.iter().map(|who| state.worker(*who)).collect();
    for slot in [Slot::Zero, Slot::One] {
        let id = sorted.ids.of_mut(slot);
        id.holder = id.holder.map(renamed);
    }
    for entry in &mut sorted.log {
        if let Content::Release { to, .. } = &mut entry.content {
            *to = to.map(renamed);
        }
    }
    sorted
}

/// All that ties a worker to the rest of the state: workers that agree in this can be exchanged.
fn relations(state: &State, who: WorkerId) -> (bool, bool, Vec<bool>) {
    let is_meant = |entry: &Entry| matches!(entry.content, Content::Release { to, .. } if to == Some(who));
    (state.holds(who, Slot::Zero), state.holds(who, Slot::One), state.log.iter().map(is_meant).collect())
}

/// Folds away what makes no difference any more.
pub(crate) fn folded(rules: &Rules, state: &State) -> State {
    let mut state = state.clone();
    for who in (0..).zip(state.workers.clone()).map(|(who, _)| who) {
        if lease(state.worker(who)).is_some_and(|lease| !state.holds(who, lease.slot)) {
            state.discard(who, Worker::Idle);
        }
    }
    forget_dead_releases(&mut state);
    for _ in 0..foldable(&state) {
        let first = state.log.remove(0);
        fold(rules, &mut state, first);
    }
    state
}

fn lease(worker: Worker) -> Option<Lease> {
    match worker {
        Worker::Owner(lease) | Worker::Writing(lease) => Some(lease),
        _ => None,
    }
}

fn forget_dead_releases(state: &mut State) {
    let ids = state.ids;
    for entry in &mut state.log {
        if let Content::Release { to, stands } = &mut entry.content {
            *stands &= ids.of(entry.slot.other()).holder == *to;
            *to = to.filter(|_| *stands);
        }
    }
}

/// Entries at the log's beginning that are committed, and release to nobody.
fn foldable(state: &State) -> usize {
    let stands = |entry: &&Entry| matches!(entry.content, Content::Release { stands: true, .. });
    state.log.iter().take_while(|entry| entry.fate == Fate::Committed && !stands(entry)).count()
}

/// Counts sequence numbers and epochs from behind an entry that was taken away.
fn fold(rules: &Rules, state: &mut State, gone: Entry) {
    let epochs = if gone.content == Content::Ownership { gone.epoch } else { 0 };
    match gone.content {
        Content::Ownership => state.named = gone.slot,
        Content::Release { .. } if rules.release_names => state.named = gone.slot.other(),
        _ => {}
    }
    let named = state.named;
    *state.ever.of_mut(named) = true;
    for entry in &mut state.log {
        entry.sequence -= 1;
        entry.epoch -= epochs;
    }
    for worker in &mut state.workers {
        match worker {
            Worker::Owner(lease) | Worker::Writing(lease) => {
                lease.read -= 1;
                lease.epoch -= epochs;
            }
            Worker::Taking(takeover) if rules.compare_epochs => {
                takeover.epoch = (takeover.epoch - epochs).max(BEFORE);
            }
            _ => {}
        }
    }
}

//! How an owner writes: one transaction per batch, rule 6, and the release of rule 3.

use crate::moves::{Moves, count};
use crate::rules::Mutant;
use crate::state::{Content, Entry, Fate, Lease, Slot, State, Worker, WorkerId};
use crate::step::Act;

/// Between two transactions.
pub(crate) fn begin(moves: &mut Moves, who: WorkerId, lease: Lease) {
    if !moves.from.holds(who, lease.slot) {
        return fenced(moves, who, lease);
    }
    // The coordinator takes nothing more from a client whose last transaction has not come to its end.
    let is_busy = moves.from.log.iter().any(|entry| entry.slot == lease.slot && entry.fate != Fate::Committed);
    if is_busy || moves.from.log.len() >= moves.longest {
        return;
    }
    if !lease.announced {
        return append(moves, who, lease, Content::Ownership);
    }
    append(moves, who, lease, Content::Batch);
    for (to, worker) in (0..).zip(&moves.from.workers) {
        if *worker == Worker::Prepared(lease.slot.other()) && to != who {
            append(moves, who, lease, Content::Release { to: Some(to), stands: true });
        }
    }
}

fn append(moves: &mut Moves, who: WorkerId, lease: Lease, content: Content) {
    let act = if matches!(content, Content::Release { .. }) { Act::AppendRelease } else { Act::Append };
    let Lease { slot, epoch, read, .. } = lease;
    moves.step(Some(who), act, slot, |state| {
        state.set(who, Worker::Writing(lease));
        state.log.push(Entry { slot, epoch, sequence: read, content, asked: false, fate: Fate::Open });
    });
}

/// In a transaction: asks for the commit, or gives it up.
pub(crate) fn end(moves: &mut Moves, who: WorkerId, lease: Lease) {
    if !moves.from.holds(who, lease.slot) {
        return fenced(moves, who, lease);
    }
    let is_open = |entry: &&Entry| entry.slot == lease.slot && entry.fate == Fate::Open;
    if let Some(content) = moves.from.log.iter().find(is_open).map(|entry| entry.content) {
        succeed(moves, who, lease, content);
        fail(moves, who, lease);
    }
}

fn succeed(moves: &mut Moves, who: WorkerId, lease: Lease, content: Content) {
    let slot = lease.slot;
    let goes_on = moves.broken(Mutant::GoesOnAfterRelease);
    moves.step(Some(who), act_of(content, lease), slot, |state| {
        ask(state, slot, Fate::Decided);
        settle(state, who, lease, content, goes_on);
    });
    let trusted = moves.broken(Mutant::SuccessTrusted);
    moves.step(Some(who), Act::Doubtful, slot, |state| {
        // One request did it. Another one, sent before the connection broke, is still under way.
        ask(state, slot, Fate::Decided);
        state.ids.of_mut(slot).late = true;
        if trusted {
            settle(state, who, lease, content, goes_on);
        } else {
            state.discard(who, Worker::Idle);
        }
    });
}

fn fail(moves: &mut Moves, who: WorkerId, lease: Lease) {
    let slot = lease.slot;
    let kept = moves.broken(Mutant::ClientKept);
    moves.step(Some(who), Act::Unknown, slot, |state| {
        ask(state, slot, Fate::Open);
        state.ids.of_mut(slot).late = true;
        after_error(state, who, lease, kept);
    });
    moves.step(Some(who), Act::Abort, slot, |state| {
        state.abort(slot);
        after_error(state, who, lease, kept);
    });
}

fn act_of(content: Content, lease: Lease) -> Act {
    match content {
        Content::Ownership if lease.handed => Act::CommitHandover,
        Content::Ownership => Act::CommitAnnouncement,
        Content::Batch => Act::Commit,
        Content::Release { .. } => Act::CommitRelease,
    }
}

fn ask(state: &mut State, slot: Slot, fate: Fate) {
    if let Some(entry) = state.pending(slot) {
        (entry.asked, entry.fate) = (true, fate);
    }
}

/// The batch counts as committed.
fn settle(state: &mut State, who: WorkerId, lease: Lease, content: Content, goes_on: bool) {
    if matches!(content, Content::Release { .. }) && !goes_on {
        return state.discard(who, Worker::Idle);
    }
    let read = lease.read + count(1);
    state.set(who, Worker::Owner(Lease { read, announced: true, handed: false, ..lease }));
}

/// Rule 6. Nothing is known: whether the batch is there shows in the next takeover.
fn after_error(state: &mut State, who: WorkerId, lease: Lease, kept: bool) {
    if kept {
        state.abort(lease.slot);
        state.set(who, Worker::Owner(lease));
    } else {
        state.discard(who, Worker::Idle);
    }
}

/// Whoever fenced it, and why, its client cannot tell (a time-out looks the same).
fn fenced(moves: &mut Moves, who: WorkerId, lease: Lease) {
    moves.step(Some(who), Act::Fenced, lease.slot, |state| state.discard(who, Worker::Idle));
    if moves.broken(Mutant::ClientRevived) {
        moves.step(Some(who), Act::Revive, lease.slot, |state| {
            state.init(lease.slot, Some(who));
            state.set(who, Worker::Owner(lease));
        });
    }
}

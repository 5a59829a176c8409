//! How a worker gets a shard: rules 1 to 4.

use crate::moves::{Moves, count};
use crate::rules::Mutant;
use crate::state::{Content, Entry, Lease, Slot, State, Takeover, Worker, WorkerId};
use crate::step::Act;
use std::collections::BTreeSet;

/// Any epoch before the newest that was folded away.
pub(crate) const BEFORE: i8 = -1;

/// A worker without a client may prepare or take over, going by any view that the log ever gave: it may lag as far as it likes.
pub(crate) fn begin(moves: &mut Moves, who: WorkerId) {
    let views = views(moves);
    for named in [Slot::Zero, Slot::One] {
        if views.iter().any(|takeover| takeover.view == named) {
            begin_with_one(moves, who, named);
        }
    }
    for takeover in views {
        take(moves, who, takeover);
    }
    if moves.broken(Mutant::ReleaseForAnyone) {
        take_any_release(moves, who);
    }
}

fn begin_with_one(moves: &mut Moves, who: WorkerId, named: Slot) {
    let idle = named.other();
    moves.step(Some(who), Act::Prepare, idle, |state| {
        state.init(idle, Some(who));
        state.set(who, Worker::Preparing(idle));
    });
    if moves.broken(Mutant::NamedIdUsedOn) {
        moves.step(Some(who), Act::InitAgain, named, |state| {
            state.init(named, Some(who));
            state.set(who, Worker::Again(named));
        });
    }
}

/// Takeovers as they may begin.
fn views(moves: &Moves) -> Vec<Takeover> {
    let end = moves.from.end();
    let begun = |view, epoch, read| Takeover { view, epoch, read, idle: false, named: false };
    if moves.broken(Mutant::NotReadAgain) {
        // Reads to the end once, before the inits. What it read then is what it goes on from.
        return vec![begun(moves.view(end).0, 0, count(end))];
    }
    let now = (0..=end).map(|entries| moves.view(entries));
    let before =
        [Slot::Zero, Slot::One].into_iter().filter(|slot| *moves.from.ever.of(*slot)).map(|slot| (slot, BEFORE));
    let known = |epoch| if moves.rules.compare_epochs { epoch } else { 0 };
    let views: BTreeSet<_> = now.chain(before).map(|(view, epoch)| begun(view, known(epoch), 0)).collect();
    views.into_iter().collect()
}

/// Rule 2: reads to the end, and discards the client if the log names its id.
pub(crate) fn check_prepared(moves: &mut Moves, who: WorkerId, slot: Slot) {
    if moves.broken(Mutant::PreparedUnchecked) {
        return moves.step(Some(who), Act::PrepareUnchecked, slot, |state| state.set(who, Worker::Prepared(slot)));
    }
    for end in moves.ends() {
        if moves.view(end).0 == slot {
            moves.step(Some(who), Act::PrepareFailed, slot, |state| state.discard(who, Worker::Idle));
        } else {
            moves.step(Some(who), Act::PrepareChecked, slot, |state| state.set(who, Worker::Prepared(slot)));
        }
    }
}

/// A prepared client waits for its release (rule 3), or serves a takeover (rule 4).
pub(crate) fn use_prepared(moves: &mut Moves, who: WorkerId, slot: Slot) {
    let again = moves.broken(Mutant::InitAfterRelease);
    let readable = if moves.broken(Mutant::ReadsUncommitted) { moves.from.log.len() } else { moves.from.end() };
    for (place, entry) in (0..readable).zip(&moves.from.log) {
        let is_last = place + 1 == readable;
        if is_meant(moves, entry, who, slot, is_last) {
            moves.step(Some(who), Act::Accept, slot, |state| go_on(state, who, place, entry, again));
        }
    }
    for takeover in views(moves).into_iter().filter(|takeover| takeover.view != slot) {
        moves.step(Some(who), Act::TakePrepared, slot, |state| {
            state.set(who, Worker::Taking(Takeover { idle: true, ..takeover }));
        });
    }
}

/// Rule 3: only that very client goes on.
fn is_meant(moves: &Moves, entry: &Entry, who: WorkerId, slot: Slot, is_last: bool) -> bool {
    let Content::Release { to, stands } = entry.content else { return false };
    let is_same_client = stands || moves.broken(Mutant::PreparedAfterRelease);
    let is_for_it = if moves.rules.release_to_id { is_last } else { to == Some(who) && is_same_client };
    entry.slot.other() == slot && is_for_it
}

fn take_any_release(moves: &mut Moves, who: WorkerId) {
    for (place, entry) in (0..).zip(moves.from.visible()) {
        if matches!(entry.content, Content::Release { .. }) {
            moves.step(Some(who), Act::Accept, entry.slot.other(), |state| go_on(state, who, place, entry, true));
        }
    }
}

/// Goes on behind a release. The successor need not have read anything that follows: that nothing can follow is what rule 3 is for.
fn go_on(state: &mut State, who: WorkerId, place: usize, release: &Entry, init: bool) {
    let slot = release.slot.other();
    if init {
        state.init(slot, Some(who));
    }
    let read = count(place + 1);
    state.set(who, Worker::Owner(Lease { slot, read, epoch: release.epoch + 1, announced: false, handed: true }));
}

/// Rule 4: the idle id, then the named one, then the end of the log.
pub(crate) fn take(moves: &mut Moves, who: WorkerId, takeover: Takeover) {
    if takeover.idle && takeover.named {
        return win_or_lose(moves, who, takeover);
    }
    let (swapped, parallel) = (moves.broken(Mutant::InitsSwapped), moves.broken(Mutant::InitsParallel));
    if !takeover.idle && (!swapped || takeover.named) {
        let idle = takeover.view.other();
        moves.step(Some(who), Act::InitIdle, idle, |state| {
            state.init(idle, Some(who));
            state.set(who, Worker::Taking(Takeover { idle: true, ..takeover }));
        });
    }
    if !takeover.named && (takeover.idle || swapped || parallel) {
        moves.step(Some(who), Act::InitNamed, takeover.view, |state| {
            // This client has done its work by fencing the others.
            state.init(takeover.view, None);
            state.set(who, Worker::Taking(Takeover { named: true, ..takeover }));
        });
    }
}

fn win_or_lose(moves: &mut Moves, who: WorkerId, takeover: Takeover) {
    let slot = takeover.view.other();
    let ends = if moves.broken(Mutant::NotReadAgain) {
        vec![usize::try_from(takeover.read).unwrap_or(0)]
    } else {
        moves.ends()
    };
    for end in ends {
        let (named, epoch) = moves.view(end);
        let is_newer = moves.rules.compare_epochs && epoch != takeover.epoch;
        if named == takeover.view && !is_newer {
            let lease = Lease { slot, read: count(end), epoch: epoch + 1, announced: false, handed: false };
            moves.step(Some(who), Act::TakeWon, slot, |state| state.set(who, Worker::Owner(lease)));
        } else {
            moves.step(Some(who), Act::TakeLost, slot, |state| state.discard(who, Worker::Idle));
        }
    }
}

/// What rule 4 forbids.
pub(crate) fn check_again(moves: &mut Moves, who: WorkerId, slot: Slot) {
    let end = moves.from.end();
    let (named, epoch) = moves.view(end);
    if named == slot {
        let lease = Lease { slot, read: count(end), epoch: epoch + 1, announced: false, handed: false };
        moves.step(Some(who), Act::WonAgain, slot, |state| state.set(who, Worker::Owner(lease)));
    }
}

//! What the transaction coordinator and the network do by themselves.

use crate::moves::Moves;
use crate::state::{Fate, Slot};
use crate::step::Act;

pub(crate) fn moves(moves: &mut Moves) {
    for slot in [Slot::Zero, Slot::One] {
        let pending = moves.from.log.iter().find(|entry| entry.slot == slot && entry.fate != Fate::Committed);
        let fate = pending.map(|entry| entry.fate);
        if moves.from.ids.of(slot).late {
            late(moves, slot, fate == Some(Fate::Open));
        }
        match fate {
            Some(Fate::Decided) => moves.step(None, Act::Marker, slot, |state| state.land_marker(slot)),
            // `transaction.timeout.ms`
            Some(_) => moves.step(None, Act::Timeout, slot, |state| state.init(slot, None)),
            // `transactional.id.expiration.ms`
            None if moves.from.ids.of(slot).holder.is_some() => {
                moves.step(None, Act::Forget, slot, |state| state.init(slot, None));
            }
            None => {}
        }
    }
}

/// A request to commit of the newest producer epoch: it commits whatever is open now. One of an older epoch is refused, so it is not here any more.
fn late(moves: &mut Moves, slot: Slot, is_open: bool) {
    moves.step(None, Act::LateLost, slot, |state| state.ids.of_mut(slot).late = false);
    if is_open {
        moves.step(None, Act::LateCommit, slot, |state| {
            state.ids.of_mut(slot).late = false;
            if let Some(entry) = state.pending(slot) {
                entry.fate = Fate::Decided;
            }
        });
    }
}

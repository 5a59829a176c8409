//! Two users become one: the state of the larger goes to the home of the smaller, or of whoever that one has become part of.
//!
//! The state moves exactly once: the loser's home empties it in the transaction that sends it (I1). It goes in parts when it is too large for one message
//! ([`super::merging`]); each of them is united as the state of a user of its own would be, so what may come between them is nothing new to the
//! protocol. What of both users' attributes has no room is left out and reported; no identifier is (I9).

use super::document::{self, Cause, publish_user, tombstone, user_fields};
use super::state::{self, required, user_id, user_key};
use super::work::{Header, Work};
use super::{merging, outcome, user};
use crate::StateError;
use millstream_model::id::UserId;
use millstream_model::proto::exchange::Body;
use millstream_model::proto::user::Fate;
use millstream_model::proto::{Absorb, Identifier, Merged, Operation, Stamp, User};

impl Work<'_> {
    /// A live user becomes part of another one: from now on it forwards.
    pub(super) fn give_up(
        &mut self,
        header: &Header,
        id: &UserId,
        to: &UserId,
        cause: Cause<'_>,
    ) -> Result<(), StateError> {
        let user = state::user_mut(self.state, &user_key(&header.tenant, id))?;
        let forwarding = User {
            id: user.id.clone(),
            revision: user.revision,
            erased: user.erased,
            expelled: std::mem::take(&mut user.expelled),
            fate: Some(Fate::Forward(to.as_bytes().to_vec())),
            ..User::default()
        };
        let state = std::mem::replace(user, forwarding);
        publish_user(user, tombstone(), cause, self.at, self.out);
        let relink = state.erased.is_some();
        for part in merging::parts(state, self.limits.max_merged_bytes) {
            let absorb = Absorb {
                survivor: to.as_bytes().to_vec(),
                loser: id.as_bytes().to_vec(),
                relink,
                erased: None,
                state: Some(part),
                stamp: Some(cause.stamp),
                record_id: cause.record_id.to_vec(),
            };
            self.send(&header.tenant, header.hops + 1, to.home(), Body::Absorb(Box::new(absorb)));
        }
        Ok(())
    }

    /// At the home of the survivor, or of a user on the way to it: the state of one that became part of it, or a part
    /// of a large one.
    pub(super) fn absorb(&mut self, header: &Header, mut message: Absorb) -> Result<(), StateError> {
        let id = user_id(&message.survivor)?;
        let mut state = required(message.state.take(), "state")?;
        let stamp = required(message.stamp, "stamp")?;
        let key = user_key(&header.tenant, &id);
        let user = state::user(self.state, &key)?;
        let deletion = if let Some(Fate::Deleted(deletion)) = user.fate { Some(deletion) } else { user.erased };
        message.relink |= deletion.is_some();
        message.erased = message.erased.max(deletion.filter(|deletion| stamp <= *deletion));
        if let Some(Fate::Forward(to)) = &user.fate {
            let to = user_id(to)?;
            let absorb = Absorb { survivor: to.as_bytes().to_vec(), state: Some(state), ..message };
            self.send(&header.tenant, header.hops + 1, to.home(), Body::Absorb(Box::new(absorb)));
            return Ok(());
        }
        let ids = [user::ids(user), user::ids(&state)].concat();
        let user = state::user_mut(self.state, &key)?;
        let purged = message.erased.map(|deletion| (deletion, user::purge_absorbed(user, &mut state, deletion)));
        let cause = Cause { tenant: &header.tenant, stamp, record_id: &message.record_id, trace: None };
        let crowded = merging::crowded(user, &state, self.limits.max_merged_bytes);
        let mut operations = united(user, state, message.relink, cause);
        let most = self.limits.max_merged_bytes;
        let left_out = crowded.map(|theirs| merging::fit(user, &theirs, most)).unwrap_or_default();
        if !left_out.is_empty() && user.fate.is_none() {
            // What goes and what comes may be more than the whole.
            operations = document::replace(user_fields(cause.tenant, user));
        }
        publish_user(user, operations, cause, self.at, self.out);
        outcome::left_out(user, &message.loser, left_out, cause, self.out);
        let members: Vec<Identifier> = user.identifiers.iter().filter_map(|member| member.identifier.clone()).collect();
        if let Some((deletion, purged)) = purged {
            self.let_go(&header.tenant, purged, &ids, deletion);
        }
        if message.relink {
            self.link_anew(header, &id, &members)?;
        }
        Ok(())
    }
}

/// Unites a state with a live user, or with a deleted one that lives again by it; gives what changes in the document.
fn united(user: &mut User, state: User, relink: bool, cause: Cause<'_>) -> Vec<Operation> {
    let record_id = cause.record_id.to_vec();
    let before = user_fields(cause.tenant, user);
    if relink && user.fate.is_none() {
        // Whoever becomes part of this user later may be linked by a node that such a deletion is still to take.
        user.erased = user.erased.or(Some(Stamp::default()));
    }
    if state.identifiers.is_empty() {
        // A deletion took all of it; only that its id led here, and what the deletion took, is worth knowing.
        user::unite_taken(user, state.taken);
        user::add_merged(user, Merged { user: state.id, stamp: Some(cause.stamp), record_id }, state.merged);
        let is_live = user.fate.is_none();
        return if is_live { document::difference(&before, &user_fields(cause.tenant, user)) } else { Vec::new() };
    }
    if let Some(Fate::Deleted(deletion)) = user.fate {
        user.fate = None;
        user.erased = Some(deletion);
        (user.first_seen_ms, user.last_seen_ms) = (state.first_seen_ms, state.last_seen_ms);
        user::unite(user, state, Some(cause.stamp), record_id);
        return document::replace(user_fields(cause.tenant, user));
    }
    user::unite(user, state, Some(cause.stamp), record_id);
    document::difference(&before, &user_fields(cause.tenant, user))
}

//! The home of a user: actions, merges and deletions take effect here, and nowhere else (each merge is decided at one place, I9).

use super::document::{self, Cause, publish_user, tombstone, user_fields};
use super::merging;
use super::outcome::{self, Part};
use super::size;
use super::state::{self, identifier_hash, required, user_id, user_key};
use super::user::{self, Purged};
use super::work::{Header, Work};
use crate::StateError;
use millstream_model::id::{DeviceId, UserId};
use millstream_model::key::group_of;
use millstream_model::proto::action::Way;
use millstream_model::proto::exchange::Body;
use millstream_model::proto::user::Fate;
use millstream_model::proto::{Action, Apply, Ask, Erase, Forget, Identifier, MergeUsers, Relink, Stamp, Unlink, User};
use millstream_model::reject::Refusal;

/// Ids of users that one [`Unlink`] names, and bytes of identifiers that one [`Forget`] does: merges have no bound, messages of the log do.
pub(super) const UNLINKED_IDS: usize = 10_000;
const NAMES_BYTES: usize = 512 * 1024;

/// Where a user stands, for an action by some identifier.
enum Standing {
    Forward(UserId),
    /// Deleted, or live and the identifier is no member: a deletion took it. Which records that covers, only the identifier's node knows.
    Left,
    /// Live; the newest deletion that the identifier's membership outlived, or that took an earlier one.
    Member(Option<Stamp>),
}

fn standing(user: &User, via: &Identifier) -> Result<Standing, StateError> {
    if !user.expelled.is_empty() && user.expelled.contains(&identifier_hash(via)) {
        // An action by it was sent back. Those behind follow it, even if the identifier is a member again, until the drain has passed.
        return Ok(Standing::Left);
    }
    fate(user, via)
}

fn fate(user: &User, via: &Identifier) -> Result<Standing, StateError> {
    Ok(match &user.fate {
        Some(Fate::Forward(to)) => Standing::Forward(user_id(to)?),
        Some(Fate::Deleted(_)) => Standing::Left,
        None => user::member(user, via)
            .map_or(Standing::Left, |member| Standing::Member(member.erased.max(user::taken(user, via)))),
    })
}

pub(super) fn apply_message(user: &UserId, via: Identifier, action: Action) -> Body {
    Body::Apply(Box::new(Apply { user: user.as_bytes().to_vec(), via: Some(via), action: Some(action) }))
}

impl Work<'_> {
    pub(super) fn apply(&mut self, header: &Header, message: Apply) -> Result<(), StateError> {
        let id = user_id(&message.user)?;
        let via = required(message.via, "via")?;
        let mut action = required(message.action, "action")?;
        let key = user_key(&header.tenant, &id);
        match standing(state::user(self.state, &key)?, &via)? {
            Standing::Forward(to) => {
                self.send(&header.tenant, header.hops + 1, to.home(), apply_message(&to, via, action));
            }
            Standing::Left => self.send_back(header, &id, via, action)?,
            Standing::Member(erased) => match action.way.take() {
                None => self.apply_to_member(header, &id, &via, erased, action)?,
                Some(way) => self.end_path(header, &id, way, action)?,
            },
        }
        Ok(())
    }

    fn apply_to_member(
        &mut self,
        header: &Header,
        id: &UserId,
        via: &Identifier,
        erased: Option<Stamp>,
        action: Action,
    ) -> Result<(), StateError> {
        if action.delete {
            return self.delete(&header.tenant, id, &action);
        }
        match self.admit(header.hops, via, erased, action)? {
            Some(action) => self.apply_live(&header.tenant, id, via, action),
            None => Ok(()),
        }
    }

    /// At the end of a device's path.
    fn end_path(&mut self, header: &Header, id: &UserId, way: Way, action: Action) -> Result<(), StateError> {
        match way {
            Way::Instead(named) => match self.standing_since(header, id, &named, action.stamp)? {
                Standing::Member(erased) => self.apply_to_member(header, id, &named, erased, action),
                Standing::Left | Standing::Forward(_) => self.leave_path(header, Way::Instead(named), action),
            },
            Way::Ask(ask) => self.answer(header, id, ask, action),
        }
    }

    /// How a user stands to a record that names it and came another way. Whoever had the identifier only after the record is none whom it names: which
    /// deletions concern it then, only the identifier's node knows.
    fn standing_since(
        &mut self,
        header: &Header,
        id: &UserId,
        named: &Identifier,
        stamp: Option<Stamp>,
    ) -> Result<Standing, StateError> {
        let user = state::user(self.state, &user_key(&header.tenant, id))?;
        let is_named = user::member(user, named).is_some_and(|member| member.stamp <= stamp);
        if is_named { standing(user, named) } else { Ok(Standing::Left) }
    }

    /// Whether a device asks about an identifier of this user. Its node may not know of it yet, and deletions by it would go elsewhere: so the question goes there, and
    /// the answer is whether that leads here, too.
    fn answer(&mut self, header: &Header, id: &UserId, ask: Ask, action: Action) -> Result<(), StateError> {
        let user = state::user(self.state, &user_key(&header.tenant, id))?;
        if !ask.user.is_empty() {
            let leads_here = user::ids(user).contains(&ask.user);
            return self.arrive(&header.tenant, ask, leads_here);
        }
        let Some(named) = ask.identifier.clone() else { return self.arrive(&header.tenant, ask, false) };
        match self.standing_since(header, id, &named, ask.stamp)? {
            Standing::Member(_) => {
                let way = Some(Way::Ask(Ask { user: id.as_bytes().to_vec(), ..ask }));
                self.resolve_by(header.hops + 1, named, Action { way, ..action }, false);
                Ok(())
            }
            Standing::Left | Standing::Forward(_) => self.arrive(&header.tenant, ask, false),
        }
    }

    /// The identifier does not name this user any more: it is to be resolved again. The unlink before it makes sure that its node knows.
    fn send_back(&mut self, header: &Header, id: &UserId, via: Identifier, action: Action) -> Result<(), StateError> {
        self.unlink_again(header, id, &via)?;
        let hash = identifier_hash(&via);
        let user = state::user_mut(self.state, &user_key(&header.tenant, id))?;
        if !user.expelled.contains(&hash) {
            user.expelled.push(hash);
        }
        self.resolve_by(header.hops + 1, via, action, true);
        Ok(())
    }

    /// Applies an action to a live user: its state, document, event and links.
    pub(super) fn apply_live(
        &mut self,
        tenant: &str,
        id: &UserId,
        via: &Identifier,
        mut action: Action,
    ) -> Result<(), StateError> {
        let stamp = required(action.stamp, "stamp")?;
        let user = state::user_mut(self.state, &user_key(tenant, id))?;
        let refused = self.limits.admit_user(user, &mut action);
        if action.merge.is_some()
            && let Some(refusal) = Refusal::join(&refused.refusals)
        {
            // Nothing of a merge is left without the link.
            outcome::refuse(&action, refusal, self.at, self.out);
            return Ok(());
        }
        let with_device = !refused.device;
        outcome::partial(&action, Part::User(via), refused, self.at, self.out);
        let applied = user::apply(user, via, &mut action, with_device)?;
        let cause = Cause { tenant, stamp, record_id: &action.record_id, trace: action.trace.as_ref() };
        publish_user(user, applied.operations, cause, self.at, self.out);
        if let Some(event) = action.event.take() {
            outcome::enriched_event(&action, event, user, id, self.at, self.out);
        }
        outcome::effect(&action, self.out);
        for identifier in applied.links {
            self.send_link(tenant, id, user::membership(identifier, stamp, &action.record_id))?;
        }
        if !with_device {
            self.forget_device(&action, via);
        }
        Ok(())
    }

    fn delete(&mut self, tenant: &str, id: &UserId, action: &Action) -> Result<(), StateError> {
        let stamp = required(action.stamp, "stamp")?;
        let cause = Cause { tenant, stamp, record_id: &action.record_id, trace: action.trace.as_ref() };
        self.erase_live(id, stamp, cause)?;
        outcome::effect(action, self.out);
        Ok(())
    }

    /// Takes what is not newer than the deletion from a live user; when nothing is left, the user is deleted.
    fn erase_live(&mut self, id: &UserId, deletion: Stamp, cause: Cause<'_>) -> Result<(), StateError> {
        let user = state::user_mut(self.state, &user_key(cause.tenant, id))?;
        let before = user_fields(cause.tenant, user);
        let purged = user::purge(user, deletion);
        let ids = user::ids(user);
        if user.identifiers.is_empty() {
            user::bury(user, deletion);
            publish_user(user, tombstone(), cause, self.at, self.out);
        } else {
            let operations = document::difference(&before, &user_fields(cause.tenant, user));
            publish_user(user, operations, cause, self.at, self.out);
        }
        self.let_go(cause.tenant, purged, &ids, deletion);
        Ok(())
    }

    /// Tells identifiers and devices of what a deletion took.
    pub(super) fn let_go(&mut self, tenant: &str, purged: Purged, users: &[Vec<u8>], deletion: Stamp) {
        let names = merging::chunks(purged.names, NAMES_BYTES, size::member);
        for device in purged.devices {
            let Some(home) = DeviceId::from_bytes(&device).map(|id| id.home()) else { continue };
            for names in &names {
                let (device, identifiers, stamp) = (device.clone(), names.clone(), Some(deletion));
                let forget = Forget { device, identifiers, stamp, refused: false };
                self.send(tenant, 0, home, Body::Forget(forget));
            }
        }
        for (identifier, before) in purged.identifiers {
            let erased = before.max(Some(deletion));
            let group = group_of(tenant, &identifier);
            for users in users.chunks(UNLINKED_IDS) {
                let unlink = Unlink { identifier: Some(identifier.clone()), users: users.to_vec(), erased };
                self.send(tenant, 0, group, Body::Unlink(unlink));
            }
        }
    }

    /// A record that is older than a deletion linked this user with a deleted one: the deletion is this user's too.
    pub(super) fn erase(&mut self, header: &Header, message: Erase) -> Result<(), StateError> {
        let id = user_id(&message.user)?;
        let via = required(message.via.clone(), "via")?;
        let deletion = required(message.stamp, "stamp")?;
        let key = user_key(&header.tenant, &id);
        let user = state::user_mut(self.state, &key)?;
        if let Some(Fate::Forward(to)) = &user.fate {
            let to = user_id(to)?;
            user.erased = user.erased.max(Some(deletion));
            let erase = Erase { user: to.as_bytes().to_vec(), ..message };
            self.send(&header.tenant, header.hops + 1, to.home(), Body::Erase(erase));
        } else if user.fate.is_none() {
            let cause = Cause { tenant: &header.tenant, stamp: deletion, record_id: &[], trace: None };
            self.erase_live(&id, deletion, cause)?;
            self.link_anew(header, &id, &[via])?;
        }
        Ok(())
    }

    /// At the home of the larger of two users: it becomes part of the smaller, or whoever it has become part of does.
    pub(super) fn merge(&mut self, header: &Header, message: MergeUsers) -> Result<(), StateError> {
        let (smaller, larger) = (user_id(&message.smaller)?, user_id(&message.larger)?);
        let via = required(message.via, "via")?;
        let stamp = required(message.stamp, "stamp")?;
        let cause = Cause { tenant: &header.tenant, stamp, record_id: &message.record_id, trace: None };
        let user = state::user(self.state, &user_key(&header.tenant, &larger))?;
        // Without the identifier it has either lost it by a deletion, or the state that brings it is still on the way. In a user that a
        // deletion touched that state is linked anew when it comes, so only there the merge may be left to a new link. That link is the
        // smaller user's to send, not ours: the deletion may have taken the identifier from it too.
        let is_touched = user.fate.is_some() || user.erased.is_some();
        match fate(user, &via)? {
            Standing::Forward(to) if to == smaller => Ok(()),
            Standing::Forward(to) => {
                self.merge_users(header.hops, to, smaller, via, cause);
                Ok(())
            }
            Standing::Left if is_touched => {
                self.unlink_again(header, &larger, &via)?;
                let relink = Relink { user: message.smaller, via: Some(via) };
                self.send(&header.tenant, header.hops + 1, smaller.home(), Body::Relink(relink));
                Ok(())
            }
            Standing::Left | Standing::Member(_) => self.give_up(header, &larger, &smaller, cause),
        }
    }
}

//! What the home of a user tells the nodes of its identifiers: that they name it (*Link*), or no longer (*Unlink*).
//!
//! Only the user's own home says so, in the order of its own changes, and a link is never newer than the membership that it speaks for.
//! So when a deletion takes a membership, its unlink comes after every link of that home, and a link that comes another way later is
//! older than the deletion that the node remembers. Whoever else finds that a link is missing asks the home for it
//! ([`Work::relink`]): a link on behalf of a user that is deleted by then would make a node for ever lead to it (part of I9).

use super::home::UNLINKED_IDS;
use super::state::{self, identifier_hash, required, user_id, user_key};
use super::user;
use super::work::{Header, Work};
use crate::StateError;
use millstream_model::id::UserId;
use millstream_model::key::group_of;
use millstream_model::proto::exchange::Body;
use millstream_model::proto::user::Fate;
use millstream_model::proto::{Drain, Drained, Identifier, Link, Membership, Relink, Stamp, Unlink};

impl Work<'_> {
    /// Tells an identifier's node that it names this user.
    pub(super) fn send_link(&mut self, tenant: &str, id: &UserId, member: Membership) -> Result<(), StateError> {
        let Membership { identifier, stamp, record_id, last, erased } = member;
        let identifier = required(identifier, "identifier")?;
        let group = group_of(tenant, &identifier);
        let (identifier, user) = (Some(identifier), id.as_bytes().to_vec());
        let link = Link { identifier, user, stamp: last, record_id, since: stamp, erased };
        self.send(tenant, 0, group, Body::Link(link));
        Ok(())
    }

    /// Makes sure that a node does not name this user, without saying up to when: a deletion did, or a link follows.
    pub(super) fn unlink_again(&mut self, header: &Header, id: &UserId, via: &Identifier) -> Result<(), StateError> {
        let users = user::ids(state::user(self.state, &user_key(&header.tenant, id))?);
        for users in users.chunks(UNLINKED_IDS) {
            let unlink = Unlink { identifier: Some(via.clone()), users: users.to_vec(), erased: None };
            self.send(&header.tenant, header.hops + 1, group_of(&header.tenant, via), Body::Unlink(unlink));
        }
        Ok(())
    }

    /// Links the members among these identifiers anew: a deletion, perhaps of a user that became part of this one, may have taken their
    /// nodes, or be on its way to.
    pub(super) fn link_anew(
        &mut self,
        header: &Header,
        id: &UserId,
        identifiers: &[Identifier],
    ) -> Result<(), StateError> {
        let user = state::user(self.state, &user_key(&header.tenant, id))?;
        let members = identifiers.iter().filter_map(|identifier| user::member(user, identifier));
        let members: Vec<_> = members.cloned().collect();
        for member in members {
            self.link_member(header, id, member)?;
        }
        Ok(())
    }

    /// Links an identifier whose node is waiting for it.
    pub(super) fn link_if_member(&mut self, tenant: &str, id: &UserId, via: &Identifier) -> Result<(), StateError> {
        let user = state::user(self.state, &user_key(tenant, id))?;
        match user::member(user, via).cloned() {
            Some(member) if user.fate.is_none() => self.send_link(tenant, id, member),
            _ => Ok(()),
        }
    }

    /// Unlinking first makes the node wait until the deletion is there.
    fn link_member(&mut self, header: &Header, id: &UserId, member: Membership) -> Result<(), StateError> {
        let identifier = required(member.identifier.as_ref(), "identifier")?;
        self.unlink_again(header, id, identifier)?;
        self.send_link(&header.tenant, id, member)
    }

    /// A merge with this user did not come about, and its identifier may have lost its node.
    pub(super) fn relink(&mut self, header: &Header, message: Relink) -> Result<(), StateError> {
        let id = user_id(&message.user)?;
        let via = required(message.via.as_ref(), "via")?;
        let user = state::user_mut(self.state, &user_key(&header.tenant, &id))?;
        if let Some(Fate::Forward(to)) = &user.fate {
            let to = user_id(to)?;
            let relink = Relink { user: to.as_bytes().to_vec(), ..message };
            self.send(&header.tenant, header.hops + 1, to.home(), Body::Relink(relink));
        } else if let Some(member) = user::member(user, via).cloned() {
            self.link_member(header, &id, member)?;
        } else if user.fate.is_none() {
            // A deletion took it, or the state that brings it is still on the way here: then it is to be linked anew when it comes.
            user.erased = user.erased.or(Some(Stamp::default()));
        }
        Ok(())
    }

    /// What an identifier sent to this user before it asked has been dealt with, or sent on before this.
    pub(super) fn drain(&mut self, header: &Header, message: Drain) -> Result<(), StateError> {
        let id = user_id(&message.user)?;
        let identifier = required(message.identifier, "identifier")?;
        let key = user_key(&header.tenant, &id);
        let user = state::user(self.state, &key)?;
        let next = match &user.fate {
            Some(Fate::Forward(to)) => Some(user_id(to)?),
            _ => None,
        };
        if !user.expelled.is_empty() {
            let hash = identifier_hash(&identifier);
            state::user_mut(self.state, &key)?.expelled.retain(|expelled| *expelled != hash);
        }
        if let Some(to) = next {
            let drain =
                Drain { user: to.as_bytes().to_vec(), identifier: Some(identifier.clone()), hop: message.hop + 1 };
            self.send(&header.tenant, header.hops + 1, to.home(), Body::Drain(drain));
        }
        if next.is_none() {
            // The unlink may be of a user that became part of this one: then the node is to name this one, and the link must be there
            // before the node goes.
            self.link_if_member(&header.tenant, &id, &identifier)?;
        }
        let group = group_of(&header.tenant, &identifier);
        let drained =
            Drained { identifier: Some(identifier), hop: message.hop, last: next.is_none(), user: message.user };
        self.send(&header.tenant, header.hops + 1, group, Body::Drained(drained));
        Ok(())
    }
}

//! The shard of an identifier: which user it names.
//!
//! A node names one user for as long as it is there: it is never pointed to a survivor of a merge, since an action that took the shorter way
//! would overtake those that are on the longer one (I3). Only a deletion removes it, after everything that it sent has passed
//! ([`Work::unlink`], [`Work::drained`]); what comes in the meantime waits in the node.

use super::document::Cause;
use super::home::apply_message;
use super::state::{self, Node, Value, node_key, required, user_id};
use super::work::{Header, Work};
use super::{outcome, user};
use crate::StateError;
use millstream_model::id::UserId;
use millstream_model::key::group_of;
use millstream_model::proto::action::Way;
use millstream_model::proto::exchange::Body;
use millstream_model::proto::{
    Action, Drain, Drained, Erase, Exchange, Forget, Identifier, Link, MergeUsers, Resolve, Stamp, Unlink,
};
use millstream_model::reject::Reason;

impl Work<'_> {
    /// Begins with an action at the shard of its routing key: its device part goes to the device, the rest to who is meant.
    pub(super) fn start(&mut self, mut action: Action) {
        if let Err(message) = join_merge(&mut action) {
            return outcome::reject(&action, Reason::InvalidMerge, message, self.at, self.out);
        }
        // All records that a device identifier routes go by its home, those too that name a user: so they keep their order.
        if let Some(routing) = routing_device(&action) {
            return self.send_to_device(0, routing, action, true, None);
        }
        if let Some(primary) = action.device_identifiers.first().cloned().filter(|_| !action.delete) {
            let part = device_part(&mut action);
            self.send_to_device(0, primary, part, false, None);
        }
        match action.user_identifiers.first().or(action.device_identifiers.first()).cloned() {
            Some(via) => self.resolve_by(0, via, action, false),
            None => {
                let message = "the record names neither a user nor a device: send at least one identifier";
                outcome::reject(&action, Reason::MissingIdentifier, message, self.at, self.out);
            }
        }
    }

    /// Sends an action to the shard of the identifier that names its user.
    pub(super) fn resolve_by(&mut self, hops: u32, via: Identifier, action: Action, returned: bool) {
        let (tenant, group) = (action.tenant.clone(), group_of(&action.tenant, &via));
        self.send(&tenant, hops, group, Body::Resolve(Resolve { via: Some(via), action: Some(action), returned }));
    }

    pub(super) fn resolve(&mut self, header: Header, message: Resolve) -> Result<(), StateError> {
        let via = required(message.via.clone(), "via")?;
        let (user, erased) = match state::node(self.state, &node_key(&header.tenant, &via))? {
            Some(Node { closing: Some(_), .. }) => {
                let returned = message.returned;
                return self.wait(header, &via, Body::Resolve(message), returned);
            }
            Some(node) => (Some(node.user), node.erased),
            None => (None, state::erased(self.state, &state::erased_key(&header.tenant, &via))?),
        };
        let mut action = required(message.action, "action")?;
        match (user, action.way.take()) {
            (Some(user), None) => {
                let Some(action) = self.admit(header.hops, &via, erased, action)? else { return Ok(()) };
                self.send(&header.tenant, header.hops + 1, user.home(), apply_message(&user, via, action));
                Ok(())
            }
            (Some(user), way) => {
                action.way = way;
                self.send(&header.tenant, header.hops + 1, user.home(), apply_message(&user, via, action));
                Ok(())
            }
            (None, None) => self.resolve_unknown(&header, &via, erased, action),
            (None, Some(way)) => self.leave_path(&header, way, action),
        }
    }

    fn resolve_unknown(
        &mut self,
        header: &Header,
        via: &Identifier,
        erased: Option<Stamp>,
        action: Action,
    ) -> Result<(), StateError> {
        let stamp = required(action.stamp, "stamp")?;
        if action.delete {
            // Nobody to delete; but what is older and still to come must not make one.
            self.remember_erased(&header.tenant, via, stamp)?;
            outcome::effect(&action, self.out);
            return Ok(());
        }
        let Some(action) = self.admit(header.hops, via, erased, action)? else { return Ok(()) };
        if action.update_existing_only {
            let message = format!("no user has {via}; the record asked not to create one");
            outcome::reject(&action, Reason::UserUnknown, message, self.at, self.out);
            self.forget_device(&action, via);
        } else {
            let id = UserId::create(&header.tenant, via, &stamp, self.at.generation);
            if self.state.get(&state::user_key(&header.tenant, &id))?.is_some() {
                // The other part of this record made it, and the node is gone for a moment.
                self.send(&header.tenant, header.hops + 1, id.home(), apply_message(&id, via.clone(), action));
                return Ok(());
            }
            let node = Node { user: id, erased, closing: None };
            self.state.put(node_key(&header.tenant, via), Value::Node(node));
            let user = user::created(id.as_bytes(), via.clone(), erased, &action, stamp);
            self.state.put(state::user_key(&header.tenant, &id), Value::User(Box::new(user)));
            self.apply_live(&header.tenant, &id, via, action)?;
        }
        Ok(())
    }

    /// Gives back a record if a deletion lets it be of whoever has this identifier now. One up to the deletion is refused; and one whose device knew its user by what the deletion
    /// took since, is of the user whom the device itself names, and does not make anybody have the identifier.
    pub(super) fn admit(
        &mut self,
        hops: u32,
        via: &Identifier,
        erased: Option<Stamp>,
        mut action: Action,
    ) -> Result<Option<Action>, StateError> {
        if erased.is_none() || action.delete {
            return Ok(Some(action));
        }
        if action.stamp <= erased {
            self.refuse_deleted(&action, via);
            return Ok(None);
        }
        let Some(lookup) = action.lookup.take_if(|lookup| lookup.named <= erased) else { return Ok(Some(action)) };
        // The user never learnt of this device, when another one knew them before it took its identifier.
        self.forget_device(&Action { stamp: erased, ..action.clone() }, via);
        self.resolve_by(hops + 1, required(lookup.otherwise, "otherwise")?, action, false);
        Ok(None)
    }

    /// A device's path led here, and nobody here has the identifier that names the user of what came by it.
    pub(super) fn leave_path(&mut self, header: &Header, way: Way, action: Action) -> Result<(), StateError> {
        match way {
            Way::Instead(named) => {
                self.resolve_by(header.hops + 1, named, action, false);
                Ok(())
            }
            Way::Ask(ask) => self.arrive(&header.tenant, ask, false),
        }
    }

    pub(super) fn refuse_deleted(&mut self, action: &Action, via: &Identifier) {
        let message = format!("the user that {via} named was deleted after this record was received");
        outcome::reject(action, Reason::UserDeleted, message, self.at, self.out);
        self.forget_device(action, via);
    }

    /// The device's part of the record may have named this user, and the user never learns of that device.
    pub(super) fn forget_device(&mut self, action: &Action, via: &Identifier) {
        let Some(device) = user::device_of(action) else { return };
        let (identifiers, stamp) = (vec![via.clone()], action.stamp);
        let forget = Forget { device: device.as_bytes().to_vec(), identifiers, stamp, refused: true };
        self.send(&action.tenant, 0, device.home(), Body::Forget(forget));
    }

    /// Keeps a message in a closing node until it is closed.
    fn wait(&mut self, header: Header, identifier: &Identifier, body: Body, returned: bool) -> Result<(), StateError> {
        let key = node_key(&header.tenant, identifier);
        if let Some(Node { closing: Some(closing), .. }) = state::node_mut(self.state, &key)? {
            let group = u32::from(header.group);
            let message = Exchange { tenant: header.tenant, group, hops: header.hops, body: Some(body) };
            if returned { closing.returned.push(message) } else { closing.waiting.push(message) }
        }
        Ok(())
    }

    /// A user has this identifier as a member now. When it names another user already, the two become one.
    pub(super) fn link(&mut self, header: Header, message: Link) -> Result<(), StateError> {
        let identifier = required(message.identifier.clone(), "identifier")?;
        let stamp = required(message.stamp, "stamp")?;
        let id = user_id(&message.user)?;
        let key = node_key(&header.tenant, &identifier);
        let node = state::node(self.state, &key)?.map(|node| (node.user, node.erased, node.closing.is_some()));
        let erased = match node {
            Some((_, _, true)) => return self.wait(header, &identifier, Body::Link(message), false),
            Some((_, erased, _)) => erased,
            None => state::erased(self.state, &state::erased_key(&header.tenant, &identifier))?,
        };
        // Did this user have it when its user was deleted, and does not know? Then it is this user's deletion, even one that came while
        // there was no node, between an unlink and the link that follows it.
        let since = message.since.unwrap_or(stamp);
        let concerns = |erased: &Stamp| stamp <= *erased || (since <= *erased && Some(*erased) > message.erased);
        if let Some(erased) = erased.filter(concerns) {
            let erase = Erase { user: message.user, via: Some(identifier), stamp: Some(erased) };
            self.send(&header.tenant, header.hops, id.home(), Body::Erase(erase));
            return Ok(());
        }
        match node {
            None => self.state.put(key, Value::Node(Node { user: id, erased, closing: None })),
            Some((other, ..)) if other != id => {
                let cause = Cause { tenant: &header.tenant, stamp, record_id: &message.record_id, trace: None };
                self.merge_users(header.hops, other, id, identifier, cause);
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// Asks the home of the larger of two users to make it part of the smaller.
    pub(super) fn merge_users(&mut self, hops: u32, one: UserId, other: UserId, via: Identifier, cause: Cause<'_>) {
        let (smaller, larger) = if one.age() < other.age() { (one, other) } else { (other, one) };
        let merge = MergeUsers {
            smaller: smaller.as_bytes().to_vec(),
            larger: larger.as_bytes().to_vec(),
            via: Some(via),
            stamp: Some(cause.stamp),
            record_id: cause.record_id.to_vec(),
        };
        self.send(cause.tenant, hops + 1, larger.home(), Body::Merge(merge));
    }

    /// The identifier's user was deleted. Actions that it sent there before are still on the way and will come back; later ones wait, so
    /// that they do not overtake them.
    pub(super) fn unlink(&mut self, header: &Header, message: &Unlink) -> Result<(), StateError> {
        let identifier = required(message.identifier.clone(), "identifier")?;
        let tenant = &header.tenant;
        let Some(node) = state::node_mut(self.state, &node_key(tenant, &identifier))? else {
            if let Some(deletion) = message.erased {
                self.remember_erased(tenant, &identifier, deletion)?;
            }
            return Ok(());
        };
        node.erased = node.erased.max(message.erased);
        let names_it = message.users.iter().any(|user| user == node.user.as_bytes());
        if names_it && node.closing.is_none() {
            node.closing = Some(Box::default());
            let user = node.user;
            let drain = Drain { user: user.as_bytes().to_vec(), identifier: Some(identifier), hop: 0 };
            self.send(tenant, header.hops + 1, user.home(), Body::Drain(drain));
        }
        Ok(())
    }

    fn remember_erased(&mut self, tenant: &str, identifier: &Identifier, deletion: Stamp) -> Result<(), StateError> {
        let key = state::erased_key(tenant, identifier);
        let erased = state::erased(self.state, &key)?.map_or(deletion, |erased| erased.max(deletion));
        self.state.put(key, Value::Erased(erased));
        Ok(())
    }

    /// A user on the way answered. When all have, nothing is on the way any more: the node goes, and what waited begins anew, first
    /// the links, then what came back, then what came later.
    pub(super) fn drained(&mut self, header: &Header, message: &Drained) -> Result<(), StateError> {
        let identifier = required(message.identifier.clone(), "identifier")?;
        let key = node_key(&header.tenant, &identifier);
        let Some(Node { closing: Some(closing), erased, .. }) = state::node_mut(self.state, &key)? else {
            return Ok(());
        };
        closing.arrived += 1;
        if message.last {
            closing.expected = message.hop + 1;
        }
        if closing.arrived != closing.expected {
            return Ok(());
        }
        let (closing, erased) = (std::mem::take(closing), *erased);
        self.state.remove(key);
        if let Some(deletion) = erased {
            self.remember_erased(&header.tenant, &identifier, deletion)?;
        }
        // Links first: what waited must find whom the identifier names now.
        let is_link = |message: &Exchange| matches!(message.body, Some(Body::Link(_)));
        let (links, later): (Vec<_>, Vec<_>) = closing.waiting.into_iter().partition(is_link);
        self.first(links.into_iter().chain(closing.returned).chain(later));
        Ok(())
    }
}

/// The device identifier that routes a record. A merge is routed by its first identifier.
fn routing_device(action: &Action) -> Option<Identifier> {
    let devices = &action.device_identifiers;
    let routing = match &action.merge {
        Some(_) => action.user_identifiers.first().filter(|first| first.names_device()),
        None if action.by_device => devices.get(action.routing as usize),
        None => devices.first().filter(|_| action.user_identifiers.is_empty()),
    };
    routing.cloned()
}

/// Both identifiers of a merge are identifiers of its user.
fn join_merge(action: &mut Action) -> Result<(), &'static str> {
    let Some(merge) = &action.merge else { return Ok(()) };
    let (Some(retained), Some(merged)) = (&merge.retained, &merge.merged) else {
        return Err("a merge needs `retained` and `merged`");
    };
    if retained == merged {
        return Err("`retained` and `merged` are the same identifier; send two different ones");
    }
    for identifier in [retained, merged] {
        if !action.user_identifiers.contains(identifier) {
            action.user_identifiers.push(identifier.clone());
        }
    }
    Ok(())
}

/// What the device of an action has to know. The rest goes to the user.
fn device_part(action: &mut Action) -> Action {
    // What names the record in a reject is taken along only if there is something that the device may refuse.
    let is_alone =
        action.device_identifiers.len() == 1 && !action.device_identifiers.iter().any(Identifier::can_be_alias);
    let refusable = !action.device_changes.is_empty() || !is_alone;
    let name = |text: &str| if refusable { text.to_owned() } else { String::new() };
    Action {
        message_id: name(&action.message_id),
        kind: name(&action.kind),
        source: action.source,
        tenant: action.tenant.clone(),
        group: action.group,
        stamp: action.stamp,
        record_id: action.record_id.clone(),
        user_identifiers: action.user_identifiers.first().cloned().into_iter().collect(),
        device_identifiers: action.device_identifiers.clone(),
        time_ms: action.time_ms,
        device_changes: std::mem::take(&mut action.device_changes),
        update_existing_only: action.update_existing_only,
        trace: action.trace.clone(),
        uncounted: true,
        ..Action::default()
    }
}

//! The home of a device: what it is, when it was seen, and whose it was last.
//!
//! A device's id is a function of its primary identifier, and devices are never merged; further device identifiers of a record are members
//! of its device. `user` is the identifier by which the newest record named its user; a record without any user identifier is
//! about that user, or, when the device has none, about the user whom the device's primary identifier itself names.
//!
//! # By a further identifier
//! A home tells the shard of each further identifier once that its device has it (*Name*). There an *alias* says which device that is: the one that
//! began to have it last, since an advertising id goes on to the next installation. Records by the identifier are sent on to that device's home from
//! then on; what came before stays with the device that the identifier made as a primary one, whose document says `same_as`. Further identifiers are of a
//! later rank than the primary one, so aliases lead to ever earlier ones: there are no circles, and `device_id`, the first type, never is an alias.
//!
//! A record that a device identifier routes goes to its user by way of the device, whole, as all of that routing key do ([`super::path`], I3), deletions too. One with another
//! routing key must not: its user's part goes straight, and does not know the device. So the device's home *introduces* itself to the user: an action that has no outcome of
//! its own, goes by the record's identifier like the record, and is refused like it by a deletion.
//!
//! The device's part of a record and the user's part go different ways. So a deletion can come here before a record that it covers; the
//! device remembers (by a hash) which identifiers it must not take from records up to which stamp. A record that is refused for its user adds one, too; of those the
//! newest are kept, since only what is under way at the moment can come too late.

use super::attributes::{self, Writer};
use super::document::{Cause, device_fields, publish_device, replace, set_device_user, set_same_as};
use super::listed::set_identifiers;
use super::outcome::{self, Part};
use super::path::LastUser;
use super::state::{self, Value, alias_key, device_id, device_key, identifier_hash, required};
use super::user;
use super::work::{Header, Work};
use crate::{State, StateError};
use millstream_model::id::DeviceId;
use millstream_model::key::{StateKey, group_of};
use millstream_model::proto::action::Way;
use millstream_model::proto::exchange::Body;
use millstream_model::proto::{
    Action, Alias, Device, DeviceState, Forget, Forgotten, Identifier, Lookup, Name, Operation, Stamp,
};

/// Identifiers that a device remembers not to take because a record was refused for its user.
const MOST_REFUSED: usize = 256;

impl Work<'_> {
    pub(super) fn device(&mut self, header: &Header, message: Device) -> Result<(), StateError> {
        let action = required(message.action, "action")?;
        let primary = required(primary(&action, message.primary.as_ref()).cloned(), "primary")?;
        let id = device_id(&message.device)?;
        let last = message.user.map(|user| (user, message.user_stamp));
        if matches!(action.way, Some(Way::Ask(_))) {
            return self.follow_path(header, &id, action);
        }
        if action.merge.is_some() {
            // Of the user whom the identifier itself names, whatever device has it.
            return self.send_to_user(header, &id, primary, action);
        }
        if let Some(next) = self.next_device(&header.tenant, &primary, &action)? {
            let own = state::device_mut(self.state, &device_key(&header.tenant, &id))?;
            let last = last.or(own.and_then(|device| last_user(device)));
            if !message.resolve_user {
                self.send_to_device(header.hops + 1, next, action, false, last);
                return Ok(());
            }
            if action.delete && action.user_identifiers.is_empty() {
                // Whoever was known by this identifier before it was another device's goes as well.
                let same = Action { uncounted: true, ..action.clone() };
                self.send_to_user(header, &id, primary, same)?;
            }
            return self.send_on(header, &id, next, action, last);
        }
        if action.delete {
            // It only takes the way of the other records by this identifier. Without a user it means the device's own: whom nobody ever named otherwise.
            let named = action.user_identifiers.first().cloned().unwrap_or(primary);
            return self.send_to_user(header, &id, named, action);
        }
        self.apply_to_device(header, &id, primary, last, action, message.resolve_user)
    }

    /// A record about this device, or the device's part of one. `last`: the last user of a device that this one took the identifier from.
    fn apply_to_device(
        &mut self,
        header: &Header,
        id: &DeviceId,
        primary: Identifier,
        last: Option<LastUser>,
        mut action: Action,
        resolve_user: bool,
    ) -> Result<(), StateError> {
        let device = device_state(self.state, &device_key(&header.tenant, id), id.as_bytes().to_vec())?;
        let is_new = device.revision == 0;
        if is_new {
            (device.first_seen_ms, device.last_seen_ms) = (action.time_ms, action.time_ms);
            // It may have had a document in a former life of its tenant.
            device.revision = self.erasures.former_ms(&header.tenant);
        }
        let refused = self.limits.admit_device(device, &mut action);
        let applied = apply(device, &mut action, &refused.identifiers)?;
        outcome::partial(&action, Part::Device, refused, self.at, self.out);
        let stamp = required(action.stamp, "stamp")?;
        let trace = action.trace.as_ref();
        let cause = Cause { tenant: &header.tenant, stamp, record_id: &action.record_id, trace };
        let operations = if is_new { replace(device_fields(cause.tenant, device)) } else { applied.operations };
        publish_device(device, operations, cause, self.at, self.out);
        let last = last_user(device).or(last);
        self.send_names(&header.tenant, &primary, applied.new, stamp);
        let is_undecided = action.device_identifiers.first().is_some_and(Identifier::can_be_alias);
        action.device = id.as_bytes().to_vec();
        let named = action.user_identifiers.first().cloned();
        if resolve_user {
            let named = match (named, last) {
                (Some(named), _) => named,
                (None, Some((user, stamp))) => {
                    action.lookup = Some(Lookup { named: stamp, otherwise: Some(primary) });
                    user
                }
                (None, None) => primary,
            };
            self.send_to_user(header, id, named, action)?;
        } else if is_undecided && let Some(via) = named {
            let introduction = Action { introduction: true, ..action };
            self.resolve_by(header.hops + 1, via, introduction, false);
        }
        Ok(())
    }

    /// To the home of the device that has this primary identifier.
    pub(super) fn send_to_device(
        &mut self,
        hops: u32,
        primary: Identifier,
        action: Action,
        resolve_user: bool,
        last: Option<LastUser>,
    ) {
        let (tenant, id) = (action.tenant.clone(), DeviceId::of(&action.tenant, &primary));
        let primary = Some(primary).filter(|primary| action.device_identifiers.first() != Some(primary));
        let (device, action) = (id.as_bytes().to_vec(), Some(action));
        let (user, user_stamp) = last.map_or((None, None), |(user, stamp)| (Some(user), stamp));
        let message = Device { device, action, resolve_user, primary, user, user_stamp };
        self.send(&tenant, hops, id.home(), Body::Device(message));
    }

    /// Where a record goes on to that came to the home of this identifier: the device that the identifier is a further one of, by the record itself or by an alias.
    fn next_device(
        &mut self,
        tenant: &str,
        here: &Identifier,
        action: &Action,
    ) -> Result<Option<Identifier>, StateError> {
        match action.device_identifiers.first() {
            Some(first) if first != here && action.device_identifiers.contains(here) => Ok(Some(first.clone())),
            _ => self.alias(tenant, here),
        }
    }

    /// The device that an identifier names, if it is an alias.
    pub(super) fn alias(&mut self, tenant: &str, identifier: &Identifier) -> Result<Option<Identifier>, StateError> {
        if !identifier.can_be_alias() {
            return Ok(None);
        }
        let alias = state::alias(self.state, &alias_key(tenant, identifier))?;
        alias.map(|alias| required(alias.primary.clone(), "primary")).transpose()
    }

    /// Tells the shards of further identifiers that this device has them.
    fn send_names(&mut self, tenant: &str, primary: &Identifier, new: Vec<Identifier>, stamp: Stamp) {
        for identifier in new.into_iter().filter(|new| new != primary && new.can_be_alias()) {
            let group = group_of(tenant, &identifier);
            let name = Name { identifier: Some(identifier), primary: Some(primary.clone()), stamp: Some(stamp) };
            self.send(tenant, 0, group, Body::Name(name));
        }
    }

    /// A device has this identifier as a further one.
    pub(super) fn name(&mut self, header: &Header, message: Name) -> Result<(), StateError> {
        let identifier = required(message.identifier, "identifier")?;
        let primary = required(message.primary, "primary")?;
        let stamp = required(message.stamp, "stamp")?;
        let key = alias_key(&header.tenant, &identifier);
        let known = state::alias(self.state, &key)?;
        if known.is_some_and(|known| (known.stamp, known.primary.as_ref()) >= (Some(stamp), Some(&primary))) {
            return Ok(());
        }
        let id = DeviceId::of(&header.tenant, &primary);
        self.state.put(key, Value::Alias(Box::new(Alias { primary: Some(primary), stamp: Some(stamp) })));
        let own = device_key(&header.tenant, &DeviceId::of(&header.tenant, &identifier));
        if let Some(device) = state::device_mut(self.state, &own)?
            && device.revision > 0
        {
            device.same_as = id.as_bytes().to_vec();
            let cause = Cause { tenant: &header.tenant, stamp, record_id: &[], trace: None };
            publish_device(device, vec![set_same_as(&id)], cause, self.at, self.out);
        }
        Ok(())
    }

    /// Whoever these identifiers named was deleted: the device does not name them any longer, nor again by an older record.
    pub(super) fn forget(&mut self, header: &Header, message: Forget) -> Result<(), StateError> {
        let deletion = required(message.stamp, "stamp")?;
        let id = device_id(&message.device)?;
        let device = device_state(self.state, &device_key(&header.tenant, &id), message.device)?;
        for identifier in &message.identifiers {
            user::remember(&mut device.forgotten, identifier_hash(identifier), Some(deletion), message.refused);
        }
        if message.refused {
            trim(&mut device.forgotten);
        }
        // It may have grown; the next record measures it.
        device.size_bound = 0;
        let is_gone = |user: &Identifier| message.identifiers.contains(user);
        if device.user.as_ref().is_some_and(is_gone) && device.user_stamp <= Some(deletion) {
            device.user = None;
            let cause = Cause { tenant: &header.tenant, stamp: deletion, record_id: &[], trace: None };
            publish_device(device, vec![set_device_user(None)], cause, self.at, self.out);
        }
        self.forget_path(header, &id, &message.identifiers, deletion)
    }
}

/// A device, which begins with what is about to be said of it.
pub(super) fn device_state<'s>(
    state: &'s mut dyn State<Value>,
    key: &StateKey,
    id: Vec<u8>,
) -> Result<&'s mut DeviceState, StateError> {
    if state::device_mut(state, key)?.is_none() {
        let device = DeviceState { id, ..DeviceState::default() };
        state.put(key.clone(), Value::Device(Box::new(device)));
    }
    required(state::device_mut(state, key)?, "device")
}

fn last_user(device: &DeviceState) -> Option<LastUser> {
    device.user.clone().map(|user| (user, device.user_stamp))
}

fn is_forgotten(device: &DeviceState, user: &Identifier, stamp: Stamp) -> bool {
    let hash = identifier_hash(user);
    device.forgotten.iter().any(|entry| entry.identifier == hash && Some(stamp) <= entry.stamp)
}

/// Of what refused records left, the oldest goes when there is too much of it.
fn trim(forgotten: &mut Vec<Forgotten>) {
    if forgotten.iter().filter(|entry| entry.refused).count() > MOST_REFUSED {
        let refused = (0..).zip(forgotten.iter()).filter(|(_, entry)| entry.refused);
        let oldest = refused.min_by_key(|(_, entry)| entry.stamp).map(|(index, _)| index);
        forgotten.remove(oldest.unwrap_or(0));
    }
}

/// The primary identifier of the device to which an action was sent.
pub(super) fn primary<'a>(action: &'a Action, found: Option<&'a Identifier>) -> Option<&'a Identifier> {
    found.or_else(|| action.device_identifiers.first())
}

/// What a record did to a device.
struct Applied {
    operations: Vec<Operation>,
    /// Identifiers that are members now and were not.
    new: Vec<Identifier>,
}

fn apply(device: &mut DeviceState, action: &mut Action, refused: &[Identifier]) -> Result<Applied, StateError> {
    let stamp = required(action.stamp, "stamp")?;
    let writer = Writer { stamp, record_id: &action.record_id };
    let mut new = Vec::new();
    for identifier in action.device_identifiers.iter().filter(|identifier| !refused.contains(identifier)) {
        if user::name(&mut device.identifiers, identifier, writer) {
            new.push(identifier.clone());
        }
    }
    let mut operations = set_identifiers(&device.identifiers, &new);
    attributes::apply(&mut device.attributes, std::mem::take(&mut action.device_changes), writer, &mut operations);
    user::see(&mut device.first_seen_ms, &mut device.last_seen_ms, action.time_ms, &mut operations);
    if let Some(user) = action.user_identifiers.first()
        && (Some(stamp), Some(user)) > (device.user_stamp, device.user.as_ref())
        && !is_forgotten(device, user, stamp)
    {
        if device.user.as_ref() != Some(user) {
            operations.push(set_device_user(Some(user)));
            device.user = Some(user.clone());
        }
        device.user_stamp = Some(stamp);
    }
    Ok(Applied { operations, new })
}

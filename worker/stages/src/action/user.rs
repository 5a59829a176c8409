//! What happens to a user's state: an action applied, another user united with it, a deletion. Pure: no messages, no mutations.

use super::attributes::{self, Writer};
use super::document;
use super::listed;
use super::state::{identifier_hash, required};
use crate::StateError;
use millstream_model::id::DeviceId;
use millstream_model::proto::user::Fate;
use millstream_model::proto::{
    Action, DeviceUse, Forgotten, Identifier, Membership, Merged, Operation, Stamp, User, Value,
};

/// What an action did to a user.
#[derive(Debug, Default)]
pub(super) struct Applied {
    pub(super) operations: Vec<Operation>,
    /// Identifiers that are members now and were not.
    pub(super) links: Vec<Identifier>,
}

/// A user that a record just made, known by one identifier.
pub(super) fn created(id: &[u8], via: Identifier, erased: Option<Stamp>, action: &Action, stamp: Stamp) -> User {
    let member = Membership { erased, ..membership(via, stamp, &action.record_id) };
    User {
        id: id.to_vec(),
        first_seen_ms: action.time_ms,
        last_seen_ms: action.time_ms,
        identifiers: vec![member],
        ..User::default()
    }
}

/// A membership that one record brought.
pub(super) fn membership(identifier: Identifier, stamp: Stamp, record_id: &[u8]) -> Membership {
    let (stamp, last) = (Some(stamp), Some(stamp));
    Membership { identifier: Some(identifier), stamp, record_id: record_id.to_vec(), last, erased: None }
}

/// The membership of an identifier, or where it would be.
pub(super) fn find(members: &[Membership], identifier: &Identifier) -> Result<usize, usize> {
    members.binary_search_by(|member| member.identifier.as_ref().cmp(&Some(identifier)))
}

/// The membership of an identifier.
pub(super) fn member<'u>(user: &'u User, identifier: &Identifier) -> Option<&'u Membership> {
    user.identifiers.get(find(&user.identifiers, identifier).ok()?)
}

/// Notes that a record names this identifier; tells whether it is new here.
pub(super) fn name(members: &mut Vec<Membership>, identifier: &Identifier, writer: Writer<'_>) -> bool {
    match find(members, identifier) {
        Ok(index) => {
            if let Some(member) = members.get_mut(index) {
                member.last = member.last.max(Some(writer.stamp));
                reach_back(member, Some(writer.stamp), writer.record_id);
            }
            false
        }
        Err(index) => {
            members.insert(index, membership(identifier.clone(), writer.stamp, writer.record_id));
            true
        }
    }
}

/// Applies an action to a live user, who may have no room for its device.
pub(super) fn apply(
    user: &mut User,
    via: &Identifier,
    action: &mut Action,
    with_device: bool,
) -> Result<Applied, StateError> {
    let stamp = required(action.stamp, "stamp")?;
    let record_id = std::mem::take(&mut action.record_id);
    let writer = Writer { stamp, record_id: &record_id };
    let mut applied = Applied::default();
    name(&mut user.identifiers, via, writer);
    for identifier in &action.user_identifiers {
        if name(&mut user.identifiers, identifier, writer) {
            applied.links.push(identifier.clone());
        }
    }
    applied.operations = listed::set_identifiers(&user.identifiers, &applied.links);
    attributes::apply(&mut user.attributes, std::mem::take(&mut action.user_changes), writer, &mut applied.operations);
    retain(user, action, writer, &mut applied.operations);
    if with_device {
        use_device(user, action, &mut applied.operations);
    }
    if !action.introduction {
        see(&mut user.first_seen_ms, &mut user.last_seen_ms, action.time_ms, &mut applied.operations);
    }
    user.events += u64::from(action.event.is_some());
    action.record_id = record_id;
    Ok(applied)
}

/// A merge remembers what it asked to keep visible; the newest wins.
fn retain(user: &mut User, action: &Action, writer: Writer<'_>, operations: &mut Vec<Operation>) {
    let Some(retained) = action.merge.as_ref().and_then(|merge| merge.retained.as_ref()) else { return };
    let new = membership(retained.clone(), writer.stamp, writer.record_id);
    if user.retained.as_ref().is_none_or(|old| retain_order(&new) > retain_order(old)) {
        operations.push(document::set_retained(retained));
        user.retained = Some(new);
    }
}

fn retain_order(member: &Membership) -> (Option<Stamp>, &Option<Identifier>) {
    (member.stamp, &member.identifier)
}

fn use_device(user: &mut User, action: &Action, operations: &mut Vec<Operation>) {
    let Some(id) = device_of(action) else { return };
    if add_device(&mut user.devices, DeviceUse { device: id.as_bytes().to_vec(), last: action.stamp }) {
        operations.push(document::set("devices", listed::devices(user)));
    }
}

/// The device that a record comes from. Not known of a record by an identifier that may be an alias, before a device's home has said so.
pub(super) fn device_of(action: &Action) -> Option<DeviceId> {
    let first = action.device_identifiers.first().filter(|first| !first.can_be_alias());
    DeviceId::from_bytes(&action.device).or_else(|| first.map(|primary| DeviceId::of(&action.tenant, primary)))
}

/// Is there a [`device_of`] it? Costs less than naming it.
pub(super) fn is_device_known(action: &Action) -> bool {
    !action.device.is_empty() || action.device_identifiers.first().is_some_and(|first| !first.can_be_alias())
}

/// Where a device is among a user's, or would be.
pub(super) fn find_device(devices: &[DeviceUse], id: &[u8]) -> Result<usize, usize> {
    devices.binary_search_by(|device| device.device.as_slice().cmp(id))
}

fn add_device(devices: &mut Vec<DeviceUse>, new: DeviceUse) -> bool {
    let found = find_device(devices, &new.device);
    match found {
        Ok(index) => {
            if let Some(device) = devices.get_mut(index) {
                device.last = device.last.max(new.last);
            }
        }
        Err(index) => devices.insert(index, new),
    }
    found.is_err()
}

/// First seen is the least time of all records, last seen the greatest.
pub(super) fn see(first_ms: &mut i64, last_ms: &mut i64, time_ms: i64, operations: &mut Vec<Operation>) {
    if time_ms < *first_ms {
        *first_ms = time_ms;
        operations.push(document::set("first_seen", Value::timestamp(time_ms)));
    }
    if time_ms > *last_ms {
        *last_ms = time_ms;
        operations.push(document::set("last_seen", Value::timestamp(time_ms)));
    }
}

/// All user ids that ended in this user, itself first: what its identifiers' nodes may name.
pub(super) fn ids(user: &User) -> Vec<Vec<u8>> {
    std::iter::once(&user.id).chain(user.merged.iter().map(|merged| &merged.user)).cloned().collect()
}

/// Unites another user's state with a live one. The result does not depend on the order of several.
pub(super) fn unite(user: &mut User, other: User, stamp: Option<Stamp>, record_id: Vec<u8>) {
    for member in other.identifiers {
        unite_member(&mut user.identifiers, member);
    }
    attributes::unite(&mut user.attributes, other.attributes);
    for device in other.devices {
        add_device(&mut user.devices, device);
    }
    user.first_seen_ms = user.first_seen_ms.min(other.first_seen_ms);
    user.last_seen_ms = user.last_seen_ms.max(other.last_seen_ms);
    user.events += other.events;
    if other.retained.as_ref().map(retain_order) > user.retained.as_ref().map(retain_order) {
        user.retained = other.retained;
    }
    unite_taken(user, other.taken);
    add_merged(user, Merged { user: other.id, stamp, record_id }, other.merged);
    user.size_bound = 0;
}

/// What deletions took from a user that became part of this one.
pub(super) fn unite_taken(user: &mut User, taken: Vec<Forgotten>) {
    for entry in taken {
        remember(&mut user.taken, entry.identifier, entry.stamp, false);
    }
}

/// Notes up to which stamp an identifier, by its hash, is not to be taken from records: because of a deletion, or of a refused record alone.
pub(super) fn remember(forgotten: &mut Vec<Forgotten>, identifier: Vec<u8>, stamp: Option<Stamp>, refused: bool) {
    match forgotten.binary_search_by(|entry| entry.identifier.cmp(&identifier)) {
        Ok(index) => {
            if let Some(entry) = forgotten.get_mut(index) {
                entry.stamp = entry.stamp.max(stamp);
                entry.refused &= refused;
            }
        }
        Err(index) => forgotten.insert(index, Forgotten { identifier, stamp, refused }),
    }
}

/// The newest deletion that took this identifier from the user. It may be a member again by a newer record, and older ones still be on
/// the way from its node, which did not know then.
pub(super) fn taken(user: &User, identifier: &Identifier) -> Option<Stamp> {
    if user.taken.is_empty() {
        return None;
    }
    let hash = identifier_hash(identifier);
    let found = user.taken.binary_search_by(|entry| entry.identifier.cmp(&hash)).ok()?;
    user.taken.get(found)?.stamp
}

/// Records who became part of this user, in the order of their ids.
pub(super) fn add_merged(user: &mut User, loser: Merged, before: Vec<Merged>) {
    user.merged.push(loser);
    user.merged.extend(before);
    user.merged.sort_by(|left, right| left.user.cmp(&right.user));
    user.merged.dedup_by(|left, right| left.user == right.user);
}

fn unite_member(members: &mut Vec<Membership>, new: Membership) {
    let Some(identifier) = &new.identifier else { return };
    match find(members, identifier) {
        Ok(index) => {
            let Some(old) = members.get_mut(index) else { return };
            old.last = old.last.max(new.last);
            old.erased = old.erased.max(new.erased);
            reach_back(old, new.stamp, &new.record_id);
        }
        Err(index) => members.insert(index, new),
    }
}

/// A membership begins with the oldest record that named it, whatever the order in which they came: a deletion after that one is its user's.
fn reach_back(member: &mut Membership, stamp: Option<Stamp>, record_id: &[u8]) {
    if (stamp, record_id) < (member.stamp, member.record_id.as_slice()) {
        member.stamp = stamp;
        member.record_id = record_id.to_vec();
    }
}

/// What a deletion took from a user.
#[derive(Debug, Default)]
pub(super) struct Purged {
    /// Each with the newest deletion that its membership had outlived before.
    pub(super) identifiers: Vec<(Identifier, Option<Stamp>)>,
    /// All devices it had, those that stay included: one may know it by an identifier that goes, and the record by which it will know it
    /// otherwise may come only after a deletion of that one.
    pub(super) devices: Vec<Vec<u8>>,
    /// All identifiers it had by then: by any of them, one of the devices may know it. One that came later may have been another user's.
    pub(super) names: Vec<Identifier>,
}

/// Takes out everything that is not newer than the deletion. What is left belongs to records that came after it.
pub(super) fn purge(user: &mut User, deletion: Stamp) -> Purged {
    let had = user.identifiers.iter().filter(|member| member.stamp <= Some(deletion));
    let names = had.filter_map(|member| member.identifier.clone()).collect();
    let devices = user.devices.iter().map(|device| device.device.clone()).collect();
    let identifiers = take_identifiers(user, deletion);
    let all = user.identifiers.is_empty();
    user.devices.retain(|device| !all && device.last > Some(deletion));
    attributes::purge(&mut user.attributes, deletion);
    user.retained.take_if(|retained| retained.stamp <= Some(deletion));
    let deleted_ms = i64::try_from(deletion.time_ms).unwrap_or(i64::MAX);
    user.first_seen_ms = user.first_seen_ms.max(deleted_ms.min(user.last_seen_ms));
    user.erased = user.erased.max(Some(deletion));
    Purged { identifiers, devices, names }
}

/// Takes the identifiers that no newer record named; the others have outlived the deletion.
fn take_identifiers(user: &mut User, deletion: Stamp) -> Vec<(Identifier, Option<Stamp>)> {
    let gone = user.identifiers.extract_if(.., |member| member.last <= Some(deletion));
    let identifiers: Vec<_> = gone.filter_map(|member| Some((member.identifier?, member.erased))).collect();
    for (identifier, _) in &identifiers {
        remember(&mut user.taken, identifier_hash(identifier), Some(deletion), false);
    }
    for member in &mut user.identifiers {
        member.erased = member.erased.max(Some(deletion));
    }
    identifiers
}

/// [`purge`] for a state that is about to be united with `user`. What that one has by newer records stays with it.
pub(super) fn purge_absorbed(user: &mut User, state: &mut User, deletion: Stamp) -> Purged {
    let mut purged = purge(state, deletion);
    purged.identifiers.retain(|(identifier, _)| {
        let index = find(&user.identifiers, identifier).ok();
        match index.and_then(|index| user.identifiers.get_mut(index)) {
            Some(member) => {
                member.erased = member.erased.max(Some(deletion));
                false
            }
            None => true,
        }
    });
    purged
}

/// What is left of a user of whom a deletion left nothing: who it was, for messages that still come.
pub(super) fn bury(user: &mut User, deletion: Stamp) {
    let User { id, revision, merged, expelled, taken, .. } = std::mem::take(user);
    *user = User { id, revision, merged, expelled, taken, fate: Some(Fate::Deleted(deletion)), ..User::default() };
}

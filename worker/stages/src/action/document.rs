//! The documents of users and devices, and the mutations that lead there (I8).
//!
//! An entity's first mutation replaces the whole document; each further one holds only the difference, and says which revision it
//! builds on. When a document turns out to lack that, the reaction stage asks for the whole ([`Work::replace`]). The layout is in
//! `docs/src/design/identity.md`. Names of attributes and types of identifiers are escaped, as they are segments of paths.

use super::attributes;
use super::listed;
use super::state::{Value as Stored, device_key, user_key};
use super::work::{Header, Work};
use crate::{At, Outbox, StateError};
use millstream_model::document::{escape, is_whole};
use millstream_model::id::{DeviceId, UserId, message_hash};
use millstream_model::key::StateKey;
use millstream_model::proto::operation::Op;
use millstream_model::proto::value::Kind;
use millstream_model::proto::{
    DeviceState, Identifier, Membership, Mutation, Object, Operation, Register, Replace, Stamp, TraceContext, User,
    Value,
};
use millstream_model::value;

/// Collection of users' documents.
pub const USERS: &str = "users";
/// Collection of devices' documents.
pub const DEVICES: &str = "devices";

const SAME_AS: &str = "same_as";

/// The record that a change is due to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cause<'a> {
    pub(super) tenant: &'a str,
    pub(super) stamp: Stamp,
    pub(super) record_id: &'a [u8],
    pub(super) trace: Option<&'a TraceContext>,
}

/// The document that an entity's mutations add up to; `None` when it has none (any more).
pub fn render_user(tenant: &str, user: &User) -> Option<Object> {
    (user.fate.is_none() && user.revision > 0).then(|| user_fields(tenant, user))
}

/// [`render_user`] for a device. There is none of a device that only a deletion was told of.
pub fn render_device(tenant: &str, device: &DeviceState) -> Option<Object> {
    (device.revision > 0).then(|| device_fields(tenant, device))
}

pub(super) fn user_fields(tenant: &str, user: &User) -> Object {
    let mut fields =
        entity_fields(tenant, &user.identifiers, &user.attributes, (user.first_seen_ms, user.last_seen_ms));
    fields.push(("devices", listed::devices(user)));
    fields.push(("merged_users", listed::merged_users(user)));
    if let Some(identifier) = user.retained.as_ref().and_then(|retained| retained.identifier.as_ref()) {
        fields.push(("retained", pair(identifier)));
    }
    value::object(fields.into_iter().map(|(name, value)| (name.to_owned(), value)))
}

pub(super) fn device_fields(tenant: &str, device: &DeviceState) -> Object {
    let seen = (device.first_seen_ms, device.last_seen_ms);
    let mut fields = entity_fields(tenant, &device.identifiers, &device.attributes, seen);
    fields.extend(device.user.as_ref().map(|user| ("user", pair(user))));
    fields.extend(DeviceId::from_bytes(&device.same_as).map(|id| (SAME_AS, Value::string(id.to_string()))));
    value::object(fields.into_iter().map(|(name, value)| (name.to_owned(), value)))
}

fn entity_fields(
    tenant: &str,
    identifiers: &[Membership],
    registers: &[Register],
    (first_seen, last_seen): (i64, i64),
) -> Vec<(&'static str, Value)> {
    let seen = registers.iter().filter_map(|register| Some((escape(&register.name), attributes::seen(register)?)));
    vec![
        ("tenant", Value::string(tenant)),
        ("identifiers", Value::of(Kind::Object(listed::identifiers(identifiers)))),
        ("attributes", Value::object(seen)),
        ("first_seen", Value::timestamp(first_seen)),
        ("last_seen", Value::timestamp(last_seen)),
    ]
}

fn pair(identifier: &Identifier) -> Value {
    let text = |text: &str| Value::string(text);
    Value::object([("type".to_owned(), text(&identifier.r#type)), ("value".to_owned(), text(&identifier.value))])
}

/// Sets a field.
pub(super) fn set(path: impl Into<String>, value: Value) -> Operation {
    Operation { path: path.into(), op: Some(Op::Set(value)) }
}

/// Sets what only a device has: the identifier by which its last user was named.
pub(super) fn set_device_user(user: Option<&Identifier>) -> Operation {
    Operation { path: "user".into(), op: Some(user.map_or(Op::Unset(true), |user| Op::Set(pair(user)))) }
}

/// Sets what only a device has whose primary identifier names another one by now.
pub(super) fn set_same_as(id: &DeviceId) -> Operation {
    set(SAME_AS, Value::string(id.to_string()))
}

/// Sets what a merge asked to keep visible.
pub(super) fn set_retained(identifier: &Identifier) -> Operation {
    set("retained", pair(identifier))
}

/// No document any more.
pub(super) fn tombstone() -> Vec<Operation> {
    vec![Operation { path: String::new(), op: Some(Op::Tombstone(true)) }]
}

/// The whole document.
pub(super) fn replace(fields: Object) -> Vec<Operation> {
    vec![Operation { path: String::new(), op: Some(Op::Replace(fields)) }]
}

/// What leads from one form of a document to another.
pub(super) fn difference(before: &Object, after: &Object) -> Vec<Operation> {
    let mut operations = Vec::new();
    differ("", before, after, &mut operations);
    operations
}

pub(super) fn differ(prefix: &str, before: &Object, after: &Object, operations: &mut Vec<Operation>) {
    for (name, new) in after.pairs() {
        let (path, old) = (format!("{prefix}{name}"), before.get(name));
        match (old.and_then(Value::as_object), new.as_object()) {
            (Some(old), Some(new)) if prefix.is_empty() && ["attributes", "identifiers"].contains(&name) => {
                differ(&format!("{path}."), old, new, operations);
            }
            _ if old != Some(new) => operations.push(set(path, new.clone())),
            _ => {}
        }
    }
    for (name, _) in before.pairs().filter(|(name, _)| after.get(name).is_none()) {
        operations.push(Operation { path: format!("{prefix}{name}"), op: Some(Op::Unset(true)) });
    }
}

/// Sends a user's operations as its next mutation; the first one carries the whole document.
pub(super) fn publish_user(
    user: &mut User,
    mut operations: Vec<Operation>,
    cause: Cause<'_>,
    at: &At,
    out: &mut Outbox,
) {
    let Some(id) = UserId::from_bytes(&user.id) else { return };
    if user.revision == 0 && user.fate.is_none() {
        operations = replace(user_fields(cause.tenant, user));
    }
    let target = Target { collection: USERS, id: id.to_string(), home: id.home() };
    publish(target, (&mut user.revision, &mut user.whole), operations, cause, at, out);
}

/// The same for a device, whose first operations are the whole document.
pub(super) fn publish_device(
    device: &mut DeviceState,
    operations: Vec<Operation>,
    cause: Cause<'_>,
    at: &At,
    out: &mut Outbox,
) {
    let Some(id) = DeviceId::from_bytes(&device.id) else { return };
    let target = Target { collection: DEVICES, id: id.to_string(), home: id.home() };
    publish(target, (&mut device.revision, &mut device.whole), operations, cause, at, out);
}

struct Target {
    collection: &'static str,
    id: String,
    home: u16,
}

/// Sends operations as the next revision, and notes it when it is a whole document.
fn publish(
    to: Target,
    (revision, whole): (&mut u64, &mut u64),
    operations: Vec<Operation>,
    cause: Cause<'_>,
    at: &At,
    out: &mut Outbox,
) {
    if operations.is_empty() {
        return;
    }
    let base = *revision;
    *revision += 1;
    out.usage(cause.tenant).mutations += 1;
    let mutation = Mutation {
        tenant: cause.tenant.to_owned(),
        collection: to.collection.to_owned(),
        id: to.id,
        generation: u32::from(at.generation),
        revision: *revision,
        base,
        operations,
        accepted_ms: cause.stamp.time_ms,
        trace: cause.trace.cloned(),
        group: u32::from(to.home),
        record_id: cause.record_id.to_vec(),
    };
    if is_whole(&mutation) {
        *whole = *revision;
    }
    out.mutations.push(mutation);
}

impl Work<'_> {
    /// At the home of a user or device whose document lacks something: sends all of it, or its tombstone, as the next revision. An entity's
    /// mutations come in one partition in the order of their revisions; so when a whole document later than what the sender has read was
    /// sent already, it is behind that, and nothing is to be done.
    pub(super) fn replace(&mut self, header: &Header, message: &Replace) -> Result<(), StateError> {
        let (tenant, read) = (header.tenant.as_str(), message.revision);
        let Some(key) = state_key(tenant, message) else { return Ok(()) };
        let stored = self.state.get_mut(&key)?;
        let stamp = Stamp { time_ms: self.at.batch_ms, ..Stamp::default() };
        let cause = |record_id| Cause { tenant, stamp, record_id, trace: None };
        match stored {
            Some(Stored::User(user)) if user.revision > 0 && user.whole <= read => {
                let operations = render_user(tenant, user).map_or_else(tombstone, replace);
                publish_user(user, operations, cause(&request_id(message, user.revision)), self.at, self.out);
            }
            Some(Stored::Device(device)) if device.revision > 0 && device.whole <= read => {
                let operations = replace(device_fields(tenant, device));
                publish_device(device, operations, cause(&request_id(message, device.revision)), self.at, self.out);
            }
            _ => {}
        }
        Ok(())
    }
}

/// Where the entity of a document is.
pub(super) fn state_key(tenant: &str, Replace { collection, id, .. }: &Replace) -> Option<StateKey> {
    match collection.as_str() {
        USERS => UserId::parse(id).map(|id| user_key(tenant, &id)),
        DEVICES => DeviceId::parse(id).map(|id| device_key(tenant, &id)),
        _ => None,
    }
}

/// What stands for a record's id in a mutation that no record caused.
fn request_id(Replace { collection, id, .. }: &Replace, revision: u64) -> [u8; 16] {
    message_hash(&format!("replace\0{collection}\0{id}\0{revision}"))
}

//! What the command line shows of a user or device: each fact with when and by which record it came.
//!
//! One shard knows only its part; an answer either is the view or says in which key group to ask what next.

use super::attributes;
use super::state::{self, Value, alias_key, device_key, erased_key, node_key, user_id, user_key};
use crate::{State, StateError};
use millstream_model::id::{DeviceId, UserId, hex};
use millstream_model::key::group_of;
use millstream_model::proto::user::Fate;
use millstream_model::proto::{DeviceState, Identifier, Membership, Register, Stamp, User};
use millstream_model::value::format_time;
use serde::Serialize;

/// What to look up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inspect {
    /// The user that an identifier names.
    User(Identifier),
    /// A user by its id; `path` are the ids that led here, from merge to merge.
    UserId {
        /// The id.
        id: UserId,
        /// Ids of users that became part of it, from where the search began.
        path: Vec<UserId>,
    },
    /// The device that has this identifier.
    Device(Identifier),
}

impl Inspect {
    /// The key group whose shard knows.
    pub fn group(&self, tenant: &str) -> u16 {
        match self {
            Inspect::User(identifier) | Inspect::Device(identifier) => group_of(tenant, identifier),
            Inspect::UserId { id, .. } => id.home(),
        }
    }
}

/// What a shard knows.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// A live user.
    User(Box<UserView>),
    /// A device.
    Device(Box<DeviceView>),
    /// Ask this in its key group.
    Ask(Inspect),
    /// Deleted, by a record received at this time (RFC 3339).
    Deleted(String),
    /// Nobody.
    Unknown,
}

/// A user.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UserView {
    /// Internal id.
    pub id: String,
    /// Its document's revision.
    pub revision: u64,
    /// RFC 3339.
    pub first_seen: String,
    /// RFC 3339.
    pub last_seen: String,
    /// Events applied.
    pub events: u64,
    /// All that name it.
    pub identifiers: Vec<IdentifierView>,
    /// All that are or were set.
    pub attributes: Vec<AttributeView>,
    /// Internal ids of its devices.
    pub devices: Vec<String>,
    /// Users that became part of it.
    pub merged: Vec<MergeView>,
    /// The identifier that a merge asked to keep visible.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retained: Option<IdentifierView>,
    /// Ids by which the search came here, from merge to merge.
    pub forwarded_from: Vec<String>,
}

/// A device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeviceView {
    /// Internal id.
    pub id: String,
    /// Its document's revision.
    pub revision: u64,
    /// RFC 3339.
    pub first_seen: String,
    /// RFC 3339.
    pub last_seen: String,
    /// All that name it; the first found by is the primary one.
    pub identifiers: Vec<IdentifierView>,
    /// All that are or were set.
    pub attributes: Vec<AttributeView>,
    /// By what its last user was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// An identifier.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct IdentifierView {
    /// `type=value`.
    pub identifier: String,
    /// Received time of the record that brought it, RFC 3339.
    pub since: String,
    /// That record's id, hexadecimal.
    pub record: String,
    /// Received time of the newest record that named it, RFC 3339.
    pub last: String,
}

/// An attribute.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AttributeView {
    /// Its name.
    pub name: String,
    /// What readers see; null when it is unset.
    pub value: Option<millstream_model::proto::Value>,
    /// Received time of the newest record that set or unset it, or added or removed an element of it, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set: Option<String>,
    /// That record's id, hexadecimal.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub record: String,
}

/// A user that became part of another one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MergeView {
    /// Its internal id.
    pub user: String,
    /// Received time of the record that linked them, RFC 3339.
    pub at: String,
    /// That record's id, hexadecimal.
    pub record: String,
}

/// Looks something up in a shard; ask the one of [`Inspect::group`].
///
/// # Errors
/// The state could not be read.
pub fn inspect(state: &mut dyn State<Value>, tenant: &str, what: &Inspect) -> Result<Answer, StateError> {
    match what {
        Inspect::User(identifier) => {
            if let Some(node) = state::node(state, &node_key(tenant, identifier))? {
                return Ok(Answer::Ask(Inspect::UserId { id: node.user, path: Vec::new() }));
            }
            let erased = state::erased(state, &erased_key(tenant, identifier))?;
            Ok(erased.map_or(Answer::Unknown, |stamp| Answer::Deleted(when(Some(stamp)))))
        }
        Inspect::UserId { id, path } => match state.get(&user_key(tenant, id))? {
            Some(Value::User(user)) => of_user(id, user, path),
            _ => Ok(Answer::Unknown),
        },
        Inspect::Device(identifier) => {
            if let Some(alias) = state::alias(state, &alias_key(tenant, identifier))? {
                return Ok(alias
                    .primary
                    .clone()
                    .map_or(Answer::Unknown, |primary| Answer::Ask(Inspect::Device(primary))));
            }
            let id = DeviceId::of(tenant, identifier);
            match state.get(&device_key(tenant, &id))? {
                // Without a revision there was no record of it: only a deletion, or records by way of here.
                Some(Value::Device(device)) if device.revision > 0 => {
                    Ok(Answer::Device(Box::new(device_view(&id, device))))
                }
                _ => Ok(Answer::Unknown),
            }
        }
    }
}

fn of_user(id: &UserId, user: &User, path: &[UserId]) -> Result<Answer, StateError> {
    match &user.fate {
        Some(Fate::Forward(to)) => {
            let path = path.iter().copied().chain([*id]).collect();
            Ok(Answer::Ask(Inspect::UserId { id: user_id(to)?, path }))
        }
        Some(Fate::Deleted(stamp)) => Ok(Answer::Deleted(when(Some(*stamp)))),
        None => Ok(Answer::User(Box::new(user_view(id, user, path)))),
    }
}

fn user_view(id: &UserId, user: &User, path: &[UserId]) -> UserView {
    let merged = user.merged.iter().filter_map(|merged| {
        let user = UserId::from_bytes(&merged.user)?.to_string();
        Some(MergeView { user, at: when(merged.stamp), record: hex(&merged.record_id) })
    });
    let devices = user.devices.iter().filter_map(|device| DeviceId::from_bytes(&device.device));
    UserView {
        id: id.to_string(),
        revision: user.revision,
        first_seen: format_time(user.first_seen_ms),
        last_seen: format_time(user.last_seen_ms),
        events: user.events,
        identifiers: identifiers(&user.identifiers),
        attributes: user.attributes.iter().map(attribute).collect(),
        devices: devices.map(|id| id.to_string()).collect(),
        merged: merged.collect(),
        retained: user.retained.as_ref().and_then(identifier),
        forwarded_from: path.iter().map(UserId::to_string).collect(),
    }
}

fn device_view(id: &DeviceId, device: &DeviceState) -> DeviceView {
    DeviceView {
        id: id.to_string(),
        revision: device.revision,
        first_seen: format_time(device.first_seen_ms),
        last_seen: format_time(device.last_seen_ms),
        identifiers: identifiers(&device.identifiers),
        attributes: device.attributes.iter().map(attribute).collect(),
        user: device.user.as_ref().map(Identifier::to_string),
    }
}

fn identifiers(members: &[Membership]) -> Vec<IdentifierView> {
    members.iter().filter_map(identifier).collect()
}

fn identifier(member: &Membership) -> Option<IdentifierView> {
    Some(IdentifierView {
        identifier: member.identifier.as_ref()?.to_string(),
        since: when(member.stamp),
        record: hex(&member.record_id),
        last: when(member.last),
    })
}

fn attribute(register: &Register) -> AttributeView {
    let changes = register.elements.iter().map(|element| (element.stamp, &element.record_id));
    let newest = changes.chain([(register.stamp, &register.record_id)]).max();
    AttributeView {
        name: register.name.clone(),
        value: attributes::seen(register),
        set: newest.and_then(|(stamp, _)| stamp).map(|stamp| when(Some(stamp))),
        record: newest.map(|(_, record_id)| hex(record_id)).unwrap_or_default(),
    }
}

fn when(stamp: Option<Stamp>) -> String {
    let time_ms = stamp.map_or(0, |stamp| stamp.time_ms);
    format_time(i64::try_from(time_ms).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::attributes::Writer;
    use super::*;
    use millstream_model::proto::change::Op;
    use millstream_model::proto::{Change, List, Value};

    #[test]
    fn an_attribute_says_when_and_by_which_record_it_was_changed_last() {
        let stamp = |time_ms| Stamp { time_ms, offset: 0, index: 0 };
        let change = |op| vec![Change { name: "tags".into(), op: Some(op) }];
        let list = |item: &str| List { items: vec![Value::string(item)] };
        let mut registers = Vec::new();
        let mut by = |time_ms, record_id: &[u8], op| {
            let writer = Writer { stamp: stamp(time_ms), record_id };
            attributes::apply(&mut registers, change(op), writer, &mut Vec::new());
            let view = attribute(&registers[0]);
            (view.set.unwrap(), view.record)
        };
        let of = |time: &str, record: &str| (time.to_owned(), record.to_owned());
        assert_eq!(by(3_000, &[0xa3], Op::Add(list("pro"))), of("1970-01-01T00:00:03Z", "a3"));
        assert_eq!(
            by(1_000, &[0xa1], Op::Add(list("old"))),
            of("1970-01-01T00:00:03Z", "a3"),
            "an older one came late"
        );
        assert_eq!(by(2_000, &[0xa2], Op::Set(Value::string("x"))), of("1970-01-01T00:00:03Z", "a3"));
        assert_eq!(by(4_000, &[0xa4], Op::Remove(list("pro"))), of("1970-01-01T00:00:04Z", "a4"));
        assert_eq!(by(5_000, &[0xa5], Op::Unset(true)), of("1970-01-01T00:00:05Z", "a5"));
    }
}

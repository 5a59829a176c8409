//! The lists that documents and events show of a user: of nearly every user all of it, and never more than a message takes.
//!
//! Merges are never refused, so the identifiers of one user, its devices and the ids of those who became part of it have no bound in its state. What is
//! shown of them has one: the first ones, in the order in which the state keeps them. So two documents of one state are equal (I8), and with the
//! attributes, which a merge bounds ([`super::merging`]), each fits into a message of the log. The bounds are constants, since a document that was
//! shown within other bounds would differ from its state for good.

use super::document::{differ, set};
use super::size;
use millstream_model::document::escape;
use millstream_model::id::{DeviceId, UserId};
use millstream_model::proto::{Identifier, Membership, Object, Operation, User, Value};
use millstream_model::value;
use std::collections::BTreeMap;

/// Of identifiers, reckoned from above, as JSON writes them.
pub(super) const IDENTIFIER_BYTES: usize = 512 * 1024;
/// Of devices, and of users that became part of one.
pub(super) const IDS: usize = 4_000;

/// The identifiers that are shown.
pub(super) fn listed(members: &[Membership]) -> &[Membership] {
    let mut room = IDENTIFIER_BYTES;
    let fits = |member: &&Membership| {
        let left = room.checked_sub(member.identifier.as_ref().map_or(0, shown_bytes));
        room = left.unwrap_or(room);
        left.is_some()
    };
    let count = members.iter().take_while(fits).count();
    members.get(..count).unwrap_or(members)
}

/// Control characters are six bytes of JSON each, quotes and backslashes two.
fn shown_bytes(identifier: &Identifier) -> usize {
    let escapes = identifier.value.bytes().map(|byte| match byte {
        0..0x20 => 5,
        b'"' | b'\\' => 1,
        _ => 0,
    });
    size::member(identifier) + escapes.sum::<usize>()
}

/// Values by type.
pub(super) fn identifiers(members: &[Membership]) -> Object {
    let mut types: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for identifier in listed(members).iter().filter_map(|member| member.identifier.as_ref()) {
        types.entry(escape(&identifier.r#type)).or_default().push(Value::string(&identifier.value));
    }
    value::object(types.into_iter().map(|(kind, values)| (kind, Value::list(values))))
}

/// What leads to the document's identifiers after these new ones came: the whole list of each of their types, or, where not all are shown, whatever
/// they make different.
pub(super) fn set_identifiers(members: &[Membership], new: &[Identifier]) -> Vec<Operation> {
    if new.is_empty() {
        return Vec::new();
    }
    if listed(members).len() < members.len() {
        let is_old = |member: &&Membership| member.identifier.as_ref().is_none_or(|it| !new.contains(it));
        let before: Vec<Membership> = members.iter().filter(is_old).cloned().collect();
        let mut operations = Vec::new();
        differ("identifiers.", &identifiers(&before), &identifiers(members), &mut operations);
        return operations;
    }
    let mut types: Vec<&str> = new.iter().map(|identifier| identifier.r#type.as_str()).collect();
    types.sort_unstable();
    types.dedup();
    let of_type = |kind: &str| {
        let identifiers = members.iter().filter_map(|member| member.identifier.as_ref());
        let values = identifiers.filter(|identifier| identifier.r#type == kind);
        Value::list(values.map(|identifier| Value::string(&identifier.value)).collect())
    };
    types.into_iter().map(|kind| set(format!("identifiers.{}", escape(kind)), of_type(kind))).collect()
}

pub(super) fn devices(user: &User) -> Value {
    let ids = user.devices.iter().filter_map(|device| DeviceId::from_bytes(&device.device));
    Value::list(ids.take(IDS).map(|id| Value::string(id.to_string())).collect())
}

pub(super) fn merged_users(user: &User) -> Value {
    let ids = user.merged.iter().filter_map(|merged| UserId::from_bytes(&merged.user));
    Value::list(ids.take(IDS).map(|id| Value::string(id.to_string())).collect())
}

#[cfg(test)]
mod tests {
    use super::super::user::membership;
    use super::*;
    use millstream_model::proto::Stamp;
    use prost::Message;

    fn members(values: impl Iterator<Item = String>) -> Vec<Membership> {
        values.map(|value| membership(Identifier::new("email", value), Stamp::default(), b"r")).collect()
    }

    #[test]
    fn everything_is_shown_of_whoever_is_within_the_limits_of_records() {
        let members = members((0..1_000).map(|number| format!("{number:0>300}")));
        assert_eq!(listed(&members).len(), 1_000);
    }

    #[test]
    fn what_is_shown_fits_however_many_there_are_and_however_they_are_written() {
        let members = members((0..5_000).map(|number| format!("{number:0>6}{}", "\u{1}".repeat(500))));
        let shown = identifiers(&members);
        let json = serde_json::to_vec(&shown).unwrap().len();
        assert!(json <= IDENTIFIER_BYTES && shown.encoded_len() <= IDENTIFIER_BYTES, "{json}");
        assert!(json > IDENTIFIER_BYTES * 3 / 4, "{json}");
    }

    #[test]
    fn a_new_one_that_pushes_another_out_changes_what_is_shown_of_both() {
        let mut members = members((0..1_000).map(|number| format!("{number:0>1000}")));
        let other = |kind: &str| membership(Identifier::new(kind, "x"), Stamp::default(), b"r");
        members.push(other("phone"));
        let shown = |operations: Vec<Operation>| operations.into_iter().map(|it| it.path).collect::<Vec<_>>();
        let (late, early) = (Identifier::new("phone", "x"), Identifier::new("a", "x"));
        assert_eq!(shown(set_identifiers(&members, &[late])), [] as [&str; 0], "it is not shown");
        members.insert(0, other("a"));
        assert_eq!(shown(set_identifiers(&members, &[early])), ["identifiers.a", "identifiers.email"]);
    }
}

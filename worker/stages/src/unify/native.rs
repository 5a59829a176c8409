//! The native shape; [`crate::source`] documents it.

use super::changes::Changes;
use super::draft::{Draft, Named, Parts, Reading, named_map};
use super::fields::{self, missing, required_string};
use super::segment;
use super::values::Cleaner;
use crate::source::identity;
use millstream_model::proto::{Change, Event, Object, Value};
use millstream_model::reject::{Reason, Refusal};

/// Reads one record.
pub(super) fn read(mut record: Object, reading: &Reading<'_>) -> Parts {
    let draft = match reading.kind {
        "merge" => merge(&record, reading),
        "delete" => delete(&record, reading),
        "device" => device(&mut record, reading),
        kind => user(&mut record, reading, kind == "event"),
    }?;
    Ok(vec![Ok(draft)])
}

fn draft(record: &Object, reading: &Reading<'_>) -> Result<Draft, Refusal> {
    let time_ms = reading.time("time", record.get("time"))?;
    reading.draft(named_map(record, "identifiers", str::to_owned)?, time_ms)
}

/// An event or a change of a user; both may change attributes.
fn user(record: &mut Object, reading: &Reading<'_>, is_event: bool) -> Result<Draft, Refusal> {
    let mut draft = draft(record, reading)?;
    draft.update_existing_only = fields::boolean(record, "", "update_existing_only", false)?;
    let mut device = fields::take_object(record, "", "device")?;
    let device_changes = changes(&mut device, "device", reading, &mut draft.reports)?;
    if !device_changes.is_empty() && draft.devices.is_empty() {
        let message = "`device` changes a device, but `identifiers` names none; add `device_id`";
        return Err(Refusal::field(Reason::MissingIdentifier, "identifiers.device_id", message));
    }
    draft.device_changes = device_changes;
    draft.user_changes = changes(record, "", reading, &mut draft.reports)?;
    if is_event {
        let name = required_string(record, "", "event")?.to_owned();
        let properties = fields::take_object(record, "", "properties")?;
        draft.event = Some(event(name, "event", properties, reading, &mut draft.reports)?);
    } else if draft.users.is_empty() {
        let message = "a record of type `user` needs an identifier of the user, for example `user_id`";
        return Err(Refusal::field(Reason::MissingIdentifier, "identifiers", message));
    }
    Ok(draft)
}

fn device(record: &mut Object, reading: &Reading<'_>) -> Result<Draft, Refusal> {
    let mut draft = draft(record, reading)?;
    if draft.devices.is_empty() {
        let message = "a record of type `device` needs an identifier of the device, for example `device_id`";
        return Err(Refusal::field(Reason::MissingIdentifier, "identifiers", message));
    }
    draft.device_changes = changes(record, "", reading, &mut draft.reports)?;
    Ok(draft)
}

fn delete(record: &Object, reading: &Reading<'_>) -> Result<Draft, Refusal> {
    Ok(Draft { delete: true, ..draft(record, reading)? })
}

fn merge(record: &Object, reading: &Reading<'_>) -> Result<Draft, Refusal> {
    let time_ms = reading.time("time", record.get("time"))?;
    segment::merge(typed(record, "retained")?, typed(record, "merged")?, time_ms, reading)
}

fn typed(record: &Object, member: &str) -> Result<Named, Refusal> {
    let expected = "an object with `type` and `value`";
    let inner = fields::object(record, "", member)?.ok_or_else(|| missing("", member, expected))?;
    let kind = required_string(inner, member, "type")?;
    let named = super::draft::named(inner, member, "value", kind, super::draft::Importance::Required)?;
    let named = named.ok_or_else(|| missing(member, "value", "the identifier"))?;
    identity::check(&named.field, &named.identifier)?;
    Ok(named)
}

/// `set`, `unset`, `add`, `remove` of an object.
fn changes(
    object: &mut Object,
    parent: &str,
    reading: &Reading<'_>,
    reports: &mut Vec<Refusal>,
) -> Result<Vec<Change>, Refusal> {
    let path = |member| fields::path(parent, member);
    let mut changes = Changes::new(&reading.rules.limits);
    changes.set(&path("set"), fields::take_object(object, parent, "set")?);
    changes.unset(&path("unset"), fields::take_list(object, parent, "unset")?)?;
    changes.add(&path("add"), fields::take_object(object, parent, "add")?)?;
    changes.remove(&path("remove"), fields::take_object(object, parent, "remove")?)?;
    let (changes, dropped) = changes.finish(&path("set"))?;
    reports.extend(dropped);
    Ok(changes)
}

/// An event of a checked name with properties within the limits.
pub(super) fn event(
    name: String,
    field: &str,
    properties: Object,
    reading: &Reading<'_>,
    reports: &mut Vec<Refusal>,
) -> Result<Event, Refusal> {
    let limits = &reading.rules.limits;
    if name.chars().count() > limits.max_name_chars {
        let message =
            format!("an event's name has at most {} characters; put details into properties", limits.max_name_chars);
        return Err(Refusal::field(Reason::TooLarge, field, message));
    }
    if name.chars().any(char::is_control) {
        let message = "an event's name must not contain control characters";
        return Err(Refusal::field(Reason::InvalidValue, field, message));
    }
    let mut cleaner = Cleaner::properties(limits);
    let properties = cleaner.event_properties("properties", properties);
    reports.append(&mut cleaner.reports);
    Ok(Event { name, properties })
}

/// An object with members that a source has beside it; those of the object win.
pub(super) fn with_defaults(object: Object, defaults: Vec<(&str, Option<Value>)>) -> Object {
    let defaults = defaults.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    let defaults: Vec<(String, Value)> = defaults.filter(|(_, value)| !value.is_null()).collect();
    if defaults.is_empty() {
        return object;
    }
    millstream_model::value::object(defaults.into_iter().chain(object.into_pairs()))
}

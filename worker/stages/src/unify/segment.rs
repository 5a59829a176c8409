//! Segment's calls.
//!
//! | call | becomes |
//! |---|---|
//! | identify | user attributes from `traits`; the trait `email` is an identifier too |
//! | track | the event `event` |
//! | page, screen | the events "Page Viewed", "Screen Viewed"; `name` and `category` are properties |
//! | group | the event "Group Joined"; user attributes `group_id` and `account` (the group's traits) |
//! | alias | a merge: whom `previousId` (an anonymous id) names becomes part of whom `userId` names |
//!
//! `context.device` (and `os`, `app`, `locale`, `timezone` beside it) name and describe the device; a record's context goes
//! before its batch's, member by member. `traits` in the context of other calls are not applied.

use super::changes::Changes;
use super::draft::{Draft, Importance, Named, Parts, Reading, named};
use super::fields::{self, missing, required_string};
use super::native::{event, with_defaults};
use crate::source::identity;
use millstream_model::proto::{Event, Identifier, Merge, Object, Value};
use millstream_model::reject::{Reason, Refusal};

/// Reads one call.
pub(super) fn read(mut record: Object, reading: &Reading<'_>) -> Parts {
    let draft = if reading.kind == "alias" { alias(&record, reading) } else { call(&mut record, reading) }?;
    Ok(vec![Ok(draft)])
}

fn time(record: &Object, reading: &Reading<'_>) -> Result<i64, Refusal> {
    let original = record.get("originalTimestamp").filter(|value| !super::times::is_blank(value));
    match original {
        Some(original) => reading.time("originalTimestamp", Some(original)),
        None => reading.time("timestamp", record.get("timestamp")),
    }
}

fn alias(record: &Object, reading: &Reading<'_>) -> Result<Draft, Refusal> {
    let required = |member: &str, kind: &str| {
        let found = named(record, "", member, kind, Importance::Required)?;
        found.ok_or_else(|| missing("", member, "an alias with both `userId` and `previousId`"))
    };
    let (retained, merged) = (required("userId", "user_id")?, required("previousId", "anonymous_id")?);
    if retained.identifier.value == merged.identifier.value {
        return Err(same(&retained, &merged));
    }
    merge(retained, merged, time(record, reading)?, reading)
}

fn same(retained: &Named, merged: &Named) -> Refusal {
    let message =
        format!("`{}` and `{}` are the same; a user cannot be merged with itself", retained.field, merged.field);
    Refusal::field(Reason::InvalidMerge, merged.field.clone(), message)
}

/// A merge of two users.
///
/// # Errors
/// Both are the same, or one is forbidden.
pub(super) fn merge(retained: Named, merged: Named, time_ms: i64, reading: &Reading<'_>) -> Result<Draft, Refusal> {
    let pair = Merge { retained: Some(retained.identifier.clone()), merged: Some(merged.identifier.clone()) };
    if retained.identifier == merged.identifier {
        return Err(same(&retained, &merged));
    }
    let order = [retained.identifier.clone(), merged.identifier.clone()];
    let draft = reading.draft(vec![retained, merged], time_ms)?;
    // An identifier of a device stands for the user whom it names when nobody else is named.
    Ok(Draft { users: order.to_vec(), devices: Vec::new(), by_device: false, routing: 0, merge: Some(pair), ..draft })
}

fn call(record: &mut Object, reading: &Reading<'_>) -> Result<Draft, Refusal> {
    let context = context(record, reading)?;
    let mut identifiers: Vec<Named> = Vec::new();
    identifiers.extend(named(record, "", "anonymousId", "anonymous_id", Importance::Optional)?);
    identifiers.extend(named(record, "", "userId", "user_id", Importance::Optional)?);
    identifiers.extend(devices(&context)?);
    let mut reports = Vec::new();
    if reading.kind == "identify" {
        identifiers.extend(email(record, &mut reports));
    }
    let mut draft = reading.draft(identifiers, time(record, reading)?)?;
    draft.reports.append(&mut reports);
    if !draft.devices.is_empty() {
        describe_device(&context, reading, &mut draft)?;
    }
    match reading.kind {
        "identify" => identify(record, reading, &mut draft)?,
        "group" => group(record, reading, &mut draft)?,
        _ => draft.event = Some(view(record, reading, &mut draft.reports)?),
    }
    Ok(draft)
}

/// The record's context over its batch's.
fn context(record: &mut Object, reading: &Reading<'_>) -> Result<Object, Refusal> {
    let own = fields::take_object(record, "", "context")?;
    if reading.context.is_empty() {
        return Ok(own);
    }
    let common: Value = serde_json::from_slice(reading.context).map_err(|error| {
        let message = format!("the batch's `context` is not valid JSON: {error}");
        Refusal::field(Reason::MalformedJson, "context", message)
    })?;
    let common = common.as_object().cloned().unwrap_or_default();
    Ok(millstream_model::value::object(common.into_pairs().chain(own.into_pairs())))
}

fn devices(context: &Object) -> Result<Vec<Named>, Refusal> {
    let Some(device) = fields::object(context, "context", "device")? else { return Ok(Vec::new()) };
    let text =
        |object: &Object, member: &str| object.get(member).and_then(Value::as_str).unwrap_or_default().to_lowercase();
    let os = context.get("os").and_then(Value::as_object).map(|os| text(os, "name")).unwrap_or_default();
    let kind = text(device, "type");
    let is_apple = ["ios", "ipados", "tvos"].iter().any(|apple| kind == *apple || os == *apple);
    let advertising = if is_apple { "idfa" } else { "gaid" };
    let mut identifiers = Vec::new();
    identifiers.extend(named(device, "context.device", "id", "device_id", Importance::Incidental)?);
    identifiers.extend(named(device, "context.device", "advertisingId", advertising, Importance::Incidental)?);
    Ok(identifiers)
}

/// Where the attributes of the device are in a context, and what they are called.
const DEVICE_ATTRIBUTES: [(&str, &str, &str); 13] = [
    ("device", "manufacturer", "manufacturer"),
    ("device", "model", "model"),
    ("device", "name", "name"),
    ("device", "type", "platform"),
    ("device", "token", "push_token"),
    ("os", "name", "os_name"),
    ("os", "version", "os_version"),
    ("app", "name", "app_name"),
    ("app", "version", "app_version"),
    ("app", "build", "app_build"),
    ("app", "namespace", "app_namespace"),
    ("", "locale", "locale"),
    ("", "timezone", "timezone"),
];

fn describe_device(context: &Object, reading: &Reading<'_>, draft: &mut Draft) -> Result<(), Refusal> {
    let mut members = Vec::new();
    for (group, member, attribute) in DEVICE_ATTRIBUTES {
        let object = if group.is_empty() { Some(context) } else { context.get(group).and_then(Value::as_object) };
        let value = object.and_then(|object| object.get(member)).filter(|value| value.depth() == 0 && !value.is_null());
        members.extend(value.map(|value| (attribute.to_owned(), value.clone())));
    }
    let mut changes = Changes::new(&reading.rules.limits);
    changes.set("context", millstream_model::value::object(members));
    let (changes, reports) = changes.finish("context")?;
    draft.device_changes = changes;
    draft.reports.extend(reports);
    Ok(())
}

fn identify(record: &mut Object, reading: &Reading<'_>, draft: &mut Draft) -> Result<(), Refusal> {
    let traits = fields::take_object(record, "", "traits")?;
    let mut changes = Changes::new(&reading.rules.limits);
    changes.set("traits", traits);
    let (changes, reports) = changes.finish("traits")?;
    draft.user_changes = changes;
    draft.reports.extend(reports);
    Ok(())
}

/// The trait `email` as an identifier; what is no address stays an attribute only.
fn email(record: &Object, reports: &mut Vec<Refusal>) -> Option<Named> {
    let value = record.get("traits")?.as_object()?.get("email").filter(|value| !value.is_null())?;
    let identifier = identity::identifier("email", value).filter(|identifier| {
        let (local, domain) = identifier.value.split_once('@').unwrap_or_default();
        !local.is_empty() && !domain.is_empty() && identity::check("", identifier).is_ok()
    });
    let field = "traits.email".to_owned();
    if identifier.is_none() {
        let message = "not an e-mail address: kept as an attribute, but it identifies nobody";
        reports.push(Refusal::field(Reason::InvalidValue, field.clone(), message));
    }
    Some(Named { field, identifier: identifier?, importance: Importance::Optional })
}

fn group(record: &mut Object, reading: &Reading<'_>, draft: &mut Draft) -> Result<(), Refusal> {
    let group = named(record, "", "groupId", "group_id", Importance::Required)?;
    let group = group.ok_or_else(|| missing("", "groupId", "the id of the group"))?;
    identity::check(&group.field, &group.identifier)?;
    let Identifier { value: group, .. } = group.identifier;
    let traits = fields::take_object(record, "", "traits")?;
    let mut members = vec![("group_id".to_owned(), Value::string(group.clone()))];
    if !traits.members.is_empty() {
        members.push(("account".to_owned(), Value::object(traits.clone().into_pairs())));
    }
    let mut changes = Changes::new(&reading.rules.limits);
    changes.set("", millstream_model::value::object(members));
    let (changes, reports) = changes.finish("traits")?;
    draft.user_changes = changes;
    draft.reports.extend(reports);
    let properties = with_defaults(traits, vec![("group_id", Some(Value::string(group)))]);
    draft.event = Some(event("Group Joined".to_owned(), "groupId", properties, reading, &mut draft.reports)?);
    Ok(())
}

/// track, page, screen.
fn view(record: &mut Object, reading: &Reading<'_>, reports: &mut Vec<Refusal>) -> Result<Event, Refusal> {
    let properties = fields::take_object(record, "", "properties")?;
    let name = match reading.kind {
        "page" => "Page Viewed",
        "screen" => "Screen Viewed",
        _ => {
            let name = required_string(record, "", "event")?.to_owned();
            return event(name, "event", properties, reading, reports);
        }
    };
    let defaults = vec![("name", record.get("name").cloned()), ("category", record.get("category").cloned())];
    event(name.to_owned(), "name", with_defaults(properties, defaults), reading, reports)
}

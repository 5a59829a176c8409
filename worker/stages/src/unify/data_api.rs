//! The data API of customer-engagement platforms.
//!
//! | record | becomes |
//! |---|---|
//! | customer | attributes of the user `user_id` = `customer_id`; `platforms` become one attribute each, `platforms.ios` = active |
//! | event | one event per element of `actions`; `platform` and `app_version` become properties |
//! | device | attributes of the device; `moe_gaid` and `idfv` are identifiers of it; attributes that are not listed are dropped and reported |
//! | merge | a merge of two customers |
//! | delete | the deletion of the user that `identity_type` and `identity_value` name |
//!
//! `user_identifiers` of a customer or an event link further identifiers to the user; attributes never do. A `customer_id` that names nobody is
//! rejected even when something else names the user. An action happened at `user_time`, corrected by `current_time` when it has both
//! (the same clock when it was sent), or else at `current_time`.

use super::changes::Changes;
use super::draft::{Draft, Importance, Named, Parts, Reading, named, named_map};
use super::fields::{self, missing, required_string};
use super::native::{event, with_defaults};
use super::{segment, times};
use crate::source::route::data_api_type;
use millstream_model::proto::r#match::Kind as MatchKind;
use millstream_model::proto::{Object, Value, value::Kind};
use millstream_model::reject::{Reason, Refusal};

/// Reads one record.
pub(super) fn read(mut record: Object, reading: &Reading<'_>) -> Parts {
    match reading.kind {
        "event" => return actions(&mut record, reading),
        "customer" => customer(&mut record, reading),
        "device" => device(&mut record, reading),
        "merge" => merge(&record, reading),
        _ => delete(&record, reading),
    }
    .map(|draft| vec![Ok(draft)])
}

fn customer_id(record: &Object) -> Result<Named, Refusal> {
    let found = named(record, "", "customer_id", "user_id", Importance::Required)?;
    found.ok_or_else(|| missing("", "customer_id", "the customer's id, a string that is not blank"))
}

fn customer(record: &mut Object, reading: &Reading<'_>) -> Result<Draft, Refusal> {
    let mut identifiers = vec![customer_id(record)?];
    identifiers.extend(named_map(record, "user_identifiers", data_api_type)?);
    let mut draft = reading.draft(identifiers, reading.received_ms)?;
    draft.update_existing_only = fields::boolean(record, "", "update_existing_only", false)?;
    let mut attributes = fields::take_object(record, "", "attributes")?;
    let mut changes = Changes::new(&reading.rules.limits);
    platforms(&mut attributes, &mut changes)?;
    let added = fields::take_object(&mut attributes, "attributes", "addValueToArrayField")?;
    let removed = fields::take_object(&mut attributes, "attributes", "removeValueFromArrayField")?;
    changes.add("attributes.addValueToArrayField", added)?;
    changes.remove("attributes.removeValueFromArrayField", removed)?;
    changes.set("attributes", attributes);
    unset(record, &mut changes, reading)?;
    let (changes, reports) = changes.finish("attributes")?;
    draft.user_changes = changes;
    draft.reports.extend(reports);
    Ok(draft)
}

fn platforms(attributes: &mut Object, changes: &mut Changes<'_>) -> Result<(), Refusal> {
    let list = fields::take_list(attributes, "attributes", "platforms")?;
    for (index, item) in list.into_iter().enumerate() {
        let path = format!("attributes.platforms[{index}]");
        let item = fields::item("attributes.platforms", index, item)?;
        let platform = platform(required_string(&item, &path, "platform")?, &format!("{path}.platform"))?;
        let active = flag(&item, &path, "active")?.unwrap_or(true);
        changes.set_one(format!("platforms.{platform}"), Value::boolean(active));
    }
    Ok(())
}

/// The platforms that the data API knows, in any case.
fn platform(text: &str, field: &str) -> Result<String, Refusal> {
    let lower = text.to_lowercase();
    if ["android", "ios", "web", "tv", "unknown"].contains(&lower.as_str()) {
        return Ok(lower);
    }
    let message = format!("`{field}` must be ANDROID, iOS, web, TV or unknown");
    Err(Refusal::field(Reason::InvalidValue, field, message))
}

/// A boolean, also in words, as these APIs write it ("True").
fn flag(object: &Object, parent: &str, member: &str) -> Result<Option<bool>, Refusal> {
    match object.get(member).map(|value| (value, &value.kind)) {
        None | Some((_, None | Some(Kind::Null(_)))) => Ok(None),
        Some((_, Some(Kind::Boolean(value)))) => Ok(Some(*value)),
        Some((_, Some(Kind::String(text)))) if text.eq_ignore_ascii_case("true") => Ok(Some(true)),
        Some((_, Some(Kind::String(text)))) if text.eq_ignore_ascii_case("false") => Ok(Some(false)),
        Some((value, _)) => {
            let field = fields::path(parent, member);
            let message = format!("`{field}` must be true or false, it is of type {}", value.type_name());
            Err(Refusal::field(Reason::WrongType, field, message))
        }
    }
}

fn unset(record: &mut Object, changes: &mut Changes<'_>, reading: &Reading<'_>) -> Result<(), Refusal> {
    let rules = fields::take_list(record, "", "unset_attributes")?;
    let most = reading.rules.limits.max_unset_rules;
    if rules.len() > most {
        let message =
            format!("`unset_attributes` has {} rules, at most {most} are allowed; send several records", rules.len());
        return Err(Refusal::field(Reason::TooLarge, "unset_attributes", message));
    }
    for (index, item) in rules.into_iter().enumerate() {
        let path = format!("unset_attributes[{index}]");
        let item = fields::item("unset_attributes", index, item)?;
        let pattern = required_string(&item, &path, "attr")?;
        let kind = match fields::string(&item, &path, "type")?.unwrap_or("equals") {
            "equals" => MatchKind::Equals,
            "prefix" => MatchKind::Prefix,
            "suffix" => MatchKind::Suffix,
            "contains" => MatchKind::Contains,
            _ => {
                let message = format!("`{path}.type` must be equals, prefix, suffix or contains");
                return Err(Refusal::field(Reason::InvalidValue, format!("{path}.type"), message));
            }
        };
        changes.unset_matching(kind, pattern, fields::boolean(&item, &path, "case_sensitive", true)?);
    }
    Ok(())
}

/// One draft per action; an action that is no good does not stop the others.
fn actions(record: &mut Object, reading: &Reading<'_>) -> Parts {
    let mut identifiers: Vec<Named> = Vec::new();
    identifiers.extend(named(record, "", "customer_id", "user_id", Importance::Required)?);
    identifiers.extend(named_map(record, "user_identifiers", data_api_type)?);
    if identifiers.is_empty() {
        return Err(missing("", "customer_id", "the customer's id, a string that is not blank"));
    }
    identifiers.extend(named(record, "", "device_id", "device_id", Importance::Optional)?);
    let base = reading.draft(identifiers, reading.received_ms)?;
    let actions = fields::take_list(record, "", "actions")?;
    let most = reading.rules.limits.max_actions;
    if actions.is_empty() {
        return Err(missing("", "actions", "a list with at least one action"));
    }
    if actions.len() > most {
        let message = format!("{} actions in one event, at most {most} are allowed; split it", actions.len());
        return Err(Refusal::field(Reason::TooLarge, "actions", message));
    }
    let mut parts = Vec::with_capacity(actions.len());
    for (index, item) in actions.into_iter().enumerate() {
        let mut draft = base.clone();
        if index > 0 {
            draft.reports.clear();
        }
        parts.push(action(draft, index, item, reading));
    }
    Ok(parts)
}

fn action(mut draft: Draft, index: usize, item: Value, reading: &Reading<'_>) -> Result<Draft, Refusal> {
    let path = format!("actions[{index}]");
    let mut item = fields::item("actions", index, item)?;
    let name = required_string(&item, &path, "action")?.to_owned();
    if let Some(text) = fields::string(&item, &path, "platform")? {
        platform(text, &format!("{path}.platform"))?;
    }
    let properties = fields::take_object(&mut item, &path, "attributes")?;
    let defaults = ["platform", "app_version"].map(|name| (name, item.get(name).cloned()));
    draft.time_ms = action_time(&item, &path, reading)?;
    let properties = with_defaults(properties, defaults.into());
    let first_report = draft.reports.len();
    let made = event(name, "action", properties, reading, &mut draft.reports);
    draft.event = Some(made.map_err(|refusal| within(&path, refusal))?);
    let reports = draft.reports.split_off(first_report);
    draft.reports.extend(reports.into_iter().map(|report| within(&path, report)));
    Ok(draft)
}

/// The refusal with its field inside an action; what is elsewhere called `properties` is called `attributes` here.
fn within(path: &str, refusal: Refusal) -> Refusal {
    let field = refusal.field.map(|field| match field.strip_prefix("properties") {
        Some(rest) => format!("{path}.attributes{rest}"),
        None => format!("{path}.{field}"),
    });
    Refusal { field, ..refusal }
}

/// Furthest offsets of clocks from UTC, in seconds, as the API documents them.
const OFFSETS: std::ops::RangeInclusive<i64> = -54_000..=54_000;

fn action_time(item: &Object, path: &str, reading: &Reading<'_>) -> Result<i64, Refusal> {
    if let Some(value) = item.get("user_timezone_offset").filter(|value| !times::is_blank(value)) {
        let field = format!("{path}.user_timezone_offset");
        let in_range = matches!(value.kind, Some(Kind::Integer(offset)) if OFFSETS.contains(&offset));
        if !in_range {
            let message = format!("`{field}` must be an integer of seconds from -54000 to 54000");
            return Err(Refusal::field(Reason::InvalidValue, field, message));
        }
    }
    let current = item.get("current_time").filter(|value| !times::is_blank(value));
    let (member, original, sent_ms) = match item.get("user_time").filter(|value| !times::is_blank(value)) {
        Some(user) => ("user_time", Some(user), current.and_then(crate::source::times::instant)),
        None => ("current_time", current, None),
    };
    let field = fields::path(path, member);
    times::happened(&field, original, sent_ms.or(reading.sent_ms), reading.received_ms, &reading.rules.limits)
}

fn device(record: &mut Object, reading: &Reading<'_>) -> Result<Draft, Refusal> {
    let mut attributes = fields::take_object(record, "", "attributes")?;
    let platform_text = required_string(&attributes, "attributes", "platform")?.to_owned();
    let platform = platform(&platform_text, "attributes.platform")?;
    required_string(&attributes, "attributes", "push_id")?;
    let opted = flag(&attributes, "attributes", "moe_push_opted")?;
    let mut identifiers = vec![customer_id(record)?];
    let device = named(record, "", "device_id", "device_id", Importance::Required)?;
    identifiers.push(device.ok_or_else(|| missing("", "device_id", "the device's id, a string that is not blank"))?);
    identifiers.extend(named(&attributes, "attributes", "moe_gaid", "gaid", Importance::Incidental)?);
    identifiers.extend(named(&attributes, "attributes", "idfv", "idfv", Importance::Incidental)?);
    let mut draft = reading.draft(identifiers, reading.received_ms)?;

    let mut members = vec![("platform".to_owned(), Value::string(platform))];
    members.extend(opted.map(|opted| ("moe_push_opted".to_owned(), Value::boolean(opted))));
    for name in ["push_id", "model", "app_version", "os_version"] {
        members.extend(attributes.take(name).filter(|value| !value.is_null()).map(|value| (name.to_owned(), value)));
    }
    for name in ["platform", "moe_push_opted", "moe_gaid", "idfv"] {
        attributes.take(name);
    }
    report_unknown(&attributes, &mut draft);
    let mut changes = Changes::new(&reading.rules.limits);
    changes.set("attributes", millstream_model::value::object(members));
    let (changes, reports) = changes.finish("attributes")?;
    draft.device_changes = changes;
    draft.reports.extend(reports);
    Ok(draft)
}

fn report_unknown(attributes: &Object, draft: &mut Draft) {
    for (name, _) in attributes.pairs() {
        let message = "no attribute of a device; the field was dropped";
        draft.reports.push(Refusal::field(Reason::InvalidValue, format!("attributes.{name}"), message));
    }
}

fn merge(record: &Object, reading: &Reading<'_>) -> Result<Draft, Refusal> {
    let required = |member: &str| {
        let found = named(record, "", member, "user_id", Importance::Required)?;
        found.ok_or_else(|| missing("", member, "both `retained_user` and `merged_user`"))
    };
    segment::merge(required("retained_user")?, required("merged_user")?, reading.received_ms, reading)
}

fn delete(record: &Object, reading: &Reading<'_>) -> Result<Draft, Refusal> {
    let kind = data_api_type(required_string(record, "", "identity_type")?);
    let found = named(record, "", "identity_value", &kind, Importance::Required)?;
    let found = found.ok_or_else(|| missing("", "identity_value", "the identifier of whom to delete"))?;
    Ok(Draft { delete: true, ..reading.draft(vec![found], reading.received_ms)? })
}

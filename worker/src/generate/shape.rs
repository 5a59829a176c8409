//! Records in the shapes of the sources.

use super::record::{Intent, Record, Update};
use millstream_model::proto::{Identifier, Source};
use millstream_model::value::format_time;
use serde_json::{Map, Value, json};

/// The record as its source writes it: one line of JSON.
pub(super) fn render(record: &Record) -> String {
    let shaped = match record.source {
        Source::Segment => segment(record),
        Source::DataApi => data_api(record),
        Source::Native | Source::Unspecified => native(record),
    };
    Value::Object(shaped).to_string()
}

fn native(record: &Record) -> Map<String, Value> {
    let mut shaped = Map::new();
    let kind = match &record.intent {
        Intent::Event { .. } => "event",
        Intent::Update(_) => "user",
        Intent::Device { .. } => "device",
        Intent::Merge { .. } => "merge",
        Intent::Delete => "delete",
    };
    put(&mut shaped, "type", json!(kind));
    put(&mut shaped, "message_id", json!(record.message_id));
    if !matches!(record.intent, Intent::Merge { .. }) {
        let mut identifiers = identifiers(record.user.iter(), record.device.as_deref());
        if let (Intent::Device { .. }, Some(device), Some(map)) =
            (&record.intent, &record.device, identifiers.as_object_mut())
        {
            // What an app knows besides: from now on the device is found by it, too.
            put(map, "gaid", json!(format!("ad-{device}")));
        }
        put(&mut shaped, "identifiers", identifiers);
    }
    put(&mut shaped, "time", json!(format_time(record.time)));
    match &record.intent {
        Intent::Event { name, properties, view } => {
            let name = view.map_or_else(|| name.clone(), |view| format!("{view}_viewed"));
            put(&mut shaped, "event", json!(name));
            put(&mut shaped, "properties", Value::Object(properties.clone()));
        }
        Intent::Update(update) => native_changes(&mut shaped, update),
        Intent::Device { set } => put(&mut shaped, "set", Value::Object(set.clone())),
        Intent::Merge { retained, merged } => {
            put(&mut shaped, "retained", json!({"type": retained.r#type, "value": retained.value}));
            put(&mut shaped, "merged", json!({"type": merged.r#type, "value": merged.value}));
        }
        Intent::Delete => {}
    }
    shaped
}

fn native_changes(shaped: &mut Map<String, Value>, update: &Update) {
    if !update.set.is_empty() {
        put(shaped, "set", Value::Object(update.set.clone()));
    }
    if !update.unset.is_empty() {
        put(shaped, "unset", json!(update.unset));
    }
    for (name, lists) in [("add", &update.add), ("remove", &update.remove)] {
        if !lists.is_empty() {
            put(shaped, name, json!(lists));
        }
    }
}

fn data_api(record: &Record) -> Map<String, Value> {
    let mut shaped = Map::new();
    let customer = record.user.iter().find(|identifier| identifier.r#type == "user_id");
    let customer = json!(customer.map(|identifier| &identifier.value));
    match &record.intent {
        Intent::Event { name, properties, .. } => {
            put(&mut shaped, "type", json!("event"));
            put(&mut shaped, "customer_id", customer);
            if let Some(device) = &record.device {
                put(&mut shaped, "device_id", json!(device));
            }
            let platform = if record.device.is_some() { "ANDROID" } else { "web" };
            let mut action = json!({"action": name, "attributes": properties, "platform": platform,
                "user_time": format_time(record.time + record.skew.unwrap_or(0))});
            if let (Some(skew), Some(action)) = (record.skew, action.as_object_mut()) {
                put(action, "current_time", json!(format_time(record.order + skew)));
            }
            put(&mut shaped, "actions", json!([action]));
            let others: Vec<&Identifier> = record.user.iter().filter(|other| other.r#type != "user_id").collect();
            if !others.is_empty() {
                put(&mut shaped, "user_identifiers", identifiers(others.into_iter(), None));
            }
        }
        Intent::Update(update) => {
            put(&mut shaped, "type", json!("customer"));
            put(&mut shaped, "customer_id", customer);
            data_api_changes(&mut shaped, update);
        }
        Intent::Device { set } => {
            put(&mut shaped, "type", json!("device"));
            put(&mut shaped, "customer_id", customer);
            put(&mut shaped, "device_id", json!(record.device));
            put(&mut shaped, "attributes", Value::Object(set.clone()));
        }
        Intent::Merge { retained, merged } => {
            put(&mut shaped, "merged_user", json!(merged.value));
            put(&mut shaped, "retained_user", json!(retained.value));
        }
        Intent::Delete => {
            put(&mut shaped, "identity_type", json!("customer_id"));
            put(&mut shaped, "identity_value", customer);
        }
    }
    put(&mut shaped, "message_id", json!(record.message_id));
    shaped
}

fn data_api_changes(shaped: &mut Map<String, Value>, update: &Update) {
    let mut attributes = update.set.clone();
    for (name, lists) in [("addValueToArrayField", &update.add), ("removeValueFromArrayField", &update.remove)] {
        if !lists.is_empty() {
            put(&mut attributes, name, json!(lists));
        }
    }
    put(shaped, "attributes", Value::Object(attributes));
    if !update.unset.is_empty() {
        let unset: Vec<Value> = update.unset.iter().map(|name| json!({"type": "equals", "attr": name})).collect();
        put(shaped, "unset_attributes", Value::Array(unset));
    }
}

fn segment(record: &Record) -> Map<String, Value> {
    let mut shaped = Map::new();
    let value = |kind: &str| record.user.iter().find(|identifier| identifier.r#type == kind).map(|found| &found.value);
    put(&mut shaped, "messageId", json!(record.message_id));
    for (name, kind) in [("anonymousId", "anonymous_id"), ("userId", "user_id")] {
        if let Some(value) = value(kind) {
            put(&mut shaped, name, json!(value));
        }
    }
    segment_times(&mut shaped, record);
    let mut context = json!({"library": {"name": "millstream-generate", "version": "1"}});
    if let (Some(device), Some(context)) = (&record.device, context.as_object_mut()) {
        put(context, "device", json!({"id": device, "type": "ios"}));
    }
    put(&mut shaped, "context", context);
    match &record.intent {
        Intent::Event { name, properties, view } => {
            put(&mut shaped, "type", json!(view.unwrap_or("track")));
            put(&mut shaped, if view.is_some() { "name" } else { "event" }, json!(name));
            put(&mut shaped, "properties", Value::Object(properties.clone()));
        }
        Intent::Merge { retained, merged } => {
            put(&mut shaped, "type", json!("alias"));
            put(&mut shaped, "previousId", json!(merged.value));
            put(&mut shaped, "userId", json!(retained.value));
        }
        Intent::Update(update) => {
            let mut traits = update.set.clone();
            if let Some(email) = value("email") {
                put(&mut traits, "email", json!(email));
            }
            put(&mut shaped, "type", json!("identify"));
            put(&mut shaped, "traits", Value::Object(traits));
        }
        // Segment has neither; `life` never plans them for it.
        Intent::Device { .. } | Intent::Delete => put(&mut shaped, "type", json!("unsupported")),
    }
    shaped
}

/// A sender with a wrong clock says what its clock showed at both moments; only their difference is right.
fn segment_times(shaped: &mut Map<String, Value>, record: &Record) {
    let Some(skew) = record.skew else {
        return put(shaped, "timestamp", json!(format_time(record.time)));
    };
    put(shaped, "originalTimestamp", json!(format_time(record.time + skew)));
    put(shaped, "sentAt", json!(format_time(record.order + skew)));
}

fn identifiers<'a>(user: impl Iterator<Item = &'a Identifier>, device: Option<&str>) -> Value {
    let mut map: Map<String, Value> =
        user.map(|identifier| (identifier.r#type.clone(), json!(identifier.value))).collect();
    if let Some(device) = device {
        put(&mut map, "device_id", json!(device));
    }
    Value::Object(map)
}

fn put(map: &mut Map<String, Value>, name: &str, value: Value) {
    map.insert(name.to_owned(), value);
}

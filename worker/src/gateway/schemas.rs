//! Schemas of what is sent, for the OpenAPI document: the members that a source reads, with their types. What a value may measure, and what
//! happens to what is beyond, is in the reference of the sources; members that are not named here are ignored.

use millstream_stages::source::{DataApiKind as D, Endpoint, SegmentKind as S};
use serde_json::{Value, json};

/// The schema's name of an endpoint's body.
pub(super) fn body(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::NativeBatch => "NativeBatch",
        Endpoint::DataApi(D::Customer) => "Customer",
        Endpoint::DataApi(D::Event) => "CustomerEvent",
        Endpoint::DataApi(D::Device) => "CustomerDevice",
        Endpoint::DataApi(D::Transition) => "Transition",
        Endpoint::DataApi(D::Merge) => "MergeData",
        Endpoint::DataApi(D::Delete) => "Delete",
        Endpoint::Segment(S::Identify) => "SegmentIdentify",
        Endpoint::Segment(S::Track) => "SegmentTrack",
        Endpoint::Segment(S::Page | S::Screen) => "SegmentView",
        Endpoint::Segment(S::Group) => "SegmentGroup",
        Endpoint::Segment(S::Alias) => "SegmentAlias",
        Endpoint::Segment(S::Batch) => "SegmentBatch",
    }
}

/// All of them.
pub(super) fn all() -> Vec<(&'static str, Value)> {
    let mut schemas = vec![
        (
            "Time",
            json!({"oneOf": [text("ISO 8601"), {"type": "number", "description": "Seconds or milliseconds since 1970"}]}),
        ),
        (
            "Scalar",
            json!({"oneOf": [text("Not blank"), {"type": "integer"}], "description": "An identifier's value, or a message id"}),
        ),
        (
            "Attributes",
            json!({"type": "object", "additionalProperties": true, "description": "Values by name: any JSON"}),
        ),
        (
            "Identifiers",
            json!({"type": "object", "additionalProperties": reference("Scalar"), "description": "Values by type: user_id, anonymous_id, email, phone, device_id, ..."}),
        ),
        (
            "Elements",
            json!({"type": "object", "additionalProperties": {"type": "array", "items": {}}, "description": "Lists of elements by attribute"}),
        ),
        ("Identifier", object(&["type", "value"], json!({"type": text("Its type"), "value": reference("Scalar")}))),
    ];
    schemas.extend(native());
    schemas.extend(data_api());
    schemas.extend(segment());
    schemas
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn text(description: &str) -> Value {
    json!({"type": "string", "description": description})
}

fn list(name: &str) -> Value {
    json!({"type": "array", "items": reference(name)})
}

fn object(required: &[&str], properties: Value) -> Value {
    let members = [("type", json!("object")), ("required", json!(required)), ("properties", properties)];
    Value::Object(members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// An object that has the members of others, too.
fn with(others: &[&Value], required: &[&str], properties: Value) -> Value {
    let mut all = serde_json::Map::new();
    let members = others.iter().filter_map(|other| other.get("properties"));
    members.filter_map(Value::as_object).for_each(|members| all.extend(members.clone()));
    if let Value::Object(own) = properties {
        all.extend(own);
    }
    object(required, Value::Object(all))
}

fn kind(name: &str) -> Value {
    json!({"type": "string", "enum": [name]})
}

fn native() -> Vec<(&'static str, Value)> {
    let names = json!({"type": "array", "items": {"type": "string"}});
    let changes = object(
        &[],
        json!({
            "set": reference("Attributes"), "unset": names, "add": reference("Elements"), "remove": reference("Elements"),
        }),
    );
    let record = object(&[], json!({"message_id": reference("Scalar"), "identifiers": reference("Identifiers")}));
    let of_user = object(&[], json!({"device": reference("Changes"), "update_existing_only": {"type": "boolean"}}));
    let event = json!({
        "type": kind("event"), "event": text("What happened"), "time": reference("Time"), "properties": reference("Attributes"),
    });
    let merge = json!({
        "type": kind("merge"), "message_id": reference("Scalar"),
        "retained": reference("Identifier"), "merged": reference("Identifier"),
    });
    let named = ["type", "identifiers"];
    let kinds = ["NativeEvent", "NativeUser", "NativeDevice", "NativeMerge", "NativeDelete"];
    vec![
        ("NativeEvent", with(&[&record, &changes, &of_user], &["type", "event", "identifiers"], event)),
        ("NativeUser", with(&[&record, &changes, &of_user], &named, json!({"type": kind("user")}))),
        ("NativeDevice", with(&[&record, &changes], &named, json!({"type": kind("device")}))),
        ("NativeMerge", object(&["type", "retained", "merged"], merge)),
        ("NativeDelete", with(&[&record], &named, json!({"type": kind("delete")}))),
        ("NativeRecord", json!({"oneOf": kinds.map(reference)})),
        ("NativeBatch", object(&["batch"], json!({"sent_at": reference("Time"), "batch": list("NativeRecord")}))),
        ("Changes", changes),
    ]
}

fn data_api() -> Vec<(&'static str, Value)> {
    let record = object(
        &[],
        json!({
            "request_id": reference("Scalar"), "customer_id": reference("Scalar"), "user_identifiers": reference("Identifiers"),
        }),
    );
    let rule = object(
        &["attr"],
        json!({
            "attr": text("The name, or a part of it"),
            "type": {"type": "string", "enum": ["equals", "prefix", "suffix", "contains"]},
            "case_sensitive": {"type": "boolean"},
        }),
    );
    let action = object(
        &["action"],
        json!({
            "action": text("What happened"), "attributes": reference("Attributes"), "platform": text("ANDROID, iOS, web, TV or unknown"),
            "app_version": text(""), "user_time": reference("Time"), "current_time": reference("Time"),
            "user_timezone_offset": {"type": "integer", "minimum": -54_000, "maximum": 54_000, "description": "Seconds"},
        }),
    );
    let customer = json!({
        "type": kind("customer"), "attributes": reference("Attributes"),
        "unset_attributes": list("UnsetRule"), "update_existing_only": {"type": "boolean"},
    });
    let event = json!({"type": kind("event"), "device_id": reference("Scalar"), "actions": list("Action")});
    let device =
        json!({"type": kind("device"), "device_id": reference("Scalar"), "attributes": reference("DeviceAttributes")});
    let attributes = object(
        &["platform", "push_id"],
        json!({
            "platform": text("ANDROID, iOS, web, TV or unknown"), "push_id": text(""), "model": text(""), "app_version": text(""),
            "os_version": text(""), "moe_gaid": text(""), "idfv": text(""),
        }),
    );
    let pair = object(
        &["merged_user", "retained_user"],
        json!({
            "merged_user": reference("Scalar"), "retained_user": reference("Scalar"),
        }),
    );
    let delete = json!({"identity_type": text("customer_id, email, ..."), "identity_value": reference("Scalar")});
    let elements_of = ["Customer", "CustomerEvent", "CustomerDevice"];
    let elements = json!({"type": kind("transition"), "elements": list("Element")});
    vec![
        ("Customer", with(&[&record], &["customer_id"], customer)),
        ("CustomerEvent", with(&[&record], &["actions"], event)),
        ("CustomerDevice", with(&[&record], &["customer_id", "device_id", "attributes"], device)),
        ("DeviceAttributes", attributes),
        ("UnsetRule", rule),
        ("Action", action),
        ("Element", json!({"anyOf": elements_of.map(reference)})),
        ("Transition", object(&["elements"], elements)),
        ("MergeData", object(&["merge_data"], json!({"merge_data": {"type": "array", "items": pair}}))),
        ("Delete", object(&["identity_type", "identity_value"], delete)),
    ]
}

fn segment() -> Vec<(&'static str, Value)> {
    let call = object(
        &[],
        json!({
            "messageId": reference("Scalar"), "userId": reference("Scalar"), "anonymousId": reference("Scalar"),
            "context": reference("Attributes"), "integrations": reference("Attributes"), "timestamp": reference("Time"),
            "originalTimestamp": reference("Time"), "sentAt": reference("Time"), "type": text("In a batch: which call it is"),
        }),
    );
    let traits = json!({"traits": reference("Attributes")});
    let properties = reference("Attributes");
    let view = json!({"name": text("Of the page or screen"), "category": text(""), "properties": properties});
    let group = json!({"groupId": reference("Scalar"), "traits": reference("Attributes")});
    let batch = json!({"batch": list("SegmentCall"), "context": reference("Attributes"), "sentAt": reference("Time")});
    let calls = ["SegmentIdentify", "SegmentTrack", "SegmentView", "SegmentGroup", "SegmentAlias"];
    vec![
        ("SegmentIdentify", with(&[&call], &[], traits)),
        ("SegmentTrack", with(&[&call], &["event"], json!({"event": text("What happened"), "properties": properties}))),
        ("SegmentView", with(&[&call], &[], view)),
        ("SegmentGroup", with(&[&call], &["groupId"], group)),
        ("SegmentAlias", with(&[&call], &["userId", "previousId"], json!({"previousId": reference("Scalar")}))),
        ("SegmentCall", json!({"anyOf": calls.map(reference)})),
        ("SegmentBatch", object(&["batch"], batch)),
    ]
}

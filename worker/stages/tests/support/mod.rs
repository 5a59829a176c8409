//! A shard's state in memory, and readable forms of what the stages put out.

use millstream_model::id::hex;
use millstream_model::key::shard_of;
use millstream_model::proto::change::Op;
use millstream_model::proto::{Action, Change, Envelope, Identifier, Stamp};
use millstream_model::value::format_time;
use millstream_stages::action::{ActionStage, Record};
use millstream_stages::source::{Accepted, Endpoint, Limits, Request, split};
use millstream_stages::unify::{Unify, UnifyConfig, UnifyValue};
use millstream_stages::{At, Input, MemoryState, Outbox, Stage};
use serde_json::{Value, json};

/// When everything in these tests is received: 2023-11-14T22:13:20Z.
pub(crate) const NOW: i64 = 1_700_000_000_000;

/// As many as there are of each stage.
pub(crate) const SHARDS: u32 = 4;

pub(crate) type Memory = MemoryState<UnifyValue>;
/// The state of all shards of the action stage.
pub(crate) type Users = MemoryState<millstream_stages::action::Value>;

pub(crate) fn request<'a>(endpoint: Endpoint, body: &'a [u8]) -> Request<'a> {
    Request {
        tenant: "acme",
        endpoint,
        body,
        ndjson: false,
        idempotency_key: Some("req-1"),
        received_ms: NOW - 5,
        trace: None,
    }
}

/// Splits with default limits; ids count up.
pub(crate) fn split_default(request: &Request<'_>) -> Result<Vec<Accepted>, millstream_model::reject::Refusal> {
    let mut next = 0;
    split(request, &Limits::default(), &mut || {
        next += 1;
        format!("made-{next}")
    })
}

/// The position of a record that entered the log at `time_ms`.
pub(crate) fn at(envelope: &Envelope, time_ms: i64, offset: u64, shards: u32) -> At {
    At {
        input: Input::Ingress,
        partition: shard_of(u16::try_from(envelope.group).unwrap_or(0), shards),
        stamp: Stamp { time_ms: time_ms.try_into().unwrap(), offset, index: 0 },
        batch_ms: time_ms.try_into().unwrap(),
        generation: 1,
        shards,
    }
}

/// Processes envelopes, all of them at [`NOW`], in one state.
pub(crate) fn unify(envelopes: &[Envelope], state: &mut Memory) -> Outbox {
    let stage = Unify::new(&UnifyConfig::default());
    let mut out = Outbox::default();
    for (offset, envelope) in envelopes.iter().enumerate() {
        let at = at(envelope, NOW, offset as u64, SHARDS);
        stage.process(envelope.clone(), &at, state, &mut out).unwrap();
    }
    out
}

/// Applies actions one after the other, with all that they lead to.
pub(crate) fn act(actions: Vec<Action>, state: &mut Users, out: &mut Outbox) {
    let stage = ActionStage::default();
    for action in actions {
        step(&stage, Record::Action(Box::new(action)), state, out);
    }
}

/// A record of the action stage at the shard of its key group, then the messages that it sends.
pub(crate) fn step(stage: &ActionStage, record: Record, state: &mut Users, out: &mut Outbox) {
    let (input, group) = match &record {
        Record::Action(action) => (Input::Actions, action.group),
        Record::Exchange(message) => (Input::Exchange, message.group),
    };
    let partition = shard_of(u16::try_from(group).unwrap(), SHARDS);
    let stamp = Stamp { time_ms: NOW as u64, ..Stamp::default() };
    let at = At { input, partition, stamp, batch_ms: NOW as u64, generation: 1, shards: SHARDS };
    stage.process(record, &at, state, out).unwrap();
    for message in std::mem::take(&mut out.exchange) {
        step(stage, Record::Exchange(Box::new(message)), state, out);
    }
}

pub(crate) fn envelopes(accepted: &[Accepted]) -> Vec<Envelope> {
    let envelope = |accepted: &Accepted| match accepted {
        Accepted::Envelope(envelope) => Some(envelope.clone()),
        Accepted::Refused { .. } => None,
    };
    accepted.iter().filter_map(envelope).collect()
}

pub(crate) fn accepted_json(accepted: &Accepted) -> Value {
    match accepted {
        Accepted::Refused { message_id, refusal } => json!({"refused": {
            "message_id": message_id, "reason": refusal.reason.code(), "field": refusal.field, "message": refusal.message,
        }}),
        Accepted::Envelope(envelope) => {
            let mut shown = json!({
                "kind": envelope.kind, "message_id": envelope.message_id, "group": envelope.group,
                "body": serde_json::from_slice::<Value>(&envelope.body).unwrap(),
            });
            let members = shown.as_object_mut().unwrap();
            members.extend(envelope.sent_ms.map(|sent| ("sent".to_owned(), json!(format_time(sent)))));
            if !envelope.context.is_empty() {
                members.insert("context".into(), serde_json::from_slice(&envelope.context).unwrap());
            }
            shown
        }
    }
}

pub(crate) fn action_json(action: &Action) -> Value {
    let mut shown = serde_json::Map::new();
    let mut put = |name: &str, value: Value| {
        let is_default = value == json!([]) || value == Value::Null || value == json!(false);
        if !is_default {
            shown.insert(name.to_owned(), value);
        }
    };
    let names = |identifiers: &[Identifier]| json!(identifiers.iter().map(Identifier::to_string).collect::<Vec<_>>());
    put("record_id", json!(hex(&action.record_id)));
    put("message_id", json!(action.message_id));
    put("kind", json!(action.kind));
    put("users", names(&action.user_identifiers));
    put("devices", names(&action.device_identifiers));
    put("time", json!(format_time(action.time_ms)));
    put("user_changes", changes_json(&action.user_changes));
    put("device_changes", changes_json(&action.device_changes));
    let properties = |event: &millstream_model::proto::Event| {
        let pairs = event.properties.iter().cloned().map(|member| (member.name, member.value.unwrap()));
        json!({"name": event.name, "properties": millstream_model::value::object(pairs)})
    };
    put("event", action.event.as_ref().map(properties).unwrap_or_default());
    let merge = |merge: &millstream_model::proto::Merge| json!({"retained": merge.retained.as_ref().unwrap().to_string(), "merged": merge.merged.as_ref().unwrap().to_string()});
    put("merge", action.merge.as_ref().map(merge).unwrap_or_default());
    put("delete", json!(action.delete));
    put("update_existing_only", json!(action.update_existing_only));
    put("uncounted", json!(action.uncounted));
    Value::Object(shown)
}

/// Timestamps are shown as `@2023-11-14T22:13:20Z`, to tell them from strings.
fn changes_json(changes: &[Change]) -> Value {
    let shown = changes.iter().map(|change| match change.op.as_ref().unwrap() {
        Op::Set(value) => json!({"set": change.name, "to": value_json(value)}),
        Op::Unset(_) => json!({"unset": change.name}),
        Op::Add(list) => {
            json!({"add_to": change.name, "elements": list.items.iter().map(value_json).collect::<Vec<_>>()})
        }
        Op::Remove(list) => {
            json!({"remove_from": change.name, "elements": list.items.iter().map(value_json).collect::<Vec<_>>()})
        }
        Op::UnsetMatching(pattern) => {
            json!({"unset_matching": pattern.kind().as_str_name(), "pattern": pattern.pattern,
            "case_sensitive": pattern.case_sensitive})
        }
    });
    json!(shown.collect::<Vec<_>>())
}

fn value_json(value: &millstream_model::proto::Value) -> Value {
    match value.type_name() {
        "timestamp" => json!(format!("@{}", serde_json::to_value(value).unwrap().as_str().unwrap())),
        _ => serde_json::to_value(value).unwrap(),
    }
}

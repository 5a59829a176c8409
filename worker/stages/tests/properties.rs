//! Whatever is sent: nothing panics, the sums add up (I2), the same input has the same outcome, and gateway and unify agree on the
//! routing identifier (I3).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

#[allow(dead_code, reason = "shared with the golden tests")]
mod support;

use millstream_model::proto::Envelope;
use millstream_model::reject::Reason;
use millstream_stages::source::{Accepted, DataApiKind, Endpoint, SegmentKind};
use millstream_stages::{Outbox, Stage};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Value, json};
use support::{Memory, NOW, at, envelopes, request, split_default, unify};

const ENDPOINTS: [Endpoint; 14] = [
    Endpoint::NativeBatch,
    Endpoint::DataApi(DataApiKind::Customer),
    Endpoint::DataApi(DataApiKind::Event),
    Endpoint::DataApi(DataApiKind::Device),
    Endpoint::DataApi(DataApiKind::Transition),
    Endpoint::DataApi(DataApiKind::Merge),
    Endpoint::DataApi(DataApiKind::Delete),
    Endpoint::Segment(SegmentKind::Identify),
    Endpoint::Segment(SegmentKind::Track),
    Endpoint::Segment(SegmentKind::Page),
    Endpoint::Segment(SegmentKind::Screen),
    Endpoint::Segment(SegmentKind::Group),
    Endpoint::Segment(SegmentKind::Alias),
    Endpoint::Segment(SegmentKind::Batch),
];

/// The bodies of all fixtures: where mutations start.
fn bodies() -> Vec<Value> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let mut bodies = Vec::new();
    for folder in ["native", "data_api", "segment"] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if !path.to_str().unwrap().ends_with(".golden.json") {
                let fixture: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
                bodies.push(fixture["body"].clone());
            }
        }
    }
    bodies.sort_by_key(Value::to_string);
    bodies
}

fn odd_value() -> impl Strategy<Value = Value> {
    let names =
        ["userId", "null", "2023-02-30", "1e999", "\u{0}", "-0", "[object Object]", " ", "9999-12-31T23:59:60Z"];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        select(names.to_vec()).prop_map(Value::from),
        Just(json!("x".repeat(3000))),
        Just(json!(format!("http://{}", "x".repeat(3000)))),
        Just(json!(vec![1; 300])),
    ];
    leaf.prop_recursive(4, 30, 5, |inner| {
        let members = prop::collection::btree_map("[a-z_ .$]{0,6}", inner.clone(), 0..5);
        prop_oneof![vec(inner, 0..5).prop_map(Value::from), members.prop_map(|map| json!(map))]
    })
}

/// Replaces the value at the `steps`-th place below, or removes a member.
fn mutate(value: &mut Value, path: &[Index], with: &Value, remove: bool) {
    let Some((step, rest)) = path.split_first() else {
        *value = with.clone();
        return;
    };
    match value {
        Value::Object(map) if !map.is_empty() => {
            let name = map.keys().nth(step.index(map.len())).unwrap().clone();
            if rest.is_empty() && remove {
                map.remove(&name);
            } else {
                mutate(&mut map[&name], rest, with, remove);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            let index = step.index(items.len());
            mutate(&mut items[index], rest, with, remove);
        }
        other => *other = with.clone(),
    }
}

/// One endpoint, one body.
fn mutated() -> impl Strategy<Value = (Endpoint, Vec<u8>)> {
    let mutation = (vec(any::<Index>(), 0..6), odd_value(), any::<bool>());
    let bytes = vec((any::<Index>(), any::<u8>()), 0..3);
    (select(ENDPOINTS.to_vec()), select(bodies()), vec(mutation, 0..4), bytes).prop_map(
        |(endpoint, mut body, mutations, bytes)| {
            for (path, with, remove) in &mutations {
                mutate(&mut body, path, with, *remove);
            }
            let mut body = body.to_string().into_bytes();
            for (index, byte) in bytes {
                let at = index.index(body.len());
                body[at] = byte;
            }
            (endpoint, body)
        },
    )
}

/// Everything about an outcome that can be compared.
fn shown(out: &Outbox) -> String {
    format!("{:?} {:?} {:?} {:?} {:?}", out.actions, out.rejects, out.usage, out.reasons, out.spans)
}

fn check(endpoint: Endpoint, body: &[u8], ndjson: bool) {
    let mut request = request(endpoint, body);
    request.ndjson = ndjson;
    let accepted = split_default(&request);
    assert_eq!(accepted, split_default(&request), "splitting is not deterministic");
    let Ok(accepted) = accepted else { return };
    for one in &accepted {
        if let Accepted::Refused { refusal, .. } = one {
            assert!(!refusal.message.is_empty());
        }
    }
    let envelopes = envelopes(&accepted);
    let out = unify(&envelopes, &mut Memory::default());
    assert_eq!(shown(&out), shown(&unify(&envelopes, &mut Memory::default())), "unify is not deterministic");
    add_up(&out, envelopes.len());
    let misrouted = out.reasons.iter().find(|rejected| rejected.reason == Reason::Misrouted);
    assert_eq!(misrouted, None, "gateway and unify route differently");
}

fn add_up(out: &Outbox, records: usize) {
    let sum = |field: fn(&millstream_model::proto::Usage) -> u64| out.usage.values().map(field).sum::<u64>();
    let counted = out.actions.iter().filter(|action| !action.uncounted).count() as u64;
    assert_eq!(sum(|usage| usage.accepted), records as u64);
    assert_eq!(sum(|usage| usage.accepted), counted + sum(|usage| usage.duplicates) + sum(|usage| usage.rejects));
    assert_eq!(out.reasons.len() as u64, sum(|usage| usage.rejects));
    let partial = |message: &millstream_stages::PublicMessage| {
        let reject: Value = serde_json::from_slice(&message.payload).unwrap();
        reject["partial"] == true
    };
    assert!(out.rejects.iter().filter(|message| !partial(message)).count() as u64 >= sum(|usage| usage.rejects));
    let mut ids: Vec<_> = out.actions.iter().map(|action| &action.record_id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), out.actions.len(), "two actions share a record id");
    for action in &out.actions {
        let has_effect = action.event.is_some() || action.merge.is_some() || !action.user_identifiers.is_empty();
        assert!(has_effect || !action.device_identifiers.is_empty(), "an action about nobody: {action:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_do_no_harm(endpoint in select(ENDPOINTS.to_vec()), body in vec(any::<u8>(), 0..200), ndjson: bool) {
        check(endpoint, &body, ndjson);
    }

    #[test]
    fn mutated_requests_do_no_harm((endpoint, body) in mutated(), ndjson: bool) {
        check(endpoint, &body, ndjson);
    }

    #[test]
    fn arbitrary_envelopes_do_no_harm(
        (_, body) in mutated(),
        tenant in "[a-z_\u{0}]{0,3}",
        source in -1..6i32,
        kind in select(vec!["event", "user", "merge", "alias", "identify", "customer", "delete", "unknown", "\u{0}"]),
        message_id in "[ab]{0,1}",
        group in 0..5000u32,
        context in vec(any::<u8>(), 0..8),
        sent_ms in any::<Option<i64>>(),
        time_ms in any::<u64>(),
    ) {
        let record = Envelope { tenant, source, kind: kind.into(), message_id, group, body: body.into(), context: context.into(),
            sent_ms, ..Envelope::default() };
        let stage = millstream_stages::unify::Unify::default();
        let (mut state, mut out) = (Memory::default(), Outbox::default());
        let mut place = at(&record, NOW, 0, 1);
        place.stamp.time_ms = time_ms;
        for _ in 0..2 {
            let mut keys = Vec::new();
            stage.keys(&record, &place, &[], &mut keys);
            stage.process(record.clone(), &place, &mut state, &mut out).unwrap();
        }
        prop_assert_eq!(out.usage.values().map(|usage| usage.accepted).sum::<u64>(), 2);
    }
}

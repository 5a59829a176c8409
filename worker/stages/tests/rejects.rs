//! What a reject of the action stage keeps of its record is enough to send it again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

#[allow(dead_code, reason = "shared with the golden tests")]
mod support;

use millstream_model::action::readable;
use millstream_model::key::{group_of, shard_of};
use millstream_model::proto::{Action, Exchange, Identifier, Merge, Resolve, Stamp, change::Op, exchange::Body};
use millstream_model::reject::{MAX_ACTION, Reason};
use millstream_stages::Outbox;
use millstream_stages::action::ActionStage;
use millstream_stages::source::{DataApiKind, Endpoint, SegmentKind};
use serde_json::{Value, json};
use support::{Memory, Users, act, envelopes, request, split_default, unify};

/// Every action that the fixtures lead to, whatever endpoint they are sent to.
fn actions() -> Vec<Action> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let folders = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    let files = folders.flat_map(|folder| std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()));
    let mut files: Vec<_> = files.filter(|path| !path.to_str().unwrap().ends_with(".golden.json")).collect();
    files.sort();
    let kinds =
        [DataApiKind::Customer, DataApiKind::Event, DataApiKind::Device, DataApiKind::Merge, DataApiKind::Delete];
    let endpoints = kinds.map(Endpoint::DataApi).into_iter();
    let endpoints: Vec<_> = endpoints.chain([Endpoint::NativeBatch, Endpoint::Segment(SegmentKind::Batch)]).collect();
    let sent = files.iter().flat_map(|path| {
        let fixture: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        endpoints.iter().flat_map(move |endpoint| send(*endpoint, &fixture["body"].to_string())).collect::<Vec<_>>()
    });
    sent.collect()
}

fn send(endpoint: Endpoint, body: &str) -> Vec<Action> {
    let Ok(accepted) = split_default(&request(endpoint, body.as_bytes())) else { return Vec::new() };
    unify(&envelopes(&accepted), &mut Memory::default()).actions
}

/// The native shape has no member for these.
fn is_native(action: &Action) -> bool {
    let all: Vec<&Identifier> = action.user_identifiers.iter().chain(&action.device_identifiers).collect();
    let mut types: Vec<&str> = all.iter().map(|identifier| identifier.r#type.as_str()).collect();
    types.sort_unstable();
    types.dedup();
    let matching = action.user_changes.iter().any(|change| matches!(change.op, Some(Op::UnsetMatching(_))));
    !matching && (types.len() == all.len() || action.merge.is_some())
}

/// What of an action does not depend on how it was sent.
fn meaning(action: &Action) -> Action {
    let sorted = |identifiers: &[Identifier]| {
        let mut identifiers = identifiers.to_vec();
        identifiers.sort();
        identifiers
    };
    Action {
        user_identifiers: sorted(&action.user_identifiers),
        device_identifiers: sorted(&action.device_identifiers),
        time_ms: action.time_ms,
        user_changes: action.user_changes.clone(),
        device_changes: action.device_changes.clone(),
        event: action.event.clone(),
        merge: action.merge.clone(),
        delete: action.delete,
        update_existing_only: action.update_existing_only,
        ..Action::default()
    }
}

#[test]
fn an_action_that_is_sent_again_as_it_is_shown_is_the_same_action() {
    let mut kinds = std::collections::BTreeMap::new();
    for action in actions().iter().filter(|action| is_native(action)) {
        let (shown, cut) = readable(action, MAX_ACTION);
        assert!(!cut);
        let again = send(Endpoint::NativeBatch, &json!({"batch": [shown]}).to_string());
        assert_eq!(again.len(), 1, "{shown}");
        assert_eq!(meaning(&again[0]), meaning(action), "{shown}");
        *kinds.entry(shown["type"].as_str().unwrap().to_owned()).or_insert(0) += 1;
    }
    assert_eq!(kinds.keys().collect::<Vec<_>>(), ["delete", "device", "event", "merge", "user"], "{kinds:?}");
}

fn rejected(message: Exchange) -> Value {
    let mut out = Outbox::default();
    let record = millstream_stages::action::Record::Exchange(Box::new(message));
    support::step(&ActionStage::default(), record, &mut Users::default(), &mut out);
    assert_eq!((out.usage["acme"].rejects, out.rejects.len()), (1, 1));
    serde_json::from_slice(&out.rejects[0].payload).unwrap()
}

fn action(identifiers: &[Identifier]) -> Action {
    Action {
        tenant: "acme".into(),
        group: u32::from(group_of("acme", &identifiers[0])),
        stamp: Some(Stamp { time_ms: 5, offset: 42, index: 7 }),
        record_id: vec![1; 16],
        user_identifiers: identifiers.to_vec(),
        ..Action::default()
    }
}

/// The place is that of the routing identifier's partition, however far the action has come since.
#[test]
fn a_reject_says_where_its_bytes_are() {
    let (routing, via) = (Identifier::new("user_id", "42"), Identifier::new("email", "a@b"));
    let record = action(&[routing.clone(), via.clone()]);
    let group = group_of("acme", &via);
    let partition = |group| shard_of(group, support::SHARDS);
    assert_ne!(partition(group), partition(group_of("acme", &routing)), "choose others");
    let body = Body::Resolve(Resolve { via: Some(via), action: Some(record), returned: false });
    let lost = Exchange { tenant: "acme".into(), group: u32::from(group), hops: 100_001, body: Some(body) };
    let reject = rejected(lost);
    assert_eq!((&reject["reason"], &reject["stage"]), (&json!(Reason::Unresolved.code()), &json!("action")));
    let place = json!({"partition": partition(group_of("acme", &routing)), "offset": 42, "index": 7});
    assert_eq!(reject["ingress"], place);
    assert_eq!(reject["action"]["identifiers"], json!({"user_id": "42", "email": "a@b"}));
    assert_eq!(reject["original"], Value::Null);
}

/// Unify lets none through; if one came nevertheless, it must not be lost without a trace.
#[test]
fn a_merge_of_a_user_with_itself_is_shown_whole() {
    let id = Identifier::new("user_id", "42");
    let merge = Merge { retained: Some(id.clone()), merged: Some(id.clone()) };
    let mut out = Outbox::default();
    act(vec![Action { merge: Some(merge), ..action(&[id]) }], &mut Users::default(), &mut out);
    let reject: Value = serde_json::from_slice(&out.rejects[0].payload).unwrap();
    let side = json!({"type": "user_id", "value": "42"});
    assert_eq!((&reject["reason"], &reject["action"]["type"]), (&json!("invalid_merge"), &json!("merge")));
    assert_eq!((&reject["action"]["retained"], &reject["action"]["merged"]), (&side, &side));
}

use super::*;
use crate::generate::truth::{DeviceTruth, EventTruth, Seen, Span};
use serde_json::json;

fn set(values: &[&str]) -> BTreeSet<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

fn span(from_ms: i64, to_ms: Option<i64>) -> Span {
    Span { from_ms, to_ms }
}

fn event_truth() -> EventTruth {
    EventTruth {
        name: "Opened".into(),
        source: "native".into(),
        properties: [("price".to_owned(), json!(2.0))].into_iter().collect(),
        device: Some("d".into()),
        time: span(3_000, Some(3_000)),
        lag_ms: Some(1_000),
    }
}

fn device_truth() -> DeviceTruth {
    DeviceTruth {
        attributes: [("platform".to_owned(), vec![json!("ios"), json!("android")])].into(),
        users: set(&["user_id=1"]),
        seen: Some(Seen::at(span(3_000, Some(3_000)))),
    }
}

fn truth() -> Truth {
    let user = UserTruth {
        identifiers: [("user_id".to_owned(), set(&["1"])), ("anonymous_id".to_owned(), set(&["a", "b"]))].into(),
        attributes: [
            ("plan".to_owned(), json!("pro")),
            ("tags".to_owned(), json!(["x", "y"])),
            ("credit".to_owned(), json!(2)),
            ("none".to_owned(), json!([])),
        ]
        .into(),
        devices: set(&["d"]),
        events: vec!["e1".into(), "e2".into()],
        seen: Some(Seen { first: span(1_000, Some(1_000)), last: span(5_000, None) }),
    };
    let deleted = UserTruth {
        identifiers: [("user_id".to_owned(), set(&["2"]))].into(),
        events: vec!["e3".into()],
        ..UserTruth::default()
    };
    let tenant = TenantTruth {
        sent: 9,
        accepted: 8,
        refused: [("too_deep".to_owned(), 1)].into(),
        duplicates: 1,
        rejects: [("too_old".to_owned(), 2)].into(),
        effects: 5,
        events: 3,
        users: vec![user],
        deleted: vec![deleted],
        details: [("e1".to_owned(), event_truth())].into(),
        devices: [("d".to_owned(), device_truth())].into(),
    };
    Truth { seed: 1, now: String::new(), tenants: [("acme".to_owned(), tenant)].into() }
}

#[allow(clippy::needless_pass_by_value)] // json!() at every call
fn document(id: &str, fields: Value) -> DocumentSeen {
    serde_json::from_value(json!({"_id": id, "generation": 1, "revision": 3, "deleted": false, "fields": fields}))
        .unwrap()
}

#[allow(clippy::needless_pass_by_value)] // json!() at every call
fn event(message_id: &str, identifiers: Value) -> EventSeen {
    let user = json!({"id": "u", "identifiers": identifiers});
    let event = json!({"id": message_id, "tenant": "acme", "message_id": message_id, "user": user, "event": "Opened",
        "source": "native", "time": "1970-01-01T00:00:03Z", "received": "1970-01-01T00:00:04Z",
        "properties": {"price": 2}, "device": {"id": "d_1", "identifiers": {"device_id": "d"}}});
    serde_json::from_value(event).unwrap()
}

fn reject(id: &str, partial: bool) -> RejectSeen {
    RejectSeen { id: id.into(), tenant: "acme".into(), reason: "too_old".into(), partial }
}

fn right() -> Snapshot {
    let usage = |stage: &str, accepted, duplicates, rejects, effects, events| UsageRow {
        tenant: "acme".into(),
        stage: stage.into(),
        accepted,
        duplicates,
        rejects,
        effects,
        events,
        ..UsageRow::default()
    };
    let fields = json!({"identifiers": {"user_id": ["1"], "anonymous_id": ["b", "a"]},
        "attributes": {"plan": "pro", "tags": ["y", "x"], "credit": 2.0}, "devices": ["d_1"],
        "first_seen": "1970-01-01T00:00:01Z", "last_seen": "1970-01-01T00:00:09Z"});
    let device = json!({"identifiers": {"device_id": ["d"]}, "attributes": {"platform": "ios"},
        "first_seen": "1970-01-01T00:00:03Z", "last_seen": "1970-01-01T00:00:03Z",
        "user": {"type": "user_id", "value": "1"}});
    let mut gone = document("u_2", json!({}));
    gone.deleted = true;
    Snapshot {
        answers: [("acme".to_owned(), Answers { accepted: 8, refused: [("too_deep".to_owned(), 1)].into() })].into(),
        usage: vec![usage("unify", 8, 1, 2, 0, 0), usage("action", 0, 0, 0, 5, 3)],
        events: vec![
            event("e1", json!({"anonymous_id": ["a"]})),
            event("e2", json!({"anonymous_id": ["a"], "user_id": ["1"]})),
            event("e3", json!({"user_id": ["2"]})),
        ],
        rejects: vec![reject("r1", false), reject("r2", false), reject("r3", true)],
        users: [("acme".to_owned(), vec![document("u_1", fields), gone])].into(),
        devices: [("acme".to_owned(), vec![document("d_1", device)])].into(),
    }
}

/// What is said when there are not as many tombstones as there are people who were deleted.
const TOMBSTONES: &str = "users: tombstones of nobody's merge";

/// The subjects that are reported after a change to a right snapshot.
fn subjects(doctor: impl Fn(&mut Snapshot)) -> Vec<String> {
    let mut snapshot = right();
    doctor(&mut snapshot);
    verify(&truth(), &snapshot).into_iter().map(|mismatch| mismatch.subject).collect()
}

fn fields(snapshot: &mut Snapshot) -> &mut Map<String, Value> {
    &mut snapshot.users.get_mut("acme").unwrap()[0].fields
}

#[test]
fn what_is_right_is_right() {
    assert_eq!(verify(&truth(), &right()), []);
}

#[test]
fn other_tenants_are_not_looked_at() {
    let probe = |snapshot: &mut Snapshot| {
        snapshot.usage.push(UsageRow { tenant: "probe".into(), effects: 9, ..UsageRow::default() });
        snapshot.events.push(EventSeen { tenant: "probe".into(), ..event("x", json!({})) });
    };
    assert_eq!(subjects(probe), Vec::<String>::new());
}

#[test]
fn a_lost_or_doubled_event_is_found() {
    assert_eq!(subjects(|snapshot| drop(snapshot.events.remove(0))), ["event e1"]);
    assert_eq!(subjects(|snapshot| snapshot.events.push(snapshot.events[0].clone())), ["event e1"]);
    assert_eq!(subjects(|snapshot| snapshot.events.push(event("e9", json!({})))), ["event e9"]);
}

#[test]
fn an_event_of_a_stranger_is_found() {
    let doctor = |snapshot: &mut Snapshot| snapshot.events[0] = event("e1", json!({"user_id": ["2"]}));
    assert_eq!(subjects(doctor), ["event e1"]);
}

#[test]
fn sums_that_are_off_by_one_are_found() {
    assert_eq!(subjects(|snapshot| snapshot.usage[0].accepted += 1), ["usage: accepted", "usage: in progress"]);
    assert_eq!(subjects(|snapshot| snapshot.usage[1].effects -= 1), ["usage: effects", "usage: in progress"]);
    assert_eq!(subjects(|snapshot| snapshot.usage[0].duplicates += 1), ["usage: duplicates", "usage: in progress"]);
    assert_eq!(subjects(|snapshot| snapshot.usage[1].events += 1), ["usage: events"]);
    assert_eq!(subjects(|snapshot| snapshot.usage.clear()).len(), 5);
}

#[test]
fn a_missing_repeated_or_other_reject_is_found() {
    assert_eq!(subjects(|snapshot| drop(snapshot.rejects.remove(0))), ["rejects by reason"]);
    assert_eq!(subjects(|snapshot| snapshot.rejects[0].reason = "too_deep".into()), ["rejects by reason"]);
    let repeated = subjects(|snapshot| snapshot.rejects.push(reject("r3", true)));
    assert_eq!(repeated, ["rejects"]);
}

#[test]
fn a_wrong_answer_is_found() {
    let accepted = |snapshot: &mut Snapshot| snapshot.answers.get_mut("acme").unwrap().accepted -= 1;
    assert_eq!(subjects(accepted), ["answers: accepted"]);
    let refused = |snapshot: &mut Snapshot| snapshot.answers.get_mut("acme").unwrap().refused.clear();
    assert_eq!(subjects(refused), ["answers: refused"]);
}

#[test]
fn a_person_in_two_documents_is_found() {
    let doctor = |snapshot: &mut Snapshot| {
        fields(snapshot).insert("identifiers".into(), json!({"user_id": ["1"], "anonymous_id": ["a"]}));
        let rest = document("u_3", json!({"identifiers": {"anonymous_id": ["b"]}, "attributes": {}}));
        snapshot.users.get_mut("acme").unwrap().push(rest);
    };
    let mut snapshot = right();
    doctor(&mut snapshot);
    let mismatches = verify(&truth(), &snapshot);
    assert_eq!(mismatches.len(), 1);
    assert!(mismatches[0].found.contains("2: u_1, u_3"), "{}", mismatches[0]);
}

#[test]
fn missing_added_and_unexpected_identifiers_are_found() {
    let user = "user user_id=1 anonymous_id=a anonymous_id=b";
    let lost = |snapshot: &mut Snapshot| drop(fields(snapshot).insert("identifiers".into(), json!({"user_id": ["1"]})));
    assert_eq!(subjects(lost), [user]);
    let foreign = json!({"user_id": ["1"], "anonymous_id": ["a", "b", "c"]});
    assert_eq!(subjects(|snapshot| drop(fields(snapshot).insert("identifiers".into(), foreign.clone()))), [user]);
    assert_eq!(subjects(|snapshot| snapshot.users.clear()), [user, TOMBSTONES]);
    let stranger = document("u_4", json!({"identifiers": {"user_id": ["stranger"]}}));
    let doctor = |snapshot: &mut Snapshot| snapshot.users.get_mut("acme").unwrap().push(stranger.clone());
    assert_eq!(subjects(doctor), ["user document u_4"]);
}

#[test]
fn two_people_in_one_document_are_found() {
    let mut truth = truth();
    let other = UserTruth {
        identifiers: [("user_id".to_owned(), set(&["7"]))].into(),
        attributes: truth.tenants["acme"].users[0].attributes.clone(),
        devices: set(&["d"]),
        ..UserTruth::default()
    };
    truth.tenants.get_mut("acme").unwrap().users.push(other);
    let mut snapshot = right();
    let both = json!({"user_id": ["1", "7"], "anonymous_id": ["a", "b"]});
    fields(&mut snapshot).insert("identifiers".into(), both);
    assert_eq!(verify(&truth, &snapshot).len(), 2);
}

#[test]
fn a_deleted_person_who_is_still_there_is_found() {
    let back = document("u_2", json!({"identifiers": {"user_id": ["2"]}}));
    let doctor = |snapshot: &mut Snapshot| snapshot.users.get_mut("acme").unwrap()[1] = back.clone();
    assert_eq!(subjects(doctor), ["deleted user user_id=2", TOMBSTONES]);
}

#[test]
fn wrong_missing_and_additional_attributes_are_found() {
    let attribute = |name: &str, value: Value| {
        subjects(|snapshot| {
            fields(snapshot)["attributes"][name] = value.clone();
        })
    };
    let user = "user user_id=1 anonymous_id=a anonymous_id=b: attribute";
    assert_eq!(attribute("plan", json!("free")), [format!("{user} plan")]);
    assert_eq!(attribute("tags", json!(["x"])), [format!("{user} tags")]);
    assert_eq!(attribute("slipped_through", json!(true)), [format!("{user} slipped_through")]);
    assert_eq!(attribute("plan", Value::Null), [format!("{user} plan")]);
    assert_eq!(attribute("none", json!([])), Vec::<String>::new());
}

#[test]
fn documents_that_come_twice_and_devices_that_do_not_come_are_found() {
    let twice = |snapshot: &mut Snapshot| {
        let users = snapshot.users.get_mut("acme").unwrap();
        users.push(users[1].clone());
    };
    assert_eq!(subjects(twice), ["collection users"]);
    let user = "user user_id=1 anonymous_id=a anonymous_id=b: devices";
    assert_eq!(subjects(|snapshot| snapshot.devices.clear()), [user, "device device_id=d: documents"]);
    assert_eq!(subjects(|snapshot| drop(fields(snapshot).remove("devices"))), [user]);
    let stranger = document("d_2", json!({"identifiers": {"device_id": ["e"]}}));
    let doctor = |snapshot: &mut Snapshot| snapshot.devices.get_mut("acme").unwrap().push(stranger.clone());
    assert_eq!(subjects(doctor), ["devices"]);
}

#[test]
fn what_an_event_says_is_compared() {
    type Change = fn(&mut EventSeen);
    let changes: [(Change, &[&str]); 6] = [
        (|event| event.event = "Closed".into(), &["event e1: name"]),
        (|event| event.source = "segment".into(), &["event e1: source"]),
        (|event| drop(event.properties.insert("price".into(), json!(3))), &["event e1: properties"]),
        (|event| event.device = None, &["event e1: device"]),
        (
            |event| event.time = "1970-01-01T00:00:02Z".into(),
            &["event e1: time", "event e1: time before it was received"],
        ),
        (|event| event.received = "1970-01-01T00:00:09Z".into(), &["event e1: time before it was received"]),
    ];
    for (change, expected) in changes {
        assert_eq!(subjects(|snapshot| change(&mut snapshot.events[0])), expected);
    }
}

#[test]
fn when_somebody_was_seen_is_compared() {
    let user = "user user_id=1 anonymous_id=a anonymous_id=b";
    for (field, time, is_good) in [
        ("first_seen", "1970-01-01T00:00:02Z", false),
        ("last_seen", "1970-01-01T00:00:04Z", false),
        ("last_seen", "yesterday", false),
        ("last_seen", "1970-01-01T00:01:00Z", true),
    ] {
        let found = subjects(|snapshot| drop(fields(snapshot).insert(field.into(), json!(time))));
        assert_eq!(found, if is_good { vec![] } else { vec![format!("{user}: {field}")] }, "{field} {time}");
    }
}

#[test]
fn what_a_device_is_and_whose_it_was_is_compared() {
    let change = |change: &dyn Fn(&mut Map<String, Value>)| {
        subjects(|snapshot| change(&mut snapshot.devices.get_mut("acme").unwrap()[0].fields))
    };
    let device = "device device_id=d";
    assert_eq!(change(&|fields| fields["attributes"] = json!({"platform": "android"})), Vec::<String>::new());
    assert_eq!(
        change(&|fields| fields["attributes"] = json!({"platform": "web"})),
        [format!("{device}: attribute platform")]
    );
    assert_eq!(change(&|fields| fields["attributes"]["model"] = json!("x")), [format!("{device}: attribute model")]);
    assert_eq!(change(&|fields| drop(fields.remove("user"))), [format!("{device}: user")]);
    assert_eq!(change(&|fields| fields["user"]["value"] = json!("2")), [format!("{device}: user")]);
    let late = json!("1970-01-01T00:00:04Z");
    assert_eq!(
        change(&|fields| drop(fields.insert("last_seen".into(), late.clone()))),
        [format!("{device}: last_seen")]
    );
}

#[test]
fn who_became_part_of_whom_leaves_a_tombstone_and_one_trace() {
    let mut merged = document("u_3", json!({}));
    merged.deleted = true;
    let merge = |snapshot: &mut Snapshot, ids: &[&str]| {
        snapshot.users.get_mut("acme").unwrap().push(merged.clone());
        fields(snapshot).insert("merged_users".into(), json!(ids));
    };
    assert_eq!(subjects(|snapshot| merge(snapshot, &["u_3"])), Vec::<String>::new());
    assert_eq!(subjects(|snapshot| merge(snapshot, &[])), [TOMBSTONES], "nobody knows of it");
    let of = |id: &str| format!("user document u_1: merged user {id}");
    assert_eq!(subjects(|snapshot| merge(snapshot, &["u_3", "u_3"])), [of("u_3")]);
    assert_eq!(subjects(|snapshot| merge(snapshot, &["u_3", "u_1"])), [of("u_1")], "it is live");
}

/// What a change to one of two equal snapshots makes differ.
fn differing(doctor: impl Fn(&mut Snapshot)) -> Vec<String> {
    let mut other = right();
    doctor(&mut other);
    differences(&truth(), &right(), &other).into_iter().map(|mismatch| mismatch.subject).collect()
}

#[test]
fn two_snapshots_are_compared_by_what_does_not_depend_on_reception() {
    assert_eq!(differing(|_| {}), Vec::<String>::new());
    let renamed = |snapshot: &mut Snapshot| {
        for document in snapshot.users.get_mut("acme").unwrap() {
            document.id.push('x');
        }
        fields(snapshot).insert("last_seen".into(), json!("1970-01-01T00:02:00Z"));
        snapshot.events[1].time = "1970-01-01T00:00:05Z".into();
        snapshot.events.iter_mut().for_each(|event| event.received = "1970-01-01T01:00:00Z".into());
    };
    assert_eq!(differing(renamed), Vec::<String>::new());
    assert_eq!(differing(|snapshot| snapshot.events[0].event = "Closed".into()), ["event e1: event"]);
    assert_eq!(differing(|snapshot| snapshot.events[0].time = "1970-01-01T00:00:05Z".into()), ["event e1: time"]);
    assert_eq!(differing(|snapshot| drop(snapshot.events.remove(2))).len(), 4, "every field of it");
    let user = "user user_id=1 anonymous_id=a anonymous_id=b";
    let plan = |snapshot: &mut Snapshot| fields(snapshot)["attributes"]["plan"] = json!("free");
    assert_eq!(differing(plan), [format!("{user}: attributes")]);
    let retained =
        |snapshot: &mut Snapshot| drop(fields(snapshot).insert("retained".into(), json!({"type": "user_id"})));
    assert_eq!(differing(retained), [format!("{user}: retained")]);
    let owner =
        |snapshot: &mut Snapshot| snapshot.devices.get_mut("acme").unwrap()[0].fields["user"]["value"] = json!("2");
    assert_eq!(differing(owner), ["device d: user"]);
    let platform = |snapshot: &mut Snapshot| {
        snapshot.devices.get_mut("acme").unwrap()[0].fields["attributes"] = json!({"platform": "android"});
    };
    assert_eq!(differing(platform), Vec::<String>::new(), "either may have been the last");
}

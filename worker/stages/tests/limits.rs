//! What one user or device may hold: what a record brings beyond is refused and said so, the rest takes effect.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

#[allow(dead_code, reason = "shared with the golden tests")]
mod support;

use millstream_model::document::Document;
use millstream_model::id::DeviceId;
use millstream_model::key::{Kind, StateKey, group_of};
use millstream_model::proto::{
    Action, Change, DeviceState, Event, Identifier, List, Merge, Stamp, User, Value as Attribute, change::Op,
};
use millstream_stages::action::{ActionLimits, ActionStage, Record, Value, render_device, render_user};
use millstream_stages::{Outbox, StateValue};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use support::Users;

const TENANT: &str = "acme";

/// The action stage within small limits.
struct World {
    stage: ActionStage,
    state: Users,
    out: Outbox,
    records: u64,
}

impl World {
    fn new(limits: ActionLimits) -> World {
        World { stage: ActionStage::new(limits), state: Users::default(), out: Outbox::default(), records: 0 }
    }

    /// Applies a record, each with a later stamp; gives what it is rejected with.
    fn apply(&mut self, mut action: Action) -> Vec<Json> {
        self.records += 1;
        let routing = action.user_identifiers.first().or(action.device_identifiers.first()).unwrap();
        action.group = u32::from(group_of(TENANT, routing));
        action.stamp = Some(Stamp { time_ms: 1_000, offset: self.records, index: 0 });
        action.record_id = u128::from(self.records).to_be_bytes().to_vec();
        action.message_id = format!("m{}", self.records);
        let before = self.out.rejects.len();
        support::step(&self.stage, Record::Action(Box::new(action)), &mut self.state, &mut self.out);
        let rejects = self.out.rejects[before..].iter();
        rejects.map(|message| serde_json::from_slice(&message.payload).unwrap()).collect()
    }

    fn users(&self) -> Vec<&User> {
        let users = self.state.entries.values().filter_map(|value| match value {
            Value::User(user) if user.fate.is_none() => Some(&**user),
            _ => None,
        });
        users.collect()
    }

    fn user(&self) -> &User {
        let users = self.users();
        assert_eq!(users.len(), 1);
        users[0]
    }

    fn device(&self, primary: &str) -> &DeviceState {
        let id = DeviceId::of(TENANT, &id(primary));
        match &self.state.entries[&StateKey::new(id.home(), TENANT, Kind::Device, id.as_bytes())] {
            Value::Device(device) => device,
            other => panic!("{other:?}"),
        }
    }

    fn usage(&self) -> (u64, u64) {
        let usage = self.out.usage[TENANT];
        (usage.effects, usage.rejects)
    }
}

fn id(text: &str) -> Identifier {
    millstream_model::identifier::parse(text).unwrap()
}

fn record(users: &[&str], devices: &[&str]) -> Action {
    let ids = |texts: &[&str]| texts.iter().map(|text| id(text)).collect();
    Action {
        tenant: TENANT.into(),
        user_identifiers: ids(users),
        device_identifiers: ids(devices),
        kind: "event".into(),
        event: Some(Event { name: "Seen".into(), properties: Vec::new() }),
        ..Action::default()
    }
}

fn with(mut action: Action, name: &str, op: Op) -> Action {
    action.user_changes.push(Change { name: name.into(), op: Some(op) });
    action
}

fn set(value: i64) -> Op {
    Op::Set(Attribute::integer(value))
}

fn items(items: &[&str]) -> List {
    List { items: items.iter().map(|item| Attribute::string(*item)).collect() }
}

/// The one reject of a record, whose rest took effect.
fn only_partial(rejects: &[Json]) -> &Json {
    assert_eq!(rejects.len(), 1, "{rejects:?}");
    assert_eq!((&rejects[0]["partial"], &rejects[0]["reason"]), (&json!(true), &json!("too_large")));
    &rejects[0]
}

#[test]
fn one_identifier_too_many_is_not_linked_and_the_rest_takes_effect() {
    let mut world = World::new(ActionLimits { max_identifiers: 3, ..ActionLimits::default() });
    assert_eq!(world.apply(record(&["user_id=1", "email=a@b", "phone=1"], &[])), [] as [Json; 0], "at the bound");
    let rejects = world.apply(with(record(&["user_id=1", "email=c@d"], &[]), "plan", set(1)));
    let reject = only_partial(&rejects);
    assert_eq!((&reject["field"], &reject["message_id"]), (&json!("identifiers.email"), &json!("m2")));
    assert_eq!(reject["id"], json!(format!("{:032x}.user", 2)));
    assert!(reject["message"].as_str().unwrap().contains("has 3 identifiers"), "{reject}");
    let action =
        json!({"type": "user", "time": "1970-01-01T00:00:00Z", "identifiers": {"user_id": "1", "email": "c@d"}});
    assert_eq!(reject["action"], action, "only what was refused, so that nothing happens twice");
    let user = world.user();
    assert_eq!((user.identifiers.len(), user.attributes.len(), user.events), (3, 1, 2));
    assert_eq!(world.usage(), (2, 0), "a partial reject counts in no sum");
    assert!(!world.state.entries.contains_key(&StateKey::of_identifier(TENANT, Kind::Node, &id("email=c@d"))));
    assert_eq!(world.apply(record(&["email=c@d"], &[])), [] as [Json; 0]);
    assert_eq!(world.users().len(), 2, "it goes on naming whom it names");
}

#[test]
fn a_merge_that_would_need_one_identifier_too_many_is_rejected_as_a_whole() {
    let mut world = World::new(ActionLimits { max_identifiers: 2, ..ActionLimits::default() });
    world.apply(record(&["user_id=1", "email=a@b"], &[]));
    world.apply(record(&["user_id=2"], &[]));
    let merge = Merge { retained: Some(id("user_id=1")), merged: Some(id("user_id=2")) };
    let merge = Action { merge: Some(merge), event: None, ..record(&["user_id=1", "user_id=2"], &[]) };
    let rejects = world.apply(merge);
    assert_eq!((&rejects[0]["reason"], &rejects[0]["partial"]), (&json!("too_large"), &Json::Null));
    assert_eq!(rejects[0]["action"]["merged"], json!({"type": "user_id", "value": "2"}));
    assert_eq!((world.usage(), world.users().len()), ((2, 1), 2));
    assert!(world.users().iter().all(|user| user.retained.is_none()));
}

/// Nobody is asked before two users become one; after that nothing grows any more.
#[test]
fn a_merge_by_a_link_may_exceed_the_bounds_and_nothing_grows_after_it() {
    let mut world = World::new(ActionLimits { max_identifiers: 3, max_attributes: 2, ..ActionLimits::default() });
    let two = |action| with(with(action, "a", set(1)), "b", set(1));
    world.apply(two(record(&["user_id=1", "email=a@b"], &[])));
    world.apply(with(with(record(&["user_id=2", "email=c@d", "phone=2"], &[]), "c", set(1)), "d", set(1)));
    assert_eq!(world.apply(record(&["user_id=1", "user_id=2"], &[])), [] as [Json; 0]);
    assert_eq!((world.user().identifiers.len(), world.user().attributes.len()), (5, 4));
    let rejects = world.apply(with(with(record(&["phone=2", "phone=3", "email=a@b"], &[]), "a", set(2)), "e", set(1)));
    let message = only_partial(&rejects)["message"].as_str().unwrap();
    assert!(message.contains("identifiers.phone: ") && message.contains("; set.e: "), "{message}");
    assert_eq!((world.user().identifiers.len(), world.user().attributes.len()), (5, 4));
    assert_eq!(world.user().attributes[0].value, Some(Attribute::integer(2)), "what is there can be changed");
}

#[test]
fn one_attribute_too_many_is_refused_and_those_that_are_there_can_be_changed() {
    let mut world = World::new(ActionLimits { max_attributes: 2, ..ActionLimits::default() });
    let by = || record(&["user_id=1"], &[]);
    assert_eq!(world.apply(with(with(by(), "a", set(1)), "b", set(1))), [] as [Json; 0], "at the bound");
    assert_eq!(world.apply(with(with(by(), "a", set(2)), "b", Op::Unset(true))), [] as [Json; 0]);
    for (op, field) in [(set(1), "set.c"), (Op::Unset(true), "unset.c"), (Op::Add(items(&["x"])), "add.c")] {
        let rejects = world.apply(with(with(by(), "a", set(3)), "c", op));
        let reject = only_partial(&rejects);
        assert_eq!(reject["field"], json!(field));
        assert!(reject["message"].as_str().unwrap().contains("has 2 attributes, unset ones included"), "{reject}");
    }
    let user = world.user();
    assert_eq!((user.attributes.len(), user.events), (2, 5));
    assert_eq!(user.attributes[0].value, Some(Attribute::integer(3)));
}

#[test]
fn one_element_too_many_is_refused_until_the_list_is_set_anew() {
    let mut world = World::new(ActionLimits { max_elements: 3, ..ActionLimits::default() });
    let mut send = |op| world.apply(with(record(&["user_id=1"], &[]), "tags", op));
    assert_eq!(send(Op::Add(items(&["a", "b", "c"]))), [] as [Json; 0], "at the bound");
    assert_eq!(send(Op::Add(items(&["a", "c"]))), [] as [Json; 0], "they are there");
    assert_eq!(send(Op::Remove(items(&["b"]))), [] as [Json; 0], "it takes the place of its addition");
    let rejects = send(Op::Add(items(&["a", "d"])));
    let reject = only_partial(&rejects);
    assert_eq!((&reject["field"], &reject["action"]["add"]), (&json!("add.tags"), &json!({"tags": ["a", "d"]})));
    assert!(reject["message"].as_str().unwrap().starts_with("4 elements would have been added"), "{reject}");
    assert_eq!(only_partial(&send(Op::Remove(items(&["e"]))))["field"], json!("remove.tags"));
    assert_eq!(
        send(Op::Set(Attribute::of(millstream_model::proto::value::Kind::List(items(&["d"]))))),
        [] as [Json; 0]
    );
    assert_eq!(send(Op::Add(items(&["e", "f", "g"]))), [] as [Json; 0]);
    let both = with(record(&["user_id=1"], &[]), "other", Op::Add(items(&["a", "b"])));
    let rejects = world.apply(with(both, "other", Op::Remove(items(&["c", "d"]))));
    assert_eq!(
        only_partial(&rejects)["field"],
        json!("remove.other"),
        "what one record adds and removes counts together"
    );
    let elements: Vec<usize> = world.user().attributes.iter().map(|register| register.elements.len()).collect();
    assert_eq!(elements, [2, 3]);
}

/// A deletion finds the devices that named the user by the user's list. So one that is not in it must not name the user.
#[test]
fn one_device_too_many_is_not_remembered_on_either_side() {
    let mut world = World::new(ActionLimits { max_devices: 2, ..ActionLimits::default() });
    let by = |device: &str| record(&["user_id=1"], &[device]);
    for device in ["device_id=a", "device_id=b", "device_id=a"] {
        assert_eq!(world.apply(by(device)), [] as [Json; 0], "at the bound");
    }
    let rejects = world.apply(by("device_id=c"));
    let reject = only_partial(&rejects);
    assert!(reject["message"].as_str().unwrap().contains("has 2 devices"), "{reject}");
    assert_eq!(reject["action"]["identifiers"], json!({"user_id": "1", "device_id": "c"}));
    assert_eq!((world.user().devices.len(), world.user().events), (2, 4), "the event is the user's all the same");
    assert_eq!((&world.device("device_id=c").user, &world.device("device_id=a").user), (&None, &Some(id("user_id=1"))));
    let delete = Action { delete: true, event: None, ..record(&["user_id=1"], &[]) };
    assert_eq!(world.apply(delete), [] as [Json; 0]);
    for device in ["device_id=a", "device_id=b", "device_id=c"] {
        assert_eq!(world.device(device).user, None, "{device}");
    }
}

#[test]
fn a_device_has_bounds_too_and_its_primary_identifier_always_room() {
    let limits = ActionLimits { max_identifiers: 2, max_attributes: 1, ..ActionLimits::default() };
    let mut world = World::new(limits);
    let mut action = record(&["user_id=1"], &["device_id=a", "gaid=g", "idfa=i"]);
    action.device_changes =
        vec![Change { name: "os".into(), op: Some(set(1)) }, Change { name: "model".into(), op: Some(set(2)) }];
    let rejects = world.apply(action);
    let reject = only_partial(&rejects);
    assert_eq!((&reject["id"], &reject["message_id"]), (&json!(format!("{:032x}.device", 1)), &json!("m1")));
    assert_eq!((&reject["kind"], &reject["ingress"]["offset"]), (&json!("event"), &json!(1)));
    let shown = &reject["action"];
    assert_eq!((&shown["type"], &shown["set"]), (&json!("device"), &json!({"model": 2})));
    assert_eq!(shown["identifiers"], json!({"device_id": "a", "idfa": "i"}));
    let device = world.device("device_id=a");
    assert_eq!((device.identifiers.len(), device.attributes.len()), (2, 1));
    let event: Json = serde_json::from_slice(&world.out.events[0].payload).unwrap();
    assert_eq!(event["device"]["identifiers"]["idfa"], "i", "the event shows what the record said");
    let limits = ActionLimits { max_identifiers: 0, max_bytes: 0, ..ActionLimits::default() };
    let mut world = World::new(limits);
    world.apply(record(&[], &["device_id=a"]));
    assert_eq!(world.device("device_id=a").identifiers.len(), 1);
}

fn op() -> impl Strategy<Value = Op> {
    let text =
        || (0..3usize, 0..6u8).prop_map(|(size, digit)| Attribute::string(digit.to_string().repeat(1 + size * 90)));
    let list = move || vec(text(), 1..5);
    prop_oneof![
        text().prop_map(Op::Set),
        list().prop_map(|items| Op::Set(Attribute::list(items))),
        Just(Op::Unset(true)),
        list().prop_map(|items| Op::Add(List { items })),
        list().prop_map(|items| Op::Remove(List { items })),
    ]
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let change = ("[a-h]", op()).prop_map(|(name, op)| Change { name, op: Some(op) });
    // One operation per attribute, as unify sees to.
    vec(change, 0..4).prop_map(|changes| {
        let changes: BTreeMap<String, Change> = changes.into_iter().map(|it| (it.name.clone(), it)).collect();
        changes.into_values().collect()
    })
}

/// A record of one user: no two users, so no merges.
fn any_record() -> impl Strategy<Value = Action> {
    let (others, devices) = (vec(0..12u8, 0..3), proptest::option::of((0..5u8, 0..4u8)));
    (others, devices, changes(), changes(), proptest::bool::weighted(0.05)).prop_map(
        |(others, device, user_changes, device_changes, delete)| {
            let others: Vec<String> = others.into_iter().map(|other| format!("email={other}@example.com")).collect();
            let users: Vec<&str> = std::iter::once("user_id=1").chain(others.iter().map(String::as_str)).collect();
            let device = device.map(|(primary, other)| [format!("device_id={primary}"), format!("gaid={other}")]);
            let devices: Vec<&str> = device.iter().flatten().map(String::as_str).collect();
            let device_changes = if devices.is_empty() { Vec::new() } else { device_changes };
            if delete {
                return Action { delete, event: None, ..record(&["user_id=1"], &[]) };
            }
            Action { user_changes, device_changes, ..record(&users, &devices) }
        },
    )
}

fn stored(value: &Value) -> usize {
    let mut bytes = Vec::new();
    value.encode(&mut bytes);
    bytes.len()
}

fn check(world: &World, limits: &ActionLimits) {
    for value in world.state.entries.values() {
        let (identifiers, attributes, devices) = match value {
            Value::User(user) => (&user.identifiers, &user.attributes, user.devices.len()),
            Value::Device(device) => (&device.identifiers, &device.attributes, 0),
            _ => continue,
        };
        assert!(identifiers.len() <= limits.max_identifiers, "{} identifiers", identifiers.len());
        assert!(attributes.len() <= limits.max_attributes, "{} attributes", attributes.len());
        assert!(devices <= limits.max_devices, "{devices} devices");
        let elements = attributes.iter().map(|register| register.elements.len()).max().unwrap_or(0);
        assert!(elements <= limits.max_elements, "{elements} elements");
        assert!(stored(value) <= limits.max_bytes, "{} bytes", stored(value));
    }
}

/// Documents say what the state says (I8), also of what was refused.
fn check_documents(world: &World) {
    let mut folds: BTreeMap<&str, Document> = BTreeMap::new();
    for mutation in &world.out.mutations {
        folds.entry(&mutation.id).or_insert_with(Document::empty).apply(mutation);
    }
    for value in world.state.entries.values() {
        let (id, fields) = match value {
            Value::User(user) => {
                let id = millstream_model::id::UserId::from_bytes(&user.id).unwrap().to_string();
                (id, render_user(TENANT, user).unwrap_or_default())
            }
            Value::Device(device) => {
                let fields = render_device(TENANT, device).unwrap();
                (DeviceId::from_bytes(&device.id).unwrap().to_string(), fields)
            }
            _ => continue,
        };
        let sorted = |fields: &millstream_model::proto::Object| {
            let mut text: Vec<char> = serde_json::to_string(fields).unwrap().chars().collect();
            text.sort_unstable();
            text
        };
        assert_eq!(sorted(&folds[id.as_str()].fields), sorted(&fields), "{id}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_state_never_exceeds_its_limits_without_merges(
        records in vec(any_record(), 1..60),
        (max_identifiers, max_attributes, max_elements, max_devices) in (4..8usize, 1..6usize, 1..6usize, 1..4usize),
        max_bytes in 3_200..6_000usize,
    ) {
        let limits = ActionLimits { max_identifiers, max_attributes, max_elements, max_devices, max_bytes, ..ActionLimits::default() };
        let mut world = World::new(limits.clone());
        for (count, record) in (1u64..).zip(records) {
            let rejects = world.apply(record);
            prop_assert!(rejects.len() <= 2 && rejects.iter().all(|reject| reject["partial"] == true), "{:?}", rejects);
            prop_assert_eq!(world.usage(), (count, 0));
            check(&world, &limits);
        }
        check_documents(&world);
    }
}

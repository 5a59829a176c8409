//! Single cases by hand: what a record leads to, one by one.

use crate::cluster::Cluster;
use crate::history::TENANT;
use millstream_model::id::DeviceId;
use millstream_model::key::{Kind, StateKey, group_of, shard_of};
use millstream_model::proto::change::Op;
use millstream_model::proto::{
    Action, Change, Event, Identifier, Merge, Stamp, TraceContext, User, Value as Attribute,
};
use millstream_stages::action::{Answer, DeviceView, Inspect, UserView, Value, inspect};

use std::collections::BTreeSet;

pub fn id(text: &str) -> Identifier {
    millstream_model::identifier::parse(text).unwrap()
}

pub fn action(time_ms: u64, users: &[&str], devices: &[&str]) -> Action {
    let ids = |texts: &[&str]| texts.iter().map(|text| id(text)).collect::<Vec<_>>();
    let (user_identifiers, device_identifiers) = (ids(users), ids(devices));
    let routing = device_identifiers.first().or(user_identifiers.first()).unwrap();
    Action {
        tenant: TENANT.into(),
        group: u32::from(group_of(TENANT, routing)),
        stamp: Some(Stamp { time_ms, ..Stamp::default() }),
        record_id: u128::from(time_ms).to_be_bytes().to_vec(),
        message_id: format!("m{time_ms}"),
        by_device: routing.names_device(),
        user_identifiers,
        device_identifiers,
        time_ms: time_ms as i64,
        kind: "event".into(),
        ..Action::default()
    }
}

pub fn event(mut action: Action, name: &str) -> Action {
    action.event = Some(Event { name: name.into(), properties: Vec::new() });
    action
}

pub fn set(mut action: Action, name: &str, value: i64) -> Action {
    action.user_changes.push(Change { name: name.into(), op: Some(Op::Set(Attribute::integer(value))) });
    action
}

pub const SHARDS: u32 = 4;

pub fn after(actions: &[Action]) -> Cluster {
    let mut cluster = Cluster::new(SHARDS, 7);
    run(&mut cluster, actions);
    cluster
}

/// One after the other.
pub fn run(cluster: &mut Cluster, actions: &[Action]) {
    for action in actions {
        cluster.send(action);
        cluster.run().unwrap();
    }
}

pub fn look(cluster: &mut Cluster, what: Inspect) -> Answer {
    let mut what = what;
    loop {
        let shard = shard_of(what.group(TENANT), cluster.states.len() as u32) as usize;
        match inspect(&mut cluster.states[shard], TENANT, &what).unwrap() {
            Answer::Ask(next) => what = next,
            answer => return answer,
        }
    }
}

pub fn user(cluster: &mut Cluster, text: &str) -> UserView {
    match look(cluster, Inspect::User(id(text))) {
        Answer::User(view) => *view,
        other => panic!("{text}: {other:?}"),
    }
}

pub fn reasons(cluster: &Cluster) -> Vec<String> {
    let json =
        cluster.rejects.iter().map(|reject| serde_json::from_slice::<serde_json::Value>(&reject.payload).unwrap());
    json.map(|json| format!("{} {}", json["message_id"].as_str().unwrap(), json["reason"].as_str().unwrap())).collect()
}

#[test]
fn the_older_user_survives_and_explains_itself() {
    let mut cluster = after(&[
        set(action(10, &["user_id=1"], &[]), "plan", 1),
        set(action(20, &["email=a@x"], &[]), "plan", 2),
        action(30, &["email=a@x", "user_id=1"], &[]),
    ]);
    let view = user(&mut cluster, "email=a@x");
    assert_eq!(
        view.identifiers.iter().map(|it| it.identifier.as_str()).collect::<Vec<_>>(),
        ["email=a@x", "user_id=1"]
    );
    assert_eq!(view.attributes[0].value, Some(Attribute::integer(2)));
    assert!(view.attributes[0].record.ends_with("14"), "record 20 set it: {:?}", view.attributes[0]);
    assert_eq!((view.merged.len(), view.forwarded_from.len()), (1, 1));
    assert_eq!(view.merged[0].user, view.forwarded_from[0]);
    assert!(view.merged[0].record.ends_with("1e"), "record 30 linked them: {:?}", view.merged);
    assert!(user(&mut cluster, "user_id=1").forwarded_from.is_empty());
}

#[test]
fn a_device_is_its_last_users() {
    let mut cluster = after(&[
        event(action(10, &["user_id=1"], &["device_id=d", "push_id=p"]), "first"),
        event(action(20, &[], &["device_id=d"]), "second"),
        event(action(30, &["user_id=2"], &["device_id=d"]), "third"),
        event(action(25, &["user_id=1"], &["device_id=d"]), "late"),
        event(action(40, &[], &["device_id=d"]), "fourth"),
    ]);
    let (one, two) = (user(&mut cluster, "user_id=1"), user(&mut cluster, "user_id=2"));
    assert_eq!((one.events, two.events, one.devices.len()), (3, 2, 1));
    let Answer::Device(device) = look(&mut cluster, Inspect::Device(id("device_id=d"))) else { panic!("no device") };
    assert_eq!(device.user.as_deref(), Some("user_id=2"));
    assert_eq!(device.identifiers.len(), 2);
    assert_eq!(device.id, DeviceId::of(TENANT, &id("device_id=d")).to_string());
    let first: serde_json::Value = serde_json::from_slice(&cluster.events[0].payload).unwrap();
    assert_eq!(
        (&first["user"]["first_event"], &first["device"]["identifiers"]["push_id"]),
        (&true.into(), &"p".into())
    );
}

#[test]
fn a_device_without_a_user_names_one_itself() {
    let mut cluster =
        after(&[event(action(10, &[], &["device_id=d"]), "a"), event(action(20, &[], &["device_id=d"]), "b")]);
    assert_eq!(user(&mut cluster, "device_id=d").events, 2);
    assert_eq!(cluster.effects, 2);
}

#[test]
fn a_deleted_users_device_forgets_it() {
    let mut delete = action(20, &["user_id=1"], &[]);
    delete.delete = true;
    let mut cluster = after(&[action(10, &["user_id=1", "email=a@x"], &["device_id=d"]), delete]);
    assert!(matches!(look(&mut cluster, Inspect::User(id("email=a@x"))), Answer::Deleted(_)));
    let Answer::Device(device) = look(&mut cluster, Inspect::Device(id("device_id=d"))) else { panic!("no device") };
    assert_eq!(device.user, None);
    run(&mut cluster, &[action(15, &["email=a@x"], &[]), action(30, &["email=a@x"], &[])]);
    assert_eq!(reasons(&cluster), ["m15 user_deleted"]);
    let reject: serde_json::Value = serde_json::from_slice(&cluster.rejects[0].payload).unwrap();
    assert!(reject.get("action").is_none() && reject.get("ingress").is_some(), "a deleted user is not shown: {reject}");
    assert_eq!(user(&mut cluster, "email=a@x").identifiers.len(), 1);
}

/// A deletion takes what is older than it and leaves what is newer, also when it comes last.
#[test]
fn a_late_deletion_leaves_what_is_newer() {
    let mut delete = action(20, &["user_id=1"], &[]);
    delete.delete = true;
    let mut cluster = after(&[
        set(action(10, &["user_id=1", "email=a@x"], &[]), "old", 1),
        set(action(30, &["email=a@x"], &[]), "new", 1),
        delete,
    ]);
    let view = user(&mut cluster, "email=a@x");
    assert_eq!(view.attributes.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["new"]);
    assert_eq!(view.identifiers.len(), 1);
    assert!(matches!(look(&mut cluster, Inspect::User(id("user_id=1"))), Answer::Deleted(_)));
    run(&mut cluster, &[set(action(15, &["email=a@x"], &[]), "old", 2)]);
    assert_eq!(reasons(&cluster), ["m15 user_deleted"]);
}

/// A record from before the deletion says that somebody else was the same person: the deletion is theirs too.
#[test]
fn a_late_link_carries_the_deletion_along() {
    let mut delete = action(20, &["user_id=1"], &[]);
    delete.delete = true;
    let mut cluster =
        after(&[action(5, &["user_id=1"], &[]), delete, set(action(10, &["email=a@x", "user_id=1"], &[]), "old", 1)]);
    assert!(matches!(look(&mut cluster, Inspect::User(id("email=a@x"))), Answer::Deleted(_)));
    assert_eq!((cluster.effects, cluster.rejected), (3, 0));
}

#[test]
fn what_is_refused_says_why() {
    let mut unknown = action(10, &["user_id=9"], &[]);
    unknown.update_existing_only = true;
    let mut itself = action(20, &["user_id=1"], &[]);
    itself.merge = Some(Merge { retained: Some(id("user_id=1")), merged: Some(id("user_id=1")) });
    let mut nobody = action(30, &["user_id=1"], &[]);
    nobody.user_identifiers.clear();
    let mut part = unknown.clone();
    (part.message_id, part.uncounted) = ("part".into(), true);
    let mut cluster = after(&[unknown, itself, nobody]);
    assert_eq!(reasons(&cluster), ["m10 user_unknown", "m20 invalid_merge", "m30 missing_identifier"]);
    assert_eq!((cluster.effects, cluster.rejected), (0, 3));
    assert_eq!(look(&mut cluster, Inspect::User(id("user_id=9"))), Answer::Unknown);
}

#[test]
fn a_merge_keeps_what_it_retains_visible() {
    let mut merge = action(30, &["user_id=2"], &[]);
    merge.merge = Some(Merge { retained: Some(id("user_id=2")), merged: Some(id("user_id=1")) });
    let mut cluster = after(&[action(10, &["user_id=1"], &[]), action(20, &["user_id=2"], &[]), merge]);
    let view = user(&mut cluster, "user_id=1");
    assert_eq!(view.retained.unwrap().identifier, "user_id=2");
    assert_eq!(view.identifiers.len(), 2);
}

#[test]
fn an_uncounted_part_counts_nowhere() {
    let mut part = event(action(10, &["user_id=1"], &["device_id=d"]), "a");
    part.uncounted = true;
    let cluster = after(&[part, event(action(11, &["user_id=1"], &[]), "b")]);
    assert_eq!((cluster.effects, cluster.events.len()), (1, 2));
}

#[test]
fn a_sampled_record_is_traced_to_its_mutations_and_events() {
    let mut sampled = event(action(10, &["user_id=1"], &["device_id=d"]), "a");
    sampled.trace =
        Some(TraceContext { trace_id: vec![7; 16], span_id: vec![1; 8], flags: 1, ..TraceContext::default() });
    let cluster = after(&[sampled]);
    assert_eq!(cluster.mutations.len(), 2);
    for mutation in &cluster.mutations {
        let trace = mutation.trace.as_ref().unwrap();
        assert_eq!(trace.trace_id, [7; 16]);
        assert_ne!(trace.span_id, [1; 8], "the parent is the action's span, not what came with the record");
    }
    assert!(
        cluster.events[0].headers.iter().any(|(name, value)| *name == "traceparent" && value.starts_with("00-0707"))
    );
}

#[test]
fn a_circle_of_forwards_ends_as_a_reject() {
    let mut cluster = after(&[action(10, &["user_id=1"], &[])]);
    let node = cluster.node(&id("user_id=1")).unwrap().user;
    let key = StateKey::new(node.home(), TENANT, Kind::User, node.as_bytes());
    let forward = millstream_model::proto::user::Fate::Forward(node.as_bytes().to_vec());
    let user = User { id: node.as_bytes().to_vec(), fate: Some(forward), ..User::default() };
    let shard = shard_of(node.home(), SHARDS) as usize;
    cluster.states[shard].entries.insert(key, Value::User(Box::new(user)));
    run(&mut cluster, &[action(20, &["user_id=1"], &[])]);
    assert_eq!(reasons(&cluster), ["m20 unresolved"]);
    cluster.send(&Action { delete: true, ..action(30, &["user_id=1"], &[]) });
    let stopped = cluster.run().unwrap_err();
    assert!(stopped.contains("circle"), "a deletion is not dropped: {stopped}");
}

/// Each merge finds an older user, so that the chain of forwards from the first identifier grows by one.
#[test]
fn an_identifier_is_usable_and_can_be_deleted_however_many_merges_it_went_through() {
    const MERGES: u64 = 200;
    let mut cluster = after(&[action(1000, &["user_id=0"], &[])]);
    for number in 1..=MERGES {
        let older = format!("user_id={number}");
        run(&mut cluster, &[action(1000 - number, &[&older], &[])]);
        run(&mut cluster, &[action(2000 + number, &["user_id=0", &older], &[])]);
    }
    run(&mut cluster, &[set(action(5000, &["user_id=0"], &[]), "plan", 7)]);
    assert_eq!(reasons(&cluster), [""; 0]);
    let view = user(&mut cluster, "user_id=0");
    assert_eq!((view.forwarded_from.len(), view.identifiers.len()), (MERGES as usize, MERGES as usize + 1));
    assert_eq!(view.attributes.len(), 1);
    run(&mut cluster, &[Action { delete: true, ..action(6000, &["user_id=0"], &[]) }]);
    assert_eq!(reasons(&cluster), [""; 0]);
    assert!(matches!(look(&mut cluster, Inspect::User(id("user_id=0"))), Answer::Deleted(_)));
}

pub fn device(cluster: &mut Cluster, text: &str) -> DeviceView {
    match look(cluster, Inspect::Device(id(text))) {
        Answer::Device(view) => *view,
        other => panic!("{text}: {other:?}"),
    }
}

fn device_id(text: &str) -> String {
    DeviceId::of(TENANT, &id(text)).to_string()
}

/// The user and the device of each event.
pub fn events(cluster: &Cluster) -> Vec<(String, Option<String>)> {
    let json = cluster.events.iter().map(|it| serde_json::from_slice::<serde_json::Value>(&it.payload).unwrap());
    let text = |json: &serde_json::Value| json.as_str().unwrap().to_owned();
    json.map(|json| (text(&json["user"]["id"]), json["device"].get("id").map(text))).collect()
}

fn devices_of(cluster: &Cluster) -> usize {
    let states = cluster.states.iter().flat_map(|state| state.entries.values());
    states.filter(|value| matches!(value, Value::Device(device) if device.revision > 0)).count()
}

/// A postback that knows only the advertising id is about the device, and the user, of whoever has it.
#[test]
fn a_device_is_found_by_a_further_identifier() {
    let mut cluster = after(&[
        event(action(10, &["anonymous_id=a"], &["device_id=d", "gaid=g", "push_id=p"]), "first"),
        event(action(20, &[], &["gaid=g", "push_id=q"]), "install"),
        event(action(30, &[], &["push_id=q"]), "opened"),
    ]);
    let user = user(&mut cluster, "anonymous_id=a");
    assert_eq!((user.events, user.devices), (3, vec![device_id("device_id=d")]));
    assert_eq!(events(&cluster), vec![(user.id, Some(device_id("device_id=d"))); 3]);
    let view = device(&mut cluster, "push_id=q");
    assert_eq!((view.id, view.identifiers.len()), (device_id("device_id=d"), 4));
    assert_eq!(devices_of(&cluster), 1);
    assert_eq!(cluster.effects, 3);
    crate::checks::consistent(&cluster).unwrap();
}

#[test]
fn a_record_that_names_a_user_and_a_further_identifier_makes_no_second_device() {
    let by_gaid = |time_ms| event(action(time_ms, &["user_id=1"], &["gaid=g"]), "bought");
    // Of another routing key: it goes straight to its user.
    let by_user =
        |time_ms| Action { by_device: false, group: u32::from(group_of(TENANT, &id("user_id=1"))), ..by_gaid(time_ms) };
    let mut cluster = after(&[
        action(10, &["anonymous_id=a"], &["device_id=d", "gaid=g"]),
        by_user(20),
        by_gaid(30),
        action(40, &["user_id=1"], &["idfv=v"]),
    ]);
    let user = user(&mut cluster, "user_id=1");
    let devices = BTreeSet::from([device_id("device_id=d"), device_id("idfv=v")]);
    assert_eq!(BTreeSet::from_iter(user.devices), devices);
    assert_eq!(device(&mut cluster, "gaid=g").user.as_deref(), Some("user_id=1"));
    assert_eq!(devices_of(&cluster), 2);
    let ids: Vec<Option<String>> = events(&cluster).into_iter().map(|(_, device)| device).collect();
    assert_eq!(ids, [None, Some(device_id("device_id=d"))], "only its home knows it");
    assert_eq!((cluster.effects, cluster.rejected), (4, 0));
    crate::checks::consistent(&cluster).unwrap();
}

/// Records that an advertising id routes take effect in their order, whether they name a user or not.
#[test]
fn what_an_alias_routes_keeps_its_order() {
    for seed in 0..300 {
        let mut cluster = Cluster::new(1 + (seed % 8) as u32, seed);
        run(&mut cluster, &[action(10, &["user_id=1"], &["device_id=d", "gaid=g"])]);
        let names: Vec<String> = (0..8).map(|number| format!("e{number}")).collect();
        for (name, time_ms) in names.iter().zip(20..) {
            let user: &[&str] = if time_ms % 3 == 0 { &["user_id=1"] } else { &[] };
            let mut action = event(action(time_ms, user, &["gaid=g"]), name);
            if time_ms % 4 == 1 {
                // As the data API has it: another identifier comes before the one that routes.
                action.device_identifiers.insert(0, id("device_id=d"));
            }
            cluster.send(&action);
        }
        cluster.send(&Action { delete: true, ..action(40, &["user_id=1"], &["gaid=g"]) });
        cluster.run().unwrap();
        assert_eq!(reasons(&cluster), [""; 0], "seed {seed}: the deletion came last");
        assert_eq!(crate::paths::names(&cluster), names, "seed {seed}");
    }
}

/// The user by whom a device was known before another one took its identifier is not lost.
#[test]
fn a_device_that_takes_an_identifier_takes_its_last_user_along() {
    let mut cluster = after(&[
        action(10, &["user_id=1"], &["gaid=g"]),
        action(20, &[], &["device_id=d", "gaid=g"]),
        event(action(30, &[], &["gaid=g"]), "opened"),
    ]);
    assert_eq!(user(&mut cluster, "user_id=1").events, 1);
    crate::checks::consistent(&cluster).unwrap();
}

#[test]
fn an_advertising_id_goes_on_to_the_next_installation() {
    let mut cluster = after(&[
        action(10, &["user_id=1"], &["device_id=old", "gaid=g"]),
        action(20, &["user_id=2"], &["device_id=new", "gaid=g"]),
        action(15, &["user_id=3"], &["device_id=late", "gaid=g"]),
        event(action(30, &[], &["gaid=g"]), "install"),
    ]);
    assert_eq!(events(&cluster), [(user(&mut cluster, "user_id=2").id, Some(device_id("device_id=new")))]);
    crate::checks::consistent(&cluster).unwrap();
}

#[test]
fn what_came_before_the_name_says_whose_it_is() {
    let mut cluster = after(&[
        event(action(10, &[], &["gaid=g"]), "install"),
        action(20, &["anonymous_id=a"], &["device_id=d", "gaid=g"]),
        event(action(30, &[], &["gaid=g"]), "opened"),
    ]);
    assert_eq!(user(&mut cluster, "anonymous_id=a").events, 1);
    let first = cluster.device(&DeviceId::of(TENANT, &id("gaid=g"))).unwrap();
    assert_eq!(DeviceId::from_bytes(&first.same_as).unwrap().to_string(), device_id("device_id=d"));
    assert_eq!(device(&mut cluster, "gaid=g").id, device_id("device_id=d"));
    crate::checks::consistent(&cluster).unwrap();
}

#[test]
fn aliases_lead_on_to_the_device_of_the_first_type() {
    let mut cluster = after(&[
        action(10, &["user_id=1"], &["idfv=v", "idfa=f"]),
        action(20, &["user_id=2"], &["device_id=d", "idfv=v"]),
        event(action(30, &[], &["idfa=f"]), "install"),
    ]);
    assert_eq!(events(&cluster), [(user(&mut cluster, "user_id=2").id, Some(device_id("device_id=d")))]);
    assert_eq!(device(&mut cluster, "idfa=f").id, device_id("device_id=d"));
}

#[test]
fn a_deletion_reaches_a_device_that_was_found_by_a_further_identifier() {
    let delete = Action { delete: true, ..action(30, &["user_id=1"], &[]) };
    let mut cluster = after(&[
        action(10, &["anonymous_id=a"], &["device_id=d", "gaid=g"]),
        action(20, &["user_id=1"], &["gaid=g"]),
        delete,
    ]);
    assert_eq!(device(&mut cluster, "device_id=d").user, None);
    run(&mut cluster, &[action(25, &["user_id=1"], &["gaid=g"])]);
    assert_eq!(device(&mut cluster, "device_id=d").user, None, "a late one");
    assert_eq!(reasons(&cluster), ["m25 user_deleted"], "one reject for one record");
    let mut unknown = action(40, &["user_id=9"], &["gaid=g"]);
    unknown.update_existing_only = true;
    run(&mut cluster, &[unknown]);
    assert_eq!(reasons(&cluster), ["m25 user_deleted", "m40 user_unknown"]);
    crate::checks::consistent(&cluster).unwrap();
}

/// The device may learn of a deletion later than a record comes that names nobody: that is of whom the device itself names.
#[test]
fn a_deleted_user_does_not_come_back_by_a_record_of_the_device_alone() {
    for (seed, by) in (0..300).flat_map(|seed| [(seed, "gaid=g"), (seed, "device_id=d")]) {
        let mut cluster = Cluster::new(1 + (seed % 8) as u32, seed);
        run(&mut cluster, &[action(10, &["user_id=1", "email=a@x"], &["device_id=d", "gaid=g"])]);
        cluster.send(&Action { delete: true, ..action(20, &["user_id=1"], &[by]) });
        let names: Vec<String> = (30..34).map(|time_ms| format!("e{time_ms}")).collect();
        for (name, time_ms) in names.iter().zip(30..) {
            cluster.send(&event(action(time_ms, &[], &[by]), name));
        }
        // It is about nobody who was deleted: whoever comes back does so by a record of his own.
        if seed % 2 == 0 {
            cluster.send(&action(40, &["email=a@x"], &[by]));
        }
        cluster.run().unwrap();
        assert_eq!(cluster.node(&id("user_id=1")).map(|node| node.user), None, "seed {seed}, {by}");
        assert_eq!(cluster.node(&id("email=a@x")).is_some(), seed % 2 == 0, "seed {seed}, {by}");
        assert_eq!(crate::paths::names(&cluster), names, "seed {seed}, {by}");
        let own = cluster.node(&id("device_id=d")).map(|node| node.user.to_string());
        let whose: BTreeSet<Option<String>> = events(&cluster).into_iter().map(|(user, _)| Some(user)).collect();
        assert_eq!(whose, BTreeSet::from([own]), "seed {seed}, {by}");
        assert_eq!((events(&cluster).len(), reasons(&cluster).len()), (4, 0), "seed {seed}, {by}");
        crate::checks::consistent(&cluster).unwrap();
    }
}

/// What a device must not take from records that are under way does not add up.
#[test]
fn refused_records_do_not_fill_a_device() {
    let mut cluster = after(&[]);
    for number in 0..600 {
        let unknown = action(10 + number, &[&format!("user_id=nobody-{number}")], &["device_id=d"]);
        run(&mut cluster, &[Action { update_existing_only: true, ..unknown }]);
    }
    let state = cluster.device(&DeviceId::of(TENANT, &id("device_id=d"))).unwrap();
    assert_eq!(state.forgotten.len(), 256);
    assert!(state.forgotten.iter().all(|entry| entry.stamp.is_some_and(|stamp| stamp.time_ms >= 10 + 600 - 256)));
    assert_eq!(reasons(&cluster).len(), 600);
    run(&mut cluster, &[action(1_000, &["user_id=1"], &["device_id=d", "gaid=g"])]);
    assert_eq!(device(&mut cluster, "gaid=g").user.as_deref(), Some("user_id=1"));
}

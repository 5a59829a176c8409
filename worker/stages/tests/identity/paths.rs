//! What a device identifier routes takes effect in its order, by whatever it names its user, and may be deleted and merged by it.

use crate::checks::consistent;
use crate::cluster::Cluster;
use crate::history::{Rng, TENANT};
use crate::scenarios::{action, after, device, event, events, id, look, reasons, run, set, user};
use millstream_model::id::DeviceId;
use millstream_model::key::group_of;
use millstream_model::proto::goal::Whom;
use millstream_model::proto::{Action, DeviceState, Merge};
use millstream_stages::action::{ActionLimits, Answer, Inspect, Value};

pub fn names(cluster: &Cluster) -> Vec<String> {
    let json = cluster.events.iter().map(|it| serde_json::from_slice::<serde_json::Value>(&it.payload).unwrap());
    json.map(|json| json["event"].as_str().unwrap().to_owned()).collect()
}

/// Records by one device, each naming one of these identifiers or nobody, all sent at once.
fn alternating(cluster: &mut Cluster, by: &[&str], users: &[&[&str]], times: std::ops::Range<u64>) -> Vec<String> {
    let mut rng = Rng(times.start ^ users.len() as u64 ^ cluster.steps);
    let names: Vec<String> = times.clone().map(|time_ms| format!("e{time_ms}")).collect();
    for (name, time_ms) in names.iter().zip(times) {
        cluster.send(&event(action(time_ms, users[rng.below(users.len())], by), name));
    }
    cluster.run().unwrap();
    names
}

fn state<'c>(cluster: &'c Cluster, text: &str) -> &'c DeviceState {
    cluster.device(&DeviceId::of(TENANT, &id(text))).unwrap()
}

/// Nothing waits any more.
pub fn is_at_rest(cluster: &Cluster) -> Result<(), String> {
    for (key, value) in cluster.values()? {
        if let Value::Device(device) = value
            && let Some(path) = &device.path
            && (path.asked.is_some() || !path.waiting.is_empty())
        {
            return Err(format!("{key:?} waits: {path:?}"));
        }
    }
    Ok(())
}

const ROUTED_BY: [&str; 2] = ["device_id=d", "gaid=g"];

/// One user, whom each record names by another identifier: as when an app knows the account and a server the address.
#[test]
fn records_of_one_device_keep_their_order_by_whatever_they_name_their_user() {
    let users: [&[&str]; 4] = [&["user_id=1"], &["email=a@x"], &["phone=1"], &[]];
    for (seed, by) in (0..300).flat_map(|seed| ROUTED_BY.map(|by| (seed, by))) {
        let mut cluster = Cluster::new(1 + (seed % 8) as u32, seed);
        let link = action(10, &["user_id=1", "email=a@x", "phone=1"], &["device_id=d", "gaid=g"]);
        run(&mut cluster, &[link]);
        let sent = alternating(&mut cluster, &[by], &users, 20..60);
        assert_eq!(names(&cluster), sent, "seed {seed}, {by}");
        assert_eq!(user(&mut cluster, "phone=1").events, 40, "seed {seed}, {by}");
        assert_eq!(is_at_rest(&cluster), Ok(()), "seed {seed}, {by}");
        consistent(&cluster).unwrap();
    }
}

/// The identifiers turn out to be one user's only on the way, in whatever order.
#[test]
fn records_of_one_device_keep_their_order_while_their_users_become_one() {
    for seed in 0..600 {
        let mut cluster = Cluster::new(1 + (seed % 8) as u32, seed);
        run(&mut cluster, &[action(10, &["user_id=1"], &["device_id=d"]), action(11, &["email=a@x"], &[])]);
        cluster.send(&action(15, &["user_id=1", "email=a@x"], &[]));
        let users: [&[&str]; 3] = [&["user_id=1"], &["email=a@x"], &["user_id=1", "phone=1"]];
        let sent = alternating(&mut cluster, &["device_id=d"], &users, 20..60);
        assert_eq!(names(&cluster), sent, "seed {seed}");
        assert_eq!(user(&mut cluster, "user_id=1").events, 40, "seed {seed}");
        consistent(&cluster).unwrap();
    }
}

/// An advertising id becomes a further one of a device, and goes on to another one, while records come by it.
#[test]
fn records_by_an_identifier_that_moves_keep_their_order() {
    for seed in 0..600 {
        let mut cluster = Cluster::new(1 + (seed % 8) as u32, seed);
        let names: Vec<String> = (20..60).map(|time_ms| format!("e{time_ms}")).collect();
        for (name, time_ms) in names.iter().zip(20..) {
            let user: &[&str] = if time_ms % 3 == 0 { &[] } else { &["user_id=1"] };
            let mut action = event(action(time_ms, user, &["gaid=g"]), name);
            if seed % 2 == 0 && time_ms % 5 == 0 {
                action.device_identifiers.insert(0, id(if time_ms < 40 { "device_id=1" } else { "device_id=2" }));
                action.routing = 1;
            }
            cluster.send(&action);
        }
        // Of another routing key, at any time between.
        for (device, time_ms) in [("device_id=1", 70), ("device_id=2", 71), ("device_id=3", 72)] {
            cluster.send(&action(time_ms, &["user_id=1"], &[device, "gaid=g"]));
        }
        cluster.run().unwrap();
        assert_eq!(self::names(&cluster), names, "seed {seed}");
        assert_eq!(is_at_rest(&cluster), Ok(()), "seed {seed}");
        assert_eq!((cluster.effects, cluster.rejected), (43, 0), "seed {seed}");
        consistent(&cluster).unwrap();
    }
}

/// Several people use one device in turn.
#[test]
fn records_of_a_shared_device_keep_their_order() {
    for seed in 0..300 {
        let mut cluster = Cluster::new(1 + (seed % 8) as u32, seed);
        let users: [&[&str]; 4] = [&["user_id=1"], &["user_id=2"], &["email=a@x"], &[]];
        let sent = alternating(&mut cluster, &["device_id=d"], &users, 20..60);
        assert_eq!(names(&cluster), sent, "seed {seed}");
        consistent(&cluster).unwrap();
    }
}

/// Once it is known that two identifiers are one user's, nothing waits for anything.
#[test]
fn what_is_known_to_be_one_user_is_not_asked_again() {
    let link = action(10, &["user_id=1", "email=a@x"], &[]);
    let mut cluster = after(&[link, action(20, &["user_id=1"], &["device_id=d"])]);
    let steps = |cluster: &mut Cluster, time_ms, named: &str| {
        let before = cluster.steps;
        run(cluster, &[action(time_ms, &[named], &["device_id=d"])]);
        cluster.steps - before
    };
    let plain = steps(&mut cluster, 30, "user_id=1");
    assert!(steps(&mut cluster, 40, "email=a@x") > plain, "the first one asks");
    for time_ms in 50..60 {
        let named = if time_ms % 2 == 0 { "email=a@x" } else { "user_id=1" };
        assert_eq!(steps(&mut cluster, time_ms, named), plain);
    }
}

/// What waits does not add up; beyond the bound order is given up, and nothing else.
#[test]
fn a_value_that_many_share_makes_no_device_that_only_waits() {
    let most = std::cell::Cell::new(0);
    for seed in 0..20 {
        let mut cluster = Cluster::new(4, seed);
        for number in 0..2_000 {
            let named = format!("user_id={}", number % 500);
            cluster.send(&event(action(10 + number, &[&named], &["device_id=none"]), "seen"));
        }
        let watch = |cluster: &Cluster| {
            let path = cluster.device(&DeviceId::of(TENANT, &id("device_id=none"))).and_then(|it| it.path.as_ref());
            most.set(path.map_or(0, |path| path.waiting.len()).max(most.get()));
        };
        cluster.run_watched(watch).unwrap();
        assert_eq!((cluster.events.len(), cluster.effects), (2_000, 2_000), "seed {seed}");
        assert_eq!(is_at_rest(&cluster), Ok(()), "seed {seed}");
        let mut newest = std::collections::BTreeMap::new();
        for ((whose, _), time) in events(&cluster).into_iter().zip(cluster.events.iter().map(time_of)) {
            assert!(newest.insert(whose, time) < Some(time), "seed {seed}: one user's, by one identifier");
        }
        consistent(&cluster).unwrap();
    }
    assert_eq!(most.get(), 256, "waited at the same time");
}

fn time_of(message: &millstream_stages::PublicMessage) -> u64 {
    let json: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
    json["message_id"].as_str().unwrap().trim_start_matches('m').parse().unwrap()
}

/// A deletion on the way, of the whole user, by this or that identifier: each record ends once, and no one is made whom none of the later records names.
#[test]
fn a_deletion_on_the_path_brings_nobody_back() {
    for (seed, by) in (0..600).flat_map(|seed| ROUTED_BY.map(|by| (seed, by))) {
        let mut cluster = Cluster::new(1 + (seed % 8) as u32, seed);
        run(&mut cluster, &[action(10, &["user_id=1", "email=a@x"], &["device_id=d", "gaid=g"])]);
        // Its device has learnt that both are one user's.
        for (time_ms, named) in [(12, "user_id=1"), (13, "email=a@x"), (14, "user_id=1")] {
            run(&mut cluster, &[action(time_ms, &[named], &[by])]);
        }
        for time_ms in 20..30 {
            let named = if time_ms % 2 == 0 { "email=a@x" } else { "user_id=1" };
            cluster.send(&set(event(action(time_ms, &[named], &[by]), "before"), "before", 1));
        }
        let elsewhere = seed % 3 == 0;
        let deleted = if seed % 2 == 0 { "user_id=1" } else { "email=a@x" };
        let devices: &[&str] = if elsewhere { &[] } else { &[by] };
        cluster.send(&Action { delete: true, ..action(30, &[deleted], devices) });
        for time_ms in 40..50 {
            cluster.send(&set(event(action(time_ms, &["email=a@x"], &[by]), "after"), "after", 1));
        }
        cluster.run().unwrap();
        let refused = reasons(&cluster).len();
        assert!(elsewhere || refused == 0, "seed {seed}, {by}: {refused}");
        assert_eq!(cluster.effects + cluster.rejected, 4 + 10 + 1 + 10, "seed {seed}, {by}");
        assert_eq!(events(&cluster).len() + refused, 20, "seed {seed}, {by}");
        assert!(cluster.node(&id("user_id=1")).is_none(), "seed {seed}, {by}");
        let left = user(&mut cluster, "email=a@x");
        assert_eq!(left.identifiers.len(), 1, "seed {seed}, {by}");
        assert_eq!(left.attributes.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["after"]);
        assert_eq!(is_at_rest(&cluster), Ok(()), "seed {seed}, {by}");
        consistent(&cluster).unwrap();
    }
}

/// A deletion takes one of two identifiers from a user while a record by it is on the other one's way: nobody gets a record that does not name them.
#[test]
fn who_lost_an_identifier_gets_no_record_by_it() {
    let mut late = 0;
    for seed in 0..300 {
        let mut cluster = Cluster::new(1 + (seed % 8) as u32, seed);
        run(&mut cluster, &[action(10, &["user_id=1", "email=a@x"], &["device_id=d"])]);
        for (time_ms, named) in [(12, "email=a@x"), (13, "user_id=1")] {
            run(&mut cluster, &[action(time_ms, &[named], &["device_id=d"])]);
        }
        assert_eq!(state(&cluster, "device_id=d").path.as_ref().unwrap().same.len(), 1);
        run(&mut cluster, &[action(50, &["user_id=1"], &[])]);
        cluster.send(&Action { delete: true, ..action(30, &["user_id=1"], &[]) });
        cluster.send(&event(action(60, &["email=a@x"], &["device_id=d"]), "later"));
        cluster.run().unwrap();
        let since = user(&mut cluster, "email=a@x").identifiers.remove(0).since;
        let is_theirs = user(&mut cluster, "email=a@x").id == user(&mut cluster, "user_id=1").id;
        assert_eq!(is_theirs, since.ends_with("00.01Z"), "seed {seed}: {since}");
        late += usize::from(!is_theirs);
        consistent(&cluster).unwrap();
    }
    assert!((50..250).contains(&late), "{late} records came after the deletion");
}

/// The node of an identifier may name somebody else than the user who has it, for a moment: whom it names is who its records, and its deletions, are of.
#[test]
fn who_has_an_identifier_gets_its_records_only_once_its_node_leads_there() {
    let mut cluster =
        after(&[action(10, &["user_id=1", "email=a@x"], &[]), action(20, &["user_id=1"], &["device_id=d"])]);
    crate::races::lose_node(&mut cluster, "email=a@x");
    run(
        &mut cluster,
        &[action(30, &["email=a@x"], &[]), event(action(40, &["email=a@x"], &["device_id=d"]), "by email")],
    );
    assert_eq!(events(&cluster)[0].0, cluster.node(&id("email=a@x")).unwrap().user.to_string());
}

/// A record that came late, about an identifier that its user got only after it: a deletion before that covers it.
#[test]
fn who_got_an_identifier_after_a_record_does_not_get_that_record() {
    let mut cluster = after(&[
        action(20, &["user_id=1"], &["device_id=d"]),
        Action { delete: true, ..action(17, &["email=a@x"], &[]) },
        action(30, &["user_id=1", "email=a@x"], &[]),
        event(action(15, &["email=a@x"], &["device_id=d"]), "late"),
    ]);
    assert_eq!(reasons(&cluster), ["m15 user_deleted"]);
    // The same when the device has learnt in the meantime whose it is.
    let known =
        [(40, "email=a@x"), (41, "user_id=1")].map(|(time_ms, named)| action(time_ms, &[named], &["device_id=d"]));
    run(&mut cluster, &known);
    run(&mut cluster, &[event(action(16, &["email=a@x"], &["device_id=d"]), "late")]);
    assert_eq!(reasons(&cluster), ["m15 user_deleted", "m16 user_deleted"]);
}

/// A late record does not take the path of its user's other identifier, and nothing behind it overtakes it.
#[test]
fn a_late_record_keeps_its_place() {
    for seed in 0..300 {
        let mut cluster = Cluster::new(1 + (seed % 8) as u32, seed);
        run(&mut cluster, &[action(30, &["user_id=1", "email=a@x"], &[])]);
        for (time_ms, named) in [(40, "user_id=1"), (41, "email=a@x")] {
            run(&mut cluster, &[action(time_ms, &[named], &["device_id=d"])]);
        }
        for (time_ms, named) in [(15, "email=a@x"), (50, "user_id=1")] {
            cluster.send(&event(action(time_ms, &[named], &["device_id=d"]), named));
        }
        cluster.run().unwrap();
        assert_eq!(names(&cluster), ["email=a@x", "user_id=1"], "seed {seed}");
    }
}

/// After a deletion a device keeps nothing by which its user was named.
#[test]
fn a_path_forgets_whom_a_deletion_took() {
    let mut cluster = after(&[
        action(10, &["user_id=1", "email=a@x"], &["device_id=d"]),
        action(20, &["email=a@x"], &["device_id=d"]),
        Action { delete: true, ..action(30, &["user_id=1"], &[]) },
    ]);
    let path = state(&cluster, "device_id=d").path.clone().unwrap();
    assert_eq!((path.goal, path.same.len(), path.asked, path.waiting.len()), (None, 0, None, 0));
    run(&mut cluster, &[event(action(40, &["email=a@x"], &["device_id=d"]), "back")]);
    assert_eq!(user(&mut cluster, "email=a@x").identifiers.len(), 1);
}

fn delete(time_ms: u64, by: &str) -> Action {
    Action { delete: true, ..action(time_ms, &[], &[by]) }
}

fn merge(time_ms: u64, retained: &str, merged: &str) -> Action {
    Action {
        merge: Some(Merge { retained: Some(id(retained)), merged: Some(id(merged)) }),
        group: u32::from(group_of(TENANT, &id(retained))),
        by_device: false,
        ..action(time_ms, &[retained, merged], &[])
    }
}

fn is_nobody(cluster: &Cluster, text: &str) -> bool {
    cluster.node(&id(text)).is_none()
}

/// A user whom no record names but by a device is deleted by that device's identifier; who is named there is not.
#[test]
fn a_user_known_by_a_device_alone_can_be_deleted() {
    for seed in 0..100 {
        let mut cluster = Cluster::new(1 + (seed % 8) as u32, seed);
        for time_ms in 10..15 {
            cluster.send(&set(event(action(time_ms, &[], &["device_id=d"]), "opened"), "plan", 1));
        }
        cluster.send(&delete(20, "device_id=d"));
        cluster.run().unwrap();
        assert!(is_nobody(&cluster, "device_id=d"), "seed {seed}");
        assert_eq!((events(&cluster).len(), reasons(&cluster).len()), (5, 0), "seed {seed}: the deletion came last");
        let tombstones = cluster.mutations.iter().filter(|it| it.collection == "users" && is_tombstone(it)).count();
        assert_eq!(tombstones, 1, "seed {seed}");
        run(&mut cluster, &[action(30, &["user_id=1"], &["device_id=d"]), delete(40, "device_id=d")]);
        assert_eq!(user(&mut cluster, "user_id=1").identifiers.len(), 1, "seed {seed}: it was not known by the device");
        assert_eq!((cluster.effects, cluster.rejected), (8, 0), "seed {seed}");
        consistent(&cluster).unwrap();
    }
}

fn is_tombstone(mutation: &millstream_model::proto::Mutation) -> bool {
    use millstream_model::proto::operation::Op;
    mutation.operations.iter().any(|operation| matches!(operation.op, Some(Op::Tombstone(_))))
}

/// A further identifier stands for the device that has it, and for whoever was known by it before.
#[test]
fn a_deletion_by_a_further_identifier_reaches_the_devices_own_user() {
    for seed in 0..200 {
        let mut cluster = Cluster::new(1 + (seed % 8) as u32, seed);
        run(&mut cluster, &[event(action(10, &[], &["gaid=g"]), "install")]);
        run(&mut cluster, &[event(action(20, &[], &["device_id=d", "gaid=g"]), "opened")]);
        assert!(!is_nobody(&cluster, "gaid=g") && !is_nobody(&cluster, "device_id=d"));
        for time_ms in 21..25 {
            cluster.send(&event(action(time_ms, &[], &["gaid=g"]), "clicked"));
        }
        cluster.send(&delete(30, "gaid=g"));
        cluster.run().unwrap();
        assert!(is_nobody(&cluster, "gaid=g") && is_nobody(&cluster, "device_id=d"), "seed {seed}");
        assert_eq!((cluster.effects, cluster.rejected), (7, 0), "seed {seed}");
        consistent(&cluster).unwrap();
    }
}

#[test]
fn deleting_by_an_unknown_device_is_an_effect_and_is_remembered() {
    let mut cluster = after(&[delete(20, "device_id=d"), delete(21, "gaid=g"), action(10, &[], &["gaid=g"])]);
    assert_eq!((cluster.effects, cluster.rejected), (2, 1));
    assert_eq!(reasons(&cluster), ["m10 user_deleted"]);
    run(&mut cluster, &[action(30, &[], &["device_id=d"])]);
    assert_eq!(user(&mut cluster, "device_id=d").identifiers.len(), 1);
}

/// What an app did before its user had a name becomes theirs.
#[test]
fn a_user_known_by_a_device_alone_can_be_merged() {
    for (seed, order) in (0..200).flat_map(|seed| [(seed, false), (seed, true)]) {
        let mut cluster = Cluster::new(1 + (seed % 8) as u32, seed);
        run(&mut cluster, &[event(action(10, &[], &["device_id=d"]), "opened")]);
        let (retained, merged) = if order { ("device_id=d", "user_id=1") } else { ("user_id=1", "device_id=d") };
        cluster.send(&event(action(20, &["user_id=1"], &[]), "bought"));
        cluster.send(&merge(30, retained, merged));
        cluster.run().unwrap();
        let view = user(&mut cluster, "user_id=1");
        assert_eq!((view.events, view.identifiers.len()), (2, 2), "seed {seed}");
        run(&mut cluster, &[event(action(40, &[], &["device_id=d"]), "opened")]);
        assert_eq!(user(&mut cluster, "user_id=1").events, 3, "seed {seed}");
        assert_eq!(device(&mut cluster, "device_id=d").user, None, "seed {seed}");
        run(&mut cluster, &[delete(50, "device_id=d")]);
        assert!(is_nobody(&cluster, "user_id=1"), "seed {seed}: it is the identifier of one user, as any other");
        assert_eq!((cluster.effects, cluster.rejected), (5, 0), "seed {seed}");
        consistent(&cluster).unwrap();
    }
}

/// It links the identifiers that it names and no others, so what it does depends on no device and on no order (I9).
#[test]
fn a_merge_by_a_further_identifier_is_of_whom_that_names() {
    for (seed, order) in (0..200).flat_map(|seed| [(seed, false), (seed, true)]) {
        let mut cluster = Cluster::new(1 + (seed % 8) as u32, seed);
        run(&mut cluster, &[event(action(10, &[], &["gaid=g"]), "install"), action(15, &["user_id=1"], &[])]);
        cluster.send(&event(action(20, &[], &["device_id=d", "gaid=g"]), "opened"));
        let (retained, merged) = if order { ("gaid=g", "user_id=1") } else { ("user_id=1", "gaid=g") };
        cluster.send(&merge(30, retained, merged));
        cluster.run().unwrap();
        let view = user(&mut cluster, "user_id=1");
        assert_eq!(view.identifiers.iter().map(|it| &*it.identifier).collect::<Vec<_>>(), ["gaid=g", "user_id=1"]);
        assert_eq!((view.events, user(&mut cluster, "device_id=d").events), (1, 1), "seed {seed}");
        assert_eq!((cluster.effects, cluster.rejected), (4, 0), "seed {seed}");
        consistent(&cluster).unwrap();
    }
}

/// Both are routed by one identifier: the merge comes after the deletion, and has no part in it.
#[test]
fn a_merge_by_a_device_comes_after_a_deletion_by_it() {
    for (seed, by) in (0..200).flat_map(|seed| ROUTED_BY.map(|by| (seed, by))) {
        let mut cluster = Cluster::new(1 + (seed % 8) as u32, seed);
        run(&mut cluster, &[set(action(10, &["user_id=1"], &[]), "plan", 1)]);
        run(&mut cluster, &[action(11, &[], &["device_id=d", "gaid=g"]), action(12, &["user_id=2"], &[by])]);
        cluster.send(&delete(20, by));
        cluster.send(&merge(30, by, "user_id=1"));
        cluster.run().unwrap();
        assert_eq!(user(&mut cluster, "user_id=1").attributes.len(), 1, "seed {seed}, {by}");
        consistent(&cluster).unwrap();
    }
}

/// What comes behind a deletion, by whatever it names somebody, has one order.
#[test]
fn what_follows_a_deletion_on_the_path_keeps_its_order() {
    for (seed, goal, other) in
        (0..500).flat_map(|seed| [(seed, "user_id=1", "email=a@x"), (seed, "email=a@x", "user_id=1")])
    {
        let mut cluster = Cluster::new(1 + (seed % 8) as u32, seed);
        run(&mut cluster, &[action(10, &["user_id=1", "email=a@x"], &["device_id=d"])]);
        for (time_ms, named) in [(12, goal), (13, other), (14, goal)] {
            run(&mut cluster, &[action(time_ms, &[named], &["device_id=d"])]);
        }
        cluster.send(&Action { delete: true, ..action(20, &["user_id=1"], &["device_id=d"]) });
        let sent = alternating(&mut cluster, &["device_id=d"], &[&["email=a@x"]], 30..50);
        assert_eq!(names(&cluster), sent, "seed {seed}, {goal}");
        consistent(&cluster).unwrap();
    }
}

/// A device that takes another one's identifier takes its last user along, and forgets them when they are deleted.
#[test]
fn a_path_forgets_whom_another_device_brought() {
    for seed in 0..500 {
        let mut cluster = Cluster::new(1 + (seed % 8) as u32, seed);
        cluster.send(&action(10, &["user_id=1"], &["idfv=v"]));
        cluster.send(&Action { delete: true, ..action(20, &["user_id=1"], &[]) });
        let mut both = action(30, &[], &["device_id=d", "idfv=v"]);
        (both.routing, both.group) = (1, u32::from(group_of(TENANT, &id("idfv=v"))));
        cluster.send(&both);
        cluster.run().unwrap();
        consistent(&cluster).unwrap();
    }
}

/// Nothing of who was deleted stays in a device that was not among theirs.
#[test]
fn a_path_forgets_whom_a_deletion_took_before_the_device_was_theirs() {
    let known = [action(5, &[], &["device_id=d"]), action(10, &["email=a@x"], &[])];
    let refused = [
        Action { delete: true, ..action(30, &["email=a@x"], &[]) },
        // It was under way when the deletion came.
        action(20, &["email=a@x"], &["device_id=d"]),
    ];
    let by_the_device = [Action { delete: true, ..action(30, &["email=a@x"], &["device_id=d"]) }];
    for then in [&refused[..], &by_the_device[..]] {
        let cluster = after(&[&known[..], then].concat());
        let path = state(&cluster, "device_id=d").path.clone().unwrap();
        assert_eq!((path.goal, path.same.len()), (None, 0));
    }
}

/// A deletion by a device of which there was no record yet is not overtaken by what comes behind it.
#[test]
fn a_deletion_by_an_unknown_device_keeps_its_place() {
    for seed in 0..300 {
        let mut cluster = Cluster::new(1 + (seed % 8) as u32, seed);
        run(&mut cluster, &[action(10, &["user_id=1", "email=a@x"], &[])]);
        let one = cluster.node(&id("user_id=1")).unwrap().user.to_string();
        cluster.send(&Action { delete: true, ..action(20, &["user_id=1"], &["device_id=d"]) });
        cluster.send(&event(action(30, &["email=a@x"], &["device_id=d"]), "after"));
        cluster.run().unwrap();
        assert_ne!(events(&cluster)[0].0, one, "seed {seed}");
        consistent(&cluster).unwrap();
    }
    let mut cluster = after(&[delete(20, "device_id=d")]);
    assert_eq!(look(&mut cluster, Inspect::Device(id("device_id=d"))), Answer::Unknown);
}

/// A user who has no room for a device tells it so, and it keeps nothing of them: what a deletion takes later it need not know.
#[test]
fn a_device_that_its_user_has_no_room_for_keeps_the_order() {
    for seed in 0..1_000 {
        let limits = ActionLimits { max_devices: 1, ..ActionLimits::default() };
        let mut cluster = Cluster::within(limits, 1 + (seed % 8) as u32, seed);
        run(&mut cluster, &[action(10, &["user_id=1", "email=a@x"], &["device_id=other"])]);
        for (time_ms, named) in [(12, "user_id=1"), (13, "email=a@x"), (14, "user_id=1")] {
            run(&mut cluster, &[action(time_ms, &[named], &["device_id=d"])]);
        }
        run(&mut cluster, &[action(50, &["user_id=1"], &[])]);
        run(&mut cluster, &[Action { delete: true, ..action(30, &["user_id=1"], &[]) }]);
        run(&mut cluster, &[action(60, &["email=a@x"], &["device_id=d"])]);
        cluster.send(&action(70, &["user_id=1", "email=a@x"], &[]));
        let sent = alternating(&mut cluster, &["device_id=d"], &[&["email=a@x"]], 80..100);
        assert_eq!(names(&cluster), sent, "seed {seed}");
        consistent(&cluster).unwrap();
    }
}

/// A name by which a record asks is not one that the user gets.
#[test]
fn a_question_links_nothing() {
    let mut cluster = after(&[
        action(10, &["user_id=1"], &["device_id=d"]),
        action(20, &["user_id=2"], &["device_id=d"]),
        action(30, &["user_id=1"], &["device_id=d"]),
    ]);
    let of = |cluster: &mut Cluster, text: &str| -> Vec<String> {
        user(cluster, text).identifiers.into_iter().map(|it| it.identifier).collect()
    };
    assert_eq!(of(&mut cluster, "user_id=1"), ["user_id=1"]);
    assert_eq!(of(&mut cluster, "user_id=2"), ["user_id=2"]);
    let goal = state(&cluster, "device_id=d").path.as_ref().and_then(|path| path.goal.clone());
    assert_eq!(goal.and_then(|goal| goal.whom), Some(Whom::User(id("user_id=1"))));
}

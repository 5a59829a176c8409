//! Races by hand: messages that come later than anything that was sent after them.

use crate::cluster::Cluster;
use crate::history::TENANT;
use crate::scenarios::{SHARDS, action, after, id, look, reasons, run, set, user};
use millstream_model::id::DeviceId;
use millstream_model::key::{Kind, StateKey, group_of, shard_of};
use millstream_model::proto::exchange::Body;
use millstream_model::proto::{Action, Apply, Closing, Device, Drain, Link, MergeUsers, Resolve, Stamp, Unlink};
use millstream_stages::action::{Answer, Inspect, Value};

fn stamp(time_ms: u64) -> Option<Stamp> {
    Some(Stamp { time_ms, ..Stamp::default() })
}

/// As between an unlink and a link.
pub fn lose_node(cluster: &mut Cluster, text: &str) {
    let key = StateKey::of_identifier(TENANT, Kind::Node, &id(text));
    let shard = shard_of(key.group().unwrap(), SHARDS) as usize;
    assert!(cluster.states[shard].entries.remove(&key).is_some());
}

/// As after an unlink whose drain is under way.
fn close_node(cluster: &mut Cluster, text: &str) {
    let key = StateKey::of_identifier(TENANT, Kind::Node, &id(text));
    let shard = shard_of(key.group().unwrap(), SHARDS) as usize;
    let Some(Value::Node(node)) = cluster.states[shard].entries.get_mut(&key) else { panic!("{text} has no node") };
    node.closing = Some(Box::new(Closing::default()));
}

/// A merge by an identifier that both users have lost by then: nobody may link it for the other.
#[test]
fn a_late_merge_links_nothing_to_a_deleted_user() {
    let mut cluster = after(&[action(10, &["user_id=1", "email=a@x"], &[])]);
    let deleted = cluster.node(&id("user_id=1")).unwrap().user;
    let mut first = action(20, &["user_id=1"], &[]);
    first.delete = true;
    let mut second = action(40, &["user_id=2"], &[]);
    second.delete = true;
    run(&mut cluster, &[first, action(30, &["user_id=2", "email=a@x"], &[])]);
    run(&mut cluster, &[action(50, &["user_id=2", "user_id=3"], &[]), second]);
    let larger = cluster.node(&id("user_id=3")).unwrap().user;
    let merge = MergeUsers {
        smaller: deleted.as_bytes().to_vec(),
        larger: larger.as_bytes().to_vec(),
        via: Some(id("email=a@x")),
        stamp: stamp(45),
        record_id: vec![1],
    };
    cluster.send_late(larger.home(), Body::Merge(merge));
    cluster.run().unwrap();
    assert_eq!(cluster.node(&id("email=a@x")), None);
    assert!(matches!(look(&mut cluster, Inspect::User(id("email=a@x"))), Answer::Deleted(_)));
}

/// The other user still has it: its home links it anew.
#[test]
fn a_late_merge_has_the_other_user_linked_anew() {
    let mut delete = action(20, &["user_id=2"], &[]);
    delete.delete = true;
    let mut cluster = after(&[action(10, &["user_id=2"], &[]), action(30, &["user_id=2", "user_id=3"], &[]), delete]);
    run(&mut cluster, &[action(40, &["user_id=1", "email=a@x"], &[])]);
    let (smaller, larger) = (&id("user_id=1"), &id("user_id=3"));
    let (smaller, larger) = (cluster.node(smaller).unwrap().user, cluster.node(larger).unwrap().user);
    lose_node(&mut cluster, "email=a@x");
    let merge = MergeUsers {
        smaller: smaller.as_bytes().to_vec(),
        larger: larger.as_bytes().to_vec(),
        via: Some(id("email=a@x")),
        stamp: stamp(35),
        record_id: vec![1],
    };
    cluster.send_late(larger.home(), Body::Merge(merge));
    cluster.run().unwrap();
    assert_eq!(cluster.node(&id("email=a@x")).unwrap().user, smaller);
}

/// Between an unlink and the link that follows it, an identifier names nobody; a deletion that comes just then is not lost.
#[test]
fn a_deletion_between_unlink_and_link_is_the_users() {
    let mut cluster = after(&[
        set(action(30, &["user_id=1", "email=a@x"], &[]), "new", 1),
        set(action(10, &["email=a@x"], &[]), "old", 1),
    ]);
    let user_id = cluster.node(&id("user_id=1")).unwrap().user;
    let group = group_of(TENANT, &id("email=a@x"));
    lose_node(&mut cluster, "email=a@x");
    let mut delete = action(20, &["email=a@x"], &[]);
    delete.delete = true;
    run(&mut cluster, &[delete]);
    let link = Link {
        identifier: Some(id("email=a@x")),
        user: user_id.as_bytes().to_vec(),
        stamp: stamp(30),
        record_id: vec![1],
        since: stamp(10),
        erased: None,
    };
    cluster.send_late(group, Body::Link(link));
    cluster.run().unwrap();
    let view = user(&mut cluster, "email=a@x");
    assert_eq!(view.attributes.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["new"]);
    assert_eq!(view.identifiers.len(), 2);
}

/// The unlink of a user that is part of this one by now, and this one has the identifier: its node goes, and comes again.
#[test]
fn a_late_unlink_is_followed_by_a_link() {
    let mut cluster = after(&[set(action(10, &["user_id=1", "email=a@x"], &[]), "plan", 1)]);
    let user_id = cluster.node(&id("email=a@x")).unwrap().user;
    let (identifier, users) = (Some(id("email=a@x")), vec![user_id.as_bytes().to_vec()]);
    let unlink = Unlink { identifier, users, erased: stamp(5) };
    cluster.send_late(group_of(TENANT, &id("email=a@x")), Body::Unlink(unlink));
    cluster.run().unwrap();
    let node = cluster.node(&id("email=a@x")).unwrap();
    assert_eq!((node.user, node.erased, node.closing.is_some()), (user_id, stamp(5), false));
    assert_eq!(user(&mut cluster, "email=a@x").attributes.len(), 1);
}

/// A record that the deletion covers was on the way to the user when the identifier was taken, and named again by a newer record.
#[test]
fn an_identifier_that_comes_back_brings_no_older_records() {
    let mut delete = action(20, &["user_id=1"], &[]);
    delete.delete = true;
    let mut cluster = after(&[
        action(10, &["user_id=1", "email=a@x"], &[]),
        action(30, &["user_id=1"], &[]),
        delete,
        action(40, &["user_id=1", "email=a@x"], &[]),
    ]);
    let user_id = cluster.node(&id("email=a@x")).unwrap().user;
    let late = |time_ms| {
        let (via, action) = (Some(id("email=a@x")), Some(set(action(time_ms, &["email=a@x"], &[]), "plan", 1)));
        Body::Apply(Box::new(Apply { user: user_id.as_bytes().to_vec(), via, action }))
    };
    cluster.send_late(user_id.home(), late(15));
    cluster.run().unwrap();
    assert_eq!(reasons(&cluster), ["m15 user_deleted"]);
    cluster.send_late(user_id.home(), late(25));
    cluster.run().unwrap();
    assert_eq!(user(&mut cluster, "email=a@x").attributes[0].name, "plan");
}

/// An old record by an identifier that a newer one brought: the identifier was the user's at the older stamp already.
#[test]
fn a_membership_begins_with_its_oldest_record() {
    let cluster = after(&[action(30, &["user_id=1", "email=a@x"], &[]), action(10, &["email=a@x"], &[])]);
    let state = cluster.user(&cluster.node(&id("email=a@x")).unwrap().user).unwrap();
    let member = state.identifiers.iter().find(|member| member.identifier == Some(id("email=a@x"))).unwrap();
    assert_eq!((member.stamp, member.last), (stamp(10), stamp(30)));
    assert_eq!(member.record_id, 10u128.to_be_bytes());
}

/// A node closes whose user has the identifier by a newer record: what waited finds that user, and makes no other.
#[test]
fn links_of_a_closing_node_come_before_the_records_that_waited_in_it() {
    let mut cluster = after(&[action(10, &["user_id=1", "email=a@x"], &[])]);
    let user_id = cluster.node(&id("email=a@x")).unwrap().user;
    close_node(&mut cluster, "email=a@x");
    let existing =
        |time_ms, name| Action { update_existing_only: true, ..set(action(time_ms, &["email=a@x"], &[]), name, 1) };
    run(&mut cluster, &[existing(30, "later")]);
    let (via, action) = (Some(id("email=a@x")), Some(existing(20, "returned")));
    cluster.send_late(group_of(TENANT, &id("email=a@x")), Body::Resolve(Resolve { via, action, returned: true }));
    cluster.run().unwrap();
    // Its home links the identifier before it answers, so the link is the last that comes to the node.
    let drain = Drain { user: user_id.as_bytes().to_vec(), identifier: Some(id("email=a@x")), hop: 0 };
    cluster.send_late(user_id.home(), Body::Drain(drain));
    cluster.run().unwrap();
    assert_eq!(reasons(&cluster), Vec::<String>::new());
    assert_eq!(cluster.node(&id("email=a@x")).unwrap().user, user_id);
    let view = user(&mut cluster, "user_id=1");
    assert_eq!(view.attributes.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["later", "returned"]);
}

/// The device was used again after the deletion, so its user keeps it; that record's part for the device comes only after a second
/// deletion, which covers it. By then nobody but the first deletion knew by which identifier the device named the user.
#[test]
fn a_device_that_outlives_a_deletion_forgets_what_the_deletion_took() {
    let mut cluster = after(&[action(10, &["email=a@x", "user_id=1"], &["device_id=d"])]);
    let home = cluster.node(&id("user_id=1")).unwrap().user;
    let newer = action(30, &["user_id=1"], &["device_id=d"]);
    let (via, user_part) = (Some(id("user_id=1")), Some(newer.clone()));
    let apply = Apply { user: home.as_bytes().to_vec(), via, action: user_part };
    cluster.send_late(home.home(), Body::Apply(Box::new(apply)));
    cluster.run().unwrap();
    let delete = |time_ms, text| Action { delete: true, ..action(time_ms, &[text], &[]) };
    run(&mut cluster, &[delete(20, "email=a@x"), delete(40, "user_id=1")]);
    let device = DeviceId::of(TENANT, &id("device_id=d"));
    let device_part = Some(Action { uncounted: true, ..newer });
    let late = Device {
        device: device.as_bytes().to_vec(),
        action: device_part,
        resolve_user: false,
        primary: None,
        user: None,
        user_stamp: None,
    };
    cluster.send_late(device.home(), Body::Device(late));
    cluster.run().unwrap();
    let Answer::Device(view) = look(&mut cluster, Inspect::Device(id("device_id=d"))) else { panic!("no device") };
    assert_eq!(view.user, None);
}

/// The identifier that links two users has not linked them yet when a deletion comes that is older than the link: it does not make the
/// other user's device forget that one.
#[test]
fn a_device_does_not_forget_a_user_that_was_linked_after_the_deletion() {
    let mut cluster = after(&[
        action(10, &["user_id=1"], &["device_id=d"]),
        action(15, &["user_id=2"], &["device_id=d"]),
        action(25, &["user_id=2"], &[]),
    ]);
    let linked = cluster.node(&id("user_id=2")).unwrap().user;
    close_node(&mut cluster, "user_id=2");
    let delete = Action { delete: true, ..action(20, &["user_id=1"], &[]) };
    run(&mut cluster, &[action(30, &["user_id=1", "user_id=2"], &[]), delete]);
    let drain = Drain { user: linked.as_bytes().to_vec(), identifier: Some(id("user_id=2")), hop: 0 };
    cluster.send_late(linked.home(), Body::Drain(drain));
    cluster.run().unwrap();
    assert_eq!(user(&mut cluster, "user_id=1").devices.len(), 1);
    let Answer::Device(view) = look(&mut cluster, Inspect::Device(id("device_id=d"))) else { panic!("no device") };
    assert_eq!(view.user.as_deref(), Some("user_id=2"));
}

//! No message is larger than the bound says, whatever is merged with what.

use crate::checks::{consistent, documents, people, run};
use crate::cluster::Cluster;
use crate::history::{History, Rng};
use crate::reference::SameDevices;
use crate::reference::reference;
use crate::scenarios::{action, id, user};
use millstream_model::proto::change::Op;
use millstream_model::proto::{Action, Change, Value as Attribute};
use millstream_stages::action::ActionLimits;
use std::collections::BTreeSet;

/// All attributes of a history fit, and nearly no state goes in one message.
pub const IN_PARTS: usize = 2_400;

/// What a message has beside what is bounded: fixed fields, one identifier, tenant and ids.
const ALLOWANCE: usize = 4 * 1024;

fn text(mut action: Action, name: &str, bytes: usize) -> Action {
    let value = Attribute::string("x".repeat(bytes));
    action.user_changes.push(Change { name: name.into(), op: Some(Op::Set(value)) });
    action
}

fn send(cluster: &mut Cluster, action: &Action) {
    cluster.send(action);
    cluster.run().unwrap();
}

fn rejects(cluster: &Cluster) -> Vec<serde_json::Value> {
    cluster.rejects.iter().map(|reject| serde_json::from_slice(&reject.payload).unwrap()).collect()
}

/// Users of nearly the size that one may have come to share an e-mail address, and at the end that address is an older user's.
#[test]
fn a_shared_address_makes_no_message_that_the_log_refuses() {
    let limits = ActionLimits { max_bytes: 4_000, max_merged_bytes: 8_000, ..ActionLimits::default() };
    let mut cluster = Cluster::within(limits.clone(), 4, 7);
    send(&mut cluster, &text(action(1, &["user_id=old"], &[]), "plan", 600));
    for number in 2..26 {
        let own = format!("user_id={number}");
        send(&mut cluster, &text(action(number, &[&own], &[]), &format!("a{number:0>2}"), 1_000));
    }
    for number in 2..26 {
        let own = format!("user_id={number}");
        send(&mut cluster, &action(100 + number, &[&own, "email=all@x"], &[]));
    }
    let merged = user(&mut cluster, "email=all@x");
    assert_eq!((merged.identifiers.len(), merged.merged.len()), (25, 23), "identity is whole");
    let names: Vec<&str> = merged.attributes.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["a19", "a20", "a21", "a22", "a23", "a24", "a25"], "the newest");
    send(&mut cluster, &action(200, &["user_id=old", "email=all@x"], &[]));
    let last = user(&mut cluster, "user_id=25");
    assert_eq!((last.identifiers.len(), last.merged.len(), last.attributes.len()), (26, 24, 7));
    assert_eq!(last.attributes.iter().filter(|it| it.name == "plan").count(), 0, "it is the oldest of all");
    assert!(cluster.largest.0 <= limits.max_merged_bytes + ALLOWANCE, "{:?}", cluster.largest);
    assert!(cluster.largest.1 <= limits.max_merged_bytes + ALLOWANCE, "{:?}", cluster.largest);
    every_attribute_left_out_is_told(&cluster, &merged.id, &last.id);
    assert_eq!((cluster.effects, cluster.rejected), (50, 0), "each record has had its effect");
    consistent(&cluster).unwrap();
}

/// What identity needs is never left out, so it goes in as many messages as it takes.
#[test]
fn a_user_of_very_many_identifiers_goes_in_parts_and_is_whole() {
    let limits = ActionLimits { max_merged_bytes: 4_000, ..ActionLimits::default() };
    let mut cluster = Cluster::within(limits.clone(), 4, 7);
    send(&mut cluster, &action(1, &["user_id=old"], &[]));
    for number in 2..202 {
        let (own, device) = (format!("user_id={number}"), format!("device_id={}", number % 20));
        send(&mut cluster, &action(number, &[&own], &[&device]));
    }
    for number in 2..202 {
        let own = format!("user_id={number}");
        send(&mut cluster, &action(300 + number, &[&own, "email=all@x"], &[]));
    }
    send(&mut cluster, &action(600, &["user_id=old", "email=all@x"], &[]));
    let last = user(&mut cluster, "user_id=201");
    assert_eq!((last.identifiers.len(), last.merged.len(), last.devices.len()), (202, 200, 20));
    assert!(cluster.largest.0 <= limits.max_merged_bytes + ALLOWANCE, "{:?}", cluster.largest);
    consistent(&cluster).unwrap();
    let delete = Action { delete: true, ..action(700, &["user_id=77"], &[]) };
    send(&mut cluster, &delete);
    assert_eq!(people(&cluster, &SameDevices::new()).unwrap().len(), 0);
    consistent(&cluster).unwrap();
}

fn every_attribute_left_out_is_told(cluster: &Cluster, merged: &str, last: &str) {
    let rejects = rejects(cluster);
    let names: BTreeSet<&str> = rejects.iter().map(|reject| reject["field"].as_str().unwrap()).collect();
    let mut expected: BTreeSet<String> = (2..19).map(|number| format!("set.a{number:0>2}")).collect();
    expected.insert("set.plan".to_owned());
    assert_eq!(names, expected.iter().map(String::as_str).collect());
    let ids: BTreeSet<&str> = rejects.iter().map(|reject| reject["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), rejects.len(), "each has an id of its own");
    for reject in &rejects {
        assert_eq!((&reject["reason"], &reject["partial"]), (&"too_large".into(), &true.into()));
        let (message, field) = (reject["message"].as_str().unwrap(), reject["field"].as_str().unwrap());
        let into = if field == "set.plan" { last } else { merged };
        assert!(message.contains(&format!("became part of user {into}")), "{message}");
        let name = field.strip_prefix("set.").unwrap();
        assert!(!reject["action"]["set"][name].is_null(), "with its value: {reject}");
    }
}

/// Stamps decide what stays, not which merge came first.
#[test]
fn what_a_merge_leaves_out_does_not_depend_on_the_order_of_merges() {
    let limits = ActionLimits { max_merged_bytes: 4_000, ..ActionLimits::default() };
    let kept = |order: &[u64], shards, seed| {
        let mut cluster = Cluster::within(limits.clone(), shards, seed);
        for number in 1..9 {
            let own = format!("user_id={number}");
            send(&mut cluster, &text(action(number, &[&own], &[]), &format!("a{number}"), 1_000));
        }
        for (index, number) in (100..).zip(order) {
            let (own, next) = (format!("user_id={number}"), format!("user_id={}", number + 1));
            cluster.send(&action(index, &[&own, &next], &[]));
        }
        cluster.run().unwrap();
        let view = cluster.node(&id("user_id=1")).unwrap().user;
        let (_, state) = cluster.last(view).unwrap();
        assert_eq!(state.identifiers.len(), 8);
        state.attributes.iter().map(|register| register.name.clone()).collect::<Vec<_>>()
    };
    let expected = kept(&[1, 2, 3, 4, 5, 6, 7], 1, 1);
    assert_eq!(expected, ["a6", "a7", "a8"]);
    for (seed, order) in [[7, 6, 5, 4, 3, 2, 1], [4, 1, 7, 2, 6, 3, 5], [2, 4, 6, 1, 3, 5, 7]].iter().enumerate() {
        for shards in 1..5 {
            assert_eq!(kept(order, shards, seed as u64), expected, "{order:?}, {shards} shards");
        }
    }
}

/// The values are large, so that every merge of some users has more than fits.
fn heavy(history: &History, index: usize, rng: &mut Rng) -> Action {
    let mut action = history.action(index);
    if !action.delete && action.merge.is_none() {
        for _ in 0..rng.below(3) {
            let (name, bytes) = (format!("h.{}", rng.below(40)), 200 + rng.below(700));
            if action.user_changes.iter().all(|change| change.name != name) {
                action = text(action, &name, bytes);
            }
        }
    }
    action
}

/// Gives how many rejects said what was left out.
fn check(seed: u64, deletes: bool, max_bytes: usize, max_merged_bytes: usize) -> usize {
    let mut rng = Rng(seed);
    let history = History::random(&mut rng, deletes);
    let limits = ActionLimits { max_bytes, max_merged_bytes, ..ActionLimits::default() };
    let mut cluster = Cluster::within(limits, 1 + rng.below(8) as u32, seed);
    for index in 0..history.records.len() {
        cluster.send(&heavy(&history, index, &mut rng));
    }
    cluster.run().unwrap();
    // A record may bring up to `max_bytes`.
    let most = max_bytes.max(max_merged_bytes) + ALLOWANCE;
    assert!(cluster.largest.0 <= most && cluster.largest.1 <= most, "seed {seed}: {:?}, {most}", cluster.largest);
    let count = history.records.len() as u64;
    assert_eq!(cluster.effects + cluster.rejected, count, "seed {seed}");
    consistent(&cluster).and_then(|()| documents(&cluster)).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    let refused =
        rejects(&cluster).iter().any(|reject| reject["field"].as_str().unwrap_or("").contains("identifiers."));
    if !deletes && !refused {
        let found: BTreeSet<_> = people(&cluster, &SameDevices::new()).unwrap().into_keys().collect();
        assert_eq!(found, reference(&history).into_keys().collect(), "seed {seed}: other people");
    }
    rejects(&cluster).iter().filter(|reject| reject["kind"] == "merge").count()
}

#[test]
fn no_message_of_any_history_is_larger_than_the_bound_and_people_are_the_same() {
    for (deletes, least) in [(false, 500), (true, 250)] {
        let left_out: usize = (1..300).map(|seed| check(seed, deletes, 5_000, 2_500)).sum();
        // Here records may bring everything, so no identifier is refused.
        let more: usize = (1..300).map(|seed| check(seed, deletes, 20_000, 2_000)).sum();
        assert!(left_out + more > least, "{left_out} and {more}");
    }
}

/// What the test of parts relies on.
#[test]
fn small_states_go_in_parts_and_nothing_of_them_is_left_out() {
    let limits = ActionLimits { max_merged_bytes: IN_PARTS, ..ActionLimits::default() };
    let (mut parts, mut whole) = (0, 0);
    for seed in 1..200 {
        let history = History::random(&mut Rng(seed), false);
        let cluster = run(&history, &limits, 8, seed).unwrap();
        assert_eq!(rejects(&cluster), [] as [serde_json::Value; 0]);
        parts += cluster.absorbs;
        whole += run(&history, &ActionLimits::default(), 8, seed).unwrap().absorbs;
    }
    assert!(parts > whole * 2, "{parts} parts of {whole} states");
}

//! Random histories of which most is about devices: records, deletions and merges by up to three device identifiers of four types, that go from device to
//! device, in chains, with users and without.

use crate::checks::consistent;
use crate::cluster::Cluster;
use crate::history::{Rng, TENANT};
use crate::number;
use crate::paths::{is_at_rest, names};
use crate::scenarios::{action, event, id, set};
use millstream_model::key::group_of;
use millstream_model::proto::{Action, Identifier, Merge};
use millstream_stages::action::{ActionLimits, Value};
use std::collections::{BTreeMap, BTreeSet};

const USERS: [&str; 6] = ["user_id=1", "user_id=2", "email=a@x", "email=b@x", "anonymous_id=p", "anonymous_id=q"];
const DEVICES: [&str; 8] = ["device_id=d", "device_id=e", "idfv=v", "idfv=w", "gaid=g", "gaid=h", "idfa=a", "idfa=b"];
const FIRST_MS: u64 = 1_000;

/// Which identifiers a history uses, and for what.
struct Pool {
    users: usize,
    devices: usize,
    first_device: usize,
    deletes: bool,
    merges: bool,
}

impl Pool {
    fn user(&self, rng: &mut Rng) -> Identifier {
        id(USERS[rng.below(self.users)])
    }

    fn device(&self, rng: &mut Rng) -> Identifier {
        id(DEVICES[(self.first_device + rng.below(self.devices)) % DEVICES.len()])
    }

    fn action(&self, rng: &mut Rng, time_ms: u64) -> Action {
        let mut users: Vec<Identifier> = (0..rng.below(3)).map(|_| self.user(rng)).collect();
        users.dedup();
        let mut devices: Vec<Identifier> = (0..1 + rng.below(3)).map(|_| self.device(rng)).collect();
        devices.sort_by(|left, right| left.rank().cmp(&right.rank()));
        devices.dedup_by(|left, right| left.r#type == right.r#type);
        let by_device = users.is_empty() || rng.one_in(2);
        let routing = if by_device { rng.below(devices.len()) } else { 0 };
        if !by_device && rng.one_in(2) {
            devices.clear();
        }
        let route = if by_device { &devices[routing] } else { &users[0] };
        let mut action = Action {
            group: u32::from(group_of(TENANT, route)),
            by_device,
            routing: routing as u32,
            ..action(time_ms, &["user_id=0"], &[])
        };
        (action.user_identifiers, action.device_identifiers) = (users, devices);
        if self.deletes && rng.one_in(7) {
            action.user_identifiers.truncate(1);
            return Action { delete: true, ..action };
        }
        if self.merges && rng.one_in(6) {
            return self.merge(rng, time_ms).unwrap_or(action);
        }
        action = event(action, &format!("e{time_ms}"));
        action.update_existing_only = rng.one_in(6);
        if rng.one_in(2) { set(action, "plan", time_ms as i64) } else { action }
    }

    fn merge(&self, rng: &mut Rng, time_ms: u64) -> Option<Action> {
        let mut any = || if rng.one_in(2) { self.user(rng) } else { self.device(rng) };
        let (retained, merged) = (any(), any());
        (retained != merged).then(|| Action {
            group: u32::from(group_of(TENANT, &retained)),
            user_identifiers: vec![retained.clone(), merged.clone()],
            merge: Some(Merge { retained: Some(retained), merged: Some(merged) }),
            ..action(time_ms, &["user_id=0"], &[])
        })
    }
}

fn history(rng: &mut Rng, deletes: bool, merges: bool) -> Vec<Action> {
    let count = 5 + rng.below(40) as u64;
    let (users, devices) = (1 + rng.below(USERS.len()), 1 + rng.below(DEVICES.len()));
    let pool = Pool { users, devices, first_device: rng.below(DEVICES.len()), deletes, merges };
    (0..count).map(|index| pool.action(rng, FIRST_MS + index * 10)).collect()
}

fn route(action: &Action) -> &Identifier {
    if action.by_device { &action.device_identifiers[action.routing as usize] } else { &action.user_identifiers[0] }
}

fn check(actions: &[Action], limits: &ActionLimits, shards: u32, seed: u64, deletes: bool) -> Result<(), String> {
    let mut cluster = Cluster::within(limits.clone(), shards, seed);
    actions.iter().for_each(|action| cluster.send(action));
    cluster.run()?;
    let (effects, rejected) = (cluster.effects, cluster.rejected);
    if effects + rejected != actions.len() as u64 {
        return Err(format!("{effects} effects and {rejected} rejects of {} records", actions.len()));
    }
    consistent(&cluster)?;
    is_at_rest(&cluster)?;
    in_order(&cluster, actions, deletes)?;
    for (key, value) in cluster.values()? {
        if let Value::User(user) = value
            && user.fate.is_none()
            && user.first_seen_ms < FIRST_MS as i64
        {
            return Err(format!("{key:?} was first seen at {}, before all records", user.first_seen_ms));
        }
    }
    if deletes { nothing_is_left(&mut cluster) } else { Ok(()) }
}

/// Each event once; those of one routing key in their order, but around a deletion what devices route.
fn in_order(cluster: &Cluster, actions: &[Action], deletes: bool) -> Result<(), String> {
    let (mut newest, mut seen) = (BTreeMap::new(), BTreeSet::new());
    for name in names(cluster) {
        let is_it = |action: &Action| action.event.as_ref().is_some_and(|event| event.name == name);
        let index = actions.iter().position(is_it).unwrap();
        let routing = route(&actions[index]);
        let before = newest.insert(routing, index);
        if before >= Some(index) && !(deletes && routing.names_device()) {
            return Err(format!("record {index} took effect after {before:?}, both routed by {routing}"));
        }
        if !seen.insert(index) {
            return Err(format!("{name} came twice"));
        }
    }
    Ok(())
}

/// Deletes whoever lives, by the first identifier: then nobody does, and no device names anybody.
fn nothing_is_left(cluster: &mut Cluster) -> Result<(), String> {
    let mut live = Vec::new();
    for (_, value) in cluster.values()? {
        if let Value::User(user) = value
            && user.fate.is_none()
        {
            live.extend(user.identifiers.first().and_then(|member| member.identifier.clone()));
        }
    }
    for (time_ms, via) in (1_000_000..).zip(live) {
        let (by_device, group) = (via.names_device(), u32::from(group_of(TENANT, &via)));
        let (users, devices) = if by_device { (Vec::new(), vec![via]) } else { (vec![via], Vec::new()) };
        let delete = Action { delete: true, by_device, group, ..action(time_ms, &["user_id=0"], &[]) };
        cluster.send(&Action { user_identifiers: users, device_identifiers: devices, ..delete });
    }
    cluster.run()?;
    consistent(cluster)?;
    is_at_rest(cluster)?;
    for (key, value) in cluster.values()? {
        match value {
            Value::Node(_) => return Err(format!("{key:?} is left")),
            Value::User(user) if user.fate.is_none() || !user.attributes.is_empty() => {
                return Err(format!("{key:?} lives or has data"));
            }
            Value::Device(device) if device.user.is_some() => return Err(format!("{key:?} names a deleted user")),
            _ => {}
        }
    }
    Ok(())
}

fn many(what: &str, deletes: bool, merges: bool, limits: &ActionLimits) {
    let (first, cases) = (number("IDENTITY_SEED", 1), number("IDENTITY_CASES", 4_000) / 4);
    for seed in first..first + cases {
        let mut rng = Rng(seed);
        let actions = history(&mut rng, deletes, merges);
        let shards = 1 + rng.below(8) as u32;
        if let Err(error) = check(&actions, limits, shards, seed, deletes) {
            panic!("{what}: seed {seed}, {shards} shards: {error}\n{actions:#?}");
        }
    }
}

#[test]
fn what_devices_route_keeps_its_order_and_ends_once() {
    many("links by devices", false, false, &ActionLimits::default());
    many("merges by devices", false, true, &ActionLimits::default());
}

#[test]
fn deletions_by_devices_leave_nothing() {
    many("deletions by devices", true, false, &ActionLimits::default());
    many("deletions and merges by devices", true, true, &ActionLimits::default());
    let in_parts = ActionLimits { max_merged_bytes: crate::bounds::IN_PARTS, ..ActionLimits::default() };
    many("in parts", true, true, &in_parts);
    let one_device = ActionLimits { max_devices: 1, ..ActionLimits::default() };
    many("users with one device", true, false, &one_device);
}

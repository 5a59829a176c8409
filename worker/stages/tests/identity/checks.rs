//! What must hold when a history has run.

use crate::cluster::Cluster;
use crate::history::{History, Rng, TENANT, identifier};
use crate::reference::{People, Person, SameDevices, devices, reference, sorted};
use millstream_model::document::{Document, is_whole};
use millstream_model::id::{DeviceId, UserId};
use millstream_model::proto::goal::Whom;
use millstream_model::proto::{DeviceState, Identifier, Mutation, Object, User, Value as Attribute};
use millstream_stages::PublicMessage;
use millstream_stages::action::{ActionLimits, Value, render_device, render_user};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

macro_rules! ensure {
    ($condition:expr, $($message:tt)*) => {
        if !$condition {
            return Err(format!($($message)*));
        }
    };
}

type Checked = Result<(), String>;

pub fn run(history: &History, limits: &ActionLimits, shards: u32, seed: u64) -> Result<Cluster, String> {
    let mut cluster = Cluster::within(limits.clone(), shards, seed);
    for index in 0..history.records.len() {
        cluster.send(&history.action(index));
    }
    cluster.run()?;
    Ok(cluster)
}

pub fn check_links(history: &History, limits: &ActionLimits, shards: u32, seed: u64) -> Checked {
    let cluster = run(history, limits, shards, seed)?;
    ensure!(cluster.effects == history.records.len() as u64, "{} effects", cluster.effects);
    ensure!(cluster.rejected == 0, "{} rejects", cluster.rejected);
    consistent(&cluster)?;
    devices_are_their_last_users(&cluster, history)?;
    let (found, expected) = (people(&cluster, &devices(history))?, reference(history));
    ensure!(found == expected, "found {found:#?}\nexpected {expected:#?}");
    events(&cluster, history, true)?;
    let alone = run(history, limits, 1, seed.wrapping_add(1))?;
    ensure!(people(&alone, &devices(history))? == found, "1 shard gives another result than {shards}");
    Ok(())
}

pub fn check_deletions(history: &History, limits: &ActionLimits, shards: u32, seed: u64) -> Checked {
    let mut cluster = run(history, limits, shards, seed)?;
    let count = history.records.len() as u64;
    ensure!(cluster.effects + cluster.rejected == count, "{} effects, {} rejects", cluster.effects, cluster.rejected);
    consistent(&cluster)?;
    devices_are_their_last_users(&cluster, history)?;
    events(&cluster, history, false)?;
    nothing_came_back(&cluster, history)?;
    nothing_is_left_after_deleting_all(&mut cluster, history)
}

/// Everything of the first life is received before.
const ERASED_MS: u64 = 5_000;

/// The tenant goes on sending while it is erased, and shards hear of that one after the other: whatever of it is refused, each record has one outcome, and nothing old is left.
pub fn check_erasures_under_load(history: &History, limits: &ActionLimits, shards: u32, seed: u64) -> Checked {
    let (mut cluster, mut rng) = (Cluster::within(limits.clone(), shards, seed), Rng(seed ^ 0x10ad));
    let count = history.records.len();
    let later = History { later_ms: ERASED_MS, ..history.clone() };
    (0..count).for_each(|index| cluster.send(&history.action(index)));
    cluster.run_some(rng.below(count * 4), |_| {})?;
    let mut coming = (0..count).collect::<VecDeque<_>>();
    let mut unheard: Vec<u32> = (0..shards).collect();
    let mut come = |cluster: &mut Cluster, rng: &mut Rng| {
        coming.drain(..rng.below(4).min(coming.len())).for_each(|index| cluster.send(&later.action(index)));
        cluster.run_some(rng.below(12), |_| {})?;
        Ok::<bool, String>(coming.is_empty())
    };
    while !unheard.is_empty() {
        if rng.one_in(3) {
            cluster.hear(unheard.swap_remove(rng.below(unheard.len())), ERASED_MS);
        }
        come(&mut cluster, &mut rng)?;
        let shard = rng.below(shards as usize) as u32;
        if !unheard.contains(&shard) {
            cluster.sweep(shard, rng.below(4)).map_err(|error| error.to_string())?;
        }
    }
    (0..shards).try_for_each(|shard| cluster.sweep(shard, usize::MAX)).map_err(|error| error.to_string())?;
    ensure!(cluster.values()?.is_empty(), "{:?} is left", cluster.values()?);
    let mut unheard: Vec<u32> = (0..shards).collect();
    while !come(&mut cluster, &mut rng)? || !unheard.is_empty() {
        if !unheard.is_empty() && rng.one_in(3) {
            cluster.hear_the_end(unheard.swap_remove(rng.below(unheard.len())), ERASED_MS);
        }
    }
    cluster.run()?;
    let outcomes = cluster.effects + cluster.rejected;
    ensure!(outcomes == 2 * count as u64, "{outcomes} outcomes of {count} records, twice");
    let mut live = BTreeSet::new();
    for (key, value) in cluster.values()? {
        let began_ms = match value {
            Value::Node(node) => node.user.created_ms(),
            Value::User(user) => {
                let id = UserId::from_bytes(&user.id).unwrap();
                live.extend((user.fate.is_none() && user.revision > 0).then(|| id.to_string()));
                id.created_ms()
            }
            Value::Device(device) => {
                ensure!(device.path.iter().all(|path| path.waiting.is_empty()), "{key:?}: records wait for ever");
                live.extend((device.revision > 0).then(|| DeviceId::from_bytes(&device.id).unwrap().to_string()));
                device.identifiers.iter().filter_map(|it| it.stamp).map(|it| it.time_ms).min().unwrap_or(u64::MAX)
            }
            Value::Erased(stamp) => stamp.time_ms,
            Value::Alias(alias) => alias.stamp.unwrap().time_ms,
        };
        ensure!(began_ms > ERASED_MS, "{key:?} of before is left");
    }
    let folds = folds(&cluster)?;
    let mut left = folds.iter().filter(|(_, document)| !document.deleted).map(|(id, _)| (*id).to_owned());
    ensure!(left.all(|id| live.contains(&id)), "a document is left");
    Ok(())
}

pub fn check_erasures(history: &History, limits: &ActionLimits, shards: u32, seed: u64) -> Checked {
    let (mut cluster, mut rng) = (Cluster::within(limits.clone(), shards, seed), Rng(seed ^ 0xe5a5));
    let count = history.records.len();
    (0..count).for_each(|index| cluster.send(&history.action(index)));
    cluster.run_some(rng.below(count * 4), |_| {})?;
    let mut left: Vec<u32> = (0..shards).collect();
    while !left.is_empty() {
        let shard = left.swap_remove(rng.below(left.len()));
        cluster.erase(shard, ERASED_MS).map_err(|error| error.to_string())?;
        if !left.is_empty() {
            cluster.run_some(rng.below(count), |_| {})?;
        }
    }
    ensure!(cluster.values()?.is_empty(), "{:?} is left", cluster.values()?);
    ensure!(folds(&cluster)?.values().all(|document| document.deleted), "a document is left");
    let events = cluster.events.len();
    let again = History { later_ms: ERASED_MS, ..history.clone() };
    (0..shards).for_each(|shard| cluster.hear_the_end(shard, ERASED_MS));
    (0..count).for_each(|index| cluster.send(&again.action(index)));
    cluster.run()?;
    let outcomes = cluster.effects + cluster.rejected;
    ensure!(outcomes == 2 * count as u64, "{outcomes} outcomes of {count} records, twice");
    let shown = cluster.rejects.iter().filter(|reject| is_erased(reject));
    ensure!(shown.clone().all(|reject| !shows(reject)), "a reject shows what is to be forgotten");
    consistent(&cluster)?;
    devices_are_their_last_users(&cluster, &again)?;
    nothing_came_back(&cluster, &again)?;
    if !history.records.iter().any(|record| record.delete) {
        ensure!(shown.count() as u64 >= cluster.rejected, "a record of the new life was rejected");
        let (found, expected) = (people(&cluster, &devices(&again))?, reference(&again));
        ensure!(found == expected, "found {found:#?}\nexpected {expected:#?}");
        let expected = (0..count).filter(|index| again.action(*index).event.is_some()).count();
        ensure!(cluster.events.len() - events == expected, "{} of {expected} events", cluster.events.len() - events);
    }
    Ok(())
}

fn json(reject: &PublicMessage) -> serde_json::Value {
    serde_json::from_slice(&reject.payload).unwrap()
}

fn is_erased(reject: &PublicMessage) -> bool {
    json(reject)["reason"] == "tenant_erased"
}

fn shows(reject: &PublicMessage) -> bool {
    !json(reject)["action"].is_null() || !json(reject)["original"].is_null()
}

/// Nodes, users, documents and devices agree.
pub fn consistent(cluster: &Cluster) -> Checked {
    for (key, value) in cluster.values()? {
        let (_, _, rest) = key.parts().unwrap();
        match value {
            Value::Node(node) => {
                ensure!(node.closing.is_none(), "{key:?} is still closing");
                let (id, user) = cluster.last(node.user)?;
                let text = std::str::from_utf8(rest).unwrap();
                let (kind, value) = text.split_once('\0').unwrap();
                let named = Identifier::new(kind, value);
                ensure!(user.fate.is_none(), "{named} leads to {id}, which is deleted");
                let is_member = user.identifiers.iter().any(|member| member.identifier.as_ref() == Some(&named));
                ensure!(is_member, "{named} leads to {id}, of which it is no member");
            }
            Value::User(user) if !user.expelled.is_empty() => return Err(format!("{key:?} waits for a drain")),
            Value::User(user) if user.fate.is_none() => {
                let id = UserId::from_bytes(&user.id).unwrap();
                ensure!(!user.identifiers.is_empty(), "{id} is live and nothing names it");
                for member in &user.identifiers {
                    let identifier = member.identifier.as_ref().unwrap();
                    let node = cluster.node(identifier).ok_or_else(|| format!("{identifier} of {id} has no node"))?;
                    let (last, _) = cluster.last(node.user)?;
                    ensure!(last == id, "{identifier} of {id} leads to {last}");
                }
                devices_are_there(cluster, user)?;
            }
            Value::Device(device) => {
                goes_to_somebody(cluster, device)?;
                knows_its_user(cluster, device)?;
                is_found(cluster, device)?;
            }
            _ => {}
        }
    }
    documents(cluster)
}

/// The path of a device names nobody who was deleted.
fn goes_to_somebody(cluster: &Cluster, device: &DeviceState) -> Checked {
    let goal = device.path.as_ref().and_then(|path| path.goal.as_ref()?.whom.as_ref());
    let Some(Whom::User(user)) = goal else { return Ok(()) };
    ensure!(user.names_device() || cluster.node(user).is_some(), "{:?} goes by {user}, which names nobody", device.id);
    Ok(())
}

/// Whom a device names, by an identifier, is live and has the device.
fn knows_its_user(cluster: &Cluster, device: &DeviceState) -> Checked {
    let Some(named) = &device.user else { return Ok(()) };
    let id = DeviceId::from_bytes(&device.id).unwrap();
    let node = cluster.node(named).ok_or_else(|| format!("{id} names {named}, which has no node"))?;
    let (user, state) = cluster.last(node.user)?;
    let has_it = state.devices.iter().any(|it| it.device == device.id);
    ensure!(has_it, "{id} names {named}, but {user} has no such device");
    Ok(())
}

/// Each device that a user's document lists has a document.
fn devices_are_there(cluster: &Cluster, user: &User) -> Checked {
    for id in user.devices.iter().filter_map(|it| DeviceId::from_bytes(&it.device)) {
        ensure!(cluster.device(&id).is_some_and(|device| device.revision > 0), "{id} is listed and not there");
    }
    Ok(())
}

/// Each identifier of a device finds one.
fn is_found(cluster: &Cluster, device: &DeviceState) -> Checked {
    for identifier in device.identifiers.iter().filter_map(|member| member.identifier.as_ref()) {
        let found = cluster.device_named(identifier).ok_or_else(|| format!("{identifier} finds no device"))?;
        ensure!(found.revision > 0, "{identifier} finds a device without document");
    }
    Ok(())
}

/// The newest record about a device says whose it is, when it is newer than all deletions. (One that is not may be covered by a deletion
/// of somebody whom only a late link makes the same person, and then device and user need not agree about it.)
fn devices_are_their_last_users(cluster: &Cluster, history: &History) -> Checked {
    let actions: Vec<_> = (0..history.records.len()).map(|index| history.action(index)).collect();
    let same = devices(history);
    let deleted = actions.iter().filter(|action| action.delete).map(|action| action.stamp).max().flatten();
    for (_, value) in cluster.values()? {
        let Value::Device(device) = value else { continue };
        let is_about = |primary: &Identifier| DeviceId::of(TENANT, primary).as_bytes() == device.id.as_slice();
        if same.values().filter(|least| same.get(&device.id) == Some(least)).count() > 1 {
            // Which of the records by its other identifiers were about it depends on the order in which they came.
            continue;
        }
        let about = actions.iter().filter(|action| action.device_identifiers.first().is_some_and(is_about));
        let newest = about.max_by_key(|action| (action.stamp, action.user_identifiers.first())).unwrap();
        let named = newest.user_identifiers.first();
        let is_right = device.user.as_ref() == named || newest.stamp <= deleted;
        ensure!(is_right, "a device of {named:?} names {:?}", device.user);
    }
    Ok(())
}

/// Each mutation builds on the one before, or begins a new life of a device.
fn folds(cluster: &Cluster) -> Result<BTreeMap<&str, Document>, String> {
    let mut folds: BTreeMap<&str, Document> = BTreeMap::new();
    for mutation in &cluster.mutations {
        let document = folds.entry(&mutation.id).or_insert_with(Document::empty);
        let Mutation { id, revision, base, .. } = mutation;
        let is_anew = *base == ERASED_MS && document.revision < ERASED_MS && is_whole(mutation);
        ensure!((*base == document.revision || is_anew) && *revision == base + 1, "{id}: {revision} builds on {base}");
        document.apply(mutation);
    }
    Ok(folds)
}

/// The fold of each entity's mutations is the document of its state, and each mutation builds on the one before (I8).
pub fn documents(cluster: &Cluster) -> Checked {
    let folds = folds(cluster)?;
    for (_, value) in cluster.values()? {
        let (id, fields, revision) = match value {
            Value::User(user) => {
                (UserId::from_bytes(&user.id).unwrap().to_string(), render_user(TENANT, user), user.revision)
            }
            // What a deletion told a device before there was any record of it.
            Value::Device(device) if device.revision == 0 => continue,
            Value::Device(device) => {
                let id = DeviceId::from_bytes(&device.id).unwrap().to_string();
                (id, render_device(TENANT, device), device.revision)
            }
            _ => continue,
        };
        let document = folds.get(id.as_str()).ok_or_else(|| format!("{id} has no document"))?;
        ensure!(document.revision == revision, "{id}: revision {revision}, document {}", document.revision);
        ensure!(document.deleted == fields.is_none(), "{id}: the document is deleted or not, the user otherwise");
        let (folded, rendered) = (as_sets(&document.fields), fields.as_ref().map(as_sets).unwrap_or_default());
        ensure!(folded == rendered, "{id}: folded {folded:?}\nrendered {rendered:?}");
    }
    Ok(())
}

/// The document with the lists of attributes in one order: elements of a set have none.
pub fn as_sets(fields: &Object) -> Object {
    let mut fields = fields.clone();
    for member in fields.members.iter_mut().filter(|member| member.name == "attributes") {
        let attributes = member.value.as_ref().and_then(Attribute::as_object).cloned().unwrap_or_default();
        let sorted = attributes.into_pairs().map(|(name, value)| (name, sorted(value)));
        member.value = Some(Attribute::object(sorted));
    }
    fields
}

pub fn people(cluster: &Cluster, same: &SameDevices) -> Result<People, String> {
    let mut people = People::new();
    for (_, value) in cluster.values()? {
        if let Value::User(user) = value
            && let Some(fields) = render_user(TENANT, user)
        {
            let identifiers = user.identifiers.iter().filter_map(|member| member.identifier.clone()).collect();
            people.insert(identifiers, person(user, &fields, same));
        }
    }
    Ok(people)
}

fn person(user: &User, fields: &Object, same: &SameDevices) -> Person {
    let attributes = fields.get("attributes").and_then(Attribute::as_object).cloned().unwrap_or_default();
    Person {
        attributes: attributes.into_pairs().map(|(name, value)| (name, sorted(value))).collect(),
        events: user.events,
        first_seen: user.first_seen_ms,
        last_seen: user.last_seen_ms,
        devices: user.devices.iter().map(|device| same.get(&device.device).unwrap_or(&device.device).clone()).collect(),
        retained: user.retained.as_ref().and_then(|retained| retained.identifier.clone()),
    }
}

/// Each event once, for the user it ends with, and in order per routing key (I1, I3). Around a deletion, what a device identifier routes may change places.
fn events(cluster: &Cluster, history: &History, all: bool) -> Checked {
    let mut newest: BTreeMap<Identifier, usize> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for event in &cluster.events {
        let json: serde_json::Value = serde_json::from_slice(&event.payload).unwrap();
        let index = usize::from_str_radix(json["id"].as_str().unwrap(), 16).unwrap();
        ensure!(seen.insert(index), "event {index} came twice");
        let routing = history.routing(index);
        let id = UserId::parse(json["user"]["id"].as_str().unwrap()).unwrap();
        ensure!(event.key == id.to_string().as_bytes(), "event {index} is keyed otherwise than by its user");
        let before = newest.insert(routing.clone(), index).filter(|_| all || !routing.names_device());
        ensure!(before < Some(index), "record {index} took effect after {before:?}, both routed by {routing}");
        if all {
            let (last, _) = cluster.last(id)?;
            let named = identifier(history.records[index].identifiers[0]);
            let node = cluster.node(&named).ok_or("no node")?;
            ensure!(cluster.last(node.user)?.0 == last, "event {index} went to another user");
        }
    }
    let expected = (0..history.records.len()).filter(|index| history.action(*index).event.is_some()).count();
    ensure!(!all || seen.len() == expected, "{} of {expected} events", seen.len());
    Ok(())
}

/// No attribute is from a record that its own identifier's deletion covers.
fn nothing_came_back(cluster: &Cluster, history: &History) -> Checked {
    let deletions: Vec<_> = (0..history.records.len()).filter(|index| history.records[*index].delete).collect();
    for (key, value) in cluster.values()? {
        let Value::User(user) = value else { continue };
        ensure!(user.fate.is_none() || user.attributes.is_empty(), "{key:?} is gone and has data");
        for register in user.attributes.iter().filter(|register| register.stamp.is_some()) {
            let index = u128::from_be_bytes(register.record_id.as_slice().try_into().unwrap()) as usize;
            let covers = |deletion: &&usize| {
                history.records[**deletion].identifiers[0] == history.records[index].identifiers[0]
                    && history.stamp(index) <= history.stamp(**deletion)
            };
            let deletion = deletions.iter().find(covers);
            ensure!(deletion.is_none(), "attribute {} of record {index} outlived {deletion:?}", register.name);
        }
    }
    Ok(())
}

/// Deleting every user leaves nothing but the memory of it, and repeating the history is refused.
fn nothing_is_left_after_deleting_all(cluster: &mut Cluster, history: &History) -> Checked {
    let live = people(cluster, &devices(history))?;
    let count = history.records.len();
    for (index, identifiers) in live.keys().enumerate() {
        let via = identifiers.first().unwrap().clone();
        let mut delete = history.action(0);
        delete.group = u32::from(millstream_model::key::group_of(TENANT, &via));
        delete.stamp = Some(millstream_model::proto::Stamp { time_ms: 10_000 + index as u64, offset: 0, index: 0 });
        delete.record_id = ((count + index) as u128).to_be_bytes().to_vec();
        (delete.user_identifiers, delete.delete, delete.merge, delete.event) = (vec![via], true, None, None);
        (delete.device_identifiers, delete.user_changes) = (Vec::new(), Vec::new());
        cluster.send(&delete);
    }
    let (effects, events) = (cluster.effects, cluster.events.len());
    cluster.run()?;
    ensure!(cluster.effects - effects == live.len() as u64, "a deletion had no effect");
    nobody(cluster)?;
    let repeated: Vec<usize> = (0..count).filter(|index| !history.records[*index].delete).collect();
    for index in &repeated {
        let rejected = cluster.rejected;
        cluster.send(&history.action(*index));
        cluster.run()?;
        ensure!(cluster.rejected == rejected + 1, "record {index} is older than the deletion and was taken");
    }
    ensure!(cluster.events.len() == events, "an event of a deleted user");
    nobody(cluster)
}

fn nobody(cluster: &Cluster) -> Checked {
    for (key, value) in cluster.values()? {
        match value {
            Value::Node(_) => return Err(format!("{key:?} is left")),
            Value::User(user) => {
                ensure!(user.fate.is_some(), "{key:?} lives");
                ensure!(user.identifiers.is_empty() && user.attributes.is_empty(), "{key:?} has data");
            }
            Value::Device(device) => ensure!(device.user.is_none(), "{key:?} names a deleted user"),
            Value::Erased(_) | Value::Alias(_) => {}
        }
    }
    documents(cluster)
}

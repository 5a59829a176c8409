//! What links alone should give: the same people, computed from the whole history at once.

use crate::history::{History, TENANT};
use millstream_model::document::escape;
use millstream_model::id::DeviceId;
use millstream_model::proto::change::Op;
use millstream_model::proto::{Action, Identifier, Value as Attribute};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};

/// What is known about one person, without ids.
#[derive(Clone, Debug, PartialEq)]
pub struct Person {
    pub attributes: BTreeMap<String, Attribute>,
    pub events: u64,
    pub first_seen: i64,
    pub last_seen: i64,
    /// Each by the least of the ids that its identifiers would make: which of them it has depends on the order in which they came.
    pub devices: BTreeSet<Vec<u8>>,
    pub retained: Option<Identifier>,
}

pub type People = BTreeMap<BTreeSet<Identifier>, Person>;

/// For each device id the least of those that are the same device.
pub type SameDevices = BTreeMap<Vec<u8>, Vec<u8>>;

/// Union-find over the identifiers of each record, and what its records say about each set, in the order of their stamps.
pub fn reference(history: &History) -> People {
    let mut parent: BTreeMap<Identifier, Identifier> = BTreeMap::new();
    fn root(parent: &BTreeMap<Identifier, Identifier>, identifier: &Identifier) -> Identifier {
        match parent.get(identifier) {
            Some(above) if above != identifier => root(parent, above),
            _ => identifier.clone(),
        }
    }
    let actions: Vec<_> = (0..history.records.len()).map(|index| history.action(index)).collect();
    for action in &actions {
        for identifier in &action.user_identifiers {
            parent.entry(identifier.clone()).or_insert_with(|| identifier.clone());
            let (one, other) = (root(&parent, &action.user_identifiers[0]), root(&parent, identifier));
            parent.insert(one, other);
        }
    }
    let mut sets: BTreeMap<Identifier, BTreeSet<Identifier>> = BTreeMap::new();
    for identifier in parent.keys() {
        sets.entry(root(&parent, identifier)).or_default().insert(identifier.clone());
    }
    let devices = devices(history);
    sets.into_values().map(|set| (set.clone(), described(&set, &actions, &devices))).collect()
}

/// For each device id that an identifier of the history would make, the least of those that records named together, directly or not.
pub fn devices(history: &History) -> SameDevices {
    let mut least = SameDevices::new();
    let ids = |action: &Action| -> Vec<Vec<u8>> {
        action.device_identifiers.iter().map(|it| DeviceId::of(TENANT, it).as_bytes().to_vec()).collect()
    };
    for named in (0..history.records.len()).map(|index| ids(&history.action(index))) {
        let known: BTreeSet<Vec<u8>> = named.iter().map(|id| least.get(id).unwrap_or(id).clone()).collect();
        let Some(first) = known.first().cloned() else { continue };
        least.extend(named.iter().map(|id| (id.clone(), first.clone())));
        least.values_mut().filter(|it| known.contains(*it)).for_each(|it| it.clone_from(&first));
    }
    least
}

fn described(set: &BTreeSet<Identifier>, actions: &[Action], same: &SameDevices) -> Person {
    let mine: Vec<_> = actions.iter().filter(|action| set.contains(&action.user_identifiers[0])).collect();
    let merges = mine.iter().filter_map(|action| Some((action.stamp, action.merge.as_ref()?.retained.clone())));
    let devices = mine.iter().filter_map(|action| action.device_identifiers.first());
    Person {
        attributes: attributes(&mine),
        events: mine.iter().filter(|action| action.event.is_some()).count() as u64,
        first_seen: mine.iter().map(|action| action.time_ms).min().unwrap(),
        last_seen: mine.iter().map(|action| action.time_ms).max().unwrap(),
        devices: devices.map(|primary| same[DeviceId::of(TENANT, primary).as_bytes()].clone()).collect(),
        retained: merges.max().and_then(|(_, retained)| retained),
    }
}

/// Each attribute by replaying its changes in the order of (stamp, bytes of a base): another way to the same meaning.
fn attributes(mine: &[&Action]) -> BTreeMap<String, Attribute> {
    let mut all: BTreeMap<String, Attribute> = BTreeMap::new();
    let names: BTreeSet<&str> =
        mine.iter().flat_map(|action| &action.user_changes).map(|it| it.name.as_str()).collect();
    for name in names {
        let changes = mine.iter().flat_map(|action| action.user_changes.iter().map(|change| (action.stamp, change)));
        let changes: Vec<_> = changes.filter(|(_, change)| change.name == name).collect();
        let base = changes.iter().filter_map(|(stamp, change)| match &change.op {
            Some(Op::Set(value)) => Some((*stamp, value.encode_to_vec(), Some(value.clone()))),
            Some(Op::Unset(_)) => Some((*stamp, Vec::new(), None)),
            _ => None,
        });
        let base = base.max_by(|left, right| (left.0, &left.1).cmp(&(right.0, &right.1)));
        let (since, mut value) = base.map_or((None, None), |(stamp, _, value)| (stamp, value));
        let mut elements: Vec<(_, bool, Attribute)> = Vec::new();
        for (stamp, change) in changes.iter().filter(|(stamp, _)| *stamp > since) {
            let (added, list) = match &change.op {
                Some(Op::Add(list)) => (true, list),
                Some(Op::Remove(list)) => (false, list),
                _ => continue,
            };
            elements.extend(list.items.iter().map(|item| (*stamp, added, item.clone())));
        }
        elements.sort_by_key(|(stamp, added, _)| (*stamp, *added));
        let is_list = value.as_ref().is_some_and(|value| value.as_list().is_some());
        let mut items = value.as_ref().and_then(Attribute::as_list).unwrap_or_default().to_vec();
        for (_, added, item) in elements {
            items.retain(|other| *other != item);
            if added {
                items.push(item);
            }
        }
        if is_list || !items.is_empty() {
            value = Some(sorted(Attribute::list(items)));
        }
        if let Some(value) = value {
            all.insert(escape(name), value);
        }
    }
    all
}

/// Elements of a set have no order of their own.
pub fn sorted(value: Attribute) -> Attribute {
    let Some(items) = value.as_list() else { return value };
    let mut items = items.to_vec();
    items.sort_by_key(|item| item.as_str().map(str::to_owned));
    Attribute::list(items)
}

//! The generator's own idea of identity: a union-find over identifiers. It shares no code with the pipeline.
//!
//! The model also proves that its answer does not depend on interleaving: an attribute that two routing keys of one person
//! write, or a deleted person who used more than one routing key, is an error of the generator.

use super::expect::{self, Devices};
use super::record::{Intent, Record, Update};
use super::truth::{DeviceTruth, EventTruth, Seen, UserTruth};
use millstream_model::proto::{Identifier, Source};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A load whose outcome would depend on interleaving: a mistake in the generator, not in its options.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the generator contradicts itself: {0}; please report it with the seed")]
pub struct Ambiguous(String);

/// Everybody at the end: who is there, who was deleted.
pub(super) struct People {
    pub(super) users: Vec<UserTruth>,
    pub(super) deleted: Vec<UserTruth>,
    pub(super) details: BTreeMap<String, EventTruth>,
    pub(super) devices: BTreeMap<String, DeviceTruth>,
}

/// What is known of the identifiers of one tenant.
#[derive(Default)]
pub(super) struct Model {
    /// Nothing is sent before this.
    now_ms: i64,
    numbers: HashMap<Identifier, usize>,
    nodes: Vec<Node>,
    details: BTreeMap<String, EventTruth>,
    devices: Devices,
}

#[derive(Debug, Default)]
struct Node {
    parent: usize,
    identifiers: Vec<Identifier>,
    /// With the routing key that writes it; `None` when it is unset.
    attributes: BTreeMap<String, (String, Option<Value>)>,
    devices: BTreeSet<String>,
    events: Vec<String>,
    seen: Option<Seen>,
    /// Routing keys of their records.
    keys: BTreeSet<String>,
    deleted: bool,
}

impl Model {
    /// Of records that are sent from now on.
    pub(super) fn new(now_ms: i64) -> Model {
        Model { now_ms, ..Model::default() }
    }

    /// Takes in an effective record, in the order in which records are sent.
    ///
    /// # Errors
    /// [`Ambiguous`]
    pub(super) fn apply(&mut self, record: &Record) -> Result<(), Ambiguous> {
        let Some(person) = self.link(&record.user)? else {
            return self.apply_merge(record);
        };
        let key = routing_key(record);
        self.devices.apply(record, &key, self.now_ms);
        self.details.extend(expect::event(record, self.now_ms).map(|event| (record.message_id.clone(), event)));
        self.see(person, record)?;
        let node = self.node(person)?;
        if node.deleted {
            return Err(Ambiguous(format!("record {} of a deleted person", record.message_id)));
        }
        node.keys.insert(key.clone());
        node.devices.extend(record.device.clone());
        match &record.intent {
            Intent::Event { .. } => node.events.push(record.message_id.clone()),
            Intent::Update(update) => {
                change(node, &key, update)?;
                email_trait(node, record);
            }
            Intent::Device { .. } | Intent::Merge { .. } => {}
            Intent::Delete if node.keys.len() > 1 => {
                return Err(Ambiguous(format!("a deleted person has the routing keys {:?}", node.keys)));
            }
            Intent::Delete => node.deleted = true,
        }
        Ok(())
    }

    /// Everybody, in the order in which they were first heard of.
    ///
    /// # Errors
    /// [`Ambiguous`]
    pub(super) fn finish(self) -> Result<People, Ambiguous> {
        let (mut users, mut deleted) = (Vec::new(), Vec::new());
        for (number, node) in self.nodes.into_iter().enumerate() {
            if node.parent == number {
                if node.deleted { &mut deleted } else { &mut users }.push(truth(node));
            }
        }
        Ok(People { users, deleted, details: self.details, devices: self.devices.finish() })
    }

    fn apply_merge(&mut self, record: &Record) -> Result<(), Ambiguous> {
        let Intent::Merge { retained, merged } = &record.intent else {
            return Err(Ambiguous(format!("record {} names nobody", record.message_id)));
        };
        match self.link(&[retained.clone(), merged.clone()])? {
            Some(person) => self.see(person, record),
            None => Ok(()),
        }
    }

    fn see(&mut self, person: usize, record: &Record) -> Result<(), Ambiguous> {
        let seen = Seen::at(expect::time(record, self.now_ms));
        let node = self.node(person)?;
        node.seen = Some(Seen::with(node.seen, seen));
        Ok(())
    }

    /// Makes the identifiers one person's; their node, or `None` when there are none.
    fn link(&mut self, identifiers: &[Identifier]) -> Result<Option<usize>, Ambiguous> {
        let mut person = None;
        for identifier in identifiers {
            let other = self.find(identifier)?;
            person = match person {
                Some(person) if person != other => Some(self.unite(person, other)?),
                _ => Some(other),
            };
        }
        Ok(person)
    }

    fn find(&mut self, identifier: &Identifier) -> Result<usize, Ambiguous> {
        let Some(number) = self.numbers.get(identifier) else {
            let number = self.nodes.len();
            self.nodes.push(Node { parent: number, identifiers: vec![identifier.clone()], ..Node::default() });
            self.numbers.insert(identifier.clone(), number);
            return Ok(number);
        };
        let mut number = *number;
        loop {
            let parent = self.node(number)?.parent;
            if parent == number {
                return Ok(number);
            }
            number = parent;
        }
    }

    fn unite(&mut self, left: usize, right: usize) -> Result<usize, Ambiguous> {
        let (survivor, loser) = (left.min(right), left.max(right));
        let node = self.node(loser)?;
        node.parent = survivor;
        let Node { identifiers, attributes, devices, events, seen, keys, deleted, .. } = std::mem::take(node);
        self.node(loser)?.parent = survivor;
        let into = self.node(survivor)?;
        for (name, value) in attributes {
            let old = into.attributes.insert(name.clone(), value.clone());
            if old.is_some_and(|old| old != value) {
                return Err(Ambiguous(format!("attribute `{name}` was written on both sides of a merge")));
            }
        }
        into.identifiers.extend(identifiers);
        into.devices.extend(devices);
        into.events.extend(events);
        into.seen = seen.map(|seen| Seen::with(into.seen, seen)).or(into.seen);
        into.keys.extend(keys);
        into.deleted |= deleted;
        Ok(survivor)
    }

    fn node(&mut self, number: usize) -> Result<&mut Node, Ambiguous> {
        self.nodes.get_mut(number).ok_or_else(|| Ambiguous(format!("no person {number}")))
    }
}

fn change(node: &mut Node, key: &str, update: &Update) -> Result<(), Ambiguous> {
    for (name, value) in &update.set {
        *attribute(node, key, name)? = Some(value.clone());
    }
    for name in &update.unset {
        *attribute(node, key, name)? = None;
    }
    for (name, added) in &update.add {
        let mut items = items(attribute(node, key, name)?.take());
        items.extend(added.iter().cloned());
        let mut seen = Vec::new();
        items.retain(|item| {
            !seen.contains(item) && {
                seen.push(item.clone());
                true
            }
        });
        *attribute(node, key, name)? = Some(Value::Array(items));
    }
    for (name, removed) in &update.remove {
        // Removing from what is not there makes nothing.
        if let Some(list) = attribute(node, key, name)? {
            let kept = items(Some(list.take())).into_iter().filter(|item| !removed.contains(item)).collect();
            *list = Value::Array(kept);
        }
    }
    Ok(())
}

/// Segment's `email` is an attribute as well as an identifier. The same address makes the same attribute whoever writes it.
fn email_trait(node: &mut Node, record: &Record) {
    let email = record.user.iter().find(|identifier| identifier.r#type == "email");
    if let Some(email) = email.filter(|_| record.source == Source::Segment) {
        let value = Value::String(email.value.clone());
        node.attributes.insert("email".to_owned(), (email.to_string(), Some(value)));
    }
}

fn items(value: Option<Value>) -> Vec<Value> {
    match value {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    }
}

fn attribute<'a>(node: &'a mut Node, key: &str, name: &str) -> Result<&'a mut Option<Value>, Ambiguous> {
    let (writer, value) = node.attributes.entry(name.to_owned()).or_insert_with(|| (key.to_owned(), None));
    if writer != key {
        return Err(Ambiguous(format!("attribute `{name}` is written by {writer} and by {key}")));
    }
    Ok(value)
}

/// The identifier that keeps this record in order with others: what repeats in every record of a channel.
fn routing_key(record: &Record) -> String {
    let anonymous = record.user.iter().find(|identifier| identifier.r#type == "anonymous_id");
    let key = anonymous.or(record.user.first()).map(ToString::to_string).unwrap_or_default();
    format!("{}:{key}", record.source.code())
}

fn truth(node: Node) -> UserTruth {
    let mut truth = UserTruth { devices: node.devices, events: node.events, seen: node.seen, ..UserTruth::default() };
    for identifier in node.identifiers {
        truth.identifiers.entry(identifier.r#type).or_default().insert(identifier.value);
    }
    let values = node.attributes.into_iter().filter_map(|(name, (_, value))| Some((name, value?)));
    truth.attributes = values.collect();
    truth
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn record(user: &[(&str, &str)], intent: Intent) -> Record {
        let user = user.iter().map(|(kind, value)| Identifier::new(*kind, *value)).collect();
        let (source, message_id) = (Source::Native, "m".to_owned());
        Record { order: 0, time: 0, skew: None, source, message_id, user, device: Some("d".into()), intent }
    }

    fn event() -> Intent {
        Intent::Event { name: "e".into(), properties: serde_json::Map::new(), view: None }
    }

    fn set(name: &str, value: i64) -> Intent {
        let set = [(name.to_owned(), json!(value))].into_iter().collect();
        Intent::Update(Update { set, ..Update::default() })
    }

    fn people(records: &[Record]) -> Result<People, Ambiguous> {
        let mut model = Model::default();
        for record in records {
            model.apply(record)?;
        }
        model.finish()
    }

    #[test]
    fn a_link_makes_two_people_one_and_a_shared_device_does_not() {
        let records = [
            record(&[("anonymous_id", "a")], event()),
            record(&[("anonymous_id", "b")], set("x", 1)),
            record(&[("anonymous_id", "c")], event()),
            record(&[("anonymous_id", "a"), ("user_id", "1")], event()),
            record(&[("anonymous_id", "b"), ("user_id", "1")], event()),
        ];
        let users = people(&records).unwrap().users;
        assert_eq!(users.len(), 2);
        assert_eq!((users[0].events.len(), users[1].events.len()), (3, 1));
        assert_eq!(users[0].identifiers["anonymous_id"].len(), 2);
        assert_eq!(users[0].attributes["x"], json!(1));
    }

    #[test]
    fn two_writers_of_one_attribute_are_an_error() {
        let separate = [record(&[("user_id", "1")], set("x", 1)), record(&[("email", "e")], set("x", 2))];
        assert_eq!(people(&separate).unwrap().users.len(), 2);
        let link = record(&[("user_id", "1"), ("email", "e")], event());
        assert!(people(&[&separate[..], &[link]].concat()).is_err());
        let by_browser = record(&[("anonymous_id", "a"), ("user_id", "1")], set("x", 2));
        assert!(people(&[separate[0].clone(), by_browser]).is_err());
    }

    #[test]
    fn lists_are_sets() {
        let update = |add: &[&str], remove: &[&str]| {
            let list = |items: &[&str]| ("tags".to_owned(), items.iter().map(|item| json!(item)).collect::<Vec<_>>());
            let filled = |items: &[&str]| (!items.is_empty()).then(|| list(items)).into_iter().collect();
            let update = Update { add: filled(add), remove: filled(remove), ..Update::default() };
            record(&[("user_id", "1")], Intent::Update(update))
        };
        let records = [update(&[], &["a"]), update(&["a", "b"], &[]), update(&["a"], &[]), update(&[], &["b"])];
        assert_eq!(people(&records[..1]).unwrap().users[0].attributes.get("tags"), None);
        assert_eq!(people(&records).unwrap().users[0].attributes["tags"], json!(["a"]));
    }

    #[test]
    fn nothing_may_follow_a_deletion_or_race_with_it() {
        let delete = record(&[("user_id", "1")], Intent::Delete);
        let before = record(&[("user_id", "1")], event());
        let deleted = people(&[before.clone(), delete.clone()]).unwrap();
        assert_eq!((deleted.users.len(), deleted.deleted.len()), (0, 1));
        assert!(people(&[delete.clone(), before]).is_err());
        let elsewhere = record(&[("anonymous_id", "a"), ("user_id", "1")], event());
        assert!(people(&[elsewhere, delete]).is_err());
    }
}

//! Compares what came out of a pipeline with the truth of what went in (I1, I2, I8, I9).
//!
//! Pure, so that the demo, the end-to-end tests and anybody who fetches a [`Snapshot`] in another way use the same rules.

mod details;
mod differences;

use super::usage::{Sums, UsageRow, sums};
use crate::generate::truth::{Identifiers, TenantTruth, Truth, UserTruth};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

pub use differences::differences;

/// What came out, of all tenants.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// What the senders were told.
    pub answers: BTreeMap<String, Answers>,
    /// The sums of all processes.
    pub usage: Vec<UsageRow>,
    /// All enriched events.
    pub events: Vec<EventSeen>,
    /// All rejects.
    pub rejects: Vec<RejectSeen>,
    /// Documents of the collection `users`, by tenant.
    pub users: BTreeMap<String, Vec<DocumentSeen>>,
    /// Documents of the collection `devices`, by tenant.
    pub devices: BTreeMap<String, Vec<DocumentSeen>>,
}

/// What the gateway answered to a tenant's senders.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answers {
    /// Records accepted.
    pub accepted: u64,
    /// Records refused, by reason code.
    pub refused: BTreeMap<String, u64>,
}

/// What is compared of an enriched event.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct EventSeen {
    /// Its id.
    pub id: String,
    /// Whose.
    pub tenant: String,
    /// The sender's message id.
    pub message_id: String,
    /// Its user.
    pub user: EventUserSeen,
    /// Its name.
    #[serde(default)]
    pub event: String,
    /// The source's code.
    #[serde(default)]
    pub source: String,
    /// When it happened, RFC 3339.
    #[serde(default)]
    pub time: String,
    /// When it was received, RFC 3339.
    #[serde(default)]
    pub received: String,
    /// Its properties.
    #[serde(default)]
    pub properties: Map<String, Value>,
    /// The device that its record named.
    #[serde(default)]
    pub device: Option<EventDeviceSeen>,
}

/// What is compared of an event's device.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct EventDeviceSeen {
    /// Its identifiers, one per type.
    #[serde(default)]
    pub identifiers: BTreeMap<String, String>,
}

/// What is compared of an event's user.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct EventUserSeen {
    /// What was known of it then.
    #[serde(default)]
    pub identifiers: Identifiers,
}

/// What is compared of a reject.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct RejectSeen {
    /// Its id.
    pub id: String,
    /// Whose.
    pub tenant: String,
    /// The reason's code.
    pub reason: String,
    /// Only a part of its record was refused; the rest took effect.
    #[serde(default)]
    pub partial: bool,
}

/// A document with its guard.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct DocumentSeen {
    /// Its id.
    #[serde(rename = "_id")]
    pub id: String,
    /// Only the guard is left.
    #[serde(default)]
    pub deleted: bool,
    /// Its fields.
    #[serde(default)]
    pub fields: Map<String, Value>,
}

/// Something that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// Whose.
    pub tenant: String,
    /// What is compared, for example `accepted` or `user user_id=42: attribute plan`.
    pub subject: String,
    /// What the truth says.
    pub expected: String,
    /// What was found.
    pub found: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: expected {}, found {}", self.tenant, self.subject, self.expected, self.found)
    }
}

/// Everything that is not as the truth says. Tenants that the truth does not know are not looked at.
pub fn verify(truth: &Truth, snapshot: &Snapshot) -> Vec<Mismatch> {
    let all_sums = sums(&snapshot.usage);
    let mut mismatches = Vec::new();
    for (tenant, expected) in &truth.tenants {
        let mut check = Check { tenant, mismatches: &mut mismatches };
        let sums = all_sums.get(tenant).cloned().unwrap_or_default();
        check.answers(expected, snapshot.answers.get(tenant));
        check.sums(expected, &sums);
        check.rejects(expected, snapshot);
        check.events(expected, snapshot);
        let devices = snapshot.devices.get(tenant).map(Vec::as_slice).unwrap_or_default();
        let users = snapshot.users.get(tenant).map(Vec::as_slice).unwrap_or_default();
        check.users(expected, users, devices);
        check.merged(expected, users);
        check.devices(expected, devices);
        check.device_details(expected, devices);
    }
    mismatches
}

struct Check<'a> {
    tenant: &'a str,
    mismatches: &'a mut Vec<Mismatch>,
}

impl Check<'_> {
    fn equal<T: PartialEq + fmt::Debug>(&mut self, subject: impl fmt::Display, expected: &T, found: &T) {
        if expected != found {
            self.report(subject, format!("{expected:?}"), format!("{found:?}"));
        }
    }

    fn report(&mut self, subject: impl fmt::Display, expected: impl Into<String>, found: impl Into<String>) {
        self.mismatches.push(Mismatch {
            tenant: self.tenant.to_owned(),
            subject: subject.to_string(),
            expected: expected.into(),
            found: found.into(),
        });
    }

    /// What senders were told; a snapshot of a pipeline whose senders are not known has no answers.
    fn answers(&mut self, expected: &TenantTruth, answers: Option<&Answers>) {
        let Some(answers) = answers else { return };
        self.equal("answers: accepted", &expected.accepted, &answers.accepted);
        self.equal("answers: refused", &expected.refused, &answers.refused);
    }

    fn sums(&mut self, expected: &TenantTruth, sums: &Sums) {
        self.equal("usage: accepted", &expected.accepted, &sums.accepted);
        self.equal("usage: effects", &expected.effects, &sums.effects);
        self.equal("usage: duplicates", &expected.duplicates, &sums.duplicates);
        self.equal("usage: rejects", &expected.rejects.values().sum::<u64>(), &sums.rejects);
        self.equal("usage: events", &expected.events, &sums.events);
        self.equal("usage: in progress", &0, &sums.in_progress);
    }

    fn rejects(&mut self, expected: &TenantTruth, snapshot: &Snapshot) {
        let mut found: BTreeMap<String, u64> = BTreeMap::new();
        let mut ids = BTreeSet::new();
        let tenant = self.tenant;
        for reject in snapshot.rejects.iter().filter(|reject| reject.tenant == tenant) {
            if !ids.insert(&reject.id) {
                self.report("rejects", "each reject once", format!("{} again", reject.id));
            }
            if !reject.partial {
                *found.entry(reject.reason.clone()).or_default() += 1;
            }
        }
        self.equal("rejects by reason", &expected.rejects, &found);
    }

    /// Each expected event exactly once, none besides, and of the right person.
    fn events(&mut self, expected: &TenantTruth, snapshot: &Snapshot) {
        let people = expected.users.iter().chain(&expected.deleted);
        let mut awaited: HashMap<&str, &UserTruth> =
            people.flat_map(|person| person.events.iter().map(move |id| (id.as_str(), person))).collect();
        let tenant = self.tenant;
        for event in snapshot.events.iter().filter(|event| event.tenant == tenant) {
            let subject = format!("event {}", event.message_id);
            let Some(person) = awaited.remove(event.message_id.as_str()) else {
                self.report(subject, "not at all, or once", "once more");
                continue;
            };
            // Identifiers may have been found out later, but never were somebody else's.
            if let Some(foreign) = foreign(&event.user.identifiers, &person.identifiers) {
                self.report(&subject, format!("a user of {}", show(&person.identifiers)), format!("one of {foreign}"));
            }
            if let Some(details) = expected.details.get(&event.message_id) {
                self.event_details(&subject, details, event);
            }
        }
        for (message_id, person) in awaited {
            self.report(format!("event {message_id}"), format!("once, of {}", show(&person.identifiers)), "not at all");
        }
    }

    fn users(&mut self, expected: &TenantTruth, documents: &[DocumentSeen], devices: &[DocumentSeen]) {
        self.unique("users", documents);
        let names = device_names(devices);
        let live: Vec<Live<'_>> =
            documents.iter().filter(|document| !document.deleted).map(|document| Live::of(document, &names)).collect();
        let mut by_identifier: HashMap<(&str, &str), BTreeSet<usize>> = HashMap::new();
        for (number, user) in live.iter().enumerate() {
            for pair in pairs(&user.identifiers) {
                by_identifier.entry(pair).or_default().insert(number);
            }
        }
        let of = |person: &UserTruth| -> BTreeSet<usize> {
            pairs(&person.identifiers).filter_map(|pair| by_identifier.get(&pair)).flatten().copied().collect()
        };
        let mut explained = BTreeSet::new();
        for person in &expected.users {
            let numbers = of(person);
            let found: Vec<&Live<'_>> = numbers.iter().filter_map(|number| live.get(*number)).collect();
            self.user(person, &found);
            explained.extend(numbers);
        }
        for person in &expected.deleted {
            let numbers = of(person);
            if !numbers.is_empty() {
                self.report(format!("deleted user {}", show(&person.identifiers)), "no document", "a live one");
            }
            explained.extend(numbers);
        }
        for (_, user) in live.iter().enumerate().filter(|(number, _)| !explained.contains(number)) {
            self.report(format!("user document {}", user.id), "none", show(&user.identifiers));
        }
    }

    fn user(&mut self, person: &UserTruth, found: &[&Live<'_>]) {
        let subject = format!("user {}", show(&person.identifiers));
        match found {
            [] => self.report(subject, "one document", "none"),
            [user] => {
                if user.identifiers != person.identifiers {
                    self.report(&subject, show(&person.identifiers), show(&user.identifiers));
                }
                self.equal(format!("{subject}: devices"), &person.devices, &user.devices);
                self.attributes(&subject, person, user);
                self.seen(&subject, person.seen, user.document);
            }
            several => {
                let ids: Vec<&str> = several.iter().map(|user| user.id).collect();
                self.report(subject, "one document", format!("{}: {}", several.len(), ids.join(", ")));
            }
        }
    }

    fn attributes(&mut self, subject: &str, person: &UserTruth, user: &Live<'_>) {
        let expected: BTreeMap<&str, Value> = comparable(person.attributes.iter());
        let found: BTreeMap<&str, Value> = comparable(user.attributes.into_iter().flatten());
        let names: BTreeSet<&str> = expected.keys().chain(found.keys()).copied().collect();
        for name in names {
            let (expected, found) = (expected.get(name), found.get(name));
            if expected != found {
                self.report(format!("{subject}: attribute {name}"), text(expected), text(found));
            }
        }
    }

    /// Every device that somebody used has one document.
    fn devices(&mut self, expected: &TenantTruth, documents: &[DocumentSeen]) {
        self.unique("devices", documents);
        let mut found: BTreeMap<&str, usize> = BTreeMap::new();
        for device in documents.iter().filter(|document| !document.deleted).flat_map(device_ids) {
            *found.entry(device).or_default() += 1;
        }
        let wanted: BTreeSet<&str> = expected.users.iter().flat_map(|user| &user.devices).map(String::as_str).collect();
        for device in &wanted {
            let count = found.get(device).copied().unwrap_or(0);
            self.equal(format!("device device_id={device}: documents"), &1, &count);
        }
        let strangers: Vec<&&str> = found.keys().filter(|device| !wanted.contains(*device)).collect();
        if let Some(first) = strangers.first() {
            self.report("devices", "those that people used", format!("{} others, such as {first}", strangers.len()));
        }
    }

    fn unique(&mut self, collection: &str, documents: &[DocumentSeen]) {
        let mut seen = BTreeSet::new();
        for document in documents.iter().filter(|document| !seen.insert(&document.id)) {
            self.report(format!("collection {collection}"), "each id once", format!("{} again", document.id));
        }
    }
}

/// A live user document, taken apart.
struct Live<'a> {
    id: &'a str,
    document: &'a DocumentSeen,
    identifiers: Identifiers,
    /// Values of `device_id` of its devices; the internal id of one that has no document.
    devices: BTreeSet<String>,
    attributes: Option<&'a Map<String, Value>>,
}

impl<'a> Live<'a> {
    fn of(document: &'a DocumentSeen, names: &HashMap<&str, Vec<&str>>) -> Live<'a> {
        let devices = document.fields.get("devices").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let devices = devices.iter().filter_map(Value::as_str);
        let named = |id| names.get(id).filter(|names| !names.is_empty()).cloned().unwrap_or_else(|| vec![id]);
        Live {
            id: &document.id,
            document,
            identifiers: identifiers(document),
            devices: devices.flat_map(named).map(str::to_owned).collect(),
            attributes: document.fields.get("attributes").and_then(Value::as_object),
        }
    }
}

/// The values of `device_id` by internal id.
fn device_names(devices: &[DocumentSeen]) -> HashMap<&str, Vec<&str>> {
    devices.iter().map(|device| (device.id.as_str(), device_ids(device).collect())).collect()
}

fn text(value: Option<&Value>) -> String {
    value.map_or("nothing".to_owned(), Value::to_string)
}

fn identifiers(document: &DocumentSeen) -> Identifiers {
    let types = document.fields.get("identifiers").and_then(Value::as_object);
    let values = |list: &Value| match list {
        Value::Array(values) => values.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        single => single.as_str().map(str::to_owned).into_iter().collect::<BTreeSet<String>>(),
    };
    let types = types.into_iter().flatten().map(|(kind, list)| (kind.clone(), values(list)));
    types.filter(|(_, values)| !values.is_empty()).collect()
}

/// The values of `device_id` of a device's document.
fn device_ids(document: &DocumentSeen) -> impl Iterator<Item = &str> {
    let values = document.fields.get("identifiers").and_then(|types| types.get("device_id"));
    let values = values.map(|values| values.as_array().map_or(std::slice::from_ref(values), Vec::as_slice));
    values.into_iter().flatten().filter_map(Value::as_str)
}

fn pairs(identifiers: &Identifiers) -> impl Iterator<Item = (&str, &str)> {
    identifiers.iter().flat_map(|(kind, values)| values.iter().map(move |value| (kind.as_str(), value.as_str())))
}

/// An identifier that is not the person's.
fn foreign(found: &Identifiers, own: &Identifiers) -> Option<String> {
    let own = |kind: &str, value: &str| own.get(kind).is_some_and(|values| values.contains(value));
    pairs(found).find(|(kind, value)| !own(kind, value)).map(|(kind, value)| format!("{kind}={value}"))
}

/// The identifiers for people, the most telling first.
fn show(identifiers: &Identifiers) -> String {
    let mut shown: Vec<String> = pairs(identifiers).map(|(kind, value)| format!("{kind}={value}")).collect();
    shown.sort_by_key(|identifier| !identifier.starts_with("user_id="));
    shown.join(" ")
}

/// Attributes as they are compared: attribute names without escapes, lists as sets, no null and no empty set, numbers by value.
fn comparable<'a>(attributes: impl Iterator<Item = (&'a String, &'a Value)>) -> BTreeMap<&'a str, Value> {
    attributes.map(|(name, value)| (name.as_str(), normal(value))).filter(|(_, value)| !value.is_null()).collect()
}

fn normal(value: &Value) -> Value {
    match value {
        Value::Array(items) if items.is_empty() => Value::Null,
        Value::Array(items) => {
            let mut items: Vec<Value> = items.iter().map(normal).collect();
            items.sort_by_key(Value::to_string);
            Value::Array(items)
        }
        Value::Object(members) => {
            let sorted: BTreeMap<String, Value> =
                members.iter().map(|(name, value)| (name.clone(), normal(value))).collect();
            Value::Object(sorted.into_iter().collect())
        }
        Value::Number(number) => match number.as_f64() {
            // A store may give back 1.0 where 1 was sent.
            Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < 9e15 => Value::from(float as i64),
            _ => value.clone(),
        },
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests;

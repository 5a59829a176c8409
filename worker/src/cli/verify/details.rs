//! What is compared besides sums, identities and users' attributes: what events say, when somebody was seen, what devices are, and who became part of whom.

use super::{Check, DocumentSeen, EventSeen, device_ids, normal, text};
use crate::generate::truth::{DeviceTruth, EventTruth, Seen, Span, TenantTruth};
use millstream_model::value::{format_time, parse_time};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};

impl Check<'_> {
    /// What an event says.
    pub(super) fn event_details(&mut self, subject: &str, expected: &EventTruth, found: &EventSeen) {
        self.equal(format!("{subject}: name"), &expected.name, &found.event);
        self.equal(format!("{subject}: source"), &expected.source, &found.source);
        let device = found.device.as_ref().and_then(|device| device.identifiers.get("device_id").cloned());
        self.equal(format!("{subject}: device"), &expected.device, &device);
        let of = |properties: &serde_json::Map<String, Value>| normal(&Value::Object(properties.clone()));
        let (wanted, properties) = (of(&expected.properties), of(&found.properties));
        if wanted != properties {
            self.report(format!("{subject}: properties"), wanted.to_string(), properties.to_string());
        }
        let (time, received) = (parse_time(&found.time), parse_time(&found.received));
        self.span(format!("{subject}: time"), expected.time, time);
        if let Some(lag_ms) = expected.lag_ms {
            self.equal(
                format!("{subject}: time before it was received"),
                &Some(lag_ms),
                &received.zip(time).map(|(received, time)| received - time),
            );
        }
    }

    fn span(&mut self, subject: impl std::fmt::Display, expected: Span, found: Option<i64>) {
        if found.is_some_and(|found| expected.contains(found)) {
            return;
        }
        let until = expected.to_ms.map_or_else(|| "later".to_owned(), format_time);
        let found = found.map_or_else(|| "no time".to_owned(), format_time);
        self.report(subject, format!("{} to {until}", format_time(expected.from_ms)), found);
    }

    /// First and last seen of a document.
    pub(super) fn seen(&mut self, subject: &str, expected: Option<Seen>, document: &DocumentSeen) {
        let Some(expected) = expected else { return };
        for (name, span) in [("first_seen", expected.first), ("last_seen", expected.last)] {
            let found = document.fields.get(name).and_then(Value::as_str).and_then(parse_time);
            self.span(format!("{subject}: {name}"), span, found);
        }
    }

    /// What devices are, and whose they were last.
    pub(super) fn device_details(&mut self, expected: &TenantTruth, documents: &[DocumentSeen]) {
        let live = documents.iter().filter(|document| !document.deleted);
        let by_name: HashMap<&str, &DocumentSeen> =
            live.flat_map(|document| device_ids(document).map(move |name| (name, document))).collect();
        for (name, truth) in &expected.devices {
            // One that is not there is found elsewhere.
            let Some(document) = by_name.get(name.as_str()) else { continue };
            let subject = format!("device device_id={name}");
            self.device_attributes(&subject, truth, document);
            self.seen(&subject, truth.seen, document);
            let user = device_user(document);
            if !user.as_ref().is_some_and(|user| truth.users.contains(user)) {
                self.report(format!("{subject}: user"), format!("one of {:?}", truth.users), format!("{user:?}"));
            }
        }
    }

    fn device_attributes(&mut self, subject: &str, truth: &DeviceTruth, document: &DocumentSeen) {
        let found = document.fields.get("attributes").and_then(Value::as_object);
        let found: BTreeMap<&str, Value> = super::comparable(found.into_iter().flatten());
        let names: BTreeSet<&str> = truth.attributes.keys().map(String::as_str).chain(found.keys().copied()).collect();
        for name in names {
            let (found, allowed) = (found.get(name), truth.attributes.get(name));
            let is_allowed =
                |found: &Value| allowed.is_some_and(|values| values.iter().any(|value| normal(value) == *found));
            if !found.is_some_and(is_allowed) {
                let allowed =
                    allowed.map_or("nothing".to_owned(), |values| format!("one of {}", Value::from(values.clone())));
                self.report(format!("{subject}: attribute {name}"), allowed, text(found));
            }
        }
    }

    /// Each user that became part of another one left a tombstone, belongs to one live user, and is not live itself; all other tombstones are of people
    /// who were deleted.
    pub(super) fn merged(&mut self, expected: &TenantTruth, documents: &[DocumentSeen]) {
        let (gone, live): (Vec<&DocumentSeen>, Vec<&DocumentSeen>) =
            documents.iter().partition(|document| document.deleted);
        let mut gone: BTreeSet<&str> = gone.into_iter().map(|document| document.id.as_str()).collect();
        for document in live {
            let merged = document.fields.get("merged_users").and_then(Value::as_array);
            for id in merged.into_iter().flatten().filter_map(Value::as_str) {
                if !gone.remove(id) {
                    let subject = format!("user document {}: merged user {id}", document.id);
                    self.report(subject, "a tombstone that no other user has", "none");
                }
            }
        }
        self.equal("users: tombstones of nobody's merge", &expected.deleted.len(), &gone.len());
    }
}

/// By what the last user of a device was named.
pub(super) fn device_user(document: &DocumentSeen) -> Option<String> {
    let user = document.fields.get("user")?;
    Some(format!("{}={}", user.get("type")?.as_str()?, user.get("value")?.as_str()?))
}

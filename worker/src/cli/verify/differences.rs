//! Two pipelines that had the same records, compared field by field: whatever does not depend on when a record was received must be equal.
//!
//! People are matched by their identifiers and devices by `device_id`: internal ids depend on when somebody was first heard of.

use super::details::device_user;
use super::{
    Check, DocumentSeen, EventSeen, Live, Mismatch, Snapshot, comparable, device_ids, device_names, normal, show,
};
use crate::generate::truth::{Span, TenantTruth, Truth};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// What differs between two snapshots; `expected` is what the first one has.
pub fn differences(truth: &Truth, one: &Snapshot, other: &Snapshot) -> Vec<Mismatch> {
    let mut mismatches = Vec::new();
    for (tenant, truth) in &truth.tenants {
        let mut check = Check { tenant, mismatches: &mut mismatches };
        check.same("event", &events(tenant, truth, one), &events(tenant, truth, other));
        check.same("user", &users(tenant, truth, one), &users(tenant, truth, other));
        check.same("device", &devices(tenant, truth, one), &devices(tenant, truth, other));
    }
    mismatches
}

/// Things by what they are called in both snapshots.
type Things = BTreeMap<String, Map<String, Value>>;

impl Check<'_> {
    fn same(&mut self, what: &str, one: &Things, other: &Things) {
        let names: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
        let nothing = Map::new();
        for name in names {
            let (one, other) = (one.get(name).unwrap_or(&nothing), other.get(name).unwrap_or(&nothing));
            let fields: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
            for field in fields.into_iter().filter(|field| one.get(*field) != other.get(*field)) {
                self.report(
                    format!("{what} {name}: {field}"),
                    super::text(one.get(field)),
                    super::text(other.get(field)),
                );
            }
        }
    }
}

fn events(tenant: &str, truth: &TenantTruth, snapshot: &Snapshot) -> Things {
    let of = |event: &EventSeen| {
        let mut fields = object(json!({
            "event": event.event,
            "source": event.source,
            "properties": normal(&Value::Object(event.properties.clone())),
            "device": event.device.as_ref().map(|device| json!(device.identifiers)),
        }));
        let expected = truth.details.get(&event.message_id);
        if expected.is_some_and(|expected| expected.time.is_exact()) {
            fields.insert("time".to_owned(), json!(event.time));
        }
        (event.message_id.clone(), fields)
    };
    snapshot.events.iter().filter(|event| event.tenant == tenant).map(of).collect()
}

fn live<'a>(of: &'a BTreeMap<String, Vec<DocumentSeen>>, tenant: &str) -> impl Iterator<Item = &'a DocumentSeen> {
    of.get(tenant).into_iter().flatten().filter(|document| !document.deleted)
}

fn users(tenant: &str, truth: &TenantTruth, snapshot: &Snapshot) -> Things {
    let devices: Vec<DocumentSeen> = live(&snapshot.devices, tenant).cloned().collect();
    let names = device_names(&devices);
    let spans: BTreeMap<String, [Span; 2]> = truth
        .users
        .iter()
        .filter_map(|user| Some((show(&user.identifiers), user.seen.map(|seen| [seen.first, seen.last])?)))
        .collect();
    let of = |document: &DocumentSeen| {
        let user = Live::of(document, &names);
        let name = show(&user.identifiers);
        let mut fields = rest(document, spans.get(&name));
        fields.insert("devices".to_owned(), json!(user.devices));
        (name, fields)
    };
    live(&snapshot.users, tenant).map(of).collect()
}

fn devices(tenant: &str, truth: &TenantTruth, snapshot: &Snapshot) -> Things {
    let of = |document: &DocumentSeen| {
        let name = device_ids(document).next().unwrap_or(&document.id).to_owned();
        let known = truth.devices.get(&name);
        let spans = known.and_then(|known| known.seen).map(|seen| [seen.first, seen.last]);
        let mut fields = rest(document, spans.as_ref());
        // What several say of one device at a time, the last one decides, who may be another one each time.
        let ambiguous = |name: &String| {
            known.is_some_and(|known| known.attributes.get(name).is_some_and(|values| values.len() > 1))
        };
        if let Some(attributes) = fields.get_mut("attributes").and_then(Value::as_object_mut) {
            attributes.retain(|name, _| !ambiguous(name));
        }
        fields.remove("user");
        if known.is_some_and(|known| known.users.len() == 1) {
            fields.insert("user".to_owned(), json!(device_user(document)));
        }
        (name, fields)
    };
    live(&snapshot.devices, tenant).map(of).collect()
}

/// The fields of a document that do not hold internal ids or times that are not known beforehand.
fn rest(document: &DocumentSeen, spans: Option<&[Span; 2]>) -> Map<String, Value> {
    let mut fields = document.fields.clone();
    for name in ["devices", "merged_users"] {
        fields.remove(name);
    }
    for (index, name) in ["first_seen", "last_seen"].into_iter().enumerate() {
        if !spans.and_then(|spans| spans.get(index)).is_some_and(Span::is_exact) {
            fields.remove(name);
        }
    }
    let attributes = fields.get("attributes").and_then(Value::as_object).cloned().unwrap_or_default();
    let attributes: Map<String, Value> =
        comparable(attributes.iter()).into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let mut fields = object(normal(&Value::Object(fields)));
    fields.insert("attributes".to_owned(), Value::Object(attributes));
    fields
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}

//! The outcome of a record at this stage (I2), and its enriched event.

use crate::{At, Outbox, PublicMessage};
use millstream_model::event::{self, EnrichedEvent, EventDevice, EventUser, cloud_event_headers};
use millstream_model::id::{DeviceId, UserId, hex};
use millstream_model::proto::{Action, Event, Object, User};
use millstream_model::reject::{self, Reason, Reject};
use millstream_model::{trace, value};
use serde::Serialize;
use std::collections::BTreeMap;

/// The record has had its effect.
pub(super) fn effect(action: &Action, out: &mut Outbox) {
    if !action.uncounted {
        out.usage(&action.tenant).effects += 1;
    }
}

#[derive(Serialize)]
struct Message {
    #[serde(flatten)]
    reject: Reject,
    /// It is about a part of a record; another part decides what the record counts as.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    partial: bool,
}

/// The record will not be applied. Its original bytes stayed behind at unify: the record id and the message id name it.
pub(super) fn reject(action: &Action, reason: Reason, message: impl Into<String>, out: &mut Outbox) {
    if !action.uncounted {
        out.usage(&action.tenant).rejects += 1;
        out.reasons.push((action.tenant.clone(), reason));
    }
    let (id, source) = (hex(&action.record_id), action.source().code());
    let time = received(action);
    let mut headers = cloud_event_headers(reject::CLOUD_EVENT_TYPE, &id, &action.tenant, source, &time);
    headers.extend(action.trace.as_ref().map(|context| ("traceparent", trace::format(context))));
    let reject = Reject {
        id,
        tenant: action.tenant.clone(),
        source: source.to_owned(),
        kind: action.kind.clone(),
        stage: "action".to_owned(),
        reason,
        field: None,
        message: message.into(),
        message_id: action.message_id.clone(),
        time,
        original: None,
        original_hex: None,
        truncated: false,
    };
    // Strings, numbers and enums only: writing them as JSON cannot fail.
    let payload = serde_json::to_vec(&Message { reject, partial: action.uncounted }).unwrap_or_default();
    let group = u16::try_from(action.group % u32::from(millstream_model::key::GROUPS)).unwrap_or_default();
    out.rejects.push(PublicMessage { key: action.tenant.as_bytes().to_vec(), headers, payload, group });
}

fn received(action: &Action) -> String {
    let time_ms = action.stamp.map_or(0, |stamp| stamp.time_ms);
    value::format_time(i64::try_from(time_ms).unwrap_or(i64::MAX))
}

/// Sends the action's event with what is known about its user.
pub(super) fn enriched_event(action: &Action, event: Event, user: &User, id: &UserId, at: &At, out: &mut Outbox) {
    let source = action.source().code();
    let enriched = EnrichedEvent {
        id: hex(&action.record_id),
        tenant: &action.tenant,
        event: &event.name,
        time: value::format_time(action.time_ms),
        received: received(action),
        source,
        message_id: &action.message_id,
        properties: Object { members: event.properties },
        user: EventUser {
            id: id.to_string(),
            identifiers: identifiers(user),
            first_seen: value::format_time(user.first_seen_ms),
            first_event: user.events == 1,
        },
        device: device(action),
        generation: u32::from(at.generation),
    };
    let kind = event::CLOUD_EVENT_TYPE;
    let mut headers = cloud_event_headers(kind, &enriched.id, &action.tenant, source, &enriched.time);
    headers.extend(action.trace.as_ref().map(|context| ("traceparent", trace::format(context))));
    // Strings, numbers that are finite and maps by strings: writing them as JSON cannot fail.
    let payload = serde_json::to_vec(&enriched).unwrap_or_default();
    out.usage(&action.tenant).events += 1;
    out.events.push(PublicMessage { key: id.to_string().into_bytes(), headers, payload, group: id.home() });
}

fn identifiers(user: &User) -> BTreeMap<String, Vec<String>> {
    let mut types: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for identifier in user.identifiers.iter().filter_map(|member| member.identifier.as_ref()) {
        types.entry(identifier.r#type.clone()).or_default().push(identifier.value.clone());
    }
    types
}

fn device(action: &Action) -> Option<EventDevice> {
    let primary = action.device_identifiers.first()?;
    let id = DeviceId::of(&action.tenant, primary).to_string();
    let pairs = action.device_identifiers.iter();
    let identifiers = pairs.map(|identifier| (identifier.r#type.clone(), identifier.value.clone())).collect();
    Some(EventDevice { id, identifiers })
}

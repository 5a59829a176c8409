//! The outcome of a record at this stage (I2), and its enriched event.

use super::document::Cause;
use super::limits::Refused;
use super::listed::listed;
use super::merging::LeftOut;
use super::user::device_of;
use super::{attributes, merging, size};
use crate::{At, Outbox, PublicMessage, Rejected, reject};
use millstream_model::event::{self, EnrichedEvent, EventDevice, EventUser, cloud_event_headers};
use millstream_model::id::{UserId, hex, message_hash};
use millstream_model::key::shard_of;
use millstream_model::proto::change::Op;
use millstream_model::proto::{Action, Change, Event, Identifier, Object, Register, User};
use millstream_model::reject::{About, Ingress, Reason, Refusal, Reject};
use millstream_model::{trace, value};
use std::collections::BTreeMap;

/// The record has had its effect.
pub(super) fn effect(action: &Action, out: &mut Outbox) {
    if !action.uncounted {
        out.usage(&action.tenant).effects += 1;
    }
}

/// The record will not be applied.
pub(super) fn reject(action: &Action, reason: Reason, message: impl Into<String>, at: &At, out: &mut Outbox) {
    refuse(action, Refusal::new(reason, message), at, out);
}

/// [`reject`], for a reason and a field that are known.
pub(super) fn refuse(action: &Action, refusal: Refusal, at: &At, out: &mut Outbox) {
    if action.introduction {
        return;
    }
    if !action.uncounted {
        out.usage(&action.tenant).rejects += 1;
        let trace_id = action.trace.as_ref().map(|trace| trace.trace_id.clone()).unwrap_or_default();
        let (tenant, message_id) = (action.tenant.clone(), action.message_id.clone());
        out.reasons.push(Rejected { tenant, reason: refusal.reason, message_id, trace_id });
    }
    let rejected = about(action, hex(&action.record_id), refusal, action, at).with_partial(action.uncounted);
    out.rejects.push(reject::message(&rejected, action.trace.as_ref(), action.group));
}

/// Of whom a part of a record was refused.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part<'a> {
    /// Of the user that this identifier names.
    User(&'a Identifier),
    /// Of the device.
    Device,
}

/// Something in the record was refused, and the rest takes effect; so this counts in no sum.
pub(super) fn partial(action: &Action, part: Part<'_>, refused: Refused, at: &At, out: &mut Outbox) {
    let Some(refusal) = Refusal::join(&refused.refusals) else { return };
    let (name, rest) = refused_part(action, part, refused);
    let id = format!("{}.{name}", hex(&action.record_id));
    let rejected = about(action, id, refusal, &rest, at).with_partial(true);
    out.rejects.push(reject::message(&rejected, action.trace.as_ref(), action.group));
}

/// What was refused, as a record that can be sent again without repeating the rest.
fn refused_part(action: &Action, part: Part<'_>, refused: Refused) -> (&'static str, Action) {
    let primary = action.device_identifiers.first().cloned().into_iter();
    let rest = Action { time_ms: action.time_ms, ..Action::default() };
    match part {
        Part::User(via) => {
            let user_identifiers = std::iter::once(via.clone()).chain(refused.identifiers).collect();
            let device_identifiers = primary.filter(|_| refused.device).collect();
            // The user's part of its record may have been refused in part as well, under an id of its own.
            let name = if action.introduction { "device-of-user" } else { "user" };
            (name, Action { user_identifiers, device_identifiers, user_changes: refused.changes, ..rest })
        }
        Part::Device => {
            let is_other = |identifier: &Identifier| Some(identifier) != action.device_identifiers.first();
            let refused_ones = refused.identifiers.into_iter().filter(is_other);
            let device_identifiers = primary.chain(refused_ones).collect();
            ("device", Action { device_identifiers, device_changes: refused.changes, ..rest })
        }
    }
}

/// So many bytes of attributes, reckoned from above, go into one reject: as JSON they may be several times as much.
const LEFT_OUT_BYTES: usize = 100 * 1024;

/// A merge left no room for these attributes of a user who survived it. It counts in no sum: the record that linked the two has had its effect.
pub(super) fn left_out(user: &User, loser: &[u8], out: Vec<LeftOut>, cause: Cause<'_>, outbox: &mut Outbox) {
    let (Some(survivor), Some(loser)) = (UserId::from_bytes(&user.id), UserId::from_bytes(loser)) else { return };
    let via = user.identifiers.first().and_then(|member| member.identifier.clone());
    for out in merging::chunks(out, LEFT_OUT_BYTES, |left| size::register(&left.register)) {
        let refusals: Vec<Refusal> = out.iter().map(|left| refusal(left, &survivor, &loser)).collect();
        let Some(refusal) = Refusal::join(&refusals) else { continue };
        let names: Vec<&str> = out.iter().map(|left| left.register.name.as_str()).collect();
        let what = hex(&message_hash(&format!("{survivor}\0{loser}\0{}", names.join("\0"))));
        let rest = Action {
            time_ms: i64::try_from(cause.stamp.time_ms).unwrap_or(i64::MAX),
            user_identifiers: via.clone().into_iter().collect(),
            user_changes: out.into_iter().map(|left| as_change(left.register)).collect(),
            ..Action::default()
        };
        let about = About {
            tenant: cause.tenant,
            source: rest.source().code(),
            kind: "merge",
            stage: "action",
            message_id: "",
            time_ms: cause.stamp.time_ms,
        };
        let id = format!("{}.merge.{what}", hex(cause.record_id));
        let rejected = Reject::new(id, &about, refusal).with_action(&rest).with_partial(true);
        outbox.rejects.push(reject::message(&rejected, cause.trace, u32::from(survivor.home())));
    }
}

fn refusal(left: &LeftOut, survivor: &UserId, loser: &UserId) -> Refusal {
    let (name, whose) = (&left.register.name, if left.was_theirs { loser } else { survivor });
    let message = format!(
        "the attribute of user {whose} was left out when user {loser} became part of user {survivor}: the attributes of both are more than one user \
         keeps, and newer ones have the room (action.max_merged_bytes); look for an identifier that many share, and send the attribute again if it is this user's"
    );
    Refusal::field(Reason::TooLarge, format!("set.{name}"), message)
}

/// What readers saw of an attribute, as a change that would bring it back.
fn as_change(register: Register) -> Change {
    let op = attributes::seen(&register).map_or(Op::Unset(true), Op::Set);
    Change { name: register.name, op: Some(op) }
}

/// A reject of the record `action`, or of a part of it, with what is to be sent again. The record's own bytes stayed behind at unify: taking them
/// along for the few records that are rejected would cost all others (docs: design, decisions). So it says where they are.
fn about(action: &Action, id: String, refusal: Refusal, refused: &Action, at: &At) -> Reject {
    let stamp = action.stamp.unwrap_or_default();
    let about = About {
        tenant: &action.tenant,
        source: action.source().code(),
        kind: &action.kind,
        stage: "action",
        message_id: &action.message_id,
        time_ms: stamp.time_ms,
    };
    // Unify let the record through only in the partition of its key group, and all stages have as many.
    let group = u16::try_from(action.group).unwrap_or_default();
    let ingress = Ingress { partition: shard_of(group, at.shards), offset: stamp.offset, index: stamp.index };
    let was_deleted = matches!(refusal.reason, Reason::UserDeleted | Reason::TenantErased);
    let reject = Reject::new(id, &about, refusal).with_ingress(ingress);
    // Whoever was to be forgotten is not shown once more.
    if was_deleted { reject } else { reject.with_action(refused) }
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
    headers.extend(action.trace.iter().flat_map(trace::headers));
    // Strings, numbers that are finite and maps by strings: writing them as JSON cannot fail.
    let payload = serde_json::to_vec(&enriched).unwrap_or_default();
    out.usage(&action.tenant).events += 1;
    out.events.push(PublicMessage { key: id.to_string().into_bytes(), headers, payload, group: id.home() });
}

fn identifiers(user: &User) -> BTreeMap<String, Vec<String>> {
    let mut types: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for identifier in listed(&user.identifiers).iter().filter_map(|member| member.identifier.as_ref()) {
        types.entry(identifier.r#type.clone()).or_default().push(identifier.value.clone());
    }
    types
}

fn device(action: &Action) -> Option<EventDevice> {
    if action.device_identifiers.is_empty() {
        return None;
    }
    let id = device_of(action).map(|id| id.to_string());
    let pairs = action.device_identifiers.iter();
    let identifiers = pairs.map(|identifier| (identifier.r#type.clone(), identifier.value.clone())).collect();
    Some(EventDevice { id, identifiers })
}

//! Unify: from envelopes to actions. A pure function of (record, state, configuration).
//!
//! # Outcomes (I2)
//! Each envelope read from `ingress` counts as one accepted record of its tenant and has one outcome:
//! - *duplicate*: its message id was seen in its key group within the window. Nothing else happens.
//! - *reject*: no part of it can be processed. It is remembered all the same: a repetition is a duplicate, not a second reject.
//! - *effect*: at least one part goes on as an [`Action`]. The action stage counts it, as an effect or a reject, at the last of the
//!   record's actions; the others are marked `uncounted`.
//!
//! So, when all is processed, accepted = effects + duplicates + rejects. `rejects` may hold more messages than that sum: parts that were
//! refused and fields that were dropped are reported there as `partial` ([`reject`]).
//! Records of a tenant whose name is impossible, and bytes that are no envelope, count for the tenant [`INVALID_TENANT`].
//!
//! # Trust
//! Others may write to `ingress` too. An envelope in the wrong partition, or whose key group is not that of its routing identifier, is rejected
//! as misrouted: taken in, it would break the order of that identifier's records (I3). So is one of a tenant that is not configured
//! ([`Unify::for_tenants`]); it counts for [`INVALID_TENANT`], and leaves nothing in the state, so that who may write cannot make it grow by names.
//!
//! # Rules of tenants
//! They may change between two batches ([`Unify::adopt`]); [`Rules`] says why that needs no record of when.
//!
//! What was received of a tenant before it was erased is rejected; such a reject does not show it.
//!
//! # Time
//! The stamp comes with the record (I7); it is the only time that decides anything here.

mod changes;
mod config;
mod data_api;
mod draft;
mod fields;
mod native;
mod reject;
mod seen;
mod segment;
mod times;
mod values;

pub use config::{PublishedRules, RecordLimits, Rules, TenantLimits, TenantRules, UnifyConfig};

use crate::source::{self, probe, route};
use crate::{At, DecodeError, Input, Outbox, Stage, State, StateError, StateValue};
use draft::{Draft, Parts, Reading};
use millstream_model::id::record_id;
use millstream_model::key::{Kind, StateKey, group_of, shard_of};
use millstream_model::proto::{Action, Envelope, Object, Seen, Source, TraceContext, Value, value};
use millstream_model::reject::{Reason, Refusal};
use prost::Message;
use reject::Rejecter;
use seen::{SeenKey, Window};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// For whom records count whose tenant cannot be told. No tenant can have this name.
pub const INVALID_TENANT: &str = "_invalid";

/// The stage.
#[derive(Clone, Debug)]
pub struct Unify {
    rules: Arc<Rules>,
    seen: Window,
    /// Whose envelopes are taken; `None`: everybody's.
    tenants: Option<Arc<BTreeSet<String>>>,
}

/// What unify's state holds.
#[derive(Clone, Debug, PartialEq)]
pub enum UnifyValue {
    /// A message id that was seen.
    Seen(Seen),
}

impl StateValue for UnifyValue {
    fn encode(&self, bytes: &mut Vec<u8>) {
        let UnifyValue::Seen(seen) = self;
        seen.encode_raw(bytes);
    }

    fn decode(key: &StateKey, bytes: &[u8]) -> Result<UnifyValue, StateError> {
        match key.parts() {
            Some((_, Kind::Seen, _)) => Seen::decode(bytes)
                .map(UnifyValue::Seen)
                .map_err(|error| StateError::Invalid(format!("{key:?}: {error}"))),
            _ => Err(StateError::Invalid(format!("{key:?} is no key of the stage unify"))),
        }
    }

    fn memory(&self, _: usize) -> usize {
        size_of::<UnifyValue>()
    }
}

impl Stage for Unify {
    type Value = UnifyValue;
    type Record = Envelope;

    fn name(&self) -> &'static str {
        "unify"
    }

    fn decode(&self, input: Input, bytes: &[u8]) -> Result<Envelope, DecodeError> {
        if input != Input::Ingress {
            return Err(DecodeError { input, message: "the stage unify reads only ingress".to_owned() });
        }
        Envelope::decode(bytes).map_err(|error| DecodeError { input, message: error.to_string() })
    }

    fn unreadable(&self, error: DecodeError, bytes: &[u8], at: &At, out: &mut Outbox) -> Result<(), DecodeError> {
        if error.input != Input::Ingress {
            return Err(error);
        }
        out.usage(INVALID_TENANT).accepted += 1;
        let stand_in = Envelope { body: bytes::Bytes::copy_from_slice(bytes), ..Envelope::default() };
        let mut rejecter =
            Rejecter { envelope: &stand_in, tenant: INVALID_TENANT, at, trace: None, has_original: false };
        let message = format!("{error}; write Envelope messages in frames (docs: reference, frames)");
        rejecter.whole(Refusal::new(Reason::Misrouted, message), out);
        Ok(())
    }

    fn keys(&self, record: &Envelope, at: &At, periods: &[u32], keys: &mut Vec<StateKey>) {
        if let Some(seen) = SeenKey::of(record) {
            keys.extend(self.seen.look_in(at.stamp.time_ms, periods).map(|period| seen.in_period(period)));
        }
    }

    fn forget_before(&self, stamp_ms: u64, periods: &[u32]) -> u32 {
        self.seen.forget_before(stamp_ms, periods)
    }

    fn process(
        &self,
        record: Envelope,
        at: &At,
        state: &mut dyn State<UnifyValue>,
        out: &mut Outbox,
    ) -> Result<(), StateError> {
        let tenant = if self.knows(&record.tenant) { record.tenant.as_str() } else { INVALID_TENANT };
        out.usage(tenant).accepted += 1;
        let misplaced = self.check_tenant(&record).and_then(|()| check_place(&record, at));
        let erased_ms = self.rules.erased_ms(tenant);
        let is_erased = at.stamp.time_ms <= erased_ms;
        if misplaced.is_ok()
            && !is_erased
            && let Some(key) = SeenKey::of(&record)
            && self.seen.is_duplicate(&key, at.stamp.time_ms, erased_ms, state)?
        {
            out.usage(tenant).duplicates += 1;
            return Ok(());
        }
        let id = record_id(&record.tenant, &record.message_id, at.partition, &at.stamp, 0);
        let kind = format!("{} {}", record.source().code(), route::known_kind(record.source(), Some(&record.kind)));
        let trace = out.span(record.trace.as_ref(), "unify", &kind, tenant, &id);
        // What is to be forgotten is not shown once more.
        let rejecter = Rejecter { envelope: &record, tenant, at, trace: trace.clone(), has_original: is_erased };
        let erased = if is_erased { Err(crate::action::erased()) } else { Ok(()) };
        let parts = misplaced.and(erased).and_then(|()| self.read(&record, at));
        emit(parts, rejecter, trace.as_ref(), out);
        Ok(())
    }
}

impl Default for Unify {
    fn default() -> Unify {
        Unify::new(&UnifyConfig::default())
    }
}

impl Unify {
    /// With this configuration.
    pub fn new(config: &UnifyConfig) -> Unify {
        let seen = Window::of_hours(config.duplicate_window_hours);
        Unify { rules: Arc::new(Rules::new(config, &BTreeMap::new())), seen, tenants: None }
    }

    /// Goes by these rules from the next record on.
    pub fn adopt(&mut self, rules: Arc<Rules>) {
        self.rules = rules;
    }

    /// Takes only the envelopes of these tenants.
    pub fn for_tenants(self, tenants: Arc<BTreeSet<String>>) -> Unify {
        Unify { tenants: Some(tenants), ..self }
    }

    fn knows(&self, tenant: &str) -> bool {
        source::is_tenant_name(tenant) && self.tenants.as_ref().is_none_or(|tenants| tenants.contains(tenant))
    }

    fn check_tenant(&self, record: &Envelope) -> Result<(), Refusal> {
        if self.knows(&record.tenant) {
            return Ok(());
        }
        let message = if source::is_tenant_name(&record.tenant) {
            let tenant = &record.tenant;
            format!(
                "tenant `{tenant}` is not configured; add it to `tenants` of the role unify, or write envelopes of one that is"
            )
        } else {
            "no tenant can have this name; write envelopes with the name of an existing tenant".to_owned()
        };
        Err(Refusal::field(Reason::Misrouted, "tenant", message))
    }

    /// The parts of a record: parses it, once.
    fn read(&self, record: &Envelope, at: &At) -> Parts {
        let rules = self.rules.of(&record.tenant);
        let object = parse(&record.body, &rules.limits)?;
        let kind = check_kind(record, &object)?;
        let routing = route::route(record.source(), kind, &object)?;
        check_group(record, &routing)?;
        let reading = Reading {
            rules,
            kind,
            received_ms: i64::try_from(at.stamp.time_ms).unwrap_or(i64::MAX),
            sent_ms: record.sent_ms,
            routing: &routing,
            context: &record.context,
        };
        match record.source() {
            Source::Segment => segment::read(object, &reading),
            Source::DataApi => data_api::read(object, &reading),
            Source::Native | Source::Unspecified => native::read(object, &reading),
        }
    }
}

fn parse(body: &[u8], limits: &RecordLimits) -> Result<Object, Refusal> {
    if body.len() > limits.max_record_bytes {
        let message = format!("the record has {} bytes, at most {} are allowed", body.len(), limits.max_record_bytes);
        return Err(Refusal::new(Reason::TooLarge, message));
    }
    let text = std::str::from_utf8(body)
        .map_err(|error| Refusal::new(Reason::MalformedJson, format!("not UTF-8 at byte {}", error.valid_up_to())))?;
    let depth = probe::depth(text);
    if depth > limits.max_depth {
        let message = format!("nested {depth} levels deep, at most {} are allowed", limits.max_depth);
        return Err(Refusal::new(Reason::TooDeep, message));
    }
    match serde_json::from_str::<Value>(text) {
        Ok(Value { kind: Some(value::Kind::Object(object)) }) => Ok(object),
        Ok(other) => {
            let message = format!("a record must be a JSON object, this is of type {}", other.type_name());
            Err(Refusal::new(Reason::WrongType, message))
        }
        Err(error) => Err(probe::malformed(&error)),
    }
}

/// Does the envelope, which others may have written, belong here?
fn check_place(record: &Envelope, at: &At) -> Result<(), Refusal> {
    let group = u16::try_from(record.group).ok().filter(|group| *group < millstream_model::key::GROUPS);
    let shard = group.map(|group| shard_of(group, at.shards));
    if shard != Some(at.partition) {
        let message = format!(
            "key group {} does not belong to partition {} of {}; write to partition group × partitions / 4096",
            record.group, at.partition, at.shards
        );
        return Err(Refusal::field(Reason::Misrouted, "group", message));
    }
    if record.message_id.is_empty() {
        let message = "an envelope needs a message id, or its repetition could not be told";
        return Err(Refusal::field(Reason::MissingField, "message_id", message));
    }
    Ok(())
}

fn check_kind(record: &Envelope, object: &Object) -> Result<&'static str, Refusal> {
    let source = record.source();
    let kinds = route::kinds(source);
    if kinds.is_empty() {
        let message = format!("{} is no source that this version knows", record.source);
        return Err(Refusal::field(Reason::UnknownType, "source", message));
    }
    if let Some(kind) = kinds.iter().find(|kind| **kind == record.kind) {
        return Ok(kind);
    }
    let expected = kinds.join(", ");
    let named = object.get("type").filter(|kind| !kind.is_null());
    match named {
        None => Err(fields::missing("", "type", &format!("one of {expected}"))),
        Some(Value { kind: Some(value::Kind::String(text)) }) => {
            let shown: String = text.chars().take(60).collect();
            let message = format!("`{shown}` is no type that this source knows; send one of {expected}");
            Err(Refusal::field(Reason::UnknownType, "type", message))
        }
        Some(other) => {
            let message = format!("`type` must be a string, one of {expected}; it is of type {}", other.type_name());
            Err(Refusal::field(Reason::WrongType, "type", message))
        }
    }
}

fn check_group(record: &Envelope, routing: &millstream_model::proto::Identifier) -> Result<(), Refusal> {
    let group = u32::from(group_of(&record.tenant, routing));
    if group == record.group {
        return Ok(());
    }
    let message = format!(
        "the envelope says key group {}, but its routing identifier `{}` is in group {group}",
        record.group, routing.r#type
    );
    Err(Refusal::field(Reason::Misrouted, "group", message))
}

/// Sends on what can be, and rejects the rest.
fn emit(parts: Parts, mut rejecter: Rejecter<'_>, trace: Option<&TraceContext>, out: &mut Outbox) {
    let parts = match parts {
        Ok(parts) => parts,
        Err(refusal) => return rejecter.whole(refusal, out),
    };
    let last_good = parts.iter().rposition(Result::is_ok);
    let mut counted = false;
    for (index, part) in parts.into_iter().enumerate() {
        let number = u32::try_from(index).unwrap_or(u32::MAX);
        match part {
            Ok(mut draft) => {
                let reports = std::mem::take(&mut draft.reports);
                out.actions.push(action(draft, number, last_good != Some(index), &rejecter, trace.cloned()));
                rejecter.reports(number, &reports, out);
            }
            Err(refusal) if last_good.is_none() && !std::mem::replace(&mut counted, true) => {
                rejecter.whole(refusal, out)
            }
            Err(refusal) => rejecter.part(number, refusal, last_good.is_some(), out),
        }
    }
}

fn action(draft: Draft, part: u32, uncounted: bool, of: &Rejecter<'_>, trace: Option<TraceContext>) -> Action {
    let (envelope, at) = (of.envelope, of.at);
    Action {
        tenant: envelope.tenant.clone(),
        group: envelope.group,
        stamp: Some(at.stamp),
        record_id: record_id(&envelope.tenant, &envelope.message_id, at.partition, &at.stamp, part).to_vec(),
        message_id: envelope.message_id.clone(),
        source: envelope.source,
        user_identifiers: draft.users,
        device_identifiers: draft.devices,
        time_ms: draft.time_ms,
        user_changes: draft.user_changes,
        device_changes: draft.device_changes,
        event: draft.event,
        merge: draft.merge,
        delete: draft.delete,
        update_existing_only: draft.update_existing_only,
        trace,
        kind: envelope.kind.clone(),
        uncounted,
        device: Vec::new(),
        introduction: false,
        by_device: draft.by_device,
        lookup: None,
        way: None,
        routing: draft.routing,
    }
}

#[cfg(test)]
mod tests;

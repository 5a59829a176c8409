//! Sources: what the gateway does with a request before it has a log position. Pure.
//!
//! [`split`] cuts a request into records and gives each its [`Envelope`]: tenant, source, kind, message id and key group. It does not
//! parse a record: it checks JSON syntax and looks at the few members that name the record and whom it is about ([`probe`]). All other
//! judgement is unify's, so that its outcome is in `rejects` for everybody to see (I2), not only in an answer that SDKs ignore. The key
//! group is that of the routing identifier ([`route`]), which unify computes again from the same rules; records with one routing
//! identifier keep the order of the request (I3).
//!
//! # Native shape
//! `POST /v1/batch`, either one JSON object or, as `application/x-ndjson`, one record per line:
//! ```text
//! { "sent_at"?: time, "batch": [
//!   { "type": "event", "event": name, "identifiers": {...}, "time"?: time, "properties"?: {...},
//!     "set"?: {...}, "unset"?: [...], "add"?: {...}, "remove"?: {...}, "device"?: {...} },
//!   { "type": "user", "identifiers": {...}, "set"?: {attribute: value}, "unset"?: [attribute],
//!     "add"?: {attribute: [element]}, "remove"?: {attribute: [element]}, "device"?: {...}, "update_existing_only"?: bool },
//!   { "type": "device", "identifiers": {"device_id": ..., ...}, "set"?: {...}, "unset"?: [...], "add"?: {...}, "remove"?: {...} },
//!   { "type": "merge", "retained": {"type": "user_id", "value": "42"}, "merged": {"type": "anonymous_id", "value": "7f1c"} },
//!   { "type": "delete", "identifiers": {"user_id": "42"} } ] }
//! ```
//! Each record may have a `message_id`; `identifiers` maps identifier types (`user_id`, `anonymous_id`, `email`, `phone`, `device_id`,
//! `idfv`, `gaid`, ..., or the tenant's own) to a string or an integer; `device` has the members `set`, `unset`, `add`, `remove`; times are
//! ISO 8601 or seconds or milliseconds since 1970. In NDJSON there is no `sent_at`.

pub mod identity;
pub(crate) mod probe;
pub(crate) mod route;
mod shape;
pub(crate) mod times;

use millstream_model::proto::{Envelope, Source, TraceContext};
use millstream_model::reject::{Reason, Refusal};
use probe::Probe;
use serde::Deserialize;

/// What a request and its records may measure. What exceeds the first one refuses the request, the others only the record.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Records per request (default 2,500, Segment's limit).
    pub max_records: usize,
    /// Bytes of one record (default 256 KiB).
    pub max_record_bytes: usize,
    /// Levels of objects and lists in one record, itself included (default 10).
    pub max_depth: usize,
    /// Characters of a message id, and of an `Idempotency-Key` (default 200).
    pub max_id_chars: usize,
    /// Bytes of what a request says about all its records (Segment's batch `context`), which each record carries from then on
    /// (default 16 KiB, so that a full request cannot grow beyond 40 MB).
    pub max_context_bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_records: 2500,
            max_record_bytes: 256 * 1024,
            max_depth: 10,
            max_id_chars: 200,
            max_context_bytes: 16 * 1024,
        }
    }
}

/// A request whose sender is known.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Whom the API key belongs to.
    pub tenant: &'a str,
    /// Where it was sent.
    pub endpoint: Endpoint,
    /// Its body, decompressed.
    pub body: &'a [u8],
    /// The body is one record per line (`application/x-ndjson`); only [`Endpoint::NativeBatch`] knows it.
    pub ndjson: bool,
    /// The header `Idempotency-Key`.
    pub idempotency_key: Option<&'a str>,
    /// The gateway's clock, milliseconds since 1970.
    pub received_ms: i64,
    /// The request's trace context, when sampled.
    pub trace: Option<TraceContext>,
}

/// Where a request was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// The native batch.
    NativeBatch,
    /// The data API of customer-engagement platforms.
    DataApi(DataApiKind),
    /// Segment's HTTP tracking API.
    Segment(SegmentKind),
}

/// Endpoints of the data API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataApiKind {
    /// One customer.
    Customer,
    /// One event request, with several `actions`.
    Event,
    /// One device.
    Device,
    /// `elements`: customers, events and devices.
    Transition,
    /// `merge_data`: pairs of users.
    Merge,
    /// Delete a user.
    Delete,
}

/// Endpoints of Segment's tracking API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    /// Who the user is.
    Identify,
    /// What the user did.
    Track,
    /// A page view.
    Page,
    /// A screen view.
    Screen,
    /// Which account the user belongs to.
    Group,
    /// Two ids of one user.
    Alias,
    /// Many of the above.
    Batch,
}

impl Endpoint {
    /// The source that this endpoint belongs to.
    pub fn source(self) -> Source {
        match self {
            Endpoint::NativeBatch => Source::Native,
            Endpoint::DataApi(_) => Source::DataApi,
            Endpoint::Segment(_) => Source::Segment,
        }
    }

    /// Is a request one record?
    pub fn is_single(self) -> bool {
        self.kind().is_some() && self != Endpoint::DataApi(DataApiKind::Merge)
    }

    /// What its only kind of record is called; `None` where each record says it.
    pub fn kind(self) -> Option<&'static str> {
        match self {
            Endpoint::DataApi(DataApiKind::Customer) => Some("customer"),
            Endpoint::DataApi(DataApiKind::Event) => Some("event"),
            Endpoint::DataApi(DataApiKind::Device) => Some("device"),
            Endpoint::DataApi(DataApiKind::Merge) => Some("merge"),
            Endpoint::DataApi(DataApiKind::Delete) => Some("delete"),
            Endpoint::Segment(SegmentKind::Identify) => Some("identify"),
            Endpoint::Segment(SegmentKind::Track) => Some("track"),
            Endpoint::Segment(SegmentKind::Page) => Some("page"),
            Endpoint::Segment(SegmentKind::Screen) => Some("screen"),
            Endpoint::Segment(SegmentKind::Group) => Some("group"),
            Endpoint::Segment(SegmentKind::Alias) => Some("alias"),
            Endpoint::NativeBatch
            | Endpoint::DataApi(DataApiKind::Transition)
            | Endpoint::Segment(SegmentKind::Batch) => None,
        }
    }
}

/// What becomes of one record of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Accepted {
    /// To `ingress`.
    Envelope(Envelope),
    /// It cannot go there.
    Refused {
        /// Its message id, when it has one that can be read.
        message_id: Option<String>,
        /// Why, and what to do.
        refusal: Refusal,
    },
}

/// The kind of a record whose `type` its source does not know (or that has none); unify rejects it by name.
pub const UNKNOWN_KIND: &str = "unknown";

/// Splits a request into its records, one answer per record, in their order.
///
/// # Errors
/// A [`Refusal`] of the request as a whole: not JSON (line and column are named), not the endpoint's shape, too many records.
pub fn split(
    request: &Request<'_>,
    limits: &Limits,
    new_id: &mut dyn FnMut() -> String,
) -> Result<Vec<Accepted>, Refusal> {
    check_idempotency_key(request, limits)?;
    let batch = shape::read(request, limits)?;
    let records = batch.records.iter().enumerate();
    Ok(records.map(|(position, record)| accept(request, limits, &batch, position, record, new_id)).collect())
}

fn check_idempotency_key(request: &Request<'_>, limits: &Limits) -> Result<(), Refusal> {
    let Some(key) = request.idempotency_key else { return Ok(()) };
    if key.trim().is_empty() || key.chars().count() > limits.max_id_chars {
        let message = format!("the header Idempotency-Key must have 1 to {} characters", limits.max_id_chars);
        return Err(Refusal::field(Reason::InvalidValue, "Idempotency-Key", message));
    }
    Ok(())
}

fn accept(
    request: &Request<'_>,
    limits: &Limits,
    batch: &shape::Batch<'_>,
    position: usize,
    record: &Result<&str, Refusal>,
    new_id: &mut dyn FnMut() -> String,
) -> Accepted {
    let probe = record.clone().and_then(|json| check_size(json, limits).and_then(|()| Probe::read(json)));
    let probe = match probe {
        Ok(probe) => probe,
        Err(refusal) => return Accepted::Refused { message_id: None, refusal },
    };
    let own_id = match probe.message_id(limits.max_id_chars) {
        Ok(own_id) => own_id,
        Err(refusal) => return Accepted::Refused { message_id: None, refusal },
    };
    match envelope(request, batch, &probe) {
        Ok(envelope) => {
            let message_id = own_id.or_else(|| derived_id(request, position)).unwrap_or_else(new_id);
            Accepted::Envelope(Envelope { message_id, ..envelope })
        }
        Err(refusal) => Accepted::Refused { message_id: own_id, refusal },
    }
}

fn check_size(json: &str, limits: &Limits) -> Result<(), Refusal> {
    if json.len() > limits.max_record_bytes {
        let message = format!("the record has {} bytes, at most {} are allowed", json.len(), limits.max_record_bytes);
        return Err(Refusal::new(Reason::TooLarge, message));
    }
    let depth = probe::depth(json);
    if depth > limits.max_depth {
        let message = format!("the record is nested {depth} levels deep, at most {} are allowed", limits.max_depth);
        return Err(Refusal::new(Reason::TooDeep, message));
    }
    Ok(())
}

/// The envelope but for its message id.
fn envelope(request: &Request<'_>, batch: &shape::Batch<'_>, probe: &Probe<'_>) -> Result<Envelope, Refusal> {
    let source = request.endpoint.source();
    let kind = request.endpoint.kind().unwrap_or_else(|| route::known_kind(source, probe.kind().as_deref()));
    let routing = route::route(source, kind, probe)?;
    let group = millstream_model::key::group_of(request.tenant, &routing);
    Ok(Envelope {
        tenant: request.tenant.to_owned(),
        source: source.into(),
        kind: kind.to_owned(),
        message_id: String::new(),
        group: group.into(),
        received_ms: request.received_ms,
        sent_ms: probe.sent_ms().or(batch.sent_ms),
        body: bytes::Bytes::copy_from_slice(probe.json.as_bytes()),
        context: batch.context.clone(),
        trace: request.trace.clone(),
    })
}

/// Keys up to this length are in the ids of records as they are, so that people recognise them: UUIDs have 36 characters.
const SHOWN_KEY_CHARS: usize = 40;
/// The fewest characters of message ids that may be configured: what the gateway makes of any key, or without one, keeps to it. Else a sender
/// that repeats a record with the id it was told would be refused.
pub const LEAST_ID_CHARS: usize = 80;

/// The same for the same record of a repeated request; differs between endpoints, in case a sender uses one key at two of them.
fn derived_id(request: &Request<'_>, position: usize) -> Option<String> {
    let key = request.idempotency_key?;
    let (source, kind) = (request.endpoint.source().code(), request.endpoint.kind().unwrap_or("batch"));
    if key.chars().count() <= SHOWN_KEY_CHARS {
        return Some(format!("{key}:{source}:{kind}:{position}"));
    }
    let hash = millstream_model::id::hex(&millstream_model::id::message_hash(key));
    Some(format!("key-{hash}:{source}:{kind}:{position}"))
}

/// May a tenant be called this? 1 to 63 lower-case letters, digits, `-` and `.`, with a letter or digit at both ends (as the names of
/// Kubernetes objects), because it is part of state keys, topic keys and metrics.
pub fn is_tenant_name(name: &str) -> bool {
    let alphanumeric = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let bytes = name.as_bytes();
    bytes.len() <= 63
        && alphanumeric(bytes.first())
        && alphanumeric(bytes.last())
        && bytes.iter().all(|byte| alphanumeric(Some(byte)) || matches!(byte, b'-' | b'.'))
}

#[cfg(test)]
mod tests;

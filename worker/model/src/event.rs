//! Enriched events as the public topic `events` carries them: JSON, with CloudEvents attributes in the headers.

use crate::proto::{Object, Source};
use serde::Serialize;
use std::collections::BTreeMap;

/// CloudEvents type of enriched events.
pub const CLOUD_EVENT_TYPE: &str = "dev.millstream.event.v1";

/// An event and what is known about its user and its device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EnrichedEvent<'a> {
    /// Deterministic id, hexadecimal; the same after a replay.
    pub id: String,
    /// Whose event.
    pub tenant: &'a str,
    /// Its name.
    pub event: &'a str,
    /// When it happened, skew corrected, RFC 3339.
    pub time: String,
    /// When it entered the log, RFC 3339.
    pub received: String,
    /// native, data_api, segment.
    pub source: &'static str,
    /// The sender's message id.
    pub message_id: &'a str,
    /// The event's properties.
    pub properties: Object,
    /// The user.
    pub user: EventUser,
    /// The device, when the record named one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<EventDevice>,
    /// Generation of the pipeline.
    pub generation: u32,
}

/// What an event says about its user.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EventUser {
    /// Internal id.
    pub id: String,
    /// Values per identifier type.
    pub identifiers: BTreeMap<String, Vec<String>>,
    /// When this user was first seen, RFC 3339.
    pub first_seen: String,
    /// Is this its first event?
    pub first_event: bool,
}

/// What an event says about its device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EventDevice {
    /// Internal id. Not known where the record named its device only by an identifier that may be another device's, and was not routed by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Values per identifier type, as the record gave them.
    pub identifiers: BTreeMap<String, String>,
}

impl Source {
    /// What a source is called in public JSON, metrics and flags.
    pub fn code(self) -> &'static str {
        match self {
            Source::Unspecified => "unspecified",
            Source::Native => "native",
            Source::DataApi => "data_api",
            Source::Segment => "segment",
        }
    }
}

/// The CloudEvents attributes of a public message, as Kafka headers (binary content mode).
pub fn cloud_event_headers(
    kind: &str,
    id: &str,
    tenant: &str,
    source: &str,
    time: &str,
) -> Vec<(&'static str, String)> {
    vec![
        ("ce_specversion", "1.0".to_owned()),
        ("ce_id", id.to_owned()),
        ("ce_source", format!("/millstream/{tenant}/{source}")),
        ("ce_type", kind.to_owned()),
        ("ce_time", time.to_owned()),
        ("content-type", "application/json".to_owned()),
    ]
}

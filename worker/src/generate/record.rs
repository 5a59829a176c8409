//! What a person does, before any source gives it a shape: the generator's own vocabulary, which knows nothing of the pipeline's code.

use millstream_model::proto::{Identifier, Source};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// What one record says.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Intent {
    /// Something happened.
    Event {
        /// Its name.
        name: String,
        /// Properties.
        properties: Map<String, Value>,
        /// `page` or `screen` where the source has a type of its own for it.
        view: Option<&'static str>,
    },
    /// Attributes of the user change; with no change at all it is a log-in: it only links identifiers.
    Update(Update),
    /// Attributes of a device change.
    Device {
        /// Attributes set.
        set: Map<String, Value>,
    },
    /// Whoever `merged` names is the same person as `retained`.
    Merge {
        /// The one to keep.
        retained: Identifier,
        /// The one that becomes part of it.
        merged: Identifier,
    },
    /// The person asks to be forgotten.
    Delete,
}

/// Changes to a user's attributes.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Update {
    /// Values set.
    pub(super) set: Map<String, Value>,
    /// Names unset.
    pub(super) unset: Vec<String>,
    /// Elements added to sets.
    pub(super) add: BTreeMap<String, Vec<Value>>,
    /// Elements removed from sets.
    pub(super) remove: BTreeMap<String, Vec<Value>>,
}

/// A record as somebody would send it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Record {
    /// When it is sent, milliseconds since 1970: records are sent in this order.
    pub(super) order: i64,
    /// When it happened, milliseconds since 1970, by a right clock.
    pub(super) time: i64,
    /// How far the sender's clock is ahead, milliseconds; absent when it is right.
    pub(super) skew: Option<i64>,
    /// In whose shape it is sent.
    pub(super) source: Source,
    /// Unique in its tenant, but for repeated deliveries.
    pub(super) message_id: String,
    /// Identifiers of the user.
    pub(super) user: Vec<Identifier>,
    /// The device's `device_id`.
    pub(super) device: Option<String>,
    /// What it says.
    pub(super) intent: Intent,
}

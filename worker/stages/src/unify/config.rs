//! Configuration of unify.

use crate::source::identity;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What unify needs to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UnifyConfig {
    /// What a record may contain.
    pub limits: RecordLimits,
    /// How long message ids are remembered, in hours of stamp time (default 168: seven days, longer than SDKs keep a batch for repetition).
    pub duplicate_window_hours: u64,
    /// Identifier values that name nobody, on top of the built-in ones; without case.
    pub forbidden_values: Vec<String>,
    /// Rules of single tenants, by name.
    pub tenants: BTreeMap<String, TenantRules>,
}

impl Default for UnifyConfig {
    fn default() -> UnifyConfig {
        UnifyConfig {
            limits: RecordLimits::default(),
            duplicate_window_hours: 7 * 24,
            forbidden_values: Vec::new(),
            tenants: BTreeMap::new(),
        }
    }
}

/// Rules of one tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TenantRules {
    /// Identifier values that name nobody at this tenant; without case.
    pub forbidden_values: Vec<String>,
}

/// What a record may contain. The comments say what happens beyond.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RecordLimits {
    /// Bytes of a record (default 256 KiB); rejected.
    pub max_record_bytes: usize,
    /// Levels of objects and lists in a record, itself included (default 10); rejected.
    pub max_depth: usize,
    /// Actions of one data API event (default 100, as SDK batches have); rejected.
    pub max_actions: usize,
    /// Identifiers of one record (default 50); rejected.
    pub max_identifiers: usize,
    /// Characters of the name of an event (rejected) or an attribute or property (dropped and reported) (default 200).
    pub max_name_chars: usize,
    /// Characters of a string (default 512); cut and reported.
    pub max_string_chars: usize,
    /// Characters of a string that is a URL (default 2,048); dropped and reported, because half a URL is none.
    pub max_url_chars: usize,
    /// Elements of a list (default 200); the first ones are dropped and that is reported.
    pub max_list_elements: usize,
    /// Bytes of an object as JSON (default 25 KB); dropped and reported.
    pub max_object_bytes: usize,
    /// Members of an object (default 100); dropped and reported.
    pub max_object_members: usize,
    /// Levels of a nested value (default 3); dropped and reported.
    pub max_object_levels: usize,
    /// Properties of an event (default 100); the last ones by name are dropped and reported.
    pub max_properties: usize,
    /// Attributes that one record changes (default 256); the last ones by name are dropped and reported.
    pub max_attributes: usize,
    /// Rules in `unset_attributes` of one customer (default 100); rejected.
    pub max_unset_rules: usize,
    /// How long before its reception an event may have happened, in hours (default 720: 30 days); rejected.
    pub max_age_hours: u32,
    /// How long after its reception an event may seem to have happened, in minutes (default 60); rejected.
    pub max_ahead_minutes: u32,
}

impl Default for RecordLimits {
    fn default() -> RecordLimits {
        RecordLimits {
            max_record_bytes: 256 * 1024,
            max_depth: 10,
            max_actions: 100,
            max_identifiers: 50,
            max_name_chars: 200,
            max_string_chars: 512,
            max_url_chars: 2048,
            max_list_elements: 200,
            max_object_bytes: 25_000,
            max_object_members: 100,
            max_object_levels: 3,
            max_properties: 100,
            max_attributes: 256,
            max_unset_rules: 100,
            max_age_hours: 30 * 24,
            max_ahead_minutes: 60,
        }
    }
}

impl UnifyConfig {
    /// Does this identifier value name nobody at this tenant?
    pub(super) fn is_forbidden(&self, tenant: &str, value: &str) -> bool {
        if identity::is_forbidden(value) {
            return true;
        }
        let rules = self.tenants.get(tenant).map(|rules| rules.forbidden_values.as_slice()).unwrap_or_default();
        if self.forbidden_values.is_empty() && rules.is_empty() {
            return false;
        }
        let bare = identity::unquoted(value).to_lowercase();
        self.forbidden_values.iter().chain(rules).any(|forbidden| identity::unquoted(forbidden).to_lowercase() == bare)
    }
}

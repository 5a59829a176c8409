//! What unify accepts and remembers, as a file says it.

use super::{Millis, Size};
use millstream_stages::unify::{self, UnifyConfig};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const HOUR_MS: u64 = 3_600_000;
const MINUTE_MS: u64 = 60_000;

/// What unify accepts, and how long it remembers message ids. It takes the envelopes of the configured `tenants` only; without any, everybody's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Unify {
    /// What a record may contain.
    pub limits: RecordLimits,
    /// How long message ids are remembered (default 7d, longer than SDKs keep a batch for repetition): whole hours, at least one.
    pub duplicate_window: Millis,
    /// Identifier values that name nobody, on top of the built-in ones; without case.
    pub forbidden_values: Vec<String>,
    /// Rules of single tenants, by name.
    pub tenants: BTreeMap<String, TenantRules>,
}

/// Rules of one tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TenantRules {
    /// Identifier values that name nobody at this tenant; without case.
    pub forbidden_values: Vec<String>,
}

/// What a record may contain, and what happens to what is beyond: it is rejected, or dropped or cut and reported, and the rest goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RecordLimits {
    /// Bytes of a record (default 256KiB, at least `limits.record_bytes`); rejected.
    pub max_record_bytes: Size,
    /// Levels of objects and lists in a record, itself included (default 10, at least `limits.depth`); rejected.
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
    /// Bytes of an object as JSON (default 25KB); dropped and reported.
    pub max_object_bytes: Size,
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
    /// How long before its reception an event may have happened (default 30d, whole hours); rejected.
    pub max_age: Millis,
    /// How long after its reception an event may seem to have happened (default 1h, whole minutes); rejected.
    pub max_ahead: Millis,
}

impl Default for Unify {
    fn default() -> Unify {
        let rules = UnifyConfig::default();
        Unify {
            limits: RecordLimits::default(),
            duplicate_window: Millis(rules.duplicate_window_hours * HOUR_MS),
            forbidden_values: rules.forbidden_values,
            tenants: BTreeMap::new(),
        }
    }
}

impl Default for RecordLimits {
    fn default() -> RecordLimits {
        let limits = unify::RecordLimits::default();
        RecordLimits {
            max_record_bytes: Size(limits.max_record_bytes as u64),
            max_depth: limits.max_depth,
            max_actions: limits.max_actions,
            max_identifiers: limits.max_identifiers,
            max_name_chars: limits.max_name_chars,
            max_string_chars: limits.max_string_chars,
            max_url_chars: limits.max_url_chars,
            max_list_elements: limits.max_list_elements,
            max_object_bytes: Size(limits.max_object_bytes as u64),
            max_object_members: limits.max_object_members,
            max_object_levels: limits.max_object_levels,
            max_properties: limits.max_properties,
            max_attributes: limits.max_attributes,
            max_unset_rules: limits.max_unset_rules,
            max_age: Millis(u64::from(limits.max_age_hours) * HOUR_MS),
            max_ahead: Millis(u64::from(limits.max_ahead_minutes) * MINUTE_MS),
        }
    }
}

impl Unify {
    /// As the stage takes them.
    pub fn rules(&self) -> UnifyConfig {
        let of_tenant = |(name, rules): (&String, &TenantRules)| {
            (name.clone(), unify::TenantRules { forbidden_values: rules.forbidden_values.clone() })
        };
        UnifyConfig {
            limits: self.limits.of_stage(),
            duplicate_window_hours: self.duplicate_window.0 / HOUR_MS,
            forbidden_values: self.forbidden_values.clone(),
            tenants: self.tenants.iter().map(of_tenant).collect(),
        }
    }

    /// Checks what concerns this section alone.
    ///
    /// # Errors
    /// The field and what is wrong with it.
    pub(super) fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let whole = |value: Millis, unit: u64| value.0.is_multiple_of(unit);
        if self.duplicate_window.0 == 0 || !whole(self.duplicate_window, HOUR_MS) {
            return Err(("duplicate_window", "must be whole hours, at least 1h"));
        }
        if !whole(self.limits.max_age, HOUR_MS) {
            return Err(("limits.max_age", "must be whole hours"));
        }
        if !whole(self.limits.max_ahead, MINUTE_MS) {
            return Err(("limits.max_ahead", "must be whole minutes"));
        }
        Ok(())
    }
}

impl RecordLimits {
    fn of_stage(&self) -> unify::RecordLimits {
        let whole = |value: Millis, unit: u64| u32::try_from(value.0 / unit).unwrap_or(u32::MAX);
        unify::RecordLimits {
            max_record_bytes: self.max_record_bytes.bytes(),
            max_depth: self.max_depth,
            max_actions: self.max_actions,
            max_identifiers: self.max_identifiers,
            max_name_chars: self.max_name_chars,
            max_string_chars: self.max_string_chars,
            max_url_chars: self.max_url_chars,
            max_list_elements: self.max_list_elements,
            max_object_bytes: self.max_object_bytes.bytes(),
            max_object_members: self.max_object_members,
            max_object_levels: self.max_object_levels,
            max_properties: self.max_properties,
            max_attributes: self.max_attributes,
            max_unset_rules: self.max_unset_rules,
            max_age_hours: whole(self.max_age, HOUR_MS),
            max_ahead_minutes: whole(self.max_ahead, MINUTE_MS),
        }
    }
}

//! Configuration of unify, and what of it goes for one tenant.
//!
//! Two say something about a tenant: the configuration, and what was published about it ([`PublishedRules`]). What counts is worked out for all tenants at once ([`Rules`]), and handed to the stage whole,
//! between two batches. No boundary is recorded: a batch is judged by one set of rules and committed with its outcome, or judged anew, perhaps by newer ones, when it was not; nothing is ever committed twice,
//! and whoever follows the changelog takes outcomes from it, and judges nothing.
//!
//! Invariant: a published limit never allows what the configuration does not, because what is behind unify holds what the configuration lets through.

use crate::source::identity;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

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

/// What was published about one tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublishedRules {
    /// Where it differs from the configuration; more than that counts as that.
    pub limits: TenantLimits,
    /// Identifier values that name nobody at this tenant; without case. Any of them replace those that the configuration has for this tenant.
    pub forbidden_values: BTreeSet<String>,
}

/// What one tenant's records may contain; `None`: as much as others'.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantLimits {
    /// [`RecordLimits::max_record_bytes`].
    pub max_record_bytes: Option<usize>,
    /// [`RecordLimits::max_properties`].
    pub max_properties: Option<usize>,
    /// [`RecordLimits::max_string_chars`].
    pub max_string_chars: Option<usize>,
    /// [`RecordLimits::max_identifiers`].
    pub max_identifiers: Option<usize>,
    /// [`RecordLimits::max_actions`].
    pub max_actions: Option<usize>,
}

impl TenantLimits {
    fn within(&self, limits: &RecordLimits) -> RecordLimits {
        let least = |own: Option<usize>, of_all: usize| own.map_or(of_all, |own| own.min(of_all));
        RecordLimits {
            max_record_bytes: least(self.max_record_bytes, limits.max_record_bytes),
            max_properties: least(self.max_properties, limits.max_properties),
            max_string_chars: least(self.max_string_chars, limits.max_string_chars),
            max_identifiers: least(self.max_identifiers, limits.max_identifiers),
            max_actions: least(self.max_actions, limits.max_actions),
            ..limits.clone()
        }
    }
}

/// What goes for each tenant, from configuration and what was published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    of_all: Judgement,
    /// Of those of whom something else is said.
    of_tenants: BTreeMap<String, Judgement>,
    /// Of tenants that were erased: what was received up to here, milliseconds since 1970.
    erased_ms: BTreeMap<String, u64>,
}

/// What goes for one tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Judgement {
    pub(super) limits: RecordLimits,
    /// Bare and in lower case.
    forbidden: BTreeSet<String>,
}

impl Rules {
    /// Works it out.
    pub fn new(config: &UnifyConfig, published: &BTreeMap<String, PublishedRules>) -> Rules {
        let of_all = Judgement { limits: config.limits.clone(), forbidden: bare(&config.forbidden_values) };
        let of_tenant = |name: &String| {
            let (configured, published) = (config.tenants.get(name), published.get(name));
            let own = published.map(|published| bare(&published.forbidden_values)).filter(|own| !own.is_empty());
            let own = own.or_else(|| configured.map(|configured| bare(&configured.forbidden_values)));
            let limits = published.map(|published| published.limits).unwrap_or_default();
            let mut judgement = Judgement { limits: limits.within(&of_all.limits), ..of_all.clone() };
            judgement.forbidden.extend(own.unwrap_or_default());
            (name.clone(), judgement)
        };
        let of_tenants = config.tenants.keys().chain(published.keys()).map(of_tenant).collect();
        Rules { of_all, of_tenants, erased_ms: BTreeMap::new() }
    }

    /// Refuses what was received of these tenants up to these times, milliseconds since 1970.
    pub fn erased(self, erased_ms: BTreeMap<String, u64>) -> Rules {
        Rules { erased_ms, ..self }
    }

    /// 0: nothing of it was erased.
    pub(super) fn erased_ms(&self, tenant: &str) -> u64 {
        self.erased_ms.get(tenant).copied().unwrap_or_default()
    }

    pub(super) fn of(&self, tenant: &str) -> &Judgement {
        self.of_tenants.get(tenant).unwrap_or(&self.of_all)
    }
}

impl Judgement {
    /// Does this identifier value name nobody?
    pub(super) fn is_forbidden(&self, value: &str) -> bool {
        identity::is_forbidden(value)
            || (!self.forbidden.is_empty() && self.forbidden.contains(&identity::unquoted(value).to_lowercase()))
    }
}

/// Values as they are compared.
fn bare<'a>(values: impl IntoIterator<Item = &'a String>) -> BTreeSet<String> {
    values.into_iter().map(|value| identity::unquoted(value).to_lowercase()).collect()
}

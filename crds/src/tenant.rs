//! Who may send to a pipeline, and on which terms.
//!
//! The schema bounds what is said here by what a record can be at all; whether the pipeline takes so much is its configuration's to say, and a limit above that counts as that.

use crate::common::{LocalObject, SecretKey};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A customer of the platform, who sends to one pipeline with API keys of its own. Its name is the name of this resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "ingestion.millstream.dev",
    version = "v1alpha1",
    kind = "Tenant",
    namespaced,
    derive = "PartialEq",
    status = "TenantStatus",
    shortname = "mtn",
    category = "millstream",
    doc = "A customer of the platform, who sends to one pipeline with API keys of its own, on terms of its own. Changes take effect within seconds, and restart nothing. When it is deleted, its keys are good no more; what it has sent stays, unless `deletionPolicy` says otherwise.",
    printcolumn(name = "Pipeline", type_ = "string", json_path = ".spec.pipelineRef.name"),
    printcolumn(
        name = "Effective",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Effective")].status"#
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        priority = "1",
        json_path = r#".status.conditions[?(@.type=="Effective")].message"#
    ),
    validation = Rule::new("size(self.metadata.name) <= 63").message(
        "the name may have 63 characters at most, because it is the name of the tenant in each record"
    )
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TenantSpec {
    /// The pipeline that it sends to, in the same namespace. Fixed.
    #[x_kube(validation = Rule::new("self == oldSelf").message(
        "pipelineRef is fixed, because what the tenant has sent is in that pipeline: create another Tenant"
    ))]
    pub pipeline_ref: LocalObject,

    /// Its API keys, in Secrets with the label `ingestion.millstream.dev/api-keys: "true"`: one, or two while one is replaced by the other. Only their hashes leave the operator.
    #[schemars(length(min = 1, max = 2))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub api_keys: Vec<SecretKey>,

    /// What its records may contain (default: what the pipeline's own limits say, which are also the most).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<TenantLimits>,

    /// How much it may send (default: as much as it likes).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<TenantRate>,

    /// Whom its records may be about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<TenantIdentity>,

    /// What becomes of what it has sent when it is deleted (default `Retain`). With `Erase`, its users and devices are taken out of the pipeline's state, and their documents out of the document store; until that is done a finalizer keeps the Tenant, and its condition says how far it is. What stays: messages in Kafka, until the retention of their topics ends (in the changelogs, until Kafka compacts them); checkpoints from before, until `checkpoints.retained` newer ones of each shard are there; of each document its id and revision, marked `_deleted`; sums of records; hashes of message ids, until the window for duplicates ends. It can be changed for as long as the Tenant is there, also while it is being deleted: `Retain` lets it go at once then, and leaves what is not erased yet.
    #[serde(default)]
    pub deletion_policy: TenantDeletionPolicy,
}

/// What becomes of what a tenant has sent when it is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TenantDeletionPolicy {
    /// It stays.
    #[default]
    Retain,
    /// Its users, devices and documents go, and the Tenant after them.
    Erase,
}

/// Bounds of numbers, as the schema has them.
macro_rules! bounds {
    ($problems:ident, $of:expr, $path:literal, $($field:ident $name:literal $bounds:expr),+) => {
        $(if let Some(value) = $of.$field {
            let bounds = $bounds;
            if !bounds.contains(&value) {
                let (least, most) = bounds.into_inner();
                $problems.push(format!("{}.{} is {value}: take a number from {least} to {most}", $path, $name));
            }
        })+
    };
}

impl TenantSpec {
    /// What an API server would have against its limits, rate and identity rules, with what to do: for whoever reads it without one.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(limits) = &self.limits {
            bounds!(problems, limits, "spec.limits", max_record_bytes "maxRecordBytes" 1024..=900_000, max_properties "maxProperties" 1..=1000,
                max_string_chars "maxStringChars" 16..=65_536, max_identifiers "maxIdentifiers" 1..=1000, max_actions "maxActions" 1..=1000);
            if limits.max_string_chars.zip(limits.max_record_bytes).is_some_and(|(chars, bytes)| chars > bytes) {
                problems.push(format!("spec.{STRING_IN_RECORD}"));
            }
        }
        if let Some(rate) = &self.rate {
            bounds!(problems, rate, "spec.rate", records_per_second "recordsPerSecond" 1..=10_000_000, bytes_per_second "bytesPerSecond" 1024..=100_000_000_000);
            if rate.records_per_second.is_none() && rate.bytes_per_second.is_none() {
                problems.push(format!("spec.rate: {SOME_RATE}"));
            }
        }
        problems.extend(self.identity.iter().flat_map(TenantIdentity::problems));
        problems
    }
}

impl TenantIdentity {
    fn problems(&self) -> Vec<String> {
        let (values, mut problems) = (&self.forbidden_values, Vec::new());
        if values.len() > 256 {
            problems
                .push(format!("spec.identity.forbiddenValues has {} values: at most 256 are allowed", values.len()));
        }
        for (index, value) in values.iter().enumerate() {
            let path = format!("spec.identity.forbiddenValues[{index}]");
            if value.trim() != value {
                problems.push(format!("{path}: {NO_BLANKS}"));
            }
            if !(1..=256).contains(&value.chars().count()) {
                problems.push(format!("{path}: must have 1 to 256 characters"));
            }
            if values.iter().take(index).any(|before| before == value) {
                problems.push(format!("{path}: `{}` is there twice: take one away", value.escape_debug()));
            }
        }
        problems
    }
}

const STRING_IN_RECORD: &str = "limits.maxStringChars must not be more than limits.maxRecordBytes, because a string is part of a record: lower it, or leave it out";
const SOME_RATE: &str = "give rate.recordsPerSecond, rate.bytesPerSecond or both, or leave rate out to have none";
const NO_BLANKS: &str =
    "a forbidden value must not begin or end with blanks, which do not count when values are compared: take them away";

/// What a tenant's records may contain. What is left out is as the pipeline's own limits (`unify.limits` of its configuration) say, and so is what is more than that. What was accepted before a limit was lowered is judged by the lower one when
/// it is processed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("!has(self.maxStringChars) || !has(self.maxRecordBytes) || self.maxStringChars <= self.maxRecordBytes").message(STRING_IN_RECORD))]
pub struct TenantLimits {
    /// Bytes of a record, 1,024 to 900,000 (default: the pipeline's); refused in the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1024, max = 900_000))]
    pub max_record_bytes: Option<i32>,

    /// Properties of an event, 1 to 1,000 (default: the pipeline's); the last ones by name are dropped and reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_properties: Option<i32>,

    /// Characters of a string, 16 to 65,536 (default: the pipeline's); cut and reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 16, max = 65_536))]
    pub max_string_chars: Option<i32>,

    /// Identifiers of a record, 1 to 1,000 (default: the pipeline's); rejected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_identifiers: Option<i32>,

    /// Actions of one data API event, 1 to 1,000 (default: the pipeline's); rejected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_actions: Option<i32>,
}

/// How much a tenant may send in a second, to all gateways together, each of which takes its share. After a pause ten seconds' worth may come at once, and a single request that is larger than that is taken, too, and waited for after it. What is over it
/// is answered 429 with `Retry-After`, and nothing of it is taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.recordsPerSecond) || has(self.bytesPerSecond)").message(SOME_RATE))]
pub struct TenantRate {
    /// Records, 1 to 10,000,000 (default: no bound).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub records_per_second: Option<i64>,

    /// Bytes of requests' bodies, decompressed, 1,024 to 100,000,000,000 (default: no bound).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1024, max = 100_000_000_000_i64))]
    pub bytes_per_second: Option<i64>,
}

/// Whom a tenant's records may be about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TenantIdentity {
    /// Identifier values that name nobody at this tenant, without case, beside the built-in ones and the pipeline's (default: none). They replace those that the pipeline's configuration has for this tenant.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 256)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[x_kube(validation = Rule::new("self.all(value, value.trim() == value)").message(NO_BLANKS))]
    pub forbidden_values: Vec<String>,
}

/// What the operator says of a tenant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TenantStatus {
    /// The generation of the spec that the rest is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// `Effective`: every gateway of the pipeline, and every shard of unify, goes by what the spec says. While what the tenant has sent is erased, its reason is `Erasing`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// The label of Secrets that hold API keys: the operator watches those, and no others.
pub const API_KEYS_LABEL: &str = "ingestion.millstream.dev/api-keys";

//! Who may send to a pipeline.

use crate::common::{LocalObject, SecretKey};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
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
    doc = "A customer of the platform, who sends to one pipeline with API keys of its own. Changes take effect within seconds, and restart nothing. When it is deleted, its keys are good no more; what it has sent stays.",
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
}

/// What the operator says of a tenant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TenantStatus {
    /// The generation of the spec that the rest is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// `Effective`: every gateway of the pipeline knows the keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// The label of Secrets that hold API keys: the operator watches those, and no others.
pub const API_KEYS_LABEL: &str = "ingestion.millstream.dev/api-keys";

//! The number of workers of a stage.

use crate::common::LocalObject;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The number of workers of one stage, for `kubectl scale`, HPA and KEDA. The operator makes one per stage, `<pipeline>-<stage>`, and alone writes the replicas of the
/// StatefulSet: shards leave a worker before it goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "ingestion.millstream.dev",
    version = "v1alpha1",
    kind = "StageScale",
    namespaced,
    derive = "PartialEq",
    status = "StageScaleStatus",
    shortname = "mss",
    category = "millstream",
    doc = "The number of workers of one stage of an IngestionPipeline, for kubectl scale, HPA and KEDA.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Pipeline", type_ = "string", json_path = ".spec.pipelineRef.name"),
    printcolumn(name = "Stage", type_ = "string", json_path = ".spec.stage"),
    printcolumn(name = "Desired", type_ = "integer", json_path = ".spec.replicas"),
    printcolumn(name = "Current", type_ = "integer", json_path = ".status.replicas"),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.readyReplicas"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name == self.spec.pipelineRef.name + '-' + self.spec.stage").message(
        "the name is the pipeline's and the stage's, with `-` between, such as orders-action: the operator makes it, scale that one"
    )
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("self.pipelineRef == oldSelf.pipelineRef && self.stage == oldSelf.stage").message(
    "pipelineRef and stage are fixed: the operator makes one StageScale for each stage, scale that one"
))]
pub struct StageScaleSpec {
    /// The pipeline.
    pub pipeline_ref: LocalObject,

    /// The stage.
    pub stage: StageName,

    /// How many workers it should have. More than there are shards get none (the gateway has no shards).
    #[schemars(range(min = 1, max = 1024))]
    pub replicas: i32,
}

/// One of the four stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StageName {
    /// Takes records in over HTTP.
    Gateway,
    /// Validates records.
    Unify,
    /// Resolves users and devices.
    Action,
    /// Writes documents.
    Reaction,
}

impl StageName {
    /// All of them, in the order in which records pass.
    pub const ALL: [StageName; 4] = [StageName::Gateway, StageName::Unify, StageName::Action, StageName::Reaction];

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            StageName::Gateway => "gateway",
            StageName::Unify => "unify",
            StageName::Action => "action",
            StageName::Reaction => "reaction",
        }
    }
}

/// What there is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct StageScaleStatus {
    /// The generation of the spec that the rest is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Workers that there are.
    #[serde(default)]
    pub replicas: i32,

    /// Workers that are ready.
    #[serde(default)]
    pub ready_replicas: i32,

    /// Label selector of the workers' Pods, as autoscalers ask for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub selector: Option<String>,
}

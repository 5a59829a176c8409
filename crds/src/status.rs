//! What the operator says of a pipeline.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// What the operator says of a pipeline. Details of single shards are not here: a thousand of them would be too much to write each time; `kubectl millstream status` has them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct IngestionPipelineStatus {
    /// The generation of the spec that the rest is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// `Ready`, `Progressing`, `Degraded`, `Paused`, `RetentionAtRisk`, each with the generation that it is about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,

    /// Shards that have an owner, of all, such as `24/24` (unify, action and reaction).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub shards: Option<String>,

    /// How old the oldest record is at most that a shard of any stage has not processed, such as `<1s`, `12s`, `4m`; `unknown` while a shard has no owner, or its owner does not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub freshness: Option<String>,

    /// What an upgrade that is under way does, or how the last one ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub upgrade: Option<String>,

    /// Version of the workers that run, by their own word; two with `,` between them during an upgrade.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub version: Option<String>,

    /// Each stage.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub stages: Vec<StageStatus>,

    /// With `kafka.topics: Managed` or `Strimzi`, the topics that were not there when the pipeline began, so that it made them: written before the first one is made. These, and no others, `topicDeletionPolicy: Delete` deletes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), inner(length(max = 249)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub created_topics: Option<Vec<String>>,

    /// The identity of the Kafka cluster where it made them, as the brokers say it. In another one, topics of these names are others'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub created_topics_in: Option<String>,

    /// The plan that is in force, `term/number`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub plan: Option<String>,
}

/// What the operator says of a stage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct StageStatus {
    /// `gateway`, `unify`, `action` or `reaction`.
    #[schemars(length(max = 16))]
    pub name: String,

    /// Workers that there should be.
    pub replicas: i32,

    /// Workers that are ready.
    pub ready_replicas: i32,

    /// Shards without an owner.
    #[serde(default)]
    pub shards_without_owner: i32,

    /// Shards that no other worker follows: a failure of their owner would take as long as reading their changelog.
    #[serde(default)]
    pub shards_without_standby: i32,
}

/// The types of condition that a pipeline has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConditionType {
    /// Everything that the spec asks for is there and works.
    Ready,
    /// The operator is changing something.
    Progressing,
    /// It works, but not as it should, or not all of it.
    Degraded,
    /// `spec.paused`: the operator changes nothing.
    Paused,
    /// Records may be deleted before they were processed.
    RetentionAtRisk,
}

impl ConditionType {
    /// Every one.
    pub const ALL: [ConditionType; 5] = [
        ConditionType::Ready,
        ConditionType::Progressing,
        ConditionType::Degraded,
        ConditionType::Paused,
        ConditionType::RetentionAtRisk,
    ];

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            ConditionType::Ready => "Ready",
            ConditionType::Progressing => "Progressing",
            ConditionType::Degraded => "Degraded",
            ConditionType::Paused => "Paused",
            ConditionType::RetentionAtRisk => "RetentionAtRisk",
        }
    }
}

//! A pipeline.

use crate::common::LocalObject;
use crate::kafka::Kafka;
use crate::observability::Observability;
use crate::stage::Stages;
use crate::status::IngestionPipelineStatus;
use crate::stores::{Checkpoints, DocumentStore, ObjectStore};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One pipeline: records in over HTTP or Kafka, documents in MongoDB and enriched events in Kafka out, exactly once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "ingestion.millstream.dev",
    version = "v1alpha1",
    kind = "IngestionPipeline",
    namespaced,
    derive = "PartialEq",
    status = "IngestionPipelineStatus",
    shortname = "mip",
    shortname = "ingestion",
    category = "millstream",
    doc = "A pipeline that takes in customer data: validates each record, resolves its user and device, enriches, publishes and writes it to documents, exactly once.",
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Upgrade", type_ = "string", json_path = ".status.upgrade"),
    printcolumn(name = "Shards", type_ = "string", json_path = ".status.shards"),
    printcolumn(name = "Freshness", type_ = "string", json_path = ".status.freshness"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        priority = "1",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#
    ),
    validation = Rule::new("size(self.metadata.name) <= 40").message(
        "the name may have 40 characters at most, because names of Pods and topics are made of it"
    ),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message(
        "the name begins with a letter and has letters, digits and `-` only, because names of Services are made of it: take one without dots, such as orders"
    )
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IngestionPipelineSpec {
    /// The workers' image, with a tag or a digest. An upgrade of the operator does not change it: what runs is what stands here.
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^\S+$"))]
    pub image: String,

    /// When nodes fetch it (default `IfNotPresent`).
    #[serde(default)]
    pub image_pull_policy: ImagePullPolicy,

    /// Secrets with credentials for its registry (default: none).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub image_pull_secrets: Vec<LocalObject>,

    /// Partitions of each topic, and shards of each stage, 1 to 4,096 (default 8): one or two per core of the largest size planned. Fixed.
    #[serde(default = "eight")]
    #[schemars(range(min = 1, max = 4096))]
    #[x_kube(validation = Rule::new("self == oldSelf").message(
        "shards is fixed once the pipeline exists, because each record's shard follows from it: create another pipeline with more"
    ))]
    pub shards: i32,

    /// The log.
    pub kafka: Kafka,

    /// Where documents go.
    pub document_store: DocumentStore,

    /// Where checkpoints go (default: nowhere. A shard that has lost its disk reads its whole changelog then, which is never trimmed).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_store: Option<ObjectStore>,

    /// When they are taken.
    #[serde(default)]
    pub checkpoints: Checkpoints,

    /// The workers of each stage.
    #[serde(default)]
    pub stages: Stages,

    /// Workers that follow each shard beside its owner, ready to take over within seconds (default 1).
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 2))]
    pub standbys: i32,

    /// No workers run (default false). Records stay in `ingress`, and gateways answer nobody.
    #[serde(default)]
    pub suspend: bool,

    /// The operator changes nothing (default false); what runs goes on, and fails over.
    #[serde(default)]
    pub paused: bool,

    /// Logs, traces and metrics of the workers.
    #[serde(default)]
    pub observability: Observability,

    /// What becomes of the pipeline's topics when it is deleted (default `Retain`). With `Delete`, those that it made (`status.createdTopics`) go when its workers have ended; until then a finalizer keeps the pipeline. Those that were there before, or that others make (`kafka.topics: Existing`), stay. So do its checkpoints: remove its folder in the bucket before another pipeline of its name is created, whose shards would stop at them.
    #[serde(default = "retain")]
    pub topic_deletion_policy: DeletionPolicy,
}

fn eight() -> i32 {
    8
}

fn one() -> i32 {
    1
}

fn retain() -> DeletionPolicy {
    DeletionPolicy::Retain
}

/// When nodes fetch an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ImagePullPolicy {
    /// At each start.
    Always,
    /// When they do not have it.
    #[default]
    IfNotPresent,
    /// Not at all: they must have it.
    Never,
}

/// What becomes of something when what it belongs to is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// It goes, too.
    #[default]
    Delete,
    /// It stays.
    Retain,
}

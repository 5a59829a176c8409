//! The workers of each stage.

use crate::common::Quantity;
use crate::scale::StageName;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// The four stages.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Stages {
    /// Takes records in over HTTP, and acknowledges them. Has no state.
    #[serde(default)]
    pub gateway: Stage,

    /// Validates records and makes actions of them.
    #[serde(default)]
    pub unify: Stage,

    /// Resolves users and devices, and keeps their state.
    #[serde(default)]
    pub action: Stage,

    /// Writes documents.
    #[serde(default)]
    pub reaction: Stage,
}

impl Stages {
    /// One of them.
    pub fn of(&self, stage: StageName) -> &Stage {
        match stage {
            StageName::Gateway => &self.gateway,
            StageName::Unify => &self.unify,
            StageName::Action => &self.action,
            StageName::Reaction => &self.reaction,
        }
    }
}

/// The workers of one stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Stage {
    /// How many workers there are at first (default 2). From then on the stage's `StageScale` says it, by `kubectl scale`, HPA or KEDA, and this field is not looked at.
    #[serde(default = "two")]
    #[schemars(range(min = 1, max = 1024))]
    pub replicas: i32,

    /// Processor and memory of each worker (default: no bounds). The memory for state is derived from the limit.
    #[serde(default)]
    pub resources: Resources,

    /// Where local state lies (default: an `emptyDir`; a worker that lost it reads it again from checkpoint and changelog).
    #[serde(default)]
    pub storage: Storage,

    /// Settings of the stage, as in a worker's configuration file: `tenants` (gateway only; hashes of keys only), `limits`, `gateway`, `unify`, `action`, `batch`, `state`, `reaction` (default: a worker's own).
    /// What the rest of this resource says cannot be said here.
    #[serde(default, skip_serializing_if = "FreeForm::is_empty")]
    pub config: FreeForm,

    /// Laid over the Pods' template, field by field, lists by their keys (default: nothing). The API server checks the result by a dry run before anything of the specification is applied; what it refuses is in the condition `Degraded`, with its words, and everything stays as it is.
    #[serde(default, skip_serializing_if = "FreeForm::is_empty")]
    pub pod_template: FreeForm,
}

impl Default for Stage {
    fn default() -> Stage {
        Stage {
            replicas: two(),
            resources: Resources::default(),
            storage: Storage::default(),
            config: FreeForm::default(),
            pod_template: FreeForm::default(),
        }
    }
}

fn two() -> i32 {
    2
}

/// The rule of [`Resources`], for each of them.
const QUANTITIES: &str =
    "self.all(name, isQuantity(string(self[name])) && !quantity(string(self[name])).isLessThan(quantity('0')))";
const A_QUANTITY: &str =
    "each of them is a quantity, not below 0: write a number, or one with a suffix, such as 500m, 2 or 4Gi";

/// Processor and memory, as Kubernetes writes them: `cpu: 2`, `memory: 4Gi`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Resources {
    /// What a node must have to spare (default: as much as `limits`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<String, Quantity>", extend("maxProperties" = 16))]
    #[x_kube(validation = Rule::new(QUANTITIES).message(A_QUANTITY))]
    pub requests: BTreeMap<String, IntOrString>,

    /// What a worker gets at most (default: no bounds).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<String, Quantity>", extend("maxProperties" = 16))]
    #[x_kube(validation = Rule::new(QUANTITIES).message(A_QUANTITY))]
    pub limits: BTreeMap<String, IntOrString>,
}

/// Where a worker's local state lies: at most one of its members, an `emptyDir` without any.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("!(has(self.emptyDir) && has(self.persistentVolumeClaim))").message(
    "give at most one of storage.emptyDir and storage.persistentVolumeClaim"
))]
#[x_kube(validation = Rule::new("has(self.persistentVolumeClaim) == has(oldSelf.persistentVolumeClaim)").message(
    "the kind of storage is fixed once the stage exists, because a StatefulSet cannot change it: create another pipeline, or delete and create this one"
))]
pub struct Storage {
    /// On the node's disk, gone with the Pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub empty_dir: Option<EmptyDir>,

    /// A volume that a restarted worker finds again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<Claim>,
}

/// A folder on the node's disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EmptyDir {
    /// The Pod is evicted when it holds more, for example `20Gi` (default: no bound).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Quantity>")]
    #[x_kube(validation = Rule::new("isQuantity(string(self)) && quantity(string(self)).isGreaterThan(quantity('0'))").message(
        "sizeLimit is a quantity above 0: write a number of bytes, or one with a suffix, such as 500Mi or 20Gi; or leave it out"
    ))]
    pub size_limit: Option<IntOrString>,
}

/// A PersistentVolumeClaim for each worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new(
    "(has(self.storageClassName) ? self.storageClassName : '') == (has(oldSelf.storageClassName) ? oldSelf.storageClassName : '')"
).message("storageClassName is fixed, because a StatefulSet cannot change it: create another pipeline, or delete and create this one"))]
#[x_kube(validation = Rule::new("isQuantity(string(self.size)) && quantity(string(self.size)).isGreaterThan(quantity('0'))").message(
    "size is a quantity above 0: write a number of bytes, or one with a suffix, such as 500Mi or 20Gi"
))]
#[x_kube(validation = Rule::new("string(self.size) == string(oldSelf.size)").message(
    "size is fixed, because a StatefulSet cannot change it: make the PersistentVolumeClaims larger by hand, or create another pipeline"
))]
pub struct Claim {
    /// Its size, for example `20Gi`: more than nothing. Fixed: existing claims can be made larger by hand, if their StorageClass lets them.
    #[schemars(with = "Quantity")]
    pub size: IntOrString,

    /// The StorageClass (default: the cluster's). Fixed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,

    /// What becomes of the claims when the pipeline is deleted (default `Delete`: they hold nothing that changelog and checkpoints do not). When a stage gets fewer workers, theirs stay.
    #[serde(default)]
    pub when_deleted: crate::pipeline::DeletionPolicy,

    /// What becomes of a worker whose node is lost while its volume is bound to that node (default `Wait`).
    #[serde(default)]
    pub on_lost_node: LostNode,
}

/// What becomes of a worker whose volume is bound to a node that is lost. Its shards have moved to others by then, either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LostNode {
    /// It waits for the node; a condition says so.
    #[default]
    Wait,
    /// Its claim is deleted, and it starts elsewhere, from checkpoint and changelog.
    Recreate,
}

/// Any object, checked by who reads it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FreeForm(pub serde_json::Map<String, serde_json::Value>);

impl FreeForm {
    /// Is there nothing in it?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl JsonSchema for FreeForm {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "FreeForm".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
    }
}

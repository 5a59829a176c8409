//! The Kubernetes resources of Millstream, group `ingestion.millstream.dev`, version `v1alpha1`.
//!
//! | kind | who writes its spec | what it is |
//! |---|---|---|
//! | [`IngestionPipeline`] | users | one pipeline: its log, stores and stages |
//! | [`Tenant`] | users | who may send to a pipeline, with which API keys, and on which terms |
//! | [`StageScale`] | the operator makes one per stage; users, HPA and KEDA scale it | the number of workers of a stage |
//!
//! What a schema can say, it says here, so that the API server refuses it with the reason before anything happens: bounds, exactly one of several, and what is
//! fixed once it was created. Each rule's message says what to do. Every string, list and map is bounded, because the API server refuses a rule whose cost is not.
//! Fields have units and defaults in their description; defaults are in the schema, so that `kubectl get -o yaml` shows what is in force.
//!
//! The files in `crds/yaml/` are made from this code (`make generate`), and compared with it by `make lint`.

// `KubeSchema` writes each struct once more, in a function.
#![allow(unreachable_pub)]
// Columns of one type each name it.
#![allow(clippy::duplicated_attributes)]

mod common;
mod kafka;
mod observability;
mod pipeline;
mod scale;
mod stage;
mod status;
mod stores;
mod tenant;

pub use common::{HumanDuration, LocalObject, SecretKey};
pub use kafka::{Kafka, Retention, Sasl, SaslMechanism, Strimzi, Tls, TopicManagement};
pub use observability::{LogFormat, Observability};
pub use pipeline::{DeletionPolicy, ImagePullPolicy, IngestionPipeline, IngestionPipelineSpec};
pub use scale::{StageName, StageScale, StageScaleSpec, StageScaleStatus};
pub use stage::{Claim, EmptyDir, FreeForm, LostNode, Resources, Stage, Stages, Storage};
pub use status::{ConditionType, IngestionPipelineStatus, StageStatus};
pub use stores::{Checkpoints, DocumentStore, Mongodb, ObjectStore, S3, ServerSideEncryption};
pub use tenant::{
    API_KEYS_LABEL, Tenant, TenantDeletionPolicy, TenantIdentity, TenantLimits, TenantRate, TenantSpec, TenantStatus,
};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// The API group of all kinds.
pub const GROUP: &str = "ingestion.millstream.dev";
/// Its version.
pub const VERSION: &str = "v1alpha1";

/// The definition of every kind, in the order in which they are installed.
pub fn all() -> Vec<CustomResourceDefinition> {
    vec![IngestionPipeline::crd(), StageScale::crd(), Tenant::crd()]
}

#[cfg(test)]
mod tests;

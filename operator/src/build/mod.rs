//! Every object that a pipeline needs, as it should be.
//!
//! *At rest nothing rolls*: the StatefulSets' `partition` lies above all ordinals, so that a changed template reaches a Pod only when somebody lowers it, after the Pod's shards
//! have moved. *A Pod starts with the configuration it was made for*: ConfigMaps are immutable and named after their content; a Pod's template names the one it wants, so that a
//! Pod that restarts by itself in the middle of a change does not get half of it. *What a Secret holds* is in the template as a hash: a new password is a change like any other.
//! Pods satisfy the Pod Security Standard `restricted`, and have no token for the API server.

pub(crate) mod config;
mod grace;
pub(crate) mod names;
mod network;
mod overlay;
pub(crate) mod pods;
pub(crate) mod quantity;
pub(crate) mod secrets;
pub(crate) mod topics;
mod workloads;

use crate::Prepared;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::DynamicObject;
use millstream_crds::{IngestionPipelineSpec, S3, StageName, StageScale};
use serde::Serialize;
use serde_json::Value;

/// Annotation of a StatefulSet with the hash of its Pods' template: whether it is the one that was applied last.
pub const TEMPLATE_HASH: &str = "ingestion.millstream.dev/template-hash";

/// The objects of a pipeline, in the order in which they are applied: what others refer to comes first.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// What Strimzi's Topic Operator makes topics from: created for those that are not there, and neither changed nor removed later.
    pub kafka_topics: Vec<DynamicObject>,
    /// The identity of its Pods.
    pub accounts: Vec<ServiceAccount>,
    /// The configuration of each stage.
    pub config_maps: Vec<ConfigMap>,
    /// One for the gateway's port, and one per stage that gives Pods their names.
    pub services: Vec<Service>,
    /// Who may speak to whom.
    pub policies: Vec<NetworkPolicy>,
    /// One per stage: at most one Pod is evicted at a time.
    pub budgets: Vec<PodDisruptionBudget>,
    /// One per stage.
    pub stateful_sets: Vec<StatefulSet>,
    /// One per stage.
    pub scales: Vec<StageScale>,
}

/// Why the objects cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The resource has no name, namespace or uid: it does not come from an API server.
    #[error("the pipeline has no {0}")]
    Missing(&'static str),
    /// A Pod's template with what was laid over it is no template any more.
    #[error("spec.stages.{stage}.podTemplate: {error}")]
    Template {
        /// The stage.
        stage: &'static str,
        /// What does not fit.
        error: serde_json::Error,
    },
    /// Something cannot be written as YAML or JSON.
    #[error("cannot write {what}: {error}")]
    Unwritable {
        /// What.
        what: &'static str,
        /// Why.
        error: String,
    },
}

impl Objects {
    /// Each that is applied, as JSON, in order.
    ///
    /// # Errors
    /// [`BuildError::Unwritable`].
    pub fn to_json(&self) -> Result<Vec<Value>, BuildError> {
        let mut all = Vec::new();
        add(&mut all, &self.accounts)?;
        add(&mut all, &self.config_maps)?;
        add(&mut all, &self.services)?;
        add(&mut all, &self.policies)?;
        add(&mut all, &self.budgets)?;
        add(&mut all, &self.stateful_sets)?;
        add(&mut all, &self.scales)?;
        Ok(all)
    }
}

fn add<T: Serialize>(all: &mut Vec<Value>, objects: &[T]) -> Result<(), BuildError> {
    for object in objects {
        let json = serde_json::to_value(object);
        all.push(json.map_err(|error| BuildError::Unwritable { what: "an object", error: error.to_string() })?);
    }
    Ok(())
}

/// Do a stage's workers hold state of shards? Gateways and writers of documents do not.
fn has_state(stage: StageName) -> bool {
    matches!(stage, StageName::Unify | StageName::Action)
}

/// Where a stage's workers put checkpoints, if they do.
fn bucket(spec: &IngestionPipelineSpec, stage: StageName) -> Option<&S3> {
    spec.object_store.as_ref()?.s3.as_ref().filter(|_| has_state(stage))
}

/// The objects of a pipeline that [`crate::validate::validate`] has nothing against.
///
/// # Errors
/// [`BuildError`].
pub fn build(prepared: &Prepared) -> Result<Objects, BuildError> {
    let names = names::Names::of(prepared)?;
    let mut objects = Objects {
        kafka_topics: topics::kafka_topics(prepared)?,
        accounts: vec![workloads::account(&names)],
        services: vec![network::gateway_service(&names)],
        policies: network::policies(prepared, &names),
        ..Objects::default()
    };
    for stage in StageName::ALL {
        let config = config::config_map(prepared, &names, stage)?;
        let template = pods::template(prepared, &names, stage, &config)?;
        objects.config_maps.push(config);
        objects.services.push(network::governing_service(&names, stage));
        objects.budgets.push(workloads::budget(&names, stage));
        objects.stateful_sets.push(workloads::stateful_set(prepared, &names, stage, template)?);
        objects.scales.push(workloads::scale(prepared, &names, stage));
    }
    Ok(objects)
}

#[cfg(test)]
mod tests;

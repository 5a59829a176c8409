//! What the pure steps see of the world.

use k8s_openapi::api::apps::v1::StatefulSet;
use millstream_crds::{IngestionPipeline, SecretKey, StageName};
use std::collections::{BTreeMap, BTreeSet};

/// A pipeline, and what it refers to.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The resource, as the API server has it: with namespace, name and uid.
    pub pipeline: IngestionPipeline,
    /// Workers of each stage that has a `StageScale`, as that says, or as many as there are; the others' come from the resource.
    pub replicas: BTreeMap<StageName, i32>,
    /// Of everything that the resource refers to in Secrets.
    pub secrets: SecretHashes,
    /// Ports of the document store's servers, from its connection string.
    pub document_ports: BTreeSet<u16>,
    /// The operator's own namespace, whose Pods may look at workers.
    pub operator_namespace: String,
}

/// What of the content of Secrets the pure steps may know: whether it is the same as before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretHashes(pub BTreeMap<(String, String), String>);

impl SecretHashes {
    /// The first digits of the SHA-256 of a key's content; empty when it is not there.
    pub fn of(&self, key: &SecretKey) -> &str {
        self.0.get(&(key.name.clone(), key.key.clone())).map_or("", String::as_str)
    }
}

impl Prepared {
    /// The pipeline's name.
    pub fn name(&self) -> &str {
        self.pipeline.metadata.name.as_deref().unwrap_or_default()
    }

    /// Its namespace.
    pub fn namespace(&self) -> &str {
        self.pipeline.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// What the names of its topics begin with.
    pub fn prefix(&self) -> String {
        match &self.pipeline.spec.kafka.prefix {
            Some(prefix) => prefix.clone(),
            None => format!("{}.{}", self.namespace(), self.name()),
        }
    }

    /// Of its internal topics. (A restore begins another one.)
    pub fn generation(&self) -> u16 {
        1
    }

    /// A stage whose `StageScale` somebody has deleted keeps the size that it has: what the resource says is for the beginning only, and may be what it was long ago. (While the pipeline is suspended it
    /// has none, and nobody knows another size than the resource's.)
    pub fn keep_sizes<'a>(&mut self, sets: impl Iterator<Item = &'a StatefulSet>) {
        for set in sets {
            let is_its = |stage: &StageName| set.metadata.name == Some(format!("{}-{}", self.name(), stage.as_str()));
            let stage = StageName::ALL.into_iter().find(is_its);
            let replicas = set.spec.as_ref().and_then(|spec| spec.replicas).filter(|replicas| *replicas > 0);
            if let (Some(stage), Some(replicas)) = (stage, replicas) {
                self.replicas.entry(stage).or_insert(replicas);
            }
        }
    }

    /// The workers that a stage should have now: none while the pipeline is suspended.
    pub fn workers(&self, stage: StageName) -> i32 {
        if self.pipeline.spec.suspend { 0 } else { self.replicas(stage) }
    }

    /// The workers that a stage should have while the pipeline is not suspended.
    pub fn replicas(&self, stage: StageName) -> i32 {
        self.replicas.get(&stage).copied().unwrap_or_else(|| self.pipeline.spec.stages.of(stage).replicas)
    }
}

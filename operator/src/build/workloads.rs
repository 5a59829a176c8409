//! The StatefulSet of each stage, and what belongs to it.

use super::names::Names;
use super::pods::DATA_VOLUME;
use super::{BuildError, TEMPLATE_HASH, quantity, secrets};
use crate::Prepared;
use crate::plan::AT_REST;
use k8s_openapi::api::apps::v1::{
    RollingUpdateStatefulSetStrategy, StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec,
    StatefulSetUpdateStrategy,
};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimSpec, PodTemplateSpec, ServiceAccount, VolumeResourceRequirements,
};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use millstream_crds::{Claim, DeletionPolicy, LocalObject, StageName, StageScale, StageScaleSpec};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Who the Pods are: somebody who may ask the API server nothing. Cloud identities are bound to it.
pub(super) fn account(names: &Names) -> ServiceAccount {
    ServiceAccount {
        metadata: names.metadata(names.name.clone(), None),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

/// At most one Pod of a stage is evicted at a time, and one that does not work anyway is not protected: it would hold up the drain of its node for ever.
pub(super) fn budget(names: &Names, stage: StageName) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: names.metadata(names.of_stage(stage), Some(stage)),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(names.selector(Some(stage))),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    }
}

pub(super) fn stateful_set(
    prepared: &Prepared,
    names: &Names,
    stage: StageName,
    template: PodTemplateSpec,
) -> Result<StatefulSet, BuildError> {
    let spec = &prepared.pipeline.spec;
    let claim = spec.stages.of(stage).storage.persistent_volume_claim.as_ref();
    let text = serde_json::to_string(&template)
        .map_err(|error| BuildError::Unwritable { what: "a template", error: error.to_string() })?;
    let hash = (TEMPLATE_HASH.to_owned(), secrets::hex(&Sha256::digest(text.as_bytes())));
    Ok(StatefulSet {
        metadata: ObjectMeta {
            annotations: Some(BTreeMap::from([hash])),
            ..names.metadata(names.of_stage(stage), Some(stage))
        },
        spec: Some(StatefulSetSpec {
            replicas: Some(prepared.workers(stage)),
            service_name: Some(names.governing(stage)),
            selector: names.selector(Some(stage)),
            // Nobody waits for a neighbour: after a power cut all come back at once.
            pod_management_policy: Some("Parallel".to_owned()),
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateStatefulSetStrategy {
                    partition: Some(AT_REST),
                    max_unavailable: None,
                }),
            }),
            revision_history_limit: Some(10),
            template,
            volume_claim_templates: claim.map(|claim| vec![claim_template(names, stage, claim)]),
            persistent_volume_claim_retention_policy: claim.map(retention),
            ..StatefulSetSpec::default()
        }),
        status: None,
    })
}

fn claim_template(names: &Names, stage: StageName, claim: &Claim) -> PersistentVolumeClaim {
    let requests = BTreeMap::from([("storage".to_owned(), quantity::quantity(&claim.size))]);
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(DATA_VOLUME.to_owned()),
            labels: Some(names.selected(Some(stage))),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name: claim.storage_class_name.clone(),
            resources: Some(VolumeResourceRequirements { requests: Some(requests), limits: None }),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}

/// A worker that comes back after a while finds its state again; with the pipeline it goes as the resource says.
fn retention(claim: &Claim) -> StatefulSetPersistentVolumeClaimRetentionPolicy {
    let when_deleted = match claim.when_deleted {
        DeletionPolicy::Delete => "Delete",
        DeletionPolicy::Retain => "Retain",
    };
    StatefulSetPersistentVolumeClaimRetentionPolicy {
        when_deleted: Some(when_deleted.to_owned()),
        when_scaled: Some("Retain".to_owned()),
    }
}

/// What users and autoscalers scale. Its `replicas` is theirs: it is given when it is made, and never again.
pub(super) fn scale(prepared: &Prepared, names: &Names, stage: StageName) -> StageScale {
    StageScale {
        metadata: names.metadata(names.of_stage(stage), Some(stage)),
        spec: StageScaleSpec {
            pipeline_ref: LocalObject { name: names.name.clone() },
            stage,
            replicas: prepared.replicas(stage),
        },
        status: None,
    }
}

//! Names and labels of a pipeline's objects.

use super::BuildError;
use crate::{FIELD_MANAGER, Prepared};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::Resource as _;
use millstream_crds::StageName;
use std::collections::BTreeMap;

pub(crate) const NAME: &str = "app.kubernetes.io/name";
pub(crate) const INSTANCE: &str = "app.kubernetes.io/instance";
pub(crate) const COMPONENT: &str = "app.kubernetes.io/component";
pub(crate) const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// What everything of one pipeline is called.
pub(super) struct Names {
    pub(super) namespace: String,
    /// The pipeline's own.
    pub(super) name: String,
    owner: OwnerReference,
}

impl Names {
    pub(super) fn of(prepared: &Prepared) -> Result<Names, BuildError> {
        let metadata = &prepared.pipeline.metadata;
        let namespace = metadata.namespace.clone().ok_or(BuildError::Missing("namespace"))?;
        let name = metadata.name.clone().ok_or(BuildError::Missing("name"))?;
        let owner = prepared.pipeline.controller_owner_ref(&()).ok_or(BuildError::Missing("uid"))?;
        Ok(Names { namespace, name, owner })
    }

    /// Of a stage's StatefulSet, and what belongs to it.
    pub(super) fn of_stage(&self, stage: StageName) -> String {
        format!("{}-{}", self.name, stage.as_str())
    }

    /// Of the Service that gives a stage's Pods their names.
    pub(super) fn governing(&self, stage: StageName) -> String {
        format!("{}-{}-workers", self.name, stage.as_str())
    }

    /// What the pipeline's Pods are selected by; they never change.
    pub(super) fn selected(&self, stage: Option<StageName>) -> BTreeMap<String, String> {
        let mut labels =
            BTreeMap::from([(NAME.to_owned(), "millstream".to_owned()), (INSTANCE.to_owned(), self.name.clone())]);
        if let Some(stage) = stage {
            labels.insert(COMPONENT.to_owned(), stage.as_str().to_owned());
        }
        labels
    }

    pub(super) fn selector(&self, stage: Option<StageName>) -> LabelSelector {
        LabelSelector { match_labels: Some(self.selected(stage)), ..LabelSelector::default() }
    }

    /// The head of an object that belongs to the pipeline, and goes with it.
    pub(super) fn metadata(&self, name: String, stage: Option<StageName>) -> ObjectMeta {
        let mut labels = self.selected(stage);
        labels.insert(MANAGED_BY.to_owned(), FIELD_MANAGER.to_owned());
        ObjectMeta {
            name: Some(name),
            namespace: Some(self.namespace.clone()),
            labels: Some(labels),
            owner_references: Some(vec![self.owner.clone()]),
            ..ObjectMeta::default()
        }
    }
}

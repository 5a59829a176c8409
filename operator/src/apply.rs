//! Brings the objects about.
//!
//! Server-side apply under a field manager of our own: what others set (an annotation of a service mesh, a label of a policy engine) stays theirs, and what we set and somebody changed is set
//! back. Two things are not applied again and again: a `StageScale`, whose replicas belong to users from the moment on when it is there, and a ConfigMap, which is immutable.
//!
//! What is not built any more goes, if it is ours by label and by owner's uid, and if nobody needs it: a ConfigMap stays for as long as a revision of a StatefulSet names it, because a Pod of that
//! revision may start again.

use crate::build::pods::DATA_VOLUME;
use crate::build::{Objects, names};
use crate::trouble::Trouble;
use crate::{FIELD_MANAGER, Prepared};
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource, ResourceExt};
use millstream_crds::StageName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

/// What was applied.
pub(crate) struct Applied {
    /// As the API server has them now.
    pub(crate) stateful_sets: Vec<StatefulSet>,
    /// The first that was refused: the others were applied all the same, but for what names it.
    pub(crate) refused: Option<Trouble>,
}

struct Applier<'a> {
    client: &'a Client,
    prepared: &'a Prepared,
    refused: Option<Trouble>,
}

/// Asks the API server whether it would take the StatefulSets, where users have laid something over their Pods' templates; the first that it would refuse. No object of a
/// specification is applied before: half of it would be what nobody asked for.
///
/// # Errors
/// [`Trouble`]: it is not known.
pub(crate) async fn refused(
    client: &Client,
    prepared: &Prepared,
    objects: &Objects,
) -> Result<Option<Trouble>, Trouble> {
    let stages = &prepared.pipeline.spec.stages;
    if StageName::ALL.iter().all(|stage| stages.of(*stage).pod_template.0.is_empty()) {
        return Ok(None);
    }
    let mut applier = Applier { client, prepared, refused: None };
    for set in &objects.stateful_sets {
        let api = applier.api::<StatefulSet>();
        let params = PatchParams::apply(FIELD_MANAGER).force().dry_run();
        let answer = api.patch(&set.name_any(), &params, &Patch::Apply(set)).await;
        applier.unless_refused(answer.map_err(|error| Trouble::of(called(set), error)))?;
    }
    Ok(applier.refused.map(|trouble| match trouble {
        Trouble::Refused { what, message } => Trouble::Refused {
            what,
            message: format!("{message}; nothing new is applied, new sizes included, until podTemplate is mended"),
        },
        other => other,
    }))
}

/// Applies the objects, and removes those of before.
///
/// # Errors
/// [`Trouble`]: the rest follows when it is tried again. An object that is refused holds up only what names it.
pub(crate) async fn apply(client: &Client, prepared: &Prepared, objects: &Objects) -> Result<Applied, Trouble> {
    let mut applier = Applier { client, prepared, refused: None };
    applier.all(&objects.accounts).await?;
    applier.missing(&objects.config_maps).await?;
    // A Pod without what it names would never start.
    let is_whole = applier.refused.is_none();
    applier.all(&objects.services).await?;
    applier.all(&objects.policies).await?;
    applier.all(&objects.budgets).await?;
    applier.missing(&objects.scales).await?;
    let wanted = if is_whole { objects.stateful_sets.as_slice() } else { &[] };
    let stateful_sets = applier.all(wanted).await?;
    applier.remove_others(&objects.services).await?;
    applier.remove_others(&objects.policies).await?;
    applier.remove_others::<PodDisruptionBudget>(&objects.budgets).await?;
    applier.remove_configurations(&objects.config_maps).await?;
    Ok(Applied { stateful_sets, refused: applier.refused })
}

/// Deletes these very Pods: their StatefulSets make them again.
///
/// # Errors
/// [`Trouble`]: the rest follows when it is tried again.
pub(crate) async fn replace(client: &Client, namespace: &str, pods: &BTreeMap<String, String>) -> Result<(), Trouble> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    for (name, uid) in pods {
        delete(&api, name, Some(uid.clone())).await?;
    }
    Ok(())
}

/// Forgets these very Pods, whose nodes do not answer, and the volumes that bind them there: their StatefulSets make both again, elsewhere. Should a node come back with a worker that still runs,
/// the log has fenced it, and the newer process of its name ends it.
///
/// # Errors
/// [`Trouble`]: the rest follows when it is tried again.
pub(crate) async fn recreate(client: &Client, namespace: &str, pods: &BTreeMap<String, String>) -> Result<(), Trouble> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    for (name, uid) in pods {
        // It may have ended meanwhile, and another one may run on the claim.
        let pod = api.get_opt(name).await.map_err(|error| Trouble::of(format!("get Pod {name}"), error))?;
        if pod.is_none_or(|pod| pod.uid().as_ref() != Some(uid)) {
            continue;
        }
        let claim = format!("{DATA_VOLUME}-{name}");
        let found = claims.get_opt(&claim).await;
        let found = found.map_err(|error| Trouble::of(format!("get PersistentVolumeClaim {claim}"), error))?;
        if let Some(found) = found {
            // First: it goes when no Pod uses it any more, and the next Pod must not find it.
            delete(&claims, &claim, found.uid()).await?;
        }
        delete_within(&api, name, Some(uid.clone()), Some(0)).await?;
    }
    Ok(())
}

/// The very object that was looked at, and no other that has its name by now.
pub(crate) async fn delete<K: Kind>(api: &Api<K>, name: &str, uid: Option<String>) -> Result<(), Trouble> {
    delete_within(api, name, uid, None).await
}

async fn delete_within<K: Kind>(
    api: &Api<K>,
    name: &str,
    uid: Option<String>,
    grace_period_seconds: Option<u32>,
) -> Result<(), Trouble> {
    let preconditions = uid.map(|uid| Preconditions { uid: Some(uid), resource_version: None });
    let params = DeleteParams { preconditions, grace_period_seconds, ..DeleteParams::default() };
    match api.delete(name, &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(Trouble::of(format!("{} {name}", K::kind(&())), error)),
    }
}

/// What every kind is that we apply.
pub(crate) trait Kind:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Serialize
{
}
impl<K> Kind for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Serialize
{
}

fn called<K: Kind>(object: &K) -> String {
    format!("{} {}", K::kind(&()), object.name_any())
}

impl Applier<'_> {
    fn api<K: Kind>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), self.prepared.namespace())
    }

    async fn all<K: Kind>(&mut self, objects: &[K]) -> Result<Vec<K>, Trouble> {
        let mut applied = Vec::with_capacity(objects.len());
        for object in objects {
            let result = self.one(object).await;
            applied.extend(self.unless_refused(result)?);
        }
        Ok(applied)
    }

    async fn one<K: Kind>(&self, object: &K) -> Result<K, Trouble> {
        let (api, params) = (self.api::<K>(), PatchParams::apply(FIELD_MANAGER).force());
        self.check_owner(&api, object).await?;
        let result = api.patch(&object.name_any(), &params, &Patch::Apply(object)).await;
        result.map_err(|error| Trouble::of(called(object), error))
    }

    /// Nothing when it was refused, which is noted.
    fn unless_refused<T>(&mut self, result: Result<T, Trouble>) -> Result<Option<T>, Trouble> {
        match result {
            Ok(done) => Ok(Some(done)),
            Err(trouble) if trouble.is_refusal() => {
                self.refused.get_or_insert(trouble);
                Ok(None)
            }
            Err(trouble) => Err(trouble),
        }
    }

    /// Is it there? Somebody else's object of the same name is not taken over: whose it is, breaks.
    async fn check_owner<K: Kind>(&self, api: &Api<K>, object: &K) -> Result<bool, Trouble> {
        let found =
            api.get_metadata_opt(&object.name_any()).await.map_err(|error| Trouble::of(called(object), error))?;
        let is_others = |found: &ObjectMeta| !self.is_ours(found.owner_references.as_deref().unwrap_or_default());
        match found {
            Some(found) if is_others(&found.metadata) => Err(Trouble::Refused {
                what: called(object),
                message: "there is one of this name that does not belong to the pipeline: rename the pipeline, or delete the other".to_owned(),
            }),
            found => Ok(found.is_some()),
        }
    }

    fn is_ours(&self, owners: &[OwnerReference]) -> bool {
        let uid = self.prepared.pipeline.metadata.uid.as_deref();
        owners.iter().any(|owner| owner.controller == Some(true) && Some(owner.uid.as_str()) == uid)
    }

    /// Creates those that are not there.
    async fn missing<K: Kind>(&mut self, objects: &[K]) -> Result<(), Trouble> {
        for object in objects {
            let result = self.one_missing(object).await;
            self.unless_refused(result)?;
        }
        Ok(())
    }

    async fn one_missing<K: Kind>(&self, object: &K) -> Result<(), Trouble> {
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let api = self.api::<K>();
        if self.check_owner(&api, object).await? {
            return Ok(());
        }
        let created = api.create(&params, object).await;
        created.map(drop).map_err(|error| Trouble::of(called(object), error))
    }

    /// Ours of this kind that are not among these.
    async fn others<K: Kind>(&self, objects: &[K]) -> Result<Vec<K>, Trouble> {
        let listed = self.api::<K>().list(&self.ours()).await;
        let listed = listed.map_err(|error| Trouble::of(format!("list {}", K::kind(&())), error))?;
        let wanted: BTreeSet<String> = objects.iter().map(ResourceExt::name_any).collect();
        let is_other = |object: &K| !wanted.contains(&object.name_any()) && self.is_ours(object.owner_references());
        Ok(listed.items.into_iter().filter(is_other).collect())
    }

    fn ours(&self) -> ListParams {
        ListParams::default().labels(&format!(
            "{}={},{}={FIELD_MANAGER}",
            names::INSTANCE,
            self.prepared.name(),
            names::MANAGED_BY
        ))
    }

    async fn remove_others<K: Kind>(&mut self, objects: &[K]) -> Result<(), Trouble> {
        for object in self.others(objects).await? {
            self.remove(&object).await?;
        }
        Ok(())
    }

    async fn remove<K: Kind>(&mut self, object: &K) -> Result<(), Trouble> {
        let removed = delete(&self.api::<K>(), &object.name_any(), object.uid()).await;
        self.unless_refused(removed).map(drop)
    }

    async fn remove_configurations(&mut self, wanted: &[ConfigMap]) -> Result<(), Trouble> {
        let others = self.others(wanted).await?;
        if others.is_empty() {
            return Ok(());
        }
        let label = ListParams::default().labels(&format!("{}={}", names::INSTANCE, self.prepared.name()));
        let revisions: Api<ControllerRevision> = self.api();
        let revisions = revisions.list(&label).await.map_err(|error| Trouble::of("list ControllerRevisions", error))?;
        let used: BTreeSet<String> = revisions
            .items
            .iter()
            .flat_map(|revision| configurations_of(revision.data.as_ref().map(|data| &data.0)))
            .collect();
        for object in others.iter().filter(|object| !used.contains(&object.name_any())) {
            self.remove(object).await?;
        }
        Ok(())
    }
}

/// The ConfigMaps that a revision's template names.
fn configurations_of(data: Option<&serde_json::Value>) -> Vec<String> {
    let volumes =
        data.and_then(|data| data.pointer("/spec/template/spec/volumes")).and_then(|volumes| volumes.as_array());
    let name = |volume: &serde_json::Value| volume.pointer("/configMap/name")?.as_str().map(str::to_owned);
    volumes.into_iter().flatten().filter_map(name).collect()
}

//! Our finalizers: whether one is there, and how it comes and goes.
//!
//! Others' finalizers stay as they are: each write is conditional on what was read. It is about this very object, never about another one that has its name by now, and about the generation that it was decided for: a
//! newer one is decided about when the watch has heard of it. None is added in a namespace that is being deleted or not there; from one that is being deleted all are taken away ([`crate::terminating`]).

use crate::FIELD_MANAGER;
use crate::terminating::{Phase, phase};
use crate::trouble::Trouble;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::json;
use std::fmt::Debug;

/// Is it there?
pub(crate) fn is_held(metadata: &ObjectMeta, finalizer: &str) -> bool {
    metadata.finalizers.iter().flatten().any(|it| it == finalizer)
}

/// Adds it, or takes it away, as is wanted; whether it was this call that did. An object that is not there any more is as it should be.
///
/// # Errors
/// [`Trouble`]: the object has its former finalizers.
pub(crate) async fn hold<K>(
    client: &Client,
    metadata: &ObjectMeta,
    finalizer: &str,
    wanted: bool,
) -> Result<bool, Trouble>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let (api, name) = place_of::<K>(client, metadata);
    let found = api.get_metadata_opt(name).await.map_err(|error| Trouble::of(what::<K>(name), error))?;
    let is_it = |found: &ObjectMeta| (&found.uid, found.generation) == (&metadata.uid, metadata.generation);
    let Some(found) = found.filter(|found| is_it(&found.metadata)) else { return Ok(false) };
    // None can be added to one that is being deleted.
    if wanted == is_held(&found.metadata, finalizer) || (wanted && found.metadata.deletion_timestamp.is_some()) {
        return Ok(false);
    }
    if wanted && phase(client, metadata.namespace.as_deref().unwrap_or_default()).await? != Phase::Active {
        return Ok(false);
    }
    write::<K>(client, &found.metadata, finalizer, wanted).await
}

/// Takes it away from an object that is as it was found; whether it was this call that did.
///
/// # Errors
/// [`Trouble`]: the object has its former finalizers, or was changed meanwhile.
pub(crate) async fn release<K>(client: &Client, found: &ObjectMeta, finalizer: &str) -> Result<bool, Trouble>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    write::<K>(client, found, finalizer, false).await
}

async fn write<K>(client: &Client, found: &ObjectMeta, finalizer: &str, wanted: bool) -> Result<bool, Trouble>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let (api, name) = place_of::<K>(client, found);
    let others = found.finalizers.iter().flatten().filter(|it| *it != finalizer).cloned();
    let finalizers: Vec<String> = others.chain(wanted.then(|| finalizer.to_owned())).collect();
    let patch = json!({"metadata": {"resourceVersion": found.resource_version, "finalizers": finalizers}});
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    match api.patch_metadata(name, &params, &Patch::Merge(&patch)).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        Err(error) => Err(Trouble::of(what::<K>(name), error)),
    }
}

fn place_of<'a, K>(client: &Client, metadata: &'a ObjectMeta) -> (Api<K>, &'a str)
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    (Api::namespaced(client.clone(), namespace), metadata.name.as_deref().unwrap_or_default())
}

fn what<K: Resource<DynamicType = ()>>(name: &str) -> String {
    format!("patch the finalizers of {} {name}", K::kind(&()))
}

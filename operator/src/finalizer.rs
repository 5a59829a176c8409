//! Our finalizers: whether one is there, and how it comes and goes.
//!
//! Others' finalizers stay as they are: each write is conditional on what was read. It is about this very object, never about another one that has its name by now, and about the generation that it was decided for: a
//! newer one is decided about when the watch has heard of it.

use crate::FIELD_MANAGER;
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

/// Adds it, or takes it away, as is wanted. An object that is not there any more is as it should be.
///
/// # Errors
/// [`Trouble`]: the object has its former finalizers.
pub(crate) async fn hold<K>(
    client: &Client,
    metadata: &ObjectMeta,
    finalizer: &str,
    wanted: bool,
) -> Result<(), Trouble>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let (namespace, name) =
        (metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default());
    let what = || format!("patch the finalizers of {} {name}", K::kind(&()));
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let found = api.get_metadata_opt(name).await.map_err(|error| Trouble::of(what(), error))?;
    let is_it = |found: &ObjectMeta| (&found.uid, found.generation) == (&metadata.uid, metadata.generation);
    let Some(found) = found.filter(|found| is_it(&found.metadata)) else { return Ok(()) };
    // None can be added to one that is being deleted.
    if wanted == is_held(&found.metadata, finalizer) || (wanted && found.metadata.deletion_timestamp.is_some()) {
        return Ok(());
    }
    let others = found.metadata.finalizers.unwrap_or_default().into_iter().filter(|it| it != finalizer);
    let finalizers: Vec<String> = others.chain(wanted.then(|| finalizer.to_owned())).collect();
    let patch = json!({"metadata": {"resourceVersion": found.metadata.resource_version, "finalizers": finalizers}});
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    match api.patch_metadata(name, &params, &Patch::Merge(&patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(Trouble::of(what(), error)),
    }
}

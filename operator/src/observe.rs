//! What there is of a pipeline's workers, as the API server has it.

use crate::build::names;
use crate::trouble::Trouble;
use crate::{FIELD_MANAGER, Prepared};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client};

/// Its StatefulSets and their Pods.
pub(crate) struct Observed {
    pub(crate) stateful_sets: Vec<StatefulSet>,
    pub(crate) pods: Vec<Pod>,
}

/// # Errors
/// [`Trouble`]: the API server could not be asked.
pub(crate) async fn observe(client: &Client, prepared: &Prepared) -> Result<Observed, Trouble> {
    let of_pipeline = format!("{}={}", names::INSTANCE, prepared.name());
    let (sets, pods): (Api<StatefulSet>, Api<Pod>) =
        (Api::namespaced(client.clone(), prepared.namespace()), Api::namespaced(client.clone(), prepared.namespace()));
    let ours = ListParams::default().labels(&format!("{of_pipeline},{}={FIELD_MANAGER}", names::MANAGED_BY));
    let sets = sets.list(&ours).await.map_err(|error| Trouble::of("list StatefulSets", error))?;
    let pods = pods.list(&ListParams::default().labels(&of_pipeline)).await;
    let pods = pods.map_err(|error| Trouble::of("list Pods", error))?;
    Ok(Observed { stateful_sets: sets.items, pods: pods.items })
}

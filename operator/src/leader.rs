//! Which operator leads, as a label of its own Pod: the chart has a Service that selects by it, so that whoever asks this Service, through the API server for example, asks the one that leads.
//!
//! A label is no lock. Who leads, the [Lease](crate::lease) says alone: one that has the label and does not lead answers 503, and nobody leads for longer because of it. So nothing that keeps a label from being written
//! keeps anybody from leading: it is warned of, and tried again.
//!
//! - **Who does not lead gives it up.** An operator takes it off its own Pod when it ends, and before it claims the Lease, because an earlier container of that Pod may have led and been killed; and the one that leads takes
//!   it off the Pod of the one that had not given the Lease away, which may hang, or be on a node that is lost.
//! - **At rest nothing is written.** The label is looked at every [`EVERY`], and written when it is not as it should be.
//!
//! An operator that runs in no Pod (in a terminal) has nothing to label: it is asked at its own address.

use crate::FIELD_MANAGER;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use std::convert::Infallible;
use std::time::Duration;

/// On the Pod of the operator that leads. The chart's Service selects by it.
pub const LABEL: &str = "ingestion.millstream.dev/leads";
/// What it says.
pub const LEADS: &str = "true";
/// A Service's name has so many characters at most.
const LONGEST_NAME: usize = 63;
/// How often the label is looked at: somebody else may have changed it.
const EVERY: Duration = Duration::from_secs(30);
/// How long a look and a write may take.
const TRY: Duration = Duration::from_secs(5);
/// After it failed; each further time in turn twice as long, up to the second value: a permission that is missing is there later, or never.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The Service that leads to the operator that leads: of all namespaces, or of this one.
pub fn service(watched: Option<&str>) -> String {
    let mut name = match watched {
        Some(namespace) => format!("millstream-leader-{namespace}"),
        None => "millstream-leader".to_owned(),
    };
    name.truncate(name.floor_char_boundary(LONGEST_NAME));
    name.truncate(name.trim_end_matches('-').len());
    name
}

/// The label of an operator's own Pod.
pub struct LeaderLabel {
    pods: Api<Pod>,
    /// The operator's own; none when it runs in none.
    own: Option<String>,
}

impl LeaderLabel {
    /// Of the operator in this Pod.
    pub fn new(client: Client, namespace: &str, pod: Option<&str>) -> LeaderLabel {
        LeaderLabel { pods: Api::namespaced(client, namespace), own: pod.map(str::to_owned) }
    }

    /// Takes the label off the operator's own Pod, and returns when that is done, or has failed once.
    pub async fn clear(&self) {
        if let Some(own) = &self.own
            && let Err(why) = self.try_settle(own, false).await
        {
            tracing::warn!(pod = own, why, "the label that says who leads was not taken off the Pod");
        }
    }

    /// Keeps the label as it should be: on the operator's own Pod while it leads, off it while it does not, and off the Pod of the one that led before. It never ends.
    pub async fn keep(&self, is_leading: bool, former: Option<&str>) -> Infallible {
        let Some(own) = &self.own else { return std::future::pending().await };
        let mut former = former.filter(|former| former != own);
        let mut pause = PAUSE.0;
        loop {
            let mut failed = self.try_settle(own, is_leading).await.err().map(|why| (own.as_str(), why));
            if let Some(pod) = former {
                match self.try_settle(pod, false).await {
                    Ok(()) => former = None,
                    Err(why) => failed = failed.or(Some((pod, why))),
                }
            }
            let Some((pod, why)) = failed else {
                pause = PAUSE.0;
                tokio::time::sleep(EVERY).await;
                continue;
            };
            tracing::warn!(pod, why, "the label that says who leads is not as it should be; it is tried again");
            tokio::time::sleep(pause).await;
            pause = pause.saturating_mul(2).min(PAUSE.1);
        }
    }

    async fn try_settle(&self, pod: &str, is_leading: bool) -> Result<(), String> {
        match tokio::time::timeout(TRY, self.settle(pod, is_leading)).await {
            Ok(settled) => settled.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {TRY:?}")),
        }
    }

    async fn settle(&self, pod: &str, is_leading: bool) -> Result<(), kube::Error> {
        let found = match self.pods.get_metadata(pod).await {
            // One that is gone leads nobody anywhere.
            Err(kube::Error::Api(status)) if status.code == 404 && !is_leading => return Ok(()),
            found => found?,
        };
        let wanted = is_leading.then_some(LEADS);
        if found.labels().get(LABEL).map(String::as_str) == wanted {
            return Ok(());
        }
        // Of this very Pod.
        let patch = json!({"metadata": {"uid": found.uid(), "labels": {LABEL: wanted}}});
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        self.pods.patch_metadata(pod, &params, &Patch::Merge(&patch)).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_named_after_the_namespace_that_its_operator_watches_as_far_as_a_name_goes() {
        assert_eq!(service(None), "millstream-leader");
        assert_eq!(service(Some("shop")), "millstream-leader-shop");
        let long = "x".repeat(44);
        assert_eq!(service(Some(&format!("{long}x"))).len(), LONGEST_NAME);
        assert_eq!(service(Some(&format!("{long}-x"))), format!("millstream-leader-{long}"));
        assert_eq!(service(Some(&format!("{long}xyz"))), format!("millstream-leader-{long}x"));
    }
}

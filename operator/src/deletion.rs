//! A pipeline that is deleted: what has to be done before it may go, and the finalizer that keeps it until then.
//!
//! Topics go with their pipeline only when `topicDeletionPolicy` is `Delete`. Invariants:
//!
//! - **A finalizer only while something must be done.** A pipeline has ours when its policy is `Delete` and its topics are the operator's to delete; it comes and goes with the policy.
//! - **Nobody uses what is deleted.** First the thread that publishes plans ends, which would make topics again, then the StatefulSets and their Pods, then topics go.
//! - **Only topics that this pipeline made.** Which these are stands in `status.createdTopics`, written before the first one is made: those that were not there then. Of these only the pipeline's own names go, each by
//!   its full name. Whatever was there before stays; so does what another Kafka cluster has under these names (`status.createdTopicsIn`), and so does everything when topics are somebody else's (`Existing`).
//! - **Never a deadlock.** What stands in the way is said, with what lets the pipeline go at once: the policy `Retain`. In a namespace that is itself being deleted, where Secrets and Roles may be gone already, and of a
//!   resource that cannot be read, the finalizer goes at once, and an Event says that the topics stayed.
//!
//! Nothing is remembered between the steps: each is read off the API server and Kafka, so that an operator goes on where another stopped, and whatever was done already is done again without harm.

use crate::build::names;
use crate::controller::{Context, is_owned};
use crate::dereference;
use crate::events::Happening;
use crate::plans::Access;
use crate::reason::Reason;
use crate::status::Outcome;
use crate::terminating::{Phase, phase};
use crate::trouble::Trouble;
use crate::{FIELD_MANAGER, apply, finalizer, strimzi};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use millstream_crds::{DeletionPolicy, IngestionPipeline, IngestionPipelineSpec, StageName, Strimzi, TopicManagement};
use millstream_shard::log::LogError;
use millstream_stores::kafka::KafkaLog;
use millstream_stores::kafka::survey::Survey;
use std::collections::BTreeSet;
use std::time::Duration;

/// Ours.
pub(crate) const FINALIZER: &str = "ingestion.millstream.dev/topics";
/// What lets a pipeline go whatever stands in the way.
const WAY_OUT: &str = "to let the pipeline go at once, and leave its topics, set spec.topicDeletionPolicy to Retain";
/// Brokers that do not answer for so long are away: it is tried again.
const BROKERS_WITHIN: Duration = Duration::from_secs(5);
/// So many Pods are named in a message.
const NAMED: usize = 5;

/// Must something be done before this pipeline may go?
fn is_wanted(spec: &IngestionPipelineSpec) -> bool {
    spec.topic_deletion_policy == DeletionPolicy::Delete && spec.kafka.topics != TopicManagement::Existing
}

/// Is the finalizer there?
pub(crate) fn is_held(metadata: &ObjectMeta) -> bool {
    finalizer::is_held(metadata, FINALIZER)
}

/// The finalizer of a pipeline that lives comes and goes with its policy.
///
/// # Errors
/// [`Trouble`]: the pipeline has its former finalizers.
pub(crate) async fn settle(client: &Client, pipeline: &IngestionPipeline) -> Result<(), Trouble> {
    let wanted = is_wanted(&pipeline.spec);
    if wanted == is_held(&pipeline.metadata) {
        return Ok(());
    }
    hold(client, &pipeline.metadata, wanted).await.map(drop)
}

async fn hold(client: &Client, metadata: &ObjectMeta, wanted: bool) -> Result<bool, Trouble> {
    finalizer::hold::<IngestionPipeline>(client, metadata, FINALIZER, wanted).await
}

/// A resource that cannot be read may go: what is to become of its topics cannot be known.
///
/// # Errors
/// [`Trouble`].
pub(crate) async fn let_go_unread(context: &Context, metadata: &ObjectMeta) -> Result<(), Trouble> {
    if metadata.deletion_timestamp.is_none() || !is_held(metadata) {
        return Ok(());
    }
    hold(&context.client, metadata, false).await?;
    warn_of_unread(metadata.name.as_deref().unwrap_or_default());
    Ok(())
}

pub(crate) fn warn_of_unread(name: &str) {
    tracing::warn!(pipeline = name, "a resource that cannot be read was deleted; its topics, if it has any, stayed");
}

/// Does what is still to be done for a pipeline that is being deleted; what it waits for, or nothing when it may go.
///
/// # Errors
/// [`Trouble`]: it is tried again.
pub(crate) async fn finish(context: &Context, pipeline: &IngestionPipeline) -> Result<Option<Outcome>, Trouble> {
    // As it is now: another one of its name can only be there when this one has no finalizer any more, and topics would be the other's.
    let (namespace, name) = (pipeline.namespace().unwrap_or_default(), pipeline.name_any());
    let api: Api<IngestionPipeline> = Api::namespaced(context.client.clone(), &namespace);
    let found =
        api.get_opt(&name).await.map_err(|error| Trouble::of(format!("get IngestionPipeline {name}"), error))?;
    let is_it = |found: &IngestionPipeline| found.uid() == pipeline.uid() && is_held(&found.metadata);
    let Some(pipeline) = found.filter(is_it) else { return Ok(None) };
    if !is_wanted(&pipeline.spec) {
        hold(&context.client, &pipeline.metadata, false).await?;
        return Ok(None);
    }
    if phase(&context.client, &namespace).await? != Phase::Active {
        if hold(&context.client, &pipeline.metadata, false).await? {
            context.teller.elsewhere(&pipeline, &context.operator, &retained(&pipeline)).await;
        }
        return Ok(None);
    }
    let uid = pipeline.uid().unwrap_or_default();
    if !context.plans.is_ended(&uid) {
        return Ok(Some(waits("the operator stops publishing its plan".to_owned())));
    }
    let left = end_workers(&context.client, &pipeline).await?;
    if !left.is_empty() {
        let (count, named) = (left.len(), left.into_iter().take(NAMED).collect::<Vec<_>>().join(", "));
        return Ok(Some(waits(format!("{count} workers end, before their topics go: {named}; {WAY_OUT}"))));
    }
    match remove_topics(context, &pipeline).await? {
        Ok(note) => {
            context.teller.event(&pipeline, &says(false, Reason::TopicsDeleted, note)).await;
            hold(&context.client, &pipeline.metadata, false).await?;
            Ok(None)
        }
        Err(outcome) => Ok(Some(*outcome)),
    }
}

/// Says what became of the topics of a pipeline whose namespace is being deleted.
pub(crate) fn retained(pipeline: &IngestionPipeline) -> Happening {
    let (namespace, name) = (pipeline.namespace().unwrap_or_default(), pipeline.name_any());
    let strimzi = pipeline.spec.kafka.strimzi.as_ref();
    let goes = strimzi.is_some_and(|strimzi| strimzi.namespace_for(&namespace) == namespace);
    let became = match goes {
        true => "its KafkaTopics go with the namespace, and their topics with them",
        false => "its topics stayed",
    };
    let note = format!(
        "namespace {namespace} is being deleted: IngestionPipeline {name} was let go at once, and {became}: {}",
        created(pipeline).join(", ")
    );
    says(true, Reason::TopicsRetained, note)
}

/// Deletes the topics that are the pipeline's; what was done, or what it waits for.
async fn remove_topics(
    context: &Context,
    pipeline: &IngestionPipeline,
) -> Result<Result<String, Box<Outcome>>, Trouble> {
    let (access, problems) = dereference::log_of(&context.client, pipeline, &context.namespace).await?;
    let all: BTreeSet<String> = access.topics.specs().into_iter().map(|topic| topic.name).collect();
    // Whoever may write a status could name other topics there.
    let (ours, others): (Vec<String>, Vec<String>) = all.into_iter().partition(|name| created(pipeline).contains(name));
    if ours.is_empty() {
        return Ok(Ok(deleted(&ours, &others)));
    }
    if let Some(strimzi) = &pipeline.spec.kafka.strimzi {
        return remove_kafka_topics(context, pipeline, strimzi, (&ours, &others)).await;
    }
    if !problems.is_empty() {
        return Ok(Err(Box::new(Outcome { problems, ..waits(format!("its topics cannot be deleted; {WAY_OUT}")) })));
    }
    let made_in = pipeline.status.as_ref().and_then(|status| status.created_topics_in.clone());
    let done = tokio::task::spawn_blocking(move || delete(&access, made_in.as_deref(), &ours, &others)).await;
    let done = done.unwrap_or_else(|error| Err(LogError::Unavailable(error.to_string())));
    Ok(done.map_err(|error| Box::new(failed(Reason::LogUnavailable, &error))))
}

/// Deletes what Strimzi's Topic Operator made topics from: it deletes those then.
async fn remove_kafka_topics(
    context: &Context,
    pipeline: &IngestionPipeline,
    strimzi: &Strimzi,
    (ours, others): (&[String], &[String]),
) -> Result<Result<String, Box<Outcome>>, Trouble> {
    let pipelines = pipeline.namespace().unwrap_or_default();
    let (namespace, uid) = (strimzi.namespace_for(&pipelines), pipeline.uid().unwrap_or_default());
    let removed = match strimzi::remove(&context.client, namespace, &uid, ours).await {
        Ok(removed) => removed,
        Err(trouble) => return Ok(Err(Box::new(failed(trouble.reason(), &trouble)))),
    };
    if removed.left.is_empty() {
        let (stay, went): (Vec<String>, Vec<String>) =
            ours.iter().cloned().partition(|name| removed.others.contains(name));
        let stay = [&stay, others].concat().join(", ");
        return Ok(Ok(format!(
            "the KafkaTopics of these are gone, and Strimzi deletes the topics with them (look in Kafka if it did not run, or did not manage them): {}; these stayed, because the pipeline did not make them when it began, or somebody else has a KafkaTopic of them: {stay}",
            went.join(", ")
        )));
    }
    let (count, named) = (removed.left.len(), removed.left.into_iter().take(NAMED).collect::<Vec<_>>().join(", "));
    Ok(Err(Box::new(waits(format!(
        "Strimzi's Topic Operator deletes {count} topics, whose KafkaTopics are in namespace {namespace}: {named}; {WAY_OUT}"
    )))))
}

/// Deletes `ours`, if this is the cluster where they were made; what was done, for people.
fn delete(access: &Access, made_in: Option<&str>, ours: &[String], others: &[String]) -> Result<String, LogError> {
    let log = KafkaLog::new(access.kafka.clone())?;
    log.brokers(BROKERS_WITHIN)?;
    let here = Survey::open(access.kafka.clone())?.cluster()?;
    if made_in.is_some() && made_in == here.as_deref() {
        log.delete_topics(ours)?;
        return Ok(deleted(ours, others));
    }
    let all: Vec<&str> = ours.iter().chain(others).map(String::as_str).collect();
    Ok(stayed(made_in, here.as_deref(), &all))
}

/// Why topics of these names stay in a cluster where the pipeline did not make them.
fn stayed(made_in: Option<&str>, here: Option<&str>, all: &[&str]) -> String {
    let why = match (made_in, here) {
        (Some(made_in), Some(here)) => {
            format!("the pipeline made its topics in the Kafka cluster {made_in}, and these brokers are of the cluster {here}; look in both")
        }
        (None, _) => "it was not written down in which Kafka cluster the pipeline made its topics: its brokers did not say then, or an operator of before wrote it".to_owned(),
        (_, None) => "these brokers do not say of which Kafka cluster they are".to_owned(),
    };
    format!("no topics were deleted: {why}; delete by hand what nobody needs of {}", all.join(", "))
}

/// The topics that the pipeline made.
fn created(pipeline: &IngestionPipeline) -> Vec<String> {
    pipeline.status.as_ref().and_then(|status| status.created_topics.clone()).unwrap_or_default()
}

/// What was deleted, and what stays, for people.
fn deleted(ours: &[String], others: &[String]) -> String {
    let went = match ours {
        [] => "no topics were deleted".to_owned(),
        ours => format!("topics were deleted: {}", ours.join(", ")),
    };
    match others {
        [] => went,
        others => {
            format!("{went}; these stayed, because the pipeline did not make them when it began: {}", others.join(", "))
        }
    }
}

fn failed(reason: Reason, error: &dyn std::error::Error) -> Outcome {
    let message = format!("its topics cannot be deleted: {error}; it is tried again; {WAY_OUT}");
    Outcome { trouble: Some((reason, message.clone())), ..waits(message) }
}

fn waits(what: String) -> Outcome {
    Outcome { deleting: Some(what), ..Outcome::default() }
}

fn says(is_warning: bool, reason: Reason, note: String) -> Happening {
    Happening { is_warning, reason: reason.as_str().to_owned(), note }
}

/// Deletes the pipeline's StatefulSets; what is left of them and of their Pods.
async fn end_workers(client: &Client, pipeline: &IngestionPipeline) -> Result<Vec<String>, Trouble> {
    let (namespace, name) = (pipeline.namespace().unwrap_or_default(), pipeline.name_any());
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), &namespace);
    let ours =
        ListParams::default().labels(&format!("{}={name},{}={FIELD_MANAGER}", names::INSTANCE, names::MANAGED_BY));
    let found = sets.list(&ours).await.map_err(|error| Trouble::of("list StatefulSets", error))?;
    let mut left = Vec::new();
    for set in found.items.into_iter().filter(|set| is_owned(set, pipeline)) {
        if set.metadata.deletion_timestamp.is_none() {
            apply::delete(&sets, &set.name_any(), set.uid()).await?;
        }
        left.push(format!("StatefulSet {}", set.name_any()));
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let of_pipeline = ListParams::default().labels(&format!("{}={name}", names::INSTANCE));
    let found = pods.list(&of_pipeline).await.map_err(|error| Trouble::of("list Pods", error))?;
    left.extend(found.items.iter().filter(|pod| is_worker(&name, pod)).map(ResourceExt::name_any));
    Ok(left)
}

/// Is it a Pod of one of the pipeline's StatefulSets? (Somebody else's may have the label.)
fn is_worker(pipeline: &str, pod: &Pod) -> bool {
    let owners = StageName::ALL.map(|stage| format!("{pipeline}-{}", stage.as_str()));
    pod.owner_references().iter().any(|owner| owner.kind == "StatefulSet" && owners.contains(&owner.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(policy: &str, topics: &str) -> IngestionPipelineSpec {
        let spec = json!({
            "image": "i", "documentStore": {"mongodb": {"uri": {"name": "m", "key": "uri"}}},
            "kafka": {"bootstrapServers": ["k:1"], "topics": topics}, "topicDeletionPolicy": policy,
        });
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn nothing_is_held_that_nothing_must_be_done_for() {
        assert!(is_wanted(&spec("Delete", "Managed")));
        for (policy, topics) in [("Retain", "Managed"), ("Retain", "Existing"), ("Delete", "Existing")] {
            assert!(!is_wanted(&spec(policy, topics)), "{policy} {topics}");
        }
    }

    #[test]
    fn only_pods_of_the_pipelines_own_stateful_sets_are_waited_for() {
        let pod = |kind: &str, owner: &str| -> Pod {
            let owner = json!({"apiVersion": "v1", "kind": kind, "name": owner, "uid": "1"});
            serde_json::from_value(json!({"metadata": {"name": "p", "ownerReferences": [owner]}})).unwrap()
        };
        assert!(is_worker("orders", &pod("StatefulSet", "orders-unify")));
        for (kind, owner) in [("StatefulSet", "orders-db"), ("Job", "orders-unify"), ("StatefulSet", "orders2-unify")] {
            assert!(!is_worker("orders", &pod(kind, owner)), "{kind} {owner}");
        }
        assert!(!is_worker("orders", &Pod::default()));
    }

    #[test]
    fn what_stays_is_said() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(deleted(&names(&["a", "b"]), &[]), "topics were deleted: a, b");
        assert_eq!(
            deleted(&[], &names(&["c"])),
            "no topics were deleted; these stayed, because the pipeline did not make them when it began: c"
        );
        for (made_in, here, why) in [
            (Some("k1"), Some("k2"), "look in both"),
            (None, Some("k2"), "it was not written down"),
            (Some("k1"), None, "these brokers do not say"),
        ] {
            let said = stayed(made_in, here, &["a", "b"]);
            assert!(said.contains(why) && said.ends_with("delete by hand what nobody needs of a, b"), "{said}");
        }
    }
}

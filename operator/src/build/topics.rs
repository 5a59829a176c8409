//! The topics of a pipeline: what they must be like, and, with `kafka.topics: Strimzi`, the `KafkaTopic` of each, which Strimzi's Topic Operator makes it from.
//!
//! A `KafkaTopic` does not belong to the pipeline as its other objects do, and does not go with it: a topic stays unless `topicDeletionPolicy` says otherwise, and it may be in another namespace.
//! Whose it is stands in a label.

use super::BuildError;
use super::names::MANAGED_BY;
use crate::{FIELD_MANAGER, Prepared};
use kube::api::{ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use millstream_crds::Retention;
use millstream_shard::topics::Topics;
use millstream_stores::kafka::{KafkaConfig, topics};
use serde_json::{Map, Value, json};

/// Label with the name of the pipeline that made it: for people.
const PIPELINE: &str = "ingestion.millstream.dev/pipeline";
/// Label with the uid of the pipeline that made it.
pub(crate) const PIPELINE_UID: &str = "ingestion.millstream.dev/pipeline-uid";
/// Strimzi's label with the name of the `Kafka` resource.
const CLUSTER: &str = "strimzi.io/cluster";

/// `KafkaTopic`, as Strimzi has it from 0.49 on.
pub(crate) fn resource() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("kafka.strimzi.io", "v1", "KafkaTopic"))
}

/// The pipeline's topics.
pub(crate) fn names(prepared: &Prepared) -> Topics {
    let shards = u32::try_from(prepared.pipeline.spec.shards).unwrap_or(1);
    Topics::new(&prepared.prefix(), shards, prepared.generation())
}

/// What the pipeline says of its topics, and where its brokers are; without what Secrets hold.
pub(crate) fn config(prepared: &Prepared) -> KafkaConfig {
    let kafka = &prepared.pipeline.spec.kafka;
    let topics = names(prepared);
    let mut config = KafkaConfig::new(kafka.bootstrap_servers.join(","));
    config.replication_factor = u16::try_from(kafka.replication).unwrap_or(u16::MAX);
    config.properties = kafka.properties.clone();
    let Retention { ingress, events, rejects } = &kafka.retention;
    let kept = [(&topics.ingress, ingress), (&topics.events, events), (&topics.rejects, rejects)];
    config.retention_ms = kept.iter().filter_map(|(name, kept)| Some((name.to_string(), kept.millis()?))).collect();
    config
}

/// One for each topic; none unless Strimzi makes them.
pub(super) fn kafka_topics(prepared: &Prepared) -> Result<Vec<DynamicObject>, BuildError> {
    let Some(strimzi) = &prepared.pipeline.spec.kafka.strimzi else { return Ok(Vec::new()) };
    let uid = prepared.pipeline.metadata.uid.as_deref().ok_or(BuildError::Missing("uid"))?;
    let config = config(prepared);
    let topic = |topic: &millstream_shard::log::TopicSpec| {
        let settings = topics::settings(&config, topic).into_iter();
        let settings: Map<String, Value> = settings.map(|(name, value)| (name.to_owned(), setting(&value))).collect();
        let mut object = DynamicObject::new(&topic.name, &resource())
            .within(strimzi.namespace_for(prepared.namespace()))
            .data(json!({
                "spec": {"partitions": topic.partitions, "replicas": config.replication_factor, "config": settings},
            }));
        // Not by `app.kubernetes.io/instance`: tools that prune what is an instance's and has no owner would take the topic with it.
        let labels = [
            (CLUSTER, strimzi.cluster.as_str()),
            (MANAGED_BY, FIELD_MANAGER),
            (PIPELINE, prepared.name()),
            (PIPELINE_UID, uid),
        ];
        object.metadata.labels = Some(labels.map(|(label, value)| (label.to_owned(), value.to_owned())).into());
        object
    };
    Ok(names(prepared).specs().iter().map(topic).collect())
}

/// Numbers are numbers there: the Topic Operator reckons with some of them.
fn setting(value: &str) -> Value {
    value.parse::<i64>().map_or_else(|_| value.into(), Value::from)
}

//! Topics that Strimzi's Topic Operator makes: what they are made from is created for it, and it is waited for.
//!
//! Invariants:
//!
//! - **Written down first.** Which topics were not there stands in `status.createdTopics` before the first `KafkaTopic` is created, as when the operator makes topics itself. Topics that were there get none:
//!   the Topic Operator would set them as it says.
//! - **Created, and never changed.** What a topic is set to counts from its creation on, as everywhere; whoever changes a `KafkaTopic` later is right, and so is whoever made it first.
//! - **Workers start when their topics are there.** For a pipeline that has workers nothing is looked at any more: whatever becomes of Strimzi, it goes on.

use crate::FIELD_MANAGER;
use crate::build::topics::{PIPELINE_UID, resource};
use crate::status::WaitsForTopics;
use crate::trouble::Trouble;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, PostParams, Preconditions};
use kube::{Client, ResourceExt};
use serde::Deserialize;
use std::collections::BTreeMap;

/// So many topics are named in a message.
const NAMED: usize = 3;

/// How a topic stands with the Topic Operator.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    /// It is there; or the Topic Operator is told to leave it alone.
    Ready,
    /// Nothing was said of it yet, as it is specified now.
    Waiting,
    Refused(String),
}

fn api(client: &Client, namespace: &str) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), namespace, &resource())
}

/// All of a namespace, by name; nothing: such objects are not known here.
async fn all(api: &Api<DynamicObject>) -> Result<Option<BTreeMap<String, DynamicObject>>, Trouble> {
    match api.list(&ListParams::default()).await {
        Ok(listed) => Ok(Some(listed.items.into_iter().map(|object| (object.name_any(), object)).collect())),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(Trouble::of("list KafkaTopics", error)),
    }
}

/// Creates what is missing of the topics that were absent, unless the pipeline is paused; what is waited for.
///
/// # Errors
/// [`Trouble`]: the rest follows when it is tried again.
pub(crate) async fn settle(
    client: &Client,
    absent: Option<&[String]>,
    kafka_topics: &[DynamicObject],
    is_paused: bool,
) -> Result<Option<WaitsForTopics>, Trouble> {
    let Some(absent) = absent else {
        let message = "which topics are not there is being written down".to_owned();
        return Ok(Some(WaitsForTopics { message, is_refused: false }));
    };
    let wanted: Vec<&DynamicObject> =
        kafka_topics.iter().filter(|object| absent.contains(&object.name_any())).collect();
    let Some(namespace) = wanted.first().and_then(|object| object.namespace()) else { return Ok(None) };
    let api = api(client, &namespace);
    let Some(there) = all(&api).await? else {
        let message = "there are no KafkaTopics (kafka.strimzi.io/v1) here: install Strimzi 0.49 or later, or create the pipeline with kafka.topics: Managed".to_owned();
        return Ok(Some(WaitsForTopics { message, is_refused: true }));
    };
    let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
    let mut standings = Vec::new();
    for object in wanted {
        let name = object.name_any();
        let standing = match there.get(&name) {
            Some(found) => standing(found),
            None if is_paused => Standing::Waiting,
            None => match api.create(&params, object).await {
                Ok(_) => Standing::Waiting,
                Err(error) => return Err(Trouble::of(format!("KafkaTopic {namespace}/{name}"), error)),
            },
        };
        standings.push((name, standing));
    }
    Ok(waits(&namespace, &standings))
}

/// What the Topic Operator says of a `KafkaTopic`.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Said {
    observed_generation: Option<i64>,
    conditions: Vec<Condition>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Condition {
    r#type: String,
    status: String,
    reason: String,
    message: String,
}

impl Said {
    /// Nothing that is understood: nothing was said.
    fn of(object: &DynamicObject) -> Said {
        object.data.get("status").and_then(|status| Said::deserialize(status).ok()).unwrap_or_default()
    }

    fn condition(&self, type_: &str) -> Option<&Condition> {
        self.conditions.iter().find(|it| it.r#type == type_)
    }

    fn is(&self, type_: &str) -> bool {
        self.condition(type_).is_some_and(|it| it.status == "True")
    }
}

fn standing(object: &DynamicObject) -> Standing {
    let said = Said::of(object);
    if said.is("Unmanaged") {
        return Standing::Ready;
    }
    if said.is("ReconciliationPaused") {
        return Standing::Refused("its annotation strimzi.io/pause-reconciliation is true".to_owned());
    }
    // Of what was specified before, nothing counts.
    match said.condition("Ready").filter(|_| said.observed_generation >= object.metadata.generation) {
        Some(ready) if ready.status == "True" => Standing::Ready,
        Some(ready) if ready.status == "False" => Standing::Refused(format!("{}: {}", ready.reason, ready.message)),
        _ => Standing::Waiting,
    }
}

fn waits(namespace: &str, standings: &[(String, Standing)]) -> Option<WaitsForTopics> {
    let refused: Vec<String> = standings
        .iter()
        .filter_map(|(name, standing)| match standing {
            Standing::Refused(why) => Some(format!("{name}: {why}")),
            Standing::Ready | Standing::Waiting => None,
        })
        .collect();
    let waiting: Vec<&str> = standings
        .iter()
        .filter_map(|(name, standing)| (*standing == Standing::Waiting).then_some(name.as_str()))
        .collect();
    let some = |names: &[&str]| names.iter().take(NAMED).copied().collect::<Vec<_>>().join("; ");
    let is_refused = !refused.is_empty();
    let message = match (is_refused, waiting.is_empty()) {
        (true, _) => {
            let named: Vec<&str> = refused.iter().map(String::as_str).collect();
            let todo = "mend the KafkaTopic, or delete it: it is created again as the pipeline says then";
            format!("Strimzi's Topic Operator has not made {} topics: {}; {todo}", refused.len(), some(&named))
        }
        (false, false) => format!(
            "{} topics are not ready: {}: Strimzi's Topic Operator makes them from the KafkaTopics in namespace {namespace}, if it watches that",
            waiting.len(),
            some(&waiting)
        ),
        (false, true) => return None,
    };
    Some(WaitsForTopics { message, is_refused })
}

/// What became of the topics of a pipeline that is deleted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Removed {
    /// Whose KafkaTopics are being deleted.
    pub(crate) left: Vec<String>,
    /// That somebody else has a KafkaTopic of.
    pub(crate) others: Vec<String>,
}

/// Deletes the KafkaTopics that a pipeline made of these topics.
///
/// # Errors
/// [`Trouble`]: the rest follows when it is tried again.
pub(crate) async fn remove(client: &Client, namespace: &str, uid: &str, topics: &[String]) -> Result<Removed, Trouble> {
    let api = api(client, namespace);
    let mut removed = Removed::default();
    let found = all(&api).await?.unwrap_or_default();
    for (name, object) in found.into_iter().filter(|(name, _)| topics.contains(name)) {
        if !may_delete(&object, uid) {
            removed.others.push(name);
            continue;
        }
        if object.metadata.deletion_timestamp.is_none() {
            let preconditions = Some(Preconditions { uid: object.uid(), resource_version: None });
            match api.delete(&name, &DeleteParams { preconditions, ..DeleteParams::default() }).await {
                Err(kube::Error::Api(status)) if status.code == 404 => continue,
                Err(error) => return Err(Trouble::of(format!("KafkaTopic {namespace}/{name}"), error)),
                Ok(_) => {}
            }
        }
        removed.left.push(name);
    }
    Ok(removed)
}

/// The pipeline made it, and the topic is its alone: the Topic Operator deletes a topic with any KafkaTopic that names it, also where it says that another one has named it before.
fn may_delete(object: &DynamicObject, uid: &str) -> bool {
    let is_conflict = Said::of(object).condition("Ready").is_some_and(|it| it.reason == "ResourceConflict");
    object.labels().get(PIPELINE_UID).is_some_and(|label| label == uid) && !is_conflict
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn topic(status: &Value) -> DynamicObject {
        let mut object = DynamicObject::new("orders.ingress", &resource()).data(json!({ "status": status }));
        object.metadata.generation = Some(2);
        object.metadata.labels = Some([(PIPELINE_UID.to_owned(), "mine".to_owned())].into());
        object
    }

    fn said(type_: &str, status: &str, reason: &str, generation: i64) -> Value {
        let condition = json!({"type": type_, "status": status, "reason": reason, "message": "no leader"});
        json!({"observedGeneration": generation, "conditions": [condition]})
    }

    #[test]
    fn a_topic_is_ready_when_it_is_said_of_what_is_specified_now() {
        let ready = |status: &str, generation: i64| said("Ready", status, "KafkaError", generation);
        assert_eq!(standing(&topic(&ready("True", 2))), Standing::Ready);
        for status in [ready("True", 1), ready("False", 1), json!({}), Value::Null, json!({"observedGeneration": 2})] {
            assert_eq!(standing(&topic(&status)), Standing::Waiting, "{status}");
        }
        assert_eq!(standing(&topic(&ready("False", 2))), Standing::Refused("KafkaError: no leader".to_owned()));
        assert_eq!(standing(&topic(&said("Unmanaged", "True", "", 0))), Standing::Ready);
        assert!(matches!(standing(&topic(&said("ReconciliationPaused", "True", "", 0))), Standing::Refused(_)));
    }

    #[test]
    fn what_is_refused_is_said_before_what_is_waited_for() {
        let named = |standings: Vec<Standing>| {
            let names = ["a", "b", "c", "d", "e"].map(str::to_owned);
            waits("kafka", &names.into_iter().zip(standings).collect::<Vec<_>>())
        };
        assert_eq!(named(vec![Standing::Ready]), None);
        let waiting = named((0..5).map(|_| Standing::Waiting).collect()).unwrap();
        assert!(!waiting.is_refused && waiting.message.starts_with("5 topics are not ready: a; b; c: "), "{waiting:?}");
        assert!(waiting.message.contains("in namespace kafka"), "{waiting:?}");
        let refused = named(vec![Standing::Waiting, Standing::Refused("KafkaError: no leader".to_owned())]).unwrap();
        let message = "Strimzi's Topic Operator has not made 1 topics: b: KafkaError: no leader; mend ";
        assert!(refused.is_refused && refused.message.starts_with(message), "{refused:?}");
    }

    #[test]
    fn a_topic_that_another_one_names_too_is_not_deleted() {
        let ready = topic(&said("Ready", "True", "", 2));
        assert!(may_delete(&ready, "mine") && !may_delete(&ready, "another"));
        assert!(!may_delete(&topic(&said("Ready", "False", "ResourceConflict", 2)), "mine"));
    }
}

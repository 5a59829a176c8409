//! What a change of a pipeline leads to, stage by stage: a pure function of the resource before and after.
//!
//! It is read off what the operator makes of both, and not off the fields that differ: a stage whose template is the same is not restarted, whatever stands in the resource. What is not in the resource it
//! does not know: sizes are what `StageScale`s say, and another content of a Secret replaces the Pods of the stages that see it.

use crate::Prepared;
use crate::build::{BuildError, Objects, TEMPLATE_HASH, build};
use crate::plan::{ORDER, stage_of};
use k8s_openapi::api::apps::v1::StatefulSet;
use kube::ResourceExt;
use millstream_crds::{IngestionPipeline, IngestionPipelineSpec, StageName, Tenant, TopicManagement};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::{Display, Formatter};

/// What becomes of a stage, or of what stands around its workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// These change; nobody is restarted.
    Broadcast(Vec<String>),
    /// These Pods are replaced, one at a time, in this order; their shards leave first.
    Rolling(Vec<String>),
    /// These are fixed: the API server refuses the resource, and nothing of it happens. Only a pipeline that is deleted and created again, or another one, has them.
    Recreate(Vec<String>),
}

impl Display for Change {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            Change::None => write!(f, "none"),
            Change::Broadcast(what) => write!(f, "broadcast  {}: nobody is restarted", what.join(", ")),
            Change::Rolling(pods) => {
                write!(f, "rolling    {}: one at a time, after their shards have left", pods.join(", "))
            }
            Change::Recreate(fields) => write!(
                f,
                "recreate   {}: fixed, and refused by the API server with everything else in the resource; create another pipeline, or delete this one and create it again",
                fields.join(", ")
            ),
        }
    }
}

/// What a change leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect {
    /// Of each stage, in the order in which they are seen to.
    pub stages: Vec<(StageName, Change)>,
    /// Of what stands around the workers.
    pub around: Change,
}

/// What it leads to when a pipeline becomes another one of its name.
///
/// # Errors
/// [`BuildError`]: one of them cannot be built.
pub fn classify(before: &Prepared, after: &Prepared) -> Result<Effect, BuildError> {
    let mut after = after.clone();
    // Whose everything is, is the same pipeline's in both.
    after.pipeline.metadata.uid.clone_from(&before.pipeline.metadata.uid);
    let objects = (build(before)?, build(&after)?);
    let fixed = fixed(&before.pipeline, &after.pipeline);
    let stages = ORDER.into_iter().map(|stage| (stage, of_stage(stage, before, &after, &objects, &fixed))).collect();
    let around = Some(around(before, &after, &objects)?).filter(|around| !around.is_empty());
    Ok(Effect { stages, around: around.map_or(Change::None, Change::Broadcast) })
}

/// What it leads to when these tenants of a pipeline become those: gateways and workers of unify are told.
pub fn tenants(before: &[Tenant], after: &[Tenant]) -> Change {
    let by_name = |tenants: &[Tenant]| -> BTreeMap<String, _> {
        tenants.iter().map(|tenant| (tenant.name_any(), tenant.spec.clone())).collect()
    };
    let (before, after) = (by_name(before), by_name(after));
    let mut names: Vec<String> = before.keys().chain(after.keys()).cloned().collect();
    names.sort();
    names.dedup();
    names.retain(|name| before.get(name) != after.get(name));
    if names.is_empty() { Change::None } else { Change::Broadcast(names) }
}

/// Fields of the whole pipeline that cannot change.
fn fixed(before: &IngestionPipeline, after: &IngestionPipeline) -> Vec<String> {
    let (before, after) = (&before.spec, &after.spec);
    let fields = [
        ("spec.shards", before.shards != after.shards),
        ("spec.kafka.prefix", before.kafka.prefix != after.kafka.prefix),
        ("spec.kafka.strimzi", before.kafka.strimzi != after.kafka.strimzi || strimzi_comes_or_goes(before, after)),
    ];
    fields.iter().filter(|(_, differs)| *differs).map(|(field, _)| (*field).to_owned()).collect()
}

fn strimzi_comes_or_goes(before: &IngestionPipelineSpec, after: &IngestionPipelineSpec) -> bool {
    let is_it = |spec: &IngestionPipelineSpec| spec.kafka.topics == TopicManagement::Strimzi;
    is_it(before) != is_it(after)
}

fn of_stage(
    stage: StageName,
    before: &Prepared,
    after: &Prepared,
    objects: &(Objects, Objects),
    fixed: &[String],
) -> Change {
    let set = |objects: &Objects| {
        objects.stateful_sets.iter().find(|set| stage_of(set.labels()) == Some(stage)).cloned().unwrap_or_default()
    };
    let (was, is) = (set(&objects.0), set(&objects.1));
    let mut fixed = fixed.to_vec();
    if immutable(&was) != immutable(&is) {
        fixed.push(format!("spec.stages.{}.storage", stage.as_str()));
    }
    if !fixed.is_empty() {
        return Change::Recreate(fixed);
    }
    let hash = |set: &StatefulSet| set.annotations().get(TEMPLATE_HASH).cloned();
    let (had, has) = (before.workers(stage), after.workers(stage));
    if hash(&was) != hash(&is) && had.min(has) > 0 {
        let pod = |ordinal: i32| format!("{}-{}-{ordinal}", after.name(), stage.as_str());
        return Change::Rolling((0..had.min(has)).rev().map(pod).collect());
    }
    let (is_suspended, was_suspended) = (after.pipeline.spec.suspend, before.pipeline.spec.suspend);
    let what = [
        (is_suspended && !was_suspended, "spec.suspend: its workers stop"),
        (was_suspended && !is_suspended, "spec.suspend: its workers start"),
        (retention(&was) != retention(&is), "what becomes of its volumes when it is deleted"),
        (after.pipeline.spec.standbys != before.pipeline.spec.standbys && stage != StageName::Gateway, "spec.standbys"),
    ];
    let what: Vec<String> = what.iter().filter(|(is_so, _)| *is_so).map(|(_, what)| (*what).to_owned()).collect();
    if what.is_empty() { Change::None } else { Change::Broadcast(what) }
}

/// What a StatefulSet cannot change.
fn immutable(set: &StatefulSet) -> Value {
    let spec = set.spec.clone().unwrap_or_default();
    let parts = (spec.selector, spec.service_name, spec.pod_management_policy, spec.volume_claim_templates);
    serde_json::to_value(parts).unwrap_or_default()
}

fn retention(set: &StatefulSet) -> Value {
    let policy = set.spec.as_ref().map(|spec| &spec.persistent_volume_claim_retention_policy);
    serde_json::to_value(policy).unwrap_or_default()
}

/// Kinds that are the stages' own.
const OF_STAGES: [&str; 4] = ["StatefulSet", "ConfigMap", "StageScale", "KafkaTopic"];

/// Objects, and what the operator itself goes by.
fn around(before: &Prepared, after: &Prepared, objects: &(Objects, Objects)) -> Result<Vec<String>, BuildError> {
    let named = |objects: &Objects| -> Result<BTreeMap<String, Value>, BuildError> {
        let text =
            |object: &Value, path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let all = objects.to_json()?.into_iter();
        let others = all.filter(|object| !OF_STAGES.contains(&text(object, "/kind").as_str()));
        Ok(others.map(|it| (format!("{} {}", text(&it, "/kind"), text(&it, "/metadata/name")), it)).collect())
    };
    let (was, is) = (named(&objects.0)?, named(&objects.1)?);
    let mut what: Vec<String> =
        was.keys().chain(is.keys()).filter(|name| was.get(*name) != is.get(*name)).cloned().collect();
    what.sort();
    what.dedup();
    let (before, after) = (&before.pipeline, &after.pipeline);
    let of_operator = [
        ("spec.paused", before.spec.paused != after.spec.paused),
        ("spec.topicDeletionPolicy", before.spec.topic_deletion_policy != after.spec.topic_deletion_policy),
        ("spec.kafka.topics", before.spec.kafka.topics != after.spec.kafka.topics),
    ];
    what.extend(of_operator.iter().filter(|(_, differs)| *differs).map(|(what, _)| (*what).to_owned()));
    Ok(what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SecretHashes;
    use serde_json::json;
    use std::collections::BTreeSet;

    /// The pipeline `orders`, with this in its specification.
    fn prepared(more: &Value) -> Prepared {
        let mut spec = json!({"image": "i:1", "kafka": {"bootstrapServers": ["k:1"]}, "documentStore": {"mongodb": {"uri": {"name": "m", "key": "uri"}}}});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let object = json!({
            "apiVersion": "ingestion.millstream.dev/v1alpha1", "kind": "IngestionPipeline",
            "metadata": {"name": "orders", "namespace": "shop", "uid": "1"}, "spec": spec,
        });
        Prepared {
            pipeline: serde_json::from_value(object).unwrap(),
            replicas: BTreeMap::new(),
            secrets: SecretHashes::default(),
            document_ports: BTreeSet::new(),
            operator_namespace: "millstream-system".to_owned(),
        }
    }

    fn effect(before: &Value, after: &Value) -> Effect {
        let (before, mut after) = (prepared(before), prepared(after));
        // As from a file.
        after.pipeline.metadata.uid = Some("2".to_owned());
        classify(&before, &after).unwrap()
    }

    fn of(effect: &Effect, stage: StageName) -> Change {
        effect.stages.iter().find(|(name, _)| *name == stage).unwrap().1.clone()
    }

    fn strings(strings: &[&str]) -> Vec<String> {
        strings.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn what_says_the_same_leads_to_nothing() {
        let same = effect(&json!({}), &json!({"shards": 8, "standbys": 1}));
        assert!(same.stages.iter().all(|(_, change)| *change == Change::None), "{same:?}");
        assert_eq!((same.around, same.stages.len()), (Change::None, 4));
    }

    #[test]
    fn another_image_replaces_all_pods_readers_before_writers() {
        let all = effect(&json!({}), &json!({"image": "i:2", "stages": {"action": {"replicas": 2}}}));
        let order: Vec<StageName> = all.stages.iter().map(|(stage, _)| *stage).collect();
        assert_eq!(order, [StageName::Reaction, StageName::Action, StageName::Unify, StageName::Gateway]);
        for (stage, change) in &all.stages {
            let pods = [1, 0].map(|ordinal| format!("orders-{}-{ordinal}", stage.as_str()));
            assert_eq!(*change, Change::Rolling(pods.to_vec()));
        }
        assert_eq!(all.around, Change::None);
    }

    #[test]
    fn a_setting_of_one_stage_replaces_its_pods_alone() {
        let one = effect(&json!({}), &json!({"stages": {"action": {"config": {"batch": {"max_time": "20ms"}}}}}));
        assert_eq!(of(&one, StageName::Action), Change::Rolling(strings(&["orders-action-1", "orders-action-0"])));
        let others = one.stages.iter().filter(|(stage, _)| *stage != StageName::Action);
        assert!(others.into_iter().all(|(_, change)| *change == Change::None), "{one:?}");
    }

    #[test]
    fn another_content_of_a_secret_replaces_the_pods_of_the_stages_that_see_it() {
        let key = |name: &str, key: &str| json!({"name": name, "key": key});
        let s3 =
            json!({"bucket": "checkpoints", "accessKeyId": key("s3", "id"), "secretAccessKey": key("s3", "secret")});
        let of_secrets = |secrets: &[(&str, &str, &str)]| {
            let hash =
                |(name, key, hash): &(&str, &str, &str)| (((*name).to_owned(), (*key).to_owned()), (*hash).to_owned());
            let hashes = SecretHashes(secrets.iter().map(hash).collect());
            Prepared { secrets: hashes, ..prepared(&json!({ "objectStore": {"s3": s3} })) }
        };
        let before = [("m", "uri", "1"), ("s3", "id", "1"), ("s3", "secret", "1")];
        let changed = |at: usize, hash: &'static str| {
            let mut after = before;
            after[at].2 = hash;
            let effect = classify(&of_secrets(&before), &of_secrets(&after)).unwrap();
            assert_eq!(effect.around, Change::None);
            let rolls = |(_, change): &&(StageName, Change)| matches!(change, Change::Rolling(_));
            effect.stages.iter().filter(rolls).map(|(stage, _)| *stage).collect::<Vec<_>>()
        };
        assert_eq!(changed(0, "2"), [StageName::Reaction]);
        assert_eq!(changed(2, "2"), [StageName::Action, StageName::Unify]);
        assert_eq!(changed(0, "1"), []);
    }

    #[test]
    fn what_the_plan_and_the_operator_go_by_restarts_nobody() {
        let standbys = effect(&json!({}), &json!({"standbys": 2, "paused": true}));
        assert_eq!(of(&standbys, StageName::Unify), Change::Broadcast(strings(&["spec.standbys"])));
        assert_eq!(of(&standbys, StageName::Gateway), Change::None);
        assert_eq!(standbys.around, Change::Broadcast(strings(&["spec.paused"])));
        let stopped = effect(&json!({}), &json!({"suspend": true, "image": "i:2"}));
        assert_eq!(
            of(&stopped, StageName::Action),
            Change::Broadcast(strings(&["spec.suspend: its workers stop"])),
            "nobody is left to be replaced"
        );
        // Sizes are the StageScales'.
        let more = effect(&json!({}), &json!({"stages": {"action": {"replicas": 5}}}));
        assert_eq!(of(&more, StageName::Action), Change::None);
    }

    #[test]
    fn what_a_stateful_set_cannot_change_is_said_to_be_fixed() {
        let claim = |claim: Value| json!({"stages": {"action": {"storage": {"persistentVolumeClaim": claim}}}});
        let before = claim(json!({"size": "1Gi"}));
        for after in
            [json!({}), claim(json!({"size": "2Gi"})), claim(json!({"size": "1Gi", "storageClassName": "fast"}))]
        {
            let storage = effect(&before, &after);
            assert_eq!(of(&storage, StageName::Action), Change::Recreate(strings(&["spec.stages.action.storage"])));
            assert_eq!(of(&storage, StageName::Unify), Change::None, "{after}");
        }
        let kept = effect(&before, &claim(json!({"size": "1Gi", "whenDeleted": "Retain"})));
        let told = Change::Broadcast(strings(&["what becomes of its volumes when it is deleted"]));
        assert_eq!(of(&kept, StageName::Action), told);
        let kafka = json!({"bootstrapServers": ["k:1"], "prefix": "mine"});
        let all = effect(&json!({}), &json!({"shards": 16, "kafka": kafka}));
        let fixed = Change::Recreate(strings(&["spec.shards", "spec.kafka.prefix"]));
        assert!(all.stages.iter().all(|(_, change)| *change == fixed), "{all:?}");
    }

    #[test]
    fn tenants_are_told_of() {
        let tenant = |name: &str, rate: u32| -> Tenant {
            let spec = json!({"pipelineRef": {"name": "orders"}, "apiKeys": [{"name": name, "key": "key"}], "rate": {"recordsPerSecond": rate}});
            serde_json::from_value(json!({"apiVersion": "ingestion.millstream.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": name}, "spec": spec})).unwrap()
        };
        let before = [tenant("goes", 1), tenant("same", 1), tenant("changes", 1)];
        let after = [tenant("same", 1), tenant("changes", 2), tenant("comes", 1)];
        assert_eq!(tenants(&before, &after), Change::Broadcast(strings(&["changes", "comes", "goes"])));
        assert_eq!(tenants(&before, &before), Change::None);
    }
}

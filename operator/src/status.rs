//! What is said of a pipeline: a pure function of what came of a reconciliation and of what was said before.
//!
//! Every condition is there from the first visit on, each with the generation of the specification that it is about. A condition's transition time changes with its status only, so that what has not
//! changed is written by nobody.

use crate::build::pods::DATA_VOLUME;
use crate::fleet::{Fleet, Shard};
use crate::freshness::{Freshness, UNKNOWN};
use crate::plans::Absent;
use crate::reason::Reason;
use crate::trouble::Trouble;
use crate::validate::Problem;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use millstream_crds::{
    ConditionType, IngestionPipeline, IngestionPipelineStatus, StageName, StageStatus, TopicManagement,
};
use millstream_plan::unread::Unread;
use std::collections::BTreeMap;

/// A message longer than that is cut: it is for people, and a status is written often.
const LONGEST_MESSAGE: usize = 1024;

/// So many shards are named in a message.
const NAMED: usize = 5;

/// Of what the scheduler says, so much stands in a message.
const LONGEST_WORDS: usize = 300;

/// What came of a reconciliation.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What the user has to mend.
    pub problems: Vec<Problem>,
    /// What kept it from being applied: a reason, and a message.
    pub trouble: Option<(Reason, String)>,
    /// The StatefulSets, as they are.
    pub stateful_sets: Vec<StatefulSet>,
    /// Who has which shard, once that is known.
    pub fleet: Option<Fleet>,
    /// What waits for them, once that is known.
    pub freshness: Option<Freshness>,
    /// Why it is not: a reason, and a message.
    pub unheard: Option<(Reason, String)>,
    /// Pods that do not end; whether each has a volume of its own.
    pub lost: BTreeMap<String, bool>,
    /// Pods with a volume for which no node is found, and the scheduler's words.
    pub unplaced: BTreeMap<String, String>,
    /// What is wrong with shards that a person has moved.
    pub pins_ignored: Vec<String>,
    /// What is under way.
    pub doing: Vec<String>,
    /// The topics that were not there when the pipeline began, once that is known.
    pub absent_topics: Option<Absent>,
    /// What its topics wait for, which somebody else makes.
    pub topics: Option<WaitsForTopics>,
    /// It is deleted: what it waits for.
    pub deleting: Option<String>,
}

/// Topics that are not as they are to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitsForTopics {
    /// Which, and why, if that is known.
    pub message: String,
    /// Whoever makes them says that it cannot.
    pub is_refused: bool,
}

impl Outcome {
    /// It could not be applied.
    pub(crate) fn failed(trouble: &Trouble) -> Outcome {
        Outcome { trouble: Some((trouble.reason(), trouble.to_string())), ..Outcome::default() }
    }
}

/// What is to be said now.
pub fn status(
    pipeline: &IngestionPipeline,
    before: Option<&IngestionPipelineStatus>,
    outcome: &Outcome,
    now: &Time,
) -> IngestionPipelineStatus {
    let before = before.cloned().unwrap_or_default();
    let generation = pipeline.metadata.generation;
    let stages = match outcome.stateful_sets.is_empty() {
        true => before.stages.clone(),
        false => StageName::ALL.iter().filter_map(|stage| stage_status(pipeline, &before, *stage, outcome)).collect(),
    };
    let condition = |(type_, status, reason, message): Said| {
        let type_ = type_.as_str();
        let same = before.conditions.iter().find(|it| it.type_ == type_ && it.status == status);
        Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_string(),
            message: message.chars().take(LONGEST_MESSAGE).collect(),
            observed_generation: generation,
            last_transition_time: same.map_or_else(|| now.clone(), |it| it.last_transition_time.clone()),
        }
    };
    let conditions = said(pipeline, &before, outcome, &stages).map(condition).into();
    let (shards, plan, version) = match &outcome.fleet {
        Some(fleet) => {
            let versions: Vec<&str> = fleet.versions.iter().map(String::as_str).collect();
            let version = Some(versions.join(",")).filter(|version| !version.is_empty());
            let shards = format!("{}/{}", owned(fleet), all_shards(pipeline));
            (Some(shards), Some(fleet.plan.to_string()), version.or_else(|| before.version.clone()))
        }
        None => (before.shards.clone(), before.plan.clone(), before.version.clone()),
    };
    // An age of before says nothing once nobody is heard any more.
    let unheard = outcome.unheard.as_ref().map(|_| UNKNOWN.to_owned());
    let freshness = outcome.freshness.as_ref().map(Freshness::text).or(unheard).or_else(|| before.freshness.clone());
    // What was written once stays: topics that it made are there from then on. Of topics that are others' it made none.
    let is_managed = pipeline.spec.kafka.topics != TopicManagement::Existing;
    let (created_topics, created_topics_in) = match (&before.created_topics, &outcome.absent_topics) {
        _ if !is_managed => (None, None),
        (Some(_), _) => (before.created_topics.clone(), before.created_topics_in.clone()),
        (None, Some(Absent { topics, cluster })) => (Some(topics.clone()), cluster.clone()),
        (None, None) => (None, None),
    };
    IngestionPipelineStatus {
        observed_generation: generation,
        conditions,
        stages,
        shards,
        freshness,
        plan,
        version,
        created_topics,
        created_topics_in,
        ..before
    }
}

fn owned(fleet: &Fleet) -> usize {
    fleet.shards.values().filter(|shard| shard.owner.is_some()).count()
}

/// Of all stages that have shards.
fn all_shards(pipeline: &IngestionPipeline) -> usize {
    usize::try_from(pipeline.spec.shards).unwrap_or(0)
        * StageName::ALL.iter().filter(|stage| has_shards(**stage)).count()
}

fn has_shards(stage: StageName) -> bool {
    stage != StageName::Gateway
}

type Said = (ConditionType, &'static str, Reason, String);

fn said(
    pipeline: &IngestionPipeline,
    before: &IngestionPipelineStatus,
    outcome: &Outcome,
    stages: &[StageStatus],
) -> [Said; 5] {
    let wrong = wrong(outcome);
    let waiting: Vec<String> = stages
        .iter()
        .filter(|stage| stage.ready_replicas < stage.replicas)
        .map(|stage| format!("{}: {} of {} workers are ready", stage.name, stage.ready_replicas, stage.replicas))
        .collect();
    let is_paused = pipeline.spec.paused;
    let ready = match &wrong {
        Some((reason, message)) => (ConditionType::Ready, "False", *reason, message.clone()),
        None if outcome.deleting.is_some() => {
            (ConditionType::Ready, "False", Reason::Deleting, outcome.deleting.clone().unwrap_or_default())
        }
        None if outcome.topics.is_some() => (ConditionType::Ready, "False", Reason::TopicsNotReady, of_topics(outcome)),
        None if stages.is_empty() => (ConditionType::Ready, "Unknown", Reason::NotObserved, String::new()),
        None if pipeline.spec.suspend => {
            (ConditionType::Ready, "False", Reason::Suspended, "no workers run while spec.suspend is true".to_owned())
        }
        None if !waiting.is_empty() => (ConditionType::Ready, "False", Reason::WorkersNotReady, waiting.join("; ")),
        None if outcome.fleet.is_none() && before.shards.is_none() => {
            (ConditionType::Ready, "Unknown", Reason::NotObserved, "who has which shard is not known yet".to_owned())
        }
        None => match without_owner(pipeline, outcome) {
            Some(message) => (ConditionType::Ready, "False", Reason::ShardsWithoutOwner, message),
            None => (ConditionType::Ready, "True", Reason::WorkersReady, placed_by_node(outcome).to_owned()),
        },
    };
    let moving = outcome.fleet.as_ref().map_or(0, |fleet| fleet.moving);
    let (status, reason, message) = match &wrong {
        _ if outcome.deleting.is_some() => ("True", Reason::Deleting, outcome.deleting.clone().unwrap_or_default()),
        // What is under way goes on, whatever else is wrong.
        _ if !outcome.doing.is_empty() => ("True", Reason::WorkersChanging, outcome.doing.join("; ")),
        Some(_) => ("False", Reason::NothingToDo, String::new()),
        None if outcome.topics.is_some() => ("True", Reason::TopicsNotReady, of_topics(outcome)),
        None if !waiting.is_empty() => ("True", Reason::WorkersStarting, waiting.join("; ")),
        None if moving > 0 => ("True", Reason::ShardsMoving, "shards move to where they belong".to_owned()),
        None => ("False", Reason::NothingToDo, String::new()),
    };
    let progressing = (ConditionType::Progressing, status, reason, message);
    let degraded = match wrong
        .or_else(|| refused_topics(outcome))
        .or_else(|| outcome.unheard.clone())
        .or_else(|| complaints(outcome))
        .or_else(|| lost(outcome))
        .or_else(|| ignored(outcome))
    {
        Some((reason, message)) => (ConditionType::Degraded, "True", reason, message),
        None => (ConditionType::Degraded, "False", Reason::AsExpected, String::new()),
    };
    let paused = match is_paused {
        true => (
            ConditionType::Paused,
            "True",
            Reason::PausedBySpec,
            "spec.paused is true: the operator changes nothing".to_owned(),
        ),
        false => (ConditionType::Paused, "False", Reason::NotPaused, String::new()),
    };
    [ready, progressing, degraded, paused, retention(pipeline, before, outcome)]
}

fn of_topics(outcome: &Outcome) -> String {
    outcome.topics.iter().map(|waits| waits.message.clone()).collect()
}

fn refused_topics(outcome: &Outcome) -> Option<(Reason, String)> {
    let refused = outcome.topics.as_ref().filter(|waits| waits.is_refused)?;
    Some((Reason::TopicsNotReady, refused.message.clone()))
}

/// Whether records may be deleted before they are processed. No part of whether a pipeline is ready: it works, for now.
fn retention(pipeline: &IngestionPipeline, before: &IngestionPipelineStatus, outcome: &Outcome) -> Said {
    let (status, reason, message) = match &outcome.freshness {
        Some(freshness) if !freshness.at_risk.is_empty() => {
            let named: Vec<String> =
                freshness.at_risk.iter().take(NAMED).map(|(id, risk)| format!("{id}: {}", risk.describe())).collect();
            // The Topic Operator sets back what is not in the KafkaTopic.
            let place = match pipeline.spec.kafka.strimzi {
                Some(_) => "in spec.config of the topic's KafkaTopic, if it has one, or else with kafka-configs.sh,",
                None => "of the topic with kafka-configs.sh",
            };
            let message = format!(
                "{} shards: raise retention.ms (or retention.bytes) {place} at once, then see why the stage is behind; {}",
                freshness.at_risk.len(),
                named.join("; ")
            );
            ("True", Reason::RetentionNear, message)
        }
        Some(freshness) if freshness.shards > 0 && freshness.unknown.is_empty() => {
            ("False", Reason::AsExpected, String::new())
        }
        Some(freshness) => ("Unknown", Reason::NotMeasured, unmeasured(freshness)),
        None => match outcome.unheard.as_ref() {
            Some((_, message)) => ("Unknown", Reason::NotMeasured, format!("nobody can be asked: {message}")),
            None => return as_before(before),
        },
    };
    (ConditionType::RetentionAtRisk, status, reason, message)
}

/// What was said of it last, while nothing was looked at.
fn as_before(before: &IngestionPipelineStatus) -> Said {
    let type_ = ConditionType::RetentionAtRisk;
    let said = before.conditions.iter().find(|it| it.type_ == type_.as_str());
    let statuses = [("True", Reason::RetentionNear), ("False", Reason::AsExpected)];
    let said = said.and_then(|said| Some((statuses.into_iter().find(|(status, _)| *status == said.status)?, said)));
    match said {
        Some(((status, reason), said)) => (type_, status, reason, said.message.clone()),
        None => (type_, "Unknown", Reason::NotMeasured, "no worker was heard yet".to_owned()),
    }
}

/// Of which shards nobody knows what, and why.
fn unmeasured(freshness: &Freshness) -> String {
    let named: Vec<String> = freshness
        .unknown
        .iter()
        .take(NAMED)
        .map(|(id, unread)| match unread {
            None => format!("{id}: nobody has reported yet how far it is"),
            Some(Unread { kept: None, topic, .. }) => {
                format!("{id}: the brokers do not say how long {topic} keeps what is in it: allow DescribeConfigs")
            }
            Some(Unread { topic, .. }) => {
                format!("{id}: it was opened behind a backlog of {topic} and has processed nothing yet")
            }
        })
        .collect();
    match named.is_empty() {
        true => "there is no plan yet".to_owned(),
        false => format!("{} shards: {}", freshness.unknown.len(), named.join("; ")),
    }
}

/// Where Kubernetes does not copy a node's zone to its Pods, standbys are kept apart by node.
fn placed_by_node(outcome: &Outcome) -> &'static str {
    match &outcome.fleet {
        Some(fleet) if fleet.is_zoneless => {
            "standbys are kept apart by node, not by zone: Pods have no label topology.kubernetes.io/zone"
        }
        _ => "",
    }
}

/// Which shards nobody owns, if it is known.
fn without_owner(pipeline: &IngestionPipeline, outcome: &Outcome) -> Option<String> {
    let fleet = outcome.fleet.as_ref()?;
    let missing = all_shards(pipeline).saturating_sub(owned(fleet));
    let named: Vec<String> = fleet
        .shards
        .iter()
        .filter(|(_, shard)| shard.owner.is_none())
        .take(NAMED)
        .map(|(id, shard)| match shard.condition.as_str() {
            "" => format!("{id} is to be {}'s", shard.planned),
            condition => format!("{id}: {condition}"),
        })
        .collect();
    (missing > 0).then(|| format!("{missing} shards have no owner: {}", named.join("; ")))
}

/// What owners say is wrong with their shards.
fn complaints(outcome: &Outcome) -> Option<(Reason, String)> {
    let shards = outcome.fleet.iter().flat_map(|fleet| &fleet.shards);
    let messages: Vec<String> = shards
        .filter(|(_, shard)| !shard.condition.is_empty())
        .take(NAMED)
        .map(|(id, shard)| format!("{id}: {}", shard.condition))
        .collect();
    (!messages.is_empty()).then(|| (Reason::ShardsInTrouble, messages.join("; ")))
}

fn ignored(outcome: &Outcome) -> Option<(Reason, String)> {
    let message = || format!("annotation {}: {}", crate::pins::ANNOTATION, outcome.pins_ignored.join("; "));
    (!outcome.pins_ignored.is_empty()).then(|| (Reason::PinIgnored, message()))
}

/// Workers that Kubernetes waits for in vain.
fn lost(outcome: &Outcome) -> Option<(Reason, String)> {
    let mut messages = Vec::new();
    let without_volume = ", or, with storage.persistentVolumeClaim.onLostNode: Recreate, without its volume";
    for (has_volume, way_out) in [(true, without_volume), (false, "")] {
        let lost: Vec<&str> =
            outcome.lost.iter().filter(|(_, has)| **has == has_volume).map(|(pod, _)| pod.as_str()).collect();
        if !lost.is_empty() {
            messages.push(format!(
                "{} should have ended and did not: its node may be lost; others have its shards; it starts again when the node is back or its Node object is deleted{way_out}",
                lost.join(", ")
            ));
        }
    }
    messages.extend(outcome.unplaced.iter().map(|(pod, why)| {
        let why: String = why.chars().take(LONGEST_WORDS).collect();
        let claim = format!("{DATA_VOLUME}-{pod}");
        format!(
            "{pod} finds no node ({why}): others have its shards; give it room, or, if the node that its volume is bound to is gone for good, delete PersistentVolumeClaim {claim} and the Pod, and it starts elsewhere without its volume"
        )
    }));
    (!messages.is_empty()).then(|| (Reason::WorkerLost, messages.join("; ")))
}

fn wrong(outcome: &Outcome) -> Option<(Reason, String)> {
    if let Some((reason, message)) = &outcome.trouble {
        return Some((*reason, message.clone()));
    }
    let is_secret = |problem: &Problem| problem.field.starts_with("Secret ");
    let messages: Vec<String> = outcome.problems.iter().map(ToString::to_string).collect();
    match outcome.problems.iter().all(is_secret) {
        _ if messages.is_empty() => None,
        true => Some((Reason::SecretMissing, messages.join("; "))),
        false => Some((Reason::InvalidSpec, messages.join("; "))),
    }
}

fn stage_status(
    pipeline: &IngestionPipeline,
    before: &IngestionPipelineStatus,
    stage: StageName,
    outcome: &Outcome,
) -> Option<StageStatus> {
    let name = format!("{}-{}", pipeline.metadata.name.as_deref().unwrap_or_default(), stage.as_str());
    let set = outcome.stateful_sets.iter().find(|set| set.metadata.name.as_deref() == Some(&name))?;
    let ready = set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
    let before = before.stages.iter().find(|it| it.name == stage.as_str());
    // As it was said before, while it is not known.
    let (without_owner, without_standby) = match &outcome.fleet {
        _ if !has_shards(stage) => (0, 0),
        None => before.map_or((0, 0), |it| (it.shards_without_owner, it.shards_without_standby)),
        Some(fleet) => {
            let without = |is_so: fn(&Shard) -> bool| {
                let are_so = fleet.of_stage(stage.as_str()).filter(|(_, shard)| is_so(shard)).count();
                pipeline.spec.shards.saturating_sub(i32::try_from(are_so).unwrap_or(i32::MAX))
            };
            (without(|shard| shard.owner.is_some()), without(|shard| !shard.standbys.is_empty()))
        }
    };
    Some(StageStatus {
        name: stage.as_str().to_owned(),
        replicas: set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0),
        ready_replicas: ready,
        shards_without_owner: without_owner,
        shards_without_standby: without_standby,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Said after what the resource has.
    fn status(pipeline: &IngestionPipeline, outcome: &Outcome, now: &Time) -> IngestionPipelineStatus {
        super::status(pipeline, pipeline.status.as_ref(), outcome, now)
    }
    use crate::freshness::AtRisk;
    use millstream_plan::plan::{ShardId, Version};
    use millstream_plan::unread::Kept;
    use serde_json::json;

    fn pipeline(spec: &serde_json::Value) -> IngestionPipeline {
        let mut object = json!({
            "apiVersion": "ingestion.millstream.dev/v1alpha1", "kind": "IngestionPipeline",
            "metadata": {"name": "orders", "namespace": "shop", "uid": "1", "generation": 3},
            "spec": {"image": "i", "kafka": {"bootstrapServers": ["k:1"]}, "documentStore": {"mongodb": {"uri": {"name": "m", "key": "uri"}}}},
        });
        object["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        serde_json::from_value(object).unwrap()
    }

    fn sets(replicas: i32, ready: i32) -> Outcome {
        let set = |stage: StageName| {
            let name = format!("orders-{}", stage.as_str());
            let object = json!({"metadata": {"name": name}, "spec": {"replicas": replicas, "selector": {}, "serviceName": "s", "template": {}}, "status": {"replicas": replicas, "readyReplicas": ready}});
            serde_json::from_value(object).unwrap()
        };
        Outcome { stateful_sets: StageName::ALL.map(set).into(), ..Outcome::default() }
    }

    fn at(second: i64) -> Time {
        Time(k8s_openapi::jiff::Timestamp::from_second(second).unwrap())
    }

    /// Status and reason of each condition, by type.
    fn short(status: &IngestionPipelineStatus) -> Vec<String> {
        status.conditions.iter().map(|it| format!("{} {} {}", it.type_, it.status, it.reason)).collect()
    }

    #[test]
    fn every_condition_is_there_from_the_first_visit_on() {
        let said = status(&pipeline(&json!({})), &sets(2, 2), &at(1));
        assert_eq!(short(&said)[0], "Ready Unknown NotObserved");
        let said = status(&pipeline(&json!({})), &known(2, 2), &at(1));
        let expected = [
            "Ready True WorkersReady",
            "Progressing False NothingToDo",
            "Degraded False AsExpected",
            "Paused False NotPaused",
            "RetentionAtRisk Unknown NotMeasured",
        ];
        assert_eq!(short(&said), expected);
        assert!(
            said.conditions.iter().all(|it| it.observed_generation == Some(3)) && said.observed_generation == Some(3)
        );
    }

    #[test]
    fn what_is_missing_is_said() {
        let said = status(&pipeline(&json!({})), &sets(2, 1), &at(1));
        assert_eq!(short(&said)[..2], ["Ready False WorkersNotReady", "Progressing True WorkersStarting"]);
        assert!(said.conditions[0].message.contains("action: 1 of 2 workers are ready"), "{:?}", said.conditions[0]);
        assert_eq!(
            short(&status(&pipeline(&json!({"suspend": true})), &sets(0, 0), &at(1)))[0],
            "Ready False Suspended"
        );
        assert_eq!(
            short(&status(&pipeline(&json!({"paused": true})), &sets(2, 2), &at(1)))[3],
            "Paused True PausedBySpec"
        );
        assert_eq!(short(&status(&pipeline(&json!({})), &Outcome::default(), &at(1)))[0], "Ready Unknown NotObserved");
    }

    #[test]
    fn a_worker_that_does_not_end_is_told_of() {
        let unplaced = BTreeMap::from([("orders-action-0".to_owned(), "node affinity".to_owned())]);
        let said = status(&pipeline(&json!({})), &Outcome { unplaced, ..known(2, 2) }, &at(1));
        assert_eq!(short(&said)[2], "Degraded True WorkerLost");
        let message = &said.conditions[2].message;
        assert!(
            message.starts_with("orders-action-0 finds no node (node affinity): ")
                && message.contains("delete PersistentVolumeClaim data-orders-action-0 and the Pod"),
            "{message}"
        );
        let said = |lost: &[(&str, bool)]| {
            let lost = lost.iter().map(|(pod, has_volume)| ((*pod).to_owned(), *has_volume)).collect();
            let said = status(&pipeline(&json!({})), &Outcome { lost, ..known(2, 2) }, &at(1));
            assert_eq!(short(&said)[2], "Degraded True WorkerLost");
            said.conditions[2].message.clone()
        };
        let (bound, free) = (said(&[("orders-action-1", true)]), said(&[("orders-unify-0", false)]));
        assert!(bound.starts_with("orders-action-1 should have ended"), "{bound}");
        assert!(bound.contains("storage.persistentVolumeClaim.onLostNode: Recreate"), "{bound}");
        assert!(free.ends_with("or its Node object is deleted"), "what it does not have is no way out: {free}");
        assert_eq!(said(&[("orders-unify-0", false), ("orders-action-1", true)]), format!("{bound}; {free}"));
    }

    /// Every shard owned by its stage's first worker, and followed by its second.
    fn fleet() -> Fleet {
        let stages = StageName::ALL.into_iter().filter(|stage| has_shards(*stage));
        let shards = stages.flat_map(|stage| (0..8).map(move |shard| (stage.as_str(), shard))).map(|(stage, shard)| {
            let worker = |ordinal: u32| format!("orders-{stage}-{ordinal}");
            let placed = Shard {
                planned: worker(0),
                owner: Some(worker(0)),
                standbys: [worker(1)].into(),
                condition: String::new(),
            };
            (ShardId::new(stage, shard), placed)
        });
        let versions = ["1.2.0", "1.3.0"].map(str::to_owned).into();
        Fleet { plan: Version { term: 2, number: 7 }, shards: shards.collect(), versions, ..Fleet::default() }
    }

    fn known(replicas: i32, ready: i32) -> Outcome {
        Outcome { fleet: Some(fleet()), ..sets(replicas, ready) }
    }

    #[test]
    fn who_has_which_shard_is_said_in_short() {
        let with = |fleet: Fleet| Outcome { fleet: Some(fleet), ..sets(2, 2) };
        let said = status(&pipeline(&json!({})), &with(fleet()), &at(1));
        assert_eq!((said.shards.as_deref(), said.plan.as_deref()), (Some("24/24"), Some("2.7")));
        assert_eq!(said.version.as_deref(), Some("1.2.0,1.3.0"));
        assert_eq!(short(&said)[..2], ["Ready True WorkersReady", "Progressing False NothingToDo"]);
        let mut some = fleet();
        let lost = some.shards.get_mut(&ShardId::new("action", 3)).unwrap();
        (lost.owner, lost.condition) = (None, "orders-action-1: the disk is full".to_owned());
        some.shards.get_mut(&ShardId::new("unify", 0)).unwrap().standbys.clear();
        some.moving = 1;
        let said = status(&pipeline(&json!({})), &with(some), &at(1));
        assert_eq!(said.shards.as_deref(), Some("23/24"));
        let expected =
            ["Ready False ShardsWithoutOwner", "Progressing True ShardsMoving", "Degraded True ShardsInTrouble"];
        assert_eq!(short(&said)[..3], expected);
        assert!(
            said.conditions[0].message.contains("1 shards have no owner: action[3]: orders-action-1: the disk is full")
        );
        let counts = |name: &str| {
            let stage = said.stages.iter().find(|stage| stage.name == name).unwrap();
            (stage.shards_without_owner, stage.shards_without_standby)
        };
        assert_eq!((counts("action"), counts("unify"), counts("gateway")), ((1, 0), (0, 1), (0, 0)));
    }

    #[test]
    fn that_zones_are_not_known_is_said_and_nothing_is_wrong() {
        let zoneless = Fleet { is_zoneless: true, ..fleet() };
        let said = status(&pipeline(&json!({})), &Outcome { fleet: Some(zoneless), ..sets(2, 2) }, &at(1));
        assert_eq!(short(&said)[0], "Ready True WorkersReady");
        assert!(said.conditions[0].message.contains("topology.kubernetes.io/zone"), "{:?}", said.conditions[0]);
        let said = status(&pipeline(&json!({})), &known(2, 2), &at(1));
        assert_eq!(said.conditions[0].message, "");
    }

    #[test]
    fn what_the_log_keeps_from_us_changes_nothing_that_workers_say() {
        let unheard = Outcome { unheard: Some((Reason::LogUnavailable, "no broker".to_owned())), ..sets(2, 2) };
        let mut pipeline = pipeline(&json!({}));
        pipeline.status = Some(status(&pipeline, &Outcome { fleet: Some(fleet()), ..sets(2, 2) }, &at(1)));
        let said = status(&pipeline, &unheard, &at(2));
        assert_eq!(short(&said)[0], "Ready True WorkersReady");
        assert_eq!((short(&said)[2].as_str(), said.shards.as_deref()), ("Degraded True LogUnavailable", Some("24/24")));
    }

    #[test]
    fn what_a_deleted_pipeline_waits_for_is_said() {
        let deleting = Some("2 workers end".to_owned());
        let said = status(&pipeline(&json!({})), &Outcome { deleting: deleting.clone(), ..Outcome::default() }, &at(1));
        assert_eq!(
            short(&said)[..3],
            ["Ready False Deleting", "Progressing True Deleting", "Degraded False AsExpected"]
        );
        let trouble = Some((Reason::LogUnavailable, "no broker".to_owned()));
        let said = status(&pipeline(&json!({})), &Outcome { deleting, trouble, ..Outcome::default() }, &at(1));
        let expected = ["Ready False LogUnavailable", "Progressing True Deleting", "Degraded True LogUnavailable"];
        assert_eq!(short(&said)[..3], expected);
    }

    #[test]
    fn which_topics_a_pipeline_made_is_written_once_and_forgotten_when_topics_become_others() {
        let absent = |topic: &str, cluster: &str| {
            let absent = Absent { topics: vec![topic.to_owned()], cluster: Some(cluster.to_owned()) };
            Outcome { absent_topics: Some(absent), ..sets(2, 2) }
        };
        let made = |status: IngestionPipelineStatus| (status.created_topics, status.created_topics_in);
        let mut pipeline = pipeline(&json!({}));
        assert_eq!(made(status(&pipeline, &sets(2, 2), &at(1))), (None, None));
        pipeline.status = Some(status(&pipeline, &absent("a", "c1"), &at(1)));
        let again = made(status(&pipeline, &absent("b", "c2"), &at(2)));
        assert_eq!(again, (Some(vec!["a".to_owned()]), Some("c1".to_owned())));
        pipeline.spec.kafka.topics = TopicManagement::Existing;
        assert_eq!(made(status(&pipeline, &sets(2, 2), &at(3))), (None, None));
    }

    #[test]
    fn what_is_under_way_is_said() {
        let doing = Outcome { doing: vec!["shards leave orders-action-1".to_owned()], ..sets(2, 2) };
        let said = status(&pipeline(&json!({})), &doing, &at(1));
        assert_eq!(short(&said)[1], "Progressing True WorkersChanging");
        assert_eq!(said.conditions[1].message, "shards leave orders-action-1");
        // It goes on, whatever else is refused.
        let refused = Outcome { trouble: Some((Reason::ObjectRefused, "a Service".to_owned())), ..doing };
        let said = status(&pipeline(&json!({})), &refused, &at(1));
        assert_eq!(short(&said)[1..3], ["Progressing True WorkersChanging", "Degraded True ObjectRefused"]);
    }

    fn waits(oldest_ms: Option<u64>) -> Freshness {
        Freshness { oldest_ms, shards: 24, ..Freshness::default() }
    }

    #[test]
    fn freshness_and_whether_retention_is_at_risk_are_said() {
        let mut pipeline = pipeline(&json!({}));
        let with = |freshness: Freshness| Outcome { freshness: Some(freshness), ..known(2, 2) };
        let said = status(&pipeline, &with(waits(Some(12_400))), &at(1));
        assert_eq!(
            (said.freshness.as_deref(), short(&said)[4].as_str()),
            (Some("12s"), "RetentionAtRisk False AsExpected")
        );
        let hour_ms = 3_600_000;
        let unread = Unread {
            topic: "p.g1.actions".to_owned(),
            watermark_ms: Some(1),
            age_ms: Some(5 * hour_ms),
            kept: Some(Kept::For(8 * hour_ms)),
            near_start: false,
        };
        let risk = AtRisk { unread: unread.clone(), age_ms: unread.age_ms, is_owned: true };
        let at_risk = [(ShardId::new("action", 3), risk)].into();
        let risky = status(&pipeline, &with(Freshness { at_risk, ..waits(Some(5 * hour_ms)) }), &at(2));
        assert_eq!(short(&risky)[0], "Ready True WorkersReady", "it works, for now");
        assert_eq!(short(&risky)[4], "RetentionAtRisk True RetentionNear");
        let message = &risky.conditions[4].message;
        assert!(message.starts_with("1 shards: raise retention.ms"), "{message}");
        let expected = "action[3]: what it has not processed of p.g1.actions is up to 5h old, and the topic deletes what is older than 8h";
        assert!(message.ends_with(expected), "{message}");
        let unknown =
            vec![(ShardId::new("unify", 1), None), (ShardId::new("unify", 2), Some(Unread { kept: None, ..unread }))];
        let not_known = status(&pipeline, &with(Freshness { unknown, ..waits(None) }), &at(2));
        assert_eq!(
            (not_known.freshness.as_deref(), short(&not_known)[4].as_str()),
            (Some("unknown"), "RetentionAtRisk Unknown NotMeasured")
        );
        let message = &not_known.conditions[4].message;
        assert!(
            message.contains("unify[1]: nobody has reported") && message.contains("allow DescribeConfigs"),
            "{message}"
        );
        // Nothing was looked at, and nothing changes; nobody answers, and nothing is known.
        pipeline.status = Some(risky.clone());
        let again = status(&pipeline, &sets(2, 2), &at(3));
        assert_eq!((&again.freshness, &again.conditions[4]), (&risky.freshness, &risky.conditions[4]));
        let unheard = Outcome { unheard: Some((Reason::LogUnavailable, "no broker".to_owned())), ..sets(2, 2) };
        let away = status(&pipeline, &unheard, &at(3));
        assert_eq!(
            (away.freshness.as_deref(), short(&away)[4].as_str()),
            (Some("unknown"), "RetentionAtRisk Unknown NotMeasured")
        );
    }

    #[test]
    fn a_status_stays_small_when_every_shard_of_many_is_in_trouble() {
        let unread = Unread { topic: "t".repeat(200), age_ms: Some(1), kept: Some(Kept::For(1)), ..Unread::default() };
        let risk = AtRisk { unread, age_ms: Some(1), is_owned: false };
        let shards =
            (0..1_024).flat_map(|shard| ["unify", "action", "reaction"].map(|stage| ShardId::new(stage, shard)));
        let at_risk = shards.clone().map(|id| (id, risk.clone())).collect();
        let lost = Shard { condition: "c".repeat(300), ..Shard::default() };
        let fleet = Fleet { shards: shards.map(|id| (id, lost.clone())).collect(), ..Fleet::default() };
        let freshness = Some(Freshness { at_risk, ..waits(None) });
        let said = status(
            &pipeline(&json!({"shards": 1_024})),
            &Outcome { fleet: Some(fleet), freshness, ..sets(2, 2) },
            &at(1),
        );
        assert!(short(&said)[4].contains("True") && short(&said)[2].contains("True"), "{:?}", short(&said));
        let bytes = serde_json::to_vec(&said).unwrap().len();
        assert!(bytes < 32_000, "{bytes} bytes");
    }

    #[test]
    fn a_transition_time_changes_with_the_status_only() {
        let mut pipeline = pipeline(&json!({}));
        pipeline.status = Some(status(&pipeline, &sets(2, 1), &at(1)));
        let again = status(&pipeline, &sets(2, 1), &at(2));
        assert_eq!(Some(&again), pipeline.status.as_ref(), "nothing to write");
        let ready = status(&pipeline, &known(2, 2), &at(3));
        assert_eq!(ready.conditions[0].last_transition_time, at(3));
        assert_eq!(ready.conditions[3].last_transition_time, at(1));
    }

    #[test]
    fn problems_and_trouble_are_said_and_what_was_observed_stays() {
        let mut pipeline = pipeline(&json!({}));
        pipeline.status = Some(status(&pipeline, &sets(2, 2), &at(1)));
        let problem = |field: &str| Problem { field: field.to_owned(), message: "do this".to_owned() };
        let of = |problems: Vec<Problem>| status(&pipeline, &Outcome { problems, ..Outcome::default() }, &at(2));
        let invalid = of(vec![problem("spec.x"), problem("Secret s")]);
        assert_eq!(
            (short(&invalid)[0].as_str(), short(&invalid)[2].as_str()),
            ("Ready False InvalidSpec", "Degraded True InvalidSpec")
        );
        assert_eq!(invalid.conditions[0].message, "spec.x: do this; Secret s: do this");
        assert_eq!(short(&of(vec![problem("Secret s")]))[2], "Degraded True SecretMissing");
        assert_eq!(invalid.stages, pipeline.status.as_ref().unwrap().stages);
        let trouble = Outcome { trouble: Some((Reason::Forbidden, "x".repeat(5000))), ..Outcome::default() };
        let said = status(&pipeline, &trouble, &at(2));
        assert_eq!(
            (short(&said)[2].as_str(), said.conditions[0].message.len()),
            ("Degraded True Forbidden", LONGEST_MESSAGE)
        );
    }
}

//! What is said of a pipeline: a pure function of what came of a reconciliation and of what was said before.
//!
//! Every condition is there from the first visit on, each with the generation of the specification that it is about. A condition's transition time changes with its status only, so that what has not
//! changed is written by nobody.

use crate::trouble::Trouble;
use crate::validate::Problem;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use millstream_crds::{ConditionType, IngestionPipeline, IngestionPipelineStatus, StageName, StageStatus};

/// A message longer than that is cut: it is for people, and a status is written often.
const LONGEST_MESSAGE: usize = 1024;

/// What came of a reconciliation.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What the user has to mend.
    pub problems: Vec<Problem>,
    /// What kept it from being applied: a reason, and a message.
    pub trouble: Option<(&'static str, String)>,
    /// The StatefulSets, as they are.
    pub stateful_sets: Vec<StatefulSet>,
}

impl Outcome {
    /// It could not be applied.
    pub(crate) fn failed(trouble: &Trouble) -> Outcome {
        Outcome { trouble: Some((trouble.reason(), trouble.to_string())), ..Outcome::default() }
    }
}

/// What is to be said now.
pub fn status(pipeline: &IngestionPipeline, outcome: &Outcome, now: &Time) -> IngestionPipelineStatus {
    let before = pipeline.status.clone().unwrap_or_default();
    let generation = pipeline.metadata.generation;
    let stages = match outcome.stateful_sets.is_empty() {
        true => before.stages.clone(),
        false => StageName::ALL.iter().filter_map(|stage| stage_status(pipeline, *stage, outcome)).collect(),
    };
    let condition = |(type_, status, reason, message): Said| {
        let type_ = type_.as_str();
        let same = before.conditions.iter().find(|it| it.type_ == type_ && it.status == status);
        Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message.chars().take(LONGEST_MESSAGE).collect(),
            observed_generation: generation,
            last_transition_time: same.map_or_else(|| now.clone(), |it| it.last_transition_time.clone()),
        }
    };
    let conditions = said(pipeline, outcome, &stages).map(condition).into();
    IngestionPipelineStatus { observed_generation: generation, conditions, stages, ..before }
}

type Said = (ConditionType, &'static str, &'static str, String);

fn said(pipeline: &IngestionPipeline, outcome: &Outcome, stages: &[StageStatus]) -> [Said; 5] {
    let wrong = wrong(outcome);
    let waiting: Vec<String> = stages
        .iter()
        .filter(|stage| stage.ready_replicas < stage.replicas)
        .map(|stage| format!("{}: {} of {} workers are ready", stage.name, stage.ready_replicas, stage.replicas))
        .collect();
    let is_paused = pipeline.spec.paused;
    let ready = match &wrong {
        Some((reason, message)) => (ConditionType::Ready, "False", *reason, message.clone()),
        None if stages.is_empty() => (ConditionType::Ready, "Unknown", "NotObserved", String::new()),
        None if pipeline.spec.suspend => {
            (ConditionType::Ready, "False", "Suspended", "no workers run while spec.suspend is true".to_owned())
        }
        None if waiting.is_empty() => (ConditionType::Ready, "True", "WorkersReady", String::new()),
        None => (ConditionType::Ready, "False", "WorkersNotReady", waiting.join("; ")),
    };
    let progressing = match &wrong {
        None if !waiting.is_empty() => (ConditionType::Progressing, "True", "WorkersStarting", waiting.join("; ")),
        _ => (ConditionType::Progressing, "False", "NothingToDo", String::new()),
    };
    let degraded = match wrong {
        Some((reason, message)) => (ConditionType::Degraded, "True", reason, message),
        None => (ConditionType::Degraded, "False", "AsExpected", String::new()),
    };
    let paused = match is_paused {
        true => (
            ConditionType::Paused,
            "True",
            "PausedBySpec",
            "spec.paused is true: the operator changes nothing".to_owned(),
        ),
        false => (ConditionType::Paused, "False", "NotPaused", String::new()),
    };
    let retention = (ConditionType::RetentionAtRisk, "Unknown", "NotMeasured", "lag is not observed yet".to_owned());
    [ready, progressing, degraded, paused, retention]
}

fn wrong(outcome: &Outcome) -> Option<(&'static str, String)> {
    if let Some((reason, message)) = &outcome.trouble {
        return Some((reason, message.clone()));
    }
    let is_secret = |problem: &Problem| problem.field.starts_with("Secret ");
    let messages: Vec<String> = outcome.problems.iter().map(ToString::to_string).collect();
    match outcome.problems.iter().all(is_secret) {
        _ if messages.is_empty() => None,
        true => Some(("SecretMissing", messages.join("; "))),
        false => Some(("InvalidSpec", messages.join("; "))),
    }
}

fn stage_status(pipeline: &IngestionPipeline, stage: StageName, outcome: &Outcome) -> Option<StageStatus> {
    let name = format!("{}-{}", pipeline.metadata.name.as_deref().unwrap_or_default(), stage.as_str());
    let set = outcome.stateful_sets.iter().find(|set| set.metadata.name.as_deref() == Some(&name))?;
    let ready = set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
    Some(StageStatus {
        name: stage.as_str().to_owned(),
        replicas: set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0),
        ready_replicas: ready,
        ..StageStatus::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
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
    fn a_transition_time_changes_with_the_status_only() {
        let mut pipeline = pipeline(&json!({}));
        pipeline.status = Some(status(&pipeline, &sets(2, 1), &at(1)));
        let again = status(&pipeline, &sets(2, 1), &at(2));
        assert_eq!(Some(&again), pipeline.status.as_ref(), "nothing to write");
        let ready = status(&pipeline, &sets(2, 2), &at(3));
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
        let trouble = Outcome { trouble: Some(("Forbidden", "x".repeat(5000))), ..Outcome::default() };
        let said = status(&pipeline, &trouble, &at(2));
        assert_eq!(
            (short(&said)[2].as_str(), said.conditions[0].message.len()),
            ("Degraded True Forbidden", LONGEST_MESSAGE)
        );
    }
}

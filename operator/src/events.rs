//! What happened to a pipeline, for `kubectl describe`: a pure function of what was said before and what is said now.
//!
//! An Event is made when a condition changes its status or its reason, so that there are as many kinds of Events as there are reasons, and none while nothing changes.

use crate::reason::Reason;
use millstream_crds::{ConditionType, IngestionPipelineStatus};

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happening {
    /// Somebody should look.
    pub is_warning: bool,
    /// One of the conditions' reasons, or `Recovered`.
    pub reason: String,
    /// For people.
    pub note: String,
}

/// What happened between two statuses.
pub fn happenings(before: Option<&IngestionPipelineStatus>, now: &IngestionPipelineStatus) -> Vec<Happening> {
    let of = |status: &IngestionPipelineStatus, type_: ConditionType| {
        status.conditions.iter().find(|it| it.type_ == type_.as_str()).cloned()
    };
    let changed = |type_: ConditionType| {
        let was = before.and_then(|before| of(before, type_));
        let is = of(now, type_)?;
        let is_same = was.as_ref().is_some_and(|was| (&was.status, &was.reason) == (&is.status, &is.reason));
        (!is_same).then_some((was, is))
    };
    let mut happenings = Vec::new();
    let mut says = |is_warning: bool, reason: &str, note: &str| {
        let happening = Happening { is_warning, reason: reason.to_owned(), note: note.to_owned() };
        // What is wrong makes a pipeline degraded and not ready: that is one thing.
        if !happenings.iter().any(|other: &Happening| other.reason == happening.reason) {
            happenings.push(happening);
        }
    };
    if let Some((was, is)) = changed(ConditionType::Degraded) {
        match is.status.as_str() {
            "True" => says(true, &is.reason, &is.message),
            _ if was.is_some_and(|was| was.status == "True") => {
                says(false, Reason::Recovered.as_str(), "nothing is wrong any more")
            }
            _ => {}
        }
    }
    if let Some((_, is)) = changed(ConditionType::Ready) {
        match (is.status.as_str(), is.reason.as_str()) {
            ("True", reason) => says(false, reason, "all workers are ready, and every shard has an owner"),
            ("False", reason) if [Reason::Suspended, Reason::Deleting].iter().any(|it| it.as_str() == reason) => {
                says(false, &is.reason, &is.message);
            }
            // What begins is not ready yet.
            ("False", reason)
                if [Reason::WorkersNotReady, Reason::TopicsNotReady].iter().any(|it| it.as_str() == reason)
                    && before.is_none_or(|before| before.stages.is_empty()) => {}
            ("False", _) => says(true, &is.reason, &is.message),
            _ => {}
        }
    }
    for type_ in [ConditionType::Progressing, ConditionType::RetentionAtRisk, ConditionType::Paused] {
        match changed(type_) {
            Some((_, is)) if is.status == "True" => {
                says(type_ == ConditionType::RetentionAtRisk, &is.reason, &is.message);
            }
            Some((Some(was), is)) if type_ == ConditionType::Paused && was.status == "True" => {
                says(false, &is.reason, "the operator makes changes again");
            }
            _ => {}
        }
    }
    happenings
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status(conditions: &[(&str, &str, &str)]) -> IngestionPipelineStatus {
        let condition = |(type_, status, reason): &(&str, &str, &str)| json!({"type": type_, "status": status, "reason": reason, "message": format!("why {reason}"), "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let conditions: Vec<_> = conditions.iter().map(condition).collect();
        let stages = json!([{"name": "action", "replicas": 2, "readyReplicas": 2}]);
        serde_json::from_value(json!({"conditions": conditions, "stages": stages})).unwrap()
    }

    /// Kind and reason of each.
    fn short(before: Option<&IngestionPipelineStatus>, now: &IngestionPipelineStatus) -> Vec<(bool, String)> {
        happenings(before, now).into_iter().map(|it| (it.is_warning, it.reason)).collect()
    }

    #[test]
    fn what_changes_is_told_once_and_what_stays_is_not() {
        let well = status(&[("Ready", "True", "WorkersReady"), ("Degraded", "False", "AsExpected")]);
        assert_eq!(short(None, &well), [(false, "WorkersReady".to_owned())]);
        assert_eq!(short(Some(&well), &well), []);
        let ill = status(&[("Ready", "False", "InvalidSpec"), ("Degraded", "True", "InvalidSpec")]);
        assert_eq!(short(Some(&well), &ill), [(true, "InvalidSpec".to_owned())]);
        assert_eq!(happenings(Some(&well), &ill)[0].note, "why InvalidSpec");
        let both = [(false, "Recovered".to_owned()), (false, "WorkersReady".to_owned())];
        assert_eq!(short(Some(&ill), &well), both);
        let other = status(&[("Ready", "False", "ObjectRefused"), ("Degraded", "True", "ObjectRefused")]);
        assert_eq!(short(Some(&ill), &other), [(true, "ObjectRefused".to_owned())]);
    }

    #[test]
    fn what_a_user_wanted_is_no_warning() {
        let well = status(&[("Ready", "True", "WorkersReady"), ("Paused", "False", "NotPaused")]);
        let suspended = status(&[("Ready", "False", "Suspended"), ("Paused", "False", "NotPaused")]);
        assert_eq!(short(Some(&well), &suspended), [(false, "Suspended".to_owned())]);
        let paused = status(&[("Ready", "True", "WorkersReady"), ("Paused", "True", "PausedBySpec")]);
        assert_eq!(short(Some(&well), &paused), [(false, "PausedBySpec".to_owned())]);
        assert_eq!(short(Some(&paused), &well), [(false, "NotPaused".to_owned())]);
        let moving = status(&[("Progressing", "True", "ShardsMoving"), ("RetentionAtRisk", "True", "LagTooOld")]);
        assert_eq!(short(None, &moving), [(false, "ShardsMoving".to_owned()), (true, "LagTooOld".to_owned())]);
    }

    #[test]
    fn a_pipeline_that_begins_is_not_warned_of() {
        let begins = status(&[("Ready", "False", "WorkersNotReady"), ("Progressing", "True", "WorkersStarting")]);
        let empty = IngestionPipelineStatus { stages: Vec::new(), ..begins.clone() };
        assert_eq!(short(None, &begins), [(false, "WorkersStarting".to_owned())]);
        assert_eq!(short(Some(&empty), &begins), []);
    }
}

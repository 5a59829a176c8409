//! Tells what came of a reconciliation: as status, as Events, as metrics.
//!
//! What a person or a script waits for (a condition's status or reason, the generation that it is about, the first age that is known) is written at once. What changes all the time while shards move (counts, messages) is
//! written every 30 s at most: every write reaches everybody who watches.

use crate::admin::Name;
use crate::controller::tell_status;
use crate::events::{Happening, happenings};
use crate::freshness::UNKNOWN;
use crate::metrics::Metrics;
use crate::status::{Outcome, status};
use crate::trouble::Trouble;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use millstream_crds::{IngestionPipeline, IngestionPipelineStatus};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often what is not waited for is written.
const EVERY: Duration = Duration::from_secs(30);
/// What Kubernetes takes as an Event's note, in bytes.
const LONGEST_NOTE: usize = 1_000;

/// Tells of all pipelines.
pub(crate) struct Teller {
    client: Client,
    recorder: Recorder,
    metrics: Arc<Metrics>,
    /// What was said last of each pipeline, and when, by uid. What the watch has heard may be older.
    written: Mutex<HashMap<String, (Instant, IngestionPipelineStatus)>>,
}

impl Teller {
    pub(crate) fn new(client: Client, operator: &str, metrics: Arc<Metrics>) -> Teller {
        let reporter = Reporter { controller: crate::FIELD_MANAGER.to_owned(), instance: Some(operator.to_owned()) };
        let recorder = Recorder::new(client.clone(), reporter);
        Teller { client, recorder, metrics, written: Mutex::default() }
    }

    /// Says what came of it; after how long it is to be called again, when something is left to say.
    ///
    /// # Errors
    /// [`Trouble`]: the status could not be written.
    pub(crate) async fn tell(
        &self,
        pipeline: &IngestionPipeline,
        outcome: &Outcome,
    ) -> Result<Option<Duration>, Trouble> {
        let uid = pipeline.metadata.uid.clone().unwrap_or_default();
        let last = self.written().get(&uid).cloned();
        let (since, before) = match last {
            Some((at, said)) => (Some(at.elapsed()), Some(said)),
            None => (None, pipeline.status.clone()),
        };
        let said = status(pipeline, before.as_ref(), outcome, &Time(k8s_openapi::jiff::Timestamp::now()));
        self.metrics.pipeline(pipeline, &said, outcome.fleet.as_ref());
        let before = before.as_ref();
        if before == Some(&said) {
            return Ok(None);
        }
        if let Some(left) = since.and_then(|since| EVERY.checked_sub(since)).filter(|_| !is_waited_for(before, &said)) {
            return Ok(Some(left));
        }
        tell_status(&self.client, pipeline, &said).await?;
        self.tell_events(pipeline, before, &said).await;
        self.written().insert(uid, (Instant::now(), said));
        Ok(None)
    }

    /// The topics that a pipeline made, as was said last. What the watch has heard may be older.
    pub(crate) fn created_topics(&self, pipeline: &IngestionPipeline) -> Option<Vec<String>> {
        let uid = pipeline.metadata.uid.as_deref().unwrap_or_default();
        let written = self.written();
        let said = written.get(uid).map(|(_, said)| said).or(pipeline.status.as_ref());
        said.and_then(|said| said.created_topics.clone())
    }

    async fn tell_events(
        &self,
        pipeline: &IngestionPipeline,
        before: Option<&IngestionPipelineStatus>,
        said: &IngestionPipelineStatus,
    ) {
        for happening in happenings(before, said) {
            self.event(pipeline, &happening).await;
        }
    }

    /// Says that something happened to a pipeline.
    pub(crate) async fn event(&self, pipeline: &IngestionPipeline, happening: &Happening) {
        self.publish(&pipeline.object_ref(&()), None, happening).await;
    }

    /// The same, said of the operator's own Pod: in a namespace that is being deleted nothing can be created.
    pub(crate) async fn elsewhere(&self, pipeline: &IngestionPipeline, operator: &Name, happening: &Happening) {
        tracing::warn!(reason = happening.reason, "{}", happening.note);
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(operator.name.clone()),
            namespace: Some(operator.namespace.clone()),
            ..ObjectReference::default()
        };
        self.publish(&about, Some(pipeline.object_ref(&())), happening).await;
    }

    async fn publish(&self, about: &ObjectReference, secondary: Option<ObjectReference>, happening: &Happening) {
        let event = Event {
            type_: if happening.is_warning { EventType::Warning } else { EventType::Normal },
            reason: happening.reason.clone(),
            note: Some(cut(happening.note.clone())).filter(|note| !note.is_empty()),
            action: "Reconcile".to_owned(),
            secondary,
        };
        // An Event is a courtesy: what it says is in the status or the log as well.
        if let Err(error) = self.recorder.publish(&event, about).await {
            tracing::warn!(%error, reason = event.reason, "an Event is not told");
        }
    }

    fn written(&self) -> MutexGuard<'_, HashMap<String, (Instant, IngestionPipelineStatus)>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Only these pipelines are there, by uid.
    pub(crate) fn retain(&self, is_there: impl Fn(&str) -> bool) {
        self.written().retain(|uid, _| is_there(uid));
        self.metrics.retain(is_there);
    }
}

fn cut(mut note: String) -> String {
    note.truncate(note.floor_char_boundary(LONGEST_NOTE));
    note
}

/// Somebody may wait for what has changed.
fn is_waited_for(before: Option<&IngestionPipelineStatus>, said: &IngestionPipelineStatus) -> bool {
    let short = |condition: &Condition| {
        let Condition { type_, status, reason, observed_generation, .. } = condition.clone();
        (type_, status, reason, observed_generation)
    };
    let all = |status: &IngestionPipelineStatus| status.conditions.iter().map(short).collect::<Vec<_>>();
    let short =
        |status: &IngestionPipelineStatus| (status.observed_generation, all(status), status.created_topics.clone());
    let is_known = |status: &IngestionPipelineStatus| status.freshness.as_deref().is_some_and(|it| it != UNKNOWN);
    before.is_none_or(|before| short(before) != short(said) || !is_known(before) && is_known(said))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn only_what_somebody_waits_for_is_written_at_once() {
        let status = |more: &Value| -> IngestionPipelineStatus {
            let mut condition = json!({"type": "Ready", "status": "True", "reason": "r", "message": "m", "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z"});
            condition.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            serde_json::from_value(json!({"observedGeneration": 1, "conditions": [condition], "shards": "1/24"}))
                .unwrap()
        };
        let before = status(&json!({}));
        assert!(is_waited_for(None, &before));
        for more in [json!({"status": "False"}), json!({"reason": "other"}), json!({"observedGeneration": 2})] {
            assert!(is_waited_for(Some(&before), &status(&more)), "{more}");
        }
        assert!(is_waited_for(
            Some(&before),
            &IngestionPipelineStatus { created_topics: Some(vec![]), ..before.clone() }
        ));
        let counted =
            IngestionPipelineStatus { shards: Some("2/24".to_owned()), ..status(&json!({"message": "other"})) };
        assert!(!is_waited_for(Some(&before), &counted));
        let fresh = |text: &str| IngestionPipelineStatus { freshness: Some(text.to_owned()), ..before.clone() };
        assert!(is_waited_for(Some(&before), &fresh("12s")), "the first age that is known");
        assert!(is_waited_for(Some(&fresh(UNKNOWN)), &fresh("12s")));
        assert!(!is_waited_for(Some(&before), &fresh(UNKNOWN)));
        assert!(!is_waited_for(Some(&fresh("11s")), &fresh("12s")));
        assert!(!is_waited_for(Some(&fresh("12s")), &fresh(UNKNOWN)), "while a shard moves, say");
    }

    #[test]
    fn a_note_is_cut_between_letters() {
        assert_eq!(cut("é".repeat(600)).chars().count(), 500);
    }
}

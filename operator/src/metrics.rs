//! The operator's metrics, in the Prometheus text format. Labels that name a pipeline go with it.

use crate::fleet::Fleet;
use crate::reason::Reason;
use millstream_crds::{ConditionType, IngestionPipeline, IngestionPipelineStatus};
use millstream_shard::topics::SHARDED;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Reconciled {
    kind: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfCondition {
    namespace: String,
    pipeline: String,
    condition: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfShards {
    namespace: String,
    pipeline: String,
    stage: &'static str,
    state: &'static str,
}

type Histograms = Family<Kind, Histogram, fn() -> Histogram>;

/// Everything that the operator counts.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    leader: Gauge,
    reconciles: Family<Reconciled, Counter>,
    seconds: Histograms,
    conditions: Family<OfCondition, Gauge>,
    shards: Family<OfShards, Gauge>,
    /// Namespace and name of each pipeline that is shown, by uid.
    shown: Mutex<BTreeMap<String, (String, String)>>,
}

/// What is told of a stage's shards.
const STATES: [&str; 3] = ["wanted", "owned", "warm"];

impl Default for Metrics {
    fn default() -> Metrics {
        let mut registry = Registry::with_prefix("millstream");
        let histogram: fn() -> Histogram = || Histogram::new(exponential_buckets(0.005, 2.0, 12));
        let (leader, reconciles, seconds) =
            (Gauge::default(), Family::default(), Histograms::new_with_constructor(histogram));
        let (conditions, shards) = (Family::default(), Family::default());
        registry.register("operator_leader", "1 in the operator that leads, 0 in others", leader.clone());
        registry.register(
            "operator_reconciles",
            "Reconciliations, by kind of resource and by what came of them: ok, or the reason why not",
            reconciles.clone(),
        );
        registry.register_with_unit(
            "operator_reconcile",
            "How long reconciliations took",
            Unit::Seconds,
            seconds.clone(),
        );
        registry.register("pipeline_condition", "1 while a condition of a pipeline is True", conditions.clone());
        registry.register(
            "pipeline_shards",
            "Shards of a stage: wanted, owned by a worker that is alive, followed by a warm standby",
            shards.clone(),
        );
        Metrics { registry, leader, reconciles, seconds, conditions, shards, shown: Mutex::default() }
    }
}

impl Metrics {
    /// Everything, as Prometheus reads it.
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing into a string does not fail.
        let _ = text::encode(&mut text, &self.registry);
        text
    }

    /// This operator leads, or does not.
    pub fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// A reconciliation of a resource of this kind took so long, and failed for a reason, or did not.
    pub(crate) fn reconciled(&self, kind: &'static str, took: Duration, failed: Option<Reason>) {
        self.reconciles.get_or_create(&Reconciled { kind, result: failed.map_or("ok", Reason::as_str) }).inc();
        self.seconds.get_or_create(&Kind { kind }).observe(took.as_secs_f64());
    }

    /// What is said of a pipeline.
    pub(crate) fn pipeline(
        &self,
        pipeline: &IngestionPipeline,
        status: &IngestionPipelineStatus,
        fleet: Option<&Fleet>,
    ) {
        let metadata = &pipeline.metadata;
        let of = (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default());
        for condition in &status.conditions {
            let labels = OfCondition::new(&of, &condition.type_);
            self.conditions.get_or_create(&labels).set(i64::from(condition.status == "True"));
        }
        for stage in SHARDED.into_iter().filter(|_| fleet.is_some()) {
            let (mut owned, mut warm) = (0, 0);
            for (_, shard) in fleet.iter().flat_map(|fleet| fleet.of_stage(stage)) {
                owned += i64::from(shard.owner.is_some());
                // One that is to have no standby lacks none.
                warm += i64::from(!shard.standbys.is_empty() || pipeline.spec.standbys == 0);
            }
            let wanted = if pipeline.spec.suspend { 0 } else { i64::from(pipeline.spec.shards) };
            for (state, count) in STATES.into_iter().zip([wanted, owned, warm]) {
                self.shards.get_or_create(&OfShards::new(&of, stage, state)).set(count);
            }
        }
        self.shown().insert(metadata.uid.clone().unwrap_or_default(), of);
    }

    /// Only these pipelines are there, by uid.
    pub(crate) fn retain(&self, is_there: impl Fn(&str) -> bool) {
        for (_, of) in self.shown().extract_if(.., |uid, _| !is_there(uid)) {
            for condition in ConditionType::ALL {
                self.conditions.remove(&OfCondition::new(&of, condition.as_str()));
            }
            for (stage, state) in SHARDED.into_iter().flat_map(|stage| STATES.map(|state| (stage, state))) {
                self.shards.remove(&OfShards::new(&of, stage, state));
            }
        }
    }

    fn shown(&self) -> MutexGuard<'_, BTreeMap<String, (String, String)>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OfCondition {
    fn new((namespace, pipeline): &(String, String), condition: &str) -> OfCondition {
        let (namespace, pipeline) = (namespace.clone(), pipeline.clone());
        OfCondition { namespace, pipeline, condition: condition.to_owned() }
    }
}

impl OfShards {
    fn new((namespace, pipeline): &(String, String), stage: &'static str, state: &'static str) -> OfShards {
        OfShards { namespace: namespace.clone(), pipeline: pipeline.clone(), stage, state }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pipeline_is_shown_until_it_is_gone() {
        let pipeline: IngestionPipeline = serde_json::from_value(json!({
            "apiVersion": "ingestion.millstream.dev/v1alpha1", "kind": "IngestionPipeline",
            "metadata": {"name": "orders", "namespace": "shop", "uid": "1"},
            "spec": {"image": "i", "kafka": {"bootstrapServers": ["k:1"]}, "documentStore": {"mongodb": {"uri": {"name": "m", "key": "uri"}}}},
        }))
        .unwrap();
        let status: IngestionPipelineStatus = serde_json::from_value(json!({"conditions": [
            {"type": "Ready", "status": "True", "reason": "r", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"},
        ]}))
        .unwrap();
        let metrics = Metrics::default();
        metrics.leads(true);
        metrics.reconciled("IngestionPipeline", Duration::from_millis(20), None);
        metrics.reconciled("IngestionPipeline", Duration::from_millis(20), Some(Reason::Conflict));
        metrics.pipeline(&pipeline, &status, Some(&Fleet::default()));
        let text = metrics.render();
        let expected = [
            "millstream_operator_leader 1",
            r#"millstream_operator_reconciles_total{kind="IngestionPipeline",result="Conflict"} 1"#,
            r#"millstream_operator_reconcile_seconds_count{kind="IngestionPipeline"} 2"#,
            r#"millstream_pipeline_condition{namespace="shop",pipeline="orders",condition="Ready"} 1"#,
            r#"millstream_pipeline_shards{namespace="shop",pipeline="orders",stage="action",state="wanted"} 8"#,
            r#"millstream_pipeline_shards{namespace="shop",pipeline="orders",stage="action",state="owned"} 0"#,
        ];
        for line in expected {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        metrics.retain(|_| false);
        assert!(!metrics.render().contains("orders"), "{}", metrics.render());
    }
}

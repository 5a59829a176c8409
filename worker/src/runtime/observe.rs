//! What the threads of this process tell about their work: metrics and spans, behind one trait, so that the threads know nothing of exporters.

use crate::telemetry::metrics::OTHER_TENANT;
use crate::telemetry::{Metrics, Span, SpanExporter};
use millstream_model::proto::Usage;
use millstream_model::reject::Reason;
use millstream_shard::Clock as _;
use millstream_shard::checkpoint::Taken;
use millstream_shard::runtime::Report;
use millstream_stages::StageSpan;
use millstream_stages::reaction::Written;
use millstream_stores::embedded::SystemClock;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Takes what happened. Never blocks.
pub trait Observer: Send + Sync {
    /// A batch was committed.
    fn batch(&self, stage: &'static str, shard: u32, report: &Report);

    /// A checkpoint was taken.
    fn checkpoint(&self, stage: &'static str, shard: u32, taken: &Taken);

    /// The new sums of some tenants in a shard, as committed.
    fn usage(&self, stage: &'static str, shard: u32, usage: &BTreeMap<String, Usage>);

    /// A shard is another process's now, and so are its sums.
    fn lost(&self, stage: &'static str, shard: u32);

    /// A record was rejected.
    fn rejected(&self, stage: &'static str, tenant: &str, reason: Reason);

    /// A document write came back.
    fn written(&self, written: &Written);

    /// A mutation is readable in its document, so long after its record was accepted.
    fn fresh(&self, milliseconds: u64);

    /// Messages of its inputs that a shard has not read.
    fn input_lag(&self, stage: &'static str, shard: u32, messages: u64);

    /// How old what a shard has not processed is at most, milliseconds; `None`: not known.
    fn unread(&self, stage: &'static str, shard: u32, milliseconds: Option<u64>);

    /// Mutations of a partition that are read and not decided.
    fn backlog(&self, shard: u32, mutations: usize);

    /// A span of a sampled record in a stage; times are milliseconds since 1970.
    fn span(&self, stage: &'static str, shard: u32, span: &StageSpan, began_ms: u64, ended_ms: u64);
}

/// Of one label: tenants without one of their own have the same.
type PerShard = BTreeMap<(u32, String), Usage>;
/// Sums per stage, label, shard and tenant.
type Sums = BTreeMap<(&'static str, Arc<str>), PerShard>;

/// Tells metrics and the trace exporter.
pub struct Exports {
    metrics: Arc<Metrics>,
    spans: SpanExporter,
    /// A process has several shards of a stage, the metric has one value per label.
    sums: Mutex<Sums>,
}

impl Exports {
    /// To these metrics and this exporter.
    pub fn new(metrics: Arc<Metrics>, spans: SpanExporter) -> Exports {
        Exports { metrics, spans, sums: Mutex::default() }
    }

    /// A tenant that has a label of its own by now does not count among the others any more.
    fn forget_other(&self, sums: &mut Sums, stage: &'static str, label: &Arc<str>, of: &(u32, String)) {
        let other: Arc<str> = self.metrics.stages.label(OTHER_TENANT);
        let Some(shards) = sums.get_mut(&(stage, other.clone())).filter(|_| other != *label) else { return };
        if shards.remove(of).is_some() {
            let total: Usage = shards.values().sum();
            self.metrics.stages.usage(stage, &other, &total);
        }
    }
}

impl Observer for Exports {
    fn batch(&self, stage: &'static str, shard: u32, report: &Report) {
        let is_failing = report.trouble.is_some();
        self.metrics.caches.cache(stage, shard, report.cache_bytes, report.dirty_bytes, is_failing);
        let took = Duration::from_millis(report.committed_ms.saturating_sub(report.began_ms));
        self.metrics.stages.batch(stage, report.records, took);
    }

    fn checkpoint(&self, stage: &'static str, shard: u32, taken: &Taken) {
        self.metrics.checkpoints.taken(stage, shard, taken, SystemClock.now_ms());
    }

    fn usage(&self, stage: &'static str, shard: u32, usage: &BTreeMap<String, Usage>) {
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        for (tenant, changed) in usage {
            let label = self.metrics.stages.label(tenant);
            self.forget_other(&mut sums, stage, &label, &(shard, tenant.clone()));
            let shards = sums.entry((stage, label.clone())).or_default();
            shards.insert((shard, tenant.clone()), *changed);
            let total: Usage = shards.values().sum();
            self.metrics.stages.usage(stage, &label, &total);
        }
    }

    fn lost(&self, stage: &'static str, shard: u32) {
        self.metrics.caches.forget_shard(stage, shard);
        self.metrics.checkpoints.forget_shard(stage, shard);
        self.metrics.stages.forget_shard(stage, shard);
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        for ((of, label), shards) in sums.iter_mut().filter(|((of, _), _)| *of == stage) {
            let before = shards.len();
            shards.retain(|(one, _), _| *one != shard);
            if shards.len() < before {
                let total: Usage = shards.values().sum();
                self.metrics.stages.usage(of, label, &total);
            }
        }
    }

    fn rejected(&self, stage: &'static str, tenant: &str, reason: Reason) {
        self.metrics.stages.reject(stage, tenant, reason);
    }

    fn written(&self, written: &Written) {
        let outcome = match written {
            Written::Done => "written",
            Written::Gap => "gap",
            Written::Refused(_) => "refused",
            Written::Retry(_) => "retried",
        };
        self.metrics.stages.writes(outcome, 1);
    }

    fn fresh(&self, milliseconds: u64) {
        self.metrics.stages.freshness(Duration::from_millis(milliseconds));
    }

    fn input_lag(&self, stage: &'static str, shard: u32, messages: u64) {
        self.metrics.stages.lag(stage, shard, messages);
    }

    fn unread(&self, stage: &'static str, shard: u32, milliseconds: Option<u64>) {
        self.metrics.stages.unread(stage, shard, milliseconds.map(Duration::from_millis));
    }

    fn backlog(&self, shard: u32, mutations: usize) {
        self.metrics.stages.backlog(shard, mutations);
    }

    fn span(&self, stage: &'static str, shard: u32, span: &StageSpan, began_ms: u64, ended_ms: u64) {
        let Ok(trace_id) = <[u8; 16]>::try_from(&span.parent.trace_id[..]) else { return };
        self.spans.export(Span {
            trace_id,
            parent: <[u8; 8]>::try_from(&span.parent.span_id[..]).ok(),
            span_id: span.span_id,
            state: span.parent.state.clone(),
            name: span.name.clone(),
            start_ns: began_ms.saturating_mul(1_000_000),
            end_ns: ended_ms.saturating_mul(1_000_000),
            attributes: vec![
                ("millstream.tenant", span.tenant.clone()),
                ("millstream.stage", stage.to_owned()),
                ("millstream.shard", shard.to_string()),
            ],
            error: false,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_added_up_over_shards_and_over_tenants_that_share_a_label() {
        let metrics = Metrics::new(["acme"]);
        let exports = Exports::new(metrics.clone(), SpanExporter::disabled());
        let of = |tenant: &str, accepted| BTreeMap::from([(tenant.to_owned(), Usage { accepted, ..Usage::default() })]);
        for (shard, tenant, accepted) in
            [(0, "acme", 1), (1, "acme", 2), (0, "x1", 10), (0, "x2", 20), (1, "x2", 40), (0, "acme", 5), (0, "x1", 11)]
        {
            exports.usage("unify", shard, &of(tenant, accepted));
        }
        let text = metrics.render();
        for (tenant, sum) in [("acme", 7), ("_other", 71)] {
            let line =
                format!("millstream_usage_records{{tenant=\"{tenant}\",stage=\"unify\",outcome=\"accepted\"}} {sum}");
            assert!(text.contains(&line), "{line} is not in\n{text}");
        }
        exports.lost("unify", 1);
        assert!(metrics.render().contains("tenant=\"_other\",stage=\"unify\",outcome=\"accepted\"} 31"));
    }
    #[test]
    fn a_tenant_that_is_published_later_is_counted_once() {
        let metrics = Metrics::new([]);
        let exports = Exports::new(metrics.clone(), SpanExporter::disabled());
        let of = |tenant: &str, accepted| BTreeMap::from([(tenant.to_owned(), Usage { accepted, ..Usage::default() })]);
        exports.usage("unify", 0, &of("acme", 3));
        exports.usage("unify", 0, &of("x1", 10));
        metrics.publish(["acme"]);
        exports.usage("unify", 0, &of("acme", 4));
        let text = metrics.render();
        for line in [
            "{tenant=\"acme\",stage=\"unify\",outcome=\"accepted\"} 4",
            "{tenant=\"_other\",stage=\"unify\",outcome=\"accepted\"} 10",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}

//! Metrics in the Prometheus text format. Every label has few values: tenants are the configured ones and the first [`PUBLISHED_TENANTS`] of those that were published in `control` (others count
//! as `_other`), the rest are enumerations of the code.

use super::checkpoints::CheckpointMetrics;
use super::state::{CacheMetrics, StateFigures};
use millstream_model::proto::Usage;
use millstream_model::reject::Reason;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// The label of tenants that have none of their own.
pub const OTHER_TENANT: &str = "_other";

/// So many tenants of `control` have a label of their own, beside the configured ones: each makes some twenty series in each process, and a Prometheus of ordinary size bears some millions in all.
pub const PUBLISHED_TENANTS: usize = 1_000;

type HistogramFamily<L> = Family<L, Histogram, fn() -> Histogram>;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    source: &'static str,
    code: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RecordLabels {
    tenant: Arc<str>,
    source: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RejectLabels {
    tenant: Arc<str>,
    stage: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TenantLabels {
    tenant: Arc<str>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StageLabels {
    stage: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ShardLabels {
    stage: &'static str,
    shard: u32,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct UsageLabels {
    tenant: Arc<str>,
    stage: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

/// All metrics of a process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    tenants: Tenants,
    /// The gateway's.
    pub gateway: GatewayMetrics,
    /// Those of the stages behind it.
    pub stages: StageMetrics,
    /// Those of the write-back caches.
    pub caches: CacheMetrics,
    /// Those of checkpoints.
    pub checkpoints: CheckpointMetrics,
    /// The trace exporter's.
    pub spans: SpanMetrics,
    /// Readers that heard nothing of what there was, and were replaced.
    pub deaf_readers: Counter,
}

impl Metrics {
    /// Metrics for these tenants.
    pub fn new<'a>(tenants: impl IntoIterator<Item = &'a str>) -> Arc<Metrics> {
        Metrics::with_state(tenants, None)
    }

    /// Metrics for these tenants, and of the stores of this process.
    pub fn with_state<'a>(tenants: impl IntoIterator<Item = &'a str>, figures: Option<StateFigures>) -> Arc<Metrics> {
        let tenants = Tenants::configured(tenants);
        let mut registry = Registry::with_prefix("millstream");
        let gateway = GatewayMetrics::new(registry.sub_registry_with_prefix("gateway"), tenants.clone());
        let stages = StageMetrics::new(&mut registry, tenants.clone());
        let state = registry.sub_registry_with_prefix("state");
        let caches = CacheMetrics::new(state);
        if let Some(figures) = figures {
            state.register_collector(Box::new(figures));
        }
        let checkpoints = CheckpointMetrics::new(registry.sub_registry_with_prefix("checkpoint"));
        let spans = SpanMetrics::new(registry.sub_registry_with_prefix("spans"));
        let deaf_readers = Counter::default();
        let help = "Readers that heard nothing of what there was, and were replaced by others with another client";
        registry.register("deaf_readers", help, deaf_readers.clone());
        Arc::new(Metrics { registry, tenants, gateway, stages, caches, checkpoints, spans, deaf_readers })
    }

    /// These tenants were published: from now on they count under their own names, as far as there is room ([`PUBLISHED_TENANTS`]). One that is gone keeps its place, since what it has counted
    /// is shown on.
    pub fn publish<'a>(&self, tenants: impl IntoIterator<Item = &'a str>) {
        self.tenants.publish(tenants);
    }

    /// The text that Prometheus reads.
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail; a metric that cannot be encoded would leave the text cut, which Prometheus refuses loudly.
        let _ = text::encode(&mut text, &self.registry);
        text
    }
}

/// Who has a label of its own.
#[derive(Clone, Debug)]
struct Tenants(Arc<RwLock<Labels>>);

#[derive(Debug, Default)]
struct Labels {
    names: BTreeSet<Arc<str>>,
    /// How many of them were published.
    published: usize,
}

impl Tenants {
    fn configured<'a>(names: impl IntoIterator<Item = &'a str>) -> Tenants {
        let names = names.into_iter().map(Arc::from).collect();
        Tenants(Arc::new(RwLock::new(Labels { names, published: 0 })))
    }

    fn publish<'a>(&self, tenants: impl IntoIterator<Item = &'a str>) {
        let mut labels = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for tenant in tenants {
            if labels.published == PUBLISHED_TENANTS {
                return;
            }
            if labels.names.insert(Arc::from(tenant)) {
                labels.published += 1;
            }
        }
    }

    fn label(&self, tenant: &str) -> Arc<str> {
        let labels = self.0.read().unwrap_or_else(PoisonError::into_inner);
        labels.names.get(tenant).cloned().unwrap_or_else(|| Arc::from(OTHER_TENANT))
    }
}

/// What became of a record at the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The log has it.
    Accepted,
    /// Refused, with a reason in the answer.
    Rejected,
    /// The log did not say.
    Unknown,
    /// Refused with its whole request, because the tenant sends more than its rate: it is to come again.
    Limited,
}

/// The gateway's metrics.
#[derive(Clone, Debug)]
pub struct GatewayMetrics {
    tenants: Tenants,
    requests: Family<RequestLabels, Counter>,
    records: Family<RecordLabels, Counter>,
    rejects: Family<RejectLabels, Counter>,
    bytes: Family<TenantLabels, Counter>,
    frames: Counter,
    frame_records: Histogram,
    acknowledge: Histogram,
    /// Bytes of bodies in memory now.
    pub in_flight_bytes: Gauge,
}

impl GatewayMetrics {
    fn new(registry: &mut Registry, tenants: Tenants) -> GatewayMetrics {
        let metrics = GatewayMetrics {
            tenants,
            requests: Family::default(),
            records: Family::default(),
            rejects: Family::default(),
            bytes: Family::default(),
            frames: Counter::default(),
            frame_records: record_counts(),
            acknowledge: seconds(),
            in_flight_bytes: Gauge::default(),
        };
        registry.register("requests", "Requests by source and status code", metrics.requests.clone());
        registry.register("records", "Records by tenant, source and outcome", metrics.records.clone());
        registry.register("rejects", "Records refused in the answer, by reason", metrics.rejects.clone());
        registry.register("request_bytes", "Bytes of bodies, decompressed", metrics.bytes.clone());
        registry.register("frames", "Frames sent to the log", metrics.frames.clone());
        registry.register("frame_records", "Records per frame", metrics.frame_records.clone());
        let help = "From handing records to the log to its acknowledgement";
        registry.register("acknowledge_seconds", help, metrics.acknowledge.clone());
        registry.register("in_flight_bytes", "Bytes of bodies in memory", metrics.in_flight_bytes.clone());
        metrics
    }

    /// A request was answered.
    pub fn request(&self, source: &'static str, code: u16) {
        self.requests.get_or_create(&RequestLabels { source, code }).inc();
    }

    /// A tenant's body was read.
    pub fn body(&self, tenant: &str, bytes: usize) {
        self.bytes.get_or_create(&TenantLabels { tenant: self.tenants.label(tenant) }).inc_by(bytes as u64);
    }

    /// Records of a tenant came to their outcome.
    pub fn records(&self, tenant: &str, source: &'static str, outcome: Outcome, count: usize) {
        if count == 0 {
            return;
        }
        let outcome = match outcome {
            Outcome::Accepted => "accepted",
            Outcome::Rejected => "rejected",
            Outcome::Unknown => "unknown",
            Outcome::Limited => "limited",
        };
        let labels = RecordLabels { tenant: self.tenants.label(tenant), source, outcome };
        self.records.get_or_create(&labels).inc_by(count as u64);
    }

    /// A record was refused.
    pub fn reject(&self, tenant: &str, reason: Reason) {
        let labels = RejectLabels { tenant: self.tenants.label(tenant), stage: "gateway", reason: reason.code() };
        self.rejects.get_or_create(&labels).inc();
    }

    /// A frame was sent.
    pub fn frame(&self, records: usize) {
        self.frames.inc();
        self.frame_records.observe(records as f64);
    }

    /// The log acknowledged a frame.
    pub fn acknowledged(&self, after: Duration) {
        self.acknowledge.observe(after.as_secs_f64());
    }
}

/// Metrics of unify, action and reaction. `stage` is `unify`, `action` or `reaction`.
#[derive(Clone, Debug)]
pub struct StageMetrics {
    tenants: Tenants,
    records: Family<StageLabels, Counter>,
    batches: Family<StageLabels, Counter>,
    commit: HistogramFamily<StageLabels>,
    batch_records: HistogramFamily<StageLabels>,
    rejects: Family<RejectLabels, Counter>,
    usage: Family<UsageLabels, Gauge>,
    lag: Family<ShardLabels, Gauge>,
    unread: Family<ShardLabels, Gauge<f64, AtomicU64>>,
    backlog: Family<ShardLabels, Gauge>,
    writes: Family<OutcomeLabels, Counter>,
    freshness: Histogram,
}

impl StageMetrics {
    fn new(registry: &mut Registry, tenants: Tenants) -> StageMetrics {
        let metrics = StageMetrics {
            tenants,
            records: Family::default(),
            batches: Family::default(),
            commit: Family::new_with_constructor(seconds),
            batch_records: Family::new_with_constructor(record_counts),
            rejects: Family::default(),
            usage: Family::default(),
            lag: Family::default(),
            unread: Family::default(),
            backlog: Family::default(),
            writes: Family::default(),
            freshness: seconds(),
        };
        let stage = registry.sub_registry_with_prefix("stage");
        stage.register("records", "Input records of committed batches", metrics.records.clone());
        stage.register("batches", "Committed batches", metrics.batches.clone());
        stage.register("commit_seconds", "From the first record of a batch to its commit", metrics.commit.clone());
        stage.register("batch_records", "Input records per batch", metrics.batch_records.clone());
        stage.register("rejects", "Records rejected, by tenant and reason", metrics.rejects.clone());
        stage.register(
            "input_lag",
            "Offsets between where a shard reads its inputs and their ends",
            metrics.lag.clone(),
        );
        let help = "How old what a shard has not processed is at most";
        stage.register("unread_seconds", help, metrics.unread.clone());
        let help = "Sums per tenant as the shards of this process committed them (I2)";
        registry.register("usage_records", help, metrics.usage.clone());
        let reaction = registry.sub_registry_with_prefix("reaction");
        let help = "Mutations that were read and whose documents are not written";
        reaction.register("backlog", help, metrics.backlog.clone());
        reaction.register("writes", "Document writes by outcome", metrics.writes.clone());
        let help = "From a record's entry into the log to its document's acknowledged write";
        reaction.register("freshness_seconds", help, metrics.freshness.clone());
        metrics
    }

    /// A batch was committed.
    pub fn batch(&self, stage: &'static str, records: usize, took: Duration) {
        let labels = StageLabels { stage };
        self.records.get_or_create(&labels).inc_by(records as u64);
        self.batches.get_or_create(&labels).inc();
        self.commit.get_or_create(&labels).observe(took.as_secs_f64());
        self.batch_records.get_or_create(&labels).observe(records as f64);
    }

    /// A committed batch rejected a record.
    pub fn reject(&self, stage: &'static str, tenant: &str, reason: Reason) {
        let labels = RejectLabels { tenant: self.tenants.label(tenant), stage, reason: reason.code() };
        self.rejects.get_or_create(&labels).inc();
    }

    /// How a tenant is called here; those that have no label of their own share one.
    pub fn label(&self, tenant: &str) -> Arc<str> {
        self.tenants.label(tenant)
    }

    /// The sums of all tenants of a label ([`StageMetrics::label`]) over this process's shards of a stage.
    pub fn usage(&self, stage: &'static str, label: &Arc<str>, usage: &Usage) {
        let outcomes = [
            ("accepted", usage.accepted),
            ("effects", usage.effects),
            ("duplicates", usage.duplicates),
            ("rejects", usage.rejects),
        ];
        for (outcome, sum) in outcomes {
            let labels = UsageLabels { tenant: label.clone(), stage, outcome };
            self.usage.get_or_create(&labels).set(i64::try_from(sum).unwrap_or(i64::MAX));
        }
    }

    /// How far a shard is behind the ends of its inputs.
    pub fn lag(&self, stage: &'static str, shard: u32, messages: u64) {
        self.lag.get_or_create(&ShardLabels { stage, shard }).set(i64::try_from(messages).unwrap_or(i64::MAX));
    }

    /// How old what a shard has not processed is at most; `None`: not known.
    pub fn unread(&self, stage: &'static str, shard: u32, age: Option<Duration>) {
        let labels = ShardLabels { stage, shard };
        match age {
            Some(age) => drop(self.unread.get_or_create(&labels).set(age.as_secs_f64())),
            None => drop(self.unread.remove(&labels)),
        }
    }

    /// Mutations that a shard of the stage reaction has read, and that are in no document yet.
    pub fn backlog(&self, shard: u32, mutations: usize) {
        let labels = ShardLabels { stage: "reaction", shard };
        self.backlog.get_or_create(&labels).set(i64::try_from(mutations).unwrap_or(i64::MAX));
    }

    /// A shard is not this process's any more.
    pub fn forget_shard(&self, stage: &'static str, shard: u32) {
        self.lag.remove(&ShardLabels { stage, shard });
        self.unread.remove(&ShardLabels { stage, shard });
        self.backlog.remove(&ShardLabels { stage, shard });
    }

    /// Document writes ended: `written`, `gap`, `retried` or `refused`.
    pub fn writes(&self, outcome: &'static str, count: usize) {
        self.writes.get_or_create(&OutcomeLabels { outcome }).inc_by(count as u64);
    }

    /// A document write was acknowledged, so long after its newest record entered the log.
    pub fn freshness(&self, after: Duration) {
        self.freshness.observe(after.as_secs_f64());
    }
}

/// Metrics of the trace exporter.
#[derive(Clone, Debug, Default)]
pub struct SpanMetrics {
    /// Spans that a collector took.
    pub exported: Counter,
    /// Spans lost: the queue was full or the collector did not take them.
    pub dropped: Counter,
}

impl SpanMetrics {
    fn new(registry: &mut Registry) -> SpanMetrics {
        let metrics = SpanMetrics::default();
        registry.register("exported", "Spans that the collector took", metrics.exported.clone());
        registry.register(
            "dropped",
            "Spans lost because the queue was full or the collector refused",
            metrics.dropped.clone(),
        );
        metrics
    }
}

/// 1 ms to 65 s: what is faster needs no attention, what is slower is broken.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 17))
}

/// 1 to 16,384 records.
fn record_counts() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 4.0, 8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_stores::rocks::{Resources, RocksState};

    #[test]
    fn what_was_counted_is_shown() {
        let metrics = Metrics::new(["acme"]);
        metrics.gateway.request("segment", 200);
        metrics.gateway.records("acme", "segment", Outcome::Accepted, 3);
        metrics.gateway.records("acme", "segment", Outcome::Unknown, 0);
        metrics.gateway.reject("acme", Reason::TooDeep);
        metrics.gateway.frame(3);
        metrics.stages.batch("unify", 7, Duration::from_millis(30));
        metrics.stages.usage("action", &metrics.stages.label("acme"), &Usage { effects: 5, ..Usage::default() });
        metrics.stages.lag("unify", 2, 11);
        metrics.stages.lag("unify", 3, 11);
        metrics.stages.unread("unify", 2, Some(Duration::from_millis(1_500)));
        metrics.stages.unread("unify", 3, Some(Duration::ZERO));
        metrics.stages.unread("action", 4, Some(Duration::ZERO));
        metrics.stages.unread("action", 4, None);
        metrics.stages.forget_shard("unify", 3);
        metrics.stages.writes("written", 4);
        metrics.stages.freshness(Duration::from_millis(400));
        let text = metrics.render();
        for line in [
            "millstream_gateway_requests_total{source=\"segment\",code=\"200\"} 1",
            "millstream_gateway_records_total{tenant=\"acme\",source=\"segment\",outcome=\"accepted\"} 3",
            "millstream_gateway_rejects_total{tenant=\"acme\",stage=\"gateway\",reason=\"too_deep\"} 1",
            "millstream_gateway_frame_records_sum 3.0",
            "millstream_stage_records_total{stage=\"unify\"} 7",
            "millstream_stage_commit_seconds_bucket{le=\"0.032\",stage=\"unify\"} 1",
            "millstream_usage_records{tenant=\"acme\",stage=\"action\",outcome=\"effects\"} 5",
            "millstream_stage_input_lag{stage=\"unify\",shard=\"2\"} 11",
            "millstream_stage_unread_seconds{stage=\"unify\",shard=\"2\"} 1.5",
            "millstream_reaction_writes_total{outcome=\"written\"} 4",
            "millstream_reaction_freshness_seconds_count 1",
            "# EOF",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("outcome=\"unknown\"") && !text.contains("shard=\"3\""), "{text}");
        assert!(!text.contains("shard=\"4\""), "what is not known is not shown: {text}");
    }

    #[test]
    fn the_local_state_of_this_process_is_shown() {
        let folder = tempfile::tempdir().unwrap();
        let resources = Resources::new(1 << 20);
        let store = RocksState::open(&folder.path().join("unify-3"), &resources).unwrap();
        let metrics = Metrics::with_state(["acme"], Some(StateFigures { budget_bytes: 9, resources }));
        metrics.caches.cache("unify", 3, 100, 10, true);
        metrics.caches.cache("unify", 4, 100, 10, false);
        metrics.caches.forget_shard("unify", 4);
        let text = metrics.render();
        for line in [
            "millstream_state_budget_bytes 9",
            "millstream_state_cache_bytes{stage=\"unify\",shard=\"3\"} 100",
            "millstream_state_flush_failing{stage=\"unify\",shard=\"3\"} 1",
            "millstream_state_rocksdb_file_bytes{stage=\"unify\",shard=\"3\"} 0",
            "# TYPE millstream_state_rocksdb_stalled_microseconds counter",
            "millstream_state_cleared_total 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        drop(store);
        assert!(!metrics.render().contains("file_bytes{"), "a store that is closed is not shown");
    }

    #[test]
    fn strangers_share_one_label() {
        let metrics = Metrics::new(["acme"]);
        for name in ["x1", "x2", "x3"] {
            metrics.stages.reject("unify", name, Reason::Misrouted);
        }
        let text = metrics.render();
        assert!(text.contains("rejects_total{tenant=\"_other\",stage=\"unify\",reason=\"misrouted\"} 3"), "{text}");
    }
    #[test]
    fn published_tenants_have_labels_of_their_own_up_to_a_bound() {
        let metrics = Metrics::new(["acme"]);
        let count = |tenant: &str| metrics.gateway.records(tenant, "native", Outcome::Accepted, 1);
        count("globex");
        let names: Vec<String> = (0..PUBLISHED_TENANTS).map(|index| format!("t{index:04}")).collect();
        // One that is configured takes none of the room, nor does one that is published again.
        metrics.publish(["acme", "globex"]);
        metrics.publish(["globex"]);
        metrics.publish(names.iter().map(String::as_str));
        ["acme", "globex", "t0000", "t0998", "t0999", "stranger"].into_iter().for_each(count);
        let text = metrics.render();
        let line = |tenant: &str, sum: u32| {
            format!("records_total{{tenant=\"{tenant}\",source=\"native\",outcome=\"accepted\"}} {sum}\n")
        };
        for (tenant, sum) in [("acme", 1), ("globex", 1), ("t0000", 1), ("t0998", 1), ("_other", 3)] {
            assert!(text.contains(&line(tenant, sum)), "{tenant} {sum} is not in\n{text}");
        }
    }
}

//! Metrics of checkpoints: of the shards that this process owns.

use super::state::ShardLabels;
use millstream_shard::checkpoint::Taken;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::AtomicU64;

/// What came of checkpoints.
#[derive(Clone, Debug, Default)]
pub struct CheckpointMetrics {
    taken: Family<ShardLabels, Counter>,
    uploaded: Family<ShardLabels, Counter>,
    bytes: Family<ShardLabels, Gauge>,
    took: Family<ShardLabels, Gauge<f64, AtomicU64>>,
    at: Family<ShardLabels, Gauge>,
}

impl CheckpointMetrics {
    pub(super) fn new(registry: &mut Registry) -> CheckpointMetrics {
        let metrics = CheckpointMetrics::default();
        registry.register("taken", "Checkpoints taken", metrics.taken.clone());
        registry.register(
            "uploaded_bytes",
            "Uploaded for checkpoints: what no former one had",
            metrics.uploaded.clone(),
        );
        registry.register("bytes", "What a store that is made of the newest checkpoint has", metrics.bytes.clone());
        let help = "How long the newest checkpoint took, from the copy of the local store on";
        registry.register_with_unit("duration", help, Unit::Seconds, metrics.took.clone());
        let help = "When the newest checkpoint was complete, seconds since 1970";
        registry.register("taken_timestamp_seconds", help, metrics.at.clone());
        metrics
    }

    /// A checkpoint was taken, now (milliseconds since 1970).
    pub fn taken(&self, stage: &'static str, shard: u32, taken: &Taken, now_ms: u64) {
        let labels = ShardLabels { stage, shard };
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.taken.get_or_create(&labels).inc();
        self.uploaded.get_or_create(&labels).inc_by(taken.uploaded_bytes);
        self.bytes.get_or_create(&labels).set(number(taken.bytes));
        self.took.get_or_create(&labels).set(taken.took_ms as f64 / 1000.0);
        self.at.get_or_create(&labels).set(number(now_ms / 1000));
    }

    /// A shard is not this process's any more.
    pub fn forget_shard(&self, stage: &'static str, shard: u32) {
        let labels = ShardLabels { stage, shard };
        for family in [&self.bytes, &self.at] {
            family.remove(&labels);
        }
        self.took.remove(&labels);
    }
}

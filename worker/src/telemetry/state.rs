//! Metrics of the local state: what the write-back caches hold, as their shards report it, and RocksDB's own figures, asked for at each scrape.
//!
//! Labels are `stage` and `shard` of the stores that this process has open: as many as it owns.

use millstream_stores::rocks::{Figures, Resources, StoreFigures};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};
use std::fmt;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct ShardLabels {
    pub(super) stage: &'static str,
    pub(super) shard: u32,
}

/// What the shards report of their caches.
#[derive(Clone, Debug, Default)]
pub struct CacheMetrics {
    bytes: Family<ShardLabels, Gauge>,
    dirty: Family<ShardLabels, Gauge>,
    failing: Family<ShardLabels, Gauge>,
}

impl CacheMetrics {
    pub(super) fn new(registry: &mut Registry) -> CacheMetrics {
        let metrics = CacheMetrics::default();
        let help = "State in memory, as the bound of the cache counts it";
        registry.register("cache_bytes", help, metrics.bytes.clone());
        let help = "Of the state in memory, what is not in the local store yet nor on its way";
        registry.register("dirty_bytes", help, metrics.dirty.clone());
        let help =
            "1 while nothing can be written to the local store, or only slowly; batches go on until too much waits";
        registry.register("flush_failing", help, metrics.failing.clone());
        metrics
    }

    /// A shard's cache after a batch.
    pub fn cache(&self, stage: &'static str, shard: u32, bytes: usize, dirty: usize, is_failing: bool) {
        let labels = ShardLabels { stage, shard };
        let number = |bytes: usize| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.bytes.get_or_create(&labels).set(number(bytes));
        self.dirty.get_or_create(&labels).set(number(dirty));
        self.failing.get_or_create(&labels).set(i64::from(is_failing));
    }

    /// A shard is not this process's any more.
    pub fn forget_shard(&self, stage: &'static str, shard: u32) {
        let labels = ShardLabels { stage, shard };
        for family in [&self.bytes, &self.dirty, &self.failing] {
            family.remove(&labels);
        }
    }
}

/// What the process may use for state, and what RocksDB uses of it.
pub struct StateFigures {
    /// `state.memory`.
    pub budget_bytes: usize,
    /// What the stores share.
    pub resources: Resources,
}

impl fmt::Debug for StateFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateFigures").field("budget_bytes", &self.budget_bytes).finish_non_exhaustive()
    }
}

impl Collector for StateFigures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        gauge(
            &mut encoder,
            "budget_bytes",
            "Memory for the state of all shards (state.memory)",
            self.budget_bytes as u64,
        )?;
        process(&mut encoder, &self.resources.figures())?;
        stores(&mut encoder, &self.resources.stores())
    }
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
}

fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let counter = ConstCounter::new(value);
    counter.encode(encoder.encode_descriptor(name, help, None::<&Unit>, counter.metric_type())?)
}

fn process(encoder: &mut DescriptorEncoder<'_>, figures: &Figures) -> fmt::Result {
    let gauges = [
        ("rocksdb_cache_bytes", "Blocks, indexes, filters and memtables in memory", figures.cache_bytes),
        ("rocksdb_pinned_bytes", "Of these, what is in use at the moment", figures.pinned_bytes),
        ("rocksdb_memtable_bytes", "Memtables in memory", figures.memtable_bytes),
    ];
    let counters = [
        ("rocksdb_block_hits", "Blocks found in memory", figures.block_hits),
        ("rocksdb_block_misses", "Blocks read from a file", figures.block_misses),
        ("rocksdb_filtered", "Look-ups in a file that its filter answered", figures.filtered),
        ("rocksdb_flushed_bytes", "Written by flushes", figures.flushed_bytes),
        ("rocksdb_compaction_read_bytes", "Read by compactions", figures.compaction_read_bytes),
        ("rocksdb_compaction_written_bytes", "Written by compactions", figures.compaction_written_bytes),
        ("rocksdb_stalled_microseconds", "Time for which flushes were held back", figures.stalled_us),
        ("cleared", "Local stores that were damaged, and are read from the changelog again", figures.cleared),
    ];
    gauges.iter().try_for_each(|(name, help, value)| gauge(encoder, name, help, *value))?;
    counters.iter().try_for_each(|(name, help, value)| counter(encoder, name, help, *value))
}

type Read = fn(&StoreFigures) -> u64;

fn stores(encoder: &mut DescriptorEncoder<'_>, stores: &[StoreFigures]) -> fmt::Result {
    let gauges: [(&str, &str, Read); 4] = [
        ("rocksdb_file_bytes", "Files of a shard's state", |store| store.file_bytes),
        ("rocksdb_pending_compaction_bytes", "What compactions have still to do", |store| {
            store.pending_compaction_bytes
        }),
        ("rocksdb_table_bytes", "Memory of open files beside the cache", |store| store.table_bytes),
        ("rocksdb_writes_stopped", "1 while flushes are held back", |store| u64::from(store.is_stopped)),
    ];
    for (name, help, read) in gauges {
        let example = ConstGauge::new(0i64);
        let mut family = encoder.encode_descriptor(name, help, None, example.metric_type())?;
        for store in stores {
            let Some((stage, shard)) = store.name.rsplit_once('-') else { continue };
            let gauge = ConstGauge::new(i64::try_from(read(store)).unwrap_or(i64::MAX));
            gauge.encode(family.encode_family(&[("stage", stage), ("shard", shard)])?)?;
        }
    }
    Ok(())
}

//! What is measured, as a value that is handed to a process of its own: memory and processor time then belong to it alone.

use anyhow::Result;
use millstream_shard::memory::Pool;
use millstream_shard::runtime::Limits;
use millstream_shard::topics::Topics;
use millstream_stores::rocks::{Bounds, Resources};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Who does the work.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) enum Who {
    /// The shard runtime.
    Shards,
    /// The limit: librdkafka alone.
    Raw,
}

/// One measurement.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Scenario {
    pub(crate) who: Who,
    pub(crate) bootstrap: String,
    /// The broker's process.
    pub(crate) broker: i32,
    /// Prefix of the topics that are written; new for each measurement.
    pub(crate) pipeline: String,
    /// Prefix of the topic that is read.
    pub(crate) source: String,
    /// Shards, one thread each.
    pub(crate) shards: u32,
    /// Memory for state; `None`: as the worker divides what it has by default.
    pub(crate) memory: Option<Memory>,
    /// Not measured: at least so many records and seconds.
    pub(crate) warm_records: u64,
    pub(crate) warm_seconds: u64,
    /// Measured: so many seconds, or until so many records in all were processed.
    pub(crate) seconds: u64,
    pub(crate) records: u64,
}

/// Bounds of a shard's memory that differ from the defaults.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Memory {
    /// The cache of one shard, bytes.
    pub(crate) cache: usize,
    /// Changed state of one shard that is not in RocksDB yet, bytes.
    pub(crate) dirty: usize,
    /// RocksDB's blocks and memtables in the process, bytes.
    pub(crate) blocks: usize,
}

/// What a worker has by default (`state.memory`), in bytes; three eighths of it for caches, a quarter for RocksDB (`worker/src/runtime/memory.rs`).
const WORKER: usize = 512 << 20;

impl Scenario {
    /// The topics; what is read may be another scenario's.
    pub(crate) fn topics(&self) -> Topics {
        let ingress = Topics::new(&self.source, self.shards, 1).ingress;
        Topics { ingress, ..Topics::new(&self.pipeline, self.shards, 1) }
    }

    pub(crate) fn limits(&self, pool: &Pool) -> Limits {
        let limits = Limits::default();
        match self.memory {
            Some(memory) => Limits { cache_bytes: memory.cache, dirty_bytes: memory.dirty, ..limits },
            None => Limits { pool: Some(pool.clone()), ..limits },
        }
    }

    /// For the caches of all shards, where nothing else is said.
    pub(crate) fn pool(&self, resources: &Resources) -> Pool {
        resources.pool(WORKER / 8 * 3, self.shards as usize)
    }

    pub(crate) fn rocks(&self) -> Bounds {
        let bounds = Bounds::new(self.memory.map_or(WORKER / 4, |memory| memory.blocks));
        let memtable_bytes = (bounds.memtables_bytes / self.shards as usize).clamp(1 << 20, 16 << 20);
        Bounds { memtable_bytes, compaction_threads: 2, ..bounds }
    }

    pub(crate) fn warm_up(&self) -> Duration {
        Duration::from_secs(self.warm_seconds)
    }

    pub(crate) fn measured(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    pub(crate) fn to_text(&self) -> Result<String> {
        Ok(serde_json::to_string(self)?)
    }
}

//! Memory and disk of the local state, as a file says them.

use super::Size;
use serde::{Deserialize, Serialize};

/// Memory and disk of the local state, for the whole process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct State {
    /// Memory for the state of all shards of this process (default 512MiB): half for changed and recently used state, in equal shares; a quarter for RocksDB's blocks
    /// and memtables; a quarter for work on them. At least 8MiB per shard and stage that this process
    /// may come to own. What a running batch holds is beside it.
    pub memory: Size,
    /// Threads that compact RocksDB's files, at low priority, for all shards together (default 2).
    pub compaction_threads: u16,
    /// What flushes and compactions may write to the disk per second, all shards together (default 0B: as much as it takes).
    pub write_per_second: Size,
}

impl Default for State {
    fn default() -> State {
        State { memory: Size(512 << 20), compaction_threads: 2, write_per_second: Size(0) }
    }
}

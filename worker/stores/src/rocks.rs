//! A shard's local state on RocksDB.
//!
//! Invariant (I5): entries and the position that they lead to are written in one write batch to one column family, so that they reach
//! the same memtable and the same file together. The write-ahead log is off: a crash loses the newest writes, whole, and the changelog
//! brings them back; what a memtable held is flushed when the store is closed. State keys start with a key group below 4,096,
//! which leaves the keys from `0x10` on to the store itself: the position rests under [`POSITION`].

use millstream_model::key::StateKey;
use millstream_model::proto::StatePosition;
use millstream_shard::state::{Forget, StateStore, StoreError};
use prost::Message as _;
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, FlushOptions, IteratorMode, Options, ReadOptions, WriteBatch,
    WriteOptions,
};
use std::path::Path;

const POSITION: &[u8] = b"\xffposition";
/// The first key that no state key can be: group 4,096, big endian.
const STATE_END: &[u8] = &[0x10];

/// What the stores of one process share, and their bounds.
#[derive(Clone)]
pub struct Resources {
    /// Blocks of all stores; index and filter blocks are charged to it too.
    pub cache: Cache,
    /// Bytes of one memtable of one store; three may exist at a time, while two are being flushed.
    pub memtable_bytes: usize,
}

impl Resources {
    /// A cache of this many bytes, memtables of 16 MB: large enough that a flush is rare, small enough for tens of shards.
    pub fn new(cache_bytes: usize) -> Resources {
        Resources { cache: Cache::new_lru_cache(cache_bytes), memtable_bytes: 16 << 20 }
    }
}

/// A state store on RocksDB, one per shard and folder.
pub struct RocksState {
    db: DB,
}

impl RocksState {
    /// Opens the store in a folder, which is created when missing.
    ///
    /// # Errors
    /// [`StoreError`]: the folder cannot be written, another process uses it, or its files are damaged; then it can be removed, because
    /// the changelog holds everything.
    pub fn open(folder: &Path, resources: &Resources) -> Result<RocksState, StoreError> {
        let db = DB::open(&options(resources), folder)
            .map_err(|error| StoreError(format!("cannot open {}: {error}", folder.display())))?;
        Ok(RocksState { db })
    }

    fn flush(&self) -> Result<(), StoreError> {
        let mut options = FlushOptions::default();
        options.set_wait(true);
        self.db.flush_opt(&options).map_err(failed("flush"))
    }
}

impl Drop for RocksState {
    fn drop(&mut self) {
        // What cannot be flushed here is in the changelog; there is nobody left to tell but the log.
        if let Err(error) = self.flush() {
            tracing::warn!(%error, "local state was not flushed when it was closed; it will be read from the changelog again");
        }
    }
}

fn options(resources: &Resources) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&resources.cache);
    table.set_bloom_filter(10.0, false);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_write_buffer_size(resources.memtable_bytes);
    options.set_max_write_buffer_number(3);
    // RocksDB's own text log, beside the data: enough to explain a failure, bounded.
    options.set_max_log_file_size(4 << 20);
    options.set_keep_log_file_num(2);
    options
}

fn failed(what: &'static str) -> impl Fn(rocksdb::Error) -> StoreError {
    move |error| StoreError(format!("{what}: {error}"))
}

fn without_wal() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.disable_wal(true);
    options
}

impl StateStore for RocksState {
    fn position(&self) -> Result<Option<StatePosition>, StoreError> {
        let Some(bytes) = self.db.get_pinned(POSITION).map_err(failed("read the position"))? else { return Ok(None) };
        let position = StatePosition::decode(&bytes[..]);
        position.map(Some).map_err(|error| StoreError(format!("the position is damaged: {error}")))
    }

    fn multi_get(&self, keys: &[&StateKey]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        let values = self.db.multi_get(keys.iter().map(|key| key.as_bytes()));
        values.into_iter().map(|value| value.map_err(failed("read"))).collect()
    }

    fn write(
        &self,
        forget: Option<&Forget>,
        entries: &mut dyn Iterator<Item = (&StateKey, Option<&[u8]>)>,
        position: &StatePosition,
    ) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        for [start, end] in forget.into_iter().flat_map(Forget::ranges) {
            batch.delete_range(start, end);
        }
        for (key, value) in entries {
            if key.as_bytes() >= STATE_END {
                return Err(StoreError(format!("{key:?} is not a key of a shard's state")));
            }
            match value {
                Some(value) => batch.put(key.as_bytes(), value),
                None => batch.delete(key.as_bytes()),
            }
        }
        batch.put(POSITION, position.encode_to_vec());
        self.db.write_opt(batch, &without_wal()).map_err(failed("write"))
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.flush()
    }

    fn scan(&self, prefix: &[u8], each: &mut dyn FnMut(&StateKey, &[u8])) -> Result<(), StoreError> {
        let mut read = ReadOptions::default();
        read.set_iterate_upper_bound(STATE_END);
        for entry in self.db.iterator_opt(IteratorMode::From(prefix, rocksdb::Direction::Forward), read) {
            let (key, value) = entry.map_err(failed("scan"))?;
            if !key.starts_with(prefix) {
                break;
            }
            each(&StateKey::from_bytes(&key), &value);
        }
        Ok(())
    }

    fn clear(&self) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        batch.delete_range(&b""[..], POSITION);
        batch.delete(POSITION);
        self.db.write_opt(batch, &without_wal()).map_err(failed("clear"))?;
        // Whoever clears does not trust what was there: it must not come back after a crash.
        self.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_outside_the_state_is_refused_and_nothing_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let store = RocksState::open(folder.path(), &Resources::new(1 << 20)).unwrap();
        let (good, bad) = (StateKey::from_bytes(&[0x0f, 0xff]), StateKey::from_bytes(POSITION));
        let entries = [(&good, Some(&b"x"[..])), (&bad, Some(&b"x"[..]))];
        assert!(store.write(None, &mut entries.iter().copied(), &StatePosition::default()).is_err());
        assert_eq!((store.multi_get(&[&good]).unwrap(), store.position().unwrap()), (vec![None], None));
    }

    #[test]
    fn a_folder_in_use_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let _store = RocksState::open(folder.path(), &Resources::new(1 << 20)).unwrap();
        let error = RocksState::open(folder.path(), &Resources::new(1 << 20)).err().unwrap().to_string();
        assert!(error.contains(folder.path().to_str().unwrap()) && error.contains("LOCK"), "{error}");
    }
}

//! What the RocksDB instances of one process share: memory, threads, options, statistics.
//!
//! One block cache holds blocks, indexes and filters of all stores, and its capacity is what RocksDB may take: memtables are charged to it through one write
//! buffer manager, so that blocks give way to them. It is not strict: a strict cache refuses a *read* that would exceed it, or the opening of a file that a flush has
//! just written, which would stop a shard for want of some kilobytes. What could make it exceed is bounded otherwise (memtables by the manager, and to three of
//! each store; whole blocks by what is read at the same time), and the shards' caches give way to it (`runtime/memory.rs` of the worker).
//! The manager does not stall writers either: it would wait for memtables of stores that nobody writes to.

use super::error::{removed, store_error};
use super::snapshot::Copies;
use millstream_shard::memory::Pool;
use millstream_shard::state::StoreError;
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, DB, DBCompressionType, Env, Options, SstFileWriter,
    WriteBufferManager, properties,
    statistics::{StatsLevel, Ticker},
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Files of the first sorted level that make a compaction due. Each flush makes one; they overlap, so each is one more filter to ask.
const LEVEL0_COMPACT: i32 = 8;
/// Files of that level from which writes are slowed down and stopped: far away, because a flush that waits only makes the batch wait in the end, while a few
/// more filters cost little. A bound must be there, or the compaction would never catch up.
const LEVEL0_SLOW: i32 = 40;
const LEVEL0_STOP: i32 = 64;
/// The next level holds about what is compacted into it at once, so that each byte is rewritten there once and not sixteen times.
const LEVEL1_BYTES: u64 = 64 << 20;
/// Bits per key: one in a hundred look-ups of a missing key reads a block for nothing.
const FILTER_BITS: f64 = 10.0;
/// A part of an index or of a filter.
const METADATA_BLOCK_BYTES: usize = 4 << 10;
/// So many entries of an index share one whole key.
const INDEX_RESTART: i32 = 8;

/// Bounds of what the stores of one process share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Blocks, indexes, filters and memtables of all stores, in bytes.
    pub cache_bytes: usize,
    /// Of these, memtables of all stores.
    pub memtables_bytes: usize,
    /// One memtable of one store.
    pub memtable_bytes: usize,
    /// Threads that compact; they run at low priority.
    pub compaction_threads: u16,
    /// What flushes and compactions may write, bytes a second; 0: as much as the disk takes.
    pub write_bytes_per_second: u64,
}

impl Bounds {
    /// Of a cache of so many bytes: half of it for memtables, and 4 MB for one, large enough that a flush is one file.
    pub fn new(cache_bytes: usize) -> Bounds {
        Bounds {
            cache_bytes,
            memtables_bytes: cache_bytes / 2,
            memtable_bytes: 4 << 20,
            compaction_threads: 1,
            write_bytes_per_second: 0,
        }
    }
}

/// What the stores of one process share. Clones are the same.
#[derive(Clone)]
pub struct Resources(Arc<Shared>);

struct Shared {
    cache: Cache,
    /// What it is to hold, bytes.
    capacity: usize,
    memtables: WriteBufferManager,
    options: Options,
    /// Of files that flushes write.
    file_options: Options,
    written_bytes: AtomicU64,
    /// The open stores, by folder.
    stores: Mutex<BTreeMap<PathBuf, Weak<DB>>>,
    cleared: AtomicU64,
    copies: Copies,
}

/// Figures of all stores together; those of work done count since the process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Blocks, indexes, filters and memtables in memory.
    pub cache_bytes: u64,
    /// Of these, what is in use at the moment, memtables included.
    pub pinned_bytes: u64,
    /// Memtables in memory.
    pub memtable_bytes: u64,
    /// Blocks found in memory.
    pub block_hits: u64,
    /// Blocks read from a file.
    pub block_misses: u64,
    /// Look-ups in a file that its filter answered.
    pub filtered: u64,
    /// Written by flushes.
    pub flushed_bytes: u64,
    /// Read by compactions.
    pub compaction_read_bytes: u64,
    /// Written by compactions.
    pub compaction_written_bytes: u64,
    /// Time for which writes were held back, microseconds.
    pub stalled_us: u64,
    /// Stores that were damaged and cleared.
    pub cleared: u64,
}

/// Figures of one store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreFigures {
    /// The name of its folder.
    pub name: String,
    /// Its files.
    pub file_bytes: u64,
    /// What compactions have still to do.
    pub pending_compaction_bytes: u64,
    /// Indexes and filters that are not in the cache.
    pub table_bytes: u64,
    /// Writes are held back now.
    pub is_stopped: bool,
}

impl Resources {
    /// A cache of this many bytes, and otherwise what suits a few stores.
    pub fn new(cache_bytes: usize) -> Resources {
        Resources::with(&Bounds::new(cache_bytes))
    }

    /// With these bounds.
    pub fn with(bounds: &Bounds) -> Resources {
        let cache = Cache::new_lru_cache(bounds.cache_bytes);
        let memtables =
            WriteBufferManager::new_write_buffer_manager_with_cache(bounds.memtables_bytes, false, cache.clone());
        let options = options(bounds, &cache, &memtables);
        let mut file_options = options.clone();
        // As of the first level: it is soon rewritten.
        file_options.set_compression_per_level(&[]);
        file_options.set_compression_type(DBCompressionType::None);
        let (stores, cleared, written_bytes) = (Mutex::default(), AtomicU64::new(0), AtomicU64::new(0));
        let capacity = bounds.cache_bytes;
        Resources(Arc::new(Shared {
            cache,
            capacity,
            memtables,
            options,
            file_options,
            written_bytes,
            stores,
            cleared,
            copies: Copies::default(),
        }))
    }

    /// The copies that there are of stores.
    pub(super) fn copies(&self) -> &Copies {
        &self.0.copies
    }

    /// Opens RocksDB in a folder.
    pub(super) fn open(&self, folder: &Path) -> Result<Arc<DB>, rocksdb::Error> {
        let db = Arc::new(DB::open(&self.0.options, folder)?);
        let mut stores = self.0.stores.lock().unwrap_or_else(PoisonError::into_inner);
        stores.insert(folder.to_owned(), Arc::downgrade(&db));
        Ok(db)
    }

    /// After this nobody else holds the store of this folder.
    pub(super) fn closing(&self, folder: &Path) {
        self.0.stores.lock().unwrap_or_else(PoisonError::into_inner).remove(folder);
    }

    /// Writes a file that a store can take: what `fill` puts into it.
    pub(super) fn write_file(
        &self,
        path: &Path,
        fill: impl FnOnce(&mut SstFileWriter<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        // A crash may have left it as a second name of a file that the store has taken: opening it for writing would empty that one.
        removed(path, std::fs::remove_file(path))?;
        let failed = |error| store_error("write a file", &error);
        let mut file = SstFileWriter::create(&self.0.file_options);
        file.open(path).map_err(failed)?;
        fill(&mut file)?;
        file.finish().map_err(failed)?;
        self.0.written_bytes.fetch_add(file.file_size(), Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn count_cleared(&self) {
        self.0.cleared.fetch_add(1, Ordering::Relaxed);
    }

    /// Blocks, indexes, filters and memtables of all stores in memory. Cheap: counters.
    pub fn memory_bytes(&self) -> usize {
        // Memtables are charged to the cache in steps, by and by.
        self.0.cache.get_usage().max(self.0.memtables.get_usage())
    }

    /// A pool of so many bytes for the write-back caches of about `expected` shards, which gives way to what the stores hold beyond their part.
    pub fn pool(&self, bytes: usize, expected: usize) -> Pool {
        let stores = self.clone();
        let overrun = move || stores.memory_bytes().saturating_sub(stores.0.capacity);
        Pool::beside(bytes, expected, Box::new(overrun))
    }

    /// What all stores use and have done.
    pub fn figures(&self) -> Figures {
        let Shared { cache, memtables, options, written_bytes, cleared, .. } = &*self.0;
        let count = |ticker| options.get_ticker_count(ticker);
        Figures {
            cache_bytes: cache.get_usage() as u64,
            pinned_bytes: cache.get_pinned_usage() as u64,
            memtable_bytes: memtables.get_usage() as u64,
            block_hits: count(Ticker::BlockCacheHit),
            block_misses: count(Ticker::BlockCacheMiss),
            filtered: count(Ticker::BloomFilterUseful),
            flushed_bytes: count(Ticker::FlushWriteBytes) + written_bytes.load(Ordering::Relaxed),
            compaction_read_bytes: count(Ticker::CompactReadBytes),
            compaction_written_bytes: count(Ticker::CompactWriteBytes),
            stalled_us: count(Ticker::StallMicros),
            cleared: cleared.load(Ordering::Relaxed),
        }
    }

    /// What each open store has.
    pub fn stores(&self) -> Vec<StoreFigures> {
        // Under the lock, so that whoever closes a store has it for itself.
        let stores = self.0.stores.lock().unwrap_or_else(PoisonError::into_inner);
        stores.iter().filter_map(|(folder, db)| Some(store_figures(folder, &*db.upgrade()?))).collect()
    }
}

fn store_figures(folder: &Path, db: &DB) -> StoreFigures {
    let number = |name| db.property_int_value(name).ok().flatten().unwrap_or(0);
    StoreFigures {
        name: folder.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        file_bytes: number(properties::TOTAL_SST_FILES_SIZE),
        pending_compaction_bytes: number(properties::ESTIMATE_PENDING_COMPACTION_BYTES),
        table_bytes: number(properties::ESTIMATE_TABLE_READERS_MEM),
        is_stopped: number(properties::IS_WRITE_STOPPED) > 0,
    }
}

fn options(bounds: &Bounds, cache: &Cache, memtables: &WriteBufferManager) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&table(cache));
    options.set_write_buffer_manager(memtables);
    options.set_write_buffer_size(bounds.memtable_bytes);
    // One that is filled, one that is flushed, and one more for a flush larger than a memtable.
    options.set_max_write_buffer_number(3);
    // There is one column family, whose memtable is atomic by itself. It is said all the same: a second family must not bring back half a batch (I5).
    options.set_atomic_flush(true);
    compact(&mut options, bounds);
    options.enable_statistics();
    // Counters alone: histograms and timers cost time on every read.
    options.set_statistics_level(StatsLevel::ExceptHistogramOrTimers);
    // RocksDB's own text log, beside the data: enough to explain a failure, bounded.
    options.set_max_log_file_size(1 << 20);
    options.set_keep_log_file_num(2);
    options
}

/// Bloom and not ribbon filters: a ribbon filter saves a third of 1.25 bytes per key, at several times the time to make it, and beside values of hundreds of bytes
/// filters are small. Filters of the last level are kept: most look-ups of message ids are for what is not there.
fn table(cache: &Cache) -> BlockBasedOptions {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_bloom_filter(FILTER_BITS, false);
    // In the cache, so that they are part of the budget however large the state is; those of the newest files are needed by every look-up.
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    // In parts of 4 kB, of which the cache keeps those in use: when the state is much larger than the cache, a whole index (200 kB for a file of 16 MB) would be
    // read and decompressed again for one entry. What leads to the parts is small, and stays.
    table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_partition_filters(true);
    table.set_metadata_block_size(METADATA_BLOCK_BYTES);
    table.set_pin_top_level_index_and_filter(true);
    // Neighbours share most of their keys: without the repetition an index is a third as large.
    table.set_index_block_restart_interval(INDEX_RESTART);
    table
}

fn compact(options: &mut Options, bounds: &Bounds) {
    options.set_level_zero_file_num_compaction_trigger(LEVEL0_COMPACT);
    options.set_level_zero_slowdown_writes_trigger(LEVEL0_SLOW);
    options.set_level_zero_stop_writes_trigger(LEVEL0_STOP);
    options.set_max_bytes_for_level_base(LEVEL1_BYTES);
    options.set_target_file_size_base(LEVEL1_BYTES / 4);
    // What a flush writes is soon rewritten: compressing it would be work for nothing. The last entry stands for all deeper levels.
    options.set_compression_per_level(&[DBCompressionType::None, DBCompressionType::Lz4]);
    options.set_max_background_jobs(2);
    // Buffers of a compaction, for each file that it reads and writes, are in no cache and in no bound: by default they are 2 MB and 1 MB. The system reads ahead, too.
    options.set_compaction_readahead_size(256 << 10);
    options.set_writable_file_max_buffer_size(256 << 10);
    if bounds.write_bytes_per_second > 0 {
        // Flushes come first; refilled ten times a second, of which compactions get at least a tenth.
        let rate = i64::try_from(bounds.write_bytes_per_second).unwrap_or(i64::MAX);
        options.set_ratelimiter(rate, 100_000, 10);
    }
    // One pool of threads for all stores of the process: as many compactions at a time, whatever the number of shards, behind the threads that
    // run batches. Without the environment RocksDB uses its own, which is the same one with other numbers.
    if let Ok(mut env) = Env::new() {
        env.set_low_priority_background_threads(i32::from(bounds.compaction_threads.max(1)));
        env.set_high_priority_background_threads(1);
        env.lower_thread_pool_cpu_priority();
        env.lower_thread_pool_io_priority();
        options.set_env(&env);
    }
}

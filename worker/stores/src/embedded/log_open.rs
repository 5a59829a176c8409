//! Opening the embedded log: its folder, its format, and what is in memory while it is open.
//!
//! Everything in memory follows from the folder. A transaction that was open when the process died has left nothing behind but gaps.

use super::log_format::{self as format, PartitionId};
use super::log_state::{Partition, State, Topic};
use millstream_shard::Clock;
use millstream_shard::log::LogError;
use rocksdb::{ColumnFamilyDescriptor, DB, DBCompressionType, IteratorMode, Options, WriteBatch};
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::Path;

/// The column family of messages.
pub(super) const MESSAGES: &str = "messages";

/// The error of a RocksDB that fails.
pub(super) fn unavailable(what: &str, error: &rocksdb::Error) -> LogError {
    LogError::Unavailable(format!("embedded log, {what}: {error}"))
}

fn damaged(what: &str) -> LogError {
    LogError::Configuration(format!("the folder of the embedded log is damaged: {what}"))
}

/// Opens RocksDB; one process at a time can.
pub(super) fn open_db(folder: &Path, memtable_bytes: usize) -> Result<DB, LogError> {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_write_buffer_size(memtable_bytes);
    options.set_max_total_wal_size(256 << 20);
    options.set_max_log_file_size(4 << 20);
    options.set_keep_log_file_num(2);
    let families = ["default", MESSAGES].map(|name| ColumnFamilyDescriptor::new(name, options.clone()));
    DB::open_cf_descriptors(&options, folder, families).map_err(|error| {
        let text = error.to_string();
        let hint = if text.contains("LOCK") || text.contains("lock hold") {
            "another process uses it; stop that one, or name another folder"
        } else {
            "check that it exists, belongs to this user and has space"
        };
        LogError::Configuration(format!("cannot open the embedded log in {}: {hint} ({text})", folder.display()))
    })
}

/// Checks the format and gives the id of the folder, made when it is new: part of topic ids, so that those of two folders differ.
pub(super) fn identify(db: &DB, folder: &Path, clock: &dyn Clock) -> Result<u64, LogError> {
    let read = |key: &[u8]| db.get(key).map_err(|error| unavailable("open", &error));
    match read(b"F")?.as_deref() {
        None | Some([format::FORMAT]) => {}
        Some(other) => {
            let found = other.first().copied().unwrap_or(0);
            let message = format!("{} holds format {found}, newer than this version understands", folder.display());
            return Err(LogError::Configuration(message));
        }
    }
    if let Some(id) = read(b"D")? {
        return Ok(u64::from_be_bytes(id.try_into().map_err(|_| damaged("its id"))?));
    }
    let mut hasher = DefaultHasher::new();
    (folder, clock.now_ms(), std::process::id()).hash(&mut hasher);
    let id = hasher.finish();
    let mut batch = WriteBatch::default();
    batch.put(b"F", [format::FORMAT]);
    batch.put(b"D", id.to_be_bytes());
    db.write(batch).map_err(|error| unavailable("open", &error))?;
    Ok(id)
}

/// Topics, partitions and epochs as the folder has them.
pub(super) fn load(db: &DB) -> Result<State, LogError> {
    let mut state = State::default();
    for entry in db.iterator(IteratorMode::Start) {
        let (key, value) = entry.map_err(|error| unavailable("open", &error))?;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| damaged("a name is not UTF-8"));
        match key.split_first() {
            Some((b'N', _)) => {
                let bytes = value[..].try_into().map_err(|_| damaged("the next topic number"))?;
                state.next_topic = u32::from_be_bytes(bytes);
            }
            Some((b'T', name)) => {
                let name = text(name)?;
                let (number, spec) = format::decode_topic(&name, &value).ok_or_else(|| damaged(&name))?;
                state.topics.insert(name.into(), Topic { number, spec });
            }
            Some((b'X', id)) => {
                let epoch = u64::from_be_bytes(value[..].try_into().map_err(|_| damaged("an epoch"))?);
                state.owners.entry(text(id)?).or_default().epoch = epoch;
            }
            _ => {}
        }
    }
    let State { topics, partitions, .. } = &mut state;
    for topic in topics.values() {
        for partition in 0..topic.spec.partitions {
            let id = PartitionId { topic: topic.number, partition };
            partitions.insert(id, load_partition(db, id, topic.spec.append_time)?);
        }
    }
    Ok(state)
}

/// Start and newest time are stored when a partition is trimmed; its end follows from its last message or control record.
fn load_partition(db: &DB, id: PartitionId, append_time: bool) -> Result<Partition, LogError> {
    let failed = |error: rocksdb::Error| unavailable("open", &error);
    let (start, time_ms) = match db.get(id.meta_key()).map_err(failed)? {
        Some(value) => format::unpair(&value).ok_or_else(|| damaged("the start of a partition"))?,
        None => (0, 0),
    };
    let mut partition = Partition { start, end: start, time_ms, append_time, ..Partition::default() };
    let messages = db.cf_handle(MESSAGES).ok_or_else(|| damaged("no column family `messages`"))?;
    let mut iterator = db.raw_iterator_cf(messages);
    iterator.seek_for_prev(id.at(u64::MAX));
    iterator.status().map_err(failed)?;
    if let Some((key, value)) = iterator.item()
        && let Some(offset) = id.offset_of(key)
    {
        partition.end = partition.end.max(offset + 1);
        partition.time_ms = partition.time_ms.max(format::decode(value).ok_or_else(|| damaged("a message"))?.time_ms);
    }
    Ok(partition)
}

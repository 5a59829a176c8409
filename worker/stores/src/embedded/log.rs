//! The embedded log: topics, transactions and fencing as Kafka has them, in one process on one RocksDB.
//!
//! Protocol. A message gets its offset when it is sent. Plain messages of all producers are written in groups by one thread
//! (`log_writer`), and acknowledged after the write. A transaction collects its messages in a write batch of its client and holds readers back
//! in each partition it touches; commit writes the batch, with a control record per partition, in one write: atomic over all partitions.
//! What is not committed is never on disk, so a process that dies aborts its transactions (offsets that only they had used are used again; no
//! reader can have passed them). A transactional id has an epoch on disk; a new producer raises it, waits for a commit under way, and ends the
//! former's open transaction (I4).
//!
//! Durability: the write-ahead log has been handed to the operating system before anything is acknowledged, so `kill -9` loses
//! nothing; [`LogOptions::fsync`] extends that to the machine. One process at a time: RocksDB's LOCK.

use super::log_consumer::{EmbeddedConsumer, read};
use super::log_format::{self as format, PartitionId};
use super::log_open::{MESSAGES, identify, load, open_db, unavailable};
use super::log_state::{Partition, State, Topic, out_of_range};
use super::log_transactional::EmbeddedTransactional;
use super::log_writer::{EmbeddedProducer, Queue};
use millstream_shard::Clock;
use millstream_shard::log::{
    Consumer, EachRead, Ends, Log, LogError, Producer, Start, TopicPartition, TopicSpec, Transactional, View,
};
use rocksdb::{ColumnFamily, DB, WriteBatch, WriteOptions};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// How the embedded log is opened.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// True: what is acknowledged is on the disk, not only with the operating system; costs a disk flush per group of messages.
    pub fsync: bool,
    /// The largest payload and key, together, in bytes. The default of 8 MiB leaves room for a frame of one large record.
    pub max_message_bytes: usize,
    /// Bytes that may wait to be written; beyond them [`Producer::send`] refuses, as unavailable.
    pub queue_bytes: usize,
    /// What is kept in memory before it goes to a file. Messages are read soon after they were written: with much of it, most are never read from a file.
    pub memtable_bytes: usize,
}

impl Default for LogOptions {
    fn default() -> LogOptions {
        LogOptions { fsync: false, max_message_bytes: 8 << 20, queue_bytes: 64 << 20, memtable_bytes: 32 << 20 }
    }
}

/// The embedded log. Its clients keep it open.
pub struct EmbeddedLog {
    handle: Arc<Handle>,
}

/// What all clients and the writing thread share.
pub(super) struct Shared {
    pub(super) db: DB,
    pub(super) options: LogOptions,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) queue: Queue,
    /// Changes with everything that readers or new producers wait for.
    pub(super) changed: Condvar,
    state: Mutex<State>,
    folder_id: u64,
}

/// Keeps the writing thread; the last one to drop it ends the thread after all that waits was written.
pub(super) struct Handle {
    pub(super) shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.queue.close();
        if let Some(writer) = self.writer.take() {
            // An acknowledgement may own the last client; the writing thread cannot wait for itself.
            if writer.thread().id() != std::thread::current().id() {
                drop(writer.join());
            }
        }
    }
}

impl Shared {
    /// The state. A panic elsewhere cannot leave it half changed: every change is made of single assignments in order.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where messages are.
    pub(super) fn messages(&self) -> Result<&ColumnFamily, LogError> {
        let missing =
            || LogError::Configuration("the folder of the embedded log has no column family `messages`".into());
        self.db.cf_handle(MESSAGES).ok_or_else(missing)
    }

    /// Writes a batch as durably as the options say.
    pub(super) fn write(&self, batch: WriteBatch) -> Result<(), rocksdb::Error> {
        let mut options = WriteOptions::default();
        options.set_sync(self.options.fsync);
        self.db.write_opt(batch, &options)
    }

    /// Writes a batch while the state is locked; a failure ends the log's life.
    pub(super) fn write_locked(&self, state: &mut State, batch: WriteBatch) -> Result<(), LogError> {
        self.write(batch).map_err(|error| {
            state.failed = Some(error.to_string());
            self.changed.notify_all();
            unavailable("write", &error)
        })
    }
}

impl EmbeddedLog {
    /// Opens the log in a folder, which is created when missing.
    ///
    /// # Errors
    /// [`LogError::Configuration`]: another process uses the folder, a newer version wrote it, or it is damaged.
    pub fn open(folder: &Path, options: LogOptions, clock: Arc<dyn Clock>) -> Result<EmbeddedLog, LogError> {
        let db = open_db(folder, options.memtable_bytes)?;
        let folder_id = identify(&db, folder, &*clock)?;
        let state = load(&db)?;
        let queue = Queue::new(options.queue_bytes);
        let shared = Arc::new(Shared {
            db,
            options,
            clock,
            queue,
            changed: Condvar::new(),
            state: Mutex::new(state),
            folder_id,
        });
        let writing = shared.clone();
        let writer = std::thread::Builder::new()
            .name("embedded-log".to_owned())
            .spawn(move || super::log_writer::run(&writing))
            .map_err(|error| LogError::Unavailable(format!("cannot start the writing thread: {error}")))?;
        Ok(EmbeddedLog { handle: Arc::new(Handle { shared, writer: Some(writer) }) })
    }

    /// How many partitions a topic has, if there is one of this name.
    pub fn partitions(&self, topic: &str) -> Option<u32> {
        self.handle.shared.lock().topics.get(topic).map(|topic| topic.spec.partitions)
    }

    /// Deletes a topic with all it holds. Its clients get [`LogError::Topic`].
    ///
    /// # Errors
    /// [`LogError::Topic`] when it does not exist, [`LogError::Unavailable`].
    pub fn delete_topic(&self, topic: &str) -> Result<(), LogError> {
        let shared = &self.handle.shared;
        let messages = shared.messages()?;
        let mut state = shared.lock();
        state.check()?;
        let number = state.find(topic, 0)?.topic;
        let mut batch = WriteBatch::default();
        batch.delete([b"T", topic.as_bytes()].concat());
        let mine = |partition| PartitionId { topic: number, partition };
        batch.delete_range(mine(0).meta_key(), mine(u32::MAX).meta_key());
        batch.delete_range_cf(messages, mine(0).at(0), mine(u32::MAX).at(0));
        shared.write_locked(&mut state, batch)?;
        state.topics.remove(topic);
        state.partitions.retain(|id, _| id.topic != number);
        drop(state);
        shared.changed.notify_all();
        Ok(())
    }
}

impl Log for EmbeddedLog {
    fn trim(&self, at: &TopicPartition, before: u64) -> Result<(), LogError> {
        let shared = &self.handle.shared;
        let messages = shared.messages()?;
        let mut state = shared.lock();
        state.check()?;
        let id = state.find(&at.topic, at.partition)?;
        let partition = state.partition(id, &at.topic)?;
        if before > partition.visible_end() {
            return Err(out_of_range(at, before, partition));
        }
        if before <= partition.start {
            return Ok(());
        }
        let mut batch = WriteBatch::default();
        batch.put(id.meta_key(), format::pair(before, partition.time_ms));
        batch.delete_range_cf(messages, id.at(0), id.at(before));
        shared.write_locked(&mut state, batch)?;
        if let Some(partition) = state.partitions.get_mut(&id) {
            partition.start = before;
        }
        Ok(())
    }

    fn persist(&self) -> Result<(), LogError> {
        self.handle.shared.db.flush_wal(true).map_err(|error| unavailable("sync", &error))
    }

    fn create_topics(&self, topics: &[TopicSpec]) -> Result<(), LogError> {
        let shared = &self.handle.shared;
        let mut state = shared.lock();
        state.check()?;
        let mut missing = Vec::new();
        for spec in topics {
            match state.topics.get(spec.name.as_str()) {
                Some(topic) => same(&topic.spec, spec)?,
                None => missing.push(valid(spec)?),
            }
        }
        let mut batch = WriteBatch::default();
        let first = state.next_topic;
        for (number, spec) in (first..).zip(&missing) {
            batch.put([b"T", spec.name.as_bytes()].concat(), format::encode_topic(number, spec));
        }
        batch.put(b"N", (first + missing.len() as u32).to_be_bytes());
        shared.write_locked(&mut state, batch)?;
        for (number, spec) in (first..).zip(missing) {
            state.next_topic = number + 1;
            for partition in 0..spec.partitions {
                let fresh = Partition { append_time: spec.append_time, ..Partition::default() };
                state.partitions.insert(PartitionId { topic: number, partition }, fresh);
            }
            state.topics.insert(spec.name.as_str().into(), Topic { number, spec: spec.clone() });
        }
        Ok(())
    }

    fn topic_id(&self, topic: &str) -> Result<String, LogError> {
        let number = self.handle.shared.lock().find(topic, 0)?.topic;
        Ok(format!("{:016x}-{number}", self.handle.shared.folder_id))
    }

    fn bounds(&self, at: &TopicPartition) -> Result<(u64, u64), LogError> {
        let state = self.handle.shared.lock();
        let id = state.find(&at.topic, at.partition)?;
        let partition = state.partition(id, &at.topic)?;
        Ok((partition.start, partition.visible_end()))
    }

    fn ends(&self, of: &[TopicPartition]) -> Result<Vec<Ends>, LogError> {
        let state = self.handle.shared.lock();
        let ends = |at: &TopicPartition| {
            let partition = state.partition(state.find(&at.topic, at.partition)?, &at.topic)?;
            Ok(Ends { visible: partition.visible_end(), end: partition.end })
        };
        of.iter().map(ends).collect()
    }

    fn consumer(&self, assignments: &[(TopicPartition, Start)]) -> Result<Box<dyn Consumer>, LogError> {
        Ok(Box::new(EmbeddedConsumer::new(self.handle.clone(), assignments)?))
    }

    fn read(&self, of: &[(TopicPartition, Range<u64>)], view: View, each: EachRead<'_>) -> Result<(), LogError> {
        of.iter()
            .enumerate()
            .try_for_each(|(index, part)| read(&self.handle.shared, part, view, &mut |whole| each(index, whole)))
    }

    fn producer(&self) -> Result<Box<dyn Producer>, LogError> {
        Ok(Box::new(EmbeddedProducer::new(self.handle.clone())))
    }

    fn transactional(&self, id: &str) -> Result<Box<dyn Transactional>, LogError> {
        Ok(Box::new(EmbeddedTransactional::new(self.handle.clone(), id)?))
    }
}

fn same(found: &TopicSpec, wanted: &TopicSpec) -> Result<(), LogError> {
    if (found.partitions, found.append_time) == (wanted.partitions, wanted.append_time) {
        return Ok(());
    }
    let text = |spec: &TopicSpec| {
        let time = if spec.append_time { "the log's time" } else { "the sender's time" };
        format!("{} partitions and {time}", spec.partitions)
    };
    let message = format!("exists with {}, {} were asked for", text(found), text(wanted));
    Err(LogError::Topic { topic: found.name.clone(), message })
}

fn valid(spec: &TopicSpec) -> Result<&TopicSpec, LogError> {
    let legal = |character: char| character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | '-');
    let wrong = match spec {
        TopicSpec { partitions: 0 | 100_001.., .. } => "needs between 1 and 100,000 partitions",
        TopicSpec { name, .. } if name.is_empty() || name.len() > 249 || !name.chars().all(legal) => {
            "a name has 1 to 249 letters, digits, `.`, `_` and `-`"
        }
        _ => return Ok(spec),
    };
    Err(LogError::Topic { topic: spec.name.clone(), message: wrong.to_owned() })
}

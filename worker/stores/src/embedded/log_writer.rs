//! Plain producers of the embedded log, and the thread that writes for all of them in groups.
//!
//! What waits while one group is being written is the next group: a group is as small as the load allows, and as large as it
//! asks for. A group holds readers back at its first offset in each partition until it is written; then it is acknowledged.

use super::log::{Handle, Shared};
use super::log_format::{self as format, PartitionId};
use super::log_open::unavailable;
use super::log_state::deleted;
use millstream_shard::log::{Acknowledge, LogError, Outgoing, Producer};
use rocksdb::WriteBatch;
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// A message that waits to be written.
struct Waiting {
    to: PartitionId,
    topic: Arc<str>,
    value: Vec<u8>,
    acknowledge: Acknowledge,
}

#[derive(Default)]
struct Inner {
    waiting: Vec<Waiting>,
    bytes: usize,
    closed: bool,
}

/// What waits for the writing thread.
pub(super) struct Queue {
    inner: Mutex<Inner>,
    filled: Condvar,
    bound: usize,
}

impl Queue {
    /// A queue that takes no more once more than `bound` bytes wait in it.
    pub(super) fn new(bound: usize) -> Queue {
        Queue { inner: Mutex::default(), filled: Condvar::new(), bound }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a message, or gives it back when the queue is full: who sends may be a thread that others wait for, so it is never made to wait.
    fn push(&self, waiting: Waiting) -> Result<(), Waiting> {
        let mut inner = self.lock();
        if inner.bytes > self.bound {
            return Err(waiting);
        }
        inner.bytes += waiting.value.len();
        inner.waiting.push(waiting);
        if inner.waiting.len() == 1 {
            self.filled.notify_one();
        }
        Ok(())
    }

    /// Everything that waits, as soon as there is something; `None` when the queue is closed and empty.
    fn take(&self) -> Option<Vec<Waiting>> {
        let mut inner = self.lock();
        while inner.waiting.is_empty() {
            if inner.closed {
                return None;
            }
            inner = self.filled.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        inner.bytes = 0;
        Some(std::mem::take(&mut inner.waiting))
    }

    /// No more sends will come.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_all();
    }
}

/// The writing thread: until the queue is closed and everything in it was written.
pub(super) fn run(shared: &Shared) {
    while let Some(group) = shared.queue.take() {
        write(shared, group);
    }
}

fn write(shared: &Shared, group: Vec<Waiting>) {
    let mut fates = Vec::with_capacity(group.len());
    let written = place(shared, group, &mut fates);
    for (acknowledge, fate) in fates {
        acknowledge(match (&written, fate) {
            (Err(error), Ok(_)) => Err(LogError::Unknown(error.to_string())),
            (_, fate) => fate,
        });
    }
}

fn place(
    shared: &Shared,
    group: Vec<Waiting>,
    fates: &mut Vec<(Acknowledge, Result<u64, LogError>)>,
) -> Result<(), LogError> {
    let messages = shared.messages();
    let mut batch = WriteBatch::default();
    let mut first: BTreeMap<PartitionId, u64> = BTreeMap::new();
    let mut state = shared.lock();
    let now_ms = shared.clock.now_ms();
    for mut waiting in group {
        let fate = match (state.check(), &messages, state.partitions.get_mut(&waiting.to)) {
            (Err(error), _, _) => Err(error),
            (_, Ok(messages), Some(partition)) => {
                let (offset, time_ms) = partition.take(now_ms);
                format::stamp(&mut waiting.value, time_ms);
                batch.put_cf(messages, waiting.to.at(offset), &waiting.value);
                first.entry(waiting.to).or_insert_with(|| {
                    partition.holds.insert(offset);
                    offset
                });
                Ok(offset)
            }
            _ => Err(deleted(&waiting.topic)),
        };
        fates.push((waiting.acknowledge, fate));
    }
    drop(state);
    let written = shared.write(batch);
    let mut state = shared.lock();
    if let Err(error) = written {
        // The holds stay: what the write came to is known when the log is opened again.
        state.failed = Some(error.to_string());
        shared.changed.notify_all();
        return Err(unavailable("write", &error));
    }
    state.release(&first.into_iter().collect::<Vec<_>>());
    drop(state);
    shared.changed.notify_all();
    Ok(())
}

/// A producer without transactions.
pub(super) struct EmbeddedProducer {
    handle: Arc<Handle>,
}

impl EmbeddedProducer {
    pub(super) fn new(handle: Arc<Handle>) -> EmbeddedProducer {
        EmbeddedProducer { handle }
    }
}

/// The partition of a message that the log can take.
pub(super) fn admit(shared: &Shared, message: &Outgoing<'_>) -> Result<PartitionId, LogError> {
    let size = message.key.len() + message.payload.len();
    if size > shared.options.max_message_bytes {
        return Err(LogError::TooLarge { topic: message.topic.to_owned(), size });
    }
    shared.lock().find(message.topic, message.partition)
}

fn full() -> LogError {
    LogError::Unavailable("the queue is full: the disk takes less than is sent".to_owned())
}

impl Producer for EmbeddedProducer {
    fn send(&self, message: Outgoing<'_>, acknowledge: Acknowledge) {
        let shared = &self.handle.shared;
        match admit(shared, &message) {
            Ok(to) => {
                let value = format::encode(&message);
                let waiting = Waiting { to, topic: message.topic.into(), value, acknowledge };
                if let Err(refused) = shared.queue.push(waiting) {
                    (refused.acknowledge)(Err(full()));
                }
            }
            Err(error) => acknowledge(Err(error)),
        }
    }
}

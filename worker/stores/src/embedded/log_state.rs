//! What the embedded log knows in memory, under one lock: topics, the ends of partitions, who holds readers back.
//!
//! Invariant: a reader of a partition stops at the first *hold*. An open transaction holds from its first offset in the partition until it is
//! decided and written, a group of plain messages from its first offset until it is written. So what is visible is on disk,
//! and nothing appears below an offset that a reader has passed.

use super::log_format::PartitionId;
use millstream_shard::log::{LogError, TopicPartition, TopicSpec};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// A partition in memory.
#[derive(Debug, Default)]
pub(super) struct Partition {
    /// First offset.
    pub(super) start: u64,
    /// The offset that the next message gets.
    pub(super) end: u64,
    /// Newest time given; with append time, later ones are never lower (I7).
    pub(super) time_ms: u64,
    /// Carries the log's time?
    pub(super) append_time: bool,
    /// First offsets of what is not decided or not written yet.
    pub(super) holds: BTreeSet<u64>,
}

impl Partition {
    /// One after the last offset that readers may see.
    pub(super) fn visible_end(&self) -> u64 {
        self.holds.first().copied().unwrap_or(self.end)
    }

    /// The next offset and its time.
    pub(super) fn take(&mut self, now_ms: u64) -> (u64, u64) {
        let offset = self.end;
        self.end += 1;
        let time_ms = if self.append_time { self.time_ms.max(now_ms) } else { now_ms };
        self.time_ms = self.time_ms.max(time_ms);
        (offset, time_ms)
    }
}

/// A topic in memory.
#[derive(Debug)]
pub(super) struct Topic {
    pub(super) number: u32,
    pub(super) spec: TopicSpec,
}

/// A transactional id.
#[derive(Debug, Default)]
pub(super) struct Owner {
    /// Of its newest producer; persisted.
    pub(super) epoch: u64,
    /// Where its open transaction holds readers back.
    pub(super) holds: Vec<(PartitionId, u64)>,
    /// True while its commit is being written: who takes the id over waits for that.
    pub(super) committing: bool,
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) topics: HashMap<Arc<str>, Topic>,
    pub(super) partitions: HashMap<PartitionId, Partition>,
    pub(super) owners: HashMap<String, Owner>,
    pub(super) next_topic: u32,
    /// Why nothing can be written any more: a write failed, and what it came to is unknown until the log is opened again.
    pub(super) failed: Option<String>,
}

impl State {
    /// The numbers of a partition.
    pub(super) fn find(&self, topic: &str, partition: u32) -> Result<PartitionId, LogError> {
        let missing = |message: String| LogError::Topic { topic: topic.to_owned(), message };
        let found = self.topics.get(topic).ok_or_else(|| missing("does not exist".to_owned()))?;
        if partition >= found.spec.partitions {
            let count = found.spec.partitions;
            return Err(missing(format!("has no partition {partition}; it has {count}, counted from 0")));
        }
        Ok(PartitionId { topic: found.number, partition })
    }

    /// A partition that a client found before; gone when the topic was deleted since.
    pub(super) fn partition(&self, id: PartitionId, topic: &str) -> Result<&Partition, LogError> {
        self.partitions.get(&id).ok_or_else(|| deleted(topic))
    }

    /// An error when the log cannot be written any more.
    pub(super) fn check(&self) -> Result<(), LogError> {
        match &self.failed {
            None => Ok(()),
            Some(reason) => Err(LogError::Unavailable(format!("a write failed, open the log again: {reason}"))),
        }
    }

    /// Ends holds.
    pub(super) fn release(&mut self, holds: &[(PartitionId, u64)]) {
        for (id, offset) in holds {
            if let Some(partition) = self.partitions.get_mut(id) {
                partition.holds.remove(offset);
            }
        }
    }
}

/// The error of a topic that was deleted under a client.
pub(super) fn deleted(topic: &str) -> LogError {
    LogError::Topic { topic: topic.to_owned(), message: "was deleted".to_owned() }
}

/// The error of an offset that is not in a partition.
pub(super) fn out_of_range(at: &TopicPartition, offset: u64, partition: &Partition) -> LogError {
    LogError::OutOfRange { at: at.clone(), offset, start: partition.start, end: partition.visible_end() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_hold_is_the_visible_end() {
        let mut partition = Partition { end: 10, ..Partition::default() };
        assert_eq!(partition.visible_end(), 10);
        partition.holds.extend([7, 4]);
        assert_eq!(partition.visible_end(), 4);
        partition.holds.remove(&4);
        assert_eq!(partition.visible_end(), 7);
    }

    #[test]
    fn append_time_never_goes_back() {
        let mut partition = Partition { append_time: true, ..Partition::default() };
        assert_eq!([100, 90, 110].map(|now| partition.take(now)), [(0, 100), (1, 100), (2, 110)]);
        let mut sender = Partition::default();
        assert_eq!([100, 90].map(|now| sender.take(now).1), [100, 90]);
    }
}

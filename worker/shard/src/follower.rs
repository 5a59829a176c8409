//! Following a changelog into the local store.
//!
//! Used to open a shard (and, later, by standbys). **I6, no silent start**: local state that belongs to another topic, or lies outside the
//! log, is given up and the whole changelog read instead; when the log does not hold the whole any more, the shard stops with a condition.
//! **I5**: entries and position are written together, only between batches.

use crate::ShardError;
use crate::cache::Map;
use crate::changelog::{Assembler, ChangelogError, Step};
use crate::log::{Consumer, Log, Start, TopicPartition};
use crate::state::StateStore;
use millstream_model::key::StateKey;
use millstream_model::proto::{Batch, StatePosition};
use std::sync::Arc;
use std::time::Duration;

/// Entries that wait to be written to the store, at most about this many bytes.
const PENDING_BYTES: usize = 16 << 20;
/// Messages per poll; each holds up to 1 MB of entries.
const MESSAGES: usize = 8;
/// How long one poll waits. Long enough to be cheap; the end of the log is noticed by position, not by time.
const POLL: Duration = Duration::from_millis(200);
/// After this many polls without progress the log counts as unavailable.
const PATIENCE: u32 = 150;

/// A reader of one changelog.
pub struct Follower {
    at: TopicPartition,
    store: Arc<dyn StateStore>,
    consumer: Box<dyn Consumer>,
    assembler: Assembler,
    position: StatePosition,
    has_genesis: bool,
    /// Began at a position of the local store, not at the beginning of the changelog.
    from_local: bool,
    pending: Map<StateKey, Option<Vec<u8>>>,
    pending_bytes: usize,
}

impl Follower {
    /// Opens the changelog at the store's position, or at its start.
    ///
    /// # Errors
    /// [`ShardError`].
    pub fn open(log: &dyn Log, at: TopicPartition, store: Arc<dyn StateStore>) -> Result<Follower, ShardError> {
        let topic_id = log.topic_id(&at.topic)?;
        let (start, end) = log.bounds(&at)?;
        let stored = store.position()?.filter(|position| position.topic_id == topic_id);
        let usable = stored.filter(|position| (start..=end).contains(&position.changelog_offset));
        let position = match usable {
            Some(position) => position,
            None if start > 0 => {
                return Err(ShardError::Stopped(format!(
                    "{at} starts at {start}: its beginning was deleted, and the local state does not reach it; restore a savepoint"
                )));
            }
            None => {
                store.clear()?;
                StatePosition { topic_id, ..StatePosition::default() }
            }
        };
        let consumer = log.consumer(&[(at.clone(), Start::At(position.changelog_offset))])?;
        let assembler = Assembler::after(position.batch_number, position.digest);
        let has_genesis = position.changelog_offset > 0;
        let pending = Map::default();
        let from_local = has_genesis;
        Ok(Follower { at, store, consumer, assembler, position, has_genesis, from_local, pending, pending_bytes: 0 })
    }

    /// Reads everything that is visible now: asks the partition's leader for the end, and follows until the reader is there.
    ///
    /// # Errors
    /// [`ShardError`].
    pub fn read_to_end(&mut self, log: &dyn Log) -> Result<(), ShardError> {
        let (_, end) = log.bounds(&self.at)?;
        let mut idle = 0;
        while self.consumer.positions().first().is_none_or(|position| *position < end) {
            let before = self.consumer.positions();
            self.poll()?;
            idle = if before == self.consumer.positions() { idle + 1 } else { 0 };
            if idle > PATIENCE {
                return Err(ShardError::Reopen(format!("{} cannot be read to its end at {end}", self.at)));
            }
        }
        self.write_pending(end)
    }

    fn poll(&mut self) -> Result<(), ShardError> {
        let mut steps = Vec::new();
        let (assembler, mut failed) = (&mut self.assembler, None);
        self.consumer.poll(MESSAGES, POLL, &mut |message| {
            if failed.is_none() {
                match assembler.read(message.offset, message.payload) {
                    Ok(read) => steps.extend(read),
                    Err(error) => failed = Some(error),
                }
            }
        })?;
        for step in steps {
            self.apply(step)?;
        }
        match failed {
            None => Ok(()),
            Some(error @ ChangelogError::Broken { .. }) if self.from_local => {
                self.store.clear()?;
                Err(ShardError::Reopen(format!("{}: the local state does not fit and was discarded: {error}", self.at)))
            }
            Some(error) => Err(ShardError::Stopped(format!("{}: {error}", self.at))),
        }
    }

    fn apply(&mut self, step: Step) -> Result<(), ShardError> {
        match step {
            Step::Genesis(_) => self.has_genesis = true,
            Step::Ownership(record) if record.epoch > self.position.epoch => {
                self.position.epoch = record.epoch;
                self.position.slot = record.slot;
            }
            Step::Ownership(_) => {}
            Step::Batch(batch) => self.batch(batch)?,
        }
        Ok(())
    }

    fn batch(&mut self, batch: Batch) -> Result<(), ShardError> {
        for entry in batch.entries {
            self.pending_bytes += entry.key.len() + entry.value.as_ref().map_or(0, Vec::len);
            self.pending.insert(StateKey::from_bytes(&entry.key), entry.value);
        }
        self.position = StatePosition {
            digest: batch.digest,
            batch_number: batch.number,
            time_ms: batch.time_ms,
            stamp_time_ms: batch.stamp_time_ms,
            inputs: batch.inputs,
            ..std::mem::take(&mut self.position)
        };
        // Written between batches only, so that the store always shows the state at a batch boundary; the offset to follow from stays where it
        // was, because batches that are known already are skipped.
        if self.pending_bytes > PENDING_BYTES {
            let offset = self.position.changelog_offset;
            self.write_pending(offset)?;
        }
        Ok(())
    }

    fn write_pending(&mut self, offset: u64) -> Result<(), ShardError> {
        self.position.changelog_offset = offset;
        let mut entries = self.pending.iter().map(|(key, value)| (key, value.as_deref()));
        self.store.write(&mut entries, &self.position)?;
        self.pending.clear();
        self.pending_bytes = 0;
        Ok(())
    }

    /// How far the local store is after [`Follower::read_to_end`].
    pub fn position(&self) -> &StatePosition {
        &self.position
    }

    /// Was the shard's first record there?
    pub fn has_genesis(&self) -> bool {
        self.has_genesis
    }
}

//! Readers of the embedded log.
//!
//! Invariant: a reader never passes an offset that may still become visible, and never jumps over one that was removed (I6): the snapshot that it reads
//! from is taken under the same lock under which its position was compared with the partition's start.

use super::log::{Handle, Shared};
use super::log_format::{self as format, PartitionId};
use super::log_open::unavailable;
use super::log_state::{State, out_of_range};
use millstream_shard::log::{Consumer, LogError, Message, Start, TopicPartition, View, Whole};
use rocksdb::DBRawIterator;
use std::ops::Range;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

struct Assignment {
    at: TopicPartition,
    id: PartitionId,
    position: u64,
}

/// Which assignments have something, with their visible ends, and a snapshot in which it is.
struct Ready<'a> {
    places: Vec<(usize, u64)>,
    iterator: DBRawIterator<'a>,
}

/// A reader.
pub(super) struct EmbeddedConsumer {
    handle: Arc<Handle>,
    assignments: Vec<Assignment>,
    /// The assignment that the next poll begins with, so that a full one does not starve the others.
    turn: usize,
}

impl EmbeddedConsumer {
    pub(super) fn new(
        handle: Arc<Handle>,
        assignments: &[(TopicPartition, Start)],
    ) -> Result<EmbeddedConsumer, LogError> {
        let state = handle.shared.lock();
        let assignments = assignments.iter().map(|(at, start)| assign(&state, at, *start)).collect::<Result<_, _>>()?;
        drop(state);
        Ok(EmbeddedConsumer { handle, assignments, turn: 0 })
    }
}

fn assign(state: &State, at: &TopicPartition, start: Start) -> Result<Assignment, LogError> {
    let id = state.find(&at.topic, at.partition)?;
    let partition = state.partition(id, &at.topic)?;
    let position = match start {
        Start::Earliest => partition.start,
        Start::Latest => partition.visible_end(),
        Start::At(offset) if offset < partition.start || offset > partition.end => {
            return Err(out_of_range(at, offset, partition));
        }
        Start::At(offset) => offset,
    };
    Ok(Assignment { at: at.clone(), id, position })
}

/// What can be read now, beginning with the assignment whose turn it is; waits for something until the deadline.
fn ready<'a>(
    shared: &'a Shared,
    assignments: &[Assignment],
    turn: usize,
    deadline: Instant,
) -> Result<Option<Ready<'a>>, LogError> {
    let mut state = shared.lock();
    loop {
        let mut places = Vec::new();
        for (index, assignment) in assignments.iter().enumerate() {
            let partition = state.partition(assignment.id, &assignment.at.topic)?;
            if assignment.position < partition.start {
                return Err(out_of_range(&assignment.at, assignment.position, partition));
            }
            if assignment.position < partition.visible_end() {
                places.push((index, partition.visible_end()));
            }
        }
        if !places.is_empty() {
            places.sort_by_key(|(index, _)| (*index < turn, *index));
            return Ok(Some(Ready { places, iterator: shared.db.raw_iterator_cf(shared.messages()?) }));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        let waited = shared.changed.wait_timeout(state, left);
        (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
    }
}

/// [`millstream_shard::log::Log::read`] of one partition.
pub(super) fn read(
    shared: &Shared,
    (at, offsets): &(TopicPartition, Range<u64>),
    view: View,
    each: &mut dyn FnMut(Whole),
) -> Result<(), LogError> {
    let state = shared.lock();
    let id = state.find(&at.topic, at.partition)?;
    let partition = state.partition(id, &at.topic)?;
    let end = if view == View::Committed { partition.visible_end() } else { partition.end };
    let (from, end) = (offsets.start, end.min(offsets.end));
    if from < partition.start {
        return Err(out_of_range(at, from, partition));
    }
    let mut iterator = shared.db.raw_iterator_cf(shared.messages()?);
    drop(state);
    iterator.seek(id.at(from));
    while let Some((offset, value)) = iterator.item().and_then(|(key, value)| Some((id.offset_of(key)?, value))) {
        if offset >= end {
            break;
        }
        let stored = stored(at, offset, value)?;
        if !stored.is_control {
            let (key, payload, headers) = (stored.key.to_vec(), stored.payload.to_vec(), stored.headers());
            each(Whole { offset, key, payload, headers });
        }
        iterator.next();
    }
    iterator.status().map_err(|error| unavailable("read", &error))
}

fn stored<'a>(at: &TopicPartition, offset: u64, value: &'a [u8]) -> Result<format::Stored<'a>, LogError> {
    format::decode(value).ok_or_else(|| LogError::Configuration(format!("{at} is damaged at offset {offset}")))
}

impl Assignment {
    /// Hands over what is visible up to `end`, at most `max`; how many.
    fn read(
        &mut self,
        iterator: &mut DBRawIterator<'_>,
        (index, end): (usize, u64),
        max: usize,
        each: &mut dyn FnMut(Message<'_>),
    ) -> Result<usize, LogError> {
        let mut count = 0;
        iterator.seek(self.id.at(self.position));
        while count < max {
            let next = iterator.item().and_then(|(key, value)| Some((self.id.offset_of(key)?, value)));
            let Some((offset, value)) = next.filter(|(offset, _)| *offset < end) else {
                iterator.status().map_err(|error| unavailable("read", &error))?;
                self.position = end;
                break;
            };
            let stored = stored(&self.at, offset, value)?;
            self.position = offset + 1;
            if !stored.is_control {
                let format::Stored { time_ms: timestamp_ms, key, payload, .. } = stored;
                each(Message { assignment: index, offset, timestamp_ms, key, payload });
                count += 1;
            }
            iterator.next();
        }
        Ok(count)
    }
}

impl Consumer for EmbeddedConsumer {
    fn poll(&mut self, max: usize, timeout: Duration, each: &mut dyn FnMut(Message<'_>)) -> Result<usize, LogError> {
        // A year stands for "for ever", which an instant cannot hold.
        let deadline = Instant::now() + timeout.min(Duration::from_secs(365 * 86_400));
        let mut count = 0;
        while count == 0 && max > 0 {
            let Some(Ready { places, mut iterator }) =
                ready(&self.handle.shared, &self.assignments, self.turn, deadline)?
            else {
                break;
            };
            for place in places {
                let Some(assignment) = self.assignments.get_mut(place.0) else { continue };
                count += assignment.read(&mut iterator, place, max - count, each)?;
                if count >= max {
                    self.turn = (place.0 + 1) % self.assignments.len();
                    break;
                }
            }
        }
        Ok(count)
    }

    fn positions(&self) -> Vec<u64> {
        self.assignments.iter().map(|assignment| assignment.position).collect()
    }
}

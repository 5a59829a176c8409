//! Reading: read-committed, from exact offsets, without a consumer group.
//!
//! Upholds I6: `auto.offset.reset` is `error`, so an offset outside the log surfaces as [`LogError::OutOfRange`]. The end of a partition
//! comes as an event with the last stable offset that the reader reached; it moves positions past control records and aborted data.

use super::client::{about, is_configuration, is_missing};
use super::raw::Reader;
use super::shared::Shared;
use millstream_shard::log::{Consumer, LogError, Message, Start, TopicPartition};
use rdkafka::error::RDKafkaErrorCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a [`Reader`] finds.
pub(super) enum Item<'a> {
    /// A message.
    Message(Message<'a>),
    /// Everything visible below `offset` was handed over.
    End {
        /// Index of the partition.
        assignment: usize,
        /// The offset at the end.
        offset: u64,
    },
    /// Something about one partition.
    Error {
        /// Index of the partition; `None` when it is not known.
        assignment: Option<usize>,
        /// What.
        code: RDKafkaErrorCode,
    },
}

/// A reader of some partitions.
pub(super) struct KafkaConsumer {
    shared: Arc<Shared>,
    reader: Reader,
    partitions: Vec<TopicPartition>,
    positions: Vec<u64>,
    fault: Option<(usize, RDKafkaErrorCode)>,
    served: Instant,
}

/// Events of the client (log lines) are served this often.
const SERVE_EVERY: Duration = Duration::from_secs(1);

impl KafkaConsumer {
    pub(super) fn new(shared: Arc<Shared>, assignments: &[(TopicPartition, Start)]) -> Result<KafkaConsumer, LogError> {
        let mut positions = Vec::with_capacity(assignments.len());
        for (at, start) in assignments {
            positions.push(resolve(&shared, at, *start)?);
        }
        let mut reader = Reader::new(shared.reader()?);
        for ((at, _), &position) in assignments.iter().zip(&positions) {
            let partition = shared.partition(at)?;
            let offset = i64::try_from(position).map_err(|_| LogError::OutOfRange {
                at: at.clone(),
                offset: position,
                start: 0,
                end: 0,
            })?;
            reader.start(&at.topic, partition, offset).map_err(|code| about(&at.topic, code, "cannot read"))?;
        }
        let partitions = assignments.iter().map(|(at, _)| at.clone()).collect();
        Ok(KafkaConsumer { shared, reader, partitions, positions, fault: None, served: Instant::now() })
    }

    /// Reads once, moving positions; returns how many events there were, messages among them.
    fn read(&mut self, max: usize, wait: Duration, messages: &mut usize, each: &mut dyn FnMut(Message<'_>)) -> usize {
        let (positions, fault) = (&mut self.positions, &mut self.fault);
        self.reader.read(max, wait, &mut |item| match item {
            Item::Message(message) => {
                *messages += 1;
                if let Some(position) = positions.get_mut(message.assignment) {
                    *position = message.offset + 1;
                }
                each(message);
            }
            Item::End { assignment, offset } => {
                if let Some(position) = positions.get_mut(assignment) {
                    *position = (*position).max(offset);
                }
            }
            Item::Error { assignment: Some(assignment), code } if is_final(code) => *fault = Some((assignment, code)),
            Item::Error { code, .. } => tracing::debug!(%code, "kafka reader"),
        })
    }

    fn check(&self) -> Result<(), LogError> {
        let Some((assignment, code)) = self.fault else { return Ok(()) };
        let (Some(at), Some(&offset)) = (self.partitions.get(assignment), self.positions.get(assignment)) else {
            return Ok(());
        };
        if is_missing(code) || is_configuration(code) {
            return Err(about(&at.topic, code, "cannot read"));
        }
        let (start, end) = self.shared.bounds(at)?;
        Err(LogError::OutOfRange { at: at.clone(), offset, start, end })
    }
}

/// The offset to start from. An offset that the log does not hold is refused here already, where that can be known.
fn resolve(shared: &Shared, at: &TopicPartition, start: Start) -> Result<u64, LogError> {
    let (first, end) = shared.bounds(at)?;
    match start {
        Start::Earliest => Ok(first),
        Start::Latest => Ok(end),
        // Above the last stable offset there may be an open transaction, or a leader that does not know yet: ask where the log ends.
        Start::At(offset) if offset < first || (offset > end && offset > shared.high_watermark(at)?) => {
            Err(LogError::OutOfRange { at: at.clone(), offset, start: first, end })
        }
        Start::At(offset) => Ok(offset),
    }
}

/// Errors that end the reading of a partition; librdkafka gets over the others.
fn is_final(code: RDKafkaErrorCode) -> bool {
    matches!(code, RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange)
        || is_missing(code)
        || is_configuration(code)
}

impl Consumer for KafkaConsumer {
    fn poll(&mut self, max: usize, timeout: Duration, each: &mut dyn FnMut(Message<'_>)) -> Result<usize, LogError> {
        self.check()?;
        if self.served.elapsed() >= SERVE_EVERY {
            self.served = Instant::now();
            self.reader.serve();
        }
        let deadline = Instant::now() + timeout;
        let mut messages = 0;
        // The end of a partition is an event, too: it must not end the wait for messages.
        while messages == 0 && self.fault.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.read(max, left, &mut messages, each) == 0 {
                break;
            }
        }
        if messages == 0 {
            self.check()?;
        }
        Ok(messages)
    }

    fn positions(&self) -> Vec<u64> {
        self.positions.clone()
    }
}

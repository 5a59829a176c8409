//! Reading: read-committed, from exact offsets, without a consumer group.
//!
//! Upholds I6: `auto.offset.reset` is `error`, so an offset outside the log surfaces as [`LogError::OutOfRange`]. The end of a partition
//! comes as an event with the last stable offset that the reader reached; it moves positions past control records and aborted data.

use super::bulk::Share;
use super::client::{Reading, about, is_configuration, is_forbidden, is_missing, serve};
use super::raw::{self, Reader, Source};
use super::shared::Shared;
use millstream_shard::log::{Consumer, EachRead, LogError, Message, Start, TopicPartition, View, Whole};
use rdkafka::consumer::Consumer as _;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka_sys as sys;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a [`Reader`] finds.
pub(super) enum Item<'a> {
    /// A message; with its headers, where the reader asks for them.
    Message(Message<'a>, Vec<(String, String)>),
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

/// What librdkafka hands over.
pub(super) fn item<'a>(reader: &Reader, message: &'a sys::rd_kafka_message_t) -> Item<'a> {
    let is_it = |source: &Source| source.topic == message.rkt && source.partition == message.partition;
    let assignment = reader.sources.iter().position(is_it);
    let offset = u64::try_from(message.offset).unwrap_or(0);
    match (message.err, assignment) {
        (sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR, Some(assignment)) => {
            let key = raw::bytes(message.key, message.key_len, message);
            let payload = raw::bytes(message.payload, message.len, message);
            let headers = if reader.with_headers { raw::headers(message) } else { Vec::new() };
            Item::Message(Message { assignment, offset, timestamp_ms: raw::timestamp(message), key, payload }, headers)
        }
        (sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__PARTITION_EOF, Some(assignment)) => {
            Item::End { assignment, offset }
        }
        (code, assignment) => Item::Error { assignment, code: code.into() },
    }
}

/// A reader of some partitions.
pub(super) struct KafkaConsumer {
    shared: Arc<Shared>,
    reader: Reader,
    /// Where others read with the same client; dropped after the reader.
    share: Option<Share>,
    partitions: Vec<TopicPartition>,
    positions: Vec<u64>,
    fault: Option<(usize, RDKafkaErrorCode)>,
    served: Instant,
}

/// How many messages are read in a call, and how long one waits.
const READ_AT_ONCE: usize = 1000;
const READ_WAIT: Duration = Duration::from_millis(100);

/// Events of the client (log lines) are served this often.
const SERVE_EVERY: Duration = Duration::from_secs(1);

impl KafkaConsumer {
    pub(super) fn new(
        shared: Arc<Shared>,
        (client, share): (Reading, Option<Share>),
        assignments: &[(TopicPartition, Start)],
    ) -> Result<KafkaConsumer, LogError> {
        let mut positions = Vec::with_capacity(assignments.len());
        for (at, start) in assignments {
            positions.push(resolve(&shared, at, *start)?);
        }
        let mut reader = Reader::new(client, false);
        for ((at, _), &position) in assignments.iter().zip(&positions) {
            start(&shared, &mut reader, at, position)?;
        }
        let partitions = assignments.iter().map(|(at, _)| at.clone()).collect();
        Ok(KafkaConsumer { shared, reader, share, partitions, positions, fault: None, served: Instant::now() })
    }

    /// Reads once, moving positions; returns how many events there were, messages among them.
    fn read(&mut self, max: usize, wait: Duration, messages: &mut usize, each: &mut dyn FnMut(Message<'_>)) -> usize {
        let (positions, fault) = (&mut self.positions, &mut self.fault);
        self.reader.read(max, wait, &mut |item| match item {
            Item::Message(message, _) => {
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

    /// Serves the client's events: logs and errors go to its context. One that has lost all brokers is told where they are.
    fn serve(&self) {
        let client = &self.reader.consumer;
        serve(client);
        if client.context().reminder().take() {
            raw::add_brokers(client.client(), &self.shared.config.bootstrap_servers);
        }
    }

    fn check(&self) -> Result<(), LogError> {
        let Some((assignment, code)) = self.fault else { return Ok(()) };
        self.share.iter().for_each(Share::retire);
        let (Some(at), Some(&offset)) = (self.partitions.get(assignment), self.positions.get(assignment)) else {
            return Ok(());
        };
        Err(ended(&self.shared, at, offset, code))
    }
}

/// Why a partition cannot be read any further.
fn ended(shared: &Shared, at: &TopicPartition, offset: u64, code: RDKafkaErrorCode) -> LogError {
    if is_missing(code) || is_configuration(code) || is_forbidden(code) {
        return about(&at.topic, code, "cannot read");
    }
    match shared.bounds(at) {
        Ok((start, end)) => LogError::OutOfRange { at: at.clone(), offset, start, end },
        Err(error) => error,
    }
}

fn start(shared: &Shared, reader: &mut Reader, at: &TopicPartition, offset: u64) -> Result<(), LogError> {
    let outside = |_| LogError::OutOfRange { at: at.clone(), offset, start: 0, end: 0 };
    let (partition, offset) = (shared.partition(at)?, i64::try_from(offset).map_err(outside)?);
    reader.start(&at.topic, partition, offset).map_err(|code| about(&at.topic, code, "cannot read"))
}

/// [`millstream_shard::log::Log::read`].
pub(super) fn read(
    shared: &Shared,
    of: &[(TopicPartition, Range<u64>)],
    view: View,
    each: EachRead<'_>,
) -> Result<(), LogError> {
    let partitions: Vec<TopicPartition> = of.iter().map(|(at, _)| at.clone()).collect();
    let ends = shared.ends(&partitions)?;
    let ends = ends.iter().map(|ends| if view == View::Committed { ends.visible } else { ends.end });
    // Place in the list, where it is, where it ends.
    let mut left: Vec<(usize, u64, u64)> =
        of.iter().zip(ends).enumerate().map(|(index, ((_, it), end))| (index, it.start, it.end.min(end))).collect();
    left.retain(|(_, from, end)| from < end);
    if left.is_empty() {
        return Ok(());
    }
    let mut reader = Reader::new(shared.reader(view)?, true);
    for (index, from, _) in &left {
        partitions.get(*index).map_or(Ok(()), |at| start(shared, &mut reader, at, *from))?;
    }
    let (mut failed, mut progress) = (None, (0, Instant::now()));
    while left.iter().any(|(_, position, end)| position < end) {
        reader.read(READ_AT_ONCE, READ_WAIT, &mut |item| match item {
            Item::Message(message, headers) => {
                let Some((index, position, end)) = left.get_mut(message.assignment) else { return };
                *position = message.offset + 1;
                if message.offset < *end {
                    let (key, payload) = (message.key.to_vec(), message.payload.to_vec());
                    each(*index, Whole { offset: message.offset, key, payload, headers });
                }
            }
            Item::End { assignment, offset } => {
                if let Some((_, position, _)) = left.get_mut(assignment) {
                    *position = (*position).max(offset);
                }
            }
            Item::Error { assignment, code } if is_final(code) => {
                failed = failed.or(assignment.map(|place| (place, code)));
            }
            Item::Error { .. } => {}
        });
        if let Some((place, code)) = failed
            && let Some((index, offset, _)) = left.get(place)
            && let Some(at) = partitions.get(*index)
        {
            return Err(ended(shared, at, *offset, code));
        }
        let read = left.iter().map(|(_, position, end)| position.min(end)).sum();
        if progress.0 != read {
            progress = (read, Instant::now());
        }
        if progress.1.elapsed() >= shared.config.request_timeout() {
            return Err(LogError::Unavailable(format!("some partitions cannot be read to their ends: {left:?}")));
        }
    }
    Ok(())
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
        || is_forbidden(code)
}

impl Consumer for KafkaConsumer {
    fn poll(&mut self, max: usize, timeout: Duration, each: &mut dyn FnMut(Message<'_>)) -> Result<usize, LogError> {
        self.check()?;
        if self.served.elapsed() >= SERVE_EVERY {
            self.served = Instant::now();
            self.serve();
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

    fn retire(&mut self) {
        self.share.iter().for_each(Share::retire);
    }
}

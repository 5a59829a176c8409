//! What a partition's thread opens before it reads the first mutation, once documents can be written: ahead of a handoff, while another process still owns the partition, or when it begins.
//!
//! Whatever was read ahead and lies before the position that is recorded when the partition comes is passed over; nothing behind it is.

use super::{IDLE, MESSAGES, Work};
use crate::runtime::writers::Writers;
use millstream_model::frame::{self, Content};
use millstream_model::proto::{Changelog, Position, changelog::Record};
use millstream_shard::ShardError;
use millstream_shard::log::{Consumer, Log, Producer, Start, TopicPartition};
use prost::Message as _;
use std::time::{Duration, Instant};

/// So many of the newest recorded positions are read; one would do.
const NEWEST: u64 = 16;
/// How long reading them may take, and how long a reader of mutations may hear nothing of what there is.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// What takes a moment before the first mutation can be read.
pub(super) struct Ready {
    pub(super) positions: Positions,
    /// The position recorded last.
    pub(super) recorded: Option<u64>,
    /// Nothing is missing from here on: the consumer was opened here, or what was before was passed over.
    pub(super) from: u64,
    /// What was read behind what was passed over, and must not be.
    pub(super) held: Option<Held>,
    /// Of `mutations`, when it was opened.
    pub(super) end: u64,
    pub(super) consumer: Box<dyn Consumer>,
    /// Where it stands though there is more to read, and since when: nobody else looks whether it hears anything before the partition has come.
    pub(super) stands: Option<(u64, Instant)>,
    pub(super) producer: Box<dyn Producer>,
    pub(super) writers: Writers,
}

impl Ready {
    /// Opens all of it, reading from the position that is recorded now.
    pub(super) fn open(work: &Work) -> Result<Ready, ShardError> {
        let (log, at) = (&*work.environment.log, work.mutations());
        work.creation.ensure(&work.stop)?;
        let topic_id = log.topic_id(&at.topic)?;
        let mut positions = Positions::open(log, work.record_partition(), topic_id)?;
        let recorded = positions.newest(work)?;
        let (first, end) = log.bounds(&at)?;
        if recorded.is_none() && first > 0 {
            return Err(ShardError::Stopped(format!(
                "{at} starts at {first}, and no position was ever recorded: mutations were deleted before they were read; bring them back, or begin another generation"
            )));
        }
        let consumer = log.bulk_consumer(&[(at, recorded.map_or(Start::Earliest, Start::At))])?;
        Ok(Ready {
            positions,
            recorded,
            from: recorded.unwrap_or(first),
            held: None,
            end,
            consumer,
            stands: None,
            producer: log.producer()?,
            writers: Writers::start(work.limits.in_flight, &work.documents)?,
        })
    }

    /// What was opened ahead, now that the partition has come.
    pub(super) fn up_to_date(mut self, work: &Work) -> Result<Ready, ShardError> {
        self.recorded = self.positions.newest(work)?;
        // A former owner that comes late may have recorded one from before.
        if self.recorded.is_none_or(|recorded| recorded >= self.from) {
            return Ok(self);
        }
        drop(self);
        Ready::open(work)
    }

    /// What its owner has recorded as decided need not be kept.
    pub(super) fn keep_up(&mut self, work: &Work) -> Result<(), ShardError> {
        let at = work.mutations();
        if work.environment.log.topic_id(&at.topic)? != self.positions.topic_id {
            return Err(ShardError::Reopen(format!("{at} was deleted and made again")));
        }
        self.recorded = self.positions.newest(work)?;
        let Some(recorded) = self.recorded else { return Ok(()) };
        let Ready { consumer, from, held, stands, .. } = self;
        loop {
            if let Some(passed) = held.take_if(|held| held.offset < recorded) {
                *from = (*from).max(passed.offset + 1);
            }
            // Between two messages there may be markers of transactions: a consumer may stand before the position, and what comes next lie behind it.
            let before = consumer.positions().first().copied().filter(|at| *at < recorded);
            let Some(at) = before.filter(|_| held.is_none()) else {
                *stands = None;
                return Ok(());
            };
            let messages = consumer.poll(1, Duration::ZERO, &mut |message| {
                let (offset, timestamp_ms) = (message.offset, message.timestamp_ms);
                *held = (!message.is_empty()).then(|| Held { offset, timestamp_ms, payload: message.payload.to_vec() });
            })?;
            if messages > 0 {
                *stands = None;
                continue;
            }
            // What was recorded was read by another one: before it there is always something to read.
            let since = stands.filter(|(before, _)| *before == at).map_or_else(Instant::now, |(_, since)| since);
            *stands = Some((at, since));
            if since.elapsed() > PATIENCE {
                let seconds = since.elapsed().as_secs();
                // Whoever reads next does so with another client.
                consumer.retire();
                return Err(ShardError::Reopen(format!(
                    "{}: nothing was heard for {seconds} s at offset {at}, though mutations are decided up to {recorded}",
                    work.mutations()
                )));
            }
            return Ok(());
        }
    }
}

/// A message that was read.
pub(super) struct Held {
    pub(super) offset: u64,
    pub(super) timestamp_ms: u64,
    pub(super) payload: Vec<u8>,
}

/// Where the stage's positions of one partition are recorded.
pub(super) struct Positions {
    at: TopicPartition,
    /// Of the topic that they are positions in.
    pub(super) topic_id: String,
    consumer: Box<dyn Consumer>,
    newest: Option<Position>,
}

impl Positions {
    fn open(log: &dyn Log, at: TopicPartition, topic_id: String) -> Result<Positions, ShardError> {
        let (start, end) = log.bounds(&at)?;
        let consumer = log.consumer(&[(at.clone(), Start::At(start.max(end.saturating_sub(NEWEST))))])?;
        Ok(Positions { at, topic_id, consumer, newest: None })
    }

    /// The position recorded last, as of now; `None` when there is none.
    fn newest(&mut self, work: &Work) -> Result<Option<u64>, ShardError> {
        let Positions { at, topic_id, consumer, newest } = self;
        let (_, end) = work.environment.log.bounds(at)?;
        let began = Instant::now();
        while consumer.positions().first().is_none_or(|position| *position < end) {
            if work.stop.is_stopped() || began.elapsed() > PATIENCE {
                return Err(ShardError::Away(format!("{at} cannot be read to its end at {end}")));
            }
            consumer.poll(MESSAGES, IDLE, &mut |message| {
                let records = frame::read(message.payload, Content::Changelog).into_iter().flatten().flatten();
                for record in records.filter_map(|bytes| Changelog::decode(bytes).ok()) {
                    if let Some(Record::Batch(batch)) = record.record {
                        *newest = batch.inputs.into_iter().next().or(newest.take());
                    }
                }
            })?;
        }
        match newest {
            Some(of_another) if of_another.topic_id != *topic_id => Err(ShardError::Stopped(format!(
                "{} is not the topic that was read up to {}: it was deleted and created again; bring the former one back, or begin another generation",
                work.mutations(),
                of_another.offset
            ))),
            newest => Ok(newest.as_ref().map(|newest| newest.offset)),
        }
    }
}

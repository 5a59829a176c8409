//! The inputs of a shard: which partitions, from where, and how far.
//!
//! **I6**: reading starts exactly where the last committed batch ended, in the topic that was read then; a topic that was deleted and made again holds other records
//! under the same offsets. Inputs may be opened before the position is known for good (a standby that expects a handoff fetches ahead); what lies below the
//! position is then dropped.
//!
//! **I10**: of an internal topic nothing is handed over that is behind the [marker](crate::savepoint) of a savepoint that the shard was not cut for. A poll may bring it with the marker: it is held back then, with
//! everything that comes after it, until the shard is cut.

use crate::ShardError;
use crate::hearing::Listened;
use crate::log::{Consumer, Log, LogError, Message, Start, TopicPartition};
use crate::mutant::{self, Mutant};
use crate::savepoint::{cuts, marker};
use crate::topics::Topics;
use millstream_model::proto::{Position, StatePosition};
use millstream_stages::Input;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

struct Source {
    input: Input,
    at: TopicPartition,
    topic_id: String,
    /// What lies below was processed.
    from: u64,
    /// Append time of the newest message that was handed over, milliseconds since 1970.
    newest_ms: Option<u64>,
}

/// A message that came, and is not handed over yet.
struct Held {
    source: usize,
    offset: u64,
    timestamp_ms: u64,
    key: Vec<u8>,
    payload: Vec<u8>,
}

impl Held {
    fn of(message: &Message<'_>) -> Held {
        let Message { assignment, offset, timestamp_ms, key, payload } = *message;
        Held { source: assignment, offset, timestamp_ms, key: key.to_vec(), payload: payload.to_vec() }
    }

    fn message(&self) -> Message<'_> {
        let Held { source, offset, timestamp_ms, key, payload } = self;
        Message { assignment: *source, offset: *offset, timestamp_ms: *timestamp_ms, key, payload }
    }
}

/// A reader of a shard's inputs.
pub(crate) struct Inputs {
    sources: Vec<Source>,
    consumer: Box<dyn Consumer>,
    looks: u64,
    /// From the marker of a savepoint on that the shard was not cut for when it came. No more than one poll brings.
    held: VecDeque<Held>,
}

impl Inputs {
    /// Starts to read from a position.
    ///
    /// # Errors
    /// [`ShardError`].
    pub(crate) fn open(
        log: &dyn Log,
        topics: &Topics,
        stage: &str,
        shard: u32,
        position: &StatePosition,
    ) -> Result<Inputs, ShardError> {
        let mut sources = Vec::new();
        for (input, topic) in topics_of(stage, topics) {
            let at = TopicPartition::new(topic.clone(), shard);
            sources.push(Source { input, topic_id: log.topic_id(topic)?, from: 0, newest_ms: None, at });
        }
        let mut starts = Vec::with_capacity(sources.len());
        for source in &mut sources {
            source.from = source.start(position)?;
            starts.push((source.at.clone(), Start::At(source.from)));
        }
        Ok(Inputs { consumer: log.bulk_consumer(&starts)?, sources, looks: 0, held: VecDeque::new() })
    }

    /// What lies below the position is dropped from here on.
    ///
    /// # Errors
    /// [`ShardError`].
    pub(crate) fn at(mut self, position: &StatePosition) -> Result<Inputs, ShardError> {
        for source in &mut self.sources {
            source.from = source.from.max(source.start(position)?);
        }
        Ok(self)
    }

    /// As [`Consumer::poll`], with each message's input; up to the marker of a savepoint for which a shard with these `cuts` is to be cut first: then nothing comes any more.
    ///
    /// # Errors
    /// [`LogError`].
    pub(crate) fn poll(
        &mut self,
        max: usize,
        wait: Duration,
        cuts: &[u64],
        each: &mut dyn FnMut(Input, Message<'_>),
    ) -> Result<usize, LogError> {
        if !self.held.is_empty() {
            return Ok(self.hand_over(max, cuts, each));
        }
        let (sources, held) = (&mut self.sources, &mut self.held);
        let messages = self.consumer.poll(max, wait, &mut |message| {
            let source = sources.get_mut(message.assignment);
            let Some(source) = source.filter(|source| message.offset >= source.from) else { return };
            if !held.is_empty() || source.due(message.payload, cuts).is_some() {
                held.push_back(Held::of(&message));
            } else {
                source.take(message, each);
            }
        })?;
        self.looks += u64::from(messages < max);
        Ok(messages)
    }

    /// Hands over what was held back, up to the next marker for which the shard is to be cut.
    fn hand_over(&mut self, max: usize, cuts: &[u64], each: &mut dyn FnMut(Input, Message<'_>)) -> usize {
        for messages in 0..max {
            if self.due(cuts).is_some() {
                return messages;
            }
            let Some(held) = self.held.pop_front() else { return messages };
            if let Some(source) = self.sources.get_mut(held.source) {
                source.take(held.message(), each);
            }
        }
        max
    }

    /// The savepoint for which a shard with these cuts must be cut before it reads on.
    pub(crate) fn due(&self, cuts: &[u64]) -> Option<u64> {
        let held = self.held.front()?;
        self.sources.get(held.source)?.due(&held.payload, cuts)
    }

    /// Is it told of savepoints by markers?
    pub(crate) fn bring_markers(&self) -> bool {
        self.sources.iter().any(Source::brings_markers)
    }

    /// What it has heard.
    pub(crate) fn listened(&self) -> Listened {
        let positions = self.consumer.positions();
        let read_to = self.sources.iter().zip(positions).map(|(source, position)| (source.at.clone(), position));
        Listened { read_to: read_to.collect(), looks: self.looks }
    }

    /// It does not hear what it reads: those that take its place read with another client.
    pub(crate) fn retire(&mut self) {
        self.consumer.retire();
    }

    /// Append time of the newest message that was handed over of each input, in the order of [`Inputs::next`]; none where there was none.
    pub(crate) fn newest_ms(&self) -> Vec<Option<u64>> {
        self.sources.iter().map(|source| source.newest_ms).collect()
    }

    /// Where the next batch reads on.
    pub(crate) fn next(&self) -> Vec<Position> {
        let next = |(number, (source, read_to)): (usize, (&Source, u64))| {
            let held = self.held.iter().find(|held| held.source == number && !mutant::is(Mutant::HeldPassed));
            let offset = held.map_or(read_to, |held| held.offset);
            Position {
                topic: source.at.topic.to_string(),
                partition: source.at.partition,
                offset: offset.max(source.from) + u64::from(mutant::is(Mutant::OffsetOffByOne)),
                topic_id: source.topic_id.clone(),
            }
        };
        self.sources.iter().zip(self.consumer.positions()).enumerate().map(next).collect()
    }
}

/// Where the inputs of a new shard begin: its genesis record keeps that, so that what is deleted before it was read is noticed.
///
/// # Errors
/// [`LogError`].
pub(crate) fn beginnings(log: &dyn Log, topics: &Topics, stage: &str, shard: u32) -> Result<Vec<Position>, LogError> {
    let beginning = |(_, topic): (Input, &Arc<str>)| {
        let at = TopicPartition::new(topic.clone(), shard);
        let (offset, _) = log.bounds(&at)?;
        Ok(Position { topic: topic.to_string(), partition: shard, offset, topic_id: log.topic_id(topic)? })
    };
    topics_of(stage, topics).into_iter().map(beginning).collect()
}

impl Source {
    /// Everybody may write to `ingress`.
    fn brings_markers(&self) -> bool {
        self.input != Input::Ingress
    }

    /// The savepoint for which a shard with these cuts is to be cut before this message.
    fn due(&self, payload: &[u8], cuts: &[u64]) -> Option<u64> {
        let stops = self.brings_markers() && !(self.input == Input::Exchange && mutant::is(Mutant::PeersIgnored));
        let marker = marker::read(payload).filter(|marker| stops && !cuts::has(cuts, marker.savepoint))?;
        Some(marker.savepoint)
    }

    /// Hands a message over. A marker is for nobody any more.
    fn take(&mut self, message: Message<'_>, each: &mut dyn FnMut(Input, Message<'_>)) {
        self.newest_ms = Some(message.timestamp_ms);
        if !(self.brings_markers() && marker::read(message.payload).is_some()) {
            each(self.input, message);
        }
    }

    fn start(&self, position: &StatePosition) -> Result<u64, ShardError> {
        let at = &self.at;
        let is_it = |input: &&Position| *input.topic == *at.topic && input.partition == at.partition;
        match position.inputs.iter().find(is_it) {
            None => Err(ShardError::Stopped(format!(
                "no position was ever recorded for {at}: the shard began with other topics; begin another generation"
            ))),
            Some(input) if input.topic_id == self.topic_id => Ok(input.offset),
            Some(input) => Err(ShardError::Stopped(format!(
                "{at} is not the topic that was read up to {}: it was deleted and created again; bring the former one back, or begin another generation",
                input.offset
            ))),
        }
    }
}

fn topics_of<'a>(stage: &str, topics: &'a Topics) -> Vec<(Input, &'a Arc<str>)> {
    match stage {
        "unify" => vec![(Input::Ingress, &topics.ingress)],
        _ => vec![(Input::Actions, &topics.actions), (Input::Exchange, &topics.exchange)],
    }
}

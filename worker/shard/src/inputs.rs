//! The inputs of a shard: which partitions, from where, and how far.
//!
//! **I6**: reading starts exactly where the last committed batch ended, in the topic that was read then; a topic that was deleted and made again holds other records
//! under the same offsets. Inputs may be opened before the position is known for good (a standby that expects a handoff fetches ahead); what lies below the
//! position is then dropped.

use crate::ShardError;
use crate::hearing::Listened;
use crate::log::{Consumer, Log, LogError, Message, Start, TopicPartition};
use crate::mutant::{self, Mutant};
use crate::topics::Topics;
use millstream_model::proto::{Position, StatePosition};
use millstream_stages::Input;
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

/// A reader of a shard's inputs.
pub(crate) struct Inputs {
    sources: Vec<Source>,
    consumer: Box<dyn Consumer>,
    looks: u64,
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
        Ok(Inputs { consumer: log.bulk_consumer(&starts)?, sources, looks: 0 })
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

    /// As [`Consumer::poll`], with each message's input.
    ///
    /// # Errors
    /// [`LogError`].
    pub(crate) fn poll(
        &mut self,
        max: usize,
        wait: Duration,
        each: &mut dyn FnMut(Input, Message<'_>),
    ) -> Result<usize, LogError> {
        let sources = &mut self.sources;
        let messages = self.consumer.poll(max, wait, &mut |message| {
            let source = sources.get_mut(message.assignment);
            if let Some(source) = source.filter(|source| message.offset >= source.from) {
                source.newest_ms = Some(message.timestamp_ms);
                each(source.input, message);
            }
        })?;
        self.looks += u64::from(messages < max);
        Ok(messages)
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
        let next = |(source, offset): (&Source, u64)| Position {
            topic: source.at.topic.to_string(),
            partition: source.at.partition,
            offset: offset.max(source.from) + u64::from(mutant::is(Mutant::OffsetOffByOne)),
            topic_id: source.topic_id.clone(),
        };
        self.sources.iter().zip(self.consumer.positions()).map(next).collect()
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

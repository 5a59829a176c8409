//! What a batch sends: frames per partition, filled while records are processed.
//!
//! A frame goes out when it is full; what is left goes out when the batch ends. All of it is in the batch's transaction, but what other shards have to wait for
//! ([`Waiting`]), which goes out in the transaction of a later one. Frames say which batch wrote them ([`ORIGIN`]); rejects do, to whose partitions others write as well; of a batch's events the first does, and
//! then one in a thousand.

use crate::hanging::Missing;
use crate::log::{Log, LogError, ORIGIN, Outgoing, TopicPartition, Transactional};
use crate::topics::Topics;
use crate::waiting::Waiting;
use crate::written::{Origin, Writer};
use millstream_model::frame::{Content, FrameWriter};
use millstream_model::key::shard_of;
use millstream_stages::{Outbox, PublicMessage};
use std::collections::BTreeMap;
use std::sync::Arc;

/// One in so many public messages says its origin.
const SAID_EVERY: usize = 1000;

/// Open frames of a batch.
#[derive(Debug)]
pub(crate) struct Output {
    topics: Topics,
    shard: u32,
    writer: Writer,
    /// Of what the batch writes.
    origin: String,
    /// Topics of public messages, and partitions, with how many the batch has written.
    public: Vec<(Arc<str>, u32, usize)>,
    frames: BTreeMap<(Content, u32), FrameWriter>,
    /// For other shards, in later batches.
    pub(crate) waiting: Waiting,
    /// What outputs miss of batches before the first one of this owner, if it owes that.
    owed: Option<Vec<Missing>>,
    /// The batch that is under way has begun with it.
    pub(crate) sends_owed: bool,
}

/// Where a stage's outputs go.
pub(crate) fn topics_of<'a>(stage: &str, topics: &'a Topics) -> Vec<&'a Arc<str>> {
    match stage {
        "unify" => vec![&topics.actions, &topics.rejects],
        _ => vec![&topics.exchange, &topics.mutations, &topics.events, &topics.rejects],
    }
}

/// Partitions that other shards read from a stage's shard: where its markers go.
pub(crate) fn channels(stage: &str, topics: &Topics, shard: u32) -> Vec<TopicPartition> {
    match stage {
        "unify" => vec![TopicPartition::new(topics.actions.clone(), shard)],
        _ => {
            let exchange = (0..topics.shards).map(|number| TopicPartition::new(topics.exchange.clone(), number));
            exchange.chain([TopicPartition::new(topics.mutations.clone(), shard)]).collect()
        }
    }
}

/// Are all topics there that a stage writes to? A client that produces to one that is gone only waits, and then says that it waited.
///
/// # Errors
/// [`LogError::Topic`] with the one that is missing.
pub(crate) fn check(log: &dyn Log, topics: &Topics, stage: &str) -> Result<(), LogError> {
    topics_of(stage, topics).into_iter().try_for_each(|topic| log.topic_id(topic).map(drop))
}

impl Output {
    /// Nothing but what waits, and what is owed.
    pub(crate) fn new(topics: Topics, stage: &str, shard: u32, waiting: Waiting, owed: Option<Vec<Missing>>) -> Output {
        let (writer, origin) = (Writer::of(&topics, stage, shard), String::new());
        Output {
            topics,
            shard,
            writer,
            origin,
            public: Vec::new(),
            frames: BTreeMap::new(),
            waiting,
            owed,
            sends_owed: false,
        }
    }

    /// Must there be a batch first that begins with what is missing?
    pub(crate) fn is_owed(&self) -> bool {
        self.owed.is_some()
    }

    /// Is there something to be sent whether there is input or not?
    pub(crate) fn is_due(&self) -> bool {
        self.is_owed() || !self.waiting.is_empty()
    }

    /// A batch begins with what is missing, and what has waited longest.
    ///
    /// # Errors
    /// [`LogError`] of the transaction.
    pub(crate) fn begin(&mut self, batch: Origin, transaction: &mut dyn Transactional) -> Result<(), LogError> {
        self.frames.clear();
        self.public.clear();
        self.origin = self.writer.say(batch);
        // Whatever becomes of the transaction: this owner goes on only if it was committed.
        self.sends_owed = self.is_owed();
        let missing = self.owed.take().unwrap_or_default();
        for (TopicPartition { topic, partition }, whole) in &missing {
            let headers = whole.headers.iter().filter(|(name, _)| name != ORIGIN);
            let headers = headers.map(|(name, value)| (name.as_str(), value.as_str()));
            let headers: Vec<(&str, &str)> = headers.chain([(ORIGIN, self.origin.as_str())]).collect();
            let (key, payload) = (&whole.key, &whole.payload);
            transaction.send(Outgoing { topic, partition: *partition, key, payload, headers: &headers })?;
        }
        let exchange = missing.iter().filter(|(at, _)| at.topic == self.topics.exchange).map(|(at, _)| at.partition);
        for (partition, frame) in self.waiting.begin(exchange) {
            self.send(Content::Exchange, partition, &frame, transaction)?;
        }
        Ok(())
    }

    /// A batch that cuts the shard: it sends markers, to each of these partitions, and nothing else.
    ///
    /// # Errors
    /// [`LogError`] of the transaction.
    pub(crate) fn mark(
        &mut self,
        batch: Origin,
        markers: &[Vec<u8>],
        channels: &[TopicPartition],
        transaction: &mut dyn Transactional,
    ) -> Result<(), LogError> {
        self.waiting.clear();
        self.sends_owed = false;
        self.origin = self.writer.say(batch);
        for TopicPartition { topic, partition } in channels {
            for payload in markers {
                let headers = &[(ORIGIN, self.origin.as_str())];
                transaction.send(Outgoing { topic, partition: *partition, key: &[], payload, headers })?;
            }
        }
        Ok(())
    }

    /// Takes what a record led to.
    ///
    /// # Errors
    /// [`LogError`] of the transaction.
    pub(crate) fn drain(&mut self, out: &mut Outbox, transaction: &mut dyn Transactional) -> Result<(), LogError> {
        for action in out.actions.drain(..) {
            self.frame(Content::Action, action.group, &action, transaction)?;
        }
        for message in out.exchange.drain(..) {
            self.frame(Content::Exchange, message.group, &message, transaction)?;
        }
        for mutation in out.mutations.drain(..) {
            self.frame(Content::Mutation, mutation.group, &mutation, transaction)?;
        }
        for message in out.events.drain(..) {
            let partition = self.partition(u32::from(message.group));
            let topic = self.topics.events.clone();
            self.public(&topic, partition, &message, transaction)?;
        }
        for message in out.rejects.drain(..) {
            // Whatever key group it names, which may be wrong: it comes from here, and a batch writes to few partitions.
            let topic = self.topics.rejects.clone();
            self.public(&topic, self.shard, &message, transaction)?;
        }
        Ok(())
    }

    fn frame(
        &mut self,
        content: Content,
        group: u32,
        record: &impl prost::Message,
        transaction: &mut dyn Transactional,
    ) -> Result<(), LogError> {
        let partition = self.partition(group);
        let length = record.encoded_len();
        let frame = self.frames.entry((content, partition)).or_insert_with(|| FrameWriter::new(content));
        if frame.would_overflow(length) {
            let full = std::mem::replace(frame, FrameWriter::new(content));
            frame.push_sized(record, length);
            return self.close(content, partition, full, transaction);
        }
        frame.push_sized(record, length);
        Ok(())
    }

    fn partition(&self, group: u32) -> u32 {
        shard_of(u16::try_from(group).unwrap_or(0), self.topics.shards)
    }

    fn public(
        &mut self,
        topic: &Arc<str>,
        partition: u32,
        message: &PublicMessage,
        transaction: &mut dyn Transactional,
    ) -> Result<(), LogError> {
        let is_shared = *topic == self.topics.rejects;
        let origin = (self.says_origin(topic, partition) || is_shared).then_some((ORIGIN, self.origin.as_str()));
        // No allocation where there are none.
        let headers = message.headers.iter().map(|(name, value)| (*name, value.as_str()));
        let headers: Vec<(&str, &str)> = headers.chain(origin).collect();
        transaction.send(Outgoing { topic, partition, key: &message.key, payload: &message.payload, headers: &headers })
    }

    /// Does the next public message there say its origin?
    fn says_origin(&mut self, topic: &Arc<str>, partition: u32) -> bool {
        let known = self.public.iter_mut().find(|(known, of, _)| known == topic && *of == partition);
        let Some((_, _, count)) = known else {
            self.public.push((topic.clone(), partition, 1));
            return true;
        };
        *count += 1;
        *count % SAID_EVERY == 1
    }

    /// Sends a frame, or lets it wait.
    fn close(
        &mut self,
        content: Content,
        partition: u32,
        frame: FrameWriter,
        transaction: &mut dyn Transactional,
    ) -> Result<(), LogError> {
        let frame = frame.finish();
        if content == Content::Exchange && !self.waiting.admits(partition) {
            self.waiting.add(partition, frame);
            return Ok(());
        }
        self.send(content, partition, &frame, transaction)
    }

    fn send(
        &self,
        content: Content,
        partition: u32,
        payload: &[u8],
        transaction: &mut dyn Transactional,
    ) -> Result<(), LogError> {
        let topic: &Arc<str> = match content {
            Content::Action => &self.topics.actions,
            Content::Exchange => &self.topics.exchange,
            // `drain` makes no other frames than these three.
            _ => &self.topics.mutations,
        };
        transaction.send(Outgoing { topic, partition, key: &[], payload, headers: &[(ORIGIN, &self.origin)] })
    }

    /// Sends what is left.
    ///
    /// # Errors
    /// [`LogError`] of the transaction.
    pub(crate) fn finish(&mut self, transaction: &mut dyn Transactional) -> Result<(), LogError> {
        for ((content, partition), frame) in std::mem::take(&mut self.frames) {
            if !frame.is_empty() {
                self.close(content, partition, frame, transaction)?;
            }
        }
        Ok(())
    }
}

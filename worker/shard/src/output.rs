//! What a batch sends: frames per partition, filled while records are processed.
//!
//! A frame goes out when it is full; what is left goes out when the batch ends. All of it is in the batch's transaction.

use crate::log::{Log, LogError, Outgoing, Transactional};
use crate::topics::Topics;
use millstream_model::frame::{Content, FrameWriter};
use millstream_model::key::shard_of;
use millstream_stages::{Outbox, PublicMessage};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Open frames of a batch.
#[derive(Debug)]
pub struct Output {
    topics: Topics,
    frames: BTreeMap<(Content, u32), FrameWriter>,
    /// Messages sent.
    pub messages: u64,
}

/// Where a stage's outputs go.
fn topics_of<'a>(stage: &str, topics: &'a Topics) -> Vec<&'a Arc<str>> {
    match stage {
        "unify" => vec![&topics.actions, &topics.rejects],
        _ => vec![&topics.exchange, &topics.mutations, &topics.events, &topics.rejects],
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
    /// Nothing yet.
    pub fn new(topics: Topics) -> Output {
        Output { topics, frames: BTreeMap::new(), messages: 0 }
    }

    /// Takes what a record led to.
    ///
    /// # Errors
    /// [`LogError`] of the transaction.
    pub fn drain(&mut self, out: &mut Outbox, transaction: &mut dyn Transactional) -> Result<(), LogError> {
        for action in out.actions.drain(..) {
            self.frame(Content::Action, action.group, &action, transaction)?;
        }
        for message in out.exchange.drain(..) {
            self.frame(Content::Exchange, message.group, &message, transaction)?;
        }
        for mutation in out.mutations.drain(..) {
            self.frame(Content::Mutation, mutation.group, &mutation, transaction)?;
        }
        let (events, rejects) = (self.topics.events.clone(), self.topics.rejects.clone());
        for message in out.events.drain(..) {
            self.public(&events, &message, transaction)?;
        }
        for message in out.rejects.drain(..) {
            self.public(&rejects, &message, transaction)?;
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
            return self.send_frame(content, partition, full, transaction);
        }
        frame.push_sized(record, length);
        Ok(())
    }

    fn partition(&self, group: u32) -> u32 {
        shard_of(u16::try_from(group).unwrap_or(0), self.topics.shards)
    }

    fn public(
        &mut self,
        topic: &str,
        message: &PublicMessage,
        transaction: &mut dyn Transactional,
    ) -> Result<(), LogError> {
        // No allocation where there are none.
        let headers: Vec<(&str, &str)> = message.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        self.messages += 1;
        let partition = self.partition(u32::from(message.group));
        transaction.send(Outgoing { topic, partition, key: &message.key, payload: &message.payload, headers: &headers })
    }

    fn send_frame(
        &mut self,
        content: Content,
        partition: u32,
        frame: FrameWriter,
        transaction: &mut dyn Transactional,
    ) -> Result<(), LogError> {
        let topic: &Arc<str> = match content {
            Content::Action => &self.topics.actions,
            Content::Exchange => &self.topics.exchange,
            // `drain` makes no other frames than these three.
            _ => &self.topics.mutations,
        };
        let payload = frame.finish();
        self.messages += 1;
        transaction.send(Outgoing { topic, partition, key: &[], payload: &payload, headers: &[] })
    }

    /// Drops what a batch that was given up has left.
    pub fn clear(&mut self) {
        self.frames.clear();
    }

    /// Sends what is left.
    ///
    /// # Errors
    /// [`LogError`] of the transaction.
    pub fn finish(&mut self, transaction: &mut dyn Transactional) -> Result<(), LogError> {
        for ((content, partition), frame) in std::mem::take(&mut self.frames) {
            if !frame.is_empty() {
                self.send_frame(content, partition, frame, transaction)?;
            }
        }
        Ok(())
    }
}

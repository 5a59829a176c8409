//! The log on Apache Kafka, through librdkafka.
//!
//! Upholds the contract of [`millstream_shard::log`], and with it I4 (fencing by transactional ids), I6 (no silent jumps) and I7 (append
//! time). Where librdkafka's defaults or rdkafka's wrappers would break it, the reason is beside the setting or the call.

mod bulk;
mod client;
mod config;
mod consumer;
mod producer;
mod raw;
mod shared;
pub mod survey;
pub mod topics;
mod transactional;

pub use config::KafkaConfig;

use consumer::KafkaConsumer;
use millstream_shard::log::{
    Consumer, Deletes, EachRead, Ends, Log, LogError, Producer, Start, TopicPartition, TopicSpec, Transactional, View,
};
use producer::KafkaProducer;
use shared::Shared;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use transactional::KafkaTransactional;

/// The log on Kafka.
pub struct KafkaLog {
    shared: Arc<Shared>,
}

impl KafkaLog {
    /// Makes the clients; connects in the background.
    ///
    /// # Errors
    /// [`LogError::Configuration`].
    pub fn new(config: KafkaConfig) -> Result<KafkaLog, LogError> {
        Ok(KafkaLog { shared: Arc::new(Shared::new(config)?) })
    }

    /// How many brokers there are. Answers when one can be reached within `wait`.
    ///
    /// # Errors
    /// [`LogError::Unavailable`].
    pub fn brokers(&self, wait: Duration) -> Result<usize, LogError> {
        self.shared.brokers(wait)
    }

    /// Deletes a topic, and returns when it is gone.
    ///
    /// # Errors
    /// [`LogError::Topic`], [`LogError::Unavailable`].
    pub fn delete_topic(&self, topic: &str) -> Result<(), LogError> {
        self.shared.delete_topic(topic)
    }

    /// Deletes these topics, and no others; those that are not there count as deleted. Returns when they are gone.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] with the brokers' reason for the first that could not be deleted: the others are deleted all the same.
    pub fn delete_topics(&self, topics: &[String]) -> Result<(), LogError> {
        self.shared.delete_topics(topics)
    }
}

impl Log for KafkaLog {
    fn trim(&self, at: &TopicPartition, before: u64) -> Result<(), LogError> {
        self.shared.trim(at, before)
    }

    fn create_topics(&self, topics: &[TopicSpec]) -> Result<(), LogError> {
        if topics.is_empty() { Ok(()) } else { self.shared.create_topics(topics) }
    }

    fn topic_id(&self, topic: &str) -> Result<String, LogError> {
        self.shared.topic_id(topic)
    }

    fn bounds(&self, at: &TopicPartition) -> Result<(u64, u64), LogError> {
        self.shared.bounds(at)
    }

    fn ends(&self, of: &[TopicPartition]) -> Result<Vec<Ends>, LogError> {
        self.shared.ends(of)
    }

    fn deletes(&self, topic: &str) -> Result<Deletes, LogError> {
        self.shared.deletes(topic)
    }

    fn consumer(&self, assignments: &[(TopicPartition, Start)]) -> Result<Box<dyn Consumer>, LogError> {
        let client = self.shared.reader(View::Committed)?;
        Ok(Box::new(KafkaConsumer::new(Arc::clone(&self.shared), (client, None), assignments)?))
    }

    fn bulk_consumer(&self, assignments: &[(TopicPartition, Start)]) -> Result<Box<dyn Consumer>, LogError> {
        let client = self.shared.bulk_reader(assignments.iter().map(|(at, _)| at.clone()).collect())?;
        Ok(Box::new(KafkaConsumer::new(Arc::clone(&self.shared), client, assignments)?))
    }

    fn read(&self, of: &[(TopicPartition, Range<u64>)], view: View, each: EachRead<'_>) -> Result<(), LogError> {
        consumer::read(&self.shared, of, view, each)
    }

    fn producer(&self) -> Result<Box<dyn Producer>, LogError> {
        Ok(Box::new(KafkaProducer::new(Arc::clone(&self.shared))?))
    }

    fn transactional(&self, id: &str) -> Result<Box<dyn Transactional>, LogError> {
        Ok(Box::new(KafkaTransactional::new(Arc::clone(&self.shared), id)?))
    }
}

//! Following the changelog, and rule 1: reading it to the end.

use crate::Settings;
use crate::record::{Record, View};
use anyhow::{Context, Result, bail};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Message, Offset, TopicPartitionList};
use std::time::{Duration, Instant};

/// A read-committed consumer that is told where to read and never jumps.
pub fn consumer(settings: &Settings, wait_ms: u32) -> Result<BaseConsumer> {
    Ok(ClientConfig::new()
        .set("bootstrap.servers", &settings.brokers)
        .set("group.id", "unused")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", "read_committed")
        .set("auto.offset.reset", "error")
        .set("fetch.wait.max.ms", wait_ms.to_string())
        .set("fetch.queue.backoff.ms", "5")
        .set("fetch.error.backoff.ms", "20")
        .set_log_level(rdkafka::config::RDKafkaLogLevel::Emerg)
        .create()?)
}

/// Assigns one partition from an offset on; whatever was fetched before is dropped.
pub fn assign(consumer: &BaseConsumer, topic: &str, partition: i32, offset: i64) -> Result<()> {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(offset))?;
    Ok(consumer.assign(&list)?)
}

/// A follower of the shard's changelog.
pub struct Follower {
    consumer: BaseConsumer,
    topic: String,
    shard: i32,
    next: i64,
    pub view: View,
}

impl Follower {
    /// Follows from the start.
    pub fn new(settings: &Settings) -> Result<Follower> {
        let (consumer, topic) = (consumer(settings, 20)?, settings.topic("changelog"));
        assign(&consumer, &topic, settings.shard, 0)?;
        Ok(Follower { consumer, topic, shard: settings.shard, next: 0, view: View::default() })
    }

    /// Applies what comes within `timeout`, at most one record; false when the end was met.
    pub fn poll(&mut self, timeout: Duration) -> Result<Option<bool>> {
        match self.consumer.poll(timeout) {
            None => Ok(None),
            Some(Err(KafkaError::PartitionEOF(_))) => Ok(Some(false)),
            // Fetch errors of a broker that is away are retried by the client.
            Some(Err(KafkaError::MessageConsumption(code))) if is_transient(code) => Ok(None),
            Some(Err(error)) => Err(error).context("following the changelog"),
            Some(Ok(message)) => {
                if message.offset() < self.next {
                    bail!("the changelog went back to {} from {}", message.offset(), self.next);
                }
                self.next = message.offset() + 1;
                let record: Record = serde_json::from_slice(message.payload().unwrap_or_default())?;
                self.view.apply(record);
                Ok(Some(true))
            }
        }
    }

    /// Rule 1. Asks the leader for the read-committed end, then reads until a fetch *made after that answer* meets the end.
    ///
    /// The position of a librdkafka consumer stays before trailing commit markers, so it cannot be compared with the end; and an end-of-partition
    /// event may have been queued before the question. Assigning anew makes the client drop what was queued.
    pub fn read_to_end(&mut self) -> Result<Duration> {
        let began = Instant::now();
        let (_, end) = self.consumer.fetch_watermarks(&self.topic, self.shard, Duration::from_secs(10))?;
        if self.next < end {
            assign(&self.consumer, &self.topic, self.shard, self.next)?;
            while self.poll(Duration::from_millis(100))? != Some(false) {
                if began.elapsed() > Duration::from_secs(30) {
                    bail!("the end {end} of the changelog was not reached from {}", self.next);
                }
            }
        }
        Ok(began.elapsed())
    }
}

fn is_transient(code: rdkafka::types::RDKafkaErrorCode) -> bool {
    use rdkafka::types::RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::OperationTimedOut
            | Code::NotLeaderForPartition
            | Code::LeaderNotAvailable
    )
}

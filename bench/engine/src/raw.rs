//! The limit: what librdkafka alone costs for the same input and the same output. Consume a frame; per record produce an event of 700 bytes and
//! add a mutation of 200 bytes to a frame. No transaction, no state, no changelog, no parsing; as many clients as the shards have.

use crate::scenario::Scenario;
use crate::window::{self, Progress};
use anyhow::{Context, Result};
use millstream_model::frame::{self, Content, MAX_BYTES, MAX_RECORDS};
use millstream_shard::topics::Topics;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use std::sync::Arc;
use std::time::Duration;

/// Bytes of an event and of a mutation, about what the stage makes of a record.
const EVENT: usize = 700;
const MUTATION: usize = 200;

/// Passes records through and measures it.
pub(crate) fn run(scenario: &Scenario) -> Result<()> {
    let progress = Arc::new(Progress::default());
    let threads = (0..scenario.shards)
        .map(|partition| {
            let (scenario, progress) = (scenario.clone(), progress.clone());
            std::thread::spawn(move || Pass::new(&scenario, partition)?.run(&progress))
        })
        .collect();
    window::measure(scenario, &progress, threads)
}

/// One partition's pass-through, with those settings of the shard runtime's clients that decide what a message costs (`worker/stores/src/kafka/config.rs`). It has a consumer of its own; shards
/// share one.
struct Pass {
    topics: Topics,
    partition: i32,
    consumer: BaseConsumer,
    producer: BaseProducer,
    event: Vec<u8>,
    frame: Vec<u8>,
    mutations: usize,
}

impl Pass {
    fn new(scenario: &Scenario, partition: u32) -> Result<Pass> {
        let (topics, partition) = (scenario.topics(), i32::try_from(partition)?);
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &scenario.bootstrap)
            .set("group.id", "raw")
            .set("isolation.level", "read_committed")
            .set("enable.auto.commit", "false")
            .set("fetch.min.bytes", "1000000")
            .set("fetch.wait.max.ms", "50")
            .set("fetch.queue.backoff.ms", "10")
            .set("queued.min.messages", "20000")
            .set("queued.max.messages.kbytes", "32768")
            .create()?;
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(&topics.ingress, partition, Offset::Beginning)?;
        consumer.assign(&assignment)?;
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", &scenario.bootstrap)
            .set("enable.idempotence", "true")
            .set("compression.type", "lz4")
            // Large requests, as a transaction's: they cost the least (see there).
            .set("linger.ms", "1000")
            .set("batch.size", "8388608")
            .set("batch.num.messages", "1000000")
            .set("queue.buffering.max.messages", "1000000")
            .set("delivery.report.only.error", "true")
            .create()?;
        let (event, frame) = (Vec::with_capacity(EVENT), Vec::with_capacity(MAX_BYTES));
        Ok(Pass { topics, partition, consumer, producer, event, frame, mutations: 0 })
    }

    fn run(mut self, progress: &Progress) -> Result<()> {
        while !progress.is_stopped() {
            let Some(message) = self.consumer.poll(Duration::from_millis(100)) else { continue };
            let message = message?.detach();
            let payload = message.payload().context("empty message")?;
            let mut records = 0;
            for record in frame::read(payload, Content::Envelope)? {
                self.record(record?)?;
                records += 1;
            }
            self.producer.poll(Duration::ZERO);
            progress.add(records);
        }
        self.producer.flush(Duration::from_secs(60))?;
        Ok(())
    }

    fn record(&mut self, record: &[u8]) -> Result<()> {
        let (key, rest) = (record.get(..13).context("record is short")?, EVENT.saturating_sub(record.len()));
        let mutation = record.get(..MUTATION).context("record is short")?;
        self.event.clear();
        self.event.extend_from_slice(record);
        self.event.extend_from_slice(record.get(..rest).unwrap_or_default());
        send(&self.producer, &self.topics.events, self.partition, key, &self.event)?;
        self.frame.extend_from_slice(mutation);
        self.mutations += 1;
        if self.mutations >= MAX_RECORDS || self.frame.len() + MUTATION > MAX_BYTES {
            send(&self.producer, &self.topics.mutations, self.partition, &[], &self.frame)?;
            self.frame.clear();
            self.mutations = 0;
        }
        Ok(())
    }
}

fn send(producer: &BaseProducer, topic: &str, partition: i32, key: &[u8], payload: &[u8]) -> Result<()> {
    let mut record = BaseRecord::to(topic).partition(partition).key(key).payload(payload);
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((error, back)) => {
                let full = error.rdkafka_error_code() == Some(rdkafka::types::RDKafkaErrorCode::QueueFull);
                anyhow::ensure!(full, "raw send: {error}");
                producer.poll(Duration::from_millis(5));
                record = back;
            }
        }
    }
}

//! The limit: consume a frame, produce two messages per record, no transaction and no state.

use crate::{Cost, cpu_seconds};
use anyhow::{Context, Result};
use millstream_model::frame::{self, Content};
use millstream_shard::topics::Topics;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use std::time::{Duration, Instant};

/// Passes the records of `ingress` through to `events` and `rejects`, one message each.
pub(crate) fn pass_through(
    bootstrap: &str,
    topics: &Topics,
    records: u64,
    partitions: u32,
    body: &[u8],
) -> Result<Cost> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "raw")
        .set("enable.auto.commit", "false")
        .set("fetch.wait.max.ms", "20")
        .set("fetch.queue.backoff.ms", "10")
        .create()?;
    let mut assignment = TopicPartitionList::new();
    for partition in 0..partitions {
        assignment.add_partition_offset(&topics.ingress, partition as i32, Offset::Beginning)?;
    }
    consumer.assign(&assignment)?;
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("acks", "all")
        .set("compression.type", "lz4")
        .set("linger.ms", "5")
        .set("batch.size", "1000000")
        .set("queue.buffering.max.messages", "500000")
        .create()?;
    let small = body.get(..230).context("body is short")?;
    let large = [body, small].concat();
    let (cpu, began) = (cpu_seconds()?, Instant::now());
    let mut done = 0;
    while done < records {
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        let message = message?;
        let payload = message.payload().context("empty message")?;
        for record in frame::read(payload, Content::Envelope)? {
            let key = record?.get(..8).context("record is short")?;
            send(&producer, &topics.events, message.partition(), key, &large)?;
            send(&producer, &topics.rejects, message.partition(), key, small)?;
            done += 1;
        }
        producer.poll(Duration::ZERO);
    }
    producer.flush(Duration::from_secs(60))?;
    Ok(Cost { records: done, seconds: began.elapsed().as_secs_f64(), cpu: cpu_seconds()? - cpu })
}

fn send(producer: &BaseProducer, topic: &str, partition: i32, key: &[u8], payload: &[u8]) -> Result<()> {
    let mut record = BaseRecord::to(topic).partition(partition).key(key).payload(payload);
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((_, back)) => {
                producer.poll(Duration::from_millis(5));
                record = back;
            }
        }
    }
}

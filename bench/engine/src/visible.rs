//! From the time inside a record to the moment at which a read-committed reader sees what became of it.

use anyhow::{Context, Result};
use millstream_shard::Clock;
use millstream_shard::topics::Topics;
use millstream_stores::embedded::SystemClock;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Watches `events` and keeps the delays of what it sees while it is told to.
pub(crate) struct Watcher {
    consumer: BaseConsumer,
    delays_ms: Vec<u64>,
}

impl Watcher {
    /// A reader with the client's own settings, as anybody has it, but read-committed.
    pub(crate) fn new(bootstrap: &str, topics: &Topics) -> Result<Watcher> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("group.id", "watcher")
            .set("isolation.level", "read_committed")
            .set("enable.auto.commit", "false")
            .create()?;
        let mut assignment = TopicPartitionList::new();
        for partition in 0..topics.shards {
            assignment.add_partition_offset(&topics.events, i32::try_from(partition)?, Offset::Beginning)?;
        }
        consumer.assign(&assignment)?;
        Ok(Watcher { consumer, delays_ms: Vec::new() })
    }

    /// Reads until stopped.
    pub(crate) fn run(mut self, counts: &AtomicBool, stop: &AtomicBool) -> Result<Delays> {
        while !stop.load(Ordering::Relaxed) {
            let Some(message) = self.consumer.poll(Duration::from_millis(100)) else { continue };
            let message = message?;
            let produced = message.payload().and_then(produced_ms).filter(|_| counts.load(Ordering::Relaxed));
            self.delays_ms.extend(produced.map(|produced| SystemClock.now_ms().saturating_sub(produced)));
        }
        self.delays_ms.sort_unstable();
        Ok(Delays(self.delays_ms))
    }
}

/// Delays in ascending order.
pub(crate) struct Delays(Vec<u64>);

impl Delays {
    /// The delay that this share of all keep to, milliseconds.
    pub(crate) fn quantile(&self, share: f64) -> Result<f64> {
        let last = self.0.len().checked_sub(1).context("no event was seen")?;
        let index = (share * last as f64).round() as usize;
        Ok(self.0.get(index).copied().context("no such delay")? as f64)
    }
}

/// The field `ts` of a record.
fn produced_ms(payload: &[u8]) -> Option<u64> {
    const FIELD: &[u8] = b"\"ts\":";
    let at = payload.windows(FIELD.len()).position(|window| window == FIELD)? + FIELD.len();
    let digits = payload.get(at..)?.split(|byte| !byte.is_ascii_digit()).next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_time_of_a_record_is_found() {
        assert_eq!(super::produced_ms(&crate::stage::example(7, 8, 1_780_000_000_123)), Some(1_780_000_000_123));
        assert_eq!(super::produced_ms(b"{}"), None);
    }
}

//! From the time inside a record to the moment at which a read-committed reader sees what became of it.

use anyhow::{Context, Result};
use millstream_shard::Clock;
use millstream_shard::log::{Consumer, Log, Start, TopicPartition};
use millstream_shard::topics::Topics;
use millstream_stores::embedded::SystemClock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Watches `events` and keeps the delays of what it sees while it is told to.
pub(crate) struct Watcher {
    consumer: Box<dyn Consumer>,
    delays_ms: Vec<u64>,
}

impl Watcher {
    pub(crate) fn new(log: &dyn Log, topics: &Topics) -> Result<Watcher> {
        let partition = |partition| (TopicPartition::new(topics.events.clone(), partition), Start::Latest);
        let partitions: Vec<_> = (0..topics.shards).map(partition).collect();
        Ok(Watcher { consumer: log.consumer(&partitions)?, delays_ms: Vec::new() })
    }

    /// Reads until stopped.
    pub(crate) fn run(mut self, counts: &AtomicBool, stop: &AtomicBool) -> Result<Delays> {
        while !stop.load(Ordering::Relaxed) {
            let counts = counts.load(Ordering::Relaxed);
            let delays_ms = &mut self.delays_ms;
            self.consumer.poll(1000, Duration::from_millis(100), &mut |message| {
                let produced = produced_ms(message.payload).filter(|_| counts);
                delays_ms.extend(produced.map(|produced| SystemClock.now_ms().saturating_sub(produced)));
            })?;
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

//! A continuous load: records to the shard's input at a steady rate, until told to stop.

use crate::Settings;
use anyhow::Result;
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const PER_TICK: u64 = 20;
const TICK: Duration = Duration::from_millis(10); // 2,000 records a second

/// Starts it; joining after `stop` gives the number of records that are in the log.
pub fn start(settings: &Settings, stop: Arc<AtomicBool>) -> Result<JoinHandle<u64>> {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &settings.brokers)
        .set("enable.idempotence", "true")
        .set("linger.ms", "2")
        .create()?;
    let (topic, shard) = (settings.topic("input"), settings.shard);
    Ok(std::thread::spawn(move || {
        let (mut sent, began) = (0u64, Instant::now());
        while !stop.load(Ordering::Relaxed) {
            for _ in 0..PER_TICK {
                let text = sent.to_string();
                while producer.send(BaseRecord::<(), str>::to(&topic).partition(shard).payload(&text)).is_err() {
                    producer.poll(Duration::from_millis(5));
                }
                sent += 1;
            }
            producer.poll(Duration::ZERO);
            let due = began + TICK * (sent / PER_TICK) as u32;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        producer.flush(Duration::from_secs(60)).expect("the load could not be written");
        sent
    }))
}

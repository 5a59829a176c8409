//! How fresh a pipeline's events are while something happens to it: one user sends an event every 100 ms, and a reader notes when each comes out.
//!
//! From the moment at which an event was first sent, by this process's clock, to that at which a reader of `events` has it: what the gateway refuses meanwhile is sent again, and counts from its
//! first attempt.

use anyhow::Result;
use millstream_shard::log::{Log as _, Start, TopicPartition};
use millstream_shard::topics::Topics;
use millstream_stores::kafka::{KafkaConfig, KafkaLog};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two events.
const EVERY: Duration = Duration::from_millis(100);
/// One request.
const PATIENCE: Duration = Duration::from_secs(2);

/// When each event was sent first, and when it came out, by its number.
#[derive(Default)]
struct Times {
    sent: BTreeMap<u64, Instant>,
    /// And from which shard.
    seen: BTreeMap<u64, (Instant, usize)>,
}

/// A sender and a reader; they end when it is dropped.
pub struct Freshness {
    times: Arc<Mutex<Times>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// Of the events that were sent in a while.
#[derive(Clone, Copy, Debug)]
pub struct Quantiles {
    /// Events.
    pub count: usize,
    /// The middle one.
    pub median: Duration,
    /// One in a hundred took longer.
    pub p99: Duration,
    /// The longest.
    pub longest: Duration,
}

impl Freshness {
    /// Starts both; `to` is the gateway, `key` the key of a tenant of its own.
    ///
    /// # Errors
    /// When `events` cannot be read.
    pub fn start(to: &str, key: &str, kafka: KafkaConfig, topics: &Topics) -> Result<Freshness> {
        let (times, stop) = (Arc::new(Mutex::<Times>::default()), Arc::new(AtomicBool::new(false)));
        let at: Vec<_> = (0..topics.shards)
            .map(|shard| (TopicPartition::new(topics.events.clone(), shard), Start::Latest))
            .collect();
        let mut consumer = KafkaLog::new(kafka)?.consumer(&at)?;
        let (noted, stopped) = (Arc::clone(&times), Arc::clone(&stop));
        let reader = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // What cannot be read now is late.
                let _ = consumer.poll(100, Duration::from_millis(50), &mut |message| {
                    if let Some(number) = number(message.payload) {
                        locked(&noted).seen.entry(number).or_insert_with(|| (Instant::now(), message.assignment));
                    }
                });
            }
        });
        let (noted, stopped, url, key) =
            (Arc::clone(&times), Arc::clone(&stop), format!("{to}/v1/batch"), key.to_owned());
        let sender = std::thread::spawn(move || send(&noted, &stopped, &url, &key));
        Ok(Freshness { times, stop, threads: vec![reader, sender] })
    }

    /// Waits until an event has come out that was sent after this was called; the shard that it came from.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn flows(&self) -> Result<usize> {
        let from = Instant::now();
        super::pipeline::until("an event that comes out", || {
            let times = locked(&self.times);
            let mut sent = times.sent.iter().filter(|(_, sent)| **sent >= from);
            Ok(sent.find_map(|(number, _)| Some(times.seen.get(number)?.1)))
        })
    }

    /// Of those that were sent since then; waits until all of them have come out.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn since(&self, from: Instant) -> Result<Quantiles> {
        let until = Instant::now();
        let is_out = || {
            let times = locked(&self.times);
            let mut sent = times.sent.iter().filter(|(_, sent)| **sent <= until);
            Ok(sent.all(|(number, _)| times.seen.contains_key(number)).then_some(()))
        };
        super::pipeline::until("every event that was sent", is_out)?;
        let times = locked(&self.times);
        let sent = times.sent.iter().filter(|(_, sent)| (from..=until).contains(*sent));
        let mut took: Vec<Duration> = sent
            .filter_map(|(number, sent)| Some(times.seen.get(number)?.0.saturating_duration_since(*sent)))
            .collect();
        took.sort();
        let at = |share: f64| {
            let index = (took.len() as f64 * share) as usize;
            took.get(index.min(took.len().saturating_sub(1))).copied().unwrap_or_default()
        };
        Ok(Quantiles { count: took.len(), median: at(0.5), p99: at(0.99), longest: at(1.0) })
    }
}

impl Drop for Freshness {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn locked(times: &Mutex<Times>) -> MutexGuard<'_, Times> {
    times.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Of one of ours.
fn number(payload: &[u8]) -> Option<u64> {
    let event: Value = serde_json::from_slice(payload).ok()?;
    event.get("message_id")?.as_str()?.strip_prefix("fresh-")?.parse().ok()
}

/// One event after the other, each until it is taken; several at a time, so that one that waits holds up no other.
fn send(times: &Arc<Mutex<Times>>, stop: &Arc<AtomicBool>, url: &str, key: &str) {
    let began = Instant::now();
    for number in 0_u64.. {
        std::thread::sleep((EVERY * u32::try_from(number).unwrap_or(u32::MAX)).saturating_sub(began.elapsed()));
        if stop.load(Ordering::Relaxed) {
            return;
        }
        locked(times).sent.insert(number, Instant::now());
        let (stop, url, key) = (Arc::clone(stop), url.to_owned(), key.to_owned());
        std::thread::spawn(move || {
            let event = json!({"type": "event", "message_id": format!("fresh-{number}"), "event": "Fresh", "identifiers": {"user_id": "fresh"}});
            let body = json!({"batch": [event]}).to_string();
            // A client of its own: a connection to a Pod that is gone hangs.
            let Ok(client) = reqwest::blocking::Client::builder().timeout(PATIENCE).build() else { return };
            while !stop.load(Ordering::Relaxed) {
                let request = client.post(&url).bearer_auth(&key).header("content-type", "application/json");
                if request.body(body.clone()).send().is_ok_and(|answer| answer.status().is_success()) {
                    return;
                }
            }
        });
    }
}

//! One user per shard sends an event every few milliseconds; a reader notes when each comes out.
//!
//! A user whose only identifier lies in a shard's key groups has its whole way in that shard: routing, node and home. So a gap in one partition of `events` is a gap of
//! that shard of unify or of action, and nothing else. Gaps are by the reader's clock alone.

use anyhow::{Context, Result};
use millstream_model::key::{group_of_parts, shard_of};
use millstream_shard::log::{Log, Start, TopicPartition};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two events of one shard.
pub(crate) const EVERY: Duration = Duration::from_millis(20);

/// When events of each shard came out.
#[derive(Default)]
pub(crate) struct Arrivals(Mutex<Vec<Vec<Instant>>>);

impl Arrivals {
    fn note(&self, shard: usize) {
        let mut arrivals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shard) = arrivals.get_mut(shard) {
            shard.push(Instant::now());
        }
    }

    /// The longest gap of each shard that overlaps this time.
    pub(crate) fn gaps(&self, from: Instant, to: Instant) -> Vec<Duration> {
        let arrivals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        arrivals.iter().map(|shard| longest(shard, from, to)).collect()
    }

    /// All gaps of all shards that overlap this time.
    pub(crate) fn all_gaps(&self, from: Instant, to: Instant) -> Vec<Duration> {
        let arrivals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        arrivals.iter().flat_map(|shard| gaps(shard, from, to)).collect()
    }

    /// Has each shard put something out since then?
    pub(crate) fn all_since(&self, since: Instant) -> bool {
        let arrivals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        arrivals.iter().all(|shard| shard.last().is_some_and(|last| *last > since))
    }
}

fn gaps(arrivals: &[Instant], from: Instant, to: Instant) -> impl Iterator<Item = Duration> {
    let pairs = arrivals.iter().zip(arrivals.iter().skip(1));
    pairs.filter(move |(one, next)| **next >= from && **one <= to).map(|(one, next)| *next - *one)
}

fn longest(arrivals: &[Instant], from: Instant, to: Instant) -> Duration {
    gaps(arrivals, from, to).max().unwrap_or_default()
}

/// Senders and the reader; they end when it is dropped.
pub(crate) struct Probe {
    /// What comes out.
    pub(crate) arrivals: Arc<Arrivals>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Probe {
    /// Starts one sender per shard, and the reader.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub(crate) fn start(log: &dyn Log, events: &str, shards: u32, url: &str, tenant: &str, key: &str) -> Result<Probe> {
        let (stop, arrivals) = (Arc::new(AtomicBool::new(false)), Arc::new(Arrivals::default()));
        *arrivals.0.lock().unwrap_or_else(PoisonError::into_inner) = vec![Vec::new(); shards as usize];
        let at: Vec<_> = (0..shards).map(|shard| (TopicPartition::new(events, shard), Start::Latest)).collect();
        let mut consumer = log.consumer(&at)?;
        let mut threads = Vec::new();
        let (stopped, noted) = (stop.clone(), arrivals.clone());
        threads.push(std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // What cannot be read shows as a gap.
                let _ = consumer.poll(100, Duration::from_millis(50), &mut |message| noted.note(message.assignment));
            }
        }));
        for shard in 0..shards {
            let user = user_of(tenant, shard, shards).context("no user for a shard")?;
            let (stopped, url, key) = (stop.clone(), format!("{url}/v1/batch"), key.to_owned());
            threads.push(std::thread::spawn(move || send(&stopped, &url, &key, &user)));
        }
        Ok(Probe { arrivals, stop, threads })
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A user id whose key group is in this shard.
fn user_of(tenant: &str, shard: u32, shards: u32) -> Option<String> {
    let ids = (0..1_000_000).map(|number| format!("probe-{number}"));
    ids.into_iter().find(|id| shard_of(group_of_parts(tenant, "user_id", id), shards) == shard)
}

fn send(stopped: &AtomicBool, url: &str, key: &str, user: &str) {
    let client = reqwest::blocking::Client::new();
    let began = Instant::now();
    for number in 0_u32.. {
        std::thread::sleep((EVERY * number).saturating_sub(began.elapsed()));
        if stopped.load(Ordering::Relaxed) {
            return;
        }
        let body = format!(
            r#"{{"batch":[{{"type":"event","message_id":"{user}-{number}","event":"Probe","identifiers":{{"user_id":"{user}"}}}}]}}"#
        );
        let sent = client.post(url).bearer_auth(key).header("content-type", "application/json").body(body).send();
        // What is not accepted shows as a gap; gaps are what this measures.
        drop(sent);
    }
}

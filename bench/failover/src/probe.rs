//! One user per shard sends an event and an attribute every few milliseconds; readers note when each comes out, and when the user's document has it.
//!
//! A user whose only identifier lies in a shard's key groups has its whole way in that shard: routing, node, home and document. So a gap in one partition of `events` is a
//! gap of that shard of unify or of action, a gap in the revisions of its document one of these or of reaction, and nothing else. Gaps are by the reader's clock alone.

use anyhow::{Context, Result};
use millstream_model::key::{group_of_parts, shard_of};
use millstream_shard::documents::DocumentStore;
use millstream_shard::log::{Log, Start, TopicPartition};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two records of one shard.
const EVERY: Duration = Duration::from_millis(20);
/// Between two looks at the documents.
const LOOKS_EVERY: Duration = Duration::from_millis(10);

/// When effects of each shard came out.
pub(crate) struct Arrivals(Mutex<Vec<Vec<Instant>>>);

impl Arrivals {
    fn new(shards: u32) -> Arrivals {
        Arrivals(Mutex::new(vec![Vec::new(); shards as usize]))
    }

    fn note(&self, shard: usize) {
        let mut arrivals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shard) = arrivals.get_mut(shard) {
            shard.push(Instant::now());
        }
    }

    /// The longest gap of any shard that overlaps the time since then.
    fn worst(&self, from: Instant) -> Duration {
        self.all_gaps(from, Instant::now()).into_iter().max().unwrap_or_default()
    }

    /// All gaps of all shards that overlap this time.
    fn all_gaps(&self, from: Instant, to: Instant) -> Vec<Duration> {
        let arrivals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        arrivals.iter().flat_map(|shard| gaps(shard, from, to)).collect()
    }

    /// Has each shard put something out since then?
    fn all_since(&self, since: Instant) -> bool {
        let arrivals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        arrivals.iter().all(|shard| shard.last().is_some_and(|last| *last > since))
    }
}

fn gaps(arrivals: &[Instant], from: Instant, to: Instant) -> impl Iterator<Item = Duration> {
    let pairs = arrivals.iter().zip(arrivals.iter().skip(1));
    pairs.filter(move |(one, next)| **next >= from && **one <= to).map(|(one, next)| *next - *one)
}

/// Half of all time lies in gaps that are shorter or as long.
fn median_by_time(gaps: &[Duration]) -> Duration {
    let mut sorted = gaps.to_vec();
    sorted.sort_unstable();
    let half = gaps.iter().sum::<Duration>() / 2;
    let mut passed = Duration::ZERO;
    let mut is_half = |gap: &Duration| {
        passed += *gap;
        passed >= half
    };
    sorted.into_iter().find(|gap| is_half(gap)).unwrap_or_default()
}

/// A gap of events, and one of documents.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Gap {
    pub(crate) events: Duration,
    pub(crate) documents: Duration,
}

impl Gap {
    /// By how much the worse of the two is longer than at rest.
    pub(crate) fn beyond(&self, rest: &Gap) -> Duration {
        self.events.saturating_sub(rest.events).max(self.documents.saturating_sub(rest.documents))
    }

    /// The longer of the two.
    pub(crate) fn longest(&self) -> Duration {
        self.events.max(self.documents)
    }
}

/// Where effects are seen.
pub(crate) struct Outputs<'a> {
    pub(crate) log: &'a dyn Log,
    pub(crate) events: String,
    pub(crate) documents: Arc<dyn DocumentStore>,
}

/// Senders and readers; they end when it is dropped.
pub(crate) struct Probe {
    events: Arc<Arrivals>,
    documents: Arc<Arrivals>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Probe {
    /// Starts one sender per shard, and the readers.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub(crate) fn start(outputs: Outputs<'_>, shards: u32, url: &str, tenant: &str, key: &str) -> Result<Probe> {
        let users = (0..shards).map(|shard| user_of(tenant, shard, shards).context("no user for a shard"));
        let users: Vec<String> = users.collect::<Result<_>>()?;
        let (events, documents) = (Arc::new(Arrivals::new(shards)), Arc::new(Arrivals::new(shards)));
        let mut probe = Probe { events, documents, stop: Arc::default(), threads: Vec::new() };
        let at: Vec<_> =
            (0..shards).map(|shard| (TopicPartition::new(outputs.events.as_str(), shard), Start::Latest)).collect();
        let mut consumer = outputs.log.consumer(&at)?;
        let noted = probe.events.clone();
        probe.until_stopped(move || {
            // What cannot be read shows as a gap.
            let _ = consumer.poll(100, Duration::from_millis(50), &mut |message| noted.note(message.assignment));
        });
        let (noted, store, of) = (probe.documents.clone(), outputs.documents, tenant.to_owned());
        let shards_of: BTreeMap<String, usize> = users.iter().cloned().zip(0..).collect();
        let mut revisions = BTreeMap::new();
        probe.until_stopped(move || {
            look(&*store, &of, &shards_of, &mut revisions, &noted);
            std::thread::sleep(LOOKS_EVERY);
        });
        for user in users {
            let (stopped, url, key) = (probe.stop.clone(), format!("{url}/v1/batch"), key.to_owned());
            probe.threads.push(std::thread::spawn(move || send(&stopped, &url, &key, &user)));
        }
        Ok(probe)
    }

    fn until_stopped(&mut self, mut work: impl FnMut() + Send + 'static) {
        let stopped = self.stop.clone();
        self.threads.push(std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                work();
            }
        }));
    }

    /// Has each shard put something out since then, an event and a document?
    pub(crate) fn all_since(&self, since: Instant) -> bool {
        self.events.all_since(since) && self.documents.all_since(since)
    }

    /// The longest gaps of any shard that overlap the time since then.
    pub(crate) fn worst(&self, from: Instant) -> Gap {
        Gap { events: self.events.worst(from), documents: self.documents.worst(from) }
    }

    /// The gap that a moment drawn at random since then lies in, its median: not that of all gaps, since effects of one batch have hardly any between them.
    pub(crate) fn interval(&self, from: Instant) -> Gap {
        let of = |arrivals: &Arrivals| median_by_time(&arrivals.all_gaps(from, Instant::now()));
        Gap { events: of(&self.events), documents: of(&self.documents) }
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

/// Notes each user whose document has a newer revision.
fn look(
    store: &dyn DocumentStore,
    tenant: &str,
    shards: &BTreeMap<String, usize>,
    revisions: &mut BTreeMap<String, u64>,
    arrivals: &Arrivals,
) {
    // What cannot be read shows as a gap.
    let _ = store.scan(tenant, "users", &mut |id, document| {
        let attributes = document.fields.get("attributes").and_then(|attributes| attributes.as_object());
        let user = attributes.and_then(|attributes| attributes.get("probe")).and_then(|name| name.as_str());
        if let Some(shard) = user.and_then(|name| shards.get(name))
            && revisions.insert(id.to_owned(), document.revision) != Some(document.revision)
        {
            arrivals.note(*shard);
        }
        true
    });
}

/// A user id whose key group is in this shard.
fn user_of(tenant: &str, shard: u32, shards: u32) -> Option<String> {
    let mut ids = (0..1_000_000).map(|number| format!("probe-{number}"));
    ids.find(|id| shard_of(group_of_parts(tenant, "user_id", id), shards) == shard)
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
            r#"{{"batch":[{{"type":"event","message_id":"{user}-{number}","event":"Probe","identifiers":{{"user_id":"{user}"}}}},
            {{"type":"user","message_id":"{user}-u{number}","identifiers":{{"user_id":"{user}"}},"set":{{"probe":"{user}","number":{number}}}}}]}}"#
        );
        let sent = client.post(url).bearer_auth(key).header("content-type", "application/json").body(body).send();
        // What is not accepted shows as a gap; gaps are what this measures.
        drop(sent);
    }
}

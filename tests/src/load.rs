//! Generated load through running pipelines, and the check against its truth.

use crate::pipeline::{Pipeline, Settings, until};
use crate::plan;
use anyhow::{Context, Result, bail, ensure};
use millstream::cli::sender::{Progress, Target, send_lines};
use millstream::cli::verify::{self, Snapshot};
use millstream::cli::{Admin, snapshot, usage};
use millstream::generate::{Load, Options, generate};
use millstream_model::frame::{self, Content};
use millstream_model::proto::Envelope;
use millstream_shard::log::{Log as _, TopicPartition, View};
use millstream_shard::topics::Topics;
use millstream_stores::kafka::{KafkaConfig, KafkaLog};
use prost::Message as _;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A load whose records end now.
///
/// # Errors
/// When the generator is wrong.
pub fn generated(seed: u64, tenants: u32, users: u32) -> Result<Load> {
    let now_ms = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis() as i64;
    Ok(generate(&Options { tenants, users, seed, now_ms, days: 5, bad_share: 0.03, duplicates: 0.05 })?)
}

/// A pipeline for a load, on embedded stores.
pub fn settings(pipeline: &str, load: &Load) -> Settings {
    let tenants: BTreeMap<String, String> =
        load.streams.iter().map(|stream| (stream.tenant.clone(), stream.key.clone())).collect();
    Settings {
        pipeline: pipeline.to_owned(),
        shards: 4,
        replication: 1,
        tenants: tenants.into_iter().collect(),
        ..Settings::default()
    }
}

/// A load on its way: each stream by a sender of its own, which repeats what has no answer.
pub struct Sending {
    progress: Arc<Progress>,
    total: u64,
    senders: Vec<JoinHandle<Result<()>>>,
    /// Opened by [`Sending::finish`], for what is held back.
    gate: Arc<Gate>,
}

#[derive(Default)]
struct Gate {
    is_open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn pass(&self) {
        let is_open = self.is_open.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.opened.wait_while(is_open, |is_open| !*is_open));
    }

    fn open(&self) {
        *self.is_open.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.opened.notify_all();
    }
}

impl Sending {
    /// Starts to send to the pipeline's public port.
    pub fn start(pipeline: &Pipeline, load: &Load) -> Sending {
        let to = pipeline.processes.first().map(super::pipeline::Process::url).unwrap_or_default();
        Sending::start_to(&to, load)
    }

    /// Starts to send to the pipeline's public port, all but the last sixth of each stream, which waits for [`Sending::finish`]: what is done before that is
    /// done in mid-load.
    pub fn held(pipeline: &Pipeline, load: &Load) -> Sending {
        let to = pipeline.processes.first().map(super::pipeline::Process::url).unwrap_or_default();
        Sending::begin(&to, load, Duration::ZERO, 6)
    }

    /// Starts to send to a URL.
    pub fn start_to(to: &str, load: &Load) -> Sending {
        Sending::paced(to, load, Duration::ZERO)
    }

    /// Starts to send to a URL, each stream evenly over `time`.
    pub fn paced(to: &str, load: &Load, time: Duration) -> Sending {
        Sending::begin(to, load, time, usize::MAX)
    }

    /// Both: evenly over `time`, and the last sixth of each stream waits for [`Sending::finish`].
    pub fn paced_and_held(to: &str, load: &Load, time: Duration) -> Sending {
        Sending::begin(to, load, time, 6)
    }

    /// One in so many of the lines is held back, the last ones.
    fn begin(to: &str, load: &Load, time: Duration, held_of: usize) -> Sending {
        let gate = Arc::new(Gate::default());
        let progress = Arc::new(Progress::default());
        let mut senders = Vec::new();
        for stream in &load.streams {
            let target = Target {
                to: to.to_owned(),
                key: stream.key.clone(),
                source: stream.source,
                // Of a trickle, what comes goes.
                batch: if time.is_zero() { 50 } else { 10 },
                parallel: 2,
                attempts: 200,
                prefix: format!("{}-{}", stream.tenant, stream.source.code()),
            };
            let (progress, lines, gate) = (progress.clone(), stream.lines.clone(), gate.clone());
            let held_from = lines.len() - lines.len() / held_of;
            let step = time / u32::try_from(lines.len().max(1)).unwrap_or(u32::MAX);
            senders.push(std::thread::spawn(move || {
                let began = Instant::now();
                let lines = (0..).zip(&lines).map(|(number, line)| {
                    std::thread::sleep((step * number).saturating_sub(began.elapsed()));
                    if number as usize >= held_from {
                        gate.pass();
                    }
                    line.as_str()
                });
                send_lines(&target, "generated", lines, &progress)
            }));
        }
        let total = load.streams.iter().map(|stream| stream.lines.len() as u64).sum();
        Sending { progress, total, senders, gate }
    }

    /// Waits until `numerator / denominator` of the records are answered.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn wait_for_share(&self, numerator: u64, denominator: u64) -> Result<()> {
        let is_there = || Ok((self.answered() * denominator >= self.total * numerator).then_some(()));
        until("a share of the load", is_there)
    }

    fn answered(&self) -> u64 {
        self.progress.accepted.load(Ordering::Relaxed) + self.progress.refused.load(Ordering::Relaxed)
    }

    /// Records that have no answer yet: what was done before this is called was done in mid-load, if there are any.
    pub fn left(&self) -> u64 {
        self.total.saturating_sub(self.answered())
    }

    /// How many records there are.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Requests that were sent again.
    pub fn repeated(&self) -> u64 {
        self.progress.repeated.load(Ordering::Relaxed)
    }

    /// Waits for the end of sending.
    ///
    /// # Errors
    /// What a sender could not send.
    pub fn finish(&mut self) -> Result<()> {
        self.gate.open();
        for sender in self.senders.drain(..) {
            match sender.join() {
                Ok(result) => result?,
                Err(_) => bail!("a sender panicked"),
            }
        }
        Ok(())
    }
}

/// Waits until everything that came out is as the truth says, for as long as there are ever fewer things that are not, and looks twice; what it saw.
///
/// # Errors
/// What is not as it must be, when that has not changed for [`DEADLINE`](crate::pipeline::DEADLINE).
pub fn check(pipeline: &Pipeline, load: &Load) -> Result<Snapshot> {
    check_at(&pipeline.admins(), load)
}

/// The same, of the workers at these admin URLs.
///
/// # Errors
/// As [`check`].
pub fn check_at(admins: &[String], load: &Load) -> Result<Snapshot> {
    let admins = admins.iter().map(|url| Admin::new(url)).collect::<Result<Vec<_>, _>>()?;
    let look = |fewest: &mut usize| -> Result<Option<Snapshot>> {
        let seen = snapshot::fetch(&admins, load.truth.tenants.keys().map(String::as_str))?;
        let mismatches = verify::verify(&load.truth, &seen);
        let Some(first) = mismatches.first() else { return Ok(Some(seen)) };
        if mismatches.len() < *fewest {
            *fewest = mismatches.len();
            return Ok(None);
        }
        let shown: Vec<String> = mismatches.iter().take(10).map(ToString::to_string).collect();
        bail!("{} mismatches, the first {first}:\n{}", mismatches.len(), shown.join("\n"))
    };
    let mut fewest = usize::MAX;
    loop {
        let before = fewest;
        match until("the truth", || look(&mut fewest)) {
            Ok(_) => break,
            Err(_) if fewest < before => {}
            Err(error) => return Err(error),
        }
    }
    look(&mut 0)?.context("it did not stay so")
}

/// The truth, but for what was sent again: it is a duplicate and nothing else, so those sums are the only ones that may be higher.
///
/// # Errors
/// What is not as it must be, when the time is up.
pub fn check_with_repeats(pipeline: &Pipeline, mut load: Load) -> Result<()> {
    let again = wait_for_duplicates(pipeline, &load)?;
    for (tenant, truth) in &mut load.truth.tenants {
        let extra = again.get(tenant).copied().unwrap_or(0);
        truth.accepted += extra;
        truth.duplicates += extra;
    }
    check(pipeline, &load).map(drop)
}

/// The truth, with as many more duplicates as there are records more in `ingress` than were generated: what a sender sent again is there twice. A shard that
/// read something twice would have duplicates of its own, and does not pass.
///
/// # Errors
/// What is not as it must be, when the time is up.
pub fn check_against_ingress(pipeline: &Pipeline, settings: &Settings, load: Load) -> Result<()> {
    let kafka = KafkaConfig::new(settings.kafka.as_deref().context("not on Kafka")?);
    let topics = Topics::new(&settings.pipeline, settings.shards, 1);
    check_against_ingress_at(&pipeline.admins(), kafka, &topics, load)
}

/// The same, of the workers at these admin URLs, and with this `ingress`.
///
/// # Errors
/// As [`check_against_ingress`].
pub fn check_against_ingress_at(admins: &[String], kafka: KafkaConfig, topics: &Topics, mut load: Load) -> Result<()> {
    let there = in_ingress(kafka, topics)?;
    for (tenant, truth) in &mut load.truth.tenants {
        let there = there.get(tenant).copied().unwrap_or(0);
        let again = there.checked_sub(truth.accepted);
        let again = again.with_context(|| format!("{tenant}: {there} records in ingress of {}", truth.accepted))?;
        truth.accepted += again;
        truth.duplicates += again;
    }
    check_at(admins, &load).map(drop)
}

/// Per tenant, how many records are in a pipeline's `ingress`.
fn in_ingress(kafka: KafkaConfig, topics: &Topics) -> Result<BTreeMap<String, u64>> {
    let log = KafkaLog::new(kafka)?;
    let at = |shard| (TopicPartition::new(topics.ingress.clone(), shard), 0..u64::MAX);
    let all: Vec<_> = (0..topics.shards).map(at).collect();
    let (mut counts, mut wrong) = (BTreeMap::new(), None);
    log.read(&all, View::Committed, &mut |_, message| {
        if let Err(error) = count_frame(&message.payload, &mut counts) {
            wrong = Some(error);
        }
    })?;
    wrong.map_or(Ok(counts), Err)
}

fn count_frame(payload: &[u8], counts: &mut BTreeMap<String, u64>) -> Result<()> {
    if !payload.is_empty() {
        for record in frame::read(payload, Content::Envelope)? {
            *counts.entry(Envelope::decode(record?)?.tenant).or_default() += 1;
        }
    }
    Ok(())
}

/// Per tenant, how many more duplicates there are than the truth says, once nothing is under way any more.
fn wait_for_duplicates(pipeline: &Pipeline, load: &Load) -> Result<BTreeMap<String, u64>> {
    let admins = pipeline.admins().iter().map(|url| Admin::new(url)).collect::<Result<Vec<_>, _>>()?;
    let ended = until("the end of the flow", || {
        let sums = usage::sums(&usage::collect(&admins)?);
        let done = load.truth.tenants.iter().all(|(tenant, truth)| {
            sums.get(tenant).is_some_and(|sums| sums.in_progress == 0 && sums.effects >= truth.effects)
        });
        ensure!(done, "records are under way: {sums:?}");
        let extra = load.truth.tenants.iter().map(|(tenant, truth)| {
            let found = sums.get(tenant).map_or(0, |sums| sums.duplicates);
            (tenant.clone(), found.saturating_sub(truth.duplicates))
        });
        Ok(Some(extra.collect()))
    });
    ended.with_context(|| under_way(pipeline))
}

/// How far each shard is, as its owner says.
fn under_way(pipeline: &Pipeline) -> String {
    let mut text = String::new();
    for process in pipeline.processes.iter().filter(|process| process.role != "gateway") {
        match plan::shards(process) {
            Ok(rows) => rows.iter().filter(|row| row.worker == process.name).for_each(|row| {
                text.push_str(&format!(
                    "{} {} {} {}: epoch {}, batch {}, lag {} {}\n",
                    row.worker, row.stage, row.shard, row.role, row.epoch, row.batch, row.lag, row.condition
                ));
            }),
            Err(error) => text.push_str(&format!("{}: {error:#}\n", process.name)),
        }
    }
    text
}

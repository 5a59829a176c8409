//! Generated load through running pipelines, and the check against its truth.

use crate::pipeline::{Pipeline, Settings, until};
use anyhow::{Context, Result, bail};
use millstream::cli::sender::{Progress, Target, send_lines};
use millstream::cli::{Admin, snapshot, usage, verify};
use millstream::generate::{Load, Options, generate};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
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
        kafka: None,
        replication: 1,
        mongodb: None,
        tenants: tenants.into_iter().collect(),
        otlp: None,
        more: String::new(),
    }
}

/// A load on its way: each stream by a sender of its own, which repeats what has no answer.
pub struct Sending {
    progress: Arc<Progress>,
    total: u64,
    senders: Vec<JoinHandle<Result<()>>>,
}

impl Sending {
    /// Starts to send to the pipeline's public port.
    pub fn start(pipeline: &Pipeline, load: &Load) -> Sending {
        let to = pipeline.processes.first().map(super::pipeline::Process::url).unwrap_or_default();
        Sending::start_to(&to, load)
    }

    /// Starts to send to a URL.
    pub fn start_to(to: &str, load: &Load) -> Sending {
        Sending::paced(to, load, Duration::ZERO)
    }

    /// Starts to send to a URL, each stream evenly over `time`.
    pub fn paced(to: &str, load: &Load, time: Duration) -> Sending {
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
            let (progress, lines) = (progress.clone(), stream.lines.clone());
            let step = time / u32::try_from(lines.len().max(1)).unwrap_or(u32::MAX);
            senders.push(std::thread::spawn(move || {
                let began = Instant::now();
                let lines = (0..).zip(&lines).map(|(number, line)| {
                    std::thread::sleep((step * number).saturating_sub(began.elapsed()));
                    line.as_str()
                });
                send_lines(&target, "generated", lines, &progress)
            }));
        }
        let total = load.streams.iter().map(|stream| stream.lines.len() as u64).sum();
        Sending { progress, total, senders }
    }

    /// Waits until `numerator / denominator` of the records are answered.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn wait_for_share(&self, numerator: u64, denominator: u64) -> Result<()> {
        until("a share of the load", || {
            let done = self.progress.accepted.load(Ordering::Relaxed) + self.progress.refused.load(Ordering::Relaxed);
            Ok((done * denominator >= self.total * numerator).then_some(()))
        })
    }

    /// Requests that were sent again.
    pub fn repeated(&self) -> u64 {
        self.progress.repeated.load(Ordering::Relaxed)
    }

    /// Waits for the end of sending.
    ///
    /// # Errors
    /// What a sender could not send.
    pub fn finish(mut self) -> Result<()> {
        self.join()
    }

    /// [`Sending::finish`], and look at it afterwards.
    ///
    /// # Errors
    /// What a sender could not send.
    pub fn join(&mut self) -> Result<()> {
        for sender in self.senders.drain(..) {
            match sender.join() {
                Ok(result) => result?,
                Err(_) => bail!("a sender panicked"),
            }
        }
        Ok(())
    }
}

/// Waits until everything that came out is as the truth says, and looks twice.
///
/// # Errors
/// What is not as it must be, when the time is up.
pub fn check(pipeline: &Pipeline, load: &Load) -> Result<()> {
    let admins: Result<Vec<Admin>, _> = pipeline.admins().iter().map(|url| Admin::new(url)).collect();
    let admins = admins?;
    let look = || -> Result<Option<()>> {
        let seen = snapshot::fetch(&admins, load.truth.tenants.keys().map(String::as_str))?;
        let mismatches = verify::verify(&load.truth, &seen);
        let Some(first) = mismatches.first() else { return Ok(Some(())) };
        let shown: Vec<String> = mismatches.iter().take(10).map(ToString::to_string).collect();
        bail!("{} mismatches, the first {first}:\n{}", mismatches.len(), shown.join("\n"))
    };
    until("the truth", look)?;
    look()?.context("it did not stay so")
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
    check(pipeline, &load)
}

/// Per tenant, how many more duplicates there are than the truth says, once nothing is under way any more.
fn wait_for_duplicates(pipeline: &Pipeline, load: &Load) -> Result<BTreeMap<String, u64>> {
    let admins = pipeline.admins().iter().map(|url| Admin::new(url)).collect::<Result<Vec<_>, _>>()?;
    until("the end of the flow", || {
        let sums = usage::sums(&usage::collect(&admins)?);
        let done = load.truth.tenants.iter().all(|(tenant, truth)| {
            sums.get(tenant).is_some_and(|sums| sums.in_progress == 0 && sums.effects >= truth.effects)
        });
        let extra = load.truth.tenants.iter().map(|(tenant, truth)| {
            let found = sums.get(tenant).map_or(0, |sums| sums.duplicates);
            (tenant.clone(), found.saturating_sub(truth.duplicates))
        });
        Ok(done.then(|| extra.collect()))
    })
}

//! A thread per shard of a stage: opens the shard, runs its batches, opens it again when it must, answers look-ups between batches.

use super::backoff::Backoff;
use super::observe::Observer;
use super::stores::Creation;
use super::system::Stop;
use millstream_model::proto::Usage;
use millstream_shard::ShardError;
use millstream_shard::ownership;
use millstream_shard::runtime::{Environment, Limits, Report, Shard};
use millstream_shard::state::{StateStore, StoreError};
use millstream_stages::Stage;
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// After so many polls without input, about a second, a shard that had stopped counts as working again. Before, the input that stopped it
/// may only not have been fetched yet.
const QUIET_POLLS: u32 = 10;

/// How a shard fares, for readiness and look-ups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Follows its changelog and takes over.
    Opening,
    /// Works.
    Running,
    /// Tries again soon; says why.
    Retrying(String),
    /// Needs a person; says why.
    Stopped(String),
}

/// What others can see of a shard.
#[derive(Debug)]
pub struct ShardStatus {
    /// Stage's name.
    pub stage: &'static str,
    /// Its number.
    pub shard: u32,
    condition: Mutex<Condition>,
    usage: Mutex<BTreeMap<String, Usage>>,
}

impl ShardStatus {
    /// A shard that is being opened.
    pub fn new(stage: &'static str, shard: u32) -> ShardStatus {
        let (condition, usage) = (Mutex::new(Condition::Opening), Mutex::default());
        ShardStatus { stage, shard, condition, usage }
    }

    /// How it fares.
    pub fn condition(&self) -> Condition {
        self.condition.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets how it fares.
    pub fn set(&self, condition: Condition) {
        *self.condition.lock().unwrap_or_else(PoisonError::into_inner) = condition;
    }

    /// Notes why it does not work. What a person must look after stays until it works again: that another attempt failed otherwise,
    /// because the log was away, says nothing about it.
    pub fn fail(&self, error: ShardError) {
        let mut condition = self.condition.lock().unwrap_or_else(PoisonError::into_inner);
        match error {
            ShardError::Stopped(message) => *condition = Condition::Stopped(message),
            ShardError::Reopen(_) if matches!(*condition, Condition::Stopped(_)) => {}
            ShardError::Reopen(message) => *condition = Condition::Retrying(message),
        }
    }

    /// Notes that it polled without an error, so many times in turn without input.
    fn polled(&self, quiet: u32) {
        let mut condition = self.condition.lock().unwrap_or_else(PoisonError::into_inner);
        if quiet == 0 || quiet >= QUIET_POLLS || !matches!(*condition, Condition::Stopped(_)) {
            *condition = Condition::Running;
        }
    }

    /// Sums per tenant as of the last batch.
    pub fn usage(&self) -> BTreeMap<String, Usage> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Work that needs a shard's state, done by its thread between two batches.
pub type Query<S> = Box<dyn FnOnce(&mut Shard<S>) + Send>;

/// A shard's thread, seen from outside.
pub struct StageHandle<S: Stage> {
    /// What others can see.
    pub status: Arc<ShardStatus>,
    /// Where queries go.
    pub queries: Sender<Query<S>>,
    /// The thread.
    pub thread: JoinHandle<()>,
}

/// A shard whose thread has ended, in whatever way, does not work any more.
struct EndOfThread<'a>(&'a ShardStatus);

impl Drop for EndOfThread<'_> {
    fn drop(&mut self) {
        let why =
            if std::thread::panicking() { "its thread panicked; restart the process" } else { "its thread ended" };
        self.0.set(Condition::Stopped(why.to_owned()));
    }
}

/// Everything a shard's thread needs.
pub struct StageThread<S, M, O> {
    /// Makes the stage, at each opening.
    pub make: M,
    /// Opens the local store.
    pub open_store: O,
    /// Which shard.
    pub shard: u32,
    /// What it stands on.
    pub environment: Environment,
    /// The pipeline's topics.
    pub creation: Arc<Creation>,
    /// Bounds.
    pub limits: Limits,
    /// Whom to tell.
    pub observer: Arc<dyn Observer>,
    /// When to end.
    pub stop: Arc<Stop>,
    /// The stage.
    pub stage: std::marker::PhantomData<S>,
}

impl<S, M, O> StageThread<S, M, O>
where
    S: Stage + 'static,
    M: Fn() -> S + Send + 'static,
    O: Fn() -> Result<Arc<dyn StateStore>, StoreError> + Send + 'static,
{
    /// Starts the thread.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn spawn(self, name: &'static str) -> std::io::Result<StageHandle<S>> {
        let status = Arc::new(ShardStatus::new(name, self.shard));
        let (queries, waiting) = channel();
        let seen = status.clone();
        let thread = std::thread::Builder::new().name(format!("{name}-{}", self.shard)).spawn(move || {
            let ended = EndOfThread(&seen);
            self.run(name, &seen, &waiting);
            drop(ended);
        })?;
        Ok(StageHandle { status, queries, thread })
    }

    fn run(&self, name: &'static str, status: &ShardStatus, queries: &Receiver<Query<S>>) {
        let mut backoff = Backoff::default();
        while !self.stop.is_stopped() {
            let Err(error) = self.run_once(name, status, queries, &mut backoff) else { return };
            match &error {
                ShardError::Reopen(message) => {
                    tracing::warn!(stage = name, shard = self.shard, message, "shard is opened again");
                }
                ShardError::Stopped(message) => {
                    tracing::error!(stage = name, shard = self.shard, message, "shard stopped");
                }
            }
            let pause = backoff.after(&error);
            status.fail(error);
            self.stop.wait(pause);
        }
    }

    fn run_once(
        &self,
        name: &'static str,
        status: &ShardStatus,
        queries: &Receiver<Query<S>>,
        backoff: &mut Backoff,
    ) -> Result<(), ShardError> {
        let environment = self.environment.clone();
        self.creation.ensure(&self.stop)?;
        ownership::begin(&*environment.log, &environment.topics, name, self.shard)?;
        let store = (self.open_store)()?;
        let mut shard = Shard::open((self.make)(), self.shard, environment, self.limits.clone(), store)?;
        tracing::info!(stage = name, shard = self.shard, epoch = shard.progress().1, "shard is open");
        self.publish(name, status, shard.usage());
        let mut quiet = 0;
        while !self.stop.is_stopped() {
            let report = shard.run_batch()?;
            quiet = if report.is_some() { 0 } else { quiet + 1 };
            status.polled(quiet);
            if let Some(report) = report {
                backoff.reset();
                self.publish(name, status, &report.usage);
                self.report(name, &report);
            }
            for query in queries.try_iter() {
                query(&mut shard);
            }
        }
        shard.close()
    }

    fn publish(&self, name: &'static str, status: &ShardStatus, changed: &BTreeMap<String, Usage>) {
        self.observer.usage(name, self.shard, changed);
        let mut usage = status.usage.lock().unwrap_or_else(PoisonError::into_inner);
        usage.extend(changed.iter().map(|(tenant, sums)| (tenant.clone(), *sums)));
    }

    fn report(&self, name: &'static str, report: &Report) {
        self.observer.batch(name, self.shard, report);
        for span in &report.spans {
            self.observer.span(name, self.shard, span, report.began_ms, report.committed_ms);
        }
        for (tenant, reason) in &report.reasons {
            self.observer.rejected(name, tenant, *reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stopped_stays_until_it_works() {
        let status = ShardStatus::new("unify", 0);
        let stopped = Condition::Stopped("topic was made again".into());
        status.fail(ShardError::Reopen("log away".into()));
        assert_eq!(status.condition(), Condition::Retrying("log away".into()));
        status.fail(ShardError::Stopped("topic was made again".into()));
        status.fail(ShardError::Reopen("log away".into()));
        assert_eq!(status.condition(), stopped, "another failure says nothing about it");
        status.polled(QUIET_POLLS - 1);
        assert_eq!(status.condition(), stopped, "what stopped it may not have been fetched yet");
        status.polled(QUIET_POLLS);
        assert_eq!(status.condition(), Condition::Running);
        status.fail(ShardError::Stopped("again".into()));
        status.polled(0);
        assert_eq!(status.condition(), Condition::Running, "a batch was committed");
    }

    #[test]
    fn a_shard_without_input_works_after_its_first_poll() {
        let status = ShardStatus::new("unify", 0);
        assert_eq!(status.condition(), Condition::Opening);
        status.polled(1);
        assert_eq!(status.condition(), Condition::Running);
    }
}

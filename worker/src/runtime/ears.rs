//! Whoever reads in this process hears: owners their inputs, the process `control` and `status`.
//!
//! One thread asks the log now and then what there is to hear, with a client of its own, so that nobody who works waits for the answer. Whoever does not hear it for long
//! ([`millstream_shard::hearing`]) is told to read on with another client, which its own thread does between two steps. (Standbys look by themselves: they ask how far they are behind anyway.)
//! Who must hear all of something is told where that ended, and when it was asked: who lets people in must know that it has heard everything until lately.

use super::system::Stop;
use crate::telemetry::Metrics;
use millstream_shard::hearing::{Hearing, Listened};
use millstream_shard::log::{Log, TopicPartition};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often the log is asked.
const EVERY: Duration = Duration::from_secs(10);
/// The same, after it did not answer.
const AGAIN: Duration = Duration::from_secs(1);

/// Somebody who reads.
pub(super) trait Ear: Send + Sync {
    /// Who, for people.
    fn name(&self) -> String;
    /// What it has heard; `None`: it reads nothing now.
    fn listened(&self) -> Option<Listened>;
    /// What it must hear all of, whatever else it reads.
    fn must_hear(&self) -> Option<TopicPartition> {
        None
    }
    /// Readers see this end of that, as of then or later; `None`: the log did not say. Tells why it is to read on with another client, if it is.
    fn there_is(&self, _end: Option<u64>, _asked: Instant) -> Option<String> {
        None
    }
    /// From its next step on it is to read with another client.
    fn read_anew(&self);
}

/// Looks whether those who read hear.
pub(super) struct EarWatch {
    /// The log.
    pub(super) log: Arc<dyn Log>,
    /// Who reads.
    pub(super) ears: Vec<Arc<dyn Ear>>,
    /// Counts those that did not hear.
    pub(super) metrics: Arc<Metrics>,
    /// When to end.
    pub(super) stop: Arc<Stop>,
}

impl EarWatch {
    /// Starts the thread that looks now and then.
    ///
    /// # Errors
    /// When no thread can be had.
    pub(super) fn start(self) -> std::io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name("ears".into()).spawn(move || {
            let mut hearings = vec![Hearing::default(); self.ears.len()];
            let (began, mut pause) = (Instant::now(), EVERY);
            while !self.stop.wait(pause) {
                let answers =
                    self.look(&mut hearings, &|| u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX));
                pause = if answers { EVERY } else { AGAIN };
            }
        })
    }

    /// Tells whether the log has answered for everybody.
    fn look(&self, hearings: &mut [Hearing], now_ms: &dyn Fn() -> u64) -> bool {
        // Alone, and before all others: what else they read may have no leader, which is told only after a while.
        for ear in &self.ears {
            if let Some(at) = ear.must_hear() {
                let asked = Instant::now();
                let end = self.visible(std::slice::from_ref(&at)).and_then(|ends| ends.get(&at).copied());
                if let Some(why) = ear.there_is(end, asked) {
                    self.change_client(&**ear, &why);
                }
            }
        }
        let heard: Vec<Listened> = self.ears.iter().map(|ear| ear.listened().unwrap_or_default()).collect();
        let of = |heard: &Listened| heard.read_to.iter().map(|(at, _)| at.clone()).collect::<Vec<_>>();
        let all: BTreeSet<TopicPartition> = heard.iter().flat_map(of).collect();
        let all = self.visible(&all.into_iter().collect::<Vec<_>>());
        for ((ear, heard), hearing) in self.ears.iter().zip(&heard).zip(hearings) {
            let own;
            let ends = match &all {
                Some(all) => Some(all),
                // One that has no leader keeps nobody from hearing the others.
                None if self.stop.is_stopped() => return false,
                None => {
                    own = self.visible(&of(heard));
                    own.as_ref()
                }
            };
            let visible: Option<Vec<u64>> =
                ends.and_then(|ends| of(heard).iter().map(|at| ends.get(at).copied()).collect());
            // After the answer, which may have taken long: what was seen first then has not waited for longer.
            if let Some(deaf) = hearing.look(heard, visible.as_deref(), now_ms()) {
                self.change_client(&**ear, &deaf.to_string());
            }
        }
        all.is_some()
    }

    fn change_client(&self, ear: &dyn Ear, why: &str) {
        tracing::warn!(who = ear.name(), why, "it is read with another client");
        self.metrics.deaf_readers.inc();
        ear.read_anew();
    }

    /// What readers see of these ends there; `None`: the log does not say. What is said of a log that is away, others say.
    fn visible(&self, of: &[TopicPartition]) -> Option<BTreeMap<TopicPartition, u64>> {
        let ends =
            self.log.ends(of).inspect_err(|error| tracing::debug!(%error, "it is not known what there is to hear"));
        Some(of.iter().cloned().zip(ends.ok()?.iter().map(|ends| ends.visible)).collect())
    }
}

#[cfg(test)]
mod tests;

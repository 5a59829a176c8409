//! Whoever reads in this process hears: owners their inputs, the process `control` and `status`.
//!
//! One thread asks the log now and then what there is to hear, with a client of its own, so that nobody who works waits for the answer. Whoever does not hear it for long
//! ([`millstream_shard::hearing`]) is told to read on with another client, which its own thread does between two steps.

use super::system::Stop;
use millstream_shard::Clock;
use millstream_shard::hearing::{Hearing, Listened};
use millstream_shard::log::{Log, TopicPartition};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// How often the log is asked.
const EVERY: Duration = Duration::from_secs(10);

/// Somebody who reads.
pub(super) trait Ear: Send + Sync {
    /// Who, for people.
    fn name(&self) -> String;
    /// What it has heard; `None`: it reads nothing now.
    fn listened(&self) -> Option<Listened>;
    /// From its next step on it is to read with another client.
    fn read_anew(&self);
}

/// Looks whether those who read hear.
pub(super) struct EarWatch {
    /// The log.
    pub(super) log: Arc<dyn Log>,
    /// Who reads.
    pub(super) ears: Vec<Arc<dyn Ear>>,
    /// Now.
    pub(super) clock: Arc<dyn Clock>,
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
            while !self.stop.wait(EVERY) {
                self.look(&mut hearings);
            }
        })
    }

    fn look(&self, hearings: &mut [Hearing]) {
        let heard: Vec<Listened> = self.ears.iter().map(|ear| ear.listened().unwrap_or_default()).collect();
        let partitions: BTreeSet<&TopicPartition> = heard.iter().flat_map(|it| &it.read_to).map(|(at, _)| at).collect();
        let partitions: Vec<TopicPartition> = partitions.into_iter().cloned().collect();
        // What is said of a log that is away, others say.
        let ends = self
            .log
            .ends(&partitions)
            .inspect_err(|error| tracing::debug!(%error, "it is not known what there is to hear"));
        let now_ms = self.clock.now_ms();
        for ((ear, heard), hearing) in self.ears.iter().zip(&heard).zip(hearings) {
            let visible = ends.as_ref().ok().map(|ends| {
                let end = |at| {
                    partitions.binary_search(at).ok().and_then(|place| ends.get(place)).map_or(0, |ends| ends.visible)
                };
                heard.read_to.iter().map(|(at, _)| end(at)).collect::<Vec<u64>>()
            });
            if let Some(deaf) = hearing.look(heard, visible.as_deref(), now_ms) {
                tracing::warn!(who = ear.name(), why = %deaf, "it is read with another client");
                ear.read_anew();
            }
        }
    }
}

#[cfg(test)]
mod tests;

//! The measured window of a scenario: warm up, mark, measure, stop the threads.

use crate::cost::Mark;
use crate::scenario::Scenario;
use anyhow::Result;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The line that says that the window has begun.
pub(crate) const MEASURING: &str = "measuring";

/// Between two looks at the progress.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What the threads of a scenario share.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    done: AtomicU64,
    stopped: AtomicBool,
    /// How long each batch of the window took, from its first record to its commit, milliseconds.
    batches: Mutex<Vec<u64>>,
}

impl Progress {
    pub(crate) fn add(&self, records: usize) {
        self.done.fetch_add(records as u64, Ordering::Relaxed);
    }

    /// A batch took so long, milliseconds.
    pub(crate) fn add_batch(&self, took_ms: u64) {
        self.batches().push(took_ms);
    }

    fn batches(&self) -> MutexGuard<'_, Vec<u64>> {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }
}

/// Measures threads that are at work, and prints what it was. Ends early when one of them does: it has failed.
pub(crate) fn measure(scenario: &Scenario, progress: &Progress, threads: Vec<JoinHandle<Result<()>>>) -> Result<()> {
    let ended = || threads.iter().any(JoinHandle::is_finished);
    let began = Instant::now();
    while !ended() && (began.elapsed() < scenario.warm_up() || progress.done() < scenario.warm_records) {
        std::thread::sleep(LOOK_EVERY);
    }
    println!("{MEASURING}");
    progress.batches().clear();
    let mark = Mark::now(progress.done(), scenario.broker)?;
    let began = Instant::now();
    while !ended() && began.elapsed() < scenario.measured() && progress.done() < scenario.records {
        std::thread::sleep(LOOK_EVERY);
    }
    let cost = mark.until_now(progress.done(), scenario.broker)?.with_batches(&mut progress.batches());
    println!("{}", serde_json::to_string(&cost)?);
    progress.stopped.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a thread of the measurement panicked"))??;
    }
    Ok(())
}

//! Flushes: changed state on its way from the cache to the local store, in the background.
//!
//! A disk that is slow or full must not stop commits, because the changelog is what makes a batch durable: batches go on until the dirt that waits has
//! reached its bound. A flush that failed for want of space is kept and tried again, from the step that failed; it stays readable in the cache meanwhile.
//! **I5**: what is written again is the same entries with the same position. Any other failure ends the shard's opening, and the next one follows the changelog.

use crate::cache::Frozen;
use crate::log::Log;
use crate::memory::Pool;
use crate::state::{StateStore, StoreError};
use crate::{Executor, Job, ShardError, has_passed};
use millstream_model::key::StateKey;
use millstream_model::proto::StatePosition;
use millstream_stages::StateValue;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, channel};

/// How long a flush that found no space waits. Batches do not wait for it.
const AGAIN_MS: u64 = 1_000;
/// A flush that takes longer is told: batches will have to wait for the disk, if it stays like that.
pub(crate) const SLOW_MS: u64 = 10_000;

/// What a flush writes, and how far it is.
pub(crate) struct Work<V> {
    pub(crate) frozen: Frozen<V>,
    /// Entries that are not in the cache; `None`: gone.
    pub(crate) more: Vec<(StateKey, Option<Vec<u8>>)>,
    /// What all of it leads to.
    pub(crate) position: StatePosition,
    /// It is written, and only has to be made safe.
    written: bool,
}

impl<V: StateValue> Work<V> {
    pub(crate) fn new(frozen: Frozen<V>, more: Vec<(StateKey, Option<Vec<u8>>)>, position: StatePosition) -> Work<V> {
        Work { frozen, more, position, written: false }
    }

    fn run(&mut self, store: &dyn StateStore, log: &dyn Log) -> Result<(), StoreError> {
        if !self.written {
            // What is stored stays behind the log, also after a power cut.
            log.persist().map_err(|error| StoreError::Failed(error.to_string()))?;
            self.frozen.write(store, &self.more, &self.position)?;
            self.written = true;
        }
        store.sync()
    }
}

type Outcome<V> = (Work<V>, Result<(), StoreError>);

enum Stage<V> {
    Idle,
    Running(Box<dyn Job>, Receiver<Outcome<V>>, Began),
    /// Since then, milliseconds since 1970.
    Waiting(Box<Work<V>>, u64),
}

/// When a flush began to write, which it does when it is its turn among those of the process.
#[derive(Default)]
struct Began {
    writes: Arc<AtomicBool>,
    /// When that was seen first, milliseconds since 1970.
    since_ms: Option<u64>,
}

impl Began {
    /// How long it has been writing. (A clock that was set back says nothing about the disk.)
    fn took_ms(&mut self, now_ms: u64) -> u64 {
        if self.since_ms.is_none() && self.writes.load(Ordering::Relaxed) {
            self.since_ms = Some(now_ms);
        }
        self.since_ms.map_or(0, |since_ms| now_ms.saturating_sub(since_ms))
    }
}

/// The flushes of one shard: one at a time.
pub(crate) struct Flushes<V> {
    store: Arc<dyn StateStore>,
    log: Arc<dyn Log>,
    executor: Arc<dyn Executor>,
    pool: Option<Pool>,
    stage: Stage<V>,
    trouble: Option<String>,
}

impl<V: StateValue> Flushes<V> {
    pub(crate) fn new(
        store: Arc<dyn StateStore>,
        log: Arc<dyn Log>,
        executor: Arc<dyn Executor>,
        pool: Option<Pool>,
    ) -> Flushes<V> {
        Flushes { store, log, executor, pool, stage: Stage::Idle, trouble: None }
    }

    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.stage, Stage::Idle)
    }

    /// Why nothing can be stored, or only slowly, while that is so.
    pub(crate) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Begins a flush; none may be under way.
    pub(crate) fn begin(&mut self, mut work: Work<V>) {
        let (store, log, pool, began) = (self.store.clone(), self.log.clone(), self.pool.clone(), Began::default());
        let writes = began.writes.clone();
        let (done, outcome) = channel();
        let job = self.executor.run(Box::new(move || {
            let turn = pool.as_ref().map(Pool::turn);
            writes.store(true, Ordering::Relaxed);
            let result = work.run(&*store, &*log);
            // Whoever waits for this may open the same store again at once.
            drop((store, log, turn));
            // Nobody listens any more when the shard was closed.
            let _ = done.send((work, result));
        }));
        self.stage = Stage::Running(job, outcome, began);
    }

    /// What a flush has stored since it was asked last. With `wait`, a flush that is under way has ended, and what cannot be stored is an error.
    ///
    /// # Errors
    /// [`ShardError`]: the entries are not stored; the shard must be opened again.
    pub(crate) fn collect(&mut self, wait: bool, now_ms: u64) -> Result<Option<Frozen<V>>, ShardError> {
        self.begin_again(wait, now_ms);
        let (job, outcome, mut began) = match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Running(job, outcome, began) => (job, outcome, began),
            stage => {
                self.stage = stage;
                return Ok(None);
            }
        };
        let ended = match outcome.try_recv() {
            Err(TryRecvError::Empty) if !wait => {
                let took_ms = began.took_ms(now_ms);
                if took_ms > SLOW_MS && self.trouble.is_none() {
                    self.trouble = Some(format!(
                        "the local disk is slow: what changed is being stored for {} s; batches wait for it when too much has gathered",
                        took_ms / 1_000
                    ));
                }
                self.stage = Stage::Running(job, outcome, began);
                return Ok(None);
            }
            Err(TryRecvError::Empty) => {
                job.wait();
                outcome.try_recv()
            }
            ended => ended,
        };
        let (work, result) = ended.map_err(|_| ShardError::Reopen("a flush was given up".into()))?;
        self.ended(work, result, wait, now_ms)
    }

    fn ended(
        &mut self,
        work: Work<V>,
        result: Result<(), StoreError>,
        wait: bool,
        now_ms: u64,
    ) -> Result<Option<Frozen<V>>, ShardError> {
        match result {
            Ok(()) => {
                self.trouble = None;
                Ok(Some(work.frozen))
            }
            Err(error @ StoreError::Full(_)) if !wait => {
                self.trouble = Some(error.to_string());
                self.stage = Stage::Waiting(Box::new(work), now_ms);
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn begin_again(&mut self, now: bool, now_ms: u64) {
        match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Waiting(work, since_ms) if now || has_passed(AGAIN_MS, since_ms, now_ms) => self.begin(*work),
            stage => self.stage = stage,
        }
    }
}

impl<V> Drop for Flushes<V> {
    /// A flush that is under way must end before somebody opens the same local store again.
    fn drop(&mut self) {
        if let Stage::Running(job, ..) = std::mem::replace(&mut self.stage, Stage::Idle) {
            job.wait();
        }
    }
}

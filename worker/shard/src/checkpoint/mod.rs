//! Checkpoints: a shard's state in the object store, so that it outlives every disk, and the changelog need not be kept for ever.
//!
//! **Taking one.** Now and then, while batches go on, an owner has its local store copied (hard links, [`StateStore::snapshot`](crate::state::StateStore::snapshot)) as it is at some position
//! of the changelog; uploads the files of the copy that no checkpoint before it has; writes a manifest, which names position and files; and takes it up in the [pointer](layout::Pointer), on the condition
//! that nobody else has written that meanwhile ([`repository`]). What is older than the newest few is dropped then, and what nothing refers to any more is deleted. Whatever goes wrong, or whenever
//! the process is killed, the checkpoints that the pointer names are whole.
//!
//! **Trimming.** The changelog is trimmed up to the oldest checkpoint that is kept, and only when the log has, at its position, the very batch that it ends with. That batch stays: who starts from the checkpoint
//! meets it first, and checks its digest.
//!
//! **Starting from one.** A shard without usable local state takes the newest checkpoint whose position the changelog still has, and whose files are what they were; then older ones. Then it follows the changelog,
//! as from any local state, with the same proofs. While it does so it holds a lease, which keeps the checkpoint and the changelog behind it. **I6**: where neither local state, nor a checkpoint, nor the
//! changelog from its beginning leads to the end, the shard stops.
//!
//! A checkpoint is at most ten seconds behind its owner ([`REPLAY_MS`](crate::runtime::REPLAY_MS)): what is copied is what was flushed.

pub mod layout;
pub(crate) mod reading;
pub mod repository;
mod restore;
mod take;
mod trim;

pub use restore::Origin;
pub(crate) use restore::{check_history, provide};
pub(crate) use take::Checkpointer;
pub use take::Taken;

use self::layout::{Entry, Pointer, ShardName};
use self::repository::{Repository, RepositoryError};
use crate::objects::{ObjectError, ObjectStore};
use crate::topics::Topics;
use crate::{Executor, Job, ShardError};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// When checkpoints are taken, and how many are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// From the beginning of one to that of the next, milliseconds.
    pub interval_ms: u64,
    /// From the end of one to the beginning of the next, at least, milliseconds.
    pub min_pause_ms: u64,
    /// How many of a shard are kept; the changelog is trimmed up to the oldest of them. At least 1.
    pub retained: usize,
    /// How many of a process are taken at a time. At least 1.
    pub concurrent: usize,
    /// Files of one checkpoint that are uploaded or downloaded at a time. At least 1.
    pub lanes: usize,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy { interval_ms: 60_000, min_pause_ms: 10_000, retained: 3, concurrent: 1, lanes: 2 }
    }
}

/// The checkpoints of all shards of a process.
pub struct Checkpoints {
    objects: Arc<dyn ObjectStore>,
    topics: Topics,
    policy: Policy,
    /// How many are being taken.
    under_way: Arc<AtomicUsize>,
    shards: Mutex<BTreeMap<(String, u32), Arc<ShardCheckpoints>>>,
}

/// The right to take a checkpoint now.
struct Permit(Arc<AtomicUsize>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Checkpoints {
    /// Checkpoints of a pipeline's shards in an object store.
    pub fn new(objects: Arc<dyn ObjectStore>, topics: Topics, policy: Policy) -> Checkpoints {
        Checkpoints { objects, topics, policy, under_way: Arc::default(), shards: Mutex::default() }
    }

    /// Those of one shard.
    pub fn of(&self, stage: &str, shard: u32) -> Arc<ShardCheckpoints> {
        let mut shards = lock(&self.shards);
        let made = || {
            let Topics { pipeline, generation, shards, .. } = &self.topics;
            let of = ShardName {
                pipeline: pipeline.clone(),
                generation: *generation,
                stage: stage.to_owned(),
                shard,
                shards: *shards,
            };
            let repository = Arc::new(Repository::new(self.objects.clone(), of));
            Arc::new(ShardCheckpoints {
                repository,
                policy: self.policy.clone(),
                refused: Mutex::default(),
                restored: Mutex::default(),
            })
        };
        shards.entry((stage.to_owned(), shard)).or_insert_with(made).clone()
    }

    fn permit(&self) -> Option<Permit> {
        let most = self.policy.concurrent.max(1);
        let taken =
            self.under_way.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |now| (now < most).then_some(now + 1));
        taken.is_ok().then(|| Permit(self.under_way.clone()))
    }
}

/// The checkpoints of one shard, as one process sees them.
pub struct ShardCheckpoints {
    /// As they lie in the object store.
    pub repository: Arc<Repository>,
    policy: Policy,
    /// Manifests of those that turned out not to fit the changelog, or to be damaged, and how.
    refused: Mutex<BTreeMap<String, String>>,
    /// What the local state was made of last.
    restored: Mutex<Option<String>>,
}

impl ShardCheckpoints {
    /// Those from which the changelog leads on: of this topic, and not before its beginning. The newest first.
    pub(crate) fn usable(&self, pointer: &Pointer, topic_id: &str, start: u64) -> Vec<Entry> {
        let refused = lock(&self.refused);
        let leads_on = |entry: &&Entry| entry.topic_id == topic_id && entry.changelog_offset >= start;
        let entries = pointer.checkpoints.iter().filter(leads_on);
        entries.filter(|entry| !refused.contains_key(&entry.manifest)).cloned().collect()
    }

    /// This one is of no use: this process starts from others first.
    pub(crate) fn refuse(&self, manifest: &str, why: &str) {
        lock(&self.refused).insert(manifest.to_owned(), why.to_owned());
    }

    /// The local state is damaged: what it was made of may be, too.
    pub(crate) fn refuse_restored(&self, why: &str) {
        if let Some(manifest) = lock(&self.restored).take() {
            self.refuse(&manifest, why);
        }
    }

    /// Manifests of those that this process starts from only when there is no other one.
    pub fn refused(&self) -> Vec<String> {
        lock(&self.refused).keys().cloned().collect()
    }

    /// All that were refused, in words. They are tried again after this: an object may have been put back, or a disk replaced.
    pub(crate) fn forgive(&self) -> Option<String> {
        let refused = std::mem::take(&mut *lock(&self.refused));
        let said: Vec<String> = refused.into_iter().map(|(manifest, why)| format!("{manifest}: {why}")).collect();
        (!said.is_empty()).then(|| said.join("; "))
    }
}

/// Has each of so many files seen to, in at most so many lanes at a time, one of them here; returns when all lanes have ended.
fn in_lanes<T: Send + Sync + 'static>(
    executor: &dyn Executor,
    (lanes, files): (usize, usize),
    shared: &Arc<T>,
    lane: fn(&T),
) {
    let others: Vec<Box<dyn Job>> = (1..lanes.clamp(1, files.max(1)))
        .map(|_| {
            let shared = shared.clone();
            executor.run(Box::new(move || lane(&shared)))
        })
        .collect();
    lane(shared);
    others.into_iter().for_each(Job::wait);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl From<ObjectError> for ShardError {
    fn from(error: ObjectError) -> ShardError {
        match error {
            ObjectError::Unavailable(_) => ShardError::Away(error.to_string()),
            ObjectError::Configuration(_) => ShardError::Stopped(error.to_string()),
            ObjectError::Damaged { .. } | ObjectError::Source { .. } => ShardError::Reopen(error.to_string()),
        }
    }
}

impl From<RepositoryError> for ShardError {
    fn from(error: RepositoryError) -> ShardError {
        match error {
            RepositoryError::Objects(error) => error.into(),
            RepositoryError::OfAnother(_) => ShardError::Stopped(error.to_string()),
            RepositoryError::Superseded(_) | RepositoryError::NotKept(_) | RepositoryError::Here { .. } => {
                ShardError::Reopen(error.to_string())
            }
        }
    }
}

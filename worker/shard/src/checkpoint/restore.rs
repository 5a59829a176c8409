//! Starting a shard from a checkpoint.

use super::layout::{Entry, File, Manifest, Pointer};
use super::repository::{Repository, RepositoryError};
use super::{Checkpoints, ShardCheckpoints, in_lanes, lock};
use crate::follower;
use crate::log::{Log, TopicPartition};
use crate::objects::ObjectError;
use crate::runtime::Environment;
use crate::state::{Staging, StateStore, StoreError};
use crate::{Executor, ShardError};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// So often a file is downloaded before it counts as damaged.
const TRIES: usize = 3;
/// Bytes of one request.
const PART: usize = 4 << 20;
/// A lease lasts so long, and longer where there is more to download: at least so many bytes come in a millisecond.
const LEASE_MS: u64 = 15 * 60_000;
const SLOWEST: u64 = 2_000;

/// Where a shard's local state came from.
pub struct Origin {
    checkpoints: Arc<ShardCheckpoints>,
    /// The manifest of the checkpoint, when it was one.
    restored: Option<String>,
    /// Who holds a lease on it.
    holder: Option<String>,
}

impl Origin {
    /// The local state is of no use. Is there a checkpoint to start from, other than the one that it came from?
    ///
    /// # Errors
    /// [`ShardError`].
    pub(crate) fn has_other(&self, topic_id: &str, start: u64, why: &str) -> Result<bool, ShardError> {
        if let Some(manifest) = &self.restored {
            self.checkpoints.refuse(manifest, why);
        }
        let pointer = self.checkpoints.repository.pointer()?.unwrap_or_default();
        Ok(!self.checkpoints.usable(&pointer, topic_id, start).is_empty())
    }

    /// What the checkpoint was kept for has been done.
    pub(crate) fn release(&mut self, executor: &dyn Executor) {
        let Some(holder) = self.holder.take() else { return };
        let repository = self.checkpoints.repository.clone();
        // It ends by itself otherwise.
        drop(executor.run(Box::new(move || drop(repository.release(&holder)))));
    }
}

/// A changelog that is to begin anew must not be one that was lost: then there may be checkpoints of it (I6).
///
/// # Errors
/// [`ShardError`]: also when nobody knows, because the object store does not answer.
pub(crate) fn check_history(
    checkpoints: &Checkpoints,
    log: &dyn Log,
    at: &TopicPartition,
    stage: &str,
) -> Result<(), ShardError> {
    let repository = &checkpoints.of(stage, at.partition).repository;
    let pointer = repository.pointer()?.unwrap_or_default();
    Ok(repository.check_history(&pointer, &log.topic_id(&at.topic)?)?)
}

/// A checkpoint is wanted where the local state does not lead to the end of the changelog.
///
/// # Errors
/// [`ShardError`].
pub(crate) fn provide(
    checkpoints: &Checkpoints,
    environment: &Environment,
    at: &TopicPartition,
    stage: &str,
    store: &dyn StateStore,
) -> Result<Origin, ShardError> {
    let log = &*environment.log;
    let of_shard = checkpoints.of(stage, at.partition);
    let mut origin = Origin { checkpoints: of_shard.clone(), restored: None, holder: None };
    let (local, damage) = follower::local(log, at, store)?;
    if let Some(why) = &damage {
        of_shard.refuse_restored(why);
    }
    let (start, end) = log.bounds(at)?;
    if local.is_some_and(|position| position.changelog_offset >= start) {
        return Ok(origin);
    }
    let topic_id = log.topic_id(&at.topic)?;
    let pointer = match of_shard.repository.pointer() {
        // The changelog has everything: it takes longer.
        Err(ObjectError::Unavailable(why)) if start == 0 && end > 0 => {
            tracing::warn!(stage, shard = at.partition, why, "no checkpoint can be read; the whole changelog is");
            return Ok(origin);
        }
        pointer => pointer?.unwrap_or_default(),
    };
    of_shard.repository.check_history(&pointer, &topic_id)?;
    // After the pointer was read: the changelog has more by now.
    let (start, end) = log.bounds(at)?;
    has_all(&pointer, at, &topic_id, end)?;
    for entry in of_shard.usable(&pointer, &topic_id, start) {
        match restore(&of_shard, environment, &entry, store) {
            Ok(holder) => {
                let Entry { manifest, batch, bytes, .. } = &entry;
                tracing::info!(stage, shard = at.partition, manifest, batch, bytes, "restored a checkpoint");
                *lock(&of_shard.restored) = Some(entry.manifest.clone());
                (origin.restored, origin.holder) = (Some(entry.manifest), Some(holder));
                return Ok(origin);
            }
            Err(Failure::Unusable(why)) => {
                tracing::warn!(
                    stage,
                    shard = at.partition,
                    manifest = entry.manifest,
                    why,
                    "a checkpoint is of no use; an older one is tried"
                );
                of_shard.refuse(&entry.manifest, &why);
            }
            Err(Failure::Other(error)) => return Err(error),
        }
    }
    match of_shard.forgive().filter(|_| start > 0) {
        Some(why) => Err(ShardError::Stopped(format!(
            "{at} starts at {start}, and no checkpoint in {} can be used to begin with ({why}); put back what is missing or damaged there, and it goes on by itself; or begin another generation",
            of_shard.repository.full("")
        ))),
        None => Ok(origin),
    }
}

/// A log that ends before a checkpoint has lost what was acknowledged.
fn has_all(pointer: &Pointer, at: &TopicPartition, topic_id: &str, end: u64) -> Result<(), ShardError> {
    let beyond = |entry: &&Entry| entry.topic_id == topic_id && entry.changelog_offset > end;
    match pointer.checkpoints.iter().find(beyond) {
        None => Ok(()),
        Some(entry) => Err(ShardError::Stopped(format!(
            "{at} ends at {end}, and the checkpoint of batch {} is that of {}: the log has lost what was acknowledged; bring that back, or remove the newer checkpoints, if the shard is to go on \
             with what the log has",
            entry.batch, entry.changelog_offset
        ))),
    }
}

enum Failure {
    /// Another one may do.
    Unusable(String),
    Other(ShardError),
}

impl From<RepositoryError> for Failure {
    fn from(error: RepositoryError) -> Failure {
        match error {
            RepositoryError::Objects(ObjectError::Damaged { .. }) => Failure::Unusable(error.to_string()),
            error => Failure::Other(error.into()),
        }
    }
}

/// Makes the store what a checkpoint says; gives who holds the lease.
fn restore(
    of_shard: &ShardCheckpoints,
    environment: &Environment,
    entry: &Entry,
    store: &dyn StateStore,
) -> Result<String, Failure> {
    let repository = &of_shard.repository;
    let claimant = &environment.claimant;
    let holder = format!("{}/{}", claimant.worker, claimant.incarnation);
    let until_ms = environment.clock.now_ms() + LEASE_MS + entry.bytes / SLOWEST;
    // Before anything of it is read. When it was dropped meanwhile, there is a newer one.
    repository.lease(&holder, &entry.manifest, until_ms)?;
    let manifest = repository.manifest(&entry.manifest).map_err(RepositoryError::from)?;
    let mut failure = None;
    let restored = store.restore(&mut |staging| {
        let lanes = of_shard.policy.lanes;
        download(&environment.executor, lanes, repository, &manifest, staging).map_err(|error| {
            let said = StoreError::Failed(match &error {
                Failure::Unusable(why) => why.clone(),
                Failure::Other(error) => error.to_string(),
            });
            failure = Some(error);
            said
        })
    });
    match (failure, restored) {
        (Some(failure), _) => return Err(failure),
        // Every file is what was uploaded: it may be the disk, too.
        (None, Err(StoreError::Damaged(why))) => {
            return Err(Failure::Unusable(format!("a store that is made of it is damaged: {why}")));
        }
        (None, restored) => restored.map_err(|error| Failure::Other(error.into()))?,
    }
    match store.position() {
        Ok(Some(position)) if manifest.is_of(&position) => Ok(holder),
        Err(error @ (StoreError::Full(_) | StoreError::Failed(_))) => Err(Failure::Other(error.into())),
        position => {
            store.clear().map_err(|error| Failure::Other(error.into()))?;
            Err(Failure::Unusable(format!("its files are not those of batch {}: {position:?}", manifest.batch)))
        }
    }
}

/// What the lanes of a download share.
struct Download {
    repository: Arc<Repository>,
    manifest: Arc<Manifest>,
    staging: Arc<dyn Staging>,
    next: AtomicUsize,
    failure: Mutex<Option<Failure>>,
}

/// Downloads some files at a time.
fn download(
    executor: &Arc<dyn Executor>,
    lanes: usize,
    repository: &Arc<Repository>,
    manifest: &Arc<Manifest>,
    staging: Arc<dyn Staging>,
) -> Result<(), Failure> {
    let (repository, manifest) = (repository.clone(), manifest.clone());
    let count = (lanes, manifest.files.len());
    let (next, failure) = (AtomicUsize::new(0), Mutex::default());
    let download = Arc::new(Download { repository, manifest, staging, next, failure });
    in_lanes(&**executor, count, &download, Download::lane);
    lock(&download.failure).take().map_or(Ok(()), Err)
}

impl Download {
    /// One file after the other, until there are no more, or one of them failed.
    fn lane(&self) {
        let files = &self.manifest.files;
        while let Some(file) = files.get(self.next.fetch_add(1, Ordering::SeqCst)) {
            if let Err(error) = self.file_if_need_be_again(file) {
                self.next.store(files.len(), Ordering::SeqCst);
                lock(&self.failure).get_or_insert(error);
                return;
            }
        }
    }

    /// What changes on the way is there when it is asked for again.
    fn file_if_need_be_again(&self, file: &File) -> Result<(), Failure> {
        let mut tries = 1;
        loop {
            match self.file(file) {
                Err(Failure::Unusable(_)) if tries < TRIES => tries += 1,
                done => return done,
            }
        }
    }

    fn file(&self, file: &File) -> Result<(), Failure> {
        let mut into = self.staging.create(&file.name).map_err(|error| Failure::Other(error.into()))?;
        Ok(self.repository.download(file, PART, &mut *into)?)
    }
}

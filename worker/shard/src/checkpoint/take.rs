//! Taking checkpoints: what an owner does beside its batches.
//!
//! In two steps, each in the background. The first one has the local store copied, and is short: it ends before the store is closed. The second one uploads, from the copy alone, and may outlive the
//! ownership by the moment that it takes to notice; what it does then is undone by nobody, and does no harm ([`repository`](super::repository)).

use super::layout::{Attempt, Entry, File, Manifest, Pointer, in_words};
use super::repository::{Adding, RepositoryError};
use super::trim::{prove, trim};
use super::{Checkpoints, Permit, ShardCheckpoints, in_lanes, lock};
use crate::log::TopicPartition;
use crate::mutant::{self, Mutant};
use crate::objects::ObjectError;
use crate::runtime::Environment;
use crate::state::{Snapshot, SnapshotFile, StateStore, StoreError};
use crate::{Job, ShardError};
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use xxhash_rust::xxh3::Xxh3;

/// Bytes that are hashed at a time.
const CHUNK: usize = 256 << 10;
/// The shards of a process begin at different times: so many parts of an interval.
const PHASES: u64 = 16;

/// What a checkpoint came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Its manifest.
    pub manifest: String,
    /// The last batch in it.
    pub batch: u64,
    /// Bytes of all its files.
    pub bytes: u64,
    /// Bytes that were uploaded for it.
    pub uploaded_bytes: u64,
    /// From the copy to the pointer, milliseconds.
    pub took_ms: u64,
    /// The changelog was trimmed up to here.
    pub trimmed: Option<u64>,
}

/// The checkpoints that one owner takes of its shard.
pub(crate) struct Checkpointer {
    checkpoints: Arc<Checkpoints>,
    of_shard: Arc<ShardCheckpoints>,
    at: TopicPartition,
    epoch: u64,
    attempts: u32,
    stage: Stage,
    /// When the next one is due, milliseconds since 1970; and when that was decided.
    next_ms: u64,
    decided_ms: u64,
    /// The last one that was taken by this owner.
    last: Option<Arc<Last>>,
    trouble: Option<String>,
    is_superseded: bool,
}

/// What is known from the last checkpoint of this owner.
struct Last {
    name: String,
    manifest: Arc<Manifest>,
    /// Condemned names that were deleted.
    deleted: Vec<String>,
}

enum Stage {
    Idle,
    Copying(Box<dyn Job>, Receiver<Copied>, Permit, u64),
    Uploading {
        _job: Box<dyn Job>,
        outcome: Receiver<Result<Uploaded, Failed>>,
        cancelled: Arc<AtomicBool>,
        began_ms: u64,
    },
}

type Copied = Result<Option<Box<dyn Snapshot>>, StoreError>;

/// What an upload came to.
struct Uploaded {
    taken: Taken,
    last: Last,
    /// Why nothing could be deleted, or trimmed.
    trouble: Option<String>,
}

/// Why there is no checkpoint.
enum Failed {
    /// An owner of this epoch has the shard.
    Superseded(u64),
    Cancelled,
    Other(String),
}

impl From<RepositoryError> for Failed {
    fn from(error: RepositoryError) -> Failed {
        match error {
            RepositoryError::Superseded(epoch) => Failed::Superseded(epoch),
            error => Failed::Other(error.to_string()),
        }
    }
}

impl From<ObjectError> for Failed {
    fn from(error: ObjectError) -> Failed {
        Failed::Other(error.to_string())
    }
}

impl Checkpointer {
    /// Of the owner of this epoch.
    pub(crate) fn new(
        checkpoints: Arc<Checkpoints>,
        at: TopicPartition,
        stage: &str,
        epoch: u64,
        now_ms: u64,
    ) -> Checkpointer {
        let of_shard = checkpoints.of(stage, at.partition);
        let phase = u64::from(at.partition) % PHASES;
        let next_ms = now_ms + of_shard.policy.interval_ms * (phase + 1) / PHASES;
        Checkpointer {
            checkpoints,
            of_shard,
            at,
            epoch,
            attempts: 0,
            stage: Stage::Idle,
            next_ms,
            decided_ms: now_ms,
            last: None,
            trouble: None,
            is_superseded: false,
        }
    }

    /// Why there is no newer checkpoint, while that is so.
    pub(crate) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Begins, or goes on with, what is due; `batch`: the last one that was committed. Tells of a checkpoint that was taken.
    pub(crate) fn step(&mut self, environment: &Environment, store: &Arc<dyn StateStore>, batch: u64) -> Option<Taken> {
        let now_ms = environment.clock.now_ms();
        match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Idle => {
                self.begin(environment, store, batch, now_ms);
                None
            }
            Stage::Copying(job, outcome, permit, began_ms) => {
                match outcome.try_recv() {
                    Err(TryRecvError::Empty) => self.stage = Stage::Copying(job, outcome, permit, began_ms),
                    copied => self.upload(copied.ok(), permit, began_ms, environment),
                }
                None
            }
            Stage::Uploading { _job, outcome, cancelled, began_ms } => match outcome.try_recv() {
                Err(TryRecvError::Empty) => {
                    self.stage = Stage::Uploading { _job, outcome, cancelled, began_ms };
                    None
                }
                ended => {
                    self.ended(ended.unwrap_or_else(|_| Err(Failed::Other("it was given up".into()))), began_ms, now_ms)
                }
            },
        }
    }

    fn begin(&mut self, environment: &Environment, store: &Arc<dyn StateStore>, batch: u64, now_ms: u64) {
        let has_news = self.last.as_ref().is_none_or(|last| last.manifest.batch < batch);
        let is_due = now_ms >= self.next_ms || now_ms < self.decided_ms;
        if self.is_superseded || batch == 0 || !has_news || !is_due {
            return;
        }
        let Some(permit) = self.checkpoints.permit() else { return };
        let (store, log, (done, outcome)) = (store.clone(), environment.log.clone(), channel());
        let job = environment.executor.run(Box::new(move || {
            // What is copied is safe from then on, and must stay behind the log, also after a power cut.
            let persisted = log.persist().map_err(|error| StoreError::Failed(error.to_string()));
            let copied = persisted.and_then(|()| store.snapshot());
            // Whoever waits for this may open the same store again at once.
            drop(store);
            // Nobody listens any more when the shard was closed.
            let _ = done.send(copied);
        }));
        self.stage = Stage::Copying(job, outcome, permit, now_ms);
    }

    fn upload(&mut self, copied: Option<Copied>, permit: Permit, began_ms: u64, environment: &Environment) {
        let now_ms = environment.clock.now_ms();
        let snapshot = match copied {
            Some(Ok(Some(snapshot))) => snapshot,
            // Nothing was flushed yet.
            Some(Ok(None)) => return self.again_at(now_ms + self.of_shard.policy.min_pause_ms, now_ms),
            Some(Err(error)) => return self.failed(&format!("the local state cannot be copied: {error}"), now_ms),
            None => return self.failed("copying the local state was given up", now_ms),
        };
        self.attempts += 1;
        let cancelled = Arc::new(AtomicBool::new(false));
        let upload = Upload {
            environment: environment.clone(),
            of_shard: self.of_shard.clone(),
            at: self.at.clone(),
            attempt: Attempt { epoch: self.epoch, number: self.attempts },
            snapshot,
            last: self.last.clone(),
            cancelled: cancelled.clone(),
            began_ms,
        };
        let (done, outcome) = channel();
        let job = environment.executor.run(Box::new(move || {
            let uploaded = upload.run();
            drop(permit);
            // Nobody listens any more when the shard was closed.
            let _ = done.send(uploaded);
        }));
        self.stage = Stage::Uploading { _job: job, outcome, cancelled, began_ms };
    }

    fn ended(&mut self, ended: Result<Uploaded, Failed>, began_ms: u64, now_ms: u64) -> Option<Taken> {
        let policy = &self.of_shard.policy;
        match ended {
            Ok(Uploaded { taken, last, trouble }) => {
                let next_ms = (began_ms + policy.interval_ms).max(now_ms + policy.min_pause_ms);
                self.again_at(next_ms, now_ms);
                (self.last, self.trouble) = (Some(Arc::new(last)), trouble);
                return Some(taken);
            }
            Err(Failed::Superseded(epoch)) => {
                self.is_superseded = true;
                self.trouble = Some(format!(
                    "no checkpoint is taken: those in {} are of an owner of epoch {epoch}, later than this one's {}. If another process owns the shard, it will tell; else the log has lost what was acknowledged",
                    self.of_shard.repository.full(""),
                    self.epoch
                ));
            }
            Err(Failed::Cancelled) => {}
            Err(Failed::Other(why)) => self.failed(&why, now_ms),
        }
        None
    }

    fn failed(&mut self, why: &str, now_ms: u64) {
        self.trouble = Some(format!("no checkpoint could be taken: {why}"));
        // What is up there is looked at again: nobody knows what was taken up.
        self.last = None;
        self.again_at(now_ms + self.of_shard.policy.min_pause_ms, now_ms);
    }

    fn again_at(&mut self, next_ms: u64, now_ms: u64) {
        (self.next_ms, self.decided_ms) = (next_ms, now_ms);
    }
}

impl Drop for Checkpointer {
    /// A copy that is being made ends before the store is closed. An upload ends soon, and is nobody's business.
    fn drop(&mut self) {
        match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Idle => {}
            Stage::Copying(job, ..) => job.wait(),
            Stage::Uploading { cancelled, .. } => cancelled.store(true, Ordering::SeqCst),
        }
    }
}

/// One checkpoint on its way.
struct Upload {
    environment: Environment,
    of_shard: Arc<ShardCheckpoints>,
    at: TopicPartition,
    attempt: Attempt,
    snapshot: Box<dyn Snapshot>,
    last: Option<Arc<Last>>,
    cancelled: Arc<AtomicBool>,
    began_ms: u64,
}

/// The checkpoint that files are shared with.
struct Base {
    name: String,
    manifest: Arc<Manifest>,
    /// This owner took it: names of the store's files are those of then.
    is_own: bool,
}

impl Upload {
    fn run(self) -> Result<Uploaded, Failed> {
        let repository = self.of_shard.repository.clone();
        let pointer = match self.last {
            // Whoever claims first may see what others have left behind.
            None => repository.condemn_remains(self.attempt.epoch, &self.snapshot.position().topic_id)?,
            Some(_) => repository.claim(self.attempt.epoch, &self.snapshot.position().topic_id)?,
        };
        let base = self.base(&pointer)?;
        let lanes = Lanes::over(self, base);
        let lanes = lanes.run()?;
        lanes.finish()
    }

    /// The newest checkpoint there is, if it can be read.
    fn base(&self, pointer: &Pointer) -> Result<Option<Base>, Failed> {
        let Some(Entry { manifest: name, .. }) = pointer.checkpoints.first() else { return Ok(None) };
        if let Some(last) = self.last.as_ref().filter(|last| last.name == *name) {
            return Ok(Some(Base { name: name.clone(), manifest: last.manifest.clone(), is_own: true }));
        }
        match self.of_shard.repository.manifest(name) {
            Ok(manifest) => Ok(Some(Base { name: name.clone(), manifest, is_own: false })),
            Err(ObjectError::Damaged { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Uploads some files at a time.
struct Lanes {
    upload: Upload,
    base: Option<Base>,
    next: AtomicUsize,
    done: Mutex<Done>,
}

#[derive(Default)]
struct Done {
    files: Vec<File>,
    uploaded_bytes: u64,
    failure: Option<Failed>,
}

impl Lanes {
    fn over(upload: Upload, base: Option<Base>) -> Lanes {
        Lanes { upload, base, next: AtomicUsize::new(0), done: Mutex::default() }
    }

    /// Everything is in the object store, or something failed.
    fn run(self) -> Result<Lanes, Failed> {
        let count = (self.upload.of_shard.policy.lanes, self.upload.snapshot.files().len());
        let executor = self.upload.environment.executor.clone();
        let lanes = Arc::new(self);
        in_lanes(&*executor, count, &lanes, Lanes::lane);
        let lanes = Arc::into_inner(lanes).ok_or_else(|| Failed::Other("a lane of it goes on".into()))?;
        let failure = lock(&lanes.done).failure.take();
        failure.map_or(Ok(lanes), Err)
    }

    fn lane(&self) {
        loop {
            let files = self.upload.snapshot.files();
            let Some(file) = files.get(self.next.fetch_add(1, Ordering::SeqCst)) else { return };
            let result = self.file(file);
            let mut done = lock(&self.done);
            match result {
                Ok((file, uploaded_bytes)) => {
                    done.files.push(file);
                    done.uploaded_bytes += uploaded_bytes;
                }
                Err(error) => {
                    self.next.store(files.len(), Ordering::SeqCst);
                    done.failure.get_or_insert(error);
                    return;
                }
            }
        }
    }

    /// Makes sure that an object has what a file holds; gives the object, and how many bytes were uploaded.
    fn file(&self, file: &SnapshotFile) -> Result<(File, u64), Failed> {
        let (name, size) = (&file.name, file.size);
        let known = self.base.as_ref().map(|base| &base.manifest.files[..]).unwrap_or_default();
        let is_own = self.base.as_ref().is_some_and(|base| base.is_own || mutant::is(Mutant::NamesTrusted));
        let same = known.iter().find(|it| is_own && file.is_immutable && it.name == *name && it.size == size);
        if let Some(same) = same {
            return Ok((same.clone(), 0));
        }
        let hash = self.hash(file)?;
        if let Some(same) = known.iter().find(|it| it.hash == hash && it.size == size) {
            return Ok((File { name: name.clone(), ..same.clone() }, 0));
        }
        let object = self.upload.attempt.file(&hash);
        let full = self.upload.of_shard.repository.full(&object);
        let mut content = self.content(name)?;
        self.upload.of_shard.repository.objects().upload(&full, size, &mut content).map_err(|error| self.why(error))?;
        if in_words(content.hash.digest128()) != hash {
            return Err(Failed::Other(format!(
                "{name} of the local state is read differently each time: its disk is not to be trusted"
            )));
        }
        Ok((File { name: name.clone(), object, size, hash }, size))
    }

    fn why(&self, error: ObjectError) -> Failed {
        match self.upload.cancelled.load(Ordering::SeqCst) {
            true => Failed::Cancelled,
            false => error.into(),
        }
    }

    fn content(&self, name: &str) -> Result<Content<'_>, Failed> {
        let file = self.upload.snapshot.open(name).map_err(|error| Failed::Other(error.to_string()))?;
        Ok(Content { file, hash: Xxh3::new(), cancelled: &self.upload.cancelled })
    }

    fn hash(&self, file: &SnapshotFile) -> Result<String, Failed> {
        let mut content = self.content(&file.name)?;
        let (mut chunk, mut size) = (vec![0; CHUNK], 0);
        loop {
            let read = content.read(&mut chunk).map_err(|error| match content.is_cancelled() {
                true => Failed::Cancelled,
                false => Failed::Other(format!("{}: {error}", file.name)),
            })?;
            size += read as u64;
            if read == 0 {
                break;
            }
        }
        if size != file.size {
            return Err(Failed::Other(format!("{} has {size} bytes, and not {}", file.name, file.size)));
        }
        Ok(in_words(content.hash.digest128()))
    }

    /// Takes the checkpoint up, deletes what is condemned, and trims the changelog.
    fn finish(self) -> Result<Uploaded, Failed> {
        let Done { mut files, uploaded_bytes, .. } = std::mem::take(&mut *lock(&self.done));
        files.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let Upload { environment, of_shard, attempt, snapshot, last, cancelled, began_ms, at } = self.upload;
        if cancelled.load(Ordering::SeqCst) {
            return Err(Failed::Cancelled);
        }
        let (repository, now_ms) = (&of_shard.repository, environment.clock.now_ms());
        let of = repository.of().clone();
        let manifest = Manifest::new(of, attempt.epoch, now_ms, snapshot.position(), files);
        let deleted = last.as_ref().map(|last| &last.deleted[..]).unwrap_or_default();
        let base = self.base.as_ref().map(|base| base.name.as_str());
        let retained = of_shard.policy.retained;
        let adding = Adding { attempt, manifest: &manifest, base, retained, deleted, now_ms };
        let (log, name) = (&*environment.log, adding.name());
        prove(log, &at, &manifest.entry(name.clone())).map_err(|error| Failed::Other(error.to_string()))?;
        let pointer = repository.add(&adding)?;
        let took_ms = environment.clock.now_ms().saturating_sub(began_ms);
        let removed = repository.delete(&pointer.condemned);
        let trimmed = trim(log, &at, &pointer, retained);
        let trouble = [
            removed.as_ref().err().map(|error| format!("files of former checkpoints cannot be deleted: {error}")),
            trimmed.as_ref().err().map(|error: &ShardError| format!("the changelog cannot be trimmed: {error}")),
        ];
        let taken = Taken {
            manifest: name.clone(),
            batch: manifest.batch,
            bytes: manifest.bytes(),
            uploaded_bytes,
            took_ms,
            trimmed: trimmed.ok().flatten(),
        };
        let deleted = if removed.is_ok() { pointer.condemned } else { Vec::new() };
        let last = Last { name, manifest: Arc::new(manifest), deleted };
        Ok(Uploaded { taken, last, trouble: trouble.into_iter().flatten().next() })
    }
}

/// A file that is read, unless nobody wants it any more.
struct Content<'a> {
    file: Box<dyn Read + Send>,
    hash: Xxh3,
    cancelled: &'a AtomicBool,
}

impl Content<'_> {
    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }
}

impl Read for Content<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.is_cancelled() {
            return Err(io::Error::other("nobody wants it any more"));
        }
        let read = self.file.read(into)?;
        self.hash.update(into.get(..read).unwrap_or_default());
        Ok(read)
    }
}

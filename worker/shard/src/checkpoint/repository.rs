//! The checkpoints of one shard, as they lie in the object store.
//!
//! **One writer.** The pointer is replaced only on the condition that nobody else did since it was read, and an owner writes its epoch into it before anything else: from then on one of a lower
//! epoch, which may go on for a while without knowing, can change nothing.
//!
//! **Nothing that is referred to is deleted.** What a new checkpoint refers to was either written by the same attempt, or belongs to a checkpoint that the pointer keeps at the very moment at which it
//! takes up the new one. What no checkpoint refers to is named in the pointer as condemned first, and deleted then. Condemned are files of checkpoints that are dropped, and what
//! owners of lower epochs have left behind: those cannot take up anything any more. No name is ever used again ([`layout`]), so that it does not matter when a deletion takes effect.

use super::layout::{self, Attempt, Entry, FORMAT, File, Lease, Manifest, POINTER, Pointer, ShardName};
use super::reading::Reading;
use crate::mutant::{self, Mutant};
use crate::objects::{ObjectError, ObjectStore, Put, Version, When};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// So often the pointer is read again because somebody else has replaced it meanwhile.
const TRIES: usize = 20;
/// So many names are condemned at a time, so that the pointer stays small; the others are found the next time.
const MOST_CONDEMNED: usize = 1_000;

/// Why checkpoints cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// The object store.
    #[error(transparent)]
    Objects(#[from] ObjectError),
    /// An owner of a higher epoch has the shard.
    #[error("the shard's checkpoints are those of an owner of epoch {0} by now")]
    Superseded(u64),
    /// A checkpoint that something builds on is not kept any more.
    #[error("checkpoint {0} is not kept any more")]
    NotKept(String),
    /// All checkpoints are of another changelog of this name: of one that was lost, perhaps.
    #[error(
        "the checkpoints in {0} follow another changelog of this name, which was deleted; remove that folder from the object store if nothing of it is wanted"
    )]
    OfAnother(String),
    /// A file that was downloaded cannot be kept here.
    #[error("{name} cannot be stored here: {why}")]
    Here {
        /// Its name.
        name: String,
        /// Why not.
        why: String,
    },
}

/// The checkpoints of one shard.
pub struct Repository {
    objects: Arc<dyn ObjectStore>,
    of: ShardName,
    folder: String,
    /// Those that were read or written here.
    manifests: Mutex<BTreeMap<String, Arc<Manifest>>>,
}

impl Repository {
    /// The checkpoints of a shard.
    pub fn new(objects: Arc<dyn ObjectStore>, of: ShardName) -> Repository {
        let folder = of.folder();
        Repository { objects, of, folder, manifests: Mutex::default() }
    }

    /// Whose they are.
    pub fn of(&self) -> &ShardName {
        &self.of
    }

    /// Where everything lies.
    pub fn objects(&self) -> &dyn ObjectStore {
        &*self.objects
    }

    /// The name in the object store of one of its objects.
    pub fn full(&self, name: &str) -> String {
        format!("{}/{name}", self.folder)
    }

    /// Which checkpoints there are; `None`: there never was one.
    ///
    /// # Errors
    /// [`ObjectError`].
    pub fn pointer(&self) -> Result<Option<Pointer>, ObjectError> {
        Ok(self.read_pointer()?.map(|(pointer, _)| pointer))
    }

    fn read_pointer(&self) -> Result<Option<(Pointer, Version)>, ObjectError> {
        let Some(object) = self.objects.get(&self.full(POINTER))? else { return Ok(None) };
        let pointer = layout::read(&self.full(POINTER), &object.content, FORMAT).map_err(|error| match error {
            ObjectError::Damaged { name, why } => ObjectError::Damaged {
                name,
                why: format!(
                    "{why}; put an older version of it back, or remove it if the shard needs none of its checkpoints"
                ),
            },
            error => error,
        })?;
        Ok(Some((pointer, object.version)))
    }

    /// Replaces the pointer by what `change` makes of it; `None`: there is nothing to change. It is called again when somebody else has replaced it meanwhile, and must find by itself what it has done.
    fn update(
        &self,
        change: &mut dyn FnMut(&Pointer) -> Result<Option<Pointer>, RepositoryError>,
    ) -> Result<Pointer, RepositoryError> {
        for _ in 0..TRIES {
            let (before, when) = match self.read_pointer()? {
                Some((pointer, version)) => (pointer, When::Is(version)),
                None => (Pointer::default(), When::Absent),
            };
            let Some(after) = change(&before)? else { return Ok(before) };
            let when = if mutant::is(Mutant::PointerUnconditional) { When::Always } else { when };
            if let Put::Done(_) = self.objects.put(&self.full(POINTER), &layout::write(&after), &when)? {
                return Ok(after);
            }
        }
        Err(ObjectError::Unavailable(format!("{} is replaced all the time", self.full(POINTER))).into())
    }

    /// A manifest.
    ///
    /// # Errors
    /// [`ObjectError`]; [`ObjectError::Damaged`] also when it is missing.
    pub fn manifest(&self, name: &str) -> Result<Arc<Manifest>, ObjectError> {
        if let Some(known) = self.manifests().get(name) {
            return Ok(known.clone());
        }
        let object = self.objects.get(&self.full(name))?;
        let object = object.ok_or_else(|| layout::damaged(&self.full(name), "it is missing"))?;
        let manifest: Manifest = layout::read_manifest(&self.full(name), &object.content)?;
        if manifest.of != self.of {
            return Err(layout::damaged(
                &self.full(name),
                "it is of another shard, or of a pipeline with another number of shards",
            ));
        }
        let manifest = Arc::new(manifest);
        self.manifests().insert(name.to_owned(), manifest.clone());
        Ok(manifest)
    }

    fn manifests(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Manifest>>> {
        self.manifests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Downloads a file of a checkpoint, in requests of so many bytes, and makes sure that it is what was uploaded.
    ///
    /// # Errors
    /// [`RepositoryError::Objects`], [`RepositoryError::Here`].
    pub fn download(&self, file: &File, part: usize, into: &mut dyn Write) -> Result<(), RepositoryError> {
        let full = self.full(&file.object);
        let mut reading = Reading::new(&*self.objects, &full, file);
        while let Some(content) = reading.next(part)? {
            into.write_all(&content).map_err(|error| cannot_write(file, &error))?;
        }
        into.flush().map_err(|error| cannot_write(file, &error))
    }

    /// Are there checkpoints, and all of them of another changelog than this one? They may be all that is left of the shard, and are nobody's to replace (I6).
    ///
    /// # Errors
    /// [`RepositoryError::OfAnother`].
    pub fn check_history(&self, pointer: &Pointer, topic_id: &str) -> Result<(), RepositoryError> {
        if pointer.checkpoints.is_empty() || pointer.checkpoints.iter().any(|entry| entry.topic_id == topic_id) {
            return Ok(());
        }
        Err(RepositoryError::OfAnother(self.full("")))
    }

    /// Becomes the owner's of this epoch, if it is that of this changelog.
    ///
    /// # Errors
    /// [`RepositoryError::Superseded`], [`RepositoryError::OfAnother`].
    pub fn claim(&self, epoch: u64, topic_id: &str) -> Result<Pointer, RepositoryError> {
        self.update(&mut |before| {
            self.check_history(before, topic_id).and_then(|()| match before.epoch {
                newer if newer > epoch && !mutant::is(Mutant::SupersededGoesOn) => {
                    Err(RepositoryError::Superseded(newer))
                }
                same if same >= epoch => Ok(None),
                _ => Ok(Some(Pointer { epoch, ..before.clone() })),
            })
        })
    }

    /// Takes up a checkpoint, all of whose files are there; `base`: that some of them belong to. Of older ones `retained` are kept, itself included; `deleted`: names that are condemned, and gone.
    ///
    /// # Errors
    /// [`RepositoryError`]; after one of the object store it may have been taken up, or be taken up later.
    pub fn add(&self, adding: &Adding<'_>) -> Result<Pointer, RepositoryError> {
        let content = layout::write(adding.manifest);
        let name = adding.attempt.manifest(&content);
        self.objects.put(&self.full(&name), &content, &When::Always)?;
        self.manifests().insert(name.clone(), Arc::new(adding.manifest.clone()));
        let epoch = adding.attempt.epoch;
        let pointer = self.update(&mut |before| {
            if before.epoch > epoch && !mutant::is(Mutant::SupersededGoesOn) {
                return Err(RepositoryError::Superseded(before.epoch));
            }
            self.check_history(before, &adding.manifest.topic_id)?;
            if before.keeps(&name) {
                return Ok(None);
            }
            if let Some(base) = adding.base.filter(|base| !before.keeps(base)) {
                return Err(RepositoryError::NotKept(base.to_owned()));
            }
            self.with(before, adding.manifest.entry(name.clone()), adding).map(Some)
        })?;
        self.manifests().retain(|name, _| pointer.keeps(name));
        Ok(pointer)
    }

    /// The pointer with one more checkpoint.
    fn with(&self, before: &Pointer, entry: Entry, adding: &Adding<'_>) -> Result<Pointer, RepositoryError> {
        let mut after = Pointer { epoch: adding.attempt.epoch, ..before.clone() };
        after.leases.retain(|lease| lease.until_ms > adding.now_ms);
        after.condemned.retain(|name| !adding.deleted.contains(name));
        after.checkpoints.insert(0, entry);
        let leased = if mutant::is(Mutant::LeaseIgnored) { BTreeSet::new() } else { after.leased(adding.now_ms) };
        let mut number = 0;
        let (kept, dropped) = after.checkpoints.iter().cloned().partition::<Vec<Entry>, _>(|entry| {
            number += 1;
            number <= adding.retained.max(1) || leased.contains(entry.manifest.as_str())
        });
        // Without knowing what the others refer to, nothing may go; it is found by whoever owns the shard next.
        if let Some(referred) = self.referred(&kept)? {
            let of_dropped = dropped.iter().flat_map(|entry| self.names(entry));
            let condemned = of_dropped.filter(|name| !referred.contains(name) || mutant::is(Mutant::ReferredCollected));
            let condemned: BTreeSet<String> = condemned.collect();
            // Where nothing can be deleted, the pointer does not grow for ever: whoever owns the shard next finds them.
            let room = MOST_CONDEMNED.saturating_sub(after.condemned.len());
            after.condemned.extend(condemned.into_iter().take(room));
        }
        after.checkpoints = kept;
        Ok(after)
    }

    /// Everything that a checkpoint refers to, its manifest too; of one that cannot be read, the manifest alone.
    fn names(&self, entry: &Entry) -> Vec<String> {
        let files = self.manifest(&entry.manifest).map(|manifest| manifest.files.clone()).unwrap_or_default();
        files.into_iter().map(|file| file.object).chain([entry.manifest.clone()]).collect()
    }

    /// Everything that these refer to; `None`: one of them cannot be read, so nobody knows.
    fn referred(&self, kept: &[Entry]) -> Result<Option<BTreeSet<String>>, ObjectError> {
        for entry in kept {
            match self.manifest(&entry.manifest) {
                Ok(_) => {}
                Err(ObjectError::Damaged { .. }) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(kept.iter().flat_map(|entry| self.names(entry)).collect()))
    }

    /// Condemns what owners before this epoch, which the pointer must name, have left behind.
    ///
    /// # Errors
    /// [`RepositoryError`].
    pub fn condemn_remains(&self, epoch: u64, topic_id: &str) -> Result<Pointer, RepositoryError> {
        let pointer = self.claim(epoch, topic_id)?;
        let Some(referred) = self.referred(&pointer.checkpoints)? else { return Ok(pointer) };
        let remains =
            self.remains(epoch, &|name| !referred.contains(name) && !pointer.condemned.iter().any(|it| it == name))?;
        if remains.is_empty() {
            return Ok(pointer);
        }
        self.update(&mut |before| {
            if before.epoch != epoch {
                return Err(RepositoryError::Superseded(before.epoch));
            }
            let new = remains.iter().filter(|name| !before.condemned.contains(name)).cloned();
            let condemned: Vec<String> = before.condemned.iter().cloned().chain(new).collect();
            Ok((condemned.len() > before.condemned.len()).then(|| Pointer { condemned, ..before.clone() }))
        })
    }

    fn remains(&self, epoch: u64, is_one: &dyn Fn(&str) -> bool) -> Result<Vec<String>, ObjectError> {
        let (start, mut remains) = (self.full(""), Vec::new());
        for folder in ["files/", "manifests/"] {
            let mut after = None;
            loop {
                let page = self.objects.list(&self.full(folder), after.as_deref())?;
                let Some(last) = page.last() else { break };
                after = Some(last.name.clone());
                let names = page.iter().filter_map(|listed| listed.name.strip_prefix(&start));
                let is_older = |name: &&str| {
                    layout::epoch_of(name).is_some_and(|of| of < epoch || mutant::is(Mutant::NewerCollected))
                };
                remains.extend(names.filter(is_older).filter(|name| is_one(name)).map(str::to_owned));
                if remains.len() >= MOST_CONDEMNED {
                    remains.truncate(MOST_CONDEMNED);
                    return Ok(remains);
                }
            }
        }
        Ok(remains)
    }

    /// Deletes what a pointer names as condemned.
    ///
    /// # Errors
    /// [`ObjectError`].
    pub fn delete(&self, condemned: &[String]) -> Result<(), ObjectError> {
        let full: Vec<String> = condemned.iter().map(|name| self.full(name)).collect();
        self.objects.delete(&full)
    }

    /// Keeps a checkpoint, and the changelog behind it, until then (milliseconds since 1970), whoever owns the shard.
    ///
    /// # Errors
    /// [`RepositoryError::NotKept`] when it is gone already.
    pub fn lease(&self, holder: &str, manifest: &str, until_ms: u64) -> Result<(), RepositoryError> {
        let lease = Lease { holder: holder.to_owned(), manifest: manifest.to_owned(), until_ms };
        let change = &mut |before: &Pointer| {
            if !before.keeps(manifest) {
                return Err(RepositoryError::NotKept(manifest.to_owned()));
            }
            if before.leases.contains(&lease) {
                return Ok(None);
            }
            let mut after = before.clone();
            after.leases.retain(|lease| lease.holder != holder);
            after.leases.push(lease.clone());
            Ok(Some(after))
        };
        self.update(change).map(drop)
    }

    /// Gives back what [`Repository::lease`] has kept.
    ///
    /// # Errors
    /// [`RepositoryError`]; it ends by itself then.
    pub fn release(&self, holder: &str) -> Result<(), RepositoryError> {
        let change = &mut |before: &Pointer| {
            let mut after = before.clone();
            after.leases.retain(|lease| lease.holder != holder);
            Ok((after != *before).then_some(after))
        };
        self.update(change).map(drop)
    }
}

fn cannot_write(file: &File, error: &io::Error) -> RepositoryError {
    RepositoryError::Here { name: file.name.clone(), why: error.to_string() }
}

/// A checkpoint that is to be taken up.
pub struct Adding<'a> {
    /// Who takes it.
    pub attempt: Attempt,
    /// What it is.
    pub manifest: &'a Manifest,
    /// The checkpoint that some of its files belong to.
    pub base: Option<&'a str>,
    /// How many are kept.
    pub retained: usize,
    /// Condemned names that were deleted.
    pub deleted: &'a [String],
    /// Milliseconds since 1970.
    pub now_ms: u64,
}

impl Adding<'_> {
    /// The name of its manifest.
    pub fn name(&self) -> String {
        self.attempt.manifest(&layout::write(self.manifest))
    }
}

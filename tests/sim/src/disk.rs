//! Local stores in memory, and what crashes do to them.
//!
//! A folder belongs to a machine, a stage and a shard, and one process at a time has it open. What was written since the last sync may be lost in a crash: any number of the newest
//! writes, each of them whole, as the real store promises. Besides, files may be torn, which is found when the folder is opened or read, and a machine may be
//! replaced, which is another folder.
//!
//! Whatever survives, at a crash, at a close and at the end, is *evidence* of I5: the auditor compares it with the fold of the changelog up to its position.

use crate::counts::{Fault, Protocol};
use crate::world::{ProcessId, World};
use millstream_model::id::entry_hash;
use millstream_model::key::StateKey;
use millstream_model::proto::StatePosition;
use millstream_shard::flat::{FlatNames, FlatSnapshot, FlatStaging};
use millstream_shard::state::{Fill, Forget, Snapshot, StateStore, StoreError};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Which folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The machine.
    pub machine: u32,
    /// The stage.
    pub stage: &'static str,
    /// The shard.
    pub shard: u32,
}

/// What a store held at some moment.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// Where.
    pub place: Place,
    /// When, and why it was looked at.
    pub when: String,
    /// How far it said it was.
    pub position: Option<StatePosition>,
    /// The sum of the hashes of all entries.
    pub digest: u64,
    /// How many entries.
    pub entries: usize,
}

#[derive(Clone, Debug, Default)]
struct Contents {
    entries: BTreeMap<StateKey, Vec<u8>>,
    position: Option<StatePosition>,
}

#[derive(Clone, Debug)]
struct Write {
    forget: Option<Forget>,
    entries: Vec<(StateKey, Option<Vec<u8>>)>,
    position: StatePosition,
}

impl Contents {
    fn apply(&mut self, write: &Write) {
        for [start, end] in write.forget.iter().flat_map(Forget::ranges) {
            let gone = (&start[..]..&end[..], ());
            self.entries.retain(|key, _| !gone.0.contains(&key.as_bytes()));
        }
        for (key, value) in &write.entries {
            match value {
                Some(value) => self.entries.insert(key.clone(), value.clone()),
                None => self.entries.remove(key),
            };
        }
        self.position = Some(write.position.clone());
    }

    fn digest(&self) -> u64 {
        self.entries.iter().fold(0, |sum: u64, (key, value)| sum.wrapping_add(entry_hash(key.as_bytes(), value)))
    }
}

#[derive(Default)]
struct Folder {
    durable: Contents,
    /// With what was written since the last sync.
    current: Contents,
    unsynced: Vec<Write>,
    torn: bool,
    open_by: Option<ProcessId>,
}

/// Why a folder cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Another process has it open.
    InUse,
    /// Its files are damaged.
    Torn,
}

/// All local stores of a simulated world.
#[derive(Clone)]
pub struct Disks {
    world: World,
    folders: Arc<Mutex<BTreeMap<Place, Arc<Mutex<Folder>>>>>,
    /// Of which shard the disk is broken, and whether only what it has cannot be read.
    broken: Arc<Mutex<Option<(Place, bool)>>>,
    evidence: Arc<Mutex<Vec<Evidence>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Disks {
    /// Empty disks.
    pub fn new(world: World) -> Disks {
        Disks { world, folders: Arc::default(), broken: Arc::default(), evidence: Arc::default() }
    }

    /// Opens a folder, which is made when there is none.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn open(&self, process: ProcessId, place: Place) -> Result<Arc<SimState>, Trouble> {
        self.world.step("open the local store");
        let folder = lock(&self.folders).entry(place.clone()).or_default().clone();
        let mut opened = lock(&folder);
        if opened.open_by.is_some() {
            return Err(Trouble::InUse);
        }
        if opened.torn {
            self.world.count(Protocol::CorruptFound);
            return Err(Trouble::Torn);
        }
        opened.open_by = Some(process);
        drop(opened);
        Ok(Arc::new(SimState { disks: self.clone(), process, place, folder, names: Mutex::default() }))
    }

    /// Removes a folder's files.
    pub fn remove(&self, place: &Place) {
        if let Some(folder) = lock(&self.folders).get(place) {
            let mut folder = lock(folder);
            *folder = Folder { open_by: folder.open_by, ..Folder::default() };
        }
    }

    /// From now on this one does not work, or gives nothing back that it takes.
    pub fn breaks(&self, place: Place, is_unreadable: bool) {
        self.world.count_fault(if is_unreadable { Fault::DiskUnreadable } else { Fault::DiskBroken });
        *lock(&self.broken) = Some((place, is_unreadable));
    }

    /// The one that was broken is exchanged for one that has what it had.
    pub fn mend(&self) {
        *lock(&self.broken) = None;
    }

    fn is_broken(&self, place: &Place, reads: bool) -> bool {
        lock(&self.broken).as_ref().is_some_and(|(broken, is_unreadable)| broken == place && (reads || !is_unreadable))
    }

    /// What was seen of all folders up to now, those that are open included.
    pub fn evidence(&self) -> Vec<Evidence> {
        for (place, folder) in lock(&self.folders).iter() {
            let folder = lock(folder);
            if !folder.torn {
                self.testify(place, &folder.current, "at the end");
            }
        }
        lock(&self.evidence).clone()
    }

    fn testify(&self, place: &Place, contents: &Contents, why: &str) {
        let (position, digest, entries) = (contents.position.clone(), contents.digest(), contents.entries.len());
        let when = format!("{why}, at {} ms", self.world.monotonic_ms());
        lock(&self.evidence).push(Evidence { place: place.clone(), when, position, digest, entries });
    }

    fn crash(&self, place: &Place, folder: &mut Folder) {
        let count = folder.unsynced.len();
        let kept = self.world.draw(|rng| rng.below(count as u64 + 1)) as usize;
        if count > 0 {
            self.world.count_fault(if kept < count { Fault::WritesLost } else { Fault::WritesKept });
        }
        let unsynced = std::mem::take(&mut folder.unsynced);
        for write in unsynced.iter().take(kept) {
            folder.durable.apply(write);
        }
        folder.current = folder.durable.clone();
        self.testify(place, &folder.current, "after a crash");
        folder.torn = self.world.happens(Fault::FilesTorn);
    }
}

/// A shard's local store, open.
pub struct SimState {
    disks: Disks,
    process: ProcessId,
    place: Place,
    folder: Arc<Mutex<Folder>>,
    names: Mutex<FlatNames>,
}

impl SimState {
    fn step(&self, what: &'static str) -> Result<(), StoreError> {
        self.step_of(what, false)
    }

    fn step_of(&self, what: &'static str, reads: bool) -> Result<(), StoreError> {
        let world = &self.disks.world;
        world.step(what);
        if world.is_dead(self.process) {
            return Err(failed("this process is no more"));
        }
        if world.happens(Fault::DiskFailed) || self.disks.is_broken(&self.place, reads) {
            return Err(failed("input/output error"));
        }
        Ok(())
    }

    /// Is there nothing in it?
    pub fn is_empty(&self) -> bool {
        self.with(|folder| folder.current.position.is_none())
    }

    fn with<T>(&self, work: impl FnOnce(&mut Folder) -> T) -> T {
        work(&mut lock(&self.folder))
    }
}

/// The store's error.
pub fn failed(what: &str) -> StoreError {
    StoreError::Failed(what.to_owned())
}

impl StateStore for SimState {
    fn position(&self) -> Result<Option<StatePosition>, StoreError> {
        self.step("store: position")?;
        Ok(self.with(|folder| folder.current.position.clone()))
    }

    fn multi_get(&self, keys: &[&StateKey]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        self.step_of("store: read", true)?;
        Ok(self.with(|folder| keys.iter().map(|key| folder.current.entries.get(*key).cloned()).collect()))
    }

    fn write(
        &self,
        forget: Option<&Forget>,
        entries: &mut dyn Iterator<Item = (&StateKey, Option<&[u8]>)>,
        position: &StatePosition,
    ) -> Result<(), StoreError> {
        self.step("store: write")?;
        let entries = entries.map(|(key, value)| (key.clone(), value.map(<[u8]>::to_vec))).collect();
        let write = Write { forget: forget.cloned(), entries, position: position.clone() };
        self.with(|folder| {
            folder.current.apply(&write);
            folder.unsynced.push(write);
        });
        self.disks.world.step_after("store: written", 1);
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.step("store: sync")?;
        if self.with(|folder| !folder.unsynced.is_empty()) {
            self.disks.world.count(Protocol::Flushed);
        }
        self.with(Folder::sync);
        self.disks.world.step_after("store: synced", 1);
        Ok(())
    }

    fn scan(&self, prefix: &[u8], each: &mut dyn FnMut(&StateKey, &[u8])) -> Result<(), StoreError> {
        self.step("store: scan")?;
        self.with(|folder| {
            let from = StateKey::from_bytes(prefix);
            let found = folder.current.entries.range(from..).take_while(|(key, _)| key.as_bytes().starts_with(prefix));
            found.for_each(|(key, value)| each(key, value));
        });
        Ok(())
    }

    fn keys(&self, prefix: &[u8], after: Option<&StateKey>, most: usize) -> Result<Vec<StateKey>, StoreError> {
        self.step("store: keys")?;
        self.with(|folder| {
            let from = after.cloned().unwrap_or_else(|| StateKey::from_bytes(prefix));
            let keys = folder.current.entries.range(from..).map(|(key, _)| key).filter(|key| Some(*key) != after);
            Ok(keys.take_while(|key| key.as_bytes().starts_with(prefix)).take(most).cloned().collect())
        })
    }

    fn clear(&self) -> Result<(), StoreError> {
        self.step("store: clear")?;
        let had_some = self.with(|folder| {
            let had_some = folder.current.position.is_some();
            (folder.current, folder.durable) = (Contents::default(), Contents::default());
            folder.unsynced.clear();
            had_some
        });
        if had_some {
            self.disks.world.count(Protocol::LocalStateDiscarded);
        }
        self.disks.world.step_after("store: cleared", 1);
        Ok(())
    }

    fn snapshot(&self) -> Result<Option<Box<dyn Snapshot>>, StoreError> {
        self.step("store: snapshot")?;
        let Contents { entries, position } = self.with(|folder| folder.current.clone());
        let copy = |position| FlatSnapshot::of(entries.iter(), position, &mut lock(&self.names));
        Ok(position.map(|position| Box::new(copy(position)) as Box<dyn Snapshot>))
    }

    fn restore(&self, fill: Fill<'_>) -> Result<(), StoreError> {
        self.step("store: restore")?;
        let staging = FlatStaging::default();
        fill(Arc::new(staging.clone()))?;
        self.step("store: all files are there")?;
        let (entries, position) = staging.contents()?;
        self.with(|folder| {
            (folder.current, folder.durable) = (Contents::default(), Contents::default());
            folder.unsynced.clear();
        });
        self.step("store: what was there is gone")?;
        self.with(|folder| {
            folder.current = Contents { entries, position: Some(position) };
            folder.durable = folder.current.clone();
            folder.unsynced.clear();
        });
        self.disks.world.count(Protocol::CheckpointRestored);
        self.disks.world.step_after("store: restored", 1);
        Ok(())
    }
}

impl Folder {
    fn sync(&mut self) {
        for write in std::mem::take(&mut self.unsynced) {
            self.durable.apply(&write);
        }
    }
}

impl Drop for SimState {
    fn drop(&mut self) {
        let mut folder = lock(&self.folder);
        if self.disks.world.is_dead(self.process) {
            self.disks.crash(&self.place, &mut folder);
        } else {
            // As the real one does: what memory held is written when it is closed.
            folder.sync();
            self.disks.testify(&self.place, &folder.current, "when it was closed");
        }
        folder.open_by = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place { machine: 0, stage: "unify", shard: 0 };

    fn write(state: &SimState, name: &str, number: u64) {
        let key = StateKey::from_bytes(name.as_bytes());
        let position = StatePosition { batch_number: number, ..StatePosition::default() };
        state.write(None, &mut [(&key, Some(&b"x"[..]))].into_iter(), &position).unwrap();
    }

    #[test]
    fn a_crash_keeps_what_was_synced_and_some_of_what_was_written_later() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..40 {
            let world = World::new(seed, false);
            let disks = Disks::new(world.clone());
            let process = world.process("p", 0);
            let state = disks.open(process, PLACE).unwrap();
            write(&state, "a", 1);
            state.sync().unwrap();
            write(&state, "b", 2);
            write(&state, "c", 3);
            world.crash(process);
            drop(state);
            let next = world.process("q", 0);
            let state = disks.open(next, PLACE).unwrap();
            let number = state.position().unwrap().unwrap().batch_number;
            let mut names = Vec::new();
            state.scan(b"", &mut |key, _| names.push(key.as_bytes().to_vec())).unwrap();
            assert_eq!(names.len() as u64, number, "a prefix of the writes");
            seen.insert(number);
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn a_store_that_was_closed_has_everything_and_one_process_at_a_time_has_it() {
        let world = World::new(1, false);
        let disks = Disks::new(world.clone());
        let (first, second) = (world.process("p", 0), world.process("q", 0));
        let state = disks.open(first, PLACE).unwrap();
        write(&state, "a", 1);
        assert_eq!(disks.open(second, PLACE).err(), Some(Trouble::InUse));
        drop(state);
        let state = disks.open(second, PLACE).unwrap();
        assert_eq!(state.position().unwrap().map(|position| position.batch_number), Some(1));
        assert_eq!(disks.evidence().len(), 2);
    }

    #[test]
    fn torn_files_are_found_when_they_are_opened_and_can_be_removed() {
        let world = World::new(1, false);
        world.set_rate(Fault::FilesTorn, 10_000);
        world.set_faults(true);
        let disks = Disks::new(world.clone());
        let first = world.process("p", 0);
        let state = disks.open(first, PLACE).unwrap();
        world.crash(first);
        drop(state);
        let second = world.process("q", 0);
        assert_eq!(disks.open(second, PLACE).err(), Some(Trouble::Torn));
        disks.remove(&PLACE);
        assert_eq!(disks.open(second, PLACE).unwrap().position().unwrap(), None);
    }
}

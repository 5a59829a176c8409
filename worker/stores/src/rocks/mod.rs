//! A shard's local state on RocksDB.
//!
//! Invariant (I5): entries and the position that they lead to are written in one write batch to one column family, so that they reach
//! the same memtable and the same file together. The write-ahead log is off: a crash loses the newest writes, whole, and the changelog
//! brings them back; what a memtable held is flushed when the store is closed. What an owner flushes is much and sorted: it is written as a file, which RocksDB takes as
//! a whole, without a way through memtables. State keys start with a key group below 4,096,
//! which leaves the keys from `0x10` on to the store itself: the position rests under [`POSITION`].
//!
//! Files that are damaged (I6) are noticed at opening or at any read. From then on the store answers [`StoreError::Damaged`] to everything, also after it was
//! opened again, because a file beside RocksDB's says so; only `clear` makes it usable, by removing all files. It is for the caller to know that the changelog has
//! everything.

mod error;
mod resources;
mod snapshot;

pub use resources::{Bounds, Figures, Resources, StoreFigures};

use error::{io_error, removed, store_error};
use millstream_model::key::StateKey;
use millstream_model::proto::StatePosition;
use millstream_shard::state::{Entries, Fill, Forget, Snapshot, StateStore, StoreError};
use prost::Message as _;
use rocksdb::{
    DB, FlushOptions, IngestExternalFileOptions, IteratorMode, ReadOptions, SstFileWriter, WriteBatch, WriteOptions,
};
use snapshot::{Restoring, RocksSnapshot};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

const POSITION: &[u8] = b"\xffposition";
/// The first key that no state key can be: group 4,096, big endian.
const STATE_END: &[u8] = &[0x10];
/// The file that a flush writes, until RocksDB has taken it.
const FLUSH: &str = "flush.sst.tmp";
/// Says why the other files in its folder are not to be used.
const DAMAGED: &str = "DAMAGED";

/// A state store on RocksDB, one per shard and folder.
pub struct RocksState {
    folder: PathBuf,
    resources: Resources,
    opened: RwLock<Opened>,
}

enum Opened {
    Db(Arc<DB>),
    /// Why it cannot be used.
    Damaged(String),
}

impl RocksState {
    /// Opens the store in a folder, which is created when missing. A damaged store is open too; it says so, and can be cleared.
    ///
    /// # Errors
    /// [`StoreError`]: the folder cannot be written, or another process uses it.
    pub fn open(folder: &Path, resources: &Resources) -> Result<RocksState, StoreError> {
        let opened = open(folder, resources)?;
        if matches!(opened, Opened::Db(_)) {
            // Only who has the folder's lock knows that they are nobody else's.
            resources.copies().remove_remains(folder);
        }
        let opened = RwLock::new(opened);
        Ok(RocksState { folder: folder.to_owned(), resources: resources.clone(), opened })
    }

    /// Does something with RocksDB, and remembers when that shows damage.
    fn with<T>(&self, work: impl FnOnce(&DB) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let result = match &*self.opened.read().unwrap_or_else(PoisonError::into_inner) {
            Opened::Db(db) => work(db),
            Opened::Damaged(why) => return Err(StoreError::Damaged(why.clone())),
        };
        if let Err(StoreError::Damaged(why)) = &result {
            self.damaged(why);
        }
        result
    }

    fn damaged(&self, why: &str) {
        // Where this cannot be written, the damage will be found again.
        let _ = std::fs::write(self.folder.join(DAMAGED), why);
        let mut opened = self.opened.write().unwrap_or_else(PoisonError::into_inner);
        self.resources.closing(&self.folder);
        *opened = Opened::Damaged(why.to_owned());
    }
}

impl Drop for RocksState {
    fn drop(&mut self) {
        // What cannot be flushed here is in the changelog; there is nobody left to tell but the log.
        if let Err(error) = self.sync()
            && !matches!(error, StoreError::Damaged(_))
        {
            tracing::warn!(%error, "local state was not flushed when it was closed; it will be read from the changelog again");
        }
        self.resources.closing(&self.folder);
    }
}

fn open(folder: &Path, resources: &Resources) -> Result<Opened, StoreError> {
    std::fs::create_dir_all(folder).map_err(|error| io_error("cannot create", folder, &error))?;
    if let Ok(why) = std::fs::read_to_string(folder.join(DAMAGED)) {
        return Ok(Opened::Damaged(why));
    }
    match resources.open(folder) {
        Ok(db) => Ok(Opened::Db(db)),
        Err(error) => match store_error(&format!("cannot open {}", folder.display()), &error) {
            StoreError::Damaged(why) => Ok(Opened::Damaged(why)),
            error => Err(error),
        },
    }
}

/// Removes all files of a store. The one that names the others goes first: without it RocksDB begins anew, however far this gets.
fn remove(folder: &Path) -> Result<(), StoreError> {
    // Both are tried, whatever comes of the first.
    let results = [std::fs::remove_file(folder.join("CURRENT")), std::fs::remove_dir_all(folder)];
    results.into_iter().try_for_each(|result| removed(folder, result))
}

fn failed(what: &'static str) -> impl Fn(rocksdb::Error) -> StoreError {
    move |error| store_error(what, &error)
}

fn without_wal() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.disable_wal(true);
    options
}

fn check(key: &StateKey) -> Result<(), StoreError> {
    if key.as_bytes() < STATE_END {
        return Ok(());
    }
    Err(StoreError::Failed(format!("{key:?} is not a key of a shard's state")))
}

/// Entries in ascending order, and behind them the position, which is behind every key of state.
fn write_file(
    file: &mut SstFileWriter<'_>,
    forget: Option<&Forget>,
    entries: Entries<'_>,
    position: &StatePosition,
) -> Result<(), StoreError> {
    for [start, end] in forget.into_iter().flat_map(Forget::ranges) {
        file.delete_range(start, end).map_err(failed("write"))?;
    }
    let mut result = Ok(());
    entries(&mut |key, value| {
        if result.is_ok() {
            result = check(key).and_then(|()| {
                let written = match value {
                    Some(value) => file.put(key.as_bytes(), value),
                    None => file.delete(key.as_bytes()),
                };
                written.map_err(failed("write"))
            });
        }
    });
    result?;
    file.put(POSITION, position.encode_to_vec()).map_err(failed("write"))
}

fn batch_of(
    forget: Option<&Forget>,
    entries: &mut dyn Iterator<Item = (&StateKey, Option<&[u8]>)>,
    position: &StatePosition,
) -> Result<WriteBatch, StoreError> {
    let mut batch = WriteBatch::default();
    for [start, end] in forget.into_iter().flat_map(Forget::ranges) {
        batch.delete_range(start, end);
    }
    for (key, value) in entries {
        check(key)?;
        match value {
            Some(value) => batch.put(key.as_bytes(), value),
            None => batch.delete(key.as_bytes()),
        }
    }
    batch.put(POSITION, position.encode_to_vec());
    Ok(batch)
}

impl StateStore for RocksState {
    fn position(&self) -> Result<Option<StatePosition>, StoreError> {
        self.with(|db| {
            let Some(bytes) = db.get_pinned(POSITION).map_err(failed("read the position"))? else { return Ok(None) };
            let position = StatePosition::decode(&bytes[..]);
            position.map(Some).map_err(|error| StoreError::Damaged(format!("the position cannot be read: {error}")))
        })
    }

    fn multi_get(&self, keys: &[&StateKey]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        self.with(|db| {
            let values = db.multi_get(keys.iter().map(|key| key.as_bytes()));
            values.into_iter().map(|value| value.map_err(failed("read"))).collect()
        })
    }

    fn write(
        &self,
        forget: Option<&Forget>,
        entries: &mut dyn Iterator<Item = (&StateKey, Option<&[u8]>)>,
        position: &StatePosition,
    ) -> Result<(), StoreError> {
        let batch = batch_of(forget, entries, position)?;
        self.with(|db| db.write_opt(batch, &without_wal()).map_err(failed("write")))
    }

    fn write_sorted(
        &self,
        forget: Option<&Forget>,
        entries: Entries<'_>,
        position: &StatePosition,
    ) -> Result<(), StoreError> {
        self.with(|db| {
            let path = self.folder.join(FLUSH);
            let written = self.resources.write_file(&path, |file| write_file(file, forget, entries, position));
            let taken = written.and_then(|()| {
                let mut options = IngestExternalFileOptions::default();
                options.set_move_files(true);
                db.ingest_external_file_opts(&options, vec![&path]).map_err(failed("take a file"))
            });
            if taken.is_err() {
                // Its space is needed now; where it cannot be removed, the next flush says so.
                let _ = std::fs::remove_file(&path);
            }
            taken
        })
    }

    fn sync(&self) -> Result<(), StoreError> {
        let mut options = FlushOptions::default();
        options.set_wait(true);
        self.with(|db| db.flush_opt(&options).map_err(failed("flush")))
    }

    fn scan(&self, prefix: &[u8], each: &mut dyn FnMut(&StateKey, &[u8])) -> Result<(), StoreError> {
        self.with(|db| {
            let mut read = ReadOptions::default();
            read.set_iterate_upper_bound(STATE_END);
            for entry in db.iterator_opt(IteratorMode::From(prefix, rocksdb::Direction::Forward), read) {
                let (key, value) = entry.map_err(failed("scan"))?;
                if !key.starts_with(prefix) {
                    break;
                }
                each(&StateKey::from_bytes(&key), &value);
            }
            Ok(())
        })
    }

    fn keys(&self, prefix: &[u8], after: Option<&StateKey>, most: usize) -> Result<Vec<StateKey>, StoreError> {
        self.with(|db| {
            let mut read = ReadOptions::default();
            read.set_iterate_upper_bound(STATE_END);
            // What is gone through once is not read again.
            read.fill_cache(false);
            let from = after.map_or(prefix, StateKey::as_bytes);
            let mut keys = Vec::new();
            for entry in db.iterator_opt(IteratorMode::From(from, rocksdb::Direction::Forward), read) {
                let (key, _) = entry.map_err(failed("scan"))?;
                if keys.len() == most || !key.starts_with(prefix) {
                    break;
                }
                keys.extend(Some(StateKey::from_bytes(&key)).filter(|key| Some(key) != after));
            }
            Ok(keys)
        })
    }

    fn clear(&self) -> Result<(), StoreError> {
        let mut opened = self.opened.write().unwrap_or_else(PoisonError::into_inner);
        self.resources.closing(&self.folder);
        let before = std::mem::replace(&mut *opened, Opened::Damaged("it was not cleared to the end".into()));
        if let Opened::Damaged(why) = &before {
            tracing::warn!(folder = %self.folder.display(), why, "damaged local state is removed, and read from the changelog again");
            self.resources.count_cleared();
        }
        // Closed before its files go.
        drop(before);
        remove(&self.folder)?;
        *opened = open(&self.folder, &self.resources)?;
        Ok(())
    }

    fn snapshot(&self) -> Result<Option<Box<dyn Snapshot>>, StoreError> {
        let copied = self.with(|db| RocksSnapshot::make(db, &self.folder, self.resources.copies()))?;
        Ok(copied.map(|snapshot| Box::new(snapshot) as Box<dyn Snapshot>))
    }

    fn restore(&self, fill: Fill<'_>) -> Result<(), StoreError> {
        let restoring = Arc::new(Restoring::begin(&self.folder)?);
        fill(restoring.clone())?;
        let mut opened = self.opened.write().unwrap_or_else(PoisonError::into_inner);
        self.resources.closing(&self.folder);
        // Closed before its files go.
        *opened = Opened::Damaged("it was not restored to the end".into());
        remove(&self.folder)?;
        restoring.become_store(&self.folder)?;
        *opened = open(&self.folder, &self.resources)?;
        match &*opened {
            Opened::Db(_) => Ok(()),
            Opened::Damaged(why) => Err(StoreError::Damaged(why.clone())),
        }
    }
}

#[cfg(test)]
mod tests;

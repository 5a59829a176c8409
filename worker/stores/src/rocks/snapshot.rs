//! Copies of a store that share its files, and stores that are made of such files.
//!
//! Both are folders beside the store's own, on the same file system: a copy is made of hard links, and what is restored becomes the store by being renamed. What a process that was killed has left of them
//! goes when the store is opened.

use super::error::{io_error, store_error};
use super::{POSITION, failed};
use millstream_model::proto::StatePosition;
use millstream_shard::state::{Snapshot, SnapshotFile, Staging, StoreError};
use prost::Message as _;
use rocksdb::{DB, Options, checkpoint::Checkpoint};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Files of a copy that are open at a time while its position is read.
const OPEN_FILES: i32 = 16;

/// The copies that a process has; nobody else's are in its folders.
#[derive(Clone, Default)]
pub(super) struct Copies(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    made: u64,
    live: BTreeSet<PathBuf>,
}

impl Copies {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A name that no copy has.
    fn next(&self, of: &Path) -> PathBuf {
        let mut known = self.lock();
        known.made += 1;
        let path = beside(of, &format!("copy-{}", known.made));
        known.live.insert(path.clone());
        path
    }

    /// Removes what a process before this one has left beside a store.
    pub(super) fn remove_remains(&self, of: &Path) {
        let (Some(parent), Some(name)) = (of.parent(), of.file_name().and_then(|name| name.to_str())) else { return };
        let known = self.lock();
        for path in std::fs::read_dir(parent).into_iter().flatten().flatten().map(|entry| entry.path()) {
            let what = path.file_name().and_then(|it| it.to_str()?.strip_prefix(name)?.strip_prefix('~'));
            let is_ours = what.is_some_and(|what| what == RESTORING || what.starts_with("copy-"));
            if is_ours && !known.live.contains(&path) {
                // Where it cannot be removed, it only takes space.
                let _ = std::fs::remove_dir_all(&path);
            }
        }
    }
}

const RESTORING: &str = "restoring";

/// A folder beside a store's.
fn beside(store: &Path, what: &str) -> PathBuf {
    let mut name = store.file_name().unwrap_or_default().to_owned();
    name.push(format!("~{what}"));
    store.with_file_name(name)
}

/// A copy of a store at one position.
pub(super) struct RocksSnapshot {
    folder: PathBuf,
    copies: Copies,
    position: StatePosition,
    files: Vec<SnapshotFile>,
}

impl RocksSnapshot {
    /// Copies everything that was written to a store; `None`: nothing ever was.
    pub(super) fn make(db: &DB, store: &Path, copies: &Copies) -> Result<Option<RocksSnapshot>, StoreError> {
        let folder = copies.next(store);
        // Removed when it is dropped, whatever comes of it.
        let (position, files) = (StatePosition::default(), Vec::new());
        let mut snapshot = RocksSnapshot { folder, copies: copies.clone(), position, files };
        let folder = &snapshot.folder;
        let checkpoint = Checkpoint::new(db).map_err(failed("copy"))?;
        // It flushes memtables, however small they are: without a write-ahead log the copy would lack what is in them. An owner's are as good as empty, because its flushes are files.
        checkpoint.create_checkpoint(folder).map_err(failed("copy"))?;
        drop(checkpoint);
        let files = files_in(folder).map_err(|error| io_error("cannot read", folder, &error))?;
        let Some(position) = position_of(folder)? else { return Ok(None) };
        (snapshot.position, snapshot.files) = (position, files);
        Ok(Some(snapshot))
    }
}

impl Drop for RocksSnapshot {
    fn drop(&mut self) {
        // What cannot be removed now is when the store is opened again.
        let _ = std::fs::remove_dir_all(&self.folder);
        self.copies.lock().live.remove(&self.folder);
    }
}

/// Those that a store is made of: its tables, what names them, and what names that.
fn files_in(folder: &Path) -> io::Result<Vec<SnapshotFile>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        // RocksDB never gives two tables of one opening one number; an opening after a crash may.
        let is_immutable = name.ends_with(".sst");
        if is_immutable || name == "CURRENT" || name.starts_with("MANIFEST-") {
            files.push(SnapshotFile { name, size: entry.metadata()?.len(), is_immutable });
        }
    }
    files.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

fn position_of(folder: &Path) -> Result<Option<StatePosition>, StoreError> {
    let mut options = Options::default();
    options.set_max_open_files(OPEN_FILES);
    let failed = |error| of_copy(store_error("open a copy", &error));
    let db = DB::open_for_read_only(&options, folder, false).map_err(failed)?;
    let Some(bytes) = db.get_pinned(POSITION).map_err(failed)? else { return Ok(None) };
    let position = StatePosition::decode(&bytes[..]);
    position.map(Some).map_err(|error| StoreError::Failed(format!("the position of a copy cannot be read: {error}")))
}

/// A copy that is damaged, or gone, says nothing of the store.
fn of_copy(error: StoreError) -> StoreError {
    match error {
        StoreError::Damaged(why) => StoreError::Failed(format!("of a copy: {why}")),
        error => error,
    }
}

impl Snapshot for RocksSnapshot {
    fn position(&self) -> &StatePosition {
        &self.position
    }

    fn files(&self) -> &[SnapshotFile] {
        &self.files
    }

    fn open(&self, name: &str) -> Result<Box<dyn Read + Send>, StoreError> {
        let path = self.folder.join(name);
        let file = File::open(&path).map_err(|error| io_error("cannot read", &path, &error))?;
        Ok(Box::new(file))
    }
}

/// The folder in which a store is put together.
pub(super) struct Restoring {
    folder: PathBuf,
}

impl Restoring {
    /// An empty folder.
    pub(super) fn begin(store: &Path) -> Result<Restoring, StoreError> {
        let folder = beside(store, RESTORING);
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("cannot remove", &folder, &error));
            }
            _ => {}
        }
        std::fs::create_dir_all(&folder).map_err(|error| io_error("cannot create", &folder, &error))?;
        Ok(Restoring { folder })
    }

    /// Becomes the store, of which nothing is there any more.
    pub(super) fn become_store(&self, store: &Path) -> Result<(), StoreError> {
        let synced = |path: &Path| File::open(path).and_then(|folder| folder.sync_all());
        let moved = synced(&self.folder).and_then(|()| std::fs::rename(&self.folder, store));
        let moved = moved.and_then(|()| store.parent().map_or(Ok(()), synced));
        moved.map_err(|error| io_error("cannot move files to", store, &error))
    }
}

impl Drop for Restoring {
    fn drop(&mut self) {
        // It is not there when it has become the store.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Staging for Restoring {
    fn create(&self, name: &str) -> Result<Box<dyn Write + Send>, StoreError> {
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        if name.is_empty() || name.starts_with('.') || !name.chars().all(is_allowed) {
            return Err(StoreError::Failed(format!("`{name}` is no file of a store")));
        }
        let path = self.folder.join(name);
        let file = File::create(&path).map_err(|error| io_error("cannot create", &path, &error))?;
        Ok(Box::new(Synced(file)))
    }
}

/// A file that a crash keeps once it was flushed.
struct Synced(File);

impl Write for Synced {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.sync_all()
    }
}

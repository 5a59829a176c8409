//! What RocksDB's errors mean for a shard.

use millstream_shard::state::StoreError;
use rocksdb::ErrorKind;
use std::io;
use std::path::Path;

/// What to do about a full disk: it is said wherever one is met.
const FREE: &str = "free the disk of `data_dir` or give it more; nothing is lost, and it goes on by itself";

/// An error of RocksDB in words, and by what follows from it.
///
/// A file that is not there any more is damage like one that was changed: RocksDB never removes a file that it still needs.
pub(super) fn store_error(what: &str, error: &rocksdb::Error) -> StoreError {
    let text = error.to_string();
    if text.contains("No space left on device") {
        return StoreError::Full(format!("{what}: no space left; {FREE} ({text})"));
    }
    let is_gone = error.kind() == ErrorKind::IOError && text.contains("No such file or directory");
    if error.kind() == ErrorKind::Corruption || is_gone {
        return StoreError::Damaged(format!("{what}: {text}"));
    }
    StoreError::Failed(format!("{what}: {text}"))
}

/// What came of removing a file or folder: that it was not there is as good.
pub(super) fn removed(path: &Path, result: io::Result<()>) -> Result<(), StoreError> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("cannot remove", path, &error)),
        _ => Ok(()),
    }
}

/// An error of the file system, about a folder.
pub(super) fn io_error(what: &str, folder: &Path, error: &io::Error) -> StoreError {
    let folder = folder.display();
    if error.kind() == io::ErrorKind::StorageFull {
        return StoreError::Full(format!("{what} {folder}: no space left; {FREE}"));
    }
    StoreError::Failed(format!("{what} {folder}: {error}; check that it exists and belongs to this user"))
}

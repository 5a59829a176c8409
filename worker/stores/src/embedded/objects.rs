//! The object store in a folder: for one machine, and for users' tests.
//!
//! Each object is a file, `<name>~`, by which it is told from what else may be in the folder. It is written beside, synced, and renamed: a process that is killed leaves a file in `~uploads`, which is deleted when the
//! folder is opened a day later. Whoever looks what is there before it writes, writes, or deletes holds a lock on the folder, which all processes of this machine respect; on a network's file system
//! they may not.

use super::objects_list::{Query, page};
use millstream_shard::objects::{Listed, Object, ObjectError, ObjectStore, Put, Version, When, check_name};
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tempfile::NamedTempFile;

/// Behind the name of each object: no name has it.
pub(super) const END: char = '~';
/// What is being written. No segment of a name is called so.
pub(super) const UPLOADS: &str = "~uploads";
/// Held by who looks what is there before it writes. Nor this.
const LOCK: &str = "~lock";
/// What is being written is nobody's any more after so long.
const ABANDONED: Duration = Duration::from_secs(24 * 60 * 60);
/// Read at once of what is uploaded, bytes.
const BLOCK: usize = 1 << 20;

/// The object store in a folder.
#[derive(Debug)]
pub struct FolderObjects {
    root: PathBuf,
}

impl FolderObjects {
    /// Opens a folder, which is created when missing.
    ///
    /// # Errors
    /// [`ObjectError::Configuration`]: the folder cannot be used.
    pub fn open(root: &Path) -> Result<FolderObjects, ObjectError> {
        let unusable = |error: io::Error| {
            ObjectError::Configuration(format!("the object store's folder {} cannot be used: {error}", root.display()))
        };
        fs::create_dir_all(root.join(UPLOADS)).map_err(unusable)?;
        let objects = FolderObjects { root: root.to_owned() };
        objects.locked().map_err(unusable)?;
        objects.remove_abandoned().map_err(unusable)?;
        Ok(objects)
    }

    fn remove_abandoned(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.root.join(UPLOADS))?.flatten() {
            let modified = entry.metadata().and_then(|metadata| metadata.modified()).ok();
            let age = modified.and_then(|modified| SystemTime::now().duration_since(modified).ok());
            if age.is_some_and(|age| age > ABANDONED) {
                // Somebody else may have done it.
                drop(fs::remove_file(entry.path()));
            }
        }
        Ok(())
    }

    fn path(&self, name: &str) -> Result<PathBuf, ObjectError> {
        check_name(name)?;
        Ok(self.root.join(format!("{name}{END}")))
    }

    /// While this file is open, nobody else of this machine looks what is there, writes or deletes.
    fn locked(&self) -> io::Result<File> {
        let lock = File::options().create(true).truncate(false).write(true).open(self.root.join(LOCK))?;
        lock.lock()?;
        Ok(lock)
    }

    /// A new file, which becomes an object when it is published, and goes with the value otherwise.
    fn beside(&self) -> io::Result<NamedTempFile> {
        NamedTempFile::new_in(self.root.join(UPLOADS))
    }

    /// Makes a file that is synced an object: its name is durable when this returns.
    fn publish(&self, file: NamedTempFile, path: &Path) -> io::Result<()> {
        let folder = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(folder)?;
        file.persist(path).map_err(|error| error.error)?;
        // Up to the root, for some of the folders may be new.
        for folder in folder.ancestors().take_while(|folder| folder.starts_with(&self.root)) {
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    }

    fn put_in(&self, path: &Path, content: &[u8], when: &When) -> io::Result<Put> {
        let mut file = self.beside()?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        let _locked = self.locked()?;
        let is_so = match when {
            When::Always => true,
            When::Absent => !path.try_exists()?,
            When::Is(version) => read_all(path)?.is_some_and(|content| version_of(&content) == *version),
        };
        if !is_so {
            return Ok(Put::Refused);
        }
        self.publish(file, path)?;
        Ok(Put::Done(version_of(content)))
    }

    /// Deletes it, and folders that have nothing in them then.
    fn delete_one(&self, path: &Path) -> io::Result<()> {
        let _locked = self.locked()?;
        match fs::remove_file(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            removed => removed?,
        }
        let mut left = path.parent().unwrap_or(&self.root);
        // One that has something else in it stays, and so do those above it.
        while left != self.root && fs::remove_dir(left).is_ok() {
            left = left.parent().unwrap_or(&self.root);
        }
        File::open(left)?.sync_all()
    }
}

/// By its content: what is the same is the same version, as on S3.
fn version_of(content: &[u8]) -> Version {
    Version(format!("{:032x}", xxhash_rust::xxh3::xxh3_128(content)))
}

fn read_all(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn read_part(path: &Path, at: u64, size: usize) -> io::Result<Option<Vec<u8>>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    file.seek(SeekFrom::Start(at))?;
    let mut content = Vec::new();
    file.take(u64::try_from(size).unwrap_or(u64::MAX)).read_to_end(&mut content)?;
    Ok(Some(content))
}

/// Copies exactly `size` bytes.
fn copy(name: &str, size: u64, from: &mut dyn Read, into: &mut NamedTempFile) -> Result<(), ObjectError> {
    let (mut block, mut left) = (vec![0; BLOCK], size);
    loop {
        let read = match from.read(&mut block) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            read => read.map_err(|error| source(name, &error))?,
        };
        let Some(rest) = left.checked_sub(u64::try_from(read).unwrap_or(u64::MAX)) else {
            return Err(source(name, &format!("it has more than {size} bytes")));
        };
        if read == 0 && rest > 0 {
            return Err(source(name, &format!("it has {} bytes, and not {size}", size - rest)));
        }
        if read == 0 {
            return Ok(());
        }
        into.write_all(block.get(..read).unwrap_or_default()).map_err(|error| trouble(name, &error))?;
        left = rest;
    }
}

fn source(name: &str, why: &dyn Display) -> ObjectError {
    ObjectError::Source { name: name.to_owned(), why: why.to_string() }
}

/// By what the caller must do.
fn trouble(name: &str, error: &io::Error) -> ObjectError {
    let said = format!("{name}: {error}");
    match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::InvalidFilename => {
            ObjectError::Configuration(said)
        }
        _ => ObjectError::Unavailable(said),
    }
}

impl ObjectStore for FolderObjects {
    fn get(&self, name: &str) -> Result<Option<Object>, ObjectError> {
        let content = read_all(&self.path(name)?).map_err(|error| trouble(name, &error))?;
        Ok(content.map(|content| Object { version: version_of(&content), content }))
    }

    fn read(&self, name: &str, at: u64, size: usize) -> Result<Option<Vec<u8>>, ObjectError> {
        read_part(&self.path(name)?, at, size).map_err(|error| trouble(name, &error))
    }

    fn put(&self, name: &str, content: &[u8], when: &When) -> Result<Put, ObjectError> {
        self.put_in(&self.path(name)?, content, when).map_err(|error| trouble(name, &error))
    }

    fn upload(&self, name: &str, size: u64, content: &mut dyn Read) -> Result<(), ObjectError> {
        let path = self.path(name)?;
        let mut file = self.beside().map_err(|error| trouble(name, &error))?;
        copy(name, size, content, &mut file)?;
        let published = file.as_file().sync_all().and_then(|()| {
            let _locked = self.locked()?;
            self.publish(file, &path)
        });
        published.map_err(|error| trouble(name, &error))
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<Listed>, ObjectError> {
        page(&self.root, &Query { prefix, after }).map_err(|error| trouble(prefix, &error))
    }

    fn delete(&self, names: &[String]) -> Result<(), ObjectError> {
        names.iter().try_for_each(|name| check_name(name))?;
        for name in names {
            self.delete_one(&self.path(name)?).map_err(|error| trouble(name, &error))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(folder: &Path) -> Vec<String> {
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<String> = fs::read_dir(folder).unwrap().map(name).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn what_was_being_written_a_day_ago_is_gone_when_the_folder_is_opened_again() {
        let root = tempfile::tempdir().unwrap();
        FolderObjects::open(root.path()).unwrap();
        let uploads = root.path().join(UPLOADS);
        for (name, age) in [("old", ABANDONED + Duration::from_secs(60)), ("new", Duration::from_secs(60))] {
            let file = File::create(uploads.join(name)).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
        }
        FolderObjects::open(root.path()).unwrap();
        assert_eq!(entries(&uploads), ["new"]);
    }

    #[test]
    fn nothing_is_left_of_what_was_refused_cut_short_or_deleted() {
        let root = tempfile::tempdir().unwrap();
        let store = FolderObjects::open(root.path()).unwrap();
        store.put("a/b/c", b"1", &When::Absent).unwrap();
        assert_eq!(store.put("a/b/c", b"2", &When::Absent).unwrap(), Put::Refused);
        store.upload("a/d", 2, &mut &b"1"[..]).unwrap_err();
        store.delete(&["a/b/c".to_owned()]).unwrap();
        assert_eq!(entries(root.path()), [LOCK, UPLOADS]);
        assert_eq!(entries(&root.path().join(UPLOADS)), Vec::<String>::new());
    }

    #[test]
    fn what_others_put_into_the_folder_is_not_listed() {
        let root = tempfile::tempdir().unwrap();
        let store = FolderObjects::open(root.path()).unwrap();
        store.put("a/b", b"1", &When::Absent).unwrap();
        fs::create_dir(root.path().join("a/my own")).unwrap();
        for name in ["notes.txt", "a/b c~", "a/~", "a/my own/b~"] {
            fs::write(root.path().join(name), "").unwrap();
        }
        let listed = store.list("", None).unwrap();
        assert_eq!(listed.iter().map(|listed| listed.name.as_str()).collect::<Vec<_>>(), ["a/b"]);
    }

    #[test]
    fn a_folder_that_cannot_be_one_is_a_matter_of_configuration() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        let error = FolderObjects::open(&root.path().join("file/store")).unwrap_err();
        assert!(matches!(&error, ObjectError::Configuration(why) if why.contains("file/store")), "{error}");
    }
}

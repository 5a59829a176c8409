//! Snapshots of stores in memory: in simulations and tests, where a store is a sorted map.
//!
//! Entries are dealt out into a few files by their keys, so that what did not change is the same file again; the position is a file of its own. As RocksDB's, names are numbers that count up in one opening
//! of a store, and begin anew with the next one.

use crate::state::{Snapshot, SnapshotFile, Staging, StoreError};
use millstream_model::key::StateKey;
use millstream_model::proto::StatePosition;
use prost::Message as _;
use std::collections::BTreeMap;
use std::io::{self, Cursor, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

/// Files of entries.
const PARTS: u64 = 4;
const POSITION: &str = "POSITION";

/// Everything that a store in memory holds.
pub type Contents = (BTreeMap<StateKey, Vec<u8>>, StatePosition);

/// Names of files in one opening of a store: a content has one, and no other content ever has it.
#[derive(Default)]
pub struct FlatNames(BTreeMap<u128, usize>);

impl FlatNames {
    fn of(&mut self, content: &[u8]) -> String {
        let next = self.0.len();
        format!("{:06}.part", self.0.entry(xxh3_128(content)).or_insert(next))
    }
}

/// The snapshot of a store in memory.
pub struct FlatSnapshot {
    position: StatePosition,
    files: Vec<SnapshotFile>,
    contents: BTreeMap<String, Vec<u8>>,
}

impl FlatSnapshot {
    /// A copy of these entries.
    pub fn of<'a>(
        entries: impl Iterator<Item = (&'a StateKey, &'a Vec<u8>)>,
        position: StatePosition,
        names: &mut FlatNames,
    ) -> FlatSnapshot {
        let mut parts: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        for (key, value) in entries {
            let part = parts.entry(xxh3_64(key.as_bytes()) % PARTS).or_default();
            for bytes in [key.as_bytes(), value] {
                part.extend((bytes.len() as u32).to_le_bytes());
                part.extend(bytes);
            }
        }
        let named = parts.into_values().map(|part| (names.of(&part), part));
        let mut contents: BTreeMap<String, Vec<u8>> = named.collect();
        contents.insert(POSITION.to_owned(), position.encode_to_vec());
        let file = |(name, content): (&String, &Vec<u8>)| SnapshotFile {
            name: name.clone(),
            size: content.len() as u64,
            is_immutable: name != POSITION,
        };
        let files = contents.iter().map(file).collect();
        FlatSnapshot { position, files, contents }
    }
}

impl Snapshot for FlatSnapshot {
    fn position(&self) -> &StatePosition {
        &self.position
    }

    fn files(&self) -> &[SnapshotFile] {
        &self.files
    }

    fn open(&self, name: &str) -> Result<Box<dyn Read + Send>, StoreError> {
        let content = self.contents.get(name).ok_or_else(|| StoreError::Failed(format!("no file {name}")))?;
        Ok(Box::new(Cursor::new(content.clone())))
    }
}

type Files = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

/// Where its files go. Clones are the same.
#[derive(Clone, Default)]
pub struct FlatStaging(Files);

/// A file that is written: it is there once it was dropped.
struct Written {
    files: Files,
    name: String,
    content: Vec<u8>,
}

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.content.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        let content = std::mem::take(&mut self.content);
        self.files.lock().unwrap_or_else(PoisonError::into_inner).insert(std::mem::take(&mut self.name), content);
    }
}

impl Staging for FlatStaging {
    fn create(&self, name: &str) -> Result<Box<dyn Write + Send>, StoreError> {
        Ok(Box::new(Written { files: self.0.clone(), name: name.to_owned(), content: Vec::new() }))
    }
}

impl FlatStaging {
    /// What the files hold.
    ///
    /// # Errors
    /// [`StoreError::Failed`]: they are not those of a snapshot.
    pub fn contents(&self) -> Result<Contents, StoreError> {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let failed = |why: &str| StoreError::Failed(format!("these are not the files of a snapshot: {why}"));
        let position = files.remove(POSITION).ok_or_else(|| failed("there is no position"))?;
        let position = StatePosition::decode(&position[..]).map_err(|error| failed(&error.to_string()))?;
        let mut entries = BTreeMap::new();
        for part in files.into_values() {
            let mut rest = &part[..];
            while !rest.is_empty() {
                let pair = field(&mut rest).zip(field(&mut rest));
                let (key, value) = pair.ok_or_else(|| failed("an entry is cut short"))?;
                entries.insert(StateKey::from_bytes(key), value.to_vec());
            }
        }
        Ok((entries, position))
    }
}

fn field<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (size, behind) = rest.split_first_chunk::<4>()?;
    let (field, behind) = behind.split_at_checked(u32::from_le_bytes(*size) as usize)?;
    *rest = behind;
    Some(field)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::copy;

    #[test]
    fn a_copy_becomes_what_it_was_made_of_and_shares_files_with_the_next_one() {
        let key = |n: u16| StateKey::from_bytes(&n.to_be_bytes());
        let mut entries: BTreeMap<StateKey, Vec<u8>> = (0..100).map(|n| (key(n), vec![1; usize::from(n)])).collect();
        let position = StatePosition { batch_number: 7, ..StatePosition::default() };
        let mut names = FlatNames::default();
        let snapshot = FlatSnapshot::of(entries.iter(), position.clone(), &mut names);
        let staging = FlatStaging::default();
        for file in snapshot.files() {
            let size = copy(&mut snapshot.open(&file.name).unwrap(), &mut staging.create(&file.name).unwrap()).unwrap();
            assert_eq!(size, file.size);
        }
        assert_eq!(staging.contents().unwrap(), (entries.clone(), position.clone()));
        entries.insert(key(1), vec![2]);
        let next = FlatSnapshot::of(entries.iter(), position, &mut names);
        let shared = next.files().iter().filter(|file| file.is_immutable && snapshot.files().contains(file)).count();
        assert_eq!(shared, 3, "all parts but one");
        assert!(FlatStaging::default().contents().is_err());
    }
}

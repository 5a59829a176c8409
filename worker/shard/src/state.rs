//! The local state store below the write-back cache: a place for what does not fit in memory, and the start of a recovery.
//!
//! Contract (I5): a write of entries and position is atomic, and a store that comes back after `kill -9` shows some position that was written,
//! with exactly the entries up to it; it may have lost the newest writes. The changelog is what makes a batch durable, not this.
//!
//! Contract (I6): a store that has answered [`StoreError::Damaged`] answers so to everything until it is cleared, also when it was opened again, so that nobody goes
//! on from what is left of it.

use millstream_model::key::{Kind, StateKey, periods_before};
use millstream_model::proto::StatePosition;
use std::io::{Read, Write};
use std::ops::Range;
use std::sync::Arc;

/// The store failed, by what the caller must do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Try the same again later: there is no space. What was written before can be read.
    #[error("local state: {0}")]
    Full(String),
    /// Open it again.
    #[error("local state: {0}")]
    Failed(String),
    /// Its files are not what was written: clear it and read the changelog from its beginning, if it still has one.
    #[error("local state is damaged: {0}")]
    Damaged(String),
}

/// Everything that is kept by an earlier period than this, in some key groups, is to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forget {
    /// The shard's key groups.
    pub groups: Range<u16>,
    /// The first period that stays.
    pub before: u32,
}

impl Forget {
    /// One range of keys per key group and kind: the first, and one after the last.
    pub fn ranges(&self) -> impl Iterator<Item = [Vec<u8>; 2]> {
        let before = self.before;
        let of_group = move |group: u16| Kind::BY_PERIOD.map(|kind| periods_before(group, kind, before));
        self.groups.clone().flat_map(of_group)
    }
}

/// Gives each of its entries to who asks: `None` deletes.
pub type Entries<'a> = &'a mut dyn FnMut(&mut dyn FnMut(&StateKey, Option<&[u8]>));

/// One file of a [`Snapshot`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    /// Its name: letters, digits, `.`, `-` and `_`.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// As long as the store is open, no other file of it ever has this name.
    pub is_immutable: bool,
}

/// A copy of a store as it was at one position. It stays as it is, whatever becomes of the store, until it is dropped.
pub trait Snapshot: Send + Sync {
    /// The position that the copy is of.
    fn position(&self) -> &StatePosition;

    /// All its files.
    fn files(&self) -> &[SnapshotFile];

    /// Reads one of them from its beginning.
    ///
    /// # Errors
    /// [`StoreError`].
    fn open(&self, name: &str) -> Result<Box<dyn Read + Send>, StoreError>;
}

/// Where the files of a copy go before they become a store.
pub trait Staging: Send + Sync {
    /// A new file, which is there when it was flushed and dropped.
    ///
    /// # Errors
    /// [`StoreError`], also when the name is none that a snapshot gives.
    fn create(&self, name: &str) -> Result<Box<dyn Write + Send>, StoreError>;
}

/// Writes the files of a store that is being restored.
pub type Fill<'a> = &'a mut dyn FnMut(Arc<dyn Staging>) -> Result<(), StoreError>;

/// A shard's local state.
pub trait StateStore: Send + Sync {
    /// How far it is; `None` when it is empty.
    ///
    /// # Errors
    /// [`StoreError`].
    fn position(&self) -> Result<Option<StatePosition>, StoreError>;

    /// The values under keys, in their order.
    ///
    /// # Errors
    /// [`StoreError`].
    fn multi_get(&self, keys: &[&StateKey]) -> Result<Vec<Option<Vec<u8>>>, StoreError>;

    /// Forgets, then writes entries (`None` deletes) and the position that all of it leads to, atomically.
    ///
    /// # Errors
    /// [`StoreError`].
    fn write(
        &self,
        forget: Option<&Forget>,
        entries: &mut dyn Iterator<Item = (&StateKey, Option<&[u8]>)>,
        position: &StatePosition,
    ) -> Result<(), StoreError>;

    /// [`StateStore::write`] of many entries: `entries` gives them one after the other, in ascending order of their keys, so that they need not all be in
    /// memory at a time.
    ///
    /// # Errors
    /// [`StoreError`].
    fn write_sorted(
        &self,
        forget: Option<&Forget>,
        entries: Entries<'_>,
        position: &StatePosition,
    ) -> Result<(), StoreError> {
        let mut all = Vec::new();
        entries(&mut |key, value| all.push((key.clone(), value.map(<[u8]>::to_vec))));
        self.write(forget, &mut all.iter().map(|(key, value)| (key, value.as_deref())), position)
    }

    /// From here on, a crash keeps what was written.
    ///
    /// # Errors
    /// [`StoreError`].
    fn sync(&self) -> Result<(), StoreError>;

    /// Every entry whose key starts with `prefix`, in key order.
    ///
    /// # Errors
    /// [`StoreError`].
    fn scan(&self, prefix: &[u8], each: &mut dyn FnMut(&StateKey, &[u8])) -> Result<(), StoreError>;

    /// The first keys, at most `most`, that start with `prefix` and come after `after`, in their order.
    ///
    /// # Errors
    /// [`StoreError`].
    fn keys(&self, prefix: &[u8], after: Option<&StateKey>, most: usize) -> Result<Vec<StateKey>, StoreError>;

    /// Removes everything, the position and any damage too.
    ///
    /// # Errors
    /// [`StoreError`].
    fn clear(&self) -> Result<(), StoreError>;

    /// A copy of everything that was written, as cheap as the disk can make it; `None` when the store is empty.
    ///
    /// # Errors
    /// [`StoreError`].
    fn snapshot(&self) -> Result<Option<Box<dyn Snapshot>>, StoreError>;

    /// Replaces everything, any damage too, by the files of a [`Snapshot`], which `fill` writes. When it fails, or the process ends meanwhile, the store is as it was before, or empty.
    ///
    /// # Errors
    /// [`StoreError`], that of `fill` too.
    fn restore(&self, fill: Fill<'_>) -> Result<(), StoreError>;
}

#[cfg(test)]
pub(crate) mod memory {
    use super::*;
    use crate::flat::{FlatNames, FlatSnapshot, FlatStaging};
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    /// A state store for unit tests of this crate.
    #[derive(Default)]
    pub(crate) struct MemoryState(Mutex<Contents>);

    type Contents = (BTreeMap<StateKey, Vec<u8>>, Option<StatePosition>);

    impl MemoryState {
        pub(crate) fn seed(&self, key: &StateKey, value: &[u8]) {
            self.0.lock().unwrap().0.insert(key.clone(), value.to_vec());
        }
    }

    impl StateStore for MemoryState {
        fn position(&self) -> Result<Option<StatePosition>, StoreError> {
            Ok(self.0.lock().unwrap().1.clone())
        }

        fn multi_get(&self, keys: &[&StateKey]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
            let state = self.0.lock().unwrap();
            Ok(keys.iter().map(|key| state.0.get(*key).cloned()).collect())
        }

        fn write(
            &self,
            forget: Option<&Forget>,
            entries: &mut dyn Iterator<Item = (&StateKey, Option<&[u8]>)>,
            position: &StatePosition,
        ) -> Result<(), StoreError> {
            let mut state = self.0.lock().unwrap();
            for [start, end] in forget.into_iter().flat_map(Forget::ranges) {
                state.0.retain(|key, _| !(&start[..]..&end[..]).contains(&key.as_bytes()));
            }
            for (key, value) in entries {
                match value {
                    Some(value) => state.0.insert(key.clone(), value.to_vec()),
                    None => state.0.remove(key),
                };
            }
            state.1 = Some(position.clone());
            Ok(())
        }

        fn sync(&self) -> Result<(), StoreError> {
            Ok(())
        }

        fn scan(&self, prefix: &[u8], each: &mut dyn FnMut(&StateKey, &[u8])) -> Result<(), StoreError> {
            for (key, value) in &self.0.lock().unwrap().0 {
                if key.as_bytes().starts_with(prefix) {
                    each(key, value);
                }
            }
            Ok(())
        }

        fn keys(&self, prefix: &[u8], after: Option<&StateKey>, most: usize) -> Result<Vec<StateKey>, StoreError> {
            let state = self.0.lock().unwrap();
            let is_next = |key: &&StateKey| key.as_bytes().starts_with(prefix) && Some(*key) > after;
            Ok(state.0.keys().filter(is_next).take(most).cloned().collect())
        }

        fn clear(&self) -> Result<(), StoreError> {
            *self.0.lock().unwrap() = Default::default();
            Ok(())
        }

        fn snapshot(&self) -> Result<Option<Box<dyn Snapshot>>, StoreError> {
            let (entries, position) = self.0.lock().unwrap().clone();
            let Some(position) = position else { return Ok(None) };
            Ok(Some(Box::new(FlatSnapshot::of(entries.iter(), position, &mut FlatNames::default()))))
        }

        fn restore(&self, fill: Fill<'_>) -> Result<(), StoreError> {
            let staging = FlatStaging::default();
            fill(Arc::new(staging.clone()))?;
            let (entries, position) = staging.contents()?;
            *self.0.lock().unwrap() = (entries, Some(position));
            Ok(())
        }
    }
}

//! The local state store below the write-back cache: a place for what does not fit in memory, and the start of a recovery.
//!
//! Contract (I5): a write of entries and position is atomic, and a store that comes back after `kill -9` shows some position that was written,
//! with exactly the entries up to it; it may have lost the newest writes. The changelog is what makes a batch durable, not this.

use millstream_model::key::StateKey;
use millstream_model::proto::StatePosition;

/// The store failed: the shard must be opened again.
#[derive(Debug, thiserror::Error)]
#[error("local state: {0}")]
pub struct StoreError(pub String);

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

    /// Writes entries (`None` deletes) and the position that they lead to, atomically.
    ///
    /// # Errors
    /// [`StoreError`].
    fn write(
        &self,
        entries: &mut dyn Iterator<Item = (&StateKey, Option<&[u8]>)>,
        position: &StatePosition,
    ) -> Result<(), StoreError>;

    /// Every entry whose key starts with `prefix`, in key order.
    ///
    /// # Errors
    /// [`StoreError`].
    fn scan(&self, prefix: &[u8], each: &mut dyn FnMut(&StateKey, &[u8])) -> Result<(), StoreError>;

    /// Removes everything, the position too.
    ///
    /// # Errors
    /// [`StoreError`].
    fn clear(&self) -> Result<(), StoreError>;
}

#[cfg(test)]
pub(crate) mod memory {
    use super::*;
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
            entries: &mut dyn Iterator<Item = (&StateKey, Option<&[u8]>)>,
            position: &StatePosition,
        ) -> Result<(), StoreError> {
            let mut state = self.0.lock().unwrap();
            for (key, value) in entries {
                match value {
                    Some(value) => state.0.insert(key.clone(), value.to_vec()),
                    None => state.0.remove(key),
                };
            }
            state.1 = Some(position.clone());
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

        fn clear(&self) -> Result<(), StoreError> {
            *self.0.lock().unwrap() = Default::default();
            Ok(())
        }
    }
}

//! The layers of a shard's state: overlay → dirty and frozen → clean → local store.
//!
//! **I5, local state never ahead.** What a batch changes lives in its *overlay* until the log has committed the batch;
//! only then it becomes *dirty*. A flush *freezes* what is dirty at a batch boundary and writes it, with the position that it leads to, in
//! one write; it stays readable and is not evicted until that write has returned. A batch that is given up drops its overlay, and nothing needs to be wiped.
//!
//! Dirty, frozen and clean values live in one map. Each carries the number of the flush that will store it: an entry changed again
//! while its flush is under way belongs to the next flush, so that a flush that returns never makes a newer value look stored.

use crate::state::{StateStore, StoreError};
use millstream_model::id::content_hash;
use millstream_model::key::StateKey;
use millstream_stages::{State, StateError, StateValue};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3DefaultBuilder;

/// A map whose order does not differ between runs.
pub type Map<K, V> = HashMap<K, V, Xxh3DefaultBuilder>;

/// Rough cost of an entry beyond its bytes: key, map slot, queue slot, allocation headers.
const ENTRY_OVERHEAD: usize = 160;

/// A value of the committed state: present or known to be absent.
#[derive(Debug)]
struct Entry<V> {
    value: Option<Arc<V>>,
    /// [`content_hash`] of the stored form; 0 when absent.
    hash: u64,
    /// Bytes of the stored form.
    size: usize,
    /// The flush that will store it; 0 when it is stored.
    flush: u64,
    /// Used since the eviction hand last came by.
    used: bool,
}

/// A change of a committed batch, for the changelog.
#[derive(Debug)]
pub struct Change {
    /// The changed key.
    pub key: StateKey,
    /// Its new stored form; `None`: deleted.
    pub value: Option<Vec<u8>>,
    /// Hash of the stored form before, 0 when there was none.
    pub before: u64,
}

/// What a flush writes.
#[derive(Debug)]
pub struct Frozen<V> {
    number: u64,
    entries: Vec<(StateKey, Option<Arc<V>>)>,
}

impl<V: StateValue> Frozen<V> {
    /// Writes the frozen entries, `more` entries that are not in the cache, and the position that all of them lead to.
    ///
    /// # Errors
    /// [`StoreError`]: the entries stay dirty; the shard must be opened again.
    pub fn write(
        &self,
        store: &dyn StateStore,
        more: &[(StateKey, Vec<u8>)],
        position: &millstream_model::proto::StatePosition,
    ) -> Result<(), StoreError> {
        let encoded: Vec<Option<Vec<u8>>> = self
            .entries
            .iter()
            .map(|(_, value)| {
                value.as_ref().map(|value| {
                    let mut bytes = Vec::new();
                    value.encode(&mut bytes);
                    bytes
                })
            })
            .collect();
        let frozen = self.entries.iter().zip(&encoded).map(|((key, _), bytes)| (key, bytes.as_deref()));
        let mut entries = frozen.chain(more.iter().map(|(key, bytes)| (key, Some(bytes.as_slice()))));
        store.write(&mut entries, position)
    }

    /// Which flush this is.
    pub fn number(&self) -> u64 {
        self.number
    }
}

/// A shard's state in memory, over its local store.
pub struct Cache<V> {
    store: Arc<dyn StateStore>,
    entries: Map<StateKey, Entry<V>>,
    overlay: Map<StateKey, Option<Arc<V>>>,
    /// Keys of the current flush number, each once.
    dirty: Vec<StateKey>,
    /// Second-chance queue: every entry once.
    hand: VecDeque<StateKey>,
    flush: u64,
    bytes: usize,
    dirty_bytes: usize,
    capacity: usize,
}

impl<V: StateValue> Cache<V> {
    /// An empty cache of about `capacity` bytes over a store.
    pub fn new(store: Arc<dyn StateStore>, capacity: usize) -> Cache<V> {
        Cache {
            store,
            entries: Map::default(),
            overlay: Map::default(),
            dirty: Vec::new(),
            hand: VecDeque::new(),
            flush: 1,
            bytes: 0,
            dirty_bytes: 0,
            capacity,
        }
    }

    /// Loads what is not yet in memory, in one read.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn prefetch(&mut self, keys: &mut Vec<StateKey>) -> Result<(), StateError> {
        keys.retain(|key| !self.entries.contains_key(key));
        keys.sort_unstable();
        keys.dedup();
        if keys.is_empty() {
            return Ok(());
        }
        let references: Vec<&StateKey> = keys.iter().collect();
        let values = self.store.multi_get(&references).map_err(|error| StateError(error.to_string()))?;
        for (key, bytes) in keys.drain(..).zip(values) {
            self.insert_clean(key, bytes.as_deref())?;
        }
        Ok(())
    }

    fn load(&mut self, key: &StateKey) -> Result<(), StateError> {
        let values = self.store.multi_get(&[key]).map_err(|error| StateError(error.to_string()))?;
        let bytes = values.into_iter().next().flatten();
        self.insert_clean(key.clone(), bytes.as_deref())
    }

    /// Never replaces what is there: that is at least as new as the store.
    fn insert_clean(&mut self, key: StateKey, bytes: Option<&[u8]>) -> Result<(), StateError> {
        if self.entries.contains_key(&key) {
            return Ok(());
        }
        let value = bytes.map(|bytes| V::decode(&key, bytes)).transpose()?.map(Arc::new);
        let size = bytes.map_or(0, <[u8]>::len);
        let entry = Entry { value, hash: bytes.map_or(0, content_hash), size, flush: 0, used: true };
        self.bytes += size + ENTRY_OVERHEAD;
        self.hand.push_back(key.clone());
        self.entries.insert(key, entry);
        Ok(())
    }

    /// Gives the running batch's changes up.
    pub fn discard(&mut self) {
        self.overlay.clear();
    }

    /// The running batch's changes, for its changelog record, in an order that only depends on the batch. The overlay stays.
    pub fn changes(&mut self) -> Result<Vec<Change>, StateError> {
        let keys: Vec<StateKey> = self.overlay.keys().cloned().collect();
        let mut changes = Vec::with_capacity(keys.len());
        for key in keys {
            if !self.entries.contains_key(&key) {
                self.load(&key)?;
            }
            let before = self.entries.get(&key).map_or(0, |entry| entry.hash);
            let value = self.overlay.get(&key).and_then(Option::as_ref).map(|value| {
                let mut bytes = Vec::new();
                value.encode(&mut bytes);
                bytes
            });
            let unchanged = value.as_deref().map_or(0, content_hash) == before;
            if !unchanged {
                changes.push(Change { key, value, before });
            }
        }
        Ok(changes)
    }

    /// The log has committed the running batch: its changes become committed state.
    pub fn commit(&mut self, changes: &[Change]) {
        for change in changes {
            let Some(value) = self.overlay.remove(&change.key) else { continue };
            let size = change.value.as_ref().map_or(0, Vec::len);
            let entry = Entry {
                value,
                hash: change.value.as_deref().map_or(0, content_hash),
                size,
                flush: self.flush,
                used: true,
            };
            self.bytes += size + ENTRY_OVERHEAD;
            match self.entries.insert(change.key.clone(), entry) {
                Some(old) => {
                    self.bytes = self.bytes.saturating_sub(old.size + ENTRY_OVERHEAD);
                    if old.flush == self.flush {
                        self.dirty_bytes = self.dirty_bytes.saturating_sub(old.size + ENTRY_OVERHEAD);
                    } else {
                        self.dirty.push(change.key.clone());
                    }
                }
                None => {
                    self.hand.push_back(change.key.clone());
                    self.dirty.push(change.key.clone());
                }
            }
            self.dirty_bytes += size + ENTRY_OVERHEAD;
        }
        self.overlay.clear();
        self.evict();
    }

    /// Bytes that are not in the local store yet and not being written; they bound the replay after a crash.
    pub fn dirty_bytes(&self) -> usize {
        self.dirty_bytes
    }

    /// Bytes in memory, roughly.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes what is dirty for a flush, at a batch boundary. It stays readable.
    pub fn freeze(&mut self) -> Frozen<V> {
        let number = self.flush;
        self.flush += 1;
        self.dirty_bytes = 0;
        let keys = std::mem::take(&mut self.dirty);
        let entries = keys
            .into_iter()
            .filter_map(|key| self.entries.get(&key).map(|entry| (key.clone(), entry.value.clone())))
            .collect();
        Frozen { number, entries }
    }

    /// A flush has returned: what it wrote, and has not changed since, may be evicted.
    pub fn flushed(&mut self, frozen: &Frozen<V>) {
        for (key, _) in &frozen.entries {
            if let Some(entry) = self.entries.get_mut(key)
                && entry.flush <= frozen.number
            {
                entry.flush = 0;
            }
        }
        self.evict();
    }

    /// Drops stored values that were not used lately, until the cache is within its capacity or everything was looked at twice.
    fn evict(&mut self) {
        let mut looks = self.hand.len() * 2;
        while self.bytes > self.capacity && looks > 0 {
            looks -= 1;
            let Some(key) = self.hand.pop_front() else { return };
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            if entry.flush != 0 || std::mem::take(&mut entry.used) {
                self.hand.push_back(key);
                continue;
            }
            self.bytes = self.bytes.saturating_sub(entry.size + ENTRY_OVERHEAD);
            self.entries.remove(&key);
        }
    }
}

impl<V: StateValue> State<V> for Cache<V> {
    fn get(&mut self, key: &StateKey) -> Result<Option<&V>, StateError> {
        if self.overlay.contains_key(key) {
            return Ok(self.overlay.get(key).and_then(Option::as_deref));
        }
        if !self.entries.contains_key(key) {
            self.load(key)?;
        }
        Ok(self.entries.get_mut(key).and_then(|entry| {
            entry.used = true;
            entry.value.as_deref()
        }))
    }

    fn get_mut(&mut self, key: &StateKey) -> Result<Option<&mut V>, StateError> {
        if !self.overlay.contains_key(key) {
            if !self.entries.contains_key(key) {
                self.load(key)?;
            }
            let value = self.entries.get(key).and_then(|entry| entry.value.clone());
            if value.is_none() {
                return Ok(None);
            }
            self.overlay.insert(key.clone(), value);
        }
        Ok(self.overlay.get_mut(key).and_then(Option::as_mut).map(Arc::make_mut))
    }

    fn put(&mut self, key: StateKey, value: V) {
        self.overlay.insert(key, Some(Arc::new(value)));
    }

    fn remove(&mut self, key: StateKey) {
        self.overlay.insert(key, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::memory::MemoryState;
    use millstream_model::key::Kind;
    use millstream_model::proto::StatePosition;

    #[derive(Clone, Debug, PartialEq)]
    struct Text(String);

    impl StateValue for Text {
        fn encode(&self, bytes: &mut Vec<u8>) {
            bytes.extend_from_slice(self.0.as_bytes());
        }
        fn decode(_: &StateKey, bytes: &[u8]) -> Result<Text, StateError> {
            Ok(Text(String::from_utf8(bytes.to_vec()).unwrap()))
        }
    }

    fn key(name: &str) -> StateKey {
        StateKey::new(1, "acme", Kind::Node, name.as_bytes())
    }

    fn text(cache: &mut Cache<Text>, name: &str) -> Option<String> {
        cache.get(&key(name)).unwrap().map(|value| value.0.clone())
    }

    fn committed(cache: &mut Cache<Text>) -> Vec<Change> {
        let changes = cache.changes().unwrap();
        cache.commit(&changes);
        changes
    }

    fn cache(capacity: usize) -> (Arc<MemoryState>, Cache<Text>) {
        let store = Arc::new(MemoryState::default());
        (store.clone(), Cache::new(store, capacity))
    }

    #[test]
    fn a_batch_that_is_given_up_leaves_nothing() {
        let (store, mut cache) = cache(1 << 20);
        cache.put(key("a"), Text("1".into()));
        committed(&mut cache);
        cache.put(key("a"), Text("2".into()));
        cache.get_mut(&key("a")).unwrap().unwrap().0.push('!');
        cache.remove(key("b"));
        assert_eq!(text(&mut cache, "a"), Some("2!".into()));
        cache.discard();
        assert_eq!(text(&mut cache, "a"), Some("1".into()));
        let frozen = cache.freeze();
        frozen.write(&*store, &[], &StatePosition::default()).unwrap();
        assert_eq!(store.multi_get(&[&key("a")]).unwrap(), [Some(b"1".to_vec())]);
    }

    #[test]
    fn changes_carry_the_hash_of_what_was_before() {
        let (_, mut cache) = cache(1 << 20);
        cache.put(key("a"), Text("1".into()));
        assert_eq!(committed(&mut cache)[0].before, 0);
        cache.put(key("a"), Text("2".into()));
        assert_eq!(committed(&mut cache)[0].before, content_hash(b"1"));
        cache.remove(key("a"));
        let changes = committed(&mut cache);
        assert_eq!((changes[0].before, &changes[0].value), (content_hash(b"2"), &None));
        cache.put(key("a"), Text("3".into()));
        assert_eq!(committed(&mut cache)[0].before, 0);
        cache.put(key("a"), Text("3".into()));
        assert!(committed(&mut cache).is_empty(), "what is equal is no change");
    }

    #[test]
    fn what_is_not_stored_yet_is_never_evicted() {
        let (store, mut cache) = cache(3 * ENTRY_OVERHEAD);
        for round in 0..3 {
            for name in ["a", "b", "c", "d", "e", "f"] {
                cache.put(key(name), Text(format!("{name}{round}")));
            }
            committed(&mut cache);
        }
        assert_eq!(text(&mut cache, "a"), Some("a2".into()));
        let frozen = cache.freeze();
        cache.put(key("b"), Text("newer".into()));
        committed(&mut cache);
        frozen.write(&*store, &[], &StatePosition::default()).unwrap();
        cache.flushed(&frozen);
        assert!(cache.bytes() <= 5 * ENTRY_OVERHEAD, "{}", cache.bytes());
        assert_eq!(text(&mut cache, "b"), Some("newer".into()), "changed after the freeze");
        assert_eq!(text(&mut cache, "f"), Some("f2".into()), "read back from the store");
    }

    #[test]
    fn a_deleted_value_stays_deleted_before_and_after_its_flush() {
        let (store, mut cache) = cache(1 << 20);
        store.seed(&key("a"), b"old");
        assert_eq!(text(&mut cache, "a"), Some("old".into()));
        cache.remove(key("a"));
        committed(&mut cache);
        assert_eq!(text(&mut cache, "a"), None);
        let frozen = cache.freeze();
        frozen.write(&*store, &[], &StatePosition::default()).unwrap();
        cache.flushed(&frozen);
        assert_eq!(text(&mut cache, "a"), None);
        assert_eq!(store.multi_get(&[&key("a")]).unwrap(), [None]);
    }
}

//! The layers of a shard's state: overlay → dirty and frozen → clean → local store.
//!
//! **I5, local state never ahead.** What a batch changes is *pending* until the log has committed the batch; only then it becomes *dirty*. A flush
//! *freezes* what is dirty at a batch boundary and writes it, with the position that it leads to, in one write; it stays readable and is not evicted until
//! that write has returned. A batch that is given up drops what is pending, and nothing needs to be wiped.
//!
//! All layers live in one table of slots, each with its key, its committed value and its pending one, so that a record costs one look-up, and lists
//! of what is pending or dirty are lists of slot numbers. A slot carries the number of the flush that will store it: an entry changed
//! again while its flush is under way belongs to the next flush, so that a flush that returns never makes a newer value look stored.

use crate::changes::{Changes, Stored, Totals};
use crate::mutant::{self, Mutant};
use crate::state::{Forget, StateStore, StoreError};
use hashbrown::HashTable;
use millstream_model::id::entry_hash;
use millstream_model::key::StateKey;
use millstream_model::proto::StatePosition;
use millstream_stages::{State, StateError, StateValue};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// What an entry costs beside its key's bytes and its value, as measured (docs/src/design/memory.md): a slot in a vector that is three quarters full on average, its
/// places in the table and in the list of what is dirty, the counts and the rounding of two allocations.
const ENTRY_OVERHEAD: usize = 192;

/// Entries that are looked at, at most, to make room after one batch: twice what a large batch brings. A cache that has to give much back at once, since
/// another shard came, does so over several batches.
const MOST_LOOKS: usize = 200_000;

/// What the running batch makes of an entry.
#[derive(Debug)]
enum Pending<V> {
    Unchanged,
    Put(Arc<V>),
    Removed,
}

/// A key, its committed value (present or known to be absent) and its pending one.
#[derive(Debug)]
struct Slot<V> {
    key: StateKey,
    key_hash: u64,
    value: Option<Arc<V>>,
    pending: Pending<V>,
    /// Of the committed value.
    stored: Stored,
    /// Memory for all of it, with the committed value, in bytes.
    cost: usize,
    /// The flush that will store it; 0 when it is stored.
    flush: u64,
    /// Used since the eviction hand last came by.
    used: bool,
    /// The committed value was looked up: false only while a batch has set a value that it never read.
    known: bool,
}

/// Memory for an entry, in bytes.
fn cost<V: StateValue>(key: &StateKey, value: Option<&V>, stored: Stored) -> usize {
    ENTRY_OVERHEAD + key.as_bytes().len() + value.map_or(0, |value| value.memory(stored.size))
}

/// What a flush writes.
#[derive(Debug)]
pub struct Frozen<V> {
    number: u64,
    forget: Option<Forget>,
    entries: Vec<FrozenEntry<V>>,
}

#[derive(Debug)]
struct FrozenEntry<V> {
    slot: u32,
    key: StateKey,
    value: Option<Arc<V>>,
}

/// What is to be stored under a key; `None`: nothing.
enum Stores<'a, V> {
    Value(Option<&'a V>),
    Bytes(Option<&'a [u8]>),
}

impl<V: StateValue> Frozen<V> {
    /// Writes the frozen entries, `more` entries that are not in the cache (`None`: gone), and the position that all of them lead to.
    ///
    /// # Errors
    /// [`StoreError`]: the entries stay dirty; the shard must be opened again.
    pub fn write(
        &self,
        store: &dyn StateStore,
        more: &[(StateKey, Option<Vec<u8>>)],
        position: &StatePosition,
    ) -> Result<(), StoreError> {
        let mut sorted: Vec<(&StateKey, Stores<'_, V>)> =
            self.entries.iter().map(|entry| (&entry.key, Stores::Value(entry.value.as_deref()))).collect();
        sorted.extend(more.iter().map(|(key, bytes)| (key, Stores::Bytes(bytes.as_deref()))));
        sorted.sort_unstable_by(|a, b| a.0.cmp(b.0));
        let mut encoded = Vec::new();
        let mut entries = |each: &mut dyn FnMut(&StateKey, Option<&[u8]>)| {
            for (key, stores) in &sorted {
                encoded.clear();
                match stores {
                    Stores::Bytes(bytes) => each(key, *bytes),
                    Stores::Value(None) => each(key, None),
                    Stores::Value(Some(value)) => {
                        value.encode(&mut encoded);
                        each(key, Some(&encoded));
                    }
                }
            }
        };
        store.write_sorted(self.forget.as_ref(), &mut entries, position)
    }
}

/// The running batch's changes: written before the commit, taken over after it.
#[derive(Debug)]
pub struct BatchChanges {
    /// For the changelog.
    pub changes: Changes,
    /// The state's totals after them.
    pub totals: Totals,
    /// Of each changed slot.
    stored: Vec<(u32, Stored)>,
}

/// A shard's state in memory, over its local store.
pub struct Cache<V> {
    store: Arc<dyn StateStore>,
    slots: Vec<Option<Slot<V>>>,
    free: Vec<u32>,
    index: HashTable<u32>,
    /// Slots with a pending change.
    pending: Vec<u32>,
    /// What they cost before it.
    pending_bytes: usize,
    /// Periods by which nothing was kept before the running batch.
    pending_periods: Vec<u32>,
    /// Slots of the current flush number, each once.
    dirty: Vec<u32>,
    /// What is to be forgotten with the current flush.
    forget: Option<Forget>,
    /// Where the eviction hand stands.
    hand: usize,
    flush: u64,
    bytes: usize,
    dirty_bytes: usize,
    /// Of the flush under way.
    frozen_bytes: usize,
    /// Of what has been replaced since, which only the flush still holds.
    held_bytes: usize,
    capacity: usize,
    /// Of the last batch's changes, for the room of the next ones.
    block_bytes: usize,
    totals: Totals,
}

impl<V: StateValue> Cache<V> {
    /// An empty cache of about `capacity` bytes over a store whose contents have these totals.
    pub fn new(store: Arc<dyn StateStore>, capacity: usize, totals: Totals) -> Cache<V> {
        Cache {
            store,
            slots: Vec::new(),
            free: Vec::new(),
            index: HashTable::new(),
            pending: Vec::new(),
            pending_bytes: 0,
            pending_periods: Vec::new(),
            dirty: Vec::new(),
            forget: None,
            hand: 0,
            flush: 1,
            bytes: 0,
            dirty_bytes: 0,
            frozen_bytes: 0,
            held_bytes: 0,
            capacity,
            block_bytes: 0,
            totals,
        }
    }

    fn find(&self, key: &StateKey, key_hash: u64) -> Option<u32> {
        let is_it = |number: &u32| self.slot(*number).is_some_and(|slot| slot.key == *key);
        self.index.find(key_hash, is_it).copied()
    }

    fn slot(&self, number: u32) -> Option<&Slot<V>> {
        self.slots.get(number as usize)?.as_ref()
    }

    fn slot_mut(&mut self, number: u32) -> Option<&mut Slot<V>> {
        self.slots.get_mut(number as usize)?.as_mut()
    }

    /// A new slot of a key that has none.
    fn insert(&mut self, slot: Slot<V>) -> u32 {
        self.bytes += slot.cost;
        let key_hash = slot.key_hash;
        let number = match self.free.pop() {
            Some(number) => number,
            None => {
                self.slots.push(None);
                (self.slots.len() - 1) as u32
            }
        };
        if let Some(place) = self.slots.get_mut(number as usize) {
            *place = Some(slot);
        }
        let slots = &self.slots;
        let hash_of = |number: &u32| {
            slots.get(*number as usize).and_then(Option::as_ref).map_or(0, |slot: &Slot<V>| slot.key_hash)
        };
        self.index.insert_unique(key_hash, number, hash_of);
        number
    }

    fn drop_slot(&mut self, number: u32) {
        let Some(slot) = self.slots.get_mut(number as usize).and_then(Option::take) else { return };
        self.bytes = self.bytes.saturating_sub(slot.cost);
        if let Ok(entry) = self.index.find_entry(slot.key_hash, |other| *other == number) {
            entry.remove();
        }
        self.free.push(number);
    }

    /// Loads what is not yet in memory, in one read.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn prefetch(&mut self, keys: &mut Vec<StateKey>) -> Result<(), StateError> {
        keys.retain(|key| mutant::is(Mutant::LateReadWins) || self.find(key, xxh3_64(key.as_bytes())).is_none());
        keys.sort_unstable();
        keys.dedup();
        if keys.is_empty() {
            return Ok(());
        }
        let references: Vec<&StateKey> = keys.iter().collect();
        let values = self.store.multi_get(&references).map_err(|error| StateError::Io(error.to_string()))?;
        for (key, bytes) in keys.drain(..).zip(values) {
            let key_hash = xxh3_64(key.as_bytes());
            if let Some(number) = self.find(&key, key_hash).filter(|_| mutant::is(Mutant::LateReadWins)) {
                let (value, stored) = decode::<V>(&key, bytes.as_deref())?;
                if let Some(slot) = self.slot_mut(number) {
                    (slot.value, slot.stored) = (value, stored);
                }
                continue;
            }
            self.insert_clean(key, key_hash, bytes.as_deref())?;
        }
        // Now and not only after the batch: what a large batch reads would be beyond the bound.
        self.evict(1);
        Ok(())
    }

    fn load(&mut self, key: &StateKey, key_hash: u64) -> Result<u32, StateError> {
        let values = self.store.multi_get(&[key]).map_err(|error| StateError::Io(error.to_string()))?;
        let bytes = values.into_iter().next().flatten();
        self.insert_clean(key.clone(), key_hash, bytes.as_deref())
    }

    /// Only for a key that has no slot: what is there is at least as new as the store.
    fn insert_clean(&mut self, key: StateKey, key_hash: u64, bytes: Option<&[u8]>) -> Result<u32, StateError> {
        let (value, stored) = decode(&key, bytes)?;
        let (pending, cost) = (Pending::Unchanged, cost(&key, value.as_deref(), stored));
        Ok(self.insert(Slot { key, key_hash, value, pending, stored, cost, flush: 0, used: true, known: true }))
    }

    /// The slot of a key, loaded when it must be.
    fn loaded(&mut self, key: &StateKey) -> Result<u32, StateError> {
        let key_hash = xxh3_64(key.as_bytes());
        match self.find(key, key_hash) {
            Some(number) => Ok(number),
            None => self.load(key, key_hash),
        }
    }

    /// Sets what the running batch makes of a key, without reading it.
    fn set(&mut self, key: StateKey, pending: Pending<V>) {
        let key_hash = xxh3_64(key.as_bytes());
        if let Some(period) = key.period().filter(|period| !self.has_period(*period)) {
            self.pending_periods.push(period);
        }
        let number = match self.find(&key, key_hash) {
            Some(number) => number,
            None => {
                let (stored, pending) = (Stored { hash: 0, size: 0 }, Pending::Unchanged);
                let (value, cost) = (None, cost::<V>(&key, None, stored));
                self.insert(Slot { key, key_hash, value, pending, stored, cost, flush: 0, used: true, known: false })
            }
        };
        let Some(slot) = self.slot_mut(number) else { return };
        if matches!(std::mem::replace(&mut slot.pending, pending), Pending::Unchanged) {
            let cost = slot.cost;
            self.pending.push(number);
            self.pending_bytes += cost;
        }
    }

    fn has_period(&self, period: u32) -> bool {
        self.totals.has(period) || self.pending_periods.contains(&period)
    }

    /// Gives the running batch's changes up.
    pub fn discard(&mut self) {
        self.pending_periods.clear();
        self.pending_bytes = 0;
        for number in std::mem::take(&mut self.pending) {
            let Some(slot) = self.slot_mut(number) else { continue };
            slot.pending = Pending::Unchanged;
            if !slot.known {
                self.drop_slot(number);
            }
        }
    }

    /// The running batch's changes, in the order in which they were first touched, after everything of an earlier period than `forget_before` has gone.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn changes(&mut self, forget_before: u32) -> Result<BatchChanges, StateError> {
        self.learn_before_images()?;
        let room = self.block_bytes + self.block_bytes / 8;
        let (mut changes, mut totals) = (Changes::with_capacity(room), self.totals.clone());
        totals.forget_before(forget_before);
        let mut stored = Vec::with_capacity(self.pending.len());
        for &number in &self.pending {
            let Some(slot) = self.slots.get(number as usize).and_then(Option::as_ref) else { continue };
            let before = slot.stored.hash;
            let changed = match &slot.pending {
                Pending::Unchanged => None,
                Pending::Put(value) => changes.put(&slot.key, before, |bytes| value.encode(bytes)),
                Pending::Removed => changes.remove(&slot.key, before),
            };
            if let Some(changed) = changed {
                totals.change(slot.key.period(), before, changed.hash);
                stored.push((number, changed));
            }
        }
        self.block_bytes = changes.size();
        Ok(BatchChanges { changes, totals, stored })
    }

    /// Reads the committed values of keys that the batch has set without reading them.
    fn learn_before_images(&mut self) -> Result<(), StateError> {
        let unknown = |number: &u32| self.slot(*number).filter(|slot| !slot.known).map(|slot| slot.key.clone());
        let (numbers, keys): (Vec<u32>, Vec<StateKey>) =
            self.pending.iter().filter_map(|number| Some((*number, unknown(number)?))).unzip();
        if keys.is_empty() {
            return Ok(());
        }
        let references: Vec<&StateKey> = keys.iter().collect();
        let values = self.store.multi_get(&references).map_err(|error| StateError::Io(error.to_string()))?;
        for ((number, key), bytes) in numbers.into_iter().zip(&keys).zip(values) {
            let (value, stored) = decode::<V>(key, bytes.as_deref())?;
            let cost = cost(key, value.as_deref(), stored);
            let Some(slot) = self.slot_mut(number) else { continue };
            let old = std::mem::replace(&mut slot.cost, cost);
            (slot.value, slot.stored, slot.known) = (value, stored, true);
            self.bytes = (self.bytes + cost).saturating_sub(old);
        }
        Ok(())
    }

    /// The log has committed the running batch: its changes become committed state.
    pub fn commit(&mut self, batch: BatchChanges, forget: Option<Forget>) {
        self.totals = batch.totals;
        if let Some(forget) = forget {
            self.forget(forget);
        }
        let flush = self.flush;
        for (number, stored) in batch.stored {
            let Some(slot) = self.slot_mut(number) else { continue };
            slot.value = match std::mem::replace(&mut slot.pending, Pending::Unchanged) {
                Pending::Put(value) => Some(value),
                Pending::Removed | Pending::Unchanged => None,
            };
            slot.stored = stored;
            let cost = cost(&slot.key, slot.value.as_deref(), stored);
            let old = std::mem::replace(&mut slot.cost, cost);
            let before = std::mem::replace(&mut slot.flush, flush);
            let (was_dirty, is_being_written) = (before == flush, before != 0 && before != flush);
            slot.used = true;
            if is_being_written {
                self.held_bytes += old;
            }
            self.bytes = (self.bytes + cost).saturating_sub(old);
            self.dirty_bytes += cost;
            if was_dirty {
                self.dirty_bytes = self.dirty_bytes.saturating_sub(old);
            } else {
                self.dirty.push(number);
            }
        }
        // What is left was set to what it was before.
        self.discard();
        self.evict(2);
    }

    /// Entries of earlier periods go, here now and in the store with the next flush.
    fn forget(&mut self, forget: Forget) {
        let is_old = |slot: &Slot<V>| slot.key.period().is_some_and(|period| period < forget.before);
        let old = (0..).zip(&self.slots).filter(|(_, slot)| slot.as_ref().is_some_and(is_old));
        for number in old.map(|(number, _)| number).collect::<Vec<u32>>() {
            let Some(slot) = self.slot(number) else { continue };
            if slot.flush == self.flush {
                self.dirty_bytes = self.dirty_bytes.saturating_sub(slot.cost);
            }
            self.drop_slot(number);
        }
        let slots = &self.slots;
        self.dirty.retain(|number| slots.get(*number as usize).is_some_and(Option::is_some));
        self.forget = Some(forget);
    }

    /// Bytes that are not in the local store yet and not being written; they bound the replay after a crash.
    pub fn dirty_bytes(&self) -> usize {
        self.dirty_bytes
    }

    /// What no longer fits goes at once, as far as it may.
    pub fn set_capacity(&mut self, bytes: usize) {
        if std::mem::replace(&mut self.capacity, bytes) > bytes {
            self.evict(1);
        }
    }

    /// Bytes in memory, as measured rather than as stored; those of the running batch's changes come to it when it is committed.
    pub fn bytes(&self) -> usize {
        self.bytes + self.held_bytes
    }

    /// Of these, what the store has.
    fn clean_bytes(&self) -> usize {
        self.bytes().saturating_sub(self.dirty_bytes + self.frozen_bytes + self.held_bytes)
    }

    /// What the running batch changes, as far as it was loaded: what it makes of it may be as large, and nothing of either can go before the batch has ended.
    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// Keys of committed entries in memory for which this holds.
    pub fn keys(&self, holds: impl Fn(&StateKey) -> bool) -> Vec<StateKey> {
        let there = self.slots.iter().flatten().filter(|slot| slot.value.is_some() && holds(&slot.key));
        there.map(|slot| slot.key.clone()).collect()
    }

    /// Sums over the committed state.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Takes what is dirty for a flush, at a batch boundary. It stays readable.
    pub fn freeze(&mut self) -> Frozen<V> {
        let number = self.flush;
        self.flush += 1;
        self.frozen_bytes = std::mem::take(&mut self.dirty_bytes);
        let entry = |number: u32| {
            let slot = self.slot(number)?;
            Some(FrozenEntry { slot: number, key: slot.key.clone(), value: slot.value.clone() })
        };
        let entries = self.dirty.iter().copied().filter_map(entry).collect();
        self.dirty.clear();
        Frozen { number, forget: self.forget.take(), entries }
    }

    /// A flush has returned: what it wrote, and has not changed since, may be evicted.
    pub fn flushed(&mut self, frozen: &Frozen<V>) {
        (self.frozen_bytes, self.held_bytes) = (0, 0);
        for entry in &frozen.entries {
            if let Some(slot) = self.slot_mut(entry.slot)
                && slot.flush <= frozen.number
                && slot.key == entry.key
            {
                slot.flush = 0;
            }
        }
        self.evict(2);
    }

    /// Drops stored values that were not used lately, until the cache is within its capacity or everything was looked at so many times. What is looked at once
    /// and was used since the time before stays, so that one pass leaves what the running batch has just loaded.
    fn evict(&mut self, passes: usize) {
        if self.clean_bytes() <= self.capacity / 16 {
            // Hardly anything can go before the flush has returned.
            return;
        }
        let mut looks = (self.slots.len() * passes).min(MOST_LOOKS);
        while self.bytes() > self.capacity && looks > 0 {
            looks -= 1;
            self.hand = if self.hand + 1 < self.slots.len() { self.hand + 1 } else { 0 };
            let Some(Some(slot)) = self.slots.get_mut(self.hand) else { continue };
            let is_stored = slot.flush == 0 && matches!(slot.pending, Pending::Unchanged);
            if is_stored && !std::mem::take(&mut slot.used) {
                self.drop_slot(self.hand as u32);
            }
        }
    }
}

fn decode<V: StateValue>(key: &StateKey, bytes: Option<&[u8]>) -> Result<(Option<Arc<V>>, Stored), StateError> {
    let Some(bytes) = bytes else { return Ok((None, Stored { hash: 0, size: 0 })) };
    let stored = Stored { hash: entry_hash(key.as_bytes(), bytes), size: bytes.len() };
    Ok((Some(Arc::new(V::decode(key, bytes)?)), stored))
}

impl<V: StateValue> State<V> for Cache<V> {
    fn get(&mut self, key: &StateKey) -> Result<Option<&V>, StateError> {
        let number = self.loaded(key)?;
        let Some(slot) = self.slot_mut(number) else { return Ok(None) };
        slot.used = true;
        Ok(match &slot.pending {
            Pending::Unchanged => slot.value.as_deref(),
            Pending::Put(value) => Some(value),
            Pending::Removed => None,
        })
    }

    fn get_mut(&mut self, key: &StateKey) -> Result<Option<&mut V>, StateError> {
        let number = self.loaded(key)?;
        let Some(slot) = self.slots.get_mut(number as usize).and_then(Option::as_mut) else { return Ok(None) };
        slot.used = true;
        if let (Pending::Unchanged, Some(value)) = (&slot.pending, &slot.value) {
            slot.pending = Pending::Put(value.clone());
            self.pending.push(number);
            self.pending_bytes += slot.cost;
        }
        Ok(match &mut slot.pending {
            Pending::Put(value) => Some(Arc::make_mut(value)),
            Pending::Unchanged | Pending::Removed => None,
        })
    }

    fn put(&mut self, key: StateKey, value: V) {
        self.set(key, Pending::Put(Arc::new(value)));
    }

    fn remove(&mut self, key: StateKey) {
        self.set(key, Pending::Removed);
    }

    fn periods(&self) -> Vec<u32> {
        let mut periods: Vec<u32> = self.totals.numbers().chain(self.pending_periods.iter().copied()).collect();
        periods.sort_unstable();
        periods
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::changes::{Change, read};
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

    /// Commits what is pending; gives the changes as (value, hash before).
    fn committed(cache: &mut Cache<Text>) -> Vec<(Option<String>, u64)> {
        forgetting(cache, 0)
    }

    fn forgetting(cache: &mut Cache<Text>, before: u32) -> Vec<(Option<String>, u64)> {
        let mut batch = cache.changes(before).unwrap();
        let block = std::mem::take(&mut batch.changes).into_block();
        cache.commit(batch, (before > 0).then_some(Forget { groups: 0..4096, before }));
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let change = |change: Result<Change<'_>, _>| change.map(|c| (c.value.map(text), c.before)).unwrap();
        read(&block).map(change).collect()
    }

    fn flush(cache: &mut Cache<Text>, store: &MemoryState) {
        let frozen = cache.freeze();
        frozen.write(store, &[], &StatePosition::default()).unwrap();
        cache.flushed(&frozen);
    }

    fn cache(capacity: usize) -> (Arc<MemoryState>, Cache<Text>) {
        let store = Arc::new(MemoryState::default());
        (store.clone(), Cache::new(store, capacity, Totals::default()))
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
        let hash = |value: &str| entry_hash(key("a").as_bytes(), value.as_bytes());
        assert_eq!(committed(&mut cache), [(Some("1".into()), 0)]);
        cache.put(key("a"), Text("2".into()));
        assert_eq!(committed(&mut cache), [(Some("2".into()), hash("1"))]);
        assert_eq!(cache.totals().digest, hash("2"));
        cache.remove(key("a"));
        assert_eq!(committed(&mut cache), [(None, hash("2"))]);
        assert_eq!(cache.totals().digest, 0);
        cache.put(key("a"), Text("3".into()));
        assert_eq!(committed(&mut cache), [(Some("3".into()), 0)]);
        cache.put(key("a"), Text("3".into()));
        assert!(committed(&mut cache).is_empty(), "what is equal is no change");
    }

    #[test]
    fn without_room_nothing_that_is_stored_stays() {
        let (store, mut cache) = cache(0);
        cache.put(key("a"), Text("1".into()));
        committed(&mut cache);
        assert!(cache.bytes() > 0, "it is not stored yet");
        flush(&mut cache, &store);
        assert_eq!(cache.bytes(), 0);
        // Also while something else waits to be stored.
        cache.put(key("b"), Text("2".into()));
        committed(&mut cache);
        let waits = cache.bytes();
        assert_eq!(text(&mut cache, "a"), Some("1".into()));
        committed(&mut cache);
        assert_eq!(cache.bytes(), waits, "what was read has gone with the batch");
    }

    #[test]
    fn what_a_batch_changes_is_counted_until_it_ends() {
        let (_, mut cache) = cache(1 << 20);
        cache.put(key("a"), Text("1".into()));
        committed(&mut cache);
        assert_eq!(cache.pending_bytes(), 0);
        cache.get_mut(&key("a")).unwrap().unwrap().0.push('!');
        let once = cache.pending_bytes();
        assert!(once > 0);
        cache.get_mut(&key("a")).unwrap().unwrap().0.push('!');
        assert_eq!(cache.pending_bytes(), once);
        cache.remove(key("b"));
        assert!(cache.pending_bytes() > once);
        cache.discard();
        assert_eq!(cache.pending_bytes(), 0);
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
    fn a_batch_that_reads_more_than_the_cache_holds_keeps_its_changes_and_little_else() {
        let (store, mut cache) = cache(10 * ENTRY_OVERHEAD);
        let names: Vec<String> = (0..400).map(|number| number.to_string()).collect();
        names.iter().for_each(|name| store.seed(&key(name), b"old"));
        for frame in names.chunks(4) {
            cache.prefetch(&mut frame.iter().map(|name| key(name)).collect()).unwrap();
            cache.get_mut(&key(&frame[0])).unwrap().unwrap().0.push('!');
        }
        assert!(cache.bytes() < 120 * (ENTRY_OVERHEAD + 64), "the changed ones and a few: {}", cache.bytes());
        assert_eq!(committed(&mut cache).len(), 100);
        assert_eq!((text(&mut cache, "0"), text(&mut cache, "1")), (Some("old!".into()), Some("old".into())));
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

    #[test]
    fn what_a_batch_sets_without_reading_it_is_compared_with_the_store_and_leaves_nothing_when_given_up() {
        let (store, mut cache) = cache(1 << 20);
        store.seed(&key("a"), b"old");
        cache.put(key("a"), Text("new".into()));
        cache.discard();
        assert_eq!(text(&mut cache, "a"), Some("old".into()));
        let (_, mut cache) = (0, Cache::new(store, 1 << 20, Totals::default()));
        cache.put(key("a"), Text("new".into()));
        cache.put(key("b"), Text("b".into()));
        let before = entry_hash(key("a").as_bytes(), b"old");
        assert_eq!(committed(&mut cache), [(Some("new".into()), before), (Some("b".into()), 0)]);
    }

    #[test]
    fn what_is_forgotten_with_its_period_is_gone_from_memory_store_and_totals() {
        let (store, mut cache) = cache(1 << 20);
        let kept_by = |period: u32, name: &str| StateKey::in_period(1, Kind::Seen, period, "acme", name.as_bytes());
        cache.put(key("a"), Text("a".into()));
        committed(&mut cache);
        let without = cache.totals().clone();
        cache.put(kept_by(5, "stored"), Text("1".into()));
        committed(&mut cache);
        flush(&mut cache, &store);
        cache.put(kept_by(6, "dirty"), Text("2".into()));
        committed(&mut cache);
        assert_eq!(cache.periods(), [5, 6]);
        cache.put(kept_by(9, "new"), Text("3".into()));
        forgetting(&mut cache, 9);
        assert_eq!(cache.periods(), [9]);
        flush(&mut cache, &store);
        let all = [kept_by(5, "stored"), kept_by(6, "dirty"), kept_by(9, "new"), key("a")];
        let found = store.multi_get(&all.iter().collect::<Vec<_>>()).unwrap();
        assert_eq!(found.iter().map(Option::is_some).collect::<Vec<_>>(), [false, false, true, true]);
        assert!(cache.get(&kept_by(6, "dirty")).unwrap().is_none());
        cache.remove(kept_by(9, "new"));
        committed(&mut cache);
        assert_eq!(cache.totals().digest, without.digest);
    }
}

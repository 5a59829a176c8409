//! Going through everything that a shard keeps of some tenants, a part with each batch.
//!
//! What becomes of an entry is the stage's to say ([`Stage::sweep`]), in the batch's transaction like what a record leads to; this says which entry comes next. Contract with the stage: it makes no
//! further entry of such a tenant that is to be swept. Then one pass meets all of them: what is in memory when it begins is listed, and whatever is not in memory then is in the local store, which is read in the order of its keys.
//!
//! Nothing of it is recorded: an owner that is new begins anew, and finds what is left.

use crate::cache::Cache;
use crate::state::{StateStore, StoreError};
use millstream_model::key::StateKey;
use millstream_stages::StateValue;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

/// Entries of a batch: each may be a user of hundreds of kilobytes, and what it leads to a message.
const ENTRIES: usize = 200;
/// Key groups that are looked into for a batch: each costs a seek, whether there is anything or not.
const GROUPS: usize = 256;

/// A pass over the state of some tenants.
#[derive(Debug, Default)]
pub(crate) struct Sweep {
    tenants: Arc<BTreeMap<String, u64>>,
    /// In memory when it began.
    listed: Vec<StateKey>,
    /// Prefixes that are still to be read in the local store.
    prefixes: VecDeque<Vec<u8>>,
    /// The last key that was read below the first of them.
    after: Option<StateKey>,
}

impl Sweep {
    /// Begins anew when these are not the tenants of the last pass.
    pub(crate) fn of<V: StateValue>(
        &mut self,
        tenants: &Arc<BTreeMap<String, u64>>,
        groups: Range<u16>,
        cache: &Cache<V>,
    ) {
        if Arc::ptr_eq(&self.tenants, tenants) || self.tenants == *tenants {
            return;
        }
        let is_its = |key: &StateKey| key.parts().is_some_and(|(tenant, ..)| tenants.contains_key(tenant));
        let prefix = |group: u16, tenant: &str| [&group.to_be_bytes(), tenant.as_bytes(), &[0]].concat();
        let prefixes = groups.flat_map(|group| tenants.keys().map(move |tenant| prefix(group, tenant)));
        *self =
            Sweep { tenants: tenants.clone(), listed: cache.keys(is_its), prefixes: prefixes.collect(), after: None };
    }

    /// Everything was gone through.
    pub(crate) fn is_done(&self) -> bool {
        self.listed.is_empty() && self.prefixes.is_empty()
    }

    /// What comes next. It counts as gone through: a batch that is given up takes its shard with it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn next(&mut self, store: &dyn StateStore) -> Result<Vec<StateKey>, StoreError> {
        let mut keys = self.listed.split_off(self.listed.len().saturating_sub(ENTRIES));
        for _ in 0..GROUPS {
            let Some(prefix) = self.prefixes.front().filter(|_| keys.len() < ENTRIES) else { break };
            let most = ENTRIES - keys.len();
            let found = store.keys(prefix, self.after.as_ref(), most)?;
            let has_more = found.len() == most;
            self.after = found.last().cloned().filter(|_| has_more);
            keys.extend(found);
            if !has_more {
                self.prefixes.pop_front();
            }
        }
        Ok(keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::changes::Totals;
    use crate::state::memory::MemoryState;
    use millstream_model::key::Kind;
    use millstream_stages::{State as _, StateError};
    use std::collections::BTreeSet;

    #[derive(Clone)]
    struct Number(u8);

    impl StateValue for Number {
        fn encode(&self, bytes: &mut Vec<u8>) {
            bytes.push(self.0);
        }
        fn decode(_: &StateKey, bytes: &[u8]) -> Result<Number, StateError> {
            Ok(Number(bytes[0]))
        }
    }

    fn key(group: u16, tenant: &str, number: u32) -> StateKey {
        StateKey::new(group, tenant, Kind::Node, &number.to_be_bytes())
    }

    /// More than a batch takes, in memory and in the store, beside another tenant whose name begins likewise.
    #[test]
    fn a_pass_meets_every_entry_of_its_tenants_once_or_twice_and_none_of_others() {
        let store = Arc::new(MemoryState::default());
        let mut expected = BTreeSet::new();
        for number in 0..ENTRIES as u32 * 3 {
            for (group, tenant) in [(0, "acme"), (900, "acme"), (1023, "globex"), (1024, "acme"), (5, "acmes")] {
                store.seed(&key(group, tenant, number), &[1]);
                if tenant != "acmes" && group < 1024 {
                    expected.insert(key(group, tenant, number));
                }
            }
        }
        let mut cache: Cache<Number> = Cache::new(store.clone(), 1 << 20, Totals::default());
        for number in 0..ENTRIES as u32 * 2 {
            cache.put(key(7, "acme", number), Number(2));
            cache.put(key(7, "other", number), Number(2));
            expected.insert(key(7, "acme", number));
        }
        let changes = cache.changes(0).unwrap();
        cache.commit(changes, None);
        let mut sweep = Sweep::default();
        assert!(sweep.is_done());
        let tenants = Arc::new([("acme".to_owned(), 1), ("globex".to_owned(), 1)].into());
        sweep.of(&tenants, 0..1024, &cache);
        let (mut met, mut times) = (BTreeSet::new(), 0);
        while !sweep.is_done() {
            let keys = sweep.next(&*store).unwrap();
            assert!(keys.len() <= ENTRIES);
            times += keys.len();
            met.extend(keys);
            // The same tenants again are nothing new.
            sweep.of(&Arc::new((*tenants).clone()), 0..1024, &cache);
        }
        assert_eq!((met.len(), times), (expected.len(), expected.len()));
        assert!(met == expected);
        sweep.of(&Arc::new([("acme".to_owned(), 2)].into()), 0..1024, &cache);
        assert!(!sweep.is_done(), "this is another time");
        sweep.of(&Arc::default(), 0..1024, &cache);
        assert!(sweep.is_done());
    }
}

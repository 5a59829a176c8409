//! The sums of each tenant (I2): state of the shard like any other, committed with the batch, kept in memory as a whole.
//!
//! They lie under the shard's first key group, so that a shard finds them without looking through the others.

use crate::ShardError;
use crate::changes::{Changes, Totals};
use crate::state::StateStore;
use millstream_model::id::entry_hash;
use millstream_model::key::{Kind, StateKey};
use millstream_model::proto::Usage;
use prost::Message as _;
use std::collections::BTreeMap;

/// The sums of a shard's tenants.
#[derive(Debug)]
pub struct Sums {
    group: u16,
    all: BTreeMap<String, Usage>,
}

impl Sums {
    /// Those in the store, for a shard with this first key group.
    ///
    /// # Errors
    /// [`ShardError`].
    pub fn load(store: &dyn StateStore, group: u16) -> Result<Sums, ShardError> {
        let mut all = BTreeMap::new();
        let mut unreadable = None;
        store.scan(&group.to_be_bytes(), &mut |key, value| {
            if let Some((tenant, Kind::Usage, _)) = key.parts() {
                match Usage::decode(value) {
                    Ok(sums) => drop(all.insert(tenant.to_owned(), sums)),
                    Err(error) => unreadable = Some(ShardError::Stopped(format!("sums of {tenant}: {error}"))),
                }
            }
        })?;
        unreadable.map_or(Ok(Sums { group, all }), Err)
    }

    fn key(&self, tenant: &str) -> StateKey {
        StateKey::new(self.group, tenant, Kind::Usage, &[])
    }

    /// Each concerned tenant's new sums, which are added to a batch's changes.
    pub fn add(
        &self,
        deltas: BTreeMap<String, Usage>,
        changes: &mut Changes,
        totals: &mut Totals,
    ) -> BTreeMap<String, Usage> {
        let mut new = BTreeMap::new();
        for (tenant, delta) in deltas {
            let (key, old) = (self.key(&tenant), self.all.get(&tenant));
            let before = old.map_or(0, |old| entry_hash(key.as_bytes(), &old.encode_to_vec()));
            let mut sum = old.copied().unwrap_or_default();
            sum += &delta;
            if let Some(stored) = changes.put(&key, before, |bytes| sum.encode_raw(bytes)) {
                totals.change(None, before, stored.hash);
            }
            new.insert(tenant, sum);
        }
        new
    }

    /// The batch was committed.
    pub fn commit(&mut self, new: &BTreeMap<String, Usage>) {
        self.all.extend(new.iter().map(|(tenant, sums)| (tenant.clone(), *sums)));
    }

    /// As committed.
    pub fn all(&self) -> &BTreeMap<String, Usage> {
        &self.all
    }

    /// As entries of the state store.
    pub fn entries(&self) -> Vec<(StateKey, Vec<u8>)> {
        self.all.iter().map(|(tenant, usage)| (self.key(tenant), usage.encode_to_vec())).collect()
    }
}

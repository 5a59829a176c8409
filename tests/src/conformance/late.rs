//! A document store whose writes take effect after their time-out.

use millstream_model::document::Document;
use millstream_model::proto::Mutation;
use millstream_shard::documents::{DocumentError, DocumentStore, Outcome};
use std::sync::{Arc, Mutex};

/// Wraps a store. While it is [`Late::delay`]ed, writes are kept aside and reported as [`Outcome::Retry`], as a time-out is; [`Late::land`]
/// lets them take effect in the store, whatever has been written since.
pub struct Late {
    store: Arc<dyn DocumentStore>,
    waiting: Mutex<Option<Vec<Vec<Mutation>>>>,
}

impl Late {
    /// A store whose writes are not delayed yet.
    pub fn new(store: Arc<dyn DocumentStore>) -> Late {
        Late { store, waiting: Mutex::new(None) }
    }

    /// From now on, writes time out.
    pub fn delay(&self) {
        self.waiting.lock().unwrap().get_or_insert_default();
    }

    /// From now on, writes are not delayed any more; those that timed out are still on their way.
    pub fn recover(&self) -> Vec<Vec<Mutation>> {
        self.waiting.lock().unwrap().take().unwrap_or_default()
    }

    /// Lets a write that timed out take effect; what became of it, which nobody waits for any more.
    pub fn land(&self, write: &[Mutation]) -> Vec<Outcome> {
        self.store.write(write)
    }
}

impl DocumentStore for Late {
    fn prepare(&self, collections: &[&str]) -> Result<(), DocumentError> {
        self.store.prepare(collections)
    }

    fn write(&self, mutations: &[Mutation]) -> Vec<Outcome> {
        if let Some(waiting) = self.waiting.lock().unwrap().as_mut() {
            waiting.push(mutations.to_vec());
            return mutations.iter().map(|_| Outcome::Retry("timed out".to_owned())).collect();
        }
        self.store.write(mutations)
    }

    fn get(&self, tenant: &str, collection: &str, id: &str) -> Result<Option<Document>, DocumentError> {
        self.store.get(tenant, collection, id)
    }

    fn scan(
        &self,
        tenant: &str,
        collection: &str,
        each: &mut dyn FnMut(&str, Document) -> bool,
    ) -> Result<(), DocumentError> {
        self.store.scan(tenant, collection, each)
    }
}

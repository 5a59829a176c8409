//! A document store that need not be there when the process starts, as the log need not: it is connected to when it can be reached.
//!
//! Until then it is unavailable, which the reaction stage answers by trying again; what is wrong with its configuration is said at the start.

use millstream_model::document::Document;
use millstream_model::proto::Mutation;
use millstream_shard::documents::{DocumentError, DocumentStore, Outcome};
use std::sync::{Arc, Mutex, PoisonError};

/// Connects.
type Connect = Box<dyn Fn() -> Result<Arc<dyn DocumentStore>, DocumentError> + Send + Sync>;

/// A document store that is connected to when it is first needed and there.
pub(super) struct LateDocuments {
    connect: Connect,
    connected: Mutex<Option<Arc<dyn DocumentStore>>>,
}

impl LateDocuments {
    /// Tries once.
    ///
    /// # Errors
    /// [`DocumentError::Configuration`]: it will never be there.
    pub(super) fn open(
        connect: impl Fn() -> Result<Arc<dyn DocumentStore>, DocumentError> + Send + Sync + 'static,
    ) -> Result<LateDocuments, DocumentError> {
        let late = LateDocuments { connect: Box::new(connect), connected: Mutex::default() };
        match late.store() {
            Err(DocumentError::Unavailable(message)) => tracing::warn!(message, "waiting for the document store"),
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        Ok(late)
    }

    fn store(&self) -> Result<Arc<dyn DocumentStore>, DocumentError> {
        let mut connected = self.connected.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = &*connected {
            return Ok(store.clone());
        }
        let store = (self.connect)()?;
        *connected = Some(store.clone());
        Ok(store)
    }
}

impl DocumentStore for LateDocuments {
    fn prepare(&self, collections: &[&str]) -> Result<(), DocumentError> {
        self.store()?.prepare(collections)
    }

    fn write(&self, mutations: &[Mutation]) -> Vec<Outcome> {
        match self.store() {
            Ok(store) => store.write(mutations),
            Err(error) => vec![Outcome::Retry(error.to_string()); mutations.len()],
        }
    }

    fn get(&self, tenant: &str, collection: &str, id: &str) -> Result<Option<Document>, DocumentError> {
        self.store()?.get(tenant, collection, id)
    }

    fn scan(
        &self,
        tenant: &str,
        collection: &str,
        each: &mut dyn FnMut(&str, Document) -> bool,
    ) -> Result<(), DocumentError> {
        self.store()?.scan(tenant, collection, each)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_stores::embedded::documents::EmbeddedDocuments;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn a_store_that_comes_later_is_connected_to_once() {
        let folder = tempfile::tempdir().unwrap();
        let (path, attempts) = (folder.path().to_owned(), Arc::<AtomicU32>::default());
        let counted = attempts.clone();
        let late = LateDocuments::open(move || match counted.fetch_add(1, Ordering::Relaxed) {
            0 | 1 => Err(DocumentError::Unavailable("nobody listens".into())),
            _ => EmbeddedDocuments::open(&path).map(|store| Arc::new(store) as Arc<dyn DocumentStore>),
        });
        let late = late.unwrap();
        assert!(matches!(late.prepare(&["users"]), Err(DocumentError::Unavailable(_))));
        late.prepare(&["users"]).unwrap();
        assert_eq!(late.get("acme", "users", "1").unwrap(), None);
        assert_eq!(attempts.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn what_never_can_be_there_is_said_at_once() {
        let wrong = LateDocuments::open(|| Err(DocumentError::Configuration("no such scheme".into())));
        assert!(matches!(wrong, Err(DocumentError::Configuration(_))));
    }
}

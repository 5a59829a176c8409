//! The document store: what Millstream needs of MongoDB, as a trait.
//!
//! Contract, checked by one conformance suite on every implementation (I8):
//! - **Guard.** A mutation is applied only where the stored (generation, revision) is lower than its own; where no document is stored, it is
//!   created. Repeating a write, or writing an older one later, changes nothing.
//! - **Gaps.** A mutation that builds on a revision (`base`) and is no whole document is applied only where that revision of its generation, or a
//!   later one, is stored. Where a lower one is, or none, it changes nothing and is a gap. [`millstream_model::document::fit`] is the rule.
//! - A mutation without operations moves the guard and leaves the content as it is; where no document is stored, it is a tombstone.
//! - A write that timed out may still take effect later, or never; the guard makes both harmless.
//! - Deletion keeps the guard: a tombstone is a document without data.

use millstream_model::document::Document;
use millstream_model::proto::Mutation;

/// What became of one mutation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The document holds it now.
    Applied,
    /// The document holds it already, or a newer one. (A server that does not tell which writes of a bulk matched may make it `Applied`.)
    Stale,
    /// Not applied: the document lacks what it builds on. Ask for the whole document.
    Gap,
    /// The store will never take it; the message says why.
    Refused(String),
    /// Not known or not possible now: write it again later.
    Retry(String),
}

/// Errors that concern the whole store, by what the caller must do.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// Cannot be reached or answers late: try again.
    #[error("document store unavailable: {0}")]
    Unavailable(String),
    /// The configuration is wrong.
    #[error("document store configuration: {0}")]
    Configuration(String),
}

/// A store of documents, one collection per kind of entity, keyed by (tenant, id).
pub trait DocumentStore: Send + Sync {
    /// Prepares the collections.
    ///
    /// # Errors
    /// [`DocumentError`]; a secondary unique index is a configuration error, because it would make a write fail for good.
    fn prepare(&self, collections: &[&str]) -> Result<(), DocumentError>;

    /// Writes mutations, at most one per document, in no particular order; one outcome each. Blocks until decided or timed out.
    fn write(&self, mutations: &[Mutation]) -> Vec<Outcome>;

    /// A document, tombstones included.
    ///
    /// # Errors
    /// [`DocumentError::Unavailable`].
    fn get(&self, tenant: &str, collection: &str, id: &str) -> Result<Option<Document>, DocumentError>;

    /// Every document of a tenant in a collection, tombstones included, in order of id, until `each` says that it needs no more (false).
    ///
    /// # Errors
    /// [`DocumentError::Unavailable`].
    fn scan(
        &self,
        tenant: &str,
        collection: &str,
        each: &mut dyn FnMut(&str, Document) -> bool,
    ) -> Result<(), DocumentError>;
}

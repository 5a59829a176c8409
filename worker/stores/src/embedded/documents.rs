//! The embedded document store: MongoDB's part in one process, on RocksDB.
//!
//! Invariant (I8): a document is the fold of its mutations by the reference ([`Document::apply`]), each applied only where the stored guard
//! fits ([`fit`]). Bulks are applied one after another, each in one write that has reached the operating system before its outcomes are
//! reported, so `kill -9` loses nothing that was reported as applied.
//!
//! ```text
//! collection | 0x00 | tenant | 0x00 | id -> generation (4) | revision (8) | deleted (1) | fields (Protobuf)
//! ```

use millstream_model::document::{Document, Fit, fit};
use millstream_model::proto::{Mutation, Object, Value};
use millstream_shard::documents::{DocumentError, DocumentStore, Outcome};
use prost::Message as _;
use rocksdb::{DB, DBCompressionType, IteratorMode, Options, WriteBatch};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// As in MongoDB: what fits here shall fit there.
const MAX_DOCUMENT_BYTES: usize = 16 << 20;
/// Lists and objects within each other. Below MongoDB's 100: Protobuf readers stop at 100 messages, and an object takes three.
const MAX_DEPTH: usize = 30;
const HEADER: usize = 13;

/// The embedded document store.
pub struct EmbeddedDocuments {
    db: DB,
    /// Held while a bulk reads, folds and writes.
    writing: Mutex<()>,
}

impl EmbeddedDocuments {
    /// Opens the store in a folder, which is created when missing.
    ///
    /// # Errors
    /// [`DocumentError::Configuration`]: the folder cannot be used, or another process uses it.
    pub fn open(folder: &Path) -> Result<EmbeddedDocuments, DocumentError> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_compression_type(DBCompressionType::Lz4);
        options.set_write_buffer_size(16 << 20);
        options.set_max_log_file_size(4 << 20);
        options.set_keep_log_file_num(2);
        let db = DB::open(&options, folder).map_err(|error| {
            let place = folder.display();
            DocumentError::Configuration(format!(
                "cannot open the embedded documents in {place}: {error}. If LOCK is named, another process uses the folder: stop that one, or \
                 name another folder"
            ))
        })?;
        Ok(EmbeddedDocuments { db, writing: Mutex::new(()) })
    }

    fn read(&self, key: &[u8]) -> Result<Option<Document>, String> {
        let value = self.db.get_pinned(key).map_err(|error| error.to_string())?;
        value.map(|value| decode(&value)).transpose()
    }

    /// What becomes of a mutation, and its document when it is to be written. `pending` is what this bulk has changed already.
    fn fold(&self, mutation: &Mutation, pending: &mut BTreeMap<Vec<u8>, Vec<u8>>) -> Outcome {
        let Some(key) = key(&mutation.collection, &mutation.tenant, &mutation.id) else {
            return Outcome::Refused("collection and tenant may not contain a zero byte".to_owned());
        };
        if let Some(path) = mutation.operations.iter().map(|operation| &operation.path).find(|path| is_deep(path)) {
            let start: String = path.chars().take(100).collect();
            return Outcome::Refused(format!("path `{start}` has more than {MAX_DEPTH} segments"));
        }
        let stored = match pending.get(&key) {
            Some(value) => decode(value).map(Some),
            None => self.read(&key),
        };
        let mut document = match stored {
            Ok(stored) => stored.unwrap_or_else(Document::empty),
            Err(error) => return Outcome::Retry(error),
        };
        match fit((document.generation, document.revision), mutation) {
            Fit::Stale => return Outcome::Stale,
            Fit::Gap => return Outcome::Gap,
            Fit::Next => document.apply(mutation),
        };
        if let Some(reason) = misfit(&document) {
            return Outcome::Refused(reason);
        }
        pending.insert(key, encode(&document));
        Outcome::Applied
    }
}

fn key(collection: &str, tenant: &str, id: &str) -> Option<Vec<u8>> {
    let legal = !collection.contains('\0') && !tenant.contains('\0');
    legal.then(|| [collection, "\0", tenant, "\0", id].concat().into_bytes())
}

fn is_deep(path: &str) -> bool {
    path.split('.').nth(MAX_DEPTH).is_some()
}

/// Why a document can never be stored.
fn misfit(document: &Document) -> Option<String> {
    let size = HEADER + document.fields.encoded_len();
    if size > MAX_DOCUMENT_BYTES {
        return Some(format!("the document would have {size} bytes; at most {MAX_DOCUMENT_BYTES} are stored"));
    }
    let depth = document.fields.pairs().map(|(_, value)| Value::depth(value) + 1).max().unwrap_or(0);
    (depth > MAX_DEPTH)
        .then(|| format!("the document would be nested {depth} levels deep; at most {MAX_DEPTH} are stored"))
}

fn encode(document: &Document) -> Vec<u8> {
    let mut value = Vec::with_capacity(HEADER + document.fields.encoded_len());
    value.extend_from_slice(&document.generation.to_be_bytes());
    value.extend_from_slice(&document.revision.to_be_bytes());
    value.push(u8::from(document.deleted));
    document.fields.encode_raw(&mut value);
    value
}

fn decode(value: &[u8]) -> Result<Document, String> {
    let cut = || "a stored document is damaged".to_owned();
    let (generation, rest) = value.split_first_chunk::<4>().ok_or_else(cut)?;
    let (revision, rest) = rest.split_first_chunk::<8>().ok_or_else(cut)?;
    let (deleted, fields) = rest.split_first().ok_or_else(cut)?;
    Ok(Document {
        generation: u32::from_be_bytes(*generation),
        revision: u64::from_be_bytes(*revision),
        deleted: *deleted != 0,
        fields: Object::decode(fields).map_err(|error| format!("{}: {error}", cut()))?,
    })
}

impl DocumentStore for EmbeddedDocuments {
    fn prepare(&self, _collections: &[&str]) -> Result<(), DocumentError> {
        // A collection is a prefix of keys: there is nothing to make.
        Ok(())
    }

    fn write(&self, mutations: &[Mutation]) -> Vec<Outcome> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pending = BTreeMap::new();
        let mut outcomes: Vec<Outcome> = mutations.iter().map(|mutation| self.fold(mutation, &mut pending)).collect();
        let mut batch = WriteBatch::default();
        for (key, value) in &pending {
            batch.put(key, value);
        }
        if !pending.is_empty()
            && let Err(error) = self.db.write(batch)
        {
            for outcome in outcomes.iter_mut().filter(|outcome| **outcome == Outcome::Applied) {
                *outcome = Outcome::Retry(format!("the write failed: {error}"));
            }
        }
        outcomes
    }

    fn get(&self, tenant: &str, collection: &str, id: &str) -> Result<Option<Document>, DocumentError> {
        match key(collection, tenant, id) {
            Some(key) => self.read(&key).map_err(DocumentError::Unavailable),
            None => Ok(None),
        }
    }

    fn scan(
        &self,
        tenant: &str,
        collection: &str,
        each: &mut dyn FnMut(&str, Document) -> bool,
    ) -> Result<(), DocumentError> {
        let Some(prefix) = key(collection, tenant, "") else { return Ok(()) };
        for entry in self.db.iterator(IteratorMode::From(&prefix, rocksdb::Direction::Forward)) {
            let (key, value) = entry.map_err(|error| DocumentError::Unavailable(error.to_string()))?;
            let Some(id) = key.strip_prefix(&prefix[..]) else { break };
            if !each(&String::from_utf8_lossy(id), decode(&value).map_err(DocumentError::Unavailable)?) {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_model::proto::{Operation, operation::Op};

    fn set(tenant: &str, path: &str, value: Value) -> Mutation {
        let operations = vec![Operation { path: path.to_owned(), op: Some(Op::Set(value)) }];
        let (tenant, collection, id) = (tenant.to_owned(), "users".to_owned(), "1".to_owned());
        Mutation { tenant, collection, id, generation: 1, revision: 1, operations, ..Mutation::default() }
    }

    #[test]
    fn what_could_not_be_read_back_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let store = EmbeddedDocuments::open(folder.path()).unwrap();
        let nested = |levels| (0..levels).fold(Value::null(), |inner, _| Value::object([("x".to_owned(), inner)]));
        let bad = [
            set("acme", &vec!["x"; 100_000].join("."), Value::null()),
            set("acme", &vec!["x"; MAX_DEPTH + 1].join("."), Value::null()),
            set("acme", "x", nested(MAX_DEPTH)),
            set("ac\0me", "x", Value::null()),
        ];
        for mutation in bad {
            let outcomes = store.write(std::slice::from_ref(&mutation));
            assert!(matches!(&outcomes[..], [Outcome::Refused(_)]), "{outcomes:?}");
        }
        assert_eq!(store.get("acme", "users", "1").unwrap(), None);
        assert_eq!(store.write(&[set("acme", "x", nested(MAX_DEPTH - 1))]), [Outcome::Applied]);
        assert!(store.get("acme", "users", "1").unwrap().is_some(), "the deepest one comes back");
    }

    #[test]
    fn two_mutations_of_one_document_in_a_bulk_are_both_counted() {
        let folder = tempfile::tempdir().unwrap();
        let store = EmbeddedDocuments::open(folder.path()).unwrap();
        let newer = Mutation { revision: 2, ..set("acme", "y", Value::null()) };
        let outcomes = store.write(&[set("acme", "x", Value::null()), newer.clone(), newer]);
        assert_eq!(outcomes, [Outcome::Applied, Outcome::Applied, Outcome::Stale]);
        assert_eq!(store.get("acme", "users", "1").unwrap().unwrap().fields.members.len(), 2);
    }
}

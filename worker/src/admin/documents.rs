//! `/v1/documents`: the documents of a tenant as NDJSON, as the document store has them.
//!
//! As for `/v1/tail`, a thread of the runtime reads (stores block) and hands lines to the answer through a bounded channel; it ends when the reader leaves.

use super::{AdminState, ndjson, problem};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use millstream_model::document::Document;
use millstream_shard::documents::{DocumentError, DocumentStore};
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Chunks of lines that may wait for the reader.
const CHANNEL: usize = 16;
/// A chunk is handed over when it is this large, bytes.
const CHUNK: usize = 64 << 10;

/// What is asked for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DocumentsQuery {
    tenant: Option<String>,
    collection: Option<String>,
    id: Option<String>,
}

/// Handles a request.
pub(super) async fn documents(State(state): State<AdminState>, Query(query): Query<DocumentsQuery>) -> Response {
    let (Some(tenant), Some(collection)) = (query.tenant, query.collection) else {
        return problem(StatusCode::BAD_REQUEST, "send ?tenant=NAME&collection=users (or devices), and perhaps &id=ID");
    };
    let Some(documents) = state.documents.clone() else {
        return problem(StatusCode::NOT_FOUND, "this process has no document store");
    };
    let (lines, receiver) = mpsc::channel(CHANNEL);
    let reading = Reading { documents, tenant, collection, id: query.id, lines };
    // The runtime waits for it at the end of the process, when no store may be open any more.
    tokio::task::spawn_blocking(move || reading.run());
    ndjson(receiver)
}

struct Reading {
    documents: Arc<dyn DocumentStore>,
    tenant: String,
    collection: String,
    id: Option<String>,
    lines: mpsc::Sender<Bytes>,
}

impl Reading {
    fn run(self) {
        let mut chunk = Vec::new();
        let outcome = self.read(&mut chunk);
        if let Err(error) = outcome {
            chunk.extend_from_slice(format!("{}\n", json!({"error": {"message": error.to_string()}})).as_bytes());
        }
        self.send(&mut chunk);
    }

    fn read(&self, chunk: &mut Vec<u8>) -> Result<(), DocumentError> {
        if let Some(id) = &self.id {
            if let Some(document) = self.documents.get(&self.tenant, &self.collection, id)? {
                append(id, &document, chunk);
            }
            return Ok(());
        }
        self.documents.scan(&self.tenant, &self.collection, &mut |id, document| {
            append(id, &document, chunk);
            chunk.len() <= CHUNK || self.send(chunk)
        })
    }

    /// False: the reader has left, and the rest is for nobody.
    fn send(&self, chunk: &mut Vec<u8>) -> bool {
        self.lines.blocking_send(std::mem::take(chunk).into()).is_ok()
    }
}

fn append(id: &str, document: &Document, chunk: &mut Vec<u8>) {
    let line = json!({
        "_id": id,
        "generation": document.generation,
        "revision": document.revision,
        "deleted": document.deleted,
        "fields": document.fields,
    });
    chunk.extend_from_slice(line.to_string().as_bytes());
    chunk.push(b'\n');
}

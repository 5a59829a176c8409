//! `/v1/tail`: a topic as NDJSON.
//!
//! A thread of the runtime reads the log (its consumers block) and hands lines to the answer through a bounded channel, so a slow reader slows its own thread
//! and nothing else. The thread ends when the reader leaves, when the log fails (the last line says why), or, without `follow`, at the end that
//! the topic had when the request came.

use super::{AdminState, mutation_json, ndjson, problem};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use millstream_model::frame::{Content, read};
use millstream_model::proto::Mutation;
use millstream_shard::log::{Log, LogError, Start, TopicPartition};
use millstream_shard::savepoint::marker;
use prost::Message;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// Chunks of lines that may wait for the reader.
const CHANNEL: usize = 16;
/// Messages per poll.
const POLL: usize = 500;
/// How long a poll waits, and so how soon the thread notices that the reader has left.
const WAIT: Duration = Duration::from_millis(200);

/// What is asked for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TailQuery {
    tenant: Option<String>,
    #[serde(default)]
    follow: bool,
    #[serde(default)]
    from: From,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum From {
    #[default]
    Earliest,
    Latest,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// One JSON object per message.
    Json,
    /// Frames of mutations.
    Mutations,
}

/// Handles a request.
pub(super) async fn tail(
    State(state): State<AdminState>,
    Path(topic): Path<String>,
    Query(query): Query<TailQuery>,
) -> Response {
    let (topic, shape) = match topic.as_str() {
        "events" => (&state.topics.events, Shape::Json),
        "rejects" => (&state.topics.rejects, Shape::Json),
        "mutations" => (&state.topics.mutations, Shape::Mutations),
        _ => return problem(StatusCode::NOT_FOUND, "tail `events`, `mutations` or `rejects`"),
    };
    let Some(log) = state.log.clone() else {
        return problem(StatusCode::NOT_FOUND, "this process has no log to read");
    };
    let Ok(permit) = state.tails.clone().try_acquire_owned() else {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "too many tails at once; end one");
    };
    let (lines, receiver) = mpsc::channel(CHANNEL);
    let reading = Reading { log, topic: topic.clone(), partitions: state.topics.shards, shape, query, lines };
    // The runtime waits for it at the end of the process, when no log may be open any more.
    tokio::task::spawn_blocking(move || reading.run(permit));
    ndjson(receiver)
}

/// The thread's side.
struct Reading {
    log: Arc<dyn Log>,
    topic: Arc<str>,
    partitions: u32,
    shape: Shape,
    query: TailQuery,
    lines: mpsc::Sender<Bytes>,
}

impl Reading {
    fn run(self, _permit: OwnedSemaphorePermit) {
        if let Err(error) = self.read() {
            tracing::warn!(topic = %self.topic, %error, "a tail ended");
            let line = format!("{}\n", json!({"error": {"message": error.to_string()}}));
            // When the reader has left, nobody needs to know.
            let _ = self.lines.blocking_send(line.into());
        }
    }

    fn read(&self) -> Result<(), LogError> {
        let partitions: Vec<TopicPartition> =
            (0..self.partitions).map(|partition| TopicPartition::new(self.topic.clone(), partition)).collect();
        let ends = partitions.iter().map(|at| self.log.bounds(at)).collect::<Result<Vec<_>, _>>()?;
        let start = |(first, end): &(u64, u64)| match self.query.from {
            From::Earliest => Start::At(*first),
            From::Latest => Start::At(*end),
        };
        let assignments: Vec<_> = partitions.into_iter().zip(ends.iter().map(start)).collect();
        let mut consumer = self.log.consumer(&assignments)?;
        loop {
            let mut chunk = Vec::new();
            consumer.poll(POLL, WAIT, &mut |message| {
                let end = ends.get(message.assignment).map_or(0, |(_, end)| *end);
                if (self.query.follow || message.offset < end) && !message.is_empty() {
                    self.append(message.payload, &mut chunk);
                }
            })?;
            let left = !chunk.is_empty() && self.lines.blocking_send(chunk.into()).is_err();
            let done = consumer.positions().iter().zip(&ends).all(|(position, (_, end))| position >= end);
            if left || self.lines.is_closed() || (!self.query.follow && done) {
                return Ok(());
            }
        }
    }

    fn append(&self, payload: &[u8], chunk: &mut Vec<u8>) {
        match self.shape {
            Shape::Json => self.append_json(payload, chunk),
            Shape::Mutations => self.append_mutations(payload, chunk),
        }
    }

    fn append_json(&self, payload: &[u8], chunk: &mut Vec<u8>) {
        #[derive(Deserialize)]
        struct Whose<'a> {
            #[serde(borrow)]
            tenant: Option<std::borrow::Cow<'a, str>>,
        }
        if let Some(wanted) = &self.query.tenant {
            let whose: Result<Whose<'_>, _> = serde_json::from_slice(payload);
            if !whose.is_ok_and(|whose| whose.tenant.as_deref() == Some(wanted)) {
                return;
            }
        }
        chunk.extend_from_slice(payload);
        chunk.push(b'\n');
    }

    fn append_mutations(&self, payload: &[u8], chunk: &mut Vec<u8>) {
        let records = match read(payload, Content::Mutation) {
            Ok(records) => records,
            Err(_) if marker::read(payload).is_some() => return,
            Err(error) => return push(&json!({"error": {"message": error.to_string()}}), chunk),
        };
        for record in records {
            match record.map(Mutation::decode) {
                Ok(Ok(mutation)) if self.wants(&mutation.tenant) => push(&mutation_json(&mutation), chunk),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => push(&json!({"error": {"message": error.to_string()}}), chunk),
                Err(error) => push(&json!({"error": {"message": error.to_string()}}), chunk),
            }
        }
    }

    fn wants(&self, tenant: &str) -> bool {
        self.query.tenant.as_deref().is_none_or(|wanted| wanted == tenant)
    }
}

fn push(value: &Value, chunk: &mut Vec<u8>) {
    chunk.extend_from_slice(value.to_string().as_bytes());
    chunk.push(b'\n');
}

//! The admin port: health, metrics, and looking inside. For operators and the command line; it knows no API keys, so it must not be public.
//!
//! | path | answer |
//! |---|---|
//! | `/livez` | 200 while the process can answer at all |
//! | `/readyz` | 200, or 503 with what is not ready; with either, what is impaired |
//! | `/metrics` | Prometheus text |
//! | `/v1/shards` | JSON list: who has which shard, how far, in which role |
//! | `/v1/usage` | JSON list: sums per tenant and stage of this process's shards (I2); 404 from a process without such shards, 503 until all of its are open |
//! | `/v1/inspect/{user or device}?tenant=T&id=user_id=42` | JSON: what is known, or 404; 421 and what to ask whom when another process's shard knows |
//! | `/v1/documents?tenant=T&collection=users&id=ID` | NDJSON from the document store |
//! | `/v1/tail/{events, mutations or rejects}?tenant=T&follow=true&from=latest` | NDJSON from the log |

mod documents;
mod inspect;
mod mutation;
mod shards;
mod tail;
#[cfg(test)]
mod tests;

use crate::telemetry::Metrics;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use futures::stream;
use millstream_model::id::UserId;
use millstream_model::proto::Identifier;
use millstream_shard::documents::DocumentStore;
use millstream_shard::log::Log;
use millstream_shard::topics::Topics;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc};

pub use inspect::Misdirected;
pub use mutation::mutation_json;
pub use shards::ShardRow;

/// Tails at one time; each costs a thread and a consumer.
const MAX_TAILS: usize = 16;

/// How something fares that a process needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// As it should.
    Well,
    /// Not as it should, which is no reason to send requests elsewhere or to take the process for one that may be evicted; says what is wrong.
    Impaired(String),
    /// The process cannot do what it is for; says why.
    NotReady(String),
}

/// Something that is looked at for readiness.
pub trait Check: Send + Sync {
    /// What it is called: `log`, `shard unify 3`.
    fn name(&self) -> String;

    /// How it fares. Must answer at once; it is asked every few seconds.
    fn check(&self) -> Health;
}

/// The sums of one tenant in one stage.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TenantUsage {
    /// Whose.
    pub tenant: String,
    /// `unify` or `action`.
    pub stage: String,
    /// Records read from `ingress` (unify).
    pub accepted: u64,
    /// Records found to be repetitions (unify).
    pub duplicates: u64,
    /// Records rejected.
    pub rejects: u64,
    /// Records applied (action).
    pub effects: u64,
    /// Mutations published (action).
    pub mutations: u64,
    /// Events published (action).
    pub events: u64,
}

/// Why there are no sums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoUsage {
    /// This process has no shards that keep sums.
    NoShards,
    /// Some are not open yet; says which. What is there would pass for the whole.
    NotYet(String),
}

/// What an inspection is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The user that an identifier names.
    User(Identifier),
    /// A user by its internal id.
    UserId(UserId),
    /// The device that an identifier names.
    Device(Identifier),
}

/// Why an inspection has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoAnswer {
    /// A shard of another process knows.
    Elsewhere(Misdirected),
    /// Not now; says why.
    NotNow(String),
}

/// Looking into the state of this process's shards. Its methods may block; they are called on a thread for that.
pub trait Inspect: Send + Sync {
    /// Sums per tenant and stage, over this process's shards.
    ///
    /// # Errors
    /// [`NoUsage`].
    fn usage(&self) -> Result<Vec<TenantUsage>, NoUsage>;

    /// Every worker's shards, as far as this process hears of them: of a process without a plan, its own.
    fn shards(&self) -> Vec<ShardRow>;

    /// What is known of a user or device: identifiers, attributes with when and by which record they were set, merge history. `None` when
    /// there is none by this identifier.
    ///
    /// # Errors
    /// [`NoAnswer`].
    fn inspect(&self, tenant: &str, subject: &Subject) -> Result<Option<Value>, NoAnswer>;
}

/// What the admin port serves. Parts that a role does not have are `None`: their paths answer 404 and say so.
#[derive(Clone)]
pub struct AdminState {
    checks: Arc<Vec<Box<dyn Check>>>,
    metrics: Arc<Metrics>,
    inspect: Option<Arc<dyn Inspect>>,
    log: Option<Arc<dyn Log>>,
    documents: Option<Arc<dyn DocumentStore>>,
    topics: Topics,
    tails: Arc<Semaphore>,
}

impl AdminState {
    /// The admin port of a process.
    pub fn new(
        checks: Vec<Box<dyn Check>>,
        metrics: Arc<Metrics>,
        inspect: Option<Arc<dyn Inspect>>,
        log: Option<Arc<dyn Log>>,
        documents: Option<Arc<dyn DocumentStore>>,
        topics: Topics,
    ) -> AdminState {
        let tails = Arc::new(Semaphore::new(MAX_TAILS));
        AdminState { checks: Arc::new(checks), metrics, inspect, log, documents, topics, tails }
    }
}

/// The admin port.
pub fn router(state: AdminState) -> Router {
    Router::new()
        .route("/livez", get(|| async { (StatusCode::OK, "ok\n") }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/v1/usage", get(usage))
        .route("/v1/shards", get(shards::shards))
        .route("/v1/inspect/{subject}", get(inspect::inspect))
        .route("/v1/documents", get(documents::documents))
        .route("/v1/tail/{topic}", get(tail::tail))
        .fallback(unknown_path)
        .with_state(state)
}

async fn unknown_path(request: Request) -> Response {
    let paths = "/livez, /readyz, /metrics, /v1/usage, /v1/shards, /v1/inspect/user, /v1/inspect/device, /v1/documents, /v1/tail/events, /v1/tail/mutations, /v1/tail/rejects";
    problem(
        StatusCode::NOT_FOUND,
        format!("there is nothing at {}; there is {paths}", request.uri().path().escape_debug()),
    )
}

async fn readyz(State(state): State<AdminState>) -> Response {
    let (mut not_ready, mut impaired) = (Map::new(), Map::new());
    for check in state.checks.iter() {
        match check.check() {
            Health::Well => {}
            Health::Impaired(why) => drop(impaired.insert(check.name(), why.into())),
            Health::NotReady(why) => drop(not_ready.insert(check.name(), why.into())),
        }
    }
    let is_ready = not_ready.is_empty();
    let mut body = Map::from_iter([("ready".to_owned(), Value::from(is_ready))]);
    for (part, of) in [("not_ready", not_ready), ("impaired", impaired)] {
        if !of.is_empty() {
            body.insert(part.to_owned(), of.into());
        }
    }
    answer(if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, &body.into())
}

async fn metrics(State(state): State<AdminState>) -> Response {
    let media = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, media)], state.metrics.render()).into_response()
}

async fn usage(State(state): State<AdminState>) -> Response {
    let Some(inspect) = state.inspect else { return no_shards() };
    match tokio::task::spawn_blocking(move || inspect.usage()).await {
        Ok(Ok(mut usage)) => {
            usage.sort();
            answer(StatusCode::OK, &json!(usage))
        }
        Ok(Err(NoUsage::NoShards)) => no_shards(),
        Ok(Err(NoUsage::NotYet(why))) => problem(StatusCode::SERVICE_UNAVAILABLE, why),
        Err(error) => failed(&error),
    }
}

/// The lines that a thread reads, as they come.
fn ndjson(lines: mpsc::Receiver<Bytes>) -> Response {
    let lines = stream::unfold(lines, |mut lines| async {
        let line = lines.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(line), lines))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

fn no_shards() -> Response {
    let message =
        "this process has no shards that keep sums; ask one with the role unify or action, or `millstream local`";
    problem(StatusCode::NOT_FOUND, message)
}

fn failed(error: &tokio::task::JoinError) -> Response {
    tracing::error!(%error, "an inspection failed");
    problem(StatusCode::INTERNAL_SERVER_ERROR, "the inspection failed; the log of this process says more")
}

fn problem(status: StatusCode, message: impl Into<String>) -> Response {
    answer(status, &json!({"error": {"message": message.into()}}))
}

fn answer(status: StatusCode, body: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{body}\n")).into_response()
}

//! The operator's admin port: whether it lives and is ready, for Kubernetes; its metrics; and who has which shard, for `kubectl millstream`. It changes nothing.
//!
//! Only the operator that leads follows pipelines: others answer 503 and say so. The Pod of the one that leads is [labelled](crate::leader), so that a Service leads to it.

use crate::metrics::Metrics;
use crate::plans::Plans;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use kube::ResourceExt;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// What the port tells.
#[derive(Default)]
pub struct Admin {
    /// The API server has answered: it leads, or waits to.
    pub is_ready: AtomicBool,
    /// Everything that is counted.
    pub metrics: Arc<Metrics>,
    /// Of the one that leads.
    pub(crate) plans: OnceLock<Arc<Plans>>,
}

/// One who listens on the port.
///
/// # Errors
/// When nobody can listen there.
pub async fn listen(at: SocketAddr) -> std::io::Result<tokio::net::TcpListener> {
    tokio::net::TcpListener::bind(at).await
}

/// Serves it until the process ends.
///
/// # Errors
/// When the listener fails.
pub async fn serve(listener: tokio::net::TcpListener, admin: Arc<Admin>) -> std::io::Result<()> {
    let router = Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/v1/pipelines", get(pipelines))
        .route("/v1/pipelines/{namespace}/{name}", get(pipeline))
        .with_state(admin);
    axum::serve(listener, router).await
}

async fn ready(State(admin): State<Arc<Admin>>) -> (StatusCode, &'static str) {
    match admin.is_ready.load(Ordering::Relaxed) {
        true => (StatusCode::OK, "ready\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "the API server has not answered yet\n"),
    }
}

async fn metrics(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    ([("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")], admin.metrics.render())
}

async fn pipelines(State(admin): State<Arc<Admin>>) -> Response {
    match admin.plans.get() {
        Some(plans) => Json(plans.followed()).into_response(),
        None => not_leading(),
    }
}

async fn pipeline(State(admin): State<Arc<Admin>>, Path((namespace, name)): Path<(String, String)>) -> Response {
    match admin.plans.get().map(|plans| plans.look(&namespace, &name)) {
        Some(Some(found)) => Json(found).into_response(),
        Some(None) => {
            let message = format!("no IngestionPipeline {name} in namespace {namespace} is followed by this operator");
            failure(StatusCode::NOT_FOUND, "NotFound", &message)
        }
        None => not_leading(),
    }
}

fn not_leading() -> Response {
    let message = "this operator does not lead; the Lease's holder does";
    failure(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message)
}

/// As the API server fails: clients of Kubernetes show the message.
fn failure(code: StatusCode, reason: &str, message: &str) -> Response {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "message": message, "reason": reason, "code": code.as_u16(),
    });
    (code, Json(status)).into_response()
}

/// The name of a pipeline, or of another resource in a namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Name {
    /// Its namespace.
    pub namespace: String,
    /// Its own.
    pub name: String,
}

impl Name {
    /// That of a resource.
    pub(crate) fn of(resource: &impl ResourceExt) -> Name {
        Name { namespace: resource.namespace().unwrap_or_default(), name: resource.name_any() }
    }
}

/// A pipeline's shards, as its workers report them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PipelineShards {
    /// The plan that is in force, `term.number`; none before there is one.
    pub plan: Option<String>,
    /// Shards that move, or wait for it.
    pub moving: usize,
    /// Why nobody is heard, if nobody is.
    pub problem: Option<String>,
    /// Workers that are alive.
    pub workers: Vec<String>,
    /// By stage and number.
    pub shards: Vec<ShardRow>,
}

/// One shard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShardRow {
    /// `unify`, `action` or `reaction`.
    pub stage: String,
    /// Its number.
    pub shard: u32,
    /// The worker that is to own it.
    pub planned: String,
    /// The worker that owns it.
    pub owner: Option<String>,
    /// The owner: messages of its inputs that it has not read.
    pub lag: Option<u64>,
    /// The owner: how old what it has not processed is at most, milliseconds; 0: nothing is left.
    #[serde(default)]
    pub unread_ms: Option<u64>,
    /// Who follows it.
    pub standbys: Vec<StandbyRow>,
    /// What is wrong with it; empty: nothing.
    pub condition: String,
}

/// Who follows a shard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandbyRow {
    /// Its name.
    pub worker: String,
    /// Changelog messages that it is behind.
    pub lag: u64,
}

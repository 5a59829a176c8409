//! The operator's admin port: whether it lives and is ready, for Kubernetes.

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What the port tells.
#[derive(Debug, Default)]
pub struct Health {
    /// The API server has answered: it leads, or waits to.
    pub is_ready: AtomicBool,
}

/// Serves it until the process ends.
///
/// # Errors
/// When nobody can listen there.
pub async fn serve(listen: SocketAddr, health: Arc<Health>) -> std::io::Result<()> {
    let ready = move || async move {
        match health.is_ready.load(Ordering::Relaxed) {
            true => (StatusCode::OK, "ready\n"),
            false => (StatusCode::SERVICE_UNAVAILABLE, "the API server has not answered yet\n"),
        }
    };
    let router = Router::new().route("/livez", get(|| async { "alive\n" })).route("/readyz", get(ready));
    axum::serve(tokio::net::TcpListener::bind(listen).await?, router).await
}

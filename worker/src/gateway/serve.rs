//! Accepting connections, and stopping without cutting a request.
//!
//! A connection costs memory and a file descriptor, so their number is bounded, and each must be of use: one that brings no request, or does not
//! take its answer, is closed ([`connection`](super::connection)).

use super::connection::{Patience, Progress, attend};
use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

/// Connections at one time, when the limit of open files allows so many. They bound the memory of idle and of slow connections.
pub const MAX_CONNECTIONS: usize = 10_000;
/// Pause after accepting failed, which happens when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a port holds its connections to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serving {
    /// So many at one time; more wait in the kernel's queue.
    pub connections: usize,
    /// When each is closed.
    pub patience: Patience,
    /// How long requests in flight may take after the stop.
    pub drain: Duration,
}

impl Serving {
    /// The usual patience.
    pub fn new(connections: usize, drain: Duration) -> Serving {
        Serving { connections, patience: Patience::default(), drain }
    }
}

/// Serves `router` until `stop` is cancelled, then finishes the requests in flight, for at most the time given.
///
/// # Errors
/// None after the listener was bound; a connection's error ends only that connection.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    stop: CancellationToken,
    serving: Serving,
) -> std::io::Result<()> {
    let builder = builder(&serving.patience);
    let (tasks, cut) = (TaskTracker::new(), CancellationToken::new());
    let mut door = Door { listener, connections: Arc::new(Semaphore::new(serving.connections)), full: false };
    while let Some((stream, permit)) = door.next(&stop).await {
        let progress = Progress::new();
        let connection = connect(&builder, stream, router.clone(), progress.clone());
        let attended = attend(connection, progress, serving.patience, stop.clone());
        let cut = cut.clone();
        tasks.spawn(async move {
            tokio::select! {
                // The sender went away or spoke no HTTP: its own business.
                ended = attended => if let Err(error) = ended { tracing::debug!(error, "a connection ended") },
                () = cut.cancelled() => {}
            }
            drop(permit);
        });
    }
    drop(door);
    tasks.close();
    if tokio::time::timeout(serving.drain, tasks.wait()).await.is_err() {
        cut.cancel();
        let (connections, drain_ms) = (tasks.len(), serving.drain.as_millis());
        tracing::warn!(connections, drain_ms, "requests in flight were cut: they took too long to finish");
    }
    Ok(())
}

fn builder(patience: &Patience) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(patience.idle);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(patience.stuck);
    builder
}

/// What is done with a connection: each of its requests goes to the router.
fn connect(
    builder: &Builder<TokioExecutor>,
    stream: TcpStream,
    router: Router,
    progress: Arc<Progress>,
) -> impl hyper_util::server::graceful::GracefulConnection<Error: std::fmt::Display> + Send + use<> {
    let service = service_fn(move |request: Request<Incoming>| {
        let (router, request_under_way) = (router.clone(), progress.begin());
        async move {
            let response = router.oneshot(request.map(Body::new)).await?;
            Ok::<_, Infallible>(response.map(|body| Body::new(request_under_way.answer(body))))
        }
    });
    builder.serve_connection(TokioIo::new(stream), service).into_owned()
}

/// Where connections come in.
struct Door {
    listener: TcpListener,
    connections: Arc<Semaphore>,
    /// There were as many as may be when the last one came; said once.
    full: bool,
}

impl Door {
    /// The next connection; `None` when it is time to stop.
    async fn next(&mut self, stop: &CancellationToken) -> Option<(TcpStream, OwnedSemaphorePermit)> {
        tokio::select! {
            accepted = self.accept() => accepted,
            () = stop.cancelled() => None,
        }
    }

    async fn accept(&mut self) -> Option<(TcpStream, OwnedSemaphorePermit)> {
        let full = self.connections.available_permits() == 0;
        if full && !std::mem::replace(&mut self.full, full) {
            tracing::warn!("there are as many connections as may be; more wait until one is closed");
        }
        let permit = self.connections.clone().acquire_owned().await.ok()?;
        self.full = full;
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let _ = stream.set_nodelay(true);
                    return Some((stream, permit));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;

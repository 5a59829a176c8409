//! One connection: closed when it is of no use, whatever its peer does or leaves undone.
//!
//! hyper waits without a limit for a connection's first bytes, for the next request of an HTTP/2 connection whose peer answers pings, and for a
//! peer that does not read. Here each connection has a [`Progress`]: how many requests are under way, since when there is none, and since when the
//! peer has not taken the next piece of an answer. [`attend`] looks at it now and then. Waiting for something of ours (the log, new lines of
//! `tail`) is never held against the peer; a request's body has a limit of its own ([`body`](super::body)).

use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use hyper_util::server::graceful::GracefulConnection;
use std::collections::BTreeMap;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a connection's peer may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Until its first request, headers complete.
    pub first: Duration,
    /// Between two requests. Longer than load balancers keep an idle connection (60 s), so that they close it, and not we while they send.
    pub idle: Duration,
    /// Until it takes more of an answer, or the rest of it.
    pub stuck: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        let seconds = Duration::from_secs;
        Patience { first: seconds(30), idle: seconds(75), stuck: seconds(30) }
    }
}

impl Patience {
    /// How often to look: a connection is closed at most a quarter too late.
    fn every(&self) -> Duration {
        self.first.min(self.idle).min(self.stuck) / 4
    }
}

/// How a connection fares.
#[derive(Debug)]
pub(super) struct Progress(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    requests: u64,
    under_way: usize,
    /// Since when no request is under way.
    idle: Instant,
    /// Answers whose next piece the peer has to take, and since when.
    untaken: BTreeMap<u64, Instant>,
}

/// What is to be done with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Keep,
    /// No request ever came: nothing is owed to the peer.
    Silent,
    /// Nothing is under way, and was not for too long.
    Idle,
    /// The peer does not take its answer.
    Stuck,
}

impl Progress {
    /// That of a new connection.
    pub(super) fn new() -> Arc<Progress> {
        let inner = Inner { requests: 0, under_way: 0, idle: Instant::now(), untaken: BTreeMap::new() };
        Arc::new(Progress(Mutex::new(inner)))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request has begun; it ends when what is returned is dropped.
    pub(super) fn begin(self: &Arc<Progress>) -> UnderWay {
        let mut inner = self.lock();
        inner.requests += 1;
        inner.under_way += 1;
        UnderWay { progress: self.clone(), number: inner.requests }
    }

    fn verdict(&self, patience: &Patience) -> Verdict {
        let inner = self.lock();
        let longest = inner.untaken.values().min().map(Instant::elapsed);
        if longest.is_some_and(|longest| longest >= patience.stuck) {
            return Verdict::Stuck;
        }
        match (inner.requests, inner.under_way, inner.idle.elapsed()) {
            (0, _, since) if since >= patience.first => Verdict::Silent,
            (1.., 0, since) if since >= patience.idle => Verdict::Idle,
            _ => Verdict::Keep,
        }
    }

    fn is_idle(&self) -> bool {
        self.lock().under_way == 0
    }
}

/// A request under way.
#[derive(Debug)]
pub(super) struct UnderWay {
    progress: Arc<Progress>,
    number: u64,
}

impl UnderWay {
    /// Its answer's body, watched until it is taken or given up.
    pub(super) fn answer(self, body: Body) -> Answer {
        self.peers_turn();
        Answer { body, under_way: self }
    }

    fn peers_turn(&self) {
        self.progress.lock().untaken.insert(self.number, Instant::now());
    }

    fn our_turn(&self) {
        self.progress.lock().untaken.remove(&self.number);
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut inner = self.progress.lock();
        inner.untaken.remove(&self.number);
        inner.under_way -= 1;
        inner.idle = Instant::now();
    }
}

/// The body of an answer. hyper asks for its next piece when there is room for it, so that a body that is not asked is one that the peer does not
/// take.
#[derive(Debug)]
pub(super) struct Answer {
    body: Body,
    under_way: UnderWay,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.under_way.our_turn();
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if polled.is_ready() {
            self.under_way.peers_turn();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Keeps a connection going until its end, or until it is of no use. At the stop it finishes what is under way.
///
/// # Errors
/// What the connection failed with.
pub(super) async fn attend<C>(
    connection: C,
    progress: Arc<Progress>,
    patience: Patience,
    stop: CancellationToken,
) -> Result<(), String>
where
    C: GracefulConnection,
    C::Error: std::fmt::Display,
{
    let mut connection = pin!(connection);
    let (mut leaving, mut close_at) = (false, None);
    loop {
        tokio::select! {
            // In this order: what has just come in counts before the time is looked at.
            biased;
            ended = connection.as_mut() => return ended.map(drop).map_err(|error| error.to_string()),
            () = stop.cancelled(), if !leaving => {
                leaving = true;
                connection.as_mut().graceful_shutdown();
            }
            () = tokio::time::sleep(patience.every()) => match (progress.verdict(&patience), close_at) {
                (Verdict::Silent, _) => return Err("no request came".to_owned()),
                (Verdict::Stuck, _) => return Err("the peer does not take its answer".to_owned()),
                // A last answer may still be on its way out.
                (Verdict::Idle, None) => {
                    close_at = Some(Instant::now() + patience.stuck);
                    connection.as_mut().graceful_shutdown();
                }
                (_, Some(at)) if at <= Instant::now() && progress.is_idle() => {
                    return Err("no further request came, and the peer does not let go".to_owned());
                }
                _ => {}
            },
        }
    }
}

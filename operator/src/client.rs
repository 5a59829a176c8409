//! How the operator asks the API server: every request but a watch begins to be answered in time, or is given up; so is a connection on which nothing comes any more.
//!
//! An answer that never comes (a load balancer that lost the connection, a server that hangs) would otherwise hold its pipeline back for good: kube's client waits for answers without an end. Whatever was asked
//! is asked again later, by the same rules as after an error; it may have been done, and does no harm twice. The body of an answer, and a watch that is never answered, are bounded by the silence of their connection.

use anyhow::{Context as _, Result};
use futures::future::BoxFuture;
use kube::client::{Body, ClientBuilder};
use kube::{Client, Config};
use std::task::{Context, Poll};
use std::time::Duration;
use tower::{BoxError, Layer, Service};

/// Longer than a watch: the API server ends one after 290 s, and kube's runtime waits a little longer.
const SILENT_FOR: Duration = Duration::from_secs(330);

/// A client of the API server that the surroundings name: of the cluster that this process runs in, or of `KUBECONFIG`. It waits so long for an answer: the API server itself gives up after 60 s, with words
/// of its own, and with those of an admission webhook before that.
///
/// # Errors
/// When they name none, or it does not answer.
pub async fn connect(answers_within: Duration) -> Result<Client> {
    let where_it_is = "cannot tell where the API server is: run inside of a cluster, or with KUBECONFIG";
    let mut config = Config::infer().await.context(where_it_is)?;
    // From when a request is sent, not from when its connection was used last.
    (config.read_timeout, config.reset_reader_on_write) = (Some(SILENT_FOR), true);
    let client = ClientBuilder::try_from(config).context(where_it_is)?.with_layer(&Bounded { answers_within }).build();
    client.apiserver_version().await.context("the API server does not answer")?;
    Ok(client)
}

/// Gives up what is not answered in time.
struct Bounded {
    answers_within: Duration,
}

impl<S> Layer<S> for Bounded {
    type Service = BoundedService<S>;

    fn layer(&self, service: S) -> BoundedService<S> {
        BoundedService { service, answers_within: self.answers_within }
    }
}

struct BoundedService<S> {
    service: S,
    answers_within: Duration,
}

impl<S, R> Service<http::Request<Body>> for BoundedService<S>
where
    S: Service<http::Request<Body>, Response = R, Error = BoxError>,
    S::Future: Send + 'static,
{
    type Response = R;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<R, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let answers_within = self.answers_within;
        let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
        let answer = self.service.call(request);
        Box::pin(async move {
            if is_watch {
                return answer.await;
            }
            let seconds = answers_within.as_secs();
            let late = |_| Err(format!("no answer within {seconds} s, or none but that it is overloaded").into());
            tokio::time::timeout(answers_within, answer).await.unwrap_or_else(late)
        })
    }
}

//! A proxy between one client and a Kubernetes API server, for one client: it names each request, and does with it what a test says.
//!
//! Writes are judged by one judge, what is read and watched by another, who lets everything pass unless a test says otherwise. Writes of Leases pass too, because who leads is not what most tests are about, unless a test says that they are judged as well; so do dry runs. When a write has *struck*, nothing passes any more
//! until the proxy is told to go on: the client is about to be killed, and has done nothing else before.
//!
//! What watches hear can be held back, so that what the client has heard is older than what it has written.

use anyhow::{Context, Result};
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderName, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::runtime::Runtime;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is done.
    Done,
    /// It is not done: this status code is the answer.
    Refused(u16),
    /// It is not done, and there is no answer.
    Unanswered,
    /// It is not done, and strikes.
    StruckBefore,
    /// It is done, its answer is lost, and it strikes.
    StruckAfter,
}

/// Says what becomes of a request, by its name (`PATCH statefulsets/orders-unify`, `POST events`, `GET pods`, `WATCH secrets`) and its body.
pub type Judge = Box<dyn FnMut(&str, &str) -> Fate + Send>;

/// What watches hear. Cheap to clone.
#[derive(Clone)]
pub struct Watches {
    is_held: Arc<tokio::sync::watch::Sender<bool>>,
    heard: Arc<Mutex<String>>,
}

impl Watches {
    /// From now on no watch hears anything.
    pub fn hold(&self) {
        self.is_held.send_replace(true);
    }

    /// Watches hear what was held back, and everything else.
    pub fn release(&self) {
        self.is_held.send_replace(false);
    }

    /// What they have heard since the last call, as JSON.
    pub fn heard(&self) -> String {
        std::mem::take(&mut self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn pass(&self, part: &[u8]) {
        // Its sender lives as long as the proxy.
        let _ = self.is_held.subscribe().wait_for(|is_held| !is_held).await;
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).push_str(&String::from_utf8_lossy(part));
    }
}

/// A running proxy; it ends when it is dropped.
pub struct ApiProxy {
    kubeconfig: PathBuf,
    shared: Arc<Shared>,
    _folder: tempfile::TempDir,
    _runtime: Runtime,
}

struct Shared {
    upstream: String,
    client: reqwest::Client,
    state: Mutex<Judging>,
    judges_leases: AtomicBool,
    watches: Watches,
}

struct Judging {
    judge: Judge,
    /// Of what is read.
    reads: Judge,
    writes: Vec<String>,
    is_halted: bool,
    has_struck: bool,
}

impl Judging {
    fn by(judge: impl FnMut(&str, &str) -> Fate + Send + 'static) -> Judging {
        let reads = Box::new(|_: &str, _: &str| Fate::Done);
        Judging { judge: Box::new(judge), reads, writes: Vec::new(), is_halted: false, has_struck: false }
    }
}

impl ApiProxy {
    /// Starts one in front of the API server of a kubeconfig file.
    ///
    /// # Errors
    /// When it cannot listen, or the file is not as our harness writes it.
    pub fn start(kubeconfig: &Path) -> Result<ApiProxy> {
        let text = std::fs::read_to_string(kubeconfig)?;
        let mut config: Value = serde_yaml::from_str(&text)?;
        let cluster = config.pointer_mut("/clusters/0/cluster").context("a kubeconfig without a cluster")?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let upstream = text(&cluster["server"]).context("a cluster without a server")?;
        let authority = text(&cluster["certificate-authority"]).context("a cluster without an authority")?;
        let authority = reqwest::Certificate::from_pem(&std::fs::read(authority)?)?;
        let client = reqwest::Client::builder().add_root_certificate(authority).no_gzip().build()?;
        let state = Mutex::new(Judging::by(|_, _| Fate::Done));
        let watches = Watches { is_held: Arc::new(tokio::sync::watch::Sender::new(false)), heard: Arc::default() };
        let shared = Arc::new(Shared { upstream, client, state, judges_leases: AtomicBool::new(false), watches });
        let runtime = Runtime::new()?;
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
        *cluster = json!({"server": format!("http://{}", listener.local_addr()?)});
        let router = Router::new().fallback(pass).with_state(Arc::clone(&shared));
        runtime.spawn(async move { axum::serve(listener, router).await });
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("kubeconfig");
        std::fs::write(&path, serde_yaml::to_string(&config)?)?;
        Ok(ApiProxy { kubeconfig: path, shared, _folder: folder, _runtime: runtime })
    }

    /// For the client.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The same, as JSON.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn config(&self) -> Result<String> {
        let config: Value = serde_yaml::from_str(&std::fs::read_to_string(&self.kubeconfig)?)?;
        Ok(config.to_string())
    }

    /// What watches hear.
    pub fn watches(&self) -> Watches {
        self.shared.watches.clone()
    }

    /// From now on this one judges, and everything goes on; the names of the writes until now.
    pub fn go_on(&self, judge: impl FnMut(&str, &str) -> Fate + Send + 'static) -> Vec<String> {
        std::mem::replace(&mut *self.shared.judging(), Judging::by(judge)).writes
    }

    /// From now on, until it goes on, this one judges what is read.
    pub fn judge_reads(&self, mut judge: impl FnMut(&str) -> Fate + Send + 'static) {
        self.shared.judging().reads = Box::new(move |name, _| judge(name));
    }

    /// From now on writes of Leases are judged, too.
    pub fn judge_leases(&self) {
        self.shared.judges_leases.store(true, Ordering::Relaxed);
    }

    /// Has a write struck, and is it done, if it is to be?
    pub fn has_struck(&self) -> bool {
        self.shared.judging().has_struck
    }
}

impl Shared {
    fn judging(&self) -> MutexGuard<'_, Judging> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing: it stands still.
    fn fate(&self, asked: Option<Asked>, body: &[u8]) -> Option<Fate> {
        let mut judging = self.judging();
        if judging.is_halted {
            return None;
        }
        let body = String::from_utf8_lossy(body);
        let fate = match asked {
            None => return Some(Fate::Done),
            Some(Asked { name, is_write: false }) => (judging.reads)(&name, &body),
            Some(Asked { name, is_write: true }) => {
                let fate = (judging.judge)(&name, &body);
                judging.writes.push(name);
                fate
            }
        };
        judging.is_halted = matches!(fate, Fate::StruckBefore | Fate::StruckAfter);
        Some(fate)
    }

    /// What is asked, but for what these tests are not about.
    fn asked(&self, method: &Method, uri: &Uri) -> Option<Asked> {
        let queries = |what: &str| uri.query().is_some_and(|query| query.contains(what));
        if queries("dryRun") {
            return None;
        }
        let path = uri.path();
        let what =
            path.split_once("/namespaces/").and_then(|(_, rest)| rest.split_once('/')).map_or(path, |(_, what)| what);
        // One that repeats itself is counted in the first one, which has a name of its own.
        let what = if what.starts_with("events") { "events" } else { what };
        let method = if queries("watch=true") { "WATCH" } else { method.as_str() };
        let is_write = !["GET", "WATCH"].contains(&method);
        let is_judged = !what.starts_with("leases") || (is_write && self.judges_leases.load(Ordering::Relaxed));
        is_judged.then(|| Asked { name: format!("{method} {what}"), is_write })
    }

    async fn forward(&self, head: Parts, body: Bytes) -> Result<Response> {
        let target = format!("{}{}", self.upstream, head.uri);
        let is_watch = head.uri.query().is_some_and(|query| query.contains("watch=true"));
        let mut asked = self.client.request(head.method, target).body(body);
        for (name, value) in head.headers.iter().filter(|(name, _)| !is_of_connection(name)) {
            asked = asked.header(name, value);
        }
        let answer = asked.send().await?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let watches = is_watch.then(|| self.watches.clone());
        let parts = futures::stream::unfold((answer, watches), |(mut answer, watches)| async {
            let part = answer.chunk().await.map_err(std::io::Error::other).transpose()?;
            if let (Some(watches), Ok(part)) = (&watches, &part) {
                watches.pass(part).await;
            }
            Some((part, (answer, watches)))
        });
        let mut response = Response::new(Body::from_stream(parts));
        *response.status_mut() = status;
        response.headers_mut().extend(headers.into_iter().filter_map(|(name, value)| Some((name?, value))));
        response.headers_mut().remove(header::TRANSFER_ENCODING);
        Ok(response)
    }
}

async fn pass(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let Ok(body) = to_bytes(body, usize::MAX).await else { return StatusCode::BAD_REQUEST.into_response() };
    // A judge may wait for what a watch hears.
    let fate = tokio::task::block_in_place(|| shared.fate(shared.asked(&head.method, &head.uri), &body));
    match fate {
        Some(Fate::Done) => shared.forward(head, body).await.unwrap_or_else(|error| away(&error)),
        Some(Fate::Refused(code)) => refusal(code),
        Some(Fate::StruckBefore) => {
            shared.judging().has_struck = true;
            std::future::pending().await
        }
        Some(Fate::StruckAfter) => {
            // Its end is the end of the write.
            if let Ok(response) = shared.forward(head, body).await {
                drop(to_bytes(response.into_body(), usize::MAX).await);
            }
            shared.judging().has_struck = true;
            std::future::pending().await
        }
        Some(Fate::Unanswered) | None => std::future::pending().await,
    }
}

fn away(error: &anyhow::Error) -> Response {
    (StatusCode::BAD_GATEWAY, format!("{error:#}")).into_response()
}

/// As the API server says it.
fn refusal(code: u16) -> Response {
    let reason = match code {
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        422 => "Invalid",
        429 => "TooManyRequests",
        _ => "InternalError",
    };
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "the test refuses it", "reason": reason, "code": code});
    (StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), Json(status)).into_response()
}

/// A request that is judged.
struct Asked {
    name: String,
    is_write: bool,
}

/// Headers that are about this connection only.
fn is_of_connection(name: &HeaderName) -> bool {
    [header::HOST, header::CONNECTION, header::CONTENT_LENGTH, header::TRANSFER_ENCODING].contains(name)
}

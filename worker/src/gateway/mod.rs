//! The gateway: records in over HTTP, envelopes out to `ingress`.
//!
//! A request is authenticated, its body read within its limits, split into records ([`millstream_stages::source`]), and answered per record
//! after the log has acknowledged the frames that its envelopes went into ([`ingress`]). The promise is I2: a record that was
//! answered `accepted` is in `ingress`. The opposite does not hold: when the log does not answer in time the outcome is unknown, the answer is
//! 503, and it names the ids with which the records are to be repeated; a repetition of what did get in is a duplicate to unify.
//!
//! A tenant that sends more than its rate is answered 429 before anything of the request is written ([`rate`]).
//!
//! Order (I3): records of one request that share a routing key are appended in their order, and a sender that waits for the answer before it
//! sends the next request has its order kept. Nothing is taken into memory that was not bounded first ([`body`]).

mod answer;
mod auth;
mod body;
mod connection;
mod ingress;
mod media;
mod openapi;
mod rate;
mod routes;
mod schemas;
mod serve;
mod trace;

pub use answer::{Answer, ErrorAnswer, ErrorBody, RecordAnswer, RecordError};
pub use connection::Patience;
pub use openapi::openapi_json;
pub use serve::{MAX_CONNECTIONS, Serving, serve};

use crate::config::Config;
use crate::telemetry::metrics::{Metrics, Outcome};
use crate::telemetry::traces::SpanExporter;
use answer::{Failure, Family, json};
pub use auth::Keyring;
use auth::Sender;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use body::{BodyLimits, Budget, Taken};
use bytes::Bytes;
use futures::FutureExt;
use ingress::{Fate, Ingress, IngressSettings, Part};
use millstream_model::proto::Envelope;
use millstream_model::reject::Reason;
use millstream_shard::log::Producer;
use millstream_shard::topics::Topics;
use millstream_stages::source::{self, Accepted, Endpoint};
use prost::Message;
use routes::{ROUTES, Route, Target};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use trace::RequestTrace;
use tracing::Instrument;

/// Bodies larger than this are split on a blocking thread, so that they do not hold up other requests: 256 KiB take about a millisecond.
const SPLIT_ELSEWHERE: usize = 256 * 1024;

/// Where the OpenAPI document is.
const DESCRIPTION: &str = "/openapi.json";

/// The gateway of one process. Cheap to clone.
#[derive(Clone)]
pub struct GatewayState(Arc<Gateway>);

struct Gateway {
    keys: Arc<Keyring>,
    limits: source::Limits,
    body_limits: BodyLimits,
    budget: Budget,
    budget_bytes: usize,
    acknowledge_timeout: Duration,
    sample_ratio: f64,
    ingress: Ingress,
    metrics: Arc<Metrics>,
    spans: SpanExporter,
}

impl GatewayState {
    /// A gateway that sends with `producer`, for those who are in `keys`. Must be called within a tokio runtime.
    pub fn new(
        config: &Config,
        keys: Arc<Keyring>,
        producer: Box<dyn Producer>,
        metrics: Arc<Metrics>,
        spans: SpanExporter,
    ) -> GatewayState {
        let topics = Topics::new(config.pipeline.as_str(), config.shards.0, config.generation);
        let settings = IngressSettings {
            topic: topics.ingress,
            shards: config.shards.0,
            coalesce: config.gateway.coalesce.duration(),
        };
        let budget_bytes = config.gateway.in_flight_bytes.bytes().min(Semaphore::MAX_PERMITS);
        GatewayState(Arc::new(Gateway {
            keys,
            limits: config.limits.source(),
            body_limits: BodyLimits {
                bytes: config.limits.request_bytes.bytes(),
                compressed: config.limits.compressed_bytes.bytes(),
                timeout: config.gateway.body_timeout.duration(),
            },
            budget: Budget(Arc::new(Semaphore::new(budget_bytes))),
            budget_bytes,
            acknowledge_timeout: config.gateway.acknowledge_timeout.duration(),
            sample_ratio: config.telemetry.sample_ratio.0,
            ingress: Ingress::new(settings, producer, metrics.gateway.clone()),
            metrics,
            spans,
        }))
    }
}

/// The public port.
pub fn router(state: GatewayState) -> Router {
    let mut router = Router::new();
    for route in &ROUTES {
        let handler = move |State(state): State<GatewayState>, request: Request| handle(state, route, request);
        router = router.route(route.path, post(handler));
    }
    router
        .route(DESCRIPTION, get(|| async { ([(header::CONTENT_TYPE, "application/json")], openapi_json()) }))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(state)
}

async fn unknown_path(request: Request) -> Response {
    let message =
        format!("there is nothing at {}; GET /openapi.json lists what there is", request.uri().path().escape_debug());
    refuse(&request, &Failure::new(StatusCode::NOT_FOUND, "unknown_path", message))
}

async fn wrong_method(request: Request) -> Response {
    let (method, path) = (request.method(), request.uri().path());
    let instead = if path == DESCRIPTION { "send GET" } else { "send POST with the records as body" };
    let message = format!("{method} is not for {path}; {instead}");
    refuse(&request, &Failure::new(StatusCode::METHOD_NOT_ALLOWED, "wrong_method", message))
}

fn refuse(request: &Request, failure: &Failure) -> Response {
    let request_id = request_id(request.headers());
    with_request_id(failure.render(Family::Native, &request_id), &request_id)
}

/// What is known of a request while it is being answered.
struct Context {
    request_id: String,
    family: Family,
    endpoint: Option<Endpoint>,
    tenant: Option<Arc<str>>,
    trace: RequestTrace,
    records: usize,
}

async fn handle(GatewayState(gateway): GatewayState, route: &'static Route, request: Request) -> Response {
    let trace = RequestTrace::of(request.headers(), gateway.sample_ratio);
    let request_id = request_id(request.headers());
    // At the highest level, so that it is there whatever `log_filter` lets through: lines of any level carry its fields.
    let span = tracing::error_span!("request", request_id, trace_id = trace.id(), tenant = tracing::field::Empty);
    let mut context =
        Context { request_id, family: route.target.family(), endpoint: None, tenant: None, trace, records: 0 };
    async {
        let answering = AssertUnwindSafe(gateway.answer(&mut context, route.target, request)).catch_unwind();
        let result = answering.await.unwrap_or_else(|_| Err(Failure::internal("a handler panicked")));
        let response = result.unwrap_or_else(|failure| {
            tracing::debug!(status = failure.status.as_u16(), reason = failure.reason, "refused");
            failure.render(context.family, &context.request_id)
        });
        gateway.note(&context, route, response.status());
        with_request_id(response, &context.request_id)
    }
    .instrument(span)
    .await
}

impl Gateway {
    async fn answer(&self, context: &mut Context, target: Target, request: Request) -> Result<Response, Failure> {
        let (head, body) = request.into_parts();
        let (sender, scheme) = self.keys.authenticate(&head.headers)?;
        let tenant = sender.name.clone();
        let endpoint = target.endpoint(scheme);
        tracing::Span::current().record("tenant", &*tenant);
        context.family = routes::family(endpoint);
        context.endpoint = Some(endpoint);
        context.tenant = Some(tenant.clone());
        let (accepted, bytes, taken) = self.take_in(context, &sender, endpoint, &head.headers, body).await?;
        context.records = accepted.len();
        self.meter(context, &sender, &accepted, bytes)?;
        Ok(self.send(context, &tenant, accepted, taken).await)
    }

    /// Reads and splits a request; also how many bytes its body has.
    async fn take_in(
        &self,
        context: &Context,
        sender: &Sender,
        endpoint: Endpoint,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<(Vec<Accepted>, usize, Taken), Failure> {
        let ndjson = media::is_ndjson(headers, context.family)?;
        let idempotency_key = idempotency_key(headers)?;
        let (body, mut taken) = body::read(body, headers, self.body_limits, &self.budget).await?;
        let bytes = body.len();
        self.metrics.gateway.body(&sender.name, bytes);
        if body.is_empty() {
            let message = "the body is empty; send the records as JSON, with Content-Length or chunked";
            return Err(Failure::new(StatusCode::BAD_REQUEST, "malformed_json", message));
        }
        let split = Split {
            tenant: sender.name.clone(),
            endpoint,
            body,
            ndjson,
            idempotency_key,
            received_ms: now().as_millis() as i64,
            trace: context.trace.sampled(),
            limits: self.limits_of(sender),
        };
        let accepted = split.run().await?;
        self.budget.grow(encoded_len(&accepted), &mut taken)?;
        self.note_in_flight();
        Ok((accepted, bytes, taken))
    }

    /// What unify will not take is refused here, where its sender hears of it.
    fn limits_of(&self, sender: &Sender) -> source::Limits {
        let own = self.limits.max_record_bytes;
        let max_record_bytes = sender.max_record_bytes.map_or(own, |of_tenant| of_tenant.min(own));
        source::Limits { max_record_bytes, ..self.limits.clone() }
    }

    /// Does the tenant's rate allow a request? Records that were refused cost nothing, since nobody will process them.
    fn meter(&self, context: &Context, sender: &Sender, records: &[Accepted], bytes: usize) -> Result<(), Failure> {
        let Some(meter) = &sender.meter else { return Ok(()) };
        let good = records.iter().filter(|record| matches!(record, Accepted::Envelope(_))).count();
        meter.take(good, bytes, self.keys.now()).map_err(|rate::Limited { what, per_second, retry_after_s }| {
            self.metrics.gateway.records(&sender.name, context.family.source(), Outcome::Limited, records.len());
            let message = format!(
                "this tenant may send {per_second} {what} per second, and has sent more; nothing of this request was taken: send it again, with the same ids, in {retry_after_s} s"
            );
            Failure::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", message).retry_after(retry_after_s)
        })
    }

    /// Sends what was accepted, and waits until the log has decided or the time is up.
    async fn send(&self, context: &Context, tenant: &str, accepted: Vec<Accepted>, taken: Taken) -> Response {
        let (mut records, envelopes) = self.sort_out(tenant, accepted);
        let held: Arc<dyn Send + Sync> = Arc::new(taken);
        let parts = self.ingress.submit(&envelopes, &held);
        drop((envelopes, held));
        let deadline = Instant::now() + self.acknowledge_timeout;
        for Part { positions, fate } in parts {
            let acknowledged = matches!(tokio::time::timeout_at(deadline, fate).await, Ok(Ok(Fate::Acknowledged)));
            let status = if acknowledged { "accepted" } else { "unknown" };
            for position in positions {
                if let Some(record) = records.get_mut(position) {
                    record.status = status;
                }
            }
        }
        self.respond(context, tenant, records)
    }

    /// The answers so far, and the envelopes with their positions.
    fn sort_out(&self, tenant: &str, accepted: Vec<Accepted>) -> (Vec<RecordAnswer>, Vec<(usize, Envelope)>) {
        let mut records = Vec::with_capacity(accepted.len());
        let mut envelopes = Vec::with_capacity(accepted.len());
        for (position, accepted) in accepted.into_iter().enumerate() {
            records.push(match accepted {
                Accepted::Envelope(envelope) => {
                    let message_id = Some(envelope.message_id.clone());
                    envelopes.push((position, envelope));
                    RecordAnswer { message_id, status: "unknown", error: None }
                }
                Accepted::Refused { message_id, refusal } => {
                    self.metrics.gateway.reject(tenant, refusal.reason);
                    RecordAnswer { message_id, status: "rejected", error: Some(refusal.into()) }
                }
            });
        }
        (records, envelopes)
    }

    fn respond(&self, context: &Context, tenant: &str, records: Vec<RecordAnswer>) -> Response {
        let count = |status| records.iter().filter(|record| record.status == status).count();
        let (accepted, rejected, unknown) = (count("accepted"), count("rejected"), count("unknown"));
        let source = context.family.source();
        let metrics = &self.metrics.gateway;
        metrics.records(tenant, source, Outcome::Accepted, accepted);
        metrics.records(tenant, source, Outcome::Rejected, rejected);
        metrics.records(tenant, source, Outcome::Unknown, unknown);
        if unknown > 0 {
            // Here, and not where the log reports it: this is the request's own context, with its trace.
            tracing::warn!(
                source,
                unknown,
                accepted,
                rejected,
                "the log did not acknowledge records in time; the sender was told to repeat them"
            );
        }
        let status = match (accepted, rejected, unknown) {
            (_, _, 1..) => StatusCode::SERVICE_UNAVAILABLE,
            (0, 1.., 0) if is_too_large(context, &records) => StatusCode::PAYLOAD_TOO_LARGE,
            (0, 1.., 0) => StatusCode::BAD_REQUEST,
            _ => StatusCode::OK,
        };
        let answer = answer(context, status, (accepted, rejected), records);
        let mut response = json(status, &answer);
        if unknown > 0 {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }

    /// Counts the request, logs it for who looks for it by its trace, and exports its span.
    fn note(&self, context: &Context, route: &Route, status: StatusCode) {
        self.metrics.gateway.request(context.family.source(), status.as_u16());
        tracing::debug!(route = route.path, status = status.as_u16(), records = context.records, "answered");
        self.note_in_flight();
        let kind = context.endpoint.map_or("request", routes::name);
        let name = format!("gateway {} {kind}", context.family.source());
        let attributes = vec![
            ("http.request.method", "POST".to_owned()),
            ("http.route", route.path.to_owned()),
            ("http.response.status_code", status.as_u16().to_string()),
            ("millstream.tenant", context.tenant.as_deref().unwrap_or_default().to_owned()),
            ("millstream.records", context.records.to_string()),
            ("millstream.request_id", context.request_id.clone()),
        ];
        if let Some(span) = context.trace.finish(name, attributes, status.is_server_error()) {
            self.spans.export(span);
        }
    }

    fn note_in_flight(&self) {
        let taken = self.budget_bytes.saturating_sub(self.budget.0.available_permits());
        self.metrics.gateway.in_flight_bytes.set(i64::try_from(taken).unwrap_or(i64::MAX));
    }
}

/// Is it a request for one record, which as a whole is too large?
fn is_too_large(context: &Context, records: &[RecordAnswer]) -> bool {
    let only = context.endpoint.is_some_and(Endpoint::is_single).then(|| records.first()).flatten();
    let error = only.and_then(|record| record.error.as_ref());
    error.is_some_and(|error| error.reason == Reason::TooLarge.code() && error.field.is_none())
}

fn answer(
    context: &Context,
    status: StatusCode,
    (accepted, rejected): (usize, usize),
    records: Vec<RecordAnswer>,
) -> Answer {
    let (family, unknown) = (context.family, status == StatusCode::SERVICE_UNAVAILABLE);
    let retry =
        records.iter().filter(|record| record.status == "unknown").filter_map(|record| record.message_id.clone());
    let retry: Vec<String> = retry.collect();
    let failure = if unknown {
        let message = "the log did not acknowledge these records in time: they may or may not be in; repeat those in `retry` with the same ids";
        Some(Failure::new(status, "unknown_outcome", message))
    } else {
        let first = records.iter().find_map(|record| record.error.clone());
        let first = first.filter(|_| family == Family::DataApi && status.is_client_error());
        first.map(|error| Failure { field: error.field, ..Failure::new(status, error.reason, error.message) })
    };
    Answer {
        success: (family == Family::Segment).then_some(status == StatusCode::OK),
        status: match (unknown, family) {
            (true, _) => Some("unknown"),
            (false, Family::DataApi) => Some(if status == StatusCode::OK { "success" } else { "fail" }),
            (false, _) => None,
        },
        accepted,
        rejected,
        request_id: context.request_id.clone(),
        records,
        retry,
        error: failure.map(|failure| failure.body(family, &context.request_id)),
    }
}

/// What the envelopes of a request take in frames. It can be many times the body: each has a copy of the batch's `context`.
fn encoded_len(accepted: &[Accepted]) -> usize {
    let len = |accepted: &Accepted| match accepted {
        Accepted::Envelope(envelope) => envelope.encoded_len(),
        Accepted::Refused { .. } => 0,
    };
    accepted.iter().map(len).sum()
}

/// A request that is ready to be split; it owns what it needs, so that it can go to another thread.
struct Split {
    tenant: Arc<str>,
    endpoint: Endpoint,
    body: Bytes,
    ndjson: bool,
    idempotency_key: Option<String>,
    received_ms: i64,
    trace: Option<millstream_model::proto::TraceContext>,
    limits: source::Limits,
}

impl Split {
    async fn run(self) -> Result<Vec<Accepted>, Failure> {
        if self.body.len() <= SPLIT_ELSEWHERE {
            return self.split();
        }
        let split = tokio::task::spawn_blocking(move || self.split()).await;
        split.map_err(|error| Failure::internal(&format!("splitting: {error}")))?
    }

    fn split(&self) -> Result<Vec<Accepted>, Failure> {
        let request = source::Request {
            tenant: &self.tenant,
            endpoint: self.endpoint,
            body: &self.body,
            ndjson: self.ndjson,
            idempotency_key: self.idempotency_key.as_deref(),
            received_ms: self.received_ms,
            trace: self.trace.clone(),
        };
        Ok(source::split(&request, &self.limits, &mut new_message_id)?)
    }
}

fn new_message_id() -> String {
    format!("gw-{:032x}", rand::random::<u128>())
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Failure> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let key = value.to_str().map(str::to_owned).map_err(|_| {
        let message = "the header Idempotency-Key must be printable ASCII";
        let failure = Failure::new(StatusCode::BAD_REQUEST, "invalid_value", message);
        Failure { field: Some("Idempotency-Key".to_owned()), ..failure }
    });
    key.map(Some)
}

/// The sender's request id when it is usable, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get("x-request-id").and_then(|value| value.to_str().ok()).map(str::trim);
    let usable = given.filter(|id| (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic()));
    usable.map_or_else(|| format!("{:032x}", rand::random::<u128>()), str::to_owned)
}

fn with_request_id(response: Response, request_id: &str) -> Response {
    match HeaderValue::from_str(request_id) {
        Ok(value) => ([("x-request-id", value)], response).into_response(),
        Err(_) => response,
    }
}

/// Time since 1970.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

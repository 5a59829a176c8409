//! Traces: finished spans to a collector by OTLP over HTTP (`POST <endpoint>/v1/traces`, Protobuf).
//!
//! The stages give their spans ids of their own (functions of the record, so that a batch that is processed again names the same span), so
//! spans are handed over complete; there is no tracer. [`SpanExporter::export`] never waits: a bounded queue drops what does
//! not fit, and counts it. One thread sends, in requests of up to [`MAX_BATCH`] spans, at latest [`LINGER`] after the first.

use super::metrics::SpanMetrics;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1 as otlp;
use prost::Message;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Spans that may wait: some seconds of full sampling at 1,000 records a second, about 2 MB.
const QUEUE: usize = 8192;
/// Most spans of one request to the collector.
const MAX_BATCH: usize = 512;
/// How long a span waits for others.
const LINGER: Duration = Duration::from_millis(500);
/// A collector that takes longer is broken.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A finished span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Trace it belongs to.
    pub trace_id: [u8; 16],
    /// The span that caused it.
    pub parent: Option<[u8; 8]>,
    /// Its own id.
    pub span_id: [u8; 8],
    /// The trace's `tracestate`, or empty.
    pub state: String,
    /// What was done: `unify segment identify`.
    pub name: String,
    /// Begin, nanoseconds since 1970.
    pub start_ns: u64,
    /// End, nanoseconds since 1970.
    pub end_ns: u64,
    /// What else is known; names as in OpenTelemetry's conventions, or `millstream.*`.
    pub attributes: Vec<(&'static str, String)>,
    /// It failed.
    pub error: bool,
}

enum Command {
    Export(Box<Span>),
    Flush(SyncSender<()>),
}

/// Hands spans to the exporting thread. Cheap to clone; the thread ends, having sent the rest, when the last clone is gone.
#[derive(Clone, Debug)]
pub struct SpanExporter {
    queue: Option<SyncSender<Command>>,
    metrics: SpanMetrics,
}

impl SpanExporter {
    /// Exports nothing.
    pub fn disabled() -> SpanExporter {
        SpanExporter { queue: None, metrics: SpanMetrics::default() }
    }

    /// Exports to `endpoint`, for example `http://127.0.0.1:4318`, as `service` (`millstream-gateway`). No endpoint: exports nothing.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(endpoint: Option<&str>, service: &str, metrics: SpanMetrics) -> std::io::Result<SpanExporter> {
        let Some(endpoint) = endpoint else { return Ok(SpanExporter { queue: None, metrics }) };
        let (sender, receiver) = sync_channel(QUEUE);
        let exporting = Exporting {
            url: traces_url(endpoint),
            service: service.to_owned(),
            metrics: metrics.clone(),
            failing: false,
        };
        std::thread::Builder::new().name("spans".to_owned()).spawn(move || exporting.run(&receiver))?;
        Ok(SpanExporter { queue: Some(sender), metrics })
    }

    /// Are spans wanted at all?
    pub fn is_enabled(&self) -> bool {
        self.queue.is_some()
    }

    /// Takes a span; drops it, and counts that, when the queue is full.
    pub fn export(&self, span: Span) {
        let Some(queue) = &self.queue else { return };
        if queue.try_send(Command::Export(Box::new(span))).is_err() {
            self.metrics.dropped.inc();
        }
    }

    /// Waits until everything taken so far has been sent or given up, at most `timeout`. For the end of a process; it blocks.
    pub fn flush(&self, timeout: Duration) {
        let Some(queue) = &self.queue else { return };
        let (done, wait) = sync_channel(1);
        let deadline = Instant::now() + timeout;
        let mut command = Command::Flush(done);
        while let Err(std::sync::mpsc::TrySendError::Full(back)) = queue.try_send(command) {
            if Instant::now() >= deadline {
                return;
            }
            command = back;
            std::thread::yield_now();
        }
        let _ = wait.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

fn traces_url(endpoint: &str) -> String {
    let endpoint = endpoint.trim_end_matches('/');
    if endpoint.ends_with("/v1/traces") { endpoint.to_owned() } else { format!("{endpoint}/v1/traces") }
}

/// The thread's side.
struct Exporting {
    url: String,
    service: String,
    metrics: SpanMetrics,
    failing: bool,
}

impl Exporting {
    fn run(mut self, queue: &Receiver<Command>) {
        let client = match reqwest::blocking::Client::builder().timeout(TIMEOUT).build() {
            Ok(client) => client,
            Err(error) => {
                tracing::error!(%error, "spans cannot be exported");
                return;
            }
        };
        while let Ok(first) = queue.recv() {
            let (spans, flushed) = collect(first, queue);
            self.send(&client, spans);
            if let Some(done) = flushed {
                let _ = done.try_send(());
            }
        }
    }

    fn send(&mut self, client: &reqwest::blocking::Client, spans: Vec<Span>) {
        if spans.is_empty() {
            return;
        }
        let count = spans.len() as u64;
        let body = request(&self.service, spans).encode_to_vec();
        let answer = client.post(&self.url).header("content-type", "application/x-protobuf").body(body).send();
        let failure = match answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("status {}", answer.status())),
            Err(error) => Some(error.without_url().to_string()),
        };
        match &failure {
            None => self.metrics.exported.inc_by(count),
            Some(_) => self.metrics.dropped.inc_by(count),
        };
        self.note(failure.as_deref());
    }

    /// Logs changes only: a collector that is away for hours is one line.
    fn note(&mut self, failure: Option<&str>) {
        match failure {
            Some(why) if !self.failing => {
                tracing::warn!(url = %self.url, why, "the collector takes no spans; they are dropped")
            }
            None if self.failing => tracing::info!(url = %self.url, "the collector takes spans again"),
            _ => {}
        }
        self.failing = failure.is_some();
    }
}

/// The spans that come within [`LINGER`], and who waits for them to be gone.
fn collect(first: Command, queue: &Receiver<Command>) -> (Vec<Span>, Option<SyncSender<()>>) {
    let deadline = Instant::now() + LINGER;
    let mut spans = Vec::new();
    let mut next = Ok(first);
    loop {
        match next {
            Ok(Command::Export(span)) => spans.push(*span),
            Ok(Command::Flush(done)) => return (spans, Some(done)),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return (spans, None),
        }
        if spans.len() >= MAX_BATCH {
            return (spans, None);
        }
        next = queue.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

fn request(service: &str, spans: Vec<Span>) -> ExportTraceServiceRequest {
    let resource = Resource {
        attributes: vec![
            attribute("service.name", service.to_owned()),
            attribute("service.version", env!("CARGO_PKG_VERSION").to_owned()),
        ],
        ..Resource::default()
    };
    let scope = InstrumentationScope { name: "millstream".to_owned(), ..InstrumentationScope::default() };
    let spans = spans.into_iter().map(otlp_span).collect();
    let scope_spans = vec![otlp::ScopeSpans { scope: Some(scope), spans, schema_url: String::new() }];
    let resource_spans = otlp::ResourceSpans { resource: Some(resource), scope_spans, schema_url: String::new() };
    ExportTraceServiceRequest { resource_spans: vec![resource_spans] }
}

fn otlp_span(span: Span) -> otlp::Span {
    let kind = if span.parent.is_some() { otlp::span::SpanKind::Consumer } else { otlp::span::SpanKind::Server };
    let code = if span.error { otlp::status::StatusCode::Error } else { otlp::status::StatusCode::Unset };
    otlp::Span {
        trace_id: span.trace_id.to_vec(),
        span_id: span.span_id.to_vec(),
        parent_span_id: span.parent.map(|parent| parent.to_vec()).unwrap_or_default(),
        trace_state: span.state,
        name: span.name,
        kind: kind.into(),
        start_time_unix_nano: span.start_ns,
        end_time_unix_nano: span.end_ns,
        attributes: span.attributes.into_iter().map(|(name, value)| attribute(name, value)).collect(),
        status: Some(otlp::Status { code: code.into(), message: String::new() }),
        ..otlp::Span::default()
    }
}

fn attribute(name: &str, value: String) -> KeyValue {
    let value = AnyValue { value: Some(any_value::Value::StringValue(value)) };
    KeyValue { key: name.to_owned(), value: Some(value), ..KeyValue::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    fn span(number: u8) -> Span {
        Span {
            trace_id: [7; 16],
            parent: Some([1; 8]),
            span_id: [number; 8],
            state: "a=1".to_owned(),
            name: "unify segment identify".to_owned(),
            start_ns: 5,
            end_ns: 9,
            attributes: vec![("millstream.tenant", "acme".to_owned())],
            error: false,
        }
    }

    /// Reads one HTTP request, answers it, and returns its body.
    fn take_request(stream: &mut TcpStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let text = String::from_utf8_lossy(&bytes).to_lowercase();
            if text.contains("\r\n\r\n") {
                let length = text.split("content-length: ").nth(1).unwrap().lines().next().unwrap();
                let headers = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
                assert!(text.starts_with("post /v1/traces"), "{text}");
                if bytes.len() >= headers + length.parse::<usize>().unwrap() {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
                    return bytes.split_off(headers);
                }
            }
            let read = stream.read(&mut buffer).unwrap();
            assert!(read > 0, "the request was cut");
            bytes.extend_from_slice(&buffer[..read]);
        }
    }

    #[test]
    fn spans_reach_a_collector_as_they_are() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let metrics = SpanMetrics::default();
        let exporter = SpanExporter::start(Some(&endpoint), "millstream-test", metrics.clone()).unwrap();
        exporter.export(span(2));
        exporter.export(span(3));
        let collector = std::thread::spawn(move || take_request(&mut listener.accept().unwrap().0));
        exporter.flush(Duration::from_secs(20));
        let request = ExportTraceServiceRequest::decode(collector.join().unwrap().as_slice()).unwrap();
        let spans = &request.resource_spans[0].scope_spans[0].spans;
        assert_eq!(spans.iter().map(|span| span.span_id.as_slice()).collect::<Vec<_>>(), [[2; 8], [3; 8]]);
        assert_eq!((spans[0].trace_id.as_slice(), spans[0].parent_span_id.as_slice()), (&[7; 16][..], &[1; 8][..]));
        assert_eq!((spans[0].start_time_unix_nano, spans[0].end_time_unix_nano), (5, 9));
        assert_eq!((spans[0].attributes[0].key.as_str(), spans[0].trace_state.as_str()), ("millstream.tenant", "a=1"));
        assert_eq!((metrics.exported.get(), metrics.dropped.get()), (2, 0));
    }

    #[test]
    fn a_collector_that_is_away_costs_spans_and_nothing_else() {
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let metrics = SpanMetrics::default();
        let exporter =
            SpanExporter::start(Some(&format!("http://{gone}")), "millstream-test", metrics.clone()).unwrap();
        for _ in 0..QUEUE * 3 {
            exporter.export(span(1));
        }
        exporter.flush(Duration::from_secs(60));
        assert_eq!((metrics.exported.get(), metrics.dropped.get()), (0, QUEUE as u64 * 3));
    }

    #[test]
    fn the_path_is_added_once() {
        assert_eq!(traces_url("http://h:4318/"), "http://h:4318/v1/traces");
        assert_eq!(traces_url("http://h:4318/v1/traces"), "http://h:4318/v1/traces");
    }
}

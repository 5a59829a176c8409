//! One trace from the HTTP request to the document write, as a collector of ours receives it by OTLP.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use millstream_model::id::hex;
use millstream_tests::conformance::unique;
use millstream_tests::load::{generated, settings};
use millstream_tests::pipeline::{Pipeline, Settings, until};
use millstream_tests::servers::{Kafka, Mongo};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
const STATE: &str = "congo=t61rcWkgMzE,rojo=1";

/// Collects spans; gives its URL.
fn collector(spans: Arc<Mutex<Vec<Span>>>) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let take = move |body: Bytes| async move {
                let request = ExportTraceServiceRequest::decode(body).unwrap();
                let received = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
                spans.lock().unwrap().extend(received.flat_map(|scope| scope.spans));
            };
            let app = Router::new().route("/v1/traces", post(take));
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, app).await.unwrap();
        });
    });
    url
}

#[test]
fn one_trace_spans_all_stages() {
    let spans = Arc::new(Mutex::new(Vec::new()));
    let load = generated(1, 1, 10).unwrap();
    let mut settings = settings(&unique("trace"), &load);
    settings.otlp = Some(collector(spans.clone()));
    expect_one_trace(&Pipeline::local(&settings).unwrap(), &settings, &spans);
}

/// What is said in one process must come through topics and between processes, too.
#[test]
fn one_trace_spans_the_processes_of_a_pipeline() {
    let spans = Arc::new(Mutex::new(Vec::new()));
    let load = generated(1, 1, 10).unwrap();
    let mut settings = settings(&unique("trace"), &load);
    settings.kafka = Some(Kafka::shared().unwrap().bootstrap().to_owned());
    settings.mongodb = Some(Mongo::shared().unwrap().uri().to_owned());
    settings.otlp = Some(collector(spans.clone()));
    let pipeline = Pipeline::roles(&settings).unwrap();
    let found = expect_one_trace(&pipeline, &settings, &spans);
    assert!(found.iter().all(|span| span.trace_state == STATE), "{found:#?}");
}

fn expect_one_trace(pipeline: &Pipeline, settings: &Settings, spans: &Mutex<Vec<Span>>) -> Vec<Span> {
    let answer = reqwest::blocking::Client::new()
        .post(format!("{}/v1/batch", pipeline.gateway().unwrap().url()))
        .bearer_auth(&settings.tenants[0].1)
        .header("traceparent", format!("00-{TRACE}-{PARENT}-01"))
        .header("tracestate", STATE)
        .header("content-type", "application/json")
        .body(r#"{"batch":[{"type":"event","message_id":"traced","event":"Opened","identifiers":{"user_id":"traced-1"}}]}"#)
        .send()
        .unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().unwrap());
    let stages = ["unify", "action", "reaction"];
    let found = until("spans of all stages", || {
        let spans: Vec<Span> =
            spans.lock().unwrap().iter().filter(|span: &&Span| hex(&span.trace_id) == TRACE).cloned().collect();
        let has = |stage: &str| spans.iter().any(|span| span.name.starts_with(stage));
        Ok((stages.into_iter().all(has) && spans.len() > stages.len()).then_some(spans))
    })
    .unwrap();
    let ids: BTreeSet<String> = found.iter().map(|span| hex(&span.span_id)).collect();
    assert_eq!(ids.len(), found.len(), "each span once");
    let roots: Vec<&Span> = found.iter().filter(|span| !ids.contains(&hex(&span.parent_span_id))).collect();
    assert_eq!(roots.len(), 1, "one tree: {found:#?}");
    assert_eq!(hex(&roots[0].parent_span_id), PARENT, "the sender's span is the parent of the gateway's");
    assert!(found.iter().all(|span| span.end_time_unix_nano >= span.start_time_unix_nano));
    found
}

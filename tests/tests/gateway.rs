//! The gateway over HTTP, with a log in memory that can misbehave.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod support;

use millstream::config::{Millis, Size};
use millstream_model::proto::Source;
use serde_json::{Value, json};
use std::io::Write;
use std::sync::Arc;
use support::{Answer, DEADLINE, Gateway, Mode, config};

/// base64 of `key-acme:`, as Segment's SDKs send it.
const BASIC: (&str, &str) = ("authorization", "Basic a2V5LWFjbWU6");

fn user(message_id: &str, user_id: &str) -> Value {
    json!({"type": "user", "message_id": message_id, "identifiers": {"user_id": user_id}, "set": {"plan": "pro"}})
}

fn batch(records: impl IntoIterator<Item = Value>) -> String {
    json!({"batch": records.into_iter().collect::<Vec<_>>()}).to_string()
}

fn statuses(answer: &Answer) -> Vec<&str> {
    answer.body["records"].as_array().unwrap().iter().map(|record| record["status"].as_str().unwrap()).collect()
}

#[test]
fn every_record_is_answered_and_in_the_log() {
    let gateway = Gateway::start(&config());
    let answer = gateway.post("/v1/batch", &[], batch([user("m-1", "42"), user("m-2", "43")]));
    assert_eq!(answer.status, 200, "{answer:?}");
    let record = |id: &str| json!({"message_id": id, "status": "accepted"});
    assert_eq!(answer.body["records"], json!([record("m-1"), record("m-2")]));
    assert_eq!((&answer.body["accepted"], &answer.body["rejected"]), (&json!(2), &json!(0)));
    assert_eq!(answer.header("x-request-id"), answer.body["request_id"].as_str());
    let mut envelopes = gateway.log.envelopes();
    envelopes.sort_by_key(|envelope| envelope.message_id.clone());
    assert_eq!(envelopes.len(), 2);
    assert_eq!((envelopes[0].tenant.as_str(), envelopes[0].source()), ("acme", Source::Native));
    assert_eq!(envelopes[0].body, user("m-1", "42").to_string());
    assert!(envelopes[0].received_ms > 1_700_000_000_000 && envelopes[0].trace.is_none());
    for (partition, envelopes) in gateway.log.frames() {
        for envelope in envelopes {
            assert_eq!(millstream_model::key::shard_of(envelope.group as u16, 4), partition);
        }
    }
}

#[test]
fn each_api_has_its_own_answer() {
    let gateway = Gateway::start(&config());
    let ndjson = format!("{}\n{}\n", user("n-1", "1x"), user("n-2", "2x"));
    let answer = gateway.post("/v1/batch", &[("content-type", "application/x-ndjson")], ndjson);
    assert_eq!((answer.status, &answer.body["accepted"]), (200, &json!(2)), "{answer:?}");
    let customer = json!({"type": "customer", "customer_id": "42", "attributes": {"a": 1}}).to_string();
    for path in ["/v1/customer", "/data-api/v1/customer"] {
        let answer = gateway.post(path, &[], &customer);
        assert_eq!((answer.status, &answer.body["status"]), (200, &json!("success")), "{answer:?}");
    }
    let nobody = gateway.post("/v1/customer", &[], r#"{"attributes": {}}"#);
    assert_eq!(nobody.status, 400);
    assert_eq!(nobody.body["status"], "fail");
    let error = &nobody.body["error"];
    assert_eq!((&error["attribute"], &error["type"]), (&json!("customer_id"), &json!("MissingAttributeError")));
    assert_eq!(error["request_id"].as_str(), nobody.header("x-request-id"));
    let track = json!({"userId": "42", "event": "e", "messageId": "s-1"}).to_string();
    for path in ["/v1/track", "/segment/v1/track"] {
        let answer = gateway.post(path, &[BASIC], &track);
        assert_eq!((answer.status, &answer.body["success"]), (200, &json!(true)), "{answer:?}");
    }
    let nobody = gateway.post("/v1/track", &[BASIC, ("content-type", "text/plain")], r#"{"event": "e"}"#);
    assert_eq!((nobody.status, &nobody.body["success"]), (400, &json!(false)), "{nobody:?}");
    let sources: Vec<Source> = gateway.log.envelopes().iter().map(|envelope| envelope.source()).collect();
    let count = |source| sources.iter().filter(|found| **found == source).count();
    assert_eq!((count(Source::Native), count(Source::DataApi), count(Source::Segment)), (2, 2, 2));
}

#[test]
fn the_shared_batch_path_goes_by_how_the_key_is_sent() {
    let gateway = Gateway::start(&config());
    let segment = json!({"batch": [{"type": "track", "userId": "42", "event": "e"}]}).to_string();
    let native = batch([user("m", "42")]);
    let cases = [
        ("/v1/batch", BASIC, &segment, Source::Segment),
        ("/v1/b", BASIC, &segment, Source::Segment),
        ("/v1/batch", ("authorization", "Bearer key-acme"), &native, Source::Native),
        ("/v1/batch", ("x-api-key", "key-acme"), &native, Source::Native),
        ("/segment/v1/batch", ("x-api-key", "key-acme"), &segment, Source::Segment),
        ("/native/v1/batch", BASIC, &native, Source::Native),
    ];
    for (path, key, body, source) in cases {
        gateway.log.clear();
        let answer = gateway.post(path, &[key], body);
        assert_eq!(answer.status, 200, "{path} {key:?}: {answer:?}");
        let sources: Vec<Source> = gateway.log.envelopes().iter().map(|envelope| envelope.source()).collect();
        assert_eq!(sources, [source], "{path} {key:?}");
    }
}

#[test]
fn a_key_belongs_to_one_tenant() {
    let gateway = Gateway::start(&config());
    let body = batch([user("m", "42")]);
    assert_eq!(gateway.post("/v1/batch", &[("x-api-key", "key-globex")], &body).status, 200);
    assert_eq!(gateway.log.envelopes()[0].tenant, "globex");
    let json = ("content-type", "application/json");
    let missing = gateway.request("POST", "/v1/batch", &[json], &body);
    assert_eq!((missing.status, &missing.body["error"]["reason"]), (401, &json!("missing_key")));
    assert!(missing.body["error"]["message"].as_str().unwrap().contains("Authorization: Bearer KEY"), "{missing:?}");
    assert!(missing.header("www-authenticate").unwrap().starts_with("bearer"), "{missing:?}");
    let wrong = gateway.post("/v1/batch", &[("x-api-key", "key-acm")], &body);
    assert_eq!((wrong.status, &wrong.body["error"]["reason"]), (401, &json!("unknown_key")));
    assert_eq!(gateway.log.envelopes().len(), 1);
}

#[test]
fn some_good_records_are_200_and_none_is_400() {
    let gateway = Gateway::start(&config());
    let nobody = json!({"type": "user", "message_id": "m-2", "set": {}});
    let answer = gateway.post("/v1/batch", &[], batch([user("m-1", "42"), nobody.clone(), user("m-3", "42")]));
    assert_eq!((answer.status, statuses(&answer)), (200, vec!["accepted", "rejected", "accepted"]));
    assert_eq!(answer.body["records"][1]["message_id"], "m-2");
    let error = &answer.body["records"][1]["error"];
    assert_eq!((&error["reason"], &error["field"]), (&json!("missing_identifier"), &json!("identifiers")));
    let answer = gateway.post("/v1/batch", &[], batch([nobody]));
    assert_eq!((answer.status, statuses(&answer)), (400, vec!["rejected"]));
    assert_eq!(gateway.post("/v1/batch", &[], batch([])).status, 200);
    let shown = gateway.metrics.render();
    for line in [
        "millstream_gateway_records_total{tenant=\"acme\",source=\"native\",outcome=\"accepted\"} 2",
        "millstream_gateway_records_total{tenant=\"acme\",source=\"native\",outcome=\"rejected\"} 2",
        "millstream_gateway_rejects_total{tenant=\"acme\",stage=\"gateway\",reason=\"missing_identifier\"} 2",
        "millstream_gateway_requests_total{source=\"native\",code=\"400\"} 1",
    ] {
        assert!(shown.contains(line), "{line} is not in\n{shown}");
    }
}

#[test]
fn a_lost_acknowledgement_is_503_with_the_ids_to_repeat() {
    let gateway = Gateway::start(&config());
    gateway.log.set(Mode::LoseAcknowledgement);
    let nobody = json!({"type": "user", "message_id": "m-2"});
    let without_id = json!({"type": "user", "identifiers": {"user_id": "44"}});
    let body = batch([user("m-1", "42"), nobody, without_id]);
    let answer = gateway.post("/v1/batch", &[], &body);
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(statuses(&answer), ["unknown", "rejected", "unknown"]);
    assert_eq!((&answer.body["status"], answer.header("retry-after")), (&json!("unknown"), Some("1")));
    let retry: Vec<&str> = answer.body["retry"].as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
    let mut in_log: Vec<String> = gateway.log.envelopes().into_iter().map(|envelope| envelope.message_id).collect();
    in_log.sort_by_key(|id| id != "m-1");
    assert_eq!(retry, in_log, "the ids are those that the log may have");
    assert_eq!(answer.body["error"]["reason"], "unknown_outcome");
    gateway.log.set(Mode::Acknowledge);
    assert_eq!(gateway.post("/v1/batch", &[], &body).status, 200);
}

#[test]
fn a_log_that_does_not_answer_is_503_after_the_deadline() {
    let mut config = config();
    config.gateway.acknowledge_timeout = Millis(50);
    let gateway = Gateway::start(&config);
    gateway.log.set(Mode::Hold);
    let answer = gateway.post("/v1/track", &[BASIC], r#"{"userId": "42", "event": "e", "messageId": "m-1"}"#);
    assert_eq!((answer.status, &answer.body["success"], &answer.body["retry"]), (503, &json!(false), &json!(["m-1"])));
    gateway.log.release();
    assert_eq!(gateway.post("/v1/track", &[BASIC], r#"{"userId": "42", "event": "e"}"#).status, 200);
}

#[test]
fn repeated_requests_with_an_idempotency_key_have_the_same_ids() {
    let gateway = Gateway::start(&config());
    let record = || json!({"type": "user", "identifiers": {"user_id": "42"}});
    let ids = |headers: &[(&str, &str)]| {
        gateway.log.clear();
        assert_eq!(gateway.post("/v1/batch", headers, batch([record(), record()])).status, 200);
        gateway.log.envelopes().into_iter().map(|envelope| envelope.message_id).collect::<Vec<_>>()
    };
    let key = [("idempotency-key", "import-7")];
    assert_eq!(ids(&key), ids(&key));
    assert_eq!(ids(&key)[1], "import-7:native:batch:1");
    assert_ne!(ids(&[]), ids(&[]));
    let answer = gateway.post("/v1/batch", &[("idempotency-key", &"x".repeat(201))], batch([record()]));
    assert_eq!((answer.status, &answer.body["error"]["field"]), (400, &json!("Idempotency-Key")));
}

#[test]
fn concurrent_requests_share_frames_and_each_sender_keeps_its_order() {
    const SENDERS: usize = 16;
    const REQUESTS: usize = 10;
    let gateway = Arc::new(Gateway::start(&config()));
    gateway.log.set(Mode::Hold);
    let sender = |number: usize| {
        let gateway = gateway.clone();
        move || {
            for request in 0..REQUESTS {
                let record =
                    |index: usize| user(&format!("{number}-{}", request * 3 + index), &format!("user-{number}"));
                let answer = gateway.post("/v1/batch", &[], batch((0..3).map(record)));
                assert_eq!(answer.status, 200, "{answer:?}");
            }
        }
    };
    let senders: Vec<_> = (0..SENDERS).map(|number| std::thread::spawn(sender(number))).collect();
    // While the first frames are held, the other requests gather, and leave when they have waited for long enough.
    gateway.log.wait_for(|log| log.envelopes().len() == SENDERS * 3);
    let first_round = gateway.log.frames().len();
    gateway.log.release();
    senders.into_iter().for_each(|sender| sender.join().unwrap());
    let frames = gateway.log.frames();
    assert!(first_round < SENDERS, "{first_round} frames for {SENDERS} requests");
    assert_eq!(gateway.log.envelopes().len(), SENDERS * REQUESTS * 3);
    for number in 0..SENDERS {
        let prefix = format!("{number}-");
        let all = frames.iter().flat_map(|(_, envelopes)| envelopes);
        let order: Vec<usize> =
            all.filter_map(|envelope| envelope.message_id.strip_prefix(&prefix)?.parse().ok()).collect();
        assert_eq!(order, (0..REQUESTS * 3).collect::<Vec<_>>(), "sender {number}");
    }
}

#[test]
fn a_request_larger_than_a_frame_goes_in_several() {
    let gateway = Gateway::start(&config());
    let record = |index: usize| json!({"type": "user", "message_id": index.to_string(), "identifiers": {"user_id": "42"}, "set": {"text": "x".repeat(1500)}});
    let answer = gateway.post("/v1/batch", &[], batch((0..1500).map(record)));
    assert_eq!((answer.status, &answer.body["accepted"]), (200, &json!(1500)));
    let frames = gateway.log.frames();
    assert!(frames.len() >= 3 && frames.iter().all(|(_, envelopes)| envelopes.len() <= 1000), "{}", frames.len());
    let order: Vec<usize> = gateway.log.envelopes().iter().map(|one| one.message_id.parse().unwrap()).collect();
    assert_eq!(order, (0..1500).collect::<Vec<_>>());
}

#[test]
fn what_exceeds_the_memory_is_refused_until_there_is_room() {
    let mut config = config();
    config.limits.request_bytes = Size(3000);
    config.gateway.in_flight_bytes = Size(3000);
    config.gateway.acknowledge_timeout = Millis(50);
    let gateway = Gateway::start(&config);
    gateway.log.set(Mode::Hold);
    let large = json!({"type": "user", "identifiers": {"user_id": "42"}, "set": {"text": "x".repeat(2000)}});
    // The sender gets its answer, but the log's client still holds the bytes.
    assert_eq!(gateway.post("/v1/batch", &[], batch([large.clone()])).status, 503);
    let refused = gateway.post("/v1/batch", &[], batch([large.clone()]));
    assert_eq!((refused.status, &refused.body["error"]["reason"]), (503, &json!("overloaded")), "{refused:?}");
    assert_eq!(refused.header("retry-after"), Some("1"));
    gateway.log.release();
    assert_eq!(gateway.post("/v1/batch", &[], batch([large])).status, 200);
    assert!(gateway.metrics.render().contains("millstream_gateway_in_flight_bytes 0"));
}

/// A small body whose records each carry its `context` into the log.
#[test]
fn what_records_grow_to_is_counted_before_they_are_taken() {
    let mut config = config();
    config.gateway.in_flight_bytes = Size(1_000_000);
    config.gateway.acknowledge_timeout = Millis(50);
    let gateway = Gateway::start(&config);
    gateway.log.set(Mode::Hold);
    let track = |index: usize| json!({"type": "track", "messageId": index.to_string(), "userId": "42", "event": "e"});
    let body = |records: usize| {
        let batch: Vec<Value> = (0..records).map(track).collect();
        json!({"batch": batch, "context": {"text": "x".repeat(10_000)}}).to_string()
    };
    assert!(body(90).len() < 20_000);
    let held = gateway.post("/segment/v1/batch", &[], body(90));
    assert_eq!((held.status, &held.body["error"]["reason"]), (503, &json!("unknown_outcome")), "{held:?}");
    let refused = gateway.post("/segment/v1/batch", &[], body(90));
    assert_eq!((refused.status, &refused.body["error"]["reason"]), (503, &json!("overloaded")), "{refused:?}");
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(gateway.log.envelopes().len(), 90, "nothing of the refused request is in the log");
    gateway.log.release();
    assert_eq!(gateway.post("/segment/v1/batch", &[], body(90)).status, 200);
    assert!(gateway.metrics.render().contains("millstream_gateway_in_flight_bytes 0"));
}

#[test]
fn a_panic_is_one_request_s_trouble() {
    let gateway = Gateway::start(&config());
    gateway.log.set(Mode::Panic);
    let body = batch([user("m", "42")]);
    let answer = gateway.post("/v1/batch", &[], &body);
    assert_eq!((answer.status, &answer.body["error"]["reason"]), (500, &json!("internal")), "{answer:?}");
    gateway.log.set(Mode::Acknowledge);
    assert_eq!(gateway.post("/v1/batch", &[], &body).status, 200);
}

#[test]
fn stopping_finishes_what_is_in_flight() {
    let gateway = Gateway::start(&config());
    gateway.log.set(Mode::Hold);
    let mut stream = gateway.connect();
    let body = batch([user("m", "42")]);
    let head = format!(
        "POST /v1/batch HTTP/1.1\r\nhost: t\r\nx-api-key: key-acme\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    gateway.log.wait_for(|log| !log.frames().is_empty());
    gateway.stop.cancel();
    gateway.log.wait_for(|_| std::net::TcpStream::connect(gateway.address).is_err());
    assert!(!gateway.served.is_finished());
    gateway.log.release();
    let answer = Answer::read(&mut stream);
    assert_eq!((answer.status, statuses(&answer)), (200, vec!["accepted"]));
    gateway.runtime.block_on(async { tokio::time::timeout(DEADLINE, gateway.served).await }).unwrap().unwrap();
}

#[test]
fn a_trace_goes_on_into_the_envelopes() {
    let gateway = Gateway::start(&config());
    let trace_id = "4bf92f3577b34da6a3ce929d0e0e4736";
    let sampled = format!("00-{trace_id}-00f067aa0ba902b7-01");
    let body = batch([user("m", "42")]);
    gateway.post("/v1/batch", &[("traceparent", &sampled)], &body);
    let trace = gateway.log.envelopes()[0].trace.clone().unwrap();
    assert_eq!((millstream_model::id::hex(&trace.trace_id).as_str(), trace.flags), (trace_id, 1));
    assert_ne!(millstream_model::id::hex(&trace.span_id), "00f067aa0ba902b7", "the gateway has a span of its own");
    for unsampled in [format!("00-{trace_id}-00f067aa0ba902b7-00"), "rubbish".to_owned()] {
        gateway.log.clear();
        gateway.post("/v1/batch", &[("traceparent", &unsampled)], &body);
        assert_eq!(gateway.log.envelopes()[0].trace, None, "{unsampled}");
    }
    let mut config = config();
    config.telemetry.sample_ratio = "1".parse().unwrap();
    let gateway = Gateway::start(&config);
    gateway.post("/v1/batch", &[], &body);
    assert!(gateway.log.envelopes()[0].trace.is_some());
}

#[test]
fn the_gateway_s_span_is_exported_and_is_the_parent_of_what_follows() {
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let collector = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let body = read_request(&mut stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
        <ExportTraceServiceRequest as prost::Message>::decode(body.as_slice()).unwrap()
    });
    let metrics = millstream::telemetry::metrics::SpanMetrics::default();
    let spans = millstream::telemetry::SpanExporter::start(Some(&endpoint), "millstream-gateway", metrics).unwrap();
    let gateway = Gateway::exporting(&config(), spans.clone());
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    assert_eq!(gateway.post("/v1/batch", &[("traceparent", parent)], batch([user("m", "42")])).status, 200);
    spans.flush(DEADLINE);
    let exported = collector.join().unwrap();
    let span = &exported.resource_spans[0].scope_spans[0].spans[0];
    let trace = gateway.log.envelopes()[0].trace.clone().unwrap();
    assert_eq!((&span.trace_id[..], &span.span_id[..]), (&trace.trace_id[..], &trace.span_id[..]));
    assert_eq!(millstream_model::id::hex(&span.parent_span_id), "00f067aa0ba902b7");
    assert_eq!(span.name, "gateway native batch");
    assert!(span.end_time_unix_nano >= span.start_time_unix_nano && span.start_time_unix_nano > 0);
}

/// The body of one HTTP request.
fn read_request(stream: &mut std::net::TcpStream) -> Vec<u8> {
    use std::io::{BufRead, Read};
    let mut reader = std::io::BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    body
}

#[test]
fn the_description_is_served() {
    let gateway = Gateway::start(&config());
    let served = gateway.request("GET", "/openapi.json", &[], "");
    let checked_in: Value = serde_json::from_str(include_str!("../../worker/openapi.json")).unwrap();
    assert_eq!((served.status, served.body), (200, checked_in));
}

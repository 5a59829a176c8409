//! Log lines as a collector reads them: a line about a request says which trace it belongs to, whatever the filter lets through.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod support;

use millstream::config::{LogFormat, Millis, Telemetry};
use millstream::telemetry::logs::subscriber;
use millstream_tests::conformance::unique;
use millstream_tests::load::{generated, settings};
use millstream_tests::pipeline::{Pipeline, until};
use serde_json::{Value, json};
use std::io::Write;
use std::sync::{Arc, Mutex};
use support::{Gateway, Mode, config};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// Lines that were written.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_warning_about_a_request_carries_its_trace_whatever_the_filter() {
    let lines = Lines::default();
    let telemetry = Telemetry { log_format: LogFormat::Json, log_filter: "warn".to_owned(), ..Telemetry::default() };
    let writer = lines.clone();
    let subscriber = subscriber(&telemetry, move || writer.clone(), false).unwrap();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let mut config = config();
    config.gateway.acknowledge_timeout = Millis(50);
    let gateway = Gateway::start(&config);
    // The log says nothing, so that it is the request that finds out.
    gateway.log.set(Mode::Hold);
    let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let body = json!({"batch": [{"type": "user", "message_id": "m", "identifiers": {"user_id": "42"}}]});
    let answer = gateway.post("/v1/batch", &[("traceparent", &parent)], body.to_string());
    assert_eq!(answer.status, 503, "{answer:?}");
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let about = lines.iter().find(|line| line["unknown"] == 1).unwrap_or_else(|| panic!("{text}"));
    assert_eq!((&about["level"], &about["span"]["trace_id"]), (&json!("WARN"), &json!(TRACE)), "{about}");
    assert_eq!(about["span"]["request_id"], answer.body["request_id"], "{about}");
    assert_eq!(about["span"]["tenant"], "acme", "{about}");
    gateway.log.release();
}

/// Who looks for a record by its trace finds it at the gateway and where it was rejected.
#[test]
fn a_traced_record_is_found_in_the_logs_of_every_stage_that_judged_it() {
    let load = generated(41, 1, 1).unwrap();
    let mut settings = settings(&unique("logs"), &load);
    settings.more = "telemetry:\n  log_format: json\n  log_filter: info,millstream=debug\n".to_owned();
    let pipeline = Pipeline::local(&settings).unwrap();
    let process = pipeline.gateway().unwrap();
    let too_old = json!({"type": "event", "message_id": "m", "event": "Old", "time": "2001-01-01T00:00:00Z", "identifiers": {"user_id": "42"}});
    // Unify lets it through, and action knows no such user.
    let unknown = json!({"type": "user", "message_id": "n", "update_existing_only": true, "set": {"a": 1}, "identifiers": {"user_id": "43"}});
    let answer = reqwest::blocking::Client::new()
        .post(format!("{}/v1/batch", process.url()))
        .bearer_auth(&settings.tenants[0].1)
        .header("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-01"))
        .json(&json!({"batch": [too_old, unknown]}))
        .send()
        .unwrap();
    assert!(answer.status().is_success());
    let lines = || -> Vec<Value> { process.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect() };
    for (stage, id, reason) in [("unify", "m", "too_old"), ("action", "n", "user_unknown")] {
        let is_it = |line: &Value| line["stage"] == stage && line["trace_id"] == TRACE && line["message_id"] == id;
        let line = until(stage, || Ok(lines().into_iter().find(is_it))).unwrap();
        assert_eq!((&line["reason"], &line["level"]), (&json!(reason), &json!("DEBUG")), "{line}");
        assert_eq!(line["tenant"], settings.tenants[0].0, "{line}");
    }
    let is_answer = |line: &Value| line["span"]["trace_id"] == TRACE && line["message"] == "answered";
    let line = until("the gateway's line", || Ok(lines().into_iter().find(is_answer))).unwrap();
    assert_eq!((&line["status"], &line["records"]), (&json!(200), &json!(2)), "{line}");
}

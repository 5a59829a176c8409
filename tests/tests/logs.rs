//! Log lines as a collector reads them: a line about a request says which trace it belongs to, whatever the filter lets through.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod support;

use millstream::config::{LogFormat, Millis, Telemetry};
use millstream::telemetry::logs::subscriber;
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

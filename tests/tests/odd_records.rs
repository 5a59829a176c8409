//! Records that look odd and are fine, from the request to the document: what is stored is what was sent, or what the documents say it becomes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use millstream::cli::{Admin, snapshot};
use millstream_tests::conformance::unique;
use millstream_tests::pipeline::{Pipeline, Settings, until};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What is sent as `set`, as JSON text, and the attributes of the document.
fn cases() -> Vec<(&'static str, Value)> {
    vec![
        (r#"{"a":-0,"b":-0.0,"c":[-0]}"#, json!({"a": 0.0, "b": 0.0, "c": [0.0]})),
        (r#"{"a":1e300,"b":-1E-300,"c":1.0}"#, json!({"a": 1e300, "b": -1e-300, "c": 1.0})),
        (r#"{"a":9223372036854775807,"b":-9223372036854775808}"#, json!({"a": i64::MAX, "b": i64::MIN})),
        (r#"{"a":123456789012345678901234567890}"#, json!({"a": 123_456_789_012_345_680_000_000_000_000.0})),
        (r#"{"a.b":1,"$set":2,"100%":3,"%2E":4}"#, json!({"a%2Eb": 1, "%24set": 2, "100%25": 3, "%252E": 4})),
        (r#"{"$set":{"$inc":{"x.y":1}}}"#, json!({"%24set": {"$inc": {"x.y": 1}}})),
        (r#"{"a":"x\u0000y","b":["\u0000"],"c":{"d":"\u0000"}}"#, json!({"a": "x\0y", "b": ["\0"], "c": {"d": "\0"}})),
        (r#"{"a":"\ud83d\ude00","שם":"אבג"}"#, json!({"a": "😀", "שם": "אבג"})),
        (
            r#"{"_id":"x","_gen":9,"_rev":9,"_deleted":true}"#,
            json!({"_id": "x", "_gen": 9, "_rev": 9, "_deleted": true}),
        ),
        (r#"{"a":true,"b":{},"c":[],"d":""}"#, json!({"a": true, "b": {}, "c": [], "d": ""})),
    ]
}

#[test]
fn odd_records_reach_their_documents_as_they_are() {
    let settings = Settings {
        pipeline: unique("odd"),
        shards: 4,
        replication: 1,
        tenants: vec![("acme".to_owned(), "key-of-acme".to_owned())],
        ..Settings::default()
    };
    let pipeline = Pipeline::local(&settings).unwrap();
    let record = |(number, (set, _)): (usize, &(&str, Value))| {
        format!(r#"{{"type":"user","message_id":"m{number}","identifiers":{{"user_id":"odd-{number}"}},"set":{set}}}"#)
    };
    let cases = cases();
    let body = format!(r#"{{"batch":[{}]}}"#, cases.iter().enumerate().map(record).collect::<Vec<_>>().join(","));
    let answer = reqwest::blocking::Client::new()
        .post(format!("{}/v1/batch", pipeline.gateway().unwrap().url()))
        .bearer_auth(&settings.tenants[0].1)
        .header("content-type", "application/json")
        .body(body)
        .send()
        .unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().unwrap());
    let admin = Admin::new(&pipeline.admins()[0]).unwrap();
    let documents = until("a document for each record", || {
        let found = snapshot::documents(&admin, "acme", "users", None)?;
        Ok((found.len() == cases.len()).then_some(found))
    });
    let by_user: BTreeMap<String, Value> = documents
        .unwrap()
        .into_iter()
        .map(|document| {
            let user = document.fields["identifiers"]["user_id"][0].as_str().unwrap().to_owned();
            (user, document.fields.get("attributes").cloned().unwrap_or(Value::Null))
        })
        .collect();
    for (number, (set, expected)) in cases.iter().enumerate() {
        assert_eq!(by_user[&format!("odd-{number}")], *expected, "{set}");
    }
}

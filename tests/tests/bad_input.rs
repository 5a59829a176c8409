//! Bad input, case by case: what the sender is told, that the rest of the batch gets through, and that the gateway goes on answering.
//!
//! A record that only unify can judge is accepted by the gateway and rejected there; its case runs the envelopes through the stage.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod support;

use millstream::config::{Config, Millis};
use millstream_model::key::shard_of;
use millstream_model::proto::{Envelope, Stamp};
use millstream_stages::unify::{Unify, UnifyConfig, UnifyValue};
use millstream_stages::{At, Input, MemoryState, Outbox, Stage};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::Write;
use support::{Answer, Gateway, config};

const GOOD: &str = r#"{"type":"user","message_id":"good-1","identifiers":{"user_id":"42"},"set":{"plan":"pro"}}"#;
const GOOD_TOO: &str = r#"{"type":"user","message_id":"good-2","identifiers":{"user_id":"43"},"set":{"plan":"pro"}}"#;

fn gateway() -> Gateway {
    let mut config: Config = config();
    config.gateway.body_timeout = Millis(300);
    Gateway::start(&config)
}

/// Collects what is wrong, so that one run shows all.
#[derive(Default)]
struct Verdict {
    names: BTreeSet<String>,
    wrong: Vec<String>,
}

impl Verdict {
    fn begin(&mut self, name: &str) {
        assert!(self.names.insert(name.to_owned()), "two cases are called {name}");
    }

    fn expect(&mut self, name: &str, right: bool, got: &dyn std::fmt::Debug) {
        if !right {
            let got = format!("{got:?}");
            self.wrong.push(format!("{name}: got {}", got.chars().take(600).collect::<String>()));
        }
    }

    /// The gateway still takes a good record.
    fn expect_alive(&mut self, name: &str, gateway: &Gateway) {
        let answer = gateway.post("/v1/batch", &[], format!("{{\"batch\":[{GOOD}]}}"));
        self.expect(&format!("{name}, then a good request"), answer.status == 200, &answer);
    }

    fn end(self, at_least: usize) {
        assert!(self.wrong.is_empty(), "{} of {}:\n{}", self.wrong.len(), self.names.len(), self.wrong.join("\n"));
        assert!(self.names.len() >= at_least, "only {} cases", self.names.len());
    }
}

// ---- requests that fail as a whole ------------------------------------------------------------------------------------------------

struct Whole {
    name: &'static str,
    path: &'static str,
    headers: Vec<(&'static str, &'static str)>,
    body: Vec<u8>,
    status: u16,
    reason: &'static str,
    text: &'static str,
}

fn whole(name: &'static str, body: impl Into<Vec<u8>>, status: u16, reason: &'static str, text: &'static str) -> Whole {
    Whole { name, path: "/v1/batch", headers: vec![], body: body.into(), status, reason, text }
}

impl Whole {
    fn with(mut self, name: &'static str, value: &'static str) -> Whole {
        self.headers.push((name, value));
        self
    }

    fn to(self, path: &'static str) -> Whole {
        Whole { path, ..self }
    }
}

fn good_batch() -> Vec<u8> {
    format!("{{\"batch\":[{GOOD}]}}").into_bytes()
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

/// 50 MB of spaces, by `brotliCompressSync` of Node's zlib.
const BROTLI_BOMB: &str = "cbffff3ff82540e2b14020f7fe8fffff7ff04b00c4611180eefd1fffffffe0970088c30200ddfb3ffeffffc12f0110870500baf77ffcffff835f02200e0b0074effff20f5e0fbf04401c1600e8a0eb01";
/// `{"batch":[{"type":"user","message_id":"m","identifiers":{"user_id":"42"},"set":{"a":1}}]}`, likewise.
const BROTLI_GOOD: &str = "1b5800488cd462cd19ee04d1e6a6fd6617c56d1311ad871a82f0bf219e2f161dd88003978c1a4816d9e4e4107483b3a61d179b63ff2be453d9c0cee33ec903fe375be90a945a88848ad19999237a00";

fn brotli(hexadecimal: &str) -> Vec<u8> {
    millstream_model::id::unhex(hexadecimal).unwrap()
}

fn wholes() -> Vec<Whole> {
    let mut cases = syntax_cases();
    cases.extend(encoding_cases());
    cases.extend(http_cases());
    cases.extend(api_cases());
    cases
}

fn syntax_cases() -> Vec<Whole> {
    let bad_json = |name, body: &str, text| whole(name, body, 400, "malformed_json", text);
    let mut not_utf8 = good_batch();
    not_utf8[30] = 0xff;
    let many = format!("{{\"batch\":[{}]}}", vec!["{}"; 2501].join(","));
    vec![
        bad_json("empty body", "", "the body is empty"),
        bad_json("only spaces", "   \n", "EOF while parsing"),
        bad_json("not JSON", "hello", "line 1 column"),
        bad_json("JSON that is cut", r#"{"batch":[{"type":"#, "EOF while parsing"),
        bad_json("trailing comma", r#"{"batch":[],}"#, "key must be a string"),
        bad_json("single quotes", "{'batch':[]}", "line 1 column 2"),
        bad_json("two values", r#"{"batch":[]}{"batch":[]}"#, "trailing characters"),
        bad_json("NaN", r#"{"batch":[{"type":"user","set":{"a":NaN}}]}"#, "not valid JSON"),
        bad_json("Infinity", r#"{"batch":[{"type":"user","set":{"a":-Infinity}}]}"#, "not valid JSON"),
        bad_json("hexadecimal number", r#"{"batch":[{"a":0x10}]}"#, "not valid JSON"),
        bad_json("leading zero", r#"{"batch":[{"a":007}]}"#, "not valid JSON"),
        bad_json("raw control character", "{\"batch\":[{\"a\":\"x\u{1}y\"}]}", "control character"),
        bad_json("batch twice", r#"{"batch":[],"batch":[]}"#, "duplicate field"),
        bad_json("comment", "{\"batch\":[] /* none */}", "not valid JSON"),
        whole(
            "UTF-16",
            "{\"batch\":[]}".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>(),
            400,
            "malformed_json",
            "line 1 column",
        ),
        whole("not UTF-8", not_utf8, 400, "malformed_json", "not UTF-8 (at byte 30)"),
        whole("a list", "[]", 400, "wrong_type", "must be a JSON object"),
        whole("a string", "\"batch\"", 400, "wrong_type", "must be a JSON object"),
        whole("null", "null", 400, "wrong_type", "must be a JSON object"),
        whole("no batch", "{}", 400, "missing_field", "the list `batch`"),
        whole("batch is an object", r#"{"batch":{}}"#, 400, "missing_field", "the list `batch`"),
        whole("too many records", many, 413, "too_large", "more than 2500 records"),
        whole("a bomb of brackets", "[".repeat(400_000), 400, "malformed_json", "EOF while parsing a list"),
        whole("no line", "\n\n", 400, "malformed_json", "one JSON object per line")
            .with("content-type", "application/x-ndjson"),
    ]
}

fn encoding_cases() -> Vec<Whole> {
    let spaces = vec![b' '; 50_000_000];
    let cut = |mut bytes: Vec<u8>| {
        bytes.truncate(bytes.len() - 9);
        bytes
    };
    let mut flipped = gzip(&good_batch());
    let checksum = flipped.len() - 6;
    flipped[checksum] ^= 1;
    let random: Vec<u8> =
        (0..1_200_000u64).map(|i| (millstream_model::id::content_hash(&i.to_le_bytes()) & 0xff) as u8).collect();
    let encoded = |name, body: Vec<u8>, encoding, status, reason, text| {
        whole(name, body, status, reason, text).with("content-encoding", encoding)
    };
    vec![
        encoded(
            "gzip bomb",
            gzip(&spaces),
            "gzip",
            413,
            "too_large",
            "decompressed, is larger than the limit of 5000000 bytes",
        ),
        encoded(
            "zstd bomb",
            zstd::encode_all(&spaces[..], 19).unwrap(),
            "zstd",
            413,
            "too_large",
            "limit of 5000000 bytes",
        ),
        encoded("brotli bomb", brotli(BROTLI_BOMB), "br", 413, "too_large", "limit of 5000000 bytes"),
        encoded("gzip that is cut", cut(gzip(&good_batch())), "gzip", 400, "malformed_encoding", "not valid gzip"),
        encoded(
            "zstd that is cut",
            cut(zstd::encode_all(&good_batch()[..], 3).unwrap()),
            "zstd",
            400,
            "malformed_encoding",
            "not valid zstd",
        ),
        encoded("brotli that is cut", cut(brotli(BROTLI_GOOD)), "br", 400, "malformed_encoding", "not valid br"),
        encoded("gzip with a wrong checksum", flipped, "gzip", 400, "malformed_encoding", "not valid gzip"),
        encoded("plain text said to be gzip", good_batch(), "gzip", 400, "malformed_encoding", "not valid gzip"),
        encoded("plain text said to be zstd", good_batch(), "zstd", 400, "malformed_encoding", "not valid zstd"),
        encoded("gzip twice", gzip(&gzip(&good_batch())), "gzip", 400, "malformed_json", "not UTF-8"),
        encoded(
            "compressed beyond its limit",
            random,
            "gzip",
            413,
            "too_large",
            "compressed body is larger than the limit of 1000000 bytes",
        ),
        encoded("deflate", good_batch(), "deflate", 415, "unsupported_encoding", "gzip, zstd, br, identity"),
        encoded(
            "a list of encodings",
            gzip(&gzip(&good_batch())),
            "gzip, gzip",
            415,
            "unsupported_encoding",
            "one of them, once",
        ),
        whole("gzip without saying so", gzip(&good_batch()), 400, "malformed_json", "not UTF-8"),
    ]
}

fn http_cases() -> Vec<Whole> {
    let huge = format!("{{\"batch\":[{{\"a\":\"{}\"}}]}}", "x".repeat(10_000_000));
    vec![
        whole("10 MB string", huge, 413, "too_large", "limit of 5000000 bytes"),
        whole("10 MB announced", "{", 413, "too_large", "limit of 5000000 bytes").with("content-length", "10000000"),
        whole("no length and no chunks", "", 400, "malformed_json", "the body is empty").with("content-length", "0"),
        whole("no content type", good_batch(), 415, "unsupported_media_type", "send application/json")
            .with("content-type", ""),
        whole("form", good_batch(), 415, "unsupported_media_type", "x-www-form-urlencoded is not taken")
            .with("content-type", "application/x-www-form-urlencoded"),
        whole("XML", "<a/>", 415, "unsupported_media_type", "application/x-ndjson")
            .with("content-type", "application/xml"),
        whole("Latin-1", good_batch(), 415, "unsupported_media_type", "encode the body as UTF-8")
            .with("content-type", "application/json; charset=ISO-8859-1"),
        whole("wrong key", good_batch(), 401, "unknown_key", "is not known").with("authorization", "Bearer nobody"),
        whole("another tenant's name as key", good_batch(), 401, "unknown_key", "is not known")
            .with("x-api-key", "acme"),
        whole("a key in other letters", good_batch(), 401, "unknown_key", "is not known").with("x-api-key", "KEY-ACME"),
        whole("no credentials in Basic", good_batch(), 401, "malformed_authorization", "base64")
            .with("authorization", "Basic %%%"),
        whole("another scheme", good_batch(), 401, "malformed_authorization", "scheme is not known")
            .with("authorization", "Digest username=a"),
        whole("unknown path", good_batch(), 404, "unknown_path", "/openapi.json lists").to("/v2/batch"),
        whole("path with a slash too many", good_batch(), 404, "unknown_path", "nothing at /v1/batch/")
            .to("/v1/batch/"),
        whole("blank idempotency key", good_batch(), 400, "invalid_value", "Idempotency-Key must have 1 to 200")
            .with("idempotency-key", " "),
    ]
}

/// Larger than a record may be, and smaller than a request.
fn large_customer() -> String {
    json!({"customer_id": "42", "attributes": {"a": "x".repeat(300_000)}}).to_string()
}

fn api_cases() -> Vec<Whole> {
    let context = format!(r#"{{"batch":[],"context":{{"a":"{}"}}}}"#, "x".repeat(17_000));
    vec![
        whole("Segment batch without a list", r#"{"type":"track"}"#, 400, "missing_field", "the list `batch`")
            .to("/segment/v1/batch"),
        whole("Segment context too large", context, 413, "too_large", "at most 16384").to("/segment/v1/batch"),
        whole("Segment context is a list", r#"{"batch":[],"context":[1]}"#, 400, "wrong_type", "must be an object")
            .to("/segment/v1/batch"),
        whole("a Segment call that is a list", "[1]", 400, "wrong_type", "one JSON object").to("/v1/track"),
        whole("transition without elements", r#"{"type":"transition"}"#, 400, "missing_field", "the list `elements`")
            .to("/v1/transition"),
        whole("merge without pairs", "{}", 400, "missing_field", "the list `merge_data`").to("/v1/merge"),
        whole("one record that is too large", large_customer(), 413, "too_large", "at most 262144 are allowed")
            .to("/v1/customer"),
        whole("a path of another API", good_batch(), 404, "unknown_path", "nothing at /segment/v1/merge")
            .to("/segment/v1/merge"),
        whole("records for the description", good_batch(), 405, "wrong_method", "send GET").to("/openapi.json"),
        whole("NDJSON at the data API", good_batch(), 415, "unsupported_media_type", "send application/json")
            .to("/v1/customer")
            .with("content-type", "application/x-ndjson"),
    ]
}

#[test]
fn requests_that_fail_as_a_whole_say_why() {
    let (gateway, mut verdict) = (gateway(), Verdict::default());
    for case in wholes() {
        verdict.begin(case.name);
        gateway.log.clear();
        let answer = gateway.post(case.path, &case.headers, &case.body);
        let error = &answer.body["error"];
        let message = error["message"].as_str().unwrap_or_default();
        let right = answer.status == case.status && error["reason"] == case.reason && message.contains(case.text);
        verdict.expect(case.name, right, &answer);
        let named =
            answer.header("x-request-id").is_some() && error["request_id"].as_str() == answer.header("x-request-id");
        verdict.expect(&format!("{}: request id", case.name), named, &answer.headers);
        verdict.expect(&format!("{}: log", case.name), gateway.log.frames().is_empty(), &gateway.log.frames());
        verdict.expect_alive(case.name, &gateway);
    }
    verdict.end(60);
}

#[test]
fn wrong_methods_are_refused() {
    let gateway = gateway();
    for method in ["GET", "PUT", "DELETE", "PATCH"] {
        let answer = gateway.request(method, "/v1/batch", &[], "");
        assert_eq!((answer.status, &answer.body["error"]["reason"]), (405, &json!("wrong_method")), "{answer:?}");
        assert_eq!(answer.header("allow"), Some("post"), "{answer:?}");
    }
}

// ---- connections that misbehave ---------------------------------------------------------------------------------------------------

const HEAD: &str = "POST /v1/batch HTTP/1.1\r\nhost: t\r\nconnection: close\r\nx-api-key: key-acme\r\ncontent-type: application/json\r\n";

#[test]
fn a_slow_body_is_given_up() {
    let gateway = gateway();
    let mut stream = gateway.connect();
    stream.write_all(format!("{HEAD}content-length: 100\r\n\r\n{{\"batch\"").as_bytes()).unwrap();
    let answer = Answer::read(&mut stream);
    assert_eq!((answer.status, &answer.body["error"]["reason"]), (408, &json!("slow_body")), "{answer:?}");
    assert!(answer.body["error"]["message"].as_str().unwrap().contains("within 300 ms"), "{answer:?}");
    let mut alive = Verdict::default();
    alive.expect_alive("slow body", &gateway);
    alive.end(0);
}

#[test]
fn a_body_that_ends_early_is_400_and_nothing_of_it_is_taken() {
    let gateway = gateway();
    let mut stream = gateway.connect();
    stream.write_all(format!("{HEAD}content-length: 500\r\n\r\n{{\"batch\":[{GOOD}]}}").as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    // hyper may close without an answer, because the sender has stopped sending: then there is nobody to answer to.
    let mut text = String::new();
    let _ = std::io::Read::read_to_string(&mut stream, &mut text);
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 400"), "{text}");
    assert!(gateway.log.frames().is_empty());
    let mut alive = Verdict::default();
    alive.expect_alive("cut body", &gateway);
    alive.end(0);
}

#[test]
fn chunked_bodies_are_bounded_too() {
    let gateway = gateway();
    let head = format!("{HEAD}transfer-encoding: chunked\r\n\r\n");
    let body = format!("{{\"batch\":[{GOOD}]}}");
    let good = gateway.raw(&[head.as_bytes(), format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()).as_bytes()]);
    assert_eq!(good.status, 200, "{good:?}");
    let chunk = format!("{:x}\r\n{}\r\n", 1_000_000, " ".repeat(1_000_000));
    let pieces: Vec<&[u8]> =
        std::iter::once(head.as_bytes()).chain(std::iter::repeat_n(chunk.as_bytes(), 20)).collect();
    let answer = gateway.raw(&pieces);
    assert_eq!((answer.status, &answer.body["error"]["reason"]), (413, &json!("too_large")), "{answer:?}");
}

#[test]
fn what_is_no_http_is_answered_by_closing() {
    let gateway = gateway();
    for rubbish in ["\u{16}\u{3}\u{1}\u{2}", "hello\r\n\r\n", "POST /v1/batch\r\n\r\n", "\r\n\r\n\r\n\r\n"] {
        let mut stream = gateway.connect();
        let _ = stream.write_all(rubbish.as_bytes());
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut text = String::new();
        let _ = std::io::Read::read_to_string(&mut stream, &mut text);
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 400"), "{rubbish:?}: {text}");
    }
    let mut alive = Verdict::default();
    alive.expect_alive("no HTTP", &gateway);
    alive.end(0);
}

// ---- bad records in a batch -------------------------------------------------------------------------------------------------------

/// Who says no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Gateway,
    Unify,
}

struct Record {
    name: &'static str,
    by: By,
    body: String,
    reason: &'static str,
    text: &'static str,
}

fn record(name: &'static str, by: By, body: impl Into<String>, reason: &'static str, text: &'static str) -> Record {
    Record { name, by, body: body.into(), reason, text }
}

/// An event of user 42 that happened at `time`, JSON.
fn event_at(time: &str) -> String {
    format!(r#"{{"type":"event","event":"e","message_id":"bad","identifiers":{{"user_id":"42"}},"time":{time}}}"#)
}

fn user_called(value: &str) -> String {
    format!(r#"{{"type":"user","message_id":"bad","identifiers":{{"user_id":{value}}},"set":{{"a":1}}}}"#)
}

fn records() -> Vec<Record> {
    let mut cases = gateway_records();
    cases.extend(unify_records());
    cases.extend(
        [
            "null",
            "Unknown",
            "0",
            "-1",
            "'guest'",
            "[object Object]",
            "undefined",
            "00000000-0000-0000-0000-000000000000",
        ]
        .map(|value| {
            let name: &'static str = Box::leak(format!("forbidden identifier {value}").into_boxed_str());
            record(
                name,
                By::Unify,
                user_called(&json!(value).to_string()),
                "forbidden_identifier",
                "names nobody in particular",
            )
        }),
    );
    cases
}

fn gateway_records() -> Vec<Record> {
    use By::Gateway as G;
    let deep = format!(
        r#"{{"type":"user","message_id":"bad","identifiers":{{"user_id":"42"}},"set":{{"a":{}1{}}}}}"#,
        "[".repeat(20),
        "]".repeat(20)
    );
    let abyss = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let large = format!(
        r#"{{"type":"user","message_id":"bad","identifiers":{{"user_id":"42"}},"set":{{"a":"{}"}}}}"#,
        "x".repeat(300_000)
    );
    let long_id = format!(r#"{{"type":"user","message_id":"{}","identifiers":{{"user_id":"42"}}}}"#, "x".repeat(201));
    vec![
        record("a number", G, "7", "wrong_type", "must be a JSON object"),
        record("null record", G, "null", "wrong_type", "must be a JSON object"),
        record("a list as record", G, "[]", "wrong_type", "must be a JSON object"),
        record("a text as record", G, r#""user""#, "wrong_type", "must be a JSON object"),
        record("an empty object", G, "{}", "missing_identifier", "names nobody"),
        record("no identifiers", G, r#"{"type":"user","set":{"a":1}}"#, "missing_identifier", "send `identifiers`"),
        record(
            "empty identifiers",
            G,
            r#"{"type":"user","identifiers":{}}"#,
            "missing_identifier",
            "send `identifiers`",
        ),
        record("blank identifier", G, user_called(r#""  ""#), "missing_identifier", "send `identifiers`"),
        record("null identifier", G, user_called("null"), "missing_identifier", "send `identifiers`"),
        record("object as identifier", G, user_called("{}"), "missing_identifier", "send `identifiers`"),
        record("fraction as identifier", G, user_called("4.5"), "missing_identifier", "send `identifiers`"),
        record(
            "lone surrogate as identifier",
            G,
            user_called(r#""\ud800""#),
            "missing_identifier",
            "send `identifiers`",
        ),
        record(
            "identifiers is a list",
            G,
            r#"{"type":"user","identifiers":["42"]}"#,
            "missing_identifier",
            "send `identifiers`",
        ),
        record(
            "identifiers twice",
            G,
            r#"{"type":"user","identifiers":{"user_id":"1x"},"identifiers":{"user_id":"2x"}}"#,
            "malformed_json",
            "duplicate field `identifiers`",
        ),
        record(
            "message id is an object",
            G,
            r#"{"type":"user","message_id":{},"identifiers":{"user_id":"42"}}"#,
            "wrong_type",
            "message id must be a string",
        ),
        record("message id is too long", G, long_id, "too_large", "longer than 200 characters"),
        record("too deep", G, deep, "too_deep", "at most 10 are allowed"),
        record("an abyss", G, abyss, "too_deep", "nested 100000 levels deep"),
        record("too large", G, large, "too_large", "at most 262144 are allowed"),
    ]
}

fn unify_records() -> Vec<Record> {
    use By::Unify as U;
    let user = |members: &str| format!(r#"{{"message_id":"bad","identifiers":{{"user_id":"42"}},{members}}}"#);
    let long_name = "x".repeat(201);
    vec![
        record("unknown type", U, user(r#""type":"users""#), "unknown_type", "no type that this source knows"),
        record("no type", U, user(r#""set":{"a":1}"#), "missing_field", "`type` is missing"),
        record("type is a number", U, user(r#""type":7"#), "wrong_type", "`type` must be a string"),
        record("event without a name", U, user(r#""type":"event""#), "missing_field", "`event` is missing"),
        record("event name is a number", U, user(r#""type":"event","event":7"#), "wrong_type", "`event` must be"),
        record(
            "event name too long",
            U,
            user(&format!(r#""type":"event","event":"{long_name}""#)),
            "too_large",
            "at most 200 characters",
        ),
        record(
            "event name with a control character",
            U,
            user(r#""type":"event","event":"a\u0000b""#),
            "invalid_value",
            "control characters",
        ),
        record(
            "properties is a list",
            U,
            user(r#""type":"event","event":"e","properties":[]"#),
            "wrong_type",
            "must be",
        ),
        record("set is a text", U, user(r#""type":"user","set":"x""#), "wrong_type", "`set` must be"),
        record("unset is a text", U, user(r#""type":"user","unset":"x""#), "wrong_type", "`unset` must be"),
        record("add is no list", U, user(r#""type":"user","add":{"tags":"x"}"#), "wrong_type", "must be a list"),
        record(
            "add and remove the same",
            U,
            user(r#""type":"user","add":{"tags":["a"]},"remove":{"tags":["a"]}"#),
            "invalid_value",
            "cannot add and remove 'a' at the same time",
        ),
        record("an attribute twice", U, user(r#""type":"user","set":{"a":1,"a":2}"#), "malformed_json", "`a`"),
        record(
            "lone surrogate in a value",
            U,
            user(r#""type":"user","set":{"a":"\udc00"}"#),
            "malformed_json",
            "surrogate",
        ),
        record(
            "a device's change without a device",
            U,
            user(r#""type":"event","event":"e","device":{"set":{"a":1}}"#),
            "missing_identifier",
            "names none",
        ),
        record(
            "a device without an identifier of one",
            U,
            user(r#""type":"device","set":{"a":1}"#),
            "missing_identifier",
            "identifier of the device",
        ),
        record("an event from 1970", U, event_at(r#""1970-01-01T00:00:00Z""#), "too_old", "too long ago"),
        record("time zero", U, event_at("0"), "invalid_value", "is not a time"),
        record("an event from 2099", U, event_at(r#""2099-01-01T00:00:00Z""#), "in_future", "in the future"),
        record("an impossible date", U, event_at(r#""2023-02-30T00:00:00Z""#), "invalid_value", "is not a time"),
        record("a time that is an object", U, event_at("{}"), "invalid_value", "is not a time"),
        record(
            "identifier with a control character",
            U,
            user_called(r#""a\u0007b""#),
            "invalid_value",
            "control characters",
        ),
        record(
            "identifier too long",
            U,
            user_called(&json!("y".repeat(600)).to_string()),
            "too_large",
            "longer than 512",
        ),
        record(
            "merge of one with itself",
            U,
            r#"{"type":"merge","message_id":"bad","retained":{"type":"user_id","value":"42"},"merged":{"type":"user_id","value":"42"}}"#,
            "invalid_merge",
            "",
        ),
        record(
            "merge without the merged",
            U,
            r#"{"type":"merge","message_id":"bad","retained":{"type":"user_id","value":"42"}}"#,
            "missing_field",
            "`merged` is missing",
        ),
    ]
}

#[test]
fn one_bad_record_does_not_take_its_batch_down() {
    let (gateway, mut verdict) = (gateway(), Verdict::default());
    for case in records() {
        verdict.begin(case.name);
        gateway.log.clear();
        let answer = gateway.post("/v1/batch", &[], format!("{{\"batch\":[{GOOD},{},{GOOD_TOO}]}}", case.body));
        let middle = &answer.body["records"][1];
        let outcome = Outcome::of(&gateway.log.envelopes());
        let (reason, message) = match case.by {
            By::Gateway => {
                verdict.expect(
                    case.name,
                    answer.body["rejected"] == 1 && outcome.rejects.is_empty(),
                    &(&answer, &outcome),
                );
                (middle["error"]["reason"].clone(), middle["error"]["message"].clone())
            }
            By::Unify => {
                verdict.expect(
                    case.name,
                    answer.body["accepted"] == 3 && outcome.rejects.len() == 1,
                    &(&answer, &outcome),
                );
                let reject = outcome.rejects.first().cloned().unwrap_or_default();
                verdict.expect(&format!("{}: original", case.name), reject["original"] == case.body, &reject);
                (reject["reason"].clone(), reject["message"].clone())
            }
        };
        let said = reason == case.reason && message.as_str().unwrap_or_default().contains(case.text);
        verdict.expect(case.name, said, &(&reason, &message));
        verdict.expect(case.name, answer.status == 200, &answer.status);
        let good = ["good-1", "good-2"].iter().all(|id| outcome.actions.contains(*id));
        verdict.expect(&format!("{}: the others", case.name), good && !outcome.actions.contains("bad"), &outcome);
        verdict.expect_alive(case.name, &gateway);
    }
    verdict.end(45);
}

/// What looks odd and is fine.
#[test]
fn odd_records_get_through() {
    let (gateway, mut verdict) = (gateway(), Verdict::default());
    let user =
        |set: &str| format!(r#"{{"type":"user","message_id":"bad","identifiers":{{"user_id":"42"}},"set":{{{set}}}}}"#);
    for (name, body) in [
        ("minus zero", user(r#""a":-0,"b":-0.0"#)),
        ("a number beyond 64 bits", user(r#""a":123456789012345678901234567890"#)),
        ("an exponent", user(r#""a":1e300"#)),
        ("an emoji as surrogates", user(r#""a":"\ud83d\ude00""#)),
        ("escaped zero byte in a value", user(r#""a":"x\u0000y""#)),
        ("an unknown member", user(r#""a":1"#).replacen('{', r#"{"extra":[1,2],"#, 1)),
        ("a number as user id", user_called("4200")),
        ("right-to-left text", user(r#""שם":"אבג""#)),
        ("a string longer than its limit", user(&format!(r#""a":"{}""#, "x".repeat(5000)))),
        ("dots and dollars in names", user(r#""a.b":1,"$set":2"#)),
    ] {
        verdict.begin(name);
        gateway.log.clear();
        let answer = gateway.post("/v1/batch", &[], format!("{{\"batch\":[{body}]}}"));
        let outcome = Outcome::of(&gateway.log.envelopes());
        verdict.expect(name, answer.status == 200 && outcome.actions.contains("bad"), &(&answer, &outcome));
    }
    let with_mark = format!("\u{feff}{{\"batch\":[{GOOD}]}}");
    verdict.begin("a byte order mark");
    let answer = gateway.post("/v1/batch", &[], with_mark);
    verdict.expect("a byte order mark", answer.status == 200, &answer);
    for (encoding, body) in [
        ("gzip", gzip(&good_batch())),
        ("zstd", zstd::encode_all(&good_batch()[..], 3).unwrap()),
        ("br", brotli(BROTLI_GOOD)),
        ("identity", good_batch()),
    ] {
        verdict.begin(encoding);
        let answer = gateway.post("/v1/batch", &[("content-encoding", encoding)], body);
        verdict.expect(encoding, answer.status == 200, &answer);
    }
    verdict.end(15);
}

#[test]
fn replayed_ids_are_duplicates_and_not_errors() {
    let gateway = gateway();
    for _ in 0..3 {
        assert_eq!(gateway.post("/v1/batch", &[], format!("{{\"batch\":[{GOOD},{GOOD}]}}")).status, 200);
    }
    let outcome = Outcome::of(&gateway.log.envelopes());
    assert_eq!((outcome.duplicates, outcome.rejects.len(), outcome.actions.len()), (5, 0, 1));
}

/// What the stage unify makes of the envelopes.
#[derive(Debug, Default)]
struct Outcome {
    actions: BTreeSet<String>,
    rejects: Vec<Value>,
    duplicates: u64,
}

impl Outcome {
    fn of(envelopes: &[Envelope]) -> Outcome {
        let (unify, mut state, mut out) = (Unify::new(&UnifyConfig::default()), Memory::default(), Outbox::default());
        for (offset, envelope) in envelopes.iter().enumerate() {
            let at = At {
                input: Input::Ingress,
                partition: shard_of(envelope.group as u16, 4),
                stamp: Stamp { time_ms: envelope.received_ms as u64, offset: offset as u64, index: 0 },
                batch_ms: envelope.received_ms as u64,
                generation: 1,
                shards: 4,
            };
            unify.process(envelope.clone(), &at, &mut state, &mut out).unwrap();
        }
        let rejects = out.rejects.iter().map(|reject| serde_json::from_slice::<Value>(&reject.payload).unwrap());
        Outcome {
            actions: out.actions.iter().map(|action| action.message_id.clone()).collect(),
            rejects: rejects.filter(|reject| reject["partial"] != true).collect(),
            duplicates: out.usage.values().map(|usage| usage.duplicates).sum(),
        }
    }
}

type Memory = MemoryState<UnifyValue>;

//! The admin port, over a log in memory.

use super::*;
use axum::body::Body;
use http_body_util::BodyExt;
use millstream_model::frame::{Content, single};
use millstream_model::proto::{Marker, Mutation, Stamp};
use millstream_shard::log::{
    Consumer, EachRead, Ends, LogError, Message, Producer, Start, TopicPartition, TopicSpec, Transactional, View,
};
use std::sync::Mutex;
use std::time::Duration;
use tower::ServiceExt;

/// Payloads by (topic, partition).
#[derive(Default)]
struct Memory(Mutex<Vec<(String, u32, Vec<u8>)>>);

impl Memory {
    fn put(&self, topic: &str, partition: u32, payload: impl Into<Vec<u8>>) {
        self.0.lock().unwrap().push((topic.to_owned(), partition, payload.into()));
    }

    fn payloads(&self, at: &TopicPartition) -> Vec<Vec<u8>> {
        let all = self.0.lock().unwrap();
        let here = all.iter().filter(|(topic, partition, _)| **topic == *at.topic && *partition == at.partition);
        here.map(|(_, _, payload)| payload.clone()).collect()
    }
}

struct MemoryLog(Arc<Memory>);

impl Log for MemoryLog {
    fn trim(&self, _: &TopicPartition, _: u64) -> Result<(), LogError> {
        Err(LogError::Configuration("not here".into()))
    }
    fn create_topics(&self, _: &[TopicSpec]) -> Result<(), LogError> {
        Ok(())
    }
    fn topic_id(&self, topic: &str) -> Result<String, LogError> {
        Ok(topic.to_owned())
    }
    fn bounds(&self, at: &TopicPartition) -> Result<(u64, u64), LogError> {
        match &*at.topic {
            "t.rejects" => Err(LogError::Unavailable("no broker".into())),
            _ => Ok((0, self.0.payloads(at).len() as u64)),
        }
    }
    fn ends(&self, _: &[TopicPartition]) -> Result<Vec<Ends>, LogError> {
        Err(LogError::Configuration("not here".into()))
    }
    fn consumer(&self, assignments: &[(TopicPartition, Start)]) -> Result<Box<dyn Consumer>, LogError> {
        let next = |(at, start): &(TopicPartition, Start)| match start {
            Start::At(offset) => (at.clone(), *offset),
            other => panic!("{other:?}"),
        };
        Ok(Box::new(Reader { log: self.0.clone(), next: assignments.iter().map(next).collect() }))
    }
    fn read(&self, _: &[(TopicPartition, std::ops::Range<u64>)], _: View, _: EachRead<'_>) -> Result<(), LogError> {
        Err(LogError::Configuration("not here".into()))
    }
    fn producer(&self) -> Result<Box<dyn Producer>, LogError> {
        Err(LogError::Configuration("not here".into()))
    }
    fn transactional(&self, _: &str) -> Result<Box<dyn Transactional>, LogError> {
        Err(LogError::Configuration("not here".into()))
    }
}

struct Reader {
    log: Arc<Memory>,
    next: Vec<(TopicPartition, u64)>,
}

impl Consumer for Reader {
    fn poll(&mut self, max: usize, _: Duration, each: &mut dyn FnMut(Message<'_>)) -> Result<usize, LogError> {
        let mut count = 0;
        for (assignment, (at, offset)) in self.next.iter_mut().enumerate() {
            for payload in self.log.payloads(at).iter().skip(*offset as usize).take(max) {
                each(Message { assignment, offset: *offset, timestamp_ms: 0, key: &[], payload });
                *offset += 1;
                count += 1;
            }
        }
        Ok(count)
    }

    fn positions(&self) -> Vec<u64> {
        self.next.iter().map(|(_, offset)| *offset).collect()
    }
}

struct Fixed(&'static str, Health);

impl Check for Fixed {
    fn name(&self) -> String {
        self.0.to_owned()
    }
    fn check(&self) -> Health {
        self.1.clone()
    }
}

struct FixedState;

impl Inspect for FixedState {
    fn shards(&self) -> Vec<ShardRow> {
        vec![ShardRow { worker: "w".into(), stage: "unify".into(), role: "owner".into(), ..ShardRow::default() }]
    }

    fn usage(&self) -> Result<Vec<TenantUsage>, NoUsage> {
        let row = |tenant: &str| TenantUsage {
            tenant: tenant.into(),
            stage: "action".into(),
            effects: 3,
            ..TenantUsage::default()
        };
        Ok(vec![row("globex"), row("acme")])
    }

    fn inspect(&self, tenant: &str, subject: &Subject) -> Result<Option<Value>, NoAnswer> {
        let (kind, identifier) = match subject {
            Subject::User(identifier) => ("user", identifier),
            Subject::Device(identifier) => ("device", identifier),
            Subject::UserId(id) => return Ok(Some(json!({"id": id.to_string()}))),
        };
        let elsewhere = |user: Option<&str>| Misdirected {
            shard: 3,
            user: user.map(str::to_owned),
            forwarded_from: user.map(|_| "u_0".to_owned()).into_iter().collect(),
        };
        match identifier.value.as_str() {
            "42" => Ok(Some(json!({"subject": kind, "tenant": tenant}))),
            "opening" => Err(NoAnswer::NotNow("the shard is being opened".to_owned())),
            "away" => Err(NoAnswer::Elsewhere(elsewhere(None))),
            "merged" => Err(NoAnswer::Elsewhere(elsewhere(Some("u_1")))),
            _ => Ok(None),
        }
    }
}

fn state(log: &Arc<Memory>, checks: Vec<Box<dyn Check>>) -> AdminState {
    let topics = Topics::new("t", 2, 1);
    let log: Arc<dyn Log> = Arc::new(MemoryLog(log.clone()));
    AdminState::new(checks, Metrics::new(["acme"]), Some(Arc::new(FixedState)), Some(log), None, topics)
}

async fn get_from(state: &AdminState, path: &str) -> (u16, String) {
    let request = Request::builder().uri(path).body(Body::empty()).unwrap();
    let response = router(state.clone()).oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let body = tokio::time::timeout(Duration::from_secs(30), response.into_body().collect()).await.unwrap();
    (status, String::from_utf8(body.unwrap().to_bytes().to_vec()).unwrap())
}

#[tokio::test]
async fn readiness_names_what_is_missing() {
    let log = Arc::new(Memory::default());
    let ready = state(&log, vec![Box::new(Fixed("log", Health::Well))]);
    assert_eq!(get_from(&ready, "/readyz").await, (200, "{\"ready\":true}\n".to_owned()));
    let impaired: Vec<Box<dyn Check>> = vec![Box::new(Fixed("log", Health::Impaired("away".into())))];
    let (status, body) = get_from(&state(&log, impaired), "/readyz").await;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, body), (200, serde_json::json!({"ready": true, "impaired": {"log": "away"}})));
    let waiting: Vec<Box<dyn Check>> = vec![
        Box::new(Fixed("log", Health::Well)),
        Box::new(Fixed("shard unify 3", Health::NotReady("is being opened".into()))),
    ];
    let (status, body) = get_from(&state(&log, waiting), "/readyz").await;
    assert_eq!(
        (status, body.contains(r#""shard unify 3":"is being opened""#), body.contains("log")),
        (503, true, false)
    );
    assert_eq!(get_from(&ready, "/livez").await.0, 200);
    assert!(get_from(&ready, "/metrics").await.1.ends_with("# EOF\n"));
    assert_eq!(get_from(&ready, "/v2").await.0, 404);
}

#[tokio::test]
async fn usage_and_inspection_come_from_the_shards() {
    let state = state(&Arc::new(Memory::default()), vec![]);
    let (status, body) = get_from(&state, "/v1/usage").await;
    let usage: Vec<TenantUsage> = serde_json::from_str(&body).unwrap();
    assert_eq!((status, usage[0].tenant.as_str(), usage[1].effects), (200, "acme", 3));
    let (status, body) = get_from(&state, "/v1/inspect/user?tenant=acme&id=user_id=42").await;
    assert_eq!((status, body.trim()), (200, r#"{"subject":"user","tenant":"acme"}"#));
    assert_eq!(get_from(&state, "/v1/inspect/device?tenant=acme&id=device_id%3D42").await.0, 200);
    for (path, status, text) in [
        ("/v1/inspect/user?tenant=acme&id=user_id=7", 404, "acme has no user with user_id=7"),
        ("/v1/inspect/user?tenant=acme&id=away", 400, "type=value"),
        ("/v1/inspect/user?tenant=acme&id=user_id=opening", 503, "being opened"),
        ("/v1/inspect/user?tenant=acme&id=user_id=away", 421, r#""elsewhere":{"shard":3}"#),
        ("/v1/inspect/user?tenant=acme&id=user_id=merged", 421, r#"{"shard":3,"user":"u_1","forwarded_from":["u_0"]}"#),
        ("/v1/inspect/user?tenant=acme&user=42", 400, "no id of a user"),
        ("/v1/inspect/device?tenant=acme&user=42", 400, "tenant=acme&id=user_id=42"),
        ("/v1/inspect/user?tenant=acme", 400, "tenant=acme&id=user_id=42"),
        ("/v1/inspect/shop?tenant=acme&id=user_id=1", 404, "`user` or `device`"),
    ] {
        let got = get_from(&state, path).await;
        assert!(got.0 == status && got.1.contains(text), "{path}: {got:?}");
    }
    let id = UserId::create("acme", &Identifier::new("user_id", "42"), &Stamp::default(), 1);
    assert_eq!(get_from(&state, &format!("/v1/inspect/user?tenant=acme&user={id}")).await.0, 200);
    let nothing = AdminState { inspect: None, log: None, ..state };
    assert_eq!(get_from(&nothing, "/v1/usage").await.0, 404);
    assert_eq!(get_from(&nothing, "/v1/tail/events").await.0, 404);
}

/// A process without shards that keep sums, or one whose shards are not open yet.
struct NoSums(NoUsage);

impl Inspect for NoSums {
    fn usage(&self) -> Result<Vec<TenantUsage>, NoUsage> {
        Err(self.0.clone())
    }
    fn shards(&self) -> Vec<ShardRow> {
        Vec::new()
    }
    fn inspect(&self, _: &str, _: &Subject) -> Result<Option<Value>, NoAnswer> {
        Ok(None)
    }
}

#[tokio::test]
async fn sums_that_are_not_whole_are_not_shown() {
    let state = state(&Arc::new(Memory::default()), vec![]);
    for (why, status) in [(NoUsage::NoShards, 404), (NoUsage::NotYet("unify 3 is being opened".into()), 503)] {
        let state = AdminState { inspect: Some(Arc::new(NoSums(why))), ..state.clone() };
        let (got, body) = get_from(&state, "/v1/usage").await;
        assert!(got == status && (body.contains("unify 3") || got == 404), "{got} {body}");
    }
}

#[tokio::test]
async fn a_tail_ends_at_the_end_and_shows_one_tenant() {
    let log = Arc::new(Memory::default());
    log.put("t.events", 0, r#"{"tenant":"acme","n":1}"#);
    log.put("t.events", 1, r#"{"tenant":"globex","n":2}"#);
    log.put("t.events", 1, r#"{"tenant":"acme","n":3}"#);
    let state = state(&log, vec![]);
    let (status, body) = get_from(&state, "/v1/tail/events?tenant=acme").await;
    assert_eq!((status, body.as_str()), (200, "{\"tenant\":\"acme\",\"n\":1}\n{\"tenant\":\"acme\",\"n\":3}\n"));
    assert_eq!(get_from(&state, "/v1/tail/events").await.1.lines().count(), 3);
    assert_eq!(get_from(&state, "/v1/tail/events?from=latest").await, (200, String::new()));
    let (_, body) = get_from(&state, "/v1/tail/rejects").await;
    assert!(body.contains("no broker"), "{body}");
    assert_eq!(get_from(&state, "/v1/tail/ingress").await.0, 404);
    assert_eq!(get_from(&state, "/v1/tail/events?form=latest").await.0, 400);
}

#[tokio::test]
async fn mutations_are_shown_as_json() {
    let log = Arc::new(Memory::default());
    for tenant in ["acme", "globex"] {
        let mutation =
            Mutation { tenant: tenant.into(), collection: "users".into(), revision: 7, ..Mutation::default() };
        log.put("t.g1.mutations", 0, single(Content::Mutation, &mutation));
    }
    // Of a savepoint: nothing to see.
    log.put("t.g1.mutations", 0, single(Content::Marker, &Marker { savepoint: 1, ..Marker::default() }));
    log.put("t.g1.mutations", 1, "no frame");
    let (_, body) = get_from(&state(&log, vec![]), "/v1/tail/mutations?tenant=acme").await;
    let lines: Vec<Value> = body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2, "{body}");
    assert_eq!((&lines[0]["tenant"], &lines[0]["revision"]), (&json!("acme"), &json!(7)));
    assert!(lines[1]["error"]["message"].as_str().unwrap().contains("not a frame"), "{body}");
}

#[tokio::test]
async fn following_shows_what_comes_and_ends_when_the_reader_leaves() {
    let log = Arc::new(Memory::default());
    log.put("t.events", 0, r#"{"n":1}"#);
    let state = state(&log, vec![]);
    let request = Request::builder().uri("/v1/tail/events?follow=true").body(Body::empty()).unwrap();
    let mut body = router(state.clone()).oneshot(request).await.unwrap().into_body();
    let mut next = async || {
        let frame = tokio::time::timeout(Duration::from_secs(30), body.frame()).await.unwrap();
        frame.unwrap().unwrap().into_data().unwrap()
    };
    assert_eq!(next().await, "{\"n\":1}\n");
    log.put("t.events", 1, r#"{"n":2}"#);
    assert_eq!(next().await, "{\"n\":2}\n");
    assert_eq!(state.tails.available_permits(), MAX_TAILS - 1);
    drop(body);
    let all = tokio::time::timeout(Duration::from_secs(30), state.tails.acquire_many(MAX_TAILS as u32)).await;
    assert!(all.is_ok(), "the thread of the tail did not end");
}

//! What a pipeline may do in Kafka: with what `docs/src/reference/permissions.md` lists it works, and without any row of it a worker says what it may not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use millstream::cli::Admin;
use millstream_shard::log::{Log as _, LogError, TopicPartition};
use millstream_shard::topics::Topics;
use millstream_stores::kafka::{KafkaConfig, KafkaLog};
use millstream_tests::conformance::unique;
use millstream_tests::pipeline::{Pipeline, Process, Settings, until};
use millstream_tests::servers::acls::Acl;
use millstream_tests::servers::{Kafka, Minio};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::time::Duration;

const PAGE: &str = include_str!("../../docs/src/reference/permissions.md");
const KEY: &str = "secret-of-acme";
/// Processes that need no document store.
const ROLES: [(&str, &str); 3] = [("gateway", "gateway"), ("unify", "unify"), ("action", "action")];
/// One user per pipeline: what is given to one is not given to the others.
const USERS: [&str; 7] = ["all", "Read", "Write", "Create", "DescribeConfigs", "Delete", "TransactionalId"];

fn kafka() -> &'static Kafka {
    static AUTHORIZING: OnceLock<Kafka> = OnceLock::new();
    AUTHORIZING.get_or_init(|| Kafka::start_authorizing(&USERS).unwrap())
}

/// The rows of the page's table, for a pipeline.
fn documented(pipeline: &str) -> Vec<Acl> {
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| `")?.split('|').map(|cell| cell.trim().trim_matches('`').to_owned());
        let (kind, operation, names) = (cells.next()?, cells.next()?, cells.next()?);
        let prefix = names.strip_prefix("PREFIX")?;
        Some(Acl { kind, prefix: format!("{pipeline}{prefix}"), operation })
    };
    PAGE.lines().filter_map(row).collect()
}

/// A pipeline of a user, which lacks some of what the page lists.
fn settings(user: &str, lacks: impl Fn(&Acl) -> bool) -> Settings {
    let pipeline = unique("allowed");
    let (lacking, given): (Vec<Acl>, Vec<Acl>) = documented(&pipeline).into_iter().partition(lacks);
    assert_eq!((lacking.len(), given.len()), if user == "all" { (0, 6) } else { (1, 5) });
    kafka().allow(user, &given).unwrap();
    Settings {
        pipeline,
        shards: 2,
        kafka: Some(kafka().bootstrap().to_owned()),
        replication: 1,
        security: kafka().security_of(user),
        tenants: vec![("acme".to_owned(), KEY.to_owned())],
        more: checkpoints(),
        ..Settings::default()
    }
}

/// Waits until one of the processes says what is wrong, in words that contain these.
fn wait_for_words(processes: &[Process], words: &[String]) {
    let client = reqwest::blocking::Client::new();
    until(&format!("a condition with {words:?}"), || {
        let mut said = String::new();
        for process in processes {
            let url = format!("{}/readyz", process.admin_url());
            if let Ok(answer) = client.get(&url).timeout(Duration::from_secs(2)).send() {
                let text = format!("{}: {} {}\n", process.name, answer.status(), answer.text()?);
                if words.iter().all(|word| text.contains(word.as_str())) {
                    return Ok(Some(()));
                }
                said.push_str(&text);
            }
        }
        anyhow::bail!("{said}")
    })
    .unwrap();
}

/// All the time, into a bucket.
fn checkpoints() -> String {
    Minio::shared().unwrap().section("") + "checkpoints: {interval: 1s, min_pause: 100ms, retained: 1}\n"
}

/// Sends twenty events.
fn send(pipeline: &Pipeline) {
    let event = |number: usize| json!({ "type": "event", "message_id": number.to_string(), "event": "Opened", "identifiers": { "user_id": format!("user-{number}") } });
    let batch = json!({ "batch": (0..20).map(event).collect::<Vec<_>>() }).to_string();
    let client = reqwest::blocking::Client::new();
    let url = format!("{}/v1/batch", pipeline.gateway().unwrap().url());
    let request = client.post(&url).bearer_auth(KEY).header("content-type", "application/json").body(batch);
    assert!(request.send().unwrap().status().is_success());
}

#[test]
fn what_is_documented_is_enough() {
    let settings = settings("all", |_| false);
    let pipeline = Pipeline::named(&settings, &ROLES).unwrap();
    send(&pipeline);
    let admin = Admin::new(&pipeline.gateway().unwrap().admin_url()).unwrap();
    until("every event", || {
        let mut ids = BTreeSet::new();
        let query = [("tenant", "acme"), ("follow", "false")];
        admin.lines::<anyhow::Error>("/v1/tail/events", &query, &mut |line| {
            let event: Value = serde_json::from_str(line)?;
            Ok(ids.insert(event["message_id"].to_string()))
        })?;
        Ok((ids.len() == 20).then_some(()))
    })
    .unwrap();
    let log = KafkaLog::new(KafkaConfig { security: kafka().security_of("all"), ..kafka().config() }).unwrap();
    let changelog = Topics::new(&settings.pipeline, settings.shards, 1).changelog("action");
    until("a changelog that was trimmed", || {
        let begins = |shard| Ok::<u64, LogError>(log.bounds(&TopicPartition::new(changelog.clone(), shard))?.0);
        Ok((begins(0)? > 0 || begins(1)? > 0).then_some(()))
    })
    .unwrap();
}

/// Without one row, a worker names what it may not do, and to what.
fn is_named(user: &str, lacks: impl Fn(&Acl) -> bool, words: &[&str]) {
    let settings = settings(user, lacks);
    let words: Vec<String> = words.iter().map(|word| word.replace("PREFIX", &settings.pipeline)).collect();
    let pipeline = Pipeline::launched(&settings, &ROLES).unwrap();
    wait_for_words(&pipeline.processes, &words);
}

fn is_of_topics(acl: &Acl, operation: &str) -> bool {
    acl.kind == "Topic" && acl.operation == operation
}

#[test]
fn a_topic_that_may_not_be_read_is_named() {
    is_named("Read", |acl| is_of_topics(acl, "Read"), &["PREFIX.", "TopicAuthorizationFailed"]);
}

/// The condition has the transactional id, the worker's log the topic.
#[test]
fn what_may_not_be_written_is_named() {
    is_named("Write", |acl| is_of_topics(acl, "Write"), &["PREFIX.", "TOPIC_AUTHORIZATION_FAILED"]);
}

#[test]
fn a_topic_that_may_not_be_created_is_named() {
    is_named("Create", |acl| is_of_topics(acl, "Create"), &["cannot create topic PREFIX.", "TopicAuthorizationFailed"]);
}

#[test]
fn a_topic_whose_settings_may_not_be_seen_is_named() {
    let words = &["cannot describe topic PREFIX.", "DescribeConfigs"];
    is_named("DescribeConfigs", |acl| is_of_topics(acl, "DescribeConfigs"), words);
}

#[test]
fn a_changelog_that_may_not_be_trimmed_is_named() {
    let settings = settings("Delete", |acl| is_of_topics(acl, "Delete"));
    let pipeline = Pipeline::named(&settings, &ROLES).unwrap();
    send(&pipeline);
    let words = ["the changelog cannot be trimmed", &settings.pipeline, "TopicAuthorizationFailed"];
    wait_for_words(&pipeline.processes, &words.map(str::to_owned));
}

#[test]
fn a_transactional_id_that_may_not_be_used_is_named() {
    let words = &["cannot fence transactional id PREFIX.", "Transactional Id authorization failed"];
    is_named("TransactionalId", |acl| acl.kind == "TransactionalId", words);
}

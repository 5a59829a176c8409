//! What is around a pipeline goes wrong: the condition is clear, nothing is lost, and it goes on by itself once the cause is gone, or stops where going on would
//! lose something (I6). Real Kafka; one process per role.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use millstream::cli::{Admin, snapshot};
use millstream_shard::log::{Log, TopicPartition, TopicSpec};
use millstream_shard::topics::Topics;
use millstream_stores::kafka::KafkaLog;
use millstream_tests::conformance::unique;
use millstream_tests::pipeline::{Pipeline, Process, Settings, until};
use millstream_tests::plan::{FOLLOWS, plan_auto};
use millstream_tests::proxy::Door;
use millstream_tests::servers::{Kafka, Mongo, USER};
use rdkafka::ClientConfig;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const KEY: &str = "secret-of-acme";
/// Processes that need no document store.
const ROLES: [(&str, &str); 3] = [("gateway", "gateway"), ("unify", "unify"), ("action", "action")];

fn settings(kafka: &Kafka, what: &str) -> Settings {
    Settings {
        pipeline: unique(what),
        shards: 2,
        kafka: Some(kafka.bootstrap().to_owned()),
        replication: 1,
        tenants: vec![("acme".to_owned(), KEY.to_owned())],
        ..Settings::default()
    }
}

/// Sends twenty events of twenty users.
fn send(pipeline: &Pipeline, round: &str) {
    let event = |number: usize| {
        let (id, user) = (format!("{round}-{number}"), format!("user-{number}"));
        json!({ "type": "event", "message_id": id, "event": "Opened", "identifiers": { "user_id": user } })
    };
    send_records(pipeline, &(0..20).map(event).collect::<Vec<_>>());
}

/// Sends records; a request without a certain answer is sent again, as its answer asks.
fn send_records(pipeline: &Pipeline, records: &[Value]) {
    let batch = json!({ "batch": records }).to_string();
    let url = format!("{}/v1/batch", pipeline.gateway().unwrap().url());
    let client = reqwest::blocking::Client::new();
    until("an answer that all records are taken", || {
        let request = client.post(&url).bearer_auth(KEY).header("content-type", "application/json");
        let answer = request.body(batch.clone()).send()?;
        Ok(answer.status().is_success().then_some(()))
    })
    .unwrap();
}

/// Sends a user of this name.
fn send_user(pipeline: &Pipeline, name: &str) {
    send_records(
        pipeline,
        &[json!({ "type": "user", "message_id": name, "identifiers": { "user_id": name }, "set": {} })],
    );
}

/// Until there are as many documents of users.
fn wait_for_users(pipeline: &Pipeline, count: usize) {
    let admin = Admin::new(&process_of(pipeline, "reaction").admin_url()).unwrap();
    until("the documents", || {
        let users = snapshot::documents(&admin, "acme", "users", None)?;
        anyhow::ensure!(users.len() <= count, "{users:?}");
        Ok((users.len() == count).then_some(()))
    })
    .unwrap();
}

/// Message ids of everything in `events`, each of which must be there once.
fn events(pipeline: &Pipeline) -> anyhow::Result<BTreeSet<String>> {
    let admin = Admin::new(&pipeline.gateway()?.admin_url())?;
    let mut ids = BTreeSet::new();
    let query = [("tenant", "acme"), ("follow", "false")];
    admin.lines::<anyhow::Error>("/v1/tail/events", &query, &mut |line| {
        let event: Value = serde_json::from_str(line)?;
        let id = event["message_id"].as_str().unwrap_or_default().to_owned();
        assert!(ids.insert(id.clone()), "{id} came out twice");
        Ok(true)
    })?;
    Ok(ids)
}

fn wait_for_events(pipeline: &Pipeline, rounds: &[&str]) {
    let expected: BTreeSet<String> =
        rounds.iter().flat_map(|round| (0..20).map(move |number| format!("{round}-{number}"))).collect();
    until("every event, once", || Ok((events(pipeline)? == expected).then_some(()))).unwrap();
}

fn process_of<'a>(pipeline: &'a Pipeline, name: &str) -> &'a Process {
    pipeline.processes.iter().find(|process| process.name == name).unwrap()
}

fn process<'a>(pipeline: &'a mut Pipeline, name: &str) -> &'a mut Process {
    pipeline.processes.iter_mut().find(|process| process.name == name).unwrap()
}

/// Waits until a process says what is wrong in words that contain these; is it ready all the same?
fn wait_for_condition(process: &Process, words: &str) -> bool {
    wait_for_words(process, words, |text| text.contains(words))
}

fn wait_for_words(process: &Process, what: &str, are_there: impl Fn(&str) -> bool) -> bool {
    let client = reqwest::blocking::Client::new();
    let url = format!("{}/readyz", process.admin_url());
    until(&format!("the condition `{what}`"), || {
        let answer = client.get(&url).timeout(Duration::from_secs(2)).send()?;
        let (is_ready, text) = (answer.status() == 200, answer.text()?);
        anyhow::ensure!(are_there(&text), "{text}");
        Ok(Some(is_ready))
    })
    .unwrap()
}

fn log(kafka: &Kafka) -> KafkaLog {
    KafkaLog::new(kafka.config()).unwrap()
}

/// Asks processes again and again whether they are ready, until it is told to stop; then says when one was not.
struct Readiness {
    stop: Arc<AtomicBool>,
    asked: JoinHandle<Vec<String>>,
}

impl Readiness {
    fn watch(pipeline: &Pipeline) -> Readiness {
        let urls: Vec<String> =
            pipeline.processes.iter().map(|process| format!("{}/readyz", process.admin_url())).collect();
        let (stop, client) = (Arc::new(AtomicBool::new(false)), reqwest::blocking::Client::new());
        let stopped = stop.clone();
        let asked = std::thread::spawn(move || {
            let mut refused = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                for url in &urls {
                    let answer = client.get(url).timeout(Duration::from_secs(10)).send();
                    match answer {
                        Ok(answer) if answer.status() == 200 => {}
                        other => refused.push(format!("{url}: {:?}", other.map(|answer| answer.text()))),
                    }
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            refused
        });
        Readiness { stop, asked }
    }

    /// Fails when one was not ready once.
    fn was_kept(self) {
        self.stop.store(true, Ordering::Relaxed);
        let refused = self.asked.join().unwrap();
        assert!(refused.is_empty(), "{} answers, the first of them {}", refused.len(), refused[0]);
    }
}

/// One process per role, which follow a plan.
fn planned(settings: Settings) -> Pipeline {
    let settings = Settings { more: format!("{FOLLOWS}{}", settings.more), ..settings };
    let mut pipeline = Pipeline::launched(&settings, &ROLES).unwrap();
    until("a plan, and processes that follow it", || {
        // Nobody is there for the shards of reaction: it says so, and places the others all the same.
        let planned = plan_auto(&pipeline).err();
        let ready = process_of(&pipeline, "action").is_ready() && process_of(&pipeline, "unify").is_ready();
        anyhow::ensure!(ready, "{planned:?}");
        Ok(Some(()))
    })
    .unwrap();
    process(&mut pipeline, "gateway").ready().unwrap();
    pipeline
}

#[test]
fn a_log_that_goes_away_is_waited_for_and_makes_no_process_unready() {
    let mut kafka = Kafka::start().unwrap();
    let pipeline = planned(settings(&kafka, "away"));
    send(&pipeline, "before");
    wait_for_events(&pipeline, &["before"]);
    let readiness = Readiness::watch(&pipeline);
    kafka.node(0).unwrap().kill().unwrap();
    for name in ["gateway", "unify", "action"] {
        wait_for_condition(process_of(&pipeline, name), "\"log\":");
    }
    wait_for_condition(process_of(&pipeline, "unify"), "\"shard unify 0\":");
    // With a log that answers it would be no gateway to send to.
    wait_for_condition(process_of(&pipeline, "gateway"), "has not heard `control`");
    kafka.node(0).unwrap().start_again().unwrap();
    kafka.is_whole().unwrap();
    send(&pipeline, "after");
    wait_for_events(&pipeline, &["before", "after"]);
    for name in ["gateway", "unify", "action"] {
        wait_for_words(process_of(&pipeline, name), "that nothing is wrong", |text| text.trim() == r#"{"ready":true}"#);
    }
    readiness.was_kept();
}

#[test]
fn one_broker_of_three_is_lost_and_records_flow_and_no_process_is_unready() {
    let mut kafka = Kafka::start_cluster(3).unwrap();
    let pipeline = planned(Settings { replication: 3, ..settings(&kafka, "third") });
    send(&pipeline, "before");
    wait_for_events(&pipeline, &["before"]);
    let readiness = Readiness::watch(&pipeline);
    kafka.node(1).unwrap().kill().unwrap();
    send(&pipeline, "without");
    wait_for_events(&pipeline, &["before", "without"]);
    kafka.node(1).unwrap().start_again().unwrap();
    kafka.is_whole().unwrap();
    send(&pipeline, "after");
    wait_for_events(&pipeline, &["before", "without", "after"]);
    readiness.was_kept();
}

#[test]
fn a_password_that_is_not_right_any_more_is_named_and_it_goes_on_when_it_is() {
    let mut kafka = Kafka::start_secure().unwrap();
    let mut settings = Settings { security: kafka.security().clone(), ..settings(&kafka, "refused") };
    settings.security.insert("sasl.mechanism".to_owned(), "PLAIN".to_owned());
    let mut pipeline = Pipeline::named(&settings, &ROLES).unwrap();
    send(&pipeline, "before");
    wait_for_events(&pipeline, &["before"]);
    kafka.restart_with_password("another").unwrap();
    for name in ["gateway", "unify", "action"] {
        wait_for_condition(process(&mut pipeline, name), "Invalid username or password");
    }
    kafka.restart_with_password(USER.1).unwrap();
    for name in ["gateway", "unify", "action"] {
        wait_for_words(process_of(&pipeline, name), "that nothing is wrong", |text| text.trim() == r#"{"ready":true}"#);
    }
    send(&pipeline, "after");
    wait_for_events(&pipeline, &["before", "after"]);
}

#[test]
fn a_password_that_the_document_store_refuses_is_named_and_what_waited_is_written_when_it_is_right() {
    let kafka = Kafka::shared().unwrap();
    let door = Door::start(Mongo::shared().unwrap().port(), "first").unwrap();
    let login = format!("millstream:first@127.0.0.1:{}", door.port);
    let uri = format!("mongodb://{login}/?directConnection=true&authMechanism=PLAIN");
    let settings = Settings { mongodb: Some(uri), ..settings(kafka, "door") };
    let roles = [ROLES.as_slice(), &[("reaction", "reaction")]].concat();
    let mut pipeline = Pipeline::named(&settings, &roles).unwrap();
    send_user(&pipeline, "before");
    wait_for_users(&pipeline, 1);
    door.change_password("second");
    send_user(&pipeline, "refused");
    let is_ready = wait_for_condition(process(&mut pipeline, "reaction"), "\"documents\":");
    assert!(is_ready, "a lost document store makes no process unready");
    wait_for_condition(process(&mut pipeline, "reaction"), "Authentication failed");
    assert!(door.refused.load(Ordering::Relaxed) > 0);
    // It begins with a password that is refused, too: another Pod, say.
    process(&mut pipeline, "reaction").terminate().unwrap();
    process(&mut pipeline, "reaction").launch().unwrap();
    wait_for_condition(process(&mut pipeline, "reaction"), "Authentication failed");
    send_user(&pipeline, "later");
    door.change_password("first");
    wait_for_users(&pipeline, 3);
    process(&mut pipeline, "reaction").ready().unwrap();
    send_user(&pipeline, "after");
    wait_for_users(&pipeline, 4);
}

#[test]
fn transactional_ids_that_the_brokers_have_forgotten_are_made_anew() {
    let expires = "transactional.id.expiration.ms=4000\ntransaction.remove.expired.transaction.cleanup.interval.ms=500\n\
                   producer.id.expiration.ms=4000\nproducer.id.expiration.check.interval.ms=500\n";
    let kafka = Kafka::start_with(1, expires).unwrap();
    let mut pipeline = Pipeline::named(&settings(&kafka, "expired"), &ROLES).unwrap();
    send(&pipeline, "before");
    wait_for_events(&pipeline, &["before"]);
    // Idle for longer than the brokers remember: nothing but time can show that.
    let idle = std::time::Instant::now();
    until("ids that are forgotten", || Ok((idle.elapsed() > Duration::from_secs(12)).then_some(()))).unwrap();
    send(&pipeline, "after");
    wait_for_events(&pipeline, &["before", "after"]);
    for name in ["unify", "action"] {
        let process = process(&mut pipeline, name);
        process.ready().unwrap();
        assert!(process.log().contains("shard is opened again"), "{}", process.log());
        // What else makes a client fail is another answer.
        assert!(
            process.log().contains("not currently assigned to its transactional id"),
            "nothing had expired: {}",
            process.log()
        );
    }
}

#[test]
fn an_input_that_was_deleted_below_the_position_stops_the_shard_and_nothing_is_skipped() {
    let kafka = Kafka::shared().unwrap();
    let settings = settings(kafka, "trimmed");
    let mut pipeline = Pipeline::named(&settings, &ROLES).unwrap();
    send(&pipeline, "before");
    wait_for_events(&pipeline, &["before"]);
    process(&mut pipeline, "unify").terminate().unwrap();
    send(&pipeline, "lost");
    let log = log(kafka);
    for partition in 0..2 {
        let at = TopicPartition::new(format!("{}.ingress", settings.pipeline), partition);
        let (_, end) = log.bounds(&at).unwrap();
        log.trim(&at, end).unwrap();
    }
    process(&mut pipeline, "unify").launch().unwrap();
    wait_for_condition(process(&mut pipeline, "unify"), "is not at offset");
    send(&pipeline, "later");
    wait_for_condition(process(&mut pipeline, "unify"), "is not at offset");
    wait_for_events(&pipeline, &["before"]);
}

/// As Kafka is by default: it makes whatever topic a client asks for, unless the client says not to.
#[test]
fn brokers_that_make_topics_by_themselves_make_none_of_ours() {
    let kafka = Kafka::start_with(1, "auto.create.topics.enable=true\n").unwrap();
    let settings = settings(&kafka, "auto");
    let mut pipeline = Pipeline::named(&settings, &ROLES).unwrap();
    send(&pipeline, "before");
    wait_for_events(&pipeline, &["before"]);
    let (log, topics) = (log(&kafka), Topics::new(&settings.pipeline, settings.shards, 1));
    log.delete_topic(&topics.events).unwrap();
    send(&pipeline, "after");
    wait_for_condition(process(&mut pipeline, "action"), &topics.events);
    let client: BaseConsumer = ClientConfig::new().set("bootstrap.servers", kafka.bootstrap()).create().unwrap();
    let metadata = client.fetch_metadata(None, Duration::from_secs(10)).unwrap();
    let names: BTreeSet<&str> = metadata.topics().iter().map(|topic| topic.name()).collect();
    let strangers: Vec<&&str> =
        names.iter().filter(|name| !name.starts_with(&settings.pipeline) && !name.starts_with("__")).collect();
    assert!(strangers.is_empty() && !names.contains("__millstream_probe"), "{names:?}");
    assert!(!names.contains(&*topics.events), "it came back by itself");
}

#[test]
fn a_changelog_that_does_not_keep_everything_is_refused_at_the_start() {
    let kafka = Kafka::shared().unwrap();
    let settings = settings(kafka, "forgets");
    let changelog = Topics::new(&settings.pipeline, settings.shards, 1).changelog("unify");
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", kafka.bootstrap()).create().unwrap();
    let topic = NewTopic::new(&changelog, 2, TopicReplication::Fixed(1)).set("retention.ms", "604800000");
    let made = futures::executor::block_on(admin.create_topics([&topic], &AdminOptions::new())).unwrap();
    assert!(made.iter().all(Result::is_ok), "{made:?}");
    let mut pipeline = Pipeline::launched(&settings, &ROLES).unwrap();
    wait_for_condition(process(&mut pipeline, "unify"), "retention.ms 604800000, not -1");
}

#[test]
fn an_output_that_was_deleted_is_waited_for_and_nothing_is_lost_but_what_was_in_it() {
    let kafka = Kafka::shared().unwrap();
    let settings = settings(kafka, "output");
    let mut pipeline = Pipeline::named(&settings, &ROLES).unwrap();
    send(&pipeline, "before");
    wait_for_events(&pipeline, &["before"]);
    let (log, topics) = (log(kafka), Topics::new(&settings.pipeline, settings.shards, 1));
    log.delete_topic(&topics.events).unwrap();
    send(&pipeline, "after");
    wait_for_condition(process(&mut pipeline, "action"), &topics.events);
    let spec = topics.specs().into_iter().find(|spec| *spec.name == *topics.events).unwrap();
    log.create_topics(&[TopicSpec { partitions: 1, ..spec }]).unwrap();
    wait_for_words(process(&mut pipeline, "action"), "of shard 1 alone", |text| {
        let says = text.contains(&*topics.events) && text.contains("does not exist");
        says && text.contains("shard action 1") && !text.contains("shard action 0")
    });
    add_partitions(kafka, &topics.events, 2);
    process(&mut pipeline, "action").ready().unwrap();
    send(&pipeline, "later");
    wait_for_events(&pipeline, &["after", "later"]);
}

/// A topic gets more partitions, as many as this.
fn add_partitions(kafka: &Kafka, topic: &str, count: usize) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", kafka.bootstrap()).create().unwrap();
    let added =
        futures::executor::block_on(admin.create_partitions([&NewPartitions::new(topic, count)], &AdminOptions::new()));
    assert!(added.as_ref().is_ok_and(|outcomes| outcomes.iter().all(Result::is_ok)), "{added:?}");
}

/// What one message of a topic may measure, for the brokers.
fn limit_messages(kafka: &Kafka, topic: &str, bytes: u32) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", kafka.bootstrap()).create().unwrap();
    let bytes = bytes.to_string();
    let change = AlterConfig::new(ResourceSpecifier::Topic(topic)).set("max.message.bytes", &bytes);
    let changed = futures::executor::block_on(admin.alter_configs([&change], &AdminOptions::new())).unwrap();
    assert!(changed.iter().all(Result::is_ok), "{changed:?}");
}

#[test]
fn a_message_that_the_brokers_do_not_take_stops_the_shard_until_they_do() {
    let kafka = Kafka::shared().unwrap();
    let settings = settings(kafka, "large");
    let mut pipeline = Pipeline::named(&settings, &ROLES).unwrap();
    send(&pipeline, "before");
    wait_for_events(&pipeline, &["before"]);
    let changelog = Topics::new(&settings.pipeline, settings.shards, 1).changelog("action");
    // Less than a batch, more than the marker of a transaction.
    limit_messages(kafka, &changelog, 200);
    send(&pipeline, "after");
    wait_for_condition(process(&mut pipeline, "action"), "raise `max.message.bytes` of that topic");
    limit_messages(kafka, &changelog, 9_000_000);
    process(&mut pipeline, "action").ready().unwrap();
    wait_for_events(&pipeline, &["before", "after"]);
}

#[test]
fn a_topic_that_is_missing_or_has_another_number_of_partitions_is_named() {
    let kafka = Kafka::shared().unwrap();
    let first = settings(kafka, "topics");
    let mut pipeline = Pipeline::named(&first, &ROLES).unwrap();
    send(&pipeline, "before");
    wait_for_events(&pipeline, &["before"]);
    let log = log(kafka);
    log.delete_topic(&format!("{}.g1.actions", first.pipeline)).unwrap();
    send(&pipeline, "after");
    wait_for_condition(process(&mut pipeline, "unify"), "g1.actions");
    // What unify has written and action had not read is gone with it: action must not go on as if nothing had been there.
    let topics = Topics::new(&first.pipeline, first.shards, 1);
    let spec = topics.specs().into_iter().find(|spec| *spec.name == *topics.actions).unwrap();
    log.create_topics(&[spec]).unwrap();
    process(&mut pipeline, "unify").ready().unwrap();
    wait_for_condition(process(&mut pipeline, "action"), "it was deleted and created again; bring the former one back");
    let more = Settings { shards: 3, ..settings(kafka, "ignored") };
    let other = Settings { pipeline: first.pipeline, ..more };
    let mut wrong = Pipeline::launched(&other, &[("unify", "unify-of-three")]).unwrap();
    wait_for_condition(process(&mut wrong, "unify-of-three"), "2 partitions, not 3");
}

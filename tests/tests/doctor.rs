//! `millstream doctor` on real servers: it names what is wrong and what to change, and changes nothing itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use millstream_shard::log::{Log, TopicSpec};
use millstream_shard::topics::Topics;
use millstream_stores::kafka::{KafkaConfig, KafkaLog};
use millstream_stores::s3::Credentials;
use millstream_tests::conformance::unique;
use millstream_tests::pipeline::{Process, Settings, binary};
use millstream_tests::servers::{Kafka, Minio, Mongo, free_ports};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use serde_json::Value;
use std::process::{Command, Stdio};
use std::time::Duration;

/// What the doctor came to.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    findings: Vec<Value>,
    err: String,
}

impl Ended {
    /// The findings about something, as level and text.
    fn about(&self, subject: &str) -> Vec<(String, String)> {
        let of = |finding: &Value, field: &str| finding[field].as_str().unwrap_or_default().to_owned();
        let about = self.findings.iter().filter(|finding| of(finding, "subject").starts_with(subject));
        about
            .map(|finding| (of(finding, "level"), format!("{} -> {}", of(finding, "found"), of(finding, "change"))))
            .collect()
    }

    /// The only finding about something has this level, and these words in it.
    fn says(&self, subject: &str, level: &str, words: &[&str]) {
        let about = self.about(subject);
        assert!(about.len() == 1 && about[0].0 == level, "{subject}: {about:?} of {self:?}");
        assert!(words.iter().all(|word| about[0].1.contains(word)), "{words:?}: {}", about[0].1);
    }

    /// Subjects of all problems.
    fn problems(&self) -> Vec<&str> {
        let problems = self.findings.iter().filter(|finding| finding["level"] == "problem");
        problems.map(|finding| finding["subject"].as_str().unwrap()).collect()
    }
}

fn examine(settings: &Settings, more: &[&str]) -> Ended {
    let folder = tempfile::tempdir().unwrap();
    let process = Process::new("unify", "doctor", settings, folder.path()).unwrap();
    let output = Command::new(binary().unwrap())
        .args(["doctor", "--json", "--config", &process.config().display().to_string()])
        .args(more)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!process.data().exists(), "it made the folder of local state");
    let err = String::from_utf8(output.stderr).unwrap();
    Ended { code: output.status.code(), findings: serde_json::from_slice(&output.stdout).unwrap_or_default(), err }
}

fn settings(kafka: &str, mongo: &str, what: &str) -> Settings {
    Settings {
        pipeline: unique(what),
        shards: 2,
        kafka: Some(kafka.to_owned()),
        replication: 1,
        mongodb: Some(mongo.to_owned()),
        tenants: vec![("acme".to_owned(), "secret-of-acme".to_owned())],
        ..Settings::default()
    }
}

fn specs(settings: &Settings) -> Vec<TopicSpec> {
    Topics::new(&settings.pipeline, settings.shards, 1).specs()
}

/// Topics as a worker makes them.
fn create(config: KafkaConfig, settings: &Settings) -> KafkaLog {
    let log = KafkaLog::new(config).unwrap();
    log.create_topics(&specs(settings)).unwrap();
    log
}

/// All topics with their partitions, internal ones included, and all groups.
fn contents(kafka: &Kafka) -> (Vec<String>, usize) {
    let client: BaseConsumer = ClientConfig::new().set("bootstrap.servers", kafka.bootstrap()).create().unwrap();
    let metadata = client.fetch_metadata(None, Duration::from_secs(30)).unwrap();
    let topic = |topic: &rdkafka::metadata::MetadataTopic| format!("{} {}", topic.name(), topic.partitions().len());
    let mut topics: Vec<String> = metadata.topics().iter().map(topic).collect();
    topics.sort();
    (topics, client.fetch_group_list(None, Duration::from_secs(30)).unwrap().groups().len())
}

fn set(kafka: &Kafka, topic: &str, name: &str, value: &str) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", kafka.bootstrap()).create().unwrap();
    let change = AlterConfig::new(ResourceSpecifier::Topic(topic)).set(name, value);
    let changed = futures::executor::block_on(admin.alter_configs([&change], &AdminOptions::new())).unwrap();
    assert!(changed.iter().all(Result::is_ok), "{changed:?}");
}

/// The collections of a database.
fn collections(mongo: &Mongo, database: &str) -> Vec<String> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = mongodb::Client::with_uri_str(mongo.uri()).await.unwrap();
        client.database(database).list_collection_names().await.unwrap()
    })
}

#[test]
fn all_is_well_before_and_after_topics_are_made() {
    let (kafka, mongo) = (Kafka::shared().unwrap(), Mongo::shared().unwrap());
    let settings = settings(kafka.bootstrap(), mongo.uri(), "doctor-well");
    let before = examine(&settings, &[]);
    assert_eq!(before.code, Some(0), "{before:?}");
    before.says("configuration", "ok", &[&settings.pipeline, "2 shards"]);
    before.says(&format!("broker {}", kafka.bootstrap()), "ok", &["new enough"]);
    before.says("broker 1 (", "ok", &["transactions up to 15m"]);
    before.says("cluster", "warning", &["log.kafka.replication: 3"]);
    let users = format!("collection {}.users", settings.pipeline.replace('.', "_"));
    before.says(&users, "ok", &["not there yet"]);
    for spec in specs(&settings) {
        before.says(&format!("topic {}", spec.name), "ok", &["not there yet"]);
    }
    create(kafka.config(), &settings);
    let after = examine(&settings, &["--role", "unify"]);
    assert_eq!(after.code, Some(0), "{after:?}");
    for spec in specs(&settings) {
        let partitions = format!("partitions: {}, copies: 1, all in sync", spec.partitions);
        after.says(&format!("topic {}", spec.name), "ok", &[&partitions]);
    }
    after.says("documents", "ok", &["does not use"]);
    after.says("objects", "warning", &["never trimmed", "objects: {s3: {bucket: ...}}"]);
}

#[test]
fn a_topic_that_is_missing_alone_is_a_problem() {
    let (kafka, mongo) = (Kafka::shared().unwrap(), Mongo::shared().unwrap());
    let settings = settings(kafka.bootstrap(), mongo.uri(), "doctor-missing");
    let actions = format!("{}.g1.actions", settings.pipeline);
    create(kafka.config(), &settings).delete_topic(&actions).unwrap();
    let ended = examine(&settings, &[]);
    assert_eq!((ended.code, ended.problems()), (Some(1), vec![&*format!("topic {actions}")]), "{ended:?}");
    ended.says(&format!("topic {actions}"), "problem", &["was it deleted", "generation: 2"]);
}

#[test]
fn topics_of_others_come_with_the_commands_that_make_them() {
    let (kafka, mongo) = (Kafka::shared().unwrap(), Mongo::shared().unwrap());
    let mut settings = settings(kafka.bootstrap(), mongo.uri(), "doctor-others");
    settings
        .security
        .insert("security.protocol".into(), "plaintext\"\n    create_topics: false\n    compression: \"lz4".into());
    let ended = examine(&settings, &[]);
    assert_eq!((ended.code, ended.problems().len()), (Some(1), specs(&settings).len()), "{ended:?}");
    let changelog = format!("{}.g1.changelog.unify", settings.pipeline);
    let command = format!("kafka-topics.sh --bootstrap-server {} --create --topic {changelog}", kafka.bootstrap());
    ended.says(&format!("topic {changelog}"), "problem", &[&command, "--config retention.ms=-1", "--partitions 2"]);
}

#[test]
fn partitions_and_settings_that_are_wrong_are_told_with_what_to_set() {
    let (kafka, mongo) = (Kafka::shared().unwrap(), Mongo::shared().unwrap());
    let mut settings = settings(kafka.bootstrap(), mongo.uri(), "doctor-wrong");
    create(kafka.config(), &settings);
    let changelog = format!("{}.g1.changelog.action", settings.pipeline);
    // Altering sets everything else back: the changelog forgets now, too, as the cluster says.
    set(kafka, &changelog, "max.message.bytes", "1048588");
    let ended = examine(&settings, &[]);
    let about = ended.about(&format!("topic {changelog}"));
    let command = format!("--entity-name {changelog} --add-config max.message.bytes=8454144");
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(about.iter().any(|(level, said)| level == "problem" && said.contains(&command)), "{about:?}");
    assert!(about.iter().any(|(level, said)| level == "problem" && said.contains("retention.ms=-1")), "{about:?}");
    settings.shards = 3;
    let ended = examine(&settings, &[]);
    let ingress = format!("topic {}.ingress", settings.pipeline);
    ended.says(&ingress, "problem", &["2 partitions, not 3", "shards: 2"]);
}

#[test]
fn a_wrong_password_is_told_in_the_brokers_words_and_not_repeated() {
    let kafka = Kafka::start_secure().unwrap();
    let mongo = Mongo::shared().unwrap();
    let mut settings =
        Settings { security: kafka.security().clone(), ..settings(kafka.bootstrap(), mongo.uri(), "doctor-secure") };
    let ended = examine(&settings, &[]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended.says(&format!("broker {}", kafka.bootstrap()), "ok", &["new enough"]);
    settings.security.insert("sasl.password".to_owned(), "guessed".to_owned());
    let ended = examine(&settings, &[]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    ended.says(&format!("broker {}", kafka.bootstrap()), "problem", &["invalid credentials", "sasl.password"]);
    ended.says("topics", "warning", &["not looked at"]);
    assert!(!format!("{ended:?}").contains("guessed"), "{ended:?}");
    settings.security.clear();
    let ended = examine(&settings, &[]);
    ended.says(&format!("broker {}", kafka.bootstrap()), "problem", &["security.protocol"]);
}

#[test]
fn brokers_are_reached_one_by_one_and_a_document_store_that_is_away_is_named() {
    let kafka = Kafka::shared().unwrap();
    let ports = free_ports(2).unwrap();
    let away = format!("127.0.0.1:{}", ports[0]);
    let mongo = format!("mongodb://someone:hidden@127.0.0.1:{}/?directConnection=true", ports[1]);
    let settings = settings(&format!("{},{away}", kafka.bootstrap()), &mongo, "doctor-away");
    let ended = examine(&settings, &[]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    ended.says(&format!("broker {}", kafka.bootstrap()), "ok", &["answers"]);
    ended.says(&format!("broker {away}"), "problem", &["Connection refused", "start the broker"]);
    ended.says("documents", "problem", &["start the server"]);
    assert_eq!(ended.problems().len(), 2, "{ended:?}");
    assert!(!format!("{ended:?}").contains("hidden"), "{ended:?}");
    ended.says(&format!("topic {}.ingress", settings.pipeline), "ok", &["not there yet"]);
}

#[test]
fn a_bucket_is_looked_into_and_what_is_wrong_with_it_told() {
    let (kafka, mongo) = (Kafka::shared().unwrap(), Mongo::shared().unwrap());
    let mut settings = settings(kafka.bootstrap(), mongo.uri(), "doctor-bucket");
    let s3 = Minio::shared().unwrap().config("");
    let Credentials::Static { access_key_id: id, secret_access_key: right, .. } = &s3.credentials else { panic!() };
    let (endpoint, bucket) = (s3.endpoint.as_deref().unwrap(), s3.bucket.as_str());
    let with = |endpoint: &str, bucket: &str, secret: &str| {
        format!(
            "objects: {{s3: {{bucket: {bucket}, endpoint: '{endpoint}', access_key_id: {id}, secret_access_key: {secret}}}}}\n"
        )
    };
    let cases = [
        (with(endpoint, bucket, right), "ok", "nothing of this pipeline"),
        (with(endpoint, "nobodys", right), "problem", "nobodys"),
        (with(endpoint, bucket, "guessed-secret"), "problem", "objects.s3"),
        (with("http://127.0.0.1:1", bucket, right), "problem", "start it"),
    ];
    for (more, level, said) in cases {
        settings.more = more;
        let ended = examine(&settings, &["--role", "action"]);
        ended.says("objects s3://", level, &[said]);
        assert!(!format!("{ended:?}").contains("guessed-secret"), "{ended:?}");
        assert_eq!(ended.code, Some(i32::from(level == "problem")), "{ended:?}");
    }
}

/// Also where brokers create each topic that somebody names.
#[test]
fn nothing_is_created_or_changed() {
    let kafka = Kafka::start_with(1, "auto.create.topics.enable=true\ntransaction.max.timeout.ms=5000\n").unwrap();
    let mongo = Mongo::start().unwrap();
    let settings = settings(kafka.bootstrap(), mongo.uri(), "doctor-nothing");
    let before = contents(&kafka);
    assert_eq!(before, (Vec::new(), 0));
    let ended = examine(&settings, &[]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let limits = ended.about("broker 1 (");
    assert!(limits[0].1.contains("log.kafka.transaction_timeout: 5000ms"), "{limits:?}");
    assert!(limits[1].1.contains("auto.create.topics.enable=false"), "{limits:?}");
    assert_eq!(contents(&kafka), before);
    assert_eq!(collections(&mongo, &settings.pipeline.replace('.', "_")), Vec::<String>::new());
    // Workers create their topics there, and no other one.
    create(kafka.config(), &settings);
    let mut wanted: Vec<String> =
        specs(&settings).iter().map(|spec| format!("{} {}", spec.name, spec.partitions)).collect();
    wanted.sort();
    assert_eq!(contents(&kafka).0, wanted);
}

#[test]
fn a_configuration_that_is_no_good_is_told_by_the_loader() {
    let settings =
        Settings { more: "shard: 3\n".to_owned(), ..settings("127.0.0.1:1", "mongodb://127.0.0.1:1", "doctor-bad") };
    let ended = examine(&settings, &[]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.err.contains("unknown field `shard`") && ended.findings.is_empty(), "{ended:?}");
}

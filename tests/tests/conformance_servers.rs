//! The conformance suites against real servers: Apache Kafka, a MongoDB-compatible server, and MinIO for S3.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use millstream_shard::documents::DocumentStore;
use millstream_shard::log::{Log, LogError, Outgoing, Retention, TopicPartition};
use millstream_shard::objects::ObjectStore;
use millstream_shard::topics::Topics;
use millstream_stores::kafka::{KafkaConfig, KafkaLog};
use millstream_stores::mongo::{MongoConfig, MongoDocuments};
use millstream_stores::s3::{Encryption, S3Config, S3Objects};
use millstream_tests::conformance::{documents, noise, objects, reader, unique};
use millstream_tests::servers::{Kafka, Minio, Mongo};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use std::sync::Arc;
use std::sync::mpsc::channel;

struct OnKafka(&'static Kafka);

fn kafka() -> OnKafka {
    OnKafka(Kafka::shared().unwrap())
}

impl OnKafka {
    fn log(&self) -> KafkaLog {
        KafkaLog::new(self.0.config()).unwrap()
    }
}

impl reader::Subject for OnKafka {
    fn open(&self) -> Arc<dyn Log> {
        Arc::new(self.log())
    }

    fn trim(&self, _: &Arc<dyn Log>, at: &TopicPartition, before: u64) {
        self.log().trim(at, before).unwrap();
    }

    fn delete_topic(&self, _: &Arc<dyn Log>, topic: &str) {
        self.log().delete_topic(topic).unwrap();
    }
}

struct OnMongo(MongoConfig);

fn mongo() -> OnMongo {
    OnMongo(Mongo::shared().unwrap().config("conformance"))
}

/// As on servers that do not know the `bulkWrite` command.
fn old_mongo() -> OnMongo {
    OnMongo(MongoConfig { bulk_write: false, ..mongo().0 })
}

impl documents::Subject for OnMongo {
    fn open(&self) -> Arc<dyn DocumentStore> {
        Arc::new(MongoDocuments::connect(self.0.clone()).unwrap())
    }
}

struct OnMinio(S3Config);

fn minio() -> OnMinio {
    OnMinio(Minio::shared().unwrap().config("conformance"))
}

/// Versions are other ones then.
fn encrypting_minio() -> OnMinio {
    OnMinio(S3Config { encryption: Encryption::Kms { key: None }, ..minio().0 })
}

impl objects::Subject for OnMinio {
    fn open(&self) -> Arc<dyn ObjectStore> {
        Arc::new(S3Objects::new(self.0.clone()).unwrap())
    }
}

mod log_on_kafka {
    millstream_tests::log_conformance!(super::kafka());
}

mod documents_on_mongo {
    millstream_tests::document_conformance!(super::mongo());
}

mod documents_on_mongo_without_bulk_write {
    millstream_tests::document_conformance!(super::old_mongo());
}

mod objects_on_minio {
    millstream_tests::object_conformance!(super::minio());
}

mod objects_on_minio_encrypted {
    millstream_tests::object_conformance!(super::encrypting_minio());
}

#[path = "on_servers/s3.rs"]
mod s3;

/// What only real servers can do: stop, hang, and have indexes of other people.
mod trouble {
    use super::*;
    use millstream_model::proto::operation::Op;
    use millstream_model::proto::{Mutation, Operation, Value};
    use millstream_shard::documents::{DocumentError, Outcome};
    use millstream_shard::log::{LogError, Outgoing, Start, Transactional};
    use millstream_stores::kafka::KafkaConfig;
    use millstream_tests::collisions::Collisions;
    use millstream_tests::conformance::reader::{contents, message, poll, send, spec, topic, transact};
    use millstream_tests::conformance::{eventually, unique};
    use millstream_tests::servers::Server;
    use std::time::{Duration, Instant};

    fn signal(server: &Server, name: &str) {
        let sent = std::process::Command::new("kill").args(["-s", name, &server.pid().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Returns when every thread has stopped: the signal is on its way for a while on a busy machine.
    pub(super) fn stop(server: &Server) {
        signal(server, "STOP");
        eventually("every thread stops", || {
            let threads = std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
            let mut stats =
                threads.filter_map(|thread| std::fs::read_to_string(thread.unwrap().path().join("stat")).ok());
            stats
                .all(|stat| stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T')))
                .then_some(())
        });
    }

    fn set(collection: &str, id: &str, revision: u64, x: i64) -> Mutation {
        Mutation {
            tenant: "acme".into(),
            collection: collection.into(),
            id: id.into(),
            generation: 1,
            revision,
            operations: vec![Operation { path: "x".into(), op: Some(Op::Set(Value::integer(x))) }],
            ..Mutation::default()
        }
    }

    fn open(config: &KafkaConfig) -> Arc<dyn Log> {
        Arc::new(KafkaLog::new(config.clone()).unwrap())
    }

    fn begun(log: &Arc<dyn Log>, id: &str, message: Outgoing<'_>) -> Box<dyn Transactional> {
        let mut client = log.transactional(id).unwrap();
        client.begin().unwrap();
        client.send(message).unwrap();
        client
    }

    /// The broker hangs while the commit is on its way; librdkafka gives the request up, sends it again, and reports success. The first one
    /// may still be around, so the outcome is unknown (DESIGN 4, rule 6); whoever takes over sees what it came to.
    #[test]
    fn a_commit_that_was_sent_twice_is_unknown() {
        let kafka = Kafka::start().unwrap();
        let mut config = kafka.config();
        config.properties.insert("socket.timeout.ms".into(), "1000".into());
        config.transaction_timeout_ms = 60_000;
        let log = open(&config);
        let (topic, id) = (topic(&log, "hang", 1), unique("hang"));
        let client = begun(&log, &id, message(&topic, 0, b"in doubt"));
        // The message itself is in the log before the broker hangs: only the commit is in doubt.
        let behind_it = [(TopicPartition::new(topic.as_str(), 0), Start::At(1))];
        eventually("the message is in the log", || log.consumer(&behind_it).is_ok().then_some(()));
        let node = &kafka.nodes()[0];
        stop(node);
        let (mut client, outcome) = std::thread::scope(|scope| {
            let (done, committed) = channel();
            let commit = scope.spawn(move || {
                let mut client = client;
                let outcome = client.commit();
                done.send(()).unwrap();
                (client, outcome)
            });
            // It hangs for three times as long as a request may take, or until the client gives up.
            let _ = committed.recv_timeout(Duration::from_secs(3));
            signal(node, "CONT");
            commit.join().unwrap()
        });
        assert!(matches!(outcome, Err(LogError::Unknown(_))), "{outcome:?}");
        let again = client.begin();
        assert!(matches!(again, Err(LogError::Unknown(_))), "a client that failed stays dead: {again:?}");
        let mut next = log.transactional(&id).unwrap();
        transact(&mut *next, &topic, &[(0, "next")]).unwrap();
        let all = contents(&log, &topic, 1).concat();
        assert!(all == ["next"] || all == ["in doubt", "next"], "{all:?}");
    }

    /// Errors come in bounded time and say what to do; nothing is invented.
    #[test]
    fn without_a_broker_everything_is_unavailable_or_unknown() {
        let mut kafka = Kafka::start().unwrap();
        let mut config = kafka.config();
        (config.request_timeout_ms, config.init_timeout_ms, config.delivery_timeout_ms) = (2000, 2000, 2000);
        let log = open(&config);
        let topic = topic(&log, "down", 1);
        let at = TopicPartition::new(topic.as_str(), 0);
        let producer = log.producer().unwrap();
        send(&*producer, message(&topic, 0, b"before")).unwrap();
        let mut consumer = log.consumer(&[(at.clone(), Start::Earliest)]).unwrap();
        kafka.kill(0);
        assert!(matches!(log.bounds(&at), Err(LogError::Unavailable(_))));
        assert!(matches!(send(&*producer, message(&topic, 0, b"after")), Err(LogError::Unknown(_))));
        assert!(matches!(log.transactional("down").map(drop), Err(LogError::Unavailable(_))));
        assert!(matches!(log.create_topics(&[spec("other", 1)]), Err(LogError::Unavailable(_))));
        while !poll(&mut *consumer, 10, Duration::from_millis(200)).unwrap().is_empty() {}
    }

    /// Three nodes, two in sync: one may die, and neither what was committed nor the lock is lost.
    #[test]
    fn a_dead_node_of_three_loses_nothing() {
        let mut kafka = Kafka::start_cluster(3).unwrap();
        let config = KafkaConfig { request_timeout_ms: 30_000, init_timeout_ms: 60_000, ..kafka.config() };
        let log = open(&config);
        let (topic, id) = (topic(&log, "failover", 3), unique("failover"));
        let mut client = log.transactional(&id).unwrap();
        transact(&mut *client, &topic, &[(0, "before"), (1, "before"), (2, "before")]).unwrap();
        client.begin().unwrap();
        for partition in 0..3 {
            client.send(message(&topic, partition, b"open")).unwrap();
        }
        // Each names some node the controller; to a third of them that is the one that dies.
        let others: Vec<_> = (0..12).map(|_| open(&config)).collect();
        let topic_id = log.topic_id(&topic).unwrap();
        assert!(others.iter().all(|other| other.topic_id(&topic).unwrap() == topic_id));
        // Leaders that a client has once heard of.
        let all: Vec<TopicPartition> = (0..3).map(|number| TopicPartition::new(topic.as_str(), number)).collect();
        assert_eq!(others[0].ends(&all).unwrap().len(), 3);
        kafka.kill(0);
        assert_eq!(others[0].ends(&all).unwrap().len(), 3);
        assert!(others.iter().all(|other| other.topic_id(&topic).unwrap() == topic_id));
        let mut next = log.transactional(&id).unwrap();
        transact(&mut *next, &topic, &[(0, "after"), (1, "after"), (2, "after")]).unwrap();
        let fenced = client.commit();
        assert!(matches!(fenced, Err(LogError::Unknown(_))), "{fenced:?}");
        assert_eq!(contents(&log, &topic, 3), [["before", "after"], ["before", "after"], ["before", "after"]]);
    }

    /// The write is given up in time; what it came to shows when it is repeated.
    #[test]
    fn a_write_to_a_server_that_hangs_is_to_be_repeated() {
        let mongo = Mongo::start().unwrap();
        let config = MongoConfig { write_timeout_ms: 1000, read_timeout_ms: 1000, ..mongo.config("hang") };
        let store = MongoDocuments::connect(config).unwrap();
        store.prepare(&["users"]).unwrap();
        let bulk = [set("users", "1", 1, 1), set("users", "2", 1, 2)];
        stop(mongo.server());
        let begin = Instant::now();
        let outcomes = store.write(&bulk);
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Retry(_))), "{outcomes:?}");
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
        assert!(matches!(store.get("acme", "users", "1"), Err(DocumentError::Unavailable(_))));
        signal(mongo.server(), "CONT");
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut outcomes = store.write(&bulk);
        while outcomes.iter().any(|outcome| matches!(outcome, Outcome::Retry(_))) {
            assert!(Instant::now() < deadline, "{outcomes:?}");
            outcomes = store.write(&bulk);
        }
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Applied | Outcome::Stale)), "{outcomes:?}");
        let document = store.get("acme", "users", "2").unwrap().unwrap();
        assert_eq!((document.revision, document.fields.get("x")), (1, Some(&Value::integer(2))));
    }

    /// A write that a unique index refuses would be repeated for ever, so such an index is refused first; one that comes later makes the write a
    /// reject, and never a stale one.
    #[test]
    fn unique_indexes_are_refused_and_their_collisions_too() {
        let mongo = Mongo::shared().unwrap();
        let (database, collection) = (unique("index"), unique("users"));
        let store = MongoDocuments::connect(mongo.config(&database)).unwrap();
        store.prepare(&[&collection]).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let client = mongodb::Client::with_uri_str(mongo.uri()).await.unwrap();
            let options = mongodb::options::IndexOptions::builder().unique(true).build();
            let index = mongodb::IndexModel::builder().keys(bson::doc! { "x": 1 }).options(options).build();
            client.database(&database).collection::<bson::Document>(&collection).create_index(index).await.unwrap();
        });
        let error = store.prepare(&[&collection]).unwrap_err();
        assert!(matches!(&error, DocumentError::Configuration(why) if why.contains(&collection)), "{error:?}");
        assert_eq!(store.write(&[set(&collection, "1", 1, 7)]), [Outcome::Applied]);
        let outcomes = store.write(&[set(&collection, "2", 1, 7), set(&collection, "3", 1, 8)]);
        assert!(
            matches!(&outcomes[..], [Outcome::Refused(why), Outcome::Applied] if why.contains("dup")),
            "{outcomes:?}"
        );
    }

    /// Two clients of one database: one through a proxy whose server lets upserts collide, and one beside it.
    struct Colliding {
        proxy: Collisions,
        behind: MongoDocuments,
        beside: MongoDocuments,
    }

    impl Colliding {
        fn new(bulk_write: bool) -> Colliding {
            let mongo = Mongo::shared().unwrap();
            let proxy = Collisions::start(mongo.port()).unwrap();
            let direct = MongoConfig { bulk_write, ..mongo.config(&unique("collide")) };
            let behind = MongoDocuments::connect(MongoConfig { uri: proxy.uri(), ..direct.clone() }).unwrap();
            let beside = MongoDocuments::connect(direct).unwrap();
            behind.prepare(&["users"]).unwrap();
            Colliding { proxy, behind, beside }
        }

        /// A write whose upsert collides.
        fn write(&self, mutation: Mutation) -> Outcome {
            let before = self.proxy.answered();
            self.proxy.collide(1);
            let [outcome] = <[Outcome; 1]>::try_from(self.behind.write(&[mutation])).unwrap();
            assert_eq!(self.proxy.answered(), before + 1, "the write did not collide");
            outcome
        }

        fn stored(&self) -> Option<(u64, Option<i64>)> {
            let document = self.beside.get("acme", "users", "1").unwrap()?;
            let x = document.fields.get("x").and_then(|value| match value.kind {
                Some(millstream_model::proto::value::Kind::Integer(x)) => Some(x),
                _ => None,
            });
            Some((document.revision, x))
        }
    }

    /// E11000 proves nothing: what is stored decides (I8).
    #[test]
    fn a_collision_while_a_lower_revision_is_stored_is_written_after_all() {
        for bulk_write in [true, false] {
            let colliding = Colliding::new(bulk_write);
            assert_eq!(colliding.beside.write(&[set("users", "1", 1, 1)]), [Outcome::Applied]);
            assert_eq!(colliding.write(set("users", "1", 2, 2)), Outcome::Applied);
            assert_eq!(colliding.stored(), Some((2, Some(2))), "bulk_write: {bulk_write}");
            assert_eq!(colliding.write(set("users", "1", 2, 2)), Outcome::Stale, "it is there already");
            assert_eq!(colliding.write(set("users", "1", 1, 1)), Outcome::Stale, "a newer one is there");
            assert_eq!(colliding.stored(), Some((2, Some(2))));
        }
    }

    #[test]
    fn a_collision_with_a_document_that_is_not_there_is_to_be_repeated() {
        for bulk_write in [true, false] {
            let colliding = Colliding::new(bulk_write);
            let outcome = colliding.write(set("users", "1", 1, 1));
            assert!(matches!(outcome, Outcome::Retry(_)), "{outcome:?}");
            assert_eq!(colliding.stored(), None);
            assert_eq!(colliding.behind.write(&[set("users", "1", 1, 1)]), [Outcome::Applied]);
            assert_eq!(colliding.stored(), Some((1, Some(1))));
        }
    }

    /// The repetition without upsert collides with nothing; when it is answered so all the same, the index is another one, for good.
    #[test]
    fn a_collision_of_the_repetition_is_no_success() {
        let colliding = Colliding::new(false);
        assert_eq!(colliding.beside.write(&[set("users", "1", 1, 1)]), [Outcome::Applied]);
        let before = colliding.proxy.answered();
        colliding.proxy.collide(2);
        let [outcome] = <[Outcome; 1]>::try_from(colliding.behind.write(&[set("users", "1", 2, 2)])).unwrap();
        assert_eq!(colliding.proxy.answered(), before + 2, "the write and its repetition collide");
        assert!(matches!(outcome, Outcome::Refused(_) | Outcome::Retry(_)), "{outcome:?}");
        assert_eq!(colliding.stored(), Some((1, Some(1))));
    }

    #[test]
    fn a_server_that_is_not_there_is_an_error_in_time() {
        let config = MongoConfig { write_timeout_ms: 500, ..MongoConfig::new("mongodb://127.0.0.1:9/", "none") };
        assert!(matches!(MongoDocuments::connect(config).map(drop), Err(DocumentError::Unavailable(_))));
        let config = MongoConfig::new("http://127.0.0.1/", "none");
        assert!(matches!(MongoDocuments::connect(config).map(drop), Err(DocumentError::Configuration(_))));
    }
}

#[test]
fn topics_that_somebody_else_makes_are_checked_and_everything_that_is_wrong_is_named() {
    let kafka = Kafka::shared().unwrap();
    let topics = Topics::new(&unique("existing"), 3, 1);
    let only_checks = KafkaLog::new(KafkaConfig { create_topics: false, ..kafka.config() }).unwrap();
    let said = |log: &KafkaLog| match log.create_topics(&topics.specs()) {
        Err(error @ LogError::Topic { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let all = said(&only_checks);
    for spec in topics.specs() {
        let line =
            all.lines().find(|line| line.starts_with(&format!("{}: ", spec.name))).unwrap_or_else(|| panic!("{all}"));
        assert!(line.contains("does not exist") && line.contains(&format!("{} partitions", spec.partitions)), "{line}");
    }
    // Somebody makes them, two of them not as they must be.
    let maker = KafkaLog::new(kafka.config()).unwrap();
    let mut specs = topics.specs();
    for spec in &mut specs {
        match &spec.name {
            name if **name == *topics.changelog("action") => spec.retention = Retention::Cluster,
            name if **name == *topics.ingress => spec.append_time = false,
            _ => {}
        }
    }
    maker.create_topics(&specs).unwrap();
    let two = said(&only_checks);
    assert!(two.contains("2 of 11 are not as they must be"), "{two}");
    assert!(two.contains("message.timestamp.type CreateTime, not LogAppendTime"), "{two}");
    assert!(two.contains("retention.ms 604800000, not -1"), "{two}");
    // As they must be.
    let topics = Topics::new(&unique("existing"), 3, 1);
    maker.create_topics(&topics.specs()).unwrap();
    only_checks.create_topics(&topics.specs()).unwrap();
}

#[test]
fn a_topic_for_others_is_kept_for_as_long_as_is_said() {
    let kafka = Kafka::shared().unwrap();
    let topics = Topics::new(&unique("kept"), 1, 1);
    let retention_ms = [(topics.events.to_string(), 86_400_000), (topics.changelog("unify").to_string(), 1)].into();
    KafkaLog::new(KafkaConfig { retention_ms, ..kafka.config() }).unwrap().create_topics(&topics.specs()).unwrap();
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", kafka.bootstrap()).create().unwrap();
    let kept = |topic: &str| {
        let asked = [ResourceSpecifier::Topic(topic)];
        let found = futures::executor::block_on(admin.describe_configs(&asked, &AdminOptions::new())).unwrap();
        found[0].as_ref().unwrap().get("retention.ms").unwrap().value.clone().unwrap()
    };
    assert_eq!((kept(&topics.events).as_str(), kept(&topics.rejects).as_str()), ("86400000", "604800000"));
    assert_eq!(kept(&topics.changelog("unify")), "-1", "what the pipeline stands on is nobody's to shorten");
}

#[test]
fn a_transaction_of_more_than_its_topic_takes_at_once_is_sent_in_several_requests() {
    let kafka = Kafka::shared().unwrap();
    let topics = Topics::new(&unique("little"), 1, 1);
    let takes_less = KafkaConfig { max_message_bytes: 2 << 20, ..kafka.config() };
    KafkaLog::new(takes_less).unwrap().create_topics(&topics.specs()).unwrap();
    let log = KafkaLog::new(kafka.config()).unwrap();
    log.create_topics(&topics.specs()).unwrap();
    let mut producer = log.transactional(&unique("little")).unwrap();
    producer.begin().unwrap();
    let payload = noise(500_000);
    for _ in 0..8 {
        let (topic, key, headers) = (&*topics.events, &[][..], &[][..]);
        producer.send(Outgoing { topic, partition: 0, key, payload: &payload, headers }).unwrap();
    }
    producer.commit().unwrap();
}

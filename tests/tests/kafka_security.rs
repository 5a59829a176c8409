//! Kafka over TLS with a password, as production clusters have it: right credentials work, and wrong ones say what is wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use millstream_shard::log::{Log, LogError, Outgoing, Retention, Start, TopicPartition, TopicSpec};
use millstream_stores::kafka::{KafkaConfig, KafkaLog};
use millstream_tests::servers::certificates::Authority;
use millstream_tests::servers::{Kafka, USER};
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};

fn kafka() -> &'static Kafka {
    static SECURE: OnceLock<Kafka> = OnceLock::new();
    SECURE.get_or_init(|| Kafka::start_secure().unwrap())
}

fn config_with(name: &str, value: &str) -> KafkaConfig {
    let mut config = kafka().config();
    config.security.insert(name.to_owned(), value.to_owned());
    config.request_timeout_ms = 2000;
    config
}

/// What the log says when it is asked, until it says why.
fn complaint(config: KafkaConfig, expected: &str) -> String {
    let log = KafkaLog::new(config).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let said = log.bounds(&TopicPartition::new("any", 0)).unwrap_err();
        assert!(matches!(said, LogError::Unavailable(_)), "{said}");
        if said.to_string().contains(expected) || Instant::now() > deadline {
            return said.to_string();
        }
    }
}

#[test]
fn transactions_and_plain_sends_work_over_tls_with_a_password() {
    let log = KafkaLog::new(kafka().config()).unwrap();
    let topic = TopicSpec { name: "secured".into(), partitions: 1, append_time: true, retention: Retention::Cluster };
    log.create_topics(std::slice::from_ref(&topic)).unwrap();
    let message = |payload| Outgoing { topic: "secured", partition: 0, key: &[], payload, headers: &[] };
    let (sender, fate) = mpsc::channel();
    let producer = log.producer().unwrap();
    producer.send(message(b"plain"), Box::new(move |fate| sender.send(fate).unwrap()));
    fate.recv_timeout(Duration::from_secs(60)).unwrap().unwrap();
    let mut client = log.transactional("secured-id").unwrap();
    client.begin().unwrap();
    client.send(message(b"in a transaction")).unwrap();
    client.commit().unwrap();
    let mut consumer = log.consumer(&[(TopicPartition::new("secured", 0), Start::Earliest)]).unwrap();
    let (mut read, deadline) = (Vec::new(), Instant::now() + Duration::from_secs(60));
    while read.len() < 2 && Instant::now() < deadline {
        let each = &mut |message: millstream_shard::log::Message<'_>| read.push(message.payload.to_vec());
        consumer.poll(10, Duration::from_millis(200), each).unwrap();
    }
    assert_eq!(read, [&b"plain"[..], b"in a transaction"]);
}

#[test]
fn a_wrong_password_is_named() {
    let said = complaint(config_with("sasl.password", "guessed"), "invalid credentials");
    assert!(said.contains("SCRAM-SHA-512") && said.contains("invalid credentials"), "{said}");
    assert!(!said.contains("guessed"), "{said}");
}

#[test]
fn a_broker_that_the_authority_did_not_vouch_for_is_named() {
    let another = Authority::new().unwrap();
    let said = complaint(config_with("ssl.ca.location", &another.path().display().to_string()), "verify");
    assert!(said.contains("certificate verify failed"), "{said}");
}

#[test]
fn a_client_without_tls_is_not_let_in() {
    let config = KafkaConfig { request_timeout_ms: 2000, ..KafkaConfig::new(kafka().bootstrap()) };
    assert!(matches!(KafkaLog::new(config).unwrap().brokers(Duration::from_secs(2)), Err(LogError::Unavailable(_))));
}

#[test]
fn what_the_client_cannot_do_is_a_configuration_error() {
    let error = KafkaLog::new(config_with("sasl.mechanism", "GSSAPI")).err().unwrap();
    assert!(matches!(&error, LogError::Configuration(message) if message.contains("GSSAPI")), "{error}");
}

#[test]
fn who_is_connected_goes_on_when_the_password_is_replaced_and_who_connects_needs_the_new_one() {
    let kafka = Kafka::start_secure().unwrap();
    let log = KafkaLog::new(kafka.config()).unwrap();
    let topic = TopicSpec { name: "rotated".into(), partitions: 1, append_time: true, retention: Retention::Cluster };
    log.create_topics(std::slice::from_ref(&topic)).unwrap();
    let message = |payload| Outgoing { topic: "rotated", partition: 0, key: &[], payload, headers: &[] };
    let mut connected = log.transactional("rotated-id").unwrap();
    let mut commit = |payload| {
        connected.begin()?;
        connected.send(message(payload))?;
        connected.commit()
    };
    commit(b"before").unwrap();
    kafka.change_password("second").unwrap();
    commit(b"with the former one").unwrap();
    let mut config = KafkaConfig { request_timeout_ms: 2000, ..kafka.config() };
    let said = complaint(config.clone(), "invalid credentials");
    assert!(said.contains("invalid credentials"), "{said}");
    config.security.insert("sasl.password".to_owned(), "second".to_owned());
    config.request_timeout_ms = kafka.config().request_timeout_ms;
    // Whoever has the new one takes over.
    let mut other = KafkaLog::new(config).unwrap().transactional("rotated-id").unwrap();
    other.begin().unwrap();
    other.send(message(b"with the new one")).unwrap();
    other.commit().unwrap();
    assert!(matches!(commit(b"too late"), Err(LogError::Unknown(_))), "it is fenced");
}

#[test]
fn a_broker_may_ask_for_a_certificate_and_a_password() {
    let mutual = Kafka::start_mutual().unwrap();
    let [authority, _] = &mutual.authorities;
    let issued = authority.issue(&["orders"]).unwrap();
    let config = |password: &str, certificate: bool| {
        let mut config = KafkaConfig { request_timeout_ms: 2000, ..KafkaConfig::new(&mutual.bootstrap) };
        let mut say = |name: &str, value: &str| config.security.insert(name.to_owned(), value.to_owned());
        say("security.protocol", "sasl_ssl");
        say("sasl.mechanism", "SCRAM-SHA-512");
        say("sasl.username", USER.0);
        say("sasl.password", password);
        say("ssl.ca.location", &authority.path().display().to_string());
        if certificate {
            say("ssl.certificate.pem", &issued.certificate);
            say("ssl.key.pem", &issued.key);
        }
        config
    };
    let brokers = KafkaLog::new(config(USER.1, true)).unwrap().brokers(Duration::from_secs(10));
    assert_eq!(brokers.unwrap(), 1);
    for (password, certificate, why) in [("guessed", true, "invalid credentials"), (USER.1, false, "certificate")] {
        let said = complaint(config(password, certificate), why);
        assert!(said.contains(why), "{said}");
    }
}

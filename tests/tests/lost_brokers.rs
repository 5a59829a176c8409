//! Brokers that are there, and name no broker.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use millstream_shard::log::{Log, Outgoing, Retention, Start, TopicPartition, TopicSpec};
use millstream_stores::kafka::{KafkaConfig, KafkaLog};
use millstream_tests::conformance::eventually;
use millstream_tests::kafka_proxy::KafkaProxy;
use millstream_tests::servers::Kafka;
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

/// As it happens after a broker was away: it answers before it is in its own picture of the cluster, and whoever asks in that moment is told of topics, but of no broker at all. With many
/// partitions in that answer, the client is long enough at it to lose all brokers for good.
#[test]
fn clients_that_were_told_that_there_is_no_broker_find_the_brokers_again() {
    let kafka = Kafka::start().unwrap();
    let topic = "many".to_owned();
    let spec = TopicSpec { name: topic.clone(), partitions: 300, append_time: false, retention: Retention::Cluster };
    KafkaLog::new(kafka.config()).unwrap().create_topics(&[spec]).unwrap();
    let upstream = kafka.bootstrap().rsplit_once(':').unwrap().1.parse().unwrap();
    let proxy = KafkaProxy::start(upstream).unwrap();
    let bootstrap_servers = format!("127.0.0.1:{}", proxy.port);
    let config = KafkaConfig { bootstrap_servers, request_timeout_ms: 1_000, ..kafka.config() };
    let log: Arc<dyn Log> = Arc::new(KafkaLog::new(config).unwrap());
    let at = TopicPartition::new(topic.as_str(), 0);
    let producer = log.producer().unwrap();
    let send = || {
        let (done, waiting) = channel();
        let outgoing = Outgoing { topic: &topic, partition: 0, key: b"k", payload: b"v", headers: &[] };
        producer.send(outgoing, Box::new(move |sent| drop(done.send(sent))));
        waiting
    };
    let mut reader = log.bulk_consumer(&[(at.clone(), Start::Earliest)]).unwrap();
    let sent = RefCell::new(send());
    // One after the other, so that there is always something to read, too.
    let sends = || {
        let Ok(fate) = sent.borrow().try_recv() else { return false };
        sent.replace(send());
        fate.is_ok()
    };
    let mut reads = || {
        let mut count = 0;
        sends();
        reader.poll(10, Duration::from_millis(10), &mut |_| count += 1).unwrap();
        count > 0
    };
    let clients: [(&str, usize, &mut dyn FnMut() -> bool); 5] = [
        ("that asks what readers see", 0, &mut || log.bounds(&at).is_ok()),
        ("that asks for all ends", 0, &mut || log.ends(std::slice::from_ref(&at)).is_ok()),
        ("that administers", 0, &mut || log.topic_id(&topic).is_ok()),
        ("that sends", 10, &mut || sends()),
        ("that reads", 10, &mut reads),
    ];
    for (client, refusals, works) in clients {
        eventually(&format!("the client {client} at first"), || works().then_some(()));
        for round in 0..if refusals > 0 { 4 } else { 2 } {
            loop {
                proxy.go_away();
                eventually("it tries to come back", || {
                    let _ = refusals > 0 && works();
                    (proxy.refused() >= refusals).then_some(())
                });
                proxy.name_nobody();
                // It asks, or is soon enough back at the broker that it knew.
                let has_asked = eventually(&format!("the client {client} asks"), || {
                    let is_back = works();
                    (proxy.told() > 0 || is_back).then(|| proxy.told() > 0)
                });
                if has_asked {
                    break;
                }
            }
            proxy.name_itself();
            eventually(&format!("the client {client} after {round} times"), || works().then_some(()));
        }
    }
}

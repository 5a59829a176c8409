//! Brokers that are there, and name no broker.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use millstream_shard::log::{Log, LogError, Outgoing, Producer, Retention, Start, TopicPartition, TopicSpec};
use millstream_stores::kafka::{KafkaConfig, KafkaLog};
use millstream_tests::conformance::eventually;
use millstream_tests::kafka_proxy::KafkaProxy;
use millstream_tests::servers::Kafka;
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// As it happens after a broker was away: it answers before it is in its own picture of the cluster, and whoever asks in that moment is told of topics, but of no broker at all. With many
/// partitions in that answer, the client is long enough at it to lose all brokers for good.
#[test]
fn clients_that_were_told_that_there_is_no_broker_find_the_brokers_again() {
    let kafka = Kafka::start().unwrap();
    let topic = "many".to_owned();
    let spec = TopicSpec { name: topic.clone(), partitions: 300, append_time: false, retention: Retention::Cluster };
    let patient = KafkaConfig { request_timeout_ms: 60_000, ..kafka.config() };
    KafkaLog::new(patient).unwrap().create_topics(&[spec]).unwrap();
    let at = TopicPartition::new(topic.as_str(), 0);
    let begin = || Client::new(&kafka, &at);
    // Those that only ask for offsets go back to the broker that they know, and ask nothing else.
    let mut asks = |it: &Client| {
        let log = &it.log;
        log.topic_id(&topic).is_ok() && log.bounds(&at).is_ok() && log.ends(std::slice::from_ref(&at)).is_ok()
    };
    finds_the_brokers_again("that asks", 2, 0, &begin(), &mut asks);
    finds_the_brokers_again("that sends", 3, 10, &begin(), &mut Client::sends);
    let reading = begin();
    let mut reader = eventually("a reader", || reading.log.bulk_consumer(&[(at.clone(), Start::Earliest)]).ok());
    let mut reads = |it: &Client| {
        let mut count = 0;
        it.sends();
        reader.poll(10, Duration::from_millis(10), &mut |_| count += 1).unwrap();
        count > 0
    };
    finds_the_brokers_again("that reads", 3, 10, &reading, &mut reads);
}

/// A log behind a proxy of its own.
struct Client {
    proxy: KafkaProxy,
    log: Arc<dyn Log>,
    producer: Box<dyn Producer>,
    at: TopicPartition,
    /// What becomes of the message that was sent last.
    sent: RefCell<Option<Receiver<Result<u64, LogError>>>>,
}

impl Client {
    fn new(kafka: &Kafka, at: &TopicPartition) -> Client {
        let upstream = kafka.bootstrap().rsplit_once(':').unwrap().1.parse().unwrap();
        let proxy = KafkaProxy::start(upstream).unwrap();
        let bootstrap_servers = format!("127.0.0.1:{}", proxy.port);
        let config = KafkaConfig { bootstrap_servers, request_timeout_ms: 1_000, ..kafka.config() };
        let log: Arc<dyn Log> = Arc::new(KafkaLog::new(config).unwrap());
        Client { proxy, producer: log.producer().unwrap(), log, at: at.clone(), sent: RefCell::default() }
    }

    /// Sends one message after the other; was one taken since?
    fn sends(&self) -> bool {
        let fate = match &*self.sent.borrow() {
            None => None,
            Some(sent) => match sent.try_recv() {
                Ok(fate) => Some(fate),
                Err(_) => return false,
            },
        };
        let (done, sent) = channel();
        let TopicPartition { topic, partition } = &self.at;
        let outgoing = Outgoing { topic, partition: *partition, key: b"k", payload: b"v", headers: &[] };
        self.producer.send(outgoing, Box::new(move |sent| drop(done.send(sent))));
        self.sent.replace(Some(sent));
        fate.is_some_and(|fate| fate.is_ok())
    }
}

/// The broker goes away so many times, and names nobody when it comes back.
fn finds_the_brokers_again(
    name: &str,
    times: usize,
    refusals: usize,
    client: &Client,
    works: &mut dyn FnMut(&Client) -> bool,
) {
    let proxy = &client.proxy;
    eventually(&format!("the client {name} at first"), || works(client).then_some(()));
    for time in 0..times {
        loop {
            proxy.go_away();
            eventually("it tries to come back", || {
                let _ = refusals > 0 && works(client);
                (proxy.refused() >= refusals).then_some(())
            });
            proxy.name_nobody();
            // It asks, or is soon enough back at the broker that it knew.
            let has_asked = eventually(&format!("the client {name} asks"), || {
                let is_back = works(client);
                (proxy.told() > 0 || is_back).then(|| proxy.told() > 0)
            });
            if has_asked {
                break;
            }
        }
        proxy.name_itself();
        eventually(&format!("the client {name} after {time} times"), || works(client).then_some(()));
    }
}

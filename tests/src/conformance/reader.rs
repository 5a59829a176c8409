//! What the log cases read and send with.

use super::{eventually, unique};
use millstream_shard::log::{
    Consumer, Log, LogError, Message, Outgoing, Producer, Retention, Start, TopicPartition, TopicSpec, Transactional,
};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// A log under test.
pub trait Subject: Send + Sync {
    /// Opens the log. A case that opens it again has dropped the former one and all its clients before; an embedded log is then closed
    /// and opened on the same data, a remote one gets new clients.
    fn open(&self) -> Arc<dyn Log>;
    /// Removes the messages of a partition below `before`; `log` is what [`Subject::open`] gave.
    fn trim(&self, log: &Arc<dyn Log>, at: &TopicPartition, before: u64);
    /// Deletes a topic and returns when one of that name can be created again.
    fn delete_topic(&self, log: &Arc<dyn Log>, topic: &str);
    /// Are messages of open transactions in the log, or with the client until they are committed?
    fn has_open_messages(&self) -> bool {
        true
    }
}

/// A message that was read, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// As in [`Message`].
    pub assignment: usize,
    /// As in [`Message`].
    pub offset: u64,
    /// As in [`Message`].
    pub timestamp_ms: u64,
    /// As in [`Message`].
    pub key: Vec<u8>,
    /// As in [`Message`].
    pub payload: Vec<u8>,
}

impl Read {
    fn of(message: Message<'_>) -> Read {
        Read {
            assignment: message.assignment,
            offset: message.offset,
            timestamp_ms: message.timestamp_ms,
            key: message.key.to_vec(),
            payload: message.payload.to_vec(),
        }
    }

    /// The payload as text.
    pub fn text(&self) -> String {
        String::from_utf8(self.payload.clone()).unwrap()
    }
}

/// How topics of the suite are made, unless a case is about it.
pub fn spec(name: &str, partitions: u32) -> TopicSpec {
    TopicSpec { name: name.to_owned(), partitions, append_time: false, retention: Retention::Cluster }
}

/// A new topic.
pub fn topic(log: &Arc<dyn Log>, what: &str, partitions: u32) -> String {
    let name = unique(what);
    log.create_topics(&[spec(&name, partitions)]).unwrap();
    name
}

/// A message without key and headers.
pub fn message<'a>(topic: &'a str, partition: u32, payload: &'a [u8]) -> Outgoing<'a> {
    Outgoing { topic, partition, key: b"", payload, headers: &[] }
}

/// Sends a message and waits for its fate.
pub fn send(producer: &dyn Producer, message: Outgoing<'_>) -> Result<u64, LogError> {
    let (sender, fate) = mpsc::channel();
    producer.send(message, Box::new(move |result| drop(sender.send(result))));
    fate.recv_timeout(super::DEADLINE).expect("every send is acknowledged")
}

/// Sends texts to a partition and waits for each; gives their offsets.
pub fn send_all(producer: &dyn Producer, topic: &str, partition: u32, texts: &[&str]) -> Vec<u64> {
    texts.iter().map(|text| send(producer, message(topic, partition, text.as_bytes())).unwrap()).collect()
}

/// One transaction with these (partition, text).
///
/// # Errors
/// The first error of the client.
pub fn transact(client: &mut dyn Transactional, topic: &str, messages: &[(u32, &str)]) -> Result<(), LogError> {
    client.begin()?;
    for (partition, text) in messages {
        client.send(message(topic, *partition, text.as_bytes()))?;
    }
    client.commit()
}

/// A reader of partitions 0.. of a topic.
pub fn reader(log: &Arc<dyn Log>, topic: &str, partitions: u32, start: Start) -> Box<dyn Consumer> {
    let assignments: Vec<_> = (0..partitions).map(|partition| (TopicPartition::new(topic, partition), start)).collect();
    log.consumer(&assignments).unwrap()
}

/// Polls once.
///
/// # Errors
/// Those of the consumer.
pub fn poll(consumer: &mut dyn Consumer, max: usize, timeout: Duration) -> Result<Vec<Read>, LogError> {
    let mut read = Vec::new();
    let count = consumer.poll(max, timeout, &mut |message| read.push(Read::of(message)))?;
    assert_eq!(count, read.len(), "poll returns how many it handed over");
    assert!(count <= max, "{count} messages, at most {max} were asked for");
    Ok(read)
}

/// Reads until there are `count` messages.
pub fn read(consumer: &mut dyn Consumer, count: usize) -> Vec<Read> {
    let mut all = Vec::new();
    eventually(&format!("{count} messages"), || {
        all.extend(poll(consumer, 1000, Duration::from_millis(100)).unwrap());
        (all.len() >= count).then_some(())
    });
    assert_eq!(all.len(), count, "too many: {all:?}");
    all
}

/// Reads until the positions have reached the bounds that the log gave before.
pub fn drain(log: &Arc<dyn Log>, consumer: &mut dyn Consumer, topic: &str, partitions: u32) -> Vec<Read> {
    let ends: Vec<u64> =
        (0..partitions).map(|partition| log.bounds(&TopicPartition::new(topic, partition)).unwrap().1).collect();
    let mut all = Vec::new();
    eventually(&format!("positions reach {ends:?}"), || {
        all.extend(poll(consumer, 1000, Duration::from_millis(100)).unwrap());
        consumer.positions().iter().zip(&ends).all(|(position, end)| position >= end).then_some(())
    });
    all
}

/// Everything visible in a topic: one list of texts per partition. What was committed before the call and what was acknowledged is there:
/// a message is sent to each partition and read last, so that nothing before it can still be on its way.
pub fn contents(log: &Arc<dyn Log>, topic: &str, partitions: u32) -> Vec<Vec<String>> {
    let producer = log.producer().unwrap();
    let mark = unique("end");
    for partition in 0..partitions {
        send(&*producer, message(topic, partition, mark.as_bytes())).unwrap();
    }
    let mut consumer = reader(log, topic, partitions, Start::Earliest);
    let mut texts = vec![Vec::new(); partitions as usize];
    let mut open = partitions;
    eventually("the end of every partition", || {
        for read in poll(&mut *consumer, 1000, Duration::from_millis(100)).unwrap() {
            let text = read.text();
            if text == mark {
                open -= 1;
            } else if !text.starts_with("conformance-end-") {
                texts[read.assignment].push(text);
            }
        }
        (open == 0).then_some(())
    });
    texts
}

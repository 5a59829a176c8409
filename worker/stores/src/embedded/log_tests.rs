//! What the embedded log promises beyond the conformance suite.

use super::log::{EmbeddedLog, LogOptions};
use super::log_open::open_db;
use millstream_shard::Clock;
use millstream_shard::log::Outgoing;
use millstream_shard::log::{Log, LogError, Producer, Retention, Start, TopicPartition, TopicSpec};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

struct Set(AtomicU64);

impl Clock for Set {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

const TOPIC: &str = "topic";

fn open(folder: &Path, clock: &Arc<Set>, options: LogOptions) -> EmbeddedLog {
    let log = EmbeddedLog::open(folder, options, clock.clone()).unwrap();
    let spec = TopicSpec { name: TOPIC.into(), partitions: 1, append_time: true, retention: Retention::Cluster };
    log.create_topics(&[spec]).unwrap();
    log
}

fn clock(ms: u64) -> Arc<Set> {
    Arc::new(Set(AtomicU64::new(ms)))
}

fn outgoing(payload: &[u8]) -> Outgoing<'_> {
    Outgoing { topic: TOPIC, partition: 0, key: b"", payload, headers: &[] }
}

fn send(log: &EmbeddedLog, payload: &[u8]) -> u64 {
    let (sender, fate) = mpsc::channel();
    log.producer().unwrap().send(outgoing(payload), Box::new(move |result| sender.send(result).unwrap()));
    fate.recv().unwrap().unwrap()
}

fn times(log: &EmbeddedLog) -> Vec<u64> {
    let mut consumer = log.consumer(&[(TopicPartition::new(TOPIC, 0), Start::Earliest)]).unwrap();
    let mut times = Vec::new();
    while consumer.poll(10, Duration::ZERO, &mut |message| times.push(message.timestamp_ms)).unwrap() > 0 {}
    times
}

#[test]
fn append_time_does_not_go_back_with_the_clock_also_after_opening_again() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), clock(1000));
    let log = open(folder.path(), &clock, LogOptions::default());
    send(&log, b"a");
    clock.0.store(500, Ordering::SeqCst);
    send(&log, b"b");
    drop(log);
    let log = open(folder.path(), &clock, LogOptions::default());
    let last = send(&log, b"c");
    assert_eq!(times(&log), [1000, 1000, 1000]);
    log.trim(&TopicPartition::new(TOPIC, 0), last + 1).unwrap();
    drop(log);
    let log = open(folder.path(), &clock, LogOptions::default());
    assert_eq!(send(&log, b"d"), last + 1);
    assert_eq!(times(&log), [1000], "a trimmed partition remembers its time");
}

#[test]
fn what_a_transaction_sent_has_the_time_of_its_sending() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), clock(1000));
    let log = open(folder.path(), &clock, LogOptions { fsync: true, ..LogOptions::default() });
    let mut client = log.transactional("id").unwrap();
    client.begin().unwrap();
    client.send(outgoing(b"a")).unwrap();
    clock.0.store(2000, Ordering::SeqCst);
    send(&log, b"b");
    client.commit().unwrap();
    assert_eq!(times(&log), [1000, 2000]);
}

#[test]
fn a_full_queue_refuses_at_once_and_an_acknowledgement_may_send() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), clock(1000));
    let log = open(folder.path(), &clock, LogOptions { queue_bytes: 90, ..LogOptions::default() });
    let (sender, fates) = mpsc::channel();
    let producer: Arc<dyn Producer> = Arc::from(log.producer().unwrap());
    let send = |producer: &Arc<dyn Producer>, sender: &mpsc::Sender<_>| {
        let sender = sender.clone();
        producer.send(outgoing(&[1; 90]), Box::new(move |fate| sender.send(fate).unwrap()));
    };
    let (held, is_held) = mpsc::channel();
    let (let_go, told) = mpsc::channel::<()>();
    let (again, more) = (producer.clone(), sender.clone());
    let hold = move |_: Result<u64, LogError>| {
        held.send(()).unwrap();
        told.recv().unwrap();
        send(&again, &more);
    };
    producer.send(outgoing(&[0; 90]), Box::new(hold));
    is_held.recv().unwrap();
    // The writing thread is held in that acknowledgement: there is room for one message.
    (0..3).for_each(|_| send(&producer, &sender));
    for _ in 0..2 {
        assert!(matches!(fates.recv().unwrap(), Err(LogError::Unavailable(_))));
    }
    let_go.send(()).unwrap();
    assert!(fates.recv().unwrap().is_err(), "the queue is still full when the acknowledgement sends");
    assert!(fates.recv().unwrap().is_ok());
    // The last client may be dropped by an acknowledgement: on the writing thread.
    send(&producer, &sender);
    drop((producer, log, sender));
    assert!(fates.recv().unwrap().is_ok());
}

#[test]
fn clients_of_a_deleted_topic_are_told() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), clock(1000));
    let log = open(folder.path(), &clock, LogOptions::default());
    let mut consumer = log.consumer(&[(TopicPartition::new(TOPIC, 0), Start::Earliest)]).unwrap();
    let mut client = log.transactional("id").unwrap();
    client.begin().unwrap();
    client.send(outgoing(b"a")).unwrap();
    log.delete_topic(TOPIC).unwrap();
    assert!(matches!(consumer.poll(1, Duration::ZERO, &mut |_| {}), Err(LogError::Topic { .. })));
    assert!(matches!(client.commit(), Err(LogError::Unknown(_))));
    assert!(matches!(client.begin(), Err(LogError::Unknown(_))), "a client that failed stays failed");
}

#[test]
fn a_folder_of_a_newer_version_is_refused() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), clock(1000));
    drop(open(folder.path(), &clock, LogOptions::default()));
    open_db(folder.path(), 1 << 20).unwrap().put(b"F", [2]).unwrap();
    let error = EmbeddedLog::open(folder.path(), LogOptions::default(), clock).err().unwrap().to_string();
    assert!(error.contains("format 2, newer"), "{error}");
}

#[test]
fn topics_that_cannot_be_are_refused() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), clock(1000));
    let log = open(folder.path(), &clock, LogOptions::default());
    for (name, partitions) in [("", 1), ("a/b", 1), ("a", 0), ("a", 1_000_000), (&*"x".repeat(250), 1)] {
        let spec = TopicSpec { name: name.to_owned(), partitions, append_time: false, retention: Retention::Cluster };
        assert!(matches!(log.create_topics(&[spec]), Err(LogError::Topic { .. })), "{name} {partitions}");
    }
    assert!(matches!(log.transactional(""), Err(LogError::Configuration(_))));
    assert!(matches!(log.transactional("id").unwrap().commit(), Err(LogError::Unknown(_))), "nothing was begun");
}

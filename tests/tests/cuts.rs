//! Cuts for savepoints, by the real stages on the embedded log and RocksDB (I10). What can go wrong around them is for the simulation.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use millstream_model::frame::{self, Content, FrameWriter};
use millstream_model::key::group_of_parts;
use millstream_model::proto::{Batch, Changelog, Envelope, Marker, Source, changelog::Record};
use millstream_shard::Clock as _;
use millstream_shard::log::{Log, ORIGIN, Outgoing, TopicPartition, View, Whole};
use millstream_shard::ownership::{self, Claimant};
use millstream_shard::runtime::{Environment, Limits, Shard};
use millstream_shard::savepoint::marker;
use millstream_shard::topics::Topics;
use millstream_stages::Stage;
use millstream_stages::action::ActionStage;
use millstream_stages::unify::Unify;
use millstream_stores::embedded::SystemClock;
use millstream_stores::embedded::log::{EmbeddedLog, LogOptions};
use millstream_stores::rocks::{Resources, RocksState};
use millstream_tests::at_once::AtOnce;
use prost::Message as _;
use std::sync::Arc;
use std::sync::mpsc::channel;

struct Fixture {
    folder: tempfile::TempDir,
    log: Arc<EmbeddedLog>,
    topics: Topics,
}

impl Fixture {
    fn new() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let log = EmbeddedLog::open(&folder.path().join("log"), LogOptions::default(), Arc::new(SystemClock)).unwrap();
        let (log, topics) = (Arc::new(log), Topics::new("test", 1, 1));
        log.create_topics(&topics.specs()).unwrap();
        for stage in ["unify", "action"] {
            ownership::begin(&*log, &topics, stage, 0, 0).unwrap();
        }
        Fixture { folder, log, topics }
    }

    /// The shard of a stage, with a local store of this name.
    fn open<S: Stage>(&self, stage: S, disk: &str) -> Shard<S> {
        let environment = Environment {
            log: self.log.clone(),
            clock: Arc::new(SystemClock),
            executor: Arc::new(AtOnce),
            topics: self.topics.clone(),
            claimant: Claimant::new(disk, "1"),
            checkpoints: None,
        };
        let store = RocksState::open(&self.folder.path().join(disk), &Resources::new(1 << 20)).unwrap();
        Shard::open(stage, 0, environment, Limits::default(), Arc::new(store)).unwrap()
    }

    fn send_bytes(&self, topic: &str, payload: &[u8]) {
        let (done, waiting) = channel();
        let message = Outgoing { topic, partition: 0, key: &[], payload, headers: &[] };
        self.log.producer().unwrap().send(message, Box::new(move |result| done.send(result).unwrap()));
        waiting.recv().unwrap().unwrap();
    }

    /// One event of a user.
    fn send(&self, message_id: &str) {
        let body =
            format!(r#"{{"type": "event", "event": "Seen", "identifiers": {{"user_id": "user-{message_id}"}}}}"#);
        let user = format!("user-{message_id}");
        let envelope = Envelope {
            tenant: "acme".into(),
            source: Source::Native.into(),
            kind: "event".into(),
            message_id: message_id.into(),
            group: group_of_parts("acme", "user_id", &user).into(),
            body: body.into(),
            received_ms: SystemClock.now_ms() as i64,
            ..Envelope::default()
        };
        self.send_bytes(&self.topics.ingress, &frame::single(Content::Envelope, &envelope));
    }

    fn read(&self, topic: &Arc<str>) -> Vec<Whole> {
        let at = TopicPartition::new(topic.clone(), 0);
        let mut messages = Vec::new();
        self.log.read(&[(at, 0..u64::MAX)], View::Committed, &mut |_, whole| messages.push(whole)).unwrap();
        messages
    }

    /// The savepoint of each marker in a topic; 0: something else.
    fn markers(&self, topic: &Arc<str>) -> Vec<u64> {
        let savepoint = |whole: &Whole| marker::read(&whole.payload).map_or(0, |marker| marker.savepoint);
        self.read(topic).iter().map(savepoint).collect()
    }

    fn batches(&self, stage: &str) -> Vec<Batch> {
        let batch = |whole: Whole| {
            let bytes = frame::read(&whole.payload, Content::Changelog).unwrap().next().unwrap().unwrap().to_vec();
            match Changelog::decode(bytes.as_slice()).unwrap().record {
                Some(Record::Batch(batch)) => Some(batch),
                _ => None,
            }
        };
        self.read(&self.topics.changelog(stage)).into_iter().filter_map(batch).collect()
    }

    fn cuts(&self, stage: &str) -> Vec<Vec<u64>> {
        self.batches(stage).into_iter().map(|batch| batch.cuts).collect()
    }
}

/// Runs batches until one has records; gives how many.
fn run<S: Stage>(shard: &mut Shard<S>) -> usize {
    loop {
        if let Some(report) = shard.run_batch().unwrap().filter(|report| report.records > 0) {
            return report.records;
        }
    }
}

#[test]
fn a_shard_is_cut_once_wherever_it_goes_and_its_record_says_where_it_stood() {
    let fixture = Fixture::new();
    let mut shard = fixture.open(Unify::default(), "a");
    fixture.send("1");
    run(&mut shard);
    fixture.send("2");
    shard.hear_of(&[7].into());
    assert_eq!(shard.run_batch().unwrap().map(|report| report.records), Some(0), "before anything else");
    run(&mut shard);
    let rejects = fixture.read(&fixture.topics.rejects);
    assert!(rejects.is_empty(), "{}", String::from_utf8_lossy(&rejects[0].payload));
    assert_eq!(fixture.markers(&fixture.topics.actions), [0, 7, 0]);
    let message = &fixture.read(&fixture.topics.actions)[1];
    assert_eq!(marker::read(&message.payload), Some(Marker { savepoint: 7, stage: "unify".into(), shard: 0 }));
    assert_eq!(message.header(ORIGIN), Some("unify/0/1/1/2"), "so that it is found again, if it hangs");
    let batches = fixture.batches("unify");
    assert_eq!(fixture.cuts("unify"), [vec![], vec![7], vec![]]);
    let (before, cut) = (&batches[0], &batches[1]);
    assert_eq!((&cut.inputs, cut.state_digest, cut.time_ms), (&before.inputs, before.state_digest, before.time_ms));
    assert!(cut.changes.is_empty());
    shard.close().unwrap();
    drop(shard);
    // On its disk, and on one that has nothing.
    for disk in ["a", "b"] {
        let mut shard = fixture.open(Unify::default(), disk);
        shard.hear_of(&[7].into());
        fixture.send(disk);
        run(&mut shard);
    }
    assert_eq!(fixture.cuts("unify").concat(), [7]);
    assert_eq!(fixture.markers(&fixture.topics.actions), [0, 7, 0, 0, 0]);
}

#[test]
fn a_shard_processes_nothing_behind_a_marker_before_it_is_cut() {
    let fixture = Fixture::new();
    let mut unify = fixture.open(Unify::default(), "unify");
    for (number, savepoint) in ["1", "2", "3", "4", "5", "6"].iter().zip(1..) {
        fixture.send(number);
        run(&mut unify);
        if savepoint == 3 {
            unify.hear_of(&[savepoint].into());
            unify.run_batch().unwrap();
        }
    }
    assert_eq!(fixture.markers(&fixture.topics.actions), [0, 0, 0, 3, 0, 0, 0]);
    let mut action = fixture.open(ActionStage::default(), "action");
    // All of it is there: more comes with one poll than what is before the marker.
    assert_eq!(run(&mut action), 3);
    assert_eq!(action.run_batch().unwrap().map(|report| report.records), Some(0), "the cut");
    assert_eq!(run(&mut action), 3);
    assert_eq!(fixture.cuts("action"), [vec![], vec![3], vec![]]);
    let batches = fixture.batches("action");
    let read_to = |batch: &Batch| batch.inputs.iter().find(|it| *it.topic == *fixture.topics.actions).unwrap().offset;
    let marker = fixture.read(&fixture.topics.actions)[3].offset;
    assert_eq!((read_to(&batches[0]), read_to(&batches[1])), (marker, marker));
    assert!(read_to(&batches[2]) > marker + 3);
    // It sends to itself, too: what it meets there of its own changes nothing.
    fixture.send("7");
    run(&mut unify);
    run(&mut action);
    assert_eq!(
        (fixture.markers(&fixture.topics.exchange).iter().sum::<u64>(), fixture.cuts("action").concat()),
        (3, vec![3])
    );
    let mutations = fixture.markers(&fixture.topics.mutations);
    assert_eq!(mutations.iter().position(|savepoint| *savepoint == 3), Some(1), "{mutations:?}");
}

#[test]
fn what_looks_like_a_marker_in_ingress_is_a_record_that_cannot_be_read() {
    let fixture = Fixture::new();
    let mut shard = fixture.open(Unify::default(), "a");
    let marker = Marker { savepoint: u64::MAX, stage: "action".into(), shard: 0 };
    fixture.send_bytes(&fixture.topics.ingress, &frame::single(Content::Marker, &marker));
    assert_eq!(run(&mut shard), 1);
    assert_eq!(fixture.read(&fixture.topics.rejects).len(), 1);
    assert!(fixture.cuts("unify").concat().is_empty());
    // And it stands in nobody's way.
    shard.hear_of(&[1].into());
    shard.run_batch().unwrap();
    assert_eq!(fixture.cuts("unify").concat(), [1]);
}

#[test]
fn savepoints_that_overlap_are_each_cut_for_in_whatever_order_they_are_heard_of() {
    let fixture = Fixture::new();
    let (mut unify, mut action) = (fixture.open(Unify::default(), "u"), fixture.open(ActionStage::default(), "a"));
    for savepoints in [vec![9], vec![3, 9], vec![3, 9, 12, 13]] {
        unify.hear_of(&savepoints.into());
        unify.run_batch().unwrap();
    }
    assert_eq!(fixture.cuts("unify"), [vec![9], vec![3], vec![12, 13]]);
    fixture.send("1");
    run(&mut unify);
    run(&mut action);
    assert_eq!(fixture.cuts("action"), [vec![9], vec![3], vec![12], vec![13], vec![]]);
}

#[test]
fn a_frame_that_is_none_for_anybody_does_not_count_as_a_marker() {
    let fixture = Fixture::new();
    let mut action = fixture.open(ActionStage::default(), "a");
    fixture.send_bytes(&fixture.topics.actions, &FrameWriter::new(Content::Marker).finish());
    let error = action.run_batch().map(drop).unwrap_err().to_string();
    assert!(error.starts_with("stopped: "), "{error}");
    assert!(fixture.cuts("action").is_empty());
}

//! The shard runtime on the embedded log and RocksDB: restart, unknown outcomes, fencing, and refusing to start silently.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use millstream_model::frame::{self, Content};
use millstream_model::key::{Kind, StateKey};
use millstream_model::proto::{Envelope, Usage};
use millstream_plan::plan::{Plan, ShardId, Version};
use millstream_plan::status::{Role, ShardStatus};
use millstream_plan::view::{Bounds, Duty};
use millstream_shard::control::Publisher;
use millstream_shard::follower::Wanted;
use millstream_shard::log::{Log, Outgoing, Start, TopicPartition};
use millstream_shard::member::{Member, Now, Order, Profile};
use millstream_shard::ownership::{self, Claimant};
use millstream_shard::planning::{Planning, Wishes};
use millstream_shard::runtime::{Environment, Limits, Shard};
use millstream_shard::seat::{Parts, Seat, Step};
use millstream_shard::standby::{Acquired, Received, Standby};
use millstream_shard::state::StateStore as _;
use millstream_shard::topics::Topics;
use millstream_shard::{Clock, ShardError};
use millstream_stages::{At, DecodeError, Input, Outbox, PublicMessage, Stage, State, StateError, StateValue};
use millstream_stores::embedded::SystemClock;
use millstream_stores::embedded::log::{EmbeddedLog, LogOptions};
use millstream_stores::rocks::{Resources, RocksState};
use millstream_tests::at_once::AtOnce;
use millstream_tests::faulty::{Deafness, Fault, Faults, FaultyLog};
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

/// Counts records per message id in state, and puts the count out: any record lost or doubled shows.
struct Counting;

#[derive(Clone)]
struct Count(u64, usize);

impl StateValue for Count {
    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.0.to_le_bytes());
        bytes.resize(bytes.len() + self.1, b'x');
    }
    fn decode(_: &StateKey, bytes: &[u8]) -> Result<Count, StateError> {
        let Some((count, filler)) = bytes.split_first_chunk() else {
            return Err(StateError::Invalid(format!("{bytes:?} is no count")));
        };
        Ok(Count(u64::from_le_bytes(*count), filler.len()))
    }
}

impl Stage for Counting {
    type Value = Count;
    type Record = Envelope;

    fn name(&self) -> &'static str {
        "unify"
    }
    fn decode(&self, input: Input, bytes: &[u8]) -> Result<Envelope, DecodeError> {
        Envelope::decode(bytes).map_err(|error| DecodeError { input, message: error.to_string() })
    }
    fn keys(&self, record: &Envelope, _: &At, _: &[u32], keys: &mut Vec<StateKey>) {
        keys.push(key(&record.message_id));
    }
    fn process(
        &self,
        record: Envelope,
        _: &At,
        state: &mut dyn State<Count>,
        out: &mut Outbox,
    ) -> Result<(), StateError> {
        let filler = record.received_ms as usize;
        let count = state.get(&key(&record.message_id))?.map_or(0, |count| count.0) + 1;
        state.put(key(&record.message_id), Count(count, filler));
        out.usage("acme").accepted += 1;
        let payload = format!("{}={count}", record.message_id).into_bytes();
        out.events.push(PublicMessage { key: Vec::new(), headers: Vec::new(), payload, group: 0 });
        Ok(())
    }
}

fn key(id: &str) -> StateKey {
    StateKey::new(0, "acme", Kind::Seen, id.as_bytes())
}

/// In 2096.
const FAR_FUTURE_MS: u64 = 4_000_000_000_000;

/// A clock that only tests move.
struct ManualClock(AtomicU64);

impl Clock for ManualClock {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

struct Fixture {
    folder: tempfile::TempDir,
    log: Arc<EmbeddedLog>,
    faults: Faults,
    topics: Topics,
    limits: Limits,
    clock: Arc<ManualClock>,
    /// By how much the brokers' clock is set back.
    behind_ms: Arc<AtomicU64>,
    deaf: Deafness,
    /// How often its seats have read something of the changelog.
    moves: Arc<AtomicU64>,
    /// Seats are told that the process ends as soon as something was read.
    ends: Arc<AtomicBool>,
}

impl Fixture {
    fn new() -> Fixture {
        let fixture = Fixture::without_genesis();
        ownership::begin(&*fixture.log, &fixture.topics, "unify", 0, 0).unwrap();
        fixture
    }

    fn without_genesis() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let log = Arc::new(
            EmbeddedLog::open(&folder.path().join("log"), LogOptions::default(), Arc::new(SystemClock)).unwrap(),
        );
        let topics = Topics::new("test", 1, 1);
        log.create_topics(&topics.specs()).unwrap();
        let limits = Limits { dirty_bytes: usize::MAX, ..Limits::default() };
        // Ahead of the log's own clock, so that times are the log's.
        let clock = Arc::new(ManualClock(AtomicU64::new(FAR_FUTURE_MS)));
        Fixture {
            folder,
            log,
            faults: Faults::default(),
            topics,
            limits,
            clock,
            behind_ms: Arc::default(),
            deaf: Deafness::default(),
            moves: Arc::default(),
            ends: Arc::default(),
        }
    }

    fn environment(&self, worker: &str) -> Environment {
        let (faults, behind_ms, deaf) = (self.faults.clone(), self.behind_ms.clone(), self.deaf.clone());
        let log = FaultyLog { inner: self.log.clone(), faults, behind_ms, deaf };
        Environment {
            log: Arc::new(log),
            clock: self.clock.clone(),
            executor: Arc::new(AtOnce),
            topics: self.topics.clone(),
            claimant: Claimant::new(worker, "1"),
            checkpoints: None,
        }
    }

    fn store(&self, name: &str) -> Arc<RocksState> {
        Arc::new(RocksState::open(&self.folder.path().join(name), &Resources::new(1 << 20)).unwrap())
    }

    fn open_at(&self, store: &str) -> Result<Shard<Counting>, ShardError> {
        Shard::open(Counting, 0, self.environment(store), self.limits.clone(), self.store(store))
    }

    fn seat(&self, name: &str) -> Seat<Counting> {
        let (folder, moves, ends) = (self.folder.path().join(name), self.moves.clone(), self.ends.clone());
        Seat::new(Parts {
            name: "unify",
            shard: 0,
            environment: self.environment(name),
            limits: self.limits.clone(),
            make: Box::new(|| Counting),
            open_store: Box::new(move || Ok(Arc::new(RocksState::open(&folder, &Resources::new(1 << 20))?))),
            moves: Arc::new(move || {
                moves.fetch_add(1, Ordering::Relaxed);
                if ends.load(Ordering::Relaxed) { Wanted::Nothing } else { Wanted::All }
            }),
        })
    }

    fn standby(&self, name: &str) -> Box<Standby> {
        Box::new(Standby::open("unify", 0, self.environment(name), self.store(name)).unwrap())
    }

    /// What is left of a store if its process dies now: a copy of its files.
    fn after_a_crash(&self, name: &str) -> Arc<RocksState> {
        let copy = format!("{name} after a crash at {}", self.clock.now_ms());
        std::fs::create_dir(self.folder.path().join(&copy)).unwrap();
        for file in std::fs::read_dir(self.folder.path().join(name)).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), self.folder.path().join(&copy).join(file.file_name())).unwrap();
        }
        self.store(&copy)
    }

    fn pass(&self, ms: i64) {
        let now_ms = self.clock.0.load(Ordering::Relaxed);
        self.clock.0.store(now_ms.checked_add_signed(ms).unwrap(), Ordering::Relaxed);
    }

    fn own(&self, acquired: Acquired) -> Shard<Counting> {
        Shard::own(Counting, acquired, self.limits.clone()).unwrap()
    }

    fn open(&self) -> Shard<Counting> {
        self.open_at("state").unwrap()
    }

    fn send(&self, ids: &[&str], filler: usize) {
        let mut frame = frame::FrameWriter::new(Content::Envelope);
        for id in ids {
            let envelope = Envelope { message_id: (*id).into(), received_ms: filler as i64, ..Envelope::default() };
            frame.push(&envelope);
        }
        self.send_bytes(&frame.finish());
    }

    fn send_bytes(&self, payload: &[u8]) {
        self.send_to(&self.topics.ingress, payload);
    }

    fn send_to(&self, topic: &str, payload: &[u8]) {
        let (done, waiting) = channel();
        let message = Outgoing { topic, partition: 0, key: &[], payload, headers: &[] };
        self.log.producer().unwrap().send(message, Box::new(move |result| done.send(result).unwrap()));
        waiting.recv().unwrap().unwrap();
    }

    /// Everything visible in `events`, sorted.
    fn events(&self) -> Vec<String> {
        let at = TopicPartition::new(self.topics.events.clone(), 0);
        let (_, end) = self.log.bounds(&at).unwrap();
        let mut consumer = self.log.consumer(&[(at, Start::Earliest)]).unwrap();
        let mut events = Vec::new();
        while consumer.positions()[0] < end {
            let poll = consumer.poll(100, Duration::from_millis(100), &mut |message| {
                events.push(String::from_utf8(message.payload.to_vec()).unwrap());
            });
            poll.unwrap();
        }
        events.sort();
        events
    }
}

fn accepted(usage: &BTreeMap<String, Usage>) -> u64 {
    usage.get("acme").map_or(0, |usage| usage.accepted)
}

/// Runs batches until `records` are processed.
fn run(shard: &mut Shard<Counting>, records: usize) {
    let mut done = 0;
    while done < records {
        done += shard.run_batch().unwrap().map_or(0, |report| report.records);
    }
    assert_eq!(done, records);
}

#[test]
fn a_restart_goes_on_from_local_state_or_from_the_whole_changelog() {
    let fixture = Fixture::new();
    let mut shard = fixture.open();
    for _ in 0..3 {
        fixture.send(&["a", "b"], 0);
        run(&mut shard, 2);
    }
    shard.close().unwrap();
    drop(shard);
    for store in ["state", "another disk"] {
        let mut shard = fixture.open_at(store).unwrap();
        assert_eq!(accepted(shard.usage()) % 2, 0);
        fixture.send(&["a", "c"], 0);
        run(&mut shard, 2);
    }
    let events = fixture.events();
    assert_eq!(events, ["a=1", "a=2", "a=3", "a=4", "a=5", "b=1", "b=2", "b=3", "c=1", "c=2"]);
    assert_eq!(accepted(fixture.open_at("a third").unwrap().usage()), 10);
}

#[test]
fn an_unknown_outcome_is_found_out_and_never_doubles_or_loses() {
    for fault in [Fault::CommittedUnknown, Fault::LostUnknown] {
        let fixture = Fixture::new();
        let mut shard = fixture.open();
        fixture.send(&["a"], 0);
        run(&mut shard, 1);
        for round in 0..3 {
            fixture.send(&["a", "b"], 0);
            fixture.faults.plan([fault]);
            let failed = shard.run_batch().unwrap_err();
            assert!(matches!(failed, ShardError::InDoubt(_)), "{failed}");
            assert_eq!(fixture.faults.left(), 0);
            drop(shard);
            shard = fixture.open();
            if fault == Fault::LostUnknown {
                run(&mut shard, 2);
            } else {
                assert!(shard.run_batch().unwrap().is_none(), "round {round}: it was committed");
            }
        }
        assert_eq!(fixture.events(), ["a=1", "a=2", "a=3", "a=4", "b=1", "b=2", "b=3"], "{fault:?}");
        assert_eq!(accepted(shard.usage()), 7);
    }
}

#[test]
fn an_opening_that_fails_at_its_ownership_record_can_be_repeated() {
    let fixture = Fixture::new();
    fixture.send(&["a"], 0);
    for fault in [Fault::CommittedUnknown, Fault::LostUnknown] {
        fixture.faults.plan([fault]);
        assert!(matches!(fixture.open_at("state"), Err(ShardError::InDoubt(_))));
    }
    run(&mut fixture.open(), 1);
    assert_eq!(fixture.events(), ["a=1"]);
}

/// The marker of the aborted transaction moves the end of the changelog, which has no record all the same.
#[test]
fn a_genesis_that_was_aborted_is_written_again() {
    let fixture = Fixture::without_genesis();
    let changelog = TopicPartition::new(fixture.topics.changelog("unify"), 0);
    let id = fixture.topics.transactional_id("unify", 0, 0);
    for _ in 0..2 {
        let mut died = fixture.log.transactional(&id).unwrap();
        died.begin().unwrap();
        let topic = &changelog.topic;
        died.send(Outgoing { topic, partition: 0, key: &[], payload: b"genesis", headers: &[] }).unwrap();
        drop(died);
        // Somebody looked while there was none, and keeps what was found.
        drop(fixture.log.transactional(&id).unwrap());
        assert!(fixture.log.bounds(&changelog).unwrap().1 > 0);
        let opened = fixture.open_at("state").map(|_| ());
        assert!(matches!(&opened, Err(ShardError::Reopen(why)) if why.contains("first record")), "{opened:?}");
    }
    fixture.send(&["a"], 0);
    for (store, records) in [("state", 1), ("another disk", 0)] {
        ownership::begin(&*fixture.log, &fixture.topics, "unify", 0, 0).unwrap();
        run(&mut fixture.open_at(store).unwrap(), records);
    }
    assert_eq!(fixture.events(), ["a=1"]);
}

/// Neither changelog nor outputs may be left to tell.
#[test]
fn a_shard_that_was_owned_does_not_begin_anew() {
    let fixture = Fixture::without_genesis();
    let begun = ownership::begin(&*fixture.log, &fixture.topics, "unify", 0, 3);
    assert!(matches!(&begun, Err(ShardError::Stopped(why)) if why.contains("owned before (epoch 3)")), "{begun:?}");
    ownership::begin(&*fixture.log, &fixture.topics, "unify", 0, 0).unwrap();
    ownership::begin(&*fixture.log, &fixture.topics, "unify", 0, 3).unwrap();
}

#[test]
fn a_genesis_of_unknown_outcome_is_found_out() {
    for fault in [Fault::LostUnknown, Fault::CommittedUnknown] {
        let fixture = Fixture::without_genesis();
        let log = fixture.environment("a").log;
        fixture.faults.plan([fault]);
        let begun = ownership::begin(&*log, &fixture.topics, "unify", 0, 0);
        assert!(matches!(begun, Err(ShardError::InDoubt(_))), "{begun:?}");
        for _ in 0..2 {
            ownership::begin(&*log, &fixture.topics, "unify", 0, 0).unwrap();
        }
        fixture.send(&["a"], 0);
        run(&mut fixture.open(), 1);
        assert_eq!(fixture.events(), ["a=1"], "{fault:?}");
        assert!(fixture.open_at("another disk").unwrap().position().batch_number == 1, "one genesis, one batch");
    }
}

#[test]
fn a_value_that_cannot_be_read_stops_the_shard() {
    let fixture = Fixture::new();
    let mut shard = fixture.open();
    fixture.send(&["a"], 0);
    run(&mut shard, 1);
    shard.close().unwrap();
    drop(shard);
    let store = fixture.store("state");
    let position = store.position().unwrap().unwrap();
    let (damaged, bytes) = (key("a"), b"x");
    store.write(None, &mut [(&damaged, Some(&bytes[..]))].into_iter(), &position).unwrap();
    drop(store);
    fixture.send(&["a"], 0);
    let failed = fixture.open().run_batch().unwrap_err();
    assert!(matches!(&failed, ShardError::Stopped(why) if why.contains("remove the shard's folder")), "{failed}");
    run(&mut fixture.open_at("another disk").unwrap(), 1);
    assert_eq!(fixture.events(), ["a=1", "a=2"]);
}

#[test]
fn who_was_taken_over_commits_nothing_any_more() {
    let fixture = Fixture::new();
    let mut first = fixture.open_at("first").unwrap();
    fixture.send(&["a"], 0);
    run(&mut first, 1);
    let mut second = fixture.open_at("second").unwrap();
    assert!(second.progress().1 > first.progress().1, "epochs rise");
    fixture.send(&["a"], 0);
    assert!(matches!(first.run_batch(), Err(ShardError::InDoubt(_))));
    run(&mut second, 1);
    let mut third = fixture.open_at("first copy").unwrap();
    fixture.send(&["a"], 0);
    assert!(matches!(second.run_batch(), Err(ShardError::InDoubt(_))));
    run(&mut third, 1);
    assert_eq!(fixture.events(), ["a=1", "a=2", "a=3"]);
}

#[test]
fn who_was_taken_over_without_knowing_stores_no_position_past_what_others_wrote() {
    let mut fixture = Fixture::new();
    fixture.limits.dirty_bytes = 1;
    let mut first = fixture.open_at("first").unwrap();
    for _ in 0..2 {
        fixture.send(&["a"], 0);
        run(&mut first, 1);
    }
    let mut second = fixture.open_at("second").unwrap();
    for _ in 0..2 {
        fixture.send(&["a"], 0);
        run(&mut second, 1);
    }
    second.close().unwrap();
    first.close().unwrap();
    drop((first, second));
    let mut again = fixture.open_at("first").unwrap();
    assert!(again.run_batch().unwrap().is_none(), "everything was processed");
    fixture.send(&["a"], 0);
    run(&mut again, 1);
    assert_eq!(fixture.events(), ["a=1", "a=2", "a=3", "a=4", "a=5"]);
}

#[test]
fn an_input_that_was_deleted_and_made_again_stops_the_shard() {
    let fixture = Fixture::new();
    let mut shard = fixture.open();
    fixture.send(&["a"], 0);
    run(&mut shard, 1);
    shard.close().unwrap();
    drop(shard);
    fixture.log.delete_topic(&fixture.topics.ingress).unwrap();
    fixture.log.create_topics(&fixture.topics.specs()).unwrap();
    for _ in 0..5 {
        fixture.send(&["a"], 0);
    }
    let opened = fixture.open_at("state").map(|_| ());
    let Err(ShardError::Stopped(message)) = opened else { panic!("{opened:?}") };
    assert!(message.contains("created again"), "{message}");
}

#[test]
fn a_batch_larger_than_a_message_is_whole_or_not_there() {
    let fixture = Fixture::new();
    let mut shard = fixture.open();
    let ids: Vec<String> = (0..30).map(|number| format!("id{number:02}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    fixture.send(&ids, 100_000);
    run(&mut shard, 30);
    fixture.send(&ids, 100_000);
    fixture.faults.plan([Fault::LostUnknown]);
    shard.run_batch().unwrap_err();
    drop(shard);
    let mut shard = fixture.open_at("another disk").unwrap();
    assert_eq!(shard.state().get(&key("id07")).unwrap().unwrap().0, 1);
    run(&mut shard, 30);
    assert_eq!(shard.state().get(&key("id29")).unwrap().unwrap().0, 2);
}

#[test]
fn flushes_while_running_leave_a_state_that_a_crash_can_start_from() {
    let mut fixture = Fixture::new();
    fixture.limits.dirty_bytes = 1;
    fixture.limits.cache_bytes = 1;
    let mut shard = fixture.open();
    for _ in 0..20 {
        fixture.send(&["a", "b", "c"], 1000);
        run(&mut shard, 3);
    }
    drop(shard);
    let mut shard = fixture.open();
    fixture.send(&["a"], 0);
    run(&mut shard, 1);
    assert_eq!(shard.state().get(&key("a")).unwrap().unwrap().0, 21);
    assert_eq!(shard.state().get(&key("b")).unwrap().unwrap().0, 20);
    assert_eq!(accepted(shard.usage()), 61);
}

#[test]
fn a_lost_changelog_and_an_input_below_its_start_stop_the_shard() {
    let fixture = Fixture::new();
    let mut shard = fixture.open();
    fixture.send(&["a"], 0);
    run(&mut shard, 1);
    shard.close().unwrap();
    drop(shard);
    for _ in 0..3 {
        fixture.send(&["a"], 0);
    }
    let ingress = TopicPartition::new(fixture.topics.ingress.clone(), 0);
    let (_, end) = fixture.log.bounds(&ingress).unwrap();
    fixture.log.trim(&ingress, end - 1).unwrap();
    let opened = fixture.open_at("state").and_then(|mut shard| shard.run_batch().map(|_| ()));
    assert!(matches!(opened, Err(ShardError::Stopped(_))), "{opened:?}");

    let changelog = TopicPartition::new(fixture.topics.changelog("unify"), 0);
    let (_, end) = fixture.log.bounds(&changelog).unwrap();
    fixture.log.trim(&changelog, end).unwrap();
    let opened = fixture.open_at("empty disk").map(|_| ());
    let Err(ShardError::Stopped(message)) = opened else { panic!("{opened:?}") };
    assert!(message.contains("begin another generation"), "{message}");
}

/// The local state may be all that is left of a shard whose changelog was deleted and created again, whoever has begun the new one meanwhile.
#[test]
fn a_changelog_that_was_created_anew_does_not_clear_the_local_state() {
    let before = Fixture::new();
    let mut shard = before.open();
    before.send(&["a"], 0);
    run(&mut shard, 1);
    shard.close().unwrap();
    drop(shard);
    for (anew, is_begun) in [(Fixture::without_genesis(), false), (Fixture::new(), true)] {
        let changelog = TopicPartition::new(anew.topics.changelog("unify"), 0);
        let ends_at = anew.log.bounds(&changelog).unwrap().1;
        std::fs::rename(before.folder.path().join("state"), anew.folder.path().join("state")).unwrap();
        for duty in [Duty::Own, Duty::TakeOver, Duty::Standby { prepare: false, soon: false }] {
            let stepped = anew.seat("state").step(&Order { duty, ..Order::default() });
            let Err(ShardError::Stopped(message)) = stepped else { panic!("{stepped:?}, begun: {is_begun}") };
            assert!(message.contains("the changelog was lost; the local state is kept"), "{message}");
        }
        assert_eq!(anew.log.bounds(&changelog).unwrap().1, ends_at, "something was written");
        std::fs::rename(anew.folder.path().join("state"), before.folder.path().join("state")).unwrap();
    }
    let mut shard = before.open();
    assert_eq!(shard.state().get(&key("a")).unwrap().unwrap().0, 1, "it is still there");
}

#[test]
fn a_standby_does_not_take_over_a_changelog_that_was_made_again_under_it() {
    let fixture = Fixture::new();
    let mut shard = fixture.open_at("a").unwrap();
    fixture.send(&["a"], 0);
    run(&mut shard, 1);
    let mut seat = fixture.seat("b");
    let order = |duty| Order { duty, ..Order::default() };
    seat.step(&order(Duty::Standby { prepare: false, soon: false })).unwrap();
    seat.step(&order(Duty::Standby { prepare: false, soon: false })).unwrap();
    drop(shard);
    fixture.log.delete_topic(&fixture.topics.changelog("unify")).unwrap();
    fixture.log.create_topics(&fixture.topics.specs()).unwrap();
    let errors = [seat.step(&order(Duty::TakeOver)), seat.step(&order(Duty::TakeOver))];
    let [Err(_), Err(ShardError::Stopped(message))] = errors else { panic!("{errors:?}") };
    assert!(message.contains("the local state is kept"), "{message}");
}

#[test]
fn a_standby_that_has_just_opened_says_how_far_it_is_behind_and_moves_while_it_catches_up() {
    let fixture = Fixture::new();
    let mut owner = fixture.open_at("a").unwrap();
    for _ in 0..50 {
        fixture.send(&["x"], 0);
        run(&mut owner, 1);
    }
    let mut seat = fixture.seat("b");
    let order = |prepare| Order { duty: Duty::Standby { prepare, soon: prepare }, ..Order::default() };
    let (_, end) = fixture.log.bounds(&TopicPartition::new(fixture.topics.changelog("unify"), 0)).unwrap();
    assert!(matches!(seat.step(&order(false)).unwrap(), Step::Opened));
    let status = seat.status();
    assert_eq!((status.role, status.lag, status.prepared), (Role::Standby, end, None));
    assert!(end > 50, "a plan does not take it for warm");
    fixture.pass(500);
    seat.step(&order(true)).unwrap();
    let status = seat.status();
    assert_eq!((status.role, status.lag, status.prepared.is_some()), (Role::Standby, 0, true));
    assert!(fixture.moves.load(Ordering::Relaxed) > 3, "one step has read it all, and did not hang");
}

#[test]
fn whoever_reads_a_long_changelog_to_own_its_shard_ends_with_the_process() {
    let fixture = Fixture::new();
    let mut owner = fixture.open_at("a").unwrap();
    for _ in 0..50 {
        fixture.send(&["x"], 0);
        run(&mut owner, 1);
    }
    let (mut seat, order) = (fixture.seat("b"), Order { duty: Duty::TakeOver, ..Order::default() });
    fixture.ends.store(true, Ordering::Relaxed);
    let error = seat.step(&order).unwrap_err().to_string();
    assert!(error.contains("the process ends"), "{error}");
    assert_eq!(fixture.moves.load(Ordering::Relaxed), 1, "it reads no further");
    fixture.send(&["x"], 0);
    run(&mut owner, 1);
    // And whoever only goes on later takes it over.
    fixture.ends.store(false, Ordering::Relaxed);
    assert!(matches!(seat.step(&order).unwrap(), Step::Acquired { by_handoff: false, .. }));
}

/// What the owner has stored and the log does not have cannot be read again from a changelog without its beginning: one batch too many is better than nothing.
#[test]
fn local_state_that_is_not_proven_is_kept_when_the_changelog_has_no_beginning() {
    let fixture = Fixture::new();
    let mut shard = fixture.open();
    for _ in 0..3 {
        fixture.send(&["a"], 0);
        run(&mut shard, 1);
    }
    shard.close().unwrap();
    drop(shard);
    let store = fixture.store("state");
    let mut position = store.position().unwrap().unwrap();
    position.digest ^= 1;
    store.write(None, &mut std::iter::empty(), &position).unwrap();
    drop(store);
    fixture.send(&["a"], 0);
    let changelog = TopicPartition::new(fixture.topics.changelog("unify"), 0);
    fixture.log.trim(&changelog, 1).unwrap();
    let opened = fixture.open_at("state").map(drop);
    let Err(ShardError::Stopped(message)) = opened else { panic!("{opened:?}") };
    assert!(message.contains("which is kept") && message.contains("begin another generation"), "{message}");
    assert_eq!(fixture.store("state").position().unwrap().unwrap().batch_number, 3);
}

#[test]
fn what_an_internal_reader_cannot_read_stops_it() {
    let fixture = Fixture::new();
    let mut shard = fixture.open();
    fixture.send_bytes(b"no frame");
    assert!(matches!(shard.run_batch(), Err(ShardError::Stopped(_))), "this stage rejects nothing");
}

#[test]
fn an_owner_that_hears_nothing_reads_on_with_another_client() {
    let fixture = Fixture::new();
    let mut shard = fixture.open();
    fixture.send(&["a"], 0);
    run(&mut shard, 1);
    fixture.deaf.deafen(None);
    fixture.send(&["a", "b"], 0);
    let before = shard.listened();
    for _ in 0..3 {
        assert!(shard.run_batch().unwrap().is_none(), "nothing comes, and nothing fails");
    }
    let after = shard.listened();
    assert_eq!((&after.read_to, after.looks), (&before.read_to, before.looks + 3));
    let at = TopicPartition::new(fixture.topics.ingress.clone(), 0);
    assert!(after.read_to[0].1 < fixture.log.bounds(&at).unwrap().1);
    shard.read_anew().unwrap();
    run(&mut shard, 2);
    assert_eq!(fixture.events(), ["a=1", "a=2", "b=1"], "nothing is lost, and nothing comes twice");
}

#[test]
fn an_owner_reads_no_other_topic_of_the_same_name_with_another_client() {
    let fixture = Fixture::new();
    let mut seat = fixture.seat("a");
    let own = Order { duty: Duty::Own, ..Order::default() };
    while seat.shard().is_none() {
        seat.step(&own).unwrap();
    }
    fixture.log.delete_topic(&fixture.topics.ingress).unwrap();
    fixture.log.create_topics(&fixture.topics.specs()).unwrap();
    let read = seat.read_anew();
    assert!(matches!(&read, Err(ShardError::Stopped(why)) if why.contains("created again")), "{read:?}");
    assert!(seat.shard().is_none(), "after an error the seat is closed");
}

#[test]
fn a_standby_that_hears_nothing_is_opened_again() {
    let fixture = Fixture::new();
    let mut owner = fixture.open_at("a").unwrap();
    let mut seat = fixture.seat("b");
    let standby = Order { duty: Duty::Standby { prepare: false, soon: false }, ..Order::default() };
    fixture.send(&["x"], 0);
    run(&mut owner, 1);
    while seat.status().batch_number < 1 {
        seat.step(&standby).unwrap();
    }
    fixture.deaf.deafen(None);
    owner.read_anew().unwrap();
    fixture.send(&["y"], 0);
    run(&mut owner, 1);
    let (began_ms, mut steps) = (fixture.clock.now_ms(), 0);
    let why = loop {
        fixture.pass(3_000);
        steps += 1;
        if let Err(error) = seat.step(&standby) {
            break error.to_string();
        }
        assert!(steps < 100, "it goes on listening to nothing");
    };
    assert!(why.contains("nothing was heard for 30 s"), "{why}");
    assert!(fixture.clock.now_ms() - began_ms >= 30_000);
    while seat.status().batch_number < 2 {
        seat.step(&standby).unwrap();
    }
    for _ in 0..15 {
        fixture.pass(3_000);
        seat.step(&standby).expect("it hears again, and there is nothing more");
    }
}

#[test]
fn one_who_plans_and_does_not_hear_the_plan_for_all_that_workers_say_listens_anew() {
    let fixture = Fixture::new();
    let log = fixture.environment("operator").log;
    let mut planning = Planning::open(log.clone(), fixture.topics.clone(), Bounds::default(), 0).unwrap();
    fixture.deaf.deafen(Some(&fixture.topics.control));
    let plan = Plan { version: Version { term: 1, number: 1 }, generation: 1, ..Plan::default() };
    Publisher::open(&*log, &fixture.topics).unwrap().publish(plan).unwrap();
    let mut now_ms = 0;
    let error = loop {
        fixture.send_to(&fixture.topics.status, b"somebody says something");
        assert_eq!(
            planning.listen(Duration::from_secs(60), now_ms).unwrap(),
            1,
            "there is something to hear every time"
        );
        now_ms += 5_000;
        if let Err(error) = planning.turn(&Wishes::default(), now_ms) {
            break error.to_string();
        }
        assert!(now_ms < 100_000 && planning.current().is_none());
    };
    assert!(error.contains("nothing was heard for 30 s"), "{error}");
    planning.turn(&Wishes::default(), now_ms).unwrap();
    assert_eq!(planning.current(), Some(Version { term: 1, number: 1 }));
}

#[test]
fn an_owner_that_cannot_read_with_another_client_keeps_the_one_it_has() {
    let fixture = Fixture::new();
    let mut seat = fixture.seat("a");
    let own = Order { duty: Duty::Own, ..Order::default() };
    while seat.shard().is_none() {
        seat.step(&own).unwrap();
    }
    fixture.deaf.refuse(true);
    let read = seat.read_anew();
    assert!(matches!(&read, Err(ShardError::Away(why)) if why.contains("no reader")), "{read:?}");
    fixture.deaf.refuse(false);
    fixture.send(&["a"], 0);
    run(seat.shard().expect("it goes on"), 1);
    assert_eq!(fixture.events(), ["a=1"]);
}

/// Follows until everything that is visible was read.
fn catch_up(standby: &mut Standby) {
    while standby.lag().unwrap() > 0 {
        standby.follow(Duration::from_millis(100)).unwrap();
    }
}

fn client(standby: &Standby) -> (String, u32) {
    standby.client().map(|(name, slot)| (name.to_owned(), slot)).unwrap()
}

fn ours(received: Received) -> Acquired {
    match received {
        Received::Ours(acquired) => *acquired,
        Received::Waiting(_) => panic!("it was not released to this client"),
    }
}

#[test]
fn a_handoff_goes_to_the_prepared_client_back_and_forth() {
    let fixture = Fixture::new();
    let mut owner = fixture.open_at("a").unwrap();
    for (epoch, name) in (owner.progress().1 + 1..).zip(["b", "a", "b", "c"]) {
        fixture.send(&["x", "y"], 0);
        run(&mut owner, 2);
        let mut next = fixture.standby(if name == "a" { "a again" } else { name });
        next.prepare().unwrap();
        next.prefetch(0).unwrap();
        fixture.send(&["x"], 0);
        run(&mut owner, 1);
        let (client, slot) = client(&next);
        owner.release((&client, slot)).unwrap();
        catch_up(&mut next);
        owner = fixture.own(ours(next.receive((0, 0)).unwrap()));
        assert_eq!(owner.progress().1, epoch);
        drop(fixture.standby("read only"));
    }
    fixture.send(&["y"], 0);
    run(&mut owner, 1);
    let counts = |id: &str, most: usize| (1..=most).map(|n| format!("{id}={n}")).collect::<Vec<_>>();
    assert_eq!(fixture.events(), [counts("x", 8), counts("y", 5)].concat());
    assert_eq!(accepted(owner.usage()), 13);
}

#[test]
fn only_the_client_that_a_release_names_goes_on() {
    let fixture = Fixture::new();
    let mut owner = fixture.open_at("a").unwrap();
    fixture.send(&["x"], 0);
    run(&mut owner, 1);
    let (mut first, mut second) = (fixture.standby("b"), fixture.standby("c"));
    first.prepare().unwrap();
    let named = client(&first);
    second.prepare().unwrap();
    owner.release((&named.0, named.1)).unwrap();
    catch_up(&mut second);
    let Received::Waiting(mut second) = second.receive((0, 0)).unwrap() else { panic!("named somebody else") };
    second.prepare().unwrap();
    assert_ne!(second.client().map(|(name, _)| name), Some(&*named.0));
    catch_up(&mut first);
    // Its id was initialised by the second one: the release is void, and only a takeover helps.
    let Err(ShardError::InDoubt(_)) = first.receive((0, 0)) else { panic!("a fenced client went on") };
    let mut owner = fixture.own(second.take_over((0, 0)).unwrap());
    fixture.send(&["x"], 0);
    run(&mut owner, 1);
    assert_eq!(fixture.events(), ["x=1", "x=2"]);
}

#[test]
fn a_release_of_unknown_outcome_ends_in_a_takeover_without_loss() {
    for fault in [Fault::CommittedUnknown, Fault::LostUnknown] {
        let fixture = Fixture::new();
        let mut owner = fixture.open_at("a").unwrap();
        fixture.send(&["x"], 0);
        run(&mut owner, 1);
        let mut next = fixture.standby("b");
        next.prepare().unwrap();
        let (client, slot) = client(&next);
        fixture.faults.plan([fault]);
        assert!(matches!(owner.release((&client, slot)), Err(ShardError::InDoubt(_))));
        catch_up(&mut next);
        let acquired = match (next.receive((0, 0)).unwrap(), fault) {
            (Received::Ours(acquired), Fault::CommittedUnknown) => *acquired,
            (Received::Waiting(next), Fault::LostUnknown) => next.take_over((0, 0)).unwrap(),
            _ => panic!("{fault:?}"),
        };
        let mut owner = fixture.own(acquired);
        fixture.send(&["x"], 0);
        run(&mut owner, 1);
        assert_eq!(fixture.events(), ["x=1", "x=2"], "{fault:?}");
    }
}

#[test]
fn a_standby_takes_over_from_a_live_owner_and_an_older_plan_does_not() {
    let fixture = Fixture::new();
    let mut owner = fixture.own(fixture.standby("a").take_over((3, 7)).unwrap());
    fixture.send(&["x"], 0);
    run(&mut owner, 1);
    let older = fixture.standby("b").take_over((3, 6)).map(|_| ());
    assert!(matches!(&older, Err(ShardError::Reopen(why)) if why.contains("plan")), "{older:?}");
    fixture.send(&["x"], 0);
    run(&mut owner, 1);
    let mut standby = fixture.standby("c");
    standby.prepare().unwrap();
    let mut second = fixture.own(standby.take_over((4, 1)).unwrap());
    fixture.send(&["x"], 0);
    assert!(matches!(owner.run_batch(), Err(ShardError::InDoubt(_))), "it was fenced");
    run(&mut second, 1);
    assert_eq!(fixture.events(), ["x=1", "x=2", "x=3"]);
}

#[test]
fn records_that_were_deleted_before_a_new_shard_read_them_stop_it() {
    let fixture = Fixture::new();
    for _ in 0..3 {
        fixture.send(&["a"], 0);
    }
    let ingress = TopicPartition::new(fixture.topics.ingress.clone(), 0);
    fixture.log.trim(&ingress, 2).unwrap();
    let opened = fixture.open_at("state").and_then(|mut shard| shard.run_batch().map(|_| ()));
    assert!(matches!(opened, Err(ShardError::Stopped(_))), "{opened:?}");
}

#[test]
fn positions_that_moved_over_aborted_data_are_committed_after_a_while() {
    let fixture = Fixture::new();
    let mut shard = fixture.open();
    fixture.send(&["a"], 0);
    run(&mut shard, 1);
    let mut other = fixture.log.transactional("other").unwrap();
    other.begin().unwrap();
    let topic = &fixture.topics.ingress;
    other.send(Outgoing { topic, partition: 0, key: &[], payload: b"never", headers: &[] }).unwrap();
    other.abort().unwrap();
    assert!(shard.run_batch().unwrap().is_none());
    let batches = shard.progress().0;
    assert!(shard.run_batch().unwrap().is_none() && shard.progress().0 == batches, "not at once");
    fixture.clock.0.fetch_add(61_000, Ordering::Relaxed);
    assert_eq!(shard.run_batch().unwrap().map(|report| report.records), Some(0));
    assert_eq!(shard.progress().0, batches + 1);
    drop(shard);
    let ingress = TopicPartition::new(topic.clone(), 0);
    let (_, end) = fixture.log.bounds(&ingress).unwrap();
    fixture.log.trim(&ingress, end).unwrap();
    fixture.send(&["a"], 0);
    run(&mut fixture.open(), 1);
    assert_eq!(fixture.events(), ["a=1", "a=2"]);
}

#[test]
fn a_few_entries_that_change_all_the_time_are_flushed_all_the_same() {
    let mut fixture = Fixture::new();
    fixture.limits.dirty_bytes = 1 << 20;
    let mut shard = fixture.open();
    for _ in 0..50 {
        fixture.send(&["a"], 100);
        run(&mut shard, 1);
        fixture.clock.0.fetch_add(1_000, Ordering::Relaxed);
    }
    drop(shard);
    let position = fixture.store("state").position().unwrap().unwrap();
    assert!(position.batch_number > 35, "a crash replays {} s", 50 - position.batch_number);
}

#[test]
fn a_clock_that_runs_far_ahead_takes_no_message_ids_with_it() {
    let fixture = Fixture::new();
    fixture.clock.0.store(1_000_000, Ordering::Relaxed);
    let mut shard = fixture.open();
    fixture.send(&["a"], 0);
    run(&mut shard, 1);
    assert!(shard.trouble().unwrap().contains("clocks"), "{:?}", shard.trouble());
    let bound = 1_000_000 + 3_600_000;
    assert_eq!(shard.position().stamp_time_ms, bound);
    fixture.clock.0.store(FAR_FUTURE_MS, Ordering::Relaxed);
    fixture.send(&["a"], 1);
    run(&mut shard, 1);
    assert_eq!((shard.trouble(), fixture.events()), (None, vec!["a=1".to_owned(), "a=2".to_owned()]));
    assert!(shard.position().stamp_time_ms > bound);
}

#[test]
fn time_that_goes_back_is_a_condition_until_it_has_caught_up() {
    let fixture = Fixture::new();
    let mut shard = fixture.open();
    let batch = |shard: &mut Shard<Counting>| {
        fixture.send(&["a"], 0);
        run(shard, 1);
        let trouble = shard.trouble().map(str::to_owned);
        (shard.position().time_ms, shard.position().stamp_time_ms, trouble)
    };
    let (time_ms, _, trouble) = batch(&mut shard);
    assert_eq!(trouble, None);
    // This worker's, by less than clocks may differ, and by more.
    fixture.clock.0.store(time_ms - 60_000, Ordering::Relaxed);
    assert_eq!(batch(&mut shard).2, None);
    fixture.clock.0.store(time_ms - 60_001, Ordering::Relaxed);
    let (still_ms, _, trouble) = batch(&mut shard);
    assert_eq!(still_ms, time_ms);
    assert!(trouble.as_deref().unwrap_or_default().contains("60001 ms behind"), "{trouble:?}");
    fixture.clock.0.store(FAR_FUTURE_MS, Ordering::Relaxed);
    assert_eq!(batch(&mut shard).2, None);
    // The brokers'.
    fixture.behind_ms.store(3_600_000, Ordering::Relaxed);
    let (_, stamp_ms, _) = batch(&mut shard);
    let (_, still_ms, trouble) = batch(&mut shard);
    assert_eq!(still_ms, stamp_ms);
    let words = trouble.unwrap_or_default();
    assert!(words.contains("before what is ahead of it"), "{words}");
    fixture.behind_ms.store(0, Ordering::Relaxed);
    let (_, later_ms, trouble) = batch(&mut shard);
    assert!(later_ms > stamp_ms, "{later_ms}");
    assert_eq!(trouble, None);
}

#[test]
fn a_frame_of_a_newer_version_stops_the_shard_and_is_not_rejected() {
    let fixture = Fixture::new();
    let mut shard = fixture.open();
    let mut payload = frame::single(Content::Envelope, &Envelope::default());
    payload[1] = 2;
    fixture.send_bytes(&payload);
    let failed = shard.run_batch().unwrap_err();
    assert!(matches!(&failed, ShardError::Stopped(why) if why.contains("upgrade")), "{failed}");
}

/// The number of the newest batch that a store has.
fn stored(store: &RocksState) -> u64 {
    store.position().unwrap().map_or(0, |position| position.batch_number)
}

#[test]
fn a_standby_that_dies_has_little_to_read_again() {
    let fixture = Fixture::new();
    let mut shard = fixture.open();
    let mut standby = fixture.standby("standby");
    for round in 1..=3 {
        fixture.send(&["a"], 0);
        run(&mut shard, 1);
        while standby.position().batch_number < round {
            standby.follow(Duration::from_millis(100)).unwrap();
        }
    }
    assert_eq!(stored(&fixture.after_a_crash("standby")), 0, "it was stored by something else");
    fixture.pass(10_000);
    standby.follow(Duration::ZERO).unwrap();
    assert_eq!(stored(&fixture.after_a_crash("standby")), 3);
    // Nothing new: nothing is written.
    let files = || std::fs::read_dir(fixture.folder.path().join("standby")).unwrap().count();
    let before = files();
    fixture.pass(10_000);
    standby.follow(Duration::ZERO).unwrap();
    assert_eq!(files(), before);
}

#[test]
fn an_owner_whose_clock_was_set_back_goes_on_storing() {
    let fixture = Fixture::new();
    let mut shard = fixture.open();
    fixture.pass(-3_600_000);
    for _ in 0..3 {
        fixture.pass(10_000);
        fixture.send(&["a"], 0);
        run(&mut shard, 1);
    }
    let stored = stored(&fixture.after_a_crash("state"));
    assert!(stored >= 2, "{stored}");
}

#[test]
fn what_changed_last_is_stored_although_nothing_follows() {
    let fixture = Fixture::new();
    let mut shard = fixture.open();
    fixture.send(&["a"], 0);
    run(&mut shard, 1);
    assert_eq!(stored(&fixture.after_a_crash("state")), 0, "it was stored by something else");
    fixture.pass(10_000);
    assert!(shard.run_batch().unwrap().is_none());
    assert_eq!(stored(&fixture.after_a_crash("state")), 1);
}

/// A worker whose one shard cannot be opened; its time goes on half a second at a time.
struct Failing {
    member: Member,
    now_ms: u64,
}

impl Failing {
    fn new(fixture: &Fixture) -> Failing {
        let profile = Profile {
            worker: "a".into(),
            zone: String::new(),
            node: String::new(),
            capacity: 1,
            stages: ["unify".to_owned()].into(),
            version: String::new(),
        };
        let now = Now { wall_ms: 1, monotonic_ms: 0 };
        let member = Member::join(&*fixture.log, &fixture.topics, profile, 1, Bounds::default(), now).unwrap();
        Failing { member, now_ms: 0 }
    }

    fn reports(&mut self, seconds: u64, hears_itself: bool) {
        let id = ShardId::new("unify", 0);
        let status = ShardStatus { condition: "the disk is broken".into(), ..ShardStatus::default() };
        for _ in 0..2 * seconds {
            self.now_ms += 500;
            self.member.report([(id.clone(), status.clone())].into(), &BTreeSet::new(), self.now_ms);
            while hears_itself && !self.member.is_heard() {
                self.member.listen(Duration::from_millis(10), self.now_ms).unwrap();
            }
        }
    }

    fn is_unable(&self) -> bool {
        self.member.view().reports().any(|(report, _)| report.unable.contains(&ShardId::new("unify", 0)))
    }
}

#[test]
fn a_worker_says_that_it_cannot_open_a_shard_but_not_for_what_it_tried_while_it_was_cut_off() {
    let fixture = Fixture::new();
    let mut worker = Failing::new(&fixture);
    worker.reports(20, true);
    worker.reports(40, false);
    worker.reports(5, true);
    assert!(!worker.is_unable(), "it was the log that was away");
    worker.reports(20, true);
    assert!(worker.is_unable());
}

//! The watch, and those it watches, over an embedded log whose readers go deaf.

use super::*;
use crate::admin::{Check, Health};
use crate::gateway::Keyring;
use crate::runtime::desk::Desk;
use crate::runtime::membership::{HearingCheck, MemberSettings, Membership, Senders};
use crate::runtime::observe::Exports;
use crate::runtime::reaction::{ReactionLimits, ReactionThread};
use crate::runtime::rules::Rulebook;
use crate::runtime::stage::SeatThread;
use crate::runtime::stores::Creation;
use crate::runtime::system::{SystemClock, Threads};
use crate::telemetry::{Metrics, SpanExporter};
use millstream_model::frame::{self, Content};
use millstream_plan::plan::{Plan, Version};
use millstream_plan::status::{Role, ShardStatus};
use millstream_plan::view::{Bounds, Duty, GATEWAY_GONE_MS};
use millstream_shard::control::Publisher;
use millstream_shard::log::{
    Consumer, EachRead, Ends, LogError, Message, Outgoing, Producer, Start, TopicSpec, Transactional, View,
};
use millstream_shard::member::Profile;
use millstream_shard::ownership::Claimant;
use millstream_shard::runtime::{Environment, Limits};
use millstream_shard::topics::Topics;
use millstream_stages::unify::{Unify, UnifyConfig};
use millstream_stores::embedded::documents::EmbeddedDocuments;
use millstream_stores::embedded::log::{EmbeddedLog, LogOptions};
use millstream_stores::rocks::{Resources, RocksState};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::time::Instant;

/// Readers that were opened before it was deafened last hear nothing.
struct DeafLog {
    inner: EmbeddedLog,
    deafened: Arc<AtomicU64>,
    is_away: AtomicBool,
}

struct Reader {
    inner: Box<dyn Consumer>,
    opened: u64,
    deafened: Arc<AtomicU64>,
}

impl Consumer for Reader {
    fn poll(&mut self, max: usize, wait: Duration, each: &mut dyn FnMut(Message<'_>)) -> Result<usize, LogError> {
        let deafened = self.deafened.load(Ordering::Relaxed);
        match deafened > self.opened || deafened == u64::MAX {
            true => Ok(0),
            false => self.inner.poll(max, wait, each),
        }
    }
    fn positions(&self) -> Vec<u64> {
        self.inner.positions()
    }
}

impl Log for DeafLog {
    fn trim(&self, at: &TopicPartition, before: u64) -> Result<(), LogError> {
        self.inner.trim(at, before)
    }
    fn create_topics(&self, topics: &[TopicSpec]) -> Result<(), LogError> {
        self.inner.create_topics(topics)
    }
    fn topic_id(&self, topic: &str) -> Result<String, LogError> {
        self.inner.topic_id(topic)
    }
    fn bounds(&self, at: &TopicPartition) -> Result<(u64, u64), LogError> {
        self.inner.bounds(at)
    }
    fn ends(&self, of: &[TopicPartition]) -> Result<Vec<Ends>, LogError> {
        match self.is_away.load(Ordering::Relaxed) {
            true => Err(LogError::Unavailable("no broker".into())),
            false => self.inner.ends(of),
        }
    }
    fn consumer(&self, assignments: &[(TopicPartition, Start)]) -> Result<Box<dyn Consumer>, LogError> {
        let (inner, deafened) = (self.inner.consumer(assignments)?, self.deafened.clone());
        Ok(Box::new(Reader { inner, opened: deafened.load(Ordering::Relaxed), deafened }))
    }
    fn read(&self, of: &[(TopicPartition, Range<u64>)], view: View, each: EachRead<'_>) -> Result<(), LogError> {
        self.inner.read(of, view, each)
    }
    fn producer(&self) -> Result<Box<dyn Producer>, LogError> {
        self.inner.producer()
    }
    fn transactional(&self, id: &str) -> Result<Box<dyn Transactional>, LogError> {
        self.inner.transactional(id)
    }
}

struct Fixture {
    _folder: tempfile::TempDir,
    log: Arc<DeafLog>,
    topics: Topics,
    stop: Arc<Stop>,
}

impl Fixture {
    fn new() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let inner = EmbeddedLog::open(folder.path(), LogOptions::default(), Arc::new(SystemClock)).unwrap();
        let log = Arc::new(DeafLog { inner, deafened: Arc::default(), is_away: AtomicBool::new(false) });
        let topics = Topics::new("t", 1, 1);
        log.create_topics(&topics.specs()).unwrap();
        Fixture { _folder: folder, log, topics, stop: Arc::default() }
    }

    fn environment(&self) -> Environment {
        Environment {
            log: self.log.clone(),
            clock: Arc::new(SystemClock),
            executor: Arc::new(Threads),
            topics: self.topics.clone(),
            claimant: Claimant::new("w", "1"),
            checkpoints: None,
        }
    }

    /// New readers hear nothing, either.
    fn deafen_for_good(&self, is_so: bool) {
        self.log.deafened.store(if is_so { u64::MAX } else { 1_000 }, Ordering::Relaxed);
    }

    fn deafen(&self) {
        self.log.deafened.fetch_add(1, Ordering::Relaxed);
    }

    fn creation(&self) -> Arc<Creation> {
        Arc::new(Creation::new(self.log.clone(), self.topics.clone()))
    }

    fn send_mutations(&self) {
        self.send_frame(&self.topics.mutations, Content::Mutation);
    }

    /// A frame without a record.
    fn send_frame(&self, topic: &str, content: Content) {
        let payload = frame::FrameWriter::new(content).finish();
        let (done, waiting) = channel();
        let message = Outgoing { topic, partition: 0, key: &[], payload: &payload, headers: &[] };
        self.log.producer().unwrap().send(message, Box::new(move |sent| done.send(sent).unwrap()));
        waiting.recv().unwrap().unwrap();
    }

    fn at_mutations(&self, offset: u64, looks: u64) -> Listened {
        let at = TopicPartition::new(self.topics.mutations.clone(), 0);
        Listened { read_to: vec![(at, offset)], looks }
    }
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        std::thread::yield_now();
    }
}

/// Waits for polls that bring nothing, of which one begins after this was called.
fn polls(empty: &dyn Fn() -> u64) {
    let before = empty();
    eventually("polls that bring nothing", || empty() >= before + 2);
}

fn observer() -> Arc<Exports> {
    Arc::new(Exports::new(Metrics::new(["acme"]), SpanExporter::disabled()))
}

/// One who has read a message goes deaf, gets another, is told, and reads it; then it ends.
fn reads_on(fixture: &Fixture, desk: &Desk, send: &dyn Fn()) {
    let has_read = |offset| {
        let read_to = desk.listened().unwrap_or_default().read_to;
        read_to.first().is_some_and(|(_, read_to)| *read_to == offset)
    };
    send();
    eventually("the first frame", || has_read(1));
    let empty = || desk.listened().unwrap_or_default().looks;
    fixture.deafen();
    // A poll that began before still hears.
    polls(&empty);
    send();
    polls(&empty);
    assert!(has_read(1));
    desk.read_anew();
    eventually("the second frame", || has_read(2));
    fixture.stop.stop();
}

#[test]
fn only_an_owner_that_does_not_hear_what_there_is_is_told_so_once() {
    let fixture = Fixture::new();
    let desks = ["unify", "reaction", "action"].map(|stage| Arc::new(Desk::new(stage, 0, Duty::Own)));
    let ears = desks.iter().map(|desk| desk.clone() as Arc<dyn Ear>).collect();
    let metrics = Metrics::new([]);
    let watch = EarWatch { log: fixture.log.clone(), ears, metrics: metrics.clone(), stop: Arc::default() };
    let mut hearings = vec![Hearing::default(); desks.len()];
    let mut look = |seconds: u64| {
        watch.look(&mut hearings, &|| seconds * 1_000);
        desks.each_ref().map(|desk| desk.take_deaf())
    };
    fixture.send_mutations();
    // One hears everything, one nothing, and one is no owner any more.
    let roles = [Role::Owner, Role::Owner, Role::Standby];
    for ((desk, role), offset) in desks.iter().zip(roles).zip([1, 0, 0]) {
        desk.report(ShardStatus { role, ..ShardStatus::default() });
        desk.note_listened(fixture.at_mutations(offset, 0));
    }
    assert_eq!(look(0), [false; 3]);
    for (desk, offset) in desks.iter().zip([1, 0, 0]) {
        desk.note_listened(fixture.at_mutations(offset, 10));
    }
    assert_eq!(look(20), [false; 3]);
    assert_eq!(look(30), [false, true, false]);
    assert!(metrics.render().contains("millstream_deaf_readers_total 1"));
    assert_eq!(look(31), [false; 3]);
    fixture.log.is_away.store(true, Ordering::Relaxed);
    for desk in &desks {
        desk.note_listened(fixture.at_mutations(0, 100));
    }
    assert_eq!(look(1_000), [false; 3], "what there is is not known");
    assert_eq!(look(2_000), [false; 3]);
}

#[test]
fn a_partition_that_does_not_answer_keeps_nobody_from_hearing_the_others() {
    let fixture = Fixture::new();
    fixture.send_mutations();
    let desks = ["action", "reaction"].map(|stage| Arc::new(Desk::new(stage, 0, Duty::Own)));
    let ears = desks.iter().map(|desk| desk.clone() as Arc<dyn Ear>).collect();
    let watch = EarWatch { log: fixture.log.clone(), ears, metrics: Metrics::new([]), stop: Arc::default() };
    let mut hearings = vec![Hearing::default(); desks.len()];
    let nowhere = Listened { read_to: vec![(TopicPartition::new("no such topic", 0), 0)], looks: 0 };
    let mut look = |seconds: u64| {
        let [action, reaction] = &desks;
        action.note_listened(nowhere.clone());
        reaction.note_listened(fixture.at_mutations(0, seconds));
        watch.look(&mut hearings, &|| seconds * 1_000);
        [action.take_deaf(), reaction.take_deaf()]
    };
    for desk in &desks {
        desk.report(ShardStatus { role: Role::Owner, ..ShardStatus::default() });
    }
    assert_eq!(look(0), [false; 2]);
    assert_eq!(look(30), [false, true]);
}

#[test]
fn who_owns_a_shard_anew_is_not_deaf_by_what_it_was_told_before() {
    let desk = Desk::new("unify", 0, Duty::Own);
    desk.report(ShardStatus { role: Role::Owner, ..ShardStatus::default() });
    desk.read_anew();
    desk.report(ShardStatus::default());
    desk.report(ShardStatus { role: Role::Owner, ..ShardStatus::default() });
    assert!(!desk.take_deaf());
}

#[test]
fn a_partition_of_reaction_reads_on_with_another_client() {
    let fixture = Fixture::new();
    let folder = tempfile::tempdir().unwrap();
    let desk = Arc::new(Desk::new("reaction", 0, Duty::Own));
    let thread = ReactionThread {
        desk: desk.clone(),
        creation: fixture.creation(),
        documents: Arc::new(EmbeddedDocuments::open(folder.path()).unwrap()),
        rules: Arc::new(Rulebook::new(UnifyConfig::default())),
        limits: ReactionLimits::default(),
        observer: observer(),
        stop: fixture.stop.clone(),
    };
    let running = thread.start(&fixture.environment()).unwrap();
    reads_on(&fixture, &desk, &|| fixture.send_mutations());
    running.join().unwrap();
}

#[test]
fn an_owner_reads_on_with_another_client() {
    let fixture = Fixture::new();
    let folder = tempfile::tempdir().unwrap();
    let (desk, state) = (Arc::new(Desk::new("unify", 0, Duty::Own)), folder.path().to_owned());
    let thread = SeatThread {
        desk: desk.clone(),
        queries: channel().1,
        make: Box::new(|| Unify::new(&UnifyConfig::default())),
        adopt: None,
        open_store: Box::new(move || Ok(Arc::new(RocksState::open(&state, &Resources::new(1 << 20))?))),
        creation: fixture.creation(),
        limits: Limits::default(),
        observer: observer(),
        stop: fixture.stop.clone(),
    };
    let running = thread.start(&fixture.environment()).unwrap();
    reads_on(&fixture, &desk, &|| fixture.send_frame(&fixture.topics.ingress, Content::Envelope));
    assert_eq!(desk.status().unwrap().epoch, 1, "it was not opened again");
    running.join().unwrap();
}

/// A process without shards that is about to join.
fn gateway(fixture: &Fixture) -> (Membership, Arc<Keyring>) {
    let profile = Profile {
        worker: "w".to_owned(),
        zone: String::new(),
        node: String::new(),
        capacity: 1,
        stages: BTreeSet::new(),
        version: String::new(),
    };
    let settings = MemberSettings { profile, bounds: Bounds::default(), release: Duration::from_secs(1) };
    let keys = Arc::new(Keyring::new(&[]));
    let senders = Senders {
        keys: keys.clone(),
        metrics: Metrics::new(["acme"]),
        rules: Arc::new(Rulebook::new(UnifyConfig::default())),
    };
    let (environment, creation) = (fixture.environment(), fixture.creation());
    let (desks, starters) = (Vec::new(), Vec::new());
    (Membership::new(settings, environment, creation, senders, desks, starters, fixture.stop.clone()), keys)
}

fn publish(fixture: &Fixture, number: u64) {
    let plan = Plan { version: Version { term: 1, number }, generation: 1, ..Plan::default() };
    Publisher::open(&*fixture.log, &fixture.topics).unwrap().publish(plan).unwrap();
}

#[test]
fn a_process_hears_control_and_status_with_another_client() {
    let fixture = Fixture::new();
    let (membership, _) = gateway(&fixture);
    let shared = membership.shared();
    let running = membership.start().unwrap();
    let empty = || shared.listened().unwrap_or_default().looks;
    eventually("joining", || !shared.reports().is_empty());
    fixture.deafen();
    polls(&empty);
    publish(&fixture, 1);
    polls(&empty);
    assert!(shared.has_place().is_err(), "no plan was heard");
    shared.read_anew();
    eventually("the plan", || shared.has_place().is_ok());
    fixture.stop.stop();
    running.join().unwrap();
}

#[test]
fn a_gateway_trusts_what_it_knows_for_as_long_as_it_hears_control() {
    let fixture = Fixture::new();
    let (membership, keys) = gateway(&fixture);
    let shared = membership.shared();
    let ears = vec![shared.clone() as Arc<dyn Ear>];
    let watch = EarWatch { log: fixture.log.clone(), ears, metrics: Metrics::new([]), stop: Arc::default() };
    let mut hearings = vec![Hearing::default()];
    let mut look = || (Instant::now(), watch.look(&mut hearings, &|| 0)).0;
    let (before, check) = (Instant::now(), HearingCheck(shared.clone()));
    let trusted = Duration::from_millis(GATEWAY_GONE_MS);
    let goes_by = |asked: Instant| !keys.is_old_at(asked + trusted - Duration::from_millis(1));
    let running = membership.start().unwrap();
    eventually("joining", || !shared.reports().is_empty());
    assert!(goes_by(before) && keys.is_old_at(Instant::now() + trusted + Duration::from_millis(1)));
    let asked = look();
    eventually("trust from then on", || goes_by(asked));
    keys.trust_until(before + trusted);
    assert!(goes_by(asked), "what was known earlier says nothing");
    assert_eq!(check.check(), Health::Well);
    fixture.deafen();
    polls(&|| shared.listened().unwrap_or_default().looks);
    publish(&fixture, 1);
    let asked = look();
    assert_eq!(check.check(), Health::Well, "it may have come only now");
    fixture.deafen_for_good(true);
    look();
    assert_eq!(check.check(), Health::Well, "it is to read with another client");
    look();
    assert!(matches!(check.check(), Health::NotReady(why) if why.contains("has not heard all of `control`")));
    polls(&|| shared.listened().unwrap_or_default().looks);
    assert!(!goes_by(asked));
    // Without an answer it is not known what it misses.
    fixture.log.is_away.store(true, Ordering::Relaxed);
    look();
    assert_eq!(check.check(), Health::Well);
    fixture.log.is_away.store(false, Ordering::Relaxed);
    fixture.deafen_for_good(false);
    let asked = look();
    look();
    eventually("the plan, with another client", || shared.has_place().is_ok());
    // Behind the plan there is the marker of its transaction: what was asked before has been heard only with that.
    eventually("trust from before on", || goes_by(asked));
    let asked = look();
    eventually("trust from then on", || goes_by(asked));
    fixture.stop.stop();
    running.join().unwrap();
}

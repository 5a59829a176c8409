//! The thread of a partition, over the embedded log.

use super::ahead::PATIENCE;
use super::turn::Undecided;
use super::*;
use crate::runtime::observe::Exports;
use crate::runtime::system::{SystemClock, Threads};
use crate::telemetry::{Metrics, SpanExporter};
use millstream_model::document::Document;
use millstream_model::proto::Marker;
use millstream_shard::Clock;
use millstream_shard::documents::{DocumentError, Outcome};
use millstream_shard::log::{Log, Message, Start};
use millstream_shard::member::Order;
use millstream_shard::ownership::Claimant;
use millstream_shard::topics::Topics;
use millstream_stages::unify::UnifyConfig;
use millstream_stores::embedded::log::{EmbeddedLog, LogOptions};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

/// A store that answers so when it is prepared, and counts how often it was.
struct Prepares(fn() -> Result<(), DocumentError>, AtomicUsize);

impl DocumentStore for Prepares {
    fn prepare(&self, _: &[&str]) -> Result<(), DocumentError> {
        self.1.fetch_add(1, Ordering::SeqCst);
        (self.0)()
    }
    fn write(&self, mutations: &[Mutation]) -> Vec<Outcome> {
        vec![Outcome::Retry("not prepared".into()); mutations.len()]
    }
    fn get(&self, _: &str, _: &str, _: &str) -> Result<Option<Document>, DocumentError> {
        (self.0)().map(|()| None)
    }
    fn scan(&self, _: &str, _: &str, _: &mut dyn FnMut(&str, Document) -> bool) -> Result<(), DocumentError> {
        (self.0)()
    }
}

/// The thread of a partition over such a store.
struct Fixture {
    desk: Arc<Desk>,
    documents: Arc<Prepares>,
    stop: Arc<Stop>,
    running: JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Fixture {
    fn start(prepares: fn() -> Result<(), DocumentError>, duty: Duty) -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let documents = Arc::new(Prepares(prepares, AtomicUsize::new(0)));
        let work = work(folder.path(), documents.clone(), duty);
        let (desk, stop) = (work.desk.clone(), work.stop.clone());
        let running = std::thread::spawn(move || work.run());
        Fixture { desk, documents, stop, running, _folder: folder }
    }

    fn until(&self, what: &str, is_so: impl Fn(&Fixture) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !is_so(self) {
            assert!(Instant::now() < deadline, "{what}: {:?}", self.desk.condition());
            std::thread::yield_now();
        }
    }

    fn order(&self, duty: Duty) {
        self.desk.set_order(Order { duty, ..Order::default() });
    }

    fn end(self) -> Condition {
        let condition = self.desk.condition();
        self.stop.stop();
        self.desk.wake();
        self.running.join().unwrap();
        condition
    }
}

#[test]
fn who_cannot_write_documents_keeps_nobody_from_giving_a_partition_away() {
    let fixture = Fixture::start(
        || Err(DocumentError::Unavailable("no route".into())),
        Duty::Standby { prepare: true, soon: false },
    );
    let told = |it: &Fixture| {
        it.desk.status().map(|status| (status.role, status.prepared, status.condition.contains("no route")))
    };
    fixture.until("a standby", |it| told(it) == Some((Role::Standby, None, false)));
    fixture.order(Duty::Standby { prepare: true, soon: true });
    // Its owner may not be able to either, and be about to be replaced for that: by one that knows the new password.
    fixture.until("one that takes it", |it| told(it) == Some((Role::Standby, Some(AT_ONCE.into()), true)));
    fixture.order(Duty::Standby { prepare: true, soon: false });
    fixture.until("a standby again", |it| told(it) == Some((Role::Standby, None, false)));
    fixture.end();
}

/// The one whose store alone is away is passed over, and must not take the partition again and again from those that work.
#[test]
fn who_could_not_write_documents_as_an_owner_does_not_take_the_partition_again_before_it_can() {
    static IS_AWAY: AtomicBool = AtomicBool::new(true);
    let prepares = || match IS_AWAY.load(Ordering::SeqCst) {
        true => Err(DocumentError::Unavailable("no route".into())),
        false => Ok(()),
    };
    let (soon, later) = (Duty::Standby { prepare: true, soon: true }, Duty::Standby { prepare: false, soon: false });
    let fixture = Fixture::start(prepares, soon.clone());
    let told = |it: &Fixture| {
        it.desk.status().map(|status| (status.role, status.prepared, status.condition.contains("no route")))
    };
    let taken = Some((Role::Standby, Some(AT_ONCE.to_owned()), true));
    let refused = Some((Role::Opening, None, true));
    fixture.until("one that takes it", |it| told(it) == taken);
    for duty in [Duty::Own, Duty::TakeOver] {
        fixture.order(duty);
        fixture.until("an owner that fails", |it| told(it) == refused);
        fixture.order(later.clone());
        fixture.until("a standby, while another one has it", |it| told(it) == Some((Role::Standby, None, false)));
        fixture.order(soon.clone());
        let (before, prepared) =
            (fixture.documents.1.load(Ordering::SeqCst), |it: &Fixture| it.documents.1.load(Ordering::SeqCst));
        fixture.until("some attempts", |it| prepared(it) > before + 2);
        assert_eq!(told(&fixture), refused, "others go before it");
    }
    IS_AWAY.store(false, Ordering::SeqCst);
    fixture.until("one that can", |it| told(it) == Some((Role::Standby, Some(AT_ONCE.into()), false)));
    IS_AWAY.store(true, Ordering::SeqCst);
    fixture.order(later);
    fixture.until("a standby", |it| told(it) == Some((Role::Standby, None, false)));
    fixture.order(soon);
    fixture.until("one that takes it, as the first time", |it| told(it) == taken);
    fixture.end();
}

/// A clock that can be set back, by milliseconds.
#[derive(Default)]
struct SetBack(AtomicU64);

impl Clock for SetBack {
    fn now_ms(&self) -> u64 {
        SystemClock.now_ms() - self.0.load(Ordering::SeqCst)
    }
}

/// A store that takes nothing at first, and sets the clock back meanwhile.
struct TakesLater(Arc<SetBack>, AtomicUsize);

impl DocumentStore for TakesLater {
    fn prepare(&self, _: &[&str]) -> Result<(), DocumentError> {
        Ok(())
    }
    fn write(&self, mutations: &[Mutation]) -> Vec<Outcome> {
        let is_first = self.1.fetch_add(1, Ordering::SeqCst) == 0;
        self.0.0.store(3_600_000, Ordering::SeqCst);
        vec![if is_first { Outcome::Retry("a primary is elected".into()) } else { Outcome::Applied }; mutations.len()]
    }
    fn get(&self, _: &str, _: &str, _: &str) -> Result<Option<Document>, DocumentError> {
        Ok(None)
    }
    fn scan(&self, _: &str, _: &str, _: &mut dyn FnMut(&str, Document) -> bool) -> Result<(), DocumentError> {
        Ok(())
    }
}

#[test]
fn a_clock_that_is_set_back_holds_no_document() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), Arc::new(SetBack::default()));
    let documents = Arc::new(TakesLater(clock.clone(), AtomicUsize::new(0)));
    let mut work = work(folder.path(), documents.clone(), Duty::Own);
    work.environment.clock = clock;
    mutate(&work);
    let (desk, stop) = (work.desk.clone(), work.stop.clone());
    let running = std::thread::spawn(move || work.run());
    let deadline = Instant::now() + Duration::from_secs(60);
    let is_recorded = || desk.reads_from().is_some_and(|inputs| inputs.iter().any(|(at, _)| at.offset == 1));
    while !is_recorded() {
        assert!(Instant::now() < deadline, "it was written {} times", documents.1.load(Ordering::SeqCst));
        std::thread::yield_now();
    }
    stop.stop();
    desk.wake();
    running.join().unwrap();
}

/// A mutation that is to be written.
fn mutate(work: &Work) {
    work.creation.ensure(&work.stop).unwrap();
    let mut frame = FrameWriter::new(Content::Mutation);
    let (tenant, collection, id) = ("acme".into(), "users".into(), "u".into());
    frame.push(&Mutation { tenant, collection, id, revision: 1, ..Mutation::default() });
    let topic = &work.environment.topics.mutations;
    let producer = work.environment.log.producer().unwrap();
    send_and_wait(&*producer, Outgoing { topic, partition: 0, key: &[], payload: &frame.finish(), headers: &[] })
        .unwrap();
}

/// The one whose store alone is lost later is passed over, too.
#[test]
fn an_owner_that_loses_the_document_store_for_long_says_that_it_cannot_go_on() {
    static IS_AWAY: AtomicBool = AtomicBool::new(false);
    let prepares = || match IS_AWAY.load(Ordering::SeqCst) {
        true => Err(DocumentError::Unavailable("no route".into())),
        false => Ok(()),
    };
    let folder = tempfile::tempdir().unwrap();
    let documents = Arc::new(Prepares(prepares, AtomicUsize::new(0)));
    let mut work = work(folder.path(), documents.clone(), Duty::Own);
    work.limits.struggles = Duration::ZERO;
    mutate(&work);
    let (desk, stop) = (work.desk.clone(), work.stop.clone());
    let running = std::thread::spawn(move || work.run());
    let fixture = Fixture { desk, documents, stop, running, _folder: folder };
    let struggles =
        |it: &Fixture| matches!(it.desk.condition(), Condition::Away(why) if why.contains("next to nothing"));
    fixture.until("a store that takes nothing", struggles);
    let prepared = |it: &Fixture| it.documents.1.load(Ordering::SeqCst);
    fixture.until("that it is looked at", |it| prepared(it) > 3);
    assert!(struggles(&fixture) && fixture.desk.is_owner(), "it is there");
    IS_AWAY.store(true, Ordering::SeqCst);
    fixture.until("one that cannot open the partition", |it| {
        it.desk.status().is_some_and(|it| it.role == Role::Opening && it.condition.contains("no route"))
    });
    fixture.end();
}

/// The condition of a partition over such a store, once it has one.
fn condition(prepares: fn() -> Result<(), DocumentError>) -> Condition {
    let fixture = Fixture::start(prepares, Duty::Own);
    fixture.until("it neither works nor fails", |it| it.desk.condition() != Condition::Opening);
    fixture.end()
}

#[test]
fn what_is_about_to_be_handed_off_is_opened_ahead() {
    let fixture = Fixture::start(|| Ok(()), Duty::Standby { prepare: true, soon: false });
    let prepared = |it: &Fixture| it.documents.1.load(Ordering::SeqCst);
    fixture.until("a standby", |it| it.desk.condition() == Condition::Following);
    assert_eq!(prepared(&fixture), 0, "it may never be asked");
    fixture.order(Duty::Standby { prepare: true, soon: true });
    fixture.until("a standby that is ready", |it| prepared(it) == 1);
    fixture.order(Duty::Own);
    fixture.until("an owner", |it| it.desk.condition() == Condition::Running);
    assert_eq!(prepared(&fixture), 1, "it had been opened before");
    fixture.order(Duty::Standby { prepare: false, soon: false });
    fixture.until("a standby", |it| it.desk.condition() == Condition::Following);
    fixture.order(Duty::TakeOver);
    fixture.until("an owner again", |it| it.desk.condition() == Condition::Running);
    assert_eq!((prepared(&fixture), fixture.end()), (2, Condition::Running));
}

/// What a partition's thread works with, over an embedded log in this folder.
fn work(folder: &std::path::Path, documents: Arc<dyn DocumentStore>, duty: Duty) -> Work {
    let clock = Arc::new(SystemClock);
    let log: Arc<dyn Log> = Arc::new(EmbeddedLog::open(folder, LogOptions::default(), clock.clone()).unwrap());
    let (topics, metrics) = (Topics::new("t", 1, 1), Metrics::new(["acme"]));
    let spans = SpanExporter::start(None, "test", metrics.spans.clone()).unwrap();
    let claimant = Claimant::new("w", "1");
    Work {
        desk: Arc::new(Desk::new("reaction", 0, duty)),
        shard: 0,
        creation: Arc::new(Creation::new(log.clone(), topics.clone())),
        environment: Environment { log, clock, executor: Arc::new(Threads), topics, claimant, checkpoints: None },
        documents,
        rules: Arc::new(Rulebook::new(UnifyConfig::default())),
        limits: ReactionLimits::default(),
        observer: Arc::new(Exports::new(metrics, spans)),
        stop: Arc::default(),
        failed: Cell::new(false),
    }
}

/// What its owner records of it.
fn record(work: &Work, topic_id: &str, offset: u64) {
    let inputs = vec![work.position(topic_id, offset)];
    let batch = Batch { inputs, part: 1, parts: 1, ..Batch::default() };
    let payload = changelog::encode(&Changelog { record: Some(Record::Batch(batch)) });
    let topic = work.environment.topics.changelog("reaction");
    let message = Outgoing { topic: &topic, partition: 0, key: b"position", payload: &payload, headers: &[] };
    send_and_wait(&*work.environment.log.producer().unwrap(), message).unwrap();
}

/// A transaction that was given up leaves a gap between two messages, as markers do.
#[test]
fn nothing_that_is_not_decided_is_passed_over_by_who_reads_ahead() {
    let folder = tempfile::tempdir().unwrap();
    let documents = Arc::new(Prepares(|| Ok(()), AtomicUsize::new(0)));
    let work = work(folder.path(), documents, Duty::Standby { prepare: true, soon: true });
    let log = work.environment.log.clone();
    work.creation.ensure(&work.stop).unwrap();
    let mut client = log.transactional("writer").unwrap();
    for is_committed in [true, false, true, true] {
        let topic = &work.environment.topics.mutations;
        let payload = FrameWriter::new(Content::Mutation).finish();
        client.begin().unwrap();
        client.send(Outgoing { topic, partition: 0, key: &[], payload: &payload, headers: &[] }).unwrap();
        if is_committed { client.commit().unwrap() } else { client.abort().unwrap() }
    }
    let topic_id = log.topic_id(&work.environment.topics.mutations).unwrap();
    let (_, end) = log.bounds(&work.mutations()).unwrap();
    let mut offsets = Vec::new();
    let mut reader = log.consumer(&[(work.mutations(), Start::Earliest)]).unwrap();
    while reader.positions()[0] < end {
        reader.poll(8, IDLE, &mut |message| offsets.push(message.offset)).unwrap();
    }
    let [first, second, third] = offsets[..] else { panic!("{offsets:?}") };
    assert!(second > first + 1, "{offsets:?}");
    let mut ready = Ready::open(&work).unwrap();
    let held = |ready: &Ready| ready.held.as_ref().map(|held| held.offset);
    record(&work, &topic_id, second);
    ready.keep_up(&work).unwrap();
    assert_eq!((held(&ready), ready.from, ready.recorded), (Some(second), first + 1, Some(second)));
    // It is its own now: it begins with what it holds.
    let mut ready = ready.up_to_date(&work).unwrap();
    assert_eq!(held(&ready), Some(second));
    record(&work, &topic_id, third);
    ready.keep_up(&work).unwrap();
    assert_eq!((held(&ready), ready.from), (Some(third), second + 1));
    // A former owner comes late, and has decided less than was passed over: it is read again.
    record(&work, &topic_id, second);
    let again = ready.up_to_date(&work).unwrap();
    assert_eq!((held(&again), again.from, again.consumer.positions()[0]), (None, second, second));
}

/// A reader that hears nothing; it stands here.
struct Silent(u64, Arc<AtomicUsize>);

impl Consumer for Silent {
    fn poll(&mut self, _: usize, _: Duration, _: &mut dyn FnMut(Message<'_>)) -> Result<usize, LogError> {
        Ok(0)
    }
    fn positions(&self) -> Vec<u64> {
        vec![self.0]
    }
    fn retire(&mut self) {
        self.1.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn who_reads_ahead_and_hears_nothing_of_what_is_decided_already_reads_with_another_client() {
    let folder = tempfile::tempdir().unwrap();
    let documents = Arc::new(Prepares(|| Ok(()), AtomicUsize::new(0)));
    let work = work(folder.path(), documents, Duty::Standby { prepare: true, soon: true });
    work.creation.ensure(&work.stop).unwrap();
    let topic_id = work.environment.log.topic_id(&work.environment.topics.mutations).unwrap();
    let (mut ready, retired) = (Ready::open(&work).unwrap(), Arc::<AtomicUsize>::default());
    let long_ago = Instant::now().checked_sub(PATIENCE * 2).unwrap();
    ready.consumer = Box::new(Silent(5, retired.clone()));
    ready.stands = Some((5, long_ago));
    record(&work, &topic_id, 5);
    ready.keep_up(&work).unwrap();
    assert_eq!(ready.stands, None, "there is nothing to hear");
    record(&work, &topic_id, 9);
    ready.keep_up(&work).unwrap();
    assert!(ready.stands.is_some_and(|(at, since)| at == 5 && since > long_ago), "it may only not have come yet");
    ready.stands = Some((4, long_ago));
    ready.keep_up(&work).unwrap();
    assert!(ready.stands.is_some_and(|(at, since)| at == 5 && since > long_ago), "it came on");
    ready.stands = Some((5, long_ago));
    let Err(ShardError::Reopen(why)) = ready.keep_up(&work) else { panic!("it goes on listening to nothing") };
    assert!(why.contains("nothing was heard for 60 s at offset 5"), "{why}");
    assert_eq!(retired.load(Ordering::SeqCst), 1, "nobody goes on with this client");
}

#[test]
fn a_store_that_is_configured_wrongly_needs_a_person_and_one_that_is_away_does_not() {
    let wrong = condition(|| Err(DocumentError::Configuration("collection users has a unique index".into())));
    assert!(matches!(&wrong, Condition::Stopped(why) if why.contains("unique index")), "{wrong:?}");
    let away = condition(|| Err(DocumentError::Unavailable("nobody listens".into())));
    assert!(matches!(&away, Condition::Away(why) if why.contains("nobody listens")), "{away:?}");
}

#[test]
fn a_marker_of_a_savepoint_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let work = work(folder.path(), Arc::new(Prepares(|| Ok(()), AtomicUsize::new(0))), Duty::Own);
    let producer = work.environment.log.producer().unwrap();
    let mut turn = Turn::new("id".into(), Some(3), 5, producer, Pace::new(500));
    let marker = Marker { savepoint: 1, stage: "action".into(), shard: 0 };
    turn.take(3, 99, &frame::single(Content::Marker, &marker)).unwrap();
    assert_eq!((turn.reaction.position(), turn.reaction.backlog()), (4, 0));
    assert!(turn.undecided.decide_before(4) && turn.undecided.read.is_empty());
}

#[test]
fn what_is_not_decided_is_as_old_as_the_oldest_of_it() {
    let mut undecided = Undecided::default();
    assert!(!undecided.decide_before(0), "nothing was read");
    undecided.read.extend([(0, 100), (3, 200), (4, 300)]);
    assert!(undecided.decide_before(0));
    assert_eq!(undecided.since_ms, Some(100), "none is decided: the store may be away");
    assert!(undecided.decide_before(4));
    assert_eq!(undecided.since_ms, Some(300));
    assert!(!undecided.decide_before(5), "what follows came later than the last one");
    assert_eq!((undecided.since_ms, undecided.read.len()), (Some(300), 0));
}

//! The thread of a partition, over the embedded log.

use super::*;
use crate::runtime::observe::Exports;
use crate::runtime::system::{SystemClock, Threads};
use crate::telemetry::{Metrics, SpanExporter};
use millstream_model::document::Document;
use millstream_shard::documents::{DocumentError, Outcome};
use millstream_shard::log::Log;
use millstream_shard::ownership::Claimant;
use millstream_shard::topics::Topics;
use millstream_stages::unify::UnifyConfig;
use millstream_stores::embedded::log::{EmbeddedLog, LogOptions};
use std::time::Instant;

/// A store that cannot be prepared, for this reason.
struct Unprepared(fn() -> DocumentError);

impl DocumentStore for Unprepared {
    fn prepare(&self, _: &[&str]) -> Result<(), DocumentError> {
        Err((self.0)())
    }
    fn write(&self, mutations: &[Mutation]) -> Vec<Outcome> {
        vec![Outcome::Retry("not prepared".into()); mutations.len()]
    }
    fn get(&self, _: &str, _: &str, _: &str) -> Result<Option<Document>, DocumentError> {
        Err((self.0)())
    }
    fn scan(&self, _: &str, _: &str, _: &mut dyn FnMut(&str, Document) -> bool) -> Result<(), DocumentError> {
        Err((self.0)())
    }
}

/// The condition of a partition over such a store, once it has one.
fn condition(reason: fn() -> DocumentError) -> Condition {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(SystemClock);
    let log: Arc<dyn Log> = Arc::new(EmbeddedLog::open(folder.path(), LogOptions::default(), clock.clone()).unwrap());
    let (topics, stop) = (Topics::new("t", 1, 1), Arc::new(Stop::default()));
    let (desk, metrics) = (Arc::new(Desk::new("reaction", 0, Duty::Own)), Metrics::new(["acme"]));
    let spans = SpanExporter::start(None, "test", metrics.spans.clone()).unwrap();
    let thread = ReactionThread {
        desk: desk.clone(),
        creation: Arc::new(Creation::new(log.clone(), topics.clone())),
        documents: Arc::new(Unprepared(reason)),
        rules: Arc::new(Rulebook::new(UnifyConfig::default())),
        limits: ReactionLimits::default(),
        observer: Arc::new(Exports::new(metrics, spans)),
        stop: stop.clone(),
    };
    let claimant = Claimant::new("w", "1");
    let environment = Environment { log, clock, executor: Arc::new(Threads), topics, claimant };
    let running = thread.start(&environment).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while desk.condition() == Condition::Opening {
        assert!(Instant::now() < deadline, "it neither works nor fails");
        std::thread::yield_now();
    }
    let condition = desk.condition();
    stop.stop();
    running.join().unwrap();
    condition
}

#[test]
fn a_store_that_is_configured_wrongly_needs_a_person_and_one_that_is_away_does_not() {
    let wrong = condition(|| DocumentError::Configuration("collection users has a unique index".into()));
    assert!(matches!(&wrong, Condition::Stopped(why) if why.contains("unique index")), "{wrong:?}");
    let away = condition(|| DocumentError::Unavailable("nobody listens".into()));
    assert!(matches!(&away, Condition::Away(why) if why.contains("nobody listens")), "{away:?}");
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

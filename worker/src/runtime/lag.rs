//! How far the shards that this process owns are behind their inputs, and what holds one back without any error.
//!
//! A reader sees nothing at or behind the first open transaction of a partition. The brokers abort one that is open for longer than its time-out; where they do not
//! (they lost track of it, or another program writes there with a longer one), its readers wait for ever, and no call fails. So the end that readers see is
//! compared with the end that there is: a difference that stays while the former does not move, for longer than any transaction may take, is reported as the
//! shard's condition, and what lies behind it counts as lag.

use super::desk::Desk;
use super::observe::Observer;
use super::system::Stop;
use millstream_model::proto::Position;
use millstream_shard::Clock;
use millstream_shard::log::{Ends, Log, TopicPartition};
use millstream_shard::topics::Topics;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// How often is looked.
const EVERY: Duration = Duration::from_secs(5);
/// Brokers look for transactions that are over time so often (their default).
const CLEANED_EVERY: Duration = Duration::from_secs(10);

/// How long a transaction can be open on brokers that work, with the longest time-out of any of our clients.
pub(super) fn longest_transaction(timeout: Duration) -> Duration {
    timeout + CLEANED_EVERY * 2
}

/// Looks how far the shards of a process are.
pub(super) struct LagWatch {
    /// The log.
    pub(super) log: Arc<dyn Log>,
    /// The pipeline's topics.
    pub(super) topics: Topics,
    /// The shards.
    pub(super) desks: Vec<Arc<Desk>>,
    /// Whom to tell.
    pub(super) observer: Arc<dyn Observer>,
    /// No transaction of a writer that works is open for longer.
    pub(super) longest: Duration,
    /// Now.
    pub(super) clock: Arc<dyn Clock>,
    /// When to end.
    pub(super) stop: Arc<Stop>,
}

/// What was seen of a partition.
#[derive(Clone, Copy, Debug)]
struct Seen {
    ends: Ends,
    /// Since when it is held back at this offset, milliseconds since 1970.
    held_since_ms: Option<u64>,
}

/// What was seen of the inputs of the shards that are owned.
type Looked = BTreeMap<TopicPartition, Seen>;

impl LagWatch {
    /// Starts the thread that looks now and then.
    ///
    /// # Errors
    /// When no thread can be had.
    pub(super) fn start(self) -> std::io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name("lag".into()).spawn(move || {
            let mut looked = Looked::new();
            while !self.stop.wait(EVERY) {
                self.look(&mut looked);
            }
        })
    }

    fn look(&self, looked: &mut Looked) {
        let owned: Vec<(&Arc<Desk>, Vec<Position>)> =
            self.desks.iter().filter(|desk| desk.is_owner()).map(|desk| (desk, desk.reads_from())).collect();
        let partitions: BTreeSet<TopicPartition> = owned.iter().flat_map(|(_, inputs)| inputs).map(partition).collect();
        let partitions: Vec<TopicPartition> = partitions.into_iter().collect();
        let ends = match self.log.ends(&partitions) {
            Ok(ends) => ends,
            // What there is to say about a log that is away, the shards' threads say.
            Err(error) => return tracing::debug!(%error, "the ends of inputs are not known"),
        };
        let now_ms = self.clock.now_ms();
        *looked = partitions.into_iter().zip(ends).map(|(at, ends)| seen(looked, at, ends, now_ms)).collect();
        for (desk, inputs) in owned {
            self.tell(desk, &inputs, looked, now_ms);
        }
    }

    /// Tells how many messages a shard has not read, and what holds it back.
    fn tell(&self, desk: &Desk, inputs: &[Position], looked: &Looked, now_ms: u64) {
        let (mut lag, mut held) = (0, None);
        for input in inputs {
            let at = partition(input);
            let Some(seen) = looked.get(&at) else { continue };
            let held_ms = seen.held_since_ms.map_or(0, |since_ms| now_ms.saturating_sub(since_ms));
            let is_over = u128::from(held_ms) > self.longest.as_millis();
            // Once it is held back for too long, all of it counts.
            let end = if is_over { seen.ends.end } else { seen.ends.visible };
            lag += end.saturating_sub(input.offset);
            if is_over && held.is_none() {
                held = Some(self.describe(desk, &at));
            }
        }
        let Some(is_new) = desk.is_behind(lag, held.as_deref()) else { return };
        let (stage, shard) = (desk.stage, desk.shard);
        match held {
            Some(why) if is_new => tracing::warn!(stage, shard, why, "shard is held back"),
            None if is_new => tracing::info!(stage, shard, "shard is not held back any more"),
            _ => {}
        }
        self.observer.input_lag(stage, shard, lag);
    }

    fn describe(&self, desk: &Desk, at: &TopicPartition) -> String {
        let Topics { actions, ingress, exchange, .. } = &self.topics;
        let id = |stage: &str| {
            let [first, second] = [0, 1].map(|slot| self.topics.transactional_id(stage, desk.shard, slot));
            format!("{first} or {second}")
        };
        let writer = match &at.topic {
            topic if topic == ingress => "another program, gateways open none".to_owned(),
            topic if topic == actions => id("unify"),
            topic if topic == exchange => {
                "a shard of the stage action, which ends it when it is opened: see to that one first".to_owned()
            }
            _ => id("action"),
        };
        // The same words each time: what is said anew is looked at anew.
        format!(
            "{at} is held back by a transaction that has been open for long (of {writer}) and that the brokers do not end; \
             `kafka-transactions.sh find-hanging` names it, `abort` ends it"
        )
    }
}

/// What is known of a partition now.
fn seen(before: &Looked, at: TopicPartition, ends: Ends, now_ms: u64) -> (TopicPartition, Seen) {
    let same = before.get(&at).filter(|before| before.ends.visible == ends.visible);
    let since_ms = same.and_then(|before| before.held_since_ms).unwrap_or(now_ms);
    (at, Seen { ends, held_since_ms: ends.is_held_back().then_some(since_ms) })
}

fn partition(position: &Position) -> TopicPartition {
    TopicPartition::new(position.topic.as_str(), position.partition)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::observe::Exports;
    use crate::telemetry::{Metrics, SpanExporter};
    use millstream_plan::status::{Role, ShardStatus};
    use millstream_plan::view::Duty;
    use millstream_shard::log::{Consumer, EachRead, LogError, Producer, Start, TopicSpec, Transactional, View};
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Ends of all partitions: what readers see, and what there is.
    #[derive(Default)]
    struct FakeLog {
        visible: AtomicU64,
        end: AtomicU64,
    }

    impl Log for FakeLog {
        fn bounds(&self, _: &TopicPartition) -> Result<(u64, u64), LogError> {
            Err(LogError::Configuration("not here".into()))
        }

        fn ends(&self, of: &[TopicPartition]) -> Result<Vec<Ends>, LogError> {
            let ends = Ends { visible: self.visible.load(Ordering::Relaxed), end: self.end.load(Ordering::Relaxed) };
            Ok(of.iter().map(|_| ends).collect())
        }

        fn create_topics(&self, _: &[TopicSpec]) -> Result<(), LogError> {
            Err(LogError::Configuration("not here".into()))
        }

        fn topic_id(&self, _: &str) -> Result<String, LogError> {
            Err(LogError::Configuration("not here".into()))
        }

        fn consumer(&self, _: &[(TopicPartition, Start)]) -> Result<Box<dyn Consumer>, LogError> {
            Err(LogError::Configuration("not here".into()))
        }

        fn read(&self, _: &[(TopicPartition, std::ops::Range<u64>)], _: View, _: EachRead<'_>) -> Result<(), LogError> {
            Err(LogError::Configuration("not here".into()))
        }

        fn producer(&self) -> Result<Box<dyn Producer>, LogError> {
            Err(LogError::Configuration("not here".into()))
        }

        fn transactional(&self, _: &str) -> Result<Box<dyn Transactional>, LogError> {
            Err(LogError::Configuration("not here".into()))
        }
    }

    #[derive(Default)]
    struct ManualClock(AtomicU64);

    impl Clock for ManualClock {
        fn now_ms(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }
    }

    struct Fixture {
        log: Arc<FakeLog>,
        clock: Arc<ManualClock>,
        desk: Arc<Desk>,
        metrics: Arc<Metrics>,
        watch: LagWatch,
        looked: Looked,
    }

    impl Fixture {
        /// An owner that has read `actions` of shard 2 up to 10.
        fn new() -> Fixture {
            let (log, clock) = (Arc::<FakeLog>::default(), Arc::<ManualClock>::default());
            let desk = Arc::new(Desk::new("action", 2, Duty::Own));
            let topics = Topics::new("p", 4, 1);
            desk.report(ShardStatus { role: Role::Owner, ..ShardStatus::default() });
            let position =
                Position { topic: topics.actions.to_string(), partition: 2, offset: 10, ..Position::default() };
            desk.note_passed(vec![position]);
            desk.polled(0);
            let metrics = Metrics::new([]);
            let watch = LagWatch {
                log: log.clone(),
                topics,
                desks: vec![desk.clone()],
                observer: Arc::new(Exports::new(metrics.clone(), SpanExporter::disabled())),
                longest: Duration::from_secs(30),
                clock: clock.clone(),
                stop: Arc::default(),
            };
            Fixture { log, clock, desk, metrics, watch, looked: Looked::new() }
        }

        /// What the shard says of itself when the ends are these.
        fn at(&mut self, seconds: u64, visible: u64, end: u64) -> (u64, String) {
            self.clock.0.store(seconds * 1000, Ordering::Relaxed);
            self.log.visible.store(visible, Ordering::Relaxed);
            self.log.end.store(end, Ordering::Relaxed);
            self.watch.look(&mut self.looked);
            let status = self.desk.status().unwrap();
            let line = format!("millstream_stage_input_lag{{stage=\"action\",shard=\"2\"}} {}", status.lag);
            assert!(self.metrics.render().contains(&line), "{line}");
            (status.lag, status.condition)
        }
    }

    fn nothing() -> String {
        String::new()
    }

    #[test]
    fn lag_is_what_readers_see_and_have_not_read() {
        let mut fixture = Fixture::new();
        assert_eq!(fixture.at(0, 10, 10), (0, nothing()));
        assert_eq!(fixture.at(5, 17, 20), (7, nothing()));
        fixture.desk.report(ShardStatus::default());
        fixture.desk.report(ShardStatus { role: Role::Owner, ..ShardStatus::default() });
        assert_eq!(fixture.desk.status().unwrap().lag, 0, "what an owner of before saw is over");
    }

    #[test]
    fn a_transaction_that_is_open_for_too_long_is_a_condition_and_lag() {
        let mut fixture = Fixture::new();
        assert_eq!(fixture.at(0, 10, 10), (0, nothing()));
        assert_eq!(fixture.at(100, 10, 10), (0, nothing()), "nothing came for long");
        assert_eq!(fixture.at(105, 10, 14), (0, nothing()), "it has just begun");
        assert_eq!(fixture.at(135, 10, 14), (0, nothing()), "it may take so long");
        let (lag, condition) = fixture.at(136, 10, 15);
        assert_eq!(lag, 5);
        assert!(condition.starts_with("p.g1.actions[2] is held back by a transaction"), "{condition}");
        assert!(condition.contains("(of p.g1.unify.2.0 or p.g1.unify.2.1)"), "{condition}");
        assert_eq!(fixture.at(140, 12, 16), (2, nothing()), "it was ended, and another one is open");
        assert_eq!(fixture.at(165, 12, 16), (2, nothing()));
        assert!(fixture.at(196, 12, 16).1.contains("is held back"), "for which the time began anew");
    }
}

//! How far the shards that this process owns are behind their inputs, how old what they have not processed is, and what holds one back without any error.
//!
//! **Age.** An input's *watermark* is a moment before which nothing was appended that is not processed; what is unread is at most as old as it. Two things raise it, and neither reads further:
//! that a look found the input read to its end (the moment *before* the end was asked for), and that a message was processed (its append time, for what follows it was appended later). Of
//! both the later counts, and it never goes back. Where everything is read, the age is 0, so that an idle shard stays at 0. Otherwise it is now less the watermark, never negative.
//!
//! - *Clocks.* Append times are the brokers' in `ingress`, the writers' elsewhere; now is this process's. One that is ahead counts as now, once.
//! - *A shard that was just opened* has a watermark when it has read everything, or when it has processed a message. Before, it is told what this process, or the former one of its name, knew of it when it owned it before; else
//!   the age is not known, which is not the same as 0.
//! - *Markers and aborted data at the end of the log* are passed by positions (`positions` of a consumer), so that they are no lag and have no age. What an open transaction holds back is no
//!   lag either, but the watermark stays where that began, and when it counts as lag (below), it is as old as that.
//! - *A log that does not answer* leaves nothing as read: ages grow from the watermark.
//! - *A shard that nobody owns* is not looked at. Who owned it last goes on reporting its watermark, open or not, in its last word, too, which stays in the log.
//!
//! **What may be lost.** Topics are asked how long they keep what is in them (`DescribeConfigs`, which a worker may in order to check them), and each of a shard's inputs is reported with that. Where a
//! topic deletes by size, or where it is not known how old what is unread is, it counts besides whether the position is in the oldest tenth of what a log that has already deleted still has. That such
//! a log is small and was read through before tells nothing; so what is younger than a minute is not counted.
//!
//! **What holds it back.**
//! A reader sees nothing at or behind the first open transaction of a partition. The brokers abort one that is open for longer than its time-out; where they do not
//! (they lost track of it, or another program writes there with a longer one), its readers wait for ever, and no call fails. So the end that readers see is
//! compared with the end that there is: a difference that stays while the former does not move, for longer than any transaction may take, is reported as the
//! shard's condition, and what lies behind it counts as lag.

use super::desk::{Behind, Desk};
use super::observe::Observer;
use super::system::Stop;
use millstream_plan::unread::{Kept, Unread};
use millstream_shard::Clock;
use millstream_shard::log::{Deletes, Ends, Log, TopicPartition};
use millstream_shard::topics::Topics;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// How often is looked.
const EVERY: Duration = Duration::from_secs(5);
/// How often is seen to whether somebody has become an owner, at whose inputs is looked at once.
const NOTICE: Duration = Duration::from_millis(500);
/// How often topics are asked how long they keep what is in them. People change that seldom, and in a hurry when they do.
const ASK_MS: u64 = 60_000;
/// Brokers look for transactions that are over time so often (their default).
const CLEANED_EVERY: Duration = Duration::from_secs(10);
/// What is younger is not near the beginning of a log that deletes by size: a log that was empty begins where it ends.
const YOUNG_MS: u64 = 60_000;
/// The part of a log that counts as its beginning: a tenth.
const BEGINNING: u64 = 10;

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

/// What is known for good of an input: what was appended before the watermark was processed.
#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    watermark_ms: Option<u64>,
    /// What its reader said last of the append time of what it has processed, so that one that lies in the future counts once, as now.
    processed_ms: Option<u64>,
}

/// What was seen.
#[derive(Default)]
struct Looked {
    /// Of the inputs of the shards that are owned.
    seen: BTreeMap<TopicPartition, Seen>,
    /// It was seen just now.
    is_fresh: bool,
    /// Of all that were ever owned.
    marks: BTreeMap<TopicPartition, Mark>,
    /// What each topic deletes, as far as it is known.
    deletes: BTreeMap<Arc<str>, Deletes>,
    /// When all of them were asked.
    asked_ms: Option<u64>,
}

/// An owner, and its inputs: where it reads on, and when what it has processed last was appended.
type Owner<'a> = (&'a Desk, Vec<(TopicPartition, u64, Option<u64>)>);

/// One input of a shard, looked at.
struct Looking {
    unread: u64,
    /// Is it held back for too long?
    is_held: bool,
    found: Unread,
}

impl LagWatch {
    /// Starts the thread that looks now and then.
    ///
    /// # Errors
    /// When no thread can be had.
    pub(super) fn start(self) -> std::io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name("lag".into()).spawn(move || {
            let (mut looked, mut waited) = (Looked::default(), Duration::ZERO);
            while !self.stop.wait(NOTICE) {
                waited += NOTICE;
                if waited >= EVERY || self.desks.iter().any(|desk| desk.is_unmeasured()) {
                    waited = Duration::ZERO;
                    self.look(&mut looked);
                }
            }
        })
    }

    fn look(&self, looked: &mut Looked) {
        let owners: Vec<Owner<'_>> = self.desks.iter().filter_map(|desk| owner(desk)).collect();
        let partitions: BTreeSet<TopicPartition> =
            owners.iter().flat_map(|(_, inputs)| inputs).map(|(at, _, _)| at.clone()).collect();
        let partitions: Vec<TopicPartition> = partitions.into_iter().collect();
        // What is read by now to an end that is asked for later was read by now.
        let before_ms = self.clock.now_ms();
        let ends = self.log.ends(&partitions);
        looked.is_fresh = ends.is_ok();
        match ends {
            Ok(ends) => {
                let ends = partitions.iter().zip(ends);
                looked.seen = ends.map(|(at, ends)| seen(looked.seen.get(at), at, ends, before_ms)).collect();
                self.ask(looked, &partitions, before_ms);
            }
            // What there is to say about a log that is away, the shards' threads say. What is unread gets older all the same.
            Err(error) => tracing::debug!(%error, "the ends of inputs are not known"),
        }
        for (desk, inputs) in owners {
            self.tell(desk, &inputs, looked, before_ms);
        }
    }

    /// Asks what topics delete, now and then. While one does not say, what it said last counts.
    fn ask(&self, looked: &mut Looked, partitions: &[TopicPartition], now_ms: u64) {
        let is_over = looked.asked_ms.is_none_or(|asked_ms| now_ms.saturating_sub(asked_ms) >= ASK_MS);
        let topics: BTreeSet<&Arc<str>> = partitions.iter().map(|at| &at.topic).collect();
        let asked = topics.into_iter().filter(|topic| is_over || !looked.deletes.contains_key(*topic));
        for topic in asked.collect::<Vec<_>>() {
            match self.log.deletes(topic) {
                Ok(deletes) => drop(looked.deletes.insert(topic.clone(), deletes)),
                Err(error) => tracing::debug!(%error, %topic, "it is not known how long a topic keeps what is in it"),
            }
        }
        if is_over {
            looked.asked_ms = Some(now_ms);
        }
    }

    /// Tells how many messages a shard has not read, how old they are, and what holds it back.
    fn tell(&self, desk: &Desk, inputs: &[(TopicPartition, u64, Option<u64>)], looked: &mut Looked, before_ms: u64) {
        let inputs: Vec<(&TopicPartition, Looking)> = inputs
            .iter()
            .map(|(at, offset, processed_ms)| {
                looked.knew(at, desk);
                (at, self.input(at, *offset, *processed_ms, looked, before_ms))
            })
            .collect();
        let lag = looked.is_fresh.then(|| inputs.iter().map(|(_, input)| input.unread).sum());
        let held = inputs.iter().find(|(_, input)| input.is_held).map(|(at, _)| self.describe(desk, at));
        let unread_ms = inputs
            .iter()
            .map(|(_, input)| input.found.age_ms)
            .try_fold(None, |oldest: Option<u64>, age_ms| Some(oldest.max(Some(age_ms?))));
        let unread_ms = unread_ms.flatten();
        let found = inputs.into_iter().map(|(_, input)| input.found).collect();
        let behind = Behind { lag, unread_ms, held_back: held };
        let (stage, shard) = (desk.stage, desk.shard);
        let why = behind.held_back.clone();
        let Some(is_new) = desk.is_behind(behind, found) else { return };
        match why {
            Some(why) if is_new => tracing::warn!(stage, shard, why, "shard is held back"),
            None if is_new => tracing::info!(stage, shard, "shard is not held back any more"),
            _ => {}
        }
        if let Some(lag) = lag {
            self.observer.input_lag(stage, shard, lag);
        }
        self.observer.unread(stage, shard, unread_ms);
    }

    /// Looks at one input of a shard that reads on at an offset.
    fn input(
        &self,
        at: &TopicPartition,
        offset: u64,
        processed_ms: Option<u64>,
        looked: &mut Looked,
        before_ms: u64,
    ) -> Looking {
        let now_ms = self.clock.now_ms();
        let mark = looked.marks.entry(at.clone()).or_default();
        mark.processed(processed_ms, before_ms);
        let (mut unread, mut is_held) = (None, false);
        if let Some(seen) = looked.seen.get(at).filter(|_| looked.is_fresh) {
            let held_ms = seen.held_since_ms.map_or(0, |since_ms| before_ms.saturating_sub(since_ms));
            is_held = u128::from(held_ms) > self.longest.as_millis();
            // Once it is held back for too long, all of it counts.
            let end = if is_held { seen.ends.end } else { seen.ends.visible };
            unread = Some(end.saturating_sub(offset));
            if offset >= seen.ends.visible {
                mark.raise(seen.held_since_ms.unwrap_or(before_ms));
            }
        }
        let age_ms = match unread {
            Some(0) => Some(0),
            _ => mark.watermark_ms.map(|since_ms| now_ms.saturating_sub(since_ms)),
        };
        let deletes = looked.deletes.get(&at.topic).copied();
        let kept = deletes.map(|deletes| deletes.after_ms.map_or(Kept::ForEver, Kept::For));
        let may_go = unread.is_some_and(|unread| unread > 0) && may_go_unseen(deletes, age_ms);
        let near_start = may_go && self.is_near_start(at, offset, age_ms);
        let found = Unread { topic: at.topic.to_string(), watermark_ms: mark.watermark_ms, age_ms, kept, near_start };
        Looking { unread: unread.unwrap_or(0), is_held, found }
    }

    /// Has the log deleted already, and would what is read at this offset be among the next to go?
    fn is_near_start(&self, at: &TopicPartition, offset: u64, age_ms: Option<u64>) -> bool {
        let Ok((start, end)) = self.log.bounds(at) else { return false };
        let is_old = age_ms.is_none_or(|age_ms| age_ms > YOUNG_MS);
        start > 0 && is_old && offset.saturating_sub(start) < end.saturating_sub(start).div_ceil(BEGINNING)
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

impl Looked {
    /// What the former process of this name knew of an input stays known.
    fn knew(&mut self, at: &TopicPartition, desk: &Desk) {
        let mark = self.marks.entry(at.clone()).or_default();
        if mark.watermark_ms.is_none() {
            let known = desk.known().into_iter().find(|known| *known.topic == *at.topic);
            mark.watermark_ms = known.and_then(|known| known.watermark_ms);
        }
    }
}

impl Mark {
    /// Everything that was appended before this moment was processed, for good.
    fn raise(&mut self, to_ms: u64) {
        self.watermark_ms = self.watermark_ms.max(Some(to_ms));
    }

    /// The newest message that was processed was appended at this moment, by a clock that may be ahead of ours.
    fn processed(&mut self, processed_ms: Option<u64>, now_ms: u64) {
        let is_new = self.processed_ms != processed_ms;
        self.processed_ms = processed_ms;
        if let Some(processed_ms) = processed_ms.filter(|_| is_new) {
            self.raise(processed_ms.min(now_ms));
        }
    }
}

/// May what is unread be deleted however old it is, or is it not known how old it is, in a topic that deletes?
fn may_go_unseen(deletes: Option<Deletes>, age_ms: Option<u64>) -> bool {
    deletes.is_some_and(|deletes| deletes.beyond_bytes.is_some() || (deletes.after_ms.is_some() && age_ms.is_none()))
}

fn owner(desk: &Arc<Desk>) -> Option<Owner<'_>> {
    let inputs = desk.reads_from()?.into_iter().map(|(position, processed_ms)| {
        (TopicPartition::new(position.topic.as_str(), position.partition), position.offset, processed_ms)
    });
    Some((desk, inputs.collect()))
}

/// What is known of a partition now.
fn seen(before: Option<&Seen>, at: &TopicPartition, ends: Ends, now_ms: u64) -> (TopicPartition, Seen) {
    let same = before.filter(|before| before.ends.visible == ends.visible);
    let since_ms = same.and_then(|before| before.held_since_ms).unwrap_or(now_ms);
    (at.clone(), Seen { ends, held_since_ms: ends.is_held_back().then_some(since_ms) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::observe::Exports;
    use crate::telemetry::{Metrics, SpanExporter};
    use millstream_model::proto::Position;
    use millstream_plan::status::{Role, ShardStatus};
    use millstream_plan::unread::Danger;
    use millstream_plan::view::Duty;
    use millstream_shard::log::{Consumer, EachRead, LogError, Producer, Start, TopicSpec, Transactional, View};
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    /// Of all partitions: where they begin, what readers see, and what there is.
    #[derive(Default)]
    struct FakeLog {
        start: AtomicU64,
        visible: AtomicU64,
        end: AtomicU64,
        is_away: AtomicBool,
        /// `None`: it may not be asked.
        deletes: Mutex<Option<Deletes>>,
        asked: AtomicU64,
    }

    impl Log for FakeLog {
        fn trim(&self, _: &TopicPartition, _: u64) -> Result<(), LogError> {
            Err(LogError::Configuration("not here".into()))
        }

        fn bounds(&self, _: &TopicPartition) -> Result<(u64, u64), LogError> {
            Ok((self.start.load(Ordering::Relaxed), self.visible.load(Ordering::Relaxed)))
        }

        fn deletes(&self, _: &str) -> Result<Deletes, LogError> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            self.deletes.lock().unwrap().ok_or_else(|| LogError::Unavailable("not allowed".into()))
        }

        fn ends(&self, of: &[TopicPartition]) -> Result<Vec<Ends>, LogError> {
            if self.is_away.load(Ordering::Relaxed) {
                return Err(LogError::Unavailable("no broker".into()));
            }
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
            Fixture { log, clock, desk, metrics, watch, looked: Looked::default() }
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

    impl Fixture {
        /// How old what the shard has not processed is.
        fn age_at(&mut self, seconds: u64, visible: u64) -> Option<u64> {
            self.at(seconds, visible, visible);
            let unread_ms = self.desk.status().unwrap().unread_ms;
            let rendered = self.metrics.render();
            let shown = rendered.lines().find_map(|line| line.strip_prefix("millstream_stage_unread_seconds{"));
            let expected = unread_ms.map(|ms| format!("stage=\"action\",shard=\"2\"}} {:?}", ms as f64 / 1_000.0));
            assert_eq!(shown, expected.as_deref());
            unread_ms
        }

        /// The shard reads on at an offset; the newest message that it has processed was appended then.
        fn processes(&self, offset: u64, appended_ms: u64) {
            let topic = self.watch.topics.actions.to_string();
            self.desk.note_passed(vec![Position { topic, partition: 2, offset, ..Position::default() }]);
            self.desk.note_processed(vec![Some(appended_ms)]);
        }

        fn deletes(&self, after_ms: Option<u64>, beyond_bytes: Option<u64>) {
            *self.log.deletes.lock().unwrap() = Some(Deletes { after_ms, beyond_bytes });
        }

        /// Of the input that it has.
        fn unread(&self) -> Unread {
            self.desk.status().unwrap().unread.remove(0)
        }

        fn danger(&self) -> Danger {
            self.unread().danger(self.clock.now_ms())
        }
    }

    #[test]
    fn what_is_unread_is_as_old_as_the_last_look_that_found_nothing_or_the_last_message_processed() {
        let mut fixture = Fixture::new();
        assert_eq!([100, 5_000].map(|seconds| fixture.age_at(seconds, 10)), [Some(0); 2], "an idle shard");
        assert_eq!([5_005, 5_010].map(|seconds| fixture.age_at(seconds, 17)), [Some(5_000), Some(10_000)]);
        fixture.processes(12, 5_008_000);
        assert_eq!(fixture.age_at(5_012, 17), Some(4_000), "what follows it came later");
        fixture.processes(13, 5_001_000);
        assert_eq!(
            fixture.age_at(5_013, 17),
            Some(5_000),
            "what was known stays known, whatever a writer's clock says"
        );
        fixture.processes(17, 5_008_000);
        assert_eq!(fixture.age_at(5_015, 17), Some(0));
        assert_eq!(fixture.age_at(5_000, 19), Some(0), "a clock that is set back makes nothing younger than new");
    }

    #[test]
    fn markers_at_the_end_are_passed_without_a_message() {
        let mut fixture = Fixture::new();
        fixture.age_at(100, 10);
        let topic = fixture.watch.topics.actions.to_string();
        let passed = Position { topic, partition: 2, offset: 12, ..Position::default() };
        fixture.desk.note_reads_from(vec![passed]);
        assert_eq!(fixture.age_at(200, 12), Some(0));
    }

    #[test]
    fn a_shard_that_was_just_opened_does_not_know_how_old_a_backlog_is() {
        let mut fixture = Fixture::new();
        assert!(fixture.desk.is_unmeasured());
        assert_eq!(fixture.age_at(100, 17), None);
        assert!(!fixture.desk.is_unmeasured());
        fixture.processes(11, 40_000);
        assert_eq!(fixture.age_at(105, 17), Some(65_000));
    }

    #[test]
    fn a_message_from_the_future_is_from_now_and_gets_older() {
        let mut fixture = Fixture::new();
        fixture.processes(11, 900_000);
        assert_eq!([100, 130].map(|seconds| fixture.age_at(seconds, 17)), [Some(0), Some(30_000)]);
    }

    #[test]
    fn what_is_unread_gets_older_while_the_log_does_not_answer() {
        let mut fixture = Fixture::new();
        fixture.age_at(100, 10);
        fixture.log.is_away.store(true, Ordering::Relaxed);
        assert_eq!(fixture.age_at(130, 10), Some(30_000), "nobody knows that nothing has come");
        fixture.log.is_away.store(false, Ordering::Relaxed);
        assert_eq!(fixture.age_at(131, 10), Some(0));
    }

    #[test]
    fn what_is_held_back_for_too_long_is_as_old_as_what_holds_it() {
        let mut fixture = Fixture::new();
        fixture.at(100, 10, 10);
        fixture.at(105, 10, 14);
        assert_eq!(fixture.desk.status().unwrap().unread_ms, Some(0), "it is in no log yet");
        fixture.at(136, 10, 15);
        assert_eq!(fixture.desk.status().unwrap().unread_ms, Some(31_000));
        fixture.log.is_away.store(true, Ordering::Relaxed);
        assert!(fixture.at(140, 10, 15).1.contains("is held back"), "a log that is away ends no transaction");
    }

    #[test]
    fn what_was_processed_stays_known_when_the_shard_is_lost() {
        let mut fixture = Fixture::new();
        fixture.deletes(Some(60_000), None);
        fixture.age_at(100, 10);
        fixture.desk.report(ShardStatus::default());
        let status = fixture.desk.status().unwrap();
        let kept = Some(Kept::For(60_000));
        let topic = fixture.watch.topics.actions.to_string();
        let expected = Unread { topic, watermark_ms: Some(100_000), age_ms: None, kept, near_start: false };
        assert_eq!((status.unread_ms, status.unread), (None, vec![expected]));
        assert_eq!([130_000, 130_001].map(|now_ms| fixture.unread().danger(now_ms)), [Danger::None, Danger::Near]);
        fixture.desk.report(ShardStatus { role: Role::Owner, ..ShardStatus::default() });
        assert!(fixture.desk.is_unmeasured());
        assert_eq!(fixture.age_at(120, 17), Some(20_000), "it is known how far it was");
    }

    #[test]
    fn what_the_former_process_knew_counts_until_more_is_known() {
        let mut fixture = Fixture::new();
        let topic = fixture.watch.topics.actions.to_string();
        let known = |watermark_ms| Unread { topic: topic.clone(), watermark_ms, ..Unread::default() };
        fixture.desk.was_known(vec![Unread::default(), known(Some(100_000))]);
        assert_eq!(fixture.age_at(120, 17), Some(20_000));
        let watermarks = || fixture.desk.known().into_iter().map(|known| known.watermark_ms).collect::<Vec<_>>();
        assert_eq!(watermarks(), [Some(100_000)], "of the inputs that it has");
        fixture.desk.was_known(vec![known(Some(1))]);
        assert_eq!(watermarks(), [Some(100_000)], "this one knows more");
    }

    #[test]
    fn topics_are_asked_now_and_then_how_long_they_keep_what_is_in_them() {
        let mut fixture = Fixture::new();
        let asked = |fixture: &Fixture| fixture.log.asked.load(Ordering::Relaxed);
        fixture.age_at(100, 10);
        assert_eq!(fixture.danger(), Danger::None, "nothing is left to lose");
        fixture.age_at(105, 17);
        assert_eq!((fixture.danger(), asked(&fixture)), (Danger::Unknown, 2), "asked again until it answers");
        fixture.deletes(Some(30_000), None);
        fixture.age_at(110, 17);
        assert_eq!((fixture.danger(), asked(&fixture)), (Danger::None, 3));
        fixture.age_at(115, 17);
        fixture.age_at(116, 17);
        assert_eq!((fixture.danger(), asked(&fixture)), (Danger::Near, 3), "16 s of 30");
        fixture.deletes(Some(3_600_000), None);
        fixture.age_at(160, 17);
        assert_eq!((fixture.danger(), asked(&fixture)), (Danger::None, 4), "a person has raised it");
        *fixture.log.deletes.lock().unwrap() = None;
        fixture.age_at(230, 17);
        assert_eq!((fixture.danger(), asked(&fixture)), (Danger::None, 5), "what it said last counts");
    }

    #[test]
    fn the_beginning_of_a_log_that_deletes_by_size_is_dangerous() {
        let near = |start: u64, visible: u64, seconds: u64, bytes: Option<u64>| {
            let mut fixture = Fixture::new();
            fixture.deletes(Some(u64::MAX), bytes);
            fixture.log.start.store(start, Ordering::Relaxed);
            fixture.age_at(100, 10);
            fixture.age_at(100 + seconds, visible);
            fixture.danger() == Danger::Near
        };
        assert!(near(9, 30, 61, Some(1_000)));
        assert!(!near(7, 30, 61, Some(1_000)), "a tenth lies before it");
        assert!(!near(0, 1_000, 61, Some(1_000)), "nothing was deleted yet");
        assert!(!near(9, 30, 60, Some(1_000)), "the log was read through a minute ago");
        assert!(!near(9, 30, 61, None), "it deletes by age only, and that is known");
        assert!(!near(9, 10, 61, Some(1_000)), "everything is read");
        let mut opened = Fixture::new();
        opened.deletes(Some(u64::MAX), None);
        opened.log.start.store(9, Ordering::Relaxed);
        opened.age_at(100, 30);
        assert_eq!(opened.danger(), Danger::Near, "it is not known how old it is");
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

//! What the embedded log forgets: messages of a certain age, but never what is still to be read.
//!
//! **I6**: a partition is trimmed up to the position that its reader has committed, and no further; whose position is not known is not trimmed. Each of `ingress`,
//! `actions`, `exchange` and `mutations` has one reader, the shard of that number; `events` and `rejects` have none in here. Changelogs are left alone: an
//! empty disk is filled from them, unless there are checkpoints, which trim them. Kafka has a retention of its own, which is the operator's business.

use super::desk::Desk;
use super::system::Stop;
use millstream_shard::Clock;
use millstream_shard::log::{Log, LogError, Start, TopicPartition};
use millstream_shard::topics::Topics;
use millstream_stores::embedded::log::EmbeddedLog;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// How often is looked for what can go.
const EVERY: Duration = Duration::from_secs(60);

/// Trims the embedded log.
pub(super) struct Retention {
    /// The log.
    pub(super) log: Arc<EmbeddedLog>,
    /// The pipeline's topics.
    pub(super) topics: Topics,
    /// Who knows how far the shards have read.
    pub(super) desks: Vec<Arc<Desk>>,
    /// What is older goes.
    pub(super) keep: Duration,
    /// Now.
    pub(super) clock: Arc<dyn Clock>,
    /// When to end.
    pub(super) stop: Arc<Stop>,
}

impl Retention {
    /// Starts the thread that does it now and then.
    ///
    /// # Errors
    /// When no thread can be had.
    pub(super) fn start(self) -> std::io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name("retention".into()).spawn(move || {
            while !self.stop.wait(EVERY) {
                self.trim();
            }
        })
    }

    /// Trims every partition.
    fn trim(&self) {
        let Topics { ingress, actions, exchange, mutations, events, rejects, .. } = &self.topics;
        for topic in [ingress, actions, exchange, mutations, events, rejects] {
            for partition in 0..self.topics.shards {
                let at = TopicPartition::new(topic.clone(), partition);
                if let Err(error) = self.trim_partition(&at, [events, rejects].contains(&topic)) {
                    tracing::warn!(%at, %error, "old messages stay");
                }
            }
        }
    }

    fn trim_partition(&self, at: &TopicPartition, is_public: bool) -> Result<(), LogError> {
        let (start, end) = self.log.bounds(at)?;
        let read = if is_public { Some(end) } else { self.read(at)? };
        let Some(read) = read.filter(|read| *read > start) else { return Ok(()) };
        let keep_ms = u64::try_from(self.keep.as_millis()).unwrap_or(u64::MAX);
        let before_ms = self.clock.now_ms().saturating_sub(keep_ms);
        let before = self.first_since(at, (start, read), before_ms)?;
        if before > start {
            self.log.trim(at, before)?;
            tracing::debug!(%at, from = start, to = before, "old messages are gone");
        }
        Ok(())
    }

    /// How far the reader of a partition has committed.
    fn read(&self, at: &TopicPartition) -> Result<Option<u64>, LogError> {
        let topic_id = self.log.topic_id(&at.topic)?;
        let passed = self.desks.iter().filter(|desk| desk.shard == at.partition).flat_map(|desk| desk.passed());
        let mut here = passed.filter(|position| {
            *position.topic == *at.topic && position.partition == at.partition && position.topic_id == topic_id
        });
        Ok(here.next().map(|position| position.offset))
    }

    /// The first offset in a range that is not older, or the range's end. Times never go back but by what clocks are set back.
    fn first_since(&self, at: &TopicPartition, (start, end): (u64, u64), before_ms: u64) -> Result<u64, LogError> {
        let (mut low, mut high) = (start, end);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.message_at(at, middle)?.filter(|(offset, _)| *offset < high) {
                Some((offset, time_ms)) if time_ms < before_ms => low = offset + 1,
                _ => high = middle,
            }
        }
        Ok(low)
    }

    /// Offset and time of the first message at or behind an offset.
    fn message_at(&self, at: &TopicPartition, offset: u64) -> Result<Option<(u64, u64)>, LogError> {
        let mut consumer = self.log.consumer(&[(at.clone(), Start::At(offset))])?;
        let mut found = None;
        consumer.poll(1, Duration::ZERO, &mut |message| found = Some((message.offset, message.timestamp_ms)))?;
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_model::proto::Position;
    use millstream_plan::view::Duty;
    use millstream_shard::log::Outgoing;
    use millstream_stores::embedded::log::LogOptions;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc::channel;

    const DAY_MS: u64 = 86_400_000;

    struct ManualClock(AtomicU64);

    impl Clock for ManualClock {
        fn now_ms(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }
    }

    struct Fixture {
        clock: Arc<ManualClock>,
        desk: Arc<Desk>,
        retention: Retention,
        _folder: tempfile::TempDir,
    }

    impl Fixture {
        /// One message per day in each topic, the first one ten days ago.
        fn new() -> Fixture {
            let folder = tempfile::tempdir().unwrap();
            let clock = Arc::new(ManualClock(AtomicU64::new(100 * DAY_MS)));
            let log = Arc::new(EmbeddedLog::open(folder.path(), LogOptions::default(), clock.clone()).unwrap());
            let topics = Topics::new("t", 1, 1);
            log.create_topics(&topics.specs()).unwrap();
            let desk = Arc::new(Desk::new("unify", 0, Duty::Own));
            let retention = Retention {
                log,
                topics,
                desks: vec![desk.clone()],
                keep: Duration::from_millis(3 * DAY_MS),
                clock: clock.clone(),
                stop: Arc::default(),
            };
            let fixture = Fixture { clock, desk, retention, _folder: folder };
            for _ in 0..10 {
                let topics = fixture.retention.topics.clone();
                for topic in [&topics.ingress, &topics.events, &topics.changelog("unify")] {
                    fixture.send(topic);
                }
                fixture.clock.0.fetch_add(DAY_MS, Ordering::Relaxed);
            }
            fixture
        }

        fn send(&self, topic: &str) {
            let (done, sent) = channel();
            let message = Outgoing { topic, partition: 0, key: &[], payload: b"x", headers: &[] };
            let producer = self.retention.log.producer().unwrap();
            producer.send(message, Box::new(move |result| done.send(result).unwrap()));
            sent.recv().unwrap().unwrap();
        }

        fn start(&self, topic: &str) -> u64 {
            self.retention.trim();
            self.retention.log.bounds(&TopicPartition::new(topic, 0)).unwrap().0
        }

        fn passed(&self, offset: u64, topic_id: &str) {
            let topic = self.retention.topics.ingress.to_string();
            self.desk.note_passed(vec![Position { topic, partition: 0, offset, topic_id: topic_id.to_owned() }]);
        }
    }

    #[test]
    fn what_is_old_goes_and_changelogs_stay_whole() {
        let fixture = Fixture::new();
        let topics = fixture.retention.topics.clone();
        assert_eq!(fixture.start(&topics.events), 7, "three days are left");
        assert_eq!(fixture.start(&topics.changelog("unify")), 0);
        fixture.clock.0.fetch_add(DAY_MS, Ordering::Relaxed);
        assert_eq!(fixture.start(&topics.events), 8);
        fixture.clock.0.fetch_add(30 * DAY_MS, Ordering::Relaxed);
        assert_eq!(fixture.start(&topics.events), 10, "all of it, at last");
    }

    #[test]
    fn what_a_shard_has_not_committed_stays_however_old_it_is() {
        let fixture = Fixture::new();
        let topics = fixture.retention.topics.clone();
        assert_eq!(fixture.start(&topics.ingress), 0, "nothing is known of its reader");
        let topic_id = fixture.retention.log.topic_id(&topics.ingress).unwrap();
        fixture.passed(9, "another topic of that name");
        assert_eq!(fixture.start(&topics.ingress), 0);
        fixture.passed(4, &topic_id);
        assert_eq!(fixture.start(&topics.ingress), 4);
        fixture.passed(9, &topic_id);
        assert_eq!(fixture.start(&topics.ingress), 7);
    }
}

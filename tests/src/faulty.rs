//! A log whose commits can fail in the two ways that matter: reported as unknown although they took hold, or because they did not. Whose brokers' clocks can be set back, and whose readers can go
//! deaf.

use millstream_shard::log::{
    Consumer, Deletes, EachRead, Ends, Log, LogError, Message, Outgoing, Producer, Start, TopicPartition, TopicSpec,
    Transactional, View,
};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What the next commits do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing goes wrong.
    None,
    /// The commit takes hold, but its client is told that it is not known.
    CommittedUnknown,
    /// The commit does not take hold, and its client is told that it is not known.
    LostUnknown,
}

/// The commits to come; after the last one, nothing goes wrong.
#[derive(Clone, Default)]
pub struct Faults(Arc<Mutex<VecDeque<Fault>>>);

impl Faults {
    /// Adds what the next commits do.
    pub fn plan(&self, faults: impl IntoIterator<Item = Fault>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(faults);
    }

    fn next(&self) -> Fault {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front().unwrap_or(Fault::None)
    }

    /// Faults that have not come yet.
    pub fn left(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// A log with planned faults.
pub struct FaultyLog {
    /// The real one.
    pub inner: Arc<dyn Log>,
    /// The plan.
    pub faults: Faults,
    /// By so much append times are earlier than the real log says, milliseconds: it alone never lets them go back.
    pub behind_ms: Arc<AtomicU64>,
    /// Which of its readers hear nothing.
    pub deaf: Deafness,
}

/// Readers that hear nothing, and raise no error, from some moment on.
#[derive(Clone, Default)]
pub struct Deafness(Arc<Mutex<Deaf>>);

#[derive(Default)]
struct Deaf {
    /// Readers that were opened so far.
    opened: u64,
    /// Those hear nothing that were opened before so many were.
    before: u64,
    /// Of this topic; of all.
    topic: Option<String>,
    refuses: bool,
}

impl Deafness {
    /// All readers that are open hear nothing any more of this topic, or of any.
    pub fn deafen(&self, topic: Option<&str>) {
        let mut deaf = self.lock();
        (deaf.before, deaf.topic) = (deaf.opened, topic.map(str::to_owned));
    }

    /// Whether no reader can be opened.
    pub fn refuse(&self, refuses: bool) {
        self.lock().refuses = refuses;
    }

    fn opens(&self) -> Result<u64, LogError> {
        let mut deaf = self.lock();
        if deaf.refuses {
            return Err(LogError::Unavailable("no reader can be had".to_owned()));
        }
        deaf.opened += 1;
        Ok(deaf.opened - 1)
    }

    fn is_deaf(&self, reader: u64, at: &TopicPartition) -> bool {
        let deaf = self.lock();
        reader < deaf.before && deaf.topic.as_ref().is_none_or(|topic| *topic == *at.topic)
    }

    fn lock(&self) -> MutexGuard<'_, Deaf> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log for FaultyLog {
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
        self.inner.ends(of)
    }
    fn deletes(&self, topic: &str) -> Result<Deletes, LogError> {
        self.inner.deletes(topic)
    }
    fn consumer(&self, assignments: &[(TopicPartition, Start)]) -> Result<Box<dyn Consumer>, LogError> {
        let inner = self.inner.consumer(assignments)?;
        let partitions: Vec<TopicPartition> = assignments.iter().map(|(at, _)| at.clone()).collect();
        let stuck = vec![None; partitions.len()];
        let (ms, number, deaf) = (self.behind_ms.clone(), self.deaf.opens()?, self.deaf.clone());
        Ok(Box::new(Reader { inner, partitions, stuck, ms, number, deaf }))
    }
    fn read(&self, of: &[(TopicPartition, Range<u64>)], view: View, each: EachRead<'_>) -> Result<(), LogError> {
        self.inner.read(of, view, each)
    }
    fn producer(&self) -> Result<Box<dyn Producer>, LogError> {
        self.inner.producer()
    }
    fn transactional(&self, id: &str) -> Result<Box<dyn Transactional>, LogError> {
        let inner = self.inner.transactional(id)?;
        Ok(Box::new(FaultyTransactional { inner, faults: self.faults.clone() }))
    }
}

struct Reader {
    inner: Box<dyn Consumer>,
    partitions: Vec<TopicPartition>,
    /// Where those stand of which nothing is heard any more.
    stuck: Vec<Option<u64>>,
    ms: Arc<AtomicU64>,
    number: u64,
    deaf: Deafness,
}

impl Consumer for Reader {
    fn poll(&mut self, max: usize, timeout: Duration, each: &mut dyn FnMut(Message<'_>)) -> Result<usize, LogError> {
        for ((at, stuck), position) in self.partitions.iter().zip(&mut self.stuck).zip(self.inner.positions()) {
            if stuck.is_none() && self.deaf.is_deaf(self.number, at) {
                *stuck = Some(position);
            }
        }
        let (ms, stuck, mut heard) = (self.ms.load(Ordering::Relaxed), &self.stuck, 0);
        self.inner.poll(max, timeout, &mut |message| {
            if stuck.get(message.assignment).is_some_and(Option::is_none) {
                heard += 1;
                each(Message { timestamp_ms: message.timestamp_ms.saturating_sub(ms), ..message });
            }
        })?;
        Ok(heard)
    }
    fn positions(&self) -> Vec<u64> {
        let positions = self.inner.positions().into_iter().zip(&self.stuck);
        positions.map(|(position, stuck)| stuck.unwrap_or(position)).collect()
    }
}

struct FaultyTransactional {
    inner: Box<dyn Transactional>,
    faults: Faults,
}

impl Transactional for FaultyTransactional {
    fn begin(&mut self) -> Result<(), LogError> {
        self.inner.begin()
    }
    fn send(&mut self, message: Outgoing<'_>) -> Result<(), LogError> {
        self.inner.send(message)
    }
    fn commit(&mut self) -> Result<(), LogError> {
        let unknown = || Err(LogError::Unknown("planned fault".into()));
        match self.faults.next() {
            Fault::None => self.inner.commit(),
            Fault::CommittedUnknown => self.inner.commit().and_then(|()| unknown()),
            Fault::LostUnknown => unknown(),
        }
    }
    fn abort(&mut self) -> Result<(), LogError> {
        self.inner.abort()
    }
}

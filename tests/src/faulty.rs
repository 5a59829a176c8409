//! A log whose commits can fail in the two ways that matter: reported as unknown although they took hold, or because they did not. Whose brokers' clocks can be set back, and whose readers can go
//! deaf.

use millstream_shard::log::{
    Consumer, Deletes, EachRead, Ends, Log, LogError, Message, Outgoing, Producer, Start, TopicPartition, TopicSpec,
    Transactional, View,
};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
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
    /// Of the readers that were opened so far, those hear nothing any more that were opened before so many were.
    pub deaf: Deafness,
}

/// Readers that hear nothing, and raise no error, from some moment on.
#[derive(Clone, Default)]
pub struct Deafness {
    opened: Arc<AtomicU64>,
    deaf: Arc<AtomicU64>,
}

impl Deafness {
    /// All readers that are open hear nothing any more.
    pub fn deafen(&self) {
        self.deaf.store(self.opened.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// How many readers were opened.
    pub fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }
}

impl Log for FaultyLog {
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
        let number = self.deaf.opened.fetch_add(1, Ordering::Relaxed);
        let (inner, ms, deaf) = (self.inner.consumer(assignments)?, self.behind_ms.clone(), self.deaf.deaf.clone());
        Ok(Box::new(Reader { inner, ms, number, deaf }))
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
    ms: Arc<AtomicU64>,
    number: u64,
    deaf: Arc<AtomicU64>,
}

impl Consumer for Reader {
    fn poll(&mut self, max: usize, timeout: Duration, each: &mut dyn FnMut(Message<'_>)) -> Result<usize, LogError> {
        if self.number < self.deaf.load(Ordering::Relaxed) {
            return Ok(0);
        }
        let ms = self.ms.load(Ordering::Relaxed);
        self.inner.poll(max, timeout, &mut |message| {
            each(Message { timestamp_ms: message.timestamp_ms.saturating_sub(ms), ..message });
        })
    }
    fn positions(&self) -> Vec<u64> {
        self.inner.positions()
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

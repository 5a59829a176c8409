//! The partitioned log: what Millstream needs of Kafka, as a trait.
//!
//! Contract, checked by one conformance suite on every implementation:
//! - A partition is a sequence of messages with ascending offsets (gaps are allowed: control records, aborted data).
//! - **Transactions.** What a transactional producer sends becomes visible to readers all at once when it commits, in all partitions, or
//!   never. Readers are read-committed: they never see aborted data, nor anything at or behind the first open transaction of a partition.
//! - **Fencing.** [`Log::transactional`] with an id ends the open transaction of the id's former producer (it is aborted, unless its commit
//!   already took hold) before it returns; the former producer can commit nothing any more. This is the only lock there is (I4).
//! - **Durability.** A commit, or a send that was acknowledged, survives `kill -9` of any process of ours.
//! - **No silent jumps.** Reading from an offset below the log's start or above its end is [`LogError::OutOfRange`], never a reset (I6).

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// A topic's partition.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// Topic name.
    pub topic: Arc<str>,
    /// Partition number.
    pub partition: u32,
}

impl TopicPartition {
    /// A partition of a topic.
    pub fn new(topic: impl Into<Arc<str>>, partition: u32) -> TopicPartition {
        TopicPartition { topic: topic.into(), partition }
    }
}

impl std::fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}[{}]", self.topic, self.partition)
    }
}

/// Where to start reading a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The oldest message there is.
    Earliest,
    /// What comes after everything that is visible now.
    Latest,
    /// Exactly this offset.
    At(u64),
}

/// A message as it is read; borrowed from the reader's buffer.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Index of its partition in the list that the consumer was made with.
    pub assignment: usize,
    /// Its offset.
    pub offset: u64,
    /// Milliseconds since 1970: the log's append time where the topic says so, else the sender's.
    pub timestamp_ms: u64,
    /// Key, or empty.
    pub key: &'a [u8],
    /// Payload.
    pub payload: &'a [u8],
}

impl Message<'_> {
    /// Neither key nor payload: it was written to end a transaction (`hanging`), and is for nobody.
    pub fn is_empty(&self) -> bool {
        self.key.is_empty() && self.payload.is_empty()
    }
}

/// A message to send.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// Topic; must exist.
    pub topic: &'a str,
    /// Partition.
    pub partition: u32,
    /// Key, or empty.
    pub key: &'a [u8],
    /// Payload.
    pub payload: &'a [u8],
    /// Headers.
    pub headers: &'a [(&'a str, &'a str)],
}

/// Errors, by what the caller must do.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The log cannot be reached or answers late: try again.
    #[error("log unavailable: {0}")]
    Unavailable(String),
    /// The offset is not in the log: an operator must decide (I6).
    #[error("{at} is not at offset {offset}: the log holds {start}..{end}")]
    OutOfRange {
        /// The partition.
        at: TopicPartition,
        /// Offset asked for.
        offset: u64,
        /// First offset in the log.
        start: u64,
        /// One after the last.
        end: u64,
    },
    /// The topic or the partition does not exist, or differs from what was asked for.
    #[error("topic {topic}: {message}")]
    Topic {
        /// Its name.
        topic: String,
        /// What is wrong.
        message: String,
    },
    /// The message is larger than the log takes.
    #[error(
        "message for {topic} of {size} bytes is larger than the log takes: raise `max.message.bytes` of the topic, and `max_message_bytes` of the workers if it is not larger"
    )]
    TooLarge {
        /// Its topic.
        topic: String,
        /// Bytes.
        size: usize,
    },
    /// The configuration is wrong.
    #[error("log configuration: {0}")]
    Configuration(String),
    /// A transactional client has failed, in whatever way: what its last transaction came to is unknown. Discard the client, then find out by
    /// taking over (DESIGN 4, rules 4 and 6).
    #[error("transaction outcome unknown: {0}")]
    Unknown(String),
}

/// What a topic may forget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Retention {
    /// What the cluster's settings, or `topic_properties`, say.
    #[default]
    Cluster,
    /// Nothing by age or size, only by trimming: a changelog without its beginning is no changelog (I6).
    Keep,
    /// All but the newest message of each key.
    Compact,
}

/// The header by which a message says what it was written for.
pub const ORIGIN: &str = "millstream-origin";

/// Of which transactions messages are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// Of those that were committed, below the first that is open: what readers see.
    Committed,
    /// Also of those that are open, or were aborted, as far as the log has them. (One that never leaves a transaction open may have none.)
    Everything,
}

/// How a topic is to be created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSpec {
    /// Name.
    pub name: String,
    /// Number of partitions.
    pub partitions: u32,
    /// True: messages carry the time at which the log took them (I7).
    pub append_time: bool,
    /// What it may forget.
    pub retention: Retention,
}

/// Where a partition ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// The offset after the last message that read-committed readers see.
    pub visible: u64,
    /// The offset after the last message.
    pub end: u64,
}

impl Ends {
    /// Is a transaction open?
    pub fn is_held_back(&self) -> bool {
        self.visible < self.end
    }
}

/// What a topic deletes by itself, whether or not it was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deletes {
    /// What is older than so many milliseconds.
    pub after_ms: Option<u64>,
    /// The oldest of a partition, where it has more than so many bytes.
    pub beyond_bytes: Option<u64>,
}

/// A message with all that it has, but for its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whole {
    /// Its offset.
    pub offset: u64,
    /// Key, or empty.
    pub key: Vec<u8>,
    /// Payload.
    pub payload: Vec<u8>,
    /// Headers.
    pub headers: Vec<(String, String)>,
}

impl Whole {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Neither key nor payload: it was written to end a transaction.
    pub fn is_empty(&self) -> bool {
        self.key.is_empty() && self.payload.is_empty()
    }
}

/// What is done with each message that was read; first the place of its partition in the list.
pub type EachRead<'a> = &'a mut dyn FnMut(usize, Whole);

/// A partitioned log.
pub trait Log: Send + Sync {
    /// Creates the topics that are missing.
    ///
    /// # Errors
    /// [`LogError::Topic`] when one exists with another number of partitions or another time stamp type.
    fn create_topics(&self, topics: &[TopicSpec]) -> Result<(), LogError>;

    /// Returns when everything that was acknowledged outlives a power cut of this machine, where that is for this process to see to: local state must not be ahead of a log that is beside it.
    ///
    /// # Errors
    /// [`LogError::Unavailable`].
    fn persist(&self) -> Result<(), LogError> {
        Ok(())
    }

    /// What identifies a topic across deletion and re-creation under one name.
    ///
    /// # Errors
    /// [`LogError::Topic`] when it does not exist.
    fn topic_id(&self, topic: &str) -> Result<String, LogError>;

    /// First offset of a partition, and the offset after the last one that read-committed readers can see *now*, asked of the
    /// partition's leader.
    ///
    /// # Errors
    /// [`LogError::Topic`], [`LogError::Unavailable`].
    fn bounds(&self, at: &TopicPartition) -> Result<(u64, u64), LogError>;

    /// The ends of several partitions, in their order. The one that readers see is asked for last: what is decided meanwhile is not held back.
    ///
    /// # Errors
    /// [`LogError::Topic`], [`LogError::Unavailable`].
    fn ends(&self, of: &[TopicPartition]) -> Result<Vec<Ends>, LogError>;

    /// Removes the messages of a partition below `before`. Those above it stay, also where there are none.
    ///
    /// # Errors
    /// [`LogError::Topic`], [`LogError::Unavailable`]; [`LogError::Configuration`] without the right to.
    fn trim(&self, at: &TopicPartition, before: u64) -> Result<(), LogError>;

    /// What a topic deletes by itself, as it is set now. A log that deletes nothing that was not read has nothing to say.
    ///
    /// # Errors
    /// [`LogError::Topic`], [`LogError::Unavailable`] also when it may not be asked.
    fn deletes(&self, _topic: &str) -> Result<Deletes, LogError> {
        Ok(Deletes::default())
    }

    /// A read-committed reader of some partitions, to which each message comes as soon as it is visible.
    ///
    /// # Errors
    /// [`LogError::OutOfRange`] here or at the first poll.
    fn consumer(&self, assignments: &[(TopicPartition, Start)]) -> Result<Box<dyn Consumer>, LogError>;

    /// A [`Log::consumer`] for partitions in which much comes: messages may wait some tens of milliseconds, and then come together, where that is cheaper.
    ///
    /// # Errors
    /// As those of [`Log::consumer`].
    fn bulk_consumer(&self, assignments: &[(TopicPartition, Start)]) -> Result<Box<dyn Consumer>, LogError> {
        self.consumer(assignments)
    }

    /// Reads some partitions, each from an offset that the log has to another one, or to the end that there is now; the messages of one partition in their order.
    ///
    /// # Errors
    /// [`LogError::Topic`], [`LogError::OutOfRange`], [`LogError::Unavailable`].
    fn read(&self, of: &[(TopicPartition, Range<u64>)], view: View, each: EachRead<'_>) -> Result<(), LogError>;

    /// A producer without transactions: idempotent, acknowledged by all in-sync replicas.
    ///
    /// # Errors
    /// [`LogError::Configuration`].
    fn producer(&self) -> Result<Box<dyn Producer>, LogError>;

    /// The producer of a transactional id. Returns when every former producer of the id is fenced and its open transaction is decided.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] when that could not be had in time: nothing is known then.
    fn transactional(&self, id: &str) -> Result<Box<dyn Transactional>, LogError>;
}

/// A reader.
pub trait Consumer: Send {
    /// Waits up to `timeout` for messages and hands over at most `max` of them; those of one partition come in order. Returns how many.
    ///
    /// # Errors
    /// [`LogError::OutOfRange`], [`LogError::Topic`]; transient trouble is retried inside and shows as 0 messages.
    fn poll(&mut self, max: usize, timeout: Duration, each: &mut dyn FnMut(Message<'_>)) -> Result<usize, LogError>;

    /// For each assigned partition the offset up to which everything visible was handed over: like the next offset to read, but it also
    /// moves past control records and aborted data once the end is reached, so that it can be compared with [`Log::bounds`].
    fn positions(&self) -> Vec<u64>;

    /// It does not hear what it reads ([`hearing`](crate::hearing)): whoever reads any of this next does so by other means.
    fn retire(&mut self) {}
}

/// Called once when a send is decided: its offset, or why it failed.
pub type Acknowledge = Box<dyn FnOnce(Result<u64, LogError>) + Send>;

/// A producer without transactions. Sends of one producer to one partition keep their order.
pub trait Producer: Send + Sync {
    /// Takes a message (copies it) and reports its fate to `acknowledge`, from any thread, later or at once. A fate of
    /// [`LogError::Unknown`] means that it may or may not be in the log. It does not wait for room: what the log's queue cannot hold is
    /// [`LogError::Unavailable`] at once.
    fn send(&self, message: Outgoing<'_>, acknowledge: Acknowledge);
}

/// The producer of a transactional id. After any error it must be dropped: it may not be used again.
pub trait Transactional: Send {
    /// Begins a transaction.
    ///
    /// # Errors
    /// [`LogError::Unknown`].
    fn begin(&mut self) -> Result<(), LogError>;

    /// Adds a message to the transaction (copies it).
    ///
    /// # Errors
    /// [`LogError::TooLarge`], [`LogError::Topic`], [`LogError::Unknown`].
    fn send(&mut self, message: Outgoing<'_>) -> Result<(), LogError>;

    /// Commits; returns when the log has decided to.
    ///
    /// # Errors
    /// [`LogError::Unknown`]: it may have been committed or not.
    fn commit(&mut self) -> Result<(), LogError>;

    /// Gives the transaction up.
    ///
    /// # Errors
    /// [`LogError::Unknown`].
    fn abort(&mut self) -> Result<(), LogError>;

    /// Why the last commit, though it was told to have succeeded, may have been forgotten since; once. Whoever is told looks whether its transaction still holds
    /// its partitions back, and uses this client on only if not. A log that forgets nothing never says so.
    fn take_doubt(&mut self) -> Option<String> {
        None
    }
}

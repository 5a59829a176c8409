//! The producer of a transactional id: the only lock that there is (I4).
//!
//! Protocol (DESIGN 4, rules 4 and 6):
//! - Making one fences the id's former producer and decides its open transaction.
//! - **Any** error makes the client useless and the outcome unknown: librdkafka can revive a fenced client, and a timed-out and a stolen
//!   transaction look the same.
//! - A commit during which the client saw a lost connection, a time-out or an error is unknown, even if it reports success: the request
//!   that was lost may arrive later, in the next transaction of the same epoch (librdkafka has no KIP-890). Lost connections raise no error
//!   event when little is in flight, and repeated ones are suppressed; only the debug lines of `broker` name each, so those are counted.
//! - An answer that refuses (not the coordinator, still loading, concurrent transactions) is no trouble: that very request was decided and cannot have an effect later. So the
//!   library may ask again.
//! - A commit that was told to have succeeded is decided, but perhaps landed nowhere yet, and a broker that starts again may forget it then (see
//!   `worker/shard/src/written.rs`). So a client that has ended a transaction and then lost a connection is in doubt: it does not begin again before its owner
//!   was told so, and has looked.
//! - A commit has the time that a transaction has: librdkafka repeats a request without an answer for ever, and the outcome is unknown after the first time anyway.
//! - A commit never uses librdkafka's own flush: it sleeps 100 ms at a time, or, called raw, waits for ever for reports of failures that
//!   nobody polls.

use super::client::{Reminder, about, creation, is_all_down, report};
use super::producer::fate;
use super::raw;
use super::shared::Shared;
use super::topics::DEFAULT_REQUEST;
use millstream_shard::log::{LogError, Outgoing, Transactional};
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Remembers the first sign of trouble.
#[derive(Default)]
struct Watch {
    trouble: Mutex<Option<String>>,
    /// The first connection that was there and is lost.
    lost: Mutex<Option<String>>,
    reminder: Reminder,
}

impl Watch {
    fn note(&self, what: String) {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(what);
    }

    fn clear(&self) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn take_lost(&self) -> Option<String> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ClientContext for Watch {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        report(level, facility, message);
        // The client closes what is idle by itself; nothing was in flight then.
        let lost = facility == "FAIL" && !message.contains("max idle time exceeded");
        if lost || facility == "REQTMOUT" {
            self.note(message.to_owned());
        }
        // A message that was refused: the rest of the transaction is not sent any more, and would be waited for in vain.
        if facility == "TXNERR" {
            let what = message.split_once("]: ").map_or(message, |(_, message)| message);
            let hint = if message.contains(REFUSED_SIZE) { "; raise `max.message.bytes` of that topic" } else { "" };
            self.note(format!("{what}{hint}"));
        }
        // What was never there cannot be lost.
        if lost && ["in state UP", "in state REAUTH"].iter().any(|state| message.contains(state)) {
            self.lost.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(message.to_owned());
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if is_all_down(&error) {
            self.reminder.lost_all();
        }
        self.note(format!("{error}: {reason}"));
    }
}

impl ProducerContext for Watch {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            self.note(format!("message not delivered: {error}"));
        }
    }
}

/// The producer of a transactional id.
pub(super) struct KafkaTransactional {
    shared: Arc<Shared>,
    id: String,
    /// Before the client: each handle belongs to it and must be dropped first, as fields are in this order.
    topics: Vec<KnownTopic>,
    client: BaseProducer<Watch>,
    has_ended: bool,
    dead: Option<String>,
}

/// A topic that was sent to before.
struct KnownTopic {
    name: String,
    partitions: u32,
    handle: raw::Topic,
}

/// What librdkafka calls a request that is larger than the topic takes.
const REFUSED_SIZE: &str = "MSG_SIZE_TOO_LARGE";

/// How long one flush waits before failures are looked at.
const FLUSH_SLICE: Duration = Duration::from_millis(20);

impl KafkaTransactional {
    /// Fences the former producer of the id.
    pub(super) fn new(shared: Arc<Shared>, id: &str) -> Result<KafkaTransactional, LogError> {
        let config = shared.transactional(id);
        let client: BaseProducer<Watch> =
            BaseProducer::from_config_and_context(&config, Watch::default()).map_err(|error| creation(&error))?;
        let unavailable =
            |error: KafkaError| LogError::Unavailable(format!("cannot fence transactional id {id}: {error}"));
        // With metadata at hand, init often takes 10 ms in place of the 500 ms timer of librdkafka.
        client
            .client()
            .fetch_metadata(Some("__millstream_probe"), shared.config.init_timeout())
            .map_err(unavailable)?;
        client.init_transactions(shared.config.init_timeout()).map_err(unavailable)?;
        Ok(KafkaTransactional { shared, id: id.to_owned(), topics: Vec::new(), client, has_ended: false, dead: None })
    }

    fn alive(&self) -> Result<(), LogError> {
        match &self.dead {
            Some(why) => Err(LogError::Unknown(format!("{}: used after an error: {why}", self.id))),
            None => Ok(()),
        }
    }

    fn die(&mut self, what: &str, why: String) -> LogError {
        if why.contains(REFUSED_SIZE) {
            // A topic takes less than it did. The next client sends less at once, unless a single message is larger.
            self.shared.takes_at_most(DEFAULT_REQUEST);
        }
        let message = format!("{}: {what}: {why}", self.id);
        self.dead = Some(why);
        LogError::Unknown(message)
    }

    /// Hands what the client has to say to its context. Log lines queue like errors, so the loop is bounded.
    fn drain(&self) {
        for _ in 0..10_000 {
            if self.client.in_flight_count() == 0 {
                break;
            }
            self.client.poll(Duration::ZERO);
        }
    }

    /// Waits until everything that was sent is acknowledged.
    fn flush(&self) -> Result<(), String> {
        let deadline = Instant::now() + self.shared.config.transaction_timeout();
        while !raw::flush(self.client.client(), FLUSH_SLICE) {
            self.client.poll(Duration::ZERO);
            if let Some(trouble) = self.client.context().trouble() {
                return Err(trouble);
            }
            if Instant::now() >= deadline {
                return Err("messages were not acknowledged in time".to_owned());
            }
        }
        Ok(())
    }

    /// Nothing suspicious since the transaction began?
    fn undisturbed(&self) -> Result<(), String> {
        self.drain();
        self.client.context().trouble().map_or(Ok(()), Err)
    }

    fn try_commit(&self) -> Result<(), String> {
        self.flush()?;
        self.undisturbed()?;
        let wait = self.shared.config.transaction_timeout();
        self.client.commit_transaction(wait).map_err(|error| error.to_string())?;
        self.undisturbed()
    }

    /// Everything is sent first. Purging it in place would be quicker, but breaks the client: purged messages leave a gap in the sequence
    /// numbers, so that the next transaction is never acknowledged; and where nothing was sent, the brokers know of no transaction to end.
    fn try_abort(&self) -> Result<(), String> {
        self.flush()?;
        self.undisturbed()?;
        let wait = self.shared.config.transaction_timeout();
        self.client.abort_transaction(wait).map_err(|error| error.to_string())?;
        self.undisturbed()
    }

    /// Where the message's topic is among those known.
    fn known(&mut self, message: &Outgoing<'_>) -> Result<usize, LogError> {
        let found = self.topics.iter().position(|topic| topic.name == message.topic);
        if let Some(found) = found.filter(|found| self.has_partition(*found, message.partition)) {
            return Ok(found);
        }
        let wait = self.shared.config.request_timeout();
        self.shared.partition_of(message.topic, message.partition, wait)?;
        let handle = raw::Topic::new(self.client.client(), message.topic)
            .map_err(|code| about(message.topic, code, "cannot send to"))?;
        let partitions = self.shared.partitions(message.topic, wait)?;
        // One that has grown since takes the place of what was known of it.
        self.topics.retain(|topic| topic.name != message.topic);
        self.topics.push(KnownTopic { name: message.topic.to_owned(), partitions, handle });
        Ok(self.topics.len() - 1)
    }

    fn has_partition(&self, known: usize, partition: u32) -> bool {
        self.topics.get(known).is_some_and(|topic| partition < topic.partitions)
    }

    fn produce(&self, known: usize, message: &Outgoing<'_>) -> Result<(), RDKafkaErrorCode> {
        let topic = self.topics.get(known).ok_or(RDKafkaErrorCode::UnknownTopic)?;
        let partition = i32::try_from(message.partition).map_err(|_| RDKafkaErrorCode::UnknownPartition)?;
        topic.handle.produce(self.client.client(), partition, message)
    }

    /// Makes room in the local queue.
    fn wait_for_room(&self, deadline: Instant) -> Result<(), String> {
        self.client.poll(Duration::from_millis(1));
        match self.client.context().trouble() {
            Some(trouble) => Err(trouble),
            None if Instant::now() >= deadline => Err("the local queue stays full".to_owned()),
            None => Ok(()),
        }
    }
}

impl Transactional for KafkaTransactional {
    fn begin(&mut self) -> Result<(), LogError> {
        self.alive()?;
        self.drain();
        if let Some(why) = self.client.context().take_lost().filter(|_| self.has_ended) {
            return Err(self.die("begin", format!("in doubt since its last transaction: {why}")));
        }
        self.client.context().clear();
        // It may have been prepared long ago, and nobody has looked after it since.
        if self.client.context().reminder.take() {
            raw::add_brokers(self.client.client(), &self.shared.config.bootstrap_servers);
        }
        self.client.begin_transaction().map_err(|error| self.die("begin", error.to_string()))
    }

    fn send(&mut self, message: Outgoing<'_>) -> Result<(), LogError> {
        self.alive()?;
        let known = match self.known(&message) {
            Ok(known) => known,
            Err(LogError::Topic { topic, message }) => {
                self.dead = Some(format!("topic {topic}: {message}"));
                return Err(LogError::Topic { topic, message });
            }
            Err(error) => return Err(self.die("send", error.to_string())),
        };
        let mut deadline = None;
        while let Err(code) = self.produce(known, &message) {
            if code != RDKafkaErrorCode::QueueFull {
                self.dead = Some(code.to_string());
                return Err(match fate(code, message.topic, message.payload.len()) {
                    known @ (LogError::TooLarge { .. } | LogError::Topic { .. }) => known,
                    _ => LogError::Unknown(format!("{}: send: {code}", self.id)),
                });
            }
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + self.shared.config.request_timeout());
            self.wait_for_room(deadline).map_err(|why| self.die("send", why))?;
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<(), LogError> {
        self.alive()?;
        self.try_commit().map_err(|why| self.die("commit", why))?;
        self.has_ended = true;
        Ok(())
    }

    fn abort(&mut self) -> Result<(), LogError> {
        self.alive()?;
        self.try_abort().map_err(|why| self.die("abort", why))?;
        self.has_ended = true;
        Ok(())
    }

    fn take_doubt(&mut self) -> Option<String> {
        self.drain();
        self.client.context().take_lost().filter(|_| self.has_ended)
    }
}

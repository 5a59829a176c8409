//! Sending without transactions: idempotent, acknowledged by all in-sync replicas, each message's fate reported once.

use super::client::{
    Quiet, REMIND_EVERY, Reminder, creation, is_all_down, is_configuration, is_forbidden, is_missing, report,
};
use super::raw;
use super::shared::Shared;
use millstream_shard::log::{Acknowledge, LogError, Outgoing, Producer};
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};
use std::time::Duration;

/// Reports the fates of messages, and reminds its client of the brokers when it has lost all.
struct Reports {
    servers: String,
    client: OnceLock<Weak<ThreadedProducer<Reports>>>,
    reminder: Reminder,
    /// A thread is about to remind it.
    is_pending: AtomicBool,
}

impl Reports {
    /// In a thread of its own: who calls is the client's, and must not be the last to let go of it. There is one at a time.
    fn lost_all(&self) {
        self.reminder.lost_all();
        let Some(client) = self.client.get().cloned() else { return };
        if self.is_pending.swap(true, Ordering::Relaxed) {
            return;
        }
        let remind = move || {
            while let Some(client) = client.upgrade() {
                let reports = client.context();
                if reports.reminder.take() {
                    raw::add_brokers(client.client(), &reports.servers);
                    reports.is_pending.store(false, Ordering::Relaxed);
                    return;
                }
                drop(client);
                std::thread::sleep(REMIND_EVERY / 10);
            }
        };
        if let Err(error) = std::thread::Builder::new().name("brokers".into()).spawn(remind) {
            tracing::warn!(%error, "cannot start a thread");
            self.is_pending.store(false, Ordering::Relaxed);
        }
    }
}

/// What waits for one message's fate.
struct Waiting {
    topic: String,
    size: usize,
    acknowledge: Mutex<Option<Acknowledge>>,
}

impl Waiting {
    fn decide(&self, fate: Result<u64, LogError>) {
        let acknowledge = self.acknowledge.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(acknowledge) = acknowledge {
            acknowledge(fate);
        }
    }
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        report(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if is_all_down(&error) {
            self.lost_all();
        }
        Quiet::default().error(error, reason);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Waiting>;

    fn delivery(&self, result: &DeliveryResult<'_>, waiting: Box<Waiting>) {
        let fate = match result {
            Ok(message) => Ok(u64::try_from(message.offset()).unwrap_or(0)),
            Err((error, _)) => {
                let code = super::client::code(error);
                if code == RDKafkaErrorCode::MessageTimedOut {
                    self.lost_all();
                }
                Err(fate(code, &waiting.topic, waiting.size))
            }
        };
        waiting.decide(fate);
    }
}

/// What an error code says about a message. Only where librdkafka knows that it was never sent, or the broker that it refused it, is
/// the fate known; all else may be in the log.
pub(super) fn fate(code: RDKafkaErrorCode, topic: &str, size: usize) -> LogError {
    use RDKafkaErrorCode as C;
    match code {
        C::MessageSizeTooLarge | C::InvalidMessageSize => LogError::TooLarge { topic: topic.to_owned(), size },
        C::QueueFull => LogError::Unavailable("the local queue is full: the brokers take less than is sent".to_owned()),
        C::PurgeQueue => LogError::Unavailable("the producer was closed before it sent the message".to_owned()),
        C::Fatal => LogError::Unavailable("the producer had to be renewed".to_owned()),
        code if is_missing(code) || is_configuration(code) || is_forbidden(code) => {
            super::client::about(topic, code, "cannot send to")
        }
        other => LogError::Unknown(format!("send to {topic}: {other}")),
    }
}

/// The headers of a message as librdkafka takes them.
fn headers(message: &Outgoing<'_>) -> Option<OwnedHeaders> {
    if message.headers.is_empty() {
        return None;
    }
    let empty = OwnedHeaders::new_with_capacity(message.headers.len());
    let insert = |headers: OwnedHeaders, (key, value): &(&str, &str)| {
        headers.insert(Header { key, value: Some(value.as_bytes()) })
    };
    Some(message.headers.iter().fold(empty, insert))
}

/// A producer without transactions.
pub(super) struct KafkaProducer {
    shared: Arc<Shared>,
    client: RwLock<Arc<ThreadedProducer<Reports>>>,
}

/// A first send to a topic waits this long for its metadata; after that librdkafka goes on waiting in the background.
const METADATA_WAIT: Duration = Duration::from_secs(1);

impl KafkaProducer {
    pub(super) fn new(shared: Arc<Shared>) -> Result<KafkaProducer, LogError> {
        let client = RwLock::new(connect(&shared)?);
        Ok(KafkaProducer { shared, client })
    }

    fn client(&self) -> Arc<ThreadedProducer<Reports>> {
        Arc::clone(&self.client.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// After a fatal error (lost sequence) an idempotent client is dead for good; the next send uses a new one.
    fn renew(&self, dead: &Arc<ThreadedProducer<Reports>>) {
        let mut client = self.client.write().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&client, dead) {
            match connect(&self.shared) {
                Ok(new) => *client = new,
                Err(error) => tracing::warn!(%error, "cannot renew the producer"),
            }
        }
    }
}

fn connect(shared: &Shared) -> Result<Arc<ThreadedProducer<Reports>>, LogError> {
    let servers = shared.config.bootstrap_servers.clone();
    let (client, reminder, is_pending) = (OnceLock::new(), Reminder::default(), AtomicBool::new(false));
    let reports = Reports { servers, client, reminder, is_pending };
    let client = ThreadedProducer::from_config_and_context(&shared.config.producer(), reports);
    let client = Arc::new(client.map_err(|error| creation(&error))?);
    let _ = client.context().client.set(Arc::downgrade(&client));
    Ok(client)
}

impl Producer for KafkaProducer {
    fn send(&self, message: Outgoing<'_>, acknowledge: Acknowledge) {
        let partition = match self.shared.partition_of(message.topic, message.partition, METADATA_WAIT) {
            Ok(partition) => partition,
            Err(LogError::Unavailable(_)) => i32::try_from(message.partition).unwrap_or(i32::MAX),
            Err(error) => return acknowledge(Err(error)),
        };
        let waiting = Box::new(Waiting {
            topic: message.topic.to_owned(),
            size: message.payload.len(),
            acknowledge: Mutex::new(Some(acknowledge)),
        });
        let mut record = BaseRecord::<[u8], [u8], _>::with_opaque_to(message.topic, waiting)
            .partition(partition)
            .payload(message.payload);
        record.key = (!message.key.is_empty()).then_some(message.key);
        record.headers = headers(&message);
        let client = self.client();
        if let Err((error, record)) = client.send(record) {
            let code = super::client::code(&error);
            if code == RDKafkaErrorCode::Fatal {
                self.renew(&client);
            }
            record.delivery_opaque.decide(Err(fate(code, message.topic, message.payload.len())));
        }
    }
}

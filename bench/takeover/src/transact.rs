//! A transactional client, used by the rules: after any error it is discarded (rule 6).

use crate::{Settings, TRANSACTION_TIMEOUT_MS};
use anyhow::{Result, anyhow, bail};
use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Notes that the client saw trouble: then even a commit that reports success has an unknown outcome.
#[derive(Default)]
struct Watch {
    trouble: AtomicBool,
}

impl ClientContext for Watch {
    fn error(&self, _error: KafkaError, _reason: &str) {
        self.trouble.store(true, Ordering::Relaxed);
    }

    fn log(&self, _level: rdkafka::config::RDKafkaLogLevel, _facility: &str, _message: &str) {}
}

impl ProducerContext for Watch {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, _opaque: ()) {
        if result.is_err() {
            self.trouble.store(true, Ordering::Relaxed);
        }
    }
}

/// A client of one of the shard's two ids.
pub struct Client {
    producer: BaseProducer<Watch>,
    pub slot: u8,
    /// How long its init took.
    pub init: Duration,
    hold: Duration,
}

impl Client {
    /// Inits the id: every former client of it is fenced when this returns.
    pub fn init(settings: &Settings, slot: u8) -> Result<Client> {
        let began = Instant::now();
        let producer: BaseProducer<Watch> = ClientConfig::new()
            .set("bootstrap.servers", &settings.brokers)
            .set("transactional.id", settings.transactional_id(slot))
            .set("transaction.timeout.ms", TRANSACTION_TIMEOUT_MS.to_string())
            .set("message.timeout.ms", "4000")
            .set("linger.ms", "1")
            .set("acks", "all")
            .set("socket.nagle.disable", "true")
            .set("delivery.report.only.error", "true")
            .create_with_context(Watch::default())?;
        // Known brokers first: the id's init then finds its coordinator without the client's 500 ms timer, half of the time.
        producer.client().fetch_metadata(Some(&settings.topic("changelog")), Duration::from_secs(10))?;
        producer.init_transactions(Duration::from_secs(30))?;
        Ok(Client { producer, slot, init: began.elapsed(), hold: Duration::from_millis(settings.hold) })
    }

    /// One transaction. Any error means: outcome unknown, drop this client, find out by a takeover.
    pub fn transaction(&self, messages: &[(String, i32, String)]) -> Result<()> {
        self.producer.begin_transaction()?;
        for (topic, partition, payload) in messages {
            let record = BaseRecord::<(), str>::to(topic).partition(*partition).payload(payload.as_str());
            self.producer.send(record).map_err(|(error, _)| anyhow!("send: {error}"))?;
        }
        // `flush` and `commit_transaction` of the safe API sleep in slices of 100 ms while anything is in flight: flush first, by hand.
        while self.producer.flush(Duration::ZERO).is_err() {
            self.producer.poll(Duration::from_millis(1));
        }
        std::thread::sleep(self.hold);
        if self.producer.context().trouble.load(Ordering::Relaxed) {
            bail!("the client saw trouble before its commit");
        }
        self.producer.commit_transaction(Duration::from_secs(30))?;
        if self.producer.context().trouble.load(Ordering::Relaxed) {
            bail!("the client saw trouble during its commit");
        }
        Ok(())
    }

    /// Drops the client elsewhere: that takes up to half a second.
    pub fn discard(self) {
        std::thread::spawn(move || drop(self));
    }
}

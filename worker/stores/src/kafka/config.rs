//! Configuration of the Kafka log, and the librdkafka settings that follow from it.
//!
//! Settings that the contract of [`millstream_shard::log::Log`] rests on are fixed here and refused in `properties`.

use super::topics::DEFAULT_REQUEST;
use millstream_shard::log::LogError;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// Settings that users cannot override: without them transactions, order or I6 would break silently.
const FIXED: [&str; 18] = [
    "acks",
    "allow.auto.create.topics",
    "auto.offset.reset",
    "bootstrap.servers",
    "client.rack",
    "debug",
    "delivery.report.only.error",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.idempotence",
    "enable.partition.eof",
    "group.id",
    "isolation.level",
    "log.queue",
    "message.timeout.ms",
    "queue.buffering.max.kbytes",
    "transactional.id",
    "transaction.timeout.ms",
];

/// What `security` may say, by how it begins.
const OF_SECURITY: [&str; 6] = ["security.", "sasl.", "ssl.", "enable.sasl.", "enable.ssl.", "https."];

/// Settings of topics that are fixed as well: with others an acknowledged transaction can vanish with a broker, or time go back (I4, I7).
const FIXED_OF_TOPICS: [&str; 3] = ["message.timestamp.type", "unclean.leader.election.enable", "cleanup.policy"];

/// Frames and parts of changelogs keep to 1 MB, but each holds at least one record or entity; this leaves room for one of 1 MB and what surrounds it.
const LEAST_MESSAGE: u32 = 2 << 20;
/// How long the broker lets a reader wait for what is to come, and with how much it does not wait when messages are to come together.
const FETCH_WAIT_MS: u32 = 50;
const BULK_BYTES: usize = 1_000_000;
/// A transaction is sent by its commit, which cuts any wait short, and in one request for each partition: what is left over while a request is under way, or has waited for longer than
/// `linger.ms`, makes librdkafka's thread ask without a pause whether it may send (an idempotent producer has one request of five messages or more under way for each partition).
/// Measured at four shards per core, saturated: 1.6 turns of that loop per record with requests of 1 MB and 5 ms, 0.01 so.
const TRANSACTION_LINGER_MS: u64 = 1000;
const MOST_MESSAGES: u32 = 1_000_000;
/// librdkafka's own bound of `queue.buffering.max.kbytes`.
const MOST_QUEUE_KILOBYTES: u64 = 2_147_483_647;
/// librdkafka's own bound of `message.max.bytes`.
const MOST_MESSAGE: u32 = 1_000_000_000;

/// How to reach Kafka and how to use it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct KafkaConfig {
    /// Brokers to ask first: `host:port`, separated by commas.
    pub bootstrap_servers: String,
    /// librdkafka properties for security (`security.protocol`, `sasl.*`, `ssl.*`), passed through to every client.
    #[serde(default)]
    pub security: BTreeMap<String, String>,
    /// Further librdkafka properties, passed through to every client. What exactly-once rests on is refused here.
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
    /// Topics that are not there are created; else it is an error that names each, and what it must be like.
    #[serde(default = "default_create_topics")]
    pub create_topics: bool,
    /// Milliseconds for which a topic that is created keeps what is in it, by name, where its retention is not ours.
    #[serde(default)]
    pub retention_ms: BTreeMap<String, u64>,
    /// Properties of the topics that are created, over the defaults of the cluster.
    #[serde(default)]
    pub topic_properties: BTreeMap<String, String>,
    /// Copies of each partition of the topics that are created. Below 3 a broken machine can lose acknowledged data: for development.
    #[serde(default = "default_replication")]
    pub replication_factor: u16,
    /// The brokers abort a transaction that is open for longer, milliseconds. Much longer than any batch, because a batch that
    /// outlives it is a takeover; short, because all readers of the batch's partitions wait for it.
    #[serde(default = "default_transaction")]
    pub transaction_timeout_ms: u64,
    /// How long a producer without transactions waits for company before it sends, milliseconds.
    #[serde(default = "default_linger")]
    pub linger_ms: u64,
    /// A message that is not acknowledged after this time has an unknown fate, milliseconds. Producers without transactions only.
    #[serde(default = "default_delivery")]
    pub delivery_timeout_ms: u64,
    /// Metadata, offsets and administration are given up after this time, milliseconds.
    #[serde(default = "default_request")]
    pub request_timeout_ms: u64,
    /// Fencing a transactional id is given up after this time, milliseconds. It takes 0.5 to 1 s when all is well.
    #[serde(default = "default_init")]
    pub init_timeout_ms: u64,
    /// Largest message, bytes before compression. Producers, readers and topics that are created take that much. Frames keep to 1 MB; what needs
    /// more is the state of one large entity in the changelog.
    #[serde(default = "default_message")]
    pub max_message_bytes: u32,
    /// Compression of what is produced: `none`, `lz4`, `snappy` or `gzip`.
    #[serde(default = "default_compression")]
    pub compression: String,
    /// Bytes that may wait in a producer without transactions; beyond them a send is refused at once. (A transaction waits for its own
    /// messages, so that a batch bounds them.)
    #[serde(default = "default_queue")]
    pub queue_bytes: u64,
}

fn default_create_topics() -> bool {
    true
}

fn default_replication() -> u16 {
    3
}

fn default_transaction() -> u64 {
    10_000
}

fn default_linger() -> u64 {
    5
}

fn default_delivery() -> u64 {
    30_000
}

fn default_request() -> u64 {
    10_000
}

fn default_init() -> u64 {
    30_000
}

fn default_message() -> u32 {
    8_388_608
}

fn default_compression() -> String {
    "lz4".to_owned()
}

fn default_queue() -> u64 {
    128 << 20
}

impl KafkaConfig {
    /// The defaults, with these brokers.
    pub fn new(bootstrap_servers: impl Into<String>) -> KafkaConfig {
        KafkaConfig {
            bootstrap_servers: bootstrap_servers.into(),
            security: BTreeMap::new(),
            properties: BTreeMap::new(),
            create_topics: default_create_topics(),
            retention_ms: BTreeMap::new(),
            topic_properties: BTreeMap::new(),
            replication_factor: default_replication(),
            transaction_timeout_ms: default_transaction(),
            linger_ms: default_linger(),
            delivery_timeout_ms: default_delivery(),
            request_timeout_ms: default_request(),
            init_timeout_ms: default_init(),
            max_message_bytes: default_message(),
            compression: default_compression(),
            queue_bytes: default_queue(),
        }
    }

    /// Checks what can be checked without asking the brokers.
    ///
    /// # Errors
    /// [`LogError::Configuration`] that names the field.
    pub fn check(&self) -> Result<(), LogError> {
        let refuse = |message: String| Err(LogError::Configuration(message));
        if self.bootstrap_servers.trim().is_empty() {
            return refuse("bootstrap_servers is empty: give host:port of at least one broker".to_owned());
        }
        if let Some(name) = FIXED.iter().find(|name| self.properties.contains_key(**name)) {
            return refuse(format!("properties: `{name}` is fixed, because the log's contract rests on it; remove it"));
        }
        if let Some(name) = self.security.keys().find(|name| !OF_SECURITY.iter().any(|begin| name.starts_with(begin))) {
            return refuse(format!(
                "security: `{name}` is no setting of security (`security.*`, `sasl.*`, `ssl.*`); if it is to be set, it belongs into properties"
            ));
        }
        if let Some(name) = FIXED_OF_TOPICS.iter().find(|name| self.topic_properties.contains_key(**name)) {
            return refuse(format!(
                "topic_properties: `{name}` is fixed, because what was acknowledged must not vanish with a broker; remove it"
            ));
        }
        let in_sync = self.topic_properties.get("min.insync.replicas");
        if in_sync.is_some_and(|value| value.parse::<u16>().map_or(true, |copies| copies < 2)) {
            return refuse(
                "topic_properties: `min.insync.replicas` must be at least 2, or what was acknowledged can vanish with a broker"
                    .to_owned(),
            );
        }
        if self.replication_factor == 0 {
            return refuse("replication_factor must be at least 1".to_owned());
        }
        self.check_message_size()?;
        if self.transaction_timeout_ms < 1000 {
            return refuse("transaction_timeout_ms must be at least 1000".to_owned());
        }
        Ok(())
    }

    fn check_message_size(&self) -> Result<(), LogError> {
        let refuse = |message: String| Err(LogError::Configuration(message));
        let bytes = self.max_message_bytes;
        if bytes < LEAST_MESSAGE {
            return refuse(format!(
                "max_message_bytes must be at least {LEAST_MESSAGE}, it is {bytes}: frames keep to 1 MB, but the state of one large user or a record of its own must fit into one message, or its shard stops"
            ));
        }
        if bytes > MOST_MESSAGE {
            return refuse(format!(
                "max_message_bytes must be at most {MOST_MESSAGE}, which is as much as the client takes"
            ));
        }
        let elsewhere = [
            ("properties", &self.properties, "message.max.bytes"),
            ("topic_properties", &self.topic_properties, "max.message.bytes"),
        ];
        match elsewhere.iter().find(|(_, properties, name)| properties.contains_key(*name)) {
            Some((field, _, name)) => refuse(format!(
                "{field}: `{name}` must be the same for producers, readers and topics; set max_message_bytes instead"
            )),
            None => Ok(()),
        }
    }

    pub(super) fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms)
    }

    pub(super) fn init_timeout(&self) -> Duration {
        Duration::from_millis(self.init_timeout_ms)
    }

    pub(super) fn transaction_timeout(&self) -> Duration {
        Duration::from_millis(self.transaction_timeout_ms)
    }

    /// A client that asks and administers.
    pub(super) fn client(&self) -> ClientConfig {
        self.finish(self.common())
    }

    /// The users' own properties win over ours; what cannot be overridden was refused.
    fn finish(&self, mut client: ClientConfig) -> ClientConfig {
        for (name, value) in self.security.iter().chain(&self.properties) {
            client.set(name, value);
        }
        client
    }

    /// What every client has in common.
    fn common(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client
            .set("bootstrap.servers", &self.bootstrap_servers)
            .set("client.id", "millstream")
            // Whoever asks for a topic that was deleted must not make it: it would come back with the brokers' number of partitions and retention (I6).
            .set("allow.auto.create.topics", "false")
            // For readers too: librdkafka fetches at least that much at once. (The first batch of an answer comes whole, however large it is.)
            .set("message.max.bytes", self.max_message_bytes.to_string())
            .set("socket.nagle.disable", "true")
            // Reconnect quickly: a broker's restart is otherwise seen up to 10 s late.
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "1000")
            // Metadata of a topic that was just created must not be missing for long.
            .set("topic.metadata.refresh.fast.interval.ms", "50")
            .set_log_level(RDKafkaLogLevel::Warning);
        client
    }

    /// A reader to which each message comes at once; read-committed, so that the end of a partition that it is told is the last stable offset.
    pub(super) fn reader(&self) -> ClientConfig {
        self.finish(self.reading(1))
    }

    /// A reader for much, to which messages come together. Each answer wakes several threads here and in the broker: when little comes, that is most of the work.
    pub(super) fn bulk_reader(&self) -> ClientConfig {
        self.finish(self.reading(BULK_BYTES))
    }

    fn reading(&self, least_bytes: usize) -> ClientConfig {
        let mut client = self.common();
        client
            .set("isolation.level", "read_committed")
            .set("auto.offset.reset", "error")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true")
            .set("fetch.min.bytes", least_bytes.to_string())
            // Not longer: the end of a partition behind which control records lie is told by an answer without messages.
            .set("fetch.wait.max.ms", FETCH_WAIT_MS.to_string())
            // The default of 1 s stalls a reader whose queue was full.
            .set("fetch.queue.backoff.ms", "10")
            .set("fetch.error.backoff.ms", "50")
            .set("queued.min.messages", "20000")
            .set("queued.max.messages.kbytes", "32768")
            // Exactly the leader: a follower may report an end that is too low (DESIGN 4, rule 1).
            .set("client.rack", "");
        client
    }

    fn writing(&self) -> ClientConfig {
        let mut client = self.common();
        client
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("compression.codec", &self.compression)
            // Close what is idle before the broker does, with a reason in the log that tells it from trouble.
            .set("connections.max.idle.ms", "180000");
        client
    }

    pub(super) fn producer(&self) -> ClientConfig {
        let mut client = self.writing();
        let kilobytes = self.queue_bytes.div_ceil(1024).clamp(1, MOST_QUEUE_KILOBYTES);
        client
            .set("linger.ms", self.linger_ms.to_string())
            .set("batch.size", DEFAULT_REQUEST.to_string())
            .set("batch.num.messages", "10000")
            .set("message.timeout.ms", self.delivery_timeout_ms.to_string())
            // The default is 1 GiB.
            .set("queue.buffering.max.kbytes", kilobytes.to_string());
        self.finish(client)
    }

    /// The producer of a transactional id, whose requests for a partition measure `request_bytes` at most.
    pub(super) fn transactional(&self, id: &str, request_bytes: u32) -> ClientConfig {
        let mut client = self.writing();
        client
            .set("transactional.id", id)
            // Shorter than a message may take, or there is no client.
            .set("linger.ms", TRANSACTION_LINGER_MS.min(self.transaction_timeout_ms * 2 / 5).to_string())
            .set("batch.size", request_bytes.to_string())
            .set("batch.num.messages", MOST_MESSAGES.to_string())
            .set("queue.buffering.max.messages", MOST_MESSAGES.to_string())
            .set("transaction.timeout.ms", self.transaction_timeout_ms.to_string())
            // Must be shorter than the transaction, else a message outlives it.
            .set("message.timeout.ms", (self.transaction_timeout_ms * 4 / 5).to_string())
            .set("delivery.report.only.error", "true")
            // `broker` logs each lost connection, also those that raise no error event; see `transactional.rs`.
            .set("debug", "broker")
            .set_log_level(RDKafkaLogLevel::Debug);
        self.finish(client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_exactly_once_rests_on_cannot_be_overridden() {
        KafkaConfig::new("127.0.0.1:9092").check().unwrap();
        for name in FIXED {
            let mut config = KafkaConfig::new("127.0.0.1:9092");
            config.properties.insert(name.into(), "x".into());
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
        let wrong = [
            ("security", "isolation.level"),
            ("topic_properties", "min.insync.replicas"),
            ("topic_properties", "unclean.leader.election.enable"),
        ];
        for (field, name) in wrong {
            let mut config = KafkaConfig::new("127.0.0.1:9092");
            let fields = if field == "security" { &mut config.security } else { &mut config.topic_properties };
            fields.insert(name.into(), "1".into());
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(field) && error.contains(name), "{error}");
        }
        let mut config = KafkaConfig::new("127.0.0.1:9092");
        for name in ["security.protocol", "sasl.mechanism", "ssl.ca.location", "enable.sasl.oauthbearer.unsecure.jwt"] {
            config.security.insert(name.into(), "x".into());
        }
        config.check().unwrap();
    }

    #[test]
    fn readers_ask_the_leader_and_see_what_is_committed() {
        let config = KafkaConfig::new("a:1");
        for client in [config.reader(), config.bulk_reader()] {
            assert_eq!(client.get("client.rack"), Some(""));
            assert_eq!(client.get("isolation.level"), Some("read_committed"));
            assert_eq!(client.get("auto.offset.reset"), Some("error"));
        }
    }

    #[test]
    fn unknown_fields_are_refused() {
        let error = serde_json::from_str::<KafkaConfig>(r#"{"bootstrap_servers":"a:1","linger":5}"#).unwrap_err();
        assert!(error.to_string().contains("unknown field `linger`"), "{error}");
        let config: KafkaConfig = serde_json::from_str(r#"{"bootstrap_servers":"a:1"}"#).unwrap();
        assert_eq!(config, KafkaConfig::new("a:1"));
    }

    #[test]
    fn nonsense_is_refused() {
        for (change, word) in [
            ((|config| config.bootstrap_servers = " ".into()) as fn(&mut KafkaConfig), "bootstrap_servers"),
            (|config| config.replication_factor = 0, "replication_factor"),
            (|config| config.transaction_timeout_ms = 10, "transaction_timeout_ms"),
            (|config| config.max_message_bytes = LEAST_MESSAGE - 1, "the state of one large user"),
            (|config| config.max_message_bytes = MOST_MESSAGE + 1, "max_message_bytes must be at most"),
            (
                |config| drop(config.properties.insert("message.max.bytes".into(), "1".into())),
                "properties: `message.max.bytes`",
            ),
            (
                |config| drop(config.topic_properties.insert("max.message.bytes".into(), "1".into())),
                "topic_properties: `max.message.bytes`",
            ),
        ] {
            let mut config = KafkaConfig::new("a:1");
            change(&mut config);
            assert!(config.check().unwrap_err().to_string().contains(word), "{word}");
        }
    }

    #[test]
    fn the_users_own_properties_win() {
        let mut config = KafkaConfig::new("a:1");
        config.properties.insert("fetch.wait.max.ms".into(), "10".into());
        config.properties.insert("reconnect.backoff.ms".into(), "70".into());
        config.check().unwrap();
        for client in [config.reader(), config.bulk_reader()] {
            assert_eq!(client.get("fetch.wait.max.ms"), Some("10"));
        }
        for client in [config.client(), config.producer(), config.transactional("t", 1_000_000)] {
            assert_eq!(client.get("reconnect.backoff.ms"), Some("70"));
        }
    }

    #[test]
    fn what_waits_in_a_producer_is_bounded() {
        let config = KafkaConfig { queue_bytes: 70_000, ..KafkaConfig::new("a:1") };
        assert_eq!(config.producer().get("queue.buffering.max.kbytes"), Some("69"));
    }

    #[test]
    fn every_client_takes_the_largest_message() {
        for transaction_timeout_ms in [1000, 1251, 10_000] {
            let config = KafkaConfig { transaction_timeout_ms, ..KafkaConfig::new("a:1") };
            config.check().unwrap();
            let made: Result<rdkafka::producer::BaseProducer, _> = config.transactional("id", 1_000_000).create();
            assert!(made.is_ok(), "{transaction_timeout_ms}: {:?}", made.err());
        }
        let config = KafkaConfig { max_message_bytes: LEAST_MESSAGE, ..KafkaConfig::new("a:1") };
        config.check().unwrap();
        for client in [config.reader(), config.producer(), config.transactional("t", 1_000_000)] {
            assert_eq!(client.get("message.max.bytes"), Some("2097152"));
        }
    }
}

//! Configuration of one process: one YAML file, overridden field by field by flags and environment variables.
//!
//! Every field has a default, so that an empty file (or none) configures a pipeline on embedded stores on loopback. Unknown fields are
//! refused; an error names file, line and column and what would be right. [`load`] reads, overrides and checks; [`Config::to_yaml`] is
//! what `--print-config` prints, without secrets. Which fields flags and environment override is in [`ConfigArgs`].

mod action;
mod embedded;
mod load;
mod objects;
mod ownership;
mod secret;
mod state;
#[cfg(test)]
mod tests;
mod text;
mod unify;
mod units;

pub use action::Action;
pub use embedded::EmbeddedLog;
pub use load::{ConfigArgs, ConfigError, load, parse};
pub use objects::{Checkpoints, ObjectFolder, Objects, S3, ServerEncryption};
pub use ownership::{Ownership, Place, Plan};
pub use secret::{KeyHash, Secret, without_credentials};
pub use state::State;
pub use unify::{RecordLimits, TenantRules, Unify};
pub use units::{Millis, Size};

use millstream_stages::source;
use millstream_stores::kafka::KafkaConfig;
use millstream_stores::mongo::MongoConfig;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use text::{from_text, to_text};

/// Configuration of one process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Name of the pipeline: prefix of its topics and transactional ids (default `millstream`).
    pub pipeline: Name,
    /// Partitions of each topic, and shards of each stage, 1 to 4,096 (default 8). Fixed when the pipeline is created.
    pub shards: Shards,
    /// Generation of the pipeline (default 1); in the names of internal topics.
    pub generation: u16,
    /// Name of this worker (default `worker-0`); with a number of its own per start it names the process in ownership records.
    pub worker: Name,
    /// Address of the gateway's public port (default `127.0.0.1:8080`).
    pub listen: SocketAddr,
    /// Address of the admin port: health, metrics, tail, inspect (default `127.0.0.1:9090`). Not for the public: it knows no keys.
    pub admin_listen: SocketAddr,
    /// Folder of local state and of the embedded stores (default `./data`).
    pub data_dir: PathBuf,
    /// How this process knows its shards: `static`, by `owned`, or `plan`, by the plan in `control` (default `static`).
    #[serde(with = "serde_yaml::with::singleton_map")]
    pub ownership: Ownership,
    /// Shards that this process owns when `ownership` is `static`: `all` or a list such as `[0, 1]` (default `all`).
    pub owned: Owned,
    /// The log: `embedded` or `kafka` (default `embedded`).
    #[serde(with = "serde_yaml::with::singleton_map")]
    pub log: Log,
    /// What the embedded log keeps.
    pub embedded: EmbeddedLog,
    /// The document store: `embedded` or `mongodb` (default `embedded`).
    #[serde(with = "serde_yaml::with::singleton_map")]
    pub documents: Documents,
    /// The object store, where checkpoints go: `none`, `folder` or `s3` (default `none`).
    #[serde(with = "serde_yaml::with::singleton_map")]
    pub objects: Objects,
    /// When checkpoints are taken, and how many are kept.
    pub checkpoints: Checkpoints,
    /// Who may send.
    pub tenants: Vec<Tenant>,
    /// What a request and a record may measure.
    pub limits: Limits,
    /// The gateway's own settings.
    pub gateway: Gateway,
    /// What unify accepts, and how long it remembers message ids.
    pub unify: Unify,
    /// What one user or device may hold.
    pub action: Action,
    /// When a shard commits.
    pub batch: Batch,
    /// Memory and disk of the local state.
    pub state: State,
    /// How much waits to be written to documents.
    pub reaction: Reaction,
    /// Logs and traces.
    pub telemetry: Telemetry,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            pipeline: Name("millstream".to_owned()),
            shards: Shards(8),
            generation: 1,
            worker: Name("worker-0".to_owned()),
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            admin_listen: SocketAddr::from(([127, 0, 0, 1], 9090)),
            data_dir: PathBuf::from("./data"),
            ownership: Ownership::Static,
            owned: Owned::All,
            log: Log::Embedded,
            embedded: EmbeddedLog::default(),
            documents: Documents::Embedded,
            objects: Objects::None,
            checkpoints: Checkpoints::default(),
            tenants: Vec::new(),
            limits: Limits::default(),
            gateway: Gateway::default(),
            unify: Unify::default(),
            action: Action::default(),
            batch: Batch::default(),
            state: State::default(),
            reaction: Reaction::default(),
            telemetry: Telemetry::default(),
        }
    }
}

impl Config {
    /// The effective configuration, secrets redacted.
    pub fn to_yaml(&self) -> String {
        let mut shown = self.clone();
        if let Documents::Mongodb(mongodb) = &mut shown.documents {
            let is_in_file = mongodb.uri_file.is_some();
            mongodb.uri = if is_in_file { String::new() } else { without_credentials(&mongodb.uri) };
        }
        if let Objects::S3(s3) = &mut shown.objects {
            s3.access_key_id = s3.access_key_id.take().filter(|_| s3.access_key_id_file.is_none());
            s3.secret_access_key = s3.secret_access_key.take().filter(|_| s3.secret_access_key_file.is_none());
        }
        if let Log::Kafka(kafka) = &mut shown.log {
            kafka.security.retain(|name, _| !kafka.security_files.contains_key(name));
            let secret =
                |name: &str| ["password", "secret", "jaas", "key.pem", "token"].iter().any(|part| name.contains(part));
            let properties = kafka.properties.iter_mut().filter(|(name, _)| secret(name));
            properties.for_each(|(_, value)| *value = "(redacted)".to_owned());
        }
        serde_yaml::to_string(&shown).unwrap_or_else(|error| format!("# cannot be printed: {error}\n"))
    }

    /// The shards that this process owns, ascending.
    pub fn owned_shards(&self) -> Vec<u32> {
        match &self.owned {
            Owned::All => (0..self.shards.0).collect(),
            Owned::Shards(shards) => {
                let mut shards = shards.clone();
                shards.sort_unstable();
                shards
            }
        }
    }
}

/// A name of 1 to 63 lower-case letters, digits, `-` and `.`, with a letter or digit at both ends: as Kubernetes names objects, and safe in
/// topics, keys and metrics.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Name, String> {
        if source::is_tenant_name(text) {
            return Ok(Name(text.to_owned()));
        }
        Err(format!(
            "`{}` is not a name: use 1 to 63 lower-case letters, digits, `-` and `.`, with a letter or digit at both ends",
            text.escape_debug()
        ))
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

from_text!(Name, "a name of 1 to 63 lower-case letters, digits, `-` and `.`");
to_text!(Name);

/// A number of shards, 1 to 4,096.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Shards(pub u32);

impl<'de> Deserialize<'de> for Shards {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Shards, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Shards;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number of shards from 1 to 4096")
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Shards, E> {
                let valid = u32::try_from(number).ok().filter(|number| (1..=4096).contains(number));
                valid.map(Shards).ok_or_else(|| E::invalid_value(serde::de::Unexpected::Unsigned(number), &self))
            }
        }
        deserializer.deserialize_u32(Visitor)
    }
}

/// Which shards a process owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owned {
    /// Every one.
    All,
    /// These.
    Shards(Vec<u32>),
}

impl std::str::FromStr for Owned {
    type Err = String;

    /// `all`, or numbers with commas between them.
    fn from_str(text: &str) -> Result<Owned, String> {
        if text.trim() == "all" {
            return Ok(Owned::All);
        }
        let numbers = text.split(',').map(|number| number.trim().parse()).collect::<Result<Vec<u32>, _>>();
        numbers.map(Owned::Shards).map_err(|_| format!("`{text}` is neither `all` nor a list of shards such as 0,1"))
    }
}

impl Serialize for Owned {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Owned::All => serializer.serialize_str("all"),
            Owned::Shards(shards) => shards.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Owned {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Owned, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Owned;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("`all` or a list of shards such as [0, 1]")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Owned, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Owned, A::Error> {
                let mut shards = Vec::new();
                while let Some(shard) = seq.next_element()? {
                    shards.push(shard);
                }
                Ok(Owned::Shards(shards))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// Which log the pipeline stands on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Log {
    /// In this process, below `data_dir`: one process only.
    Embedded,
    /// Apache Kafka.
    Kafka(Kafka),
}

/// How to reach Kafka, and how to use it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kafka {
    /// `host:port` of some brokers.
    pub brokers: Vec<String>,
    /// Copies of each partition of topics that are created (default 3). Below 3 a broken machine can lose acknowledged data: for development.
    #[serde(default = "default_replication")]
    pub replication: u16,
    /// Properties of the client for security, by librdkafka's names: `security.protocol`, `sasl.*`, `ssl.*`. Never printed.
    #[serde(default)]
    pub security: BTreeMap<String, Secret>,
    /// Of the same properties, those whose values are in files of their own, by name; the line end of a file does not count. Read once, at the start.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub security_files: BTreeMap<String, PathBuf>,
    /// Further properties of the client, by librdkafka's names, over Millstream's defaults (`fetch.wait.max.ms`, say: how long a reader lets what comes gather, 50 ms). What Millstream's guarantees rest on is refused.
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
    /// Topics that are not there are created (default). With `false` somebody else creates them: what is missing, or not as it must be, is named, and waited for.
    #[serde(default = "default_create_topics", skip_serializing_if = "is_true")]
    pub create_topics: bool,
    /// How long topics for others, when they are created, keep what is in them, by `ingress`, `events` and `rejects` (default: as the cluster says).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub retention: BTreeMap<PublicTopic, Millis>,
    /// Properties of topics that are created, over the cluster's defaults. What Millstream's guarantees rest on is refused.
    #[serde(default)]
    pub topic_properties: BTreeMap<String, String>,
    /// The brokers abort a transaction that is open for longer (default 10s).
    #[serde(default = "default_transaction_timeout")]
    pub transaction_timeout: Millis,
    /// Compression of what is produced: `none`, `lz4`, `snappy` or `gzip` (default `lz4`).
    #[serde(default = "default_compression")]
    pub compression: String,
    /// Largest message, before compression (default 8MiB, at least 2MiB): for producers, readers and topics that are created. Raise `max.message.bytes`
    /// of topics that exist first. What a batch writes to a partition is one request of up to this size, or as much as the topic that takes least does, and the state of a large user is one message.
    #[serde(default = "default_max_message")]
    pub max_message_bytes: Size,
}

impl Kafka {
    /// The defaults, with these brokers.
    pub fn new(brokers: Vec<String>) -> Kafka {
        Kafka {
            brokers,
            replication: default_replication(),
            security: BTreeMap::new(),
            security_files: BTreeMap::new(),
            properties: BTreeMap::new(),
            create_topics: default_create_topics(),
            retention: BTreeMap::new(),
            topic_properties: BTreeMap::new(),
            transaction_timeout: default_transaction_timeout(),
            compression: default_compression(),
            max_message_bytes: default_max_message(),
        }
    }

    /// As the store takes it.
    pub fn store(&self) -> KafkaConfig {
        let reveal = |(name, value): (&String, &Secret)| (name.clone(), value.reveal().to_owned());
        KafkaConfig {
            security: self.security.iter().map(reveal).collect(),
            properties: self.properties.clone(),
            create_topics: self.create_topics,
            topic_properties: self.topic_properties.clone(),
            replication_factor: self.replication,
            transaction_timeout_ms: self.transaction_timeout.0,
            compression: self.compression.clone(),
            // What is too large for the type is refused as too large by the store's check.
            max_message_bytes: u32::try_from(self.max_message_bytes.0).unwrap_or(u32::MAX),
            ..KafkaConfig::new(self.brokers.join(","))
        }
    }
}

/// A topic for others than workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PublicTopic {
    /// Accepted records.
    Ingress,
    /// Enriched events.
    Events,
    /// Rejects.
    Rejects,
}

fn default_create_topics() -> bool {
    true
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_true(value: &bool) -> bool {
    *value
}

fn default_replication() -> u16 {
    3
}

fn default_transaction_timeout() -> Millis {
    Millis(10_000)
}

fn default_compression() -> String {
    "lz4".to_owned()
}

fn default_max_message() -> Size {
    Size(8 << 20)
}

/// Which document store the reaction stage writes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Documents {
    /// In this process, below `data_dir`.
    Embedded,
    /// MongoDB, or a server that speaks its protocol.
    Mongodb(Mongodb),
}

/// How to reach MongoDB, and how to use it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mongodb {
    /// Connection string, `mongodb://...`. This or `uri_file`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uri: String,
    /// File with the connection string; its line end does not count. Read once, at the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri_file: Option<PathBuf>,
    /// Database that holds the collections (default `millstream`).
    #[serde(default = "default_database")]
    pub database: String,
    /// A write that a majority has not acknowledged after this time is repeated (default 10s).
    #[serde(default = "default_write_timeout")]
    pub write_timeout: Millis,
    /// Further options of the connection string (`maxPoolSize`, `tls`, ...).
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

impl Mongodb {
    /// The defaults, with this server.
    pub fn new(uri: impl Into<String>) -> Mongodb {
        let (database, write_timeout) = (default_database(), default_write_timeout());
        Mongodb { uri: uri.into(), uri_file: None, database, write_timeout, options: BTreeMap::new() }
    }

    /// As the store takes it.
    pub fn store(&self) -> MongoConfig {
        MongoConfig {
            write_timeout_ms: self.write_timeout.0,
            options: self.options.clone(),
            ..MongoConfig::new(self.uri.clone(), self.database.clone())
        }
    }
}

fn default_database() -> String {
    "millstream".to_owned()
}

fn default_write_timeout() -> Millis {
    Millis(10_000)
}

/// A tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tenant {
    /// Its name, 1 to 63 lower-case letters, digits, `-` and `.`.
    pub name: Name,
    /// Its API keys; several, so that one can be replaced without a gap.
    #[serde(default)]
    pub api_keys: Vec<ApiKey>,
}

/// An API key; exactly one of its members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// SHA-256 of the key, 64 hexadecimal digits: `printf %s KEY | sha256sum`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<KeyHash>,
    /// The key itself, for development.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plain: Option<Secret>,
}

impl ApiKey {
    /// A key written out.
    pub fn plain(key: &str) -> ApiKey {
        ApiKey { sha256: None, plain: key.parse().ok() }
    }

    /// What a process keeps of it.
    pub fn hash(&self) -> Option<KeyHash> {
        self.sha256.or_else(|| self.plain.as_ref().map(|key| KeyHash::of(key.reveal())))
    }
}

/// What a request and its records may measure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Body of a request, decompressed (default 5 MB).
    pub request_bytes: Size,
    /// Body of a request as it was sent, when it is compressed (default 1 MB).
    pub compressed_bytes: Size,
    /// Records per request (default 2,500).
    pub records: usize,
    /// One record (default 256 KiB).
    pub record_bytes: Size,
    /// Levels of objects and lists in a record, itself included (default 10).
    pub depth: usize,
    /// Characters of a message id and of an `Idempotency-Key` (default 200, at least 80).
    pub id_chars: usize,
    /// What a request says about all its records (Segment's batch `context`) (default 16 KiB).
    pub context_bytes: Size,
}

impl Default for Limits {
    fn default() -> Limits {
        let source = source::Limits::default();
        Limits {
            request_bytes: Size(5_000_000),
            compressed_bytes: Size(1_000_000),
            records: source.max_records,
            record_bytes: Size(source.max_record_bytes as u64),
            depth: source.max_depth,
            id_chars: source.max_id_chars,
            context_bytes: Size(source.max_context_bytes as u64),
        }
    }
}

impl Limits {
    /// Those that apply to the records of a request.
    pub fn source(&self) -> source::Limits {
        source::Limits {
            max_records: self.records,
            max_record_bytes: self.record_bytes.bytes(),
            max_depth: self.depth,
            max_id_chars: self.id_chars,
            max_context_bytes: self.context_bytes.bytes(),
        }
    }
}

/// The gateway's own settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gateway {
    /// A body must have arrived this long after its headers (default 10s), else 408.
    pub body_timeout: Millis,
    /// The log must have acknowledged a request's records in this time (default 10s), else 503 and the ids to repeat.
    pub acknowledge_timeout: Millis,
    /// Bodies in memory of all requests in flight (default 64 MB), beyond it 503. A body is held about four times until its
    /// acknowledgement: as read, as envelopes, as frame, and in the log's client.
    pub in_flight_bytes: Size,
    /// How long records may wait for company while an earlier frame of their partition is under way (default 2ms). A frame leaves at once when none is.
    pub coalesce: Millis,
    /// After a stop was asked for, how long requests in flight may take (default 15s).
    pub drain_timeout: Millis,
    /// How many gateways the pipeline has (default 1): each takes its share of a tenant's rate. What an operator publishes in `control` goes before it.
    pub count: u32,
}

impl Default for Gateway {
    fn default() -> Gateway {
        Gateway {
            body_timeout: Millis(10_000),
            acknowledge_timeout: Millis(10_000),
            in_flight_bytes: Size(64_000_000),
            coalesce: Millis(2),
            drain_timeout: Millis(15_000),
            count: 1,
        }
    }
}

/// When a shard commits: at whichever bound is met first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Batch {
    /// Time since its first record (default 50ms).
    pub max_time: Millis,
    /// Records (default 10,000).
    pub max_records: usize,
    /// Bytes of input (default 4 MB).
    pub max_bytes: Size,
    /// Partitions of the exchange between shards that one batch writes to (default 16): its transaction holds back the readers of all of them until it ends.
    /// What is for others waits for the next batches, in order.
    pub max_exchange_partitions: usize,
}

impl Default for Batch {
    fn default() -> Batch {
        Batch { max_time: Millis(50), max_records: 10_000, max_bytes: Size(4_000_000), max_exchange_partitions: 16 }
    }
}

/// How much waits to be written to documents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reaction {
    /// Mutations of a partition that are read and not written yet (default 64 MiB): beyond it reading pauses. They are held in memory about twice.
    pub backlog_bytes: Size,
}

impl Default for Reaction {
    fn default() -> Reaction {
        Reaction { backlog_bytes: Size(64 << 20) }
    }
}

/// Logs and traces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// Where spans go by OTLP over HTTP, for example `http://127.0.0.1:4318`; none are exported without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_endpoint: Option<String>,
    /// Share of requests without a `traceparent` of their own that are traced, 0 to 1 (default 0.01).
    pub sample_ratio: Ratio,
    /// `text` or `json` (default `text`).
    pub log_format: LogFormat,
    /// What is logged, in the syntax of `RUST_LOG` (default `info`), for example `info,millstream::gateway=debug`.
    pub log_filter: String,
}

impl Default for Telemetry {
    fn default() -> Telemetry {
        Telemetry {
            otlp_endpoint: None,
            sample_ratio: Ratio(0.01),
            log_format: LogFormat::Text,
            log_filter: "info".to_owned(),
        }
    }
}

/// A number from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize)]
pub struct Ratio(pub f64);

impl Ratio {
    fn checked(number: f64) -> Option<Ratio> {
        (0.0..=1.0).contains(&number).then_some(Ratio(number))
    }
}

impl std::str::FromStr for Ratio {
    type Err = String;

    fn from_str(text: &str) -> Result<Ratio, String> {
        let ratio = text.trim().parse().ok().and_then(Ratio::checked);
        ratio.ok_or_else(|| format!("`{text}` is not a number from 0 to 1"))
    }
}

impl<'de> Deserialize<'de> for Ratio {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Ratio, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Ratio;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number from 0 to 1")
            }

            fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Ratio, E> {
                Ratio::checked(number).ok_or_else(|| E::invalid_value(serde::de::Unexpected::Float(number), &self))
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Ratio, E> {
                self.visit_f64(number as f64)
            }
        }
        deserializer.deserialize_f64(Visitor)
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

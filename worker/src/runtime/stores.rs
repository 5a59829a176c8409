//! The stores that a configuration names.

use super::late::LateDocuments;
use super::system::Stop;
use super::throttle::Throttled;
use crate::config::{Config, Documents, Kafka, Log as LogConfig, ObjectFolder, Objects, PublicTopic};
use anyhow::{Context, Result, bail};
use millstream_shard::documents::DocumentStore;
use millstream_shard::log::{Log, LogError};
use millstream_shard::objects::ObjectStore;
use millstream_shard::state::{StateStore, StoreError};
use millstream_shard::topics::Topics;
use millstream_stores::embedded::SystemClock;
use millstream_stores::embedded::documents::EmbeddedDocuments;
use millstream_stores::embedded::log::{EmbeddedLog, LogOptions};
use millstream_stores::embedded::objects::FolderObjects;
use millstream_stores::kafka::{KafkaConfig, KafkaLog};
use millstream_stores::mongo::MongoDocuments;
use millstream_stores::rocks::{Resources, RocksState};
use millstream_stores::s3::S3Objects;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// A log, and the same as the embedded one, if that is it.
pub type OpenedLog = (Arc<dyn Log>, Option<Arc<EmbeddedLog>>);

/// The log; also as the embedded one, if that is it.
///
/// # Errors
/// When it cannot be opened; says what to do.
pub fn open_log(config: &Config) -> Result<OpenedLog> {
    match &config.log {
        LogConfig::Embedded => {
            let path = config.data_dir.join("log");
            let queue_bytes = usize::try_from(queue_bytes(config)).unwrap_or(usize::MAX);
            let options = LogOptions { queue_bytes, ..LogOptions::default() };
            let log = EmbeddedLog::open(&path, options, Arc::new(SystemClock));
            let log = Arc::new(log.with_context(|| format!("opening the embedded log in {}", path.display()))?);
            Ok((log.clone(), Some(log)))
        }
        LogConfig::Kafka(kafka) => {
            if kafka.replication < SAFE_REPLICATION {
                let replication = kafka.replication;
                tracing::warn!(
                    replication,
                    "topics have too few copies for production: the loss of one machine may lose what was acknowledged; set log.kafka.replication to 3"
                );
            }
            Ok((Arc::new(KafkaLog::new(kafka_config(config, kafka))?), None))
        }
    }
}

/// Kafka's configuration as this process's log takes it.
pub fn kafka_config(config: &Config, kafka: &Kafka) -> KafkaConfig {
    let topics = Topics::new(config.pipeline.as_str(), config.shards.0, config.generation);
    let named = kafka.retention.iter().map(|(topic, kept)| {
        let name = match topic {
            PublicTopic::Ingress => &topics.ingress,
            PublicTopic::Events => &topics.events,
            PublicTopic::Rejects => &topics.rejects,
        };
        (name.to_string(), kept.0)
    });
    KafkaConfig { queue_bytes: queue_bytes(config), retention_ms: named.collect(), ..kafka.store() }
}

/// A folder keeps the number of shards that it was made with: they are the partitions of its topics, and the folders of its state.
///
/// # Errors
/// When the configuration has another one; says which, and what to do.
pub fn check_shards(config: &Config, log: &EmbeddedLog, topics: &Topics) -> Result<()> {
    let (made_with, wanted) = (log.partitions(&topics.ingress), config.shards.0);
    if let Some(shards) = made_with.filter(|shards| *shards != wanted) {
        let folder = config.data_dir.display();
        bail!(
            "this data_dir was made with shards: {shards}; the configuration says {wanted}. The number cannot be changed: start with `--shards {shards}` \
             (`shards: {shards}`), or with another data_dir than {folder}"
        );
    }
    Ok(())
}

/// With fewer copies there is no majority that could insist on what was acknowledged.
const SAFE_REPLICATION: u16 = 3;

/// A producer's queue holds whatever the gateway may have in flight, so that it is the gateway that says no, before it has taken anything.
fn queue_bytes(config: &Config) -> u64 {
    config.gateway.in_flight_bytes.0.saturating_mul(2)
}

/// The document store.
///
/// # Errors
/// When it cannot be opened, or its configuration is wrong; says what to do. One that is a server need not be there yet.
pub fn open_documents(config: &Config) -> Result<Arc<dyn DocumentStore>> {
    match &config.documents {
        Documents::Embedded => {
            let path = config.data_dir.join("documents");
            let documents = EmbeddedDocuments::open(&path);
            let opened =
                documents.with_context(|| format!("opening the embedded document store in {}", path.display()))?;
            Ok(Arc::new(opened))
        }
        Documents::Mongodb(mongodb) => {
            let config = mongodb.store();
            let connect = move || Ok(Arc::new(MongoDocuments::connect(config.clone())?) as Arc<dyn DocumentStore>);
            Ok(Arc::new(LateDocuments::open(connect)?))
        }
    }
}

/// The object store; `None`: there is none.
///
/// # Errors
/// When it cannot be opened, or its configuration is wrong; says what to do. One that is a server need not be there yet.
pub fn open_objects(config: &Config) -> Result<Option<Arc<dyn ObjectStore>>> {
    let objects: Arc<dyn ObjectStore> = match &config.objects {
        Objects::None => return Ok(None),
        Objects::Folder(ObjectFolder { path }) => Arc::new(FolderObjects::open(path)?),
        Objects::S3(s3) => Arc::new(S3Objects::new(s3.store())?),
    };
    Ok(Some(match config.checkpoints.upload_per_second.0 {
        0 => objects,
        bytes_per_second => Arc::new(Throttled::new(objects, bytes_per_second)),
    }))
}

/// The pipeline's topics, created once per process, by whoever needs them first.
pub struct Creation {
    log: Arc<dyn Log>,
    topics: Topics,
    done: Mutex<bool>,
}

impl Creation {
    /// Nothing is created yet.
    pub fn new(log: Arc<dyn Log>, topics: Topics) -> Creation {
        Creation { log, topics, done: Mutex::new(false) }
    }

    /// Creates what is missing.
    ///
    /// # Errors
    /// [`LogError`]; the next caller tries again.
    pub fn ensure(&self, stop: &Stop) -> Result<(), LogError> {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        if !*done {
            // Those who waited for the lock while the log was away need not try in turn.
            if stop.is_stopped() {
                return Err(LogError::Unavailable("the process stops".into()));
            }
            self.log.create_topics(&self.topics.specs())?;
            *done = true;
        }
        Ok(())
    }
}

/// Opens the local state of this process's shards, which share what RocksDB may use.
#[derive(Clone)]
pub struct StateFolder {
    folder: PathBuf,
    resources: Resources,
}

impl StateFolder {
    /// The folder `state` of the configuration's data folder.
    pub fn new(config: &Config, resources: Resources) -> StateFolder {
        StateFolder { folder: config.data_dir.join("state"), resources }
    }

    /// The state of one shard.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(&self, stage: &str, shard: u32) -> Result<Arc<dyn StateStore>, StoreError> {
        let path = self.folder.join(format!("{stage}-{shard}"));
        Ok(Arc::new(RocksState::open(&path, &self.resources)?))
    }
}

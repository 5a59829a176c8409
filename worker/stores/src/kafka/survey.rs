//! A look at a cluster that changes nothing in it: for whoever checks a configuration.
//!
//! It joins no group, takes no transactional id, produces and creates nothing. What is asked: metadata, by a client that does not let brokers create the topics that it
//! asks about; settings; and whether the brokers *would* create a topic, which they check and answer without doing it (`validate_only`).

use super::client::{Quiet, about, code, creation, is_missing, serve};
use super::config::KafkaConfig;
use super::shared::{PROBE, creation_error};
use super::topics::{self, new_topic};
use millstream_shard::log::{LogError, TopicSpec};
use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, ResourceSpecifier};
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::MetadataPartition;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Settings by name, as the brokers write them.
pub type Settings = BTreeMap<String, String>;

/// The newest version of each request that a broker takes, by the request's number (<https://kafka.apache.org/protocol#protocol_api_keys>).
pub type Versions = BTreeMap<i16, i16>;

/// Log lines of one connection: two for each request that the broker knows, and more.
const LINES: usize = 1_000;

/// A broker of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broker {
    /// Its number.
    pub id: i32,
    /// `host:port` at which it says that it can be reached.
    pub address: String,
}

/// Where a topic's partitions are. Of the copies, those of the partition that has the fewest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Number of partitions.
    pub partitions: u32,
    /// Partitions that have no leader now.
    pub leaderless: u32,
    /// Copies.
    pub copies: usize,
    /// Copies that are in sync.
    pub in_sync: usize,
}

/// Who looks at a cluster.
pub struct Survey {
    config: KafkaConfig,
    quiet: Quiet,
    client: BaseConsumer<Quiet>,
    admin: AdminClient<Quiet>,
}

impl Survey {
    /// Makes the clients; connects in the background.
    ///
    /// # Errors
    /// [`LogError::Configuration`].
    pub fn open(config: KafkaConfig) -> Result<Survey, LogError> {
        config.check()?;
        let quiet = Quiet::default();
        let client =
            BaseConsumer::from_config_and_context(&config.reader(), quiet.clone()).map_err(|e| creation(&e))?;
        let admin = AdminClient::from_config_and_context(&config.client(), quiet.clone()).map_err(|e| creation(&e))?;
        Ok(Survey { config, quiet, client, admin })
    }

    /// The identity of the cluster, which it has for good; `None`: its brokers do not say.
    ///
    /// # Errors
    /// [`LogError::Unavailable`].
    pub fn cluster(&self) -> Result<Option<String>, LogError> {
        // Of brokers that are away the client only says that it knows none.
        self.brokers()?;
        Ok(self.client.client().fetch_cluster_id(self.config.request_timeout()))
    }

    /// The brokers that are there, by number.
    ///
    /// # Errors
    /// [`LogError::Unavailable`].
    pub fn brokers(&self) -> Result<Vec<Broker>, LogError> {
        let metadata = self.client.fetch_metadata(Some(PROBE), self.config.request_timeout());
        let metadata = self.explain(metadata.map_err(|error| away(&self.config.bootstrap_servers, &error)))?;
        let broker = |broker: &rdkafka::metadata::MetadataBroker| Broker {
            id: broker.id(),
            address: format!("{}:{}", broker.host(), broker.port()),
        };
        let mut brokers: Vec<Broker> = metadata.brokers().iter().map(broker).collect();
        brokers.sort_by_key(|broker| broker.id);
        Ok(brokers)
    }

    /// Where a topic is; `None`: there is none of this name.
    ///
    /// # Errors
    /// [`LogError::Unavailable`], also when it may not be asked about.
    pub fn layout(&self, topic: &str) -> Result<Option<Layout>, LogError> {
        let metadata = self.client.fetch_metadata(Some(topic), self.config.request_timeout());
        let metadata = metadata.map_err(|error| about(topic, code(&error), "cannot get the metadata of topic"));
        let metadata = self.explain(metadata)?;
        let Some(found) = metadata.topics().first() else { return Ok(None) };
        match found.error().map(RDKafkaErrorCode::from) {
            Some(code) if is_missing(code) => Ok(None),
            Some(code) => Err(about(topic, code, "cannot get the metadata of topic")),
            None if found.partitions().is_empty() => Ok(None),
            None => Ok(Some(layout(found.partitions()))),
        }
    }

    /// The settings of a topic, those of the cluster that apply to it included.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] with the brokers' reason, [`LogError::Topic`] when it is not there.
    pub fn topic_settings(&self, topic: &str) -> Result<Settings, LogError> {
        self.settings(&ResourceSpecifier::Topic(topic), topic)
    }

    /// The settings of a broker, asked of it at the address at which it says that it can be reached.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] with its reason.
    pub fn broker_settings(&self, broker: &Broker) -> Result<Settings, LogError> {
        self.settings(&ResourceSpecifier::Broker(broker.id), &broker.address)
    }

    fn settings(&self, of: &ResourceSpecifier<'_>, name: &str) -> Result<Settings, LogError> {
        let answer = futures::executor::block_on(self.admin.describe_configs([of], &self.options()));
        let answer = self.explain(answer.map_err(|error| about(name, code(&error), "cannot get the settings of")))?;
        match answer.into_iter().next() {
            Some(Ok(found)) => Ok(settings(found)),
            Some(Err(code)) => Err(about(name, code, "cannot get the settings of")),
            None => Err(LogError::Unavailable(format!("no answer about the settings of {name}"))),
        }
    }

    /// Would the brokers create this topic, as the configuration has it? They check it, and create nothing.
    ///
    /// # Errors
    /// Why not.
    pub fn would_create(&self, topic: &TopicSpec) -> Result<(), LogError> {
        let settings = topics::settings(&self.config, topic);
        let wanted = [new_topic(&self.config, topic, &settings)];
        let options = self.options().validate_only(true);
        let answer = futures::executor::block_on(self.admin.create_topics(&wanted, &options));
        let answer = answer.map_err(|error| about(&topic.name, code(&error), "cannot ask about creating topic"));
        match self.explain(answer)?.into_iter().next() {
            Some(Err((name, code))) => Err(creation_error(name, code)),
            Some(Ok(_)) => Ok(()),
            None => Err(LogError::Unavailable(format!("no answer about creating topic {}", topic.name))),
        }
    }

    fn options(&self) -> AdminOptions {
        AdminOptions::new().request_timeout(Some(self.config.request_timeout()))
    }

    /// An error says why, when a client knows.
    fn explain<T>(&self, result: Result<T, LogError>) -> Result<T, LogError> {
        serve(&self.client);
        self.quiet.explain(result)
    }
}

/// Connects to one broker alone, as the configuration says, and hears which requests it takes.
///
/// # Errors
/// [`LogError::Unavailable`] with the broker's reason, or the network's; [`LogError::Configuration`].
pub fn reach(config: &KafkaConfig, address: &str) -> Result<Versions, LogError> {
    let config = KafkaConfig { bootstrap_servers: address.to_owned(), ..config.clone() };
    config.check()?;
    let mut settings = config.reader();
    // `feature` logs what a broker takes; nothing else in the client tells it.
    settings.set("debug", "feature").set_log_level(RDKafkaLogLevel::Debug);
    let listener = Listener::default();
    let client = BaseConsumer::from_config_and_context(&settings, listener.clone()).map_err(|e| creation(&e))?;
    let answer = client.fetch_metadata(Some(PROBE), config.request_timeout());
    for _ in 0..LINES {
        drop(client.poll(Duration::ZERO));
    }
    listener.quiet.explain(answer.map_err(|error| away(address, &error)))?;
    Ok(listener.versions.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

/// A client whose log says what brokers take.
#[derive(Clone, Default)]
struct Listener {
    quiet: Quiet,
    versions: Arc<Mutex<Versions>>,
}

impl ClientContext for Listener {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match version(message).filter(|_| facility == "APIVERSION") {
            Some((request, newest)) => {
                self.versions.lock().unwrap_or_else(PoisonError::into_inner).insert(request, newest);
            }
            None => self.quiet.log(level, facility, message),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.quiet.error(error, reason);
    }
}

impl ConsumerContext for Listener {}

/// Number and newest version of a request, from a line such as `[thrd:...]: ...:   ApiKey Metadata (3) Versions 0..13`.
fn version(line: &str) -> Option<(i16, i16)> {
    let (_, rest) = line.split_once("ApiKey ")?;
    let (_, rest) = rest.split_once('(')?;
    let (request, range) = rest.split_once(") Versions ")?;
    let (_, newest) = range.split_once("..")?;
    Some((request.parse().ok()?, newest.trim().parse().ok()?))
}

fn away(address: &str, error: &KafkaError) -> LogError {
    LogError::Unavailable(format!("cannot reach {address}: {}", code(error)))
}

fn layout(partitions: &[MetadataPartition]) -> Layout {
    let fewest = |count: fn(&MetadataPartition) -> usize| partitions.iter().map(count).min().unwrap_or(0);
    let leaderless = partitions.iter().filter(|partition| partition.leader() < 0).count();
    Layout {
        partitions: u32::try_from(partitions.len()).unwrap_or(u32::MAX),
        leaderless: u32::try_from(leaderless).unwrap_or(u32::MAX),
        copies: fewest(|partition| partition.replicas().len()),
        in_sync: fewest(|partition| partition.isr().len()),
    }
}

fn settings(found: ConfigResource) -> Settings {
    found.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_brokers_versions_are_read_from_the_clients_log() {
        let line = "[thrd:h:1/bootstrap]: h:1/bootstrap:   ApiKey Metadata (3) Versions 0..13";
        assert_eq!(version(line), Some((3, 13)));
        assert_eq!(version("[thrd:a(1)]: a:   ApiKey DescribeShareGroupOffsets (90) Versions 0..1"), Some((90, 1)));
        for other in ["", "Broker API support:", "ApiKey X", "ApiKey X (a) Versions 1..2", "ApiKey X (1) Versions 1"] {
            assert_eq!(version(other), None);
        }
    }
}

//! What the clients of one log share: configuration, the client that asks about offsets, the admin client, known topics.

use super::bulk::{Bulk, Share};
use super::client::{Quiet, Reading, about, code, creation, is_missing, serve};
use super::config::KafkaConfig;
use super::raw;
use super::topics::{self, new_topic};
use millstream_shard::log::{Deletes, Ends, LogError, TopicPartition, TopicSpec, View};
use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, ResourceSpecifier};
use rdkafka::config::{ClientConfig, FromClientConfigAndContext};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long to wait before asking again for metadata that is on its way.
const METADATA_BACKOFF: Duration = Duration::from_millis(20);

/// A topic that is not there: metadata that is asked about it says which brokers there are, and little else.
pub(super) const PROBE: &str = "__millstream_probe";

/// After this time another leader, or controller, is looked for.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);

pub(super) struct Shared {
    pub(super) config: KafkaConfig,
    /// Of the clients that ask and administer.
    quiet: Quiet,
    queries: BaseConsumer<Quiet>,
    /// Asks for ends that readers do not see.
    uncommitted: BaseConsumer<Quiet>,
    admin: AdminClient<Quiet>,
    bulk: Arc<Bulk>,
    topics: Mutex<HashMap<String, u32>>,
    /// What the topic that takes least takes in one request for a partition, bytes, of those that were looked at.
    request_bytes: AtomicU32,
}

fn reading(config: &ClientConfig) -> Result<Reading, LogError> {
    BaseConsumer::from_config_and_context(config, Quiet::default()).map(Arc::new).map_err(|error| creation(&error))
}

impl Shared {
    pub(super) fn new(config: KafkaConfig) -> Result<Shared, LogError> {
        config.check()?;
        let quiet = Quiet::default();
        let queries =
            BaseConsumer::from_config_and_context(&config.reader(), quiet.clone()).map_err(|e| creation(&e))?;
        let mut reader = config.reader();
        reader.set("isolation.level", "read_uncommitted");
        let uncommitted = BaseConsumer::from_config_and_context(&reader, quiet.clone()).map_err(|e| creation(&e))?;
        let admin = AdminClient::from_config_and_context(&config.client(), quiet.clone()).map_err(|e| creation(&e))?;
        let (bulk, topics) = (Arc::default(), Mutex::default());
        let request_bytes = AtomicU32::new(config.max_message_bytes);
        Ok(Shared { config, quiet, queries, uncommitted, admin, bulk, topics, request_bytes })
    }

    /// How a producer of transactions is configured.
    pub(super) fn transactional(&self, id: &str) -> ClientConfig {
        self.config.transactional(id, self.request_bytes.load(Ordering::Relaxed))
    }

    /// Requests of transactions for a partition measure no more from here on, bytes.
    pub(super) fn takes_at_most(&self, bytes: u32) {
        self.request_bytes.fetch_min(bytes, Ordering::Relaxed);
    }

    /// A client to read with.
    pub(super) fn reader(&self, view: View) -> Result<Reading, LogError> {
        let mut config = self.config.reader();
        if view == View::Everything {
            config.set("isolation.level", "read_uncommitted");
        }
        reading(&config)
    }

    /// A client to read much of these partitions with, which others may read other partitions with.
    pub(super) fn bulk_reader(&self, of: Vec<TopicPartition>) -> Result<(Reading, Option<Share>), LogError> {
        let names: BTreeSet<&str> = of.iter().map(|at| &*at.topic).collect();
        let topics = names.into_iter().map(|topic| Ok((topic.to_owned(), self.topic_id(topic)?)));
        let topics = topics.collect::<Result<_, LogError>>()?;
        self.bulk.join(of, topics, || reading(&self.config.bulk_reader()))
    }

    /// An error of a call that says why, when the client knows. It reads nothing, so that events are all there is.
    fn explain<T>(&self, result: Result<T, LogError>) -> Result<T, LogError> {
        if matches!(result, Err(LogError::Unavailable(_))) {
            self.remind();
        }
        serve(&self.queries);
        self.quiet.explain(result)
    }

    /// Clients that ask and get no answer may have lost all brokers for good, see [`Reminder`](super::client::Reminder).
    fn remind(&self) {
        if self.quiet.reminder().may() {
            for client in [self.queries.client(), self.uncommitted.client(), self.admin.inner()] {
                raw::add_brokers(client, &self.config.bootstrap_servers);
            }
        }
    }

    /// The number of brokers that are there.
    pub(super) fn brokers(&self, wait: Duration) -> Result<usize, LogError> {
        let metadata = self
            .queries
            .fetch_metadata(Some(PROBE), wait)
            .map_err(|error| LogError::Unavailable(format!("cannot reach {}: {error}", self.config.bootstrap_servers)));
        Ok(self.explain(metadata)?.brokers().len())
    }

    /// The number of partitions of a topic.
    pub(super) fn partitions(&self, topic: &str, wait: Duration) -> Result<u32, LogError> {
        if let Some(&count) = self.topics.lock().unwrap_or_else(PoisonError::into_inner).get(topic) {
            return Ok(count);
        }
        let metadata = self
            .queries
            .fetch_metadata(Some(topic), wait)
            .map_err(|error| about(topic, code(&error), "cannot get the metadata of topic"));
        let metadata = self.explain(metadata)?;
        let found = metadata.topics().first();
        if let Some(error) = found.and_then(|found| found.error()) {
            return Err(about(topic, error.into(), "cannot get the metadata of topic"));
        }
        let count = found.map_or(0, |found| found.partitions().len());
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        if count == 0 {
            return Err(about(topic, RDKafkaErrorCode::UnknownTopicOrPartition, "cannot read topic"));
        }
        self.topics.lock().unwrap_or_else(PoisonError::into_inner).insert(topic.to_owned(), count);
        Ok(count)
    }

    /// A partition's number as librdkafka takes it, when it exists.
    pub(super) fn partition(&self, at: &TopicPartition) -> Result<i32, LogError> {
        self.partition_of(&at.topic, at.partition, self.config.request_timeout())
    }

    /// The same, waiting no longer than `wait` for the metadata.
    pub(super) fn partition_of(&self, topic: &str, partition: u32, wait: Duration) -> Result<i32, LogError> {
        let count = self.partitions(topic, wait)?;
        if partition >= count {
            let message = format!("partition {partition} does not exist, it has {count}");
            return Err(LogError::Topic { topic: topic.to_owned(), message });
        }
        i32::try_from(partition)
            .map_err(|_| LogError::Topic { topic: topic.to_owned(), message: format!("no partition {partition}") })
    }

    /// First offset and last stable offset, asked of the leader: a read-committed client's ListOffsets carries its isolation level.
    pub(super) fn bounds(&self, at: &TopicPartition) -> Result<(u64, u64), LogError> {
        self.explain(self.watermarks(&self.queries, at))
    }

    /// One after the last message, open transactions included.
    pub(super) fn high_watermark(&self, at: &TopicPartition) -> Result<u64, LogError> {
        Ok(self.watermarks(&self.uncommitted, at)?.1)
    }

    /// Both ends of several partitions, each asked of the leaders, in one request per leader.
    pub(super) fn ends(&self, of: &[TopicPartition]) -> Result<Vec<Ends>, LogError> {
        if of.is_empty() {
            // Nobody is asked: what keeps the brokers from answering is as it was.
            return Ok(Vec::new());
        }
        let whole = self.latest(&self.uncommitted, of)?;
        let visible = self.explain(self.latest(&self.queries, of))?;
        Ok(visible.into_iter().zip(whole).map(|(visible, end)| Ends { visible, end }).collect())
    }

    /// The newest offset of each partition, by the client's isolation level.
    fn latest(&self, client: &BaseConsumer<Quiet>, of: &[TopicPartition]) -> Result<Vec<u64>, LogError> {
        let mut wanted = TopicPartitionList::with_capacity(of.len());
        for at in of {
            wanted
                .add_partition_offset(&at.topic, self.partition(at)?, Offset::End)
                .map_err(|error| creation(&error))?;
        }
        self.insist(client, of, |wait| {
            let found = client.offsets_for_times(wanted.clone(), wait);
            let found = found.map_err(|error| about("(several)", code(&error), "cannot get the offsets of topics"))?;
            offsets_in(&found, of)
        })
    }

    fn watermarks(&self, client: &BaseConsumer<Quiet>, at: &TopicPartition) -> Result<(u64, u64), LogError> {
        let partition = self.partition(at)?;
        let (low, high) = self.insist(client, std::slice::from_ref(at), |wait| {
            let found = client.fetch_watermarks(&at.topic, partition, wait);
            found.map_err(|error| about(&at.topic, code(&error), "cannot get the offsets of topic"))
        })?;
        Ok((u64::try_from(low).unwrap_or(0), u64::try_from(high).unwrap_or(0)))
    }

    /// Asks until the leaders of these partitions, which exist, answer, or the time is over. A client goes by the leaders that it knows: it asks one that is gone until it
    /// has heard of another, and takes a partition without any for one that is not there. So after each failure it has to fetch what is known now.
    fn insist<T>(
        &self,
        client: &BaseConsumer<Quiet>,
        of: &[TopicPartition],
        mut ask: impl FnMut(Duration) -> Result<T, LogError>,
    ) -> Result<T, LogError> {
        let deadline = Instant::now() + self.config.request_timeout();
        let left = || deadline.saturating_duration_since(Instant::now());
        loop {
            let answer = ask(left().min(ANSWERS_WITHIN));
            serve(client);
            let error = match answer {
                Err(error @ (LogError::Unavailable(_) | LogError::Topic { .. })) => error,
                decided => return decided,
            };
            if left() <= METADATA_BACKOFF {
                return Err(LogError::Unavailable(error.to_string()));
            }
            self.remind();
            let topics: BTreeSet<&str> = of.iter().map(|at| &*at.topic).collect();
            for topic in topics {
                refresh(client, topic, left().min(ANSWERS_WITHIN))?;
            }
            std::thread::sleep(METADATA_BACKOFF);
        }
    }

    pub(super) fn topic_id(&self, topic: &str) -> Result<String, LogError> {
        let deadline = Instant::now() + self.config.request_timeout();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            self.learn_controller(left.min(ANSWERS_WITHIN));
            let found = raw::topic_id(self.admin.inner(), topic, left.min(ANSWERS_WITHIN));
            let is_over = Instant::now() >= deadline;
            match found {
                Err(RDKafkaErrorCode::OperationTimedOut) if !is_over => {}
                found => return self.explain(found.map_err(|code| about(topic, code, "cannot describe topic"))),
            }
        }
    }

    /// Before whatever the admin client asks: it asks the controller, and when the one that it knows of is gone, it waits for that one to come back. It learns of
    /// another only with the next metadata, which nothing but this makes it fetch. (What the brokers name may be gone too, until they have noticed.)
    fn learn_controller(&self, wait: Duration) {
        let metadata = self.admin.inner().fetch_metadata(Some(PROBE), wait);
        if let Err(error) = metadata {
            tracing::debug!(%error, "no metadata for the admin client");
            self.remind();
        }
    }

    pub(super) fn create_topics(&self, topics: &[TopicSpec]) -> Result<(), LogError> {
        if !self.config.create_topics {
            return self.check_topics(topics);
        }
        let settings: Vec<_> = topics.iter().map(|topic| topics::settings(&self.config, topic)).collect();
        let wanted = topics.iter().zip(&settings).map(|(topic, settings)| new_topic(&self.config, topic, settings));
        let wanted: Vec<_> = wanted.collect();
        let options = self.options().operation_timeout(Some(self.config.request_timeout()));
        self.learn_controller(self.config.request_timeout());
        let results = futures::executor::block_on(self.admin.create_topics(&wanted, &options))
            .map_err(|error| about("(all)", code(&error), "cannot create topics"));
        for (result, topic) in self.explain(results)?.into_iter().zip(topics) {
            match result {
                Ok(_) => {}
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => self.check_topic(topic)?,
                Err((name, code)) => return Err(creation_error(name, code)),
            }
        }
        topics.iter().try_for_each(|topic| self.wait_for(topic))
    }

    /// Topics that somebody else makes: everything that is missing, or not as it must be, in one error.
    fn check_topics(&self, topics: &[TopicSpec]) -> Result<(), LogError> {
        let mut wrong = Vec::new();
        for topic in topics {
            self.forget(&topic.name);
            let found = self.partitions(&topic.name, self.config.request_timeout());
            match found.and_then(|_| self.check_topic(topic)) {
                Ok(()) => {}
                Err(LogError::Topic { topic: name, message }) if name == topic.name => {
                    wrong.push((topic, message));
                }
                Err(error) => return Err(error),
            }
        }
        let Some((first, _)) = wrong.first() else { return Ok(()) };
        let each = wrong.iter().map(|(topic, message)| {
            let settings: Vec<String> =
                topics::settings(&self.config, topic).iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!(
                "{}: {message}; it must have {} partitions and {}",
                topic.name,
                topic.partitions,
                settings.join(", ")
            )
        });
        let (name, each) = (first.name.clone(), each.collect::<Vec<_>>().join("\n"));
        let message = format!(
            "topics are not created here, and {} of {} are not as they must be:\n{each}",
            wrong.len(),
            topics.len()
        );
        Err(LogError::Topic { topic: name, message })
    }

    /// What a topic deletes by itself, asked once.
    pub(super) fn deletes(&self, topic: &str) -> Result<Deletes, LogError> {
        let found = self.settings_of(topic)?;
        Ok(topics::deletes(|name| value(&found, name)))
    }

    fn settings_of(&self, topic: &str) -> Result<ConfigResource, LogError> {
        let asked = [ResourceSpecifier::Topic(topic)];
        let answer = futures::executor::block_on(self.admin.describe_configs(&asked, &self.options()))
            .map_err(|error| about(topic, code(&error), "cannot describe topic"))?;
        match answer.into_iter().next() {
            // Every topic has settings. The client keeps from us why a broker tells of none: it may not.
            Some(Ok(found)) if found.entries.is_empty() => Err(LogError::Unavailable(format!(
                "cannot describe topic {topic}: the brokers tell nothing of its settings; allow DescribeConfigs"
            ))),
            Some(Ok(found)) => Ok(found),
            Some(Err(code)) => Err(about(topic, code, "cannot describe topic")),
            None => Err(LogError::Unavailable(format!("cannot describe topic {topic}"))),
        }
    }

    pub(super) fn delete_topic(&self, topic: &str) -> Result<(), LogError> {
        let options = self.options().operation_timeout(Some(self.config.request_timeout()));
        self.learn_controller(self.config.request_timeout());
        let results = futures::executor::block_on(self.admin.delete_topics(&[topic], &options))
            .map_err(|error| about(topic, code(&error), "cannot delete topic"))?;
        if let Some(Err((name, code))) = results.into_iter().next() {
            return Err(about(&name, code, "cannot delete topic"));
        }
        self.await_gone(topic, Instant::now() + self.config.request_timeout())
    }

    /// Brokers name a topic for a moment after its deletion was noted: whoever made it anew, or looked whether it is there, would meet the former one.
    fn await_gone(&self, topic: &str, deadline: Instant) -> Result<(), LogError> {
        loop {
            self.forget(topic);
            match self.partitions(topic, self.config.request_timeout()) {
                Err(LogError::Topic { .. }) => return Ok(()),
                _ if Instant::now() >= deadline => {
                    return Err(LogError::Unavailable(format!("topic {topic} is still there after its deletion")));
                }
                _ => std::thread::sleep(METADATA_BACKOFF),
            }
        }
    }

    pub(super) fn delete_topics(&self, topics: &[String]) -> Result<(), LogError> {
        let names: Vec<&str> = topics.iter().map(String::as_str).collect();
        let options = self.options().operation_timeout(Some(self.config.request_timeout()));
        self.learn_controller(self.config.request_timeout());
        let results = futures::executor::block_on(self.admin.delete_topics(&names, &options))
            .map_err(|error| about("(several)", code(&error), "cannot delete topics"));
        topics.iter().for_each(|topic| self.forget(topic));
        let failed = self.explain(results)?.into_iter().filter_map(Result::err).find(|(_, code)| !is_missing(*code));
        if let Some((name, code)) = failed {
            return Err(about(&name, code, "cannot delete topic"));
        }
        let deadline = Instant::now() + self.config.request_timeout();
        topics.iter().try_for_each(|topic| self.await_gone(topic, deadline))
    }

    pub(super) fn trim(&self, at: &TopicPartition, before: u64) -> Result<(), LogError> {
        let failed = |error: &KafkaError| about(&at.topic, code(error), "cannot trim topic");
        let mut offsets = TopicPartitionList::new();
        let offset = Offset::Offset(i64::try_from(before).unwrap_or(i64::MAX));
        offsets.add_partition_offset(&at.topic, self.partition(at)?, offset).map_err(|error| failed(&error))?;
        let trimmed = futures::executor::block_on(self.admin.delete_records(&offsets, &self.options()));
        let trimmed = trimmed.map_err(|error| failed(&error))?;
        trimmed.elements().iter().try_for_each(|element| element.error().map_err(|error| failed(&error)))
    }

    fn forget(&self, topic: &str) {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner).remove(topic);
    }

    fn options(&self) -> AdminOptions {
        AdminOptions::new().request_timeout(Some(self.config.request_timeout()))
    }

    /// A topic that exists already must be like the one that was asked for; its settings.
    fn check_topic(&self, topic: &TopicSpec) -> Result<(), LogError> {
        let differs = |message: String| LogError::Topic { topic: topic.name.clone(), message };
        let partitions = self.once_known(|| {
            self.forget(&topic.name);
            self.partitions(&topic.name, self.config.request_timeout())
        })?;
        if partitions != topic.partitions {
            return Err(differs(format!("it exists with {partitions} partitions, not {}", topic.partitions)));
        }
        let found = self.once_known(|| self.settings_of(&topic.name))?;
        if let Some(message) = topics::differs(topics::demands(&self.config, topic), |name| value(&found, name)) {
            return Err(differs(message));
        }
        let takes = topics::request_bytes(topic, |name| value(&found, name));
        takes.into_iter().for_each(|bytes| self.takes_at_most(bytes));
        Ok(())
    }

    /// Asks again while brokers do not know yet the topic that somebody else has just created.
    fn once_known<T>(&self, ask: impl Fn() -> Result<T, LogError>) -> Result<T, LogError> {
        let deadline = Instant::now() + self.config.request_timeout();
        loop {
            match ask() {
                Err(LogError::Topic { .. } | LogError::Unavailable(_)) if Instant::now() < deadline => {
                    std::thread::sleep(METADATA_BACKOFF);
                }
                decided => return decided,
            }
        }
    }

    /// Waits until every partition of a topic has a leader that answers.
    fn wait_for(&self, topic: &TopicSpec) -> Result<(), LogError> {
        let deadline = Instant::now() + self.config.request_timeout();
        (0..topic.partitions).try_for_each(|partition| {
            let at = TopicPartition::new(topic.name.as_str(), partition);
            loop {
                match self.bounds(&at) {
                    Ok(_) => return Ok(()),
                    Err(error) if Instant::now() >= deadline => return Err(error),
                    Err(_) => std::thread::sleep(METADATA_BACKOFF),
                }
            }
        })
    }
}

fn value<'a>(found: &'a ConfigResource, name: &str) -> Option<&'a str> {
    found.get(name).and_then(|entry| entry.value.as_deref())
}

/// Fetches what there is to know of a topic. Only that it does not exist is an error here.
fn refresh(client: &BaseConsumer<Quiet>, topic: &str, wait: Duration) -> Result<(), LogError> {
    let Ok(metadata) = client.fetch_metadata(Some(topic), wait) else { return Ok(()) };
    let error = metadata.topics().first().and_then(|found| found.error()).map(RDKafkaErrorCode::from);
    match error {
        Some(code) if is_missing(code) => Err(about(topic, code, "cannot get the offsets of topic")),
        _ => Ok(()),
    }
}

/// What was answered for each partition.
fn offsets_in(found: &TopicPartitionList, of: &[TopicPartition]) -> Result<Vec<u64>, LogError> {
    let offset = |at: &TopicPartition| {
        let partition = i32::try_from(at.partition).unwrap_or(i32::MAX);
        let element = found.find_partition(&at.topic, partition);
        let missing = || LogError::Unavailable(format!("the leader of {at} did not answer"));
        let element = element.ok_or_else(missing)?;
        element.error().map_err(|error| about(&at.topic, code(&error), "cannot get the offsets of topic"))?;
        match element.offset() {
            Offset::Offset(offset) => Ok(u64::try_from(offset).unwrap_or(0)),
            _ => Err(missing()),
        }
    };
    of.iter().map(offset).collect()
}

pub(super) fn creation_error(topic: String, code: RDKafkaErrorCode) -> LogError {
    use RDKafkaErrorCode as C;
    match code {
        C::InvalidReplicationFactor => LogError::Configuration(format!(
            "topic {topic}: the cluster has fewer brokers than replication_factor ({code}); add brokers or lower it"
        )),
        C::InvalidConfig | C::PolicyViolation => LogError::Configuration(format!("topic {topic}: {code}")),
        C::InvalidPartitions | C::InvalidTopic => {
            LogError::Topic { topic, message: format!("cannot be created: {code}") }
        }
        other => about(&topic, other, "cannot create topic"),
    }
}

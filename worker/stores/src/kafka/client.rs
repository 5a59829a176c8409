//! What all Kafka clients share: where librdkafka's log lines go, and what its error codes ask of the caller.

use millstream_shard::log::LogError;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

/// A client whose log lines and errors go to our log. librdkafka retries on its own; what matters comes back from the calls.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        report(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "kafka client");
    }
}

impl ConsumerContext for Quiet {}

/// Passes on what an operator should see.
pub(super) fn report(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
            tracing::warn!(facility, message, "kafka client");
        }
        RDKafkaLogLevel::Warning | RDKafkaLogLevel::Notice => tracing::info!(facility, message, "kafka client"),
        RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {}
    }
}

/// Does this code say that the topic or the partition is not there?
pub(super) fn is_missing(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as C;
    matches!(
        code,
        C::UnknownTopic | C::UnknownPartition | C::UnknownTopicOrPartition | C::UnknownTopicId | C::InvalidTopic
    )
}

/// Does this code say that the configuration is wrong (credentials, permissions, unsupported settings)?
pub(super) fn is_configuration(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as C;
    matches!(
        code,
        C::Authentication
            | C::TopicAuthorizationFailed
            | C::GroupAuthorizationFailed
            | C::ClusterAuthorizationFailed
            | C::TransactionalIdAuthorizationFailed
            | C::SaslAuthenticationFailed
            | C::UnsupportedSASLMechanism
            | C::InvalidTransactionTimeout
            | C::UnsupportedFeature
    )
}

/// An error about a topic, outside transactions.
pub(super) fn about(topic: &str, code: RDKafkaErrorCode, what: &str) -> LogError {
    if is_missing(code) {
        LogError::Topic { topic: topic.to_owned(), message: format!("it or the partition does not exist ({code})") }
    } else if is_configuration(code) {
        LogError::Configuration(format!("{what} {topic}: {code}"))
    } else {
        LogError::Unavailable(format!("{what} {topic}: {code}"))
    }
}

/// The code in an error of a call.
pub(super) fn code(error: &KafkaError) -> RDKafkaErrorCode {
    error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail)
}

/// A client that could not be made.
pub(super) fn creation(error: &KafkaError) -> LogError {
    LogError::Configuration(format!("the Kafka client refuses its settings: {error}"))
}

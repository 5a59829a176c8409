//! What all Kafka clients share: where librdkafka's log lines go, and what its error codes ask of the caller.

use millstream_shard::log::LogError;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Events of a client that may have come since it was polled last: some of each broker that is away.
const EVENTS: usize = 32;

/// Hands what a client has to say to its context. It comes one at a time, and a log line looks like nothing; whoever reads with the client has a queue of its own.
pub(super) fn serve(client: &BaseConsumer<Quiet>) {
    for _ in 0..EVENTS {
        drop(client.poll(Duration::ZERO));
    }
}

/// A client to read with; several readers may share one, each with partitions of its own.
pub(super) type Reading = Arc<BaseConsumer<Quiet>>;

/// As librdkafka takes it.
pub(super) fn milliseconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}

/// Has the client lost all brokers?
pub(super) fn is_all_down(error: &KafkaError) -> bool {
    code(error) == RDKafkaErrorCode::AllBrokersDown
}

/// When a client is told again where the brokers are.
///
/// A broker that has just come back may answer before it is in its own picture of the cluster: then it names topics, and no broker. librdkafka believes that, lets go of all brokers, and
/// begins anew where it is configured to, unless what begins anew is called off by the end of that very answer, which is a matter of microseconds: then it has no brokers for ever (its issue
/// 5301). So a client that has lost all brokers, or gets no answer, is told again where they are ([`super::raw::add_brokers`]).
///
/// Not more often than every [`REMIND_EVERY`]: librdkafka keeps every list that it is given, and goes through all of them each time it begins anew.
#[derive(Debug, Default)]
pub(super) struct Reminder {
    has_lost_all: AtomicBool,
    reminded: Mutex<Option<Instant>>,
}

/// How long a client is left to itself after it was told where the brokers are.
pub(super) const REMIND_EVERY: Duration = Duration::from_secs(10);

impl Reminder {
    /// The client has lost all brokers: it is to be told, as soon as it may be.
    pub(super) fn lost_all(&self) {
        self.has_lost_all.store(true, Ordering::Relaxed);
    }

    /// Is it to be told now? Whoever asks tells it.
    pub(super) fn take(&self) -> bool {
        self.has_lost_all.load(Ordering::Relaxed) && self.may()
    }

    /// May it be told now? Whoever asks tells it.
    pub(super) fn may(&self) -> bool {
        let mut reminded = self.reminded.lock().unwrap_or_else(PoisonError::into_inner);
        if reminded.is_some_and(|at| at.elapsed() < REMIND_EVERY) {
            return false;
        }
        *reminded = Some(Instant::now());
        self.has_lost_all.store(false, Ordering::Relaxed);
        true
    }
}

/// A client whose log lines and errors go to our log. librdkafka retries on its own; what matters comes back from the calls, but for one thing:
/// why there is no connection (a refused password, a certificate that is not trusted) is a log line or an error event of the client, whichever it has room for,
/// and a call says that it timed out. So the last one is kept, for the error of the call.
#[derive(Clone, Debug, Default)]
pub(super) struct Quiet {
    trouble: Arc<Mutex<Option<String>>>,
    reminder: Arc<Reminder>,
}

impl Quiet {
    /// A call has come back: how it fared decides what is kept, and an error that says nothing says why.
    pub(super) fn explain<T>(&self, result: Result<T, LogError>) -> Result<T, LogError> {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match (result, &*trouble) {
            (Ok(done), _) => {
                *trouble = None;
                Ok(done)
            }
            (Err(LogError::Unavailable(message)), Some(why)) => Err(LogError::Unavailable(format!("{message}; {why}"))),
            (failed, _) => failed,
        }
    }

    /// When the client is told again where the brokers are.
    pub(super) fn reminder(&self) -> &Reminder {
        &self.reminder
    }

    fn keep(&self, why: &str) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.to_owned());
    }
}

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // librdkafka's facility for a connection that was lost, or did not come about.
        if facility == "FAIL" {
            // The name of the client's thread comes first: `[thrd:...]: `.
            self.keep(message.split_once("]: ").map_or(message, |(_, message)| message));
        }
        report(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "kafka client");
        // That all brokers are down follows from what came before, which says why.
        if is_all_down(&error) {
            self.reminder.lost_all();
        } else {
            self.keep(reason);
        }
    }
}

impl ConsumerContext for Quiet {}

/// librdkafka says of each producer that this is a setting of consumers, and obeys it all the same.
const OBEYED: &str = "property allow.auto.create.topics is a consumer property";

/// Passes on what an operator should see.
pub(super) fn report(level: RDKafkaLogLevel, facility: &str, message: &str) {
    if facility == "CONFWARN" && message.contains(OBEYED) {
        return;
    }
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

/// Does this code say that the configuration is wrong (unsupported settings)?
pub(super) fn is_configuration(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as C;
    matches!(code, C::UnsupportedSASLMechanism | C::InvalidTransactionTimeout | C::UnsupportedFeature)
}

/// Does this code say that we may not do this? That can change without us: a password is set back, a permission is given.
pub(super) fn is_forbidden(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as C;
    matches!(
        code,
        C::TopicAuthorizationFailed
            | C::GroupAuthorizationFailed
            | C::ClusterAuthorizationFailed
            | C::TransactionalIdAuthorizationFailed
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

/// A client that could not be made. What was set may be a password, so that it is not repeated.
pub(super) fn creation(error: &KafkaError) -> LogError {
    let why = match error {
        KafkaError::ClientConfig(_, why, name, value) if !value.is_empty() => {
            format!("`{name}`: {}", why.replace(value.as_str(), "(what was set)"))
        }
        error => error.to_string(),
    };
    LogError::Configuration(format!("the Kafka client refuses its settings: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_is_refused_is_named_and_its_value_is_not() {
        for (name, value) in
            [("sasl.pasword", "hunter2"), ("sasl.jaas.config", "hunter2"), ("security.protocol", "hunter2")]
        {
            let created = rdkafka::config::ClientConfig::new().set(name, value).create::<BaseConsumer>();
            let said = creation(&created.err().unwrap()).to_string();
            assert!(said.contains(name) && !said.contains("hunter2"), "{said}");
        }
    }

    #[test]
    fn an_error_says_why_there_is_no_connection_until_there_is_one() {
        let (quiet, away) = (Quiet::default(), || Err::<(), _>(LogError::Unavailable("timed out".into())));
        assert_eq!(quiet.explain(away()).unwrap_err().to_string(), "log unavailable: timed out");
        quiet.error(
            KafkaError::Global(RDKafkaErrorCode::BrokerTransportFailure),
            "b:1/bootstrap: Connect to 127.0.0.1 failed",
        );
        quiet.error(KafkaError::Global(RDKafkaErrorCode::AllBrokersDown), "1/1 brokers are down");
        let explained = quiet.explain(away()).unwrap_err().to_string();
        assert_eq!(explained, "log unavailable: timed out; b:1/bootstrap: Connect to 127.0.0.1 failed");
        quiet.log(RDKafkaLogLevel::Error, "FAIL", "[thrd:b:1/bootstrap]: b:1/bootstrap: SSL handshake failed");
        quiet.log(RDKafkaLogLevel::Error, "OTHER", "[thrd:x]: another thing");
        let explained = quiet.explain(away()).unwrap_err().to_string();
        assert_eq!(explained, "log unavailable: timed out; b:1/bootstrap: SSL handshake failed");
        quiet.explain(Ok(())).unwrap();
        assert_eq!(quiet.explain(away()).unwrap_err().to_string(), "log unavailable: timed out");
    }
}

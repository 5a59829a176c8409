//! What the brokers' answers mean: can each be reached, is it new enough, do its limits allow what workers do, can acknowledged data survive the loss of one.

use super::finding::Finding;
use crate::config::{Millis, Size};
use millstream_shard::log::LogError;
use millstream_stores::kafka::KafkaConfig;
use millstream_stores::kafka::survey::{Broker, Layout, Settings, Versions};

/// Requests that workers make, the oldest version that has what they use, and why.
const NEEDED: [(i16, &str, i16, &str); 8] = [
    (0, "Produce", 3, "messages with headers"),
    (1, "Fetch", 4, "reading what was committed only"),
    (2, "ListOffsets", 2, "the end of what was committed"),
    (3, "Metadata", 10, "ids of topics, which tell a topic that was made anew"),
    (19, "CreateTopics", 1, "creating topics"),
    (22, "InitProducerId", 0, "transactions"),
    (26, "EndTxn", 0, "transactions"),
    (32, "DescribeConfigs", 0, "settings of topics"),
];
/// The first release with all of them.
const OLDEST: &str = "Kafka 2.8";
/// Copies from which on a majority can insist on what was acknowledged.
const SAFE_COPIES: u16 = 3;
/// A shard may be idle for so long, milliseconds, and find its transactional id known.
const IDLE_MS: i64 = 3_600_000;
/// What is looked at.
const TRANSACTIONS: &str = "transactions";
/// What is in a request beside a message of the largest size, bytes.
const REQUEST_OVERHEAD: u64 = 1 << 20;

/// One broker of the configuration, asked alone.
pub(super) fn judge_reached(address: &str, answer: Result<Versions, LogError>) -> Finding {
    let subject = format!("broker {address}");
    let versions = match answer {
        Ok(versions) => versions,
        Err(error) => return Finding::problem(subject, said(&error), advice(&said(&error))),
    };
    if versions.is_empty() {
        return Finding::ok(subject, "answers, and takes the credentials; its version is not known");
    }
    let too_old =
        NEEDED.iter().find(|(request, _, oldest, _)| versions.get(request).is_none_or(|newest| newest < oldest));
    match too_old {
        None => Finding::ok(subject, format!("answers, takes the credentials, and is new enough ({OLDEST} or later)")),
        Some((_, name, oldest, why)) => Finding::problem(
            subject,
            format!("it is too old: it has no {name} of version {oldest} ({why})"),
            format!("run {OLDEST} or later"),
        ),
    }
}

/// What to change, by what a broker or the network said.
pub(super) fn advice(said: &str) -> String {
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    let change = if has(&["certificate verify failed", "unable to get local issuer", "self-signed", "self signed"]) {
        "set log.kafka.security: ssl.ca.location to the certificate of the authority that signed the broker's"
    } else if has(&["uthentication fail", "nvalid credentials", "nvalid username", "SASL authentication"]) {
        "set log.kafka.security: sasl.username and sasl.password (or security_files) as the brokers know them, and sasl.mechanism to the one that the user has"
    } else if has(&["mechanism"]) {
        "set log.kafka.security: sasl.mechanism to one that the brokers take"
    } else if has(&["security.protocol", "SSL handshake", "SSL listener", "Disconnected", "handshake"]) {
        "set log.kafka.security: security.protocol as this listener has it (plaintext, ssl, sasl_plaintext or sasl_ssl), and the port of that listener in log.kafka.brokers"
    } else if has(&["resolve", "Name or service"]) {
        "correct the host's name in log.kafka.brokers, or make it known to DNS here"
    } else if has(&["refused"]) {
        "start the broker, or correct host and port in log.kafka.brokers"
    } else if has(&["uthorization"]) {
        "allow the user what the broker refuses (ACLs)"
    } else {
        "start the broker, correct its host:port in log.kafka.brokers, or open the network to it"
    };
    change.to_owned()
}

/// Copies of topics against the brokers that are there.
pub(super) fn judge_copies(config: &KafkaConfig, brokers: usize) -> Vec<Finding> {
    let copies = config.replication_factor;
    if usize::from(copies) > brokers {
        return vec![Finding::problem(
            "cluster",
            format!("brokers that are there: {brokers}, and log.kafka.replication is {copies}"),
            format!("start the brokers that are missing, or set log.kafka.replication: {brokers}"),
        )];
    }
    if copies < SAFE_COPIES {
        let change =
            format!("for production, set log.kafka.replication: {SAFE_COPIES} on {SAFE_COPIES} brokers or more");
        let found = format!(
            "log.kafka.replication is {copies} (brokers: {brokers}): the loss of one may lose what was acknowledged"
        );
        return vec![Finding::warning("cluster", found, change)];
    }
    vec![Finding::ok("cluster", format!("brokers that are there: {brokers}, for {copies} copies of each partition"))]
}

/// A broker's own limits; also whether it can be reached where it says that it is.
pub(super) fn judge_broker(
    config: &KafkaConfig,
    broker: &Broker,
    settings: Result<&Settings, &LogError>,
) -> Vec<Finding> {
    let subject = format!("broker {} ({})", broker.id, broker.address);
    match settings {
        Ok(settings) => {
            let wrong = judge_limits(config, &subject, settings);
            if wrong.is_empty() { vec![Finding::ok(subject, limits(settings))] } else { wrong }
        }
        Err(error) if error.to_string().contains("uthorization") => vec![Finding::warning(
            subject,
            format!("its limits are not told: {}", said(error)),
            "allow the user DescribeConfigs on the cluster, or compare transaction.max.timeout.ms and socket.request.max.bytes yourself",
        )],
        Err(error) => vec![Finding::problem(
            subject,
            format!("it cannot be asked at the address that it tells clients: {}", said(error)),
            "start this broker, or correct its advertised.listeners, or DNS and firewalls between here and there",
        )],
    }
}

fn limits(settings: &Settings) -> String {
    let transaction =
        number(settings, "transaction.max.timeout.ms").map(|ms| format!("transactions up to {}", millis(ms)));
    let ids =
        number(settings, "transactional.id.expiration.ms").map(|ms| format!("their ids known for {}", millis(ms)));
    let message = number(settings, "message.max.bytes")
        .map(|bytes| format!("messages up to {bytes} bytes where a topic says nothing"));
    let known: Vec<String> = [transaction, ids, message].into_iter().flatten().collect();
    if known.is_empty() { "it tells no limits".to_owned() } else { known.join(", ") }
}

fn judge_limits(config: &KafkaConfig, subject: &str, settings: &Settings) -> Vec<Finding> {
    let mut findings = Vec::new();
    let ours = config.transaction_timeout_ms;
    if let Some(most) = number(settings, "transaction.max.timeout.ms").filter(|most| (*most as u64) < ours) {
        let change = format!(
            "set log.kafka.transaction_timeout: {most}ms, or transaction.max.timeout.ms={ours} on every broker"
        );
        let found = format!(
            "transaction.max.timeout.ms is {most}, less than log.kafka.transaction_timeout ({ours} ms): no transaction begins"
        );
        findings.push(Finding::problem(subject, found, change));
    }
    let needed = u64::from(config.max_message_bytes) + REQUEST_OVERHEAD;
    if let Some(most) = number(settings, "socket.request.max.bytes").filter(|most| (*most as u64) < needed) {
        let change =
            format!("set socket.request.max.bytes={needed} on every broker, or lower log.kafka.max_message_bytes");
        let found = format!(
            "socket.request.max.bytes is {most}: a message of {} would break the connection",
            Size(config.max_message_bytes.into())
        );
        findings.push(Finding::problem(subject, found, change));
    }
    if let Some(kept) = number(settings, "transactional.id.expiration.ms").filter(|kept| *kept < IDLE_MS) {
        let found = format!(
            "transactional.id.expiration.ms is {kept}: a shard that was idle for {} is taken over by its own worker",
            millis(kept)
        );
        findings.push(Finding::warning(
            subject,
            found,
            "set transactional.id.expiration.ms=604800000 (7 days, the default) on every broker",
        ));
    }
    if settings.get("auto.create.topics.enable").is_some_and(|value| value == "true") {
        let found = "auto.create.topics.enable is true: a topic that was deleted comes back when any client of others names it, with the cluster's settings and not the pipeline's";
        findings.push(Finding::warning(subject, found, "set auto.create.topics.enable=false on every broker"));
    }
    findings
}

/// The brokers' own topic for transactions: without enough copies of it no transaction begins, or all are lost with one broker. `own`: its settings; `told`: a broker's.
pub(super) fn judge_transactions(
    config: &KafkaConfig,
    brokers: usize,
    layout: Option<Layout>,
    own: Option<&Settings>,
    told: Option<&Settings>,
) -> Finding {
    let Some(layout) = layout else { return judge_first_transaction(brokers, told) };
    let least = own.and_then(|settings| number(settings, "min.insync.replicas"));
    let least = least.and_then(|least| usize::try_from(least).ok());
    let wanted = usize::from(config.replication_factor.min(SAFE_COPIES));
    let Layout { leaderless, in_sync, copies, .. } = layout;
    if leaderless > 0 || least.is_some_and(|least| in_sync < least) {
        let least = least.map_or("unknown".to_owned(), |least| least.to_string());
        return Finding::problem(
            TRANSACTIONS,
            format!(
                "of __transaction_state {leaderless} partitions have no leader, and the fewest copies in sync are {in_sync} (min.insync.replicas {least})"
            ),
            "start the brokers that are away: until then some shards cannot commit",
        );
    }
    if copies < wanted {
        return Finding::problem(
            TRANSACTIONS,
            format!(
                "__transaction_state has {copies} copies, and {wanted} are needed: the loss of one broker can end transactions"
            ),
            format!(
                "give it {wanted} copies (kafka-reassign-partitions.sh), and set transaction.state.log.replication.factor={wanted} on every broker"
            ),
        );
    }
    Finding::ok(TRANSACTIONS, format!("{copies} copies of __transaction_state, {in_sync} in sync at least"))
}

/// The topic comes into being with the first transaction, if there are brokers enough.
fn judge_first_transaction(brokers: usize, told: Option<&Settings>) -> Finding {
    let factor = told.and_then(|settings| number(settings, "transaction.state.log.replication.factor"));
    match factor.filter(|factor| usize::try_from(*factor).is_ok_and(|factor| factor > brokers)) {
        Some(factor) => Finding::problem(
            TRANSACTIONS,
            format!(
                "transaction.state.log.replication.factor is {factor}, and {brokers} brokers are there: no transaction can begin"
            ),
            format!("start more brokers, or set transaction.state.log.replication.factor={brokers} on every broker"),
        ),
        None => Finding::ok(TRANSACTIONS, "the brokers have kept none yet"),
    }
}

/// What went wrong, in the words of whoever said it.
pub(super) fn said(error: &LogError) -> String {
    match error {
        LogError::Unavailable(message) | LogError::Configuration(message) => message.clone(),
        other => other.to_string(),
    }
}

/// A setting that is a number.
pub(super) fn number(settings: &Settings, name: &str) -> Option<i64> {
    settings.get(name)?.parse().ok()
}

/// Milliseconds for people.
pub(super) fn millis(ms: i64) -> String {
    u64::try_from(ms).map_or_else(|_| "ever".to_owned(), |ms| Millis(ms).to_string())
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    fn settings(of: &[(&str, &str)]) -> Settings {
        of.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn config(replication_factor: u16) -> KafkaConfig {
        KafkaConfig { replication_factor, ..KafkaConfig::new("b:1") }
    }

    #[test]
    fn a_broker_that_lacks_what_we_use_is_too_old() {
        let new: Versions = NEEDED.iter().map(|(request, _, oldest, _)| (*request, *oldest)).collect();
        assert_eq!(judge_reached("b:1", Ok(new.clone())).level, Level::Ok);
        for (request, name, oldest, _) in NEEDED {
            let mut old = new.clone();
            old.insert(request, oldest - 1);
            let mut without = new.clone();
            without.remove(&request);
            for versions in [old, without] {
                let finding = judge_reached("b:1", Ok(versions));
                assert!(finding.level == Level::Problem && finding.found.contains(name), "{finding}");
            }
        }
        assert_eq!(judge_reached("b:1", Ok(Versions::new())).level, Level::Ok, "what is not known is no problem");
    }

    #[test]
    fn what_a_broker_says_leads_to_what_to_change() {
        for (said, change) in [
            (
                "SASL authentication error: Authentication failed during authentication due to invalid credentials",
                "sasl.password",
            ),
            (
                "SSL handshake failed: certificate verify failed: broker certificate could not be verified",
                "ssl.ca.location",
            ),
            (
                "Disconnected while requesting ApiVersion: might be caused by incorrect security.protocol",
                "security.protocol",
            ),
            ("Failed to resolve 'nowhere:9092': Name or service not known", "host's name"),
            ("Connect to ipv4#127.0.0.1:1 failed: Connection refused", "start the broker"),
            ("Local: Timed out", "open the network"),
        ] {
            let finding = judge_reached("b:1", Err(LogError::Unavailable(said.to_owned())));
            assert!(finding.found.contains(said) && finding.change.unwrap().contains(change), "{said}");
        }
    }

    #[test]
    fn copies_need_brokers() {
        let level = |replication, brokers| judge_copies(&config(replication), brokers)[0].level;
        assert_eq!(
            [level(3, 2), level(1, 1), level(2, 5), level(3, 3)],
            [Level::Problem, Level::Warning, Level::Warning, Level::Ok]
        );
    }

    #[test]
    fn limits_of_brokers_are_compared_with_ours() {
        let broker = Broker { id: 1, address: "b:1".into() };
        let judge = |name, value| judge_broker(&config(3), &broker, Ok(&settings(&[(name, value)])))[0].clone();
        for (name, bad, good, level) in [
            ("transaction.max.timeout.ms", "9999", "10000", Level::Problem),
            ("socket.request.max.bytes", "9437183", "9437184", Level::Problem),
            ("transactional.id.expiration.ms", "3599999", "3600000", Level::Warning),
            ("auto.create.topics.enable", "true", "false", Level::Warning),
        ] {
            assert_eq!((judge(name, bad).level, judge(name, good).level), (level, Level::Ok), "{name}");
        }
        let refused = LogError::Unavailable("ClusterAuthorizationFailed".into());
        assert_eq!(judge_broker(&config(3), &broker, Err(&refused))[0].level, Level::Warning);
        let away = LogError::Unavailable("timed out".into());
        let finding = judge_broker(&config(3), &broker, Err(&away))[0].clone();
        assert!(finding.level == Level::Problem && finding.change.unwrap().contains("advertised.listeners"));
    }

    #[test]
    fn transactions_need_copies_of_their_own() {
        let layout = |copies, in_sync, leaderless| Some(Layout { partitions: 4, leaderless, copies, in_sync });
        let own = settings(&[("min.insync.replicas", "2")]);
        let judge = |layout, told: &Settings| judge_transactions(&config(3), 3, layout, Some(&own), Some(told)).level;
        let told = settings(&[("transaction.state.log.replication.factor", "3")]);
        assert_eq!(judge(layout(3, 3, 0), &told), Level::Ok);
        assert_eq!(judge(layout(3, 1, 0), &told), Level::Problem, "not in sync");
        assert_eq!(judge(layout(3, 3, 1), &told), Level::Problem, "no leader");
        assert_eq!(judge(layout(2, 2, 0), &told), Level::Problem, "too few copies");
        assert_eq!(judge(None, &told), Level::Ok);
        assert_eq!(judge(None, &settings(&[("transaction.state.log.replication.factor", "4")])), Level::Problem);
    }
}

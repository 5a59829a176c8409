//! What a pipeline's topics must be like: the settings that they are created with, and those without which a topic that exists is refused. Nothing here asks anybody.

use super::config::KafkaConfig;
use millstream_shard::log::{Deletes, Retention, TopicSpec};
use rdkafka::admin::{NewTopic, TopicReplication};

/// Room for the batch header around a message of the largest size.
const BATCH_OVERHEAD: u32 = 65_536;

/// What a topic of unknown limits takes in one request for a partition: less than Kafka's default, bytes.
pub(super) const DEFAULT_REQUEST: u32 = 1_000_000;

/// What `topic_properties` cannot change where a topic's retention is ours.
const OF_RETENTION: [&str; 5] = ["cleanup.policy", "retention.ms", "retention.bytes", "segment.ms", "segment.bytes"];

/// Settings of which more than asked for is as good.
const AT_LEAST: [&str; 2] = ["min.insync.replicas", "max.message.bytes"];

/// A setting of a topic: its name, and its value as Kafka writes it.
pub type Setting<'a> = (&'a str, String);

/// The settings that a topic is created with.
pub fn settings<'a>(config: &'a KafkaConfig, topic: &TopicSpec) -> Vec<Setting<'a>> {
    let in_sync = if config.replication_factor >= 3 { 2 } else { 1 };
    let mut settings = vec![
        ("message.timestamp.type", timestamp_type(topic).to_owned()),
        ("max.message.bytes", config.max_message_bytes.saturating_add(BATCH_OVERHEAD).to_string()),
        ("min.insync.replicas", in_sync.to_string()),
        ("unclean.leader.election.enable", "false".to_owned()),
    ];
    settings.extend(retention(topic.retention).iter().map(|(name, value)| (*name, (*value).to_owned())));
    let kept_ms = config.retention_ms.get(&topic.name).filter(|_| topic.retention == Retention::Cluster);
    settings.extend(kept_ms.map(|ms| ("retention.ms", ms.to_string())));
    let free = |name: &str| topic.retention == Retention::Cluster || !OF_RETENTION.contains(&name);
    let configured = config.topic_properties.iter().map(|(name, value)| (name.as_str(), value.clone()));
    settings.extend(configured.filter(|(name, _)| free(name)));
    settings
}

/// Those without which a topic that exists is refused, whoever made it.
pub fn demands(config: &KafkaConfig, topic: &TopicSpec) -> Vec<Setting<'static>> {
    let mut demands = vec![("message.timestamp.type", timestamp_type(topic).to_owned())];
    // A changelog whose newest records can vanish with one broker is no lock (I4): an owner would read an end that was passed already.
    // Its replicas may be more than are configured here.
    if topic.retention == Retention::Keep {
        demands.push(("unclean.leader.election.enable", "false".to_owned()));
        if config.replication_factor >= 3 {
            demands.push(("min.insync.replicas", "2".to_owned()));
        }
    }
    // A changelog that forgets, or a plan that is not kept, is none.
    let of_retention: &[(&str, &str)] = match topic.retention {
        Retention::Cluster => &[],
        Retention::Keep => retention(Retention::Keep),
        Retention::Compact => &[("cleanup.policy", "compact")],
    };
    demands.extend(of_retention.iter().map(|(name, value)| (*name, (*value).to_owned())));
    demands
}

/// Is what a topic has as good as what was asked for?
pub fn is_as_good(name: &str, found: &str, wanted: &str) -> bool {
    let is_more = || match (found.parse::<u64>(), wanted.parse::<u64>()) {
        (Ok(found), Ok(wanted)) => found >= wanted,
        _ => false,
    };
    found == wanted || (AT_LEAST.contains(&name) && is_more())
}

/// The first of the demands that these settings do not meet, in words.
pub(super) fn differs<'a>(
    demands: Vec<Setting<'static>>,
    found: impl Fn(&'static str) -> Option<&'a str>,
) -> Option<String> {
    demands.into_iter().find_map(|(name, wanted)| {
        let value = found(name);
        let is_met = value.is_some_and(|value| is_as_good(name, value, &wanted));
        (!is_met).then(|| format!("it exists with {name} {}, not {wanted}", value.unwrap_or("unknown")))
    })
}

/// What a topic with these settings deletes by itself. One that is only compacted deletes nothing by age or size.
pub(super) fn deletes<'a>(found: impl Fn(&'static str) -> Option<&'a str>) -> Deletes {
    if !found("cleanup.policy").is_none_or(|policies| policies.split(',').any(|policy| policy.trim() == "delete")) {
        return Deletes::default();
    }
    // -1: no bound.
    let bound = |name| found(name).and_then(|value| value.parse::<u64>().ok());
    Deletes { after_ms: bound("retention.ms"), beyond_bytes: bound("retention.bytes") }
}

/// The largest request of a transaction for a partition that a topic with these settings takes, bytes; `None`: no transaction writes to it.
pub(super) fn request_bytes<'a>(topic: &TopicSpec, found: impl Fn(&'static str) -> Option<&'a str>) -> Option<u32> {
    let is_of_transactions = !topic.append_time && topic.retention != Retention::Compact;
    let takes = || found("max.message.bytes").and_then(|value| value.parse().ok()).unwrap_or(DEFAULT_REQUEST);
    is_of_transactions.then(takes)
}

/// A topic as the admin client takes it.
pub(super) fn new_topic<'a>(config: &KafkaConfig, topic: &'a TopicSpec, settings: &'a [Setting<'a>]) -> NewTopic<'a> {
    let replication = TopicReplication::Fixed(i32::from(config.replication_factor));
    let partitions = i32::try_from(topic.partitions).unwrap_or(i32::MAX);
    let new = NewTopic::new(&topic.name, partitions, replication);
    settings.iter().fold(new, |new, (name, value)| new.set(name, value))
}

/// Segments of compacted topics are small, because the newest one is never compacted, and whoever starts reads the whole topic.
fn retention(retention: Retention) -> &'static [(&'static str, &'static str)] {
    match retention {
        Retention::Cluster => &[("cleanup.policy", "delete")],
        Retention::Keep => &[("cleanup.policy", "delete"), ("retention.ms", "-1"), ("retention.bytes", "-1")],
        Retention::Compact => &[
            ("cleanup.policy", "compact"),
            ("segment.bytes", "4194304"),
            ("segment.ms", "600000"),
            ("min.cleanable.dirty.ratio", "0.1"),
        ],
    }
}

fn timestamp_type(topic: &TopicSpec) -> &'static str {
    if topic.append_time { "LogAppendTime" } else { "CreateTime" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_is_as_good_of_some_settings_only() {
        assert!(is_as_good("min.insync.replicas", "3", "2") && !is_as_good("min.insync.replicas", "1", "2"));
        assert!(!is_as_good("retention.ms", "9", "5") && is_as_good("retention.ms", "-1", "-1"));
        assert!(!is_as_good("max.message.bytes", "unknown", "5"));
    }

    #[test]
    fn what_a_topic_deletes_follows_from_its_policy_and_bounds() {
        let of = |policy: &'static str, milliseconds: &'static str, bytes: &'static str| {
            let settings = [("cleanup.policy", policy), ("retention.ms", milliseconds), ("retention.bytes", bytes)];
            deletes(|name| settings.iter().find(|(of, _)| *of == name).map(|(_, value)| *value))
        };
        let bounds = |after_ms, beyond_bytes| Deletes { after_ms, beyond_bytes };
        assert_eq!(of("delete", "5", "-1"), bounds(Some(5), None));
        assert_eq!(of("compact, delete", "-1", "7"), bounds(None, Some(7)));
        assert_eq!(of("compact", "5", "7"), bounds(None, None));
        assert_eq!(of("delete", "-1", "-1"), bounds(None, None));
    }

    #[test]
    fn a_request_is_no_larger_than_the_topic_takes() {
        let mut topic =
            TopicSpec { name: "t".into(), partitions: 1, append_time: false, retention: Retention::Cluster };
        let of = |topic: &TopicSpec, bytes: Option<&'static str>| {
            request_bytes(topic, |name| bytes.filter(|_| name == "max.message.bytes"))
        };
        assert_eq!(of(&topic, Some("8454144")), Some(8_454_144));
        assert_eq!(of(&topic, Some("200")), Some(200));
        assert_eq!([None, Some("much")].map(|bytes| of(&topic, bytes)), [Some(DEFAULT_REQUEST); 2]);
        topic.append_time = true;
        assert_eq!(of(&topic, Some("200")), None, "only gateways write to it");
    }

    #[test]
    fn a_topic_meets_the_demands_when_it_is_created_as_we_create_it() {
        let config = KafkaConfig::new("b:1");
        for retention in [Retention::Cluster, Retention::Keep, Retention::Compact] {
            let topic = TopicSpec { name: "t".into(), partitions: 1, append_time: true, retention };
            let settings = settings(&config, &topic);
            let found = |name: &str| settings.iter().find(|(of, _)| *of == name).map(|(_, value)| value.as_str());
            assert_eq!(differs(demands(&config, &topic), found), None);
            assert!(differs(demands(&config, &topic), |_| None).unwrap().contains("unknown, not LogAppendTime"));
        }
    }
}

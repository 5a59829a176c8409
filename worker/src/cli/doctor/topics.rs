//! What is wrong with a pipeline's topics. What workers refuse is a problem by their own rules (`millstream_stores::kafka::topics`); what they only were created with,
//! and have no more, is a warning where nothing stops or is lost by it.

use super::cluster::{millis, number, said};
use super::finding::{Finding, Level};
use millstream_shard::log::{LogError, Retention, TopicSpec};
use millstream_shard::topics::Topics;
use millstream_stores::kafka::KafkaConfig;
use millstream_stores::kafka::survey::{Layout, Settings};
use millstream_stores::kafka::topics::{demands, is_as_good, settings as wanted_settings};
use std::collections::BTreeMap;

/// What is deleted sooner than this after it was written, milliseconds, may be deleted before it is read: an outage over night is longer than an hour.
const LEAST_KEPT_MS: i64 = 24 * 3_600_000;

/// Is this topic amiss: is it missing, while others exist that come into being at the same time? (Topics of a generation come with it, public ones with the first.)
pub(super) fn is_amiss(topics: &Topics, name: &str, present: &[&str]) -> bool {
    let of_generation = format!("{}.g{}.", topics.pipeline, topics.generation);
    present.iter().any(|other| !name.starts_with(&of_generation) || other.starts_with(&of_generation))
}

/// A topic that is not there. `would`: would the brokers create it? `None`: workers do not ask them to.
pub(super) fn judge_missing(
    config: &KafkaConfig,
    topics: &Topics,
    spec: &TopicSpec,
    is_amiss: bool,
    would: Option<Result<(), LogError>>,
) -> Finding {
    let subject = format!("topic {}", spec.name);
    match would {
        None => Finding::problem(
            subject,
            "it is missing, and log.kafka.create_topics is false",
            format!("create it: {}", create(config, spec)),
        ),
        Some(Err(error)) => Finding::problem(
            subject,
            format!("it is missing, and the brokers would not create it: {}", said(&error)),
            format!(
                "let the user create topics (ACL Create), or create it: {}, and set log.kafka.create_topics: false",
                create(config, spec)
            ),
        ),
        Some(Ok(())) if is_amiss => judge_amiss(topics, spec),
        Some(Ok(())) => Finding::ok(
            subject,
            format!("not there yet; the brokers say that a worker may create it (partitions: {})", spec.partitions),
        ),
    }
}

/// What was there and is not, if it was not simply never made.
fn judge_amiss(topics: &Topics, spec: &TopicSpec) -> Finding {
    let subject = format!("topic {}", spec.name);
    let found = "it is missing, while others of this pipeline are there: was it deleted?";
    if !is_read(topics, &spec.name) {
        let change = "start a worker, which makes it anew, empty, or create it yourself";
        return Finding::warning(subject, format!("{found} What was in it is lost"), change);
    }
    let change = format!(
        "find out why before a worker starts; if nothing of this pipeline is to be kept, begin anew with `generation: {}`",
        topics.generation.saturating_add(1)
    );
    let found = format!("{found} A worker would make it anew, empty, and shards that had read or written it stop");
    Finding::problem(subject, found, change)
}

/// A topic of which nothing is told.
pub(super) fn judge_unseen(spec: &TopicSpec, error: &LogError) -> Finding {
    let found = format!("nothing is told of it: {}", said(error));
    Finding::problem(
        format!("topic {}", spec.name),
        found,
        "allow the user Describe on this topic, or see the brokers' own log",
    )
}

/// Do shards remember how far they are in it?
fn is_read(topics: &Topics, name: &str) -> bool {
    ![&topics.events, &topics.rejects, &topics.control, &topics.status].iter().any(|other| &***other == name)
}

/// A topic that is there: everything that is wrong with it.
pub(super) fn judge(
    config: &KafkaConfig,
    spec: &TopicSpec,
    layout: Layout,
    settings: Result<&Settings, &LogError>,
) -> Vec<Finding> {
    let subject = format!("topic {}", spec.name);
    let mut findings = judge_partitions(spec, layout.partitions);
    match settings {
        Ok(settings) => {
            findings.extend(judge_copies(config, spec, layout, settings));
            findings.extend(judge_settings(config, spec, settings));
            findings.extend(judge_kept(config, spec, settings));
        }
        Err(error) => findings.push(Finding::problem(
            &subject,
            format!("its settings are not told, and workers check them: {}", said(error)),
            "allow the user DescribeConfigs on this topic",
        )),
    }
    if findings.is_empty() {
        let Layout { partitions, copies, .. } = layout;
        let found = format!("partitions: {partitions}, copies: {copies}, all in sync; settings as they must be");
        findings.push(Finding::ok(subject, found));
    }
    findings
}

fn judge_partitions(spec: &TopicSpec, partitions: u32) -> Vec<Finding> {
    if partitions == spec.partitions {
        return Vec::new();
    }
    let subject = format!("topic {}", spec.name);
    let (found, wanted) = (format!("it has {partitions} partitions, not {}", spec.partitions), spec.partitions);
    let change = match spec.retention {
        Retention::Compact => format!("delete it while no worker runs, and let it be created with {wanted}"),
        _ => format!(
            "the number of shards is fixed when a pipeline is created: set `shards: {partitions}` if that is what the others have, or use another `pipeline` name for {wanted}"
        ),
    };
    vec![Finding::problem(subject, found, change)]
}

/// Copies, and how many of them must be in sync for a write.
fn judge_copies(config: &KafkaConfig, spec: &TopicSpec, layout: Layout, settings: &Settings) -> Vec<Finding> {
    let subject = format!("topic {}", spec.name);
    let (copies, wanted) = (layout.copies, usize::from(config.replication_factor));
    let least = number(settings, "min.insync.replicas").and_then(|least| usize::try_from(least).ok()).unwrap_or(1);
    let mut findings = Vec::new();
    if copies < wanted {
        let found = format!("it has {copies} copies, and log.kafka.replication is {wanted}");
        let change = format!("give it {wanted} copies: kafka-reassign-partitions.sh");
        findings.push(Finding::problem(&subject, found, change));
    }
    // With the copies that are asked for, this is well, too.
    if least > copies && copies >= wanted {
        let found = format!("min.insync.replicas is {least}, and it has {copies} copies: nothing can be written");
        let least = if copies >= 3 { "2" } else { "1" };
        findings.push(Finding::problem(&subject, found, alter(config, spec, "min.insync.replicas", least)));
    } else if least == copies && copies >= 3 {
        let found =
            format!("min.insync.replicas is {least}, as many as it has copies: the restart of one broker stops writes");
        let change = alter(config, spec, "min.insync.replicas", &(least - 1).to_string());
        findings.push(Finding::warning(&subject, found, change));
    }
    findings.extend(judge_in_sync(&subject, layout, least.min(copies)));
    findings
}

/// Copies that have fallen behind: fewer than `least` and nothing can be written.
fn judge_in_sync(subject: &str, layout: Layout, least: usize) -> Option<Finding> {
    let Layout { leaderless, in_sync, copies, .. } = layout;
    let change = "start the brokers that are away, or wait until they have caught up";
    if leaderless > 0 || in_sync < least {
        let found = format!(
            "{leaderless} partitions have no leader, and the fewest copies in sync are {in_sync} (min.insync.replicas {least}): nothing can be written there"
        );
        return Some(Finding::problem(subject, found, change));
    }
    let found = format!("copies: {copies}, of which {in_sync} are in sync in some partition");
    (in_sync < copies).then(|| Finding::warning(subject, found, change))
}

/// Settings that are not as a worker would create them.
fn judge_settings(config: &KafkaConfig, spec: &TopicSpec, settings: &Settings) -> Vec<Finding> {
    // What comes last counts, as for the brokers.
    let wanted: BTreeMap<&str, String> = wanted_settings(config, spec).into_iter().collect();
    let differs = |(name, wanted): (&str, String)| {
        let found = settings.get(name).map_or("unknown", String::as_str);
        if is_as_good(name, found, &wanted) {
            return None;
        }
        let said = format!("{name} is {found}, not {wanted}{}", reason(spec, name));
        let change = alter(config, spec, name, &wanted);
        Some(match severity(config, spec, name, found) {
            Level::Problem => Finding::problem(format!("topic {}", spec.name), said, change),
            _ => Finding::warning(format!("topic {}", spec.name), said, change),
        })
    };
    wanted.into_iter().filter_map(differs).collect()
}

/// Do workers refuse the topic with this value, or stop by it?
fn severity(config: &KafkaConfig, spec: &TopicSpec, name: &str, found: &str) -> Level {
    let mut demanded = demands(config, spec).into_iter();
    let is_refused = demanded.any(|(of, wanted)| of == name && !is_as_good(name, found, &wanted));
    if is_refused || ["max.message.bytes", "cleanup.policy"].contains(&name) { Level::Problem } else { Level::Warning }
}

fn reason(spec: &TopicSpec, name: &str) -> &'static str {
    match (name, spec.retention) {
        ("message.timestamp.type", _) => ": workers refuse it",
        ("max.message.bytes", _) => ": a message of log.kafka.max_message_bytes is refused, which stops its shard",
        ("min.insync.replicas" | "unclean.leader.election.enable", _) => {
            ": what was acknowledged can vanish with one broker"
        }
        ("cleanup.policy", Retention::Compact) => ": plans and reports are not kept",
        ("cleanup.policy", _) => ": messages vanish before they are read",
        ("retention.ms" | "retention.bytes", Retention::Keep) => ": a changelog that forgets cannot restore its shard",
        ("retention.ms", Retention::Cluster) => ": the configuration's log.kafka.retention counts at creation only",
        _ => "",
    }
}

/// How long messages stay that a stage has yet to read.
fn judge_kept(config: &KafkaConfig, spec: &TopicSpec, settings: &Settings) -> Vec<Finding> {
    // What others read, they know; what is ours to keep was judged with the settings.
    let is_for_others = spec.name.ends_with(".events") || spec.name.ends_with(".rejects");
    if spec.retention != Retention::Cluster || is_for_others {
        return Vec::new();
    }
    let (subject, mut findings) = (format!("topic {}", spec.name), Vec::new());
    // Differences from what the configuration asks for were told.
    let is_asked_for = config.retention_ms.contains_key(&spec.name);
    let short = number(settings, "retention.ms").filter(|ms| (0..LEAST_KEPT_MS).contains(ms) && !is_asked_for);
    if let Some(ms) = short {
        let found = format!(
            "retention.ms is {ms} ({}): a stage that is away for longer finds its input deleted, and stops",
            millis(ms)
        );
        findings.push(Finding::warning(&subject, found, alter(config, spec, "retention.ms", "604800000")));
    }
    if let Some(bytes) = number(settings, "retention.bytes").filter(|bytes| *bytes >= 0) {
        let found = format!("retention.bytes is {bytes}: a burst deletes what no stage has read yet");
        findings.push(Finding::warning(&subject, found, alter(config, spec, "retention.bytes", "-1")));
    }
    findings
}

/// A command that creates the topic.
fn create(config: &KafkaConfig, spec: &TopicSpec) -> String {
    let settings: BTreeMap<&str, String> = wanted_settings(config, spec).into_iter().collect();
    let settings: String = settings.iter().map(|(name, value)| format!(" --config {name}={value}")).collect();
    format!(
        "kafka-topics.sh --bootstrap-server {} --create --topic {} --partitions {} --replication-factor {}{settings}",
        config.bootstrap_servers, spec.name, spec.partitions, config.replication_factor
    )
}

/// A command that sets a setting.
fn alter(config: &KafkaConfig, spec: &TopicSpec, name: &str, value: &str) -> String {
    format!(
        "kafka-configs.sh --bootstrap-server {} --alter --entity-type topics --entity-name {} --add-config {name}={value}",
        config.bootstrap_servers, spec.name
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(replication_factor: u16) -> KafkaConfig {
        KafkaConfig { replication_factor, ..KafkaConfig::new("b:1") }
    }

    fn topics() -> Topics {
        Topics::new("shop", 8, 2)
    }

    fn spec(name: &str) -> TopicSpec {
        topics().specs().into_iter().find(|spec| spec.name == name).unwrap()
    }

    const LAYOUT: Layout = Layout { partitions: 8, leaderless: 0, copies: 3, in_sync: 3 };

    /// What is found of a topic that was created as we create it, but for one setting.
    fn found(name: &str, setting: &str, value: &str) -> Vec<Finding> {
        let (config, spec) = (config(3), spec(name));
        let mut settings: Settings =
            wanted_settings(&config, &spec).into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        settings.insert(setting.to_owned(), value.to_owned());
        judge(&config, &spec, Layout { partitions: spec.partitions, ..LAYOUT }, Ok(&settings))
    }

    #[test]
    fn topics_as_workers_create_them_are_well() {
        for spec in topics().specs() {
            let findings = found(&spec.name, "compression.type", "producer");
            assert!(findings.len() == 1 && findings[0].level == Level::Ok, "{findings:?}");
        }
    }

    #[test]
    fn each_setting_has_its_weight_and_its_command() {
        let (problem, warning) = (Level::Problem, Level::Warning);
        for (topic, name, value, level) in [
            ("shop.ingress", "message.timestamp.type", "CreateTime", problem),
            ("shop.ingress", "max.message.bytes", "1048588", problem),
            ("shop.ingress", "cleanup.policy", "compact", problem),
            ("shop.ingress", "min.insync.replicas", "1", warning),
            ("shop.ingress", "unclean.leader.election.enable", "true", warning),
            ("shop.g2.changelog.unify", "min.insync.replicas", "1", problem),
            ("shop.g2.changelog.unify", "unclean.leader.election.enable", "true", problem),
            ("shop.g2.changelog.unify", "retention.ms", "604800000", problem),
            ("shop.control", "cleanup.policy", "delete", problem),
            ("shop.control", "segment.ms", "604800000", warning),
        ] {
            let findings = found(topic, name, value);
            assert_eq!(findings.len(), 1, "{findings:?}");
            assert!(findings[0].level == level && findings[0].found.contains(name), "{}", findings[0]);
            let command = format!("--entity-name {topic} --add-config {name}=");
            assert!(findings[0].change.as_ref().unwrap().contains(&command), "{}", findings[0]);
        }
        assert_eq!(found("shop.ingress", "min.insync.replicas", "2")[0].level, Level::Ok);
        assert_eq!(found("shop.ingress", "max.message.bytes", "99999999")[0].level, Level::Ok);
    }

    #[test]
    fn input_that_is_deleted_before_it_is_read_is_warned_of() {
        for (name, value) in [("retention.ms", "3600000"), ("retention.bytes", "1000000")] {
            let findings = found("shop.g2.actions", name, value);
            assert!(findings.len() == 1 && findings[0].level == Level::Warning, "{findings:?}");
            assert_eq!(found("shop.events", name, value)[0].level, Level::Ok, "its readers are others");
        }
        assert_eq!(found("shop.g2.actions", "retention.ms", "-1")[0].level, Level::Ok);
    }

    #[test]
    fn partitions_and_copies_are_counted() {
        let (config, spec) = (config(3), spec("shop.ingress"));
        let with = |layout: Layout, in_sync: &str| {
            let mut settings: Settings =
                wanted_settings(&config, &spec).into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            settings.insert("min.insync.replicas".into(), in_sync.into());
            judge(&config, &spec, layout, Ok(&settings))
        };
        for (layout, in_sync, level, words) in [
            (Layout { partitions: 3, ..LAYOUT }, "2", Level::Problem, "3 partitions, not 8"),
            (
                Layout { copies: 2, in_sync: 2, ..LAYOUT },
                "2",
                Level::Problem,
                "2 copies, and log.kafka.replication is 3",
            ),
            (LAYOUT, "4", Level::Problem, "nothing can be written"),
            (LAYOUT, "3", Level::Warning, "stops writes"),
            (Layout { in_sync: 1, ..LAYOUT }, "2", Level::Problem, "copies in sync are 1"),
            (Layout { leaderless: 2, ..LAYOUT }, "2", Level::Problem, "2 partitions have no leader"),
            (Layout { in_sync: 2, ..LAYOUT }, "2", Level::Warning, "of which 2 are in sync"),
        ] {
            let findings = with(layout, in_sync);
            assert!(
                findings.iter().any(|one| one.level == level && one.found.contains(words)),
                "{words}: {findings:?}"
            );
        }
        let refused = LogError::Unavailable("TopicAuthorizationFailed".into());
        let findings = judge(&config, &spec, LAYOUT, Err(&refused));
        assert!(
            findings[0].level == Level::Problem && findings[0].change.as_ref().unwrap().contains("DescribeConfigs")
        );
    }

    #[test]
    fn a_topic_that_is_missing_alone_was_deleted() {
        assert!(!is_amiss(&topics(), "shop.ingress", &[]));
        assert!(!is_amiss(&topics(), "shop.g2.actions", &["shop.ingress"]), "a new generation");
        assert!(is_amiss(&topics(), "shop.g2.actions", &["shop.g2.mutations"]));
        assert!(is_amiss(&topics(), "shop.events", &["shop.g2.mutations"]));
    }

    #[test]
    fn what_is_missing_says_who_makes_it() {
        let judge = |name, amiss, would| judge_missing(&config(3), &topics(), &spec(name), amiss, would);
        assert_eq!(judge("shop.ingress", false, Some(Ok(()))).level, Level::Ok);
        assert_eq!(judge("shop.ingress", true, Some(Ok(()))).level, Level::Problem);
        assert_eq!(judge("shop.events", true, Some(Ok(()))).level, Level::Warning);
        let refused = judge("shop.events", false, Some(Err(LogError::Unavailable("PolicyViolation".into()))));
        assert!(refused.level == Level::Problem && refused.found.contains("PolicyViolation"), "{refused}");
        let by_others = judge("shop.g2.changelog.unify", false, None).change.unwrap();
        for part in ["--partitions 8", "--replication-factor 3", "--config retention.ms=-1", "cleanup.policy=delete"] {
            assert!(by_others.contains(part), "{by_others}");
        }
    }
}

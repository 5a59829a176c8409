//! The log that a pipeline stands on.

use crate::common::{HumanDuration, LocalObject, SecretKey};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Apache Kafka: how to reach it, and who makes the topics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("!has(self.sasl) || has(self.tls) || self.sasl.mechanism.startsWith('SCRAM')").message(
    "SASL/PLAIN without TLS sends the password in the clear: add `kafka.tls`, or use SCRAM-SHA-512"
))]
#[x_kube(validation = Rule::new("(has(self.prefix) ? self.prefix : '') == (has(oldSelf.prefix) ? oldSelf.prefix : '')").message(
    "kafka.prefix is fixed once the pipeline exists, because it is in the names of its topics: create another pipeline"
))]
#[x_kube(validation = Rule::new("has(self.strimzi) == has(oldSelf.strimzi) && (!has(self.strimzi) || self.strimzi == oldSelf.strimzi)").message(
    "kafka.strimzi is fixed once the pipeline exists, because its topics stay where they were made: for topics that Strimzi has already, create the pipeline with kafka.topics: Existing"
))]
#[x_kube(validation = Rule::new("(has(self.topics) && self.topics == 'Strimzi') == has(self.strimzi)").message(
    "kafka.topics: Strimzi needs kafka.strimzi.cluster, the name of the Kafka resource; kafka.strimzi is for nothing else: set both, or neither"
))]
pub struct Kafka {
    /// `host:port` of some brokers: enough that one of them is always there.
    #[schemars(
        length(min = 1, max = 32),
        inner(length(min = 3, max = 261), regex(pattern = r"^[^:,\s]+:[0-9]{1,5}$"))
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub bootstrap_servers: Vec<String>,

    /// Encrypts connections; without it they are in the clear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,

    /// Who we are to the brokers; nobody without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sasl: Option<Sasl>,

    /// Beginning of the names of all topics, transactional ids and consumer groups: what ACLs of kind `PREFIXED` are given for (default: `<namespace>.<name>` of the pipeline; at most 63 characters). Fixed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"))]
    pub prefix: Option<String>,

    /// Copies of each partition of topics that are created (default 3). Below 3, a broken machine can lose acknowledged records: for development.
    #[serde(default = "three")]
    #[schemars(range(min = 1, max = 7))]
    pub replication: i32,

    /// Who makes the topics (default `Managed`).
    #[serde(default)]
    pub topics: TopicManagement,

    /// Where Strimzi's Topic Operator looks for topics: with `topics: Strimzi` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strimzi: Option<Strimzi>,

    /// How long topics for others keep what is in them.
    #[serde(default)]
    pub retention: Retention,

    /// Further properties of the client, by librdkafka's names, over Millstream's defaults. What its guarantees rest on is refused, and what belongs into `tls` and `sasl`: what stands here can be read by everybody who may read the resource or its ConfigMaps.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[x_kube(validation = Rule::new(NOT_OF_SECURITY).message(NOT_OF_SECURITY_MESSAGE))]
    #[schemars(extend("maxProperties" = 64, "additionalProperties" = {"type": "string", "maxLength": 1024}))]
    pub properties: BTreeMap<String, String>,
}

/// As the worker has them (`worker/stores/src/kafka/config.rs`).
const NOT_OF_SECURITY: &str = "self.all(name, !name.startsWith('security.') && !name.startsWith('sasl.') && !name.startsWith('ssl.') && !name.startsWith('enable.sasl.') && !name.startsWith('enable.ssl.') && !name.startsWith('https.'))";
const NOT_OF_SECURITY_MESSAGE: &str = "settings of security would be in the clear here, and count over the others: set kafka.tls (instead of ssl.*, security.*) and kafka.sasl (instead of sasl.*), which take passwords and keys from Secrets";

fn three() -> i32 {
    3
}

/// Encryption of connections to brokers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tls {
    /// Certificate authorities that brokers' certificates are checked against, PEM (default: those of the image).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<SecretKey>,

    /// A Secret of type `kubernetes.io/tls` with our certificate, `tls.crt` and `tls.key`, for brokers that ask for one (default: none).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<LocalObject>,
}

/// Authentication with a password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sasl {
    /// How the password is proved (default `SCRAM-SHA-512`).
    #[serde(default)]
    pub mechanism: SaslMechanism,

    /// The user's name.
    #[schemars(length(min = 1, max = 256))]
    pub username: String,

    /// The password. When it changes, workers are restarted one by one, after their shards have moved.
    pub password: SecretKey,
}

/// How a password is proved to the brokers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SaslMechanism {
    /// The password itself, for TLS only.
    #[serde(rename = "PLAIN")]
    Plain,
    /// By challenge, with SHA-256.
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    /// By challenge, with SHA-512.
    #[default]
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
}

/// Who makes a pipeline's topics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TopicManagement {
    /// They are created, and checked when they are there already.
    #[default]
    Managed,
    /// Somebody else creates them: they are only checked, and what is missing, or not as it must be, is named.
    Existing,
    /// Strimzi's Topic Operator (0.49 and later) creates those that are not there: each from a `KafkaTopic`, which is created for it. They are checked when it says that they are ready.
    Strimzi,
}

/// Where Strimzi's Topic Operator looks for topics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Strimzi {
    /// Name of the `Kafka` resource whose topics these are: their label `strimzi.io/cluster`.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub cluster: String,

    /// The namespace that its Topic Operator watches (default: the pipeline's own). Millstream's operator needs a Role there: the chart's `strimziNamespaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub namespace: Option<String>,
}

impl Strimzi {
    /// Where the Topic Operator looks for the topics of a pipeline in this namespace.
    pub fn namespace_for<'a>(&'a self, pipelines: &'a str) -> &'a str {
        self.namespace.as_deref().unwrap_or(pipelines)
    }
}

/// What a retention is: one that deletes at once, or that no broker could count, would be a mistake.
const RETAINED: &str = "self.matches('^0*[1-9][0-9]{0,6}(ms|s|m|h|d)$')";
const RETAINED_MESSAGE: &str = "give a duration above 0, with at most 7 digits, such as 7d";

/// How long topics keep what is in them, from when they are created on: a later change is for whoever administers the cluster (`kafka-configs --alter`; with `topics: Strimzi`, the `KafkaTopic`). Internal topics are trimmed by what was processed and checkpointed, not by time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Retention {
    /// Accepted records, processed or not (default 7d). A pipeline that is behind by more loses records; the condition `RetentionAtRisk` warns long before.
    #[serde(default = "week")]
    #[x_kube(validation = Rule::new(RETAINED).message(RETAINED_MESSAGE))]
    pub ingress: HumanDuration,

    /// Enriched events (default 7d).
    #[serde(default = "week")]
    #[x_kube(validation = Rule::new(RETAINED).message(RETAINED_MESSAGE))]
    pub events: HumanDuration,

    /// Rejects (default 14d).
    #[serde(default = "fortnight")]
    #[x_kube(validation = Rule::new(RETAINED).message(RETAINED_MESSAGE))]
    pub rejects: HumanDuration,
}

impl Default for Retention {
    fn default() -> Retention {
        Retention { ingress: week(), events: week(), rejects: fortnight() }
    }
}

fn week() -> HumanDuration {
    "7d".into()
}

fn fortnight() -> HumanDuration {
    "14d".into()
}

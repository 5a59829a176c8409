//! The configuration file of a stage's workers.

use super::names::Names;
use super::overlay::lay_over;
use super::{BuildError, grace, quantity, secrets};
use crate::Prepared;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use millstream_crds::{Kafka, LogFormat, Retention, Sasl, SaslMechanism, StageName, TopicManagement};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

pub(super) const FOLDER: &str = "/etc/millstream/config";
pub(super) const FILE: &str = "millstream.yaml";
pub(super) const DATA: &str = "/var/lib/millstream";
pub(super) const HTTP: i32 = 8080;
pub(super) const ADMIN: i32 = 9090;

/// Of a worker's memory, the part that is for state: the rest is for batches on their way, clients and code.
const SHARE_FOR_STATE: f64 = 0.5;
const MEBIBYTE: f64 = 1_048_576.0;

/// The ConfigMap with a stage's configuration, immutable and named after its content.
pub(super) fn config_map(prepared: &Prepared, names: &Names, stage: StageName) -> Result<ConfigMap, BuildError> {
    let text = serde_yaml::to_string(&config(prepared, stage))
        .map_err(|error| BuildError::Unwritable { what: "a configuration", error: error.to_string() })?;
    let name = format!("{}-{}", names.of_stage(stage), secrets::hex(&Sha256::digest(text.as_bytes())));
    Ok(ConfigMap {
        metadata: names.metadata(name, Some(stage)),
        data: Some(BTreeMap::from([(FILE.to_owned(), text)])),
        immutable: Some(true),
        ..ConfigMap::default()
    })
}

/// What stands in the file.
fn config(prepared: &Prepared, stage: StageName) -> Value {
    let spec = &prepared.pipeline.spec;
    let observability = &spec.observability;
    let mut telemetry = json!({
        "sample_ratio": f64::from(observability.sample_percent) / 100.0,
        "log_format": match observability.log_format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        },
        "log_filter": observability.log_filter,
    });
    if let Some(endpoint) = &observability.otlp_endpoint {
        lay_over(&mut telemetry, &json!({ "otlp_endpoint": endpoint }));
    }
    let mut config = json!({
        "pipeline": prepared.prefix(),
        "shards": spec.shards,
        "generation": prepared.generation(),
        "listen": format!("0.0.0.0:{HTTP}"),
        "admin_listen": format!("0.0.0.0:{ADMIN}"),
        "data_dir": DATA,
        "log": {"kafka": kafka(&spec.kafka)},
        "telemetry": telemetry,
    });
    // Gateways own no shards; by this they hear who may send.
    let (release, _) = grace::of(stage, spec.shards);
    lay_over(&mut config, &json!({"ownership": {"plan": {"release": format!("{release}s")}}}));
    if let (StageName::Reaction, Some(mongodb)) = (stage, &spec.document_store.mongodb) {
        let uri_file = secrets::file(secrets::MONGODB_URI);
        let mongodb = json!({"uri_file": uri_file, "database": mongodb.database, "options": mongodb.options});
        lay_over(&mut config, &json!({"documents": {"mongodb": mongodb}}));
    }
    if let Some(bytes) = memory_for_state(prepared, stage) {
        lay_over(&mut config, &json!({"state": {"memory": format!("{}MiB", (bytes / MEBIBYTE) as u64)}}));
    }
    lay_over(&mut config, &Value::Object(spec.stages.of(stage).config.0.clone()));
    config
}

/// How Kafka's clients prove who they are, but for what Secrets hold: settings by librdkafka's names.
pub(crate) fn security(kafka: &Kafka) -> Vec<(&'static str, String)> {
    let protocol = match (&kafka.sasl, &kafka.tls) {
        (None, None) => "PLAINTEXT",
        (None, Some(_)) => "SSL",
        (Some(_), None) => "SASL_PLAINTEXT",
        (Some(_), Some(_)) => "SASL_SSL",
    };
    let mut security = vec![("security.protocol", protocol.to_owned())];
    if let Some(Sasl { mechanism, username, .. }) = &kafka.sasl {
        let mechanism = match mechanism {
            SaslMechanism::Plain => "PLAIN",
            SaslMechanism::ScramSha256 => "SCRAM-SHA-256",
            SaslMechanism::ScramSha512 => "SCRAM-SHA-512",
        };
        security.extend([("sasl.mechanism", mechanism.to_owned()), ("sasl.username", username.clone())]);
    }
    security
}

fn kafka(kafka: &Kafka) -> Value {
    let (mut security, mut files) = (Map::new(), Map::new());
    let mut say = |name: &str, value: &str| security.insert(name.to_owned(), value.into());
    for (name, value) in self::security(kafka) {
        say(name, &value);
    }
    if kafka.sasl.is_some() {
        files.insert("sasl.password".to_owned(), secrets::file(secrets::KAFKA_PASSWORD).into());
    }
    if let Some(tls) = &kafka.tls {
        if tls.ca.is_some() {
            say("ssl.ca.location", &secrets::file(secrets::KAFKA_CA));
        }
        if tls.certificate.is_some() {
            say("ssl.certificate.location", &secrets::file(secrets::KAFKA_CERTIFICATE));
            say("ssl.key.location", &secrets::file(secrets::KAFKA_KEY));
        }
    }
    let Retention { ingress, events, rejects } = &kafka.retention;
    json!({
        "brokers": kafka.bootstrap_servers,
        "replication": kafka.replication,
        "create_topics": kafka.topics == TopicManagement::Managed,
        "retention": {"ingress": ingress, "events": events, "rejects": rejects},
        "security": security,
        "security_files": files,
        "properties": kafka.properties,
    })
}

/// Bytes, from the limit that the stage's workers have. Gateways and writers of documents have no state.
fn memory_for_state(prepared: &Prepared, stage: StageName) -> Option<f64> {
    if !matches!(stage, StageName::Unify | StageName::Action) {
        return None;
    }
    let limit: &IntOrString = prepared.pipeline.spec.stages.of(stage).resources.limits.get("memory")?;
    quantity::number(&quantity::quantity(limit).0).map(|bytes| bytes * SHARE_FOR_STATE)
}

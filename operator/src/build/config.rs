//! The configuration file of a stage's workers.

use super::names::Names;
use super::overlay::lay_over;
use super::{BuildError, bucket, grace, has_state, quantity, secrets};
use crate::Prepared;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use millstream_crds::{
    Checkpoints, Kafka, LogFormat, Retention, S3, Sasl, SaslMechanism, SecretKey, ServerSideEncryption, StageName,
    TopicManagement,
};
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
    if let Some(s3) = bucket(spec, stage) {
        lay_over(&mut config, &json!({"objects": {"s3": self::s3(s3)}, "checkpoints": checkpoints(&spec.checkpoints)}));
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

fn s3(s3: &S3) -> Value {
    let file = |key: &Option<SecretKey>, file: &str| key.as_ref().map(|_| secrets::file(file));
    let encryption = s3.server_side_encryption.map(|kind| match kind {
        ServerSideEncryption::Aes256 => json!("store"),
        ServerSideEncryption::Kms => json!({"kms": s3.kms_key_id.clone().unwrap_or_default()}),
    });
    let fields = [
        ("bucket", Some(json!(s3.bucket))),
        ("region", Some(json!(s3.region))),
        ("endpoint", s3.endpoint.as_ref().map(|endpoint| json!(endpoint))),
        ("prefix", s3.prefix.as_ref().map(|prefix| json!(prefix))),
        ("path_style", s3.path_style.map(|is_it| json!(is_it))),
        ("ca_file", file(&s3.ca, secrets::S3_CA).map(|file| json!(file))),
        ("access_key_id_file", file(&s3.access_key_id, secrets::S3_ID).map(|file| json!(file))),
        ("secret_access_key_file", file(&s3.secret_access_key, secrets::S3_SECRET).map(|file| json!(file))),
        ("encryption", encryption),
    ];
    fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect::<Map<_, _>>().into()
}

fn checkpoints(checkpoints: &Checkpoints) -> Value {
    let Checkpoints { interval, min_pause, max_concurrent, retained, upload_per_second } = checkpoints;
    let mut config = json!({
        "interval": interval,
        "min_pause": min_pause,
        "max_concurrent": max_concurrent,
        "retained": retained,
    });
    let bytes = upload_per_second.as_ref().and_then(|bound| quantity::number(&quantity::quantity(bound).0));
    if let Some(bytes) = bytes {
        lay_over(&mut config, &json!({"upload_per_second": format!("{}B", bytes as u64)}));
    }
    config
}

/// Bytes, from the limit that the stage's workers have.
fn memory_for_state(prepared: &Prepared, stage: StageName) -> Option<f64> {
    if !has_state(stage) {
        return None;
    }
    let limit: &IntOrString = prepared.pipeline.spec.stages.of(stage).resources.limits.get("memory")?;
    quantity::number(&quantity::quantity(limit).0).map(|bytes| bytes * SHARE_FOR_STATE)
}

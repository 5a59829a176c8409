//! The Secrets that a stage's Pods see, as files.

use super::bucket;
use crate::Prepared;
use k8s_openapi::api::core::v1::{KeyToPath, ProjectedVolumeSource, SecretProjection, Volume, VolumeProjection};
use millstream_crds::{IngestionPipelineSpec, SecretKey, StageName};
use sha2::{Digest, Sha256};

/// Where they are.
pub(super) const FOLDER: &str = "/etc/millstream/secrets";
pub(super) const VOLUME: &str = "secrets";

pub(crate) const KAFKA_PASSWORD: &str = "kafka/password";
pub(crate) const KAFKA_CA: &str = "kafka/ca.pem";
pub(crate) const KAFKA_CERTIFICATE: &str = "kafka/tls.crt";
pub(crate) const KAFKA_KEY: &str = "kafka/tls.key";
pub(super) const MONGODB_URI: &str = "mongodb/uri";
pub(super) const S3_CA: &str = "s3/ca.pem";
pub(super) const S3_ID: &str = "s3/access-key-id";
pub(super) const S3_SECRET: &str = "s3/secret-access-key";

/// The full name of a file.
pub(super) fn file(path: &str) -> String {
    format!("{FOLDER}/{path}")
}

/// What a stage needs, and as which file: no more than that, so that a gateway that is broken into has no password of the stores.
pub(crate) fn needed(spec: &IngestionPipelineSpec, stage: StageName) -> Vec<(SecretKey, &'static str)> {
    let (kafka, documents) = (&spec.kafka, &spec.document_store);
    let mut needed = Vec::new();
    needed.extend(kafka.sasl.iter().map(|sasl| (sasl.password.clone(), KAFKA_PASSWORD)));
    if let Some(tls) = &kafka.tls {
        needed.extend(tls.ca.iter().map(|ca| (ca.clone(), KAFKA_CA)));
        if let Some(certificate) = &tls.certificate {
            let key = |key: &str| SecretKey { name: certificate.name.clone(), key: key.to_owned() };
            needed.extend([(key("tls.crt"), KAFKA_CERTIFICATE), (key("tls.key"), KAFKA_KEY)]);
        }
    }
    if stage == StageName::Reaction {
        needed.extend(documents.mongodb.iter().map(|mongodb| (mongodb.uri.clone(), MONGODB_URI)));
    }
    if let Some(s3) = bucket(spec, stage) {
        let keys = [(&s3.ca, S3_CA), (&s3.access_key_id, S3_ID), (&s3.secret_access_key, S3_SECRET)];
        needed.extend(keys.into_iter().filter_map(|(key, file)| Some((key.clone()?, file))));
    }
    needed
}

/// The volume with a stage's Secrets; none when it needs none.
pub(super) fn volume(prepared: &Prepared, stage: StageName) -> Option<Volume> {
    let needed = needed(&prepared.pipeline.spec, stage);
    if needed.is_empty() {
        return None;
    }
    let sources = needed.into_iter().map(|(key, path)| VolumeProjection {
        secret: Some(SecretProjection {
            name: key.name,
            items: Some(vec![KeyToPath { key: key.key, path: path.to_owned(), mode: None }]),
            optional: None,
        }),
        ..VolumeProjection::default()
    });
    let projected = ProjectedVolumeSource { sources: Some(sources.collect()), default_mode: Some(0o440) };
    Some(Volume { name: VOLUME.to_owned(), projected: Some(projected), ..Volume::default() })
}

/// One hash of everything that a stage's Secrets hold: another one, other Pods.
pub(super) fn hash(prepared: &Prepared, stage: StageName) -> String {
    let mut hash = Sha256::new();
    for (key, path) in needed(&prepared.pipeline.spec, stage) {
        hash.update(path.as_bytes());
        hash.update([0]);
        hash.update(prepared.secrets.of(&key).as_bytes());
        hash.update([0]);
    }
    hex(&hash.finalize())
}

/// The first 16 digits: enough to tell contents apart, short enough for names.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

//! The object store and when checkpoints go there, as a file says it.

use super::{Millis, Secret, Size};
use millstream_shard::checkpoint::Policy;
use millstream_stores::s3::{Credentials, Encryption, S3Config};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The object store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Objects {
    /// None: there are no checkpoints. A shard that has lost its disk reads its whole changelog, which is never trimmed.
    None,
    /// A folder: for one machine, or on a file system that all workers share, has locks, and outlives them.
    Folder(ObjectFolder),
    /// S3, or a server that speaks its protocol and has conditional writes.
    S3(Box<S3>),
}

/// A folder as object store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectFolder {
    /// The folder, created when missing.
    pub path: PathBuf,
}

/// A bucket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3 {
    /// Its name. It is never created.
    pub bucket: String,
    /// Region of the bucket (default `us-east-1`, which others than AWS take).
    #[serde(default = "default_region")]
    pub region: String,
    /// Address of a server other than AWS's, `https://host:port` (default: that of the region).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Folder in the bucket, segments between slashes (default: none). The pipeline's name comes behind it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prefix: String,
    /// The bucket is in the path of requests and not in the name of the host, as most others than AWS need it (default: true with an `endpoint`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_style: Option<bool>,
    /// PEM file of the certificate authorities that the server's certificate may be signed by (default: those of the system).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Access key (default: what the environment gives: its variables, a web identity, the container's or the machine's role).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_key_id: Option<String>,
    /// Its secret. This or `secret_access_key_file`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_access_key: Option<Secret>,
    /// File with the access key; its line end does not count. Read once, at the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_key_id_file: Option<PathBuf>,
    /// File with its secret; its line end does not count. Read once, at the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_access_key_file: Option<PathBuf>,
    /// How the server encrypts what is written: `bucket` (as the bucket says), `store` (`AES256`), or `{kms: KEY}` (`aws:kms` with this key id, ARN or alias) (default `bucket`).
    #[serde(default, with = "serde_yaml::with::singleton_map")]
    pub encryption: ServerEncryption,
}

/// How the server encrypts what is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServerEncryption {
    /// As the bucket says.
    #[default]
    Bucket,
    /// With keys that the store manages (`AES256`).
    Store,
    /// With a key of its key management (`aws:kms`).
    Kms(String),
}

fn default_region() -> String {
    "us-east-1".to_owned()
}

impl S3 {
    /// As the store takes it; secrets were read from their files before.
    pub fn store(&self) -> S3Config {
        let mut config = S3Config::new(self.region.as_str(), self.bucket.as_str());
        config.endpoint.clone_from(&self.endpoint);
        config.folder.clone_from(&self.prefix);
        config.path_style = self.path_style.unwrap_or(self.endpoint.is_some());
        config.ca_file.clone_from(&self.ca_file);
        if let Some((id, secret)) = self.access_key_id.clone().zip(self.secret_access_key.as_ref()) {
            config.credentials = Credentials::Static {
                access_key_id: id,
                secret_access_key: secret.reveal().to_owned(),
                session_token: None,
            };
        }
        config.encryption = match &self.encryption {
            ServerEncryption::Bucket => Encryption::Bucket,
            ServerEncryption::Store => Encryption::Store,
            ServerEncryption::Kms(key) => Encryption::Kms { key: Some(key.clone()).filter(|key| !key.is_empty()) },
        };
        config
    }
}

/// When checkpoints are taken, where there is an object store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Checkpoints {
    /// From the beginning of a shard's checkpoint to that of the next one (default 60s).
    pub interval: Millis,
    /// From the end of one to the beginning of the next one, at least (default 10s).
    pub min_pause: Millis,
    /// How many shards of this process take one at a time (default 1).
    pub max_concurrent: u16,
    /// How many of a shard are kept (default 3). Its changelog is trimmed up to the oldest of them.
    pub retained: u16,
    /// Files of one checkpoint that are uploaded or downloaded at a time (default 2). Each may take 16 MB of memory beside `state.memory`.
    pub files_at_once: u16,
    /// What all shards of this process together upload per second (default 0B: as much as the network takes).
    pub upload_per_second: Size,
}

impl Default for Checkpoints {
    fn default() -> Checkpoints {
        let Policy { interval_ms, min_pause_ms, retained, concurrent, lanes } = Policy::default();
        let number = |value: usize| u16::try_from(value).unwrap_or(u16::MAX);
        Checkpoints {
            interval: Millis(interval_ms),
            min_pause: Millis(min_pause_ms),
            max_concurrent: number(concurrent),
            retained: number(retained),
            files_at_once: number(lanes),
            upload_per_second: Size(0),
        }
    }
}

impl Checkpoints {
    /// As shards take it.
    pub fn policy(&self) -> Policy {
        Policy {
            interval_ms: self.interval.0,
            min_pause_ms: self.min_pause.0,
            retained: self.retained.into(),
            concurrent: self.max_concurrent.into(),
            lanes: self.files_at_once.into(),
        }
    }
}

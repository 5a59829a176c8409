//! Where documents and checkpoints go.

use crate::common::{HumanDuration, Quantity, SecretKey};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The store of users' and devices' documents: exactly one of its members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.mongodb)").message("give exactly one document store: `documentStore.mongodb`"))]
pub struct DocumentStore {
    /// MongoDB, or a server that speaks its protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mongodb: Option<Mongodb>,
}

/// How to reach MongoDB, and how to use it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mongodb {
    /// The connection string, `mongodb://...` or `mongodb+srv://...`, with the password in it. When it changes, the reaction stage is restarted worker by worker.
    pub uri: SecretKey,

    /// Database that holds the collections (default `millstream`).
    #[serde(default = "default_database")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r#"^[^/\\. "$*<>:|?]+$"#))]
    pub database: String,

    /// Further options of the connection string (`maxPoolSize`, `tls`, ...; default: none).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64, "additionalProperties" = {"type": "string", "maxLength": 1024}))]
    pub options: BTreeMap<String, String>,
}

fn default_database() -> String {
    "millstream".to_owned()
}

/// The store of checkpoints and savepoints: exactly one of its members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.s3)").message("give exactly one object store: `objectStore.s3`"))]
pub struct ObjectStore {
    /// S3, or a server that speaks its protocol and has conditional writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3>,
}

/// A bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.accessKeyId) == has(self.secretAccessKey)").message(
    "give both accessKeyId and secretAccessKey, or neither: then the workers' identity is used"
))]
#[x_kube(validation = Rule::new("!has(self.kmsKeyId) || (has(self.serverSideEncryption) && self.serverSideEncryption == 'aws:kms')").message(
    "kmsKeyId is for `serverSideEncryption: aws:kms`: set both, or leave kmsKeyId out"
))]
#[x_kube(validation = Rule::new("!has(self.ca) || (has(self.endpoint) && self.endpoint.startsWith('https://'))").message(
    "ca is for an endpoint of your own with TLS: set `endpoint: https://...`, or leave ca out"
))]
pub struct S3 {
    /// Its name. It is never created.
    #[schemars(length(min = 3, max = 63), regex(pattern = r"^[a-z0-9][-.a-z0-9]*[a-z0-9]$"))]
    pub bucket: String,

    /// Folder in the bucket: segments of letters, digits, `.`, `-`, `_` and `=` between slashes, 123 characters at most (default: none). A folder of the pipeline's own, called as its topics begin (`kafka.prefix`), comes behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.split('/').all(part, part != '.' && part != '..')").message(
        "`.` and `..` are no names in a bucket: name the folder itself, such as teams/data"
    ))]
    #[schemars(length(min = 1, max = 123), regex(pattern = r"^[A-Za-z0-9._=-]+(/[A-Za-z0-9._=-]+)*$"))]
    pub prefix: Option<String>,

    /// Region (default `us-east-1`).
    #[serde(default = "default_region")]
    #[schemars(length(min = 1, max = 64))]
    pub region: String,

    /// Address of a server other than AWS's, `https://host:port` (default: that of the region).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512), regex(pattern = r"^https?://[^/@?# ]+/?$"))]
    pub endpoint: Option<String>,

    /// The bucket is in the path of requests and not in the name of the host, as most others than AWS need it (default: true with an `endpoint`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_style: Option<bool>,

    /// Certificate authorities that the server's certificate is checked against, PEM (default: those of the image).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<SecretKey>,

    /// Access key (default: what the workers' ServiceAccount is given, by workload identity). When it or its secret changes, the workers of unify and action are restarted one by one, after their shards have moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_key_id: Option<SecretKey>,

    /// Its secret (default: as with `accessKeyId`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_access_key: Option<SecretKey>,

    /// How the server encrypts what is written (default: as the bucket says).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_side_encryption: Option<ServerSideEncryption>,

    /// Id, ARN or alias of the key, with `aws:kms` (default: the account's own for S3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub kms_key_id: Option<String>,
}

/// How the server encrypts what is written, by S3's names (default: as the bucket says).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ServerSideEncryption {
    /// With keys that the store manages.
    #[serde(rename = "AES256")]
    Aes256,
    /// With a key of its key management.
    #[serde(rename = "aws:kms")]
    Kms,
}

fn default_region() -> String {
    "us-east-1".to_owned()
}

/// When checkpoints are taken, where there is an object store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Checkpoints {
    /// From the beginning of a shard's checkpoint to that of the next one, 1s to 24h (default 60s): as long a changelog is read again at most when a disk is lost.
    #[serde(default = "minute")]
    #[x_kube(validation = Rule::new("!self.endsWith('d') && duration(self) >= duration('1s') && duration(self) <= duration('24h')").message(
        "give a duration from 1s to 24h, such as 60s"
    ))]
    pub interval: HumanDuration,

    /// From the end of one to the beginning of the next one, at least; 24h at most (default 10s).
    #[serde(default = "ten_seconds")]
    #[x_kube(validation = Rule::new("!self.endsWith('d') && duration(self) <= duration('24h')").message(
        "give a duration of 24h at most, such as 10s"
    ))]
    pub min_pause: HumanDuration,

    /// How many shards of a worker take one at a time, 1 to 64 (default 1).
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 64))]
    pub max_concurrent: i32,

    /// How many of a shard are kept, 1 to 100 (default 3). Its changelog is trimmed up to the oldest of them.
    #[serde(default = "three")]
    #[schemars(range(min = 1, max = 100))]
    pub retained: i32,

    /// What all shards of a worker together upload per second, bytes, such as `50M`: at least `100k` (default: as much as the network takes).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Quantity>")]
    #[x_kube(validation = Rule::new("string(self).matches('^[0-9]+(k|M|G|Ki|Mi|Gi)?$') && quantity(string(self)).compareTo(quantity('100k')) >= 0").message(
        "give bytes per second, at least 100k, such as 50M; or leave it out"
    ))]
    pub upload_per_second: Option<IntOrString>,
}

impl Default for Checkpoints {
    fn default() -> Checkpoints {
        Checkpoints {
            interval: minute(),
            min_pause: ten_seconds(),
            max_concurrent: one(),
            retained: three(),
            upload_per_second: None,
        }
    }
}

fn minute() -> HumanDuration {
    "60s".into()
}

fn ten_seconds() -> HumanDuration {
    "10s".into()
}

fn one() -> i32 {
    1
}

fn three() -> i32 {
    3
}

//! Where documents and checkpoints go.

use crate::common::SecretKey;
use kube::KubeSchema;
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

    /// Further options of the connection string (`maxPoolSize`, `tls`, ...).
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
pub struct S3 {
    /// Its name.
    #[schemars(length(min = 3, max = 63), regex(pattern = r"^[a-z0-9][-.a-z0-9]*[a-z0-9]$"))]
    pub bucket: String,

    /// Folder in the bucket (default: the pipeline's namespace and name).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^[^/].*[^/]$"))]
    pub prefix: Option<String>,

    /// Region (default `us-east-1`).
    #[serde(default = "default_region")]
    #[schemars(length(min = 1, max = 64))]
    pub region: String,

    /// Address of a server other than AWS's, `https://host:port` (default: that of the region).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512), regex(pattern = r"^https?://"))]
    pub endpoint: Option<String>,

    /// Access key (default: what the workers' ServiceAccount is given, by workload identity).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_key_id: Option<SecretKey>,

    /// Its secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_access_key: Option<SecretKey>,
}

fn default_region() -> String {
    "us-east-1".to_owned()
}

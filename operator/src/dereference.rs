//! What a pipeline refers to: Secrets, and the scales of its stages.
//!
//! Of a Secret nothing reaches the pure steps but whether its content is the same as before, and which port a connection string names; Kafka's go to the clients of this process. What is not there is a problem of the pipeline, like any other
//! that the user can mend, and no failure of the operator's.

use crate::build::config::security;
use crate::build::secrets::{self, needed};
use crate::build::topics;
use crate::plans::Access;
use crate::trouble::Trouble;
use crate::validate::Problem;
use crate::{Prepared, SecretHashes};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use millstream_crds::{IngestionPipeline, SecretKey, StageName, StageScale, TopicManagement};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// Of servers whose connection string names no port.
const MONGODB_PORT: u16 = 27_017;

/// What a pipeline refers to.
pub(crate) struct Dereferenced {
    /// For the pure steps.
    pub(crate) prepared: Prepared,
    /// What is missing.
    pub(crate) problems: Vec<Problem>,
}

/// A pipeline with what it refers to, and what of that is missing.
///
/// # Errors
/// [`Trouble`]: the API server could not be asked.
pub(crate) async fn dereference(
    client: &Client,
    pipeline: IngestionPipeline,
    operator_namespace: &str,
) -> Result<Dereferenced, Trouble> {
    let namespace = pipeline.metadata.namespace.clone().unwrap_or_default();
    let mut problems = Vec::new();
    let contents = contents(client, &namespace, &pipeline, &StageName::ALL, &mut problems).await?;
    let mut prepared = Prepared {
        replicas: replicas(client, &namespace, &pipeline).await?,
        secrets: SecretHashes::default(),
        document_ports: BTreeSet::new(),
        operator_namespace: operator_namespace.to_owned(),
        pipeline,
    };
    if let Some(mongodb) = &prepared.pipeline.spec.document_store.mongodb {
        let uri = contents.get(&(mongodb.uri.name.clone(), mongodb.uri.key.clone()));
        prepared.document_ports = uri.map(|uri| ports(&String::from_utf8_lossy(uri))).unwrap_or_default();
    }
    let hash = |bytes: Vec<u8>| secrets::hex(&Sha256::digest(bytes));
    prepared.secrets = SecretHashes(contents.into_iter().map(|(key, bytes)| (key, hash(bytes))).collect());
    Ok(Dereferenced { prepared, problems })
}

/// How a pipeline's log is reached, and what of that is missing: the rest of what it refers to plays no part.
///
/// # Errors
/// [`Trouble`]: the API server could not be asked.
pub(crate) async fn log_of(
    client: &Client,
    pipeline: &IngestionPipeline,
    operator_namespace: &str,
) -> Result<(Access, Vec<Problem>), Trouble> {
    let namespace = pipeline.metadata.namespace.clone().unwrap_or_default();
    let mut problems = Vec::new();
    // Gateways see Kafka's Secrets and no others.
    let contents = contents(client, &namespace, pipeline, &[StageName::Gateway], &mut problems).await?;
    let prepared = Prepared {
        pipeline: pipeline.clone(),
        replicas: BTreeMap::new(),
        secrets: SecretHashes::default(),
        document_ports: BTreeSet::new(),
        operator_namespace: operator_namespace.to_owned(),
    };
    Ok((access(&prepared, &contents), problems))
}

/// With everything in memory: the client takes certificates as text, too.
fn access(prepared: &Prepared, contents: &Contents) -> Access {
    let kafka = &prepared.pipeline.spec.kafka;
    let (topics, mut config) = (topics::names(prepared), topics::config(prepared));
    config.create_topics = kafka.topics == TopicManagement::Managed;
    config.security.extend(security(kafka).into_iter().map(|(name, value)| (name.to_owned(), value)));
    let files = needed(&prepared.pipeline.spec, StageName::Gateway);
    config.security.extend(files.into_iter().filter_map(|(key, file)| {
        let name = match file {
            secrets::KAFKA_PASSWORD => "sasl.password",
            secrets::KAFKA_CA => "ssl.ca.pem",
            secrets::KAFKA_CERTIFICATE => "ssl.certificate.pem",
            secrets::KAFKA_KEY => "ssl.key.pem",
            _ => return None,
        };
        let content = contents.get(&(key.name, key.key))?;
        Some((name.to_owned(), String::from_utf8_lossy(content).trim_end_matches(['\r', '\n']).to_owned()))
    }));
    Access { kafka: config, topics, made_by: kafka.topics }
}

type Contents = BTreeMap<(String, String), Vec<u8>>;

async fn contents(
    client: &Client,
    namespace: &str,
    pipeline: &IngestionPipeline,
    stages: &[StageName],
    problems: &mut Vec<Problem>,
) -> Result<Contents, Trouble> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let needed: BTreeSet<(String, String)> = stages
        .iter()
        .flat_map(|stage| needed(&pipeline.spec, *stage))
        .map(|(SecretKey { name, key }, _)| (name, key))
        .collect();
    let names: BTreeSet<String> = needed.iter().map(|(name, _)| name.clone()).collect();
    let mut found_secrets = BTreeMap::new();
    for name in names {
        let found = api.get_opt(&name).await.map_err(|error| Trouble::of(format!("get Secret {name}"), error))?;
        found_secrets.insert(name, found);
    }
    let mut contents = Contents::new();
    for (name, key) in needed {
        let missing = |message: String| Problem { field: format!("Secret {name}"), message };
        match found_secrets.get(&name).and_then(Option::as_ref) {
            None => problems
                .push(missing(format!("is not there: create it in namespace {namespace}, with the key `{key}`"))),
            Some(secret) => {
                match secret.data.as_ref().and_then(|data| data.get(&key)).filter(|bytes| !bytes.0.is_empty()) {
                    None => problems.push(missing(format!("has nothing under the key `{key}`: add it"))),
                    Some(bytes) => drop(contents.insert((name.clone(), key.clone()), bytes.0.clone())),
                }
            }
        }
    }
    Ok(contents)
}

async fn replicas(
    client: &Client,
    namespace: &str,
    pipeline: &IngestionPipeline,
) -> Result<BTreeMap<StageName, i32>, Trouble> {
    let api: Api<StageScale> = Api::namespaced(client.clone(), namespace);
    let name = pipeline.metadata.name.clone().unwrap_or_default();
    let mut replicas = BTreeMap::new();
    for stage in StageName::ALL {
        let scale = format!("{name}-{}", stage.as_str());
        let found = api.get_opt(&scale).await.map_err(|error| Trouble::of(format!("get StageScale {scale}"), error))?;
        // One of the name that is about something else is nobody's to follow.
        let ours = found.filter(|scale| scale.spec.pipeline_ref.name == name && scale.spec.stage == stage);
        replicas.extend(ours.map(|scale| (stage, scale.spec.replicas)));
    }
    Ok(replicas)
}

/// The ports of the servers of a connection string; of `mongodb+srv://` DNS says them.
fn ports(uri: &str) -> BTreeSet<u16> {
    let (_, rest) = uri.split_once("://").unwrap_or(("", uri));
    let hosts = rest.split(['/', '?']).next().unwrap_or_default();
    let hosts = hosts.rsplit_once('@').map_or(hosts, |(_, hosts)| hosts);
    let port =
        |host: &str| host.trim().rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(MONGODB_PORT);
    hosts.split(',').map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_a_connection_string_are_known() {
        let cases: [(&str, &[u16]); 5] = [
            ("mongodb://user:p%40ss@a:27018,b:27019/db?x=y", &[27018, 27019]),
            ("mongodb://a,b:1", &[1, 27017]),
            ("mongodb+srv://user:x@cluster.example.com/db", &[27017]),
            ("mongodb://[::1]:27020/", &[27020]),
            ("mongodb://a?directConnection=true", &[27017]),
        ];
        for (uri, expected) in cases {
            assert_eq!(ports(uri).into_iter().collect::<Vec<_>>(), expected, "{uri}");
        }
    }
}

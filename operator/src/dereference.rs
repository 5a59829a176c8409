//! What a pipeline refers to: Secrets, and the scales of its stages.
//!
//! Of a Secret nothing leaves this step but whether its content is the same as before, and which port a connection string names. What is not there is a problem of the pipeline, like any other
//! that the user can mend, and no failure of the operator's.

use crate::build::secrets::needed;
use crate::trouble::Trouble;
use crate::validate::Problem;
use crate::{Prepared, SecretHashes};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use millstream_crds::{IngestionPipeline, SecretKey, StageName, StageScale};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// Of servers whose connection string names no port.
const MONGODB_PORT: u16 = 27_017;

/// A pipeline with what it refers to, and what of that is missing.
///
/// # Errors
/// [`Trouble`]: the API server could not be asked.
pub(crate) async fn dereference(
    client: &Client,
    pipeline: IngestionPipeline,
    operator_namespace: &str,
) -> Result<(Prepared, Vec<Problem>), Trouble> {
    let namespace = pipeline.metadata.namespace.clone().unwrap_or_default();
    let mut problems = Vec::new();
    let contents = contents(client, &namespace, &pipeline, &mut problems).await?;
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
    let hash = |bytes: Vec<u8>| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    prepared.secrets = SecretHashes(contents.into_iter().map(|(key, bytes)| (key, hash(bytes))).collect());
    Ok((prepared, problems))
}

type Contents = BTreeMap<(String, String), Vec<u8>>;

async fn contents(
    client: &Client,
    namespace: &str,
    pipeline: &IngestionPipeline,
    problems: &mut Vec<Problem>,
) -> Result<Contents, Trouble> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let needed: BTreeSet<(String, String)> = StageName::ALL
        .iter()
        .flat_map(|stage| needed(&pipeline.spec, *stage))
        .map(|(SecretKey { name, key }, _)| (name, key))
        .collect();
    let names: BTreeSet<String> = needed.iter().map(|(name, _)| name.clone()).collect();
    let mut secrets = BTreeMap::new();
    for name in names {
        let found = api.get_opt(&name).await.map_err(|error| Trouble::of(format!("get Secret {name}"), error))?;
        secrets.insert(name, found);
    }
    let mut contents = Contents::new();
    for (name, key) in needed {
        let missing = |message: String| Problem { field: format!("Secret {name}"), message };
        match secrets.get(&name).and_then(Option::as_ref) {
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

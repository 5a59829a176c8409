//! The cluster: its API server, and through it the operator that leads.

use crate::Where;
use anyhow::{Context, bail};
use k8s_openapi::api::coordination::v1::Lease;
use kube::config::KubeConfigOptions;
use kube::{Api, Client, Config};
use millstream_crds::IngestionPipeline;
use millstream_operator::admin::PipelineShards;

/// Of whom one operator leads; with `-NAMESPACE` when it watches one.
const LEASE: &str = "millstream-operator";
/// Where an operator's Pod listens.
const PORT: u16 = 9090;

/// A cluster, and a namespace in it.
pub(crate) struct Cluster {
    client: Client,
    pub(crate) namespace: String,
    operator_namespace: String,
    operator_url: Option<String>,
}

impl Cluster {
    /// # Errors
    /// When there is no kubeconfig, or no such context in it.
    pub(crate) async fn connect(args: &Where) -> anyhow::Result<Cluster> {
        let config = match &args.context {
            Some(context) => {
                let options = KubeConfigOptions { context: Some(context.clone()), ..KubeConfigOptions::default() };
                Config::from_kubeconfig(&options).await.with_context(|| format!("context {context}"))?
            }
            None => Config::infer().await.context("cannot tell which cluster: set KUBECONFIG")?,
        };
        let namespace = args.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).context("the kubeconfig cannot be used")?;
        let (operator_namespace, operator_url) = (args.operator_namespace.clone(), args.operator_url.clone());
        Ok(Cluster { client, namespace, operator_namespace, operator_url })
    }

    /// The pipelines of the namespace.
    pub(crate) fn pipelines(&self) -> Api<IngestionPipeline> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// # Errors
    /// When it is not there, or the API server cannot be asked.
    pub(crate) async fn pipeline(&self, name: &str) -> anyhow::Result<IngestionPipeline> {
        let found = self.pipelines().get_opt(name).await.context("asking the API server")?;
        found.with_context(|| format!("there is no IngestionPipeline {name} in namespace {}", self.namespace))
    }

    /// What the operator that leads hears of a pipeline's shards.
    ///
    /// # Errors
    /// When no operator leads, or it cannot be asked; the message says what to do.
    pub(crate) async fn shards(&self, pipeline: &str) -> anyhow::Result<PipelineShards> {
        let path = format!("v1/pipelines/{}/{pipeline}", self.namespace);
        let answer = match &self.operator_url {
            Some(url) => self.ask_directly(&format!("{}/{path}", url.trim_end_matches('/'))).await?,
            None => self.ask_leader(&path).await?,
        };
        serde_json::from_str(&answer).context("the operator's answer is not understood: is it of another version?")
    }

    async fn ask_leader(&self, path: &str) -> anyhow::Result<String> {
        let pod = self.leader().await?;
        let namespace = &self.operator_namespace;
        let url = format!("/api/v1/namespaces/{namespace}/pods/{pod}:{PORT}/proxy/{path}");
        match self.client.request_text(http_get(&url)?).await {
            Err(kube::Error::Api(status)) if status.code == 403 => {
                let said = &status.message;
                bail!("you may not get pods/proxy in namespace {namespace}, by which the operator is asked: {said}")
            }
            Err(kube::Error::Api(status)) => bail!("the operator {pod} answers: {}", status.message),
            asked => asked.with_context(|| format!("asking the operator {pod} through the API server")),
        }
    }

    /// The Pod of the operator that leads for this namespace.
    async fn leader(&self) -> anyhow::Result<String> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), &self.operator_namespace);
        let mut newest = None;
        for name in [format!("{LEASE}-{}", self.namespace), LEASE.to_owned()] {
            let lease = leases.get_opt(&name).await.context("looking for the operator that leads")?;
            let spec = lease.and_then(|lease| lease.spec).unwrap_or_default();
            // A Pod's name, and what tells its processes apart. One of an operator that is gone is not renewed any more.
            let holder = spec.holder_identity.as_deref().and_then(|holder| holder.rsplit_once('-'));
            let held = holder.map(|(pod, _)| (spec.renew_time.map(|time| time.0), pod.to_owned()));
            newest = newest.max(held);
        }
        if let Some((_, pod)) = newest {
            return Ok(pod);
        }
        bail!(
            "no operator leads in namespace {}: is that its namespace (--operator-namespace)?",
            self.operator_namespace
        )
    }

    /// Through a client without the cluster's credentials, which are nobody else's business.
    async fn ask_directly(&self, url: &str) -> anyhow::Result<String> {
        let (host, path) = url
            .strip_prefix("http://")
            .and_then(|rest| rest.split_once('/'))
            .with_context(|| format!("`{url}` is not an operator's address: it begins with http:// and has a host"))?;
        let client = Client::try_from(Config::new(format!("http://{host}").parse()?))?;
        client.request_text(http_get(&format!("/{path}"))?).await.with_context(|| format!("asking {url}"))
    }
}

fn http_get(path: &str) -> anyhow::Result<http::Request<Vec<u8>>> {
    Ok(http::Request::get(path).body(Vec::new())?)
}

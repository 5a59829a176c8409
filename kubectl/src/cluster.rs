//! The cluster: its API server, and through it the operator that leads.

use crate::Where;
use anyhow::{Context, bail};
use kube::config::KubeConfigOptions;
use kube::core::Status;
use kube::{Api, Client, Config};
use millstream_crds::IngestionPipeline;
use millstream_operator::admin::PipelineShards;
use millstream_operator::leader;
use std::cell::Cell;
use std::time::{Duration, Instant};

/// For so long after the first time in vain the one that leads is asked again: another operator leads within 5 s after one was killed, and its Service knows it a moment later.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often.
const EVERY: Duration = Duration::from_millis(500);
/// How long one answer may take: behind the Service there may be a Pod whose node is lost, beside the one that leads.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);

/// A cluster, and a namespace in it.
pub(crate) struct Cluster {
    client: Client,
    /// The same, which asks [once].
    once: Client,
    pub(crate) namespace: String,
    operator_namespace: String,
    operator_url: Option<String>,
    /// Since when nobody has led, if nobody did when it was asked last.
    leaderless: Cell<Option<Instant>>,
}

/// Why a Service leads to no operator.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    /// There is no such Service, or it may not be asked: the API server's words.
    Service(String),
    /// None leads at the moment, or it cannot be reached: another one may in a moment.
    Leaderless(String),
    /// The operator's own words.
    Operator(String),
}

impl Refusal {
    fn of(status: &Status) -> Refusal {
        let message = status.message.clone();
        // Who answers is in the details: an operator gives none. A Service that is new has no endpoints at all.
        let about = status.details.as_ref().map_or("", |details| &details.kind);
        match (status.code, about) {
            (401 | 403, _) | (404, "services") => Refusal::Service(message),
            (502..=504, _) | (404, "endpoints") => Refusal::Leaderless(message),
            _ => Refusal::Operator(message),
        }
    }
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
        let unusable = "the kubeconfig cannot be used";
        let client = Client::try_from(config.clone()).context(unusable)?;
        let once = Client::try_from(once(config)).context(unusable)?;
        let (operator_namespace, operator_url) = (args.operator_namespace.clone(), args.operator_url.clone());
        Ok(Cluster { client, once, namespace, operator_namespace, operator_url, leaderless: Cell::default() })
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

    /// Through the Service that leads to the operator that leads: of this namespace, or else of all.
    async fn ask_leader(&self, path: &str) -> anyhow::Result<String> {
        loop {
            let why = match self.ask_services(path).await? {
                Ok(answer) => {
                    self.leaderless.set(None);
                    return Ok(answer);
                }
                Err(why) => why,
            };
            let since = self.leaderless.get().unwrap_or_else(Instant::now);
            self.leaderless.set(Some(since));
            if since.elapsed() >= PATIENCE {
                bail!(
                    "no operator leads in namespace {}, or it cannot be reached, for {} s: {why}",
                    self.operator_namespace,
                    PATIENCE.as_secs()
                );
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    /// The answer, or why nobody leads at the moment.
    async fn ask_services(&self, path: &str) -> anyhow::Result<Result<String, String>> {
        let namespace = &self.operator_namespace;
        let (mut said, mut leaderless) = (Vec::new(), None);
        for service in [leader::service(Some(&self.namespace)), leader::service(None)] {
            // A user's Role names the Service just so.
            let url = format!("/api/v1/namespaces/{namespace}/services/{service}/proxy/{path}");
            let asked = tokio::time::timeout(ANSWERS_WITHIN, self.once.request_text(http_get(&url)?));
            let refusal = match asked.await {
                Ok(Ok(answer)) => return Ok(Ok(answer)),
                Ok(Err(kube::Error::Api(status))) => Refusal::of(&status),
                Ok(Err(error)) => return Err(error).context("asking the operator through the API server"),
                Err(_) => Refusal::Leaderless(format!("no answer within {} s", ANSWERS_WITHIN.as_secs())),
            };
            match refusal {
                Refusal::Service(message) => said.push(message),
                Refusal::Leaderless(why) => leaderless = Some(why),
                Refusal::Operator(message) => bail!("the operator that leads answers: {message}"),
            }
        }
        if let Some(why) = leaderless {
            return Ok(Err(why));
        }
        bail!(
            "no operator can be asked in namespace {namespace} (is it in another one? --operator-namespace): {}; it takes leave to get services/proxy of that Service, and an operator that runs in no Pod is asked with --operator-url",
            said.join("; ")
        )
    }

    /// Through a client without the cluster's credentials, which are nobody else's business.
    async fn ask_directly(&self, url: &str) -> anyhow::Result<String> {
        let (host, path) = url
            .strip_prefix("http://")
            .and_then(|rest| rest.split_once('/'))
            .with_context(|| format!("`{url}` is not an operator's address: it begins with http:// and has a host"))?;
        let client = Client::try_from(once(Config::new(format!("http://{host}").parse()?)))?;
        client.request_text(http_get(&format!("/{path}"))?).await.with_context(|| format!("asking {url}"))
    }
}

/// What is not there at the moment is said, and not asked for again.
fn once(mut config: Config) -> Config {
    config.default_retry = false;
    config
}

fn http_get(path: &str) -> anyhow::Result<http::Request<Vec<u8>>> {
    Ok(http::Request::get(path).body(Vec::new())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn who_refuses_is_told_apart() {
        let refusal = |code: u16, details: serde_json::Value| {
            let said = json!({"code": code, "message": "said", "details": details});
            Refusal::of(&serde_json::from_value(said).unwrap())
        };
        let (services, nothing) = (json!({"name": "millstream-leader", "kind": "services"}), serde_json::Value::Null);
        let said = || "said".to_owned();
        for code in [403, 404] {
            assert_eq!(refusal(code, services.clone()), Refusal::Service(said()), "{code}");
        }
        assert_eq!(refusal(404, json!({"kind": "endpoints"})), Refusal::Leaderless(said()));
        assert_eq!(refusal(404, nothing.clone()), Refusal::Operator(said()), "it does not follow the pipeline");
        // No endpoint, none that can be reached, or one that does not lead.
        for code in [502, 503, 504] {
            assert_eq!(refusal(code, nothing.clone()), Refusal::Leaderless(said()), "{code}");
            assert_eq!(refusal(code, services.clone()), Refusal::Leaderless(said()), "{code}");
        }
        assert_eq!(refusal(500, nothing), Refusal::Operator(said()));
    }
}

//! A namespace that is being deleted: whatever there has one of our finalizers is let go at once, while the operator still may.
//!
//! Two things can end an operator's say in a namespace before its finalizers are gone, and the namespace would stay `Terminating` for ever: with `--watch-namespace` the operator's rights are a Role in that
//! very namespace, and one that runs in the namespace is a Pod of it. But Kubernetes leaves everything where it is for the first five seconds (its controller waits so long for API servers beside it to
//! hear that nothing may be created there any more), and from 1.33 on for as long as there are Pods. Therefore:
//!
//! - **Everybody looks, in time.** Each operator, whether it leads or not, looks at the namespace whose end would be its own every [`EVERY`]. Who is told to end looks a last time.
//! - **Never back.** Nobody adds a finalizer in a namespace that is being deleted ([`finalizer::hold`]), and no deletion of a namespace is ever taken back.
//! - **Said once.** What is let go is written on the condition that it is as it was listed: of several who look at once, one lets go, and says what stays.
//!
//! What an operator elsewhere that may write in every namespace follows is none of this: it lets go of it when it is deleted ([`crate::deletion`], [`crate::erasure`]).

use crate::admin::Name;
use crate::controller::{Settings, api};
use crate::metrics::Metrics;
use crate::tell::Teller;
use crate::trouble::Trouble;
use crate::{deletion, erasure, finalizer};
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::ListParams;
use kube::core::DeserializeGuard;
use kube::{Api, Client, Resource};
use millstream_crds::{IngestionPipeline, Tenant};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

/// Several times in the five seconds.
const EVERY: Duration = Duration::from_secs(1);
/// How long one look may take, with all that it lets go.
const TRY: Duration = Duration::from_secs(4);
/// How long one who is told to end goes on trying.
const LAST: Duration = Duration::from_secs(5);
/// Before it tries again.
const PAUSE: Duration = Duration::from_millis(200);
/// So many objects at once.
const AT_ONCE: usize = 16;

/// Is the namespace itself being deleted?
///
/// # Errors
/// [`Trouble`].
pub(crate) async fn is_terminating(client: &Client, namespace: &str) -> Result<bool, Trouble> {
    let api: Api<Namespace> = Api::all(client.clone());
    let found = api.get_metadata_opt(namespace).await;
    let found = found.map_err(|error| Trouble::of(format!("get Namespace {namespace}"), error))?;
    Ok(found.is_none_or(|found| found.metadata.deletion_timestamp.is_some()))
}

/// One who looks.
pub struct Terminating {
    client: Client,
    /// The operator's rights, or its Pod, end with this namespace.
    home: String,
    /// Where it may write: everywhere without one.
    watched: Option<String>,
    operator: Name,
    teller: Teller,
}

/// What has one of our finalizers.
enum Held {
    Pipeline(Box<DeserializeGuard<IngestionPipeline>>),
    Tenant(Box<ObjectMeta>),
}

impl Held {
    fn metadata(&self) -> &ObjectMeta {
        match self {
            Held::Pipeline(pipeline) => pipeline.meta(),
            Held::Tenant(metadata) => metadata,
        }
    }

    fn namespace(&self) -> &str {
        self.metadata().namespace.as_deref().unwrap_or_default()
    }

    fn name(&self) -> &str {
        self.metadata().name.as_deref().unwrap_or_default()
    }
}

impl Terminating {
    /// Of the operator with these settings.
    pub fn new(client: Client, settings: &Settings, metrics: Arc<Metrics>) -> Terminating {
        let Settings { watched, namespace, name } = settings.clone();
        let teller = Teller::new(client.clone(), &name, metrics);
        let home = watched.clone().unwrap_or_else(|| namespace.clone());
        Terminating { client, home, watched, operator: Name { namespace, name }, teller }
    }

    /// Looks until `told` to end, and a last time then.
    pub async fn run(self, told: impl Future<Output = ()>) {
        tokio::select! {
            never = self.keep() => match never {},
            () = told => {}
        }
        if tokio::time::timeout(LAST, self.last()).await.is_err() {
            tracing::warn!(
                namespace = self.home,
                "whether it is being deleted, or all was let go there, is not known at the end"
            );
        }
    }

    async fn keep(&self) -> Infallible {
        let mut is_failing = false;
        loop {
            tokio::time::sleep(EVERY).await;
            let looked = match tokio::time::timeout(TRY, self.look()).await {
                Ok(looked) => looked.map_err(|trouble| trouble.to_string()),
                Err(_) => Err(format!("not done within {TRY:?}")),
            };
            if let Err(why) = &looked
                && !is_failing
            {
                tracing::warn!(
                    namespace = self.home,
                    why,
                    "should it be deleted, nothing is let go there; it is tried again"
                );
            }
            is_failing = looked.is_err();
        }
    }

    async fn last(&self) {
        while let Err(trouble) = self.look().await {
            tracing::warn!(namespace = self.home, error = %trouble, "should it be deleted, not all was let go there");
            if trouble.is_refusal() {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Lets go of everything in namespaces that are being deleted, if the operator's own is one of these.
    async fn look(&self) -> Result<(), Trouble> {
        if !is_terminating(&self.client, &self.home).await? {
            return Ok(());
        }
        let (mut terminating, mut going) = (BTreeMap::from([(self.home.clone(), true)]), Vec::new());
        for held in self.held().await? {
            let namespace = held.namespace();
            let goes = match terminating.get(namespace) {
                Some(goes) => *goes,
                None => is_terminating(&self.client, namespace).await?,
            };
            terminating.insert(namespace.to_owned(), goes);
            if goes {
                going.push(held);
            }
        }
        let let_go = stream::iter(going).map(|held| self.let_go(held)).buffer_unordered(AT_ONCE);
        // One that fails keeps no other.
        let_go.fold(Ok(()), |all, one| std::future::ready(Result::and(all, one))).await
    }

    async fn held(&self) -> Result<Vec<Held>, Trouble> {
        let watched = self.watched.as_deref();
        let all = ListParams::default();
        let pipelines = api::<DeserializeGuard<IngestionPipeline>>(&self.client, watched).list(&all).await;
        let pipelines = pipelines.map_err(|error| Trouble::of("list IngestionPipelines", error))?.items;
        let tenants = api::<Tenant>(&self.client, watched).list_metadata(&all).await;
        let tenants = tenants.map_err(|error| Trouble::of("list Tenants", error))?.items;
        let pipelines = pipelines.into_iter().filter(|pipeline| deletion::is_held(pipeline.meta()));
        let tenants = tenants.into_iter().map(|tenant| tenant.metadata).filter(erasure::is_held);
        let pipelines = pipelines.map(|pipeline| Held::Pipeline(Box::new(pipeline)));
        Ok(pipelines.chain(tenants.map(|metadata| Held::Tenant(Box::new(metadata)))).collect())
    }

    async fn let_go(&self, held: Held) -> Result<(), Trouble> {
        let (client, namespace, name) = (&self.client, held.namespace(), held.name());
        let is_done = match &held {
            Held::Pipeline(pipeline) => {
                finalizer::release::<IngestionPipeline>(client, pipeline.meta(), deletion::FINALIZER).await?
            }
            Held::Tenant(metadata) => finalizer::release::<Tenant>(client, metadata, erasure::FINALIZER).await?,
        };
        match &held {
            _ if !is_done => {}
            Held::Pipeline(pipeline) => match &pipeline.0 {
                Ok(pipeline) => self.teller.elsewhere(pipeline, &self.operator, &deletion::retained(pipeline)).await,
                Err(_) => deletion::warn_of_unread(name),
            },
            Held::Tenant(_) => {
                tracing::info!(
                    namespace,
                    tenant = name,
                    "its namespace is being deleted: it is let go, and what is not erased yet stays"
                );
            }
        }
        Ok(())
    }
}

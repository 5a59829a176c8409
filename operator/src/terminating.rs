//! A namespace that is being deleted: whatever there has one of our finalizers is let go at once, while the operator still may.
//!
//! Two things can end an operator's say in a namespace before its finalizers are gone, and the namespace would stay `Terminating` for ever: with `--watch-namespace` the operator's rights are a Role in that
//! very namespace, and one that runs in the namespace is a Pod of it. But Kubernetes leaves everything where it is for the first five seconds (its controller waits so long for API servers beside it to
//! hear that nothing may be created there any more), and from 1.33 on for as long as there are Pods. Therefore:
//!
//! - **Everybody looks, in time.** Each operator, whether it leads or not, looks at the namespace whose end would be its own every [`EVERY`]. Who is told to end looks a last time.
//! - **Never back.** Nobody adds a finalizer in a namespace that is being deleted ([`finalizer::hold`]), and no deletion of a namespace is ever taken back.
//! - **Home first, and nothing holds up another.** What is in that very namespace is let go before it is asked which others are being deleted; a list, a namespace or an object that fails, or is not answered, keeps nothing else.
//! - **Said once.** What is let go is written on the condition that it is as it was listed: of several who look at once, one lets go, and says what stays. Each takes
//!   what there is in an order of its own, so that they share the work instead of losing every object to each other.
//!
//! What an operator elsewhere that may write in every namespace follows is none of this: it lets go of it when it is deleted ([`crate::deletion`], [`crate::erasure`]).

use crate::admin::Name;
use crate::controller::{Settings, api};
use crate::metrics::Metrics;
use crate::tell::Teller;
use crate::trouble::Trouble;
use crate::{deletion, erasure, finalizer};
use futures::{Stream, StreamExt, stream};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::ListParams;
use kube::core::DeserializeGuard;
use kube::{Api, Client, Resource};
use millstream_crds::{IngestionPipeline, Tenant};
use rand::seq::SliceRandom;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

/// Several times in the five seconds.
const EVERY: Duration = Duration::from_secs(1);
/// How long each request of a look may take: one that hangs leaves time for another, and what gets further is not given up.
const TRY: Duration = Duration::from_secs(2);
/// How long one who is told to end goes on trying.
const LAST: Duration = Duration::from_secs(5);
/// Before it tries again then.
const PAUSE: Duration = Duration::from_millis(200);
/// So many objects of a kind at once. Of the requests of all ServiceAccounts, which Kubernetes gives the priority level `workload-low`, an API server serves 245 at once by default: two operators take half of them. Where
/// a write takes 20 ms, 5,000 Tenants take one of them 1.6 s; two busy cores that ran the API server,
/// etcd, both operators and builds took 18 and 21 s for as many (22 to 33 s with 16 at once, in the order of the list), because each costs computing time there.
const AT_ONCE: usize = 64;

/// What there is of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It is there, and stays.
    Active,
    /// It is being deleted: what is there goes, and nothing comes.
    Terminating,
    /// There is none of this name: nothing is in it, and the API server refuses (404) to write anything there.
    Absent,
}

/// The phase of the namespace of this name.
///
/// # Errors
/// [`Trouble`].
pub(crate) async fn phase(client: &Client, namespace: &str) -> Result<Phase, Trouble> {
    let api: Api<Namespace> = Api::all(client.clone());
    let found = api.get_metadata_opt(namespace).await;
    let found = found.map_err(|error| Trouble::of(format!("get Namespace {namespace}"), error))?;
    Ok(match found {
        None => Phase::Absent,
        Some(found) if found.metadata.deletion_timestamp.is_some() => Phase::Terminating,
        Some(_) => Phase::Active,
    })
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
        if timeout(LAST, self.last()).await.is_err() {
            tracing::warn!(
                namespace = self.home,
                "whether it is being deleted, or all was let go there, is not known at the end"
            );
        }
    }

    async fn keep(&self) -> Infallible {
        let (mut ticks, mut is_failing) = (interval(EVERY), false);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let looked = self.look().await;
            if let Err(trouble) = &looked
                && !is_failing
            {
                let namespace = &self.home;
                tracing::warn!(namespace, error = %trouble, "should it be deleted, not all is let go there; it is tried again");
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
            sleep(PAUSE).await;
        }
    }

    /// Lets go of everything in namespaces that are being deleted, if the operator's own is one of these. What fails keeps nothing else.
    async fn look(&self) -> Result<(), Trouble> {
        // When it is absent, nothing is left to be done.
        if in_time(phase(&self.client, &self.home)).await? != Phase::Terminating {
            return Ok(());
        }
        let (pipelines, tenants) = futures::join!(self.let_go_of(self.pipelines()), self.let_go_of(self.tenants()));
        both(pipelines, tenants)
    }

    async fn pipelines(&self) -> Result<Vec<Held>, Trouble> {
        let api = api::<DeserializeGuard<IngestionPipeline>>(&self.client, self.watched.as_deref());
        let listed = api.list(&ListParams::default()).await;
        let all = listed.map_err(|error| Trouble::of("list IngestionPipelines", error))?.items.into_iter();
        let held = all.filter(|pipeline| deletion::is_held(pipeline.meta()));
        Ok(held.map(|pipeline| Held::Pipeline(Box::new(pipeline))).collect())
    }

    async fn tenants(&self) -> Result<Vec<Held>, Trouble> {
        let api = api::<Tenant>(&self.client, self.watched.as_deref());
        let listed = api.list_metadata(&ListParams::default()).await;
        let all = listed.map_err(|error| Trouble::of("list Tenants", error))?.items.into_iter();
        let held = all.map(|tenant| tenant.metadata).filter(erasure::is_held);
        Ok(held.map(|metadata| Held::Tenant(Box::new(metadata))).collect())
    }

    /// At home first; only then it is asked which other namespaces are being deleted.
    async fn let_go_of(&self, held: impl Future<Output = Result<Vec<Held>, Trouble>>) -> Result<(), Trouble> {
        let mut held = in_time(held).await?;
        held.shuffle(&mut rand::rng());
        let mut elsewhere = BTreeMap::<String, Vec<Held>>::new();
        for held in held {
            elsewhere.entry(held.namespace().to_owned()).or_default().push(held);
        }
        let home = elsewhere.remove(&self.home).unwrap_or_default().into_iter().map(Ok);
        let done = self.let_go_all(stream::iter(home)).await;
        let elsewhere = stream::iter(elsewhere).map(|(namespace, held)| self.going(namespace, held));
        let elsewhere = elsewhere.buffer_unordered(AT_ONCE).flat_map(stream::iter);
        both(done, self.let_go_all(elsewhere).await)
    }

    /// All of it if that namespace is being deleted.
    async fn going(&self, namespace: String, held: Vec<Held>) -> Vec<Result<Held, Trouble>> {
        match in_time(phase(&self.client, &namespace)).await {
            Ok(Phase::Terminating) => held.into_iter().map(Ok).collect(),
            Ok(Phase::Active | Phase::Absent) => Vec::new(),
            Err(trouble) => vec![Err(trouble)],
        }
    }

    async fn let_go_all(&self, held: impl Stream<Item = Result<Held, Trouble>>) -> Result<(), Trouble> {
        let let_go = held.map(|held| async { in_time(self.let_go(held?)).await });
        let_go.buffer_unordered(AT_ONCE).fold(Ok(()), |all, one| ready(both(all, one))).await
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

/// Gives up what takes too long.
async fn in_time<T>(asked: impl Future<Output = Result<T, Trouble>>) -> Result<T, Trouble> {
    let late = |elapsed| Err(Trouble::of(format!("within {TRY:?}"), kube::Error::Service(Box::new(elapsed))));
    timeout(TRY, asked).await.unwrap_or_else(late)
}

/// Of two that failed, the one that another try may mend.
fn both(one: Result<(), Trouble>, other: Result<(), Trouble>) -> Result<(), Trouble> {
    match (one, other) {
        (Err(one), Err(other)) if one.is_refusal() => Err(other),
        (one, other) => one.and(other),
    }
}

#[cfg(test)]
mod tests;

//! Watches, and reconciles one pipeline at a time.
//!
//! A reconciliation looks at the pipeline as it is and never at why it was called. A resource that cannot be read (written past the schema, by an older or newer one) is passed over with a log line, and
//! stops nobody else. After a failure a pipeline waits by the kind of failure, longer each time ([`Trouble::pause`]); others do not wait for it.

use crate::admin::{Admin, Name};
use crate::apply::{Applied, apply, recreate, refused, replace};
use crate::build::secrets::needed;
use crate::build::{Objects, build, names};
use crate::deletion;
use crate::dereference::{Dereferenced, dereference, log_of};
use crate::metrics::Metrics;
use crate::observe::{Observed, observe};
use crate::pins;
use crate::plan;
use crate::plans::{Asks, Making, Plans, Said};
use crate::reason::Reason;
use crate::status::Outcome;
use crate::tell::Teller;
use crate::tenants::{self, Registry, Standing, Waits};
use crate::trouble::Trouble;
use crate::validate::{self, Problem, validate};
use crate::{FIELD_MANAGER, Prepared, strimzi};
use futures::StreamExt;
use futures::channel::mpsc::unbounded;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams};
use kube::core::{DeserializeGuard, NamespaceResourceScope, PartialObjectMeta};
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{Predicate, PredicateConfig, WatchStreamExt, predicates, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use millstream_crds::{
    GROUP, IngestionPipeline, IngestionPipelineSpec, StageName, StageScale, StageScaleStatus, Tenant, VERSION,
};
use millstream_plan::planner::Limits;
use millstream_shard::planning::Wishes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

type Guarded = DeserializeGuard<IngestionPipeline>;

/// What was missed, if anything was, is seen after so long.
const ANYWAY: Duration = Duration::from_secs(300);
/// The same, while something is under way.
const WHILE_DOING: Duration = Duration::from_secs(5);
/// How often pipelines that are gone are forgotten, and their tenants say that they are gone.
const SWEEP: Duration = Duration::from_secs(10);
/// What comes in so short a time is one change: a StatefulSet reports each Pod.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// So many pipelines at once.
const AT_ONCE: u16 = 16;

/// What reconciliations share.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) pipelines: Store<Guarded>,
    pub(crate) tenants: Arc<Registry>,
    /// The operator's own.
    pub(crate) namespace: String,
    /// Its Pod.
    pub(crate) operator: Name,
    /// By uid of the pipeline.
    failures: Mutex<HashMap<String, Failures>>,
    pub(crate) plans: Arc<Plans>,
    pub(crate) teller: Teller,
    pub(crate) metrics: Arc<Metrics>,
}

/// Failures in turn. One that comes before it was time to try again, because something else has changed, counts with the one before.
#[derive(Clone, Copy)]
struct Failures {
    count: u32,
    next: Instant,
}

/// What an operator is told when it starts.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Only the pipelines of this namespace; of all, without one.
    pub watched: Option<String>,
    /// The operator's own namespace.
    pub namespace: String,
    /// The operator's own name, which Events carry.
    pub name: String,
}

/// Reconciles pipelines and tenants until `stop`; the admin port tells of them.
///
/// # Errors
/// When the Secrets of tenants cannot be watched.
pub async fn run(
    client: Client,
    settings: &Settings,
    admin: &Admin,
    stop: impl Future<Output = ()> + Clone + Send + Sync + 'static,
) -> anyhow::Result<()> {
    let watched = settings.watched.as_deref();
    // Nobody listens any more when the operator ends.
    let (asks, asked) = unbounded();
    let (tenant_asks, tenants_asked) = unbounded();
    let asks = Asks {
        pipeline: Box::new(move |pipeline| {
            drop(asks.unbounded_send(ObjectRef::from_obj(pipeline).into_kind_unchecked::<Guarded>(())));
        }),
        tenant: Box::new(move |namespace, name| {
            drop(tenant_asks.unbounded_send(ObjectRef::<tenants::Guarded>::new(name).within(namespace)));
        }),
    };
    let (registry, tenant_stream) = tenants::watch(&client, watched).await?;
    let (pipelines, controller) = controller(&client, watched);
    let plans = Arc::new(Plans::new(Arc::clone(&registry), asks));
    // Nobody leads twice.
    drop(admin.plans.set(Arc::clone(&plans)));
    let context = Arc::new(Context {
        namespace: settings.namespace.clone(),
        operator: Name { namespace: settings.namespace.clone(), name: settings.name.clone() },
        failures: Mutex::default(),
        plans,
        tenants: registry,
        pipelines,
        teller: Teller::new(client.clone(), &settings.name, Arc::clone(&admin.metrics)),
        metrics: Arc::clone(&admin.metrics),
        client,
    });
    let patience = |guarded: Arc<Guarded>, trouble: &Trouble, context: Arc<Context>| {
        Action::requeue(context.failed(guarded.meta(), trouble))
    };
    let controller = controller.reconcile_on(asked).graceful_shutdown_on(stop.clone());
    let reconciled = controller.run(reconcile, patience, Arc::clone(&context));
    let reconciled = reconciled.for_each(|result| async move {
        match result {
            Ok((of, _)) => tracing::debug!(pipeline = %of, "reconciled"),
            Err(kube::runtime::controller::Error::ReconcilerFailed(error, of)) => {
                tracing::warn!(pipeline = %of, %error, "not reconciled");
            }
            Err(error) => tracing::warn!(%error, "watching"),
        }
    });
    let sweeping = async {
        loop {
            tokio::time::sleep(SWEEP).await;
            context.sweep();
        }
    };
    let of_tenants = tenants::run(Arc::clone(&context), tenant_stream, tenants_asked, stop);
    tokio::select! {
        _ = futures::future::join(reconciled, of_tenants) => {}
        () = sweeping => {}
    }
    Ok(())
}

/// Watches pipelines, what belongs to them, and the Secrets that they refer to. What the operator itself says of a pipeline is no reason to look at it again.
fn controller(client: &Client, watched: Option<&str>) -> (Store<Guarded>, Controller<Guarded>) {
    let everything = watcher::Config::default;
    let ours = || everything().labels(&format!("{}={FIELD_MANAGER}", names::MANAGED_BY));
    let (store, writer) = reflector::store();
    let stream = watcher(api::<Guarded>(client, watched), everything())
        .default_backoff()
        .reflect(writer)
        .touched_objects()
        .predicate_filter(predicates::generation.combine(predicates::annotations), PredicateConfig::default());
    let (referring_to, pipelines) = (store.clone(), store.clone());
    let controller = Controller::for_stream(stream, store)
        .with_config(Config::default().debounce(DEBOUNCE).concurrency(AT_ONCE))
        .owns(api::<StatefulSet>(client, watched), ours())
        .owns(api::<StageScale>(client, watched), ours())
        .owns(api::<Service>(client, watched), ours())
        .owns(api::<NetworkPolicy>(client, watched), ours())
        .owns(api::<PodDisruptionBudget>(client, watched), ours())
        .watches(api::<SecretHead>(client, watched), everything(), move |secret| referring(&referring_to, &secret));
    (pipelines, controller)
}

pub(crate) fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// Heads only: what is in the Secrets of a cluster is not the operator's business.
type SecretHead = PartialObjectMeta<Secret>;

/// The pipelines that refer to a Secret.
fn referring(store: &Store<Guarded>, secret: &SecretHead) -> Vec<ObjectRef<Guarded>> {
    let refers = |spec: &IngestionPipelineSpec| {
        let name = secret.name_any();
        StageName::ALL.iter().any(|stage| needed(spec, *stage).iter().any(|(key, _)| key.name == name))
    };
    let is_it = |guarded: &Arc<Guarded>| {
        let DeserializeGuard(Ok(pipeline)) = &**guarded else { return false };
        pipeline.namespace() == secret.namespace() && refers(&pipeline.spec)
    };
    store.state().iter().filter(|guarded| is_it(guarded)).map(|guarded| ObjectRef::from_obj(&**guarded)).collect()
}

/// What a resource says; one that cannot be read is told of.
pub(crate) fn readable<K: Resource<DynamicType = ()>>(guarded: &DeserializeGuard<K>) -> Option<&K> {
    let told = guarded.0.as_ref().inspect_err(|invalid| {
        let (kind, name) = (K::kind(&()), invalid.metadata.name.as_deref().unwrap_or_default());
        tracing::error!(%kind, name, error = %invalid.error, "a resource cannot be read; it is passed over until it changes");
    });
    told.ok()
}

async fn reconcile(guarded: Arc<Guarded>, context: Arc<Context>) -> Result<Action, Trouble> {
    let Some(pipeline) = readable(&guarded) else {
        deletion::let_go_unread(&context, guarded.meta()).await?;
        return Ok(Action::await_change());
    };
    let began = Instant::now();
    let result = match pipeline.metadata.deletion_timestamp {
        None => steps(&context, pipeline).await,
        Some(_) => match finish(&context, pipeline).await {
            Ok(None) => return Ok(Action::await_change()),
            Ok(Some(outcome)) => Ok((outcome, None)),
            Err(trouble) => Err(trouble),
        },
    };
    let told = match &result {
        Ok((outcome, _)) => context.teller.tell(pipeline, outcome).await,
        Err(trouble) if trouble.is_said(context.failures(pipeline)) => {
            context.teller.tell(pipeline, &Outcome::failed(trouble)).await
        }
        Err(_) => Ok(None),
    };
    let trouble = result.as_ref().map_or_else(Some, |(_, refusal)| refusal.as_ref()).or(told.as_ref().err());
    context.metrics.reconciled("IngestionPipeline", began.elapsed(), trouble.map(Trouble::reason));
    let (outcome, refusal) = result?;
    let untold = told?;
    let is_waiting = !outcome.doing.is_empty() || outcome.deleting.is_some() || outcome.topics.is_some();
    let again = match refusal {
        Some(refusal) => {
            tracing::warn!(pipeline = pipeline.name_any(), error = %refusal, "not all of it is applied");
            context.failed(&pipeline.metadata, &refusal).min(if is_waiting { WHILE_DOING } else { ANYWAY })
        }
        None => {
            context.forget(pipeline);
            if is_waiting { WHILE_DOING } else { ANYWAY }
        }
    };
    if outcome.absent_topics.is_some() {
        // That is written down now.
        context.plans.is_written(pipeline);
        return Ok(Action::requeue(Duration::ZERO));
    }
    Ok(Action::requeue(untold.map_or(again, |left| left.min(again))))
}

/// What a pipeline that is being deleted waits for; nothing when it may go. What belongs to it goes by itself, with its owner.
async fn finish(context: &Context, pipeline: &IngestionPipeline) -> Result<Option<Outcome>, Trouble> {
    if deletion::is_held(&pipeline.metadata) {
        let outcome = deletion::finish(context, pipeline).await?;
        if outcome.is_some() {
            return Ok(outcome);
        }
    }
    context.forget(pipeline);
    context.plans.retain(|uid| Some(uid) != pipeline.metadata.uid.as_deref());
    Ok(None)
}

/// What came of a pipeline's steps, and what was refused of its objects.
type Came = (Outcome, Option<Trouble>);

async fn steps(context: &Context, pipeline: &IngestionPipeline) -> Result<Came, Trouble> {
    let said = follow(context, pipeline).await?;
    let came = go_on(context, pipeline, said).await;
    if came.is_err() && !pipeline.spec.paused {
        // Whatever else the API server does not do: tenants come and go, and who dies is replaced.
        context.plans.wish_at_least(pipeline, wishes(pipeline, BTreeSet::new()));
    }
    came
}

/// Listens to a pipeline's workers, from the moment on when what Kafka itself needs is there: whatever else is wrong with the pipeline, its tenants and its plan must not wait for that. Nothing when it is
/// not there; whoever has listened so far goes on.
async fn follow(context: &Context, pipeline: &IngestionPipeline) -> Result<Option<Said>, Trouble> {
    if pipeline.spec.paused {
        // Whatever else is wrong with it.
        context.plans.wish(pipeline, None);
    }
    let (access, missing) = log_of(&context.client, pipeline, &context.namespace).await?;
    if !missing.is_empty() || validate::prefix(&access.topics.pipeline).is_some() {
        return Ok(None);
    }
    let is_written = context.teller.created_topics(pipeline).is_some();
    context.plans.heard(pipeline, access, is_written).map(Some).map_err(Trouble::Threads)
}

async fn go_on(context: &Context, pipeline: &IngestionPipeline, said: Option<Said>) -> Result<Came, Trouble> {
    let client = &context.client;
    deletion::settle(client, pipeline).await?;
    let Dereferenced { mut prepared, mut problems } = dereference(client, pipeline.clone(), &context.namespace).await?;
    problems.extend(validate(&prepared));
    let observed = observe(client, &prepared).await?;
    prepared.keep_sizes(observed.stateful_sets.iter().filter(|set| is_owned(set, pipeline)));
    let has_workers = observed.stateful_sets.iter().any(|set| is_owned(set, pipeline));
    let said = match said {
        Some(said) if problems.is_empty() => said,
        said => return Ok((unbuilt(context, &prepared, problems, observed, said), None)),
    };
    let mut objects = build(&prepared)?;
    let Said { heard, freshness, making } = said;
    let topics = match making {
        Making::Others if !has_workers => {
            let created = context.teller.created_topics(pipeline);
            strimzi::settle(client, created.as_deref(), &objects.kafka_topics, pipeline.spec.paused).await?
        }
        _ => None,
    };
    if making == Making::Others && topics.is_none() {
        context.plans.are_made(pipeline);
    }
    let is_early = matches!(making, Making::Looking | Making::Absent(_)) || topics.is_some();
    if is_early && !has_workers {
        // Workers make topics, too, or end without them.
        objects.stateful_sets.clear();
    }
    let now = k8s_openapi::jiff::Timestamp::now();
    let seen = plan::seen(prepared.name(), &observed.stateful_sets, &observed.pods, now);
    let mut intent = plan::plan(&prepared, &objects, &seen, heard.fleet.as_ref());
    let (_, pins_ignored) = pins::of(pipeline);
    let is_paused = pipeline.spec.paused;
    // Whatever is refused: who dies is replaced in the plan, and tenants are published.
    context.plans.wish(pipeline, (!is_paused).then(|| wishes(pipeline, intent.leaving.clone())));
    let (stateful_sets, refusal) = if is_paused {
        (observed.stateful_sets, None)
    } else {
        intent.settle(&mut objects, &observed.stateful_sets);
        let applied = match refused(client, &prepared, &objects).await? {
            Some(refusal) => Applied { stateful_sets: observed.stateful_sets, refused: Some(refusal) },
            None => apply(client, &prepared, &objects).await?,
        };
        replace(client, prepared.namespace(), &intent.replaced).await?;
        recreate(client, prepared.namespace(), &intent.recreated).await?;
        intent.note_templates(&seen, &applied.stateful_sets);
        (applied.stateful_sets, applied.refused)
    };
    let untold = tell_scales(client, &prepared, &stateful_sets).await?;
    let refusal = refusal.or(untold);
    let doing = if is_paused { Vec::new() } else { intent.doing };
    let trouble = refusal.as_ref().map(|refusal| (refusal.reason(), refusal.to_string()));
    let (fleet, unheard, lost, unplaced) = (heard.fleet, heard.problem, intent.lost, intent.unplaced);
    let absent_topics = match making {
        Making::Absent(absent) => Some(absent),
        Making::Looking | Making::Others | Making::Allowed => None,
    };
    let outcome = Outcome {
        stateful_sets,
        trouble,
        fleet,
        freshness,
        unheard,
        lost,
        unplaced,
        pins_ignored,
        doing,
        absent_topics,
        topics,
        ..Outcome::default()
    };
    Ok((outcome, refusal))
}

/// Of a pipeline that is not built, because of problems that its user has to mend: nothing is applied, and no topic is made. Its plan is that of what was applied last.
fn unbuilt(
    context: &Context,
    prepared: &Prepared,
    problems: Vec<Problem>,
    observed: Observed,
    said: Option<Said>,
) -> Outcome {
    let pipeline = &prepared.pipeline;
    let stateful_sets = observed.stateful_sets;
    let Some(Said { heard, freshness, making }) = said else {
        return Outcome { problems, stateful_sets, ..Outcome::default() };
    };
    if making == Making::Others && stateful_sets.iter().any(|set| is_owned(set, pipeline)) {
        context.plans.are_made(pipeline);
    }
    let now = k8s_openapi::jiff::Timestamp::now();
    let seen = plan::seen(prepared.name(), &stateful_sets, &observed.pods, now);
    let intent = plan::plan(prepared, &Objects::default(), &seen, heard.fleet.as_ref());
    context.plans.wish(pipeline, (!pipeline.spec.paused).then(|| wishes(pipeline, intent.leaving)));
    let (fleet, unheard) = (heard.fleet, heard.problem);
    Outcome { problems, stateful_sets, fleet, freshness, unheard, ..Outcome::default() }
}

/// Is it this very pipeline's? One of a former pipeline of the name may be there for a moment.
pub(crate) fn is_owned(set: &StatefulSet, pipeline: &IngestionPipeline) -> bool {
    set.owner_references().iter().any(|owner| Some(&owner.uid) == pipeline.metadata.uid.as_ref())
}

/// What is wanted of the pipeline's plan, when these workers are to have no shards.
fn wishes(pipeline: &IngestionPipeline, leaving: BTreeSet<String>) -> Wishes {
    let warm = u32::try_from(pipeline.spec.standbys).unwrap_or(0);
    let limits = Limits::default();
    let successors = limits.successors.max(usize::try_from(warm).unwrap_or(0));
    let (pinned, _) = pins::of(pipeline);
    Wishes { leaving, pinned, limits: Limits { warm, successors, ..limits } }
}

/// Writes a status.
///
/// # Errors
/// [`Trouble`]: not when the object went meanwhile, also when another one has its name by now.
pub(crate) async fn tell_status<K>(client: &Client, object: &K, said: &impl Serialize) -> Result<(), Trouble>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let (kind, name) = (K::kind(&()), object.name_any());
    let patch = json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": kind,
        // Of this very object: not of another that has its name by now.
        "metadata": {"name": name, "uid": object.uid()},
        "status": said,
    });
    let api: Api<K> = Api::namespaced(client.clone(), &object.namespace().unwrap_or_default());
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let what = || format!("write the status of {kind} {name}");
    match api.patch_status(&name, &params, &Patch::Apply(&patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error @ kube::Error::Api(_)) => {
            let trouble = Trouble::of(what(), error);
            if !matches!(trouble, Trouble::Conflict { .. }) {
                return Err(trouble);
            }
            // The same answer for one of another uid, of whom there is nothing to say, and for a conflict.
            let found = api.get_metadata_opt(&name).await.map_err(|error| Trouble::of(what(), error))?;
            if found.is_some_and(|found| found.uid() == object.uid()) { Err(trouble) } else { Ok(()) }
        }
        Err(error) => Err(Trouble::of(what(), error)),
    }
}

/// Says in each stage's scale how many workers there are, as autoscalers ask; the first that was refused.
///
/// # Errors
/// [`Trouble`]: the rest follows when it is tried again.
async fn tell_scales(client: &Client, prepared: &Prepared, sets: &[StatefulSet]) -> Result<Option<Trouble>, Trouble> {
    let api: Api<StageScale> = Api::namespaced(client.clone(), prepared.namespace());
    let mut refused = None;
    for set in sets {
        match tell_scale(client, &api, set).await {
            Err(trouble) if trouble.is_refusal() => drop(refused.get_or_insert(trouble)),
            told => told?,
        }
    }
    Ok(refused)
}

async fn tell_scale(client: &Client, api: &Api<StageScale>, set: &StatefulSet) -> Result<(), Trouble> {
    let name = set.name_any();
    let found = api.get_opt(&name).await.map_err(|error| Trouble::of(format!("get StageScale {name}"), error))?;
    let Some(scale) = found else { return Ok(()) };
    let labels = set.spec.iter().flat_map(|spec| spec.selector.match_labels.iter().flatten());
    let selector: Vec<String> = labels.map(|(label, value)| format!("{label}={value}")).collect();
    let counts = set.status.as_ref();
    let said = StageScaleStatus {
        observed_generation: scale.metadata.generation,
        replicas: counts.map_or(0, |status| status.replicas),
        ready_replicas: counts.and_then(|status| status.ready_replicas).unwrap_or(0),
        selector: Some(selector.join(",")),
    };
    if scale.status.as_ref() == Some(&said) { Ok(()) } else { tell_status(client, &scale, &said).await }
}

impl Context {
    /// What is known of a tenant.
    pub(crate) fn standing_of(&self, tenant: &Tenant) -> Option<Standing> {
        let (namespace, name) = (tenant.namespace().unwrap_or_default(), &tenant.spec.pipeline_ref.name);
        let Some(pipeline) = self.pipelines.get(&ObjectRef::new(name).within(&namespace)) else {
            let message = format!("there is no IngestionPipeline {name} in namespace {namespace}");
            return Some(Standing::Problem(Reason::PipelineMissing, message));
        };
        let (id, standing) =
            self.plans.standing(pipeline.meta().uid.as_deref().unwrap_or_default(), &tenant.name_any())?;
        // What is known of a former generation says nothing about this one.
        Some(if id == tenants::id(tenant) { standing } else { Standing::Waiting(Waits::default()) })
    }

    /// Forgets the pipelines that are gone, and has their tenants say so.
    fn sweep(&self) {
        let there: BTreeSet<String> =
            self.pipelines.state().iter().filter_map(|guarded| guarded.meta().uid.clone()).collect();
        self.plans.retain(|uid| there.contains(uid));
        self.teller.retain(|uid| there.contains(uid));
        self.locked().retain(|uid, _| there.contains(uid));
        // One that was asked while the pipeline was still there, or not at all, would say for ever what was so before.
        let is_there =
            |pipeline: &Name| self.pipelines.get(&ObjectRef::new(&pipeline.name).within(&pipeline.namespace)).is_some();
        self.tenants.orphans(is_there).iter().for_each(|tenant| self.plans.ask_tenant(tenant));
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, HashMap<String, Failures>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Failures in turn before this one.
    fn failures(&self, pipeline: &IngestionPipeline) -> u32 {
        let uid = pipeline.metadata.uid.as_deref().unwrap_or_default();
        self.locked().get(uid).map_or(0, |failures| failures.count)
    }

    /// Notes that it failed; when to try again.
    fn failed(&self, metadata: &ObjectMeta, trouble: &Trouble) -> Duration {
        let (mut all, now) = (self.locked(), Instant::now());
        let failures = all.entry(metadata.uid.clone().unwrap_or_default()).or_insert(Failures { count: 0, next: now });
        if failures.next <= now {
            failures.next = now + trouble.pause(failures.count);
            failures.count = failures.count.saturating_add(1);
        }
        failures.next.duration_since(now)
    }

    fn forget(&self, pipeline: &IngestionPipeline) {
        self.locked().remove(pipeline.metadata.uid.as_deref().unwrap_or_default());
    }
}

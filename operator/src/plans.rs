//! Publishes the plans and the tenants of all pipelines: one thread for each, because a log is waited for.
//!
//! A thread prepares the pipeline's topics, listens to what workers report, and publishes ([`Planning`]); what it knows, it tells as a [`Fleet`], and asks for a reconciliation when that has changed.
//! What it meets it tells, too, and goes on. It ends with the operator or with its pipeline, or when another one is to take its place because Kafka is to be reached differently.
//!
//! An operator that was started later, or a person with `millstream plan auto`, may publish in between. The operator that leads is the one that counts: it takes the pipeline's plan back under
//! a higher term. (Of operators only one leads, by its lease, and one that has lost it ends.)

use crate::admin::{Name, PipelineShards, ShardRow, StandbyRow};
use crate::departures::Departures;
use crate::erasure::{self, Progress};
use crate::fleet::{Fleet, Shard};
use crate::freshness::Freshness;
use crate::reason::Reason;
use crate::tenants::{Behind, Id, Registry, Standing, Waits, Wanted};
use k8s_openapi::jiff::Timestamp;
use millstream_crds::{IngestionPipeline, TopicManagement};
use millstream_plan::message::{Tenant, Terms};
use millstream_plan::plan::ShardId;
use millstream_plan::view::{Bounds, Horizon};
use millstream_shard::log::{Log, LogError};
use millstream_shard::planning::{Planning, Turn, Wishes};
use millstream_shard::topics::Topics;
use millstream_stores::kafka::survey::Survey;
use millstream_stores::kafka::{KafkaConfig, KafkaLog};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long one look at reports waits.
const LISTEN: Duration = Duration::from_millis(100);
/// How often a new plan is considered.
const CONSIDER: Duration = Duration::from_millis(300);
/// How often a reconciliation is asked for.
const ASK: Duration = Duration::from_secs(1);
/// How often one is asked for only because what waits has got older: a status is written no more often.
const ASK_OF_AGES: Duration = Duration::from_secs(30);
/// After the log was not there.
const PAUSE: Duration = Duration::from_secs(2);

/// How a pipeline's log is reached, and which topics are its.
#[derive(Clone, PartialEq)]
pub(crate) struct Access {
    pub(crate) kafka: KafkaConfig,
    pub(crate) topics: Topics,
    /// Who makes them.
    pub(crate) made_by: TopicManagement,
}

/// What is known of a pipeline's workers.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Heard {
    /// Once it is known who is alive.
    pub(crate) fleet: Option<Fleet>,
    /// What stands in the way: a reason, and a message.
    pub(crate) problem: Option<(Reason, String)>,
}

/// What a pipeline's thread has to say.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    /// Of its workers.
    pub(crate) heard: Heard,
    /// How fresh it is; `None` until that is known.
    pub(crate) freshness: Option<Freshness>,
    /// Whether topics may be made.
    pub(crate) making: Making,
}

/// Whether topics may be made. Before the first one is made, somebody writes down which were not there: a topic that the pipeline made is its own, whatever happens in between.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Making {
    /// It is not known yet which are there.
    #[default]
    Looking,
    /// These are not there. That is to be written down.
    Absent(Absent),
    /// It is written down, and somebody else makes them.
    Others,
    /// It is written down, or nothing is made; or all are there.
    Allowed,
}

impl Making {
    fn after_writing(made_by: TopicManagement) -> Making {
        match made_by {
            TopicManagement::Managed | TopicManagement::Existing => Making::Allowed,
            TopicManagement::Strimzi => Making::Others,
        }
    }
}

/// Topics that are not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Absent {
    /// Their names.
    pub topics: Vec<String>,
    /// The identity of the Kafka cluster where they are not, if its brokers say it.
    pub cluster: Option<String>,
}

/// Asks for the reconciliation of a pipeline.
type AskPipeline = dyn Fn(&IngestionPipeline) + Send + Sync;
/// Asks for the reconciliation of a tenant, by namespace and name.
type AskTenant = dyn Fn(&str, &str) + Send + Sync;

/// Asks for reconciliations.
pub(crate) struct Asks {
    pub(crate) pipeline: Box<AskPipeline>,
    pub(crate) tenant: Box<AskTenant>,
}

/// The plans of all pipelines.
pub(crate) struct Plans {
    threads: Mutex<HashMap<String, Running>>,
    tenants: Arc<Registry>,
    asks: Arc<Asks>,
}

struct Running {
    access: Access,
    of: Name,
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

/// What a thread and the reconciler tell each other.
struct Shared {
    state: Mutex<State>,
    stopped: Condvar,
}

#[derive(Default)]
struct State {
    is_stopped: bool,
    /// None: it only looks.
    wishes: Option<Wishes>,
    heard: Heard,
    making: Making,
    /// Nobody was asked to look at that yet.
    is_new: bool,
    asked: Option<Instant>,
    /// What waits, and the text of it that a reconciliation was asked for.
    freshness: Option<Freshness>,
    told: Option<String>,
    lags: Lags,
    tenants: BTreeMap<String, (Id, Standing)>,
}

/// How far each worker that has a shard is behind, and how old what it has not processed is. (Beside what was heard, because it changes with every report.)
type Lags = BTreeMap<(ShardId, String), (u64, Option<u64>)>;

fn shards(heard: &Heard, lags: &Lags) -> PipelineShards {
    let fleet = heard.fleet.as_ref();
    let lag = |id: &ShardId, worker: &String| lags.get(&(id.clone(), worker.clone())).copied();
    let row = |(id, shard): (&ShardId, &Shard)| ShardRow {
        stage: id.stage.clone(),
        shard: id.shard,
        planned: shard.planned.clone(),
        lag: shard.owner.as_ref().and_then(|owner| Some(lag(id, owner)?.0)),
        unread_ms: shard.owner.as_ref().and_then(|owner| lag(id, owner)?.1),
        owner: shard.owner.clone(),
        standbys: shard
            .standbys
            .iter()
            .map(|worker| StandbyRow { worker: worker.clone(), lag: lag(id, worker).unwrap_or_default().0 })
            .collect(),
        condition: shard.condition.clone(),
    };
    PipelineShards {
        plan: fleet.map(|fleet| fleet.plan.to_string()),
        moving: fleet.map_or(0, |fleet| fleet.moving),
        problem: heard.problem.as_ref().map(|(reason, message)| format!("{reason}: {message}")),
        workers: fleet.into_iter().flat_map(|fleet| &fleet.alive).cloned().collect(),
        shards: fleet.into_iter().flat_map(|fleet| &fleet.shards).map(row).collect(),
    }
}

impl Plans {
    pub(crate) fn new(tenants: Arc<Registry>, asks: Asks) -> Plans {
        Plans { threads: Mutex::default(), tenants, asks: Arc::new(asks) }
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<String, Running>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a pipeline's workers, and of what waits for them; from the first call on somebody listens to them. `is_written`: it is written down which topics were not there.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(crate) fn heard(
        &self,
        pipeline: &IngestionPipeline,
        access: Access,
        is_written: bool,
    ) -> std::io::Result<Said> {
        let uid = pipeline.metadata.uid.clone().unwrap_or_default();
        let mut threads = self.locked();
        // One that has panicked is replaced, too.
        if threads.get(&uid).is_some_and(|running| running.access != access || running.thread.is_finished()) {
            threads.remove(&uid);
        }
        if let Some(running) = threads.get(&uid) {
            let state = running.shared.locked();
            let State { heard, freshness, making, .. } = &*state;
            return Ok(Said { heard: heard.clone(), freshness: freshness.clone(), making: making.clone() });
        }
        let making = match access.made_by {
            TopicManagement::Managed | TopicManagement::Strimzi if !is_written => Making::Looking,
            made_by => Making::after_writing(made_by),
        };
        let state = State { making: making.clone(), ..State::default() };
        let shared = Arc::new(Shared { state: Mutex::new(state), stopped: Condvar::new() });
        let worker = Worker {
            access: access.clone(),
            shared: Arc::clone(&shared),
            tenants: Arc::clone(&self.tenants),
            asks: Arc::clone(&self.asks),
            pipeline: pipeline.clone(),
            began: Instant::now(),
        };
        let thread = std::thread::Builder::new().name(format!("plan-{uid}")).spawn(move || worker.run())?;
        let of = Name::of(pipeline);
        threads.insert(uid, Running { access, of, shared, thread });
        Ok(Said { heard: Heard::default(), freshness: None, making })
    }

    /// It is written down which topics of a pipeline are not there: they may be made.
    pub(crate) fn is_written(&self, pipeline: &IngestionPipeline) {
        self.make(pipeline, Making::after_writing(pipeline.spec.kafka.topics));
    }

    /// Whoever makes a pipeline's topics has made them.
    pub(crate) fn are_made(&self, pipeline: &IngestionPipeline) {
        self.make(pipeline, Making::Allowed);
    }

    fn make(&self, pipeline: &IngestionPipeline, making: Making) {
        let uid = pipeline.metadata.uid.as_deref().unwrap_or_default();
        if let Some(running) = self.locked().get(uid) {
            running.shared.locked().making = making;
            running.shared.stopped.notify_all();
        }
    }

    /// Ends a pipeline's thread; whether it has ended: until then it may still make topics.
    pub(crate) fn is_ended(&self, uid: &str) -> bool {
        let mut threads = self.locked();
        let Some(running) = threads.get(uid) else { return true };
        running.stop();
        let is_ended = running.thread.is_finished();
        if is_ended {
            threads.remove(uid);
        }
        is_ended
    }

    /// Says what is wanted of a pipeline's plan; `None`: nothing is to be published.
    pub(crate) fn wish(&self, pipeline: &IngestionPipeline, wishes: Option<Wishes>) {
        let uid = pipeline.metadata.uid.as_deref().unwrap_or_default();
        if let Some(running) = self.locked().get(uid) {
            running.shared.locked().wishes = wishes;
        }
    }

    /// The same where nothing was wanted yet: what was wanted before stays.
    pub(crate) fn wish_at_least(&self, pipeline: &IngestionPipeline, wishes: Wishes) {
        let uid = pipeline.metadata.uid.as_deref().unwrap_or_default();
        if let Some(running) = self.locked().get(uid) {
            running.shared.locked().wishes.get_or_insert(wishes);
        }
    }

    /// The pipelines that somebody listens to.
    pub(crate) fn followed(&self) -> Vec<Name> {
        let mut names: Vec<Name> = self.locked().values().map(|running| running.of.clone()).collect();
        names.sort();
        names
    }

    /// The shards of a pipeline, if somebody listens to it.
    pub(crate) fn look(&self, namespace: &str, name: &str) -> Option<PipelineShards> {
        let threads = self.locked();
        let running = threads.values().find(|running| running.of.namespace == namespace && running.of.name == name)?;
        let state = running.shared.locked();
        Some(shards(&state.heard, &state.lags))
    }

    /// Asks for the reconciliation of a tenant.
    pub(crate) fn ask_tenant(&self, tenant: &Name) {
        (self.asks.tenant)(&tenant.namespace, &tenant.name);
    }

    /// What is known of a pipeline's tenant, and of which generation of it.
    pub(crate) fn standing(&self, uid: &str, tenant: &str) -> Option<(Id, Standing)> {
        self.locked().get(uid)?.shared.locked().tenants.get(tenant).cloned()
    }

    /// Ends the threads of pipelines that are not among these uids. Their tenants have none any more.
    pub(crate) fn retain(&self, is_there: impl Fn(&str) -> bool) {
        let gone: Vec<Running> =
            self.locked().extract_if(|uid, _| !is_there(uid)).map(|(_, running)| running).collect();
        for running in gone {
            let tenants = std::mem::take(&mut running.shared.locked().tenants);
            tenants.keys().for_each(|tenant| (self.asks.tenant)(&running.of.namespace, tenant));
        }
    }
}

impl Running {
    fn stop(&self) {
        self.shared.locked().is_stopped = true;
        self.shared.stopped.notify_all();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits, or less when it is stopped.
    fn pause(&self, pause: Duration) {
        let waits = |state: &mut State| !state.is_stopped;
        drop(self.stopped.wait_timeout_while(self.locked(), pause, waits).unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits until topics may be made; false: it is stopped.
    fn wait_for_leave(&self) -> bool {
        let waits = |state: &mut State| !state.is_stopped && state.making != Making::Allowed;
        let state = self.stopped.wait_while(self.locked(), waits).unwrap_or_else(PoisonError::into_inner);
        !state.is_stopped
    }
}

struct Worker {
    access: Access,
    shared: Arc<Shared>,
    tenants: Arc<Registry>,
    asks: Arc<Asks>,
    pipeline: IngestionPipeline,
    began: Instant,
}

/// What the standing of tenants follows from: the same again, the same standing.
#[derive(Default, PartialEq)]
struct Basis {
    changes: u64,
    control_offset: u64,
    /// What all who let in or judge records go by.
    horizon: Horizon,
    is_leading: bool,
    /// How far each erasure is.
    erasures: BTreeMap<String, Progress>,
    /// Of so many tenants, what is erased is not over yet.
    erased_ahead: usize,
    /// For so many tenants, who goes by their terms is to be counted again.
    due: usize,
}

/// What is remembered from one look at reports to the next.
#[derive(Default)]
struct Memory {
    unowned: Unowned,
    departures: Departures,
}

/// Shards without an owner, since when, and who had them: in a handoff there is none for a moment, until the next one reports.
#[derive(Default)]
struct Unowned {
    before: BTreeMap<ShardId, String>,
    since_ms: BTreeMap<ShardId, u64>,
}

/// Longer than a handoff takes until it is heard of.
const HANDOFF_MS: u64 = 2_000;

impl Unowned {
    /// A shard without an owner is its former owner's for a while.
    fn bridge(&mut self, fleet: &mut Fleet, now_ms: u64) {
        for (id, shard) in &mut fleet.shards {
            match &shard.owner {
                Some(owner) => {
                    self.since_ms.remove(id);
                    self.before.insert(id.clone(), owner.clone());
                }
                None => {
                    let since_ms = *self.since_ms.entry(id.clone()).or_insert(now_ms);
                    let is_young = now_ms.saturating_sub(since_ms) < HANDOFF_MS;
                    shard.owner = self.before.get(id).filter(|_| is_young).cloned();
                }
            }
        }
    }
}

/// Milliseconds since 1970.
fn wall_ms() -> u64 {
    u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0)
}

impl Worker {
    fn run(&self) {
        while !self.shared.locked().is_stopped {
            let ended = self.look_for_topics().and_then(|()| match self.shared.wait_for_leave() {
                true => self.open().and_then(|mut planning| self.go_on(&mut planning)),
                false => Ok(()),
            });
            if let Err(error) = ended {
                self.meets(&error);
                self.shared.pause(PAUSE);
            }
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Before topics are made: which are there already.
    fn look_for_topics(&self) -> Result<(), LogError> {
        if self.shared.locked().making != Making::Looking {
            return Ok(());
        }
        let survey = Survey::open(self.access.kafka.clone())?;
        let mut absent = Absent { topics: Vec::new(), cluster: survey.cluster()? };
        for topic in self.access.topics.specs() {
            if survey.layout(&topic.name)?.is_none() {
                absent.topics.push(topic.name);
            }
        }
        let mut state = self.shared.locked();
        // The brokers have answered.
        (state.making, state.heard.problem) = (Making::Absent(absent), None);
        drop(state);
        (self.asks.pipeline)(&self.pipeline);
        Ok(())
    }

    fn open(&self) -> Result<Planning, LogError> {
        let log: Arc<dyn Log> = Arc::new(KafkaLog::new(self.access.kafka.clone())?);
        log.create_topics(&self.access.topics.specs())?;
        Planning::open(log, self.access.topics.clone(), Bounds::default(), self.now_ms())
    }

    /// Until it is stopped. Only what cannot be mended by trying again is an error.
    fn go_on(&self, planning: &mut Planning) -> Result<(), LogError> {
        let (mut is_leading, mut basis, mut memory) = (false, Basis::default(), Memory::default());
        loop {
            let wishes = {
                let state = self.shared.locked();
                if state.is_stopped {
                    return Ok(());
                }
                state.wishes.clone()
            };
            match (&wishes, is_leading) {
                (Some(_), false) => planning.lead(),
                (None, true) => planning.look(),
                _ => {}
            }
            is_leading = wishes.is_some();
            let wishes = wishes.unwrap_or_default();
            match planning.turn(&wishes, self.now_ms()) {
                Ok(Turn::Replaced { term }) => {
                    tracing::warn!(
                        pipeline = self.access.topics.pipeline,
                        term,
                        "somebody else published a plan; it is taken back"
                    );
                    is_leading = false;
                    self.shared.pause(PAUSE);
                }
                Ok(turn) => {
                    if let Err(error) = self.tell(planning, &turn, &wishes, &mut memory) {
                        self.meets(&error);
                    }
                    if let Err(error) = self.tenants(planning, &mut basis) {
                        self.meets(&error);
                    }
                }
                Err(error @ LogError::Unavailable(_) | error @ LogError::Unknown(_)) => {
                    self.meets(&error);
                    self.tell_tenants(planning, &basis);
                    self.shared.pause(PAUSE);
                }
                Err(error) => return Err(error),
            }
            let until = Instant::now() + CONSIDER;
            while Instant::now() < until && !self.shared.locked().is_stopped {
                if let Err(error) = planning.listen(LISTEN, self.now_ms()) {
                    self.meets(&error);
                    self.shared.pause(PAUSE);
                    break;
                }
            }
        }
    }

    /// Publishes who may send, on which terms, who is erased, and how many gateways share the rates; and notes which of them everybody goes by.
    fn tenants(&self, planning: &mut Planning, basis: &mut Basis) -> Result<(), LogError> {
        let (now_ms, wall_ms) = (self.now_ms(), wall_ms());
        let is_ahead = |tenant: &&Tenant| tenant.erased_ms > wall_ms;
        let is_due = |(_, standing): &&(Id, Standing)| standing.is_due(now_ms);
        let now = Basis {
            changes: self.tenants.changes(),
            control_offset: planning.control_offset(),
            horizon: Horizon::of(&planning.view().judges(now_ms)),
            is_leading: planning.is_leading(),
            erasures: erasure::all(planning, now_ms),
            erased_ahead: planning.view().tenants().values().filter(is_ahead).count(),
            due: self.shared.locked().tenants.values().filter(is_due).count(),
        };
        if *basis == now {
            return Ok(());
        }
        let Some(wanted) = self.wanted(planning, &now.erasures, wall_ms) else { return Ok(()) };
        let published = planning.publish_tenants(&wanted.terms, wall_ms);
        self.note_standings(planning, &wanted, &now);
        let published = published?;
        if published > 0 {
            tracing::info!(pipeline = self.access.topics.pipeline, published, "published tenants");
        }
        // Without any, nobody takes in anything; those that start then are as many as before.
        if now.horizon.gateways > 0 && planning.publish_gateways(now.horizon.gateways)? {
            let (pipeline, count) = (&self.access.topics.pipeline, now.horizon.gateways);
            tracing::info!(pipeline, count, "published how many gateways share the rates of tenants");
        }
        *basis = Basis { due: 0, ..now };
        Ok(())
    }

    /// The log is away: what cannot be published now is not known to any gateway. Of the rest stays said what was.
    fn tell_tenants(&self, planning: &Planning, basis: &Basis) {
        if basis.changes == self.tenants.changes() {
            return;
        }
        if let Some(wanted) = self.wanted(planning, &basis.erasures, wall_ms()) {
            self.note_standings(planning, &wanted, basis);
        }
    }

    /// Who may send: whoever has a problem keeps the keys that it has; one that cannot be read keeps all. An erasure whose step is done is at the next one.
    fn wanted(&self, planning: &Planning, erasures: &BTreeMap<String, Progress>, wall_ms: u64) -> Option<Wanted> {
        let published = planning.view().tenants();
        let mut wanted = self.tenants.wanted(&self.pipeline, published, wall_ms)?;
        for (name, terms) in wanted.terms.iter_mut().filter(|(_, terms)| terms.erasing.is_some()) {
            terms.erasing = erasures.get(name).and_then(Progress::next).or(terms.erasing);
        }
        for name in wanted.problems.keys() {
            let known = published.get(name).filter(|tenant| !tenant.is_deleted);
            let terms = |known: &Terms| match wanted.keyless.get(name) {
                Some(terms) => Terms { api_keys: known.api_keys.clone(), ..terms.clone() },
                None => known.clone(),
            };
            wanted.terms.extend(known.map(|tenant| (name.clone(), terms(&tenant.terms))));
        }
        Some(wanted)
    }

    fn note_standings(&self, planning: &Planning, wanted: &Wanted, basis: &Basis) {
        let Basis { horizon, erasures, .. } = basis;
        let is_said = |name: &str, terms: &Terms| {
            planning.view().tenants().get(name).is_some_and(|tenant| !tenant.is_deleted && tenant.terms == *terms)
        };
        let erasing = |name: &String| match erasures.get(name).copied().unwrap_or_default() {
            progress if progress.is_done() => Standing::Erased,
            progress => Standing::Erasing(progress),
        };
        let now_ms = self.now_ms();
        let judges = planning.view().judges(now_ms);
        let behind = |name: &String| {
            let (offset, terms) = planning.said(name)?;
            Behind::of(&judges, |judge| judge.goes_by(offset, terms))
        };
        let waits = |behind: Option<Behind>| Standing::Waiting(Waits { behind, at_ms: now_ms });
        let standing = |name: &String, terms: &Terms| match is_said(name, terms) {
            _ if terms.erasing.is_some() => erasing(name),
            _ if horizon.gateways == 0 => Standing::NoGateways,
            false => waits(None),
            true if planning.all_go_by(horizon, name) => Standing::Effective,
            true => waits(behind(name)),
        };
        let of = |name: &String| match (wanted.problems.get(name), wanted.terms.get(name)) {
            (Some((reason, why)), _) => Some(Standing::Problem(*reason, why.clone())),
            (None, terms) => terms.map(|terms| standing(name, terms)),
        };
        let before = self.shared.locked().tenants.clone();
        let known =
            |name: &String, id: &Id| before.get(name).filter(|(before, _)| before == id).map(|(_, before)| before);
        let noted = |(name, id): (&String, &Id)| Some((name.clone(), (id.clone(), of(name)?.after(known(name, id)))));
        let standings: BTreeMap<String, (Id, Standing)> = wanted.ids.iter().filter_map(noted).collect();
        self.shared.locked().tenants.clone_from(&standings);
        let namespace = self.pipeline.metadata.namespace.as_deref().unwrap_or_default();
        for (name, (id, standing)) in &standings {
            if standing.is_news(known(name, id)) {
                (self.asks.tenant)(namespace, name);
            }
        }
    }

    /// # Errors
    /// [`LogError`]: nobody was heard, and it is not they who are silent.
    fn tell(&self, planning: &Planning, turn: &Turn, wishes: &Wishes, memory: &mut Memory) -> Result<(), LogError> {
        let (heard, now_ms) = match turn {
            Turn::Hearing | Turn::Replaced { .. } => return Ok(()),
            Turn::NoWorkers => (Heard { fleet: Some(Fleet::default()), problem: None }, self.now_ms()),
            Turn::Planned { outcome, is_published } => {
                if *is_published {
                    let (pipeline, version) = (&self.access.topics.pipeline, outcome.plan.version);
                    tracing::info!(pipeline, %version, moving = outcome.pending.len(), "published a plan");
                }
                let now_ms = self.now_ms();
                let mut fleet = Fleet::of(planning.view(), outcome, planning.is_leading(), now_ms);
                memory.unowned.bridge(&mut fleet, now_ms);
                let stalled = memory.departures.look(&wishes.leaving, &fleet, &outcome.pending, now_ms);
                fleet.stalled = stalled;
                (Heard { fleet: Some(fleet), problem: None }, now_ms)
            }
        };
        // A reader that gets nothing does not know why.
        let newest_ms = planning.view().reports().map(|(_, at_ms)| at_ms).max();
        if newest_ms.is_some_and(|newest_ms| now_ms.saturating_sub(newest_ms) > Bounds::default().silence_ms) {
            planning.check_log()?;
        }
        let reports = planning.view().reports().map(|(report, _)| report);
        let lags = reports.flat_map(|report| {
            let of = |id: &ShardId| (id.clone(), report.worker.clone());
            report.shards.iter().map(move |(id, status)| (of(id), (status.lag, status.unread_ms)))
        });
        self.shared.locked().lags = lags.collect();
        let freshness = heard.fleet.as_ref().map(|fleet| Freshness::of(planning.view(), fleet, wall_ms()));
        self.says(heard, freshness);
        Ok(())
    }

    /// What was known of the workers is not known any more.
    fn meets(&self, error: &LogError) {
        let reason = match error {
            LogError::Unavailable(_) | LogError::Unknown(_) | LogError::OutOfRange { .. } => Reason::LogUnavailable,
            LogError::Topic { .. } | LogError::TooLarge { .. } => Reason::TopicMismatch,
            LogError::Configuration(_) => Reason::InvalidSpec,
        };
        // The client counts and times in its own words: they would be another message each time.
        let message = error.to_string();
        let message = message.split(" (after ").next().unwrap_or_default().to_owned();
        self.says(Heard { fleet: None, problem: Some((reason, message)) }, None);
    }

    /// Asks for a reconciliation when something is new, but not each time while shards move, or while what waits gets older.
    fn says(&self, heard: Heard, freshness: Option<Freshness>) {
        let mut state = self.shared.locked();
        let risks = |freshness: &Option<Freshness>| {
            let keys = |it: &Freshness| {
                (it.at_risk.keys().cloned().collect::<Vec<_>>(), it.unknown.is_empty(), it.oldest_ms.is_some())
            };
            freshness.as_ref().map(keys)
        };
        state.is_new |= state.heard != heard || risks(&state.freshness) != risks(&freshness);
        (state.heard, state.freshness) = (heard, freshness);
        let text = state.freshness.as_ref().map(Freshness::text);
        let since = state.asked.map(|asked| asked.elapsed());
        let is_due = |pause| since.is_none_or(|since| since >= pause);
        if (state.is_new && is_due(ASK)) || (state.told != text && is_due(ASK_OF_AGES)) {
            (state.is_new, state.asked, state.told) = (false, Some(Instant::now()), text);
            drop(state);
            (self.asks.pipeline)(&self.pipeline);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_in_a_handoff_is_not_without_an_owner() {
        let id = ShardId::new("action", 1);
        let fleet = |owner: Option<&str>| {
            let shard = Shard { owner: owner.map(str::to_owned), ..Shard::default() };
            Fleet { shards: [(ShardId::new("action", 1), shard)].into(), ..Fleet::default() }
        };
        let mut unowned = Unowned::default();
        let mut seen = |owner, now_ms| {
            let mut fleet = fleet(owner);
            unowned.bridge(&mut fleet, now_ms);
            fleet.shards[&id].owner.clone()
        };
        assert_eq!(seen(None, 0), None, "nobody ever had it");
        assert_eq!(seen(Some("a"), 100).as_deref(), Some("a"));
        assert_eq!(seen(None, 200).as_deref(), Some("a"));
        assert_eq!(seen(None, 200 + HANDOFF_MS - 1).as_deref(), Some("a"));
        assert_eq!(seen(None, 200 + HANDOFF_MS), None);
        assert_eq!(seen(Some("b"), 5_000).as_deref(), Some("b"));
        assert_eq!(seen(None, 9_000).as_deref(), Some("b"), "a new one begins");
    }
}

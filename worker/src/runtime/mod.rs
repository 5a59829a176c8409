//! Wiring of the stages into processes: `millstream local` and `millstream worker`.
//!
//! A process has the roles that it was started with, one thread per owned shard and stage, and two ports: the public one (role gateway) and the admin
//! one. On SIGTERM or Ctrl-C the gateway finishes what is in flight, then the shards store their state and end; after `kill -9` the
//! next start finds everything that was acknowledged in the log.
//!
//! Whatever ends it, no thread that uses a store outlives `main`: RocksDB is used wrongly once the process runs its last destructors, and aborts it. So every
//! thread has an owner who waits for it: [`Process`] for those of the shards, the tokio runtime for what reads on behalf of the admin port.

pub mod backoff;
pub mod checks;
pub mod desk;
pub mod directory;
mod ears;
pub mod files;
mod fitness;
mod lag;
mod late;
pub mod membership;
pub mod memory;
pub mod observe;
mod pace;
pub mod reaction;
mod retention;
pub mod rules;
pub mod stage;
pub mod stores;
pub mod system;
mod throttle;
mod writers;

use crate::admin::{self, AdminState, Check};
use crate::config::{self, ApiKey, Config, ConfigArgs, Ownership, Tenant};
use crate::gateway::{self, GatewayState, Keyring, MAX_CONNECTIONS, Serving};
use crate::telemetry::{self, Metrics, SpanExporter, StateFigures};
use anyhow::{Context, Result};
use checks::{Phase, PhaseCheck, StoreCheck};
use desk::Desk;
use directory::{Directory, ShardCheck};
use ears::{Ear, EarWatch};
use lag::LagWatch;
use membership::{HearingCheck, MemberSettings, Membership, PlanCheck, Senders, Starter};
use memory::Parts;
use millstream_plan::view::{Duty, GATEWAY};
use millstream_shard::checkpoint::Checkpoints;
use millstream_shard::documents::DocumentStore;
use millstream_shard::log::{Log, LogError};
use millstream_shard::member::Profile;
use millstream_shard::memory::Pool;
use millstream_shard::ownership::Claimant;
use millstream_shard::runtime::{Environment, Limits};
use millstream_shard::topics::Topics;
use millstream_stages::Stage;
use millstream_stages::action::ActionStage;
use millstream_stages::unify::Unify;
use millstream_stores::embedded::log::EmbeddedLog;
use millstream_stores::rocks::Resources;
use observe::{Exports, Observer};
use reaction::{ReactionLimits, ReactionThread};
use retention::Retention;
use rules::Rulebook;
use stage::{Adopt, Query, SeatThread};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use stores::{Creation, StateFolder};
use system::{Stop, SystemClock, Threads};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A part of the pipeline that a process can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// HTTP in, `ingress` out.
    Gateway,
    /// Envelopes in, actions out.
    Unify,
    /// Actions in, events and mutations out.
    Action,
    /// Mutations in, documents out.
    Reaction,
}

impl Role {
    /// The stage whose shards it owns; the gateway has none.
    fn stage(&self) -> Option<&'static str> {
        match self {
            Role::Gateway => None,
            Role::Unify => Some("unify"),
            Role::Action => Some("action"),
            Role::Reaction => Some("reaction"),
        }
    }
}

/// Arguments of `millstream local`.
#[derive(Clone, Debug, clap::Args)]
pub struct LocalArgs {
    /// Configuration and what overrides it.
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Arguments of `millstream worker`.
#[derive(Clone, Debug, clap::Args)]
pub struct WorkerArgs {
    /// Which part of the pipeline this process is.
    #[arg(long, value_enum)]
    pub role: Role,
    /// Configuration and what overrides it.
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// The tenant and key of a `millstream local` whose configuration names none. Not a secret: loopback, for trying out.
const TRIAL: (&str, &str) = ("demo", "demo-key");
/// Connections of the admin port: some people, probes and scrapers, and as many who follow a topic as may.
const ADMIN_CONNECTIONS: usize = 100;
/// How long to wait before the log is asked again.
const LOG_PAUSE: Duration = Duration::from_secs(1);
/// How long spans may take to get out at the end.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// Runs the whole pipeline in this process, until it is told to stop.
///
/// # Errors
/// The configuration, a store or a port is no good; says which and what to do.
pub fn local(args: &LocalArgs) -> Result<()> {
    let mut config = config::load(&args.config)?;
    anyhow::ensure!(
        config.ownership == Ownership::Static,
        "a pipeline in one process owns all its shards: leave `ownership` out, or run `millstream worker` processes"
    );
    let trial = config.tenants.is_empty();
    if trial {
        anyhow::ensure!(
            config.listen.ip().is_loopback(),
            "without `tenants` anybody who reaches {} could send with the well-known key `{}`; configure `tenants`, or listen on 127.0.0.1",
            config.listen,
            TRIAL.1
        );
        let name = TRIAL.0.parse().map_err(anyhow::Error::msg)?;
        config.tenants.push(Tenant { name, api_keys: vec![ApiKey::plain(TRIAL.1)] });
    }
    start(&args.config, config, trial, &[Role::Gateway, Role::Unify, Role::Action, Role::Reaction])
}

/// Runs one part of the pipeline in this process, until it is told to stop.
///
/// # Errors
/// As [`local`].
pub fn worker(args: &WorkerArgs) -> Result<()> {
    let config = config::load(&args.config)?;
    anyhow::ensure!(
        !matches!(config.log, config::Log::Embedded),
        "an embedded log belongs to one process alone, so that roles in processes of their own cannot use it; configure `log: {{kafka: ...}}`, or run `millstream local`"
    );
    anyhow::ensure!(
        args.role != Role::Reaction || !matches!(config.documents, config::Documents::Embedded),
        "the role reaction writes where others read; configure `documents: {{mongodb: ...}}`, or run `millstream local`"
    );
    start(&args.config, config, false, &[args.role])
}

/// `trial`: the only tenant is the one of [`TRIAL`], which nobody configured.
fn start(args: &ConfigArgs, config: Config, trial: bool, roles: &[Role]) -> Result<()> {
    if args.print_config {
        return Ok(std::io::Write::write_all(&mut std::io::stdout(), config.to_yaml().as_bytes())?);
    }
    telemetry::logs::init(&config.telemetry)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let signals = {
        let _inside = runtime.enter();
        Signals::catch()?
    };
    let process = Process::open(config, roles)?;
    // The runtime goes last: it waits for what still reads for the admin port.
    runtime.block_on(process.serve(roles, trial, signals))
}

/// A running process.
struct Process {
    config: Config,
    metrics: Arc<Metrics>,
    spans: SpanExporter,
    log: Arc<dyn Log>,
    /// Of stages with state, where there is an object store.
    checkpoints: Option<Arc<Checkpoints>>,
    /// Only the reaction stage needs them; without it nothing else should fail with their server.
    documents: Option<Arc<dyn DocumentStore>>,
    topics: Topics,
    creation: Arc<Creation>,
    directory: Arc<Directory>,
    keys: Arc<Keyring>,
    rules: Arc<Rulebook>,
    /// Of a process that follows the plan.
    membership: Option<Arc<membership::Shared>>,
    pool: Pool,
    resources: Resources,
    threads: Vec<JoinHandle<()>>,
    stop: Arc<Stop>,
    /// How many files may be open.
    open_files: u64,
    phase: PhaseCheck,
}

impl Drop for Process {
    /// Also a process that could not start, or not go on, ends its threads.
    fn drop(&mut self) {
        if let Err(error) = self.crew().end() {
            tracing::error!(%error, "the process ends");
        }
    }
}

/// The threads of a process.
struct Crew {
    threads: Vec<JoinHandle<()>>,
    stop: Arc<Stop>,
    desks: Vec<Arc<Desk>>,
}

impl Crew {
    /// Tells them to end, and returns when they have. It blocks.
    fn end(self) -> Result<()> {
        self.stop.stop();
        for desk in &self.desks {
            desk.wake();
        }
        let panicked = self.threads.into_iter().map(JoinHandle::join).filter(Result::is_err).count();
        anyhow::ensure!(panicked == 0, "{panicked} threads panicked");
        Ok(())
    }
}

/// The shards of a process that is being opened.
struct Shards {
    /// Each shard's first.
    duty: Duty,
    /// How long a transaction may take.
    transaction: Duration,
    directory: Directory,
    starters: Vec<(Arc<Desk>, Starter)>,
}

impl Shards {
    fn desk(&mut self, stage: &'static str, shard: u32) -> Arc<Desk> {
        let desk = Arc::new(Desk::new(stage, shard, self.duty.clone()).patient(self.transaction));
        self.directory.add(desk.clone());
        desk
    }

    fn add(
        &mut self,
        desk: Arc<Desk>,
        starter: impl FnOnce(&Environment) -> std::io::Result<JoinHandle<()>> + Send + 'static,
    ) {
        self.starters.push((desk, Box::new(starter)));
    }
}

impl Process {
    fn open(config: Config, roles: &[Role]) -> Result<Process> {
        let with_state = [Role::Unify, Role::Action].iter().filter(|role| roles.contains(role)).count();
        // Whoever follows the plan may come to own every shard.
        let parts = Parts::of(&config.state, with_state * config.owned_shards().len()).map_err(anyhow::Error::msg)?;
        let (resources, pool) = parts.shared(matches!(config.ownership, Ownership::Static));
        let budget_bytes = config.state.memory.bytes();
        let tenants = config.tenants.iter().map(|tenant| tenant.name.as_str());
        let metrics = Metrics::with_state(tenants, Some(StateFigures { budget_bytes, resources: resources.clone() }));
        let names: Vec<String> = roles.iter().map(|role| format!("{role:?}").to_lowercase()).collect();
        let service = if roles.len() > 1 { "millstream".to_owned() } else { format!("millstream-{}", names.concat()) };
        let endpoint = config.telemetry.otlp_endpoint.as_deref();
        let spans = SpanExporter::start(endpoint, &service, metrics.spans.clone())?;
        let (log, embedded) = stores::open_log(&config)?;
        let topics = Topics::new(config.pipeline.as_str(), config.shards.0, config.generation);
        if let Some(log) = &embedded {
            stores::check_shards(&config, log, &topics)?;
        }
        let objects = if with_state > 0 { stores::open_objects(&config)? } else { None };
        let policy = config.checkpoints.policy();
        let checkpoints = objects.map(|objects| Arc::new(Checkpoints::new(objects, topics.clone(), policy)));
        let writes = roles.contains(&Role::Reaction);
        let documents = if writes { Some(stores::open_documents(&config)?) } else { None };
        let mut process = Process {
            directory: Arc::new(Directory::new(config.shards.0, config.worker.as_str())),
            keys: Arc::new(Keyring::new(&config.tenants).of_gateways(config.gateway.count)),
            rules: Arc::new(Rulebook::new(config.unify.rules())),
            membership: None,
            stop: Arc::new(Stop::default()),
            creation: Arc::new(Creation::new(log.clone(), topics.clone())),
            pool,
            resources,
            threads: Vec::new(),
            open_files: files::raise_limit(),
            phase: PhaseCheck::default(),
            config,
            metrics,
            spans,
            log,
            checkpoints,
            documents,
            topics,
        };
        let observer: Arc<dyn Observer> = Arc::new(Exports::new(process.metrics.clone(), process.spans.clone()));
        process.start_shards(roles, &observer)?;
        process.threads.push(process.ear_watch().start()?);
        if !process.directory.desks().is_empty() {
            process.threads.push(process.lag_watch(observer).start()?);
        }
        if let Some(log) = embedded.filter(|_| process.config.embedded.retention.0 > 0) {
            process.threads.push(process.retention(log).start()?);
        }
        Ok(process)
    }

    /// Makes a desk for every shard that may be this process's, and starts their threads: at once, or when this process has joined the pipeline.
    fn start_shards(&mut self, roles: &[Role], observer: &Arc<dyn Observer>) -> Result<()> {
        let mut shards = Shards {
            duty: if matches!(self.config.ownership, Ownership::Static) { Duty::Own } else { Duty::Nothing },
            transaction: self.transaction_timeout(),
            directory: Directory::new(self.config.shards.0, self.config.worker.as_str()),
            starters: Vec::new(),
        };
        let folder = StateFolder::new(&self.config, self.resources.clone());
        for shard in self.config.owned_shards() {
            if roles.contains(&Role::Unify) {
                let (_, waiting) = channel();
                let mut thread = self.seat("unify", shard, self.make_unify(), waiting, &folder, observer, &mut shards);
                thread.adopt = Some(adopt(self.rules.clone()));
                shards.add(thread.desk.clone(), move |environment| thread.start(environment));
            }
            if roles.contains(&Role::Action) {
                let (limits, (queries, waiting)) = (self.config.action.limits(), channel());
                let book = self.rules.clone();
                let make = move || {
                    let mut stage = ActionStage::new(limits.clone());
                    stage.adopt(book.edition().erasures);
                    stage
                };
                let mut thread = self.seat("action", shard, make, waiting, &folder, observer, &mut shards);
                thread.adopt = Some(adopt_erasures(self.rules.clone()));
                shards.directory.add_action(shard, queries);
                shards.add(thread.desk.clone(), move |environment| thread.start(environment));
            }
            if roles.contains(&Role::Reaction) {
                let thread = self.reaction(shard, observer, &mut shards)?;
                shards.add(thread.desk.clone(), move |environment| thread.start(environment));
            }
        }
        self.start(roles, shards)
    }

    fn start(&mut self, roles: &[Role], shards: Shards) -> Result<()> {
        let Shards { mut directory, starters, .. } = shards;
        let environment = self.environment();
        match &self.config.ownership {
            Ownership::Plan(plan) => {
                let settings = MemberSettings {
                    profile: self.profile(plan, roles),
                    bounds: plan.bounds(),
                    release: plan.release.duration(),
                };
                let (creation, stop) = (self.creation.clone(), self.stop.clone());
                let desks = directory.desks().to_vec();
                let (keys, metrics, rules) = (self.keys.clone(), self.metrics.clone(), self.rules.clone());
                let senders = Senders { keys, metrics, rules };
                let membership = Membership::new(settings, environment, creation, senders, desks, starters, stop);
                directory.set_membership(membership.shared());
                self.membership = Some(membership.shared());
                self.threads.push(membership.start()?);
            }
            Ownership::Static => {
                for (_, start) in starters {
                    self.threads.push(start(&environment)?);
                }
            }
        }
        self.directory = Arc::new(directory);
        Ok(())
    }

    /// Makes the stage unify, by the rules of the moment.
    fn make_unify(&self) -> impl Fn() -> Unify + Send + 'static {
        let (config, tenants, book) = (self.config.unify.rules(), self.tenants(), self.rules.clone());
        move || {
            let mut unify = of_tenants(Unify::new(&config), tenants.as_ref());
            unify.adopt(book.edition().rules);
            unify
        }
    }

    /// Whose envelopes unify takes: without any configured, everybody's.
    fn tenants(&self) -> Option<Arc<BTreeSet<String>>> {
        let names: BTreeSet<String> = self.config.tenants.iter().map(|tenant| tenant.name.to_string()).collect();
        (!names.is_empty()).then(|| Arc::new(names))
    }

    fn profile(&self, plan: &config::Plan, roles: &[Role]) -> Profile {
        let text = |name: &Option<config::Place>| name.as_ref().map(ToString::to_string).unwrap_or_default();
        Profile {
            worker: self.config.worker.to_string(),
            zone: text(&plan.zone),
            node: text(&plan.node),
            capacity: plan.capacity,
            stages: roles.iter().map(|role| role.stage().unwrap_or(GATEWAY).to_owned()).collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    fn environment(&self) -> Environment {
        let incarnation = format!("{:x}-{:x}", millstream_shard::Clock::now_ms(&SystemClock), std::process::id());
        Environment {
            log: self.log.clone(),
            clock: Arc::new(SystemClock),
            executor: Arc::new(Threads),
            topics: self.topics.clone(),
            claimant: Claimant::new(self.config.worker.as_str(), incarnation),
            checkpoints: self.checkpoints.clone(),
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn seat<S: Stage + 'static>(
        &self,
        name: &'static str,
        shard: u32,
        make: impl Fn() -> S + Send + 'static,
        queries: Receiver<Query<S>>,
        folder: &StateFolder,
        observer: &Arc<dyn Observer>,
        shards: &mut Shards,
    ) -> SeatThread<S> {
        let folder = folder.clone();
        SeatThread {
            desk: shards.desk(name, shard),
            queries,
            make: Box::new(make),
            adopt: None,
            open_store: Box::new(move || folder.open(name, shard)),
            creation: self.creation.clone(),
            limits: Limits {
                batch_records: self.config.batch.max_records,
                batch_bytes: self.config.batch.max_bytes.bytes(),
                batch_time: self.config.batch.max_time.duration(),
                exchange_partitions: self.config.batch.max_exchange_partitions,
                pool: Some(self.pool.clone()),
                ..Limits::default()
            },
            observer: observer.clone(),
            stop: self.stop.clone(),
        }
    }

    fn retention(&self, log: Arc<EmbeddedLog>) -> Retention {
        Retention {
            log,
            topics: self.topics.clone(),
            desks: self.directory.desks().to_vec(),
            keep: self.config.embedded.retention.duration(),
            clock: Arc::new(SystemClock),
            stop: self.stop.clone(),
        }
    }

    /// How long a transaction may take; on the embedded log, no time.
    fn transaction_timeout(&self) -> Duration {
        match &self.config.log {
            config::Log::Embedded => Duration::ZERO,
            config::Log::Kafka(kafka) => kafka.transaction_timeout.duration(),
        }
    }

    fn ear_watch(&self) -> EarWatch {
        let desks = self.directory.desks().iter().map(|desk| desk.clone() as Arc<dyn Ear>);
        let membership = self.membership.iter().map(|membership| membership.clone() as Arc<dyn Ear>);
        let ears = desks.chain(membership).collect();
        EarWatch { log: self.log.clone(), ears, metrics: self.metrics.clone(), stop: self.stop.clone() }
    }

    fn lag_watch(&self, observer: Arc<dyn Observer>) -> LagWatch {
        LagWatch {
            log: self.log.clone(),
            topics: self.topics.clone(),
            desks: self.directory.desks().to_vec(),
            observer,
            longest: lag::longest_transaction(self.transaction_timeout()),
            clock: Arc::new(SystemClock),
            stop: self.stop.clone(),
        }
    }

    fn reaction(&self, shard: u32, observer: &Arc<dyn Observer>, shards: &mut Shards) -> Result<ReactionThread> {
        Ok(ReactionThread {
            desk: shards.desk("reaction", shard),
            rules: self.rules.clone(),
            creation: self.creation.clone(),
            documents: self.documents.clone().context("the role reaction needs a document store")?,
            limits: ReactionLimits {
                backlog_bytes: self.config.reaction.backlog_bytes.bytes(),
                ..ReactionLimits::default()
            },
            observer: observer.clone(),
            stop: self.stop.clone(),
        })
    }

    async fn serve(mut self, roles: &[Role], trial: bool, signals: Signals) -> Result<()> {
        let admin_stop = CancellationToken::new();
        let admin = tokio::spawn(gateway::serve(
            bind(self.config.admin_listen, "admin_listen").await?,
            admin::router(self.admin_state()),
            admin_stop.clone(),
            Serving::new(ADMIN_CONNECTIONS, Duration::from_secs(1)),
        ));
        let worked = self.work(roles, trial, signals).await;
        let (crew, spans) = (self.crew(), self.spans.clone());
        let ended = tokio::task::spawn_blocking(move || {
            let ended = crew.end();
            spans.flush(LAST_SPANS);
            ended
        });
        let ended = ended.await?;
        admin_stop.cancel();
        admin.await??;
        worked.and(ended)
    }

    /// Takes records in until it is told to stop, and finishes what is in flight.
    async fn work(&self, roles: &[Role], trial: bool, signals: Signals) -> Result<()> {
        let told = signals.any();
        tokio::pin!(told);
        let (public_stop, mut public) = (CancellationToken::new(), None);
        if roles.contains(&Role::Gateway) {
            public = tokio::select! {
                opened = self.public(public_stop.clone()) => Some(opened?),
                () = &mut told => return Ok(()),
            };
        }
        self.announce(roles, trial);
        self.phase.set(Phase::Serving);
        let fenced = self.until_told(&mut told).await;
        tracing::info!("stopping");
        self.phase.set(Phase::Stopping);
        public_stop.cancel();
        if let Some(public) = public {
            public.await??;
        }
        if fenced.is_none()
            && let Some(membership) = &self.membership
        {
            membership.leave();
            membership.ended().await;
        }
        match fenced {
            Some(why) => Err(anyhow::anyhow!(why)),
            None => Ok(()),
        }
    }

    /// Its threads, to be ended by whoever has them.
    fn crew(&mut self) -> Crew {
        let desks = self.directory.desks().to_vec();
        Crew { threads: std::mem::take(&mut self.threads), stop: self.stop.clone(), desks }
    }

    /// Returns at a signal, or with the reason why this process may not go on.
    async fn until_told(&self, signal: &mut (impl Future<Output = ()> + Unpin)) -> Option<String> {
        let Some(membership) = self.membership.clone() else {
            signal.await;
            return None;
        };
        tokio::select! {
            () = signal => None,
            fenced = membership.ended() => fenced,
        }
    }

    /// Opens the public port, once the log is there, and it is known who may send: a gateway that cannot keep its promise had better not listen.
    async fn public(&self, stop: CancellationToken) -> Result<tokio::task::JoinHandle<std::io::Result<()>>> {
        let (log, creation, told) = (self.log.clone(), self.creation.clone(), self.stop.clone());
        let producer = tokio::task::spawn_blocking(move || {
            loop {
                match creation.ensure(&told).and_then(|()| log.producer()) {
                    Err(LogError::Unavailable(message)) if !told.wait(LOG_PAUSE) => {
                        tracing::warn!(message, "waiting for the log");
                    }
                    decided => return decided,
                }
            }
        });
        let producer = producer.await?.context("preparing the log")?;
        let state =
            GatewayState::new(&self.config, self.keys.clone(), producer, self.metrics.clone(), self.spans.clone());
        if let Some(membership) = &self.membership {
            membership.joined().await;
        }
        let listener = bind(self.config.listen, "listen").await?;
        let connections = files::connections(self.open_files, MAX_CONNECTIONS);
        let serving = Serving::new(connections, self.config.gateway.drain_timeout.duration());
        tracing::info!(open_files = self.open_files, connections, "the public port opens");
        Ok(tokio::spawn(gateway::serve(listener, gateway::router(state), stop, serving)))
    }

    fn admin_state(&self) -> AdminState {
        let mut checks: Vec<Box<dyn Check>> = vec![Box::new(self.phase.clone())];
        let log = StoreCheck::log(self.log.clone(), &self.topics, !matches!(self.config.log, config::Log::Embedded));
        let mut asked = vec![log.asked()];
        checks.push(Box::new(log));
        let of_log = asked.clone();
        if let Some(documents) = &self.documents {
            let is_server = !matches!(self.config.documents, config::Documents::Embedded);
            let documents = StoreCheck::documents(documents.clone(), is_server);
            asked.push(documents.asked());
            checks.push(Box::new(documents));
        }
        let of_shard = |desk: &Arc<Desk>| -> Box<dyn Check> {
            let needs_documents = Some(desk.stage) == Role::Reaction.stage();
            let stores = if needs_documents { asked.clone() } else { of_log.clone() };
            Box::new(ShardCheck { desk: desk.clone(), stores })
        };
        checks.extend(self.directory.desks().iter().map(of_shard));
        if let Some(membership) = &self.membership {
            checks.push(match self.directory.desks() {
                [] => Box::new(HearingCheck(membership.clone())),
                _ => Box::new(PlanCheck(membership.clone())),
            });
        }
        AdminState::new(
            checks,
            self.metrics.clone(),
            Some(self.directory.clone()),
            Some(self.log.clone()),
            self.documents.clone(),
            self.topics.clone(),
        )
    }

    fn announce(&self, roles: &[Role], trial: bool) {
        if roles.len() > 1 {
            let key = if trial { format!("; API key of tenant {}: {}", TRIAL.0, TRIAL.1) } else { String::new() };
            tracing::info!(
                "send to http://{}, look inside at http://{}{key}",
                self.config.listen,
                self.config.admin_listen
            );
        } else {
            tracing::info!(?roles, admin = %self.config.admin_listen, "started");
        }
    }
}

/// Gives a shard of action the newest erasures; it has carried them out when it has gone through all that it has of their tenants.
fn adopt_erasures(book: Arc<Rulebook>) -> Adopt<ActionStage> {
    let done = AtomicU64::new(0);
    Box::new(move |shard| {
        let edition = book.edition();
        let Some(shard) = shard else {
            // Whoever owns it next begins anew.
            done.store(0, Ordering::Relaxed);
            return 0;
        };
        shard.stage().adopt(edition.erasures);
        if shard.has_swept() {
            done.store(edition.control_offset, Ordering::Relaxed);
        }
        done.load(Ordering::Relaxed)
    })
}

/// Gives a shard of unify the newest rules.
fn adopt(book: Arc<Rulebook>) -> Adopt<Unify> {
    Box::new(move |shard| {
        let edition = book.edition();
        if let Some(shard) = shard {
            shard.stage().adopt(edition.rules);
        }
        edition.control_offset
    })
}

fn of_tenants(unify: Unify, tenants: Option<&Arc<BTreeSet<String>>>) -> Unify {
    match tenants {
        Some(tenants) => unify.for_tenants(tenants.clone()),
        None => unify,
    }
}

async fn bind(address: std::net::SocketAddr, field: &str) -> Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound.with_context(|| format!("cannot listen on {address}; choose another address by `{field}`"))
}

/// SIGTERM and Ctrl-C, which are kept from the moment in which they are caught: also one that comes while stores are opened ends the process well.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Must be called within a tokio runtime.
    fn catch() -> Result<Signals> {
        let catch = |kind| signal(kind).context("cannot catch signals");
        Ok(Signals { terminate: catch(SignalKind::terminate())?, interrupt: catch(SignalKind::interrupt())? })
    }

    /// Returns at the first one.
    async fn any(mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

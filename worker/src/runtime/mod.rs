//! Wiring of the stages into processes: `millstream local` and `millstream worker`.
//!
//! A process has the roles that it was started with, one thread per owned shard and stage, and two ports: the public one (role gateway) and the admin
//! one. On SIGTERM or Ctrl-C the gateway finishes what is in flight, then the shards store their state and end; after `kill -9` the
//! next start finds everything that was acknowledged in the log.

pub mod backoff;
pub mod directory;
pub mod memory;
pub mod observe;
pub mod reaction;
pub mod stage;
pub mod stores;
pub mod system;
mod writers;

use crate::admin::{self, AdminState, Check};
use crate::config::{self, ApiKey, Config, ConfigArgs, Tenant};
use crate::gateway::{self, GatewayState};
use crate::telemetry::{self, Metrics, SpanExporter, StateFigures};
use anyhow::{Context, Result};
use directory::{Directory, LogCheck, ShardCheck};
use memory::Parts;
use millstream_shard::documents::DocumentStore;
use millstream_shard::log::{Log, LogError};
use millstream_shard::memory::Pool;
use millstream_shard::ownership::Claimant;
use millstream_shard::runtime::{Environment, Limits};
use millstream_shard::topics::Topics;
use millstream_stages::Stage;
use millstream_stages::action::ActionStage;
use millstream_stages::unify::Unify;
use millstream_stores::rocks::Resources;
use observe::{Exports, Observer};
use reaction::{ReactionLimits, ReactionThread};
use stage::{ShardStatus, StageHandle, StageThread};
use std::marker::PhantomData;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use stores::{Creation, StateFolder};
use system::{Stop, SystemClock, Threads};
use tokio::net::TcpListener;
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
    if config.tenants.is_empty() {
        let name = TRIAL.0.parse().map_err(anyhow::Error::msg)?;
        config.tenants.push(Tenant { name, api_keys: vec![ApiKey::plain(TRIAL.1)] });
    }
    start(&args.config, config, &[Role::Gateway, Role::Unify, Role::Action, Role::Reaction])
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
    start(&args.config, config, &[args.role])
}

fn start(args: &ConfigArgs, config: Config, roles: &[Role]) -> Result<()> {
    if args.print_config {
        return Ok(std::io::Write::write_all(&mut std::io::stdout(), config.to_yaml().as_bytes())?);
    }
    telemetry::logs::init(&config.telemetry)?;
    let process = Process::open(config, roles)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(process.serve(roles))
}

/// A running process.
struct Process {
    config: Config,
    metrics: Arc<Metrics>,
    spans: SpanExporter,
    log: Arc<dyn Log>,
    /// Only the reaction stage needs them; without it nothing else should fail with their server.
    documents: Option<Arc<dyn DocumentStore>>,
    topics: Topics,
    creation: Arc<Creation>,
    directory: Arc<Directory>,
    pool: Pool,
    resources: Resources,
    threads: Vec<JoinHandle<()>>,
    stop: Arc<Stop>,
}

impl Process {
    fn open(config: Config, roles: &[Role]) -> Result<Process> {
        let with_state = [Role::Unify, Role::Action].iter().filter(|role| roles.contains(role)).count();
        let parts = Parts::of(&config.state, with_state * config.owned_shards().len()).map_err(anyhow::Error::msg)?;
        let (resources, budget_bytes) = (Resources::with(&parts.rocks), config.state.memory.bytes());
        let tenants = config.tenants.iter().map(|tenant| tenant.name.as_str());
        let metrics = Metrics::with_state(tenants, Some(StateFigures { budget_bytes, resources: resources.clone() }));
        let names: Vec<String> = roles.iter().map(|role| format!("{role:?}").to_lowercase()).collect();
        let service = if roles.len() > 1 { "millstream".to_owned() } else { format!("millstream-{}", names.concat()) };
        let endpoint = config.telemetry.otlp_endpoint.as_deref();
        let spans = SpanExporter::start(endpoint, &service, metrics.spans.clone())?;
        let log = stores::open_log(&config)?;
        let writes = roles.contains(&Role::Reaction);
        let documents = if writes { Some(stores::open_documents(&config)?) } else { None };
        let topics = Topics::new(config.pipeline.as_str(), config.shards.0, config.generation);
        let mut process = Process {
            directory: Arc::new(Directory::new(config.shards.0)),
            stop: Arc::new(Stop::default()),
            creation: Arc::new(Creation::new(log.clone(), topics.clone())),
            pool: parts.pool(),
            resources,
            threads: Vec::new(),
            config,
            metrics,
            spans,
            log,
            documents,
            topics,
        };
        process.start_shards(roles)?;
        Ok(process)
    }

    fn start_shards(&mut self, roles: &[Role]) -> Result<()> {
        let observer: Arc<dyn Observer> = Arc::new(Exports::new(self.metrics.clone(), self.spans.clone()));
        let (environment, folder) = (self.environment(), StateFolder::new(&self.config, self.resources.clone()));
        let mut directory = Directory::new(self.config.shards.0);
        for shard in self.config.owned_shards() {
            if roles.contains(&Role::Unify) {
                let rules = self.config.unify.clone();
                let make = move || Unify::new(rules.clone());
                let handle = self.stage("unify", shard, make, &environment, &folder, &observer)?;
                self.threads.push(handle.thread);
                directory.add(handle.status);
            }
            if roles.contains(&Role::Action) {
                let limits = self.config.action.limits();
                let make = move || ActionStage::new(limits.clone());
                let handle = self.stage("action", shard, make, &environment, &folder, &observer)?;
                self.threads.push(handle.thread);
                directory.add_action(shard, handle.queries);
                directory.add(handle.status);
            }
            if roles.contains(&Role::Reaction) {
                let (status, thread) = self.reaction(shard, &environment, &observer)?;
                self.threads.push(thread);
                directory.add(status);
            }
        }
        self.directory = Arc::new(directory);
        Ok(())
    }

    fn environment(&self) -> Environment {
        let incarnation = format!("{:x}-{:x}", millstream_shard::Clock::now_ms(&SystemClock), std::process::id());
        Environment {
            log: self.log.clone(),
            clock: Arc::new(SystemClock),
            executor: Arc::new(Threads),
            topics: self.topics.clone(),
            claimant: Claimant::new(self.config.worker.as_str(), incarnation),
        }
    }

    fn stage<S: Stage + 'static>(
        &self,
        name: &'static str,
        shard: u32,
        make: impl Fn() -> S + Send + 'static,
        environment: &Environment,
        folder: &StateFolder,
        observer: &Arc<dyn Observer>,
    ) -> Result<StageHandle<S>> {
        let folder = folder.clone();
        let thread = StageThread {
            make,
            open_store: move || folder.open(name, shard),
            shard,
            environment: environment.clone(),
            creation: self.creation.clone(),
            limits: Limits {
                batch_records: self.config.batch.max_records,
                batch_bytes: self.config.batch.max_bytes.bytes(),
                batch_time: self.config.batch.max_time.duration(),
                pool: Some(self.pool.clone()),
                ..Limits::default()
            },
            observer: observer.clone(),
            stop: self.stop.clone(),
            stage: PhantomData,
        };
        Ok(thread.spawn(name)?)
    }

    fn reaction(
        &self,
        shard: u32,
        environment: &Environment,
        observer: &Arc<dyn Observer>,
    ) -> Result<(Arc<ShardStatus>, JoinHandle<()>)> {
        let thread = ReactionThread {
            shard,
            environment: environment.clone(),
            creation: self.creation.clone(),
            documents: self.documents.clone().context("the role reaction needs a document store")?,
            limits: ReactionLimits {
                backlog_bytes: self.config.reaction.backlog_bytes.bytes(),
                ..ReactionLimits::default()
            },
            observer: observer.clone(),
            stop: self.stop.clone(),
        };
        Ok(thread.spawn()?)
    }

    async fn serve(self, roles: &[Role]) -> Result<()> {
        let (public_stop, admin_stop) = (CancellationToken::new(), CancellationToken::new());
        let admin = tokio::spawn(gateway::serve(
            bind(self.config.admin_listen, "admin_listen").await?,
            admin::router(self.admin_state()),
            admin_stop.clone(),
            Duration::from_secs(1),
        ));
        let signal = signalled();
        tokio::pin!(signal);
        let mut public = None;
        if roles.contains(&Role::Gateway) {
            public = tokio::select! {
                opened = self.public(public_stop.clone()) => Some(opened?),
                ended = &mut signal => {
                    self.stop.stop();
                    return ended;
                }
            };
        }
        self.announce(roles);
        signal.await?;
        tracing::info!("stopping");
        public_stop.cancel();
        if let Some(public) = public {
            public.await??;
        }
        self.stop.stop();
        let (threads, spans) = (self.threads, self.spans);
        tokio::task::spawn_blocking(move || {
            let panicked = threads.into_iter().map(JoinHandle::join).filter(Result::is_err).count();
            spans.flush(LAST_SPANS);
            anyhow::ensure!(panicked == 0, "{panicked} threads panicked");
            Ok(())
        })
        .await??;
        admin_stop.cancel();
        admin.await??;
        Ok(())
    }

    /// Opens the public port, once the log is there: a gateway that cannot keep its promise had better not listen.
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
        let state = GatewayState::new(&self.config, producer, self.metrics.clone(), self.spans.clone());
        let listener = bind(self.config.listen, "listen").await?;
        let drain = self.config.gateway.drain_timeout.duration();
        Ok(tokio::spawn(gateway::serve(listener, gateway::router(state), stop, drain)))
    }

    fn admin_state(&self) -> AdminState {
        let mut checks: Vec<Box<dyn Check>> = vec![Box::new(LogCheck::new(self.log.clone(), &self.topics))];
        let shards = self.directory.statuses().iter();
        checks.extend(shards.map(|status| Box::new(ShardCheck(status.clone())) as Box<dyn Check>));
        AdminState::new(
            checks,
            self.metrics.clone(),
            Some(self.directory.clone()),
            Some(self.log.clone()),
            self.documents.clone(),
            self.topics.clone(),
        )
    }

    fn announce(&self, roles: &[Role]) {
        if roles.len() > 1 {
            let trial = self.config.tenants.iter().any(|tenant| tenant.name.as_str() == TRIAL.0);
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

async fn bind(address: std::net::SocketAddr, field: &str) -> Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound.with_context(|| format!("cannot listen on {address}; choose another address by `{field}`"))
}

/// Returns at SIGTERM or Ctrl-C.
async fn signalled() -> Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminate.recv() => {}
    }
    Ok(())
}

//! `millstream plan`: shows, makes or publishes the plan that says who owns which shard.
//!
//! Without an operator this is how a pipeline gets its plan: `auto` makes one of the workers that report, once, or again and again with `--watch`; `apply` publishes
//! one that a person wrote. Failover needs none of it: owner and successors are in the plan. What is published is checked first, and nobody who was started
//! later is overruled: opening the publisher fences whoever published before, and a watch that was fenced by one with a higher term ends. What else a watch meets, it tells, and goes on.
//! Looking (`show`, `--dry-run`) fences nobody.

use super::Outcome;
use crate::config::{self, Config, ConfigArgs};
use crate::runtime::stores;
use anyhow::{Context, bail};
use millstream_plan::file;
use millstream_plan::plan::{Plan, Version};
use millstream_plan::planner::{self, Limits, Outcome as Planned};
use millstream_plan::validate::{Pipeline, validate};
use millstream_plan::view::{Bounds, View};
use millstream_shard::control::{Listener, Publisher};
use millstream_shard::log::Log;
use millstream_shard::topics::Topics;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long one look at reports waits.
const LISTEN: Duration = Duration::from_millis(100);
/// How often a watch considers a new plan.
const CONSIDER: Duration = Duration::from_secs(1);
const STAGES: [&str; 3] = ["unify", "action", "reaction"];

/// Arguments of `millstream plan`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct PlanArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Action {
    /// Print the plan that counts now, as a file that `apply` takes
    Show(Common),
    /// Publish a plan from a file
    Apply {
        #[command(flatten)]
        common: Common,
        /// The plan (YAML)
        #[arg(long, short, value_name = "FILE")]
        file: PathBuf,
        /// Also when it names workers that were not heard
        #[arg(long)]
        force: bool,
    },
    /// Make a plan of the workers that report, and publish it if it says something new
    Auto {
        #[command(flatten)]
        common: Common,
        /// Go on until Ctrl-C: rebalance, replace the dead
        #[arg(long)]
        watch: bool,
    },
}

#[derive(Debug, Clone, clap::Args)]
struct Common {
    /// Print what would be published, and publish nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

/// The pipeline's log, and what is heard in it.
struct Session {
    log: Arc<dyn Log>,
    topics: Topics,
    listener: Listener,
    stages: BTreeMap<String, u32>,
    bounds: Bounds,
    began: Instant,
}

/// Runs it.
pub(super) fn run(args: &PlanArgs) -> anyhow::Result<Outcome> {
    match &args.action {
        Action::Show(common) => show(&Session::open(&common.config)?),
        Action::Apply { common, file, force } => {
            let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            apply(Session::open(&common.config)?, &text, *force, common.dry_run)
                .with_context(|| format!("cannot publish {}", file.display()))
        }
        Action::Auto { common, watch } => auto(Session::open(&common.config)?, *watch, common.dry_run),
    }
}

impl Session {
    fn open(args: &ConfigArgs) -> anyhow::Result<Session> {
        let config: Config = config::load(args)?;
        if matches!(config.log, config::Log::Embedded) {
            bail!(
                "a pipeline on the embedded log has one process, which owns all shards: there is no plan; configure `log: {{kafka: ...}}`"
            );
        }
        let bounds = match &config.ownership {
            config::Ownership::Plan(plan) => plan.bounds(),
            config::Ownership::Static => Bounds::default(),
        };
        let (log, shards) = (stores::open_log(&config)?.0, config.shards.0);
        let topics = Topics::new(config.pipeline.as_str(), shards, config.generation);
        log.create_topics(&topics.specs()).context("preparing the pipeline's topics")?;
        let listener = Listener::open(&*log, &topics, bounds, 0).context("reading plan and reports")?;
        let stages = STAGES.iter().map(|stage| ((*stage).to_owned(), shards)).collect();
        Ok(Session { log, topics, listener, stages, bounds, began: Instant::now() })
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn view(&self) -> &View {
        self.listener.view()
    }

    fn listen(&mut self, pause: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + pause;
        while Instant::now() < until {
            let now_ms = self.now_ms();
            self.listener.listen(LISTEN, now_ms)?;
        }
        Ok(())
    }

    /// Hears reports until old ones in the topic cannot be taken for living workers.
    fn get_to_know(&mut self) -> anyhow::Result<()> {
        self.listen(Duration::from_millis(self.bounds.silence_ms + self.bounds.silence_ms / 4))?;
        while !self.view().knows_all(self.now_ms()) {
            self.listen(LISTEN)?;
        }
        Ok(())
    }

    /// Fences whoever published before, and reads what they did. Nobody is fenced for a dry run.
    fn publisher(&mut self, dry_run: bool) -> anyhow::Result<Option<Publisher>> {
        let publisher = (!dry_run).then(|| Publisher::open(&*self.log, &self.topics)).transpose();
        let publisher = publisher.context("fencing whoever published plans before")?;
        self.catch_up()?;
        Ok(publisher)
    }

    fn catch_up(&mut self) -> anyhow::Result<()> {
        let now_ms = self.now_ms();
        Ok(self.listener.read_to_end(&*self.log, now_ms)?)
    }

    /// Nobody has published under a higher term, as far as was heard.
    fn is_the_newest(&self, term: u64) -> anyhow::Result<()> {
        let newest = self.current().map_or(0, |version| version.term);
        anyhow::ensure!(
            newest <= term,
            "somebody who was started later publishes plans of this pipeline (term {newest}): this watch ends"
        );
        Ok(())
    }

    fn current(&self) -> Option<Version> {
        self.view().plan().map(|plan| plan.version)
    }
}

fn show(session: &Session) -> anyhow::Result<Outcome> {
    match session.view().plan() {
        Some(plan) => {
            super::print(format_args!("{}", file::render(plan)?))?;
            Ok(Outcome::Good)
        }
        None => {
            super::print(format_args!("no plan was published; `millstream plan auto` makes one\n"))?;
            Ok(Outcome::Bad)
        }
    }
}

fn apply(mut session: Session, text: &str, force: bool, dry_run: bool) -> anyhow::Result<Outcome> {
    session.get_to_know()?;
    let mut publisher = session.publisher(dry_run)?;
    let plan = file::parse(text, session.current())?;
    let alive = session.view().alive(session.now_ms());
    let workers: BTreeMap<String, BTreeSet<String>> =
        alive.into_iter().map(|worker| (worker.name, worker.stages)).collect();
    let pipeline = Pipeline {
        stages: &session.stages,
        workers: (!force).then_some(&workers),
        generation: u32::from(session.topics.generation),
        current: session.current(),
    };
    if let Err(problems) = validate(&plan, &pipeline) {
        let list: Vec<String> = problems.iter().map(|problem| format!("- {problem}")).collect();
        let heard = workers.keys().cloned().collect::<Vec<_>>().join(", ");
        let heard = if heard.is_empty() { "none".to_owned() } else { heard };
        bail!("the plan does not fit the pipeline (workers heard: {heard}):\n{}", list.join("\n"));
    }
    publish(publisher.as_mut(), plan)
}

/// Publishes a plan, or, without a publisher, prints it.
fn publish(publisher: Option<&mut Publisher>, plan: Plan) -> anyhow::Result<Outcome> {
    let (version, shards) = (plan.version, plan.placements.len());
    let Some(publisher) = publisher else {
        super::print(format_args!("{}", file::render(&plan)?))?;
        return Ok(Outcome::Good);
    };
    publisher.publish(plan).context("publishing the plan; look with `millstream plan show` whether it is there")?;
    super::print(format_args!("published plan {version} of {shards} shards\n"))?;
    Ok(Outcome::Good)
}

fn auto(mut session: Session, watch: bool, dry_run: bool) -> anyhow::Result<Outcome> {
    session.get_to_know()?;
    let mut publisher = session.publisher(dry_run)?;
    // Of two watches the later one has the higher term, besides having fenced the other.
    let term = session.current().map_or(0, |version| version.term) + 1;
    let mut printed = None;
    loop {
        if watch && !dry_run {
            session.is_the_newest(term)?;
        }
        let turn = consider(&session, &mut publisher, (term, watch), &mut printed);
        if !watch {
            return tell(&turn?);
        }
        let turn = turn.map(drop).and_then(|()| session.listen(CONSIDER));
        if let Err(error) = turn {
            publisher = go_on(&mut session, term, dry_run, error)?;
        }
    }
}

/// Makes a plan, and publishes it if it says something new; prints it without a publisher, unless it has. A watch publishes one of its term at its beginning in any case: by that, those that
/// watched before know that they are not to go on.
fn consider(
    session: &Session,
    publisher: &mut Option<Publisher>,
    (term, watch): (u64, bool),
    printed: &mut Option<Plan>,
) -> anyhow::Result<Planned> {
    let mut planned = make(session, term);
    if planned.plan.placements.is_empty() {
        super::print(format_args!("no worker reports; start some with `ownership: {{plan: {{}}}}`\n"))?;
        return Ok(planned);
    }
    let Version { term: of, number } = planned.plan.version;
    if watch && publisher.is_some() && of < term {
        planned.plan.version = Version { term, number: number + 1 };
    }
    if session.current() != Some(planned.plan.version) && printed.as_ref() != Some(&planned.plan) {
        publish(publisher.as_mut(), planned.plan.clone())?;
        *printed = publisher.is_none().then(|| planned.plan.clone());
    }
    Ok(planned)
}

/// After an error of a watch, which may be the log's, or that of one who was fenced: tells it, and goes on with a publisher of its own when the log is there again and nobody has published
/// under a higher term.
fn go_on(
    session: &mut Session,
    term: u64,
    dry_run: bool,
    mut error: anyhow::Error,
) -> anyhow::Result<Option<Publisher>> {
    loop {
        eprintln!("{error:#}; trying again");
        std::thread::sleep(CONSIDER);
        let again = session.listener.open_again(&*session.log).map_err(anyhow::Error::from);
        if let Err(next) = again.and_then(|()| session.catch_up()) {
            error = next;
            continue;
        }
        if !dry_run {
            session.is_the_newest(term)?;
        }
        match session.publisher(dry_run) {
            Ok(publisher) => return Ok(publisher),
            Err(next) => error = next,
        }
    }
}

fn make(session: &Session, term: u64) -> Planned {
    let (view, now_ms) = (session.view(), session.now_ms());
    planner::plan(&planner::Input {
        term,
        generation: u32::from(session.topics.generation),
        workers: &view.alive(now_ms),
        stages: &session.stages,
        standings: &view.standings(now_ms),
        previous: view.plan(),
        limits: Limits::default(),
    })
}

/// What is still to be done, for a plan that is not watched.
fn tell(planned: &Planned) -> anyhow::Result<Outcome> {
    for next in &planned.pending {
        let planner::Move { shard, from, to, step, .. } = next;
        super::print(format_args!("{shard} is to move from {from} to {to}: {step:?}\n"))?;
    }
    for shard in &planned.unplaced {
        super::print(format_args!("{shard} has no owner: no worker that reports can own its stage\n"))?;
    }
    if !planned.pending.is_empty() {
        super::print(format_args!("run it again, or with --watch, to go on\n"))?;
    }
    let is_good = planned.unplaced.is_empty() && !planned.plan.placements.is_empty();
    Ok(if is_good { Outcome::Good } else { Outcome::Bad })
}

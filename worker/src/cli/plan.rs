//! `millstream plan`: shows, makes or publishes the plan that says who owns which shard.
//!
//! Without an operator this is how a pipeline gets its plan: `auto` makes one of the workers that report, once, or again and again with `--watch`; `apply` publishes
//! one that a person wrote. Failover needs none of it: owner and successors are in the plan. What is published is checked first, and nobody who was started
//! later is overruled: opening the publisher fences whoever published before, and a watch that was fenced by one with a higher term ends. What else a watch meets, it tells, and goes on.
//! Looking (`show`, `--dry-run`) fences nobody.

use super::Outcome;
use super::session::{Session, Topics};
use crate::config::{self, ConfigArgs};
use anyhow::{Context, bail};
use millstream_plan::file;
use millstream_plan::plan::{Plan, Version};
use millstream_plan::planner::{self, Outcome as Planned};
use millstream_plan::validate::{Pipeline, validate};
use millstream_shard::planning::{Turn, Wishes};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

/// How often a watch considers a new plan.
const CONSIDER: Duration = Duration::from_secs(1);

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

/// Runs it.
pub(super) fn run(args: &PlanArgs) -> anyhow::Result<Outcome> {
    match &args.action {
        Action::Show(common) => show(&open(common)?),
        Action::Apply { common, file, force } => {
            let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            apply(open(common)?, &text, *force, common.dry_run)
                .with_context(|| format!("cannot publish {}", file.display()))
        }
        Action::Auto { common, watch: false } => auto(open(common)?, common.dry_run),
        Action::Auto { common, watch: true } => watch(open(common)?, common.dry_run),
    }
}

impl Session {
    /// Publishes a plan, or, for a dry run, prints it.
    fn publish(&mut self, plan: Plan, dry_run: bool) -> anyhow::Result<()> {
        if dry_run {
            return Ok(super::print(format_args!("{}", file::render(&plan)?))?);
        }
        let (version, shards) = (plan.version, plan.placements.len());
        let published = self.planning.publish(plan);
        published.context("publishing the plan; look with `millstream plan show` whether it is there")?;
        say_published(version, shards)
    }
}

fn open(common: &Common) -> anyhow::Result<Session> {
    Session::open(&config::load(&common.config)?, Topics::Create)
}

fn say_published(version: Version, shards: usize) -> anyhow::Result<()> {
    Ok(super::print(format_args!("published plan {version} of {shards} shards\n"))?)
}

fn show(session: &Session) -> anyhow::Result<Outcome> {
    match session.planning.view().plan() {
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
    session.get_to_know(dry_run)?;
    let planning = &session.planning;
    let plan = file::parse(text, planning.current())?;
    let alive = planning.view().alive(session.now_ms());
    let workers: BTreeMap<String, BTreeSet<String>> =
        alive.into_iter().map(|worker| (worker.name, worker.stages)).collect();
    let pipeline = Pipeline {
        stages: planning.stages(),
        workers: (!force).then_some(&workers),
        generation: planning.generation(),
        current: planning.current(),
    };
    if let Err(problems) = validate(&plan, &pipeline) {
        let list: Vec<String> = problems.iter().map(|problem| format!("- {problem}")).collect();
        let heard = workers.keys().cloned().collect::<Vec<_>>().join(", ");
        let heard = if heard.is_empty() { "none".to_owned() } else { heard };
        bail!("the plan does not fit the pipeline (workers heard: {heard}):\n{}", list.join("\n"));
    }
    session.publish(plan, dry_run)?;
    Ok(Outcome::Good)
}

fn auto(mut session: Session, dry_run: bool) -> anyhow::Result<Outcome> {
    session.get_to_know(dry_run)?;
    let term = session.planning.current().map_or(0, |version| version.term) + 1;
    let planned = session.planning.make(&Wishes::default(), term, session.now_ms());
    if planned.plan.placements.is_empty() {
        say_no_workers()?;
    } else if session.planning.current() != Some(planned.plan.version) {
        session.publish(planned.plan.clone(), dry_run)?;
    }
    tell(&planned)
}

fn say_no_workers() -> anyhow::Result<()> {
    Ok(super::print(format_args!("no worker reports; start some with `ownership: {{plan: {{}}}}`\n"))?)
}

/// Goes on until somebody who was started later publishes, or for ever; what it meets otherwise, it tells.
fn watch(mut session: Session, dry_run: bool) -> anyhow::Result<Outcome> {
    if !dry_run {
        session.planning.lead();
    }
    let mut printed = None;
    loop {
        let now_ms = session.now_ms();
        let turn = session.planning.turn(&Wishes::default(), now_ms);
        match &turn {
            Ok(Turn::Hearing) | Err(_) => {}
            Ok(Turn::NoWorkers) => say_no_workers()?,
            Ok(Turn::Planned { outcome, is_published: true }) => {
                say_published(outcome.plan.version, outcome.plan.placements.len())?;
            }
            Ok(Turn::Planned { outcome: Planned { plan, .. }, .. }) => {
                let is_new = session.planning.current() != Some(plan.version) && printed.as_ref() != Some(plan);
                if dry_run && is_new {
                    session.publish(plan.clone(), dry_run)?;
                    printed = Some(plan.clone());
                }
            }
            Ok(Turn::Replaced { term }) => {
                bail!("somebody who was started later publishes plans of this pipeline (term {term}): this watch ends")
            }
        }
        if let Err(error) = turn.map(drop).and_then(|()| session.listen(CONSIDER)) {
            eprintln!("{error}; trying again");
            std::thread::sleep(CONSIDER);
        }
    }
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

//! Pipelines whose workers follow a plan: publishing one, and seeing who owns what.

use crate::pipeline::{Pipeline, Process, Settings, binary, until};
use anyhow::{Context, Result, bail, ensure};
use millstream::admin::ShardRow;
use millstream::cli::Admin;
use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

/// What makes a worker follow the plan.
pub const FOLLOWS: &str = "ownership: {plan: {}}\n";

/// Two workers of each stage, and a gateway; the plan is made of whoever reports.
///
/// # Errors
/// When something does not start.
pub fn start(settings: &Settings) -> Result<Pipeline> {
    let names = ["unify-0", "unify-1", "action-0", "action-1", "reaction-0", "reaction-1"];
    let workers = names.map(|name| (role_of(name), name));
    let processes: Vec<_> = std::iter::once(("gateway", "gateway")).chain(workers).collect();
    let mut pipeline = Pipeline::launched(settings, &processes)?;
    until("a plan that places every shard", || plan_auto(&pipeline).map(Some))?;
    recovered(&pipeline, settings.shards, &[])?;
    for process in &mut pipeline.processes {
        process.ready()?;
    }
    Ok(pipeline)
}

fn role_of(name: &str) -> &'static str {
    match name.split('-').next() {
        Some("unify") => "unify",
        Some("action") => "action",
        _ => "reaction",
    }
}

/// Makes a plan of the workers that report, and publishes it.
///
/// # Errors
/// When the command fails; with what it said.
pub fn plan_auto(pipeline: &Pipeline) -> Result<()> {
    let config = pipeline.gateway()?.config();
    let output = Command::new(binary()?).args(["plan", "auto", "--config"]).arg(config).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "millstream plan auto: {said}{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// What a worker says of every worker's shards.
///
/// # Errors
/// When it does not answer.
pub fn shards(process: &Process) -> Result<Vec<ShardRow>> {
    Ok(Admin::new(&process.admin_url())?.json("/v1/shards", &[])?)
}

/// The owner of each shard, as (stage, shard) to worker, by what one worker hears.
///
/// # Errors
/// When a shard has none that was heard lately, or two.
pub fn owners(process: &Process, shards_per_stage: u32) -> Result<BTreeMap<(String, u32), String>> {
    let mut owners = BTreeMap::new();
    for row in shards(process)? {
        if row.role == "owner" && row.heard_ms < 3_000 {
            let (id, worker) = ((row.stage, row.shard), row.worker);
            if let Some(other) = owners.insert(id.clone(), worker.clone()) {
                bail!("{id:?} is owned by {other} and {worker}");
            }
        }
    }
    let expected = 3 * shards_per_stage as usize;
    ensure!(owners.len() == expected, "{} of {expected} shards have an owner: {owners:?}", owners.len());
    Ok(owners)
}

/// So much of each worker's log is shown with what failed.
const LINES_OF_LOG: usize = 60;

/// What a step took too long for, by the workers' own words.
fn with_logs<T>(waited: Result<T>, pipeline: &Pipeline) -> Result<T> {
    waited.with_context(|| {
        let end = |process: &Process| {
            let log = process.log();
            let skipped = log.lines().count().saturating_sub(LINES_OF_LOG);
            let lines: Vec<&str> = log.lines().skip(skipped).collect();
            format!("the end of what {} wrote:\n{}\n", process.name, lines.join("\n"))
        };
        pipeline.processes.iter().map(end).collect::<String>()
    })
}

/// Waits until every shard has an owner, and none of these workers; how long it took.
///
/// # Errors
/// When that takes too long.
pub fn recovered(pipeline: &Pipeline, shards: u32, without: &[&str]) -> Result<Duration> {
    let began = Instant::now();
    let asked = worker(pipeline, without)?;
    let waited = until("an owner of every shard", || {
        let owners = owners(asked, shards)?;
        let gone = owners.iter().find(|(_, owner)| without.contains(&owner.as_str()));
        if let Some((id, owner)) = gone {
            bail!("{id:?} is still {owner}'s");
        }
        Ok(Some(()))
    });
    with_logs(waited, pipeline)?;
    Ok(began.elapsed())
}

/// A worker to ask, none of these.
///
/// # Errors
/// When there is none.
fn worker<'a>(pipeline: &'a Pipeline, without: &[&str]) -> Result<&'a Process> {
    let is_it = |process: &&Process| {
        process.role != "gateway" && process.is_running() && !without.contains(&process.name.as_str())
    };
    pipeline.processes.iter().find(is_it).context("no worker to ask")
}

/// How far each shard's owner is: its epoch and its last batch, by what a worker has heard.
type Progress = BTreeMap<(String, u32), (u64, u64)>;

/// How far all owners are.
///
/// # Errors
/// When no worker answers.
pub fn progress(pipeline: &Pipeline) -> Result<Progress> {
    let owners = shards(worker(pipeline, &[])?)?.into_iter().filter(|row| row.role == "owner");
    Ok(owners.map(|row| ((row.stage, row.shard), (row.epoch, row.batch))).collect())
}

/// So long after a blow an owner that still says that it has nothing to do has nothing to do.
const SETTLED: Duration = Duration::from_secs(2);

/// Waits until every shard has an owner that was heard of after `since` and works: it has gone on from `before`, or has nothing to do; how long that took.
///
/// # Errors
/// When that takes too long.
pub fn works_again(pipeline: &Pipeline, shards_per_stage: u32, before: &Progress, since: Instant) -> Result<Duration> {
    let asked = worker(pipeline, &[])?;
    let waited = until("work on every shard", || {
        owners(asked, shards_per_stage)?;
        let elapsed = since.elapsed();
        let stands_still = |row: &ShardRow| {
            let heard_after = elapsed.saturating_sub(Duration::from_millis(row.heard_ms));
            let (id, now) = ((row.stage.clone(), row.shard), (row.epoch, row.batch));
            // Reaction has no batches.
            let has_moved = now == (0, 0) || before.get(&id).is_none_or(|before| now > *before);
            let goes_on = has_moved && !heard_after.is_zero();
            !(goes_on || (row.lag == 0 && heard_after > SETTLED))
        };
        let owners = shards(asked)?.into_iter().filter(|row| row.role == "owner");
        let stand_still: Vec<ShardRow> = owners.filter(stands_still).collect();
        ensure!(stand_still.is_empty(), "these stand still: {stand_still:#?}");
        Ok(Some(()))
    });
    with_logs(waited, pipeline)?;
    Ok(since.elapsed())
}

//! Pipelines whose workers follow a plan: publishing one, and seeing who owns what.

use crate::load::Sending;
use crate::pipeline::{Pipeline, Process, Settings, binary, until};
use anyhow::{Context, Result, bail, ensure};
use millstream::admin::ShardRow;
use millstream::cli::Admin;
use millstream_plan::file;
use millstream_plan::plan::ShardId;
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
    run_plan(pipeline, &["auto"]).map(drop)
}

/// What `millstream plan` prints.
fn run_plan(pipeline: &Pipeline, arguments: &[&str]) -> Result<String> {
    let config = pipeline.gateway()?.config();
    let output = Command::new(binary()?).arg("plan").args(arguments).arg("--config").arg(config).output()?;
    let said = String::from_utf8(output.stdout)?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "millstream plan {arguments:?}: {said}{error}");
    Ok(said)
}

/// What a worker says of every worker's shards.
///
/// # Errors
/// When it does not answer.
pub fn shards(process: &Process) -> Result<Vec<ShardRow>> {
    Ok(Admin::new(&process.admin_url())?.json("/v1/shards", &[])?)
}

/// The owner of each shard, by (stage, shard), by what one worker has heard.
///
/// # Errors
/// When a shard has none that was heard lately, or two.
pub fn owners(rows: &[ShardRow], shards_per_stage: u32) -> Result<BTreeMap<(String, u32), &ShardRow>> {
    let mut owners = BTreeMap::new();
    for row in rows.iter().filter(|row| row.role == "owner" && row.heard_ms < 3_000) {
        let id = (row.stage.clone(), row.shard);
        if let Some(other) = owners.insert(id.clone(), row) {
            bail!("{id:?} is owned by {} and {}", other.worker, row.worker);
        }
    }
    let expected = 3 * shards_per_stage as usize;
    ensure!(owners.len() == expected, "{} of {expected} shards have an owner: {:?}", owners.len(), owners.keys());
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
pub fn recovered(pipeline: &Pipeline, shards_per_stage: u32, without: &[&str]) -> Result<Duration> {
    let began = Instant::now();
    let asked = worker(pipeline, without)?;
    let waited = until("an owner of every shard", || {
        let rows = shards(asked)?;
        let owners = owners(&rows, shards_per_stage)?;
        let gone = owners.iter().find(|(_, owner)| without.contains(&owner.worker.as_str()));
        if let Some((id, owner)) = gone {
            bail!("{id:?} is still {}'s", owner.worker);
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

/// Publishes a plan in which the two workers of a stage have changed places, and waits until each has what was the other's.
///
/// # Errors
/// When a command fails, with what it said; when it takes too long.
pub fn swap(pipeline: &Pipeline, shards_per_stage: u32, stage: &str) -> Result<()> {
    let mut plan = file::parse(&run_plan(pipeline, &["show"])?, None)?;
    let swapped = |name: &str| match name.strip_prefix(stage) {
        Some("-0") => format!("{stage}-1"),
        Some("-1") => format!("{stage}-0"),
        _ => name.to_owned(),
    };
    for (_, placement) in plan.placements.iter_mut().filter(|(id, _)| id.stage == stage) {
        placement.owner = swapped(&placement.owner);
        placement.successors = placement.successors.iter().map(|name| swapped(name)).collect();
        placement.moving_to = None;
    }
    plan.version.number += 1;
    let written = tempfile::NamedTempFile::new()?;
    std::fs::write(written.path(), file::render(&plan)?)?;
    run_plan(pipeline, &["apply", "--file", &written.path().display().to_string()])?;
    let asked = worker(pipeline, &[])?;
    let waited = until("that the two have changed places", || {
        let rows = shards(asked)?;
        let owners = owners(&rows, shards_per_stage)?;
        let elsewhere = owners.into_iter().find(|((stage, shard), owner)| {
            let placement = plan.placements.get(&ShardId::new(stage.as_str(), *shard));
            placement.is_none_or(|placement| placement.owner != owner.worker)
        });
        ensure!(elsewhere.is_none(), "not yet: {elsewhere:?}");
        Ok(Some(()))
    });
    with_logs(waited, pipeline)
}

/// An owner that still says so long after a blow that nothing is left, when nothing comes any more, has nothing to do: that is measured every 5 s.
const SETTLED: Duration = Duration::from_secs(7);

/// What an owner had done when it was first heard of.
#[derive(Debug)]
struct Begun {
    /// Which process, and in which ownership.
    who: (String, u64),
    done: u64,
}

/// Reaction has no batches: its position counts.
fn done(row: &ShardRow) -> u64 {
    if row.stage == "reaction" { row.changelog_offset } else { row.batch }
}

/// Waits until every shard has an owner, none of these workers, that was heard of after `since` and works: it has done more than when it was first heard of, or the load is over and nothing is left; how
/// long that took.
///
/// # Errors
/// When that takes too long.
pub fn works_again(
    pipeline: &Pipeline,
    sending: &Sending,
    shards_per_stage: u32,
    without: &[&str],
    since: Instant,
) -> Result<Duration> {
    let asked = worker(pipeline, without)?;
    let mut begun: BTreeMap<(String, u32), Begun> = BTreeMap::new();
    let waited = until("work on every shard", || {
        let (elapsed, rows) = (since.elapsed(), shards(asked)?);
        let owners = owners(&rows, shards_per_stage)?;
        let mut works = |row: &ShardRow| {
            let heard_after = elapsed.saturating_sub(Duration::from_millis(row.heard_ms));
            if heard_after.is_zero() || without.contains(&row.worker.as_str()) {
                return false;
            }
            let begins = || Begun { who: (row.incarnation.clone(), row.epoch), done: done(row) };
            let begun = begun.entry((row.stage.clone(), row.shard)).or_insert_with(begins);
            if begun.who != begins().who {
                *begun = begins();
            }
            let has_nothing = || sending.left() == 0 && row.unread_ms == Some(0) && heard_after > SETTLED;
            done(row) > begun.done || has_nothing()
        };
        // All of them are looked at, so that each has begun.
        let stand_still: Vec<&&ShardRow> = owners.values().filter(|row| !works(row)).collect();
        ensure!(stand_still.is_empty(), "these stand still: {stand_still:#?}");
        Ok(Some(()))
    });
    with_logs(waited, pipeline)?;
    Ok(since.elapsed())
}

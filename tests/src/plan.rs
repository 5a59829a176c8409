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

/// Waits until every shard has an owner, and none of these workers; how long it took.
///
/// # Errors
/// When that takes too long.
pub fn recovered(pipeline: &Pipeline, shards: u32, without: &[&str]) -> Result<Duration> {
    let began = Instant::now();
    let asked = pipeline
        .processes
        .iter()
        .find(|process| process.role != "gateway" && process.is_running() && !without.contains(&process.name.as_str()));
    let asked = asked.context("no worker to ask")?;
    until("an owner of every shard", || {
        let owners = owners(asked, shards)?;
        let gone = owners.iter().find(|(_, owner)| without.contains(&owner.as_str()));
        if let Some((id, owner)) = gone {
            bail!("{id:?} is still {owner}'s");
        }
        Ok(Some(()))
    })?;
    Ok(began.elapsed())
}

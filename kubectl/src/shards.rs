//! `kubectl millstream shards`: moves a shard to a worker, and lets it go again.

use crate::change::FIELD_MANAGER;
use crate::cluster::Cluster;
use crate::wait::{Look, wait};
use crate::{Outcome, Waits, Where};
use anyhow::{Context, ensure};
use kube::api::{Patch, PatchParams};
use millstream_operator::admin::{PipelineShards, ShardRow};
use millstream_operator::pins::{self, Pins};
use millstream_plan::plan::ShardId;
use serde_json::json;

#[derive(Debug, Clone, clap::Subcommand)]
pub(crate) enum ShardsCommand {
    /// Move a shard to a worker, without a stop, and keep it there while that worker lives; another shard makes room for it
    Move {
        #[command(flatten)]
        which: Which,
        /// The worker that is to own it: the name of its Pod
        #[arg(long, value_name = "WORKER")]
        to: String,
        #[command(flatten)]
        waits: Waits,
    },
    /// Let the operator place a shard again that was moved by hand
    Unpin {
        #[command(flatten)]
        which: Which,
    },
}

/// A shard of a pipeline.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Which {
    /// The pipeline
    pipeline: String,
    /// The shard, as STAGE/NUMBER, for example action/3
    #[arg(value_parser = shard)]
    shard: ShardId,
    #[command(flatten)]
    place: Where,
}

fn shard(text: &str) -> Result<ShardId, String> {
    pins::parse_shard(text).ok_or_else(|| {
        format!(
            "`{text}` is no shard: write STAGE/NUMBER, where STAGE is unify, action or reaction, for example action/3"
        )
    })
}

pub(crate) async fn run(command: &ShardsCommand) -> anyhow::Result<Outcome> {
    match command {
        ShardsCommand::Move { which, to, waits } => move_to(which, to, waits).await,
        ShardsCommand::Unpin { which } => unpin(which).await,
    }
}

async fn move_to(which: &Which, to: &str, waits: &Waits) -> anyhow::Result<Outcome> {
    let cluster = Cluster::connect(&which.place).await?;
    let known = cluster.shards(&which.pipeline).await?;
    row(&known, &which.shard).with_context(|| format!("{} has no shard {}", which.pipeline, name(&which.shard)))?;
    let stage = &which.shard.stage;
    let prefix = format!("{}-{stage}-", which.pipeline);
    let able: Vec<&str> = known.workers.iter().map(String::as_str).filter(|name| name.starts_with(&prefix)).collect();
    ensure!(able.contains(&to), "{to} is no worker of {stage} that is alive; there are {}", able.join(", "));
    pin(&cluster, which, Some(to)).await?;
    wait(waits, || async { Ok(progress(&cluster.shards(&which.pipeline).await?, &which.shard, to)) }).await
}

async fn unpin(which: &Which) -> anyhow::Result<Outcome> {
    let cluster = Cluster::connect(&which.place).await?;
    let was_pinned = pin(&cluster, which, None).await?;
    let said = if was_pinned { "is the operator's to place again" } else { "was not moved by hand" };
    crate::print(format_args!("{} {said}\n", name(&which.shard)))?;
    Ok(Outcome::Good)
}

/// How often a write is tried that somebody else comes before: nobody changes a pipeline so often for long.
const ATTEMPTS: u32 = 20;

/// Writes where a shard is pinned, or that it is not; was it before? What others write meanwhile is not lost: it is looked at, and the write done again on top of it.
async fn pin(cluster: &Cluster, which: &Which, to: Option<&str>) -> anyhow::Result<bool> {
    let mut attempt = 1;
    loop {
        match try_pin(cluster, which, to).await? {
            Ok(was_pinned) => return Ok(was_pinned),
            Err(error) if attempt == ATTEMPTS => {
                return Err(error).context("somebody changes the pipeline all the time; try again");
            }
            Err(_) => attempt += 1,
        }
    }
}

/// Writes it if nobody has changed the pipeline since it was read; the inner error says that somebody has.
async fn try_pin(cluster: &Cluster, which: &Which, to: Option<&str>) -> anyhow::Result<Result<bool, kube::Error>> {
    let pipeline = cluster.pipeline(&which.pipeline).await?;
    let annotations = pipeline.metadata.annotations.as_ref();
    let text = annotations.and_then(|annotations| annotations.get(pins::ANNOTATION)).map_or("", String::as_str);
    // What cannot be read, the operator ignores, too.
    let (mut all, _): (Pins, _) = pins::parse(text, pipeline.spec.shards);
    let before = match to {
        Some(to) => all.insert(which.shard.clone(), to.to_owned()),
        None => all.remove(&which.shard),
    };
    // Nothing is pinned any more: no annotation.
    let text = (!all.is_empty()).then(|| pins::format(&all));
    let metadata = json!({
        "resourceVersion": pipeline.metadata.resource_version,
        "annotations": {pins::ANNOTATION: text},
    });
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let patch = Patch::Merge(json!({"metadata": metadata}));
    match cluster.pipelines().patch(&which.pipeline, &params, &patch).await {
        Ok(_) => Ok(Ok(before.is_some())),
        Err(kube::Error::Api(status)) if status.is_conflict() => Ok(Err(kube::Error::Api(status))),
        Err(error) => Err(error).context("changing the pipeline"),
    }
}

fn row<'a>(shards: &'a PipelineShards, id: &ShardId) -> Option<&'a ShardRow> {
    shards.shards.iter().find(|row| row.stage == id.stage && row.shard == id.shard)
}

fn name(id: &ShardId) -> String {
    format!("{}/{}", id.stage, id.shard)
}

/// How far a move is.
fn progress(shards: &PipelineShards, id: &ShardId, to: &str) -> Look {
    let (name, found) = (name(id), row(shards, id));
    let Some(row) = found else { return Look::Going(format!("{name} is not reported")) };
    if row.owner.as_deref() == Some(to) {
        return Look::Done(format!("{name} is {to}'s"));
    }
    let owner = row.owner.as_deref().unwrap_or("nobody");
    let going = match row.standbys.iter().find(|standby| standby.worker == to) {
        _ if row.planned == to => format!("{name}: {owner} hands it to {to}"),
        Some(_) => format!("{name} is {owner}'s; {to} follows it"),
        None => format!("{name} is {owner}'s; {to} does not follow it yet"),
    };
    Look::Going(going)
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_operator::admin::StandbyRow;

    #[test]
    fn each_step_of_a_move_is_told() {
        let said = |row: ShardRow| {
            let row = ShardRow { stage: "action".to_owned(), shard: 3, ..row };
            let shards = PipelineShards { shards: vec![row], ..PipelineShards::default() };
            match progress(&shards, &ShardId::new("action", 3), "b") {
                Look::Done(said) => format!("done: {said}"),
                Look::Going(said) => said,
            }
        };
        let row = |planned: &str, owner: Option<&str>, standbys: &[&str]| ShardRow {
            planned: planned.to_owned(),
            owner: owner.map(str::to_owned),
            standbys: standbys.iter().map(|name| StandbyRow { worker: (*name).to_owned(), lag: 0 }).collect(),
            ..ShardRow::default()
        };
        assert_eq!(said(row("a", Some("a"), &["c"])), "action/3 is a's; b does not follow it yet");
        assert_eq!(said(row("a", Some("a"), &["b"])), "action/3 is a's; b follows it");
        assert_eq!(said(row("b", Some("a"), &["b"])), "action/3: a hands it to b");
        assert_eq!(said(row("b", None, &["b"])), "action/3: nobody hands it to b");
        assert_eq!(said(row("b", Some("b"), &["a"])), "done: action/3 is b's");
    }

    #[test]
    fn a_shard_is_named_by_its_stage_and_number() {
        assert_eq!(shard("action/3"), Ok(ShardId::new("action", 3)));
        assert!(shard("gateway/3").unwrap_err().contains("unify, action or reaction"));
    }
}

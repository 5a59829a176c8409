//! `kubectl millstream status`: a pipeline as a tree of stages and shards.

use crate::cluster::Cluster;
use crate::{Outcome, Where};
use anyhow::Context;
use kube::ResourceExt;
use kube::api::ListParams;
use millstream_crds::{ConditionType, IngestionPipeline, StageStatus};
use millstream_operator::admin::{PipelineShards, ShardRow};
use millstream_plan::unread::age;
use serde_json::json;
use std::fmt::Write;

/// Arguments of `status`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct StatusArgs {
    /// The pipeline (default: all of the namespace)
    pipeline: Option<String>,
    /// Only this stage's shards
    #[arg(long, value_name = "STAGE", value_parser = ["unify", "action", "reaction"])]
    stage: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Where,
}

/// Bad while a pipeline is not ready, or something is wrong with it.
pub(crate) async fn run(args: &StatusArgs) -> anyhow::Result<Outcome> {
    let cluster = Cluster::connect(&args.place).await?;
    let pipelines = match &args.pipeline {
        Some(name) => vec![cluster.pipeline(name).await?],
        None => cluster.pipelines().list(&ListParams::default()).await.context("asking the API server")?.items,
    };
    if pipelines.is_empty() {
        crate::print(format_args!("no IngestionPipeline in namespace {}\n", cluster.namespace))?;
    }
    let (mut outcome, mut all) = (Outcome::Good, Vec::new());
    for pipeline in pipelines {
        if condition(&pipeline, ConditionType::Ready).is_none_or(|(status, _)| status != "True")
            || condition(&pipeline, ConditionType::Degraded).is_some_and(|(status, _)| status == "True")
        {
            outcome = Outcome::Bad;
        }
        let shards = cluster.shards(&pipeline.name_any()).await.map_err(|error| format!("{error:#}"));
        if args.json {
            let (shards, unknown) = match shards {
                Ok(shards) => (Some(shards), None),
                Err(error) => (None, Some(error)),
            };
            all.push(json!({"pipeline": pipeline, "shards": shards, "unknown": unknown}));
            continue;
        }
        let stage = args.stage.as_deref();
        crate::print(format_args!("{}", tree(&pipeline, shards.as_ref().map_err(String::as_str), stage)))?;
    }
    if args.json {
        crate::print(format_args!("{}\n", serde_json::to_string_pretty(&all)?))?;
    }
    Ok(outcome)
}

/// Status and message of a condition.
fn condition(pipeline: &IngestionPipeline, type_: ConditionType) -> Option<(&str, String)> {
    let mut conditions = pipeline.status.iter().flat_map(|status| &status.conditions);
    let found = conditions.find(|it| it.type_ == type_.as_str())?;
    let said =
        if found.message.is_empty() { found.reason.clone() } else { format!("{}: {}", found.reason, found.message) };
    Some((&found.status, said))
}

fn tree(pipeline: &IngestionPipeline, shards: Result<&PipelineShards, &str>, only: Option<&str>) -> String {
    let mut text = String::new();
    // Writing into a string does not fail.
    let _ = draw(&mut text, pipeline, shards, only);
    text
}

fn draw(
    text: &mut String,
    pipeline: &IngestionPipeline,
    shards: Result<&PipelineShards, &str>,
    only: Option<&str>,
) -> std::fmt::Result {
    let status = pipeline.status.clone().unwrap_or_default();
    let ready = match condition(pipeline, ConditionType::Ready) {
        Some(("True", _)) => "ready".to_owned(),
        Some((_, said)) => format!("not ready: {said}"),
        None => "not seen by an operator yet".to_owned(),
    };
    let owned = status.shards.as_ref().map(|shards| format!(", {shards} shards have an owner")).unwrap_or_default();
    let freshness = status.freshness.as_ref().map(|age| format!(", freshness {age}")).unwrap_or_default();
    let plan = status.plan.as_ref().map(|plan| format!(", plan {plan}")).unwrap_or_default();
    writeln!(text, "{}: {ready}{owned}{freshness}{plan}", pipeline.name_any())?;
    let told =
        [ConditionType::Degraded, ConditionType::Progressing, ConditionType::Paused, ConditionType::RetentionAtRisk];
    for type_ in told {
        if let Some(("True", said)) = condition(pipeline, type_) {
            writeln!(text, "│  {}: {said}", type_.as_str())?;
        }
    }
    let unknown = match shards {
        Ok(shards) => shards.problem.as_deref(),
        Err(error) => Some(error),
    };
    if let Some(why) = unknown {
        writeln!(text, "│  who has which shard is not known: {why}")?;
    }
    for (number, stage) in status.stages.iter().enumerate() {
        let is_last = number + 1 == status.stages.len();
        draw_stage(text, stage, is_last)?;
        let rows = shards.iter().flat_map(|shards| &shards.shards).filter(|row| row.stage == stage.name);
        let rows: Vec<&ShardRow> = rows.filter(|_| only.is_none_or(|only| only == stage.name)).collect();
        let width = rows.iter().map(|row| owner(row).len()).max().unwrap_or(0);
        for (number, row) in rows.iter().enumerate() {
            let trunk = if is_last { "   " } else { "│  " };
            let branch = if number + 1 == rows.len() { "└─" } else { "├─" };
            writeln!(text, "{trunk}{branch} {}", line(row, width))?;
        }
    }
    Ok(())
}

fn draw_stage(text: &mut String, stage: &StageStatus, is_last: bool) -> std::fmt::Result {
    let branch = if is_last { "└─" } else { "├─" };
    write!(text, "{branch} {}: {} of {} workers ready", stage.name, stage.ready_replicas, stage.replicas)?;
    if stage.shards_without_owner > 0 {
        write!(text, ", {} shards without owner", stage.shards_without_owner)?;
    }
    if stage.shards_without_standby > 0 {
        write!(text, ", {} shards without standby", stage.shards_without_standby)?;
    }
    writeln!(text)
}

fn owner(row: &ShardRow) -> &str {
    row.owner.as_deref().unwrap_or("(nobody)")
}

/// One shard: its owner, who follows, what is wrong.
fn line(row: &ShardRow, width: usize) -> String {
    let mut line = format!("{:>4}  {:width$}", row.shard, owner(row));
    if let Some(lag) = row.lag {
        line.push_str(&format!("  {lag} to read"));
    }
    if row.owner.is_some() {
        let unread = row.unread_ms.map_or_else(|| "unknown".to_owned(), age);
        line.push_str(&format!("  unread {unread}"));
    }
    let standbys: Vec<String> =
        row.standbys.iter().map(|standby| format!("{} ({} behind)", standby.worker, standby.lag)).collect();
    line.push_str(&match standbys.is_empty() {
        true => "  no standby".to_owned(),
        false => format!("  standby {}", standbys.join(", ")),
    });
    if row.owner.as_ref() != Some(&row.planned) {
        line.push_str(&format!("  to be {}'s", row.planned));
    }
    if !row.condition.is_empty() {
        line.push_str(&format!("  {}", row.condition));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_operator::admin::StandbyRow;

    fn pipeline() -> IngestionPipeline {
        let condition = |type_: &str, status: &str, message: &str| json!({"type": type_, "status": status, "reason": "Why", "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z"});
        serde_json::from_value(json!({
            "apiVersion": "ingestion.millstream.dev/v1alpha1", "kind": "IngestionPipeline",
            "metadata": {"name": "orders", "namespace": "shop"},
            "spec": {"image": "i", "kafka": {"bootstrapServers": ["k:1"]}, "documentStore": {"mongodb": {"uri": {"name": "m", "key": "uri"}}}},
            "status": {
                "conditions": [condition("Ready", "False", "action: 1 of 2"), condition("Degraded", "False", ""), condition("Paused", "True", "")],
                "shards": "1/2", "plan": "1.7", "freshness": "unknown",
                "stages": [
                    {"name": "action", "replicas": 2, "readyReplicas": 1, "shardsWithoutOwner": 1},
                    {"name": "gateway", "replicas": 2, "readyReplicas": 2},
                ],
            },
        }))
        .unwrap()
    }

    #[test]
    fn the_tree_shows_stages_and_shards() {
        let standbys = [StandbyRow { worker: "orders-action-1".to_owned(), lag: 3 }];
        let row = |shard, owner: Option<&str>, condition: &str| ShardRow {
            stage: "action".to_owned(),
            shard,
            planned: "orders-action-0".to_owned(),
            owner: owner.map(str::to_owned),
            lag: owner.map(|_| 12),
            unread_ms: owner.map(|_| 250_000),
            standbys: standbys.iter().filter(|_| owner.is_some()).cloned().collect(),
            condition: condition.to_owned(),
        };
        let shards = vec![row(0, Some("orders-action-0"), ""), row(1, None, "the disk is full")];
        let shards = PipelineShards { shards, ..PipelineShards::default() };
        let expected = "\
orders: not ready: Why: action: 1 of 2, 1/2 shards have an owner, freshness unknown, plan 1.7
│  Paused: Why
├─ action: 1 of 2 workers ready, 1 shards without owner
│  ├─    0  orders-action-0  12 to read  unread 4m  standby orders-action-1 (3 behind)
│  └─    1  (nobody)         no standby  to be orders-action-0's  the disk is full
└─ gateway: 2 of 2 workers ready
";
        assert_eq!(tree(&pipeline(), Ok(&shards), None), expected);
        let short = tree(&pipeline(), Err("no operator leads"), None);
        assert!(short.contains("│  who has which shard is not known: no operator leads\n├─ action"), "{short}");
    }
}

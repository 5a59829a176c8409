//! `kubectl millstream pause` and `resume`.

use crate::cluster::Cluster;
use crate::wait::{Look, wait};
use crate::{Outcome, Waits, Where};
use anyhow::Context;
use kube::api::{Patch, PatchParams};
use millstream_crds::{ConditionType, IngestionPipeline};
use serde_json::json;

/// Who we are to the API server.
pub(crate) const FIELD_MANAGER: &str = "kubectl-millstream";

/// Arguments of `pause` and `resume`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ChangeArgs {
    /// The pipeline
    pipeline: String,
    #[command(flatten)]
    place: Where,
    #[command(flatten)]
    waits: Waits,
}

pub(crate) async fn run(args: &ChangeArgs, paused: bool) -> anyhow::Result<Outcome> {
    let cluster = Cluster::connect(&args.place).await?;
    let before = cluster.pipeline(&args.pipeline).await?;
    if before.spec.paused == paused {
        let is = if paused { "is paused already" } else { "is not paused" };
        crate::print(format_args!("{} {is}\n", args.pipeline))?;
        return Ok(Outcome::Good);
    }
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let patch = Patch::Merge(json!({"spec": {"paused": paused}}));
    let changed = cluster.pipelines().patch(&args.pipeline, &params, &patch).await.context("changing the pipeline")?;
    wait(&args.waits, || async {
        let now = cluster.pipeline(&args.pipeline).await?;
        let (wanted, done) = if paused { ("True", "paused") } else { ("False", "resumed") };
        Ok(match is_said(&now, wanted, changed.metadata.generation) {
            true => Look::Done(format!("{} is {done}", args.pipeline)),
            false => Look::Going("waiting for the operator to notice".to_owned()),
        })
    })
    .await
}

/// The condition `Paused` has this status, of this generation or a later one.
fn is_said(pipeline: &IngestionPipeline, wanted: &str, generation: Option<i64>) -> bool {
    let mut conditions = pipeline.status.iter().flat_map(|status| &status.conditions);
    conditions.any(|it| {
        it.type_ == ConditionType::Paused.as_str() && it.status == wanted && it.observed_generation >= generation
    })
}

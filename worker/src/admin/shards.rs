//! `/v1/shards`: who has which shard.

use super::{AdminState, answer, failed, no_shards};
use crate::runtime::membership::Heard;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use millstream_plan::plan::ShardId;
use millstream_plan::status::{Role, ShardStatus, WorkerStatus};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// One shard in one worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct ShardRow {
    /// The stage.
    pub stage: String,
    /// The shard.
    pub shard: u32,
    /// `owner`, `standby` or `opening`.
    pub role: String,
    /// The worker.
    pub worker: String,
    /// Which process of that name; empty for one that follows no plan.
    pub incarnation: String,
    /// Epoch of the newest ownership record that it knows.
    pub epoch: u64,
    /// Number of the newest batch.
    pub batch: u64,
    /// Offset in the changelog from which a follower of its local state would read; of reaction, in `mutations`, from which the next owner would.
    pub changelog_offset: u64,
    /// Messages that it has not read: a standby of the changelog, an owner of its inputs.
    pub lag: u64,
    /// An owner: how old what it has not processed is at most, milliseconds; 0: nothing is left. Null: not known, or it is none.
    pub unread_ms: Option<u64>,
    /// Digest of the chain of batches, 16 hex digits: equal for two that are at the same batch.
    pub digest: String,
    /// A standby that could take over by a handoff at once.
    pub prepared: bool,
    /// What is wrong; empty: nothing.
    pub condition: String,
    /// Failure domain.
    pub zone: String,
    /// Machine.
    pub node: String,
    /// The worker gives its shards away.
    pub leaving: bool,
    /// How long ago the worker was heard, milliseconds.
    pub heard_ms: u64,
}

impl ShardRow {
    /// A shard of a worker.
    pub fn of(worker: &str, id: &ShardId, status: &ShardStatus) -> ShardRow {
        let role = match status.role {
            Role::Owner => "owner",
            Role::Standby => "standby",
            Role::Opening => "opening",
        };
        ShardRow {
            stage: id.stage.clone(),
            shard: id.shard,
            role: role.to_owned(),
            worker: worker.to_owned(),
            epoch: status.epoch,
            batch: status.batch_number,
            changelog_offset: status.changelog_offset,
            lag: status.lag,
            unread_ms: status.unread_ms,
            digest: format!("{:016x}", status.digest),
            prepared: status.prepared.is_some(),
            condition: status.condition.clone(),
            ..ShardRow::default()
        }
    }

    /// All shards in a report.
    pub fn all(heard: &Heard) -> Vec<ShardRow> {
        let WorkerStatus { worker, incarnation, zone, node, leaving, shards, .. } = &heard.status;
        let row = |(id, status): (&ShardId, &ShardStatus)| ShardRow {
            incarnation: incarnation.to_string(),
            zone: zone.clone(),
            node: node.clone(),
            leaving: *leaving,
            heard_ms: heard.ago_ms,
            ..ShardRow::of(worker, id, status)
        };
        shards.iter().map(row).collect()
    }
}

pub(super) async fn shards(State(state): State<AdminState>) -> Response {
    let Some(inspect) = state.inspect else { return no_shards() };
    match tokio::task::spawn_blocking(move || inspect.shards()).await {
        Ok(mut rows) => {
            rows.sort();
            answer(StatusCode::OK, &json!(rows))
        }
        Err(error) => failed(&error),
    }
}

//! Makes the plan: a pure function of (workers alive, shards, what stands where, previous plan).
//!
//! In this order, and each step changes as little as it can:
//!
//! 1. *Owners* ([`seat`]): a shard stays with its owner while that lives; the shard of a dead one goes to the first live successor, at once.
//! 2. *Quotas* ([`quota`]): how many shards of a stage each worker should have: its share by capacity, rounded down or up.
//! 3. *Moves* ([`moves`]): shards of leaving workers, those that are pinned elsewhere, then those of workers above their quota, which go to those below it. At most k shards are in motion, and a
//!    shard moves in steps, so that it leaves a live owner only for a worker that has caught up:
//!
//! ```text
//! owner A, successors [S, …]             B is chosen: `moving_to: B`
//! owner A, successors [S, B, …] warm 2   B follows; S stays first, for it could take over now
//! owner A, successors [B, …]    warm ≥ 1 B has caught up: first, so that it prepares
//! owner B, successors [A, …]             B is still caught up: A hands off; in motion until A has it no more
//! ```
//! 4. *Successors* ([`successors`]): on another node and zone when there is one, spread evenly, otherwise those there were.
//!
//! The only memory is the previous plan, so that any operator can go on where another stopped. What would say the same as the previous plan
//! is the previous plan, with its number: applied to its own result with the same input the function comes to rest.

mod moves;
#[cfg(test)]
mod properties;
mod quota;
mod seat;
mod successors;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;

use crate::plan::{Plan, ShardId, Version};
use moves::Balance;
use seat::Stage;
use std::collections::{BTreeMap, BTreeSet};

/// A worker that is alive.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Worker {
    /// Its name.
    pub name: String,
    /// Failure domain; empty: not known.
    pub zone: String,
    /// Machine; empty: not known.
    pub node: String,
    /// Relative to other workers: one of 2 gets twice the shards of one of 1.
    pub capacity: u32,
    /// Its shards go elsewhere, and it gets none.
    pub leaving: bool,
    /// Stages whose shards it can own.
    pub stages: BTreeSet<String>,
}

/// What live workers report of a shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The worker that owns it in fact.
    pub holder: Option<String>,
    /// How far each standby is behind, in changelog messages.
    pub lags: BTreeMap<String, u64>,
    /// Those that have tried in vain to open it.
    pub unable: BTreeSet<String>,
}

/// Bounds of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// So many shards may be in motion at once.
    pub moves: usize,
    /// Successors per shard. (A shard has one more while a new first one catches up.)
    pub successors: usize,
    /// So many of them are warm standbys. (One more while a new first one catches up; at least one while the shard moves.)
    pub warm: u32,
    /// A standby that is at most so many changelog messages behind has caught up.
    pub lag: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        // A shard writes a changelog message per batch, 20 per second: 40 are 2 s, which a standby that keeps up is never behind, and one that
        // is still restoring always.
        Limits { moves: 2, successors: 2, warm: 1, lag: 40 }
    }
}

/// What a plan is made from. The order of `workers` does not matter.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Of the operator that asks.
    pub term: u64,
    /// Of the pipeline.
    pub generation: u32,
    /// Those that are alive, and only those.
    pub workers: &'a [Worker],
    /// Each stage with its number of shards.
    pub stages: &'a BTreeMap<String, u32>,
    /// What is known of each shard.
    pub standings: &'a BTreeMap<ShardId, Standing>,
    /// The plan that counts now.
    pub previous: Option<&'a Plan>,
    /// Who is to own a shard whatever the balance; counts while that worker lives, stays, and is able to.
    pub pinned: &'a BTreeMap<ShardId, String>,
    /// Bounds.
    pub limits: Limits,
}

/// Why a shard moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Its owner leaves.
    Leaving,
    /// It is pinned to another worker.
    Pinned,
    /// Its owner has more than its share.
    Balance,
    /// Another worker has it than the plan says.
    Misplaced,
}

/// How far a move is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Not begun: as many shards as may be are in motion already.
    Waiting,
    /// The next owner catches up; so many changelog messages behind, if it said so.
    CatchingUp {
        /// Changelog messages.
        lag: Option<u64>,
    },
    /// The plan names the next owner; the former one has not handed off yet.
    HandingOver,
}

/// A shard that is in motion or waits for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Move {
    /// Which.
    pub shard: ShardId,
    /// Who has it.
    pub from: String,
    /// Who gets it.
    pub to: String,
    /// Why.
    pub reason: Reason,
    /// How far it is.
    pub step: Step,
}

/// A plan, and what it leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The plan: to be published if its version is not the previous one's.
    pub plan: Plan,
    /// What is still to be done, by shard.
    pub pending: Vec<Move>,
    /// Shards that nobody who is alive could own, and that were never placed.
    pub unplaced: Vec<ShardId>,
}

/// Makes the next plan.
pub fn plan(input: &Input<'_>) -> Outcome {
    // By name, so that the order of the input is forgotten.
    let workers: BTreeMap<&str, &Worker> = input.workers.iter().map(|worker| (worker.name.as_str(), worker)).collect();
    let mut stages: Vec<Stage<'_>> =
        input.stages.iter().map(|(name, shards)| Stage::new(name, *shards, &workers, input)).collect();
    let mut pending = Balance::new(&mut stages).carry_out(input);
    let mut unplaced = Vec::new();
    let mut placements = BTreeMap::new();
    for stage in &stages {
        pending.extend(stage.handing_over());
        unplaced.extend(stage.unplaced());
        placements.extend(stage.kept());
        placements.extend(successors::of_stage(stage, &input.limits));
    }
    pending.sort();
    Outcome { plan: numbered(placements, input), pending, unplaced }
}

/// The previous plan, if it says the same; else a new number.
fn numbered(placements: BTreeMap<ShardId, crate::plan::Placement>, input: &Input<'_>) -> Plan {
    if let Some(previous) = input.previous
        && previous.generation == input.generation
        && previous.placements == placements
    {
        return previous.clone();
    }
    let before = input.previous.map_or(Version::default(), |previous| previous.version);
    let version = Version { term: input.term.max(before.term), number: before.number.saturating_add(1) };
    Plan { version, generation: input.generation, placements }
}

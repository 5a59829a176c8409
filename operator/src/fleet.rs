//! What a pipeline's workers report of its shards, as the pure steps see it.

use millstream_plan::plan::{ShardId, Version};
use millstream_plan::planner::Outcome;
use millstream_plan::status::WorkerStatus;
use millstream_plan::view::View;
use std::collections::{BTreeMap, BTreeSet};

/// Longer than a worker takes to start again on the node that it was on.
const RETURNS_MS: u64 = 15_000;

/// A pipeline's shards, and who has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fleet {
    /// The plan in force.
    pub plan: Version,
    /// Every shard of every stage.
    pub shards: BTreeMap<ShardId, Shard>,
    /// Workers that are alive.
    pub alive: BTreeSet<String>,
    /// Workers that could take shards, now or in a moment: alive, or silent for so short a time that they may only be starting again.
    pub takers: BTreeSet<String>,
    /// What they run.
    pub versions: BTreeSet<String>,
    /// Shards that move, or wait for it.
    pub moving: usize,
    /// Some that own shards do not know their zone.
    pub is_zoneless: bool,
    /// Workers that are to leave, and whose shards have not got any further for long ([`crate::departures`]).
    pub stalled: BTreeSet<String>,
}

/// One shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shard {
    /// Who is to own it.
    pub planned: String,
    /// Who owns it, and is alive.
    pub owner: Option<String>,
    /// Who follows it, and is alive.
    pub standbys: BTreeSet<String>,
    /// What its owner, or who opens it, says is wrong; empty: nothing.
    pub condition: String,
}

impl Fleet {
    /// As a view has it after a turn that came to this; of one who does not lead, what it came to is only what would be.
    pub fn of(view: &View, outcome: &Outcome, is_leading: bool, now_ms: u64) -> Fleet {
        let standings = view.standings(now_ms);
        let mut shards: BTreeMap<ShardId, Shard> = BTreeMap::new();
        let plan = if is_leading { Some(&outcome.plan) } else { view.plan() };
        for (id, placement) in plan.into_iter().flat_map(|plan| &plan.placements) {
            let standing = standings.get(id);
            let shard = Shard {
                planned: placement.owner.clone(),
                owner: standing.and_then(|standing| standing.holder.clone()),
                standbys: standing.map(|standing| standing.lags.keys().cloned().collect()).unwrap_or_default(),
                condition: String::new(),
            };
            shards.insert(id.clone(), shard);
        }
        let alive: BTreeSet<String> = view.alive(now_ms).into_iter().map(|worker| worker.name).collect();
        for (report, _) in view.reports().filter(|(report, _)| alive.contains(&report.worker)) {
            for (id, status) in report.shards.iter().filter(|(_, status)| !status.condition.is_empty()) {
                let concerned = shards.get_mut(id).filter(|shard| {
                    shard.owner.as_ref().is_none_or(|owner| *owner == report.worker) && shard.condition.is_empty()
                });
                if let Some(shard) = concerned {
                    shard.condition = format!("{}: {}", report.worker, status.condition);
                }
            }
        }
        let is_taker = |report: &WorkerStatus, at_ms: u64| {
            let is_young = now_ms.saturating_sub(at_ms) < RETURNS_MS && !report.leaving;
            is_young || alive.contains(&report.worker)
        };
        let takers = view.reports().filter(|(report, at_ms)| is_taker(report, *at_ms));
        let takers = takers.map(|(report, _)| report.worker.clone()).collect();
        let living = || view.reports().map(|(report, _)| report).filter(|report| alive.contains(&report.worker));
        let is_zoneless = living().any(|report| report.zone.is_empty() && !report.shards.is_empty());
        let versions = living().map(|report| report.version.clone()).filter(|version| !version.is_empty()).collect();
        let in_force = view.plan().map(|plan| plan.version).unwrap_or_default();
        let (plan, moving) = if is_leading { (outcome.plan.version, outcome.pending.len()) } else { (in_force, 0) };
        Fleet { plan, shards, alive, takers, versions, moving, is_zoneless, stalled: BTreeSet::new() }
    }

    /// It is alive, and owns a shard or is about to.
    pub fn holds(&self, worker: &str) -> bool {
        let is_its = |shard: &Shard| shard.owner.as_deref() == Some(worker) || shard.planned == worker;
        self.alive.contains(worker) && self.shards.values().any(is_its)
    }

    /// The shards of a stage.
    pub fn of_stage<'a>(&'a self, stage: &'a str) -> impl Iterator<Item = (&'a ShardId, &'a Shard)> {
        self.shards.iter().filter(move |(id, _)| id.stage == stage)
    }
}

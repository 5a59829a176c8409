//! A world in which plans are followed, for the tests: standbys catch up in one step, handoffs take one.

use super::*;
use crate::plan::Placement;

/// A standby that has just opened is so far behind.
const BEHIND: u64 = 1_000;

#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) workers: Vec<Worker>,
    pub(super) stages: BTreeMap<String, u32>,
    pub(super) pinned: BTreeMap<ShardId, String>,
    pub(super) limits: Limits,
    pub(super) term: u64,
    pub(super) generation: u32,
    pub(super) plan: Option<Plan>,
    pub(super) standings: BTreeMap<ShardId, Standing>,
}

impl World {
    pub(super) fn new(workers: Vec<Worker>, stages: BTreeMap<String, u32>, limits: Limits) -> World {
        World {
            workers,
            stages,
            pinned: BTreeMap::new(),
            limits,
            term: 1,
            generation: 1,
            plan: None,
            standings: BTreeMap::new(),
        }
    }

    /// Makes the next plan without following it.
    pub(super) fn look(&self) -> Outcome {
        plan(&Input {
            term: self.term,
            generation: self.generation,
            workers: &self.workers,
            stages: &self.stages,
            standings: &self.standings,
            previous: self.plan.as_ref(),
            pinned: &self.pinned,
            limits: self.limits,
        })
    }

    /// Makes the next plan; everybody does what it says.
    pub(super) fn step(&mut self) -> Outcome {
        let outcome = self.look();
        self.adopt(outcome.plan.clone());
        for (id, placement) in &outcome.plan.placements {
            let standing = self.standings.remove(id).unwrap_or_default();
            let standing = self.follow(placement, &standing);
            self.standings.insert(id.clone(), standing);
        }
        outcome
    }

    /// This plan was published; the owners that it names hold their shards if nobody else who lives does.
    pub(super) fn adopt(&mut self, plan: Plan) {
        for (id, placement) in &plan.placements {
            let dead = |holder: &String| !self.workers.iter().any(|worker| worker.name == *holder);
            let standing = self.standings.entry(id.clone()).or_default();
            if standing.holder.as_ref().is_none_or(dead) {
                standing.holder = Some(placement.owner.clone());
            }
        }
        self.plan = Some(plan);
    }

    fn follow(&self, placement: &Placement, before: &Standing) -> Standing {
        let alive = |name: &&String| self.workers.iter().any(|worker| worker.name == **name);
        // Whoever was prepared as first successor is the owner's heir at once; another needs the next step.
        let ready = before.lags.get(&placement.owner).is_some_and(|lag| *lag == 0);
        let holder = if ready { Some(placement.owner.clone()) } else { before.holder.clone() };
        let mut lags = BTreeMap::new();
        let opens = (holder.as_ref() != Some(&placement.owner)).then_some(&placement.owner);
        for name in placement.successors.iter().take(placement.warm as usize).chain(opens).filter(alive) {
            let had_it = before.lags.contains_key(name) || before.holder.as_ref() == Some(name);
            lags.insert(name.clone(), if had_it { 0 } else { BEHIND });
        }
        Standing { holder, lags, unable: before.unable.clone() }
    }

    /// Steps until nothing changes any more; how many that took, if it was fewer than `most`.
    pub(super) fn settle(&mut self, most: usize) -> Option<usize> {
        (0..most).find(|_| {
            let before = (self.plan.clone(), self.standings.clone());
            let pending = self.step().pending;
            pending.is_empty() && before == (self.plan.clone(), self.standings.clone())
        })
    }

    /// Shards that each worker owns of a stage.
    pub(super) fn owned(&self, stage: &str) -> BTreeMap<String, usize> {
        let mut owned: BTreeMap<String, usize> = self.workers.iter().map(|worker| (worker.name.clone(), 0)).collect();
        for (id, placement) in self.placements().iter().filter(|(id, _)| id.stage == stage) {
            assert!(owned.contains_key(&placement.owner), "{id} is owned by {}, who is dead", placement.owner);
            *owned.entry(placement.owner.clone()).or_default() += 1;
        }
        owned
    }

    pub(super) fn placements(&self) -> BTreeMap<ShardId, Placement> {
        self.plan.as_ref().map(|plan| plan.placements.clone()).unwrap_or_default()
    }

    pub(super) fn kill(&mut self, name: &str) {
        self.workers.retain(|worker| worker.name != name);
        self.standings.values_mut().for_each(|standing| standing.lags.retain(|worker, _| worker != name));
        for standing in self.standings.values_mut().filter(|standing| standing.holder.as_deref() == Some(name)) {
            standing.holder = None;
        }
    }

    pub(super) fn set_leaving(&mut self, name: &str, leaving: bool) {
        self.workers.iter_mut().filter(|worker| worker.name == name).for_each(|worker| worker.leaving = leaving);
    }
}

pub(super) fn worker(name: &str, zone: &str, node: &str) -> Worker {
    let stages = BTreeSet::from(["action".to_owned(), "unify".to_owned()]);
    Worker { name: name.into(), zone: zone.into(), node: node.into(), capacity: 1, leaving: false, stages }
}

//! Successors: who takes over, in which order, and who of them follows the changelog.
//!
//! A candidate is better, in this order: on another node and zone than the owner, then on another than the successors chosen already; not loaded far
//! beyond its share; a successor of the shard before; a successor of few shards of the same owner, so that the shards of a dead
//! worker spread over many; little loaded.
//!
//! *Nobody cold is put before somebody warm.* A new first successor stands behind the present one, which has caught up, until it has caught up itself:
//! were the owner to die in between, the shard would wait for a restore while a copy of its state stands by.

use super::seat::{Seat, Stage};
use super::{Limits, Worker};
use crate::plan::{Placement, ShardId};
use std::collections::BTreeMap;

/// The placements of a stage's shards.
pub(super) fn of_stage<'a>(
    stage: &'a Stage<'a>,
    limits: &'a Limits,
) -> impl Iterator<Item = (ShardId, Placement)> + 'a {
    let mut loads = Loads::new(stage);
    stage.seats.iter().filter_map(move |(shard, seat)| {
        let owner = seat.owner?;
        let placement = Choice { stage, limits, seat, owner }.placement(&mut loads);
        Some((ShardId::new(stage.name, *shard), placement))
    })
}

/// How often workers were chosen so far, in the order of the shards.
struct Loads<'a> {
    /// By place in the list and worker.
    chosen: BTreeMap<(usize, &'a str), u64>,
    /// By owner and worker.
    pairs: BTreeMap<(&'a str, &'a str), u64>,
    /// Of how many shards a worker should be first successor, and second, and so on, with slack.
    bounds: BTreeMap<&'a str, u64>,
}

impl<'a> Loads<'a> {
    fn new(stage: &Stage<'a>) -> Loads<'a> {
        let takers = || stage.members.values().filter(|worker| !worker.leaving);
        let total: u64 = takers().map(|worker| weight(worker)).sum();
        let shards = stage.seats.len() as u64;
        // A quarter above its share, and one: who is a successor stays it when workers come and go, unless that is far from even.
        let bound = |worker: &Worker| (shards * weight(worker) * 5).div_ceil(total.max(1) * 4) + 1;
        let bounds = takers().map(|worker| (worker.name.as_str(), bound(worker)));
        Loads { chosen: BTreeMap::new(), pairs: BTreeMap::new(), bounds: bounds.collect() }
    }

    fn chosen(&self, place: usize, worker: &'a str) -> u64 {
        self.chosen.get(&(place, worker)).copied().unwrap_or_default()
    }

    fn pairs(&self, owner: &'a str, worker: &'a str) -> u64 {
        self.pairs.get(&(owner, worker)).copied().unwrap_or_default()
    }

    fn is_full(&self, place: usize, worker: &'a str) -> bool {
        self.bounds.get(worker).is_some_and(|bound| self.chosen(place, worker) >= *bound)
    }

    fn count(&mut self, place: usize, owner: &'a str, worker: &'a str) {
        *self.chosen.entry((place, worker)).or_default() += 1;
        *self.pairs.entry((owner, worker)).or_default() += 1;
    }
}

fn weight(worker: &Worker) -> u64 {
    u64::from(worker.capacity.max(1))
}

/// The successors of one shard.
struct Choice<'c, 'a> {
    stage: &'c Stage<'a>,
    limits: &'c Limits,
    seat: &'c Seat<'a>,
    owner: &'a str,
}

impl<'a> Choice<'_, 'a> {
    fn placement(&self, loads: &mut Loads<'a>) -> Placement {
        let mut successors = self.wanted(loads);
        let moving = self.seat.moving_to.is_some();
        let mut warm = if moving { self.limits.warm.max(1) } else { self.limits.warm };
        if let Some(ready) = successors.first().and_then(|first| self.better_now(first)) {
            successors.retain(|worker| *worker != ready);
            successors.insert(0, ready);
            warm = warm.max(1) + 1;
        }
        Placement {
            owner: self.owner.to_owned(),
            warm: warm.min(successors.len() as u32),
            successors: successors.into_iter().map(str::to_owned).collect(),
            moving_to: self.seat.moving_to.map(str::to_owned),
        }
    }

    /// Those that it should have: whom it moves to, then the best.
    fn wanted(&self, loads: &mut Loads<'a>) -> Vec<&'a str> {
        let mut wanted: Vec<&'a str> = self.seat.moving_to.into_iter().collect();
        let places = self.limits.successors.max(wanted.len());
        while wanted.len() < places {
            let candidates = self.stage.members.keys().copied().filter(|worker| self.can_succeed(worker, &wanted));
            let Some(best) = candidates.min_by_key(|worker| self.rating(worker, &wanted, loads)) else { break };
            wanted.push(best);
        }
        wanted.iter().enumerate().for_each(|(place, worker)| loads.count(place, self.owner, worker));
        wanted
    }

    fn can_succeed(&self, worker: &str, chosen: &[&str]) -> bool {
        self.stage.takes(worker) && worker != self.owner && !chosen.contains(&worker)
    }

    /// Smaller is better.
    fn rating(&self, worker: &'a str, chosen: &[&str], loads: &Loads<'a>) -> impl Ord + use<'a> {
        let place = chosen.len();
        let near_chosen = chosen.iter().map(|other| self.nearness(worker, other)).max().unwrap_or_default();
        (
            self.nearness(worker, self.owner),
            near_chosen,
            loads.is_full(place, worker),
            self.rank_before(worker),
            loads.pairs(self.owner, worker),
            loads.chosen(place, worker),
            worker,
        )
    }

    /// 0: in another zone and on another node; 1: only on another node; 2: on the same node. What is not known is taken for different.
    fn nearness(&self, worker: &str, other: &str) -> u8 {
        let (Some(worker), Some(other)) = (self.stage.members.get(worker), self.stage.members.get(other)) else {
            return 0;
        };
        let same = |left: &str, right: &str| !left.is_empty() && left == right;
        if same(&worker.node, &other.node) { 2 } else { u8::from(same(&worker.zone, &other.zone)) }
    }

    /// The previous owner, then the previous successors: they have the state already, or most of it.
    fn incumbents(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let owner = self.owner;
        self.seat.previous.into_iter().flat_map(Placement::claimants).filter(move |worker| *worker != owner)
    }

    fn rank_before(&self, worker: &str) -> usize {
        self.incumbents().position(|incumbent| incumbent == worker).unwrap_or(usize::MAX)
    }

    /// Who stands first for now instead of `first`, which has not caught up: an incumbent that has.
    ///
    /// A first successor that falls behind stays first: it was warm, and lag that comes and goes must not make plans.
    fn better_now(&self, first: &str) -> Option<&'a str> {
        let was_first = self.seat.previous.and_then(|previous| previous.successors.first());
        if was_first.is_some_and(|was| was == first) || self.is_ready(first) {
            return None;
        }
        let live = |worker: &&'a str| self.can_succeed(worker, &[]) && self.is_ready(worker);
        let name = self.incumbents().find(live)?;
        self.stage.members.get_key_value(name).map(|(name, _)| *name)
    }

    /// Has the shard's state: it has caught up, or has the shard still.
    fn is_ready(&self, worker: &str) -> bool {
        self.seat.held_by == Some(worker) || self.seat.caught_up(worker, self.limits)
    }
}

//! Moves: from those that leave or have too much to those that have too little.
//!
//! Shards in motion count for where they go, so that the sums do not change while moves are carried out: what was begun is not begun anew elsewhere.

use super::quota::{Share, quotas};
use super::seat::{Seat, Stage};
use super::{Input, Move, Reason, Step};
use crate::plan::ShardId;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Numbers of shards, by worker.
type Counts<'a> = BTreeMap<&'a str, usize>;

/// The stages with what each worker has and should have of each.
pub(super) struct Balance<'s, 'a> {
    stages: Vec<StageBalance<'s, 'a>>,
}

struct StageBalance<'s, 'a> {
    stage: &'s mut Stage<'a>,
    quotas: Counts<'a>,
    counts: Counts<'a>,
}

impl<'s, 'a> Balance<'s, 'a> {
    pub(super) fn new(stages: &'s mut [Stage<'a>]) -> Balance<'s, 'a> {
        let mut elsewhere = Counts::new();
        let mut balanced = Vec::new();
        for stage in stages {
            let balance = StageBalance::new(stage, &elsewhere);
            balance.quotas.iter().for_each(|(worker, quota)| *elsewhere.entry(worker).or_default() += quota);
            balanced.push(balance);
        }
        Balance { stages: balanced }
    }

    /// Places what has no owner, gives up moves that do not help any more, and begins new ones as far as the limit allows; says what
    /// moves and what waits.
    pub(super) fn carry_out(mut self, input: &Input<'a>) -> Vec<Move> {
        let anybody_leaves = self.stages.iter().any(StageBalance::is_left);
        for stage in &mut self.stages {
            stage.place();
            stage.give_up();
            if anybody_leaves {
                stage.give_way();
            }
        }
        let in_motion: usize = self.stages.iter().map(|stage| stage.in_motion()).sum();
        let mut left = input.limits.moves.saturating_sub(in_motion);
        let mut pending: Vec<Move> = self.stages.iter().flat_map(StageBalance::under_way).collect();
        // What leaves, leaves first, whatever its stage.
        for reason in [Reason::Leaving, Reason::Balance] {
            for stage in &mut self.stages {
                if reason == Reason::Balance {
                    stage.begin_pinned(&mut left, &mut pending);
                }
                stage.begin(reason, &mut left, &mut pending);
            }
        }
        pending
    }
}

impl<'s, 'a> StageBalance<'s, 'a> {
    fn new(stage: &'s mut Stage<'a>, elsewhere: &Counts<'a>) -> StageBalance<'s, 'a> {
        let mut counts = Counts::new();
        for worker in stage.seats.values().filter_map(Seat::destination) {
            *counts.entry(worker).or_default() += 1;
        }
        let takers = stage.members.values().filter(|worker| !worker.leaving);
        let shares: Vec<Share<'a>> = takers
            .map(|worker| Share {
                name: &worker.name,
                capacity: worker.capacity,
                owned: count(&counts, &worker.name),
                elsewhere: count(elsewhere, &worker.name),
            })
            .collect();
        let quotas = quotas(&shares, stage.seats.len());
        StageBalance { stage, quotas, counts }
    }

    fn in_motion(&self) -> usize {
        self.stage.seats.values().filter(|seat| seat.in_motion()).count()
    }

    fn leaves(&self, worker: &str) -> bool {
        !self.stage.takes(worker)
    }

    /// How far a worker is above its quota.
    fn excess(&self, worker: &str) -> usize {
        count(&self.counts, worker).saturating_sub(count(&self.quotas, worker))
    }

    /// How far a worker is below its quota.
    fn room(&self, worker: &str) -> usize {
        count(&self.quotas, worker).saturating_sub(count(&self.counts, worker))
    }

    fn shift(&mut self, from: Option<&'a str>, to: &'a str) {
        if let Some(count) = from.and_then(|from| self.counts.get_mut(from)) {
            *count = count.saturating_sub(1);
        }
        *self.counts.entry(to).or_default() += 1;
    }

    /// Gives every shard that has no owner to whoever is furthest below its quota; when all leave, to who has least.
    fn place(&mut self) {
        let ownerless: Vec<u32> =
            self.stage.seats.iter().filter(|(_, seat)| seat.owner.is_none()).map(|(shard, _)| *shard).collect();
        for shard in ownerless {
            if let Some(seat) = self.stage.seats.get_mut(&shard).filter(|seat| seat.pinned_to.is_some()) {
                seat.owner = seat.pinned_to;
                continue;
            }
            let best = self.stage.members.keys().copied().min_by_key(|worker| {
                (self.leaves(worker), Reverse(self.room(worker)), count(&self.counts, worker), *worker)
            });
            let Some(best) = best else { return };
            self.shift(None, best);
            if let Some(seat) = self.stage.seats.get_mut(&shard) {
                seat.owner = Some(best);
            }
        }
    }

    /// Stops moves to workers that have enough now, and from workers that have too little now; and of what is pinned elsewhere, or has its owner already.
    fn give_up(&mut self) {
        for seat in self.stage.seats.values_mut().filter(|seat| seat.pinned_to.is_some()) {
            seat.moving_to = seat.moving_to.filter(|target| Some(*target) == seat.pinned_to);
        }
        let free = self.stage.seats.iter().filter(|(_, seat)| seat.pinned_to.is_none());
        let moving: Vec<(u32, &'a str, &'a str)> =
            free.filter_map(|(shard, seat)| Some((*shard, seat.owner?, seat.moving_to?))).collect();
        for (shard, owner, target) in moving {
            let helps = self.excess(target) == 0 && (self.leaves(owner) || self.room(owner) == 0);
            if !helps {
                self.shift(Some(target), owner);
                self.stop(shard);
            }
        }
    }

    /// Somebody leaves, and has shards that do not move yet.
    fn is_left(&self) -> bool {
        let is_it = |seat: &Seat<'_>| !seat.in_motion() && seat.owner.is_some_and(|owner| self.leaves(owner));
        self.stage.seats.values().any(is_it)
    }

    /// Ends moves to where shards are pinned that may take long: those that leave go first.
    fn give_way(&mut self) {
        for seat in self.stage.seats.values_mut().filter(|seat| seat.pinned_to.is_some() && !seat.is_pin_ready) {
            seat.moving_to = None;
        }
    }

    fn stop(&mut self, shard: u32) {
        if let Some(seat) = self.stage.seats.get_mut(&shard) {
            seat.moving_to = None;
        }
    }

    fn under_way(&self) -> impl Iterator<Item = Move> + '_ {
        self.stage.seats.iter().filter_map(|(shard, seat)| {
            let (owner, target) = (seat.owner?, seat.moving_to?);
            let reason = match seat.pinned_to {
                _ if self.leaves(owner) => Reason::Leaving,
                Some(_) => Reason::Pinned,
                None => Reason::Balance,
            };
            Some(self.describe(*shard, owner, target, reason, Step::CatchingUp { lag: seat.lag(target) }))
        })
    }

    fn describe(&self, shard: u32, from: &str, to: &str, reason: Reason, step: Step) -> Move {
        let shard = ShardId::new(self.stage.name, shard);
        Move { shard, from: from.to_owned(), to: to.to_owned(), reason, step }
    }

    /// Begins moves to where shards are pinned, while any is `left`; those beyond are told as waiting. They are counted there already.
    fn begin_pinned(&mut self, left: &mut usize, pending: &mut Vec<Move>) {
        let is_misplaced = |seat: &Seat<'_>| !seat.in_motion() && seat.owner != seat.pinned_to;
        let misplaced = self.stage.seats.iter().filter(|(_, seat)| is_misplaced(seat));
        let misplaced = misplaced.filter_map(|(shard, seat)| Some((*shard, seat.owner?, seat.pinned_to?)));
        for (shard, owner, target) in misplaced.collect::<Vec<_>>() {
            let mut step = Step::Waiting;
            if let Some(seat) = self.stage.seats.get_mut(&shard).filter(|_| *left > 0) {
                *left -= 1;
                seat.moving_to = Some(target);
                step = Step::CatchingUp { lag: seat.lag(target) };
            }
            pending.push(self.describe(shard, owner, target, Reason::Pinned, step));
        }
    }

    /// Begins moves for one reason while any is `left`; those beyond are told as waiting.
    fn begin(&mut self, reason: Reason, left: &mut usize, pending: &mut Vec<Move>) {
        let mut movable: Vec<(u32, &'a str)> = self
            .stage
            .seats
            .iter()
            .filter(|(_, seat)| !seat.in_motion() && seat.pinned_to.is_none())
            .filter_map(|(shard, seat)| Some((*shard, seat.owner?)))
            .filter(|(_, owner)| self.leaves(owner) == (reason == Reason::Leaving))
            .collect();
        while let Some((index, target)) = self.choose(&movable) {
            let (shard, owner) = movable.swap_remove(index);
            self.shift(Some(owner), target);
            let mut step = Step::Waiting;
            if let Some(seat) = self.stage.seats.get_mut(&shard).filter(|_| *left > 0) {
                *left -= 1;
                seat.moving_to = Some(target);
                step = Step::CatchingUp { lag: seat.lag(target) };
            }
            pending.push(self.describe(shard, owner, target, reason, step));
        }
    }

    /// The next move, as an index into `movable` and its target: from who has most too much; to a successor of the shard before others, for it has
    /// caught up or is about to; then to who has most room.
    fn choose(&self, movable: &[(u32, &'a str)]) -> Option<(usize, &'a str)> {
        let targets: Vec<&'a str> = self.quotas.keys().copied().filter(|worker| self.room(worker) > 0).collect();
        let donors = movable.iter().enumerate().filter(|(_, (_, owner))| self.excess(owner) > 0);
        let pairs = donors.flat_map(|donor| targets.iter().map(move |target| (donor, *target)));
        let pairs = pairs.filter(|((_, (shard, _)), target)| !self.is_unable(*shard, target));
        let best = pairs.min_by_key(|((_, (shard, owner)), target)| {
            (Reverse(self.excess(owner)), self.rank(*shard, target), Reverse(self.room(target)), *shard, *target)
        });
        best.map(|((index, _), target)| (index, target))
    }

    fn is_unable(&self, shard: u32, worker: &str) -> bool {
        self.stage.seats.get(&shard).is_some_and(|seat| seat.is_unable(worker))
    }

    /// Place of a worker among a shard's successors.
    fn rank(&self, shard: u32, worker: &str) -> usize {
        let previous = self.stage.seats.get(&shard).and_then(|seat| seat.previous);
        let place = previous.and_then(|previous| previous.successors.iter().position(|name| name == worker));
        place.unwrap_or(usize::MAX)
    }
}

fn count(counts: &Counts<'_>, worker: &str) -> usize {
    counts.get(worker).copied().unwrap_or_default()
}

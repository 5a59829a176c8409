//! Owners: what the previous plan says of each shard, less what is no longer true.
//!
//! Only here does an owner change, and only for one of five reasons: it is dead, the worker that it was moving to has caught up, it leaves and another
//! has the shard already (a worker that ends hands off by itself), it is unable to open it and another has it, or the shard is new.

use super::{Input, Limits, Move, Reason, Standing, Step, Worker};
use crate::plan::{Placement, ShardId};
use std::collections::BTreeMap;

/// One shard while a plan is made.
#[derive(Debug)]
pub(super) struct Seat<'a> {
    /// None: to be placed by quota.
    pub(super) owner: Option<&'a str>,
    pub(super) moving_to: Option<&'a str>,
    /// Who has it in fact, when that is a live worker other than the owner: it is being handed over, and moves nowhere else meanwhile.
    pub(super) held_by: Option<&'a str>,
    /// Who is to have it, whatever the balance: alive, and able to.
    pub(super) pinned_to: Option<&'a str>,
    /// It has it, or has caught up: others make room from then on, and not for one that may never open it.
    pub(super) is_pin_ready: bool,
    pub(super) previous: Option<&'a Placement>,
    pub(super) standing: Option<&'a Standing>,
}

/// One stage while a plan is made.
#[derive(Debug)]
pub(super) struct Stage<'a> {
    pub(super) name: &'a str,
    /// Live workers that can own its shards, by name.
    pub(super) members: BTreeMap<&'a str, &'a Worker>,
    pub(super) seats: BTreeMap<u32, Seat<'a>>,
}

impl<'a> Stage<'a> {
    pub(super) fn new(
        name: &'a str,
        shards: u32,
        workers: &BTreeMap<&'a str, &'a Worker>,
        input: &Input<'a>,
    ) -> Stage<'a> {
        let members = workers.iter().filter(|(_, worker)| worker.stages.contains(name));
        let mut stage =
            Stage { name, members: members.map(|(name, worker)| (*name, *worker)).collect(), seats: BTreeMap::new() };
        for shard in 0..shards {
            let id = ShardId::new(name, shard);
            let previous = input.previous.and_then(|plan| plan.placements.get(&id));
            let mut seat = stage.seat(previous, input.standings.get(&id), &input.limits);
            let pin = input.pinned.get(&id).and_then(|worker| stage.member(worker));
            let is_ready = |pin: &str| seat.owner == Some(pin) || seat.caught_up(pin, &input.limits);
            // A pin holds back nobody who leaves.
            let may_wait = seat.owner.is_none_or(|owner| stage.takes(owner));
            let counts = |pin: &&str| stage.takes(pin) && !seat.is_unable(pin) && (may_wait || is_ready(pin));
            let pinned_to = pin.filter(counts);
            seat.is_pin_ready = pinned_to.is_some_and(is_ready);
            seat.pinned_to = pinned_to;
            stage.seats.insert(shard, seat);
        }
        stage
    }

    /// Can own a shard, and may be given one.
    pub(super) fn takes(&self, worker: &str) -> bool {
        self.members.get(worker).is_some_and(|worker| !worker.leaving)
    }

    /// The same worker's name, if it is alive.
    fn member(&self, worker: &str) -> Option<&'a str> {
        self.members.get_key_value(worker).map(|(name, _)| *name)
    }

    fn seat(&self, previous: Option<&'a Placement>, standing: Option<&'a Standing>, limits: &Limits) -> Seat<'a> {
        let mut seat = Seat {
            owner: None,
            moving_to: None,
            held_by: None,
            pinned_to: None,
            is_pin_ready: false,
            previous,
            standing,
        };
        seat.owner = previous.and_then(|previous| self.owner(previous, &seat));
        let target = previous.and_then(|previous| previous.moving_to.as_deref());
        let may_take = |target: &&str| self.takes(target) && seat.owner != Some(target) && !seat.is_unable(target);
        seat.moving_to = target.filter(may_take);
        let holder = seat.holder().and_then(|holder| self.member(holder));
        seat.held_by = holder.filter(|holder| seat.owner != Some(holder));
        if let Some(target) = seat.moving_to.filter(|target| seat.held_by.is_none() && seat.may_flip(target, limits)) {
            seat.held_by = seat.owner;
            seat.owner = Some(target);
            seat.moving_to = None;
        }
        seat
    }

    /// Who owns it: the previous owner if alive, else the first live successor.
    fn owner(&self, previous: &'a Placement, seat: &Seat<'a>) -> Option<&'a str> {
        let in_fact = seat.holder().filter(|holder| self.takes(holder));
        match self.members.get(previous.owner.as_str()) {
            Some(owner) if owner.leaving || seat.is_unable(&owner.name) => in_fact.or(Some(&previous.owner)),
            Some(_) => Some(&previous.owner),
            None => in_fact.or_else(|| self.heir(previous)),
        }
    }

    /// The first live successor; one that leaves only when nobody else is there at all.
    fn heir(&self, previous: &'a Placement) -> Option<&'a str> {
        let live = || previous.successors.iter().filter_map(|name| self.member(name));
        let all_leave = self.members.values().all(|worker| worker.leaving);
        live().find(|name| self.takes(name)).or_else(|| live().next().filter(|_| all_leave))
    }

    /// Moves whose last step is still to be done.
    pub(super) fn handing_over(&self) -> impl Iterator<Item = Move> + '_ {
        self.seats.iter().filter_map(|(shard, seat)| {
            let (from, to) = (seat.held_by?, seat.owner?);
            let leaving = self.members.get(from).is_some_and(|worker| worker.leaving);
            let reason = if leaving { Reason::Leaving } else { Reason::Misplaced };
            let shard = ShardId::new(self.name, *shard);
            Some(Move { shard, from: from.to_owned(), to: to.to_owned(), reason, step: Step::HandingOver })
        })
    }

    /// Shards without an owner, for want of anybody alive, that had one before: their placements stay.
    pub(super) fn kept(&self) -> impl Iterator<Item = (ShardId, Placement)> + '_ {
        let ownerless = self.seats.iter().filter(|(_, seat)| seat.owner.is_none());
        ownerless.filter_map(|(shard, seat)| Some((ShardId::new(self.name, *shard), seat.previous?.clone())))
    }

    /// Shards without an owner that never had one.
    pub(super) fn unplaced(&self) -> impl Iterator<Item = ShardId> + '_ {
        let ownerless = self.seats.iter().filter(|(_, seat)| seat.owner.is_none() && seat.previous.is_none());
        ownerless.map(|(shard, _)| ShardId::new(self.name, *shard))
    }
}

impl<'a> Seat<'a> {
    fn holder(&self) -> Option<&'a str> {
        self.standing.and_then(|standing| standing.holder.as_deref())
    }

    /// Has tried in vain to open it.
    pub(super) fn is_unable(&self, worker: &str) -> bool {
        self.standing.is_some_and(|standing| standing.unable.contains(worker))
    }

    /// How far a standby is behind, if it said so.
    pub(super) fn lag(&self, worker: &str) -> Option<u64> {
        self.standing.and_then(|standing| standing.lags.get(worker).copied())
    }

    /// Says that it is behind by no more than the bound.
    pub(super) fn caught_up(&self, worker: &str, limits: &Limits) -> bool {
        self.lag(worker).is_some_and(|lag| lag <= limits.lag)
    }

    /// The last step of a move: the target has been first successor and warm in a plan, and is still caught up.
    fn may_flip(&self, target: &str, limits: &Limits) -> bool {
        let first = self.previous.is_some_and(|previous| {
            previous.warm > 0 && previous.successors.first().is_some_and(|first| first == target)
        });
        first && self.caught_up(target, limits)
    }

    /// In motion because of a plan: moving, or being handed over.
    pub(super) fn in_motion(&self) -> bool {
        self.moving_to.is_some() || self.held_by.is_some()
    }

    /// Who has it once all moves are done.
    pub(super) fn destination(&self) -> Option<&'a str> {
        match self.pinned_to {
            Some(pin) if self.is_pin_ready => Some(pin),
            Some(_) => self.owner,
            None => self.moving_to.or(self.owner),
        }
    }
}

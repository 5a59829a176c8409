//! What a worker is to do with each shard.
//!
//! *Holder* of a shard is who reports to own it, at the highest epoch, and among equals one that is not gone; it may be another than the plan's owner: a successor that took over, or one that the
//! plan has replaced. *Claimants* are the plan's owner and successors, in order; a claimant is *available* when it lives, does not leave and runs this generation, and *unable* when it
//! says so, because its disk is broken, or its thread has ended ([`crate::ability`]). While another is able, those that are not are passed over.
//!
//! | the shard | the worker | duty |
//! |---|---|---|
//! | held by me | planned owner, or the planned owner is not available, or unable | own |
//! | | replaced by an available owner that is able, or leaving | release, once the heir is prepared |
//! | held by nobody, or by one that is gone | planned owner, unless it is passed over | own |
//! | | successor, and all claimants before it are out: gone, or withdrawn, or passed over | take over |
//! | held by another that is present | planned owner, prepared for longer than the bound | take over |
//! | | first available and able claimant beside the holder | standby, prepare; soon, when the shard moves to it or the holder leaves |
//! | else | one of the first `warm` successors, or planned owner | standby |
//!
//! Whoever does not hear its own reports acquires nothing, whatever the table says: it is cut off, or has just started.
//!
//! *One candidate*: who takes over is the first claimant that is not out, so two that see the same cannot both be it; and who prepares is the first
//! available and able one, because two that prepare take the idle transactional id from each other (ownership rule 2). It prepares only while somebody holds the shard:
//! before that, the id that is idle may be the one that the next owner is taking.

use super::silence::Presence;
use super::{Me, Verdict, View};
use crate::incarnation::Incarnation;
use crate::plan::{Placement, ShardId};
use crate::status::{Role, ShardStatus};
use std::collections::BTreeMap;

/// The one client that may go on after a handoff (ownership rule 3).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Heir {
    /// Name of the worker.
    pub worker: String,
    /// Which process of that name.
    pub incarnation: Incarnation,
    /// The client that it prepared.
    pub client: String,
}

/// What a worker is to do with one shard.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Duty {
    /// Be its owner; acquire it if it has no owner.
    Own,
    /// Follow its changelog.
    Standby {
        /// Have a prepared client for it.
        prepare: bool,
        /// It is about to come: fetch the inputs ahead. (What is fetched and not used soon is work for nothing.)
        soon: bool,
    },
    /// Give it away: hand it off to the heir. While there is none, keep working, but acquire nothing anew.
    Release {
        /// Who has prepared.
        to: Option<Heir>,
    },
    /// Take it from an owner that is gone or does not hand off. (A handoff to this worker that is in the changelog already goes first.)
    TakeOver,
    /// Have nothing to do with it: close it.
    #[default]
    Nothing,
}

impl View {
    /// The duties of a worker at a moment, for every shard of the plan; nothing but [`Duty::Nothing`] for a process that may not go on.
    pub fn duties(&self, me: &Me<'_>, now_ms: u64) -> BTreeMap<ShardId, Duty> {
        let Some(plan) = self.plan_in_force() else { return BTreeMap::new() };
        let may_go_on = self.verdict(me) == Verdict::GoOn;
        let presence = self.presence(now_ms);
        let holders = self.holders(&presence);
        let duty = |id: &ShardId, placement: &Placement| {
            if !may_go_on {
                return Duty::Nothing;
            }
            Case { view: self, me, id, placement, now_ms, presence: &presence, holder: holders.get(id).copied() }.duty()
        };
        plan.placements.iter().map(|(id, placement)| (id.clone(), duty(id, placement))).collect()
    }
}

const FOLLOW: Duty = Duty::Standby { prepare: false, soon: false };

/// One shard, as one worker sees it at one moment.
struct Case<'a> {
    view: &'a View,
    me: &'a Me<'a>,
    id: &'a ShardId,
    placement: &'a Placement,
    now_ms: u64,
    presence: &'a BTreeMap<&'a str, Presence>,
    /// Epoch and name.
    holder: Option<(u64, &'a str)>,
}

impl<'a> Case<'a> {
    fn duty(&self) -> Duty {
        if self.is_holder(self.me.worker) && self.is_reported_by_me() {
            return self.duty_of_holder();
        }
        let place = self.placement.claimants().position(|name| name == self.me.worker);
        match place {
            _ if self.me.leaving => Duty::Nothing,
            None => Duty::Nothing,
            Some(0) => self.duty_of_owner(),
            Some(place) => self.duty_of_successor(place),
        }
    }

    fn duty_of_holder(&self) -> Duty {
        if self.me.leaving {
            return Duty::Release { to: self.claimants_beside_holder().find_map(|name| self.heir(name)) };
        }
        let owner = self.placement.owner.as_str();
        if owner != self.me.worker && self.is_able(owner) {
            return Duty::Release { to: self.heir(owner) };
        }
        Duty::Own
    }

    fn duty_of_owner(&self) -> Duty {
        if !self.is_held() {
            return if self.may_acquire() { Duty::Own } else { FOLLOW };
        }
        if self.may_acquire() && self.handoff_is_overdue() {
            return Duty::TakeOver;
        }
        let prepare = self.prepares();
        Duty::Standby { prepare, soon: prepare }
    }

    fn duty_of_successor(&self, place: usize) -> Duty {
        let all_before_are_out = self.placement.claimants().take(place).all(|name| self.is_out(name));
        if self.may_acquire() && !self.is_held() && all_before_are_out {
            Duty::TakeOver
        } else if self.prepares() {
            Duty::Standby { prepare: true, soon: self.is_expected() }
        } else if place <= self.placement.warm as usize {
            FOLLOW
        } else {
            Duty::Nothing
        }
    }

    /// The newest report of my name is this process's. (One that has just started may still find its predecessor's.)
    fn is_reported_by_me(&self) -> bool {
        self.view.newest_incarnation(self.me.worker) == Some(self.me.incarnation)
    }

    /// A process that does not hear itself is cut off, or has just started: it acquires nothing. Nor does one that is passed over.
    fn may_acquire(&self) -> bool {
        self.is_reported_by_me() && self.is_available(self.me.worker) && !self.is_passed_over(self.me.worker)
    }

    fn is_holder(&self, worker: &str) -> bool {
        self.holder.is_some_and(|(_, holder)| holder == worker)
    }

    /// Somebody has it who is not gone.
    fn is_held(&self) -> bool {
        self.holder.is_some_and(|(_, holder)| !self.is_gone(holder))
    }

    fn is_live(&self, worker: &str) -> bool {
        self.presence.get(worker) == Some(&Presence::Live)
    }

    fn is_gone(&self, worker: &str) -> bool {
        self.presence.get(worker).is_none_or(|presence| *presence == Presence::Gone)
    }

    /// Said that it takes nothing more: it leaves, or runs another generation.
    fn has_withdrawn(&self, worker: &str) -> bool {
        let report = self.view.workers.get(worker).and_then(|heard| heard.report.as_ref());
        report.is_some_and(|report| report.leaving || report.generation != self.view.generation)
    }

    fn is_available(&self, worker: &str) -> bool {
        self.is_live(worker) && !self.has_withdrawn(worker)
    }

    fn is_able(&self, worker: &str) -> bool {
        self.is_available(worker) && !self.view.is_unable(worker, self.id)
    }

    /// Has tried in vain for long, while another has not. (When nobody is able, it is the turn of the planned owner, as ever.)
    fn is_passed_over(&self, worker: &str) -> bool {
        let is_unable = self.view.is_unable(worker, self.id);
        is_unable && self.placement.claimants().any(|name| self.is_able(name))
    }

    /// Will not take it.
    fn is_out(&self, worker: &str) -> bool {
        self.is_gone(worker) || self.has_withdrawn(worker) || self.is_passed_over(worker)
    }

    fn claimants_beside_holder(&self) -> impl Iterator<Item = &'a str> + '_ {
        self.placement.claimants().filter(|name| !self.is_holder(name) && self.is_able(name))
    }

    /// Only the first available and able claimant prepares, and only when there is a reason to: it is to get the shard, or stands by for it.
    fn prepares(&self) -> bool {
        let Some((_, holder)) = self.holder.filter(|(_, holder)| self.is_live(holder)) else { return false };
        let first = self.claimants_beside_holder().next() == Some(self.me.worker);
        let wanted = self.placement.warm > 0 || self.placement.owner == self.me.worker || self.has_withdrawn(holder);
        first && wanted
    }

    /// It is moving here, or its holder leaves.
    fn is_expected(&self) -> bool {
        let moves_here = self.placement.moving_to.as_deref() == Some(self.me.worker);
        moves_here || self.holder.is_some_and(|(_, holder)| self.has_withdrawn(holder))
    }

    fn shard_of(&self, worker: &str) -> Option<&'a ShardStatus> {
        self.view.workers.get(worker)?.report.as_ref()?.shards.get(self.id)
    }

    /// A client of this worker that it prepared at the epoch of the present holder, or later.
    fn heir(&self, worker: &str) -> Option<Heir> {
        let (epoch, _) = self.holder?;
        let shard = self.shard_of(worker).filter(|shard| shard.role == Role::Standby && shard.epoch >= epoch)?;
        let incarnation = self.view.newest_incarnation(worker)?.clone();
        let client = shard.prepared.clone()?;
        Some(Heir { worker: worker.to_owned(), incarnation, client })
    }

    /// I am the planned owner and prepared, and both for longer than a handoff may take.
    fn handoff_is_overdue(&self) -> bool {
        let me = self.me.worker;
        let named_since = self.view.owners.get(self.id).filter(|(owner, _)| owner == me).map(|(_, since)| *since);
        let prepared = self.view.workers.get(me).and_then(|heard| heard.prepared.get(self.id));
        let prepared_since = prepared.filter(|_| self.heir(me).is_some()).map(|(_, since)| *since);
        let since = named_since.zip(prepared_since).map(|(named, prepared)| named.max(prepared));
        since.is_some_and(|since| self.now_ms.saturating_sub(since) > self.view.bounds.handoff_ms)
    }
}

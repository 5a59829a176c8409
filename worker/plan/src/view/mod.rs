//! What a worker keeps of `control` and `status`.
//!
//! Of plans the one of the highest (term, number) counts, of each worker's reports the one of the highest (incarnation, sequence), of format levels the
//! highest of the generation, of messages about one tenant, and about the number of gateways, the one of the highest version, of those about one savepoint that it has ended: another one changes nothing, whenever it comes. Views that were told the same are the same, whatever the
//! order and however often; only *when* they heard it is each one's own.
//!
//! Time is in milliseconds of a monotonic clock of the process that has the view; it is never compared with anybody else's. A worker must hear its own
//! reports through the topic, not short-cut them: one that does not hear itself is cut off, and knows by that not to judge others by
//! their silence ([`silence`]).
//!
//! What a worker is to do follows from the view and the moment ([`duties`]).

pub mod duties;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod scene;
mod silence;
#[cfg(test)]
mod tests;

use crate::incarnation::Incarnation;
use crate::message::{Control, FormatLevel, Gateways, Savepoint, Tenant, Terms};
use crate::plan::{Plan, ShardId};
use crate::planner::{Standing, Worker};
use crate::status::{Role, ShardStatus, WorkerStatus};
pub use duties::{Duty, Heir};
use silence::Presence;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Bounds of patience.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// A worker that was not heard for longer than so many milliseconds is silent. Workers report at least four times as often.
    pub silence_ms: u64,
    /// The silence of most workers at once is believed after so many bounds.
    pub believe_after: u64,
    /// An owner that the plan has replaced, and that lives, must have handed off so many milliseconds after its heir was prepared.
    pub handoff_ms: u64,
    /// A worker that has tried in vain to open a shard for longer than so many milliseconds is unable to ([`crate::ability`]): others go before it.
    pub unable_ms: u64,
}

impl Default for Bounds {
    fn default() -> Bounds {
        // Known within 3 s, the moment until somebody looks included. A handoff takes one batch, 200 ms at most: 5 s is an owner that hangs, not one that is busy. What comes and goes, such as an election of a broker, is over
        // in 30 s: beyond that it is a broken disk, or a thread that has ended.
        Bounds { silence_ms: 2_800, believe_after: 10, handoff_ms: 5_000, unable_ms: 30_000 }
    }
}

/// What gateways, which own no shards, say that they do.
pub const GATEWAY: &str = "gateway";

/// The stage that applies the rules of tenants.
const UNIFY: &str = "unify";

/// A gateway that is cut off takes requests with old keys for so long: nobody knows that it does not any more before that.
pub const GATEWAY_GONE_MS: u64 = 30_000;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Me<'a> {
    /// Its name.
    pub worker: &'a str,
    /// Which process of that name.
    pub incarnation: &'a Incarnation,
    /// It was told to end (SIGTERM).
    pub leaving: bool,
}

/// Whether a process may go on at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    GoOn,
    /// A newer process of its name runs: it must exit at once.
    Fenced {
        /// The newer one.
        by: Incarnation,
    },
    /// The pipeline was restored into a higher generation: it stops its shards and waits to be replaced.
    Superseded {
        /// The higher one.
        generation: u32,
    },
}

/// So many savepoints are known, those of the highest ids: more than shards are cut for at a time, or remember.
const SAVEPOINTS: usize = 64;

/// What was heard of one worker.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Heard {
    /// When its newest report came; without one, when a plan first named it.
    at_ms: u64,
    report: Option<WorkerStatus>,
    /// The prepared client of each shard, and since when it is told.
    prepared: BTreeMap<ShardId, (String, u64)>,
}

/// What a worker keeps of `control` and `status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    generation: u32,
    bounds: Bounds,
    plan: Option<Plan>,
    /// The planned owner of each shard, and since when.
    owners: BTreeMap<ShardId, (String, u64)>,
    format: Option<FormatLevel>,
    tenants: BTreeMap<String, Tenant>,
    gateways: Option<Gateways>,
    savepoints: BTreeMap<u64, Savepoint>,
    workers: BTreeMap<String, Heard>,
    /// The highest epoch that anybody has ever reported of each shard.
    epochs: BTreeMap<ShardId, u64>,
}

impl View {
    /// Of a process that runs this generation of the pipeline.
    pub fn new(generation: u32, bounds: Bounds) -> View {
        View {
            generation,
            bounds,
            plan: None,
            owners: BTreeMap::new(),
            format: None,
            tenants: BTreeMap::new(),
            gateways: None,
            savepoints: BTreeMap::new(),
            workers: BTreeMap::new(),
            epochs: BTreeMap::new(),
        }
    }

    /// Takes in a message of `control`.
    pub fn control(&mut self, control: Control, now_ms: u64) {
        match control {
            Control::Plan(plan) if self.plan.as_ref().is_none_or(|current| *current < plan) => self.adopt(plan, now_ms),
            Control::FormatLevel(level) => self.format = self.format.max(Some(level)),
            Control::Tenant(tenant) if self.is_newer(&tenant) => drop(self.tenants.insert(tenant.name.clone(), tenant)),
            Control::Gateways(gateways) => self.gateways = self.gateways.max(Some(gateways)),
            Control::Savepoint(savepoint) => {
                let known = self.savepoints.entry(savepoint.id).or_insert(savepoint);
                *known = savepoint.max(*known);
                // Whatever comes of one that goes here finds it no better: as many of higher ids are known.
                while self.savepoints.len() > SAVEPOINTS {
                    self.savepoints.pop_first();
                }
            }
            Control::Plan(_) | Control::Tenant(_) => {}
        }
    }

    /// Does it say something newer about its tenant than what was heard?
    pub fn is_newer(&self, tenant: &Tenant) -> bool {
        self.tenants.get(&tenant.name).is_none_or(|known| known.version < tenant.version)
    }

    fn adopt(&mut self, plan: Plan, now_ms: u64) {
        self.owners.retain(|id, _| plan.placements.contains_key(id));
        for (id, placement) in &plan.placements {
            let since = self.owners.entry(id.clone()).or_insert_with(|| (placement.owner.clone(), now_ms));
            if since.0 != placement.owner {
                *since = (placement.owner.clone(), now_ms);
            }
        }
        // Whoever is named and was never heard is silent only after the bound: at a cold start others may just be slower.
        let named: BTreeSet<&str> = plan.names().collect();
        self.workers.retain(|name, heard| heard.report.is_some() || named.contains(name.as_str()));
        for name in named.into_iter().filter(|name| !name.is_empty()) {
            self.workers.entry(name.to_owned()).or_insert_with(|| Heard::named(now_ms));
        }
        self.plan = Some(plan);
    }

    /// Takes in a report.
    pub fn status(&mut self, status: WorkerStatus, now_ms: u64) {
        if status.generation == self.generation {
            for (id, shard) in status.shards.iter().filter(|(_, shard)| shard.epoch > 0) {
                let highest = self.epochs.entry(id.clone()).or_default();
                *highest = shard.epoch.max(*highest);
            }
        }
        let heard = self.workers.entry(status.worker.clone()).or_insert_with(|| Heard::named(now_ms));
        if heard.report.as_ref().is_none_or(|newest| newest.order() < status.order()) {
            heard.take(status, now_ms);
        }
    }

    /// The plan that counts, of whatever generation.
    pub fn plan(&self) -> Option<&Plan> {
        self.plan.as_ref()
    }

    /// The plan that is to be followed: none while it is one of an older generation.
    fn plan_in_force(&self) -> Option<&Plan> {
        self.plan.as_ref().filter(|plan| plan.generation == self.generation)
    }

    /// The format level in which this generation is written, once one was published.
    pub fn format_level(&self) -> Option<u32> {
        self.format.filter(|format| format.generation == self.generation).map(|format| format.level)
    }

    /// What was published about each tenant, by name; also of those that are gone.
    pub fn tenants(&self) -> &BTreeMap<String, Tenant> {
        &self.tenants
    }

    /// The newest report of each worker that was heard, and when it came.
    pub fn reports(&self) -> impl Iterator<Item = (&WorkerStatus, u64)> {
        self.workers.values().filter_map(|heard| Some((heard.report.as_ref()?, heard.at_ms)))
    }

    /// The gateways that may take requests: [`WorkerStatus::control_offset`] says how far each has heard who may send.
    pub fn gateways(&self, now_ms: u64) -> impl Iterator<Item = &WorkerStatus> {
        let may_serve = move |report: &WorkerStatus, at_ms: u64| {
            report.stages.contains(GATEWAY) && !report.leaving && now_ms.saturating_sub(at_ms) < GATEWAY_GONE_MS
        };
        self.reports().filter(move |(report, at_ms)| may_serve(report, *at_ms)).map(|(report, _)| report)
    }

    /// How many gateways share the rates of tenants, as far as that was published.
    pub fn gateway_count(&self) -> Option<Gateways> {
        self.gateways
    }

    /// What was published about each of the newest savepoints, by id; also of those that have ended, and of other generations.
    pub fn savepoints(&self) -> &BTreeMap<u64, Savepoint> {
        &self.savepoints
    }

    /// The savepoints that this generation is to be cut for.
    pub fn open_savepoints(&self) -> impl Iterator<Item = u64> {
        let is_open = |it: &&Savepoint| it.generation == self.generation && !it.has_ended;
        self.savepoints.values().filter(is_open).map(|it| it.id)
    }

    /// A worker that was heard since then (milliseconds of this process's clock), and would stop at a marker.
    pub fn without_markers(&self, since_ms: u64) -> Option<&str> {
        let stops =
            |report: &&WorkerStatus| !report.knows_markers && report.stages.iter().any(|stage| stage != GATEWAY);
        let heard = self.reports_here().filter(|(_, at_ms)| *at_ms >= since_ms).map(|(report, _)| report);
        heard.filter(stops).map(|report| &*report.worker).next()
    }

    /// Those who let in, or judge, the records of tenants now: gateways, workers of unify, and each shard of unify that somebody owns.
    pub fn judges(&self, now_ms: u64) -> Vec<Judge<'_>> {
        let gateways = self.gateways(now_ms).map(|report| Judge::worker(report, false));
        let unify = self.heard_here(now_ms).filter(|report| report.stages.contains(UNIFY));
        let holders = self.holders(&self.presence(now_ms));
        let of_unify = unify.flat_map(|report| {
            let is_held = |(id, shard): &(&ShardId, &ShardStatus)| {
                id.stage == UNIFY && holders.get(id) == Some(&(shard.epoch, report.worker.as_str()))
            };
            let held = report.shards.iter().filter(is_held);
            let shards: Vec<_> = held.map(|(id, shard)| Judge::shard(report, id, shard.control_offset)).collect();
            // One that leaves comes to own nothing more.
            (!report.leaving).then(|| Judge::worker(report, true)).into_iter().chain(shards)
        });
        gateways.chain(of_unify).collect()
    }

    /// How many shards of a stage have an owner, who is heard, and has carried out what is said at this offset of `control`. Of a stage without epochs several may say that they own a shard, also
    /// one that is gone: any of them will do.
    pub fn carried_out(&self, stage: &str, offset: u64, now_ms: u64) -> u32 {
        let highest = self.highest_epochs();
        let done = self.heard_here(now_ms).flat_map(|report| {
            let is_done = |(id, shard): &(&ShardId, &ShardStatus)| {
                id.stage == stage
                    && shard.role == Role::Owner
                    && highest.get(*id).copied().unwrap_or_default() == shard.epoch
                    && offset < shard.control_offset
            };
            report.shards.iter().filter(is_done).map(|(id, _)| id)
        });
        u32::try_from(done.collect::<BTreeSet<&ShardId>>().len()).unwrap_or(u32::MAX)
    }

    /// How many of those who are heard, and may come to own a shard or take requests, have not heard what is said at this offset of `control`.
    pub fn unheard(&self, offset: u64, now_ms: u64) -> u32 {
        let is_behind = |report: &&WorkerStatus| !report.leaving && offset >= report.control_offset;
        let behind = self.heard_here(now_ms).filter(is_behind).count();
        u32::try_from(behind).unwrap_or(u32::MAX)
    }

    /// The newest incarnation of a name that was heard: see [`Incarnation::after`].
    pub fn newest_incarnation(&self, worker: &str) -> Option<&Incarnation> {
        self.workers.get(worker)?.report.as_ref().map(|report| &report.incarnation)
    }

    /// Has this process heard itself lately? One that has not is cut off, or has just started.
    pub fn hears(&self, me: &Me<'_>, now_ms: u64) -> bool {
        self.newest_incarnation(me.worker) == Some(me.incarnation)
            && self.presence(now_ms).get(me.worker) == Some(&Presence::Live)
    }

    /// Whether this process may go on.
    pub fn verdict(&self, me: &Me<'_>) -> Verdict {
        if let Some(newest) = self.newest_incarnation(me.worker).filter(|newest| *newest > me.incarnation) {
            return Verdict::Fenced { by: newest.clone() };
        }
        match &self.plan {
            Some(plan) if plan.generation > self.generation => Verdict::Superseded { generation: plan.generation },
            _ => Verdict::GoOn,
        }
    }

    /// Each worker that the plan names was heard, or its silence is believed.
    ///
    /// Before that nobody must make a plan: an operator that has just started would take for dead whom it has not heard yet.
    pub fn knows_all(&self, now_ms: u64) -> bool {
        let presence = self.presence(now_ms);
        let unheard = self.workers.iter().filter(|(_, heard)| heard.report.is_none());
        unheard.into_iter().all(|(name, _)| presence.get(name.as_str()) == Some(&Presence::Gone))
    }

    /// Workers that are alive, for the planner; see [`Self::knows_all`]. Those whose silence is not believed yet are.
    pub fn alive(&self, now_ms: u64) -> Vec<Worker> {
        let presence = self.presence(now_ms);
        let present = self.reports().filter(|(report, _)| {
            report.generation == self.generation && presence.get(report.worker.as_str()) != Some(&Presence::Gone)
        });
        present.map(|(report, _)| Worker::of(report)).collect()
    }

    /// What those that are alive report of each shard, for the planner.
    pub fn standings(&self, now_ms: u64) -> BTreeMap<ShardId, Standing> {
        let presence = self.presence(now_ms);
        let present = |worker: &str| presence.get(worker) != Some(&Presence::Gone);
        let mut standings: BTreeMap<ShardId, Standing> = BTreeMap::new();
        for (id, (_, worker)) in self.holders(&presence).into_iter().filter(|(_, (_, worker))| present(worker)) {
            standings.entry(id.clone()).or_default().holder = Some(worker.to_owned());
        }
        for (report, _) in self.reports_here().filter(|(report, _)| present(&report.worker)) {
            for (id, shard) in report.shards.iter().filter(|(_, shard)| shard.role == Role::Standby) {
                standings.entry(id.clone()).or_default().lags.insert(report.worker.clone(), shard.lag);
            }
            for id in &report.unable {
                standings.entry(id.clone()).or_default().unable.insert(report.worker.clone());
            }
        }
        standings
    }

    /// The shards that another worker owns, who was heard lately.
    pub fn owned_by_others(&self, me: &Me<'_>, now_ms: u64) -> BTreeSet<ShardId> {
        let presence = self.presence(now_ms);
        let is_others = |worker: &str| worker != me.worker && presence.get(worker) == Some(&Presence::Live);
        let held = self.holders(&presence).into_iter().filter(|(_, (_, worker))| is_others(worker));
        held.map(|(id, _)| id.clone()).collect()
    }

    /// Does it say that it cannot open this shard?
    fn is_unable(&self, worker: &str, id: &ShardId) -> bool {
        let report = self.workers.get(worker).and_then(|heard| heard.report.as_ref());
        report.is_some_and(|report| report.unable.contains(id))
    }

    /// Reports of workers that run this generation, and were heard lately enough that what they do counts.
    fn heard_here(&self, now_ms: u64) -> impl Iterator<Item = &WorkerStatus> {
        let is_heard = move |at_ms: u64| now_ms.saturating_sub(at_ms) < GATEWAY_GONE_MS;
        self.reports_here().filter(move |(_, at_ms)| is_heard(*at_ms)).map(|(report, _)| report)
    }

    /// Reports of workers that run this generation.
    fn reports_here(&self) -> impl Iterator<Item = (&WorkerStatus, u64)> {
        self.reports().filter(|(report, _)| report.generation == self.generation)
    }

    /// The highest epoch that anybody has reported of each shard, in this process's life and as far as `status` goes back: whoever owned it at a lower one was fenced, and a changelog without
    /// any was lost.
    pub fn highest_epochs(&self) -> &BTreeMap<ShardId, u64> {
        &self.epochs
    }

    /// Who says that it owns each shard, with its epoch: of several the highest, for the others were fenced by it. In a stage without epochs nobody is fenced: there, one that is gone, or may be, has
    /// it only when nobody else does.
    fn holders(&self, presence: &BTreeMap<&str, Presence>) -> BTreeMap<&ShardId, (u64, &str)> {
        let mut holders = BTreeMap::new();
        for (report, _) in self.reports_here() {
            let there = presence.get(report.worker.as_str()).copied().unwrap_or(Presence::Gone);
            for (id, shard) in report.shards.iter().filter(|(_, shard)| shard.role == Role::Owner) {
                let holder = (shard.epoch, there, report.worker.as_str());
                let highest = holders.entry(id).or_insert(holder);
                *highest = holder.max(*highest);
            }
        }
        holders.into_iter().map(|(id, (epoch, _, worker))| (id, (epoch, worker))).collect()
    }
}

/// One who lets in, or judges, the records of tenants, and by what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judge<'a> {
    /// Name of the worker.
    pub worker: &'a str,
    /// It goes by `control` up to here, exclusive; 0: a shard of a former version, which goes by nothing of it.
    pub control_offset: u64,
    /// It is of unify, and has nothing to do with keys and rates.
    pub is_unify: bool,
    /// The shard, if it is one.
    pub shard: Option<u32>,
}

impl fmt::Display for Judge<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.shard, self.is_unify) {
            (Some(shard), _) => write!(f, "shard {UNIFY}/{shard} of {}", self.worker),
            (None, true) => write!(f, "worker {}", self.worker),
            (None, false) => write!(f, "gateway {}", self.worker),
        }
    }
}

impl<'a> Judge<'a> {
    fn worker(report: &'a WorkerStatus, is_unify: bool) -> Judge<'a> {
        Judge { worker: &report.worker, control_offset: report.control_offset, is_unify, shard: None }
    }

    fn shard(report: &'a WorkerStatus, id: &ShardId, control_offset: u64) -> Judge<'a> {
        Judge { worker: &report.worker, control_offset, is_unify: true, shard: Some(id.shard) }
    }

    /// Does it go by a message about a tenant that is at this offset of `control`, and says this? A former version of unify goes by no rules: where there are none, that is right.
    pub fn goes_by(&self, offset: u64, terms: &Terms) -> bool {
        offset < self.control_offset || (self.is_former() && says_nothing(terms))
    }

    fn is_former(&self) -> bool {
        self.is_unify && self.control_offset == 0
    }
}

/// What all judges go by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Horizon {
    /// How many of them are gateways.
    pub gateways: u32,
    /// They go by `control` up to here, exclusive, but for those of former versions.
    pub control_offset: u64,
    /// Some are of former versions, which go by no rules.
    pub has_former: bool,
}

impl Horizon {
    /// Of all of these.
    pub fn of(judges: &[Judge<'_>]) -> Horizon {
        let (former, others): (Vec<&Judge<'_>>, Vec<_>) = judges.iter().partition(|judge| judge.is_former());
        let gateways = others.iter().filter(|judge| !judge.is_unify).count();
        Horizon {
            gateways: u32::try_from(gateways).unwrap_or(u32::MAX),
            control_offset: others.iter().map(|judge| judge.control_offset).min().unwrap_or_default(),
            has_former: !former.is_empty(),
        }
    }

    /// Does every one of them ([`Judge::goes_by`])?
    pub fn goes_by(&self, offset: u64, terms: &Terms) -> bool {
        offset < self.control_offset && (!self.has_former || says_nothing(terms))
    }
}

/// To unify.
fn says_nothing(terms: &Terms) -> bool {
    terms.rules.is_empty() && terms.erasing.is_none()
}

impl Heard {
    fn named(now_ms: u64) -> Heard {
        Heard { at_ms: now_ms, report: None, prepared: BTreeMap::new() }
    }

    fn take(&mut self, status: WorkerStatus, now_ms: u64) {
        let mut prepared = BTreeMap::new();
        for (id, shard) in &status.shards {
            let Some(client) = &shard.prepared else { continue };
            let since =
                self.prepared.get(id).filter(|(before, _)| before == client).map_or(now_ms, |(_, since)| *since);
            prepared.insert(id.clone(), (client.clone(), since));
        }
        *self = Heard { at_ms: now_ms, report: Some(status), prepared };
    }
}

impl Worker {
    fn of(report: &WorkerStatus) -> Worker {
        Worker {
            name: report.worker.clone(),
            zone: report.zone.clone(),
            node: report.node.clone(),
            capacity: report.capacity,
            leaving: report.leaving,
            stages: report.stages.clone(),
        }
    }
}

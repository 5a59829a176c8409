//! Who publishes plans: hears what workers report, makes a plan of it, and publishes it when it says something new.
//!
//! An operator does that for each pipeline, and `millstream plan auto` without one. Invariants:
//!
//! - **Nobody is taken for dead who was only not heard yet.** No plan is made before old reports in the topic cannot be taken for living workers any more, and every worker that the plan in
//!   force names was heard, or its silence is believed.
//! - **The one who was started last publishes.** Leading fences whoever published before (the transactional id of the pipeline's `control`), reads what they did, and publishes under a higher
//!   term. One who finds a higher term than its own has been replaced, and says so for ever after: it would otherwise fence its successor after any error.
//! - **An error decides nothing.** After one, a new reader reads both topics to their ends, and a new publisher is opened, before anything is published again.
//!
//! Protocol: call [`Planning::listen`] and [`Planning::turn`] in turn, with milliseconds of a clock that never goes back.

use crate::control::{Listener, Publisher};
use crate::has_passed;
use crate::hearing::Hearing;
use crate::log::{Log, LogError, TopicPartition};
use crate::topics::{SHARDED, Topics};
use millstream_plan::message::{Control, Erasing, Gateways, Tenant, Terms};
use millstream_plan::plan::{Plan, ShardId, Version};
use millstream_plan::planner::{self, Limits, Outcome};
use millstream_plan::view::{Bounds, Horizon, Judge, View};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// How often the log is asked whether there is more than was heard.
const HEARING_EVERY_MS: u64 = 10_000;
/// So many tenants are published in one transaction.
const TENANTS_AT_ONCE: usize = 1_000;

/// What whoever plans wants beside what workers report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Workers whose shards go elsewhere, as if they had said that they leave.
    pub leaving: BTreeSet<String>,
    /// Who is to own a shard whatever the balance.
    pub pinned: BTreeMap<ShardId, String>,
    /// Bounds of a plan.
    pub limits: Limits,
}

/// What a turn came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It does not know yet who is alive.
    Hearing,
    /// No worker reports: there is nothing to plan with.
    NoWorkers,
    /// This is the plan.
    Planned {
        /// The plan, and what it leads to.
        outcome: Outcome,
        /// It was published in this turn.
        is_published: bool,
    },
    /// Somebody who was started later publishes, under this term: this one has nothing to do any more.
    Replaced {
        /// The higher one.
        term: u64,
    },
}

/// Whether it publishes.
enum Role {
    /// It looks, and fences nobody.
    Looks,
    /// It is to lead: it has no publisher yet, or none any more.
    ToLead,
    /// It leads.
    Leads(Publisher),
}

/// One who makes plans of a pipeline.
pub struct Planning {
    log: Arc<dyn Log>,
    topics: Topics,
    stages: BTreeMap<String, u32>,
    bounds: Bounds,
    listener: Listener,
    role: Role,
    began_ms: u64,
    /// Of what it publishes, once it has led.
    term: Option<u64>,
    /// Its reader has failed, or does not hear.
    is_deaf: bool,
    hearing: Hearing,
    /// When the log was asked what there is to hear.
    asked_ms: u64,
}

impl Planning {
    /// Reads `control` and `status` to their ends. Every stage has as many shards as its topics have partitions.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn open(log: Arc<dyn Log>, topics: Topics, bounds: Bounds, now_ms: u64) -> Result<Planning, LogError> {
        let listener = Listener::open(&*log, &topics, bounds, now_ms)?;
        let stages = SHARDED.iter().map(|stage| ((*stage).to_owned(), topics.shards)).collect();
        let role = Role::Looks;
        Ok(Planning {
            log,
            topics,
            stages,
            bounds,
            listener,
            role,
            began_ms: now_ms,
            term: None,
            is_deaf: false,
            hearing: Hearing::default(),
            asked_ms: now_ms,
        })
    }

    /// From the next turn on it publishes, under a term of its own; also when it was replaced before.
    pub fn lead(&mut self) {
        self.role = Role::ToLead;
        self.term = None;
    }

    /// It publishes no more.
    pub fn look(&mut self) {
        self.role = Role::Looks;
        self.term = None;
    }

    /// Does it publish now? Not before it knows who is alive, and not after an error.
    pub fn is_leading(&self) -> bool {
        matches!(self.role, Role::Leads(_))
    }

    /// Fences whoever published before, and reads what they did.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn fence(&mut self, now_ms: u64) -> Result<(), LogError> {
        self.role = Role::Leads(Publisher::open(&*self.log, &self.topics)?);
        self.listener.read_to_end(&*self.log, now_ms)
    }

    /// What was heard.
    pub fn view(&self) -> &View {
        self.listener.view()
    }

    /// Shards of each stage.
    pub fn stages(&self) -> &BTreeMap<String, u32> {
        &self.stages
    }

    /// Of the pipeline.
    pub fn generation(&self) -> u32 {
        u32::from(self.topics.generation)
    }

    /// The plan that counts now.
    pub fn current(&self) -> Option<Version> {
        self.view().plan().map(|plan| plan.version)
    }

    /// Hears what comes within `wait`; how many messages.
    ///
    /// # Errors
    /// [`LogError`]: the next turn begins with another reader.
    pub fn listen(&mut self, wait: Duration, now_ms: u64) -> Result<usize, LogError> {
        let heard = self.listener.listen(wait, now_ms);
        self.is_deaf |= heard.is_err();
        heard
    }

    /// Old reports in the topic cannot be taken for living workers any more.
    pub fn knows_all(&self, now_ms: u64) -> bool {
        let silence_ms = self.bounds.silence_ms;
        now_ms.saturating_sub(self.began_ms) >= silence_ms + silence_ms / 4 && self.view().knows_all(now_ms)
    }

    /// Makes a plan, and publishes it if it leads and the plan says something new. The first plan of one who leads is published in any case: by that, those who published before know that they
    /// are not to go on.
    ///
    /// # Errors
    /// [`LogError`]: whatever it is, the next turn begins anew.
    pub fn turn(&mut self, wishes: &Wishes, now_ms: u64) -> Result<Turn, LogError> {
        let turn = self.try_turn(wishes, now_ms);
        if turn.is_err() {
            self.is_deaf = true;
            if matches!(self.role, Role::Leads(_)) {
                self.role = Role::ToLead;
            }
        }
        turn
    }

    fn try_turn(&mut self, wishes: &Wishes, now_ms: u64) -> Result<Turn, LogError> {
        self.check_hearing(now_ms)?;
        if self.is_deaf {
            drop(self.listener.open_again(&*self.log)?);
            self.listener.read_to_end(&*self.log, now_ms)?;
            self.is_deaf = false;
        }
        if let Some(term) = self.replaced_by() {
            return Ok(Turn::Replaced { term });
        }
        if !self.knows_all(now_ms) {
            return Ok(Turn::Hearing);
        }
        if matches!(self.role, Role::ToLead) {
            self.fence(now_ms)?;
            if let Some(term) = self.replaced_by() {
                return Ok(Turn::Replaced { term });
            }
            self.term.get_or_insert(self.listener.view().plan().map_or(0, |plan| plan.version.term) + 1);
        }
        let mut outcome = self.make(wishes, self.term.unwrap_or_default(), now_ms);
        if outcome.plan.placements.is_empty() {
            return Ok(Turn::NoWorkers);
        }
        let is_published = self.publish_new(&mut outcome.plan)?;
        Ok(Turn::Planned { outcome, is_published })
    }

    /// Whoever hears nothing would take everybody for dead.
    fn check_hearing(&mut self, now_ms: u64) -> Result<(), LogError> {
        if !has_passed(HEARING_EVERY_MS, self.asked_ms, now_ms) {
            return Ok(());
        }
        self.asked_ms = now_ms;
        let deaf = self.hearing.ask(&self.listener.listened(), &*self.log, now_ms);
        deaf.map_or(Ok(()), |deaf| Err(LogError::Unavailable(deaf.to_string())))
    }

    /// The term of one who was started later, if there is one.
    fn replaced_by(&self) -> Option<u64> {
        let (own, newest) = (self.term?, self.current()?.term);
        (newest > own).then_some(newest)
    }

    /// The plan that follows from what was heard; of the term in force when this one is lower.
    pub fn make(&self, wishes: &Wishes, term: u64, now_ms: u64) -> Outcome {
        let view = self.view();
        let mut workers = view.alive(now_ms);
        for worker in &mut workers {
            worker.leaving |= wishes.leaving.contains(&worker.name);
        }
        planner::plan(&planner::Input {
            term,
            generation: self.generation(),
            workers: &workers,
            stages: &self.stages,
            standings: &view.standings(now_ms),
            previous: view.plan(),
            pinned: &wishes.pinned,
            limits: wishes.limits,
        })
    }

    fn publish_new(&mut self, plan: &mut Plan) -> Result<bool, LogError> {
        let (Role::Leads(_), Some(term)) = (&self.role, self.term) else { return Ok(false) };
        if plan.version.term < term {
            plan.version = Version { term, number: plan.version.number.saturating_add(1) };
        }
        let is_new = self.current() != Some(plan.version);
        if is_new {
            self.publish(plan.clone())?;
        }
        Ok(is_new)
    }

    /// Publishes who may send, and on which terms, as far as that is not what was published before: tenants that are not among these are gone. How many it was. Nothing is published by one who
    /// does not lead. `wall_ms`: the time of day, milliseconds since 1970, from which an erasure that begins has its time.
    ///
    /// # Errors
    /// [`LogError`]: the next turn begins anew.
    pub fn publish_tenants(&mut self, wanted: &BTreeMap<String, Terms>, wall_ms: u64) -> Result<usize, LogError> {
        let changes = changes(self.view().tenants(), wanted, wall_ms);
        self.publish_changes(&changes)
    }

    /// Publishes how many gateways share the rates of tenants, unless that was published before; whether it was to be. Nothing is published by one who does not lead.
    ///
    /// # Errors
    /// [`LogError`]: the next turn begins anew.
    pub fn publish_gateways(&mut self, count: u32) -> Result<bool, LogError> {
        let known = self.view().gateway_count().unwrap_or_default();
        if known.count == count {
            return Ok(false);
        }
        let changed = Control::Gateways(Gateways { version: known.version.saturating_add(1), count });
        self.publish_changes(&[changed]).map(|published| published > 0)
    }

    fn publish_changes(&mut self, changes: &[Control]) -> Result<usize, LogError> {
        let Role::Leads(publisher) = &mut self.role else { return Ok(0) };
        for some in changes.chunks(TENANTS_AT_ONCE) {
            if let Err(error) = publisher.publish_all(some) {
                (self.role, self.is_deaf) = (Role::ToLead, true);
                return Err(error);
            }
        }
        Ok(changes.len())
    }

    /// Asks whether the log is there: a reader that gets nothing does not know whether anything was said.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn check_log(&self) -> Result<(), LogError> {
        [&self.topics.control, &self.topics.status]
            .into_iter()
            .try_for_each(|topic| self.log.bounds(&TopicPartition::new(topic.clone(), 0)).map(drop))
    }

    /// `control` was heard up to here, exclusive.
    pub fn control_offset(&self) -> u64 {
        self.listener.control_offset()
    }

    /// Do they all go by the newest that was said about this tenant?
    pub fn all_go_by(&self, horizon: &Horizon, tenant: &str) -> bool {
        self.said(tenant).is_some_and(|(offset, terms)| horizon.goes_by(offset, terms))
    }

    /// Does this one go by the newest that was said about this tenant?
    pub fn goes_by(&self, judge: &Judge<'_>, tenant: &str) -> bool {
        self.said(tenant).is_some_and(|(offset, terms)| judge.goes_by(offset, terms))
    }

    /// The newest that was said about this tenant, and where in `control`.
    pub fn said(&self, tenant: &str) -> Option<(u64, &Terms)> {
        let offset = self.listener.tenant_offset(tenant)?;
        Some((offset, &self.view().tenants().get(tenant)?.terms))
    }

    /// How far the erasure of a tenant is, when there is one.
    pub fn erasure(&self, tenant: &str, now_ms: u64) -> Option<Erasure> {
        let step = self.view().tenants().get(tenant)?.terms.erasing?;
        let offset = self.listener.tenant_offset(tenant)?;
        let view = self.view();
        let stage = match step {
            Erasing::State => "action",
            Erasing::Documents => "reaction",
        };
        let judges = view.judges(now_ms);
        let waiting = judges.iter().filter(|judge| offset >= judge.control_offset).count();
        let waiting = u32::try_from(waiting).unwrap_or(u32::MAX).max(view.unheard(offset, now_ms));
        Some(Erasure {
            step,
            stage,
            unheard: waiting,
            done: view.carried_out(stage, offset, now_ms),
            shards: self.stages.get(stage).copied().unwrap_or_default(),
        })
    }

    /// Publishes a plan, after [`Planning::fence`]; without that nothing is published.
    ///
    /// # Errors
    /// [`LogError`]: whether it is there is to be seen.
    pub fn publish(&mut self, plan: Plan) -> Result<(), LogError> {
        match &mut self.role {
            Role::Leads(publisher) => publisher.publish(plan),
            Role::Looks | Role::ToLead => Err(LogError::Configuration("whoever publishes a plan must lead".to_owned())),
        }
    }
}

/// How far the erasure of a tenant is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Erasure {
    /// What is being done.
    pub step: Erasing,
    /// By which stage.
    pub stage: &'static str,
    /// Workers, gateways included, and shards of unify that have not heard of it.
    pub unheard: u32,
    /// Shards of the stage that have done it.
    pub done: u32,
    /// All shards of the stage.
    pub shards: u32,
}

impl Erasure {
    /// The step is done.
    pub fn is_done(&self) -> bool {
        self.unheard == 0 && self.shards > 0 && self.done >= self.shards
    }

    /// The step that is to be published now; `None`: all is done.
    pub fn next(&self) -> Option<Erasing> {
        match (self.is_done(), self.step) {
            (false, step) => Some(step),
            (true, Erasing::State) => Some(Erasing::Documents),
            (true, Erasing::Documents) => None,
        }
    }
}

/// What is erased reaches so far beyond the moment at which that is said: clocks of brokers and operators differ, and gateways hear of it one by one.
const ERASED_AHEAD_MS: u64 = 60_000;

/// What has to be said so that exactly these tenants are known, on these terms.
fn changes(known: &BTreeMap<String, Tenant>, wanted: &BTreeMap<String, Terms>, wall_ms: u64) -> Vec<Control> {
    // What was erased stays so, whatever comes later.
    let erased_ms = |name: &str, terms: &Terms| {
        let before = known.get(name);
        let begins = terms.erasing.is_some() && before.is_none_or(|before| before.terms.erasing.is_none());
        let before_ms = before.map_or(0, |before| before.erased_ms);
        if begins { before_ms.max(wall_ms.saturating_add(ERASED_AHEAD_MS)) } else { before_ms }
    };
    let version = known.values().map(|tenant| tenant.version).max().unwrap_or_default() + 1;
    let is_said =
        |name: &str, terms: &Terms| known.get(name).is_some_and(|tenant| !tenant.is_deleted && tenant.terms == *terms);
    let others = wanted.iter().filter(|(name, terms)| !is_said(name, terms));
    let others = others.map(|(name, terms)| {
        let erased_ms = erased_ms(name, terms);
        Tenant { name: name.clone(), version, terms: terms.clone(), is_deleted: false, erased_ms }
    });
    let gone = known.values().filter(|tenant| !tenant.is_deleted && !wanted.contains_key(&tenant.name));
    let gone = gone.map(|tenant| {
        let (name, erased_ms) = (tenant.name.clone(), tenant.erased_ms);
        Tenant { name, version, terms: Terms::default(), is_deleted: true, erased_ms }
    });
    others.chain(gone).map(Control::Tenant).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_changed_about_tenants_is_said() {
        let keys = |of: &[u8]| Terms { api_keys: of.iter().map(|key| [*key; 32]).collect(), ..Terms::default() };
        let tenant = |name: &str, version, of: &[u8], is_deleted| Tenant {
            name: name.to_owned(),
            version,
            terms: keys(of),
            is_deleted,
            erased_ms: 0,
        };
        let known = [tenant("same", 3, &[1], false), tenant("more", 5, &[1], false), tenant("went", 1, &[2], false)];
        let known = known.into_iter().chain([tenant("back", 4, &[], true), tenant("gone", 4, &[], true)]);
        let mut known: BTreeMap<String, Tenant> = known.map(|tenant| (tenant.name.clone(), tenant)).collect();
        let wanted = [("same", &[1][..]), ("more", &[1, 2]), ("back", &[4]), ("new", &[])];
        let wanted = wanted.map(|(name, of)| (name.to_owned(), keys(of))).into();
        let said = changes(&known, &wanted, 1_000);
        let expected = [
            tenant("back", 6, &[4], false),
            tenant("more", 6, &[1, 2], false),
            tenant("new", 6, &[], false),
            tenant("went", 6, &[], true),
        ];
        assert_eq!(said, expected.map(Control::Tenant));
        for control in said {
            let Control::Tenant(tenant) = control else { panic!("{control:?}") };
            known.insert(tenant.name.clone(), tenant);
        }
        assert_eq!(changes(&known, &wanted, 1_000), []);
        // Another rate is something new, too.
        let mut wanted = wanted;
        wanted.get_mut("same").unwrap().rate.records = Some(5);
        let Control::Tenant(said) = &changes(&known, &wanted, 1_000)[..][0] else { panic!("{wanted:?}") };
        assert_eq!((said.name.as_str(), &said.terms, said.version), ("same", &wanted["same"], 7));
    }

    #[test]
    fn what_is_erased_stays_so_and_an_erasure_has_one_time() {
        let terms = |erasing| Terms { erasing, ..Terms::default() };
        let mut known: BTreeMap<String, Tenant> = BTreeMap::new();
        let mut said = |wanted: Option<Terms>, now_ms| {
            let wanted = wanted.map(|terms| ("acme".to_owned(), terms)).into_iter().collect();
            for control in changes(&known, &wanted, now_ms) {
                let Control::Tenant(tenant) = control else { panic!("{control:?}") };
                known.insert(tenant.name.clone(), tenant);
            }
            let Tenant { erased_ms, is_deleted, .. } = known["acme"];
            (erased_ms, is_deleted)
        };
        assert_eq!(said(Some(terms(None)), 1_000), (0, false));
        assert_eq!(said(Some(terms(Some(Erasing::State))), 2_000), (62_000, false));
        assert_eq!(said(Some(terms(Some(Erasing::Documents))), 3_000), (62_000, false));
        assert_eq!(said(None, 4_000), (62_000, true));
        assert_eq!(said(Some(terms(None)), 100_000), (62_000, false), "what it sends from now on is its own");
        assert_eq!(said(Some(terms(Some(Erasing::State))), 200_000), (260_000, false));
    }
}

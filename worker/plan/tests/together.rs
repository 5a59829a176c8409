//! Planner, views and duties together: processes die, restart, leave and are cut off, and once that stops every shard is where the plan says, the plan
//! is balanced, and nothing moves any more. What Kafka does is one line here: a shard's lock has one holder and an epoch.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use millstream_plan::incarnation::Incarnation;
use millstream_plan::message::Control;
use millstream_plan::plan::{Plan, ShardId};
use millstream_plan::planner::{Input, Limits, plan};
use millstream_plan::status::{Role, ShardStatus, WorkerStatus};
use millstream_plan::view::{Bounds, Duty, Me, Verdict, View};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const TICK_MS: u64 = 500;
const GENERATION: u32 = 1;
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

struct Process {
    status: WorkerStatus,
    view: View,
    /// Neither heard nor hearing until this tick.
    cut_until: u64,
    leaves_at: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Lock {
    epoch: u64,
    holder: Option<Incarnation>,
}

struct Cluster {
    tick: u64,
    processes: Vec<Process>,
    operator: View,
    operator_is_gone: bool,
    stages: BTreeMap<String, u32>,
    limits: Limits,
    locks: BTreeMap<ShardId, Lock>,
}

#[derive(Clone, Debug)]
enum Fate {
    Dies(usize),
    Starts(usize),
    Leaves(usize),
    IsCut(usize, u64),
    OperatorRestarts,
    Nothing,
}

impl Cluster {
    fn new(shards: u32, limits: Limits) -> Cluster {
        let stages = BTreeMap::from([("action".to_owned(), shards)]);
        let operator = View::new(GENERATION, Bounds::default());
        let mut cluster = Cluster {
            tick: 0,
            processes: vec![],
            operator,
            operator_is_gone: false,
            stages,
            limits,
            locks: BTreeMap::new(),
        };
        (0..NAMES.len()).for_each(|index| cluster.start(index));
        cluster
    }

    fn now_ms(&self) -> u64 {
        self.tick * TICK_MS
    }

    fn happen(&mut self, fate: &Fate) {
        let is = |index: usize| move |process: &&mut Process| process.status.worker == NAMES[index];
        match fate {
            Fate::Dies(index) => self.processes.retain(|process| process.status.worker != NAMES[*index]),
            Fate::Starts(index) => self.start(*index),
            Fate::Leaves(index) => {
                let at = self.tick;
                self.processes.iter_mut().filter(is(*index)).for_each(|process| process.leaves_at = Some(at));
            }
            Fate::IsCut(index, ticks) => {
                let until = self.tick + ticks;
                self.processes.iter_mut().filter(is(*index)).for_each(|process| process.cut_until = until);
            }
            Fate::OperatorRestarts => {
                let plan = self.operator.plan().cloned();
                self.operator = View::new(GENERATION, Bounds::default());
                plan.into_iter().for_each(|plan| self.operator.control(Control::Plan(plan), self.tick * TICK_MS));
            }
            Fate::Nothing => {}
        }
    }

    /// Starts a process, also beside one of its name that is cut off: a twin.
    fn start(&mut self, index: usize) {
        let name = NAMES[index];
        if self.processes.iter().any(|process| process.status.worker == name && process.cut_until <= self.tick) {
            return;
        }
        // The random part is the worker's, so that no two processes have one incarnation, whatever their names: locks know no names.
        let newest = self.operator.newest_incarnation(name);
        let status = WorkerStatus {
            worker: name.into(),
            incarnation: Incarnation::after(newest, self.now_ms(), index as u32),
            sequence: 0,
            generation: GENERATION,
            zone: format!("zone {}", index % 2),
            node: format!("node {index}"),
            started_ms: self.now_ms(),
            capacity: 1,
            leaving: false,
            stages: self.stages.keys().cloned().collect(),
            shards: BTreeMap::new(),
            control_offset: 0,
            version: String::new(),
            known: BTreeMap::new(),
            unable: BTreeSet::new(),
            knows_markers: true,
        };
        let view = View::new(GENERATION, Bounds::default());
        self.processes.push(Process { status, view, cut_until: 0, leaves_at: None });
    }

    fn tick(&mut self) {
        self.tick += 1;
        self.report();
        self.publish();
        let mut processes = std::mem::take(&mut self.processes);
        for index in 0..processes.len() {
            self.act(&mut processes, index);
        }
        self.processes = processes;
        let tick = self.tick;
        self.processes.retain(|process| !process.is_done(tick));
    }

    fn report(&mut self) {
        let (tick, now_ms) = (self.tick, self.now_ms());
        let mut reports = Vec::new();
        for process in self.processes.iter_mut().filter(|process| process.cut_until <= tick) {
            process.status.sequence += 1;
            process.status.leaving = process.leaves_at.is_some();
            reports.push(process.status.clone());
        }
        let hearing = self.processes.iter_mut().filter(|process| process.cut_until <= tick);
        for view in hearing.map(|process| &mut process.view).chain([&mut self.operator]) {
            reports.iter().for_each(|report| view.status(report.clone(), now_ms));
        }
    }

    /// The newest plan, to all that hear: the operator's next one, or what the topic holds.
    fn publish(&mut self) {
        let (tick, now_ms) = (self.tick, self.now_ms());
        let may_plan = !self.operator_is_gone && self.operator.knows_all(now_ms);
        let newest = if may_plan { Some(self.next_plan()) } else { self.operator.plan().cloned() };
        let hearing = self.processes.iter_mut().filter(|process| process.cut_until <= tick);
        for view in hearing.map(|process| &mut process.view).chain([&mut self.operator]) {
            newest.iter().for_each(|plan| view.control(Control::Plan(plan.clone()), now_ms));
        }
    }

    fn next_plan(&self) -> Plan {
        let (workers, standings) = (self.operator.alive(self.now_ms()), self.operator.standings(self.now_ms()));
        let input = Input {
            term: 1,
            generation: GENERATION,
            workers: &workers,
            stages: &self.stages,
            standings: &standings,
            previous: self.operator.plan(),
            pinned: &BTreeMap::new(),
            limits: self.limits,
        };
        plan(&input).plan
    }

    fn act(&mut self, processes: &mut [Process], index: usize) {
        let process = &processes[index];
        let incarnation = process.status.incarnation.clone();
        let me = Me { worker: &process.status.worker, incarnation: &incarnation, leaving: process.leaves_at.is_some() };
        if process.view.verdict(&me) != Verdict::GoOn {
            processes[index].leaves_at = Some(0);
            return;
        }
        for (id, duty) in process.view.duties(&me, self.now_ms()) {
            self.follow(processes, index, &id, &duty);
        }
    }

    fn follow(&mut self, processes: &mut [Process], index: usize, id: &ShardId, duty: &Duty) {
        let me = processes[index].status.incarnation.clone();
        let lock = self.locks.entry(id.clone()).or_default();
        let holds = lock.holder.as_ref() == Some(&me);
        match duty {
            Duty::Own | Duty::TakeOver if !holds => *lock = Lock { epoch: lock.epoch + 1, holder: Some(me.clone()) },
            Duty::Release { to: Some(heir) } if holds => {
                let is_there = |process: &Process| {
                    let shard = process.status.shards.get(id);
                    process.status.incarnation == heir.incarnation
                        && shard.is_some_and(|shard| {
                            shard.prepared.as_ref() == Some(&heir.client) && shard.epoch == lock.epoch
                        })
                };
                // Released to one that is there no more, nobody has it.
                let there = processes.iter().any(is_there);
                *lock = Lock { epoch: lock.epoch + u64::from(there), holder: there.then(|| heir.incarnation.clone()) };
            }
            Duty::Nothing if holds => lock.holder = None,
            _ => {}
        }
        let lock = lock.clone();
        let holds = lock.holder.as_ref() == Some(&me);
        let status = &mut processes[index].status;
        let before = status.shards.remove(id).map(|shard| shard.role);
        if let Some(shard) = shard_status(&me, &lock, holds, before, duty) {
            status.shards.insert(id.clone(), shard);
        }
    }
}

fn shard_status(me: &Incarnation, lock: &Lock, holds: bool, before: Option<Role>, duty: &Duty) -> Option<ShardStatus> {
    let role = match (holds, before, duty) {
        (true, ..) => Role::Owner,
        (_, _, Duty::Nothing) => return None,
        (_, None, _) => Role::Opening,
        _ => Role::Standby,
    };
    let prepares = role == Role::Standby && matches!(duty, Duty::Standby { prepare: true, .. });
    let prepared = prepares.then(|| format!("{me} at {}", lock.epoch));
    Some(ShardStatus { role, epoch: lock.epoch, prepared, ..ShardStatus::default() })
}

impl Process {
    /// It was told to end, and has nothing to give away or waited long enough for it.
    fn is_done(&self, tick: u64) -> bool {
        let has_some = self.status.shards.values().any(|shard| shard.role == Role::Owner);
        self.leaves_at.is_some_and(|at| (tick > at + 2 && !has_some) || tick > at + 60)
    }
}

fn fates() -> impl Strategy<Value = Vec<Fate>> {
    let index = || 0..NAMES.len();
    let fate = prop_oneof![
        1 => index().prop_map(Fate::Dies),
        2 => index().prop_map(Fate::Starts),
        1 => index().prop_map(Fate::Leaves),
        1 => Just(Fate::OperatorRestarts),
        1 => (index(), 1_u64..40).prop_map(|(index, ticks)| Fate::IsCut(index, ticks)),
        12 => Just(Fate::Nothing),
    ];
    prop::collection::vec(fate, 0..150)
}

/// In the end: each shard is held by the owner that the plan names, evenly.
fn check(cluster: &Cluster) -> Result<(), TestCaseError> {
    let plan: &Plan = cluster.operator.plan().unwrap();
    let mut owned: BTreeMap<&str, usize> = BTreeMap::new();
    for (id, placement) in &plan.placements {
        let holder = cluster
            .processes
            .iter()
            .find(|process| cluster.locks[id].holder.as_ref() == Some(&process.status.incarnation));
        prop_assert_eq!(holder.map(|process| process.status.worker.as_str()), Some(placement.owner.as_str()), "{}", id);
        *owned.entry(&placement.owner).or_default() += 1;
    }
    let counts =
        cluster.processes.iter().map(|process| owned.get(process.status.worker.as_str()).copied().unwrap_or(0));
    let counts: Vec<usize> = counts.collect();
    prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{:?}", counts);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn once_faults_stop_every_shard_is_where_the_plan_says_and_stays(
        fates in fates(), shards in 1_u32..9, moves in 1_usize..3, successors in 0_usize..3, warm in 0_u32..3,
    ) {
        let mut cluster = Cluster::new(shards, Limits { moves, successors, warm, lag: 40 });
        for fate in &fates {
            cluster.happen(fate);
            cluster.tick();
        }
        // Whoever is cut comes back, whoever leaves is gone, and somebody is there.
        (0..100).for_each(|_| cluster.tick());
        cluster.start(0);
        (0..300).for_each(|_| cluster.tick());
        check(&cluster)?;
        let rest = (cluster.locks.clone(), cluster.operator.plan().cloned());
        (0..60).for_each(|_| cluster.tick());
        prop_assert_eq!(rest, (cluster.locks.clone(), cluster.operator.plan().cloned()), "no peace");
    }

    #[test]
    fn a_worker_that_leaves_gives_its_shards_away_without_an_operator(shards in 1_u32..9, leaver in 0..NAMES.len()) {
        let mut cluster = Cluster::new(shards, Limits::default());
        (0..40).for_each(|_| cluster.tick());
        let before = cluster.locks.clone();
        cluster.operator_is_gone = true;
        cluster.happen(&Fate::Leaves(leaver));
        (0..20).for_each(|_| cluster.tick());
        prop_assert!(cluster.processes.iter().all(|process| process.status.worker != NAMES[leaver]));
        for (id, lock) in &cluster.locks {
            let holder = cluster.processes.iter().find(|process| lock.holder.as_ref() == Some(&process.status.incarnation));
            prop_assert!(holder.is_some(), "nobody has {}", id);
            prop_assert!(lock.epoch <= before[id].epoch + 1, "{} moved more than once", id);
        }
    }
}

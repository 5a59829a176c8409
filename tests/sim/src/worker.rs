//! A worker's process: the real member and the real seats, each in a coroutine of its own, as in the program each has a thread.

use crate::counts::{Fault, Protocol};
use crate::disk::{Place, Trouble};
use crate::sim::{Running, Sim, SimClock, SimExecutor};
use crate::world::ProcessId;
use millstream_plan::plan::ShardId;
use millstream_plan::status::{Role, ShardStatus};
use millstream_plan::view::{Duty, Verdict};
use millstream_shard::ShardError;
use millstream_shard::checkpoint::Checkpoints;
use millstream_shard::follower::Wanted;
use millstream_shard::member::{Member, Now, Order, Profile};
use millstream_shard::ownership::{Claimant, Mended};
use millstream_shard::runtime::{Environment, Shard};
use millstream_shard::seat::{Parts, Seat, Step};
use millstream_shard::state::{StateStore, StoreError};
use millstream_stages::Stage;
use millstream_stages::action::ActionStage;
use millstream_stages::unify::Unify;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a member listens before it looks at its shards again.
const LISTEN: Duration = Duration::from_millis(120);
/// How long a process that was told to leave waits for heirs.
const LEAVING_MS: u64 = 5_000;
/// How long a process that must end waits for its shards.
const ENDING_MS: u64 = 3_000;

/// What the coroutines of a process share.
#[derive(Default)]
pub struct Desk {
    orders: BTreeMap<ShardId, Order>,
    statuses: BTreeMap<ShardId, ShardStatus>,
    /// Which of them others kept from their work the last time.
    kept: BTreeSet<ShardId>,
    /// Everybody closes and ends.
    ends: bool,
    seats: usize,
}

/// What the coroutines of a process share.
pub type SharedDesk = Arc<Mutex<Desk>>;

fn lock(desk: &SharedDesk) -> MutexGuard<'_, Desk> {
    desk.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a process of a name on a machine.
pub fn start(sim: &Sim, name: &str, machine: u32) -> ProcessId {
    let skew_ms = sim.draw(|rng| rng.between(0, 800) as i64 - 400);
    let number = sim.draw(|rng| rng.below(1 << 32) as u32);
    let process = sim.world.process(format!("{name}@{machine}"), skew_ms);
    sim.cluster().running.push(Running { name: name.to_owned(), machine, process, leaving: false });
    let (inside, name) = (sim.clone(), name.to_owned());
    sim.world.spawn(process, "member", move || Worker { sim: inside, name, machine, process, number }.run());
    process
}

struct Worker {
    sim: Sim,
    name: String,
    machine: u32,
    process: ProcessId,
    number: u32,
}

impl Worker {
    fn run(&self) {
        let mut member = self.join();
        let desk = SharedDesk::default();
        self.sim.cluster().desks.push((self.process, desk.clone()));
        self.seat_all(&desk, member.incarnation().as_str());
        let (mut plan, mut leaving_since_ms, mut unable) = (None, None, BTreeSet::new());
        loop {
            let now_ms = self.sim.world.monotonic_ms();
            // A poll that fails is tried again: until then the member hears nothing, and knows it.
            let _ = member.listen(LISTEN, now_ms);
            // Reports come one by one; it looks at its duties several times per second only.
            self.sim.world.sleep_ms(40);
            let now_ms = self.sim.world.monotonic_ms();
            if member.verdict() != Verdict::GoOn {
                self.sim.world.count(Protocol::TwinEnded);
                self.end(&desk);
                return;
            }
            let leaving = self.is_leaving();
            if leaving && !member.is_leaving() {
                member.leave();
                leaving_since_ms = Some(now_ms);
            }
            let too_long = leaving_since_ms.is_some_and(|since_ms| now_ms > since_ms + LEAVING_MS);
            let version = member.view().plan().map(|plan| plan.version);
            if version > std::mem::replace(&mut plan, version) {
                self.sim.world.count(Protocol::PlanAdopted);
            }
            let orders = member.orders(now_ms);
            let (statuses, kept) = {
                let mut desk = lock(&desk);
                desk.orders = orders;
                (desk.statuses.clone(), desk.kept.clone())
            };
            let has_some = statuses.values().any(|status| status.role == Role::Owner);
            member.report(statuses, &kept, now_ms);
            self.count_unable(&member, &mut unable);
            if leaving && (too_long || !has_some) {
                self.sim.world.count(Protocol::Left);
                self.end(&desk);
                return;
            }
        }
    }

    fn count_unable(&self, member: &Member, before: &mut BTreeSet<ShardId>) {
        let unable = member.unable();
        unable.difference(before).for_each(|_| self.sim.world.count(Protocol::Unable));
        *before = unable;
    }

    fn is_leaving(&self) -> bool {
        self.sim.cluster().running.iter().any(|running| running.process == self.process && running.leaving)
    }

    fn join(&self) -> Member {
        let profile = Profile {
            worker: self.name.clone(),
            zone: String::new(),
            node: format!("machine {}", self.machine),
            capacity: 1,
            stages: ["unify".to_owned(), "action".to_owned()].into(),
            version: String::new(),
        };
        let world = &self.sim.world;
        loop {
            let now = Now { wall_ms: world.clock_ms(self.process), monotonic_ms: world.monotonic_ms() };
            let (log, bounds) = (self.sim.log.of(self.process), self.sim.settings.bounds);
            match Member::join(&log, &self.sim.topics, profile.clone(), self.number, bounds, now) {
                Ok(member) => return member,
                Err(error) => {
                    world.trace(|| format!("cannot join: {error}"));
                    world.sleep_ms(200);
                }
            }
        }
    }

    /// Closes everything, as far as that is possible soon, and ends the process.
    fn end(&self, desk: &SharedDesk) {
        lock(desk).ends = true;
        let until_ms = self.sim.world.monotonic_ms() + ENDING_MS;
        while lock(desk).seats > 0 && self.sim.world.monotonic_ms() < until_ms {
            self.sim.world.sleep_ms(20);
        }
        self.sim.world.crash(self.process);
    }

    fn seat_all(&self, desk: &SharedDesk, incarnation: &str) {
        let claimant = Claimant::new(self.name.clone(), incarnation);
        let environment = self.environment(claimant);
        for (stage, shard) in self.sim.shards() {
            lock(desk).seats += 1;
            let (sim, process, machine, desk) = (self.sim.clone(), self.process, self.machine, desk.clone());
            let (id, environment) = (ShardId::new(stage, shard), environment.clone());
            let chair = Chair { sim, process, machine, stage, shard, id, desk };
            self.sim.world.spawn(process, format!("{stage}[{shard}]"), move || match stage {
                "unify" => chair.run(environment, Unify::default),
                _ => chair.run(environment, ActionStage::default),
            });
        }
    }

    /// Of all shards of the process.
    fn checkpoints(&self) -> Option<Arc<Checkpoints>> {
        let policy = self.sim.settings.checkpoints.clone()?;
        let objects = Arc::new(self.sim.objects.of(self.process));
        Some(Arc::new(Checkpoints::new(objects, self.sim.topics.clone(), policy)))
    }

    fn environment(&self, claimant: Claimant) -> Environment {
        let (world, process) = (self.sim.world.clone(), self.process);
        Environment {
            log: Arc::new(self.sim.log.of(process)),
            clock: Arc::new(SimClock { world: world.clone(), process }),
            executor: Arc::new(SimExecutor { world, process }),
            topics: self.sim.topics.clone(),
            claimant,
            checkpoints: self.checkpoints(),
        }
    }
}

/// The thread of one seat.
struct Chair {
    sim: Sim,
    process: ProcessId,
    machine: u32,
    stage: &'static str,
    shard: u32,
    id: ShardId,
    desk: SharedDesk,
}

impl Chair {
    fn run<S: Stage + 'static>(self, environment: Environment, make: impl Fn() -> S + Send + 'static) {
        let (sim, process) = (self.sim.clone(), self.process);
        let place = Place { machine: self.machine, stage: self.stage, shard: self.shard };
        let open_store = Box::new(move || open_store(&sim, process, &place));
        let limits = self.sim.settings.limits.clone();
        let (name, shard) = (self.stage, self.shard);
        let (make, moves) = (Box::new(make), Arc::new(|| Wanted::All));
        let mut seat = Seat::new(Parts { name, shard, environment, limits, make, open_store, moves });
        let mut pause_ms = 50;
        loop {
            let order = {
                let desk = lock(&self.desk);
                if desk.ends {
                    break;
                }
                desk.orders.get(&self.id).cloned().unwrap_or_default()
            };
            let before = seat.status();
            match seat.step(&order) {
                Ok(step) => {
                    self.note(&seat.status(), String::new());
                    self.count(&order, &before, &step);
                    self.taken(&mut seat);
                    if seat.shard().is_some_and(|shard| shard.holds_inputs()) {
                        self.sim.world.count(Protocol::InputsHeld);
                    }
                    if matches!(step, Step::Idle) {
                        self.sim.world.sleep_ms(150);
                    } else {
                        pause_ms = 50;
                    }
                }
                Err(error) => {
                    self.failed(&error);
                    self.note(&seat.status(), error.to_string());
                    let jitter_ms = self.sim.draw(|rng| rng.below(pause_ms));
                    self.sim.world.sleep_ms(pause_ms + jitter_ms);
                    pause_ms = (pause_ms * 2).min(1_600);
                }
            }
        }
        // What was not stored is in the changelog.
        let _ = seat.close();
        drop(seat);
        lock(&self.desk).seats -= 1;
    }

    fn taken<S: Stage>(&self, seat: &mut Seat<S>) {
        let Some(taken) = seat.shard().and_then(Shard::take_taken) else { return };
        let world = &self.sim.world;
        world.count(Protocol::CheckpointTaken);
        if taken.uploaded_bytes < taken.bytes {
            world.count(Protocol::FilesShared);
        }
        if taken.trimmed.is_some() {
            world.count(Protocol::ChangelogTrimmed);
        }
        world.trace(|| format!("{taken:?}"));
    }

    fn note(&self, status: &ShardStatus, condition: String) {
        let mut desk = lock(&self.desk);
        let open = status.role != Role::Opening || !condition.is_empty();
        if open {
            desk.statuses.insert(self.id.clone(), ShardStatus { condition, ..status.clone() });
        } else {
            desk.statuses.remove(&self.id);
        }
    }

    fn failed(&self, error: &ShardError) {
        let world = &self.sim.world;
        world.trace(|| format!("error: {error}"));
        match error {
            ShardError::Away(_) | ShardError::InDoubt(_) => lock(&self.desk).kept.insert(self.id.clone()),
            _ => lock(&self.desk).kept.remove(&self.id),
        };
        let ShardError::Stopped(why) = error else { return };
        world.count(Protocol::Stopped);
        let mut cluster = self.sim.cluster();
        let must = cluster.must_stop.iter_mut().find(|it| (it.0, it.1) == (self.stage, self.shard));
        match must {
            Some((.., stopped)) => *stopped = true,
            // Of a shard that somebody else owns by now, the input may have been trimmed.
            None if why.contains("is not at offset") && !why.contains("changelog") => {}
            None => {
                drop(cluster);
                world.fail(format!("{} stopped without a reason: {why}", self.id));
            }
        }
    }

    /// Rule 2: whoever has a prepared client has one of the id that the log does not name, as far as it has read.
    fn prepared(&self) {
        let world = &self.sim.world;
        world.count(Protocol::Prepared);
        let epoch = lock(&self.desk).statuses.get(&self.id).map_or(0, |status| status.epoch);
        let ids = [0, 1].map(|slot| self.sim.topics.transactional_id(self.stage, self.shard, slot));
        let slot = self.sim.log.newest_init(self.process, &ids).map(|slot| slot as u32);
        let named = crate::audit::named_slot(&self.sim, self.stage, self.shard, epoch);
        if slot.is_some() && slot == named {
            world.fail(format!("rule 2: {} prepared a client of the id that epoch {epoch} names", self.id));
        }
    }

    fn count(&self, order: &Order, before: &ShardStatus, step: &Step) {
        let world = &self.sim.world;
        if let Step::Acquired { mended: Mended { ended, copied }, .. } = step {
            (0..*ended).for_each(|_| world.count(Protocol::ForgottenEnded));
            (0..*copied).for_each(|_| world.count(Protocol::ForgottenCopied));
        }
        match step {
            Step::Opened => world.count(Protocol::StandbyOpened),
            Step::Acquired { by_handoff: true, .. } => world.count(Protocol::Received),
            Step::Acquired { by_handoff: false, .. } if order.epoch > 0 => world.count(Protocol::TakenOver),
            Step::Released => world.count(Protocol::Released),
            Step::Batch(Some(report)) if report.records > 0 => world.count(Protocol::Batch),
            Step::Followed => {
                let now = lock(&self.desk).statuses.get(&self.id).and_then(|status| status.prepared.clone());
                match (&before.prepared, now) {
                    (Some(old), new) if Some(old) != new.as_ref() => world.count(Protocol::PreparedDiscarded),
                    (None, Some(_)) => self.prepared(),
                    _ => {}
                }
            }
            _ => {}
        }
        world.trace(|| format!("{:?}: {step:?}", order.duty).chars().take(160).collect());
        debug_assert!(!matches!((&order.duty, step), (Duty::Nothing, Step::Acquired { .. })));
    }
}

/// What every process does with every shard.
pub fn conditions(sim: &Sim) -> String {
    let desks = sim.cluster().desks.clone();
    let mut text = String::new();
    for (process, desk) in desks.into_iter().filter(|(process, _)| !sim.world.is_dead(*process)) {
        let desk = lock(&desk);
        for (id, order) in &desk.orders {
            let status = desk.statuses.get(id).map(|it| format!("{:?}, epoch {}, {}", it.role, it.epoch, it.condition));
            let status = status.unwrap_or_default();
            text += &format!("\n  {} {id}: {:?} at {:?}, {status}", sim.world.name(process), order.duty, order.plan);
        }
    }
    text
}

/// A folder that is damaged is removed: the changelog has everything.
fn open_store(sim: &Sim, process: ProcessId, place: &Place) -> Result<Arc<dyn StateStore>, StoreError> {
    match sim.disks.open(process, place.clone()) {
        Ok(state) => {
            let end = sim.log.look(|broker| broker.bounds(&sim.topics.changelog(place.stage), place.shard));
            match state.is_empty() {
                false => sim.world.count(Protocol::Replayed),
                true if end.as_ref().is_ok_and(|(start, _)| *start > 0) => sim.world.count(Protocol::CheckpointNeeded),
                true if end.is_ok_and(|(_, end)| end > 10) => sim.world.count(Protocol::ReadFromTheBeginning),
                true => {}
            }
            Ok(state)
        }
        Err(Trouble::InUse) => Err(crate::disk::failed("LOCK: another process has the folder open")),
        Err(Trouble::Torn) => {
            sim.disks.remove(place);
            match sim.disks.open(process, place.clone()) {
                Ok(state) => Ok(state),
                Err(trouble) => Err(crate::disk::failed(&format!("{trouble:?}"))),
            }
        }
    }
}

/// The disk of somebody who owns a shard breaks.
pub fn break_disk(sim: &Sim, is_unreadable: bool) {
    let desks = sim.cluster().desks.clone();
    let running = sim.cluster().running.clone();
    let owned = desks.iter().filter(|(process, _)| sim.world.is_running(*process)).find_map(|(process, desk)| {
        let desk = lock(desk);
        let owned = desk.statuses.iter().find(|(_, status)| status.role == Role::Owner);
        owned.map(|(id, _)| (*process, id.clone()))
    });
    let Some((process, id)) = owned else { return };
    let Some(machine) = running.iter().find(|it| it.process == process).map(|it| it.machine) else { return };
    let stage = if id.stage == "unify" { "unify" } else { "action" };
    sim.disks.breaks(Place { machine, stage, shard: id.shard }, is_unreadable);
}

/// Starts whoever has ended again, after a while, until the run is over.
pub fn supervise(sim: &Sim) {
    let inside = sim.clone();
    let process = sim.world.process("kubelet", 0);
    sim.world.spawn(process, "main", move || {
        loop {
            inside.world.sleep_ms(100);
            let gone: Vec<Running> = {
                let mut cluster = inside.cluster();
                if cluster.is_over {
                    return;
                }
                let world = inside.world.clone();
                let (gone, running) = cluster.running.drain(..).partition(|it| world.is_dead(it.process));
                cluster.running = running;
                gone
            };
            for gone in gone {
                restart(&inside, &gone);
            }
        }
    });
}

fn restart(sim: &Sim, gone: &Running) {
    let lives_on = sim.cluster().running.iter().any(|running| running.name == gone.name);
    if lives_on {
        return;
    }
    let machine = if sim.world.has_faults() && sim.draw(|rng| rng.one_in(6)) {
        sim.world.count_fault(Fault::DiskLost);
        new_machine(sim)
    } else {
        gone.machine
    };
    let (inside, name) = (sim.clone(), gone.name.clone());
    let delay_us = sim.draw(|rng| rng.between(20_000, 2_500_000));
    // It counts as running from now on, so that it is started once.
    let placeholder = sim.world.process(format!("{name} (to be)"), 0);
    let waits = Running { name: name.clone(), machine, process: placeholder, leaving: false };
    sim.cluster().running.push(waits);
    sim.world.after(delay_us, move |_| {
        inside.cluster().running.retain(|running| running.process != placeholder);
        if !inside.cluster().is_over {
            start(&inside, &name, machine);
        }
    });
}

/// A machine with empty disks.
pub fn new_machine(sim: &Sim) -> u32 {
    let mut cluster = sim.cluster();
    cluster.made += 1;
    cluster.made
}

//! A run's world with everything in it.

use crate::disk::Disks;
use crate::log::{SimLog, Slips};
use crate::objects::SimObjects;
use crate::rng::Rng;
use crate::settings::Settings;
use crate::truth::Truth;
use crate::world::{ProcessId, Waker, World};
use millstream_shard::topics::Topics;
use millstream_shard::{Clock, Executor, Job};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A process of a worker's name.
#[derive(Clone, Debug)]
pub struct Running {
    /// The name.
    pub name: String,
    /// Where it runs.
    pub machine: u32,
    /// The process.
    pub process: ProcessId,
    /// It was told to end.
    pub leaving: bool,
}

/// What all actors share.
#[derive(Default)]
pub struct Cluster {
    /// Processes of workers that were started and not found to have ended.
    pub running: Vec<Running>,
    /// Where the next process of a name runs.
    pub machines: BTreeMap<String, u32>,
    /// Machines so far.
    pub made: u32,
    /// Nobody is started again.
    pub is_over: bool,
    /// The operator makes a change nobody asked for, next.
    pub whim: bool,
    /// Shards that must stop, and whether they have.
    pub must_stop: Vec<(&'static str, u32, bool)>,
    /// What each process does, for whoever asks why nothing goes on.
    pub desks: Vec<(ProcessId, crate::worker::SharedDesk)>,
}

/// A run's world with everything in it; clones are the same one.
#[derive(Clone)]
pub struct Sim {
    /// Scheduler and time.
    pub world: World,
    /// The log.
    pub log: SimLog,
    /// Local stores.
    pub disks: Disks,
    /// The object store.
    pub objects: SimObjects,
    /// The pipeline's topics.
    pub topics: Topics,
    /// What the run is like.
    pub settings: Arc<Settings>,
    /// What sources have sent.
    pub truth: Arc<Mutex<Truth>>,
    cluster: Arc<Mutex<Cluster>>,
}

impl Sim {
    /// The world of a seed, with topics and nobody in it.
    pub fn new(seed: u64, settings: Settings, slips: Slips, trace: bool) -> Sim {
        let world = World::new(seed, trace);
        world.set_slowness(settings.slowness);
        for (fault, rate) in &settings.rates {
            world.set_rate(*fault, *rate);
        }
        let log = SimLog::new(world.clone(), slips, settings.transaction_ms);
        let topics = Topics::new("sim", settings.shards, 1);
        if let Err(error) = millstream_shard::log::Log::create_topics(&log, &topics.specs()) {
            world.fail(error.to_string());
        }
        let (disks, settings) = (Disks::new(world.clone()), Arc::new(settings));
        let objects = SimObjects::new(world.clone());
        Sim { world, log, disks, objects, topics, settings, truth: Arc::default(), cluster: Arc::default() }
    }

    /// What all actors share.
    pub fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What sources have sent.
    pub fn truth(&self) -> MutexGuard<'_, Truth> {
        self.truth.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Draws numbers.
    pub fn draw<T>(&self, draw: impl FnOnce(&mut Rng) -> T) -> T {
        self.world.draw(draw)
    }

    /// Every shard of every stage.
    pub fn shards(&self) -> Vec<(&'static str, u32)> {
        let shards = 0..self.settings.shards;
        ["unify", "action"].into_iter().flat_map(|stage| shards.clone().map(move |shard| (stage, shard))).collect()
    }
}

/// The wall clock of a process.
pub struct SimClock {
    /// The world.
    pub world: World,
    /// Whose.
    pub process: ProcessId,
}

impl Clock for SimClock {
    fn now_ms(&self) -> u64 {
        self.world.clock_ms(self.process)
    }
}

/// Background work of a process: a coroutine that dies with it.
pub struct SimExecutor {
    /// The world.
    pub world: World,
    /// Whose.
    pub process: ProcessId,
}

#[derive(Default)]
struct Progress {
    done: bool,
    waiting: Option<Waker>,
}

struct SimJob {
    world: World,
    process: ProcessId,
    progress: Arc<Mutex<Progress>>,
}

impl Executor for SimExecutor {
    fn run(&self, work: Box<dyn FnOnce() + Send>) -> Box<dyn Job> {
        let progress = Arc::<Mutex<Progress>>::default();
        if !self.world.is_dead(self.process) {
            let (inside, world) = (progress.clone(), self.world.clone());
            self.world.spawn(self.process, "background", move || {
                world.step("background work begins");
                work();
                let mut progress = inside.lock().unwrap_or_else(PoisonError::into_inner);
                progress.done = true;
                let waiting = progress.waiting.take();
                drop(progress);
                waiting.into_iter().for_each(|waker| world.wake(waker));
            });
        }
        Box::new(SimJob { world: self.world.clone(), process: self.process, progress })
    }
}

impl Job for SimJob {
    fn wait(self: Box<Self>) {
        let lock = || self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        while !self.world.is_dead(self.process) && !lock().done {
            let until_us = self.world.now_us() + 1_000_000;
            self.world.park(until_us, |waker| lock().waiting = Some(waker));
        }
    }
}

//! What a process has of the log.

use super::broker::{Broker, Landed};
use super::consumer::SimConsumer;
use super::producer::SimProducer;
use super::transactional::SimTransactional;
use crate::counts::{Fault, Protocol};
use crate::world::{ProcessId, World};
use millstream_shard::log::{
    Consumer, EachRead, Ends, Log, LogError, Producer, Start, TopicPartition, TopicSpec, Transactional, View,
};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// A takeover initialises both ids.
const INITS_OF_A_TAKEOVER: usize = 2;

/// What clients do wrong on purpose: mutants of what is not in the shard's code but in the real client's (`worker/stores/src/kafka`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slips {
    /// A success is reported although a repetition of the request is still on its way.
    pub success_trusted: bool,
    /// The end comes from a follower that lags.
    pub end_of_follower: bool,
    /// A reader outside of the log goes on at its end.
    pub reset_to_end: bool,
    /// A client can be used after an error.
    pub client_kept: bool,
}

pub(super) struct Shared {
    broker: Mutex<Broker>,
    changed: Condvar,
    pub(super) world: Option<World>,
    pub(super) slips: Slips,
    pub(super) transaction_timeout_us: u64,
    /// Of each process, the ids that it initialised.
    inits: Mutex<BTreeMap<ProcessId, Vec<String>>>,
}

/// A log in memory; clones, and what [`SimLog::of`] gives, are the same one.
#[derive(Clone)]
pub struct SimLog {
    pub(super) shared: Arc<Shared>,
    process: Option<ProcessId>,
}

impl SimLog {
    /// A log of a simulated world.
    pub fn new(world: World, slips: Slips, transaction_timeout_ms: u64) -> SimLog {
        SimLog::with(Some(world), slips, transaction_timeout_ms * 1000)
    }

    /// A log outside of any simulation: without faults, and its calls block.
    pub fn outside() -> SimLog {
        SimLog::with(None, Slips::default(), u64::MAX)
    }

    fn with(world: Option<World>, slips: Slips, transaction_timeout_us: u64) -> SimLog {
        let broker = Broker::new(slips.end_of_follower);
        let shared = Shared {
            broker: Mutex::new(broker),
            changed: Condvar::new(),
            world,
            slips,
            transaction_timeout_us,
            inits: Mutex::default(),
        };
        SimLog { shared: Arc::new(shared), process: None }
    }

    /// The same log for a process: with it, its clients die.
    pub fn of(&self, process: ProcessId) -> SimLog {
        SimLog { shared: self.shared.clone(), process: Some(process) }
    }

    /// Looks at the truth.
    pub fn look<T>(&self, look: impl FnOnce(&mut Broker) -> T) -> T {
        self.shared.with(look)
    }

    /// Forgets a transactional id that is not in use.
    pub fn expire(&self, id: &str) -> bool {
        self.shared.with(|broker| broker.expire(id))
    }

    pub(super) fn step(&self, what: &'static str) {
        if let Some(world) = &self.shared.world {
            world.step(what);
        }
    }

    fn step_after(&self, what: &'static str, factor: u64) {
        if let Some(world) = &self.shared.world {
            world.step_after(what, factor);
        }
    }

    /// Does this fault happen to this call?
    pub(super) fn happens(&self, fault: Fault) -> bool {
        !self.is_dead() && self.shared.world.as_ref().is_some_and(|world| world.happens(fault))
    }

    /// The process that this handle belongs to is no more: nothing it does has an effect.
    pub(super) fn is_dead(&self) -> bool {
        match (&self.shared.world, self.process) {
            (Some(world), Some(process)) => world.is_dead(process),
            _ => false,
        }
    }

    fn away(&self) -> Result<(), LogError> {
        if self.happens(Fault::LogUnavailable) {
            return Err(LogError::Unavailable("the brokers do not answer".into()));
        }
        Ok(())
    }

    /// The newest of some ids that a process has initialised.
    pub fn newest_init(&self, process: ProcessId, of: &[String]) -> Option<usize> {
        let inits = self.shared.inits.lock().unwrap_or_else(PoisonError::into_inner);
        inits.get(&process)?.iter().rev().find_map(|id| of.iter().position(|other| other == id))
    }

    fn new_session(&self, id: &str) -> usize {
        self.shared.init(id)
    }
}

impl Shared {
    /// Works on the truth, then wakes whoever may see something new.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut Broker) -> T) -> T {
        let mut broker = self.lock();
        let result = work(&mut broker);
        let woken = std::mem::take(&mut broker.woken);
        drop(broker);
        match &self.world {
            Some(world) => woken.into_iter().for_each(|waker| world.wake(waker)),
            None => self.changed.notify_all(),
        }
        result
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Broker> {
        self.broker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Outside of a simulation: waits for a change.
    pub(super) fn wait<'a>(&self, broker: MutexGuard<'a, Broker>, wait: Duration) -> MutexGuard<'a, Broker> {
        self.changed.wait_timeout(broker, wait).unwrap_or_else(PoisonError::into_inner).0
    }

    /// The brokers' clock, milliseconds since 1970.
    pub(super) fn now_ms(&self) -> u64 {
        match &self.world {
            Some(world) => world.true_ms(),
            None => SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() as u64),
        }
    }

    /// Carries an init out.
    pub(super) fn init(&self, id: &str) -> usize {
        let now_ms = self.now_ms();
        let forget = self.world.as_ref().filter(|world| world.happens(Fault::TransactionForgotten)).map(landed);
        let (session, aborted) = self.with(|broker| broker.init(id, now_ms, forget));
        if let Some(world) = self.world.as_ref().filter(|_| aborted) {
            world.count(Protocol::OpenTransactionFenced);
        }
        session
    }
}

/// Where a transaction has landed that is forgotten now.
pub(super) fn landed(world: &World) -> Landed {
    let landed = world.draw(|rng| if rng.one_in(2) { 0 } else { rng.next() });
    if landed != 0 {
        world.count_fault(Fault::TransactionForgottenInPart);
    }
    Landed(landed)
}

impl Log for SimLog {
    fn trim(&self, at: &TopicPartition, before: u64) -> Result<(), LogError> {
        self.step("trim");
        self.away()?;
        self.shared.with(|broker| broker.delete_records(&at.topic, at.partition, before));
        Ok(())
    }

    fn create_topics(&self, topics: &[TopicSpec]) -> Result<(), LogError> {
        self.step("create topics");
        self.away()?;
        self.shared.with(|broker| broker.create(topics))
    }

    fn topic_id(&self, topic: &str) -> Result<String, LogError> {
        self.step("topic id");
        self.away()?;
        self.shared.lock().topic_id(topic)
    }

    fn bounds(&self, at: &TopicPartition) -> Result<(u64, u64), LogError> {
        self.step("bounds");
        self.away()?;
        let broker = self.shared.lock();
        let (start, end) = broker.bounds(&at.topic, at.partition)?;
        let index = broker.find(&at.topic, at.partition)?;
        let end = if self.shared.slips.end_of_follower { self.end_of_follower(&broker, index).min(end) } else { end };
        drop(broker);
        self.step_after("bounds are known", 1);
        Ok((start, end))
    }

    fn ends(&self, of: &[TopicPartition]) -> Result<Vec<Ends>, LogError> {
        self.step("ends");
        self.away()?;
        let broker = self.shared.lock();
        let whole = of.iter().map(|at| broker.whole_end(&at.topic, at.partition)).collect::<Result<Vec<_>, _>>()?;
        drop(broker);
        self.step_after("the whole ends are known", 1);
        let broker = self.shared.lock();
        let ends =
            of.iter().zip(whole).map(|(at, end)| Ok(Ends { visible: broker.bounds(&at.topic, at.partition)?.1, end }));
        ends.collect()
    }

    fn consumer(&self, assignments: &[(TopicPartition, Start)]) -> Result<Box<dyn Consumer>, LogError> {
        self.step("consumer");
        self.away()?;
        Ok(Box::new(SimConsumer::new(self.clone(), assignments)?))
    }

    fn read(&self, of: &[(TopicPartition, Range<u64>)], view: View, each: EachRead<'_>) -> Result<(), LogError> {
        self.step("read");
        self.away()?;
        for (index, (at, offsets)) in of.iter().enumerate() {
            let read = self.shared.lock().read(at, offsets.clone(), view)?;
            read.into_iter().for_each(|whole| each(index, whole));
        }
        Ok(())
    }

    fn producer(&self) -> Result<Box<dyn Producer>, LogError> {
        self.step("producer");
        Ok(Box::new(SimProducer::new(self.clone())))
    }

    fn transactional(&self, id: &str) -> Result<Box<dyn Transactional>, LogError> {
        if id.is_empty() {
            return Err(LogError::Configuration("a transactional id may not be empty".into()));
        }
        let Some(world) = &self.shared.world else {
            return Ok(Box::new(SimTransactional::new(self.clone(), self.new_session(id))));
        };
        world.step("init");
        let timed_out = |what: &str| Err(LogError::Unavailable(format!("init of {id} {what}")));
        if self.happens(Fault::InitUnknownLost) {
            world.step_of("init times out", 50);
            return timed_out("timed out");
        }
        if self.happens(Fault::InitUnknownLater) {
            let (shared, id, delay_us) = (self.shared.clone(), id.to_owned(), world.draw(|rng| rng.below(5_000_000)));
            world.after(delay_us, move |_| {
                shared.init(&id);
            });
            world.step_of("init times out", 50);
            return timed_out("timed out, and is on its way");
        }
        let session = self.new_session(id);
        world.trace(|| format!("init {id}: session {session}"));
        if let Some(process) = self.process {
            let mut inits = self.shared.inits.lock().unwrap_or_else(PoisonError::into_inner);
            inits.entry(process).or_default().push(id.to_owned());
        }
        if self.happens(Fault::InitSlow) {
            self.be_slow(world, id);
        }
        world.step_after("init is done", 20);
        if self.happens(Fault::InitUnknownHappened) {
            return timed_out("was done, but not answered");
        }
        Ok(Box::new(SimTransactional::new(self.clone(), session)))
    }
}

impl SimLog {
    /// Waits for long. Whoever takes the shard over meanwhile may soon die, so that it is taken over once more: then its log names the same id as before, and the wait is over.
    fn be_slow(&self, world: &World, id: &str) {
        let until_ms = world.monotonic_ms()
            + world.draw(|rng| if rng.one_in(3) { rng.between(5_000, 20_000) } else { rng.between(500, 5_000) });
        let shard = id.rsplit_once('.').map_or(id, |(shard, _)| shard);
        let before = self.shared.lock().inits_of(shard);
        let mut strikes = world.draw(|rng| rng.one_in(2));
        while world.monotonic_ms() < until_ms {
            world.sleep_ms(50);
            let inits = self.shared.lock().inits_of(shard) - before;
            if inits >= INITS_OF_A_TAKEOVER && std::mem::take(&mut strikes) {
                self.strike(world, shard);
            }
            if inits >= 2 * INITS_OF_A_TAKEOVER {
                let ms = world.draw(|rng| rng.below(1_000));
                return world.sleep_ms(ms);
            }
        }
    }

    /// The newest of the other processes that have initialised an id of this shard will die.
    fn strike(&self, world: &World, shard: &str) {
        let inits = self.shared.inits.lock().unwrap_or_else(PoisonError::into_inner);
        let of_shard = |ids: &Vec<String>| ids.iter().any(|id| id.starts_with(shard));
        let others = inits.iter().filter(|(process, ids)| Some(**process) != self.process && of_shard(ids));
        let newest = others.map(|(process, _)| *process).rfind(|process| world.is_running(*process));
        drop(inits);
        if let Some(process) = newest.filter(|_| world.has_faults()) {
            let steps = world.draw(|rng| rng.below(400));
            world.crash_after(process, steps);
        }
    }

    /// What a follower that lags may say: an end of some time in the last seconds.
    fn end_of_follower(&self, broker: &Broker, index: usize) -> u64 {
        let Some(world) = &self.shared.world else { return u64::MAX };
        let lag_ms = world.draw(|rng| if rng.one_in(2) { rng.below(3_000) } else { 0 });
        let until_ms = self.shared.now_ms().saturating_sub(lag_ms);
        let ends = &broker.partitions[index].ends;
        ends.iter().rev().find(|(at_ms, _)| *at_ms <= until_ms).map_or(0, |(_, end)| *end)
    }
}

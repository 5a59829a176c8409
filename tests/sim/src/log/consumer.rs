//! Reading.

use super::broker::Broker;
use super::client::SimLog;
use super::transactional::is_control;
use crate::counts::Fault;
use millstream_shard::log::{Consumer, LogError, Message, Start, TopicPartition};
use std::sync::Arc;
use std::time::{Duration, Instant};

struct Assigned {
    at: TopicPartition,
    index: usize,
    next: u64,
    /// Nothing is heard before, microseconds of the simulation.
    late_until_us: u64,
}

/// A message that was fetched, to be handed over without holding a lock.
struct Fetched {
    assignment: usize,
    offset: u64,
    timestamp_ms: u64,
    key: Arc<[u8]>,
    payload: Arc<[u8]>,
}

/// A read-committed reader.
pub(super) struct SimConsumer {
    log: SimLog,
    assigned: Vec<Assigned>,
    /// Which partition is looked at first.
    turn: usize,
}

impl SimConsumer {
    pub(super) fn new(log: SimLog, assignments: &[(TopicPartition, Start)]) -> Result<SimConsumer, LogError> {
        let broker = log.shared.lock();
        let mut assigned = Vec::with_capacity(assignments.len());
        for (at, start) in assignments {
            let index = broker.find(&at.topic, at.partition)?;
            let partition = &broker.partitions[index];
            let next = match start {
                Start::Earliest => partition.start,
                Start::Latest => partition.end(),
                Start::At(offset) => *offset,
            };
            assigned.push(Assigned { at: at.clone(), index, next, late_until_us: 0 });
        }
        drop(broker);
        Ok(SimConsumer { log, assigned, turn: 0 })
    }

    /// What is there, up to `max` messages; past control records and aborted data.
    fn fetch(&mut self, broker: &Broker, max: usize, now_us: u64) -> Result<Vec<Fetched>, LogError> {
        let mut fetched = Vec::new();
        let count = self.assigned.len();
        for place in 0..count {
            let assignment = (self.turn + place) % count;
            let assigned = &mut self.assigned[assignment];
            let partition = &broker.partitions[assigned.index];
            if partition.deleted {
                return Err(super::broker::about(&assigned.at.topic, "was deleted"));
            }
            let (start, last) = (partition.start, partition.entries.len() as u64);
            if assigned.next < start || assigned.next > last {
                if self.log.shared.slips.reset_to_end {
                    assigned.next = partition.end();
                    continue;
                }
                let (at, offset) = (assigned.at.clone(), assigned.next);
                // What was fetched from the others is handed over first.
                if fetched.is_empty() {
                    return Err(LogError::OutOfRange { at, offset, start, end: partition.end() });
                }
                continue;
            }
            while assigned.next < partition.end() && fetched.len() < max && assigned.late_until_us <= now_us {
                let offset = assigned.next;
                let entry = &partition.entries[offset as usize];
                assigned.next += 1;
                let is_replaced = || {
                    let later = partition.entries[offset as usize + 1..partition.end() as usize].iter();
                    // By what was published, not by its repetition: as publishers are fenced, nothing old takes the place of what is newer.
                    let published = later.filter(|later| later.transaction.is_some() && !later.payload.is_empty());
                    let mut same = published.filter(|later| later.key == entry.key);
                    same.any(|later| broker.is_visible(assigned.index, later))
                };
                let is_lost = is_control(&assigned.at.topic) && is_replaced() && self.log.happens(Fault::PlanLost);
                if broker.is_visible(assigned.index, entry) && !partition.is_gone(offset, entry) && !is_lost {
                    let (key, payload) = (entry.key.clone(), entry.payload.clone());
                    fetched.push(Fetched { assignment, offset, timestamp_ms: entry.time_ms, key, payload });
                }
            }
        }
        if count > 0 {
            self.turn = (self.turn + 1) % count;
        }
        Ok(fetched)
    }

    /// In a simulation.
    fn wait_in_world(&mut self, max: usize, timeout: Duration) -> Result<Vec<Fetched>, LogError> {
        let Some(world) = self.log.shared.world.clone() else { return Ok(Vec::new()) };
        world.step("poll");
        let until_us = world.now_us() + timeout.as_micros() as u64;
        if self.assigned.iter().any(|it| is_control(&it.at.topic)) && self.log.happens(Fault::PlanDelayed) {
            let late_until_us = world.now_us() + world.draw(|rng| rng.between(100_000, 6_000_000));
            let control = self.assigned.iter_mut().filter(|it| is_control(&it.at.topic));
            control.for_each(|it| it.late_until_us = late_until_us);
        }
        loop {
            let max = if max > 1 { world.draw(|rng| if rng.one_in(8) { 1 } else { max }) } else { max };
            let shared = self.log.shared.clone();
            let broker = shared.lock();
            let fetched =
                if self.log.happens(Fault::PollEmpty) { Vec::new() } else { self.fetch(&broker, max, world.now_us())? };
            drop(broker);
            if !fetched.is_empty() || world.now_us() >= until_us || self.log.is_dead() {
                return Ok(fetched);
            }
            let indexes: Vec<usize> = self.assigned.iter().map(|assigned| assigned.index).collect();
            world.park(until_us, |waker| {
                let mut broker = shared.lock();
                indexes.iter().for_each(|index| broker.wait(*index, waker));
            });
        }
    }

    /// Outside of one.
    fn wait_outside(&mut self, max: usize, timeout: Duration) -> Result<Vec<Fetched>, LogError> {
        #[allow(clippy::disallowed_methods)] // There is no simulated time here.
        let (begin, shared) = (Instant::now(), self.log.shared.clone());
        let mut broker = shared.lock();
        loop {
            let fetched = self.fetch(&broker, max, 0)?;
            let left = timeout.saturating_sub(begin.elapsed());
            if !fetched.is_empty() || left.is_zero() {
                return Ok(fetched);
            }
            broker = shared.wait(broker, left);
        }
    }
}

impl Consumer for SimConsumer {
    fn poll(&mut self, max: usize, timeout: Duration, each: &mut dyn FnMut(Message<'_>)) -> Result<usize, LogError> {
        let in_world = self.log.shared.world.is_some();
        let fetched = if in_world { self.wait_in_world(max, timeout) } else { self.wait_outside(max, timeout) }?;
        for it in &fetched {
            let (key, payload) = (&*it.key, &*it.payload);
            each(Message { assignment: it.assignment, offset: it.offset, timestamp_ms: it.timestamp_ms, key, payload });
        }
        Ok(fetched.len())
    }

    fn positions(&self) -> Vec<u64> {
        self.assigned.iter().map(|assigned| assigned.next).collect()
    }
}

//! Sending without transactions.
//!
//! Messages are on their way for a while. Those of one producer to one partition arrive in the order in which they were sent. Not so `status`: what is said there
//! must be understood in any order, and also when some of it comes twice or never. (What is said in `control` is sent in transactions, see there.)

use super::client::{Shared, SimLog};
use crate::counts::Fault;
use crate::world::World;
use millstream_shard::log::{Acknowledge, LogError, Outgoing, Producer};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// A producer without transactions.
pub(super) struct SimProducer {
    log: SimLog,
    /// When the last message to each partition arrives.
    arrivals: Mutex<BTreeMap<usize, u64>>,
}

/// A message on its way.
struct Parcel {
    shared: Arc<Shared>,
    index: usize,
    key: Arc<[u8]>,
    payload: Arc<[u8]>,
}

impl Parcel {
    fn arrive(&self) -> u64 {
        let mut now_ms = self.shared.now_ms();
        let by_log = self.shared.lock().partitions[self.index].append_time;
        let world = self.shared.world.as_ref().filter(|_| by_log);
        if world.is_some_and(|world| world.happens(Fault::AppendTimeBack)) {
            now_ms = now_ms.saturating_sub(1 + now_ms % 3_000);
        }
        self.shared.with(|broker| broker.append_plain(self.index, &self.key, &self.payload, now_ms))
    }
}

fn unknown() -> LogError {
    LogError::Unknown("the brokers did not answer".into())
}

impl SimProducer {
    pub(super) fn new(log: SimLog) -> SimProducer {
        SimProducer { log, arrivals: Mutex::default() }
    }

    fn travel(&self, world: &World, parcel: Parcel, acknowledge: Acknowledge) {
        let now_us = world.now_us();
        let mut arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        let arrival = arrivals.entry(parcel.index).or_default();
        let at_us = (*arrival + 1).max(now_us + world.draw(|rng| rng.between(100, 8_000)));
        *arrival = at_us;
        drop(arrivals);
        let log = self.log.clone();
        let answer = move |answer: Result<u64, LogError>| {
            // Who is dead hears nothing.
            if !log.is_dead() {
                acknowledge(answer);
            }
        };
        let patience_us = world.draw(|rng| rng.between(50_000, 2_000_000));
        if world.happens(Fault::SendUnknownLost) {
            world.at(now_us + patience_us, move |_| answer(Err(unknown())));
        } else if world.happens(Fault::SendUnknownLater) {
            let later_us = world.draw(|rng| rng.below(4_000_000));
            world.at(now_us + patience_us, move |_| answer(Err(unknown())));
            world.at(now_us + patience_us + later_us, move |_| {
                parcel.arrive();
            });
        } else if world.happens(Fault::SendUnknownHappened) {
            world.at(at_us, move |_| {
                parcel.arrive();
            });
            world.at(at_us.max(now_us + patience_us), move |_| answer(Err(unknown())));
        } else {
            world.at(at_us, move |_| answer(Ok(parcel.arrive())));
        }
    }

    /// On `status`.
    fn gossip(&self, world: &World, parcel: Parcel, acknowledge: Acknowledge) {
        let now_us = world.now_us();
        let delay_us = if world.happens(Fault::GossipDelayed) {
            world.draw(|rng| rng.between(100_000, 6_000_000))
        } else {
            world.draw(|rng| rng.between(100, 8_000))
        };
        if world.happens(Fault::GossipLost) {
            world.at(now_us + 200_000, move |_| acknowledge(Err(unknown())));
            return;
        }
        let repeated = world.happens(Fault::GossipRepeated);
        let again_us = world.draw(|rng| rng.below(8_000_000));
        world.at(now_us + delay_us, move |world| {
            acknowledge(Ok(parcel.arrive()));
            if repeated {
                world.after(again_us, move |_| {
                    parcel.arrive();
                });
            }
        });
    }
}

impl Producer for SimProducer {
    fn send(&self, message: Outgoing<'_>, acknowledge: Acknowledge) {
        if self.log.is_dead() {
            return;
        }
        let shared = self.log.shared.clone();
        let admitted = shared.lock().admit(&message);
        let index = match admitted {
            Ok(index) => index,
            Err(error) => return acknowledge(Err(error)),
        };
        let (key, payload): (Arc<[u8]>, Arc<[u8]>) = (message.key.into(), message.payload.into());
        let parcel = Parcel { shared: shared.clone(), index, key, payload };
        match &shared.world {
            None => acknowledge(Ok(parcel.arrive())),
            Some(world) if is_gossip(message.topic) => self.gossip(world, parcel, acknowledge),
            Some(world) => self.travel(world, parcel, acknowledge),
        }
    }
}

fn is_gossip(topic: &str) -> bool {
    topic.ends_with(".status")
}

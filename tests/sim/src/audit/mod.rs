//! The auditor: knows every input and sees the whole log, and asks nobody what they believe.
//!
//! - [`changelog`]: who wrote when, in one unbroken chain (I4), what the state is by its own fold (I5), and that times never go back (I7);
//! - [`stores`]: each local store that was ever left behind is the fold up to its position (I5);
//! - [`records`]: each record has one outcome, in order, and the sums say so (I1, I2, I3);
//! - [`identity`]: who is whom (I9), and that documents are the fold of their mutations;
//! - [`checkpoints`]: each is whole, and the changelog has what comes behind it (I5, I6);
//! - [`savepoints`]: cuts are consistent (I10).
//!
//! I6 is the end of some runs: see `crate::gap`.

pub mod changelog;
pub mod checkpoints;
pub mod identity;
pub mod records;
pub mod savepoints;
pub mod stores;

use crate::counts::Protocol;
use crate::sim::Sim;
use millstream_model::frame::{self, Content};
use millstream_model::proto::{Batch, Changelog, changelog::Record};
use prost::Message;
use std::collections::BTreeMap;

/// What is wrong, in words.
#[derive(Debug, Default)]
pub struct Findings(pub Vec<String>);

/// More of one kind says nothing new.
const MOST: usize = 20;

impl Findings {
    /// Notes it unless it holds.
    pub fn check(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds && self.0.len() < MOST {
            self.0.push(what());
        }
    }
}

/// Everything, once a run has come to rest.
pub fn audit(sim: &Sim) -> Findings {
    let mut findings = Findings::default();
    let mut told = BTreeMap::new();
    let exchange = changelog::exchange(sim);
    for (stage, shard) in sim.shards() {
        told.insert((stage, shard), changelog::read(sim, stage, shard, &exchange, &mut findings));
    }
    let (committed, lost) = sim.log.look(|broker| broker.unknown());
    (0..committed).for_each(|_| sim.world.count(Protocol::UnknownCommitted));
    (0..lost).for_each(|_| sim.world.count(Protocol::UnknownLost));
    stores::check(sim, &told, &mut findings);
    checkpoints::check(sim, &told, &mut findings);
    records::check(sim, &told, &mut findings);
    identity::check(sim, &told, &mut findings);
    savepoints::check(sim, &told, &mut findings);
    findings
}

/// The records of a frame.
pub fn decode<M: Message + Default>(payload: &[u8], content: Content) -> Result<Vec<M>, String> {
    let records = frame::read(payload, content).map_err(|error| error.to_string())?;
    let decoded = records.map(|record| {
        let bytes = record.map_err(|error| error.to_string())?;
        M::decode(bytes).map_err(|error| error.to_string())
    });
    decoded.collect()
}

/// The newest whole batch in a shard's changelog.
pub fn newest_batch(sim: &Sim, stage: &str, shard: u32) -> Option<Batch> {
    let topic = sim.topics.changelog(stage);
    let whole = |payload: &[u8]| {
        let records: Vec<Changelog> = decode(payload, Content::Changelog).ok()?;
        records.into_iter().find_map(|record| match record.record {
            Some(Record::Batch(batch)) if batch.part == batch.parts => Some(batch),
            _ => None,
        })
    };
    sim.log.look(|broker| broker.newest(&topic, shard, whole))
}

/// The id that the owner of an epoch writes with, unless it has released the shard.
pub fn named_slot(sim: &Sim, stage: &str, shard: u32, epoch: u64) -> Option<u32> {
    let topic = sim.topics.changelog(stage);
    let owner = |payload: &[u8]| {
        let records: Vec<Changelog> = decode(payload, Content::Changelog).ok()?;
        records.into_iter().find_map(|record| match record.record {
            Some(Record::Release(release)) if release.epoch == epoch => Some(None),
            Some(Record::Ownership(owner)) if owner.epoch == epoch => Some(Some(owner.slot)),
            _ => None,
        })
    };
    sim.log.look(|broker| broker.newest(&topic, shard, owner)).flatten()
}

/// Must the next batch of the shard send what an output misses?
pub fn owes(sim: &Sim, stage: &str, shard: u32) -> bool {
    let topic = sim.topics.changelog(stage);
    let newest = |payload: &[u8]| {
        let records: Vec<Changelog> = decode(payload, Content::Changelog).ok()?;
        records.into_iter().rev().find_map(|record| match record.record {
            Some(Record::Batch(_)) => Some(false),
            Some(Record::Ownership(owner)) => Some(!owner.owed.is_empty()),
            _ => None,
        })
    };
    sim.log.look(|broker| broker.newest(&topic, shard, newest)).unwrap_or(false)
}

/// Has the shard processed everything that is in its inputs?
pub fn is_drained(sim: &Sim, stage: &'static str, shard: u32) -> bool {
    let batch = newest_batch(sim, stage, shard);
    let topics = match stage {
        "unify" => vec![sim.topics.ingress.clone()],
        _ => vec![sim.topics.actions.clone(), sim.topics.exchange.clone()],
    };
    topics.iter().all(|topic| {
        let at = batch.as_ref().and_then(|batch| batch.inputs.iter().find(|input| input.topic == **topic));
        let from = at.map_or(0, |input| input.offset);
        let is_for_somebody = |payload: &[u8]| savepoints::marker(payload).is_none();
        !sim.log.look(|broker| broker.has_more(topic, shard, from, is_for_somebody))
    })
}

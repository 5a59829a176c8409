//! I10: cuts are consistent. What a shard sent up to its cut is before its marker, what it sent later is behind it; and no shard had processed anything behind a marker when it was cut itself.
//!
//! So what is between a receiver's position at its cut and a sender's marker is exactly what was under way. Who wrote a message is what it says of its origin.

use super::changelog::{CutTold, Story};
use super::{Findings, decode};
use crate::counts::Protocol;
use crate::log::Seen;
use crate::sim::Sim;
use millstream_model::frame::Content;
use millstream_model::proto::{Control, Marker, Position, Savepoint, control::Kind};
use millstream_shard::log::ORIGIN;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

type Stories = BTreeMap<(&'static str, u32), Story>;
type Shard = (&'static str, u32);

/// A savepoint that is older than so many that a shard was cut for is none for it any more.
const REMEMBERED: usize = 16;

/// Checks every cut of every shard.
pub fn check(sim: &Sim, told: &Stories, findings: &mut Findings) {
    let announced = announced(sim);
    for ((stage, shard), story) in told {
        let mut done = BTreeSet::new();
        for CutTold { savepoint, batch, .. } in &story.cuts {
            let at = || format!("{stage}[{shard}], batch {batch}, savepoint {savepoint}");
            sim.world.count(Protocol::Cut);
            if done.last().is_some_and(|newest| newest > savepoint) {
                sim.world.count(Protocol::CutOutOfOrder);
            }
            findings.check(done.insert(*savepoint), || format!("I10: cut twice: {}", at()));
            findings.check(announced.contains_key(savepoint), || format!("I10: nobody wanted this: {}", at()));
        }
    }
    for (savepoint, has_ended) in &announced {
        let cuts = told.values().filter(|story| cut(story, *savepoint).is_some()).count();
        if cuts == told.len() {
            sim.world.count(Protocol::SavepointComplete);
        }
        findings.check(*has_ended || cuts == told.len(), || {
            format!("I10: savepoint {savepoint}: {cuts} of {} shards were cut", told.len())
        });
    }
    for partition in 0..sim.settings.shards {
        let (actions, exchange, mutations) = (&sim.topics.actions, &sim.topics.exchange, &sim.topics.mutations);
        let receiver = Some(("action", partition));
        let peers = (0..sim.settings.shards).map(|shard| ("action", shard)).collect();
        channel(sim, told, actions, partition, (vec![("unify", partition)], receiver), findings);
        channel(sim, told, exchange, partition, (peers, receiver), findings);
        channel(sim, told, mutations, partition, (vec![("action", partition)], None), findings);
    }
}

/// Which savepoints were ever wanted, and whether they have ended.
pub fn announced(sim: &Sim) -> BTreeMap<u64, bool> {
    let mut announced = BTreeMap::new();
    for message in sim.log.look(|broker| broker.committed(&sim.topics.control, 0)) {
        for control in decode::<Control>(&message.payload, Content::Control).unwrap_or_default() {
            if let Some(Kind::Savepoint(Savepoint { id, ended, .. })) = control.kind {
                *announced.entry(id).or_default() |= ended;
            }
        }
    }
    announced
}

/// The savepoints that each shard is still to be cut for: all that have not ended.
pub fn uncut(sim: &Sim) -> BTreeMap<Shard, BTreeSet<u64>> {
    if sim.settings.savepoints.is_none() {
        return BTreeMap::new();
    }
    let wanted: BTreeSet<u64> = announced(sim).into_iter().filter(|(_, ended)| !ended).map(|(id, _)| id).collect();
    let left = |shard: Shard| (shard, &wanted - &cuts(sim, shard));
    sim.shards().into_iter().map(left).filter(|(_, left)| !left.is_empty()).collect()
}

fn cuts(sim: &Sim, (stage, shard): Shard) -> BTreeSet<u64> {
    let messages = sim.log.look(|broker| broker.committed(&sim.topics.changelog(stage), shard));
    messages.iter().flat_map(|message| super::changelog::cuts_of(&message.payload)).collect()
}

fn cut(story: &Story, savepoint: u64) -> Option<&CutTold> {
    story.cuts.iter().find(|cut| cut.savepoint == savepoint)
}

/// One message of a channel.
struct Sent {
    offset: u64,
    /// The batch that it says it is of.
    batch: u64,
    marker: Option<Marker>,
}

/// Those of one author.
fn sent_by(messages: &[Seen], (stage, shard): Shard) -> Vec<Sent> {
    let of = format!("{stage}/{shard}/");
    let one = |message: &Seen| {
        let (_, origin) = message.headers.iter().find(|(name, _)| name == ORIGIN)?;
        let batch = origin.strip_prefix(&of)?.rsplit('/').next()?.parse().ok()?;
        Some(Sent { offset: message.offset, batch, marker: marker(&message.payload) })
    };
    messages.iter().filter_map(one).collect()
}

/// The marker that a message is.
pub fn marker(payload: &[u8]) -> Option<Marker> {
    decode::<Marker>(payload, Content::Marker).ok()?.pop()
}

fn channel(
    sim: &Sim,
    told: &Stories,
    topic: &Arc<str>,
    partition: u32,
    (senders, receiver): (Vec<Shard>, Option<Shard>),
    findings: &mut Findings,
) {
    let messages = sim.log.look(|broker| broker.committed(topic, partition));
    for sender in senders {
        let Some(story) = told.get(&sender) else { continue };
        let sent = sent_by(&messages, sender);
        let at = |savepoint: u64| format!("{sender:?} to {topic}[{partition}], savepoint {savepoint}");
        let is_of = |it: &Sent, savepoint| it.marker.as_ref().is_some_and(|marker| marker.savepoint == savepoint);
        for it in sent.iter().filter_map(|it| it.marker.as_ref()) {
            let is_told = (it.stage.as_str(), it.shard) == sender && cut(story, it.savepoint).is_some();
            findings.check(is_told, || format!("I10: a marker without a cut: {}", at(it.savepoint)));
        }
        for CutTold { savepoint, batch, .. } in &story.cuts {
            let Some(marker) = sent.iter().find(|it| is_of(it, *savepoint)).map(|it| it.offset) else {
                findings.check(false, || format!("I10: no marker: {}", at(*savepoint)));
                continue;
            };
            // Where markers are among each other does not matter; one that was missing is sent again by a later batch.
            let is_right = |it: &Sent| it.marker.is_some() || (it.offset < marker) == (it.batch <= *batch);
            let wrong = sent.iter().find(|it| !is_right(it));
            findings.check(wrong.is_none(), || {
                let (offset, of) = wrong.map_or((0, 0), |it| (it.offset, it.batch));
                format!("I10: cut at batch {batch}, marker at {marker}, and batch {of} at {offset}: {}", at(*savepoint))
            });
            let Some(receiver) = receiver.and_then(|receiver| told.get(&receiver)) else { continue };
            match cut(receiver, *savepoint) {
                Some(cut) => received(sim, cut, topic, marker, &sent, &at, findings),
                None => {
                    let has_passed = position(&receiver.inputs, topic) > marker;
                    let newer = receiver.cuts.iter().filter(|cut| cut.savepoint > *savepoint).count();
                    findings.check(!has_passed || newer >= REMEMBERED, || {
                        format!(
                            "I10: the receiver has passed the marker at {marker}, and was not cut: {}",
                            at(*savepoint)
                        )
                    });
                }
            }
        }
    }
}

fn position(inputs: &[Position], topic: &str) -> u64 {
    inputs.iter().find(|input| input.topic == topic).map_or(0, |input| input.offset)
}

/// The receiver had not come to the marker when it was cut.
fn received(
    sim: &Sim,
    cut: &CutTold,
    topic: &Arc<str>,
    marker: u64,
    sent: &[Sent],
    at: &dyn Fn(u64) -> String,
    findings: &mut Findings,
) {
    let position = position(&cut.inputs, topic);
    findings.check(position <= marker, || {
        format!("I10: the receiver had read up to {position}, and the marker is at {marker}: {}", at(cut.savepoint))
    });
    let is_under_way = |it: &Sent| it.marker.is_none() && (position..marker).contains(&it.offset);
    if sent.iter().any(is_under_way) {
        sim.world.count(Protocol::ChannelFilled);
    }
}

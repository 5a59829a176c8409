//! I5: what a local store holds is the fold of the changelog up to its position, and never past what was committed.

use super::changelog::Story;
use super::{Findings, decode};
use crate::disk::Evidence;
use crate::sim::Sim;
use millstream_model::frame::Content;
use millstream_model::proto::changelog::Record;
use millstream_model::proto::{Changelog, StatePosition};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Checks every store that was ever left behind.
pub fn check(sim: &Sim, told: &BTreeMap<(&'static str, u32), Story>, findings: &mut Findings) {
    let forgotten = forgotten(sim);
    for evidence in sim.disks.evidence() {
        let place = &evidence.place;
        let Some(story) = told.get(&(place.stage, place.shard)) else { continue };
        // Its owner was told of its last batch, and the brokers have forgotten it: whoever opens it next finds out.
        if evidence.position.as_ref().is_some_and(|it| it.own_batch && forgotten.contains(&it.digest)) {
            continue;
        }
        if let Err(what) = compare(&evidence, story) {
            findings.check(false, || format!("I5: {what}: {place:?} {}", evidence.when));
        }
    }
}

/// Digests of batches that were forgotten after their owners had been told of them.
pub(super) fn forgotten(sim: &Sim) -> BTreeSet<u64> {
    let told: Vec<Arc<[u8]>> = sim.log.look(|broker| broker.told().cloned().collect());
    let records = told.iter().filter_map(|payload| decode(payload, Content::Changelog).ok()).flatten();
    let digest = |record: Changelog| match record.record {
        Some(Record::Batch(batch)) => Some(batch.digest),
        _ => None,
    };
    records.filter_map(digest).collect()
}

/// What is wrong with it, if anything.
pub(super) fn compare(evidence: &Evidence, story: &Story) -> Result<(), String> {
    let Some(position) = &evidence.position else {
        return if evidence.entries == 0 { Ok(()) } else { Err("entries without a position".into()) };
    };
    let number = position.batch_number;
    let (digest, state) = match number {
        0 => (0, 0),
        _ => match story.batches.get(number as usize - 1) {
            Some(batch) => (batch.digest, batch.state),
            None => return Err(format!("batch {number} was never committed")),
        },
    };
    if position.digest != digest {
        return Err(format!("batch {number} is another one"));
    }
    if evidence.digest != state || position.state_digest != state {
        return Err(format!("the store is not the fold up to batch {number}"));
    }
    meets_the_rest(position, story)
}

/// Whoever follows from the position meets every batch and every owner that it does not know.
fn meets_the_rest(position: &StatePosition, story: &Story) -> Result<(), String> {
    let next = story.batches.get(position.batch_number as usize);
    if next.is_some_and(|next| next.offset < position.changelog_offset) {
        return Err(format!("it is to be followed from {}, behind its next batch", position.changelog_offset));
    }
    let missed = |(offset, epoch): &&(u64, u64)| *offset < position.changelog_offset && *epoch > position.epoch;
    match story.owned.iter().find(missed) {
        Some((offset, epoch)) => Err(format!(
            "it is to be followed from {}, and does not know owner {epoch} at {offset}",
            position.changelog_offset
        )),
        None => Ok(()),
    }
}

//! Checkpoints that are kept are whole, are the fold of the changelog up to their positions (I5), and the changelog still has everything behind the oldest of them (I6).

use super::Findings;
use super::changelog::Story;
use super::stores::{compare, forgotten};
use crate::disk::Evidence;
use crate::sim::Sim;
use millstream_model::id::entry_hash;
use millstream_shard::checkpoint::layout::{self, Entry, FORMAT, Manifest, POINTER, Pointer, ShardName};
use millstream_shard::flat::FlatStaging;
use millstream_shard::state::Staging;
use std::collections::BTreeMap;
use std::sync::Arc;

type Objects = BTreeMap<String, Arc<[u8]>>;

/// Of every shard.
pub fn check(sim: &Sim, told: &BTreeMap<(&'static str, u32), Story>, findings: &mut Findings) {
    let objects = sim.objects.all();
    let forgotten = forgotten(sim);
    for ((stage, shard), story) in told {
        let folder = folder(sim, stage, *shard);
        let pointer = pointer(&objects, &folder).unwrap_or_default();
        let at = |entry: &Entry| format!("{stage}[{shard}] checkpoint of batch {} ({})", entry.batch, entry.manifest);
        for entry in &pointer.checkpoints {
            match evidence(&objects, &folder, entry) {
                Ok(evidence) => {
                    let position = evidence.position.as_ref();
                    if position.is_some_and(|it| it.own_batch && forgotten.contains(&it.digest)) {
                        continue;
                    }
                    let compared = compare(&evidence, story);
                    findings.check(compared.is_ok(), || format!("I5: {compared:?}: {}", at(entry)));
                }
                Err(why) => findings.check(false, || format!("{why}: {}", at(entry))),
            }
        }
        let start = sim.log.look(|broker| broker.bounds(&sim.topics.changelog(stage), *shard)).unwrap_or_default().0;
        let oldest = pointer.checkpoints.iter().map(|entry| entry.changelog_offset).min();
        findings.check(start == 0 || oldest.is_some_and(|oldest| start <= oldest), || {
            format!("I6: the changelog of {stage}[{shard}] was trimmed up to {start}, and the oldest checkpoint is of {oldest:?}")
        });
    }
}

/// The folder of a shard's checkpoints.
pub fn folder(sim: &Sim, stage: &str, shard: u32) -> String {
    let (pipeline, generation, shards) = (sim.topics.pipeline.clone(), sim.topics.generation, sim.topics.shards);
    ShardName { pipeline, generation, stage: stage.to_owned(), shard, shards }.folder()
}

/// What a shard's pointer says.
pub fn pointer(objects: &Objects, folder: &str) -> Option<Pointer> {
    layout::read(POINTER, objects.get(&format!("{folder}/{POINTER}"))?, FORMAT).ok()
}

/// What a store that is made of a checkpoint would hold.
fn evidence(objects: &Objects, folder: &str, entry: &Entry) -> Result<Evidence, String> {
    let object = |name: &str| objects.get(&format!("{folder}/{name}")).ok_or(format!("{name} is not there"));
    let manifest: Manifest =
        layout::read_manifest(&entry.manifest, object(&entry.manifest)?).map_err(|error| error.to_string())?;
    let staging = FlatStaging::default();
    for file in &manifest.files {
        let content = object(&file.object)?;
        if layout::hash(content) != file.hash {
            return Err(format!("{} is not what it was", file.object));
        }
        let mut into = staging.create(&file.name).map_err(|error| error.to_string())?;
        into.write_all(content).map_err(|error| error.to_string())?;
    }
    let (entries, position) = staging.contents().map_err(|error| error.to_string())?;
    if !manifest.is_of(&position) {
        return Err("its files are of another position".to_owned());
    }
    let digest = entries.iter().fold(0, |sum: u64, (key, value)| sum.wrapping_add(entry_hash(key.as_bytes(), value)));
    let place = crate::disk::Place { machine: 0, stage: "", shard: 0 };
    Ok(Evidence { place, when: String::new(), position: Some(position), digest, entries: entries.len() })
}

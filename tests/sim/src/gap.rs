//! I6: at the end of some runs a shard's log or input gets a gap. It must stop and say so, and write nothing; that is all that can be right.

use crate::audit;
use crate::settings::Gap;
use crate::sim::Sim;
use crate::worker;
use millstream_shard::log::{Log, LogError, Outgoing, Producer};
use std::sync::Arc;

/// How long the shards that must stop are watched.
const WATCH_MS: u64 = 12_000;

/// Makes the gap while nobody runs, starts the workers again, and looks.
pub(crate) fn must_be_refused(sim: &Sim, gap: Gap) {
    sim.world.trace(|| format!("GAP {gap:?}"));
    let machines = end_all(sim);
    sim.disks.mend();
    let victims = make(sim, gap);
    let before: Vec<_> = victims.iter().map(|(stage, shard)| number(sim, stage, *shard)).collect();
    sim.cluster().must_stop = victims.iter().map(|(stage, shard)| (*stage, *shard, false)).collect();
    for name in &sim.settings.workers {
        // Whose disk was kept would still have the state.
        let empty = gap == Gap::ChangelogBegins || sim.draw(|rng| rng.one_in(3));
        let former = machines.iter().find(|(of, _)| of == name).map(|(_, machine)| *machine);
        let machine = former.filter(|_| !empty).unwrap_or_else(|| worker::new_machine(sim));
        worker::start(sim, name, machine);
    }
    let until_us = sim.world.now_us() + WATCH_MS * 1000;
    sim.world.run_until(until_us, |_| false);
    for ((stage, shard), before) in victims.iter().zip(before) {
        let stopped = sim.cluster().must_stop.iter().any(|it| (it.0, it.1, it.2) == (*stage, *shard, true));
        if !stopped {
            sim.world.fail(format!("I6: {stage}[{shard}] did not stop: {gap:?}; {}", worker::conditions(sim)));
        }
        if number(sim, stage, *shard) != before {
            sim.world.fail(format!("I6: {stage}[{shard}] went on over a gap: {gap:?}"));
        }
    }
}

/// Kills all workers; where they ran.
fn end_all(sim: &Sim) -> Vec<(String, u32)> {
    let mut cluster = sim.cluster();
    cluster.is_over = true;
    let running = std::mem::take(&mut cluster.running);
    drop(cluster);
    running.iter().for_each(|it| sim.world.crash(it.process));
    let until_us = sim.world.now_us() + 10_000_000;
    sim.world.run_until(until_us, |_| false);
    running.into_iter().map(|it| (it.name, it.machine)).collect()
}

fn number(sim: &Sim, stage: &str, shard: u32) -> Option<u64> {
    audit::newest_batch(sim, stage, shard).map(|batch| batch.number)
}

/// Makes it; gives the shards that must stop.
fn make(sim: &Sim, gap: Gap) -> Vec<(&'static str, u32)> {
    let shards = sim.shards();
    let (stage, shard) = shards[sim.draw(|rng| rng.below(shards.len() as u64)) as usize];
    let all = |stage: &'static str| (0..sim.settings.shards).map(|shard| (stage, shard)).collect();
    match gap {
        Gap::InputDeleted => {
            let topic = sim.topics.ingress.clone();
            (0..3).for_each(|_| append(sim, &topic, shard));
            let end = sim.log.look(|broker| broker.bounds(&topic, shard)).unwrap_or_default().1;
            sim.log.look(|broker| broker.delete_records(&topic, shard, end));
            append(sim, &topic, shard);
            vec![("unify", shard)]
        }
        Gap::ChangelogBegins => {
            let topic = sim.topics.changelog(stage);
            let end = sim.log.look(|broker| broker.bounds(&topic, shard)).unwrap_or_default().1;
            // With a checkpoint behind it, it would be no gap.
            let folder = audit::checkpoints::folder(sim, stage, shard);
            let pointer = audit::checkpoints::pointer(&sim.objects.all(), &folder).unwrap_or_default();
            let newest = pointer.checkpoints.iter().map(|entry| entry.changelog_offset).max().unwrap_or_default();
            if newest >= end {
                return Vec::new();
            }
            let before = sim.draw(|rng| rng.between(newest + 1, end.max(1)));
            sim.log.look(|broker| broker.delete_records(&topic, shard, before));
            vec![(stage, shard)]
        }
        Gap::InputMadeAgain => {
            again(sim, &sim.topics.ingress);
            (0..sim.settings.shards).for_each(|shard| (0..40).for_each(|_| append(sim, &sim.topics.ingress, shard)));
            all("unify")
        }
        Gap::ChangelogMadeAgain => {
            again(sim, &sim.topics.changelog(stage));
            all(stage)
        }
    }
}

fn again(sim: &Sim, topic: &Arc<str>) {
    sim.log.look(|broker| broker.delete_topic(topic));
    if let Err(error) = sim.log.create_topics(&sim.topics.specs()) {
        sim.world.fail(error.to_string());
    }
}

/// Something that is no record: whoever reads it rejects it, in a batch.
fn append(sim: &Sim, topic: &str, partition: u32) {
    let message = Outgoing { topic, partition, key: &[], payload: b"no frame", headers: &[] };
    match sim.log.producer() {
        Ok(producer) => Producer::send(&*producer, message, Box::new(|_: Result<u64, LogError>| ())),
        Err(error) => sim.world.fail(error.to_string()),
    }
    let until_us = sim.world.now_us() + 20_000;
    sim.world.run_until(until_us, |_| false);
}

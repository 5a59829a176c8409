//! Whoever makes plans: the real planner, fed by the real listener, publishing through the real publisher. Sometimes it has a whim: a plan that nobody needs, so that
//! shards move also when all is well.

use crate::sim::Sim;
use crate::world::ProcessId;
use millstream_plan::plan::{Placement, Plan, Version};
use millstream_plan::planner::{self, Input, Limits};
use millstream_shard::control::{Listener, Publisher};
use millstream_shard::log::LogError;
use std::collections::BTreeMap;
use std::time::Duration;

/// How often it looks.
const LOOK: Duration = Duration::from_millis(100);
const PAUSE_MS: u64 = 150;

/// Starts an operator of a term.
pub fn start(sim: &Sim, term: u64) -> ProcessId {
    let process = sim.world.process(format!("operator {term}"), 0);
    let inside = sim.clone();
    sim.world.spawn(process, "main", move || {
        loop {
            // Whatever went wrong: open anew, and read what is there.
            let ended = plan(&inside, process, term);
            inside.world.trace(|| format!("operator {term}: {ended:?}"));
            inside.world.sleep_ms(300);
        }
    });
    process
}

fn plan(sim: &Sim, process: ProcessId, term: u64) -> Result<(), LogError> {
    let (log, world) = (sim.log.of(process), &sim.world);
    let mut publisher = Publisher::open(&log, &sim.topics)?;
    let mut listener = Listener::open(&log, &sim.topics, sim.settings.bounds, world.monotonic_ms())?;
    let stages: BTreeMap<String, u32> =
        ["unify", "action"].into_iter().map(|stage| (stage.to_owned(), sim.settings.shards)).collect();
    loop {
        world.sleep_ms(PAUSE_MS);
        listener.listen(LOOK, world.monotonic_ms())?;
        let (view, now_ms) = (listener.view(), world.monotonic_ms());
        if !view.knows_all(now_ms) {
            continue;
        }
        let (workers, standings) = (view.alive(now_ms), view.standings(now_ms));
        if workers.is_empty() {
            continue;
        }
        let previous = view.plan();
        let input = Input {
            term,
            generation: u32::from(sim.topics.generation),
            workers: &workers,
            stages: &stages,
            standings: &standings,
            previous,
            pinned: &BTreeMap::new(),
            limits: Limits { moves: 2, successors: 2, warm: 1, lag: 40 },
        };
        let mut next = planner::plan(&input).plan;
        if std::mem::take(&mut sim.cluster().whim) {
            let names: Vec<String> = workers.iter().map(|worker| worker.name.clone()).collect();
            turn(sim, &mut next, &names);
        }
        if previous.is_none_or(|previous| *previous < next) {
            world.trace(|| format!("plan {}: {}", next.version, text(&next)));
            publisher.publish(next)?;
        }
    }
}

/// Another worker is to own some shard, for no reason.
fn turn(sim: &Sim, plan: &mut Plan, names: &[String]) {
    let count = plan.placements.len() as u64;
    let chosen = sim.draw(|rng| rng.below(count)) as usize;
    let owner = sim.draw(|rng| rng.pick(names).cloned());
    let (Some(placement), Some(owner)) = (plan.placements.values_mut().nth(chosen), owner) else { return };
    let mut successors: Vec<String> = placement.claimants().filter(|name| **name != owner).map(str::to_owned).collect();
    successors.truncate(2);
    *placement = Placement { owner, successors, warm: 1, moving_to: None };
    plan.version = Version { number: plan.version.number + 1, ..plan.version };
}

fn text(plan: &Plan) -> String {
    let one = |(id, it): (_, &Placement)| format!("{id}: {} then {:?} ({:?})", it.owner, it.successors, it.moving_to);
    plan.placements.iter().map(one).collect::<Vec<_>>().join("; ")
}

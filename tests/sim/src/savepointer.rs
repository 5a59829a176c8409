//! Whoever takes savepoints: publishes their ids, several at a time, sometimes the higher one first, and gives some up. Shards are cut for them, and the auditor judges the cuts (I10).

use crate::counts::Protocol;
use crate::rng::Rng;
use crate::sim::Sim;
use crate::world::ProcessId;
use millstream_plan::message::{Control, Savepoint};
use millstream_shard::control::{Listener, Publisher};
use millstream_shard::log::LogError;

/// How long it waits after the log did not answer.
const AGAIN_MS: u64 = 200;

/// Starts it, if the run has one, and again whenever it has died. It ends with the time of faults, once everybody can read what it has published: a transaction that hangs in `control` is ended by the next one of its id.
pub fn start(sim: &Sim) {
    let Some(every_ms) = sim.settings.savepoints else { return };
    sim.truth().working += 1;
    let (inside, supervisor) = (sim.clone(), sim.world.process("savepoints", 0));
    // Numbers of its own: what else is drawn does not depend on it.
    let mut rng = Rng::new(sim.settings.seed ^ 0x5a7e_9017);
    sim.world.spawn(supervisor, "main", move || {
        let world = &inside.world;
        while world.has_faults() || is_held_back(&inside) {
            let process = world.process("savepointer", 0);
            let (sim, rng) = (inside.clone(), Rng::new(rng.next()));
            world.spawn(process, "main", move || Savepointer { sim, process, rng, every_ms }.run());
            while world.is_running(process) {
                world.sleep_ms(AGAIN_MS);
            }
        }
        inside.truth().working -= 1;
    });
}

/// Is something in `control` that nobody can read yet?
fn is_held_back(sim: &Sim) -> bool {
    sim.log.look(|broker| broker.is_open(&sim.topics.control, 0))
}

struct Savepointer {
    sim: Sim,
    process: ProcessId,
    rng: Rng,
    every_ms: u64,
}

impl Savepointer {
    fn run(&mut self) {
        loop {
            let pause_ms = self.rng.between(1, 2 * self.every_ms);
            self.sim.world.sleep_ms(pause_ms);
            if !self.sim.world.has_faults() && !is_held_back(&self.sim) {
                return;
            }
            if let Err(error) = self.publish() {
                self.sim.world.trace(|| format!("nothing was published: {error}"));
                self.sim.world.sleep_ms(AGAIN_MS);
            }
        }
    }

    /// Whether it was published is for the log to say: ids are never used again.
    fn publish(&mut self) -> Result<(), LogError> {
        let (log, topics) = (self.sim.log.of(self.process), &self.sim.topics);
        let mut publisher = Publisher::open(&log, topics)?;
        let listener = Listener::open(&log, topics, self.sim.settings.bounds, self.sim.world.monotonic_ms())?;
        let known = listener.view().savepoints();
        let (next, generation) =
            (known.keys().next_back().map_or(1, |newest| newest + 1), u32::from(topics.generation));
        let open: Vec<u64> = listener.view().open_savepoints().collect();
        let new = |id| Control::Savepoint(Savepoint { id, has_ended: false, generation });
        let controls = match (self.rng.below(6), self.rng.pick(&open)) {
            (0, Some(id)) => {
                self.sim.world.count(Protocol::SavepointEnded);
                vec![Control::Savepoint(Savepoint { id: *id, has_ended: true, generation })]
            }
            (1, _) => vec![new(next + 1), new(next)],
            (2, _) => vec![new(next), new(next + 1)],
            _ => vec![new(next)],
        };
        publisher.publish_all(&controls)
    }
}

//! What happens to processes while things go wrong: they are killed at some step, stand still, get twins, are told to leave; clocks jump, ids are forgotten, inputs trimmed.

use crate::counts::Fault;
use crate::operator;
use crate::sim::{Running, Sim};
use crate::worker;
use crate::world::ProcessId;

/// Starts it; it ends with the time of faults.
pub fn start(sim: &Sim, operator: ProcessId) {
    let process = sim.world.process("chaos", 0);
    let inside = sim.clone();
    sim.world.spawn(process, "main", move || {
        let mut chaos = Chaos { sim: inside, operator, term: 1 };
        loop {
            let pause_ms = chaos.sim.draw(|rng| rng.between(50, 2 * chaos_ms(&chaos.sim)));
            chaos.sim.world.sleep_ms(pause_ms);
            if !chaos.sim.world.has_faults() {
                return;
            }
            chaos.happen();
        }
    });
}

fn chaos_ms(sim: &Sim) -> u64 {
    sim.settings.chaos_ms
}

struct Chaos {
    sim: Sim,
    operator: ProcessId,
    term: u64,
}

impl Chaos {
    fn happen(&mut self) {
        let what = self.sim.draw(|rng| rng.below(100));
        match what {
            0..34 => self.with_worker(|chaos, running| {
                let steps = chaos.sim.draw(|rng| if rng.one_in(2) { rng.below(40) } else { rng.below(1_500) });
                chaos.sim.world.crash_after(running.process, steps);
            }),
            34..50 => self.with_worker(|chaos, running| chaos.pause(running)),
            50..57 => self.with_worker(|chaos, running| chaos.twin(running)),
            57..67 => self.with_worker(|chaos, running| chaos.leave(running)),
            67..82 => self.sim.cluster().whim = true,
            82..87 => self.with_worker(|chaos, running| chaos.clock(running)),
            87..92 => self.expire(),
            92..97 => self.trim(),
            _ => self.replace_operator(),
        }
    }

    fn with_worker(&mut self, what: impl FnOnce(&mut Chaos, &Running)) {
        let running: Vec<Running> = {
            let cluster = self.sim.cluster();
            cluster.running.iter().filter(|it| self.sim.world.is_running(it.process)).cloned().collect()
        };
        if let Some(chosen) = self.sim.draw(|rng| rng.pick(&running).cloned()) {
            what(self, &chosen);
        }
    }

    /// Shorter than anybody notices, or longer than every bound.
    fn pause(&self, running: &Running) {
        let settings = &self.sim.settings;
        let bound_ms = settings.transaction_ms.max(settings.bounds.silence_ms);
        let long = self.sim.draw(|rng| rng.one_in(2));
        let ms = self.sim.draw(|rng| if long { bound_ms + rng.below(4_000) } else { rng.below(bound_ms) });
        if long {
            self.sim.world.count_fault(Fault::ProcessPaused);
        }
        self.sim.world.pause(running.process, ms * 1000);
    }

    fn twin(&self, running: &Running) {
        self.sim.world.count_fault(Fault::TwinStarted);
        let same_machine = self.sim.draw(|rng| rng.one_in(3));
        let machine = if same_machine { running.machine } else { worker::new_machine(&self.sim) };
        worker::start(&self.sim, &running.name, machine);
    }

    fn leave(&self, running: &Running) {
        let mut cluster = self.sim.cluster();
        for it in cluster.running.iter_mut().filter(|it| it.process == running.process) {
            it.leaving = true;
        }
    }

    fn clock(&self, running: &Running) {
        self.sim.world.count_fault(Fault::ClockJumped);
        let skew_ms = self.sim.draw(|rng| match rng.below(3) {
            0 => rng.between(0, 1_000) as i64 - 500,
            1 => rng.between(0, 40_000) as i64 - 20_000,
            _ => -(rng.below(3_600_000) as i64),
        });
        self.sim.world.set_skew(running.process, skew_ms);
    }

    /// As if it had been idle for a week.
    fn expire(&self) {
        let shards = self.sim.shards();
        let Some((stage, shard)) = self.sim.draw(|rng| rng.pick(&shards).copied()) else { return };
        let slot = self.sim.draw(|rng| rng.below(2)) as u32;
        if self.sim.log.expire(&self.sim.topics.transactional_id(stage, shard, slot)) {
            self.sim.world.count_fault(Fault::IdExpired);
        }
    }

    /// What every shard has read and processed for good is deleted from an input. What hangs, and what is owed, is dealt with long before retention comes to it.
    fn trim(&self) {
        let shards = self.sim.shards();
        let owes = || shards.iter().any(|(stage, shard)| crate::audit::owes(&self.sim, stage, *shard));
        if self.sim.log.look(|broker| broker.hangs()) || owes() {
            return;
        }
        let Some((stage, shard)) = self.sim.draw(|rng| rng.pick(&shards).copied()) else { return };
        let Some(batch) = crate::audit::newest_batch(&self.sim, stage, shard) else { return };
        for input in batch.inputs {
            let before = input.offset - self.sim.draw(|rng| rng.below(input.offset / 4 + 1));
            self.sim.log.look(|broker| broker.delete_records(&input.topic, input.partition, before));
            self.sim.world.count_fault(Fault::InputTrimmed);
        }
    }

    /// Another one is elected; the former one may not know yet.
    fn replace_operator(&mut self) {
        self.term += 1;
        let former = self.operator;
        if self.sim.draw(|rng| rng.one_in(2)) {
            self.sim.world.crash(former);
        } else {
            self.sim.world.crash_after(former, 200);
        }
        self.operator = operator::start(&self.sim, self.term);
    }
}

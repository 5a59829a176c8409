//! A run: a time of faults, then a calm in which everything must come to rest, then the audit.

use crate::counts::Counts;
use crate::log::Slips;
use crate::settings::{Runs, Settings};
use crate::sim::Sim;
use crate::{audit, chaos, gap, operator, savepointer, source, worker};
use std::collections::BTreeMap;
use std::sync::Mutex;

/// After everything has come to rest, what is still on its way may arrive: nothing may change any more.
const AFTERWARDS_MS: u64 = 5_000;

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Of which kind it was.
    pub runs: Runs,
    /// Its seed.
    pub seed: u64,
    /// What must not be, and was.
    pub failures: Vec<String>,
    /// What was hit.
    pub counts: Counts,
    /// Steps, and a hash of all of them: the same for the same seed and code.
    pub fingerprint: (u64, u64),
    /// Simulated milliseconds.
    pub simulated_ms: u64,
}

impl Outcome {
    /// How it is run again, step by step.
    pub fn replay(&self) -> String {
        format!("TRACE=1 cargo run --quiet -p millstream-sim -- --first {}{}", self.seed, self.runs.flag())
    }
}

/// Runs a seed of these.
pub fn run(runs: Runs, seed: u64, trace: bool) -> Outcome {
    run_with(runs.draw(seed), Slips::default(), trace)
}

/// A run of this kind, with a client of the log that does something wrong.
pub fn run_with(settings: Settings, slips: Slips, trace: bool) -> Outcome {
    let (runs, seed) = (settings.runs, settings.seed);
    let sim = Sim::new(seed, settings, slips, trace);
    sim.world.trace(|| format!("{:?}", sim.settings));
    begin(&sim);
    let faults_us = sim.settings.faults_ms * 1000;
    sim.world.run_until(faults_us, |world| !world.failures().is_empty());
    calm(&sim);
    judge(&sim);
    let outcome = Outcome {
        runs,
        seed,
        failures: sim.world.failures(),
        counts: sim.world.counts(),
        fingerprint: sim.world.fingerprint(),
        simulated_ms: sim.world.monotonic_ms(),
    };
    sim.world.end();
    outcome
}

fn begin(sim: &Sim) {
    sim.world.set_faults(true);
    let operator = operator::start(sim, 1);
    for name in &sim.settings.workers {
        let machine = worker::new_machine(sim);
        worker::start(sim, name, machine);
    }
    worker::supervise(sim);
    (0..sim.settings.sources).for_each(|number| source::start(sim, number));
    chaos::start(sim, operator);
    savepointer::start(sim);
    if let Some(broken) = sim.settings.broken_disk {
        let inside = sim.clone();
        sim.world.at(broken.at_ms * 1000, move |_| worker::break_disk(&inside, broken.is_unreadable));
    }
}

/// Nothing goes wrong any more.
fn calm(sim: &Sim) {
    sim.world.trace(|| "CALM".to_owned());
    sim.world.set_faults(false);
    sim.world.wake_all();
    let mut cluster = sim.cluster();
    cluster.whim = false;
    for running in &mut cluster.running {
        sim.world.spare(running.process);
    }
}

fn judge(sim: &Sim) {
    let has_failed = || !sim.world.failures().is_empty();
    let deadline_us = sim.world.now_us() + sim.settings.calm_ms * 1000;
    let rests = sim.world.run_until(deadline_us, |_| has_failed() || is_at_rest(sim));
    if has_failed() {
        return;
    }
    if !rests {
        return sim.world.fail(format!("no progress: {}", stuck(sim)));
    }
    let afterwards_us = sim.world.now_us() + AFTERWARDS_MS * 1000;
    sim.world.run_until(afterwards_us, |_| has_failed());
    if !has_failed() && !is_done(sim) {
        sim.world.fail(format!("no rest: {}", stuck(sim)));
    }
    audit::audit(sim).0.into_iter().for_each(|what| sim.world.fail(what));
    if let Some(gap) = sim.settings.gap.filter(|_| !has_failed()) {
        gap::must_be_refused(sim, gap);
    }
}

/// How many processes of each name run.
fn running(sim: &Sim) -> BTreeMap<String, usize> {
    let mut running: BTreeMap<String, usize> = sim.settings.workers.iter().map(|name| (name.clone(), 0)).collect();
    for it in sim.cluster().running.iter().filter(|it| sim.world.is_running(it.process)) {
        *running.entry(it.name.clone()).or_default() += 1;
    }
    running
}

/// Everything is done, and of each name one process runs.
fn is_at_rest(sim: &Sim) -> bool {
    is_done(sim) && running(sim).values().all(|count| *count == 1)
}

/// Every source is done, and whoever takes savepoints; every shard has processed everything, and is cut.
fn is_done(sim: &Sim) -> bool {
    let is_drained = |(stage, shard)| audit::is_drained(sim, stage, shard);
    sim.truth().working == 0 && sim.shards().into_iter().all(is_drained) && audit::savepoints::uncut(sim).is_empty()
}

/// Who does not get on, and why.
fn stuck(sim: &Sim) -> String {
    let mut text = format!("{} sources, or others, at work; ", sim.truth().working);
    text += &format!("processes {:?}; ", running(sim));
    for (stage, shard) in sim.shards() {
        if !audit::is_drained(sim, stage, shard) {
            let at = audit::newest_batch(sim, stage, shard).map(|batch| (batch.number, batch.epoch));
            text += &format!("{stage}[{shard}] is not done, (batch, epoch) {at:?}; ");
        }
    }
    let uncut = audit::savepoints::uncut(sim);
    if !uncut.is_empty() {
        text += &format!("not cut: {uncut:?}; ");
    }
    text + &worker::conditions(sim)
}

/// Of so many seeds all runs of the usual kind, and of the first fifth of them those that forget.
pub fn of_seeds(first: u64, count: u64) -> impl Iterator<Item = (Runs, u64)> {
    let of = |runs, count| (first..first + count).map(move |seed| (runs, seed));
    of(Runs::Usual, count).chain(of(Runs::Forgetful, count / 5))
}

/// Runs these on so many threads, each wholly on one; `each` is told of every outcome.
pub fn many(
    these: impl Iterator<Item = (Runs, u64)> + Send,
    jobs: usize,
    each: impl Fn(&Outcome) + Sync,
) -> (Counts, Vec<Outcome>) {
    let (these, sum) = (Mutex::new(these), Mutex::new((Counts::default(), Vec::new())));
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let next = these.lock().unwrap().next();
                    let Some((runs, seed)) = next else { return };
                    let outcome = run(runs, seed, false);
                    each(&outcome);
                    let mut sum = sum.lock().unwrap();
                    sum.0.add(&outcome.counts);
                    if !outcome.failures.is_empty() {
                        sum.1.push(outcome);
                    }
                }
            });
        }
    });
    sum.into_inner().unwrap()
}

//! `sim --first N --seeds N [--jobs N] [--forgetful]`: runs seeds, with `--forgetful` only as runs that forget much, and prints what was hit. `TRACE=1` prints every step.

use millstream_sim::settings::Runs;
use millstream_sim::{Outcome, many, of_seeds, run};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// So few seeds need not hit everything.
const FEW: u64 = 1_000;

struct Arguments {
    first: u64,
    seeds: u64,
    jobs: usize,
    runs: Runs,
}

fn arguments() -> Result<Arguments, String> {
    let jobs = std::thread::available_parallelism().map_or(1, |count| count.get());
    let mut arguments = Arguments { first: 0, seeds: 1, jobs, runs: Runs::default() };
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        if name == "--forgetful" {
            arguments.runs = Runs::Forgetful;
            continue;
        }
        let value = given.next().and_then(|value| value.parse::<u64>().ok());
        let value = value.ok_or_else(|| format!("{name} needs a number"))?;
        match name.as_str() {
            "--first" => arguments.first = value,
            "--seeds" => arguments.seeds = value,
            "--jobs" => arguments.jobs = value as usize,
            _ => return Err(format!("unknown: {name}; known are --first, --seeds, --jobs, --forgetful")),
        }
    }
    Ok(arguments)
}

fn main() -> ExitCode {
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(what) => {
            eprintln!("{what}");
            return ExitCode::from(2);
        }
    };
    if std::env::var_os("TRACE").is_some() {
        return trace(&arguments);
    }
    all(&arguments)
}

fn trace(arguments: &Arguments) -> ExitCode {
    let mut failed = false;
    for seed in arguments.first..arguments.first + arguments.seeds {
        let outcome = run(arguments.runs, seed, true);
        failed |= !outcome.failures.is_empty();
        report(&outcome);
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn report(outcome: &Outcome) {
    for failure in &outcome.failures {
        println!("seed {}: {failure}", outcome.seed);
    }
    if !outcome.failures.is_empty() {
        println!("  replay: {}", outcome.replay());
    }
}

fn all(arguments: &Arguments) -> ExitCode {
    let (begin, done, steps) = (Instant::now(), AtomicU64::new(0), AtomicU64::new(0));
    let (first, end) = (arguments.first, arguments.first + arguments.seeds);
    let these: Vec<(Runs, u64)> = match arguments.runs {
        Runs::Usual => of_seeds(first, arguments.seeds).collect(),
        Runs::Forgetful => (first..end).map(|seed| (Runs::Forgetful, seed)).collect(),
    };
    let runs = these.len();
    let (counts, failed) = many(these.into_iter(), arguments.jobs, |outcome| {
        report(outcome);
        steps.fetch_add(outcome.fingerprint.0, Ordering::Relaxed);
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        if done.is_multiple_of(1_000) {
            eprintln!("{done} runs, {:.0} s", begin.elapsed().as_secs_f64());
        }
    });
    print!("{}", counts.table());
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "{runs} runs of {} seeds from {first}, {} failed, {} steps, {seconds:.1} s, {:.0} runs per second",
        arguments.seeds,
        failed.len(),
        steps.into_inner(),
        runs as f64 / seconds
    );
    let missing = counts.missing();
    if !missing.is_empty() {
        println!("never hit: {}", missing.join(", "));
    }
    let hit_all = missing.is_empty() || arguments.seeds < FEW;
    if failed.is_empty() && hit_all { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

//! What is measured, in which order, and what each figure's aim is.

use crate::cost::Cost;
use crate::figures::{Aim, Figures, run_of};
use crate::load::{Loader, Records};
use crate::scenario::{Memory, Scenario, Who};
use crate::servers::Kafka;
use crate::visible::{Delays, Watcher};
use crate::window::MEASURING;
use anyhow::{Context, Result, ensure};
use millstream_shard::log::Log;
use millstream_shard::topics::Topics;
use millstream_stores::kafka::KafkaLog;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

/// Of the time to be measured, what must have been when the input ends.
const LEAST_OF_WINDOW: f64 = 0.3;
/// Keys of all parts but one.
const USERS: u64 = 200_000;
/// Keys where the state is ten times what memory there is for it: 300 bytes each.
const MANY_USERS: u64 = 2_000_000;
/// A tenth of [`MANY_USERS`] states: half of it for the two shards' caches, half for RocksDB's blocks.
const TENTH: Memory = Memory { cache: 15 << 20, dirty: 6 << 20, blocks: 30 << 20 };
/// Smaller than any state: each record is read from RocksDB and written to it.
const NONE: Memory = Memory { cache: 0, dirty: 1, blocks: 64 << 20 };
/// Records per second of the low rate.
const LOW_RATE: f64 = 5000.0;
/// Records per input frame, as a gateway under load makes them.
const FRAME: usize = 200;

/// A part that is measured while the input lasts.
struct Saturated {
    name: &'static str,
    figure: &'static str,
    per_core: u32,
    frame: usize,
    users: u64,
    memory: Option<Memory>,
    aim: Option<Aim>,
    /// Records that there must be: more than the fastest does in its time.
    per_second: u64,
}

const SATURATED: [Saturated; 5] = [
    Saturated {
        name: "one",
        figure: "saturated, one shard per core",
        per_core: 1,
        frame: FRAME,
        users: USERS,
        memory: None,
        aim: Some(Aim::AtMost(5.2)),
        per_second: 300_000,
    },
    Saturated {
        name: "unframed",
        figure: "saturated, one shard per core, input not framed",
        per_core: 1,
        frame: 1,
        users: USERS,
        memory: None,
        aim: None,
        per_second: 280_000,
    },
    Saturated {
        name: "uncached",
        figure: "saturated, one shard per core, no cache: get and put in RocksDB",
        per_core: 1,
        frame: FRAME,
        users: USERS,
        memory: Some(NONE),
        aim: None,
        per_second: 260_000,
    },
    Saturated {
        name: "four",
        figure: "saturated, four shards per core",
        per_core: 4,
        frame: FRAME,
        users: USERS,
        memory: None,
        aim: Some(Aim::AtMost(6.2)),
        per_second: 340_000,
    },
    Saturated {
        name: "large",
        figure: "saturated, one shard per core, state 10 times larger than memory for it, uniform keys",
        per_core: 1,
        frame: FRAME,
        users: MANY_USERS,
        memory: Some(TENTH),
        aim: Some(Aim::AtMost(13.0)),
        per_second: 200_000,
    },
];

/// How long the phases are, seconds, and how often the first part and the low rate are measured.
struct Phases {
    warm: u64,
    measured: u64,
    raw_warm: u64,
    raw_measured: u64,
    rounds: usize,
}

const FULL: Phases = Phases { warm: 60, measured: 60, raw_warm: 10, raw_measured: 30, rounds: 2 };
const QUICK: Phases = Phases { warm: 8, measured: 12, raw_warm: 4, raw_measured: 8, rounds: 1 };

/// Measures all parts whose name contains `only`.
pub(crate) fn run(quick: bool, only: &str, rounds: Option<usize>) -> Result<Figures> {
    let kafka = Kafka::start()?;
    let log = KafkaLog::new(kafka.config())?;
    let broker = kafka.nodes().first().context("no broker")?.pid();
    let phases = if quick { QUICK } else { FULL };
    let phases = Phases { rounds: rounds.unwrap_or(phases.rounds), ..phases };
    let cores = u32::try_from(std::thread::available_parallelism()?.get())?;
    let mut suite =
        Suite { log, bootstrap: kafka.bootstrap().to_owned(), broker, phases, cores, figures: Figures::default() };
    for part in SATURATED.iter().filter(|part| part.name.contains(only)) {
        suite.saturated(part)?;
    }
    if "low".contains(only) {
        suite.low_rate()?;
    }
    Ok(suite.figures)
}

struct Suite {
    log: KafkaLog,
    bootstrap: String,
    broker: i32,
    phases: Phases,
    cores: u32,
    figures: Figures,
}

impl Suite {
    fn saturated(&mut self, part: &Saturated) -> Result<()> {
        let shards = self.cores * part.per_core;
        let source = self.topics(part.name, shards)?;
        // The input ends when the last twentieth of it is left: nobody is measured while it waits.
        let records = part.users.max(part.per_second * (self.phases.warm + self.phases.measured));
        println!("{}: loading {records} records", part.name);
        Loader::new(&self.log, &source)?.bulk(&mut Records::new(part.users), records, part.frame)?;
        let (mut ours, mut raw) = (Vec::new(), Vec::new());
        let rounds = if part.name == "one" { self.phases.rounds } else { 1 };
        for round in 0..rounds {
            let pipeline = format!("{}{round}", part.name);
            let scenario = Scenario {
                pipeline: pipeline.clone(),
                memory: part.memory,
                warm_records: part.users,
                records: records / 20 * 19,
                ..self.scenario(Who::Shards, part.name, shards)
            };
            ours.push(self.measure(&scenario)?);
            let scenario = Scenario {
                who: Who::Raw,
                pipeline: format!("{pipeline}raw"),
                warm_records: 0,
                warm_seconds: self.phases.raw_warm,
                seconds: self.phases.raw_measured,
                ..scenario
            };
            raw.push(self.measure(&scenario)?);
        }
        self.delete(&source)?;
        self.report(part, &ours, &raw)
    }

    fn report(&mut self, part: &Saturated, ours: &[Cost], raw: &[Cost]) -> Result<()> {
        let (ours, raw) = (Cost::sum(ours).context("nothing measured")?, Cost::sum(raw).context("no limit measured")?);
        let shortest = LEAST_OF_WINDOW * self.phases.measured as f64;
        ensure!(ours.seconds >= shortest, "{}: the input ended too early: raise its `per_second`", part.name);
        self.figures.add_cpu(part.figure, &ours, Some(&raw), part.aim)?;
        if matches!(part.name, "one" | "large") {
            for (what, ms) in [("p99", ours.batch_p99_ms), ("the longest", ours.batch_longest_ms)] {
                let name = format!("{}: a batch, from its first record to its commit: {what}", part.figure);
                self.figures.add(&name, ms as f64, "ms", None, run_of(&ours, None)?);
            }
        }
        if part.name == "one" {
            let share = 100.0 * raw.cpu_per_million() / ours.cpu_per_million();
            let name = "saturated, one shard per core: raw librdkafka's share";
            self.figures.add(name, share, "%", Some(Aim::AtLeast(70.0)), run_of(&ours, Some(&raw))?);
        }
        Ok(())
    }

    /// The worst of several rounds: at this rate a figure says as much about what else the machine does as about the program.
    fn low_rate(&mut self) -> Result<()> {
        let (mut costs, mut p99) = (Vec::new(), 0.0_f64);
        for round in 0..self.phases.rounds {
            let (cost, delays) = self.low_rate_once(round)?;
            println!("low{round}: {cost}, p50 {} ms, p99 {} ms", delays.quantile(0.5)?, delays.quantile(0.99)?);
            costs.push(cost);
            p99 = p99.max(delays.quantile(0.99)?);
        }
        let by_cpu = |one: &&Cost, other: &&Cost| one.cpu_per_million().total_cmp(&other.cpu_per_million());
        let cost = costs.iter().max_by(by_cpu).context("nothing measured")?;
        let resident = costs.iter().map(|cost| cost.resident).max().unwrap_or_default();
        self.figures.add_cpu("5,000 records/s, 8 shards", cost, None, Some(Aim::AtMost(42.0)))?;
        let (run, figures) = (run_of(cost, None)?, &mut self.figures);
        figures.add(
            "5,000 records/s, 8 shards: produced to visible, p99",
            p99,
            "ms",
            Some(Aim::AtMost(100.0)),
            run.clone(),
        );
        let memory = "memory at 200,000 states of 300 bytes, 8 shards, at 5,000 records/s";
        figures.add(memory, resident as f64 / f64::from(1 << 20), "MB", Some(Aim::AtMost(280.0)), run);
        Ok(())
    }

    fn low_rate_once(&self, round: usize) -> Result<(Cost, Delays)> {
        let shards = 8;
        let name = format!("low{round}");
        let source = self.topics(&name, shards)?;
        let mut records = Records::new(USERS);
        let mut loader = Loader::new(&self.log, &source)?;
        loader.bulk(&mut records, USERS, FRAME)?;
        let scenario = Scenario {
            pipeline: format!("{name}out"),
            warm_records: USERS,
            ..self.scenario(Who::Shards, &name, shards)
        };
        let own = self.topics(&scenario.pipeline, shards)?;
        let watcher = Watcher::new(&self.bootstrap, &own)?;
        let (stop, counts) = (AtomicBool::new(false), AtomicBool::new(false));
        let measured = std::thread::scope(|scope| -> Result<(Cost, Delays)> {
            let loading = scope.spawn(|| loader.steady(&mut records, LOW_RATE, &stop));
            let watching = scope.spawn(|| watcher.run(&counts, &stop));
            let cost = self.run(&scenario, &counts);
            stop.store(true, Ordering::Relaxed);
            let panicked = |_| anyhow::anyhow!("a thread of the measurement panicked");
            let delays = watching.join().map_err(panicked)?;
            loading.join().map_err(panicked)??;
            Ok((cost?, delays?))
        })?;
        self.delete(&source)?;
        self.delete(&own)?;
        Ok(measured)
    }

    fn scenario(&self, who: Who, source: &str, shards: u32) -> Scenario {
        Scenario {
            who,
            bootstrap: self.bootstrap.clone(),
            broker: self.broker,
            pipeline: String::new(),
            source: source.to_owned(),
            shards,
            memory: None,
            warm_records: 0,
            warm_seconds: self.phases.warm,
            seconds: self.phases.measured,
            records: u64::MAX,
        }
    }

    /// The topics of a measurement or of an input, created.
    fn topics(&self, pipeline: &str, shards: u32) -> Result<Topics> {
        let topics = Topics::new(pipeline, shards, 1);
        self.log.create_topics(&topics.specs())?;
        Ok(topics)
    }

    /// The disk holds a few parts, not all of them.
    fn delete(&self, topics: &Topics) -> Result<()> {
        let delete = |topic: &millstream_shard::log::TopicSpec| self.log.delete_topic(&topic.name);
        Ok(topics.specs().iter().try_for_each(delete)?)
    }

    /// A saturated measurement, with topics of its own.
    fn measure(&self, scenario: &Scenario) -> Result<Cost> {
        let own = self.topics(&scenario.pipeline, scenario.shards)?;
        let cost = self.run(scenario, &AtomicBool::new(false))?;
        println!("{}: {:?}: {cost}", scenario.pipeline, scenario.who);
        self.delete(&own)?;
        Ok(cost)
    }

    /// Measures in a process of its own; `measuring` is set while it does.
    fn run(&self, scenario: &Scenario, measuring: &AtomicBool) -> Result<Cost> {
        let program = std::env::current_exe()?;
        let mut child = Command::new(program).args(["measure", &scenario.to_text()?]).stdout(Stdio::piped()).spawn()?;
        let mut cost = Err(anyhow::anyhow!("{}: no result", scenario.pipeline));
        for line in BufReader::new(child.stdout.take().context("no output")?).lines() {
            let line = line?;
            measuring.store(line == MEASURING, Ordering::Relaxed);
            if line != MEASURING {
                cost = serde_json::from_str(&line).with_context(|| format!("not a result: {line}"));
            }
        }
        let status = child.wait()?;
        anyhow::ensure!(status.success(), "{}: ended with {status}", scenario.pipeline);
        cost
    }
}

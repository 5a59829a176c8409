//! How long the worst shard stands still: when a worker is killed (`kill -9`), and when its shards are handed off. No operator runs; the plan was published before.
//!
//! Two workers of unify and of action (8 shards a stage by default), a gateway, Kafka of its own. Each round, one worker that owns half of the shards of a stage
//! is killed, or a plan gives its shards to the other. The figure of a round is the longest gap of *any* shard, by a reader of `events` ([`probe`]); from it the interval
//! between batches at rest is taken (the gap that a moment drawn at random lies in, its median), and for a kill, the bound of silence after which successors may act. Results go to `bench/results/engine.json`, behind those of the engine.

mod probe;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use millstream_shard::log::Log;
use millstream_stores::kafka::{KafkaConfig, KafkaLog};
use millstream_tests::conformance::unique;
use millstream_tests::pipeline::{Pipeline, Settings, binary, until};
use millstream_tests::plan::{FOLLOWS, shards as rows};
use millstream_tests::servers::Kafka;
use probe::{Arrivals, Probe};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// After this long without a report, successors act (the default of `ownership.plan.silence`).
const SILENCE: Duration = Duration::from_secs(3);
const TENANT: (&str, &str) = ("bench", "bench-key");

#[derive(Parser)]
struct Args {
    /// Rounds of `kill -9`
    #[arg(long, default_value_t = 12)]
    kills: u32,
    /// Rounds of handoff
    #[arg(long, default_value_t = 40)]
    handoffs: u32,
    /// Shards per stage
    #[arg(long, default_value_t = 8)]
    shards: u32,
    /// Kafka nodes
    #[arg(long, default_value_t = 1)]
    brokers: usize,
    /// Where the results go
    #[arg(long, default_value = "bench/results/engine.json")]
    out: PathBuf,
}

/// One figure, as the engine's.
#[derive(Serialize)]
struct Figure {
    figure: &'static str,
    value: f64,
    unit: &'static str,
    peer: Option<&'static str>,
    peer_value: Option<f64>,
    ratio: Option<f64>,
    aim: f64,
    met: bool,
    at_least: bool,
    /// None says that it is of this program.
    run: Option<()>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    // Before anything is measured that could then not be written.
    let others = of_others(&args.out)?;
    let kafka = Kafka::start_cluster(args.brokers)?;
    let replication = u16::try_from(args.brokers.min(3))?;
    let settings = Settings {
        pipeline: unique("failover"),
        shards: args.shards,
        kafka: Some(kafka.bootstrap().to_owned()),
        replication,
        tenants: vec![(TENANT.0.to_owned(), TENANT.1.to_owned())],
        more: FOLLOWS.to_owned(),
        ..Settings::default()
    };
    let names = [
        ("gateway", "gateway"),
        ("unify", "unify-0"),
        ("unify", "unify-1"),
        ("action", "action-0"),
        ("action", "action-1"),
    ];
    let mut bench = Bench { pipeline: Pipeline::launched(&settings, &names)?, shards: args.shards };
    bench.plan([0, 0], None)?;
    bench.plan_halves()?;
    for process in &mut bench.pipeline.processes {
        process.ready()?;
    }
    let log = KafkaLog::new(KafkaConfig { replication_factor: replication, ..KafkaConfig::new(kafka.bootstrap()) })?;
    let (events, url) = (format!("{}.events", settings.pipeline), bench.pipeline.gateway()?.url());
    let probe = Probe::start(&log as &dyn Log, &events, args.shards, &url, TENANT.0, TENANT.1)?;
    bench.settled(&probe.arrivals)?;
    let rest = bench.at_rest(&probe.arrivals);
    let handoffs = (0..args.handoffs).map(|round| bench.handoff(round, &probe.arrivals)).collect::<Result<Vec<_>>>()?;
    let kills = (0..args.kills).map(|round| bench.kill(round, &probe.arrivals)).collect::<Result<Vec<_>>>()?;
    drop(probe);
    write(&args, others, rest, &handoffs, &kills)
}

struct Bench {
    pipeline: Pipeline,
    shards: u32,
}

const STAGES: [&str; 2] = ["unify", "action"];

impl Bench {
    /// Publishes a plan in which worker `owners[i]` owns every shard of stage i; the reaction stage belongs to nobody who is there.
    fn plan(&self, owners: [usize; 2], moving_to: Option<[usize; 2]>) -> Result<()> {
        self.publish(|stage, _| (owners.get(stage).copied(), moving_to.and_then(|to| to.get(stage).copied())))
    }

    /// Even shards are one worker's, odd ones the other's.
    fn plan_halves(&self) -> Result<()> {
        self.publish(|_, shard| (Some(shard as usize % 2), None))
    }

    fn publish(&self, place: impl Fn(usize, u32) -> (Option<usize>, Option<usize>)) -> Result<()> {
        let mut yaml = "generation: 1\nstages:\n".to_owned();
        for (index, stage) in STAGES.iter().enumerate() {
            yaml.push_str(&format!("  {stage}:\n"));
            for shard in 0..self.shards {
                let (owner, moving_to) = place(index, shard);
                let owner = owner.context("an owner")?;
                let moving = moving_to.map(|to| format!(", moving_to: {stage}-{to}")).unwrap_or_default();
                let other = 1 - owner;
                yaml.push_str(&format!(
                    "    - {{shard: {shard}, owner: {stage}-{owner}, successors: [{stage}-{other}], warm: 1{moving}}}\n"
                ));
            }
        }
        yaml.push_str("  reaction:\n");
        for shard in 0..self.shards {
            yaml.push_str(&format!("    - {{shard: {shard}, owner: reaction-0}}\n"));
        }
        let gateway = self.pipeline.gateway()?;
        let file = gateway.config().with_file_name("plan.yaml");
        std::fs::write(&file, yaml)?;
        let output = Command::new(binary()?)
            .args(["plan", "apply", "--force", "--config"])
            .arg(gateway.config())
            .arg("--file")
            .arg(&file)
            .output()?;
        ensure!(output.status.success(), "millstream plan: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Waits until every shard has an owner and a prepared standby, and puts events out.
    fn settled(&self, arrivals: &Arrivals) -> Result<()> {
        let asked = self.pipeline.processes.iter().find(|process| process.name == "unify-0").context("unify-0")?;
        until("an owner and a prepared standby of each shard", || {
            let rows = rows(asked)?;
            let owners = rows.iter().filter(|row| row.role == "owner" && row.heard_ms < 1_000).count();
            let prepared = rows.iter().filter(|row| row.prepared && row.lag < 10 && row.heard_ms < 1_000).count();
            let expected = STAGES.len() * self.shards as usize;
            Ok((owners == expected && prepared == expected).then_some(()))
        })?;
        let since = Instant::now();
        until("events of each shard", || Ok(arrivals.all_since(since).then_some(())))
    }

    /// In ten seconds in which nothing happens: the interval between batches, which is the gap that a moment drawn at random lies in, its median; and the longest gap of any shard.
    ///
    /// Not the median of all gaps: events that come in one batch have hardly any between them.
    fn at_rest(&self, arrivals: &Arrivals) -> [Duration; 2] {
        let from = Instant::now();
        std::thread::sleep(Duration::from_secs(10));
        [median_by_time(&arrivals.all_gaps(from, Instant::now())), worst(arrivals, from)]
    }

    /// All shards of both stages that one of the two workers has go to the other, and half of them back.
    fn handoff(&self, round: u32, arrivals: &Arrivals) -> Result<Duration> {
        let (to, stage) = (round as usize % 2, (round / 2) as usize % 2);
        let place = |index: usize, shard: u32| {
            let home = shard as usize % 2;
            if index == stage { (home, (home != to).then_some(to)) } else { (home, None) }
        };
        self.publish(|index, shard| {
            let (home, moving) = place(index, shard);
            (Some(home), moving)
        })?;
        self.settled(arrivals)?;
        let from = Instant::now();
        self.publish(|index, shard| {
            let (home, moving) = place(index, shard);
            (Some(moving.unwrap_or(home)), None)
        })?;
        self.moved(stage, to)?;
        // A shard whose next event has not come out yet has a gap that is still open.
        let moved = Instant::now();
        until("an event of every shard", || Ok(arrivals.all_since(moved).then_some(())))?;
        let gap = worst(arrivals, from);
        let name = STAGES.get(stage).copied().unwrap_or_default();
        println!("handoff of {} shards of {name} to worker {to}: worst gap {gap:?}", self.shards / 2);
        self.publish(|_, shard| (Some(shard as usize % 2), None))?;
        self.moved_back()?;
        self.settled(arrivals)?;
        Ok(gap)
    }

    fn moved(&self, stage: usize, to: usize) -> Result<()> {
        self.owned_as(|index, shard| if index == stage { to } else { shard as usize % 2 })
    }

    fn moved_back(&self) -> Result<()> {
        self.owned_as(|_, shard| shard as usize % 2)
    }

    fn owned_as(&self, owner: impl Fn(usize, u32) -> usize) -> Result<()> {
        let asked = self.pipeline.processes.iter().find(|process| process.name == "unify-0").context("unify-0")?;
        until("the shards where the plan wants them", || {
            let rows = rows(asked)?;
            let placed = STAGES.iter().enumerate().all(|(index, stage)| {
                (0..self.shards).all(|shard| {
                    let wanted = format!("{stage}-{}", owner(index, shard));
                    let mut of =
                        rows.iter().filter(|row| row.stage == *stage && row.shard == shard && row.role == "owner");
                    of.all(|row| row.worker == wanted)
                        && rows.iter().any(|row| row.stage == *stage && row.shard == shard && row.role == "owner")
                })
            });
            Ok(placed.then_some(()))
        })
    }

    /// Kills one of the two workers of a stage, lets its name come back, and its shards with it.
    fn kill(&mut self, round: u32, arrivals: &Arrivals) -> Result<Duration> {
        let name =
            ["action-1", "unify-1", "action-1", "unify-1"].get(round as usize % 4).copied().unwrap_or("action-1");
        let process = self.pipeline.processes.iter_mut().find(|process| process.name == name).context("the worker")?;
        let from = Instant::now();
        process.kill()?;
        until("events of each shard after the kill", || Ok(arrivals.all_since(from + SILENCE).then_some(())))?;
        let gap = worst(arrivals, from);
        println!("kill -9 of {name}: worst gap {gap:?}");
        process.start()?;
        self.moved_back()?;
        self.settled(arrivals)?;
        Ok(gap)
    }
}

/// The longest gap of any shard since then.
fn worst(arrivals: &Arrivals, from: Instant) -> Duration {
    arrivals.gaps(from, Instant::now()).into_iter().max().unwrap_or_default()
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e4).round() / 10.0
}

fn percentile(values: &[Duration], share: f64) -> Duration {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// The figures in a file that another program has measured: those say how.
fn of_others(file: &Path) -> Result<Vec<serde_json::Value>> {
    if !file.exists() {
        return Ok(Vec::new());
    }
    let mut list: Vec<serde_json::Value> = serde_json::from_str(&std::fs::read_to_string(file)?)
        .with_context(|| format!("{} is not a list of figures", file.display()))?;
    list.retain(|figure| figure.get("run").is_some_and(|run| !run.is_null()));
    Ok(list)
}

/// Half of all time lies in gaps that are shorter or as long.
fn median_by_time(gaps: &[Duration]) -> Duration {
    let mut sorted = gaps.to_vec();
    sorted.sort_unstable();
    let half = gaps.iter().sum::<Duration>() / 2;
    let mut passed = Duration::ZERO;
    let mut is_half = |gap: &Duration| {
        passed += *gap;
        passed >= half
    };
    sorted.into_iter().find(|gap| is_half(gap)).unwrap_or_default()
}

fn write(
    args: &Args,
    mut list: Vec<serde_json::Value>,
    [rest, longest]: [Duration; 2],
    handoffs: &[Duration],
    kills: &[Duration],
) -> Result<()> {
    let beyond = |gap: &Duration| gap.saturating_sub(rest);
    let handoffs: Vec<Duration> = handoffs.iter().map(beyond).collect();
    let after: Vec<Duration> = kills.iter().map(|gap| gap.saturating_sub(SILENCE)).collect();
    let figure = |name: &'static str, value: f64, aim: f64| Figure {
        figure: name,
        value,
        unit: "ms",
        peer: None,
        peer_value: None,
        ratio: None,
        aim,
        met: value <= aim,
        at_least: false,
        run: None,
    };
    let figures = [
        figure(
            "kill -9 of a worker to the first new effect of the worst shard, detection (3 s of silence) included: longest",
            milliseconds(kills.iter().copied().max().unwrap_or_default()),
            5_000.0,
        ),
        figure(
            "kill -9 of a worker to the first new effect of the worst shard, beyond the bound of silence (3 s): longest",
            milliseconds(after.iter().copied().max().unwrap_or_default()),
            2_000.0,
        ),
        figure("kill -9: the same, median", milliseconds(percentile(&after, 0.5)), 2_000.0),
        figure(
            "planned handoff: longest gap of any shard beyond the interval between batches at rest: p99",
            milliseconds(percentile(&handoffs, 0.99)),
            150.0,
        ),
        figure("planned handoff: the same, median", milliseconds(percentile(&handoffs, 0.5)), 150.0),
    ];
    if let Some(folder) = args.out.parent() {
        std::fs::create_dir_all(folder)?;
    }
    for figure in &figures {
        println!("{}: {} {}", figure.figure, figure.value, figure.unit);
        list.push(serde_json::to_value(figure)?);
    }
    std::fs::write(&args.out, serde_json::to_string_pretty(&list)? + "\n")?;
    println!(
        "at rest: interval between batches {rest:?}, longest {longest:?}; {} handoffs, {} kills; written to {}",
        handoffs.len(),
        kills.len(),
        args.out.display()
    );
    Ok(())
}

//! How long the worst shard stands still: when a worker is killed (`kill -9`), and when its shards are handed off. No operator runs; the plan was published before.
//!
//! Two workers of each stage (8 shards a stage by default), a gateway, Kafka and a MongoDB-compatible server of its own. Each round, one worker that owns half of the
//! shards of a stage is killed, or a plan gives its shards to the other. The figure of a round is the longest gap of *any* shard, by readers of `events` and of documents
//! ([`probe`]). Of a handoff the interval at rest is taken from it (the gap that a moment drawn at random lies in, its median). A kill is divided at the moment when the last of its
//! shards has a successor that knows of it, which that one's log says: before it is detection. Results go to `bench/results/engine.json`, behind those of the engine.

mod figures;
mod probe;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use figures::Kill;
use millstream_stores::kafka::{KafkaConfig, KafkaLog};
use millstream_stores::mongo::MongoDocuments;
use millstream_tests::conformance::unique;
use millstream_tests::pipeline::{Pipeline, Settings, binary, until};
use millstream_tests::plan::{FOLLOWS, shards as rows};
use millstream_tests::servers::{Kafka, Mongo};
use probe::{Gap, Outputs, Probe};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// After this long without a report, successors act (the default of `ownership.plan.silence`).
const SILENCE: Duration = Duration::from_secs(3);
const TENANT: (&str, &str) = ("bench", "bench-key");

#[derive(Parser)]
struct Args {
    /// Rounds of `kill -9`
    #[arg(long, default_value_t = 12)]
    kills: u32,
    /// Rounds of handoff
    #[arg(long, default_value_t = 42)]
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

fn main() -> Result<()> {
    let args = Args::parse();
    // Before anything is measured that could then not be written.
    let others = figures::of_others(&args.out)?;
    let (kafka, mongo) = (Kafka::start_cluster(args.brokers)?, Mongo::start()?);
    let replication = u16::try_from(args.brokers.min(3))?;
    let settings = Settings {
        pipeline: unique("failover"),
        shards: args.shards,
        kafka: Some(kafka.bootstrap().to_owned()),
        replication,
        mongodb: Some(mongo.uri().to_owned()),
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
        ("reaction", "reaction-0"),
        ("reaction", "reaction-1"),
    ];
    let mut bench = Bench { pipeline: Pipeline::launched(&settings, &names)?, shards: args.shards };
    bench.plan_halves()?;
    for process in &mut bench.pipeline.processes {
        process.ready()?;
    }
    let log = KafkaLog::new(KafkaConfig { replication_factor: replication, ..KafkaConfig::new(kafka.bootstrap()) })?;
    let documents = Arc::new(MongoDocuments::connect(mongo.config(&settings.pipeline.replace('.', "_")))?);
    let outputs = Outputs { log: &log, events: format!("{}.events", settings.pipeline), documents };
    let probe = Probe::start(outputs, args.shards, &bench.pipeline.gateway()?.url(), TENANT.0, TENANT.1)?;
    bench.settled(&probe, 0)?;
    let (rest, longest) = at_rest(&probe);
    println!("at rest: interval {rest:?}, longest {longest:?}");
    let handoffs = (0..args.handoffs).map(|round| bench.handoff(round, &probe)).collect::<Result<Vec<_>>>()?;
    let handoffs: Vec<Duration> = handoffs.iter().map(|gap| gap.beyond(&rest)).collect();
    let kills = (0..args.kills).map(|round| bench.kill(round, &probe)).collect::<Result<Vec<_>>>()?;
    drop(probe);
    figures::write(&args.out, others, &handoffs, &kills)
}

/// In ten seconds in which nothing happens: the interval between batches, and the longest gap of any shard.
fn at_rest(probe: &Probe) -> (Gap, Gap) {
    let from = Instant::now();
    std::thread::sleep(Duration::from_secs(10));
    (probe.interval(from), probe.worst(from))
}

struct Bench {
    pipeline: Pipeline,
    shards: u32,
}

const STAGES: [&str; 3] = ["unify", "action", "reaction"];

impl Bench {
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

    /// Waits until every shard has an owner and a prepared standby, and puts events and documents out. (A shard of reaction has a prepared one only when it moves: so many do.)
    fn settled(&self, probe: &Probe, moving: usize) -> Result<()> {
        let asked = self.pipeline.processes.iter().find(|process| process.name == "unify-0").context("unify-0")?;
        until("an owner and a prepared standby of each shard", || {
            let rows = rows(asked)?;
            let owners = rows.iter().filter(|row| row.role == "owner" && row.heard_ms < 1_000).count();
            let prepared = rows.iter().filter(|row| row.prepared && row.lag < 10 && row.heard_ms < 1_000).count();
            let of_a_stage = self.shards as usize;
            let expected = (STAGES.len() * of_a_stage, (STAGES.len() - 1) * of_a_stage + moving);
            Ok(((owners, prepared) == expected).then_some(()))
        })?;
        let since = Instant::now();
        until("events and documents of each shard", || Ok(probe.all_since(since).then_some(())))
    }

    /// All shards of a stage that one of its two workers has go to the other, and then back.
    fn handoff(&self, round: u32, probe: &Probe) -> Result<Gap> {
        let (to, stage) = (round as usize % 2, (round / 2) as usize % STAGES.len());
        let place = |index: usize, shard: u32| {
            let home = shard as usize % 2;
            if index == stage { (home, (home != to).then_some(to)) } else { (home, None) }
        };
        self.publish(|index, shard| {
            let (home, moving) = place(index, shard);
            (Some(home), moving)
        })?;
        let name = STAGES.get(stage).copied().unwrap_or_default();
        self.settled(probe, if name == "reaction" { self.shards as usize / 2 } else { 0 })?;
        let from = Instant::now();
        self.publish(|index, shard| {
            let (home, moving) = place(index, shard);
            (Some(moving.unwrap_or(home)), None)
        })?;
        self.moved(stage, to)?;
        // A shard whose next event has not come out yet has a gap that is still open.
        let moved = Instant::now();
        until("an event and a document of every shard", || Ok(probe.all_since(moved).then_some(())))?;
        let gap = probe.worst(from);
        println!("handoff of {} shards of {name} to worker {to}: worst gap {gap:?}", self.shards / 2);
        self.publish(|_, shard| (Some(shard as usize % 2), None))?;
        self.moved_back()?;
        self.settled(probe, 0)?;
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
    fn kill(&mut self, round: u32, probe: &Probe) -> Result<Kill> {
        let stage = STAGES.get(round as usize % STAGES.len()).copied().unwrap_or_default();
        let name = format!("{stage}-1");
        let process = self.pipeline.processes.iter_mut().find(|process| process.name == name).context("the worker")?;
        let (from, at) = (Instant::now(), SystemTime::now());
        process.kill()?;
        until("events and documents of each shard after the kill", || {
            Ok(probe.all_since(from + SILENCE).then_some(()))
        })?;
        let gap = probe.worst(from);
        let known = self.taken_over(&format!("{stage}-0"), stage, at)?;
        println!("kill -9 of {name}: known after {known:?}, worst gap {gap:?}");
        let process = self.pipeline.processes.iter_mut().find(|process| process.name == name).context("the worker")?;
        process.start()?;
        self.moved_back()?;
        self.settled(probe, 0)?;
        Ok(Kill { detection: known, gap: gap.longest() })
    }

    /// How long after the kill the last shard of the dead was one that its successor takes over, by that one's log.
    fn taken_over(&self, successor: &str, stage: &str, killed: SystemTime) -> Result<Duration> {
        let successor = self.pipeline.processes.iter().find(|process| process.name == successor);
        let log = successor.context("the successor")?.log();
        let begun = log
            .lines()
            .filter(|line| line.contains("shard is taken over") && line.contains(&format!("stage=\"{stage}\"")));
        let mut times = BTreeMap::new();
        for line in begun {
            let mut words = line.split_whitespace();
            let time = words.next().unwrap_or_default();
            let time = OffsetDateTime::parse(time, &Rfc3339).with_context(|| format!("the time of `{line}`"))?;
            let shard = words.find(|word| word.starts_with("shard=")).unwrap_or_default().to_owned();
            if let Ok(after) = SystemTime::from(time).duration_since(killed) {
                // The first time: it may look again.
                times.entry(shard).or_insert(after);
            }
        }
        let expected = self.shards as usize / 2;
        ensure!(times.len() == expected, "{} of {expected} shards were taken over: {log}", times.len());
        times.into_values().max().context("no shard was taken over")
    }
}

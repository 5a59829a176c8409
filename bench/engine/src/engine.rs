//! The measured process: the shard runtime as the worker runs it, one thread per shard, on real Kafka and RocksDB.

use crate::scenario::Scenario;
use crate::stage::Synthetic;
use crate::window::{self, Progress};
use anyhow::Result;
use millstream_shard::log::Log;
use millstream_shard::memory::Pool;
use millstream_shard::ownership::{self, Claimant};
use millstream_shard::runtime::{Environment, Shard};
use millstream_shard::state::StateStore;
use millstream_shard::{Executor, Job};
use millstream_stores::embedded::SystemClock;
use millstream_stores::kafka::{KafkaConfig, KafkaLog};
use millstream_stores::rocks::{Resources, RocksState};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Background work in threads of its own, as the worker does it.
struct Threads;

impl Executor for Threads {
    fn run(&self, work: Box<dyn FnOnce() + Send>) -> Box<dyn Job> {
        let spawned = std::thread::Builder::new().name("background".into()).spawn(work);
        Box::new(Thread(spawned.ok()))
    }
}

/// None when it could not be started: the work's channel is without an answer then, which its owner notices.
struct Thread(Option<JoinHandle<()>>);

impl Job for Thread {
    fn wait(self: Box<Self>) {
        // A panic leaves the channel without an answer, too.
        let _ = self.0.map(JoinHandle::join);
    }
}

/// Runs the scenario's shards and measures them.
pub(crate) fn run(scenario: &Scenario) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let config = KafkaConfig { replication_factor: 1, ..KafkaConfig::new(&scenario.bootstrap) };
    let log: Arc<dyn Log> = Arc::new(KafkaLog::new(config)?);
    let resources = Resources::with(&scenario.rocks());
    let pool = scenario.pool(&resources);
    let progress = Arc::new(Progress::default());
    let mut threads = Vec::new();
    for shard in 0..scenario.shards {
        let mut shard = open(scenario, &log, shard, folder.path(), &pool, &resources)?;
        let progress = progress.clone();
        threads.push(std::thread::spawn(move || -> Result<()> {
            while !progress.is_stopped() {
                if let Some(report) = shard.run_batch()? {
                    progress.add(report.records);
                    progress.add_batch(report.committed_ms.saturating_sub(report.began_ms));
                }
            }
            Ok(())
        }));
    }
    window::measure(scenario, &progress, threads)
}

fn open(
    scenario: &Scenario,
    log: &Arc<dyn Log>,
    shard: u32,
    folder: &Path,
    pool: &Pool,
    resources: &Resources,
) -> Result<Shard<Synthetic>> {
    let topics = scenario.topics();
    ownership::begin(&**log, &topics, "unify", shard, 0)?;
    let environment = Environment {
        log: log.clone(),
        clock: Arc::new(SystemClock),
        executor: Arc::new(Threads),
        topics,
        claimant: Claimant::new("bench", "1"),
        checkpoints: None,
    };
    let store: Arc<dyn StateStore> = Arc::new(RocksState::open(&folder.join(shard.to_string()), resources)?);
    Ok(Shard::open(Synthetic, shard, environment, scenario.limits(pool), store)?)
}

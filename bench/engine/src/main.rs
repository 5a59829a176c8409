//! CPU-seconds per million records of the shard runtime on real Kafka.
//!
//! Loads `--records` JSON records of about 500 bytes over `--users` keys into `ingress`, framed; drains them through `--shards` shards of the
//! benchmark's [`stage`], exactly once; and, in the same run, through a raw pass-through without transactions or state (consume →
//! two produces per record), the limit of what the client library can do. Prints both and their ratio. Build our own code with optimisation:
//! `CARGO_PROFILE_DEV_OPT_LEVEL=3 cargo run -p millstream-bench-engine`.

mod raw;
mod stage;

use anyhow::{Context, Result};
use clap::Parser;
use millstream::runtime::system::{SystemClock, Threads};
use millstream_model::frame::{Content, FrameWriter};
use millstream_model::key::{group_of_parts, shard_of};
use millstream_model::proto::{Envelope, Source};
use millstream_shard::log::{Log, Outgoing, Producer};
use millstream_shard::ownership::{self, Claimant};
use millstream_shard::runtime::{Environment, Limits, Shard};
use millstream_shard::state::StateStore;
use millstream_shard::topics::Topics;
use millstream_stores::kafka::KafkaLog;
use millstream_tests::servers::Kafka;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::time::Instant;

#[derive(Parser)]
struct Args {
    /// Records to drain.
    #[arg(long, default_value_t = 2_000_000)]
    records: u64,
    /// Keys that they are spread over.
    #[arg(long, default_value_t = 200_000)]
    users: u64,
    /// Shards, one thread each.
    #[arg(long, default_value_t = 2)]
    shards: u32,
    /// Records per input frame.
    #[arg(long, default_value_t = 200)]
    frame: usize,
    /// Longest batch, milliseconds.
    #[arg(long, default_value_t = 100)]
    batch_ms: u64,
    /// Rounds; the first warms up and is not counted.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
}

/// The batches of a shard are many small allocations that live and die together; the system's allocator spends a third of the processor on
/// them (docs/src/design/proof-engine.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    let args = Args::parse();
    let kafka = Kafka::start()?;
    println!(
        "broker {}; {} records over {} users, {} shards, frames of {}",
        kafka.bootstrap(),
        args.records,
        args.users,
        args.shards,
        args.frame
    );
    let log: Arc<dyn Log> = Arc::new(KafkaLog::new(kafka.config())?);
    let (mut ours, mut limits) = (Vec::new(), Vec::new());
    for round in 0..args.rounds {
        let topics = Topics::new(&format!("bench{round}"), args.shards, 1);
        let bytes = load(&*log, &topics, &args)?;
        let drained = drain(&log, &topics, &args)?;
        println!("round {round} millstream: {drained} ({} bytes a record)", bytes / args.records);
        let raw =
            raw::pass_through(kafka.bootstrap(), &topics, args.records, args.shards, &stage::example(1, args.users))?;
        println!("round {round} raw:        {raw}");
        if round > 0 {
            ours.push(drained.cpu_per_million());
            limits.push(raw.cpu_per_million());
        }
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
    println!(
        "CPU s per million: millstream {:.2}, raw {:.2}, ratio {:.2}",
        mean(&ours),
        mean(&limits),
        mean(&ours) / mean(&limits)
    );
    Ok(())
}

/// What a run took.
pub(crate) struct Cost {
    records: u64,
    seconds: f64,
    cpu: f64,
}

impl Cost {
    fn cpu_per_million(&self) -> f64 {
        self.cpu * 1e6 / self.records as f64
    }
}

impl std::fmt::Display for Cost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rate = self.records as f64 / self.seconds / 1000.0;
        write!(f, "{rate:.0}k records/s, {:.2} CPU s per million", self.cpu_per_million())
    }
}

/// CPU seconds of this process so far, all threads.
pub(crate) fn cpu_seconds() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit(')').next().context("no name in stat")?;
    let ticks = |field: usize| -> Result<f64> {
        Ok(after_name.split_whitespace().nth(field).context("stat is short")?.parse()?)
    };
    Ok((ticks(11)? + ticks(12)?) / 100.0)
}

fn load(log: &dyn Log, topics: &Topics, args: &Args) -> Result<u64> {
    log.create_topics(&topics.specs())?;
    (0..args.shards).try_for_each(|shard| ownership::begin(log, topics, "unify", shard))?;
    let producer = log.producer()?;
    let failed = Arc::new(AtomicU64::new(0));
    let mut bytes = 0;
    let empty = || FrameWriter::new(Content::Envelope);
    let mut frames: Vec<FrameWriter> = (0..args.shards).map(|_| empty()).collect();
    let (sent, acknowledged) = channel();
    let mut outstanding = 0u64;
    for number in 0..args.records {
        let user = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) % args.users;
        let name = format!("user-{user:08}");
        let group = group_of_parts("bench", "user_id", &name);
        let body = stage::example(number, user);
        bytes += body.len() as u64;
        let shard = shard_of(group, args.shards);
        let Some(frame) = frames.get_mut(shard as usize) else { continue };
        frame.push(&Envelope {
            tenant: "bench".into(),
            source: Source::Native as i32,
            kind: "event".into(),
            message_id: name,
            group: u32::from(group),
            body: body.into(),
            ..Envelope::default()
        });
        if frame.len() >= args.frame {
            send(&*producer, topics, shard, std::mem::replace(frame, empty()), &failed, &sent);
            outstanding += 1;
            while outstanding > 200 {
                acknowledged.recv()?;
                outstanding -= 1;
            }
        }
    }
    for (shard, frame) in (0..).zip(frames) {
        send(&*producer, topics, shard, frame, &failed, &sent);
        outstanding += 1;
    }
    for _ in 0..outstanding {
        acknowledged.recv()?;
    }
    anyhow::ensure!(failed.load(Ordering::Relaxed) == 0, "loading failed");
    Ok(bytes)
}

fn send(
    producer: &dyn Producer,
    topics: &Topics,
    partition: u32,
    frame: FrameWriter,
    failed: &Arc<AtomicU64>,
    sent: &std::sync::mpsc::Sender<()>,
) {
    let (failed, sent) = (failed.clone(), sent.clone());
    let payload = frame.finish();
    let message = Outgoing { topic: &topics.ingress, partition, key: &[], payload: &payload, headers: &[] };
    producer.send(
        message,
        Box::new(move |result| {
            if result.is_err() {
                failed.fetch_add(1, Ordering::Relaxed);
            }
            let _ = sent.send(());
        }),
    );
}

fn drain(log: &Arc<dyn Log>, topics: &Topics, args: &Args) -> Result<Cost> {
    let folder = tempfile::tempdir()?;
    let limits = Limits {
        batch_records: 50_000,
        batch_bytes: 8 << 20,
        batch_time: std::time::Duration::from_millis(args.batch_ms),
        cache_bytes: 256 << 20,
        dirty_bytes: 32 << 20,
        ..Limits::default()
    };
    let cache = millstream_stores::rocks::Resources::new(64 << 20);
    let mut shards = Vec::new();
    for shard in 0..args.shards {
        let environment = Environment {
            log: log.clone(),
            clock: Arc::new(SystemClock),
            executor: Arc::new(Threads),
            topics: topics.clone(),
            claimant: Claimant::new("bench", "1"),
        };
        let path = folder.path().join(shard.to_string());
        let store: Arc<dyn StateStore> = Arc::new(millstream_stores::rocks::RocksState::open(&path, &cache)?);
        shards.push(Shard::open(stage::Synthetic, shard, environment, limits.clone(), store)?);
    }
    let done = Arc::new(AtomicU64::new(0));
    let (cpu, began) = (cpu_seconds()?, Instant::now());
    let threads: Vec<_> = shards
        .into_iter()
        .map(|mut shard| {
            let (done, records) = (done.clone(), args.records);
            std::thread::spawn(move || -> Result<()> {
                while done.load(Ordering::Relaxed) < records {
                    if let Some(report) = shard.run_batch()? {
                        done.fetch_add(report.records as u64, Ordering::Relaxed);
                    }
                }
                Ok(())
            })
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a shard's thread panicked"))??;
    }
    Ok(Cost { records: args.records, seconds: began.elapsed().as_secs_f64(), cpu: cpu_seconds()? - cpu })
}

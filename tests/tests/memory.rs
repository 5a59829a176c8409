//! Memory for state, by what the system says of the process: the cache counts honestly, and the budget of a process holds in a long run.
//!
//! Each test runs in a process of its own, because what one has freed would hide what the next one takes. The figures in `docs/src/design/memory.md` are printed
//! here: `cargo test --workspace --test memory -- --nocapture`; `MEMORY_MIB`, `MEMORY_SHARDS` and `MEMORY_ROUNDS` make the second one larger.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use millstream::config::{self, Size};
use millstream::runtime::memory::Parts;
use millstream::runtime::system::Threads;
use millstream_model::frame::{Content, FrameWriter};
use millstream_model::id::UserId;
use millstream_model::key::{Kind, StateKey};
use millstream_model::proto::{self, Envelope, Identifier, Membership, Register, Stamp, StatePosition, Value};
use millstream_shard::cache::Cache;
use millstream_shard::changes::Totals;
use millstream_shard::log::{Log, Outgoing, Producer};
use millstream_shard::memory::Pool;
use millstream_shard::ownership::{self, Claimant};
use millstream_shard::runtime::{Environment, Limits, Shard};
use millstream_shard::state::{Fill, Forget, Snapshot, StateStore, StoreError};
use millstream_shard::topics::Topics;
use millstream_stages::action::ActionStage;
use millstream_stages::unify::Unify;
use millstream_stages::{Stage, State as _, StateValue};
use millstream_stores::embedded::SystemClock;
use millstream_stores::embedded::log::{EmbeddedLog, LogOptions};
use millstream_stores::rocks::{Figures, Resources, RocksState};
use millstream_tests::conformance::{Numbers, eventually};
use millstream_tests::counting::Counting;
use prost::Message as _;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};

/// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CHILD: &str = "MEMORY_CHILD";

/// Runs a test of this file in a process of its own; true in that process.
fn is_child(test: &str) -> bool {
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    let output = child.args(["--exact", test, "--nocapture"]).env(CHILD, "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    eprintln!("{text}");
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stdout));
    false
}

/// Bytes of this process in memory, less what the system can drop and read from a file again: on a busy machine it does.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}

/// Holds nothing, and forgets what it is given.
struct Nothing;

impl StateStore for Nothing {
    fn position(&self) -> Result<Option<StatePosition>, StoreError> {
        Ok(None)
    }
    fn multi_get(&self, keys: &[&StateKey]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        Ok(vec![None; keys.len()])
    }
    fn write(
        &self,
        _: Option<&Forget>,
        _: &mut dyn Iterator<Item = (&StateKey, Option<&[u8]>)>,
        _: &StatePosition,
    ) -> Result<(), StoreError> {
        Ok(())
    }
    fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }
    fn scan(&self, _: &[u8], _: &mut dyn FnMut(&StateKey, &[u8])) -> Result<(), StoreError> {
        Ok(())
    }
    fn keys(&self, _: &[u8], _: Option<&StateKey>, _: usize) -> Result<Vec<StateKey>, StoreError> {
        Ok(Vec::new())
    }
    fn clear(&self) -> Result<(), StoreError> {
        Ok(())
    }
    fn snapshot(&self) -> Result<Option<Box<dyn Snapshot>>, StoreError> {
        Ok(None)
    }
    fn restore(&self, _: Fill<'_>) -> Result<(), StoreError> {
        Err(StoreError::Failed("not here".into()))
    }
}

fn stamp(number: u64) -> Option<Stamp> {
    Some(Stamp { time_ms: 1_790_000_000_000 + number, offset: number, ..Stamp::default() })
}

fn user(number: u64, identifiers: u64, attributes: u64) -> Vec<u8> {
    let member = |index: u64| Membership {
        identifier: Some(Identifier { r#type: "anonymous_id".into(), value: format!("{number:012}-{index:020}") }),
        stamp: stamp(number),
        record_id: vec![1; 16],
        last: stamp(number + 1),
        erased: None,
    };
    let register = |index: u64| Register {
        name: format!("attribute_{index:03}"),
        value: Some(Value::string(format!("value {number:012}"))),
        stamp: stamp(number),
        record_id: vec![2; 16],
        elements: Vec::new(),
    };
    let user = proto::User {
        id: vec![3; 18],
        revision: number,
        first_seen_ms: 1_790_000_000_000,
        last_seen_ms: 1_790_000_000_000,
        identifiers: (0..identifiers).map(member).collect(),
        attributes: (0..attributes).map(register).collect(),
        ..proto::User::default()
    };
    user.encode_to_vec()
}

/// Fills a cache with so many entries; gives what the cache counts, and what the process has grown by.
fn grown<V: StateValue>(entries: u64, entry: impl Fn(u64) -> (StateKey, Vec<u8>)) -> (u64, u64, Cache<V>) {
    let mut cache = Cache::<V>::new(Arc::new(Nothing), usize::MAX, Totals::default());
    let before = resident();
    for number in 0..entries {
        let (key, bytes) = entry(number);
        let value = V::decode(&key, &bytes).unwrap();
        cache.put(key, value);
        if number % 500 == 499 {
            let changes = cache.changes(0).unwrap();
            cache.commit(changes, None);
            // What waits for a flush is the same entries, with a list of them.
            cache.freeze();
        }
    }
    (cache.bytes() as u64, resident() - before, cache)
}

type ActionValue = <ActionStage as Stage>::Value;
type UnifyValue = <Unify as Stage>::Value;

/// Of one kind of entry: what the cache counts, and what the process grows by, are about the same. Each kind in a process of its own: what another one has freed
/// would be taken again, and hide what this one takes.
fn counts_what_it_takes<V: StateValue>(test: &str, entries: u64, entry: impl Fn(u64) -> (StateKey, Vec<u8>)) {
    if !is_child(test) {
        return;
    }
    let stored = entry(1).1.len();
    let (counted, grown, _cache) = grown::<V>(entries, entry);
    let (counted, grown) = (counted / entries, grown / entries);
    eprintln!("{test}: {stored} bytes stored, {counted} counted, {grown} in memory");
    assert!(grown * 100 <= counted * 110, "takes {grown}, counts {counted}");
    assert!(counted * 100 <= grown * 150, "takes {grown}, counts {counted}");
}

fn id(number: u64) -> Vec<u8> {
    number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes().repeat(2)
}

fn group(number: u64) -> u16 {
    (number % 4096) as u16
}

#[test]
fn message_ids_take_what_is_counted() {
    let seen = proto::Seen { time_ms: 1_790_000_000_000 }.encode_to_vec();
    counts_what_it_takes::<UnifyValue>("message_ids_take_what_is_counted", 500_000, |number| {
        (StateKey::in_period(group(number), Kind::Seen, 500_000, "acme", &id(number)), seen.clone())
    });
}

#[test]
fn nodes_take_what_is_counted() {
    let node = proto::Node { user: user_id(), ..proto::Node::default() }.encode_to_vec();
    counts_what_it_takes::<ActionValue>("nodes_take_what_is_counted", 500_000, |number| {
        let identifier = Identifier { r#type: "anonymous_id".into(), value: format!("{number:036}") };
        (StateKey::of_identifier("acme", Kind::Node, &identifier), node.clone())
    });
}

#[test]
fn small_users_take_what_is_counted() {
    let key = |number| StateKey::new(group(number), "acme", Kind::User, &id(number));
    let entry = |number| (key(number), user(number, 2, 3));
    counts_what_it_takes::<ActionValue>("small_users_take_what_is_counted", 60_000, entry);
}

#[test]
fn large_users_take_what_is_counted() {
    let key = |number| StateKey::new(group(number), "acme", Kind::User, &id(number));
    let entry = |number| (key(number), user(number, 10, 80));
    counts_what_it_takes::<ActionValue>("large_users_take_what_is_counted", 4_000, entry);
}

/// Bytes that are a user id.
fn user_id() -> Vec<u8> {
    let identifier = Identifier { r#type: "user_id".into(), value: "42".into() };
    UserId::create("acme", &identifier, &stamp(1).unwrap(), 1).as_bytes().to_vec()
}

/// A number of the environment.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Bytes of a value, and of its entry in memory.
const VALUE: u64 = 1_000;
const ENTRY: u64 = 1_280;
/// Records per frame, and frames that are sent before they are processed: few, because what a batch holds is no state.
const FRAME: u64 = 200;
const FRAMES: u64 = 2;
/// Ids whose state is hardly any, but which make the log as busy: a batch changes most of them.
const FEW: u64 = 2_000;

/// What the process takes most, with what its state counts then, and most less what its state counts.
#[derive(Default)]
struct Peak {
    all: Mutex<(u64, u64, Figures)>,
    beside: AtomicU64,
}

/// One shard at work.
struct Load {
    shard: Shard<Counting>,
    number: u32,
    producer: Box<dyn Producer>,
    topic: Arc<str>,
    random: Numbers,
    resources: Resources,
    /// Of each shard.
    counted: Arc<Vec<AtomicU64>>,
}

impl Load {
    /// Processes so many records of ids below `ids`.
    fn run(&mut self, records: u64, ids: u64, peak: &Peak) {
        for _ in 0..records.div_ceil(FRAME * FRAMES) {
            (0..FRAMES).for_each(|_| self.send(ids));
            let mut left = (FRAME * FRAMES) as usize;
            while left > 0 {
                let report = eventually("a batch", || self.shard.run_batch().unwrap());
                left = left.saturating_sub(report.records);
                self.counted[self.number as usize].store(report.cache_bytes as u64, Ordering::Relaxed);
                let counted = self.counted.iter().map(|bytes| bytes.load(Ordering::Relaxed)).sum::<u64>();
                let (all, figures) = (resident(), self.resources.figures());
                let beside = all.saturating_sub(counted + figures.cache_bytes);
                peak.beside.fetch_max(beside, Ordering::Relaxed);
                let mut most = peak.all.lock().unwrap();
                if all > most.0 {
                    *most = (all, counted, figures);
                }
            }
        }
    }

    fn send(&mut self, ids: u64) {
        let mut frame = FrameWriter::new(Content::Envelope);
        for _ in 0..FRAME {
            let message_id = format!("{:012}", self.random.below(ids));
            frame.push(&Envelope { message_id, received_ms: VALUE as i64, ..Envelope::default() });
        }
        let (topic, payload) = (&self.topic, frame.finish());
        let message = Outgoing { topic, partition: self.number, key: &[], payload: &payload, headers: &[] };
        self.producer.send(message, Box::new(|fate| assert!(fate.is_ok())));
    }
}

fn loads(folder: &std::path::Path, shards: u32, pool: &Pool, resources: &Resources) -> Vec<Load> {
    // A log that takes little memory itself, so that its ups and downs hide nothing.
    let options = LogOptions { memtable_bytes: 2 << 20, ..LogOptions::default() };
    let log = EmbeddedLog::open(&folder.join("log"), options, Arc::new(SystemClock)).unwrap();
    let (log, topics): (Arc<dyn Log>, _) = (Arc::new(log), Topics::new("test", shards, 1));
    log.create_topics(&topics.specs()).unwrap();
    let counted: Arc<Vec<AtomicU64>> = Arc::new((0..shards).map(|_| AtomicU64::new(0)).collect());
    let load = |number: u32| {
        ownership::begin(&*log, &topics, "unify", number, 0).unwrap();
        let store = RocksState::open(&folder.join(format!("unify-{number}")), resources).unwrap();
        let environment = Environment {
            log: log.clone(),
            clock: Arc::new(SystemClock),
            executor: Arc::new(Threads),
            topics: topics.clone(),
            claimant: Claimant::new("test", "1"),
            checkpoints: None,
        };
        let limits = Limits { pool: Some(pool.clone()), ..Limits::default() };
        let shard = Shard::open(Counting, number, environment, limits, Arc::new(store)).unwrap();
        let (producer, topic) = (log.producer().unwrap(), topics.ingress.clone());
        let random = Numbers::new(u64::from(number) + 1);
        Load { shard, number, producer, topic, random, resources: resources.clone(), counted: counted.clone() }
    };
    (0..shards).map(load).collect()
}

/// The log, and what batches hold, are not state: their most is what the same traffic takes with hardly any state, once the log's own memory is filled.
#[test]
fn a_process_whose_state_is_ten_times_its_caches_stays_within_its_budget() {
    if !is_child("a_process_whose_state_is_ten_times_its_caches_stays_within_its_budget") {
        return;
    }
    let (memory, shards) = (setting("MEMORY_MIB", 64) << 20, setting("MEMORY_SHARDS", 2));
    let state = config::State { memory: Size(memory), ..config::State::default() };
    let parts = Parts::of(&state, shards as usize).unwrap();
    let (resources, pool) = parts.shared(true);
    let ids = parts.caches as u64 * 10 / shards / ENTRY;
    let records = ids * setting("MEMORY_ROUNDS", 1);
    let folder = tempfile::tempdir().unwrap();
    let loads = loads(folder.path(), shards as u32, &pool, &resources);
    let (first, warm, run) = (Peak::default(), Peak::default(), Peak::default());
    let together = Barrier::new(shards as usize);
    std::thread::scope(|scope| {
        for mut load in loads {
            let (first, warm, run, together, resources) = (&first, &warm, &run, &together, &resources);
            scope.spawn(move || {
                for (peak, ids) in [(first, FEW), (warm, FEW), (run, ids)] {
                    load.run(records, ids, peak);
                    together.wait();
                }
                let files = resources.stores().iter().map(|store| store.file_bytes >> 20).sum::<u64>();
                eprintln!("shard {}: the stores have {files} MiB of files", load.number);
            });
        }
    });
    let (baseline, (peak, counted, then)) = (warm.beside.into_inner(), run.all.into_inner().unwrap());
    let (grown, figures) = (peak.saturating_sub(baseline), resources.figures());
    let [memory_mib, baseline, peak, grown_mib, caches, blocks, memtables] =
        [memory, baseline, peak, grown, counted, then.cache_bytes, then.memtable_bytes].map(|bytes| bytes >> 20);
    eprintln!("budget {memory_mib} MiB; {shards} shards, {ids} entries of {VALUE} bytes each; {records} records each");
    eprintln!("beside state {baseline} MiB, at most {peak} MiB: state took {grown_mib} MiB");
    eprintln!("of it caches {caches} MiB, RocksDB {blocks} MiB, with memtables of {memtables} MiB; {figures:?}");
    assert!(figures.block_misses > ids, "state did not fit into memory: {figures:?}");
    assert!(grown <= memory, "state took {grown}, its budget is {memory}");
}

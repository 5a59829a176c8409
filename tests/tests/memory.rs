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
use millstream_shard::ownership::{self, Claimant};
use millstream_shard::runtime::{Environment, Limits, Shard};
use millstream_shard::state::{Forget, StateStore, StoreError};
use millstream_shard::topics::Topics;
use millstream_stages::action::ActionStage;
use millstream_stages::unify::Unify;
use millstream_stages::{Stage, State as _, StateValue};
use millstream_stores::embedded::SystemClock;
use millstream_stores::embedded::log::{EmbeddedLog, LogOptions};
use millstream_stores::rocks::{Resources, RocksState};
use millstream_tests::conformance::{Numbers, eventually};
use millstream_tests::counting::Counting;
use prost::Message as _;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};

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

/// Bytes of this process in memory.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
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
    fn clear(&self) -> Result<(), StoreError> {
        Ok(())
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

#[test]
fn the_cache_counts_what_its_entries_take() {
    if !is_child("the_cache_counts_what_its_entries_take") {
        return;
    }
    let id = |number: u64| number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes().repeat(2);
    let group = |number: u64| (number % 4096) as u16;
    let node = proto::Node { user: user_id(), ..proto::Node::default() }.encode_to_vec();
    let nodes = grown::<ActionValue>(300_000, |number| {
        let identifier = Identifier { r#type: "anonymous_id".into(), value: format!("{number:036}") };
        (StateKey::of_identifier("acme", Kind::Node, &identifier), node.clone())
    });
    let seen = proto::Seen { time_ms: 1_790_000_000_000 }.encode_to_vec();
    let ids = grown::<UnifyValue>(300_000, |number| {
        (StateKey::in_period(group(number), Kind::Seen, 500_000, "acme", &id(number)), seen.clone())
    });
    let user_key = |number: u64| StateKey::new(group(number), "acme", Kind::User, &id(number));
    let small = grown::<ActionValue>(60_000, |number| (user_key(number), user(number, 2, 3)));
    let large = grown::<ActionValue>(4_000, |number| (user_key(number), user(number, 10, 80)));
    let kinds = [
        ("message id", nodes_of(&ids), 300_000, seen.len()),
        ("node", nodes_of(&nodes), 300_000, node.len()),
        ("user, 2 identifiers, 3 attributes", nodes_of(&small), 60_000, user(1, 2, 3).len()),
        ("user, 10 identifiers, 80 attributes", nodes_of(&large), 4_000, user(1, 10, 80).len()),
    ];
    for (kind, (counted, grown), entries, stored) in kinds {
        let (counted, grown) = (counted / entries, grown / entries);
        eprintln!("{kind}: {stored} bytes stored, {counted} counted, {grown} in memory");
        assert!(grown * 100 <= counted * 110, "{kind}: takes {grown}, counts {counted}");
        assert!(counted * 100 <= grown * 150, "{kind}: takes {grown}, counts {counted}");
    }
}

fn nodes_of<V>((counted, grown, _): &(u64, u64, Cache<V>)) -> (u64, u64) {
    (*counted, *grown)
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

/// Bytes of a value.
const VALUE: i64 = 300;
/// Records per frame, and frames that are sent before they are processed.
const FRAME: u64 = 500;
const FRAMES: u64 = 8;

/// One shard at work, and what the process took most.
struct Load {
    shard: Shard<Counting>,
    number: u32,
    producer: Box<dyn Producer>,
    topic: Arc<str>,
    random: Numbers,
    peak: Arc<AtomicU64>,
}

impl Load {
    /// Processes about so many records of ids below `ids`.
    fn run(&mut self, records: u64, ids: u64) {
        for _ in 0..records.div_ceil(FRAME * FRAMES) {
            for _ in 0..FRAMES {
                let mut frame = FrameWriter::new(Content::Envelope);
                for _ in 0..FRAME {
                    let message_id = format!("{:012}", self.random.below(ids));
                    frame.push(&Envelope { message_id, received_ms: VALUE, ..Envelope::default() });
                }
                let (topic, payload) = (&self.topic, frame.finish());
                let message = Outgoing { topic, partition: self.number, key: &[], payload: &payload, headers: &[] };
                self.producer.send(message, Box::new(|fate| assert!(fate.is_ok())));
            }
            let mut left = (FRAME * FRAMES) as usize;
            while left > 0 {
                let report = eventually("a batch", || self.shard.run_batch().unwrap());
                left = left.saturating_sub(report.records);
                self.peak.fetch_max(resident(), Ordering::Relaxed);
            }
        }
    }
}

#[test]
fn a_process_whose_state_is_ten_times_its_caches_stays_within_its_budget() {
    if !is_child("a_process_whose_state_is_ten_times_its_caches_stays_within_its_budget") {
        return;
    }
    let (memory, shards) = (setting("MEMORY_MIB", 32) << 20, setting("MEMORY_SHARDS", 2));
    let state = config::State { memory: Size(memory), ..config::State::default() };
    let parts = Parts::of(&state, shards as usize).unwrap();
    let (pool, resources) = (parts.pool(true), Resources::with(&parts.rocks));
    // An entry takes its value, its key and about 250 bytes.
    let ids = parts.caches as u64 * 10 / shards / 600;
    let folder = tempfile::tempdir().unwrap();
    let log = EmbeddedLog::open(&folder.path().join("log"), LogOptions::default(), Arc::new(SystemClock)).unwrap();
    let (log, topics): (Arc<dyn Log>, _) = (Arc::new(log), Topics::new("test", shards as u32, 1));
    log.create_topics(&topics.specs()).unwrap();
    let peak = Arc::new(AtomicU64::new(0));
    let loads = (0..shards as u32).map(|number| {
        ownership::begin(&*log, &topics, "unify", number).unwrap();
        let store = RocksState::open(&folder.path().join(format!("unify-{number}")), &resources).unwrap();
        let environment = Environment {
            log: log.clone(),
            clock: Arc::new(SystemClock),
            executor: Arc::new(Threads),
            topics: topics.clone(),
            claimant: Claimant::new("test", "1"),
        };
        let limits = Limits { pool: Some(pool.clone()), ..Limits::default() };
        let shard = Shard::open(Counting, number, environment, limits, Arc::new(store)).unwrap();
        let (producer, topic) = (log.producer().unwrap(), topics.ingress.clone());
        Load { shard, number, producer, topic, random: Numbers::new(u64::from(number)), peak: peak.clone() }
    });
    let loads: Vec<Load> = loads.collect();
    let rounds = setting("MEMORY_ROUNDS", 2);
    let warm = Barrier::new(shards as usize);
    let baseline = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for mut load in loads {
            let (warm, baseline, peak) = (&warm, &baseline, peak.clone());
            scope.spawn(move || {
                // The same traffic with hardly any state: what the log and the batches take is the baseline.
                load.run(ids, 100);
                if warm.wait().is_leader() {
                    baseline.store(resident(), Ordering::Relaxed);
                    peak.store(0, Ordering::Relaxed);
                }
                warm.wait();
                load.run(ids * rounds, ids);
                load.shard.close().unwrap();
            });
        }
    });
    let (baseline, peak, figures) = (baseline.into_inner(), peak.load(Ordering::Relaxed), resources.figures());
    let files = resources.stores().iter().map(|store| store.file_bytes).sum::<u64>();
    let grown = peak.saturating_sub(baseline);
    eprintln!(
        "budget {} MiB, {shards} shards, {ids} entries each, {} records each: baseline {} MiB, at most {} MiB, grown by {} MiB; {files} bytes of files, {figures:?}",
        memory >> 20,
        ids * rounds,
        baseline >> 20,
        peak >> 20,
        grown >> 20
    );
    assert!(figures.block_misses > ids, "state did not fit into memory: {figures:?}");
    assert!(grown <= memory, "grown by {grown}, budget {memory}");
}

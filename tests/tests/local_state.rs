//! A shard whose local disk goes wrong: damaged files, no space, slowness. Nothing is lost or doubled, and it goes on by itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use millstream::runtime::system::Threads;
use millstream_model::key::StateKey;
use millstream_model::proto::StatePosition;
use millstream_plan::status::Role;
use millstream_plan::view::Duty;
use millstream_shard::follower::Wanted;
use millstream_shard::log::{Log, TopicPartition};
use millstream_shard::member::Order;
use millstream_shard::ownership::{self, Claimant};
use millstream_shard::runtime::{Environment, Limits, Report, Shard};
use millstream_shard::seat::{Parts, Seat};
use millstream_shard::state::{Fill, Forget, Snapshot, StateStore, StoreError};
use millstream_shard::topics::Topics;
use millstream_shard::{Clock, Executor, Job, ShardError};
use millstream_stores::embedded::SystemClock;
use millstream_stores::embedded::log::{EmbeddedLog, LogOptions};
use millstream_stores::rocks::{Bounds, Resources, RocksState};
use millstream_tests::conformance::eventually;
use millstream_tests::counting::{self, Counting};
use millstream_tests::small_disk::SmallDisk;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

struct Fixture {
    folder: tempfile::TempDir,
    log: Arc<EmbeddedLog>,
    topics: Topics,
    resources: Resources,
    limits: Limits,
    state: PathBuf,
    clock: Arc<Ahead>,
}

/// A clock that is set forward, milliseconds.
#[derive(Default)]
struct Ahead(AtomicU64);

impl Clock for Ahead {
    fn now_ms(&self) -> u64 {
        SystemClock.now_ms() + self.0.load(Ordering::Relaxed)
    }
}

impl Fixture {
    fn new() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let log = Arc::new(EmbeddedLog::open(&path, LogOptions::default(), Arc::new(SystemClock)).unwrap());
        let topics = Topics::new("test", 1, 1);
        log.create_topics(&topics.specs()).unwrap();
        ownership::begin(&*log, &topics, "unify", 0, 0).unwrap();
        let resources = Resources::with(&Bounds { memtable_bytes: 1 << 20, ..Bounds::new(4 << 20) });
        let limits = Limits { cache_bytes: 4 << 20, dirty_bytes: 500_000, ..Limits::default() };
        let state = folder.path().join("state");
        Fixture { folder, log, topics, resources, limits, state, clock: Arc::default() }
    }

    fn store(&self) -> Result<Arc<RocksState>, StoreError> {
        RocksState::open(&self.state, &self.resources).map(Arc::new)
    }

    fn open(&self) -> Result<Shard<Counting>, ShardError> {
        let store = self.store()?;
        self.open_on(store)
    }

    fn open_on(&self, store: Arc<dyn StateStore>) -> Result<Shard<Counting>, ShardError> {
        self.open_with(store, Arc::new(Threads))
    }

    fn open_with(
        &self,
        store: Arc<dyn StateStore>,
        executor: Arc<dyn Executor>,
    ) -> Result<Shard<Counting>, ShardError> {
        Shard::open(Counting, 0, self.environment("test", executor), self.limits.clone(), store)
    }

    fn environment(&self, worker: &str, executor: Arc<dyn Executor>) -> Environment {
        Environment {
            log: self.log.clone(),
            clock: self.clock.clone(),
            executor,
            topics: self.topics.clone(),
            claimant: Claimant::new(worker, "1"),
            checkpoints: None,
        }
    }

    /// One record for each of these ids, whose state is this large.
    fn send(&self, ids: std::ops::Range<u32>, filler: usize) {
        counting::send(&*self.log, &self.topics, ids, filler);
    }

    fn count(&self, shard: &mut Shard<Counting>, id: u32) -> u64 {
        counting::count(shard, id)
    }
}

/// The next batch with input.
fn batch(shard: &mut Shard<Counting>) -> Report {
    eventually("a batch", || shard.run_batch().unwrap())
}

fn tables(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "sst")).collect()
}

/// Changes a byte in the middle of the largest table, where the entries are.
fn harm(folder: &Path) {
    let table = tables(folder).into_iter().max_by_key(|table| std::fs::metadata(table).unwrap().len()).unwrap();
    let mut bytes = std::fs::read(&table).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    std::fs::write(&table, bytes).unwrap();
}

/// A shard with some state, stored and closed.
fn stored(fixture: &Fixture) {
    let mut shard = fixture.open().unwrap();
    for _ in 0..3 {
        fixture.send(0..100, 1_000);
        batch(&mut shard);
    }
    shard.close().unwrap();
}

#[test]
fn damage_found_by_a_read_leads_to_the_whole_changelog() {
    let fixture = Fixture::new();
    stored(&fixture);
    harm(&fixture.state);
    fixture.send(0..100, 1_000);
    // Which block is harmed decides whether the sums, which are read at once, or an entry meets it.
    let error = match fixture.open() {
        Err(error) => error,
        Ok(mut shard) => eventually("the damage is met", || shard.run_batch().err()),
    };
    assert!(matches!(&error, ShardError::Reopen(message) if message.contains("damaged")), "{error}");
    assert_eq!(fixture.resources.figures().cleared, 0, "nothing is removed before the changelog was looked at");
    let mut shard = fixture.open().unwrap();
    assert_eq!(fixture.resources.figures().cleared, 1);
    assert_eq!(batch(&mut shard).records, 100);
    assert!((0..100).all(|id| fixture.count(&mut shard, id) == 4));
    shard.close().unwrap();
    drop(shard);
    assert_eq!(fixture.count(&mut fixture.open().unwrap(), 7), 4, "the new files are whole");
    assert_eq!(fixture.resources.figures().cleared, 1);
}

#[test]
fn a_batch_ends_when_what_it_changes_is_as_large_as_the_share_of_memory() {
    let mut fixture = Fixture::new();
    fixture.limits.cache_bytes = 1 << 20;
    let records_of_a_batch = |fixture: &Fixture, filler: usize| {
        let mut shard = fixture.open().unwrap();
        fixture.send(0..100, filler);
        batch(&mut shard);
        for _ in 0..20 {
            fixture.send(0..100, filler);
        }
        let records = batch(&mut shard).records;
        shard.close().unwrap();
        records
    };
    assert_eq!(records_of_a_batch(&fixture, 10), 2_000, "all that has come");
    let records = records_of_a_batch(&fixture, 50_000);
    assert!(records < 2_000, "{records}");
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// I6: the local state may be all that is left of what the log has lost.
#[test]
fn local_state_that_the_log_does_not_reach_is_kept_and_stops_the_shard() {
    let mut fixture = Fixture::new();
    stored(&fixture);
    let former = fixture.folder.path().join("former");
    copy(&fixture.folder.path().join("log"), &former);
    stored(&fixture);
    let log = EmbeddedLog::open(&former, LogOptions::default(), Arc::new(SystemClock)).unwrap();
    let whole = std::mem::replace(&mut fixture.log, Arc::new(log));
    for _ in 0..2 {
        let error = fixture.open().err().unwrap();
        assert!(matches!(&error, ShardError::Stopped(why) if why.contains("has lost")), "{error}");
    }
    fixture.log = whole;
    let mut shard = fixture.open().unwrap();
    assert_eq!((fixture.count(&mut shard, 7), fixture.resources.figures().cleared), (6, 0), "nothing was removed");
}

#[test]
fn damage_without_the_beginning_of_the_changelog_stops_the_shard_and_removes_nothing() {
    let fixture = Fixture::new();
    stored(&fixture);
    std::fs::write(tables(&fixture.state)[0].as_path(), b"").unwrap();
    let changelog = TopicPartition::new(fixture.topics.changelog("unify"), 0);
    fixture.log.trim(&changelog, 2).unwrap();
    let before = std::fs::read_dir(&fixture.state).unwrap().count();
    for _ in 0..2 {
        let opened = fixture.open().map(drop);
        let Err(ShardError::Stopped(message)) = opened else { panic!("{opened:?}") };
        assert!(message.contains("starts at 2") && message.contains("damaged"), "{message}");
    }
    assert!(std::fs::read_dir(&fixture.state).unwrap().count() >= before);
}

/// Runs batches on a full disk until state cannot be stored; gives what the batches say.
fn until_trouble(fixture: &Fixture, shard: &mut Shard<Counting>, rounds: &mut u64) -> String {
    eventually("trouble", || {
        fixture.send(0..100, 2_000);
        *rounds += 1;
        batch(shard).trouble
    })
}

#[test]
fn a_full_disk_is_told_stops_no_batch_and_is_over_by_itself() {
    let mut fixture = Fixture::new();
    let Some(disk) = SmallDisk::mount(&fixture.folder.path().join("disk")).unwrap() else { return };
    fixture.state = disk.folder().join("state");
    // A large bound: batches must go on all the time.
    // Two batches of different keys make a flush due, one of the same keys again does not: batches must go on all the time.
    fixture.limits = Limits { dirty_bytes: 300_000, cache_bytes: 64 << 20, ..Limits::default() };
    let mut shard = fixture.open().unwrap();
    fixture.send(100..200, 2_000);
    batch(&mut shard);
    let mut rounds = 0;
    disk.fill().unwrap();
    let trouble = until_trouble(&fixture, &mut shard, &mut rounds);
    assert!(trouble.contains("no space left") && trouble.contains("free the disk"), "{trouble}");
    fixture.send(0..100, 2_000);
    assert!(batch(&mut shard).trouble.is_some());
    rounds += 1;
    assert!(shard.trouble().is_some());
    disk.free().unwrap();
    eventually("the trouble is over", || shard.run_batch().map(|_| shard.trouble().is_none().then_some(())).unwrap());
    shard.close().unwrap();
    drop(shard);
    let position = fixture.store().unwrap().position().unwrap().unwrap();
    assert_eq!(position.batch_number, rounds + 1, "everything is stored");
    let mut shard = fixture.open().unwrap();
    assert!((0..100).all(|id| fixture.count(&mut shard, id) == rounds));
}

#[test]
fn beyond_the_bound_a_full_disk_closes_the_shard_until_there_is_space() {
    let mut fixture = Fixture::new();
    let Some(disk) = SmallDisk::mount(&fixture.folder.path().join("disk")).unwrap() else { return };
    fixture.state = disk.folder().join("state");
    fixture.limits.dirty_bytes = 100_000;
    let mut shard = fixture.open().unwrap();
    disk.fill().unwrap();
    let mut sent = 0;
    let error = eventually("the bound is met", || {
        fixture.send(sent * 100..sent * 100 + 100, 2_000);
        sent += 1;
        shard.run_batch().err()
    });
    assert!(matches!(&error, ShardError::Reopen(why) if why.contains("no space left")), "{error}");
    assert!(sent >= 3, "{sent} batches");
    drop(shard);
    let error = fixture.open().map(drop).unwrap_err();
    assert!(matches!(&error, ShardError::Reopen(why) if why.contains("no space left")), "{error}");
    disk.free().unwrap();
    let mut shard = eventually("it opens", || fixture.open().ok());
    eventually("all is processed", || {
        shard.run_batch().unwrap();
        (fixture.count(&mut shard, sent * 100 - 1) > 0).then_some(())
    });
    assert!((0..sent * 100).all(|id| fixture.count(&mut shard, id) == 1));
}

/// A store whose writes do not become safe before somebody waits for them.
struct Slow {
    inner: Arc<RocksState>,
    waited_for: Mutex<bool>,
    changed: Condvar,
}

impl Slow {
    fn new(inner: Arc<RocksState>) -> Arc<Slow> {
        Arc::new(Slow { inner, waited_for: Mutex::new(false), changed: Condvar::new() })
    }

    fn is_waited_for(&self) -> bool {
        *self.waited_for.lock().unwrap()
    }

    fn go_on(&self) {
        *self.waited_for.lock().unwrap() = true;
        self.changed.notify_all();
    }
}

/// Threads; who waits for one lets the slow store go on.
struct Waiting(Arc<Slow>);

impl Executor for Waiting {
    fn run(&self, work: Box<dyn FnOnce() + Send>) -> Box<dyn Job> {
        Box::new(WaitingJob(self.0.clone(), Threads.run(work)))
    }
}

struct WaitingJob(Arc<Slow>, Box<dyn Job>);

impl Job for WaitingJob {
    fn wait(self: Box<Self>) {
        self.0.go_on();
        self.1.wait();
    }
}

impl StateStore for Slow {
    fn position(&self) -> Result<Option<StatePosition>, StoreError> {
        self.inner.position()
    }
    fn multi_get(&self, keys: &[&StateKey]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        self.inner.multi_get(keys)
    }
    fn write(
        &self,
        forget: Option<&Forget>,
        entries: &mut dyn Iterator<Item = (&StateKey, Option<&[u8]>)>,
        position: &StatePosition,
    ) -> Result<(), StoreError> {
        self.inner.write(forget, entries, position)
    }
    fn sync(&self) -> Result<(), StoreError> {
        let waited_for = self.waited_for.lock().unwrap();
        drop(self.changed.wait_while(waited_for, |waited_for| !*waited_for).unwrap());
        self.inner.sync()
    }
    fn scan(&self, prefix: &[u8], each: &mut dyn FnMut(&StateKey, &[u8])) -> Result<(), StoreError> {
        self.inner.scan(prefix, each)
    }
    fn keys(&self, prefix: &[u8], after: Option<&StateKey>, most: usize) -> Result<Vec<StateKey>, StoreError> {
        self.inner.keys(prefix, after, most)
    }
    fn clear(&self) -> Result<(), StoreError> {
        self.inner.clear()
    }
    fn snapshot(&self) -> Result<Option<Box<dyn Snapshot>>, StoreError> {
        self.inner.snapshot()
    }
    fn restore(&self, fill: Fill<'_>) -> Result<(), StoreError> {
        self.inner.restore(fill)
    }
}

#[test]
fn a_slow_disk_stops_no_batch_until_too_much_waits_for_it() {
    let fixture = Fixture::new();
    let slow = Slow::new(fixture.store().unwrap());
    let mut shard = fixture.open_with(slow.clone(), Arc::new(Waiting(slow.clone()))).unwrap();
    let (mut sent, bound) = (0, fixture.limits.dirty_bytes);
    let mut run = |shard: &mut Shard<Counting>| {
        fixture.send(sent * 100..sent * 100 + 100, 2_000);
        sent += 1;
        batch(shard).dirty_bytes
    };
    // A flush is due, and begins with the next batch.
    while run(&mut shard) <= bound {}
    assert!(run(&mut shard) < bound);
    // It is under way and does not return. That is said when it takes longer than a disk may without a word, and stops nothing yet.
    let said = eventually("a condition", || {
        fixture.clock.0.fetch_add(20_000, Ordering::Relaxed);
        fixture.send(1_000_000..1_000_001, 10);
        batch(&mut shard).trouble
    });
    assert!(said.contains("the local disk is slow") && said.contains("batches wait for it"), "{said}");
    assert_eq!(shard.trouble(), Some(said.as_str()));
    // What is dirty beside it may grow up to the bound.
    while run(&mut shard) <= bound {}
    assert!(!slow.is_waited_for());
    let left = run(&mut shard);
    assert!(slow.is_waited_for(), "a batch beyond the bound waits for the disk");
    assert!(left <= bound, "what waited is being written now: {left}");
    assert_eq!(shard.trouble(), None, "the disk has taken it");
    shard.close().unwrap();
    assert!(sent > 5 && (0..sent * 100).all(|id| fixture.count(&mut shard, id) == 1));
}

#[test]
fn a_standby_whose_disk_hangs_says_so_until_it_goes_on() {
    let fixture = Fixture::new();
    let mut owner = fixture.open().unwrap();
    let store = RocksState::open(&fixture.folder.path().join("standby"), &fixture.resources).unwrap();
    let slow = Slow::new(Arc::new(store));
    let opened: Arc<dyn StateStore> = slow.clone();
    let mut seat = Seat::new(Parts {
        name: "unify",
        shard: 0,
        environment: fixture.environment("standby", Arc::new(Waiting(slow.clone()))),
        limits: fixture.limits.clone(),
        make: Box::new(|| Counting),
        open_store: Box::new(move || Ok(opened.clone())),
        moves: Arc::new(|| Wanted::All),
    });
    let prepare = Order { duty: Duty::Standby { prepare: true, soon: false }, ..Order::default() };
    seat.step(&prepare).unwrap();
    seat.step(&prepare).unwrap();
    assert!(seat.status().prepared.is_some());
    // What comes is to be stored when it is due, and is not.
    let mut after = |seconds: u64| {
        fixture.clock.0.fetch_add(seconds * 1_000, Ordering::Relaxed);
        fixture.send(0..10, 100);
        batch(&mut owner);
        seat.step(&prepare).unwrap();
        (seat.status().role, seat.trouble().is_some(), seat.hangs())
    };
    assert_eq!(after(60), (Role::Standby, false, false), "it begins");
    assert_eq!(after(60), (Role::Standby, true, false), "slow");
    assert_eq!(after(61), (Role::Standby, true, true), "and no slower disk is waited for");
    slow.go_on();
    eventually("it is stored", || (after(0) == (Role::Standby, false, false)).then_some(()));
}

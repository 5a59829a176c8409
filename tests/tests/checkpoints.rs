//! Checkpoints on real parts: RocksDB, a changelog that is trimmed, an object store that is damaged or away. A shard comes back from each of them, or says why not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use millstream::runtime::system::Threads;
use millstream_shard::ShardError;
use millstream_shard::checkpoint::layout::{Manifest, Pointer, ShardName};
use millstream_shard::checkpoint::repository::Repository;
use millstream_shard::checkpoint::{Checkpoints, Policy, Taken};
use millstream_shard::log::{Log, TopicPartition};
use millstream_shard::objects::{Listed, Object, ObjectError, ObjectStore, Put, When};
use millstream_shard::ownership::{self, Claimant};
use millstream_shard::runtime::{Environment, Limits, Shard};
use millstream_shard::topics::Topics;
use millstream_stores::embedded::SystemClock;
use millstream_stores::embedded::log::{EmbeddedLog, LogOptions};
use millstream_stores::embedded::objects::FolderObjects;
use millstream_stores::kafka::{KafkaConfig, KafkaLog};
use millstream_stores::rocks::{Bounds, Resources, RocksState};
use millstream_stores::s3::S3Objects;
use millstream_tests::conformance::{eventually, unique};
use millstream_tests::counting::{self, Counting};
use millstream_tests::load::{Sending, check_against_ingress, generated, settings};
use millstream_tests::pipeline::{Pipeline, Settings, until};
use millstream_tests::servers::{Kafka, Minio, Mongo};
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A folder that can be away.
struct Objects {
    folder: FolderObjects,
    is_away: AtomicBool,
}

impl Objects {
    fn there(&self) -> Result<&FolderObjects, ObjectError> {
        match self.is_away.load(Ordering::SeqCst) {
            true => Err(ObjectError::Unavailable("no route to it".into())),
            false => Ok(&self.folder),
        }
    }
}

impl ObjectStore for Objects {
    fn get(&self, name: &str) -> Result<Option<Object>, ObjectError> {
        self.there()?.get(name)
    }
    fn read(&self, name: &str, at: u64, size: usize) -> Result<Option<Vec<u8>>, ObjectError> {
        self.there()?.read(name, at, size)
    }
    fn put(&self, name: &str, content: &[u8], when: &When) -> Result<Put, ObjectError> {
        self.there()?.put(name, content, when)
    }
    fn upload(&self, name: &str, size: u64, content: &mut dyn Read) -> Result<(), ObjectError> {
        self.there()?.upload(name, size, content)
    }
    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<Listed>, ObjectError> {
        self.there()?.list(prefix, after)
    }
    fn delete(&self, names: &[String]) -> Result<(), ObjectError> {
        self.there()?.delete(names)
    }
}

struct Fixture {
    folder: tempfile::TempDir,
    log: Arc<EmbeddedLog>,
    topics: Topics,
    resources: Resources,
    limits: Limits,
    objects: Arc<Objects>,
    checkpoints: Arc<Checkpoints>,
    policy: Policy,
    /// Of the local disk.
    disks: u32,
}

/// One is taken as soon as there is something new.
const POLICY: Policy = Policy { interval_ms: 1, min_pause_ms: 1, retained: 2, concurrent: 1, lanes: 2 };

impl Fixture {
    fn new() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let log = Arc::new(EmbeddedLog::open(&path, LogOptions::default(), Arc::new(SystemClock)).unwrap());
        let topics = Topics::new("test", 1, 1);
        log.create_topics(&topics.specs()).unwrap();
        ownership::begin(&*log, &topics, "unify", 0, 0).unwrap();
        let resources = Resources::with(&Bounds { memtable_bytes: 1 << 20, ..Bounds::new(4 << 20) });
        // Each batch is flushed.
        let limits = Limits { cache_bytes: 4 << 20, dirty_bytes: 1, ..Limits::default() };
        let objects = FolderObjects::open(&folder.path().join("objects")).unwrap();
        let objects = Arc::new(Objects { folder: objects, is_away: AtomicBool::new(false) });
        let checkpoints = Arc::new(Checkpoints::new(objects.clone(), topics.clone(), POLICY));
        Fixture { folder, log, topics, resources, limits, objects, checkpoints, policy: POLICY, disks: 0 }
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join(format!("state-{}", self.disks))
    }

    /// Another process, on an empty disk.
    fn moves(&mut self) {
        self.disks += 1;
        self.begins_anew();
    }

    /// Another process.
    fn begins_anew(&mut self) {
        self.checkpoints = Arc::new(Checkpoints::new(self.objects.clone(), self.topics.clone(), self.policy.clone()));
    }

    fn open(&self) -> Result<Shard<Counting>, ShardError> {
        let store = Arc::new(RocksState::open(&self.state(), &self.resources)?);
        let environment = Environment {
            log: self.log.clone(),
            clock: Arc::new(SystemClock),
            executor: Arc::new(Threads),
            topics: self.topics.clone(),
            claimant: Claimant::new("test", format!("{}", self.disks)),
            checkpoints: Some(self.checkpoints.clone()),
        };
        Shard::open(Counting, 0, environment, self.limits.clone(), store)
    }

    /// One record for each of these ids, whose state is this large.
    fn send(&self, ids: std::ops::Range<u32>, filler: usize) {
        counting::send(&*self.log, &self.topics, ids, filler);
    }

    /// A batch of 100 ids, and a checkpoint with it.
    fn checkpoint(&self, shard: &mut Shard<Counting>) -> Taken {
        self.send(0..100, 1_000);
        eventually("a batch", || shard.run_batch().unwrap());
        let batch = shard.position().batch_number;
        eventually("a checkpoint", || {
            // A flush begins with the batch after it.
            self.send(0..1, 1_000);
            shard.run_batch().unwrap();
            shard.take_taken().filter(|taken| taken.batch >= batch)
        })
    }

    fn count(&self, shard: &mut Shard<Counting>, id: u32) -> u64 {
        counting::count(shard, id)
    }

    fn changelog(&self) -> TopicPartition {
        TopicPartition::new(self.topics.changelog("unify"), 0)
    }

    fn pointer(&self) -> Pointer {
        self.checkpoints.of("unify", 0).repository.pointer().unwrap().unwrap()
    }

    fn manifest(&self, of: usize) -> Arc<Manifest> {
        self.checkpoints.of("unify", 0).repository.manifest(&self.pointer().checkpoints[of].manifest).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let listed = self.objects.list("test/g1/unify/0/files/", None).unwrap();
        listed.into_iter().map(|listed| listed.name.strip_prefix("test/g1/unify/0/").unwrap().to_owned()).collect()
    }

    /// Changes a byte of an object.
    fn harm(&self, object: &str) {
        let full = format!("test/g1/unify/0/{object}");
        let mut content = self.objects.get(&full).unwrap().unwrap().content;
        let middle = content.len() / 2;
        content[middle] ^= 1;
        self.objects.put(&full, &content, &When::Always).unwrap();
    }
}

/// A shard with three checkpoints, of which two are kept, closed.
fn with_checkpoints(fixture: &Fixture) {
    let mut shard = fixture.open().unwrap();
    for _ in 0..3 {
        fixture.checkpoint(&mut shard);
    }
    shard.close().unwrap();
}

#[test]
fn a_shard_on_an_empty_disk_goes_on_from_a_checkpoint_when_its_changelog_was_trimmed() {
    let mut fixture = Fixture::new();
    with_checkpoints(&fixture);
    assert_eq!(fixture.pointer().checkpoints.len(), 2);
    let (start, _) = fixture.log.bounds(&fixture.changelog()).unwrap();
    assert!(start > 0, "it was trimmed");
    assert_eq!(start, fixture.pointer().checkpoints[1].changelog_offset, "up to the oldest that is kept");
    fixture.moves();
    let mut shard = fixture.open().unwrap();
    assert_eq!(fixture.count(&mut shard, 7), 3);
    let taken = fixture.checkpoint(&mut shard);
    assert!(taken.uploaded_bytes < taken.bytes, "what did not change is shared, also by another process: {taken:?}");
    eventually("it has read to the end", || fixture.pointer().leases.is_empty().then_some(()));
    assert_eq!(fixture.count(&mut shard, 7), 4);
}

#[test]
fn what_no_checkpoint_refers_to_is_deleted() {
    let fixture = Fixture::new();
    let mut shard = fixture.open().unwrap();
    let first = {
        fixture.checkpoint(&mut shard);
        fixture.manifest(0)
    };
    for _ in 0..6 {
        fixture.checkpoint(&mut shard);
    }
    // The last deletion is that of the checkpoint that was told last.
    let mut referred: Vec<String> = (0..2)
        .flat_map(|of| fixture.manifest(of).files.iter().map(|file| file.object.clone()).collect::<Vec<_>>())
        .collect();
    referred.sort_unstable();
    referred.dedup();
    assert_eq!(fixture.names(), referred);
    assert!(first.files.iter().any(|file| !referred.contains(&file.object)));
}

#[test]
fn what_an_owner_has_left_behind_is_deleted_by_the_next_one() {
    let mut fixture = Fixture::new();
    with_checkpoints(&fixture);
    let leftover = "files/0000000000000001-000000ff-00000000000000000000000000000000";
    let of_later = "files/00000000000000ff-00000001-00000000000000000000000000000000";
    for name in [leftover, of_later, "files/somebody-elses"] {
        fixture.objects.put(&format!("test/g1/unify/0/{name}"), b"x", &When::Always).unwrap();
    }
    fixture.begins_anew();
    let mut shard = fixture.open().unwrap();
    fixture.checkpoint(&mut shard);
    let names = fixture.names();
    assert!(!names.iter().any(|name| name == leftover), "{names:?}");
    assert!(names.iter().any(|name| name == of_later) && names.iter().any(|name| name == "files/somebody-elses"));
}

#[test]
fn a_damaged_checkpoint_is_passed_over_for_an_older_one() {
    let mut fixture = Fixture::new();
    with_checkpoints(&fixture);
    let older: Vec<String> = fixture.manifest(1).files.iter().map(|file| file.object.clone()).collect();
    let newest = fixture.manifest(0);
    let own = newest.files.iter().find(|file| !older.contains(&file.object)).unwrap();
    fixture.harm(&own.object);
    fixture.moves();
    let mut shard = fixture.open().unwrap();
    assert_eq!(fixture.count(&mut shard, 7), 3, "the changelog leads on from the older one");
}

#[test]
fn a_shard_whose_checkpoints_are_all_damaged_stops_unless_the_changelog_is_whole() {
    for is_trimmed in [true, false] {
        let mut fixture = Fixture::new();
        if !is_trimmed {
            fixture.policy.retained = 100;
            fixture.begins_anew();
        }
        let mut shard = fixture.open().unwrap();
        fixture.checkpoint(&mut shard);
        if is_trimmed {
            (0..2).for_each(|_| drop(fixture.checkpoint(&mut shard)));
        }
        shard.close().unwrap();
        drop(shard);
        fixture.names().iter().for_each(|name| fixture.harm(name));
        fixture.moves();
        match fixture.open() {
            Err(ShardError::Stopped(why)) if is_trimmed => {
                assert!(why.contains("its content has changed") && why.contains("test/g1/unify/0/"), "{why}");
            }
            Ok(mut shard) if !is_trimmed => assert_eq!(fixture.count(&mut shard, 7), 1),
            other => panic!("{is_trimmed}: {:?}", other.map(drop)),
        }
    }
}

#[test]
fn damaged_local_state_is_replaced_by_a_checkpoint_when_the_changelog_was_trimmed() {
    let mut fixture = Fixture::new();
    with_checkpoints(&fixture);
    std::fs::write(fixture.state().join("CURRENT"), b"nonsense").unwrap();
    fixture.begins_anew();
    let mut shard = fixture.open().unwrap();
    assert_eq!(fixture.count(&mut shard, 7), 3);
}

#[test]
fn a_changelog_that_was_made_again_does_not_begin_a_shard_anew() {
    let mut fixture = Fixture::new();
    with_checkpoints(&fixture);
    fixture.log.delete_topic(&fixture.changelog().topic).unwrap();
    fixture.log.create_topics(&fixture.topics.specs()).unwrap();
    fixture.moves();
    let opened = fixture.open().map(drop);
    let Err(ShardError::Stopped(why)) = opened else { panic!("{opened:?}") };
    assert!(why.contains("follow another changelog of this name"), "{why}");
}

#[test]
fn a_changelog_that_ends_before_a_checkpoint_has_lost_something() {
    let mut fixture = Fixture::new();
    with_checkpoints(&fixture);
    let repository = fixture.checkpoints.of("unify", 0).repository.clone();
    let mut pointer = fixture.pointer();
    pointer.checkpoints[0].changelog_offset = 1_000_000;
    fixture
        .objects
        .put(&repository.full("pointer.json"), &serde_json::to_vec(&pointer).unwrap(), &When::Always)
        .unwrap();
    // The local state is enough, where it is.
    drop(fixture.open().unwrap());
    fixture.moves();
    let opened = fixture.open().map(drop);
    let Err(ShardError::Stopped(why)) = opened else { panic!("{opened:?}") };
    assert!(why.contains("the log has lost what was acknowledged"), "{why}");
}

#[test]
fn damage_that_came_with_a_checkpoint_is_answered_by_an_older_one() {
    let mut fixture = Fixture::new();
    with_checkpoints(&fixture);
    fixture.moves();
    let newest = fixture.pointer().checkpoints[0].manifest.clone();
    drop(fixture.open().unwrap());
    std::fs::write(fixture.state().join("CURRENT"), b"nonsense").unwrap();
    // Of the same process: it remembers what its state was made of.
    let mut shard = fixture.open().unwrap();
    assert_eq!(fixture.count(&mut shard, 7), 3);
    assert!(fixture.checkpoints.of("unify", 0).refused().contains(&newest));
}

#[test]
fn without_the_object_store_batches_go_on_and_a_trimmed_shard_waits_for_it() {
    let mut fixture = Fixture::new();
    let mut shard = fixture.open().unwrap();
    for _ in 0..3 {
        fixture.checkpoint(&mut shard);
    }
    fixture.objects.is_away.store(true, Ordering::SeqCst);
    eventually("a condition", || {
        fixture.send(0..1, 10);
        shard.run_batch().unwrap();
        shard.trouble().filter(|why| why.contains("no checkpoint could be taken") && why.contains("no route")).map(drop)
    });
    fixture.send(0..100, 10);
    eventually("a batch", || shard.run_batch().unwrap());
    shard.close().unwrap();
    drop(shard);
    // Its local state is enough.
    drop(fixture.open().unwrap());
    fixture.moves();
    let opened = fixture.open().map(drop);
    assert!(matches!(&opened, Err(ShardError::Away(why)) if why.contains("no route")), "{opened:?}");
    fixture.objects.is_away.store(false, Ordering::SeqCst);
    let mut shard = fixture.open().unwrap();
    assert_eq!(fixture.count(&mut shard, 7), 4);
    fixture.checkpoint(&mut shard);
    assert_eq!(shard.trouble(), None);
}

/// A pipeline of roles on real servers, whose workers take checkpoints all the time.
fn settings_on_servers(what: &str, load: &millstream::generate::Load) -> Settings {
    let mut settings = settings(&unique(what), load);
    settings.shards = 2;
    settings.kafka = Some(Kafka::shared().unwrap().bootstrap().to_owned());
    settings.mongodb = Some(Mongo::shared().unwrap().uri().to_owned());
    settings.more = Minio::shared().unwrap().section("t/u")
        + "checkpoints: {interval: 1s, min_pause: 100ms, retained: 2, files_at_once: 4}\n";
    settings
}

/// What a command printed, and its exit code.
fn checkpoint(pipeline: &Pipeline, arguments: &[&str]) -> (Option<i32>, String) {
    pipeline.command("checkpoint", arguments).unwrap()
}

#[test]
fn workers_that_lose_their_disks_come_back_from_a_bucket_when_kafka_has_no_more_than_what_came_since() {
    let load = generated(31, 1, 60).unwrap();
    let settings = settings_on_servers("disks", &load);
    let mut pipeline = Pipeline::roles(&settings).unwrap();
    let (code, said) = checkpoint(&pipeline, &["list", "--stage", "nonsense"]);
    assert!(code == Some(2) && said.contains("no stage with checkpoints"), "{said}");
    let mut sending = Sending::paced_and_held(&pipeline.gateway().unwrap().url(), &load, Duration::from_secs(8));
    sending.wait_for_share(1, 2).unwrap();
    let log = KafkaLog::new(KafkaConfig::new(Kafka::shared().unwrap().bootstrap())).unwrap();
    let topics = Topics::new(&settings.pipeline, settings.shards, 1);
    for (stage, shard) in [("unify", 0), ("unify", 1), ("action", 0), ("action", 1)] {
        let at = TopicPartition::new(topics.changelog(stage), shard);
        until("a changelog that was trimmed", || Ok((log.bounds(&at)?.0 > 0).then_some(()))).unwrap();
    }
    for process in pipeline.processes.iter_mut().filter(|process| ["unify", "action"].contains(&process.role)) {
        process.kill().unwrap();
        std::fs::remove_dir_all(process.data().join("state")).unwrap();
        process.start().unwrap();
        assert!(process.log().contains("restored a checkpoint"), "{}", process.log());
    }
    sending.finish().unwrap();
    check_against_ingress(&pipeline, &settings, load).unwrap();

    let (code, listed) = checkpoint(&pipeline, &["list", "--json"]);
    let rows: Vec<serde_json::Value> = serde_json::from_str(&listed).unwrap();
    assert_eq!((code, rows.len()), (Some(0), 8), "{listed}");
    // Those of before must stay as they are while they are looked at.
    pipeline.processes.iter_mut().for_each(|process| process.terminate().unwrap());
    let (code, verified) = checkpoint(&pipeline, &["verify", "--all"]);
    assert!(code == Some(0) && verified.contains("8 of 8 checkpoints are what they were"), "{verified}");
    let objects = S3Objects::new(Minio::shared().unwrap().config("t/u")).unwrap();
    let folder = format!("{}/g1/unify/1", settings.pipeline);
    let repository = Repository::new(
        Arc::new(S3Objects::new(Minio::shared().unwrap().config("t/u")).unwrap()),
        ShardName { pipeline: settings.pipeline, generation: 1, stage: "unify".into(), shard: 1, shards: 2 },
    );
    let newest = repository.manifest(&repository.pointer().unwrap().unwrap().checkpoints[0].manifest).unwrap();
    let table = newest.files.iter().filter(|file| file.name.ends_with(".sst")).max_by_key(|file| file.size).unwrap();
    let full = format!("{folder}/{}", table.object);
    let mut content = objects.get(&full).unwrap().unwrap().content;
    content[10] ^= 1;
    objects.put(&full, &content, &When::Always).unwrap();
    let (code, verified) = checkpoint(&pipeline, &["verify", "--stage", "unify"]);
    assert!(code == Some(1) && verified.contains("1 of 2 checkpoints are what they were"), "{verified}");
    assert!(verified.contains("its content has changed") && verified.contains(&table.object), "{verified}");
}

//! Savepoints on real parts: created while a pipeline works, verified, disposed of, and given up (I10). What can go wrong around the cut itself is for the simulation.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use millstream_shard::checkpoint::layout::ShardName;
use millstream_shard::checkpoint::repository::Repository;
use millstream_shard::objects::{ObjectStore, When};
use millstream_shard::savepoint::layout::{BEGUN, Begun, Between, Manifest};
use millstream_shard::savepoint::store::{Found, Store};
use millstream_stores::s3::S3Objects;
use millstream_tests::conformance::unique;
use millstream_tests::load::{Sending, check_against_ingress, generated, settings};
use millstream_tests::pipeline::{Pipeline, Settings};
use millstream_tests::plan;
use millstream_tests::servers::{Kafka, Minio, Mongo};
use std::sync::Arc;
use std::time::Duration;

/// A pipeline on real servers, whose workers follow a plan and take checkpoints all the time.
fn on_servers(what: &str, load: &millstream::generate::Load) -> Settings {
    let mut settings = settings(&unique(what), load);
    settings.shards = 2;
    settings.kafka = Some(Kafka::shared().unwrap().bootstrap().to_owned());
    settings.mongodb = Some(Mongo::shared().unwrap().uri().to_owned());
    settings.more = Minio::shared().unwrap().section("t/u")
        + "checkpoints: {interval: 1s, min_pause: 100ms, retained: 2, files_at_once: 4}\n"
        + plan::FOLLOWS;
    settings
}

/// What `millstream savepoint` printed, and its exit code.
fn savepoint(pipeline: &Pipeline, arguments: &[&str]) -> (Option<i32>, String) {
    pipeline.command("savepoint", arguments).unwrap()
}

fn objects() -> Arc<dyn ObjectStore> {
    Arc::new(S3Objects::new(Minio::shared().unwrap().config("t/u")).unwrap())
}

#[test]
fn savepoints_are_created_under_load_verified_damaged_given_up_and_disposed_of() {
    let load = generated(41, 1, 60).unwrap();
    let settings = on_servers("savepoints", &load);
    let mut pipeline = plan::start(&settings).unwrap();
    assert_eq!(savepoint(&pipeline, &["list"]), (Some(0), "no savepoint\n".to_owned()));
    let mut sending = Sending::paced_and_held(&pipeline.gateway().unwrap().url(), &load, Duration::from_secs(10));
    sending.wait_for_share(1, 3).unwrap();

    let (code, said) = savepoint(&pipeline, &["create"]);
    assert!(code == Some(0) && said.starts_with("savepoint 1 is complete: "), "{said}");
    // A worker of a stage dies in the middle, or just before: whoever comes after it is cut.
    let dying = pipeline.processes.iter_mut().find(|process| process.name == "action-0").unwrap();
    dying.kill().unwrap();
    let (code, said) = savepoint(&pipeline, &["create", "--json"]);
    let mut rows = serde_json::Deserializer::from_str(&said).into_iter::<serde_json::Value>();
    let row = rows.next().unwrap().unwrap();
    assert_eq!((code, &row["id"], &row["state"]), (Some(0), &2.into(), &"complete".into()), "{said}");
    let dead = pipeline.processes.iter_mut().find(|process| process.name == "action-0").unwrap();
    dead.start().unwrap();

    // Nobody of action is there to be cut.
    let paused = |signal: &str| {
        let of_action = pipeline.processes.iter().filter(|process| process.role == "action");
        of_action.for_each(|process| process.signal(signal).unwrap());
    };
    paused("STOP");
    let (code, said) = savepoint(&pipeline, &["create", "--timeout", "2s"]);
    paused("CONT");
    assert!(code == Some(2) && said.contains("of 4 shards were cut; the first that was not is action "), "{said}");
    let (_, listed) = savepoint(&pipeline, &["list", "--json"]);
    let ids = |listed: &str| {
        let rows: Vec<serde_json::Value> = serde_json::from_str(listed).unwrap();
        rows.iter().map(|row| row["id"].as_u64().unwrap()).collect::<Vec<u64>>()
    };
    assert_eq!(ids(&listed), [1, 2], "nothing is left of what was given up: {listed}");
    let (code, said) = savepoint(&pipeline, &["create"]);
    assert!(code == Some(0) && said.starts_with("savepoint 4 is complete: "), "an id is not used again: {said}");

    sending.finish().unwrap();
    check_against_ingress(&pipeline, &settings, load).unwrap();
    leases_are_given_back(&settings);

    let store = Store::new(objects(), &settings.pipeline);
    let manifest = store.manifest(4).unwrap().unwrap();
    let states: Vec<_> = manifest.states.iter().map(|state| (state.stage.as_str(), state.shard)).collect();
    assert_eq!(states, [("unify", 0), ("unify", 1), ("action", 0), ("action", 1)]);
    let channels: Vec<_> = manifest.channels.iter().map(|channel| (channel.of, channel.partition)).collect();
    let of = |between| [(between, 0), (between, 1)];
    assert_eq!(channels, [of(Between::Actions), of(Between::Exchange), of(Between::Mutations)].concat());

    // Without any worker.
    pipeline.processes.iter_mut().for_each(|process| process.terminate().unwrap());
    for id in ["1", "2", "4"] {
        let (code, said) = savepoint(&pipeline, &["verify", id]);
        assert!(code == Some(0) && said.starts_with(&format!("savepoint {id} is what it was: ")), "{said}");
    }
    let begun = store.begun(4).unwrap().unwrap();
    a_record_that_goes_or_is_damaged_ends_it(&pipeline, &store, &begun, &manifest);
    let file = &manifest.states.iter().find(|state| state.stage == "action").unwrap().files[0];
    let full = store.full(4, &file.object);
    let mut content = objects().get(&full).unwrap().unwrap().content;
    content[3] ^= 1;
    objects().put(&full, &content, &When::Always).unwrap();
    let (code, said) = savepoint(&pipeline, &["verify"]);
    assert!(code == Some(1) && said.contains("savepoint 4 is damaged") && said.contains(&file.object), "{said}");
    let (code, said) = savepoint(&pipeline, &["verify", "3"]);
    assert!(code == Some(2) && said.contains("there is no savepoint 3"), "{said}");

    assert_eq!(savepoint(&pipeline, &["dispose", "4"]), (Some(0), "savepoint 4 is gone\n".to_owned()));
    assert_eq!(store.names(4).unwrap().len(), 0);
    assert_eq!(savepoint(&pipeline, &["dispose", "2", "--offline"]).0, Some(0));
    assert_eq!(savepoint(&pipeline, &["dispose", "2"]).0, Some(2), "it is gone");
    let (_, listed) = savepoint(&pipeline, &["list", "--json"]);
    assert_eq!(ids(&listed), [1]);
    assert_eq!(savepoint(&pipeline, &["verify"]).0, Some(0));
}

/// Whoever disposes of one takes its record away first.
fn a_record_that_goes_or_is_damaged_ends_it(pipeline: &Pipeline, store: &Store, begun: &Begun, manifest: &Manifest) {
    let (objects, name) = (objects(), store.full(4, BEGUN));
    let record = objects.get(&name).unwrap().unwrap().content;
    objects.delete(std::slice::from_ref(&name)).unwrap();
    assert!(!store.complete(begun, manifest).unwrap(), "late");
    assert_eq!(store.find(4).unwrap(), Some(Found::Remains));
    let other = Begun { by: "another".to_owned(), deadline_ms: u64::MAX, ..begun.clone() };
    assert!(store.begin(&other).unwrap() && !store.begin(begun).unwrap() && !store.complete(begun, manifest).unwrap());
    objects.put(&name, b"{", &When::Always).unwrap();
    let (code, said) = savepoint(pipeline, &["list"]);
    assert!(code == Some(1) && said.contains("damaged"), "{said}");
    objects.put(&name, &record, &When::Always).unwrap();
    // One that nobody has completed.
    let unfinished = Begun { savepoint: 9, deadline_ms: u64::MAX, ..begun.clone() };
    assert!(store.begin(&unfinished).unwrap());
    let (code, said) = savepoint(pipeline, &["dispose", "9"]);
    assert!(code == Some(2) && said.contains("may be being created"), "{said}");
    assert_eq!(savepoint(pipeline, &["dispose", "9", "--force"]).0, Some(0));
}

fn leases_are_given_back(settings: &Settings) {
    for (stage, shard) in ["unify", "action"].into_iter().flat_map(|stage| [(stage, 0), (stage, 1)]) {
        let pipeline = settings.pipeline.clone();
        let of = ShardName { pipeline, generation: 1, stage: stage.to_owned(), shard, shards: 2 };
        let pointer = Repository::new(objects(), of).pointer().unwrap().unwrap();
        let holders: Vec<_> = pointer.leases.iter().filter(|lease| lease.holder.starts_with("savepoint/")).collect();
        assert!(holders.is_empty(), "{holders:?}");
    }
}

#[test]
fn a_savepoint_is_refused_where_nobody_would_be_cut() {
    let load = generated(42, 1, 3).unwrap();
    let mut settings = on_servers("deaf", &load);
    settings.more = Minio::shared().unwrap().section("t/u");
    let pipeline = Pipeline::roles(&settings).unwrap();
    let (code, said) = savepoint(&pipeline, &["create"]);
    assert!(code == Some(2) && said.contains("no worker of unify reports what it does"), "{said}");
    assert_eq!(savepoint(&pipeline, &["list"]).1, "no savepoint\n");
}

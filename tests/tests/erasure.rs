//! A tenant is erased from a pipeline at work, on a real Kafka and a real document store, while a worker that has its users dies: nothing of it is left, and nobody else notices.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use millstream::cli::Admin;
use millstream::generate::Load;
use millstream_tests::conformance::unique;
use millstream_tests::load::{Sending, check_against_ingress, generated, settings};
use millstream_tests::pipeline::{Pipeline, Settings, binary, until};
use millstream_tests::plan::{FOLLOWS, recovered, start};
use millstream_tests::servers::{Kafka, Mongo};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::{Command, Output, Stdio};

const SHARDS: u32 = 3;

fn tenant(pipeline: &Pipeline, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary().unwrap());
    command.arg("tenant").args(arguments).arg("--config").arg(pipeline.gateway().unwrap().config());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The tenants of a load, as `kubectl apply -f` would take them.
fn file(load: &Load, settings: &Settings) -> String {
    let keys: BTreeMap<&str, &str> =
        load.streams.iter().map(|stream| (stream.tenant.as_str(), stream.key.as_str())).collect();
    let tenants = keys.keys().map(|name| {
        json!({
            "apiVersion": "ingestion.millstream.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": name},
            "spec": {"pipelineRef": {"name": settings.pipeline}, "apiKeys": [{"name": "keys", "key": name}]},
        })
    });
    let labels = json!({"ingestion.millstream.dev/api-keys": "true"});
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys", "labels": labels}, "stringData": keys});
    let documents = tenants.chain([secret]).map(|document| serde_yaml::to_string(&document).unwrap());
    documents.collect::<Vec<_>>().join("---\n")
}

/// Documents of a tenant that are not tombstones.
fn documents(pipeline: &Pipeline, tenant: &str) -> usize {
    let reaction = pipeline.processes.iter().find(|process| process.role == "reaction").unwrap();
    let count = |collection| {
        let admin = Admin::new(&reaction.admin_url()).unwrap();
        let query = [("tenant", tenant), ("collection", collection)];
        let text = admin.get("/v1/documents", &query).unwrap().text().unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|line| line["deleted"] != true).inspect(|line| assert!(line["error"].is_null(), "{line}")).count()
    };
    count("users") + count("devices")
}

fn text(output: &Output) -> String {
    format!(
        "{:?}\n{}{}",
        output.status.code(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn a_tenant_that_is_erased_leaves_nothing_although_a_worker_dies_and_others_keep_all() {
    let mut load = generated(41, 2, 60).unwrap();
    let mut settings = Settings { tenants: Vec::new(), ..settings(&unique("erasure"), &load) };
    settings.shards = SHARDS;
    settings.kafka = Some(Kafka::shared().unwrap().bootstrap().to_owned());
    settings.mongodb = Some(Mongo::shared().unwrap().uri().to_owned());
    settings.more = FOLLOWS.to_owned();
    let mut pipeline = start(&settings).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tenants.yaml");
    std::fs::write(&path, file(&load, &settings)).unwrap();
    let apply = ["apply", "-f", path.to_str().unwrap()];
    let applied = tenant(&pipeline, &apply).output().unwrap();
    assert!(applied.status.success(), "{}", text(&applied));
    Sending::start(&pipeline, &load).finish().unwrap();
    check_against_ingress(&pipeline, &settings, load.clone()).unwrap();
    let name = load.streams[0].tenant.clone();
    let others: Vec<String> = load.truth.tenants.keys().filter(|other| **other != name).cloned().collect();
    let before = others.iter().map(|other| documents(&pipeline, other)).sum::<usize>();
    assert!(documents(&pipeline, &name) > 0 && before > 0);

    let erasing = tenant(&pipeline, &["delete", &name, "--erase"]).spawn().unwrap();
    let index = pipeline.processes.iter().position(|process| process.name == "action-0").unwrap();
    pipeline.processes[index].kill().unwrap();
    recovered(&pipeline, SHARDS, &["action-0"]).unwrap();
    pipeline.processes[index].start().unwrap();
    let erased = erasing.wait_with_output().unwrap();
    assert!(erased.status.success(), "{}", text(&erased));
    assert!(String::from_utf8_lossy(&erased.stdout).ends_with(&format!("{name}: erased\n")), "{}", text(&erased));
    assert_eq!(documents(&pipeline, &name), 0);
    let key = load.streams.iter().find(|stream| stream.tenant == name).unwrap().key.clone();
    let request = reqwest::blocking::Client::new().post(format!("{}/v1/batch", pipeline.gateway().unwrap().url()));
    let answer = request.bearer_auth(key).header("content-type", "application/json").body("{\"batch\": []}").send();
    assert_eq!(answer.unwrap().status().as_u16(), 401);
    let applied = tenant(&pipeline, &apply).output().unwrap();
    assert_eq!(applied.status.code(), Some(2), "it comes back when clocks cannot be in the way: {}", text(&applied));

    // Users of the others are as the truth says.
    load.truth.tenants.remove(&name);
    check_against_ingress(&pipeline, &settings, load).unwrap();
    assert_eq!(others.iter().map(|other| documents(&pipeline, other)).sum::<usize>(), before);
    // In the state, too: what is asked for is not known, in whichever shard.
    let listed = tenant(&pipeline, &["list"]).output().unwrap();
    assert!(!text(&listed).contains(&name), "{}", text(&listed));
    until("an end in order", || {
        pipeline.processes.iter_mut().try_for_each(|process| process.terminate())?;
        Ok(Some(()))
    })
    .unwrap();
}

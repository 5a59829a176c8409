//! Records that wait for too long.

use millstream_tests::scene::{Pods, Scene};
use millstream_tests::servers::{Kafka, Mongo};
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use serde_json::{Value, json};

/// A topic deletes what is older.
fn keep(topic: &str, milliseconds: u64) {
    let admin: AdminClient<_> =
        rdkafka::ClientConfig::new().set("bootstrap.servers", Kafka::shared().unwrap().bootstrap()).create().unwrap();
    let milliseconds = milliseconds.to_string();
    let change = AlterConfig::new(ResourceSpecifier::Topic(topic)).set("retention.ms", &milliseconds);
    let changed = futures::executor::block_on(admin.alter_configs([&change], &AdminOptions::new())).unwrap();
    assert!(changed.iter().all(Result::is_ok), "{changed:?}");
}

/// Of the operator's port: the owner of the only shard of a stage, messages that it has not read, and how old they are at most.
fn unread(scene: &Scene, stage: &str) -> Value {
    let shards = scene.admin(&format!("/v1/pipelines/{}/orders", scene.namespace));
    let shards: Value = serde_json::from_str(&shards).unwrap();
    let rows = shards["shards"].as_array().cloned().unwrap_or_default();
    let row = rows.into_iter().find(|row| row["stage"] == stage).unwrap_or_default();
    json!([row["owner"], row["lag"], row["unreadMs"]])
}

#[test]
fn records_that_a_stage_does_not_process_come_near_what_their_topic_keeps_and_are_told_of() {
    let scene = Scene::new("retention");
    scene.secret(Mongo::shared().unwrap().uri());
    let metadata = json!({"name": "keys", "labels": {"ingestion.millstream.dev/api-keys": "true"}});
    scene.apply(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"one": "a-key"}}));
    let spec = json!({"pipelineRef": {"name": "orders"}, "apiKeys": [{"name": "keys", "key": "one"}]});
    scene.apply(&json!({"apiVersion": "ingestion.millstream.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": "acme"}, "spec": spec}));
    let one = json!({"replicas": 1});
    scene.pipeline(
        &json!({"shards": 1, "standbys": 0, "stages": {"gateway": one, "unify": one, "action": one, "reaction": one}}),
    );
    scene.condition("RetentionAtRisk Unknown NotMeasured");
    // Before it is written down which topics it makes, there are none.
    scene.until("StatefulSets", || {
        let there = scene.kubectl(&["get", "statefulsets", "-o", "name"], "");
        ((there.lines().count() == 4).then_some(()), there)
    });
    let mut pods = Pods::default();
    for stage in ["gateway", "unify", "reaction"] {
        pods.start(&scene, stage, 0);
    }
    let is_read = |stage: &str| {
        scene.until("a shard that has read everything", || {
            let row = unread(&scene, stage);
            let is_read = row[0].is_string() && row[1] == json!(0) && row[2] == json!(0);
            (is_read.then_some(()), row.to_string())
        });
    };
    is_read("unify");
    // Before the worker asks for it first. It is long enough that nothing is deleted before the end.
    keep(&format!("{}.orders.g1.actions", scene.namespace), 80_000);
    pods.start(&scene, "action", 0);
    is_read("action");
    scene.all_ready();
    scene.condition("RetentionAtRisk False AsExpected");
    let freshness = |expected: &str| {
        scene.until(expected, || {
            let said = scene.get("mip", "orders")["status"]["freshness"].clone();
            ((said == expected).then_some(()), said.to_string())
        });
    };
    freshness("<1s");
    // In order, as with `suspend`: its last word tells what it knew.
    pods.end("orders-action-0");
    scene.until("a gateway that takes the record", || {
        let answer = pods.answer("orders-gateway-0", "a-key");
        (answer.as_ref().ok().filter(|code| **code == 200).map(drop), format!("{answer:?}"))
    });
    // What waits half as long as it is kept is at risk.
    let message = scene.condition("RetentionAtRisk True RetentionNear");
    let named = format!("action[0]: what it has not processed of {}.orders.g1.actions is up to 4", scene.namespace);
    assert!(message.contains(&named) && message.contains("deletes what is older than 1m"), "{message}");
    assert_eq!(unread(&scene, "action"), json!([null, null, null]));
    freshness("unknown");
    let table = scene.kubectl(&["get", "mip"], "");
    let row: Vec<&str> = table.lines().last().unwrap().split_whitespace().collect();
    assert!(row.contains(&"unknown"), "{table}");
    let metrics = scene.admin("/metrics");
    let line = format!("namespace=\"{}\",pipeline=\"orders\",condition=\"RetentionAtRisk\"}} 1", scene.namespace);
    assert!(metrics.contains(&line), "{metrics}");
    pods.start(&scene, "action", 0);
    is_read("action");
    scene.condition("RetentionAtRisk False AsExpected");
    freshness("<1s");
}

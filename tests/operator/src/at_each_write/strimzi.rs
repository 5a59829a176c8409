//! The operator dies before and after each `KafkaTopic` that it creates or deletes. On an API server of its own: what kinds there are is the same for all who share one.

use super::all::is_killed_at;
use super::writes::Writes;
use crate::strimzi::{HOME, TopicOperator, definition};
use millstream_tests::scene::{FINALIZER, Scene, specs};
use millstream_tests::servers::{ApiServer, Kafka};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::OnceLock;

fn server() -> &'static ApiServer {
    static OWN: OnceLock<ApiServer> = OnceLock::new();
    OWN.get_or_init(|| {
        let server = ApiServer::start().unwrap();
        server.kubectl().install_crds().unwrap();
        server
    })
}

#[test]
fn an_operator_that_dies_at_any_of_its_writes_about_topics_that_strimzi_makes_has_done_no_harm() {
    let kubectl = server().kubectl();
    kubectl.run(&["apply", "-f", "-"], &definition().to_string()).unwrap();
    kubectl.run(&["wait", "--for=condition=Established", "crd/kafkatopics.kafka.strimzi.io"], "").unwrap();
    kubectl.run(&["create", "namespace", HOME], "").unwrap();
    let scene = Scene::on(kubectl, "writes-strimzi", "writes-strimzi");
    scene.secret("mongodb://db:27018/");
    let mut writes = Writes::of(scene);
    let brokers = [Kafka::shared().unwrap().bootstrap()];
    let home = json!({"cluster": "main", "namespace": HOME});
    let kafka = json!({"bootstrapServers": brokers, "replication": 1, "topics": "Strimzi", "strimzi": home});
    writes.scene.pipeline(&json!({"shards": 2, "topicDeletionPolicy": "Delete", "kafka": kafka}));
    let all: BTreeSet<String> = specs("writes-strimzi").into_iter().map(|topic| topic.name).collect();
    // Each is another write.
    let named = |name: &str, body: &str| match name {
        "POST kafkatopics" => {
            let object: Value = serde_json::from_str(body).ok()?;
            Some(format!("{name} ({})", object["metadata"]["name"].as_str()?))
        }
        _ => name.starts_with("DELETE kafkatopics/").then(|| name.to_owned()),
    };
    let there = |scene: &Scene| TopicOperator(scene).topics().into_keys().collect::<BTreeSet<_>>();
    let mut died = writes.die_at_each_named(named, "all KafkaTopics", |scene| there(scene) == all);
    assert_eq!(died.len(), all.len(), "each was created by somebody, once: {died:#?}");
    assert_eq!(writes.scene.created(), all, "whoever created them, they are the pipeline's");
    writes.scene.finalizers(&[FINALIZER]);
    assert_eq!(writes.scene.names("sts"), Vec::<String>::new(), "no worker before its topics");
    writes.scene.delete();
    died.extend(writes.die_at_each_named(named, "gone", |scene| scene.names("mip").is_empty()));
    assert_eq!(there(&writes.scene), BTreeSet::new());
    assert_eq!(died.len(), 2 * all.len(), "{died:#?}");
    is_killed_at("topics that Strimzi makes", &died);
}

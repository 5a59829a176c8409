//! Topics that Strimzi's Topic Operator makes. It is played here, on a real Kafka, and `KafkaTopic` is a CRD of our own with the fields that are used.

use millstream_stores::kafka::KafkaLog;
use millstream_tests::scene::{FINALIZER, Scene, make, specs, there};
use millstream_tests::servers::Kafka;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Where the Topic Operator looks.
pub(crate) const HOME: &str = "strimzi-kafka";

pub(crate) fn definition() -> Value {
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let spec = json!({"type": "object", "properties": {
        "topicName": {"type": "string"},
        "partitions": {"type": "integer", "minimum": 1},
        "replicas": {"type": "integer", "minimum": 1},
        "config": open,
    }});
    let schema = json!({"type": "object", "properties": {"spec": spec, "status": open}});
    let version = json!({"name": "v1", "served": true, "storage": true, "subresources": {"status": {}}, "schema": {"openAPIV3Schema": schema}});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "kafkatopics.kafka.strimzi.io"},
        "spec": {
            "group": "kafka.strimzi.io",
            "names": {"kind": "KafkaTopic", "plural": "kafkatopics", "singular": "kafkatopic", "shortNames": ["kt"]},
            "scope": "Namespaced",
            "versions": [version],
        },
    })
}

/// The Topic Operator.
pub(crate) struct TopicOperator<'a>(pub(crate) &'a Scene);

impl TopicOperator<'_> {
    fn kubectl(&self, arguments: &[&str], input: &str) -> String {
        self.0.server.run(&[arguments, &["-n", HOME]].concat(), input).unwrap()
    }

    pub(crate) fn topics(&self) -> BTreeMap<String, Value> {
        let list: Value = serde_json::from_str(&self.kubectl(&["get", "kt", "-o", "json"], "")).unwrap();
        let items = list["items"].as_array().unwrap().iter();
        items.map(|topic| (topic["metadata"]["name"].as_str().unwrap().to_owned(), topic.clone())).collect()
    }

    fn says(&self, topic: &Value, status: &str, message: &str) {
        let condition = json!({"type": "Ready", "status": status, "reason": "KafkaError", "message": message});
        let generation = &topic["metadata"]["generation"];
        let patch = json!({"status": {"observedGeneration": generation, "conditions": [condition]}}).to_string();
        let name = topic["metadata"]["name"].as_str().unwrap();
        self.kubectl(&["patch", "kt", name, "--subresource=status", "--type=merge", "-p", &patch], "");
    }

    /// Makes what is not there, from what is specified and nothing else.
    fn makes(&self, topic: &Value) {
        let spec = &topic["spec"];
        let number = |field: &str| i32::try_from(spec[field].as_i64().unwrap()).unwrap();
        let (name, replicas) =
            (topic["metadata"]["name"].as_str().unwrap(), TopicReplication::Fixed(number("replicas")));
        let config = spec["config"].as_object().unwrap();
        let numbers: BTreeMap<&String, String> = config.iter().map(|(name, value)| (name, value.to_string())).collect();
        let new = config.iter().fold(NewTopic::new(name, number("partitions"), replicas), |new, (setting, value)| {
            new.set(setting, value.as_str().unwrap_or_else(|| numbers[setting].as_str()))
        });
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", Kafka::shared().unwrap().bootstrap()).create().unwrap();
        let made = futures::executor::block_on(admin.create_topics([&new], &AdminOptions::new())).unwrap();
        let is_there = |made: &Result<String, (String, _)>| {
            made.as_ref().err().is_none_or(|(_, code)| *code == rdkafka::types::RDKafkaErrorCode::TopicAlreadyExists)
        };
        assert!(made.iter().all(is_there), "{made:?}");
    }
}

#[test]
fn strimzi_makes_the_topics_and_workers_start_when_they_are_there() {
    let scene = Scene::with_secret("strimzi");
    let strimzi = TopicOperator(&scene);
    scene.server.run(&["create", "namespace", HOME], "").unwrap();
    let all: BTreeSet<String> = specs("strimzi").into_iter().map(|topic| topic.name).collect();
    let find = |suffix: &str| all.iter().find(|name| name.ends_with(suffix)).unwrap().clone();
    let (ingress, events, rejects) = (find(".ingress"), find(".events"), find(".rejects"));
    // One topic is there; of another one, which is not, somebody else made the KafkaTopic.
    make(&specs("strimzi").into_iter().filter(|topic| topic.name == events).collect::<Vec<_>>());
    let home = json!({"cluster": "main", "namespace": HOME});
    let brokers = [Kafka::shared().unwrap().bootstrap()];
    let kafka = json!({"bootstrapServers": brokers, "replication": 1, "topics": "Strimzi", "strimzi": home, "retention": {"ingress": "2d"}});
    // While it is paused, nothing is created.
    scene.pipeline(&json!({"shards": 2, "topicDeletionPolicy": "Delete", "kafka": kafka, "paused": true}));
    let said = scene.condition("Degraded True TopicsNotReady");
    assert!(said.contains("install Strimzi 0.49 or later"), "{said}");
    scene.server.run(&["apply", "-f", "-"], &definition().to_string()).unwrap();
    scene.server.run(&["wait", "--for=condition=Established", "crd/kafkatopics.kafka.strimzi.io"], "").unwrap();
    let others = json!({"apiVersion": "kafka.strimzi.io/v1", "kind": "KafkaTopic", "metadata": {"name": rejects, "labels": {"strimzi.io/cluster": "main"}}, "spec": {"partitions": 2, "replicas": 1, "config": {"retention.ms": "604800000"}}});
    strimzi.kubectl(&["apply", "-f", "-"], &others.to_string());
    scene.condition("Degraded False AsExpected");
    assert_eq!(strimzi.topics().len(), 1);

    scene.patch(&json!({"paused": false}));
    scene.until("what is waited for", || {
        let said = scene.condition("Ready False TopicsNotReady");
        let expected = "Strimzi's Topic Operator makes them from the KafkaTopics in namespace strimzi-kafka";
        (said.contains(expected).then_some(()), said)
    });
    scene.condition("Progressing True TopicsNotReady");
    scene.condition("Degraded False AsExpected");
    assert_eq!(scene.names("sts"), Vec::<String>::new());
    scene.finalizers(&[FINALIZER]);
    let absent: BTreeSet<String> = all.iter().filter(|name| **name != events).cloned().collect();
    assert_eq!(scene.created(), absent);
    let topics = strimzi.topics();
    assert_eq!(topics.keys().cloned().collect::<BTreeSet<_>>(), absent, "what is there gets none");
    assert_eq!(topics[&rejects]["spec"], others["spec"], "somebody else's is left as it is");
    assert_eq!(topics[&ingress]["spec"]["config"]["retention.ms"], 172_800_000);
    assert_eq!(topics[&ingress]["metadata"]["labels"]["strimzi.io/cluster"], "main");

    // What it says, the pipeline says.
    strimzi.says(&topics[&ingress], "False", "the brokers are away");
    let said = scene.condition("Degraded True TopicsNotReady");
    assert!(said.contains(&format!("has not made 1 topics: {ingress}: KafkaError: the brokers are away; ")), "{said}");
    for topic in topics.values() {
        strimzi.makes(topic);
        strimzi.says(topic, "True", "");
    }
    scene.until("all stages", || {
        let sets = scene.names("sts");
        ((sets.len() == 4).then_some(()), format!("{sets:?}"))
    });
    scene.condition("Ready False WorkersNotReady");
    scene.condition("Degraded False AsExpected");
    let maps = scene.kubectl(&["get", "cm", "-o", "jsonpath={.items[*].data}"], "");
    assert!(maps.contains("create_topics: false") && !maps.contains("create_topics: true"), "{maps}");

    // A pipeline that has workers does not ask any more; and what others change stays.
    let others_setting = r#"{"spec":{"config":{"retention.ms":259200000}}}"#;
    strimzi.kubectl(&["patch", "kt", &ingress, "--type=merge", "-p", others_setting], "");
    strimzi.says(&strimzi.topics()[&ingress], "False", "the brokers are away");
    scene.patch(&json!({"observability": {"logFilter": "debug"}}));
    scene.condition("Progressing True WorkersStarting");
    scene.condition("Degraded False AsExpected");
    assert_eq!(strimzi.topics()[&ingress]["spec"]["config"]["retention.ms"], 259_200_000);

    // It goes when the Topic Operator has deleted what the pipeline made.
    strimzi.kubectl(
        &[
            "patch",
            "kt",
            &ingress,
            "--type=merge",
            "-p",
            r#"{"metadata":{"finalizers":["strimzi.io/topic-operator"]}}"#,
        ],
        "",
    );
    scene.delete();
    scene.until("what it waits for", || {
        let said = scene.condition("Progressing True Deleting");
        (said.starts_with("Strimzi's Topic Operator deletes").then_some(()), said)
    });
    assert_eq!(strimzi.topics().keys().collect::<BTreeSet<_>>(), BTreeSet::from([&ingress, &rejects]));
    strimzi.kubectl(&["patch", "kt", &ingress, "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#], "");
    scene.gone();
    assert_eq!(strimzi.topics().keys().collect::<BTreeSet<_>>(), BTreeSet::from([&rejects]));
    assert_eq!(there(&specs("strimzi")), all, "topics are the Topic Operator's to delete");
    KafkaLog::new(Kafka::shared().unwrap().config())
        .unwrap()
        .delete_topics(&all.into_iter().collect::<Vec<_>>())
        .unwrap();
}

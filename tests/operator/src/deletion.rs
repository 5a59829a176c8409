//! A pipeline that is deleted, and its topics.

use millstream_shard::log::TopicSpec;
use millstream_stores::kafka::KafkaLog;
use millstream_stores::kafka::survey::Survey;
use millstream_tests::scene::{FINALIZER, Scene, make, specs, start, there};
use millstream_tests::servers::Kafka;
use serde_json::{Value, json};
use std::collections::BTreeSet;

#[test]
fn topics_that_a_pipeline_made_go_with_it_when_its_workers_have_ended() {
    let mut scene = Scene::with_secret("deleted");
    let all = specs("deleted");
    let (before, ours): (Vec<TopicSpec>, Vec<TopicSpec>) =
        all.iter().cloned().partition(|topic| topic.name == "deleted.orders.rejects");
    let others = [TopicSpec { name: "deleted.orders.ingress2".to_owned(), ..before[0].clone() }];
    make(&before);
    make(&others);
    let ours: BTreeSet<String> = ours.into_iter().map(|topic| topic.name).collect();
    scene.pipeline(&json!({"shards": 2, "topicDeletionPolicy": "Delete"}));
    scene.finalizers(&[FINALIZER]);
    assert_eq!(scene.created(), ours);
    scene.condition("Ready False WorkersNotReady");
    scene.topics(&all.iter().map(|topic| topic.name.clone()).collect());
    // A worker that does not end at once.
    let uid = scene.get("sts", "orders-unify")["metadata"]["uid"].clone();
    let labels = json!({"app.kubernetes.io/instance": "orders"});
    let pod = |name: &str, owners: Value| {
        scene.apply(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": labels, "ownerReferences": owners},
            "spec": {"serviceAccountName": "orders", "automountServiceAccountToken": false, "containers": [{"name": "worker", "image": "i"}]},
        }));
    };
    pod(
        "orders-unify-0",
        json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "orders-unify", "uid": uid}]),
    );
    pod("somebody-elses", json!([]));
    scene.delete();
    let said = scene.until("only the Pod left", || {
        let said = scene.condition("Progressing True Deleting");
        (said.starts_with("1 workers end, before their topics go: orders-unify-0; ").then(|| said.clone()), said)
    });
    assert!(said.contains("set spec.topicDeletionPolicy to Retain"), "{said}");
    assert_eq!(scene.names("sts"), Vec::<String>::new());
    assert_eq!(there(&all).len(), all.len(), "nothing goes before its workers");
    // Another operator goes on.
    scene.operator.signal("KILL").unwrap();
    (scene.operator, scene.admin) = start(scene.server, &scene.namespace);
    scene.kubectl(&["delete", "pod", "orders-unify-0", "--grace-period=0", "--force"], "");
    scene.gone();
    scene.topics(&BTreeSet::from(["deleted.orders.rejects".to_owned()]));
    assert_eq!(there(&others).len(), 1, "its name only begins like ours");
    let notes = scene.kubectl(
        &["get", "events.events.k8s.io", "-o", "jsonpath={range .items[?(@.reason==\"TopicsDeleted\")]}{.note}{end}"],
        "",
    );
    assert!(
        notes.contains("deleted.orders.g1.changelog.action")
            && notes.ends_with(
                "these stayed, because the pipeline did not make them when it began: deleted.orders.rejects"
            ),
        "{notes}"
    );
}

#[test]
fn topics_of_the_same_names_in_another_kafka_cluster_are_others() {
    let scene = Scene::with_secret("moved");
    scene.pipeline(&json!({"shards": 2, "topicDeletionPolicy": "Delete"}));
    let all = scene.created();
    scene.topics(&all);
    let elsewhere = Kafka::start().unwrap();
    scene.patch(&json!({"kafka": {"bootstrapServers": [elsewhere.bootstrap()]}}));
    let survey = Survey::open(elsewhere.config()).unwrap();
    scene.until("topics in the other cluster", || {
        let found = all.iter().filter(|name| survey.layout(name).unwrap().is_some()).count();
        ((found == all.len()).then_some(()), format!("{found} of {}", all.len()))
    });
    scene.delete();
    scene.gone();
    scene.topics(&all);
    assert!(all.iter().all(|name| survey.layout(name).unwrap().is_some()));
    let here = survey.cluster().unwrap().unwrap();
    let notes = scene.kubectl(
        &["get", "events.events.k8s.io", "-o", "jsonpath={range .items[?(@.reason==\"TopicsDeleted\")]}{.note}{end}"],
        "",
    );
    assert!(notes.contains(&format!("these brokers are of the cluster {here}")), "{notes}");
    assert!(notes.contains("no topics were deleted") && notes.contains("moved.orders.ingress"), "{notes}");
}

#[test]
fn what_stands_in_the_way_of_a_deletion_is_said_and_retain_lets_go() {
    let scene = Scene::with_secret("held");
    let spec = json!({"shards": 2, "topicDeletionPolicy": "Delete"});
    scene.pipeline(&spec);
    let all = scene.created();
    scene.topics(&all);
    scene.kubectl(
        &[
            "patch",
            "mip",
            "orders",
            "--type=json",
            "-p",
            r#"[{"op":"add","path":"/metadata/finalizers/-","value":"example.com/mine"}]"#,
        ],
        "",
    );
    // It comes and goes with the policy; others' stay.
    for (more, expected) in [
        (json!({"topicDeletionPolicy": "Retain"}), &["example.com/mine"][..]),
        (json!({"topicDeletionPolicy": "Delete", "paused": true}), &["example.com/mine", FINALIZER]),
        (json!({"kafka": {"topics": "Existing"}, "paused": false}), &["example.com/mine"]),
        (json!({"kafka": {"topics": "Managed"}}), &["example.com/mine", FINALIZER]),
    ] {
        scene.patch(&more);
        scene.finalizers(expected);
    }
    // They are others' since they were `Existing`: it made none of them.
    scene.until("nothing made", || {
        let made = scene.created();
        (made.is_empty().then_some(()), format!("{made:?}"))
    });
    scene.kubectl(&["patch", "mip", "orders", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#], "");
    scene.delete();
    scene.gone();
    scene.topics(&all);
    let log = KafkaLog::new(Kafka::shared().unwrap().config()).unwrap();
    log.delete_topics(&all.iter().cloned().collect::<Vec<_>>()).unwrap();
    scene.pipeline(&spec);
    assert_eq!(scene.created(), all);
    scene.topics(&all);
    let bootstrap = Kafka::shared().unwrap().bootstrap();
    scene.patch(&json!({"kafka": {"bootstrapServers": ["127.0.0.1:1"]}}));
    scene.delete();
    let said = scene.condition("Degraded True LogUnavailable");
    assert!(
        said.starts_with("its topics cannot be deleted: ")
            && said.contains("127.0.0.1:1")
            && said.contains("set spec.topicDeletionPolicy to Retain"),
        "{said}"
    );
    let sasl = json!({"username": "u", "password": {"name": "kafka", "key": "password"}});
    scene.patch(&json!({"kafka": {"bootstrapServers": [bootstrap], "sasl": sasl}}));
    assert!(scene.condition("Degraded True SecretMissing").contains("Secret kafka: is not there"));
    let said = scene.condition("Progressing True Deleting");
    assert!(said.starts_with("its topics cannot be deleted; to let the pipeline go at once"), "{said}");
    scene.patch(&json!({"topicDeletionPolicy": "Retain"}));
    scene.gone();
    scene.topics(&all);
}

#[test]
fn a_namespace_that_is_deleted_takes_its_pipeline_at_once_and_topics_stay() {
    let scene = Scene::run_from("terminating", "default");
    scene.secret("mongodb://db:27018/");
    scene.pipeline(&json!({"shards": 2, "topicDeletionPolicy": "Delete"}));
    let all = scene.created();
    scene.topics(&all);
    scene.finalizers(&[FINALIZER]);
    scene.server.run(&["delete", "namespace", "terminating", "--wait=false"], "").unwrap();
    // What the controller of namespaces would do.
    scene.delete();
    scene.gone();
    scene.topics(&all);
    let notes = scene.until("an Event", || {
        let path = "jsonpath={range .items[?(@.reason==\"TopicsRetained\")]}{.regarding.kind} {.related.namespace}: {.note}{end}";
        let notes = scene.server.run(&["get", "events.events.k8s.io", "-n", "default", "-o", path], "").unwrap();
        ((!notes.is_empty()).then(|| notes.clone()), notes)
    });
    assert!(
        notes.starts_with("Pod terminating: namespace terminating is being deleted")
            && notes.contains("terminating.orders.ingress"),
        "{notes}"
    );
}

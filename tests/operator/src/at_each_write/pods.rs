//! Pods that the operator deletes: what Kubernetes would do with them afterwards, the tests do. It dies before and after each of these writes; and one that comes late, when another object has the name, deletes nothing.

use super::all::is_killed_at;
use super::roll::Roll;
use super::writes::Writes;
use millstream_tests::api_proxy::Fate;
use millstream_tests::scene::{Pods, Scene};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::BTreeSet;

const POD: &str = "orders-action-0";
const CLAIM: &str = "data-orders-action-0";

/// Of an object that may not be there.
fn found(scene: &Scene, kind: &str, name: &str) -> Option<Value> {
    let text = scene.kubectl(&["get", kind, name, "--ignore-not-found", "-o", "json"], "");
    (!text.is_empty()).then(|| serde_json::from_str(&text).unwrap())
}

fn uid(scene: &Scene, kind: &str, name: &str) -> Option<String> {
    found(scene, kind, name).map(|it| it["metadata"]["uid"].as_str().unwrap().to_owned())
}

fn pod(node: Option<&str>, revision: &str) -> Value {
    let labels = json!({"app.kubernetes.io/instance": "orders", "app.kubernetes.io/component": "action", "controller-revision-hash": revision});
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": POD, "labels": labels},
        "spec": {
            "nodeName": node, "serviceAccountName": "orders", "automountServiceAccountToken": false,
            "containers": [{"name": "worker", "image": "i"}],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": CLAIM}}],
        },
    })
}

fn claim() -> Value {
    let resources = json!({"requests": {"storage": "1Gi"}});
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": CLAIM},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": resources},
    })
}

/// A Pod of this template, on this node, and its claim, by the administrator.
fn create(scene: &Scene, node: Option<&str>, revision: &str) {
    for object in [claim(), pod(node, revision)] {
        scene.kubectl(&["create", "-f", "-"], &object.to_string());
    }
}

/// As whoever protects claims that are used: one that is being deleted goes when no Pod uses it.
fn unprotect(scene: &Scene) {
    let patch = r#"{"metadata":{"finalizers":null}}"#;
    scene.kubectl(&["patch", "pvc", CLAIM, "--type=merge", "-p", patch], "");
}

fn lost(namespace: &str) -> Writes {
    let mut writes = Writes::new(namespace);
    writes.start();
    let storage = json!({"persistentVolumeClaim": {"size": "1Gi", "onLostNode": "Recreate"}});
    writes.scene.pipeline(&json!({"shards": 1, "stages": {"action": {"replicas": 1, "storage": storage}}}));
    writes.scene.condition("Ready False WorkersNotReady");
    writes.scene.operator.kill().unwrap();
    create(&writes.scene, Some("lost"), "a");
    assert!(found(&writes.scene, "pvc", CLAIM).unwrap()["metadata"]["finalizers"].is_array(), "it is protected");
    // Its kubelet is not there to end it.
    writes.scene.kubectl(&["delete", "pod", POD, "--grace-period=1", "--wait=false"], "");
    writes
}

#[test]
fn an_operator_that_dies_while_it_recreates_a_pod_whose_node_is_lost_has_done_no_harm() {
    let mut writes = lost("writes-lost");
    let (pod, claim) = (uid(&writes.scene, "pod", POD).unwrap(), uid(&writes.scene, "pvc", CLAIM).unwrap());
    let named = |name: &str, _: &str| {
        let is_it = name == format!("DELETE persistentvolumeclaims/{CLAIM}") || name == format!("DELETE pods/{POD}");
        is_it.then(|| name.to_owned())
    };
    let is_recreated = |scene: &Scene| {
        // In this order of looks: a Pod that has gone once stays so.
        let has_gone = found(scene, "pod", POD).is_none();
        let left = found(scene, "pvc", CLAIM).unwrap();
        assert_eq!(left["metadata"]["uid"], claim);
        let is_going = left["metadata"]["deletionTimestamp"].is_string();
        assert!(!has_gone || is_going, "the next Pod would find the volume of the lost node");
        has_gone
    };
    let died = writes.die_at_each_named(named, "the Pod gone", is_recreated);
    is_killed_at("a Pod whose node is lost", &died);
    assert_ne!(uid(&writes.scene, "pod", POD).as_ref(), Some(&pod));
    // Both are made again, elsewhere, and stay.
    unprotect(&writes.scene);
    create(&writes.scene, Some("other"), "a");
    let now = |scene: &Scene| (uid(scene, "pod", POD), uid(scene, "pvc", CLAIM));
    let made = now(&writes.scene);
    let seen = writes.proxy.go_on(|_, _| Fate::Done);
    drop(seen);
    writes.start();
    writes.scene.patch(&json!({"observability": {"logFilter": "debug"}}));
    writes.scene.condition("Degraded False AsExpected");
    assert_eq!(now(&writes.scene), made);
    let deleted: Vec<String> =
        writes.proxy.go_on(|_, _| Fate::Done).into_iter().filter(|name| name.starts_with("DELETE p")).collect();
    assert_eq!(deleted, Vec::<String>::new());
}

#[test]
fn what_is_deleted_late_of_a_lost_node_is_not_what_has_its_name_by_now() {
    let mut writes = lost("late-lost");
    let server = writes.scene.server;
    let kubectl = move |arguments: &[&str], input: &str| {
        server.run(&[arguments, &["-n", "late-lost"]].concat(), input).unwrap();
    };
    // Just before each of its writes arrives, what it is about goes, and the next one comes.
    let left = BTreeSet::from(["persistentvolumeclaims", "pods"].map(str::to_owned));
    let left = std::sync::Arc::new(std::sync::Mutex::new(left));
    let judged = std::sync::Arc::clone(&left);
    writes.proxy.go_on(move |name, _| {
        let Some(kind) = name.strip_prefix("DELETE ").and_then(|name| name.split('/').next()) else {
            return Fate::Done;
        };
        if !judged.lock().unwrap().remove(kind) {
            return Fate::Done;
        }
        if kind == "pods" {
            kubectl(&["delete", "pod", POD, "--force", "--grace-period=0"], "");
            kubectl(&["create", "-f", "-"], &pod(Some("other"), "a").to_string());
        } else {
            kubectl(&["delete", "pvc", CLAIM, "--wait=false"], "");
            kubectl(&["patch", "pvc", CLAIM, "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#], "");
            kubectl(&["create", "-f", "-"], &claim().to_string());
        }
        Fate::Done
    });
    let before = (uid(&writes.scene, "pod", POD), uid(&writes.scene, "pvc", CLAIM));
    writes.start();
    writes.scene.until("another Pod, of whose name the former one was to go", || {
        let now = uid(&writes.scene, "pod", POD);
        ((now.is_some() && now != before.0).then_some(()), format!("{now:?}, left: {:?}", left.lock().unwrap()))
    });
    // The operator has had its answer when it says that all is well.
    writes.scene.condition("Degraded False AsExpected");
    let pod = found(&writes.scene, "pod", POD).unwrap();
    assert_eq!(pod["spec"]["nodeName"], "other");
    assert!(pod["metadata"]["deletionTimestamp"].is_null(), "{pod}");
    assert_ne!(uid(&writes.scene, "pvc", CLAIM), before.1);
    assert!(left.lock().unwrap().is_empty());
}

#[test]
fn an_operator_that_dies_while_it_deletes_a_pod_that_kubernetes_does_not_replace_has_done_no_harm() {
    let mut writes = Writes::new("writes-stuck");
    writes.start();
    let stages = |action: Value| json!({"shards": 1, "stages": {"action": action}});
    writes.scene.pipeline(&stages(json!({"replicas": 1})));
    writes.scene.condition("Ready False WorkersNotReady");
    // No worker runs: nobody holds anything.
    let pods = &RefCell::new(Pods::default());
    for stage in ["gateway", "unify", "reaction", "action"] {
        Roll { scene: &writes.scene, pods, stage }.pretend();
    }
    let former = Roll { scene: &writes.scene, pods, stage: "action" }.newest();
    create(&writes.scene, None, &former);
    let stuck = uid(&writes.scene, "pod", POD);
    writes.scene.operator.kill().unwrap();
    writes.scene.pipeline(&stages(json!({"replicas": 1, "config": {"batch": {"max_time": "20ms"}}})));
    let has_gone = |scene: &Scene| {
        let stage = Roll { scene, pods, stage: "action" };
        stage.stays_at(&former);
        let is_there = uid(scene, "pod", POD).is_some();
        // Never before Kubernetes was told to replace it, and has looked.
        assert!(is_there || stage.partition() == 0);
        !is_there
    };
    let named = |name: &str, _: &str| (name == format!("DELETE pods/{POD}")).then(|| name.to_owned());
    let died = writes.die_at_each_named(named, "the Pod gone", has_gone);
    is_killed_at("a Pod that Kubernetes does not replace", &died);
    // The next one has the newest template, and is left alone.
    let newest = Roll { scene: &writes.scene, pods, stage: "action" }.newest();
    assert_ne!(newest, former);
    writes.scene.kubectl(&["create", "-f", "-"], &pod(None, &newest).to_string());
    let next = uid(&writes.scene, "pod", POD);
    assert_ne!(next, stuck);
    writes.proxy.go_on(|_, _| Fate::Done);
    writes.start();
    writes.scene.until("a roll that is over", || {
        let stage = Roll { scene: &writes.scene, pods, stage: "action" };
        stage.stays_at(&newest);
        (stage.is_at_rest().then_some(()), stage.partition().to_string())
    });
    assert_eq!(uid(&writes.scene, "pod", POD), next);
}

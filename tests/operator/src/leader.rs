//! The Pod of the operator that leads is labelled, and asked by the Service that selects by this label.

use millstream_operator::leader::{LABEL, LEADS, service};
use millstream_tests::api_proxy::{ApiProxy, Fate};
use millstream_tests::pipeline;
use millstream_tests::scene::{Scene, start_from};
use millstream_tests::servers::Server;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// A Pod that an operator is told is its own.
fn pod(scene: &Scene, name: &str, labels: &Value) {
    scene.apply(&json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "operators"}}));
    scene.apply(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels},
        "spec": {"serviceAccountName": "operators", "automountServiceAccountToken": false, "containers": [{"name": "operator", "image": "i"}]},
    }));
}

/// The operator in a Pod.
fn operator(scene: &Scene, kubeconfig: &Path, pod: &str) -> Server {
    start_from(kubeconfig, &scene.namespace, &scene.namespace, &["--name", pod]).0
}

/// Waits until exactly these Pods have the label.
fn labelled(scene: &Scene, expected: &[&str]) {
    let selector = format!("{LABEL}={LEADS}");
    scene.until("labelled Pods", || {
        let names = scene.kubectl(&["get", "pods", "-l", &selector, "-o", "jsonpath={.items[*].metadata.name}"], "");
        let found: BTreeSet<&str> = names.split_whitespace().collect();
        ((found == expected.iter().copied().collect()).then_some(()), names.clone())
    });
}

#[test]
fn the_pod_of_the_operator_that_leads_has_a_label_and_no_other() {
    let mut scene = Scene::with_secret("labelled");
    scene.until("a leader", || {
        let log = scene.operator.log();
        (log.contains("\"leading\"").then_some(()), log)
    });
    // In no Pod there is nothing to label, and it says where it is asked.
    let log = scene.operator.log();
    assert!(log.contains("--operator-url") && log.contains(&service(Some("labelled"))), "{log}");
    scene.operator.terminate().unwrap();
    let kubeconfig = scene.server.kubeconfig();
    pod(&scene, "operator-a", &json!({}));
    // Its container has led, and was killed.
    pod(&scene, "operator-b", &json!({LABEL: LEADS}));
    scene.operator = operator(&scene, kubeconfig, "operator-a");
    labelled(&scene, &["operator-a", "operator-b"]);
    let second = operator(&scene, kubeconfig, "operator-b");
    labelled(&scene, &["operator-a"]);
    // One that hangs cannot take it off itself.
    scene.operator.signal("STOP").unwrap();
    labelled(&scene, &["operator-b"]);
    scene.operator.signal("CONT").unwrap();
    assert_eq!(scene.operator.ended(pipeline::DEADLINE).unwrap(), Some(3), "{}", scene.operator.log());
    scene.operator = operator(&scene, kubeconfig, "operator-a");
    scene.until("one who waits", || {
        let log = scene.operator.log();
        (log.contains("waiting to lead").then_some(()), log)
    });
    labelled(&scene, &["operator-b"]);
    drop(second);
    labelled(&scene, &["operator-a"]);
}

#[test]
fn a_label_that_cannot_be_written_keeps_nobody_from_leading_and_is_written_when_it_can() {
    let mut scene = Scene::with_secret("unlabelled");
    scene.operator.kill().unwrap();
    scene.kubectl(&["delete", "lease/millstream-operator-unlabelled", "--ignore-not-found"], "");
    pod(&scene, "operator-a", &json!({}));
    let proxy = ApiProxy::start(scene.server.kubeconfig()).unwrap();
    proxy.go_on(|name, _| if name.contains("pods/") { Fate::Refused(403) } else { Fate::Done });
    scene.operator = operator(&scene, proxy.kubeconfig(), "operator-a");
    scene.pipeline(&json!({"shards": 2}));
    scene.condition("Ready False WorkersNotReady");
    scene.until("a warning", || {
        let log = scene.operator.log();
        (log.contains("the label that says who leads is not as it should be").then_some(()), log)
    });
    labelled(&scene, &[]);
    proxy.go_on(|_, _| Fate::Done);
    labelled(&scene, &["operator-a"]);
}

/// What the plugin says when it asks by a Service.
fn asked(scene: &Scene) -> String {
    let namespace = &scene.namespace;
    let mut plugin = Command::new(pipeline::binary().unwrap());
    plugin.env("KUBECONFIG", scene.server.kubeconfig()).env_remove("MILLSTREAM_OPERATOR_URL");
    plugin.args(["kubectl", "status", "orders", "-n", namespace, "--operator-namespace", namespace]);
    String::from_utf8(plugin.output().unwrap().stdout).unwrap()
}

#[test]
fn a_user_is_told_why_no_operator_can_be_asked() {
    let scene = Scene::with_secret("unasked");
    scene.pipeline(&json!({"shards": 2}));
    scene.condition("Ready False WorkersNotReady");
    let said = asked(&scene);
    assert!(
        said.contains("who has which shard is not known: no operator can be asked in namespace unasked")
            && said.contains("--operator-url")
            && said
                .contains("services \"millstream-leader-unasked\" not found; services \"millstream-leader\" not found"),
        "{said}"
    );
    // Nobody is behind it: it waits for a while whether somebody comes.
    let ports = json!([{"port": 9090}]);
    let metadata = json!({"name": service(Some("unasked"))});
    scene.apply(&json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"selector": {LABEL: LEADS}, "ports": ports}}));
    scene.apply(&json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata, "subsets": []}));
    let said = asked(&scene);
    assert!(
        said.contains("no operator leads in namespace unasked, or it cannot be reached, for 10 s: ")
            && said.contains("no endpoints available"),
        "{said}"
    );
}

//! What is not built any more, and what is only told: it goes, and is told, whenever the operator dies.

use super::all::is_killed_at;
use super::writes::Writes;
use millstream_tests::scene::Scene;
use serde_json::{Value, json};
use std::cell::Cell;
use std::collections::BTreeSet;

/// An object of a former version of the operator, by its labels and its owner; or somebody else's with the same labels.
fn former(scene: &Scene, kind: (&str, &str), name: &str, owner: &str, spec: &Value) {
    let labels = json!({"app.kubernetes.io/instance": "orders", "app.kubernetes.io/managed-by": "millstream-operator"});
    let owner = json!({
        "apiVersion": "ingestion.millstream.dev/v1alpha1", "kind": "IngestionPipeline", "name": "orders", "uid": owner,
        "controller": true, "blockOwnerDeletion": false,
    });
    let metadata = json!({"name": name, "labels": labels, "ownerReferences": [owner]});
    scene.apply(&json!({"apiVersion": kind.0, "kind": kind.1, "metadata": metadata, "spec": spec}));
}

#[test]
fn an_operator_that_dies_while_it_removes_what_is_not_built_any_more_has_done_no_harm() {
    let mut writes = Writes::new("writes-others");
    writes.start();
    writes.pipeline();
    writes.scene.condition("Ready False WorkersNotReady");
    writes.scene.operator.kill().unwrap();
    let uid = writes.scene.get("mip", "orders")["metadata"]["uid"].as_str().unwrap().to_owned();
    let none = json!({"matchLabels": {"nobody": "has-it"}});
    for (name, owner) in [("former", uid.as_str()), ("others", "2f6c0f8e-0000-4000-8000-000000000000")] {
        former(&writes.scene, ("v1", "Service"), name, owner, &json!({"ports": [{"port": 1}]}));
        former(&writes.scene, ("networking.k8s.io/v1", "NetworkPolicy"), name, owner, &json!({ "podSelector": none }));
        former(&writes.scene, ("policy/v1", "PodDisruptionBudget"), name, owner, &json!({ "selector": none }));
    }
    let count = |scene: &Scene, name: &str| scene.names("svc,netpol,pdb").iter().filter(|it| *it == name).count();
    assert_eq!((count(&writes.scene, "former"), count(&writes.scene, "others")), (3, 3));
    let before = writes.scene.names("svc,netpol,pdb").len();
    let died = writes.die_at_each_of("DELETE ", "the former ones gone", |scene| count(scene, "former") == 0);
    is_killed_at("what is not built any more goes", &died);
    assert_eq!(count(&writes.scene, "others"), 3, "by the owner's uid they are somebody else's");
    assert_eq!(writes.scene.names("svc,netpol,pdb").len(), before - 3);
}

#[test]
fn an_operator_that_dies_while_an_event_repeats_itself_has_done_no_harm() {
    let mut writes = Writes::new("writes-events");
    writes.start();
    writes.pipeline();
    writes.scene.condition("Ready False WorkersNotReady");
    writes.scene.operator.kill().unwrap();
    // Each operator says anew at first what it has said itself before; that it is paused again, is the same Event.
    let turns = Cell::new(0);
    let toggle = |scene: &Scene| {
        let pipeline = scene.get("mip", "orders");
        let is_paused = pipeline["spec"]["paused"] == true;
        let conditions = pipeline["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let said = conditions.iter().find(|it| it["type"] == "Paused").map(|it| it["status"] == "True");
        let is_current = pipeline["status"]["observedGeneration"] == pipeline["metadata"]["generation"];
        if said == Some(is_paused) && is_current {
            turns.set(turns.get() + 1);
            scene.patch(&json!({ "paused": !is_paused }));
        }
        turns.get() >= 24
    };
    let named = |name: &str, _: &str| (name == "PATCH events").then(|| name.to_owned());
    let died = writes.die_at_each_named(named, "paused and resumed many times", toggle);
    is_killed_at("an Event repeats itself", &died);
    let reasons = writes.scene.kubectl(&["get", "events.events.k8s.io", "-o", "jsonpath={.items[*].reason}"], "");
    let reasons: BTreeSet<&str> = reasons.split_whitespace().collect();
    assert!(reasons.is_superset(&["PausedBySpec", "NotPaused"].into()), "{reasons:?}");
}

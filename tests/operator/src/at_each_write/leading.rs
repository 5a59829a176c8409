//! Who leads, and says so: an operator that dies at a write of the Lease or of its Pod's label leads nobody astray, and keeps nobody from leading.

use super::all::is_killed_at;
use super::writes::Writes;
use millstream_operator::leader::{LABEL, LEADS};
use millstream_tests::scene::Scene;
use serde_json::{Value, json};
use std::collections::BTreeSet;

fn is_leading(scene: &Scene) -> bool {
    scene.operator.log().contains("\"leading\"")
}

/// Who has the Lease.
fn holder(scene: &Scene) -> String {
    scene.kubectl(&["get", "leases", "-o", "jsonpath={.items[*].spec.holderIdentity}"], "")
}

#[test]
fn an_operator_that_dies_at_any_of_its_writes_of_the_lease_keeps_nobody_from_leading() {
    let mut writes = Writes::new("writes-lease");
    writes.keeps_lease = true;
    writes.proxy.judge_leases();
    let named = |name: &str, body: &str| {
        if name == "POST leases" {
            return Some(name.to_owned());
        }
        let spec: Value = serde_json::from_str::<Value>(body).ok()?["spec"].clone();
        let what = match spec["holderIdentity"].as_str() {
            None => "given away",
            Some(_) if spec["acquireTime"] == spec["renewTime"] => "taken",
            Some(_) => "renewed",
        };
        name.starts_with("PUT leases/").then(|| format!("{name} ({what})"))
    };
    let is_given_away = |scene: &Scene| {
        if is_leading(scene) {
            // It may have ended by now.
            let _ = scene.operator.signal("TERM");
        }
        is_leading(scene) && holder(scene).is_empty()
    };
    let mut died = writes.die_at_each_named(named, "led, and given away", is_given_away);
    // Somebody leads and is not told to end: it renews.
    let is_renewed = |scene: &Scene| {
        is_leading(scene) && scene.admin("/metrics").contains("_leader 1") && {
            let leases = scene.kubectl(&["get", "leases", "-o", "json"], "");
            let spec = serde_json::from_str::<Value>(&leases).unwrap()["items"][0]["spec"].clone();
            spec["acquireTime"] != spec["renewTime"]
        }
    };
    died.extend(writes.die_at_each_named(named, "led, and renewed", is_renewed));
    let put = "PUT leases/millstream-operator-writes-lease";
    let steps = ["taken", "renewed", "given away"].map(|what| format!("{put} ({what})"));
    assert_eq!(died, steps.into_iter().chain(["POST leases".to_owned()]).collect());
    is_killed_at("the Lease", &died);
}

#[test]
fn an_operator_that_dies_while_it_labels_its_pod_is_followed_by_one_that_does() {
    let mut writes = Writes::new("writes-label");
    writes.pod = Some("operator-a");
    let labels = json!({LABEL: LEADS});
    writes.scene.apply(&json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "operators"}}));
    // A container of it has led, and was killed.
    writes.scene.apply(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "operator-a", "labels": labels},
        "spec": {"serviceAccountName": "operators", "automountServiceAccountToken": false, "containers": [{"name": "operator", "image": "i"}]},
    }));
    let named = |name: &str, body: &str| {
        let body: Value = serde_json::from_str(body).ok()?;
        let is_off = body.pointer("/metadata/labels").is_some_and(|labels| labels[LABEL].is_null());
        (name == "PATCH pods/operator-a").then(|| format!("{name} ({})", if is_off { "off" } else { "on" }))
    };
    let is_labelled = |scene: &Scene| {
        let is_on = scene.get("pod", "operator-a")["metadata"]["labels"][LABEL] == LEADS;
        is_leading(scene) && is_on
    };
    let died = writes.die_at_each_named(named, "the label", is_labelled);
    assert_eq!(died, BTreeSet::from(["off", "on"].map(|what| format!("PATCH pods/operator-a ({what})"))));
    is_killed_at("the label of the one that leads", &died);
}

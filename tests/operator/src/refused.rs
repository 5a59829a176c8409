//! The API server refuses one object of a pipeline: which one and why is said, everything else goes on, and that object follows by itself when it is not refused any more.

use millstream_tests::api_proxy::{ApiProxy, Fate};
use millstream_tests::scene::{Scene, least, start_from};
use millstream_tests::servers::Kafka;
use serde_json::{Value, json};

/// What is refused of a pipeline.
struct Case {
    pipeline: &'static str,
    /// The write, and what its body has.
    write: (&'static str, &'static str),
    code: u16,
    /// What the condition calls the object.
    object: &'static str,
    /// Workers can do without it.
    is_apart: bool,
}

const fn case(
    pipeline: &'static str,
    write: (&'static str, &'static str),
    code: u16,
    object: &'static str,
    is_apart: bool,
) -> Case {
    Case { pipeline, write, code, object, is_apart }
}

/// One pipeline for each kind of object, so that all are waited for at once. (Of StatefulSets: `what_the_api_server_refuses_is_said_and_done_when_it_does_not_any_more`.)
const CASES: [Case; 7] = [
    case("account", ("PATCH serviceaccounts/account", ""), 403, "ServiceAccount account", false),
    case("config", ("POST configmaps", "\"config-action-"), 422, "ConfigMap config-action-", false),
    case("service", ("PATCH services/service-unify-workers", ""), 403, "Service service-unify-workers", true),
    case("policy", ("PATCH networkpolicies/policy", ""), 404, "NetworkPolicy policy", true),
    case("budget", ("PATCH poddisruptionbudgets/budget-unify", ""), 422, "PodDisruptionBudget budget-unify", true),
    case("scale", ("POST stagescales", "\"scale-unify\""), 403, "StageScale scale-unify", true),
    case("counts", ("PATCH stagescales/counts-unify/status", ""), 422, "status of StageScale counts-unify", true),
];

impl Case {
    fn reason(&self) -> &'static str {
        if self.code == 403 { "Forbidden" } else { "ObjectRefused" }
    }
}

fn pipeline(scene: &Scene, name: &str) {
    let mut spec = least();
    spec["kafka"] = json!({"bootstrapServers": [Kafka::shared().unwrap().bootstrap()], "replication": 1});
    spec["shards"] = json!(1);
    scene.apply(&json!({"apiVersion": "ingestion.millstream.dev/v1alpha1", "kind": "IngestionPipeline", "metadata": {"name": name}, "spec": spec}));
}

/// Waits until a pipeline's condition `Degraded` has this status and reason; its message.
fn degraded(scene: &Scene, pipeline: &str, expected: &str) -> String {
    scene.until(&format!("{pipeline}: {expected}"), || {
        let found = scene.get("mip", pipeline);
        let conditions = found.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default();
        let it = conditions.into_iter().find(|it| it["type"] == "Degraded").unwrap_or_default();
        let text = |field: &str| it[field].as_str().unwrap_or_default().to_owned();
        let is_it = format!("{} {}", text("status"), text("reason")) == expected;
        (is_it.then(|| text("message")), it.to_string())
    })
}

/// Waits until a pipeline has so many of a kind.
fn has(scene: &Scene, pipeline: &str, kind: &str, expected: usize) {
    scene.until(&format!("{expected} {kind} of {pipeline}"), || {
        let names = scene.names(kind);
        let count = names.iter().filter(|name| name.starts_with(&format!("{pipeline}-"))).count();
        ((count == expected).then_some(()), format!("{names:?}"))
    });
}

#[test]
fn one_object_that_is_refused_is_named_and_holds_up_no_other_and_no_other_pipeline() {
    let mut scene = Scene::with_secret("each-refused");
    scene.operator.kill().unwrap();
    scene.kubectl(&["delete", "lease/millstream-operator-each-refused", "--ignore-not-found"], "");
    let proxy = ApiProxy::start(scene.server.kubeconfig()).unwrap();
    proxy.go_on(|name, body| {
        let is_it = |case: &&Case| name == case.write.0 && body.contains(case.write.1);
        CASES.iter().find(is_it).map_or(Fate::Done, |case| Fate::Refused(case.code))
    });
    (scene.operator, scene.admin) = start_from(proxy.kubeconfig(), "each-refused", "each-refused", &[]);
    for case in &CASES {
        pipeline(&scene, case.pipeline);
    }
    pipeline(&scene, "well");
    degraded(&scene, "well", "False AsExpected");
    has(&scene, "well", "sts", 4);
    for case in &CASES {
        let said = degraded(&scene, case.pipeline, &format!("True {}", case.reason()));
        assert!(said.contains(case.object) && said.contains("the test refuses it"), "{said}");
        // Of four stages, and the one that senders know.
        has(&scene, case.pipeline, "svc", if case.pipeline == "service" { 4 } else { 5 });
        has(&scene, case.pipeline, "sts", if case.is_apart { 4 } else { 0 });
        has(&scene, case.pipeline, "pdb", if case.pipeline == "budget" { 3 } else { 4 });
        has(&scene, case.pipeline, "mss", if case.pipeline == "scale" { 3 } else { 4 });
    }
    let counted = scene.kubectl(&["get", "mss", "-o", "json"], "");
    let counted: Value = serde_json::from_str(&counted).unwrap();
    let counted = counted["items"].as_array().unwrap().iter().filter(|scale| {
        scale["status"].is_object() && scale["metadata"]["name"].as_str().unwrap().starts_with("counts-")
    });
    assert_eq!(counted.count(), 3);
    let events = scene.kubectl(&["get", "events.events.k8s.io", "-o", "json"], "");
    let events: Value = serde_json::from_str(&events).unwrap();
    for case in &CASES {
        let is_said = |event: &Value| {
            let note = event["note"].as_str().unwrap_or_default();
            event["regarding"]["name"] == case.pipeline
                && event["reason"] == case.reason()
                && note.contains(case.object)
        };
        assert!(events["items"].as_array().unwrap().iter().any(is_said), "{}: {events:#}", case.pipeline);
    }
    // By itself: nothing of the pipelines changes any more.
    proxy.go_on(|_, _| Fate::Done);
    for case in &CASES {
        degraded(&scene, case.pipeline, "False AsExpected");
        for (kind, count) in [("svc", 5), ("sts", 4), ("pdb", 4), ("mss", 4)] {
            has(&scene, case.pipeline, kind, count);
        }
    }
}

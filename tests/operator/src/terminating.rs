//! A namespace that is being deleted: what there has our finalizers is let go before anything in it is touched.

use millstream_tests::api_proxy::{ApiProxy, Fate};
use millstream_tests::scene::{FINALIZER, Scene, start_from};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const ERASE: &str = "ingestion.millstream.dev/erase";
const OTHERS: &str = "example.com/mine";

/// A pipeline and a tenant that both have a finalizer; operators' own namespace is another one.
fn held(namespace: &str) -> Scene {
    let scene = Scene::run_from(namespace, "default");
    scene.secret("mongodb://db:27018/");
    scene.keys(&json!({"one": "a-key"}));
    scene.pipeline(&json!({"shards": 2, "topicDeletionPolicy": "Delete"}));
    scene.tenant("acme", &["one"], &json!({"deletionPolicy": "Erase"}));
    expect(&scene, "mip", "orders", &[FINALIZER]);
    expect(&scene, "tenant", "acme", &[ERASE]);
    // What it made is written down.
    scene.created();
    scene
}

/// Waits until an object has exactly these finalizers.
fn expect(scene: &Scene, kind: &str, name: &str, expected: &[&str]) {
    scene.until(&format!("finalizers of {name}"), || {
        let found = scene.get(kind, name)["metadata"]["finalizers"].clone();
        let is_it = found == json!(expected) || (found.is_null() && expected.is_empty());
        (is_it.then_some(()), found.to_string())
    });
}

fn finalizers(scene: &Scene, kind: &str, name: &str, all: &[&str]) {
    let patch = json!({"metadata": {"finalizers": all}}).to_string();
    scene.kubectl(&["patch", kind, name, "--type=merge", "-p", &patch], "");
}

/// Nothing else happens in it: there is no controller of namespaces.
fn end(scene: &Scene) {
    scene.server.run(&["delete", "namespace", &scene.namespace, "--wait=false"], "").unwrap();
}

/// What was said of the operators' Pods about topics that stay.
fn said(scene: &Scene) -> Vec<String> {
    let list = scene.server.run(&["get", "events.events.k8s.io", "-n", "default", "-o", "json"], "").unwrap();
    let list: Value = serde_json::from_str(&list).unwrap();
    let is_it =
        |it: &&Value| it["reason"] == "TopicsRetained" && it["related"]["namespace"] == scene.namespace.as_str();
    let items = list["items"].as_array().unwrap().iter().filter(is_it);
    items.map(|it| it["note"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_namespace_that_is_deleted_is_let_go_before_anything_in_it_is_touched() {
    let mut scene = held("ends-first");
    finalizers(&scene, "mip", "orders", &[OTHERS, FINALIZER]);
    let proxy = ApiProxy::start(scene.server.kubeconfig()).unwrap();
    scene.operator.terminate().unwrap();
    // One leads, and another looks, too.
    let (operator, _) = start_from(proxy.kubeconfig(), &scene.namespace, "default", &[]);
    scene.operator = operator;
    let (_second, _) = start_from(scene.server.kubeconfig(), &scene.namespace, "default", &[]);
    scene.until("a leader", || {
        let log = scene.operator.log();
        (log.contains("\"leading\"").then_some(()), log)
    });
    end(&scene);
    expect(&scene, "mip", "orders", &[OTHERS]);
    expect(&scene, "tenant", "acme", &[]);
    for (kind, name) in [("mip", "orders"), ("tenant", "acme")] {
        assert!(scene.get(kind, name)["metadata"]["deletionTimestamp"].is_null(), "{name} was deleted");
    }
    let said = said(&scene);
    assert!(
        said.len() == 1
            && said[0]
                .starts_with("namespace ends-first is being deleted: IngestionPipeline orders was let go at once")
            && said[0].contains("ends-first.orders.ingress"),
        "{said:?}"
    );
    // Whatever it is looked at for: it is not added again.
    drop(proxy.go_on(|_, _| Fate::Done));
    // Something for which nothing is created, which nothing can be there any more.
    scene.patch(&json!({"standbys": 0}));
    scene.condition("Ready False WorkersNotReady");
    let patch = json!({"spec": {"rate": {"recordsPerSecond": 5}}}).to_string();
    scene.kubectl(&["patch", "tenant", "acme", "--type=merge", "-p", &patch], "");
    scene.until("a tenant that was looked at", || {
        let tenant = scene.get("tenant", "acme");
        let observed = &tenant["status"]["observedGeneration"];
        ((*observed == tenant["metadata"]["generation"]).then_some(()), tenant.to_string())
    });
    let writes = proxy.go_on(|_, _| Fate::Done);
    let touched = |name: &&String| ["PATCH ingestionpipelines/orders", "PATCH tenants/acme"].contains(&name.as_str());
    assert_eq!(writes.iter().find(touched), None, "{writes:?}");
}

/// An operator that does not hear that the namespace is being deleted, and the flag that lets it hear.
fn deaf(scene: &Scene) -> (ApiProxy, Arc<AtomicBool>) {
    let (proxy, hears) = (ApiProxy::start(scene.server.kubeconfig()).unwrap(), Arc::new(AtomicBool::new(false)));
    let (heard, asked) = (Arc::clone(&hears), format!("GET /api/v1/namespaces/{}", scene.namespace));
    proxy.judge_reads(move |name| match name == asked && !heard.load(Ordering::SeqCst) {
        true => Fate::Refused(500),
        false => Fate::Done,
    });
    (proxy, hears)
}

#[test]
fn an_operator_that_is_told_to_end_lets_go_first_whether_it_leads_or_not() {
    let mut scene = held("ends-with-it");
    scene.operator.terminate().unwrap();
    let start = |kubeconfig: &Path| start_from(kubeconfig, "ends-with-it", "default", &[]).0;
    let [(first, first_hears), (second, second_hears)] = [deaf(&scene), deaf(&scene)];
    scene.operator = start(first.kubeconfig());
    scene.until("a leader", || {
        let log = scene.operator.log();
        (log.contains("\"leading\"").then_some(()), log)
    });
    let mut waiting = start(second.kubeconfig());
    scene.until("one who waits, and does not hear", || {
        let log = waiting.log();
        (log.contains("should it be deleted, not all is let go there").then_some(()), log)
    });
    end(&scene);
    for (operator, hears) in [(&mut waiting, second_hears), (&mut scene.operator, first_hears)] {
        hears.store(true, Ordering::SeqCst);
        operator.terminate().unwrap();
        let has = |kind: &str, name: &str| {
            let path = "jsonpath={.metadata.finalizers[*]}";
            let all = scene.server.run(&["get", kind, name, "-n", "ends-with-it", "-o", path], "").unwrap();
            all.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!((has("mip", "orders"), has("tenant", "acme")), (vec![], vec![]), "{}", operator.log());
        for (kind, name, finalizer) in [("mip", "orders", FINALIZER), ("tenant", "acme", ERASE)] {
            let patch = json!({"metadata": {"finalizers": [finalizer]}}).to_string();
            scene.server.run(&["patch", kind, name, "-n", "ends-with-it", "--type=merge", "-p", &patch], "").unwrap();
        }
    }
}

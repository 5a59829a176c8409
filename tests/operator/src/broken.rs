//! Objects that the operator cannot read: its definitions were loosened, or are those of another version. Whatever there is of them, everything else goes on.
//!
//! On an API server of its own, whose definitions let everything pass.

use millstream_tests::scene::{FINALIZER, Scene, start};
use millstream_tests::servers::{ApiServer, Kubectl};
use serde_json::{Value, json};
use std::sync::OnceLock;

const GROUP: &str = "ingestion.millstream.dev";
const ERASE: &str = "ingestion.millstream.dev/erase";

fn loosened() -> &'static Kubectl {
    static SERVER: OnceLock<ApiServer> = OnceLock::new();
    let server = SERVER.get_or_init(|| {
        let server = ApiServer::start().unwrap();
        server.kubectl().install_crds().unwrap();
        let anything = json!([{
            "op": "replace",
            "path": "/spec/versions/0/schema/openAPIV3Schema",
            "value": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        }]);
        for kind in ["ingestionpipelines", "tenants"] {
            let name = format!("{kind}.{GROUP}");
            server.kubectl().run(&["patch", "crd", &name, "--type=json", "-p", &anything.to_string()], "").unwrap();
        }
        server
    });
    server.kubectl()
}

/// Creates an object as soon as the API server goes by the loosened definition.
fn create(scene: &Scene, kind: &str, name: &str, more: &Value) {
    let mut object = json!({"apiVersion": format!("{GROUP}/v1alpha1"), "kind": kind, "metadata": {"name": name}});
    object.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    scene.until(&format!("{kind} {name}"), || {
        let created = scene.server.run(&["create", "-n", &scene.namespace, "-f", "-"], &object.to_string());
        (created.as_ref().ok().map(drop), format!("{created:?}"))
    });
}

fn image_is(scene: &Scene, image: &str) {
    scene.until("the image", || {
        let set = scene.server.run(&["get", "sts", "orders-action", "-n", &scene.namespace, "-o", "json"], "");
        let set: Value = set.map(|text| serde_json::from_str(&text).unwrap()).unwrap_or_default();
        let found = set.pointer("/spec/template/spec/containers/0/image").cloned();
        (found.as_ref().filter(|found| **found == image).map(drop), format!("{found:?}"))
    });
}

#[test]
fn an_object_that_cannot_be_read_stops_nothing_else_and_is_done_when_it_can() {
    let server = loosened();
    server.run(&["create", "namespace", "broken"], "").unwrap();
    let (operator, admin) = start(server, "broken");
    let mut scene = Scene { server, namespace: "broken".to_owned(), operator, admin };
    scene.secret("mongodb://db:27018/");
    scene.keys(&json!({"acme": "acme-key"}));
    // It comes while the operator watches.
    create(&scene, "IngestionPipeline", "wrong", &json!({"spec": {"shards": "many", "stages": 5}}));
    create(&scene, "IngestionPipeline", "without-a-spec", &json!({}));
    create(&scene, "Tenant", "wrong", &json!({"spec": {"pipelineRef": "orders", "apiKeys": {"a": 1}}}));
    scene.pipeline(&json!({}));
    scene.condition("Ready False WorkersNotReady");
    scene.tenant("acme", &["acme"], &json!({}));
    scene.until("a condition of the tenant", || {
        let tenant = scene.get("tenant", "acme");
        (tenant["status"]["conditions"][0].as_object().map(drop), tenant.to_string())
    });
    scene.until("what the operator's log says", || {
        let log = scene.operator.log();
        let says = |kind: &str, name: &str| {
            log.lines().any(|line| {
                line.contains("a resource cannot be read; it is passed over until it changes")
                    && line.contains(&format!("\"kind\":\"{kind}\""))
                    && line.contains(&format!("\"name\":\"{name}\""))
            })
        };
        let all = says("IngestionPipeline", "wrong")
            && says("IngestionPipeline", "without-a-spec")
            && says("Tenant", "wrong");
        (all.then_some(()), "not all three".to_owned())
    });
    // It is there before another operator begins, and its watch goes on, too.
    scene.operator.terminate().unwrap();
    (scene.operator, scene.admin) = start(server, "broken");
    scene.patch(&json!({"image": "registry.example.com/millstream:0.2.0"}));
    image_is(&scene, "registry.example.com/millstream:0.2.0");
    scene.patch(&json!({"image": "registry.example.com/millstream:0.3.0"}));
    image_is(&scene, "registry.example.com/millstream:0.3.0");
    // It goes although it is held.
    for (kind, name, finalizer) in [("mip", "without-a-spec", FINALIZER), ("tenant", "wrong", ERASE)] {
        let held = json!({"metadata": {"finalizers": [finalizer]}}).to_string();
        scene.kubectl(&["patch", kind, name, "--type=merge", "-p", &held], "");
        scene.kubectl(&["delete", kind, name, "--timeout=60s"], "");
    }
    // It is mended.
    let mut spec = scene.get("mip", "orders")["spec"].clone();
    spec["image"] = json!("registry.example.com/millstream:0.4.0");
    let mended = json!({"apiVersion": format!("{GROUP}/v1alpha1"), "kind": "IngestionPipeline", "metadata": {"name": "wrong"}, "spec": spec});
    scene.kubectl(&["replace", "-f", "-"], &mended.to_string());
    scene.until("the workers of the mended one", || {
        let sets = scene.names("sts");
        (sets.iter().any(|name| name == "wrong-action").then_some(()), format!("{sets:?}"))
    });
    image_is(&scene, "registry.example.com/millstream:0.3.0");
}

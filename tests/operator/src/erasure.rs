//! A Tenant that is deleted, and what it has sent.

use millstream_shard::documents::DocumentStore;
use millstream_stores::mongo::MongoDocuments;
use millstream_tests::scene::{Pods, Scene, start};
use millstream_tests::servers::Mongo;
use serde_json::{Value, json};

const FINALIZER: &str = "ingestion.millstream.dev/erase";
const WAY_OUT: &str =
    "; to let the Tenant go at once, and leave what is not erased yet, set spec.deletionPolicy to Retain";

fn erase() -> Value {
    json!({"deletionPolicy": "Erase"})
}

/// Waits for the condition `Effective`, `Status Reason`, of the newest generation, and for these words in its message.
fn effective(scene: &Scene, tenant: &str, expected: &str, words: &str) -> String {
    scene.until(&format!("{expected}: {words}"), || {
        let tenant = scene.get("tenant", tenant);
        let it = tenant["status"]["conditions"][0].clone();
        let text = |field: &str| it[field].as_str().unwrap_or_default().to_owned();
        let is_it = format!("{} {}", text("status"), text("reason")) == expected
            && text("message").contains(words)
            && it["observedGeneration"] == tenant["metadata"]["generation"];
        (is_it.then(|| text("message")), it.to_string())
    })
}

/// Waits until a Tenant has exactly these finalizers.
fn finalizers(scene: &Scene, tenant: &str, expected: &[&str]) {
    scene.until("finalizers", || {
        let found = scene.get("tenant", tenant)["metadata"]["finalizers"].clone();
        let is_it = found == json!(expected) || (found.is_null() && expected.is_empty());
        (is_it.then_some(()), found.to_string())
    });
}

fn delete(scene: &Scene, tenant: &str) {
    scene.kubectl(&["delete", "tenant", tenant, "--wait=false"], "");
}

fn gone(scene: &Scene, tenant: &str) {
    scene.until("the Tenant gone", || {
        let there = scene.names("tenants").iter().any(|name| name == tenant);
        let seen = scene.kubectl(&["get", "tenants", "-o", "jsonpath={.items[*].status.conditions}"], "");
        ((!there).then_some(()), seen)
    });
}

/// How many documents with something in them a tenant has.
fn documents(store: &MongoDocuments, tenant: &str) -> usize {
    let mut count = 0;
    for collection in ["users", "devices"] {
        let scanned = store.scan(tenant, collection, &mut |_, document| {
            count += usize::from(!document.deleted);
            true
        });
        scanned.unwrap();
    }
    count
}

#[test]
fn a_tenant_goes_when_all_that_it_has_sent_is_erased_and_another_ones_stays() {
    let mut scene = Scene::new("erased");
    let mongo = Mongo::shared().unwrap();
    scene.secret(mongo.uri());
    scene.keys(&json!({"acme": "acme-key", "globex": "globex-key"}));
    let one = json!({"replicas": 1});
    let uri = json!({"name": "mongodb", "key": "uri"});
    scene.pipeline(&json!({
        "shards": 2, "standbys": 0, "documentStore": {"mongodb": {"uri": uri, "database": "erased"}},
        "stages": {"gateway": one, "unify": one, "action": one, "reaction": one},
    }));
    scene.condition("Ready False WorkersNotReady");
    scene.tenant("acme", &["acme"], &erase());
    scene.tenant("globex", &["globex"], &json!({}));
    finalizers(&scene, "acme", &[FINALIZER]);
    finalizers(&scene, "globex", &[]);
    let mut pods = Pods::default();
    for stage in ["gateway", "unify", "action", "reaction"] {
        pods.start(&scene, stage, 0);
    }
    let answers = |scene: &Scene, key: &str, expected: u16| {
        scene.until("an answer", || {
            let answer = pods.answer("orders-gateway-0", key);
            (answer.as_ref().ok().filter(|code| **code == expected).map(drop), format!("{answer:?}"))
        });
    };
    effective(&scene, "acme", "True Known", "");
    answers(&scene, "acme-key", 200);
    answers(&scene, "globex-key", 200);
    let store = MongoDocuments::connect(mongo.config("erased")).unwrap();
    let has = |scene: &Scene, expected: &[(&str, usize)]| {
        scene.until("documents", || {
            let found: Vec<(&str, usize)> =
                expected.iter().map(|(tenant, _)| (*tenant, documents(&store, tenant))).collect();
            ((found == expected).then_some(()), format!("{found:?}"))
        });
    };
    has(&scene, &[("acme", 1), ("globex", 1)]);
    // Who is to erase it stands still: it is held, and its keys are good no more.
    for name in ["orders-action-0", "orders-reaction-0"] {
        pods.running[name].signal("STOP").unwrap();
    }
    delete(&scene, "acme");
    let said =
        effective(&scene, "acme", "False Erasing", "users and devices: 0 of 2 shards of action have erased them");
    assert!(said.ends_with(WAY_OUT), "{said}");
    answers(&scene, "acme-key", 401);
    answers(&scene, "globex-key", 200);
    pods.running["orders-action-0"].signal("CONT").unwrap();
    effective(&scene, "acme", "False Erasing", "documents: 0 of 2 shards of reaction have erased them");
    // Another operator goes on where this one was.
    scene.operator.signal("KILL").unwrap();
    (scene.operator, scene.admin) = start(scene.server, &scene.namespace);
    pods.running["orders-reaction-0"].signal("CONT").unwrap();
    gone(&scene, "acme");
    has(&scene, &[("acme", 0), ("globex", 1)]);
    answers(&scene, "acme-key", 401);
    // One of its name begins anew, when what was erased is over.
    scene.tenant("acme", &["acme"], &json!({}));
    effective(&scene, "acme", "False Waiting", "is erased: its keys are good from then on");
    assert_eq!(pods.answer("orders-gateway-0", "acme-key").unwrap(), 401);
    effective(&scene, "acme", "True Known", "");
    assert_eq!(pods.answer("orders-gateway-0", "acme-key").unwrap(), 200);
    has(&scene, &[("acme", 1), ("globex", 1)]);
    // By default nothing is waited for, and everything stays.
    scene.kubectl(&["delete", "tenant", "acme", "--timeout=10s"], "");
    answers(&scene, "acme-key", 401);
    has(&scene, &[("acme", 1)]);
}

#[test]
fn an_erasure_that_nobody_can_carry_out_waits_and_retain_lets_go() {
    let scene = Scene::with_secret("unerased");
    scene.keys(&json!({"one": "a-key"}));
    scene.pipeline(&json!({"shards": 2}));
    scene.condition("Ready False WorkersNotReady");
    scene.tenant("acme", &["one"], &json!({}));
    let patch = |patch: &str| {
        scene.kubectl(&["patch", "tenant", "acme", "--type=merge", "-p", patch], "");
    };
    // It comes and goes with the policy; others' stay.
    patch(r#"{"metadata":{"finalizers":["example.com/mine"]}}"#);
    for (policy, expected) in [
        ("Erase", &["example.com/mine", FINALIZER][..]),
        ("Retain", &["example.com/mine"]),
        ("Erase", &["example.com/mine", FINALIZER]),
    ] {
        patch(&json!({"spec": {"deletionPolicy": policy}}).to_string());
        finalizers(&scene, "acme", expected);
    }
    delete(&scene, "acme");
    effective(&scene, "acme", "False Erasing", "it waits for workers of action, of which none reports");
    let before = scene.get("tenant", "acme")["metadata"]["resourceVersion"].clone();
    scene.patch(&json!({"paused": true}));
    scene.condition("Paused True PausedBySpec");
    assert_eq!(scene.get("tenant", "acme")["metadata"]["resourceVersion"], before, "nothing of it has changed");
    patch(r#"{"spec":{"deletionPolicy":"Retain"}}"#);
    finalizers(&scene, "acme", &["example.com/mine"]);
    patch(r#"{"metadata":{"finalizers":null}}"#);
    gone(&scene, "acme");
}

#[test]
fn a_tenant_does_not_wait_for_a_pipeline_that_is_gone_or_goes() {
    let scene = Scene::with_secret("erased-late");
    scene.keys(&json!({"one": "a-key", "two": "another-key"}));
    let tenant = |name: &str, key: &str| {
        scene.tenant(name, &[key], &erase());
        finalizers(&scene, name, &[FINALIZER]);
    };
    // There never was one.
    tenant("acme", "one");
    delete(&scene, "acme");
    gone(&scene, "acme");
    scene.pipeline(&json!({"shards": 2, "topicDeletionPolicy": "Delete"}));
    scene.condition("Ready False WorkersNotReady");
    tenant("acme", "one");
    tenant("globex", "two");
    delete(&scene, "acme");
    effective(&scene, "acme", "False Erasing", "it waits for workers of action");
    // Something else holds it.
    let mine = r#"[{"op":"add","path":"/metadata/finalizers/-","value":"example.com/mine"}]"#;
    scene.kubectl(&["patch", "mip", "orders", "--type=json", "-p", mine], "");
    scene.delete();
    gone(&scene, "acme");
    delete(&scene, "globex");
    gone(&scene, "globex");
    scene.kubectl(&["patch", "mip", "orders", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#], "");
    scene.gone();
}

#[test]
fn a_namespace_that_is_deleted_takes_its_tenants_at_once() {
    let scene = Scene::run_from("erased-namespace", "default");
    scene.secret("mongodb://db:27018/");
    scene.keys(&json!({"one": "a-key"}));
    scene.pipeline(&json!({"shards": 2}));
    scene.condition("Ready False WorkersNotReady");
    scene.tenant("acme", &["one"], &erase());
    finalizers(&scene, "acme", &[FINALIZER]);
    delete(&scene, "acme");
    effective(&scene, "acme", "False Erasing", "it waits for workers of action");
    scene.server.run(&["delete", "namespace", "erased-namespace", "--wait=false"], "").unwrap();
    gone(&scene, "acme");
}

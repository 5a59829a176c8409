//! What the operator writes to the API server, one write at a time: it dies before and after each, and each is refused, or never answered. What comes of it is what comes of a run in which nothing happened.

use super::all::is_killed_at;
use super::roll::Roll;
use super::writes::Writes;
use millstream_tests::api_proxy::Fate;
use millstream_tests::scene::{FINALIZER, Pods, Scene, specs, there};
use millstream_tests::servers::Mongo;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What is there, by kind, without what is another one each time.
fn state(scene: &Scene) -> Value {
    let objects = scene.kubectl(&["get", "sa,cm,svc,netpol,pdb,sts,mss", "-o", "json"], "");
    let mut objects: Value = serde_json::from_str(&objects).unwrap();
    for object in objects["items"].as_array_mut().unwrap() {
        let metadata = object["metadata"].as_object_mut().unwrap();
        for name in ["uid", "resourceVersion", "creationTimestamp", "managedFields"] {
            metadata.remove(name);
        }
        for owner in metadata.get_mut("ownerReferences").and_then(Value::as_array_mut).into_iter().flatten() {
            owner["uid"].take();
        }
        let addresses = ["/spec/clusterIP", "/spec/clusterIPs"];
        for path in addresses {
            object.pointer_mut(path).map(Value::take);
        }
    }
    let pipeline = scene.get("mip", "orders");
    let short = |condition: &Value| json!([condition["type"], condition["status"], condition["reason"]]);
    let conditions = pipeline.pointer("/status/conditions").and_then(Value::as_array);
    let conditions: Vec<Value> = conditions.into_iter().flatten().map(short).collect();
    let is_current = pipeline["status"]["observedGeneration"] == pipeline["metadata"]["generation"];
    let created = &pipeline["status"]["createdTopics"];
    let finalizers = &pipeline["metadata"]["finalizers"];
    json!([objects["items"], conditions, is_current, created, finalizers])
}

fn is_gone(scene: &Scene) -> bool {
    scene.names("mip").is_empty()
}

/// Nobody else removes what belonged to a pipeline here.
fn clear(scene: &Scene) {
    scene.kubectl(&["delete", "sa,cm,svc,netpol,pdb,sts,mss", "-l", "app.kubernetes.io/instance=orders"], "");
}

#[test]
fn an_operator_that_dies_before_or_after_any_of_its_writes_has_done_no_harm() {
    let mut writes = Writes::new("writes");
    writes.start();
    writes.pipeline();
    writes.scene.condition("Ready False WorkersNotReady");
    writes.scene.finalizers(&[FINALIZER]);
    assert_eq!(writes.scene.created().len(), specs("writes").len());
    let expected = state(&writes.scene);
    writes.scene.delete();
    writes.scene.gone();
    writes.scene.operator.kill().unwrap();
    let all = writes.proxy.go_on(|_, _| Fate::Done);
    clear(&writes.scene);

    writes.pipeline();
    let mut died = writes.die_at_each_until("as before", |scene| state(scene) == expected);
    assert_eq!(state(&writes.scene), expected);
    writes.scene.delete();
    died.extend(writes.die_at_each_until("gone", is_gone));
    assert!(there(&specs("writes")).is_empty());
    // All that the first run wrote, and nothing else. (Whether an Event is another one or repeats itself is a matter of time: `leading` has those that do.)
    let is_other = |name: &String| name != "PATCH events";
    let all: BTreeSet<String> = all.into_iter().filter(is_other).collect();
    let died = died.into_iter().map(|name| name.trim_end_matches(" (topics)").to_owned());
    let died: BTreeSet<String> = died.filter(is_other).collect();
    println!("died before and after each of these: {died:#?}");
    assert_eq!(died, all);
    assert!(all.len() > 20 && all.contains("PATCH statefulsets/orders-unify"), "{all:?}");
    is_killed_at("a pipeline comes and goes", &died);
}

/// A Tenant whose condition says this of its newest generation, and who has a finalizer or none.
fn tenant_is(scene: &Scene, reason: &str, is_held: bool) -> bool {
    let tenant = scene.get("tenant", "acme");
    let condition = &tenant["status"]["conditions"][0];
    let is_current = condition["observedGeneration"] == tenant["metadata"]["generation"];
    is_current && condition["reason"] == reason && tenant["metadata"]["finalizers"].is_array() == is_held
}

#[test]
fn an_operator_that_dies_at_any_of_its_writes_about_a_tenant_has_done_no_harm() {
    let mut writes = Writes::new("writes-tenant");
    writes.scene.keys(&json!({"acme": "acme-key"}));
    writes.start();
    writes.pipeline();
    writes.scene.condition("Ready False WorkersNotReady");
    writes.scene.operator.kill().unwrap();
    let of_a_tenant = "tenants/";
    let policy = |scene: &Scene, policy: &str| {
        let patch = json!({"spec": {"deletionPolicy": policy}}).to_string();
        scene.kubectl(&["patch", "tenant", "acme", "--type=merge", "-p", &patch], "");
    };
    writes.scene.tenant("acme", &["acme"], &json!({"deletionPolicy": "Erase"}));
    let known = |reason: &'static str, is_held: bool| move |scene: &Scene| tenant_is(scene, reason, is_held);
    let mut died = writes.die_at_each_of(of_a_tenant, "held", known("NoGateways", true));
    policy(&writes.scene, "Retain");
    died.extend(writes.die_at_each_of(of_a_tenant, "let go", known("NoGateways", false)));
    policy(&writes.scene, "Erase");
    died.extend(writes.die_at_each_of(of_a_tenant, "held again", known("NoGateways", true)));
    // There are no workers that could erase it.
    writes.scene.kubectl(&["delete", "tenant", "acme", "--wait=false"], "");
    died.extend(writes.die_at_each_of(of_a_tenant, "erasing", known("Erasing", true)));
    policy(&writes.scene, "Retain");
    let is_gone = |scene: &Scene| scene.names("tenants").is_empty();
    died.extend(writes.die_at_each_of(of_a_tenant, "gone", is_gone));
    assert_eq!(died, BTreeSet::from(["PATCH tenants/acme", "PATCH tenants/acme/status"].map(str::to_owned)));
    is_killed_at("a tenant is held, let go and erased", &died);
}

#[test]
fn an_operator_that_dies_while_a_stage_gets_smaller_has_done_no_harm() {
    let mut writes = Writes::new("writes-smaller");
    writes.scene.secret(Mongo::shared().unwrap().uri());
    writes.start();
    writes.scene.pipeline(&json!({"shards": 2}));
    writes.scene.condition("Ready False WorkersNotReady");
    let mut pods = Pods::default();
    for ordinal in 0..2 {
        pods.start(&writes.scene, "action", ordinal);
    }
    let both = BTreeSet::from(["orders-action-0", "orders-action-1"].map(str::to_owned));
    writes.scene.until("a plan of both", || {
        let owners = pods.planned("action");
        ((owners == both).then_some(()), format!("{owners:?}"))
    });
    writes.scene.operator.kill().unwrap();
    writes.scene.kubectl(&["scale", "stagescale/orders-action", "--replicas=1"], "");
    let is_smaller = |scene: &Scene| {
        let replicas = scene.get("sts", "orders-action")["spec"]["replicas"].clone();
        // Never before its shards have left.
        assert!(replicas == 2 || pods.planned("action") == BTreeSet::from(["orders-action-0".to_owned()]));
        replicas == 1
    };
    let died = writes.die_at_each_of("orders-action", "one worker less", is_smaller);
    assert!(died.contains("PATCH statefulsets/orders-action"), "{died:?}");
}

#[test]
fn an_operator_that_dies_while_pods_get_another_template_has_done_no_harm() {
    let mut writes = Writes::new("writes-roll");
    writes.scene.secret(Mongo::shared().unwrap().uri());
    writes.start();
    let stages = |action: Value| json!({"shards": 2, "stages": {"action": action}});
    writes.scene.pipeline(&stages(json!({"replicas": 2})));
    writes.scene.condition("Ready False WorkersNotReady");
    let pods = RefCell::new(Pods::default());
    let former = Roll { scene: &writes.scene, pods: &pods, stage: "action" }.begin();
    let roll = |scene: &Scene| Roll { scene, pods: &pods, stage: "action" }.look(&former);
    for stage in ["gateway", "unify", "reaction"] {
        Roll { scene: &writes.scene, pods: &pods, stage }.pretend();
    }
    writes.scene.until("a plan of both", || {
        let owners = pods.borrow().planned("action");
        ((owners.len() == 2).then_some(()), format!("{owners:?}"))
    });
    writes.scene.operator.kill().unwrap();
    let config = json!({"batch": {"max_time": "20ms"}});
    writes.scene.pipeline(&stages(json!({"replicas": 2, "config": config})));
    // Each step of the StatefulSet is another write; what else there is, other tests have.
    let named = |name: &str, body: &str| match name {
        "PATCH statefulsets/orders-action" => {
            let body: Value = serde_json::from_str(body).unwrap();
            let partition = body.pointer("/spec/updateStrategy/rollingUpdate/partition").cloned();
            Some(format!("{name} (partition {})", partition.unwrap_or_default()))
        }
        "POST configmaps" => Some(name.to_owned()),
        _ => name.starts_with("DELETE configmaps/orders-action").then(|| "DELETE configmaps".to_owned()),
    };
    let died = writes.die_at_each_named(named, "the newest template everywhere", |scene| roll(scene) == 2);
    let steps = [4096, 1, 0].map(|partition| format!("PATCH statefulsets/orders-action (partition {partition})"));
    let configurations = ["POST configmaps", "DELETE configmaps"].map(str::to_owned);
    println!("died before and after each of these: {died:#?}");
    assert_eq!(died, steps.into_iter().chain(configurations).collect());
    is_killed_at("Pods get another template", &died);
    let is_at_rest = |scene: &Scene| {
        roll(scene);
        Roll { scene, pods: &pods, stage: "action" }.is_at_rest() && pods.borrow().planned("action").len() == 2
    };
    let died = writes.die_at_each_named(named, "at rest", is_at_rest);
    assert!(died.contains("PATCH statefulsets/orders-action (partition 4096)"), "{died:?}");
}

#[test]
fn an_operator_that_dies_at_any_of_its_writes_about_an_erasure_has_done_no_harm() {
    let mut writes = Writes::new("writes-erasure");
    writes.scene.secret(Mongo::shared().unwrap().uri());
    writes.scene.keys(&json!({"acme": "acme-key"}));
    writes.start();
    writes.pipeline();
    writes.scene.condition("Ready False WorkersNotReady");
    writes.scene.tenant("acme", &["acme"], &json!({"deletionPolicy": "Erase"}));
    let mut pods = Pods::default();
    for stage in ["action", "reaction"] {
        pods.start(&writes.scene, stage, 0);
    }
    writes.scene.until("a plan, and a Tenant that is held", || {
        let owners = ["action", "reaction"].map(|stage| pods.planned(stage).len());
        let is_held = tenant_is(&writes.scene, "NoGateways", true);
        ((owners == [1, 1] && is_held).then_some(()), format!("{owners:?}, held: {is_held}"))
    });
    writes.scene.operator.kill().unwrap();
    writes.scene.kubectl(&["delete", "tenant", "acme", "--wait=false"], "");
    // Another message is another write.
    let named = |name: &str, body: &str| {
        let step = ["users and devices", "documents"].into_iter().find(|step| body.contains(step));
        name.contains("tenants/").then(|| format!("{name} {}", step.unwrap_or_default()))
    };
    let died = writes.die_at_each_named(named, "gone", |scene| scene.names("tenants").is_empty());
    println!("died before and after each of these: {died:#?}");
    assert!(died.contains("PATCH tenants/acme "), "{died:?}");
}

#[test]
fn what_cannot_be_read_or_watched_is_read_and_watched_again() {
    let mut writes = Writes::new("unread");
    // By each run another part, because after each failure in turn it waits twice as long.
    let parts = [
        (Fate::Refused(500), vec!["GET secrets/mongodb", "GET statefulsets", "GET pods"]),
        (Fate::Refused(429), vec!["GET serviceaccounts/orders", "GET statefulsets/orders-unify", "GET configmaps"]),
        (Fate::Unanswered, vec!["GET statefulsets", "GET stagescales/orders-action"]),
        (
            Fate::Refused(500),
            vec![
                "WATCH ingestionpipelines",
                "WATCH statefulsets",
                "WATCH stagescales",
                "WATCH secrets",
                "WATCH tenants",
                "GET ingestionpipelines",
                "GET secrets",
                "GET tenants",
            ],
        ),
    ];
    for (fate, names) in parts {
        let left = Arc::new(Mutex::new(BTreeSet::from_iter(names)));
        let (judged, seen) = (Arc::clone(&left), Arc::new(Mutex::new(BTreeSet::new())));
        let noted = Arc::clone(&seen);
        writes.proxy.go_on(|_, _| Fate::Done);
        writes.proxy.judge_reads(move |name| {
            noted.lock().unwrap().insert(name.to_owned());
            if judged.lock().unwrap().remove(name) { fate } else { Fate::Done }
        });
        writes.start();
        writes.pipeline();
        writes.scene.until("all stages, and every read asked for", || {
            let (sets, left) = (writes.scene.names("sts"), left.lock().unwrap().clone());
            let seen = seen.lock().unwrap().clone();
            (
                (sets.len() == 4 && left.is_empty()).then_some(()),
                format!("{fate:?}: {sets:?}, left {left:?} of {seen:?}"),
            )
        });
        writes.scene.condition("Degraded False AsExpected");
        // The watches have begun, too.
        writes
            .scene
            .patch(&json!({"observability": {"logFilter": format!("info,again{}=debug", seen.lock().unwrap().len())}}));
        writes.scene.condition("Degraded False AsExpected");
        writes.scene.delete();
        writes.scene.gone();
        writes.scene.operator.terminate().unwrap();
        clear(&writes.scene);
    }
}

/// Where an answer is said: a condition, and by which words.
const REFUSALS: [(u16, &str, &str); 3] = [
    (403, "Degraded True Forbidden", "StatefulSet orders-unify: the test refuses it"),
    (404, "Degraded True ObjectRefused", "StatefulSet orders-unify is refused: the test refuses it"),
    (422, "Degraded True ObjectRefused", "StatefulSet orders-unify is refused: the test refuses it"),
];

#[test]
fn what_the_api_server_refuses_is_said_and_done_when_it_does_not_any_more() {
    let mut writes = Writes::new("refused");
    writes.start();
    writes.pipeline();
    writes.scene.condition("Ready False WorkersNotReady");
    for (number, (code, condition, message)) in REFUSALS.into_iter().enumerate() {
        writes.proxy.go_on(move |name, _| match name {
            "PATCH statefulsets/orders-unify" => Fate::Refused(code),
            _ => Fate::Done,
        });
        let former = writes.scene.get("sts", "orders-reaction")["metadata"]["generation"].clone();
        writes.scene.patch(&json!({"observability": {"logFilter": format!("info,a{number}=debug")}}));
        let said = writes.scene.condition(condition);
        assert!(said.contains(message), "{code}: {said}");
        // It comes after the one that is refused.
        assert_ne!(writes.scene.get("sts", "orders-reaction")["metadata"]["generation"], former, "{code}");
        let reason = condition.rsplit(' ').next().unwrap();
        let counted = format!("kind=\"IngestionPipeline\",result=\"{reason}\"");
        let metrics = writes.scene.admin("/metrics");
        assert!(metrics.contains(&counted), "{counted} is not in\n{metrics}");
        // By itself: nothing of the pipeline changes any more.
        writes.proxy.go_on(|_, _| Fate::Done);
        writes.scene.condition("Degraded False AsExpected");
    }
}

#[test]
fn a_write_that_fails_once_or_is_never_answered_is_done_again() {
    let mut writes = Writes::new("failing");
    for fate in [Fate::Refused(409), Fate::Refused(429), Fate::Refused(500), Fate::Unanswered] {
        let mut left = BTreeSet::from([
            "PATCH statefulsets/orders-unify",
            "PATCH ingestionpipelines/orders/status",
            "PATCH ingestionpipelines/orders",
            "POST stagescales",
        ]);
        if fate == Fate::Unanswered {
            // Each is waited for until it is given up.
            left.retain(|name| name.contains("statefulsets"));
        }
        let left = Arc::new(Mutex::new(left));
        let judged = Arc::clone(&left);
        writes.proxy.go_on(move |name, _| if judged.lock().unwrap().remove(name) { fate } else { Fate::Done });
        writes.start();
        writes.pipeline();
        writes.scene.until("all stages", || {
            let sets = writes.scene.names("sts");
            ((sets.len() == 4).then_some(()), format!("{fate:?}: {sets:?}"))
        });
        writes.scene.condition("Degraded False AsExpected");
        writes.scene.finalizers(&[FINALIZER]);
        assert!(left.lock().unwrap().is_empty(), "{fate:?}: never written: {left:?}");
        writes.scene.delete();
        writes.scene.gone();
        writes.scene.operator.terminate().unwrap();
        clear(&writes.scene);
    }
}

#[test]
fn what_the_operator_has_said_counts_before_the_watch_has_heard_it() {
    let mut writes = Writes::new("stale");
    writes.start();
    writes.pipeline();
    assert_eq!(writes.scene.created().len(), specs("stale").len());
    // They become others' for a moment. Before the operator has said so, they are its own again, and it has heard that; its own word it does not hear.
    let (server, watches) = (writes.scene.server, writes.proxy.watches());
    let (say, said) = std::sync::mpsc::channel();
    let mut say = Some(say);
    writes.proxy.go_on(move |name, body| {
        if name != "PATCH ingestionpipelines/orders/status" || body.contains("createdTopics") {
            return Fate::Done;
        }
        if let Some(say) = say.take() {
            watches.heard();
            let managed = r#"{"spec":{"kafka":{"topics":"Managed"}}}"#;
            server.run(&["patch", "mip", "orders", "-n", "stale", "--type=merge", "-p", managed], "").unwrap();
            let mut heard = String::new();
            while !heard.contains(r#""topics":"Managed""#) {
                heard += &watches.heard();
                std::thread::yield_now();
            }
            watches.hold();
            say.send(()).unwrap();
        }
        Fate::Done
    });
    writes.scene.patch(&json!({"kafka": {"topics": "Existing"}}));
    said.recv_timeout(Duration::from_secs(60)).unwrap();
    // They were there when it looked again.
    assert_eq!(writes.scene.created(), BTreeSet::new());
    writes.proxy.watches().release();
    writes.scene.condition("Degraded False AsExpected");
}

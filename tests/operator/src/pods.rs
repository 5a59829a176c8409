//! With workers, as processes that are what Pods would be: plans, scales, tenants.

use millstream_tests::api_proxy::{ApiProxy, Fate};
use millstream_tests::scene::{Pods, Scene, start, start_from};
use millstream_tests::servers::Mongo;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Everything that the operator writes of a pipeline, and when.
struct Statuses {
    told: Receiver<(Instant, Value)>,
    _proxy: ApiProxy,
}

impl Statuses {
    /// The scene's operator is another one from here on, whose writes are looked at.
    fn of(scene: &mut Scene) -> Statuses {
        scene.operator.kill().unwrap();
        scene.kubectl(&["delete", &format!("lease/millstream-operator-{}", scene.namespace), "--ignore-not-found"], "");
        let proxy = ApiProxy::start(scene.server.kubeconfig()).unwrap();
        let (tell, told) = channel();
        proxy.go_on(move |name, body| {
            if name == "PATCH ingestionpipelines/orders/status" {
                let body: Value = serde_json::from_str(body).unwrap();
                let _ = tell.send((Instant::now(), body["status"].clone()));
            }
            Fate::Done
        });
        let home = scene.namespace.clone();
        (scene.operator, scene.admin) = start_from(proxy.kubeconfig(), &home, &home, &[]);
        Statuses { told, _proxy: proxy }
    }

    /// Counts, messages and ages alone are told once in 30 s at most.
    fn were_told_when_somebody_waited_or_seldom(&self) {
        let waited_for = |status: &Value| {
            let conditions = status["conditions"].as_array().unwrap().iter();
            let short = conditions.map(|it| json!([it["type"], it["status"], it["reason"], it["observedGeneration"]]));
            let is_known = status["freshness"].as_str().is_some_and(|it| it != "unknown");
            (short.collect::<Vec<_>>(), status["observedGeneration"].clone(), status["createdTopics"].clone(), is_known)
        };
        let told: Vec<(Instant, Value)> = self.told.try_iter().collect();
        assert!(told.len() > 5, "{told:?}");
        for pair in told.windows(2) {
            let [(before, old), (at, new)] = pair else { panic!("{pair:?}") };
            let is_due = at.duration_since(*before) >= Duration::from_secs(30);
            assert!(is_due || waited_for(old) != waited_for(new), "{old}\n{new}");
        }
    }
}

/// The operator writes a pipeline's status as it pleases: who changes an annotation at the same time does it again.
fn somebody_changes_the_pipeline_meanwhile(scene: &Scene) {
    let proxy = ApiProxy::start(scene.server.kubeconfig()).unwrap();
    let unpin = ["shards", "unpin", "orders", "action/0"];
    proxy.go_on(|_, _| Fate::Refused(409));
    let (said, code) = scene.plugin_at(proxy.kubeconfig(), &unpin);
    assert!(code == 2 && said.contains("somebody changes the pipeline all the time; try again"), "{said}");
    assert_eq!(proxy.go_on(|_, _| Fate::Done).len(), 20);
    let mut refused = 0;
    proxy.go_on(move |_, _| {
        refused += 1;
        if refused < 20 { Fate::Refused(409) } else { Fate::Done }
    });
    let (said, code) = scene.plugin_at(proxy.kubeconfig(), &unpin);
    assert!(code == 0 && said == "action/0 is the operator's to place again\n", "{said}");
}

fn a_person_looks_and_moves_a_shard(scene: &Scene) {
    let (said, code) = scene.plugin(&["status", "orders"]);
    assert!(
        code == 0
            && said.contains("orders: ready, 12/12 shards have an owner")
            && said.contains("standby orders-action-"),
        "{said}"
    );
    let (json, _) = scene.plugin(&["status", "orders", "--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    let rows = json[0]["shards"]["shards"].as_array().unwrap();
    let is_first = |row: &&Value| row["stage"] == "action" && row["shard"] == 0;
    let owner = rows.iter().find(is_first).unwrap()["owner"].as_str().unwrap();
    let other = if owner == "orders-action-0" { "orders-action-1" } else { "orders-action-0" };
    let (said, code) = scene.plugin(&["shards", "move", "orders", "action/0", "--to", other]);
    assert!(code == 0 && said.ends_with(&format!("action/0 is {other}'s\n")), "{said}");
    let (said, code) = scene.plugin(&["shards", "move", "orders", "action/0", "--to", "orders-action-7"]);
    assert!(code == 2 && said.contains("no worker of action that is alive; there are orders-action-0"), "{said}");
    somebody_changes_the_pipeline_meanwhile(scene);
    assert_eq!(
        scene.get("mip", "orders").pointer("/metadata/annotations/ingestion.millstream.dev~1pinned-shards"),
        None
    );
    assert_eq!(
        scene.plugin(&["pause", "orders"]),
        ("waiting for the operator to notice\norders is paused\n".to_owned(), 0)
    );
    scene.condition("Paused True PausedBySpec");
    assert_eq!(scene.plugin(&["resume", "orders"]).1, 0);
    scene.condition("Paused False NotPaused");
    let metrics = scene.admin("/metrics");
    let namespace = &scene.namespace;
    for line in [
        "millstream_operator_leader 1".to_owned(),
        format!("millstream_pipeline_condition{{namespace=\"{namespace}\",pipeline=\"orders\",condition=\"Ready\"}} 1"),
        format!(
            "millstream_pipeline_shards{{namespace=\"{namespace}\",pipeline=\"orders\",stage=\"unify\",state=\"owned\"}} 4"
        ),
    ] {
        assert!(metrics.contains(&line), "{line} is not in\n{metrics}");
    }
    let reasons = scene.kubectl(&["get", "events.events.k8s.io", "-o", "jsonpath={.items[*].reason}"], "");
    for reason in ["WorkersReady", "PausedBySpec", "NotPaused"] {
        assert!(reasons.contains(reason), "{reason} is not among {reasons}");
    }
}

#[test]
fn workers_get_their_plan_and_a_stage_gets_smaller_when_its_shards_have_left() {
    let mut scene = Scene::new("planned");
    let statuses = Statuses::of(&mut scene);
    scene.secret(Mongo::shared().unwrap().uri());
    scene.pipeline(&json!({"shards": 4, "stages": {"gateway": {"replicas": 1}}}));
    scene.condition("Ready False WorkersNotReady");
    let mut pods = Pods::default();
    for stage in ["unify", "action", "reaction"] {
        pods.start(&scene, stage, 0);
        pods.start(&scene, stage, 1);
    }
    scene.all_ready();
    scene.condition("Ready True WorkersReady");
    let status = scene.get("mip", "orders")["status"].clone();
    assert_eq!(status["shards"], json!("12/12"), "{status}");
    scene.until("a standby of each shard", || {
        let status = scene.get("mip", "orders")["status"].clone();
        let stages = status["stages"].as_array().cloned().unwrap_or_default();
        let is_followed = |stage: &Value| stage["shardsWithoutStandby"] == 0;
        (stages.iter().all(is_followed).then_some(()), status.to_string())
    });
    scene.condition("Progressing False NothingToDo");
    a_person_looks_and_moves_a_shard(&scene);
    // Fewer: the last one's shards leave, and then it goes.
    scene.kubectl(&["scale", "stagescale/orders-action", "--replicas=1"], "");
    scene.until("one worker less", || {
        let replicas = scene.get("sts", "orders-action")["spec"]["replicas"].clone();
        ((replicas == 1).then_some(()), replicas.to_string())
    });
    assert_eq!(pods.planned("action"), BTreeSet::from(["orders-action-0".to_owned()]));
    pods.kill("orders-action-1");
    scene.all_ready();
    scene.condition("Ready True WorkersReady");
    // One that dies is replaced in the plan, and missed until it is back.
    pods.kill("orders-unify-0");
    scene.until("a plan without it", || {
        let owners = pods.planned("unify");
        ((owners == BTreeSet::from(["orders-unify-1".to_owned()])).then_some(()), format!("{owners:?}"))
    });
    pods.start(&scene, "unify", 0);
    scene.until("a plan with it", || {
        let owners = pods.planned("unify");
        ((owners.len() == 2).then_some(()), format!("{owners:?}"))
    });
    statuses.were_told_when_somebody_waited_or_seldom();
}

#[test]
fn tenants_come_change_and_go_without_a_restart() {
    let scene = Scene::with_secret("tenants");
    let tenant = |name: &str, keys: &[&str]| scene.tenant(name, keys, &json!({}));
    let keys = |data: Value| scene.keys(&data);
    let effective = |name: &str, expected: &str| {
        scene.until(expected, || {
            let tenant = scene.get("tenant", name);
            let it = tenant["status"]["conditions"][0].clone();
            let said =
                format!("{} {}", it["status"].as_str().unwrap_or_default(), it["reason"].as_str().unwrap_or_default());
            let is_current = it["observedGeneration"] == tenant["metadata"]["generation"];
            ((is_current && said == expected).then(|| it["message"].to_string()), it.to_string())
        })
    };
    keys(json!({"one": "first-key", "two": "second-key"}));
    tenant("acme", &["one"]);
    assert!(effective("acme", "False PipelineMissing").contains("there is no IngestionPipeline orders"));
    scene.pipeline(&json!({}));
    effective("acme", "False NoGateways");
    let mut pods = Pods::default();
    pods.start(&scene, "gateway", 0);
    pods.start(&scene, "gateway", 1);
    let answers = |pods: &Pods, key: &str, expected: u16| {
        for gateway in ["orders-gateway-0", "orders-gateway-1"] {
            scene.until("an answer", || {
                let answer = pods.answer(gateway, key);
                (answer.as_ref().ok().filter(|code| **code == expected).map(drop), format!("{gateway}: {answer:?}"))
            });
        }
    };
    effective("acme", "True Known");
    // What is known is in force.
    for gateway in ["orders-gateway-0", "orders-gateway-1"] {
        scene.until("an open port", || {
            let answer = pods.answer(gateway, "first-key");
            (answer.as_ref().ok().map(|code| assert_eq!(*code, 200)), format!("{answer:?}"))
        });
        assert_eq!(pods.answer(gateway, "second-key").unwrap(), 401);
    }
    // One key is replaced by another, with both for a while.
    tenant("acme", &["one", "two"]);
    effective("acme", "True Known");
    answers(&pods, "first-key", 200);
    answers(&pods, "second-key", 200);
    tenant("acme", &["two"]);
    answers(&pods, "first-key", 401);
    answers(&pods, "second-key", 200);
    // The Secret changes, and goes: whoever had a key keeps it.
    keys(json!({"two": "third-key"}));
    answers(&pods, "second-key", 401);
    answers(&pods, "third-key", 200);
    // Each of two gateways takes half of a rate, as the operator has counted them: of ten seconds' worth five records at once, and what flows in meanwhile.
    scene.tenant("acme", &["two"], &json!({"rate": {"recordsPerSecond": 1}}));
    effective("acme", "True Known");
    let began = Instant::now();
    let let_in = (0..20).take_while(|_| pods.answer("orders-gateway-0", "third-key").unwrap() == 200).count();
    let flown = began.elapsed().as_secs() as usize;
    assert!((5..=6 + flown).contains(&let_in), "{let_in} in {flown} s");
    assert_eq!(pods.answer("orders-gateway-0", "third-key").unwrap(), 429);
    tenant("acme", &["two"]);
    answers(&pods, "third-key", 200);
    // Whoever judges records must go by it, too.
    pods.start(&scene, "unify", 0);
    scene.until("shards of unify", || {
        let shown = scene.admin(&format!("/v1/pipelines/{}/orders", scene.namespace));
        (shown.contains("\"owner\":\"orders-unify-0\"").then_some(()), shown)
    });
    pods.running["orders-unify-0"].signal("STOP").unwrap();
    scene.tenant("acme", &["two"], &json!({"identity": {"forbiddenValues": ["walk-in"]}}));
    // It is counted who goes by it, and one who does not is named: at first perhaps another one.
    let waits = "2 of 11 gateways, workers of unify and shards of theirs go by it; the first that does not: ";
    scene.until("the one who is waited for", || {
        let message = effective("acme", "False Waiting");
        (message.contains(&format!("{waits}worker orders-unify-0")).then_some(()), message)
    });
    pods.running["orders-unify-0"].signal("CONT").unwrap();
    effective("acme", "True Known");
    tenant("globex", &["two"]);
    assert!(effective("globex", "False KeyTaken").contains("tenant acme's"));
    scene.kubectl(&["delete", "secret", "keys"], "");
    effective("acme", "False SecretMissing");
    assert_eq!(pods.answer("orders-gateway-0", "third-key").unwrap(), 200);
    let version = || scene.get("tenant", "acme")["metadata"]["resourceVersion"].clone();
    let before = version();
    // A gateway that starts knows who may send before it opens its port.
    pods.kill("orders-gateway-1");
    pods.start(&scene, "gateway", 1);
    scene.until("an open port", || {
        let answer = pods.answer("orders-gateway-1", "third-key");
        (answer.as_ref().ok().map(|code| assert_eq!(*code, 200)), format!("{answer:?}"))
    });
    assert_eq!(version(), before, "a tenant's status was written, and nothing of it has changed");
    scene.kubectl(&["delete", "tenant", "acme", "--timeout=10s"], "");
    answers(&pods, "third-key", 401);
}

#[test]
fn a_tenant_whose_pipeline_has_gone_says_so() {
    let scene = Scene::with_secret("orphaned");
    scene.keys(&json!({"one": "the-key"}));
    // With a finalizer: who asks while it is held hears of a pipeline that is there.
    scene.pipeline(&json!({"shards": 1, "topicDeletionPolicy": "Delete", "stages": {"gateway": {"replicas": 1}}}));
    scene.tenant("acme", &["one"], &json!({}));
    let said = |expected: &str| {
        scene.until(expected, || {
            let it = scene.get("tenant", "acme")["status"]["conditions"][0].clone();
            let text = |field: &str| it[field].as_str().unwrap_or_default().to_owned();
            ((format!("{} {}", text("status"), text("reason")) == expected).then_some(()), it.to_string())
        });
    };
    said("False NoGateways");
    let mut pods = Pods::default();
    pods.start(&scene, "gateway", 0);
    said("True Known");
    scene.kubectl(&["delete", "mip", "orders", "--timeout=60s"], "");
    said("False PipelineMissing");
}

#[test]
fn an_operator_that_starts_while_a_specification_has_problems_revokes_keys_and_replaces_who_dies() {
    let scene = Scene::new("problems");
    scene.secret(Mongo::shared().unwrap().uri());
    scene.keys(&json!({"one": "the-key", "two": "the-other-key"}));
    scene.pipeline(&json!({"shards": 2, "stages": {"gateway": {"replicas": 1}}}));
    scene.tenant("acme", &["one"], &json!({}));
    scene.tenant("globex", &["two"], &json!({}));
    scene.condition("Ready False WorkersNotReady");
    let mut pods = Pods::default();
    for (stage, ordinal) in [("gateway", 0), ("action", 0), ("action", 1)] {
        pods.start(&scene, stage, ordinal);
    }
    let planned = |pods: &Pods, expected: &[&str]| {
        scene.until("owners", || {
            let owners = pods.planned("action");
            (owners.iter().eq(expected).then_some(()), format!("{owners:?}"))
        });
    };
    let answers = |pods: &Pods, key: &str, expected: u16| {
        scene.until("an answer", || {
            let answer = pods.answer("orders-gateway-0", key);
            (answer.as_ref().ok().filter(|code| **code == expected).map(drop), format!("{answer:?}"))
        });
    };
    planned(&pods, &["orders-action-0", "orders-action-1"]);
    answers(&pods, "the-key", 200);
    answers(&pods, "the-other-key", 200);
    scene.operator.signal("KILL").unwrap();
    scene.patch(
        &json!({"image": "registry.example.com/millstream:0.2.0", "stages": {"action": {"config": {"listen": "x"}}}}),
    );
    scene.kubectl(&["delete", "secret", "mongodb"], "");
    scene.kubectl(&["delete", "tenant", "acme", "--timeout=10s"], "");
    pods.kill("orders-action-1");
    let (operator, _) = start(scene.server, &scene.namespace);
    answers(&pods, "the-key", 401);
    planned(&pods, &["orders-action-0"]);
    assert_eq!(pods.answer("orders-gateway-0", "the-other-key").unwrap(), 200);
    let message = scene.condition("Degraded True InvalidSpec");
    assert!(message.contains("config.listen") && message.contains("Secret mongodb"), "{message}");
    let image = scene.get("sts", "orders-unify").pointer("/spec/template/spec/containers/0/image").cloned();
    assert_eq!(image, Some(json!("registry.example.com/millstream:0.1.0")), "nothing of it is applied");
    drop(operator);
}

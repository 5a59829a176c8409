//! What becomes of a pipeline's objects, and what is said of it.

use k8s_openapi::jiff::Timestamp;
use millstream_shard::log::{Log as _, TopicSpec};
use millstream_stores::kafka::{KafkaConfig, KafkaLog};
use millstream_tests::pipeline;
use millstream_tests::scene::{Scene, make, specs, start};
use millstream_tests::servers::Kafka;
use millstream_tests::servers::acls::Acl;
use serde_json::{Value, json};

#[test]
fn a_pipeline_is_brought_about_and_its_state_is_told() {
    let scene = Scene::with_secret("brought-about");
    scene.pipeline(&json!({}));
    let message = scene.condition("Ready False WorkersNotReady");
    assert!(message.contains("unify: 0 of 2 workers are ready"), "{message}");
    assert_eq!(scene.names("sts"), ["orders-action", "orders-gateway", "orders-reaction", "orders-unify"]);
    assert_eq!(scene.names("mss"), scene.names("sts"));
    assert_eq!(scene.names("netpol"), ["orders", "orders-gateway", "orders-reaction"]);
    assert_eq!(scene.get("netpol", "orders-reaction").pointer("/spec/egress/0/ports/0/port"), Some(&json!(27018)));
    scene.all_ready();
    let message = scene.condition("Ready False ShardsWithoutOwner");
    assert!(message.contains("24 shards have no owner"), "{message}");
    scene.condition("Degraded False AsExpected");
    let scale = scene.get("mss", "orders-unify");
    assert_eq!((&scale["status"]["replicas"], &scale["status"]["readyReplicas"]), (&json!(2), &json!(2)));
    let table = scene.kubectl(&["get", "mip"], "");
    assert!(table.lines().any(|line| line.split_whitespace().take(2).eq(["orders", "False"])), "{table}");
    // Nothing waits for anything when it goes.
    scene.kubectl(&["delete", "mip", "orders", "--timeout=10s"], "");
}

#[test]
fn what_the_user_has_to_mend_is_named_and_nothing_is_changed_before() {
    let scene = Scene::new("mended");
    scene.pipeline(&json!({"stages": {"action": {"config": {"listen": "x"}}}}));
    let message = scene.condition("Degraded True InvalidSpec");
    assert!(
        message.contains("spec.stages.action.config.listen: ") && message.contains("Secret mongodb: is not there"),
        "{message}"
    );
    assert_eq!(scene.names("sts,cm,svc").iter().filter(|name| name.starts_with("orders")).count(), 0);
    scene.pipeline(&json!({}));
    let message = scene.condition("Ready False SecretMissing");
    assert!(message.contains("create it in namespace mended, with the key `uri`"), "{message}");
    // It goes on by itself.
    scene.secret("mongodb://db/");
    scene.condition("Degraded False AsExpected");
    // The API server's own word on what it refuses.
    scene.condition("Ready False WorkersNotReady");
    let (image, former) = ("registry.example.com/millstream:0.2.0", scene.get("sts", "orders-unify"));
    let wrong = json!({"podTemplate": {"spec": {"restartPolicy": "Never"}}});
    scene.pipeline(&json!({"image": image, "stages": {"action": wrong}}));
    let message = scene.condition("Degraded True ObjectRefused");
    assert!(message.contains("StatefulSet orders-action is refused") && message.contains("restartPolicy"), "{message}");
    // Nor is the rest of that specification applied, though nothing is wrong with it.
    let of_unify = |scene: &Scene| scene.get("sts", "orders-unify")["spec"].clone();
    assert_eq!(of_unify(&scene), former["spec"]);
    let right = json!({"podTemplate": {"spec": {"priorityClassName": ""}}});
    scene.pipeline(&json!({"image": image, "stages": {"action": right}}));
    scene.condition("Degraded False AsExpected");
    let applied = of_unify(&scene).pointer("/template/spec/containers/0/image").cloned();
    assert_eq!(applied, Some(json!(image)));
}

#[test]
fn a_stage_follows_its_scale_and_what_somebody_changed_is_set_back() {
    let scene = Scene::with_secret("scaled");
    scene.pipeline(&json!({}));
    scene.condition("Ready False WorkersNotReady");
    let replicas = |scene: &Scene, expected: i64| {
        scene.until("replicas", || {
            let seen = scene.get("sts", "orders-action")["spec"]["replicas"].as_i64();
            (seen.filter(|seen| *seen == expected), format!("{seen:?}"))
        })
    };
    scene.kubectl(&["scale", "stagescale/orders-action", "--replicas=5"], "");
    replicas(&scene, 5);
    scene.kubectl(&["scale", "sts/orders-action", "--replicas=1"], "");
    replicas(&scene, 5);
    // Its scale goes: it is made again as the stage is, and not as the resource said at first.
    scene.kubectl(&["delete", "stagescale", "orders-action"], "");
    scene.until("another scale", || {
        let scales = scene.kubectl(&["get", "stagescales", "-o", "json"], "");
        let scales: Value = serde_json::from_str(&scales).unwrap();
        let items = scales["items"].as_array().unwrap();
        let it = items.iter().find(|it| it["metadata"]["name"] == "orders-action").cloned();
        (it.as_ref().map(|it| assert_eq!(it["spec"]["replicas"], 5)), format!("{it:?}"))
    });
    replicas(&scene, 5);
    // What is not ours stays.
    scene.kubectl(&["annotate", "sts", "orders-action", "example.com/mesh=on"], "");
    scene.pipeline(&json!({"image": "registry.example.com/millstream:0.2.0"}));
    let set = scene.until("the new image", || {
        let set = scene.get("sts", "orders-action");
        let image = set.pointer("/spec/template/spec/containers/0/image").cloned();
        (image.filter(|image| image == "registry.example.com/millstream:0.2.0").map(|_| set.clone()), set.to_string())
    });
    assert_eq!(set["metadata"]["annotations"]["example.com/mesh"], json!("on"));
    assert_eq!(
        (&set["spec"]["replicas"], set.pointer("/spec/updateStrategy/rollingUpdate/partition")),
        (&json!(5), Some(&json!(4096)))
    );
}

#[test]
fn a_new_configuration_replaces_the_old_one_and_a_new_secret_the_pods() {
    let scene = Scene::with_secret("replaced");
    scene.pipeline(&json!({}));
    scene.condition("Ready False WorkersNotReady");
    let named = |scene: &Scene, stage: &str| {
        let set = scene.get("sts", &format!("orders-{stage}"));
        let volumes = set.pointer("/spec/template/spec/volumes").and_then(Value::as_array).cloned().unwrap_or_default();
        let hash = set.pointer("/spec/template/metadata/annotations").cloned().unwrap_or_default();
        let name = volumes.iter().find_map(|volume| volume.pointer("/configMap/name")?.as_str().map(str::to_owned));
        (name.unwrap_or_default(), hash)
    };
    let (before, unify) = (named(&scene, "action"), named(&scene, "unify"));
    scene.pipeline(&json!({"stages": {"action": {"config": {"batch": {"max_time": "20ms"}}}}}));
    let after = scene.until("another configuration", || {
        let after = named(&scene, "action");
        (Some(after.clone()).filter(|after| after.0 != before.0), format!("{after:?}"))
    });
    // No revision names the former one: nobody is there who makes revisions.
    scene.until("the former configuration gone", || {
        let names = scene.names("cm");
        let is_gone = names.contains(&after.0) && !names.contains(&before.0);
        (is_gone.then_some(()), format!("{names:?}"))
    });
    assert_eq!(named(&scene, "unify"), unify);
    let reaction = named(&scene, "reaction");
    scene.secret("mongodb://other:27018/");
    scene.until("another hash", || {
        let now = named(&scene, "reaction");
        ((now.0 == reaction.0 && now.1 != reaction.1).then_some(()), format!("{now:?}"))
    });
    assert_eq!(named(&scene, "unify"), unify);
}

#[test]
fn a_paused_pipeline_is_observed_and_left_alone() {
    let scene = Scene::with_secret("paused");
    scene.pipeline(&json!({}));
    scene.condition("Ready False WorkersNotReady");
    scene.pipeline(&json!({"paused": true, "image": "registry.example.com/millstream:0.2.0"}));
    scene.condition("Paused True PausedBySpec");
    let image =
        |scene: &Scene| scene.get("sts", "orders-unify").pointer("/spec/template/spec/containers/0/image").cloned();
    assert_eq!(image(&scene), Some(json!("registry.example.com/millstream:0.1.0")));
    scene.all_ready();
    scene.condition("Ready False ShardsWithoutOwner");
    scene.pipeline(&json!({"image": "registry.example.com/millstream:0.2.0"}));
    scene.condition("Paused False NotPaused");
    assert_eq!(image(&scene), Some(json!("registry.example.com/millstream:0.2.0")));
}

#[test]
fn somebody_elses_object_of_the_name_is_not_taken() {
    let scene = Scene::with_secret("taken");
    scene.apply(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "orders-gateway"}, "spec": {"ports": [{"port": 1}]}}));
    scene.pipeline(&json!({}));
    let message = scene.condition("Degraded True ObjectRefused");
    assert!(
        message.contains("Service orders-gateway") && message.contains("does not belong to the pipeline"),
        "{message}"
    );
    assert_eq!(scene.get("svc", "orders-gateway").pointer("/spec/ports/0/port"), Some(&json!(1)));
}

#[test]
fn an_operator_that_starts_again_writes_nothing() {
    let mut scene = Scene::with_secret("restarted");
    scene.pipeline(&json!({}));
    scene.condition("Ready False WorkersNotReady");
    scene.all_ready();
    scene.condition("Ready False ShardsWithoutOwner");
    scene.operator.signal("TERM").unwrap();
    assert_eq!(scene.operator.ended(pipeline::DEADLINE).unwrap(), Some(0));
    let before = scene.versions();
    (scene.operator, scene.admin) = start(scene.server, &scene.namespace);
    // It has looked at all when it has seen to this, which it was told of last.
    scene.kubectl(&["label", "secret", "mongodb", "seen=yes"], "");
    scene.pipeline(&json!({"standbys": 2}));
    scene.condition("Ready False ShardsWithoutOwner");
    let of_others = |versions: &str| {
        versions.lines().filter(|line| !line.starts_with("IngestionPipeline")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(of_others(&scene.versions()), of_others(&before));
}

#[test]
fn one_operator_leads_and_another_takes_over_when_it_is_gone() {
    let mut scene = Scene::with_secret("led");
    let holder = |scene: &Scene, not: &str| {
        scene.until("a leader", || {
            let leases = scene.kubectl(&["get", "leases", "-o", "jsonpath={.items[*].spec.holderIdentity}"], "");
            ((!leases.is_empty() && leases != not).then(|| leases.clone()), leases)
        })
    };
    let first = holder(&scene, "");
    let (second_operator, second_admin) = start(scene.server, &scene.namespace);
    scene.pipeline(&json!({}));
    scene.condition("Ready False WorkersNotReady");
    assert!(!second_operator.log().contains("\"leading\""), "{}", second_operator.log());
    let answer = reqwest::blocking::get(format!("http://127.0.0.1:{second_admin}/v1/pipelines")).unwrap();
    assert_eq!(answer.status(), 503);
    assert!(scene.admin("/v1/pipelines").contains("\"name\":\"orders\""), "{}", scene.admin("/v1/pipelines"));
    // One that hangs is taken for gone, and ends when it goes on.
    scene.operator.signal("STOP").unwrap();
    let second = holder(&scene, &first);
    scene.pipeline(&json!({"standbys": 2}));
    scene.condition("Ready False WorkersNotReady");
    scene.operator.signal("CONT").unwrap();
    assert_eq!(scene.operator.ended(pipeline::DEADLINE).unwrap(), Some(3), "{}", scene.operator.log());
    assert_eq!(holder(&scene, &first), second);
    // One that is told to end gives the lease away.
    let (third_operator, _) = start(scene.server, &scene.namespace);
    second_operator.signal("TERM").unwrap();
    holder(&scene, &second);
    drop(third_operator);
}

/// A time that a Lease says.
fn time_of(scene: &Scene, field: &str) -> Timestamp {
    let leases = scene.kubectl(&["get", "leases", "-o", "json"], "");
    let leases: Value = serde_json::from_str(&leases).unwrap();
    leases["items"][0]["spec"][field].as_str().unwrap().parse().unwrap()
}

#[test]
fn another_operator_leads_within_five_seconds_after_the_leader_was_killed() {
    let scene = Scene::with_secret("killed");
    let leading = |log: String| log.contains("\"leading\"").then_some(());
    scene.until("a leader", || (leading(scene.operator.log()), scene.operator.log()));
    let (second, _) = start(scene.server, &scene.namespace);
    scene.until("one who waits", || {
        let log = second.log();
        (log.contains("waiting to lead").then_some(()), log)
    });
    // It has seen the Lease.
    let seen = time_of(&scene, "renewTime");
    scene.until("a renewal", || ((time_of(&scene, "renewTime") > seen).then_some(()), seen.to_string()));
    scene.operator.signal("KILL").unwrap();
    let killed = Timestamp::now();
    scene.until("another leader", || (leading(second.log()), second.log()));
    // By the Lease itself, on the clock of this machine: how long a look at it takes here is no matter.
    let took = time_of(&scene, "acquireTime").duration_since(killed).as_secs_f64();
    println!("another operator led {took:.2} s after the leader was killed");
    assert!((0.0..5.0).contains(&took), "{took} s");
}

#[test]
fn a_topic_that_is_missing_or_not_as_it_must_be_is_named_when_others_make_topics() {
    let scene = Scene::with_secret("existing");
    let all = specs("existing");
    let (rejects, others): (Vec<TopicSpec>, Vec<TopicSpec>) =
        all.into_iter().partition(|topic| topic.name == "existing.orders.rejects");
    make(&others);
    let kafka =
        json!({"bootstrapServers": [Kafka::shared().unwrap().bootstrap()], "replication": 1, "topics": "Existing"});
    scene.pipeline(&json!({"shards": 2, "kafka": kafka}));
    let message = scene.condition("Degraded True TopicMismatch");
    let names =
        |message: &str| message.contains("existing.orders.rejects") && !message.contains("existing.orders.events");
    assert!(names(&message) && message.contains("does not exist"), "{message}");
    make(&[TopicSpec { partitions: 3, ..rejects[0].clone() }]);
    scene.until("the partitions named", || {
        let message = scene.condition("Degraded True TopicMismatch");
        ((names(&message) && message.contains("3 partitions, not 2")).then_some(()), message)
    });
    KafkaLog::new(Kafka::shared().unwrap().config()).unwrap().delete_topics(&[rejects[0].name.clone()]).unwrap();
    make(&rejects);
    scene.condition("Degraded False AsExpected");
}

#[test]
fn a_setting_that_an_existing_topic_must_not_have_is_named() {
    let scene = Scene::with_secret("settings");
    let is_it = |topic: &TopicSpec| topic.name == "settings.orders.ingress";
    let (ingress, others): (Vec<TopicSpec>, Vec<TopicSpec>) = specs("settings").into_iter().partition(is_it);
    assert!(ingress[0].append_time, "the gateway's records have the time of the log");
    make(&others);
    make(&[TopicSpec { append_time: false, ..ingress[0].clone() }]);
    let kafka =
        json!({"bootstrapServers": [Kafka::shared().unwrap().bootstrap()], "replication": 1, "topics": "Existing"});
    scene.pipeline(&json!({"shards": 2, "kafka": kafka}));
    let message = scene.condition("Degraded True TopicMismatch");
    let words = "settings.orders.ingress: it exists with message.timestamp.type CreateTime, not LogAppendTime";
    assert!(message.contains(words) && !message.contains("settings.orders.events"), "{message}");
    KafkaLog::new(Kafka::shared().unwrap().config()).unwrap().delete_topics(&[ingress[0].name.clone()]).unwrap();
    make(&ingress);
    scene.condition("Degraded False AsExpected");
}

#[test]
fn a_permission_that_is_missing_for_existing_topics_is_named() {
    let (user, maker) = ("existing", "maker");
    let kafka = Kafka::start_authorizing(&[user, maker]).unwrap();
    let acl = |(kind, operation): (&str, &str)| Acl {
        kind: kind.to_owned(),
        prefix: "permissions.orders.".to_owned(),
        operation: operation.to_owned(),
    };
    kafka.allow(maker, &["Create", "DescribeConfigs", "Read"].map(|operation| acl(("Topic", operation)))).unwrap();
    let config = KafkaConfig { replication_factor: 1, security: kafka.security_of(maker), ..kafka.config() };
    KafkaLog::new(config).unwrap().create_topics(&specs("permissions")).unwrap();
    let others = [("Topic", "Read"), ("Topic", "Write"), ("TransactionalId", "Write")];
    kafka.allow(user, &others.map(acl)).unwrap();
    let scene = Scene::with_secret("permissions");
    let ca = std::fs::read_to_string(&kafka.security()["ssl.ca.location"]).unwrap();
    scene.apply(&json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "kafka"},
        "stringData": {"ca.crt": ca, "password": user},
    }));
    let of_secret = |key: &str| json!({"name": "kafka", "key": key});
    let sasl = json!({"mechanism": "PLAIN", "username": user, "password": of_secret("password")});
    let spec = json!({
        "bootstrapServers": [kafka.bootstrap()], "replication": 1, "topics": "Existing",
        "tls": {"ca": of_secret("ca.crt")}, "sasl": sasl,
    });
    scene.pipeline(&json!({"shards": 2, "kafka": spec}));
    let message = scene.condition("Degraded True LogUnavailable");
    assert!(
        message.contains("cannot describe topic permissions.orders.") && message.contains("allow DescribeConfigs"),
        "{message}"
    );
    kafka.allow(user, &[acl(("Topic", "DescribeConfigs"))]).unwrap();
    scene.condition("Degraded False AsExpected");
}

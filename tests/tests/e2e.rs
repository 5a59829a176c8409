//! `make e2e`: one pipeline on a real cluster of three nodes, under load all the time, through everything that happens to clusters; on demand, because it takes half an hour.
//!
//! After each scenario the pipeline must be ready again, and at the end what came out is compared with the generator's truth. How fresh events were meanwhile is told beside how fresh they are at rest
//! in the same run; with `MILLSTREAM_E2E_REPORT` the report is written there. `make e2e ONLY=words` goes through those alone whose names have these words, and writes none.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use millstream_shard::topics::Topics;
use millstream_tests::freshness::{Freshness, Quantiles};
use millstream_tests::load::{Sending, check_against_ingress_at, generated};
use millstream_tests::nodes::{
    Undo, all_owned, cordon, disowned, drain, keep_apart, leader, node_of, owner, pods_on, restarted_alone, restarts,
    with_owner_on,
};
use millstream_tests::pipeline::{until, until_within};
use millstream_tests::servers::Inside;
use millstream_tests::shop::{SHARDS, SYSTEM, Shop, in_cluster};
use serde_json::{Value, json};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

const KEY: &str = "key-of-fresh";

/// Whatever lasts, lasts so long.
fn linger(seconds: u64) {
    std::thread::sleep(Duration::from_secs(seconds));
}

fn tenant(shop: &Shop, name: &str, keys: &[(&str, &str)]) {
    let data: serde_json::Map<String, Value> =
        keys.iter().map(|(field, key)| ((*field).to_owned(), (*key).into())).collect();
    let of: Vec<Value> = keys.iter().map(|(field, _)| json!({"name": name, "key": field})).collect();
    let labels = json!({"ingestion.millstream.dev/api-keys": "true"});
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "labels": labels}, "stringData": data},
        {"apiVersion": "ingestion.millstream.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": name}, "spec": {"pipelineRef": {"name": "orders"}, "apiKeys": of}},
    ]});
    shop.kubectl
        .run(&["apply", "--server-side", "--force-conflicts", "-n", "shop", "-f", "-"], &list.to_string())
        .unwrap();
    until("a tenant that is effective", || {
        let tenant = shop.get("tenant", name);
        let conditions = tenant["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let is_it = |it: &Value| it["status"] == "True" && it["observedGeneration"] == tenant["metadata"]["generation"];
        Ok(conditions.iter().any(is_it).then_some(()))
    })
    .unwrap();
}

/// What the gateway answers to a key.
fn answer(shop: &Shop, key: &str) -> u16 {
    let body =
        json!({"batch": [{"type": "event", "message_id": "once", "event": "Opened", "identifiers": {"user_id": "u"}}]});
    let request = reqwest::blocking::Client::new().post(format!("{}/v1/batch", shop.url())).bearer_auth(key);
    request.header("content-type", "application/json").body(body.to_string()).send().unwrap().status().as_u16()
}

/// Waits until the gateways answer so.
fn answers(shop: &Shop, key: &str, expected: u16) {
    until("the answer", || Ok((answer(shop, key) == expected).then_some(()))).unwrap();
}

/// The users that the load is about, and the time over which it would be sent: longer than all scenarios may take, and than some of them. At least a sixth is left for the end, when what is left goes at once.
const LOAD: [(u32, Duration); 2] = [(660, Duration::from_secs(2_400)), (220, Duration::from_secs(800))];

type Scenario = (&'static str, fn(&mut Shop, &Inside, &Freshness));

const SCENARIOS: [Scenario; 24] = [
    ("at rest", |_, _, _| linger(30)),
    ("a setting that is refused", |shop, _, _| {
        let before = shop.pods();
        shop.apply(&json!({"stages": {"action": {"config": {"kafka": {}}}}}));
        until("the condition", || {
            let status = shop.get("mip", "orders")["status"].to_string();
            Ok((status.contains("InvalidSpec") && status.contains("spec.stages.action.config.kafka")).then_some(()))
        })
        .unwrap();
        assert_eq!(shop.pods(), before, "Pods were replaced");
        shop.apply(&json!({}));
    }),
    ("a setting that no worker starts with, and back", |shop, _, _| {
        shop.apply(&json!({"stages": {"action": {"config": {"batch": {"max_time": "0ms"}}}}}));
        until("a Pod that does not start", || {
            let unready = shop.unready(["orders-action-0".to_owned(), "orders-action-1".to_owned()].iter()).len();
            Ok((unready == 1).then_some(()))
        })
        .unwrap();
        linger(10);
        all_owned(shop);
        shop.apply(&json!({}));
    }),
    ("another setting for all stages", |shop, _, _| {
        let before = shop.pods();
        shop.apply(&json!({"observability": {"logFilter": "info,millstream=debug"}}));
        until("another Pod everywhere", || {
            let now = shop.pods();
            Ok(before.iter().all(|(name, pod)| now.get(name).is_some_and(|now| now.0 != pod.0)).then_some(()))
        })
        .unwrap();
    }),
    ("two workers, four, two", |shop, _, _| {
        shop.kubectl(&["scale", "stagescale/orders-action", "--replicas=4"]);
        until("two more", || Ok(shop.pods().contains_key("orders-action-3").then_some(()))).unwrap();
        shop.ready();
        shop.kubectl(&["scale", "stagescale/orders-action", "--replicas=2"]);
        until("two less", || Ok((!shop.pods().contains_key("orders-action-2")).then_some(()))).unwrap();
    }),
    ("a tenant comes, its key is replaced, it goes", |shop, _, _| {
        tenant(shop, "rotating", &[("one", "first-key")]);
        answers(shop, "first-key", 200);
        tenant(shop, "rotating", &[("one", "first-key"), ("two", "second-key")]);
        answers(shop, "second-key", 200);
        tenant(shop, "rotating", &[("two", "second-key")]);
        answers(shop, "first-key", 401);
        answers(shop, "second-key", 200);
        shop.kubectl(&["delete", "tenant", "rotating"]);
        answers(shop, "second-key", 401);
    }),
    ("the document store's password is replaced", |shop, _, _| {
        let before = shop.pods();
        let of_reaction = |name: &&String| name.starts_with("orders-reaction-");
        shop.change_password("second");
        until("other Pods of the stage that uses it", || {
            let now = shop.pods();
            let mut names = before.keys().filter(of_reaction);
            Ok(names.all(|name| now.get(name).is_some_and(|now| now.0 != before[name].0)).then_some(()))
        })
        .unwrap();
        shop.ready();
        let now = shop.pods();
        let mut others = before.iter().filter(|(name, _)| !of_reaction(name));
        assert!(others.all(|(name, pod)| now.get(name) == Some(pod)), "others were replaced: {now:?}");
    }),
    ("the certificates for Kafka are replaced, by those of another authority", |shop, _, _| {
        let before = shop.pods();
        shop.certify(2);
        until("other Pods everywhere", || {
            let now = shop.pods();
            Ok(before.iter().all(|(name, pod)| now.get(name).is_some_and(|now| now.0 != pod.0)).then_some(()))
        })
        .unwrap();
    }),
    ("the password for Kafka is replaced", |shop, inside, _| {
        let before = shop.pods();
        // Kafka keeps one: from now on it takes the former one from nobody any more, and lets those be who are connected.
        shop.kafka.kafka.change_password("second").unwrap();
        // One who must connect anew before the Secret has it cannot.
        inside.kill_worker(&before["orders-action-0"].0).unwrap();
        until("a worker that is refused", || {
            let said = shop.kubectl(&["logs", "orders-action-0", "--tail=200"]);
            Ok(said.contains("invalid credentials").then_some(()))
        })
        .unwrap();
        shop.tell_kafka_password("second");
        // Of each stage the first one waits for two minutes whether others take its shards, who cannot either.
        until_within(Duration::from_secs(15 * 60), Duration::from_millis(200), "other Pods everywhere", || {
            let now = shop.pods();
            let old: Vec<&String> = before
                .iter()
                .filter(|(name, pod)| now.get(*name).is_none_or(|now| now.0 == pod.0))
                .map(|it| it.0)
                .collect();
            anyhow::ensure!(old.is_empty(), "not {old:?}: {}", shop.get("mip", "orders")["status"]);
            Ok(Some(()))
        })
        .unwrap();
    }),
    ("a tenant is erased", |shop, _, _| {
        tenant(shop, "going", &[("one", "going-key")]);
        let erase = json!({"spec": {"deletionPolicy": "Erase"}}).to_string();
        shop.kubectl(&["patch", "tenant", "going", "--type=merge", "-p", &erase]);
        answers(shop, "going-key", 200);
        // It waits until nothing is left.
        shop.kubectl(&["delete", "tenant", "going", "--timeout=120s"]);
        answers(shop, "going-key", 401);
    }),
    ("a worker is killed", |shop, inside, _| {
        let before = restarts(shop);
        inside.kill_worker(&shop.pods()["orders-unify-0"].0).unwrap();
        restarted_alone(shop, &before, "orders-unify-0");
    }),
    ("a Pod is deleted by force, and its node goes on: two of one name for a moment", |shop, inside, _| {
        let pod = "orders-reaction-0";
        let (first, node) = (shop.pods()[pod].0.clone(), node_of(shop, "shop", pod));
        let _uncordon = cordon(shop, vec![node]);
        inside.node("pause", node).unwrap();
        let _resumes = Undo(|| drop(inside.node("resume", node)));
        shop.kubectl(&["delete", "pod", pod, "--grace-period=0", "--force"]);
        let second = until("another Pod of the name", || {
            Ok(shop.pods().remove(pod).map(|(uid, _)| uid).filter(|uid| *uid != first))
        })
        .unwrap();
        until("two workers of one name", || {
            let Some(second) = inside.worker(&second)? else { return Ok(None) };
            assert!(inside.worker(&first)?.is_some(), "the first had ended before process {second} was seen");
            Ok(Some(()))
        })
        .unwrap();
        // Nobody tells it to but the newer one: its kubelet hangs.
        until("the end of the older one", || Ok(inside.worker(&first)?.is_none().then_some(()))).unwrap();
    }),
    ("a node is drained", |shop, _, _| {
        drop(drain(shop, node_of(shop, "shop", "orders-action-0")));
    }),
    ("the node of the operator that leads is drained", |shop, _, _| {
        drop(drain(shop, node_of(shop, SYSTEM, &leader(shop))));
    }),
    ("the power of the node with the leader and a worker fails", |shop, inside, _| {
        keep_apart(shop);
        let before = leader(shop);
        let node = node_of(shop, SYSTEM, &before);
        let workers = with_owner_on(shop, node);
        assert_eq!(before, leader(shop), "another one leads by now");
        inside.node("kill", node).unwrap();
        let _power = Undo(|| drop(inside.node("start", node)));
        until("another leader", || Ok((leader(shop) != before).then_some(()))).unwrap();
        disowned(shop, &workers);
    }),
    ("a kubelet hangs", |shop, inside, _| {
        keep_apart(shop);
        let node = node_of(shop, "shop", "orders-action-1");
        inside.node("pause", node).unwrap();
        let _resumes = Undo(|| drop(inside.node("resume", node)));
        linger(30);
        all_owned(shop);
    }),
    ("the API server stands still for half a minute, and a worker dies meanwhile", |shop, inside, freshness| {
        let worker = owner(shop, &format!("action/{}", freshness.flows().unwrap()));
        let (uid, node) = (shop.pods()[&worker].0.clone(), node_of(shop, "shop", &worker));
        let before = restarts(shop);
        inside.signal("kube-apiserver", "STOP").unwrap();
        let goes_on = Undo(|| drop(inside.signal("kube-apiserver", "CONT")));
        linger(10);
        // Its kubelet would start it again at once: others are to take its shards, without operator and API server.
        inside.node("pause", node).unwrap();
        let resumes = Undo(|| drop(inside.node("resume", node)));
        inside.kill_worker(&uid).unwrap();
        freshness.flows().unwrap();
        drop(resumes);
        linger(10);
        drop(goes_on);
        shop.ready();
        restarted_alone(shop, &before, &worker);
        // An operator that ended for want of its lease is there again.
        tenant(shop, "after-silence", &[("key", "after-silence-key")]);
        answers(shop, "after-silence-key", 200);
    }),
    ("the API server is killed and starts again, and a worker is killed meanwhile", |shop, inside, freshness| {
        let worker = owner(shop, &format!("action/{}", freshness.flows().unwrap()));
        let (uid, before) = (shop.pods()[&worker].0.clone(), restarts(shop));
        inside.signal("kube-apiserver", "KILL").unwrap();
        inside.kill_worker(&uid).unwrap();
        freshness.flows().unwrap();
        until("an API server", || shop.kubectl.run(&["get", "--raw", "/readyz"], "").map(Some)).unwrap();
        shop.ready();
        restarted_alone(shop, &before, &worker);
        tenant(shop, "after-restart", &[("key", "after-restart-key")]);
        answers(shop, "after-restart-key", 200);
    }),
    ("all operators are killed", |shop, _, _| {
        let before = shop.operator_pods();
        shop.kubectl.run(&["delete", "pods", "-n", SYSTEM, "--all", "--grace-period=0", "--force"], "").unwrap();
        until("others", || Ok(shop.operator_pods().is_disjoint(&before).then_some(()))).unwrap();
        // Which take over: somebody new may send.
        tenant(shop, "after-kill", &[("key", "after-kill-key")]);
        answers(shop, "after-kill-key", 200);
        assert!(!before.contains(&format!("pod/{}", leader(shop))));
    }),
    ("the broker is killed and starts again", |shop, _, _| {
        shop.kafka.kafka.node(0).unwrap().kill().unwrap();
        linger(5);
        shop.kafka.kafka.node(0).unwrap().start_again().unwrap();
        shop.kafka.kafka.is_whole().unwrap();
    }),
    ("the object store is away for half a minute", |shop, _, _| {
        shop.minio.kill().unwrap();
        until("a condition that says so", || {
            let said = shop.get("mip", "orders")["status"].to_string();
            anyhow::ensure!(said.contains("no checkpoint could be taken"), "{said}");
            Ok(Some(()))
        })
        .unwrap();
        linger(30);
        shop.minio.start_again().unwrap();
        until("that it is over", || {
            let said = shop.get("mip", "orders")["status"].to_string();
            Ok((!said.contains("no checkpoint could be taken")).then_some(()))
        })
        .unwrap();
    }),
    ("the disks of all workers with state are lost at once", |shop, _, _| shop.lose_disks()),
    ("a node is lost for good, with a volume that is bound to it", |shop, inside, freshness| {
        keep_apart(shop);
        let pod = "orders-unify-1";
        let volume = |shop: &Shop| {
            shop.kubectl
                .run(&["get", "pvc", &format!("data-{pod}"), "-n", "shop", "-o", "jsonpath={.spec.volumeName}"], "")
        };
        let (node, first) = (node_of(shop, "shop", pod), volume(shop).unwrap());
        assert!(first.starts_with(&format!("node{node}-")), "{pod} is on node{node}, and its volume is {first}");
        let lost = pods_on(shop, node);
        inside.node("kill", node).unwrap();
        disowned(shop, &lost);
        freshness.flows().unwrap();
        // Nobody brings the node back, and nobody has said yet that it will not come.
        until("the worker elsewhere, with another volume", || {
            let unready = shop.unready([pod.to_owned()].iter()).len();
            anyhow::ensure!(unready == 0 && pods_on(shop, node).get(pod) != lost.get(pod), "{}", shop.told_of(&[pod]));
            Ok(Some(()))
        })
        .unwrap();
        assert_ne!(node_of(shop, "shop", pod), node);
        assert_ne!(volume(shop).unwrap(), first);
        // What has no volume waits for that.
        shop.kubectl.run(&["delete", "node", &format!("node{node}")], "").unwrap();
    }),
    ("at rest again", |_, _, _| linger(20)),
];

/// Words in the names of those to go through besides the first one; all without it.
const ONLY: &str = "MILLSTREAM_E2E_ONLY";

struct Row {
    name: &'static str,
    failed: Option<String>,
    took: Duration,
    fresh: Option<Quantiles>,
}

fn run(shop: &mut Shop, inside: &Inside, freshness: &Freshness, (name, scenario): Scenario) -> Row {
    let began = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(|| {
        scenario(shop, inside, freshness);
        shop.ready();
    }));
    let took = began.elapsed();
    let text = |panic: Box<dyn std::any::Any + Send>| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    };
    let failed = result.err().map(text);
    let fresh = freshness.since(began);
    let failed = failed.or_else(|| fresh.as_ref().err().map(|error| format!("{error:#}")));
    let row = Row { name, failed, took, fresh: fresh.ok() };
    println!("{}: {:.1} s {:?} {}", row.name, took.as_secs_f64(), row.fresh, row.failed.clone().unwrap_or_default());
    row
}

const SCENE: &str = "one pipeline on a real cluster of three nodes on one machine of two cores, two operators, two workers of each stage, 4 shards, load all the time; programs of a dev build. In the same network Kafka (one broker, by TLS, with a certificate and a password for every client), the MongoDB-compatible server (with a password, without TLS), and MinIO (by TLS), to which each shard takes a checkpoint every 3 s. The volumes of unify are bound to their nodes, those of action every node reaches, and gateway and reaction have none; `onLostNode` is `Recreate`. After each scenario the pipeline was ready again, by its conditions and by its Pods.

Freshness: from the first attempt to send an event, ten per second, until a reader of `events` has it; what the gateway refused meanwhile counts from its first attempt. The ratio is that of the 99th percentiles to the same run at rest.";

const NOT_SHOWN: &str = "## What this machine cannot show

- NetworkPolicies are made and not enforced: its network has nobody who does.
- Delay and loss between nodes: they are namespaces of one kernel, and their clocks are one.
- Zones: no node has one, so standbys are kept apart by node; what becomes of zones is shown by tests without a cluster. (`client.rack` is fixed to nothing: [why](operator.md#what-it-makes).)
- Volumes that one node after the other attaches: those that are not bound to a node are folders that all of them see.
- Certificates by public authorities: Kafka and MinIO are given with an authority of their own, so that those of the image are never asked.
- The image as the `Dockerfile` builds it: its step that collects files is run, its compilation is not.
- How much of a time is the machine's: two cores run three nodes, a control plane, a broker, the stores, and ten processes of ours.
";

fn report(rows: &[Row], took: Duration, passed: usize, failed: usize) -> String {
    let rest = rows[0].fresh.map_or(1.0, |fresh| fresh.p99.as_secs_f64());
    let minutes = took.as_secs().div_ceil(60);
    let mut text = format!(
        "# Through everything that happens to clusters\n\nMade by `make e2e`, in {minutes} minutes: {SCENE}\n\n| scenario | | took | events | median | p99 | longest | p99, to rest |\n|---|---|---|---|---|---|---|---|\n"
    );
    for row in rows {
        let result = if row.failed.is_none() { "passed" } else { "failed" };
        let fresh = row.fresh.map_or("| | | | |".to_owned(), |fresh| {
            let ms = |time: Duration| format!("{:.2} s", time.as_secs_f64());
            let ratio = fresh.p99.as_secs_f64() / rest;
            format!("{} | {} | {} | {} | {ratio:.0} |", fresh.count, ms(fresh.median), ms(fresh.p99), ms(fresh.longest))
        });
        text.push_str(&format!("| {} | {result} | {:.0} s | {fresh}\n", row.name, row.took.as_secs_f64()));
    }
    text.push_str(&format!("\n{passed} passed, {failed} failed. The last two are that everything came out that the generator knows, once, and that the namespace was deleted with all that was in it.\n\n{NOT_SHOWN}"));
    text
}

#[test]
#[ignore = "half an hour: make e2e"]
fn a_pipeline_on_three_nodes_goes_through_everything() {
    let Some(inside) = in_cluster(3, "a_pipeline_on_three_nodes_goes_through_everything") else { return };
    let began = Instant::now();
    let only = std::env::var(ONLY).unwrap_or_default();
    let (users, time) = LOAD[usize::from(!only.is_empty())];
    let recreated = json!({"persistentVolumeClaim": {"onLostNode": "Recreate"}});
    let bound =
        json!({"persistentVolumeClaim": {"size": "1Gi", "storageClassName": "local", "onLostNode": "Recreate"}});
    let storage = json!({"stages": {"unify": {"storage": bound}, "action": {"storage": recreated}}});
    let mut shop = Shop::open_with(&inside, generated(32, 2, users).unwrap(), storage);
    tenant(&shop, "fresh", &[("key", KEY)]);
    let topics = Topics::new("shop.orders", SHARDS, 1);
    let freshness = Freshness::start(&shop.url(), KEY, shop.kafka.kafka.config(), &topics).unwrap();
    // Connections, caches.
    linger(5);
    let mut sending = Some(Sending::paced_and_held(&shop.url(), &shop.load, time));
    let chosen = SCENARIOS.iter().enumerate().filter(|(index, (name, _))| *index == 0 || name.contains(&only));
    let mut rows: Vec<Row> = chosen.map(|(_, scenario)| run(&mut shop, &inside, &freshness, *scenario)).collect();
    drop(freshness);
    let mut check = |name: &'static str, check: &mut dyn FnMut()| {
        let began = Instant::now();
        let failed = catch_unwind(AssertUnwindSafe(check)).err().map(|_| "see above".to_owned());
        rows.push(Row { name, failed, took: began.elapsed(), fresh: None });
    };
    check("the truth", &mut || {
        let left = sending.as_ref().unwrap().left() as usize;
        let held = shop.load.streams.iter().map(|stream| stream.lines.len() / 6).sum::<usize>();
        assert!(left > held, "the load had ended before: {left} requests were left");
        sending.take().unwrap().finish().unwrap();
        let admins: Vec<String> = shop.pods().values().map(|(_, address)| format!("http://{address}:9090")).collect();
        check_against_ingress_at(&admins, shop.kafka.kafka.config(), &topics, shop.load.clone()).unwrap();
    });
    check("the namespace is deleted", &mut || {
        shop.kubectl.run(&["delete", "namespace", "shop", "--timeout=120s"], "").unwrap();
    });
    let failed = rows.iter().filter(|row| row.failed.is_some()).count();
    let passed = rows.len() - failed;
    let text = report(&rows, began.elapsed(), passed, failed);
    println!("{text}");
    if let Some(path) = std::env::var_os("MILLSTREAM_E2E_REPORT").filter(|_| only.is_empty()) {
        std::fs::write(path, &text).unwrap();
    }
    println!("{passed} passed, {failed} failed");
    assert_eq!(failed, 0, "{failed} scenarios failed");
}

//! A pipeline on a real cluster, brought up as its users bring it up, under load while things happen to it: what came out is checked against the generator's truth in the end.
//!
//! Kafka and the MongoDB-compatible server run beside the nodes, in the cluster's network.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use millstream_shard::topics::Topics;
use millstream_tests::load::{Sending, check_against_ingress_at, generated};
use millstream_tests::pipeline::{program, until, until_within};
use millstream_tests::servers::{IMAGE, Kubectl};
use millstream_tests::shop::{CHARTS, Replacing, SHARDS, SYSTEM, Shop, helm, in_cluster, operator, operator_in, timed};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The Service that leads to the operator that leads.
const LEADER: &str = "millstream-leader";

/// A kubeconfig file of somebody who may do what the page on permissions lists for `kubectl millstream`, and nothing else.
fn user(shop: &Shop) -> PathBuf {
    let metadata = |namespace: &str| json!({"name": "user", "namespace": namespace});
    let role = |namespace: &str, rule: Value| json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": metadata(namespace), "rules": [rule]});
    let binding = |namespace: &str| {
        let subject = json!({"kind": "ServiceAccount", "name": "user", "namespace": "shop"});
        let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "user"});
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": metadata(namespace), "roleRef": role, "subjects": [subject]})
    };
    let pipelines = json!({"apiGroups": ["ingestion.millstream.dev"], "resources": ["ingestionpipelines"], "verbs": ["get", "list", "patch"]});
    let leader =
        json!({"apiGroups": [""], "resources": ["services/proxy"], "resourceNames": [LEADER], "verbs": ["get"]});
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata("shop")});
    let items = [account, role("shop", pipelines), binding("shop"), role(SYSTEM, leader), binding(SYSTEM)];
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    shop.kubectl.run(&["apply", "-f", "-"], &list.to_string()).unwrap();
    let admin = shop.kubectl.kubeconfig();
    let mut config: Value = serde_yaml::from_str(&std::fs::read_to_string(admin).unwrap()).unwrap();
    config["users"][0]["user"] = json!({"token": shop.kubectl(&["create", "token", "user"]).trim()});
    let file = admin.with_file_name("user.kubeconfig");
    std::fs::write(&file, serde_yaml::to_string(&config).unwrap()).unwrap();
    file
}

/// What `kubectl millstream` prints for this user: kubectl finds it by its name.
fn plugin(kubeconfig: &Path, arguments: &[&str]) -> String {
    let output = Command::new(program("millstream").unwrap())
        .arg("kubectl")
        .args(arguments)
        .args(["--namespace", "shop"])
        .env("KUBECONFIG", kubeconfig)
        .output()
        .unwrap();
    // 1: it is not ready at the moment.
    assert!(output.status.code().is_some_and(|code| code < 2), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A field that an older chart's definitions did not have.
const NEWER: &str = "imagePullSecrets";

/// A copy of the chart with the definitions in which the pipeline does not have [`NEWER`] yet.
fn older_definitions() -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let copied = Command::new("cp").arg("-R").arg(format!("{CHARTS}/millstream-crds/.")).arg(copy.path()).status();
    assert!(copied.unwrap().success());
    let file = copy.path().join("templates/ingestionpipelines.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut lines = text.lines().peekable();
    let mut older = String::new();
    while let Some(line) = lines.next() {
        if line.trim() != format!("{NEWER}:") {
            older += &format!("{line}\n");
            continue;
        }
        while lines.next_if(|next| indent(next) > indent(line)).is_some() {}
    }
    assert!(older.len() < text.len() && !older.contains(NEWER));
    std::fs::write(&file, older).unwrap();
    copy
}

/// The chart with the definitions, from an older one to this one, uninstalled, and installed again, while a pipeline lives.
fn definitions_change_and_stay(shop: &Shop) {
    let newest = format!("{CHARTS}/millstream-crds");
    let explained = |is_known: bool| {
        shop.until("what the API server knows of the field", || {
            let said = shop.kubectl.run(&["explain", &format!("ingestionpipelines.spec.{NEWER}")], "");
            anyhow::ensure!(said.is_ok() == is_known, "{said:?}");
            Ok(Some(()))
        });
    };
    explained(true);
    let older = older_definitions();
    helm(&shop.kubectl, &["upgrade", "millstream-crds", &older.path().display().to_string()]);
    explained(false);
    helm(&shop.kubectl, &["upgrade", "millstream-crds", &newest]);
    explained(true);
    helm(&shop.kubectl, &["uninstall", "millstream-crds", "--wait"]);
    let kept = shop.kubectl.run(&["get", "crds", "-o", "name"], "").unwrap();
    assert_eq!(kept.lines().filter(|name| name.ends_with(".ingestion.millstream.dev")).count(), 3, "{kept}");
    shop.get("mip", "orders");
    shop.kubectl(&["get", "tenants", "-o", "name"]).lines().next().unwrap();
    helm(&shop.kubectl, &["install", "millstream-crds", &newest]);
    shop.ready();
}

/// Installed with Helm, created with kubectl; then, under load: a Pod is killed, a stage gets smaller and larger, a changed template reaches all, a node is drained, the operator goes.
#[test]
fn a_pipeline_goes_on_through_what_its_users_do_to_it() {
    let Some(inside) = in_cluster(2, "a_pipeline_goes_on_through_what_its_users_do_to_it") else { return };
    let shop = timed("operator and pipeline", || Shop::open(&inside, generated(31, 2, 150).unwrap()));
    println!("{}", shop.kubectl(&["get", "millstream"]));
    let user = user(&shop);
    let said = plugin(&user, &["status", "orders"]);
    println!("{said}");
    assert!(!said.contains("is not known"), "{said}");
    let before = shop.pods();
    assert_eq!(before.len(), 8, "{before:?}");
    let mut sending = Sending::paced_and_held(&shop.url(), &shop.load, Duration::from_secs(60));

    timed("a Pod is killed", || {
        shop.kubectl(&["delete", "pod", "orders-action-0", "--grace-period=0", "--force"]);
        shop.until("another Pod", || {
            let is_other = |(uid, _): &(String, String)| *uid != before["orders-action-0"].0;
            Ok(shop.pods().get("orders-action-0").is_some_and(is_other).then_some(()))
        });
        shop.ready();
    });
    timed("fewer and more workers", || {
        shop.kubectl(&["scale", "stagescale/orders-action", "--replicas=1"]);
        shop.until("one worker less", || Ok((!shop.pods().contains_key("orders-action-1")).then_some(())));
        shop.ready();
        shop.kubectl(&["scale", "stagescale/orders-action", "--replicas=2"]);
        shop.until("one worker more", || Ok(shop.pods().contains_key("orders-action-1").then_some(())));
        shop.ready();
    });
    timed("another template for all stages", || {
        let mut replacing = Replacing::begin(&shop);
        shop.apply(&json!({"observability": {"logFilter": "info,millstream=debug"}}));
        // Eight Pods, one after the other.
        until_within(Duration::from_secs(8 * 60), Duration::from_millis(20), "another Pod everywhere", || {
            let (done, all) = replacing.check();
            anyhow::ensure!(done == all, "{done} of {all}: {}", shop.get("mip", "orders")["status"]);
            Ok(Some(()))
        })
        .unwrap();
        shop.ready();
        replacing.end();
    });
    timed("a shard is moved by hand", || {
        let said = plugin(&user, &["shards", "move", "orders", "action/0", "--to", "orders-action-1"]);
        assert!(said.contains("action/0 is orders-action-1's"), "{said}");
        plugin(&user, &["shards", "unpin", "orders", "action/0"]);
    });
    timed("the operator is upgraded, rolled back, taken away and installed again", || {
        let before = shop.pods();
        definitions_change_and_stay(&shop);
        operator(&shop.kubectl, "upgrade", &["logFilter=debug"]);
        helm(&shop.kubectl, &["rollback", "millstream", "1", "--namespace", SYSTEM, "--wait", "--timeout", "120s"]);
        helm(&shop.kubectl, &["uninstall", "millstream", "--namespace", SYSTEM, "--wait"]);
        let said = plugin(&user, &["status", "orders"]);
        assert!(said.contains(&format!("services \"{LEADER}\" not found")), "{said}");
        shop.kubectl(&["get", "mip", "orders"]);
        operator(&shop.kubectl, "install", &[]);
        shop.ready();
        assert_eq!(shop.pods(), before, "workers were replaced");
    });
    timed("a node is drained", || {
        shop.kubectl
            .run(&["drain", "node2", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=100s"], "")
            .unwrap();
        shop.ready();
        shop.kubectl.run(&["uncordon", "node2"], "").unwrap();
    });
    timed("all disks are lost", || shop.lose_disks());
    timed("the operator goes", || {
        let before = shop.operator_pods();
        shop.kubectl.run(&["delete", "pods", "-n", SYSTEM, "--all", "--grace-period=0", "--force"], "").unwrap();
        shop.until("another operator", || Ok(shop.operator_pods().is_disjoint(&before).then_some(())));
        shop.kubectl(&["scale", "stagescale/orders-unify", "--replicas=3"]);
        // Its share of the shards comes to it when it is ready.
        shop.until("a shard of the new worker's, and none on its way", || {
            let known: Value = serde_json::from_str(&plugin(&user, &["status", "orders", "--json"]))?;
            let shards = &known[0]["shards"];
            let rows = shards["shards"].as_array().into_iter().flatten();
            let owns =
                rows.into_iter().any(|row| row["owner"] == "orders-unify-2" && row["planned"] == "orders-unify-2");
            anyhow::ensure!(owns && shards["moving"] == 0, "{}", known[0]);
            Ok(Some(()))
        });
        let leaders = ["get", "pods", "-n", SYSTEM, "-l", "ingestion.millstream.dev/leads=true", "-o", "name"];
        let leaders = shop.kubectl.run(&leaders, "").unwrap();
        assert_eq!(leaders.lines().count(), 1, "{leaders}");
        shop.ready();
    });
    timed("the rest of the load", || sending.finish().unwrap());
    let admins: Vec<String> = shop.pods().values().map(|(_, address)| format!("http://{address}:9090")).collect();
    let topics = Topics::new("shop.orders", SHARDS, 1);
    timed("the truth", || {
        check_against_ingress_at(&admins, shop.kafka.kafka.config(), &topics, shop.load.clone()).unwrap()
    });
    timed("deleted", || {
        shop.kubectl(&["delete", "mip", "orders", "--timeout=60s"]);
        until("nothing", || Ok(shop.pods().is_empty().then_some(()))).unwrap();
    });
    timed("an operator with rights in one namespace only makes a pipeline", || {
        helm(&shop.kubectl, &["uninstall", "millstream", "--namespace", SYSTEM, "--wait"]);
        operator(&shop.kubectl, "install", &["watchNamespace=shop"]);
        let roles = shop.kubectl.run(&["get", "clusterroles", "-o", "name"], "").unwrap();
        assert!(!roles.contains("/millstream"), "{roles}");
        let one = json!({"replicas": 1});
        shop.apply(&json!({"stages": {"gateway": one, "unify": one, "action": one, "reaction": one}}));
        shop.ready();
        shop.kubectl(&["wait", "--for=condition=Effective", "tenant", "--all", "--timeout=60s"]);
    });
}

/// A pipeline and a tenant that have finalizers, in the namespace `shop`; no worker's Pod keeps anything else there from going.
fn make_what_is_held(kubectl: &Kubectl) {
    let api = "ingestion.millstream.dev/v1alpha1";
    let spec = json!({
        "image": IMAGE, "suspend": true, "topicDeletionPolicy": "Delete",
        "kafka": {"bootstrapServers": ["127.0.0.1:1"]},
        "documentStore": {"mongodb": {"uri": {"name": "mongodb", "key": "uri"}}},
    });
    let tenant = json!({"pipelineRef": {"name": "orders"}, "apiKeys": [{"name": "acme", "key": "key"}], "deletionPolicy": "Erase"});
    let items = [
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "mongodb"}, "stringData": {"uri": "mongodb://127.0.0.1/"}}),
        json!({"apiVersion": api, "kind": "IngestionPipeline", "metadata": {"name": "orders"}, "spec": spec}),
        json!({"apiVersion": api, "kind": "Tenant", "metadata": {"name": "acme"}, "spec": tenant}),
    ];
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
    kubectl.run(&["apply", "--server-side", "-n", "shop", "-f", "-"], &list).unwrap();
    until("finalizers", || {
        let path = "jsonpath={.items[*].metadata.finalizers}";
        let all = kubectl.run(&["get", "mip,mtn", "-n", "shop", "-o", path], "")?;
        anyhow::ensure!(all.contains("/topics") && all.contains("/erase"), "{all}");
        Ok(Some(()))
    })
    .unwrap();
}

/// Whoever may do what there: an operator elsewhere that has a Role in it, one in it that has, and one in it that watches all namespaces.
#[test]
fn a_namespace_ends_by_itself_whatever_ends_with_it() {
    let Some(inside) = in_cluster(1, "a_namespace_ends_by_itself_whatever_ends_with_it") else { return };
    let kubectl = &inside.kubectl;
    helm(kubectl, &["install", "millstream-crds", &format!("{CHARTS}/millstream-crds")]);
    for (home, settings) in [(SYSTEM, &["watchNamespace=shop"][..]), ("shop", &["watchNamespace=shop"]), ("shop", &[])]
    {
        timed(&format!("an operator in {home} with {settings:?}"), || {
            kubectl.run(&["create", "namespace", "shop"], "").unwrap();
            operator_in(kubectl, home, "install", settings);
            make_what_is_held(kubectl);
            let deleted = kubectl.run(&["delete", "namespace", "shop", "--timeout=60s"], "");
            let left = || kubectl.run(&["get", "namespace", "shop", "-o", "jsonpath={.status.conditions}"], "");
            assert!(deleted.is_ok(), "{deleted:?} {:?}", left());
        });
        if home == SYSTEM {
            let path = "jsonpath={.items[?(@.reason==\"TopicsRetained\")].note}";
            let said = kubectl.run(&["get", "events.events.k8s.io", "-n", SYSTEM, "-o", path], "").unwrap();
            let expected = "namespace shop is being deleted: IngestionPipeline orders was let go at once";
            assert!(said.starts_with(expected), "{said}");
            helm(kubectl, &["uninstall", "millstream", "--namespace", SYSTEM, "--wait"]);
        }
    }
}

//! A pipeline on a real cluster, brought up as its users bring it up, under load while things happen to it: what came out is checked against the generator's truth in the end.
//!
//! Kafka and the MongoDB-compatible server run beside the nodes, in the cluster's network.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use millstream::generate::Load;
use millstream_shard::topics::Topics;
use millstream_tests::load::{Sending, check_against_ingress_at, generated};
use millstream_tests::pipeline::{program, until};
use millstream_tests::servers::{Cluster, IMAGE, Inside, Kafka, Kubectl, Mongo, install_helm};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::{Duration, Instant};

const CHARTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts");
/// What the README says to apply; image, servers and tenants are the test's own.
const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/pipeline.yaml");
const SYSTEM: &str = "millstream-system";
const SHARDS: u32 = 4;

/// The pipeline `orders` in the namespace `shop`.
struct Shop {
    kubectl: Kubectl,
    kafka: Kafka,
    mongo: Mongo,
    load: Load,
}

fn helm(kubectl: &Kubectl, arguments: &[&str]) -> String {
    let helm = install_helm().unwrap();
    let output = Command::new(helm)
        .args(arguments)
        .env("KUBECONFIG", kubectl.kubeconfig())
        .env("HELM_CACHE_HOME", kubectl.kubeconfig().with_file_name("helm"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "helm {}: {said}", arguments.join(" "));
    String::from_utf8(output.stdout).unwrap()
}

impl Shop {
    /// Operator and pipeline, installed as the README says; returns when it is ready.
    fn open(inside: &Inside, load: Load) -> Shop {
        let kubectl = inside.kubectl.clone();
        helm(&kubectl, &["install", "millstream-crds", &format!("{CHARTS}/millstream-crds")]);
        let (repository, tag) = IMAGE.rsplit_once(':').unwrap();
        let image = format!("image.repository={repository},image.tag={tag},image.pullPolicy=Never");
        let chart = format!("{CHARTS}/millstream");
        let place = ["--namespace", SYSTEM, "--create-namespace", "--wait", "--timeout", "120s", "--set", &image];
        helm(&kubectl, &[&["install", "millstream", &chart][..], &place].concat());
        let (kafka, mongo) = (Kafka::start().unwrap(), Mongo::start().unwrap());
        let labels = json!({"pod-security.kubernetes.io/enforce": "restricted"});
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": labels}});
        kubectl.run(&["apply", "-f", "-"], &namespace.to_string()).unwrap();
        let shop = Shop { kubectl, kafka, mongo, load };
        shop.apply(&json!({}));
        shop.ready();
        shop.kubectl(&["wait", "--for=condition=Effective", "tenant", "--all", "--timeout=60s"]);
        shop
    }

    fn kubectl(&self, arguments: &[&str]) -> String {
        self.kubectl.run(&[arguments, &["--namespace", "shop"]].concat(), "").unwrap()
    }

    /// Applies the example, with this in its pipeline's specification; as many tenants as the load has, each like the example's.
    fn apply(&self, more: &Value) {
        let example = std::fs::read_to_string(EXAMPLE).unwrap();
        let mut objects: Vec<Value> = serde_yaml::Deserializer::from_str(&example)
            .map(|object| serde::Deserialize::deserialize(object).unwrap())
            .collect();
        let tenant = objects.split_off(2);
        let keys: BTreeMap<&str, &str> =
            self.load.streams.iter().map(|stream| (stream.tenant.as_str(), stream.key.as_str())).collect();
        for (name, key) in keys {
            let [mut secret, mut tenant] = [tenant[0].clone(), tenant[1].clone()];
            (secret["metadata"]["name"], tenant["metadata"]["name"]) = (name.into(), name.into());
            (secret["stringData"]["key"], tenant["spec"]["apiKeys"][0]["name"]) = (key.into(), name.into());
            objects.extend([secret, tenant]);
        }
        objects[0]["stringData"]["uri"] = self.mongo.uri().into();
        let spec = &mut objects[1]["spec"];
        (spec["image"], spec["imagePullPolicy"]) = (IMAGE.into(), "Never".into());
        spec["kafka"] = json!({"bootstrapServers": [self.kafka.bootstrap()], "replication": 1});
        for (name, value) in more.as_object().unwrap() {
            spec[name] = value.clone();
        }
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.kubectl.run(&["apply", "--server-side", "-f", "-"], &list.to_string()).unwrap();
    }

    fn get(&self, kind: &str, name: &str) -> Value {
        serde_json::from_str(&self.kubectl(&["get", kind, name, "-o", "json"])).unwrap()
    }

    /// Waits until the pipeline is ready as it is specified now, and nothing is under way.
    fn ready(&self) {
        let waited = until("a pipeline that is ready", || {
            let pipeline = self.get("mip", "orders");
            let conditions = pipeline["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let is = |name: &str, status: &str| {
                conditions.iter().any(|it| {
                    it["type"] == name
                        && it["status"] == status
                        && it["observedGeneration"] == pipeline["metadata"]["generation"]
                })
            };
            anyhow::ensure!(is("Ready", "True") && is("Progressing", "False"), "{conditions:#?}");
            // By their own word, too: what the operator says may be about a moment ago.
            let pods: Value = serde_json::from_str(&self.kubectl(&["get", "pods", "-o", "json"]))?;
            let unready: Vec<&Value> = pods["items"].as_array().unwrap().iter().filter(|pod| !is_ready(pod)).collect();
            anyhow::ensure!(unready.is_empty(), "not ready: {unready:#?}");
            Ok(Some(()))
        });
        if let Err(error) = waited {
            let pods = self.kubectl(&["get", "pods", "-o", "wide"]);
            let events = self.kubectl(&["get", "events", "--sort-by=.lastTimestamp"]);
            let log = ["logs", "-n", SYSTEM, "-l", "app.kubernetes.io/name=millstream-operator", "--tail=30"];
            let operator = self.kubectl.run(&log, "").unwrap_or_default();
            panic!("{error:#}\n{pods}\n{events}\n{operator}");
        }
    }

    /// The Pods, by name: uid and address.
    fn pods(&self) -> BTreeMap<String, (String, String)> {
        let list: Value = serde_json::from_str(&self.kubectl(&["get", "pods", "-o", "json"])).unwrap();
        let text = |pod: &Value, path: &str| pod.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let of = |pod: &Value| (text(pod, "/metadata/name"), (text(pod, "/metadata/uid"), text(pod, "/status/podIP")));
        list["items"].as_array().unwrap().iter().map(of).collect()
    }

    /// Those of these Pods that are not there, or not ready.
    fn unready<'a>(&self, names: impl Iterator<Item = &'a String>) -> Vec<&'a String> {
        let list: Value = serde_json::from_str(&self.kubectl(&["get", "pods", "-o", "json"])).unwrap();
        let ready: BTreeSet<&str> = list["items"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|pod| is_ready(pod))
            .filter_map(|pod| pod["metadata"]["name"].as_str())
            .collect();
        names.filter(|name| !ready.contains(name.as_str())).collect()
    }

    /// Where senders send.
    fn url(&self) -> String {
        let service = self.get("svc", "orders-gateway");
        format!("http://{}:8080", service["spec"]["clusterIP"].as_str().unwrap())
    }

    fn operator_pods(&self) -> BTreeSet<String> {
        let list = self.kubectl.run(&["get", "pods", "-n", SYSTEM, "-o", "name"], "").unwrap();
        list.lines().map(str::to_owned).collect()
    }
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
    conditions.into_iter().any(|it| it["type"] == "Ready" && it["status"] == "True")
        && pod.pointer("/metadata/deletionTimestamp").is_none()
}

/// How long something took, for the log of the test.
fn timed<T>(what: &str, did: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let result = did();
    println!("{what}: {:.1} s", began.elapsed().as_secs_f64());
    result
}

/// Installed with Helm, created with kubectl; then, under load: a Pod is killed, a stage gets smaller and larger, a changed template reaches all, a node is drained, the operator goes.
#[test]
fn a_pipeline_goes_on_through_what_its_users_do_to_it() {
    let Some(inside) = Cluster::around().unwrap() else {
        if !Cluster::is_possible() {
            return println!(
                "not run: a cluster needs Linux, root for its namespaces, mounts and cgroups, and what nodes are made of"
            );
        }
        let programs = ["millstream", "millstream-operator"].map(|name| program(name).unwrap());
        let programs: Vec<&std::path::Path> = programs.iter().map(std::path::PathBuf::as_path).collect();
        let cluster = timed("a cluster of two nodes", || Cluster::start(2, &programs).unwrap());
        return cluster.run_inside("a_pipeline_goes_on_through_what_its_users_do_to_it").unwrap();
    };
    let shop = timed("operator and pipeline", || Shop::open(&inside, generated(31, 2, 150).unwrap()));
    let table = shop.kubectl(&["get", "millstream"]);
    println!("{table}");
    let before = shop.pods();
    assert_eq!(before.len(), 8, "{before:?}");
    let mut sending = Sending::paced_and_held(&shop.url(), &shop.load, Duration::from_secs(60));

    timed("a Pod is killed", || {
        shop.kubectl(&["delete", "pod", "orders-action-0", "--grace-period=0", "--force"]);
        until("another Pod", || {
            Ok((shop.pods().get("orders-action-0").map(|pod| &pod.0) != Some(&before["orders-action-0"].0))
                .then_some(()))
        })
        .unwrap();
        shop.ready();
    });
    timed("fewer and more workers", || {
        shop.kubectl(&["scale", "stagescale/orders-action", "--replicas=1"]);
        until("one worker less", || Ok((!shop.pods().contains_key("orders-action-1")).then_some(()))).unwrap();
        shop.ready();
        shop.kubectl(&["scale", "stagescale/orders-action", "--replicas=2"]);
        until("one worker more", || Ok(shop.pods().contains_key("orders-action-1").then_some(()))).unwrap();
        shop.ready();
    });
    timed("another template for all stages", || {
        let before = shop.pods();
        shop.apply(&json!({"observability": {"logFilter": "info,millstream=debug"}}));
        until("another Pod everywhere", || {
            let unready = shop.unready(before.keys());
            assert!(unready.len() <= 1, "more than one at a time: {unready:?}");
            let now = shop.pods();
            let others = before.iter().filter(|(name, pod)| now.get(*name).is_some_and(|now| now.0 != pod.0)).count();
            anyhow::ensure!(
                others == before.len(),
                "{others} of {}: {}",
                before.len(),
                shop.get("mip", "orders")["status"]
            );
            Ok(Some(()))
        })
        .unwrap();
        shop.ready();
    });
    timed("a node is drained", || {
        shop.kubectl
            .run(&["drain", "node2", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=100s"], "")
            .unwrap();
        shop.ready();
        shop.kubectl.run(&["uncordon", "node2"], "").unwrap();
    });
    timed("the operator goes", || {
        let before = shop.operator_pods();
        shop.kubectl.run(&["delete", "pods", "-n", SYSTEM, "--all", "--grace-period=0", "--force"], "").unwrap();
        until("another operator", || Ok(shop.operator_pods().is_disjoint(&before).then_some(()))).unwrap();
        shop.kubectl(&["scale", "stagescale/orders-unify", "--replicas=3"]);
        until("one worker more", || Ok(shop.pods().contains_key("orders-unify-2").then_some(()))).unwrap();
        shop.ready();
    });
    timed("the rest of the load", || sending.finish().unwrap());
    let admins: Vec<String> = shop.pods().values().map(|(_, address)| format!("http://{address}:9090")).collect();
    let topics = Topics::new("shop.orders", SHARDS, 1);
    timed("the truth", || check_against_ingress_at(&admins, shop.kafka.config(), &topics, shop.load.clone()).unwrap());
    timed("deleted", || {
        shop.kubectl(&["delete", "mip", "orders", "--timeout=60s"]);
        until("nothing", || Ok(shop.pods().is_empty().then_some(()))).unwrap();
    });
}

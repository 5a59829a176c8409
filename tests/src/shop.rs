//! The pipeline `orders` on a real cluster, brought up as its users bring it up: operator and CRDs by Helm, the pipeline from `examples/`.
//!
//! Kafka, the MongoDB-compatible server and MinIO run beside the nodes, in the cluster's network. It is for tests: what cannot be done fails the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use crate::pipeline::{program, until};
use crate::proxy::Door;
use crate::servers::{
    Cluster, IMAGE, Inside, Kafka, Kubectl, Minio, Mongo, MutualTls, USER, host, install_helm, trusted,
};
use anyhow::Result;
use millstream::generate::Load;
use millstream_shard::log::{Log as _, TopicPartition};
use millstream_shard::topics::Topics;
use millstream_stores::kafka::KafkaLog;
use millstream_stores::s3::Credentials;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::Mutex;
use std::time::Instant;

pub const CHARTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts");
/// What the README says to apply; image, servers and tenants are the test's own.
const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/pipeline.yaml");
pub const SYSTEM: &str = "millstream-system";
pub const SHARDS: u32 = 4;

/// The pipeline `orders` in the namespace `shop`.
pub struct Shop {
    pub kubectl: Kubectl,
    /// Workers and operators show it their certificates, and have a password for it.
    pub kafka: MutualTls,
    /// What workers reach the document store through, and what must live for that.
    pub door: Door,
    _mongo: Mongo,
    /// Where checkpoints go, by TLS.
    pub minio: Minio,
    /// Of the document store, as the Secret has it.
    password: Mutex<&'static str>,
    pub load: Load,
    /// In the pipeline's specification from the beginning on, beside the example's.
    always: Value,
}

pub fn helm(kubectl: &Kubectl, arguments: &[&str]) -> String {
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

/// Installs or upgrades the operator's chart, with these settings.
pub fn operator(kubectl: &Kubectl, verb: &str, settings: &[&str]) {
    operator_in(kubectl, SYSTEM, verb, settings);
}

/// The same, in this namespace.
pub fn operator_in(kubectl: &Kubectl, namespace: &str, verb: &str, settings: &[&str]) {
    let (repository, tag) = IMAGE.rsplit_once(':').unwrap();
    let image = format!("image.repository={repository},image.tag={tag},image.pullPolicy=Never");
    let chart = format!("{CHARTS}/millstream");
    let place = ["--namespace", namespace, "--create-namespace", "--wait", "--timeout", "120s", "--set", &image];
    let settings = settings.iter().flat_map(|setting| ["--set", setting]).collect::<Vec<_>>();
    helm(kubectl, &[&[verb, "millstream", &chart][..], &place, &settings].concat());
}

impl Shop {
    /// Operator and pipeline, installed as the README says; returns when it is ready.
    pub fn open(inside: &Inside, load: Load) -> Shop {
        Shop::open_with(inside, load, json!({}))
    }

    /// The same, with this in the pipeline's specification always.
    pub fn open_with(inside: &Inside, load: Load, always: Value) -> Shop {
        let kubectl = inside.kubectl.clone();
        helm(&kubectl, &["install", "millstream-crds", &format!("{CHARTS}/millstream-crds")]);
        operator(&kubectl, "install", &[]);
        let (kafka, mongo) = (Kafka::start_mutual().unwrap(), Mongo::start().unwrap());
        let labels = json!({"pod-security.kubernetes.io/enforce": "restricted"});
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": labels}});
        kubectl.run(&["apply", "-f", "-"], &namespace.to_string()).unwrap();
        let password = "first";
        let door = Door::start(mongo.port(), password).unwrap();
        let minio = Minio::start_secure().unwrap();
        let shop = Shop { kubectl, kafka, door, _mongo: mongo, minio, password: Mutex::new(password), load, always };
        shop.certify(1);
        shop.tell_kafka_password(USER.1);
        shop.tell_keys_of_bucket();
        shop.apply(&json!({}));
        shop.ready();
        shop.kubectl(&["wait", "--for=condition=Effective", "tenant", "--all", "--timeout=60s"]);
        shop
    }

    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.kubectl.run(&[arguments, &["--namespace", "shop"]].concat(), "").unwrap()
    }

    /// Applies the example, with this in its pipeline's specification; as many tenants as the load has, each like the example's.
    pub fn apply(&self, more: &Value) {
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
        objects[0]["stringData"]["uri"] = self.documents_uri().into();
        let spec = &mut objects[1]["spec"];
        (spec["image"], spec["imagePullPolicy"]) = (IMAGE.into(), "Never".into());
        spec["kafka"] = json!({
            "bootstrapServers": [self.kafka.bootstrap],
            "replication": 1,
            "tls": {"ca": {"name": "kafka-ca", "key": "ca.crt"}, "certificate": {"name": "kafka-client"}},
            "sasl": {"username": USER.0, "password": {"name": "kafka-user", "key": "password"}},
        });
        let s3 = self.minio.config("");
        spec["objectStore"] = json!({"s3": {
            "bucket": s3.bucket,
            "endpoint": s3.endpoint,
            "ca": {"name": "s3", "key": "ca.crt"},
            "accessKeyId": {"name": "s3", "key": "id"},
            "secretAccessKey": {"name": "s3", "key": "secret"},
        }});
        spec["checkpoints"] = json!({"interval": "3s", "minPause": "1s", "retained": 2});
        lay_over(spec, &self.always);
        lay_over(spec, more);
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.kubectl.run(&["apply", "--server-side", "-f", "-"], &list.to_string()).unwrap();
    }

    /// Secrets with the certificates of the first so many authorities, and with a new one of the last of these by which Kafka knows the workers.
    pub fn certify(&self, authorities: usize) {
        let authorities = &self.kafka.authorities[..authorities];
        let issued = authorities.last().unwrap().issue(&["orders"]).unwrap();
        let secret = |name: &str, kind: &str, data: Value| {
            let metadata = json!({"name": name, "namespace": "shop"});
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": kind, "stringData": data})
        };
        let items = [
            secret("kafka-ca", "Opaque", json!({"ca.crt": trusted(authorities).unwrap()})),
            secret("kafka-client", "kubernetes.io/tls", json!({"tls.crt": issued.certificate, "tls.key": issued.key})),
        ];
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        self.kubectl.run(&["apply", "--server-side", "-f", "-"], &list.to_string()).unwrap();
    }

    /// The Secret from which operator and workers have their password for Kafka.
    pub fn tell_kafka_password(&self, password: &str) {
        let metadata = json!({"name": "kafka-user", "namespace": "shop"});
        let secret =
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"password": password}});
        self.kubectl.run(&["apply", "--server-side", "-f", "-"], &secret.to_string()).unwrap();
    }

    /// The Secret from which workers have what they need for the bucket.
    fn tell_keys_of_bucket(&self) {
        let config = self.minio.config("");
        let Credentials::Static { access_key_id, secret_access_key, .. } = &config.credentials else { panic!() };
        let ca = std::fs::read_to_string(config.ca_file.as_ref().unwrap()).unwrap();
        let metadata = json!({"name": "s3", "namespace": "shop"});
        let data = json!({"ca.crt": ca, "id": access_key_id, "secret": secret_access_key});
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data});
        self.kubectl.run(&["apply", "--server-side", "-f", "-"], &secret.to_string()).unwrap();
    }

    /// All workers with state lose their disks at once, when Kafka has no more of their changelogs than what came since the last checkpoints; they come back.
    pub fn lose_disks(&self) {
        let log = KafkaLog::new(self.kafka.kafka.config()).unwrap();
        let topics = Topics::new("shop.orders", SHARDS, 1);
        for (stage, shard) in
            ["unify", "action"].into_iter().flat_map(|stage| (0..SHARDS).map(move |shard| (stage, shard)))
        {
            let changelog = TopicPartition::new(topics.changelog(stage), shard);
            until("a changelog that was trimmed", || Ok((log.bounds(&changelog)?.0 > 0).then_some(()))).unwrap();
        }
        let before = self.pods();
        let has_state = |name: &&String| name.contains("-unify-") || name.contains("-action-");
        let pods: Vec<&str> = before.keys().filter(has_state).map(String::as_str).collect();
        let claims = self.kubectl(&["get", "pvc", "-o", "name"]);
        self.kubectl(&[&["delete", "--wait=false"][..], &claims.lines().collect::<Vec<_>>()].concat());
        self.kubectl(&[&["delete", "pods", "--grace-period=0", "--force"][..], &pods].concat());
        until("other Pods", || {
            let now = self.pods();
            let is_other =
                |name: &&str| now.get(*name).is_some_and(|pod| Some(&pod.0) != before.get(*name).map(|pod| &pod.0));
            Ok(pods.iter().all(is_other).then_some(()))
        })
        .unwrap();
        self.ready();
        let restored = |pod: &&&str| self.kubectl(&["logs", pod]).contains("restored a checkpoint");
        until("a checkpoint that was restored by each", || {
            let not = pods.iter().filter(|pod| !restored(pod)).collect::<Vec<_>>();
            anyhow::ensure!(not.is_empty(), "not by {not:?}");
            Ok(Some(()))
        })
        .unwrap();
    }

    /// Where workers find the document store, with its password.
    fn documents_uri(&self) -> String {
        let (password, host, port) = (self.password.lock().unwrap(), host(), self.door.port);
        format!("mongodb://millstream:{password}@{host}:{port}/?directConnection=true&authMechanism=PLAIN")
    }

    /// The document store has another password from now on, and so has the Secret, of which nothing else changes.
    pub fn change_password(&self, password: &'static str) {
        *self.password.lock().unwrap() = password;
        self.door.change_password(password);
        let example = std::fs::read_to_string(EXAMPLE).unwrap();
        let mut objects = serde_yaml::Deserializer::from_str(&example);
        let mut secret: Value = serde::Deserialize::deserialize(objects.next().unwrap()).unwrap();
        secret["stringData"]["uri"] = self.documents_uri().into();
        self.kubectl.run(&["apply", "--server-side", "-f", "-"], &secret.to_string()).unwrap();
    }

    pub fn get(&self, kind: &str, name: &str) -> Value {
        serde_json::from_str(&self.kubectl(&["get", kind, name, "-o", "json"])).unwrap()
    }

    /// Waits until the pipeline is ready as it is specified now, and nothing is under way.
    pub fn ready(&self) {
        self.until("a pipeline that is ready", || {
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
            // By their own word, too: what the operator says may be about a moment ago, and one that was taken away by force may not have a successor yet.
            let (pods, missing) = (self.pod_list(), self.missing());
            let unready: Vec<&Value> = pods.iter().filter(|pod| !is_ready(pod)).collect();
            anyhow::ensure!(
                unready.is_empty() && missing.is_empty(),
                "not there: {missing:?}; not ready: {unready:#?}"
            );
            Ok(Some(()))
        });
    }

    /// Waits as [`until`] does. When it is in vain, what there is to know of the Pods and the operator is said.
    pub fn until<T>(&self, what: &str, check: impl FnMut() -> Result<Option<T>>) -> T {
        until(what, check).unwrap_or_else(|error| {
            let pods: Vec<String> = self.pods().into_keys().collect();
            panic!("{error:#}\n{}", self.told_of(&pods))
        })
    }

    /// Pods that a StatefulSet is to have, and that are not there.
    fn missing(&self) -> Vec<String> {
        let mut sets: Value = serde_json::from_str(&self.kubectl(&["get", "sts", "-o", "json"])).unwrap();
        let sets: Vec<Value> = serde_json::from_value(sets["items"].take()).unwrap();
        let names = |set: &Value| {
            let (name, replicas) = (text(set, NAME).to_owned(), set["spec"]["replicas"].as_u64().unwrap());
            (0..replicas).map(move |ordinal| format!("{name}-{ordinal}"))
        };
        let pods = self.pods();
        sets.iter().flat_map(names).filter(|name| !pods.contains_key(name)).collect()
    }

    /// The Pods, by name: uid and address.
    pub fn pods(&self) -> BTreeMap<String, (String, String)> {
        let of = |pod: &Value| {
            let [name, uid, address] = [NAME, UID, "/status/podIP"].map(|path| text(pod, path).to_owned());
            (name, (uid, address))
        };
        self.pod_list().iter().map(of).collect()
    }

    fn pod_list(&self) -> Vec<Value> {
        let mut list: Value = serde_json::from_str(&self.kubectl(&["get", "pods", "-o", "json"])).unwrap();
        serde_json::from_value(list["items"].take()).unwrap()
    }

    /// Those of these Pods that are not there, or not ready.
    pub fn unready<'a>(&self, names: impl Iterator<Item = &'a String>) -> Vec<&'a String> {
        let list = self.pod_list();
        let ready: BTreeSet<&str> = list.iter().filter(|pod| is_ready(pod)).map(|pod| text(pod, NAME)).collect();
        names.filter(|name| !ready.contains(name.as_str())).collect()
    }

    /// What there is to know of these Pods and their nodes, and what the operator did; what cannot be told says why.
    pub fn told_of(&self, names: &[impl AsRef<str>]) -> String {
        let tell = |arguments: &[&str]| {
            let said = self.kubectl.run(arguments, "").unwrap_or_else(|error| format!("{error:#}"));
            format!("$ kubectl {}\n{said}\n", arguments.join(" "))
        };
        let mut told = String::new();
        for name in names {
            let name = name.as_ref();
            told += &tell(&["get", "pod", name, "-n", "shop", "-o", "jsonpath={.spec.nodeName}: {.status}"]);
            told += &tell(&["logs", name, "-n", "shop", "--previous", "--tail=40"]);
            told += &tell(&["logs", name, "-n", "shop", "--tail=40"]);
        }
        told += &tell(&["get", "pods,sts,mss,mip", "-n", "shop", "-o", "wide"]);
        told += &tell(&["get", "mip", "-n", "shop", "-o", "jsonpath={.items[*].status}"]);
        told += &tell(&["describe", "nodes"]);
        told += &tell(&["get", "events", "-A", "--sort-by=.lastTimestamp"]);
        told + &tell(&["logs", "-n", SYSTEM, "-l", "app.kubernetes.io/name=millstream-operator", "--tail=100"])
    }

    /// Where senders send.
    pub fn url(&self) -> String {
        let service = self.get("svc", "orders-gateway");
        format!("http://{}:8080", service["spec"]["clusterIP"].as_str().unwrap())
    }

    pub fn operator_pods(&self) -> BTreeSet<String> {
        let list = self.kubectl.run(&["get", "pods", "-n", SYSTEM, "-o", "name"], "").unwrap();
        list.lines().map(str::to_owned).collect()
    }
}

/// All Pods that there are, while they are replaced.
pub struct Replacing<'a> {
    shop: &'a Shop,
    /// Uids, by name.
    before: BTreeMap<String, String>,
    /// Uids of those that were made since, and have been ready.
    done: BTreeSet<String>,
}

impl Replacing<'_> {
    /// From now on.
    pub fn begin(shop: &Shop) -> Replacing<'_> {
        let before = shop.pods().into_iter().map(|(name, (uid, _))| (name, uid)).collect();
        Replacing { shop, before, done: BTreeSet::new() }
    }

    /// How many have been replaced, of how many; one at a time: the next one goes when the one before has been ready.
    /// One that works no more by itself (its node may be slow to be heard) is not one of those.
    pub fn check(&mut self) -> (usize, usize) {
        let pods = self.shop.pod_list();
        let mut under_way: BTreeSet<&str> = self.before.keys().map(String::as_str).collect();
        for pod in &pods {
            let (name, uid) = (text(pod, NAME), text(pod, UID));
            if is_ready(pod) && self.before.get(name).is_none_or(|before| before != uid) {
                self.done.insert(uid.to_owned());
            }
            let is_first = self.before.get(name).is_some_and(|before| before == uid);
            if pod.pointer(ENDS).is_none() && (is_first || self.done.contains(uid)) {
                under_way.remove(name);
            }
        }
        let under_way: Vec<&str> = under_way.into_iter().collect();
        assert!(under_way.len() < 2, "more than one at a time: {under_way:?}\n{}", self.shop.told_of(&under_way));
        let is_done = |name: &str| pods.iter().any(|pod| text(pod, NAME) == name && self.done.contains(text(pod, UID)));
        (self.before.keys().filter(|name| is_done(name)).count(), self.before.len())
    }

    /// Nobody's container ended by itself.
    pub fn end(self) {
        let restarts = |pod: &Value| pod.pointer("/status/containerStatuses/0/restartCount").and_then(Value::as_u64);
        let pods = self.shop.pod_list();
        let restarted: Vec<&str> =
            pods.iter().filter(|pod| restarts(pod) != Some(0)).map(|pod| text(pod, NAME)).collect();
        assert!(restarted.is_empty(), "were restarted: {restarted:?}\n{}", self.shop.told_of(&restarted));
    }
}

const NAME: &str = "/metadata/name";
const UID: &str = "/metadata/uid";
const ENDS: &str = "/metadata/deletionTimestamp";

fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

/// Field by field.
fn lay_over(below: &mut Value, above: &Value) {
    match (below, above) {
        (Value::Object(below), Value::Object(above)) => {
            above.iter().for_each(|(name, value)| lay_over(below.entry(name).or_insert(Value::Null), value));
        }
        (below, above) => *below = above.clone(),
    }
}

pub fn is_ready(pod: &Value) -> bool {
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
    conditions.into_iter().any(|it| it["type"] == "Ready" && it["status"] == "True") && pod.pointer(ENDS).is_none()
}

/// Runs this test inside of a cluster of so many nodes; where none can be had, it says so.
pub fn in_cluster(nodes: usize, test: &str) -> Option<Inside> {
    if let Some(inside) = Cluster::around().unwrap() {
        return Some(inside);
    }
    if !Cluster::is_possible() {
        println!(
            "not run: a cluster needs Linux, root for its namespaces, mounts and cgroups, and what nodes are made of"
        );
        return None;
    }
    let programs = ["millstream", "millstream-operator"].map(|name| program(name).unwrap());
    let programs: Vec<&std::path::Path> = programs.iter().map(std::path::PathBuf::as_path).collect();
    let cluster = timed(&format!("a cluster of {nodes} nodes"), || Cluster::start(nodes, &programs).unwrap());
    cluster.run_inside(test).unwrap();
    None
}

/// How long something took, for the log of the test.
pub fn timed<T>(what: &str, did: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let result = did();
    println!("{what}: {:.1} s", began.elapsed().as_secs_f64());
    result
}

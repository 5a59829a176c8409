//! The operator, judged by those whom it is for: workers read the configurations, a real API server takes the objects, and users see what they expect with `kubectl`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use millstream::config::{self, Documents, Log, Ownership};
use millstream_crds::IngestionPipeline;
use millstream_operator::build::{Objects, build};
use millstream_operator::{Prepared, SecretHashes};
use millstream_shard::log::{Log as _, TopicSpec};
use millstream_shard::topics::Topics;
use millstream_stores::kafka::KafkaLog;
use millstream_stores::kafka::survey::Survey;
use millstream_tests::pipeline;
use millstream_tests::servers::{ApiServer, Kafka, Kubectl, Mongo, Server, Stop, free_ports};
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Instant;

fn prepared(spec: &Value) -> Prepared {
    let object = json!({
        "apiVersion": "ingestion.millstream.dev/v1alpha1",
        "kind": "IngestionPipeline",
        "metadata": {"name": "orders", "namespace": "shop", "uid": "2f6c0f8e-0000-4000-8000-000000000000"},
        "spec": spec,
    });
    let pipeline: IngestionPipeline = serde_json::from_value(object).unwrap();
    Prepared {
        pipeline,
        replicas: BTreeMap::new(),
        secrets: SecretHashes::default(),
        document_ports: BTreeSet::from([27017]),
        operator_namespace: "millstream-system".to_owned(),
    }
}

fn least() -> Value {
    json!({
        "image": "registry.example.com/millstream:0.1.0",
        "kafka": {"bootstrapServers": ["kafka:9092"]},
        "documentStore": {"mongodb": {"uri": {"name": "mongodb", "key": "uri"}}},
    })
}

fn full() -> Value {
    json!({
        "image": "registry.example.com/millstream:0.1.0",
        "imagePullSecrets": [{"name": "registry"}],
        "shards": 16,
        "kafka": {
            "bootstrapServers": ["kafka-0:9093", "kafka-1:9093"],
            "tls": {"ca": {"name": "kafka-ca", "key": "ca.crt"}, "certificate": {"name": "kafka-client"}},
            "sasl": {"username": "millstream", "password": {"name": "kafka", "key": "password"}},
            "prefix": "shop",
            "properties": {"client.id": "shop"},
        },
        "documentStore": {"mongodb": {"uri": {"name": "mongodb", "key": "uri"}, "database": "customers", "options": {"maxPoolSize": "50"}}},
        "observability": {"otlpEndpoint": "http://otel:4318", "samplePercent": 5, "logFormat": "text", "logFilter": "debug"},
        "stages": {
            "gateway": {"config": {"limits": {"records": 100}}, "storage": {"emptyDir": {"sizeLimit": "1Gi"}}},
            "unify": {"config": {"unify": {"duplicate_window": "2d"}}},
            "action": {
                "replicas": 3,
                "resources": {"requests": {"cpu": 2}, "limits": {"memory": "4Gi"}},
                "storage": {"persistentVolumeClaim": {"size": "20Gi", "storageClassName": "fast", "whenDeleted": "Retain"}},
                "config": {"batch": {"max_time": "20ms"}},
                "podTemplate": {"metadata": {"labels": {"team": "data"}}, "spec": {"nodeSelector": {"pool": "fast"}}},
            },
        },
    })
}

/// The configurations, by stage, as a worker reads them whose Secrets lie in another folder.
fn configurations(objects: &Objects, folder: &Path) -> BTreeMap<String, config::Config> {
    let file = |path: &str, text: &str| {
        let path = folder.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    file("kafka/password", "hunter2");
    file("mongodb/uri", "mongodb://app:hunter2@db:27017/");
    let read = |map: &k8s_openapi::api::core::v1::ConfigMap| {
        let stage = map.metadata.labels.as_ref().unwrap()["app.kubernetes.io/component"].clone();
        let text = map.data.as_ref().unwrap()["millstream.yaml"]
            .replace("/etc/millstream/secrets", &folder.display().to_string());
        (stage, config::parse(&text, Path::new("millstream.yaml")).unwrap_or_else(|error| panic!("{error}\n{text}")))
    };
    objects.config_maps.iter().map(read).collect()
}

#[test]
fn workers_understand_what_is_written_for_them() {
    let folder = tempfile::tempdir().unwrap();
    let least = configurations(&build(&prepared(&least())).unwrap(), folder.path());
    assert_eq!(least.keys().collect::<Vec<_>>(), ["action", "gateway", "reaction", "unify"]);
    for (stage, config) in &least {
        assert_eq!((config.pipeline.as_str(), config.shards.0), ("shop.orders", 8), "{stage}");
        assert!(matches!(config.ownership, Ownership::Plan(_)), "{stage}");
        assert_eq!(matches!(config.documents, Documents::Mongodb(_)), stage == "reaction", "{stage}");
    }
    let full = configurations(&build(&prepared(&full())).unwrap(), folder.path());
    for config in full.values() {
        let Log::Kafka(kafka) = &config.log else { panic!("{:?}", config.log) };
        let security = kafka.store().security;
        assert_eq!(security["security.protocol"], "SASL_SSL");
        assert_eq!(
            (security["sasl.mechanism"].as_str(), security["sasl.password"].as_str()),
            ("SCRAM-SHA-512", "hunter2")
        );
        assert_eq!((kafka.replication, kafka.properties["client.id"].as_str()), (3, "shop"));
        assert_eq!((config.telemetry.sample_ratio.0, config.telemetry.log_filter.as_str()), (0.05, "debug"));
    }
    assert_eq!(full["gateway"].limits.records, 100);
    assert_eq!(full["unify"].unify.duplicate_window.duration().as_secs(), 2 * 86_400);
    assert_eq!((full["action"].batch.max_time.0, full["action"].state.memory.0), (20, 2 << 30));
    let Documents::Mongodb(mongodb) = &full["reaction"].documents else { panic!("{:?}", full["reaction"].documents) };
    assert_eq!((mongodb.database.as_str(), mongodb.options["maxPoolSize"].as_str()), ("customers", "50"));
}

fn kubernetes() -> &'static Kubectl {
    ApiServer::shared().unwrap().kubectl()
}

/// In a namespace that warns of Pods that do not satisfy the standard `restricted`; anything that is warned of fails.
#[test]
fn the_api_server_takes_the_objects_without_a_warning() {
    let server = kubernetes();
    let labels =
        json!({"pod-security.kubernetes.io/warn": "restricted", "pod-security.kubernetes.io/enforce": "restricted"});
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": labels}});
    server.run(&["apply", "-f", "-"], &namespace.to_string()).unwrap();
    for spec in [least(), full()] {
        let items = build(&prepared(&spec)).unwrap().to_json().unwrap();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        let said = server
            .try_run(&["apply", "--server-side", "--validate=strict", "--dry-run=server", "-f", "-"], &list.to_string())
            .unwrap();
        assert!(said.status.success() && said.stderr.is_empty(), "{}", String::from_utf8_lossy(&said.stderr));
        assert_eq!(String::from_utf8_lossy(&said.stdout).lines().count(), items.len());
    }
}

/// The operator, for one namespace of the shared API server. Nothing but the API server is there: whatever a controller of Kubernetes would do, a test does itself.
struct Scene {
    server: &'static Kubectl,
    namespace: String,
    operator: Server,
    /// The operator's admin port.
    admin: u16,
}

impl Scene {
    fn new(namespace: &str) -> Scene {
        Scene::run_from(namespace, namespace)
    }

    /// The operator's own namespace is another one.
    fn run_from(namespace: &str, home: &str) -> Scene {
        let server = kubernetes();
        server.run(&["create", "namespace", namespace], "").unwrap();
        let (operator, admin) = start_from(server, namespace, home);
        Scene { server, namespace: namespace.to_owned(), operator, admin }
    }

    /// With the Secret that the pipeline refers to.
    fn with_secret(namespace: &str) -> Scene {
        let scene = Scene::new(namespace);
        scene.secret("mongodb://db:27018/");
        scene
    }

    fn kubectl(&self, arguments: &[&str], input: &str) -> String {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["-n", &self.namespace]).collect();
        self.server.run(&arguments, input).unwrap_or_else(|error| panic!("{error}\n{}", self.operator.log()))
    }

    fn apply(&self, object: &Value) {
        self.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", "-"], &object.to_string());
    }

    fn secret(&self, uri: &str) {
        self.apply(
            &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "mongodb"}, "stringData": {"uri": uri}}),
        );
    }

    fn pipeline(&self, more: &Value) {
        let mut spec = least();
        spec["kafka"] = json!({"bootstrapServers": [Kafka::shared().unwrap().bootstrap()], "replication": 1});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.apply(&json!({"apiVersion": "ingestion.millstream.dev/v1alpha1", "kind": "IngestionPipeline", "metadata": {"name": "orders"}, "spec": spec}));
    }

    fn get(&self, kind: &str, name: &str) -> Value {
        serde_json::from_str(&self.kubectl(&["get", kind, name, "-o", "json"], "")).unwrap()
    }

    /// Names of what there is of a kind.
    fn names(&self, kind: &str) -> Vec<String> {
        let list = self.kubectl(&["get", kind, "-o", "jsonpath={.items[*].metadata.name}"], "");
        list.split_whitespace().map(str::to_owned).collect()
    }

    /// Waits until it is so; the last thing that was seen is in the failure.
    fn until<T>(&self, what: &str, mut look: impl FnMut() -> (Option<T>, String)) -> T {
        let seen = pipeline::until(what, || {
            let (found, seen) = look();
            anyhow::ensure!(found.is_some(), "{seen}");
            Ok(found)
        });
        seen.unwrap_or_else(|error| panic!("{error:#}\n{}", self.operator.log()))
    }

    /// Waits for a condition, `Type Status Reason`, of the newest generation; its message.
    fn condition(&self, expected: &str) -> String {
        self.until(expected, || {
            let pipeline = self.get("mip", "orders");
            let conditions =
                pipeline.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default();
            let text = |it: &Value, field: &str| it[field].as_str().unwrap_or_default().to_owned();
            let is_it = |it: &&Value| {
                format!("{} {} {}", text(it, "type"), text(it, "status"), text(it, "reason")) == expected
                    && it["observedGeneration"] == pipeline["metadata"]["generation"]
            };
            (conditions.iter().find(is_it).map(|it| text(it, "message")), format!("{conditions:?}"))
        })
    }

    /// What the controller of StatefulSets would say when all Pods are there.
    fn all_ready(&self) {
        for name in self.names("statefulsets") {
            let replicas = self.get("sts", &name)["spec"]["replicas"].clone();
            let status = json!({"status": {"replicas": replicas, "readyReplicas": replicas, "observedGeneration": 1}});
            self.kubectl(
                &["patch", "sts", &name, "--subresource=status", "--type=merge", "-p", &status.to_string()],
                "",
            );
        }
    }

    /// Changes the pipeline's spec.
    fn patch(&self, spec: &Value) {
        let patch = json!({ "spec": spec }).to_string();
        self.kubectl(&["patch", "mip", "orders", "--type=merge", "-p", &patch], "");
    }

    /// Waits until the pipeline has exactly these finalizers.
    fn finalizers(&self, expected: &[&str]) {
        self.until("finalizers", || {
            let found = self.get("mip", "orders")["metadata"]["finalizers"].clone();
            let is_it = found == json!(expected) || (found.is_null() && expected.is_empty());
            (is_it.then_some(()), found.to_string())
        });
    }

    /// Deletes the pipeline, and waits for nothing.
    fn delete(&self) {
        self.kubectl(&["delete", "mip", "orders", "--wait=false"], "");
    }

    /// Waits until the pipeline has gone.
    fn gone(&self) {
        self.until("the pipeline gone", || {
            let names = self.names("mip");
            (
                names.is_empty().then_some(()),
                self.kubectl(&["get", "mip", "-o", "jsonpath={.items[*].status.conditions}"], ""),
            )
        });
    }

    /// The topics that the pipeline made, by its status.
    fn created(&self) -> BTreeSet<String> {
        self.until("what the pipeline made", || {
            let found = self.get("mip", "orders")["status"]["createdTopics"].clone();
            let names = found.as_array().map(|names| names.iter().map(|it| it.as_str().unwrap().to_owned()).collect());
            (names, found.to_string())
        })
    }

    /// Waits until exactly these of the pipeline's topics are there.
    fn topics(&self, expected: &BTreeSet<String>) {
        self.until("topics", || {
            let found = there(&specs(&self.namespace));
            ((found == *expected).then_some(()), format!("{found:?}"))
        });
    }

    /// What the plugin prints, and its exit code.
    fn plugin(&self, arguments: &[&str]) -> (String, i32) {
        let url = format!("http://127.0.0.1:{}", self.admin);
        let mut plugin = std::process::Command::new(pipeline::binary().unwrap());
        plugin.env("KUBECONFIG", self.server.kubeconfig()).env("MILLSTREAM_OPERATOR_URL", url);
        let output = plugin.arg("kubectl").args(arguments).args(["-n", &self.namespace]).output().unwrap();
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
        (said, output.status.code().unwrap())
    }

    /// What the operator says at a path of its admin port.
    fn admin(&self, path: &str) -> String {
        reqwest::blocking::get(format!("http://127.0.0.1:{}{path}", self.admin)).unwrap().text().unwrap()
    }

    /// The resource version of everything that there is.
    fn versions(&self) -> String {
        let kinds = "sa,cm,svc,netpol,pdb,sts,mss,mip";
        self.kubectl(
            &[
                "get",
                kinds,
                "-o",
                "jsonpath={range .items[*]}{.kind} {.metadata.name} {.metadata.resourceVersion}{\"\\n\"}{end}",
            ],
            "",
        )
    }
}

/// An operator, and the port on which it tells of itself.
fn start(server: &Kubectl, namespace: &str) -> (Server, u16) {
    start_from(server, namespace, namespace)
}

fn start_from(server: &Kubectl, namespace: &str, home: &str) -> (Server, u16) {
    let folder = tempfile::Builder::new().prefix("millstream-operator-").tempdir().unwrap().keep();
    let kubeconfig = format!("KUBECONFIG={}", server.kubeconfig().display());
    let program = pipeline::program("millstream-operator").unwrap().display().to_string();
    let port = free_ports(1).unwrap()[0];
    let admin = format!("127.0.0.1:{port}");
    let places = ["--watch-namespace", namespace, "--namespace", home, "--admin-listen", &admin];
    let command: Vec<String> = ["env", &kubeconfig, &program].into_iter().chain(places).map(str::to_owned).collect();
    (Server::start(folder, Stop::Terminate, &command).unwrap(), port)
}

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
    scene.pipeline(&json!({"stages": {"action": {"podTemplate": {"spec": {"restartPolicy": "Never"}}}}}));
    let message = scene.condition("Degraded True ObjectRefused");
    assert!(message.contains("StatefulSet orders-action is refused") && message.contains("restartPolicy"), "{message}");
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

/// Processes that are what Pods would be: with the configuration that the operator wrote.
struct Pods {
    folder: tempfile::TempDir,
    running: BTreeMap<String, Server>,
}

impl Pods {
    fn new() -> Pods {
        Pods { folder: tempfile::tempdir().unwrap(), running: BTreeMap::new() }
    }

    fn start(&mut self, scene: &Scene, stage: &str, ordinal: usize) {
        let name = format!("orders-{stage}-{ordinal}");
        let folder = self.folder.path().join(&name);
        std::fs::create_dir_all(folder.join("mongodb")).unwrap();
        std::fs::write(folder.join("mongodb/uri"), Mongo::shared().unwrap().uri()).unwrap();
        let set = scene.get("sts", &format!("orders-{stage}"));
        let volumes = set.pointer("/spec/template/spec/volumes").and_then(Value::as_array).unwrap();
        let map = volumes.iter().find_map(|volume| volume.pointer("/configMap/name")?.as_str()).unwrap();
        let config = scene.get("cm", map)["data"]["millstream.yaml"].as_str().unwrap().to_owned();
        let [http, admin] = <[u16; 2]>::try_from(free_ports(2).unwrap()).unwrap();
        let config = config
            .replace("0.0.0.0:8080", &format!("127.0.0.1:{http}"))
            .replace("0.0.0.0:9090", &format!("127.0.0.1:{admin}"))
            .replace("/var/lib/millstream", &folder.join("data").display().to_string())
            .replace("/etc/millstream/secrets", &folder.display().to_string());
        let file = folder.join("millstream.yaml");
        std::fs::write(&file, config).unwrap();
        let (variable, program) = (format!("MILLSTREAM_WORKER={name}"), pipeline::binary().unwrap());
        let (program, file) = (program.display().to_string(), file.display().to_string());
        let command = ["env", &variable, &program, "worker", "--role", stage, "--config", &file].map(str::to_owned);
        self.running.insert(name, Server::start(folder, Stop::Kill, &command).unwrap());
    }

    fn kill(&mut self, name: &str) {
        drop(self.running.remove(name).unwrap());
    }

    /// What the gateway answers a sender with this key.
    fn answer(&self, name: &str, key: &str) -> anyhow::Result<u16> {
        let config = std::fs::read_to_string(self.folder.path().join(name).join("millstream.yaml"))?;
        let config: Value = serde_yaml::from_str(&config)?;
        let event = json!({"batch": [{"type": "event", "message_id": "m", "event": "Opened", "identifiers": {"user_id": "u"}}]});
        let request = reqwest::blocking::Client::new()
            .post(format!("http://{}/v1/batch", config["listen"].as_str().unwrap()))
            .bearer_auth(key)
            .header("content-type", "application/json")
            .body(event.to_string());
        Ok(request.send()?.status().as_u16())
    }
}

/// The planned owner of each shard of a stage.
fn planned(pods: &Pods, stage: &str) -> BTreeSet<String> {
    let config = pods.folder.path().join("orders-action-0/millstream.yaml");
    let mut show = std::process::Command::new(pipeline::binary().unwrap());
    let output = show.args(["plan", "show", "--config"]).arg(config).output().unwrap();
    let plan: Value = serde_yaml::from_slice(&output.stdout).unwrap_or_default();
    let shards = plan["stages"][stage].as_array().cloned().unwrap_or_default();
    shards.iter().filter_map(|shard| shard["owner"].as_str().map(str::to_owned)).collect()
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
    assert_eq!(scene.plugin(&["shards", "unpin", "orders", "action/0"]).1, 0);
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
    let scene = Scene::new("planned");
    scene.secret(Mongo::shared().unwrap().uri());
    scene.pipeline(&json!({"shards": 4, "stages": {"gateway": {"replicas": 1}}}));
    scene.condition("Ready False WorkersNotReady");
    let mut pods = Pods::new();
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
    assert_eq!(planned(&pods, "action"), BTreeSet::from(["orders-action-0".to_owned()]));
    pods.kill("orders-action-1");
    scene.all_ready();
    scene.condition("Ready True WorkersReady");
    // One that dies is replaced in the plan, and missed until it is back.
    pods.kill("orders-unify-0");
    scene.until("a plan without it", || {
        let owners = planned(&pods, "unify");
        ((owners == BTreeSet::from(["orders-unify-1".to_owned()])).then_some(()), format!("{owners:?}"))
    });
    pods.start(&scene, "unify", 0);
    scene.until("a plan with it", || {
        let owners = planned(&pods, "unify");
        ((owners.len() == 2).then_some(()), format!("{owners:?}"))
    });
}

/// A topic deletes what is older.
fn keep(topic: &str, milliseconds: u64) {
    let admin: AdminClient<_> =
        rdkafka::ClientConfig::new().set("bootstrap.servers", Kafka::shared().unwrap().bootstrap()).create().unwrap();
    let milliseconds = milliseconds.to_string();
    let change = AlterConfig::new(ResourceSpecifier::Topic(topic)).set("retention.ms", &milliseconds);
    let changed = futures::executor::block_on(admin.alter_configs([&change], &AdminOptions::new())).unwrap();
    assert!(changed.iter().all(Result::is_ok), "{changed:?}");
}

/// Of the operator's port: the owner of the only shard of a stage, messages that it has not read, and how old they are at most.
fn unread(scene: &Scene, stage: &str) -> Value {
    let shards = scene.admin(&format!("/v1/pipelines/{}/orders", scene.namespace));
    let shards: Value = serde_json::from_str(&shards).unwrap();
    let rows = shards["shards"].as_array().cloned().unwrap_or_default();
    let row = rows.into_iter().find(|row| row["stage"] == stage).unwrap_or_default();
    json!([row["owner"], row["lag"], row["unreadMs"]])
}

#[test]
fn records_that_a_stage_does_not_process_come_near_what_their_topic_keeps_and_are_told_of() {
    let scene = Scene::new("retention");
    scene.secret(Mongo::shared().unwrap().uri());
    let metadata = json!({"name": "keys", "labels": {"ingestion.millstream.dev/api-keys": "true"}});
    scene.apply(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"one": "a-key"}}));
    let spec = json!({"pipelineRef": {"name": "orders"}, "apiKeys": [{"name": "keys", "key": "one"}]});
    scene.apply(&json!({"apiVersion": "ingestion.millstream.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": "acme"}, "spec": spec}));
    let one = json!({"replicas": 1});
    scene.pipeline(
        &json!({"shards": 1, "standbys": 0, "stages": {"gateway": one, "unify": one, "action": one, "reaction": one}}),
    );
    scene.condition("RetentionAtRisk Unknown NotMeasured");
    // Before it is written down which topics it makes, there are none.
    scene.until("StatefulSets", || {
        let there = scene.kubectl(&["get", "statefulsets", "-o", "name"], "");
        ((there.lines().count() == 4).then_some(()), there)
    });
    let mut pods = Pods::new();
    for stage in ["gateway", "unify", "reaction"] {
        pods.start(&scene, stage, 0);
    }
    let is_read = |stage: &str| {
        scene.until("a shard that has read everything", || {
            let row = unread(&scene, stage);
            let is_read = row[0].is_string() && row[1] == json!(0) && row[2] == json!(0);
            (is_read.then_some(()), row.to_string())
        });
    };
    is_read("unify");
    // Before the worker asks for it first. It is long enough that nothing is deleted before the end.
    keep(&format!("{}.orders.g1.actions", scene.namespace), 80_000);
    pods.start(&scene, "action", 0);
    is_read("action");
    scene.all_ready();
    scene.condition("RetentionAtRisk False AsExpected");
    let freshness = |expected: &str| {
        scene.until(expected, || {
            let said = scene.get("mip", "orders")["status"]["freshness"].clone();
            ((said == expected).then_some(()), said.to_string())
        });
    };
    freshness("<1s");
    pods.kill("orders-action-0");
    scene.until("a gateway that takes the record", || {
        let answer = pods.answer("orders-gateway-0", "a-key");
        (answer.as_ref().ok().filter(|code| **code == 200).map(drop), format!("{answer:?}"))
    });
    // What waits half as long as it is kept is at risk.
    let message = scene.condition("RetentionAtRisk True RetentionNear");
    let named = format!("action[0]: what it has not processed of {}.orders.g1.actions is up to 4", scene.namespace);
    assert!(message.contains(&named) && message.contains("deletes what is older than 1m"), "{message}");
    assert_eq!(unread(&scene, "action"), json!([null, null, null]));
    freshness("unknown");
    let table = scene.kubectl(&["get", "mip"], "");
    let row: Vec<&str> = table.lines().last().unwrap().split_whitespace().collect();
    assert!(row.contains(&"unknown"), "{table}");
    let metrics = scene.admin("/metrics");
    let line = format!("namespace=\"{}\",pipeline=\"orders\",condition=\"RetentionAtRisk\"}} 1", scene.namespace);
    assert!(metrics.contains(&line), "{metrics}");
    pods.start(&scene, "action", 0);
    is_read("action");
    scene.condition("RetentionAtRisk False AsExpected");
    freshness("<1s");
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

#[test]
fn tenants_come_change_and_go_without_a_restart() {
    let scene = Scene::with_secret("tenants");
    let tenant_on = |name: &str, keys: &[&str], terms: Value| {
        let keys: Vec<Value> = keys.iter().map(|key| json!({"name": "keys", "key": key})).collect();
        let mut spec = json!({"pipelineRef": {"name": "orders"}, "apiKeys": keys});
        spec.as_object_mut().unwrap().extend(terms.as_object().unwrap().clone());
        scene.apply(&json!({"apiVersion": "ingestion.millstream.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": name}, "spec": spec}));
    };
    let tenant = |name: &str, keys: &[&str]| tenant_on(name, keys, json!({}));
    let keys = |data: Value| {
        let metadata = json!({"name": "keys", "labels": {"ingestion.millstream.dev/api-keys": "true"}});
        scene.apply(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data}));
    };
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
    let mut pods = Pods::new();
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
    tenant_on("acme", &["two"], json!({"rate": {"recordsPerSecond": 1}}));
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
    tenant_on("acme", &["two"], json!({"identity": {"forbiddenValues": ["walk-in"]}}));
    effective("acme", "False Waiting");
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

const FINALIZER: &str = "ingestion.millstream.dev/topics";

/// The topics of the pipeline `orders` with two shards.
fn specs(namespace: &str) -> Vec<TopicSpec> {
    Topics::new(&format!("{namespace}.orders"), 2, 1).specs()
}

/// Which of these topics are there.
fn there(topics: &[TopicSpec]) -> BTreeSet<String> {
    let survey = Survey::open(Kafka::shared().unwrap().config()).unwrap();
    topics.iter().map(|it| it.name.clone()).filter(|name| survey.layout(name).unwrap().is_some()).collect()
}

fn make(topics: &[TopicSpec]) {
    KafkaLog::new(Kafka::shared().unwrap().config()).unwrap().create_topics(topics).unwrap();
}

#[test]
fn topics_that_a_pipeline_made_go_with_it_when_its_workers_have_ended() {
    let mut scene = Scene::with_secret("deleted");
    let all = specs("deleted");
    let (before, ours): (Vec<TopicSpec>, Vec<TopicSpec>) =
        all.iter().cloned().partition(|topic| topic.name == "deleted.orders.rejects");
    let others = [TopicSpec { name: "deleted.orders.ingress2".to_owned(), ..before[0].clone() }];
    make(&before);
    make(&others);
    let ours: BTreeSet<String> = ours.into_iter().map(|topic| topic.name).collect();
    scene.pipeline(&json!({"shards": 2, "topicDeletionPolicy": "Delete"}));
    scene.finalizers(&[FINALIZER]);
    assert_eq!(scene.created(), ours);
    scene.condition("Ready False WorkersNotReady");
    scene.topics(&all.iter().map(|topic| topic.name.clone()).collect());
    // A worker that does not end at once.
    let uid = scene.get("sts", "orders-unify")["metadata"]["uid"].clone();
    let labels = json!({"app.kubernetes.io/instance": "orders"});
    let pod = |name: &str, owners: Value| {
        scene.apply(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": labels, "ownerReferences": owners},
            "spec": {"serviceAccountName": "orders", "automountServiceAccountToken": false, "containers": [{"name": "worker", "image": "i"}]},
        }));
    };
    pod(
        "orders-unify-0",
        json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "orders-unify", "uid": uid}]),
    );
    pod("somebody-elses", json!([]));
    scene.delete();
    let said = scene.until("only the Pod left", || {
        let said = scene.condition("Progressing True Deleting");
        (said.starts_with("1 workers end, before their topics go: orders-unify-0; ").then(|| said.clone()), said)
    });
    assert!(said.contains("set spec.topicDeletionPolicy to Retain"), "{said}");
    assert_eq!(scene.names("sts"), Vec::<String>::new());
    assert_eq!(there(&all).len(), all.len(), "nothing goes before its workers");
    // Another operator goes on.
    scene.operator.signal("KILL").unwrap();
    (scene.operator, scene.admin) = start(scene.server, &scene.namespace);
    scene.kubectl(&["delete", "pod", "orders-unify-0", "--grace-period=0", "--force"], "");
    scene.gone();
    scene.topics(&BTreeSet::from(["deleted.orders.rejects".to_owned()]));
    assert_eq!(there(&others).len(), 1, "its name only begins like ours");
    let notes = scene.kubectl(
        &["get", "events.events.k8s.io", "-o", "jsonpath={range .items[?(@.reason==\"TopicsDeleted\")]}{.note}{end}"],
        "",
    );
    assert!(
        notes.contains("deleted.orders.g1.changelog.action")
            && notes.ends_with("these stayed, because the pipeline did not make them: deleted.orders.rejects"),
        "{notes}"
    );
}

#[test]
fn topics_of_the_same_names_in_another_kafka_cluster_are_others() {
    let scene = Scene::with_secret("moved");
    scene.pipeline(&json!({"shards": 2, "topicDeletionPolicy": "Delete"}));
    let all = scene.created();
    scene.topics(&all);
    let elsewhere = Kafka::start().unwrap();
    scene.patch(&json!({"kafka": {"bootstrapServers": [elsewhere.bootstrap()]}}));
    let survey = Survey::open(elsewhere.config()).unwrap();
    scene.until("topics in the other cluster", || {
        let found = all.iter().filter(|name| survey.layout(name).unwrap().is_some()).count();
        ((found == all.len()).then_some(()), format!("{found} of {}", all.len()))
    });
    scene.delete();
    scene.gone();
    scene.topics(&all);
    assert!(all.iter().all(|name| survey.layout(name).unwrap().is_some()));
    let here = survey.cluster().unwrap();
    let notes = scene.kubectl(
        &["get", "events.events.k8s.io", "-o", "jsonpath={range .items[?(@.reason==\"TopicsDeleted\")]}{.note}{end}"],
        "",
    );
    assert!(notes.contains(&format!("these brokers are of the cluster {here}")), "{notes}");
    assert!(notes.contains("no topics were deleted") && notes.contains("moved.orders.ingress"), "{notes}");
}

#[test]
fn what_stands_in_the_way_of_a_deletion_is_said_and_retain_lets_go() {
    let scene = Scene::with_secret("held");
    let spec = json!({"shards": 2, "topicDeletionPolicy": "Delete"});
    scene.pipeline(&spec);
    let all = scene.created();
    scene.topics(&all);
    scene.kubectl(
        &[
            "patch",
            "mip",
            "orders",
            "--type=json",
            "-p",
            r#"[{"op":"add","path":"/metadata/finalizers/-","value":"example.com/mine"}]"#,
        ],
        "",
    );
    // It comes and goes with the policy; others' stay.
    for (more, expected) in [
        (json!({"topicDeletionPolicy": "Retain"}), &["example.com/mine"][..]),
        (json!({"topicDeletionPolicy": "Delete", "paused": true}), &["example.com/mine", FINALIZER]),
        (json!({"kafka": {"topics": "Existing"}, "paused": false}), &["example.com/mine"]),
        (json!({"kafka": {"topics": "Managed"}}), &["example.com/mine", FINALIZER]),
    ] {
        scene.patch(&more);
        scene.finalizers(expected);
    }
    // They are others' since they were `Existing`: it made none of them.
    scene.until("nothing made", || {
        let made = scene.created();
        (made.is_empty().then_some(()), format!("{made:?}"))
    });
    scene.kubectl(&["patch", "mip", "orders", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#], "");
    scene.delete();
    scene.gone();
    scene.topics(&all);
    let log = KafkaLog::new(Kafka::shared().unwrap().config()).unwrap();
    log.delete_topics(&all.iter().cloned().collect::<Vec<_>>()).unwrap();
    scene.pipeline(&spec);
    assert_eq!(scene.created(), all);
    scene.topics(&all);
    let bootstrap = Kafka::shared().unwrap().bootstrap();
    scene.patch(&json!({"kafka": {"bootstrapServers": ["127.0.0.1:1"]}}));
    scene.delete();
    let said = scene.condition("Degraded True LogUnavailable");
    assert!(
        said.starts_with("its topics cannot be deleted: ")
            && said.contains("127.0.0.1:1")
            && said.contains("set spec.topicDeletionPolicy to Retain"),
        "{said}"
    );
    let sasl = json!({"username": "u", "password": {"name": "kafka", "key": "password"}});
    scene.patch(&json!({"kafka": {"bootstrapServers": [bootstrap], "sasl": sasl}}));
    assert!(scene.condition("Degraded True SecretMissing").contains("Secret kafka: is not there"));
    let said = scene.condition("Progressing True Deleting");
    assert!(said.starts_with("its topics cannot be deleted; to let the pipeline go at once"), "{said}");
    scene.patch(&json!({"topicDeletionPolicy": "Retain"}));
    scene.gone();
    scene.topics(&all);
}

#[test]
fn a_namespace_that_is_deleted_takes_its_pipeline_at_once_and_topics_stay() {
    let scene = Scene::run_from("terminating", "default");
    scene.secret("mongodb://db:27018/");
    scene.pipeline(&json!({"shards": 2, "topicDeletionPolicy": "Delete"}));
    let all = scene.created();
    scene.topics(&all);
    scene.finalizers(&[FINALIZER]);
    scene.server.run(&["delete", "namespace", "terminating", "--wait=false"], "").unwrap();
    // What the controller of namespaces would do.
    scene.delete();
    scene.gone();
    scene.topics(&all);
    let notes = scene.until("an Event", || {
        let path = "jsonpath={range .items[?(@.reason==\"TopicsRetained\")]}{.regarding.kind} {.related.namespace}: {.note}{end}";
        let notes = scene.server.run(&["get", "events.events.k8s.io", "-n", "default", "-o", path], "").unwrap();
        ((!notes.is_empty()).then(|| notes.clone()), notes)
    });
    assert!(
        notes.starts_with("Pod terminating: namespace terminating is being deleted")
            && notes.contains("terminating.orders.ingress"),
        "{notes}"
    );
}

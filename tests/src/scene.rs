//! The operator on a real API server, what can be seen of it, and processes that are what Pods would be.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use crate::pipeline;
use crate::servers::{ApiServer, Kafka, Kubectl, Mongo, Server, Stop, free_ports};
use millstream_shard::log::{Log as _, TopicSpec};
use millstream_shard::topics::Topics;
use millstream_stores::kafka::KafkaLog;
use millstream_stores::kafka::survey::Survey;

use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

pub fn least() -> Value {
    json!({
        "image": "registry.example.com/millstream:0.1.0",
        "kafka": {"bootstrapServers": ["kafka:9092"]},
        "documentStore": {"mongodb": {"uri": {"name": "mongodb", "key": "uri"}}},
    })
}

pub fn kubernetes() -> &'static Kubectl {
    ApiServer::shared().unwrap().kubectl()
}

/// The operator, for one namespace of the shared API server. Nothing but the API server is there: whatever a controller of Kubernetes would do, a test does itself.
pub struct Scene {
    pub server: &'static Kubectl,
    pub namespace: String,
    pub operator: Server,
    /// The operator's admin port.
    pub admin: u16,
}

impl Scene {
    pub fn new(namespace: &str) -> Scene {
        Scene::run_from(namespace, namespace)
    }

    /// The operator's own namespace is another one.
    pub fn run_from(namespace: &str, home: &str) -> Scene {
        Scene::on(kubernetes(), namespace, home)
    }

    /// The API server is another one than that which all share.
    pub fn on(server: &'static Kubectl, namespace: &str, home: &str) -> Scene {
        server.run(&["create", "namespace", namespace], "").unwrap();
        let (operator, admin) = start_from(server.kubeconfig(), namespace, home, &[]);
        Scene { server, namespace: namespace.to_owned(), operator, admin }
    }

    /// With the Secret that the pipeline refers to.
    pub fn with_secret(namespace: &str) -> Scene {
        let scene = Scene::new(namespace);
        scene.secret("mongodb://db:27018/");
        scene
    }

    pub fn kubectl(&self, arguments: &[&str], input: &str) -> String {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["-n", &self.namespace]).collect();
        self.server.run(&arguments, input).unwrap_or_else(|error| panic!("{error}\n{}", self.operator.log()))
    }

    pub fn apply(&self, object: &Value) {
        self.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", "-"], &object.to_string());
    }

    pub fn secret(&self, uri: &str) {
        self.apply(
            &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "mongodb"}, "stringData": {"uri": uri}}),
        );
    }

    pub fn pipeline(&self, more: &Value) {
        let mut spec = least();
        spec["kafka"] = json!({"bootstrapServers": [Kafka::shared().unwrap().bootstrap()], "replication": 1});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.apply(&json!({"apiVersion": "ingestion.millstream.dev/v1alpha1", "kind": "IngestionPipeline", "metadata": {"name": "orders"}, "spec": spec}));
    }

    /// A Secret of API keys.
    pub fn keys(&self, data: &Value) {
        let metadata = json!({"name": "keys", "labels": {"ingestion.millstream.dev/api-keys": "true"}});
        self.apply(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data}));
    }

    /// A tenant with these of the keys, on these terms.
    pub fn tenant(&self, name: &str, keys: &[&str], terms: &Value) {
        let keys: Vec<Value> = keys.iter().map(|key| json!({"name": "keys", "key": key})).collect();
        let mut spec = json!({"pipelineRef": {"name": "orders"}, "apiKeys": keys});
        spec.as_object_mut().unwrap().extend(terms.as_object().unwrap().clone());
        self.apply(&json!({"apiVersion": "ingestion.millstream.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": name}, "spec": spec}));
    }

    pub fn get(&self, kind: &str, name: &str) -> Value {
        serde_json::from_str(&self.kubectl(&["get", kind, name, "-o", "json"], "")).unwrap()
    }

    /// Names of what there is of a kind.
    pub fn names(&self, kind: &str) -> Vec<String> {
        let list = self.kubectl(&["get", kind, "-o", "jsonpath={.items[*].metadata.name}"], "");
        list.split_whitespace().map(str::to_owned).collect()
    }

    /// Waits until it is so; the last thing that was seen is in the failure.
    pub fn until<T>(&self, what: &str, mut look: impl FnMut() -> (Option<T>, String)) -> T {
        // Each look is a kubectl, a tenth of a second of a core: many that wait would keep all others from working.
        let seen = pipeline::until_by(Duration::from_millis(250), what, || {
            let (found, seen) = look();
            anyhow::ensure!(found.is_some(), "{seen}");
            Ok(found)
        });
        seen.unwrap_or_else(|error| panic!("{error:#}\n{}", self.operator.log()))
    }

    /// Waits for a condition, `Type Status Reason`, of the newest generation; its message.
    pub fn condition(&self, expected: &str) -> String {
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
    pub fn all_ready(&self) {
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
    pub fn patch(&self, spec: &Value) {
        let patch = json!({ "spec": spec }).to_string();
        self.kubectl(&["patch", "mip", "orders", "--type=merge", "-p", &patch], "");
    }

    /// Waits until the pipeline has exactly these finalizers.
    pub fn finalizers(&self, expected: &[&str]) {
        self.until("finalizers", || {
            let found = self.get("mip", "orders")["metadata"]["finalizers"].clone();
            let is_it = found == json!(expected) || (found.is_null() && expected.is_empty());
            (is_it.then_some(()), found.to_string())
        });
    }

    /// Deletes the pipeline, and waits for nothing.
    pub fn delete(&self) {
        self.kubectl(&["delete", "mip", "orders", "--wait=false"], "");
    }

    /// Waits until the pipeline has gone.
    pub fn gone(&self) {
        self.until("the pipeline gone", || {
            let names = self.names("mip");
            (
                names.is_empty().then_some(()),
                self.kubectl(&["get", "mip", "-o", "jsonpath={.items[*].status.conditions}"], ""),
            )
        });
    }

    /// The topics that the pipeline made, by its status.
    pub fn created(&self) -> BTreeSet<String> {
        self.until("what the pipeline made", || {
            let found = self.get("mip", "orders")["status"]["createdTopics"].clone();
            let names = found.as_array().map(|names| names.iter().map(|it| it.as_str().unwrap().to_owned()).collect());
            (names, found.to_string())
        })
    }

    /// Waits until exactly these of the pipeline's topics are there.
    pub fn topics(&self, expected: &BTreeSet<String>) {
        self.until("topics", || {
            let found = there(&specs(&self.namespace));
            ((found == *expected).then_some(()), format!("{found:?}"))
        });
    }

    /// What the plugin prints, and its exit code.
    pub fn plugin(&self, arguments: &[&str]) -> (String, i32) {
        self.plugin_at(self.server.kubeconfig(), arguments)
    }

    /// The same, with an API server of this kubeconfig file.
    pub fn plugin_at(&self, kubeconfig: &Path, arguments: &[&str]) -> (String, i32) {
        let url = format!("http://127.0.0.1:{}", self.admin);
        let mut plugin = std::process::Command::new(pipeline::binary().unwrap());
        plugin.env("KUBECONFIG", kubeconfig).env("MILLSTREAM_OPERATOR_URL", url);
        let output = plugin.arg("kubectl").args(arguments).args(["-n", &self.namespace]).output().unwrap();
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
        (said, output.status.code().unwrap())
    }

    /// What the operator says at a path of its admin port.
    pub fn admin(&self, path: &str) -> String {
        reqwest::blocking::get(format!("http://127.0.0.1:{}{path}", self.admin)).unwrap().text().unwrap()
    }

    /// The resource version of everything that there is.
    pub fn versions(&self) -> String {
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
pub fn start(server: &Kubectl, namespace: &str) -> (Server, u16) {
    start_from(server.kubeconfig(), namespace, namespace, &[])
}

pub fn start_from(kubeconfig: &Path, namespace: &str, home: &str, more: &[&str]) -> (Server, u16) {
    let folder = tempfile::Builder::new().prefix("millstream-operator-").tempdir().unwrap().keep();
    let kubeconfig = format!("KUBECONFIG={}", kubeconfig.display());
    let program = pipeline::program("millstream-operator").unwrap().display().to_string();
    let port = free_ports(1).unwrap()[0];
    let admin = format!("127.0.0.1:{port}");
    let places = ["--watch-namespace", namespace, "--namespace", home, "--admin-listen", &admin];
    let command: Vec<String> = ["env", &kubeconfig, &program]
        .into_iter()
        .chain(places)
        .chain(more.iter().copied())
        .map(str::to_owned)
        .collect();
    (Server::start(folder, Stop::Terminate, &command).unwrap(), port)
}

pub const FINALIZER: &str = "ingestion.millstream.dev/topics";

/// The topics of the pipeline `orders` with two shards.
pub fn specs(namespace: &str) -> Vec<TopicSpec> {
    Topics::new(&format!("{namespace}.orders"), 2, 1).specs()
}

/// Which of these topics are there.
pub fn there(topics: &[TopicSpec]) -> BTreeSet<String> {
    let survey = Survey::open(Kafka::shared().unwrap().config()).unwrap();
    topics.iter().map(|it| it.name.clone()).filter(|name| survey.layout(name).unwrap().is_some()).collect()
}

pub fn make(topics: &[TopicSpec]) {
    KafkaLog::new(Kafka::shared().unwrap().config()).unwrap().create_topics(topics).unwrap();
}

/// Processes that are what Pods would be: with the configuration that the operator wrote.
pub struct Pods {
    pub folder: tempfile::TempDir,
    pub running: BTreeMap<String, Server>,
    /// Brokers that the operator reaches by another way than they do, and theirs.
    pub bootstrap: Option<(String, String)>,
}

impl Default for Pods {
    fn default() -> Pods {
        Pods { folder: tempfile::tempdir().unwrap(), running: BTreeMap::new(), bootstrap: None }
    }
}

impl Pods {
    pub fn start(&mut self, scene: &Scene, stage: &str, ordinal: usize) {
        let name = format!("orders-{stage}-{ordinal}");
        let folder = self.folder.path().join(&name);
        std::fs::create_dir_all(folder.join("mongodb")).unwrap();
        std::fs::write(folder.join("mongodb/uri"), Mongo::shared().unwrap().uri()).unwrap();
        let set = scene.get("sts", &format!("orders-{stage}"));
        let volumes = set.pointer("/spec/template/spec/volumes").and_then(Value::as_array).unwrap();
        let map = volumes.iter().find_map(|volume| volume.pointer("/configMap/name")?.as_str()).unwrap();
        let config = scene.get("cm", map)["data"]["millstream.yaml"].as_str().unwrap().to_owned();
        let [http, admin] = <[u16; 2]>::try_from(free_ports(2).unwrap()).unwrap();
        let (operators, ours) = self.bootstrap.clone().unwrap_or_default();
        let config = if operators.is_empty() { config } else { config.replace(&operators, &ours) };
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

    pub fn kill(&mut self, name: &str) {
        drop(self.running.remove(name).unwrap());
    }

    /// As Kubernetes ends a Pod.
    pub fn end(&mut self, name: &str) {
        self.running.remove(name).unwrap().terminate().unwrap();
    }

    /// The planned owners of a stage's shards, as a worker of action sees the plan.
    pub fn planned(&self, stage: &str) -> BTreeSet<String> {
        let config = self.folder.path().join("orders-action-0/millstream.yaml");
        let mut show = std::process::Command::new(pipeline::binary().unwrap());
        let output = show.args(["plan", "show", "--config"]).arg(config).output().unwrap();
        let plan: Value = serde_yaml::from_slice(&output.stdout).unwrap_or_default();
        let shards = plan["stages"][stage].as_array().cloned().unwrap_or_default();
        shards.iter().filter_map(|shard| shard["owner"].as_str().map(str::to_owned)).collect()
    }

    /// The process of a Pod.
    pub fn pid(&self, name: &str) -> i32 {
        self.running[name].pid()
    }

    /// What the gateway answers a sender with this key.
    pub fn answer(&self, name: &str, key: &str) -> anyhow::Result<u16> {
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

//! A stage whose Pods get another template one after the other: what Kubernetes would do with its StatefulSet, whose Pods are processes of workers.

use millstream_tests::scene::{Pods, Scene};
use serde_json::{Value, json};
use std::cell::RefCell;

/// A template is another revision by the operator's own hash of it.
const TEMPLATE_HASH: &str = "/metadata/annotations/ingestion.millstream.dev~1template-hash";
const PARTITION: &str = "/spec/updateStrategy/rollingUpdate/partition";
/// `partition` while nobody is replaced.
const AT_REST: i64 = 4096;

/// A stage's StatefulSet.
pub(super) struct Roll<'a> {
    pub(super) scene: &'a Scene,
    pub(super) pods: &'a RefCell<Pods>,
    pub(super) stage: &'a str,
}

fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

fn revision(pod: &Value) -> &str {
    text(pod, "/metadata/labels/controller-revision-hash")
}

impl Roll<'_> {
    fn pod(&self, ordinal: usize) -> String {
        format!("orders-{}-{ordinal}", self.stage)
    }

    fn set(&self) -> Value {
        self.scene.get("sts", &format!("orders-{}", self.stage))
    }

    /// A Pod of this revision that works; its process is started.
    fn create(&self, ordinal: usize, revision: &str) {
        let labels = json!({"app.kubernetes.io/instance": "orders", "app.kubernetes.io/component": self.stage, "controller-revision-hash": revision});
        let name = self.pod(ordinal);
        self.scene.apply(&json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels},
            "spec": {"serviceAccountName": "orders", "automountServiceAccountToken": false, "containers": [{"name": "worker", "image": "i"}]},
        }));
        let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}).to_string();
        self.scene.kubectl(&["patch", "pod", &name, "--subresource=status", "--type=merge", "-p", &ready], "");
        self.pods.borrow_mut().start(self.scene, self.stage, ordinal);
    }

    fn tell(&self, set: &Value, current: &str) {
        let replicas = &set["spec"]["replicas"];
        let status = json!({
            "observedGeneration": set["metadata"]["generation"], "replicas": replicas, "readyReplicas": replicas,
            "currentRevision": current, "updateRevision": text(set, TEMPLATE_HASH),
        });
        let is_said = |(name, value): (&String, &Value)| set["status"][name] == *value;
        if !status.as_object().unwrap().iter().all(is_said) {
            let (name, patch) = (text(set, "/metadata/name"), json!({ "status": status }).to_string());
            self.scene.kubectl(&["patch", "sts", name, "--subresource=status", "--type=merge", "-p", &patch], "");
        }
    }

    /// The revision of the template that there is.
    pub(super) fn newest(&self) -> String {
        text(&self.set(), TEMPLATE_HASH).to_owned()
    }

    /// Kubernetes looks at it, and replaces nobody: its Pods are of this revision.
    pub(super) fn stays_at(&self, revision: &str) {
        self.tell(&self.set(), revision);
    }

    pub(super) fn partition(&self) -> i64 {
        self.set().pointer(PARTITION).and_then(Value::as_i64).unwrap()
    }

    /// All of its Pods come, of the template that there is; its revision.
    pub(super) fn begin(&self) -> String {
        let set = self.set();
        let revision = text(&set, TEMPLATE_HASH);
        for ordinal in 0..usize::try_from(set["spec"]["replicas"].as_u64().unwrap()).unwrap() {
            self.create(ordinal, revision);
        }
        self.tell(&set, revision);
        revision.to_owned()
    }

    /// No Pods come, and the status says that all is well.
    pub(super) fn pretend(&self) {
        let set = self.set();
        self.tell(&set, text(&set, TEMPLATE_HASH));
    }

    /// Kubernetes looks at it once, and replaces one Pod at most; how many are not of this former revision any more.
    pub(super) fn look(&self, former: &str) -> usize {
        let set = self.set();
        let newest = text(&set, TEMPLATE_HASH);
        let partition = set.pointer(PARTITION).and_then(Value::as_u64).unwrap();
        let list = self.scene.kubectl(&["get", "pods", "-o", "json"], "");
        let list: Value = serde_json::from_str(&list).unwrap();
        let pods: Vec<&Value> = list["items"].as_array().unwrap().iter().collect();
        let is_old = |ordinal: &usize| {
            let pod = pods.iter().find(|pod| text(pod, "/metadata/name") == self.pod(*ordinal)).unwrap();
            revision(pod) != newest
        };
        let old: Vec<usize> = (0..pods.len()).filter(is_old).collect();
        let Some(last) = old.last().copied() else {
            self.tell(&set, newest);
            return if newest == former { 0 } else { pods.len() };
        };
        self.tell(&set, revision(pods.iter().find(|pod| text(pod, "/metadata/name") == self.pod(last)).unwrap()));
        if partition > last as u64 {
            return pods.len() - old.len();
        }
        // Whatever died before: nothing is its any more.
        let name = self.pod(last);
        let planned = self.pods.borrow().planned(self.stage);
        assert!(!planned.contains(&name), "{name} goes, and has shards: {planned:?}");
        self.pods.borrow_mut().end(&name);
        self.scene.kubectl(&["delete", "pod", &name, "--grace-period=0", "--force"], "");
        self.create(last, newest);
        pods.len() - old.len() + 1
    }

    /// Nobody is replaced.
    pub(super) fn is_at_rest(&self) -> bool {
        self.partition() == AT_REST
    }
}

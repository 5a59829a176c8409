//! What the operator writes to Kafka, one write at a time: it dies before and after each. What comes of it is what a pipeline's users and workers see when nothing happens.

use millstream_tests::api_proxy::Fate;
use millstream_tests::kafka_proxy::KafkaProxy;
use millstream_tests::scene::{FINALIZER, Pods, Scene, specs, start, there};
use millstream_tests::servers::{Kafka, Mongo};
use serde_json::json;
use std::cell::RefCell;
use std::collections::BTreeSet;

const STAGES: [&str; 4] = ["unify", "action", "reaction", "gateway"];

/// A namespace whose operator reaches Kafka through a proxy; its workers do not.
struct Writes {
    scene: Scene,
    proxy: KafkaProxy,
    pods: RefCell<Pods>,
    /// Writes that an operator died before, and after.
    died: BTreeSet<(String, bool)>,
}

impl Writes {
    fn new(namespace: &str) -> Writes {
        let mut scene = Scene::new(namespace);
        scene.operator.kill().unwrap();
        scene.secret(Mongo::shared().unwrap().uri());
        let bootstrap = Kafka::shared().unwrap().bootstrap();
        let upstream = bootstrap.rsplit_once(':').unwrap().1.parse().unwrap();
        let proxy = KafkaProxy::start(upstream).unwrap();
        let operators = format!("127.0.0.1:{}", proxy.port);
        let kafka = json!({"bootstrapServers": [operators], "replication": 1});
        let few = STAGES.map(|stage| (stage.to_owned(), json!({"replicas": 1}))).into_iter().collect();
        let stages = serde_json::Value::Object(few);
        scene.pipeline(
            &json!({"shards": 2, "standbys": 0, "topicDeletionPolicy": "Delete", "kafka": kafka, "stages": stages}),
        );
        let pods = RefCell::new(Pods { bootstrap: Some((operators, bootstrap.to_owned())), ..Pods::default() });
        Writes { scene, proxy, pods, died: BTreeSet::new() }
    }

    /// Until something is so, each operator dies at the first write at which none has died yet: before it is done, the next one after.
    fn die_at_each_until(&mut self, what: &str, is_so: impl Fn(&Writes) -> bool) {
        loop {
            let (known, phase) = (self.died.clone(), what.to_owned());
            let (say, at) = std::sync::mpsc::channel();
            self.proxy.go_on(move |name, _| {
                // What is published, and how it becomes visible, is another thing each time.
                let is_said = name.starts_with("Produce") || name == "EndTxn";
                let name = if is_said { format!("{name} ({phase})") } else { name.to_owned() };
                for (is_done, fate) in [(false, Fate::StruckBefore), (true, Fate::StruckAfter)] {
                    if !known.contains(&(name.clone(), is_done)) {
                        let _ = say.send((name, is_done));
                        return fate;
                    }
                }
                Fate::Done
            });
            let lease = format!("lease/millstream-operator-{}", self.scene.namespace);
            self.scene.kubectl(&["delete", &lease, "--ignore-not-found"], "");
            (self.scene.operator, self.scene.admin) = start(self.scene.server, &self.scene.namespace);
            self.scene.until(what, || {
                let seen = format!("died at {:?}", self.died);
                ((self.proxy.has_struck() || is_so(self)).then_some(()), seen)
            });
            let has_struck = self.proxy.has_struck();
            self.scene.operator.kill().unwrap();
            match at.try_recv() {
                Ok(write) if has_struck => assert!(self.died.insert(write)),
                _ => return,
            }
        }
    }

    fn is_answered(&self, expected: u16) -> bool {
        self.pods.borrow().answer("orders-gateway-0", "the-key").is_ok_and(|code| code == expected)
    }

    /// As Kubernetes ends Pods whose StatefulSet is gone.
    fn end_pods(&self) {
        let sets = self.scene.names("sts");
        let stages = STAGES.into_iter().filter(|stage| !sets.contains(&format!("orders-{stage}")));
        let mut pods = self.pods.borrow_mut();
        for name in stages.map(|stage| format!("orders-{stage}-0")) {
            if pods.running.contains_key(&name) {
                pods.end(&name);
            }
        }
    }
}

#[test]
fn an_operator_that_dies_before_or_after_any_of_its_writes_to_kafka_has_done_no_harm() {
    let mut writes = Writes::new("kafka-writes");
    let all: BTreeSet<String> = specs("kafka-writes").into_iter().map(|topic| topic.name).collect();
    writes.die_at_each_until("topics", |it| {
        it.scene.names("sts").len() == STAGES.len() && there(&specs("kafka-writes")) == all
    });
    assert_eq!(writes.scene.created(), all, "whoever made them, they are the pipeline's");
    for stage in STAGES {
        writes.pods.borrow_mut().start(&writes.scene, stage, 0);
    }
    writes.die_at_each_until("the plan", |it| {
        let owned = ["unify", "action", "reaction"].map(|stage| it.pods.borrow().planned(stage).len());
        owned == [1, 1, 1]
    });
    writes.scene.keys(&json!({"one": "the-key"}));
    writes.scene.tenant("acme", &["one"], &json!({}));
    writes.die_at_each_until("a tenant", |it| it.is_answered(200));
    writes.scene.kubectl(&["delete", "tenant", "acme", "--timeout=10s"], "");
    writes.die_at_each_until("a tenant goes", |it| it.is_answered(401));
    writes.scene.finalizers(&[FINALIZER]);
    writes.scene.delete();
    writes.die_at_each_until("the end", |it| {
        it.end_pods();
        it.scene.names("mip").is_empty()
    });
    assert_eq!(there(&specs("kafka-writes")), BTreeSet::new());
    let died: BTreeSet<&str> = writes.died.iter().map(|(name, _)| name.as_str()).collect();
    println!("died before and after each of these: {died:#?}");
    assert_eq!(writes.died.len(), 2 * died.len(), "{:?}", writes.died);
    let control = "Produce kafka-writes.orders.control";
    let said = ["the plan", "a tenant", "a tenant goes"]
        .map(|what| [control, "EndTxn"].map(|name| format!("{name} ({what})")));
    let others = ["CreateTopics", "InitProducerId", "AddPartitionsToTxn", "DeleteTopics"];
    assert_eq!(died, said.iter().flatten().map(String::as_str).chain(others).collect());
}

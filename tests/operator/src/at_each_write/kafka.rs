//! What the operator writes to Kafka, one write at a time: it dies before and after each. What comes of it is what a pipeline's users and workers see when nothing happens.

use super::roll::Roll;
use millstream_tests::api_proxy::Fate;
use millstream_tests::kafka_proxy::KafkaProxy;
use millstream_tests::scene::{FINALIZER, Pods, Scene, specs, start, there};
use millstream_tests::servers::{Kafka, Mongo};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

const STAGES: [&str; 4] = ["unify", "action", "reaction", "gateway"];

/// A namespace whose operator reaches Kafka through a proxy; its workers do not.
struct Writes {
    scene: Scene,
    proxy: KafkaProxy,
    pods: RefCell<Pods>,
    /// Of the pipeline, but for its stages.
    spec: Value,
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
        let spec = json!({"shards": 2, "standbys": 0, "topicDeletionPolicy": "Delete", "kafka": kafka});
        let pods = RefCell::new(Pods { bootstrap: Some((operators, bootstrap.to_owned())), ..Pods::default() });
        let writes = Writes { scene, proxy, pods, spec, died: BTreeSet::new() };
        writes.pipeline(&json!({}));
        writes
    }

    /// With this in the specification of the stage of action; each has one worker.
    fn pipeline(&self, action: &Value) {
        let mut spec = self.spec.clone();
        spec["stages"] = STAGES.map(|stage| (stage.to_owned(), json!({"replicas": 1}))).into_iter().collect();
        spec["stages"]["action"].as_object_mut().unwrap().extend(action.as_object().unwrap().clone());
        self.scene.pipeline(&spec);
    }

    /// An operator that nothing happens to until there are StatefulSets.
    fn begin(&mut self) {
        self.proxy.go_on(|_, _| Fate::Done);
        (self.scene.operator, self.scene.admin) = start(self.scene.server, &self.scene.namespace);
        self.scene.condition("Ready False WorkersNotReady");
    }

    /// Until something is so, each operator dies at the first write at which none has died yet: before it is done, the next one after.
    fn die_at_each_until(&mut self, what: &str, is_so: impl Fn(&Writes) -> bool) {
        self.die_at_each_of(1..=1, what, is_so);
    }

    /// The same; of what an operator publishes, it dies at these messages: the first one is a plan, by which it leads.
    fn die_at_each_of(&mut self, which: RangeInclusive<usize>, what: &str, is_so: impl Fn(&Writes) -> bool) {
        while self.dies_at(&which, what, &is_so) {}
    }

    /// Until operators have died before and after the second message of each, which says this, became visible.
    fn die_until_said(&mut self, what: &str) {
        let visible = (format!("EndTxn ({what})"), true);
        while !self.died.contains(&visible) {
            assert!(self.dies_at(&(2..=2), what, |_| false));
        }
    }

    /// One operator, until it dies at such a write, or something is so; whether it has died.
    fn dies_at(&mut self, which: &RangeInclusive<usize>, what: &str, is_so: impl Fn(&Writes) -> bool) -> bool {
        let (known, phase, which) = (self.died.clone(), what.to_owned(), which.clone());
        let mut published: BTreeMap<String, usize> = BTreeMap::new();
        let (say, at) = std::sync::mpsc::channel();
        self.proxy.go_on(move |name, _| {
            // What is published, and how it becomes visible, is another thing each time.
            let is_said = name.starts_with("Produce") || name == "EndTxn";
            let number = published.entry(name.to_owned()).or_default();
            *number += 1;
            if is_said && !which.contains(number) {
                return Fate::Done;
            }
            let again = if *number > *which.start() { " again" } else { "" };
            let name = if is_said { format!("{name} ({phase}{again})") } else { name.to_owned() };
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
            Ok(write) if has_struck => self.died.insert(write),
            _ => false,
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
    writes.die_at_each_of(2..=2, "a tenant", |it| it.is_answered(200));
    writes.scene.kubectl(&["delete", "tenant", "acme", "--timeout=10s"], "");
    writes.die_at_each_of(2..=2, "a tenant goes", |it| it.is_answered(401));
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

/// Who died before and after what is said of these phases.
fn of_phases(writes: &Writes, topic: &str, phases: &[&str]) {
    let said = phases.iter().flat_map(|phase| [topic, "EndTxn"].map(|name| format!("{name} ({phase})")));
    for name in said {
        let died = [false, true].map(|is_done| writes.died.contains(&(name.clone(), is_done)));
        assert_eq!(died, [true, true], "{name}: {:#?}", writes.died);
    }
}

#[test]
fn an_operator_that_dies_while_shards_leave_a_pod_for_another_template_has_done_no_harm() {
    let mut writes = Writes::new("kafka-roll");
    writes.pipeline(&json!({"replicas": 2}));
    writes.begin();
    let former = Roll { scene: &writes.scene, pods: &writes.pods, stage: "action" }.begin();
    let roll = |it: &Writes| Roll { scene: &it.scene, pods: &it.pods, stage: "action" }.look(&former);
    for stage in ["gateway", "unify", "reaction"] {
        Roll { scene: &writes.scene, pods: &writes.pods, stage }.pretend();
    }
    let owners = |it: &Writes| it.pods.borrow().planned("action");
    writes.scene.until("a plan of both", || {
        let owners = owners(&writes);
        ((owners.len() == 2).then_some(()), format!("{owners:?}"))
    });
    writes.scene.operator.kill().unwrap();
    writes.pipeline(&json!({"replicas": 2, "config": {"batch": {"max_time": "20ms"}}}));
    let only = |it: &Writes, ordinal: usize| owners(it).iter().eq([&format!("orders-action-{ordinal}")]);
    writes.die_at_each_of(1..=2, "leave the last", |it| roll(it) == 1 || only(it, 0));
    writes.die_at_each_until("leave the first", |it| match roll(it) {
        2 => true,
        1 => only(it, 1),
        _ => false,
    });
    writes.die_at_each_until("come back", |it| roll(it) == 2 && owners(it).len() == 2);
    of_phases(&writes, "Produce kafka-roll.orders.control", &["leave the last", "leave the first", "come back"]);
}

#[test]
fn an_operator_that_dies_at_any_of_its_writes_to_kafka_about_an_erasure_has_done_no_harm() {
    let mut writes = Writes::new("kafka-erasure");
    writes.scene.keys(&json!({"one": "the-key"}));
    writes.begin();
    writes.scene.tenant("acme", &["one"], &json!({"deletionPolicy": "Erase"}));
    for stage in ["action", "reaction"] {
        writes.pods.borrow_mut().start(&writes.scene, stage, 0);
    }
    let condition = |it: &Writes| it.scene.get("tenant", "acme")["status"]["conditions"][0].clone();
    writes.scene.until("a plan, and a Tenant that is held", || {
        let owned = ["action", "reaction"].map(|stage| writes.pods.borrow().planned(stage).len());
        let condition = condition(&writes);
        ((owned == [1, 1] && condition["reason"] == "NoGateways").then_some(()), format!("{owned:?}, {condition}"))
    });
    writes.scene.operator.kill().unwrap();
    writes.scene.kubectl(&["delete", "tenant", "acme", "--wait=false"], "");
    // The plan comes first, then what is to be erased; and when that is done, what is to be erased then.
    writes.die_until_said("users and devices");
    writes.die_until_said("documents");
    writes.die_at_each_of(2..=2, "gone", |it| it.scene.names("tenants").is_empty());
    of_phases(&writes, "Produce kafka-erasure.orders.control", &["users and devices", "documents"]);
}

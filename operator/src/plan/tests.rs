//! Pods go one at a time, and their shards first.

use super::*;
use crate::SecretHashes;
use crate::build::build;
use crate::fleet::Shard;
use millstream_plan::plan::ShardId;
use serde_json::{Value, json};

const SHARDED: [StageName; 3] = [StageName::Unify, StageName::Action, StageName::Reaction];

fn prepared(more: &Value, replicas: &[(StageName, i32)]) -> Prepared {
    let mut object = json!({
        "apiVersion": "ingestion.millstream.dev/v1alpha1", "kind": "IngestionPipeline",
        "metadata": {"name": "orders", "namespace": "shop", "uid": "1"},
        "spec": {"image": "i", "kafka": {"bootstrapServers": ["k:1"]}, "documentStore": {"mongodb": {"uri": {"name": "m", "key": "uri"}}}},
    });
    object["spec"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    Prepared {
        pipeline: serde_json::from_value(object).unwrap(),
        replicas: replicas.iter().copied().collect(),
        secrets: SecretHashes::default(),
        document_ports: BTreeSet::new(),
        operator_namespace: "millstream-system".to_owned(),
    }
}

fn pods(revisions: &[&str]) -> BTreeMap<i32, PodSeen> {
    let pod = |revision: &&str| PodSeen { revision: (*revision).to_owned(), is_ready: true, ..PodSeen::default() };
    (0..).zip(revisions.iter().map(pod)).collect()
}

/// Two ready workers of each stage, of the template that is wanted.
struct Scene {
    prepared: Prepared,
    objects: Objects,
    seen: Seen,
    fleet: Fleet,
}

impl Scene {
    fn new(more: &Value, replicas: &[(StageName, i32)]) -> Scene {
        let prepared = prepared(more, replicas);
        let objects = build(&prepared).unwrap();
        let stage = |set: &StatefulSet| StageSeen {
            replicas: 2,
            partition: AT_REST,
            template_hash: set.annotations()[TEMPLATE_HASH].clone(),
            is_observed: true,
            current: "a".to_owned(),
            newest: "a".to_owned(),
            pods: pods(&["a", "a"]),
        };
        let stages = [StageName::Gateway, StageName::Unify, StageName::Action, StageName::Reaction];
        let seen = stages.iter().map(|name| {
            let set = objects.stateful_sets.iter().find(|set| set.name_any().ends_with(name.as_str())).unwrap();
            (*name, stage(set))
        });
        let seen = seen.collect();
        let mut scene = Scene { prepared, objects, seen, fleet: Fleet::default() };
        for name in SHARDED {
            scene.owns(name, 0, 0);
            scene.owns(name, 1, 1);
        }
        scene
    }

    fn of(&mut self, stage: StageName) -> &mut StageSeen {
        self.seen.get_mut(&stage).unwrap()
    }

    fn owns(&mut self, stage: StageName, shard: u32, ordinal: i32) {
        let worker = format!("orders-{}-{ordinal}", stage.as_str());
        self.fleet.alive.insert(worker.clone());
        self.fleet.takers.insert(worker.clone());
        let shard_of = Shard { planned: worker.clone(), owner: Some(worker), ..Shard::default() };
        self.fleet.shards.insert(ShardId::new(stage.as_str(), shard), shard_of);
    }

    /// It is silent for long.
    fn dies(&mut self, worker: &str) {
        self.fleet.alive.remove(worker);
        self.fleet.takers.remove(worker);
    }

    fn plan(&self) -> Intent {
        plan(&self.prepared, &self.objects, &self.seen, Some(&self.fleet))
    }

    /// The template of a stage has changed.
    fn changed(&mut self, stage: StageName) {
        self.of(stage).newest = "b".to_owned();
    }
}

fn leaving(intent: &Intent) -> Vec<&str> {
    intent.leaving.iter().map(String::as_str).collect()
}

#[test]
fn at_rest_nothing_happens() {
    let intent = Scene::new(&json!({}), &[]).plan();
    assert_eq!((intent.leaving.len(), intent.doing.len()), (0, 0));
    assert!(intent.sizes.values().all(|size| *size == (2, AT_REST)), "{intent:?}");
}

#[test]
fn a_changed_template_reaches_one_pod_after_the_other_and_its_shards_leave_first() {
    let mut scene = Scene::new(&json!({}), &[]);
    let stage = StageName::Action;
    scene.changed(stage);
    let now = |scene: &Scene| {
        let intent = scene.plan();
        (leaving(&intent).join(" "), intent.sizes[&stage])
    };
    // Its shards leave.
    assert_eq!(now(&scene), ("orders-action-1".to_owned(), (2, AT_REST)));
    scene.owns(stage, 1, 0);
    // It is its turn; until it is gone, nothing comes back to it.
    assert_eq!(now(&scene), ("orders-action-1".to_owned(), (2, 1)));
    scene.of(stage).partition = 1;
    assert_eq!(now(&scene), ("orders-action-1".to_owned(), (2, 1)));
    // It goes, comes and gets ready: nothing else happens meanwhile, and what it is given again does not keep it.
    scene.of(stage).pods.remove(&1);
    assert_eq!(now(&scene), (String::new(), (2, 1)));
    scene.of(stage).pods.insert(1, PodSeen { revision: "b".to_owned(), ..PodSeen::default() });
    assert_eq!(now(&scene), (String::new(), (2, 1)));
    scene.of(stage).pods = pods(&["a", "b"]);
    // The next.
    assert_eq!(now(&scene), ("orders-action-0".to_owned(), (2, 1)));
    scene.owns(stage, 0, 1);
    scene.owns(stage, 1, 1);
    assert_eq!(now(&scene), ("orders-action-0".to_owned(), (2, 0)));
    scene.of(stage).partition = 0;
    scene.of(stage).pods = pods(&["b", "b"]);
    // Until Kubernetes counts the new revision as the current one, a Pod that is made again must get it.
    assert_eq!(now(&scene), (String::new(), (2, 0)));
    scene.of(stage).current = "b".to_owned();
    assert_eq!(now(&scene), (String::new(), (2, AT_REST)));
}

#[test]
fn a_template_that_is_taken_back_in_the_middle_reaches_those_alone_who_have_the_other_one() {
    let mut scene = Scene::new(&json!({}), &[]);
    let stage = StageName::Action;
    scene.changed(stage);
    scene.of(stage).partition = 1;
    scene.of(stage).pods = pods(&["a", "b"]);
    assert_eq!(leaving(&scene.plan()), ["orders-action-0"]);
    // The former template is applied again: Kubernetes counts its revision as the current and as the newest one.
    scene.of(stage).template_hash = "b".to_owned();
    assert_eq!((leaving(&scene.plan()), scene.plan().sizes[&stage]), (vec![], (2, AT_REST)));
    let hash = Scene::new(&json!({}), &[]).of(stage).template_hash.clone();
    let seen = scene.of(stage);
    (seen.template_hash, seen.newest, seen.partition) = (hash, "a".to_owned(), AT_REST);
    let now = |scene: &Scene| {
        let intent = scene.plan();
        (leaving(&intent).join(" "), intent.sizes[&stage])
    };
    assert_eq!(now(&scene), ("orders-action-1".to_owned(), (2, AT_REST)));
    scene.owns(stage, 1, 0);
    assert_eq!(now(&scene), ("orders-action-1".to_owned(), (2, 1)));
    scene.of(stage).partition = 1;
    scene.of(stage).pods.insert(1, PodSeen { revision: "a".to_owned(), ..PodSeen::default() });
    // There is one revision again, whichever Pod is made again: it is over, and nobody else was touched.
    assert_eq!(now(&scene), (String::new(), (2, AT_REST)));
    scene.of(stage).pods = pods(&["a", "a"]);
    assert_eq!(now(&scene), (String::new(), (2, AT_REST)));
    assert_eq!(scene.plan().doing, Vec::<String>::new());
}

#[test]
fn what_others_do_to_the_partition_is_set_back() {
    let mut scene = Scene::new(&json!({}), &[]);
    let stage = StageName::Unify;
    scene.of(stage).partition = 0;
    assert_eq!(scene.plan().sizes[&stage], (2, AT_REST));
    scene.changed(stage);
    assert_eq!(scene.plan().sizes[&stage], (2, AT_REST), "nobody has the newest");
    scene.of(stage).pods = pods(&["a", "b"]);
    assert_eq!(scene.plan().sizes[&stage], (2, 1));
}

#[test]
fn a_stage_whose_other_workers_are_dead_is_mended_by_a_new_template() {
    let mut scene = Scene::new(&json!({}), &[]);
    let stage = StageName::Action;
    scene.changed(stage);
    // The one below is in a crash loop: nobody can take the shards of the one above.
    scene.dies("orders-action-0");
    scene.owns(stage, 0, 1);
    scene.of(stage).pods.get_mut(&0).unwrap().is_ready = false;
    assert_eq!((leaving(&scene.plan()), scene.plan().sizes[&stage]), (vec![], (2, 1)));
    scene.of(stage).pods = pods(&["a", "b"]);
    scene.of(stage).pods.get_mut(&0).unwrap().is_ready = false;
    assert_eq!(scene.plan().sizes[&stage], (2, 0));
}

#[test]
fn a_pod_whose_shards_nobody_takes_is_replaced_with_them() {
    let mut scene = Scene::new(&json!({}), &[]);
    let stage = StageName::Reaction;
    scene.changed(stage);
    scene.changed(StageName::Action);
    assert_eq!((leaving(&scene.plan()), scene.plan().sizes[&stage]), (vec!["orders-reaction-1"], (2, AT_REST)));
    // The other one is alive, with a password that Kafka takes for no new connection: it never is prepared.
    scene.fleet.stalled = ["orders-reaction-1".to_owned()].into();
    let intent = scene.plan();
    assert_eq!((leaving(&intent), intent.sizes[&stage]), (vec!["orders-reaction-1"], (2, 1)));
    assert!(intent.doing[0].contains("nobody takes them"), "{intent:?}");
    // It ends, and is still heard; whoever asks now may know nothing of how long it was waited for.
    scene.of(stage).partition = 1;
    (scene.of(stage).pods.get_mut(&1).unwrap().is_ending, scene.fleet.stalled) = (true, BTreeSet::new());
    assert_eq!(scene.plan().sizes[&stage], (2, 1), "it must not come back with the old template");
    // The next one's shards are taken by the new one, and then it is the other stage's turn.
    scene.of(stage).pods = pods(&["a", "b"]);
    assert_eq!((leaving(&scene.plan()), scene.plan().sizes[&stage]), (vec!["orders-reaction-0"], (2, 1)));
    (scene.of(stage).pods, scene.of(stage).current) = (pods(&["b", "b"]), "b".to_owned());
    assert_eq!(leaving(&scene.plan()), ["orders-action-1"]);
}

#[test]
fn a_stage_that_cannot_get_smaller_gets_the_template_that_may_mend_it() {
    let stage = StageName::Reaction;
    let mut scene = Scene::new(&json!({}), &[(stage, 2)]);
    scene.of(stage).replicas = 3;
    scene.of(stage).pods = pods(&["a"; 3]);
    scene.owns(stage, 2, 2);
    scene.changed(stage);
    assert_eq!((leaving(&scene.plan()), scene.plan().sizes[&stage]), (vec!["orders-reaction-2"], (3, AT_REST)));
    scene.fleet.stalled = ["orders-reaction-2".to_owned()].into();
    let intent = scene.plan();
    assert_eq!((leaving(&intent), intent.sizes[&stage]), (vec!["orders-reaction-2"], (3, 2)));
    assert!(intent.doing[0].ends_with("; those who are to stay do not take them"), "{intent:?}");
}

#[test]
fn a_stage_that_gets_smaller_in_the_middle_of_a_change_gets_smaller_first() {
    let stage = StageName::Action;
    let mut scene = Scene::new(&json!({}), &[(stage, 1)]);
    scene.changed(stage);
    scene.of(stage).partition = 1;
    scene.of(stage).pods = pods(&["a", "b"]);
    assert_eq!((leaving(&scene.plan()), scene.plan().sizes[&stage]), (vec!["orders-action-1"], (2, 1)));
    scene.owns(stage, 1, 0);
    assert_eq!((leaving(&scene.plan()), scene.plan().sizes[&stage].0), (vec!["orders-action-1"], 1));
    scene.of(stage).replicas = 1;
    scene.of(stage).pods.remove(&1);
    scene.dies("orders-action-1");
    assert_eq!((leaving(&scene.plan()), scene.plan().sizes[&stage]), (vec![], (1, 0)), "it is alone by now");
}

#[test]
fn a_pod_that_does_not_end_holds_up_no_other_stage() {
    let mut scene = Scene::new(&json!({}), &[]);
    for stage in [StageName::Action, StageName::Unify] {
        scene.changed(stage);
    }
    scene.dies("orders-action-1");
    let pod = PodSeen { revision: "a".to_owned(), is_overdue: true, ..PodSeen::default() };
    scene.of(StageName::Action).pods.insert(1, pod.clone());
    let intent = scene.plan();
    assert_eq!((leaving(&intent), intent.sizes[&StageName::Action]), (vec!["orders-unify-1"], (2, AT_REST)));
    // One that is too many does not even hold up its own.
    let mut scene = Scene::new(&json!({}), &[]);
    scene.of(StageName::Action).pods.insert(2, pod);
    assert_eq!(scene.plan().doing, Vec::<String>::new());
}

#[test]
fn a_pod_that_stays_pending_holds_up_no_other_stage() {
    let mut scene = Scene::new(&json!({}), &[]);
    for stage in [StageName::Reaction, StageName::Action] {
        scene.changed(stage);
    }
    // It was replaced, and there is no node for it any more.
    let stage = StageName::Reaction;
    scene.dies("orders-reaction-1");
    scene.of(stage).partition = 1;
    scene.of(stage).pods.insert(1, PodSeen { revision: "b".to_owned(), ..PodSeen::default() });
    let intent = scene.plan();
    assert_eq!((leaving(&intent), intent.doing.clone()), (vec![], vec!["orders-reaction-1 starts".to_owned()]));
    scene.of(stage).pods.get_mut(&1).unwrap().unplaced = Some("0/3 nodes are available".to_owned());
    let intent = scene.plan();
    assert_eq!((leaving(&intent), intent.sizes[&stage]), (vec!["orders-action-1"], (2, 1)), "its own stage waits");
    assert!(intent.doing[0] == "orders-reaction-1 finds no node" && intent.unplaced.is_empty(), "{intent:?}");
    // A stage that comes before it in the order goes on as well, and still one Pod goes at a time.
    let mut scene = Scene::new(&json!({}), &[]);
    for stage in [StageName::Action, StageName::Unify, StageName::Gateway] {
        scene.changed(stage);
    }
    let unplaced = PodSeen { revision: "b".to_owned(), unplaced: Some(String::new()), ..PodSeen::default() };
    scene.dies("orders-unify-1");
    scene.of(StageName::Unify).partition = 1;
    scene.of(StageName::Unify).pods.insert(1, unplaced);
    let intent = scene.plan();
    assert_eq!((leaving(&intent), intent.sizes[&StageName::Gateway]), (vec!["orders-action-1"], (2, AT_REST)));
}

#[test]
fn a_pod_with_a_volume_for_which_no_node_is_found_is_told_of() {
    let pod = |reason: &str| -> Pod {
        let condition = json!({"type": "PodScheduled", "status": "False", "reason": reason, "message": "volume node affinity", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        serde_json::from_value(json!({"metadata": {}, "status": {"conditions": [condition]}})).unwrap()
    };
    let seen = |reason: &str, now: &str| PodSeen::of(&pod(reason), now.parse().unwrap());
    assert_eq!(seen("Unschedulable", "2026-01-01T00:01:00Z").unplaced, None);
    assert_eq!(seen("SchedulingGated", "2026-01-01T00:02:00Z").unplaced, None);
    let unplaced = seen("Unschedulable", "2026-01-01T00:01:01Z");
    assert_eq!(unplaced.unplaced.as_deref(), Some("volume node affinity"));
    let told = |storage: Value| {
        let mut scene = Scene::new(&json!({"stages": {"action": {"storage": storage}}}), &[]);
        scene.of(StageName::Action).pods.insert(1, unplaced.clone());
        scene.plan().unplaced
    };
    let claim = json!({"persistentVolumeClaim": {"size": "1Gi", "onLostNode": "Recreate"}});
    assert_eq!(told(claim), BTreeMap::from([("orders-action-1".to_owned(), "volume node affinity".to_owned())]));
    assert!(told(json!({})).is_empty(), "nothing binds it");
}

#[test]
fn a_change_of_another_stage_waits_for_the_pod_that_starts() {
    let mut scene = Scene::new(&json!({}), &[]);
    scene.changed(StageName::Unify);
    scene.of(StageName::Unify).partition = 1;
    scene.of(StageName::Unify).pods.remove(&1);
    scene.changed(StageName::Reaction);
    let intent = scene.plan();
    assert_eq!(leaving(&intent), Vec::<&str>::new());
    assert_eq!((intent.sizes[&StageName::Unify], intent.sizes[&StageName::Reaction]), ((2, 1), (2, AT_REST)));
    scene.of(StageName::Unify).pods = pods(&["a", "b"]);
    assert_eq!(leaving(&scene.plan()), ["orders-reaction-1"]);
}

#[test]
fn readers_come_before_writers() {
    let mut scene = Scene::new(&json!({}), &[]);
    for stage in StageName::ALL {
        scene.changed(stage);
    }
    for stage in ORDER {
        let worker = format!("orders-{}-1", stage.as_str());
        let intent = scene.plan();
        match stage {
            StageName::Gateway => assert_eq!((leaving(&intent), intent.sizes[&stage]), (vec![], (2, 1))),
            _ => assert_eq!(leaving(&intent), [worker.as_str()]),
        }
        let others = intent.sizes.iter().filter(|(other, _)| **other != stage);
        assert!(others.into_iter().all(|(_, size)| *size == (2, AT_REST)), "{intent:?}");
        let seen = scene.of(stage);
        (seen.current, seen.pods) = ("b".to_owned(), pods(&["b", "b"]));
    }
}

#[test]
fn another_change_in_the_middle_of_one_reaches_nobody_by_itself() {
    let mut scene = Scene::new(&json!({}), &[]);
    let stage = StageName::Unify;
    scene.changed(stage);
    scene.of(stage).partition = 1;
    scene.of(stage).pods = pods(&["a", "b"]);
    // The template that is wanted is not the one that was applied last: it is applied with the partition above all.
    scene.of(stage).template_hash = "other".to_owned();
    let mut intent = scene.plan();
    assert_eq!((leaving(&intent), intent.sizes[&stage]), (vec![], (2, AT_REST)));
    // That is something to do, once it is applied: whoever waits for the end of the change must not take this for it.
    intent.note_templates(&scene.seen, &[]);
    assert_eq!(intent.doing, Vec::<String>::new(), "it was refused");
    intent.note_templates(&scene.seen, &scene.objects.stateful_sets);
    assert_eq!(intent.doing, ["rolling: unify gets a new template, one Pod at a time"]);
    // Nor before the status is about it: it may tell of the change before, which some have.
    let mut scene = Scene::new(&json!({}), &[]);
    scene.changed(stage);
    scene.of(stage).is_observed = false;
    scene.of(stage).pods = pods(&["a", "b"]);
    assert_eq!(scene.plan().sizes[&stage], (2, AT_REST));
    assert_eq!(scene.plan().doing, ["Kubernetes has not looked yet at what was changed of unify"]);
    scene.of(stage).partition = 1;
    scene.of(stage).pods = pods(&["a", "a"]);
    scene.changed(StageName::Gateway);
    let intent = scene.plan();
    assert_eq!((leaving(&intent), intent.sizes[&stage]), (vec!["orders-unify-1"], (2, 1)), "its turn is not over");
    assert_eq!(intent.sizes[&StageName::Gateway], (2, AT_REST), "and nobody else's begins");
    let mut scene = Scene::new(&json!({}), &[]);
    scene.changed(stage);
    scene.of(stage).is_observed = false;
    assert_eq!((leaving(&scene.plan()), scene.plan().sizes[&stage]), (vec![], (2, AT_REST)));
}

#[test]
fn who_does_not_work_is_replaced_at_once_and_who_is_alone_too() {
    let mut scene = Scene::new(&json!({}), &[]);
    let stage = StageName::Action;
    scene.changed(stage);
    scene.dies("orders-action-1");
    assert_eq!(scene.plan().sizes[&stage], (2, 1));
    let mut scene = Scene::new(&json!({}), &[(stage, 1)]);
    scene.changed(stage);
    scene.of(stage).replicas = 1;
    scene.of(stage).pods = pods(&["a"]);
    scene.dies("orders-action-1");
    assert_eq!((leaving(&scene.plan()), scene.plan().sizes[&stage]), (vec![], (1, 0)));
    // Nobody knows who holds what: nobody goes.
    let mut scene = Scene::new(&json!({}), &[]);
    scene.changed(stage);
    let intent = plan(&scene.prepared, &scene.objects, &scene.seen, None);
    assert_eq!(intent.sizes[&stage], (2, AT_REST));
}

#[test]
fn the_last_gateway_that_works_waits_for_the_others_as_long_as_they_may_come_back() {
    let mut scene = Scene::new(&json!({}), &[]);
    let stage = StageName::Gateway;
    scene.changed(stage);
    assert_eq!(scene.plan().sizes[&stage], (2, 1));
    let unready = |is_settling| PodSeen { revision: "a".to_owned(), is_settling, ..PodSeen::default() };
    scene.of(stage).pods.insert(0, unready(true));
    let intent = scene.plan();
    assert_eq!(intent.sizes[&stage], (2, AT_REST));
    assert!(intent.doing[0].contains("when orders-gateway-0 is ready"), "{:?}", intent.doing);
    scene.of(stage).pods.remove(&0);
    assert_eq!(scene.plan().sizes[&stage], (2, 1), "it may never be made");
    scene.of(stage).pods.insert(0, unready(false));
    assert_eq!(scene.plan().sizes[&stage], (2, 1), "the new template may mend it");
    scene.of(stage).pods = pods(&["a", "b"]);
    assert_eq!(scene.plan().sizes[&stage], (2, 0));
    // Which does not work is replaced whoever else does.
    scene.of(stage).pods = [(0, unready(true)), (1, unready(true))].into();
    assert_eq!(scene.plan().sizes[&stage], (2, 1));
    // One alone has nobody to wait for.
    let mut scene = Scene::new(&json!({}), &[(stage, 1)]);
    scene.changed(stage);
    scene.of(stage).replicas = 1;
    scene.of(stage).pods = pods(&["a"]);
    assert_eq!(scene.plan().sizes[&stage], (1, 0));
}

#[test]
fn a_pod_settles_for_two_minutes() {
    let pod = |condition: Value| -> Pod {
        let status = json!({"conditions": [condition]});
        serde_json::from_value(json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "status": status}))
            .unwrap()
    };
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    let unready = pod(json!({"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T01:00:00Z"}));
    let new = pod(json!({"type": "PodScheduled", "status": "False"}));
    let settles = |pod: &Pod, now: &str| PodSeen::of(pod, at(now)).is_settling;
    assert!(settles(&unready, "2026-01-01T01:01:59Z") && !settles(&unready, "2026-01-01T01:02:00Z"));
    assert!(settles(&new, "2026-01-01T00:01:59Z") && !settles(&new, "2026-01-01T00:02:00Z"));
    let ready = pod(json!({"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T01:00:00Z"}));
    assert!(!settles(&ready, "2026-01-01T01:00:01Z"));
}

#[test]
fn fewer_workers_are_left_when_their_shards_have_left() {
    let stage = StageName::Action;
    let mut scene = Scene::new(&json!({}), &[(stage, 1)]);
    scene.of(stage).replicas = 4;
    scene.of(stage).pods = pods(&["a"; 4]);
    scene.owns(stage, 2, 3);
    scene.owns(stage, 2, 2);
    let intent = scene.plan();
    assert_eq!(leaving(&intent), ["orders-action-1", "orders-action-2", "orders-action-3"]);
    assert_eq!(intent.sizes[&stage].0, 3, "the last one holds nothing");
    for shard in 0..3 {
        scene.owns(stage, shard, 0);
    }
    scene.of(stage).replicas = 3;
    assert_eq!(scene.plan().sizes[&stage].0, 1);
    // Until they are gone, nothing comes back to them.
    scene.of(stage).replicas = 1;
    assert_eq!(leaving(&scene.plan()), ["orders-action-1", "orders-action-2", "orders-action-3"]);
    // The one that is to stay is dead: nobody is there to take them, and they stay, until it is mended.
    scene.of(stage).replicas = 4;
    scene.owns(stage, 2, 2);
    scene.dies("orders-action-0");
    let intent = scene.plan();
    assert_eq!((leaving(&intent), intent.sizes[&stage]), (vec![], (3, AT_REST)));
    assert!(intent.doing[0].contains("nobody who is to stay"), "{intent:?}");
    scene.of(stage).replicas = 3;
    scene.changed(stage);
    assert_eq!(leaving(&scene.plan()), ["orders-action-2"], "a template may mend it");
    // Nobody is left to take them, or nobody is to.
    let mut none = Scene::new(&json!({}), &[(stage, 0)]);
    assert_eq!((leaving(&none.plan()), none.plan().sizes[&stage].0), (vec![], 0));
    none.prepared.replicas.insert(StageName::Gateway, 1);
    assert_eq!(none.plan().sizes[&StageName::Gateway].0, 1);
    let suspended = Scene::new(&json!({"suspend": true}), &[]).plan();
    assert!(suspended.sizes.values().all(|size| size.0 == 0) && suspended.leaving.is_empty());
}

/// An operator that has just started wishes before it has heard anybody, and its first plan is published by these wishes.
#[test]
fn who_is_too_many_gets_nothing_also_before_it_is_known_who_is_alive() {
    let stage = StageName::Action;
    let mut scene = Scene::new(&json!({}), &[(stage, 1)]);
    scene.of(stage).replicas = 3;
    scene.of(stage).pods = pods(&["a"; 3]);
    let unheard = |scene: &Scene| plan(&scene.prepared, &scene.objects, &scene.seen, None);
    let intent = unheard(&scene);
    assert_eq!((leaving(&intent), intent.sizes[&stage].0), (vec!["orders-action-1", "orders-action-2"], 3));
    // Kubernetes was told already, and one has not ended.
    scene.of(stage).replicas = 1;
    scene.of(stage).pods.remove(&2);
    assert_eq!(leaving(&unheard(&scene)), ["orders-action-1"]);
    // One that is silent at the moment may be heard in the very turn in which the next plan is made.
    scene.of(stage).replicas = 2;
    scene.dies("orders-action-1");
    let intent = scene.plan();
    assert_eq!((leaving(&intent), intent.sizes[&stage].0), (vec!["orders-action-1"], 1));
    // With more wanted than there are, nobody leaves.
    assert_eq!(leaving(&unheard(&Scene::new(&json!({}), &[(stage, 5)]))), Vec::<&str>::new());
}

#[test]
fn more_workers_come_at_once() {
    let stage = StageName::Action;
    let scene = Scene::new(&json!({}), &[(stage, 5)]);
    assert_eq!(scene.plan().sizes[&stage], (5, AT_REST));
}

#[test]
fn what_was_decided_is_in_the_objects_and_what_lets_a_pod_go_is_conditional() {
    let mut scene = Scene::new(&json!({}), &[]);
    scene.changed(StageName::Gateway);
    let intent = scene.plan();
    let mut observed = scene.objects.stateful_sets.clone();
    for set in &mut observed {
        (set.metadata.uid, set.metadata.resource_version) = (Some("u".to_owned()), Some("7".to_owned()));
    }
    let mut objects = scene.objects;
    intent.settle(&mut objects, &observed);
    for set in &objects.stateful_sets {
        let is_gateway = set.name_any() == "orders-gateway";
        let (seen, version) = (StageSeen::of(set), set.metadata.resource_version.as_deref());
        assert_eq!((seen.replicas, seen.partition), (2, if is_gateway { 1 } else { AT_REST }));
        assert_eq!((set.metadata.uid.as_deref(), version), (Some("u"), is_gateway.then_some("7")));
    }
}

#[test]
fn what_is_there_is_read_off_the_objects() {
    let scene = Scene::new(&json!({}), &[]);
    let mut set = scene.objects.stateful_sets[1].clone();
    set.metadata.generation = Some(3);
    set.status = serde_json::from_value(
        json!({"replicas": 2, "observedGeneration": 3, "currentRevision": "x-1", "updateRevision": "x-2"}),
    )
    .unwrap();
    let pod = |ordinal: i32, ready: &str| -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": format!("orders-unify-{ordinal}"), "labels": {"app.kubernetes.io/component": "unify", "controller-revision-hash": "x-1"}},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap()
    };
    let mut going = pod(2, "True");
    going.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
    let mut others = pod(5, "True");
    others.metadata.name = Some("orders-other-unify-5".to_owned());
    let at = |time: &str| time.parse().unwrap();
    let seen_at = |time| {
        seen(
            "orders",
            std::slice::from_ref(&set),
            &[pod(0, "True"), pod(1, "False"), going.clone(), others.clone()],
            at(time),
        )
    };
    assert!(seen_at("2026-01-01T00:01:00Z")[&StageName::Unify].pods[&2].is_overdue);
    let seen = seen_at("2026-01-01T00:00:20Z");
    assert!(seen[&StageName::Unify].pods.values().all(|pod| !pod.is_overdue));
    let unify = &seen[&StageName::Unify];
    assert_eq!((unify.replicas, unify.is_observed, unify.newest.as_str()), (2, true, "x-2"));
    assert_eq!(unify.pods.values().map(|pod| pod.is_ready).collect::<Vec<_>>(), [true, false, false]);
    assert!(unify.pods.values().all(|pod| pod.revision == "x-1"));
}

#[test]
fn a_pod_of_a_bad_template_that_kubernetes_does_not_replace_is_deleted() {
    let mut scene = Scene::new(&json!({}), &[]);
    let stage = StageName::Action;
    scene.changed(stage);
    scene.dies("orders-action-1");
    let bad = PodSeen { revision: "bad".to_owned(), uid: "u".to_owned(), ..PodSeen::default() };
    scene.of(stage).pods.insert(1, bad);
    assert_eq!((scene.plan().replaced.len(), scene.plan().sizes[&stage]), (0, (2, 1)), "Kubernetes was not told yet");
    scene.of(stage).partition = 1;
    assert_eq!(scene.plan().replaced, BTreeMap::from([("orders-action-1".to_owned(), "u".to_owned())]));
    scene.of(stage).pods.get_mut(&1).unwrap().is_ending = true;
    assert!(scene.plan().replaced.is_empty(), "it ends");
    // One that works is Kubernetes' to replace.
    scene.of(stage).pods.insert(1, PodSeen { is_ready: true, revision: "a".to_owned(), ..PodSeen::default() });
    assert!(scene.plan().replaced.is_empty());
}

#[test]
fn shards_of_a_pod_that_is_to_go_wait_for_a_worker_that_is_only_starting_again() {
    let mut scene = Scene::new(&json!({}), &[]);
    let stage = StageName::Action;
    scene.changed(stage);
    scene.fleet.alive.remove("orders-action-0");
    assert_eq!(scene.plan().sizes[&stage], (2, AT_REST), "it may be back in a moment");
    scene.dies("orders-action-0");
    assert_eq!(scene.plan().sizes[&stage], (2, 1), "it is not");
}

#[test]
fn a_worker_whose_node_is_lost_is_told_of_and_recreated_if_that_is_wanted() {
    let lost = |on_lost_node: &str| {
        let claim = json!({"persistentVolumeClaim": {"size": "1Gi", "onLostNode": on_lost_node}});
        let mut scene = Scene::new(&json!({"stages": {"action": {"storage": claim}}}), &[]);
        let pod = scene.of(StageName::Action).pods.get_mut(&1).unwrap();
        (pod.is_overdue, pod.is_ready, pod.uid) = (true, false, "u".to_owned());
        let intent = scene.plan();
        (intent.lost, intent.recreated)
    };
    let name = "orders-action-1".to_owned();
    let told = BTreeMap::from([(name.clone(), true)]);
    assert_eq!(lost("Wait"), (told.clone(), BTreeMap::new()));
    assert_eq!(lost("Recreate"), (told, BTreeMap::from([(name, "u".to_owned())])));
}

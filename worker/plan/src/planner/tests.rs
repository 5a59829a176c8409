//! Behaviours of the planner, one by one; what holds for all inputs is in [`super::properties`].

use super::world::{World, worker};
use super::*;
use crate::plan::Placement;

const STAGE: &str = "action";

fn id(shard: u32) -> ShardId {
    ShardId::new(STAGE, shard)
}

fn place(owner: &str, successors: &[&str], warm: u32, moving_to: Option<&str>) -> Placement {
    let successors = successors.iter().map(|name| (*name).to_owned()).collect();
    Placement { owner: owner.into(), successors, warm, moving_to: moving_to.map(str::to_owned) }
}

/// Workers in zones and on nodes of their own; so many shards.
fn world(names: &[&str], shards: u32) -> World {
    let workers = names.iter().map(|name| worker(name, &format!("zone of {name}"), &format!("node of {name}")));
    World::new(workers.collect(), [(STAGE.to_owned(), shards)].into(), Limits { successors: 1, ..Limits::default() })
}

/// As [`world`], with this plan in force, and its warm standbys caught up.
fn placed(names: &[&str], placements: &[Placement]) -> World {
    let mut world = world(names, placements.len() as u32);
    let placements = (0..).map(id).zip(placements.iter().cloned()).collect();
    world.adopt(Plan { version: Version { term: 1, number: 1 }, generation: 1, placements });
    for (id, placement) in world.placements() {
        for name in placement.successors.iter().take(placement.warm as usize) {
            world.standings.get_mut(&id).unwrap().lags.insert(name.clone(), 0);
        }
    }
    world
}

fn at(outcome: &Outcome, shard: u32) -> Placement {
    outcome.plan.placements[&id(shard)].clone()
}

fn steps(outcome: &Outcome) -> Vec<(u32, Reason, Step)> {
    outcome.pending.iter().map(|pending| (pending.shard.shard, pending.reason, pending.step)).collect()
}

#[test]
fn a_first_plan_is_balanced_at_once() {
    let mut world = world(&["a", "b", "c"], 8);
    let outcome = world.step();
    assert_eq!(world.owned(STAGE), [("a", 3), ("b", 3), ("c", 2)].map(|(name, count)| (name.to_owned(), count)).into());
    assert_eq!(outcome.pending, []);
    assert_eq!(outcome.plan.version, Version { term: 1, number: 1 });
}

#[test]
fn what_is_left_over_in_one_stage_is_made_up_for_in_the_next() {
    let mut world = world(&["a", "b"], 3);
    world.stages.insert("unify".into(), 3);
    world.step();
    assert_eq!(world.owned(STAGE)["a"] + world.owned("unify")["a"], 3);
}

#[test]
fn only_workers_that_run_a_stage_are_given_its_shards() {
    let mut world = world(&["a", "b", "u"], 4);
    world.workers[2].stages = BTreeSet::from(["unify".to_owned()]);
    let outcome = world.step();
    assert!(outcome.plan.names().all(|name| name != "u"));
    assert_eq!(world.owned(STAGE)["a"], 2);
}

#[test]
fn a_plan_that_would_say_the_same_keeps_its_number_even_for_a_new_operator() {
    let mut world = world(&["a", "b", "c"], 8);
    let first = world.step().plan;
    world.term = 9;
    assert_eq!(world.step().plan, first);
    world.kill("c");
    assert_eq!(world.step().plan.version, Version { term: 9, number: first.version.number + 1 });
}

#[test]
fn another_generation_has_a_plan_of_its_own() {
    let mut world = world(&["a", "b"], 2);
    let first = world.step().plan;
    world.generation += 1;
    let second = world.step().plan;
    assert_eq!((second.generation, second.version.number), (2, first.version.number + 1));
    assert_eq!(second.placements, first.placements);
}

#[test]
fn a_shard_moves_only_to_a_first_successor_that_has_caught_up() {
    let begins = placed(&["a", "b"], &[place("a", &["b"], 0, None), place("a", &["b"], 0, None)]);
    assert_eq!(at(&begins.look(), 0), place("a", &["b"], 1, Some("b")));
    let mut world = placed(&["a", "b"], &[place("a", &["b"], 1, Some("b")), place("a", &["b"], 1, None)]);
    let lag = |world: &mut World, lag| world.standings.get_mut(&id(0)).unwrap().lags.extend([("b".to_owned(), lag)]);
    lag(&mut world, 41);
    let waits = world.look();
    assert_eq!(Some(&waits.plan), world.plan.as_ref());
    assert_eq!(steps(&waits), [(0, Reason::Balance, Step::CatchingUp { lag: Some(41) })]);
    lag(&mut world, 40);
    let flipped = world.look();
    assert_eq!(at(&flipped, 0), place("b", &["a"], 1, None));
    assert_eq!(steps(&flipped), [(0, Reason::Misplaced, Step::HandingOver)]);
}

#[test]
fn whoever_is_not_first_yet_does_not_get_the_shard_however_little_it_lags() {
    let mut world = placed(
        &["a", "b", "c"],
        &[place("a", &["b", "c"], 2, Some("c")), place("a", &["c"], 1, None), place("b", &["a"], 1, None)],
    );
    let outcome = world.step();
    assert_eq!(at(&outcome, 0), place("a", &["c"], 1, Some("c")));
    assert_eq!(at(&world.step(), 0).owner, "c");
}

#[test]
fn a_warm_first_successor_stays_first_until_the_new_one_has_caught_up() {
    let mut world = placed(
        &["a", "b", "c"],
        &[place("a", &["b"], 1, None), place("a", &["b"], 1, None), place("b", &["a"], 1, None)],
    );
    assert_eq!(at(&world.step(), 0), place("a", &["b", "c"], 2, Some("c")));
    world.step();
    assert_eq!(at(&world.step(), 0), place("a", &["c"], 1, Some("c")));
}

#[test]
fn a_first_successor_that_falls_behind_stays_first() {
    let mut world = placed(
        &["a", "b", "c"],
        &[place("a", &["b", "c"], 2, None), place("b", &["c", "a"], 2, None), place("c", &["a", "b"], 2, None)],
    );
    world.limits = Limits { successors: 2, warm: 2, ..world.limits };
    world.standings.get_mut(&id(0)).unwrap().lags.insert("b".into(), 1_000_000);
    assert_eq!(Some(world.look().plan), world.plan);
}

#[test]
fn no_more_shards_are_in_motion_than_allowed_and_the_rest_waits() {
    let all = vec![place("a", &["b"], 1, None); 6];
    let mut world = placed(&["a", "b"], &all);
    let outcome = world.look();
    assert_eq!(outcome.pending.iter().filter(|pending| pending.step == Step::Waiting).count(), 1);
    assert_eq!(outcome.plan.placements.values().filter(|place| place.moving_to.is_some()).count(), 2);
    // A handoff that is not done yet counts.
    world.standings.get_mut(&id(5)).unwrap().holder = Some("b".into());
    assert_eq!(world.look().plan.placements.values().filter(|place| place.moving_to.is_some()).count(), 1);
    world.limits.moves = 0;
    assert_eq!(Some(world.look().plan), world.plan);
}

#[test]
fn a_leaving_worker_goes_first_and_gets_nothing() {
    let owners = ["a", "a", "a", "a", "b", "l"];
    let mut world = placed(
        &["a", "b", "l"],
        &owners.map(|owner| place(owner, if owner == "a" { &["b"] } else { &["a"] }, 1, None)),
    );
    world.limits.moves = 1;
    world.set_leaving("l", true);
    let outcome = world.step();
    assert_eq!(
        steps(&outcome),
        [(0, Reason::Balance, Step::Waiting), (5, Reason::Leaving, Step::CatchingUp { lag: None })]
    );
    assert_eq!(at(&outcome, 5).moving_to.as_deref(), Some("b"));
    assert!(world.settle(30).is_some());
    assert_eq!((world.owned(STAGE)["l"], world.owned(STAGE)["a"]), (0, 3));
    assert!(world.plan.unwrap().names().all(|name| name != "l"));
}

#[test]
fn what_a_leaving_worker_has_handed_off_by_itself_stays_there() {
    let mut world = placed(&["a", "b", "l"], &[place("l", &["b"], 1, None), place("a", &["b"], 1, None)]);
    world.set_leaving("l", true);
    world.standings.get_mut(&id(0)).unwrap().holder = Some("b".into());
    let outcome = world.look();
    assert_eq!((at(&outcome, 0).owner.as_str(), outcome.pending), ("b", vec![]));
}

#[test]
fn the_shards_of_a_dead_worker_go_to_the_first_live_successor_at_once() {
    let mut world = placed(
        &["b", "c", "l"],
        &[
            place("dead", &["gone", "l", "c", "b"], 1, None),
            place("dead", &["b", "c"], 1, None),
            place("dead", &[], 0, None),
        ],
    );
    world.set_leaving("l", true);
    let outcome = world.look();
    assert_eq!([0, 1, 2].map(|shard| at(&outcome, shard).owner), ["c", "b", "b"]);
    assert_eq!(outcome.pending, []);
}

#[test]
fn whoever_took_a_dead_workers_shard_over_keeps_it() {
    let mut world = placed(&["b", "c"], &[place("dead", &["b", "c"], 1, None)]);
    world.standings.get_mut(&id(0)).unwrap().holder = Some("c".into());
    assert_eq!(at(&world.look(), 0).owner, "c");
}

#[test]
fn a_move_to_a_worker_that_dies_or_leaves_is_given_up() {
    let world = placed(&["a", "c"], &[place("a", &["b", "c"], 1, Some("b"))]);
    assert_eq!(at(&world.look(), 0), place("a", &["c"], 1, None));
    let mut world = placed(&["a", "b", "c"], &[place("a", &["b", "c"], 1, Some("b"))]);
    world.set_leaving("b", true);
    assert_eq!(at(&world.look(), 0), place("a", &["c"], 1, None));
}

#[test]
fn a_move_to_a_worker_that_has_enough_by_now_is_given_up() {
    let owners = [("a", Some("b")), ("a", None), ("b", None), ("b", None)];
    let mut world = placed(
        &["a", "b"],
        &owners.map(|(owner, moving_to)| place(owner, if owner == "a" { &["b"] } else { &["a"] }, 1, moving_to)),
    );
    world.standings.get_mut(&id(0)).unwrap().lags.clear();
    assert_eq!(at(&world.look(), 0), place("a", &["b"], 1, None));
}

#[test]
fn successors_are_on_other_nodes_and_in_other_zones_when_there_are_any() {
    let mut world = world(&[], 6);
    world.limits.successors = 2;
    let on = [("a", "x", "1"), ("b", "x", "1"), ("c", "x", "2"), ("d", "y", "3"), ("e", "z", "4")];
    world.workers = on.map(|(name, zone, node)| worker(name, zone, node)).into();
    let outcome = world.step();
    let of = |name: &str| on.iter().find(|(other, ..)| *other == name).unwrap();
    for placement in outcome.plan.placements.values() {
        let zones: BTreeSet<&str> = placement.claimants().map(|name| of(name).1).collect();
        assert_eq!(zones.len(), 3, "{placement:?}");
    }
    world.workers.truncate(3);
    for placement in world.step().plan.placements.values() {
        assert_ne!(of(&placement.owner).2, of(&placement.successors[0]).2, "{placement:?}");
    }
}

#[test]
fn the_shards_of_one_worker_have_successors_everywhere() {
    let mut world = world(&["a", "b", "c", "d"], 24);
    let outcome = world.step();
    let of_a = outcome.plan.placements.values().filter(|place| place.owner == "a");
    let first: BTreeSet<String> = of_a.map(|place| place.successors[0].clone()).collect();
    assert_eq!(first.len(), 3, "were a to die, all would share its work");
}

#[test]
fn with_nobody_alive_the_plan_stays_and_new_shards_are_told() {
    let mut world = placed(&["a"], &[place("a", &[], 0, None)]);
    world.kill("a");
    world.stages.insert(STAGE.into(), 2);
    let outcome = world.look();
    assert_eq!(Some(outcome.plan), world.plan);
    assert_eq!(outcome.unplaced, [id(1)]);
}

#[test]
fn when_all_leave_they_keep_what_they_have() {
    let mut world = placed(
        &["a", "b"],
        &[place("a", &["b"], 1, None), place("dead", &["b"], 1, None), place("dead", &[], 0, None)],
    );
    world.set_leaving("a", true);
    world.set_leaving("b", true);
    let outcome = world.look();
    assert_eq!([0, 1, 2].map(|shard| at(&outcome, shard).owner), ["a", "b", "a"]);
}

#[test]
fn whoever_cannot_open_a_shard_loses_it_to_the_one_that_has_it_and_does_not_get_it_back_meanwhile() {
    let placements = [place("a", &["b"], 1, None), place("b", &["a"], 1, None)];
    let mut world = placed(&["a", "b"], &placements);
    let standing = world.standings.get_mut(&id(0)).unwrap();
    standing.unable.insert("a".into());
    standing.holder = None;
    assert_eq!(at(&world.look(), 0).owner, "a", "nobody has it yet");
    world.standings.get_mut(&id(0)).unwrap().holder = Some("b".into());
    let outcome = world.look();
    assert_eq!((at(&outcome, 0).owner.as_str(), at(&outcome, 0).moving_to), ("b", None));
    assert_eq!(steps(&outcome).iter().filter(|(shard, ..)| *shard == 0).count(), 0, "it does not go back");
}

#[test]
fn a_move_to_one_that_cannot_open_the_shard_is_given_up() {
    let placements = [place("a", &["b"], 1, Some("b")), place("a", &["b"], 1, None)];
    let mut world = placed(&["a", "b"], &placements);
    let standing = world.standings.get_mut(&id(0)).unwrap();
    standing.lags.clear();
    standing.unable.insert("b".into());
    let outcome = world.look();
    assert_eq!(at(&outcome, 0).moving_to, None);
    assert_eq!(at(&outcome, 1).moving_to.as_deref(), Some("b"), "another goes instead");
}

#[test]
fn a_pinned_shard_moves_to_its_worker_and_another_takes_its_place() {
    let mut world = world(&["a", "b"], 4);
    world.step();
    let of_a: Vec<u32> = (0..4).filter(|shard| world.placements()[&id(*shard)].owner == "a").collect();
    world.pinned = [(id(of_a[0]), "b".to_owned())].into();
    let outcome = world.step();
    assert_eq!(outcome.pending[0].reason, Reason::Pinned);
    world.settle(20).unwrap();
    assert_eq!((&*world.placements()[&id(of_a[0])].owner, world.owned(STAGE)["b"]), ("b", 2));
    // All of them: the balance gives way.
    world.pinned = (0..4).map(|shard| (id(shard), "b".to_owned())).collect();
    world.settle(40).unwrap();
    assert_eq!(world.owned(STAGE)["b"], 4);
    // A pin holds nobody back: its worker leaves, or is not there.
    world.set_leaving("b", true);
    world.settle(40).unwrap();
    assert_eq!(world.owned(STAGE)["a"], 4);
    world.set_leaving("b", false);
    world.pinned = [(id(0), "nobody".to_owned())].into();
    world.settle(40).unwrap();
    assert_eq!(world.owned(STAGE)["b"], 2);
}

#[test]
fn nobody_makes_room_for_a_pinned_shard_that_its_worker_has_not_caught_up_with() {
    let mut world = placed(&["a", "b"], &[place("a", &["b"], 1, None), place("b", &["a"], 1, None)]);
    world.pinned = [(id(0), "b".to_owned())].into();
    // Its folder is broken: it says no lag.
    world.standings.get_mut(&id(0)).unwrap().lags.clear();
    let outcome = world.look();
    assert_eq!(steps(&outcome), [(0, Reason::Pinned, Step::CatchingUp { lag: None })]);
    world.standings.get_mut(&id(0)).unwrap().lags.insert("b".to_owned(), 0);
    let moving: Vec<(u32, Reason)> = steps(&world.look()).iter().map(|(shard, reason, _)| (*shard, *reason)).collect();
    assert_eq!(moving, [(0, Reason::Pinned), (1, Reason::Balance)], "now another makes room");
}

#[test]
fn pinned_moves_give_way_to_those_of_a_worker_that_leaves() {
    let mut world = placed(
        &["a", "b", "c"],
        &[place("a", &["b"], 1, None), place("a", &["b"], 1, None), place("c", &["a"], 1, None)],
    );
    world.limits.moves = 1;
    world.pinned = [(id(0), "b".to_owned())].into();
    world.standings.get_mut(&id(0)).unwrap().lags = [("b".to_owned(), 1_000)].into();
    let outcome = world.look();
    assert_eq!(at(&outcome, 0).moving_to.as_deref(), Some("b"));
    world.adopt(outcome.plan);
    world.set_leaving("c", true);
    let outcome = world.look();
    assert_eq!((at(&outcome, 0).moving_to, at(&outcome, 2).moving_to.is_some()), (None, true), "{:?}", outcome.pending);
    // A leaver's own pinned shard goes to whoever can take it first.
    world.set_leaving("c", false);
    world.set_leaving("a", true);
    let outcome = world.look();
    assert!(outcome.pending.iter().all(|pending| pending.reason == Reason::Leaving), "{:?}", outcome.pending);
}

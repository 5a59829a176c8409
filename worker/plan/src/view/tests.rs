//! Behaviours of the view, one by one; what holds for all histories is in [`super::properties`].

use super::scene::{REPORT_MS, Scene, owner, plan_of, report, shard, standby};
use super::*;
use crate::message::{Rate, Rules};
use crate::status::ShardStatus;

const PREPARE: Duty = Duty::Standby { prepare: true, soon: false };
const EXPECT: Duty = Duty::Standby { prepare: true, soon: true };
const STANDBY: Duty = Duty::Standby { prepare: false, soon: false };

fn heir(worker: &str, client: &str) -> Duty {
    let to = Heir { worker: worker.into(), incarnation: Incarnation::new(1, 1), client: client.into() };
    Duty::Release { to: Some(to) }
}

#[test]
fn in_peace_the_owner_owns_and_only_the_first_successor_prepares() {
    let mut scene = Scene::new(&["a", "b", "c", "d", "e"], plan_of(1, "a", &["b", "c", "d"], 2));
    assert_eq!(scene.duties(["a", "b", "c", "d", "e"]), [Duty::Own, STANDBY, STANDBY, Duty::Nothing, Duty::Nothing]);
    scene.says("a", owner(1)).pass(REPORT_MS);
    assert_eq!(scene.duties(["a", "b", "c", "d", "e"]), [Duty::Own, PREPARE, STANDBY, Duty::Nothing, Duty::Nothing]);
}

#[test]
fn the_first_live_successor_takes_over_and_keeps_it() {
    let mut scene = Scene::new(&["a", "b", "c", "d"], plan_of(1, "a", &["b", "c"], 1));
    scene.says("a", owner(1)).pass(REPORT_MS).mute(&["b"]).pass(20_000).mute(&["a"]).pass(2_800);
    assert_eq!(scene.duties(["c", "d"]), [PREPARE, Duty::Nothing], "not beyond the bound yet");
    scene.pass(1);
    assert_eq!(scene.duties(["b", "c", "d"]), [STANDBY, Duty::TakeOver, Duty::Nothing]);
    scene.says("c", owner(2)).pass(REPORT_MS);
    scene.mute.remove("b");
    scene.pass(REPORT_MS);
    assert_eq!(scene.duties(["b", "c"]), [PREPARE, Duty::Own], "one who comes back does not take it from who has it");
}

#[test]
fn a_successor_waits_for_each_one_before_it() {
    let mut scene = Scene::new(&["a", "b", "c"], plan_of(1, "a", &["b", "c"], 2));
    scene.says("a", owner(1)).pass(REPORT_MS).mute(&["a"]).pass(60_000);
    assert_eq!(scene.duties(["b", "c"]), [Duty::TakeOver, STANDBY]);
}

#[test]
fn an_owner_that_comes_back_prepares_and_is_handed_its_shard() {
    let mut scene = Scene::new(&["a", "b"], plan_of(1, "a", &["b"], 1));
    scene.says("b", owner(2)).pass(REPORT_MS);
    assert_eq!(scene.duties(["a", "b"]), [EXPECT, Duty::Release { to: None }]);
    scene.says("a", standby(2, Some("a-1"))).pass(REPORT_MS);
    assert_eq!(scene.duties(["a", "b"]), [EXPECT, heir("a", "a-1")]);
}

#[test]
fn a_client_that_was_prepared_before_the_present_epoch_is_no_heir() {
    let mut scene = Scene::new(&["a", "b"], plan_of(1, "a", &["b"], 1));
    scene.says("b", owner(2)).says("a", standby(1, Some("a-1"))).pass(REPORT_MS);
    assert_eq!(scene.duty("b"), Duty::Release { to: None });
    scene.says("a", ShardStatus { role: Role::Opening, ..standby(2, Some("a-1")) }).pass(REPORT_MS);
    assert_eq!(scene.duty("b"), Duty::Release { to: None });
}

#[test]
fn of_two_that_say_they_own_it_the_higher_epoch_does() {
    let mut scene = Scene::new(&["a", "b"], plan_of(1, "a", &["b"], 1));
    scene.says("a", owner(7)).says("b", owner(8)).pass(REPORT_MS);
    assert_eq!(scene.duties(["a", "b"]), [EXPECT, Duty::Release { to: None }]);
}

/// Of reaction, whose epoch is 0 everywhere: the last report of a worker that died stays, whatever its name is.
#[test]
fn without_epochs_an_owner_that_is_gone_does_not_hide_one_that_is_there() {
    for (dead, live, other) in [("z", "a", "m"), ("a", "z", "m")] {
        let mut scene = Scene::new(&[dead, live, other], plan_of(1, dead, &[live, other], 1));
        scene.says(dead, owner(0)).pass(REPORT_MS).mute(&[dead]).pass(2_801);
        assert_eq!(scene.duty(live), Duty::TakeOver);
        scene.says(live, owner(0)).pass(REPORT_MS);
        assert_eq!(scene.view.standings(scene.now_ms)[&shard()].holder.as_deref(), Some(live));
        assert_eq!(scene.duties([live, other]), [Duty::Own, PREPARE]);
        // It is told to end.
        scene.leaves(live).says(other, standby(0, Some("at-once"))).pass(REPORT_MS);
        assert_eq!(scene.duties([live, other]), [heir(other, "at-once"), EXPECT]);
        // A higher epoch counts, whoever is gone.
        scene.says(live, owner(3)).pass(REPORT_MS).says(other, owner(2)).mute(&[live]).pass(2_801);
        let standings = scene.view.standings(scene.now_ms);
        assert!(standings.get(&shard()).is_none_or(|standing| standing.holder.is_none()), "{standings:?}");
    }
}

#[test]
fn an_owner_that_does_not_hand_off_in_time_loses_its_shard() {
    let mut scene = Scene::new(&["a", "b"], plan_of(1, "a", &["b"], 1));
    scene.says("a", owner(1)).says("b", standby(1, Some("b-1"))).pass(60_000);
    scene.view.control(plan_of(2, "b", &["a"], 1), scene.now_ms);
    assert_eq!(scene.duties(["a", "b"]), [heir("b", "b-1"), EXPECT]);
    scene.pass(5_000);
    assert_eq!(scene.duty("b"), EXPECT);
    scene.pass(1);
    assert_eq!(scene.duty("b"), Duty::TakeOver);
    // Whoever prepares anew begins to wait anew.
    scene.says("b", standby(1, Some("b-2"))).pass(REPORT_MS);
    assert_eq!(scene.duty("b"), EXPECT);
}

#[test]
fn a_leaving_worker_releases_to_the_first_live_successor_that_has_prepared() {
    let mut scene = Scene::new(&["a", "b", "c", "d"], plan_of(1, "a", &["b", "c", "d"], 1));
    scene.says("a", owner(1)).pass(REPORT_MS).mute(&["b"]).pass(20_000).leaves("a").leaves("c").pass(REPORT_MS);
    assert_eq!(scene.duties(["a", "c", "d"]), [Duty::Release { to: None }, Duty::Nothing, EXPECT]);
    scene.says("d", standby(1, Some("d-1"))).pass(REPORT_MS);
    assert_eq!(scene.duty("a"), heir("d", "d-1"));
    scene.closes("a").pass(REPORT_MS);
    assert_eq!(scene.duties(["a", "d"]), [Duty::Nothing, Duty::TakeOver], "nobody has it, and all before are out");
}

#[test]
fn without_standbys_one_is_made_for_an_owner_that_leaves() {
    let mut scene = Scene::new(&["a", "b"], plan_of(1, "a", &["b"], 0));
    scene.says("a", owner(1)).pass(REPORT_MS);
    assert_eq!(scene.duty("b"), Duty::Nothing);
    scene.leaves("a").pass(REPORT_MS);
    assert_eq!(scene.duty("b"), EXPECT);
}

#[test]
fn an_owner_that_cannot_open_its_shard_is_passed_over() {
    let mut scene = Scene::new(&["a", "b", "c"], plan_of(1, "a", &["b", "c"], 1));
    scene.says("a", ShardStatus::default()).pass(REPORT_MS);
    assert_eq!(scene.duties(["a", "b", "c"]), [Duty::Own, STANDBY, Duty::Nothing]);
    scene.is_able("a", false).pass(REPORT_MS);
    assert_eq!(scene.duties(["a", "b", "c"]), [STANDBY, Duty::TakeOver, Duty::Nothing]);
    scene.says("b", owner(2)).says("a", standby(2, None)).pass(REPORT_MS);
    assert_eq!(scene.duties(["a", "b", "c"]), [STANDBY, Duty::Own, PREPARE], "whoever is unable does not prepare");
    scene.is_able("a", true).pass(REPORT_MS);
    assert_eq!(scene.duties(["a", "b"]), [EXPECT, Duty::Release { to: None }]);
}

#[test]
fn whoever_hears_of_it_later_agrees_on_who_is_unable() {
    let mut scene = Scene::new(&["a", "b"], plan_of(1, "a", &["b"], 1));
    scene.is_able("a", false).says("a", standby(1, None)).pass(REPORT_MS);
    let mut late = View::new(1, Bounds::default());
    late.control(plan_of(1, "a", &["b"], 1), scene.now_ms);
    scene.reports.values().for_each(|report| late.status(report.clone(), scene.now_ms));
    scene.view = late;
    assert_eq!(scene.duties(["a", "b"]), [STANDBY, Duty::TakeOver]);
}

#[test]
fn when_nobody_can_open_a_shard_it_is_the_planned_owners_turn() {
    let mut scene = Scene::new(&["a", "b"], plan_of(1, "a", &["b"], 1));
    scene.is_able("a", false).pass(REPORT_MS);
    assert_eq!(scene.duties(["a", "b"]), [STANDBY, Duty::TakeOver]);
    scene.is_able("b", false).pass(REPORT_MS);
    assert_eq!(scene.duties(["a", "b"]), [Duty::Own, STANDBY]);
}

#[test]
fn a_restarted_process_is_not_unable_because_the_one_before_was() {
    let mut scene = Scene::new(&["a", "b"], plan_of(1, "a", &["b"], 1));
    scene.is_able("a", false).pass(REPORT_MS);
    assert_eq!(scene.duty("b"), Duty::TakeOver);
    let again = Incarnation::new(2, 2);
    scene.view.status(WorkerStatus { incarnation: again.clone(), ..report("a", 0) }, scene.now_ms);
    let me = Me { worker: "a", incarnation: &again, leaving: false };
    assert_eq!(scene.view.duties(&me, scene.now_ms)[&shard()], Duty::Own);
    assert_eq!(scene.duty("b"), STANDBY);
}

#[test]
fn the_planner_is_told_who_is_unable() {
    let mut scene = Scene::new(&["a", "b"], plan_of(1, "a", &["b"], 1));
    scene.is_able("a", false).says("b", owner(2)).pass(REPORT_MS);
    let standing = scene.view.standings(scene.now_ms)[&shard()].clone();
    assert_eq!((standing.holder.as_deref(), standing.unable), (Some("b"), ["a".to_owned()].into()));
}

#[test]
fn when_most_fall_silent_at_once_nobody_takes_over_until_ten_bounds() {
    let mut scene = Scene::new(&["a", "b", "c"], plan_of(1, "a", &["c"], 1));
    scene.says("a", owner(1)).pass(REPORT_MS).mute(&["a"]).pass(2_000).mute(&["b"]).pass(4_000);
    assert_eq!(scene.duty("c"), STANDBY, "two of three");
    scene.pass(30_000);
    assert_eq!(scene.duty("c"), Duty::TakeOver);
}

#[test]
fn most_are_doubted_already_when_only_the_first_of_them_is_silent() {
    // The reports do not come at one moment: a is heard last at 500 ms, b at 1,900.
    let mut view = View::new(1, Bounds::default());
    view.control(plan_of(1, "a", &["c"], 1), 0);
    view.status(report("a", 1), 500);
    view.status(report("b", 1), 1_900);
    view.status(report("c", 1), 3_400);
    let me = Me { worker: "c", incarnation: &Incarnation::new(1, 1), leaving: false };
    assert_eq!(view.duties(&me, 3_501)[&shard()], STANDBY);
    view.status(report("b", 2), 3_502);
    assert_eq!(view.duties(&me, 3_502)[&shard()], Duty::TakeOver);
}

#[test]
fn those_that_fell_silent_one_after_the_other_are_believed() {
    let mut scene = Scene::new(&["a", "b", "c"], plan_of(1, "a", &["c"], 1));
    scene.mute(&["b"]).pass(8_000).mute(&["a"]).pass(2_801);
    assert_eq!(scene.duty("c"), Duty::TakeOver);
}

#[test]
fn half_of_them_is_not_most() {
    let mut scene = Scene::new(&["a", "b", "c", "d"], plan_of(1, "a", &["c"], 1));
    scene.mute(&["a", "b"]).pass(2_801);
    assert_eq!(scene.duty("c"), Duty::TakeOver);
}

#[test]
fn the_silence_of_gateways_says_nothing_and_to_hear_one_says_that_we_hear() {
    let mut scene = Scene::new(&["a", "b", "c", "g1", "g2", "g3"], plan_of(1, "a", &["c"], 1));
    for name in ["g1", "g2", "g3"] {
        scene.reports.get_mut(name).unwrap().stages = ["gateway".to_owned()].into();
    }
    scene.pass(REPORT_MS).mute(&["a", "g1", "g2", "g3"]).pass(2_801);
    assert_eq!(scene.duty("c"), Duty::TakeOver, "one of three workers is silent");
    let mut scene = Scene::new(&["a", "b", "c", "g1", "g2"], plan_of(1, "a", &["c"], 1));
    scene.reports.get_mut("g1").unwrap().stages = ["gateway".to_owned()].into();
    scene.reports.get_mut("g2").unwrap().stages = ["gateway".to_owned()].into();
    scene.pass(REPORT_MS).mute(&["a", "b"]).pass(2_801);
    assert_eq!(scene.duty("c"), Duty::TakeOver, "two of three are, but gateways are heard");
}

#[test]
fn those_that_said_they_leave_are_not_counted_and_are_believed() {
    let mut scene = Scene::new(&["a", "b", "c", "d", "e"], plan_of(1, "a", &["c"], 1));
    scene.says("a", owner(1)).leaves("a").leaves("b").leaves("d").pass(REPORT_MS).mute(&["a", "b", "d"]).pass(2_801);
    assert_eq!(scene.duty("c"), Duty::TakeOver);
}

#[test]
fn whoever_does_not_hear_itself_acquires_nothing_and_keeps_what_it_has() {
    let mut scene = Scene::new(&["a", "b", "c"], plan_of(1, "a", &["b"], 1));
    scene.says("a", owner(1)).pass(REPORT_MS).mute(&["a", "b", "c"]).pass(600_000);
    assert_eq!(scene.duties(["a", "b"]), [Duty::Own, STANDBY]);
    scene.view.control(plan_of(2, "b", &["a"], 1), scene.now_ms);
    assert_eq!(scene.duty("b"), STANDBY);
}

#[test]
fn at_a_cold_start_those_that_are_not_there_yet_are_waited_for() {
    let names = ["a", "b", "c", "d"];
    let mut scene = Scene::new(&names, plan_of(1, "a", &["b", "c", "d"], 1));
    scene.view = View::new(1, Bounds::default());
    scene.view.control(plan_of(1, "a", &["b", "c", "d"], 1), scene.now_ms);
    scene.mute(&["a", "c", "d"]).pass(10_000);
    assert_eq!(scene.duty("b"), STANDBY);
    scene.pass(20_001);
    assert_eq!(scene.duty("b"), Duty::TakeOver);
}

#[test]
fn a_process_that_sees_a_newer_one_of_its_name_must_exit() {
    let mut scene = Scene::new(&["a", "b"], plan_of(1, "a", &["b"], 1));
    let [old, new] = [(1, 1), (1, 2)].map(|(time, random)| Incarnation::new(time, random));
    scene.view.status(WorkerStatus { incarnation: new.clone(), ..report("a", 0) }, scene.now_ms);
    let me = |incarnation| Me { worker: "a", incarnation, leaving: false };
    assert_eq!(scene.view.verdict(&me(&old)), Verdict::Fenced { by: new.clone() });
    assert_eq!(scene.view.duties(&me(&old), scene.now_ms)[&shard()], Duty::Nothing);
    assert_eq!(scene.view.verdict(&me(&new)), Verdict::GoOn);
    assert_eq!(scene.view.duties(&me(&new), scene.now_ms)[&shard()], Duty::Own);
    scene.view.status(report("a", 99), scene.now_ms);
    assert_eq!(scene.view.newest_incarnation("a"), Some(&new), "the older one is not listened to any more");
}

#[test]
fn a_restarted_process_acquires_nothing_before_it_hears_itself() {
    let mut scene = Scene::new(&["a", "b"], plan_of(1, "a", &["b"], 1));
    scene.says("a", owner(1)).pass(REPORT_MS);
    let again = Incarnation::new(2, 2);
    let duty = |scene: &Scene| {
        scene.view.duties(&Me { worker: "a", incarnation: &again, leaving: false }, scene.now_ms)[&shard()].clone()
    };
    assert_eq!(duty(&scene), STANDBY, "the owner that is reported is its predecessor");
    scene.view.status(WorkerStatus { incarnation: again.clone(), ..report("a", 0) }, scene.now_ms);
    assert_eq!(duty(&scene), Duty::Own);
}

#[test]
fn a_plan_of_a_higher_generation_stops_and_one_of_a_lower_is_not_followed() {
    let mut scene = Scene::new(&["a", "b"], plan_of(1, "a", &["b"], 1));
    let Control::Plan(mut plan) = plan_of(2, "a", &["b"], 1) else { panic!() };
    plan.generation = 2;
    let me = Me { worker: "a", incarnation: &Incarnation::new(1, 1), leaving: false };
    scene.view.control(Control::Plan(plan), scene.now_ms);
    assert_eq!(scene.view.verdict(&me), Verdict::Superseded { generation: 2 });
    assert_eq!(scene.view.duties(&me, scene.now_ms), BTreeMap::new());
    let mut later = View::new(2, Bounds::default());
    later.control(plan_of(1, "a", &["b"], 1), 0);
    assert_eq!((later.verdict(&me), later.duties(&me, 0)), (Verdict::GoOn, BTreeMap::new()));
}

#[test]
fn workers_of_another_generation_hold_nothing_here() {
    let mut scene = Scene::new(&["a", "b"], plan_of(1, "a", &["b"], 1));
    scene.reports.get_mut("a").unwrap().generation = 2;
    scene.says("a", owner(9)).pass(REPORT_MS);
    assert_eq!(scene.duty("b"), Duty::TakeOver);
    assert_eq!(scene.view.alive(scene.now_ms).len(), 1);
}

#[test]
fn the_format_level_is_the_highest_of_the_generation() {
    let mut view = View::new(2, Bounds::default());
    assert_eq!(view.format_level(), None);
    for (generation, level) in [(1, 9), (2, 3), (2, 2), (1, 10)] {
        view.control(Control::FormatLevel(FormatLevel { generation, level }), 0);
    }
    assert_eq!(view.format_level(), Some(3));
}

#[test]
fn nobody_makes_a_plan_before_all_that_are_named_were_heard_or_are_gone() {
    let mut view = View::new(1, Bounds::default());
    assert!(view.knows_all(0), "a first plan waits for nobody");
    view.control(plan_of(1, "a", &["b", "c"], 1), 0);
    ["b", "c"].iter().for_each(|name| view.status(report(name, 1), 100));
    assert!(!view.knows_all(100));
    ["b", "c"].iter().for_each(|name| view.status(report(name, 2), 2_800));
    assert!(!view.knows_all(2_800));
    assert!(view.knows_all(2_801));
}

#[test]
fn the_planner_is_told_who_lives_and_what_stands_where() {
    let mut scene = Scene::new(&["a", "b", "c", "d"], plan_of(1, "a", &["b", "c"], 1));
    scene.says("a", owner(1)).says("b", standby(1, None)).says("c", ShardStatus::default()).leaves("b").pass(REPORT_MS);
    let expected = Standing { holder: Some("a".into()), lags: [("b".to_owned(), 3)].into(), ..Standing::default() };
    assert_eq!(scene.view.standings(scene.now_ms), [(shard(), expected)].into());
    scene.mute(&["a"]).pass(2_801);
    assert_eq!(scene.view.standings(scene.now_ms)[&shard()].holder, None);
    let alive: Vec<(String, bool)> =
        scene.view.alive(scene.now_ms).into_iter().map(|worker| (worker.name, worker.leaving)).collect();
    assert_eq!(alive, [("b", true), ("c", false), ("d", false)].map(|(name, leaving)| (name.to_owned(), leaving)));
}

#[test]
fn of_what_is_said_about_a_tenant_the_newest_counts_whenever_it_comes() {
    let terms = Terms { api_keys: [[1; 32]].into(), ..Terms::default() };
    let tenant =
        |version, is_deleted| Tenant { name: "acme".into(), version, terms: terms.clone(), is_deleted, erased_ms: 0 };
    let mut view = View::new(1, Bounds::default());
    view.control(Control::Tenant(tenant(2, false)), 0);
    assert!(view.is_newer(&tenant(3, true)) && !view.is_newer(&tenant(2, false)));
    view.control(Control::Tenant(tenant(3, true)), 0);
    view.control(Control::Tenant(tenant(2, false)), 0);
    assert!(view.tenants()["acme"].is_deleted);
    view.control(Control::Tenant(tenant(4, false)), 0);
    assert_eq!(view.tenants()["acme"], tenant(4, false));
}

#[test]
fn of_numbers_of_gateways_the_newest_counts_whenever_it_comes() {
    let mut view = View::new(1, Bounds::default());
    assert_eq!(view.gateway_count(), None);
    for (version, count) in [(2, 5), (1, 7)] {
        view.control(Control::Gateways(Gateways { version, count }), 0);
        assert_eq!(view.gateway_count(), Some(Gateways { version: 2, count: 5 }));
    }
}

/// A report of a worker of this stage, with these shards: each its number, epoch, and how far it goes by `control`.
fn judging(worker: &str, stage: &str, control_offset: u64, shards: &[(u32, u64, u64)]) -> WorkerStatus {
    let shard = |(shard, epoch, control_offset): &(u32, u64, u64)| {
        let status =
            ShardStatus { role: Role::Owner, epoch: *epoch, control_offset: *control_offset, ..ShardStatus::default() };
        (ShardId::new(stage, *shard), status)
    };
    let shards = shards.iter().map(shard).collect();
    WorkerStatus { stages: [stage.to_owned()].into(), control_offset, shards, ..report(worker, 1) }
}

#[test]
fn the_newest_savepoints_are_known_in_whatever_order_they_are_heard_of() {
    let view = |ids: &mut dyn Iterator<Item = u64>| {
        let mut view = View::new(1, Bounds::default());
        ids.for_each(|id| view.control(Control::Savepoint(Savepoint { id, has_ended: false, generation: 1 }), 0));
        view.savepoints().keys().copied().collect::<Vec<u64>>()
    };
    let newest: Vec<u64> = (937..=1_000).collect();
    assert_eq!((view(&mut (1..=1_000)), view(&mut (1..=1_000).rev())), (newest.clone(), newest));
}

#[test]
fn a_savepoint_is_open_until_it_has_ended_whatever_comes_after_that() {
    let savepoint = |id, has_ended, generation| Control::Savepoint(Savepoint { id, has_ended, generation });
    let mut view = View::new(2, Bounds::default());
    let open = |view: &View| view.open_savepoints().collect::<Vec<u64>>();
    for id in [7, 5, 6] {
        view.control(savepoint(id, false, 2), 0);
    }
    view.control(savepoint(8, false, 1), 0);
    assert_eq!(open(&view), [5, 6, 7], "of this generation");
    view.control(savepoint(6, true, 2), 0);
    view.control(savepoint(6, false, 2), 0);
    assert_eq!(open(&view), [5, 7]);
    assert_eq!(view.savepoints().len(), 4, "no id is used again");
}

#[test]
fn gateways_workers_of_unify_and_each_shard_that_they_own_judge_the_records_of_tenants() {
    let mut view = View::new(1, Bounds::default());
    let leaving = |status| WorkerStatus { leaving: true, ..status };
    let all = [
        judging("g", GATEWAY, 9, &[]),
        leaving(judging("h", GATEWAY, 1, &[])),
        judging("u", "unify", 8, &[(0, 3, 7), (1, 1, 2)]),
        // It took shard 1 over from `u`, and gives it away.
        leaving(judging("v", "unify", 3, &[(1, 2, 6)])),
        judging("a", "action", 1, &[(0, 1, 0)]),
    ];
    all.into_iter().for_each(|status| view.status(status, 0));
    let judges = |now_ms| -> Vec<(String, u64, bool)> {
        view.judges(now_ms).iter().map(|it| (it.worker.to_owned(), it.control_offset, it.is_unify)).collect()
    };
    let expected = [("g", 9, false), ("u", 8, true), ("u", 7, true), ("v", 6, true)];
    assert_eq!(judges(10), expected.map(|(name, offset, is_unify)| (name.to_owned(), offset, is_unify)));
    let named: Vec<String> = view.judges(10).iter().map(ToString::to_string).collect();
    assert_eq!(named, ["gateway g", "worker u", "shard unify/0 of u", "shard unify/1 of v"]);
    assert_eq!(judges(GATEWAY_GONE_MS), [], "whoever is not heard judges nothing any more");
}

#[test]
fn that_a_shard_was_owned_is_known_also_when_nobody_says_so_any_more() {
    let mut view = View::new(1, Bounds::default());
    let id = ShardId::new("action", 0);
    assert_eq!(view.highest_epochs().get(&id), None);
    view.status(judging("action-1", "action", 9, &[(0, 7, 9)]), 0);
    let lost =
        WorkerStatus { shards: [(id.clone(), ShardStatus::default())].into(), ..judging("action-1", "action", 9, &[]) };
    view.status(WorkerStatus { sequence: 2, ..lost }, 10);
    assert_eq!(view.highest_epochs().get(&id), Some(&7));
    view.status(WorkerStatus { generation: 2, ..judging("action-0", "action", 9, &[(0, 9, 9)]) }, 20);
    assert_eq!(view.highest_epochs().get(&id), Some(&7), "another generation begins anew");
}

#[test]
fn a_step_is_carried_out_when_an_owner_who_is_heard_says_so() {
    let mut view = View::new(1, Bounds::default());
    // (shard, epoch, carried out up to)
    view.status(judging("reaction-2", "reaction", 9, &[(0, 0, 5), (1, 0, 5)]), 0);
    view.status(judging("action-1", "action", 9, &[(0, 1, 9)]), 0);
    let now_ms = GATEWAY_GONE_MS;
    // Without epochs nobody is fenced: who is gone counts no more, however its name compares.
    view.status(judging("reaction-0", "reaction", 9, &[(0, 0, 8)]), now_ms);
    view.status(judging("reaction-1", "reaction", 7, &[(1, 0, 7)]), now_ms);
    view.status(judging("action-0", "action", 9, &[(0, 2, 7)]), now_ms);
    let done = |stage, offset| view.carried_out(stage, offset, now_ms);
    assert_eq!((done("reaction", 6), done("reaction", 7), done("reaction", 8)), (2, 1, 0));
    assert_eq!((done("action", 6), done("action", 7)), (1, 0), "a fenced owner's word counts for nothing");
    assert_eq!((view.unheard(6, now_ms), view.unheard(7, now_ms), view.unheard(9, now_ms)), (0, 1, 3));
    assert_eq!(view.carried_out("reaction", 6, 3 * GATEWAY_GONE_MS), 0);
}

#[test]
fn a_former_version_of_unify_goes_by_a_tenant_that_has_no_rules() {
    let of = |control_offset, is_unify| Judge { worker: "w", control_offset, is_unify, shard: None };
    let forbidden_values = ["none".to_owned()].into();
    let rules = Terms { rules: Rules { forbidden_values, ..Rules::default() }, ..Terms::default() };
    let rate = Terms { rate: Rate { records: Some(1), bytes: None }, ..Terms::default() };
    assert!(of(5, true).goes_by(4, &rules) && !of(4, true).goes_by(4, &rules) && !of(4, true).goes_by(4, &rate));
    assert!(of(0, true).goes_by(4, &rate) && !of(0, true).goes_by(4, &rules) && !of(0, false).goes_by(4, &rate));
    // All of them do when each one does.
    let judges = [of(7, false), of(0, true), of(5, true), of(6, false), of(0, false)];
    for some in (0..32_usize)
        .map(|bits| (0..5).filter(|index| bits >> index & 1 == 1).map(|index| judges[index]).collect::<Vec<_>>())
    {
        let horizon = Horizon::of(&some);
        assert_eq!(horizon.gateways as usize, some.iter().filter(|judge| !judge.is_unify).count());
        for (offset, terms) in [(4, &rules), (4, &rate), (5, &rules), (6, &rate)] {
            // Without any gateway nobody asks.
            let all = horizon.gateways > 0 && some.iter().all(|judge| judge.goes_by(offset, terms));
            assert_eq!(horizon.gateways > 0 && horizon.goes_by(offset, terms), all, "{some:?} {offset} {terms:?}");
        }
    }
}

//! What holds for every input of the planner.

use super::world::{World, worker};
use super::*;
use crate::plan::Placement;
use proptest::prelude::*;

/// A worker of the generated worlds: `w0`, `w1`, ... on a node of its zone.
fn workers(most: usize) -> impl Strategy<Value = Vec<Worker>> {
    let spec = (0_u8..3, 0_u8..2, prop_oneof![3 => Just(1_u32), 1 => 0_u32..4], prop::bool::weighted(0.15));
    prop::collection::vec(spec, 1..=most).prop_map(|specs| {
        let of = |(index, (zone, node, capacity, leaving)): (usize, (u8, u8, u32, bool))| Worker {
            capacity,
            leaving,
            ..worker(&format!("w{index}"), &format!("z{zone}"), &format!("z{zone}n{node}"))
        };
        specs.into_iter().enumerate().map(of).collect()
    })
}

fn limits() -> impl Strategy<Value = Limits> {
    (1_usize..4, 0_usize..4, 0_u32..3).prop_map(|(moves, successors, warm)| Limits { moves, successors, warm, lag: 40 })
}

fn stages() -> impl Strategy<Value = BTreeMap<String, u32>> {
    (0_u32..13, 1_u32..13)
        .prop_map(|(unify, action)| [("unify".to_owned(), unify), ("action".to_owned(), action)].into())
}

/// Any placement at all, also of workers that are dead, and moves in any state.
fn placement() -> impl Strategy<Value = Placement> {
    let names = || (0_u8..9).prop_map(|index| format!("w{index}"));
    (names(), prop::collection::btree_set(names(), 0..4), 0_u32..4, prop::option::of(0_usize..4)).prop_map(
        |(owner, successors, warm, moving)| {
            let successors: Vec<String> = successors.into_iter().rev().filter(|name| *name != owner).collect();
            let moving_to = moving.and_then(|index| successors.get(index).cloned());
            Placement { owner, warm: warm.min(successors.len() as u32), successors, moving_to }
        },
    )
}

/// A world with any plan in force.
fn worlds() -> impl Strategy<Value = World> {
    let placements = prop::collection::vec(prop::option::weighted(0.9, placement()), 26);
    (workers(6), stages(), limits(), placements).prop_map(|(workers, stages, limits, placements)| {
        let mut world = World::new(workers, stages, limits);
        let ids =
            ["action", "unify"].into_iter().flat_map(|stage| (0..13).map(move |shard| ShardId::new(stage, shard)));
        let placements = ids.zip(placements).filter_map(|(id, placement)| Some((id, placement?))).collect();
        world.adopt(Plan { version: Version { term: 1, number: 7 }, generation: 1, placements });
        world
    })
}

fn alive(world: &World, name: &str) -> bool {
    world.workers.iter().any(|worker| worker.name == name)
}

fn takers(world: &World) -> Vec<&Worker> {
    world.workers.iter().filter(|worker| !worker.leaving).collect()
}

/// Shards that move, or that a live worker has other than the plan says.
fn in_motion(world: &World, plan: &Plan) -> usize {
    let moving = |(id, placement): &(&ShardId, &Placement)| {
        let holder = world.standings.get(id).and_then(|standing| standing.holder.as_deref());
        let misplaced = holder.is_some_and(|holder| alive(world, holder) && holder != placement.owner);
        misplaced || placement.moving_to.is_some()
    };
    let relevant =
        plan.placements.iter().filter(|(id, _)| world.stages.get(&id.stage).is_some_and(|shards| id.shard < *shards));
    relevant.filter(moving).count()
}

/// Everything that must be true of one plan after another.
fn check_step(world: &World, outcome: &Outcome) {
    let previous = world.placements();
    for (id, placement) in &outcome.plan.placements {
        assert!(alive(world, &placement.owner), "{id}: {placement:?} names a dead owner");
        let mut names: Vec<&str> = placement.claimants().collect();
        assert!(names[1..].iter().all(|name| alive(world, name)), "{id}: {placement:?} names a dead successor");
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), placement.successors.len() + 1, "{id}: {placement:?} repeats a name");
        assert!(placement.warm as usize <= placement.successors.len());
        assert!(placement.successors.len() <= world.limits.successors.max(1) + 1);
        assert!(placement.moving_to.as_ref().is_none_or(|to| placement.successors.contains(to)));
        if let Some(before) =
            previous.get(id).filter(|before| before.owner != placement.owner && alive(world, &before.owner))
        {
            check_flip(world, id, before, placement);
        }
    }
    let before = world.plan.as_ref().map_or(0, |plan| in_motion(world, plan));
    let after = in_motion(world, &outcome.plan);
    assert!(after <= before.max(world.limits.moves), "{after} in motion after {before}");
}

/// A live owner loses a shard only to the first, warm, caught-up successor, or, when it leaves, to whoever has it already.
fn check_flip(world: &World, id: &ShardId, before: &Placement, after: &Placement) {
    let standing = &world.standings[id];
    let handed_off = standing.holder.as_ref() == Some(&after.owner);
    let owner_leaves = !takers(world).iter().any(|worker| worker.name == before.owner);
    let prepared = before.successors.first() == Some(&after.owner)
        && before.moving_to.as_ref() == Some(&after.owner)
        && before.warm > 0
        && standing.lags.get(&after.owner).is_some_and(|lag| *lag <= world.limits.lag);
    assert!(prepared || (owner_leaves && handed_off), "{id}: {before:?} became {after:?} with {standing:?}");
}

/// Everything that must be true once nothing changes any more.
fn check_rest(world: &World) {
    let takers = takers(world);
    if takers.is_empty() {
        return;
    }
    for (id, pin) in world.pinned.iter().filter(|(id, pin)| is_counted(world, id, pin)) {
        assert_eq!(world.placements()[id].owner, *pin, "{id} is pinned");
    }
    for (stage, shards) in &world.stages {
        let owned = world.owned(stage);
        if world.pinned.iter().any(|(id, pin)| id.stage == *stage && is_counted(world, id, pin)) {
            continue;
        }
        let known: u32 = takers.iter().map(|worker| worker.capacity).sum();
        let weight = |worker: &Worker| if known == 0 { 1 } else { worker.capacity as usize };
        let total: usize = takers.iter().map(|worker| weight(worker)).sum();
        for worker in &world.workers {
            let expected = if worker.leaving { 0 } else { *shards as usize * weight(worker) };
            let off = (owned[&worker.name] * total).abs_diff(expected);
            assert!(off < total, "{stage}: {} owns {} of {shards}", worker.name, owned[&worker.name]);
        }
    }
    world.placements().values().for_each(|placement| check_successors(world, placement));
}

/// It can be followed: the shard is there, and its worker takes shards.
fn is_counted(world: &World, id: &ShardId, pin: &str) -> bool {
    let is_there = world.stages.get(&id.stage).is_some_and(|shards| id.shard < *shards);
    is_there && takers(world).iter().any(|worker| worker.name == pin)
}

fn check_successors(world: &World, placement: &Placement) {
    let by_name: BTreeMap<&str, &Worker> = world.workers.iter().map(|worker| (worker.name.as_str(), worker)).collect();
    let owner = by_name[placement.owner.as_str()];
    let others: Vec<&Worker> = takers(world).into_iter().filter(|worker| worker.name != owner.name).collect();
    assert_eq!(placement.successors.len(), world.limits.successors.min(others.len()), "{placement:?}");
    assert_eq!(placement.warm as usize, placement.successors.len().min(world.limits.warm as usize));
    assert_eq!(placement.moving_to, None);
    let Some(first) = placement.successors.first().map(|name| by_name[name.as_str()]) else { return };
    assert!(!first.leaving);
    assert!(first.node != owner.node || others.iter().all(|worker| worker.node == owner.node), "{placement:?}");
    assert!(first.zone != owner.zone || others.iter().all(|worker| worker.zone == owner.zone), "{placement:?}");
}

/// Moves that a world needs at most, with the steps of each.
fn patience(world: &World) -> usize {
    let shards: u32 = world.stages.values().sum();
    6 * shards as usize + 20
}

/// Steps until rest, checking each.
fn settle(world: &mut World) -> Result<(), TestCaseError> {
    for _ in 0..patience(world) {
        let outcome = world.look();
        check_step(world, &outcome);
        let before = (world.plan.clone(), world.standings.clone());
        world.step();
        if outcome.pending.is_empty() && before == (world.plan.clone(), world.standings.clone()) {
            check_rest(world);
            prop_assert_eq!(Some(&world.look().plan), world.plan.as_ref());
            return Ok(());
        }
    }
    Err(TestCaseError::fail(format!("no rest: {:?}", world.look().pending)))
}

#[derive(Clone, Debug)]
enum Fate {
    Dies(usize),
    Joins(u8, u32),
    Leaves(usize, bool),
    Nothing,
}

fn fates() -> impl Strategy<Value = Vec<Fate>> {
    let fate = prop_oneof![
        (0_usize..6).prop_map(Fate::Dies),
        (0_u8..3, 1_u32..3).prop_map(|(zone, capacity)| Fate::Joins(zone, capacity)),
        (0_usize..6, any::<bool>()).prop_map(|(index, leaving)| Fate::Leaves(index, leaving)),
        Just(Fate::Nothing),
    ];
    prop::collection::vec(fate, 0..25)
}

fn happen(world: &mut World, fate: &Fate, at: usize) {
    let name = |index: usize| world.workers.get(index).map(|worker| worker.name.clone());
    match fate {
        Fate::Dies(index) if world.workers.len() > 1 => name(*index).iter().for_each(|name| world.kill(name)),
        Fate::Leaves(index, leaving) => name(*index).iter().for_each(|name| world.set_leaving(name, *leaving)),
        Fate::Joins(zone, capacity) => {
            let (zone, node) = (format!("z{zone}"), format!("z{zone}n{}", at % 2));
            world.workers.push(Worker { capacity: *capacity, ..worker(&format!("j{at}"), &zone, &node) });
        }
        Fate::Dies(_) | Fate::Nothing => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn from_any_plan_it_comes_to_a_balanced_rest(mut world in worlds()) {
        settle(&mut world)?;
    }

    #[test]
    fn pinned_shards_come_to_rest_where_they_are_pinned(
        mut world in worlds(),
        pins in prop::collection::btree_map((prop::bool::ANY, 0_u32..13), 0_u8..7, 1..9),
        fates in fates(),
    ) {
        let pin = |((is_unify, shard), worker): ((bool, u32), u8)| {
            (ShardId::new(if is_unify { "unify" } else { "action" }, shard), format!("w{worker}"))
        };
        world.pinned = pins.into_iter().map(pin).collect();
        for (at, fate) in fates.iter().enumerate() {
            happen(&mut world, fate, at);
            check_step(&world, &world.look());
            world.step();
        }
        settle(&mut world)?;
        world.pinned.clear();
        settle(&mut world)?;
    }

    #[test]
    fn whatever_happens_each_step_is_allowed_and_in_the_end_it_comes_to_rest(mut world in worlds(), fates in fates()) {
        for (at, fate) in fates.iter().enumerate() {
            happen(&mut world, fate, at);
            let outcome = world.look();
            check_step(&world, &outcome);
            world.step();
        }
        settle(&mut world)?;
    }

    #[test]
    fn the_order_of_the_workers_does_not_matter(
        (world, shuffled) in worlds().prop_flat_map(|world| {
            let shuffled = Just(world.workers.clone()).prop_shuffle();
            (Just(world), shuffled)
        }),
    ) {
        let other = World { workers: shuffled, ..world.clone() };
        prop_assert_eq!(world.look(), other.look());
    }

    #[test]
    fn a_death_moves_only_the_shards_of_the_dead(mut world in worlds(), index in 0_usize..6) {
        settle(&mut world)?;
        prop_assume!(world.workers.len() > 1 && index < world.workers.len());
        let (dead, before) = (world.workers[index].name.clone(), world.placements());
        world.kill(&dead);
        let after = world.look().plan.placements;
        for (id, placement) in &before {
            let successor = placement.successors.iter().find(|name| takers(&world).iter().any(|worker| worker.name == **name));
            let expected = if placement.owner == dead { successor } else { Some(&placement.owner) };
            prop_assert!(expected.is_none_or(|expected| *expected == after[id].owner));
        }
    }

    #[test]
    fn a_worker_that_joins_is_given_its_share_and_nothing_else_moves(mut world in worlds(), capacity in 1_u32..3) {
        settle(&mut world)?;
        // Shares of unequal workers are rounded anew when one joins.
        prop_assume!(takers(&world).iter().all(|worker| worker.capacity == capacity));
        let before = world.placements();
        world.workers.push(Worker { capacity, ..worker("new", "z9", "z9n9") });
        settle(&mut world)?;
        let changed = world.placements().iter().filter(|(id, placement)| placement.owner != before[id].owner).count();
        let given: usize = world.stages.keys().map(|stage| world.owned(stage)["new"]).sum();
        prop_assert_eq!(changed, given);
    }

    #[test]
    fn with_workers_and_their_reports_unchanged_plans_end(mut world in worlds()) {
        // Nobody follows: lags and holders stay as they are.
        let mut last = world.look().plan;
        for _ in 0..patience(&world) {
            world.plan = Some(last.clone());
            let next = world.look().plan;
            if next == last {
                return Ok(());
            }
            last = next;
        }
        prop_assert!(false, "still changing: {:?}", last);
    }
}

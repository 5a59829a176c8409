//! Whether a plan fits its pipeline: checked before a plan that a person wrote is published.
//!
//! A worker follows whatever plan is the newest, so a shard that is missing from it stands still, and one whose owner is misspelt waits for ever. All
//! problems are reported at once, each with what to do.

use crate::plan::{Placement, Plan, ShardId, Version};
use std::collections::{BTreeMap, BTreeSet};

/// What a plan is checked against.
#[derive(Clone, Copy, Debug)]
pub struct Pipeline<'a> {
    /// Each stage with its number of shards.
    pub stages: &'a BTreeMap<String, u32>,
    /// Each worker that may be named, with the stages whose shards it can own; without it any name is right.
    pub workers: Option<&'a BTreeMap<String, BTreeSet<String>>>,
    /// Generation that the pipeline is in.
    pub generation: u32,
    /// The plan that counts now, which the new one must exceed.
    pub current: Option<Version>,
}

/// What is wrong with a plan, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Workers would ignore it.
    #[error("plan {given} is not newer than {current}: raise its number above {current}, or leave term and number out")]
    NotNewer {
        /// Of the plan.
        given: Version,
        /// The one that counts now.
        current: Version,
    },
    /// It is for a pipeline before or after a restore.
    #[error("the plan is for generation {given}, the pipeline is in generation {current}: set `generation: {current}`")]
    Generation {
        /// Of the plan.
        given: u32,
        /// Of the pipeline.
        current: u32,
    },
    /// A shard without a place.
    #[error("{0} is not placed: add it, with an owner")]
    Missing(ShardId),
    /// A shard that the pipeline does not have.
    #[error("{0} does not exist: {1}")]
    NoSuchShard(ShardId, String),
    /// One placement that cannot be.
    #[error("{shard}: {what}")]
    Placement {
        /// Whose.
        shard: ShardId,
        /// What is wrong with it, and what to do.
        what: String,
    },
}

/// Checks a plan.
///
/// # Errors
/// All that is wrong with it, in the order of its shards.
pub fn validate(plan: &Plan, pipeline: &Pipeline<'_>) -> Result<(), Vec<Problem>> {
    let mut problems = of_version(plan, pipeline);
    for (id, placement) in &plan.placements {
        problems.extend(no_such_shard(id, pipeline));
        let wrong = of_placement(id, placement, pipeline);
        problems.extend(wrong.into_iter().map(|what| Problem::Placement { shard: id.clone(), what }));
    }
    problems.extend(missing(plan, pipeline));
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

fn of_version(plan: &Plan, pipeline: &Pipeline<'_>) -> Vec<Problem> {
    let mut problems = Vec::new();
    if let Some(current) = pipeline.current.filter(|current| plan.version <= *current) {
        problems.push(Problem::NotNewer { given: plan.version, current });
    }
    if plan.generation != pipeline.generation {
        problems.push(Problem::Generation { given: plan.generation, current: pipeline.generation });
    }
    problems
}

fn no_such_shard(id: &ShardId, pipeline: &Pipeline<'_>) -> Option<Problem> {
    let why = match pipeline.stages.get(&id.stage) {
        None => format!("the stages are {}", names(pipeline.stages.keys())),
        Some(shards) if id.shard >= *shards => format!("the stage has {shards} shards, counted from 0"),
        Some(_) => return None,
    };
    Some(Problem::NoSuchShard(id.clone(), why))
}

fn missing<'a>(plan: &'a Plan, pipeline: &'a Pipeline<'_>) -> impl Iterator<Item = Problem> + 'a {
    let all = pipeline.stages.iter().flat_map(|(stage, shards)| (0..*shards).map(|shard| ShardId::new(stage, shard)));
    all.filter(|id| !plan.placements.contains_key(id)).map(Problem::Missing)
}

fn of_placement(id: &ShardId, placement: &Placement, pipeline: &Pipeline<'_>) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for worker in placement.claimants() {
        if !seen.insert(worker) {
            wrong.push(format!("`{worker}` stands twice among owner and successors: name each worker once"));
        }
        wrong.extend(unfit(worker, id, pipeline));
    }
    let successors = placement.successors.len();
    if placement.warm as usize > successors {
        let warm = placement.warm;
        wrong.push(format!("`warm: {warm}` of {successors} successors: name more successors, or lower it"));
    }
    if let Some(to) = placement.moving_to.as_ref().filter(|to| !placement.successors.contains(to)) {
        wrong.push(format!("it is moving to `{to}`, which is none of its successors: add it there first"));
    }
    wrong
}

/// Why a worker cannot be named for a shard.
fn unfit(worker: &str, id: &ShardId, pipeline: &Pipeline<'_>) -> Option<String> {
    if worker.is_empty() {
        return Some("a worker without a name: name one, or leave the entry out".to_owned());
    }
    let workers = pipeline.workers?;
    match workers.get(worker) {
        None => Some(format!("`{worker}` is not known: the workers are {}", names(workers.keys()))),
        Some(stages) if !stages.contains(&id.stage) => {
            Some(format!("`{worker}` does not run {}, only {}: name one that does", id.stage, names(stages)))
        }
        Some(_) => None,
    }
}

fn names<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    let names: Vec<&str> = names.into_iter().map(String::as_str).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(owner: &str, successors: &[&str], warm: u32) -> Placement {
        let successors = successors.iter().map(|name| (*name).to_owned()).collect();
        Placement { owner: owner.into(), successors, warm, moving_to: None }
    }

    fn problems(change: impl FnOnce(&mut Plan)) -> Vec<String> {
        let stages = BTreeMap::from([("action".to_owned(), 2)]);
        let runs = |stage: &str| BTreeSet::from([stage.to_owned()]);
        let workers = ["a", "b"].map(|name| (name.to_owned(), runs("action")));
        let workers = workers.into_iter().chain([("u".to_owned(), runs("unify"))]).collect();
        let current = Some(Version { term: 1, number: 4 });
        let pipeline = Pipeline { stages: &stages, workers: Some(&workers), generation: 1, current };
        let placements = [0, 1].map(|shard| (ShardId::new("action", shard), place("a", &["b"], 1)));
        let mut plan = Plan { version: Version { term: 1, number: 5 }, generation: 1, placements: placements.into() };
        change(&mut plan);
        let problems = validate(&plan, &pipeline).err().unwrap_or_default();
        problems.iter().map(Problem::to_string).collect()
    }

    #[test]
    fn a_plan_that_fits_has_no_problem() {
        assert_eq!(problems(|_| ()), Vec::<String>::new());
    }

    #[test]
    fn each_problem_says_what_to_do() {
        let set =
            |placement: Placement| problems(|plan| drop(plan.placements.insert(ShardId::new("action", 1), placement)));
        let cases = [
            (
                problems(|plan| plan.version.number = 4),
                "plan 1.4 is not newer than 1.4: raise its number above 1.4, or leave",
            ),
            (
                problems(|plan| plan.generation = 2),
                "the plan is for generation 2, the pipeline is in generation 1: set",
            ),
            (
                problems(|plan| drop(plan.placements.remove(&ShardId::new("action", 0)))),
                "action[0] is not placed: add it",
            ),
            (
                problems(|plan| drop(plan.placements.insert(ShardId::new("action", 2), place("a", &[], 0)))),
                "action[2] does not exist: the stage has 2 shards, counted from 0",
            ),
            (set(place("x", &["b"], 1)), "action[1]: `x` is not known: the workers are a, b, u"),
            (set(place("u", &["b"], 1)), "action[1]: `u` does not run action, only unify: name one that does"),
            (set(place("", &["b"], 1)), "action[1]: a worker without a name"),
            (set(place("a", &["b", "a"], 1)), "action[1]: `a` stands twice"),
            (set(place("a", &["b"], 2)), "action[1]: `warm: 2` of 1 successors: name more"),
            (set(Placement { moving_to: Some("u".into()), ..place("a", &["b"], 1) }), "action[1]: it is moving to `u`"),
        ];
        for (problems, expected) in cases {
            assert!(problems.len() == 1 && problems[0].starts_with(expected), "{expected}: {problems:?}");
        }
        let other = problems(|plan| drop(plan.placements.insert(ShardId::new("x", 0), place("a", &[], 0))));
        assert!(other[0].starts_with("x[0] does not exist: the stages are action"), "{other:?}");
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let found = problems(|plan| {
            plan.generation = 9;
            plan.placements.clear();
        });
        assert_eq!(found.len(), 3, "{found:?}");
    }
}

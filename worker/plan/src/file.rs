//! A plan as a file, for `millstream plan --file`: small installations without an operator, and tests.
//!
//! ```yaml
//! generation: 1
//! term: 2            # left out: the present plan's
//! number: 7          # left out: the present plan's + 1
//! stages:
//!   action:
//!     - {shard: 0, owner: worker-0, successors: [worker-1, worker-2], warm: 1}
//!     - {shard: 1, owner: worker-1, successors: [worker-2], warm: 1, moving_to: worker-2}
//! ```
//! `successors` is empty, `warm` 0 and `moving_to` nobody when they are left out. What the file names is checked by [`crate::validate`].

use crate::plan::{Placement, Plan, ShardId, Version};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Why a file is no plan; the text says where and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// Not YAML, or not of this form.
    #[error("line {line}, column {column}: {message}")]
    Syntax {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What is wrong, and what is allowed.
        message: String,
    },
    /// Two placements of one shard.
    #[error("{0} is placed twice: keep one of them")]
    Twice(ShardId),
    /// The plan cannot be written as a file.
    #[error("cannot write the plan as YAML: {0}")]
    Write(String),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanFile {
    generation: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    term: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    number: Option<u64>,
    stages: BTreeMap<String, Vec<ShardEntry>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShardEntry {
    shard: u32,
    owner: String,
    #[serde(default)]
    successors: Vec<String>,
    #[serde(default)]
    warm: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    moving_to: Option<String>,
}

/// Reads a plan; `current` is the version of the plan that counts now, from which a version that the file leaves out follows.
///
/// # Errors
/// [`FileError`] with line and column.
pub fn parse(text: &str, current: Option<Version>) -> Result<Plan, FileError> {
    let file: PlanFile = serde_yaml::from_str(text).map_err(|error| syntax(&error))?;
    let current = current.unwrap_or_default();
    let version = Version {
        term: file.term.unwrap_or(current.term),
        number: file.number.unwrap_or_else(|| current.number.saturating_add(1)),
    };
    let mut placements = BTreeMap::new();
    for (stage, entries) in file.stages {
        for entry in entries {
            let (id, placement) = entry.place(&stage);
            if placements.insert(id.clone(), placement).is_some() {
                return Err(FileError::Twice(id));
            }
        }
    }
    Ok(Plan { version, generation: file.generation, placements })
}

/// Writes a plan as [`parse`] reads it.
///
/// # Errors
/// [`FileError::Write`].
pub fn render(plan: &Plan) -> Result<String, FileError> {
    let mut stages: BTreeMap<String, Vec<ShardEntry>> = BTreeMap::new();
    for (id, placement) in &plan.placements {
        stages.entry(id.stage.clone()).or_default().push(ShardEntry::of(id, placement));
    }
    let Version { term, number } = plan.version;
    let file = PlanFile { generation: plan.generation, term: Some(term), number: Some(number), stages };
    serde_yaml::to_string(&file).map_err(|error| FileError::Write(error.to_string()))
}

impl ShardEntry {
    fn place(self, stage: &str) -> (ShardId, Placement) {
        let id = ShardId::new(stage, self.shard);
        let ShardEntry { owner, successors, warm, moving_to, .. } = self;
        (id, Placement { owner, successors, warm, moving_to })
    }

    fn of(id: &ShardId, placement: &Placement) -> ShardEntry {
        let Placement { owner, successors, warm, moving_to } = placement.clone();
        ShardEntry { shard: id.shard, owner, successors, warm, moving_to }
    }
}

fn syntax(error: &serde_yaml::Error) -> FileError {
    let (line, column) = error.location().map_or((1, 1), |at| (at.line(), at.column()));
    let text = error.to_string();
    // The library repeats the place at the end.
    let message = text.rsplit_once(" at line ").map_or(text.as_str(), |(message, _)| message).to_owned();
    FileError::Syntax { line, column, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
generation: 1
term: 2
number: 7
stages:
  action:
    - {shard: 0, owner: a, successors: [b, c], warm: 1, moving_to: c}
    - {shard: 1, owner: b}
";

    #[test]
    fn a_file_says_who_owns_what() {
        let plan = parse(FILE, None).unwrap();
        assert_eq!((plan.version, plan.generation), (Version { term: 2, number: 7 }, 1));
        let first = Placement {
            owner: "a".into(),
            successors: vec!["b".into(), "c".into()],
            warm: 1,
            moving_to: Some("c".into()),
        };
        assert_eq!(plan.placements[&ShardId::new("action", 0)], first);
        assert_eq!(
            plan.placements[&ShardId::new("action", 1)],
            Placement { owner: "b".into(), ..Placement::default() }
        );
    }

    #[test]
    fn a_plan_comes_back_from_its_file() {
        let plan = parse(FILE, None).unwrap();
        assert_eq!(parse(&render(&plan).unwrap(), None).unwrap(), plan);
    }

    #[test]
    fn a_version_that_is_left_out_follows_the_present_one() {
        let text = FILE.replace("term: 2\nnumber: 7\n", "");
        let version = |current| parse(&text, current).unwrap().version;
        assert_eq!(version(Some(Version { term: 5, number: 9 })), Version { term: 5, number: 10 });
        assert_eq!(version(None), Version { term: 0, number: 1 });
    }

    #[test]
    fn errors_say_where_and_what_is_allowed() {
        let error = |from: &str, to: &str| parse(&FILE.replace(from, to), None).unwrap_err().to_string();
        let unknown = error("warm: 1", "standbys: 1");
        assert!(unknown.starts_with("line 6, column ") && unknown.contains("unknown field `standbys`"), "{unknown}");
        assert!(unknown.contains("expected one of `shard`, `owner`, `successors`, `warm`, `moving_to`"), "{unknown}");
        assert!(error("owner: b", "successors: [b]").contains("missing field `owner`"));
        assert!(error("shard: 1", "shard: one").contains("invalid type: string \"one\", expected u32"));
        assert_eq!(error("shard: 1", "shard: 0"), "action[0] is placed twice: keep one of them");
    }
}

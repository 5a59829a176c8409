//! The plan: per shard an owner and an ordered list of successors.

use std::collections::BTreeMap;
use std::fmt;

/// One shard of one stage.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId {
    /// Name of the stage: `unify`, `action`, `reaction`.
    pub stage: String,
    /// Its number in the stage, from 0.
    pub shard: u32,
}

impl ShardId {
    /// The shard of this number.
    pub fn new(stage: &str, shard: u32) -> ShardId {
        ShardId { stage: stage.to_owned(), shard }
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.stage, self.shard)
    }
}

/// Which plan is newer: compared by term, then by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Grows with each new leader among operators.
    pub term: u64,
    /// Grows with each change, also over terms.
    pub number: u64,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.number)
    }
}

/// Where one shard lives. Workers are named without an incarnation: a restarted one has the same place.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Placement {
    /// The worker that is to own it.
    pub owner: String,
    /// Who takes over, in this order: the first that lives.
    pub successors: Vec<String>,
    /// So many successors, from the first, are warm standbys: they follow the changelog all the time.
    pub warm: u32,
    /// The successor that is to become owner once it has caught up.
    pub moving_to: Option<String>,
}

impl Placement {
    /// Owner, then successors: the order of claims.
    pub fn claimants(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.owner).chain(&self.successors).map(String::as_str)
    }
}

/// All placements of a pipeline. Its order is that of its version first, so that the greatest of several plans is the one that counts, even if two
/// people published different ones under one number.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Plan {
    /// Which plan it is.
    pub version: Version,
    /// Generation of the pipeline that it is for.
    pub generation: u32,
    /// Every shard of every stage.
    pub placements: BTreeMap<ShardId, Placement>,
}

impl Plan {
    /// Every worker that it names, repeated as often as it does.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.placements.values().flat_map(Placement::claimants)
    }
}

//! What a worker says about itself.
//!
//! Every report is complete: it replaces the one before, so that a lost one costs nothing but time. Reports of one worker are ordered by
//! (incarnation, sequence); what comes later in this order counts, whenever it arrives.

use crate::incarnation::Incarnation;
use crate::plan::ShardId;
use crate::unread::Unread;
use std::collections::{BTreeMap, BTreeSet};

/// What a worker does with a shard that it has open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// It may write.
    Owner,
    /// It follows the changelog.
    Standby,
    /// It restores, or takes over. (A role that a newer worker may report counts as this: it neither writes nor is ready to.)
    #[default]
    Opening,
}

/// One shard in a report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardStatus {
    /// What it does with it.
    pub role: Role,
    /// Offset in the changelog from which it would follow after a restart: what lies before is applied and stored. An owner of reaction: offset in `mutations` from which its successor would go on.
    pub changelog_offset: u64,
    /// A standby: changelog messages between there and the end. An owner: messages of its inputs that it has not read.
    pub lag: u64,
    /// Chained digest of the batches, up to the newest one in it.
    pub digest: u64,
    /// Epoch of the newest ownership record that it has read or written.
    pub epoch: u64,
    /// Number of the newest batch in it.
    pub batch_number: u64,
    /// What is wrong, for people; empty: nothing.
    pub condition: String,
    /// The client that it prepared for taking the shard from the owner of this epoch (ownership rule 2), if it has one. Unique per client.
    pub prepared: Option<String>,
    /// An owner: what it has not processed was appended at most so many milliseconds ago; 0: nothing is left. `None`: not known.
    pub unread_ms: Option<u64>,
    /// Of each of its inputs, in their order, once somebody has looked.
    pub unread: Vec<Unread>,
    /// Of unify: the rules of tenants that it applies are those of `control` up to here, exclusive; 0: it applies none, as former versions do.
    pub control_offset: u64,
}

/// All that one worker has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerStatus {
    /// Its name.
    pub worker: String,
    /// Which process of that name.
    pub incarnation: Incarnation,
    /// Grows with each report of the incarnation.
    pub sequence: u64,
    /// Generation of the pipeline that it runs.
    pub generation: u32,
    /// Failure domain; empty: not known.
    pub zone: String,
    /// Machine; empty: not known.
    pub node: String,
    /// When the process started, milliseconds since 1970, by its own clock: for people.
    pub started_ms: u64,
    /// Relative to other workers: one of 2 gets twice the shards of one of 1.
    pub capacity: u32,
    /// It is ending: it gives its shards away and takes none.
    pub leaving: bool,
    /// Stages whose shards it can own.
    pub stages: BTreeSet<String>,
    /// Shards that it has open or opens.
    pub shards: BTreeMap<ShardId, ShardStatus>,
    /// What it has heard of `control`: up to here, exclusive.
    pub control_offset: u64,
    /// Of its program; empty: not known.
    pub version: String,
    /// What it knows for good of what waits for shards that it has not open: they were its, or those of a process of its name. In its first report, and when it leaves.
    pub known: BTreeMap<ShardId, Vec<Unread>>,
    /// Shards that it cannot open, open or not ([`crate::ability`]).
    pub unable: BTreeSet<ShardId>,
    /// It passes over markers of savepoints; a version before stops at them.
    pub knows_markers: bool,
}

impl WorkerStatus {
    /// What it says for good of shards, open or not.
    pub fn known_for_good(&self) -> BTreeMap<ShardId, Vec<Unread>> {
        let open = self.shards.iter().map(|(id, shard)| (id, &shard.unread)).filter(|(_, unread)| !unread.is_empty());
        let for_good = |unread: &Vec<Unread>| unread.iter().map(Unread::for_good).collect();
        self.known.iter().chain(open).map(|(id, unread)| (id.clone(), for_good(unread))).collect()
    }

    /// Where it stands among the reports of its worker.
    pub fn order(&self) -> (&Incarnation, u64) {
        (&self.incarnation, self.sequence)
    }
}

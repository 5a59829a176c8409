//! Savepoints: a consistent cut over all shards of a pipeline, while it works (I10).
//!
//! **The cut.** Whoever takes a savepoint publishes its id in `control`. Each shard is *cut* for it at one of its batches: a batch without a change, whose transaction holds nothing but the changelog's record,
//! which says that it is a cut, where the inputs stand, and what the state's digest is, and one [`marker`] in every partition that other shards read from this one. What the shard has written before
//! the marker belongs to the savepoint, what it writes after does not.
//!
//! - A shard of unify is cut when it hears of the savepoint. (Anybody may write to `ingress`: what looks like a marker there is a record that cannot be read.)
//! - A shard of action is cut when it meets the savepoint's first marker in any of its inputs, and before it reads further: nothing that is behind a marker has been processed at the cut
//!   ([`Inputs`](crate::inputs::Inputs)). So the markers of unify reach every shard.
//!
//! **What lies between.** What a shard sent before its marker, and the receiver had not processed at its own cut, is between the two positions that are recorded: the receiver's input at its cut, and the sender's
//! marker. It belongs to the savepoint, as the content of that channel.
//!
//! **Once.** Which savepoints a shard was cut for is in the changelog, and goes with its state: a shard that moves, or dies in the middle, is not cut again, and meets the other markers of that savepoint as
//! messages for nobody. The newest few are remembered ([`cuts`]), in whatever order they came: savepoints that overlap do not wait for each other.
//!
//! What a shard [owes](crate::hanging) its outputs of batches before goes first: it was written before the cut.

//!
//! **Creating one** is [`create()`]: anybody may, who reaches the log and the object store. **What there is** of savepoints lies in the object store alone ([`store`], [`layout`]).

mod copy;
pub mod create;
pub(crate) mod cuts;
pub mod layout;
pub mod marker;
pub mod store;
mod verify;

pub use create::{create, dispose};
pub use verify::{Verified, verify};

use crate::changelog::ChangelogError;
use crate::checkpoint::repository::RepositoryError;
use crate::log::{LogError, TopicPartition};
use crate::objects::ObjectError;

/// Why there is no savepoint.
#[derive(Debug, thiserror::Error)]
pub enum SavepointError {
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The object store.
    #[error(transparent)]
    Objects(#[from] ObjectError),
    /// A shard's checkpoints.
    #[error(transparent)]
    Checkpoints(#[from] RepositoryError),
    /// A changelog.
    #[error(transparent)]
    Changelog(#[from] ChangelogError),
    /// It was not complete at its deadline.
    #[error("not complete at its deadline: {0}; give it more time, or see to what it waits for")]
    Late(String),
    /// Somebody has ended it.
    #[error("somebody has ended it meanwhile")]
    Ended,
    /// Ids were taken by others again and again.
    #[error("others create savepoints all the time; try again")]
    Busy,
    /// A worker would stop at the first marker.
    #[error("worker {0} is of a version that knows no savepoints: upgrade it first")]
    OldWorker(String),
    /// Nobody would be cut.
    #[error(
        "no worker of {0} reports what it does: savepoints are of pipelines whose workers follow a plan (`ownership: {{plan: {{}}}}`), and hear of them in `control`"
    )]
    NobodyHears(&'static str),
    /// What is to be copied is gone.
    #[error(
        "{at} starts at {start}, and is to be copied from {from}: it was trimmed or deleted meanwhile; keep it longer, or try again"
    )]
    Trimmed {
        /// What.
        at: TopicPartition,
        /// From where.
        from: u64,
        /// Where it starts.
        start: u64,
    },
    /// It is not what it was.
    #[error("{0}")]
    Damaged(Damage),
    /// A cut says nothing of an input.
    #[error(
        "no position was recorded for {0}: the shards run with other topics; see `shards` and `generation` in the configuration"
    )]
    NoPosition(TopicPartition),
}

/// What of a savepoint is not what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage(pub Vec<String>);

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

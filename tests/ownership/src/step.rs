//! What may happen, in words.

use crate::state::{Slot, WorkerId};
use std::fmt;

/// A kind of step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "each says what it is in `text`")]
pub enum Act {
    Crash,
    Die,
    Prepare,
    PrepareChecked,
    PrepareUnchecked,
    PrepareFailed,
    TakePrepared,
    InitIdle,
    InitNamed,
    TakeWon,
    TakeLost,
    InitAgain,
    WonAgain,
    Accept,
    Append,
    AppendRelease,
    Fenced,
    Commit,
    CommitAnnouncement,
    CommitHandover,
    CommitRelease,
    Unknown,
    Doubtful,
    Abort,
    Revive,
    LateCommit,
    LateLost,
    Marker,
    Timeout,
    Forget,
}

impl Act {
    /// All kinds.
    pub const ALL: [Act; 30] = [
        Act::Crash,
        Act::Die,
        Act::Prepare,
        Act::PrepareChecked,
        Act::PrepareUnchecked,
        Act::PrepareFailed,
        Act::TakePrepared,
        Act::InitIdle,
        Act::InitNamed,
        Act::TakeWon,
        Act::TakeLost,
        Act::InitAgain,
        Act::WonAgain,
        Act::Accept,
        Act::Append,
        Act::AppendRelease,
        Act::Fenced,
        Act::Commit,
        Act::CommitAnnouncement,
        Act::CommitHandover,
        Act::CommitRelease,
        Act::Unknown,
        Act::Doubtful,
        Act::Abort,
        Act::Revive,
        Act::LateCommit,
        Act::LateLost,
        Act::Marker,
        Act::Timeout,
        Act::Forget,
    ];

    fn text(self) -> &'static str {
        match self {
            Act::Crash => "crashes, or gives up; starts again with nothing",
            Act::Die => "dies for good",
            Act::Prepare => "prepares: initialises the idle id",
            Act::PrepareChecked => "finds that the log does not name its id: is prepared",
            Act::PrepareFailed => "finds that the log names its id: discards the client",
            Act::PrepareUnchecked => "counts as prepared without a look at the log",
            Act::TakePrepared => "takes over: uses its prepared client of the idle id",
            Act::InitIdle => "takes over: initialises the idle id",
            Act::InitNamed => "takes over: initialises the named id",
            Act::TakeWon => "finds the log as it was: may write with the other id",
            Act::TakeLost => "finds that another one took the shard: starts again",
            Act::InitAgain => "initialises the named id",
            Act::WonAgain => "finds that the log still names that id: goes on with it",
            Act::Accept => "reads the release and goes on",
            Act::Append => "begins a transaction and writes",
            Act::AppendRelease => "begins a transaction and writes, with a release",
            Act::Fenced => "finds its client fenced: discards it",
            Act::Commit => "commits",
            Act::CommitAnnouncement => "commits its ownership record, after a takeover",
            Act::CommitHandover => "commits its ownership record, after a handoff",
            Act::CommitRelease => "commits the release and stops",
            Act::Unknown => "asks for the commit; the answer is lost",
            Act::Doubtful => "commits; reported as success, after a transport error",
            Act::Abort => "aborts after an error",
            Act::Revive => "goes on with a client that got itself a new producer epoch",
            Act::LateCommit => "takes a late request to commit",
            Act::LateLost => "never gets a request to commit",
            Act::Marker => "writes the commit marker into the changelog",
            Act::Timeout => "aborts a transaction that is too old, and fences its client",
            Act::Forget => "forgets an id without a transaction: fences its client",
        }
    }
}

/// Something that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// A worker, or the coordinator.
    pub who: Option<WorkerId>,
    /// What.
    pub act: Act,
    /// The id concerned, if one is.
    pub slot: Option<Slot>,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.who {
            Some(worker) => write!(f, "W{worker} ")?,
            None => write!(f, "coordinator ")?,
        }
        match self.slot {
            Some(Slot::Zero) => write!(f, "{} (.0)", self.act.text()),
            Some(Slot::One) => write!(f, "{} (.1)", self.act.text()),
            None => write!(f, "{}", self.act.text()),
        }
    }
}

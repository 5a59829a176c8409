//! The shard runtime: how a stage's batches become durable, exactly once.
//!
//! The traits that the runtime stands on are here too, and their implementations in `worker/stores`: the partitioned [`log`] with
//! transactions, the [`documents`] store, the local [`state`] store, and the store of [`objects`]. I/O happens through these traits only; time comes
//! from a [`Clock`], background work goes to an [`Executor`].

mod batch;
pub mod cache;
pub mod changelog;
pub mod changes;
pub mod checkpoint;
pub mod control;
pub mod documents;
pub mod flat;
mod flush;
pub mod follower;
mod hanging;
pub mod hearing;
mod inputs;
pub mod log;
pub mod member;
pub mod memory;
pub mod mutant;
pub mod objects;
mod output;
pub mod ownership;
pub mod planning;
pub mod runtime;
pub mod savepoint;
pub mod seat;
pub mod standby;
pub mod state;
pub mod sums;
mod sweep;
pub mod topics;
mod waiting;
mod written;

/// Where time comes from.
pub trait Clock: Send + Sync {
    /// Milliseconds since 1970.
    fn now_ms(&self) -> u64;
}

/// Has so long passed? Also when the clock was set back: then nobody knows, and what is due some time is due now.
pub(crate) fn has_passed(ms: u64, since_ms: u64, now_ms: u64) -> bool {
    now_ms < since_ms || now_ms - since_ms >= ms
}

/// Where background work is done, off the commit path.
pub trait Executor: Send + Sync {
    /// Runs `work` some time, elsewhere. A job that is dropped goes on.
    fn run(&self, work: Box<dyn FnOnce() + Send>) -> Box<dyn Job>;
}

/// Background work that was begun.
pub trait Job: Send {
    /// Returns when the work has ended, or was given up.
    fn wait(self: Box<Self>);
}

/// Why a shard cannot go on, by what its caller must do.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// Drop the shard and open it again, after a moment: its disk, its state, or something else of this process stood in the way.
    #[error("must be opened again: {0}")]
    Reopen(String),
    /// The same: nobody knows what became of a transaction, which may be the brokers, a rival that has fenced it, or a disk of this process's that was too slow for it.
    #[error("must be opened again: {0}")]
    InDoubt(String),
    /// The same, and to end this process would help nobody: the log or the document store does not answer, or refuses it, or holds back what was committed.
    #[error("must be opened again: {0}")]
    Away(String),
    /// A person must decide: going on would lose or double something (I6).
    #[error("stopped: {0}")]
    Stopped(String),
}

impl ShardError {
    /// Reading a changelog failed. Its owner may have trimmed it meanwhile: whether what is missing is a gap is found out by opening it again.
    pub(crate) fn of_changelog(error: log::LogError) -> ShardError {
        match error {
            log::LogError::OutOfRange { .. } => ShardError::Reopen(error.to_string()),
            error => error.into(),
        }
    }
}

impl From<log::LogError> for ShardError {
    fn from(error: log::LogError) -> ShardError {
        use log::LogError as E;
        match error {
            E::Unavailable(_) => ShardError::Away(error.to_string()),
            E::Unknown(_) => ShardError::InDoubt(error.to_string()),
            E::OutOfRange { .. } | E::Topic { .. } | E::TooLarge { .. } | E::Configuration(_) => {
                ShardError::Stopped(error.to_string())
            }
        }
    }
}

impl From<state::StoreError> for ShardError {
    fn from(error: state::StoreError) -> ShardError {
        ShardError::Reopen(error.to_string())
    }
}

impl From<millstream_stages::StateError> for ShardError {
    fn from(error: millstream_stages::StateError) -> ShardError {
        use millstream_stages::StateError as E;
        match error {
            E::Io(_) | E::Missing(_) => ShardError::Reopen(error.to_string()),
            E::Invalid(_) => ShardError::Stopped(error.to_string()),
        }
    }
}

impl From<documents::DocumentError> for ShardError {
    fn from(error: documents::DocumentError) -> ShardError {
        use documents::DocumentError as E;
        match error {
            E::Unavailable(_) => ShardError::Away(error.to_string()),
            E::Configuration(_) => ShardError::Stopped(error.to_string()),
        }
    }
}

impl From<millstream_stages::DecodeError> for ShardError {
    fn from(error: millstream_stages::DecodeError) -> ShardError {
        ShardError::Stopped(error.to_string())
    }
}

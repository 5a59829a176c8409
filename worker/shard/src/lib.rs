//! The shard runtime: how a stage's batches become durable, exactly once.
//!
//! The traits that the runtime stands on are here too, and their implementations in `worker/stores`: the partitioned [`log`] with
//! transactions, the [`documents`] store, and the local [`state`] store. I/O happens through these traits only; time comes
//! from a [`Clock`], background work goes to an [`Executor`].

pub mod documents;
pub mod log;
pub mod state;

/// Where time comes from.
pub trait Clock: Send + Sync {
    /// Milliseconds since 1970.
    fn now_ms(&self) -> u64;
}

/// Where background work is done, off the commit path.
pub trait Executor: Send + Sync {
    /// Runs `work` some time, elsewhere.
    fn run(&self, work: Box<dyn FnOnce() + Send>);
}

//! The embedded stores: the contracts of Kafka and MongoDB in one process, on one folder.
//!
//! They are what `millstream local`, users' pipeline tests and the simulation run on. They keep the same contracts as the real ones, and the
//! same conformance suite runs against them: real transactions and fencing ([`log`]), the guard on every write ([`documents`]), conditional writes ([`objects`]). What
//! was acknowledged survives `kill -9` of the process; whether it survives a power cut too is an option.

pub mod documents;
pub mod log;
mod log_consumer;
mod log_format;
mod log_open;
mod log_state;
#[cfg(test)]
mod log_tests;
mod log_transactional;
mod log_writer;
pub mod objects;
mod objects_list;

use millstream_shard::Clock;
use std::time::SystemTime;

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

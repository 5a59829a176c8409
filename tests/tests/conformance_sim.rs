//! The conformance suite of the log on the simulation's: what the simulation proves holds for a log that keeps the contract.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use millstream_shard::log::{Log, TopicPartition};
use millstream_sim::log::SimLog;
use millstream_tests::conformance::reader::Subject;
use std::sync::Arc;

/// There is nothing to open again: what a process leaves behind is the log itself.
struct Simulated(SimLog);

fn subject() -> Simulated {
    Simulated(SimLog::outside())
}

impl Subject for Simulated {
    fn open(&self) -> Arc<dyn Log> {
        Arc::new(self.0.clone())
    }

    fn trim(&self, _log: &Arc<dyn Log>, at: &TopicPartition, before: u64) {
        self.0.look(|broker| broker.delete_records(&at.topic, at.partition, before));
    }

    fn delete_topic(&self, _log: &Arc<dyn Log>, topic: &str) {
        self.0.look(|broker| broker.delete_topic(topic));
    }
}

mod log {
    millstream_tests::log_conformance!(super::subject());
}

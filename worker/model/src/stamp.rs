//! Order of stamps (I7): time, then offset, then index.

use crate::proto::Stamp;
use std::cmp::Ordering;

impl Stamp {
    /// What orders stamps.
    pub fn order(&self) -> (u64, u64, u32) {
        (self.time_ms, self.offset, self.index)
    }
}

impl Ord for Stamp {
    fn cmp(&self, other: &Stamp) -> Ordering {
        self.order().cmp(&other.order())
    }
}

impl PartialOrd for Stamp {
    fn partial_cmp(&self, other: &Stamp) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

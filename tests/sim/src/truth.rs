//! What sources have sent, and what they were told.

use std::collections::BTreeMap;

/// A record that a source has sent at least once.
#[derive(Clone, Debug)]
pub struct Sent {
    /// Whose.
    pub tenant: String,
    /// Its routing identifier.
    pub routing: String,
    /// Its place among all records of its source.
    pub number: u64,
    /// Its source.
    pub source: u32,
    /// `event`, `user`, …
    pub kind: &'static str,
    /// The source was told that the log has it.
    pub acknowledged: bool,
}

/// Everything that was sent, by (tenant, message id).
#[derive(Debug, Default)]
pub struct Truth {
    /// The records.
    pub sent: BTreeMap<(String, String), Sent>,
    /// Sources that are not done, and whoever takes savepoints.
    pub working: u32,
}

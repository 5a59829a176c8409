//! What the embedded log keeps, as a file says it.

use super::Millis;
use serde::{Deserialize, Serialize};

/// The embedded log of `millstream local`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EmbeddedLog {
    /// How long messages are kept (default 7d; 0ms: for ever). What a shard has not read and committed stays however old it is, and changelogs stay whole, so
    /// that an empty disk can be filled anew; only `ingress`, `actions`, `exchange`, `mutations`, `events` and `rejects` are trimmed.
    pub retention: Millis,
}

impl Default for EmbeddedLog {
    fn default() -> EmbeddedLog {
        EmbeddedLog { retention: Millis(7 * 24 * 3_600_000) }
    }
}

//! Bounds of what one user or device may hold, as a file says them.

use super::Size;
use millstream_stages::action::ActionLimits;
use serde::{Deserialize, Serialize};

/// What one user or device may hold. What a record brings beyond is refused as `too_large`; the rest of the record takes effect. A merge cannot be
/// refused: the user that survives has the identifiers and devices of both, and of their attributes what `max_merged_bytes` takes; then it grows no further.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Action {
    /// Identifiers of one user or device (default 1,000). One too many is not linked. At least `unify.limits.max_identifiers`.
    pub max_identifiers: usize,
    /// Attributes of one user or device, unset ones included (default 2,000). At least `unify.limits.max_attributes`.
    pub max_attributes: usize,
    /// Elements that were added to and removed from one attribute since it was last set as a whole (default 500). Sets are compared element by element.
    pub max_elements: usize,
    /// Devices of one user (default 1,000). One too many is not remembered with the user, nor the user with it.
    pub max_devices: usize,
    /// Bytes of one user or device, reckoned from above (default 512KiB). At least 64KiB; twice as much must fit into a message of the log.
    pub max_bytes: Size,
    /// Bytes of a user's attributes after a merge, reckoned from above (default 2MiB). Those that were changed last stay; each other one is reported as
    /// `too_large` (partial). At least `max_bytes`; twice as much must fit into a message of the log.
    pub max_merged_bytes: Size,
}

impl Default for Action {
    fn default() -> Action {
        let limits = ActionLimits::default();
        Action {
            max_identifiers: limits.max_identifiers,
            max_attributes: limits.max_attributes,
            max_elements: limits.max_elements,
            max_devices: limits.max_devices,
            max_bytes: Size(limits.max_bytes as u64),
            max_merged_bytes: Size(limits.max_merged_bytes as u64),
        }
    }
}

impl Action {
    /// As the stage takes them.
    pub fn limits(&self) -> ActionLimits {
        ActionLimits {
            max_identifiers: self.max_identifiers,
            max_attributes: self.max_attributes,
            max_elements: self.max_elements,
            max_devices: self.max_devices,
            max_bytes: self.max_bytes.bytes(),
            max_merged_bytes: self.max_merged_bytes.bytes(),
        }
    }
}

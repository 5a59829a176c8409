//! What must come out of the pipeline when the generated records went in: the file of `--truth`.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Identifier values by type.
pub type Identifiers = BTreeMap<String, BTreeSet<String>>;

/// The whole truth.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Truth {
    /// The seed it was made from.
    pub seed: u64,
    /// The moment that record times lead up to, RFC 3339.
    pub now: String,
    /// By tenant.
    pub tenants: BTreeMap<String, TenantTruth>,
}

/// What must come out for one tenant.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantTruth {
    /// Records in its files.
    pub sent: u64,
    /// Records that the gateway accepts: sent − refused.
    pub accepted: u64,
    /// Records that the gateway refuses, by reason code.
    pub refused: BTreeMap<String, u64>,
    /// Accepted records that are repeated deliveries.
    pub duplicates: u64,
    /// Accepted records that end in `rejects`, by reason code.
    pub rejects: BTreeMap<String, u64>,
    /// Accepted records that take effect: accepted − duplicates − rejects.
    pub effects: u64,
    /// Enriched events.
    pub events: u64,
    /// Everybody who is still there at the end.
    pub users: Vec<UserTruth>,
    /// Everybody who was deleted. Of them only their events may be seen.
    pub deleted: Vec<UserTruth>,
}

/// What must be known of one person at the end.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserTruth {
    /// All their identifiers.
    pub identifiers: Identifiers,
    /// All their attributes. Lists are sets: their order does not count.
    pub attributes: BTreeMap<String, Value>,
    /// Values of `device_id` of the devices they used.
    pub devices: BTreeSet<String>,
    /// Message ids of their events.
    pub events: Vec<String>,
}

impl Truth {
    /// Adds what another load sent to the same tenants must lead to (its people are other people).
    pub fn add(&mut self, other: Truth) {
        for (tenant, more) in other.tenants {
            self.tenants.entry(tenant).or_default().add(more);
        }
    }
}

impl TenantTruth {
    fn add(&mut self, more: TenantTruth) {
        self.sent += more.sent;
        self.accepted += more.accepted;
        self.duplicates += more.duplicates;
        self.effects += more.effects;
        self.events += more.events;
        for (sums, added) in [(&mut self.refused, more.refused), (&mut self.rejects, more.rejects)] {
            for (reason, count) in added {
                *sums.entry(reason).or_default() += count;
            }
        }
        self.users.extend(more.users);
        self.deleted.extend(more.deleted);
    }
}

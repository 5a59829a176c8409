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
    /// What each event says, by message id; those that are not here are counted only.
    #[serde(default)]
    pub details: BTreeMap<String, EventTruth>,
    /// What must be known of devices, by `device_id`; of those that are not here, only that they are there.
    #[serde(default)]
    pub devices: BTreeMap<String, DeviceTruth>,
}

/// A moment, as far as it can be known beforehand; milliseconds since 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Span {
    /// Not before this.
    pub from_ms: i64,
    /// Not after this; none: it depends on when the record is received.
    pub to_ms: Option<i64>,
}

impl Span {
    /// Can it have been then?
    pub fn contains(&self, ms: i64) -> bool {
        self.from_ms <= ms && self.to_ms.is_none_or(|to_ms| ms <= to_ms)
    }

    /// Is it known to the millisecond?
    pub fn is_exact(&self) -> bool {
        self.to_ms == Some(self.from_ms)
    }
}

/// When somebody or something was seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// First.
    pub first: Span,
    /// Last.
    pub last: Span,
}

impl Seen {
    /// Once.
    pub fn at(span: Span) -> Seen {
        Seen { first: span, last: span }
    }

    /// Both of two.
    pub fn with(one: Option<Seen>, other: Seen) -> Seen {
        let Some(one) = one else { return other };
        let earliest = [one.first.to_ms, other.first.to_ms].into_iter().flatten().min();
        let latest = one.last.to_ms.zip(other.last.to_ms).map(|(one, other)| one.max(other));
        Seen {
            first: Span { from_ms: one.first.from_ms.min(other.first.from_ms), to_ms: earliest },
            last: Span { from_ms: one.last.from_ms.max(other.last.from_ms), to_ms: latest },
        }
    }
}

/// What an enriched event must say.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventTruth {
    /// Its name.
    pub name: String,
    /// The source's code.
    pub source: String,
    /// Its properties.
    pub properties: serde_json::Map<String, Value>,
    /// The `device_id` that its record named.
    pub device: Option<String>,
    /// When it happened.
    pub time: Span,
    /// So long before it was received, exactly.
    pub lag_ms: Option<i64>,
}

/// What must be known of a device.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceTruth {
    /// All its attributes; one of these values each.
    pub attributes: BTreeMap<String, Vec<Value>>,
    /// Its user is named by one of these, `type=value`.
    pub users: BTreeSet<String>,
    /// When it was seen.
    pub seen: Option<Seen>,
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
    /// When they were seen; none: not looked at.
    #[serde(default)]
    pub seen: Option<Seen>,
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
        self.details.extend(more.details);
        self.devices.extend(more.devices);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_seen_twice_was_first_seen_the_first_time() {
        let span = |from_ms, to_ms| Span { from_ms, to_ms };
        let (exact, open) = (Seen::at(span(10, Some(10))), Seen::at(span(20, None)));
        let both = Seen::with(Some(exact), open);
        assert_eq!(both, Seen { first: span(10, Some(10)), last: span(20, None) });
        assert_eq!(Seen::with(Some(open), exact), both);
        assert!(both.first.is_exact() && both.last.contains(1_000) && !both.last.contains(19));
    }
}

//! Whose silence is believed.
//!
//! A worker is *silent* when it was not heard beyond the bound. One that is silent alone is gone. If most fall silent at once, it is rather that we do not
//! hear: the topic, our connection or our own process stands still; were every worker to believe it, each would take from all others. Then nobody is
//! gone until the bound is ten times over.
//!
//! *At once* is judged for each silent worker among its *company*: those that were heard at about the same time as it, or later. Each of them that has
//! been quiet since then, for more than half the bound, and was last heard within one bound of it, fell silent with it. (Half the
//! bound, because reports do not come at the same moment: when the first is silent, the others only seem alive.) A worker that said it
//! leaves is expected to fall silent, counts for nobody, and is believed. One that serves no stage of the plan (a gateway) counts while it is heard, because it shows that we hear, and its silence
//! says nothing about that of others.
//!
//! A worker that does not hear itself is cut off: whatever it believes of others, it acquires nothing ([`super::duties`]). If that is so of all, every owner
//! goes on, which is right.

use super::{Heard, View};
use crate::status::WorkerStatus;
use std::collections::{BTreeMap, BTreeSet};

/// What a worker's silence means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Presence {
    /// It is silent, and that is believed.
    Gone,
    /// It is silent, but not alone in that.
    Doubted,
    /// It was heard.
    Live,
}

impl View {
    /// The presence of every worker that was heard or named.
    pub(super) fn presence(&self, now_ms: u64) -> BTreeMap<&str, Presence> {
        self.workers.iter().map(|(name, heard)| (name.as_str(), self.presence_of(heard, now_ms))).collect()
    }

    fn presence_of(&self, heard: &Heard, now_ms: u64) -> Presence {
        let quiet_ms = heard.quiet_ms(now_ms);
        let bound_ms = self.bounds.silence_ms;
        if quiet_ms <= bound_ms {
            Presence::Live
        } else if heard.leaves() || quiet_ms > bound_ms.saturating_mul(self.bounds.believe_after) {
            Presence::Gone
        } else if self.most_fell_silent_with(heard, now_ms) {
            Presence::Doubted
        } else {
            Presence::Gone
        }
    }

    fn most_fell_silent_with(&self, silent: &Heard, now_ms: u64) -> bool {
        let bound_ms = self.bounds.silence_ms;
        let company = self
            .workers
            .values()
            .filter(|other| !other.leaves() && other.at_ms.saturating_add(bound_ms) >= silent.at_ms);
        let stages: BTreeSet<&str> = self.owners.keys().map(|id| id.stage.as_str()).collect();
        let (mut known, mut fell) = (0_usize, 0_usize);
        for other in company {
            let quiet = other.quiet_ms(now_ms) > bound_ms / 2;
            if quiet && !other.serves(&stages) {
                continue;
            }
            known += 1;
            fell += usize::from(quiet && other.at_ms <= silent.at_ms.saturating_add(bound_ms));
        }
        2 * fell > known
    }
}

impl Heard {
    fn quiet_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.at_ms)
    }

    /// Whoever has not reported yet is one whom a plan names. Without a plan, anybody may be one.
    fn serves(&self, stages: &BTreeSet<&str>) -> bool {
        let is_one = |report: &WorkerStatus| {
            stages.is_empty() || report.stages.iter().any(|stage| stages.contains(stage.as_str()))
        };
        self.report.as_ref().is_none_or(is_one)
    }

    fn leaves(&self) -> bool {
        self.report.as_ref().is_some_and(|report| report.leaving)
    }
}

//! Which message ids were seen: duplicates are told within a window, and forgotten after it.
//!
//! An id is kept by *period*: the hour at which its period began. A period takes ids for as long as the window, then the next one begins, so that the ids of a window lie
//! in two periods (three for a moment, more where the window was made shorter). A look-up asks each of them. Stamps never go back within a partition (I7), so that
//! whatever an earlier period keeps is older than the hour after the one at which a later period began: when that is past the window,
//! the earlier period goes as a whole, unread. None of this depends on how long the window was before.

use crate::source;
use crate::unify::UnifyValue;
use crate::{State, StateError};
use millstream_model::id::message_hash;
use millstream_model::key::{GROUPS, Kind, StateKey};
use millstream_model::proto::{Envelope, Seen};

const HOUR_MS: u64 = 3_600_000;

/// A record's message id in its key group.
pub(super) struct SeenKey<'a> {
    group: u16,
    tenant: &'a str,
    hash: [u8; 16],
}

impl SeenKey<'_> {
    /// `None` when there is nothing to remember it by.
    pub(super) fn of(record: &Envelope) -> Option<SeenKey<'_>> {
        let group = u16::try_from(record.group).ok().filter(|group| *group < GROUPS)?;
        if record.message_id.is_empty() || !source::is_tenant_name(&record.tenant) {
            return None;
        }
        Some(SeenKey { group, tenant: &record.tenant, hash: message_hash(&record.message_id) })
    }

    pub(super) fn in_period(&self, period: u32) -> StateKey {
        StateKey::in_period(self.group, Kind::Seen, period, self.tenant, &self.hash)
    }
}

/// How long ids are told apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    ms: u64,
}

impl Window {
    pub(super) fn of_hours(hours: u64) -> Window {
        Window { ms: hours.saturating_mul(HOUR_MS) }
    }

    /// The period in which an id that is seen at `stamp_ms` is kept.
    fn period(self, stamp_ms: u64, periods: &[u32]) -> u32 {
        let hour = u32::try_from(stamp_ms / HOUR_MS).unwrap_or(u32::MAX);
        let takes = |newest: &u32| hour < newest.saturating_add(u32::try_from(self.ms / HOUR_MS).unwrap_or(u32::MAX));
        periods.last().copied().filter(takes).unwrap_or(hour)
    }

    /// The periods to ask about an id: the one in which it would be kept first.
    pub(super) fn look_in(self, stamp_ms: u64, periods: &[u32]) -> impl Iterator<Item = u32> {
        let own = self.period(stamp_ms, periods);
        let oldest = self.forget_before(stamp_ms, periods);
        let others = periods.iter().rev().copied().filter(move |period| *period != own && *period >= oldest);
        std::iter::once(own).chain(others)
    }

    /// The first period that may keep what is still within the window.
    pub(super) fn forget_before(self, stamp_ms: u64, periods: &[u32]) -> u32 {
        let is_past =
            |period: &u32| (u64::from(*period) + 1).saturating_mul(HOUR_MS).saturating_add(self.ms) < stamp_ms;
        periods.iter().rev().copied().find(is_past).unwrap_or(0)
    }

    /// Was this message id seen within the window, and not before its tenant was erased (`erased_ms`)? It is from now on.
    pub(super) fn is_duplicate(
        self,
        key: &SeenKey<'_>,
        stamp_ms: u64,
        erased_ms: u64,
        state: &mut dyn State<UnifyValue>,
    ) -> Result<bool, StateError> {
        let periods = state.periods();
        for period in self.look_in(stamp_ms, &periods) {
            if let Some(UnifyValue::Seen(seen)) = state.get(&key.in_period(period))?
                && stamp_ms.saturating_sub(seen.time_ms) <= self.ms
                && seen.time_ms > erased_ms
            {
                return Ok(true);
            }
        }
        let seen = UnifyValue::Seen(Seen { time_ms: stamp_ms });
        state.put(key.in_period(self.period(stamp_ms, &periods)), seen);
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryState;

    fn key(id: &str) -> SeenKey<'_> {
        SeenKey { group: 7, tenant: "acme", hash: message_hash(id) }
    }

    #[test]
    fn an_id_is_told_within_the_window_wherever_periods_begin() {
        let window = Window::of_hours(24);
        for hour in [0, 1, 23, 24, 25, 47] {
            let (mut state, first) = (MemoryState::default(), (1_000 * 24 + hour) * HOUR_MS);
            assert!(!window.is_duplicate(&key("a"), first, 0, &mut state).unwrap());
            assert!(!window.is_duplicate(&key("other"), first + 23 * HOUR_MS, 0, &mut state).unwrap());
            assert!(window.is_duplicate(&key("a"), first + 24 * HOUR_MS, 0, &mut state).unwrap(), "{hour}");
            assert!(!window.is_duplicate(&key("a"), first + 24 * HOUR_MS + 1, 0, &mut state).unwrap(), "{hour}");
        }
    }

    #[test]
    fn what_is_forgotten_is_past_the_window_and_nothing_is_kept_much_longer_than_two_windows() {
        let window = Window::of_hours(24);
        let mut state = MemoryState::default();
        for hour in 0..400 {
            let stamp_ms = (24_000 + hour) * HOUR_MS;
            state.forget_before(window.forget_before(stamp_ms, &state.periods()));
            assert!(!window.is_duplicate(&key(&hour.to_string()), stamp_ms, 0, &mut state).unwrap());
            let times = state.entries.values().map(|UnifyValue::Seen(seen)| stamp_ms - seen.time_ms);
            let oldest = times.max().unwrap() / HOUR_MS;
            assert!(oldest >= hour.min(24) && oldest <= 50, "{hour}: {oldest}");
        }
    }

    #[test]
    fn a_window_that_was_changed_finds_what_the_former_ones_kept() {
        let (mut state, first) = (MemoryState::default(), 24_010 * HOUR_MS);
        let (week, short) = (Window::of_hours(7 * 24), Window::of_hours(48));
        let mut seen = |window: Window, id, hour: u64| {
            let stamp_ms = first + hour * HOUR_MS;
            state.forget_before(window.forget_before(stamp_ms, &state.periods()));
            window.is_duplicate(&key(id), stamp_ms, 0, &mut state).unwrap()
        };
        assert!(!seen(week, "a", 0));
        assert!(!seen(week, "b", 47));
        assert!(seen(short, "a", 48) && !seen(short, "c", 48));
        assert!(!seen(week, "d", 50));
        assert!(seen(week, "b", 47 + 168) && seen(week, "c", 48 + 168) && seen(week, "d", 50 + 168));
        assert!(!seen(week, "b", 48 + 168) && seen(week, "d", 50 + 168));
    }
}

//! When a record happened: skew correction and bounds (I7).
//!
//! A device's clock may be years off, but the time between two readings of it is right. So, when the sender says when it happened and
//! when it was sent, both by its own clock: happened = received - (sent - original), which is Segment's rule. "Received" is the record's
//! stamp, never the time of processing: a record is accepted or not whenever it is processed.

use super::config::RecordLimits;
use crate::source::times::instant;
use millstream_model::proto::Value;
use millstream_model::reject::{Reason, Refusal};
use millstream_model::value::format_time;

const HOUR_MS: i64 = 3_600_000;

/// When a record happened; without a time of its own, when it was received.
///
/// # Errors
/// The time cannot be read, or lies beyond the bounds.
pub(super) fn happened(
    field: &str,
    original: Option<&Value>,
    sent_ms: Option<i64>,
    received_ms: i64,
    limits: &RecordLimits,
) -> Result<i64, Refusal> {
    let Some(original) = original.filter(|value| !is_blank(value)) else { return Ok(received_ms) };
    let original_ms = instant(original).ok_or_else(|| unreadable(field))?;
    let happened_ms = match sent_ms {
        Some(sent_ms) => received_ms.saturating_sub(sent_ms.saturating_sub(original_ms)),
        None => original_ms,
    };
    within(field, happened_ms, received_ms, limits)?;
    Ok(happened_ms)
}

pub(super) fn is_blank(value: &Value) -> bool {
    value.is_null() || value.as_str().is_some_and(|text| text.trim().is_empty())
}

fn unreadable(field: &str) -> Refusal {
    let message = format!(
        "`{field}` is not a time; send ISO 8601 such as 2023-11-14T22:13:20Z, or seconds or milliseconds since 1970"
    );
    Refusal::field(Reason::InvalidValue, field, message)
}

fn within(field: &str, happened_ms: i64, received_ms: i64, limits: &RecordLimits) -> Result<(), Refusal> {
    let show = |what: &str, bound: String| {
        format!(
            "{what}: {} by `{field}`, received {}; at most {bound} allowed",
            format_time(happened_ms),
            format_time(received_ms)
        )
    };
    let age_ms = received_ms.saturating_sub(happened_ms);
    if age_ms > i64::from(limits.max_age_hours) * HOUR_MS {
        let message = show("happened too long ago", format!("{} hours are", limits.max_age_hours));
        return Err(Refusal::field(Reason::TooOld, field, message));
    }
    if age_ms < -(i64::from(limits.max_ahead_minutes) * 60_000) {
        let message =
            show("happens in the future", format!("{} minutes of clock difference are", limits.max_ahead_minutes));
        return Err(Refusal::field(Reason::InFuture, field, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_700_000_000_000;

    fn time(original: i64, sent: Option<i64>) -> Result<i64, Reason> {
        let limits = RecordLimits::default();
        happened("timestamp", Some(&Value::integer(original)), sent, NOW, &limits).map_err(|refusal| refusal.reason)
    }

    #[test]
    fn a_wrong_clock_is_corrected() {
        let year = 365 * 24 * HOUR_MS;
        assert_eq!(time(NOW - year - 5_000, Some(NOW - year)), Ok(NOW - 5_000));
        assert_eq!(time(NOW + year - 5_000, Some(NOW + year)), Ok(NOW - 5_000));
        assert_eq!(time(NOW - 5_000, None), Ok(NOW - 5_000));
    }

    #[test]
    fn bounds_are_inclusive_and_by_reception() {
        let days = 24 * HOUR_MS;
        assert_eq!(time(NOW - 30 * days, None), Ok(NOW - 30 * days));
        assert_eq!(time(NOW - 30 * days - 1, None), Err(Reason::TooOld));
        assert_eq!(time(NOW + HOUR_MS, None), Ok(NOW + HOUR_MS));
        assert_eq!(time(NOW + HOUR_MS + 1, None), Err(Reason::InFuture));
        assert_eq!(time(NOW - 40 * days, Some(NOW)), Err(Reason::TooOld));
    }

    #[test]
    fn no_time_means_reception_and_nonsense_is_refused() {
        let limits = RecordLimits::default();
        let at = |value: Option<Value>| happened("t", value.as_ref(), Some(NOW - 9), NOW, &limits);
        assert_eq!(at(None), Ok(NOW));
        assert_eq!(at(Some(Value::string(" "))), Ok(NOW));
        assert_eq!(at(Some(Value::null())), Ok(NOW));
        assert_eq!(at(Some(Value::string("yesterday"))).unwrap_err().reason, Reason::InvalidValue);
    }
}
